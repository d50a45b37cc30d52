//! The `Drand` pallet: pulses of a randomness beacon, which open timelocked weights.
//!
//! `write_pulse` comes as a bare extrinsic from whoever has the pulses. Nobody need be trusted for it: each pulse is checked
//! against the beacon's public key. Opens no connection: the node brings the pulses.

#![allow(unreachable_pub)] // `frame_support::pallet` makes its items `pub` whatever the module is.
#![allow(clippy::let_unit_value)] // `pallet::validate_unsigned` expands to one.
#![allow(deprecated)] // Finney takes pulses as bare extrinsics; the successor of `ValidateUnsigned` needs one more extension.

mod types;

pub use pallet::*;
pub use types::{BeaconConfiguration, BeaconConfigurationPayload, Metadata, Pulse, PulsesPayload};

use sp_runtime::transaction_validity::TransactionPriority;

/// Priority of an extrinsic that brings pulses: weights wait for them.
pub const PULSE_PRIORITY: TransactionPriority = 1 << 40;
/// Rounds that stay in storage; older ones are removed. 100 minutes of a 3 s beacon: longer than tests and demos keep
/// weights locked, and little enough for a state in memory. Finney keeps 216,000.
pub const PULSES_KEPT: u64 = 2_000;
/// Pulses that one extrinsic may bring: a check costs milliseconds. A guess.
pub const PULSES_PER_CALL_MAX: usize = 50;

/// How a pulse is checked.
pub trait VerifyPulse {
    /// Whether `signature` is the beacon's for `round`.
    fn verify(public_key: &[u8], round: u64, signature: &[u8]) -> bool;
}

#[frame_support::pallet]
mod pallet {
    use frame_support::pallet_prelude::*;
    use frame_system::pallet_prelude::*;
    use sha2::{Digest, Sha256};
    use sp_runtime::{MultiSignature, MultiSigner};

    use super::{
        BeaconConfiguration, BeaconConfigurationPayload, PULSE_PRIORITY, PULSES_KEPT,
        PULSES_PER_CALL_MAX, Pulse, PulsesPayload, VerifyPulse,
    };

    #[pallet::pallet]
    #[pallet::without_storage_info]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config<RuntimeEvent: From<Event<Self>>> {
        /// How a pulse is checked.
        type Verifier: VerifyPulse;
    }

    #[pallet::event]
    #[pallet::generate_deposit(fn deposit_event)]
    pub enum Event<T: Config> {
        /// The beacon was changed.
        BeaconConfigChanged,
        /// Pulses of these rounds were stored.
        NewPulse {
            /// Rounds, ascending.
            rounds: Vec<u64>,
        },
    }

    #[pallet::error]
    pub enum Error<T> {
        /// No pulses, or too many.
        PulseCount,
        /// A round that is not newer than the one before it.
        InvalidRoundNumber,
        /// A signature that is not the beacon's, or randomness that is not its hash.
        PulseVerificationError,
        /// A key of the wrong length, or a period of zero.
        InvalidBeaconConfig,
    }

    /// The beacon.
    #[pallet::storage]
    pub type BeaconConfig<T> = StorageValue<_, BeaconConfiguration, ValueQuery, DefaultBeacon>;

    #[pallet::type_value]
    pub fn DefaultBeacon() -> BeaconConfiguration {
        BeaconConfiguration::quicknet()
    }

    /// Pulses by round.
    #[pallet::storage]
    pub type Pulses<T> = StorageMap<_, Blake2_128Concat, u64, Pulse, OptionQuery>;

    /// Newest round in storage; 0 before the first.
    #[pallet::storage]
    pub type LastStoredRound<T> = StorageValue<_, u64, ValueQuery>;

    /// Oldest round in storage; 0 before the first.
    #[pallet::storage]
    pub type OldestStoredRound<T> = StorageValue<_, u64, ValueQuery>;

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        /// Stores pulses. Bare; the signature is not looked at.
        ///
        /// # Errors
        /// `PulseCount`, `InvalidRoundNumber`, `PulseVerificationError`. Nothing is stored then.
        #[pallet::call_index(0)]
        #[pallet::weight((Weight::from_parts(100_000_000, 0), DispatchClass::Operational, Pays::No))]
        pub fn write_pulse(
            origin: OriginFor<T>,
            pulses_payload: PulsesPayload<MultiSigner, BlockNumberFor<T>>,
            signature: Option<MultiSignature>,
        ) -> DispatchResult {
            ensure_none(origin)?;
            let _ = signature;
            Self::check(&pulses_payload.pulses)?;
            let mut rounds = Vec::with_capacity(pulses_payload.pulses.len());
            for pulse in pulses_payload.pulses {
                rounds.push(pulse.round);
                Self::store(pulse);
            }
            Self::deposit_event(Event::NewPulse { rounds });
            Ok(())
        }

        /// Follows another beacon. Root only; the signature is not looked at. Pulses in storage stay.
        ///
        /// # Errors
        /// `InvalidBeaconConfig`.
        #[pallet::call_index(1)]
        #[pallet::weight((Weight::from_parts(10_000_000, 0), DispatchClass::Operational, Pays::No))]
        pub fn set_beacon_config(
            origin: OriginFor<T>,
            config_payload: BeaconConfigurationPayload<MultiSigner, BlockNumberFor<T>>,
            signature: Option<MultiSignature>,
        ) -> DispatchResult {
            ensure_root(origin)?;
            let _ = signature;
            let config = config_payload.config;
            ensure!(
                config.public_key.len() == 96 && config.period > 0,
                Error::<T>::InvalidBeaconConfig
            );
            BeaconConfig::<T>::put(config);
            Self::deposit_event(Event::BeaconConfigChanged);
            Ok(())
        }
    }

    #[pallet::validate_unsigned]
    impl<T: Config> ValidateUnsigned for Pallet<T> {
        type Call = Call<T>;

        fn validate_unsigned(_: TransactionSource, call: &Call<T>) -> TransactionValidity {
            let Call::write_pulse { pulses_payload, .. } = call else {
                return InvalidTransaction::Call.into();
            };
            Self::check(&pulses_payload.pulses).map_err(|_| InvalidTransaction::BadProof)?;
            let last = pulses_payload.pulses.last().map_or(0, |pulse| pulse.round);
            ValidTransaction::with_tag_prefix("Drand")
                .priority(PULSE_PRIORITY)
                .and_provides(last)
                .longevity(5)
                .propagate(false)
                .build()
        }
    }

    impl<T: Config> Pallet<T> {
        /// Whether `pulses` continue what is stored and are the beacon's.
        fn check(pulses: &[Pulse]) -> Result<(), Error<T>> {
            ensure!(
                (1..=PULSES_PER_CALL_MAX).contains(&pulses.len()),
                Error::<T>::PulseCount
            );
            let beacon = BeaconConfig::<T>::get();
            let mut newest = LastStoredRound::<T>::get();
            for pulse in pulses {
                ensure!(pulse.round > newest, Error::<T>::InvalidRoundNumber);
                newest = pulse.round;
                let randomness = Sha256::digest(&pulse.signature);
                ensure!(
                    pulse.randomness.as_slice() == randomness.as_slice()
                        && T::Verifier::verify(&beacon.public_key, pulse.round, &pulse.signature),
                    Error::<T>::PulseVerificationError
                );
            }
            Ok(())
        }

        /// Stores a checked pulse and removes those that are too old.
        fn store(pulse: Pulse) {
            let round = pulse.round;
            Pulses::<T>::insert(round, pulse);
            LastStoredRound::<T>::put(round);
            let oldest = OldestStoredRound::<T>::get();
            let keep_from = round.saturating_sub(PULSES_KEPT - 1);
            if oldest == 0 {
                OldestStoredRound::<T>::put(round);
            } else if oldest < keep_from {
                // A beacon that was away for long leaves a gap: at most PULSES_KEPT rounds before it exist.
                for old in oldest..keep_from.min(oldest + PULSES_KEPT) {
                    Pulses::<T>::remove(old);
                }
                OldestStoredRound::<T>::put(keep_from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use frame_support::{BoundedVec, assert_noop, assert_ok};
    use gradmesh_timelock::SecretKey;
    use sha2::{Digest, Sha256};
    use sp_core::sr25519;
    use sp_runtime::{
        MultiSigner,
        transaction_validity::{InvalidTransaction, TransactionSource},
    };

    use super::*;
    use crate::{
        genesis::{self, Genesis},
        runtime::{
            Drand, Executive, Runtime, RuntimeCall, RuntimeOrigin, UncheckedExtrinsic,
            testing::{block, on_chain},
        },
    };

    fn key() -> SecretKey {
        SecretKey::from_seed([1; 32])
    }

    fn on_beacon(test: impl FnOnce()) {
        let beacon = genesis::beacon("test", key().public_key(), 1_000, 3);
        on_chain(
            &Genesis {
                beacon,
                ..Genesis::default()
            },
            test,
        );
    }

    fn pulse(round: u64) -> Pulse {
        let signature = key().sign(round);
        Pulse {
            round,
            randomness: BoundedVec::truncate_from(Sha256::digest(signature).to_vec()),
            signature: BoundedVec::truncate_from(signature.to_vec()),
        }
    }

    fn payload(pulses: Vec<Pulse>) -> PulsesPayload<MultiSigner, u32> {
        PulsesPayload {
            block_number: 1,
            pulses,
            public: sr25519::Public::default().into(),
        }
    }

    fn bare(pulses: Vec<Pulse>) -> UncheckedExtrinsic {
        let call = Call::write_pulse {
            pulses_payload: payload(pulses),
            signature: None,
        };
        UncheckedExtrinsic::new_bare(RuntimeCall::Drand(call))
    }

    #[test]
    fn pulses_arrive_in_a_bare_extrinsic() {
        on_beacon(|| {
            let extrinsic = bare(vec![pulse(1), pulse(2)]);
            let validity = Executive::validate_transaction(
                TransactionSource::Local,
                extrinsic.clone(),
                Default::default(),
            );
            assert_eq!(
                validity.map(|validity| validity.priority),
                Ok(PULSE_PRIORITY)
            );
            assert_eq!(block([extrinsic]), [Ok(Ok(()))]);
            assert_eq!(Pulses::<Runtime>::get(2), Some(pulse(2)));
            assert_eq!(LastStoredRound::<Runtime>::get(), 2);
        });
    }

    #[test]
    fn forged_pulse_is_refused_by_pool_block_and_pallet() {
        on_beacon(|| {
            let mut forged = pulse(1);
            forged.round = 2;
            let extrinsic = bare(vec![forged.clone()]);
            let bad_proof = InvalidTransaction::BadProof;
            let validity = Executive::validate_transaction(
                TransactionSource::External,
                extrinsic.clone(),
                Default::default(),
            );
            assert_eq!(validity.err(), Some(bad_proof.into()));
            assert_eq!(block([extrinsic]), [Err(bad_proof.into())]);
            let result = Drand::write_pulse(RuntimeOrigin::none(), payload(vec![forged]), None);
            assert_noop!(result, Error::<Runtime>::PulseVerificationError);
        });
    }

    #[test]
    fn randomness_must_be_the_hash_of_the_signature() {
        on_beacon(|| {
            let mut wrong = pulse(1);
            wrong.randomness = BoundedVec::truncate_from(vec![0; 32]);
            let result = Drand::write_pulse(RuntimeOrigin::none(), payload(vec![wrong]), None);
            assert_noop!(result, Error::<Runtime>::PulseVerificationError);
        });
    }

    #[test]
    fn rounds_only_go_up() {
        on_beacon(|| {
            assert_ok!(Drand::write_pulse(
                RuntimeOrigin::none(),
                payload(vec![pulse(5)]),
                None
            ));
            for rounds in [vec![5], vec![4], vec![7, 6], vec![6, 6]] {
                let pulses = rounds.into_iter().map(pulse).collect();
                let result = Drand::write_pulse(RuntimeOrigin::none(), payload(pulses), None);
                assert_noop!(result, Error::<Runtime>::InvalidRoundNumber);
            }
            let result = Drand::write_pulse(RuntimeOrigin::none(), payload(Vec::new()), None);
            assert_noop!(result, Error::<Runtime>::PulseCount);
        });
    }

    #[test]
    fn old_pulses_are_removed_and_recent_ones_stay() {
        on_beacon(|| {
            for round in [1, 2, PULSES_KEPT, PULSES_KEPT + 1, 5 * PULSES_KEPT] {
                assert_ok!(Drand::write_pulse(
                    RuntimeOrigin::none(),
                    payload(vec![pulse(round)]),
                    None
                ));
                let kept = Pulses::<Runtime>::iter_keys().collect::<Vec<_>>();
                assert!(kept.contains(&round));
                assert!(
                    kept.iter().all(|kept| kept + PULSES_KEPT > round),
                    "{kept:?} at {round}"
                );
            }
        });
    }

    #[test]
    fn root_alone_changes_the_beacon() {
        on_beacon(|| {
            let config_payload = BeaconConfigurationPayload {
                block_number: 1,
                config: BeaconConfiguration::quicknet(),
                public: sr25519::Public::default().into(),
            };
            let anyone =
                Drand::set_beacon_config(RuntimeOrigin::none(), config_payload.clone(), None);
            assert_noop!(anyone, sp_runtime::DispatchError::BadOrigin);
            assert_ok!(Drand::set_beacon_config(
                RuntimeOrigin::root(),
                config_payload.clone(),
                None
            ));
            assert_eq!(
                BeaconConfig::<Runtime>::get(),
                BeaconConfiguration::quicknet()
            );
            let mut short = config_payload;
            short.config.public_key = BoundedVec::default();
            let result = Drand::set_beacon_config(RuntimeOrigin::root(), short, None);
            assert_noop!(result, Error::<Runtime>::InvalidBeaconConfig);
        });
    }

    #[test]
    fn quicknets_round_1000_is_accepted() {
        on_chain(&Genesis::default(), || {
            let signature = hex::decode(
                "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39",
            )
            .expect("hex");
            let randomness = BoundedVec::truncate_from(Sha256::digest(&signature).to_vec());
            let pulse = Pulse {
                round: 1000,
                randomness,
                signature: BoundedVec::truncate_from(signature),
            };
            assert_ok!(Drand::write_pulse(
                RuntimeOrigin::none(),
                payload(vec![pulse]),
                None
            ));
        });
    }
}
