//! What the swarm consists of, and its settings.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::time::Duration;

use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::autonat::v2 as autonat;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::kad::store::MemoryStore;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{
    PeerId, StreamProtocol, Swarm, SwarmBuilder, dcutr, gossipsub, identify, kad, ping, relay, tls,
    yamux,
};

use super::codec::RpcCodec;
use super::{
    CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX, ControlConfig, GOSSIP_QUEUE_MAX, GossipId,
    REQUEST_STREAMS_MAX, SpawnError, observed,
};

const IDENTIFY_PROTOCOL: &str = "/gradmesh/id/1";
pub(super) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/gradmesh/kad/1");
const RPC_PROTOCOL: StreamProtocol = StreamProtocol::new("/gradmesh/rpc/1");
const GOSSIP_PROTOCOL_PREFIX: &str = "/gradmesh/gossip";

/// A mesh of a few peers forms within two of these; twice a second costs nothing at this size.
const GOSSIP_HEARTBEAT: Duration = Duration::from_millis(400);
/// Heartbeats for which a message waits for the owner's verdict: about five seconds.
const GOSSIP_HISTORY: usize = 12;
/// Time that a message may wait for a slow link before it is dropped.
const GOSSIP_QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a peer that left the mesh may come back. The default of a minute would leave a small mesh with too
/// few links for many rounds.
const GOSSIP_PRUNE_BACKOFF: Duration = Duration::from_secs(5);
/// Room for signature, key, topic and framing beside the bytes of a message; they take less than 300 bytes.
const GOSSIP_ENVELOPE_BYTES: usize = 4096;

/// Flow control of one stream and one connection: a full response in flight, and a few side by side. The product of
/// 100 ms and 100 Mbit/s is 1.2 MB.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Connections outside the gossip mesh are kept this long without a request: who is connected stays connected. Dead
/// ones are found by QUIC itself after ten seconds.
const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const CONNECTIONS_PENDING_MAX: u32 = 64;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often addresses that nobody has tried yet are looked for. The look costs next to nothing, and a joiner waits for it.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// What a peer does for others as their relay. Only control messages go through it, and most connections are direct after
/// some seconds; the figures leave room for two peers whose boxes let no hole be punched. All are guesses.
const RESERVATIONS_MAX: usize = 64;
const RESERVATIONS_PER_PEER_MAX: usize = 4;
const RESERVATION_DURATION: Duration = Duration::from_secs(3600);
const CIRCUITS_MAX: usize = 128;
/// One to every other member of the largest roster.
const CIRCUITS_PER_PEER_MAX: usize = 64;
/// Then the connection is made anew.
const CIRCUIT_DURATION: Duration = Duration::from_secs(3600);
/// Both ways together; a round of 64 members takes some hundred KB.
const CIRCUIT_BYTES_MAX: u64 = 256 << 20;
/// Reservations, and circuits, that a peer may ask for at once.
const RELAY_BURST: NonZeroU32 = NonZeroU32::new(64).expect("not zero");
/// How long it takes until it may ask for one more.
const RELAY_PAUSE: Duration = Duration::from_secs(2);

/// The order of fields is the order in which libp2p asks them about a new connection: those that may refuse one come
/// first, so that no other field takes note of a connection that is then refused.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) banned: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) identify: identify::Behaviour,
    pub(super) kad: kad::Behaviour<MemoryStore>,
    pub(super) gossip: gossipsub::Behaviour,
    pub(super) rpc: request_response::Behaviour<RpcCodec>,
    pub(super) ping: ping::Behaviour,
    pub(super) observed: observed::Behaviour,
    /// Asks others to connect to us from a fresh port.
    pub(super) prober: autonat::client::Behaviour,
    /// Does so for others.
    pub(super) probed: autonat::server::Behaviour,
    /// Our reservations at relays, and connections through them.
    pub(super) relayed: relay::client::Behaviour,
    /// Relays for others.
    pub(super) relay: relay::Behaviour,
    /// Punches holes: makes relayed connections direct.
    pub(super) punch: dcutr::Behaviour,
}

/// A swarm that listens nowhere yet.
pub(super) fn build_swarm(config: &ControlConfig) -> Result<Swarm<Behaviour>, SpawnError> {
    let settings = |error: &dyn std::fmt::Display| SpawnError::Settings(error.to_string());
    let gossip = gossip(config).map_err(SpawnError::Settings)?;
    let swarm = SwarmBuilder::with_existing_identity(config.keypair.clone())
        .with_tokio()
        .with_quic_config(|mut quic| {
            quic.max_stream_data = STREAM_WINDOW_BYTES;
            quic.max_connection_data = CONNECTION_WINDOW_BYTES;
            quic
        })
        .with_relay_client(tls::Config::new, yamux::Config::default)
        .map_err(|error| settings(&error))?
        .with_behaviour(|_, relayed| behaviour(config, gossip, relayed))
        .map_err(|error| settings(&error))?
        .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(CONNECTION_IDLE_TIMEOUT))
        .build();
    Ok(swarm)
}

fn behaviour(
    config: &ControlConfig,
    gossip: gossipsub::Behaviour,
    relayed: relay::client::Behaviour,
) -> Behaviour {
    let peer = config.keypair.public().to_peer_id();
    let limits = ConnectionLimits::default()
        .with_max_established(Some(CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
        .with_max_pending_incoming(Some(CONNECTIONS_PENDING_MAX))
        .with_max_pending_outgoing(Some(CONNECTIONS_PENDING_MAX));

    // The last number tells this start of the peer from an earlier one; see `Task::on_identify`.
    let agent = format!(
        "gradmesh/{} {:016x}",
        env!("CARGO_PKG_VERSION"),
        RandomState::new().hash_one(peer.to_bytes())
    );
    let identify = identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), config.keypair.public())
        .with_agent_version(agent)
        .with_push_listen_addr_updates(true);

    let mut kad_config = kad::Config::new(KAD_PROTOCOL);
    kad_config
        .set_query_timeout(LOOKUP_TIMEOUT)
        // Only the routing table is used. With filtering on, records that others store here are dropped unread.
        .set_record_filtering(kad::StoreInserts::FilterBoth);
    let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), kad_config);
    kad.set_mode(Some(if config.kad_server {
        kad::Mode::Server
    } else {
        kad::Mode::Client
    }));

    let rpc = request_response::Behaviour::with_codec(
        RpcCodec {
            request_bytes_max: config.limits.request_bytes_max,
            response_bytes_max: config.limits.response_bytes_max,
        },
        [(RPC_PROTOCOL, ProtocolSupport::Full)],
        request_response::Config::default()
            .with_request_timeout(config.limits.request_timeout)
            .with_max_concurrent_streams(REQUEST_STREAMS_MAX),
    );

    let mut relay = relay::Behaviour::new(peer, relay_config());
    relay.set_status(Some(relay::Status::Enable));
    let probes = autonat::client::Config::default().with_probe_interval(PROBE_INTERVAL);

    Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        banned: allow_block_list::Behaviour::default(),
        identify: identify::Behaviour::new(identify),
        kad,
        gossip,
        rpc,
        ping: ping::Behaviour::default(),
        observed: observed::Behaviour::default(),
        prober: autonat::client::Behaviour::new(rand::make_rng(), probes),
        probed: autonat::server::Behaviour::new(rand::make_rng()),
        relayed,
        relay,
        punch: dcutr::Behaviour::new(peer),
    }
}

fn relay_config() -> relay::Config {
    let limits = relay::Config {
        max_reservations: RESERVATIONS_MAX,
        max_reservations_per_peer: RESERVATIONS_PER_PEER_MAX,
        reservation_duration: RESERVATION_DURATION,
        reservation_rate_limiters: Vec::new(),
        max_circuits: CIRCUITS_MAX,
        max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
        max_circuit_duration: CIRCUIT_DURATION,
        max_circuit_bytes: CIRCUIT_BYTES_MAX,
        circuit_src_rate_limiters: Vec::new(),
    };
    limits
        .reservation_rate_per_peer(RELAY_BURST, RELAY_PAUSE)
        .circuit_src_per_peer(RELAY_BURST, RELAY_PAUSE)
}

fn gossip(config: &ControlConfig) -> Result<gossipsub::Behaviour, String> {
    let gossip_config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(GOSSIP_PROTOCOL_PREFIX)
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        .max_transmit_size(config.limits.gossip_bytes_max + GOSSIP_ENVELOPE_BYTES)
        .heartbeat_initial_delay(Duration::from_millis(100))
        .heartbeat_interval(GOSSIP_HEARTBEAT)
        // Whoever is connected to the author gets a message from it; it is passed on for those who are not, and every link
        // that does so is a copy that all the others throw away.
        .flood_publish(true)
        .mesh_n(3)
        .mesh_n_low(2)
        .mesh_n_high(4)
        .mesh_outbound_min(1)
        .prune_backoff(GOSSIP_PRUNE_BACKOFF)
        .unsubscribe_backoff(Duration::from_secs(1))
        .history_length(GOSSIP_HISTORY)
        // What the mesh may have lost is offered for a second: to two others, or a tenth of them.
        .history_gossip(3)
        .gossip_lazy(2)
        .gossip_factor(0.1)
        .connection_handler_queue_len(GOSSIP_QUEUE_MAX)
        .publish_queue_duration(GOSSIP_QUEUE_TIMEOUT)
        .forward_queue_duration(GOSSIP_QUEUE_TIMEOUT)
        .build()
        .map_err(|error| error.to_string())?;
    gossipsub::Behaviour::new(
        gossipsub::MessageAuthenticity::Signed(config.keypair.clone()),
        gossip_config,
    )
    .map_err(str::to_owned)
}

/// BLAKE3 over (topic, author, bytes), each behind its length; the module doc of `control` says why the author.
fn message_id(message: &gossipsub::Message) -> gossipsub::MessageId {
    let author = message.source.map(PeerId::to_bytes).unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    for part in [message.topic.as_str().as_bytes(), &author, &message.data] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    gossipsub::MessageId::new(hasher.finalize().as_bytes())
}

pub(super) fn gossip_id(id: &gossipsub::MessageId) -> Option<GossipId> {
    <[u8; 32]>::try_from(id.0.as_slice()).ok().map(GossipId)
}
