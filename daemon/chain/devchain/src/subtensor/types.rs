//! Values that the pallet stores and parameters that it takes from the runtime. Layouts are subtensor's.

use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use frame_support::BoundedVec;
use frame_support::traits::ConstU32;
use scale_info::TypeInfo;

/// Longest encrypted commit, in bytes.
pub const TIMELOCK_COMMIT_BYTES_MAX: u32 = 5000;

/// An encrypted weights commit.
pub type TimelockCommit = BoundedVec<u8, ConstU32<TIMELOCK_COMMIT_BYTES_MAX>>;

/// (commit hash, epoch of the commit, first block of the reveal window, last block of it).
///
/// The epoch decides; the two blocks are what the schedule says at the time of the commit, for display.
pub type HashCommit = (sp_core::H256, u64, u64, u64);

/// Where a neuron can be reached.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    Encode,
    Decode,
    DecodeWithMemTracking,
    MaxEncodedLen,
    TypeInfo,
)]
pub struct AxonInfo {
    /// When it was published.
    pub block: u64,
    pub version: u32,
    /// An IPv4 address stands in the low 32 bits.
    pub ip: u128,
    pub port: u16,
    /// 4 or 6.
    pub ip_type: u8,
    pub protocol: u8,
    pub placeholder1: u8,
    pub placeholder2: u8,
}

/// Where a neuron's metrics can be read.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    Encode,
    Decode,
    DecodeWithMemTracking,
    MaxEncodedLen,
    TypeInfo,
)]
pub struct PrometheusInfo {
    pub block: u64,
    pub version: u32,
    pub ip: u128,
    pub port: u16,
    pub ip_type: u8,
}

/// A public key with which a neuron's endpoint can be authenticated.
#[derive(
    Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, MaxEncodedLen, TypeInfo,
)]
pub struct NeuronCertificate {
    pub public_key: BoundedVec<u8, ConstU32<64>>,
    pub algorithm: u8,
}

impl NeuronCertificate {
    /// Reads one byte of algorithm followed by at most 64 bytes of key; `None` for anything else.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (algorithm, key) = bytes.split_first()?;
        let public_key = BoundedVec::try_from(key.to_vec()).ok()?;
        Some(Self {
            public_key,
            algorithm: *algorithm,
        })
    }
}

/// What a subnet says about itself. Every field is text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct SubnetIdentityV3 {
    pub subnet_name: Vec<u8>,
    pub github_repo: Vec<u8>,
    pub subnet_contact: Vec<u8>,
    pub subnet_url: Vec<u8>,
    pub discord: Vec<u8>,
    pub description: Vec<u8>,
    pub logo_url: Vec<u8>,
    pub additional: Vec<u8>,
}

/// The plain text of a timelocked commit.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WeightsTlockPayload {
    /// The 32 bytes of the committer's account.
    pub hotkey: Vec<u8>,
    pub uids: Vec<u16>,
    pub values: Vec<u16>,
    pub version_key: u64,
}

/// What the chain knows of the randomness beacon.
pub trait Beacon {
    /// The signature of `round`, if that pulse is on chain.
    fn signature(round: u64) -> Option<Vec<u8>>;
}

/// Opens what was encrypted to a round of the beacon.
pub trait Timelock {
    /// The plain text, or `None` when `ciphertext` does not open with `signature`.
    fn decrypt(ciphertext: &[u8], signature: &[u8]) -> Option<Vec<u8>>;
}

/// Values that subnets and the chain start with. The default is the public chain's; a fast dev chain shortens times.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct InitialParameters {
    /// Blocks between epochs of a new subnet.
    pub tempo: u16,
    /// Blocks during which a new neuron is not pruned.
    pub immunity_period: u16,
    /// Blocks after which a silent validator counts as inactive.
    pub activity_cutoff: u16,
    pub weights_set_rate_limit: u64,
    pub serving_rate_limit: u64,
    pub max_allowed_uids: u16,
    pub max_allowed_validators: u16,
    pub min_allowed_weights: u16,
    /// First price of a registration, in rao.
    pub burn: u64,
    pub min_burn: u64,
    pub max_burn: u64,
    pub commit_reveal: bool,
    /// Blocks between two registrations of subnets, on the whole chain.
    pub network_rate_limit: u64,
    /// Least cost of a subnet, in rao.
    pub network_min_lock_cost: u64,
    /// Blocks between the registration of a subnet and its start.
    pub start_call_delay: u64,
}

impl Default for InitialParameters {
    fn default() -> Self {
        Self {
            tempo: 360,
            immunity_period: 5000,
            activity_cutoff: 5000,
            weights_set_rate_limit: 100,
            serving_rate_limit: 50,
            max_allowed_uids: 256,
            max_allowed_validators: 64,
            min_allowed_weights: 1,
            burn: 100_000_000,
            min_burn: 500_000,
            max_burn: 100_000_000_000,
            commit_reveal: true,
            network_rate_limit: 7200,
            network_min_lock_cost: 1_000_000_000_000,
            start_call_delay: 7 * 7200,
        }
    }
}
