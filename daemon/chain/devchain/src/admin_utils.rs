//! The `AdminUtils` pallet: hyperparameters of subnets.
//!
//! Root may set all of them, a subnet's owner those of its subnet. There is no rate limit and no window before an epoch in
//! which changes are refused.

#![allow(unreachable_pub)] // `frame_support::pallet` makes its items `pub` whatever the module is.

pub use pallet::*;

#[frame_support::pallet]
mod pallet {
    use frame_support::pallet_prelude::*;
    use frame_system::pallet_prelude::*;

    use crate::subtensor::{self, Pallet as Subtensor};

    /// What every call weighs; free, as all of them are an owner's or root's.
    const FREE: (Weight, DispatchClass, Pays) = (
        Weight::from_parts(10_000_000, 0),
        DispatchClass::Operational,
        Pays::No,
    );

    /// Least activity cutoff, in blocks.
    const ACTIVITY_CUTOFF_MIN: u16 = 1;
    /// Largest moving average of bonds, in parts of a million.
    const BONDS_MOVING_AVERAGE_MAX: u64 = 975_000;
    /// Least upper end of liquid alpha: 0.1, in parts of 65,535.
    const ALPHA_HIGH_MIN: u16 = 6_554;
    /// Range of the lower end of liquid alpha starts here: 0.025, in parts of 65,535.
    const ALPHA_LOW_MIN: u16 = 1_638;

    #[pallet::pallet]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config + subtensor::Config {}

    #[pallet::error]
    pub enum Error<T> {
        /// The subnet does not exist.
        SubnetDoesNotExist,
        /// More validators than neurons.
        MaxValidatorsLargerThanMaxUIds,
        /// Fewer uids than there are neurons.
        MaxAllowedUIdsLessThanCurrentUIds,
        /// A moving average of bonds is below 1, with some distance.
        BondsMovingAverageMaxReached,
        /// Kept for its index.
        NegativeSigmoidSteepness,
        /// Kept for its index.
        ValueNotInBounds,
        /// Kept for its index.
        MinAllowedUidsGreaterThanCurrentUids,
        /// Kept for its index.
        MinAllowedUidsGreaterThanMaxAllowedUids,
        /// No uids at all.
        MaxAllowedUidsLessThanMinAllowedUids,
        /// More uids than any subnet may have.
        MaxAllowedUidsGreaterThanDefaultMaxAllowedUids,
    }

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        /// Blocks between two announcements of a hotkey.
        #[pallet::call_index(3)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_serving_rate_limit(
            origin: OriginFor<T>,
            netuid: u16,
            serving_rate_limit: u64,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::ServingRateLimit::<T>::insert(netuid, serving_rate_limit);
            Ok(())
        }

        /// Blocks between two weights or commits of a neuron.
        #[pallet::call_index(7)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_weights_set_rate_limit(
            origin: OriginFor<T>,
            netuid: u16,
            weights_set_rate_limit: u64,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::WeightsSetRateLimit::<T>::insert(netuid, weights_set_rate_limit);
            Ok(())
        }

        /// Blocks during which a new neuron is not pruned.
        #[pallet::call_index(13)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_immunity_period(
            origin: OriginFor<T>,
            netuid: u16,
            immunity_period: u16,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::ImmunityPeriod::<T>::insert(netuid, immunity_period);
            Ok(())
        }

        /// Least number of weights in a row.
        #[pallet::call_index(14)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_min_allowed_weights(
            origin: OriginFor<T>,
            netuid: u16,
            min_allowed_weights: u16,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::MinAllowedWeights::<T>::insert(netuid, min_allowed_weights);
            Ok(())
        }

        /// Most neurons.
        ///
        /// # Errors
        /// `MaxAllowedUidsLessThanMinAllowedUids` for 0, `MaxAllowedUIdsLessThanCurrentUIds`,
        /// `MaxAllowedUidsGreaterThanDefaultMaxAllowedUids` above 4,096.
        #[pallet::call_index(15)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_max_allowed_uids(
            origin: OriginFor<T>,
            netuid: u16,
            max_allowed_uids: u16,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            ensure!(
                max_allowed_uids > 0,
                Error::<T>::MaxAllowedUidsLessThanMinAllowedUids
            );
            ensure!(
                max_allowed_uids >= subtensor::SubnetworkN::<T>::get(netuid),
                Error::<T>::MaxAllowedUIdsLessThanCurrentUIds
            );
            ensure!(
                max_allowed_uids <= subtensor::DefaultMaxAllowedUids::get(),
                Error::<T>::MaxAllowedUidsGreaterThanDefaultMaxAllowedUids
            );
            subtensor::MaxAllowedUids::<T>::insert(netuid, max_allowed_uids);
            Ok(())
        }

        /// Share of the stake that has to agree on a weight, in parts of 65,535.
        #[pallet::call_index(16)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_kappa(origin: OriginFor<T>, netuid: u16, kappa: u16) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::Kappa::<T>::insert(netuid, kappa);
            Ok(())
        }

        /// Blocks after which a silent validator counts as inactive.
        ///
        /// # Errors
        /// `SubtensorModule.ActivityCutoffTooLow` for 0.
        #[pallet::call_index(18)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_activity_cutoff(
            origin: OriginFor<T>,
            netuid: u16,
            activity_cutoff: u16,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            ensure!(
                activity_cutoff >= ACTIVITY_CUTOFF_MIN,
                subtensor::Error::<T>::ActivityCutoffTooLow
            );
            subtensor::ActivityCutoff::<T>::insert(netuid, activity_cutoff);
            Ok(())
        }

        /// Whether neurons may be registered.
        #[pallet::call_index(19)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_network_registration_allowed(
            origin: OriginFor<T>,
            netuid: u16,
            registration_allowed: bool,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::NetworkRegistrationAllowed::<T>::insert(netuid, registration_allowed);
            Ok(())
        }

        /// Most validator permits.
        ///
        /// # Errors
        /// `MaxValidatorsLargerThanMaxUIds`.
        #[pallet::call_index(25)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_max_allowed_validators(
            origin: OriginFor<T>,
            netuid: u16,
            max_allowed_validators: u16,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            ensure!(
                max_allowed_validators <= subtensor::MaxAllowedUids::<T>::get(netuid),
                Error::<T>::MaxValidatorsLargerThanMaxUIds
            );
            subtensor::MaxAllowedValidators::<T>::insert(netuid, max_allowed_validators);
            Ok(())
        }

        /// Moving average of bonds, in parts of a million.
        ///
        /// # Errors
        /// `BondsMovingAverageMaxReached` for an owner above 975,000.
        #[pallet::call_index(26)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_bonds_moving_average(
            origin: OriginFor<T>,
            netuid: u16,
            bonds_moving_average: u64,
        ) -> DispatchResult {
            let setter = Self::ensure_may_set(origin, netuid)?;
            ensure!(
                setter == Setter::Root || bonds_moving_average <= BONDS_MOVING_AVERAGE_MAX,
                Error::<T>::BondsMovingAverageMaxReached
            );
            subtensor::BondsMovingAverage::<T>::insert(netuid, bonds_moving_average);
            Ok(())
        }

        /// Blocks between two epochs; with 0 they run on request alone.
        #[pallet::call_index(30)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_tempo(origin: OriginFor<T>, netuid: u16, tempo: u16) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::Tempo::<T>::insert(netuid, tempo);
            Ok(())
        }

        /// Whether weights stay hidden before they count.
        #[pallet::call_index(49)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_commit_reveal_weights_enabled(
            origin: OriginFor<T>,
            netuid: u16,
            enabled: bool,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::CommitRevealWeightsEnabled::<T>::insert(netuid, enabled);
            Ok(())
        }

        /// Whether bonds follow consensus faster.
        #[pallet::call_index(50)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_liquid_alpha_enabled(
            origin: OriginFor<T>,
            netuid: u16,
            enabled: bool,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::LiquidAlphaOn::<T>::insert(netuid, enabled);
            Ok(())
        }

        /// Ends of liquid alpha, in parts of 65,535.
        ///
        /// # Errors
        /// Of `SubtensorModule`: `LiquidAlphaDisabled`; `AlphaHighTooLow` below 0.1; `AlphaLowOutOfRange` below 0.025 or
        /// above `alpha_high`.
        #[pallet::call_index(51)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_alpha_values(
            origin: OriginFor<T>,
            netuid: u16,
            alpha_low: u16,
            alpha_high: u16,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            ensure!(
                subtensor::LiquidAlphaOn::<T>::get(netuid),
                subtensor::Error::<T>::LiquidAlphaDisabled
            );
            ensure!(
                alpha_high >= ALPHA_HIGH_MIN,
                subtensor::Error::<T>::AlphaHighTooLow
            );
            ensure!(
                (ALPHA_LOW_MIN..=alpha_high).contains(&alpha_low),
                subtensor::Error::<T>::AlphaLowOutOfRange
            );
            subtensor::AlphaValues::<T>::insert(netuid, (alpha_low, alpha_high));
            Ok(())
        }

        /// Epochs between a commit and its reveal, 1 to 100.
        ///
        /// # Errors
        /// `SubtensorModule.RevealPeriodTooSmall`, `RevealPeriodTooLarge`.
        #[pallet::call_index(57)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_commit_reveal_weights_interval(
            origin: OriginFor<T>,
            netuid: u16,
            interval: u64,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            Subtensor::<T>::set_reveal_period(netuid, interval)
        }

        /// How far a weight is cut to consensus in bonds, in parts of 65,535.
        #[pallet::call_index(60)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_bonds_penalty(
            origin: OriginFor<T>,
            netuid: u16,
            bonds_penalty: u16,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::BondsPenalty::<T>::insert(netuid, bonds_penalty);
            Ok(())
        }

        /// Whether the subnet's epochs are Yuma 3.
        #[pallet::call_index(69)]
        #[pallet::weight(FREE)]
        pub fn sudo_set_yuma3_enabled(
            origin: OriginFor<T>,
            netuid: u16,
            enabled: bool,
        ) -> DispatchResult {
            Self::ensure_may_set(origin, netuid)?;
            subtensor::Yuma3On::<T>::insert(netuid, enabled);
            Ok(())
        }
    }

    /// Who sets a hyperparameter.
    #[derive(PartialEq, Eq)]
    enum Setter {
        Root,
        Owner,
    }

    impl<T: Config> Pallet<T> {
        /// The subnet exists, and the origin is root or its owner's coldkey.
        fn ensure_may_set(origin: OriginFor<T>, netuid: u16) -> Result<Setter, DispatchError> {
            let setter = match ensure_signed_or_root(origin)? {
                Some(coldkey) => {
                    Subtensor::<T>::ensure_subnet_owner(&coldkey, netuid)?;
                    Setter::Owner
                }
                None => Setter::Root,
            };
            ensure!(
                subtensor::NetworksAdded::<T>::get(netuid),
                Error::<T>::SubnetDoesNotExist
            );
            Ok(setter)
        }
    }
}

#[cfg(test)]
mod tests {
    use frame_support::{assert_noop, assert_ok};
    use sp_runtime::{DispatchError, DispatchResult};

    use super::Error;
    use crate::{
        genesis::{Genesis, dev_account},
        runtime::{AdminUtils, Runtime, RuntimeOrigin, testing::on_chain},
        subtensor::{self, Error as SubtensorError},
    };

    fn owner() -> RuntimeOrigin {
        RuntimeOrigin::signed(dev_account("Bob"))
    }

    /// A chain with subnet 1, owned by Bob.
    fn on_subnet(test: impl FnOnce()) {
        on_chain(&Genesis::default(), || {
            let hotkey = dev_account("Charlie");
            assert_ok!(subtensor::Pallet::<Runtime>::register_network(
                owner(),
                hotkey
            ));
            test();
        });
    }

    #[test]
    fn owner_and_root_may_set_and_others_may_not() {
        on_subnet(|| {
            assert_ok!(AdminUtils::sudo_set_tempo(owner(), 1, 20));
            assert_eq!(subtensor::Tempo::<Runtime>::get(1), 20);
            assert_ok!(AdminUtils::sudo_set_tempo(RuntimeOrigin::root(), 1, 30));
            assert_eq!(subtensor::Tempo::<Runtime>::get(1), 30);
            let other = RuntimeOrigin::signed(dev_account("Alice"));
            assert_noop!(
                AdminUtils::sudo_set_tempo(other, 1, 40),
                DispatchError::BadOrigin
            );
            assert_noop!(
                AdminUtils::sudo_set_tempo(RuntimeOrigin::none(), 1, 40),
                DispatchError::BadOrigin
            );
        });
    }

    #[test]
    fn hyperparameters_of_a_missing_subnet_are_refused() {
        on_subnet(|| {
            let result = AdminUtils::sudo_set_kappa(RuntimeOrigin::root(), 2, 1);
            assert_noop!(result, Error::<Runtime>::SubnetDoesNotExist);
        });
    }

    #[test]
    fn every_call_sets_its_own_value() {
        on_subnet(|| {
            assert_ok!(AdminUtils::sudo_set_serving_rate_limit(owner(), 1, 11));
            assert_ok!(AdminUtils::sudo_set_weights_set_rate_limit(owner(), 1, 12));
            assert_ok!(AdminUtils::sudo_set_immunity_period(owner(), 1, 13));
            assert_ok!(AdminUtils::sudo_set_min_allowed_weights(owner(), 1, 14));
            assert_ok!(AdminUtils::sudo_set_max_allowed_uids(owner(), 1, 15));
            assert_ok!(AdminUtils::sudo_set_kappa(owner(), 1, 16));
            assert_ok!(AdminUtils::sudo_set_activity_cutoff(owner(), 1, 17));
            assert_ok!(AdminUtils::sudo_set_network_registration_allowed(
                owner(),
                1,
                false
            ));
            assert_ok!(AdminUtils::sudo_set_max_allowed_validators(owner(), 1, 9));
            assert_ok!(AdminUtils::sudo_set_bonds_moving_average(owner(), 1, 18));
            assert_ok!(AdminUtils::sudo_set_commit_reveal_weights_enabled(
                owner(),
                1,
                false
            ));
            assert_ok!(AdminUtils::sudo_set_liquid_alpha_enabled(owner(), 1, true));
            assert_ok!(AdminUtils::sudo_set_alpha_values(owner(), 1, 7_000, 8_000));
            assert_ok!(AdminUtils::sudo_set_commit_reveal_weights_interval(
                owner(),
                1,
                19
            ));
            assert_ok!(AdminUtils::sudo_set_bonds_penalty(owner(), 1, 20));
            assert_ok!(AdminUtils::sudo_set_yuma3_enabled(owner(), 1, true));

            assert_eq!(subtensor::ServingRateLimit::<Runtime>::get(1), 11);
            assert_eq!(subtensor::WeightsSetRateLimit::<Runtime>::get(1), 12);
            assert_eq!(subtensor::ImmunityPeriod::<Runtime>::get(1), 13);
            assert_eq!(subtensor::MinAllowedWeights::<Runtime>::get(1), 14);
            assert_eq!(subtensor::MaxAllowedUids::<Runtime>::get(1), 15);
            assert_eq!(subtensor::Kappa::<Runtime>::get(1), 16);
            assert_eq!(subtensor::ActivityCutoff::<Runtime>::get(1), 17);
            assert!(!subtensor::NetworkRegistrationAllowed::<Runtime>::get(1));
            assert_eq!(subtensor::MaxAllowedValidators::<Runtime>::get(1), 9);
            assert_eq!(subtensor::BondsMovingAverage::<Runtime>::get(1), 18);
            assert!(!subtensor::CommitRevealWeightsEnabled::<Runtime>::get(1));
            assert!(subtensor::LiquidAlphaOn::<Runtime>::get(1));
            assert_eq!(subtensor::AlphaValues::<Runtime>::get(1), (7_000, 8_000));
            assert_eq!(subtensor::RevealPeriodEpochs::<Runtime>::get(1), 19);
            assert_eq!(subtensor::BondsPenalty::<Runtime>::get(1), 20);
            assert!(subtensor::Yuma3On::<Runtime>::get(1));
        });
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        on_subnet(|| {
            let refused =
                |result: DispatchResult, error: DispatchError| assert_eq!(result, Err(error));
            type Own = Error<Runtime>;
            type Theirs = SubtensorError<Runtime>;
            let no_uids = AdminUtils::sudo_set_max_allowed_uids(owner(), 1, 0);
            refused(no_uids, Own::MaxAllowedUidsLessThanMinAllowedUids.into());
            let too_many = AdminUtils::sudo_set_max_allowed_uids(owner(), 1, 4_097);
            refused(
                too_many,
                Own::MaxAllowedUidsGreaterThanDefaultMaxAllowedUids.into(),
            );
            let validators = AdminUtils::sudo_set_max_allowed_validators(owner(), 1, 257);
            refused(validators, Own::MaxValidatorsLargerThanMaxUIds.into());
            let average = AdminUtils::sudo_set_bonds_moving_average(owner(), 1, 975_001);
            refused(average, Own::BondsMovingAverageMaxReached.into());
            assert_ok!(AdminUtils::sudo_set_bonds_moving_average(
                RuntimeOrigin::root(),
                1,
                975_001
            ));
            let cutoff = AdminUtils::sudo_set_activity_cutoff(owner(), 1, 0);
            refused(cutoff, Theirs::ActivityCutoffTooLow.into());
            let disabled = AdminUtils::sudo_set_alpha_values(owner(), 1, 7_000, 8_000);
            refused(disabled, Theirs::LiquidAlphaDisabled.into());
            assert_ok!(AdminUtils::sudo_set_liquid_alpha_enabled(owner(), 1, true));
            let high = AdminUtils::sudo_set_alpha_values(owner(), 1, 6_000, 6_553);
            refused(high, Theirs::AlphaHighTooLow.into());
            for low in [1_637, 7_001] {
                let low = AdminUtils::sudo_set_alpha_values(owner(), 1, low, 7_000);
                refused(low, Theirs::AlphaLowOutOfRange.into());
            }
            let no_period = AdminUtils::sudo_set_commit_reveal_weights_interval(owner(), 1, 0);
            refused(no_period, Theirs::RevealPeriodTooSmall.into());
            let long = AdminUtils::sudo_set_commit_reveal_weights_interval(owner(), 1, 101);
            refused(long, Theirs::RevealPeriodTooLarge.into());
        });
    }
}
