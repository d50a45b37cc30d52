//! Seeds that say something, fixed ranges of others, and the promise that a seed is a run.

use std::collections::BTreeSet;

use gradmesh_protocol::manifest::PlanKind;
use gradmesh_sim::coverage::Coverage;
use gradmesh_sim::options::{Chosen, is_chain_run};
use gradmesh_sim::{Options, Outcome, Verbosity, Verdict, run};

/// Each line: a seed, and why it is there.
const SEEDS: &str = include_str!("../seeds.txt");

/// A seed, and what is not left to it.
type Case = (u64, Chosen);

fn chosen(plan: PlanKind, overlap: u32) -> Chosen {
    Chosen {
        plan: Some(plan),
        overlap: Some(overlap),
        fragments: Some(1),
    }
}

fn run_seed((seed, chosen): Case) -> Outcome {
    run(&Options::with(seed, chosen), Verbosity::Hash)
}

/// Runs `seeds` on all cores; their outcomes in order.
fn run_all(seeds: &[Case]) -> Vec<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let of_thread = |thread: usize| {
            let seeds = seeds.iter().skip(thread).step_by(threads);
            scope.spawn(move || seeds.map(|seed| run_seed(*seed)).collect::<Vec<_>>())
        };
        let threads: Vec<_> = (0..threads).map(of_thread).collect();
        let mut outcomes: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().expect("runs catch their panics").into_iter())
            .collect();
        let count = outcomes.len();
        (0..seeds.len())
            .map(|place| outcomes[place % count].next().expect("one for each"))
            .collect()
    })
}

/// The failures among the outcomes of `seeds`, as the command line shows them.
fn failures(seeds: &[Case], outcomes: &[Outcome]) -> Vec<String> {
    let failed = seeds
        .iter()
        .zip(outcomes)
        .filter_map(|((seed, chosen), outcome)| match &outcome.verdict {
            Verdict::Failed(failure) => {
                Some(format!("gradmesh-sim {seed} ({chosen:?}): {failure}"))
            }
            Verdict::Converged | Verdict::SafelyStuck => None,
        });
    failed.collect()
}

/// The listed seeds, which are about `gather` without overlap and fragments.
fn listed_seeds() -> Vec<Case> {
    let lines = SEEDS.lines().filter(|line| !line.starts_with('#'));
    let seeds = lines.map(|line| {
        let (seed, reason) = line.split_once(' ').expect("a seed and its reason");
        assert!(!reason.trim().is_empty(), "no reason for {seed}");
        let seed = seed.parse().expect("a seed");
        (seed, chosen(PlanKind::Gather, 0))
    });
    seeds.collect()
}

#[test]
fn listed_seeds_and_ranges_of_others_hold_and_meet_every_situation() {
    // A hundred seeds as they come, and forty chain runs.
    let chain_runs = (7_000_000..7_000_200).filter(|seed| is_chain_run(*seed));
    let mut seeds = listed_seeds();
    assert!(!seeds.is_empty());
    let others = (6_000_000..6_000_100).chain(chain_runs);
    seeds.extend(others.map(|seed| (seed, Chosen::default())));
    let outcomes = run_all(&seeds);
    assert_eq!(failures(&seeds, &outcomes), [""; 0]);
    let mut coverage = Coverage::default();
    outcomes
        .iter()
        .for_each(|outcome| coverage.add(&outcome.coverage));
    assert_eq!(coverage.missed(), [], "{coverage}");
}

#[test]
fn seeds_hold_with_fragments_by_every_plan_and_codec() {
    let plans = [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier];
    let cases = plans.into_iter().flat_map(|plan| {
        let fragments = [2, 3, 3, 5].into_iter().cycle();
        let seeds = (8_000_000u64..8_000_016).zip(fragments);
        seeds.map(move |(seed, fragments)| {
            let chosen = Chosen {
                fragments: Some(fragments),
                ..chosen(plan, seed as u32 % 2)
            };
            (seed, chosen)
        })
    });
    let cases: Vec<Case> = cases.collect();
    let codecs = cases.iter().map(|(seed, chosen)| {
        let codec = Options::with(*seed, *chosen).manifest.codec;
        format!("{:?}, {} bits", codec.kind, codec.value_bits)
    });
    let codecs: BTreeSet<String> = codecs.collect();
    for kind in [
        "Sparse, 1 bits",
        "Sparse, 2 bits",
        "Sparse, 4 bits",
        "DenseF32",
        "DenseBf16",
    ] {
        assert!(
            codecs.iter().any(|codec| codec.starts_with(kind)),
            "{codecs:?}"
        );
    }
    let outcomes = run_all(&cases);
    assert_eq!(failures(&cases, &outcomes), [""; 0]);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let plans = [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier];
    for (seed, plan) in [3, 4, 5, 7].into_iter().zip(plans.into_iter().cycle()) {
        let case = (seed, chosen(plan, seed as u32 % 2));
        let (once, again) = (run_seed(case), run_seed(case));
        assert_eq!(once.trace, again.trace, "seed {seed}");
        assert_eq!(once.messages, again.messages);
        let told = run(&Options::with(seed, case.1), Verbosity::Tail);
        assert_eq!(once.trace, told.trace, "words change nothing, seed {seed}");
    }
    let own = |seed| run_seed((seed, Chosen::default())).trace;
    assert_ne!(own(3), own(4));
}

#[test]
fn a_run_without_a_quorum_stands_still_and_says_so() {
    let outcome = run_seed((STUCK_SEED, chosen(PlanKind::Gather, 0)));
    assert_eq!(outcome.verdict, Verdict::SafelyStuck);
}

/// See seeds.txt.
const STUCK_SEED: u64 = 199;
