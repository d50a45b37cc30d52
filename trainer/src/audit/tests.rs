use std::num::NonZeroUsize;

use gradmesh_compression::{DenseFormat, Selection, TILE_ELEMENTS, TopK, ValueBits};

use super::*;
use crate::InnerOptimizer;
use crate::model::{ParameterSpec, push_normal};
use crate::reference::{ReferenceConfig, ReferenceTrainer};
use crate::replica::{Outer, Replica, ReplicaConfig, Update};

const SPARSE_ELEMENTS: usize = 2 * TILE_ELEMENTS + 5;
const DENSE_ELEMENTS: usize = 10;
const ELEMENTS: usize = SPARSE_ELEMENTS + DENSE_ELEMENTS + TILE_ELEMENTS;

/// Tiles 0 and 1 are full, 2 has five elements, 3 travels dense, 4 is full. Shards of two tiles.
fn parameters() -> Vec<ParameterSpec> {
    vec![
        ParameterSpec::new("a", [SPARSE_ELEMENTS]),
        ParameterSpec::new("b", [DENSE_ELEMENTS]),
        ParameterSpec::new("c", [2, TILE_ELEMENTS / 2]),
    ]
}

const TILES: usize = 5;

fn sparse(value_bits: ValueBits) -> Codec {
    let k = TopK::new(64).unwrap();
    Codec::Sparse { k, value_bits }
}

fn codecs() -> [Codec; 7] {
    [
        sparse(ValueBits::One),
        sparse(ValueBits::Two),
        sparse(ValueBits::Four),
        Codec::Dense(DenseFormat::F32),
        Codec::Dense(DenseFormat::Bf16),
        Codec::Dense(DenseFormat::Int8),
        Codec::Dense(DenseFormat::Int4),
    ]
}

fn replica(codec: Codec) -> Replica {
    let config = ReplicaConfig {
        codec,
        reduced: codec,
        local: Codec::Dense(DenseFormat::Bf16),
        outer: Outer::Plain { rate: 1.0 },
        feedback_beta: 0.95,
        owner_beta: 0.9,
        sparse_elements_min: 100,
        tiles_per_shard: NonZeroUsize::new(2).unwrap(),
    };
    Replica::new(&parameters(), config, normal(1, 1.0)).unwrap()
}

fn normal(seed: u8, std: f64) -> Vec<f32> {
    let mut values = Vec::new();
    push_normal(&mut values, [seed; 32], 0, ELEMENTS, std);
    values
}

/// An update, and all that its audit needs.
struct Sent {
    shape: Shape,
    stage: Stage,
    before: Vec<f32>,
    start: Vec<f32>,
    local: Vec<f32>,
    after: Vec<f32>,
    frames: Vec<Vec<u8>>,
}

impl Sent {
    /// What `replica` sends of a training that moved each element by about 0.01.
    fn by(replica: &mut Replica, seed: u8, stage: Stage) -> Sent {
        let start = replica.theta().to_vec();
        let moves = normal(seed, 0.01);
        let local: Vec<f32> = start.iter().zip(moves).map(|(s, m)| s - m).collect();
        let before = replica.feedback_values().into_owned();
        let shards = 0..replica.shape().shard_count();
        let Update { frames, .. } = replica
            .update_of(shards, Some(&start), &local, stage)
            .unwrap();
        Sent {
            shape: replica.shape().as_ref().clone(),
            stage,
            before,
            start,
            local,
            after: replica.feedback_values().into_owned(),
            frames,
        }
    }

    /// The second update of a peer, so that there is error feedback before it.
    fn second(codec: Codec) -> Sent {
        let mut replica = replica(codec);
        Sent::by(&mut replica, 2, Stage::Update);
        Sent::by(&mut replica, 3, Stage::Update)
    }

    fn elements(&self, tile: usize) -> Range<usize> {
        self.shape.layout().tiles()[tile].elements()
    }

    fn check(&self, tile: usize) -> Result<(), TileFault> {
        let elements = self.elements(tile);
        let inputs = TileInputs {
            tile,
            feedback_before: &self.before[elements.clone()],
            start: &self.start[elements.clone()],
            local: &self.local[elements.clone()],
            feedback_after: &self.after[elements],
        };
        check_tile(&self.shape, self.stage, &inputs, &self.frames)
    }

    /// The first element of a tile that is sent, and the first that is not.
    fn sent_and_kept(&self, tile: usize) -> (usize, usize) {
        let update = decode_update(&self.shape, self.stage, &self.frames).unwrap();
        let at = |sent: bool| {
            self.elements(tile)
                .find(|at| (update[*at] != 0.0) == sent)
                .unwrap()
        };
        (at(true), at(false))
    }
}

/// The next larger magnitude.
fn nudged(value: f32) -> f32 {
    f32::from_bits(value.to_bits() + 1)
}

#[test]
fn honest_updates_pass_in_every_codec_round_after_round() {
    for codec in codecs() {
        let mut replica = replica(codec);
        for seed in 2..5 {
            let sent = Sent::by(&mut replica, seed, Stage::Update);
            for tile in 0..TILES {
                assert_eq!(sent.check(tile), Ok(()), "{codec:?}, tile {tile}");
            }
        }
        let sent = Sent::by(&mut replica, 5, Stage::Local);
        for tile in 0..TILES {
            assert_eq!(sent.check(tile), Ok(()), "local, tile {tile}");
        }
    }
}

#[test]
fn an_update_passes_after_one_that_was_left_out() {
    let mut replica = replica(sparse(ValueBits::One));
    let first = Sent::by(&mut replica, 2, Stage::Update);
    let left_out = crate::replica::OwnUpdate {
        stage: Stage::Update,
        shards: 0..first.frames.len(),
        frames: &first.frames,
        accepted: &vec![false; first.frames.len()],
    };
    replica.settle(left_out).unwrap();
    let sent = Sent::by(&mut replica, 3, Stage::Update);
    assert!((0..TILES).all(|tile| sent.check(tile) == Ok(())));
}

#[test]
fn a_peer_that_learnt_nothing_passes() {
    for codec in codecs() {
        let mut replica = replica(codec);
        let start = replica.theta().to_vec();
        let zeros = vec![0.0; ELEMENTS];
        let frames = replica
            .update(&start, &start, Stage::Update)
            .unwrap()
            .frames;
        let sent = Sent {
            shape: replica.shape().as_ref().clone(),
            stage: Stage::Update,
            before: zeros.clone(),
            local: start.clone(),
            start,
            after: zeros,
            frames,
        };
        assert!((0..TILES).all(|tile| sent.check(tile) == Ok(())));
    }
}

#[test]
fn what_training_did_is_bound_to_what_was_sent() {
    for codec in codecs() {
        for tile in 0..TILES {
            let honest = Sent::second(codec);
            let at = honest.elements(tile).start;
            // The change is larger than what any codec rounds away: all that was learnt in the tile is about 0.01.
            for change in [
                |sent: &mut Sent, at: usize| sent.start[at] += 1.0,
                |sent: &mut Sent, at: usize| sent.local[at] += 1.0,
                |sent: &mut Sent, at: usize| sent.before[at] += 2.0,
            ] {
                let mut sent = Sent::second(codec);
                change(&mut sent, at);
                assert!(
                    matches!(sent.check(tile), Err(TileFault::Sent { element: 0, .. })),
                    "{codec:?}, tile {tile}: {:?}",
                    sent.check(tile)
                );
            }
        }
    }
}

#[test]
fn the_last_bit_of_feedback_counts() {
    for codec in codecs() {
        for tile in 0..TILES {
            let mut sent = Sent::second(codec);
            let at = sent.elements(tile).start;
            sent.after[at] = nudged(sent.after[at]);
            assert!(matches!(
                sent.check(tile),
                Err(TileFault::Left { element: 0, .. })
            ));
        }
    }
    // What is kept back shows in what is left, to the last bit that is not rounded away.
    let mut sent = Sent::second(sparse(ValueBits::One));
    let (_, kept) = sent.sent_and_kept(0);
    sent.before[kept] *= 1.001;
    assert!(matches!(sent.check(0), Err(TileFault::Left { .. })));
}

#[test]
fn the_sum_alone_does_not_do() {
    // Entries of the peer's own choice, whose feedback holds what they leave: nothing is lost, but the largest were not sent.
    for value_bits in [ValueBits::One, ValueBits::Two, ValueBits::Four] {
        let codec = sparse(value_bits);
        let mut sent = Sent::second(codec);
        let tiles = &sent.shape.layout().tiles()[4..5];
        let elements = sent.elements(4);
        let pairs = sent.start[elements.clone()]
            .iter()
            .zip(&sent.local[elements.clone()]);
        let deltas = pairs.map(|(s, l)| s - l);
        let before = sent.before[elements.clone()].iter();
        let sum: Vec<f32> = before.zip(deltas).map(|(e, d)| (0.95 * e) + d).collect();
        let indices: Vec<u16> = (0..64).collect();
        let selection = Selection::Sparse {
            indices: &indices,
            values: &sum[..64],
        };
        let frame = Frame::from_selections([selection].into_iter(), tiles, codec).unwrap();
        let mut sent_values = vec![0.0; sum.len()];
        frame.dequantise_into(&mut sent_values);
        let pairs = sum.iter().zip(&sent_values);
        let left: Vec<f32> = pairs.map(|(sum, sent)| sum - sent).collect();
        sent.after[elements].copy_from_slice(&left);
        sent.frames[2].clear();
        frame.write(&mut sent.frames[2]);
        assert!(matches!(sent.check(4), Err(TileFault::Sent { .. })));
    }
}

#[test]
fn values_that_the_quantiser_does_not_give_are_seen() {
    for codec in codecs() {
        let mut sent = Sent::second(codec);
        // Three times what was learnt, in frames that are good by themselves.
        let start = sent.start.iter();
        let boasted = start.zip(&sent.local).map(|(s, l)| s - 3.0 * (s - l));
        let boasted: Vec<f32> = boasted.collect();
        let mut other = replica(codec);
        let frames = other.update(&sent.start, &boasted, Stage::Update).unwrap();
        sent.frames = frames.frames;
        for tile in 0..TILES {
            assert!(
                matches!(sent.check(tile), Err(TileFault::Sent { .. })),
                "{codec:?}, tile {tile}"
            );
        }
    }
}

#[test]
fn frames_that_are_none_are_their_senders_fault() {
    let honest = || Sent::second(sparse(ValueBits::One));
    let mut missing = honest();
    missing.frames.pop();
    assert_eq!(missing.check(0), Ok(()), "other shards are there");
    assert!(matches!(missing.check(4), Err(TileFault::Frame(_))));
    let mut cut = honest();
    cut.frames[0].pop();
    assert!(matches!(cut.check(0), Err(TileFault::Frame(_))));
    let other_stage = Sent {
        stage: Stage::Local,
        ..honest()
    };
    assert!(matches!(other_stage.check(0), Err(TileFault::Frame(_))));
    let mut swapped = honest();
    swapped.frames.swap(0, 1);
    assert!(matches!(swapped.check(0), Err(TileFault::Frame(_))));
}

#[test]
fn values_and_lengths_out_of_range_are_faults_and_no_panic() {
    let honest = || Sent::second(sparse(ValueBits::One));
    for value in [f32::NAN, f32::INFINITY, f32::MAX] {
        for change in [
            |sent: &mut Sent, value: f32| sent.before[0] = value,
            |sent: &mut Sent, value: f32| sent.start[0] = value,
            |sent: &mut Sent, value: f32| sent.local[0] = value,
        ] {
            let mut sent = honest();
            change(&mut sent, value);
            assert!(matches!(sent.check(0), Err(TileFault::Feedback(_))));
        }
        let mut sent = honest();
        sent.after[0] = value;
        assert!(matches!(sent.check(0), Err(TileFault::Left { .. })));
    }
    let sent = honest();
    let tile = &sent.start[..TILE_ELEMENTS];
    let inputs = TileInputs {
        tile: 0,
        feedback_before: tile,
        start: tile,
        local: &tile[1..],
        feedback_after: tile,
    };
    let check = |inputs| check_tile(&sent.shape, Stage::Update, &inputs, &sent.frames);
    assert!(matches!(
        check(inputs),
        Err(TileFault::Length {
            what: "local parameters",
            got: 4095,
            expected: 4096
        })
    ));
    assert_eq!(
        check(TileInputs {
            tile: TILES,
            ..inputs
        }),
        Err(TileFault::NoTile)
    );
}

#[test]
fn an_update_is_decoded_in_flat_order() {
    let mut replica = replica(Codec::Dense(DenseFormat::F32));
    let sent = Sent::by(&mut replica, 2, Stage::Update);
    let update = decode_update(&sent.shape, sent.stage, &sent.frames).unwrap();
    let pairs = sent.start.iter().zip(&sent.local);
    let deltas: Vec<f32> = pairs.map(|(s, l)| s - l).collect();
    assert_eq!(update, deltas);
    assert_eq!(
        decode_update(&sent.shape, sent.stage, &sent.frames[1..]),
        Err(UpdateError::Shards {
            frames: 2,
            shards: 3
        })
    );
    let mut cut = sent.frames.clone();
    cut[1].pop();
    assert!(matches!(
        decode_update(&sent.shape, sent.stage, &cut),
        Err(UpdateError::Frame { shard: 1, .. })
    ));
}

#[test]
fn errors_are_relative_to_the_update() {
    // A weight of 1000 that moved by 4 hardly shows in the weights, whatever is claimed of it.
    let (start, redone) = ([1000.0, 0.0], [1004.0, 3.0]);
    let of = |claimed: [f32; 2]| relative_error_ppb(&start, &claimed, &redone);
    assert_eq!(of(redone), 0);
    assert_eq!(of(start), 1_000_000_000, "nothing was done");
    assert_eq!(of([996.0, -3.0]), 2_000_000_000, "turned round");
    assert_eq!(of([1012.0, 9.0]), 2_000_000_000, "three times");
    assert_eq!(of([1004.0, 8.0]), 1_000_000_000, "five of five");
    assert_eq!(of([1004.0, 3.5]), 100_000_000, "a half of five");
}

#[test]
fn errors_that_are_no_numbers_are_the_largest() {
    let start = [1.0, 2.0];
    let redone = [1.5, 2.0];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(relative_error_ppb(&start, &[bad, 2.0], &redone), u64::MAX);
    }
    assert_eq!(relative_error_ppb(&start, &[1.5], &redone), u64::MAX);
    assert_eq!(relative_error_ppb(&start[..1], &redone, &redone), u64::MAX);
    assert_eq!(relative_error_ppb(&start, &redone, &start), u64::MAX);
    assert_eq!(relative_error_ppb(&start, &start, &start), 0);
    let huge = [f32::MAX, -f32::MAX];
    // 3.4e38 sqrt(2) over 0.5 is far above 2^64 parts per billion.
    assert_eq!(relative_error_ppb(&start, &huge, &redone), u64::MAX);
}

fn text(step: u32) -> Batch {
    let tokens = (0..36).map(|at| (step + at * at) % 23).collect();
    Batch::new(tokens, 4).unwrap()
}

fn reference() -> (ReferenceTrainer, Vec<f32>) {
    let config = ReferenceConfig {
        vocab: 32,
        ..ReferenceConfig::default()
    };
    let optimizer = InnerOptimizer {
        learning_rate: 1e-2,
        warmup_steps: 2,
        ..InnerOptimizer::default()
    };
    let theta = config.init([1; 32]);
    (ReferenceTrainer::new(config, optimizer).unwrap(), theta)
}

#[test]
fn what_was_learnt_lowers_the_loss_and_its_opposite_raises_it() {
    let (mut trainer, theta) = reference();
    let task = TrainTask {
        first_step: 0,
        steps: 10,
        global_step: 0,
    };
    trainer
        .train(&theta, &task, &mut |step| Ok(text(step)), &mut |_| true)
        .unwrap();
    let local = trainer.local();
    let update: Vec<f32> = theta.iter().zip(&local).map(|(t, l)| t - l).collect();
    let batches = [text(0), text(1)];
    let (before, after) = paired_loss(&mut trainer, &theta, &update, &batches).unwrap();
    assert!(after < before);
    let opposite: Vec<f32> = update.iter().map(|value| -value).collect();
    let (again, worse) = paired_loss(&mut trainer, &theta, &opposite, &batches).unwrap();
    assert_eq!(again, before);
    assert!(worse > before);
    let zero = vec![0.0; theta.len()];
    let (one, other) = paired_loss(&mut trainer, &theta, &zero, &batches).unwrap();
    assert_eq!(one, other);
    assert!(matches!(
        paired_loss(&mut trainer, &theta, &update[1..], &batches),
        Err(TrainError::Length { .. })
    ));
}

#[test]
fn a_state_that_is_none_is_refused_before_any_training() {
    let (mut trainer, theta) = reference();
    let start = WorkState {
        theta,
        inner: vec![0; 8],
    };
    let again = redo(&mut trainer, &start, 0..2, 0, &mut |step| Ok(text(step)));
    assert!(matches!(again, Err(RedoError::State(_))));
    let good = WorkState {
        inner: crate::work::zero_inner(start.theta.len()),
        ..start
    };
    let none = redo(&mut trainer, &good, 2..2, 2, &mut |step| Ok(text(step)));
    assert!(matches!(none, Err(RedoError::Train(TrainError::NoSteps))));
}
