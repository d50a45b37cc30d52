//! How many bytes a round moves by each plan, counted on runs without faults.

use std::collections::BTreeMap;

use gradmesh_protocol::manifest::{CodecKind, LocalFormat, PlanKind, SiteId};
use gradmesh_sim::options::Chosen;
use gradmesh_sim::queue::{Clock, Instant};
use gradmesh_sim::{Options, Outcome, Verbosity, Verdict, run};

const ROUNDS: u64 = 8;

/// A run without faults of `count` peers, in sites of `per_site`.
fn calm(count: usize, per_site: usize, plan: PlanKind) -> Options {
    let chosen = Chosen {
        plan: Some(plan),
        overlap: Some(0),
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
    peer.uplink_bytes_per_s = 10_000_000;
    peer.latency_us = 10_000;
    peer.step_us = 100_000;
    peer.training_fails_ppm = 0;
    peer.lie = None;
    peer.link.capacity = 10;
    options.peers = (0..count)
        .map(|place| {
            let mut peer = peer.clone();
            peer.link.site = SiteId::named(&format!("site {}", place / per_site));
            peer
        })
        .collect();
    let manifest = &mut options.manifest;
    manifest.launcher_link = options.peers[0].link;
    manifest.codec.kind = CodecKind::DenseF32;
    manifest.codec.tiles_per_shard = 1;
    manifest.exchange.local = LocalFormat::F32;
    manifest.schedule.rounds = ROUNDS;
    manifest.trust.peers_min = count as u32;
    manifest.trust.peers_max = 64;
    manifest.timing.deadline_cap_ms = 20_000;
    assert_eq!(manifest.validate(), []);
    options
}

fn converged(options: &Options) -> Outcome {
    let outcome = run(options, Verbosity::Hash);
    assert_eq!(outcome.verdict, Verdict::Converged);
    outcome
}

/// Members that can be founded at once: the launcher, and the most joins of one decision.
const FOUNDERS_MAX: u64 = 17;

#[test]
fn reduce_moves_what_the_plan_says_for_any_number_of_peers() {
    let mut received = BTreeMap::new();
    let mut update = None;
    for count in [4u64, 8, 16, 32] {
        let outcome = converged(&calm(count as usize, 1, PlanKind::Reduce));
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
    let single = into_sites(&calm(2, 1, PlanKind::Gather));
    for (plan, most) in [(PlanKind::Hier, 1.1), (PlanKind::Gather, 3.3)] {
        let site = into_sites(&calm(6, 3, plan));
        let ratio = site as f64 / single as f64;
        println!(
            "{plan:?}, 2 sites of 3: {site} bytes into a site, {ratio:.3} of a single peer's {single}"
        );
        assert!(ratio <= most, "{plan:?}: {ratio}");
    }
}
