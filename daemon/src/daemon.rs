//! PLACEHOLDER, not part of gradmesh: the types that the command line hands to the daemon's event loop, so that it
//! compiles before the event loop is here. The event loop's file takes this file's place.

use std::net::SocketAddr;
use std::path::PathBuf;

use gradmesh_protocol::manifest::SignedManifest;
use gradmesh_protocol::ticket::Ticket;
use libp2p::Multiaddr;

/// What a daemon is started with.
pub struct DaemonOptions {
    pub dir: PathBuf,
    pub listen: Vec<Multiaddr>,
    pub bulk_listen: SocketAddr,
    pub status_listen: SocketAddr,
    pub threads: usize,
    pub device: String,
    pub role: Role,
    pub exit_when_finished: bool,
}

/// Why a daemon is started.
pub enum Role {
    Launch {
        manifest: Box<SignedManifest>,
        data_dir: PathBuf,
    },
    Join {
        ticket: Ticket,
        data_dir: Option<PathBuf>,
    },
    Resume,
}

/// Runs until `stop` is true.
pub async fn run(
    _options: DaemonOptions,
    _stop: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<()> {
    anyhow::bail!("this build has no event loop")
}
