//! The same asked of real daemons: `gradmesh-bench exchange` runs them in an emulated network with a line for each site.
//!
//! Their model is small, because all peers run on this machine, and its shards are those that `exchange` gives it. Both
//! predictions are made for that model; the nodes' one with the nearest number of shards that they can have. A measured round
//! begins when the slowest peer's update is out, as a predicted one does.
//!
//! Rule `lines-and-work`: predictions know lines, and next to nothing of processors; here all peers share those of one machine.
//! So the same daemons exchange the same updates over lines that hold nothing up as well. That is their *work*, which is added
//! to what is predicted of the lines. The two can go on at the same time, so that the sum is more than it has to be.
//!
//! Daemons declare what their lines carry, which predicted
//! owners know as well: in the first rounds some have measured it and others not, and own more than their share.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gradmesh_compression::TILE_ELEMENTS;
use gradmesh_protocol::manifest::PlanKind;
use gradmesh_protocol::plan::Plan;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::case::Setting;
use super::figures::Figures;
use super::table::Report;
use super::{flow, name_of, nodes, say, this_program};
use crate::harness::synthetic::tiles_per_shard;
use crate::report::median;

/// Peers, sites and plan of each case: 0 sites are one for each peer.
const CASES: [(usize, usize, Plan); 6] = [
    (4, 0, Plan::Gather),
    (4, 0, Plan::Reduce),
    (4, 2, Plan::Hier),
    (8, 0, Plan::Gather),
    (8, 0, Plan::Reduce),
    (8, 2, Plan::Hier),
];
/// The unit of [`Case::capacity`](super::case::Case::capacity).
const UNIT_MBIT: u32 = 10;
const ROUNDS: u32 = 5;
/// Lines that hold nothing up: 10 Gbit/s, without latency.
const NO_LINES: (u64, u32) = (10_000, 0);
/// How often `exchange` is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A prediction beside a measurement.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Check {
    pub(super) peers: usize,
    pub(super) sites: usize,
    pub(super) plan: Plan,
    pub(super) parameters: u64,
    pub(super) shards: u32,
    pub(super) nodes_shards: u32,
    pub(super) flow: Figures,
    /// Or why there is nothing.
    pub(super) nodes: Result<Figures, String>,
    /// What daemons took, or why there is nothing.
    pub(super) measured: Result<Measured, String>,
    /// What they took over [`NO_LINES`], or why there is nothing.
    pub(super) work: Result<Measured, String>,
}

/// What `exchange` says of a case.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    pub(super) seconds: Vec<f64>,
    pub(super) bytes_per_peer: f64,
}

impl Check {
    /// The median of the seconds that daemons took.
    pub(super) fn measured_s(&self) -> Option<f64> {
        self.measured.as_ref().ok()?.seconds()
    }

    /// The median of those that they took over [`NO_LINES`].
    pub(super) fn work_s(&self) -> Option<f64> {
        self.work.as_ref().ok()?.seconds()
    }

    /// Rule `lines-and-work`, over measured: of what is predicted of the lines.
    pub(super) fn ratio(&self, lines_s: f64) -> Option<f64> {
        Some((lines_s + self.work_s()?) / self.measured_s()?)
    }

    pub(super) fn to_json(&self) -> Value {
        let measured = self.measured.as_ref().ok();
        let nodes = self.nodes.as_ref().ok();
        json!({
            "peers": self.peers,
            "sites": self.sites,
            "plan": name_of(self.plan),
            "parameters": self.parameters,
            "shards": self.shards,
            "nodes_shards": self.nodes_shards,
            "seconds": measured.map(|measured| &measured.seconds),
            "bytes_per_peer": measured.map(|measured| measured.bytes_per_peer),
            "work_seconds": self.work.as_ref().ok().map(|work| &work.seconds),
            "nodes_s": nodes.map(|nodes| nodes.exchange_s),
            "flow_s": self.flow.exchange_s,
            "nodes_bytes": nodes.map(|nodes| nodes.bytes_per_peer),
            "nodes_missing": self.nodes.as_ref().err(),
            "flow_bytes": self.flow.bytes_per_peer,
            "missing": self.measured.as_ref().err(),
            "work_missing": self.work.as_ref().err(),
        })
    }
}

impl Measured {
    fn seconds(&self) -> Option<f64> {
        median(self.seconds.iter().copied())
    }
}

/// Predicts and measures all cases, with a model of `megabytes` of f32, and adds them to the report.
///
/// # Errors
/// A case that does not exist. What cannot be predicted by the nodes, or measured, is noted.
pub(super) async fn run(
    report: &mut Report,
    link: (u64, u32),
    megabytes: u32,
    began: Instant,
) -> anyhow::Result<()> {
    let setting = report.setting.clone();
    let parameters = u64::from(megabytes) * 250_000;
    let tiles = parameters.div_ceil(TILE_ELEMENTS as u64);
    let shards = u32::try_from(tiles.div_ceil(tiles_per_shard(tiles)))?.max(1);
    let nodes_shards = 25 * ((shards + 10) / 25).max(1) + 2;
    let with = |shards| Setting {
        parameters,
        shards: Some(shards),
        ..setting.clone()
    };
    for (peers, sites, plan) in CASES {
        let kind = match plan {
            Plan::Gather => PlanKind::Gather,
            Plan::Reduce => PlanKind::Reduce,
            Plan::Hier => PlanKind::Hier,
        };
        let places = if sites == 0 { peers } else { sites };
        let flow = flow::predict(&with(shards).case(peers, places, kind)?);
        let case = with(nodes_shards).case(peers, places, kind)?;
        let capacity = u32::from(case.capacity());
        let nodes = spawn_blocking(move || nodes::simulate(&case)).await?;
        if let Err(error) = &nodes {
            say(began, &format!("no prediction by the nodes: {error:#}"));
        }
        say(
            began,
            &format!("{peers} real peers in {places} sites by {}", name_of(plan)),
        );
        let over = async |link| {
            let network = Emulated {
                link,
                sites,
                capacity_mbit: capacity * UNIT_MBIT,
            };
            let measured = measure(&setting, &network, megabytes, (peers, plan)).await;
            measured.map_err(|error| {
                say(began, &format!("nothing was measured: {error:#}"));
                format!("{error:#}")
            })
        };
        let measured = over(link).await;
        say(began, "the same over lines that hold nothing up");
        let work = over(NO_LINES).await;
        report.checks.push(Check {
            peers,
            sites: places,
            plan,
            parameters,
            shards,
            nodes_shards,
            flow,
            nodes: nodes.map_err(|error| format!("{error:#}")),
            measured,
            work,
        });
    }
    Ok(())
}

/// `gradmesh-bench exchange`; who drops it ends it and waits until it has cleaned up.
struct Exchange(Child);

impl Exchange {
    async fn wait(&mut self) -> anyhow::Result<()> {
        let status = loop {
            if let Some(status) = self.0.try_wait()? {
                break status;
            }
            tokio::time::sleep(LOOK).await;
        };
        ensure!(status.success(), "gradmesh-bench exchange: {status}");
        Ok(())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by now, or been told by the terminal as well.
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// Where daemons run.
struct Emulated {
    /// Mbit/s and round trip in ms.
    link: (u64, u32),
    /// 0: one for each peer.
    sites: usize,
    capacity_mbit: u32,
}

async fn measure(
    setting: &Setting,
    network: &Emulated,
    megabytes: u32,
    (peers, plan): (usize, Plan),
) -> anyhow::Result<Measured> {
    let Emulated {
        link: (mbit, round_trip_ms),
        sites,
        capacity_mbit,
    } = network;
    #[derive(Deserialize)]
    struct Answer {
        results: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        seconds: Vec<f64>,
        bytes_per_peer: Option<f64>,
        missing: Option<String>,
    }
    let home = TempDir::with_prefix("gradmesh-bench-")?;
    let answer = home.path().join("exchange.json");
    let mut link = format!("wan:{mbit}mbit,{round_trip_ms}ms");
    if *sites > 0 {
        link += &format!(",{sites}sites");
    }
    let exchange = Command::new(this_program()?)
        .arg("exchange")
        .args(["--peers", &peers.to_string()])
        .args(["--mb", &megabytes.to_string()])
        .args(["--codec", &setting.codec.to_string()])
        .args(["--plan", name_of(plan)])
        .args(["--link", &link])
        .args(["--capacity", &capacity_mbit.to_string()])
        .args(["--rounds", &ROUNDS.to_string()])
        .arg("--json")
        .arg(&answer)
        .stdout(Stdio::null())
        .spawn()
        .context("gradmesh-bench exchange")?;
    Exchange(exchange).wait().await?;
    let answer: Answer = serde_json::from_slice(&std::fs::read(&answer)?)?;
    let row = answer.results.into_iter().next().context("no result")?;
    if let Some(missing) = row.missing {
        anyhow::bail!("{missing}");
    }
    Ok(Measured {
        seconds: row.seconds,
        bytes_per_peer: row.bytes_per_peer.context("no bytes were counted")?,
    })
}
