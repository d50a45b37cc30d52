//! The worker by itself: training and applying take turns.

use std::fs;

use gradmesh_protocol::agreement::CommitCertificate;
use gradmesh_protocol::decision::Decision;
use gradmesh_protocol::key::Keypair;
use gradmesh_protocol::manifest;
use gradmesh_trainer::synthetic::SyntheticConfig;
use tempfile::TempDir;

use super::*;

const STEPS: u32 = 50;

/// A worker that stands after the founding round.
struct Bench {
    worker: Worker,
    events: mpsc::Receiver<Event>,
    shards: usize,
    _home: TempDir,
}

impl Bench {
    /// Steps take `step_ms`.
    fn new(step_ms: u64) -> Bench {
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
        };
        let (worker, standing, events) = Worker::start(config).unwrap();
        let mut bench = Bench {
            worker,
            events,
            shards: standing.shape.shard_count(),
            _home: home,
        };
        bench.apply(RoundId::FOUNDING, &[]);
        let applied = bench.next();
        assert!(matches!(applied, Event::Applied { .. }), "{applied:?}");
        bench
    }

    fn command(&self, command: Command) {
        assert!(self.worker.command(command));
    }

    fn next(&mut self) -> Event {
        self.events.blocking_recv().expect("the worker goes on")
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
        self.command(Command::Encode {
            round: RoundId(round),
            stage: Stage::Update,
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
        let shard = |shard: usize| DecidedFrames {
            stage: Stage::Update,
            contributions: frames
                .get(shard)
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
            shards: (0..self.shards).map(shard).collect(),
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
            stage: Stage::Update,
            frames: first.frames.clone(),
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
    let applied = bench.next();
    assert!(matches!(applied, Event::Applied { .. }), "{applied:?}");
}

#[test]
fn a_file_that_takes_long_to_write_is_written_less_often() {
    let mut file = Behind {
        changed: true,
        not_before: None,
    };
    assert!(file.is_due());
    let took = Duration::from_secs(3);
    let began = Instant::now().checked_sub(took).unwrap();
    file.written_since(began);
    let rest = took * SAVE_PERIOD_WRITES;
    assert!(file.not_before >= began.checked_add(took + rest));
    assert!(!file.is_due());
    file.changed = true;
    assert!(!file.is_due());
}
