//! The manifest: everything that the peers of a run must agree on beforehand.
//!
//! Its hash names the run, and the launcher signs it. Every figure is an integer: rates are parts per million (ppm),
//! so that two peers never read a float differently. A manifest that [`Manifest::validate`] refuses never becomes a
//! run, and one that arrives from a peer is validated like one from a file.

use std::fmt;

use crate::audit::segment::SEGMENTS_MAX;
use crate::fragment::FRAGMENTS_MAX;
use crate::hash::Hash;
use crate::key::{Keypair, PeerKey, Signature};
use crate::wire::{self, WireError};

/// The version of the manifest that this build writes and reads.
pub const MANIFEST_VERSION: u32 = 4;
/// The most peers in a roster: the most voters for which one all-to-all vote stays cheap (DESIGN: committee above).
pub const PEERS_MAX: u32 = 64;
/// The most tiles of a shard.
pub const TILES_PER_SHARD_MAX: u32 = 4096;
/// The most blocks between two snapshots of the registry: a day of the 12 s blocks of subtensor. A node that does not
/// keep old states has the last 256; with at most a third of that between snapshots, a peer that starts finds two.
pub const SNAPSHOT_BLOCKS_MAX: u64 = 7200;
/// The longest model configuration, in bytes: ten times the longest that we have met.
pub const MODEL_CONFIG_BYTES_MAX: usize = 64 * 1024;

/// The most entries of a table of tolerances: the pairs of ten device classes.
pub const TOLERANCES_MAX: usize = 64;
/// The largest tolerance, in parts per billion: 5 %. The least cheat that we know, one of 30 batches replaced, has 5.4 %
/// over half a round and 20 % over a whole one.
pub const TOLERANCE_PPB_MAX: u32 = 50_000_000;

const SITE_DOMAIN: &str = "gradmesh site v1";
const MANIFEST_DOMAIN: &str = "gradmesh manifest v1";
const MANIFEST_SIGNATURE_DOMAIN: &str = "gradmesh manifest signature v1";

/// The name of a run: the hash of its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub Hash);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A training round. Round 0 founds the run: it trains nothing and admits the first peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RoundId(pub u64);

impl RoundId {
    /// The founding round.
    pub const FOUNDING: RoundId = RoundId(0);

    /// The round after this one.
    pub fn next(self) -> RoundId {
        RoundId(self.0.saturating_add(1))
    }

    /// The round before this one; `None` for the founding round.
    pub fn previous(self) -> Option<RoundId> {
        self.0.checked_sub(1).map(RoundId)
    }
}

impl fmt::Display for RoundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many faulty peers a decision survives, and of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustMode {
    /// Peers may lie: a decision needs more than 2/3 of the voting power.
    Byzantine,
    /// Peers may only stop: more than 1/2. One of three may die.
    Crash,
}

/// The number format that the model computes in. Parameters and updates are f32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelDtype {
    /// 32-bit floats throughout.
    F32,
    /// bf16 in the forward and backward pass.
    Bf16,
}

/// How the aggregate of a round changes theta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterRule {
    /// `theta -= rate * aggregate`; error feedback takes the place of momentum (sparse mode).
    Plain,
    /// Nesterov momentum over aggregates (dense mode, DiLoCo).
    Nesterov,
}

/// How updates travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecKind {
    /// Top-k of each tile, sign and one f16 level (1 bit) or two levels (2 bits); small tensors bf16.
    Sparse,
    /// Every element as bf16.
    DenseBf16,
    /// Every element as f32.
    DenseF32,
    /// Every element as an 8-bit integer, with a scale for each block.
    DenseInt8,
    /// Every element as a 4-bit integer, with a scale for each block.
    DenseInt4,
}

/// Peers joined by a fast network, by hash of the site's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub Hash);

impl SiteId {
    /// The site called `name`.
    pub fn named(name: &str) -> SiteId {
        let mut body = vec![0];
        body.extend_from_slice(name.as_bytes());
        SiteId(Hash::in_domain(SITE_DOMAIN, &body))
    }

    /// The site of a peer that is in none: itself.
    pub fn alone(peer: &PeerKey) -> SiteId {
        let mut body = vec![1];
        body.extend_from_slice(&peer.0);
        SiteId(Hash::in_domain(SITE_DOMAIN, &body))
    }
}

/// How a peer is connected, as it says itself when it joins; what it says of its capacity later follows the rules of
/// [`crate::capacity`]. A peer that overstates its capacity is given shards that it
/// is slow with; one that names the site of others gets its frames summed with theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its site.
    pub site: SiteId,
    /// What it can carry as an owner, in units of 10 Mbit/s. 0: behind NAT or thin; it owns nothing.
    pub capacity: u16,
}

impl Link {
    /// A peer in a site of its own that can carry 100 Mbit/s.
    pub fn alone(peer: &PeerKey) -> Link {
        Link {
            site: SiteId::alone(peer),
            capacity: 10,
        }
    }
}

/// How the frames of a round travel, as the manifest wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanKind {
    /// The planner chooses for each roster what it predicts to be the fastest.
    Auto,
    /// Everyone gets everyone's frames.
    Gather,
    /// Two owners of each shard sum it for everybody.
    Reduce,
    /// Two owners of each shard in each site sum it for the site; sites exchange what they summed.
    Hier,
}

/// The dense format inside a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalFormat {
    /// bf16.
    Bf16,
    /// f32.
    F32,
}

/// How updates are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The plan.
    pub plan: PlanKind,
    /// Elements kept of a full tile on the way down from an owner (sparse).
    pub reduced_k: u32,
    /// Bits of a kept value on the way down, sign included: 1, 2 or 4 (sparse).
    pub reduced_value_bits: u32,
    /// Decay of the owner residual of the `reduce` plan, parts per million.
    pub owner_beta_ppm: u32,
    /// The format inside a site (`hier`).
    pub local: LocalFormat,
    /// Rounds that training runs ahead of the exchange, 0 or 1. With 1 a round takes as long as the longer of training and
    /// exchange, not both, and each round trains without what the others learnt in the round before it (rule `train-ahead`
    /// of the node).
    pub overlap: u32,
    /// Fragments that the shards are dealt into; a round exchanges one of them (rule `one-at-a-time` of [`crate::fragment`]).
    /// With P of them a round moves a P-th of the bytes, and P rounds exchange everything once: for the same bytes per token,
    /// `steps_per_round` is divided by P.
    pub fragments: u32,
}

impl Default for Exchange {
    /// The planner's choice; k' = 256 with 2 bits and a decay of 0.9, the figures of DESIGN, section 4; no overlap, all shards in each
    /// round.
    fn default() -> Exchange {
        Exchange {
            plan: PlanKind::Auto,
            reduced_k: 256,
            reduced_value_bits: 2,
            owner_beta_ppm: 900_000,
            local: LocalFormat::Bf16,
            overlap: 0,
            fragments: 1,
        }
    }
}

/// See the module documentation. Field units stand in their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// A name for people; 1 to 64 printable characters.
    pub name: String,
    /// The peer that signs the manifest and decides the founding round alone.
    pub launcher: PeerKey,
    /// From which theta of round 1 is drawn.
    pub seed: Hash,
    /// The model.
    pub model: Model,
    /// The data.
    pub data: Data,
    /// The inner optimizer (AdamW).
    pub inner: Inner,
    /// The outer optimizer.
    pub outer: Outer,
    /// The codec of updates.
    pub codec: Codec,
    /// How long the run is and how it is cut.
    pub schedule: Schedule,
    /// Who decides.
    pub trust: Trust,
    /// Deadlines and timeouts.
    pub timing: Timing,
    /// Who may be a member, and with which power.
    pub chain: Chain,
    /// How updates are exchanged.
    pub exchange: Exchange,
    /// How the launcher is connected: it is the one member that never joins.
    pub launcher_link: Link,
    /// How work is audited; `None`: not at all.
    pub audit: Option<Audit>,
}

/// How work is audited ([`crate::audit`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Segments of a round (S), at most one per inner step. An audit does one again, so that it costs an S-th of a round.
    pub segments: u32,
    /// Chance that a validator audits a peer in a round (c), parts per million.
    pub coverage_ppm: u32,
    /// Rounds of a newcomer, and after a suspension, that are all audited.
    pub probation_rounds: u32,
    /// Rounds after a failure that are not paid for (K). More than 1 / c, or cheating pays.
    pub suspension_rounds: u32,
    /// Sequences of each kind (assigned, common) that a loss is measured on.
    pub loss_sequences: u32,
    /// Chance that the loss of an audited update is measured too, parts per million.
    pub loss_ppm: u32,
    /// What a round's inner optimizer begins with.
    pub inner: InnerState,
    /// Measured spreads between device classes, sorted by both names; others have the tolerances of
    /// [`Audit::tolerance_ppb`].
    pub tolerances: Vec<Tolerance>,
}

/// What the inner optimizer of a round begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerState {
    /// Rule `carried-or-zero` of [`crate::audit::segment`].
    Carried,
    /// Zero in every round: an auditor needs nothing that is not public for the first segment, at 1 to 2 % of loss.
    Reset,
}

/// How much the updates of two honest peers may differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tolerance {
    /// A device class.
    pub first: String,
    /// Another one, or the same; not before `first`.
    pub second: String,
    /// The largest error of an update relative to the update, parts per billion.
    pub error_ppb: u32,
}

/// The chain of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// No chain: whoever holds a ticket may be a member, and each member has one vote.
    None,
    /// A Bittensor subnet: only peers that it registers may be members (see [`crate::registry`]).
    Subnet(Subnet),
}

/// The subnet of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The chain, by the hash of its genesis block.
    pub genesis: Hash,
    /// The subnet's number on it.
    pub netuid: u16,
    /// What gives a member its voting power.
    pub powers: Powers,
    /// Blocks between two snapshots of the registry: they are taken at the finalized blocks whose number is a multiple.
    pub snapshot_blocks: u32,
}

/// What gives a registered peer its voting power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Powers {
    /// Each has one vote. A second registration is a second vote, at the price of a registration.
    Equal,
    /// In proportion to stake (rule `stake-votes` of [`crate::registry`]).
    Stake,
}

/// The model of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// A Hugging Face `config.json`; interpreted by the trainer.
    pub config_json: String,
    /// The format that the model computes in.
    pub dtype: ModelDtype,
}

/// The data of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Root hash of the data manifest.
    pub root: Hash,
    /// Bytes over all files.
    pub bytes: u64,
    /// Number of files.
    pub files: u32,
    /// Tokens of one training sequence.
    pub sequence_tokens: u32,
}

/// The inner optimizer: AdamW, gradients clipped to norm 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Sequences of one inner step.
    pub batch_sequences: u32,
    /// Learning rate, parts per million.
    pub learning_rate_ppm: u32,
    /// Inner steps over which the rate rises from 0, counted over the run.
    pub warmup_steps: u32,
    /// First moment decay, parts per million.
    pub beta1_ppm: u32,
    /// Second moment decay, parts per million.
    pub beta2_ppm: u32,
    /// Decoupled weight decay, parts per million.
    pub weight_decay_ppm: u32,
}

/// The outer optimizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The rule.
    pub rule: OuterRule,
    /// Its rate (alpha), parts per million.
    pub rate_ppm: u32,
    /// Its momentum, parts per million; 0 with [`OuterRule::Plain`].
    pub momentum_ppm: u32,
}

/// The codec of updates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codec {
    /// Sparse or dense.
    pub kind: CodecKind,
    /// Elements kept of a full tile (sparse).
    pub k: u32,
    /// Bits of a kept value, sign included: 1, 2 or 4 (sparse).
    pub value_bits: u32,
    /// Decay of the error feedback, parts per million.
    pub feedback_beta_ppm: u32,
    /// Tensors with fewer elements travel dense as bf16.
    pub sparse_elements_min: u64,
    /// Tiles of one shard.
    pub tiles_per_shard: u32,
}

/// How long the run is and how it is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Inner steps of a round (H).
    pub steps_per_round: u32,
    /// Training rounds of the run.
    pub rounds: u64,
    /// Rounds of an epoch; each ends in a checkpoint.
    pub rounds_per_epoch: u32,
}

/// Who decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The kind of fault to survive.
    pub mode: TrustMode,
    /// Peers, the launcher included, with which the run starts.
    pub peers_min: u32,
    /// The most peers in the roster.
    pub peers_max: u32,
    /// Decided rounds in a row without an update after which a peer leaves the roster.
    pub absent_rounds_max: u32,
}

/// Deadlines and timeouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Least slack that the adaptive deadline leaves over the median arrival.
    pub deadline_floor_ms: u32,
    /// The longest a round waits for updates, counted from its start.
    pub deadline_cap_ms: u32,
    /// How long voters wait for a proposal and the bytes that it names.
    pub propose_ms: u32,
    /// How long voters wait for stragglers after a quorum of votes.
    pub vote_ms: u32,
}

/// A fault of a manifest: the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ManifestFault {
    /// The field, as in the run file.
    pub field: &'static str,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl Manifest {
    /// The run that this manifest names.
    pub fn run(&self) -> RunId {
        RunId(Hash::in_domain(
            MANIFEST_DOMAIN,
            &wire::encode_manifest(self),
        ))
    }

    /// All faults at once; empty when the manifest is sound.
    pub fn validate(&self) -> Vec<ManifestFault> {
        let mut faults = Vec::new();
        let mut check = |field, sound: bool, problem: String| {
            if !sound {
                faults.push(ManifestFault { field, problem });
            }
        };
        let printable = self.name.chars().all(|c| !c.is_control());
        check(
            "name",
            printable && (1..=64).contains(&self.name.chars().count()),
            format!("{:?} is not 1 to 64 printable characters", self.name),
        );
        check(
            "model.config",
            self.model.config_json.len() <= MODEL_CONFIG_BYTES_MAX,
            format!(
                "{} bytes; at most {MODEL_CONFIG_BYTES_MAX}",
                self.model.config_json.len()
            ),
        );
        let mut range = |field, value: u64, low: u64, high: u64| {
            check(
                field,
                (low..=high).contains(&value),
                format!("{value} is not in {low}..={high}"),
            );
        };
        range("data.bytes", self.data.bytes, 1, 1 << 50);
        range("data.files", self.data.files.into(), 1, 1 << 20);
        let sequence_tokens = self.data.sequence_tokens.into();
        range("data.sequence_tokens", sequence_tokens, 2, 1 << 20);
        let batch = self.inner.batch_sequences.into();
        range("inner.batch_sequences", batch, 1, 1 << 16);
        let rate = self.inner.learning_rate_ppm.into();
        range("inner.learning_rate", rate, 1, 1_000_000);
        let warmup = self.inner.warmup_steps.into();
        range("inner.warmup_steps", warmup, 0, 1 << 30);
        range("inner.beta1", self.inner.beta1_ppm.into(), 0, 999_999);
        range("inner.beta2", self.inner.beta2_ppm.into(), 0, 999_999);
        let decay = self.inner.weight_decay_ppm.into();
        range("inner.weight_decay", decay, 0, 1_000_000);
        range("outer.rate", self.outer.rate_ppm.into(), 1, 10_000_000);
        let momentum_max = match self.outer.rule {
            OuterRule::Plain => 0,
            OuterRule::Nesterov => 999_999,
        };
        let momentum = self.outer.momentum_ppm.into();
        range("outer.momentum", momentum, 0, momentum_max);
        range("codec.k", self.codec.k.into(), 1, 1024);
        let beta = self.codec.feedback_beta_ppm.into();
        range("codec.feedback_beta", beta, 0, 1_000_000);
        let shard = self.codec.tiles_per_shard.into();
        let shard_max = TILES_PER_SHARD_MAX.into();
        range("codec.tiles_per_shard", shard, 1, shard_max);
        let steps = self.schedule.steps_per_round.into();
        range("schedule.steps_per_round", steps, 1, 100_000);
        range("schedule.rounds", self.schedule.rounds, 1, 1 << 40);
        let epoch = self.schedule.rounds_per_epoch.into();
        range("schedule.rounds_per_epoch", epoch, 1, 1 << 20);
        let peers_max = u64::from(self.trust.peers_max);
        range("trust.peers_max", peers_max, 1, PEERS_MAX.into());
        let peers_min = self.trust.peers_min.into();
        range("trust.peers_min", peers_min, 1, peers_max.max(1));
        let absent = self.trust.absent_rounds_max.into();
        range("trust.absent_rounds_max", absent, 1, 1000);
        let exchange = &self.exchange;
        range("exchange.reduced_k", exchange.reduced_k.into(), 1, 1024);
        let beta = exchange.owner_beta_ppm.into();
        range("exchange.owner_beta", beta, 0, 1_000_000);
        range("exchange.overlap", exchange.overlap.into(), 0, 1);
        let fragments = exchange.fragments.into();
        range("exchange.fragments", fragments, 1, FRAGMENTS_MAX.into());
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let floor = self.timing.deadline_floor_ms.into();
        range("timing.deadline_floor_ms", floor, 1, DAY_MS);
        let cap = self.timing.deadline_cap_ms.into();
        range("timing.deadline_cap_ms", cap, floor, DAY_MS);
        range(
            "timing.propose_ms",
            self.timing.propose_ms.into(),
            1,
            DAY_MS,
        );
        range("timing.vote_ms", self.timing.vote_ms.into(), 1, DAY_MS);
        if let Some(audit) = &self.audit {
            let segments_max = steps.min(SEGMENTS_MAX.into()).max(1);
            range("audit.segments", audit.segments.into(), 1, segments_max);
            let coverage = audit.coverage_ppm.into();
            range("audit.coverage", coverage, 1, 1_000_000);
            let probation = audit.probation_rounds.into();
            range("audit.probation_rounds", probation, 0, 1 << 20);
            let suspension = audit.suspension_rounds.into();
            let least = 1_000_000 / coverage.max(1) + 1;
            range("audit.suspension_rounds", suspension, least, 1 << 32);
            let sequences = audit.loss_sequences.into();
            range("audit.loss_sequences", sequences, 1, 1 << 16);
            range("audit.loss", audit.loss_ppm.into(), 0, 1_000_000);
            // Training ahead, and drift in shards whose turn has not come, begin from what only their peer knows.
            range(
                "audit needs exchange.overlap",
                exchange.overlap.into(),
                0,
                0,
            );
            range("audit needs exchange.fragments", fragments, 1, 1);
        }
        if let Chain::Subnet(subnet) = &self.chain {
            let blocks = subnet.snapshot_blocks.into();
            range("chain.snapshot_blocks", blocks, 1, SNAPSHOT_BLOCKS_MAX);
        }
        let tolerances = self.audit.iter().flat_map(|audit| &audit.tolerances);
        let tolerances: Vec<_> = tolerances.collect();
        for tolerance in &tolerances {
            let error = tolerance.error_ppb;
            check(
                "audit.tolerances",
                tolerance.first <= tolerance.second && (1..=TOLERANCE_PPB_MAX).contains(&error),
                format!(
                    "{} and {} with {error} ppb: the names are to be in order, the error in 1..={TOLERANCE_PPB_MAX}",
                    tolerance.first, tolerance.second
                ),
            );
        }
        let pair = |t: &Tolerance| (t.first.clone(), t.second.clone());
        let ordered = tolerances.windows(2).all(|two| pair(two[0]) < pair(two[1]));
        check(
            "audit.tolerances",
            ordered && tolerances.len() <= TOLERANCES_MAX,
            format!("not sorted by name without repeats, or more than {TOLERANCES_MAX}"),
        );
        for (field, bits) in [
            ("codec.value_bits", self.codec.value_bits),
            ("exchange.reduced_value_bits", exchange.reduced_value_bits),
        ] {
            check(
                field,
                matches!(bits, 1 | 2 | 4),
                format!("{bits} is none of 1, 2 and 4"),
            );
        }
        faults
    }

    /// Signs the manifest as its launcher.
    ///
    /// # Panics
    /// If `launcher` is not the key that the manifest names.
    pub fn sign(self, launcher: &Keypair) -> SignedManifest {
        assert_eq!(self.launcher, launcher.public(), "only the launcher signs");
        let signature = launcher.sign(&signed_hash(&self));
        SignedManifest {
            manifest: self,
            signature,
        }
    }

    /// The most tokens that one update of a round can have been trained on.
    pub fn tokens_per_round_max(&self) -> u64 {
        u64::from(self.schedule.steps_per_round)
            .saturating_mul(self.inner.batch_sequences.into())
            .saturating_mul(self.data.sequence_tokens.into())
    }

    /// The seed of a round: it fixes which data each peer trains on. Nobody knows it before `basis` is decided.
    ///
    /// `basis`: id of the last decision before any member trains the round: of the round before it; with overlap, of the
    /// round before that, and of the founding round for round 1.
    pub fn round_seed(run: &RunId, round: RoundId, basis: &Hash) -> Hash {
        let mut body = Vec::with_capacity(72);
        body.extend_from_slice(&run.0.0);
        body.extend_from_slice(&round.0.to_le_bytes());
        body.extend_from_slice(&basis.0);
        Hash::in_domain("gradmesh assign v1", &body)
    }

    /// Whether `round` is the first of an epoch. The founding round is one for itself.
    pub fn begins_epoch(&self, round: RoundId) -> bool {
        let per_epoch = self.schedule.rounds_per_epoch.into();
        round
            .previous()
            .is_none_or(|before| before.0.is_multiple_of(per_epoch))
    }

    /// Whether `round` ends an epoch.
    pub fn ends_epoch(&self, round: RoundId) -> bool {
        round.0 > 0
            && (round
                .0
                .is_multiple_of(self.schedule.rounds_per_epoch.into())
                || round.0 == self.schedule.rounds)
    }
}

fn signed_hash(manifest: &Manifest) -> Hash {
    Hash::in_domain(MANIFEST_SIGNATURE_DOMAIN, &wire::encode_manifest(manifest))
}

/// A manifest with its launcher's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// The launcher's signature over it.
    pub signature: Signature,
}

/// Why the manifest of a run was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are no manifest.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It names another run than the ticket.
    #[error("the manifest names run {found}, not {expected}; ask the launcher for a new ticket")]
    OtherRun {
        /// The run that was asked for.
        expected: RunId,
        /// The run that the bytes name.
        found: RunId,
    },
    /// The signature is not the launcher's.
    #[error("the manifest's signature is not its launcher's; the sender changed it")]
    BadSignature,
    /// Its fields are out of range.
    #[error("the manifest is not sound: {}", .0.iter().map(|f| f.to_string()).collect::<Vec<_>>().join("; "))]
    Faults(Vec<ManifestFault>),
}

impl SignedManifest {
    /// Reads and checks a manifest: well-formed, of run `expected` when given, signed, sound.
    ///
    /// # Errors
    /// The first of [`ManifestError`]'s cases that applies, in their order.
    pub fn decode(bytes: &[u8], expected: Option<RunId>) -> Result<SignedManifest, ManifestError> {
        let signed = wire::decode_signed_manifest(bytes)?;
        let found = signed.manifest.run();
        if let Some(expected) = expected.filter(|run| *run != found) {
            return Err(ManifestError::OtherRun { expected, found });
        }
        let manifest = &signed.manifest;
        if !manifest
            .launcher
            .verify(&signed_hash(manifest), &signed.signature)
        {
            return Err(ManifestError::BadSignature);
        }
        let faults = manifest.validate();
        if faults.is_empty() {
            Ok(signed)
        } else {
            Err(ManifestError::Faults(faults))
        }
    }

    /// The bytes that [`SignedManifest::decode`] reads.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode_signed_manifest(self)
    }
}

/// A sound manifest with small figures, for tests of this and other crates.
#[doc(hidden)]
pub fn example(launcher: PeerKey) -> Manifest {
    Manifest {
        name: "example".into(),
        launcher,
        seed: Hash::of_content(b"example seed"),
        model: Model {
            config_json: "{}".into(),
            dtype: ModelDtype::F32,
        },
        data: Data {
            root: Hash::of_content(b"example data"),
            bytes: 1000,
            files: 1,
            sequence_tokens: 16,
        },
        inner: Inner {
            batch_sequences: 2,
            learning_rate_ppm: 3000,
            warmup_steps: 10,
            beta1_ppm: 900_000,
            beta2_ppm: 950_000,
            weight_decay_ppm: 100_000,
        },
        outer: Outer {
            rule: OuterRule::Plain,
            rate_ppm: 2_000_000,
            momentum_ppm: 0,
        },
        codec: Codec {
            kind: CodecKind::Sparse,
            k: 64,
            value_bits: 1,
            feedback_beta_ppm: 950_000,
            sparse_elements_min: 4096,
            tiles_per_shard: 64,
        },
        schedule: Schedule {
            steps_per_round: 5,
            rounds: 12,
            rounds_per_epoch: 4,
        },
        trust: Trust {
            mode: TrustMode::Byzantine,
            peers_min: 4,
            peers_max: 16,
            absent_rounds_max: 2,
        },
        timing: Timing {
            deadline_floor_ms: 500,
            deadline_cap_ms: 5_000,
            propose_ms: 2_000,
            vote_ms: 500,
        },
        chain: Chain::None,
        exchange: Exchange {
            plan: PlanKind::Gather,
            ..Exchange::default()
        },
        launcher_link: Link::alone(&launcher),
        audit: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validate_lists_every_fault_at_once() {
        let mut manifest = example(PeerKey([1; 32]));
        assert_eq!(manifest.validate(), []);
        manifest.name = String::new();
        manifest.codec.k = 0;
        manifest.outer.momentum_ppm = 5;
        manifest.trust.peers_min = 40;
        manifest.chain = Chain::Subnet(Subnet {
            genesis: Hash::ZERO,
            netuid: 0,
            powers: Powers::Equal,
            snapshot_blocks: 0,
        });
        let fields: Vec<_> = manifest.validate().iter().map(|f| f.field).collect();
        let expected = [
            "name",
            "outer.momentum",
            "codec.k",
            "trust.peers_min",
            "chain.snapshot_blocks",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn values_have_one_two_or_four_bits() {
        for bits in 0..=8 {
            let mut manifest = example(PeerKey([1; 32]));
            manifest.codec.value_bits = bits;
            manifest.exchange.reduced_value_bits = bits;
            let fault = |field| ManifestFault {
                field,
                problem: format!("{bits} is none of 1, 2 and 4"),
            };
            let expected = match bits {
                1 | 2 | 4 => vec![],
                _ => vec![
                    fault("codec.value_bits"),
                    fault("exchange.reduced_value_bits"),
                ],
            };
            assert_eq!(manifest.validate(), expected);
        }
    }

    #[test]
    fn a_changed_manifest_is_refused_for_its_reason() {
        let launcher = Keypair::from_seed(&[1; 32]);
        let signed = example(launcher.public()).sign(&launcher);
        let run = signed.manifest.run();
        assert_eq!(
            SignedManifest::decode(&signed.encode(), Some(run)),
            Ok(signed.clone())
        );

        let mut changed = signed.clone();
        changed.manifest.schedule.rounds += 1;
        let changed_run = changed.manifest.run();
        assert_eq!(
            SignedManifest::decode(&changed.encode(), Some(run)),
            Err(ManifestError::OtherRun {
                expected: run,
                found: changed_run
            })
        );
        assert_eq!(
            SignedManifest::decode(&changed.encode(), None),
            Err(ManifestError::BadSignature)
        );

        let mut unsound = signed.manifest.clone();
        unsound.codec.value_bits = 7;
        let unsound = unsound.sign(&launcher);
        assert!(matches!(
            SignedManifest::decode(&unsound.encode(), None),
            Err(ManifestError::Faults(faults)) if faults.len() == 1
        ));
    }

    #[test]
    fn epochs_end_on_their_length_and_with_the_run() {
        let mut manifest = example(PeerKey([1; 32]));
        manifest.schedule.rounds = 10;
        let ends: Vec<_> = (0..=10)
            .filter(|r| manifest.ends_epoch(RoundId(*r)))
            .collect();
        assert_eq!(ends, [4, 8, 10]);
        let begins: Vec<_> = (0..=10)
            .filter(|r| manifest.begins_epoch(RoundId(*r)))
            .collect();
        assert_eq!(begins, [0, 1, 5, 9]);
    }
}
