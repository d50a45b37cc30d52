//! One peer of five sends frames that are none, or that weigh more than they may: the others come to the state that they would
//! come to without it, or without what is wrong with it.

use std::num::NonZeroUsize;

use gradmesh_compression::{Codec, DecodeError, DenseFormat, TopK, ValueBits, encode};
use gradmesh_protocol::header::Stage;
use gradmesh_trainer::model::ParameterSpec;
use gradmesh_trainer::replica::{
    ApplyError, Contribution, ContributionError, Outer, Replica, ReplicaConfig, RoundShard,
};

/// Two tensors of this many elements, each a tile and a shard.
const ELEMENTS: usize = 64;
const SHARDS: usize = 2;
/// The outer step.
const RATE: f32 = 2.0;
/// The malformed peer comes last.
const PEERS: usize = 5;

/// One frame for each shard.
type Update = Vec<Vec<u8>>;

fn sparse() -> Codec {
    Codec::Sparse {
        // Four entries of 64.
        k: TopK::new(256).expect("256 is in range"),
        value_bits: ValueBits::Two,
    }
}

const DENSE: Codec = Codec::Dense(DenseFormat::F32);

fn replica(codec: Codec) -> Replica {
    let config = ReplicaConfig {
        codec,
        reduced: codec,
        local: DENSE,
        outer: Outer::Plain { rate: RATE },
        feedback_beta: 0.95,
        owner_beta: 0.9,
        sparse_elements_min: 1,
        tiles_per_shard: NonZeroUsize::MIN,
    };
    let parameters = [
        ParameterSpec::new("a", [ELEMENTS]),
        ParameterSpec::new("b", [ELEMENTS]),
    ];
    Replica::new(&parameters, config, vec![0.5; SHARDS * ELEMENTS]).expect("valid replica")
}

/// The frames of an update with these values in each shard.
fn update(replica: &Replica, values: &[f32]) -> Update {
    let tiles = replica.shape().layout().tiles();
    let frames = tiles.iter().map(|tile| {
        let mut frame = Vec::new();
        let codec = replica.shape().config().codec;
        encode(values, std::slice::from_ref(tile), codec, &mut frame).expect("finite values");
        frame
    });
    frames.collect()
}

/// Values at indices 1, 3, 8 and 9; `sign` differs between peers, their norm does not.
fn values(sign: usize) -> Vec<f32> {
    let mut values = vec![0.0; ELEMENTS];
    for (place, index) in [1, 3, 8, 9].into_iter().enumerate() {
        values[index] = if sign >> place & 1 == 0 { 0.25 } else { -0.25 };
    }
    values
}

fn round<'a>(updates: impl Iterator<Item = &'a Update> + Clone) -> Vec<RoundShard<'a>> {
    let shards = (0..SHARDS).map(|shard| RoundShard {
        stage: Stage::Update,
        contributions: updates
            .clone()
            .map(|update| Contribution {
                tokens: 10,
                frame: &update[shard],
            })
            .collect(),
        residuals: Vec::new(),
    });
    shards.collect()
}

fn check(replica: &Replica, update: &Update) -> Result<(), DecodeError> {
    let mut frames = update.iter().enumerate();
    frames.try_for_each(|(shard, frame)| replica.shape().check_frame(Stage::Update, shard, frame))
}

/// The honest updates, and a sound one of the peer that is malformed otherwise.
fn updates(replica: &Replica) -> Vec<Update> {
    (0..PEERS)
        .map(|peer| update(replica, &values(peer)))
        .collect()
}

fn after(replica: &Replica, updates: &[Update]) -> Replica {
    let mut replica = replica.clone();
    replica
        .apply(&round(updates.iter()), None, &[])
        .expect("sound frames");
    replica
}

/// What is done to a frame.
type Damage = fn(&mut Vec<u8>);

/// Whether an error is the expected one.
type Expected = fn(&DecodeError) -> bool;

/// The indices of the sparse frame, which take two bytes as gaps, packed in 12 bits each.
fn packed(frame: &mut Vec<u8>, indices: [u8; 6]) {
    frame[INDEX_CODE] = 12;
    frame.truncate(frame.len() - 2);
    frame.extend(indices);
}

/// Where a frame says how its indices are coded, and how many tiles it has.
const INDEX_CODE: usize = 7;
const TILES: usize = 10;

#[test]
fn frames_that_are_none_are_refused_and_the_others_come_to_the_state_without_them() {
    let kinds: [(&str, Codec, Damage, Expected); 11] = [
        (
            "NaN",
            DENSE,
            |frame| {
                let last = frame.len() - 4;
                frame[last..].copy_from_slice(&f32::NAN.to_le_bytes());
            },
            |e| matches!(e, DecodeError::DenseValue { value, .. } if value.is_nan()),
        ),
        (
            "infinity",
            DENSE,
            |frame| {
                let last = frame.len() - 4;
                frame[last..].copy_from_slice(&f32::INFINITY.to_le_bytes());
            },
            |e| matches!(e, DecodeError::DenseValue { .. }),
        ),
        (
            "index twice",
            sparse(),
            |frame| packed(frame, [0x01, 0x30, 0x00, 0x03, 0x90, 0x00]),
            |e| matches!(e, DecodeError::IndexOrder { index: 3, .. }),
        ),
        (
            "indices out of order",
            sparse(),
            |frame| packed(frame, [0x01, 0x30, 0x00, 0x02, 0x90, 0x00]),
            |e| matches!(e, DecodeError::IndexOrder { index: 2, .. }),
        ),
        (
            "index outside the tile",
            sparse(),
            |frame| packed(frame, [0x01, 0x30, 0x00, 0x08, 0x00, 0x04]),
            |e| matches!(e, DecodeError::IndexOutOfTile { index: 64, .. }),
        ),
        (
            "truncated",
            sparse(),
            |frame| frame.truncate(frame.len() - 1),
            |e| matches!(e, DecodeError::Truncated { .. }),
        ),
        ("empty", sparse(), Vec::clear, |e| {
            matches!(e, DecodeError::Truncated { .. })
        }),
        (
            "oversized",
            sparse(),
            |frame| frame.extend([0; 100]),
            |e| matches!(e, DecodeError::Trailing { bytes: 100 }),
        ),
        (
            "more tiles than there are",
            sparse(),
            |frame| frame[TILES..TILES + 4].copy_from_slice(&u32::MAX.to_le_bytes()),
            |e| matches!(e, DecodeError::TileCountMismatch { .. }),
        ),
        ("bit-flipped", sparse(), |frame| frame[0] ^= 1, |_| true),
        (
            "bytes of another codec",
            sparse(),
            |frame| {
                let other = update(&replica(DENSE), &values(0));
                frame.clone_from(&other[1]);
            },
            |e| matches!(e, DecodeError::CodecMismatch { .. }),
        ),
    ];
    for (name, codec, damage, expected) in kinds {
        let start = replica(codec);
        let mut updates = updates(&start);
        damage(&mut updates[PEERS - 1][1]);
        let error = check(&start, &updates[PEERS - 1]).expect_err(name);
        assert!(expected(&error), "{name}: {error}");

        // Whoever applied it all the same would notice before anything changes, and know whose it is.
        let mut careless = start.clone();
        let failed = careless.apply(&round(updates.iter()), None, &[]);
        let source = ContributionError::Frame {
            contribution: PEERS - 1,
            source: error,
        };
        // A NaN does not equal itself.
        let (failed, shard) = (format!("{failed:?}"), 1);
        let named: Result<(), _> = Err(ApplyError::Contribution { shard, source });
        assert_eq!(failed, format!("{named:?}"), "{name}");
        assert_eq!(careless, start, "{name}");

        let without = after(&start, &updates[..PEERS - 1]);
        updates.retain(|update| check(&start, update).is_ok());
        let with = after(&start, &updates);
        assert_eq!(with.state_root(), without.state_root(), "{name}");
        assert_ne!(with.state_root(), start.state_root());
    }
}

#[test]
fn a_flipped_bit_of_a_frame_is_refused_or_weighs_no_more_than_its_peer() {
    let start = replica(sparse());
    let updates = updates(&start);
    let share = 1.0 / PEERS as f32;
    let zero = after_zero(&start, &updates);
    for bit in 0..updates[PEERS - 1][1].len() * 8 {
        let mut updates = updates.clone();
        updates[PEERS - 1][1][bit / 8] ^= 1 << (bit % 8);
        if check(&start, &updates[PEERS - 1]).is_ok() {
            let with = after(&start, &updates);
            let moved = with.theta()[ELEMENTS..]
                .iter()
                .zip(&zero.theta()[ELEMENTS..]);
            // The honest norms are all 0.5, so that a clipped value is at most that.
            let bound = RATE * share * 0.5 + ROUNDING;
            assert!(moved.into_iter().all(|(a, b)| (a - b).abs() <= bound));
        }
    }
}

/// Of a theta below 2, after six additions: each rounds by at most 2^-24 of it.
const ROUNDING: f32 = 6.0 / (1 << 23) as f32;

/// The state if the last peer had learnt nothing.
fn after_zero(start: &Replica, updates: &[Update]) -> Replica {
    let mut updates = updates.to_vec();
    updates[PEERS - 1] = update(start, &[0.0; ELEMENTS]);
    after(start, &updates)
}

#[test]
fn a_scaled_update_comes_to_the_same_as_one_that_is_not() {
    let start = replica(DENSE);
    let mut updates = updates(&start);
    let large: Vec<f32> = values(PEERS - 1).iter().map(|value| value * 2.0).collect();
    // Scaled by a power of two, which rounds nothing: the clip takes back exactly that.
    let huge: Vec<f32> = large.iter().map(|value| value * 1024.0).collect();
    updates[PEERS - 1] = update(&start, &large);
    let clipped = after(&start, &updates);
    updates[PEERS - 1] = update(&start, &huge);
    assert_eq!(check(&start, &updates[PEERS - 1]), Ok(()));
    let scaled = after(&start, &updates);
    assert_eq!(scaled.state_root(), clipped.state_root());
    assert_ne!(
        scaled.state_root(),
        after_zero(&start, &updates).state_root()
    );
}

#[test]
fn a_coordinate_that_one_peer_alone_sends_moves_by_its_share_and_no_other_moves() {
    let start = replica(sparse());
    let mut updates = updates(&start);
    let zero = after_zero(&start, &updates);
    let hijacked = 40;
    let mut lone = vec![0.0; ELEMENTS];
    lone[hijacked] = 30_000.0;
    updates[PEERS - 1] = update(&start, &lone);
    assert_eq!(check(&start, &updates[PEERS - 1]), Ok(()));
    let with = after(&start, &updates);
    for (place, (a, b)) in with.theta().iter().zip(zero.theta()).enumerate() {
        if place % ELEMENTS == hijacked {
            // The norm of the others is 0.5: four values of 0.25.
            let expected = RATE * 0.5 / PEERS as f32;
            let moved = (a - b).abs();
            assert!((moved - expected).abs() <= ROUNDING, "{moved} {expected}");
        } else {
            assert_eq!(a.to_bits(), b.to_bits());
        }
    }
}
