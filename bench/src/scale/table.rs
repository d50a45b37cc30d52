//! What was predicted and measured, as text, JSON and a page.

use gradmesh_protocol::header::PerStage;
use gradmesh_protocol::plan::Plan;
use serde_json::{Value, json};

use super::case::{Case, Setting};
use super::check::Check;
use super::figures::{Figures, Source};
use super::name_of;
use crate::origin::Origin;
use crate::report::{Lines, Page, Scale, Series, table};

const VERSION: u32 = 1;

/// One number of peers, sites and plan.
#[derive(Debug, Clone)]
pub(super) struct Row {
    peers: usize,
    sites: usize,
    plan: Plan,
    chosen: bool,
    shards: u32,
    update_bytes: PerStage,
    planner_s: f64,
    nodes: Option<Figures>,
    flow: Figures,
    limits: Vec<String>,
}

impl Row {
    /// `asked`: the plan of the run file. `chosen`: what the planner would choose.
    pub(super) fn new(
        case: &Case,
        asked: Plan,
        chosen: Plan,
        nodes: Option<Figures>,
        flow: Figures,
    ) -> Row {
        let roster = case.roster(&case.options());
        let groups = asked.groups(&roster).len();
        Row {
            peers: case.peers,
            sites: case.sites,
            plan: asked,
            chosen: asked == chosen,
            shards: case.shards,
            update_bytes: case.update_bytes(),
            planner_s: case.planner_s(asked, &roster),
            nodes,
            flow,
            limits: case.limits(groups),
        }
    }

    pub(super) fn name(&self) -> String {
        let sites = if self.sites == self.peers {
            "each a site".to_owned()
        } else {
            format!("{} sites", self.sites)
        };
        format!("{} peers, {sites}, {}", self.peers, name_of(self.plan))
    }

    /// Of the nodes where they ran.
    fn best(&self) -> &Figures {
        self.nodes.as_ref().unwrap_or(&self.flow)
    }

    /// The flow model's figure over that of the nodes, less one.
    fn difference(&self, of: fn(&Figures) -> f64) -> Option<f64> {
        Some(of(&self.flow) / of(self.nodes.as_ref()?) - 1.0)
    }

    fn to_json(&self, setting: &Setting) -> Value {
        let figures = |figures: &Figures| {
            json!({
                "plan": name_of(figures.plan),
                "exchange_s": figures.exchange_s,
                "round_s": figures.round_s(setting),
                "waiting": figures.waiting(setting),
                "bytes_per_peer": figures.bytes_per_peer,
                "messages_per_peer": figures.messages_per_peer,
                "decision_messages_per_peer": figures.decision_messages_per_peer,
            })
        };
        json!({
            "peers": self.peers,
            "sites": self.sites,
            "plan": name_of(self.plan),
            "chosen": self.chosen,
            "shards": self.shards,
            "update_bytes": {
                "local": self.update_bytes.local,
                "update": self.update_bytes.update,
                "reduced": self.update_bytes.reduced,
            },
            "planner_s": self.planner_s,
            "nodes": self.nodes.as_ref().map(figures),
            "flow": figures(&self.flow),
            "limits": self.limits,
        })
    }

    fn cells(&self, setting: &Setting, notes: &mut Vec<String>) -> Vec<String> {
        let best = self.best();
        let percent = |part: Option<f64>| {
            part.map_or_else(|| "-".into(), |part| format!("{:+.1} %", part * 100.0))
        };
        let marks: Vec<String> = self
            .limits
            .iter()
            .map(|limit| {
                let place = notes.iter().position(|note| note == limit);
                let place = place.unwrap_or_else(|| {
                    notes.push(limit.clone());
                    notes.len() - 1
                });
                (place + 1).to_string()
            })
            .collect();
        let plan = if best.plan == self.plan {
            name_of(self.plan).to_owned()
        } else {
            format!("{} as {}", name_of(self.plan), name_of(best.plan))
        };
        vec![
            plan,
            if self.chosen { "auto" } else { "" }.to_owned(),
            best.source.name().to_owned(),
            self.peers.to_string(),
            self.sites.to_string(),
            self.shards.to_string(),
            format!("{:.2}", best.exchange_s),
            format!("{:.2}", self.planner_s),
            format!("{:.1}", best.round_s(setting)),
            format!("{:.1} %", 100.0 * best.waiting(setting)),
            format!("{:.1}", best.bytes_per_peer / 1e6),
            format!("{:.0}", best.messages_per_peer),
            format!("{:.0}", best.decision_messages_per_peer),
            percent(self.difference(|figures| figures.exchange_s)),
            percent(self.difference(|figures| figures.bytes_per_peer)),
            marks.join(","),
        ]
    }
}

/// All that a run of the benchmark found.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) origin: Origin,
    pub(super) setting: Setting,
    pub(super) rows: Vec<Row>,
    pub(super) checks: Vec<Check>,
    /// Why not all was done.
    pub(super) missing: Option<String>,
    pub(super) wall_s: f64,
}

const HEADS: [&str; 16] = [
    "plan",
    "choice",
    "from",
    "peers",
    "sites",
    "shards",
    "exchange s",
    "planner s",
    "round s",
    "waiting",
    "MB/peer",
    "messages",
    "of decision",
    "flow: s",
    "flow: MB",
    "limits",
];
const NAMES: usize = 3;

const CHECK_HEADS: [&str; 13] = [
    "plan",
    "peers",
    "sites",
    "measured s",
    "least",
    "most",
    "work s",
    "flow s",
    "flow+work/measured",
    "nodes s",
    "nodes+work/measured",
    "MB/peer",
    "flow/measured MB",
];

impl Report {
    fn words(&self) -> String {
        let setting = &self.setting;
        format!(
            "{:.3e} parameters, {}, sites with lines of {:.0} Mbit/s and {:.0} ms between them, {} s of training, overlap {}. \
             From: \"nodes\" are the nodes themselves in the simulator, \"flow\" is bytes over rates by the same plan functions. \
             Exchange: from the end of training until the next one can begin. Planner: what the planner predicts of it; choice: its own. MB \
             and messages: received by a peer in a round; of decision: proposals and votes among them. Flow: how the flow \
             model differs from the nodes, where both ran.",
            setting.parameters as f64,
            setting.codec,
            setting.bytes_per_s as f64 / 125_000.0,
            setting.one_way_us as f64 / 500.0,
            setting.compute_s,
            if setting.overlap { "1" } else { "0" },
        )
    }

    fn check_words(&self) -> String {
        let parameters = self.checks.first().map_or(0, |check| check.parameters);
        format!(
            "Real daemons in an emulated network of the same lines, with {parameters} parameters: medians of rounds from the \
             last update ready to the last peer done, beside both predictions. Work: the same over lines that hold nothing up, which is \
             what the daemons and this machine's cores take; it is added to what is predicted of the lines."
        )
    }

    fn cells(&self) -> (Vec<Vec<String>>, Vec<String>) {
        let mut notes = Vec::new();
        let rows = self.rows.iter();
        let cells = rows
            .map(|row| row.cells(&self.setting, &mut notes))
            .collect();
        let numbered = (1..).zip(&notes).map(|(n, note)| format!("{n}: {note}"));
        let notes = numbered.collect();
        (cells, notes)
    }

    fn check_cells(&self) -> Vec<Vec<String>> {
        let number = |value: Option<f64>, decimals: usize| {
            value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
        };
        let line = |check: &Check| {
            let measured = check.measured.as_ref().ok();
            let seconds = |fold: fn(f64, f64) -> f64| {
                let all = measured?.seconds.iter().copied();
                all.reduce(fold)
            };
            let bytes = measured.map(|measured| measured.bytes_per_peer);
            let nodes_s = check.nodes.as_ref().ok().map(|nodes| nodes.exchange_s);
            vec![
                name_of(check.plan).to_owned(),
                check.peers.to_string(),
                check.sites.to_string(),
                number(check.measured_s(), 2),
                number(seconds(f64::min), 2),
                number(seconds(f64::max), 2),
                number(check.work_s(), 2),
                number(Some(check.flow.exchange_s), 2),
                number(check.ratio(check.flow.exchange_s), 2),
                number(nodes_s, 2),
                number(nodes_s.and_then(|s| check.ratio(s)), 2),
                number(bytes.map(|bytes| bytes / 1e6), 2),
                number(bytes.map(|bytes| check.flow.bytes_per_peer / bytes), 2),
            ]
        };
        self.checks.iter().map(line).collect()
    }

    fn not_measured(&self) -> Vec<String> {
        let missing = self.checks.iter().filter_map(|check| {
            let why = check.measured.as_ref().err()?;
            Some(format!(
                "{} peers in {} sites by {}: {why}",
                check.peers,
                check.sites,
                name_of(check.plan)
            ))
        });
        missing.collect()
    }

    pub(super) fn to_text(&self) -> String {
        let (cells, notes) = self.cells();
        let mut text = format!(
            "{}{}\n\n{}",
            self.origin.to_text(),
            self.words(),
            table(NAMES, &HEADS, &cells)
        );
        for note in notes {
            text += &format!("{note}\n");
        }
        if !self.checks.is_empty() {
            text += &format!(
                "\n{}\n\n{}",
                self.check_words(),
                table(1, &CHECK_HEADS, &self.check_cells())
            );
            for missing in self.not_measured() {
                text += &format!("{missing}\n");
            }
        }
        if let Some(missing) = &self.missing {
            text += &format!("not complete: {missing}\n");
        }
        text + &format!("{:.1} s\n", self.wall_s)
    }

    pub(super) fn to_json(&self) -> Value {
        let setting = &self.setting;
        json!({
            "benchmark": "scale",
            "version": VERSION,
            "machine": self.origin.to_json(),
            "config": {
                "parameters": setting.parameters,
                "codec": setting.codec.to_string(),
                "mbit": setting.bytes_per_s / 125_000,
                "round_trip_ms": setting.one_way_us / 500,
                "compute_s": setting.compute_s,
                "overlap": setting.overlap,
            },
            "results": self.rows.iter().map(|row| row.to_json(setting)).collect::<Vec<_>>(),
            "check": self.checks.iter().map(Check::to_json).collect::<Vec<_>>(),
            "missing": self.missing,
            "wall_s": self.wall_s,
        })
    }

    pub(super) fn to_html(&self) -> String {
        let mut page = Page::new("Scale", &self.origin);
        page.paragraph(&self.words());
        if let Some(missing) = &self.missing {
            page.paragraph(&format!("Not complete: {missing}."));
        }
        let setting = self.setting.clone();
        let waiting = |figures: &Figures| 100.0 * figures.waiting(&setting);
        for (heading, axis, scale, of) in [
            (
                "Time of an exchange",
                "seconds",
                Scale::Log,
                &(|figures: &Figures| figures.exchange_s) as &dyn Fn(&Figures) -> f64,
            ),
            (
                "Bytes received by a peer in a round",
                "bytes",
                Scale::Log,
                &|figures| figures.bytes_per_peer,
            ),
            (
                "Part of a round in which a peer waits",
                "percent",
                Scale::Linear,
                &waiting,
            ),
            (
                "Proposals and votes that a peer receives for a decision",
                "messages",
                Scale::Log,
                &|figures| figures.decision_messages_per_peer,
            ),
        ] {
            page.heading(heading);
            let lines = Lines {
                x_axis: "peers".to_owned(),
                y_axis: axis.to_owned(),
                x_scale: Scale::Log,
                y_scale: scale,
                series: self.series(of),
            };
            page.figure(&lines.to_svg(), "lines: flow; points by themselves: nodes");
        }
        page.heading("Figures");
        let (cells, notes) = self.cells();
        page.table(NAMES, &HEADS, &cells);
        for note in notes {
            page.paragraph(&note);
        }
        if !self.checks.is_empty() {
            page.heading("Beside real daemons");
            page.paragraph(&self.check_words());
            page.table(1, &CHECK_HEADS, &self.check_cells());
            for missing in self.not_measured() {
                page.paragraph(&missing);
            }
        }
        page.into_html()
    }

    /// A line over the number of peers for each plan and kind of sites, and source.
    fn series(&self, of: &dyn Fn(&Figures) -> f64) -> Vec<Series> {
        let mut series: Vec<Series> = Vec::new();
        let mut add = |row: &Row, figures: &Figures| {
            let place = if row.sites == row.peers {
                "each a site"
            } else {
                "in sites"
            };
            let source = match figures.source {
                Source::Nodes => ", nodes",
                Source::Flow => "",
            };
            let name = format!("{}, {place}{source}", name_of(row.plan));
            let point = (row.peers as f64, of(figures));
            match series.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => series.push(Series {
                    name,
                    points: vec![point],
                }),
            }
        };
        for row in &self.rows {
            add(row, &row.flow);
            if let Some(nodes) = &row.nodes {
                add(row, nodes);
            }
        }
        series
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::tests_setting;
    use super::super::flow;
    use super::*;
    use gradmesh_protocol::manifest::PlanKind;

    fn report() -> Report {
        let setting = tests_setting();
        let row = |peers, plan, kind| {
            let case = setting.case(peers, peers, kind).unwrap();
            let flow = flow::predict(&case);
            let nodes = (peers == 4).then_some(Figures {
                source: Source::Nodes,
                exchange_s: flow.exchange_s * 1.25,
                ..flow
            });
            Row::new(&case, plan, Plan::Gather, nodes, flow)
        };
        let rows = vec![
            row(4, Plan::Gather, PlanKind::Gather),
            row(100, Plan::Reduce, PlanKind::Reduce),
        ];
        let flow = rows[0].flow;
        Report {
            origin: Origin::here_and_now(),
            setting: setting.clone(),
            checks: vec![Check {
                peers: 4,
                sites: 4,
                plan: Plan::Gather,
                parameters: 25_000_000,
                shards: 96,
                nodes_shards: 102,
                flow,
                nodes: Ok(flow),
                measured: Err("no <root>".to_owned()),
                work: Err("no <root>".to_owned()),
            }],
            rows,
            missing: Some("interrupted".to_owned()),
            wall_s: 1.0,
        }
    }

    #[test]
    fn every_figure_says_where_it_is_from_and_how_far_the_two_differ() {
        let text = report().to_text();
        let line = |what: &str| text.lines().find(|line| line.starts_with(what)).unwrap();
        assert!(line("gather  auto    nodes").contains("-20.0 %"), "{text}");
        assert!(line("reduce          flow ").contains(" - "), "{text}");
        assert!(text.contains("1: 100 members: a manifest allows 64"));
        assert!(text.contains("4 peers in 4 sites by gather: no <root>"));
    }

    #[test]
    fn the_json_has_both_sources_and_what_is_missing() {
        let json = report().to_json();
        let (first, second) = (&json["results"][0], &json["results"][1]);
        assert!(first["nodes"]["exchange_s"].as_f64() > first["flow"]["exchange_s"].as_f64());
        assert_eq!(second["nodes"], Value::Null);
        assert_eq!(first["chosen"], true);
        assert_eq!(json["check"][0]["missing"], "no <root>");
        assert_eq!(json["missing"], "interrupted");
        assert_eq!(json["check"][0]["seconds"], Value::Null);
        assert_eq!(json["version"], VERSION);
    }

    #[test]
    fn the_page_plots_each_plan() {
        let html = report().to_html();
        assert_eq!(html.matches("<svg").count(), 4);
        assert!(html.contains("no &lt;root&gt;") && !html.contains("NaN"));
    }
}
