//! The worker: the one thread that trains, encodes and applies.
//!
//! It owns the trainer and the replica, takes [`Command`]s in order from a bounded channel, between two inner steps if it
//! trains ([`training`]), and answers with [`Event`]s. It knows no network: frames come in as bytes and go out as bytes.
//!
//! What survives it is written behind ([`save`]).

mod audit;
pub(crate) mod disk;
mod frames;
mod save;
mod training;
mod work;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gradmesh_compression::{Codec, TensorMode, Tile};
use gradmesh_protocol::fragment::{Fragments, TooFewShards};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{PerStage, Stage, UpdateSummary};
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{RoundId, RunId};
use gradmesh_protocol::merkle;
use gradmesh_protocol::node::Start;
use gradmesh_protocol::plan::GroupId;
use gradmesh_protocol::wire::DecisionRecord;
use gradmesh_trainer::checkpoint::{self, CheckpointError, Provenance};
use gradmesh_trainer::data::{Corpus, DataError, DataManifest};
use gradmesh_trainer::model::{ConfigError, Precision};
use gradmesh_trainer::replica::{
    ApplyError, Contribution, ImportError, OwnUpdate, Replica, ReplicaError, RoundShard, Shape,
    StateImport, UpdateError,
};
use gradmesh_trainer::torch::calibrate::device_class;
use gradmesh_trainer::torch::device::{self, DeviceError};
use gradmesh_trainer::torch::{TorchSettings, VersionError, set_threads, version_check};
use gradmesh_trainer::workers::Workers;
use gradmesh_trainer::{StateError, TrainError, Trainer};
use tokio::sync::{mpsc, oneshot};

use crate::daemon::{Guise, GuiseParts};
use crate::run_settings::RunSettings;
use crate::state_dir::StateDir;
use crate::store::{Store, StoreError};
pub(crate) use audit::{
    AuditError, AuditFindings, AuditInputs, AuditTask, AuditedTile, Ground, PublicRoots,
    STARTS_KEPT, SegmentClaim, dtype, flat, local_values,
};
pub(crate) use disk::{Disk, DiskError};
use disk::{Pending, PrivateFile};
use save::{Behind, Durable, SAVE_IDLE, Wanted};
use training::Training;
use work::Archive;
pub(crate) use work::KeptWork;

/// Commands waiting: the node has one training under way, with the words to encode and to stop it, and one state to be applied
/// or adopted; twice that, so that those of a training that was stopped do not count.
const COMMANDS_MAX: usize = 8;
/// Events waiting. The worker waits when it is full, except for progress, which is dropped.
const EVENTS_MAX: usize = 64;
/// The most text that is read into memory. A guess that fits any machine that trains; larger corpora want a mapping.
pub(crate) const CORPUS_BYTES_MAX: u64 = 4 << 30;
/// Sequences that go through the model at once.
pub(crate) const MICRO_BATCH: usize = 64;
/// Held-out windows that a checkpoint's loss is measured on: some thousand tokens, so that its error is about 0.02 nats.
const HELD_OUT_WINDOWS: u64 = 64;
/// Epoch states kept on disk: the newest one is on offer, the one before may still be on its way to somebody.
const SNAPSHOTS_KEPT: usize = 2;

/// Decisions that are looked through at once for the own one.
const RECORDS_AT_ONCE: u64 = 64;

/// What a worker is started with.
#[derive(Clone)]
pub(crate) struct WorkerConfig {
    pub(crate) state_dir: StateDir,
    pub(crate) store: Arc<Store>,
    pub(crate) settings: RunSettings,
    pub(crate) run: RunId,
    /// From which theta is drawn.
    pub(crate) seed: Hash,
    pub(crate) me: PeerKey,
    pub(crate) data_dir: PathBuf,
    pub(crate) data: DataManifest,
    pub(crate) device: device::Request,
    pub(crate) threads: u16,
    /// Whether other peers' work is audited here.
    pub(crate) validates: bool,
}

/// What a worker does.
#[derive(Debug)]
pub(crate) enum Command {
    /// Train a round.
    Train {
        round: RoundId,
        seed: Hash,
        steps: u32,
        start: Start,
    },
    /// Encode the update of a round once it is trained.
    Encode {
        round: RoundId,
        /// Of the frames.
        stage: Stage,
        /// Of which there are frames.
        shards: Range<usize>,
    },
    /// Stop the training of a round and fold what was learnt.
    StopTraining(RoundId),
    /// Apply a decision.
    Apply {
        record: Arc<DecisionRecord>,
        /// One for each shard of the run, in order.
        shards: Vec<DecidedFrames>,
        /// The groups whose residuals live on.
        groups: Vec<GroupId>,
        ends_epoch: bool,
    },
    /// Go on from a fetched state, whose leaves were verified under `root`.
    Adopt {
        round: RoundId,
        root: Hash,
        leaves: Vec<Hash>,
        tiles: Vec<Bytes>,
    },
    /// Go back to the state before any round.
    AdoptGenesis,
    /// Audit another peer's work.
    Audit(Box<AuditTask>),
}

/// What a decision does to one shard.
#[derive(Debug)]
pub(crate) struct DecidedFrames {
    /// Of the frames.
    pub(crate) stage: Stage,
    /// Weight in tokens and bytes of each frame that is aggregated, in canonical order.
    pub(crate) contributions: Vec<(u64, Bytes)>,
    /// Content hashes of the residuals that owners have from now on.
    pub(crate) residuals: Vec<(GroupId, Hash)>,
}

/// A state that is kept to be served.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) round: RoundId,
    pub(crate) path: PathBuf,
    /// Hash and length of each leaf's content, in the order of the file.
    pub(crate) leaves: Vec<(Hash, u64)>,
    /// The first round whose frames are still on disk, now that this state is kept.
    pub(crate) frames_from: RoundId,
}

/// A checkpoint that was written.
#[derive(Clone, Debug)]
pub(crate) struct WrittenCheckpoint {
    pub(crate) round: RoundId,
    pub(crate) root: Hash,
    pub(crate) path: PathBuf,
    /// Mean nats per token of its parameters on held-out text.
    pub(crate) loss_held_out: Option<f32>,
}

/// What a worker reports.
#[derive(Debug)]
pub(crate) enum Event {
    /// A step is done.
    Progress {
        round: RoundId,
        step: u32,
        steps: u32,
        loss: f32,
    },
    /// An update is encoded; its frames are on disk.
    Update {
        round: RoundId,
        summary: Box<UpdateSummary>,
        frames: Vec<Bytes>,
        /// What is kept of it, and the rounds that had to go for it; none in a run without audits.
        work: Option<Box<(KeptWork, Vec<RoundId>)>>,
    },
    /// A round gave no update.
    TrainingFailed { round: RoundId, reason: String },
    /// A decision is applied.
    Applied {
        round: RoundId,
        state_root: Hash,
        seconds: Duration,
        snapshot: Option<Snapshot>,
        checkpoint: Option<WrittenCheckpoint>,
    },
    /// A fetched state is in place, durably.
    Adopted { round: RoundId, snapshot: Snapshot },
    /// [`Command::Audit`] is done.
    Audited {
        result: Box<Result<AuditFindings, AuditError>>,
    },
    /// The worker cannot go on.
    Broken(WorkerError),
}

/// Why a worker cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    /// libtorch is missing or of another version.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The device that was asked for is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The operating system starts no more threads.
    #[error("threads: {0}; lower --threads, or raise the limit of processes")]
    Threads(#[source] io::Error),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model configuration is not usable.
    #[error("model.config: {0}")]
    Model(#[from] ConfigError),
    /// The replica cannot be made.
    #[error("the manifest does not fit the model: {0}")]
    Replica(#[from] ReplicaError),
    /// A fetched or stored state does not fit.
    #[error("state: {0}")]
    Import(#[from] ImportError),
    /// The trainer gave up.
    #[error("training: {0}")]
    Train(#[from] TrainError),
    /// The inner optimizer's state is not one of the run's model.
    #[error("audits: {0}")]
    InnerState(#[from] StateError),
    /// The own update could not be taken in.
    #[error("own update: {0}")]
    Update(#[from] UpdateError),
    /// A decision could not be applied.
    #[error("round {round} cannot be applied: {source}")]
    Apply {
        /// The round.
        round: RoundId,
        /// Why.
        source: ApplyError,
    },
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A checkpoint could not be written.
    #[error("checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
}

/// What is known once a worker stands.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// The state root before any round.
    pub(crate) genesis_root: Hash,
    /// The newest durable state.
    pub(crate) applied: Option<(RoundId, Hash)>,
    pub(crate) parameters: u64,
    /// Those of small tensors in a sparse run; none in a dense one.
    pub(crate) parameters_dense: u64,
    /// Which device, and why.
    pub(crate) device: String,
    /// Its class, as headers have it.
    pub(crate) class: String,
    /// How theta is cut and its frames are encoded.
    pub(crate) shape: Arc<Shape>,
    pub(crate) snapshot: Option<Snapshot>,
    /// What is kept of this peer's own work, oldest first.
    pub(crate) work: Vec<KeptWork>,
    /// Where frames are kept.
    pub(crate) disk: Disk,
}

impl Standing {
    /// The longest frame of each stage.
    pub(crate) fn frame_bytes_max(&self) -> PerStage {
        self.per_stage(|frames| frames.max().unwrap_or(0))
    }

    /// The longest update of each stage.
    pub(crate) fn update_bytes_max(&self) -> PerStage {
        self.per_stage(|frames| frames.sum())
    }

    fn per_stage(&self, of_frames: impl Fn(&mut dyn Iterator<Item = u64>) -> u64) -> PerStage {
        let of_stage = |stage| {
            let shards = 0..self.shape.shard_count();
            let frames = shards.filter_map(|shard| self.shape.frame_bytes_max(stage, shard));
            of_frames(&mut frames.map(|bytes| bytes as u64))
        };
        PerStage {
            local: of_stage(Stage::Local),
            update: of_stage(Stage::Update),
            reduced: of_stage(Stage::Reduced),
        }
    }

    /// The shards, dealt into `count` fragments.
    ///
    /// # Errors
    /// There are fewer shards than that.
    pub(crate) fn fragments(&self, count: u32) -> Result<Fragments, TooFewShards> {
        let shards = 0..self.shape.shard_count();
        let elements = shards.filter_map(|shard| self.shape.shard_elements(shard));
        let elements: Vec<u64> = elements.map(|range| range.len() as u64).collect();
        Fragments::deal(&elements, count)
    }

    /// How many leaves a state may have: one per tile and, where owners keep residuals, one per shard.
    pub(crate) fn leaf_counts(&self) -> [usize; 2] {
        let tiles = self.shape.layout().tiles().len();
        [tiles, tiles + self.shape.shard_count()]
    }
}

/// Parameters of the small tensors that travel dense in a sparse run; none in a dense one.
fn parameters_dense(shape: &Shape) -> u64 {
    let sparse_run = matches!(shape.config().codec, Codec::Sparse { .. });
    let tiles = shape.layout().tiles().iter();
    let dense = tiles.filter(|tile| sparse_run && tile.mode() == TensorMode::Dense);
    dense.map(|tile| tile.len() as u64).sum()
}

/// A running worker. Dropping it ends the thread after the command or step at hand.
pub(crate) struct Worker {
    commands: std::sync::mpsc::SyncSender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread and waits until it has loaded libtorch, data and state.
    pub(crate) async fn start(
        config: WorkerConfig,
        guise: Option<Guise>,
    ) -> Result<(Worker, Standing, mpsc::Receiver<Event>), WorkerError> {
        let (commands, inbox) = std::sync::mpsc::sync_channel(COMMANDS_MAX);
        let (events, outbox) = mpsc::channel(EVENTS_MAX);
        let (ready, stands) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("worker".into())
            .spawn(move || {
                let mut machine = match Machine::load(config, guise, events) {
                    Ok((machine, standing)) => {
                        let _ = ready.send(Ok(standing));
                        machine
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                machine.run(&inbox);
            })
            .expect("the operating system starts a thread");
        let standing = stands.await.expect("the worker says how it stands")?;
        let worker = Worker {
            commands,
            thread: Some(thread),
        };
        Ok((worker, standing, outbox))
    }

    /// Gives the worker something to do. `false` if it is gone or has more to do than a node ever asks for.
    pub(crate) fn command(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Ends the thread, after the step at hand if it trains, and waits for it.
    pub(crate) fn shutdown(mut self) {
        let (closed, _) = std::sync::mpsc::sync_channel(0);
        self.commands = closed;
        if let Some(thread) = self.thread.take() {
            // A panic of the worker was reported when its events ended.
            let _ = thread.join();
        }
    }
}

/// What there is to do.
enum Work {
    Command(Command),
    /// Inner steps.
    Training,
    /// What is due to be written.
    Saving,
}

struct Machine {
    config: WorkerConfig,
    durable: Durable,
    trainer: Box<dyn Trainer>,
    corpus: Corpus,
    device: String,
    /// Encode and apply.
    workers: Workers,
    training: Option<Training>,
    /// What a training was interrupted for.
    waiting: Option<Command>,
    state_file: Behind,
    private_file: Behind,
    archive: Archive,
    /// What this peer's newest decided update left.
    carried: Option<Carried>,
    /// The shared parameters at the start of the newest rounds, where work is audited.
    starts: BTreeMap<RoundId, (Arc<[f32]>, PublicRoots)>,
    events: mpsc::Sender<Event>,
}

/// What a decided round made of an own update.
struct OwnOutcome {
    stage: Stage,
    shards: Range<usize>,
    /// By shard; empty where it was accepted, and nobody has to read it again.
    frames: Vec<Vec<u8>>,
    /// By shard.
    accepted: Vec<bool>,
}

impl OwnOutcome {
    fn update(&self) -> OwnUpdate<'_> {
        OwnUpdate {
            stage: self.stage,
            shards: self.shards.clone(),
            frames: &self.frames,
            accepted: &self.accepted,
        }
    }
}

impl Machine {
    fn load(
        config: WorkerConfig,
        guise: Option<Guise>,
        events: mpsc::Sender<Event>,
    ) -> Result<(Machine, Standing), WorkerError> {
        let libtorch = version_check()?;
        let choice = device::select(config.device)?;
        tracing::info!(device = %choice.why, libtorch, threads = config.threads, "trainer");
        set_threads(config.threads);
        let threads = NonZeroUsize::new(config.threads.into()).unwrap_or(NonZeroUsize::MIN);
        let workers = Workers::start(threads).map_err(WorkerError::Threads)?;
        let disk = Disk::open(config.state_dir.path())?;
        let corpus = Corpus::load(&config.data_dir, &config.data, CORPUS_BYTES_MAX)?;
        // Fails here, at the start, when the text is too short for the sequences.
        corpus.windows(config.settings.sequence_tokens)?;
        let settings = TorchSettings {
            optimizer: config.settings.inner.clone(),
            precision: config.settings.precision,
            device: choice.device,
            micro_batch: MICRO_BATCH,
        };
        let class = device_class(&settings, config.threads);
        let mut trainer = config.settings.model.trainer(settings)?;
        let genesis = genesis(&config)?;
        let genesis_root = genesis.state_root();
        let (applied, mut replica) = match newest_state(&disk, &config)? {
            Some((round, replica)) => (Some(round), replica),
            None => (None, genesis),
        };
        let shape = Arc::clone(replica.shape());
        if let Some(guise) = guise {
            let parts = GuiseParts {
                dir: config.state_dir.path().to_owned(),
                disk: disk.clone(),
                store: Arc::clone(&config.store),
                shape: Arc::clone(&shape),
                me: config.me,
                steps_per_round: config.settings.steps_per_round,
            };
            trainer = guise(trainer, parts);
        }
        let pending = restore_private(&disk, &mut replica, trainer.as_mut())?;
        let parameters = replica.theta().len();
        let tiles: Vec<usize> = shape.layout().tiles().iter().map(Tile::len).collect();
        let (archive, work) = Archive::open(config.state_dir.path(), parameters, &tiles)?;
        let mut machine = Machine {
            device: class,
            durable: Durable {
                disk,
                replica,
                applied,
                snapshots: Vec::new(),
                pending: None,
            },
            trainer,
            corpus,
            workers,
            training: None,
            waiting: None,
            state_file: Behind::default(),
            private_file: Behind::default(),
            archive,
            carried: None,
            starts: BTreeMap::new(),
            events,
            config,
        };
        machine.carried = machine.newest_decided()?;
        machine.settle_pending(pending)?;
        machine.durable.snapshots = machine.durable.disk.state_rounds()?;
        if machine.durable.snapshots.is_empty() {
            // The state before any round needs no file: whoever wants it makes it from the seed.
            machine.durable.snapshots.push(RoundId::FOUNDING);
        }
        let snapshot = applied.map(|round| machine.snapshot(round));
        let standing = Standing {
            genesis_root,
            applied: applied.map(|round| (round, machine.durable.replica.state_root())),
            parameters: parameters as u64,
            parameters_dense: parameters_dense(&shape),
            device: choice.why,
            class: machine.device.clone(),
            shape,
            snapshot,
            work,
            disk: machine.durable.disk.clone(),
        };
        Ok((machine, standing))
    }

    fn run(&mut self, inbox: &Receiver<Command>) {
        while let Some(work) = self.next_work(inbox) {
            let done = match work {
                Work::Command(command) => self.perform(command),
                Work::Training => self.go_on_training(inbox),
                Work::Saving => self.save(Behind::is_due).map(|()| None),
            };
            let heard =
                |event: Option<Event>| event.is_none_or(|e| self.events.blocking_send(e).is_ok());
            match done.map(heard) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let _ = self.events.blocking_send(Event::Broken(error));
                    return;
                }
            }
        }
        let folded = self.stop_training(RoundId(u64::MAX));
        if let Err(error) = folded.and_then(|()| self.save(Behind::has_changed)) {
            tracing::warn!(%error, "the last state was not written; it is made anew from the decisions");
        }
    }

    /// What to do next; `None` when nobody will want anything any more.
    fn next_work(&mut self, inbox: &Receiver<Command>) -> Option<Work> {
        if let Some(command) = self.waiting.take() {
            return Some(Work::Command(command));
        }
        let files = [&self.state_file, &self.private_file];
        if files.iter().any(|file| file.is_overdue()) {
            return Some(Work::Saving);
        }
        if !self.is_training() {
            let Some(wait) = files.iter().filter_map(|file| file.due_in()).min() else {
                return inbox.recv().ok().map(Work::Command);
            };
            return match inbox.recv_timeout(wait.max(SAVE_IDLE)) {
                Ok(command) => Some(Work::Command(command)),
                Err(RecvTimeoutError::Timeout) => Some(Work::Saving),
                Err(RecvTimeoutError::Disconnected) => None,
            };
        }
        match inbox.try_recv() {
            Ok(command) => Some(Work::Command(command)),
            Err(TryRecvError::Empty) => Some(Work::Training),
            Err(TryRecvError::Disconnected) => None,
        }
    }

    /// Of the two files, those that `wants` says. The private one has the trainer's inner state.
    fn wanted(&self, wants: fn(&Behind) -> bool) -> Result<Wanted, WorkerError> {
        let inner = wants(&self.private_file).then(|| self.trainer.inner_state());
        Ok(Wanted {
            state: wants(&self.state_file),
            inner: inner.transpose()?,
        })
    }

    /// Writes the files that `wants` says, before anything else.
    fn save(&mut self, wants: fn(&Behind) -> bool) -> Result<(), WorkerError> {
        let wanted = self.wanted(wants)?;
        let written = self.durable.write(&wanted)?;
        written.note(&mut self.state_file, &mut self.private_file);
        Ok(())
    }

    fn perform(&mut self, command: Command) -> Result<Option<Event>, WorkerError> {
        match command {
            Command::Train {
                round,
                seed,
                steps,
                start,
            } => {
                self.begin_training(round, seed, steps, &start);
                Ok(None)
            }
            Command::Encode {
                round,
                stage,
                shards,
            } => self.encode(round, stage, shards),
            Command::StopTraining(round) => self.stop_training(round).map(|()| None),
            Command::Apply {
                record,
                shards,
                groups,
                ends_epoch,
            } => self.apply(&record, &shards, &groups, ends_epoch).map(Some),
            Command::Adopt {
                round,
                root,
                leaves,
                tiles,
            } => self.adopt(round, root, leaves, &tiles).map(Some),
            Command::Audit(task) => self.audit(&task),
            Command::AdoptGenesis => {
                let genesis = genesis(&self.config)?;
                self.replace(RoundId::FOUNDING, genesis).map(Some)
            }
        }
    }

    fn apply(
        &mut self,
        record: &DecisionRecord,
        shards: &[DecidedFrames],
        groups: &[GroupId],
        ends_epoch: bool,
    ) -> Result<Event, WorkerError> {
        let began = Instant::now();
        let round = record.decision.round;
        self.release_theta()?;
        self.keep_start(round);
        let own = self
            .durable
            .pending
            .take_if(|pending| pending.round <= round);
        let own = own
            .map(|pending| self.own_outcome(&pending, Some(record)))
            .transpose()?;
        let shards: Vec<RoundShard<'_>> = shards
            .iter()
            .map(|shard| RoundShard {
                stage: shard.stage,
                contributions: shard
                    .contributions
                    .iter()
                    .map(|(tokens, frame)| Contribution {
                        tokens: *tokens,
                        frame,
                    })
                    .collect(),
                residuals: shard.residuals.clone(),
            })
            .collect();
        let (replica, own) = (&mut self.durable.replica, own.as_ref());
        self.workers
            .run(|| replica.apply(&shards, own.map(OwnOutcome::update), groups))
            .map_err(|source| WorkerError::Apply { round, source })?;
        self.land(round);
        if let Some(carried) = Carried::of(record, &self.config.me) {
            self.carried = Some(carried);
        }
        self.durable.applied = Some(round);
        self.state_file.change();
        self.private_file.change();
        let state_root = self.durable.replica.state_root();
        let (mut snapshot, mut checkpoint) = (None, None);
        if ends_epoch {
            self.keep_snapshot(round)?;
            self.save(Behind::has_changed)?;
            snapshot = Some(self.snapshot(round));
            checkpoint = Some(self.write_checkpoint(round, state_root)?);
        }
        Ok(Event::Applied {
            round,
            state_root,
            seconds: began.elapsed(),
            snapshot,
            checkpoint,
        })
    }

    /// What `record` made of an own update.
    fn own_outcome(
        &self,
        pending: &Pending,
        record: Option<&DecisionRecord>,
    ) -> Result<OwnOutcome, WorkerError> {
        let record = record.filter(|record| record.decision.round == pending.round);
        let place = record.and_then(|record| {
            let mut headers = record.headers.iter();
            headers
                .position(|h| h.header.peer == self.config.me && h.header.update == pending.summary)
        });
        // A decision has the shards that an update of its round is of.
        let accepts = |shard: usize| match (record, place) {
            (Some(record), Some(place)) => {
                let shard = record.decision.shards.get(shard);
                shard.is_some_and(|shard| shard.accepted.contains(place))
            }
            _ => false,
        };
        let (round, summary) = (pending.round, &pending.summary);
        let accepted: Vec<bool> = (0..summary.frames.len()).map(accepts).collect();
        let frames = accepted.iter().enumerate().map(|(shard, accepted)| {
            if *accepted {
                return Ok(Vec::new());
            }
            let hash = summary.frames[shard].hash;
            Ok(self.own_frame(round, &hash)?.into())
        });
        Ok(OwnOutcome {
            stage: pending.stage,
            shards: pending.shards(),
            frames: frames.collect::<Result<_, WorkerError>>()?,
            accepted,
        })
    }

    fn adopt(
        &mut self,
        round: RoundId,
        root: Hash,
        leaves: Vec<Hash>,
        tiles: &[Bytes],
    ) -> Result<Event, WorkerError> {
        let settings = &self.config.settings;
        let specs = settings.model.parameters();
        let mut import = StateImport::new(&specs, settings.replica, root, leaves)?;
        for (index, tile) in tiles.iter().enumerate() {
            import.put(index, tile)?;
        }
        let replica = import.finish()?;
        self.replace(round, replica)
    }

    /// This peer's newest decided update, as far as the next one goes on from it.
    fn newest_decided(&self) -> Result<Option<Carried>, WorkerError> {
        if self.config.settings.audit.is_none() {
            return Ok(None);
        }
        let mut end = self.durable.applied.unwrap_or_default().0;
        while end > 0 {
            let first = end.saturating_sub(RECORDS_AT_ONCE - 1);
            let count = u32::try_from(end - first + 1).unwrap_or(u32::MAX);
            let records = self.config.store.decisions(RoundId(first), count)?;
            let mut newest = records.iter().rev();
            if let Some(carried) = newest.find_map(|record| Carried::of(record, &self.config.me)) {
                return Ok(Some(carried));
            }
            end = first.saturating_sub(1);
        }
        Ok(None)
    }

    /// Puts `replica` in the place of the one at hand, keeping this peer's own error feedback and inner state.
    fn replace(&mut self, round: RoundId, mut replica: Replica) -> Result<Event, WorkerError> {
        // Whatever is trained is not trained from this state.
        self.stop_training(RoundId(u64::MAX))?;
        let private = self.durable.replica.save_private(&[]);
        if let Err(error) = replica.restore_private(&private) {
            tracing::warn!(%error, "error feedback starts anew");
        }
        self.durable.replica = replica;
        self.durable.applied = Some(round);
        let pending = self.durable.pending.take();
        self.settle_pending(pending)?;
        self.durable.snapshots.clear();
        self.keep_snapshot(round)?;
        self.state_file.change();
        self.private_file.change();
        self.save(Behind::has_changed)?;
        let snapshot = self.snapshot(round);
        Ok(Event::Adopted { round, snapshot })
    }

    /// Keeps an own update whose round is still to be applied; gives back what a round that is applied left out of it.
    fn settle_pending(&mut self, pending: Option<Pending>) -> Result<(), WorkerError> {
        let Some(pending) = pending else {
            return Ok(());
        };
        if Some(pending.round) > self.durable.applied {
            self.durable.pending = Some(pending);
            return Ok(());
        }
        let record = self.config.store.decisions(pending.round, 1)?.pop();
        let round = pending.round;
        match self.own_outcome(&pending, record.as_ref()) {
            Ok(own) => Ok(self.durable.replica.settle(own.update())?),
            Err(error) => {
                tracing::warn!(%round, %error, "what the round left out of the own update is lost");
                Ok(())
            }
        }
    }

    /// Keeps the state after `round` and the frames since the oldest state that is kept.
    fn keep_snapshot(&mut self, round: RoundId) -> Result<(), WorkerError> {
        self.durable.snapshots.retain(|kept| *kept < round);
        self.durable.snapshots.push(round);
        let surplus = self.durable.snapshots.len().saturating_sub(SNAPSHOTS_KEPT);
        self.durable.snapshots.drain(..surplus);
        if let Some(oldest) = self.durable.snapshots.first() {
            self.durable.disk.release_frames_before(oldest.next())?;
        }
        Ok(())
    }

    fn snapshot(&self, round: RoundId) -> Snapshot {
        let replica = &self.durable.replica;
        let lengths = (0..replica.leaf_count()).filter_map(|index| replica.leaf_bytes(index));
        Snapshot {
            round,
            path: self.durable.disk.state_path(round),
            frames_from: self
                .durable
                .snapshots
                .first()
                .map_or(round, |kept| *kept)
                .next(),
            leaves: replica.leaves().into_iter().zip(lengths).collect(),
        }
    }

    fn write_checkpoint(
        &mut self,
        round: RoundId,
        root: Hash,
    ) -> Result<WrittenCheckpoint, WorkerError> {
        let path = self.config.state_dir.checkpoint(round.0);
        let written = WrittenCheckpoint {
            round,
            root,
            path: path.clone(),
            loss_held_out: self.loss_held_out(),
        };
        if path.exists() {
            // Written before a restart, from the same state.
            return Ok(written);
        }
        let provenance = Provenance {
            run: self.config.run.to_string(),
            round: round.0,
            state_root: root.to_string(),
            residual_leaves: self
                .durable
                .replica
                .residual_leaves()
                .iter()
                .map(Hash::to_string)
                .collect(),
        };
        checkpoint::write(
            &path,
            &self.config.settings.model,
            self.durable.replica.theta(),
            Precision::F32,
            Some(&provenance),
        )?;
        Ok(written)
    }

    /// The loss of theta on the first held-out windows. A figure for people: without one the checkpoint stands.
    fn loss_held_out(&mut self) -> Option<f32> {
        let windows = self
            .corpus
            .windows(self.config.settings.sequence_tokens)
            .ok()?;
        let indices: Vec<u64> = (0..windows.held_out().min(HELD_OUT_WINDOWS)).collect();
        let batch = windows.validation_batch(&indices).ok()?;
        match self.trainer.loss(self.durable.replica.theta(), &batch) {
            Ok(loss) => Some(loss),
            Err(error) => {
                tracing::warn!(%error, "no held-out loss");
                None
            }
        }
    }
}

/// What a decided update leaves for the next one of its peer (rules `carried-or-zero` and `feedback-carries` of
/// `gradmesh_protocol::audit`).
#[derive(Clone, Copy, Debug)]
struct Carried {
    round: RoundId,
    /// Root of the inner optimizer's state after it.
    inner: Hash,
    /// Root of the error feedback after it.
    feedback: Hash,
    /// Whether all of its shards were accepted.
    whole: bool,
}

impl Carried {
    /// What `record` has of `peer`.
    fn of(record: &DecisionRecord, peer: &PeerKey) -> Option<Carried> {
        let mut headers = record.headers.iter();
        let place = headers.position(|signed| signed.header.peer == *peer)?;
        let update = &record.headers.get(place)?.header.update;
        let shards = &record.decision.shards;
        Some(Carried {
            round: record.decision.round,
            inner: update.work.inner_after,
            feedback: update.feedback_after,
            whole: shards.iter().all(|shard| shard.accepted.contains(place)),
        })
    }
}

fn micronats(loss: f32) -> u64 {
    // A loss is finite (the trainer checks) and not negative; the cast saturates.
    (f64::from(loss) * 1e6).round() as u64
}

fn genesis(config: &WorkerConfig) -> Result<Replica, WorkerError> {
    let settings = &config.settings;
    let theta = settings.model.init(config.seed.0)?;
    let specs = settings.model.parameters();
    Ok(Replica::new(&specs, settings.replica, theta)?)
}

/// The newest state on disk that can be read; older ones stand in for a damaged one.
fn newest_state(
    disk: &Disk,
    config: &WorkerConfig,
) -> Result<Option<(RoundId, Replica)>, WorkerError> {
    for round in disk.state_rounds()?.into_iter().rev() {
        let read = disk.read_state(round).map_err(WorkerError::from);
        match read.and_then(|leaves| Ok(import_state(config, &leaves)?)) {
            Ok(replica) => return Ok(Some((round, replica))),
            Err(error) => {
                let path = disk.state_path(round);
                tracing::warn!(path = %path.display(), %error, "state is damaged; trying an older one");
            }
        }
    }
    Ok(None)
}

fn import_state(config: &WorkerConfig, contents: &[Bytes]) -> Result<Replica, ImportError> {
    let leaves: Vec<Hash> = contents.iter().map(|leaf| Hash::of_content(leaf)).collect();
    let root = merkle::Tree::from_leaves(leaves.clone()).root();
    let specs = config.settings.model.parameters();
    let mut import = StateImport::new(&specs, config.settings.replica, root, leaves)?;
    for (index, content) in contents.iter().enumerate() {
        import.put(index, content)?;
    }
    import.finish()
}

/// Restores error feedback and inner state; without them the peer goes on with none.
fn restore_private(
    disk: &Disk,
    replica: &mut Replica,
    trainer: &mut dyn Trainer,
) -> Result<Option<Pending>, WorkerError> {
    let Some(PrivateFile { pending, private }) = disk.read_private()? else {
        return Ok(None);
    };
    match replica.restore_private(&private) {
        Ok(inner) => {
            if let Err(error) = trainer.set_inner_state(inner) {
                tracing::warn!(%error, "inner optimizer starts anew");
            }
            Ok(pending)
        }
        Err(error) => {
            tracing::warn!(%error, "error feedback starts anew");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests;
