//! Figures over many seeds: how soon a cheat is caught, and what it is paid.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use gradmesh_protocol::audit::verdict::Outcome;
use gradmesh_trainer::adversary::Kind;

use super::{Conduct, Setup, World};

/// The chances to skip a segment of the curve of detection, parts per million.
pub const SKIPPED_PPM: [u32; 4] = [100_000, 250_000, 500_000, 1_000_000];
/// The coverages of the curve of detection, parts per million.
pub const COVERAGES_PPM: [u32; 2] = [1_000_000, 200_000];

/// `f` of each of `seeds` seeds from 0, in order, on all cores.
pub fn of_seeds<T: Send>(seeds: u64, f: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed) as u64;
                    if seed >= seeds {
                        return;
                    }
                    let result = f(seed);
                    let mut results = results.lock().expect("no thread panics while it adds");
                    results.push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread panicked");
    results.sort_by_key(|(seed, _)| *seed);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The chance that a round of a peer that spoils a part `spoiled` of its segments fails an audit of one segment.
///
/// Source: P = c (1 - (1 - p)^s) with s = 1.
pub fn chance_per_round(coverage_ppm: u32, spoiled: f64) -> f64 {
    f64::from(coverage_ppm) / 1e6 * spoiled
}

/// Rounds until a peer that fails a round with a chance of `per_round` is caught with 95 %.
pub fn rounds_to_95(per_round: f64) -> u64 {
    if per_round >= 1.0 {
        return 1;
    }
    (0.05f64.ln() / (1.0 - per_round).ln()).ceil() as u64
}

/// How soon one kind of cheat was caught.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// The cheat.
    pub conduct: Conduct,
    /// The chance that it is audited in a round.
    pub coverage_ppm: u32,
    /// The part of its segments that an audit fails, as measured.
    pub spoiled: f64,
    /// Rounds to 95 % by the formula.
    pub formula_rounds: u64,
    /// For each seed the rounds until it failed; `None` if it had not after four times as many as the formula says.
    pub rounds: Vec<Option<u64>>,
}

impl Detection {
    /// Rounds after which 95 % of the seeds were caught, if they were.
    pub fn measured_rounds(&self) -> Option<u64> {
        let mut rounds: Vec<u64> = self.rounds.iter().flatten().copied().collect();
        rounds.sort_unstable();
        let wanted = (self.rounds.len() * 95).div_ceil(100);
        rounds.get(wanted.checked_sub(1)?).copied()
    }

    /// Seeds that were caught within the rounds of the formula.
    pub fn caught_in_time(&self) -> u64 {
        let in_time = |rounds: &&Option<u64>| rounds.is_some_and(|r| r <= self.formula_rounds);
        self.rounds.iter().filter(in_time).count() as u64
    }
}

/// The miners of a world with one cheat, at place 0. One that copies has somebody to copy from.
fn miners(conduct: Conduct) -> Vec<Conduct> {
    match conduct {
        Conduct::Kind(Kind::Copy) => vec![conduct, Conduct::Kind(Kind::None)],
        Conduct::Kind(_) | Conduct::Partial(_) => vec![conduct],
    }
}

/// Rounds over which the part of spoiled segments is measured. Each has 30 segments.
const SPOILED_ROUNDS: u32 = 3;

/// The part of a cheat's segments that an audit would fail, over three rounds after the first of each of `seeds` seeds.
pub fn spoiled(conduct: Conduct, seeds: u64) -> f64 {
    let of_seed = of_seeds(seeds, |seed| {
        let setup =
            Setup::of_one_step_segments(seed, 1_000_000, SPOILED_ROUNDS + 1, &miners(conduct));
        let mut world = World::new(&setup);
        world.next_round();
        let mut failing = 0;
        for _ in 0..SPOILED_ROUNDS {
            world.next_round();
            let segments = 0..setup.audit.segments;
            failing += segments.filter(|s| world.segment_fails(0, 0, *s)).count();
        }
        failing as f64 / f64::from(SPOILED_ROUNDS * setup.audit.segments)
    });
    of_seed.iter().sum::<f64>() / seeds as f64
}

/// How soon `conduct` is caught over `seeds` seeds. The first round is not audited: there is nothing yet to copy, and nothing
/// that is stale.
///
/// `spoiled`: the part of segments that it spoils.
pub fn detection(conduct: Conduct, coverage_ppm: u32, spoiled: f64, seeds: u64) -> Detection {
    let formula_rounds = rounds_to_95(chance_per_round(coverage_ppm, spoiled));
    let most = 4 * formula_rounds;
    let rounds = of_seeds(seeds, |seed| {
        let rounds = u32::try_from(most).unwrap_or(u32::MAX).saturating_add(2);
        let setup = Setup::of_one_step_segments(seed, coverage_ppm, rounds, &miners(conduct));
        let mut world = World::new(&setup);
        world.next_round();
        world.spare();
        world.next_round();
        (1..=most).find(|_| {
            let round = world.newest_round();
            world.next_round();
            world.outcome(0, round, 0) == Some(Outcome::Failed)
        })
    });
    Detection {
        conduct,
        coverage_ppm,
        spoiled,
        formula_rounds,
        rounds,
    }
}

/// What a cheat is paid, in rounds: an honest peer has work and pay of one each round.
#[derive(Clone, Debug, PartialEq)]
pub struct Pay {
    /// The cheat.
    pub conduct: Conduct,
    /// The chance that it is audited in a round.
    pub coverage_ppm: u32,
    /// Rounds of the run.
    pub rounds: u32,
    /// The work that it did, mean over the seeds.
    pub work: f64,
    /// Its pay, mean over the seeds.
    pub pay: f64,
    /// Pay less work of each seed.
    pub profits: Vec<f64>,
}

impl Pay {
    /// Pay less work, mean over the seeds.
    pub fn profit(&self) -> f64 {
        self.pay - self.work
    }
}

/// What `conduct` is paid in a run of `rounds` rounds beside two honest miners, over `seeds` seeds. Losses are not measured: this is
/// what audits of work do alone.
///
/// `probation_rounds`: rounds in which a newcomer is always audited, and one that was suspended.
pub fn pay(
    conduct: Conduct,
    coverage_ppm: u32,
    probation_rounds: u32,
    rounds: u32,
    seeds: u64,
) -> Pay {
    let honest = Conduct::Kind(Kind::None);
    let each = of_seeds(seeds, |seed| {
        let miners = [conduct, honest, honest];
        let mut setup = Setup::of_one_step_segments(seed, coverage_ppm, rounds, &miners);
        setup.audit.probation_rounds = probation_rounds;
        let mut world = World::new(&setup);
        for _ in 0..rounds {
            world.next_round();
        }
        world.finish();
        let scores = world.scores(0);
        let share = |place: usize| {
            let peer = world.miner(place);
            let mut rows = scores.scores.iter();
            rows.find(|row| row.peer == peer).map_or(0, |row| row.share) as f64
        };
        let steps = f64::from(setup.steps_per_round);
        let work = world.steps_done(0) as f64 / steps;
        let pay = share(0) / ((share(1) + share(2)) / 2.0) * f64::from(rounds);
        (work, pay)
    });
    let mean = |of: fn(&(f64, f64)) -> f64| each.iter().map(of).sum::<f64>() / each.len() as f64;
    Pay {
        conduct,
        coverage_ppm,
        rounds,
        work: mean(|(work, _)| *work),
        pay: mean(|(_, pay)| *pay),
        profits: each.iter().map(|(work, pay)| pay - work).collect(),
    }
}
