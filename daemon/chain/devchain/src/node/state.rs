//! The chain's storage after one block: an ordered map from keys to values, cheap to keep once per block.
//!
//! A snapshot shares all that did not change with the block before it: cloning one costs a reference count, writing a key
//! copies the path to it.

use std::collections::BTreeSet;
use std::ops::Bound;

use rpds::RedBlackTreeMapSync;

/// Storage after one block. Clone it freely.
#[derive(Clone, Debug)]
pub(crate) struct State {
    entries: RedBlackTreeMapSync<Vec<u8>, Vec<u8>>,
}

/// What takes a state back to the one before it: the former value of each key that changed, `None` if it was not there.
pub(crate) type Undo = Vec<(Vec<u8>, Option<Vec<u8>>)>;

impl State {
    pub(crate) fn empty() -> State {
        State {
            entries: RedBlackTreeMapSync::new_sync(),
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Sets `key`, or removes it.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.entries.insert_mut(key, value),
            None => {
                self.entries.remove_mut(key.as_slice());
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// The keys after `key`, in order.
    pub(crate) fn keys_after<'s>(&'s self, key: &'s [u8]) -> impl Iterator<Item = &'s [u8]> {
        self.entries
            .range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded))
            .map(|(key, _)| key.as_slice())
    }

    /// The keys that start with `prefix`, in order; only those after `start` if there is one.
    pub(crate) fn keys_with<'s>(
        &'s self,
        prefix: &'s [u8],
        start: Option<&'s [u8]>,
    ) -> impl Iterator<Item = &'s [u8]> {
        let lower = match start {
            Some(start) if start >= prefix => Bound::Excluded(start),
            Some(_) | None => Bound::Included(prefix),
        };
        self.entries
            .range::<[u8], _>((lower, Bound::Unbounded))
            .map(|(key, _)| key.as_slice())
            .take_while(move |key| key.starts_with(prefix))
    }

    /// What takes `self` back to `before`, if they differ in no other keys than `touched`.
    pub(crate) fn undo_to(&self, before: &State, touched: &BTreeSet<Vec<u8>>) -> Undo {
        touched
            .iter()
            .filter(|key| self.get(key) != before.get(key))
            .map(|key| (key.clone(), before.get(key).map(<[u8]>::to_vec)))
            .collect()
    }

    /// Applies `undo`.
    pub(crate) fn take_back(&mut self, undo: &Undo) {
        for (key, value) in undo {
            self.put(key.clone(), value.clone());
        }
    }
}

impl FromIterator<(Vec<u8>, Vec<u8>)> for State {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, Vec<u8>)>>(entries: I) -> State {
        let mut state = State::empty();
        for (key, value) in entries {
            state.entries.insert_mut(key, value);
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(pairs: &[(&str, &str)]) -> State {
        pairs
            .iter()
            .map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect()
    }

    fn keys<'s>(keys: impl Iterator<Item = &'s [u8]>) -> Vec<&'s str> {
        keys.map(|key| std::str::from_utf8(key).unwrap()).collect()
    }

    #[test]
    fn snapshot_does_not_see_later_writes() {
        let mut now = state(&[("a", "1")]);
        let before = now.clone();
        now.put(b"a".to_vec(), Some(b"2".to_vec()));
        now.put(b"b".to_vec(), Some(b"3".to_vec()));
        assert_eq!(before.get(b"a"), Some(&b"1"[..]));
        assert_eq!(before.get(b"b"), None);
    }

    #[test]
    fn undo_restores_changed_added_and_removed_keys_only() {
        let before = state(&[("changed", "1"), ("removed", "2"), ("kept", "3")]);
        let mut now = before.clone();
        now.put(b"changed".to_vec(), Some(b"9".to_vec()));
        now.put(b"removed".to_vec(), None);
        now.put(b"added".to_vec(), Some(b"4".to_vec()));
        now.put(b"kept".to_vec(), Some(b"3".to_vec()));
        let touched = ["changed", "removed", "added", "kept"]
            .map(|key| key.as_bytes().to_vec())
            .into();
        let undo = now.undo_to(&before, &touched);
        assert_eq!(undo.len(), 3);
        now.take_back(&undo);
        assert_eq!(
            now.iter().collect::<Vec<_>>(),
            before.iter().collect::<Vec<_>>()
        );
    }

    #[test]
    fn pages_of_a_prefix_start_after_the_last_key_of_the_page_before() {
        let state = state(&[("a", ""), ("pa", ""), ("pb", ""), ("pc", ""), ("q", "")]);
        assert_eq!(keys(state.keys_with(b"p", None)), ["pa", "pb", "pc"]);
        assert_eq!(keys(state.keys_with(b"p", Some(b"pa"))), ["pb", "pc"]);
        assert_eq!(keys(state.keys_with(b"p", Some(b"a"))), ["pa", "pb", "pc"]);
        assert_eq!(keys(state.keys_with(b"p", Some(b"q"))), [""; 0]);
        assert_eq!(keys(state.keys_after(b"pc")), ["q"]);
    }
}
