//! The near road: TLS 1.3 over TCP, for long stretches of blobs from peers on this machine or in the own site.
//!
//! On a link that carries more than QUIC can, what limits is the work of making and taking packets outside the kernel;
//! over TCP the kernel does it, and each byte is copied and encrypted once on either side. It listens on the TCP port of
//! the same number as the plane's UDP port. Where that is taken, or a firewall or another owner of the port is in the
//! way, everything goes over QUIC: this road saves work, and nothing depends on it.
//!
//! Measured on two busy cores, loopback, 300 MiB (examples/bulk_throughput), in turns with QUIC: two peers, six runs each,
//! 630-740 MB/s and 1.9-2.0 CPU seconds a GB for both ends, where QUIC had 515-587 and 1.9-2.4; four peers, three runs each,
//! 703-814 and 1.8-2.1, where QUIC had 543-608 and 2.4-2.7. Of the runtime's time (perf), a third or so goes into memory
//! that is touched for the first time, mostly the blob's own, a fifth into the kernel's TCP, and a tenth each into hashing,
//! copying and ciphers.
//!
//! **What travels.** One request at a time on a connection, in the bytes of `wire.rs`: kind "blob", not packed. The answer
//! follows, and then the next request. Anything else is answered "bad request", and the connection ends. A connection on
//! which an answer did not come to its end is not used again.
//!
//! **Who takes it.** A lane with 1 MiB or more to fetch from a source that is near: one that the order says is in the own
//! site, or whose address is one of this machine.
//!
//! **When it breaks.** No source is given up because of this road. When no connection can be had in the time of
//! [`connect_timeout`], or one breaks, or nothing comes over it for `overtake_after`, the lane goes on over QUIC at the same
//! byte, and so do all lanes to that peer for a minute. So a box that cuts connections, or lets small packets through
//! alone, costs a second a minute.

mod serve;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use libp2p::PeerId;
use quinn::rustls::pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::client::TlsStream;

use super::fetch::LANES_PER_SOURCE;
use super::held::Queues;
use super::serve::Places;
use super::{BulkLimits, Inner, tls};
pub(super) use serve::{accept, listen};

/// Less than this is not worth a connection of its own, and QUIC has it in a few round trips.
pub(super) const BYTES_MIN: usize = 1024 * 1024;
/// A connection that takes longer than this is none to a peer nearby.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// For this long a peer is not asked over this road after it failed.
const BLOCKED_FOR: Duration = Duration::from_secs(60);
/// Peers noted so.
const BLOCKED_MAX: usize = 1024;
/// What is taken from the kernel at once.
const READ_BYTES: usize = 256 * 1024;
/// What is encrypted before it is handed to the kernel.
const WRITE_BYTES: usize = 256 * 1024;

/// The near roads of a bulk plane, both ways.
#[derive(Debug)]
pub(super) struct Near {
    roads: Mutex<Roads>,
    /// Lanes of ours over this road, by peer.
    queues: Queues,
    outgoing: Arc<Semaphore>,
    /// Bytes of blobs that came this way.
    received: AtomicU64,
    incoming: Arc<Semaphore>,
    /// Incoming connections.
    places: Places,
    stage: watch::Sender<Stage>,
}

#[derive(Debug, Default)]
struct Roads {
    /// Connections that no lane is using, the longest idle one first.
    idle: VecDeque<Idle>,
    /// When the road to a peer last failed.
    blocked: HashMap<PeerId, Instant>,
}

#[derive(Debug)]
struct Idle {
    peer: PeerId,
    since: Instant,
    stream: Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// No new connection and no new request.
    Closing,
    Ended,
}

pub(super) type Stream = TlsStream<BufReader<TcpStream>>;

/// A connection in use by one lane. Unless it is [kept](Near::keep), it is closed in the end.
#[derive(Debug)]
pub(super) struct Road {
    pub(super) stream: Stream,
    peer: PeerId,
    /// Whether it was made before: then its other end may be gone without our knowing.
    pub(super) reused: bool,
    _places: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Near {
    pub(super) fn new(limits: &BulkLimits) -> Self {
        Self {
            roads: Mutex::default(),
            queues: Queues::default(),
            outgoing: Arc::new(Semaphore::new(limits.connections_max)),
            received: AtomicU64::new(0),
            incoming: Arc::new(Semaphore::new(limits.connections_max)),
            places: Places::default(),
            stage: watch::Sender::new(Stage::Running),
        }
    }

    /// A connection to `peer` for one lane: an idle one, or, if there is none or `anew`, one made now at `addr`. Waits
    /// while as many lanes as a source may have are using theirs. `None` where the lane has to take QUIC.
    pub(super) async fn road(
        &self,
        inner: &Inner,
        peer: PeerId,
        addr: SocketAddr,
        anew: bool,
    ) -> Option<Road> {
        let place = self.queues.at(peer, LANES_PER_SOURCE).acquire_owned().await;
        let outgoing = Arc::clone(&self.outgoing).try_acquire_owned();
        let places = (place.ok()?, outgoing.ok()?);
        if self.is_blocked(&peer) {
            return None;
        }
        let known = match anew {
            true => None,
            false => self.lock().take(&peer, inner.limits.idle_timeout),
        };
        let reused = known.is_some();
        let stream = match known {
            Some(stream) => stream,
            None => self.connect(inner, peer, addr).await?,
        };
        Some(Road {
            stream,
            peer,
            reused,
            _places: places,
        })
    }

    /// Keeps the connection for other lanes: nothing is on its way over it.
    pub(super) fn keep(&self, inner: &Inner, road: Road) {
        let limits = &inner.limits;
        let mut roads = self.lock();
        // Under the lock, so that closing finds whatever is kept.
        if *self.stage.borrow() != Stage::Running {
            return;
        }
        let of_peer = |idle: &Idle| idle.peer == road.peer;
        if roads.idle.iter().filter(|idle| of_peer(idle)).count() >= LANES_PER_SOURCE
            && let Some(oldest) = roads.idle.iter().position(of_peer)
        {
            roads.idle.remove(oldest);
        }
        if roads.idle.len() >= limits.connections_max {
            roads.idle.pop_front();
        }
        roads.idle.push_back(Idle {
            peer: road.peer,
            since: Instant::now(),
            stream: road.stream,
        });
    }

    /// Notes that the road to `peer` failed. When too many are noted, it is not.
    pub(super) fn blocks(&self, peer: PeerId) {
        let mut roads = self.lock();
        roads.idle.retain(|idle| idle.peer != peer);
        roads.blocked.retain(|_, at| at.elapsed() < BLOCKED_FOR);
        if roads.blocked.len() < BLOCKED_MAX {
            roads.blocked.insert(peer, Instant::now());
        }
    }

    /// Whether the road to `peer` failed in the last minute.
    pub(super) fn is_blocked(&self, peer: &PeerId) -> bool {
        let roads = self.lock();
        let noted = roads.blocked.get(peer);
        noted.is_some_and(|at| at.elapsed() < BLOCKED_FOR)
    }

    /// Connections to `peer` that no lane is using.
    #[cfg(test)]
    pub(super) fn idle(&self, peer: &PeerId) -> usize {
        let roads = self.lock();
        roads.idle.iter().filter(|idle| idle.peer == *peer).count()
    }

    pub(super) fn count_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends what is idle, on either side, and lets nothing new begin.
    pub(super) fn close(&self) {
        self.stage.send_replace(Stage::Closing);
        self.lock().idle.clear();
    }

    /// Ends everything, and waits until it has ended.
    pub(super) async fn end(&self) {
        self.stage.send_replace(Stage::Ended);
        self.stage.closed().await;
    }

    /// Returns when everything is to end.
    pub(super) async fn ended(&self) {
        reach(&mut self.stage.subscribe(), Stage::Ended).await;
    }

    async fn connect(&self, inner: &Inner, peer: PeerId, addr: SocketAddr) -> Option<Stream> {
        metrics::counter!("gradmesh_bulk_near_connects_total").increment(1);
        let connected = match timeout(connect_timeout(&inner.limits), dial(inner, peer, addr)).await
        {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match connected {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::debug!(%peer, %addr, %error, "no near road");
                self.blocks(peer);
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Roads> {
        self.roads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Roads {
    /// The connection to `peer` that was used last.
    fn take(&mut self, peer: &PeerId, idle_timeout: Duration) -> Option<Stream> {
        self.expire(idle_timeout);
        let last = self.idle.iter().rposition(|idle| idle.peer == *peer)?;
        self.idle.remove(last).map(|idle| idle.stream)
    }

    fn expire(&mut self, idle_timeout: Duration) {
        let expired = |idle: &Idle| idle.since.elapsed() >= idle_timeout;
        while self.idle.front().is_some_and(expired) {
            self.idle.pop_front();
        }
    }
}

/// Half of what makes a source freeze, so that a lane that tries this road in vain is on the other one by then; a second
/// at most.
fn connect_timeout(limits: &BulkLimits) -> Duration {
    (limits.overtake_after / 2)
        .min(limits.connect_timeout)
        .min(CONNECT_MAX)
}

pub(super) async fn dial(inner: &Inner, peer: PeerId, addr: SocketAddr) -> io::Result<Stream> {
    let connector = tls::near_client(&inner.keypair, peer).map_err(io::Error::other)?;
    let name = ServerName::try_from(tls::SERVER_NAME).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    let tcp = BufReader::with_capacity(READ_BYTES, tcp);
    let stream = connector.connect(name, tcp).await?;
    let (_, session) = stream.get_ref();
    match tls::near_peer(session) == Some(peer) {
        true => Ok(stream),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Whether `addr` is one of this machine: a socket can be bound to its address.
pub(super) fn is_here(addr: SocketAddr) -> bool {
    let ip = addr.ip();
    let one = !ip.is_unspecified() && !ip.is_multicast() && addr.port() != 0;
    one && (ip.is_loopback() || can_bind(ip))
}

fn can_bind(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Closes connections that have been idle for too long, until the bulk plane is gone.
pub(super) async fn keep_tidy(inner: Weak<Inner>, idle_timeout: Duration) {
    let mut ticks = interval((idle_timeout / 4).max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        inner.near.lock().expire(idle_timeout);
    }
}

async fn reach(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    let _ = stage.wait_for(|stage| *stage >= wanted).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_told_from_others() {
        for (addr, here) in [
            ("127.0.0.1:9", true),
            ("127.9.9.9:9", true),
            ("[::1]:9", true),
            ("127.0.0.1:0", false),
            ("0.0.0.0:9", false),
            ("[::]:9", false),
            // For documentation (RFC 5737).
            ("192.0.2.1:9", false),
            ("224.0.0.1:9", false),
        ] {
            assert_eq!(is_here(addr.parse().unwrap()), here, "{addr}");
        }
    }
}
