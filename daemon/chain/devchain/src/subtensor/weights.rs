//! Weights: what validators think that neurons are worth.

use std::collections::BTreeSet;

use codec::Compact;
use frame_support::ensure;
use sp_runtime::DispatchResult;

use super::neurons::{entry, set_entry};
use super::*;

impl<T: Config> Pallet<T> {
    /// Sets weights that a hotkey gives in the open, which a subnet with commit and reveal refuses.
    pub(super) fn do_set_weights(
        hotkey: &T::AccountId,
        netuid: u16,
        mecid: u8,
        uids: Vec<u16>,
        values: Vec<u16>,
        version_key: u64,
    ) -> DispatchResult {
        ensure!(
            !CommitRevealWeightsEnabled::<T>::get(netuid),
            Error::<T>::CommitRevealEnabled
        );
        Self::accept_weights(hotkey, netuid, mecid, uids, values, version_key)
    }

    pub(super) fn do_batch_set_weights(
        hotkey: T::AccountId,
        netuids: Vec<Compact<u16>>,
        weights: Vec<Vec<(Compact<u16>, Compact<u16>)>>,
        version_keys: Vec<Compact<u64>>,
    ) -> DispatchResult {
        ensure!(
            netuids.len() == weights.len() && netuids.len() == version_keys.len(),
            Error::<T>::InputLengthsUnequal
        );
        let mut failed = false;
        for ((netuid, row), version_key) in netuids.iter().zip(weights).zip(version_keys) {
            let (uids, values) = row.into_iter().map(|(uid, value)| (uid.0, value.0)).unzip();
            let set = Self::do_set_weights(&hotkey, netuid.0, 0, uids, values, version_key.0);
            if let Err(error) = set {
                failed = true;
                Self::deposit_event(Event::BatchWeightItemFailed(error));
            }
        }
        if failed {
            Self::deposit_event(Event::BatchCompletedWithErrors());
        }
        Self::deposit_event(Event::BatchWeightsCompleted(netuids, hotkey));
        Ok(())
    }

    /// Checks weights, however they came to the chain, and stores them.
    ///
    /// On a subnet with commit and reveal the rate limit has been applied to the commit, and is not again.
    pub(super) fn accept_weights(
        hotkey: &T::AccountId,
        netuid: u16,
        mecid: u8,
        uids: Vec<u16>,
        values: Vec<u16>,
        version_key: u64,
    ) -> DispatchResult {
        ensure!(netuid != ROOT, Error::<T>::CanNotSetRootNetworkWeights);
        ensure!(
            uids.len() == values.len(),
            Error::<T>::WeightVecNotEqualSize
        );
        Self::ensure_mechanism(netuid, mecid)?;
        let neurons = SubnetworkN::<T>::get(netuid);
        ensure!(
            uids.len() <= usize::from(neurons),
            Error::<T>::UidsLengthExceedUidsInSubNet
        );
        let uid = Self::uid_of(netuid, hotkey)?;
        let stake = Self::stake_weight(hotkey, netuid).total();
        ensure!(
            stake >= StakeThreshold::<T>::get(),
            Error::<T>::NotEnoughStakeToSetWeights
        );
        let oldest = WeightsVersionKey::<T>::get(netuid);
        ensure!(
            oldest == 0 || version_key >= oldest,
            Error::<T>::IncorrectWeightVersionKey
        );
        let was_committed = CommitRevealWeightsEnabled::<T>::get(netuid);
        ensure!(
            was_committed || Self::may_update(netuid, uid),
            Error::<T>::SettingWeightsTooFast
        );
        let is_free = uids == [uid] || Self::owner_uid(netuid) == Some(uid);
        let has_permit = entry(&ValidatorPermit::<T>::get(netuid), uid);
        ensure!(is_free || has_permit, Error::<T>::NeuronNoValidatorPermit);
        let distinct = uids.iter().collect::<BTreeSet<_>>();
        ensure!(distinct.len() == uids.len(), Error::<T>::DuplicateUids);
        ensure!(
            uids.iter().all(|uid| *uid < neurons),
            Error::<T>::UidVecContainInvalidOne
        );
        let least = MinAllowedWeights::<T>::get(netuid).min(neurons);
        ensure!(
            is_free || uids.len() >= usize::from(least),
            Error::<T>::WeightVecLengthIsLow
        );
        let limit = MaxWeightsLimit::<T>::get(netuid);
        ensure!(
            uids == [uid] || is_within(&values, limit),
            Error::<T>::MaxWeightExceeded
        );

        let row = uids.into_iter().zip(upscaled(&values));
        Weights::<T>::insert(netuid, uid, row.collect::<Vec<_>>());
        if !was_committed {
            set_entry::<_, LastUpdate<T>>(netuid, uid, Self::block());
        }
        Self::deposit_event(Event::WeightsSet(netuid, uid));
        Ok(())
    }

    /// The subnet exists and has the mechanism; all have only mechanism 0.
    pub(super) fn ensure_mechanism(netuid: u16, mecid: u8) -> DispatchResult {
        ensure!(
            NetworksAdded::<T>::get(netuid) && mecid == 0,
            Error::<T>::MechanismDoesNotExist
        );
        Ok(())
    }

    /// Whether the last weights, commit or registration of a uid are old enough.
    pub(super) fn may_update(netuid: u16, uid: u16) -> bool {
        let last = entry(&LastUpdate::<T>::get(netuid), uid);
        let age = Self::block().saturating_sub(last);
        last == 0 || age >= WeightsSetRateLimit::<T>::get(netuid)
    }
}

/// Whether no weight is a larger part of the sum than `limit` parts of 65,535.
fn is_within(values: &[u16], limit: u16) -> bool {
    let sum = values.iter().map(|value| u64::from(*value)).sum::<u64>();
    let largest = u64::from(values.iter().copied().max().unwrap_or(0));
    largest * u64::from(u16::MAX) <= u64::from(limit) * sum
}

/// Scales weights so that the largest is 65,535, each rounded to the nearest.
fn upscaled(values: &[u16]) -> Vec<u16> {
    let largest = u32::from(values.iter().copied().max().unwrap_or(0).max(1));
    let scale = |value: &u16| {
        let scaled = (u32::from(*value) * u32::from(u16::MAX) + largest / 2) / largest;
        u16::try_from(scaled).unwrap_or(u16::MAX)
    };
    values.iter().map(scale).collect()
}
