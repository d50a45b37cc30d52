//! Transaction extensions: finney's list, in finney's order, under finney's identifiers.
//!
//! An extension that adds nothing to an extrinsic's bytes there adds nothing here. Three are our own:
//! [`CheckNonce`], because the stock one refuses accounts that do not exist, and a hotkey without a balance must be able to
//! sign the calls that are free; [`SudoTransactionExtension`], which keeps calls of `Sudo` by others out of the pool; and
//! [`DrandPriority`], which puts pulses first in a block.

use std::marker::PhantomData;

use codec::{Decode, DecodeWithMemTracking, Encode};
use frame_support::{
    dispatch::Pays,
    pallet_prelude::{TransactionSource, Weight},
    traits::OriginTrait,
};
use frame_system::RawOrigin;
use scale_info::TypeInfo;
use sp_runtime::{
    impl_tx_ext_default,
    traits::{DispatchInfoOf, TransactionExtension, ValidateResult},
    transaction_validity::{
        InvalidTransaction, TransactionLongevity, TransactionValidityError, ValidTransaction,
    },
};

use super::{AccountId, Nonce, Runtime, RuntimeCall, RuntimeOrigin, System};
use crate::drand;

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
#[derive(Clone, Debug, Default, Eq, PartialEq, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
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

/// Puts signed `Drand.write_pulse` calls before everything else in the pool; bare ones get the same priority from the pallet.
#[derive(Clone, Debug, Default, Eq, PartialEq, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
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
