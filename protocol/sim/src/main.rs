//! `gradmesh-sim SEED` runs one seed and tells everything; `gradmesh-sim --first-seed A --seeds N` runs many.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use gradmesh_protocol::manifest::PlanKind;
use gradmesh_sim::coverage::Coverage;
use gradmesh_sim::options::{Chosen, FRAGMENTS_MAX, is_chain_run};
use gradmesh_sim::{Options, Outcome, Verbosity, Verdict, run};

/// Simulates gradmesh runs: one seed, one run.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Run this seed, and print its options, its outcome and, if a check fails, what led to it.
    #[arg(conflicts_with_all = ["first_seed", "seeds"])]
    seed: Option<u64>,
    /// With a seed: print every event and effect.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// The first of many seeds.
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// This plan instead of the one that a seed says.
    #[arg(long)]
    plan: Option<PlanName>,
    /// That many rounds of training ahead, 0 or 1, instead of what a seed says.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1))]
    overlap: Option<u32>,
    /// That many fragments, 1 to 5, instead of what a seed says.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(FRAGMENTS_MAX)))]
    fragments: Option<u32>,
    /// Only seeds that are chain runs.
    #[arg(long, conflicts_with = "seed")]
    chain: bool,
}

/// How updates are exchanged.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PlanName {
    Auto,
    Gather,
    Reduce,
    Hier,
}

impl From<PlanName> for PlanKind {
    fn from(name: PlanName) -> PlanKind {
        match name {
            PlanName::Auto => PlanKind::Auto,
            PlanName::Gather => PlanKind::Gather,
            PlanName::Reduce => PlanKind::Reduce,
            PlanName::Hier => PlanKind::Hier,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen = Chosen {
        plan: arguments.plan.map(PlanKind::from),
        overlap: arguments.overlap,
        fragments: arguments.fragments,
    };
    let holds = match arguments.seed {
        Some(seed) => run_one(seed, chosen, arguments.trace),
        None => run_many(
            arguments.first_seed,
            arguments.seeds,
            chosen,
            arguments.chain,
        ),
    };
    if holds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_one(seed: u64, chosen: Chosen, trace: bool) -> bool {
    let options = Options::with(seed, chosen);
    println!("{options}");
    let verbosity = if trace {
        Verbosity::All
    } else {
        Verbosity::Tail
    };
    let outcome = run(&options, verbosity);
    println!("{outcome}");
    outcome.holds()
}

/// Sums over many runs.
#[derive(Default)]
struct Summary {
    done: u64,
    converged: u64,
    stuck: u64,
    failed: Vec<(u64, String)>,
    events: u64,
    messages: u64,
    slowest: (f64, u64),
    coverage: Coverage,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: &Outcome, seconds: f64) {
        self.done += 1;
        self.events += outcome.events;
        self.messages += outcome.messages;
        self.coverage.add(&outcome.coverage);
        if seconds > self.slowest.0 {
            self.slowest = (seconds, seed);
        }
        match &outcome.verdict {
            Verdict::Converged => self.converged += 1,
            Verdict::SafelyStuck => self.stuck += 1,
            Verdict::Failed(failure) => self.failed.push((seed, failure.to_string())),
        }
    }
}

fn run_many(first: u64, count: u64, chosen: Chosen, only_chain: bool) -> bool {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seeds: Vec<u64> = (first..)
        .filter(|seed| !only_chain || is_chain_run(*seed))
        .take(count as usize)
        .collect();
    let last = seeds.last().unwrap_or(&first);
    println!("seeds {first} to {last} on {threads} threads");
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)).copied()
                    else {
                        return;
                    };
                    let seed_began = Instant::now();
                    let outcome = run(&Options::with(seed, chosen), Verbosity::Hash);
                    let seconds = seed_began.elapsed().as_secs_f64();
                    let mut summary = summary.lock().expect("no thread panics while it adds");
                    summary.add(seed, &outcome, seconds);
                    if let Verdict::Failed(failure) = &outcome.verdict {
                        println!("seed {seed}: {failure}");
                    }
                    if summary.done.is_multiple_of(100) {
                        println!(
                            "{} of {count}, {:.1} s",
                            summary.done,
                            began.elapsed().as_secs_f64()
                        );
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("no thread panicked");
    println!(
        "{count} seeds from {first}: {} converged, {} safely stuck, {} failed; {} events, {} messages, {:.1} s; slowest \
         seed {} with {:.2} s",
        summary.converged,
        summary.stuck,
        summary.failed.len(),
        summary.events,
        summary.messages,
        began.elapsed().as_secs_f64(),
        summary.slowest.1,
        summary.slowest.0,
    );
    println!("met: {}", summary.coverage);
    summary.failed.sort();
    for (seed, _) in &summary.failed {
        println!("to see it again: gradmesh-sim {seed}");
    }
    summary.failed.is_empty()
}
