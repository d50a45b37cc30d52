//! Compute utilisation at the sizes of a large model: the bytes are real, computing is a wait.
//!
//! Real daemons exchange updates with as many bytes as those of a model with P parameters, over an emulated link for each peer.
//! A model of this size does not fit on this machine eight times, so each daemon holds one whose dense int8 update has the
//! bytes of the sparse update of P parameters: a byte for each of its elements. What encoding and applying P parameters would
//! cost on one core of this machine is measured apart ([`super::cost`]) and added to a second figure.
//!
//! All peers and the network share the cores of this machine, which several machines would not. *Dilation* by N tells what comes
//! of that (Gupta et al., "To Infinity and Beyond: Time-Warped Network Emulation", NSDI 2006): lines are N times slower,
//! latencies and computing N times longer, and the times that are told are divided by N. So the cores are N times as fast for all
//! else. Clocks of daemons are not stretched: heartbeats and repeated headers take N times their share of the lines.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cost::Cost;
use crate::harness::daemon::{Seconds, Status};
use crate::harness::link::Wide;
use crate::harness::mesh::Mesh;
use crate::harness::network::Network;
use crate::harness::synthetic::Run;
use crate::harness::{CodecName, Link, Plan};

/// Beyond the pause: the longest that an exchange may take.
const ROUND_PATIENCE: Duration = Duration::from_secs(900);
/// Elements of a tensor, all but the last.
const TENSOR_ELEMENTS: u64 = 1 << 22;

/// What is measured once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Case {
    pub(super) peers: u32,
    pub(super) mbit: u64,
    pub(super) round_trip_ms: u32,
    /// Largest packet of the lines, in bytes.
    pub(super) mtu: u32,
    /// Of a round, emulated by a wait.
    pub(super) compute_s: f64,
    /// See the module documentation; 1 is none. The other fields are those of what is emulated.
    pub(super) dilation: u32,
    pub(super) overlap: bool,
    /// Rounds that count, after one that does not.
    pub(super) rounds: u32,
}

/// What a case gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    pub(super) case: Case,
    /// Of one update.
    pub(super) update_bytes: f64,
    /// From when the last peer has applied the round before until the last has applied this one.
    pub(super) periods_s: Vec<f64>,
    /// Computing in each of them, mean over the peers.
    pub(super) computed_s: Vec<f64>,
    /// From the slowest peer's update until the last has applied the round.
    pub(super) exchange_s: Vec<f64>,
    /// Received by a peer in a round, headers included.
    pub(super) bytes_per_peer: f64,
    /// Of all peers in a round, not divided by the dilation.
    pub(super) cpu_s: f64,
}

impl Case {
    /// Runs it. `update_bytes`: of one update; `int8`: what a dense int8 update costs.
    pub(super) async fn measure(
        &self,
        update_bytes: f64,
        int8: &Cost,
        gradmesh: &Path,
        say: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Measured> {
        let home = TempDir::with_prefix("gradmesh-bench-")?;
        let dilation = self.dilation;
        ensure!(
            self.mbit.is_multiple_of(dilation.into()),
            "{} Mbit/s dilated by {dilation} are no whole Mbit/s",
            self.mbit
        );
        let link = Link::Wan(Wide::Uniform {
            mbit: self.mbit / u64::from(dilation),
            round_trip_ms: self.round_trip_ms * dilation,
            sites: None,
            mtu: Some(self.mtu),
        });
        let network = Network::make(&link, self.peers).await?;
        let mut left = (update_bytes * 8.0 / int8.bits) as u64;
        let mut elements = Vec::new();
        while left > 0 {
            elements.push(left.min(TENSOR_ELEMENTS));
            left -= left.min(TENSOR_ELEMENTS);
        }
        let run = Run {
            elements,
            codec: CodecName::DENSE_INT8,
            plan: Plan::Gather,
            peers: self.peers,
            pause: Duration::from_secs_f64(self.compute_s * f64::from(dilation)),
            overlap: self.overlap,
        };
        let mut mesh = Mesh::start_synthetic(&run, gradmesh, &network.places, home.path()).await?;
        let patience = ROUND_PATIENCE + run.pause;
        // Its first update waits for all to be there.
        let mut before = None;
        let mut statuses = Vec::new();
        for round in 1..=u64::from(self.rounds) + 1 {
            let what = format!("round {round} to be applied");
            let applied =
                |statuses: &[Status]| statuses.iter().all(|status| status.applied >= Some(round));
            statuses = mesh.wait(&what, patience, applied).await?;
            say(&format!("round {round} of {} is applied", self.rounds + 1));
            before = before.or_else(|| Some(mesh.count()));
        }
        let (before, after) = (before.context("no round")?, mesh.count());
        let rounds = f64::from(self.rounds);
        let mut measured = Measured {
            case: self.clone(),
            update_bytes,
            periods_s: Vec::new(),
            computed_s: Vec::new(),
            exchange_s: Vec::new(),
            bytes_per_peer: (after.received_bytes - before.received_bytes)
                / rounds
                / f64::from(self.peers),
            cpu_s: (after.cpu_s - before.cpu_s) / rounds,
        };
        let rounds = 1..=u64::from(self.rounds) + 1;
        let seconds: anyhow::Result<Vec<_>> = rounds.map(|r| seconds_of(&statuses, r)).collect();
        measured.note(&seconds?);
        Ok(measured)
    }
}

/// Of every daemon, for a round that counts all of them.
fn seconds_of(statuses: &[Status], round: u64) -> anyhow::Result<Vec<Seconds>> {
    let of_daemon = |status: &Status| {
        let found = status.round(round)?;
        (found.members as usize == statuses.len()).then_some(found.seconds?)
    };
    let seconds: Option<Vec<Seconds>> = statuses.iter().map(of_daemon).collect();
    let seconds = seconds.with_context(|| {
        format!("round {round} was decided without some of the peers: is the machine busy?")
    })?;
    ensure!(!seconds.is_empty(), "no daemon");
    Ok(seconds)
}

impl Measured {
    /// Takes in what the daemons say of each round; of the first one, only when it ended.
    fn note(&mut self, rounds: &[Vec<Seconds>]) {
        let dilated = f64::from(self.case.dilation);
        let most = |seconds: &[Seconds], of: fn(&Seconds) -> f64| {
            seconds.iter().map(of).fold(f64::MIN, f64::max)
        };
        for pair in rounds.windows(2) {
            let [before, round] = pair else { continue };
            let applied = most(round, Seconds::applied_at);
            let period_s = applied - most(before, Seconds::applied_at);
            let exchange_s = applied - most(round, |s| s.committed_at);
            let trained: f64 = round.iter().map(|s| s.train).sum();
            self.periods_s.push(period_s / dilated);
            self.computed_s.push(trained / round.len() as f64 / dilated);
            self.exchange_s.push(exchange_s / dilated);
        }
    }

    /// Share of the time in which a peer computes.
    pub(super) fn utilisation(&self) -> f64 {
        let computed: f64 = self.computed_s.iter().sum();
        computed / self.periods_s.iter().sum::<f64>()
    }

    /// The same with what encoding and applying `parameters` costs one core of this machine, of which nothing is hidden.
    pub(super) fn utilisation_with_codec(&self, cost: &Cost, parameters: f64) -> f64 {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let codec_s = parameters * (cost.encode_s + cost.apply_s);
        mean(&self.computed_s) / (mean(&self.periods_s) + codec_s)
    }

    /// What has to cross a peer's line in a round, over its rate.
    pub(super) fn bound_s(&self) -> f64 {
        let others = f64::from(self.case.peers - 1);
        others * self.update_bytes * 8.0 / (self.case.mbit as f64 * 1e6)
    }

    pub(super) fn exchange_mean_s(&self) -> f64 {
        self.exchange_s.iter().sum::<f64>() / self.exchange_s.len() as f64
    }

    pub(super) fn to_json(&self, cost: &Cost, parameters: f64) -> Value {
        let case = &self.case;
        json!({
            "peers": case.peers,
            "mbit": case.mbit,
            "round_trip_ms": case.round_trip_ms,
            "mtu": case.mtu,
            "compute_s": case.compute_s,
            "dilation": case.dilation,
            "overlap": case.overlap,
            "update_bytes": self.update_bytes,
            "periods_s": self.periods_s,
            "computed_s": self.computed_s,
            "exchange_s": self.exchange_s,
            "bound_s": self.bound_s(),
            "bytes_per_peer": self.bytes_per_peer,
            "cpu_s": self.cpu_s,
            "utilisation": self.utilisation(),
            "utilisation_with_codec": self.utilisation_with_codec(cost, parameters),
        })
    }
}

/// Utilisation for rounds of `compute_s` when an exchange takes `exchange_s`.
pub(super) fn predicted(compute_s: f64, exchange_s: f64, overlap: bool) -> f64 {
    if overlap {
        compute_s / compute_s.max(exchange_s)
    } else {
        compute_s / (compute_s + exchange_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(dilation: u32) -> Measured {
        Measured {
            case: Case {
                peers: 8,
                mbit: 100,
                round_trip_ms: 50,
                mtu: 1500,
                compute_s: 120.0,
                dilation,
                overlap: false,
                rounds: 2,
            },
            update_bytes: 12.5e6,
            periods_s: Vec::new(),
            computed_s: Vec::new(),
            exchange_s: Vec::new(),
            bytes_per_peer: 0.0,
            cpu_s: 0.0,
        }
    }

    #[test]
    fn a_round_is_from_the_last_to_apply_the_one_before_to_the_last_to_apply_it() {
        let seconds = |committed_at: f64, exchange: f64| Seconds {
            train: 120.0,
            encode: 1.0,
            exchange,
            decide: 1.0,
            apply: 1.0,
            hidden: 0.0,
            committed_at,
        };
        // The exchange of the first round takes long, and counts for nothing.
        let rounds = [
            vec![seconds(121.0, 60.0), seconds(122.0, 60.0)],
            vec![seconds(305.0, 10.0), seconds(306.0, 8.0)],
        ];
        let mut measured = measured(2);
        measured.note(&rounds);
        assert_eq!(measured.periods_s, [(317.0 - 184.0) / 2.0]);
        assert_eq!(measured.computed_s, [60.0]);
        assert_eq!(measured.exchange_s, [(317.0 - 306.0) / 2.0]);
    }

    #[test]
    fn utilisation_is_computing_over_everything() {
        let measured = Measured {
            periods_s: vec![130.0, 110.0],
            computed_s: vec![120.0, 90.0],
            exchange_s: vec![10.0, 8.0],
            ..measured(1)
        };
        assert_eq!(measured.utilisation(), 0.875);
        // 7 updates of a second each.
        assert_eq!(measured.bound_s(), 7.0);
        let cost = Cost {
            codec: CodecName::DENSE_F32,
            peers: 8,
            bits: 32.0,
            encode_s: 2e-9,
            apply_s: 3e-9,
        };
        assert_eq!(measured.utilisation_with_codec(&cost, 1e9), 105.0 / 125.0);
    }

    #[test]
    fn overlap_hides_an_exchange_that_is_shorter_than_computing() {
        assert_eq!(predicted(90.0, 10.0, false), 0.9);
        assert_eq!(predicted(90.0, 10.0, true), 1.0);
        assert_eq!(predicted(10.0, 40.0, true), 0.25);
    }
}
