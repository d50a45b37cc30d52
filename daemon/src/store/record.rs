//! The form of values in the store: bincode with a checksum in front of it, so that a flipped bit is found when the
//! value is read and not when peers disagree.
//!
//! The only module that names bincode. Its records never leave the machine.

use bincode::{Decode, Encode};

/// The layout of the tables and records below; raised with every change of either.
pub(super) const SCHEMA: u32 = 5;

/// Bytes of BLAKE3 kept: enough against accidents, which is all that a local file needs.
const CHECKSUM_BYTES: usize = 8;

/// The longest value: an encoded decision with its headers fits the longest response (16 MiB) by far.
const VALUE_BYTES_MAX: usize = 32 << 20;

/// Facts about the directory as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Meta {
    /// The data directory that the operator named, as UTF-8.
    pub(super) data_dir: Option<String>,
    /// Multiaddresses of the launcher, as its ticket had them.
    pub(super) launcher_addresses: Vec<String>,
}

/// The stage of an update in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Stage {
    Local,
    Update,
    Reduced,
}

/// A committed update whose round is not applied yet; see [`crate::worker`] for what its fields mean.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct InFlight {
    pub(crate) round: u64,
    pub(crate) stage: Stage,
    /// Of the first frame.
    pub(crate) first_shard: u32,
    /// Hash and length of each frame, in shard order.
    pub(crate) frames: Vec<([u8; 32], u64)>,
    pub(crate) feedback_before: [u8; 32],
    pub(crate) feedback_after: [u8; 32],
    pub(crate) segments_root: [u8; 32],
    pub(crate) inner_before: [u8; 32],
    pub(crate) inner_after: [u8; 32],
    pub(crate) tokens: u64,
    pub(crate) steps: u32,
    pub(crate) loss_first_micronats: u64,
    pub(crate) loss_last_micronats: u64,
    pub(crate) build: String,
    pub(crate) device: String,
}

/// What is to be attested on chain about one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct QueuedAttestation {
    /// The epoch; 0 stands for the start of the run.
    pub epoch: u64,
    /// Its last round.
    pub round: u64,
    /// The state root after that round.
    pub state_root: [u8; 32],
    /// Hash of the epoch's score table; zeros for epoch 0.
    pub scores: [u8; 32],
    /// Root over the epoch's evidence, scores and state, by a validator; zeros by anybody else.
    pub evidence_root: [u8; 32],
}

/// What a validator has to remember of its audits, in the order in which it learnt it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum AuditEntry {
    /// A signed verdict, its own or another's, as it is gossiped.
    Verdict(Vec<u8>),
    /// The validators have agreed that a peer failed the audit of a round.
    Failed { round: u64, peer: [u8; 32] },
    /// Losses before and after an update, in millionths of a nat per token.
    Losses {
        round: u64,
        peer: [u8; 32],
        /// On the data that the peer was assigned.
        assigned: (u64, u64),
        /// On data that is the same for all.
        common: (u64, u64),
    },
    /// The validators have agreed that a peer did not fail a round, although one of them says so, or have not agreed in time.
    Overruled { round: u64, peer: [u8; 32] },
    /// The first segment of a failed round that fails.
    FirstFailing {
        round: u64,
        peer: [u8; 32],
        segment: u32,
    },
}

/// Bytes of an audit entry, sealed.
pub(super) fn seal_audit(entry: &AuditEntry) -> Vec<u8> {
    seal(bincode::encode_to_vec(entry, config()).expect("plain fields encode"))
}

/// Reads what [`seal_audit`] wrote.
pub(super) fn unseal_audit(bytes: &[u8]) -> Result<AuditEntry, String> {
    decode(&unseal(bytes)?)
}

#[derive(Encode, Decode)]
struct Sealed {
    checksum: [u8; CHECKSUM_BYTES],
    body: Vec<u8>,
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<VALUE_BYTES_MAX>()
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::hash(body);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hash.as_bytes()[..CHECKSUM_BYTES]);
    sum
}

fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, String> {
    let (value, used) =
        bincode::decode_from_slice(bytes, config()).map_err(|error| error.to_string())?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(format!("{} bytes too many", bytes.len() - used))
    }
}

/// `body` with its checksum.
pub(super) fn seal(body: Vec<u8>) -> Vec<u8> {
    let sealed = Sealed {
        checksum: checksum(&body),
        body,
    };
    bincode::encode_to_vec(sealed, config()).expect("bytes in memory encode")
}

/// The body of what [`seal`] made; the reason if it was changed since.
pub(super) fn unseal(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let sealed: Sealed = decode(bytes)?;
    if checksum(&sealed.body) == sealed.checksum {
        Ok(sealed.body)
    } else {
        Err("its checksum differs".to_owned())
    }
}

/// Bytes of `meta`, sealed.
pub(super) fn seal_meta(meta: &Meta) -> Vec<u8> {
    seal(bincode::encode_to_vec(meta, config()).expect("plain fields encode"))
}

/// Reads what [`seal_meta`] wrote.
pub(super) fn unseal_meta(bytes: &[u8]) -> Result<Meta, String> {
    decode(&unseal(bytes)?)
}

/// Bytes of an update in flight, or of there being none, sealed.
pub(crate) fn seal_in_flight(in_flight: &Option<InFlight>) -> Vec<u8> {
    seal(bincode::encode_to_vec(in_flight, config()).expect("plain fields encode"))
}

/// Reads what [`seal_in_flight`] wrote.
pub(crate) fn unseal_in_flight(bytes: &[u8]) -> Result<Option<InFlight>, String> {
    decode(&unseal(bytes)?)
}

/// Bytes of a queued attestation, sealed.
pub(super) fn seal_attestation(attestation: &QueuedAttestation) -> Vec<u8> {
    seal(bincode::encode_to_vec(attestation, config()).expect("plain fields encode"))
}

/// Reads what [`seal_attestation`] wrote.
pub(super) fn unseal_attestation(bytes: &[u8]) -> Result<QueuedAttestation, String> {
    decode(&unseal(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_or_lost_byte_is_noticed() {
        let sealed = seal(b"a decision".to_vec());
        assert_eq!(unseal(&sealed), Ok(b"a decision".to_vec()));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(&changed).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(unseal(&sealed[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        // 2^40 bytes claimed: bincode's limit refuses before it allocates.
        let mut bytes = vec![0; CHECKSUM_BYTES];
        bytes.push(253);
        bytes.extend_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(unseal(&bytes).is_err());
    }
}
