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

#[cfg(test)]
mod tests {
    use frame_support::{assert_noop, assert_ok};

    use super::super::mock::*;
    use super::*;

    type Fault = Error<Test>;

    #[derive(Clone)]
    struct Attempt {
        hotkey: u64,
        netuid: u16,
        mecid: u8,
        uids: Vec<u16>,
        values: Vec<u16>,
        version_key: u64,
    }

    impl Attempt {
        fn make(&self) -> DispatchResult {
            let Self {
                hotkey,
                netuid,
                mecid,
                uids,
                values,
                version_key,
            } = self.clone();
            let hotkey = signed(hotkey);
            SubtensorModule::set_mechanism_weights(hotkey, netuid, mecid, uids, values, version_key)
        }
    }

    fn set(coldkey: u64, uids: &[u16], values: &[u16]) -> DispatchResult {
        let hotkey = signed(hotkey_of(coldkey));
        SubtensorModule::set_weights(hotkey, NETUID, uids.to_vec(), values.to_vec(), 0)
    }

    #[test]
    fn setting_weights_names_the_first_fault() {
        with_subnet(|| {
            let uid = register(2);
            register(3);
            StakeThreshold::<Test>::put(TAO);
            WeightsVersionKey::<Test>::insert(NETUID, 7);
            MinAllowedWeights::<Test>::insert(NETUID, 2);
            MaxWeightsLimit::<Test>::insert(NETUID, 32_768);
            CommitRevealWeightsEnabled::<Test>::insert(NETUID, true);
            let mut attempt = Attempt {
                hotkey: 999,
                netuid: ROOT,
                mecid: 1,
                uids: vec![9; 4],
                values: vec![1],
                version_key: 6,
            };
            assert_noop!(attempt.make(), Fault::CommitRevealEnabled);
            CommitRevealWeightsEnabled::<Test>::insert(ROOT, false);
            CommitRevealWeightsEnabled::<Test>::insert(NETUID, false);
            assert_noop!(attempt.make(), Fault::CanNotSetRootNetworkWeights);
            attempt.netuid = NETUID;
            assert_noop!(attempt.make(), Fault::WeightVecNotEqualSize);
            attempt.values = vec![1; 4];
            assert_noop!(attempt.make(), Fault::MechanismDoesNotExist);
            attempt.mecid = 0;
            assert_noop!(attempt.make(), Fault::UidsLengthExceedUidsInSubNet);
            (attempt.uids, attempt.values) = (vec![9; 3], vec![1; 3]);
            assert_noop!(attempt.make(), Fault::HotKeyNotRegisteredInSubNet);
            attempt.hotkey = hotkey_of(2);
            assert_noop!(attempt.make(), Fault::NotEnoughStakeToSetWeights);
            assert_ok!(SubtensorModule::add_stake(
                signed(2),
                hotkey_of(2),
                NETUID,
                TAO
            ));
            assert_noop!(attempt.make(), Fault::IncorrectWeightVersionKey);
            attempt.version_key = 7;
            assert_noop!(attempt.make(), Fault::SettingWeightsTooFast);
            run_blocks(5);
            assert_noop!(attempt.make(), Fault::NeuronNoValidatorPermit);
            set_entry::<_, ValidatorPermit<Test>>(NETUID, uid, true);
            assert_noop!(attempt.make(), Fault::DuplicateUids);
            (attempt.uids, attempt.values) = (vec![3], vec![1]);
            assert_noop!(attempt.make(), Fault::UidVecContainInvalidOne);
            attempt.uids = vec![2];
            assert_noop!(attempt.make(), Fault::WeightVecLengthIsLow);
            (attempt.uids, attempt.values) = (vec![2, 0], vec![2, 1]);
            assert_noop!(attempt.make(), Fault::MaxWeightExceeded);
            attempt.values = vec![1, 1];
            assert_ok!(attempt.make());
            assert_eq!(
                Weights::<Test>::get(NETUID, uid),
                [(2, 65_535), (0, 65_535)]
            );
            assert_eq!(events().last(), Some(&Event::WeightsSet(NETUID, uid)));
        });
    }

    #[test]
    fn weights_on_a_subnet_that_does_not_exist_have_no_mechanism() {
        with_subnet(|| {
            CommitRevealWeightsEnabled::<Test>::insert(5, false);
            let missing = SubtensorModule::set_weights(signed(OWNER_HOTKEY), 5, vec![], vec![], 0);
            assert_noop!(missing, Fault::MechanismDoesNotExist);
        });
    }

    #[test]
    fn largest_weight_is_stored_as_65535_and_zeros_are_kept() {
        with_subnet(|| {
            let uid = register_validator(2, TAO);
            register(3);
            run_blocks(5);
            assert_ok!(set(2, &[0, 1, 2], &[3, 0, 2]));
            assert_eq!(
                Weights::<Test>::get(NETUID, uid),
                [(0, 65_535), (1, 0), (2, 43_690)]
            );
            run_blocks(5);
            assert_ok!(set(2, &[0, 1, 2], &[0, 0, 0]));
            assert_eq!(Weights::<Test>::get(NETUID, uid), [(0, 0), (1, 0), (2, 0)]);
        });
    }

    #[test]
    fn second_weights_wait_for_the_rate_limit() {
        with_subnet(|| {
            register_validator(2, TAO);
            run_blocks(5);
            assert_ok!(set(2, &[0], &[1]));
            run_blocks(4);
            assert_noop!(set(2, &[0], &[1]), Fault::SettingWeightsTooFast);
            run_blocks(1);
            assert_ok!(set(2, &[0], &[1]));
        });
    }

    #[test]
    fn neuron_without_an_update_is_not_limited() {
        with_subnet(|| {
            let uid = register_validator(2, TAO);
            set_entry::<_, LastUpdate<Test>>(NETUID, uid, 0);
            assert_ok!(set(2, &[0], &[1]));
            assert_eq!(LastUpdate::<Test>::get(NETUID), [1, 4]);
        });
    }

    #[test]
    fn weight_on_oneself_and_weights_of_the_owner_need_no_permit() {
        with_subnet(|| {
            let uid = register(2);
            run_blocks(5);
            assert_noop!(set(2, &[0], &[1]), Fault::NeuronNoValidatorPermit);
            assert_ok!(set(2, &[uid], &[1]));
            assert_ok!(set(OWNER, &[uid], &[1]));
        });
    }

    #[test]
    fn one_failure_in_a_batch_stops_nothing() {
        with_subnet(|| {
            let uid = register_validator(2, TAO);
            run_blocks(5);
            let netuids = vec![Compact(9), Compact(NETUID)];
            let row = vec![(Compact(0), Compact(5))];
            let batch = |version_keys| {
                let rows = vec![row.clone(), row.clone()];
                SubtensorModule::batch_set_weights(signed(102), netuids.clone(), rows, version_keys)
            };
            assert_noop!(batch(vec![Compact(0)]), Fault::InputLengthsUnequal);
            System::reset_events();
            assert_ok!(batch(vec![Compact(0), Compact(0)]));
            assert_eq!(Weights::<Test>::get(NETUID, uid), [(0, 65_535)]);
            assert_eq!(
                events(),
                [
                    Event::BatchWeightItemFailed(Fault::CommitRevealEnabled.into()),
                    Event::WeightsSet(NETUID, uid),
                    Event::BatchCompletedWithErrors(),
                    Event::BatchWeightsCompleted(netuids.clone(), 102),
                ]
            );
        });
    }
}
