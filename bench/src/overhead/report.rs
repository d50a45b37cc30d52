//! What was measured, as tables for a terminal and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::cost::Cost;
use super::outcome::Outcome;
use super::projection::{Basis, Exchange, Projected, Setup, formulas};
use super::system::System;
use super::training::Training;
use super::utilisation::{Case, Measured};
use crate::harness::Link;
use crate::harness::link::Wide;
use crate::origin::Origin;
use crate::report::table;

/// Changes when a field of the JSON changes its meaning or goes; a field more does not.
const VERSION: u32 = 2;

/// A measurement, or what there is of it.
pub(super) struct Report {
    pub(super) origin: Origin,
    pub(super) training: Training,
    pub(super) model_parameters: u64,
    pub(super) steps_per_round: u32,
    /// The user's.
    pub(super) target_loss: Option<f64>,
    /// In the order of the systems.
    pub(super) rows: Vec<Row>,
    /// Of the model whose utilisation is measured.
    pub(super) parameters: f64,
    pub(super) cost: Option<Cost>,
    /// `None`: not asked for.
    pub(super) utilisation: Option<Utilisation>,
    /// `None`: not asked for.
    pub(super) projection: Option<Result<Projection, String>>,
    pub(super) interrupted: bool,
}

/// A system and what it came to, or why there is nothing.
pub(super) struct Row {
    pub(super) system: System,
    pub(super) link: Link,
    pub(super) outcome: Result<Outcome, String>,
}

#[derive(Default)]
pub(super) struct Utilisation {
    pub(super) cases: Vec<Measured>,
    pub(super) missing: Vec<Missing>,
}

/// A case that was not measured.
pub(super) struct Missing {
    pub(super) case: String,
    pub(super) reason: String,
}

pub(super) struct Projection {
    pub(super) setup: Setup,
    pub(super) basis: Basis,
    pub(super) models: Vec<Projected>,
}

impl Missing {
    pub(super) fn new(case: &Case, reason: &str) -> Missing {
        Missing {
            case: Missing::name(case),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn name(case: &Case) -> String {
        let overlap = if case.overlap { ", overlap" } else { "" };
        let dilation = match case.dilation {
            1 => String::new(),
            dilation => format!(", dilated by {dilation}"),
        };
        format!(
            "{} Mbit/s, packets of {} bytes, {} s of computing{dilation}{overlap}",
            case.mbit, case.mtu, case.compute_s
        )
    }
}

/// `value` with `decimals`, or a dash.
fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

impl Report {
    pub(super) fn outcome(&self, system: System) -> Option<&Outcome> {
        let row = self.rows.iter().find(|row| row.system == system)?;
        row.outcome.as_ref().ok()
    }

    pub(super) fn outcomes(&self) -> impl Iterator<Item = (System, &Outcome)> {
        self.rows
            .iter()
            .filter_map(|row| Some((row.system, row.outcome.as_ref().ok()?)))
    }

    pub(super) fn projection(&self) -> Option<&Projection> {
        self.projection.as_ref()?.as_ref().ok()
    }

    /// The cases whose exchanges are compared. With overlap one ends when training lets it, and says nothing about itself; and
    /// all have the packets and the dilation of the first case.
    pub(super) fn exchanges(&self) -> impl Iterator<Item = &Measured> {
        let cases = self.utilisation.iter().flat_map(|all| &all.cases);
        let kind = |measured: &Measured| (measured.case.mtu, measured.case.dilation);
        let first = cases.clone().next().map(kind);
        cases.filter(move |m| !m.case.overlap && Some(kind(m)) == first)
    }

    /// What exchanges took at the rates that were measured.
    pub(super) fn exchange(&self) -> Exchange {
        let points = self.exchanges().map(|m| (m.bound_s(), m.exchange_mean_s()));
        Exchange::fit(&points.collect::<Vec<_>>())
    }

    /// The loss to which times are compared: the user's, or the lowest that every system reached. `None` with fewer than two.
    pub(super) fn target(&self) -> Option<f64> {
        let lowest: Vec<f64> = self.outcomes().filter_map(|(_, o)| o.lowest()).collect();
        if lowest.len() < 2 {
            return None;
        }
        self.target_loss
            .or_else(|| lowest.into_iter().max_by(f64::total_cmp))
    }

    fn seconds_to_target(&self, system: System) -> Option<f64> {
        self.outcome(system)?.seconds_to(self.target()?)
    }

    /// Sentences on how long gradmesh takes to the target loss, against clusters.
    pub(super) fn comparisons(&self) -> Vec<String> {
        let Some(target) = self.target() else {
            return Vec::new();
        };
        let reached = self
            .outcomes()
            .filter(|(_, o)| o.seconds_to(target).is_some());
        if reached.count() == 0 {
            let lowest = self.outcomes().filter_map(|(_, o)| o.lowest());
            let lowest = number(lowest.min_by(f64::total_cmp), 3);
            return vec![format!(
                "no system reached a loss of {target}: the lowest was {lowest}; choose a higher --target-loss, or more --rounds"
            )];
        }
        let mut sentences = Vec::new();
        let gradmesh = [System::Sparse, System::SparseOverlap];
        let clusters = [
            (System::DdpWan, "DDP over the same link"),
            (System::ClusterWan, "the own cluster over the same link"),
            (System::Ddp, "DDP in the data centre"),
            (System::Cluster, "the own cluster in the data centre"),
        ];
        for ours in gradmesh {
            let Some(seconds) = self.seconds_to_target(ours) else {
                continue;
            };
            for (cluster, name) in clusters {
                // Who begins below the target has no time to compare with.
                let theirs = self.seconds_to_target(cluster);
                if let Some(theirs) = theirs.filter(|seconds| *seconds > 0.0) {
                    sentences.push(format!(
                        "to a loss of {target:.3}: gradmesh {ours} {seconds:.1} s, {name} {theirs:.1} s: {:.2} of its time",
                        seconds / theirs
                    ));
                }
            }
        }
        sentences
    }

    pub(super) const TRAINING_HEADS: [&str; 15] = [
        "system",
        "network",
        "s",
        "to target s",
        "held-out loss",
        "computing %",
        "train s",
        "encode s",
        "wait s",
        "transfer s",
        "decide s",
        "apply s",
        "hidden s",
        "MB per peer",
        "roots",
    ];

    /// As [`Report::TRAINING_HEADS`]; phases are of a round.
    pub(super) fn training_cells(&self) -> Vec<Vec<String>> {
        let rows = self.rows.iter().map(|row| {
            let mut cells = vec![row.system.to_string(), row.link.to_string()];
            if let Ok(outcome) = &row.outcome {
                cells.push(number(Some(outcome.total_s), 1));
                cells.push(number(self.seconds_to_target(row.system), 1));
                cells.push(number(Some(outcome.held_out), 3));
                cells.push(number(Some(outcome.utilisation() * 100.0), 1));
                cells.extend(outcome.phases().values().map(|s| number(Some(s), 2)));
                cells.push(number(Some(outcome.bytes_per_peer / 1e6), 1));
                cells.push(
                    if outcome.roots_equal {
                        "equal"
                    } else {
                        "differ"
                    }
                    .to_owned(),
                );
            }
            cells
        });
        rows.collect()
    }

    pub(super) const UTILISATION_HEADS: [&str; 13] = [
        "Mbit/s",
        "packet",
        "dilation",
        "overlap",
        "computing s",
        "update MB",
        "MB per peer",
        "bound s",
        "exchange s",
        "round s",
        "cpu s",
        "computing %",
        "with codec %",
    ];

    /// As [`Report::UTILISATION_HEADS`].
    pub(super) fn utilisation_cells(&self) -> Vec<Vec<String>> {
        let (Some(utilisation), Some(cost)) = (&self.utilisation, &self.cost) else {
            return Vec::new();
        };
        let row = |measured: &Measured| {
            let case = &measured.case;
            let mean = |values: &[f64]| Some(values.iter().sum::<f64>() / values.len() as f64);
            let with_codec = measured.utilisation_with_codec(cost, self.parameters);
            vec![
                case.mbit.to_string(),
                case.mtu.to_string(),
                case.dilation.to_string(),
                if case.overlap { "yes" } else { "no" }.to_owned(),
                number(Some(case.compute_s), 0),
                number(Some(measured.update_bytes / 1e6), 2),
                number(Some(measured.bytes_per_peer / 1e6), 1),
                number(Some(measured.bound_s()), 2),
                number((!case.overlap).then(|| measured.exchange_mean_s()), 2),
                number(mean(&measured.periods_s), 2),
                number(Some(measured.cpu_s), 1),
                number(Some(measured.utilisation() * 100.0), 2),
                number(Some(with_codec * 100.0), 2),
            ]
        };
        utilisation.cases.iter().map(row).collect()
    }

    pub(super) const PROJECTION_HEADS: [&str; 9] = [
        "model",
        "parameters",
        "compute s",
        "GB per peer",
        "exchange s",
        "codec s",
        "computing %",
        "with overlap %",
        "cluster over this link %",
    ];

    /// As [`Report::PROJECTION_HEADS`].
    pub(super) fn projection_cells(&self) -> Vec<Vec<String>> {
        let models = self
            .projection()
            .into_iter()
            .flat_map(|projection| &projection.models);
        models
            .map(|model| {
                vec![
                    model.name.clone(),
                    format!("{:.3e}", model.parameters),
                    number(Some(model.compute_s), 1),
                    number(Some(model.bytes / 1e9), 3),
                    number(Some(model.exchange_s), 1),
                    number(Some(model.codec_s), 1),
                    number(Some(model.utilisation * 100.0), 1),
                    number(Some(model.utilisation_overlap * 100.0), 1),
                    number(Some(model.utilisation_cluster * 100.0), 2),
                ]
            })
            .collect()
    }

    /// What of the measurement is missing, and why.
    pub(super) fn missing(&self) -> Vec<String> {
        let why = |reason: &str| {
            if self.interrupted && reason == "not run" {
                "interrupted before it was done".to_owned()
            } else {
                reason.to_owned()
            }
        };
        let rows = self.rows.iter().filter_map(|row| {
            let reason = row.outcome.as_ref().err()?;
            Some(format!("{}: {}", row.system, why(reason)))
        });
        let cases = self.utilisation.iter().flat_map(|all| &all.missing);
        let cases = cases.map(|case| format!("utilisation, {}: {}", case.case, why(&case.reason)));
        let projection = self
            .projection
            .as_ref()
            .and_then(|made| made.as_ref().err());
        let projection = projection.map(|reason| format!("projection: {}", why(reason)));
        rows.chain(cases).chain(projection).collect()
    }

    /// One sentence on the model that is trained.
    pub(super) fn model_sentence(&self) -> String {
        let Training {
            peers,
            steps,
            batch_sequences,
            sequence_tokens,
            ..
        } = &self.training;
        format!(
            "{} parameters, {peers} peers, {} rounds of {} steps of {batch_sequences} sequences of {sequence_tokens} tokens",
            self.model_parameters,
            steps / self.steps_per_round,
            self.steps_per_round
        )
    }

    pub(super) fn cost_sentence(&self) -> Option<String> {
        let cost = self.cost.as_ref()?;
        Some(format!(
            "{:.3e} parameters, {}: {:.4} bits each; on one core of this machine encoding takes {:.2} ns each, applying {} updates \
             {:.2} ns",
            self.parameters,
            cost.codec,
            cost.bits,
            cost.encode_s * 1e9,
            cost.peers,
            cost.apply_s * 1e9
        ))
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = self.origin.to_text() + "\n";
        let mut section = |title: &str, body: String| {
            let _ = writeln!(text, "{title}\n\n{body}");
        };
        if !self.rows.is_empty() {
            let mut body = table(2, &Self::TRAINING_HEADS, &self.training_cells());
            for sentence in self.comparisons() {
                let _ = writeln!(body, "{sentence}");
            }
            section(&format!("training: {}", self.model_sentence()), body);
        }
        if self.utilisation.is_some() {
            let body = table(0, &Self::UTILISATION_HEADS, &self.utilisation_cells());
            let cost = self.cost_sentence().unwrap_or_default();
            section(&format!("utilisation: {cost}"), body);
        }
        if let Some(projection) = self.projection() {
            let mut body = table(1, &Self::PROJECTION_HEADS, &self.projection_cells());
            for formula in formulas(&projection.setup, &projection.basis) {
                let _ = writeln!(body, "  {formula}");
            }
            section("projection: computed, not measured", body);
        }
        for missing in self.missing() {
            let _ = writeln!(text, "missing: {missing}");
        }
        text
    }

    pub(super) fn to_json(&self) -> Value {
        let Training {
            peers,
            steps,
            batch_sequences,
            sequence_tokens,
            optimizer,
            ..
        } = &self.training;
        let mut links: Vec<&Link> = Vec::new();
        for row in &self.rows {
            if !links.contains(&&row.link) {
                links.push(&row.link);
            }
        }
        let sources = links.iter().filter_map(|link| match link {
            Link::Wan(Wide::Preset(preset)) => {
                Some((preset.name().to_owned(), json!(preset.source())))
            }
            _ => None,
        });
        let tokens = self.outcomes().map(|(_, outcome)| outcome.tokens).max();
        let rows = self.rows.iter().map(|row| {
            json!({
                "system": row.system.to_string(),
                "link": row.link.to_string(),
                "missing": row.outcome.as_ref().err(),
                "seconds_to_target": self.seconds_to_target(row.system),
                "outcome": row.outcome.as_ref().ok().map(Outcome::to_json),
            })
        });
        let utilisation = self.utilisation.as_ref().zip(self.cost.as_ref());
        json!({
            "benchmark": "overhead",
            "version": VERSION,
            "machine": self.origin.to_json(),
            "config": {
                "peers": peers,
                "rounds": steps / self.steps_per_round,
                "steps_per_round": self.steps_per_round,
                "batch_sequences": batch_sequences,
                "sequence_tokens": sequence_tokens,
                "learning_rate": optimizer.learning_rate,
                "parameters": self.model_parameters,
                "tokens": tokens,
                "sources": sources.collect::<serde_json::Map<_, _>>(),
            },
            "target_loss": self.target(),
            "training": rows.collect::<Vec<_>>(),
            "utilisation": utilisation.map(|(utilisation, cost)| json!({
                "parameters": self.parameters,
                "cost": cost.to_json(),
                "cases": utilisation.cases.iter()
                    .map(|measured| measured.to_json(cost, self.parameters))
                    .collect::<Vec<_>>(),
                "missing": utilisation.missing.iter()
                    .map(|missing| json!({"case": missing.case, "reason": missing.reason}))
                    .collect::<Vec<_>>(),
            })),
            "projection": self.projection().map(|projection| json!({
                "setup": {
                    "peers": projection.setup.peers,
                    "mbit": projection.setup.mbit,
                    "flops": projection.setup.flops,
                    "round_tokens": projection.setup.round_tokens,
                    "steps": projection.setup.steps,
                    "codec_cores": projection.setup.codec_cores,
                },
                "basis": {
                    "fixed_s": projection.basis.exchange.fixed_s,
                    "stretch": projection.basis.exchange.stretch,
                    "rates": projection.basis.exchange.rates,
                },
                "formulas": formulas(&projection.setup, &projection.basis),
                "models": projection.models.iter().map(Projected::to_json).collect::<Vec<_>>(),
            })),
            "interrupted": self.interrupted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::{Phases, Point, Round};
    use super::*;
    use crate::harness::CodecName;

    /// A run whose loss falls by one every ten seconds.
    fn outcome(start: f64, seconds: f64) -> Outcome {
        let point = |place: u32| Point {
            tokens: u64::from(place) * 100,
            seconds: f64::from(place) * seconds,
            loss: start - f64::from(place),
        };
        let round = Round {
            seconds,
            phases: Phases {
                train: seconds / 2.0,
                transfer: seconds / 2.0,
                ..Phases::default()
            },
        };
        Outcome {
            curve: (0..4).map(point).collect(),
            rounds: vec![round; 4],
            total_s: 4.0 * seconds,
            tokens: 400,
            roots_equal: true,
            ..Outcome::default()
        }
    }

    fn report(rows: Vec<(System, Result<Outcome, String>)>) -> Report {
        let link: Link = "wan:two-regions".parse().unwrap();
        let rows = rows.into_iter().map(|(system, outcome)| Row {
            system,
            link: link.clone(),
            outcome,
        });
        Report {
            origin: Origin::here_and_now(),
            training: Training {
                model: "config.json".into(),
                data: "text".into(),
                peers: 4,
                steps: 8,
                batch_sequences: 1,
                sequence_tokens: 25,
                optimizer: gradmesh_trainer::InnerOptimizer::default(),
                seed: 1,
            },
            model_parameters: 1000,
            steps_per_round: 2,
            target_loss: None,
            rows: rows.collect(),
            parameters: 1e9,
            cost: None,
            utilisation: None,
            projection: None,
            interrupted: false,
        }
    }

    #[test]
    fn times_are_compared_at_the_loss_that_all_reached() {
        let report = report(vec![
            (System::ClusterWan, Ok(outcome(6.0, 20.0))),
            (System::Sparse, Ok(outcome(6.0, 10.0))),
        ]);
        // Of the last points 4 and 3, smoothed.
        assert_eq!(report.target(), Some(3.5));
        let said = report.comparisons();
        assert_eq!(said.len(), 1);
        assert!(said[0].ends_with("0.50 of its time"), "{said:?}");
        assert_eq!(report.to_json()["training"][0]["seconds_to_target"], 60.0);
        assert_eq!(
            report.to_json()["training"][1]["outcome"]["utilisation"],
            0.5
        );
    }

    #[test]
    fn a_loss_that_nobody_reached_is_said_with_what_was_reached() {
        let mut report = report(vec![
            (System::ClusterWan, Ok(outcome(6.0, 20.0))),
            (System::Sparse, Ok(outcome(6.0, 10.0))),
        ]);
        report.target_loss = Some(1.0);
        let said = report.comparisons().concat();
        assert!(
            said.contains("no system reached a loss of 1: the lowest was 3.500"),
            "{said}"
        );
        assert_eq!(
            report.to_json()["training"][0]["seconds_to_target"],
            Value::Null
        );
    }

    #[test]
    fn what_was_interrupted_is_missing_from_table_json_and_page() {
        let mut report = report(vec![
            (System::Cluster, Err("no <root>".to_owned())),
            (System::Sparse, Ok(outcome(6.0, 10.0))),
            (System::Reduce, Err("not run".to_owned())),
        ]);
        report.projection = Some(Err("not run".to_owned()));
        report.interrupted = true;
        let text = report.to_text();
        assert!(text.contains("missing: cluster: no <root>\n"), "{text}");
        assert!(
            text.contains("missing: reduce: interrupted before it was done\n"),
            "{text}"
        );
        assert!(text.contains("missing: projection: interrupted"), "{text}");
        assert_eq!(report.to_json()["training"][0]["missing"], "no <root>");
        assert_eq!(report.to_json()["target_loss"], Value::Null);
        let html = super::super::page::html(&report);
        assert!(html.contains("cluster: no &lt;root&gt;"));
        assert!(html.contains("two-regions: Round trip 80.5 ms"));
        assert_eq!(html.matches("<svg").count(), 3);
    }

    #[test]
    fn utilisation_and_projection_are_told_with_their_formulas() {
        let cost = Cost {
            codec: CodecName::DENSE_INT8,
            peers: 8,
            bits: 0.1,
            encode_s: 1e-9,
            apply_s: 1e-9,
        };
        let case = Case {
            peers: 8,
            mbit: 100,
            round_trip_ms: 50,
            mtu: 1500,
            compute_s: 90.0,
            dilation: 1,
            overlap: false,
            rounds: 1,
        };
        let setup = Setup {
            peers: 8,
            mbit: 100,
            flops: 1e15,
            round_tokens: 1e6,
            steps: 10,
            codec_cores: 1,
        };
        let basis = Basis {
            cost: cost.clone(),
            exchange: Exchange::fit(&[]),
        };
        let report = Report {
            cost: Some(cost),
            utilisation: Some(Utilisation {
                missing: vec![Missing::new(&case, "busy")],
                cases: vec![Measured {
                    case,
                    update_bytes: 12.5e6,
                    periods_s: vec![100.0],
                    computed_s: vec![90.0],
                    exchange_s: vec![9.0],
                    bytes_per_peer: 88e6,
                    cpu_s: 3.0,
                }],
            }),
            projection: Some(Ok(Projection {
                models: vec![Projected::new("1B", 1e9, &setup, &basis)],
                setup,
                basis,
            })),
            ..report(Vec::new())
        };
        assert_eq!(report.utilisation_cells()[0][11..], ["90.00", "88.24"]);
        let text = report.to_text();
        assert!(text.contains("cluster = compute + 10 steps"), "{text}");
        assert!(
            text.contains(
                "missing: utilisation, 100 Mbit/s, packets of 1500 bytes, 90 s of computing: busy"
            ),
            "{text}"
        );
        let json = report.to_json();
        assert_eq!(json["utilisation"]["cases"][0]["utilisation"], 0.9);
        assert_eq!(json["projection"]["models"][0]["model"], "1B");
        assert_eq!(super::super::page::figures(&report).len(), 2);
    }
}
