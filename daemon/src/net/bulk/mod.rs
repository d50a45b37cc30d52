//! The bulk plane: content-addressed bytes between authenticated peers, over quinn on a UDP port of its own, and over
//! TCP on the port of the same number where that saves work (`near.rs`).
//!
//! A blob is named by its BLAKE3 hash. [`Bulk::fetch`] gets one from whoever has it and returns it only when the
//! hash is right; the serving side answers from a [`BlobSource`]. Connections are authenticated on both ends by
//! [`PeerId`] (`tls.rs`), carry one stream per request (`wire.rs`), are shared by all fetches, and last while both ends live:
//! rounds are minutes apart, and a connection that is made anew for each has its rate to find. Both ends of one may ask for
//! blobs; where there is a choice, only the end that made it does (`links.rs`).
//!
//! Decides nothing about who fetches what from whom, and stores nothing.
//!
//! | what grows | bound | when full |
//! |---|---|---|
//! | incoming connections | `connections_max`, `connections_per_peer_max` | refused |
//! | connections, both ways | twice `connections_max` | the longest idle one is closed, else [`Blame::NoRoom`] |
//! | streams of a connection | `streams_per_connection_max` | the fetching side waits |
//! | streams being served | `streams_served_max`, `streams_served_per_peer_max` | answered "busy"; the fetching side |
//! | | | asks others, then again |
//! | requests held until a blob is here | `requests_held_max`, `requests_held_per_peer_max` | answered "busy" (`held.rs`) |
//! | requests of ours held at a peer | half of `streams_per_connection_max` | further ones wait |
//! | fetches | `fetches_max`, `fetches_per_source_max` | further ones wait for their turn (`admission.rs`) |
//! | memory of a fetch | the caller's [`Length`] | [`Blame::OverCap`], [`Blame::OtherLength`] |
//! | memory of all fetches | `fetch_bytes_max`, and what windows let peers send unasked | as for fetches |
//! | connections whose delivery is looked at | as connections | - |
//! | peers remembered as frozen | 1024, for five seconds | not remembered |
//! | near roads served | `connections_max`, eight of one peer | refused; the fetching side takes QUIC |
//! | near roads in use | `connections_max` | the lane takes QUIC |
//! | of them, to one peer | four | further lanes wait |
//! | near roads kept idle | `connections_max`, four to one peer, for `idle_timeout` | the longest idle one is closed |
//! | peers remembered without near road | 1024, for a minute | not remembered |
//! | peers whose pulse is watched | the sources of fetches that callers wait for | - |

mod admission;
mod budget;
mod capacity;
mod fetch;
mod gauge;
mod held;
mod links;
mod near;
mod pace;
mod pulse;
mod serve;
mod tls;
mod transport;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gradmesh_compression::planes::Width;
use gradmesh_protocol::manifest::SiteId;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use quinn::{Endpoint, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::blob::{BlobHash, BlobSource};
use admission::{Admission, Bounds};
use gauge::Gauge;
use links::Links;
use near::Near;
use pulse::Pulses;
pub use tls::TlsError;
pub use transport::{Congestion, PipeTarget, SocketBuffers};

/// Application close codes.
const CLOSE_SHUTDOWN: VarInt = VarInt::from_u32(0);
const CLOSE_DENIED: VarInt = VarInt::from_u32(1);
const CLOSE_FULL: VarInt = VarInt::from_u32(2);
const CLOSE_SLOW: VarInt = VarInt::from_u32(3);

/// Time that [`Bulk::shutdown`] gives streams that are being served.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Says whether a peer may be served; asked for every connection and for every request, so it must be fast.
pub type Allow = Arc<dyn Fn(&PeerId) -> bool + Send + Sync>;

/// What a bulk plane is started with.
#[derive(Clone)]
pub struct BulkConfig {
    /// The node key, the same as on the control plane.
    pub keypair: Keypair,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    pub limits: BulkLimits,
}

/// Limits of one bulk plane; the table in the module's doc says what happens at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkLimits {
    /// Connections in each direction. 128 owners and counterparts are more than any plan gives a peer.
    pub connections_max: usize,
    /// Incoming connections of one peer: those of its fetches, one for us, and as many again while they replace the first.
    pub connections_per_peer_max: usize,
    /// Connections to one peer that a large blob is fetched over; small ones use the first only.
    pub connections_per_pipe: usize,
    /// Requests in progress on one connection; with the windows in `transport.rs` one fills it.
    pub streams_per_connection_max: u32,
    /// Requests being served on all connections.
    pub streams_served_max: usize,
    /// Of them, requests of one peer, so that one that asks for much leaves room for the others.
    pub streams_served_per_peer_max: usize,
    /// Requests for blobs on their way here that wait for them (`held.rs`): little more than a stream each.
    pub requests_held_max: usize,
    /// Of them, requests of one peer.
    pub requests_held_per_peer_max: usize,
    /// So long a request is held for a blob that nobody here has asked for yet: the entry of a site may hear of a frame
    /// later than its mates, or have to write others to disk first. A guess.
    pub unheard_max: Duration,
    /// Fetches in progress; further ones wait for their turn.
    pub fetches_max: usize,
    /// Of them, fetches from one source: a connection's streams. An eighth of `fetch_bytes_max` bounds their bytes.
    pub fetches_per_source_max: usize,
    /// Bytes of all blobs in progress; a fetch that does not fit waits for its turn.
    pub fetch_bytes_max: u64,
    /// Time for a handshake.
    pub connect_timeout: Duration,
    /// A source of which nothing comes for so long, in no stream, is left as soon as there is another one. Three round
    /// trips of 300 ms, which is what a lost packet may take.
    pub overtake_after: Duration,
    /// In every window of this length a source must send at least 16 KiB, or all that is left.
    pub stall_window: Duration,
    /// Time after which a connection that nothing comes over is given up, and an unused near road closed.
    pub idle_timeout: Duration,
    /// The pipe that windows are sized for.
    pub pipe: PipeTarget,
    /// How this peer paces what it sends.
    pub congestion: Congestion,
    /// Whether long blobs from peers nearby, and to them, may travel over TCP (`near.rs`).
    pub near_road: bool,
}

impl Default for BulkLimits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            connections_per_peer_max: 6,
            connections_per_pipe: 2,
            streams_per_connection_max: 16,
            streams_served_max: 256,
            streams_served_per_peer_max: 64,
            requests_held_max: 1024,
            requests_held_per_peer_max: 64,
            unheard_max: Duration::from_secs(2),
            fetches_max: 256,
            fetches_per_source_max: 16,
            fetch_bytes_max: 1 << 30,
            connect_timeout: Duration::from_secs(5),
            overtake_after: Duration::from_secs(1),
            stall_window: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            pipe: PipeTarget {
                bits_per_s: 1_000_000_000,
                round_trip: Duration::from_millis(300),
            },
            congestion: Congestion::Paced,
            near_road: true,
        }
    }
}

/// Where a blob may be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSource {
    pub peer: PeerId,
    /// Its bulk plane. Not used when a connection to the peer stands, whoever made it.
    pub addr: SocketAddr,
}

/// How long a blob is, as far as the caller knows; never what a source claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes: fetched in parts, from several sources at once, into a buffer of this size.
    Exactly(u64),
    /// At most so many: fetched from one source after the other.
    AtMost(u64),
}

impl Length {
    fn bytes_max(self) -> u64 {
        match self {
            Length::Exactly(bytes) | Length::AtMost(bytes) => bytes,
        }
    }
}

/// What to fetch, from whom and until when.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    pub hash: BlobHash,
    pub length: Length,
    pub sources: &'a [PeerSource],
    /// How many of `sources`, from the first on, are in the own site: the others are asked only when none of these can
    /// deliver. If there is one, the first is waited at while it fetches the blob itself (`held.rs`).
    pub near: usize,
    /// The numbers that the blob ends in, if so: on a slow link they may travel packed.
    pub elements: Option<Width>,
    /// Without one, the fetch goes on for as long as any source delivers; so does its wait for a place while others do. Over a
    /// thin line that is long, and what has come by a deadline has come in vain.
    pub deadline: Option<Instant>,
}

impl<'a> Order<'a> {
    /// An order of bytes of no known kind, with no source in the own site and no deadline.
    #[must_use]
    pub fn new(hash: BlobHash, length: Length, sources: &'a [PeerSource]) -> Self {
        Self {
            hash,
            length,
            sources,
            near: 0,
            elements: None,
            deadline: None,
        }
    }
}

/// A verified blob. Others are served it as long as this lives; then it should be in the [`BlobSource`].
#[derive(Debug)]
pub struct Fetched {
    pub bytes: Bytes,
    pub report: FetchReport,
    _served: held::Landing,
}

/// What a fetch cost and which sources failed; in the order of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchReport {
    /// Bytes of blobs received from each source, whether they were of use or not.
    pub bytes_from: Vec<(PeerId, u64)>,
    /// Why sources were given up. A source may be named more than once.
    pub blamed: Vec<(PeerId, Blame)>,
}

/// Why a source was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blame {
    /// It sent bytes, or named a length, that do not belong to the hash. Proven: the peer lies or its disk does.
    #[error("sent bytes that do not belong to the hash")]
    WrongBytes,
    /// It broke the bulk protocol. Proven.
    #[error("broke the bulk protocol: {0}")]
    Protocol(String),
    /// It says that the blob is longer than the caller allows: either that is a lie or the caller's cap is wrong.
    #[error("claims a blob of {claimed} bytes, above the cap")]
    OverCap { claimed: u64 },
    /// It says that the blob has another length than the caller knows it to have. Either is wrong.
    #[error("claims a blob of {claimed} bytes, which is not its length")]
    OtherLength { claimed: u64 },
    /// It does not hold the blob.
    #[error("does not hold the blob")]
    NotFound,
    /// It stayed busy through all retries.
    #[error("is busy")]
    Busy,
    /// Nothing came for `overtake_after` while there was another source, or too little in a stall window.
    #[error("stalled")]
    Stalled,
    /// The connection or the stream broke.
    #[error("died: {0}")]
    Died(String),
    /// No connection could be made.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The handshake failed: somebody else lives at the address, or we are not who the other side expects. Not the
    /// fault of the peer.
    #[error("the address belongs to another peer")]
    OtherPeer,
    /// All outgoing connections of ours are in use. Not the fault of the peer.
    #[error("all outgoing connections are in use")]
    NoRoom,
}

impl Blame {
    /// Whether an honest peer with a working disk never does this.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        matches!(self, Blame::WrongBytes | Blame::Protocol(_))
    }

    fn name(&self) -> &'static str {
        match self {
            Blame::WrongBytes => "wrong_bytes",
            Blame::Protocol(_) => "protocol",
            Blame::OverCap { .. } => "over_cap",
            Blame::OtherLength { .. } => "other_length",
            Blame::NotFound => "not_found",
            Blame::Busy => "busy",
            Blame::Stalled => "stalled",
            Blame::Died(_) => "died",
            Blame::Unreachable(_) => "unreachable",
            Blame::OtherPeer => "other_peer",
            Blame::NoRoom => "no_room",
        }
    }
}

/// A fetch without a result, and what was learned of its sources.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct FetchFailed {
    pub error: FetchError,
    pub report: FetchReport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Every source answered that it does not hold the blob.
    #[error("no source holds the blob")]
    NotFound,
    /// Every source failed, or there was none.
    #[error("no source could deliver the blob")]
    Exhausted,
    #[error("the blob did not arrive before the deadline")]
    Deadline,
    #[error("the bulk plane has stopped")]
    Stopped,
    /// More bytes than this machine can address.
    #[error("the blob is longer than this machine can address")]
    TooLong,
}

/// Why a bulk plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    #[error("UDP port {} is in use (listening on {addr}); stop the other process or choose another port", addr.port())]
    AddressInUse { addr: SocketAddr },
    #[error("cannot listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A running bulk plane. Cheap to clone; it runs until [`Bulk::shutdown`].
#[derive(Clone)]
pub struct Bulk {
    inner: Arc<Inner>,
    local_addr: SocketAddr,
}

struct Inner {
    endpoint: Endpoint,
    keypair: Keypair,
    transport: Arc<TransportConfig>,
    behind_nat: AtomicBool,
    limits: BulkLimits,
    source: Arc<dyn BlobSource>,
    allow: Allow,
    links: Links,
    near: Near,
    pulses: Pulses,
    gauge: Gauge,
    /// Incoming connections.
    places: serve::Places,
    /// Streams being served.
    asked_by: serve::Places,
    /// Requests being held.
    held_for: serve::Places,
    holding: Semaphore,
    flights: Arc<held::Flights>,
    /// Requests of ours that are held elsewhere.
    queues: held::Queues,
    incoming: Arc<Semaphore>,
    serving: Semaphore,
    fetches: Admission,
    /// In units of [`budget::UNIT_BYTES`].
    fetch_memory: Semaphore,
}

impl Bulk {
    /// Listens and serves blobs of `source` to the peers that `allow` admits. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BulkError`]; nothing is left running then.
    pub fn spawn(
        config: BulkConfig,
        source: Arc<dyn BlobSource>,
        allow: Allow,
    ) -> Result<Self, BulkError> {
        let addr = config.listen;
        let listen_error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BulkError::AddressInUse { addr },
            _ => BulkError::Listen { addr, source },
        };
        let transport = Arc::new(transport::transport_config(&config.limits)?);
        let server = tls::server_config(&config.keypair, Arc::clone(&transport))?;
        let socket = UdpSocket::bind(addr).map_err(listen_error)?;
        let buffers = transport::enlarge_buffers(&socket).map_err(listen_error)?;
        tracing::debug!(?buffers, "bulk socket");
        let endpoint = Endpoint::new(
            tls::endpoint_config(&config.keypair)?,
            Some(server),
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(listen_error)?;
        let local_addr = endpoint.local_addr().map_err(listen_error)?;
        let limits = config.limits;
        let near_server = tls::near_server(&config.keypair)?;
        let inner = Arc::new(Inner {
            endpoint,
            keypair: config.keypair,
            transport,
            behind_nat: AtomicBool::new(false),
            limits,
            source,
            allow,
            links: Links::default(),
            near: Near::new(&limits),
            pulses: Pulses::default(),
            gauge: Gauge::default(),
            places: serve::Places::default(),
            asked_by: serve::Places::default(),
            held_for: serve::Places::default(),
            holding: Semaphore::new(limits.requests_held_max),
            flights: Arc::default(),
            queues: held::Queues::default(),
            incoming: Arc::new(Semaphore::new(limits.connections_max)),
            serving: Semaphore::new(limits.streams_served_max),
            fetches: Admission::new(Bounds {
                places: limits.fetches_max,
                places_per_source: limits.fetches_per_source_max,
                bytes_per_source: limits.fetch_bytes_max / 8,
            }),
            fetch_memory: budget::semaphore(limits.fetch_bytes_max),
        });
        tokio::spawn(serve::accept(Arc::clone(&inner)));
        tokio::spawn(gauge::keep_looking(Arc::downgrade(&inner)));
        if limits.near_road {
            let (known, idle) = (Arc::downgrade(&inner), limits.idle_timeout);
            tokio::spawn(near::keep_tidy(known, idle));
            if let Some(listener) = near::listen(local_addr) {
                tokio::spawn(near::accept(Arc::clone(&inner), listener, near_server));
            }
        }
        Ok(Self { inner, local_addr })
    }

    /// The address listened on, port filled in.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Gets the blob named `hash` from `sources`: the first of them if it can deliver it alone, all of them when it is
    /// long, the others where one died, froze or crawls. The bytes returned have been verified.
    ///
    /// Dropping the future ends the transfer; connections stay for others.
    ///
    /// # Errors
    /// [`FetchFailed`]. "Not found" comes as soon as every source said so; nothing else waits for the deadline
    /// unless sources stall.
    pub async fn fetch(
        &self,
        hash: BlobHash,
        length: Length,
        sources: &[PeerSource],
        deadline: Instant,
    ) -> Result<Fetched, FetchFailed> {
        let order = Order {
            deadline: Some(deadline),
            ..Order::new(hash, length, sources)
        };
        self.fetch_order(&order).await
    }

    /// As [`Bulk::fetch`], for those who know more about the blob and its sources.
    ///
    /// # Errors
    /// [`FetchFailed`].
    pub async fn fetch_order(&self, order: &Order<'_>) -> Result<Fetched, FetchFailed> {
        fetch::fetch(&self.inner, order).await
    }

    /// Says whether nobody can connect to this peer. Others then ask it over the connections that it makes.
    pub fn set_behind_nat(&self, behind_nat: bool) {
        self.inner.behind_nat.store(behind_nat, Ordering::Relaxed);
    }

    /// What [`Bulk::set_behind_nat`] said.
    #[must_use]
    pub fn is_behind_nat(&self) -> bool {
        self.inner.behind_nat.load(Ordering::Relaxed)
    }

    /// Says which peers are across this machine's link, not near it, and in which site each of them is: what goes to them
    /// shows what the link carries.
    pub fn set_outside(&self, outside: HashMap<PeerId, SiteId>) {
        self.inner.gauge.set_outside(outside);
    }

    /// What this machine's link was measured to carry to the peers outside, in bytes a second; `None` while it was never full
    /// for long enough to tell.
    #[must_use]
    pub fn measured_bytes_per_s(&self) -> Option<f64> {
        self.inner.gauge.bytes_per_s()
    }

    /// Bytes of blobs that came over the near road rather than QUIC.
    #[must_use]
    pub fn near_bytes(&self) -> u64 {
        self.inner.near.received()
    }

    /// Connects to `source` unless there is a connection, for it to use: it cannot connect to a peer behind NAT.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn hold(&self, source: PeerSource) -> Result<(), Blame> {
        let links = &self.inner.links;
        links.hold(&self.inner, source.peer, source.addr).await
    }

    /// Accepts no further connection, gives streams that are being served two seconds to end, closes all
    /// connections and waits until the peers know.
    pub async fn shutdown(&self) {
        self.inner.fetches.close();
        self.inner.fetch_memory.close();
        self.inner.endpoint.set_server_config(None);
        self.inner.near.close();
        let all = u32::try_from(self.inner.limits.streams_served_max).unwrap_or(u32::MAX);
        let _ = timeout(SHUTDOWN_GRACE, self.inner.serving.acquire_many(all)).await;
        self.inner.endpoint.close(CLOSE_SHUTDOWN, b"shutdown");
        let ended = async { tokio::join!(self.inner.endpoint.wait_idle(), self.inner.near.end()) };
        let _ = timeout(SHUTDOWN_GRACE, ended).await;
    }
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulk")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
