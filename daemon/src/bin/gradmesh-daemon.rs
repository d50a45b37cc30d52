//! The daemon and all commands, started by `gradmesh` once libtorch is known to fit (gradmesh.rs): reads the command
//! line, says what went wrong.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use gradmesh::cli::Cli;
use gradmesh::commands;
use gradmesh::machine::{LOG, MachineFile};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    if let Some(parent) = cli.global.parent_pid {
        end_with(parent)?;
    }
    let settings = MachineFile::load(cli.global.config.as_deref())?;
    let filter = cli.global.log.as_deref().or(settings.log.as_deref());
    let filter = EnvFilter::try_new(filter.unwrap_or(LOG))
        .context("--log: not a filter such as debug or warn,gradmesh=trace")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime's threads")?
        // On this thread, so that a demo's peers are children of the main thread.
        .block_on(commands::run(cli, &settings))
}

/// Has the kernel kill this process when its parent, the demo, ends in whatever way.
#[cfg(target_os = "linux")]
fn end_with(parent: i32) -> anyhow::Result<()> {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow the parent")?;
    // It may have ended before the line above.
    anyhow::ensure!(
        getppid() == Pid::from_raw(parent),
        "process {parent}, which this one belongs to, has ended"
    );
    Ok(())
}

/// Elsewhere the parent kills its children itself, which it does unless it is killed.
#[cfg(not(target_os = "linux"))]
fn end_with(_parent: i32) -> anyhow::Result<()> {
    Ok(())
}
