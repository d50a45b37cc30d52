use gradmesh_compression::{DenseFormat, FeedbackError, TILE_ELEMENTS, TopK, ValueBits};

use super::*;
use crate::model::push_normal;
use crate::workers::Workers;

/// Three tiles of the first tensor, one dense tile, two tiles: three shards of two.
fn parameters() -> Vec<ParameterSpec> {
    vec![
        ParameterSpec::new("a", [2 * TILE_ELEMENTS + 5]),
        ParameterSpec::new("b", [10]),
        ParameterSpec::new("c", [2, TILE_ELEMENTS]),
    ]
}

const ELEMENTS: usize = 4 * TILE_ELEMENTS + 15;

fn sparse() -> ReplicaConfig {
    ReplicaConfig {
        codec: Codec::Sparse {
            k: TopK::new(64).expect("64 is in range"),
            value_bits: ValueBits::One,
        },
        reduced: Codec::Sparse {
            k: TopK::new(256).expect("256 is in range"),
            value_bits: ValueBits::Two,
        },
        local: Codec::Dense(DenseFormat::Bf16),
        outer: Outer::Plain { rate: 2.0 },
        feedback_beta: 0.95,
        owner_beta: 0.9,
        sparse_elements_min: 100,
        tiles_per_shard: NonZeroUsize::new(2).expect("two"),
    }
}

fn dense(outer: Outer) -> ReplicaConfig {
    ReplicaConfig {
        codec: Codec::Dense(DenseFormat::F32),
        outer,
        ..sparse()
    }
}

fn values(seed: u8, std: f64) -> Vec<f32> {
    let mut values = Vec::new();
    push_normal(&mut values, [seed; 32], 0, ELEMENTS, std);
    values
}

fn replica(config: ReplicaConfig) -> Replica {
    Replica::new(&parameters(), config, values(1, 1.0)).expect("valid replica")
}

/// Moves `replica` from its theta by `-delta` and gives the update.
fn update(replica: &mut Replica, delta: &[f32]) -> Update {
    let theta = replica.theta().to_vec();
    let local: Vec<f32> = theta.iter().zip(delta).map(|(t, d)| t - d).collect();
    replica
        .update(&theta, &local, Stage::Update)
        .expect("update")
}

/// A round of whole updates with their tokens.
fn gathered<'a>(updates: &[(u64, &'a Update)]) -> Vec<RoundShard<'a>> {
    let shards = updates.first().map_or(3, |(_, update)| update.frames.len());
    (0..shards)
        .map(|shard| RoundShard {
            stage: Stage::Update,
            contributions: updates
                .iter()
                .map(|(tokens, update)| Contribution {
                    tokens: *tokens,
                    frame: &update.frames[shard],
                })
                .collect(),
            residuals: Vec::new(),
        })
        .collect()
}

#[test]
fn replicas_that_apply_the_same_members_have_the_same_root() {
    for config in [
        sparse(),
        dense(Outer::Nesterov {
            rate: 0.7,
            momentum: 0.9,
        }),
    ] {
        let mut peers = [replica(config), replica(config), replica(config)];
        let first = peers[0].state_root();
        for round in 0..3u8 {
            let updates: Vec<Update> = (0..3u8)
                .map(|peer| {
                    update(
                        &mut peers[usize::from(peer)],
                        &values(10 * round + peer + 2, 0.01),
                    )
                })
                .collect();
            let members = [(5, &updates[0]), (7, &updates[1]), (9, &updates[2])];
            let mut shards = gathered(&members);
            shards[2].contributions.remove(1);
            for (peer, own) in peers.iter_mut().zip(&updates).rev() {
                let accepted = [true, true, own != &updates[1]];
                let own = OwnUpdate {
                    stage: Stage::Update,
                    shards: 0..3,
                    frames: &own.frames,
                    accepted: &accepted,
                };
                peer.apply(&shards, Some(own), &[]).expect("apply");
            }
            assert_eq!(peers[0].state_root(), peers[1].state_root());
            assert_eq!(peers[0].state_root(), peers[2].state_root());
        }
        assert_ne!(peers[0].state_root(), first);
    }
}

#[test]
fn plain_average_of_dense_updates_is_the_mean_by_tokens() {
    let mut a = replica(dense(Outer::Plain { rate: 1.0 }));
    let theta = a.theta().to_vec();
    // Two equal norms, so that nobody is clipped; powers of two, so that nothing is rounded before theta.
    let (one, two) = (vec![0.5; ELEMENTS], vec![-0.5; ELEMENTS]);
    let mut b = a.clone();
    let mut exact_start = a.clone();
    exact_start.theta.fill(0.0);
    a.theta.fill(0.0);
    b.theta.fill(0.0);
    let updates = [update(&mut a, &one), update(&mut b, &two)];
    let shards = gathered(&[(3, &updates[0]), (1, &updates[1])]);
    a.apply(&shards, None, &[]).expect("apply");
    assert!(a.theta().iter().all(|value| *value == -0.25));
    assert_ne!(theta, a.theta());
}

#[test]
fn nesterov_follows_its_formula() {
    let mut a = replica(dense(Outer::Nesterov {
        rate: 0.5,
        momentum: 0.5,
    }));
    a.theta.fill(0.0);
    for expected in [-0.75, -1.625] {
        let own = update(&mut a, &vec![1.0; ELEMENTS]);
        a.apply(&gathered(&[(1, &own)]), None, &[]).expect("apply");
        // m = 1, then 1.5; steps 0.5 (1 + 0.5 m) = 0.75, then 0.875: exact in f32.
        assert!(a.theta().iter().all(|value| *value == expected));
    }
}

#[test]
fn a_left_out_update_is_sent_later() {
    let mut a = replica(sparse());
    let root = a.feedback_root();
    let own = update(&mut a, &values(2, 0.01));
    assert_eq!(own.feedback_before, root);
    assert_eq!(own.feedback_after, a.feedback_root());
    assert_ne!(root, a.feedback_root());
    let taken = a.feedback.residual().expect("a residual").to_vec();
    let accepted = [true, false, true];
    let before = a.theta().to_vec();
    a.apply(
        &gathered(&[]),
        Some(OwnUpdate {
            stage: Stage::Update,
            shards: 0..3,
            frames: &own.frames,
            accepted: &accepted,
        }),
        &[],
    )
    .expect("apply");
    assert_eq!(before, a.theta(), "a round without members changes nothing");
    let expected = values(2, 0.01);
    let restored = a.feedback.residual().expect("a residual");
    for (element, value) in restored.iter().enumerate() {
        // Shard 1 holds the last tile of "a" (5 elements) and "b" (10).
        if (2 * TILE_ELEMENTS..2 * TILE_ELEMENTS + 15).contains(&element) {
            // theta - (theta - d) rounds at size 4: half an ulp is 2.4e-7, twice; the residual's rounding is less.
            assert!(
                (value - expected[element]).abs() < 1e-6,
                "element {element}"
            );
        } else {
            assert_eq!(*value, taken[element], "element {element}");
        }
    }
}

#[test]
fn a_left_out_update_comes_back_at_the_stage_that_it_was_encoded_at() {
    let delta = values(2, 0.01);
    for stage in [Stage::Local, Stage::Update, Stage::Reduced] {
        let mut a = replica(sparse());
        a.theta.fill(0.0);
        let local: Vec<f32> = delta.iter().map(|value| -value).collect();
        let start = a.theta.clone();
        let own = a.update(&start, &local, stage).expect("update");
        let own = OwnUpdate {
            stage,
            shards: 0..3,
            frames: &own.frames,
            accepted: &[false; 3],
        };
        a.apply(&gathered(&[]), Some(own), &[]).expect("apply");
        for (value, expected) in a
            .feedback
            .residual()
            .expect("a residual")
            .iter()
            .zip(&delta)
        {
            // Two roundings of numbers below 0.1: 2^-28 each.
            assert!((value - expected).abs() < 1e-8, "{stage:?}");
        }
        assert_eq!(a.feedback_root(), replica_with(&a).feedback_root());
    }
}

/// The same private state in a new replica, so that its leaves are hashed anew.
fn replica_with(other: &Replica) -> Replica {
    let mut copy = replica(other.shape.config);
    copy.restore_private(&other.save_private(&[]))
        .expect("private state");
    copy
}

#[test]
fn leaves_kept_with_every_change_are_those_of_the_state() {
    let mut a = replica(dense(Outer::Nesterov {
        rate: 0.7,
        momentum: 0.9,
    }));
    let own = update(&mut a, &values(2, 0.01));
    a.apply(&gathered(&[(1, &own)]), None, &[]).expect("apply");
    let leaves = a.leaves();
    a.rehash_tiles(0..6);
    assert_eq!(a.leaves(), leaves);
    let contents = (0..a.leaf_count()).filter_map(|index| a.export_leaf(index));
    let hashed: Vec<Hash> = contents.map(|content| Hash::of_content(&content)).collect();
    assert_eq!(hashed, leaves);
    assert_eq!(a.export_leaf(6), None);
}

#[test]
fn a_folded_update_is_in_the_error_feedback() {
    let mut a = replica(sparse());
    let theta = a.theta().to_vec();
    let local: Vec<f32> = theta.iter().map(|value| value * 0.5).collect();
    a.fold(&theta, &local).expect("fold");
    a.fold(&theta, &local).expect("fold");
    assert_eq!(
        a.feedback.residual(),
        Some(theta.as_slice()),
        "two exact halves"
    );
    assert_eq!(a.theta(), theta);
}

#[test]
fn training_ahead_starts_from_theta_minus_the_own_update() {
    let mut a = replica(dense(Outer::Plain { rate: 1.0 }));
    a.theta.fill(1.0);
    let own = update(&mut a, &vec![0.25; ELEMENTS]);
    assert_eq!(
        a.start_ahead(Stage::Update, 0..3, &own.frames)
            .expect("own frames"),
        vec![0.75; ELEMENTS]
    );
    assert!(matches!(
        a.start_ahead(Stage::Update, 0..3, &own.frames[1..]),
        Err(UpdateError::Shards {
            frames: 2,
            shards: 3
        })
    ));
}

#[test]
fn what_a_round_left_out_goes_with_the_update_that_was_trained_ahead_of_it() {
    let mut a = replica(ReplicaConfig {
        feedback_beta: 1.0,
        ..dense(Outer::Plain { rate: 1.0 })
    });
    a.theta.fill(1.0);
    let own = update(&mut a, &vec![0.25; ELEMENTS]);
    let start = a.start_ahead(Stage::Update, 0..3, &own.frames);
    let start = start.expect("own frames");
    let local = vec![0.625; ELEMENTS];
    let left_out = OwnUpdate {
        stage: Stage::Update,
        shards: 0..3,
        frames: &own.frames,
        accepted: &[false; 3],
    };
    let skipped = gathered(&[]);
    a.apply(&skipped, Some(left_out), &[]).expect("apply");
    let ahead = a.update(&start, &local, Stage::Update).expect("update");
    a.apply(&gathered(&[(1, &ahead)]), None, &[])
        .expect("apply");
    assert_eq!(a.theta(), local, "both rounds' training, in exact numbers");
}

#[test]
fn a_bad_frame_names_its_contribution_and_changes_nothing() {
    let mut a = replica(sparse());
    let own = update(&mut a, &values(2, 0.01));
    let before = a.clone();
    let cut = &own.frames[1][..5];
    assert!(
        a.shape()
            .check_frame(Stage::Update, 1, &own.frames[1])
            .is_ok()
    );
    assert!(
        a.shape()
            .check_frame(Stage::Reduced, 1, &own.frames[1])
            .is_err()
    );
    assert!(a.shape().check_frame(Stage::Update, 1, cut).is_err());
    assert!(
        a.shape()
            .check_frame(Stage::Update, 9, &own.frames[1])
            .is_err()
    );
    let mut shards = gathered(&[(1, &own), (1, &own)]);
    shards[1].contributions[1].frame = cut;
    assert!(matches!(
        a.apply(&shards, None, &[]),
        Err(ApplyError::Contribution {
            shard: 1,
            source: ContributionError::Frame {
                contribution: 1,
                ..
            }
        })
    ));
    assert_eq!(
        a.apply(&shards[1..], None, &[]),
        Err(ApplyError::Shards {
            got: 2,
            expected: 3
        })
    );
    let own = OwnUpdate {
        stage: Stage::Update,
        shards: 0..3,
        frames: &own.frames,
        accepted: &[false; 2],
    };
    assert!(matches!(
        a.apply(&gathered(&[]), Some(own), &[]),
        Err(ApplyError::Own(UpdateError::Shards {
            frames: 2,
            shards: 3
        }))
    ));
    assert_eq!(a, before);
}

#[test]
fn local_parameters_that_are_not_finite_are_refused() {
    let mut a = replica(sparse());
    let before = a.clone();
    let theta = a.theta().to_vec();
    let mut local = theta.clone();
    local[7] = f32::NAN;
    assert!(matches!(
        a.update(&theta, &local, Stage::Update),
        Err(UpdateError::Feedback(_))
    ));
    assert!(matches!(
        a.fold(&theta, &local),
        Err(UpdateError::Feedback(_))
    ));
    assert!(matches!(
        a.update(&theta[1..], &local, Stage::Update),
        Err(UpdateError::Feedback(FeedbackError::LengthMismatch { .. }))
    ));
    assert_eq!(a, before);
}

#[test]
fn members_without_tokens_change_nothing() {
    let mut a = replica(sparse());
    let own = update(&mut a, &values(2, 0.01));
    let root = a.state_root();
    a.apply(&gathered(&[(0, &own)]), None, &[]).expect("apply");
    assert_eq!(a.state_root(), root);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let workers = Workers::start(NonZeroUsize::new(3).expect("three")).expect("threads");
    let nesterov = Outer::Nesterov {
        rate: 0.7,
        momentum: 0.9,
    };
    for config in [sparse(), dense(nesterov)] {
        let mut alone = replica(config);
        let mut together = alone.clone();
        for round in 0..3 {
            let delta = values(2 + round, 0.01);
            let own = update(&mut alone, &delta);
            assert_eq!(workers.run(|| update(&mut together, &delta)), own);
            let decided = gathered(&[(1, &own), (3, &own)]);
            alone.apply(&decided, None, &[]).expect("apply");
            let applied = workers.run(|| together.apply(&decided, None, &[]));
            applied.expect("apply");
            assert_eq!(together, alone);
        }
        // Of some shards, so that there is drift.
        for shards in [1..2, 2..3, 0..2] {
            let local = values(9, 1.0);
            let own = alone.update_of(shards.clone(), None, &local, Stage::Update);
            let same = workers.run(|| together.update_of(shards, None, &local, Stage::Update));
            assert_eq!(same, own);
            assert_eq!(together, alone);
        }
        let local = vec![f32::INFINITY; ELEMENTS];
        let before = together.clone();
        let refused = alone.update_of(0..3, None, &local, Stage::Update);
        let same = workers.run(|| together.update_of(0..3, None, &local, Stage::Update));
        assert_eq!(same, refused);
        assert!(refused.is_err());
        assert_eq!(together, before);
    }
}

#[test]
fn a_joiner_fetches_the_state_leaf_by_leaf() {
    let outer = Outer::Nesterov {
        rate: 0.7,
        momentum: 0.9,
    };
    let mut donor = replica(dense(outer));
    let own = update(&mut donor, &values(2, 0.01));
    donor
        .apply(&gathered(&[(1, &own)]), None, &[])
        .expect("apply");

    let (root, leaves) = (donor.state_root(), donor.leaves());
    let import = |leaves| StateImport::new(&parameters(), dense(outer), root, leaves);
    let mut forged = leaves.clone();
    forged[2] = Hash::ZERO;
    assert!(matches!(import(forged), Err(ImportError::Root { .. })));
    assert!(matches!(
        import(leaves[1..].to_vec()),
        Err(ImportError::LeafCount {
            got: 5,
            tiles: 6,
            shards: 3
        })
    ));

    let mut joiner = import(leaves).expect("leaves under the root");
    for index in [5, 0, 3, 1, 2] {
        let content = donor.export_leaf(index).expect("tile");
        let mut damaged = content.clone();
        damaged[0] ^= 1;
        assert_eq!(
            joiner.put(index, &damaged),
            Err(ImportError::Content { index })
        );
        joiner.put(index, &content).expect("content");
    }
    assert_eq!(
        joiner.missing().map(|(index, _)| index).collect::<Vec<_>>(),
        [4]
    );
    assert!(matches!(
        joiner.clone().finish(),
        Err(ImportError::Incomplete { missing: 1 })
    ));
    joiner
        .put(4, &donor.export_leaf(4).expect("tile"))
        .expect("content");
    assert!(matches!(
        joiner.put(6, &[]),
        Err(ImportError::NoLeaf { .. })
    ));
    let joined = joiner.finish().expect("complete");
    assert_eq!(joined.state_root(), root);
    assert_eq!(
        (joined.theta, joined.momentum),
        (donor.theta, donor.momentum)
    );
}

#[test]
fn private_state_survives_a_restart_and_damage_is_refused() {
    let mut a = replica(sparse());
    update(&mut a, &values(2, 0.01));
    let bytes = a.save_private(b"inner");
    let mut b = replica(sparse());
    assert_eq!(b.restore_private(&bytes), Ok(b"inner".as_slice()));
    assert_eq!(b, a);
    let fresh = replica(sparse());
    let mut c = fresh.clone();
    for length in [0, 5, MAGIC_AND_COUNT, bytes.len() - 1] {
        assert!(c.restore_private(&bytes[..length]).is_err());
    }
    for at in [0, 20, 1000, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        assert!(c.restore_private(&flipped).is_err());
    }
    assert_eq!(c, fresh);
}

/// Cuts just before the error feedback.
const MAGIC_AND_COUNT: usize = 19 + 8;

#[test]
fn roots_are_pinned() {
    // Golden values: peers of different builds must agree on them.
    let mut a = replica(sparse());
    assert_eq!(
        a.state_root().to_string(),
        "23e1f8abbaa2b86865467ba43360c5e7ad3df97c378350c7e3170bfeadc38d31"
    );
    update(&mut a, &values(2, 0.01));
    assert_eq!(
        a.feedback_root().to_string(),
        "7af03d83bbdf24e7f934e32a8ef7315fca855d89ddc72f48049961f938f2652e"
    );
}

#[test]
fn settings_out_of_range_are_refused() {
    let make = |config, theta| Replica::new(&parameters(), config, theta);
    let wild = ReplicaConfig {
        outer: Outer::Plain { rate: f32::NAN },
        ..sparse()
    };
    assert!(matches!(
        make(wild, values(1, 1.0)),
        Err(ReplicaError::Outer { name: "rate", .. })
    ));
    assert!(matches!(
        make(sparse(), vec![0.0; 3]),
        Err(ReplicaError::Length { got: 3, .. })
    ));
    let mut poisoned = values(1, 1.0);
    poisoned[4] = f32::INFINITY;
    assert_eq!(make(sparse(), poisoned), Err(ReplicaError::NotFinite(4)));
}
