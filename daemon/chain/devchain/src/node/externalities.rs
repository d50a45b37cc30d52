//! What the native runtime calls for its storage: a [`State`] that it may change, with transactions.
//!
//! A transaction is a snapshot to go back to. There are no child tries, no offchain storage and no extensions: the
//! runtime has no use for them, and a call that wants one panics, which ends the call (see
//! [`Executor`](super::executor::Executor)).

use std::any::{Any, TypeId};
use std::collections::BTreeSet;

use codec::{Compact, Decode, Encode};
use sp_core::storage::{ChildInfo, StateVersion, TrackedStorageKey};
use sp_externalities::{Error, Extension, ExtensionStore, Externalities, MultiRemovalResults};

use super::state::State;

/// A state being worked on.
pub(crate) struct Workspace {
    state: State,
    /// Every key that was written, also within transactions that were rolled back.
    touched: BTreeSet<Vec<u8>>,
    /// The state at the start of each open transaction, outermost first.
    transactions: Vec<State>,
}

impl Workspace {
    pub(crate) fn new(state: State) -> Workspace {
        Workspace {
            state,
            touched: BTreeSet::new(),
            transactions: Vec::new(),
        }
    }

    /// Runs `work` with this as its storage.
    pub(crate) fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        sp_externalities::set_and_run_with_externalities(self, work)
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Goes back to `state`, which this held before, and forgets open transactions.
    pub(crate) fn reset_to(&mut self, state: State) {
        self.state = state;
        self.transactions.clear();
    }

    /// The state, and the keys that may differ from the one this started with.
    pub(crate) fn finish(self) -> (State, BTreeSet<Vec<u8>>) {
        (self.state, self.touched)
    }

    fn write(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.touched.insert(key.clone());
        self.state.put(key, value);
    }
}

const NO_CHILD_TRIES: &str = "the dev chain's runtime has no child tries";
const NO_BENCHMARKS: &str = "the dev chain's runtime is not benchmarked";

impl Externalities for Workspace {
    fn set_offchain_storage(&mut self, _: &[u8], _: Option<&[u8]>) {}

    fn storage(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        self.state.get(key).map(<[u8]>::to_vec)
    }

    fn storage_hash(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        self.state
            .get(key)
            .map(|value| sp_io::hashing::blake2_256(value).to_vec())
    }

    fn next_storage_key(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        self.state.keys_after(key).next().map(<[u8]>::to_vec)
    }

    /// Removes all of them whatever the limit is, as is allowed where removing is cheap.
    fn clear_prefix(
        &mut self,
        prefix: &[u8],
        _: Option<u32>,
        _: Option<&[u8]>,
    ) -> MultiRemovalResults {
        let keys: Vec<Vec<u8>> = self
            .state
            .keys_with(prefix, None)
            .map(<[u8]>::to_vec)
            .collect();
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        for key in keys {
            self.write(key, None);
        }
        MultiRemovalResults {
            maybe_cursor: None,
            backend: count,
            unique: count,
            loops: count,
        }
    }

    fn place_storage(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.write(key, value);
    }

    /// The value is a SCALE vector: its length counts up by one, the element goes to its end. A value that is none
    /// starts anew.
    fn storage_append(&mut self, key: Vec<u8>, element: Vec<u8>) {
        let value = self
            .state
            .get(&key)
            .and_then(|value| appended(value, &element));
        let value = value.unwrap_or_else(|| [Compact(1u32).encode(), element].concat());
        self.write(key, Some(value));
    }

    fn storage_root(&mut self, version: StateVersion) -> Vec<u8> {
        let entries = self
            .state
            .iter()
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect();
        sp_io::trie::blake2_256_root(entries, version).encode()
    }

    fn storage_start_transaction(&mut self) {
        self.transactions.push(self.state.clone());
    }

    fn storage_rollback_transaction(&mut self) -> Result<(), ()> {
        self.state = self.transactions.pop().ok_or(())?;
        Ok(())
    }

    fn storage_commit_transaction(&mut self) -> Result<(), ()> {
        self.transactions.pop().map(drop).ok_or(())
    }

    fn child_storage_hash(&mut self, _: &ChildInfo, _: &[u8]) -> Option<Vec<u8>> {
        unimplemented_here(NO_CHILD_TRIES)
    }

    fn child_storage(&mut self, _: &ChildInfo, _: &[u8]) -> Option<Vec<u8>> {
        unimplemented_here(NO_CHILD_TRIES)
    }

    fn next_child_storage_key(&mut self, _: &ChildInfo, _: &[u8]) -> Option<Vec<u8>> {
        unimplemented_here(NO_CHILD_TRIES)
    }

    fn kill_child_storage(
        &mut self,
        _: &ChildInfo,
        _: Option<u32>,
        _: Option<&[u8]>,
    ) -> MultiRemovalResults {
        unimplemented_here(NO_CHILD_TRIES)
    }

    fn clear_child_prefix(
        &mut self,
        _: &ChildInfo,
        _: &[u8],
        _: Option<u32>,
        _: Option<&[u8]>,
    ) -> MultiRemovalResults {
        unimplemented_here(NO_CHILD_TRIES)
    }

    fn place_child_storage(&mut self, _: &ChildInfo, _: Vec<u8>, _: Option<Vec<u8>>) {
        unimplemented_here(NO_CHILD_TRIES)
    }

    fn child_storage_root(&mut self, _: &ChildInfo, _: StateVersion) -> Vec<u8> {
        unimplemented_here(NO_CHILD_TRIES)
    }

    fn wipe(&mut self) {
        unimplemented_here(NO_BENCHMARKS)
    }

    fn commit(&mut self) {
        unimplemented_here(NO_BENCHMARKS)
    }

    fn read_write_count(&self) -> (u32, u32, u32, u32) {
        unimplemented_here(NO_BENCHMARKS)
    }

    fn reset_read_write_count(&mut self) {
        unimplemented_here(NO_BENCHMARKS)
    }

    fn get_whitelist(&self) -> Vec<TrackedStorageKey> {
        unimplemented_here(NO_BENCHMARKS)
    }

    fn set_whitelist(&mut self, _: Vec<TrackedStorageKey>) {
        unimplemented_here(NO_BENCHMARKS)
    }

    fn get_read_and_written_keys(&self) -> Vec<(Vec<u8>, u32, u32, bool)> {
        unimplemented_here(NO_BENCHMARKS)
    }
}

impl ExtensionStore for Workspace {
    fn extension_by_type_id(&mut self, _: TypeId) -> Option<&mut dyn Any> {
        None
    }

    fn register_extension_with_type_id(
        &mut self,
        _: TypeId,
        _: Box<dyn Extension>,
    ) -> Result<(), Error> {
        Err(Error::ExtensionsAreNotSupported)
    }

    fn deregister_extension_by_type_id(&mut self, _: TypeId) -> Result<(), Error> {
        Err(Error::ExtensionsAreNotSupported)
    }
}

/// `value` with `element` at its end, if it is a SCALE vector that can grow.
fn appended(value: &[u8], element: &[u8]) -> Option<Vec<u8>> {
    let mut rest = value;
    let Compact(length) = Compact::<u32>::decode(&mut rest).ok()?;
    Some([&Compact(length.checked_add(1)?).encode(), rest, element].concat())
}

fn unimplemented_here<T>(why: &str) -> T {
    panic!("{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_counts_elements_over_the_change_of_the_prefix_width() {
        let mut work = Workspace::new(State::empty());
        for element in 0..70u16 {
            work.storage_append(b"events".to_vec(), element.encode());
        }
        let value = work.storage(b"events").unwrap();
        assert_eq!(
            Vec::<u16>::decode(&mut &value[..]).unwrap(),
            (0..70).collect::<Vec<_>>()
        );
    }

    #[test]
    fn rolled_back_transaction_leaves_the_outer_one_as_it_was() {
        let mut work = Workspace::new(State::empty());
        work.storage_start_transaction();
        work.set_storage(b"a".to_vec(), b"1".to_vec());
        work.storage_start_transaction();
        work.set_storage(b"a".to_vec(), b"2".to_vec());
        work.set_storage(b"b".to_vec(), b"3".to_vec());
        assert_eq!(work.storage_rollback_transaction(), Ok(()));
        assert_eq!(work.storage_commit_transaction(), Ok(()));
        assert_eq!(work.storage_commit_transaction(), Err(()));
        let (state, touched) = work.finish();
        assert_eq!(state.iter().collect::<Vec<_>>(), [(&b"a"[..], &b"1"[..])]);
        assert_eq!(touched, BTreeSet::from([b"a".to_vec(), b"b".to_vec()]));
    }

    #[test]
    fn root_is_the_one_of_substrates_own_externalities() {
        // Of the trie {doe: reindeer, dog: puppy, dogglesworth: cat}, as sp-state-machine's tests have it.
        let mut work = Workspace::new(State::empty());
        for (key, value) in [
            ("doe", "reindeer"),
            ("dog", "puppy"),
            ("dogglesworth", "cat"),
        ] {
            work.set_storage(key.as_bytes().to_vec(), value.as_bytes().to_vec());
        }
        assert_eq!(
            hex::encode(work.storage_root(StateVersion::V1)),
            "39245109cef3758c2eed2ccba8d9b370a917850af3824bc8348d505df2c298fa"
        );
    }
}
