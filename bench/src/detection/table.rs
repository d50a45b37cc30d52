//! What was measured of each cheat, as text, JSON and a page.

use gradmesh_sim::audits::Conduct;
use gradmesh_sim::audits::measure::{Detection, chance_per_round, rounds_to_95};
use serde_json::{Value, json};

use super::interval::ranks;
use crate::origin::Origin;
use crate::report::{Band, Lines, Page, Scale, Series, table};

const VERSION: u32 = 1;
/// The part of the seeds that is caught by the rounds that are told.
const QUANTILE: f64 = 0.95;
/// Of the interval around them.
const CONFIDENCE: f64 = 0.95;
/// Segments of a round, of which an audit looks at one.
const SEGMENTS: u32 = 30;

/// One cheat at one coverage, with the interval of its quantile.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    detection: Detection,
    low: Option<u64>,
    high: Option<u64>,
}

impl Row {
    pub(super) fn new(detection: Detection) -> Row {
        let mut caught: Vec<u64> = detection.rounds.iter().flatten().copied().collect();
        caught.sort_unstable();
        // Those that were not caught come after all others.
        let of_rank = |rank: Option<usize>| caught.get(rank?.checked_sub(1)?).copied();
        let (low, high) = ranks(detection.rounds.len(), QUANTILE, CONFIDENCE);
        Row {
            low: of_rank(low),
            high: of_rank(high),
            detection,
        }
    }

    fn cheat(&self) -> String {
        match self.detection.conduct {
            Conduct::Partial(_) => "partial".to_owned(),
            kind @ Conduct::Kind(_) => kind.to_string(),
        }
    }

    fn coverage(&self) -> f64 {
        f64::from(self.detection.coverage_ppm) / 1e6
    }

    fn is_partial(&self) -> bool {
        matches!(self.detection.conduct, Conduct::Partial(_))
    }

    fn to_json(&self) -> Value {
        json!({
            "cheat": self.cheat(),
            "coverage": self.coverage(),
            "spoiled": self.detection.spoiled,
            "formula_rounds_95": self.detection.formula_rounds,
            "measured_rounds_95": self.detection.measured_rounds(),
            "low_rounds_95": self.low,
            "high_rounds_95": self.high,
            "caught_in_time": self.detection.caught_in_time(),
            "rounds": self.detection.rounds,
        })
    }

    fn cells(&self) -> Vec<String> {
        let rounds = |rounds: Option<u64>| rounds.map_or_else(|| "more".into(), |r| r.to_string());
        let detection = &self.detection;
        vec![
            self.cheat(),
            self.coverage().to_string(),
            format!("{:.3}", detection.spoiled),
            detection.formula_rounds.to_string(),
            rounds(detection.measured_rounds()),
            self.low.map_or_else(|| "-".into(), |low| low.to_string()),
            rounds(self.high),
            format!(
                "{} of {}",
                detection.caught_in_time(),
                detection.rounds.len()
            ),
        ]
    }
}

/// All rows of a run of the benchmark.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) origin: Origin,
    pub(super) seeds: u64,
    pub(super) rows: Vec<Row>,
    pub(super) wall_s: f64,
}

const HEADS: [&str; 8] = [
    "cheat",
    "c",
    "p",
    "formula",
    "measured",
    "from",
    "to",
    "caught in time",
];

impl Report {
    fn words(&self) -> String {
        format!(
            "Rounds until 95 % of {} lives of a cheat were caught, one validator that audits one of {SEGMENTS} segments with \
             a chance of c in a round; p: part of its segments that the cheat spoils. Formula: ln 0.05 / ln(1 - c p), rounded \
             up. From, to: 95 % confidence interval of the measured quantile by order statistics. In time: within the \
             rounds of the formula. Simulated, with the reference model and the real audit rules.",
            self.seeds
        )
    }

    fn cells(&self) -> Vec<Vec<String>> {
        self.rows.iter().map(Row::cells).collect()
    }

    pub(super) fn to_text(&self) -> String {
        format!(
            "{}{}\n\n{}{:.1} s\n",
            self.origin.to_text(),
            self.words(),
            table(1, &HEADS, &self.cells()),
            self.wall_s,
        )
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "benchmark": "detection",
            "version": VERSION,
            "machine": self.origin.to_json(),
            "config": {
                "seeds": self.seeds,
                "quantile": QUANTILE,
                "confidence": CONFIDENCE,
                "segments": SEGMENTS,
            },
            "results": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "wall_s": self.wall_s,
        })
    }

    pub(super) fn to_html(&self) -> String {
        let mut page = Page::new("Detection", &self.origin);
        page.paragraph(&self.words());
        let (lines, bands) = self.curve();
        if !lines.series.is_empty() {
            page.heading("Rounds to catch a cheat that skips a part of its work");
            page.figure(
                &lines.to_svg_with(&bands),
                "measured with its confidence band, and the formula",
            );
        }
        page.heading("Figures");
        page.table(1, &HEADS, &self.cells());
        page.into_html()
    }

    /// For each coverage the measured curve of `partial`, its band, and the formula.
    fn curve(&self) -> (Lines, Vec<Band>) {
        let mut coverages: Vec<u32> = Vec::new();
        for row in self.rows.iter().filter(|row| row.is_partial()) {
            if !coverages.contains(&row.detection.coverage_ppm) {
                coverages.push(row.detection.coverage_ppm);
            }
        }
        let (mut series, mut bands) = (Vec::new(), Vec::new());
        for coverage in coverages {
            let of = |row: &&Row| row.is_partial() && row.detection.coverage_ppm == coverage;
            let mut rows: Vec<&Row> = self.rows.iter().filter(of).collect();
            rows.sort_by(|a, b| a.detection.spoiled.total_cmp(&b.detection.spoiled));
            let or_endless = |rounds: Option<u64>| rounds.map_or(f64::INFINITY, |r| r as f64);
            let measured = rows.iter().filter_map(|row| {
                let rounds = row.detection.measured_rounds()?;
                Some((row.detection.spoiled, rounds as f64))
            });
            let band = rows.iter().map(|row| {
                let low = row.low.map_or(1.0, |low| low as f64);
                (row.detection.spoiled, low, or_endless(row.high))
            });
            let formula = |spoiled: f64| rounds_to_95(chance_per_round(coverage, spoiled)) as f64;
            let c = f64::from(coverage) / 1e6;
            bands.push(Band {
                series: series.len(),
                points: band.collect(),
            });
            series.push(Series {
                name: format!("measured, c = {c}"),
                points: measured.collect(),
            });
            series.push(Series {
                name: format!("formula, c = {c}"),
                points: rows
                    .iter()
                    .map(|row| (row.detection.spoiled, formula(row.detection.spoiled)))
                    .collect(),
            });
        }
        let lines = Lines {
            x_axis: "part of the segments that is skipped".to_owned(),
            y_axis: "rounds until 95 % are caught".to_owned(),
            x_scale: Scale::Linear,
            y_scale: Scale::Log,
            series,
        };
        (lines, bands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradmesh_trainer::adversary::Kind;

    fn row(conduct: Conduct, rounds: Vec<Option<u64>>) -> Row {
        Row::new(Detection {
            conduct,
            coverage_ppm: 200_000,
            spoiled: 0.5,
            formula_rounds: 29,
            rounds,
        })
    }

    fn report() -> Report {
        let counted: Vec<Option<u64>> = (1..=200).map(Some).collect();
        let mut some_never = counted.clone();
        some_never[195..].fill(None);
        Report {
            origin: Origin::here_and_now(),
            seeds: 200,
            rows: vec![
                row(Conduct::Partial(500_000), counted),
                row(Conduct::Partial(500_000), some_never),
                row(Conduct::Kind(Kind::Half), vec![Some(1)]),
            ],
            wall_s: 1.0,
        }
    }

    #[test]
    fn the_interval_lies_around_the_quantile() {
        let json = report().to_json();
        let first = &json["results"][0];
        assert_eq!(first["measured_rounds_95"], 190);
        let (low, high) = (&first["low_rounds_95"], &first["high_rounds_95"]);
        let (low, high) = (low.as_u64().unwrap(), high.as_u64().unwrap());
        // Three standard deviations of a binomial with 200 and 0.95 are 9.2.
        assert!(low > 180 && low < 190 && high > 190, "{low} to {high}");
        assert_eq!(first["cheat"], "partial");
        assert_eq!(json["version"], VERSION);
    }

    #[test]
    fn an_end_beyond_what_was_looked_at_is_said_to_be_more() {
        let report = report();
        let cells = report.cells();
        assert_eq!(cells[1][4], "190");
        assert_eq!(cells[1][6], "more");
        assert_eq!(
            report.to_json()["results"][1]["high_rounds_95"],
            Value::Null
        );
        // One seed says nothing of a quantile.
        assert_eq!(cells[2][5..7], ["-", "more"]);
    }

    #[test]
    fn the_page_shows_the_curve_with_its_band() {
        let html = report().to_html();
        assert_eq!(html.matches("<polygon").count(), 1);
        assert!(html.contains("formula, c = 0.2") && !html.contains("NaN"));
    }
}
