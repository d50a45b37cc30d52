//! Extrinsics that wait for a block.
//!
//! The runtime tells of each which tags it needs and which it gives; for a signed extrinsic these are its signer's nonces.
//! One whose tags are all there is ready, another waits for those before it. Two that give the same tag (two programs with
//! the same key) exclude each other: the second one gets in only with a higher priority.
//!
//! Bounds: [`EXTRINSICS_MAX`] extrinsics of [`BYTES_MAX`] bytes in total; a newcomer beyond that is refused.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use codec::Encode;

use super::executor::{AccountId, Hash, ValidTransaction};

/// Extrinsics that the pool takes.
pub(crate) const EXTRINSICS_MAX: usize = 1_024;
/// Bytes that the pool takes: as many as four full blocks.
const BYTES_MAX: usize = 40 << 20;

/// An extrinsic that the runtime found valid, or valid later.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) hash: Hash,
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) validity: ValidTransaction,
}

/// Why an extrinsic does not get in although the runtime would take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PoolError {
    /// It is in.
    AlreadyImported(Hash),
    /// It gives a tag that another one gives, which does not have a lower priority.
    TooLowPriority { old: u64, new: u64 },
    /// The pool is full.
    Full,
}

/// The pool.
#[derive(Default)]
pub(crate) struct Pool {
    /// In order of arrival.
    pending: BTreeMap<u64, Pending>,
    places: HashMap<Hash, u64>,
    /// Which extrinsic gives a tag.
    given: HashMap<Vec<u8>, Hash>,
    /// What [`Pool::newly_ready`] has told.
    told_ready: HashSet<Hash>,
    bytes: usize,
    arrivals: u64,
}

impl Pool {
    pub(crate) fn contains(&self, hash: &Hash) -> bool {
        self.places.contains_key(hash)
    }

    /// All of them, in order of arrival.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.pending.values()
    }

    /// How many of them `account` signed whose nonces follow one another from `nonce` on.
    pub(crate) fn nonces_from(&self, account: &AccountId, nonce: u32) -> u32 {
        let given = |nonce: u32| self.given.contains_key(&(account, nonce).encode());
        (0..)
            .take_while(|offset| nonce.checked_add(*offset).is_some_and(given))
            .last()
            .map_or(0, |last| last + 1)
    }

    /// Takes an extrinsic in, and gives those that it pushed out.
    pub(crate) fn insert(&mut self, pending: Pending) -> Result<Vec<Hash>, PoolError> {
        if self.contains(&pending.hash) {
            return Err(PoolError::AlreadyImported(pending.hash));
        }
        let rivals: HashSet<Hash> = pending
            .validity
            .provides
            .iter()
            .filter_map(|tag| self.given.get(tag))
            .copied()
            .collect();
        let old = rivals
            .iter()
            .filter_map(|hash| self.get(hash))
            .map(|rival| rival.validity.priority)
            .max();
        let new = pending.validity.priority;
        if let Some(old) = old.filter(|old| *old >= new) {
            return Err(PoolError::TooLowPriority { old, new });
        }
        let full = self.pending.len() - rivals.len() >= EXTRINSICS_MAX
            || self.bytes.saturating_add(pending.bytes.len()) > BYTES_MAX;
        if full {
            return Err(PoolError::Full);
        }
        let mut usurped: Vec<Hash> = rivals.into_iter().collect();
        usurped.sort();
        for hash in &usurped {
            self.remove(hash);
        }
        let hash = pending.hash;
        for tag in &pending.validity.provides {
            self.given.insert(tag.clone(), hash);
        }
        self.bytes += pending.bytes.len();
        self.places.insert(hash, self.arrivals);
        self.pending.insert(self.arrivals, pending);
        self.arrivals += 1;
        Ok(usurped)
    }

    /// Removes an extrinsic and gives it, if it is in.
    pub(crate) fn remove(&mut self, hash: &Hash) -> Option<Pending> {
        let removed = self.pending.remove(&self.places.remove(hash)?)?;
        self.given.retain(|_, giver| giver != hash);
        self.told_ready.remove(hash);
        self.bytes -= removed.bytes.len();
        Some(removed)
    }

    /// Takes over what the runtime says of an extrinsic after a new block.
    pub(crate) fn revalidate(&mut self, hash: &Hash, validity: ValidTransaction) {
        if let Some(pending) = self
            .places
            .get(hash)
            .and_then(|place| self.pending.get_mut(place))
        {
            pending.validity = validity;
        }
    }

    /// The extrinsics that can go into a block, in this order: each after those that it needs, of those that are free to
    /// go the one of the highest priority, of these the one that came first.
    pub(crate) fn ready(&self) -> Vec<Pending> {
        let mut needs: HashMap<u64, usize> = HashMap::new();
        let mut waiting: HashMap<&[u8], Vec<u64>> = HashMap::new();
        let mut free = BinaryHeap::new();
        for (place, pending) in &self.pending {
            let requires: HashSet<&[u8]> = pending
                .validity
                .requires
                .iter()
                .map(Vec::as_slice)
                .collect();
            if requires.is_empty() {
                free.push((pending.validity.priority, Reverse(*place)));
            }
            needs.insert(*place, requires.len());
            for tag in requires {
                waiting.entry(tag).or_default().push(*place);
            }
        }
        let mut ready = Vec::new();
        while let Some((_, Reverse(place))) = free.pop() {
            let Some(pending) = self.pending.get(&place) else {
                continue;
            };
            ready.push(pending.clone());
            for tag in &pending.validity.provides {
                for dependent in waiting.remove(tag.as_slice()).unwrap_or_default() {
                    let Some(missing) = needs.get_mut(&dependent) else {
                        continue;
                    };
                    *missing -= 1;
                    if *missing == 0
                        && let Some(next) = self.pending.get(&dependent)
                    {
                        free.push((next.validity.priority, Reverse(dependent)));
                    }
                }
            }
        }
        ready
    }

    /// The ready extrinsics that this has not given before.
    pub(crate) fn newly_ready(&mut self) -> Vec<Hash> {
        let ready = self.ready();
        ready
            .iter()
            .map(|pending| pending.hash)
            .filter(|hash| self.told_ready.insert(*hash))
            .collect()
    }

    fn get(&self, hash: &Hash) -> Option<&Pending> {
        self.pending.get(self.places.get(hash)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extrinsic(id: u8, requires: &[&str], provides: &[&str], priority: u64) -> Pending {
        let tags = |tags: &[&str]| tags.iter().map(|tag| tag.as_bytes().to_vec()).collect();
        Pending {
            hash: Hash::repeat_byte(id),
            bytes: Arc::from([id]),
            validity: ValidTransaction {
                priority,
                requires: tags(requires),
                provides: tags(provides),
                longevity: 64,
                propagate: true,
            },
        }
    }

    fn ready(pool: &Pool) -> Vec<u8> {
        pool.ready()
            .iter()
            .map(|pending| pending.bytes[0])
            .collect()
    }

    #[test]
    fn later_nonce_waits_for_the_earlier_one() {
        let mut pool = Pool::default();
        pool.insert(extrinsic(2, &["a0"], &["a1"], 9)).unwrap();
        assert_eq!(pool.newly_ready(), []);
        pool.insert(extrinsic(1, &[], &["a0"], 0)).unwrap();
        assert_eq!(pool.newly_ready(), [1, 2].map(Hash::repeat_byte));
        assert_eq!(pool.newly_ready(), []);
        pool.insert(extrinsic(3, &[], &["b0"], 5)).unwrap();
        assert_eq!(
            ready(&pool),
            [3, 1, 2],
            "priority first, but never before what it needs"
        );
    }

    #[test]
    fn same_nonce_twice_needs_a_higher_priority() {
        let mut pool = Pool::default();
        pool.insert(extrinsic(1, &[], &["a0"], 5)).unwrap();
        assert_eq!(
            pool.insert(extrinsic(1, &[], &["a0"], 5)),
            Err(PoolError::AlreadyImported(Hash::repeat_byte(1)))
        );
        assert_eq!(
            pool.insert(extrinsic(2, &[], &["a0"], 5)),
            Err(PoolError::TooLowPriority { old: 5, new: 5 })
        );
        assert_eq!(
            pool.insert(extrinsic(3, &[], &["a0"], 6)),
            Ok(vec![Hash::repeat_byte(1)])
        );
        assert_eq!(ready(&pool), [3]);
    }

    #[test]
    fn next_nonce_counts_what_waits_without_a_gap() {
        let alice = AccountId::new([1; 32]);
        let mut pool = Pool::default();
        for (id, nonce) in [(1, 5u32), (2, 6), (3, 8)] {
            let mut pending = extrinsic(id, &[], &[], 0);
            pending.validity.provides = vec![(&alice, nonce).encode()];
            pool.insert(pending).unwrap();
        }
        assert_eq!(pool.nonces_from(&alice, 5), 2);
        assert_eq!(pool.nonces_from(&alice, 7), 0);
        assert_eq!(pool.nonces_from(&AccountId::new([2; 32]), 5), 0);
    }

    #[test]
    fn full_pool_refuses_but_lets_a_rival_replace() {
        let mut pool = Pool::default();
        for id in 0..EXTRINSICS_MAX {
            let mut pending = extrinsic(0, &[], &[&format!("tag{id}")], 1);
            pending.hash = Hash::from_low_u64_be(id as u64);
            pool.insert(pending).unwrap();
        }
        assert_eq!(
            pool.insert(extrinsic(1, &[], &["new"], 1)),
            Err(PoolError::Full)
        );
        assert!(pool.insert(extrinsic(2, &[], &["tag7"], 2)).is_ok());
        assert_eq!(pool.iter().count(), EXTRINSICS_MAX);
        pool.remove(&Hash::repeat_byte(2)).unwrap();
        assert!(pool.insert(extrinsic(1, &[], &["new"], 1)).is_ok());
    }
}
