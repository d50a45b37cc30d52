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

#[cfg(test)]
mod tests {
    use codec::{Compact, Decode, Encode};
    use frame_support::assert_ok;

    use super::*;
    use crate::{
        genesis::{Genesis, dev_account},
        runtime::{
            RuntimeOrigin, settings,
            testing::{block, on_chain, signed},
        },
        subtensor::SubnetIdentityV3,
    };

    /// Asks an API as `state_call` does.
    fn ask<T: Decode>(method: &str, arguments: impl Encode) -> T {
        let answer = api::dispatch(method, &arguments.encode()).expect("the method exists");
        T::decode(&mut &answer[..]).expect("the answer decodes")
    }

    /// A chain with subnet 1: Alice owns it with hotkey Bob (uid 0), Charlie has hotkey Dave (uid 1) and 5 TAO of stake.
    fn on_subnet(test: impl FnOnce()) {
        on_chain(&Genesis::default(), || {
            let identity = SubnetIdentityV3 {
                subnet_name: b"gradmesh".to_vec(),
                ..Default::default()
            };
            let (alice, charlie) = (dev_account("Alice"), dev_account("Charlie"));
            let (bob, dave) = (dev_account("Bob"), dev_account("Dave"));
            let register = SubtensorModule::register_network_with_identity;
            assert_ok!(register(
                RuntimeOrigin::signed(alice.clone()),
                bob,
                Some(identity)
            ));
            assert_ok!(SubtensorModule::start_call(RuntimeOrigin::signed(alice), 1));
            let charlie = RuntimeOrigin::signed(charlie);
            assert_ok!(SubtensorModule::burned_register(
                charlie.clone(),
                1,
                dave.clone()
            ));
            assert_ok!(SubtensorModule::add_stake(charlie, dave, 1, 5_000_000_000));
            block([]);
            test();
        });
    }

    #[test]
    fn metagraph_tells_of_the_subnet_and_of_each_neuron() {
        on_subnet(|| {
            let graph: Option<Metagraph<AccountId>> =
                ask("SubnetInfoRuntimeApi_get_metagraph", 1u16);
            let graph = graph.expect("the subnet exists");
            assert_eq!(
                (
                    graph.netuid.0,
                    graph.num_uids.0,
                    graph.block.0,
                    graph.tempo.0
                ),
                (1, 2, 2, 10)
            );
            assert_eq!(
                graph.name,
                b"gradmesh".iter().copied().map(Compact).collect::<Vec<_>>()
            );
            assert_eq!(graph.owner_coldkey, dev_account("Alice"));
            assert_eq!(graph.hotkeys, [dev_account("Bob"), dev_account("Dave")]);
            assert_eq!(
                graph.coldkeys,
                [dev_account("Alice"), dev_account("Charlie")]
            );
            assert_eq!(graph.alpha_stake, [Compact(0), Compact(5_000_000_000)]);
            assert_eq!(graph.total_stake, graph.alpha_stake);
            assert_eq!(graph.block_at_registration, [Compact(1), Compact(1)]);
            assert_eq!(graph.tao_in_emission, Compact(1_000_000_000));
            let lists = [
                graph.axons.len(),
                graph.active.len(),
                graph.incentives.len(),
                graph.tao_stake.len(),
            ];
            assert_eq!(lists, [2; 4]);
        });
    }

    #[test]
    fn missing_subnets_and_mechanisms_have_no_metagraph() {
        on_subnet(|| {
            type Answer = Option<Metagraph<AccountId>>;
            assert!(ask::<Answer>("SubnetInfoRuntimeApi_get_metagraph", 2u16).is_none());
            assert!(ask::<Answer>("SubnetInfoRuntimeApi_get_mechagraph", (1u16, 0u8)).is_some());
            assert!(ask::<Answer>("SubnetInfoRuntimeApi_get_mechagraph", (1u16, 1u8)).is_none());
        });
    }

    #[test]
    fn neurons_lite_agree_with_one_neuron() {
        on_subnet(|| {
            let all: Vec<NeuronInfoLite<AccountId>> =
                ask("NeuronInfoRuntimeApi_get_neurons_lite", 1u16);
            assert_eq!(all.len(), 2);
            assert_eq!(
                all[1].stake,
                [(dev_account("Charlie"), Compact(5_000_000_000))]
            );
            let one: Option<NeuronInfoLite<AccountId>> =
                ask("NeuronInfoRuntimeApi_get_neuron_lite", (1u16, 1u16));
            assert_eq!(one.as_ref(), all.get(1));
            let none: Option<NeuronInfoLite<AccountId>> =
                ask("NeuronInfoRuntimeApi_get_neuron_lite", (1u16, 2u16));
            assert_eq!(none, None);
        });
    }

    #[test]
    fn both_versions_of_hyperparameters_say_the_same() {
        on_subnet(|| {
            let first: Option<SubnetHyperparams> =
                ask("SubnetInfoRuntimeApi_get_subnet_hyperparams", 1u16);
            let second: Option<SubnetHyperparamsV2> =
                ask("SubnetInfoRuntimeApi_get_subnet_hyperparams_v2", 1u16);
            let (first, second) = (first.expect("it exists"), second.expect("it exists"));
            assert!(second.encode().starts_with(&first.encode()));
            assert_eq!(
                (first.tempo.0, first.kappa.0, first.weights_rate_limit.0),
                (10, 32_767, 5)
            );
            assert!(second.subnet_is_active);
            let missing: Option<SubnetHyperparams> =
                ask("SubnetInfoRuntimeApi_get_subnet_hyperparams", 9u16);
            assert_eq!(missing, None);
        });
    }

    #[test]
    fn stake_is_listed_where_there_is_some() {
        on_subnet(|| {
            let charlie = dev_account("Charlie");
            let listed: Vec<StakeInfo<AccountId>> =
                ask("StakeInfoRuntimeApi_get_stake_info_for_coldkey", &charlie);
            assert_eq!(listed.len(), 1);
            assert_eq!(
                (
                    listed[0].netuid.0,
                    listed[0].stake.0,
                    listed[0].is_registered
                ),
                (1, 5_000_000_000, true)
            );
            let arguments = (dev_account("Dave"), &charlie, 1u16);
            let one: Option<StakeInfo<AccountId>> = ask(
                "StakeInfoRuntimeApi_get_stake_info_for_hotkey_coldkey_netuid",
                arguments,
            );
            assert_eq!(one.as_ref(), listed.first());
        });
    }

    #[test]
    fn prices_are_told() {
        on_subnet(|| {
            let price: Balance = ask("SwapRuntimeApi_current_alpha_price", 1u16);
            assert_eq!(price, 1_000_000_000);
            let cost: Balance = ask(
                "SubnetRegistrationRuntimeApi_get_network_registration_cost",
                (),
            );
            assert_eq!(cost, SubtensorModule::network_lock_cost());
        });
    }

    #[test]
    fn version_and_metadata_follow_a_raised_spec_version() {
        on_chain(&Genesis::default(), || {
            assert_eq!(ask::<RuntimeVersion>("Core_version", ()).spec_version, 365);
            settings::SpecVersion::set(&400);
            assert_eq!(ask::<RuntimeVersion>("Core_version", ()).spec_version, 400);
            let metadata: OpaqueMetadata = ask("Metadata_metadata", ());
            let version = current_version().encode();
            assert!(
                metadata
                    .windows(version.len())
                    .any(|bytes| bytes == version)
            );
        });
    }

    #[test]
    fn unknown_method_has_no_answer() {
        on_chain(&Genesis::default(), || {
            assert_eq!(api::dispatch("Core_versions", &[]), None)
        });
    }

    #[test]
    fn nonce_counts_extrinsics() {
        on_chain(&Genesis::default(), || {
            let remark = super::super::RuntimeCall::System(frame_system::Call::remark {
                remark: Vec::new(),
            });
            assert_eq!(block([signed("Bob", 0, remark)]), [Ok(Ok(()))]);
            assert_eq!(
                ask::<Nonce>("AccountNonceApi_account_nonce", dev_account("Bob")),
                1
            );
        });
    }
}
