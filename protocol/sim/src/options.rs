//! What one seed stands for: the run, its peers, its links and everything that goes wrong.
//!
//! Each kind of fault is switched on or off by the seed (swarm testing, Groce et al., 2012): a run with every fault at
//! once hides what a run with a single one shows. All faults end at `faults_end`; what follows is the liveness phase.

use std::fmt;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::PerStage;
use gradmesh_protocol::key::Keypair;
use gradmesh_protocol::manifest::{
    Chain, Codec, CodecKind, Data, Exchange, Inner, Link, LocalFormat, Manifest, Model, ModelDtype,
    Outer, OuterRule, PlanKind, Schedule, SiteId, Timing, Trust, TrustMode,
};

use gradmesh_trainer::reference::ReferenceConfig;

use crate::chain::ChainOptions;
use crate::learner::MODEL;
use crate::queue::{Clock, Instant};
use crate::random::{Purpose, Random};

/// See the module documentation. The same seed always gives the same options.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// The run. Its launcher is peer 0.
    pub manifest: Manifest,
    /// The peers, launcher first.
    pub peers: Vec<PeerOptions>,
    /// The links between them.
    pub links: LinkOptions,
    /// By how much the planner takes updates to be larger than they are: those of the small model would never make it choose
    /// another plan than `gather`.
    pub planned_scale: u64,
    /// What makes the run stand for a large one; never of a seed.
    pub large: Option<Large>,
    /// The chain, in a chain run: every fifth seed is one (see [`is_chain_run`]).
    pub chain: Option<ChainOptions>,
    /// What goes wrong when, by time.
    pub faults: Vec<(Instant, Fault)>,
    /// When all faults are over: cuts heal, crashed and stopped peers go on, nothing is lost any more.
    pub faults_end: Instant,
    /// When a run that has not converged has failed.
    pub time_limit: Instant,
}

/// A run of small peers that stands for one of large ones: the nodes, their messages and their frames are real, and a frame is
/// counted on the links as so many of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Large {
    /// The model, which says how many shards there are.
    pub model: ReferenceConfig,
    /// For how many thousandths of a byte a byte of a frame at each stage counts on the links.
    pub frame_scale_milli: PerStage,
    /// What all peers of a site together can send to other sites, and receive of them. What stays in a site goes over the
    /// sender's own link alone.
    pub site_bytes_per_s: u64,
    /// Latency between two sites.
    pub one_way_us: u64,
    /// How long a driver waits for an answer or a frame.
    pub answer_timeout_us: u64,
    /// How long it takes to apply a decision.
    pub apply_us: u64,
    /// How long it takes to sum a shard.
    pub reduce_us: u64,
}

impl Default for Large {
    /// The peers of a seed.
    fn default() -> Large {
        Large {
            model: MODEL,
            frame_scale_milli: PerStage {
                local: 1000,
                update: 1000,
                reduced: 1000,
            },
            site_bytes_per_s: u64::MAX,
            one_way_us: 0,
            answer_timeout_us: 3_000_000,
            apply_us: 20_000,
            reduce_us: 5_000,
        }
    }
}

/// The most fragments: a tile each, of the learner's five tensors.
pub const FRAGMENTS_MAX: u32 = 5;

/// What is not left to the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The plan.
    pub plan: Option<PlanKind>,
    /// Rounds that training runs ahead of the exchange.
    pub overlap: Option<u32>,
    /// Fragments that the shards are dealt into, at most [`FRAGMENTS_MAX`].
    pub fragments: Option<u32>,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// When it is started for the first time.
    pub starts: Instant,
    /// Its clock.
    pub clock: Clock,
    /// What it sends per second at most, over all its links.
    pub uplink_bytes_per_s: u64,
    /// Its share of every latency that it is an end of.
    pub latency_us: u64,
    /// How long one inner step takes.
    pub step_us: u64,
    /// How often its training fails during the safety phase.
    pub training_fails_ppm: u32,
    /// Epoch states that it keeps for others, with the frames since the oldest of them. At least two: the root of the
    /// newest is decided only with the round after it.
    pub snapshots: usize,
    /// How it is connected.
    pub link: Link,
    /// How it lies, until the faults end; never more than one peer, and only where the run trusts nobody.
    pub lie: Option<Lie>,
}

/// A way to break the protocol on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Signs two proposals and two votes where one is allowed, and sends each to one half of the peers.
    Equivocate,
    /// Proposes decisions that claim another state root.
    WrongRoot,
    /// Commits to bytes that are no frame.
    MalformedFrame,
    /// Answers requests for decisions with one that was never decided.
    ForgedHistory,
    /// Proposes to let in a peer that the chain does not register.
    UnregisteredJoin,
    /// Proposes to put out a member that the chain registers.
    WrongPowers,
    /// Leaves inputs out of what it sums as an owner.
    WrongSum,
    /// Signs one header for one half of the peers and another one for the other half.
    SplitHeader,
    /// Signs many headers in a round, and sends all of them to everybody.
    HeaderFlood,
    /// Publishes each header a round late, again and again.
    LateHeader,
    /// Commits anew to the frames of its first update.
    Replay,
    /// Serves no frame to one half of the peers.
    Withhold,
}

/// What links do to messages until the faults end. Afterwards only latency and bandwidth are left.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Random latency on top of both ends' share, at most.
    pub jitter_us: u64,
    /// Messages lost.
    pub loss_ppm: u32,
    /// Gossip that comes twice.
    pub duplicate_ppm: u32,
    /// Messages delayed by up to a second, so that others overtake them.
    pub reorder_ppm: u32,
    /// Blobs with a changed byte.
    pub corrupt_ppm: u32,
}

/// Something that goes wrong, or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies.
    Crash {
        /// The peer.
        peer: usize,
        /// The moment; a restart comes first, at the latest.
        moment: Moment,
    },
    /// The process is started again.
    Restart(usize),
    /// The process stands still (SIGSTOP) until the given time; its clock runs on.
    Pause(usize, Instant),
    /// Messages from the first peers to the second are dropped.
    Cut(Cut),
    /// A cut ends.
    Heal(Cut),
    /// The operator lets the peer leave.
    Leave(usize),
    /// The machine is gone for good. Held back while the roster would have no quorum without it.
    Vanish(usize),
    /// The link of the peer can carry so much from now on, and its driver knows.
    Capacity(usize, u16),
}

/// When exactly a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// At once.
    Now,
    /// After so many more effects of its node, between two of them.
    AfterEffects(u32),
    /// When its next update is durable and the node does not know it yet.
    AfterTraining,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Senders, as a bit set.
    pub from: u64,
    /// Receivers, as a bit set.
    pub to: u64,
    /// Whether the other direction is cut, too.
    pub both_ways: bool,
}

impl Cut {
    /// Whether a message from `from` to `to` is dropped.
    pub fn drops(&self, from: usize, to: usize) -> bool {
        let holds = |set: u64, peer: usize| set >> peer & 1 == 1;
        (holds(self.from, from) && holds(self.to, to))
            || (self.both_ways && holds(self.from, to) && holds(self.to, from))
    }
}

/// Numbers of peers to draw from: most faults need few peers to show, and votes cost the square of their number.
const PEERS: [u64; 20] = [4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 7, 7, 8, 8, 10, 16];
/// Loss rates to draw from, per million.
const LOSSES_PPM: [u32; 5] = [1_000, 10_000, 50_000, 100_000, 250_000];
/// A run converges within this after the faults, for each round: the slowest training and the longest exchange take less
/// than a minute, attempts of an agreement grow to a minute each, and a roster has at most a few that fail in a row.
const LIVENESS_PER_ROUND_S: u64 = 120;
/// Added to it once: reconnecting, catching up, and attempts whose waits grew during the faults.
const LIVENESS_EXTRA_S: u64 = 600;

impl Options {
    /// The options of `seed`.
    pub fn new(seed: u64) -> Options {
        Options::with(seed, Chosen::default())
    }

    /// The options of `seed`, but for what is `chosen`.
    pub fn with(seed: u64, chosen: Chosen) -> Options {
        let mut random = Random::new(seed, Purpose::Options);
        let r = &mut random;
        let count = r.pick(&PEERS) as usize;
        let keys: Vec<Keypair> = (0..count).map(|peer| keypair(seed, peer)).collect();
        let step_us = r.within(50_000..=600_000);
        let mut manifest = manifest(r, seed, &keys[0], count, step_us);
        let byzantine = manifest.trust.mode == TrustMode::Byzantine;
        let faults_end = Instant::from_secs(r.within(10..=60));

        let starters = manifest.trust.peers_min.max(2) as usize;
        let skewed = r.chance(500_000);
        let thin = r.chance(250_000);
        let failing = r.chance(200_000);
        let near = r.chance(300_000);
        let mut peers: Vec<PeerOptions> = (0..count)
            .map(|place| {
                let slow = r.chance(150_000);
                PeerOptions {
                    starts: if place < starters {
                        Instant(r.within(0..=1_000_000))
                    } else {
                        Instant(r.within(0..=faults_end.0))
                    },
                    clock: Clock {
                        origin_ms: r.within(0..=1_000_000),
                        drift_ppm: if skewed {
                            r.within(0..=2000) as i64 - 1000
                        } else {
                            0
                        },
                    },
                    uplink_bytes_per_s: if thin {
                        r.within(50_000..=500_000)
                    } else {
                        r.within(1_000_000..=100_000_000)
                    },
                    latency_us: if near {
                        r.within(100..=2_000)
                    } else {
                        r.within(1_000..=90_000)
                    },
                    step_us: step_us * r.within(90..=110) / 100 * if slow { 3 } else { 1 },
                    training_fails_ppm: if failing { 100_000 } else { 0 },
                    snapshots: r.within(2..=3) as usize,
                    link: Link::alone(&keys[place].public()),
                    lie: None,
                }
            })
            .collect();
        if byzantine && starters >= 4 && r.chance(350_000) {
            let liar = r.within(1..=starters as u64 - 1) as usize;
            let lies = [
                Lie::Equivocate,
                Lie::WrongRoot,
                Lie::MalformedFrame,
                Lie::ForgedHistory,
            ];
            peers[liar].lie = Some(r.pick(&lies));
        }

        let rate = |ppm: u32, r: &mut Random| if r.chance(500_000) { ppm } else { 0 };
        let loss = r.pick(&LOSSES_PPM);
        let links = LinkOptions {
            jitter_us: r.within(0..=60_000),
            loss_ppm: rate(loss, r),
            duplicate_ppm: rate(50_000, r),
            reorder_ppm: rate(50_000, r),
            corrupt_ppm: rate(20_000, r),
        };
        let mut faults = faults(r, count, starters, faults_end, &peers);
        let chain = is_chain_run(seed).then(|| {
            let r = &mut Random::new(seed, Purpose::Chain);
            if let Some(liar) = peers.iter_mut().find(|peer| peer.lie.is_some())
                && r.chance(500_000)
            {
                liar.lie = Some(r.pick(&[Lie::UnregisteredJoin, Lie::WrongPowers]));
            }
            let liar = peers.iter().position(|peer| peer.lie.is_some());
            let chain = ChainOptions::new(r, count, liar, faults_end);
            let registered = (0..count)
                .filter(|peer| chain.ends_registered(*peer))
                .count();
            manifest.chain = Chain::Subnet(chain.subnet);
            manifest.trust.peers_min = manifest.trust.peers_min.min(registered as u32);
            chain
        });
        let r = &mut Random::new(seed, Purpose::Plan);
        exchange(r, chosen, &mut manifest, &mut peers);
        let r = &mut Random::new(seed, Purpose::Lies);
        if let Some(liar) = peers.iter_mut().find(|peer| peer.lie.is_some())
            && r.chance(500_000)
        {
            liar.lie = Some(r.pick(&[
                Lie::SplitHeader,
                Lie::HeaderFlood,
                Lie::LateHeader,
                Lie::Replay,
                Lie::Withhold,
            ]));
        }
        let r = &mut Random::new(seed, Purpose::Links);
        let planned_scale = r.pick(&[1, 300, 1000]);
        faults.extend(changed_links(r, count, faults_end));
        faults.sort_by_key(|(at, _)| *at);
        let rounds = manifest.schedule.rounds;
        let limit_s = LIVENESS_EXTRA_S + rounds * LIVENESS_PER_ROUND_S;
        Options {
            seed,
            manifest,
            peers,
            links,
            planned_scale,
            large: None,
            chain,
            faults,
            faults_end,
            time_limit: Instant(faults_end.0 + Instant::from_secs(limit_s).0),
        }
    }

    /// What the peers are like, be they of a seed or not.
    pub(crate) fn sizes(&self) -> Large {
        self.large.unwrap_or_default()
    }

    /// The key pair of `peer`.
    pub fn keypair(&self, peer: usize) -> Keypair {
        keypair(self.seed, peer)
    }
}

/// Draws how updates are exchanged, over which sites, whether a liar sums wrongly, the overlap, and the fragments.
fn exchange(r: &mut Random, chosen: Chosen, manifest: &mut Manifest, peers: &mut [PeerOptions]) {
    let plans = [
        PlanKind::Gather,
        PlanKind::Reduce,
        PlanKind::Reduce,
        PlanKind::Hier,
        PlanKind::Hier,
        PlanKind::Auto,
    ];
    let drawn = r.pick(&plans);
    let plan = chosen.plan.unwrap_or(drawn);
    manifest.exchange = Exchange {
        plan,
        reduced_k: 1024,
        reduced_value_bits: r.pick(&[1, 2, 4]),
        owner_beta_ppm: 900_000,
        local: r.pick(&[LocalFormat::Bf16, LocalFormat::F32]),
        overlap: 0,
        fragments: 1,
    };
    let sites = r.within(1..=4);
    for peer in peers.iter_mut() {
        peer.link.capacity = r.pick(&[0, 1, 10, 10, 10, 100]);
        if r.chance(800_000) {
            peer.link.site = SiteId::named(&format!("site {}", r.within(1..=sites)));
        }
        let falsifies = r.chance(500_000) && plan != PlanKind::Gather;
        if peer.lie.is_some() && falsifies {
            peer.lie = Some(Lie::WrongSum);
            peer.link.capacity = 100;
        }
    }
    manifest.launcher_link = peers[0].link;
    let drawn = u32::from(r.chance(400_000));
    manifest.exchange.overlap = chosen.overlap.unwrap_or(drawn);
    let drawn = if r.chance(250_000) {
        r.within(2..=3) as u32
    } else {
        1
    };
    let fragments = chosen.fragments.unwrap_or(drawn);
    manifest.exchange.fragments = fragments;
    // As many shards at least.
    let tiles = &mut manifest.codec.tiles_per_shard;
    *tiles = (*tiles).min(FRAGMENTS_MAX / fragments);
}

/// Draws whose link comes to carry something else, and when.
fn changed_links(r: &mut Random, count: usize, end: Instant) -> Vec<(Instant, Fault)> {
    if !r.chance(500_000) {
        return Vec::new();
    }
    let changes = (0..r.within(1..=6)).map(|_| {
        let at = Instant(r.within(0..=end.0 - 1));
        let peer = r.within(0..=count as u64 - 1) as usize;
        (at, Fault::Capacity(peer, r.pick(&[0, 1, 3, 10, 15, 100])))
    });
    changes.collect()
}

/// Whether `seed` stands for a chain run.
pub fn is_chain_run(seed: u64) -> bool {
    seed % 5 == 2
}

fn keypair(seed: u64, peer: usize) -> Keypair {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"gradmesh simulated peer");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(peer as u64).to_le_bytes());
    Keypair::from_seed(hasher.finalize().as_bytes())
}

fn manifest(r: &mut Random, seed: u64, launcher: &Keypair, peers: usize, step_us: u64) -> Manifest {
    let kinds = [
        CodecKind::Sparse,
        CodecKind::Sparse,
        CodecKind::DenseBf16,
        CodecKind::DenseF32,
    ];
    let kind = r.pick(&kinds);
    let rule = if kind == CodecKind::Sparse {
        OuterRule::Plain
    } else {
        OuterRule::Nesterov
    };
    let late = r.within(0..=peers as u64 / 3) as u32;
    let mode = if r.chance(600_000) {
        TrustMode::Byzantine
    } else {
        TrustMode::Crash
    };
    let steps = r.within(2..=8) as u32;
    let train_ms = (step_us * u64::from(steps) / 1000) as u32;
    let deadline_floor_ms = r.within(200..=1500) as u32;
    Manifest {
        name: format!("simulation {seed}"),
        launcher: launcher.public(),
        seed: Hash::of_content(&seed.to_le_bytes()),
        model: Model {
            config_json: "{}".into(),
            dtype: ModelDtype::F32,
        },
        data: Data {
            root: Hash::of_content(b"simulated data"),
            bytes: 1,
            files: 1,
            sequence_tokens: 8,
        },
        inner: Inner {
            batch_sequences: 2,
            learning_rate_ppm: 10_000,
            warmup_steps: 2,
            beta1_ppm: 900_000,
            beta2_ppm: 950_000,
            weight_decay_ppm: 0,
        },
        outer: Outer {
            rule,
            rate_ppm: if rule == OuterRule::Plain {
                1_000_000
            } else {
                700_000
            },
            momentum_ppm: if rule == OuterRule::Plain { 0 } else { 900_000 },
        },
        codec: Codec {
            kind,
            k: 1024,
            value_bits: r.pick(&[1, 2, 4]),
            feedback_beta_ppm: 950_000,
            sparse_elements_min: 32,
            tiles_per_shard: r.within(2..=5) as u32,
        },
        schedule: Schedule {
            steps_per_round: steps,
            rounds: r.within(6..=12),
            rounds_per_epoch: r.within(1..=4) as u32,
        },
        trust: Trust {
            mode,
            peers_min: peers as u32 - late,
            peers_max: 16,
            absent_rounds_max: r.within(2..=4) as u32,
        },
        timing: Timing {
            deadline_floor_ms,
            deadline_cap_ms: deadline_floor_ms + train_ms * 2 + r.within(500..=3000) as u32,
            propose_ms: r.within(800..=3000) as u32,
            vote_ms: r.within(300..=1000) as u32,
        },
        chain: Chain::None,
        exchange: Exchange::default(),
        launcher_link: Link::alone(&launcher.public()),
        audit: None,
    }
}

fn faults(
    r: &mut Random,
    count: usize,
    starters: usize,
    end: Instant,
    peers: &[PeerOptions],
) -> Vec<(Instant, Fault)> {
    let mut faults = Vec::new();
    let all = (1u64 << count) - 1;
    let any = |r: &mut Random| r.within(0..=count as u64 - 1) as usize;
    let when = |r: &mut Random| Instant(r.within(0..=end.0 - 1));
    if r.chance(500_000) {
        for _ in 0..r.within(1..=2 + count as u64 / 2) {
            let (peer, at) = (any(r), when(r));
            let down_us = r.within(10_000..=15_000_000);
            let crash = Fault::Crash {
                peer,
                moment: match r.within(0..=9) {
                    0..=3 => Moment::Now,
                    4..=7 => Moment::AfterEffects(r.within(0..=12) as u32),
                    _ => Moment::AfterTraining,
                },
            };
            faults.push((at, crash));
            faults.push((Instant((at.0 + down_us).min(end.0)), Fault::Restart(peer)));
        }
    }
    if r.chance(400_000) {
        for _ in 0..r.within(1..=3) {
            let at = when(r);
            let group = r.within(1..=all - 1);
            let cut = if r.chance(400_000) {
                // One pair.
                let (a, b) = (any(r), any(r));
                Cut {
                    from: 1 << a,
                    to: (1 << b) & !(1 << a),
                    both_ways: r.chance(600_000),
                }
            } else {
                Cut {
                    from: group,
                    to: all & !group,
                    both_ways: r.chance(600_000),
                }
            };
            let until = Instant((at.0 + r.within(500_000..=25_000_000)).min(end.0));
            faults.push((at, Fault::Cut(cut.clone())));
            faults.push((until, Fault::Heal(cut)));
        }
    }
    if r.chance(300_000) {
        for _ in 0..r.within(1..=3) {
            let (peer, at) = (any(r), when(r));
            let until = Instant((at.0 + r.within(200_000..=12_000_000)).min(end.0));
            faults.push((at, Fault::Pause(peer, until)));
        }
    }
    // The launcher stays until the run has begun: nobody else can begin it.
    let honest = |peer: usize| peers[peer].lie.is_none();
    if r.chance(250_000) && count > 4 {
        let peer = r.within(1..=starters as u64 - 1) as usize;
        if honest(peer) {
            faults.push((when(r), Fault::Leave(peer)));
        }
    }
    if r.chance(200_000) && count > 4 {
        let peer = r.within(1..=starters as u64 - 1) as usize;
        faults.push((when(r), Fault::Vanish(peer)));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest {
            schedule,
            trust,
            timing,
            codec,
            exchange,
            ..
        } = &self.manifest;
        writeln!(f, "seed {}", self.seed)?;
        writeln!(
            f,
            "run: {} rounds of {} steps, trust {:?}, {} to {} peers, out after {} absences",
            schedule.rounds,
            schedule.steps_per_round,
            trust.mode,
            trust.peers_min,
            trust.peers_max,
            trust.absent_rounds_max
        )?;
        writeln!(
            f,
            "     {:?}, {} bit, {} tiles per shard; plan {:?}, overlap {}, {} fragments; deadline {} to {} ms, propose {} ms, vote {} ms",
            codec.kind,
            codec.value_bits,
            codec.tiles_per_shard,
            exchange.plan,
            exchange.overlap,
            exchange.fragments,
            timing.deadline_floor_ms,
            timing.deadline_cap_ms,
            timing.propose_ms,
            timing.vote_ms
        )?;
        let links = &self.links;
        writeln!(
            f,
            "links: jitter {} us; per million: {} lost, {} doubled, {} late, {} corrupt",
            links.jitter_us,
            links.loss_ppm,
            links.duplicate_ppm,
            links.reorder_ppm,
            links.corrupt_ppm
        )?;
        for (place, peer) in self.peers.iter().enumerate() {
            write!(
                f,
                "peer {place} {}: starts {}, step {} us, latency {} us, up {} B/s, drift {} ppm, keeps {} states",
                self.keypair(place).public().short(),
                peer.starts,
                peer.step_us,
                peer.latency_us,
                peer.uplink_bytes_per_s,
                peer.clock.drift_ppm,
                peer.snapshots
            )?;
            if peer.training_fails_ppm > 0 {
                write!(f, ", training fails {} ppm", peer.training_fails_ppm)?;
            }
            let (site, capacity) = (peer.link.site.0, peer.link.capacity);
            write!(f, ", site {}, capacity {capacity}", site.short())?;
            match peer.lie {
                Some(lie) => writeln!(f, ", lies: {lie:?}")?,
                None => writeln!(f)?,
            }
        }
        if let Some(chain) = &self.chain {
            writeln!(
                f,
                "chain: {:?}, a snapshot every {} us; stakes {:?}",
                chain.subnet, chain.interval_us, chain.stakes
            )?;
            for (peer, view) in chain.views.iter().enumerate() {
                writeln!(f, "peer {peer} sees the chain: {view:?}")?;
            }
            for (number, peer, stake) in &chain.changes {
                writeln!(f, "snapshot {number}: stake of {peer} is {stake:?}")?;
            }
        }
        writeln!(f, "planned scale {}", self.planned_scale)?;
        for (at, fault) in &self.faults {
            writeln!(f, "{at}: {fault:?}")?;
        }
        write!(
            f,
            "faults end at {}, must converge before {}",
            self.faults_end, self.time_limit
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_gives_a_sound_run_and_the_same_one_twice() {
        for seed in 0..300 {
            let options = Options::new(seed);
            assert_eq!(options.manifest.validate(), [], "seed {seed}");
            assert_eq!(options.to_string(), Options::new(seed).to_string());
            assert!((4..=16).contains(&options.peers.len()));
            assert!(
                options
                    .faults
                    .iter()
                    .all(|(at, _)| *at <= options.faults_end)
            );
            let liars = options.peers.iter().filter(|p| p.lie.is_some()).count();
            let trusting = options.manifest.trust.mode == TrustMode::Crash;
            assert!(liars <= usize::from(!trusting));
            assert_eq!(options.chain.is_some(), is_chain_run(seed));
            if let Some(chain) = &options.chain {
                let last = chain.changes.last().map_or(0, |(number, ..)| *number);
                assert!(last * chain.interval_us <= options.faults_end.0.max(chain.interval_us));
                let registered = chain.stakes_at(u64::MAX).into_iter().flatten().count();
                assert!(registered >= 3.max(options.manifest.trust.peers_min as usize));
            }
        }
    }

    #[test]
    fn a_one_way_cut_leaves_the_other_direction() {
        let mut cut = Cut {
            from: 0b0011,
            to: 0b1100,
            both_ways: false,
        };
        assert!(cut.drops(0, 2) && cut.drops(1, 3));
        assert!(!cut.drops(2, 0) && !cut.drops(0, 1) && !cut.drops(2, 3));
        cut.both_ways = true;
        assert!(cut.drops(2, 0));
    }
}
