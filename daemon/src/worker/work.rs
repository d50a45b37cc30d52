//! What this peer keeps of its own work, so that others can do parts of it again.
//!
//! | name below `work/NNNNNN/` of the state directory | what |
//! |---|---|
//! | `state-PP` | the state of training before segment PP: the chunks of [`WorkState`], one after the other |
//! | `feedback-before`, `feedback-after` | the error feedback around the update, f32 little endian |
//! | `frame-HASH` | a frame of the update: those of all peers go with older epochs, sooner than this may |
//! | `segments` | the list that the header commits to; written last, so that a round with it is whole |
//!
//! Rule `work-kept`: a round's work is kept until there is no room for that of newer rounds ([`WORK_BYTES_MAX`]), that of the
//! newest round always. It survives a restart: whoever audits a round has its peer's answer to wait for, not its uptime.
//!
//! Nothing here is synced: what a machine that loses power loses of it is a round that cannot be audited.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use gradmesh_protocol::audit::segment::SegmentList;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::{self, RoundId};
use gradmesh_trainer::StepReport;
use gradmesh_trainer::optimizer::le_bytes;
use gradmesh_trainer::work::{Recorder, StateLeaves, WorkState};

use super::disk::{DiskError, io_error};

/// Bytes of work that are kept. A guess: of a model of 10^8 parameters with 30 segments, one round takes 37 GB, and only
/// that is kept; of one with 10^6, twenty rounds.
const WORK_BYTES_MAX: u64 = 8 << 30;

/// What names of frames begin with.
const FRAME: &str = "frame-";

/// A state of training on disk.
#[derive(Clone, Debug)]
pub(crate) struct KeptState {
    pub(crate) path: PathBuf,
    pub(crate) leaves: StateLeaves,
}

/// The error feedback around an update, on disk.
#[derive(Clone, Debug)]
pub(crate) struct KeptFeedback {
    pub(crate) before: PathBuf,
    pub(crate) after: PathBuf,
    /// Content hashes of the tiles, in order.
    pub(crate) leaves_before: Vec<Hash>,
    pub(crate) leaves_after: Vec<Hash>,
}

/// What is kept of a round.
#[derive(Clone, Debug)]
pub(crate) struct KeptWork {
    pub(crate) round: RoundId,
    pub(crate) list: SegmentList,
    /// State i is before segment i; one more than there are segments.
    pub(crate) states: Vec<KeptState>,
    pub(crate) feedback: KeptFeedback,
    /// Hash, length and file of each frame.
    pub(crate) frames: Vec<(Hash, u64, PathBuf)>,
    bytes: u64,
}

/// A round's work while it is done.
pub(super) struct Recording {
    recorder: Recorder,
    /// One for each state that the recorder has.
    states: Vec<KeptState>,
}

impl Recording {
    pub(super) fn new(audit: &manifest::Audit, steps: u32) -> Recording {
        Recording {
            recorder: Recorder::new(audit.segments, steps),
            states: Vec::new(),
        }
    }

    /// Whether nothing has been noted yet.
    pub(super) fn is_new(&self) -> bool {
        self.states.is_empty()
    }

    /// The step at which the segment ends in which `step` lies.
    pub(super) fn segment_end(&self, step: u32) -> u32 {
        self.recorder.segment_of(step).end
    }

    /// The steps of the segment that ends before step `end`.
    pub(super) fn segment_ending_at(&self, end: u32) -> Range<u32> {
        self.recorder.segment_of(end.saturating_sub(1))
    }

    /// A step of `tokens` predictions is done.
    pub(super) fn note_step(&mut self, report: &StepReport, tokens: u64) {
        self.recorder.step(report, tokens);
    }
}

/// The folder of the work that is kept.
#[derive(Debug)]
pub(super) struct Archive {
    dir: PathBuf,
    /// Round and bytes, oldest first.
    rounds: Vec<(RoundId, u64)>,
}

impl Archive {
    /// Opens the folder; gives back what is whole in it, oldest first, and deletes the rest.
    ///
    /// `elements`: of theta; `tiles`: elements of each tile, in order.
    pub(super) fn open(
        state_dir: &Path,
        elements: usize,
        tiles: &[usize],
    ) -> Result<(Archive, Vec<KeptWork>), DiskError> {
        let dir = state_dir.join("work");
        fs::create_dir_all(&dir).map_err(io_error(&dir))?;
        let mut kept = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error(&dir))? {
            let folder = entry.map_err(io_error(&dir))?.path();
            let name = folder.file_name().and_then(|name| name.to_str());
            let round = name.and_then(|name| name.parse().ok()).map(RoundId);
            match round.and_then(|round| load(&folder, round, elements, tiles)) {
                Some(work) => kept.push(work),
                None => fs::remove_dir_all(&folder).map_err(io_error(&folder))?,
            }
        }
        kept.sort_by_key(|work| work.round);
        let rounds = kept.iter().map(|work| (work.round, work.bytes)).collect();
        Ok((Archive { dir, rounds }, kept))
    }

    fn folder(&self, round: RoundId) -> PathBuf {
        self.dir.join(format!("{:06}", round.0))
    }

    /// Notes the state before the next segment, or after the last one. `data`: of the segment that ends here.
    pub(super) fn note_state(
        &self,
        round: RoundId,
        recording: &mut Recording,
        state: &WorkState,
        data: Option<Hash>,
    ) -> Result<(), DiskError> {
        let folder = self.folder(round);
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        let path = folder.join(format!("state-{:02}", recording.states.len()));
        let file = File::create(&path).map_err(io_error(&path))?;
        // Chunks go to the file as they are hashed.
        let written = state
            .write(&mut &file)
            .map_err(|error| DiskError::Damaged {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        let leaves = written.map_err(io_error(&path))?;
        match data {
            None => recording.recorder.begin(leaves.roots()),
            Some(data) => recording.recorder.end_segment(leaves.roots(), data),
        }
        recording.states.push(KeptState { path, leaves });
        Ok(())
    }

    /// Writes the error feedback at one end of an update.
    pub(super) fn note_feedback(
        &self,
        round: RoundId,
        name: &str,
        residual: &[f32],
    ) -> Result<PathBuf, DiskError> {
        let folder = self.folder(round);
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        let path = folder.join(name);
        write(&path, &le_bytes(residual))?;
        Ok(path)
    }

    /// The round is done: what is kept of it, and the rounds that had to go for it. `None` if it is not whole: it was begun before
    /// a restart, or its states are missing.
    pub(super) fn finish(
        &mut self,
        round: RoundId,
        recording: Recording,
        feedback: KeptFeedback,
        frames: &[Vec<u8>],
    ) -> Result<Option<(KeptWork, Vec<RoundId>)>, DiskError> {
        let Recording {
            recorder, states, ..
        } = recording;
        let Some(list) = recorder.finish() else {
            return Ok(None);
        };
        let folder = self.folder(round);
        let mut kept_frames = Vec::with_capacity(frames.len());
        for bytes in frames {
            let hash = Hash::of_content(bytes);
            let path = folder.join(format!("{FRAME}{hash}"));
            write(&path, bytes)?;
            kept_frames.push((hash, bytes.len() as u64, path));
        }
        write(&folder.join("segments"), &list.encode())?;
        let bytes = folder_bytes(&folder)?;
        self.rounds.retain(|(of, _)| *of != round);
        self.rounds.push((round, bytes));
        let mut gone = Vec::new();
        while self.rounds.len() > 1
            && self.rounds.iter().map(|(_, bytes)| bytes).sum::<u64>() > WORK_BYTES_MAX
        {
            let (oldest, _) = self.rounds.remove(0);
            let folder = self.folder(oldest);
            fs::remove_dir_all(&folder).map_err(io_error(&folder))?;
            gone.push(oldest);
        }
        let kept = KeptWork {
            round,
            list,
            states,
            feedback,
            frames: kept_frames,
            bytes,
        };
        Ok(Some((kept, gone)))
    }
}

/// What is kept of `round` in `folder`, if it is whole.
fn load(folder: &Path, round: RoundId, elements: usize, tiles: &[usize]) -> Option<KeptWork> {
    let list = SegmentList::decode(&fs::read(folder.join("segments")).ok()?).ok()?;
    let mut states = Vec::with_capacity(list.states().len());
    for (place, roots) in list.states().iter().enumerate() {
        let path = folder.join(format!("state-{place:02}"));
        let bytes = fs::read(&path).ok()?;
        let leaves = StateLeaves::of_bytes(elements, &bytes)?;
        if leaves.roots() != *roots {
            return None;
        }
        states.push(KeptState { path, leaves });
    }
    let (before, after) = (
        folder.join("feedback-before"),
        folder.join("feedback-after"),
    );
    let leaves = |path: &Path| feedback_leaves(&fs::read(path).ok()?, tiles);
    let feedback = KeptFeedback {
        leaves_before: leaves(&before)?,
        leaves_after: leaves(&after)?,
        before,
        after,
    };
    Some(KeptWork {
        round,
        list,
        states,
        feedback,
        frames: frames_in(folder)?,
        bytes: folder_bytes(folder).ok()?,
    })
}

/// The frames in a folder.
fn frames_in(folder: &Path) -> Option<Vec<(Hash, u64, PathBuf)>> {
    let mut frames = Vec::new();
    for entry in fs::read_dir(folder).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let hash = name.to_str().and_then(|name| name.strip_prefix(FRAME));
        if let Some(hash) = hash.and_then(Hash::from_hex) {
            frames.push((hash, entry.metadata().ok()?.len(), entry.path()));
        }
    }
    Some(frames)
}

/// The hashes of tiles of these lengths; `None` if there are more or fewer bytes.
fn feedback_leaves(bytes: &[u8], tiles: &[usize]) -> Option<Vec<Hash>> {
    let mut rest = bytes;
    let mut leaves = Vec::with_capacity(tiles.len());
    for elements in tiles {
        let (tile, behind) = rest.split_at_checked(4 * elements)?;
        leaves.push(Hash::of_content(tile));
        rest = behind;
    }
    rest.is_empty().then_some(leaves)
}

fn folder_bytes(folder: &Path) -> Result<u64, DiskError> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let entry = entry.map_err(io_error(folder))?;
        bytes += entry.metadata().map_err(io_error(folder))?.len();
    }
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let file = File::create(path).map_err(io_error(path))?;
    let mut writer = BufWriter::new(file);
    writer
        .write_all(bytes)
        .and_then(|()| writer.flush())
        .map_err(io_error(path))
}
