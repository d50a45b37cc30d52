//! `NeuronInfoRuntimeApi`: the neurons of a subnet, one record each.

use codec::{Compact, Decode, Encode};
use scale_info::TypeInfo;
use sp_api::decl_runtime_apis;

use crate::{
    runtime::{AccountId, Runtime},
    subtensor::{self, AxonInfo, Neuron, PrometheusInfo},
};

decl_runtime_apis! {
    /// The neurons of a subnet.
    pub trait NeuronInfoRuntimeApi {
        /// All of them, by uid; none for a subnet that does not exist.
        fn get_neurons_lite(netuid: u16) -> Vec<NeuronInfoLite<AccountId>>;
        /// One of them.
        fn get_neuron_lite(netuid: u16, uid: u16) -> Option<NeuronInfoLite<AccountId>>;
    }
}

/// A neuron, without its weights and bonds. Shares are in parts of 65,535.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, TypeInfo)]
pub struct NeuronInfoLite<AccountId> {
    /// Key that signs what the neuron does.
    pub hotkey: AccountId,
    /// Key that owns it.
    pub coldkey: AccountId,
    /// Its place.
    pub uid: Compact<u16>,
    /// Its subnet.
    pub netuid: Compact<u16>,
    /// Whether it set weights within the activity cutoff.
    pub active: bool,
    /// Where it can be reached; zeros if it did not say.
    pub axon_info: AxonInfo,
    /// Where its metrics can be read; zeros if it did not say.
    pub prometheus_info: PrometheusInfo,
    /// (coldkey, alpha on the hotkey).
    pub stake: Vec<(AccountId, Compact<u64>)>,
    /// Share of stake-weighted weights.
    pub rank: Compact<u16>,
    /// Alpha of the last epoch.
    pub emission: Compact<u64>,
    /// Share of what servers are paid.
    pub incentive: Compact<u16>,
    /// Weight that most stake agrees on.
    pub consensus: Compact<u16>,
    /// Part of its weights that consensus kept.
    pub trust: Compact<u16>,
    /// As a validator.
    pub validator_trust: Compact<u16>,
    /// Share of what validators are paid.
    pub dividends: Compact<u16>,
    /// Block of its last weights, commit or registration.
    pub last_update: Compact<u64>,
    /// Whether its weights count.
    pub validator_permit: bool,
    /// Who leaves first when the subnet is full.
    pub pruning_score: Compact<u16>,
}

impl NeuronInfoLite<AccountId> {
    fn new(netuid: u16, neuron: Neuron<AccountId>) -> Self {
        Self {
            hotkey: neuron.hotkey,
            stake: vec![(neuron.coldkey.clone(), neuron.stake.alpha.into())],
            coldkey: neuron.coldkey,
            uid: neuron.uid.into(),
            netuid: netuid.into(),
            active: neuron.active,
            axon_info: neuron.axon,
            prometheus_info: neuron.prometheus,
            rank: neuron.rank.into(),
            emission: neuron.emission.into(),
            incentive: neuron.incentive.into(),
            consensus: neuron.consensus.into(),
            trust: neuron.trust.into(),
            validator_trust: neuron.validator_trust.into(),
            dividends: neuron.dividends.into(),
            last_update: neuron.last_update.into(),
            validator_permit: neuron.validator_permit,
            pruning_score: neuron.pruning_score.into(),
        }
    }
}

/// The neurons of `netuid`, by uid.
pub(super) fn neurons(netuid: u16) -> Vec<NeuronInfoLite<AccountId>> {
    let neurons = subtensor::Pallet::<Runtime>::neurons(netuid);
    neurons
        .into_iter()
        .map(|neuron| NeuronInfoLite::new(netuid, neuron))
        .collect()
}

/// One neuron of `netuid`.
pub(super) fn neuron(netuid: u16, uid: u16) -> Option<NeuronInfoLite<AccountId>> {
    subtensor::Pallet::<Runtime>::neuron(netuid, uid)
        .map(|neuron| NeuronInfoLite::new(netuid, neuron))
}
