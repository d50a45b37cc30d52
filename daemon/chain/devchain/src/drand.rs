//! The `Drand` pallet: pulses of a randomness beacon, which open timelocked weights.
//!
//! `write_pulse` comes as a bare extrinsic from whoever has the pulses. Nobody need be trusted for it: each pulse is checked
//! against the beacon's public key. Opens no connection: the node brings the pulses.

#![allow(unreachable_pub)] // `frame_support::pallet` makes its items `pub` whatever the module is.
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
