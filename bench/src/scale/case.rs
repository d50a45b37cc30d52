//! One round to be predicted: who takes part, over what, with which plan, in frames of what size.
//!
//! Rule `one-run`: the nodes of the simulator and the flow model work on the same options: the same manifest, the same peers
//! with the same keys, sites and capacities, so that the functions of [`gradmesh_protocol::plan`] say the same to both.
//!
//! Rule `shards-for-owners`: without `--shards`, a run has so many shards that what each peer gets of headers and what each owner gets of
//! updates are in balance. With n peers, updates of C bytes and h bytes of a header for each frame, n h S bytes of
//! headers come to a peer and 2 n C / S of updates to an owner of one first and one second shard, so that S = sqrt(2 C / h). More
//! shards than peers give nobody less to do, a shard has at most [`TILES_PER_SHARD_MAX`] tiles, and a decision has at most
//! [`REDUCTIONS_MAX`] sums. Rounded to what the simulator's model can have, 25 m + 2.

use gradmesh_compression::TILE_ELEMENTS;
use gradmesh_protocol::decision::{Decision, Join};
use gradmesh_protocol::fragment::Fragments;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::PerStage;
use gradmesh_protocol::key::Signature;
use gradmesh_protocol::manifest::{
    Exchange, LocalFormat, PEERS_MAX, PlanKind, RunId, SiteId, TILES_PER_SHARD_MAX, TrustMode,
};
use gradmesh_protocol::plan::{Layout, Plan, REDUCTIONS_MAX};
use gradmesh_protocol::roster::Roster;
use gradmesh_protocol::wire::{GOSSIP_BYTES_MAX, SHARDS_MAX};
use gradmesh_sim::Options;
use gradmesh_sim::lengths;
use gradmesh_sim::options::{Chosen, Large};
use gradmesh_sim::queue::{Clock, Instant};
use gradmesh_trainer::reference::ReferenceConfig;

use super::sizes::{FrameBytes, manifest_codec};
use crate::harness::CodecName;

/// The largest gossip message of the daemon's control plane (`daemon/src/net/control/mod.rs`).
const CONTROL_GOSSIP_BYTES_MAX: u64 = 256 * 1024;
/// How often 25 the simulator's model can have: its hidden layer has at most 65536 units, 4096 for each time.
const TIMES_MAX: u32 = 16;
/// What a frame adds to a header: hash, length and their tags.
const HEADER_BYTES_PER_FRAME: f64 = 41.0;
/// What a host sends into its own site: 1 Gbit/s.
const LAN_BYTES_PER_S: u64 = 125_000_000;
/// Half a latency between two hosts of a site: 0.1 ms one way.
const LAN_LATENCY_US: u64 = 50;
/// What a full packet carries of a stream, and what it takes on a line: 1452 bytes of UDP payload (a path MTU of 1480, as quinn
/// finds it) less 35 of QUIC's header, tag and stream framing; and with the headers of UDP and IP.
const PACKET_PAYLOAD: u64 = 1417;
const PACKET_BYTES: u64 = 1480;
/// What else a line carries, of 1000 parts: acknowledgements (20), and packets that a full queue drops and that are sent again
/// (35). As interfaces counted it in exchanges by `gather` of four and eight daemons over lines of 20 Mbit/s and 50 ms,
/// 2026-11-30: 1 to 2.6 % of the bytes in packets below 300 bytes, 3.4 and 4.1 % lost.
const BESIDE_MILLI: u64 = 20 + 35;
/// A seed without a chain; nothing of it is left but keys.
const SEED: u64 = 1;

/// What all cases of a run of the benchmark have in common.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) parameters: u64,
    pub(super) codec: CodecName,
    /// Of a site's line, each way.
    pub(super) bytes_per_s: u64,
    pub(super) one_way_us: u64,
    pub(super) compute_s: f64,
    pub(super) overlap: bool,
    /// Instead of rule `shards-for-owners`.
    pub(super) shards: Option<u32>,
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) setting: Setting,
    pub(super) peers: usize,
    /// With as many peers in each, or one more.
    pub(super) sites: usize,
    pub(super) plan: PlanKind,
    pub(super) shards: u32,
    pub(super) frames: FrameBytes,
}

impl Setting {
    fn tiles(&self) -> u64 {
        self.parameters.div_ceil(TILE_ELEMENTS as u64)
    }

    /// The case of `peers` peers in `sites` sites.
    ///
    /// # Errors
    /// A codec that does not exist.
    pub(super) fn case(&self, peers: usize, sites: usize, plan: PlanKind) -> anyhow::Result<Case> {
        let tiles = self.tiles();
        // Such that every plan that may be asked for fits.
        let groups = if sites < peers { sites } else { 1 };
        let shards = match self.shards {
            Some(shards) => shards,
            None => {
                let whole = FrameBytes::measure(self.codec, tiles, peers)?.usual.update as f64;
                let balanced = (2.0 * whole / HEADER_BYTES_PER_FRAME).sqrt();
                let least = tiles.div_ceil(u64::from(TILES_PER_SHARD_MAX)).max(52);
                let most = (REDUCTIONS_MAX / groups).min(SHARDS_MAX) as u64;
                let wanted = (peers as u64)
                    .min(balanced as u64)
                    .clamp(least, most.max(least));
                // Up, unless that is too many.
                let times = (wanted - 2).div_ceil(25);
                let up = 25 * times + 2;
                u32::try_from(if up <= most { up } else { up - 25 })?
            }
        };
        let frames = FrameBytes::measure(self.codec, tiles.div_ceil(shards.into()).max(1), peers)?;
        Ok(Case {
            setting: self.clone(),
            peers,
            sites,
            plan,
            shards,
            frames,
        })
    }
}

impl Case {
    /// Bytes of an update at each stage, as they are.
    pub(super) fn update_bytes(&self) -> PerStage {
        self.times_shards(&self.frames.usual)
    }

    fn times_shards(&self, frame: &PerStage) -> PerStage {
        let times = |bytes: u64| bytes * u64::from(self.shards);
        PerStage {
            local: times(frame.local),
            update: times(frame.update),
            reduced: times(frame.reduced),
        }
    }

    /// Bytes of streams that a site's line carries in a second.
    pub(super) fn payload_bytes_per_s(&self) -> u64 {
        let of_streams = self.setting.bytes_per_s * PACKET_PAYLOAD / PACKET_BYTES;
        (of_streams * (1000 - BESIDE_MILLI) / 1000).max(1)
    }

    /// `payload` bytes of streams, as an interface counts them.
    pub(super) fn on_the_line(payload: f64) -> f64 {
        payload * PACKET_BYTES as f64 / PACKET_PAYLOAD as f64
    }

    /// What a host sends into its site in a second.
    pub(super) fn lan_bytes_per_s(&self) -> u64 {
        LAN_BYTES_PER_S * PACKET_PAYLOAD / PACKET_BYTES
    }

    /// What each peer can carry, in units of 10 Mbit/s: its share of its site's line.
    pub(super) fn capacity(&self) -> u16 {
        let share = self.setting.bytes_per_s * self.sites as u64 / self.peers as u64;
        u16::try_from((share / 1_250_000).max(1)).unwrap_or(u16::MAX)
    }

    /// Rule `one-run`, without what only nodes need.
    pub(super) fn options(&self) -> Options {
        let chosen = Chosen {
            plan: Some(self.plan),
            overlap: Some(0),
            fragments: Some(1),
        };
        let mut options = Options::with(SEED, chosen);
        options.faults.clear();
        options.faults_end = Instant::from_secs(1);
        // A month: what does not converge by itself is found by the number of events.
        options.time_limit = Instant::from_secs(30 * 86_400);
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
        peer.uplink_bytes_per_s = self.lan_bytes_per_s();
        peer.latency_us = LAN_LATENCY_US;
        peer.training_fails_ppm = 0;
        peer.lie = None;
        peer.link.capacity = self.capacity();
        options.peers = (0..self.peers)
            .map(|place| {
                let mut peer = peer.clone();
                peer.link.site = SiteId::named(&format!("site {}", place % self.sites));
                peer
            })
            .collect();
        let manifest = &mut options.manifest;
        manifest.launcher_link = options.peers[0].link;
        manifest.codec = manifest_codec(self.setting.codec);
        manifest.exchange = Exchange {
            plan: self.plan,
            local: LocalFormat::Bf16,
            ..Exchange::default()
        };
        // More than PEERS_MAX is no sound manifest: nobody reads it but the plan functions.
        manifest.trust.mode = TrustMode::Byzantine;
        manifest.trust.peers_min = self.peers as u32;
        manifest.trust.peers_max = (self.peers as u32).max(PEERS_MAX);
        options
    }

    /// The first roster with everybody in it.
    pub(super) fn roster(&self, options: &Options) -> Roster {
        let founding = Roster::founding(&options.manifest);
        let run = options.manifest.run();
        let joins = (1..self.peers).map(|place| Join {
            run,
            peer: options.keypair(place).public(),
            round: founding.round(),
            state_root: Hash::ZERO,
            link: options.peers[place].link,
            signature: Signature([0; 64]),
        });
        let decision = Decision {
            run,
            round: founding.round(),
            previous: Hash::ZERO,
            state_root: Hash::ZERO,
            members: Vec::new(),
            shards: Vec::new(),
            joins: joins.collect(),
            leaves: Vec::new(),
            registry: None,
            powers: Vec::new(),
            capacities: Vec::new(),
        };
        founding.after(&decision, &options.manifest)
    }

    /// The layout of `roster`, with the plan that the planner chooses if it is to.
    pub(super) fn layout(&self, options: &Options, roster: &Roster) -> (Layout, RunId) {
        let fragments = Fragments::whole(self.shards);
        let bytes = self.times_shards(&self.frames.most);
        let layout = Layout::of(roster, &options.manifest, &fragments, &bytes);
        (layout, options.manifest.run())
    }

    /// What the planner predicts of an exchange of `roster` by `plan`.
    pub(super) fn planner_s(&self, plan: Plan, roster: &Roster) -> f64 {
        let bytes = self.times_shards(&self.frames.most);
        plan.predicted(roster, &bytes).micros as f64 / 1e6
    }

    /// The small model that has these shards, and what its frames are to count for; `None` if there is none.
    pub(super) fn large(&self) -> anyhow::Result<Option<Large>> {
        let Some(times) = self
            .shards
            .checked_sub(2)
            .filter(|s| s % 25 == 0 && (25..=25 * TIMES_MAX).contains(s))
        else {
            return Ok(None);
        };
        // Two of its shards are tiny; the others count for all.
        let tile = FrameBytes::measure(self.setting.codec, 1, self.peers)?.usual;
        let bytes = self.update_bytes();
        let scale = |bytes: u64, tile: u64| bytes * 1000 / (u64::from(times) * tile);
        Ok(Some(Large {
            model: ReferenceConfig {
                vocab: 16,
                context: 2,
                embed: 4,
                hidden: TILE_ELEMENTS * (times as usize / 25),
            },
            frame_scale_milli: PerStage {
                local: scale(bytes.local, tile.local),
                update: scale(bytes.update, tile.update),
                reduced: scale(bytes.reduced, tile.reduced),
            },
            site_bytes_per_s: self.payload_bytes_per_s(),
            one_way_us: self.setting.one_way_us,
            // Longer than any exchange that is worth looking at.
            answer_timeout_us: 86_400_000_000,
            ..Large::default()
        }))
    }

    /// What of today's limits stands against such a run.
    pub(super) fn limits(&self, groups: usize) -> Vec<String> {
        let mut limits = Vec::new();
        if self.peers > PEERS_MAX as usize {
            limits.push(format!(
                "{} members: a manifest allows {PEERS_MAX} (PEERS_MAX), because all members vote and no committee is drawn yet; \
                 64 voters are assumed",
                self.peers
            ));
        }
        let tiles_per_shard = self.setting.tiles().div_ceil(self.shards.into());
        if tiles_per_shard > u64::from(TILES_PER_SHARD_MAX) {
            limits.push(format!(
                "{tiles_per_shard} tiles in a shard: a manifest allows {TILES_PER_SHARD_MAX}"
            ));
        }
        if groups * self.shards as usize > REDUCTIONS_MAX {
            limits.push(format!(
                "{groups} groups of {} shards: a decision has at most {REDUCTIONS_MAX} sums (REDUCTIONS_MAX), so that everything \
                 goes by gather",
                self.shards
            ));
        }
        let header = lengths::header(self.shards, self.frames.usual.update);
        let proposal = lengths::proposal(self.peers, self.shards, groups, self.frames.usual.update);
        for (what, bytes) in [("header", header), ("proposal", proposal)] {
            if bytes > GOSSIP_BYTES_MAX as u64 {
                limits.push(format!(
                    "a {what} of {bytes} bytes: a message has at most {GOSSIP_BYTES_MAX} (GOSSIP_BYTES_MAX)"
                ));
            } else if bytes > CONTROL_GOSSIP_BYTES_MAX {
                limits.push(format!(
                    "a {what} of {bytes} bytes: the daemon's control plane takes {CONTROL_GOSSIP_BYTES_MAX}"
                ));
            }
        }
        if self.peers > PEERS_MAX as usize {
            let repeated = (self.peers - 1) as u64 * header;
            limits.push(format!(
                "every peer repeats its header of {header} bytes to all others once a second until the decision: {:.1} MB/s here; \
                 it is assumed to say it once",
                repeated as f64 / 1e6
            ));
        }
        limits
    }
}

/// A model of 10^9 parameters over 100 Mbit/s and 50 ms.
#[cfg(test)]
pub(super) fn tests_setting() -> Setting {
    Setting {
        parameters: 1_000_000_000,
        codec: CodecName::Sparse {
            k: 64,
            value_bits: 1,
        },
        bytes_per_s: 12_500_000,
        one_way_us: 25_000,
        compute_s: 120.0,
        overlap: false,
        shards: None,
    }
}

#[cfg(test)]
mod tests {
    use super::tests_setting as setting;
    use super::*;

    #[test]
    fn a_roster_of_any_size_is_laid_out_by_the_plan_functions() {
        for (peers, sites, plan, expected) in [
            (4, 4, PlanKind::Gather, Plan::Gather),
            (100, 100, PlanKind::Reduce, Plan::Reduce),
            (100, 10, PlanKind::Hier, Plan::Hier),
        ] {
            let case = setting().case(peers, sites, plan).unwrap();
            let options = case.options();
            let roster = case.roster(&options);
            assert_eq!(roster.len(), peers);
            assert_eq!(case.layout(&options, &roster).0.plan(), expected);
        }
    }

    #[test]
    fn shards_grow_with_peers_until_headers_outweigh_updates() {
        let shards = |peers, sites, plan| setting().case(peers, sites, plan).unwrap().shards;
        // 244141 tiles, at most 4096 in a shard.
        assert_eq!(shards(4, 4, PlanKind::Gather), 77);
        assert_eq!(shards(256, 256, PlanKind::Reduce), 277);
        let many = shards(4096, 4096, PlanKind::Reduce);
        assert!((700..1100).contains(&many), "{many}");
        // 64 groups of 128 are 8192 sums.
        assert_eq!(shards(4096, 64, PlanKind::Hier), 127);
    }

    #[test]
    fn limits_are_named_where_they_stand_in_the_way() {
        let small = setting().case(4, 4, PlanKind::Reduce).unwrap();
        assert_eq!(small.limits(1), [""; 0]);
        let large = setting().case(4096, 4096, PlanKind::Reduce).unwrap();
        let limits = large.limits(1);
        assert!(limits[0].contains("PEERS_MAX"), "{limits:?}");
        assert!(limits.iter().any(|limit| limit.contains("proposal")));
    }
}
