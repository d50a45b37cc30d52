//! What an update costs a peer apart from the network: bytes, and seconds of one core, for each parameter.
//!
//! The code that daemons run, on noise: encoding with error feedback, and applying the updates of all peers with the outer
//! step and the new state root.

use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::Context;
use gradmesh_compression::{Codec, DenseFormat};
use gradmesh_protocol::header::Stage;
use gradmesh_trainer::Architecture;
use gradmesh_trainer::replica::{Contribution, Outer, Replica, ReplicaConfig, RoundShard};
use serde_json::{Value, json};

use crate::harness::CodecName;
use crate::noise::{Distribution, Noise};
use crate::report::median;

/// Elements that are measured: 32 MiB of f32, more than caches hold.
const ELEMENTS: usize = 1 << 23;
/// The first round has no residual yet; the median of the others counts.
const ROUNDS: usize = 4;
/// Of an element of an update: the size that a round of AdamW makes.
const UPDATE_SCALE: f32 = 1e-3;

/// For each parameter.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cost {
    pub(super) codec: CodecName,
    pub(super) peers: u32,
    pub(super) bits: f64,
    /// Select, quantise, keep the rest.
    pub(super) encode_s: f64,
    /// Decode and sum the updates of all peers, outer step, state root.
    pub(super) apply_s: f64,
}

impl Cost {
    /// Measures on this machine, with one thread.
    pub(super) fn measure(codec: CodecName, peers: u32) -> anyhow::Result<Cost> {
        let config = json!({"model_type": "gradmesh-synthetic", "elements": [ELEMENTS]});
        let architecture = Architecture::from_json(config.to_string().as_bytes())?;
        let config = ReplicaConfig {
            codec: codec.codec()?,
            reduced: codec.codec()?,
            local: Codec::Dense(DenseFormat::Bf16),
            outer: Outer::Plain { rate: 1.0 },
            feedback_beta: 0.95,
            owner_beta: 0.9,
            sparse_elements_min: 1,
            tiles_per_shard: NonZeroUsize::new(64).context("no tiles")?,
        };
        let mut replica = Replica::new(&architecture.parameters(), config, vec![0.0; ELEMENTS])?;
        let mut noise = Noise::new(1);
        let mut values = vec![0.0; ELEMENTS];
        let (mut encode_s, mut apply_s, mut bits) = (Vec::new(), Vec::new(), 0.0);
        for _ in 0..ROUNDS {
            noise.fill(Distribution::Laplace, &mut values);
            let start = replica.start().into_owned();
            let moved = start.iter().zip(&values);
            let local: Vec<f32> = moved.map(|(at, by)| at - by * UPDATE_SCALE).collect();
            let shards = 0..replica.shape().shard_count();
            let began = Instant::now();
            let update = replica.update_of(shards, Some(&start), &local, Stage::Update)?;
            encode_s.push(began.elapsed().as_secs_f64());
            let bytes: usize = update.frames.iter().map(Vec::len).sum();
            bits = bytes as f64 * 8.0 / ELEMENTS as f64;
            let round = update.frames.iter().map(|frame| RoundShard {
                stage: Stage::Update,
                contributions: (0..peers)
                    .map(|_| Contribution { tokens: 1, frame })
                    .collect(),
                residuals: Vec::new(),
            });
            let round: Vec<RoundShard<'_>> = round.collect();
            let began = Instant::now();
            replica.apply(&round, None, &[])?;
            apply_s.push(began.elapsed().as_secs_f64());
        }
        let of_one =
            |seconds: Vec<f64>| median(seconds.into_iter().skip(1)).map(|s| s / ELEMENTS as f64);
        Ok(Cost {
            codec,
            peers,
            bits,
            encode_s: of_one(encode_s).context("no round")?,
            apply_s: of_one(apply_s).context("no round")?,
        })
    }

    /// Of an update of `parameters`.
    pub(super) fn bytes(&self, parameters: f64) -> f64 {
        parameters * self.bits / 8.0
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "codec": self.codec.to_string(),
            "peers": self.peers,
            "bits_per_parameter": self.bits,
            "encode_s_per_parameter": self.encode_s,
            "apply_s_per_parameter": self.apply_s,
        })
    }
}
