//! What was measured of one case, and how it is told: JSON, a table, a page.

use std::cmp::Ordering;

use serde_json::{Value, json};

use super::bounds;
use super::case::System;
use crate::harness::{CodecName, Link, Plan, Site};
use crate::origin::Origin;
use crate::report::{Bar, Bars, Lines, Page, Scale, Series, median, table};

/// Changes when a field of the JSON changes its meaning or goes; a field more does not.
const VERSION: u32 = 1;

/// One round.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub(super) seconds: f64,
    /// Of all peers together.
    pub(super) cpu_s: f64,
    /// Received, mean over the peers.
    pub(super) bytes_per_peer: f64,
    /// What entered each site of the row from other sites.
    pub(super) wan_bytes: Vec<u64>,
    /// Peers that say that nobody can connect to them.
    pub(super) behind_nat: usize,
    /// What the roster has the link of each peer carry.
    pub(super) capacity_mbit: Vec<u32>,
    pub(super) roots_equal: bool,
    /// That the peer which holds most holds after the round.
    pub(super) rss_bytes: u64,
    /// Of gradmesh alone.
    pub(super) phases: Option<Phases>,
}

/// Seconds of the parts of a round, each on the peer that took longest for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Phases {
    pub(super) encode: f64,
    pub(super) exchange: f64,
    pub(super) decide: f64,
    pub(super) apply: f64,
}

/// A case and its rounds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) system: System,
    pub(super) plan: Plan,
    pub(super) codec: CodecName,
    pub(super) peers: u32,
    pub(super) link: Link,
    /// Of an emulated network.
    pub(super) sites: Vec<Site>,
    pub(super) parameters: u64,
    pub(super) samples: Vec<Sample>,
    pub(super) rss_bytes: Option<u64>,
    /// Why there are no samples, or fewer than asked for.
    pub(super) missing: Option<String>,
}

impl Row {
    pub(super) fn name(&self) -> String {
        match self.system {
            System::Gradmesh => format!("gradmesh {} {}", self.codec, self.plan.name()),
            System::Rival(rival) => rival.name().to_owned(),
        }
    }

    fn bound_bytes(&self) -> f64 {
        let update = self.codec.update_bytes_min(self.parameters);
        bounds::bytes_per_peer(self.system, self.plan, self.peers, update)
    }

    fn bound_s(&self) -> Option<f64> {
        Some(self.bound_bytes() / self.link.bytes_per_s()?)
    }

    /// Of each site: what entered it from others in a round, mean over the rounds, and what has to.
    fn wan_bytes(&self) -> Vec<(&Site, Option<f64>, f64)> {
        let update = self.codec.update_bytes_min(self.parameters);
        let of_site = |(index, site)| {
            let received = self.mean(|sample| {
                let bytes: Option<&u64> = sample.wan_bytes.get(index);
                bytes.map_or(0.0, |bytes| *bytes as f64)
            });
            let bound = bounds::wan_bytes(self.system, self.plan, &self.sites, site, update);
            (site, received, bound)
        };
        self.sites.iter().enumerate().map(of_site).collect()
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        median(self.samples.iter().map(of))
    }

    /// A tick of the processor clock is coarse: the mean over the rounds is finer than their median.
    fn mean(&self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let sum: f64 = self.samples.iter().map(of).sum();
        (!self.samples.is_empty()).then(|| sum / self.samples.len() as f64)
    }

    fn roots_equal(&self) -> Option<bool> {
        (!self.samples.is_empty()).then(|| self.samples.iter().all(|sample| sample.roots_equal))
    }

    fn phase(&self, of: impl Fn(&Phases) -> f64) -> Option<f64> {
        median(
            self.samples
                .iter()
                .filter_map(|sample| Some(of(&sample.phases?))),
        )
    }

    /// By which memory grows in a round, by least squares over the second half of the rounds: in the first half caches
    /// fill. `None` for fewer than eight rounds.
    fn rss_growth_bytes(&self) -> Option<f64> {
        let later = &self.samples[self.samples.len() / 2..];
        if self.samples.len() < 8 {
            return None;
        }
        let held = || later.iter().map(|sample| sample.rss_bytes as f64);
        let count = later.len() as f64;
        let (middle, mean) = ((count - 1.0) / 2.0, held().sum::<f64>() / count);
        let places = || (0..later.len()).map(|place| place as f64 - middle);
        let together: f64 = places().zip(held()).map(|(x, y)| x * (y - mean)).sum();
        Some(together / places().map(|x| x * x).sum::<f64>())
    }

    fn to_json(&self) -> Value {
        let all = |of: fn(&Sample) -> f64| self.samples.iter().map(of).collect::<Vec<_>>();
        let phases = |of: fn(&Phases) -> f64| {
            let samples = self
                .samples
                .iter()
                .filter_map(|sample| sample.phases.as_ref());
            samples.map(of).collect::<Vec<_>>()
        };
        let is_ours = self.system == System::Gradmesh;
        json!({
            "system": self.system.name(),
            "plan": is_ours.then(|| self.plan.name()),
            "codec": self.codec.to_string(),
            "peers": self.peers,
            "link": self.link.to_string(),
            "parameters": self.parameters,
            "bytes_per_peer": self.mean(|sample| sample.bytes_per_peer),
            "bound_bytes_per_peer": self.bound_bytes(),
            "wan_bytes_per_site": self.wan_bytes().into_iter().map(|(site, received, bound)| json!({
                "site": site.name,
                "peers": site.peers,
                "received": received,
                "bound": bound,
            })).collect::<Vec<_>>(),
            "behind_nat": is_ours.then(|| self.samples.last().map(|sample| sample.behind_nat)),
            "capacity_mbit": is_ours.then(|| self.samples.last().map(|sample| &sample.capacity_mbit)),
            "seconds": all(|sample| sample.seconds),
            "bound_s": self.bound_s(),
            "cpu_s": self.mean(|sample| sample.cpu_s),
            "rss_bytes": self.rss_bytes,
            "rss_bytes_after": all(|sample| sample.rss_bytes as f64),
            "rss_growth_bytes": self.rss_growth_bytes(),
            "roots_equal": self.roots_equal(),
            "phase_seconds": is_ours.then(|| json!({
                "encode": phases(|phases| phases.encode),
                "exchange": phases(|phases| phases.exchange),
                "decide": phases(|phases| phases.decide),
                "apply": phases(|phases| phases.apply),
            })),
            "missing": self.missing,
        })
    }

    /// How many times as long, or as much, `other` takes.
    fn ratio(&self, other: &Row, of: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
        Some(of(other)? / of(self)?)
    }
}

/// All rows of a run of the benchmark.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) origin: Origin,
    pub(super) megabytes: f64,
    pub(super) rounds: u32,
    pub(super) rows: Vec<Row>,
}

const HEADS: [&str; 16] = [
    "system",
    "codec",
    "link",
    "peers",
    "s",
    "least s",
    "bound s",
    "encode s",
    "MB/peer",
    "WAN MB/site",
    "bound MB",
    "CPU s",
    "RSS MB",
    "roots",
    "s / gradmesh",
    "CPU / gradmesh",
];
/// Of these columns, from the left, that hold words.
const NAMES: usize = 3;

impl Report {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "benchmark": "exchange",
            "version": VERSION,
            "machine": self.origin.to_json(),
            "config": { "megabytes": self.megabytes, "rounds": self.rounds },
            "results": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
        })
    }

    pub(super) fn to_text(&self) -> String {
        let or_unknown =
            |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
        let origin = &self.origin;
        let cores = origin.cores.map(|cores| cores.to_string());
        let mut text = format!(
            "exchange: {} MB of f32 per peer, {} rounds each, systems in turn\n\
             machine: {}, cores: {}\ncommit: {}, date: {}\n\
             s: median, from the last update ready to the last peer done, encoding apart; CPU: of all peers in a round; \
             MB/peer: received; WAN MB/site: received from other sites, of the site with the most\n\n{}",
            self.megabytes,
            self.rounds,
            or_unknown(&origin.cpu),
            or_unknown(&cores),
            or_unknown(&origin.commit),
            or_unknown(&origin.date),
            table(NAMES, &HEADS, &self.cells()),
        );
        for (row, why) in self.missing() {
            text.push_str(&format!("\n{row}: {why}\n"));
        }
        text
    }

    pub(super) fn to_html(&self) -> String {
        let mut page = Page::new("Exchange", &self.origin);
        page.paragraph(&format!(
            "One round of averaging {} MB of f32 per peer, {} rounds each, systems in turn. Time from the last update \
             ready to the last peer done; for gradmesh with encryption, decision and comparison of state roots, without \
             encoding. Bars are medians, dots single rounds, black lines the bound from bytes and rate.",
            self.megabytes, self.rounds
        ));
        for (link, peers) in self.places() {
            let here = || {
                self.rows
                    .iter()
                    .filter(|row| row.link == *link && row.peers == peers)
            };
            page.heading(&format!("{peers} peers, {link}"));
            let bar = |row: &Row, of: fn(&Sample) -> f64, bound| Bar {
                label: row.name(),
                kind: row.system.name().to_owned(),
                samples: row.samples.iter().map(of).collect(),
                bound,
            };
            let seconds = here().map(|row| bar(row, |sample| sample.seconds, row.bound_s()));
            let cpu = here().map(|row| bar(row, |sample| sample.cpu_s, None));
            for (axis, bars) in [
                ("seconds per round", seconds.collect()),
                ("processor seconds per round, all peers", cpu.collect()),
            ] {
                let bars = Bars {
                    axis: axis.to_owned(),
                    scale: Scale::Linear,
                    bars,
                };
                page.figure(&bars.to_svg(), "");
            }
        }
        let series = self.growth();
        if !series.is_empty() {
            let lines = Lines {
                x_axis: "peers".to_owned(),
                y_axis: "bytes received per peer and round".to_owned(),
                x_scale: Scale::Linear,
                y_scale: Scale::Log,
                series,
            };
            page.heading("Growth with the number of peers");
            page.figure(&lines.to_svg(), "bytes received per peer and round");
        }
        page.heading("Figures");
        page.table(NAMES, &HEADS, &self.cells());
        for (row, why) in self.missing() {
            page.paragraph(&format!("{row}: {why}"));
        }
        page.into_html()
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let number = |value: Option<f64>, decimals: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
        };
        let line = |row: &Row| {
            let seconds = |row: &Row| row.median(|sample| sample.seconds);
            let cpu = |row: &Row| row.mean(|sample| sample.cpu_s);
            let ours = self.ours_beside(row).filter(|ours| *ours != row);
            let least = row
                .samples
                .iter()
                .map(|sample| sample.seconds)
                .min_by(f64::total_cmp);
            let wan = row.wan_bytes();
            let most_wan = wan
                .iter()
                .max_by(|(_, a, _), (_, b, _)| a.partial_cmp(b).unwrap_or(Ordering::Equal));
            let roots = row
                .roots_equal()
                .map(|equal| if equal { "equal" } else { "differ" });
            vec![
                row.name(),
                row.codec.to_string(),
                row.link.to_string(),
                row.peers.to_string(),
                number(seconds(row), 3),
                number(least, 3),
                number(row.bound_s(), 3),
                number(row.phase(|phases| phases.encode), 3),
                number(row.mean(|sample| sample.bytes_per_peer / 1e6), 2),
                number(
                    most_wan.and_then(|(_, received, _)| received.map(|bytes| bytes / 1e6)),
                    2,
                ),
                number(most_wan.map(|(_, _, bound)| bound / 1e6), 2),
                number(cpu(row), 2),
                number(row.rss_bytes.map(|bytes| bytes as f64 / 1e6), 0),
                roots.unwrap_or("-").to_owned(),
                number(ours.and_then(|ours| ours.ratio(row, seconds)), 2),
                number(ours.and_then(|ours| ours.ratio(row, cpu)), 2),
            ]
        };
        self.rows.iter().map(line).collect()
    }

    fn missing(&self) -> impl Iterator<Item = (String, &str)> {
        self.rows.iter().filter_map(|row| {
            let name = format!("{}, {} peers, {}", row.name(), row.peers, row.link);
            Some((name, row.missing.as_deref()?))
        })
    }

    /// The first row of gradmesh in the same place, which others are compared with.
    fn ours_beside(&self, row: &Row) -> Option<&Row> {
        let here = |other: &&Row| other.link == row.link && other.peers == row.peers;
        self.rows
            .iter()
            .filter(here)
            .find(|other| other.system == System::Gradmesh)
    }

    /// Links and numbers of peers, each pair once, in order of appearance.
    fn places(&self) -> Vec<(&Link, u32)> {
        let mut places = Vec::new();
        for row in &self.rows {
            if !places.contains(&(&row.link, row.peers)) {
                places.push((&row.link, row.peers));
            }
        }
        places
    }

    /// Bytes over peers, of the cases that were measured with more than one number of peers.
    fn growth(&self) -> Vec<Series> {
        let mut series: Vec<Series> = Vec::new();
        for row in &self.rows {
            let Some(bytes) = row.mean(|sample| sample.bytes_per_peer) else {
                continue;
            };
            let name = format!("{}, {}", row.name(), row.link);
            let point = (f64::from(row.peers), bytes);
            match series.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => series.push(Series {
                    name,
                    points: vec![point],
                }),
            }
        }
        series.retain(|series| series.points.len() > 1);
        series
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::Rival;
    use super::*;

    fn row(system: System, seconds: &[f64]) -> Row {
        let samples = seconds.iter().map(|&seconds| Sample {
            seconds,
            cpu_s: 2.0 * seconds,
            bytes_per_peer: 5e7,
            wan_bytes: Vec::new(),
            behind_nat: 1,
            capacity_mbit: vec![100, 20],
            roots_equal: system == System::Gradmesh,
            rss_bytes: 1,
            phases: (system == System::Gradmesh).then_some(Phases {
                encode: 0.5,
                exchange: 0.25,
                decide: 0.0,
                apply: 0.0,
            }),
        });
        Row {
            system,
            plan: Plan::Auto,
            codec: "dense-f32".parse().unwrap(),
            peers: 2,
            link: "veth:100mbit".parse().unwrap(),
            sites: Vec::new(),
            parameters: 12_500_000,
            samples: samples.collect(),
            rss_bytes: Some(1),
            missing: seconds.is_empty().then(|| "no <luck>".to_owned()),
        }
    }

    fn report() -> Report {
        Report {
            origin: Origin::here_and_now(),
            megabytes: 50.0,
            rounds: 3,
            rows: vec![
                row(System::Gradmesh, &[4.2, 4.1, 4.4]),
                row(System::Rival(Rival::Hivemind), &[8.4, 8.4]),
                row(System::Rival(Rival::Gloo), &[]),
            ],
        }
    }

    #[test]
    fn the_json_has_raw_samples_bounds_and_what_is_missing() {
        let json = report().to_json();
        let [ours, hivemind, gloo] = [0, 1, 2].map(|row| &json["results"][row]);
        assert_eq!(ours["seconds"], json!([4.2, 4.1, 4.4]));
        assert_eq!(ours["bound_s"], 4.0);
        assert_eq!(ours["behind_nat"], 1);
        assert_eq!(ours["capacity_mbit"], json!([100, 20]));
        assert_eq!(hivemind["behind_nat"], Value::Null);
        assert_eq!(ours["phase_seconds"]["encode"], json!([0.5, 0.5, 0.5]));
        assert_eq!(hivemind["roots_equal"], false);
        assert_eq!(hivemind["plan"], Value::Null);
        assert_eq!(gloo["missing"], "no <luck>");
        assert_eq!(gloo["cpu_s"], Value::Null);
        assert_eq!(json["version"], VERSION);
    }

    #[test]
    fn growth_of_memory_is_told_from_a_cache_that_fills() {
        let mut row = row(System::Gradmesh, &[1.0; 16]);
        let mut grow = |held: fn(u64) -> u64| {
            for (round, sample) in (0..).zip(&mut row.samples) {
                sample.rss_bytes = held(round);
            }
            row.rss_growth_bytes()
        };
        assert_eq!(grow(|round| 100 + 3 * round), Some(3.0));
        assert_eq!(grow(|round| 10 * round.min(8)), Some(0.0));
        row.samples.truncate(7);
        assert_eq!(row.rss_growth_bytes(), None);
    }

    #[test]
    fn others_are_compared_with_gradmesh_of_the_same_place() {
        let text = report().to_text();
        let hivemind = text
            .lines()
            .find(|line| line.starts_with("hivemind"))
            .unwrap();
        assert!(hivemind.ends_with("2.00            1.98"), "{hivemind}");
        assert!(
            text.ends_with("gloo, 2 peers, veth:100mbit: no <luck>\n"),
            "{text}"
        );
    }

    #[test]
    fn what_enters_a_site_stands_beside_its_bound() {
        let site = |name: &str| Site {
            name: name.to_owned(),
            peers: 3,
        };
        let mut row = row(System::Gradmesh, &[4.0, 4.0]);
        row.plan = Plan::Hier;
        row.sites = vec![site("a"), site("b")];
        row.samples[0].wan_bytes = vec![60_000_000, 52_000_000];
        row.samples[1].wan_bytes = vec![50_000_000, 52_000_000];
        assert_eq!(
            row.to_json()["wan_bytes_per_site"],
            json!([
                {"site": "a", "peers": 3, "received": 55e6, "bound": 50e6},
                {"site": "b", "peers": 3, "received": 52e6, "bound": 50e6},
            ])
        );
        let report = Report {
            rows: vec![row],
            ..report()
        };
        assert_eq!(report.cells()[0][9..11], ["55.00", "50.00"]);
    }

    #[test]
    fn the_page_shows_every_row() {
        let html = report().to_html();
        assert_eq!(html.matches("<svg").count(), 2);
        assert!(html.contains("gloo, 2 peers, veth:100mbit: no &lt;luck&gt;"));
    }
}
