//! The `Commitments` pallet: a few bytes per neuron and subnet that anyone can read.
//!
//! One commitment per (subnet, hotkey), overwritten by the next. What a hotkey may write is bounded per epoch of the
//! subnet: each call is charged the bytes of its fields, at least [`CHARGE_MIN`], against `MaxSpace`.
//! Nothing here decrypts: a `TimelockEncrypted` field stays as it came.

#![allow(unreachable_pub)] // `frame_support::pallet` makes its items `pub` whatever the module is.

mod types;

pub use pallet::*;
pub use types::{CommitmentInfo, Data, Registration, UsageTracker};

/// Bytes that a call is charged at least.
pub const CHARGE_MIN: u64 = 100;

/// What this pallet asks of the subnets.
pub trait Subnets<AccountId> {
    /// Whether `hotkey` is a neuron of `netuid`.
    fn may_commit(netuid: u16, hotkey: &AccountId) -> bool;
    /// Number of the epoch of `netuid` that the current block belongs to: the period that `MaxSpace` counts in.
    fn epoch(netuid: u16) -> u64;
    /// `hotkey` committed a `ResetBondsFlag`.
    fn reset_bonds(netuid: u16, hotkey: &AccountId);
}

#[frame_support::pallet]
mod pallet {
    use frame_support::pallet_prelude::*;
    use frame_system::pallet_prelude::*;

    use super::{CHARGE_MIN, CommitmentInfo, Data, Registration, Subnets, UsageTracker};

    #[pallet::pallet]
    #[pallet::without_storage_info]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config<RuntimeEvent: From<Event<Self>>> {
        /// Fields that a commitment may have.
        #[pallet::constant]
        type MaxFields: Get<u32> + 'static;
        /// Who is registered where.
        type Subnets: Subnets<Self::AccountId>;
    }

    #[pallet::event]
    #[pallet::generate_deposit(fn deposit_event)]
    pub enum Event<T: Config> {
        /// A commitment was set.
        Commitment {
            /// Subnet.
            netuid: u16,
            /// Hotkey.
            who: T::AccountId,
        },
        /// A commitment with an encrypted field was set.
        TimelockCommitment {
            /// Subnet.
            netuid: u16,
            /// Hotkey.
            who: T::AccountId,
            /// Round of the beacon that opens the field.
            reveal_round: u64,
        },
    }

    #[pallet::error]
    pub enum Error<T> {
        /// More fields than `MaxFields`.
        TooManyFieldsInCommitmentInfo,
        /// The signer is no neuron of the subnet.
        AccountNotAllowedCommit,
        /// The signer has used its bytes of this epoch.
        SpaceLimitExceeded,
        /// Kept for its index: this chain takes no deposit.
        UnexpectedUnreserveLeftover,
    }

    #[pallet::type_value]
    pub fn DefaultMaxSpace() -> u32 {
        3100
    }

    /// Bytes per (subnet, hotkey) and epoch.
    #[pallet::storage]
    pub type MaxSpace<T> = StorageValue<_, u32, ValueQuery, DefaultMaxSpace>;

    /// The commitment in force.
    #[pallet::storage]
    pub type CommitmentOf<T: Config> = StorageDoubleMap<
        _,
        Identity,
        u16,
        Twox64Concat,
        T::AccountId,
        Registration<u64, T::MaxFields, BlockNumberFor<T>>,
        OptionQuery,
    >;

    /// Block of the newest commitment.
    #[pallet::storage]
    pub type LastCommitment<T: Config> = StorageDoubleMap<
        _,
        Identity,
        u16,
        Twox64Concat,
        T::AccountId,
        BlockNumberFor<T>,
        OptionQuery,
    >;

    /// Opened commitments, with the block of each. Always empty here.
    #[pallet::storage]
    pub type RevealedCommitments<T: Config> = StorageDoubleMap<
        _,
        Identity,
        u16,
        Twox64Concat,
        T::AccountId,
        Vec<(Vec<u8>, u64)>,
        OptionQuery,
    >;

    /// Bytes used in the epoch of the newest commitment.
    #[pallet::storage]
    pub type UsedSpaceOf<T: Config> =
        StorageDoubleMap<_, Identity, u16, Twox64Concat, T::AccountId, UsageTracker, OptionQuery>;

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        /// Sets the signer's commitment on `netuid`. Free.
        ///
        /// # Errors
        /// `AccountNotAllowedCommit`, `TooManyFieldsInCommitmentInfo`, `SpaceLimitExceeded`, checked in this order.
        #[pallet::call_index(0)]
        #[pallet::weight((Weight::from_parts(50_000_000, 0), DispatchClass::Normal, Pays::No))]
        pub fn set_commitment(
            origin: OriginFor<T>,
            netuid: u16,
            info: Box<CommitmentInfo<T::MaxFields>>,
        ) -> DispatchResult {
            let who = ensure_signed(origin)?;
            ensure!(
                T::Subnets::may_commit(netuid, &who),
                Error::<T>::AccountNotAllowedCommit
            );
            ensure!(
                info.fields.len() <= usize::try_from(T::MaxFields::get()).unwrap_or(usize::MAX),
                Error::<T>::TooManyFieldsInCommitmentInfo
            );

            let epoch = T::Subnets::epoch(netuid);
            let mut usage = UsedSpaceOf::<T>::get(netuid, &who).unwrap_or_default();
            if usage.last_epoch != epoch {
                usage = UsageTracker {
                    last_epoch: epoch,
                    used_space: 0,
                };
            }
            let bytes: u64 = info.fields.iter().map(Data::charged_bytes).sum();
            usage.used_space = usage.used_space.saturating_add(bytes.max(CHARGE_MIN));
            ensure!(
                usage.used_space <= u64::from(MaxSpace::<T>::get()),
                Error::<T>::SpaceLimitExceeded
            );

            let block = frame_system::Pallet::<T>::block_number();
            if info.fields.contains(&Data::ResetBondsFlag) {
                T::Subnets::reset_bonds(netuid, &who);
            }
            let reveal_round = info.fields.iter().find_map(Data::reveal_round);
            UsedSpaceOf::<T>::insert(netuid, &who, usage);
            LastCommitment::<T>::insert(netuid, &who, block);
            CommitmentOf::<T>::insert(
                netuid,
                &who,
                Registration {
                    deposit: 0,
                    block,
                    info: *info,
                },
            );
            Self::deposit_event(match reveal_round {
                Some(reveal_round) => Event::TimelockCommitment {
                    netuid,
                    who,
                    reveal_round,
                },
                None => Event::Commitment { netuid, who },
            });
            Ok(())
        }

        /// Sets the bytes per (subnet, hotkey) and epoch. Root only.
        #[pallet::call_index(2)]
        #[pallet::weight((Weight::from_parts(10_000_000, 0), DispatchClass::Operational, Pays::No))]
        pub fn set_max_space(origin: OriginFor<T>, new_limit: u32) -> DispatchResult {
            ensure_root(origin)?;
            MaxSpace::<T>::put(new_limit);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use frame_support::{BoundedVec, assert_noop, assert_ok};
    use sp_runtime::DispatchResult;

    use super::{
        CommitmentInfo, CommitmentOf, Data, Error, LastCommitment, UsageTracker, UsedSpaceOf,
    };
    use crate::{
        genesis::{Genesis, dev_account},
        runtime::{
            Commitments, Runtime, RuntimeOrigin,
            testing::{block, on_chain},
        },
        subtensor,
    };

    /// A chain with subnet 1, of which Bob is the only neuron, and an epoch every 10 blocks.
    fn on_subnet(test: impl FnOnce()) {
        on_chain(&Genesis::default(), || {
            let owner = RuntimeOrigin::signed(dev_account("Alice"));
            assert_ok!(subtensor::Pallet::<Runtime>::register_network(
                owner,
                dev_account("Bob")
            ));
            test();
        });
    }

    fn raw(bytes: usize) -> Data {
        Data::Raw(BoundedVec::truncate_from(vec![7; bytes]))
    }

    fn commit(name: &str, fields: &[Data]) -> DispatchResult {
        let fields = fields.to_vec().try_into().expect("at most three fields");
        let info = Box::new(CommitmentInfo { fields });
        Commitments::set_commitment(RuntimeOrigin::signed(dev_account(name)), 1, info)
    }

    #[test]
    fn commitment_replaces_the_one_before_it() {
        on_subnet(|| {
            let bob = dev_account("Bob");
            assert_ok!(commit("Bob", &[raw(5)]));
            block([]);
            assert_ok!(commit("Bob", &[Data::Sha256([1; 32]), raw(3)]));
            let registration = CommitmentOf::<Runtime>::get(1, &bob).expect("it was set");
            assert_eq!((registration.deposit, registration.block), (0, 2));
            assert_eq!(
                registration.info.fields.as_slice(),
                [Data::Sha256([1; 32]), raw(3)]
            );
            assert_eq!(LastCommitment::<Runtime>::get(1, &bob), Some(2));
        });
    }

    #[test]
    fn stranger_may_not_commit() {
        on_subnet(|| {
            assert_noop!(
                commit("Charlie", &[raw(5)]),
                Error::<Runtime>::AccountNotAllowedCommit
            );
        });
    }

    #[test]
    fn each_commitment_is_charged_its_bytes_and_at_least_a_hundred() {
        on_subnet(|| {
            let used = || UsedSpaceOf::<Runtime>::get(1, dev_account("Bob"));
            assert_ok!(commit("Bob", &[raw(5)]));
            assert_eq!(
                used(),
                Some(UsageTracker {
                    last_epoch: 0,
                    used_space: 100
                })
            );
            assert_ok!(commit(
                "Bob",
                &[raw(128), Data::Sha256([0; 32]), Data::BlakeTwo256([0; 32])]
            ));
            assert_eq!(
                used(),
                Some(UsageTracker {
                    last_epoch: 0,
                    used_space: 100 + 192
                })
            );
        });
    }

    #[test]
    fn space_of_an_epoch_ends_with_the_thirty_first_small_commitment_and_comes_back() {
        on_subnet(|| {
            for _ in 0..31 {
                assert_ok!(commit("Bob", &[raw(5)]));
            }
            assert_noop!(
                commit("Bob", &[raw(5)]),
                Error::<Runtime>::SpaceLimitExceeded
            );
            let epoch = subtensor::SubnetEpochIndex::<Runtime>::get(1);
            while subtensor::SubnetEpochIndex::<Runtime>::get(1) == epoch {
                block([]);
            }
            assert_ok!(commit("Bob", &[raw(5)]));
        });
    }

    #[test]
    fn root_alone_changes_the_space() {
        on_subnet(|| {
            let bob = RuntimeOrigin::signed(dev_account("Bob"));
            assert_noop!(
                Commitments::set_max_space(bob, 10),
                sp_runtime::DispatchError::BadOrigin
            );
            assert_ok!(Commitments::set_max_space(RuntimeOrigin::root(), 99));
            assert_noop!(
                commit("Bob", &[raw(5)]),
                Error::<Runtime>::SpaceLimitExceeded
            );
        });
    }

    #[test]
    fn reset_flag_clears_the_bonds_in_the_neuron() {
        on_subnet(|| {
            subtensor::Bonds::<Runtime>::insert(1, 0, vec![(0, 9), (1, 8)]);
            assert_ok!(commit("Bob", &[Data::ResetBondsFlag]));
            assert_eq!(subtensor::Bonds::<Runtime>::get(1, 0), [(1, 8)]);
        });
    }
}
