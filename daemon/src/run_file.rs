//! RUN.toml: what an operator writes down to launch a run, and the manifest that follows from it.
//!
//! Sections and keys are those of [`Manifest`]; rates are written as decimal numbers and become parts per million.
//! Unknown keys are refused. [`LoadedRunFile::load`] lists every fault at once, each with its key and what is allowed.
//! `examples/run.toml` shows every key.
//!
//! Reads the run file, the model's `config.json` and whether the data directory is there; writes nothing.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use gradmesh_chain::Settings;
use gradmesh_compression::TILE_ELEMENTS;
use gradmesh_protocol::fragment::TooFewShards;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{
    self, CodecKind, Link, LocalFormat, Manifest, ModelDtype, OuterRule, PEERS_MAX, PlanKind,
    Powers, TILES_PER_SHARD_MAX, TrustMode,
};
use gradmesh_protocol::wire::SHARDS_MAX;
use gradmesh_trainer::Architecture;
use gradmesh_trainer::data::{DataError, DataManifest, VOCAB};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::tolerances::ToleranceFile;

/// The longest run file or `config.json` that is read: a hundred times the longest that we have met.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Parts per million of one.
const PPM: f64 = 1e6;

/// See [`Codec::tiles_per_shard`].
const TILES_PER_SHARD_DEFAULT: u32 = 64;
/// The most shards that the default makes, unless shards were to have more than [`TILES_PER_SHARD_MAX`] tiles then. A guess: a
/// header of 21 KB, which is repeated each second while a round is open, and work for as many peers as a run may have.
const SHARDS_DEFAULT_MAX: usize = 512;

/// Models that a run file may name instead of a path: name and `config.json`.
///
/// `demo-1m`: 956 thousand parameters over bytes; learns real text on two cores within minutes.
pub const MODEL_PRESETS: [(&str, &str); 1] = [("demo-1m", include_str!("../assets/demo-1m.json"))];

/// See the module documentation. Relative paths are relative to the run file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunFile {
    /// A name for people, 1 to 64 characters. Needed.
    pub name: String,
    /// The chain that work is attested to.
    pub chain: Chain,
    /// From which the first parameters are drawn, 64 hex digits. Default: drawn at launch. Named only to repeat a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<Hash>,
    /// The model.
    pub model: Model,
    /// The data.
    pub data: Data,
    /// The inner optimizer.
    pub inner: Inner,
    /// The outer optimizer.
    pub outer: Outer,
    /// The codec of updates.
    pub codec: Codec,
    /// How updates are exchanged.
    pub exchange: Exchange,
    /// How long the run is and how it is cut.
    pub schedule: Schedule,
    /// Who decides.
    pub trust: Trust,
    /// Deadlines and timeouts.
    pub timing: Timing,
    /// How work is audited. Without the section it is not: for friends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
}

/// The chain of a run: `chain = "none"`, or a section `[chain]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chain {
    /// No chain: nobody is paid, nothing is attested.
    #[default]
    None,
    /// A subnet of a chain.
    Subnet(Subnet),
}

/// `[chain]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Subnet {
    /// `finney`, `test`, `local` or a ws:// or wss:// URL; `--chain` wins. Default local: a node on this machine.
    pub network: String,
    /// The subnet's number. Default: a new one is registered at the first launch, for at most `--register-up-to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netuid: Option<u16>,
    /// `equal` or `stake`: what gives a member its votes. Default equal.
    pub powers: PowersName,
    /// Blocks between two looks at who is registered. Default 25: five minutes of blocks of 12 s.
    pub snapshot_blocks: u32,
}

impl Default for Subnet {
    fn default() -> Self {
        Subnet {
            network: "local".to_owned(),
            netuid: None,
            powers: PowersName::Equal,
            snapshot_blocks: 25,
        }
    }
}

impl Subnet {
    /// What the manifest says of it once chain and number are known.
    pub fn on(&self, genesis: Hash, netuid: u16) -> manifest::Chain {
        manifest::Chain::Subnet(manifest::Subnet {
            genesis,
            netuid,
            powers: match self.powers {
                PowersName::Equal => Powers::Equal,
                PowersName::Stake => Powers::Stake,
            },
            snapshot_blocks: self.snapshot_blocks,
        })
    }
}

/// Values of `chain.powers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowersName {
    /// Each member has one vote.
    Equal,
    /// Votes in proportion to stake.
    Stake,
}

impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Chain::None => serializer.serialize_str("none"),
            Chain::Subnet(subnet) => subnet.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Chain, D::Error> {
        struct NoneOrSection;
        impl<'de> Visitor<'de> for NoneOrSection {
            type Value = Chain;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"none\", or a section [chain]")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Chain, E> {
                match word {
                    "none" => Ok(Chain::None),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Chain, A::Error> {
                Subnet::deserialize(MapAccessDeserializer::new(map)).map(Chain::Subnet)
            }
        }
        deserializer.deserialize_any(NoneOrSection)
    }
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Path of a Hugging Face `config.json` of a Llama model, or a name of [`MODEL_PRESETS`]. Needed.
    pub config: String,
    /// `f32` or `bf16`: the format of the forward and backward pass. Default f32, which trains alike on every machine;
    /// bf16 is about twice as fast on GPUs.
    pub dtype: Dtype,
}

impl Default for Model {
    fn default() -> Self {
        Model {
            config: String::new(),
            dtype: Dtype::F32,
        }
    }
}

/// Values of `model.dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Directory of text files; every peer needs the same bytes. Needed.
    pub dir: PathBuf,
    /// Tokens of one training sequence. Default 512: most of a page of text, and a quarter of the memory of 1024.
    pub sequence_tokens: u32,
}

impl Default for Data {
    fn default() -> Self {
        Data {
            dir: PathBuf::new(),
            sequence_tokens: 512,
        }
    }
}

/// `[inner]`: AdamW on each peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inner {
    /// Sequences of one step. Default 8: fits a small machine.
    pub batch_sequences: u32,
    /// Learning rate. Default 0.0004, as DiLoCo (arXiv 2311.08105, table 5).
    pub learning_rate: f64,
    /// Steps over which the rate rises from 0, counted over the run. Default 100: a few rounds.
    pub warmup_steps: u32,
    /// Decay of the first moment. Default 0.9, the usual one.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95, as Llama 2 (arXiv 2307.09288, section 2.2).
    pub beta2: f64,
    /// Decoupled weight decay. Default 0.1, as Llama 2.
    pub weight_decay: f64,
}

impl Default for Inner {
    fn default() -> Self {
        Inner {
            batch_sequences: 8,
            learning_rate: 4e-4,
            warmup_steps: 100,
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 0.1,
        }
    }
}

/// `[outer]`: what the aggregate of a round does to the shared parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outer {
    /// `plain` or `nesterov`. Default plain: the error feedback of the sparse codec takes the place of momentum.
    pub rule: Rule,
    /// Rate alpha. Default 2 for plain and 0.7 for nesterov (DESIGN, section 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Momentum, 0 for plain. Default 0.9 for nesterov.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
}

impl Default for Outer {
    fn default() -> Self {
        Outer {
            rule: Rule::Plain,
            rate: None,
            momentum: None,
        }
    }
}

/// Values of `outer.rule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// `theta -= rate * aggregate`.
    Plain,
    /// Nesterov momentum.
    Nesterov,
}

/// `[codec]`: how updates travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Codec {
    /// `sparse`, `f32`, `bf16`, `int8` or `int4`. Default sparse: 230 times fewer bytes than f32.
    pub mode: Mode,
    /// Elements kept of each tile of 4096. Default 64; 32 on thin links, 128 on fat ones.
    pub k: u32,
    /// Bits of a kept value, 1, 2 or 4. Default 1: a sign and one level per tile.
    pub value_bits: u32,
    /// Decay of the error feedback in a round. Default 0.95 (DESIGN, section 5).
    pub feedback_beta: f64,
    /// Tensors with fewer elements travel whole, as bf16. Default 4096: less than a tile is not worth selecting from.
    pub sparse_elements_min: u64,
    /// Tiles of one shard, the unit of fetching and deciding. Default 64, a guess: about 5 KiB of a sparse update, so
    /// that a lost shard is little; for a model of which that makes more than 512 shards, as many as make 512, so that a
    /// header, which names each of them, stays short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiles_per_shard: Option<u32>,
}

impl Default for Codec {
    fn default() -> Self {
        Codec {
            mode: Mode::Sparse,
            k: 64,
            value_bits: 1,
            feedback_beta: 0.95,
            sparse_elements_min: 4096,
            tiles_per_shard: None,
        }
    }
}

/// Values of `codec.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Top-k of each tile.
    Sparse,
    /// Everything as bf16.
    Bf16,
    /// Everything as f32.
    F32,
    /// Everything as 8-bit integers, with a scale for each block.
    Int8,
    /// Everything as 4-bit integers, with a scale for each block.
    Int4,
}

/// `[exchange]`: who sends what to whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exchange {
    /// `auto`, `gather`, `reduce` or `hier`. Default gather: exact, and the least bytes up to some ten peers; `auto` takes what
    /// is predicted to be the fastest for each roster.
    pub plan: PlanName,
    /// Elements kept of each tile of 4096 on the way down from an owner (sparse codec). Default 512: all that eight peers
    /// select with k = 64, so that nothing waits with the owner. 256 halves the bytes and costs some loss (README).
    pub reduced_k: u32,
    /// Bits of a kept value on the way down, 1, 2 or 4. Default 4: the squared error of sums is a tenth of that with 2 (rule
    /// "seven levels" of the codec), for a quarter more bytes, and training learns as much as with all of their bits.
    pub reduced_value_bits: u32,
    /// Decay of the owners' residuals in a round. Default 0.9: without decay training goes unstable.
    pub owner_beta: f64,
    /// `bf16` or `f32`: what travels inside a site (plan hier). Default bf16.
    pub local: LocalName,
    /// Rounds that training runs ahead of the exchange, 0 or 1. Default 0: each round trains on all that was learnt before it.
    /// With 1 a round takes as long as the longer of training and exchange, not both.
    pub overlap: u32,
    /// Fragments that the model is exchanged in, one a round, 1 to 64. Default 1: a round exchanges all of it. With P of them a
    /// round moves a P-th of the bytes, so that `steps_per_round` may be a P-th as well.
    pub fragments: u32,
}

impl Default for Exchange {
    fn default() -> Self {
        Exchange {
            plan: PlanName::Gather,
            reduced_k: 512,
            reduced_value_bits: 4,
            owner_beta: 0.9,
            local: LocalName::Bf16,
            overlap: 0,
            fragments: 1,
        }
    }
}

/// Values of `exchange.plan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanName {
    /// The planner chooses.
    Auto,
    /// Everyone gets everyone's frames.
    Gather,
    /// Two owners sum each shard for everybody.
    Reduce,
    /// Two owners sum each shard in each site; sites exchange the sums.
    Hier,
}

/// Values of `exchange.local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalName {
    /// bfloat16.
    Bf16,
    /// 32-bit floats.
    F32,
}

/// `[schedule]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Inner steps between two exchanges. Default 30: with the sparse codec more steps learn less per step
    /// (SparseLoCo, arXiv 2508.15706, trains with 15 to 50).
    pub steps_per_round: u32,
    /// Training rounds of the run. Needed.
    pub rounds: u64,
    /// Rounds of an epoch; each ends in a checkpoint. Default 100: a checkpoint every few hours on slow links.
    pub rounds_per_epoch: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            steps_per_round: 30,
            rounds: 0,
            rounds_per_epoch: 100,
        }
    }
}

/// `[trust]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// `byzantine` (peers may lie; more than 2/3 must agree) or `crash` (they may only stop; more than 1/2).
    /// Default byzantine: strangers' machines.
    pub mode: TrustName,
    /// Peers, the launcher included, with which training starts. Default 4: the fewest that survive one liar.
    pub peers_min: u32,
    /// The most peers at once. Default 64, the most that vote all to all.
    pub peers_max: u32,
    /// Rounds in a row without an update after which a peer is out. Default 3: a restart takes less.
    pub absent_rounds_max: u32,
}

impl Default for Trust {
    fn default() -> Self {
        Trust {
            mode: TrustName::Byzantine,
            peers_min: 4,
            peers_max: PEERS_MAX,
            absent_rounds_max: 3,
        }
    }
}

/// Values of `trust.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrustName {
    /// Peers may lie.
    Byzantine,
    /// Peers may only stop.
    Crash,
}

/// `[timing]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// Least slack of the adaptive deadline over the median arrival. Default 2000: a hiccup of a home link.
    pub deadline_floor_ms: u32,
    /// The longest that a round waits for updates, from its start, training included. Default 3600000, an hour: only
    /// reached when the adaptive deadline knows nothing yet.
    pub deadline_cap_ms: u32,
    /// How long voters wait for a proposal and the bytes that it names; by half longer with each attempt. Default 1500: a
    /// round whose proposer freezes when all else is done is decided within two seconds. One of which nothing is heard any more
    /// is not waited for.
    pub propose_ms: u32,
    /// How long voters wait for stragglers after a quorum of votes; by half longer with each attempt. Default 1000: three
    /// round trips around the globe.
    pub vote_ms: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            deadline_floor_ms: 2_000,
            deadline_cap_ms: 3_600_000,
            propose_ms: 1_500,
            vote_ms: 1_000,
        }
    }
}

/// `[audit]`: validators do a part of the work again (`gradmesh validate`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Segments of a round, up to 64. Default: 30, or as many as a round has steps. An audit does one of them again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<u32>,
    /// Chance that a validator audits a peer in a round. Default 0.2: with newcomers' probation, cheats are paid less than the work
    /// that they skip, and copying other validators' weights saves little (docs/validation.md).
    pub coverage: f64,
    /// Rounds of a newcomer, and after a suspension, that are all audited. Default 20.
    pub probation_rounds: u32,
    /// Rounds after a failure that are not paid. Default: four over the coverage, so that cheating in one round of any number
    /// costs more than it saves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspension_rounds: Option<u32>,
    /// Sequences of each kind that the loss of an update is measured on. Default 64.
    pub loss_sequences: u32,
    /// Chance that it is measured in a round that is audited. Default 0.02: measuring costs as much as training on a bit more than
    /// `loss_sequences` sequences, which may be a good part of a short round.
    pub loss: f64,
    /// `carried` or `reset`: what the inner optimizer of a round begins with. Default carried; resetting it costs 1 to 2 % of
    /// loss.
    pub inner: InnerName,
    /// A table of `gradmesh doctor --calibrate`, relative to this file. Default: none, for machines of one kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerances: Option<PathBuf>,
}

impl Default for Audit {
    fn default() -> Self {
        Audit {
            segments: None,
            coverage: 0.2,
            probation_rounds: 20,
            suspension_rounds: None,
            loss_sequences: 64,
            loss: 0.02,
            inner: InnerName::Carried,
            tolerances: None,
        }
    }
}

/// Values of `audit.inner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InnerName {
    /// As the peer's last decided update left it.
    Carried,
    /// Zero.
    Reset,
}

/// Segments of a round unless the run file says otherwise: an audit of one costs 3.3 % of a round.
const SEGMENTS: u32 = 30;

impl Audit {
    /// What the manifest says of it. `tolerances`: what its table holds.
    fn to_manifest(
        &self,
        steps_per_round: u32,
        tolerances: Vec<manifest::Tolerance>,
        ppm: &mut impl FnMut(&str, f64) -> u32,
    ) -> manifest::Audit {
        let coverage_ppm = ppm("audit.coverage", self.coverage);
        let suspension = 4_000_000u32.div_ceil(coverage_ppm.max(1));
        manifest::Audit {
            segments: self.segments.unwrap_or(SEGMENTS.min(steps_per_round)),
            coverage_ppm,
            probation_rounds: self.probation_rounds,
            suspension_rounds: self.suspension_rounds.unwrap_or(suspension),
            loss_sequences: self.loss_sequences,
            loss_ppm: ppm("audit.loss", self.loss),
            inner: match self.inner {
                InnerName::Carried => manifest::InnerState::Carried,
                InnerName::Reset => manifest::InnerState::Reset,
            },
            tolerances,
        }
    }
}

/// What is wrong with one key of a run file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFileFault {
    /// The key, with its section.
    pub key: String,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl fmt::Display for RunFileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

/// Why a run file was refused.
#[derive(Debug, thiserror::Error)]
pub enum RunFileError {
    /// It cannot be read.
    #[error("run file {}: {source}: check the path and its permissions", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("run file {} is not TOML:\n{reason}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        reason: String,
    },
    /// It is TOML with faults.
    #[error(
        "run file {} has {} fault{}; correct and try again:\n{}",
        .path.display(),
        .faults.len(),
        if .faults.len() == 1 { "" } else { "s" },
        .faults.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")
    )]
    Faults {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Vec<RunFileFault>,
    },
}

/// What a manifest says of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFacts {
    /// Root of the data manifest.
    pub root: Hash,
    /// Bytes over all files.
    pub bytes: u64,
    /// Number of files.
    pub files: u32,
}

impl DataFacts {
    /// Hashes every file below `dir`.
    ///
    /// # Errors
    /// [`DataError`]: unreadable, no text in it, too many files.
    pub fn scan(dir: &Path) -> Result<DataFacts, DataError> {
        let manifest = DataManifest::scan(dir)?;
        let files = u32::try_from(manifest.files().len())
            .map_err(|_| DataError::TooManyFiles(dir.to_owned()))?;
        Ok(DataFacts {
            root: Hash(manifest.root()),
            bytes: manifest.total_bytes(),
            files,
        })
    }
}

/// A run file without faults, with what it names resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedRunFile {
    /// The file.
    pub file: RunFile,
    /// The model's `config.json`, without insignificant spaces.
    pub config_json: String,
    /// The same, read.
    pub model: Architecture,
    /// What `audit.tolerances` names, read.
    pub tolerances: Vec<manifest::Tolerance>,
    /// The data directory.
    pub data_dir: PathBuf,
}

impl LoadedRunFile {
    /// Reads and checks the run file at `path`. The data are not read yet: see [`DataFacts::scan`].
    ///
    /// # Errors
    /// [`RunFileError`], with all faults at once unless the file is no TOML.
    pub fn load(path: &Path) -> Result<LoadedRunFile, RunFileError> {
        let text = read_text(path).map_err(|source| RunFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let (file, mut faults) = RunFile::parse(&text).map_err(|reason| RunFileError::Syntax {
            path: path.to_owned(),
            reason,
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        let loaded = file.resolve(base, &mut faults);
        match loaded {
            Some(loaded) if faults.is_empty() => Ok(loaded),
            _ => Err(RunFileError::Faults {
                path: path.to_owned(),
                faults,
            }),
        }
    }

    /// The manifest of a run from this file.
    ///
    /// `seed`: taken unless the file names one. `data`: of [`LoadedRunFile::data_dir`]. `chain`: what [`RunFile::chain`]
    /// turned out to mean.
    pub fn manifest(
        &self,
        launcher: PeerKey,
        launcher_link: Link,
        seed: Hash,
        data: &DataFacts,
        chain: manifest::Chain,
    ) -> Manifest {
        let seed = self.file.seed.unwrap_or(seed);
        // Rates were checked in `load`.
        let none = &mut Vec::new();
        self.file.to_manifest(
            (launcher, launcher_link),
            seed,
            data,
            (
                &self.config_json,
                self.file.tiles_per_shard(&self.model),
                &self.tolerances,
            ),
            chain,
            none,
        )
    }
}

impl RunFile {
    /// Reads a run file's text. A key with a fault has its default in the result.
    ///
    /// # Errors
    /// Place and reason, when the text is no TOML.
    fn parse(text: &str) -> Result<(RunFile, Vec<RunFileFault>), String> {
        let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
        let mut faults = Vec::new();
        // serde stops at the first fault. Take the key out, and go on without it: each turn removes one key.
        loop {
            let value = toml::Value::Table(table.clone());
            let error = match serde_path_to_error::deserialize(value) {
                Ok(file) => return Ok((file, faults)),
                Err(error) => error,
            };
            let key = error.path().to_string();
            let parts: Vec<&str> = key.split('.').collect();
            let removed = remove(&mut table, &parts);
            faults.push(RunFileFault {
                key,
                problem: error.inner().message().trim().to_owned(),
            });
            if !removed {
                return Ok((RunFile::default(), faults));
            }
        }
    }

    /// Resolves what the file names and checks every range; adds to `faults`, for each key the first only.
    fn resolve(self, base: &Path, faults: &mut Vec<RunFileFault>) -> Option<LoadedRunFile> {
        let model = match self.read_model(base) {
            Ok(model) => Some(model),
            Err(problem) => {
                push(faults, "model.config", problem);
                None
            }
        };
        let data_dir = base.join(&self.data.dir);
        if self.data.dir.as_os_str().is_empty() {
            let problem = "missing; the directory of the training text";
            push(faults, "data.dir", problem.to_owned());
        } else if let Err(error) = std::fs::read_dir(&data_dir) {
            let problem = format!("{}: {error}; a directory of text files", data_dir.display());
            push(faults, "data.dir", problem);
        }
        if self.name.is_empty() {
            push(faults, "name", "missing; 1 to 64 characters".to_owned());
        }
        if self.schedule.rounds == 0 {
            let problem = "missing or 0; how many rounds the run is long".to_owned();
            push(faults, "schedule.rounds", problem);
        }
        if let Some((_, config)) = &model {
            self.check_against(config, faults);
        }

        let any = DataFacts {
            root: Hash::ZERO,
            bytes: 1,
            files: 1,
        };
        // Without a model that is a fault of its own.
        let (json, tiles_per_shard) = match &model {
            Some((json, config)) => (json.as_str(), self.tiles_per_shard(config)),
            None => ("", TILES_PER_SHARD_DEFAULT),
        };
        let chain = match &self.chain {
            Chain::None => manifest::Chain::None,
            Chain::Subnet(subnet) => {
                if let Err(error) = Settings::network(&subnet.network) {
                    push(faults, "chain.network", error.to_string());
                }
                subnet.on(Hash::ZERO, subnet.netuid.unwrap_or(1))
            }
        };
        let named = self
            .audit
            .as_ref()
            .and_then(|audit| audit.tolerances.as_ref());
        let table = named
            .map(|path| ToleranceFile::read(&base.join(path)))
            .transpose();
        let tolerances = match table {
            Ok(table) => table.unwrap_or_default().tolerances(),
            Err(problem) => {
                push(faults, "audit.tolerances", problem);
                Vec::new()
            }
        };
        let nobody = PeerKey([0; 32]);
        let launcher = (nobody, Link::alone(&nobody));
        let files = (json, tiles_per_shard, tolerances.as_slice());
        let trial = self.to_manifest(launcher, Hash::ZERO, &any, files, chain, faults);
        for fault in trial.validate() {
            push(faults, fault.field, fault.problem);
        }
        let (config_json, model) = model?;
        Some(LoadedRunFile {
            file: self,
            config_json,
            model,
            tolerances,
            data_dir,
        })
    }

    /// The model's `config.json`, compact, and what it says.
    fn read_model(&self, base: &Path) -> Result<(String, Architecture), String> {
        let presets = || MODEL_PRESETS.map(|(name, _)| name).join(", ");
        let name = self.model.config.as_str();
        if name.is_empty() {
            return Err(format!(
                "missing; the path of a config.json, or one of {}",
                presets()
            ));
        }
        let text = match MODEL_PRESETS.iter().find(|(preset, _)| *preset == name) {
            Some((_, json)) => (*json).to_owned(),
            None => {
                let path = base.join(name);
                read_text(&path).map_err(|error| {
                    format!(
                        "{}: {error}; a config.json, or one of {}",
                        path.display(),
                        presets()
                    )
                })?
            }
        };
        let config = Architecture::from_json(text.as_bytes()).map_err(|e| e.to_string())?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| error.to_string())?;
        Ok((value.to_string(), config))
    }

    /// What holds between keys and the model.
    fn check_against(&self, config: &Architecture, faults: &mut Vec<RunFileFault>) {
        if config.vocab() < VOCAB {
            let problem = format!(
                "vocab_size is {}; text is read as bytes, which needs {VOCAB} at least",
                config.vocab()
            );
            push(faults, "model.config", problem);
        }
        let longest = config.positions();
        if usize::try_from(self.data.sequence_tokens).is_ok_and(|tokens| tokens > longest) {
            let problem = format!(
                "{} is more than the model's max_position_embeddings, {longest}",
                self.data.sequence_tokens
            );
            push(faults, "data.sequence_tokens", problem);
        }
        let tiles = tiles(config);
        let per_shard = usize::try_from(self.tiles_per_shard(config)).unwrap_or(usize::MAX);
        let needed = tiles.div_ceil(SHARDS_MAX);
        if per_shard < needed {
            let problem =
                format!("{per_shard} makes more than {SHARDS_MAX} shards; at least {needed}");
            push(faults, "codec.tiles_per_shard", problem);
        }
        let shards = tiles.div_ceil(per_shard.max(1));
        let fragments = self.exchange.fragments;
        if usize::try_from(fragments).is_ok_and(|fragments| fragments > shards) {
            let problem = TooFewShards { fragments, shards }.to_string();
            push(faults, "exchange.fragments", problem);
        }
    }

    /// Tiles of a shard of this model.
    fn tiles_per_shard(&self, model: &Architecture) -> u32 {
        self.codec.tiles_per_shard.unwrap_or_else(|| {
            let least = tiles(model).div_ceil(SHARDS_DEFAULT_MAX);
            let least = u32::try_from(least).unwrap_or(u32::MAX);
            least.clamp(TILES_PER_SHARD_DEFAULT, TILES_PER_SHARD_MAX)
        })
    }

    /// `tiles_per_shard`: of the model.
    fn to_manifest(
        &self,
        (launcher, launcher_link): (PeerKey, Link),
        seed: Hash,
        data: &DataFacts,
        (config_json, tiles_per_shard, tolerances): (&str, u32, &[manifest::Tolerance]),
        chain: manifest::Chain,
        faults: &mut Vec<RunFileFault>,
    ) -> Manifest {
        let mut ppm = |key: &str, value: f64| {
            to_ppm(value).unwrap_or_else(|problem| {
                push(faults, key, problem);
                1
            })
        };
        let nesterov = self.outer.rule == Rule::Nesterov;
        let outer_rate = self.outer.rate.unwrap_or(if nesterov { 0.7 } else { 2.0 });
        let momentum = self
            .outer
            .momentum
            .unwrap_or(if nesterov { 0.9 } else { 0.0 });
        Manifest {
            name: self.name.clone(),
            launcher,
            seed,
            model: manifest::Model {
                config_json: config_json.to_owned(),
                dtype: match self.model.dtype {
                    Dtype::F32 => ModelDtype::F32,
                    Dtype::Bf16 => ModelDtype::Bf16,
                },
            },
            data: manifest::Data {
                root: data.root,
                bytes: data.bytes,
                files: data.files,
                sequence_tokens: self.data.sequence_tokens,
            },
            inner: manifest::Inner {
                batch_sequences: self.inner.batch_sequences,
                learning_rate_ppm: ppm("inner.learning_rate", self.inner.learning_rate),
                warmup_steps: self.inner.warmup_steps,
                beta1_ppm: ppm("inner.beta1", self.inner.beta1),
                beta2_ppm: ppm("inner.beta2", self.inner.beta2),
                weight_decay_ppm: ppm("inner.weight_decay", self.inner.weight_decay),
            },
            outer: manifest::Outer {
                rule: match self.outer.rule {
                    Rule::Plain => OuterRule::Plain,
                    Rule::Nesterov => OuterRule::Nesterov,
                },
                rate_ppm: ppm("outer.rate", outer_rate),
                momentum_ppm: ppm("outer.momentum", momentum),
            },
            codec: manifest::Codec {
                kind: match self.codec.mode {
                    Mode::Sparse => CodecKind::Sparse,
                    Mode::Bf16 => CodecKind::DenseBf16,
                    Mode::F32 => CodecKind::DenseF32,
                    Mode::Int8 => CodecKind::DenseInt8,
                    Mode::Int4 => CodecKind::DenseInt4,
                },
                k: self.codec.k,
                value_bits: self.codec.value_bits,
                feedback_beta_ppm: ppm("codec.feedback_beta", self.codec.feedback_beta),
                sparse_elements_min: self.codec.sparse_elements_min,
                tiles_per_shard,
            },
            exchange: manifest::Exchange {
                plan: match self.exchange.plan {
                    PlanName::Auto => PlanKind::Auto,
                    PlanName::Gather => PlanKind::Gather,
                    PlanName::Reduce => PlanKind::Reduce,
                    PlanName::Hier => PlanKind::Hier,
                },
                reduced_k: self.exchange.reduced_k,
                reduced_value_bits: self.exchange.reduced_value_bits,
                owner_beta_ppm: ppm("exchange.owner_beta", self.exchange.owner_beta),
                local: match self.exchange.local {
                    LocalName::Bf16 => LocalFormat::Bf16,
                    LocalName::F32 => LocalFormat::F32,
                },
                overlap: self.exchange.overlap,
                fragments: self.exchange.fragments,
            },
            launcher_link,
            schedule: manifest::Schedule {
                steps_per_round: self.schedule.steps_per_round,
                rounds: self.schedule.rounds,
                rounds_per_epoch: self.schedule.rounds_per_epoch,
            },
            trust: manifest::Trust {
                mode: match self.trust.mode {
                    TrustName::Byzantine => TrustMode::Byzantine,
                    TrustName::Crash => TrustMode::Crash,
                },
                peers_min: self.trust.peers_min,
                peers_max: self.trust.peers_max,
                absent_rounds_max: self.trust.absent_rounds_max,
            },
            timing: manifest::Timing {
                deadline_floor_ms: self.timing.deadline_floor_ms,
                deadline_cap_ms: self.timing.deadline_cap_ms,
                propose_ms: self.timing.propose_ms,
                vote_ms: self.timing.vote_ms,
            },
            chain,
            audit: self.audit.as_ref().map(|audit| {
                let tolerances = tolerances.to_vec();
                audit.to_manifest(self.schedule.steps_per_round, tolerances, &mut ppm)
            }),
        }
    }
}

fn tiles(model: &Architecture) -> usize {
    let parameters = model.parameters();
    let tiles = parameters
        .iter()
        .map(|parameter| parameter.elements().div_ceil(TILE_ELEMENTS));
    tiles.sum()
}

fn push(faults: &mut Vec<RunFileFault>, key: &str, problem: String) {
    if faults.iter().all(|fault| fault.key != key) {
        faults.push(RunFileFault {
            key: key.to_owned(),
            problem,
        });
    }
}

/// Parts per million of a rate that is a whole number of them.
fn to_ppm(value: f64) -> Result<u32, String> {
    let scaled = value * PPM;
    let rounded = scaled.round();
    if !(0.0..=f64::from(u32::MAX)).contains(&rounded) {
        return Err(format!(
            "{value} is not a number from 0 to {}",
            f64::from(u32::MAX) / PPM
        ));
    }
    // A decimal with six digits is off by at most 2^-53 of itself as f64, times 10^6 by less than 10^-6 in this range.
    if (scaled - rounded).abs() > 1e-6 {
        return Err(format!("{value} is finer than 0.000001, the step of rates"));
    }
    // In range and whole: the cast is exact.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(rounded as u32)
}

/// Takes the value at `path` out; whether there was one.
fn remove(table: &mut toml::Table, path: &[&str]) -> bool {
    match path {
        [] => false,
        [key] => table.remove(*key).is_some(),
        [key, rest @ ..] => table
            .get_mut(*key)
            .and_then(toml::Value::as_table_mut)
            .is_some_and(|inner| remove(inner, rest)),
    }
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(TEXT_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        let problem = format!("longer than {TEXT_BYTES_MAX} bytes");
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            problem,
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
