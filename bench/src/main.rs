//! Measurements of gradmesh, each beside a bound from arithmetic.
//!
//! Trains nothing but the demo's model. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod bound;
mod codec;
mod detection;
mod exchange;
mod harness;
mod learning;
mod noise;
mod overhead;
mod planes;
mod report;
mod scale;
mod update;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gradmesh_bench::{origin, wan};

/// Measure gradmesh on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "gradmesh-bench",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Size, error and speed of every codec, on one thread
    Codec(codec::Args),
    /// Rounds until audits catch a cheat, in the simulator, beside the formula
    Detection(detection::Args),
    /// Time, bytes and processor time of an exchange between real daemons, beside gloo and hivemind
    Exchange(exchange::Args),
    /// What decentralised training costs against a centralised cluster, at the same loss
    Overhead(Box<overhead::Args>),
    /// A member of the cluster that `overhead` measures
    #[command(hide = true)]
    ClusterMember(overhead::cluster::member::Args),
    /// Loss at equal tokens of every way to exchange, with peers in one process
    Learning(learning::Args),
    /// Time, bytes and messages of a round with 4 to 4,096 peers, predicted
    Scale(scale::Args),
    /// Emulated wide-area networks on this machine: is it exact, and run programs in it
    Wan(wan::cli::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Codec(args) => codec::run(&args),
        Command::ClusterMember(args) => overhead::cluster::member::run(&args),
        Command::Detection(args) => detection::run(&args),
        Command::Exchange(args) => exchange::run(&args),
        Command::Overhead(args) => overhead::run(&args),
        Command::Learning(args) => learning::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Wan(args) => wan::cli::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
