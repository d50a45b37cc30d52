//! `gradmesh-bench exchange`: how long a round's exchange takes between real daemons, beside gloo, hivemind and a bound.
//!
//! Daemons train a synthetic model: a round is a pause and an exchange. In that pause the other systems have their turn
//! with tensors of the same sizes, so that what slows the machine down for a while slows all of them down. Every process
//! is killed and everything written is removed in the end, also after a Ctrl-C.
//!
//! # What is measured
//!
//! - gradmesh: from the slowest peer's update being out (encoded, durable, committed) until the last peer has applied the
//!   round and made it durable; encrypted, decided by the roster, state roots compared. Encoding is told apart.
//! - gloo: `all_reduce` of one f32 buffer and the division by the number of peers, after a barrier. Not encrypted, and
//!   nobody may fail.
//! - hivemind: from a group that has formed until the averaged tensors are there, uncompressed. Matchmaking is left out.
//!
//! Two rounds of each come before those that count.
//!
//! # JSON
//!
//! ```text
//! benchmark   "exchange"
//! version     1
//! machine     {cpu, cores, commit, date, debug_assertions}; null where the system does not tell
//! config      {megabytes, rounds}
//! results     one object per case:
//!   system                  "gradmesh", "gloo" or "hivemind"
//!   plan                    "auto", "gather", "reduce" or "hier"; null for other systems
//!   codec                   as --codec; "dense-f32" for other systems
//!   peers, link             as the command line has them
//!   parameters              elements of the tensors, together
//!   bytes_per_peer          received by a peer in a round, mean over rounds and peers, as network interfaces count it,
//!                           headers included; without root, loopback counts whatever else is on it
//!   bound_bytes_per_peer    what it has to receive at least (bounds.rs)
//!   wan_bytes_per_site      in an emulated network, of each site that has peers: {site, peers, received, bound}, where
//!                           received is what entered it from other sites in a round, mean over rounds, as the router
//!                           counts IP packets, and bound what has to; of other systems, with their meeting. Else empty
//!   behind_nat              of gradmesh: how many peers say in the end that nobody can connect to them; null otherwise
//!   capacity_mbit           of gradmesh: what the roster has the link of each peer carry in the end, in the order of peers;
//!                           null otherwise
//!   seconds                 per round, in order
//!   bound_s                 bound_bytes_per_peer over the rate of the link; null on loopback
//!   cpu_s                   user and system time of all processes of all peers in a round, mean; of gradmesh with
//!                           encoding, of the others without making and comparing the tensors
//!   rss_bytes               the most that a peer held at any time; where it has several processes, the sum of their
//!                           peaks, memory that they share counted for each
//!   rss_bytes_after         what the peer that holds most held after each round, in order
//!   rss_growth_bytes        by how much that grows in a round, over the second half of the rounds; null below eight
//!   roots_equal             whether all peers had the same bits after every round
//!   phase_seconds           of gradmesh, per round and each on the peer that took longest: {encode, exchange, decide,
//!                           apply}; null for other systems
//!   missing                 why there are no or fewer rounds; null otherwise
//! ```

mod bounds;
mod case;
mod mesh;
mod rival;
mod row;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::harness::daemon::gradmesh_beside;
use crate::harness::environment::python_with;
use crate::harness::mesh::Mesh;
use crate::harness::network::{Network, PEERS_MAX};
use crate::harness::synthetic::Run;
use crate::harness::{CodecName, Link, Plan};
use crate::origin::Origin;
use crate::report::Output;
use case::{Rival, System};
use rival::Group;
use row::{Report, Row, Sample};

/// Rounds before those that count: connections are made and their windows grow.
const WARM_UP: u32 = 2;
/// Elements of a tensor, all but the last: 16 MiB, a large layer.
const TENSOR_ELEMENTS: u64 = 1 << 22;
/// The least pause between two exchanges: long enough for several looks at the daemons.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longer still by this much for each element of each update that some daemon applies, so that all of them pause at the same
/// time: the first begins to when it has applied its round, the last when it has, and they share the cores.
const APPLY_S: f64 = 2e-9;
/// Rounds that may be lost, in a case, to a machine that is busy otherwise.
const LOST_MAX: u32 = 10;

/// `gradmesh-bench exchange`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Numbers of peers, separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [2, 4], value_parser = clap::value_parser!(u32).range(2..=i64::from(PEERS_MAX)))]
    peers: Vec<u32>,
    /// Megabytes of f32 that each peer has
    #[arg(long, value_name = "MB", default_value_t = 100.0, value_parser = megabytes)]
    mb: f64,
    /// Codecs: dense-f32, dense-bf16, dense-int8, dense-int4, sparse-1bit, sparse-2bit, sparse-4bit, sparse-1bit:K, separated by commas
    #[arg(
        long,
        value_name = "CODEC",
        value_delimiter = ',',
        default_value = "dense-f32,sparse-1bit"
    )]
    codec: Vec<CodecName>,
    /// Who sends what to whom
    #[arg(long, value_name = "PLAN", value_enum, default_value = "auto")]
    plan: Plan,
    /// What lies between the peers: loopback, veth:RATE such as veth:100mbit (root), or wan:NETWORK with an emulated network
    /// (root): data-centre, two-regions, four-continents, home, a line for each peer such as 100mbit,50ms, or a file such as
    /// bench/examples/two-sites.toml, whose sites take a peer each in turn
    #[arg(long, value_name = "LINK", default_value = "loopback")]
    link: Link,
    /// What each daemon declares that its link carries, in Mbit/s, so that owners have their shares from the first round on
    /// [default: as measured, 100 until then]
    #[arg(long, value_name = "MBIT")]
    capacity: Option<u32>,
    /// Rounds that count, of each system
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Systems to compare with, separated by commas; a virtual environment with them is made in the user's cache
    #[arg(long, value_name = "SYSTEM", value_enum, value_delimiter = ',')]
    against: Vec<Rival>,
    #[command(flatten)]
    output: Output,
}

fn megabytes(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.1..=20_000.0).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{text} is not from 0.1 to 20000"))
    }
}

/// Measures, prints, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // One thread: the daemons end with the thread that starts them (PR_SET_PDEATHSIG), which is the main one then.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Whoever loses is dropped, and with it what it started.
        tokio::select! {
            report = measure(args) => report,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        }
    })?;
    let html = || report.to_html();
    args.output.write(report.to_text(), &report.to_json(), html)
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let gradmesh = gradmesh_beside()?;
    let mut report = Report {
        origin: Origin::here_and_now(),
        megabytes: args.mb,
        rounds: args.rounds,
        rows: Vec::new(),
    };
    for &peers in &args.peers {
        // The others have their turn in the pauses of the first case.
        let mut rivals: &[Rival] = &args.against;
        for &codec in &args.codec {
            let case = Case {
                args,
                gradmesh: &gradmesh,
                peers,
                codec,
                elements: tensors(args.mb),
            };
            report.rows.extend(case.measure(rivals).await);
            rivals = &[];
        }
    }
    Ok(report)
}

/// One mesh, and the systems that have their turn in its pauses.
struct Case<'a> {
    args: &'a Args,
    gradmesh: &'a Path,
    peers: u32,
    codec: CodecName,
    elements: Vec<u64>,
}

/// Another system and its rounds.
struct Turn {
    row: Row,
    /// Gone once it has failed.
    group: Option<Group>,
    round_s: f64,
}

impl Case<'_> {
    async fn measure(&self, rivals: &[Rival]) -> Vec<Row> {
        let mut ours = self.row(System::Gradmesh);
        let mut turns: Vec<Turn> = rivals.iter().map(|&rival| self.turn(rival)).collect();
        if let Err(error) = self.rounds(&mut ours, &mut turns).await {
            say(&format!("{}: {error:#}", ours.name()));
            ours.missing = Some(format!("{error:#}"));
            // Without a network nobody has samples.
            for turn in turns.iter_mut().filter(|turn| turn.row.samples.is_empty()) {
                turn.row.missing.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        std::iter::once(ours)
            .chain(turns.into_iter().map(|turn| turn.row))
            .collect()
    }

    async fn rounds(&self, ours: &mut Row, turns: &mut [Turn]) -> anyhow::Result<()> {
        // Dropped in the reverse order: processes, then their network, then their files.
        let home = TempDir::with_prefix("gradmesh-bench-")?;
        let mut network = Network::make(&self.args.link, self.peers).await?;
        for place in &mut network.places {
            place.capacity_mbit = self.args.capacity;
        }
        let turns = Turns(turns);
        for turn in turns.0.iter_mut() {
            self.warm_up(turn, &network, home.path()).await;
            turn.row.sites.clone_from(&network.sites);
        }
        ours.sites.clone_from(&network.sites);
        let outcome = self.alternate(ours, turns.0, &network, home.path()).await;
        // What the others lack because gradmesh failed or rounds did not count.
        for turn in turns.0.iter_mut() {
            while turn.row.samples.len() < self.args.rounds as usize {
                let Some(sample) = turn.round(&network).await else {
                    break;
                };
                turn.keep(sample);
            }
        }
        outcome
    }

    /// Starts a mesh and takes turns.
    async fn alternate(
        &self,
        ours: &mut Row,
        turns: &mut [Turn],
        network: &Network,
        home: &Path,
    ) -> anyhow::Result<()> {
        let rounds = self.args.rounds;
        let turn_s: f64 = turns.iter().map(|turn| turn.round_s).sum();
        let elements: u64 = self.elements.iter().sum();
        let applied = elements as f64 * f64::from(self.peers).powi(2);
        let run = Run {
            elements: self.elements.clone(),
            codec: self.codec,
            plan: self.args.plan,
            peers: self.peers,
            // As long as the slowest of the warm-up rounds took, and half as long again.
            pause: PAUSE_MIN + Duration::from_secs_f64(applied * APPLY_S + 1.5 * turn_s),
            overlap: false,
        };
        say(&format!(
            "{}, {} peers, {}: starting",
            ours.name(),
            self.peers,
            self.args.link
        ));
        let started = Instant::now();
        let own = home.join("gradmesh");
        fs::create_dir(&own)?;
        let mut mesh = Mesh::start_synthetic(&run, self.gradmesh, &network.places, &own).await?;
        mesh.wait_training(1).await?;
        say(&format!(
            "{}: trains after {:.1} s",
            ours.name(),
            started.elapsed().as_secs_f64()
        ));
        let mut lost = 0;
        let mut round = 0;
        while ours.samples.len() < rounds as usize {
            round = mesh.wait_training(round + 1).await?;
            let counts = round > u64::from(WARM_UP);
            let mut others = Vec::new();
            if counts {
                for turn in turns.iter_mut() {
                    others.push(turn.round(network).await);
                }
            }
            let (before, wan_before) = (mesh.count(), network.wan_bytes());
            let undisturbed = mesh.is_training(round).await?;
            let sample = mesh.wait_applied(round, before).await?;
            let wan_bytes = network.wan_bytes_since(&wan_before);
            ours.rss_bytes = Some(mesh.rss_bytes_max());
            if !counts {
                continue;
            }
            let (true, Some(sample)) = (undisturbed, sample) else {
                lost += 1;
                let why = if undisturbed {
                    "it was decided without some of the peers".to_owned()
                } else {
                    format!("the others' turn outlasted the pause of {:?}", run.pause)
                };
                say(&format!("round {round} does not count: {why}"));
                ensure!(
                    lost <= LOST_MAX,
                    "{lost} rounds do not count, the last one because {why}: is the machine busy?"
                );
                continue;
            };
            let sample = Sample {
                wan_bytes,
                ..sample
            };
            say_sample(ours, &sample);
            ours.samples.push(sample);
            for (turn, sample) in turns.iter_mut().zip(others) {
                if let Some(sample) = sample {
                    turn.keep(sample);
                }
            }
        }
        Ok(())
    }

    /// Starts the group of `turn` and does the rounds that do not count.
    async fn warm_up(&self, turn: &mut Turn, network: &Network, home: &Path) {
        let System::Rival(rival) = turn.row.system else {
            return;
        };
        say(&format!(
            "{}, {} peers, {}: starting",
            rival.name(),
            self.peers,
            self.args.link
        ));
        let started = async {
            let python = python_with(rival.library()).await?;
            let home = home.join(rival.name());
            fs::create_dir(&home)?;
            Group::start(rival, &python, &self.elements, &network.places, &home).await
        };
        match started.await {
            Ok(group) => turn.group = Some(group),
            Err(error) => turn.fail(&error),
        }
        for _ in 0..WARM_UP {
            let began = Instant::now();
            turn.round(network).await;
            turn.round_s = turn.round_s.max(began.elapsed().as_secs_f64());
        }
    }

    fn row(&self, system: System) -> Row {
        Row {
            system,
            plan: self.args.plan,
            codec: match system {
                System::Gradmesh => self.codec,
                System::Rival(_) => CodecName::DENSE_F32,
            },
            peers: self.peers,
            link: self.args.link.clone(),
            sites: Vec::new(),
            parameters: self.elements.iter().sum(),
            samples: Vec::new(),
            rss_bytes: None,
            missing: None,
        }
    }

    fn turn(&self, rival: Rival) -> Turn {
        Turn {
            row: self.row(System::Rival(rival)),
            group: None,
            round_s: 0.0,
        }
    }
}

/// The turns of a case; their processes end when this is dropped.
struct Turns<'a>(&'a mut [Turn]);

impl Drop for Turns<'_> {
    fn drop(&mut self) {
        for turn in self.0.iter_mut() {
            turn.group = None;
        }
    }
}

impl Turn {
    /// A round, unless the group has failed.
    async fn round(&mut self, network: &Network) -> Option<Sample> {
        let group = self.group.as_mut()?;
        let wan_before = network.wan_bytes();
        match group.round().await {
            Ok(sample) => {
                self.row.rss_bytes = Some(group.rss_bytes_max());
                Some(Sample {
                    wan_bytes: network.wan_bytes_since(&wan_before),
                    ..sample
                })
            }
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn keep(&mut self, sample: Sample) {
        say_sample(&self.row, &sample);
        self.row.samples.push(sample);
    }

    fn fail(&mut self, error: &anyhow::Error) {
        say(&format!("{}: {error:#}", self.row.name()));
        self.row.missing = Some(format!("{error:#}"));
        self.group = None;
    }
}

/// A line for whoever watches, on standard error.
fn say(line: &str) {
    eprintln!("exchange: {line}");
}

fn say_sample(row: &Row, sample: &Sample) {
    let roots = if sample.roots_equal {
        "equal"
    } else {
        "differ"
    };
    let count = row.samples.len() + 1;
    say(&format!(
        "{} {count}: {:.3} s, CPU {:.2} s, roots {roots}",
        row.name(),
        sample.seconds,
        sample.cpu_s
    ));
}

/// Elements of the tensors that make `megabytes` of f32 together.
fn tensors(megabytes: f64) -> Vec<u64> {
    let mut left = (megabytes * 1e6 / 4.0) as u64;
    let mut tensors = Vec::new();
    while left > 0 {
        let elements = left.min(TENSOR_ELEMENTS);
        tensors.push(elements);
        left -= elements;
    }
    tensors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_make_up_the_megabytes() {
        assert_eq!(tensors(100.0).iter().sum::<u64>(), 25_000_000);
        assert_eq!(tensors(100.0).len(), 6);
        assert_eq!(tensors(0.1), [25_000]);
    }
}
