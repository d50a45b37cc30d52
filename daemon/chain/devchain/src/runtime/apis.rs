//! Runtime APIs: what a node answers under `state_call`.
//!
//! [`api::dispatch`] takes the method's name (`Core_version`) and SCALE arguments and gives SCALE bytes, `None` for a
//! method that does not exist; it runs inside externalities and panics on arguments that do not decode.

use frame_support::weights::Weight;
use pallet_transaction_payment::{FeeDetails, RuntimeDispatchInfo};
mod metagraph;
// `decl_runtime_apis` makes its traits `pub` whatever the module is.
#[allow(unreachable_pub)]
mod neurons;
#[allow(unreachable_pub)]
mod stake;
#[allow(unreachable_pub)]
mod subnets;

pub use metagraph::{ChainIdentityV2, Metagraph};
pub use neurons::NeuronInfoLite;
pub use stake::StakeInfo;
pub use subnets::{SubnetHyperparams, SubnetHyperparamsV2};

use sp_api::impl_runtime_apis;
use sp_core::OpaqueMetadata;
use sp_inherents::{CheckInherentsResult, InherentData};
use sp_runtime::{
    ApplyExtrinsicResult, ExtrinsicInclusionMode,
    traits::Block as BlockT,
    transaction_validity::{TransactionSource, TransactionValidity},
};
use sp_version::RuntimeVersion;

use super::{
    AccountId, Balance, Block, Executive, InherentDataExt, Nonce, Runtime, SubtensorModule, System,
    TransactionPayment, UncheckedExtrinsic, current_version,
};

impl_runtime_apis! {
    impl sp_api::Core<Block> for Runtime {
        fn version() -> RuntimeVersion {
            current_version()
        }

        fn execute_block(block: <Block as BlockT>::LazyBlock) {
            Executive::execute_block(block);
        }

        fn initialize_block(header: &<Block as BlockT>::Header) -> ExtrinsicInclusionMode {
            Executive::initialize_block(header)
        }
    }

    impl sp_api::Metadata<Block> for Runtime {
        fn metadata() -> OpaqueMetadata {
            OpaqueMetadata::new(Runtime::metadata().into())
        }

        fn metadata_at_version(version: u32) -> Option<OpaqueMetadata> {
            Runtime::metadata_at_version(version)
        }

        fn metadata_versions() -> Vec<u32> {
            Runtime::metadata_versions()
        }
    }

    impl sp_block_builder::BlockBuilder<Block> for Runtime {
        fn apply_extrinsic(extrinsic: <Block as BlockT>::Extrinsic) -> ApplyExtrinsicResult {
            Executive::apply_extrinsic(extrinsic)
        }

        fn finalize_block() -> <Block as BlockT>::Header {
            Executive::finalize_block()
        }

        fn inherent_extrinsics(data: InherentData) -> Vec<<Block as BlockT>::Extrinsic> {
            data.create_extrinsics()
        }

        fn check_inherents(block: <Block as BlockT>::LazyBlock, data: InherentData) -> CheckInherentsResult {
            data.check_extrinsics(&block)
        }
    }

    impl sp_transaction_pool::runtime_api::TaggedTransactionQueue<Block> for Runtime {
        fn validate_transaction(
            source: TransactionSource,
            extrinsic: UncheckedExtrinsic,
            block: <Block as BlockT>::Hash,
        ) -> TransactionValidity {
            Executive::validate_transaction(source, extrinsic, block)
        }
    }

    impl frame_system_rpc_runtime_api::AccountNonceApi<Block, AccountId, Nonce> for Runtime {
        fn account_nonce(account: AccountId) -> Nonce {
            System::account_nonce(account)
        }
    }

    impl pallet_transaction_payment_rpc_runtime_api::TransactionPaymentApi<Block, Balance> for Runtime {
        fn query_info(extrinsic: UncheckedExtrinsic, bytes: u32) -> RuntimeDispatchInfo<Balance> {
            TransactionPayment::query_info(extrinsic, bytes)
        }

        fn query_fee_details(extrinsic: UncheckedExtrinsic, bytes: u32) -> FeeDetails<Balance> {
            TransactionPayment::query_fee_details(extrinsic, bytes)
        }

        fn query_weight_to_fee(weight: Weight) -> Balance {
            TransactionPayment::weight_to_fee(weight)
        }

        fn query_length_to_fee(bytes: u32) -> Balance {
            TransactionPayment::length_to_fee(bytes)
        }
    }

    impl neurons::NeuronInfoRuntimeApi<Block> for Runtime {
        fn get_neurons_lite(netuid: u16) -> Vec<NeuronInfoLite<AccountId>> {
            neurons::neurons(netuid)
        }

        fn get_neuron_lite(netuid: u16, uid: u16) -> Option<NeuronInfoLite<AccountId>> {
            neurons::neuron(netuid, uid)
        }
    }

    impl subnets::SubnetInfoRuntimeApi<Block> for Runtime {
        fn get_subnet_hyperparams(netuid: u16) -> Option<SubnetHyperparams> {
            subnets::hyperparameters(netuid)
        }

        fn get_subnet_hyperparams_v2(netuid: u16) -> Option<SubnetHyperparamsV2> {
            subnets::hyperparameters_v2(netuid)
        }

        fn get_metagraph(netuid: u16) -> Option<Metagraph<AccountId>> {
            Metagraph::read(netuid)
        }

        fn get_mechagraph(netuid: u16, mecid: u8) -> Option<Metagraph<AccountId>> {
            if mecid == 0 { Metagraph::read(netuid) } else { None }
        }
    }

    impl stake::StakeInfoRuntimeApi<Block> for Runtime {
        fn get_stake_info_for_coldkey(coldkey_account: AccountId) -> Vec<StakeInfo<AccountId>> {
            stake::positions(&coldkey_account)
        }

        fn get_stake_info_for_coldkeys(
            coldkey_accounts: Vec<AccountId>,
        ) -> Vec<(AccountId, Vec<StakeInfo<AccountId>>)> {
            coldkey_accounts
                .into_iter()
                .map(|coldkey| (coldkey.clone(), stake::positions(&coldkey)))
                .collect()
        }

        fn get_stake_info_for_hotkey_coldkey_netuid(
            hotkey_account: AccountId,
            coldkey_account: AccountId,
            netuid: u16,
        ) -> Option<StakeInfo<AccountId>> {
            Some(stake::position(hotkey_account, coldkey_account, netuid))
        }
    }

    impl stake::SubnetRegistrationRuntimeApi<Block> for Runtime {
        fn get_network_registration_cost() -> Balance {
            SubtensorModule::network_lock_cost()
        }
    }

    impl stake::SwapRuntimeApi<Block> for Runtime {
        fn current_alpha_price(netuid: u16) -> Balance {
            stake::alpha_price(netuid)
        }
    }
}
