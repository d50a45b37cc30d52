//! The bytes of one blob while they arrive: cut into parts that fill independently, hashed as they come.
//!
//! A blob of known length lies in one buffer from the start. Its parts are disjoint views of that buffer, so that
//! several transfers write into it at once and joining them copies nothing. All parts but the last are equally long,
//! a power of two, and therefore subtrees of the blob's BLAKE3 tree: each part is hashed by whoever receives it, 128
//! KiB at a time while they are in the CPU's cache (some 30 us on a runtime thread), and the root follows from one
//! chaining value per part.

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use bytes::{Bytes, BytesMut};
use libp2p::PeerId;

use super::super::{Blame, FetchReport};
use crate::blob::BlobHash;

/// Bytes hashed at once: enough for BLAKE3 to use all lanes of the CPU, few enough to be in its cache still.
const HASH_BYTES: usize = 128 * 1024;
/// First allocation for a blob whose length is not known; beyond it the buffer doubles as bytes arrive.
const BUFFER_BYTES_FIRST: usize = 64 * 1024;
/// Shorter blobs are one part.
pub(super) const PART_BYTES_MIN: usize = 4 * 1024 * 1024;
const PART_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What the length of a part aims at: a part is on its way while others begin and end.
const PARTS: usize = 16;

/// A stretch of a blob: what it holds so far, who sent which of it, and its running hash.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) index: usize,
    /// Where it begins in the blob.
    start: u64,
    /// Its length, and that of the blob; `None` until a source has named the latter.
    length: Option<usize>,
    blob_length: Option<u64>,
    bytes: BytesMut,
    hasher: blake3::Hasher,
    hashed: usize,
    segments: Vec<Segment>,
}

/// What one source contributed: from `start`, within the part, to the start of the next segment.
#[derive(Debug)]
struct Segment {
    peer: PeerId,
    start: usize,
    claimed_total: u64,
}

impl Part {
    fn new(
        index: usize,
        start: u64,
        length: Option<usize>,
        blob_length: Option<u64>,
        bytes: BytesMut,
    ) -> Self {
        Self {
            index,
            start,
            length,
            blob_length,
            bytes,
            hasher: blake3::Hasher::new(),
            hashed: 0,
            segments: Vec::new(),
        }
    }

    /// Where the first missing byte lies in the blob.
    pub(super) fn offset(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(super) fn filled(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that are missing; `None` while the length is not known.
    pub(super) fn missing(&self) -> Option<usize> {
        self.length.map(|length| length - self.bytes.len())
    }

    /// Notes that `peer` sends from here on and says that the blob has `total` bytes. False when that contradicts what
    /// is known: what others said, or the bytes that are there already.
    pub(super) fn continued_by(&mut self, peer: PeerId, total: u64) -> bool {
        let start = self.bytes.len();
        self.segments.push(Segment {
            peer,
            start,
            claimed_total: total,
        });
        match (self.length, usize::try_from(total)) {
            (Some(_), _) => *self.blob_length.get_or_insert(total) == total,
            (None, Ok(length)) if length >= start => {
                self.length = Some(length);
                self.blob_length = Some(total);
                true
            }
            (None, _) => false,
        }
    }

    /// Adds `packet`, of which what exceeds the part is ignored. Returns the bytes taken.
    pub(super) fn append(&mut self, packet: &[u8]) -> usize {
        let missing = self.missing().unwrap_or(0);
        let packet = &packet[..packet.len().min(missing)];
        if self.bytes.capacity() - self.bytes.len() < packet.len() {
            let more = self.bytes.len().max(BUFFER_BYTES_FIRST).min(missing);
            self.bytes.reserve(more.max(packet.len()));
        }
        self.bytes.extend_from_slice(packet);
        if self.bytes.len() - self.hashed >= HASH_BYTES || self.missing() == Some(0) {
            self.hasher.update(&self.bytes[self.hashed..]);
            self.hashed = self.bytes.len();
        }
        packet.len()
    }
}

/// All parts of a blob; a part is missing here while a lane fills it.
pub(super) struct Assembly {
    parts: Vec<Option<Part>>,
}

impl Assembly {
    /// For a blob of `length` bytes, which the caller vouches for: that much address space is taken at once, and
    /// memory as bytes arrive.
    pub(super) fn exactly(length: usize) -> Self {
        let part_bytes = part_bytes(length);
        let blob_length = Some(length as u64);
        if length <= part_bytes {
            let part = Part::new(
                0,
                0,
                Some(length),
                blob_length,
                BytesMut::with_capacity(length),
            );
            return Self {
                parts: vec![Some(part)],
            };
        }
        let mut rest = BytesMut::with_capacity(length);
        let mut parts = Vec::with_capacity(length.div_ceil(part_bytes));
        for (index, start) in (0..length).step_by(part_bytes).enumerate() {
            let length = part_bytes.min(length - start);
            let after = rest.split_off(length);
            let bytes = std::mem::replace(&mut rest, after);
            let start = start as u64;
            let mut part = Part::new(index, start, Some(length), blob_length, bytes);
            part.hasher.set_input_offset(start);
            parts.push(Some(part));
        }
        Self { parts }
    }

    /// For a blob whose length the first source will name.
    pub(super) fn of_unknown_length() -> Self {
        Self {
            parts: vec![Some(Part::new(0, 0, None, None, BytesMut::new()))],
        }
    }

    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Takes out the part at `index`, to be filled.
    pub(super) fn take(&mut self, index: usize) -> Option<Part> {
        self.parts.get_mut(index)?.take()
    }

    pub(super) fn put_back(&mut self, part: Part) {
        let index = part.index;
        if let Some(place) = self.parts.get_mut(index) {
            *place = Some(part);
        }
    }

    /// The hash of the blob, once all parts are there.
    pub(super) fn hash(&self) -> BlobHash {
        let root = match self.parts.as_slice() {
            [Some(part)] => part.hasher.finalize(),
            parts => {
                let leaves: Vec<ChainingValue> = parts
                    .iter()
                    .flatten()
                    .map(|part| part.hasher.finalize_non_root())
                    .collect();
                let (left, right) = leaves.split_at(left_leaves(leaves.len()));
                hazmat::merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
            }
        };
        *root.as_bytes()
    }

    /// The blob; no byte is copied.
    pub(super) fn join(self) -> Bytes {
        let mut whole = BytesMut::new();
        for part in self.parts.into_iter().flatten() {
            whole.unsplit(part.bytes);
        }
        whole.freeze()
    }

    /// The one peer that is answerable for every byte and for the length, if there is only one.
    pub(super) fn only_contributor(&self) -> Option<PeerId> {
        let mut peers = self
            .parts
            .iter()
            .flatten()
            .flat_map(|part| part.segments.iter().map(|segment| segment.peer));
        let first = peers.next()?;
        peers.all(|peer| peer == first).then_some(first)
    }

    /// Who sent the end of the last part.
    pub(super) fn last_contributor(&self) -> Option<PeerId> {
        let last = self.parts.last()?.as_ref()?;
        last.segments.last().map(|segment| segment.peer)
    }

    pub(super) fn suspects(&self) -> Vec<Suspect> {
        let mut suspects = Vec::new();
        for part in self.parts.iter().flatten() {
            let ends = part
                .segments
                .iter()
                .skip(1)
                .map(|segment| segment.start)
                .chain([part.bytes.len()]);
            for (segment, end) in part.segments.iter().zip(ends) {
                if let Some(sent) = part.bytes.get(segment.start..end) {
                    suspects.push(Suspect {
                        peer: segment.peer,
                        start: part.start + segment.start as u64,
                        length: sent.len(),
                        hash: blake3::hash(sent),
                        claimed_total: segment.claimed_total,
                    });
                }
            }
        }
        suspects
    }
}

/// A power of two near a sixteenth of `length`, within bounds.
fn part_bytes(length: usize) -> usize {
    let aim = length.div_ceil(PARTS).clamp(PART_BYTES_MIN, PART_BYTES_MAX);
    aim.next_power_of_two()
}

/// Of a tree with `leaves` > 1, those in the left subtree: the largest power of two below `leaves` (BLAKE3, section
/// 2.1).
fn left_leaves(leaves: usize) -> usize {
    leaves.next_power_of_two() / 2
}

fn subtree(leaves: &[ChainingValue]) -> ChainingValue {
    match leaves {
        [leaf] => *leaf,
        leaves => {
            let (left, right) = leaves.split_at(left_leaves(leaves.len()));
            hazmat::merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// What a source contributed to an assembly that did not verify; judged once the true bytes are known.
pub(super) struct Suspect {
    peer: PeerId,
    start: u64,
    length: usize,
    hash: blake3::Hash,
    claimed_total: u64,
}

impl Suspect {
    /// Blames the peer when `truth` shows that it lied. Whoever lied in several parts is blamed once.
    pub(super) fn judge(&self, truth: &[u8], report: &mut FetchReport) {
        let sent_truth = usize::try_from(self.start)
            .ok()
            .and_then(|start| truth.get(start..start.checked_add(self.length)?))
            .is_some_and(|bytes| blake3::hash(bytes) == self.hash);
        let honest = (self.length == 0 || sent_truth) && self.claimed_total == truth.len() as u64;
        let verdict = (self.peer, Blame::WrongBytes);
        if !honest && !report.blamed.contains(&verdict) {
            report.blame(self.peer, Blame::WrongBytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn hash_and_bytes_are_those_of_the_whole_whatever_the_order_of_arrival() {
        for length in [
            0,
            1,
            PART_BYTES_MIN,
            PART_BYTES_MIN + 1,
            2 * PART_BYTES_MIN,
            4 * PART_BYTES_MIN + 1025,
            7 * PART_BYTES_MIN,
            18 * PART_BYTES_MIN + 5,
        ] {
            let bytes = pattern(length);
            let mut assembly = Assembly::exactly(length);
            for index in (0..assembly.parts()).rev() {
                let mut part = assembly.take(index).unwrap();
                while part.missing() != Some(0) {
                    let from = usize::try_from(part.offset()).unwrap();
                    let to = (from + 100_001).min(length);
                    assert!(part.append(&bytes[from..to]) > 0);
                }
                assembly.put_back(part);
            }
            assert_eq!(
                assembly.hash(),
                *blake3::hash(&bytes).as_bytes(),
                "{length}"
            );
            assert_eq!(assembly.join(), bytes);
        }
    }

    #[test]
    fn parts_are_joined_in_place() {
        let length = 3 * PART_BYTES_MIN;
        let mut assembly = Assembly::exactly(length);
        let mut first = None;
        for index in 0..assembly.parts() {
            let mut part = assembly.take(index).unwrap();
            part.append(&vec![1; length]);
            first = first.or(Some(part.bytes.as_ptr()));
            assembly.put_back(part);
        }
        assert_eq!(Some(assembly.join().as_ptr()), first);
    }
}
