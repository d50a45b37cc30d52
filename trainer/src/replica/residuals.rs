//! The content hashes of the residuals that owners keep, by shard and group: part of the shared state.
//!
//! Their place in the state root: when any residual is known, one leaf per shard follows the leaves of the tiles. Its
//! content is, for each group with a residual, in the order of their ids, the 32 bytes of the id and the 32 bytes of the
//! hash.

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::plan::GroupId;

const HASH_BYTES: usize = 32;

/// By shard: the groups in ascending order, none of the hashes [`Hash::ZERO`].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Residuals(Vec<Vec<(GroupId, Hash)>>);

impl Residuals {
    pub(super) fn new(shards: usize) -> Self {
        Self(vec![Vec::new(); shards])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// [`Hash::ZERO`]: none.
    pub(super) fn get(&self, group: GroupId, shard: usize) -> Hash {
        let of_shard = self.0.get(shard).map(Vec::as_slice).unwrap_or_default();
        let place = of_shard.binary_search_by_key(&group, |(group, _)| *group);
        place.map_or(Hash::ZERO, |place| of_shard[place].1)
    }

    /// [`Hash::ZERO`] removes it.
    pub(super) fn set(&mut self, group: GroupId, shard: usize, residual: Hash) {
        let of_shard = &mut self.0[shard];
        match of_shard.binary_search_by_key(&group, |(group, _)| *group) {
            Ok(place) if residual == Hash::ZERO => drop(of_shard.remove(place)),
            Ok(place) => of_shard[place].1 = residual,
            Err(_) if residual == Hash::ZERO => {}
            Err(place) => of_shard.insert(place, (group, residual)),
        }
    }

    /// Forgets all groups but `groups`.
    pub(super) fn retain(&mut self, groups: &[GroupId]) {
        for of_shard in &mut self.0 {
            of_shard.retain(|(group, _)| groups.contains(group));
        }
    }

    /// The content of the leaf of `shard`; `None` for one that does not exist.
    pub(super) fn leaf(&self, shard: usize) -> Option<Vec<u8>> {
        let of_shard = self.0.get(shard)?.iter();
        Some(
            of_shard
                .flat_map(|(group, hash)| [group.0.0, hash.0].concat())
                .collect(),
        )
    }

    /// Restores [`Self::leaf`]; `false`, with nothing changed, for content that no leaf has.
    pub(super) fn put(&mut self, shard: usize, content: &[u8]) -> bool {
        let (hashes, rest) = content.as_chunks::<HASH_BYTES>();
        let (pairs, odd) = hashes.as_chunks::<2>();
        let pair = |[group, hash]: &[[u8; HASH_BYTES]; 2]| (GroupId(Hash(*group)), Hash(*hash));
        let read: Vec<_> = pairs.iter().map(pair).collect();
        let is_canonical = rest.is_empty()
            && odd.is_empty()
            && read.iter().all(|(_, hash)| *hash != Hash::ZERO)
            && read.is_sorted_by(|(one, _), (next, _)| one < next);
        match self.0.get_mut(shard) {
            Some(of_shard) if is_canonical => {
                *of_shard = read;
                true
            }
            Some(_) | None => false,
        }
    }
}
