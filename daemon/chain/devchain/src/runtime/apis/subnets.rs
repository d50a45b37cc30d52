//! `SubnetInfoRuntimeApi`: hyperparameters and metagraphs.

use codec::{Compact, Decode, Encode};
use scale_info::TypeInfo;
use sp_api::decl_runtime_apis;

use super::metagraph::Metagraph;
use crate::{
    fixed_point::I32F32,
    runtime::{AccountId, Runtime},
    subtensor::{
        ActivityCutoff, AlphaValues, BondsMovingAverage, CommitRevealWeightsEnabled,
        FirstEmissionBlockNumber, ImmunityPeriod, Kappa, LiquidAlphaOn, MaxAllowedValidators,
        MaxBurn, MaxWeightsLimit, MinAllowedWeights, MinBurn, NetworkRegistrationAllowed,
        NetworksAdded, RevealPeriodEpochs, Rho, ServingRateLimit, Tempo, WeightsSetRateLimit,
        WeightsVersionKey, Yuma3On,
    },
};

decl_runtime_apis! {
    /// Subnets.
    pub trait SubnetInfoRuntimeApi {
        /// Hyperparameters; `None` for a subnet that does not exist.
        fn get_subnet_hyperparams(netuid: u16) -> Option<SubnetHyperparams>;
        /// Hyperparameters, and what came later.
        fn get_subnet_hyperparams_v2(netuid: u16) -> Option<SubnetHyperparamsV2>;
        /// All of a subnet; `None` for one that does not exist.
        fn get_metagraph(netuid: u16) -> Option<Metagraph<AccountId>>;
        /// The metagraph of a subnet's mechanism; here there is only mechanism 0.
        fn get_mechagraph(netuid: u16, mecid: u8) -> Option<Metagraph<AccountId>>;
    }
}

/// Values of finney that stand for what does not exist here: proof of work, and a price of registration that is adjusted
/// to a target.
pub(super) mod fixed {
    pub(in super::super) const DIFFICULTY: u64 = 10_000_000;
    pub(in super::super) const MIN_DIFFICULTY: u64 = 10_000_000;
    pub(in super::super) const MAX_DIFFICULTY: u64 = u64::MAX / 4;
    pub(in super::super) const ADJUSTMENT_ALPHA: u64 = 0;
    pub(in super::super) const ADJUSTMENT_INTERVAL: u16 = 100;
    pub(in super::super) const TARGET_REGS_PER_INTERVAL: u16 = 2;
    pub(in super::super) const MAX_REGS_PER_BLOCK: u16 = 1;
}

/// Declares both versions of the hyperparameters: the second is the first with more at its end.
macro_rules! hyperparameters {
    ($($(#[$doc:meta])* $field:ident: $ty:ty = $value:expr,)* ; $($(#[$later_doc:meta])* $later:ident: $later_ty:ty = $later_value:expr,)*) => {
        /// Hyperparameters of a subnet.
        #[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, TypeInfo)]
        pub struct SubnetHyperparams {
            $($(#[$doc])* pub $field: $ty,)*
        }

        /// Hyperparameters of a subnet, with those that came later.
        #[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, TypeInfo)]
        pub struct SubnetHyperparamsV2 {
            $($(#[$doc])* pub $field: $ty,)*
            $($(#[$later_doc])* pub $later: $later_ty,)*
        }

        impl SubnetHyperparams {
            fn read(netuid: u16) -> Self {
                Self { $($field: $value(netuid).into(),)* }
            }
        }

        impl SubnetHyperparamsV2 {
            fn read(netuid: u16) -> Self {
                Self { $($field: $value(netuid).into(),)* $($later: $later_value(netuid).into(),)* }
            }
        }
    };
}

hyperparameters! {
    /// Of the root network's ranks; not used.
    rho: Compact<u16> = Rho::<Runtime>::get,
    /// Share of the stake that has to agree on a weight, in parts of 65,535.
    kappa: Compact<u16> = Kappa::<Runtime>::get,
    /// Blocks during which a new neuron is not pruned.
    immunity_period: Compact<u16> = ImmunityPeriod::<Runtime>::get,
    /// Least number of weights in a row.
    min_allowed_weights: Compact<u16> = MinAllowedWeights::<Runtime>::get,
    /// Largest part of a row that one weight may be, in parts of 65,535.
    max_weights_limit: Compact<u16> = MaxWeightsLimit::<Runtime>::get,
    /// Blocks between epochs.
    tempo: Compact<u16> = Tempo::<Runtime>::get,
    /// Of proof of work.
    min_difficulty: Compact<u64> = |_| fixed::MIN_DIFFICULTY,
    /// Of proof of work.
    max_difficulty: Compact<u64> = |_| fixed::MAX_DIFFICULTY,
    /// Oldest version key that is accepted.
    weights_version: Compact<u64> = WeightsVersionKey::<Runtime>::get,
    /// Blocks between two weights or commits of a neuron.
    weights_rate_limit: Compact<u64> = WeightsSetRateLimit::<Runtime>::get,
    /// Blocks between two adjustments of the price.
    adjustment_interval: Compact<u16> = |_| fixed::ADJUSTMENT_INTERVAL,
    /// Blocks after which a silent validator counts as inactive.
    activity_cutoff: Compact<u16> = ActivityCutoff::<Runtime>::get,
    /// Whether neurons may be registered.
    registration_allowed: bool = NetworkRegistrationAllowed::<Runtime>::get,
    /// What the price aims at.
    target_regs_per_interval: Compact<u16> = |_| fixed::TARGET_REGS_PER_INTERVAL,
    /// Least price of a registration, in RAO.
    min_burn: Compact<u64> = MinBurn::<Runtime>::get,
    /// Largest price of a registration, in RAO.
    max_burn: Compact<u64> = MaxBurn::<Runtime>::get,
    /// In parts of a million.
    bonds_moving_avg: Compact<u64> = BondsMovingAverage::<Runtime>::get,
    /// Registrations in a block.
    max_regs_per_block: Compact<u16> = |_| fixed::MAX_REGS_PER_BLOCK,
    /// Blocks between two announcements of a hotkey.
    serving_rate_limit: Compact<u64> = ServingRateLimit::<Runtime>::get,
    /// Most validator permits.
    max_validators: Compact<u16> = MaxAllowedValidators::<Runtime>::get,
    /// Of the price's adjustment.
    adjustment_alpha: Compact<u64> = |_| fixed::ADJUSTMENT_ALPHA,
    /// Of proof of work.
    difficulty: Compact<u64> = |_| fixed::DIFFICULTY,
    /// Epochs between a commit and its reveal.
    commit_reveal_period: Compact<u64> = RevealPeriodEpochs::<Runtime>::get,
    /// Whether weights stay hidden before they count.
    commit_reveal_weights_enabled: bool = CommitRevealWeightsEnabled::<Runtime>::get,
    /// Upper end of liquid alpha, in parts of 65,535.
    alpha_high: Compact<u16> = |netuid| AlphaValues::<Runtime>::get(netuid).1,
    /// Lower end of liquid alpha, in parts of 65,535.
    alpha_low: Compact<u16> = |netuid| AlphaValues::<Runtime>::get(netuid).0,
    /// Whether bonds follow consensus faster.
    liquid_alpha_enabled: bool = LiquidAlphaOn::<Runtime>::get,
    ;
    /// Steepness of liquid alpha's sigmoid.
    alpha_sigmoid_steepness: I32F32 = |_| I32F32::whole(1000),
    /// 2, or 3.
    yuma_version: Compact<u16> = |netuid| if Yuma3On::<Runtime>::get(netuid) { 3 } else { 2 },
    /// Whether it has been started.
    subnet_is_active: bool = FirstEmissionBlockNumber::<Runtime>::contains_key,
    /// Whether stake may change hands: there is no call for it.
    transfers_enabled: bool = |_| false,
    /// Whether a commitment may reset bonds.
    bonds_reset_enabled: bool = |_| true,
    /// Whether users may own liquidity.
    user_liquidity_enabled: bool = |_| false,
}

/// Hyperparameters, if the subnet exists.
pub(super) fn hyperparameters(netuid: u16) -> Option<SubnetHyperparams> {
    NetworksAdded::<Runtime>::get(netuid).then(|| SubnetHyperparams::read(netuid))
}

/// Hyperparameters with those that came later, if the subnet exists.
pub(super) fn hyperparameters_v2(netuid: u16) -> Option<SubnetHyperparamsV2> {
    NetworksAdded::<Runtime>::get(netuid).then(|| SubnetHyperparamsV2::read(netuid))
}
