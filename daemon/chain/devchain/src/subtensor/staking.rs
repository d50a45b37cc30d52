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
