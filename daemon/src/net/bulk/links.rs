//! Connections to peers, shared by all fetches: `connections_per_pipe` lines to each peer, of which one is being made
//! at a time, and the number is bounded. Small blobs take the first line only.
//!
//! A fetch uses a connection that this side has made, so that bytes of blobs go one way over it. quinn holds its
//! acknowledgements back while it has more to send than the congestion window allows: where both ends send, each waits for
//! the other, and with small windows until a time-out. Seen between eight peers on lines of 10 Mbit/s: windows that came
//! round every 260 ms where a round trip takes 60. A connection that the peer made serves until there is one of our own,
//! and for good where there can be none: the peer may be behind NAT. Such a peer holds one for that ([`Way::Held`]).
//!
//! **When full**: the least recently used connection that no fetch is using makes room; when all are in use, the
//! fetch moves on to its next source.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use quinn::{Connection, ConnectionError, VarInt};
use tokio::time::{Instant, timeout};

use super::{Blame, Inner, serve, tls};

/// For this long a failed attempt speaks for all fetches that waited for it, so that many fetches from a dead peer
/// fail together and not one after the other.
const FAILURE_SHARED: Duration = Duration::from_secs(1);
/// While another connection serves, a failed attempt at one of ours is not repeated for this long.
const DIALLED_AGAIN: Duration = Duration::from_secs(60);
/// For this long a peer that froze is asked last.
const FROZEN_FOR: Duration = Duration::from_secs(5);
/// Peers noted as frozen.
const FROZEN_MAX: usize = 1024;
const CLOSE_UNUSED: VarInt = VarInt::from_u32(0);
/// TLS alerts come as QUIC errors 0x100 + alert (RFC 9001, section 4.8).
const CRYPTO_ERRORS: std::ops::Range<u64> = 0x100..0x200;
/// The other side speaks no protocol of ours (RFC 7301).
const ALERT_NO_ALPN: u64 = 0x100 + 120;

#[derive(Debug, Default)]
pub(super) struct Links {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    links: HashMap<(PeerId, Way), Link>,
    uses: u64,
    /// When a fetch last left a peer because nothing came.
    frozen: HashMap<PeerId, Instant>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Way {
    /// Made by the peer.
    Theirs,
    /// Made for the peer, which cannot make one.
    Held,
    /// Made for fetches: a line of so many.
    Ours(usize),
}

#[derive(Debug)]
struct Link {
    slot: Arc<Slot>,
    last_use: u64,
}

/// The connection of one peer. While a clone of its `Arc` is out, the link is in use.
type Slot = tokio::sync::Mutex<Line>;

#[derive(Debug, Default)]
enum Line {
    #[default]
    Idle,
    Up(Connection),
    Failed {
        at: Instant,
        addr: SocketAddr,
        blame: Blame,
    },
}

/// A connection in use; holding it keeps the connection from being closed to make room.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) connection: Connection,
    /// Whether it was made before this lease: then its other end may be gone without our knowing.
    pub(super) reused: bool,
    _in_use: Arc<Slot>,
}

impl Links {
    /// A connection for a fetch from `peer`. `line`, taken modulo the number of lines, spreads large transfers over several
    /// connections; where that one is not there, another serves while it is made. Where there is none, this waits for one
    /// to be made at `addr`, or for an attempt that is under way.
    pub(super) async fn lease(
        &self,
        inner: &Arc<Inner>,
        peer: PeerId,
        addr: SocketAddr,
        line: usize,
    ) -> Result<Lease, Blame> {
        let line = line % inner.limits.connections_per_pipe.max(1);
        if let Some(ours) = self.lease_up(inner, peer, Way::Ours(line)).await {
            return Ok(ours);
        }
        for other in [Way::Ours(0), Way::Theirs] {
            if let Some(other) = self.lease_up(inner, peer, other).await {
                self.dial_aside(inner, peer, addr, Way::Ours(line));
                return Ok(other);
            }
        }
        let first = self.lease_or_dial(inner, peer, addr, Way::Ours(0)).await?;
        if line == 0 {
            return Ok(first);
        }
        let further = self.lease_or_dial(inner, peer, addr, Way::Ours(line)).await;
        Ok(further.unwrap_or(first))
    }

    /// The same after `dead` has turned out to be: made anew. Where the peer said by a stateless reset that it knows nothing
    /// of that one, it has restarted, and the connection that it made is dead as well. That is forgotten here, since no reset
    /// tells of it: the first connection ID of a client has no token for one (RFC 9000, section 10.3). One that the peer
    /// makes from now on serves where ours fails.
    pub(super) async fn renew(
        &self,
        inner: &Arc<Inner>,
        peer: PeerId,
        addr: SocketAddr,
        line: usize,
        dead: &Connection,
    ) -> Result<Lease, Blame> {
        if matches!(dead.close_reason(), Some(ConnectionError::Reset)) {
            self.lock().links.remove(&(peer, Way::Theirs));
        }
        let line = line % inner.limits.connections_per_pipe.max(1);
        match self.lease_or_dial(inner, peer, addr, Way::Ours(line)).await {
            Ok(ours) => Ok(ours),
            Err(blame) => {
                let theirs = self.lease_up(inner, peer, Way::Theirs).await;
                theirs.ok_or(blame)
            }
        }
    }

    /// Makes a connection to `peer` for it to use, unless there is one.
    pub(super) async fn hold(
        &self,
        inner: &Arc<Inner>,
        peer: PeerId,
        addr: SocketAddr,
    ) -> Result<(), Blame> {
        let held = self.lease_or_dial(inner, peer, addr, Way::Held).await;
        held.map(drop)
    }

    /// A connection that is there. One of ours that is being made, or looked at by somebody else, is not waited for; the
    /// peer's own is never held for longer than a look.
    async fn lease_up(&self, inner: &Inner, peer: PeerId, way: Way) -> Option<Lease> {
        let slot = self.lock().used(&(peer, way))?;
        let line = match way {
            Way::Theirs => slot.lock().await,
            Way::Held | Way::Ours(_) => slot.try_lock().ok()?,
        };
        let connection = match &*line {
            Line::Up(connection) if connection.close_reason().is_none() => connection.clone(),
            Line::Up(_) | Line::Failed { .. } | Line::Idle => return None,
        };
        drop(line);
        if way == Way::Theirs {
            widen(inner, &connection);
        }
        Some(Lease {
            connection,
            reused: true,
            _in_use: slot,
        })
    }

    /// Makes a connection that nobody waits for, unless one is being made or that has failed not long ago.
    fn dial_aside(&self, inner: &Arc<Inner>, peer: PeerId, addr: SocketAddr, way: Way) {
        let Some(slot) = self.slot((peer, way), links_max(inner)) else {
            return;
        };
        let due = slot.try_lock().is_ok_and(|line| match &*line {
            Line::Failed {
                at, addr: failed, ..
            } => *failed != addr || at.elapsed() >= DIALLED_AGAIN,
            Line::Up(_) | Line::Idle => true,
        });
        if due {
            let inner = Arc::clone(inner);
            tokio::spawn(async move {
                let made = inner.links.lease_or_dial(&inner, peer, addr, way).await;
                if let Err(blame) = made {
                    tracing::debug!(%peer, %blame, "another connection has to serve");
                }
            });
        }
    }

    async fn lease_or_dial(
        &self,
        inner: &Arc<Inner>,
        peer: PeerId,
        addr: SocketAddr,
        way: Way,
    ) -> Result<Lease, Blame> {
        let slot = self
            .slot((peer, way), links_max(inner))
            .ok_or(Blame::NoRoom)?;
        let mut line = slot.lock().await;
        match &*line {
            Line::Up(connection) if connection.close_reason().is_none() => {
                let connection = connection.clone();
                drop(line);
                return Ok(Lease {
                    connection,
                    reused: true,
                    _in_use: slot,
                });
            }
            Line::Failed {
                at,
                addr: failed,
                blame,
            } if *failed == addr && at.elapsed() < FAILURE_SHARED => return Err(blame.clone()),
            Line::Up(_) | Line::Failed { .. } | Line::Idle => {}
        }
        match connect(inner, peer, addr).await {
            Ok(connection) => {
                *line = Line::Up(connection.clone());
                drop(line);
                let (inner, served) = (Arc::clone(inner), connection.clone());
                tokio::spawn(async move {
                    serve::serve(&inner, &served, peer).await;
                    inner.links.ended(peer, way, &served);
                });
                Ok(Lease {
                    connection,
                    reused: false,
                    _in_use: slot,
                })
            }
            Err(blame) => {
                *line = Line::Failed {
                    at: Instant::now(),
                    addr,
                    blame: blame.clone(),
                };
                Err(blame)
            }
        }
    }

    /// Lets fetches use a connection that `peer` made, unless there is a live one.
    pub(super) fn adopt(&self, inner: &Inner, peer: PeerId, connection: &Connection) {
        let Some(slot) = self.slot((peer, Way::Theirs), links_max(inner)) else {
            return;
        };
        if let Ok(mut line) = slot.try_lock() {
            match &*line {
                Line::Up(known) if known.close_reason().is_none() => {}
                Line::Up(_) | Line::Failed { .. } | Line::Idle => {
                    *line = Line::Up(connection.clone());
                }
            }
        }
    }

    /// Drops the link whose `connection` has ended, so that links do not outnumber connections for long.
    pub(super) fn ended(&self, peer: PeerId, way: Way, connection: &Connection) {
        let mut state = self.lock();
        let ended = state.links.get(&(peer, way)).is_some_and(|link| {
            Arc::strong_count(&link.slot) == 1
                && link.slot.try_lock().is_ok_and(|line| {
                    matches!(&*line, Line::Up(up) if up.stable_id() == connection.stable_id())
                })
        });
        if ended {
            state.links.remove(&(peer, way));
        }
    }

    /// Notes that nothing came from `peer` for too long. When too many are noted, it is not.
    pub(super) fn freezes(&self, peer: PeerId) {
        let mut state = self.lock();
        state.frozen.retain(|_, at| at.elapsed() < FROZEN_FOR);
        if state.frozen.len() < FROZEN_MAX {
            state.frozen.insert(peer, Instant::now());
        }
    }

    /// Notes that `peer` sends again.
    pub(super) fn moves(&self, peer: &PeerId) {
        self.lock().frozen.remove(peer);
    }

    /// Whether `peer` was noted as frozen in the last five seconds and has sent nothing since.
    pub(super) fn is_frozen(&self, peer: &PeerId) -> bool {
        let state = self.lock();
        let noted = state.frozen.get(peer);
        noted.is_some_and(|at| at.elapsed() < FROZEN_FOR)
    }

    fn slot(&self, key: (PeerId, Way), links_max: usize) -> Option<Arc<Slot>> {
        let mut state = self.lock();
        if let Some(slot) = state.used(&key) {
            return Some(slot);
        }
        if state.links.len() >= links_max {
            state.evict()?;
        }
        let slot = Arc::new(Slot::default());
        let link = Link {
            slot: Arc::clone(&slot),
            last_use: state.uses,
        };
        state.links.insert(key, link);
        Some(slot)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The slot of a link that there is; it has been used last from now on.
    fn used(&mut self, key: &(PeerId, Way)) -> Option<Arc<Slot>> {
        self.uses += 1;
        let link = self.links.get_mut(key)?;
        link.last_use = self.uses;
        Some(Arc::clone(&link.slot))
    }

    /// Closes the least recently used link that is not in use; `None` when all are.
    fn evict(&mut self) -> Option<()> {
        let (key, _) = self
            .links
            .iter()
            .filter(|(_, link)| Arc::strong_count(&link.slot) == 1)
            .min_by_key(|(_, link)| link.last_use)?;
        let key = *key;
        let link = self.links.remove(&key)?;
        if let Ok(line) = link.slot.try_lock()
            && let Line::Up(connection) = &*line
        {
            connection.close(CLOSE_UNUSED, b"");
        }
        Some(())
    }
}

/// Lets the other side send as much as the pipe holds: from now on it is asked for blobs.
fn widen(inner: &Inner, connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(inner.limits.pipe.window_bytes()));
}

/// As many links to peers that connected to us as there can be, and as many again for connections of our own.
fn links_max(inner: &Inner) -> usize {
    inner.limits.connections_max.saturating_mul(2)
}

async fn connect(inner: &Arc<Inner>, peer: PeerId, addr: SocketAddr) -> Result<Connection, Blame> {
    let unreachable = |reason: String| Blame::Unreachable(reason);
    let config = tls::client_config(&inner.keypair, peer, Arc::clone(&inner.transport))
        .map_err(|error| unreachable(error.to_string()))?;
    let connecting = inner
        .endpoint
        .connect_with(config, addr, tls::SERVER_NAME)
        .map_err(|error| unreachable(error.to_string()))?;
    metrics::counter!("gradmesh_bulk_connects_total").increment(1);
    match timeout(inner.limits.connect_timeout, connecting).await {
        Ok(Ok(connection)) => {
            widen(inner, &connection);
            Ok(connection)
        }
        Ok(Err(ConnectionError::TransportError(error)))
            if CRYPTO_ERRORS.contains(&u64::from(error.code))
                && u64::from(error.code) != ALERT_NO_ALPN =>
        {
            Err(Blame::OtherPeer)
        }
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable(format!(
            "no handshake with {addr} in {:?}",
            inner.limits.connect_timeout
        ))),
    }
}
