//! `StakeInfoRuntimeApi`, `SubnetRegistrationRuntimeApi` and `SwapRuntimeApi`: who has staked what, and what things cost.

use codec::{Compact, Decode, Encode};
use scale_info::TypeInfo;
use sp_api::decl_runtime_apis;

use crate::{
    runtime::{AccountId, Balance, Runtime},
    subtensor::{
        AlphaDividendsPerSubnet, Pallet as Subtensor, ROOT, StakingHotkeys, SubnetAlphaIn,
        SubnetTAO, TotalNetworks, Uids,
    },
};

decl_runtime_apis! {
    /// Stake by coldkey.
    pub trait StakeInfoRuntimeApi {
        /// All positions of a coldkey that are worth something, by netuid.
        fn get_stake_info_for_coldkey(coldkey_account: AccountId) -> Vec<StakeInfo<AccountId>>;
        /// The same for several coldkeys.
        fn get_stake_info_for_coldkeys(coldkey_accounts: Vec<AccountId>) -> Vec<(AccountId, Vec<StakeInfo<AccountId>>)>;
        /// One position, also when it is worth nothing.
        fn get_stake_info_for_hotkey_coldkey_netuid(
            hotkey_account: AccountId,
            coldkey_account: AccountId,
            netuid: u16,
        ) -> Option<StakeInfo<AccountId>>;
    }

    /// Price of a subnet.
    pub trait SubnetRegistrationRuntimeApi {
        /// RAO that a new subnet costs now.
        fn get_network_registration_cost() -> Balance;
    }

    /// Price of alpha.
    pub trait SwapRuntimeApi {
        /// RAO for one alpha (1e9 of its smallest unit); 0 without a pool.
        fn current_alpha_price(netuid: u16) -> Balance;
    }
}

/// What a coldkey has staked on a hotkey on a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, TypeInfo)]
pub struct StakeInfo<AccountId> {
    /// Hotkey.
    pub hotkey: AccountId,
    /// Coldkey.
    pub coldkey: AccountId,
    /// Subnet.
    pub netuid: Compact<u16>,
    /// Alpha.
    pub stake: Compact<u64>,
    /// Alpha that cannot be taken out: none.
    pub locked: Compact<u64>,
    /// Alpha that the hotkey's holders earned in the last epoch.
    pub emission: Compact<u64>,
    /// TAO that they earned: none.
    pub tao_emission: Compact<u64>,
    /// Not used.
    pub drain: Compact<u64>,
    /// Whether the hotkey is a neuron of the subnet.
    pub is_registered: bool,
}

/// One position.
pub(super) fn position(hotkey: AccountId, coldkey: AccountId, netuid: u16) -> StakeInfo<AccountId> {
    StakeInfo {
        netuid: netuid.into(),
        stake: Subtensor::<Runtime>::stake_of(&hotkey, &coldkey, netuid).into(),
        locked: 0.into(),
        emission: AlphaDividendsPerSubnet::<Runtime>::get(netuid, &hotkey).into(),
        tao_emission: 0.into(),
        drain: 0.into(),
        is_registered: Uids::<Runtime>::contains_key(netuid, &hotkey),
        hotkey,
        coldkey,
    }
}

/// The positions of a coldkey that are worth something.
pub(super) fn positions(coldkey: &AccountId) -> Vec<StakeInfo<AccountId>> {
    let hotkeys = StakingHotkeys::<Runtime>::get(coldkey);
    let netuids = 0..TotalNetworks::<Runtime>::get();
    netuids
        .flat_map(|netuid| {
            hotkeys
                .iter()
                .map(move |hotkey| position(hotkey.clone(), coldkey.clone(), netuid))
        })
        .filter(|position| position.stake.0 > 0)
        .collect()
}

/// RAO for 1e9 units of alpha.
pub(super) fn alpha_price(netuid: u16) -> Balance {
    const ONE: u128 = 1_000_000_000;
    if netuid == ROOT {
        return 1_000_000_000;
    }
    let (tao, alpha) = (
        SubnetTAO::<Runtime>::get(netuid),
        SubnetAlphaIn::<Runtime>::get(netuid),
    );
    let price = (u128::from(tao) * ONE)
        .checked_div(alpha.into())
        .unwrap_or(0);
    Balance::try_from(price).unwrap_or(Balance::MAX)
}
