//! Daemons that exchange the updates of a trainer that costs next to nothing, round after round.
//!
//! A round is measured between two looks at the daemons: while all of them train, which is to sleep, and once all of
//! them have applied it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::row::{Phases, Sample};
use crate::harness::daemon::{Seconds, Status};
use crate::harness::mesh::{Count, Mesh, START_PATIENCE};
use crate::harness::network::Place;
use crate::harness::process::Process;
use crate::harness::{CodecName, Plan};

/// The longest that a round may take.
const ROUND_PATIENCE: Duration = Duration::from_secs(600);
/// Tiles of a shard: the default of run files, unless that makes more shards than a run may have.
const TILES_PER_SHARD: u64 = 64;
const SHARDS_MAX: u64 = 4096;
const TILE_ELEMENTS: u64 = 4096;
/// More than are measured, so that no epoch ends and no checkpoint is written meanwhile.
const ROUNDS: u32 = 1_000_000;
/// How long a peer may be behind the others before a round goes on without it: what is measured are whole rounds.
const DEADLINE_MS: u32 = 60_000;
/// Of the run's data, which nobody reads; a run has to have some.
const TEXT: &str = include_str!("../../../LICENSE-APACHE");

/// What a mesh exchanges, and how.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    /// Of each tensor.
    pub(super) elements: Vec<u64>,
    pub(super) codec: CodecName,
    pub(super) plan: Plan,
    pub(super) peers: u32,
    /// How long the daemons sleep between two exchanges.
    pub(super) pause: Duration,
}

impl Run {
    /// The run file, which names `config.json` and the directory `text` beside it.
    fn to_toml(&self) -> String {
        let tiles: u64 = self
            .elements
            .iter()
            .map(|count| count.div_ceil(TILE_ELEMENTS))
            .sum();
        let tiles_per_shard = TILES_PER_SHARD.max(tiles.div_ceil(SHARDS_MAX));
        let Run {
            codec, plan, peers, ..
        } = self;
        format!(
            "name = \"exchange\"\n\
             [model]\nconfig = \"config.json\"\n\
             [data]\ndir = \"text\"\nsequence_tokens = 32\n\
             [inner]\nbatch_sequences = 1\n\
             [outer]\nrule = \"plain\"\nrate = 1.0\n\
             [codec]\ntiles_per_shard = {tiles_per_shard}\n{}\
             {}\
             [schedule]\nsteps_per_round = 1\nrounds = {ROUNDS}\nrounds_per_epoch = {ROUNDS}\n\
             [trust]\npeers_min = {peers}\n\
             [timing]\ndeadline_floor_ms = {DEADLINE_MS}\n",
            codec.to_toml(),
            plan.to_toml(),
        )
    }

    fn model(&self) -> String {
        let step_ms = u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX);
        json!({"model_type": "gradmesh-synthetic", "elements": self.elements, "step_ms": step_ms})
            .to_string()
    }
}

impl Mesh {
    /// Writes the run below `home` and starts a daemon at each place; waits until all train.
    pub(super) async fn start(
        run: &Run,
        gradmesh: &Path,
        places: &[Place],
        home: &Path,
    ) -> anyhow::Result<Mesh> {
        let run_file = home.join("run.toml");
        fs::create_dir(home.join("text"))?;
        fs::write(home.join("text/licence.txt"), TEXT)?;
        fs::write(home.join("config.json"), run.model())?;
        fs::write(&run_file, run.to_toml())?;
        let mut mesh = Mesh::launch(&run_file, gradmesh, places, home).await?;
        mesh.wait_training(1).await?;
        Ok(mesh)
    }

    /// Waits until every daemon trains for the same round, not before round `from`; which it is.
    pub(super) async fn wait_training(&mut self, from: u64) -> anyhow::Result<u64> {
        let what = format!("the training of round {from}");
        let together = |statuses: &[Status]| {
            let round = statuses.first().map_or(0, |status| status.round);
            round >= from && statuses.iter().all(|status| trains(status, round))
        };
        let statuses = self.wait(&what, START_PATIENCE, together).await?;
        Ok(statuses.first().map_or(from, |status| status.round))
    }

    /// Whether every daemon still trains for `round`.
    pub(super) async fn is_training(&mut self, round: u64) -> anyhow::Result<bool> {
        Ok(self
            .look()
            .await?
            .iter()
            .all(|status| trains(status, round)))
    }

    /// Waits until every daemon has applied `round`; what it took since `before`. `None`: the round was decided without
    /// some of them.
    pub(super) async fn wait_applied(
        &mut self,
        round: u64,
        before: Count,
    ) -> anyhow::Result<Option<Sample>> {
        let what = format!("round {round} to be applied");
        let done =
            |statuses: &[Status]| statuses.iter().all(|status| status.applied >= Some(round));
        let statuses = self.wait(&what, ROUND_PATIENCE, done).await?;
        let after = self.count();
        let peers = self.peers();
        let rounds: Option<Vec<_>> = statuses.iter().map(|status| status.round(round)).collect();
        let rounds = rounds.context("a daemon has forgotten the round")?;
        let seconds: Option<Vec<_>> = rounds.iter().map(|round| round.seconds).collect();
        let Some(seconds) = seconds else {
            return Ok(None);
        };
        let committed = seconds
            .iter()
            .map(|s| s.committed_at)
            .fold(f64::MIN, f64::max);
        let applied = seconds
            .iter()
            .map(Seconds::applied_at)
            .fold(f64::MIN, f64::max);
        let most = |of: fn(&Seconds) -> f64| seconds.iter().map(of).fold(0.0, f64::max);
        let all_count = rounds.iter().all(|round| round.members as usize == peers);
        Ok(all_count.then(|| Sample {
            seconds: applied - committed,
            cpu_s: after.cpu_s - before.cpu_s,
            rss_bytes: self.most_of(Process::rss_bytes),
            bytes_per_peer: (after.received_bytes - before.received_bytes) / peers as f64,
            wan_bytes: Vec::new(),
            behind_nat: statuses.iter().filter(|status| status.behind_nat).count(),
            capacity_mbit: statuses.iter().filter_map(Status::capacity_mbit).collect(),
            roots_equal: rounds
                .iter()
                .all(|r| r.root.is_some() && r.root == rounds[0].root),
            phases: Some(Phases {
                encode: most(|s| s.encode),
                exchange: most(|s| s.exchange),
                decide: most(|s| s.decide),
                apply: most(|s| s.apply),
            }),
        }))
    }

    /// Of the daemon that held most.
    pub(super) fn rss_bytes_max(&self) -> u64 {
        self.most_of(Process::rss_bytes_max)
    }
}

fn trains(status: &Status, round: u64) -> bool {
    status.phase == "training" && status.round == round
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_file_asks_for_codec_plan_and_few_enough_shards() {
        let run = Run {
            elements: vec![1 << 31],
            codec: "sparse-2bit".parse().unwrap(),
            plan: Plan::Reduce,
            peers: 4,
            pause: Duration::from_millis(250),
        };
        let text = run.to_toml();
        for part in [
            "value_bits = 2\n",
            "[exchange]\nplan = \"reduce\"\n",
            "tiles_per_shard = 128\n",
            "peers_min = 4\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(run.model().contains("\"step_ms\":250"));
    }
}
