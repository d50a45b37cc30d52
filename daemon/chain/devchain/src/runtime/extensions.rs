//! Transaction extensions: finney's list, in finney's order, under finney's identifiers.
//!
//! An extension that adds nothing to an extrinsic's bytes there adds nothing here. Four are our own:
//! [`CheckNonce`], because the stock one refuses accounts that do not exist, and a hotkey without a balance must be able to
//! sign the calls that are free; [`SudoTransactionExtension`], which keeps calls of `Sudo` by others out of the pool;
//! [`SubtensorTransactionExtension`], which does the same with calls that are bound to fail; and [`DrandPriority`], which
//! puts pulses first in a block.

use std::marker::PhantomData;

use codec::{Decode, DecodeWithMemTracking, Encode};
use frame_support::{
    DefaultNoBound,
    dispatch::Pays,
    pallet_prelude::{TransactionSource, Weight},
    storage::with_transaction,
    traits::OriginTrait,
};
use frame_system::RawOrigin;
use scale_info::TypeInfo;
use sp_runtime::{
    DispatchError, TransactionOutcome, impl_tx_ext_default,
    traits::{DispatchInfoOf, Dispatchable as _, TransactionExtension, ValidateResult},
    transaction_validity::{
        InvalidTransaction, TransactionLongevity, TransactionValidityError, ValidTransaction,
    },
};

use super::{AccountId, Nonce, Runtime, RuntimeCall, RuntimeOrigin, System};
use crate::{drand, subtensor};

/// What every extrinsic carries beside its call.
pub type TxExtension = (
    frame_system::CheckNonZeroSender<Runtime>,
    frame_system::CheckSpecVersion<Runtime>,
    frame_system::CheckTxVersion<Runtime>,
    frame_system::CheckGenesis<Runtime>,
    frame_system::CheckMortality<Runtime>,
    CheckNonce,
    frame_system::CheckWeight<Runtime>,
    pallet_transaction_payment::ChargeTransactionPayment<Runtime>,
    SudoTransactionExtension<Runtime>,
    SubtensorTransactionExtension<Runtime>,
    DrandPriority<Runtime>,
    frame_metadata_hash_extension::CheckMetadataHash<Runtime>,
);

/// The signer, if the origin is a signed one.
fn signer(origin: &RuntimeOrigin) -> Option<&AccountId> {
    match origin.as_system_ref() {
        Some(RawOrigin::Signed(who)) => Some(who),
        Some(RawOrigin::Root | RawOrigin::None | RawOrigin::Authorized) | None => None,
    }
}

/// Replay protection: an extrinsic carries the number of extrinsics that its signer sent before it.
///
/// As the stock extension, but a call that pays no fee ([`Pays::No`]) may be signed by an account that does not exist; its
/// nonce counts all the same.
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct CheckNonce(#[codec(compact)] pub Nonce);

impl TransactionExtension<RuntimeCall> for CheckNonce {
    const IDENTIFIER: &'static str = "CheckNonce";
    type Implicit = ();
    /// The signer; `None` for an extrinsic without one.
    type Val = Option<AccountId>;
    type Pre = ();

    fn weight(&self, _: &RuntimeCall) -> Weight {
        Weight::zero()
    }

    fn validate(
        &self,
        origin: RuntimeOrigin,
        _: &RuntimeCall,
        info: &DispatchInfoOf<RuntimeCall>,
        _: usize,
        _: (),
        _: &impl Encode,
        _: TransactionSource,
    ) -> ValidateResult<Self::Val, RuntimeCall> {
        let Some(who) = signer(&origin).cloned() else {
            return Ok((ValidTransaction::default(), None, origin));
        };
        let account = System::account(&who);
        let exists = account.providers > 0 || account.sufficients > 0;
        if info.pays_fee == Pays::Yes && !exists {
            return Err(InvalidTransaction::Payment.into());
        }
        if self.0 < account.nonce {
            return Err(InvalidTransaction::Stale.into());
        }
        let tag = |nonce: Nonce| (&who, nonce).encode();
        let validity = ValidTransaction {
            priority: 0,
            requires: if account.nonce < self.0 {
                vec![tag(self.0 - 1)]
            } else {
                Vec::new()
            },
            provides: vec![tag(self.0)],
            longevity: TransactionLongevity::MAX,
            propagate: true,
        };
        Ok((validity, Some(who), origin))
    }

    fn prepare(
        self,
        who: Self::Val,
        _: &RuntimeOrigin,
        _: &RuntimeCall,
        _: &DispatchInfoOf<RuntimeCall>,
        _: usize,
    ) -> Result<(), TransactionValidityError> {
        let Some(who) = who else { return Ok(()) };
        if self.0 > System::account_nonce(&who) {
            return Err(InvalidTransaction::Future.into());
        }
        System::inc_account_nonce(&who);
        Ok(())
    }
}

/// Refuses `Sudo` calls that the sudo key has not signed, before they reach a block.
#[derive(
    Clone, Debug, DefaultNoBound, Eq, PartialEq, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub struct SudoTransactionExtension<T>(PhantomData<T>);

impl TransactionExtension<RuntimeCall> for SudoTransactionExtension<Runtime> {
    const IDENTIFIER: &'static str = "SudoTransactionExtension";
    type Implicit = ();
    type Val = ();
    type Pre = ();

    fn weight(&self, _: &RuntimeCall) -> Weight {
        Weight::zero()
    }

    fn validate(
        &self,
        origin: RuntimeOrigin,
        call: &RuntimeCall,
        _: &DispatchInfoOf<RuntimeCall>,
        _: usize,
        _: (),
        _: &impl Encode,
        _: TransactionSource,
    ) -> ValidateResult<(), RuntimeCall> {
        if let (Some(who), RuntimeCall::Sudo(_)) = (signer(&origin), call)
            && pallet_sudo::Key::<Runtime>::get().as_ref() != Some(who)
        {
            return Err(InvalidTransaction::BadSigner.into());
        }
        Ok((ValidTransaction::default(), (), origin))
    }

    impl_tx_ext_default!(RuntimeCall; prepare);
}

/// Codes of `InvalidTransaction::Custom` that subtensor answers with before a call reaches a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The hotkey's stake is below the threshold.
    StakeAmountTooLow = 1,
    /// Too soon after the last one.
    RateLimitExceeded = 6,
    /// The hotkey is no neuron of the subnet.
    HotKeyNotRegisteredInNetwork = 10,
    /// The address is not one that others can reach.
    InvalidIpAddress = 11,
    /// Too soon after the last announcement.
    ServingRateLimitExceeded = 12,
    /// Port 0.
    InvalidPort = 13,
    /// The round of a timelocked commit has a pulse already.
    InvalidRevealRound = 15,
    /// There is no commit of what is revealed.
    CommitNotFound = 16,
    /// The commit is not to be revealed in this epoch.
    CommitBlockNotInRevealRange = 17,
    /// Lists of different lengths.
    InputLengthsUnequal = 18,
}

impl From<Refusal> for TransactionValidityError {
    fn from(refusal: Refusal) -> Self {
        InvalidTransaction::Custom(refusal as u8).into()
    }
}

impl Refusal {
    /// The code for an error of `SubtensorModule` that is known before the block.
    fn of(error: DispatchError) -> Option<Self> {
        type Error = subtensor::Error<Runtime>;
        let codes = [
            (
                Error::NotEnoughStakeToSetWeights,
                Refusal::StakeAmountTooLow,
            ),
            (
                Error::NetworkTxRateLimitExceeded,
                Refusal::RateLimitExceeded,
            ),
            (
                Error::HotKeyNotRegisteredInNetwork,
                Refusal::HotKeyNotRegisteredInNetwork,
            ),
            (Error::InvalidIpAddress, Refusal::InvalidIpAddress),
            (
                Error::ServingRateLimitExceeded,
                Refusal::ServingRateLimitExceeded,
            ),
            (Error::InvalidPort, Refusal::InvalidPort),
            (Error::NoWeightsCommitFound, Refusal::CommitNotFound),
            (
                Error::InvalidRevealCommitHashNotMatch,
                Refusal::CommitNotFound,
            ),
            (Error::RevealTooEarly, Refusal::CommitBlockNotInRevealRange),
            (
                Error::ExpiredWeightCommit,
                Refusal::CommitBlockNotInRevealRange,
            ),
            (Error::InputLengthsUnequal, Refusal::InputLengthsUnequal),
        ];
        codes
            .into_iter()
            .find_map(|(known, code)| (DispatchError::from(known) == error).then_some(code))
    }
}

/// Refuses calls of `SubtensorModule` that are bound to fail, with the code that subtensor has for the reason.
///
/// The calls that subtensor checks so early (announcements, reveals, weights, commits and new subnets) are carried out and
/// rolled back: what the pallet refuses and what the pool refuses are the same. An error without a code
/// ([`Refusal`]) is left to the block, where it has a name.
#[derive(
    Clone, Debug, DefaultNoBound, Eq, PartialEq, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub struct SubtensorTransactionExtension<T>(PhantomData<T>);

impl SubtensorTransactionExtension<Runtime> {
    fn refusal(origin: &RuntimeOrigin, call: &RuntimeCall) -> Option<Refusal> {
        use subtensor::Call;
        let RuntimeCall::SubtensorModule(inner) = call else {
            return None;
        };
        match inner {
            Call::commit_timelocked_weights { reveal_round, .. }
            | Call::commit_timelocked_mechanism_weights { reveal_round, .. }
                if *reveal_round < drand::LastStoredRound::<Runtime>::get() =>
            {
                return Some(Refusal::InvalidRevealRound);
            }
            Call::set_weights { .. }
            | Call::set_mechanism_weights { .. }
            | Call::batch_set_weights { .. }
            | Call::commit_weights { .. }
            | Call::commit_mechanism_weights { .. }
            | Call::commit_timelocked_weights { .. }
            | Call::commit_timelocked_mechanism_weights { .. }
            | Call::reveal_weights { .. }
            | Call::reveal_mechanism_weights { .. }
            | Call::serve_axon { .. }
            | Call::serve_axon_tls { .. }
            | Call::register_network { .. }
            | Call::register_network_with_identity { .. } => {}
            _ => return None,
        }
        let outcome = with_transaction(|| {
            TransactionOutcome::Rollback(
                call.clone()
                    .dispatch(origin.clone())
                    .map(drop)
                    .map_err(|error| error.error),
            )
        });
        outcome.err().and_then(Refusal::of)
    }
}

impl TransactionExtension<RuntimeCall> for SubtensorTransactionExtension<Runtime> {
    const IDENTIFIER: &'static str = "SubtensorTransactionExtension";
    type Implicit = ();
    type Val = ();
    type Pre = ();

    fn weight(&self, _: &RuntimeCall) -> Weight {
        Weight::zero()
    }

    fn validate(
        &self,
        origin: RuntimeOrigin,
        call: &RuntimeCall,
        _: &DispatchInfoOf<RuntimeCall>,
        _: usize,
        _: (),
        _: &impl Encode,
        _: TransactionSource,
    ) -> ValidateResult<(), RuntimeCall> {
        if signer(&origin).is_some()
            && let Some(refusal) = Self::refusal(&origin, call)
        {
            return Err(refusal.into());
        }
        Ok((ValidTransaction::default(), (), origin))
    }

    impl_tx_ext_default!(RuntimeCall; prepare);
}

/// Puts signed `Drand.write_pulse` calls before everything else in the pool; bare ones get the same priority from the pallet.
#[derive(
    Clone, Debug, DefaultNoBound, Eq, PartialEq, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub struct DrandPriority<T>(PhantomData<T>);

impl TransactionExtension<RuntimeCall> for DrandPriority<Runtime> {
    const IDENTIFIER: &'static str = "DrandPriority";
    type Implicit = ();
    type Val = ();
    type Pre = ();

    fn weight(&self, _: &RuntimeCall) -> Weight {
        Weight::zero()
    }

    fn validate(
        &self,
        origin: RuntimeOrigin,
        call: &RuntimeCall,
        _: &DispatchInfoOf<RuntimeCall>,
        _: usize,
        _: (),
        _: &impl Encode,
        _: TransactionSource,
    ) -> ValidateResult<(), RuntimeCall> {
        let mut validity = ValidTransaction::default();
        if let RuntimeCall::Drand(drand::Call::write_pulse { .. }) = call {
            validity.priority = drand::PULSE_PRIORITY;
        }
        Ok((validity, (), origin))
    }

    impl_tx_ext_default!(RuntimeCall; prepare);
}

#[cfg(test)]
mod tests {
    use sp_runtime::transaction_validity::{
        InvalidTransaction, TransactionSource, TransactionValidityError,
    };

    use super::*;
    use crate::{
        genesis::{Genesis, dev_account},
        runtime::{
            Executive, settings,
            testing::{block, call, on_chain, signed},
        },
    };

    /// A call that pays no fee, by whoever signs it.
    fn free_call() -> RuntimeCall {
        RuntimeCall::Commitments(crate::commitments::Call::set_commitment {
            netuid: 1,
            info: Box::new(crate::commitments::CommitmentInfo {
                fields: Default::default(),
            }),
        })
    }

    fn paying_call() -> RuntimeCall {
        call::transfer(&dev_account("Alice"), 1_000)
    }

    fn invalid<T>(reason: InvalidTransaction) -> Result<T, TransactionValidityError> {
        Err(TransactionValidityError::Invalid(reason))
    }

    fn validity(
        extrinsic: super::super::UncheckedExtrinsic,
    ) -> Result<ValidTransaction, TransactionValidityError> {
        Executive::validate_transaction(TransactionSource::External, extrinsic, Default::default())
    }

    #[test]
    fn account_without_balance_signs_free_calls_and_its_nonce_counts() {
        on_chain(&Genesis::default(), || {
            let hotkey = dev_account("Nobody");
            assert!(!frame_system::Account::<Runtime>::contains_key(&hotkey));
            let results = block([
                signed("Nobody", 0, free_call()),
                signed("Nobody", 1, free_call()),
            ]);
            // Both reach the pallet, which refuses them: the hotkey is no neuron.
            assert!(
                results.iter().all(|result| matches!(result, Ok(Err(_)))),
                "{results:?}"
            );
            assert_eq!(System::account_nonce(&hotkey), 2);
            assert_eq!(
                block([signed("Nobody", 1, free_call())]),
                [invalid(InvalidTransaction::Stale)]
            );
        });
    }

    #[test]
    fn account_without_balance_may_not_sign_calls_that_cost() {
        on_chain(&Genesis::default(), || {
            let extrinsic = signed("Nobody", 0, paying_call());
            assert_eq!(
                validity(extrinsic.clone()),
                invalid(InvalidTransaction::Payment)
            );
            assert_eq!(block([extrinsic]), [invalid(InvalidTransaction::Payment)]);
        });
    }

    #[test]
    fn nonce_ahead_waits_in_the_pool_and_is_refused_in_a_block() {
        on_chain(&Genesis::default(), || {
            let ahead = signed("Bob", 1, paying_call());
            let validity = validity(ahead.clone()).expect("it may wait");
            assert_eq!(validity.requires, [(dev_account("Bob"), 0u32).encode()]);
            assert_eq!(validity.provides, [(dev_account("Bob"), 1u32).encode()]);
            assert_eq!(block([ahead]), [invalid(InvalidTransaction::Future)]);
        });
    }

    #[test]
    fn transfer_pays_a_small_fee() {
        on_chain(&Genesis::default(), || {
            let before = pallet_balances::Pallet::<Runtime>::free_balance(dev_account("Bob"));
            assert_eq!(block([signed("Bob", 0, paying_call())]), [Ok(Ok(()))]);
            let after = pallet_balances::Pallet::<Runtime>::free_balance(dev_account("Bob"));
            let fee = before - after - 1_000;
            assert!((1..10_000_000).contains(&fee), "fee {fee} rao");
        });
    }

    #[test]
    fn sudo_by_another_key_never_reaches_a_block() {
        on_chain(&Genesis::default(), || {
            let sudo = call::sudo(RuntimeCall::System(frame_system::Call::remark {
                remark: Vec::new(),
            }));
            assert_eq!(
                validity(signed("Bob", 0, sudo.clone())),
                invalid(InvalidTransaction::BadSigner)
            );
            assert!(validity(signed("Alice", 0, sudo)).is_ok());
        });
    }

    #[test]
    fn raised_spec_version_makes_older_signatures_bad_and_new_ones_good() {
        on_chain(&Genesis::default(), || {
            let old = signed("Bob", 0, paying_call());
            let raise = RuntimeCall::System(frame_system::Call::set_storage {
                items: vec![(settings::SpecVersion::key().to_vec(), 366u32.encode())],
            });
            assert_eq!(block([signed("Alice", 0, call::sudo(raise))]), [Ok(Ok(()))]);
            assert_eq!(super::super::current_version().spec_version, 366);
            assert_eq!(validity(old), invalid(InvalidTransaction::BadProof));
            assert!(validity(signed("Bob", 0, paying_call())).is_ok());
        });
    }

    #[test]
    fn calls_bound_to_fail_are_refused_with_subtensors_codes() {
        on_chain(&Genesis::default(), || {
            let custom = |refusal: Refusal| invalid(InvalidTransaction::Custom(refusal as u8));
            let serve = |port| call::serve_axon(1, 0x7f00_0001, port);
            assert_eq!(
                validity(signed("Bob", 0, serve(1))),
                custom(Refusal::HotKeyNotRegisteredInNetwork)
            );
            assert_eq!(
                block([signed(
                    "Alice",
                    0,
                    call::register_network(&dev_account("Bob"))
                )]),
                [Ok(Ok(()))]
            );
            assert_eq!(
                validity(signed("Bob", 0, serve(0))),
                custom(Refusal::InvalidPort)
            );
            assert_eq!(block([signed("Bob", 0, serve(1))]), [Ok(Ok(()))]);
            assert_eq!(
                validity(signed("Bob", 1, serve(2))),
                custom(Refusal::ServingRateLimitExceeded)
            );
            let reveal = RuntimeCall::SubtensorModule(subtensor::Call::reveal_weights {
                netuid: 1,
                uids: vec![0],
                values: vec![1],
                salt: vec![2],
                version_key: 0,
            });
            assert_eq!(
                validity(signed("Bob", 1, reveal)),
                custom(Refusal::CommitNotFound)
            );
            drand::LastStoredRound::<Runtime>::put(10);
            let late = RuntimeCall::SubtensorModule(subtensor::Call::commit_timelocked_weights {
                netuid: 1,
                commit: Default::default(),
                reveal_round: 9,
                commit_reveal_version: 4,
            });
            assert_eq!(
                validity(signed("Bob", 1, late)),
                custom(Refusal::InvalidRevealRound)
            );
        });
    }

    #[test]
    fn early_checks_leave_no_trace() {
        on_chain(&Genesis::default(), || {
            let origin = RuntimeOrigin::signed(dev_account("Alice"));
            let register = call::register_network(&dev_account("Bob"));
            assert_eq!(
                SubtensorTransactionExtension::<Runtime>::refusal(&origin, &register),
                None
            );
            assert!(!subtensor::NetworksAdded::<Runtime>::get(1));
        });
    }
}
