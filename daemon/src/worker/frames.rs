//! Frames on disk: one file for each round, to which frames are appended.
//!
//! A file is a sequence of records: the frame's hash (32 bytes), its length (u64, little endian, not zero), its bytes. One file
//! and not one for each frame, because a round of a large model has thousands of frames for each peer, and making and
//! removing files costs a file system more than the bytes do.
//!
//! What a killed process left half written is the last record of a file: it is longer than what is there, and goes when the
//! file is opened again. A frame's bytes are checked against its hash whenever they are read.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::RoundId;

use super::disk::{DiskError, Syncer, Unsynced, io_error};

/// Bytes before those of a frame.
const HEAD_BYTES: usize = 40;

/// Extension of a round's file, behind its number.
const EXTENSION: &str = "frames";

/// Where a frame lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FramePlace {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The frames of all rounds. Clones are the same frames.
#[derive(Debug, Clone)]
pub(super) struct Frames {
    folder: PathBuf,
    rounds: Arc<Mutex<BTreeMap<RoundId, RoundFile>>>,
    syncer: Syncer,
}

impl Frames {
    /// Those in `folder`, which is there.
    ///
    /// # Errors
    /// If it cannot be read, or a half record cannot be removed.
    pub(super) fn open(folder: PathBuf, syncer: Syncer) -> Result<Frames, DiskError> {
        let mut rounds = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
            let path = entry.map_err(io_error(&folder))?.path();
            if let Some(round) = round_of(&path) {
                let file = RoundFile::open(&path).map_err(io_error(&path))?;
                rounds.insert(round, file);
            }
        }
        Ok(Frames {
            folder,
            rounds: Arc::new(Mutex::new(rounds)),
            syncer,
        })
    }

    /// The file of a round's frames.
    pub(super) fn path(&self, round: RoundId) -> PathBuf {
        self.folder.join(format!("{:06}.{EXTENSION}", round.0))
    }

    /// Writes a frame; one that is there already is left as it is.
    ///
    /// # Errors
    /// If the disk refuses; what is there already stays as it is.
    pub(super) fn write(&self, round: RoundId, hash: &Hash, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.path(round);
        let mut rounds = self.lock();
        let file = match rounds.entry(round) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(RoundFile::open(&path).map_err(io_error(&path))?),
        };
        if file.places.contains_key(hash) {
            return Ok(());
        }
        file.append(hash, bytes).map_err(io_error(&path))?;
        self.syncer.ask(&file.file);
        Ok(())
    }

    /// A frame, if it is here and whole.
    pub(super) fn read(&self, round: RoundId, hash: &Hash) -> Option<Bytes> {
        let (file, (offset, length)) = {
            let rounds = self.lock();
            let round = rounds.get(&round)?;
            (Arc::clone(&round.file), *round.places.get(hash)?)
        };
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        file.file.read_exact_at(&mut bytes, offset).ok()?;
        (Hash::of_content(&bytes) == *hash).then(|| bytes.into())
    }

    /// Where a frame lies, if it is here.
    pub(super) fn place(&self, round: RoundId, hash: &Hash) -> Option<FramePlace> {
        let (offset, length) = *self.lock().get(&round)?.places.get(hash)?;
        Some(FramePlace {
            path: self.path(round),
            offset,
            length,
        })
    }

    /// Every frame here, in the order of rounds and hashes.
    pub(super) fn list(&self) -> Vec<(RoundId, Hash)> {
        let rounds = self.lock();
        let of_round = |(round, file): (&RoundId, &RoundFile)| {
            let mut hashes: Vec<_> = file.places.keys().map(|hash| (*round, *hash)).collect();
            hashes.sort_unstable();
            hashes
        };
        rounds.iter().flat_map(of_round).collect()
    }

    /// Deletes the frames of the rounds before `round`.
    ///
    /// # Errors
    /// If a file cannot be deleted.
    pub(super) fn release_before(&self, round: RoundId) -> Result<(), DiskError> {
        let mut rounds = self.lock();
        while let Some((oldest, _)) = rounds.first_key_value()
            && *oldest < round
        {
            let path = self.path(*oldest);
            fs::remove_file(&path).map_err(io_error(&path))?;
            rounds.pop_first();
        }
        Ok(())
    }

    /// A panic under the lock leaves at worst a frame on disk that no place names.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RoundId, RoundFile>> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frames of a round.
#[derive(Debug)]
struct RoundFile {
    file: Arc<Unsynced>,
    /// Where the next record goes.
    end: u64,
    /// Offset and length of each frame.
    places: HashMap<Hash, (u64, u64)>,
}

impl RoundFile {
    /// Opens or makes the file, finds its frames and cuts off a half record.
    fn open(path: &Path) -> io::Result<RoundFile> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        let bytes = file.metadata()?.len();
        let mut places = HashMap::new();
        let mut end = 0;
        while let Some(length) = record_at(&file, end, bytes, &mut places)? {
            end += HEAD_BYTES as u64 + length;
        }
        if end < bytes {
            file.set_len(end)?;
        }
        Ok(RoundFile {
            file: Arc::new(file.into()),
            end,
            places,
        })
    }

    fn append(&mut self, hash: &Hash, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(!bytes.is_empty(), "a frame has at least a header");
        let length = bytes.len() as u64;
        let mut head = [0; HEAD_BYTES];
        head[..32].copy_from_slice(&hash.0);
        head[32..].copy_from_slice(&length.to_le_bytes());
        let file = &self.file.file;
        file.write_all_at(&head, self.end)?;
        let offset = self.end + HEAD_BYTES as u64;
        file.write_all_at(bytes, offset)?;
        self.places.insert(*hash, (offset, length));
        self.end = offset + length;
        Ok(())
    }
}

/// Adds the place of the record at `start`; the length of its frame. `None` if no whole record is there.
fn record_at(
    file: &File,
    start: u64,
    file_bytes: u64,
    places: &mut HashMap<Hash, (u64, u64)>,
) -> io::Result<Option<u64>> {
    let offset = start + HEAD_BYTES as u64;
    let Some(left) = file_bytes.checked_sub(offset) else {
        return Ok(None);
    };
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, start)?;
    let (hash, length) = head.split_at(32);
    let length = length.try_into().map_or(0, u64::from_le_bytes);
    if length == 0 || length > left {
        return Ok(None);
    }
    let hash = hash.try_into().map_err(io::Error::other)?;
    places.insert(Hash(hash), (offset, length));
    Ok(Some(length))
}

/// The round whose frames a file has.
fn round_of(path: &Path) -> Option<RoundId> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    digits.parse().ok().map(RoundId)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Frames {
        Frames::open(folder.to_owned(), Syncer::start().unwrap()).unwrap()
    }

    fn frame(tag: u8, length: usize) -> (Hash, Vec<u8>) {
        let bytes = vec![tag; length];
        (Hash::of_content(&bytes), bytes)
    }

    #[test]
    fn equal_frames_are_written_at_the_same_time_and_lie_there_once() {
        let temp = tempfile::tempdir().unwrap();
        let frames = open(temp.path());
        let (hash, bytes) = frame(7, 1 << 20);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| frames.write(RoundId(1), &hash, &bytes).unwrap());
            }
        });
        assert_eq!(frames.list(), [(RoundId(1), hash)]);
        let length = fs::metadata(frames.path(RoundId(1))).unwrap().len();
        assert_eq!(length, (1 << 20) + 40);
    }

    #[test]
    fn frames_are_found_again_where_they_are_said_to_lie() {
        let temp = tempfile::tempdir().unwrap();
        let all = [frame(1, 10), frame(2, 1), frame(3, 100)];
        let frames = open(temp.path());
        for (hash, bytes) in &all {
            frames.write(RoundId(4), hash, bytes).unwrap();
        }
        for frames in [frames, open(temp.path())] {
            assert_eq!(frames.list().len(), 3);
            for (hash, bytes) in &all {
                assert_eq!(frames.read(RoundId(4), hash).as_deref(), Some(&bytes[..]));
                let place = frames.place(RoundId(4), hash).unwrap();
                assert_eq!(place.length, bytes.len() as u64);
                let mut there = vec![0; bytes.len()];
                let file = File::open(&place.path).unwrap();
                file.read_exact_at(&mut there, place.offset).unwrap();
                assert_eq!(there, *bytes);
                assert_eq!(frames.place(RoundId(5), hash), None);
            }
        }
    }

    #[test]
    fn a_file_cut_anywhere_keeps_its_whole_frames_and_takes_further_ones() {
        let temp = tempfile::tempdir().unwrap();
        let all = [frame(1, 3), frame(2, 5)];
        let path = open(temp.path()).path(RoundId(1));
        let frames = open(temp.path());
        for (hash, bytes) in &all {
            frames.write(RoundId(1), hash, bytes).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), 43 + 45);
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let frames = open(temp.path());
            let kept = [43, 88].into_iter().filter(|end| length >= *end).count();
            assert_eq!(frames.list().len(), kept, "{length} bytes");
            for (hash, bytes) in &all {
                frames.write(RoundId(1), hash, bytes).unwrap();
            }
            assert_eq!(fs::read(&path).unwrap(), whole, "{length} bytes");
        }
    }

    #[test]
    fn a_frame_that_was_changed_is_not_read() {
        let temp = tempfile::tempdir().unwrap();
        let frames = open(temp.path());
        let (hash, bytes) = frame(1, 9);
        frames.write(RoundId(1), &hash, &bytes).unwrap();
        let file = File::options()
            .write(true)
            .open(frames.path(RoundId(1)))
            .unwrap();
        file.write_all_at(&[0], 40).unwrap();
        assert_eq!(frames.read(RoundId(1), &hash), None);
    }

    #[test]
    fn a_file_of_zeros_has_no_frames() {
        let temp = tempfile::tempdir().unwrap();
        let path = open(temp.path()).path(RoundId(1));
        fs::write(&path, [0; 200]).unwrap();
        assert_eq!(open(temp.path()).list(), []);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn rounds_are_released_oldest_first_and_strangers_stay() {
        let temp = tempfile::tempdir().unwrap();
        let stranger = temp.path().join("notes.txt");
        fs::write(&stranger, "mine").unwrap();
        let frames = open(temp.path());
        let (hash, bytes) = frame(1, 9);
        for round in [3, 4, 1_000_000] {
            frames.write(RoundId(round), &hash, &bytes).unwrap();
        }
        frames.release_before(RoundId(4)).unwrap();
        for frames in [frames, open(temp.path())] {
            let kept = [(RoundId(4), hash), (RoundId(1_000_000), hash)];
            assert_eq!(frames.list(), kept);
            assert_eq!(frames.read(RoundId(3), &hash), None);
        }
        assert!(stranger.exists());
    }
}
