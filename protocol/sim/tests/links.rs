//! Links that come to carry less or more in the middle of a run: owners and plan follow, and everybody stays at one state.

mod calm;

use calm::{calm, converged};
use gradmesh_protocol::manifest::{PlanKind, RoundId};
use gradmesh_protocol::plan::{Layout, Plan};
use gradmesh_sim::options::{Chosen, Fault};
use gradmesh_sim::queue::Instant;
use gradmesh_sim::{Options, Outcome, Verbosity, Verdict, run};

/// How many ownerships `peer` has in each round from 1 on.
fn owned(options: &Options, outcome: &Outcome, peer: usize) -> Vec<usize> {
    let name = options.keypair(peer).public();
    let run = options.manifest.run();
    let owned = |layout: &Layout| {
        let owners = layout.owners(&run);
        let owners = owners.iter().flatten();
        owners.filter(|owners| owners.contains(&name)).count()
    };
    outcome.layouts.iter().skip(1).map(owned).collect()
}

/// The link of `peer` carries so much from the time of this second on.
fn relink(options: &mut Options, second: u64, peer: usize, capacity: u16) {
    let at = Instant::from_secs(second);
    options.faults.push((at, Fault::Capacity(peer, capacity)));
    options.faults_end = options.faults_end.max(Instant::from_secs(second + 1));
}

#[test]
fn a_link_that_turns_thin_loses_its_shards_and_gets_them_back_when_it_recovers() {
    for plan in [PlanKind::Reduce, PlanKind::Hier] {
        let mut options = calm(3, 6, 3, plan, 30);
        relink(&mut options, 2, 4, 0);
        let thin = converged(&options);
        let shards = owned(&options, &thin, 4);
        assert!(shards[0] > 0, "{plan:?}: {shards:?}");
        assert_eq!(shards.last(), Some(&0), "{plan:?}: {shards:?}");
        assert_eq!(thin.decided, Some(RoundId(30)));

        let back = Instant(thin.ended.0 / 2).0 / 1_000_000;
        relink(&mut options, back, 4, 10);
        let shards = owned(&options, &converged(&options), 4);
        let without = shards.iter().position(|count| *count == 0);
        assert!(without.is_some(), "{plan:?}: {shards:?}");
        assert_eq!(shards.last(), shards.first(), "{plan:?}: {shards:?}");
    }
}

#[test]
fn the_planner_changes_the_plan_when_links_turn_thin() {
    let mut options = calm(3, 6, 1, PlanKind::Auto, 12);
    // 340 kB: at 100 Mbit/s the hops decide, at 10 Mbit/s the bytes.
    options.planned_scale = 300;
    relink(&mut options, 2, 2, 1);
    let outcome = converged(&options);
    let mut plans: Vec<Plan> = outcome.layouts.iter().map(Layout::plan).collect();
    plans.dedup();
    assert_eq!(plans, [Plan::Gather, Plan::Reduce]);
}

#[test]
fn runs_whose_links_change_hold_whatever_else_goes_wrong() {
    let mut failed = Vec::new();
    let mut changed = 0;
    for seed in 8_000_000..8_000_040 {
        let plans = [PlanKind::Reduce, PlanKind::Hier, PlanKind::Auto];
        let chosen = Chosen {
            plan: Some(plans[seed as usize % plans.len()]),
            overlap: None,
            fragments: None,
        };
        let mut options = Options::with(seed, chosen);
        // Three in the first half of the faults, when most rounds are decided.
        for place in 0..3 {
            let at = Instant(options.faults_end.0 * (place as u64 + 1) / 8);
            let peer = (seed as usize + place) % options.peers.len();
            let capacity = [0, 1, 40][(seed as usize / 3 + place) % 3];
            options.faults.push((at, Fault::Capacity(peer, capacity)));
        }
        options.faults.sort_by_key(|(at, _)| *at);
        let outcome = run(&options, Verbosity::Hash);
        changed += outcome.layouts.windows(2).filter(|l| l[0] != l[1]).count();
        if let Verdict::Failed(failure) = outcome.verdict {
            failed.push(format!("seed {seed}: {failure}"));
        }
    }
    assert_eq!(failed, [""; 0]);
    assert!(changed > 40, "{changed}");
}
