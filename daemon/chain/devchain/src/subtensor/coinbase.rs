//! What happens at the start of every block: prices fall, commits open, emission is collected, epochs run.

use super::*;

impl<T: Config> Pallet<T> {
    /// Whether an epoch of the subnet is due in `block`.
    pub fn is_epoch_due(netuid: u16, block: u64) -> bool {
        let pending = PendingEpochAt::<T>::get(netuid);
        let age = block.saturating_sub(LastEpochBlock::<T>::get(netuid));
        (pending != 0 && block >= pending) || age >= u64::from(Tempo::<T>::get(netuid))
    }

    pub(super) fn step() {
        let block = Self::block();
        for netuid in 1..TotalNetworks::<T>::get() {
            Self::decay_burn(netuid);
            Self::reveal_timelocked(netuid);
            BlocksSinceLastStep::<T>::mutate(netuid, |blocks| *blocks = blocks.saturating_add(1));
            if Self::is_epoch_due(netuid, block) {
                BlocksSinceLastStep::<T>::insert(netuid, 0);
                LastEpochBlock::<T>::insert(netuid, block);
                PendingEpochAt::<T>::insert(netuid, 0);
                SubnetEpochIndex::<T>::mutate(netuid, |epochs| *epochs = epochs.saturating_add(1));
            }
        }
    }
}
