//! The files of the state and of the private state, which are written behind what they hold.
//!
//! Rule `save-behind`: no round waits for the disk. What has changed is written beside the next training, or once the worker
//! has been idle for [`SAVE_IDLE`], and not more often than every [`SAVE_PERIOD`], or [`SAVE_PERIOD_WRITES`] times what a write
//! takes. Only what has been due for [`SAVE_OVERDUE`], while one command came after the other, holds up the next one. A peer
//! that is killed finds a state some rounds old, and applies the stored decisions since from the frames on its disk, or from
//! others where it was killed before they were written (rule `frames-behind` of `daemon/behind.rs`); what its own update of
//! those rounds left in the error feedback is then as it was saved. An own frame is written before it is published, an epoch's
//! state before it is offered.

use std::time::{Duration, Instant};

use gradmesh_protocol::manifest::RoundId;
use gradmesh_trainer::replica::Replica;

use super::disk::{Disk, DiskError, Pending};

/// Rounds that are shorter than this share one write of the state.
const SAVE_PERIOD: Duration = Duration::from_secs(2);
/// The least time between two writes, in times of what the last one took: writing takes no more than 2% of all time,
/// however large the state and slow the disk. A guess at what nobody notices.
const SAVE_PERIOD_WRITES: u32 = 50;
/// A worker that had nothing to do for so long has time to write: the word to train comes sooner after a round. A guess.
pub(super) const SAVE_IDLE: Duration = Duration::from_millis(250);
/// What is applied without a pause for longer than this is lost when the process is killed. A guess at what nobody minds.
const SAVE_OVERDUE: Duration = Duration::from_secs(60);

/// A file that is written behind what it holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Behind {
    /// When what it holds became another.
    changed: Option<Instant>,
    /// When the next write may begin.
    not_before: Option<Instant>,
}

impl Behind {
    pub(super) fn change(&mut self) {
        self.changed.get_or_insert_with(Instant::now);
    }

    pub(super) fn has_changed(&self) -> bool {
        self.changed.is_some()
    }

    /// How long it is until it is to be written, if it has changed.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let rest = |then: Instant| then.saturating_duration_since(Instant::now());
        let rest = self.not_before.map_or(Duration::ZERO, rest);
        self.has_changed().then_some(rest)
    }

    pub(super) fn is_due(&self) -> bool {
        self.due_in() == Some(Duration::ZERO)
    }

    /// Whether it is due, and has not been written for long.
    pub(super) fn is_overdue(&self) -> bool {
        let since = self.changed.map_or(Duration::ZERO, |since| since.elapsed());
        self.is_due() && since >= SAVE_OVERDUE
    }

    /// It was written between the two.
    fn written(&mut self, began: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(began);
        let rest = SAVE_PERIOD.max(took.saturating_mul(SAVE_PERIOD_WRITES));
        self.changed = None;
        self.not_before = ended.checked_add(rest);
    }
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) state: bool,
    /// The inner state for the private file, if that is to be written.
    pub(super) inner: Option<Vec<u8>>,
}

impl Wanted {
    pub(super) fn is_nothing(&self) -> bool {
        !self.state && self.inner.is_none()
    }
}

/// When which file was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    state: Option<(Instant, Instant)>,
    private: Option<(Instant, Instant)>,
}

impl Written {
    pub(super) fn note(self, state_file: &mut Behind, private_file: &mut Behind) {
        for (file, written) in [(state_file, self.state), (private_file, self.private)] {
            if let Some((began, ended)) = written {
                file.written(began, ended);
            }
        }
    }
}

/// What the files hold, and the disk. No training changes it, so that it is written beside one.
pub(super) struct Durable {
    pub(super) disk: Disk,
    pub(super) replica: Replica,
    /// The round that the replica is after.
    pub(super) applied: Option<RoundId>,
    /// Epoch states on disk, oldest first.
    pub(super) snapshots: Vec<RoundId>,
    /// The own update that is in flight.
    pub(super) pending: Option<Pending>,
}

impl Durable {
    /// Writes what is wanted, the state first. A state before any round is none.
    pub(super) fn write(&self, wanted: &Wanted) -> Result<Written, DiskError> {
        let mut written = Written::default();
        if let Some(round) = self.applied.filter(|_| wanted.state) {
            let began = Instant::now();
            let leaves = 0..self.replica.leaf_count();
            let leaves = leaves.filter_map(|index| self.replica.leaf_parts(index));
            self.disk.write_state(round, leaves)?;
            let keep: Vec<RoundId> = self.snapshots.iter().copied().chain([round]).collect();
            self.disk.retain_states(&keep)?;
            written.state = Some((began, Instant::now()));
        }
        if let Some(inner) = &wanted.inner {
            let began = Instant::now();
            let private = self.replica.save_private(inner);
            self.disk.write_private(self.pending.as_ref(), &private)?;
            written.private = Some((began, Instant::now()));
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_takes_long_to_write_is_written_less_often() {
        let mut file = Behind::default();
        assert!(!file.is_due());
        file.change();
        assert!(file.is_due() && !file.is_overdue());
        let (took, ended) = (Duration::from_secs(3), Instant::now());
        file.written(ended.checked_sub(took).unwrap(), ended);
        assert_eq!(
            file.not_before,
            ended.checked_add(took * SAVE_PERIOD_WRITES)
        );
        assert_eq!(file.due_in(), None);
        file.change();
        assert!(file.has_changed() && !file.is_due());
        assert!(file.due_in() <= Some(took * SAVE_PERIOD_WRITES));
    }

    #[test]
    fn a_file_is_overdue_when_it_was_due_for_long() {
        let mut file = Behind {
            changed: Instant::now().checked_sub(SAVE_OVERDUE),
            not_before: None,
        };
        assert!(file.is_overdue());
        file.change();
        assert!(file.is_overdue());
        file.not_before = Instant::now().checked_add(Duration::from_secs(60));
        assert!(!file.is_overdue());
    }
}
