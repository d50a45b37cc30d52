//! The fetching side: puts one blob together from sources that may die, freeze, crawl or lie.
//!
//! A blob of known length is cut into parts (`assembly.rs`); each is carried by a lane (`lane.rs`): one stream, or one near
//! road, from one source. A source has up to [`LANES_PER_SOURCE`] lanes, a fetch up to [`LANES_MAX`], so that a large blob comes
//! from several holders at once; consecutive parts take turns among the connections to a source. A part that a lane
//! leaves unfinished is continued by another source at the same byte, whatever the reason:
//!
//! - the source died or refused;
//! - it *froze*: nothing came from it for `overtake_after`, in any lane of any fetch. It is then asked again only when
//!   nobody else is left, and other fetches ask it last for a while;
//! - the lane *crawls*: all else is done, and a lane to another source, which idles in this fetch, would have much more by
//!   what the two deliver to all fetches. What is on its way in the lane then comes in vain.
//!
//! Sources in the own site ("near") come first: others are asked only when none of those is left, however long the blob.
//!
//! Without another source a lane goes on until too little comes from its source in a `stall_window`. A lane that waits
//! while its source delivers elsewhere is no sign of anything: streams of a connection share its rate.
//!
//! **What is verified when.** Parts are hashed as they arrive, and nothing is handed over before BLAKE3 of the whole is
//! the hash that was asked for; which part is wrong cannot be told before that, because nobody vouches for the inner
//! nodes of the tree. When the whole is wrong, and
//!
//! - one source sent everything: it lied, and is blamed ([`Blame::WrongBytes`]);
//! - several did: who lied is not known yet. The fetch starts over with one of them alone, and once a blob has been
//!   verified, whose bytes differed from it is blamed.
//!
//! The same goes for sources that disagree on a length that the caller does not know. Memory is the caller's length,
//! or grows with the bytes that arrive up to the caller's cap; all fetches together stay within `fetch_bytes_max`.

mod assembly;
mod lane;
mod unpacking;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gradmesh_compression::planes::Width;
use libp2p::PeerId;
use tokio::sync::SemaphorePermit;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use super::admission::Place;
use super::pulse::{AtWork, LOOK_EVERY, Quiet};
use super::{
    Blame, FetchError, FetchFailed, FetchReport, Fetched, Inner, Length, Order, PeerSource, budget,
    held,
};
use crate::blob::BlobHash;
use assembly::{Assembly, Part, Suspect};
use lane::{Ended, Errand, Watch};

/// A busy source is asked again after 50 ms, then after twice that, this many times.
const BUSY_RETRIES: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Streams from one source for one blob: enough that both connections carry some to the end, and that no round trip
/// passes between parts. Measured (examples/bulk_throughput) with 300 MiB at 200 Mbit/s, 100 ms, 0.1% loss, one run each
/// on a busy machine: 22.3 MB/s with eight, 22.2 with four, 21.3 with two over two connections; 19.7 with one over one.
pub(super) const LANES_PER_SOURCE: usize = 4;
/// Streams of one fetch.
const LANES_MAX: usize = 32;
/// A lane that needs longer than this is taken over by an idle source that promises this many times as much.
const CRAWL_S: f64 = 1.0;
const CRAWL_FACTOR: f64 = 2.0;

pub(super) async fn fetch(inner: &Arc<Inner>, order: &Order<'_>) -> Result<Fetched, FetchFailed> {
    // Before anything else is taken: who waits here holds up no fetch, on which others may wait.
    let _ = within(order.deadline, held::wait(inner, order)).await;
    let landing = inner.flights.fetch(order.hash);
    let mut board = Board::new(inner, order);
    let fetched = within(order.deadline, async {
        let _permits = admit(inner, order).await?;
        board.run().await
    })
    .await
    .unwrap_or(Err(FetchError::Deadline));
    let report = board.report();
    tracing::debug!(
        blob = %hex::encode(order.hash),
        from = ?report.bytes_from,
        error = ?fetched.as_ref().err(),
        "a fetch has ended"
    );
    match fetched {
        Ok(bytes) => {
            metrics::counter!("gradmesh_bulk_fetches_total", "outcome" => "ok").increment(1);
            landing.landed(bytes.clone());
            Ok(Fetched {
                bytes,
                report,
                _served: landing,
            })
        }
        Err(error) => {
            metrics::counter!("gradmesh_bulk_fetches_total", "outcome" => "failed").increment(1);
            Err(FetchFailed { error, report })
        }
    }
}

/// What `work` gives; `None` if it is not done by `deadline`.
async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

/// Waits for a place among the fetches, and for memory in the order of places, so that nobody starves. A blob longer
/// than the whole budget waits for all of it.
async fn admit<'a>(
    inner: &'a Inner,
    order: &Order<'_>,
) -> Result<(Place, SemaphorePermit<'a>), FetchError> {
    let first = order.sources.first().map(|source| source.peer);
    let bytes = order.length.bytes_max();
    let place = inner.fetches.enter(first, bytes).await;
    let place = place.ok_or(FetchError::Stopped)?;
    let units = budget::units(bytes).min(budget::units(inner.limits.fetch_bytes_max));
    let memory = inner.fetch_memory.acquire_many(units).await;
    Ok((place, memory.map_err(|_| FetchError::Stopped)?))
}

/// A source and what became of it.
struct Holder {
    source: PeerSource,
    near: bool,
    standing: Standing,
    /// Lanes that it has now.
    lanes: usize,
    /// How often it was busy, and when it may be asked again.
    busy: u32,
    not_before: Instant,
    quiet: Quiet,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Good,
    /// It froze, here or in another fetch: asked when no good one is left, and good again when it delivers.
    Frozen,
    Gone,
}

/// A lane as the fetch sees it.
struct Running {
    part: usize,
    holder: usize,
    missing: Option<usize>,
    watch: Arc<Watch>,
    overtaken: bool,
}

/// One fetch.
struct Board<'a> {
    inner: &'a Arc<Inner>,
    hash: BlobHash,
    length: Length,
    elements: Option<Width>,
    holders: Vec<Holder>,
    /// In the order of asking.
    turns: VecDeque<usize>,
    assembly: Assembly,
    pending: VecDeque<usize>,
    lanes: JoinSet<(Part, Ended)>,
    running: HashMap<Id, Running>,
    suspects: Vec<Suspect>,
    /// Set once sources contradicted each other: one at a time from then on.
    alone: bool,
    all_not_found: bool,
    report: FetchReport,
}

impl<'a> Board<'a> {
    fn new(inner: &'a Arc<Inner>, order: &Order<'_>) -> Self {
        let (now, sources) = (Instant::now(), order.sources);
        let holders = sources.iter().enumerate().map(|(place, source)| Holder {
            source: *source,
            near: place < order.near,
            standing: match inner.links.is_frozen(&source.peer) {
                true => Standing::Frozen,
                false => Standing::Good,
            },
            lanes: 0,
            busy: 0,
            not_before: now,
            quiet: Quiet::new(inner.pulses.of(source.peer)),
        });
        Self {
            inner,
            hash: order.hash,
            length: order.length,
            elements: order.elements,
            holders: holders.collect(),
            turns: (0..sources.len()).collect(),
            assembly: Assembly::of_unknown_length(),
            pending: VecDeque::new(),
            lanes: JoinSet::new(),
            running: HashMap::new(),
            suspects: Vec::new(),
            alone: false,
            all_not_found: !sources.is_empty(),
            report: FetchReport::default(),
        }
    }

    /// What is known now; lanes that have not ended are counted as far as they came.
    fn report(mut self) -> FetchReport {
        for running in std::mem::take(&mut self.running).into_values() {
            if let Some(holder) = self.holders.get(running.holder) {
                self.report.count(holder.source.peer, running.watch.bytes());
            }
        }
        self.report
    }

    async fn run(&mut self) -> Result<Bytes, FetchError> {
        self.start_over()?;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.assign();
            if self.running.is_empty() {
                if self.pending.is_empty() {
                    match self.finish()? {
                        Some(bytes) => return Ok(bytes),
                        None => continue,
                    }
                }
                let Some(next) = self.next_turn() else {
                    return Err(match self.all_not_found {
                        true => FetchError::NotFound,
                        false => FetchError::Exhausted,
                    });
                };
                sleep_until(next).await;
                continue;
            }
            tokio::select! {
                Some(ended) = self.lanes.join_next_with_id() => self.lane_ended(ended)?,
                _ = look.tick() => self.look(),
            }
        }
    }

    /// An empty blob, all of it pending.
    fn start_over(&mut self) -> Result<(), FetchError> {
        // The old buffer goes before the new one comes.
        self.assembly = Assembly::of_unknown_length();
        if let Length::Exactly(length) = self.length {
            let length = usize::try_from(length).map_err(|_| FetchError::TooLong)?;
            self.assembly = Assembly::exactly(length);
        }
        self.pending = (0..self.assembly.parts()).collect();
        Ok(())
    }

    /// Gives pending parts to sources that have room for them.
    fn assign(&mut self) {
        while self.running.len() < LANES_MAX
            && let Some(&index) = self.pending.front()
            && let Some(chosen) = self.choose()
            && let Some(part) = self.assembly.take(index)
        {
            self.pending.pop_front();
            self.spawn(chosen, part);
        }
    }

    /// The source to ask next: the least used one that is good, has room and has its turn; a far one only when no near one
    /// is good.
    fn choose(&self) -> Option<usize> {
        let now = Instant::now();
        let any_near = self.has_near();
        let usable = |standing| {
            let holders = self.turns.iter().filter_map(|&index| {
                let holder = self.holders.get(index)?;
                let room = holder.lanes < LANES_PER_SOURCE && holder.not_before <= now;
                let room = room && (holder.near || !any_near);
                (holder.standing == standing && room).then_some((index, holder.lanes))
            });
            // The first of the least used: `min_by_key` keeps the order of turns.
            holders
                .min_by_key(|(_, lanes)| *lanes)
                .map(|(index, _)| index)
        };
        if self.alone {
            // The source that is at work, or the next one.
            let at_work = self.holders.iter().position(|holder| holder.lanes > 0);
            if let Some(index) = at_work {
                let holder = self.holders.get(index)?;
                let more = holder.standing == Standing::Good && holder.lanes < LANES_PER_SOURCE;
                return more.then_some(index);
            }
        }
        usable(Standing::Good).or_else(|| {
            let waits = |holder: &Holder| holder.standing == Standing::Good;
            match self.holders.iter().any(waits) {
                true => None,
                false => usable(Standing::Frozen),
            }
        })
    }

    /// Whether a source in the own site is good.
    fn has_near(&self) -> bool {
        let good = |holder: &Holder| holder.near && holder.standing == Standing::Good;
        self.holders.iter().any(good)
    }

    /// When the next source that has to wait may be asked; `None` when none is left.
    fn next_turn(&self) -> Option<Instant> {
        let any_near = self.has_near();
        let left = self
            .holders
            .iter()
            .filter(|holder| holder.standing != Standing::Gone && (holder.near || !any_near));
        left.map(|holder| holder.not_before).min()
    }

    fn spawn(&mut self, chosen: usize, part: Part) {
        let Some(holder) = self.holders.get_mut(chosen) else {
            return;
        };
        if holder.lanes == 0 {
            holder.quiet = Quiet::new(Arc::clone(holder.quiet.pulse()));
        }
        holder.lanes += 1;
        let watch = Watch::new();
        let running = Running {
            part: part.index,
            holder: chosen,
            missing: part.missing(),
            watch: Arc::clone(&watch),
            overtaken: false,
        };
        let errand = Errand {
            inner: Arc::clone(self.inner),
            source: holder.source,
            hash: self.hash,
            length: self.length,
            elements: self.elements,
            near: holder.near,
            over_near: false,
            line: part.index,
            part,
            watch,
            pulse: Arc::clone(holder.quiet.pulse()),
            _at_work: AtWork::new(holder.quiet.pulse()),
        };
        let lane = self.lanes.spawn(errand.run());
        self.running.insert(lane.id(), running);
    }

    fn lane_ended(
        &mut self,
        ended: Result<(Id, (Part, Ended)), JoinError>,
    ) -> Result<(), FetchError> {
        // A lane only fails to join when it panicked, which is a bug of ours that its part does not survive.
        let (id, (part, ended)) = ended.map_err(|error| {
            tracing::error!(%error, "a lane of a fetch panicked");
            FetchError::Exhausted
        })?;
        let Some(running) = self.running.remove(&id) else {
            return Ok(());
        };
        let index = running.part;
        self.assembly.put_back(part);
        let Some(holder) = self.holders.get_mut(running.holder) else {
            return Ok(());
        };
        holder.lanes -= 1;
        let peer = holder.source.peer;
        self.report.count(peer, running.watch.bytes());
        self.all_not_found &= matches!(ended, Ended::Failed(Blame::NotFound));
        match ended {
            Ended::Complete => return Ok(()),
            Ended::LengthDiffers => {
                // Only a blob of one part gets here: nothing else is running.
                self.contradicted_by(Some(running.holder))?;
                return Ok(());
            }
            Ended::Overtaken => {
                self.turns.retain(|&turn| turn != running.holder);
                self.turns.push_back(running.holder);
            }
            Ended::Failed(Blame::Busy) if holder.busy < BUSY_RETRIES => {
                // One pause for all lanes that heard it.
                if holder.not_before <= Instant::now() {
                    holder.not_before = Instant::now() + BUSY_PAUSE * 2u32.pow(holder.busy);
                    holder.busy += 1;
                }
                self.turns.retain(|&turn| turn != running.holder);
                self.turns.push_back(running.holder);
            }
            // The other lanes of the same source have said it already.
            Ended::Failed(_) if holder.standing == Standing::Gone => {}
            Ended::Failed(blame) => {
                holder.standing = Standing::Gone;
                self.report.blame(peer, blame);
            }
        }
        self.pending.push_front(index);
        Ok(())
    }

    /// Everything has arrived: the blob if it is the right one. Otherwise says who is to blame, or suspected, and
    /// starts over.
    fn finish(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.assembly.hash() == self.hash {
            let assembly = std::mem::replace(&mut self.assembly, Assembly::of_unknown_length());
            let bytes = assembly.join();
            for suspect in &self.suspects {
                suspect.judge(&bytes, &mut self.report);
            }
            return Ok(Some(bytes));
        }
        let last = self.assembly.last_contributor();
        let last = self
            .holders
            .iter()
            .position(|holder| Some(holder.source.peer) == last);
        self.contradicted_by(last)?;
        Ok(None)
    }

    /// What has arrived contradicts the hash or itself. A source that is answerable for all of it is blamed; else all
    /// are suspects and `next` is tried alone.
    fn contradicted_by(&mut self, next: Option<usize>) -> Result<(), FetchError> {
        match self.assembly.only_contributor() {
            Some(liar) => {
                let holders = self.holders.iter_mut();
                for holder in holders.filter(|holder| holder.source.peer == liar) {
                    holder.standing = Standing::Gone;
                }
                self.report.blame(liar, Blame::WrongBytes);
            }
            None => {
                self.suspects.extend(self.assembly.suspects());
                if let Some(next) = next {
                    self.turns.retain(|&turn| turn != next);
                    self.turns.push_front(next);
                }
            }
        }
        self.alone = true;
        self.start_over()
    }

    /// Looks for sources that froze and lanes that crawl, and lets others overtake them.
    fn look(&mut self) {
        for index in 0..self.holders.len() {
            self.look_at(index);
        }
        if self.pending.is_empty() && !self.alone {
            self.overtake_a_crawler();
        }
    }

    fn look_at(&mut self, index: usize) {
        let is_good = |holder: &Holder| holder.standing == Standing::Good;
        let good = self.holders.iter().filter(|holder| is_good(holder));
        let peers: Vec<PeerId> = good.map(|holder| holder.source.peer).collect();
        let Some(holder) = self.holders.get_mut(index).filter(|h| h.lanes > 0) else {
            return;
        };
        let (peer, quiet) = (holder.source.peer, holder.quiet.look());
        if quiet.is_zero() {
            if holder.standing == Standing::Frozen {
                holder.standing = Standing::Good;
            }
            return;
        }
        let another = peers.iter().any(|good| *good != peer);
        if quiet < self.inner.limits.overtake_after || !another {
            return;
        }
        if is_good(holder) {
            holder.standing = Standing::Frozen;
            self.report.blame(peer, Blame::Stalled);
        }
        self.inner.links.freezes(peer);
        for running in self.running.values_mut().filter(|r| r.holder == index) {
            running.overtaken = true;
            running.watch.give_up();
        }
    }

    fn overtake_a_crawler(&mut self) {
        let any_near = self.has_near();
        let idle = self.holders.iter().filter(|holder| {
            holder.standing == Standing::Good
                && (holder.near || !any_near)
                && holder.lanes == 0
                && holder.not_before <= Instant::now()
        });
        let fastest = idle
            .map(|holder| holder.quiet.pulse().promise())
            .max_by(f64::total_cmp);
        let Some(fastest) = fastest else {
            return;
        };
        let crawlers = self.running.values_mut().filter_map(|running| {
            let done = running.watch.bytes() as f64;
            let left_s = (running.missing? as f64 - done) / running.watch.rate().max(1.0);
            let had_its_chance = running.watch.age() >= self.inner.limits.overtake_after;
            let quiet = &self.holders.get(running.holder)?.quiet;
            // A source of which nothing comes is about to freeze, which is more to be told.
            let delivers = quiet.lasted().is_zero();
            let slow = delivers && quiet.pulse().share() * CRAWL_FACTOR < fastest;
            let crawls = slow && had_its_chance && left_s > CRAWL_S;
            (crawls && !running.overtaken).then_some((left_s, running))
        });
        if let Some((_, crawler)) = crawlers.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
            crawler.overtaken = true;
            crawler.watch.give_up();
        }
    }
}

impl FetchReport {
    fn count(&mut self, peer: PeerId, bytes: u64) {
        match self.bytes_from.iter_mut().find(|(known, _)| *known == peer) {
            Some((_, count)) => *count += bytes,
            None if bytes > 0 => self.bytes_from.push((peer, bytes)),
            None => {}
        }
    }

    fn blame(&mut self, peer: PeerId, blame: Blame) {
        metrics::counter!("gradmesh_bulk_source_failures_total", "blame" => blame.name())
            .increment(1);
        tracing::debug!(%peer, %blame, "bulk source failed");
        self.blamed.push((peer, blame));
    }
}

#[cfg(test)]
mod tests;
