//! Speed of what a replica does in a round: prints one line per codec.
//!
//! `cargo run -p gradmesh-trainer --example exchange_speed [elements] [peers] [threads]`
//!
//! Update and apply are done by so many threads (default 1), the rest by one. `adds` is the lower bound for a dense apply: as many passes of additions as there are peers; `hash` is BLAKE3 over
//! theta. The best of several rounds.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use gradmesh_compression::{Codec, DenseFormat, TopK, ValueBits};
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::plan::GroupId;
use gradmesh_trainer::replica::{Contribution, Outer, Replica, ReplicaConfig, RoundShard};
use gradmesh_trainer::synthetic::SyntheticConfig;
use gradmesh_trainer::workers::Workers;

const ROUNDS: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let elements: usize = arguments
        .next()
        .map_or(Ok(25_000_000), |text| text.parse())?;
    let peers: usize = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let threads = arguments
        .next()
        .map_or(Ok(NonZeroUsize::MIN), |text| text.parse())?;
    let workers = Workers::start(threads)?;
    let model = SyntheticConfig::new(vec![elements], 0);
    let theta = model.init([1; 32])?;
    let sparse = |k, value_bits| {
        Ok::<_, gradmesh_compression::TopKOutOfRange>(Codec::Sparse {
            k: TopK::new(k)?,
            value_bits,
        })
    };
    for (name, codec) in [
        ("f32", Codec::Dense(DenseFormat::F32)),
        ("bf16", Codec::Dense(DenseFormat::Bf16)),
        ("sparse", sparse(64, ValueBits::One)?),
    ] {
        let reduced = match codec {
            Codec::Sparse { .. } => sparse(256, ValueBits::Two)?,
            Codec::Dense(_) => codec,
        };
        let config = ReplicaConfig {
            codec,
            reduced,
            local: Codec::Dense(DenseFormat::Bf16),
            outer: Outer::Plain { rate: 1.0 },
            feedback_beta: 0.95,
            owner_beta: 0.9,
            sparse_elements_min: 4096,
            tiles_per_shard: NonZeroUsize::new(64).ok_or("no tiles")?,
        };
        let mut replica = Replica::new(&model.parameters(), config, theta.clone())?;
        let local = model.init([2; 32])?;
        let mut best = [f64::MAX; 5];
        let mut time = |place: usize, began: Instant| {
            best[place] = best[place].min(began.elapsed().as_secs_f64());
        };
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let all = 0..replica.shape().shard_count();
            let update = workers.run(|| replica.update_of(all, None, &local, Stage::Update))?;
            time(0, began);
            let shards: Vec<_> = update
                .frames
                .iter()
                .map(|frame| RoundShard {
                    stage: Stage::Update,
                    contributions: vec![Contribution { tokens: 1, frame }; peers],
                    residuals: Vec::new(),
                })
                .collect();
            let began = Instant::now();
            for (shard, round) in shards.iter().enumerate() {
                let (input, output) = (Stage::Update, Stage::Reduced);
                black_box(replica.shape().reduce(
                    shard,
                    input,
                    output,
                    None,
                    &round.contributions,
                )?);
            }
            time(1, began);
            let began = Instant::now();
            workers.run(|| replica.apply(&shards, None, &[GroupId::ALL]))?;
            time(2, began);
            let began = Instant::now();
            let mut sum = vec![0.0f32; theta.len()];
            for _ in 0..peers {
                for (sum, value) in sum.iter_mut().zip(&local) {
                    *sum += 0.25 * value;
                }
                black_box(&mut sum);
            }
            time(3, began);
            let began = Instant::now();
            let bytes: Vec<u8> = local.iter().flat_map(|value| value.to_le_bytes()).collect();
            for tile in bytes.chunks(1 << 14) {
                black_box(blake3::hash(tile));
            }
            time(4, began);
        }
        let [update, reduce, apply, adds, hash] = best;
        println!(
            "{name}, {elements} elements, {peers} peers, {threads} threads: update {update:.3} s, reduce {reduce:.3} s, apply {apply:.3} s, \
             adds {adds:.3} s, hash {hash:.3} s"
        );
    }
    Ok(())
}
