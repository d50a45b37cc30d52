//! Types of a beacon's pulses and of its configuration.

use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use frame_support::{BoundedVec, traits::ConstU32};
use scale_info::TypeInfo;

/// One pulse: the beacon's signature of a round.
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
pub struct Pulse {
    /// Round, from 1.
    pub round: u64,
    /// SHA-256 of the signature.
    pub randomness: BoundedVec<u8, ConstU32<32>>,
    /// BLS signature in G1, compressed: 48 bytes.
    pub signature: BoundedVec<u8, ConstU32<144>>,
}

/// Argument of `write_pulse`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct PulsesPayload<Public, BlockNumber> {
    /// Block that the sender saw.
    pub block_number: BlockNumber,
    /// Pulses, rounds ascending.
    pub pulses: Vec<Pulse>,
    /// Sender. Not looked at here: a pulse proves itself.
    pub public: Public,
}

/// Which beacon the chain follows.
#[derive(
    Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, MaxEncodedLen, TypeInfo,
)]
pub struct BeaconConfiguration {
    /// BLS public key in G2, compressed: 96 bytes.
    pub public_key: BoundedVec<u8, ConstU32<96>>,
    /// Seconds between two rounds.
    pub period: u32,
    /// Unix time of round 1, in seconds.
    pub genesis_time: u32,
    /// Hash of the beacon's chain.
    pub hash: BoundedVec<u8, ConstU32<32>>,
    /// Hash of the group that runs it.
    pub group_hash: BoundedVec<u8, ConstU32<32>>,
    /// Signature scheme.
    pub scheme_id: BoundedVec<u8, ConstU32<32>>,
    /// Name.
    pub metadata: Metadata,
}

/// Name of a beacon.
#[derive(
    Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, MaxEncodedLen, TypeInfo,
)]
pub struct Metadata {
    /// Name.
    pub beacon_id: BoundedVec<u8, ConstU32<32>>,
}

/// Argument of `set_beacon_config`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct BeaconConfigurationPayload<Public, BlockNumber> {
    /// Block that the sender saw.
    pub block_number: BlockNumber,
    /// The configuration.
    pub config: BeaconConfiguration,
    /// Sender. Not looked at here: root sends it.
    pub public: Public,
}

impl BeaconConfiguration {
    /// drand's quicknet, which finney follows.
    pub fn quicknet() -> Self {
        Self {
            public_key: from_hex(
                "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451\
                 0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a",
            ),
            period: 3,
            genesis_time: 1_692_803_367,
            hash: from_hex("52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971"),
            group_hash: from_hex(
                "f477d5c89f21a17c863a7f937c6a6d15859414d2be09cd448d4279af331c5d3e",
            ),
            scheme_id: BoundedVec::truncate_from(b"bls-unchained-g1-rfc9380".to_vec()),
            metadata: Metadata {
                beacon_id: BoundedVec::truncate_from(b"quicknet".to_vec()),
            },
        }
    }
}

/// Bytes of a constant of this file.
fn from_hex<const N: u32>(digits: &str) -> BoundedVec<u8, ConstU32<N>> {
    let bytes = hex::decode(digits).expect("constants are hex");
    BoundedVec::try_from(bytes).expect("constants fit")
}
