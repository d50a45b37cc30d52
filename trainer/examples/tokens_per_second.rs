//! Speed of the libtorch model on this machine: prints one line per precision and thread count.
//!
//! `cargo run -p gradmesh-trainer --features torch --example tokens_per_second [threads] [device]`
//!
//! The model is the demo's: hidden 128, 5 layers, 4 heads of which 2 are key heads, inner width 352, bytes, 1 M
//! parameters. The bound printed beside it counts six floating-point operations per parameter and token.

use std::time::Instant;

use gradmesh_trainer::model::{self, Precision};
use gradmesh_trainer::torch::{TorchSettings, TorchTrainer, device, set_threads, version_check};
use gradmesh_trainer::{Batch, InnerOptimizer, ModelConfig, TrainTask, Trainer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let threads: u16 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let request = arguments
        .next()
        .unwrap_or_else(|| "auto".to_owned())
        .parse()?;
    let choice = device::select(request)?;
    set_threads(threads);
    println!(
        "libtorch {}, {threads} thread(s), {}",
        version_check()?,
        choice.why
    );
    let config = ModelConfig {
        hidden_size: 128,
        intermediate_size: 352,
        num_hidden_layers: 5,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        vocab_size: 256,
        max_position_embeddings: 256,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        head_dim: None,
        hidden_act: "silu".to_owned(),
    };
    let theta = model::init(&config, [0; 32])?;
    for precision in [Precision::F32, Precision::Bf16] {
        for (sequences, seq_len) in [(8, 64), (16, 64), (16, 128)] {
            let settings = TorchSettings {
                precision,
                device: choice.device,
                ..TorchSettings::cpu(InnerOptimizer::default())
            };
            let mut trainer = TorchTrainer::new(config.clone(), settings)?;
            let tokens = (0..sequences * (seq_len + 1))
                .map(|at| at as u32 * 31 % 256)
                .collect();
            let batch = Batch::new(tokens, sequences)?;
            let mut source = |_step| Ok(batch.clone());
            let mut run = |trainer: &mut TorchTrainer, steps| {
                let task = TrainTask {
                    first_step: 0,
                    steps,
                    global_step: 0,
                };
                trainer.train(&theta, &task, &mut source, &mut |_| true)
            };
            run(&mut trainer, 5)?;
            let mut samples = Vec::new();
            for _ in 0..3 {
                let start = Instant::now();
                let report = run(&mut trainer, 15)?;
                samples.push(report.tokens as f64 / start.elapsed().as_secs_f64());
            }
            let best = samples.iter().copied().fold(0.0, f64::max);
            println!(
                "{precision:?} {sequences}x{seq_len}, {} parameters: {samples:.0?} tokens/s, best {:.1} GFLOP/s",
                theta.len(),
                best * 6.0 * theta.len() as f64 / 1e9
            );
        }
    }
    Ok(())
}
