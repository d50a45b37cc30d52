//! Whether a peer delivers anything at all, over whichever connection and for whichever fetch.
//!
//! A stream says little about its sender: streams of one connection share its rate, and one of them may wait long
//! while others are served. What counts is whether the peer delivers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use libp2p::PeerId;
use tokio::time::{Instant, sleep};

/// How often it is looked whether something came.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Fewer bytes than this from a peer in one stall window while something is wanted of it, and it counts as stalled:
/// 1.6 kB/s with the default window.
const WINDOW_BYTES_MIN: u64 = 16 * 1024;

/// The time constant of [`Meter::rate`].
const RATE_S: f64 = 1.0;

/// What came from one peer since a fetch first wanted something of it.
#[derive(Debug)]
pub(super) struct Pulse {
    beats: AtomicU64,
    bytes: AtomicU64,
    meter: Mutex<Meter>,
}

/// How fast a peer delivers while something is wanted of it.
#[derive(Debug)]
struct Meter {
    /// Lanes of all fetches to it now.
    lanes: usize,
    /// Bytes a second of all lanes, the older the less they count; stands still while there are none.
    rate: f64,
    /// Whether anything has come.
    tried: bool,
    at: Instant,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self {
            lanes: 0,
            rate: 0.0,
            tried: false,
            at: now,
        }
    }

    fn advance(&mut self, now: Instant) {
        if self.lanes > 0 {
            let passed = now.saturating_duration_since(self.at).as_secs_f64();
            self.rate *= (-passed / RATE_S).exp();
        }
        self.at = now;
    }

    fn add(&mut self, bytes: usize, now: Instant) {
        self.advance(now);
        self.rate += bytes as f64 / RATE_S;
        self.tried |= bytes > 0;
    }

    fn share(&mut self, now: Instant) -> f64 {
        self.advance(now);
        self.rate / self.lanes.max(1) as f64
    }

    fn promise(&mut self, now: Instant) -> f64 {
        self.advance(now);
        match self.lanes == 0 && !self.tried {
            true => f64::INFINITY,
            false => self.rate / (self.lanes + 1) as f64,
        }
    }

    fn set_lanes(&mut self, change: impl Fn(usize) -> usize, now: Instant) {
        self.advance(now);
        self.lanes = change(self.lanes);
    }
}

/// A lane to a peer, as long as it lives.
#[derive(Debug)]
pub(super) struct AtWork(Arc<Pulse>);

impl AtWork {
    pub(super) fn new(pulse: &Arc<Pulse>) -> Self {
        pulse.meter().set_lanes(|lanes| lanes + 1, Instant::now());
        Self(Arc::clone(pulse))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.meter().set_lanes(|lanes| lanes - 1, Instant::now());
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            beats: AtomicU64::default(),
            bytes: AtomicU64::default(),
            meter: Mutex::new(Meter::new(Instant::now())),
        }
    }
}

impl Pulse {
    /// Notes that the peer answered, or that `bytes` of a blob came from it.
    pub(super) fn beat(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.meter().add(bytes, Instant::now());
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that changes whenever something comes.
    fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// What a lane to the peer has of it now, in bytes a second, if all have the same.
    pub(super) fn share(&self) -> f64 {
        self.meter().share(Instant::now())
    }

    /// What one more lane may expect of the peer, in bytes a second. An idle one of which nothing is known is given the
    /// benefit of the doubt; one that is at work for the first time is not, because what limits all lanes, such as the
    /// link of this machine, limits it too.
    pub(super) fn promise(&self) -> f64 {
        self.meter().promise(Instant::now())
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns at the end of the first stretch of length `window` in which too little came.
    pub(super) async fn stalls(&self, window: Duration) {
        loop {
            let before = self.bytes.load(Ordering::Relaxed);
            sleep(window).await;
            if self.has_stalled_since(before) {
                return;
            }
        }
    }

    /// Whether too little came since it stood at `before`, a window ago.
    fn has_stalled_since(&self, before: u64) -> bool {
        self.bytes.load(Ordering::Relaxed).wrapping_sub(before) < WINDOW_BYTES_MIN
    }
}

/// For how long nothing has come from a peer of which something is wanted. Counted in looks, one every [`LOOK_EVERY`], not
/// by the clock: when this machine itself was held up, one look went by.
#[derive(Debug)]
pub(super) struct Quiet {
    pulse: Arc<Pulse>,
    beats: u64,
    lasted: Duration,
}

impl Quiet {
    pub(super) fn new(pulse: Arc<Pulse>) -> Self {
        Self {
            beats: pulse.beats(),
            pulse,
            lasted: Duration::ZERO,
        }
    }

    /// Takes a look; how long it has lasted.
    pub(super) fn look(&mut self) -> Duration {
        let beats = self.pulse.beats();
        self.lasted = match beats == self.beats {
            true => self.lasted + LOOK_EVERY,
            false => Duration::ZERO,
        };
        self.beats = beats;
        self.lasted
    }

    /// As it was at the last look.
    pub(super) fn lasted(&self) -> Duration {
        self.lasted
    }

    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }
}

/// The pulses of all peers that a fetch has among its sources; others are forgotten.
#[derive(Debug, Default)]
pub(super) struct Pulses(Mutex<HashMap<PeerId, Weak<Pulse>>>);

impl Pulses {
    /// The pulse of `peer`, shared by all fetches.
    pub(super) fn of(&self, peer: PeerId) -> Arc<Pulse> {
        let mut pulses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pulse) = pulses.get(&peer).and_then(Weak::upgrade) {
            return pulse;
        }
        pulses.retain(|_, pulse| pulse.strong_count() > 0);
        let pulse = Arc::new(Pulse::default());
        pulses.insert(peer, Arc::downgrade(&pulse));
        pulse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetches_share_the_pulse_of_a_peer_and_peers_without_fetches_are_forgotten() {
        let pulses = Pulses::default();
        let (a, b) = (PeerId::random(), PeerId::random());
        let first = pulses.of(a);
        pulses.of(a).beat(7);
        assert_eq!(first.beats(), 1);
        assert_eq!(pulses.of(b).beats(), 0);
        drop(first);
        pulses.of(b);
        assert_eq!(pulses.0.lock().unwrap().len(), 1);
        assert_eq!(pulses.of(a).beats(), 0);
    }

    #[test]
    fn window_with_too_few_bytes_is_a_stall_however_many_answers_came() {
        let pulse = Pulse::default();
        for _ in 0..WINDOW_BYTES_MIN {
            pulse.beat(0);
        }
        pulse.beat(WINDOW_BYTES_MIN as usize - 1);
        assert!(pulse.has_stalled_since(0));
        pulse.beat(1);
        assert!(!pulse.has_stalled_since(0));
        assert!(pulse.has_stalled_since(1));
    }

    #[test]
    fn rate_is_that_of_the_last_second_at_work() {
        let mut now = Instant::now();
        let mut meter = Meter::new(now);
        assert_eq!(meter.promise(now), f64::INFINITY);
        meter.set_lanes(|_| 2, now);
        assert_eq!(meter.promise(now), 0.0);
        for _ in 0..100 {
            now += Duration::from_millis(100);
            meter.add(100_000, now);
        }
        let rate = 2.0 * meter.share(now);
        assert!((1e6..1.1e6).contains(&rate), "{rate}");
        assert_eq!(meter.promise(now), rate / 3.0);
        meter.set_lanes(|_| 0, now);
        now += Duration::from_secs(60);
        assert_eq!(meter.promise(now), rate);
        meter.set_lanes(|_| 1, now);
        now += Duration::from_secs(60);
        assert!(meter.share(now) < 1.0);
    }

    #[test]
    fn quiet_lasts_until_something_comes() {
        let pulse = Arc::new(Pulse::default());
        let mut quiet = Quiet::new(Arc::clone(&pulse));
        assert_eq!(quiet.look(), LOOK_EVERY);
        assert_eq!(quiet.look(), 2 * LOOK_EVERY);
        pulse.beat(0);
        assert_eq!(quiet.look(), Duration::ZERO);
        assert_eq!(quiet.look(), LOOK_EVERY);
    }

    #[tokio::test]
    async fn peer_of_which_nothing_comes_stalls() {
        Pulse::default().stalls(Duration::from_millis(1)).await;
    }
}
