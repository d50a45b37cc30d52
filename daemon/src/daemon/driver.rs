//! The event loop: carries what happens to the node, and the node's effects to network, worker and disk.
//!
//! It decides nothing about the run. Effects are performed in the order in which the node gives them; what must be
//! durable is, before the next one is performed (rule `journal-first` of the agreement).

mod display;
mod effects;
mod events;
mod serving;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use gradmesh_protocol::figures::RoundFigures;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::FrameId;
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{Link, RoundId, RunId};
use gradmesh_protocol::node::{Activity, Input, Node, NodeConfig, ReduceTask, Restored};
use gradmesh_protocol::roster::Roster;
use gradmesh_protocol::site::site_of_newcomer;
use gradmesh_protocol::time::Time;
use gradmesh_protocol::wire::{DecisionRecord, Gossip};
use libp2p::Multiaddr;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::address::{Connection, udp_address};
use super::audit::{Auditor, AuditorParts, InputError};
use super::behind::{self, Behind};
use super::bootstrap::Prepared;
use super::capacity::{Capacity, Said};
use super::fetch::{Contacts, FetchedState, FrameError, StateError};
use super::meter::Meter;
use super::owner::{Owner, OwnerError, Reduced};
use super::peer_id;
use super::residuals::Residuals;
use super::rpc::{Call, Caller, Rpc};
use crate::blob::BlobStore;
use crate::net::bulk::{Bulk, Fetched};
use crate::net::control::{ControlEvent, ControlHandle, Reachability};
use crate::state_dir::StateDir;
use crate::status::{StatusHandle, Traffic};
use crate::store::Store;
use crate::subnet::{self, Gate, SubnetLink};
use crate::worker::{AuditInputs, DiskError, Event, KeptWork, Snapshot, Standing, Worker};
use display::show_round;

/// How often status and traffic figures are brought up to date.
const STATUS_PERIOD: Duration = Duration::from_millis(250);
/// How often a peer says where it listens, besides whenever somebody subscribes.
const CONTACT_PERIOD: Duration = Duration::from_secs(5);
/// How long a finished daemon with `exit_when_finished` serves those that are behind.
const FINISHED_GRACE: Duration = Duration::from_secs(20);
/// Bytes in front of each gossip message. Gossip drops what it has seen, but a header or vote that is sent again must
/// reach whoever missed it: the nonce makes it new.
const NONCE_BYTES: usize = 8;

/// Everything that a driver is made of.
pub(super) struct Parts {
    pub(super) keypair: Keypair,
    /// How this peer is connected.
    pub(super) connection: Connection,
    pub(super) prepared: Prepared,
    pub(super) control: ControlHandle,
    pub(super) bulk: Bulk,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) store: Arc<Store>,
    pub(super) state_dir: StateDir,
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
    pub(super) validates: bool,
}

/// What a background task brought.
enum Done {
    Frame {
        frame: FrameId,
        /// Under which it will lie on disk.
        round: RoundId,
        result: Result<Fetched, FrameError>,
    },
    Written {
        /// Up to this round everything that was fetched is on disk.
        applied: RoundId,
        result: anyhow::Result<Result<(), DiskError>>,
    },
    Reduced(Result<Reduced, (Box<ReduceTask>, OwnerError)>),
    Residual {
        hash: Hash,
        bytes: Option<Bytes>,
    },
    State {
        round: RoundId,
        root: Hash,
        result: Result<FetchedState, StateError>,
    },
    AuditInputs(Result<AuditInputs, InputError>),
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
    connection: Connection,
    capacity: Capacity,
    reachability: watch::Receiver<Reachability>,
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
    /// The shortest round trip to each connected peer, in microseconds.
    round_trips: BTreeMap<PeerKey, u64>,
    /// The address from which each peer is connected.
    connected: BTreeMap<PeerKey, Multiaddr>,
    listening: Vec<Multiaddr>,
    /// The newest last.
    snapshots: VecDeque<Snapshot>,
    /// What is kept of this peer's own work, by round.
    work: BTreeMap<RoundId, KeptWork>,
    owner: Owner,
    residuals: Residuals,
    /// In a run with audits.
    auditor: Option<Auditor>,
    frames_from: RoundId,
    /// Frames of rounds before this one are wanted no more.
    wanted_from: watch::Sender<RoundId>,
    /// The frames that are registered as files, by round; those that leave the disk are forgotten.
    frames_on_disk: BTreeMap<RoundId, Vec<Hash>>,
    behind: Behind,
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
        let fragments = standing
            .fragments(manifest.exchange.fragments)
            .context("the run cannot be taken part in: exchange.fragments")?;
        let node = Node::new(
            Time(0),
            NodeConfig {
                manifest: Arc::new(manifest.clone()),
                run,
                keypair: parts.keypair.clone(),
                fragments,
                link: parts.connection.link,
                frame_bytes_max: standing.frame_bytes_max(),
                observes: parts.validates,
                update_bytes: standing.update_bytes_max(),
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
        let (shape, disk) = (Arc::clone(&standing.shape), standing.disk.clone());
        let owner = Owner::new(shape, disk.clone(), parts.bulk.clone());
        let residuals = Residuals::open(disk, Arc::clone(&parts.blobs))?;
        let auditor = Auditor::new(AuditorParts {
            manifest: Arc::new(manifest.clone()),
            keypair: parts.keypair.clone(),
            validates: parts.validates,
            signed_manifest: parts.prepared.manifest.clone(),
            data_dir: parts.prepared.data_dir.clone(),
            device: standing.class.clone(),
            shape: Arc::clone(&standing.shape),
            data: parts.prepared.data.clone(),
            store: Arc::clone(&parts.store),
            state_dir: parts.state_dir,
            status: parts.status.clone(),
        })?;
        let mut driver = Driver {
            node,
            keypair: parts.keypair,
            me,
            run,
            topic: format!("gradmesh/{run}"),
            prepared: parts.prepared,
            reachability: parts.control.reachability(),
            control: parts.control,
            bulk: parts.bulk,
            blobs: parts.blobs,
            store: parts.store,
            worker: parts.worker,
            worker_events: parts.worker_events,
            status: parts.status,
            events: parts.events,
            seen: parts.seen,
            connection: parts.connection,
            capacity: Capacity::new(
                parts.connection.link.capacity,
                parts.connection.capacity_is_set,
            ),
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
            round_trips: BTreeMap::new(),
            connected: BTreeMap::new(),
            listening: Vec::new(),
            snapshots: VecDeque::new(),
            work: BTreeMap::new(),
            owner,
            residuals,
            auditor,
            frames_from: RoundId::FOUNDING.next(),
            wanted_from: watch::Sender::new(RoundId::FOUNDING),
            frames_on_disk: BTreeMap::new(),
            behind: Behind::default(),
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
        driver.on_reachability();
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

    fn now(&self) -> Time {
        let millis = self.clock.elapsed().as_millis();
        Time(u64::try_from(millis).unwrap_or(u64::MAX))
    }

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
            self.end_fetches_of_rounds_applied();
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
                Some(event) = self.worker_events.recv() => self.on_worker(event).await,
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.on_done(done).await,
                    Err(error) => Err(anyhow::Error::from(error).context("a fetching task ended")),
                },
                Some(event) = next_of(&mut self.subnet) => self.on_subnet(event).await,
                Some(call) = self.calls.recv() => {
                    self.rpc.call(&self.control, &self.run, call).await;
                    Ok(())
                }
                Ok(()) = self.reachability.changed() => {
                    self.on_reachability();
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

    /// What a slow line still brings of them would take from the next round's.
    fn end_fetches_of_rounds_applied(&self) {
        let first = self.node.applied().map_or(RoundId::FOUNDING, RoundId::next);
        self.wanted_from.send_if_modified(|wanted_from| {
            let later = first > *wanted_from;
            *wanted_from = first.max(*wanted_from);
            later
        });
    }

    async fn close(self) {
        let Driver {
            worker,
            worker_events,
            control,
            bulk,
            behind,
            standing,
            ..
        } = self;
        drop(worker_events);
        let written = tokio::task::spawn_blocking(move || {
            behind::write(&standing.disk, behind.into_unwritten())
        });
        let worker = tokio::task::spawn_blocking(move || worker.shutdown());
        control.shutdown().await;
        bulk.shutdown().await;
        if let Err(error) = worker.await {
            tracing::warn!(%error, "the worker did not end well");
        }
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "fetched frames are not all on disk"),
            Err(error) => tracing::warn!(%error, "fetched frames are not all on disk"),
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
            self.node.set_link(self.link_now());
            let now = self.now();
            self.node.handle(now, input);
            let view = self.node.view(now);
            if let Activity::Deciding { .. } = view.activity {
                self.meter.deciding(view.round);
            }
        }
    }

    /// What this peer says of its link now, when it joins and as a member.
    fn link_now(&self) -> Link {
        let mut link = self.connection.link;
        (link.capacity, _) = self.capacity_now();
        if self.connection.finds_site {
            let round_trips = self.round_trips.iter().map(|(peer, us)| (*peer, *us));
            let roster = self.node.roster();
            let site_of = |peer: &PeerKey| roster.member(peer).map(|member| member.link.site);
            link.site = site_of_newcomer(link.site, round_trips, site_of);
        }
        link
    }

    fn capacity_now(&self) -> Said {
        let decided = self.node.roster().member(&self.me);
        let decided = decided.map(|member| member.link.capacity);
        self.capacity.say(&self.reachability.borrow(), decided)
    }

    /// Notes what the link was measured to carry, and tells the bulk plane whom to measure it by: members of other sites.
    /// Those on this machine are near, whatever site they are in.
    fn measure_link(&mut self) {
        let near = |peer: &PeerKey| {
            let address = self.connected.get(peer).and_then(udp_address);
            address.is_some_and(|address| address.ip().is_loopback())
        };
        let roster = self.node.roster();
        let own = roster.member(&self.me).map(|member| member.link.site);
        let outside = roster
            .members()
            .iter()
            .filter(|member| Some(member.link.site) != own && !near(&member.peer))
            .filter_map(|member| Some((peer_id(&member.peer)?, member.link.site)));
        self.bulk.set_outside(outside.collect());
        if let Some(bytes_per_s) = self.bulk.measured_bytes_per_s() {
            let said = self.capacity_now();
            self.capacity.measured(bytes_per_s, said);
        }
        self.node.set_link(self.link_now());
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
        if let Some(auditor) = &mut self.auditor {
            auditor.tick();
        }
        self.follow_auditor().await?;
        self.measure_link();
        self.show();
        Ok(())
    }
}

/// Waits for the chain's next event; for ever in a run without a chain.
async fn next_of(subnet: &mut Option<SubnetLink>) -> Option<subnet::Event> {
    match subnet {
        Some(subnet) => subnet.event().await,
        None => std::future::pending().await,
    }
}
