//! A subnet and all its neurons in one record.

use codec::{Compact, Decode, Encode};
use scale_info::TypeInfo;

use super::subnets::fixed;
use crate::{
    fixed_point::I96F32,
    runtime::{AccountId, Runtime, settings},
    subtensor::{
        ActivityCutoff, AlphaDividendsPerSubnet, AlphaValues, AxonInfo, BlocksSinceLastStep,
        BondsMovingAverage, Burn, CommitRevealWeightsEnabled, FirstEmissionBlockNumber,
        ImmunityPeriod, Kappa, LastMechansimStepBlock, LiquidAlphaOn, MaxAllowedUids,
        MaxAllowedValidators, MaxBurn, MaxWeightsLimit, MinAllowedWeights, MinBurn,
        NetworkRegisteredAt, NetworkRegistrationAllowed, NetworksAdded, Neuron,
        Pallet as Subtensor, PendingServerEmission, PendingValidatorEmission, ROOT,
        RevealPeriodEpochs, Rho, ServingRateLimit, SubnetAlphaIn, SubnetAlphaOut,
        SubnetIdentitiesV3, SubnetIdentityV3, SubnetOwner, SubnetOwnerHotkey, SubnetTAO,
        SubnetworkN, Tempo, TokenSymbol, TotalHotkeyAlpha, TotalNetworks, WeightsSetRateLimit,
        WeightsVersionKey,
    },
};

/// A subnet. Lists have one entry per neuron, by uid; amounts of alpha are in its smallest unit.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, TypeInfo)]
pub struct Metagraph<AccountId> {
    /// Subnet.
    pub netuid: Compact<u16>,
    /// Name, UTF-8.
    pub name: Vec<Compact<u8>>,
    /// Sign of its alpha, UTF-8.
    pub symbol: Vec<Compact<u8>>,
    /// What it says about itself.
    pub identity: Option<SubnetIdentityV3>,
    /// Block of its registration.
    pub network_registered_at: Compact<u64>,
    /// Hotkey of its owner.
    pub owner_hotkey: AccountId,
    /// Its owner.
    pub owner_coldkey: AccountId,
    /// This block.
    pub block: Compact<u64>,
    /// Blocks between epochs.
    pub tempo: Compact<u16>,
    /// Block of the last epoch.
    pub last_step: Compact<u64>,
    /// Blocks since then.
    pub blocks_since_last_step: Compact<u64>,
    /// RAO that it gets per block.
    pub subnet_emission: Compact<u64>,
    /// Alpha in its pool.
    pub alpha_in: Compact<u64>,
    /// Alpha that is staked.
    pub alpha_out: Compact<u64>,
    /// RAO in its pool.
    pub tao_in: Compact<u64>,
    /// Alpha per block for neurons and owner.
    pub alpha_out_emission: Compact<u64>,
    /// Alpha per block into the pool.
    pub alpha_in_emission: Compact<u64>,
    /// RAO per block into the pool.
    pub tao_in_emission: Compact<u64>,
    /// Alpha that waits for the next epoch.
    pub pending_alpha_emission: Compact<u64>,
    /// RAO that waits for root: none.
    pub pending_root_emission: Compact<u64>,
    /// RAO traded: not counted.
    pub subnet_volume: Compact<u128>,
    /// RAO per alpha.
    pub moving_price: I96F32,
    /// Not used.
    pub rho: Compact<u16>,
    /// Share of the stake that has to agree on a weight, in parts of 65,535.
    pub kappa: Compact<u16>,
    /// Least number of weights in a row.
    pub min_allowed_weights: Compact<u16>,
    /// Largest part of a row that one weight may be, in parts of 65,535.
    pub max_weights_limit: Compact<u16>,
    /// Oldest version key that is accepted.
    pub weights_version: Compact<u64>,
    /// Blocks between two weights or commits of a neuron.
    pub weights_rate_limit: Compact<u64>,
    /// Blocks after which a silent validator counts as inactive.
    pub activity_cutoff: Compact<u16>,
    /// Most validator permits.
    pub max_validators: Compact<u16>,
    /// Neurons.
    pub num_uids: Compact<u16>,
    /// Most neurons.
    pub max_uids: Compact<u16>,
    /// RAO that a registration costs now.
    pub burn: Compact<u64>,
    /// Of proof of work.
    pub difficulty: Compact<u64>,
    /// Whether neurons may be registered.
    pub registration_allowed: bool,
    /// By proof of work: no.
    pub pow_registration_allowed: bool,
    /// Blocks during which a new neuron is not pruned.
    pub immunity_period: Compact<u16>,
    /// Of proof of work.
    pub min_difficulty: Compact<u64>,
    /// Of proof of work.
    pub max_difficulty: Compact<u64>,
    /// Least price of a registration, in RAO.
    pub min_burn: Compact<u64>,
    /// Largest price of a registration, in RAO.
    pub max_burn: Compact<u64>,
    /// Of the price's adjustment.
    pub adjustment_alpha: Compact<u64>,
    /// Blocks between two adjustments.
    pub adjustment_interval: Compact<u16>,
    /// What the price aims at.
    pub target_regs_per_interval: Compact<u16>,
    /// Registrations in a block.
    pub max_regs_per_block: Compact<u16>,
    /// Blocks between two announcements of a hotkey.
    pub serving_rate_limit: Compact<u64>,
    /// Whether weights stay hidden before they count.
    pub commit_reveal_weights_enabled: bool,
    /// Epochs between a commit and its reveal.
    pub commit_reveal_period: Compact<u64>,
    /// Whether bonds follow consensus faster.
    pub liquid_alpha_enabled: bool,
    /// Upper end of liquid alpha, in parts of 65,535.
    pub alpha_high: Compact<u16>,
    /// Lower end of liquid alpha, in parts of 65,535.
    pub alpha_low: Compact<u16>,
    /// In parts of a million.
    pub bonds_moving_avg: Compact<u64>,
    /// By uid, as all that follows.
    pub hotkeys: Vec<AccountId>,
    /// Owners.
    pub coldkeys: Vec<AccountId>,
    /// What coldkeys say about themselves: nothing.
    pub identities: Vec<Option<ChainIdentityV2>>,
    /// Where they can be reached; zeros if they did not say.
    pub axons: Vec<AxonInfo>,
    /// Who set weights within the activity cutoff.
    pub active: Vec<bool>,
    /// Whose weights count.
    pub validator_permit: Vec<bool>,
    /// Who leaves first.
    pub pruning_score: Vec<Compact<u16>>,
    /// Block of the last weights, commit or registration.
    pub last_update: Vec<Compact<u64>>,
    /// Alpha of the last epoch.
    pub emission: Vec<Compact<u64>>,
    /// Shares of what validators are paid, in parts of 65,535.
    pub dividends: Vec<Compact<u16>>,
    /// Shares of what servers are paid, in parts of 65,535.
    pub incentives: Vec<Compact<u16>>,
    /// Weights that most stake agrees on, in parts of 65,535.
    pub consensus: Vec<Compact<u16>>,
    /// Parts of their weights that consensus kept.
    pub trust: Vec<Compact<u16>>,
    /// Shares of stake-weighted weights.
    pub rank: Vec<Compact<u16>>,
    /// Blocks of registration.
    pub block_at_registration: Vec<Compact<u64>>,
    /// Alpha on the hotkey.
    pub alpha_stake: Vec<Compact<u64>>,
    /// RAO on the hotkey on the root network.
    pub tao_stake: Vec<Compact<u64>>,
    /// What its stake counts here.
    pub total_stake: Vec<Compact<u64>>,
    /// RAO that holders earned in the last epoch: none.
    pub tao_dividends_per_hotkey: Vec<(AccountId, Compact<u64>)>,
    /// Alpha that holders earned in the last epoch.
    pub alpha_dividends_per_hotkey: Vec<(AccountId, Compact<u64>)>,
}

/// What a coldkey says about itself. Every field is text.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, TypeInfo)]
pub struct ChainIdentityV2 {
    /// Name.
    pub name: Vec<u8>,
    /// Address on the web.
    pub url: Vec<u8>,
    /// Source.
    pub github_repo: Vec<u8>,
    /// Picture.
    pub image: Vec<u8>,
    /// Discord.
    pub discord: Vec<u8>,
    /// Description.
    pub description: Vec<u8>,
    /// Anything else.
    pub additional: Vec<u8>,
}

impl Metagraph<AccountId> {
    /// The metagraph of a subnet, if it exists.
    pub(super) fn read(netuid: u16) -> Option<Self> {
        if !NetworksAdded::<Runtime>::get(netuid) {
            return None;
        }
        let neurons = Subtensor::<Runtime>::neurons(netuid);
        let identity = SubnetIdentitiesV3::<Runtime>::get(netuid);
        let emission = emission_per_block(netuid);
        let pending = PendingServerEmission::<Runtime>::get(netuid)
            .saturating_add(PendingValidatorEmission::<Runtime>::get(netuid));
        let (alpha_low, alpha_high) = AlphaValues::<Runtime>::get(netuid);
        Some(Self {
            netuid: netuid.into(),
            name: text(
                identity
                    .as_ref()
                    .map_or(&[], |identity| &identity.subnet_name),
            ),
            symbol: text(&TokenSymbol::<Runtime>::get(netuid)),
            identity,
            network_registered_at: NetworkRegisteredAt::<Runtime>::get(netuid).into(),
            owner_hotkey: SubnetOwnerHotkey::<Runtime>::get(netuid),
            owner_coldkey: SubnetOwner::<Runtime>::get(netuid),
            block: Subtensor::<Runtime>::block().into(),
            tempo: Tempo::<Runtime>::get(netuid).into(),
            last_step: LastMechansimStepBlock::<Runtime>::get(netuid).into(),
            blocks_since_last_step: BlocksSinceLastStep::<Runtime>::get(netuid).into(),
            subnet_emission: emission.into(),
            alpha_in: SubnetAlphaIn::<Runtime>::get(netuid).into(),
            alpha_out: SubnetAlphaOut::<Runtime>::get(netuid).into(),
            tao_in: SubnetTAO::<Runtime>::get(netuid).into(),
            alpha_out_emission: emission.into(),
            alpha_in_emission: emission.into(),
            tao_in_emission: emission.into(),
            pending_alpha_emission: pending.into(),
            pending_root_emission: 0.into(),
            subnet_volume: 0.into(),
            moving_price: I96F32::ratio(super::stake::alpha_price(netuid), 1_000_000_000),
            rho: Rho::<Runtime>::get(netuid).into(),
            kappa: Kappa::<Runtime>::get(netuid).into(),
            min_allowed_weights: MinAllowedWeights::<Runtime>::get(netuid).into(),
            max_weights_limit: MaxWeightsLimit::<Runtime>::get(netuid).into(),
            weights_version: WeightsVersionKey::<Runtime>::get(netuid).into(),
            weights_rate_limit: WeightsSetRateLimit::<Runtime>::get(netuid).into(),
            activity_cutoff: ActivityCutoff::<Runtime>::get(netuid).into(),
            max_validators: MaxAllowedValidators::<Runtime>::get(netuid).into(),
            num_uids: SubnetworkN::<Runtime>::get(netuid).into(),
            max_uids: MaxAllowedUids::<Runtime>::get(netuid).into(),
            burn: Burn::<Runtime>::get(netuid).into(),
            difficulty: fixed::DIFFICULTY.into(),
            registration_allowed: NetworkRegistrationAllowed::<Runtime>::get(netuid),
            pow_registration_allowed: false,
            immunity_period: ImmunityPeriod::<Runtime>::get(netuid).into(),
            min_difficulty: fixed::MIN_DIFFICULTY.into(),
            max_difficulty: fixed::MAX_DIFFICULTY.into(),
            min_burn: MinBurn::<Runtime>::get(netuid).into(),
            max_burn: MaxBurn::<Runtime>::get(netuid).into(),
            adjustment_alpha: fixed::ADJUSTMENT_ALPHA.into(),
            adjustment_interval: fixed::ADJUSTMENT_INTERVAL.into(),
            target_regs_per_interval: fixed::TARGET_REGS_PER_INTERVAL.into(),
            max_regs_per_block: fixed::MAX_REGS_PER_BLOCK.into(),
            serving_rate_limit: ServingRateLimit::<Runtime>::get(netuid).into(),
            commit_reveal_weights_enabled: CommitRevealWeightsEnabled::<Runtime>::get(netuid),
            commit_reveal_period: RevealPeriodEpochs::<Runtime>::get(netuid).into(),
            liquid_alpha_enabled: LiquidAlphaOn::<Runtime>::get(netuid),
            alpha_high: alpha_high.into(),
            alpha_low: alpha_low.into(),
            bonds_moving_avg: BondsMovingAverage::<Runtime>::get(netuid).into(),
            hotkeys: column(&neurons, |neuron| neuron.hotkey.clone()),
            coldkeys: column(&neurons, |neuron| neuron.coldkey.clone()),
            identities: column(&neurons, |_| None),
            axons: column(&neurons, |neuron| neuron.axon.clone()),
            active: column(&neurons, |neuron| neuron.active),
            validator_permit: column(&neurons, |neuron| neuron.validator_permit),
            pruning_score: column(&neurons, |neuron| neuron.pruning_score.into()),
            last_update: column(&neurons, |neuron| neuron.last_update.into()),
            emission: column(&neurons, |neuron| neuron.emission.into()),
            dividends: column(&neurons, |neuron| neuron.dividends.into()),
            incentives: column(&neurons, |neuron| neuron.incentive.into()),
            consensus: column(&neurons, |neuron| neuron.consensus.into()),
            trust: column(&neurons, |neuron| neuron.trust.into()),
            rank: column(&neurons, |neuron| neuron.rank.into()),
            block_at_registration: column(&neurons, |neuron| neuron.registered_at.into()),
            alpha_stake: column(&neurons, |neuron| neuron.stake.alpha.into()),
            tao_stake: column(&neurons, |neuron| {
                TotalHotkeyAlpha::<Runtime>::get(&neuron.hotkey, ROOT).into()
            }),
            total_stake: column(&neurons, |neuron| neuron.stake.total().into()),
            tao_dividends_per_hotkey: column(&neurons, |neuron| (neuron.hotkey.clone(), 0.into())),
            alpha_dividends_per_hotkey: column(&neurons, |neuron| {
                let dividends = AlphaDividendsPerSubnet::<Runtime>::get(netuid, &neuron.hotkey);
                (neuron.hotkey.clone(), dividends.into())
            }),
        })
    }
}

/// RAO that a block emits to a subnet: an even part for each that has been started.
fn emission_per_block(netuid: u16) -> u64 {
    let block = Subtensor::<Runtime>::block();
    let is_started = |netuid: &u16| {
        FirstEmissionBlockNumber::<Runtime>::get(netuid).is_some_and(|first| block >= first)
    };
    if !is_started(&netuid) {
        return 0;
    }
    let started = (1..TotalNetworks::<Runtime>::get())
        .filter(is_started)
        .count();
    let emission: u64 = settings::BlockEmissionRao::get();
    u64::try_from(started)
        .ok()
        .and_then(|started| emission.checked_div(started))
        .unwrap_or(0)
}

/// One value of each neuron.
fn column<T>(neurons: &[Neuron<AccountId>], value: impl Fn(&Neuron<AccountId>) -> T) -> Vec<T> {
    neurons.iter().map(value).collect()
}

/// Bytes as finney writes text here.
fn text(bytes: &[u8]) -> Vec<Compact<u8>> {
    bytes.iter().copied().map(Compact).collect()
}
