//! Peers of another system, which average the same tensors when told.
//!
//! The scripts in `bench/python` say what is understood and answered.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::case::Rival;
use super::row::Sample;
use crate::harness::network::{Place, received};
use crate::harness::process::Process;

const SCRIPTS: [(&str, &str); 4] = [
    ("member.py", include_str!("../../python/member.py")),
    ("gloo.py", include_str!("../../python/gloo.py")),
    (GLOO, include_str!("../../python/gloo_allreduce.py")),
    (HIVEMIND, include_str!("../../python/hivemind_average.py")),
];
const GLOO: &str = "gloo_allreduce.py";
const HIVEMIND: &str = "hivemind_average.py";

/// The longest that starting, meeting or a round may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Running peers of one system.
pub(super) struct Group {
    members: Vec<(Process, Place)>,
    number: u64,
}

/// The first words of a script.
#[derive(Debug, Deserialize)]
struct Ready {
    /// Of gloo's first rank, before it is ready.
    port: Option<u16>,
    /// Of hivemind's peers.
    #[serde(default)]
    maddrs: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Prepared {
    prepared: u64,
}

/// Seconds of the monotonic clock.
#[derive(Debug, Deserialize)]
struct Averaged {
    started: f64,
    ended: f64,
}

#[derive(Debug, Deserialize)]
struct Root {
    root: String,
}

impl Group {
    /// Starts a peer at each place. `home`: an empty directory for what they write.
    pub(super) async fn start(
        rival: Rival,
        python: &Path,
        elements: &[u64],
        places: &[Place],
        home: &Path,
    ) -> anyhow::Result<Group> {
        for (name, text) in SCRIPTS {
            fs::write(home.join(name), text)?;
        }
        let script = match rival {
            Rival::Gloo => GLOO,
            Rival::Hivemind => HIVEMIND,
        };
        let elements: Vec<String> = elements.iter().map(u64::to_string).collect();
        let elements = elements.join(",");
        let spawn = |rank: usize, place: &Place, words: &[String]| {
            let name = format!("{} {rank}", rival.name());
            let mut command = place.command(python);
            command
                .arg(home.join(script))
                .args(["--rank", &rank.to_string()])
                .args(["--peers", &places.len().to_string()])
                .args(["--elements", &elements])
                .args(words);
            Process::start(&name, command, home.join(format!("{rank}.log")))
        };
        let [first, others @ ..] = places else {
            bail!("a group without peers");
        };
        let mut group = Group {
            members: Vec::new(),
            number: 0,
        };
        let words = |place: &Place, entry: Option<&Ready>| -> Vec<String> {
            match rival {
                Rival::Gloo => {
                    let port = entry.and_then(|ready| ready.port).unwrap_or(0).to_string();
                    let address = first.address.to_string();
                    let words = [
                        "--interface",
                        place.interface,
                        "--address",
                        &address,
                        "--port",
                        &port,
                    ];
                    words.map(str::to_owned).to_vec()
                }
                Rival::Hivemind => {
                    let (address, sockets) = (place.address.to_string(), home.to_string_lossy());
                    let words = ["--address", &address, "--sockets", &sockets].map(str::to_owned);
                    let entries = entry.into_iter().flat_map(|ready| &ready.maddrs);
                    let joins = entries.flat_map(|maddr| ["--join".to_owned(), maddr.clone()]);
                    words.into_iter().chain(joins).collect()
                }
            }
        };
        group
            .members
            .push((spawn(0, first, &words(first, None))?, first.clone()));
        let entry: Ready = group.members[0].0.answer(PATIENCE).await?;
        for (rank, place) in others.iter().enumerate() {
            let process = spawn(rank + 1, place, &words(place, Some(&entry)))?;
            group.members.push((process, place.clone()));
        }
        // gloo's first rank has said its port; that it is ready comes once all have met.
        let said = usize::from(rival == Rival::Hivemind);
        for (process, _) in group.members.iter_mut().skip(said) {
            let _: Ready = process.answer(PATIENCE).await?;
        }
        Ok(group)
    }

    /// One round: meet, average, compare. Only the averaging is measured.
    pub(super) async fn round(&mut self) -> anyhow::Result<Sample> {
        self.number += 1;
        let number = self.number;
        let prepared: Vec<Prepared> = self.ask(&format!("prepare {number}")).await?;
        if prepared.iter().any(|answer| answer.prepared != number) {
            bail!("the peers are not in round {number}: {prepared:?}");
        }
        let before = self.count();
        let averaged: Vec<Averaged> = self.ask("go").await?;
        let after = self.count();
        let roots: Vec<Root> = self.ask("root").await?;
        let started = averaged
            .iter()
            .map(|times| times.started)
            .fold(f64::MIN, f64::max);
        let ended = averaged
            .iter()
            .map(|times| times.ended)
            .fold(f64::MIN, f64::max);
        Ok(Sample {
            seconds: ended - started,
            cpu_s: after.0 - before.0,
            bytes_per_peer: (after.1 - before.1) / self.members.len() as f64,
            wan_bytes: Vec::new(),
            behind_nat: 0,
            capacity_mbit: Vec::new(),
            roots_equal: roots.iter().all(|root| root.root == roots[0].root),
            rss_bytes: self.most_of(Process::rss_bytes),
            phases: None,
        })
    }

    /// Of the peer that held most.
    pub(super) fn rss_bytes_max(&self) -> u64 {
        self.most_of(Process::rss_bytes_max)
    }

    fn most_of(&self, bytes: fn(&Process) -> u64) -> u64 {
        let of_members = self.members.iter().map(|(process, _)| bytes(process));
        of_members.max().unwrap_or(0)
    }

    /// Processor seconds and received bytes so far.
    fn count(&self) -> (f64, f64) {
        let cpu_s = self
            .members
            .iter()
            .map(|(process, _)| process.cpu_s())
            .sum();
        (
            cpu_s,
            received(
                self.members
                    .iter()
                    .map(|(process, place)| (place, process.id())),
            ),
        )
    }

    /// Tells all peers before it waits for any.
    async fn ask<T: DeserializeOwned>(&mut self, command: &str) -> anyhow::Result<Vec<T>> {
        for (process, _) in &mut self.members {
            process.tell(command).await?;
        }
        let mut answers = Vec::with_capacity(self.members.len());
        for (process, _) in &mut self.members {
            answers.push(process.answer(PATIENCE).await?);
        }
        Ok(answers)
    }
}
