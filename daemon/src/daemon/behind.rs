//! Fetched frames on their way to disk.
//!
//! Rule `frames-behind`: a fetched frame counts as held once it is in memory and checked. It is written when its round has
//! been applied, so that no round waits for the disk, and served from memory until then. Whoever made a frame has written
//! it before anybody heard of it: a peer that is killed in between fetches what it lacks from there, or from the others.
//! Frames of rounds before the oldest state that is kept are not written at all, because nobody needs them any more.
//!
//! Bounded by the memory for frames: one that does not fit there is written at once (`hold_fetched` of the driver).

use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::RoundId;

use crate::worker::{Disk, DiskError};

/// A frame that is not on disk yet.
#[derive(Clone, Debug)]
pub(super) struct Unwritten {
    pub(super) round: RoundId,
    pub(super) hash: Hash,
    pub(super) bytes: Bytes,
}

/// What waits for the disk, and whether something is being written.
#[derive(Debug, Default)]
pub(super) struct Behind {
    waiting: Vec<Unwritten>,
    writing: Vec<Unwritten>,
}

impl Behind {
    /// Takes in a frame, unless it waits already: the same bytes may have been fetched for two shards at once.
    pub(super) fn push(&mut self, frame: Unwritten) {
        let same = |known: &Unwritten| (known.round, known.hash) == (frame.round, frame.hash);
        if !self.waiting.iter().any(same) {
            self.waiting.push(frame);
        }
    }

    /// A frame that is not known to be on disk.
    pub(super) fn get(&self, hash: &Hash) -> Option<Bytes> {
        let mut all = self.waiting.iter().chain(&self.writing);
        let found = all.find(|frame| frame.hash == *hash);
        found.map(|frame| frame.bytes.clone())
    }

    /// What is to be written now that the rounds up to `applied` have been applied; `None` while what was due before is
    /// being written. Frames of rounds before `frames_from` are dropped.
    pub(super) fn due(&mut self, applied: RoundId, frames_from: RoundId) -> Option<Vec<Unwritten>> {
        self.waiting.retain(|frame| frame.round >= frames_from);
        if !self.writing.is_empty() {
            return None;
        }
        let of_applied = |frame: &mut Unwritten| frame.round <= applied;
        self.writing = self.waiting.extract_if(.., of_applied).collect();
        Some(self.writing.clone())
    }

    /// What was due is on disk; gives it back.
    pub(super) fn written(&mut self) -> Vec<Unwritten> {
        std::mem::take(&mut self.writing)
    }

    /// Everything that is not known to be on disk.
    pub(super) fn into_unwritten(self) -> impl Iterator<Item = Unwritten> {
        self.writing.into_iter().chain(self.waiting)
    }
}

/// Writes `frames`; one that is on disk already is left as it is.
///
/// # Errors
/// That of the first that cannot be written; others may be missing then.
pub(super) fn write(
    disk: &Disk,
    frames: impl IntoIterator<Item = Unwritten>,
) -> Result<(), DiskError> {
    frames
        .into_iter()
        .try_for_each(|frame| disk.write_frame(frame.round, &frame.hash, &frame.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(round: u64, tag: u8) -> Unwritten {
        let bytes = Bytes::from(vec![tag; 9]);
        Unwritten {
            round: RoundId(round),
            hash: Hash::of_content(&bytes),
            bytes,
        }
    }

    fn rounds(frames: impl IntoIterator<Item = Unwritten>) -> Vec<u64> {
        frames.into_iter().map(|frame| frame.round.0).collect()
    }

    fn due(behind: &mut Behind, applied: u64, frames_from: u64) -> Option<Vec<u64>> {
        let due = behind.due(RoundId(applied), RoundId(frames_from));
        due.map(rounds)
    }

    #[test]
    fn frames_of_applied_rounds_are_written_one_batch_at_a_time() {
        let mut behind = Behind::default();
        for round in [1, 2, 3] {
            behind.push(frame(round, round as u8));
        }
        assert_eq!(due(&mut behind, 0, 1), Some(vec![]));
        assert_eq!(due(&mut behind, 1, 1), Some(vec![1]));
        assert_eq!(due(&mut behind, 2, 1), None);
        assert_eq!(rounds(behind.written()), [1]);
        assert_eq!(due(&mut behind, 2, 1), Some(vec![2]));
        assert_eq!(rounds(behind.into_unwritten()), [2, 3]);
    }

    #[test]
    fn frame_that_comes_twice_is_written_once() {
        let mut behind = Behind::default();
        behind.push(frame(1, 1));
        behind.push(frame(1, 1));
        assert_eq!(due(&mut behind, 1, 1), Some(vec![1]));
    }

    #[test]
    fn frames_are_at_hand_until_they_are_on_disk() {
        let mut behind = Behind::default();
        let of_one = frame(1, 1);
        behind.push(of_one.clone());
        assert_eq!(behind.get(&of_one.hash), Some(of_one.bytes.clone()));
        due(&mut behind, 1, 1);
        assert_eq!(behind.get(&of_one.hash), Some(of_one.bytes.clone()));
        behind.written();
        assert_eq!(behind.get(&of_one.hash), None);
    }

    #[test]
    fn frames_from_before_the_oldest_state_are_not_written() {
        let mut behind = Behind::default();
        behind.push(frame(4, 4));
        behind.push(frame(5, 5));
        assert_eq!(due(&mut behind, 5, 5), Some(vec![5]));
    }

    #[test]
    fn what_was_written_is_read_from_disk() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let of_two = frame(2, 2);
        write(&disk, [of_two.clone()]).unwrap();
        assert_eq!(
            disk.read_frame(RoundId(2), &of_two.hash),
            Some(of_two.bytes)
        );
    }
}
