//! The processes of a cluster: what they are told and say.
//!
//! Lines on standard input and output, answers in JSON; `task.rs` has the files.
//!
//! ```text
//! (start)        listens                              {"port": P}, null of a rank without a store
//! meet A:P       connects: own to the next member in the ring, DDP to the store of rank 0;
//!                then WARM_UP steps whose gradient nobody uses          {"ready": true}
//! go             trains; after each step              {"step", "loss", "compute_s", "ended_s"}
//! finish         member 0 leaves its parameters       {"hash": "..."}
//! ```
//!
//! Times begin when a member reads `go`; all are told at once. Evaluation comes after the last of them.

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Engine, Step};
use crate::harness::environment::{Library, python_with};
use crate::harness::network::{Place, received};
use crate::harness::process::Process;

/// The longest that a start or a step may take.
const PATIENCE: Duration = Duration::from_secs(600);

const DDP: &str = "ddp_train.py";
const SCRIPTS: [(&str, &str); 4] = [
    ("member.py", include_str!("../../../python/member.py")),
    ("gloo.py", include_str!("../../../python/gloo.py")),
    ("decoder.py", include_str!("../../../python/decoder.py")),
    (DDP, include_str!("../../../python/ddp_train.py")),
];

/// Where a member can be met.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listens {
    pub(super) port: Option<u16>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) ready: bool,
}

/// A step of one member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stepped {
    pub(super) step: u32,
    pub(super) loss: f64,
    pub(super) compute_s: f64,
    pub(super) ended_s: f64,
}

/// The end of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finished {
    /// Of its last parameters.
    pub(super) hash: String,
}

/// Counters at one moment.
pub(super) struct Count {
    pub(super) cpu_s: f64,
    pub(super) received_bytes: f64,
}

/// The members' processes, by rank.
pub(super) struct Group {
    members: Vec<(Process, Place)>,
}

impl Group {
    pub(super) async fn start(
        engine: Engine,
        places: &[Place],
        home: &Path,
    ) -> anyhow::Result<Group> {
        let program = match engine {
            Engine::Own => env::current_exe().context("where this executable lies")?,
            Engine::Ddp => {
                for (name, text) in SCRIPTS {
                    fs::write(home.join(name), text)?;
                }
                python_with(Library::Torch).await?
            }
        };
        let mut members = Vec::with_capacity(places.len());
        for (rank, place) in places.iter().enumerate() {
            let mut command = place.command(&program);
            match engine {
                Engine::Own => command.arg("cluster-member"),
                Engine::Ddp => command.arg(home.join(DDP)),
            };
            command.arg(home).arg(rank.to_string());
            match engine {
                Engine::Own => command.args(["--listen", &place.address.to_string()]),
                Engine::Ddp => command
                    .args(["--address", &place.address.to_string()])
                    .args(["--interface", place.interface]),
            };
            let name = format!("{} {rank}", engine.name());
            let log = home.join(format!("member-{rank}.log"));
            members.push((Process::start(&name, command, log)?, place.clone()));
        }
        Ok(Group { members })
    }

    /// Has everyone connect and warm up.
    pub(super) async fn meet(&mut self, engine: Engine) -> anyhow::Result<()> {
        let listens: Vec<Listens> = self.answers().await?;
        let count = self.members.len();
        let address = |rank: usize| {
            let port = listens[rank].port;
            let port = port.with_context(|| format!("{} {rank} does not listen", engine.name()))?;
            anyhow::Ok(format!("{}:{port}", self.members[rank].1.address))
        };
        let whom = (0..count).map(|rank| match engine {
            Engine::Own => address((rank + 1) % count),
            Engine::Ddp => address(0),
        });
        let whom: Vec<String> = whom.collect::<Result<_, _>>()?;
        for ((process, _), whom) in self.members.iter_mut().zip(whom) {
            process.tell(&format!("meet {whom}")).await?;
        }
        let ready: Vec<Ready> = self.answers().await?;
        ensure!(ready.iter().all(|member| member.ready), "not all are ready");
        Ok(())
    }

    pub(super) async fn steps(
        &mut self,
        steps: u32,
        watch: &mut dyn FnMut(&Step),
    ) -> anyhow::Result<Vec<Step>> {
        self.tell_all("go").await?;
        let mut done: Vec<Step> = Vec::new();
        for step in 0..steps {
            let stepped: Vec<Stepped> = self.answers().await?;
            ensure!(
                stepped.iter().all(|member| member.step == step),
                "not all members are at step {step}: {stepped:?}"
            );
            let step = whole_step(&stepped, done.last());
            watch(&step);
            done.push(step);
        }
        Ok(done)
    }

    pub(super) async fn finish(&mut self) -> anyhow::Result<()> {
        self.tell_all("finish").await?;
        let finished: Vec<Finished> = self.answers().await?;
        let equal = finished.iter().all(|member| *member == finished[0]);
        ensure!(
            equal,
            "the members' last parameters differ, which must never be: {finished:?}"
        );
        Ok(())
    }

    pub(super) fn count(&self) -> Count {
        let members = || self.members.iter();
        Count {
            cpu_s: members().map(|(process, _)| process.cpu_s()).sum(),
            received_bytes: received(members().map(|(process, place)| (place, process.id()))),
        }
    }

    /// Of the member that held most.
    pub(super) fn rss_bytes_max(&self) -> u64 {
        let of_members = self.members.iter();
        let of_members = of_members.map(|(process, _)| process.rss_bytes_max());
        of_members.max().unwrap_or(0)
    }

    async fn tell_all(&mut self, command: &str) -> anyhow::Result<()> {
        for (process, _) in &mut self.members {
            process.tell(command).await?;
        }
        Ok(())
    }

    /// One answer of each, in the order of ranks.
    async fn answers<T: DeserializeOwned>(&mut self) -> anyhow::Result<Vec<T>> {
        let mut answers = Vec::with_capacity(self.members.len());
        for rank in 0..self.members.len() {
            match self.members[rank].0.answer(PATIENCE).await {
                Ok(answer) => answers.push(answer),
                Err(error) => return Err(self.failure(rank, &error)),
            }
        }
        Ok(answers)
    }

    /// One that fails takes others with it, so that everyone who has ended says why.
    fn failure(&mut self, rank: usize, error: &anyhow::Error) -> anyhow::Error {
        let others = self.members.iter_mut().enumerate();
        let others = others.filter(|(other, _)| *other != rank);
        let ended = others.filter_map(|(_, (process, _))| process.check_alive().err());
        let also: String = ended.map(|other| format!("\nand {other:#}")).collect();
        anyhow::anyhow!("{error:#}{also}")
    }
}

/// What the members' reports of one step say together.
fn whole_step(members: &[Stepped], before: Option<&Step>) -> Step {
    let most = |of: fn(&Stepped) -> f64| members.iter().map(of).fold(0.0, f64::max);
    let (ended_s, compute_s) = (most(|m| m.ended_s), most(|m| m.compute_s));
    let began_s = before.map_or(0.0, |step| step.ended_s);
    Step {
        step: members.first().map_or(0, |member| member.step),
        ended_s,
        compute_s,
        // Not negative: the slowest member need not be the one that the others wait for.
        transfer_s: (ended_s - began_s - compute_s).max(0.0),
        loss: members.iter().map(|member| member.loss).sum::<f64>() / members.len() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ends_with_its_last_member_and_waiting_is_transfer() {
        let stepped = |ended_s, compute_s, loss| Stepped {
            step: 7,
            loss,
            compute_s,
            ended_s,
        };
        let first = whole_step(&[stepped(1.0, 0.25, 4.0), stepped(1.5, 0.5, 2.0)], None);
        assert_eq!((first.step, first.ended_s, first.compute_s), (7, 1.5, 0.5));
        assert_eq!((first.transfer_s, first.loss), (1.0, 3.0));
        let second = whole_step(&[stepped(2.0, 0.25, 1.0)], Some(&first));
        assert_eq!((second.ended_s, second.transfer_s), (2.0, 0.25));
    }
}
