//! `gradmesh-bench overhead`: what decentralised training costs against a centralised cluster, at the same loss.
//!
//! Three parts, each of which can be left out (`--parts`):
//!
//! - **training**: one model on one text for one number of tokens, trained by one process alone, by a synchronous data-parallel
//!   cluster (in a data centre, and over the wide-area link), and by real gradmesh daemons over that link. All of it happens:
//!   processes, packets, steps of the optimizer. All peers share this machine's cores, so computing takes as much longer for each
//!   as there are peers beyond the cores, and it does so for every system but `alone`, which is one process on one core.
//! - **utilisation**: how much of the time peers compute at the sizes of a large model, whose bytes are real and whose computing
//!   is a wait ([`utilisation`]).
//! - **projection**: models that do not fit on this machine, by formulas that are printed with their inputs ([`projection`]).
//!
//! Ctrl-C ends a measurement; what is there is told, and what is missing is named.
//!
//! # JSON
//!
//! ```text
//! benchmark    "overhead"
//! version      2
//! machine      {cpu, cores, commit, date, debug_assertions}; null where the system does not tell
//! config       {peers, rounds, steps_per_round, batch_sequences, sequence_tokens, learning_rate, parameters, tokens, link,
//!               two_sites_link, cluster_link, sources: where the figures of named networks come from}
//! target_loss  nats per token of the smoothed curves; null when no two systems have one
//! training     one object per system, in order:
//!   system, link
//!   missing             why there is no outcome; null otherwise
//!   seconds_to_target   null when the loss was not reached
//!   outcome             null, or:
//!     total_s           from the first step until the last peer has applied the last round; of a cluster, to its last step
//!     tokens            of all peers
//!     held_out_loss     nats per token of the last parameters on the same held-out text
//!     utilisation       share of total_s in which a peer computes, mean over peers
//!     bytes_per_peer    received in the whole run, headers included, mean over peers
//!     wan_bytes_per_site  what entered each site from others in the whole run
//!     cpu_s             of all processes
//!     lost_updates      that no decision counts
//!     roots_equal       whether all peers had the same bits after every round; of a cluster, in the end
//!     phase_seconds     {train, encode, wait, transfer, decide, apply, hidden}: mean over rounds and peers; a cluster has train
//!                       and transfer; hidden is what of the others the next round was trained in
//!     rounds            of each: seconds since the round before, phase_seconds
//!     curve             before each round: {tokens, seconds, loss}, loss on fresh text at the shared parameters
//! utilisation  null, or:
//!   parameters, cost    {codec, peers, bits_per_parameter, encode_s_per_parameter, apply_s_per_parameter}, on one core here
//!   cases               of each: {peers, mbit, round_trip_ms, mtu, compute_s, dilation, overlap, update_bytes, periods_s,
//!                       computed_s, exchange_s, bound_s, bytes_per_peer, cpu_s, utilisation, utilisation_with_codec}
//!   missing             of each case that was not measured: {case, reason}
//! projection   null, or {setup: {peers, mbit, flops, round_tokens, steps, codec_cores}, basis: {fixed_s, stretch, rates}, formulas,
//!              models: of each {model, parameters, compute_s, bytes_per_peer, exchange_s, codec_s, utilisation,
//!              utilisation_overlap, utilisation_cluster}}
//! interrupted  whether it was
//! ```

pub(crate) mod cluster;
mod cost;
mod mesh;
mod outcome;
mod page;
mod projection;
mod report;
mod system;
pub(crate) mod training;
mod utilisation;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use gradmesh_bench::wan::{MTU, Preset};
use gradmesh_trainer::{Architecture, InnerOptimizer, model};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use self::cost::Cost;
use self::outcome::{Outcome, Phases, Point, Round};
use self::projection::{Basis, Projected, Setup};
use self::report::{Missing, Projection, Report, Row, Utilisation};
use self::system::{System, Way, Where};
use self::training::Training;
use self::utilisation::Case;
use crate::harness::daemon::gradmesh_beside;
use crate::harness::environment::{Library, is_installed};
use crate::harness::link::Wide;
use crate::harness::network::Network;
use crate::harness::{CodecName, Link};
use crate::origin::Origin;
use crate::report::Output;
use crate::update;

/// The demo's model.
const MODEL: &str = include_str!("../../daemon/assets/demo-1m.json");
/// Of the cases of the utilisation that show how it depends on the link.
const SHORT_COMPUTE_S: f64 = 10.0;
const ROUND_TRIP_MS: u32 = 50;

/// `gradmesh-bench overhead`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Training, Part::Utilisation, Part::Projection])]
    parts: Vec<Part>,
    /// Who trains. Default: all, of which those that need Python torch only if it is installed (naming one installs it, 3 GB)
    #[arg(long, value_enum, value_delimiter = ',')]
    systems: Vec<System>,
    /// Peers that train
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=64))]
    peers: u32,
    /// The wide-area network: data-centre, two-regions, four-continents, home, a line for each peer such as 100mbit,50ms, a line
    /// for each of some sites such as 100mbit,50ms,2sites, or a file such as bench/examples/two-sites.toml (root)
    #[arg(long, value_name = "NETWORK", default_value = "100mbit,50ms")]
    link: Wide,
    /// The network of `hier`: two sites, whose members share a line
    #[arg(long, value_name = "NETWORK", default_value = "100mbit,50ms,2sites")]
    two_sites_link: Wide,
    /// A Hugging Face config.json of a Llama model; default: the demo's, a million parameters
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// A directory of text; default: source text of the crates in the local cargo registry
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Rounds; a cluster does as many steps as they have together
    #[arg(long, value_name = "R", default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..=1000))]
    rounds: u32,
    /// Inner steps of a round
    #[arg(long, value_name = "H", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
    /// Sequences of a peer's step
    #[arg(long, default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch: usize,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 128, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    tokens: usize,
    /// Highest learning rate of the inner optimizer
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
    /// Nats per token to which times are compared; default: the lowest that every system reached
    #[arg(long, value_name = "LOSS")]
    target_loss: Option<f64>,
    /// Parameters of the model whose bytes are exchanged for the utilisation
    #[arg(long, value_name = "P", default_value_t = 1e9, value_parser = positive)]
    parameters: f64,
    /// Its codec
    #[arg(long, value_name = "CODEC", default_value = "sparse-1bit:32")]
    codec: CodecName,
    /// Peers that exchange it
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=64))]
    utilisation_peers: u32,
    /// Computing in each of its rounds, emulated by a wait, in seconds
    #[arg(long, value_name = "S", default_value_t = 120.0, value_parser = positive)]
    compute_s: f64,
    /// Rates of each peer's line in Mbit/s; the first one with and without overlap, the others without and with rounds of 10 s
    #[arg(long, value_name = "MBIT", value_delimiter = ',', default_values_t = [100, 25, 400], value_parser = clap::value_parser!(u64).range(1..=10_000))]
    mbit: Vec<u64>,
    /// Largest packets of the lines in bytes; all is measured with the first, the first rate without overlap with the others too
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_values_t = [1500], value_parser = packet)]
    mtu: Vec<u32>,
    /// How many times slower than they should be lines and computing are, so that this machine's cores, which all peers share,
    /// count for as many times more: times are divided by it; all is measured with the first, the first rate without overlap with
    /// the others too
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2], value_parser = clap::value_parser!(u32).range(1..=100))]
    dilation: Vec<u32>,
    /// Rounds that count of each
    #[arg(long, value_name = "R", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    utilisation_rounds: u32,
    /// Models to project: config.json files; default: 1, 7 and 72 billion parameters
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    project: Vec<PathBuf>,
    /// Floating-point operations per second that a peer sustains, all its GPUs together; default: eight at 400 TFLOP/s
    #[arg(long, value_name = "X", default_value_t = 3.2e15, value_parser = positive)]
    flops: f64,
    /// Tokens of a projected peer's round; default: 30 steps of 192 sequences of 2048
    #[arg(long, value_name = "T", default_value_t = 11_796_480.0, value_parser = positive)]
    round_tokens: f64,
    /// Steps of a projected round
    #[arg(long, value_name = "H", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    round_steps: u32,
    /// Cores of a projected peer that encode and apply
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    codec_cores: u32,
    #[command(flatten)]
    output: Output,
    /// Write each plot as an SVG file to this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Real training by every system
    Training,
    /// Compute utilisation at the sizes of a large model
    Utilisation,
    /// Formulas for models that do not fit on this machine
    Projection,
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(format!("{text} is not above 0"))
    }
}

fn packet(text: &str) -> Result<u32, String> {
    let bytes = text.parse().ok().filter(|bytes| MTU.contains(bytes));
    let (least, most) = MTU.into_inner();
    bytes.ok_or_else(|| format!("{text:?} is no size from {least} to {most} bytes"))
}

/// Measures, prints, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(target) = args.target_loss {
        ensure!(
            target.is_finite() && target > 0.0,
            "--target-loss {target} is not above 0"
        );
    }
    // One thread: the daemons end with the thread that starts them (PR_SET_PDEATHSIG), which is the main one then.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let home = TempDir::with_prefix("gradmesh-bench-")?;
    let mut report = Report::new(args, prepare(args, home.path())?)?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Whoever loses is dropped, and with it what it started.
        tokio::select! {
            outcome = measure(args, &mut report, home.path()) => outcome,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        }
    });
    report.interrupted = outcome.is_err();
    tell(args, &report)?;
    outcome
}

fn tell(args: &Args, report: &Report) -> anyhow::Result<()> {
    if let Some(dir) = &args.svg {
        fs::create_dir_all(dir).with_context(|| format!("--svg {}", dir.display()))?;
        for figure in page::figures(report) {
            let path = dir.join(format!("overhead-{}.svg", figure.name));
            fs::write(&path, figure.svg).with_context(|| format!("{}", path.display()))?;
        }
    }
    let html = || page::html(report);
    args.output.write(report.to_text(), &report.to_json(), html)
}

/// Writes what is trained below `home`, unless it is the user's.
fn prepare(args: &Args, home: &Path) -> anyhow::Result<Training> {
    let model = match &args.model {
        Some(model) => model
            .canonicalize()
            .with_context(|| format!("--model {}", model.display()))?,
        None => {
            let model = home.join("config.json");
            fs::write(&model, MODEL)?;
            model
        }
    };
    let data = match &args.data {
        Some(data) => data
            .canonicalize()
            .with_context(|| format!("--data {}", data.display()))?,
        None => {
            let data = home.join("text");
            fs::create_dir(&data)?;
            fs::write(data.join("crates.txt"), update::text()?)?;
            data
        }
    };
    Ok(Training {
        model,
        data,
        peers: args.peers,
        steps: args.rounds * args.steps,
        batch_sequences: args.batch,
        sequence_tokens: args.tokens,
        optimizer: InnerOptimizer {
            learning_rate: args.learning_rate,
            // Two rounds, as in the demo.
            warmup_steps: u64::from(args.steps) * 2,
            ..InnerOptimizer::default()
        },
        seed: 1,
    })
}

/// Says what goes on: a bar on a terminal, lines without one.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new(steps: u64) -> Progress {
        let bar = ProgressBar::new(steps);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} [{elapsed}] {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_secs(1));
        Progress { bar }
    }

    fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            eprintln!("overhead: {line}");
        } else {
            self.bar.set_message(line.to_owned());
        }
    }

    fn step(&self) {
        self.bar.inc(1);
    }
}

/// Fills `report`, in the order of its parts, so that what is there when this is dropped can be told.
async fn measure(args: &Args, report: &mut Report, home: &Path) -> anyhow::Result<()> {
    let gradmesh = gradmesh_beside()?;
    let cases = cases(args);
    let does = |part| args.parts.contains(&part);
    let training = if does(Part::Training) {
        report.rows.len()
    } else {
        0
    };
    let of_utilisation = if does(Part::Utilisation) {
        cases.len()
    } else {
        0
    };
    let progress = Progress::new((training + of_utilisation) as u64);
    for place in 0..training {
        let row = &report.rows[place];
        let system = row.system;
        let dir = home.join(system.to_string());
        fs::create_dir(&dir)?;
        let outcome = train(
            args,
            system,
            &row.link,
            &report.training,
            &gradmesh,
            &dir,
            &progress,
        );
        let outcome = outcome.await.map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok(outcome) => progress.say(&format!(
                "{system}: {:.1} s, held-out loss {:.3}, computing {:.1} % of the time",
                outcome.total_s,
                outcome.held_out,
                outcome.utilisation() * 100.0
            )),
            Err(error) => progress.say(&format!("{system}: {error}")),
        }
        report.rows[place].outcome = outcome;
        fs::remove_dir_all(&dir)?;
        progress.step();
    }
    if does(Part::Utilisation) || does(Part::Projection) {
        progress.say("codec: encoding and applying on one core");
        report.cost = Some(Cost::measure(args.codec, args.utilisation_peers)?);
    }
    if does(Part::Utilisation) {
        let cost = report.cost.clone().context("no cost of the codec")?;
        let int8 = Cost::measure(CodecName::DENSE_INT8, args.utilisation_peers)?;
        let utilisation = report.utilisation.get_or_insert_default();
        for case in cases {
            let name = Missing::name(&case);
            let mut say = |line: &str| progress.say(&format!("utilisation, {name}: {line}"));
            say("starting");
            let measured = case.measure(cost.bytes(args.parameters), &int8, &gradmesh, &mut say);
            match measured.await {
                Ok(measured) => {
                    say(&format!(
                        "computing {:.2} % of the time",
                        measured.utilisation() * 100.0
                    ));
                    utilisation.missing.retain(|missing| missing.case != name);
                    utilisation.cases.push(measured);
                }
                Err(error) => {
                    say(&format!("{error:#}"));
                    let missing = utilisation.missing.iter_mut().find(|m| m.case == name);
                    missing.context("a case without a name")?.reason = format!("{error:#}");
                }
            }
            progress.step();
        }
    }
    if does(Part::Projection) {
        report.projection = Some(Ok(project(args, report)?));
    }
    progress.bar.finish_and_clear();
    Ok(())
}

/// The first rate as asked for, without overlap and with it; how that depends on packets, on dilation and on the rate, the last in
/// short rounds.
fn cases(args: &Args) -> Vec<Case> {
    let (Some((&mbit, rates)), Some((&mtu, mtus)), Some((&dilation, dilations))) = (
        args.mbit.split_first(),
        args.mtu.split_first(),
        args.dilation.split_first(),
    ) else {
        return Vec::new();
    };
    let long = |overlap| Case {
        peers: args.utilisation_peers,
        mbit,
        round_trip_ms: ROUND_TRIP_MS,
        mtu,
        compute_s: args.compute_s,
        dilation,
        overlap,
        rounds: args.utilisation_rounds,
    };
    let short = Case {
        compute_s: SHORT_COMPUTE_S.min(args.compute_s),
        ..long(false)
    };
    let mut cases = vec![long(false), long(true)];
    cases.extend(mtus.iter().map(|&mtu| Case { mtu, ..long(false) }));
    cases.extend(dilations.iter().map(|&dilation| Case {
        dilation,
        ..long(false)
    }));
    cases.extend(rates.iter().map(|&mbit| Case {
        mbit,
        ..short.clone()
    }));
    cases
}

/// Trains with one system.
async fn train(
    args: &Args,
    system: System,
    link: &Link,
    training: &Training,
    gradmesh: &Path,
    home: &Path,
    progress: &Progress,
) -> anyhow::Result<Outcome> {
    let mut say = |line: &str| progress.say(&format!("{system}: {line}"));
    say("starting");
    let places = if system == System::Alone {
        1
    } else {
        args.peers
    };
    // Before whatever runs in it, so that it goes after that.
    let network = Network::make(link, places).await?;
    let engine = match system.way() {
        Way::Alone => cluster::Engine::Own,
        Way::Cluster(engine) => engine,
        Way::Mesh(setting) => {
            let rounds = args.rounds;
            return mesh::train(
                setting, training, rounds, gradmesh, &network, home, &mut say,
            )
            .await;
        }
    };
    let steps = training.steps;
    let mut watch = |step: &cluster::Step| {
        if (step.step + 1).is_multiple_of(args.steps) {
            say(&format!(
                "step {}/{steps}, loss {:.3}",
                step.step + 1,
                step.loss
            ));
        }
    };
    let places = &network.places;
    let trained = cluster::train(engine, training, places, &network, home, &mut watch).await?;
    of_cluster(trained, training, args.steps)
}

/// A cluster's steps as rounds of `steps_per_round`.
fn of_cluster(
    trained: cluster::Trained,
    training: &Training,
    steps_per_round: u32,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome {
        held_out: trained.held_out,
        bytes_per_peer: trained.bytes_per_member,
        wan_bytes: trained.wan_bytes,
        cpu_s: trained.cpu_s,
        // A cluster whose members differ is an error.
        roots_equal: true,
        ..Outcome::default()
    };
    let tokens_per_step = training.tokens_per_step();
    for steps in trained.steps.chunks(steps_per_round as usize) {
        let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
            bail!("a round without steps");
        };
        let sum = |of: fn(&cluster::Step) -> f64| steps.iter().map(of).sum();
        outcome.curve.push(Point {
            tokens: u64::from(first.step) * tokens_per_step,
            seconds: outcome.total_s,
            loss: first.loss,
        });
        outcome.rounds.push(Round {
            seconds: last.ended_s - outcome.total_s,
            phases: Phases {
                train: sum(|step| step.compute_s),
                transfer: sum(|step| step.transfer_s),
                ..Phases::default()
            },
        });
        outcome.total_s = last.ended_s;
        outcome.tokens += steps.len() as u64 * tokens_per_step;
    }
    Ok(outcome)
}

fn project(args: &Args, report: &Report) -> anyhow::Result<Projection> {
    let cost = report.cost.clone().context("no cost of the codec")?;
    let mbit = args.mbit.first().copied().context("no rate")?;
    let basis = Basis {
        cost,
        exchange: report.exchange(),
    };
    let setup = Setup {
        peers: args.utilisation_peers,
        mbit,
        flops: args.flops,
        round_tokens: args.round_tokens,
        steps: args.round_steps,
        codec_cores: args.codec_cores,
    };
    let mut models = Vec::new();
    for path in &args.project {
        let named = || format!("--project {}", path.display());
        let config = fs::read(path).with_context(named)?;
        let architecture = Architecture::from_json(&config).with_context(named)?;
        let parameters = model::elements(&architecture.parameters()) as f64;
        models.push((path.display().to_string(), parameters));
    }
    if models.is_empty() {
        models = [("1B", 1e9), ("7B", 7e9), ("72B", 72e9)]
            .map(|(name, parameters)| (name.to_owned(), parameters))
            .to_vec();
    }
    Ok(Projection {
        models: models
            .iter()
            .map(|(name, parameters)| Projected::new(name, *parameters, &setup, &basis))
            .collect(),
        setup,
        basis,
    })
}

impl Report {
    fn new(args: &Args, training: Training) -> anyhow::Result<Report> {
        let material = training.material()?;
        let link = |place| match place {
            Where::DataCentre => Link::Wan(Wide::Preset(Preset::DataCentre)),
            Where::Wide => Link::Wan(args.link.clone()),
            Where::TwoSites => Link::Wan(args.two_sites_link.clone()),
        };
        let asked_for = |system: &System| {
            if args.systems.is_empty() {
                !system.needs_torch() || is_installed(Library::Torch)
            } else {
                args.systems.contains(system)
            }
        };
        let rows = if args.parts.contains(&Part::Training) {
            let systems = System::ALL.into_iter().filter(asked_for);
            systems
                .map(|system| Row {
                    system,
                    link: match system {
                        System::Alone => Link::Loopback,
                        _ => link(system.place()),
                    },
                    outcome: Err("not run".to_owned()),
                })
                .collect()
        } else {
            Vec::new()
        };
        Ok(Report {
            origin: Origin::here_and_now(),
            model_parameters: model::elements(&material.model.parameters()) as u64,
            steps_per_round: args.steps,
            target_loss: args.target_loss,
            parameters: args.parameters,
            training,
            rows,
            cost: None,
            utilisation: args
                .parts
                .contains(&Part::Utilisation)
                .then(|| Utilisation {
                    missing: cases(args)
                        .iter()
                        .map(|case| Missing::new(case, "not run"))
                        .collect(),
                    cases: Vec::new(),
                }),
            projection: args
                .parts
                .contains(&Part::Projection)
                .then(|| Err("not run".to_owned())),
            interrupted: false,
        })
    }
}
