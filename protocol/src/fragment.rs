//! Which shards a round exchanges.
//!
//! Rule `one-at-a-time` (Streaming DiLoCo, arXiv 2501.18512): the shards of a run are dealt into P fragments, and
//! round r exchanges fragment r mod P alone. So each fragment is exchanged every P rounds, and a round moves a P-th of the
//! bytes. What a peer learns in the other fragments meanwhile stays with it (its drift) until their turn comes; nobody's theta
//! moves there. A round still has H steps: for the bytes per token of a run without fragments, H is divided by P.
//!
//! Rule `even-fragments`: fragments are contiguous, and each ends at the shard where its share of all elements, and of those
//! before it, comes out best. So no fragment has more elements than a P-th of all and those of the largest shard.

use std::ops::Range;
use std::sync::Arc;

use crate::manifest::RoundId;

/// The most fragments of a run, a guess: fragments of three layers, which Streaming DiLoCo has, of a model with 192. The last
/// rounds of a run, one less than it has fragments, leave drift that no round exchanges any more.
pub const FRAGMENTS_MAX: u32 = 64;

/// The shards of a run, dealt into fragments. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragments {
    /// Where each fragment ends, ascending; the last one with the last shard.
    ends: Arc<[u32]>,
}

/// The model has fewer shards than the manifest wants fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{fragments} fragments of a model with {shards} shards; lower one or codec.tiles_per_shard"
)]
pub struct TooFewShards {
    /// Fragments that are wanted.
    pub fragments: u32,
    /// Shards that there are.
    pub shards: usize,
}

impl Fragments {
    /// Deals shards with these numbers of `elements` into `count` fragments. Rule `even-fragments`.
    ///
    /// # Errors
    /// [`TooFewShards`] unless each fragment gets a shard; also when `count` is 0.
    pub fn deal(elements: &[u64], count: u32) -> Result<Fragments, TooFewShards> {
        let (shards, fragments) = (elements.len(), count as usize);
        let refused = TooFewShards {
            fragments: count,
            shards,
        };
        if fragments == 0 || fragments > shards || u32::try_from(shards).is_err() {
            return Err(refused);
        }
        let total: u128 = elements.iter().map(|e| u128::from(*e)).sum();
        let mut ends = Vec::with_capacity(fragments);
        // Elements before `end`, where the fragment at hand ends so far.
        let (mut end, mut before) = (0usize, 0u128);
        for place in 1..=fragments {
            // In units of 1 / fragments of an element.
            let share = total * place as u128;
            let distance = |elements: u128| (elements * fragments as u128).abs_diff(share);
            let last = shards - (fragments - place);
            let first = end + 1;
            while end < last {
                let next = before + u128::from(elements[end]);
                let nearer = distance(next) < distance(before);
                if end >= first && !nearer && place < fragments {
                    break;
                }
                (end, before) = (end + 1, next);
            }
            ends.push(end as u32);
        }
        Ok(Fragments { ends: ends.into() })
    }

    /// `shards` shards, all exchanged in each round.
    pub fn whole(shards: u32) -> Fragments {
        Fragments {
            ends: [shards].into(),
        }
    }

    /// Shards of the run.
    pub fn shards(&self) -> u32 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Number of fragments.
    pub fn count(&self) -> u32 {
        self.ends.len() as u32
    }

    /// The shards that `round` exchanges. Rule `one-at-a-time`.
    pub fn of(&self, round: RoundId) -> Range<u32> {
        self.at((round.0 % self.ends.len() as u64) as usize)
    }

    /// The shards of each fragment, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        (0..self.ends.len()).map(|place| self.at(place))
    }

    /// Shards of the fragment that has the most of them.
    pub fn shards_max(&self) -> u32 {
        self.iter()
            .map(|shards| shards.end - shards.start)
            .max()
            .unwrap_or(0)
    }

    fn at(&self, place: usize) -> Range<u32> {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(elements: &[u64], count: u32) -> Vec<Range<u32>> {
        Fragments::deal(elements, count).unwrap().iter().collect()
    }

    #[test]
    fn shards_of_one_size_are_dealt_evenly() {
        assert_eq!(Fragments::deal(&[7; 6], 1), Ok(Fragments::whole(6)));
        assert_eq!(dealt(&[7; 6], 3), [0..2, 2..4, 4..6]);
        assert_eq!(dealt(&[7; 7], 3), [0..2, 2..5, 5..7]);
        assert_eq!(dealt(&[7; 3], 3), [0..1, 1..2, 2..3]);
    }

    #[test]
    fn no_fragment_has_more_than_its_share_and_the_largest_shard() {
        // Small tensors beside large ones, empty shards at either end, and one shard that is more than all others.
        let cases: [&[u64]; 6] = [
            &[1, 1, 1, 100, 100, 1],
            &[0, 0, 0, 5],
            &[9, 0, 0, 0],
            &[1000, 1, 1, 1, 1],
            &[1, 1, 1, 1, 1000],
            &[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9],
        ];
        for elements in cases {
            let total: u64 = elements.iter().sum();
            let largest = elements.iter().max().unwrap();
            for count in 1..=elements.len() as u32 {
                let fragments = dealt(elements, count);
                assert_eq!(fragments.len(), count as usize);
                let mut next = 0;
                for shards in fragments {
                    assert_eq!(shards.start, next, "contiguous");
                    assert!(shards.end > shards.start, "never empty");
                    next = shards.end;
                    let range = shards.start as usize..shards.end as usize;
                    let own: u64 = elements[range].iter().sum();
                    let count = u64::from(count);
                    assert!(
                        own * count <= total + largest * count,
                        "{elements:?} in {count}"
                    );
                }
                assert_eq!(next as usize, elements.len(), "all are dealt");
            }
        }
    }

    #[test]
    fn each_fragment_has_its_turn_in_as_many_rounds_as_there_are() {
        let fragments = Fragments::deal(&[1; 5], 2).unwrap();
        assert_eq!((fragments.count(), fragments.shards()), (2, 5));
        let turns: Vec<_> = (1..=4).map(|round| fragments.of(RoundId(round))).collect();
        assert_eq!(turns, [2..5, 0..2, 2..5, 0..2]);
        assert_eq!(fragments.shards_max(), 3);
        assert_eq!(Fragments::whole(5).of(RoundId(9)), 0..5);
    }

    #[test]
    fn more_fragments_than_shards_are_refused() {
        for (shards, fragments) in [(3, 4), (0, 1), (3, 0)] {
            let refused = TooFewShards { fragments, shards };
            assert_eq!(Fragments::deal(&vec![1; shards], fragments), Err(refused));
        }
    }
}
