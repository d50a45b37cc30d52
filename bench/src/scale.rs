//! `gradmesh-bench scale`: what a round costs with 4 to 4,096 peers, by each plan, and what the planner chooses.
//!
//! Two ways to know, and each figure says which it is from:
//!
//! - **nodes**: the nodes themselves, in the simulator, with real messages, votes and frames that are counted as large ones
//!   (`nodes.rs`). Up to `--nodes-max` peers, and never more than a manifest allows.
//! - **flow**: bytes over rates, by what the same plan functions say on the same options (`flow.rs`). For any number of peers.
//!   Where both run, the table has their difference.
//!
//! With `--check` the same is asked of real daemons in an emulated network, for a small model, and stands beside both
//! (`check.rs`; needs root).
//!
//! Every site has one line to the others, of the rate of `--link` each way, which its peers share; inside a site hosts send 1
//! Gbit/s. All peers train equally long and nothing goes wrong. Sizes of frames are measured on the codec, lengths of
//! messages are those of encoded ones (`sizes.rs`, [`gradmesh_sim::lengths`]). Not counted: encoding and decoding of frames by the
//! processor, joins, checkpoints, audits.
//!
//! # JSON
//!
//! ```text
//! benchmark   "scale"
//! version     1
//! machine     {cpu, cores, commit, date, debug_assertions}; null where the system does not tell
//! config      {parameters, codec, mbit, round_trip_ms, compute_s, overlap}
//! results     one object per number of peers, sites and plan:
//!   peers, sites
//!   plan                  "gather", "reduce" or "hier": what the run file asks for
//!   chosen                whether the planner would choose it, of these three
//!   shards                of the model, and of a header
//!   update_bytes          {local, update, reduced}: of an update at each stage, before packets
//!   planner_s             what the planner predicts of the exchange
//!   nodes, flow           null without, else
//!     plan                        what the frames went by: "gather" if the plan that is asked for needs too many sums
//!     exchange_s                  from the end of training until the next one can begin, without overlap
//!     round_s                     with training; with overlap the longer of the two
//!     waiting                     the part of round_s in which a peer does not train
//!     bytes_per_peer              received by a peer in a round, all messages, with the headers of packets
//!     messages_per_peer           received by a peer in a round
//!     decision_messages_per_peer  proposals and votes among them
//!   limits                what today's limits have against such a run, in words
//! check       with --check one object per case:
//!   peers, sites, plan, parameters, shards
//!   seconds               measured, per round (`gradmesh-bench exchange`)
//!   bytes_per_peer        measured
//!   work_seconds          measured over lines that hold nothing up: to be added to what is predicted
//!   nodes_s, flow_s, nodes_bytes, flow_bytes
//!                         predicted; nodes_shards: the shards that nodes had, as near as they can
//!   missing, work_missing, nodes_missing
//!                         why nothing was measured, or predicted by the nodes; else null
//! missing     why it ended before all was done: an error, or that it was interrupted; else null
//! wall_s      how long it took
//! ```

mod case;
mod check;
mod figures;
mod flow;
mod nodes;
mod sizes;
mod table;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use gradmesh_protocol::manifest::PlanKind;
use gradmesh_protocol::plan::Plan;
use gradmesh_trainer::model::{ModelConfig, elements};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

use crate::harness::link::Wide;
use crate::harness::{self, CodecName};
use crate::origin::Origin;
use crate::report::Output;
use case::{Case, Setting};
use figures::Figures;
use table::{Report, Row};

/// The most peers that are predicted: what the flow model takes seconds for.
const PEERS_MAX: u32 = 4096;
const SITES_MAX: u32 = 64;

/// `gradmesh-bench scale`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Numbers of peers, separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [4, 16, 64, 256, 1024, 4096], value_parser = clap::value_parser!(u32).range(2..=i64::from(PEERS_MAX)))]
    peers: Vec<u32>,
    /// Sites that peers are spread over at most, two peers in each at least, separated by commas; 0: each peer is one
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [0, 64], value_parser = clap::value_parser!(u32).range(0..=i64::from(SITES_MAX)))]
    sites: Vec<u32>,
    /// The model: a number of parameters, or a Hugging Face config.json
    #[arg(long, value_name = "N|FILE", default_value = "1000000000")]
    parameters: String,
    /// As of `exchange`
    #[arg(long, value_name = "CODEC", default_value = "sparse-1bit")]
    codec: CodecName,
    /// The line of each site, or of each peer that is one, and the round trip between any two
    #[arg(long, value_name = "MBIT,MS", default_value = "100mbit,50ms", value_parser = line)]
    link: (u64, u32),
    /// Seconds of training in a round
    #[arg(long, value_name = "S", default_value_t = 120.0, value_parser = seconds)]
    compute_s: f64,
    /// Train the next round while a round is exchanged
    #[arg(long)]
    overlap: bool,
    /// Shards of the model; chosen for each number of peers if absent
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(2..=4096))]
    shards: Option<u32>,
    /// The most peers that are simulated node by node
    #[arg(long, value_name = "N", default_value_t = 4)]
    nodes_max: u32,
    /// Ask real daemons too, with 4 and 8 peers and a small model (root)
    #[arg(long)]
    check: bool,
    /// Megabytes of f32 that the model of --check has
    #[arg(long, value_name = "MB", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2000), requires = "check")]
    check_mb: u32,
    #[command(flatten)]
    output: Output,
}

fn line(text: &str) -> Result<(u64, u32), String> {
    match text.parse() {
        Ok(Wide::Uniform {
            mbit,
            round_trip_ms,
            sites: None,
            mtu: None,
        }) => Ok((mbit, round_trip_ms)),
        _ => Err(format!(
            "{text:?} is no line: a rate from 1 to 100000 Mbit/s and a round trip of at most 10000 ms, such as 100mbit,50ms"
        )),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=1e6).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{text} is not from 0 to 1000000"))
    }
}

/// A number, or what a config.json says.
fn parameters(text: &str) -> anyhow::Result<u64> {
    let count = match text.parse::<f64>() {
        Ok(count) => count as u64,
        Err(_) => {
            let json = fs::read(text).with_context(|| {
                format!("--parameters {text:?} is no number, and no config.json that can be read")
            })?;
            let config = ModelConfig::from_hf_json(&json).with_context(|| text.to_owned())?;
            elements(&config.parameters()) as u64
        }
    };
    // A tile, and the most that 4096 shards of 4096 tiles hold.
    ensure!(
        (4096..=1 << 36).contains(&count),
        "--parameters {text}: {count} is not from 4096 to {}, which is what {} shards of 4096 tiles hold",
        1_u64 << 36,
        gradmesh_protocol::wire::SHARDS_MAX
    );
    Ok(count)
}

/// Predicts, measures with --check, prints, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let (mbit, round_trip_ms) = args.link;
    let setting = Setting {
        parameters: parameters(&args.parameters)?,
        codec: args.codec,
        bytes_per_s: mbit * 125_000,
        one_way_us: u64::from(round_trip_ms) * 500,
        compute_s: args.compute_s,
        overlap: args.overlap,
        shards: args.shards,
    };
    let mut report = Report {
        origin: Origin::here_and_now(),
        setting,
        rows: Vec::new(),
        checks: Vec::new(),
        missing: None,
        wall_s: 0.0,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = predict(args, &mut report, began) => outcome,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        }
    });
    // What is being simulated ends with the process.
    runtime.shutdown_background();
    report.missing = outcome.as_ref().err().map(|error| format!("{error:#}"));
    report.wall_s = began.elapsed().as_secs_f64();
    let html = || report.to_html();
    args.output
        .write(report.to_text(), &report.to_json(), html)?;
    outcome
}

/// Adds rows and checks to `report` as they come.
async fn predict(args: &Args, report: &mut Report, began: Instant) -> anyhow::Result<()> {
    let mut places: Vec<(usize, usize)> = Vec::new();
    for &peers in &args.peers {
        for &sites in &args.sites {
            let place = (peers as usize, sites_of(peers, sites) as usize);
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }
    for (peers, sites) in places {
        for (asked, kind) in [
            (Plan::Gather, PlanKind::Gather),
            (Plan::Reduce, PlanKind::Reduce),
            (Plan::Hier, PlanKind::Hier),
        ] {
            // Sites of one peer have nothing to sum; they would gather.
            if asked == Plan::Hier && sites == peers {
                continue;
            }
            let (setting, nodes_max) = (report.setting.clone(), args.nodes_max);
            let row =
                spawn_blocking(move || row(&setting, (peers, sites), (asked, kind), nodes_max));
            let row = row.await??;
            say(began, &row.name());
            report.rows.push(row);
        }
    }
    if args.check {
        check::run(report, args.link, args.check_mb, began).await?;
    }
    Ok(())
}

/// Over how many sites `peers` peers are spread.
fn sites_of(peers: u32, sites: u32) -> u32 {
    if sites == 0 {
        peers
    } else {
        sites.min(peers / 2).max(1)
    }
}

/// The row of one number of peers in so many sites, by the plan that is asked for.
fn row(
    setting: &Setting,
    (peers, sites): (usize, usize),
    (asked, kind): (Plan, PlanKind),
    nodes_max: u32,
) -> anyhow::Result<Row> {
    let chosen = setting.case(peers, sites, PlanKind::Auto)?;
    let options = chosen.options();
    let chosen = chosen.layout(&options, &chosen.roster(&options)).0.plan();
    let case = setting.case(peers, sites, kind)?;
    let flow = flow::predict(&case);
    let nodes = simulated(&case, nodes_max)?;
    Ok(Row::new(&case, asked, chosen, nodes, flow))
}

fn simulated(case: &Case, nodes_max: u32) -> anyhow::Result<Option<Figures>> {
    let few = case.peers <= nodes_max as usize;
    if !few || !nodes::is_possible(case)? {
        return Ok(None);
    }
    nodes::simulate(case).map(Some).with_context(|| {
        format!(
            "{} peers in {} sites by {:?}",
            case.peers, case.sites, case.plan
        )
    })
}

/// A line on stderr.
fn say(began: Instant, what: &str) {
    eprintln!("{:.0} s: {what}", began.elapsed().as_secs_f64());
}

/// The plan by its name on command lines and in JSON.
fn name_of(plan: Plan) -> &'static str {
    match plan {
        Plan::Gather => harness::Plan::Gather.name(),
        Plan::Reduce => harness::Plan::Reduce.name(),
        Plan::Hier => harness::Plan::Hier.name(),
    }
}

/// `path` of this program itself.
fn this_program() -> anyhow::Result<std::path::PathBuf> {
    let path = std::env::current_exe().context("where is this program?")?;
    if !Path::new(&path).exists() {
        bail!("{} is gone", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_models_are_read_and_bad_ones_refused() {
        assert_eq!(line("100mbit,50ms"), Ok((100, 50)));
        for text in ["100", "100mbit", "100mbit,50ms,2sites", "home", "0mbit,5ms"] {
            assert!(line(text).is_err(), "{text}");
        }
        assert_eq!(parameters("1e9").unwrap(), 1_000_000_000);
        for text in ["12", "1e12", "nowhere/config.json", "-1"] {
            assert!(parameters(text).is_err(), "{text}");
        }
    }

    #[test]
    fn peers_are_spread_two_to_a_site_at_least() {
        assert_eq!(sites_of(4, 0), 4);
        assert_eq!(sites_of(4, 64), 2);
        assert_eq!(sites_of(4096, 64), 64);
        assert_eq!(sites_of(3, 64), 1);
    }
}
