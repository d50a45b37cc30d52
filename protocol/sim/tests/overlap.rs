//! What overlap is for, in virtual time: a round takes as long as the longer of training and exchange, not both.

mod calm;

use calm::calm;
use gradmesh_protocol::manifest::PlanKind;
use gradmesh_sim::coverage::Situation;
use gradmesh_sim::queue::Instant;
use gradmesh_sim::{Options, Outcome};

const PEERS: usize = 4;
const STEPS: u32 = 10;
/// Each peer's share of a latency: 0.6 s one way. With it an exchange takes seconds, whatever the bytes.
const LATENCY_US: u64 = 300_000;

/// A run of `rounds` rounds that each train for `train_us`.
fn settings(plan: PlanKind, overlap: u32, train_us: u64, rounds: u64) -> Options {
    let mut options = calm(1, PEERS, 1, plan, rounds);
    for peer in &mut options.peers {
        peer.latency_us = LATENCY_US;
        peer.step_us = train_us / u64::from(STEPS);
    }
    let manifest = &mut options.manifest;
    manifest.exchange.overlap = overlap;
    manifest.schedule.steps_per_round = STEPS;
    manifest.timing.deadline_cap_ms = 60_000;
    manifest.timing.propose_ms = 20_000;
    manifest.timing.vote_ms = 5_000;
    options
}

/// Runs them: nobody is ever late.
fn converged(options: &Options) -> Outcome {
    let outcome = calm::converged(options);
    let overlap = options.manifest.exchange.overlap;
    let missed = outcome.coverage.missed();
    assert!(
        missed.contains(&Situation::UpdateLeftOut),
        "an update was too late"
    );
    assert_eq!(!missed.contains(&Situation::TrainedAhead), overlap > 0);
    outcome
}

#[test]
fn a_newcomer_falls_into_step_with_those_that_train_ahead() {
    for train_us in [900_000, 2_700_000, 3_600_000, 5_400_000, 14_400_000] {
        let mut options = settings(PlanKind::Gather, 1, train_us, 30);
        options.manifest.trust.peers_min = PEERS as u32 - 1;
        options.manifest.trust.absent_rounds_max = 3;
        options.peers[PEERS - 1].starts = Instant(10 * train_us + 40_000_000);
        let missed = calm::converged(&options).coverage.missed();
        for situation in [Situation::UpdateLeftOut, Situation::Removed] {
            assert!(
                missed.contains(&situation),
                "{situation:?}, training for {train_us} us"
            );
        }
    }
}

/// Seconds of a round, start and end of the run apart.
fn round_s(plan: PlanKind, overlap: u32, train_us: u64) -> f64 {
    const ROUNDS: u64 = 6;
    let ended = |rounds| {
        converged(&settings(plan, overlap, train_us, rounds))
            .ended
            .0
    };
    (ended(2 * ROUNDS) - ended(ROUNDS)) as f64 / 1e6 / ROUNDS as f64
}

#[test]
fn with_overlap_a_round_takes_the_longer_of_training_and_exchange() {
    for plan in [PlanKind::Gather, PlanKind::Reduce] {
        // Training takes next to nothing: what is left is the exchange, agreement included.
        let exchange_s = round_s(plan, 0, 1_000);
        for ratio in [0.25, 0.5, 1.0, 2.0, 4.0] {
            let train_s = exchange_s * ratio;
            let of = |overlap| round_s(plan, overlap, (train_s * 1e6) as u64);
            let (in_turn, ahead) = (of(0), of(1));
            let (sum, longer) = (train_s + exchange_s, train_s.max(exchange_s));
            println!(
                "{plan:?}: exchange {exchange_s:.2} s, training {train_s:.2} s: {in_turn:.2} s in turn, {ahead:.2} s with \
                 overlap"
            );
            assert!((in_turn / sum - 1.0).abs() < 0.02, "{in_turn} s, not {sum}");
            // A decision is applied between two steps, and holds training up for 20 ms.
            assert!(
                (ahead / longer - 1.0).abs() < 0.05,
                "{ahead} s, not {longer}"
            );
        }
    }
}
