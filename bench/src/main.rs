//! Measurements of gradmesh, each beside a bound from arithmetic.
//!
//! Trains nothing and opens no socket. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod bound;
mod codec;
mod noise;
mod origin;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
}

fn main() -> ExitCode {
    let Command::Codec(args) = Cli::parse().command;
    match codec::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
