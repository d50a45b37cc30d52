//! Stake: TAO in, alpha on a hotkey, and back.
//!
//! Rule `par`: one alpha is one TAO, both ways and without a fee. [`SubnetTAO`] holds what has been staked, what has been
//! emitted and what the subnet cost, so that it always covers [`SubnetAlphaOut`]; [`SubnetAlphaIn`] equals it, so that whoever
//! divides the two reads a price of one.

use frame_support::ensure;
use frame_support::traits::fungible::Mutate;
use sp_runtime::DispatchResult;

use super::*;

/// Least stake that may be added, in rao.
const STAKE_MIN: u64 = 2_000_000;

/// What one alpha costs, in rao.
pub const ALPHA_PRICE: u64 = 1_000_000_000;

impl<T: Config> Pallet<T> {
    /// What `coldkey` has staked on `hotkey`, in rao of alpha.
    pub fn stake_of(hotkey: &T::AccountId, coldkey: &T::AccountId, netuid: u16) -> u64 {
        Self::pool(hotkey, netuid).value(Alpha::<T>::get((hotkey, coldkey, netuid)))
    }

    pub(super) fn do_add_stake(
        coldkey: &T::AccountId,
        hotkey: &T::AccountId,
        netuid: u16,
        tao: u64,
    ) -> DispatchResult {
        Self::ensure_subnet(netuid)?;
        ensure!(
            SubtokenEnabled::<T>::get(netuid),
            Error::<T>::SubtokenDisabled
        );
        ensure!(tao >= STAKE_MIN, Error::<T>::AmountTooLow);
        ensure!(
            Self::can_pay(coldkey, tao),
            Error::<T>::NotEnoughBalanceToStake
        );
        ensure!(
            Owner::<T>::contains_key(hotkey),
            Error::<T>::HotKeyAccountNotExists
        );

        Self::take_payment(coldkey, tao)?;
        Self::fill_pool(netuid, tao);
        Self::credit(hotkey, coldkey, netuid, tao);
        let (coldkey, hotkey) = (coldkey.clone(), hotkey.clone());
        Self::deposit_event(Event::StakeAdded(coldkey, hotkey, tao, tao, netuid, 0));
        Ok(())
    }

    pub(super) fn do_remove_stake(
        coldkey: &T::AccountId,
        hotkey: &T::AccountId,
        netuid: u16,
        alpha: u64,
    ) -> DispatchResult {
        Self::ensure_subnet(netuid)?;
        ensure!(
            SubtokenEnabled::<T>::get(netuid),
            Error::<T>::SubtokenDisabled
        );
        ensure!(alpha > 0, Error::<T>::AmountTooLow);
        ensure!(
            Owner::<T>::contains_key(hotkey),
            Error::<T>::HotKeyAccountNotExists
        );
        let held = Self::stake_of(hotkey, coldkey, netuid);
        ensure!(held >= alpha, Error::<T>::NotEnoughStakeToWithdraw);
        ensure!(
            SubnetTAO::<T>::get(netuid) >= alpha,
            Error::<T>::InsufficientLiquidity
        );

        Self::debit(hotkey, coldkey, netuid, alpha);
        Self::drain_pool(netuid, alpha);
        T::Currency::mint_into(coldkey, alpha)?;
        let (coldkey, hotkey) = (coldkey.clone(), hotkey.clone());
        Self::deposit_event(Event::StakeRemoved(
            coldkey, hotkey, alpha, alpha, netuid, 0,
        ));
        Ok(())
    }

    /// The price of alpha is at most `limit` rao.
    pub(super) fn ensure_price_at_most(limit: u64) -> DispatchResult {
        ensure!(ALPHA_PRICE <= limit, Error::<T>::SlippageTooHigh);
        Ok(())
    }

    /// The price of alpha is at least `limit` rao.
    pub(super) fn ensure_price_at_least(limit: u64) -> DispatchResult {
        ensure!(ALPHA_PRICE >= limit, Error::<T>::SlippageTooHigh);
        Ok(())
    }

    /// Adds TAO to the pool of a subnet.
    pub(super) fn fill_pool(netuid: u16, tao: u64) {
        SubnetTAO::<T>::mutate(netuid, |held| *held = held.saturating_add(tao));
        SubnetAlphaIn::<T>::mutate(netuid, |held| *held = held.saturating_add(tao));
        TotalStake::<T>::mutate(|held| *held = held.saturating_add(tao));
    }

    /// Puts `alpha` on a hotkey for one coldkey.
    pub(super) fn credit(hotkey: &T::AccountId, coldkey: &T::AccountId, netuid: u16, alpha: u64) {
        let pool = Self::pool(hotkey, netuid);
        let shares = pool.issued(alpha);
        TotalHotkeyAlpha::<T>::insert(hotkey, netuid, pool.alpha.saturating_add(alpha));
        TotalHotkeyShares::<T>::insert(hotkey, netuid, pool.shares.saturating_add(shares));
        Alpha::<T>::mutate((hotkey, coldkey, netuid), |held| {
            *held = held.saturating_add(shares)
        });
        SubnetAlphaOut::<T>::mutate(netuid, |out| *out = out.saturating_add(alpha));
        StakingHotkeys::<T>::mutate(coldkey, |hotkeys| {
            if !hotkeys.contains(hotkey) {
                hotkeys.push(hotkey.clone());
            }
        });
    }

    /// Puts `alpha` on a hotkey for all who have staked on it, in proportion; for its owner if nobody has.
    pub(super) fn credit_holders(hotkey: &T::AccountId, netuid: u16, alpha: u64) {
        if Self::pool(hotkey, netuid).shares.is_zero() {
            return Self::credit(hotkey, &Owner::<T>::get(hotkey), netuid, alpha);
        }
        TotalHotkeyAlpha::<T>::mutate(hotkey, netuid, |held| *held = held.saturating_add(alpha));
        SubnetAlphaOut::<T>::mutate(netuid, |out| *out = out.saturating_add(alpha));
    }

    /// Takes `alpha`, which the caller knows to be held, off a hotkey.
    fn debit(hotkey: &T::AccountId, coldkey: &T::AccountId, netuid: u16, alpha: u64) {
        let pool = Self::pool(hotkey, netuid);
        let held = Alpha::<T>::get((hotkey, coldkey, netuid));
        let shares = pool.redeemed(alpha, held);
        TotalHotkeyAlpha::<T>::insert(hotkey, netuid, pool.alpha.saturating_sub(alpha));
        TotalHotkeyShares::<T>::insert(hotkey, netuid, pool.shares.saturating_sub(shares));
        Alpha::<T>::insert((hotkey, coldkey, netuid), held.saturating_sub(shares));
        SubnetAlphaOut::<T>::mutate(netuid, |out| *out = out.saturating_sub(alpha));
    }

    fn drain_pool(netuid: u16, tao: u64) {
        SubnetTAO::<T>::mutate(netuid, |held| *held = held.saturating_sub(tao));
        SubnetAlphaIn::<T>::mutate(netuid, |held| *held = held.saturating_sub(tao));
        TotalStake::<T>::mutate(|held| *held = held.saturating_sub(tao));
    }

    fn pool(hotkey: &T::AccountId, netuid: u16) -> Pool {
        Pool {
            alpha: TotalHotkeyAlpha::<T>::get(hotkey, netuid),
            shares: TotalHotkeyShares::<T>::get(hotkey, netuid),
        }
    }
}

#[cfg(test)]
mod tests {
    use frame_support::{assert_noop, assert_ok};

    use super::super::mock::*;
    use super::*;

    type Fault = Error<Test>;

    fn add(coldkey: u64, hotkey: u64, tao: u64) -> DispatchResult {
        SubtensorModule::add_stake(signed(coldkey), hotkey, NETUID, tao)
    }

    fn remove(coldkey: u64, hotkey: u64, alpha: u64) -> DispatchResult {
        SubtensorModule::remove_stake(signed(coldkey), hotkey, NETUID, alpha)
    }

    fn stake_of(hotkey: u64, coldkey: u64) -> u64 {
        Pallet::<Test>::stake_of(&hotkey, &coldkey, NETUID)
    }

    #[test]
    fn adding_stake_names_the_first_fault() {
        on_new_chain(|| {
            let poor = 77;
            assert_noop!(add(poor, 999, 1), Fault::SubnetNotExists);
            SubtensorModule::register_network(signed(OWNER), OWNER_HOTKEY).unwrap();
            assert_noop!(add(poor, 999, 1), Fault::SubtokenDisabled);
            run_blocks(3);
            SubtensorModule::start_call(signed(OWNER), NETUID).unwrap();
            assert_noop!(add(poor, 999, STAKE_MIN - 1), Fault::AmountTooLow);
            assert_noop!(add(poor, 999, STAKE_MIN), Fault::NotEnoughBalanceToStake);
            assert_noop!(add(2, 999, STAKE_MIN), Fault::HotKeyAccountNotExists);
            assert_ok!(add(2, OWNER_HOTKEY, STAKE_MIN));
        });
    }

    #[test]
    fn removing_stake_names_the_first_fault() {
        with_subnet(|| {
            assert_ok!(add(2, OWNER_HOTKEY, TAO));
            assert_noop!(remove(2, 999, 0), Fault::AmountTooLow);
            assert_noop!(remove(2, 999, 2 * TAO), Fault::HotKeyAccountNotExists);
            assert_noop!(
                remove(2, OWNER_HOTKEY, TAO + 1),
                Fault::NotEnoughStakeToWithdraw
            );
            SubnetTAO::<Test>::insert(NETUID, 1);
            assert_noop!(remove(2, OWNER_HOTKEY, TAO), Fault::InsufficientLiquidity);
            SubtokenEnabled::<Test>::insert(NETUID, false);
            assert_noop!(remove(2, OWNER_HOTKEY, 0), Fault::SubtokenDisabled);
        });
    }

    #[test]
    fn price_limits_hold_on_both_sides_of_par() {
        with_subnet(|| {
            let add = |limit| {
                let coldkey = signed(2);
                SubtensorModule::add_stake_limit(coldkey, OWNER_HOTKEY, NETUID, TAO, limit, true)
            };
            let remove = |limit| {
                let coldkey = signed(2);
                SubtensorModule::remove_stake_limit(
                    coldkey,
                    OWNER_HOTKEY,
                    NETUID,
                    TAO,
                    limit,
                    false,
                )
            };
            assert_noop!(add(ALPHA_PRICE - 1), Fault::SlippageTooHigh);
            assert_ok!(add(ALPHA_PRICE));
            assert_noop!(remove(ALPHA_PRICE + 1), Fault::SlippageTooHigh);
            assert_ok!(remove(ALPHA_PRICE));
            assert_eq!(Balances::free_balance(2), ENDOWMENT);
        });
    }

    #[test]
    fn stake_moves_tao_into_the_pool_and_back() {
        with_subnet(|| {
            let (pool, out) = (
                SubnetTAO::<Test>::get(NETUID),
                SubnetAlphaOut::<Test>::get(NETUID),
            );
            assert_ok!(add(2, OWNER_HOTKEY, 5 * TAO));
            assert_eq!(SubnetTAO::<Test>::get(NETUID), pool + 5 * TAO);
            assert_eq!(SubnetAlphaIn::<Test>::get(NETUID), pool + 5 * TAO);
            assert_eq!(SubnetAlphaOut::<Test>::get(NETUID), out + 5 * TAO);
            assert_eq!(TotalHotkeyAlpha::<Test>::get(OWNER_HOTKEY, NETUID), 5 * TAO);
            assert_eq!(stake_of(OWNER_HOTKEY, 2), 5 * TAO);
            assert_eq!(Balances::free_balance(2), ENDOWMENT - 5 * TAO);
            assert_eq!(StakingHotkeys::<Test>::get(2), [OWNER_HOTKEY]);

            assert_ok!(remove(2, OWNER_HOTKEY, 5 * TAO));
            assert_eq!(SubnetTAO::<Test>::get(NETUID), pool);
            assert_eq!(SubnetAlphaOut::<Test>::get(NETUID), out);
            assert_eq!(Balances::free_balance(2), ENDOWMENT);
            assert!(TotalHotkeyShares::<Test>::get(OWNER_HOTKEY, NETUID).is_zero());
            assert!(Alpha::<Test>::get((OWNER_HOTKEY, 2, NETUID)).is_zero());
        });
    }

    #[test]
    fn income_of_a_hotkey_belongs_to_its_holders_in_proportion() {
        with_subnet(|| {
            assert_ok!(add(2, OWNER_HOTKEY, 3 * TAO));
            assert_ok!(add(3, OWNER_HOTKEY, TAO));
            Pallet::<Test>::credit_holders(&OWNER_HOTKEY, NETUID, 4 * TAO);
            assert_eq!(stake_of(OWNER_HOTKEY, 2), 6 * TAO);
            assert_eq!(stake_of(OWNER_HOTKEY, 3), 2 * TAO);
            assert_ok!(remove(3, OWNER_HOTKEY, 2 * TAO));
            assert_eq!(stake_of(OWNER_HOTKEY, 2), 6 * TAO);
            assert_eq!(stake_of(OWNER_HOTKEY, 3), 0);
        });
    }

    #[test]
    fn income_of_a_hotkey_without_stake_belongs_to_its_owner() {
        with_subnet(|| {
            Pallet::<Test>::credit_holders(&OWNER_HOTKEY, NETUID, TAO);
            assert_eq!(stake_of(OWNER_HOTKEY, OWNER), TAO);
        });
    }

    #[test]
    fn root_stake_counts_on_subnets_by_its_weight() {
        with_subnet(|| {
            assert_ok!(SubtensorModule::add_stake(
                signed(2),
                OWNER_HOTKEY,
                ROOT,
                4 * TAO
            ));
            TaoWeight::<Test>::put(u64::MAX / 4);
            let weight = Pallet::<Test>::stake_weight(&OWNER_HOTKEY, NETUID);
            assert_eq!(
                weight,
                StakeWeight {
                    alpha: 0,
                    tao: TAO - 1
                }
            );
        });
    }
}
