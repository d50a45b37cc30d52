//! What overlap is for, in virtual time: a round takes as long as the longer of training and exchange, not both.

use gradmesh_protocol::manifest::{CodecKind, PlanKind};
use gradmesh_sim::coverage::Situation;
use gradmesh_sim::options::Chosen;
use gradmesh_sim::queue::{Clock, Instant};
use gradmesh_sim::{Options, Outcome, Verbosity, Verdict, run};

const PEERS: usize = 4;
const STEPS: u32 = 10;
/// One way between any two peers: with it an exchange takes seconds, whatever the bytes.
const LATENCY_US: u64 = 600_000;

/// A run without faults of `rounds` rounds that each train for `train_us`.
fn calm(plan: PlanKind, overlap: u32, train_us: u64, rounds: u64) -> Options {
    let chosen = Chosen {
        plan: Some(plan),
        overlap: Some(overlap),
    };
    let mut options = Options::with(1, chosen);
    options.faults.clear();
    options.faults_end = Instant::from_secs(1);
    options.links.jitter_us = 0;
    options.links.loss_ppm = 0;
    options.links.duplicate_ppm = 0;
    options.links.reorder_ppm = 0;
    options.links.corrupt_ppm = 0;
    let mut peer = options.peers[0].clone();
    peer.starts = Instant::default();
    peer.clock = Clock {
        origin_ms: 0,
        drift_ppm: 0,
    };
    peer.uplink_bytes_per_s = 100_000_000;
    peer.latency_us = LATENCY_US / 2;
    peer.step_us = train_us / u64::from(STEPS);
    peer.training_fails_ppm = 0;
    peer.lie = None;
    peer.link.capacity = 10;
    options.peers = vec![peer; PEERS];
    let manifest = &mut options.manifest;
    manifest.launcher_link = options.peers[0].link;
    manifest.codec.kind = CodecKind::DenseF32;
    manifest.schedule.steps_per_round = STEPS;
    manifest.schedule.rounds = rounds;
    manifest.trust.peers_min = PEERS as u32;
    manifest.timing.deadline_cap_ms = 60_000;
    manifest.timing.propose_ms = 20_000;
    manifest.timing.vote_ms = 5_000;
    assert_eq!(manifest.validate(), []);
    options
}

fn converged(options: &Options) -> Outcome {
    let outcome = run(options, Verbosity::Hash);
    assert_eq!(outcome.verdict, Verdict::Converged);
    let missed = outcome.coverage.missed();
    assert!(
        missed.contains(&Situation::UpdateLeftOut),
        "an update was too late"
    );
    let ahead = options.manifest.exchange.overlap > 0;
    assert_eq!(!missed.contains(&Situation::TrainedAhead), ahead);
    outcome
}

/// Seconds of a round, start and end of the run apart.
fn round_s(plan: PlanKind, overlap: u32, train_us: u64) -> f64 {
    const ROUNDS: u64 = 6;
    let ended = |rounds| converged(&calm(plan, overlap, train_us, rounds)).ended.0;
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
