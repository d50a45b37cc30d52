//! How many bytes a round moves by each plan, counted on runs without faults.

use std::collections::BTreeMap;

use gradmesh_protocol::manifest::{CodecKind, LocalFormat, PlanKind, SiteId};
use gradmesh_sim::queue::{Clock, Instant};
use gradmesh_sim::{Options, Outcome, Verbosity, Verdict, run};

const ROUNDS: u64 = 8;

/// A run without faults of `count` peers, in sites of `per_site`.
fn calm(count: usize, per_site: usize, plan: PlanKind) -> Options {
    let mut options = Options::with_plan(1, Some(plan));
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

#[test]
fn reduce_stays_near_flat_in_the_number_of_peers() {
    let mut received = BTreeMap::new();
    for count in [4usize, 8, 16, 32] {
        let outcome = converged(&calm(count, 1, PlanKind::Reduce));
        let bytes: u64 = outcome.blobs.values().sum();
        received.insert(count, bytes as f64 / count as f64 / ROUNDS as f64);
    }
    let ratio = received[&32] / received[&4];
    // One update is 280 elements; a sum that every peer gets whole needs 2 (n - 1)/n of that.
    let bound = (31.0 / 32.0) / (3.0 / 4.0);
    println!(
        "bytes received per peer and round: {received:?}; 32 to 4: {ratio:.3}, bound {bound:.3}"
    );
    // 2 (n - 1)/n + (n - 2)/n of an update: see gradmesh_protocol::plan.
    let says = |n: f64| (2.0 * (n - 1.0) + (n - 2.0)) / n;
    let said = says(32.0) / says(4.0);
    assert!((ratio / said - 1.0).abs() < 0.03, "{ratio} {said}");
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
