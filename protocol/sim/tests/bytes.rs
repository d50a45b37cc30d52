//! How many bytes a round moves by each plan, counted on runs without faults.

mod calm;

use std::collections::BTreeMap;

use calm::{calm, converged};
use gradmesh_protocol::manifest::{PlanKind, SiteId};
use gradmesh_sim::Options;

const ROUNDS: u64 = 8;

/// Members that can be founded at once: the launcher, and the most joins of one decision.
const FOUNDERS_MAX: u64 = 17;

#[test]
fn reduce_moves_what_the_plan_says_for_any_number_of_peers() {
    let mut received = BTreeMap::new();
    let mut update = None;
    for count in [4u64, 8, 16, 32] {
        let outcome = converged(&calm(1, count as usize, 1, PlanKind::Reduce, ROUNDS));
        let bytes: u64 = outcome.blobs.values().sum();
        received.insert(count, bytes / count / ROUNDS);
        // Each member but two gets the sum, and each owner the frames of all others: see gradmesh_protocol::plan. Who comes
        // in with the second round follows the first one, and gets its sum.
        let members = |count: u64| 2 * (count - 1) + (count - 2);
        let founders = count.min(FOUNDERS_MAX);
        let updates = members(founders) + (count - founders) + (ROUNDS - 1) * members(count);
        assert_eq!(bytes % updates, 0, "{count} peers: {bytes} bytes");
        let of_update = *update.get_or_insert(bytes / updates);
        assert_eq!(bytes / updates, of_update, "{count} peers");
    }
    println!("bytes received per peer and round, updates of {update:?} bytes: {received:?}");
}

#[test]
fn with_fragments_a_round_moves_its_part_and_as_many_rounds_as_there_are_move_all() {
    for plan in [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier] {
        // What all peers receive in each of `count` rounds, once everybody is in.
        let received = |fragments: u32, count: u64| -> Vec<u64> {
            let until = (3..4 + count).map(|rounds| {
                let mut options = calm(1, 6, 3, plan, rounds);
                options.manifest.exchange.fragments = fragments;
                converged(&options).blobs.values().sum::<u64>()
            });
            let until: Vec<u64> = until.collect();
            until.windows(2).map(|pair| pair[1] - pair[0]).collect()
        };
        let whole = received(1, 1)[0];
        for fragments in [2, 3] {
            let parts = received(fragments, fragments.into());
            assert_eq!(parts.iter().sum::<u64>(), whole, "{plan:?}: {parts:?}");
            // The tensors of the model have 64, 64, 8, 128 and 16 elements: the largest alone is near half of all.
            let most = parts
                .iter()
                .max()
                .map_or(1.0, |most| *most as f64 / whole as f64);
            println!("{plan:?}, {fragments} fragments: {parts:?} of {whole} bytes");
            assert!(most <= 0.6, "{plan:?}, {fragments} fragments: {most:.2}");
        }
    }
}

#[test]
fn a_site_receives_by_hier_what_a_single_peer_would() {
    let into_sites = |options: &Options| {
        let outcome = converged(options);
        let site = |peer: usize| options.peers[peer].link.site;
        let mut into: BTreeMap<SiteId, u64> = BTreeMap::new();
        for ((from, to), bytes) in outcome.blobs {
            if site(from) != site(to) {
                *into.entry(site(to)).or_default() += bytes;
            }
        }
        into.values().max().copied().unwrap_or(0)
    };
    let single = into_sites(&calm(1, 2, 1, PlanKind::Gather, ROUNDS));
    for (plan, most) in [(PlanKind::Hier, 1.1), (PlanKind::Gather, 3.3)] {
        let site = into_sites(&calm(1, 6, 3, plan, ROUNDS));
        let ratio = site as f64 / single as f64;
        println!(
            "{plan:?}, 2 sites of 3: {site} bytes into a site, {ratio:.3} of a single peer's {single}"
        );
        assert!(ratio <= most, "{plan:?}: {ratio}");
    }
}
