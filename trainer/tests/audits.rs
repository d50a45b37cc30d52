//! Whole rounds of an honest peer and one that may cheat, segment by segment, and an auditor that does each segment again.
//!
//! Both run the same program around their trainers: it records, commits, compresses and serves. The auditor has only what was
//! committed to, what is served under those roots, and public data.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use gradmesh_compression::{Codec, DenseFormat, TopK, ValueBits};
use gradmesh_protocol::audit::judgement::{FLOOR_F32_PPB, judge};
use gradmesh_protocol::audit::segment::{SegmentList, StateRoots, data_hash, steps_of};
use gradmesh_protocol::audit::verdict::Outcome;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::manifest::TOLERANCE_PPB_MAX;
use gradmesh_trainer::adversary::{Kind, Others, partial, wrap};
use gradmesh_trainer::audit::{
    Redone, TileInputs, check_tile, decode_update, redo, relative_error_ppb,
};
use gradmesh_trainer::data::{Corpus, Windows, assignment};
use gradmesh_trainer::reference::{ReferenceConfig, ReferenceTrainer};
use gradmesh_trainer::replica::{
    Contribution, Outer, OwnUpdate, Replica, ReplicaConfig, RoundShard,
};
use gradmesh_trainer::work::{
    Recorder, WorkState, chunk_lengths, theta_root, zero_inner, zero_inner_root,
};
use gradmesh_trainer::{Batch, InnerOptimizer, TrainTask, Trainer};

const ROUNDS: u32 = 3;
const STEPS: u32 = 10;
const SEGMENTS: u32 = 5;
const SEQUENCES: usize = 4;
const SEQ_LEN: usize = 16;
const STEP_TOKENS: u64 = (SEQUENCES * SEQ_LEN) as u64;
const SEED: Hash = Hash([7; 32]);

/// The most that any pair of devices may be granted.
const CAP: u64 = TOLERANCE_PPB_MAX as u64;
/// A thousand times what f32 is granted.
const FAR_F32: u64 = 1000 * FLOOR_F32_PPB as u64;
/// The error of an update of zero.
const NOTHING_DONE: u64 = 1_000_000_000;

/// 12 kB of made-up sentences: words of a fixed list in an order that a small linear generator gives.
fn corpus() -> Corpus {
    let words = [
        "round", "peer", "tile", "shard", "frame", "root", "mesh", "step",
    ];
    let mut state = 1u32;
    let mut text = String::new();
    while text.len() < 12_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(words[(state >> 29) as usize]);
        text.push(if state >> 20 & 7 == 0 { '\n' } else { ' ' });
    }
    Corpus::from_bytes(text.into_bytes())
}

fn trainer() -> Box<dyn Trainer> {
    let optimizer = InnerOptimizer {
        learning_rate: 5e-3,
        warmup_steps: 2,
        ..InnerOptimizer::default()
    };
    let trainer = ReferenceTrainer::new(ReferenceConfig::default(), optimizer);
    Box::new(trainer.expect("settings"))
}

fn replica() -> Replica {
    let sparse = Codec::Sparse {
        k: TopK::new(256).expect("256 is in range"),
        value_bits: ValueBits::One,
    };
    let config = ReplicaConfig {
        codec: sparse,
        reduced: sparse,
        local: Codec::Dense(DenseFormat::Bf16),
        outer: Outer::Plain { rate: 2.0 },
        feedback_beta: 0.95,
        owner_beta: 0.9,
        sparse_elements_min: 512,
        tiles_per_shard: NonZeroUsize::MIN,
    };
    let model = ReferenceConfig::default();
    Replica::new(&model.parameters(), config, model.init([3; 32])).expect("replica")
}

struct Peer {
    hotkey: [u8; 32],
    trainer: Box<dyn Trainer>,
    replica: Replica,
}

/// What a peer commits to and serves of a round.
struct Round {
    number: u32,
    hotkey: [u8; 32],
    list: SegmentList,
    /// Each state as the bytes that its file has.
    states: Vec<Vec<u8>>,
    start: Vec<f32>,
    feedback_before: Vec<f32>,
    feedback_after: Vec<f32>,
    frames: Vec<Vec<u8>>,
}

/// The windows that a peer is assigned in a step.
fn assigned(round: u32, hotkey: &[u8; 32], step: u32, windows: &Windows<'_>) -> Vec<u64> {
    let seed = round.to_le_bytes();
    assignment(&seed, hotkey, step, SEQUENCES, windows.training())
}

fn batch(round: u32, hotkey: &[u8; 32], step: u32, windows: &Windows<'_>) -> Result<Batch, String> {
    let indices = assigned(round, hotkey, step, windows);
    windows
        .training_batch(&indices)
        .map_err(|error| error.to_string())
}

fn segment_data(round: u32, hotkey: &[u8; 32], steps: Range<u32>, windows: &Windows<'_>) -> Hash {
    data_hash(steps.flat_map(|step| assigned(round, hotkey, step, windows)))
}

fn global_step(round: u32, step: u32) -> u64 {
    u64::from(round * STEPS + step)
}

impl Peer {
    fn new(hotkey: u8, trainer: Box<dyn Trainer>) -> Peer {
        Peer {
            hotkey: [hotkey; 32],
            trainer,
            replica: replica(),
        }
    }

    /// Trains segment by segment, each from where the one before ended, and encodes the update.
    fn work(&mut self, number: u32, windows: &Windows<'_>) -> Round {
        let hotkey = self.hotkey;
        let start = self.replica.theta().to_vec();
        let mut recorder = Recorder::new(SEGMENTS, STEPS);
        let mut state = WorkState {
            theta: start.clone(),
            inner: self.trainer.inner_state().expect("inner state"),
        };
        recorder.begin(state.leaves().expect("own state").roots());
        let mut states = vec![state.to_bytes().expect("own state")];
        for segment in 0..SEGMENTS {
            let steps = steps_of(segment, SEGMENTS, STEPS);
            let task = TrainTask {
                first_step: steps.start,
                steps: steps.end - steps.start,
                global_step: global_step(number, steps.start),
            };
            let mut batches = |step| batch(number, &hotkey, step, windows);
            let report = self
                .trainer
                .train(&state.theta, &task, &mut batches, &mut |step| {
                    recorder.step(step, STEP_TOKENS);
                    true
                })
                .expect("training");
            assert_eq!(report.tokens, u64::from(task.steps) * STEP_TOKENS);
            state = WorkState {
                theta: self.trainer.local(),
                inner: self.trainer.inner_state().expect("inner state"),
            };
            let roots = state.leaves().expect("own state").roots();
            recorder.end_segment(roots, segment_data(number, &hotkey, steps, windows));
            states.push(state.to_bytes().expect("own state"));
        }
        let feedback_before = self.replica.feedback_values().into_owned();
        let update = self
            .replica
            .update(&start, &state.theta, Stage::Update)
            .expect("update");
        Round {
            number,
            hotkey,
            list: recorder.finish().expect("all segments"),
            states,
            start,
            feedback_before,
            feedback_after: self.replica.feedback_values().into_owned(),
            frames: update.frames,
        }
    }
}

/// Both peers apply both updates.
fn apply(peers: &mut [Peer], rounds: &[Round]) {
    let shards: Vec<RoundShard<'_>> = (0..rounds[0].frames.len())
        .map(|shard| RoundShard {
            stage: Stage::Update,
            contributions: rounds
                .iter()
                .map(|round| Contribution {
                    tokens: u64::from(STEPS) * STEP_TOKENS,
                    frame: &round.frames[shard],
                })
                .collect(),
            residuals: Vec::new(),
        })
        .collect();
    for (peer, round) in peers.iter_mut().zip(rounds) {
        let own = OwnUpdate {
            stage: Stage::Update,
            shards: 0..round.frames.len(),
            frames: &round.frames,
            accepted: &vec![true; round.frames.len()],
        };
        peer.replica.apply(&shards, Some(own), &[]).expect("apply");
    }
}

/// A state as an auditor gets it: chunk by chunk, and under the roots that were committed to.
fn served(bytes: &[u8], roots: &StateRoots) -> WorkState {
    let elements = replica().theta().len();
    let mut rest = bytes;
    let mut chunks = Vec::new();
    for length in chunk_lengths(elements) {
        let (chunk, behind) = rest.split_at(usize::try_from(length).expect("length"));
        chunks.push(chunk);
        rest = behind;
    }
    let state = WorkState::from_chunks(elements, &chunks).expect("chunks");
    assert_eq!(state.leaves().expect("leaves").roots(), *roots);
    state
}

/// Does a segment again: its error, and what came out.
fn audit(round: &Round, segment: u32, windows: &Windows<'_>) -> (u64, Redone) {
    let at = segment as usize;
    let start = served(&round.states[at], &round.list.states()[at]);
    let claimed = served(&round.states[at + 1], &round.list.states()[at + 1]);
    let steps = steps_of(segment, SEGMENTS, STEPS);
    let first = global_step(round.number, steps.start);
    let mut batches = |step| batch(round.number, &round.hotkey, step, windows);
    let mut trainer = trainer();
    let redone = redo(trainer.as_mut(), &start, steps, first, &mut batches).expect("done again");
    let error = relative_error_ppb(&start.theta, &claimed.theta, &redone.state.theta);
    (error, redone)
}

/// That a segment which was honestly done comes out the same to the bit, with all that was said of it.
fn assert_exact(round: &Round, segment: u32, redone: &Redone) {
    let at = segment as usize;
    let roots = redone.state.leaves().expect("leaves").roots();
    assert_eq!(roots, round.list.states()[at + 1]);
    let work = round.list.work()[at];
    let of_work = (work.tokens, work.loss_micronats, work.gradient_norm_micro);
    let again = (
        redone.tokens,
        redone.loss_micronats,
        redone.gradient_norm_micro,
    );
    assert_eq!(of_work, again);
}

/// That every tile was compressed by the rules.
fn assert_compressed(round: &Round) {
    let replica = replica();
    let shape = replica.shape();
    let last = &round.list.states()[SEGMENTS as usize];
    let local = served(&round.states[SEGMENTS as usize], last).theta;
    for (tile, at) in shape.layout().tiles().iter().enumerate() {
        let at = at.elements();
        let inputs = TileInputs {
            tile,
            feedback_before: &round.feedback_before[at.clone()],
            start: &round.start[at.clone()],
            local: &local[at.clone()],
            feedback_after: &round.feedback_after[at],
        };
        check_tile(shape, Stage::Update, &inputs, &round.frames).expect("honest compression");
    }
}

/// That the round began where it had to, and on the data that it was given.
fn assert_start(round: &Round, before: Option<&Round>, windows: &Windows<'_>) {
    let first = round.list.states()[0];
    assert_eq!(first.theta, theta_root(&round.start));
    let carried = match before {
        Some(before) => before.list.commitment().inner_after,
        None => zero_inner_root(round.start.len()),
    };
    assert_eq!(first.inner, carried);
    for segment in 0..SEGMENTS {
        let steps = steps_of(segment, SEGMENTS, STEPS);
        let data = segment_data(round.number, &round.hotkey, steps, windows);
        assert_eq!(round.list.work()[segment as usize].data, data);
    }
}

/// Runs an honest peer beside the one that `disguise` makes, and gives the latter's errors: by round, by segment.
///
/// On the way it checks that nothing else gives either away, and that every audit of the honest one is exact.
fn errors(disguise: impl FnOnce(Box<dyn Trainer>, Others) -> Box<dyn Trainer>) -> Vec<Vec<u64>> {
    let corpus = corpus();
    let windows = corpus.windows(SEQ_LEN).expect("windows");
    let newest: Arc<Mutex<Option<Vec<f32>>>> = Arc::default();
    let others = {
        let newest = Arc::clone(&newest);
        Box::new(move || newest.lock().expect("no panic").clone())
    };
    let mut peers = [
        Peer::new(1, trainer()),
        Peer::new(2, disguise(trainer(), others)),
    ];
    let mut before: Option<Vec<Round>> = None;
    let mut errors = Vec::new();
    for number in 0..ROUNDS {
        let rounds: Vec<Round> = peers
            .iter_mut()
            .map(|peer| peer.work(number, &windows))
            .collect();
        for (peer, round) in rounds.iter().enumerate() {
            let before = before.as_ref().map(|rounds| &rounds[peer]);
            assert_start(round, before, &windows);
            assert_compressed(round);
        }
        let mut of_round = Vec::new();
        for segment in 0..SEGMENTS {
            let (error, redone) = audit(&rounds[0], segment, &windows);
            assert_eq!(error, 0);
            assert_exact(&rounds[0], segment, &redone);

            let (error, redone) = audit(&rounds[1], segment, &windows);
            if error == 0 {
                assert_exact(&rounds[1], segment, &redone);
            }
            let claimed = rounds[1].list.work()[segment as usize];
            assert_eq!(claimed.tokens, redone.tokens, "it claims all of the work");
            // A model that knows nothing has ln 256 = 5.5 nats; an honest one is below soon.
            assert!((1..6_000_000).contains(&claimed.loss_micronats));
            of_round.push(error);
        }
        errors.push(of_round);
        apply(&mut peers, &rounds);
        let update = decode_update(peers[0].replica.shape(), Stage::Update, &rounds[0].frames);
        *newest.lock().expect("no panic") = Some(update.expect("own frames"));
        before = Some(rounds);
    }
    errors
}

fn errors_of(kind: Kind) -> Vec<Vec<u64>> {
    errors(|trainer, others| wrap(kind, trainer, STEPS, SEED, others))
}

/// The segments of each round that fail, all of them by more than `far`. All others are exact.
fn caught(errors: &[Vec<u64>], far: u64) -> Vec<Vec<usize>> {
    let floor = FLOOR_F32_PPB.into();
    let of_round = |errors: &Vec<u64>| {
        let fails = |error: &u64| match judge(*error, floor) {
            Outcome::Failed => {
                assert!(*error > far, "{error} is not above {far}");
                true
            }
            Outcome::Passed => {
                assert_eq!(*error, 0);
                false
            }
            Outcome::Grey => panic!("the reference trainer gives the same bits everywhere"),
        };
        let segments = errors.iter().enumerate();
        segments
            .filter(|(_, error)| fails(error))
            .map(|(segment, _)| segment)
            .collect()
    };
    errors.iter().map(of_round).collect()
}

/// Every segment of a round.
fn all() -> Vec<usize> {
    (0..SEGMENTS as usize).collect()
}

#[test]
fn honest_work_comes_out_the_same_to_the_bit() {
    for kind in [Kind::None, Kind::Withhold] {
        assert_eq!(errors_of(kind), vec![vec![0; 5]; 3], "{kind}");
    }
}

#[test]
fn no_work_is_caught_in_every_segment() {
    let errors = errors_of(Kind::Idle);
    assert_eq!(errors, vec![vec![NOTHING_DONE; 5]; 3]);
}

#[test]
fn half_of_the_work_is_caught_in_the_segments_that_begin_in_the_second_half() {
    // Segments begin at the steps 0, 2, 4, 6 and 8 of ten.
    let errors = errors_of(Kind::Half);
    let skipped = NOTHING_DONE;
    assert_eq!(errors, vec![vec![0, 0, 0, skipped, skipped]; 3]);
}

#[test]
fn segments_that_are_skipped_at_random_are_caught_and_no_others() {
    let errors = errors(|trainer, _| partial(trainer, 400_000, SEED));
    let all: Vec<u64> = errors.concat();
    let skipped = all.iter().filter(|error| **error != 0).count();
    assert!(all.iter().all(|error| [0, NOTHING_DONE].contains(error)));
    // 15 of them with a chance of 0.4 each: none, or all, once in 2000 seeds.
    assert!((1..15).contains(&skipped), "{skipped}");
}

#[test]
fn a_copy_is_caught_in_every_segment_also_before_there_is_anything_to_copy() {
    let errors = errors_of(Kind::Copy);
    assert_eq!(errors[0], [NOTHING_DONE; 5]);
    assert_eq!(caught(&errors, CAP), vec![all(); 3]);
}

#[test]
fn noise_is_caught_in_every_segment() {
    assert_eq!(caught(&errors_of(Kind::Noise), CAP), vec![all(); 3]);
}

#[test]
fn stale_parameters_are_caught_from_the_second_round_on() {
    // In the first round there are no older ones. A round moves this small model little, and its gradients less: the errors
    // are 3% to 5%. That is far above what f32 is granted, but a pair of devices at the cap would let them pass.
    let errors = errors_of(Kind::Stale);
    assert_eq!(caught(&errors, FAR_F32), [vec![], all(), all()]);
}

#[test]
fn updates_turned_round_or_scaled_are_caught_in_every_segment() {
    for kind in [Kind::Sign, Kind::Scale] {
        for error in errors_of(kind).concat() {
            // Twice the update. Weights of up to 4 round by 2^-23 at most in either of two operations, against updates of
            // about the learning rate times two steps, 0.005 and more: a relative 5e-5.
            let twice = 1_999_000_000..2_001_000_000;
            assert!(twice.contains(&error), "{kind}: {error}");
        }
    }
}

#[test]
fn a_hijacked_parameter_is_caught_in_the_last_segment() {
    assert_eq!(caught(&errors_of(Kind::Hijack), CAP), vec![vec![4]; 3]);
}

#[test]
fn states_that_were_made_up_are_not_under_the_roots() {
    let corpus = corpus();
    let windows = corpus.windows(SEQ_LEN).expect("windows");
    let round = Peer::new(1, trainer()).work(0, &windows);
    let elements = round.start.len();
    let zero = WorkState {
        theta: round.start.clone(),
        inner: zero_inner(elements),
    };
    let roots = |state: &WorkState| state.leaves().expect("leaves").roots();
    assert_eq!(roots(&zero), round.list.states()[0]);
    // Whoever is audited in its second segment cannot pass off the first state as that before it, nor a mix.
    assert_ne!(roots(&zero), round.list.states()[1]);
    let second = served(&round.states[1], &round.list.states()[1]);
    let mix = WorkState {
        theta: second.theta.clone(),
        ..zero
    };
    assert_eq!(roots(&mix).theta, round.list.states()[1].theta);
    assert_ne!(roots(&mix).inner, round.list.states()[1].inner);
}
