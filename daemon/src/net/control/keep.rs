//! Peers that are to stay connected: who is dialled again, when, and at which addresses.
//!
//! Pure: time comes in as an argument, dials go out as values. A lost peer is dialled after [`BACKOFF_MIN`], then
//! after twice that, up to [`BACKOFF_MAX`]. The back-off starts over only after a connection that lasted, so that a
//! peer that accepts and hangs up at once is not dialled five times a second. Every [`FAILURES_PER_LOOKUP`]
//! failures the caller is asked to look for fresh addresses.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

/// Delay of the first new attempt: above the time a peer needs to restart its socket, below what a person notices.
/// A guess.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest delay between attempts: a peer that comes back is found within one such delay. A guess.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The third failure comes after about 1.4 s: a restart is over by then, so the address may be stale.
const FAILURES_PER_LOOKUP: u32 = 3;
/// Peers kept at most: the largest roster that meshes fully, with room. A further one is refused.
pub(super) const KEPT_PEERS_MAX: usize = 256;
/// Addresses remembered per peer; the configured ones stay, of the learned ones the latest.
pub(super) const ADDRESSES_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct KeepList {
    peers: BTreeMap<PeerId, Kept>,
}

#[derive(Debug)]
struct Kept {
    configured: Vec<Multiaddr>,
    learned: Vec<Multiaddr>,
    backoff: Duration,
    failures: u32,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Connected { since: Instant },
    Waiting { due: Instant },
    Dialling,
}

/// One attempt for the caller to make; it reports back with [`KeepList::connected`] or [`KeepList::dial_failed`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Redial {
    pub(super) peer: PeerId,
    pub(super) addrs: Vec<Multiaddr>,
    pub(super) lookup: bool,
}

/// [`KEPT_PEERS_MAX`] peers are kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeepListFull;

impl KeepList {
    /// Keeps `peer`; a peer that is kept already gets the new addresses. Due at once when not `connected`.
    pub(super) fn insert(
        &mut self,
        peer: PeerId,
        mut addrs: Vec<Multiaddr>,
        connected: bool,
        now: Instant,
    ) -> Result<(), KeepListFull> {
        addrs.truncate(ADDRESSES_MAX);
        if let Some(kept) = self.peers.get_mut(&peer) {
            kept.configured = addrs;
            return Ok(());
        }
        if self.peers.len() >= KEPT_PEERS_MAX {
            return Err(KeepListFull);
        }
        let state = if connected {
            State::Connected { since: now }
        } else {
            State::Waiting { due: now }
        };
        let kept = Kept {
            configured: addrs,
            learned: Vec::new(),
            backoff: BACKOFF_MIN,
            failures: 0,
            state,
        };
        self.peers.insert(peer, kept);
        Ok(())
    }

    pub(super) fn remove(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    /// Remembers addresses that `peer` or the network told, the latest ones first.
    pub(super) fn learned(&mut self, peer: &PeerId, addrs: &[Multiaddr]) {
        let Some(kept) = self.peers.get_mut(peer) else {
            return;
        };
        let mut learned: Vec<Multiaddr> = addrs.iter().take(ADDRESSES_MAX).cloned().collect();
        learned.extend(
            kept.learned
                .drain(..)
                .filter(|known| !addrs.contains(known)),
        );
        learned.truncate(ADDRESSES_MAX);
        kept.learned = learned;
    }

    pub(super) fn connected(&mut self, peer: &PeerId, now: Instant) {
        if let Some(kept) = self.peers.get_mut(peer) {
            kept.state = State::Connected { since: now };
        }
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId, now: Instant) {
        if let Some(kept) = self.peers.get_mut(peer) {
            if let State::Connected { since } = kept.state
                && now.saturating_duration_since(since) >= BACKOFF_MAX
            {
                kept.backoff = BACKOFF_MIN;
                kept.failures = 0;
            }
            kept.wait(now);
        }
    }

    pub(super) fn dial_failed(&mut self, peer: &PeerId, now: Instant) {
        if let Some(kept) = self.peers.get_mut(peer)
            && kept.state == State::Dialling
        {
            kept.failures = kept.failures.saturating_add(1);
            kept.wait(now);
        }
    }

    /// When [`KeepList::take_due`] has something to do.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.peers
            .values()
            .filter_map(|kept| match kept.state {
                State::Waiting { due } => Some(due),
                State::Connected { .. } | State::Dialling => None,
            })
            .min()
    }

    /// The attempts to make now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Redial> {
        let mut redials = Vec::new();
        for (peer, kept) in &mut self.peers {
            match kept.state {
                State::Waiting { due } if due <= now => {}
                State::Waiting { .. } | State::Connected { .. } | State::Dialling => continue,
            }
            kept.state = State::Dialling;
            let mut addrs = kept.configured.clone();
            addrs.extend(
                kept.learned
                    .iter()
                    .filter(|addr| !kept.configured.contains(addr))
                    .cloned(),
            );
            redials.push(Redial {
                peer: *peer,
                addrs,
                lookup: kept.failures > 0 && kept.failures.is_multiple_of(FAILURES_PER_LOOKUP),
            });
        }
        redials
    }
}

impl Kept {
    fn wait(&mut self, now: Instant) {
        self.state = State::Waiting {
            due: now + self.backoff,
        };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/udp/{port}/quic-v1")
            .parse()
            .unwrap()
    }

    #[test]
    fn lost_peer_is_dialled_with_doubling_delay_and_a_lookup_every_third_failure() {
        let (mut list, peer, start) = (KeepList::default(), PeerId::random(), Instant::now());
        list.insert(peer, vec![addr(1)], false, start).unwrap();
        let mut now = start;
        let mut delays_ms = Vec::new();
        let mut lookups = Vec::new();
        for _ in 0..8 {
            let due = list.next_due().unwrap();
            delays_ms.push((due - now).as_millis());
            now = due;
            let redials = list.take_due(now);
            assert_eq!(redials.len(), 1);
            lookups.push(redials[0].lookup);
            assert_eq!(list.next_due(), None);
            list.dial_failed(&peer, now);
        }
        assert_eq!(delays_ms, [0, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(
            lookups,
            [false, false, false, true, false, false, true, false]
        );
    }

    #[test]
    fn backoff_starts_over_only_after_a_connection_that_lasted() {
        let (mut list, peer, start) = (KeepList::default(), PeerId::random(), Instant::now());
        list.insert(peer, vec![addr(1)], true, start).unwrap();
        list.disconnected(&peer, start);
        assert_eq!(list.next_due(), Some(start + BACKOFF_MIN));
        list.connected(&peer, start);
        list.disconnected(&peer, start);
        assert_eq!(list.next_due(), Some(start + 2 * BACKOFF_MIN));
        list.connected(&peer, start);
        let later = start + BACKOFF_MAX;
        list.disconnected(&peer, later);
        assert_eq!(list.next_due(), Some(later + BACKOFF_MIN));
    }

    #[test]
    fn learned_addresses_follow_the_configured_ones_and_stay_bounded() {
        let (mut list, peer, start) = (KeepList::default(), PeerId::random(), Instant::now());
        list.insert(peer, vec![addr(1)], false, start).unwrap();
        for port in 0..1000 {
            list.learned(&peer, &[addr(port)]);
        }
        let redials = list.take_due(start);
        assert_eq!(redials[0].addrs[..2], [addr(1), addr(999)]);
        assert_eq!(redials[0].addrs.len(), 1 + ADDRESSES_MAX);
    }

    #[test]
    fn full_list_refuses_a_further_peer() {
        let (mut list, start) = (KeepList::default(), Instant::now());
        for _ in 0..KEPT_PEERS_MAX {
            list.insert(PeerId::random(), vec![], true, start).unwrap();
        }
        assert_eq!(
            list.insert(PeerId::random(), vec![], true, start),
            Err(KeepListFull)
        );
    }

    #[test]
    fn failure_of_somebody_elses_dial_changes_nothing_for_a_connected_peer() {
        let (mut list, peer, start) = (KeepList::default(), PeerId::random(), Instant::now());
        list.insert(peer, vec![], true, start).unwrap();
        list.dial_failed(&peer, start);
        assert_eq!(list.next_due(), None);
    }
}
