//! `gradmesh-bench detection`: rounds until audits catch a cheat, against the part of its work that it skips.
//!
//! The audits are the real ones, in the simulator's world of miners and validators ([`gradmesh_sim::audits`]): a miner trains
//! the reference model behind an adversary, in rounds of thirty segments of one step, and one validator audits one segment of
//! it with a chance of c in each round. The network and the dispute of a verdict are left out. Each seed is one life of a cheat,
//! from its second round until its first failed audit. The first round is not audited: there is nothing yet to copy, and
//! nothing that is stale.
//!
//! - `partial`: skips each segment with a chance of p, which is the x of the curve.
//! - The other kinds are those of [`gradmesh_trainer::adversary`], at c = 1; the part p that they spoil is measured.
//!
//! The formula: a round is caught with a chance of P = c p, so that ln 0.05 / ln(1 - P) rounds, rounded up, catch 95 %.
//!
//! The band: a confidence interval of the 95 % quantile by order statistics, which needs no assumption on the distribution
//! (David and Nagaraja, "Order Statistics", 2003, section 7.1; `interval.rs` has the rule). Few seeds give no upper end.
//!
//! # JSON
//!
//! ```text
//! benchmark   "detection"
//! version     1
//! machine     {cpu, cores, commit, date, debug_assertions}; null where the system does not tell
//! config      {seeds, quantile, confidence, segments}
//! results     one object per cheat and coverage:
//!   cheat                 "partial" or a kind
//!   coverage              c: the chance that it is audited in a round
//!   spoiled               p: the part of its segments that an audit fails; of `partial` as given, else measured
//!   formula_rounds_95     by the formula
//!   measured_rounds_95    the round by which 95 % of the seeds were caught; null: later than was looked at
//!   low_rounds_95, high_rounds_95
//!                         the interval around it; null: no end, or later than was looked at
//!   caught_in_time        seeds that were caught within formula_rounds_95
//!   rounds                for each seed the rounds until it was caught; null: not within four times formula_rounds_95
//! wall_s      how long it took
//! ```

mod interval;
mod table;

use std::time::Instant;

use anyhow::ensure;
use clap::builder::RangedU64ValueParser;
use gradmesh_sim::audits::Conduct;
use gradmesh_sim::audits::measure::{self, COVERAGES_PPM, SKIPPED_PPM};
use gradmesh_trainer::adversary::Kind;

use crate::origin::Origin;
use crate::report::Output;
use table::{Report, Row};

/// Seeds on which the part that a kind spoils is measured; it is the same on each of them.
const SPOILED_SEEDS: u64 = 3;
/// The most rounds that a seed may take: with fewer than a tenth of a percent caught in a round it would take hours.
const FORMULA_ROUNDS_MAX: u64 = 3_000;

/// `gradmesh-bench detection`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Parts of its segments that `partial` skips, above 0 and at most 1, separated by commas
    #[arg(long, value_name = "P", value_delimiter = ',', value_parser = part, default_values_t = SKIPPED_PPM.map(Part))]
    skipped: Vec<Part>,
    /// Chances of an audit in a round, above 0 and at most 1, separated by commas
    #[arg(long, value_name = "C", value_delimiter = ',', value_parser = part, default_values_t = COVERAGES_PPM.map(Part))]
    coverage: Vec<Part>,
    /// Lives of each cheat
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = RangedU64ValueParser::<u64>::new().range(1..=1_000_000))]
    seeds: u64,
    /// Leave the kinds of cheats other than `partial` out
    #[arg(long)]
    partial_only: bool,
    #[command(flatten)]
    output: Output,
}

/// A part of one, in parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part(u32);

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (f64::from(self.0) / 1e6).fmt(f)
    }
}

fn part(text: &str) -> Result<Part, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    let ppm = (value * 1e6).round();
    if (1.0..=1e6).contains(&ppm) {
        Ok(Part(ppm as u32))
    } else {
        Err(format!("{text} is not from 0.000001 to 1"))
    }
}

/// Measures, prints, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut cases = Vec::new();
    for coverage in &args.coverage {
        for skipped in &args.skipped {
            let spoiled = f64::from(skipped.0) / 1e6;
            let formula = measure::rounds_to_95(measure::chance_per_round(coverage.0, spoiled));
            ensure!(
                formula <= FORMULA_ROUNDS_MAX,
                "--skipped {skipped} with --coverage {coverage} takes {formula} rounds by the formula, more than the \
                 {FORMULA_ROUNDS_MAX} that are simulated: raise one of them"
            );
            cases.push((Conduct::Partial(skipped.0), coverage.0, spoiled));
        }
    }
    if !args.partial_only {
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::None);
        cases.extend(kinds.map(|kind| {
            let conduct = Conduct::Kind(kind);
            let spoiled = measure::spoiled(conduct, SPOILED_SEEDS);
            (conduct, 1_000_000, spoiled)
        }));
    }
    let mut rows = Vec::new();
    for (place, &(conduct, coverage_ppm, spoiled)) in cases.iter().enumerate() {
        let detection = measure::detection(conduct, coverage_ppm, spoiled, args.seeds);
        eprintln!(
            "{} of {}: {conduct}, c = {}: {:.1} s",
            place + 1,
            cases.len(),
            Part(coverage_ppm),
            began.elapsed().as_secs_f64()
        );
        rows.push(Row::new(detection));
    }
    let report = Report {
        origin: Origin::here_and_now(),
        seeds: args.seeds,
        rows,
        wall_s: began.elapsed().as_secs_f64(),
    };
    let html = || report.to_html();
    args.output.write(report.to_text(), &report.to_json(), html)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_in_their_range() {
        assert_eq!(part("0.1"), Ok(Part(100_000)));
        assert_eq!(part("1"), Ok(Part(1_000_000)));
        for text in ["0", "1.1", "-1", "NaN", "half", ""] {
            assert!(part(text).is_err(), "{text}");
        }
        assert_eq!(Part(250_000).to_string(), "0.25");
    }
}
