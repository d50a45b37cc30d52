//! Whole rounds of several peers without a network: assignment, training, frames, apply, state roots.

use std::num::NonZeroUsize;

use gradmesh_compression::{Codec, DenseFormat, TopK, ValueBits};
use gradmesh_protocol::header::Stage;
use gradmesh_trainer::data::{Corpus, Windows, assignment};
use gradmesh_trainer::reference::{ReferenceConfig, ReferenceTrainer};
use gradmesh_trainer::replica::{
    Contribution, Outer, OwnUpdate, Replica, ReplicaConfig, RoundShard, StateImport, Update,
};
use gradmesh_trainer::{InnerOptimizer, TrainTask, Trainer};

const PEERS: u8 = 3;
const STEPS: u32 = 10;
const SEQ_LEN: usize = 16;

struct Peer {
    hotkey: [u8; 32],
    trainer: ReferenceTrainer,
    replica: Replica,
}

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

fn config(codec: Codec, outer: Outer) -> ReplicaConfig {
    ReplicaConfig {
        codec,
        reduced: codec,
        local: Codec::Dense(DenseFormat::Bf16),
        outer,
        feedback_beta: 0.95,
        owner_beta: 0.9,
        sparse_elements_min: 512,
        tiles_per_shard: NonZeroUsize::MIN,
    }
}

fn sparse() -> ReplicaConfig {
    let k = TopK::new(256).expect("256 is in range");
    let value_bits = ValueBits::One;
    config(Codec::Sparse { k, value_bits }, Outer::Plain { rate: 2.0 })
}

fn peers(config: ReplicaConfig) -> Vec<Peer> {
    let model = ReferenceConfig::default();
    let optimizer = InnerOptimizer {
        learning_rate: 5e-3,
        warmup_steps: 10,
        ..InnerOptimizer::default()
    };
    (0..PEERS)
        .map(|peer| {
            let trainer = ReferenceTrainer::new(model, optimizer.clone()).expect("settings");
            let theta = model.init([3; 32]);
            Peer {
                hotkey: [peer; 32],
                replica: Replica::new(trainer.parameters(), config, theta).expect("replica"),
                trainer,
            }
        })
        .collect()
}

fn validation_loss(peer: &mut Peer, windows: &Windows<'_>) -> f32 {
    let all: Vec<u64> = (0..windows.held_out()).collect();
    let batch = windows.validation_batch(&all).expect("held-out windows");
    let theta = peer.replica.theta().to_vec();
    peer.trainer.loss(&theta, &batch).expect("loss")
}

fn train(peer: &mut Peer, round: u32, windows: &Windows<'_>) -> Update {
    let task = TrainTask {
        first_step: 0,
        steps: STEPS,
        global_step: u64::from(round * STEPS),
    };
    let (seed, hotkey) = (round.to_le_bytes(), peer.hotkey);
    let mut batches = |step| {
        let indices = assignment(&seed, &hotkey, step, 4, windows.training());
        windows
            .training_batch(&indices)
            .map_err(|error| error.to_string())
    };
    let start = peer.replica.theta().to_vec();
    peer.trainer
        .train(&start, &task, &mut batches, &mut |_| true)
        .expect("training");
    peer.replica
        .update(&start, &peer.trainer.local(), Stage::Update)
        .expect("update")
}

/// One round in which peer `late` misses the decision.
fn round(peers: &mut [Peer], round: u32, windows: &Windows<'_>, late: Option<usize>) {
    let updates: Vec<Update> = peers
        .iter_mut()
        .map(|peer| train(peer, round, windows))
        .collect();
    let shards: Vec<RoundShard<'_>> = (0..updates[0].frames.len())
        .map(|shard| RoundShard {
            stage: Stage::Update,
            contributions: updates
                .iter()
                .enumerate()
                .filter(|(peer, _)| Some(*peer) != late)
                .map(|(_, update)| Contribution {
                    tokens: 640,
                    frame: &update.frames[shard],
                })
                .collect(),
            residuals: Vec::new(),
        })
        .collect();
    for (index, (peer, update)) in peers.iter_mut().zip(&updates).enumerate() {
        let accepted = vec![Some(index) != late; update.frames.len()];
        let own = OwnUpdate {
            stage: Stage::Update,
            shards: 0..update.frames.len(),
            frames: &update.frames,
            accepted: &accepted,
        };
        peer.replica.apply(&shards, Some(own), &[]).expect("apply");
    }
    let roots: Vec<_> = peers.iter().map(|peer| peer.replica.state_root()).collect();
    assert!(
        roots.iter().all(|root| *root == roots[0]),
        "round {round}: {roots:?}"
    );
}

#[test]
fn sparse_and_dense_runs_learn_and_stay_equal() {
    let corpus = corpus();
    let windows = corpus.windows(SEQ_LEN).expect("windows");
    let dense = Codec::Dense(DenseFormat::Bf16);
    let nesterov = Outer::Nesterov {
        rate: 0.7,
        momentum: 0.9,
    };
    for config in [
        sparse(),
        config(dense, nesterov),
        config(dense, Outer::Plain { rate: 1.0 }),
    ] {
        let mut peers = peers(config);
        let first = validation_loss(&mut peers[0], &windows);
        for number in 0..20 {
            // Every seventh round one peer misses the deadline.
            let late = (number % 7 == 3).then_some(1);
            round(&mut peers, number, &windows, late);
        }
        let last = validation_loss(&mut peers[0], &windows);
        // Letter frequencies alone (17 symbols in this text) leave about 2.5 nats.
        assert!(first > 5.0 && last < 2.5, "{config:?}: {first} to {last}");
    }
}

#[test]
fn a_joiner_with_the_state_follows_the_others_to_the_bit() {
    let corpus = corpus();
    let windows = corpus.windows(SEQ_LEN).expect("windows");
    let mut peers = peers(sparse());
    for number in 0..3 {
        round(&mut peers, number, &windows, None);
    }
    let donor = &peers[0].replica;
    let parameters = peers[0].trainer.parameters();
    let mut import = StateImport::new(parameters, sparse(), donor.state_root(), donor.leaves())
        .expect("leaves of the donor");
    let wanted: Vec<_> = import.missing().map(|(index, _)| index).collect();
    for index in wanted {
        let content = donor.export_leaf(index).expect("tile");
        import.put(index, &content).expect("verified content");
    }
    peers[2].replica = import.finish().expect("complete");
    for number in 3..5 {
        round(&mut peers, number, &windows, None);
    }
}
