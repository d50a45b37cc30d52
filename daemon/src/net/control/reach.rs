//! Whether others can reach this peer, and the relays that stand in where they cannot.
//!
//! Pure: what libp2p finds out goes in, relays to ask come out. A peer counts as reachable until somebody who was asked
//! to connect to it from a fresh port has failed (AutoNAT, version 2); that somebody has succeeded settles it. Once some
//! peer sees this one come from an address that is not this machine's, only tries at such addresses count: that a
//! neighbour behind the same box gets through says nothing about the others. A peer behind NAT reserves a place at up to
//! [`RELAYS_WANTED`] peers that it is connected to, each peer at others so that they share the load, and asks one that
//! refused or went away again after [`REFUSED_FOR`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use libp2p::core::transport::ListenerId;
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

/// Relays of a peer behind NAT: one, and one for when it goes away.
pub(super) const RELAYS_WANTED: usize = 2;
/// How long a relay that refused or ended a reservation is not asked again. A guess.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Whether others can reach this peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    /// Nobody has been able to tell; taken for reachable.
    #[default]
    Unknown,
    /// Somebody connected to it out of the blue.
    Public,
    /// Nobody can, but through these relays.
    BehindNat {
        /// In no particular order; none while none is found.
        relays: Vec<PeerId>,
    },
}

impl Reachability {
    /// Whether others have to wait for this peer to connect to them.
    #[must_use]
    pub fn is_behind_nat(&self) -> bool {
        matches!(self, Reachability::BehindNat { .. })
    }
}

impl fmt::Display for Reachability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reachability::Unknown => {
                f.write_str("nobody has tried yet whether others can reach it")
            }
            Reachability::Public => f.write_str("others can reach it"),
            Reachability::BehindNat { relays } if relays.is_empty() => {
                f.write_str("behind NAT: no relay found yet")
            }
            Reachability::BehindNat { relays } => {
                let relays: Vec<String> = relays.iter().map(PeerId::to_string).collect();
                write!(f, "behind NAT: reached through relay {}", relays.join(", "))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Unknown,
    Public,
    BehindNat,
}

/// Whose an address is at which others see this peer, or try to connect to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// One of this machine's own.
    Machine,
    /// One that something on the way put in its place.
    Box,
}

/// What became of the tries at the addresses of one origin.
#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    reached: bool,
    failed: bool,
}

/// See the module's doc. Bounded by the connected peers.
#[derive(Debug)]
pub(super) struct Reach {
    me: PeerId,
    machine: Tries,
    /// `None` while all who are connected see the machine's own addresses.
    translated: Option<Tries>,
    /// Connected peers that relay, with the address at which they were reached.
    candidates: BTreeMap<PeerId, Candidate>,
    /// Reservations asked for or granted.
    relays: BTreeMap<PeerId, Relay>,
}

#[derive(Debug)]
struct Candidate {
    addr: Multiaddr,
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Relay {
    listener: ListenerId,
    granted: bool,
}

impl Reach {
    pub(super) fn new(me: PeerId) -> Self {
        Self {
            me,
            machine: Tries::default(),
            translated: None,
            candidates: BTreeMap::new(),
            relays: BTreeMap::new(),
        }
    }

    fn verdict(&self) -> Verdict {
        match self.translated.unwrap_or(self.machine) {
            Tries { reached: true, .. } => Verdict::Public,
            Tries { failed: true, .. } => Verdict::BehindNat,
            Tries { .. } => Verdict::Unknown,
        }
    }

    pub(super) fn reachability(&self) -> Reachability {
        match self.verdict() {
            Verdict::Unknown => Reachability::Unknown,
            Verdict::Public => Reachability::Public,
            Verdict::BehindNat => Reachability::BehindNat {
                relays: self
                    .relays
                    .iter()
                    .filter(|(_, relay)| relay.granted)
                    .map(|(peer, _)| *peer)
                    .collect(),
            },
        }
    }

    /// A connected peer sees this one at an address of `origin`.
    pub(super) fn seen(&mut self, origin: Origin) {
        if origin == Origin::Box {
            self.translated.get_or_insert_default();
        }
    }

    /// Somebody tried to connect to an address of `origin`. The reservations that are no longer needed.
    pub(super) fn probed(&mut self, origin: Origin, reached: bool) -> Vec<ListenerId> {
        let tries = match origin {
            Origin::Machine => &mut self.machine,
            Origin::Box => self.translated.get_or_insert_default(),
        };
        tries.reached |= reached;
        tries.failed |= !reached;
        match self.verdict() {
            Verdict::Public => {
                let relays = std::mem::take(&mut self.relays);
                relays.into_values().map(|relay| relay.listener).collect()
            }
            Verdict::Unknown | Verdict::BehindNat => Vec::new(),
        }
    }

    /// `peer`, which was reached at `addr`, relays.
    pub(super) fn found(&mut self, peer: PeerId, addr: Multiaddr) {
        self.candidates.entry(peer).or_insert(Candidate {
            addr,
            not_before: None,
        });
    }

    /// `peer` is not connected any more, or does not relay.
    pub(super) fn lost(&mut self, peer: &PeerId) {
        self.candidates.remove(peer);
    }

    /// The relays to ask now.
    pub(super) fn wanted(&self, now: Instant) -> Vec<(PeerId, Multiaddr)> {
        if self.verdict() != Verdict::BehindNat {
            return Vec::new();
        }
        let may_be_asked = |(peer, candidate): &(&PeerId, &Candidate)| {
            !self.relays.contains_key(*peer) && candidate.not_before.is_none_or(|due| due <= now)
        };
        let mut candidates: Vec<_> = self.candidates.iter().filter(may_be_asked).collect();
        candidates.sort_by_key(|(peer, _)| self.rank(peer));
        let missing = RELAYS_WANTED.saturating_sub(self.relays.len());
        candidates
            .into_iter()
            .take(missing)
            .map(|(peer, candidate)| (*peer, candidate.addr.clone()))
            .collect()
    }

    /// Another order for every peer.
    fn rank(&self, peer: &PeerId) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.me.to_bytes());
        hasher.update(&peer.to_bytes());
        *hasher.finalize().as_bytes()
    }

    /// `relay` has been asked for a reservation, which is called `listener`.
    pub(super) fn asked(&mut self, relay: PeerId, listener: ListenerId) {
        let granted = false;
        self.relays.insert(relay, Relay { listener, granted });
    }

    pub(super) fn granted(&mut self, relay: &PeerId) {
        if let Some(relay) = self.relays.get_mut(relay) {
            relay.granted = true;
        }
    }

    /// `relay` cannot be asked.
    pub(super) fn failed(&mut self, relay: &PeerId, now: Instant) {
        if let Some(candidate) = self.candidates.get_mut(relay) {
            candidate.not_before = Some(now + REFUSED_FOR);
        }
    }

    /// The reservation was refused or has ended. Whether it was one.
    pub(super) fn closed(&mut self, listener: ListenerId, now: Instant) -> bool {
        let relay = self
            .relays
            .iter()
            .find(|(_, relay)| relay.listener == listener);
        let Some(peer) = relay.map(|(peer, _)| *peer) else {
            return false;
        };
        self.relays.remove(&peer);
        self.failed(&peer, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/192.0.2.1/udp/{port}/quic-v1")
            .parse()
            .unwrap()
    }

    fn behind_nat(candidates: usize) -> Reach {
        let mut reach = Reach::new(PeerId::random());
        for _ in 0..candidates {
            reach.found(PeerId::random(), addr(1));
        }
        assert_eq!(reach.probed(Origin::Box, false), []);
        reach
    }

    #[test]
    fn only_a_peer_that_nobody_reaches_asks_for_relays() {
        let now = Instant::now();
        let mut reach = Reach::new(PeerId::random());
        reach.found(PeerId::random(), addr(1));
        assert_eq!(reach.reachability(), Reachability::Unknown);
        assert_eq!(reach.wanted(now), []);
        reach.probed(Origin::Machine, true);
        assert_eq!(reach.reachability(), Reachability::Public);
        reach.probed(Origin::Machine, false);
        assert_eq!(reach.reachability(), Reachability::Public);
        assert_eq!(reach.wanted(now), []);
        assert_eq!(behind_nat(1).wanted(now).len(), 1);
        assert_eq!(behind_nat(0).wanted(now).len(), 0);
    }

    #[test]
    fn two_of_many_relays_are_taken_and_named_once_granted() {
        let now = Instant::now();
        let mut reach = behind_nat(9);
        let wanted = reach.wanted(now);
        assert_eq!(wanted.len(), RELAYS_WANTED);
        for (peer, _) in &wanted {
            reach.asked(*peer, ListenerId::next());
        }
        assert_eq!(reach.wanted(now), []);
        let nobody = Reachability::BehindNat { relays: Vec::new() };
        assert_eq!(reach.reachability(), nobody);
        reach.granted(&wanted[0].0);
        let relays = vec![wanted[0].0];
        assert_eq!(reach.reachability(), Reachability::BehindNat { relays });
    }

    #[test]
    fn a_relay_that_ends_is_replaced_and_asked_again_later() {
        let now = Instant::now();
        let mut reach = behind_nat(3);
        let mut listeners = Vec::new();
        for (peer, _) in reach.wanted(now) {
            listeners.push(ListenerId::next());
            reach.asked(peer, listeners[listeners.len() - 1]);
        }
        for listener in &listeners {
            assert!(reach.closed(*listener, now));
            assert!(!reach.closed(*listener, now));
        }
        let third = reach.wanted(now);
        assert_eq!(third.len(), 1);
        reach.lost(&third[0].0);
        assert_eq!(reach.wanted(now), []);
        assert_eq!(reach.wanted(now + REFUSED_FOR).len(), 2);
    }

    #[test]
    fn relays_are_let_go_when_somebody_gets_through_after_all() {
        let mut reach = behind_nat(1);
        let (relay, _) = reach.wanted(Instant::now()).remove(0);
        let listener = ListenerId::next();
        reach.asked(relay, listener);
        assert_eq!(reach.probed(Origin::Box, true), [listener]);
        assert_eq!(reach.reachability(), Reachability::Public);
    }

    #[test]
    fn what_a_neighbour_behind_the_same_box_reaches_says_nothing() {
        let mut reach = Reach::new(PeerId::random());
        reach.probed(Origin::Machine, true);
        assert_eq!(reach.reachability(), Reachability::Public);
        reach.seen(Origin::Machine);
        assert_eq!(reach.reachability(), Reachability::Public);
        reach.seen(Origin::Box);
        assert_eq!(reach.reachability(), Reachability::Unknown);
        reach.probed(Origin::Box, false);
        reach.probed(Origin::Machine, true);
        assert!(reach.reachability().is_behind_nat());
        // The box forwards the port.
        reach.probed(Origin::Box, true);
        assert_eq!(reach.reachability(), Reachability::Public);
        reach.probed(Origin::Machine, false);
        assert_eq!(reach.reachability(), Reachability::Public);
    }
}
