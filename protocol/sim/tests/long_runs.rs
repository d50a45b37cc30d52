//! A thousand rounds of every plan with every codec, with overlap and up to three fragments in turns, frames and messages arriving in random order:
//! after each round every peer has the state root that the oracle computes (rule `same-state`), and every round is decided
//! by all.

mod calm;

use std::thread;

use calm::{calm, converged};
use gradmesh_protocol::manifest::{CodecKind, OuterRule, PlanKind, RoundId};
use gradmesh_sim::Options;
use gradmesh_sim::options::is_chain_run;
use gradmesh_sim::queue::Instant;

const ROUNDS: u64 = 1000;

/// Four peers in two sites, whose messages overtake one another.
fn long_run(plan: PlanKind, kind: CodecKind, value_bits: u32, seed: u64) -> Options {
    let mut options = calm(seed, 4, 2, plan, ROUNDS);
    options.links.jitter_us = 60_000;
    // Messages are held up for as long as the run has faults: that is, for most of its rounds.
    options.links.reorder_ppm = 50_000;
    options.faults_end = Instant::from_secs(ROUNDS);
    options.time_limit = Instant::from_secs(20 * ROUNDS);
    let manifest = &mut options.manifest;
    manifest.codec.kind = kind;
    manifest.codec.value_bits = value_bits;
    manifest.exchange.reduced_value_bits = value_bits;
    manifest.codec.tiles_per_shard = 2;
    if kind == CodecKind::Sparse {
        manifest.outer.rule = OuterRule::Plain;
        manifest.outer.rate_ppm = 1_000_000;
        manifest.outer.momentum_ppm = 0;
    }
    manifest.schedule.rounds_per_epoch = 50;
    manifest.exchange.overlap = (seed % 2) as u32;
    manifest.exchange.fragments = 1 + (seed % 3) as u32;
    assert_eq!(manifest.validate(), []);
    options
}

#[test]
fn roots_are_equal_after_each_of_a_thousand_rounds_by_every_plan_and_codec() {
    let codecs = [
        (CodecKind::DenseF32, 1),
        (CodecKind::DenseBf16, 1),
        (CodecKind::DenseInt8, 1),
        (CodecKind::DenseInt4, 1),
        (CodecKind::Sparse, 1),
        (CodecKind::Sparse, 2),
        (CodecKind::Sparse, 4),
    ];
    let plans = [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier];
    let cases: Vec<Options> = plans
        .iter()
        .flat_map(|plan| codecs.map(|(kind, bits)| (*plan, kind, bits)))
        .zip((1..).filter(|seed| !is_chain_run(*seed)))
        .map(|((plan, kind, bits), seed)| long_run(plan, kind, bits, seed))
        .collect();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for first in 0..threads {
            let cases = cases.iter().skip(first).step_by(threads);
            scope.spawn(move || {
                for case in cases {
                    let outcome = converged(case);
                    assert_eq!(outcome.decided, Some(RoundId(ROUNDS)), "{case}");
                }
            });
        }
    });
}
