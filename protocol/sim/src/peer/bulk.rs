//! Content-addressed bytes: frames and leaves of states, from whoever has them, checked against their hash.
//!
//! Rule `waits-end`, as in the daemon's bulk plane: whoever wants a frame of a peer in its own site first waits for it there,
//! and is held as long as that peer fetches the frame, or is about to hear of it. Whoever only waits holds nobody, so that
//! nobody waits in a circle. After that it asks one source after the other, and each answers at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameId, Stage};
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::{AppliedShard, Input};
use gradmesh_protocol::wire::{Request, Response};
use gradmesh_trainer::replica::StateImport;

use super::{Outside, Packet, Peer, Ticket, Timer, Wish, state_in};
use crate::coverage::Situation;

/// Askers that wait at once for a frame that is on its way here, at most.
const PARKED_MAX: usize = 1024;
/// How long an asker is held for a frame that nobody has told this peer of.
const UNHEARD_US: u64 = 2_000_000;
/// Times that each leaf is asked for, for each source.
const LEAF_TRIES: usize = 3;

/// What an awaited blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobPurpose {
    /// The frame with this hash.
    Frame(FrameId),
    /// The leaf at this place of the state that is fetched.
    Leaf(usize),
    /// The residual with this hash.
    Residual(Hash),
}

/// A frame on its way.
#[derive(Debug)]
pub(super) struct FrameFetch {
    /// Those not asked yet.
    sources: VecDeque<usize>,
    /// Whether it only waits for a peer of its site that may fetch the frame itself.
    waits: bool,
}

/// How a frame comes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It is only waited for, at another peer.
    Awaited,
    /// It is fetched.
    Coming,
}

/// A state on its way.
#[derive(Debug)]
pub(super) struct StateFetch {
    round: RoundId,
    root: Hash,
    sources: Vec<usize>,
    step: StateStep,
}

#[derive(Debug)]
enum StateStep {
    /// Source number so many was asked for the hashes of the leaves.
    Hashes { asked: usize, ticket: Ticket },
    /// The leaves that came; `tries` of each.
    Leaves {
        import: Box<StateImport>,
        hashes: Vec<Hash>,
        here: Vec<bool>,
        tries: Vec<usize>,
    },
}

/// The fetches of frames with this hash: keys are in the order of hashes first.
fn fetches_of<'a>(
    fetches: &'a BTreeMap<FrameId, FrameFetch>,
    hash: &'a Hash,
) -> impl Iterator<Item = &'a FrameFetch> {
    let first = FrameId {
        hash: *hash,
        bytes: 0,
        shard: 0,
        stage: Stage::Local,
    };
    let from = fetches.range(first..);
    from.take_while(|(id, _)| id.hash == *hash)
        .map(|(_, fetch)| fetch)
}

impl Peer {
    /// The blob with this hash, as it goes over a link: a frame, or a leaf of a kept state.
    pub(super) fn blob(&self, outside: &mut Outside, hash: &Hash) -> Option<Arc<[u8]>> {
        let mut blob = match self.store.frames.get(hash) {
            Some(frame) => frame.clone(),
            None if self.store.residuals.get(hash).is_some() => {
                self.store.residuals.get(hash)?.clone()
            }
            // It is no leaf, and to look for it among them takes long.
            None if self.standing(hash).is_some() => return None,
            None => {
                let genesis = outside.shape.genesis();
                let states = self.store.snapshots.values().chain([genesis]);
                let mut leaves = states.flat_map(|state| outside.shape.leaves(state));
                leaves.find(|leaf| Hash::of_content(leaf) == *hash)?
            }
        };
        let options = outside.options.clone();
        outside.network.corrupt(&options, &mut blob);
        Some(blob.into())
    }

    /// The leaf hashes of the state after `round`, if it is kept.
    pub(super) fn snapshot_leaves(&self, outside: &Outside, round: RoundId) -> Option<Vec<Hash>> {
        let state = self.store.snapshots.get(&round)?;
        let leaves = outside.shape.leaves(state);
        Some(leaves.iter().map(|leaf| Hash::of_content(leaf)).collect())
    }

    /// Lets `from` wait for a frame that is not here, if it may: so that each frame enters a site once. Rule `waits-end`.
    pub(super) fn hold(&mut self, outside: &mut Outside, from: usize, ticket: Ticket, hash: Hash) {
        let standing = self.standing(&hash);
        let may_wait = |parked: usize| standing != Some(Standing::Awaited) && parked < PARKED_MAX;
        let running = self.running.as_mut();
        let Some(running) = running.filter(|r| may_wait(r.parked.len())) else {
            return outside.send(self.place, from, Packet::Blob(ticket, None));
        };
        running.parked.push((hash, from, ticket));
        if standing.is_none() {
            let until = outside.now + UNHEARD_US;
            self.set_timer(outside, until, Timer::Unheard(hash));
        }
    }

    /// Nobody is held any longer for a frame that this peer has not heard of.
    pub(super) fn unheard(&mut self, outside: &mut Outside, hash: &Hash) {
        if self.standing(hash).is_none() {
            self.unpark(outside, hash);
        }
    }

    /// How the frame with this hash comes here, if it does.
    fn standing(&self, hash: &Hash) -> Option<Standing> {
        let running = self.running.as_ref()?;
        let fetches = fetches_of(&running.frame_fetches, hash);
        let standings = fetches.map(|fetch| match fetch.waits {
            true => Standing::Awaited,
            false => Standing::Coming,
        });
        standings.max()
    }

    /// Those that wait for a frame get it if it is here, and are told that it is not otherwise.
    pub(super) fn unpark(&mut self, outside: &mut Outside, hash: &Hash) {
        let Some(running) = &mut self.running else {
            return;
        };
        let (due, parked) = std::mem::take(&mut running.parked)
            .into_iter()
            .partition(|(of, ..)| of == hash);
        running.parked = parked;
        let due: Vec<(Hash, usize, Ticket)> = due;
        let options = outside.options.clone();
        for (_, to, ticket) in due {
            let mut frame = self.store.frames.get(hash).cloned();
            if let Some(frame) = &mut frame {
                outside.network.corrupt(&options, frame);
            }
            let blob = frame.map(Arc::from);
            outside.send(self.place, to, Packet::Blob(ticket, blob));
        }
    }

    pub(super) fn fetch_frame(
        &mut self,
        outside: &mut Outside,
        frame: FrameId,
        sources: &[PeerKey],
        inputs: &mut VecDeque<Input>,
    ) {
        if let Some(bytes) = self.store.frames.get(&frame.hash) {
            let fits = bytes.len() as u64 == frame.bytes;
            let sound = fits
                && outside
                    .shape
                    .decodes(frame.stage, frame.shard as usize, bytes);
            inputs.push_back(if sound {
                Input::FrameHeld(frame)
            } else {
                Input::FrameMalformed(frame)
            });
            return;
        }
        let sources: VecDeque<usize> = self.places(outside, sources).into();
        let site = |place: usize| outside.options.peers[place].link.site;
        let first = sources.front().copied();
        let entry = first.filter(|first| {
            site(*first) == site(self.place) && outside.network.is_connected(self.place, *first)
        });
        let Some(running) = &mut self.running else {
            return;
        };
        let fetch = FrameFetch {
            sources,
            waits: entry.is_some(),
        };
        // A frame that was wanted in one round can be wanted in the next, when its author lies: it comes once.
        if running.frame_fetches.contains_key(&frame) {
            return;
        }
        running.frame_fetches.insert(frame, fetch);
        if outside.lines.is_some() {
            outside.stages.insert(frame.hash, frame.stage);
        }
        // Every frame of two headers of every peer, and of four reductions of each owner; no fewer than of 32 peers.
        let fetches_max = 10 * outside.names.len().max(32) * outside.shape.shards();
        if running.frame_fetches.len() > fetches_max {
            let what = format!("more than {fetches_max} frames are on their way");
            return outside.fail(self.place, "bounded", what);
        }
        match entry {
            Some(entry) => {
                self.ask_for_frame(outside, entry, frame, Wish::WhenItIsThere);
                // Rule `waits-end`: for what was unheard of until now.
                if self.standing(&frame.hash) == Some(Standing::Awaited) {
                    self.unpark(outside, &frame.hash);
                }
            }
            None => inputs.extend(self.next_source(outside, frame)),
        }
    }

    pub(super) fn places(&self, outside: &mut Outside, sources: &[PeerKey]) -> Vec<usize> {
        let known = sources
            .iter()
            .filter_map(|source| outside.places.get(source).copied());
        let places: Vec<usize> = known.filter(|place| *place != self.place).collect();
        if places.len() != sources.len() {
            let what = format!("fetches from {sources:?}, among them itself or nobody");
            outside.fail(self.place, "orderly", what);
        }
        places
    }

    /// Asks the next source for a frame; the input that says so when there is none left.
    fn next_source(&mut self, outside: &mut Outside, frame: FrameId) -> Option<Input> {
        let running = self.running.as_mut()?;
        let fetch = running.frame_fetches.get_mut(&frame)?;
        fetch.waits = false;
        let connected = |place: &usize| outside.network.is_connected(self.place, *place);
        while let Some(source) = fetch.sources.pop_front() {
            if connected(&source) {
                self.ask_for_frame(outside, source, frame, Wish::Now);
                return None;
            }
        }
        running.frame_fetches.remove(&frame);
        outside.coverage.meet(Situation::FrameFailed);
        self.unpark(outside, &frame.hash);
        Some(Input::FrameFailed(frame))
    }

    fn ask_for_frame(&mut self, outside: &mut Outside, of: usize, frame: FrameId, wish: Wish) {
        let ask = |ticket| Packet::AskBlob(ticket, frame.hash, wish);
        let ticket = self.ask(outside, of, ask);
        if let Some(running) = &mut self.running {
            running.blobs.insert(ticket, BlobPurpose::Frame(frame));
        }
    }

    /// An awaited blob came, or did not.
    pub(super) fn blob_came(
        &mut self,
        outside: &mut Outside,
        ticket: Ticket,
        blob: Option<Arc<[u8]>>,
    ) {
        let Some(running) = &mut self.running else {
            return;
        };
        match running.blobs.remove(&ticket) {
            Some(BlobPurpose::Frame(frame)) => self.frame_came(outside, frame, blob),
            Some(BlobPurpose::Leaf(place)) => self.leaf_came(outside, place, blob),
            Some(BlobPurpose::Residual(residual)) => {
                self.residual_came(outside, residual, blob.as_deref());
            }
            None => self.hashes_failed(outside, ticket),
        }
    }

    fn frame_came(&mut self, outside: &mut Outside, frame: FrameId, blob: Option<Arc<[u8]>>) {
        let at_hand = self.applied().map_or(RoundId::FOUNDING, RoundId::next);
        let running = self.running.as_ref();
        if !running.is_some_and(|r| r.frame_fetches.contains_key(&frame)) {
            return;
        }
        let input = match blob.filter(|blob| Hash::of_content(blob) == frame.hash) {
            Some(blob)
                if blob.len() as u64 == frame.bytes
                    && outside
                        .shape
                        .decodes(frame.stage, frame.shard as usize, &blob) =>
            {
                self.store.frames.insert(frame.hash, blob.to_vec());
                self.store.frame_rounds.insert(frame.hash, at_hand);
                Some(Input::FrameHeld(frame))
            }
            Some(_) => {
                outside.coverage.meet(Situation::FrameMalformed);
                Some(Input::FrameMalformed(frame))
            }
            None => self.next_source(outside, frame),
        };
        if let Some(input) = input {
            if let Some(running) = &mut self.running {
                running.frame_fetches.remove(&frame);
            }
            self.unpark(outside, &frame.hash);
            self.input(outside, input);
        }
    }

    pub(super) fn fetch_state(
        &mut self,
        outside: &mut Outside,
        round: RoundId,
        root: Hash,
        sources: &[PeerKey],
    ) {
        if !self.is_idle() {
            let what =
                format!("fetches the state after {round} while the worker uses the one here");
            return outside.fail(self.place, "orderly", what);
        }
        let sources = self.places(outside, sources);
        if sources.is_empty() {
            return outside.fail(self.place, "orderly", "fetches a state from nobody".into());
        }
        let first = sources[0];
        let ticket = self.ask_hashes(outside, round, first);
        if let Some(running) = &mut self.running {
            running.state_fetch = Some(StateFetch {
                round,
                root,
                sources,
                step: StateStep::Hashes { asked: 0, ticket },
            });
        }
    }

    fn ask_hashes(&mut self, outside: &mut Outside, round: RoundId, source: usize) -> Ticket {
        let bytes: Arc<[u8]> = Request::Snapshot(round).encode(&outside.run).into();
        self.ask(outside, source, |ticket| Packet::Ask(ticket, bytes))
    }

    /// The hashes of a state's leaves came, or a refusal.
    pub(super) fn snapshot_came(
        &mut self,
        outside: &mut Outside,
        answered: Ticket,
        response: Response,
    ) {
        let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) else {
            return;
        };
        let StateStep::Hashes { ticket, .. } = fetch.step else {
            return;
        };
        if ticket != answered {
            return;
        }
        let import = match response {
            Response::Snapshot { round, leaves } if round == fetch.round => outside
                .shape
                .import(fetch.root, leaves.clone())
                .map(|import| (import, leaves)),
            _ => None,
        };
        match import {
            Some((import, hashes)) => {
                let count = hashes.len();
                fetch.step = StateStep::Leaves {
                    import: Box::new(import),
                    here: vec![false; count],
                    tries: vec![0; count],
                    hashes,
                };
                for place in 0..count {
                    self.ask_leaf(outside, place);
                }
            }
            None => self.hashes_failed(outside, answered),
        }
    }

    fn hashes_failed(&mut self, outside: &mut Outside, failed: Ticket) {
        let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) else {
            return;
        };
        let StateStep::Hashes { asked, ticket } = fetch.step else {
            return;
        };
        if ticket != failed {
            return;
        }
        let (round, next) = (fetch.round, asked + 1);
        match fetch.sources.get(next).copied() {
            Some(source) => {
                let ticket = self.ask_hashes(outside, round, source);
                if let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) {
                    fetch.step = StateStep::Hashes {
                        asked: next,
                        ticket,
                    };
                }
            }
            None => self.state_failed(outside),
        }
    }

    /// Asks for a leaf: each from another source first, so that a state comes from many at once.
    fn ask_leaf(&mut self, outside: &mut Outside, place: usize) {
        let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) else {
            return;
        };
        let StateStep::Leaves { hashes, tries, .. } = &mut fetch.step else {
            return;
        };
        if tries[place] >= LEAF_TRIES * fetch.sources.len() {
            return self.state_failed(outside);
        }
        let source = fetch.sources[(place + tries[place]) % fetch.sources.len()];
        tries[place] += 1;
        let hash = hashes[place];
        let ticket = self.ask(outside, source, |ticket| {
            Packet::AskBlob(ticket, hash, Wish::Now)
        });
        if let Some(running) = &mut self.running {
            running.blobs.insert(ticket, BlobPurpose::Leaf(place));
        }
    }

    fn state_failed(&mut self, outside: &mut Outside) {
        let Some(running) = &mut self.running else {
            return;
        };
        running
            .blobs
            .retain(|_, purpose| !matches!(purpose, BlobPurpose::Leaf(_)));
        if let Some(fetch) = running.state_fetch.take() {
            outside.coverage.meet(Situation::StateFailed);
            self.input(outside, Input::StateFailed(fetch.round));
        }
    }

    fn leaf_came(&mut self, outside: &mut Outside, place: usize, blob: Option<Arc<[u8]>>) {
        let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) else {
            return;
        };
        let StateStep::Leaves { import, here, .. } = &mut fetch.step else {
            return;
        };
        let put = blob.is_some_and(|blob| import.put(place, &blob).is_ok());
        if !put {
            return self.ask_leaf(outside, place);
        }
        here[place] = true;
        if here.contains(&false) {
            return;
        }
        let (round, root) = (fetch.round, fetch.root);
        let running = self.running.as_mut();
        let fetched = running.and_then(|running| running.state_fetch.take());
        let Some(StateStep::Leaves { import, .. }) = fetched.map(|fetch| fetch.step) else {
            return;
        };
        match import.finish() {
            Ok(state) => self.install_state(outside, round, root, state),
            Err(error) => outside.fail(self.place, "orderly", format!("no state: {error}")),
        }
    }

    /// Makes a fetched state durable and tells the node.
    fn install_state(
        &mut self,
        outside: &mut Outside,
        round: RoundId,
        root: Hash,
        mut state: gradmesh_trainer::replica::Replica,
    ) {
        if let Err((check, what)) = outside.checks.stands_at(round, &root) {
            return outside.fail(self.place, check, what);
        }
        outside.coverage.meet(Situation::StateFetched);
        let shape = outside.shape.clone();
        let store = &mut self.store;
        // The error feedback stays, and what was not accepted of an update that the fetched state is past goes back into it.
        let mut before = state_in(&store.state, &shape).clone();
        if let Some(of) = store.private.pending_round().filter(|of| *of <= round)
            && let Some(update) = store.private.settle(of)
        {
            let record = store.decoded.get(of.0 as usize);
            let accepted = update.accepted(&self.keypair.public(), record.map(|r| &**r));
            let own = Some((&update, accepted.as_slice()));
            let skipped = vec![AppliedShard::default(); shape.shards()];
            shape
                .apply(&mut before, &skipped, &[], &store.frames, own)
                .expect("an own update can be given back");
        }
        state
            .restore_private(&before.save_private(&[]))
            .expect("what was just saved");
        store.snapshots.clear();
        store.snapshots.insert(round, state.clone());
        store.state = Some((round, state));
        store.frames_from = round.next();
        let later = store.decoded.iter().skip(round.0 as usize + 1);
        let records = later.cloned().collect();
        self.input(outside, Input::StateFetched { round, records });
    }
}
