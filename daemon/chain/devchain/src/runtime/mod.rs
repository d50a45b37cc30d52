//! The runtime: which pallets at which index, with which limits and fees.
//!
//! Names, indices, limits and the list of transaction extensions are finney's at spec 365 (tests/data/finney-365.txt);
//! tests/conformance.rs holds this runtime's own metadata against them.

pub mod apis;
mod bindings;
pub mod extensions;
pub mod settings;
#[cfg(test)]
pub(crate) mod testing;

use std::borrow::Cow;

use frame_support::{
    construct_runtime, derive_impl, parameter_types,
    traits::{ConstU8, ConstU16, ConstU32, ConstU64, Get},
    weights::{ConstantMultiplier, Weight, WeightToFee},
};
use frame_system::limits::BlockWeights;
use sp_runtime::{
    AccountId32, MultiAddress, MultiSignature, generic,
    traits::{AccountIdLookup, BlakeTwo256},
};
use sp_version::RuntimeVersion;

use crate::{admin_utils, aura, commitments, drand, subtensor};

pub use extensions::TxExtension;

/// An account: an sr25519 public key.
pub type AccountId = AccountId32;
/// Index of an extrinsic among those of its signer.
pub type Nonce = u32;
/// An amount of TAO in RAO (1 TAO = 1e9 RAO), or of a subnet's alpha in its smallest unit.
pub type Balance = u64;
/// BLAKE2b-256.
pub type Hash = sp_core::H256;
/// How extrinsics name an account.
pub type Address = MultiAddress<AccountId, ()>;
/// Header of a block.
pub type Header = generic::Header<u32, BlakeTwo256>;
/// An extrinsic as it stands in a block.
pub type UncheckedExtrinsic =
    generic::UncheckedExtrinsic<Address, RuntimeCall, MultiSignature, TxExtension>;
/// A block.
pub type Block = generic::Block<Header, UncheckedExtrinsic>;
/// Runs blocks.
pub type Executive = frame_executive::Executive<
    Runtime,
    Block,
    frame_system::ChainContext<Runtime>,
    Runtime,
    AllPalletsWithSystem,
>;

/// Version at genesis. [`current_version`] has the spec version that holds now.
pub const VERSION: RuntimeVersion = RuntimeVersion {
    spec_name: Cow::Borrowed("node-subtensor"),
    impl_name: Cow::Borrowed("gradmesh-devchain"),
    authoring_version: 1,
    spec_version: 365,
    impl_version: 1,
    apis: apis::RUNTIME_API_VERSIONS,
    transaction_version: 1,
    system_version: 1,
};

/// [`VERSION`] with the spec version of [`settings::SpecVersion`]. Reads storage: call it inside externalities.
pub fn current_version() -> RuntimeVersion {
    RuntimeVersion {
        spec_version: settings::SpecVersion::get(),
        ..VERSION
    }
}

/// [`current_version`] for `frame_system`.
pub struct Version;

impl Get<RuntimeVersion> for Version {
    fn get() -> RuntimeVersion {
        current_version()
    }
}

/// Weight that a block may hold: 4 s of computing, as on finney. Only work sent in extrinsics counts.
const BLOCK_WEIGHT_MAX: Weight = Weight::from_parts(4_000_000_000_000, u64::MAX);
/// RAO per byte of a paying extrinsic. Ours.
const FEE_PER_BYTE_RAO: u64 = 100;
/// Units of weight (picoseconds) per RAO of fee: an extrinsic of 100 us costs 0.0001 TAO. Ours.
const WEIGHT_PER_RAO: u64 = 1_000;

parameter_types! {
    pub RuntimeBlockWeights: BlockWeights = BlockWeights::simple_max(BLOCK_WEIGHT_MAX);
}

construct_runtime!(
    pub enum Runtime {
        System: frame_system = 0,
        Timestamp: pallet_timestamp = 2,
        Aura: aura = 3,
        Balances: pallet_balances = 5,
        TransactionPayment: pallet_transaction_payment = 6,
        SubtensorModule: subtensor = 7,
        Utility: pallet_utility = 11,
        Sudo: pallet_sudo = 12,
        Commitments: commitments = 18,
        AdminUtils: admin_utils = 19,
        Drand: drand = 26,
    }
);

#[derive_impl(frame_system::config_preludes::SolochainDefaultConfig)]
impl frame_system::Config for Runtime {
    type Block = Block;
    type BlockHashCount = ConstU32<2400>;
    type BlockWeights = RuntimeBlockWeights;
    type Version = Version;
    type SS58Prefix = ConstU16<42>;
    type AccountId = AccountId;
    type Lookup = AccountIdLookup<AccountId, ()>;
    type AccountData = pallet_balances::AccountData<Balance>;
}

impl pallet_timestamp::Config for Runtime {
    type Moment = u64;
    type OnTimestampSet = ();
    type MinimumPeriod = ConstU64<0>;
    type WeightInfo = ();
}

impl aura::Config for Runtime {
    type SlotDuration = settings::BlockTimeMs;
}

#[derive_impl(pallet_balances::config_preludes::TestDefaultConfig)]
impl pallet_balances::Config for Runtime {
    type Balance = Balance;
    type ExistentialDeposit = ConstU64<500>;
    type AccountStore = System;
    type MaxLocks = ConstU32<50>;
    type MaxReserves = ConstU32<50>;
    type MaxFreezes = ConstU32<50>;
}

/// The part of a fee that is for weight.
pub struct WeightFee;

impl WeightToFee for WeightFee {
    type Balance = Balance;

    fn weight_to_fee(weight: &Weight) -> Balance {
        weight.ref_time() / WEIGHT_PER_RAO
    }
}

#[derive_impl(pallet_transaction_payment::config_preludes::TestDefaultConfig)]
impl pallet_transaction_payment::Config for Runtime {
    type OnChargeTransaction = pallet_transaction_payment::FungibleAdapter<Balances, ()>;
    type WeightToFee = WeightFee;
    type LengthToFee = ConstantMultiplier<Balance, ConstU64<FEE_PER_BYTE_RAO>>;
    type FeeMultiplierUpdate = ();
    type OperationalFeeMultiplier = ConstU8<5>;
}

impl pallet_utility::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type RuntimeCall = RuntimeCall;
    type PalletsOrigin = OriginCaller;
    type WeightInfo = ();
}

impl pallet_sudo::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type RuntimeCall = RuntimeCall;
    type WeightInfo = ();
}

impl commitments::Config for Runtime {
    type MaxFields = ConstU32<3>;
    type Subnets = bindings::Neurons;
}

impl drand::Config for Runtime {
    type Verifier = bindings::QuicknetScheme;
}

impl subtensor::Config for Runtime {
    type Currency = Balances;
    type Beacon = bindings::StoredPulses;
    type Timelock = bindings::QuicknetScheme;
    type InitialParameters = settings::SubnetParameters;
    type LoopbackAxons = settings::LoopbackAxons;
    type BlockEmission = settings::BlockEmissionRao;
}

impl admin_utils::Config for Runtime {}
