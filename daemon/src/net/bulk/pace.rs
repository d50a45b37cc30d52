//! How much a connection has in flight: congestion control by the rate that the link delivers at.
//!
//! Loss-based controls (Cubic) take the rare random loss of a long link for a full queue, and carry a tenth of it. Controls
//! that estimate rate and round trip (BBR) carry it, but quinn's one takes its rate from single packets and its window from
//! the round trip alone: on a short link behind a token bucket that is a window of a few packets, which the scheduling of
//! two busy hosts does not keep filled. This one counts over *epochs*, and allows for the hosts.
//!
//! - **Epoch**: a round trip, [`EPOCH_MIN`] and [`EPOCH_PACKETS_MIN`] packets at least. Its *rate* is what was acknowledged
//!   in it over its length, so that neither bursts of packets nor the token bucket of a limiter count for much. One in
//!   which the application had nothing to send says only that the link carries that much.
//! - **Rate of the link**: the highest of the last [`RATES`] epochs.
//! - **Window**: rate times the least round trip, and a *margin*: a quarter of that, and [`MARGIN_SCALE`] times the root of
//!   the rate, up to [`MARGIN_BYTES_MAX`]. The margin lies in the link's queue, where it covers the time in which either
//!   host does something else. It is also what finds more bandwidth: where there is some, the queue is empty and an epoch
//!   delivers the whole window in the least round trip. And it is what makes connections share a link: each gets of it
//!   what it has of the queue, and by the root the slower one has more of that than its share.
//! - **Reach**: quinn paces at 5/4 of window over round trip and forgets what it could not send in time; so hosts that are
//!   late keep less in flight than the window. It is made larger, up to [`REACH_MAX`] times, until as much is in flight on
//!   average as was to be. An epoch in which less was says only that the link carries that much.
//! - **Start**: the window grows by what is acknowledged, to [`START_GAIN`] times what it would be by the rate so far, until
//!   the round trip of a whole epoch has grown by a margin, or three epochs brought less than a quarter more, or loss sets
//!   in.
//! - **Loss** of up to [`LOSS_MAX`] is the link's. More is a queue that does not hold the margin: that becomes smaller by
//!   20%, and the rate is that of the epoch; with every epoch without, the margin grows by 2% of what it is at most.
//! - **The least round trip** is that of the last ten to twenty seconds. Every ten, all connections of a peer at once have
//!   half of it in flight for an epoch, so that it can be seen without a queue.
//!
//! Tested on a model of a link (`pace/model.rs`).

#[cfg(test)]
mod model;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::Connection;
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// A guess: several turns of a scheduler.
const EPOCH_MIN: Duration = Duration::from_millis(20);
/// So that one loss is not much of an epoch. Of connections that share a line, those with a small part of it have long epochs,
/// and must not be so slow to take their part that the others have had it all along: with 50 packets and a second, some of
/// fourteen had a fifth of it for seconds (`pace/model.rs`).
const EPOCH_PACKETS_MIN: u64 = 20;
/// A link that carries fewer packets than that in this time has an epoch nonetheless.
const EPOCH_MAX: Duration = Duration::from_millis(250);
/// Epochs whose rates are remembered.
const RATES: usize = 10;
/// Bytes for the root of one byte a second: 10 ms of 100 Mbit/s, which is several turns of a busy host, and 3 ms of 1 Gbit/s,
/// 32 ms of 10 Mbit/s.
const MARGIN_SCALE: f64 = 35.0;
/// An epoch with less in flight than this share of what was to be says nothing about the link.
const FILLED_MIN: f64 = 0.8;
/// The most window for what is to be in flight, and by how much that changes from epoch to epoch: slowly downwards, since
/// what a change does is seen a round trip later.
const REACH_MAX: f64 = 2.0;
const REACH_UP: f64 = 1.25;
const REACH_DOWN: f64 = 0.95;
/// Sockets hold not much more.
const MARGIN_BYTES_MAX: f64 = 256.0 * 1024.0;
/// A round trip that grows by this much, and a quarter, in the start is a queue. A guess: more than hosts are late.
const QUEUE_MIN: Duration = Duration::from_millis(10);
/// 2%, as in BBR's second version: above what links lose by themselves.
const LOSS_MAX: f64 = 0.02;
/// Fewer lost packets than these in an epoch are chance.
const LOSS_PACKETS_MIN: u64 = 3;
/// Stretches of time in which the least round trip is looked for.
const STRETCH_S: u64 = 10;
/// 64 packets: a fifth of a second at 3 Mbit/s, a fifth of what a 200 Mbit/s path holds in 20 ms.
const WINDOW_FIRST: u64 = 64 * 1200;
/// In the start the window is at most so many times that which the rate of the epoch asks for: enough to double.
const START_GAIN: f64 = 2.25;
const WINDOW_PACKETS_MIN: u64 = 4;

/// What a connection delivers, for others to read.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivery(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    /// Bytes a second; 0 while nothing is known.
    rate: AtomicU64,
    bytes: AtomicU64,
    limited_bytes: AtomicU64,
    pauses: AtomicU64,
}

/// What a connection has delivered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delivered {
    /// Acknowledged.
    pub(super) bytes: u64,
    /// Of them, those acknowledged while the application had nothing more to send.
    pub(super) limited_bytes: u64,
    /// How often it was found that more could have been in flight: the application had nothing to send, nothing was in flight,
    /// or an epoch was below its window, in the start or with half of one. Without a new one the path was full.
    pub(super) pauses: u64,
}

impl Delivery {
    /// Bytes a second that the connection is known to carry.
    pub(super) fn bytes_per_s(&self) -> Option<f64> {
        match self.0.rate.load(Ordering::Relaxed) {
            0 => None,
            rate => Some(rate as f64),
        }
    }

    pub(super) fn delivered(&self) -> Delivered {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Delivered {
            bytes: load(&self.0.bytes),
            limited_bytes: load(&self.0.limited_bytes),
            pauses: load(&self.0.pauses),
        }
    }

    pub(super) fn acked(&self, bytes: u64, app_limited: bool) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        if app_limited {
            self.0.limited_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.paused();
        }
    }

    fn paused(&self) {
        self.0.pauses.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where it can be read what `connection` delivers; `None` when it has another congestion control.
pub(super) fn delivery_of(connection: &Connection) -> Option<Delivery> {
    let pace = connection.congestion_state().into_any().downcast::<Pace>();
    pace.ok().map(|pace| pace.published)
}

/// Makes a [`Pace`] for each connection.
#[derive(Debug)]
pub(super) struct PaceConfig {
    began: Instant,
}

impl PaceConfig {
    pub(super) fn new(began: Instant) -> Self {
        Self { began }
    }
}

impl ControllerFactory for PaceConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Pace::new(self.began, now, mtu))
    }
}

/// The state of one connection.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Stretches of time are counted from here, for all connections of a peer.
    began: Instant,
    packet_bytes: u64,
    window: u64,
    phase: Phase,
    epoch: Option<Epoch>,
    /// Since when nothing has been in flight: no epoch lasts through a time without.
    idle_since: Option<Instant>,
    /// Of the last epochs, the newest last, bytes a second.
    rates: VecDeque<f64>,
    round_trips: RoundTrips,
    /// Share of the margin that the link's queue holds.
    ease: f64,
    /// What is to be in flight.
    target: f64,
    /// The window for each byte of that.
    reach: f64,
    /// Acknowledged since acknowledgements were last dealt with.
    batch: u64,
    published: Delivery,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The rate of the link is not known yet; `best` is the highest so far, and so many epochs brought little more.
    Start {
        best: f64,
        flat: u32,
    },
    Cruise,
    /// One epoch with half a window.
    Drain,
}

/// What came in the current epoch.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    began: Instant,
    acked: u64,
    lost: u64,
    /// Whether at any time in it the application had nothing to send.
    app_limited: bool,
    round_trip_min: Duration,
    /// What was in flight when acknowledgements came, for each byte that they covered, and those bytes.
    flight: f64,
    heard: f64,
}

impl Epoch {
    fn new(began: Instant) -> Self {
        Self {
            began,
            acked: 0,
            lost: 0,
            app_limited: false,
            round_trip_min: Duration::MAX,
            flight: 0.0,
            heard: 0.0,
        }
    }

    /// Mean of what was in flight.
    fn flight(&self) -> Option<f64> {
        (self.heard > 0.0).then(|| self.flight / self.heard)
    }
}

/// The least round trips of the current stretch of time and of that before.
#[derive(Clone, Copy, Debug)]
struct RoundTrips {
    stretch: u64,
    before: Duration,
    now: Duration,
    latest: Duration,
}

impl RoundTrips {
    fn new(stretch: u64) -> Self {
        Self {
            stretch,
            before: Duration::MAX,
            now: Duration::MAX,
            latest: Duration::ZERO,
        }
    }

    fn see(&mut self, round_trip: Duration) {
        self.now = self.now.min(round_trip);
        self.latest = round_trip;
    }

    fn least(&self) -> Duration {
        self.before.min(self.now)
    }
}

impl Pace {
    fn new(began: Instant, now: Instant, mtu: u16) -> Self {
        Self {
            began,
            packet_bytes: mtu.into(),
            window: WINDOW_FIRST,
            phase: Phase::Start { best: 0.0, flat: 0 },
            epoch: None,
            idle_since: None,
            rates: VecDeque::with_capacity(RATES),
            round_trips: RoundTrips::new(stretch_at(began, now)),
            ease: 1.0,
            target: WINDOW_FIRST as f64,
            reach: 1.0,
            batch: 0,
            published: Delivery::default(),
        }
    }

    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        let round_trip = now.saturating_duration_since(sent);
        self.round_trips.see(round_trip);
        self.published.acked(bytes, app_limited);
        let idle_for = self
            .idle_since
            .map(|since| sent.saturating_duration_since(since));
        if idle_for.is_some_and(|time| time >= EPOCH_MIN) {
            self.epoch = None;
        }
        // What the first acknowledgement covers was on its way before the epoch.
        let Some(epoch) = &mut self.epoch else {
            self.epoch = Some(Epoch::new(now));
            return;
        };
        if now > epoch.began {
            epoch.acked += bytes;
            self.batch += bytes;
        }
        epoch.app_limited |= app_limited;
        epoch.round_trip_min = epoch.round_trip_min.min(round_trip);
        if matches!(self.phase, Phase::Start { .. }) && !app_limited {
            self.window += bytes;
        }
    }

    fn acks_ended(&mut self, now: Instant, in_flight: u64) {
        let batch = std::mem::take(&mut self.batch) as f64;
        if in_flight == 0 {
            self.published.paused();
        }
        let Some(epoch) = &mut self.epoch else {
            return;
        };
        epoch.flight += batch * (in_flight as f64 + batch);
        epoch.heard += batch;
        let epoch = *epoch;
        let length = now.saturating_duration_since(epoch.began);
        let packets = epoch.acked / self.packet_bytes.max(1);
        let long_enough = length >= EPOCH_MIN.max(self.round_trips.latest)
            && (packets >= EPOCH_PACKETS_MIN || length >= EPOCH_MAX || self.phase == Phase::Drain);
        if long_enough {
            self.epoch_ended(now, epoch, length);
            self.epoch = Some(Epoch::new(now));
        }
        self.idle_since = (in_flight == 0).then_some(now);
    }

    fn epoch_ended(&mut self, now: Instant, epoch: Epoch, length: Duration) {
        let rate = epoch.acked as f64 / length.as_secs_f64();
        let sent = (epoch.acked + epoch.lost).max(1);
        let lossy = epoch.lost as f64 > LOSS_MAX * sent as f64
            && epoch.lost >= LOSS_PACKETS_MIN * self.packet_bytes;
        let known = self.rate();
        if lossy {
            self.rates.clear();
            self.ease *= 0.8;
        } else {
            self.ease = (self.ease + 0.02).min(1.0);
        }
        let flight = epoch.flight().filter(|_| !epoch.app_limited);
        // Else nobody knows what the link would have done with more.
        let filled = flight.is_some_and(|flight| flight > FILLED_MIN * self.target);
        let full = (filled || lossy) && self.phase == Phase::Cruise;
        if !full {
            self.published.paused();
        }
        if let Some(flight) = flight
            && self.phase == Phase::Cruise
        {
            let step = match lossy {
                true => 1.0 / REACH_UP,
                false => (self.target / flight.max(1.0)).clamp(REACH_DOWN, REACH_UP),
            };
            self.reach = (self.reach * step).clamp(1.0, REACH_MAX);
        }
        if lossy || filled || rate > known {
            if self.rates.len() == RATES {
                self.rates.pop_front();
            }
            self.rates.push_back(rate);
        }
        self.phase = match self.phase {
            Phase::Start { best, flat } => {
                let grows = rate >= 1.25 * best || epoch.app_limited;
                let flat = if grows { 0 } else { flat + 1 };
                let queue = epoch
                    .round_trip_min
                    .saturating_sub(self.round_trips.least());
                let queues = queue >= QUEUE_MIN.max(self.round_trips.least() / 4);
                match lossy || queues || flat >= 3 {
                    true => Phase::Cruise,
                    false => Phase::Start {
                        best: best.max(rate),
                        flat,
                    },
                }
            }
            Phase::Cruise if stretch_at(self.began, now) != self.round_trips.stretch => {
                self.round_trips.stretch = stretch_at(self.began, now);
                self.round_trips.before = self.round_trips.now;
                self.round_trips.now = Duration::MAX;
                Phase::Drain
            }
            Phase::Cruise | Phase::Drain => Phase::Cruise,
        };
        let rate = self.rate() as u64;
        self.published.0.rate.store(rate, Ordering::Relaxed);
        let rate = self.rate();
        let held = rate * self.round_trips.least().as_secs_f64();
        match self.phase {
            Phase::Start { .. } => {
                // More would only queue, or be lost, before it is heard of.
                let most = START_GAIN * (held + margin(rate, held));
                self.window = self.window.min((most as u64).max(WINDOW_FIRST));
                self.target = self.window as f64;
            }
            Phase::Cruise => {
                self.target = held + self.ease * margin(rate, held);
                self.window = (self.target * self.reach) as u64;
            }
            Phase::Drain => self.window = (held / 2.0) as u64,
        }
        self.window = self.window.max(WINDOW_PACKETS_MIN * self.packet_bytes);
    }

    /// Bytes a second that the link is known to carry.
    fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    fn lost(&mut self, now: Instant, bytes: u64, persistent: bool) {
        if persistent {
            // Nothing came through for long: whatever was known of the path is void.
            let published = self.published.clone();
            let mtu = u16::try_from(self.packet_bytes).unwrap_or(u16::MAX);
            *self = Self {
                published,
                ..Self::new(self.began, now, mtu)
            };
        } else if let Some(epoch) = &mut self.epoch {
            epoch.lost += bytes;
        }
    }
}

/// What a window has beyond `held`, which the link holds without a queue at `rate` bytes a second.
fn margin(rate: f64, held: f64) -> f64 {
    held / 4.0 + (MARGIN_SCALE * rate.sqrt()).min(MARGIN_BYTES_MAX)
}

/// In which stretch of time `now` lies.
fn stretch_at(began: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(began).as_secs() / STRETCH_S
}

impl Controller for Pace {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        self.acked(now, sent, bytes, app_limited);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        _app_limited: bool,
        _largest_acked: Option<u64>,
    ) {
        self.acks_ended(now, in_flight);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        _sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.lost(now, lost_bytes, is_persistent_congestion);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.packet_bytes = mtu.into();
        self.window = self.window.max(WINDOW_PACKETS_MIN * self.packet_bytes);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window;
        metrics.pacing_rate = Some((self.rate() * 8.0) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        WINDOW_FIRST
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
