//! The pallet `SubtensorModule`: subnets, neurons, weights, stake and emission.
//!
//! Its face is subtensor's: names, indices, argument and value types, hashers, defaults and error names. What is behind it is
//! a model, of one mechanism (0) per subnet, that differs where a development chain may:
//!
//! - one alpha is always one TAO (rule `par` in `staking.rs`): no slippage, and no fee on stake;
//! - every started subnet gets the same part of [`Config::BlockEmission`] (rule `emission` in `coinbase.rs`);
//! - there are no child keys, no root dividends, no freeze window before an epoch and no rate limit on an owner's calls;
//! - subnets are never removed.

mod coinbase;
mod commit_reveal;
mod neurons;
mod registration;
mod serving;
mod shares;
mod staking;
mod types;
mod weights;

// What FRAME generates for the runtime is public, so what it names has to be.
#[cfg(test)]
#[allow(unreachable_pub)]
mod mock;

pub use neurons::{Neuron, StakeWeight};
pub use pallet::*;
pub use shares::{Pool, Shares};
pub use staking::ALPHA_PRICE;
pub use types::*;

/// The root network. Subnets start after it.
pub const ROOT: u16 = 0;

// The macros of FRAME generate public items and calls with as many arguments as subtensor's have.
#[allow(unreachable_pub, clippy::too_many_arguments)]
#[frame_support::pallet]
pub mod pallet {
    use std::collections::VecDeque;

    use codec::Compact;
    use frame_support::dispatch::DispatchClass;
    use frame_support::pallet_prelude::*;
    use frame_support::traits::fungible;
    use frame_system::pallet_prelude::*;
    use sp_core::H256;
    use sp_runtime::Percent;
    use sp_runtime::traits::TrailingZeroInput;

    use super::Shares;
    use super::types::*;
    use crate::emission;

    /// Every call weighs the same: a development chain measures none.
    const CALL_WEIGHT: Weight = Weight::from_parts(10_000_000, 0);

    /// Of calls that hotkeys make: no fee.
    const FREE: (Weight, DispatchClass, Pays) = (CALL_WEIGHT, DispatchClass::Normal, Pays::No);

    #[pallet::pallet]
    #[pallet::without_storage_info]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config<RuntimeEvent: From<Event<Self>>> {
        type Currency: fungible::Mutate<Self::AccountId, Balance = u64>;
        type Beacon: Beacon;
        type Timelock: Timelock;
        /// What subnets and the chain start with.
        type InitialParameters: Get<InitialParameters>;
        /// Whether a neuron may announce a loopback address.
        type LoopbackAxons: Get<bool>;
        /// What a block emits for all subnets together, in rao. The public chain began with one TAO.
        type BlockEmission: Get<u64>;
    }

    #[pallet::extra_constants]
    impl<T: Config> Pallet<T> {
        #[pallet::constant_name(InitialMaxDifficulty)]
        fn initial_max_difficulty() -> u64 {
            u64::MAX / 4
        }
        #[pallet::constant_name(InitialMaxBurn)]
        fn initial_max_burn() -> u64 {
            100_000_000_000
        }
        #[pallet::constant_name(MaxBurnLowerBound)]
        fn max_burn_lower_bound() -> u64 {
            100_000_000
        }
        #[pallet::constant_name(InitialMaxAllowedUids)]
        fn initial_max_allowed_uids() -> u16 {
            4096
        }
        #[pallet::constant_name(InitialMaxRegistrationsPerBlock)]
        fn initial_max_registrations_per_block() -> u16 {
            1
        }
        #[pallet::constant_name(InitialMaxAllowedValidators)]
        fn initial_max_allowed_validators() -> u16 {
            128
        }
        #[pallet::constant_name(InitialMaxChildKeyTake)]
        fn initial_max_child_key_take() -> u16 {
            emission::DELEGATE_TAKE_DEFAULT
        }
        #[pallet::constant_name(MaxImmuneUidsPercentage)]
        fn max_immune_uids_percentage() -> Percent {
            Percent::from_percent(80)
        }
    }

    /// The account of 32 zero bytes, which nobody has the key of.
    #[pallet::type_value]
    pub fn NoAccount<T: Config>() -> T::AccountId {
        T::AccountId::decode(&mut TrailingZeroInput::zeroes())
            .expect("an account can be read from any bytes")
    }

    #[pallet::type_value]
    pub fn DefaultTrue() -> bool {
        true
    }

    // Accounts.

    /// Coldkey that owns a hotkey.
    #[pallet::storage]
    pub type Owner<T: Config> =
        StorageMap<_, Blake2_128Concat, T::AccountId, T::AccountId, ValueQuery, NoAccount<T>>;

    /// Hotkeys of a coldkey.
    #[pallet::storage]
    pub type OwnedHotkeys<T: Config> =
        StorageMap<_, Blake2_128Concat, T::AccountId, Vec<T::AccountId>, ValueQuery>;

    /// Hotkeys on which a coldkey has stake, or had.
    #[pallet::storage]
    pub type StakingHotkeys<T: Config> =
        StorageMap<_, Blake2_128Concat, T::AccountId, Vec<T::AccountId>, ValueQuery>;

    #[pallet::type_value]
    pub fn DefaultDelegateTake() -> u16 {
        emission::DELEGATE_TAKE_DEFAULT
    }

    /// What a hotkey takes of its dividends, in parts of 65,535.
    #[pallet::storage]
    pub type Delegates<T: Config> =
        StorageMap<_, Blake2_128Concat, T::AccountId, u16, ValueQuery, DefaultDelegateTake>;

    // Stake.

    /// TAO issued, staked or not, in rao; fees and burns are not taken off.
    #[pallet::storage]
    pub type TotalIssuance<T: Config> = StorageValue<_, u64, ValueQuery>;

    /// TAO in the pools of all subnets, in rao.
    #[pallet::storage]
    pub type TotalStake<T: Config> = StorageValue<_, u64, ValueQuery>;

    /// TAO in a subnet's pool, in rao.
    #[pallet::storage]
    pub type SubnetTAO<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// Alpha in a subnet's pool, in rao.
    #[pallet::storage]
    pub type SubnetAlphaIn<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// Alpha that is staked, in rao.
    #[pallet::storage]
    pub type SubnetAlphaOut<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// Alpha on a hotkey, in rao.
    #[pallet::storage]
    pub type TotalHotkeyAlpha<T: Config> =
        StorageDoubleMap<_, Blake2_128Concat, T::AccountId, Identity, u16, u64, ValueQuery>;

    /// Shares of a hotkey's alpha in the hands of all coldkeys.
    #[pallet::storage]
    pub type TotalHotkeyShares<T: Config> =
        StorageDoubleMap<_, Blake2_128Concat, T::AccountId, Identity, u16, Shares, ValueQuery>;

    /// Shares of a hotkey's alpha in the hands of one coldkey: (hotkey, coldkey, netuid).
    #[pallet::storage]
    pub type Alpha<T: Config> = StorageNMap<
        _,
        (
            NMapKey<Blake2_128Concat, T::AccountId>,
            NMapKey<Blake2_128Concat, T::AccountId>,
            NMapKey<Identity, u16>,
        ),
        Shares,
        ValueQuery,
    >;

    #[pallet::type_value]
    pub fn DefaultTaoWeight() -> u64 {
        971_718_665_099_567_868
    }

    /// What root stake counts on subnets, in parts of 2^64 - 1.
    #[pallet::storage]
    pub type TaoWeight<T: Config> = StorageValue<_, u64, ValueQuery, DefaultTaoWeight>;

    // Networks.

    /// The root network and all subnets.
    #[pallet::storage]
    pub type TotalNetworks<T: Config> = StorageValue<_, u16, ValueQuery>;

    #[pallet::storage]
    pub type NetworksAdded<T: Config> = StorageMap<_, Identity, u16, bool, ValueQuery>;

    #[pallet::type_value]
    pub fn DefaultNetworkRateLimit() -> u64 {
        7200
    }

    /// Blocks between two registrations of subnets.
    #[pallet::storage]
    pub type NetworkRateLimit<T: Config> =
        StorageValue<_, u64, ValueQuery, DefaultNetworkRateLimit>;

    /// Block of the last registration of a subnet; 0 if there was none.
    #[pallet::storage]
    pub type NetworkLastRegistered<T: Config> = StorageValue<_, u64, ValueQuery>;

    /// What the last subnet cost, in rao.
    #[pallet::storage]
    pub type NetworkLastLockCost<T: Config> = StorageValue<_, u64, ValueQuery>;

    #[pallet::type_value]
    pub fn DefaultNetworkMinLockCost() -> u64 {
        1_000_000_000_000
    }

    /// Least cost of a subnet, in rao.
    #[pallet::storage]
    pub type NetworkMinLockCost<T: Config> =
        StorageValue<_, u64, ValueQuery, DefaultNetworkMinLockCost>;

    #[pallet::type_value]
    pub fn DefaultNetworkLockReductionInterval() -> u64 {
        14 * 7200
    }

    /// Blocks in which the cost of a subnet falls by what the last one cost.
    #[pallet::storage]
    pub type NetworkLockReductionInterval<T: Config> =
        StorageValue<_, u64, ValueQuery, DefaultNetworkLockReductionInterval>;

    #[pallet::type_value]
    pub fn DefaultStartCallDelay() -> u64 {
        7 * 7200
    }

    /// Blocks between the registration of a subnet and its start.
    #[pallet::storage]
    pub type StartCallDelay<T: Config> = StorageValue<_, u64, ValueQuery, DefaultStartCallDelay>;

    #[pallet::storage]
    pub type NetworkRegisteredAt<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// First block that emits to the subnet; absent before its start.
    #[pallet::storage]
    pub type FirstEmissionBlockNumber<T: Config> = StorageMap<_, Identity, u16, u64, OptionQuery>;

    /// What the subnet cost, in rao.
    #[pallet::storage]
    pub type SubnetLocked<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    #[pallet::storage]
    pub type SubnetOwner<T: Config> =
        StorageMap<_, Identity, u16, T::AccountId, ValueQuery, NoAccount<T>>;

    #[pallet::storage]
    pub type SubnetOwnerHotkey<T: Config> =
        StorageMap<_, Identity, u16, T::AccountId, ValueQuery, NoAccount<T>>;

    #[pallet::storage]
    pub type SubnetIdentitiesV3<T: Config> =
        StorageMap<_, Blake2_128Concat, u16, SubnetIdentityV3, OptionQuery>;

    #[pallet::type_value]
    pub fn DefaultTokenSymbol() -> Vec<u8> {
        "\u{03C4}".as_bytes().to_vec()
    }

    /// UTF-8.
    #[pallet::storage]
    pub type TokenSymbol<T: Config> =
        StorageMap<_, Identity, u16, Vec<u8>, ValueQuery, DefaultTokenSymbol>;

    /// Whether stake may be added.
    #[pallet::storage]
    pub type SubtokenEnabled<T: Config> = StorageMap<_, Identity, u16, bool, ValueQuery>;

    // Hyperparameters.

    #[pallet::type_value]
    pub fn DefaultTempo() -> u16 {
        360
    }

    /// Blocks between epochs.
    #[pallet::storage]
    pub type Tempo<T: Config> = StorageMap<_, Identity, u16, u16, ValueQuery, DefaultTempo>;

    #[pallet::type_value]
    pub fn DefaultServingRateLimit() -> u64 {
        50
    }

    /// Blocks between two announcements of a hotkey.
    #[pallet::storage]
    pub type ServingRateLimit<T: Config> =
        StorageMap<_, Identity, u16, u64, ValueQuery, DefaultServingRateLimit>;

    #[pallet::type_value]
    pub fn DefaultRho() -> u16 {
        10
    }

    #[pallet::storage]
    pub type Rho<T: Config> = StorageMap<_, Identity, u16, u16, ValueQuery, DefaultRho>;

    #[pallet::type_value]
    pub fn DefaultKappa() -> u16 {
        32_767
    }

    /// Share of the stake that has to agree on a weight, in parts of 65,535.
    #[pallet::storage]
    pub type Kappa<T: Config> = StorageMap<_, Identity, u16, u16, ValueQuery, DefaultKappa>;

    #[pallet::type_value]
    pub fn DefaultMaxAllowedUids() -> u16 {
        4096
    }

    #[pallet::storage]
    pub type MaxAllowedUids<T: Config> =
        StorageMap<_, Identity, u16, u16, ValueQuery, DefaultMaxAllowedUids>;

    #[pallet::type_value]
    pub fn DefaultImmunityPeriod() -> u16 {
        4096
    }

    /// Blocks during which a new neuron is not pruned.
    #[pallet::storage]
    pub type ImmunityPeriod<T: Config> =
        StorageMap<_, Identity, u16, u16, ValueQuery, DefaultImmunityPeriod>;

    #[pallet::type_value]
    pub fn DefaultActivityCutoff() -> u16 {
        5000
    }

    /// Blocks after which a silent validator counts as inactive.
    #[pallet::storage]
    pub type ActivityCutoff<T: Config> =
        StorageMap<_, Identity, u16, u16, ValueQuery, DefaultActivityCutoff>;

    #[pallet::type_value]
    pub fn DefaultMaxWeightsLimit() -> u16 {
        u16::MAX
    }

    /// Largest part of a row that one weight may be, in parts of 65,535.
    #[pallet::storage]
    pub type MaxWeightsLimit<T: Config> =
        StorageMap<_, Identity, u16, u16, ValueQuery, DefaultMaxWeightsLimit>;

    /// Oldest version key that is accepted.
    #[pallet::storage]
    pub type WeightsVersionKey<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    #[pallet::type_value]
    pub fn DefaultMinAllowedWeights() -> u16 {
        1024
    }

    #[pallet::storage]
    pub type MinAllowedWeights<T: Config> =
        StorageMap<_, Identity, u16, u16, ValueQuery, DefaultMinAllowedWeights>;

    #[pallet::type_value]
    pub fn DefaultMaxAllowedValidators() -> u16 {
        128
    }

    #[pallet::storage]
    pub type MaxAllowedValidators<T: Config> =
        StorageMap<_, Identity, u16, u16, ValueQuery, DefaultMaxAllowedValidators>;

    #[pallet::type_value]
    pub fn DefaultBondsMovingAverage() -> u64 {
        900_000
    }

    /// In parts of 1,000,000.
    #[pallet::storage]
    pub type BondsMovingAverage<T: Config> =
        StorageMap<_, Identity, u16, u64, ValueQuery, DefaultBondsMovingAverage>;

    #[pallet::type_value]
    pub fn DefaultBondsPenalty() -> u16 {
        u16::MAX
    }

    /// In parts of 65,535.
    #[pallet::storage]
    pub type BondsPenalty<T: Config> =
        StorageMap<_, Identity, u16, u16, ValueQuery, DefaultBondsPenalty>;

    #[pallet::type_value]
    pub fn DefaultWeightsSetRateLimit() -> u64 {
        100
    }

    /// Blocks between two weights or commits of a uid.
    #[pallet::storage]
    pub type WeightsSetRateLimit<T: Config> =
        StorageMap<_, Identity, u16, u64, ValueQuery, DefaultWeightsSetRateLimit>;

    #[pallet::storage]
    pub type CommitRevealWeightsEnabled<T: Config> =
        StorageMap<_, Identity, u16, bool, ValueQuery, DefaultTrue>;

    #[pallet::type_value]
    pub fn DefaultBurn() -> u64 {
        100_000_000
    }

    /// Price of a registration, in rao.
    #[pallet::storage]
    pub type Burn<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery, DefaultBurn>;

    #[pallet::type_value]
    pub fn DefaultMinBurn() -> u64 {
        500_000
    }

    #[pallet::storage]
    pub type MinBurn<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery, DefaultMinBurn>;

    #[pallet::type_value]
    pub fn DefaultMaxBurn() -> u64 {
        100_000_000_000
    }

    #[pallet::storage]
    pub type MaxBurn<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery, DefaultMaxBurn>;

    #[pallet::type_value]
    pub fn DefaultBurnHalfLife() -> u16 {
        360
    }

    /// Blocks in which the price of a registration halves.
    #[pallet::storage]
    pub type BurnHalfLife<T: Config> =
        StorageMap<_, Identity, u16, u16, ValueQuery, DefaultBurnHalfLife>;

    #[pallet::storage]
    pub type NetworkRegistrationAllowed<T: Config> =
        StorageMap<_, Identity, u16, bool, ValueQuery, DefaultTrue>;

    #[pallet::storage]
    pub type LiquidAlphaOn<T: Config> = StorageMap<_, Blake2_128Concat, u16, bool, ValueQuery>;

    #[pallet::storage]
    pub type Yuma3On<T: Config> = StorageMap<_, Blake2_128Concat, u16, bool, ValueQuery>;

    #[pallet::type_value]
    pub fn DefaultAlphaValues() -> (u16, u16) {
        (45_875, 58_982)
    }

    /// (low, high), in parts of 65,535.
    #[pallet::storage]
    pub type AlphaValues<T: Config> =
        StorageMap<_, Identity, u16, (u16, u16), ValueQuery, DefaultAlphaValues>;

    #[pallet::type_value]
    pub fn DefaultRevealPeriodEpochs() -> u64 {
        1
    }

    /// Epochs between a commit and its reveal.
    #[pallet::storage]
    pub type RevealPeriodEpochs<T: Config> =
        StorageMap<_, Twox64Concat, u16, u64, ValueQuery, DefaultRevealPeriodEpochs>;

    #[pallet::type_value]
    pub fn DefaultCommitRevealWeightsVersion() -> u16 {
        4
    }

    #[pallet::storage]
    pub type CommitRevealWeightsVersion<T: Config> =
        StorageValue<_, u16, ValueQuery, DefaultCommitRevealWeightsVersion>;

    /// Least stake weight that may set weights, in rao.
    #[pallet::storage]
    pub type StakeThreshold<T: Config> = StorageValue<_, u64, ValueQuery>;

    #[pallet::type_value]
    pub fn DefaultSubnetOwnerCut() -> u16 {
        emission::OWNER_CUT_DEFAULT
    }

    /// Part of a subnet's emission that is its owner's, in parts of 65,535.
    #[pallet::storage]
    pub type SubnetOwnerCut<T: Config> = StorageValue<_, u16, ValueQuery, DefaultSubnetOwnerCut>;

    // Epochs and emission.

    #[pallet::storage]
    pub type BlocksSinceLastStep<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// Block of the last epoch.
    #[pallet::storage]
    pub type LastMechansimStepBlock<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// Block from which the tempo counts.
    #[pallet::storage]
    pub type LastEpochBlock<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// Block of an epoch out of turn; 0 for none.
    #[pallet::storage]
    pub type PendingEpochAt<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// How many epochs the subnet has had.
    #[pallet::storage]
    pub type SubnetEpochIndex<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// For incentive, in rao of alpha.
    #[pallet::storage]
    pub type PendingServerEmission<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// For dividends, in rao of alpha.
    #[pallet::storage]
    pub type PendingValidatorEmission<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// For the owner, in rao of alpha.
    #[pallet::storage]
    pub type PendingOwnerCut<T: Config> = StorageMap<_, Identity, u16, u64, ValueQuery>;

    /// What a hotkey's stake earned in the last epoch, in rao of alpha.
    #[pallet::storage]
    pub type AlphaDividendsPerSubnet<T: Config> =
        StorageDoubleMap<_, Identity, u16, Blake2_128Concat, T::AccountId, u64, ValueQuery>;

    // Neurons, by hotkey.

    #[pallet::storage]
    pub type Uids<T: Config> =
        StorageDoubleMap<_, Identity, u16, Blake2_128Concat, T::AccountId, u16, OptionQuery>;

    #[pallet::storage]
    pub type IsNetworkMember<T: Config> =
        StorageDoubleMap<_, Blake2_128Concat, T::AccountId, Identity, u16, bool, ValueQuery>;

    #[pallet::storage]
    pub type Axons<T: Config> =
        StorageDoubleMap<_, Identity, u16, Blake2_128Concat, T::AccountId, AxonInfo, OptionQuery>;

    #[pallet::storage]
    pub type NeuronCertificates<T: Config> = StorageDoubleMap<
        _,
        Identity,
        u16,
        Blake2_128Concat,
        T::AccountId,
        NeuronCertificate,
        OptionQuery,
    >;

    #[pallet::storage]
    pub type Prometheus<T: Config> = StorageDoubleMap<
        _,
        Identity,
        u16,
        Blake2_128Concat,
        T::AccountId,
        PrometheusInfo,
        OptionQuery,
    >;

    // Neurons, by uid. Vectors have one entry per uid.

    /// How many uids there are.
    #[pallet::storage]
    pub type SubnetworkN<T: Config> = StorageMap<_, Identity, u16, u16, ValueQuery>;

    #[pallet::storage]
    pub type Keys<T: Config> =
        StorageDoubleMap<_, Identity, u16, Identity, u16, T::AccountId, ValueQuery, NoAccount<T>>;

    #[pallet::storage]
    pub type BlockAtRegistration<T: Config> =
        StorageDoubleMap<_, Identity, u16, Identity, u16, u64, ValueQuery>;

    #[pallet::storage]
    pub type Active<T: Config> = StorageMap<_, Identity, u16, Vec<bool>, ValueQuery>;

    #[pallet::storage]
    pub type Rank<T: Config> = StorageMap<_, Identity, u16, Vec<u16>, ValueQuery>;

    #[pallet::storage]
    pub type Trust<T: Config> = StorageMap<_, Identity, u16, Vec<u16>, ValueQuery>;

    #[pallet::storage]
    pub type Consensus<T: Config> = StorageMap<_, Identity, u16, Vec<u16>, ValueQuery>;

    #[pallet::storage]
    pub type Incentive<T: Config> = StorageMap<_, Identity, u16, Vec<u16>, ValueQuery>;

    #[pallet::storage]
    pub type Dividends<T: Config> = StorageMap<_, Identity, u16, Vec<u16>, ValueQuery>;

    #[pallet::storage]
    pub type Emission<T: Config> = StorageMap<_, Identity, u16, Vec<u64>, ValueQuery>;

    /// Block of the last weights, commit or registration.
    #[pallet::storage]
    pub type LastUpdate<T: Config> = StorageMap<_, Identity, u16, Vec<u64>, ValueQuery>;

    #[pallet::storage]
    pub type ValidatorTrust<T: Config> = StorageMap<_, Identity, u16, Vec<u16>, ValueQuery>;

    #[pallet::storage]
    pub type ValidatorPermit<T: Config> = StorageMap<_, Identity, u16, Vec<bool>, ValueQuery>;

    #[pallet::storage]
    pub type PruningScores<T: Config> = StorageMap<_, Identity, u16, Vec<u16>, ValueQuery>;

    /// (uid, weight) as set by a uid; the largest weight is 65,535.
    #[pallet::storage]
    pub type Weights<T: Config> =
        StorageDoubleMap<_, Identity, u16, Identity, u16, Vec<(u16, u16)>, ValueQuery>;

    #[pallet::storage]
    pub type Bonds<T: Config> =
        StorageDoubleMap<_, Identity, u16, Identity, u16, Vec<(u16, u16)>, ValueQuery>;

    // Commits.

    #[pallet::storage]
    pub type WeightCommits<T: Config> = StorageDoubleMap<
        _,
        Twox64Concat,
        u16,
        Twox64Concat,
        T::AccountId,
        VecDeque<HashCommit>,
        OptionQuery,
    >;

    /// By (netuid, epoch of the commit): (hotkey, block, commit, round).
    #[pallet::storage]
    pub type TimelockedWeightCommits<T: Config> = StorageDoubleMap<
        _,
        Twox64Concat,
        u16,
        Twox64Concat,
        u64,
        VecDeque<(T::AccountId, u64, TimelockCommit, u64)>,
        ValueQuery,
    >;
    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        /// (netuid, mechanism)
        NetworkAdded(u16, u16),
        /// (coldkey, hotkey, TAO, alpha, netuid, fee)
        StakeAdded(T::AccountId, T::AccountId, u64, u64, u16, u64),
        /// (coldkey, hotkey, TAO, alpha, netuid, fee)
        StakeRemoved(T::AccountId, T::AccountId, u64, u64, u16, u64),
        /// (netuid, uid)
        WeightsSet(u16, u16),
        /// (netuid, uid, hotkey)
        NeuronRegistered(u16, u16, T::AccountId),
        /// (netuid, hotkey)
        AxonServed(u16, T::AccountId),
        /// (netuid, tempo)
        TempoSet(u16, u16),
        SubnetIdentitySet(u16),
        /// (hotkey, netuid, commit hash)
        WeightsCommitted(T::AccountId, u16, H256),
        /// (hotkey, netuid, commit hash)
        WeightsRevealed(T::AccountId, u16, H256),
        /// (netuids, hotkey)
        BatchWeightsCompleted(Vec<Compact<u16>>, T::AccountId),
        BatchCompletedWithErrors(),
        BatchWeightItemFailed(DispatchError),
        /// (netuid, first block that emits)
        FirstEmissionBlockNumberSet(u16, u64),
        /// (hotkey, netuid, hash of the commit, round)
        TimelockedWeightsCommitted(T::AccountId, u16, H256, u64),
        /// (netuid, hotkey)
        TimelockedWeightsRevealed(u16, T::AccountId),
        /// (netuid, hotkey): the commit did not open, belongs to another hotkey, holds weights that are refused, or its
        /// round did not come in time. subtensor tells only its log.
        TimelockedWeightsDropped(u16, T::AccountId),
        /// An epoch will run out of turn.
        EpochTriggered {
            netuid: u16,
            by: T::AccountId,
            fires_at: u64,
        },
    }

    /// In the order of subtensor's spec 365, so that indices agree; what came later stands at the end.
    #[pallet::error]
    pub enum Error<T> {
        /// The root network is missing.
        RootNetworkDoesNotExist,
        /// The kind of address is neither 4 nor 6.
        InvalidIpType,
        /// The address is not one that others can reach.
        InvalidIpAddress,
        /// Port 0 cannot be served on.
        InvalidPort,
        /// The hotkey has no uid on the subnet.
        HotKeyNotRegisteredInSubNet,
        /// Nobody owns the hotkey.
        HotKeyAccountNotExists,
        /// The hotkey has no uid on the network it wants to serve.
        HotKeyNotRegisteredInNetwork,
        /// The hotkey belongs to another coldkey.
        NonAssociatedColdKey,
        NotEnoughStake,
        /// The position is smaller than the amount.
        NotEnoughStakeToWithdraw,
        /// The hotkey's stake is below the threshold.
        NotEnoughStakeToSetWeights,
        NotEnoughStakeToSetChildkeys,
        /// The coldkey's free balance does not cover the amount.
        NotEnoughBalanceToStake,
        BalanceWithdrawalError,
        ZeroBalanceAfterWithdrawn,
        /// The neuron holds no validator permit.
        NeuronNoValidatorPermit,
        /// Uids and weights differ in number.
        WeightVecNotEqualSize,
        /// A uid is named twice.
        DuplicateUids,
        /// A uid does not exist on the subnet.
        UidVecContainInvalidOne,
        /// Fewer weights than the subnet demands.
        WeightVecLengthIsLow,
        TooManyRegistrationsThisBlock,
        /// The hotkey has a uid on the subnet already.
        HotKeyAlreadyRegisteredInSubNet,
        NewHotKeyIsSameWithOld,
        InvalidWorkBlock,
        InvalidDifficulty,
        InvalidSeal,
        /// A weight is a larger part of the sum than the subnet allows.
        MaxWeightExceeded,
        HotKeyAlreadyDelegate,
        /// The last weights of this uid are too recent.
        SettingWeightsTooFast,
        /// The version key is older than the subnet's.
        IncorrectWeightVersionKey,
        /// The last announcement of this hotkey is too recent.
        ServingRateLimitExceeded,
        /// More weights than the subnet has uids.
        UidsLengthExceedUidsInSubNet,
        /// The last registration of a subnet is too recent.
        NetworkTxRateLimitExceeded,
        DelegateTxRateLimitExceeded,
        HotKeySetTxRateLimitExceeded,
        StakingRateLimitExceeded,
        /// The subnet takes no registrations.
        SubNetRegistrationDisabled,
        TooManyRegistrationsThisInterval,
        TransactorAccountShouldBeHotKey,
        FaucetDisabled,
        NotSubnetOwner,
        /// The root network has a registration of its own.
        RegistrationNotPermittedOnRootSubnet,
        /// The root network is full of neurons with more stake.
        StakeTooLowForRoot,
        AllNetworksInImmunity,
        NotEnoughBalanceToPaySwapHotKey,
        NotRootSubnet,
        /// The root network has no weights.
        CanNotSetRootNetworkWeights,
        /// The subnet is full and every neuron is immune.
        NoNeuronIdAvailable,
        DelegateTakeTooLow,
        DelegateTakeTooHigh,
        /// The hotkey has no open commit.
        NoWeightsCommitFound,
        /// No open commit has the hash of what is revealed.
        InvalidRevealCommitHashNotMatch,
        /// The subnet takes weights by commit and reveal only.
        CommitRevealEnabled,
        /// The subnet takes no commits.
        CommitRevealDisabled,
        LiquidAlphaDisabled,
        AlphaHighTooLow,
        AlphaLowOutOfRange,
        ColdKeyAlreadyAssociated,
        NotEnoughBalanceToPaySwapColdKey,
        ColdkeyIsInArbitration,
        InvalidChild,
        DuplicateChild,
        ProportionOverflow,
        TooManyChildren,
        TxRateLimitExceeded,
        SwapAlreadyScheduled,
        FailedToSchedule,
        NewColdKeyIsHotkey,
        InvalidChildkeyTake,
        TxChildkeyTakeRateLimitExceeded,
        InvalidIdentity,
        /// The subnet or its mechanism does not exist.
        MechanismDoesNotExist,
        CannotUnstakeLock,
        /// The subnet does not exist.
        SubnetNotExists,
        /// The hotkey has as many open commits as are allowed.
        TooManyUnrevealedCommits,
        /// The time to reveal the commit is over.
        ExpiredWeightCommit,
        /// The time to reveal the commit has not come.
        RevealTooEarly,
        /// The lists differ in length.
        InputLengthsUnequal,
        /// The last commit or weights of this uid are too recent.
        CommittingWeightsTooFast,
        /// The amount is below the least stake.
        AmountTooLow,
        /// The subnet's pool cannot pay the amount.
        InsufficientLiquidity,
        /// The price is worse than the limit.
        SlippageTooHigh,
        TransferDisallowed,
        ActivityCutoffTooLow,
        CallDisabled,
        /// The subnet has been started already.
        FirstEmissionBlockNumberAlreadySet,
        /// The subnet is too young to be started.
        NeedWaitingMoreBlocksToStarCall,
        NotEnoughAlphaOutToRecycle,
        CannotBurnOrRecycleOnRootSubnet,
        UnableToRecoverPublicKey,
        InvalidRecoveredPublicKey,
        /// The subnet has not been started.
        SubtokenDisabled,
        HotKeySwapOnSubnetIntervalNotPassed,
        ZeroMaxStakeAmount,
        SameNetuid,
        InsufficientBalance,
        StakingOperationRateLimitExceeded,
        InvalidLeaseBeneficiary,
        LeaseCannotEndInThePast,
        LeaseNetuidNotFound,
        LeaseDoesNotExist,
        LeaseHasNoEndBlock,
        LeaseHasNotEnded,
        Overflow,
        BeneficiaryDoesNotOwnHotkey,
        ExpectedBeneficiaryOrigin,
        AdminActionProhibitedDuringWeightsWindow,
        SymbolDoesNotExist,
        SymbolAlreadyInUse,
        /// The commit is of another version than the chain's.
        IncorrectCommitRevealVersion,
        /// A reveal period is at most 100 epochs.
        RevealPeriodTooLarge,
        /// A reveal period is at least one epoch.
        RevealPeriodTooSmall,
        InvalidValue,
        /// There are as many subnets as netuids.
        SubnetLimitReached,
        /// The coldkey's free balance does not cover the cost of a subnet.
        CannotAffordLockCost,
        EvmKeyAssociateRateLimitExceeded,
        SameAutoStakeHotkeyAlreadySet,
        UidMapCouldNotBeCleared,
        TrimmingWouldExceedMaxImmunePercentage,
        ChildParentInconsistency,
        InvalidNumRootClaim,
        InvalidRootClaimThreshold,
        InvalidSubnetNumber,
        PrecisionLoss,
        /// The price of a registration is above the limit.
        RegistrationPriceLimitExceeded,
        /// A tempo is 360 to 50,400 blocks.
        TempoOutOfBounds,
        /// An epoch out of turn is already due.
        EpochTriggerAlreadyPending,
    }

    #[pallet::genesis_config]
    #[derive(frame_support::DefaultNoBound)]
    pub struct GenesisConfig<T: Config> {
        #[serde(skip)]
        pub marker: PhantomData<T>,
    }

    #[pallet::genesis_build]
    impl<T: Config> BuildGenesisConfig for GenesisConfig<T> {
        fn build(&self) {
            Pallet::<T>::found_root();
        }
    }

    #[pallet::hooks]
    impl<T: Config> Hooks<BlockNumberFor<T>> for Pallet<T> {
        fn on_initialize(_: BlockNumberFor<T>) -> Weight {
            Self::step();
            Weight::zero()
        }
    }

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        /// Sets the weights that the signing hotkey gives.
        #[pallet::call_index(0)]
        #[pallet::weight(FREE)]
        pub fn set_weights(
            origin: OriginFor<T>,
            netuid: u16,
            dests: Vec<u16>,
            weights: Vec<u16>,
            version_key: u64,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_set_weights(&hotkey, netuid, 0, dests, weights, version_key)
        }

        /// Exchanges TAO of the signing coldkey for alpha on `hotkey`.
        #[pallet::call_index(2)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn add_stake(
            origin: OriginFor<T>,
            hotkey: T::AccountId,
            netuid: u16,
            amount_staked: u64,
        ) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_add_stake(&coldkey, &hotkey, netuid, amount_staked)
        }

        /// Exchanges alpha of the signing coldkey on `hotkey` for TAO.
        #[pallet::call_index(3)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn remove_stake(
            origin: OriginFor<T>,
            hotkey: T::AccountId,
            netuid: u16,
            amount_unstaked: u64,
        ) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_remove_stake(&coldkey, &hotkey, netuid, amount_unstaked)
        }

        /// Announces where the signing hotkey can be reached.
        #[pallet::call_index(4)]
        #[pallet::weight(FREE)]
        pub fn serve_axon(
            origin: OriginFor<T>,
            netuid: u16,
            version: u32,
            ip: u128,
            port: u16,
            ip_type: u8,
            protocol: u8,
            placeholder1: u8,
            placeholder2: u8,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            let block = Self::block();
            let axon = AxonInfo {
                block,
                version,
                ip,
                port,
                ip_type,
                protocol,
                placeholder1,
                placeholder2,
            };
            Self::do_serve_axon(&hotkey, netuid, axon, None)
        }

        /// As `burned_register`: the proof of work is not looked at, and neither is `coldkey`.
        #[pallet::call_index(6)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn register(
            origin: OriginFor<T>,
            netuid: u16,
            block_number: u64,
            nonce: u64,
            work: Vec<u8>,
            hotkey: T::AccountId,
            coldkey: T::AccountId,
        ) -> DispatchResult {
            let signer = ensure_signed(origin)?;
            let _ignored = (block_number, nonce, work, coldkey);
            Self::do_burned_register(&signer, &hotkey, netuid, None)
        }

        /// Buys `hotkey` a uid at whatever the price is.
        #[pallet::call_index(7)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn burned_register(
            origin: OriginFor<T>,
            netuid: u16,
            hotkey: T::AccountId,
        ) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_burned_register(&coldkey, &hotkey, netuid, None)
        }

        /// As `serve_axon`, with a certificate: one byte of algorithm and a public key. One that cannot be read is left out.
        #[pallet::call_index(40)]
        #[pallet::weight(FREE)]
        pub fn serve_axon_tls(
            origin: OriginFor<T>,
            netuid: u16,
            version: u32,
            ip: u128,
            port: u16,
            ip_type: u8,
            protocol: u8,
            placeholder1: u8,
            placeholder2: u8,
            certificate: Vec<u8>,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            let block = Self::block();
            let axon = AxonInfo {
                block,
                version,
                ip,
                port,
                ip_type,
                protocol,
                placeholder1,
                placeholder2,
            };
            Self::do_serve_axon(&hotkey, netuid, axon, NeuronCertificate::read(&certificate))
        }

        /// Registers a subnet that the signing coldkey owns; `hotkey` gets its uid 0.
        #[pallet::call_index(59)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn register_network(origin: OriginFor<T>, hotkey: T::AccountId) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_register_network(&coldkey, &hotkey, None)
        }

        /// Gives `hotkey` a uid on the root network.
        #[pallet::call_index(62)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn root_register(origin: OriginFor<T>, hotkey: T::AccountId) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_root_register(&coldkey, &hotkey)
        }

        /// As `register_network`, with what the subnet says about itself.
        #[pallet::call_index(79)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn register_network_with_identity(
            origin: OriginFor<T>,
            hotkey: T::AccountId,
            identity: Option<SubnetIdentityV3>,
        ) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_register_network(&coldkey, &hotkey, identity)
        }

        /// Sets weights on several subnets; one that fails leaves an event and does not stop the others.
        #[pallet::call_index(80)]
        #[pallet::weight(FREE)]
        pub fn batch_set_weights(
            origin: OriginFor<T>,
            netuids: Vec<Compact<u16>>,
            weights: Vec<Vec<(Compact<u16>, Compact<u16>)>>,
            version_keys: Vec<Compact<u64>>,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_batch_set_weights(hotkey, netuids, weights, version_keys)
        }

        /// As `add_stake`, unless one alpha costs more than `limit_price` rao.
        #[pallet::call_index(88)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn add_stake_limit(
            origin: OriginFor<T>,
            hotkey: T::AccountId,
            netuid: u16,
            amount_staked: u64,
            limit_price: u64,
            allow_partial: bool,
        ) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            let _no_part_fits_worse = allow_partial;
            Self::ensure_price_at_most(limit_price)?;
            Self::do_add_stake(&coldkey, &hotkey, netuid, amount_staked)
        }

        /// As `remove_stake`, unless one alpha brings less than `limit_price` rao.
        #[pallet::call_index(89)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn remove_stake_limit(
            origin: OriginFor<T>,
            hotkey: T::AccountId,
            netuid: u16,
            amount_unstaked: u64,
            limit_price: u64,
            allow_partial: bool,
        ) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            let _no_part_fits_worse = allow_partial;
            Self::ensure_price_at_least(limit_price)?;
            Self::do_remove_stake(&coldkey, &hotkey, netuid, amount_unstaked)
        }

        /// Opens a subnet for stake and emission.
        #[pallet::call_index(92)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn start_call(origin: OriginFor<T>, netuid: u16) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_start_call(&coldkey, netuid)
        }

        /// Binds the signing hotkey to weights that it reveals later.
        #[pallet::call_index(96)]
        #[pallet::weight(FREE)]
        pub fn commit_weights(
            origin: OriginFor<T>,
            netuid: u16,
            commit_hash: H256,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_commit_weights(hotkey, netuid, 0, commit_hash)
        }

        /// Sets the weights of an earlier `commit_weights`.
        #[pallet::call_index(97)]
        #[pallet::weight(FREE)]
        pub fn reveal_weights(
            origin: OriginFor<T>,
            netuid: u16,
            uids: Vec<u16>,
            values: Vec<u16>,
            salt: Vec<u16>,
            version_key: u64,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_reveal_weights(hotkey, netuid, 0, uids, values, salt, version_key)
        }

        /// Binds the signing hotkey to weights that the chain opens when the beacon reaches `reveal_round`.
        #[pallet::call_index(113)]
        #[pallet::weight(FREE)]
        pub fn commit_timelocked_weights(
            origin: OriginFor<T>,
            netuid: u16,
            commit: TimelockCommit,
            reveal_round: u64,
            commit_reveal_version: u16,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_commit_timelocked(
                hotkey,
                netuid,
                0,
                commit,
                reveal_round,
                commit_reveal_version,
            )
        }

        /// As `commit_weights`, for one mechanism of the subnet.
        #[pallet::call_index(115)]
        #[pallet::weight(FREE)]
        pub fn commit_mechanism_weights(
            origin: OriginFor<T>,
            netuid: u16,
            mecid: u8,
            commit_hash: H256,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_commit_weights(hotkey, netuid, mecid, commit_hash)
        }

        /// As `reveal_weights`, for one mechanism of the subnet.
        #[pallet::call_index(116)]
        #[pallet::weight(FREE)]
        pub fn reveal_mechanism_weights(
            origin: OriginFor<T>,
            netuid: u16,
            mecid: u8,
            uids: Vec<u16>,
            values: Vec<u16>,
            salt: Vec<u16>,
            version_key: u64,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_reveal_weights(hotkey, netuid, mecid, uids, values, salt, version_key)
        }

        /// As `commit_timelocked_weights`, for one mechanism of the subnet.
        #[pallet::call_index(118)]
        #[pallet::weight(FREE)]
        pub fn commit_timelocked_mechanism_weights(
            origin: OriginFor<T>,
            netuid: u16,
            mecid: u8,
            commit: TimelockCommit,
            reveal_round: u64,
            commit_reveal_version: u16,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_commit_timelocked(
                hotkey,
                netuid,
                mecid,
                commit,
                reveal_round,
                commit_reveal_version,
            )
        }

        /// As `set_weights`, for one mechanism of the subnet.
        #[pallet::call_index(119)]
        #[pallet::weight(FREE)]
        pub fn set_mechanism_weights(
            origin: OriginFor<T>,
            netuid: u16,
            mecid: u8,
            dests: Vec<u16>,
            weights: Vec<u16>,
            version_key: u64,
        ) -> DispatchResult {
            let hotkey = ensure_signed(origin)?;
            Self::do_set_weights(&hotkey, netuid, mecid, dests, weights, version_key)
        }

        /// As `burned_register`, unless the price is above `limit_price` rao.
        #[pallet::call_index(134)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn register_limit(
            origin: OriginFor<T>,
            netuid: u16,
            hotkey: T::AccountId,
            limit_price: u64,
        ) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_burned_register(&coldkey, &hotkey, netuid, Some(limit_price))
        }

        /// Sets the tempo of a subnet that the signing coldkey owns.
        #[pallet::call_index(139)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn set_tempo(origin: OriginFor<T>, netuid: u16, tempo: u16) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_set_tempo(&coldkey, netuid, tempo)
        }

        /// Runs an epoch in the next block, out of turn.
        #[pallet::call_index(141)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn trigger_epoch(origin: OriginFor<T>, netuid: u16) -> DispatchResult {
            let coldkey = ensure_signed(origin)?;
            Self::do_trigger_epoch(coldkey, netuid)
        }
    }
}
