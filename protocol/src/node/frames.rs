//! Which frames are wanted, held or known to be bad, and when to ask again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::effect::Effect;
use crate::header::FrameId;
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::time::Time;

/// First pause before a frame is asked for again; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(4);

/// Failures in a row, each of all sources known then, after which nobody is expected to have a frame: some eight
/// seconds with the pauses above.
const HOPELESS_FAILURES: u32 = 5;

/// Where one frame stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// At hand.
    Held,
    /// On its way, or to be asked for again.
    Missing,
    /// Its content is no frame; it will never be held.
    Malformed,
}

#[derive(Clone, Debug)]
struct Entry {
    round: RoundId,
    sources: Vec<PeerKey>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    Malformed,
    Asked { failures: u32 },
    Pausing { failures: u32, until: Time },
}

/// The frames of the rounds at hand. Bounded: at most one entry for each frame of each header that the node keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    entries: BTreeMap<FrameId, Entry>,
}

impl Frames {
    /// Asks for a frame unless it is held, asked for or malformed, and says where it stands. New sources are added to
    /// those known.
    pub(super) fn want(
        &mut self,
        round: RoundId,
        frame: FrameId,
        sources: Vec<PeerKey>,
        effects: &mut VecDeque<Effect>,
    ) -> Standing {
        let entry = self.entries.entry(frame).or_insert_with(|| {
            effects.push_back(fetch(round, frame, &sources));
            Entry {
                round,
                sources: sources.clone(),
                state: State::Asked { failures: 0 },
            }
        });
        // Whoever connected since the first try may hold it too.
        for source in sources {
            if entry.standing() == Standing::Missing && !entry.sources.contains(&source) {
                entry.sources.push(source);
            }
        }
        entry.standing()
    }

    /// Notes a frame that this peer made itself.
    pub(super) fn put(&mut self, round: RoundId, frame: FrameId) {
        self.entries.insert(
            frame,
            Entry {
                round,
                sources: Vec::new(),
                state: State::Held,
            },
        );
    }

    /// The frame is at hand. `false` if nobody wanted it.
    pub(super) fn held(&mut self, frame: &FrameId) -> bool {
        self.settle(frame, State::Held)
    }

    /// The frame's content is bad. `false` if nobody wanted it.
    pub(super) fn malformed(&mut self, frame: &FrameId) -> bool {
        self.settle(frame, State::Malformed)
    }

    fn settle(&mut self, frame: &FrameId, state: State) -> bool {
        let Some(entry) = self.entries.get_mut(frame) else {
            return false;
        };
        entry.state = state;
        true
    }

    /// No source had the frame: pause, then ask again with the sources rotated.
    pub(super) fn failed(&mut self, now: Time, frame: &FrameId) {
        let Some(entry) = self.entries.get_mut(frame) else {
            return;
        };
        if let State::Asked { failures } = entry.state {
            let pause = RETRY_FIRST
                .saturating_mul(1 << failures.min(8))
                .min(RETRY_MAX);
            entry.state = State::Pausing {
                failures: failures.saturating_add(1),
                until: now + pause,
            };
            if !entry.sources.is_empty() {
                entry.sources.rotate_left(1);
            }
        }
    }

    /// Asks again for every frame whose pause is over.
    pub(super) fn retry(&mut self, now: Time, effects: &mut VecDeque<Effect>) {
        for (frame, entry) in &mut self.entries {
            if let State::Pausing { failures, until } = entry.state
                && until <= now
            {
                entry.state = State::Asked { failures };
                effects.push_back(fetch(entry.round, *frame, &entry.sources));
            }
        }
    }

    /// When the next pause is over.
    pub(super) fn next_retry(&self) -> Option<Time> {
        let pauses = self.entries.values().filter_map(|entry| match entry.state {
            State::Pausing { until, .. } => Some(until),
            State::Held | State::Malformed | State::Asked { .. } => None,
        });
        pauses.min()
    }

    /// Whether a frame was asked of everybody, in vain, so often that nobody is expected to have it, whatever they say.
    pub(super) fn is_hopeless(&self, frame: &FrameId) -> bool {
        self.entries
            .get(frame)
            .is_some_and(|entry| match entry.state {
                State::Asked { failures } | State::Pausing { failures, .. } => {
                    failures >= HOPELESS_FAILURES
                }
                State::Held | State::Malformed => false,
            })
    }

    /// Whether a frame is held.
    pub(super) fn is_held(&self, frame: &FrameId) -> bool {
        let entry = self.entries.get(frame);
        entry.is_some_and(|entry| entry.state == State::Held)
    }

    /// Forgets the frames of rounds before `round`.
    pub(super) fn release_before(&mut self, round: RoundId) {
        self.entries.retain(|_, entry| entry.round >= round);
    }

    /// Number of frames known.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Entry {
    fn standing(&self) -> Standing {
        match self.state {
            State::Held => Standing::Held,
            State::Malformed => Standing::Malformed,
            State::Asked { .. } | State::Pausing { .. } => Standing::Missing,
        }
    }
}

fn fetch(round: RoundId, frame: FrameId, sources: &[PeerKey]) -> Effect {
    Effect::Fetch {
        round,
        frame,
        sources: sources.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;
    use crate::header::Stage;

    fn frame(byte: u8) -> FrameId {
        FrameId {
            hash: Hash([byte; 32]),
            bytes: 10,
            shard: 0,
            stage: Stage::Update,
        }
    }

    #[test]
    fn a_frame_is_asked_for_once_and_again_after_a_growing_pause() {
        let (mut frames, mut effects) = (Frames::default(), VecDeque::new());
        let sources = vec![PeerKey([1; 32]), PeerKey([2; 32])];
        for _ in 0..2 {
            let standing = frames.want(RoundId(1), frame(1), sources.clone(), &mut effects);
            assert_eq!(standing, Standing::Missing);
        }
        assert_eq!(effects, [fetch(RoundId(1), frame(1), &sources)]);
        effects.clear();

        frames.failed(Time(1000), &frame(1));
        frames.retry(Time(1249), &mut effects);
        assert!(effects.is_empty());
        assert_eq!(frames.next_retry(), Some(Time(1250)));
        frames.retry(Time(1250), &mut effects);
        let rotated = [sources[1], sources[0]];
        assert_eq!(effects, [fetch(RoundId(1), frame(1), &rotated)]);
        frames.failed(Time(2000), &frame(1));
        assert_eq!(frames.next_retry(), Some(Time(2500)));

        let newcomer = PeerKey([3; 32]);
        frames.want(RoundId(1), frame(1), vec![newcomer], &mut effects);
        effects.clear();
        frames.retry(Time(2500), &mut effects);
        let grown = [sources[0], sources[1], newcomer];
        assert_eq!(effects, [fetch(RoundId(1), frame(1), &grown)]);

        for failure in 3..=5 {
            assert!(!frames.is_hopeless(&frame(1)), "before failure {failure}");
            frames.failed(Time(10_000), &frame(1));
            frames.retry(Time(20_000), &mut effects);
        }
        assert!(frames.is_hopeless(&frame(1)));

        assert!(frames.held(&frame(1)));
        assert!(!frames.is_hopeless(&frame(1)));
        assert_eq!(frames.next_retry(), None);
        assert!(!frames.held(&frame(2)));
    }

    #[test]
    fn the_same_bytes_for_another_shard_are_another_frame() {
        let (mut frames, mut effects) = (Frames::default(), VecDeque::new());
        let good = frame(1);
        let wrong_shard = FrameId { shard: 1, ..good };
        let wrong_length = FrameId { bytes: 9, ..good };
        frames.put(RoundId(1), good);
        for other in [wrong_shard, wrong_length] {
            let standing = frames.want(RoundId(1), other, Vec::new(), &mut effects);
            assert_eq!(standing, Standing::Missing);
            assert!(frames.malformed(&other));
        }
        assert!(frames.is_held(&good));
        assert_eq!(
            effects,
            [
                fetch(RoundId(1), wrong_shard, &[]),
                fetch(RoundId(1), wrong_length, &[])
            ]
        );
    }
}
