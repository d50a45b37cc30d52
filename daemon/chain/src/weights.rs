//! Weights as they go on chain: scale, digest of a legacy commit, content of a timelocked one. No network here.
//!
//! A weight vector on chain is a list of (uid, u16). The chain scales the largest to 65535 before it stores the list; we
//! send it scaled, so that what is hashed, locked and stored are the same numbers. Every uid of the subnet is named, with
//! weight zero where nothing is due: a missing uid and a zero are different statements to a reader of the chain.

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};
use subxt::ext::codec::Encode;

use crate::account::AccountId;

/// Version of timelocked commits that [`payload`] is the content of (`CommitRevealWeightsVersion`).
pub const COMMIT_REVEAL_VERSION: u16 = 4;

/// Why a list of weights cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// A uid that the subnet does not have at the block of reading.
    #[error("uid {uid} is not among the {neurons} uids of the subnet")]
    UnknownUid {
        /// The uid as given.
        uid: u16,
        /// Count of uids.
        neurons: u16,
    },
    /// A uid that was given twice.
    #[error("uid {0} has two weights")]
    DuplicateUid(u16),
    /// Nothing to say: the chain refuses an all-zero list.
    #[error("all weights are zero")]
    AllZero,
}

/// Weights for every uid `0..neurons`, in order: the largest given one becomes 65535, the others keep their proportion to
/// it (rounded down, as the chain rounds), a uid that was not given gets zero.
///
/// # Errors
/// A uid outside the subnet or given twice; nothing above zero.
pub fn conform(given: &[(u16, u16)], neurons: u16) -> Result<Vec<(u16, u16)>, WeightsError> {
    let mut slots: Vec<Option<u16>> = vec![None; usize::from(neurons)];
    for &(uid, weight) in given {
        let slot = slots
            .get_mut(usize::from(uid))
            .ok_or(WeightsError::UnknownUid { uid, neurons })?;
        if slot.replace(weight).is_some() {
            return Err(WeightsError::DuplicateUid(uid));
        }
    }
    let largest = slots
        .iter()
        .flatten()
        .copied()
        .max()
        .filter(|&largest| largest > 0)
        .ok_or(WeightsError::AllZero)?;
    Ok((0..neurons)
        .zip(slots)
        .map(|(uid, weight)| (uid, upscale(weight.unwrap_or(0), largest)))
        .collect())
}

/// `floor(weight * 65535 / largest)`; `weight <= largest`, so that the quotient fits.
fn upscale(weight: u16, largest: u16) -> u16 {
    let scaled = u32::from(weight) * u32::from(u16::MAX) / u32::from(largest);
    u16::try_from(scaled).expect("a weight is at most the largest one")
}

/// Content of a timelocked commit, before encryption: SCALE of hotkey (as a byte string), uids, weights, version key.
///
/// Layout: `0x80` (32 as compact) and the hotkey; compact count and the uids, 2 bytes each, little-endian; the same of the
/// weights; the version key, 8 bytes, little-endian.
pub fn payload(hotkey: &AccountId, weights: &[(u16, u16)], version_key: u64) -> Vec<u8> {
    let (uids, values): (Vec<u16>, Vec<u16>) = weights.iter().copied().unzip();
    (hotkey.0.as_slice(), uids, values, version_key).encode()
}

/// Digest that a legacy commit puts on chain: BLAKE2b-256 of SCALE (hotkey, netuid, uids, weights, salt, version key).
///
/// `salt`: random, kept until the reveal, which shows it.
pub fn commit_hash(
    hotkey: &AccountId,
    netuid: u16,
    weights: &[(u16, u16)],
    salt: &[u16],
    version_key: u64,
) -> [u8; 32] {
    let (uids, values): (Vec<u16>, Vec<u16>) = weights.iter().copied().unzip();
    blake2_256(&(hotkey.0, netuid, uids, values, salt, version_key).encode())
}

/// BLAKE2b with 32 bytes of output, unkeyed: the chain's hash.
pub(crate) fn blake2_256(bytes: &[u8]) -> [u8; 32] {
    Blake2b::<U32>::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_becomes_full_scale_and_every_uid_is_named() {
        assert_eq!(
            conform(&[(2, 50), (0, 100)], 4),
            Ok(vec![(0, 65535), (1, 0), (2, 32767), (3, 0)])
        );
        assert_eq!(
            conform(&[(0, 65535), (1, 1)], 2),
            Ok(vec![(0, 65535), (1, 1)])
        );
        assert_eq!(conform(&[(1, 1)], 2), Ok(vec![(0, 0), (1, 65535)]));
    }

    #[test]
    fn conforming_twice_changes_nothing() {
        let once = conform(&[(0, 3), (1, 7), (2, 11), (3, 0)], 5).unwrap();
        assert_eq!(conform(&once, 5), Ok(once));
    }

    #[test]
    fn weights_that_say_nothing_or_name_strangers_are_refused() {
        assert_eq!(conform(&[], 3), Err(WeightsError::AllZero));
        assert_eq!(conform(&[(0, 0), (1, 0)], 3), Err(WeightsError::AllZero));
        assert_eq!(
            conform(&[(3, 1)], 3),
            Err(WeightsError::UnknownUid { uid: 3, neurons: 3 })
        );
        assert_eq!(
            conform(&[(1, 1), (1, 0)], 3),
            Err(WeightsError::DuplicateUid(1))
        );
    }

    #[test]
    fn the_payload_has_its_layout() {
        let bytes = payload(&AccountId([7; 32]), &[(0, 65535), (1, 0), (2, 258)], 9);
        let mut expected = vec![0x80];
        expected.extend([7; 32]);
        expected.extend([0x0c, 0, 0, 1, 0, 2, 0]);
        expected.extend([0x0c, 0xff, 0xff, 0, 0, 2, 1]);
        expected.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_commit_hash_covers_everything_that_the_reveal_shows() {
        let hash = |netuid, weights: &[(u16, u16)], salt: &[u16], version| {
            commit_hash(&AccountId([7; 32]), netuid, weights, salt, version)
        };
        let mut preimage = vec![7; 32];
        preimage.extend([3, 0, 0x04, 1, 0, 0x04, 0xff, 0xff, 0x04, 5, 0]);
        preimage.extend([0; 8]);
        let base = hash(3, &[(1, 65535)], &[5], 0);
        assert_eq!(base, blake2_256(&preimage));
        let others = [
            hash(4, &[(1, 65535)], &[5], 0),
            hash(3, &[(1, 65534)], &[5], 0),
            hash(3, &[(1, 65535)], &[6], 0),
        ];
        assert!(others.iter().all(|other| *other != base));
    }
}
