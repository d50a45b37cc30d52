//! What the chain says and takes, in plain types. Nothing here knows SCALE.
//!
//! Units: TAO and alpha amounts are in rao (1e9 rao are one TAO), points in time are block numbers unless a name ends in
//! `_ms` or `_s`, and 16-bit scores are fractions of 65535.

use std::net::IpAddr;

use crate::account::AccountId;

/// A block, by number and hash. The hash decides; the number is its height.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Height above genesis.
    pub number: u64,
    /// BLAKE2b-256 of the header.
    pub hash: [u8; 32],
}

/// Where an extrinsic stands on the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The block that holds it.
    pub block: BlockRef,
    /// Its place in that block, from 0.
    pub extrinsic_index: u32,
    /// BLAKE2b-256 of its bytes.
    pub extrinsic_hash: [u8; 32],
    /// Whether the block is final. A receipt that is not may be undone by a reorganisation.
    pub finalized: bool,
}

/// How long a call waits before it returns its receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Until the block that holds the extrinsic is final: nothing undoes it any more.
    #[default]
    Finalized,
    /// Until a best block holds it. Sooner by the lag of finality, and may be undone.
    Included,
}

/// A subnet and its hyperparameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The subnet's number.
    pub netuid: u16,
    /// Owner: signs hyperparameter changes.
    pub owner_coldkey: AccountId,
    /// The owner's hotkey: may set weights without a permit.
    pub owner_hotkey: AccountId,
    /// Blocks between two epochs (older runtimes: minus one).
    pub tempo: u16,
    /// Blocks since the last epoch ran.
    pub blocks_since_last_step: u64,
    /// Count of epochs, on runtimes that keep one.
    pub epoch_index: Option<u64>,
    /// Block of the last epoch, on runtimes that keep it.
    pub last_epoch_block: Option<u64>,
    /// Whether weights are committed first and revealed later.
    pub commit_reveal: bool,
    /// Epochs between commit and reveal.
    pub reveal_period_epochs: u64,
    /// Blocks that a uid waits between two settings of weights; registration counts as one.
    pub weights_rate_limit: u64,
    /// Least `version_key` that the chain takes; 0 takes any.
    pub weights_version: u64,
    /// Least count of uids in one setting of weights.
    pub min_allowed_weights: u16,
    /// Greatest share of one weight, of 65535.
    pub max_weights_limit: u16,
    /// Blocks without weights after which a validator counts as inactive.
    pub activity_cutoff: u16,
    /// Blocks after registration in which a uid is not pruned.
    pub immunity_period: u16,
    /// Greatest count of uids with a validator permit.
    pub max_validators: u16,
    /// Count of uids in use.
    pub neurons: u16,
    /// Greatest count of uids; registration then prunes.
    pub neurons_max: u16,
    /// Price of a registration now, in rao.
    pub burn_rao: u64,
    /// Blocks between two changes of one axon.
    pub serving_rate_limit: u64,
    /// Whether the owner lets neurons register.
    pub registration_allowed: bool,
    /// Whether the subnet was started: staking needs it.
    pub subtoken_enabled: bool,
}

/// Where a neuron says that it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axon {
    /// Address, as published; nothing proves it.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Transport, as agreed among the subnet's software: 4 is what Bittensor's own software writes.
    pub protocol: u8,
    /// Version of the publisher's software.
    pub version: u32,
    /// Block of publication.
    pub block: u64,
}

/// A member of a subnet. **A uid changes hands** when its neuron is pruned: only (netuid, hotkey) names a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neuron {
    /// Place in the subnet at the block of reading.
    pub uid: u16,
    /// The key that works.
    pub hotkey: AccountId,
    /// The key that owns.
    pub coldkey: AccountId,
    /// Published address.
    pub axon: Option<Axon>,
    /// Published ed25519 key: the libp2p identity.
    pub peer_key: Option<[u8; 32]>,
    /// Whether it set weights within the activity cutoff.
    pub active: bool,
    /// Whether it may set weights.
    pub validator_permit: bool,
    /// Stake that counts in this subnet: alpha and weighted TAO.
    pub stake_rao: u64,
    /// Of that, alpha of the subnet.
    pub alpha_stake_rao: u64,
    /// Of that, TAO of the root network, weighted.
    pub tao_stake_rao: u64,
    /// Alpha paid by the last epoch, in rao.
    pub emission_rao: u64,
    /// Share of what miners are paid, of 65535.
    pub incentive: u16,
    /// Clip of its weights, of 65535.
    pub consensus: u16,
    /// Share of what validators are paid, of 65535.
    pub dividends: u16,
    /// Share of its weights that consensus kept, of 65535.
    pub validator_trust: u16,
    /// Block of its last setting of weights, or of registration.
    pub last_update: u64,
    /// Block of registration.
    pub registered_at: u64,
}

/// One field of a commitment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// At most [`Field::RAW_BYTES_MAX`] bytes of any content.
    Raw(Vec<u8>),
    /// A SHA2-256 digest.
    Sha256([u8; 32]),
    /// A BLAKE2b-256 digest.
    BlakeTwo256([u8; 32]),
    /// A kind that is read but never written here.
    Other,
}

impl Field {
    /// Longest raw field.
    pub const RAW_BYTES_MAX: usize = 128;
    /// Most fields in one commitment.
    pub const COUNT_MAX: usize = 3;
}

/// What a hotkey last committed to in a subnet. Overwritten by the next; history stands in blocks only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commitment {
    /// Block of the call.
    pub block: u64,
    /// At most [`Field::COUNT_MAX`] fields.
    pub fields: Vec<Field>,
}

/// A pulse of the randomness beacon, as the chain stored it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Round of the beacon.
    pub round: u64,
    /// 32 random bytes.
    pub randomness: Vec<u8>,
    /// BLS signature over the round: opens what was locked to it.
    pub signature: Vec<u8>,
}

/// The randomness beacon that the chain follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// Compressed BLS12-381 G2 point, 96 bytes.
    pub public_key: Vec<u8>,
    /// Time of round 1, seconds since 1970.
    pub genesis_unix_s: u64,
    /// Seconds between two rounds.
    pub period_s: u64,
}

/// What the runtime of the newest block can do, read from its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Version of the runtime: rises with every upgrade.
    pub spec_version: u32,
    /// `SubtensorModule.register_limit`: the chain itself holds the price limit.
    pub register_limit: bool,
    /// Weight calls that name a mechanism; 0 is the subnet's own.
    pub mechanism_calls: bool,
    /// Timelocked weights: the chain reveals them by itself.
    pub timelocked_commits: bool,
    /// `SubtensorModule.LastEpochBlock`: epochs are kept in state, not given by a formula.
    pub epoch_state: bool,
    /// `SubtensorModule.serve_axon_tls`: an axon carries a key.
    pub certificates: bool,
    /// `SubnetInfoRuntimeApi.get_metagraph`.
    pub metagraph: bool,
    /// Pallet `Commitments`.
    pub commitments: bool,
    /// Pallet `Drand`.
    pub beacon: bool,
}

/// A hyperparameter of a subnet with its new value. The owner sets it, or root for the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hyperparameter {
    /// Blocks between epochs.
    Tempo(u16),
    /// Blocks between two settings of weights.
    WeightsRateLimit(u64),
    /// Blocks between two changes of an axon.
    ServingRateLimit(u64),
    /// Commit weights first, reveal later.
    CommitReveal(bool),
    /// Epochs between commit and reveal.
    RevealPeriod(u64),
    /// Blocks without weights before a validator is inactive.
    ActivityCutoff(u16),
    /// Blocks after registration without pruning.
    ImmunityPeriod(u16),
    /// Least count of weights.
    MinAllowedWeights(u16),
    /// Greatest count of uids.
    MaxAllowedUids(u16),
    /// Greatest count of validators.
    MaxValidators(u16),
    /// Whether neurons may register.
    RegistrationAllowed(bool),
    /// Consensus majority, of 65535.
    Kappa(u16),
    /// Moving average of bonds, of 1,000,000.
    BondsMovingAverage(u64),
    /// Penalty on bonds out of consensus, of 65535.
    BondsPenalty(u16),
    /// Alpha of the bonds by consensus.
    LiquidAlpha(bool),
    /// Bounds of the liquid alpha, of 65535.
    AlphaValues {
        /// Lower bound.
        low: u16,
        /// Upper bound.
        high: u16,
    },
    /// Bonds of Yuma 3.
    Yuma3(bool),
}

/// A registration, new or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Uid at the receipt's block; for a found one, at the newest final block.
    pub uid: u16,
    /// `None`: the hotkey was registered already, nothing was paid.
    pub receipt: Option<Receipt>,
}

/// A legacy commit of weights: what its reveal must show. To be kept until then, also over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsCommit {
    /// (uid, weight) for every uid at the time of the commit.
    pub weights: Vec<(u16, u16)>,
    /// Random; secret until the reveal.
    pub salt: Vec<u16>,
    /// The subnet's weights version at the time of the commit.
    pub version_key: u64,
}

/// How weights went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsReceipt {
    /// In the clear, in force at once.
    Set(Receipt),
    /// Locked; the chain opens them by itself.
    Timelocked {
        /// Of the commit.
        receipt: Receipt,
        /// Round of the beacon that opens them.
        reveal_round: u64,
    },
}

impl WeightsReceipt {
    /// The receipt of the call, whichever it was.
    pub fn receipt(&self) -> &Receipt {
        match self {
            WeightsReceipt::Set(receipt) | WeightsReceipt::Timelocked { receipt, .. } => receipt,
        }
    }
}
