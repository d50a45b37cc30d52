//! What this peer can serve: bytes by their BLAKE3 hash, in memory for frames, in files for data and checkpoints.
//!
//! Opens no socket and never reads a file: it answers where the bytes of a hash are, and the bulk plane reads them.
//!
//! **When memory is full.** Bytes are inserted for a round. Rounds before the one given to
//! [`BlobStore::release_before`] are *released*: still served, for peers that lag, from their files where they have
//! some, else from memory, but the first to go, oldest round first, when room is needed. Bytes of rounds that are not released are never evicted, because a decision may name
//! them: an insert that does not fit beside them fails with [`StoreFull`]. That means that the limit is too small for
//! the rounds in flight; the caller stops fetching until it has released a round.
//!
//! Bytes that are being sent while they are evicted live until the last stream is done with them; the bulk plane
//! bounds those streams.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// BLAKE3 of a blob: its name.
pub type BlobHash = [u8; 32];

/// Registered file ranges at most; a further one is refused ([`FilesFull`]). A checkpoint of 10^12 parameters in
/// leaves of 16 MiB has 2.5 * 10^5 of them. About 150 bytes each.
pub const FILES_MAX: usize = 1 << 20;

/// Where the bytes of a blob are.
#[derive(Clone, Debug)]
pub enum Blob {
    /// In memory; a clone shares the bytes.
    Memory(Bytes),
    /// In a file that is read when the blob is sent.
    File(FileRange),
}

impl Blob {
    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Blob::Memory(bytes) => bytes.len() as u64,
            Blob::File(range) => range.length,
        }
    }
}

/// `length` bytes of the file at `path`, from `offset`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRange {
    pub path: Arc<Path>,
    pub offset: u64,
    pub length: u64,
}

/// Finds blobs by hash; the bulk plane calls it once per request, from many tasks, so it must not block on IO.
pub trait BlobSource: Send + Sync {
    /// The blob with this hash, or `None` when this peer does not hold it.
    fn open(&self, hash: &BlobHash) -> Option<Blob>;
}

/// The bytes do not fit beside what may not be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "blob of {need} bytes does not fit: {held} of {limit} bytes belong to rounds that are not released"
)]
pub struct StoreFull {
    pub need: u64,
    pub held: u64,
    pub limit: u64,
}

/// [`FILES_MAX`] file ranges are registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{FILES_MAX} file ranges are registered; forget some first")]
pub struct FilesFull;

/// The blobs of one peer. Shared between tasks; every call is O(log n) and takes one short lock.
#[derive(Debug)]
pub struct BlobStore {
    memory_bytes_max: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    memory: HashMap<BlobHash, Held>,
    /// Every entry of `memory` by (round, order of insertion): the order of eviction.
    order: BTreeMap<(u64, u64), BlobHash>,
    memory_bytes: u64,
    inserted: u64,
    /// Rounds before this one are released.
    released_before: u64,
    files: HashMap<BlobHash, FileRange>,
}

#[derive(Debug)]
struct Held {
    bytes: Bytes,
    key: (u64, u64),
}

impl BlobStore {
    /// An empty store that keeps at most `memory_bytes_max` bytes in memory.
    #[must_use]
    pub fn new(memory_bytes_max: u64) -> Self {
        Self {
            memory_bytes_max,
            inner: Mutex::default(),
        }
    }

    /// Keeps `bytes` for `round` and returns their hash. Evicts released blobs, oldest first, to make room.
    ///
    /// Bytes that are held already count once and belong to the later of both rounds. Cost: one BLAKE3 of `bytes`,
    /// outside the lock.
    ///
    /// # Errors
    /// [`StoreFull`]; the store is unchanged then.
    pub fn insert(&self, round: u64, bytes: Bytes) -> Result<BlobHash, StoreFull> {
        let hash = *blake3::hash(&bytes).as_bytes();
        self.insert_verified(round, hash, bytes)?;
        Ok(hash)
    }

    /// As [`BlobStore::insert`], for bytes whose hash the caller has just checked, as the bulk plane does.
    ///
    /// # Errors
    /// [`StoreFull`]; the store is unchanged then.
    pub fn insert_verified(
        &self,
        round: u64,
        hash: BlobHash,
        bytes: Bytes,
    ) -> Result<(), StoreFull> {
        let need = bytes.len() as u64;
        let mut inner = self.lock();
        let inner = &mut *inner;
        if let Some(held) = inner.memory.get_mut(&hash) {
            if held.key.0 < round {
                inner.order.remove(&held.key);
                held.key.0 = round;
                inner.order.insert(held.key, hash);
            }
            return Ok(());
        }
        let pinned: u64 = inner.memory_bytes - inner.released_bytes();
        if pinned.saturating_add(need) > self.memory_bytes_max {
            return Err(StoreFull {
                need,
                held: pinned,
                limit: self.memory_bytes_max,
            });
        }
        while inner.memory_bytes + need > self.memory_bytes_max {
            inner.evict_oldest();
        }
        let key = (round, inner.inserted);
        inner.inserted += 1;
        inner.memory_bytes += need;
        inner.order.insert(key, hash);
        inner.memory.insert(hash, Held { bytes, key });
        metrics::gauge!("gradmesh_bulk_store_bytes").set(inner.memory_bytes as f64);
        Ok(())
    }

    /// Declares that no round before `round` needs its bytes any more. Never moves backwards. What is in a registered
    /// file as well leaves memory at once.
    pub fn release_before(&self, round: u64) {
        let mut inner = self.lock();
        inner.released_before = inner.released_before.max(round);
        inner.leave_to_files();
    }

    /// Serves `length` bytes of the file at `path` from `offset` under `hash`. The hash is the caller's word: a
    /// receiver checks it in any case. The file may not change while it is registered.
    ///
    /// # Errors
    /// [`FilesFull`].
    pub fn register_file(
        &self,
        hash: BlobHash,
        path: PathBuf,
        offset: u64,
        length: u64,
    ) -> Result<(), FilesFull> {
        let mut inner = self.lock();
        if inner.files.len() >= FILES_MAX && !inner.files.contains_key(&hash) {
            return Err(FilesFull);
        }
        let range = FileRange {
            path: path.into(),
            offset,
            length,
        };
        inner.files.insert(hash, range);
        Ok(())
    }

    /// Stops serving every registered range of the file at `path`, before it is changed or deleted.
    pub fn forget_file(&self, path: &Path) {
        self.lock().files.retain(|_, range| &*range.path != path);
    }

    /// Stops serving the file range registered under `hash`. What is in memory of it stays.
    pub fn forget_range(&self, hash: &BlobHash) {
        self.lock().files.remove(hash);
    }

    /// The bytes of `hash`, if they are in memory.
    #[must_use]
    pub fn get(&self, hash: &BlobHash) -> Option<Bytes> {
        self.lock().memory.get(hash).map(|held| held.bytes.clone())
    }

    /// Bytes held in memory now.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.lock().memory_bytes
    }

    /// A poisoned lock is taken as it is: the only panics under it are assertions that `order` and `memory` agree, which fire
    /// before it has changed both maps, and one task's panic must not take the others down.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Bytes that may be evicted. Cost: O(released blobs), which are few: they go when room is needed.
    fn released_bytes(&self) -> u64 {
        self.order
            .range(..(self.released_before, 0))
            .filter_map(|(_, hash)| self.memory.get(hash))
            .map(|held| held.bytes.len() as u64)
            .sum()
    }

    /// Drops what is released and can be read from a file.
    fn leave_to_files(&mut self) {
        let released = self.order.range(..(self.released_before, 0));
        let in_files = released.filter(|(_, hash)| self.files.contains_key(*hash));
        let in_files: Vec<_> = in_files.map(|(key, hash)| (*key, *hash)).collect();
        for (key, hash) in in_files {
            self.order.remove(&key);
            self.drop_held(&hash);
        }
        metrics::gauge!("gradmesh_bulk_store_bytes").set(self.memory_bytes as f64);
    }

    fn evict_oldest(&mut self) {
        let (_, hash) = self
            .order
            .pop_first()
            .expect("room is only sought while released bytes are held");
        self.drop_held(&hash);
        metrics::counter!("gradmesh_bulk_store_evicted_total").increment(1);
    }

    fn drop_held(&mut self, hash: &BlobHash) {
        let held = self
            .memory
            .remove(hash)
            .expect("order and memory hold the same blobs");
        self.memory_bytes -= held.bytes.len() as u64;
    }
}

impl BlobSource for BlobStore {
    fn open(&self, hash: &BlobHash) -> Option<Blob> {
        let inner = self.lock();
        if let Some(held) = inner.memory.get(hash) {
            return Some(Blob::Memory(held.bytes.clone()));
        }
        inner.files.get(hash).cloned().map(Blob::File)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(tag: u8, length: usize) -> Bytes {
        Bytes::from(vec![tag; length])
    }

    #[test]
    fn full_store_refuses_rather_than_drop_a_round_in_flight() {
        let store = BlobStore::new(100);
        let first = store.insert(1, blob(1, 60)).unwrap();
        assert_eq!(
            store.insert(1, blob(2, 41)),
            Err(StoreFull {
                need: 41,
                held: 60,
                limit: 100
            })
        );
        assert!(store.get(&first).is_some());
        assert_eq!(store.memory_bytes(), 60);
        store.insert(1, blob(2, 40)).unwrap();
    }

    #[test]
    fn released_rounds_are_served_until_room_is_needed_and_go_oldest_first() {
        let store = BlobStore::new(100);
        let old = store.insert(1, blob(1, 40)).unwrap();
        let newer = store.insert(2, blob(2, 40)).unwrap();
        store.release_before(3);
        assert!(store.get(&old).is_some() && store.get(&newer).is_some());
        let current = store.insert(3, blob(3, 40)).unwrap();
        assert!(store.get(&old).is_none());
        assert!(store.get(&newer).is_some());
        assert!(store.get(&current).is_some());
        assert_eq!(store.memory_bytes(), 80);
    }

    #[test]
    fn released_bytes_that_are_in_a_file_leave_memory_and_are_served_from_there() {
        let store = BlobStore::new(100);
        let filed = store.insert(1, blob(1, 40)).unwrap();
        let only_here = store.insert(1, blob(2, 40)).unwrap();
        let file = PathBuf::from("/frames/1");
        store.register_file(filed, file, 0, 40).unwrap();
        assert!(matches!(store.open(&filed), Some(Blob::Memory(_))));
        store.release_before(2);
        assert_eq!(store.memory_bytes(), 40);
        assert!(matches!(store.open(&filed), Some(Blob::File(_))));
        assert!(store.get(&only_here).is_some());
    }

    #[test]
    fn release_never_moves_backwards() {
        let store = BlobStore::new(10);
        store.insert(1, blob(1, 10)).unwrap();
        store.release_before(2);
        store.release_before(0);
        store.insert(2, blob(2, 10)).unwrap();
    }

    #[test]
    fn same_bytes_count_once_and_belong_to_the_later_round() {
        let store = BlobStore::new(100);
        let hash = store.insert(1, blob(1, 60)).unwrap();
        assert_eq!(store.insert(5, blob(1, 60)).unwrap(), hash);
        assert_eq!(store.memory_bytes(), 60);
        store.release_before(5);
        assert!(store.insert(5, blob(2, 60)).is_err());
        assert!(store.get(&hash).is_some());
    }

    #[test]
    fn blob_larger_than_the_store_is_refused_without_evicting_anything() {
        let store = BlobStore::new(100);
        let hash = store.insert(1, blob(1, 50)).unwrap();
        store.release_before(2);
        assert!(store.insert(2, blob(2, 101)).is_err());
        assert!(store.get(&hash).is_some());
    }

    #[test]
    fn file_range_is_served_until_its_file_is_forgotten() {
        let store = BlobStore::new(0);
        let path = PathBuf::from("/data/leaf");
        store.register_file([1; 32], path.clone(), 7, 9).unwrap();
        let Some(Blob::File(range)) = store.open(&[1; 32]) else {
            panic!("registered file is not found");
        };
        assert_eq!((range.offset, range.length), (7, 9));
        store.forget_file(&path);
        assert!(store.open(&[1; 32]).is_none());
    }

    #[test]
    fn empty_blob_fits_an_empty_store() {
        let store = BlobStore::new(0);
        let hash = store.insert(1, Bytes::new()).unwrap();
        assert_eq!(store.open(&hash).unwrap().length(), 0);
    }
}
