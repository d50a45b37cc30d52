//! From a role to a run that can be driven: its manifest and its data, from this machine's disk or from the launcher.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{RunId, SignedManifest};
use gradmesh_protocol::ticket::Ticket;
use gradmesh_protocol::wire::{Request, Response};
use gradmesh_trainer::data::DataManifest;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::fetch::{self, DataFetchError};
use super::{Role, peer_id, rpc};
use crate::net::bulk::{Bulk, PeerSource};
use crate::net::control::{ControlEvent, ControlHandle};
use crate::state_dir::StateDir;
use crate::store::Store;

/// How long a joiner tries to reach the launcher before it tells the operator.
const REACH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Events kept for the driver while manifest and data are fetched; further ones of the kinds kept are few.
const SEEN_MAX: usize = 1024;

/// A run that can be driven.
pub(super) struct Prepared {
    pub(super) manifest: SignedManifest,
    pub(super) data: DataManifest,
    pub(super) data_dir: PathBuf,
    /// The launcher, to connect to; `None` for the launcher itself.
    pub(super) launcher: Option<(PeerId, Vec<Multiaddr>)>,
    pub(super) launches: bool,
}

/// What bootstrapping works with.
pub(super) struct Bootstrap {
    pub(super) control: ControlHandle,
    pub(super) bulk: Bulk,
    pub(super) events: mpsc::Receiver<ControlEvent>,
    /// Events that the driver has to see later.
    pub(super) seen: Vec<ControlEvent>,
    pub(super) store: Arc<Store>,
    pub(super) state_dir: StateDir,
}

impl Bootstrap {
    /// Gets manifest and data of the role's run.
    pub(super) async fn prepare(&mut self, role: Role) -> anyhow::Result<Prepared> {
        match role {
            Role::Launch { manifest, data_dir } => {
                self.store.set_manifest(&manifest)?;
                self.store.set_data_dir(&data_dir)?;
                self.local(*manifest, data_dir, None, true).await
            }
            Role::Join { ticket, data_dir } => self.join(&ticket, data_dir).await,
            Role::Resume => {
                let Some(manifest) = self.store.manifest()? else {
                    bail!(
                        "state directory {} holds no run: join with the ticket that `gradmesh launch` printed",
                        self.state_dir.path().display()
                    );
                };
                let data_dir = self.store.data_dir()?;
                let data_dir = data_dir.unwrap_or_else(|| self.fetched_data_dir());
                let addresses = self.store.launcher_addresses()?;
                let launcher = peer_id(&manifest.manifest.launcher)
                    .filter(|launcher| *launcher != self.control.peer_id())
                    .map(|launcher| (launcher, parse(&addresses)));
                let launches = launcher.is_none();
                self.local(manifest, data_dir, launcher, launches).await
            }
        }
    }

    fn fetched_data_dir(&self) -> PathBuf {
        self.state_dir.path().join("data")
    }

    /// A run whose manifest and data are on this machine.
    async fn local(
        &mut self,
        manifest: SignedManifest,
        data_dir: PathBuf,
        launcher: Option<(PeerId, Vec<Multiaddr>)>,
        launches: bool,
    ) -> anyhow::Result<Prepared> {
        let wanted = manifest.manifest.data.root;
        let data = scan(data_dir.clone()).await?;
        if Hash(data.root()) != wanted {
            bail!(
                "the data in {} is not what the run names (root {}, wanted {wanted}): restore it, or name the right \
                 directory with --data DIR",
                data_dir.display(),
                Hash(data.root()),
            );
        }
        Ok(Prepared {
            manifest,
            data,
            data_dir,
            launcher,
            launches,
        })
    }

    async fn join(
        &mut self,
        ticket: &Ticket,
        data_dir: Option<PathBuf>,
    ) -> anyhow::Result<Prepared> {
        let launcher = peer_id(&ticket.launcher).context("the ticket names no usable launcher")?;
        if launcher == self.control.peer_id() {
            bail!(
                "this peer launched the run: start it again with `gradmesh launch`, not with its own ticket"
            );
        }
        let addresses = parse(&ticket.addresses);
        self.store.set_launcher_addresses(&ticket.addresses)?;
        self.control.keep(launcher, addresses.clone()).await?;
        let stored = self.store.manifest()?;
        let manifest = match stored.filter(|m| m.manifest.run() == ticket.run) {
            Some(manifest) => manifest,
            None => {
                self.reach(launcher, ticket).await?;
                let response = self.ask(launcher, ticket.run, &Request::Manifest).await;
                let response = response.context("the launcher did not give the manifest")?;
                let Response::Manifest(manifest) = response else {
                    bail!("the launcher did not give the manifest, but something else");
                };
                // Once more through its bytes: run, signature and every range are checked there.
                SignedManifest::decode(&manifest.encode(), Some(ticket.run))?
            }
        };
        self.store.set_manifest(&manifest)?;
        let launcher_addresses = Some((launcher, addresses));
        if let Some(data_dir) = data_dir {
            self.store.set_data_dir(&data_dir)?;
            return self
                .local(manifest, data_dir, launcher_addresses, false)
                .await;
        }
        let data_dir = self.fetched_data_dir();
        if let Ok(data) = scan(data_dir.clone()).await
            && Hash(data.root()) == manifest.manifest.data.root
        {
            return self
                .local(manifest, data_dir, launcher_addresses, false)
                .await;
        }
        self.reach(launcher, ticket).await?;
        let data = self
            .fetch_data(ticket.launcher, launcher, &manifest, &data_dir)
            .await?;
        Ok(Prepared {
            manifest,
            data,
            data_dir,
            launcher: launcher_addresses,
            launches: false,
        })
    }

    async fn fetch_data(
        &mut self,
        key: PeerKey,
        launcher: PeerId,
        manifest: &SignedManifest,
        dir: &std::path::Path,
    ) -> anyhow::Result<DataManifest> {
        let run = manifest.manifest.run();
        let response = self.ask(launcher, run, &Request::Data).await;
        let bytes = match response.map_err(DataFetchError::Manifest)? {
            Response::Data(bytes) => bytes,
            _ => return Err(DataFetchError::Manifest(rpc::RpcError::Unexpected).into()),
        };
        let data = DataManifest::from_bytes(&bytes)?;
        if Hash(data.root()) != manifest.manifest.data.root {
            return Err(DataFetchError::OtherData.into());
        }
        let response = self.ask(launcher, run, &Request::Contact).await;
        let Response::Contact(contact) = response.map_err(DataFetchError::Manifest)? else {
            return Err(DataFetchError::Manifest(rpc::RpcError::Unexpected).into());
        };
        let Some(addr) = super::driver::bulk_address(&contact, self.address_of(launcher)) else {
            bail!(
                "launcher {key} does not say where its bulk plane listens; ask it for a new ticket"
            );
        };
        let source = PeerSource {
            peer: launcher,
            addr,
        };
        let files = data.files().len();
        tracing::info!(files, bytes = data.total_bytes(), "fetching the run's data");
        fetch::data(&self.bulk, &data, dir, source).await?;
        Ok(data)
    }

    /// The address from which `peer` is connected.
    fn address_of(&self, peer: PeerId) -> Option<Multiaddr> {
        self.seen.iter().rev().find_map(|event| match event {
            ControlEvent::PeerConnected { peer: of, addr } if *of == peer => Some(addr.clone()),
            _ => None,
        })
    }

    /// Waits until the launcher is connected.
    async fn reach(&mut self, launcher: PeerId, ticket: &Ticket) -> anyhow::Result<()> {
        let deadline = Instant::now() + REACH_TIMEOUT;
        while !self.control.connected().await?.contains(&launcher) {
            let pause = (Instant::now() + Duration::from_millis(200)).min(deadline);
            while let Ok(Some(event)) = timeout_at(pause, self.events.recv()).await {
                self.note(event).await;
            }
            if Instant::now() >= deadline {
                bail!(
                    "the launcher does not answer at {} after {} s: is it running, and are its UDP ports open to this \
                     machine?",
                    ticket.addresses.join(", "),
                    REACH_TIMEOUT.as_secs()
                );
            }
        }
        Ok(())
    }

    /// Asks the launcher and waits, keeping other events for the driver.
    async fn ask(
        &mut self,
        peer: PeerId,
        run: RunId,
        request: &Request,
    ) -> Result<Response, rpc::RpcError> {
        let sent = self
            .control
            .request(peer, Bytes::from(request.encode(&run)))
            .await?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some(ControlEvent::Response { id, result, .. })) if id == sent => {
                    return rpc::read(result);
                }
                Ok(Some(event)) => self.note(event).await,
                Ok(None) => return Err(rpc::RpcError::Stopped),
                Err(_) => return Err(crate::net::control::RequestFailure::Timeout.into()),
            }
        }
    }

    /// Keeps what the driver has to know; answers nobody yet.
    async fn note(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::Request { token, .. } => {
                let refused = Response::Refused("still starting".into()).encode();
                // The asker has its timeout.
                let _ = self.control.respond(token, refused.into()).await;
            }
            ControlEvent::Response { .. } | ControlEvent::Gossip(_) => {}
            event @ (ControlEvent::Listening(_)
            | ControlEvent::PeerConnected { .. }
            | ControlEvent::PeerDisconnected { .. }
            | ControlEvent::PeerAddresses { .. }
            | ControlEvent::PeerSubscribed { .. }
            | ControlEvent::PeerRtt { .. }) => {
                if self.seen.len() < SEEN_MAX {
                    self.seen.push(event);
                }
            }
        }
    }
}

async fn scan(dir: PathBuf) -> anyhow::Result<DataManifest> {
    tracing::info!(data = %dir.display(), "checking the data");
    let scanned = tokio::task::spawn_blocking(move || DataManifest::scan(&dir)).await?;
    Ok(scanned?)
}

/// The addresses of a ticket without the peer id at their end.
fn parse(addresses: &[String]) -> Vec<Multiaddr> {
    let parsed = addresses
        .iter()
        .filter_map(|text| text.parse::<Multiaddr>().ok());
    parsed
        .map(|address| {
            let without_peer = address
                .iter()
                .filter(|part| !matches!(part, Protocol::P2p(_)));
            without_peer.collect()
        })
        .collect()
}
