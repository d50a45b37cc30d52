//! What a peer commits to of a round's work: the states between segments, and what was done from one to the next.
//!
//! A round of H inner steps is cut into S segments ([`steps_of`]). Between them the peer notes the root of its local
//! parameters and that of the inner optimizer's state ([`StateRoots`]), S + 1 times. A leaf binds a segment's place, both
//! states at its ends and what was done in between; the header has the Merkle root over the leaves, and the inner
//! optimizer's roots at both ends of the round.
//!
//! Rule `states-chain`: a segment begins where the one before ended, because there is one list of states.
//!
//! Rule `carried-or-zero`: the inner optimizer's state at the start of a round is zero, or the one that the peer's newest
//! decided update ended with. One whose training was not decided, or that was restarted in between, begins from zero: what
//! nobody has committed to cannot be audited.

use std::ops::Range;

use crate::hash::Hash;
use crate::header::WorkCommitment;
use crate::merkle;

/// The most segments of a round: a full list is 10 KiB, which every audit reads whole.
pub const SEGMENTS_MAX: u32 = 64;

const LEAF_DOMAIN: &str = "gradmesh segment v1";
const DATA_DOMAIN: &str = "gradmesh segment data v1";

/// A state of training, by its roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateRoots {
    /// Of the local parameters.
    pub theta: Hash,
    /// Of the inner optimizer's state.
    pub inner: Hash,
}

/// What was done in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    /// The sequences that were trained on, by [`data_hash`].
    pub data: Hash,
    /// Predictions that were trained.
    pub tokens: u64,
    /// Mean loss over its steps, in millionths of a nat per token.
    pub loss_micronats: u64,
    /// Mean norm of the gradient over its steps, before clipping, in millionths.
    pub gradient_norm_micro: u64,
}

/// A round's work as its author commits to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentList {
    /// One more than there are segments: state i is before segment i and after segment i - 1.
    states: Vec<StateRoots>,
    work: Vec<Work>,
}

/// The inner steps of segment `segment` of `segments`, of `steps` in a round: as equal as can be, longer ones last.
///
/// `segment` below `segments`, which is at least 1 and at most `steps`.
pub fn steps_of(segment: u32, segments: u32, steps: u32) -> Range<u32> {
    let at = |place: u32| (u64::from(place) * u64::from(steps) / u64::from(segments.max(1))) as u32;
    at(segment)..at(segment.saturating_add(1))
}

/// What stands for the sequences of a segment: the hash of their indices, in the order in which they were trained on.
pub fn data_hash(sequences: impl IntoIterator<Item = u64>) -> Hash {
    let bytes: Vec<u8> = sequences.into_iter().flat_map(u64::to_le_bytes).collect();
    Hash::in_domain(DATA_DOMAIN, &bytes)
}

impl SegmentList {
    /// A list of `work`, with the states around it; `None` unless there are from 1 to [`SEGMENTS_MAX`] segments and one more
    /// state than those.
    pub fn new(states: Vec<StateRoots>, work: Vec<Work>) -> Option<SegmentList> {
        let fits = (1..=SEGMENTS_MAX as usize).contains(&work.len());
        (fits && states.len() == work.len() + 1).then_some(SegmentList { states, work })
    }

    /// How many segments it has.
    pub fn segments(&self) -> u32 {
        self.work.len() as u32
    }

    /// One more than there are segments: state i is before segment i and after segment i - 1.
    pub fn states(&self) -> &[StateRoots] {
        &self.states
    }

    /// One entry for each segment.
    pub fn work(&self) -> &[Work] {
        &self.work
    }

    /// What the header says of the list.
    pub fn commitment(&self) -> WorkCommitment {
        let (first, last) = (&self.states[0], &self.states[self.work.len()]);
        WorkCommitment {
            segments_root: self.tree().root(),
            inner_before: first.inner,
            inner_after: last.inner,
        }
    }

    /// The leaf of a segment; `None` if there is no such segment.
    pub fn leaf(&self, segment: u32) -> Option<Hash> {
        let place = segment as usize;
        let work = self.work.get(place)?;
        let (before, after) = (self.states.get(place)?, self.states.get(place + 1)?);
        Some(leaf(segment, before, after, work))
    }

    /// The Merkle tree over the leaves, whose proofs tie one segment to the header.
    pub fn tree(&self) -> merkle::Tree {
        let leaves = (0..self.segments()).filter_map(|segment| self.leaf(segment));
        merkle::Tree::from_leaves(leaves.collect())
    }
}

/// The leaf of segment `segment`: a hash of its place, the states at its ends and what was done.
pub fn leaf(segment: u32, before: &StateRoots, after: &StateRoots, work: &Work) -> Hash {
    let mut body = Vec::with_capacity(188);
    body.extend_from_slice(&segment.to_le_bytes());
    for hash in [
        &before.theta,
        &before.inner,
        &after.theta,
        &after.inner,
        &work.data,
    ] {
        body.extend_from_slice(&hash.0);
    }
    for figure in [work.tokens, work.loss_micronats, work.gradient_norm_micro] {
        body.extend_from_slice(&figure.to_le_bytes());
    }
    Hash::in_domain(LEAF_DOMAIN, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(place: u8) -> StateRoots {
        StateRoots {
            theta: Hash([place; 32]),
            inner: Hash([place + 100; 32]),
        }
    }

    fn list(segments: u8) -> SegmentList {
        let work = |place: u8| Work {
            data: data_hash([u64::from(place), 7]),
            tokens: 100,
            loss_micronats: 5_000_000,
            gradient_norm_micro: 1_000_000,
        };
        let states = (0..=segments).map(roots).collect();
        SegmentList::new(states, (0..segments).map(work).collect()).unwrap()
    }

    #[test]
    fn segments_cover_the_round_in_order_and_differ_by_one_step_at_most() {
        for steps in 1..40 {
            for segments in 1..=steps {
                let parts: Vec<_> = (0..segments)
                    .map(|s| steps_of(s, segments, steps))
                    .collect();
                assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, steps));
                assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
                let lengths = parts.iter().map(|part| part.len());
                let (least, most) = (lengths.clone().min(), lengths.max());
                assert!(least >= Some(1) && most <= least.map(|least| least + 1));
            }
        }
    }

    #[test]
    fn the_header_has_the_root_and_both_ends_of_the_inner_state() {
        let list = list(3);
        let commitment = list.commitment();
        assert_eq!(commitment.inner_before, roots(0).inner);
        assert_eq!(commitment.inner_after, roots(3).inner);
        let tree = list.tree();
        for segment in 0..3 {
            let leaf = list.leaf(segment).unwrap();
            let proof = tree.proof(segment as usize).unwrap();
            let root = &commitment.segments_root;
            assert!(merkle::verify(root, 3, segment as usize, &leaf, &proof));
        }
        assert_eq!(list.leaf(3), None);
    }

    #[test]
    fn every_part_of_a_segment_is_in_its_leaf() {
        let (before, after, work) = (roots(1), roots(2), list(1).work()[0]);
        let plain = leaf(0, &before, &after, &work);
        let others = [
            leaf(1, &before, &after, &work),
            leaf(0, &after, &before, &work),
            leaf(
                0,
                &StateRoots {
                    inner: Hash::ZERO,
                    ..before
                },
                &after,
                &work,
            ),
            leaf(
                0,
                &before,
                &after,
                &Work {
                    data: Hash::ZERO,
                    ..work
                },
            ),
            leaf(0, &before, &after, &Work { tokens: 1, ..work }),
            leaf(
                0,
                &before,
                &after,
                &Work {
                    loss_micronats: 1,
                    ..work
                },
            ),
            leaf(
                0,
                &before,
                &after,
                &Work {
                    gradient_norm_micro: 1,
                    ..work
                },
            ),
        ];
        assert!(others.iter().all(|other| *other != plain));
    }

    #[test]
    fn a_list_has_one_state_more_than_segments_and_not_too_many_of_either() {
        let (states, work) = (vec![roots(1); 66], vec![list(1).work()[0]; 65]);
        let of = |s: usize, w: usize| SegmentList::new(states[..s].to_vec(), work[..w].to_vec());
        assert!(of(65, 64).is_some() && of(2, 1).is_some());
        assert!(
            of(66, 65).is_none() && of(1, 0).is_none() && of(2, 2).is_none() && of(3, 1).is_none()
        );
    }

    #[test]
    fn a_leaf_is_pinned() {
        let leaf = list(2).leaf(1).unwrap().to_string();
        assert_eq!(
            leaf,
            "88dba58cf299bf8ae88d697333fc505aca9fe4a96b7ceae340dcb1c46ce7cde9"
        );
    }
}
