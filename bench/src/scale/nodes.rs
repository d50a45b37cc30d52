//! A round by the nodes themselves, in the simulator.
//!
//! The nodes, their messages, votes and frames are real; the model is small, and each byte of a frame counts for so many that
//! updates have the sizes of the large model's ([`gradmesh_sim::options::Large`]). Rounds are looked at once everybody is in.

use anyhow::{Context, ensure};
use gradmesh_protocol::decision::JOINS_MAX;
use gradmesh_protocol::manifest::PEERS_MAX;
use gradmesh_sim::{Verbosity, Verdict, run};

use super::case::Case;
use super::figures::{Figures, Source};

/// Rounds that are looked at.
const ROUNDS: usize = 2;
/// Rounds before them in which everybody is in.
const WARM_UP: usize = 1;
/// Training of a round in the simulator: long enough that whoever is done first does not begin before the last one.
const TRAIN_US: u64 = 1_000_000;
/// Of every deadline: longer than any exchange that is worth looking at.
const NEVER_MS: u32 = 24 * 3600 * 1000;

/// Whether there is a run of nodes for `case`.
pub(super) fn is_possible(case: &Case) -> anyhow::Result<bool> {
    Ok(case.peers <= PEERS_MAX as usize && case.large()?.is_some())
}

/// Runs `case`.
///
/// # Errors
/// A run that is not possible, or did not converge: something is wrong with the nodes or with the case.
pub(super) fn simulate(case: &Case) -> anyhow::Result<Figures> {
    let large = case.large()?.context("the model has other shards")?;
    let mut options = case.options();
    // A decision takes in some, the founding one among them.
    let founding = (case.peers - 1).div_ceil(JOINS_MAX);
    let rounds = founding + WARM_UP + ROUNDS;
    options.planned_scale = (large.frame_scale_milli.update / 1000).max(1);
    options.large = Some(large);
    for peer in &mut options.peers {
        peer.step_us = TRAIN_US;
    }
    let manifest = &mut options.manifest;
    manifest.inner.batch_sequences = 1;
    manifest.data.sequence_tokens = 2;
    manifest.schedule.steps_per_round = 1;
    manifest.schedule.rounds = rounds as u64;
    // No epoch ends.
    manifest.schedule.rounds_per_epoch = 1 << 20;
    manifest.trust.absent_rounds_max = 1000;
    manifest.timing.deadline_floor_ms = NEVER_MS;
    manifest.timing.deadline_cap_ms = NEVER_MS;
    manifest.timing.propose_ms = NEVER_MS;
    manifest.timing.vote_ms = NEVER_MS;
    let faults = manifest.validate();
    ensure!(faults.is_empty(), "the manifest of the run: {faults:?}");
    let outcome = run(&options, Verbosity::Hash);
    ensure!(
        outcome.verdict == Verdict::Converged,
        "the nodes did not get through: {:?}",
        outcome.verdict
    );
    let [.., first, _, last] = outcome.marks[..] else {
        anyhow::bail!("only {} rounds were decided", outcome.marks.len());
    };
    let per_peer = (ROUNDS * case.peers) as f64;
    let layout = outcome.layouts.last().context("no round was laid out")?;
    let round_s = (last.at.0 - first.at.0) as f64 / 1e6 / ROUNDS as f64;
    Ok(Figures {
        source: Source::Nodes,
        plan: layout.plan(),
        exchange_s: round_s - TRAIN_US as f64 / 1e6,
        bytes_per_peer: Case::on_the_line((last.bytes - first.bytes) as f64 / per_peer),
        messages_per_peer: (last.messages - first.messages) as f64 / per_peer,
        decision_messages_per_peer: (last.agreement_messages - first.agreement_messages) as f64
            / per_peer,
    })
}

#[cfg(test)]
mod tests {
    use super::super::case::{Setting, tests_setting};
    use super::super::flow;
    use super::*;
    use gradmesh_protocol::manifest::PlanKind;

    #[test]
    fn nodes_and_flows_agree_on_a_round_of_four_and_of_eight() {
        for (peers, sites, plan) in [
            (4, 4, PlanKind::Gather),
            (8, 8, PlanKind::Reduce),
            (8, 2, PlanKind::Hier),
        ] {
            let case = tests_setting().case(peers, sites, plan).unwrap();
            let (nodes, flow) = (simulate(&case).unwrap(), flow::predict(&case));
            println!("{nodes:?}\n{flow:?}");
            let ratio = |of: fn(&Figures) -> f64| of(&flow) / of(&nodes);
            // Flows leave out that lines wait for one another, most of all under `reduce`, where whoever is first to
            // announce a result is asked for it by all: there nodes take up to half as long again.
            assert!((0.6..1.1).contains(&ratio(|f| f.exchange_s)), "{plan:?}");
            assert!(
                (0.95..1.05).contains(&ratio(|f| f.bytes_per_peer)),
                "{plan:?}"
            );
        }
    }

    #[test]
    fn a_site_whose_members_hear_of_a_frame_one_by_one_decides_too() {
        // Over 20 Mbit/s an announcement comes to the members of a site later after one another than a question takes among them.
        let setting = Setting {
            parameters: 4_000_000,
            codec: "dense-int8".parse().unwrap(),
            bytes_per_s: 2_500_000,
            shards: Some(27),
            ..tests_setting()
        };
        let nodes = simulate(&setting.case(8, 2, PlanKind::Hier).unwrap()).unwrap();
        println!("{nodes:?}");
        // A sum of four enters the other site once: 4.1 MB at 2.3 MB/s, 1.8 s. A second time it would be 3.6 s.
        assert!((1.8..3.0).contains(&nodes.exchange_s), "{nodes:?}");
    }
}
