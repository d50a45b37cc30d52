//! Daemons that exchange the updates of a trainer that costs next to nothing, round after round.
//!
//! A round is measured between two looks at the daemons: while all of them train, which is to sleep, and once all of
//! them have applied it.

use std::time::Duration;

use anyhow::Context;

use super::row::{Phases, Sample};
use crate::harness::daemon::{Seconds, Status};
use crate::harness::mesh::{Count, Mesh, START_PATIENCE};
use crate::harness::process::Process;

/// The longest that a round may take.
const ROUND_PATIENCE: Duration = Duration::from_secs(600);

impl Mesh {
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
