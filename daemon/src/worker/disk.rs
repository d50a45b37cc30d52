//! The state of one peer on disk.
//!
//! | name in the state directory | what |
//! |---|---|
//! | `state/round-NNNNNN.state` | the shared state after a round: the leaves' contents, one after the other; behind them the length of each and their number, u32 little endian |
//! | `residuals/HASH` | the residual of a shard that this peer owns |
//! | `private.bin` | error feedback, inner optimizer state, and the own update in flight |
//! | `frames/NNNNNN.frames` | the frames of a round (`frames.rs`), own and fetched; the latter when the round has been applied |
//!
//! Every file but those of frames appears whole or not at all to a process that was killed (written beside, renamed), and
//! reaches the medium soon after: a thread syncs what was written, so that no round waits for it. A machine that loses power may find a file
//! of the last moments torn. That is noticed (frames and states are named by hashes) and mended from other peers.
//!
//! The shared state is written before the private one: after a crash between them the private state still names the round
//! whose update it holds, and what the decision left out of it is given back then.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use gradmesh_compression::TILE_ELEMENTS;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameRef, Stage, UpdateSummary, WorkCommitment};
use gradmesh_protocol::manifest::RoundId;

use super::frames::{FramePlace, Frames};
use crate::store::record::{self, InFlight};

/// The longest description of an update in flight: a frame reference is 40 bytes, and a header has at most 4096.
const IN_FLIGHT_BYTES_MAX: usize = 1 << 20;

/// Files written and not yet synced. When there are more, the operating system syncs the rest in its own time.
const UNSYNCED_MAX: usize = 256;

/// Folders below the state directory.
const STATES: &str = "state";
const FRAMES: &str = "frames";
const RESIDUALS: &str = "residuals";

/// Extension of a file that is being written, behind a number of its own.
const PARTIAL: &str = "partial";
static PARTIALS: AtomicU64 = AtomicU64::new(0);

/// A failure of the disk. The daemon stops: it cannot keep its promises without one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The operating system refused.
    #[error("{}: {source}: check permissions and free space, then start again", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{}: damaged ({reason}): delete it; the state is then fetched from other peers", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DiskError + '_ {
    |source| DiskError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The own update of a round that is committed, or about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) round: RoundId,
    pub(crate) stage: Stage,
    /// Of its first frame.
    pub(crate) first_shard: usize,
    pub(crate) summary: UpdateSummary,
}

impl Pending {
    /// The shards that it is of.
    pub(crate) fn shards(&self) -> Range<usize> {
        self.first_shard..self.first_shard + self.summary.frames.len()
    }
}

/// What `private.bin` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrivateFile {
    pub(crate) pending: Option<Pending>,
    /// Error feedback and inner state, as the replica saves them.
    pub(crate) private: Vec<u8>,
}

/// The files of one peer's state, of which only one process at a time may have them open. Clones are the same files.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    frames: Frames,
    syncer: Syncer,
}

impl Disk {
    /// The layout below `dir`; makes the folders.
    pub(crate) fn open(dir: &Path) -> Result<Disk, DiskError> {
        for folder in [dir, &dir.join(STATES), &dir.join(RESIDUALS)] {
            fs::create_dir_all(folder).map_err(io_error(folder))?;
            remove_partials(folder)?;
        }
        let frames = dir.join(FRAMES);
        fs::create_dir_all(&frames).map_err(io_error(&frames))?;
        let syncer = Syncer::start().map_err(io_error(dir))?;
        Ok(Disk {
            dir: dir.to_owned(),
            frames: Frames::open(frames, syncer.clone())?,
            syncer,
        })
    }

    fn states(&self) -> PathBuf {
        self.dir.join(STATES)
    }

    fn residuals(&self) -> PathBuf {
        self.dir.join(RESIDUALS)
    }

    fn private_path(&self) -> PathBuf {
        self.dir.join("private.bin")
    }

    /// The file of the state after `round`.
    pub(crate) fn state_path(&self, round: RoundId) -> PathBuf {
        self.states().join(format!("round-{:06}.state", round.0))
    }

    /// Writes the state after `round` from the contents of its leaves, in order, each in two parts.
    pub(crate) fn write_state<'a>(
        &self,
        round: RoundId,
        leaves: impl Iterator<Item = [Cow<'a, [u8]>; 2]>,
    ) -> Result<(), DiskError> {
        let path = self.state_path(round);
        let mut lengths: Vec<u32> = Vec::new();
        self.write_whole(&path, |file| {
            for parts in leaves {
                let mut length = 0;
                for part in &parts {
                    file.write_all(part)?;
                    length += part.len();
                }
                lengths.push(u32::try_from(length).map_err(io::Error::other)?);
            }
            lengths.push(lengths.len() as u32);
            for length in lengths {
                file.write_all(&length.to_le_bytes())?;
            }
            Ok(())
        })
    }

    /// The rounds whose states are here, oldest first.
    pub(crate) fn state_rounds(&self) -> Result<Vec<RoundId>, DiskError> {
        let folder = self.states();
        let mut rounds = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
            let name = entry.map_err(io_error(&folder))?.file_name();
            let digits = name
                .to_str()
                .and_then(|name| name.strip_prefix("round-")?.strip_suffix(".state"));
            if let Some(round) = digits.and_then(|digits| digits.parse().ok()) {
                rounds.push(RoundId(round));
            }
        }
        rounds.sort_unstable();
        Ok(rounds)
    }

    /// The contents of a state's leaves, in order.
    pub(crate) fn read_state(&self, round: RoundId) -> Result<Vec<Bytes>, DiskError> {
        let path = self.state_path(round);
        let content = fs::read(&path).map_err(io_error(&path))?;
        split_leaves(content.into()).ok_or_else(|| DiskError::Damaged {
            path,
            reason: "the lengths at its end do not fit".into(),
        })
    }

    /// Deletes the states of all rounds that are not in `keep`.
    pub(crate) fn retain_states(&self, keep: &[RoundId]) -> Result<(), DiskError> {
        for round in self.state_rounds()? {
            if !keep.contains(&round) {
                let path = self.state_path(round);
                fs::remove_file(&path).map_err(io_error(&path))?;
            }
        }
        Ok(())
    }

    /// Writes the private state and the update in flight together.
    pub(crate) fn write_private(
        &self,
        pending: Option<&Pending>,
        private: &[u8],
    ) -> Result<(), DiskError> {
        let in_flight = record::seal_in_flight(&pending.map(InFlight::from));
        self.write_whole(&self.private_path(), |file| {
            file.write_all(&(in_flight.len() as u64).to_le_bytes())?;
            file.write_all(&in_flight)?;
            file.write_all(private)
        })
    }

    /// What [`Disk::write_private`] wrote; `None` if nothing ever was.
    pub(crate) fn read_private(&self) -> Result<Option<PrivateFile>, DiskError> {
        let path = self.private_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path)(error)),
        };
        let damaged = |reason: String| DiskError::Damaged {
            path: path.clone(),
            reason,
        };
        let short = || damaged("it ends too early".into());
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let length = usize::try_from(u64::from_le_bytes(*length))
            .ok()
            .filter(|length| *length <= IN_FLIGHT_BYTES_MAX)
            .ok_or_else(short)?;
        let (in_flight, private) = rest.split_at_checked(length).ok_or_else(short)?;
        let in_flight = record::unseal_in_flight(in_flight).map_err(damaged)?;
        Ok(Some(PrivateFile {
            pending: in_flight.map(Pending::from),
            private: private.to_vec(),
        }))
    }

    /// The file of a round's frames.
    pub(crate) fn frames_path(&self, round: RoundId) -> PathBuf {
        self.frames.path(round)
    }

    /// Writes a frame; one that is there already is left as it is.
    pub(crate) fn write_frame(
        &self,
        round: RoundId,
        hash: &Hash,
        bytes: &[u8],
    ) -> Result<(), DiskError> {
        self.frames.write(round, hash, bytes)
    }

    /// A frame, if it is here and whole.
    pub(crate) fn read_frame(&self, round: RoundId, hash: &Hash) -> Option<Bytes> {
        self.frames.read(round, hash)
    }

    /// Where a frame lies, if it is here.
    pub(crate) fn frame_place(&self, round: RoundId, hash: &Hash) -> Option<FramePlace> {
        self.frames.place(round, hash)
    }

    /// Every frame here.
    pub(crate) fn list_frames(&self) -> Vec<(RoundId, Hash)> {
        self.frames.list()
    }

    /// The file of a residual.
    pub(crate) fn residual_path(&self, hash: &Hash) -> PathBuf {
        self.residuals().join(hash.to_string())
    }

    /// Writes a residual; one that is there already is left as it is.
    pub(crate) fn write_residual(&self, hash: &Hash, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.residual_path(hash);
        if path.exists() {
            return Ok(());
        }
        self.write_whole(&path, |file| file.write_all(bytes))
    }

    /// A residual, if it is here and whole.
    pub(crate) fn read_residual(&self, hash: &Hash) -> Option<Bytes> {
        read_named(&self.residual_path(hash), hash)
    }

    /// Every residual here, with its length.
    pub(crate) fn list_residuals(&self) -> Result<Vec<(Hash, u64)>, DiskError> {
        let folder = self.residuals();
        let mut residuals = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
            let entry = entry.map_err(io_error(&folder))?;
            if let Some(hash) = entry.file_name().to_str().and_then(Hash::from_hex) {
                let length = entry.metadata().map_err(io_error(&folder))?.len();
                residuals.push((hash, length));
            }
        }
        Ok(residuals)
    }

    /// Deletes a residual.
    pub(crate) fn forget_residual(&self, hash: &Hash) -> Result<(), DiskError> {
        let path = self.residual_path(hash);
        fs::remove_file(&path).map_err(io_error(&path))
    }

    /// Writes beside `path`, renames, and has it synced.
    fn write_whole(
        &self,
        path: &Path,
        write: impl FnOnce(&mut io::BufWriter<&File>) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        // Frames of equal content may be written at the same time: each beside the others.
        let number = PARTIALS.fetch_add(1, Ordering::Relaxed);
        let partial = path.with_extension(format!("{number}.{PARTIAL}"));
        let file = File::create(&partial).map_err(io_error(&partial))?;
        // A tile of theta goes to the file from where it lies.
        let mut writer = io::BufWriter::with_capacity(4 * TILE_ELEMENTS, &file);
        write(&mut writer)
            .and_then(|()| writer.flush())
            .and_then(|()| fs::rename(&partial, path))
            .map_err(io_error(path))?;
        drop(writer);
        self.syncer.ask(&Arc::new(file.into()));
        Ok(())
    }

    /// Deletes the frames of the rounds before `round`.
    pub(crate) fn release_frames_before(&self, round: RoundId) -> Result<(), DiskError> {
        self.frames.release_before(round)
    }
}

/// A file that may have to reach the medium.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) file: File,
    /// Whether the thread that syncs has been asked to and has not begun.
    asked: AtomicBool,
}

impl From<File> for Unsynced {
    fn from(file: File) -> Unsynced {
        Unsynced {
            file,
            asked: AtomicBool::new(false),
        }
    }
}

/// A thread that makes durable what was written. It ends with the last clone.
#[derive(Clone, Debug)]
pub(super) struct Syncer(SyncSender<Arc<Unsynced>>);

impl Syncer {
    /// # Errors
    /// If threads run out.
    pub(super) fn start() -> io::Result<Syncer> {
        let (written, unsynced) = sync_channel(UNSYNCED_MAX);
        std::thread::Builder::new()
            .name("sync".into())
            .spawn(move || sync_all(&unsynced))?;
        Ok(Syncer(written))
    }

    /// Has what is in `file` now synced.
    pub(super) fn ask(&self, file: &Arc<Unsynced>) {
        if !file.asked.swap(true, Ordering::AcqRel) {
            // A thread that does not keep up is not waited for: the operating system writes the file by itself.
            let _ = self.0.try_send(Arc::clone(file));
        }
    }
}

/// Deletes what a killed process left half written.
fn remove_partials(folder: &Path) -> Result<(), DiskError> {
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == PARTIAL)
        {
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
    }
    Ok(())
}

/// The content of a file, if it is the one that `hash` names.
fn read_named(path: &Path, hash: &Hash) -> Option<Bytes> {
    let bytes = fs::read(path).ok()?;
    (Hash::of_content(&bytes) == *hash).then(|| Bytes::from(bytes))
}

/// The leaves of a state file.
fn split_leaves(mut content: Bytes) -> Option<Vec<Bytes>> {
    let u32_at = |bytes: &[u8]| Some(u32::from_le_bytes(*bytes.first_chunk()?) as usize);
    let count = u32_at(content.get(content.len().checked_sub(4)?..)?)?;
    let table = count.checked_add(1)?.checked_mul(4)?;
    let lengths = content.split_off(content.len().checked_sub(table)?);
    let mut leaves = Vec::new();
    for length in lengths.chunks_exact(4).take(count) {
        let length = u32_at(length).filter(|length| *length <= content.len())?;
        leaves.push(content.split_to(length));
    }
    content.is_empty().then_some(leaves)
}

/// Makes what was written durable, until the last [`Syncer`] is gone.
fn sync_all(unsynced: &Receiver<Arc<Unsynced>>) {
    for unsynced in unsynced {
        // Before it begins, so that what is written meanwhile is asked for again.
        unsynced.asked.store(false, Ordering::Release);
        if let Err(error) = unsynced.file.sync_data() {
            tracing::warn!(%error, "a file of the state directory was not synced");
        }
    }
}

impl From<&Pending> for InFlight {
    fn from(pending: &Pending) -> InFlight {
        let summary = &pending.summary;
        InFlight {
            round: pending.round.0,
            stage: match pending.stage {
                Stage::Local => record::Stage::Local,
                Stage::Update => record::Stage::Update,
                Stage::Reduced => record::Stage::Reduced,
            },
            // At most 4096 shards.
            first_shard: pending.first_shard as u32,
            frames: summary.frames.iter().map(|f| (f.hash.0, f.bytes)).collect(),
            feedback_before: summary.feedback_before.0,
            feedback_after: summary.feedback_after.0,
            segments_root: summary.work.segments_root.0,
            inner_before: summary.work.inner_before.0,
            inner_after: summary.work.inner_after.0,
            tokens: summary.tokens,
            steps: summary.steps,
            loss_first_micronats: summary.loss_first_micronats,
            loss_last_micronats: summary.loss_last_micronats,
            build: summary.build.clone(),
            device: summary.device.clone(),
        }
    }
}

impl From<InFlight> for Pending {
    fn from(stored: InFlight) -> Pending {
        let frames = stored.frames.into_iter();
        Pending {
            round: RoundId(stored.round),
            stage: match stored.stage {
                record::Stage::Local => Stage::Local,
                record::Stage::Update => Stage::Update,
                record::Stage::Reduced => Stage::Reduced,
            },
            first_shard: stored.first_shard as usize,
            summary: UpdateSummary {
                frames: frames
                    .map(|(hash, bytes)| FrameRef {
                        hash: Hash(hash),
                        bytes,
                    })
                    .collect(),
                feedback_before: Hash(stored.feedback_before),
                feedback_after: Hash(stored.feedback_after),
                work: WorkCommitment {
                    segments_root: Hash(stored.segments_root),
                    inner_before: Hash(stored.inner_before),
                    inner_after: Hash(stored.inner_after),
                },
                tokens: stored.tokens,
                steps: stored.steps,
                loss_first_micronats: stored.loss_first_micronats,
                loss_last_micronats: stored.loss_last_micronats,
                build: stored.build,
                device: stored.device,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> Pending {
        Pending {
            round: RoundId(7),
            stage: Stage::Local,
            first_shard: 2,
            summary: UpdateSummary {
                frames: vec![FrameRef {
                    hash: Hash::of_content(b"frame"),
                    bytes: 5,
                }],
                feedback_before: Hash::of_content(b"before"),
                feedback_after: Hash::of_content(b"after"),
                work: WorkCommitment::default(),
                tokens: 1000,
                steps: 3,
                loss_first_micronats: 5_500_000,
                loss_last_micronats: 5_000_000,
                build: "1".into(),
                device: "cpu".into(),
            },
        }
    }

    fn write_state(disk: &Disk, round: u64, leaves: &[&[u8]]) {
        let parts = |leaf: &&[u8]| {
            let (first, second) = leaf.split_at(leaf.len() / 2);
            [first.to_vec().into(), second.to_vec().into()]
        };
        disk.write_state(RoundId(round), leaves.iter().map(parts))
            .unwrap();
    }

    #[test]
    fn private_state_comes_back_with_the_update_in_flight() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        assert!(disk.read_private().unwrap().is_none());
        for in_flight in [Some(pending()), None] {
            disk.write_private(in_flight.as_ref(), b"private").unwrap();
            let read = disk.read_private().unwrap().unwrap();
            let private = b"private".to_vec();
            let pending = in_flight;
            assert_eq!(read, PrivateFile { pending, private });
        }
    }

    #[test]
    fn a_damaged_private_file_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        disk.write_private(Some(&pending()), b"").unwrap();
        let whole = fs::read(disk.private_path()).unwrap();
        for length in 0..whole.len() {
            fs::write(disk.private_path(), &whole[..length]).unwrap();
            let error = disk.read_private().unwrap_err().to_string();
            assert!(error.contains("private.bin: damaged"), "{error}");
        }
    }

    #[test]
    fn a_damaged_state_is_named_and_allocates_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        write_state(&disk, 1, &[&[1; 9], &[], &[3; 5]]);
        let path = disk.state_path(RoundId(1));
        let whole = fs::read(&path).unwrap();
        assert_eq!(disk.read_state(RoundId(1)).unwrap().len(), 3);
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = disk.read_state(RoundId(1)).unwrap_err().to_string();
            assert!(error.contains("damaged"), "{length}: {error}");
        }
        fs::write(&path, u32::MAX.to_le_bytes()).unwrap();
        assert!(disk.read_state(RoundId(1)).is_err());
    }

    #[test]
    fn residuals_are_listed_read_by_hash_and_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        let hash = Hash::of_content(b"residual");
        disk.write_residual(&hash, b"residual").unwrap();
        assert_eq!(disk.list_residuals().unwrap(), [(hash, 8)]);
        assert_eq!(disk.read_residual(&hash).as_deref(), Some(&b"residual"[..]));
        disk.forget_residual(&hash).unwrap();
        assert_eq!(disk.read_residual(&hash), None);
    }

    #[test]
    fn halves_of_killed_processes_go() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        write_state(&disk, 1, &[&[1]]);
        let half = disk.state_path(RoundId(2)).with_extension("9.partial");
        fs::write(&half, b"half").unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        assert!(!half.exists());
        assert_eq!(disk.state_rounds().unwrap(), [RoundId(1)]);
    }

    #[test]
    fn states_are_kept_by_round() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        for round in [1, 2, 10] {
            write_state(&disk, round, &[&[1, 2], &[3]]);
        }
        disk.retain_states(&[RoundId(2), RoundId(10)]).unwrap();
        assert_eq!(disk.state_rounds().unwrap(), [RoundId(2), RoundId(10)]);
        let leaves = disk.read_state(RoundId(2)).unwrap();
        assert_eq!(
            leaves,
            [Bytes::from_static(&[1, 2]), Bytes::from_static(&[3])]
        );
    }
}
