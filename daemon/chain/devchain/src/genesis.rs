//! State of block 0: funded development keys, the beacon, and the values that make a chain fast.

use frame_support::BoundedVec;
use sp_core::{Pair as _, sr25519};
use sp_runtime::{BuildStorage as _, Storage};
use sp_state_machine::BasicExternalities;

use crate::{
    drand::{self, BeaconConfiguration},
    runtime::{
        AccountId, Balance, BalancesConfig, Runtime, RuntimeGenesisConfig, SudoConfig, settings,
    },
    subtensor::InitialParameters,
};

/// Keys of the well-known development phrase that start with [`Genesis::endowment_rao`]. The first is the sudo key.
pub const DEV_KEYS: [&str; 6] = ["Alice", "Bob", "Charlie", "Dave", "Eve", "Ferdie"];

/// What a new chain starts with.
#[derive(Clone, Debug)]
pub struct Genesis {
    /// Time between two blocks, in milliseconds; what `Aura.SlotDuration` says. The node keeps to it.
    pub block_time_ms: u64,
    /// What each new subnet starts with.
    pub subnets: InitialParameters,
    /// RAO that a block emits for all subnets together.
    pub block_emission_rao: Balance,
    /// Whether a neuron may announce a loopback address.
    pub loopback_axons: bool,
    /// The beacon whose pulses the chain takes.
    pub beacon: BeaconConfiguration,
    /// RAO that each of [`DEV_KEYS`] owns.
    pub endowment_rao: Balance,
    /// Accounts that own RAO beside [`DEV_KEYS`].
    pub funded: Vec<(AccountId, Balance)>,
}

impl Default for Genesis {
    /// A fast chain on one machine: blocks of 250 ms, [`fast_subnets`], loopback addresses, quicknet, a million TAO for
    /// each key.
    fn default() -> Self {
        Self {
            block_time_ms: 250,
            subnets: fast_subnets(),
            block_emission_rao: 1_000_000_000,
            loopback_axons: true,
            beacon: BeaconConfiguration::quicknet(),
            endowment_rao: 1_000_000_000_000_000,
            funded: Vec::new(),
        }
    }
}

/// Subnets for tests and demos: finney's values, with every time shortened and a subnet for 100 TAO, at once.
pub fn fast_subnets() -> InitialParameters {
    InitialParameters {
        tempo: 10,
        immunity_period: 100,
        weights_set_rate_limit: 5,
        serving_rate_limit: 5,
        network_rate_limit: 0,
        network_min_lock_cost: 100_000_000_000,
        start_call_delay: 0,
        ..InitialParameters::default()
    }
}

/// Account of the development key `//NAME`.
pub fn dev_account(name: &str) -> AccountId {
    let pair = sr25519::Pair::from_string(&format!("//{name}"), None)
        .expect("a hard derivation of one name parses");
    pair.public().into()
}

/// A beacon of 96 bytes of BLS public key that runs since `genesis_time` (Unix time in seconds, round 1) with a period in
/// seconds; its hashes are zero.
///
/// # Panics
/// If `name` is longer than 32 bytes.
pub fn beacon(
    name: &str,
    public_key: [u8; 96],
    genesis_time: u32,
    period: u32,
) -> BeaconConfiguration {
    let quicknet = BeaconConfiguration::quicknet();
    BeaconConfiguration {
        public_key: BoundedVec::truncate_from(public_key.to_vec()),
        period,
        genesis_time,
        hash: BoundedVec::truncate_from(vec![0; 32]),
        group_hash: BoundedVec::truncate_from(vec![0; 32]),
        scheme_id: quicknet.scheme_id,
        metadata: drand::Metadata {
            beacon_id: name
                .as_bytes()
                .to_vec()
                .try_into()
                .expect("a beacon's name has at most 32 bytes"),
        },
    }
}

impl Genesis {
    /// All storage of block 0, before its header is known.
    pub fn storage(&self) -> Storage {
        let dev = DEV_KEYS
            .iter()
            .map(|name| (dev_account(name), self.endowment_rao));
        let config = RuntimeGenesisConfig {
            balances: BalancesConfig {
                balances: dev.chain(self.funded.iter().cloned()).collect(),
                dev_accounts: None,
            },
            sudo: SudoConfig {
                key: Some(dev_account(DEV_KEYS[0])),
            },
            ..Default::default()
        };
        let mut storage = Storage::default();
        // The pallets' own genesis reads the settings, so they come first.
        BasicExternalities::execute_with_storage(&mut storage, || {
            settings::SpecVersion::set(&settings::SpecVersion::get());
            settings::BlockTimeMs::set(&self.block_time_ms);
            settings::SubnetParameters::set(&self.subnets);
            settings::BlockEmissionRao::set(&self.block_emission_rao);
            settings::LoopbackAxons::set(&self.loopback_axons);
            drand::BeaconConfig::<Runtime>::put(&self.beacon);
        });
        config
            .assimilate_storage(&mut storage)
            .expect("balances are above the existential deposit and accounts differ");
        storage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        runtime::{Balances, testing::on_chain},
        subtensor,
    };

    #[test]
    fn new_chain_has_funded_keys_a_sudo_key_and_the_settings_asked_for() {
        let beacon = beacon("dev", [3; 96], 5, 2);
        let extra = AccountId::new([9; 32]);
        let genesis = Genesis {
            block_time_ms: 500,
            beacon: beacon.clone(),
            funded: vec![(extra.clone(), 700)],
            ..Genesis::default()
        };
        on_chain(&genesis, || {
            for name in DEV_KEYS {
                assert_eq!(
                    Balances::free_balance(dev_account(name)),
                    genesis.endowment_rao
                );
            }
            assert_eq!(Balances::free_balance(extra), 700);
            assert_eq!(
                pallet_sudo::Key::<Runtime>::get(),
                Some(dev_account("Alice"))
            );
            assert_eq!(settings::BlockTimeMs::get(), 500);
            assert!(settings::LoopbackAxons::get());
            assert_eq!(drand::BeaconConfig::<Runtime>::get(), beacon);
            assert_eq!(subtensor::NetworkRateLimit::<Runtime>::get(), 0);
            assert_eq!(
                subtensor::NetworkMinLockCost::<Runtime>::get(),
                100_000_000_000
            );
        });
    }

    #[test]
    fn development_keys_are_the_well_known_ones() {
        let alice = "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";
        assert_eq!(hex::encode(dev_account("Alice")), alice);
    }
}
