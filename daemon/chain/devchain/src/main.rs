//! `gradmesh-devchain`: a development chain in a process of its own.
//!
//! Exit codes: 0 after Ctrl-C or SIGTERM, 1 for what went wrong (one line on stderr), 2 for usage.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use gradmesh_devchain::genesis::{DEV_KEYS, dev_account};
use gradmesh_devchain::{DevChain, Options, Sealing};
use sp_core::crypto::Ss58Codec;
use sp_runtime::AccountId32;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A development chain with subtensor's interface, for tests and demos.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9944")]
    listen: SocketAddr,
    /// Time between two blocks in milliseconds, 250 to 12000
    #[arg(long, value_name = "MS", default_value_t = Options::default().block_ms)]
    block_ms: u64,
    /// Make blocks only on request (dev_seal, dev_advance)
    #[arg(long)]
    manual: bool,
    /// How many blocks the final one is behind the newest
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    finality_lag: u32,
    /// Keep the chain in this directory, and go on with the one in it [default: in memory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Blocks per epoch of a new subnet [default: 10]
    #[arg(long, value_name = "BLOCKS")]
    tempo: Option<u16>,
    /// Seconds between two rounds of the chain's beacon
    #[arg(long, value_name = "S", default_value_t = Options::default().beacon_period_s)]
    beacon_period_s: u32,
    /// Time of block 0 in milliseconds since 1970 [default: now]
    #[arg(long, value_name = "MS")]
    genesis_unix_ms: Option<u64>,
    /// Blocks whose states can be read
    #[arg(long, value_name = "BLOCKS", default_value_t = Options::default().states_kept)]
    states_kept: u32,
    /// Leave a call of SubtensorModule out of metadata until dev_upgrade, as before the release that added it
    #[arg(long, value_name = "CALL")]
    without: Vec<String>,
    /// Give this account TAO to spend, as a faucet would; may be repeated
    #[arg(long, value_name = "SS58", value_parser = account)]
    fund: Vec<AccountId32>,
    /// Print one line of JSON instead of text
    #[arg(long)]
    json: bool,
    /// The process to end with
    #[arg(long, hide = true, value_name = "PID")]
    parent_pid: Option<i32>,
}

/// What `--fund` gives: ten subnets.
const FUND_RAO: u64 = 10_000_000_000_000;

fn account(text: &str) -> Result<AccountId32, String> {
    AccountId32::from_ss58check(text).map_err(|error| format!("no ss58 address: {error:?}"))
}

impl Arguments {
    fn options(&self) -> Options {
        Options {
            listen: self.listen,
            sealing: if self.manual {
                Sealing::Manual
            } else {
                Sealing::Interval
            },
            block_ms: self.block_ms,
            finality_lag_blocks: self.finality_lag,
            dir: self.dir.clone(),
            tempo_blocks: self.tempo,
            beacon_period_s: self.beacon_period_s,
            genesis_unix_ms: self.genesis_unix_ms,
            states_kept: self.states_kept,
            without_calls: self.without.clone(),
            ..Options::default()
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gradmesh-devchain: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // Before anything is printed: who reads the address may send a signal at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    if let Some(parent) = arguments.parent_pid {
        end_with(parent)?;
    }
    let chain = DevChain::start(arguments.options()).await?;
    for account in &arguments.fund {
        chain.set_balance(*account.as_ref(), FUND_RAO);
    }
    print(arguments, &chain);
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
        failure = chain.failed() => anyhow::bail!("{failure}"),
    }
    chain.shutdown().await;
    Ok(())
}

/// Has the kernel kill this process when its parent ends in whatever way.
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

fn print(arguments: &Arguments, chain: &DevChain) {
    let url = chain.url();
    let genesis = format!("0x{}", hex::encode(chain.genesis()));
    if arguments.json {
        println!("{}", serde_json::json!({ "url": url, "genesis": genesis }));
        return;
    }
    println!("dev chain at {url}");
    println!("genesis {genesis}, block {}", chain.best().number);
    match &arguments.dir {
        Some(dir) => println!("kept in {}", dir.display()),
        None => println!("kept in memory only: it is gone when this ends (see --dir)"),
    }
    println!();
    println!("development keys with TAO, signed for as //NAME (the first may use sudo):");
    for name in DEV_KEYS {
        println!("  {name:8} {}", dev_account(name).to_ss58check());
    }
    println!();
    println!("next:");
    println!(
        "  gradmesh wallet new                     make keys of your own; start this chain with --fund COLDKEY to give them TAO"
    );
    println!("  gradmesh launch run.toml --register-up-to 2000");
    println!(
        "                                          a new subnet with a run, if the file has [chain] network = \"{url}\""
    );
    println!("  gradmesh join --netuid 1 --chain {url} --register-up-to 1");
    println!("  gradmesh chain info --chain {url}");
    println!();
    println!("Ctrl-C ends it.");
}
