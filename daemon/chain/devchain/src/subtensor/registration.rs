//! How subnets and neurons come to be, what they cost and who has to leave.
//!
//! Rule `burn`: a registration burns [`Burn`] rao. The price halves every [`BurnHalfLife`] blocks, rises by 26% with every
//! registration, and stays within [`MinBurn`] and [`MaxBurn`].
//!
//! Rule `prune`: on a full subnet the neuron with the least emission leaves, the older one of two equal ones, then the
//! lower uid. Neurons younger than [`ImmunityPeriod`] and the owner's never do.

use frame_support::ensure;
use frame_support::traits::Get;
use frame_support::traits::fungible::{Inspect, Mutate};
use frame_support::traits::tokens::{Fortitude, Precision, Preservation};
use sp_runtime::{DispatchError, DispatchResult};

use super::neurons::entry;
use super::*;

/// Seats of the root network.
const ROOT_UIDS_MAX: u16 = 64;

/// The price after a registration, in percent of the one before.
const BURN_BUMP_PERCENT: u64 = 126;

/// ln 2 in parts of a million: what a price loses per half-life if the loss is spread over its blocks.
const LN_2_MILLIONTHS: u64 = 693_147;

/// Bounds of a tempo that an owner may set, in blocks.
const TEMPO_MIN: u16 = 360;
const TEMPO_MAX: u16 = 50_400;

impl<T: Config> Pallet<T> {
    /// What the next subnet costs, in rao: twice what the last one did, less as time passes, never under the minimum.
    pub fn network_lock_cost() -> u64 {
        let last = NetworkLastLockCost::<T>::get();
        let least = NetworkMinLockCost::<T>::get();
        let registered_at = NetworkLastRegistered::<T>::get();
        if registered_at == 0 {
            return last.max(least);
        }
        let age = Self::block().saturating_sub(registered_at);
        let interval = NetworkLockReductionInterval::<T>::get().max(1);
        let fallen = (last / interval).saturating_mul(age);
        last.saturating_mul(2).saturating_sub(fallen).max(least)
    }

    /// Sets up the root network and the chain-wide limits, in an empty state.
    pub(super) fn found_root() {
        let initial = T::InitialParameters::get();
        NetworkRateLimit::<T>::put(initial.network_rate_limit);
        NetworkMinLockCost::<T>::put(initial.network_min_lock_cost);
        StartCallDelay::<T>::put(initial.start_call_delay);
        NetworksAdded::<T>::insert(ROOT, true);
        TotalNetworks::<T>::put(1);
        MaxAllowedUids::<T>::insert(ROOT, ROOT_UIDS_MAX);
        MaxAllowedValidators::<T>::insert(ROOT, ROOT_UIDS_MAX);
        SubtokenEnabled::<T>::insert(ROOT, true);
    }

    pub(super) fn do_register_network(
        coldkey: &T::AccountId,
        hotkey: &T::AccountId,
        identity: Option<SubnetIdentityV3>,
    ) -> DispatchResult {
        let block = Self::block();
        let last = NetworkLastRegistered::<T>::get();
        let waited = block.saturating_sub(last) >= NetworkRateLimit::<T>::get();
        ensure!(last == 0 || waited, Error::<T>::NetworkTxRateLimitExceeded);
        let cost = Self::network_lock_cost();
        ensure!(
            Self::can_pay(coldkey, cost),
            Error::<T>::CannotAffordLockCost
        );
        Self::ensure_owner_or_unowned(coldkey, hotkey)?;
        let netuid = TotalNetworks::<T>::get();
        let networks = netuid
            .checked_add(1)
            .ok_or(Error::<T>::SubnetLimitReached)?;

        Self::take_payment(coldkey, cost)?;
        TotalNetworks::<T>::put(networks);
        NetworkLastRegistered::<T>::put(block);
        NetworkLastLockCost::<T>::put(cost);
        Self::found_subnet(netuid);
        SubnetLocked::<T>::insert(netuid, cost);
        Self::fill_pool(netuid, cost);
        SubnetOwner::<T>::insert(netuid, coldkey);
        SubnetOwnerHotkey::<T>::insert(netuid, hotkey);
        Self::associate(coldkey, hotkey);
        let uid = Self::append_neuron(netuid, hotkey);
        if let Some(identity) = identity {
            SubnetIdentitiesV3::<T>::insert(netuid, identity);
            Self::deposit_event(Event::SubnetIdentitySet(netuid));
        }
        Self::deposit_event(Event::NeuronRegistered(netuid, uid, hotkey.clone()));
        Self::deposit_event(Event::NetworkAdded(netuid, 1));
        Ok(())
    }

    pub(super) fn do_start_call(coldkey: &T::AccountId, netuid: u16) -> DispatchResult {
        Self::ensure_subnet(netuid)?;
        Self::ensure_subnet_owner(coldkey, netuid)?;
        ensure!(
            !FirstEmissionBlockNumber::<T>::contains_key(netuid),
            Error::<T>::FirstEmissionBlockNumberAlreadySet
        );
        let block = Self::block();
        let age = block.saturating_sub(NetworkRegisteredAt::<T>::get(netuid));
        ensure!(
            age >= StartCallDelay::<T>::get(),
            Error::<T>::NeedWaitingMoreBlocksToStarCall
        );
        let first = block.saturating_add(1);
        FirstEmissionBlockNumber::<T>::insert(netuid, first);
        SubtokenEnabled::<T>::insert(netuid, true);
        Self::deposit_event(Event::FirstEmissionBlockNumberSet(netuid, first));
        Ok(())
    }

    pub(super) fn do_burned_register(
        coldkey: &T::AccountId,
        hotkey: &T::AccountId,
        netuid: u16,
        limit_price: Option<u64>,
    ) -> DispatchResult {
        ensure!(
            netuid != ROOT,
            Error::<T>::RegistrationNotPermittedOnRootSubnet
        );
        Self::ensure_subnet(netuid)?;
        ensure!(
            NetworkRegistrationAllowed::<T>::get(netuid),
            Error::<T>::SubNetRegistrationDisabled
        );
        let price = Burn::<T>::get(netuid);
        ensure!(
            limit_price.is_none_or(|limit| price <= limit),
            Error::<T>::RegistrationPriceLimitExceeded
        );
        ensure!(
            !Uids::<T>::contains_key(netuid, hotkey),
            Error::<T>::HotKeyAlreadyRegisteredInSubNet
        );
        ensure!(
            Self::can_pay(coldkey, price),
            Error::<T>::NotEnoughBalanceToStake
        );
        Self::ensure_owner_or_unowned(coldkey, hotkey)?;
        let place = Self::place(netuid).ok_or(Error::<T>::NoNeuronIdAvailable)?;

        Self::take_payment(coldkey, price)?;
        let bumped = u128::from(price) * u128::from(BURN_BUMP_PERCENT) / 100;
        Self::set_burn(netuid, u64::try_from(bumped).unwrap_or(u64::MAX));
        Self::associate(coldkey, hotkey);
        let uid = Self::seat_at(netuid, place, hotkey);
        Self::deposit_event(Event::NeuronRegistered(netuid, uid, hotkey.clone()));
        Ok(())
    }

    pub(super) fn do_root_register(
        coldkey: &T::AccountId,
        hotkey: &T::AccountId,
    ) -> DispatchResult {
        ensure!(
            NetworksAdded::<T>::get(ROOT),
            Error::<T>::RootNetworkDoesNotExist
        );
        ensure!(
            !Uids::<T>::contains_key(ROOT, hotkey),
            Error::<T>::HotKeyAlreadyRegisteredInSubNet
        );
        Self::ensure_owner_or_unowned(coldkey, hotkey)?;
        let seats = SubnetworkN::<T>::get(ROOT);
        let place = if seats < MaxAllowedUids::<T>::get(ROOT) {
            Place::New
        } else {
            let stake_of = |uid| TotalHotkeyAlpha::<T>::get(Keys::<T>::get(ROOT, uid), ROOT);
            let lowest = (0..seats).min_by_key(|uid| stake_of(*uid));
            let lowest = lowest.ok_or(Error::<T>::NoNeuronIdAvailable)?;
            let stake = TotalHotkeyAlpha::<T>::get(hotkey, ROOT);
            ensure!(stake > stake_of(lowest), Error::<T>::StakeTooLowForRoot);
            Place::Of(lowest)
        };
        Self::associate(coldkey, hotkey);
        let uid = Self::seat_at(ROOT, place, hotkey);
        Self::deposit_event(Event::NeuronRegistered(ROOT, uid, hotkey.clone()));
        Ok(())
    }

    pub(super) fn do_set_tempo(coldkey: &T::AccountId, netuid: u16, tempo: u16) -> DispatchResult {
        Self::ensure_subnet(netuid)?;
        Self::ensure_subnet_owner(coldkey, netuid)?;
        ensure!(
            (TEMPO_MIN..=TEMPO_MAX).contains(&tempo),
            Error::<T>::TempoOutOfBounds
        );
        Tempo::<T>::insert(netuid, tempo);
        Self::deposit_event(Event::TempoSet(netuid, tempo));
        Ok(())
    }

    pub(super) fn do_trigger_epoch(coldkey: T::AccountId, netuid: u16) -> DispatchResult {
        Self::ensure_subnet(netuid)?;
        Self::ensure_subnet_owner(&coldkey, netuid)?;
        ensure!(
            PendingEpochAt::<T>::get(netuid) == 0,
            Error::<T>::EpochTriggerAlreadyPending
        );
        let fires_at = Self::block().saturating_add(1);
        PendingEpochAt::<T>::insert(netuid, fires_at);
        Self::deposit_event(Event::EpochTriggered {
            netuid,
            by: coldkey,
            fires_at,
        });
        Ok(())
    }

    /// Lets the price of a registration fall by one block's part (rule `burn`).
    pub(super) fn decay_burn(netuid: u16) {
        let price = Burn::<T>::get(netuid);
        let blocks = u128::from(BurnHalfLife::<T>::get(netuid).max(1));
        let lost = u128::from(price) * u128::from(LN_2_MILLIONTHS) / (1_000_000 * blocks);
        Self::set_burn(
            netuid,
            price.saturating_sub(u64::try_from(lost).unwrap_or(price)),
        );
    }

    /// The subnet exists.
    pub(super) fn ensure_subnet(netuid: u16) -> DispatchResult {
        ensure!(NetworksAdded::<T>::get(netuid), Error::<T>::SubnetNotExists);
        Ok(())
    }

    /// `coldkey` owns the subnet.
    pub fn ensure_subnet_owner(coldkey: &T::AccountId, netuid: u16) -> DispatchResult {
        let owner = SubnetOwner::<T>::try_get(netuid).ok();
        ensure!(owner.as_ref() == Some(coldkey), DispatchError::BadOrigin);
        Ok(())
    }

    /// Whether `coldkey` can pay `amount` rao and live.
    pub(super) fn can_pay(coldkey: &T::AccountId, amount: u64) -> bool {
        let spendable =
            T::Currency::reducible_balance(coldkey, Preservation::Preserve, Fortitude::Polite);
        spendable >= amount
    }

    /// Takes `amount` rao out of `coldkey`'s free balance.
    pub(super) fn take_payment(coldkey: &T::AccountId, amount: u64) -> DispatchResult {
        let (keep, exact) = (Preservation::Preserve, Precision::Exact);
        T::Currency::burn_from(coldkey, amount, keep, exact, Fortitude::Polite)?;
        Ok(())
    }

    fn ensure_owner_or_unowned(coldkey: &T::AccountId, hotkey: &T::AccountId) -> DispatchResult {
        let owner = Owner::<T>::try_get(hotkey).ok();
        ensure!(
            owner.is_none_or(|owner| owner == *coldkey),
            Error::<T>::NonAssociatedColdKey
        );
        Ok(())
    }

    /// Makes `coldkey` the owner of `hotkey` if nobody is.
    fn associate(coldkey: &T::AccountId, hotkey: &T::AccountId) {
        if !Owner::<T>::contains_key(hotkey) {
            Owner::<T>::insert(hotkey, coldkey);
            OwnedHotkeys::<T>::append(coldkey, hotkey);
        }
    }

    fn found_subnet(netuid: u16) {
        let block = Self::block();
        let initial = T::InitialParameters::get();
        NetworksAdded::<T>::insert(netuid, true);
        NetworkRegisteredAt::<T>::insert(netuid, block);
        LastEpochBlock::<T>::insert(netuid, block);
        Tempo::<T>::insert(netuid, initial.tempo);
        ImmunityPeriod::<T>::insert(netuid, initial.immunity_period);
        ActivityCutoff::<T>::insert(netuid, initial.activity_cutoff);
        WeightsSetRateLimit::<T>::insert(netuid, initial.weights_set_rate_limit);
        ServingRateLimit::<T>::insert(netuid, initial.serving_rate_limit);
        MaxAllowedUids::<T>::insert(netuid, initial.max_allowed_uids);
        MaxAllowedValidators::<T>::insert(netuid, initial.max_allowed_validators);
        MinAllowedWeights::<T>::insert(netuid, initial.min_allowed_weights);
        MinBurn::<T>::insert(netuid, initial.min_burn);
        MaxBurn::<T>::insert(netuid, initial.max_burn);
        Burn::<T>::insert(netuid, initial.burn);
        CommitRevealWeightsEnabled::<T>::insert(netuid, initial.commit_reveal);
        TokenSymbol::<T>::insert(netuid, token_symbol(netuid));
    }

    fn set_burn(netuid: u16, price: u64) {
        let least = MinBurn::<T>::get(netuid);
        let most = MaxBurn::<T>::get(netuid).max(least);
        Burn::<T>::insert(netuid, price.clamp(least, most));
    }

    /// Where the next neuron of a subnet goes, if anywhere (rule `prune`).
    fn place(netuid: u16) -> Option<Place> {
        let uids = SubnetworkN::<T>::get(netuid);
        if uids < MaxAllowedUids::<T>::get(netuid) {
            return Some(Place::New);
        }
        let emission = Emission::<T>::get(netuid);
        let leaves = (0..uids)
            .filter(|uid| !Self::is_immune(netuid, *uid))
            .min_by_key(|uid| {
                (
                    entry(&emission, *uid),
                    BlockAtRegistration::<T>::get(netuid, *uid),
                    *uid,
                )
            });
        leaves.map(Place::Of)
    }

    fn seat_at(netuid: u16, place: Place, hotkey: &T::AccountId) -> u16 {
        match place {
            Place::New => Self::append_neuron(netuid, hotkey),
            Place::Of(uid) => {
                Self::replace_neuron(netuid, uid, hotkey);
                uid
            }
        }
    }
}

/// Where a new neuron goes.
enum Place {
    New,
    /// The uid of a neuron that leaves.
    Of(u16),
}

/// A letter of the Greek alphabet, from alpha on, then from the start again.
fn token_symbol(netuid: u16) -> Vec<u8> {
    let letters = "αβγδεζηθικλμνξοπρστυφχψω";
    let wanted = usize::from(netuid.saturating_sub(1)) % letters.chars().count();
    letters
        .chars()
        .skip(wanted)
        .take(1)
        .collect::<String>()
        .into_bytes()
}
