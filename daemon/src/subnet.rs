//! The daemon's side of the chain, in a run that lives on a subnet.
//!
//! | task | what |
//! |---|---|
//! | `follow` | finalized blocks: registry snapshots for the node, peers to connect to, figures for people |
//! | `serve` | publishes where this daemon listens, with its peer key: that binds the peer to the hotkey |
//! | `attest` | sends what the store has queued, in order, once each |
//! | `pay` | turns the scores of the newest epoch into weights when the chain takes them |
//!
//! Rule `training-first`: nothing here ever holds up a round. While the chain is away snapshots stop, so that nobody
//! joins or is removed; attestations wait in the store, the newest scores in memory (they follow from the store), and all
//! of it goes on by itself when the chain is back.
//!
//! Decides nothing about the run: what a snapshot means is the node's business.

mod attest;
pub mod concentration;
pub mod discovery;
mod follow;
mod pay;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context;
use gradmesh_chain::types::BlockRef;
use gradmesh_chain::{AccountId, Advice, ChainError, Client, Key, Settings};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{self, Manifest, RoundId, RunId};
use gradmesh_protocol::registry::Registry;
use gradmesh_protocol::score::{EpochId, ScoreTable};
use libp2p::PeerId;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::daemon::EntryPeer;
use crate::state_dir::StateDir;
use crate::status::{ChainStatus, StatusHandle};
use crate::store::{QueuedAttestation, Store};

/// Snapshots on their way to the driver. When it does not keep up, the follower waits: blocks are not lost by that.
const EVENTS_MAX: usize = 16;
/// The first pause after a failure; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause: a chain that is back is used within a few blocks of twelve seconds.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// As whom, and through which endpoints, a daemon stands on the chain.
pub struct Access {
    /// The endpoints.
    pub settings: Settings,
    /// The hotkey that signs.
    pub hotkey: Key,
    /// The address to publish; where the control plane listens if `None`.
    pub axon: Option<SocketAddr>,
}

/// What the driver is told.
pub(crate) enum Event {
    /// A finalized block at which the registry is read.
    Snapshot {
        /// Who may take part.
        registry: Registry,
        /// Registered peers that say where they listen.
        peers: Vec<EntryPeer>,
        /// Peers whose hotkey may set weights.
        validators: BTreeSet<PeerKey>,
    },
}

/// Who may be served: the registered peers and the members of the roster, which may have lost their registration a few
/// rounds ago. All may pass until the first snapshot is there. Clones share one list.
#[derive(Clone, Default)]
pub(crate) struct Gate {
    known: Arc<RwLock<Known>>,
}

#[derive(Default)]
struct Known {
    registered: Option<BTreeSet<PeerId>>,
    members: BTreeSet<PeerId>,
}

impl Gate {
    /// Whether `peer` may be served.
    pub(crate) fn admits(&self, peer: &PeerId) -> bool {
        let known = self.known.read().unwrap_or_else(|e| e.into_inner());
        let registered = known.registered.as_ref();
        registered.is_none_or(|peers| peers.contains(peer)) || known.members.contains(peer)
    }

    /// The newest snapshot registers `peers`.
    fn set_registered(&self, peers: BTreeSet<PeerId>) {
        let mut known = self.known.write().unwrap_or_else(|e| e.into_inner());
        known.registered = Some(peers);
    }

    /// The roster has `peers`.
    pub(crate) fn set_members(&self, peers: BTreeSet<PeerId>) {
        let mut known = self.known.write().unwrap_or_else(|e| e.into_inner());
        known.members = peers;
    }
}

/// Which hotkey each peer says it works for; signed by the peer, as all it says. Clones share one table.
#[derive(Clone, Default)]
pub(crate) struct Claims {
    hotkeys: Arc<RwLock<BTreeMap<PeerKey, AccountId>>>,
}

/// Claims kept: as many as a registry has peers.
const CLAIMS_MAX: usize = gradmesh_protocol::registry::ENTRIES_MAX;

impl Claims {
    /// Notes what `peer` says of itself. When full, newcomers are not noted: a peer that only one hotkey names needs no
    /// claim.
    pub(crate) fn note(&self, peer: PeerKey, hotkey: AccountId) {
        let mut hotkeys = self.hotkeys.write().unwrap_or_else(|e| e.into_inner());
        if hotkeys.len() < CLAIMS_MAX || hotkeys.contains_key(&peer) {
            hotkeys.insert(peer, hotkey);
        }
    }

    fn of(&self, peer: &PeerKey) -> Option<AccountId> {
        let hotkeys = self.hotkeys.read().unwrap_or_else(|e| e.into_inner());
        hotkeys.get(peer).copied()
    }
}

/// What is to become of an epoch's scores: weights.
#[derive(Debug)]
pub(crate) struct EpochShares {
    /// The epoch.
    pub(crate) epoch: EpochId,
    /// What each peer is to be paid, in any unit.
    pub(crate) shares: Vec<(PeerKey, u64)>,
}

/// An epoch as a validator found it.
#[derive(Debug)]
pub(crate) struct AuditedEpoch {
    /// Its last round.
    pub(crate) last: RoundId,
    /// The state root after it.
    pub(crate) state_root: Hash,
    /// Hash of the scores.
    pub(crate) scores: Hash,
    /// Root over evidence, scores and state.
    pub(crate) evidence_root: Hash,
    /// What each peer is to be paid.
    pub(crate) paid: EpochShares,
}

/// What the tasks share.
struct Shared {
    access: Access,
    subnet: manifest::Subnet,
    manifest: Arc<Manifest>,
    run: RunId,
    me: PeerKey,
    store: Arc<Store>,
    state_dir: StateDir,
    status: StatusHandle,
    gate: Gate,
    claims: Claims,
    events: mpsc::Sender<Event>,
    /// Told when the store has something new to attest.
    queued: Notify,
    scores: watch::Sender<Option<Arc<EpochShares>>>,
    listening: watch::Sender<Option<SocketAddr>>,
}

/// What [`SubnetLink::start`] needs.
pub(crate) struct Parts {
    pub(crate) access: Access,
    pub(crate) subnet: manifest::Subnet,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) me: PeerKey,
    pub(crate) store: Arc<Store>,
    pub(crate) state_dir: StateDir,
    pub(crate) status: StatusHandle,
    pub(crate) gate: Gate,
}

/// The driver's end of the tasks; they end when it is dropped.
pub(crate) struct SubnetLink {
    shared: Arc<Shared>,
    events: mpsc::Receiver<Event>,
    _tasks: JoinSet<()>,
}

impl SubnetLink {
    /// Starts the tasks; the chain need not answer yet.
    pub(crate) fn start(parts: Parts) -> SubnetLink {
        let (events, received) = mpsc::channel(EVENTS_MAX);
        let hotkey = parts.access.hotkey.account();
        parts.status.set_chain(ChainStatus {
            netuid: parts.subnet.netuid,
            hotkey: hotkey.to_string(),
            ..ChainStatus::default()
        });
        let claims = Claims::default();
        claims.note(parts.me, hotkey);
        let shared = Arc::new(Shared {
            run: parts.manifest.run(),
            access: parts.access,
            subnet: parts.subnet,
            manifest: parts.manifest,
            me: parts.me,
            store: parts.store,
            state_dir: parts.state_dir,
            status: parts.status,
            gate: parts.gate,
            claims,
            events,
            queued: Notify::new(),
            scores: watch::Sender::new(None),
            listening: watch::Sender::new(None),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(run(Arc::clone(&shared)));
        SubnetLink {
            shared,
            events: received,
            _tasks: tasks,
        }
    }

    /// The next thing that the driver has to know.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The control plane listens at `address`.
    pub(crate) fn listening(&self, address: SocketAddr) {
        let axon = self.shared.access.axon.unwrap_or(address);
        self.shared.listening.send_if_modified(|known| {
            let better = known.is_none_or(|known| reach(&axon) > reach(&known));
            if better {
                *known = Some(axon);
            }
            better
        });
    }

    /// The hotkey that this daemon works for.
    pub(crate) fn hotkey(&self) -> AccountId {
        self.shared.access.hotkey.account()
    }

    /// What other peers say of their hotkeys.
    pub(crate) fn claims(&self) -> &Claims {
        &self.shared.claims
    }

    /// Attests the start of the run, so that others find it.
    ///
    /// # Errors
    /// What the store said.
    pub(crate) fn launched(&self, genesis_root: Hash) -> anyhow::Result<()> {
        attest::queue_start(&self.shared, genesis_root)
    }

    /// After a restart at the state `applied`: the newest epoch that had ended by then is attested, unless it was, and its
    /// scores become weights. Both may have been cut off by the restart.
    ///
    /// # Errors
    /// What the store or the receipt's file said.
    pub(crate) fn resumed(&self, applied: (RoundId, Hash)) -> anyhow::Result<()> {
        let shared = &self.shared;
        let mut rounds = (1..=applied.0.0).rev().map(RoundId);
        let Some(last) = rounds.find(|round| shared.manifest.ends_epoch(*round)) else {
            return Ok(());
        };
        let root = match shared.store.decisions(last.next(), 1)?.first() {
            Some(next) => next.decision.state_root,
            None if last == applied.0 => applied.1,
            None => return Ok(()),
        };
        let checkpoint = shared.state_dir.checkpoint(last.0);
        match AttestationReceipt::read(&checkpoint)? {
            Some(_) => self.scored(attest::scores_until(shared, last)?),
            None => self.epoch_ended(last, root)?,
        }
        Ok(())
    }

    /// The epoch that ends with `round` ended with `state_root`: it is attested, and its scores become weights.
    ///
    /// # Errors
    /// What the store said.
    pub(crate) fn epoch_ended(&self, round: RoundId, state_root: Hash) -> anyhow::Result<()> {
        self.scored(attest::queue_epoch(&self.shared, round, state_root)?);
        Ok(())
    }

    /// Scores that decisions alone give become weights where nobody audits; where somebody does, only what was audited is paid.
    fn scored(&self, table: ScoreTable) {
        if self.shared.manifest.audit.is_none() {
            self.pay(EpochShares {
                epoch: table.epoch,
                shares: table.shares().collect(),
            });
        }
    }

    fn pay(&self, scores: EpochShares) {
        self.shared.scores.send_replace(Some(Arc::new(scores)));
    }

    /// A validator is done with an epoch: it is attested, and its scores become weights.
    ///
    /// # Errors
    /// What the store said.
    pub(crate) fn epoch_audited(&self, audited: AuditedEpoch) -> anyhow::Result<()> {
        let queued = QueuedAttestation {
            epoch: audited.paid.epoch.0,
            round: audited.last.0,
            state_root: audited.state_root.0,
            scores: audited.scores.0,
            evidence_root: audited.evidence_root.0,
        };
        attest::queue(&self.shared, &queued)?;
        self.pay(audited.paid);
        Ok(())
    }
}

/// How far an address can be reached from: of several, the farthest is published.
fn reach(address: &SocketAddr) -> u8 {
    match address.ip() {
        ip if ip.is_unspecified() || ip.is_multicast() => 0,
        ip if ip.is_loopback() => 1,
        std::net::IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => 2,
        std::net::IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => 2,
        _ => 3,
    }
}

async fn run(shared: Arc<Shared>) {
    let Some(client) = connect(&shared).await else {
        return;
    };
    tokio::join!(
        follow::run(&shared, &client),
        serve::run(&shared, &client),
        attest::run(&shared, &client),
        pay::run(&shared, &client),
    );
}

/// Connects, for as long as it takes; `None` when the endpoints serve another chain than the run's.
async fn connect(shared: &Shared) -> Option<Client> {
    let mut pause = Pause::new();
    loop {
        match Client::connect(shared.access.settings.clone()).await {
            Ok(client) if Hash(client.genesis()) != shared.subnet.genesis => {
                let problem = format!(
                    "{} serves the chain with genesis {}, the run lives on {}: name an endpoint of that one with --chain",
                    client.endpoint(),
                    Hash(client.genesis()),
                    shared.subnet.genesis
                );
                tracing::error!(problem);
                shared.problem("connect", Some(problem));
                return None;
            }
            Ok(client) => {
                shared.problem("connect", None);
                shared
                    .status
                    .change_chain(|chain| chain.endpoint = client.endpoint());
                return Some(client);
            }
            Err(error) => shared.failed("connect", &error),
        }
        pause.wait().await;
    }
}

impl Shared {
    /// Says what is wrong with one task, or that it is over.
    fn problem(&self, task: &'static str, problem: Option<String>) {
        self.status.change_chain(|chain| match problem {
            Some(problem) => drop(chain.problems.insert(task.to_owned(), problem)),
            None => drop(chain.problems.remove(task)),
        });
    }

    /// Says that a task failed and what to do; logs it once.
    fn failed(&self, task: &'static str, error: &ChainError) {
        let problem = format!("{error}: {}", error.what_to_do());
        let mut known = false;
        self.status.change_chain(|chain| {
            known = chain
                .problems
                .insert(task.to_owned(), problem.clone())
                .as_ref()
                == Some(&problem);
        });
        if !known {
            tracing::warn!(task, advice = ?error.advice(), problem, "chain");
        }
    }
}

/// Pauses between attempts that grow from [`PAUSE_MIN`] to [`PAUSE_MAX`].
struct Pause {
    next: Duration,
}

impl Pause {
    fn new() -> Pause {
        Pause { next: PAUSE_MIN }
    }

    fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
    }

    /// Waits as long as `error` is worth: what nobody can mend by waiting is tried again rarely.
    async fn wait_after(&mut self, error: &ChainError) {
        if error.advice() != Advice::Retry {
            self.next = PAUSE_MAX;
        }
        self.wait().await;
    }
}

/// Where an attestation stands on chain; content of the file `attestation.json` beside a checkpoint's weights.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationReceipt {
    /// Hash of the chain's genesis block.
    pub genesis: Hash,
    /// The subnet.
    pub netuid: u16,
    /// The attester, ss58.
    pub hotkey: String,
    /// The run.
    pub run: Hash,
    /// The epoch.
    pub epoch: u64,
    /// Rounds applied in the checkpoint.
    pub round: u64,
    /// Its state root.
    pub state_root: Hash,
    /// Hash of the epoch's score table.
    pub scores: Hash,
    /// The finalized block that holds the attestation.
    pub block_number: u64,
    /// Its hash.
    pub block_hash: Hash,
    /// The place of the extrinsic in it.
    pub extrinsic_index: u32,
}

impl AttestationReceipt {
    /// The longest that is read: ten times one of ours.
    const BYTES_MAX: u64 = 8192;

    /// Where it lies in a checkpoint.
    pub fn path(checkpoint: &Path) -> PathBuf {
        checkpoint.join("attestation.json")
    }

    /// Writes it into `checkpoint`, in the place of one that is there.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn write(&self, checkpoint: &Path) -> std::io::Result<()> {
        let json = serde_json::to_string_pretty(self).expect("plain fields make JSON");
        let path = AttestationReceipt::path(checkpoint);
        let new = path.with_extension("json.new");
        std::fs::write(&new, json + "\n")?;
        std::fs::rename(new, path)
    }

    /// The receipt in `checkpoint`; `None` if there is none.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(checkpoint: &Path) -> anyhow::Result<Option<AttestationReceipt>> {
        let path = AttestationReceipt::path(checkpoint);
        let file = match std::fs::File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(|| path.display().to_string())?,
        };
        let mut text = String::new();
        let read = file
            .take(AttestationReceipt::BYTES_MAX)
            .read_to_string(&mut text);
        read.with_context(|| path.display().to_string())?;
        let receipt = serde_json::from_str(&text);
        let what = || {
            format!(
                "{}: no receipt of an attestation; delete it",
                path.display()
            )
        };
        receipt.with_context(what).map(Some)
    }

    /// The block of the receipt.
    pub fn block(&self) -> BlockRef {
        BlockRef {
            number: self.block_number,
            hash: self.block_hash.0,
        }
    }
}

#[cfg(test)]
mod tests;
