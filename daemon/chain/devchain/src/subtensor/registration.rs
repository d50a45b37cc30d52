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

#[cfg(test)]
mod tests {
    use frame_support::{assert_noop, assert_ok};

    use super::super::mock::*;
    use super::*;

    type Fault = Error<Test>;

    fn found(coldkey: u64, hotkey: u64) -> DispatchResult {
        SubtensorModule::register_network(signed(coldkey), hotkey)
    }

    fn burned(coldkey: u64, netuid: u16, hotkey: u64) -> DispatchResult {
        SubtensorModule::burned_register(signed(coldkey), netuid, hotkey)
    }

    #[test]
    fn first_subnet_has_number_one_and_its_owner_holds_uid_0() {
        on_new_chain(|| {
            assert_eq!(TotalNetworks::<Test>::get(), 1);
            assert_ok!(found(OWNER, OWNER_HOTKEY));
            assert_eq!(TotalNetworks::<Test>::get(), 2);
            assert_eq!(SubnetOwner::<Test>::get(NETUID), OWNER);
            assert_eq!(Keys::<Test>::get(NETUID, 0), OWNER_HOTKEY);
            assert_eq!(Uids::<Test>::get(NETUID, OWNER_HOTKEY), Some(0));
            assert_eq!(Owner::<Test>::get(OWNER_HOTKEY), OWNER);
            assert_eq!(Balances::free_balance(OWNER), ENDOWMENT - 1000 * TAO);
            assert_eq!(events().last(), Some(&Event::NetworkAdded(NETUID, 1)));
        });
    }

    #[test]
    fn network_registration_names_the_first_fault() {
        on_new_chain(|| {
            assert_ok!(found(OWNER, OWNER_HOTKEY));
            let poor = 77;
            assert_noop!(found(poor, OWNER_HOTKEY), Fault::NetworkTxRateLimitExceeded);
            run_blocks(29);
            assert_noop!(found(poor, OWNER_HOTKEY), Fault::NetworkTxRateLimitExceeded);
            run_blocks(1);
            assert_noop!(found(poor, OWNER_HOTKEY), Fault::CannotAffordLockCost);
            assert_noop!(found(2, OWNER_HOTKEY), Fault::NonAssociatedColdKey);
            assert_ok!(found(OWNER, OWNER_HOTKEY));
            assert_eq!(Uids::<Test>::get(2, OWNER_HOTKEY), Some(0));
        });
    }

    #[test]
    fn subnets_cost_twice_the_last_one_and_less_as_time_passes() {
        on_new_chain(|| {
            NetworkLockReductionInterval::<Test>::put(100);
            assert_eq!(Pallet::<Test>::network_lock_cost(), 1000 * TAO);
            assert_ok!(found(OWNER, OWNER_HOTKEY));
            assert_eq!(Pallet::<Test>::network_lock_cost(), 2000 * TAO);
            run_blocks(50);
            assert_eq!(Pallet::<Test>::network_lock_cost(), 1500 * TAO);
            run_blocks(100);
            assert_eq!(Pallet::<Test>::network_lock_cost(), 1000 * TAO);
        });
    }

    #[test]
    fn identity_of_a_new_subnet_is_kept() {
        on_new_chain(|| {
            let identity = SubnetIdentityV3 {
                subnet_name: b"gradmesh".to_vec(),
                ..SubnetIdentityV3::default()
            };
            assert_ok!(SubtensorModule::register_network_with_identity(
                signed(OWNER),
                OWNER_HOTKEY,
                Some(identity.clone())
            ));
            assert_eq!(SubnetIdentitiesV3::<Test>::get(NETUID), Some(identity));
        });
    }

    #[test]
    fn subnet_is_started_once_by_its_owner_when_it_is_old_enough() {
        on_new_chain(|| {
            let start = |coldkey, netuid| SubtensorModule::start_call(signed(coldkey), netuid);
            assert_ok!(found(OWNER, OWNER_HOTKEY));
            assert_noop!(start(OWNER, 2), Fault::SubnetNotExists);
            assert_noop!(start(2, NETUID), DispatchError::BadOrigin);
            run_blocks(2);
            assert_noop!(start(OWNER, NETUID), Fault::NeedWaitingMoreBlocksToStarCall);
            run_blocks(1);
            assert_ok!(start(OWNER, NETUID));
            assert!(SubtokenEnabled::<Test>::get(NETUID));
            assert_noop!(
                start(OWNER, NETUID),
                Fault::FirstEmissionBlockNumberAlreadySet
            );
        });
    }

    #[test]
    fn registration_names_the_first_fault() {
        with_subnet(|| {
            let poor = 77;
            let limited = |coldkey, limit| {
                SubtensorModule::register_limit(signed(coldkey), NETUID, OWNER_HOTKEY, limit)
            };
            let price = Burn::<Test>::get(NETUID);
            MaxAllowedUids::<Test>::insert(NETUID, 1);
            NetworkRegistrationAllowed::<Test>::insert(NETUID, false);
            assert_noop!(
                burned(poor, ROOT, OWNER_HOTKEY),
                Fault::RegistrationNotPermittedOnRootSubnet
            );
            assert_noop!(burned(poor, 2, OWNER_HOTKEY), Fault::SubnetNotExists);
            assert_noop!(limited(poor, price - 1), Fault::SubNetRegistrationDisabled);
            NetworkRegistrationAllowed::<Test>::insert(NETUID, true);
            assert_noop!(
                limited(poor, price - 1),
                Fault::RegistrationPriceLimitExceeded
            );
            assert_noop!(limited(poor, price), Fault::HotKeyAlreadyRegisteredInSubNet);
            assert_ok!(SubtensorModule::root_register(signed(2), 102));
            assert_noop!(burned(poor, NETUID, 102), Fault::NotEnoughBalanceToStake);
            assert_noop!(burned(3, NETUID, 102), Fault::NonAssociatedColdKey);
            assert_noop!(burned(2, NETUID, 102), Fault::NoNeuronIdAvailable);
            MaxAllowedUids::<Test>::insert(NETUID, 2);
            assert_ok!(burned(2, NETUID, 102));
        });
    }

    #[test]
    fn registration_takes_the_price_and_counts_as_an_update() {
        with_subnet(|| {
            let price = Burn::<Test>::get(NETUID);
            assert_eq!(register(2), 1);
            assert_eq!(Balances::free_balance(2), ENDOWMENT - price);
            assert_eq!(LastUpdate::<Test>::get(NETUID), [1, 4]);
            assert_eq!(Active::<Test>::get(NETUID), [true, true]);
            assert_eq!(OwnedHotkeys::<Test>::get(2), [hotkey_of(2)]);
            assert_eq!(
                events().last(),
                Some(&Event::NeuronRegistered(NETUID, 1, 102))
            );
        });
    }

    #[test]
    fn proof_of_work_is_not_looked_at_and_the_signer_pays() {
        with_subnet(|| {
            let work = vec![1, 2, 3];
            assert_ok!(SubtensorModule::register(
                signed(2),
                NETUID,
                0,
                0,
                work,
                102,
                3
            ));
            assert_eq!(Owner::<Test>::get(102), 2);
            assert_eq!(Balances::free_balance(3), ENDOWMENT);
        });
    }

    #[test]
    fn price_rises_by_26_percent_with_a_registration_and_halves_in_its_half_life() {
        with_subnet(|| {
            Burn::<Test>::insert(NETUID, 10 * TAO);
            register(2);
            assert_eq!(Burn::<Test>::get(NETUID), 12_600_000_000);
            run_blocks(360);
            // 12.6 * (1 - ln 2 / 360)^360 = 12.6 * 0.499666 = 6.29579; rounding adds at most a rao per block.
            let price = Burn::<Test>::get(NETUID);
            assert!((6_295_700_000..6_295_900_000).contains(&price), "{price}");
        });
    }

    #[test]
    fn price_stays_within_its_bounds() {
        with_subnet(|| {
            MinBurn::<Test>::insert(NETUID, 90_000_000);
            MaxBurn::<Test>::insert(NETUID, 110_000_000);
            register(2);
            assert_eq!(Burn::<Test>::get(NETUID), 110_000_000);
            run_blocks(360);
            assert_eq!(Burn::<Test>::get(NETUID), 90_000_000);
        });
    }

    #[test]
    fn full_subnet_prunes_the_least_emission_then_the_older_one() {
        with_subnet(|| {
            register(2);
            run_blocks(1);
            register(3);
            register(4);
            MaxAllowedUids::<Test>::insert(NETUID, 4);
            Emission::<Test>::insert(NETUID, vec![0, 5, 5, 6]);
            assert_noop!(burned(5, NETUID, 105), Fault::NoNeuronIdAvailable);
            run_blocks(19);
            assert_eq!(register(5), 1, "uid 1 alone is past its immunity");
            Emission::<Test>::insert(NETUID, vec![0, 0, 5, 5]);
            run_blocks(1);
            assert_eq!(
                register(6),
                2,
                "uid 1 is new, uids 2 and 3 are equal in age and emission"
            );
        });
    }

    #[test]
    fn pruned_neuron_leaves_nothing_to_its_successor() {
        with_subnet(|| {
            set_loopback_axons(true);
            let uid = register(2);
            let certificate = vec![1; 33];
            assert_ok!(SubtensorModule::serve_axon_tls(
                signed(102),
                NETUID,
                1,
                0x0102_0304,
                80,
                4,
                0,
                0,
                0,
                certificate
            ));
            Weights::<Test>::insert(NETUID, uid, vec![(0, 1)]);
            Weights::<Test>::insert(NETUID, 0, vec![(0, 7), (uid, 8)]);
            Bonds::<Test>::insert(NETUID, uid, vec![(0, 1)]);
            Bonds::<Test>::insert(NETUID, 0, vec![(uid, 8)]);
            for column in [0, uid] {
                neurons::set_entry::<_, Incentive<Test>>(NETUID, column, 9);
                neurons::set_entry::<_, ValidatorPermit<Test>>(NETUID, column, true);
            }
            MaxAllowedUids::<Test>::insert(NETUID, 2);
            run_blocks(4);
            ImmunityPeriod::<Test>::insert(NETUID, 0);

            assert_eq!(register(3), uid);

            assert_eq!(Keys::<Test>::get(NETUID, uid), 103);
            assert_eq!(Uids::<Test>::get(NETUID, 102), None);
            assert!(!IsNetworkMember::<Test>::get(102, NETUID));
            assert_eq!(Axons::<Test>::get(NETUID, 102), None);
            assert_eq!(NeuronCertificates::<Test>::get(NETUID, 102), None);
            assert!(Weights::<Test>::get(NETUID, uid).is_empty());
            assert!(Bonds::<Test>::get(NETUID, uid).is_empty());
            assert_eq!(Weights::<Test>::get(NETUID, 0), [(0, 7)]);
            assert!(Bonds::<Test>::get(NETUID, 0).is_empty());
            assert_eq!(Incentive::<Test>::get(NETUID), [9, 0]);
            assert_eq!(ValidatorPermit::<Test>::get(NETUID), [true, false]);
            assert_eq!(BlockAtRegistration::<Test>::get(NETUID, uid), 8);
            assert_eq!(LastUpdate::<Test>::get(NETUID), [1, 8]);
            assert_eq!(SubnetworkN::<Test>::get(NETUID), 2);
        });
    }

    #[test]
    fn owner_is_never_pruned() {
        with_subnet(|| {
            MaxAllowedUids::<Test>::insert(NETUID, 1);
            ImmunityPeriod::<Test>::insert(NETUID, 0);
            assert_noop!(burned(2, NETUID, 102), Fault::NoNeuronIdAvailable);
        });
    }

    #[test]
    fn seat_on_a_full_root_network_takes_more_stake_than_the_least() {
        with_subnet(|| {
            let root =
                |coldkey| SubtensorModule::root_register(signed(coldkey), hotkey_of(coldkey));
            MaxAllowedUids::<Test>::insert(ROOT, 2);
            assert_ok!(root(2));
            assert_ok!(root(3));
            assert_noop!(root(2), Fault::HotKeyAlreadyRegisteredInSubNet);
            assert_noop!(
                SubtensorModule::root_register(signed(4), OWNER_HOTKEY),
                Fault::NonAssociatedColdKey
            );
            assert_ok!(SubtensorModule::add_stake(signed(2), 102, ROOT, TAO));
            register(4);
            assert_noop!(root(4), Fault::StakeTooLowForRoot);
            assert_ok!(SubtensorModule::add_stake(signed(4), 104, ROOT, TAO));
            assert_ok!(root(4));
            assert_eq!(Uids::<Test>::get(ROOT, 104), Some(1));
            assert_eq!(Uids::<Test>::get(ROOT, 103), None);
        });
    }

    #[test]
    fn tempo_of_an_owner_is_bounded() {
        with_subnet(|| {
            let set = |coldkey, tempo| SubtensorModule::set_tempo(signed(coldkey), NETUID, tempo);
            assert_noop!(set(2, 360), DispatchError::BadOrigin);
            assert_noop!(set(OWNER, 359), Fault::TempoOutOfBounds);
            assert_noop!(set(OWNER, 50_401), Fault::TempoOutOfBounds);
            assert_ok!(set(OWNER, 360));
            assert_eq!(Tempo::<Test>::get(NETUID), 360);
        });
    }

    #[test]
    fn triggered_epoch_runs_in_the_next_block() {
        with_subnet(|| {
            let trigger = |coldkey| SubtensorModule::trigger_epoch(signed(coldkey), NETUID);
            assert_noop!(trigger(2), DispatchError::BadOrigin);
            assert_ok!(trigger(OWNER));
            assert_noop!(trigger(OWNER), Fault::EpochTriggerAlreadyPending);
            assert_eq!(SubnetEpochIndex::<Test>::get(NETUID), 0);
            run_blocks(1);
            assert_eq!(SubnetEpochIndex::<Test>::get(NETUID), 1);
            assert_eq!(PendingEpochAt::<Test>::get(NETUID), 0);
            assert_ok!(trigger(OWNER));
        });
    }
}
