//! `gradmesh-bench overhead`: what decentralised training costs beside a centralised cluster.

pub(crate) mod cluster;
mod training;

use std::path::PathBuf;

use gradmesh_trainer::InnerOptimizer;

use self::cluster::Engine;
use self::training::Training;
use crate::harness::Link;
use crate::harness::network::Network;

/// Stands in until the command is there.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    data: PathBuf,
    #[arg(long, default_value_t = 2)]
    peers: u32,
    #[arg(long, default_value_t = 2)]
    members: u32,
    #[arg(long, default_value_t = 20)]
    steps: u32,
    #[arg(long, default_value_t = 8)]
    batch: usize,
    #[arg(long, default_value = "loopback")]
    link: Link,
    #[arg(long)]
    ddp: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let training = Training {
        model: args.model.clone(),
        data: args.data.clone(),
        peers: args.peers,
        steps: args.steps,
        batch_sequences: args.batch,
        sequence_tokens: 64,
        optimizer: InnerOptimizer {
            learning_rate: 3e-3,
            warmup_steps: 10,
            ..InnerOptimizer::default()
        },
        seed: 1,
    };
    let engine = if args.ddp { Engine::Ddp } else { Engine::Own };
    let home = tempfile::tempdir()?;
    let trained = runtime.block_on(async {
        let network = Network::make(&args.link, args.members).await?;
        let places = network.places.clone();
        let mut watch = |step: &cluster::Step| println!("{step:?}");
        tokio::select! {
            trained = cluster::train(engine, &training, &places, &network, home.path(), &mut watch) => trained,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    })?;
    println!(
        "held out {}, {} bytes per member, {:?} bytes into sites, {} s of processor, {} bytes held",
        trained.held_out,
        trained.bytes_per_member,
        trained.wan_bytes,
        trained.cpu_s,
        trained.rss_bytes_max
    );
    println!("{} steps", trained.steps.len());
    Ok(())
}
