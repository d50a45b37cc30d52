//! Which connections lead to a peer directly and which through a relay: the latter go once the former stand.
//!
//! Pure; bounded by the connections.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

/// How long a relayed connection is kept beside a direct one: what is on its way over it arrives. A guess.
const LINGER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Paths {
    peers: BTreeMap<PeerId, Path>,
}

#[derive(Debug, Default)]
struct Path {
    direct: Vec<ConnectionId>,
    relayed: Vec<ConnectionId>,
    direct_since: Option<Instant>,
}

impl Paths {
    /// Notes a connection; whether it is the first direct one to a peer that was reached through relays only.
    pub(super) fn opened(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        is_relayed: bool,
        now: Instant,
    ) -> bool {
        let path = self.peers.entry(peer).or_default();
        if is_relayed {
            path.relayed.push(connection);
            return false;
        }
        path.direct.push(connection);
        let is_first = path.direct.len() == 1;
        if is_first {
            path.direct_since = Some(now);
        }
        is_first && !path.relayed.is_empty()
    }

    pub(super) fn closed(&mut self, peer: &PeerId, connection: ConnectionId) {
        let Some(path) = self.peers.get_mut(peer) else {
            return;
        };
        path.direct.retain(|open| *open != connection);
        path.relayed.retain(|open| *open != connection);
        if path.direct.is_empty() {
            path.direct_since = None;
            if path.relayed.is_empty() {
                self.peers.remove(peer);
            }
        }
    }

    /// Relayed connections that are not needed any more.
    pub(super) fn superseded(&self, now: Instant) -> Vec<ConnectionId> {
        let settled = |path: &&Path| {
            path.direct_since
                .is_some_and(|since| now.saturating_duration_since(since) >= LINGER)
        };
        let paths = self.peers.values().filter(settled);
        paths
            .flat_map(|path| path.relayed.iter().copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    #[test]
    fn a_relayed_connection_goes_some_time_after_a_direct_one_has_come() {
        let (mut paths, peer, start) = (Paths::default(), PeerId::random(), Instant::now());
        assert!(!paths.opened(peer, id(1), true, start));
        assert!(paths.opened(peer, id(2), false, start));
        assert!(!paths.opened(peer, id(3), false, start + LINGER));
        assert_eq!(paths.superseded(start), []);
        assert_eq!(paths.superseded(start + LINGER), [id(1)]);
        paths.closed(&peer, id(1));
        assert_eq!(paths.superseded(start + LINGER), []);
    }

    #[test]
    fn the_only_connection_stays_and_a_peer_without_any_is_forgotten() {
        let (mut paths, peer, start) = (Paths::default(), PeerId::random(), Instant::now());
        paths.opened(peer, id(1), true, start);
        paths.opened(peer, id(2), false, start);
        paths.closed(&peer, id(2));
        assert_eq!(paths.superseded(start + LINGER), []);
        paths.closed(&peer, id(1));
        assert!(paths.peers.is_empty());
        assert!(!paths.opened(peer, id(3), false, start));
    }
}
