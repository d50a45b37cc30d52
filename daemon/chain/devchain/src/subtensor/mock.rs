//! A runtime of three pallets, whose accounts are numbers, and one subnet to start a test from.

use std::cell::RefCell;
use std::collections::BTreeMap;

use codec::Encode;
use frame_support::derive_impl;
use frame_support::traits::{ConstU64, Get, OnInitialize};
use sp_io::TestExternalities;
use sp_runtime::BuildStorage;

use super::*;

frame_support::construct_runtime!(
    pub enum Test {
        System: frame_system = 0,
        Balances: pallet_balances = 5,
        SubtensorModule: crate::subtensor = 7,
    }
);

#[derive_impl(frame_system::config_preludes::TestDefaultConfig)]
impl frame_system::Config for Test {
    type Block = frame_system::mocking::MockBlock<Test>;
    type AccountData = pallet_balances::AccountData<u64>;
}

#[derive_impl(pallet_balances::config_preludes::TestDefaultConfig)]
impl pallet_balances::Config for Test {
    type AccountStore = System;
    type Balance = u64;
    type ExistentialDeposit = ConstU64<500>;
}

impl Config for Test {
    type Currency = Balances;
    type Beacon = Pulses;
    type Timelock = Prefix;
    type InitialParameters = FastParameters;
    type LoopbackAxons = LoopbackAxons;
    type BlockEmission = ConstU64<BLOCK_EMISSION>;
}

/// Not a round number, so that floors show.
pub const BLOCK_EMISSION: u64 = 1_000_000_007;

/// One TAO, in rao.
pub const TAO: u64 = 1_000_000_000;

/// The subnet that [`with_subnet`] starts from.
pub const NETUID: u16 = 1;

/// What every coldkey starts with, in rao.
pub const ENDOWMENT: u64 = 1_000_000 * TAO;

/// Accounts with funds.
pub const COLDKEYS: std::ops::RangeInclusive<u64> = 1..=9;

/// Owner of the subnet, and its hotkey, which holds uid 0.
pub const OWNER: u64 = 1;
pub const OWNER_HOTKEY: u64 = 101;

thread_local! {
    static PULSES: RefCell<BTreeMap<u64, Vec<u8>>> = RefCell::default();
    static LOOPBACK_AXONS: RefCell<bool> = RefCell::default();
}

pub struct Pulses;

impl Beacon for Pulses {
    fn signature(round: u64) -> Option<Vec<u8>> {
        PULSES.with_borrow(|pulses| pulses.get(&round).cloned())
    }
}

/// Opens what begins with the signature.
pub struct Prefix;

impl Timelock for Prefix {
    fn decrypt(ciphertext: &[u8], signature: &[u8]) -> Option<Vec<u8>> {
        ciphertext.strip_prefix(signature).map(<[u8]>::to_vec)
    }
}

pub struct LoopbackAxons;

impl Get<bool> for LoopbackAxons {
    fn get() -> bool {
        LOOPBACK_AXONS.with_borrow(|allowed| *allowed)
    }
}

/// Short times; prices and sizes as on the public chain.
pub struct FastParameters;

impl Get<InitialParameters> for FastParameters {
    fn get() -> InitialParameters {
        InitialParameters {
            tempo: 10,
            immunity_period: 20,
            weights_set_rate_limit: 5,
            serving_rate_limit: 4,
            network_rate_limit: 30,
            start_call_delay: 3,
            ..InitialParameters::default()
        }
    }
}

/// Runs `test` at block 1 of a chain with funded coldkeys and no subnet.
pub fn on_new_chain(test: impl FnOnce()) {
    PULSES.with_borrow_mut(BTreeMap::clear);
    set_loopback_axons(false);
    let genesis = RuntimeGenesisConfig {
        balances: pallet_balances::GenesisConfig {
            balances: COLDKEYS.map(|coldkey| (coldkey, ENDOWMENT)).collect(),
            dev_accounts: None,
        },
        ..Default::default()
    };
    let storage = genesis
        .build_storage()
        .expect("endowments are above the existential deposit");
    TestExternalities::new(storage).execute_with(|| {
        System::set_block_number(1);
        test();
    });
}

/// Runs `test` on a started subnet [`NETUID`] that takes weights in the open. Its owner holds uid 0.
pub fn with_subnet(test: impl FnOnce()) {
    on_new_chain(|| {
        SubtensorModule::register_network(signed(OWNER), OWNER_HOTKEY).unwrap();
        run_blocks(3);
        SubtensorModule::start_call(signed(OWNER), NETUID).unwrap();
        CommitRevealWeightsEnabled::<Test>::insert(NETUID, false);
        test();
    });
}

pub fn signed(account: u64) -> RuntimeOrigin {
    RuntimeOrigin::signed(account)
}

/// The hotkey that belongs to a coldkey.
pub fn hotkey_of(coldkey: u64) -> u64 {
    coldkey + 100
}

/// Registers the hotkey of `coldkey` on [`NETUID`]; its uid.
pub fn register(coldkey: u64) -> u16 {
    SubtensorModule::burned_register(signed(coldkey), NETUID, hotkey_of(coldkey)).unwrap();
    Uids::<Test>::get(NETUID, hotkey_of(coldkey)).unwrap()
}

/// Registers the hotkey of `coldkey`, stakes `tao` rao on it and gives it a permit; its uid.
pub fn register_validator(coldkey: u64, tao: u64) -> u16 {
    let uid = register(coldkey);
    SubtensorModule::add_stake(signed(coldkey), hotkey_of(coldkey), NETUID, tao).unwrap();
    neurons::set_entry::<_, ValidatorPermit<Test>>(NETUID, uid, true);
    uid
}

/// Begins and ends `count` blocks.
pub fn run_blocks(count: u64) {
    for _ in 0..count {
        let block = System::block_number() + 1;
        System::set_block_number(block);
        SubtensorModule::on_initialize(block);
    }
}

/// Runs blocks until the epoch of [`NETUID`] has the index `epoch`.
pub fn run_to_epoch(epoch: u64) {
    while SubnetEpochIndex::<Test>::get(NETUID) < epoch {
        run_blocks(1);
    }
}

/// Puts the pulse of `round` on chain.
pub fn pulse(round: u64) {
    PULSES.with_borrow_mut(|pulses| pulses.insert(round, signature(round)));
}

/// What opens commits of `round`.
pub fn signature(round: u64) -> Vec<u8> {
    format!("signature of {round}: ").into_bytes()
}

/// A commit to `round` as `hotkey` makes it.
pub fn timelocked(hotkey: u64, uids: &[u16], values: &[u16], round: u64) -> TimelockCommit {
    let payload = WeightsTlockPayload {
        hotkey: hotkey.encode(),
        uids: uids.to_vec(),
        values: values.to_vec(),
        version_key: 0,
    };
    let bytes = [signature(round), payload.encode()].concat();
    TimelockCommit::try_from(bytes).expect("short")
}

pub fn set_loopback_axons(allowed: bool) {
    LOOPBACK_AXONS.with_borrow_mut(|stored| *stored = allowed);
}

/// The events of the pallet so far, oldest first.
pub fn events() -> Vec<Event<Test>> {
    let records = System::events().into_iter();
    records
        .filter_map(|record| match record.event {
            RuntimeEvent::SubtensorModule(event) => Some(event),
            RuntimeEvent::System(_) | RuntimeEvent::Balances(_) => None,
        })
        .collect()
}
