//! Whether a peer delivers anything at all, over whichever connection and for whichever fetch.
//!
//! A stream says little about its sender: streams of one connection share its rate, and one of them may wait long
//! while others are served. What counts is whether the peer delivers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use libp2p::PeerId;
use tokio::time::sleep;

/// Fewer bytes than this from a peer in one stall window while something is wanted of it, and it counts as stalled:
/// 1.6 kB/s with the default window.
const WINDOW_BYTES_MIN: u64 = 16 * 1024;

/// What came from one peer since a fetch first wanted something of it.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    beats: AtomicU64,
    bytes: AtomicU64,
}

impl Pulse {
    /// Notes that the peer answered, or that `bytes` of a blob came from it.
    pub(super) fn beat(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that changes whenever something comes.
    pub(super) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
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

    #[tokio::test]
    async fn peer_of_which_nothing_comes_stalls() {
        Pulse::default().stalls(Duration::from_millis(1)).await;
    }
}
