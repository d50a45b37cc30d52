//! Runs in which nothing goes wrong.

use gradmesh_protocol::manifest::{CodecKind, LocalFormat, PlanKind, SiteId};
use gradmesh_sim::options::Chosen;
use gradmesh_sim::queue::{Clock, Instant};
use gradmesh_sim::{Options, Outcome, Verbosity, Verdict, run};

/// `rounds` rounds of `count` equal peers, in sites of `per_site`, in dense f32, without overlap and fragments. The seed is of none with
/// a chain.
pub(crate) fn calm(
    seed: u64,
    count: usize,
    per_site: usize,
    plan: PlanKind,
    rounds: u64,
) -> Options {
    let chosen = Chosen {
        plan: Some(plan),
        overlap: Some(0),
        fragments: Some(1),
    };
    let mut options = Options::with(seed, chosen);
    assert!(options.chain.is_none(), "seed {seed}");
    options.faults.clear();
    options.planned_scale = 1;
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
    manifest.schedule.rounds = rounds;
    manifest.trust.peers_min = count as u32;
    manifest.trust.peers_max = 64;
    manifest.timing.deadline_cap_ms = 20_000;
    assert_eq!(manifest.validate(), []);
    options
}

/// Runs it to the end, with every check of [`gradmesh_sim::checks`].
pub(crate) fn converged(options: &Options) -> Outcome {
    let outcome = run(options, Verbosity::Hash);
    assert_eq!(outcome.verdict, Verdict::Converged);
    outcome
}
