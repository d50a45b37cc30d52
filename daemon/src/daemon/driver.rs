//! The event loop: carries what happens to the node, and the node's effects to network, worker and disk.
//!
//! It decides nothing about the run. Effects are performed in the order in which the node gives them; what must be
//! durable is, before the next one is performed (rule `journal-first` of the agreement).

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use gradmesh_chain::AccountId;
use gradmesh_protocol::figures::RoundFigures;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::FrameId;
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{RoundId, RunId};
use gradmesh_protocol::node::{Activity, Effect, Input, Node, NodeConfig, Report, Restored};
use gradmesh_protocol::roster::Roster;
use gradmesh_protocol::ticket::Ticket;
use gradmesh_protocol::time::Time;
use gradmesh_protocol::wire::{
    Contact, DECISIONS_MAX, DecisionRecord, Decisions, Gossip, RESPONSE_BYTES_MAX, Request,
    Response,
};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::bootstrap::Prepared;
use super::fetch::{self, Contacts, FetchedState, StateError};
use super::meter::Meter;
use super::rpc::{Call, Caller, Rpc};
use super::{peer_id, peer_key};
use crate::blob::BlobStore;
use crate::net::bulk::{Bulk, FetchFailed};
use crate::net::control::{
    ControlEvent, ControlHandle, GossipMessage, PublishError, ResponseToken, Verdict,
};
use crate::net::traffic;
use crate::status::{
    CheckpointStatus, PeerStatus, Phase, RoundStatus, StatusHandle, Traffic, nats,
};
use crate::store::Store;
use crate::subnet::{self, Gate, SubnetLink};
use crate::worker::{Command, Event, Snapshot, Standing, Worker};

/// How often status and traffic figures are brought up to date.
const STATUS_PERIOD: Duration = Duration::from_millis(250);
/// How often a peer says where it listens, besides whenever somebody subscribes.
const CONTACT_PERIOD: Duration = Duration::from_secs(5);
/// How long a finished daemon with `exit_when_finished` serves those that are behind.
const FINISHED_GRACE: Duration = Duration::from_secs(20);
/// Bytes in front of each gossip message. Gossip drops what it has seen, but a header or vote that is sent again must
/// reach whoever missed it: the nonce makes it new.
const NONCE_BYTES: usize = 8;
/// Bytes of decisions in one answer: half of the longest response, and at least one record of the longest kind.
const RECORDS_BYTES_MAX: usize = RESPONSE_BYTES_MAX / 2;
/// Snapshots served at once: the newest one, and the one that somebody may still be fetching.
const SNAPSHOTS_SERVED: usize = 2;

/// Everything that a driver is made of.
pub(super) struct Parts {
    pub(super) keypair: Keypair,
    pub(super) prepared: Prepared,
    pub(super) control: ControlHandle,
    pub(super) bulk: Bulk,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) store: Arc<Store>,
    pub(super) worker: Worker,
    pub(super) worker_events: mpsc::Receiver<Event>,
    pub(super) standing: Standing,
    pub(super) status: StatusHandle,
    pub(super) events: mpsc::Receiver<ControlEvent>,
    pub(super) seen: Vec<ControlEvent>,
    /// In a run on a subnet: the chain.
    pub(super) subnet: Option<SubnetLink>,
    /// Who may be served.
    pub(super) gate: Gate,
    pub(super) exit_when_finished: bool,
}

/// What a background task brought.
enum Done {
    Frame {
        frame: FrameId,
        result: Result<Bytes, FetchFailed>,
    },
    State {
        round: RoundId,
        root: Hash,
        result: Result<FetchedState, StateError>,
    },
}

/// Why the loop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stopped,
    Left,
    Finished,
}

pub(super) struct Driver {
    node: Node,
    keypair: Keypair,
    me: PeerKey,
    run: RunId,
    topic: String,
    prepared: Prepared,
    control: ControlHandle,
    bulk: Bulk,
    blobs: Arc<BlobStore>,
    store: Arc<Store>,
    worker: Worker,
    worker_events: mpsc::Receiver<Event>,
    standing: Standing,
    status: StatusHandle,
    events: mpsc::Receiver<ControlEvent>,
    seen: Vec<ControlEvent>,
    subnet: Option<SubnetLink>,
    gate: Gate,
    exit_when_finished: bool,

    clock: Instant,
    inputs: VecDeque<Input>,
    nonce: u64,
    rpc: Rpc,
    caller: Caller,
    calls: mpsc::Receiver<Call>,
    tasks: JoinSet<Done>,
    contacts: Contacts,
    /// The address from which each peer is connected.
    connected: BTreeMap<PeerKey, Multiaddr>,
    listening: Vec<Multiaddr>,
    /// The newest last.
    snapshots: VecDeque<Snapshot>,
    frames_from: RoundId,
    /// The frames that are registered as files, by round; those that leave the disk are forgotten.
    frames_on_disk: BTreeMap<RoundId, Vec<Hash>>,
    meter: Meter,
    /// Bytes that had gone through the sockets when the first round began.
    before_rounds: Option<Traffic>,
    accepted: BTreeMap<PeerKey, (RoundId, u64)>,
    progress: Option<(RoundId, u32, u32, f32)>,
    contact_due: Instant,
    finished_at: Option<Instant>,
    end: Option<End>,
}

impl Driver {
    pub(super) fn new(parts: Parts) -> anyhow::Result<Driver> {
        let manifest = &parts.prepared.manifest.manifest;
        let run = manifest.run();
        let standing = parts.standing;
        let records: Vec<Arc<DecisionRecord>> = parts
            .store
            .all_decisions()?
            .into_iter()
            .map(Arc::new)
            .collect();
        let undecided = RoundId(records.len() as u64);
        let journal = parts.store.journal(undecided)?;
        let me = parts.keypair.public();
        let now = Instant::now();
        let mut roster = Roster::founding(manifest);
        for record in &records {
            let size = roster.len() as u32;
            roster = roster.after(&record.decision, manifest);
            show_round(
                &parts.status,
                record.decision.round,
                size,
                &RoundFigures::of(record),
            );
        }
        let node = Node::new(
            Time(0),
            NodeConfig {
                manifest: Arc::new(manifest.clone()),
                run,
                keypair: parts.keypair.clone(),
                shards: standing.check.shards(),
                frame_bytes_max: standing.check.frame_bytes_max(),
                genesis_root: standing.genesis_root,
            },
            Restored {
                records,
                applied: standing.applied,
                journal,
            },
        );
        if let Some((round, root)) = standing.applied {
            parts.status.set_applied(round.0, root, None);
        }
        let (caller, calls) = Caller::new();
        let mut driver = Driver {
            node,
            keypair: parts.keypair,
            me,
            run,
            topic: format!("gradmesh/{run}"),
            prepared: parts.prepared,
            control: parts.control,
            bulk: parts.bulk,
            blobs: parts.blobs,
            store: parts.store,
            worker: parts.worker,
            worker_events: parts.worker_events,
            status: parts.status,
            events: parts.events,
            seen: parts.seen,
            subnet: parts.subnet,
            gate: parts.gate,
            exit_when_finished: parts.exit_when_finished,
            clock: now,
            inputs: VecDeque::new(),
            nonce: 0,
            rpc: Rpc::default(),
            caller,
            calls,
            tasks: JoinSet::new(),
            contacts: Contacts::default(),
            connected: BTreeMap::new(),
            listening: Vec::new(),
            snapshots: VecDeque::new(),
            frames_from: RoundId::FOUNDING.next(),
            frames_on_disk: BTreeMap::new(),
            meter: Meter::default(),
            before_rounds: None,
            accepted: BTreeMap::new(),
            progress: None,
            contact_due: now,
            finished_at: None,
            end: None,
            standing,
        };
        driver.nonce = driver.fresh_nonce();
        driver.serve_what_is_here()?;
        Ok(driver)
    }

    /// Nonces of a restarted peer must differ from those before; a random start makes that sure enough.
    fn fresh_nonce(&self) -> u64 {
        let mut bytes = [0; NONCE_BYTES];
        match getrandom::fill(&mut bytes) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(error) => {
                tracing::warn!(%error, "no randomness for gossip nonces; repeats may be dropped for a minute");
                0
            }
        }
    }

    /// Registers data files, the newest state and the frames on disk with the bulk plane.
    fn serve_what_is_here(&mut self) -> anyhow::Result<()> {
        for file in self.prepared.data.files() {
            let path = self.prepared.data_dir.join(&file.path);
            self.blobs
                .register_file(file.blake3, path, 0, file.bytes)
                .context("the data has more files than can be served")?;
        }
        for (round, hash, length) in self.standing.disk.list_frames()? {
            self.serve_frame(round, hash, length)?;
        }
        if let Some(snapshot) = self.standing.snapshot.take() {
            self.serve_snapshot(snapshot)?;
        }
        Ok(())
    }

    fn serve_frame(&mut self, round: RoundId, hash: Hash, length: u64) -> anyhow::Result<()> {
        let path = self.standing.disk.frame_path(round, &hash);
        self.blobs.register_file(hash.0, path, 0, length)?;
        self.frames_on_disk.entry(round).or_default().push(hash);
        Ok(())
    }

    fn serve_snapshot(&mut self, snapshot: Snapshot) -> anyhow::Result<()> {
        let mut offset = 0;
        for (hash, length) in &snapshot.leaves {
            self.blobs
                .register_file(hash.0, snapshot.path.clone(), offset, *length)?;
            offset += length;
        }
        self.frames_from = snapshot.frames_from;
        let kept = self.frames_on_disk.split_off(&self.frames_from);
        for hash in std::mem::replace(&mut self.frames_on_disk, kept)
            .values()
            .flatten()
        {
            self.blobs.forget_range(&hash.0);
        }
        self.snapshots.push_back(snapshot);
        while self.snapshots.len() > SNAPSHOTS_SERVED {
            if let Some(old) = self.snapshots.pop_front() {
                self.blobs.forget_file(&old.path);
            }
        }
        Ok(())
    }

    fn now(&self) -> Time {
        let millis = self.clock.elapsed().as_millis();
        Time(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    // ---- The loop ------------------------------------------------------------------------------------------------

    /// Runs until the operator stops it, the run is left or finished, or something breaks.
    pub(super) async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
        mut leaves: mpsc::Receiver<()>,
    ) -> anyhow::Result<()> {
        self.control.subscribe(&self.topic).await?;
        for peer in self.prepared.entry.clone() {
            if let Some(id) = peer_id(&peer.key) {
                self.control.keep(id, peer.addresses).await?;
            }
        }
        for event in std::mem::take(&mut self.seen) {
            self.on_control(event).await?;
        }
        let mut status_tick = tokio::time::interval(STATUS_PERIOD);
        status_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let result = loop {
            if let Err(error) = self.advance().await {
                break Err(error);
            }
            if let Some(end) = self.end {
                break Ok(end);
            }
            let wake = self.node.poll_timeout().map(|(due, _)| due);
            let wake = wake.map_or(self.clock + Duration::from_secs(3600), |due| {
                self.clock + Duration::from_millis(due.0)
            });
            let step = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {
                    self.end = Some(End::Stopped);
                    Ok(())
                }
                Some(()) = leaves.recv() => {
                    self.inputs.push_back(Input::Leave);
                    Ok(())
                }
                Some(event) = self.events.recv() => self.on_control(event).await,
                Some(event) = self.worker_events.recv() => self.on_worker(event),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.on_done(done),
                    Err(error) => Err(anyhow::Error::from(error).context("a fetching task ended")),
                },
                Some(event) = next_of(&mut self.subnet) => self.on_subnet(event).await,
                Some(call) = self.calls.recv() => {
                    self.rpc.call(&self.control, &self.run, call).await;
                    Ok(())
                }
                _ = status_tick.tick() => self.on_tick().await,
                () = sleep_until(wake) => {
                    let now = self.now();
                    self.node.handle_timeout(now);
                    Ok(())
                }
            };
            if let Err(error) = step {
                break Err(error);
            }
        };
        match &result {
            Ok(end) => tracing::info!(?end, "gradmesh stops"),
            Err(error) => self.status.set_problem(Some(format!("{error:#}"))),
        }
        self.show();
        self.close().await;
        result.map(|_end| ())
    }

    async fn close(self) {
        let Driver {
            worker,
            worker_events,
            control,
            bulk,
            ..
        } = self;
        drop(worker_events);
        let worker = tokio::task::spawn_blocking(move || worker.shutdown());
        control.shutdown().await;
        bulk.shutdown().await;
        if let Err(error) = worker.await {
            tracing::warn!(%error, "the worker did not end well");
        }
    }

    /// Gives the node its inputs and performs its effects until neither are left.
    async fn advance(&mut self) -> anyhow::Result<()> {
        loop {
            while let Some(effect) = self.node.poll_effect() {
                self.perform(effect).await?;
            }
            let Some(input) = self.inputs.pop_front() else {
                return Ok(());
            };
            let now = self.now();
            self.node.handle(now, input);
            if let Activity::Deciding { .. } = self.node.view(now).activity {
                self.meter.deciding();
            }
        }
    }

    /// What the chain says.
    async fn on_subnet(&mut self, event: subnet::Event) -> anyhow::Result<()> {
        match event {
            subnet::Event::Snapshot { registry, peers } => {
                for peer in peers {
                    let unknown = !self.connected.contains_key(&peer.key);
                    if let Some(id) = peer_id(&peer.key).filter(|_| unknown)
                        && let Err(error) = self.control.keep(id, peer.addresses).await
                    {
                        tracing::debug!(peer = %peer.key.short(), %error, "not kept");
                    }
                }
                self.inputs.push_back(Input::Registry(registry));
            }
        }
        Ok(())
    }

    // ---- Effects -------------------------------------------------------------------------------------------------

    async fn perform(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Journal { round, entry } => {
                tokio::task::block_in_place(|| self.store.append_journal(round, &entry))?;
            }
            Effect::StoreDecision(record) => {
                self.check_attested(&record)?;
                tokio::task::block_in_place(|| self.store.store_decision(&record))?;
                self.on_decided(&record);
            }
            Effect::Broadcast(message) => self.publish(&message).await,
            Effect::Request { peer, id, request } => {
                let input = self
                    .rpc
                    .ask_for_node(&self.control, &self.run, peer, id, &request)
                    .await;
                self.inputs.extend(input);
            }
            Effect::Train { round, seed, steps } => {
                self.before_rounds.get_or_insert_with(traffic_now);
                self.meter.start(round);
                self.command(Command::Train { round, seed, steps })?;
            }
            Effect::StopTraining(round) => self.worker.stop_training(round),
            Effect::Fetch { frame, sources } => self.fetch(frame, &sources),
            Effect::Apply { record, ends_epoch } => self.apply(record, ends_epoch)?,
            Effect::FetchState {
                round,
                root,
                sources,
            } => self.fetch_state(round, root, sources)?,
            Effect::Report(report) => self.on_report(report),
        }
        Ok(())
    }

    /// Refuses a history that does not pass through the state that the chain attests.
    fn check_attested(&self, record: &DecisionRecord) -> anyhow::Result<()> {
        let Some((round, root)) = self.prepared.attested else {
            return Ok(());
        };
        let decision = &record.decision;
        if decision.round == round.next() && decision.state_root != root {
            bail!(
                "the peers' history has state root {} after round {round}, the subnet attests {root}: these are not the \
                 peers of the attested run",
                decision.state_root
            );
        }
        Ok(())
    }

    fn command(&self, command: Command) -> anyhow::Result<()> {
        if self.worker.command(command) {
            Ok(())
        } else {
            bail!("the worker is gone or does not keep up; the log says why");
        }
    }

    async fn publish(&mut self, message: &Gossip) {
        self.nonce = self.nonce.wrapping_add(1);
        let mut bytes = self.nonce.to_le_bytes().to_vec();
        bytes.extend_from_slice(&message.encode(&self.run));
        match self.control.publish(&self.topic, bytes.into()).await {
            // Whoever subscribes later gets it with the next heartbeat.
            Ok(_) | Err(PublishError::NoSubscribers) => {}
            Err(error) => tracing::debug!(%error, "gossip not sent"),
        }
    }

    fn fetch(&mut self, frame: FrameId, sources: &[PeerKey]) {
        let round = self.node.roster().round();
        if let Some(bytes) = self.held_frame(round, &frame.hash) {
            let input = self.checked(frame, &bytes);
            self.inputs.push_back(input);
            return;
        }
        let sources = self.contacts.sources(sources);
        if sources.is_empty() {
            self.inputs.push_back(Input::FrameFailed(frame));
            return;
        }
        let bulk = self.bulk.clone();
        self.tasks.spawn(async move {
            let result = fetch::frame(bulk, frame, sources).await;
            Done::Frame { frame, result }
        });
    }

    /// What the node is told of bytes whose hash is right.
    fn checked(&self, frame: FrameId, bytes: &Bytes) -> Input {
        if bytes.len() as u64 != frame.bytes {
            tracing::warn!(hash = %frame.hash, "a frame is of another length than its header says");
            return Input::FrameMalformed(frame);
        }
        match self.standing.check.check(frame.shard, bytes) {
            Ok(()) => Input::FrameHeld(frame),
            Err(error) => {
                tracing::warn!(hash = %frame.hash, shard = frame.shard, %error, "a frame does not decode");
                Input::FrameMalformed(frame)
            }
        }
    }

    /// A frame from memory, or from disk where frames of `round` and the rounds before lie.
    fn held_frame(&self, round: RoundId, hash: &Hash) -> Option<Bytes> {
        if let Some(bytes) = self.blobs.get(&hash.0) {
            return Some(bytes);
        }
        let applied = self.node.applied().unwrap_or_default();
        let mut rounds = (applied.0..=round.0).rev().map(RoundId);
        rounds.find_map(|round| self.standing.disk.read_frame(round, hash))
    }

    fn keep_frame(&mut self, round: RoundId, hash: Hash, bytes: Bytes) -> anyhow::Result<()> {
        let disk = &self.standing.disk;
        tokio::task::block_in_place(|| disk.write_frame(round, &hash, &bytes))?;
        self.serve_frame(round, hash, bytes.len() as u64)?;
        if let Err(full) = self.blobs.insert_verified(round.0, hash.0, bytes) {
            // It is on disk, which is slower but enough.
            tracing::debug!(%full, "frame kept on disk only");
        }
        Ok(())
    }

    fn apply(&mut self, record: Arc<DecisionRecord>, ends_epoch: bool) -> anyhow::Result<()> {
        let round = record.decision.round;
        self.worker.stop_training(round);
        let mut frames = Vec::with_capacity(record.headers.len());
        for (place, header) in record.headers.iter().enumerate() {
            let mut of_member = Vec::with_capacity(header.header.update.frames.len());
            for (shard, frame) in header.header.update.frames.iter().enumerate() {
                let shard = record.decision.shards.get(shard);
                let counts = shard.is_some_and(|shard| shard.accepted.contains(place));
                let bytes = match counts {
                    true => Some(self.held_frame(round, &frame.hash).with_context(|| {
                        format!("frame {} of round {round} was held and is gone", frame.hash)
                    })?),
                    false => None,
                };
                of_member.push(bytes);
            }
            frames.push(of_member);
        }
        self.command(Command::Apply {
            record,
            frames,
            ends_epoch,
        })
    }

    fn fetch_state(
        &mut self,
        round: RoundId,
        root: Hash,
        sources: Vec<PeerKey>,
    ) -> anyhow::Result<()> {
        tracing::info!(%round, root = %root.short(), sources = sources.len(), "fetching the state");
        if round == RoundId::FOUNDING {
            return self.command(Command::AdoptGenesis);
        }
        let (bulk, caller, contacts) = (
            self.bulk.clone(),
            self.caller.clone(),
            self.contacts.clone(),
        );
        let tiles = self.standing.check.tiles();
        self.tasks.spawn(async move {
            let result = fetch::state(bulk, caller, contacts, round, root, tiles, sources).await;
            Done::State {
                round,
                root,
                result,
            }
        });
        Ok(())
    }

    // ---- What happens --------------------------------------------------------------------------------------------

    fn on_done(&mut self, done: Done) -> anyhow::Result<()> {
        match done {
            Done::Frame {
                frame,
                result: Ok(bytes),
            } => {
                let input = self.checked(frame, &bytes);
                if input == Input::FrameHeld(frame) {
                    let round = self.node.applied().map_or(RoundId(0), RoundId::next);
                    self.keep_frame(round, frame.hash, bytes)?;
                }
                self.inputs.push_back(input);
            }
            Done::Frame {
                frame,
                result: Err(failed),
            } => {
                tracing::debug!(hash = %frame.hash, error = %failed.error, "frame not fetched");
                self.inputs.push_back(Input::FrameFailed(frame));
            }
            Done::State {
                round,
                root,
                result: Ok(state),
            } => self.command(Command::Adopt {
                round,
                root,
                leaves: state.leaves,
                tiles: state.tiles,
            })?,
            Done::State {
                round,
                result: Err(error),
                ..
            } => {
                tracing::warn!(%round, %error, "state not fetched");
                self.inputs.push_back(Input::StateFailed(round));
            }
        }
        Ok(())
    }

    fn on_worker(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Progress {
                round,
                step,
                steps,
                loss,
            } => {
                self.progress = Some((round, step, steps, loss));
                if step == steps {
                    self.meter.trained();
                }
            }
            Event::Update {
                round,
                summary,
                frames,
            } => {
                self.meter.commit();
                self.progress = None;
                for (frame, bytes) in summary.frames.iter().zip(frames) {
                    self.keep_frame(round, frame.hash, bytes)?;
                }
                let update = summary;
                self.inputs.push_back(Input::UpdateReady { round, update });
            }
            Event::TrainingFailed { round, reason } => {
                tracing::error!(%round, reason, "no update in this round");
                self.status
                    .set_problem(Some(format!("round {round} gave no update: {reason}")));
                self.inputs.push_back(Input::TrainingFailed(round));
            }
            Event::Applied {
                round,
                state_root,
                seconds,
                snapshot,
                checkpoint,
            } => {
                tracing::debug!(%round, seconds = seconds.as_secs_f64(), "applied");
                self.blobs.release_before(round.0);
                if let Some(snapshot) = snapshot {
                    self.serve_snapshot(snapshot)?;
                }
                if let Some(written) = checkpoint {
                    if let Some(subnet) = &self.subnet {
                        subnet.epoch_ended(written.round, written.root)?;
                    }
                    tracing::info!(round = %written.round, path = %written.path.display(), "checkpoint");
                    self.status.set_checkpoint(CheckpointStatus {
                        round: written.round.0,
                        root: written.root,
                        path: written.path,
                        loss_held_out: written.loss_held_out.map(f64::from),
                    });
                }
                self.inputs.push_back(Input::Applied { round, state_root });
            }
            Event::Adopted { round, snapshot } => {
                self.snapshots.clear();
                self.serve_snapshot(snapshot)?;
                let records = self.store.decisions(round.next(), u32::MAX)?;
                let records = records.into_iter().map(Arc::new).collect();
                self.inputs
                    .push_back(Input::StateFetched { round, records });
            }
            Event::Broken(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn on_control(&mut self, event: ControlEvent) -> anyhow::Result<()> {
        match event {
            ControlEvent::Listening(address) => {
                tracing::info!(%address, "listening");
                if let (Some(subnet), Some(address)) = (&self.subnet, udp_address(&address)) {
                    subnet.listening(address);
                }
                self.listening.push(address);
                self.contact_due = Instant::now();
                self.show_contact();
            }
            ControlEvent::PeerConnected { peer, addr } => {
                if let Some(key) = peer_key(&peer) {
                    self.connected.insert(key, addr);
                    self.inputs.push_back(Input::PeerUp(key));
                }
            }
            ControlEvent::PeerDisconnected { peer } => {
                if let Some(key) = peer_key(&peer) {
                    self.connected.remove(&key);
                    self.contacts.remove(&key);
                    self.inputs.push_back(Input::PeerDown(key));
                }
            }
            ControlEvent::PeerSubscribed { .. } => self.contact_due = Instant::now(),
            ControlEvent::PeerAddresses { .. } | ControlEvent::PeerRtt { .. } => {}
            ControlEvent::Gossip(message) => self.on_gossip(message).await?,
            ControlEvent::Request { peer, token, bytes } => {
                self.on_request(peer, token, &bytes).await?;
            }
            ControlEvent::Response { id, result, .. } => {
                self.inputs.extend(self.rpc.answered(id, result));
            }
        }
        Ok(())
    }

    async fn on_gossip(&mut self, message: GossipMessage) -> anyhow::Result<()> {
        let author = peer_key(&message.author);
        let body = message.bytes.get(NONCE_BYTES..);
        let decoded = body.map(|body| Gossip::decode(&self.run, body));
        let verdict = match (author, decoded) {
            (Some(from), Some(Ok(Gossip::Contact(contact)))) => {
                self.on_contact(from, message.author, &contact).await;
                Verdict::Accept
            }
            (Some(from), Some(Ok(gossip))) => {
                let message = Box::new(gossip);
                self.inputs.push_back(Input::Gossip { from, message });
                Verdict::Accept
            }
            (_, Some(Err(error))) => {
                tracing::debug!(author = %message.author, %error, "gossip refused");
                Verdict::Reject
            }
            (None, _) | (_, None) => Verdict::Reject,
        };
        let (id, source) = (message.id, message.propagation_source);
        self.control.report_gossip(id, source, verdict).await?;
        Ok(())
    }

    /// Where another peer listens: connect to it, and fetch from it from now on.
    async fn on_contact(&mut self, from: PeerKey, peer: PeerId, contact: &Contact) {
        if from == self.me {
            return;
        }
        if let (Some(subnet), Some(hotkey)) = (&self.subnet, contact.hotkey) {
            subnet.claims().note(from, AccountId(hotkey));
        }
        let addresses: Vec<Multiaddr> = contact
            .control
            .iter()
            .filter_map(|address| address.parse().ok())
            .collect();
        if !self.connected.contains_key(&from)
            && let Err(error) = self.control.keep(peer, addresses).await
        {
            tracing::debug!(%peer, %error, "not kept");
        }
        // A peer that is not connected yet says it again once it is.
        let connected_from = self.connected.get(&from).cloned();
        if connected_from.is_some()
            && let Some(bulk) = bulk_address(contact, connected_from)
        {
            self.contacts.insert(from, bulk);
        }
    }

    async fn on_request(
        &mut self,
        peer: PeerId,
        token: ResponseToken,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        let response = match Request::decode(&self.run, bytes) {
            Ok(request) if small(&request) || self.gate.admits(&peer) => self.answer(request)?,
            Ok(_) => Response::Refused(
                "the subnet of this run does not register your peer key: register your hotkey and publish it".into(),
            ),
            Err(error) => {
                tracing::debug!(%peer, %error, "request refused");
                Response::Refused(error.to_string().chars().take(200).collect())
            }
        };
        if let Err(error) = self.control.respond(token, response.encode().into()).await {
            tracing::debug!(%peer, %error, "no answer sent");
        }
        Ok(())
    }

    fn answer(&self, request: Request) -> anyhow::Result<Response> {
        Ok(match request {
            Request::Manifest => Response::Manifest(Box::new(self.prepared.manifest.clone())),
            Request::Contact => Response::Contact(self.contact()),
            Request::Data => Response::Data(self.prepared.data.to_bytes()),
            Request::Headers(hashes) => {
                let headers = hashes.iter().filter_map(|hash| self.node.header(hash));
                Response::Headers(headers.cloned().collect())
            }
            Request::Snapshot(round) => {
                let snapshot = self.snapshots.iter().find(|s| s.round == round);
                match snapshot {
                    Some(snapshot) => Response::Snapshot {
                        round,
                        leaves: snapshot.leaves.iter().map(|(hash, _)| *hash).collect(),
                    },
                    None => Response::Refused(format!("the state after round {round} is not here")),
                }
            }
            Request::Decisions { from, count } => {
                let count = count.min(DECISIONS_MAX as u32);
                let mut records =
                    tokio::task::block_in_place(|| self.store.decisions(from, count))?;
                let mut bytes = 0;
                records.retain(|record| {
                    bytes += record.encode().len();
                    bytes <= RECORDS_BYTES_MAX
                });
                let kept = self.snapshots.iter().map(|snapshot| snapshot.round);
                Response::Decisions(Decisions {
                    records,
                    decided: self.node.decided(),
                    snapshot: self.node.snapshot_to_offer(kept),
                    frames_from: self.frames_from,
                })
            }
        })
    }

    fn contact(&self) -> Contact {
        let control = self.listening.iter().map(ToString::to_string);
        Contact {
            control: control
                .take(gradmesh_protocol::ticket::ADDRESSES_MAX)
                .collect(),
            bulk: self.bulk.local_addr(),
            hotkey: self.subnet.as_ref().map(|subnet| subnet.hotkey().0),
        }
    }

    async fn on_tick(&mut self) -> anyhow::Result<()> {
        if self.contact_due <= Instant::now() && !self.listening.is_empty() {
            self.contact_due = Instant::now() + CONTACT_PERIOD;
            let contact = Gossip::Contact(self.contact());
            self.publish(&contact).await;
        }
        if let Some(finished) = self.finished_at
            && self.exit_when_finished
            && finished.elapsed() >= FINISHED_GRACE
        {
            self.end = Some(End::Finished);
        }
        self.show();
        Ok(())
    }

    // ---- For people ----------------------------------------------------------------------------------------------

    fn on_decided(&mut self, record: &DecisionRecord) {
        self.meter.decided();
        for header in &record.headers {
            let header = &header.header;
            let entry = (header.round, header.update.loss_last_micronats);
            self.accepted.insert(header.peer, entry);
        }
        self.accepted
            .retain(|peer, _| self.node.roster().contains(peer));
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::Decided {
                round,
                attempt,
                roster,
                figures,
            } => {
                show_round(&self.status, round, roster, &figures);
                let loss = nats(figures.loss_last_micronats);
                let (members, bytes) = (figures.members, figures.frame_bytes);
                tracing::info!(%round, attempt, members, roster, bytes, loss, "decided");
            }
            Report::Applied { round, state_root } => {
                let measured = self.meter.applied(round);
                self.status.set_applied(round.0, state_root, measured);
                tracing::info!(%round, root = %state_root.short(), "applied");
            }
            Report::Roster {
                round,
                joined,
                left,
                members,
            } => {
                tracing::info!(%round, ?joined, ?left, members, "roster");
                let members = self.node.roster().members();
                let members = members.iter().filter_map(|member| peer_id(&member.peer));
                self.gate.set_members(members.collect());
            }
            Report::Diverged {
                round,
                decided,
                own,
            } => {
                tracing::error!(%round, %decided, %own, "state differs from the decided one; fetching it anew");
            }
            Report::LeftOut(round) => {
                tracing::warn!(%round, "own update left out; it stays in the error feedback");
            }
            Report::Misbehaviour { peer, what } => {
                tracing::warn!(peer = %peer.short(), what, "rule broken");
            }
            Report::Finished(round) => {
                tracing::info!(%round, "the run is finished");
                self.finished_at = Some(Instant::now());
            }
            Report::Left(round) => {
                tracing::info!(%round, "left the run");
                self.end = Some(End::Left);
            }
            Report::NotRegistered { block } => {
                tracing::info!(block, peer = %self.me, "the subnet does not register this peer yet, or no more");
            }
        }
    }

    fn show(&mut self) {
        let view = self.node.view(self.now());
        let waits = view.to_string();
        let (phase, waits) = match view.activity {
            Activity::Founding { .. } | Activity::AwaitingLauncher | Activity::AwaitingRegistry => {
                (Phase::Gathering, Some(waits))
            }
            Activity::CatchingUp { .. } | Activity::FetchingState(_) | Activity::AwaitingState => {
                (Phase::CatchingUp, Some(waits))
            }
            Activity::Applying(_) => (Phase::Applying, None),
            Activity::Training => {
                let progress = self.progress.map(|(_, step, steps, loss)| {
                    format!("step {step} of {steps}, loss {loss:.3}")
                });
                (Phase::Training, progress)
            }
            Activity::Exchanging => (Phase::Exchanging, Some(waits)),
            Activity::Deciding { .. } => (Phase::Deciding, Some(waits)),
            Activity::Observing | Activity::NotRegistered { .. } => (Phase::Joining, Some(waits)),
            Activity::Finished => (Phase::Finished, None),
            Activity::Left => (Phase::Left, None),
        };
        self.status.set_phase(view.round.0, phase, waits);
        let roster = self.node.roster().members().iter().map(|member| {
            let accepted = self.accepted.get(&member.peer);
            PeerStatus {
                peer: member.peer.short(),
                own: member.peer == self.me,
                connected: self.node.is_connected(&member.peer),
                accepted_round: accepted.map(|(round, _)| round.0),
                loss: accepted.map(|(_, loss)| nats(*loss)),
            }
        });
        self.status.set_roster(roster.collect());
        let traffic = traffic_now();
        let before_rounds = self.before_rounds.unwrap_or(traffic);
        self.status.set_traffic(traffic, before_rounds);
    }

    /// Addresses, and the ticket if this peer launched the run.
    fn show_contact(&self) {
        let peer = self.control.peer_id();
        let addresses: Vec<String> = self
            .listening
            .iter()
            .map(|address| address.clone().with(Protocol::P2p(peer)).to_string())
            .collect();
        let ticket = self.prepared.launches.then(|| {
            let mut listed = addresses.clone();
            listed.truncate(gradmesh_protocol::ticket::ADDRESSES_MAX);
            Ticket::sign(self.run, listed, &self.keypair).to_string()
        });
        self.status.set_contact(addresses, ticket);
    }
}

/// Shows a decided round; the founding one trained nothing and does not appear.
fn show_round(status: &StatusHandle, round: RoundId, roster: u32, figures: &RoundFigures) {
    if round == RoundId::FOUNDING {
        return;
    }
    status.set_decided(RoundStatus {
        round: round.0,
        loss_first: Some(nats(figures.loss_first_micronats)),
        loss_last: Some(nats(figures.loss_last_micronats)),
        members: figures.members,
        roster,
        frame_bytes: figures.frame_bytes,
        tokens: figures.tokens,
        seconds: None,
        root: None,
    });
}

/// Waits for the chain's next event; for ever in a run without a chain.
async fn next_of(subnet: &mut Option<SubnetLink>) -> Option<subnet::Event> {
    match subnet {
        Some(subnet) => subnet.event().await,
        None => std::future::pending().await,
    }
}

/// Whether anybody may ask for it, registered or not (rule `members-and-registered`).
fn small(request: &Request) -> bool {
    match request {
        Request::Manifest | Request::Contact | Request::Decisions { .. } => true,
        Request::Data | Request::Headers(_) | Request::Snapshot(_) => false,
    }
}

/// IP address and UDP port of a listening address.
pub(super) fn udp_address(address: &Multiaddr) -> Option<SocketAddr> {
    let (mut ip, mut port) = (None, None);
    for part in address {
        match part {
            Protocol::Ip4(v4) => ip = Some(IpAddr::from(v4)),
            Protocol::Ip6(v6) => ip = Some(IpAddr::from(v6)),
            Protocol::Udp(udp) => port = Some(udp),
            _ => {}
        }
    }
    Some(SocketAddr::new(ip?, port?))
}

fn traffic_now() -> Traffic {
    Traffic {
        control_in: traffic::CONTROL.received(),
        control_out: traffic::CONTROL.sent(),
        bulk_in: traffic::BULK.received(),
        bulk_out: traffic::BULK.sent(),
    }
}

/// Where a peer's bulk plane listens: as it says, with the address that it is connected from in place of an unspecified
/// one.
pub(super) fn bulk_address(
    contact: &Contact,
    connected_from: Option<Multiaddr>,
) -> Option<SocketAddr> {
    let said = contact.bulk;
    if !said.ip().is_unspecified() {
        return Some(said);
    }
    let ip = connected_from?.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::from(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::from(ip)),
        _ => None,
    })?;
    Some(SocketAddr::new(ip, said.port()))
}
