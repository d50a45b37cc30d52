//! The control plane: small messages between authenticated peers, over one libp2p swarm on QUIC.
//!
//! [`Control::spawn`] starts one task that owns the swarm. The owner of the plane talks to it through
//! [`ControlHandle`] and hears from it through one channel of [`ControlEvent`]s. Bulk bytes never pass here: libp2p
//! has no back-pressure into a behaviour, so everything that may grow has a bound and an answer to "full":
//!
//! | queue | bound | when full |
//! |---|---|---|
//! | commands to the task | [`COMMANDS_MAX`] | the caller waits; the task never waits for an owner |
//! | events to the owner | [`EVENTS_MAX`] | gossip: dropped, counted, not forwarded; request: answered "busy"; |
//! | | | addresses, subscriptions, round-trip times: dropped, counted; the rest waits in a bounded backlog |
//! | own requests in flight | [`REQUESTS_MAX`] | [`RequestError::Busy`] |
//! | streams of requests per connection | [`REQUEST_STREAMS_MAX`] | further incoming ones are closed unread |
//! | dials in flight | [`DIALS_MAX`] | [`DialError::Busy`] |
//! | gossip to a slow peer | [`GOSSIP_QUEUE_MAX`] messages | libp2p drops the oldest kind first; lazy gossip repairs |
//! | connections | [`CONNECTIONS_MAX`] | further ones are refused, save those of kept peers |
//! | banned peers | [`BANNED_MAX`] | the oldest ban is lifted |
//! | reservations and circuits as a relay | named in `behaviour.rs` | refused; the peer asks another relay |
//!
//! # What gossip promises
//!
//! A message is signed by its author; libp2p verifies the signature before the owner sees it. The owner validates
//! every message and reports a [`Verdict`] within about five seconds; only accepted messages are forwarded. The id of
//! a message is BLAKE3 over (topic, author, bytes). The author is part of it because otherwise a peer that re-signs
//! somebody's bytes and is faster would make every node drop the original as a duplicate.
//!
//! [`ControlHandle::publish`] sends to every connected peer that is known to be subscribed. Right after a connection
//! the subscriptions of the other side are not known yet: with none known the message is refused with
//! [`PublishError::NoSubscribers`], nothing is remembered of it and the same bytes may be published again. A peer
//! whose subscription arrives after a message was sent does not get that message; who must reach all of a known set
//! waits for [`ControlEvent::PeerSubscribed`] or asks [`ControlHandle::subscribers`].
//!
//! # Peers behind NAT
//!
//! A peer asks those that it connects to whether they can connect to it (AutoNAT). If nobody can, it reserves a place at
//! relays among them, says so, and others connect to it through those; then both sides try to punch a hole, and the
//! relayed connection goes once a direct one stands (DCUtR). Every peer relays that is not behind NAT itself.
//! [`ControlHandle::reachability`] tells.

mod addresses;
mod behaviour;
mod codec;
mod keep;
mod observed;
mod outbox;
mod paths;
mod reach;
mod swarm;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use libp2p::identity::Keypair;
use libp2p::request_response::ResponseChannel;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

pub use addresses::is_relayed;
use codec::Reply;
pub use reach::Reachability;

/// Commands that wait for the task. Small: the task empties the queue as fast as it can.
pub const COMMANDS_MAX: usize = 256;
/// Events that wait for the owner. In the worst case all are gossip of full size: 128 MiB.
pub const EVENTS_MAX: usize = 512;
/// Own requests that have no delivered outcome yet.
pub const REQUESTS_MAX: usize = 256;
/// Requests, both ways, in progress on one connection.
pub const REQUEST_STREAMS_MAX: usize = 32;
/// Calls of [`ControlHandle::dial`] in progress.
pub const DIALS_MAX: usize = 64;
/// Messages that wait for one peer's link. With full-size messages this is 64 MiB per stuck peer, for at most the
/// five seconds after which they expire.
pub const GOSSIP_QUEUE_MAX: usize = 256;
/// Established connections, kept peers not counted.
pub const CONNECTIONS_MAX: u32 = 256;
/// Connections to one peer: two from a simultaneous dial, one that is about to time out, one through a relay, one that
/// only tries whether it can be made, one spare.
pub const CONNECTIONS_PER_PEER_MAX: u32 = 6;
/// Bans remembered.
pub const BANNED_MAX: usize = 4096;

/// Largest gossip message in bytes: a header that names the frames of 4096 shards takes 128 KiB.
pub const GOSSIP_BYTES_MAX: usize = 256 * 1024;
/// Largest request in bytes: a question, perhaps with a signed header in it.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Largest response in bytes: a list of headers or decisions. What is longer belongs to the bulk plane.
pub const RESPONSE_BYTES_MAX: usize = 1024 * 1024;

/// What a control plane is started with.
#[derive(Clone)]
pub struct ControlConfig {
    /// The node key; see [`NodeKey::to_libp2p_keypair`](crate::net::identity::NodeKey::to_libp2p_keypair).
    pub keypair: Keypair,
    /// Addresses to listen on, such as `/ip4/0.0.0.0/udp/4700/quic-v1`; port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// Addresses that others reach this peer at, when they differ from those it listens on.
    pub announce: Vec<Multiaddr>,
    /// Topics to subscribe to before the first connection.
    pub topics: Vec<String>,
    /// Whether to answer lookups of others: true on public and on loopback addresses, false behind NAT.
    pub kad_server: bool,
    pub limits: ControlLimits,
}

/// Limits of one control plane. All peers of a run should use the same ones; a peer refuses what exceeds its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlLimits {
    pub gossip_bytes_max: usize,
    pub request_bytes_max: usize,
    pub response_bytes_max: usize,
    /// Time from sending a request, or from receiving one, until it counts as failed.
    pub request_timeout: Duration,
}

impl Default for ControlLimits {
    fn default() -> Self {
        Self {
            gossip_bytes_max: GOSSIP_BYTES_MAX,
            request_bytes_max: REQUEST_BYTES_MAX,
            response_bytes_max: RESPONSE_BYTES_MAX,
            // A full-size response takes 8 s at 1 Mbit/s.
            request_timeout: Duration::from_secs(15),
        }
    }
}

/// Ties a [`ControlEvent::Response`] to the call of [`ControlHandle::request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Names a gossip message; see the module's doc.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GossipId([u8; 32]);

impl fmt::Debug for GossipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GossipId({})", hex::encode(self.0))
    }
}

/// The right to answer one request. Dropping it ends the request with [`Refusal::NoAnswer`].
#[derive(Debug)]
pub struct ResponseToken {
    channel: ResponseChannel<Reply>,
}

/// What the owner hears.
#[derive(Debug)]
pub enum ControlEvent {
    /// The plane listens on this address (port filled in), or is reached by it through a relay. May be dropped when the
    /// owner lags.
    Listening(Multiaddr),
    /// It does no more. May be dropped.
    NotListening(Multiaddr),
    /// The first connection to `peer`. Never dropped.
    PeerConnected { peer: PeerId, addr: Multiaddr },
    /// `peer`, which was connected through a relay only, is now connected directly. May be dropped.
    PeerDirect { peer: PeerId, addr: Multiaddr },
    /// The last connection to `peer` ended. Never dropped.
    PeerDisconnected { peer: PeerId },
    /// Where `peer` says that it can be reached, at most 16 QUIC addresses; its word, unchecked. May be dropped.
    PeerAddresses { peer: PeerId, addrs: Vec<Multiaddr> },
    /// `peer` is subscribed to `topic` from now on: what is published now reaches it. May be dropped when the owner
    /// lags; [`ControlHandle::subscribers`] is exact.
    PeerSubscribed { peer: PeerId, topic: String },
    /// Round-trip time to `peer`, measured by ping every 15 s. May be dropped.
    PeerRtt { peer: PeerId, rtt: Duration },
    /// A message of an authenticated author. Dropped, and then not forwarded, when the owner lags.
    Gossip(GossipMessage),
    /// `peer` asks; answer with [`ControlHandle::respond`].
    Request {
        peer: PeerId,
        token: ResponseToken,
        bytes: Bytes,
    },
    /// The outcome of a request; exactly one for every id that [`ControlHandle::request`] returned.
    Response {
        id: RequestId,
        peer: PeerId,
        result: Result<Bytes, RequestFailure>,
    },
}

/// A gossip message that waits for the owner's verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipMessage {
    pub topic: String,
    /// Who signed it.
    pub author: PeerId,
    /// Who handed it to us.
    pub propagation_source: PeerId,
    pub id: GossipId,
    pub bytes: Bytes,
}

/// What the owner thinks of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Forward it.
    Accept,
    /// Drop it; an honest peer would not have forwarded it.
    Reject,
    /// Drop it; nobody is at fault.
    Ignore,
}

/// Why a peer did not answer a request that reached it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its owner lags; ask later.
    #[error("the peer is busy")]
    Busy,
    /// Its owner dropped the request.
    #[error("the peer gave no answer")]
    NoAnswer,
    /// Its answer exceeds its own limit; ask for less.
    #[error("the peer's answer would exceed its limit")]
    ResponseTooLarge,
}

/// Why a request has no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// Nothing came in time; the peer may have acted on the request.
    #[error("no response in time")]
    Timeout,
    /// There is no connection and none could be made.
    #[error("peer is unreachable")]
    Unreachable,
    /// The connection ended first; the peer may have acted on the request.
    #[error("connection closed before the response")]
    Disconnected,
    /// The peer does not speak this protocol.
    #[error("peer does not speak the request protocol")]
    Unsupported,
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The stream broke, or what came over it exceeded a limit; the connection stays.
    #[error("request stream failed: {0}")]
    Stream(String),
}

/// Why a control plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error(
        "UDP port {port} is in use (listening on {addr}); stop the other process or choose another port"
    )]
    AddressInUse { addr: Multiaddr, port: u16 },
    #[error("cannot listen on {addr}: {reason}")]
    Listen { addr: Multiaddr, reason: String },
    #[error("invalid control plane settings: {0}")]
    Settings(String),
}

/// The plane has been shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the control plane has stopped")]
pub struct Stopped;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("cannot reach {peer}: {reason}")]
    Failed { peer: PeerId, reason: String },
    #[error("{DIALS_MAX} dials are in progress")]
    Busy,
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    #[error("{max} peers are kept already", max = keep::KEPT_PEERS_MAX)]
    Full,
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nobody who is subscribed is connected, or their subscriptions have not arrived yet. Publish again later.
    #[error("no connected peer is subscribed to the topic yet")]
    NoSubscribers,
    /// The same bytes were published on the topic in the last minute. They are on their way; nothing to do.
    #[error("the same message was published less than a minute ago")]
    Duplicate,
    #[error("message of {length} bytes exceeds the limit of {limit}")]
    TooLarge { length: usize, limit: usize },
    /// The queues to all subscribers are full. They will learn of the message by lazy gossip; do not publish again.
    #[error("the queues to all subscribers are full")]
    QueuesFull,
    #[error("cannot sign the message: {0}")]
    Signing(String),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("request of {length} bytes exceeds the limit of {limit}")]
    TooLarge { length: usize, limit: usize },
    /// Wait for responses before asking more.
    #[error("{REQUESTS_MAX} requests are in flight")]
    Busy,
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    /// The peer has been told so.
    #[error("response of {length} bytes exceeds the limit of {limit}")]
    TooLarge { length: usize, limit: usize },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Starts control planes.
pub struct Control;

impl Control {
    /// Listens, and starts the task that owns the swarm. Must be called within a tokio runtime.
    ///
    /// The task ends after [`ControlHandle::shutdown`], or when the receiver or every handle is dropped.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left running then.
    pub fn spawn(
        config: ControlConfig,
    ) -> Result<(ControlHandle, mpsc::Receiver<ControlEvent>), SpawnError> {
        let (command_sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (event_sender, events) = mpsc::channel(EVENTS_MAX);
        let peer = config.keypair.public().to_peer_id();
        let limits = config.limits;
        let (told_reach, reach) = watch::channel(Reachability::default());
        let task = swarm::Task::new(config, commands, event_sender, told_reach)?;
        tokio::spawn(task.run());
        let handle = ControlHandle {
            peer,
            limits,
            commands: command_sender,
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            next_request: Arc::new(AtomicU64::new(0)),
            reach,
        };
        Ok((handle, events))
    }
}

/// Talks to a control plane. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    peer: PeerId,
    limits: ControlLimits,
    commands: mpsc::Sender<Command>,
    requests: Arc<Semaphore>,
    next_request: Arc<AtomicU64>,
    reach: watch::Receiver<Reachability>,
}

#[derive(Debug)]
enum Command {
    Dial {
        peer: PeerId,
        addrs: Vec<Multiaddr>,
        done: oneshot::Sender<Result<(), DialError>>,
    },
    Keep {
        peer: PeerId,
        addrs: Vec<Multiaddr>,
        done: oneshot::Sender<Result<(), KeepError>>,
    },
    Unkeep(PeerId),
    Subscribe(String),
    Unsubscribe(String),
    Subscribers {
        topic: String,
        done: oneshot::Sender<Vec<PeerId>>,
    },
    Connected(oneshot::Sender<Vec<PeerId>>),
    Publish {
        topic: String,
        bytes: Bytes,
        done: oneshot::Sender<Result<GossipId, PublishError>>,
    },
    ReportGossip {
        id: GossipId,
        propagation_source: PeerId,
        verdict: Verdict,
    },
    Request {
        id: RequestId,
        peer: PeerId,
        bytes: Bytes,
        permit: OwnedSemaphorePermit,
    },
    Respond {
        token: ResponseToken,
        reply: Reply,
    },
    Ban(PeerId),
    Shutdown(oneshot::Sender<()>),
}

impl ControlHandle {
    /// The name of this peer.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// Whether others can reach this peer, as far as is known, and word of changes.
    #[must_use]
    pub fn reachability(&self) -> watch::Receiver<Reachability> {
        self.reach.clone()
    }

    /// Connects to `peer` at one of `addrs` or at an address that discovery knows. Returns when the connection
    /// stands, at once when there is one.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, peer: PeerId, addrs: Vec<Multiaddr>) -> Result<(), DialError> {
        self.ask(|done| Command::Dial { peer, addrs, done }).await?
    }

    /// Connects to `peer` and again whenever the connection is lost, after 200 ms, then twice that, up to 5 s, with
    /// lookups for fresh addresses. `addrs` replace those of an earlier call.
    ///
    /// # Errors
    /// [`KeepError`].
    pub async fn keep(&self, peer: PeerId, addrs: Vec<Multiaddr>) -> Result<(), KeepError> {
        self.ask(|done| Command::Keep { peer, addrs, done }).await?
    }

    /// Ends the effect of [`ControlHandle::keep`]; the connection stays while it is used.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn unkeep(&self, peer: PeerId) -> Result<(), Stopped> {
        self.tell(Command::Unkeep(peer)).await
    }

    /// # Errors
    /// [`Stopped`].
    pub async fn subscribe(&self, topic: &str) -> Result<(), Stopped> {
        self.tell(Command::Subscribe(topic.to_owned())).await
    }

    /// # Errors
    /// [`Stopped`].
    pub async fn unsubscribe(&self, topic: &str) -> Result<(), Stopped> {
        self.tell(Command::Unsubscribe(topic.to_owned())).await
    }

    /// The connected peers that are known to be subscribed to `topic`, in order.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn subscribers(&self, topic: &str) -> Result<Vec<PeerId>, Stopped> {
        let topic = topic.to_owned();
        self.ask(|done| Command::Subscribers { topic, done }).await
    }

    /// The connected peers, in order.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn connected(&self) -> Result<Vec<PeerId>, Stopped> {
        self.ask(Command::Connected).await
    }

    /// Signs `bytes` and sends them to every connected subscriber of `topic`, who forward them. The module's doc
    /// says what that promises.
    ///
    /// # Errors
    /// [`PublishError`]; only [`PublishError::NoSubscribers`] is worth another try.
    pub async fn publish(&self, topic: &str, bytes: Bytes) -> Result<GossipId, PublishError> {
        let limit = self.limits.gossip_bytes_max;
        if bytes.len() > limit {
            return Err(PublishError::TooLarge {
                length: bytes.len(),
                limit,
            });
        }
        let topic = topic.to_owned();
        self.ask(|done| Command::Publish { topic, bytes, done })
            .await?
    }

    /// Gives the verdict on a message; one that comes more than about five seconds after the message has no effect.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn report_gossip(
        &self,
        id: GossipId,
        propagation_source: PeerId,
        verdict: Verdict,
    ) -> Result<(), Stopped> {
        self.tell(Command::ReportGossip {
            id,
            propagation_source,
            verdict,
        })
        .await
    }

    /// Sends a request; its outcome comes as a [`ControlEvent::Response`] with the returned id. A peer that is not
    /// connected is dialled when discovery knows an address.
    ///
    /// # Errors
    /// [`RequestError`]; no event follows then.
    pub async fn request(&self, peer: PeerId, bytes: Bytes) -> Result<RequestId, RequestError> {
        let limit = self.limits.request_bytes_max;
        if bytes.len() > limit {
            return Err(RequestError::TooLarge {
                length: bytes.len(),
                limit,
            });
        }
        let permit = Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(|_| RequestError::Busy)?;
        let id = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        self.tell(Command::Request {
            id,
            peer,
            bytes,
            permit,
        })
        .await?;
        Ok(id)
    }

    /// Answers a request. Nothing tells whether the answer arrives: the asking side has its timeout.
    ///
    /// # Errors
    /// [`RespondError`].
    pub async fn respond(&self, token: ResponseToken, bytes: Bytes) -> Result<(), RespondError> {
        let (length, limit) = (bytes.len(), self.limits.response_bytes_max);
        let reply = if length > limit {
            Reply::Refused(Refusal::ResponseTooLarge)
        } else {
            Reply::Bytes(bytes)
        };
        self.tell(Command::Respond { token, reply }).await?;
        if length > limit {
            return Err(RespondError::TooLarge { length, limit });
        }
        Ok(())
    }

    /// Closes every connection to `peer`, accepts and makes no further one, and forgets its addresses.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn ban(&self, peer: PeerId) -> Result<(), Stopped> {
        self.tell(Command::Ban(peer)).await
    }

    /// Closes all connections, so that peers notice at once, and ends the task. Returns when that is done, after a
    /// second at most. The operating system may need a moment longer to free the port.
    pub async fn shutdown(&self) {
        // A plane that has stopped already is what the caller wants.
        let _ = self.ask(Command::Shutdown).await;
    }

    async fn tell(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (done, answer) = oneshot::channel();
        self.tell(command(done)).await?;
        answer.await.map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests;
