//! One peer of one run, from start to stop.
//!
//! [`run`] opens the state directory, starts both network planes, gets manifest and data (from its own disk, or from
//! other peers), starts the worker, and hands everything to the driver, which carries the node's inputs and
//! effects until the run is left or the operator stops it.

pub mod address;
pub mod audit;
mod behind;
mod bootstrap;
pub mod capacity;
mod driver;
mod fetch;
mod meter;
mod owner;
mod residuals;
mod rpc;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{Chain, RoundId, RunId, SignedManifest};
use gradmesh_protocol::ticket::Ticket;
use gradmesh_trainer::Trainer;
use gradmesh_trainer::replica::Shape;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::blob::BlobStore;
use crate::net::bulk::{Bulk, BulkConfig, BulkLimits};
use crate::net::control::{Control, ControlConfig, ControlLimits, Reachability};
use crate::net::identity::NodeKey;
use crate::run_settings::RunSettings;
use crate::state_dir::StateDir;
use crate::status::{Identity, StatusHandle, server};
use crate::store::Store;
use crate::subnet::{self, Gate, SubnetLink};
use crate::worker::{Disk, Worker, WorkerConfig};
use address::Connection;
use bootstrap::Bootstrap;
use driver::{Driver, Parts};

/// Frames in memory: the rounds in flight must fit. A guess: 64 peers' updates of a 1 B parameter model at 18 MB each.
const FRAMES_BYTES_MAX: u64 = 2 << 30;

/// How long a newcomer waits to be told whether others reach it: an attempt that nobody answers takes five seconds.
const REACHABILITY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a daemon is started with.
pub struct DaemonOptions {
    /// The state directory.
    pub dir: PathBuf,
    /// Where the control plane listens.
    pub listen: Vec<Multiaddr>,
    /// Where the bulk plane listens.
    pub bulk_listen: SocketAddr,
    /// Where the status server listens.
    pub status_listen: SocketAddr,
    /// Threads of one libtorch operation.
    pub threads: usize,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Why it is started.
    pub role: Role,
    /// How it is connected: what it says when it joins.
    pub connection: Connection,
    /// As whom it stands on the chain; needed in a run on a subnet.
    pub chain: Option<subnet::Access>,
    /// Whether to end once the run is finished and the others have it too.
    pub exit_when_finished: bool,
    /// Whether it follows the run to audit it, and never is a member.
    pub validates: bool,
    /// What stands between the daemon and its trainer; `None` in all but tests of those who check its work.
    pub guise: Option<Guise>,
}

/// Puts another trainer in the place of a daemon's own, which nothing else of the daemon knows of.
pub type Guise = Box<dyn FnOnce(Box<dyn Trainer>, GuiseParts) -> Box<dyn Trainer> + Send>;

/// What a [`Guise`] may use.
pub struct GuiseParts {
    /// The state directory.
    pub dir: PathBuf,
    /// What is in it.
    pub(crate) disk: Disk,
    /// The decisions.
    pub store: Arc<Store>,
    /// How theta is cut and its frames are encoded.
    pub shape: Arc<Shape>,
    /// This peer.
    pub me: PeerKey,
    /// Inner steps of a round.
    pub steps_per_round: u32,
}

/// Why a daemon is started.
pub enum Role {
    /// To launch a run.
    Launch {
        /// Its manifest, signed by this peer.
        manifest: Box<SignedManifest>,
        /// Where its data lies.
        data_dir: PathBuf,
    },
    /// To join a run.
    Join {
        /// The way into it.
        entry: Entry,
        /// Where the data lies; fetched from other peers if absent.
        data_dir: Option<PathBuf>,
    },
    /// To go on with the run of the state directory.
    Resume,
}

/// How a run may be entered: from a ticket, or from what stands on chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The run.
    pub run: RunId,
    /// Peers that take part in it, to be asked in this order. At least one.
    pub peers: Vec<EntryPeer>,
    /// A round and the state root after it that the chain attests; a history that does not pass through it is refused.
    pub attested: Option<(RoundId, Hash)>,
}

/// A peer by which a run may be entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPeer {
    /// Its key.
    pub key: PeerKey,
    /// Where its control plane listens.
    pub addresses: Vec<Multiaddr>,
}

impl EntryPeer {
    fn id(&self) -> Option<PeerId> {
        peer_id(&self.key)
    }
}

impl From<&Ticket> for Entry {
    fn from(ticket: &Ticket) -> Entry {
        Entry {
            run: ticket.run,
            peers: vec![EntryPeer {
                key: ticket.launcher,
                addresses: bootstrap::parse(&ticket.addresses),
            }],
            attested: None,
        }
    }
}

/// The peer id of a key: both name the same ed25519 public key. `None` if the bytes are no point of the curve.
pub(crate) fn peer_id(key: &PeerKey) -> Option<PeerId> {
    let public = libp2p::identity::ed25519::PublicKey::try_from_bytes(&key.0).ok()?;
    Some(libp2p::identity::PublicKey::from(public).to_peer_id())
}

/// The key of a peer id; `None` for identities that are not ed25519.
pub(crate) fn peer_key(peer: &PeerId) -> Option<PeerKey> {
    // An ed25519 peer id holds the whole public key, behind two bytes of multihash.
    let bytes = peer.to_bytes();
    let public = libp2p::identity::PublicKey::try_decode_protobuf(bytes.get(2..)?).ok()?;
    let public = public.try_into_ed25519().ok()?;
    Some(PeerKey(public.to_bytes()))
}

/// Runs a daemon until `stop` is true, the run is left, or something breaks that only the operator can mend.
///
/// # Errors
/// What broke, and what to do.
pub async fn run(options: DaemonOptions, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let state_dir = StateDir::new(&options.dir);
    let store = Arc::new(Store::open(&state_dir)?);
    let key = NodeKey::load_or_create(&state_dir.node_key())?;
    let keypair = Keypair::from_seed(&key.signing_key().to_bytes());
    let status = StatusHandle::new();
    let (leave, leaves) = mpsc::channel(1);
    let server = server::serve(options.status_listen, status.clone(), &state_dir, leave).await?;
    tracing::info!(peer = %keypair.public(), status = %server.address(), "gradmesh starts");

    let gate = Gate::default();
    let served = gate.clone();
    let blobs = Arc::new(BlobStore::new(FRAMES_BYTES_MAX));
    let bulk = Bulk::spawn(
        BulkConfig {
            keypair: key.to_libp2p_keypair(),
            listen: options.bulk_listen,
            limits: BulkLimits::default(),
        },
        blobs.clone(),
        Arc::new(move |peer| served.admits(peer)),
    )
    .context("bulk plane: choose another address with --bulk-listen")?;
    let (control, events) = Control::spawn(ControlConfig {
        keypair: key.to_libp2p_keypair(),
        listen: options.listen,
        announce: Vec::new(),
        topics: Vec::new(),
        kad_server: true,
        limits: ControlLimits {
            response_bytes_max: gradmesh_protocol::wire::RESPONSE_BYTES_MAX,
            ..ControlLimits::default()
        },
    })
    .context("control plane: choose another address with --listen")?;

    let mut bootstrap = Bootstrap {
        control: control.clone(),
        bulk: bulk.clone(),
        events,
        seen: Vec::new(),
        store: Arc::clone(&store),
        state_dir: state_dir.clone(),
    };
    let found = tokio::select! {
        found = bootstrap.find(options.role) => found?,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let manifest = Arc::new(found.manifest.manifest.clone());
    // Before the data: in a run on a subnet the others serve only whom they find registered.
    let subnet = match (&manifest.chain, options.chain) {
        (Chain::None, _) => None,
        (Chain::Subnet(subnet), Some(access)) => Some(SubnetLink::start(subnet::Parts {
            access,
            subnet: *subnet,
            manifest: Arc::clone(&manifest),
            me: keypair.public(),
            store: Arc::clone(&store),
            state_dir: state_dir.clone(),
            status: status.clone(),
            gate: gate.clone(),
        })),
        (Chain::Subnet(subnet), None) => bail!(
            "this run lives on subnet {} of the chain with genesis {}: name an endpoint of that chain with --chain, and \
             the wallet whose hotkey is registered there with --wallet and --hotkey",
            subnet.netuid,
            subnet.genesis
        ),
    };
    if let Some(subnet) = &subnet {
        bootstrap.publish(subnet).await;
    }
    let prepared = tokio::select! {
        prepared = bootstrap.data(found) => prepared?,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let settings = RunSettings::of(&manifest)?;
    let config = WorkerConfig {
        state_dir: state_dir.clone(),
        store: Arc::clone(&store),
        run: manifest.run(),
        seed: manifest.seed,
        me: keypair.public(),
        data_dir: prepared.data_dir.clone(),
        data: prepared.data.clone(),
        device: options.device.parse()?,
        threads: u16::try_from(options.threads).unwrap_or(u16::MAX),
        validates: options.validates,
        settings,
    };
    let (worker, standing, worker_events) = Worker::start(config, options.guise).await?;
    status.set_identity(Identity {
        run: manifest.run().to_string(),
        name: manifest.name.clone(),
        peer: keypair.public().to_string(),
        rounds: manifest.schedule.rounds,
        parameters: standing.parameters,
        parameters_dense: standing.parameters_dense,
        fragments: manifest.exchange.fragments,
        device: standing.device.clone(),
    });
    match (&subnet, standing.applied) {
        (Some(subnet), Some(applied)) => subnet.resumed(applied)?,
        (Some(subnet), None) if prepared.launches => subnet.launched(standing.genesis_root)?,
        (Some(_), None) | (None, _) => {}
    }
    if standing.applied.is_none() && !prepared.launches {
        // What it says when it joins depends on it. Found out while manifest and data came, unless it is behind NAT.
        let mut reachability = control.reachability();
        let known = reachability.wait_for(|known| *known != Reachability::Unknown);
        tokio::select! {
            _ = timeout(REACHABILITY_TIMEOUT, known) => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
    let driver = Driver::new(Parts {
        keypair,
        connection: options.connection,
        prepared,
        control,
        bulk,
        blobs,
        store,
        state_dir,
        worker,
        worker_events,
        standing,
        status,
        events: bootstrap.events,
        seen: bootstrap.seen,
        subnet,
        gate,
        exit_when_finished: options.exit_when_finished,
        validates: options.validates,
    })?;
    driver.run(stop, leaves).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_ids_and_keys_name_each_other() {
        let key = Keypair::from_seed(&[5; 32]).public();
        let id = peer_id(&key).unwrap();
        assert_eq!(peer_key(&id), Some(key));
        assert_eq!(peer_key(&PeerId::random()), None);
    }
}
