//! `gradmesh-bench learning`: what exchange settings cost in loss, at equal tokens.
//!
//! Peers in one process, without a network: each has its own trainer (libtorch, inner state carried from round to round)
//! and its own replica with its own error feedback. They train the demo's model on real text, encode, sum, reduce and
//! apply with the code that daemons run, and after every round all state roots are compared. Every setting of a seed
//! starts from the same parameters and sees the same text, so that settings are compared in pairs.
//!
//! # JSON
//!
//! Written anew after each finished run, so that a study that is cut short is still of use.
//!
//! ```text
//! benchmark   "learning"
//! machine     {cpu, cores, commit, date, debug_assertions}; null where the system does not tell
//! config      {peers, rounds, steps, batch_sequences, sequence_tokens, learning_rate, warmup_steps, parameters,
//!              tokens_per_run, alpha, k, feedback_beta, reduced_k, reduced_value_bits, owner_beta, fragments, land_after,
//!              sites}; rounds and steps are those of settings without fragments
//! results     one object per setting and seed, in the order of their end:
//!   setting, seed
//!   loss             nats per token of the last theta on held-out text
//!   frame_bytes      of one peer's update, mean: with fragments, of one of them
//!   reduced_bytes    of all reduced frames of a round, mean; 0 in gather
//!   seconds          of the whole run
//!   rounds           one object per round, in order:
//!     train          loss of the last step, mean over peers
//!     validation     loss on a part of the held-out text, every fifth round; else null
//! summary     one object per setting, over the seeds that are done:
//!   setting, seeds, loss                 mean
//!   reference                            the setting that it is compared with; null for the first
//!   relative                             mean over the seeds of loss / loss of the reference - 1; null without it
//!   relative_worst                       the largest of them
//! ```

mod mesh;
mod setting;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::builder::RangedU64ValueParser;
use gradmesh_trainer::data::{Corpus, DataManifest};
use gradmesh_trainer::torch::set_threads;
use gradmesh_trainer::{Architecture, InnerOptimizer, model};
use serde_json::{Value, json};

use self::mesh::{Mesh, Run};
use self::setting::{Parameters, Setting};
use crate::origin::Origin;
use crate::report::table;

/// The demo's model.
const MODEL: &str = include_str!("../../daemon/assets/demo-1m.json");
/// The most text that is read: what the demo takes.
const CORPUS_BYTES_MAX: u64 = 64 << 20;
/// Rounds between two looks at the held-out text.
const VALIDATE_EVERY: u32 = 5;
/// Windows of the look at the end: 33,000 tokens at the default length, which leaves 0.3% of noise in a loss of 1.5 that
/// all settings share.
const FINAL_WINDOWS: u64 = 512;
/// Windows of the looks in between.
const WINDOWS: u64 = 64;

/// `gradmesh-bench learning`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of text to train on, for example the `data` that `gradmesh demo --out DIR` leaves in DIR
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Peers of each run
    #[arg(long, default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    peers: usize,

    /// Rounds of each run
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Runs of each setting
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    seeds: u8,

    /// Seed of the first of them: a study goes on where another was cut short
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=191))]
    first_seed: u8,

    /// Inner steps of a round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,

    /// Settings to compare, by name and in this order
    #[arg(long, value_delimiter = ',', default_values_t = Setting::ALL)]
    settings: Vec<Setting>,

    /// Sequences of one inner step
    #[arg(long, default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch: usize,

    /// Tokens of a sequence
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=512))]
    tokens: usize,

    /// Highest learning rate of the inner optimizer
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,

    #[command(flatten)]
    parameters: Parameters,

    /// Peers that train at a time
    #[arg(long, default_value_t = 2, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    threads: usize,

    /// Write all results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A finished run of one setting.
#[derive(Clone, Debug)]
struct Outcome {
    setting: Setting,
    seed: u8,
    run: Run,
    seconds: f64,
}

/// Runs the study.
///
/// # Errors
/// What cannot be read, trained or written; also when state roots differ.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    set_threads(1);
    let architecture = Architecture::from_json(MODEL.as_bytes())?;
    let manifest = DataManifest::scan(&args.data)?;
    let corpus = Corpus::load(&args.data, &manifest, CORPUS_BYTES_MAX)?;
    let windows = corpus.windows(args.tokens)?;
    let inner = InnerOptimizer {
        learning_rate: args.learning_rate,
        // Two rounds, as in the demo.
        warmup_steps: u64::from(args.steps) * 2,
        ..InnerOptimizer::default()
    };
    eprintln!(
        "{} settings x {} seeds, {} tokens each, {} bytes of text",
        args.settings.len(),
        args.seeds,
        tokens_per_run(args),
        corpus.tokens().len()
    );
    for setting in &args.settings {
        let count = setting.fragments(&args.parameters);
        ensure!(
            args.steps.is_multiple_of(count),
            "{setting}: {} steps cannot be divided among {count} fragments; choose --fragments or --steps",
            args.steps
        );
    }
    let mut outcomes = Vec::new();
    for seed in args.first_seed..args.first_seed + args.seeds {
        for setting in &args.settings {
            let started = Instant::now();
            let mut mesh = Mesh::new(&architecture, &inner, *setting, args, seed)?;
            let run = mesh
                .run(&windows, |line| eprintln!("{setting}, seed {seed}, {line}"))
                .with_context(|| format!("{setting}, seed {seed}"))?;
            ensure!(run.loss.is_finite(), "{setting}, seed {seed}: diverged");
            eprintln!("{setting}, seed {seed}: loss {:.4}", run.loss);
            outcomes.push(Outcome {
                setting: *setting,
                seed,
                run,
                seconds: started.elapsed().as_secs_f64(),
            });
            if let Some(path) = &args.json {
                write(path, args, &architecture, &inner, &outcomes)?;
            }
        }
    }
    print!("{}", text(&summaries(&outcomes)));
    Ok(())
}

fn tokens_per_run(args: &Args) -> u64 {
    let per_step = (args.batch * args.tokens * args.peers) as u64;
    per_step * u64::from(args.steps) * u64::from(args.rounds)
}

/// What the seeds of a setting say together.
struct Summary {
    setting: Setting,
    losses: Vec<f64>,
    /// Against the same seed of the reference.
    relative: Vec<f64>,
    frame_bytes: f64,
    reduced_bytes: f64,
}

impl Summary {
    fn relative(&self) -> Option<f64> {
        (!self.relative.is_empty()).then(|| mean(&self.relative))
    }

    fn worst(&self) -> Option<f64> {
        self.relative.iter().copied().reduce(f64::max)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// In the order in which settings first ended.
fn summaries(outcomes: &[Outcome]) -> Vec<Summary> {
    let losses: BTreeMap<(Setting, u8), f64> = outcomes
        .iter()
        .map(|outcome| ((outcome.setting, outcome.seed), outcome.run.loss))
        .collect();
    let mut settings: Vec<Setting> = Vec::new();
    for outcome in outcomes {
        if !settings.contains(&outcome.setting) {
            settings.push(outcome.setting);
        }
    }
    let summary = |setting: Setting| {
        let own: Vec<&Outcome> = outcomes.iter().filter(|o| o.setting == setting).collect();
        let relative = own.iter().filter_map(|outcome| {
            let reference = losses.get(&(setting.reference()?, outcome.seed))?;
            Some(outcome.run.loss / reference - 1.0)
        });
        let mean_of =
            |value: fn(&Run) -> f64| mean(&own.iter().map(|o| value(&o.run)).collect::<Vec<_>>());
        Summary {
            setting,
            losses: own.iter().map(|outcome| outcome.run.loss).collect(),
            relative: relative.collect(),
            frame_bytes: mean_of(|run| run.frame_bytes),
            reduced_bytes: mean_of(|run| run.reduced_bytes),
        }
    };
    settings.into_iter().map(summary).collect()
}

fn text(summaries: &[Summary]) -> String {
    let percent =
        |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{:+.2}%", v * 100.0));
    let rows: Vec<Vec<String>> = summaries
        .iter()
        .map(|summary| {
            let reference = summary.setting.reference();
            vec![
                summary.setting.to_string(),
                reference.map_or("-".to_owned(), |reference| reference.to_string()),
                format!("{}", summary.losses.len()),
                format!("{:.4}", mean(&summary.losses)),
                percent(summary.relative()),
                percent(summary.worst()),
                format!("{:.0}", summary.frame_bytes),
                format!("{:.0}", summary.reduced_bytes),
            ]
        })
        .collect();
    let heads = [
        "setting",
        "against",
        "seeds",
        "loss",
        "relative",
        "worst",
        "frame B",
        "reduced B",
    ];
    table(2, &heads, &rows)
}

fn write(
    path: &Path,
    args: &Args,
    architecture: &Architecture,
    inner: &InnerOptimizer,
    outcomes: &[Outcome],
) -> anyhow::Result<()> {
    let results: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            let rounds = outcome.run.rounds.iter();
            let rounds = rounds.map(|r| json!({"train": r.train, "validation": r.validation}));
            json!({
                "setting": outcome.setting.to_string(),
                "seed": outcome.seed,
                "loss": outcome.run.loss,
                "frame_bytes": outcome.run.frame_bytes,
                "reduced_bytes": outcome.run.reduced_bytes,
                "seconds": outcome.seconds,
                "rounds": rounds.collect::<Vec<_>>(),
            })
        })
        .collect();
    let summary: Vec<Value> = summaries(outcomes)
        .iter()
        .map(|summary| {
            json!({
                "setting": summary.setting.to_string(),
                "seeds": summary.losses.len(),
                "loss": mean(&summary.losses),
                "reference": summary.setting.reference().map(|reference| reference.to_string()),
                "relative": summary.relative(),
                "relative_worst": summary.worst(),
            })
        })
        .collect();
    let parameters = &args.parameters;
    let whole = json!({
        "benchmark": "learning",
        "machine": Origin::here_and_now().to_json(),
        "config": {
            "peers": args.peers,
            "rounds": args.rounds,
            "steps": args.steps,
            "batch_sequences": args.batch,
            "sequence_tokens": args.tokens,
            "learning_rate": inner.learning_rate,
            "warmup_steps": inner.warmup_steps,
            "parameters": model::elements(&architecture.parameters()),
            "tokens_per_run": tokens_per_run(args),
            "alpha": parameters.alpha,
            "k": parameters.k,
            "feedback_beta": parameters.feedback_beta,
            "reduced_k": parameters.reduced_k,
            "reduced_value_bits": parameters.reduced_value_bits,
            "owner_beta": parameters.owner_beta,
            "fragments": parameters.fragments,
            "land_after": parameters.land_after,
            "sites": setting::SITES,
        },
        "results": results,
        "summary": summary,
    });
    let text = serde_json::to_string_pretty(&whole).context("the results are no JSON")?;
    fs::write(path, text + "\n").with_context(|| format!("{}: cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(setting: Setting, seed: u8, loss: f64) -> Outcome {
        Outcome {
            setting,
            seed,
            run: Run {
                loss,
                frame_bytes: 10.0,
                reduced_bytes: 0.0,
                rounds: Vec::new(),
            },
            seconds: 1.0,
        }
    }

    #[test]
    fn settings_are_compared_seed_by_seed() {
        let outcomes = [
            outcome(Setting::DenseNesterov, 1, 2.0),
            outcome(Setting::Sparse, 1, 2.2),
            outcome(Setting::DenseNesterov, 2, 4.0),
            outcome(Setting::Sparse, 2, 4.0),
            // Cut short: its reference has no such seed yet.
            outcome(Setting::Sparse, 3, 9.0),
        ];
        let summaries = summaries(&outcomes);
        assert_eq!(summaries.len(), 2);
        assert_eq!(summaries[0].relative(), None);
        assert_eq!(summaries[1].losses, [2.2, 4.0, 9.0]);
        let close = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() < 1e-12;
        assert!(close(summaries[1].relative(), 0.05));
        assert!(close(summaries[1].worst(), 0.1));
        assert!(text(&summaries).contains("+5.00%"));
    }
}
