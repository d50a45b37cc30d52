//! Updates of some shards only: what was learnt in the others stays, is trained on, and is sent in its turn.
//!
//! Values are small multiples of powers of two, so that every sum is exact.

use std::num::NonZeroUsize;
use std::ops::Range;

use gradmesh_compression::{
    Codec, DenseFormat, FeedbackError, TILE_ELEMENTS, TopK, VALUE_ABS_MAX, ValueBits,
};
use gradmesh_protocol::header::Stage;
use gradmesh_trainer::model::ParameterSpec;
use gradmesh_trainer::replica::{
    Contribution, Outer, OwnUpdate, Replica, ReplicaConfig, RoundShard, Update, UpdateError,
};

const SHARDS: usize = 3;
const ELEMENTS: usize = SHARDS * TILE_ELEMENTS;

/// One tile per shard, dense f32, without decay.
fn replica() -> Replica {
    replica_in(Codec::Dense(DenseFormat::F32))
}

fn replica_in(codec: Codec) -> Replica {
    let config = ReplicaConfig {
        codec,
        reduced: codec,
        local: codec,
        outer: Outer::Plain { rate: 1.0 },
        feedback_beta: 1.0,
        owner_beta: 1.0,
        sparse_elements_min: 0,
        tiles_per_shard: NonZeroUsize::MIN,
    };
    let parameters = [ParameterSpec::new("a", [SHARDS, TILE_ELEMENTS])];
    Replica::new(&parameters, config, vec![1.0; ELEMENTS]).expect("a valid replica")
}

fn elements(shard: usize) -> Range<usize> {
    shard * TILE_ELEMENTS..(shard + 1) * TILE_ELEMENTS
}

#[track_caller]
fn assert_all(values: &[f32], expected: f32) {
    let other = values.iter().position(|value| *value != expected);
    let other = other.map(|element| (element, values[element]));
    assert_eq!(other, None, "not {expected}");
}

/// The update of one shard after a training that took `delta` off every element.
fn train(peer: &mut Replica, shard: usize, delta: f32) -> Update {
    train_some(peer, shard, delta, |_| true)
}

/// The same with these elements alone.
fn train_some(
    peer: &mut Replica,
    shard: usize,
    delta: f32,
    moves: impl Fn(usize) -> bool,
) -> Update {
    let start = peer.start();
    let local = start.iter().enumerate().map(|(element, start)| {
        if moves(element) {
            start - delta
        } else {
            *start
        }
    });
    let local: Vec<f32> = local.collect();
    let update = peer.update_of(shard..shard + 1, None, &local, Stage::Update);
    let update = update.expect("a finite update");
    assert_eq!(update.frames.len(), 1);
    update
}

/// A round of one shard with the frames of these updates.
fn round_of<'a>(shard: usize, updates: &[&'a Update]) -> Vec<RoundShard<'a>> {
    let mut shards = vec![
        RoundShard {
            stage: Stage::Update,
            contributions: Vec::new(),
            residuals: Vec::new(),
        };
        SHARDS
    ];
    shards[shard].contributions = updates
        .iter()
        .map(|update| Contribution {
            tokens: 1,
            frame: &update.frames[0],
        })
        .collect();
    shards
}

fn apply(peer: &mut Replica, shard: usize, update: &Update, accepted: bool) {
    let contributions: &[&Update] = if accepted { &[update] } else { &[] };
    let own = OwnUpdate {
        stage: Stage::Update,
        shards: shard..shard + 1,
        frames: &update.frames,
        accepted: &[accepted],
    };
    let round = round_of(shard, contributions);
    peer.apply(&round, Some(own), &[]).expect("a sound round");
}

#[test]
fn as_many_rounds_as_fragments_exchange_every_element_once_and_training_goes_on_from_where_it_was()
{
    let mut peer = replica();
    let mut local = 1.0;
    let mut theta = [1.0; SHARDS];
    for round in 0..3 * SHARDS {
        let shard = round % SHARDS;
        local -= 0.25;
        let update = train(&mut peer, shard, 0.25);
        apply(&mut peer, shard, &update, true);
        theta[shard] = local;
        for (shard, theta) in theta.iter().enumerate() {
            assert_all(&peer.theta()[elements(shard)], *theta);
        }
        // Nothing is lost, and nothing goes twice.
        assert_all(&peer.start(), local);
    }
}

#[test]
fn drift_stays_where_others_move_theta_beneath_it() {
    // Each learns in elements of its own, so that both updates have one norm and none is clipped.
    let (mut a, mut b) = (replica(), replica());
    for shard in 0..SHARDS {
        let of_a = train_some(&mut a, shard, 0.5, |element| element % 2 == 0);
        let of_b = train_some(&mut b, shard, 0.5, |element| element % 2 == 1);
        for peer in [&mut a, &mut b] {
            peer.apply(&round_of(shard, &[&of_a, &of_b]), None, &[])
                .expect("a sound round");
        }
        assert_eq!(a.state_root(), b.state_root());
    }
    // The mean of what both learnt until the turn of each shard, and what each learnt after it.
    let mut rounds = 0.0;
    for shard in 0..SHARDS {
        rounds += 1.0;
        let theta = 1.0 - 0.25 * rounds;
        let since = 0.5 * (SHARDS as f32 - rounds);
        assert_all(&a.theta()[elements(shard)], theta);
        let (even, odd) = (a.start(), b.start());
        for place in elements(shard).step_by(2) {
            assert_eq!((even[place], even[place + 1]), (theta - since, theta));
            assert_eq!((odd[place], odd[place + 1]), (theta, theta - since));
        }
    }
}

#[test]
fn what_a_round_left_out_or_a_restart_made_forget_is_sent_in_its_turn() {
    let mut peer = replica();
    for round in 0..5 {
        let shard = round % SHARDS;
        let update = train(&mut peer, shard, 0.25);
        apply(&mut peer, shard, &update, round != 1);
    }
    let mut restarted = peer.clone();
    let saved = peer.save_private(b"inner");
    assert_eq!(restarted.restore_private(&saved), Ok(&b"inner"[..]));
    assert!(
        *restarted.start() == *restarted.theta(),
        "it starts from theta"
    );
    for shard in 0..SHARDS {
        let update = train(&mut restarted, shard, 0.0);
        apply(&mut restarted, shard, &update, true);
    }
    assert_all(restarted.theta(), 1.0 - 5.0 * 0.25);
}

#[test]
fn training_ahead_starts_without_the_update_in_flight_and_with_the_drift() {
    let mut peer = replica();
    let first = train(&mut peer, 0, 0.25);
    let ahead = peer.start_ahead(Stage::Update, 0..1, &first.frames);
    let ahead = ahead.expect("own frames");
    assert_all(&ahead, 0.75);
    apply(&mut peer, 0, &first, true);
    let local: Vec<f32> = ahead.iter().map(|start| start - 0.125).collect();
    let second = peer.update_of(1..2, Some(&ahead), &local, Stage::Update);
    apply(&mut peer, 1, &second.expect("a finite update"), true);
    assert_all(&peer.theta()[elements(1)], 0.625);
    assert_all(&peer.start(), 0.625);
}

#[test]
fn a_sparse_frame_takes_of_drift_and_feedback_what_it_says_and_leaves_the_rest() {
    let mut peer = replica_in(Codec::Sparse {
        k: TopK::new(64).expect("in range"),
        value_bits: ValueBits::Two,
    });
    let frame = train(&mut peer, 0, 0.25).frames;
    assert_all(&peer.start()[elements(0)], 1.0);
    assert_all(&peer.start()[elements(1)], 0.75);
    let in_flight = peer.start_ahead(Stage::Update, 0..1, &frame).expect("own");
    let said = in_flight[elements(0)].iter().filter(|v| **v != 1.0);
    assert_eq!(said.count(), 64);
    assert_eq!(in_flight[ELEMENTS - 1], 0.75);
}

#[test]
fn the_drift_that_training_began_with_is_committed_to() {
    let (mut a, mut b) = (replica(), replica());
    assert_eq!(a.feedback_root(), b.feedback_root());
    let (of_a, of_b) = (train(&mut a, 0, 0.5), train(&mut b, 0, 0.25));
    assert_eq!(of_a.feedback_before, of_b.feedback_before);
    assert_ne!(of_a.feedback_after, of_b.feedback_after, "other drift");
    let next = train(&mut a, 1, 0.5);
    assert_eq!(next.feedback_before, of_a.feedback_after);
    // An update of all shards leaves none, and frames of f32 no feedback.
    let theta = b.theta().to_vec();
    b.update(&theta, &theta, Stage::Update).expect("no change");
    assert!(*b.start() == *b.theta());
}

#[test]
fn what_no_frame_could_say_is_refused_wherever_it_is_and_changes_nothing() {
    let mut peer = replica();
    train(&mut peer, 0, 0.25);
    let before = peer.clone();
    for (element, value) in [(0, f32::NAN), (ELEMENTS - 1, -2.0 * VALUE_ABS_MAX)] {
        let mut local = peer.start().into_owned();
        local[element] = value;
        let refused = peer.update_of(0..1, None, &local, Stage::Update);
        assert!(matches!(
            refused,
            Err(UpdateError::Feedback(FeedbackError::Diverged { element: at, .. })) if at == element
        ));
    }
    let local = peer.theta().to_vec();
    for shards in [2..4, 5..5] {
        let refused = UpdateError::NoShards {
            shards: shards.clone(),
            model: SHARDS,
        };
        let update = peer.update_of(shards, None, &local, Stage::Update);
        assert_eq!(update, Err(refused));
    }
    assert!(
        peer.update_of(0..1, None, &local[1..], Stage::Update)
            .is_err()
    );
    assert!(peer == before);
}
