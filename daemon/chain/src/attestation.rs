//! What a run puts on chain at the end of an epoch: one commitment that binds a checkpoint, the audits and the scores.
//!
//! | field | content |
//! |---|---|
//! | 0, raw, 88 bytes | `"gmat"`, version 1 (u8), 3 zero bytes, run (32), epoch (u64), round (u64), evidence root (32) |
//! | 1, SHA2-256 tag | state root of the checkpoint |
//! | 2, BLAKE2b-256 tag | hash of the score table |
//!
//! Integers are little-endian. The tags say only that 32 bytes follow: the state root is a BLAKE3 Merkle root, and
//! readers take its meaning from the version. A commitment is overwritten by the next one; the block of the receipt keeps it.

use crate::types::Field;

/// First bytes of field 0.
pub const MAGIC: [u8; 4] = *b"gmat";
/// The only version so far.
pub const VERSION: u8 = 1;

const RAW_BYTES: usize = 4 + 1 + 3 + 32 + 8 + 8 + 32;

/// An epoch's end, as attested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The run: hash of its manifest.
    pub run: [u8; 32],
    /// Epoch that ended, from 0.
    pub epoch: u64,
    /// Last round of that epoch.
    pub round: u64,
    /// Merkle root of the state after that round: what a checkpoint must hash to.
    pub state_root: [u8; 32],
    /// Root over the evidence of the epoch's audits; zero while there are none.
    pub evidence_root: [u8; 32],
    /// Hash of the epoch's score table.
    pub scores: [u8; 32],
}

/// Why a commitment is no attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestationError {
    /// Other kinds or another number of fields: some other program's commitment.
    #[error("a commitment of {0} fields of other kinds is no attestation")]
    Kind(usize),
    /// The raw field does not begin with [`MAGIC`], or is too short or too long.
    #[error("a raw field of {0} bytes without the attestation's mark")]
    Mark(usize),
    /// Written by newer software.
    #[error("attestation version {0} is unknown here, {VERSION} is known")]
    Version(u8),
    /// Bytes that must be zero are not.
    #[error("reserved bytes of the attestation are not zero")]
    Reserved,
}

impl Attestation {
    /// The commitment's fields, for [`crate::Client::set_commitment`].
    pub fn fields(&self) -> [Field; 3] {
        let mut raw = Vec::with_capacity(RAW_BYTES);
        raw.extend(MAGIC);
        raw.extend([VERSION, 0, 0, 0]);
        raw.extend(self.run);
        raw.extend(self.epoch.to_le_bytes());
        raw.extend(self.round.to_le_bytes());
        raw.extend(self.evidence_root);
        [
            Field::Raw(raw),
            Field::Sha256(self.state_root),
            Field::BlakeTwo256(self.scores),
        ]
    }

    /// Reads fields that [`Attestation::fields`] made. Total over any input.
    pub fn decode(fields: &[Field]) -> Result<Attestation, AttestationError> {
        let [
            Field::Raw(raw),
            Field::Sha256(state_root),
            Field::BlakeTwo256(scores),
        ] = fields
        else {
            return Err(AttestationError::Kind(fields.len()));
        };
        let rest = raw
            .strip_prefix(&MAGIC)
            .ok_or(AttestationError::Mark(raw.len()))?;
        let (&version, rest) = rest
            .split_first()
            .ok_or(AttestationError::Mark(raw.len()))?;
        if version != VERSION {
            return Err(AttestationError::Version(version));
        }
        let cut = AttestationError::Mark(raw.len());
        let (reserved, rest) = rest.split_first_chunk::<3>().ok_or(cut)?;
        let (run, rest) = rest.split_first_chunk::<32>().ok_or(cut)?;
        let (epoch, rest) = rest.split_first_chunk::<8>().ok_or(cut)?;
        let (round, rest) = rest.split_first_chunk::<8>().ok_or(cut)?;
        let evidence_root = <[u8; 32]>::try_from(rest).map_err(|_| cut)?;
        if *reserved != [0; 3] {
            return Err(AttestationError::Reserved);
        }
        Ok(Attestation {
            run: *run,
            epoch: u64::from_le_bytes(*epoch),
            round: u64::from_le_bytes(*round),
            state_root: *state_root,
            evidence_root,
            scores: *scores,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Attestation {
        Attestation {
            run: [0x11; 32],
            epoch: 3,
            round: 0x0102_0304,
            state_root: [0x22; 32],
            evidence_root: [0; 32],
            scores: [0x33; 32],
        }
    }

    #[test]
    fn the_bytes_on_chain_are_these() {
        let [raw, root, scores] = sample().fields();
        let Field::Raw(raw) = raw else {
            panic!("field 0 is raw")
        };
        let golden = format!(
            "676d6174{}{}{}{}{}",
            "01000000",
            "11".repeat(32),
            "0300000000000000",
            "0403020100000000",
            "00".repeat(32)
        );
        assert_eq!(hex::encode(&raw), golden);
        assert_eq!(raw.len(), RAW_BYTES);
        assert!(raw.len() <= Field::RAW_BYTES_MAX);
        assert_eq!(root, Field::Sha256([0x22; 32]));
        assert_eq!(scores, Field::BlakeTwo256([0x33; 32]));
    }

    #[test]
    fn what_was_written_is_read_back() {
        assert_eq!(Attestation::decode(&sample().fields()), Ok(sample()));
    }

    #[test]
    fn every_cut_and_every_stranger_is_named() {
        let [Field::Raw(raw), root, scores] = sample().fields() else {
            panic!("field 0 is raw")
        };
        let decode =
            |raw: Vec<u8>| Attestation::decode(&[Field::Raw(raw), root.clone(), scores.clone()]);
        for length in 0..raw.len() {
            assert_eq!(
                decode(raw[..length].to_vec()),
                Err(AttestationError::Mark(length))
            );
        }
        assert_eq!(
            decode([&raw[..], &[0]].concat()),
            Err(AttestationError::Mark(RAW_BYTES + 1))
        );
        let with = |place: usize, byte: u8| {
            let mut raw = raw.clone();
            raw[place] = byte;
            decode(raw)
        };
        assert_eq!(with(0, b'G'), Err(AttestationError::Mark(RAW_BYTES)));
        assert_eq!(with(4, 2), Err(AttestationError::Version(2)));
        assert_eq!(with(6, 1), Err(AttestationError::Reserved));
        assert_eq!(Attestation::decode(&[]), Err(AttestationError::Kind(0)));
        assert_eq!(
            Attestation::decode(&[Field::Other, root.clone(), scores.clone()]),
            Err(AttestationError::Kind(3))
        );
    }
}
