//! The report as one page that loads nothing, and its plots.

use super::outcome::{Outcome, Phases, Point};
use super::projection::formulas;
use super::report::Report;
use super::utilisation::predicted;
use crate::harness::Link;
use crate::harness::link::Wide;
use crate::report::{Bar, Bars, Lines, Page, Scale, Series};

/// Computing per round over which utilisation is drawn, in seconds.
const COMPUTE_S: [f64; 9] = [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0];

/// Rates over which utilisation is drawn.
const RATES_MBIT: [f64; 9] = [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0];

/// A plot and what it shows.
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) svg: String,
    pub(super) caption: String,
}

/// What there is to draw.
pub(super) fn figures(report: &Report) -> Vec<Figure> {
    let mut figures = Vec::new();
    if report.outcomes().next().is_some() {
        let lines = |x_axis: &str, x: fn(&Point) -> f64| {
            let series = report.outcomes().map(|(system, outcome)| Series {
                name: system.to_string(),
                points: outcome
                    .smooth()
                    .iter()
                    .map(|point| (x(point), point.loss))
                    .collect(),
            });
            Lines {
                x_axis: x_axis.to_owned(),
                y_axis: "loss, nats per token".to_owned(),
                x_scale: Scale::Linear,
                y_scale: Scale::Linear,
                series: series.collect(),
            }
            .to_svg()
        };
        figures.push(Figure {
            name: "loss-over-time",
            svg: lines("seconds", |point| point.seconds),
            caption: "Loss on fresh text at the shared parameters, over time; mean of three neighbouring rounds.".to_owned(),
        });
        figures.push(Figure {
            name: "loss-over-tokens",
            svg: lines("tokens of all peers", |point| point.tokens as f64),
            caption:
                "The same over tokens: what the way to exchange costs in learning, apart from time."
                    .to_owned(),
        });
        figures.push(not_computing(report));
    }
    figures.extend(utilisation(report));
    figures.extend(utilisation_over_rate(report));
    figures
}

/// Of each system, the share of each round in which peers do not compute.
fn not_computing(report: &Report) -> Figure {
    let share = |outcome: &Outcome| {
        let of_round = |(seconds, phases): (f64, Phases)| (1.0 - phases.train / seconds) * 100.0;
        let rounds = outcome
            .rounds
            .iter()
            .map(|round| (round.seconds, round.phases));
        rounds.map(of_round).map(|share| share.max(0.0)).collect()
    };
    let bars = report.outcomes().map(|(system, outcome)| Bar {
        label: system.to_string(),
        kind: "a round; the bar is the median".to_owned(),
        samples: share(outcome),
        bound: None,
    });
    Figure {
        name: "not-computing",
        svg: Bars {
            axis: "share of a round in which a peer does not compute, %".to_owned(),
            scale: Scale::Linear,
            bars: bars.collect(),
        }
        .to_svg(),
        caption: "Share of each round in which a peer does not compute.".to_owned(),
    }
}

/// Utilisation over computing per round, for each rate that was measured.
fn utilisation(report: &Report) -> Option<Figure> {
    let mut series = Vec::new();
    for measured in report.exchanges() {
        for overlap in [false, true] {
            let exchange_s = measured.exchange_mean_s();
            let point =
                |&compute_s: &f64| (compute_s, predicted(compute_s, exchange_s, overlap) * 100.0);
            let with = if overlap { ", overlap" } else { "" };
            series.push(Series {
                name: format!("{} Mbit/s{with}", measured.case.mbit),
                points: COMPUTE_S.iter().map(point).collect(),
            });
        }
    }
    if series.is_empty() {
        return None;
    }
    Some(Figure {
        name: "utilisation",
        svg: Lines {
            x_axis: "computing per round, seconds".to_owned(),
            y_axis: "compute utilisation, %".to_owned(),
            x_scale: Scale::Log,
            y_scale: Scale::Linear,
            series,
        }
        .to_svg(),
        caption: "Compute utilisation over computing per round, from the measured seconds of an exchange at each rate: C / (C + X) \
                  without overlap, C / max(C, X) with it."
            .to_owned(),
    })
}

/// Utilisation over the rate of the line, for some lengths of computing.
fn utilisation_over_rate(report: &Report) -> Option<Figure> {
    let measured = report.utilisation.as_ref()?.cases.first()?;
    let exchange = report.exchange();
    let mut series = Vec::new();
    for compute_s in [30.0, 120.0, 600.0] {
        for overlap in [false, true] {
            let point = |&mbit: &f64| {
                let bound_s = measured.bound_s() * measured.case.mbit as f64 / mbit;
                let exchange_s = exchange.seconds(bound_s);
                (mbit, predicted(compute_s, exchange_s, overlap) * 100.0)
            };
            let with = if overlap { ", overlap" } else { "" };
            series.push(Series {
                name: format!("{compute_s} s of computing{with}"),
                points: RATES_MBIT.iter().map(point).collect(),
            });
        }
    }
    Some(Figure {
        name: "utilisation-over-rate",
        svg: Lines {
            x_axis: "rate of each peer's line, Mbit/s".to_owned(),
            y_axis: "compute utilisation, %".to_owned(),
            x_scale: Scale::Log,
            y_scale: Scale::Linear,
            series,
        }
        .to_svg(),
        caption: format!(
            "Compute utilisation over the rate of the line: an exchange takes {:.2} s and {:.2} times what its bytes take at the \
             rate, a line through exchanges measured at {} rates.",
            exchange.fixed_s, exchange.stretch, exchange.rates
        ),
    })
}

/// The page.
pub(super) fn html(report: &Report) -> String {
    let mut page = Page::new(
        "gradmesh: what decentralised training costs",
        &report.origin,
    );
    let figures = figures(report);
    let figure = |page: &mut Page, name: &str| {
        if let Some(figure) = figures.iter().find(|figure| figure.name == name) {
            page.figure(&figure.svg, &figure.caption);
        }
    };
    if !report.rows.is_empty() {
        page.heading("Training");
        page.paragraph(&report.model_sentence());
        page.table(2, &Report::TRAINING_HEADS, &report.training_cells());
        for sentence in report.comparisons() {
            page.paragraph(&sentence);
        }
        for name in ["loss-over-time", "loss-over-tokens", "not-computing"] {
            figure(&mut page, name);
        }
        let mut told = Vec::new();
        for row in &report.rows {
            if let Link::Wan(Wide::Preset(preset)) = row.link
                && !told.contains(&preset)
            {
                told.push(preset);
                page.paragraph(&format!("{preset}: {}", preset.source()));
            }
        }
    }
    if report.utilisation.is_some() {
        page.heading("Compute utilisation at the sizes of a large model");
        page.paragraph(&report.cost_sentence().unwrap_or_default());
        page.table(0, &Report::UTILISATION_HEADS, &report.utilisation_cells());
        figure(&mut page, "utilisation");
        figure(&mut page, "utilisation-over-rate");
    }
    if let Some(projection) = report.projection() {
        page.heading("Projection: computed, not measured");
        page.table(1, &Report::PROJECTION_HEADS, &report.projection_cells());
        for formula in formulas(&projection.setup, &projection.basis) {
            page.paragraph(&formula);
        }
    }
    let missing = report.missing();
    if !missing.is_empty() {
        page.heading("Missing");
        for line in missing {
            page.paragraph(&line);
        }
    }
    page.into_html()
}
