//! `gradmesh-bench wan`: is the emulator exact on this machine, and programs in a network that it emulates.
//!
//! # JSON of `wan check`
//!
//! `machine` as in every report; `lanes_skipped`: lane and reason; `rows`: [`Row`] each, in its units; `capacity` (root lane):
//! [`Capacity`] per MTU.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::capacity::{self, Capacity};
use super::check::{CASES, Lane, Outcome, Row};
use super::{Emulator, Topology};
use crate::netns;
use crate::origin::Origin;

/// Arguments of `wan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Measure delay, jitter, rate, loss and throughput of emulated links against what was asked
    Check(CheckArgs),
    /// Run a program on every host of an emulated network, or on one (root)
    Exec(ExecArgs),
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only the relay, as without root
    #[arg(long)]
    relay_only: bool,
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    /// The network, as bench/examples/three-sites.toml describes one
    #[arg(long, value_name = "FILE")]
    topology: PathBuf,
    /// Only this host; the others are there and idle
    #[arg(long, value_name = "SITE-N")]
    host: Option<String>,
    /// Program and arguments. WAN_HOST, WAN_SITE, WAN_ADDRESS and WAN_ADDRESSES (all hosts in order, with commas) are set
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the subcommand.
///
/// # Errors
/// If nothing can be measured or run, a figure is outside its bar, or a program fails.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Check(args) => check(args),
        Command::Exec(args) => exec(args),
    }
}

fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut skipped = Vec::new();
    let mut capacities = Vec::new();
    let obstacle = if args.relay_only {
        Some("not asked for".to_owned())
    } else {
        netns::available().err().map(|reason| reason.to_string())
    };
    match obstacle {
        Some(reason) => {
            eprintln!("root lane skipped: {reason}");
            skipped.push(json!({ "lane": "root", "reason": reason }));
        }
        None => {
            measure(&Lane::root()?, &mut rows)?;
            for mtu in [1500, 9000] {
                capacities.push(capacity::measure(mtu)?);
            }
        }
    }
    measure(&Lane::relay()?, &mut rows)?;
    print!("{}{}", table(&rows), capacity_table(&capacities));
    if let Some(path) = &args.json {
        let report = json!({
            "machine": Origin::here_and_now().to_json(),
            "lanes_skipped": skipped,
            "rows": rows,
            "capacity": capacities,
        });
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("write {}", path.display()))?;
    }
    let outside = rows
        .iter()
        .filter(|row| row.outcome == Outcome::Outside)
        .count();
    ensure!(
        outside == 0,
        "{outside} of {} figures outside their bar",
        rows.len()
    );
    Ok(())
}

fn measure(lane: &Lane, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    for case in CASES {
        eprintln!("{:?}: {case:?}", lane.kind());
        rows.push(lane.measure(case)?);
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<6} {:<10} {:>9} {:>10}  {:>19}  {:<8} {:>8} {:>10}\n",
        "lane", "quantity", "asked", "measured", "bar", "outcome", "attempts", "control_ms"
    );
    for row in rows {
        let lane = format!("{:?}", row.lane).to_lowercase();
        let outcome = format!("{:?}", row.outcome).to_lowercase();
        let bar = format!("{:.4} - {:.4}", row.bar[0], row.bar[1]);
        let control = row
            .control_ms
            .map_or_else(|| "-".to_owned(), |control| format!("{control:.3}"));
        let busy = row.busy.as_deref().unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{lane:<6} {:<10} {:>9.3} {:>10.4}  {bar:>19}  {outcome:<8} {:>8} {control:>10} {busy}",
            row.quantity, row.asked, row.measured, row.attempts
        );
    }
    text
}

fn capacity_table(capacities: &[Capacity]) -> String {
    let mut text = String::new();
    for row in capacities {
        let _ = writeln!(
            text,
            "router at mtu {}: {:.0} Mbit/s and {:.0} packets/s of one tcp stream, {:.0} packets per second of router cpu, \
             {} overrun",
            row.mtu, row.mbit, row.packets_per_s, row.packets_per_cpu_s, row.overrun_packets
        );
    }
    text
}

fn exec(args: &ExecArgs) -> anyhow::Result<()> {
    netns::available().context("an emulated network cannot be had here")?;
    let text = std::fs::read_to_string(&args.topology)
        .with_context(|| format!("read {}", args.topology.display()))?;
    let emulator = Emulator::start(&Topology::from_toml(&text)?)?;
    let Some((program, arguments)) = args.command.split_first() else {
        bail!("no program to run");
    };
    let addresses: Vec<String> = emulator
        .hosts()
        .iter()
        .map(|host| host.address.to_string())
        .collect();
    let mut children = Vec::new();
    for host in emulator.hosts() {
        if args.host.as_ref().is_some_and(|only| *only != host.name) {
            continue;
        }
        let child = host
            .namespace
            .command(program)
            .args(arguments)
            .env("WAN_HOST", &host.name)
            .env("WAN_SITE", &emulator.topology().sites[host.site].name)
            .env("WAN_ADDRESS", host.address.to_string())
            .env("WAN_ADDRESSES", addresses.join(","))
            .spawn()
            .with_context(|| format!("start {program} on {}", host.name))?;
        children.push((host, child));
    }
    ensure!(
        !children.is_empty(),
        "there is no such host: {:?}",
        args.host
    );
    let mut failed = Vec::new();
    for (host, child) in &mut children {
        if !child.wait()?.success() {
            failed.push(host.name.as_str());
        }
    }
    eprintln!("{}", serde_json::to_string_pretty(&emulator.counters())?);
    ensure!(
        failed.is_empty(),
        "{program} failed on {}",
        failed.join(", ")
    );
    Ok(())
}
