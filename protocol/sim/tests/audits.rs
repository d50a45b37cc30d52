//! What audits find in the world of [`gradmesh_sim::audits`], and what it is worth.
//!
//! `GRADMESH_AUDITS` is the number of audits of honest peers instead of 10,000, `GRADMESH_SEEDS` that of seeds of each cheat
//! instead of 200. Tables are printed: `--nocapture`.

use std::collections::BTreeMap;

use gradmesh_protocol::audit::verdict::{Check, Outcome};
use gradmesh_protocol::manifest::{ModelDtype, RoundId};
use gradmesh_sim::audits::measure::{
    self, COVERAGES_PPM, Detection, SKIPPED_PPM, chance_per_round, rounds_to_95,
};
use gradmesh_sim::audits::{
    Conduct, Habit, Machine, MinerSetup, Setup, ValidatorSetup, World, calibrated,
};
use gradmesh_trainer::adversary::Kind;

const HONEST: Conduct = Conduct::Kind(Kind::None);

fn wanted(name: &str, default: u64) -> u64 {
    let wanted = std::env::var(name).ok();
    wanted.map_or(default, |count| count.parse().expect("a number"))
}

fn cheats() -> impl Iterator<Item = Conduct> {
    let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::None);
    kinds.map(Conduct::Kind)
}

/// The fewest and the most of `count` tries that may come out as something of a chance `chance` does: what lies outside has a
/// chance below `tail` on each side. Exact, by the binomial distribution.
fn binomial_range(count: u64, chance: f64, tail: f64) -> (u64, u64) {
    if chance >= 1.0 {
        return (count, count);
    }
    // ln of count! / (k! (count - k)!) chance^k (1 - chance)^(count - k), from one k to the next.
    let mut ln = count as f64 * (1.0 - chance).ln();
    let mut below = 0.0;
    let (mut least, mut most) = (None, count);
    for k in 0..=count {
        below += ln.exp();
        if least.is_none() && below >= tail {
            least = Some(k);
        }
        if below >= 1.0 - tail {
            most = k;
            break;
        }
        ln += ((count - k) as f64 / (k + 1) as f64).ln() + (chance / (1.0 - chance)).ln();
    }
    (least.unwrap_or(0), most)
}

#[test]
fn a_binomial_range_is_the_one_of_the_tables() {
    // P(X <= 1) = 0.0107 and P(X >= 9) = 0.0107 for ten coins.
    assert_eq!(binomial_range(10, 0.5, 0.02), (2, 8));
    assert_eq!(binomial_range(10, 1.0, 0.02), (10, 10));
}

/// The chance at which a range of [`binomial_range`] is left out on each side: with thirty rows one of them is outside in
/// fewer than one of 10^4 choices of seeds.
const TAIL: f64 = 1e-6;

fn assert_as_the_formula_says(row: &Detection) {
    let chance = chance_per_round(row.coverage_ppm, row.spoiled);
    let seeds = row.rounds.len() as u64;
    let in_time = 1.0 - (1.0 - chance).powf(row.formula_rounds as f64);
    let (least, most) = binomial_range(seeds, in_time, TAIL);
    let caught = row.caught_in_time();
    println!(
        "| {} | {} | {:.3} | {} | {:?} | {caught} (may be {least} to {most}) of {seeds} |",
        row.conduct,
        f64::from(row.coverage_ppm) / 1e6,
        row.spoiled,
        row.formula_rounds,
        row.measured_rounds(),
    );
    assert!(
        (least..=most).contains(&caught),
        "{}: {caught} of {seeds} were caught within {} rounds, by the formula {least} to {most} are",
        row.conduct,
        row.formula_rounds
    );
}

#[test]
fn each_cheat_is_caught_as_soon_as_the_formula_says() {
    let seeds = wanted("GRADMESH_SEEDS", 200);
    for conduct in cheats() {
        let spoiled = measure::spoiled(conduct, 3);
        let expected = match conduct {
            Conduct::Kind(Kind::Half) => 0.5,
            // The last of thirty segments.
            Conduct::Kind(Kind::Hijack) => 1.0 / 30.0,
            Conduct::Kind(_) | Conduct::Partial(_) => 1.0,
        };
        assert!((spoiled - expected).abs() < 1e-9, "{conduct}: {spoiled}");
        let row = measure::detection(conduct, 1_000_000, spoiled, seeds);
        assert_as_the_formula_says(&row);
    }
}

#[test]
fn the_curve_of_detection_is_that_of_the_formula() {
    let seeds = wanted("GRADMESH_SEEDS", 200);
    let formula = [[29, 11, 5, 1], [149, 59, 29, 14]];
    for (coverage, formula) in COVERAGES_PPM.into_iter().zip(formula) {
        for (skipped, formula) in SKIPPED_PPM.into_iter().zip(formula) {
            let p = f64::from(skipped) / 1e6;
            assert_eq!(rounds_to_95(chance_per_round(coverage, p)), formula);
            let row = measure::detection(Conduct::Partial(skipped), coverage, p, seeds);
            assert_as_the_formula_says(&row);
        }
    }
}

/// Miners and validators on all kinds of `machines`.
fn honest(seed: u64, dtype: ModelDtype, machines: &[Machine]) -> Setup {
    let miner = |machine: &Machine| MinerSetup {
        conduct: HONEST,
        machine: *machine,
    };
    let validator = |machine: &Machine| ValidatorSetup {
        habit: Habit::Honest,
        machine: *machine,
    };
    Setup {
        dtype,
        miners: machines.iter().map(miner).collect(),
        validators: machines.iter().map(validator).collect(),
        ..Setup::of_one_step_segments(seed, 1_000_000, 30, &[])
    }
}

#[test]
fn no_honest_peer_fails_in_ten_thousand_audits() {
    let audits = wanted("GRADMESH_AUDITS", 10_000);
    let f32_machines = [Machine::Reference, Machine::F32(1), Machine::F32(2)];
    let bf16_machines = [Machine::Reference, Machine::Bf16(1), Machine::Bf16(2)];
    // Per seed, 30 rounds of three miners before three validators in each of two worlds.
    let seeds = audits.div_ceil(2 * 30 * 3 * 3);
    let worlds = measure::of_seeds(seeds, |seed| {
        let mut found = Vec::new();
        for (dtype, machines) in [
            (ModelDtype::F32, f32_machines),
            (ModelDtype::Bf16, bf16_machines),
        ] {
            let mut setup = honest(seed, dtype, &machines);
            setup.audit.tolerances = calibrated(&setup, &machines);
            let mut world = World::new(&setup);
            for _ in 0..setup.rounds {
                world.next_round();
            }
            world.finish();
            for verdict in world.verdicts() {
                let validator = (0..3).find(|place| world.validator(*place) == verdict.validator);
                let miner = (0..3).find(|place| world.miner(*place) == verdict.peer);
                let same = validator == miner;
                let lane = match (dtype, same) {
                    (_, true) => "exact",
                    (ModelDtype::F32, false) => "f32",
                    (ModelDtype::Bf16, false) => "bf16",
                };
                found.push((lane, verdict.check, verdict.outcome, verdict.error_ppb));
            }
        }
        found
    });
    let mut counts = BTreeMap::new();
    let mut largest = BTreeMap::new();
    for (lane, check, outcome, error) in worlds.into_iter().flatten() {
        assert_eq!(check, Check::Segment);
        *counts.entry((lane, outcome)).or_insert(0u64) += 1;
        let largest = largest.entry(lane).or_insert(0);
        *largest = error.max(*largest);
    }
    println!("{counts:?}, largest errors in ppb {largest:?}");
    let total: u64 = counts.values().sum();
    assert!(total >= audits, "{total}");
    let failed = counts
        .iter()
        .filter(|((_, outcome), _)| *outcome == Outcome::Failed);
    assert_eq!(failed.map(|(_, count)| count).sum::<u64>(), 0);
    // Machines of a class have the same bits, others do not: both lanes were gone through.
    assert_eq!(largest["exact"], 0);
    assert!(largest["f32"] > 0 && largest["bf16"] > largest["f32"]);
}

#[test]
fn no_cheat_is_paid_as_much_as_the_work_that_it_did() {
    let curve = SKIPPED_PPM.map(Conduct::Partial);
    for coverage in COVERAGES_PPM {
        for conduct in cheats().chain(curve) {
            let seeds = match conduct {
                Conduct::Kind(_) => 1,
                Conduct::Partial(_) => 4,
            };
            let pay = measure::pay(conduct, coverage, 20, 60, seeds);
            println!(
                "| {conduct} | {} | {:.1} | {:.1} | {:+.1} |",
                f64::from(coverage) / 1e6,
                pay.work,
                pay.pay,
                pay.profit()
            );
            assert!(pay.profit() <= 0.0, "{pay:?}");
            assert!(pay.pay < 60.0, "{pay:?}");
        }
    }
}

/// The formula for K = 4 / c: an established peer that skips p of its work has (1 - c p)^K of its pay in the long run, about
/// e^(-4 p), and until it is first caught all of it: 1 / (c p) rounds on average. Who stops altogether is paid for these, once.
#[test]
fn a_peer_that_is_known_and_begins_to_cheat_is_paid_less_than_an_honest_one() {
    for skipped in SKIPPED_PPM {
        let pay = measure::pay(Conduct::Partial(skipped), 200_000, 0, 60, 16);
        println!(
            "| partial {} without probation | 0.2 | {:.1} | {:.1} | {:+.1} |",
            f64::from(skipped) / 1e6,
            pay.work,
            pay.pay,
            pay.profit()
        );
        assert!(pay.pay < 60.0, "{pay:?}");
        assert!(skipped > 500_000 || pay.profit() <= 0.0, "{pay:?}");
    }
}

#[test]
fn honesty_is_paid_what_it_costs() {
    let pay = measure::pay(HONEST, 1_000_000, 20, 60, 2);
    println!("honest: {pay:?}");
    assert_eq!(pay.work, 60.0);
    // Equal tokens have equal shares, to the last bit of a share.
    assert!(pay.profit().abs() < 1e-6, "{pay:?}");
}

/// Two cheats among four miners, with these validators.
fn disputed(habits: &[Habit]) -> World {
    let miners = [HONEST, HONEST, HONEST, Conduct::Kind(Kind::Half)];
    let mut setup = Setup::of_one_step_segments(7, 500_000, 30, &miners);
    setup.audit.loss_ppm = 1_000_000;
    setup.validators = habits
        .iter()
        .copied()
        .map(ValidatorSetup::reference)
        .collect();
    let mut world = World::new(&setup);
    for _ in 0..setup.rounds {
        world.next_round();
    }
    world.finish();
    world
}

#[test]
fn a_liar_is_outvoted_and_flagged_and_its_victim_is_paid_as_if_nothing_had_happened() {
    for count in [3, 5] {
        let calm = disputed(&vec![Habit::Honest; count]);
        // The liar speaks first, and is the accuser of every round.
        let mut habits = vec![Habit::Honest; count];
        habits[0] = Habit::Liar(0);
        let world = disputed(&habits);
        for judge in 1..count {
            assert_eq!(world.open_cases(judge), 0);
            assert_eq!(world.record(judge, 0).outvoted, 30, "of {count}");
            for honest in 1..count {
                let record = world.record(judge, honest);
                assert_eq!((record.outvoted, record.contradictions), (0, 0));
            }
            for round in 1..=30 {
                let outcome = world.outcome(judge, RoundId(round), 0);
                assert_eq!(outcome, Some(Outcome::Passed));
            }
            assert_eq!(world.scores(judge).scores, calm.scores(judge).scores);
        }
    }
}

#[test]
fn a_lazy_validator_changes_no_outcome() {
    for count in [3, 5] {
        let calm = disputed(&vec![Habit::Honest; count]);
        let mut habits = vec![Habit::Honest; count];
        habits[0] = Habit::Lazy;
        let world = disputed(&habits);
        let mut failed = 0;
        for judge in 1..count {
            for round in (1..=30).map(RoundId) {
                for miner in 0..4 {
                    let outcome = world.outcome(judge, round, miner);
                    assert_eq!(outcome, calm.outcome(judge, round, miner));
                    failed += u64::from(outcome == Some(Outcome::Failed));
                }
            }
            assert_eq!(world.scores(judge).scores, calm.scores(judge).scores);
            // It passed a peer that failed, and everybody knows.
            assert_eq!(world.record(judge, 0).outvoted, failed / judge as u64);
        }
        assert!(failed > 0);
    }
}

/// The largest difference of a share at two validators on different machines of `dtype`, relative to the share, over an epoch of
/// 30 rounds in which every loss is measured.
fn shares_apart(seed: u64, rounds: u32, dtype: ModelDtype, machines: &[Machine; 2]) -> f64 {
    let mut setup = honest(seed, dtype, machines);
    setup.miners = [HONEST, HONEST, Conduct::Kind(Kind::Half), HONEST]
        .map(|conduct| MinerSetup {
            conduct,
            machine: machines[0],
        })
        .to_vec();
    setup.rounds = rounds;
    setup.audit.loss_ppm = 1_000_000;
    setup.audit.tolerances = calibrated(&setup, machines);
    let mut world = World::new(&setup);
    for _ in 0..setup.rounds {
        world.next_round();
    }
    world.finish();
    let (first, second) = (world.scores(0), world.scores(1));
    let pairs = first.scores.iter().zip(&second.scores);
    let apart = pairs.map(|(one, other)| {
        assert_eq!((one.peer, one.tokens_paid), (other.peer, other.tokens_paid));
        one.share.abs_diff(other.share) as f64 / one.share.max(1) as f64
    });
    apart.fold(0.0, f64::max)
}

/// An epoch of ten rounds, in which the model still learns: what an update gains is more than what machines differ by. Where it
/// has learnt what there is, gains are about zero, and rule `half-is-full` makes full quality or none of their signs:
/// `GRADMESH_EPOCH_ROUNDS=30` shows it.
#[test]
fn validators_on_different_machines_agree_on_shares_while_there_is_something_to_learn() {
    let rounds = u32::try_from(wanted("GRADMESH_EPOCH_ROUNDS", 10)).expect("a few rounds");
    let mut largest = Vec::new();
    for (dtype, machines) in [
        (ModelDtype::F32, [Machine::F32(1), Machine::F32(2)]),
        (ModelDtype::Bf16, [Machine::Bf16(1), Machine::Bf16(2)]),
    ] {
        let apart = measure::of_seeds(20, |seed| shares_apart(seed, rounds, dtype, &machines));
        let over = apart.iter().filter(|apart| **apart >= 0.01).count();
        largest.push(apart.iter().copied().fold(0.0, f64::max));
        println!("{dtype:?}: shares are apart by {apart:?}, {over} of 20 by 1 % or more");
    }
    assert!(largest.iter().all(|apart| *apart < 0.01), "{largest:?}");
    assert!(largest[1] > 0.0, "the machines measure the same");
}

#[test]
fn bisection_finds_where_half_a_round_ends() {
    let setup = Setup::of_one_step_segments(1, 1_000_000, 1, &[Conduct::Kind(Kind::Half)]);
    let mut world = World::new(&setup);
    world.next_round();
    for failed in 15..30 {
        let (found, audits) = world.bisect(0, 0, failed);
        assert_eq!(found, Some(15));
        assert!(
            audits <= failed.ilog2() + 1,
            "{audits} audits below {failed}"
        );
    }
}

#[test]
fn the_same_seed_has_the_same_verdicts() {
    let verdicts = || {
        let machines = [Machine::Reference, Machine::Bf16(1)];
        let mut world = World::new(&honest(5, ModelDtype::Bf16, &machines));
        for _ in 0..3 {
            world.next_round();
        }
        world.finish();
        world.verdicts().to_vec()
    };
    let first = verdicts();
    assert_eq!(first.len(), 12);
    assert_eq!(first, verdicts());
}
