//! The three plans on replicas without a network: who sums what, and that all come to the same bits.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use gradmesh_compression::{Codec, DenseFormat, TILE_ELEMENTS, TopK, ValueBits, decode};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::plan::GroupId;
use gradmesh_trainer::ParameterSpec;
use gradmesh_trainer::replica::{
    Contribution, ImportError, Outer, OwnUpdate, ReduceError, Reduction, Replica, ReplicaConfig,
    RoundShard, StateImport, Update, UpdateError,
};

const ELEMENTS: usize = 3 * TILE_ELEMENTS + 100;
const SHARDS: usize = 2;
const DENSE: Codec = Codec::Dense(DenseFormat::F32);

/// Three tiles and a small tensor: two shards of two tiles.
fn parameters() -> Vec<ParameterSpec> {
    vec![
        ParameterSpec::new("a", [3, TILE_ELEMENTS]),
        ParameterSpec::new("b", [100]),
    ]
}

fn sparse(k: u16, value_bits: ValueBits) -> Codec {
    let k = TopK::new(k).expect("k is in range");
    Codec::Sparse { k, value_bits }
}

fn config(codec: Codec, reduced: Codec) -> ReplicaConfig {
    ReplicaConfig {
        codec,
        reduced,
        local: Codec::Dense(DenseFormat::Bf16),
        outer: Outer::Plain { rate: 1.0 },
        feedback_beta: 0.95,
        owner_beta: 0.9,
        sparse_elements_min: 1000,
        tiles_per_shard: NonZeroUsize::new(2).expect("two"),
    }
}

fn in_reduce() -> ReplicaConfig {
    config(sparse(64, ValueBits::One), sparse(256, ValueBits::Two))
}

/// Values of size 0.01 that differ from `seed` to `seed`.
fn values(seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f32::from(state as i16) / 32768.0
    };
    // Cubes: a few large ones among many small ones.
    (0..ELEMENTS).map(|_| 0.01 * next().powi(3)).collect()
}

fn replica(config: ReplicaConfig) -> Replica {
    Replica::new(&parameters(), config, values(1000)).expect("valid replica")
}

fn peers(config: ReplicaConfig, count: usize) -> Vec<Replica> {
    vec![replica(config); count]
}

fn update(peer: &mut Replica, delta: &[f32], stage: Stage) -> Update {
    let start = peer.theta().to_vec();
    let local: Vec<f32> = start.iter().zip(delta).map(|(s, d)| s - d).collect();
    let mut other = peer.clone();
    let update = peer.update(&start, &local, stage).expect("update");
    let from_theta = other
        .update_of(0..SHARDS, None, &local, stage)
        .expect("update");
    assert_eq!((update.clone(), &*peer), (from_theta, &other));
    update
}

fn updates(peers: &mut [Replica], round: u32, stage: Stage) -> Vec<Update> {
    let peers = (0..).zip(peers);
    peers
        .map(|(number, peer)| update(peer, &values(100 * round + number), stage))
        .collect()
}

/// The frames of `shard` of these updates; the peer's number gives its tokens.
fn contributions(updates: &[Update], shard: usize) -> Vec<Contribution<'_>> {
    (1..)
        .zip(updates)
        .map(|(tokens, update)| Contribution {
            tokens,
            frame: &update.frames[shard],
        })
        .collect()
}

fn gather(peers: &mut [Replica], updates: &[Update]) {
    let shards: Vec<_> = (0..SHARDS)
        .map(|shard| RoundShard {
            stage: Stage::Update,
            contributions: contributions(updates, shard),
            residuals: Vec::new(),
        })
        .collect();
    apply(peers, updates, Stage::Update, &shards, &[]);
}

fn apply(
    peers: &mut [Replica],
    updates: &[Update],
    stage: Stage,
    shards: &[RoundShard<'_>],
    groups: &[GroupId],
) {
    for (peer, update) in peers.iter_mut().zip(updates) {
        let own = OwnUpdate {
            stage,
            shards: 0..SHARDS,
            frames: &update.frames,
            accepted: &[true; SHARDS],
        };
        peer.apply(shards, Some(own), groups).expect("apply");
    }
    let root = peers[0].state_root();
    assert!(peers.iter().all(|peer| peer.state_root() == root));
}

/// Reductions of all shards by the first peer, confirmed by the last, then applied by all.
fn reduce(peers: &mut [Replica], updates: &[Update], residuals: &mut [Vec<u8>]) -> Vec<Reduction> {
    let reductions: Vec<Reduction> = (0..SHARDS)
        .map(|shard| {
            let inputs = contributions(updates, shard);
            let residual = Some(residuals[shard].as_slice()).filter(|bytes| !bytes.is_empty());
            let known = residual.map_or(Hash::ZERO, Hash::of_content);
            let owners = [&peers[0], peers.last().expect("peers")];
            let [first, second] = owners.map(|owner| {
                assert_eq!(owner.residual_root(GroupId::ALL, shard), known);
                owner
                    .shape()
                    .reduce(shard, Stage::Update, Stage::Reduced, residual, &inputs)
                    .expect("reduction")
            });
            assert_eq!(first, second, "both owners compute the same bytes");
            first
        })
        .collect();
    let shards: Vec<_> = reductions
        .iter()
        .map(|reduction| RoundShard {
            stage: Stage::Reduced,
            contributions: vec![Contribution {
                tokens: 1,
                frame: &reduction.frame,
            }],
            residuals: vec![(GroupId::ALL, reduction.residual_hash())],
        })
        .collect();
    apply(peers, updates, Stage::Update, &shards, &[GroupId::ALL]);
    for (residual, reduction) in residuals.iter_mut().zip(&reductions) {
        *residual = reduction.residual.clone();
    }
    reductions
}

fn f32_values(bytes: &[u8]) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks();
    chunks
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
        .collect()
}

#[test]
fn gather_and_reduce_of_dense_f32_come_to_the_same_bits() {
    let mut gathering = peers(config(DENSE, DENSE), 3);
    let mut reducing = gathering.clone();
    for round in 0..3 {
        let of_gather = updates(&mut gathering, round, Stage::Update);
        gather(&mut gathering, &of_gather);
        let of_reduce = updates(&mut reducing, round, Stage::Update);
        let reductions = reduce(&mut reducing, &of_reduce, &mut vec![Vec::new(); SHARDS]);
        assert!(reductions.iter().all(|r| r.residual.is_empty()));
        assert_eq!(gathering, reducing);
    }
}

#[test]
fn owners_agree_from_round_to_round_and_the_residual_goes_on() {
    let mut peers = peers(in_reduce(), 4);
    let mut residuals = vec![Vec::new(); SHARDS];
    for round in 0..4 {
        let before = residuals.clone();
        let updates = updates(&mut peers, round, Stage::Update);
        let reductions = reduce(&mut peers, &updates, &mut residuals);
        for (shard, reduction) in reductions.iter().enumerate() {
            let inputs = contributions(&updates, shard);
            let anew = peers[1]
                .shape()
                .reduce(shard, Stage::Update, Stage::Reduced, None, &inputs)
                .expect("reduction");
            assert_eq!(
                anew == *reduction,
                before[shard].is_empty(),
                "round {round}"
            );
        }
    }
}

#[test]
fn order_of_arrival_does_not_matter() {
    let mut peers = peers(in_reduce(), 5);
    let updates = updates(&mut peers, 0, Stage::Update);
    let inputs = contributions(&updates, 0);
    let reduced = |order: [usize; 5]| {
        // An owner keeps what arrives by author.
        let arrived: BTreeMap<usize, Contribution<'_>> =
            order.into_iter().map(|peer| (peer, inputs[peer])).collect();
        let canonical: Vec<_> = arrived.into_values().collect();
        peers[0]
            .shape()
            .reduce(0, Stage::Update, Stage::Reduced, None, &canonical)
            .expect("reduction")
    };
    let first = reduced([0, 1, 2, 3, 4]);
    assert_eq!(first, reduced([4, 2, 0, 3, 1]));
    assert_eq!(first, reduced([3, 1, 4, 0, 2]));
}

#[test]
fn what_an_owner_left_out_decays_and_is_sent_later() {
    let owner = replica(in_reduce());
    let mut sender = replica(in_reduce());
    let once = update(&mut sender, &values(7), Stage::Local);
    let nothing = update(
        &mut replica(in_reduce()),
        &vec![0.0; ELEMENTS],
        Stage::Local,
    );
    let reduce = |update: &Update, residual: Option<&[u8]>| {
        owner
            .shape()
            .reduce(
                0,
                Stage::Local,
                Stage::Reduced,
                residual,
                &contributions(std::slice::from_ref(update), 0),
            )
            .expect("reduction")
    };
    let first = reduce(&once, None);
    let second = reduce(&nothing, Some(&first.residual));
    let tiles = &owner.shape().layout().tiles()[..2];
    let frame = decode(&second.frame, tiles, in_reduce().reduced).expect("frame");
    assert_eq!(frame.entries(), 2 * 256, "the next largest elements");
    let mut sent = vec![0.0; frame.elements()];
    frame.dequantise_into(&mut sent);
    let (before, after) = (f32_values(&first.residual), f32_values(&second.residual));
    for ((before, after), sent) in before.iter().zip(&after).zip(&sent) {
        assert_eq!(*after, 0.9 * before - sent);
    }
}

#[test]
fn a_residual_that_does_not_fit_is_refused() {
    let mut sender = replica(in_reduce());
    let update = [update(&mut sender, &values(7), Stage::Update)];
    let inputs = contributions(&update, 1);
    let reduce = |shard, residual: &[u8], inputs: &[Contribution<'_>]| {
        sender
            .shape()
            .reduce(shard, Stage::Update, Stage::Reduced, Some(residual), inputs)
    };
    let bytes = (TILE_ELEMENTS + 100) * 4;
    assert!(reduce(1, &vec![0; bytes], &inputs).is_ok());
    assert_eq!(
        reduce(1, &vec![0; bytes - 1], &inputs),
        Err(ReduceError::ResidualLength {
            shard: 1,
            got: bytes - 1,
            expected: bytes
        })
    );
    let mut poisoned = vec![0; bytes];
    poisoned[40..44].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(matches!(
        reduce(1, &poisoned, &inputs),
        Err(ReduceError::Feedback { shard: 1, .. })
    ));
    let of_other_shard = contributions(&update, 0);
    assert!(matches!(
        reduce(1, &[], &of_other_shard),
        Err(ReduceError::Contribution(_))
    ));
    assert_eq!(reduce(1, &[], &[]), Err(ReduceError::NoTokens { shard: 1 }));
    assert_eq!(
        reduce(2, &[], &inputs),
        Err(ReduceError::NoShard {
            shard: 2,
            shards: 2
        })
    );
}

#[test]
fn two_sites_exchange_what_two_single_peers_would() {
    let sites = [GroupId(Hash([1; 32])), GroupId(Hash([2; 32]))];
    let mut peers = peers(in_reduce(), 5);
    let mut residuals = vec![vec![Vec::new(); SHARDS]; 2];
    for round in 0..3 {
        let updates = updates(&mut peers, round, Stage::Local);
        // Peers 0, 1 and 2 are one site, 3 and 4 the other.
        let members: [&[usize]; 2] = [&[0, 1, 2], &[3, 4]];
        let mut of_sites = Vec::new();
        for (members, residuals) in members.iter().zip(&mut residuals) {
            let mut of_site = Vec::new();
            for (shard, residual) in residuals.iter_mut().enumerate() {
                let all = contributions(&updates, shard);
                let inputs: Vec<_> = members.iter().map(|member| all[*member]).collect();
                let [first, second] = [members[0], members[1]].map(|owner| {
                    peers[owner]
                        .shape()
                        .reduce(shard, Stage::Local, Stage::Update, Some(residual), &inputs)
                        .expect("reduction")
                });
                assert_eq!(first, second);
                *residual = first.residual.clone();
                let tokens: u64 = inputs.iter().map(|input| input.tokens).sum();
                of_site.push((tokens, first));
            }
            of_sites.push(of_site);
        }
        let shards: Vec<_> = (0..SHARDS)
            .map(|shard| RoundShard {
                stage: Stage::Update,
                contributions: of_sites
                    .iter()
                    .map(|of_site| Contribution {
                        tokens: of_site[shard].0,
                        frame: &of_site[shard].1.frame,
                    })
                    .collect(),
                residuals: sites
                    .iter()
                    .zip(&of_sites)
                    .map(|(site, of_site)| (*site, of_site[shard].1.residual_hash()))
                    .collect(),
            })
            .collect();
        let before = peers[0].theta().to_vec();
        apply(&mut peers, &updates, Stage::Local, &shards, &sites);
        assert_ne!(before, peers[0].theta());
        for (site, residuals) in sites.iter().zip(&residuals) {
            for (shard, residual) in residuals.iter().enumerate() {
                let known = peers[4].residual_root(*site, shard);
                assert_eq!(known, Hash::of_content(residual));
            }
        }
    }
}

#[test]
fn residuals_are_part_of_the_state_root_and_go_with_their_group() {
    let (one, two) = (GroupId(Hash([1; 32])), GroupId(Hash([2; 32])));
    let mut peer = replica(in_reduce());
    let skipped = |residuals: Vec<(GroupId, Hash)>| {
        let shard = |residuals| RoundShard {
            stage: Stage::Update,
            contributions: Vec::new(),
            residuals,
        };
        [shard(residuals), shard(Vec::new())]
    };
    let without = peer.state_root();
    assert_eq!(peer.leaf_count(), 4);
    peer.apply(&skipped(vec![(one, Hash([7; 32]))]), None, &[one, two])
        .expect("apply");
    let with_one = peer.state_root();
    assert_ne!(with_one, without);
    assert_eq!(peer.leaf_count(), 4 + SHARDS);
    peer.apply(&skipped(vec![(two, Hash([8; 32]))]), None, &[one, two])
        .expect("apply");
    assert_ne!(peer.state_root(), with_one);
    peer.apply(&skipped(Vec::new()), None, &[one])
        .expect("apply");
    assert_eq!(peer.state_root(), with_one, "the other group has vanished");
    peer.apply(&skipped(vec![(one, Hash::ZERO)]), None, &[one])
        .expect("apply");
    assert_eq!(peer.state_root(), without, "nothing is left out any more");
}

#[test]
fn a_joiner_takes_over_what_is_known_of_residuals() {
    let mut peers = peers(in_reduce(), 2);
    let updates = updates(&mut peers, 0, Stage::Update);
    reduce(&mut peers, &updates, &mut vec![Vec::new(); SHARDS]);
    let donor = &peers[0];
    let (root, leaves) = (donor.state_root(), donor.leaves());
    assert_eq!(leaves.len(), 4 + SHARDS);
    let mut import =
        StateImport::new(&parameters(), in_reduce(), root, leaves.clone()).expect("leaves");
    for index in (0..leaves.len()).rev() {
        let content = donor.export_leaf(index).expect("leaf");
        let mut damaged = content.clone();
        damaged[0] ^= 1;
        assert_eq!(
            import.put(index, &damaged),
            Err(ImportError::Content { index })
        );
        import.put(index, &content).expect("content");
    }
    let joiner = import.finish().expect("complete");
    assert_eq!(joiner.state_root(), root);
    for shard in 0..SHARDS {
        let known = joiner.residual_root(GroupId::ALL, shard);
        assert_eq!(known, donor.residual_root(GroupId::ALL, shard));
        assert_ne!(known, Hash::ZERO);
    }
}

#[test]
fn a_state_whose_residuals_no_peer_writes_is_refused() {
    let peer = replica(in_reduce());
    let contents = [
        [[2; 32], [9; 32], [1; 32], [9; 32]].concat(),
        [[1; 32], [9; 32], [1; 32], [9; 32]].concat(),
        [[1; 32], [0; 32]].concat(),
        [[1; 32]; 3].concat(),
        vec![1; 63],
    ];
    for content in contents {
        let mut leaves = peer.leaves();
        leaves.extend([Hash::of_content(&content), Hash::of_content(&[])]);
        let root = gradmesh_protocol::merkle::Tree::from_leaves(leaves.clone()).root();
        let mut import =
            StateImport::new(&parameters(), in_reduce(), root, leaves).expect("leaves");
        assert_eq!(
            import.put(4, &content),
            Err(ImportError::Residuals { index: 4 })
        );
        assert_eq!(import.put(5, &[]), Ok(()));
    }
}

#[test]
fn training_ahead_subtracts_what_the_frames_of_each_stage_say() {
    for (stage, tolerance) in [
        // bf16 keeps eight bits of values up to 0.01; the subtraction rounds below that.
        (Stage::Local, 0.01 / 256.0),
        // Top-k leaves out all but the largest values.
        (Stage::Update, 0.01),
        (Stage::Reduced, 0.01),
    ] {
        let mut peer = replica(in_reduce());
        let delta = values(7);
        let own = update(&mut peer, &delta, stage);
        let start = peer
            .start_ahead(stage, 0..SHARDS, &own.frames)
            .expect("own frames");
        let moved = peer.theta().iter().zip(&start).map(|(t, s)| t - s);
        let mut changed = 0;
        for (moved, delta) in moved.zip(&delta) {
            assert!((moved - delta).abs() <= tolerance, "{stage:?}");
            changed += usize::from(moved != 0.0);
        }
        assert!(changed > 3 * 64, "{stage:?}: {changed}");
        let other = match stage {
            Stage::Local => Stage::Update,
            Stage::Update | Stage::Reduced => Stage::Local,
        };
        assert!(matches!(
            peer.start_ahead(other, 0..SHARDS, &own.frames),
            Err(UpdateError::Frame { shard: 0, .. })
        ));
    }
}
