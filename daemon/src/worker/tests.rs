//! The worker by itself: training and applying take turns.

use std::{fs, thread};

use gradmesh_compression::decode;
use gradmesh_protocol::agreement::CommitCertificate;
use gradmesh_protocol::decision::Decision;
use gradmesh_protocol::key::Keypair;
use gradmesh_protocol::manifest::{self, CodecKind, Manifest};
use gradmesh_trainer::synthetic::SyntheticConfig;
use tempfile::TempDir;

use super::*;

const STEPS: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker, and what it says.
struct Bench {
    worker: Worker,
    events: mpsc::Receiver<Event>,
    shape: Arc<Shape>,
    disk: Disk,
    config: WorkerConfig,
    _home: TempDir,
}

/// A started worker; its events come outside of any runtime.
fn start(config: WorkerConfig) -> (Worker, Standing, mpsc::Receiver<Event>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let started = runtime.unwrap().block_on(Worker::start(config, None));
    started.unwrap()
}

impl Bench {
    /// Stands after the founding round. Steps take `step_ms`.
    fn new(step_ms: u64) -> Bench {
        Bench::with(step_ms, |_| {})
    }

    /// The same with these changes to the manifest.
    fn with(step_ms: u64, change: impl FnOnce(&mut Manifest)) -> Bench {
        let mut bench = Bench::before_any_round(step_ms, change);
        bench.apply(RoundId::FOUNDING, &[]);
        bench.applied();
        bench
    }

    fn before_any_round(step_ms: u64, change: impl FnOnce(&mut Manifest)) -> Bench {
        let home = tempfile::tempdir().unwrap();
        let data_dir = home.path().join("text");
        fs::create_dir(&data_dir).unwrap();
        fs::write(
            data_dir.join("licence.txt"),
            include_str!("../../../LICENSE-APACHE"),
        )
        .unwrap();
        let keypair = Keypair::from_seed(&[1; 32]);
        let mut manifest = manifest::example(keypair.public());
        manifest.model.config_json = SyntheticConfig::new(vec![20_000, 100], step_ms).to_json();
        manifest.schedule.steps_per_round = STEPS;
        manifest.codec.tiles_per_shard = 2;
        change(&mut manifest);
        let state_dir = StateDir::new(home.path().join("peer"));
        state_dir.create().unwrap();
        let config = WorkerConfig {
            store: Arc::new(Store::open(&state_dir).unwrap()),
            state_dir,
            settings: RunSettings::of(&manifest).unwrap(),
            run: manifest.run(),
            seed: manifest.seed,
            me: keypair.public(),
            data: DataManifest::scan(&data_dir).unwrap(),
            data_dir,
            device: device::Request::Cpu,
            threads: 1,
            validates: false,
        };
        let (worker, standing, events) = start(config.clone());
        Bench {
            worker,
            events,
            shape: standing.shape,
            disk: standing.disk,
            config,
            _home: home,
        }
    }

    /// Ends the worker, and starts it again from what is on the disk.
    fn restart(self) -> Bench {
        self.worker.shutdown();
        let (worker, standing, events) = start(self.config.clone());
        Bench {
            worker,
            events,
            disk: standing.disk,
            ..self
        }
    }

    fn command(&self, command: Command) {
        assert!(self.worker.command(command));
    }

    fn next(&mut self) -> Event {
        self.events.blocking_recv().expect("the worker goes on")
    }

    /// The next that it says is that a round is applied.
    fn applied(&mut self) {
        let applied = self.next();
        assert!(matches!(applied, Event::Applied { .. }), "{applied:?}");
    }

    /// Waits until the state after `round` is on the disk.
    fn wait_state(&self, round: u64) {
        let deadline = Instant::now() + PATIENCE;
        while !self.disk.state_rounds().unwrap().contains(&RoundId(round)) {
            assert!(Instant::now() < deadline, "round {round} is not saved");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn train(&self, round: u64, start: Start) {
        self.command(Command::Train {
            round: RoundId(round),
            seed: Hash::of_content(b"seed"),
            steps: STEPS,
            start,
        });
    }

    fn encode(&self, round: u64) {
        self.encode_of(round, 0..self.shape.shard_count());
    }

    fn encode_of(&self, round: u64, shards: Range<usize>) {
        self.command(Command::Encode {
            round: RoundId(round),
            stage: Stage::Update,
            shards,
        });
    }

    /// Waits until a step of `round` is done.
    fn wait_step(&mut self, round: u64) {
        let progress =
            |event: Event| matches!(event, Event::Progress { round: of, .. } if of.0 == round);
        while !progress(self.next()) {}
    }

    /// Waits for the update of `round`.
    fn update(&mut self, round: u64) -> (UpdateSummary, Vec<Bytes>) {
        loop {
            match self.next() {
                Event::Update {
                    round: of,
                    summary,
                    frames,
                    ..
                } => {
                    assert_eq!(of, RoundId(round));
                    return (*summary, frames);
                }
                Event::Progress { .. } => {}
                other => panic!("no update but {other:?}"),
            }
        }
    }

    /// Has the decision of a round applied that accepts these frames, one of each shard, and of nobody's header.
    fn apply(&mut self, round: RoundId, frames: &[Bytes]) {
        self.apply_of(round, 0, frames);
    }

    /// The same with frames of some shards, from this one on.
    fn apply_of(&mut self, round: RoundId, first: usize, frames: &[Bytes]) {
        let shard = |shard: usize| DecidedFrames {
            stage: Stage::Update,
            contributions: shard
                .checked_sub(first)
                .and_then(|place| frames.get(place))
                .map(|f| (1, f.clone()))
                .into_iter()
                .collect(),
            residuals: Vec::new(),
        };
        let decision = Decision {
            run: RunId(Hash::ZERO),
            round,
            previous: Hash::ZERO,
            state_root: Hash::ZERO,
            members: Vec::new(),
            shards: Vec::new(),
            joins: Vec::new(),
            leaves: Vec::new(),
            registry: None,
            powers: Vec::new(),
            capacities: Vec::new(),
        };
        let certificate = CommitCertificate {
            height: round,
            attempt: 0,
            value: decision.id(),
            signatures: Vec::new(),
        };
        self.command(Command::Apply {
            record: Arc::new(DecisionRecord {
                decision,
                certificate,
                headers: Vec::new(),
            }),
            shards: (0..self.shape.shard_count()).map(shard).collect(),
            groups: Vec::new(),
            ends_epoch: false,
        });
    }
}

#[test]
fn a_decision_is_applied_in_the_middle_of_the_next_rounds_training() {
    let mut bench = Bench::new(20);
    bench.train(1, Start::State);
    bench.encode(1);
    let (first, frames) = bench.update(1);
    bench.train(
        2,
        Start::Ahead {
            frames: (0..)
                .zip(&first.frames)
                .map(|(shard, frame)| frame.id(shard, Stage::Update))
                .collect(),
        },
    );
    bench.wait_step(2);
    bench.apply(RoundId(1), &frames);
    bench.encode(2);
    let mut step_before = 0;
    loop {
        match bench.next() {
            Event::Progress { step, .. } => step_before = step,
            Event::Applied { round, .. } => break assert_eq!(round, RoundId(1)),
            other => panic!("{other:?}"),
        }
    }
    assert!(step_before < STEPS, "applied after the last step");
    let (second, _) = bench.update(2);
    // All steps, each once, though in two calls of the trainer.
    assert_eq!(second.steps, first.steps);
    assert_eq!(second.tokens, first.tokens);
    // Nothing of round 1 was accepted as this peer's: it is in the error feedback before round 2.
    assert_ne!(second.feedback_before, first.feedback_after);
}

#[test]
fn what_is_learnt_before_a_stop_goes_into_the_error_feedback_and_the_round_may_be_trained_anew() {
    let mut bench = Bench::new(0);
    bench.train(1, Start::State);
    bench.encode(1);
    let (undisturbed, _) = bench.update(1);

    let mut bench = Bench::new(20);
    bench.train(1, Start::State);
    bench.wait_step(1);
    bench.command(Command::StopTraining(RoundId(1)));
    bench.train(1, Start::State);
    bench.encode(1);
    let (anew, _) = bench.update(1);
    assert_eq!(anew.steps, STEPS);
    assert_ne!(anew.feedback_before, undisturbed.feedback_before);
}

#[test]
fn what_is_learnt_outside_a_rounds_fragment_goes_with_its_turn_and_outlives_a_restart() {
    let mut bench = Bench::with(0, |manifest| {
        manifest.codec.kind = CodecKind::DenseF32;
        manifest.codec.feedback_beta_ppm = 1_000_000;
    });
    let shape = Arc::clone(&bench.shape);
    let shards: Vec<_> = shape
        .layout()
        .shards(shape.config().tiles_per_shard)
        .collect();
    assert_eq!(shards.len(), 3);
    let mut largest = Vec::new();
    for (round, shard) in (1..).zip(0..3) {
        if round == 3 {
            bench = bench.restart();
        }
        bench.train(round, Start::State);
        bench.encode_of(round, shard..shard + 1);
        let (summary, frames) = bench.update(round);
        assert_eq!((summary.frames.len(), frames.len()), (1, 1));
        let tiles = &shape.layout().tiles()[shards[shard].clone()];
        let frame = decode(&frames[0], tiles, shape.config().codec).unwrap();
        let mut values = vec![0.0; frame.elements()];
        frame.dequantise_into(&mut values);
        let most = values
            .iter()
            .fold(0.0f32, |most, value| most.max(value.abs()));
        largest.push(most);
        bench.apply_of(RoundId(round), shard, &frames);
        bench.applied();
    }
    // A round of the synthetic model moves each element by up to 0.01, and some of thousands by nearly that: an update that had
    // the drift of one round less would not reach so far.
    for (rounds, most) in (1u8..).zip(&largest) {
        let reach = 0.01 * f32::from(rounds);
        assert!(
            *most <= reach * 1.001 && *most > reach - 0.01,
            "{largest:?}"
        );
    }
}

#[test]
fn an_update_is_encoded_when_that_is_asked_for_and_no_sooner() {
    let mut bench = Bench::new(0);
    bench.train(1, Start::State);
    loop {
        match bench.next() {
            Event::Progress { step, .. } if step == STEPS => break,
            Event::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    // Applying comes first in the queue, so that an update that nobody asked for would be before its event.
    bench.apply(RoundId(1), &[]);
    bench.applied();
}

#[test]
fn a_state_is_written_beside_a_step_of_the_training() {
    // Longer than the patience: a state that is written after the step is none.
    let mut bench = Bench::before_any_round(600_000, |_| {});
    // The word to train is there when the round is applied, so that the worker is not idle.
    bench.apply(RoundId::FOUNDING, &[]);
    bench.train(1, Start::State);
    bench.applied();
    bench.wait_state(0);
}

#[test]
fn states_are_written_while_nobody_asks_for_anything() {
    let mut bench = Bench::new(0);
    for round in 0..2 {
        // The second is not due at first.
        bench.wait_state(round);
        bench.apply(RoundId(round + 1), &[]);
        bench.applied();
    }
}
