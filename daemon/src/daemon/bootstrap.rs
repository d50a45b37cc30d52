//! From a role to a run that can be driven: its manifest and its data, from this machine's disk or from other peers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::{Chain, RoundId, RunId, SignedManifest};
use gradmesh_protocol::wire::{Request, Response};
use gradmesh_trainer::data::DataManifest;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::address::{bulk_address, udp_address};
use super::fetch::{self, DataFetchError};
use super::{Entry, EntryPeer, Role, rpc};
use crate::net::bulk::{Bulk, PeerSource};
use crate::net::control::{ControlEvent, ControlHandle};
use crate::state_dir::StateDir;
use crate::store::Store;
use crate::subnet::SubnetLink;

/// How long a joiner tries to reach anybody before it tells the operator.
const REACH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the control plane may take to listen before the driver is left to say so.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a newcomer to a subnet waits until the others serve it. A guess: a snapshot of 25 blocks of 12 s, twice.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two tries.
const ADMISSION_PAUSE: Duration = Duration::from_secs(2);
/// Events kept for the driver while manifest and data are fetched; further ones of the kinds kept are few.
const SEEN_MAX: usize = 1024;

/// A run whose manifest is known.
pub(super) struct Found {
    pub(super) manifest: SignedManifest,
    /// Where the data lie if the operator said so.
    data_dir: Option<PathBuf>,
    entry: Vec<EntryPeer>,
    attested: Option<(RoundId, Hash)>,
    pub(super) launches: bool,
}

/// A run that can be driven.
pub(super) struct Prepared {
    pub(super) manifest: SignedManifest,
    pub(super) data: DataManifest,
    pub(super) data_dir: PathBuf,
    /// Peers to connect to; none for a launcher, which the others come to.
    pub(super) entry: Vec<EntryPeer>,
    /// A state that the chain says this run passes through.
    pub(super) attested: Option<(RoundId, Hash)>,
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
    /// Gets the manifest of the role's run.
    pub(super) async fn find(&mut self, role: Role) -> anyhow::Result<Found> {
        match role {
            Role::Launch { manifest, data_dir } => {
                self.store.set_manifest(&manifest)?;
                self.store.set_data_dir(&data_dir)?;
                Ok(Found {
                    manifest: *manifest,
                    data_dir: Some(data_dir),
                    entry: Vec::new(),
                    attested: None,
                    launches: true,
                })
            }
            Role::Join { entry, data_dir } => self.join(entry, data_dir).await,
            Role::Resume => {
                let Some(manifest) = self.store.manifest()? else {
                    bail!(
                        "state directory {} holds no run: join with the ticket that `gradmesh launch` printed",
                        self.state_dir.path().display()
                    );
                };
                let data_dir = self.store.data_dir()?;
                let launcher = EntryPeer {
                    key: manifest.manifest.launcher,
                    addresses: parse(&self.store.launcher_addresses()?),
                };
                let launches = launcher.id() == Some(self.control.peer_id());
                Ok(Found {
                    manifest,
                    data_dir: Some(data_dir.unwrap_or_else(|| self.fetched_data_dir())),
                    entry: if launches { Vec::new() } else { vec![launcher] },
                    attested: None,
                    launches,
                })
            }
        }
    }

    async fn join(&mut self, entry: Entry, data_dir: Option<PathBuf>) -> anyhow::Result<Found> {
        let Entry {
            run,
            peers,
            attested,
        } = entry;
        for peer in &peers {
            let id = peer.id();
            let id = id.with_context(|| format!("{} is no usable peer key", peer.key))?;
            if id == self.control.peer_id() {
                bail!(
                    "this peer launched the run: start it again with `gradmesh launch`, not with its own ticket"
                );
            }
            self.control.keep(id, peer.addresses.clone()).await?;
        }
        let stored = self.store.manifest()?;
        let manifest = match stored.filter(|m| m.manifest.run() == run) {
            Some(manifest) => manifest,
            None => {
                let asked = self.ask_any(&peers, run, &Request::Manifest, "the manifest");
                let (_, response) = asked.await?;
                let Response::Manifest(manifest) = response else {
                    bail!("asked for the manifest, a peer gave something else");
                };
                // Once more through its bytes: run, signature and every range are checked there.
                SignedManifest::decode(&manifest.encode(), Some(run))?
            }
        };
        self.store.set_manifest(&manifest)?;
        if let Some(data_dir) = &data_dir {
            self.store.set_data_dir(data_dir)?;
        }
        Ok(Found {
            manifest,
            data_dir,
            entry: peers,
            attested,
            launches: false,
        })
    }

    /// Gets the data of a run: from the directory that the operator named, or from what was fetched before, or from
    /// other peers.
    pub(super) async fn data(&mut self, found: Found) -> anyhow::Result<Prepared> {
        let wanted = found.manifest.manifest.data.root;
        let (data, data_dir) = match found.data_dir {
            Some(data_dir) => {
                let data = scan(data_dir.clone()).await?;
                if Hash(data.root()) != wanted {
                    bail!(
                        "the data in {} is not what the run names (root {}, wanted {wanted}): restore it, or name the \
                         right directory with --data DIR",
                        data_dir.display(),
                        Hash(data.root()),
                    );
                }
                (data, data_dir)
            }
            None => {
                let data_dir = self.fetched_data_dir();
                match scan(data_dir.clone()).await {
                    Ok(data) if Hash(data.root()) == wanted => (data, data_dir),
                    Ok(_) | Err(_) => {
                        let fetched = self.fetch_when_admitted(&found.entry, &found.manifest);
                        (fetched.await?, data_dir)
                    }
                }
            }
        };
        Ok(Prepared {
            manifest: found.manifest,
            data,
            data_dir,
            entry: found.entry,
            attested: found.attested,
            launches: found.launches,
        })
    }

    /// Has the chain told where the control plane listens, as far as it is known; the driver tells the rest.
    pub(super) async fn publish(&mut self, subnet: &SubnetLink) {
        // Listening begins at once; give it the moment that it takes.
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        loop {
            let listening = self.seen.iter().filter_map(|event| match event {
                ControlEvent::Listening(address) => udp_address(address),
                _ => None,
            });
            let addresses: Vec<_> = listening.collect();
            for address in &addresses {
                subnet.listening(*address);
            }
            if !addresses.is_empty() {
                return;
            }
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => self.note(event).await,
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn fetched_data_dir(&self) -> PathBuf {
        self.state_dir.path().join("data")
    }

    /// Fetches the data. In a run on a subnet the others serve a newcomer once they have seen its registration, which
    /// takes a few blocks.
    async fn fetch_when_admitted(
        &mut self,
        peers: &[EntryPeer],
        manifest: &SignedManifest,
    ) -> anyhow::Result<DataManifest> {
        let on_chain = manifest.manifest.chain != Chain::None;
        let deadline = Instant::now() + ADMISSION_TIMEOUT;
        loop {
            let error = match self.fetch_data(peers, manifest).await {
                Err(error) if on_chain && Instant::now() < deadline => error,
                fetched => return fetched,
            };
            tracing::info!(%error, "not served yet; a new registration takes some blocks to be seen");
            let pause = Instant::now() + ADMISSION_PAUSE;
            while let Ok(Some(event)) = timeout_at(pause, self.events.recv()).await {
                self.note(event).await;
            }
        }
    }

    async fn fetch_data(
        &mut self,
        peers: &[EntryPeer],
        manifest: &SignedManifest,
    ) -> anyhow::Result<DataManifest> {
        let run = manifest.manifest.run();
        let asked = self.ask_any(peers, run, &Request::Data, "the list of data files");
        let (source, response) = asked.await?;
        let bytes = match response {
            Response::Data(bytes) => bytes,
            _ => return Err(DataFetchError::Manifest(rpc::RpcError::Unexpected).into()),
        };
        let data = DataManifest::from_bytes(&bytes)?;
        if Hash(data.root()) != manifest.manifest.data.root {
            return Err(DataFetchError::OtherData.into());
        }
        let response = self.ask(source, run, &Request::Contact).await;
        let Response::Contact(contact) = response.map_err(DataFetchError::Manifest)? else {
            return Err(DataFetchError::Manifest(rpc::RpcError::Unexpected).into());
        };
        let Some(addr) = bulk_address(&contact, self.address_of(source)) else {
            bail!("peer {source} does not say where its bulk plane listens; try again");
        };
        let source = PeerSource { peer: source, addr };
        let files = data.files().len();
        tracing::info!(files, bytes = data.total_bytes(), "fetching the run's data");
        fetch::data(&self.bulk, &data, &self.fetched_data_dir(), source).await?;
        Ok(data)
    }

    /// The first answer of `peers`, in their order among those that are connected, and who gave it.
    async fn ask_any(
        &mut self,
        peers: &[EntryPeer],
        run: RunId,
        request: &Request,
        what: &str,
    ) -> anyhow::Result<(PeerId, Response)> {
        let reached = self.reach(peers).await?;
        let mut failed = Vec::new();
        for peer in reached {
            match self.ask(peer, run, request).await {
                Ok(response) => return Ok((peer, response)),
                Err(error) => failed.push(format!("{peer}: {error}")),
            }
        }
        bail!("nobody gave {what}: {}", failed.join("; "));
    }

    /// The address from which `peer` is connected.
    fn address_of(&self, peer: PeerId) -> Option<Multiaddr> {
        self.seen.iter().rev().find_map(|event| match event {
            ControlEvent::PeerConnected { peer: of, addr } if *of == peer => Some(addr.clone()),
            _ => None,
        })
    }

    /// Waits until at least one of `peers` is connected; all that are, in their order.
    async fn reach(&mut self, peers: &[EntryPeer]) -> anyhow::Result<Vec<PeerId>> {
        let deadline = Instant::now() + REACH_TIMEOUT;
        loop {
            let connected = self.control.connected().await?;
            let reached: Vec<PeerId> = peers
                .iter()
                .filter_map(EntryPeer::id)
                .filter(|id| connected.contains(id))
                .collect();
            if !reached.is_empty() {
                return Ok(reached);
            }
            if Instant::now() >= deadline {
                let addresses: Vec<String> = peers
                    .iter()
                    .flat_map(|peer| &peer.addresses)
                    .map(Multiaddr::to_string)
                    .collect();
                bail!(
                    "nobody answers at {} after {} s: is a daemon of the run running there, and are its UDP ports open to \
                     this machine?",
                    addresses.join(", "),
                    REACH_TIMEOUT.as_secs()
                );
            }
            let pause = (Instant::now() + Duration::from_millis(200)).min(deadline);
            while let Ok(Some(event)) = timeout_at(pause, self.events.recv()).await {
                self.note(event).await;
            }
        }
    }

    /// Asks `peer` and waits, keeping other events for the driver.
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
            | ControlEvent::NotListening(_)
            | ControlEvent::PeerDirect { .. }
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

/// Multiaddresses without the peer id at their end; what is none is left out.
pub(super) fn parse(addresses: &[String]) -> Vec<Multiaddr> {
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
