//! A chain in a test: blocks, and extrinsics of the development keys.

use sp_core::{Pair as _, sr25519};
use sp_io::TestExternalities;
use sp_runtime::{
    ApplyExtrinsicResult, MultiSignature, generic, generic::Era, traits::Header as _,
};

use super::{
    AccountId, Balance, Executive, Header, Runtime, RuntimeCall, System, TxExtension,
    UncheckedExtrinsic, extensions::CheckNonce, settings,
};
use crate::genesis::{Genesis, dev_account};

/// Runs `test` in block 1 of a chain that starts with `genesis`.
pub(crate) fn on_chain(genesis: &Genesis, test: impl FnOnce()) {
    TestExternalities::new(genesis.storage()).execute_with(|| {
        block([]);
        test();
    });
}

/// Makes a block of these extrinsics and says what became of each.
pub(crate) fn block<const N: usize>(
    extrinsics: [UncheckedExtrinsic; N],
) -> [ApplyExtrinsicResult; N] {
    let number = System::block_number() + 1;
    let none = Default::default();
    Executive::initialize_block(&Header::new(
        number,
        none,
        none,
        System::parent_hash(),
        Default::default(),
    ));
    let block_ms: u64 = settings::BlockTimeMs::get();
    let now = u64::from(number) * block_ms;
    let inherent =
        UncheckedExtrinsic::new_bare(RuntimeCall::Timestamp(pallet_timestamp::Call::set { now }));
    assert_eq!(Executive::apply_extrinsic(inherent), Ok(Ok(())));
    let results = extrinsics.map(Executive::apply_extrinsic);
    Executive::finalize_block();
    results
}

/// An immortal extrinsic of the development key `//NAME`.
pub(crate) fn signed(name: &str, nonce: u32, call: RuntimeCall) -> UncheckedExtrinsic {
    let extension: TxExtension = (
        frame_system::CheckNonZeroSender::new(),
        frame_system::CheckSpecVersion::new(),
        frame_system::CheckTxVersion::new(),
        frame_system::CheckGenesis::new(),
        frame_system::CheckMortality::from(Era::Immortal),
        CheckNonce(nonce),
        frame_system::CheckWeight::new(),
        pallet_transaction_payment::ChargeTransactionPayment::<Runtime>::from(0),
        Default::default(),
        Default::default(),
        Default::default(),
        frame_metadata_hash_extension::CheckMetadataHash::new(false),
    );
    let key =
        sr25519::Pair::from_string(&format!("//{name}"), None).expect("the derivation parses");
    let payload = generic::SignedPayload::new(call, extension)
        .expect("the extensions have their implicit data");
    let signature = MultiSignature::Sr25519(codec::Encode::using_encoded(&payload, |bytes| {
        key.sign(bytes)
    }));
    let (call, extension, _) = payload.deconstruct();
    UncheckedExtrinsic::new_signed(call, dev_account(name).into(), signature, extension)
}

/// Calls that several tests make.
pub(crate) mod call {
    use super::{AccountId, Balance, RuntimeCall};
    use crate::subtensor;

    pub(crate) fn transfer(to: &AccountId, value: Balance) -> RuntimeCall {
        RuntimeCall::Balances(pallet_balances::Call::transfer_keep_alive {
            dest: to.clone().into(),
            value,
        })
    }

    pub(crate) fn sudo(inner: RuntimeCall) -> RuntimeCall {
        RuntimeCall::Sudo(pallet_sudo::Call::sudo {
            call: Box::new(inner),
        })
    }

    pub(crate) fn register_network(hotkey: &AccountId) -> RuntimeCall {
        RuntimeCall::SubtensorModule(subtensor::Call::register_network {
            hotkey: hotkey.clone(),
        })
    }

    pub(crate) fn serve_axon(netuid: u16, ip: u128, port: u16) -> RuntimeCall {
        RuntimeCall::SubtensorModule(subtensor::Call::serve_axon {
            netuid,
            version: 0,
            ip,
            port,
            ip_type: 4,
            protocol: 4,
            placeholder1: 0,
            placeholder2: 0,
        })
    }
}
