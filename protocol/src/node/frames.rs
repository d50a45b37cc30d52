//! Which frames are wanted, held or known to be bad, and when to ask again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::effect::Effect;
use crate::hash::Hash;
use crate::header::FrameRef;
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
    frame: FrameRef,
    shard: u32,
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
    entries: BTreeMap<Hash, Entry>,
}

impl Frames {
    /// Asks for a frame unless it is held, asked for or malformed, and says where it stands. New sources are added to
    /// those known.
    pub(super) fn want(
        &mut self,
        round: RoundId,
        frame: FrameRef,
        shard: u32,
        sources: Vec<PeerKey>,
        effects: &mut VecDeque<Effect>,
    ) -> Standing {
        let entry = self.entries.entry(frame.hash).or_insert_with(|| {
            effects.push_back(fetch(&frame, shard, &sources));
            Entry {
                round,
                frame,
                shard,
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
    pub(super) fn put(&mut self, round: RoundId, frame: FrameRef, shard: u32) {
        self.entries.insert(
            frame.hash,
            Entry {
                round,
                frame,
                shard,
                sources: Vec::new(),
                state: State::Held,
            },
        );
    }

    /// The frame is at hand. `false` if nobody wanted it.
    pub(super) fn held(&mut self, hash: &Hash) -> bool {
        self.settle(hash, State::Held)
    }

    /// The frame's content is bad. `false` if nobody wanted it.
    pub(super) fn malformed(&mut self, hash: &Hash) -> bool {
        self.settle(hash, State::Malformed)
    }

    fn settle(&mut self, hash: &Hash, state: State) -> bool {
        let Some(entry) = self.entries.get_mut(hash) else {
            return false;
        };
        entry.state = state;
        true
    }

    /// No source had the frame: pause, then ask again with the sources rotated.
    pub(super) fn failed(&mut self, now: Time, hash: &Hash) {
        let Some(entry) = self.entries.get_mut(hash) else {
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
        for entry in self.entries.values_mut() {
            if let State::Pausing { failures, until } = entry.state
                && until <= now
            {
                entry.state = State::Asked { failures };
                effects.push_back(fetch(&entry.frame, entry.shard, &entry.sources));
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
    pub(super) fn is_hopeless(&self, hash: &Hash) -> bool {
        self.entries
            .get(hash)
            .is_some_and(|entry| match entry.state {
                State::Asked { failures } | State::Pausing { failures, .. } => {
                    failures >= HOPELESS_FAILURES
                }
                State::Held | State::Malformed => false,
            })
    }

    /// Whether a frame is held.
    pub(super) fn is_held(&self, hash: &Hash) -> bool {
        let entry = self.entries.get(hash);
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

fn fetch(frame: &FrameRef, shard: u32, sources: &[PeerKey]) -> Effect {
    Effect::Fetch {
        hash: frame.hash,
        bytes: frame.bytes,
        shard,
        sources: sources.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(byte: u8) -> FrameRef {
        FrameRef {
            hash: Hash([byte; 32]),
            bytes: 10,
        }
    }

    #[test]
    fn a_frame_is_asked_for_once_and_again_after_a_growing_pause() {
        let (mut frames, mut effects) = (Frames::default(), VecDeque::new());
        let sources = vec![PeerKey([1; 32]), PeerKey([2; 32])];
        for _ in 0..2 {
            let standing = frames.want(RoundId(1), frame(1), 0, sources.clone(), &mut effects);
            assert_eq!(standing, Standing::Missing);
        }
        assert_eq!(effects, [fetch(&frame(1), 0, &sources)]);
        effects.clear();

        frames.failed(Time(1000), &frame(1).hash);
        frames.retry(Time(1249), &mut effects);
        assert!(effects.is_empty());
        assert_eq!(frames.next_retry(), Some(Time(1250)));
        frames.retry(Time(1250), &mut effects);
        let rotated = [sources[1], sources[0]];
        assert_eq!(effects, [fetch(&frame(1), 0, &rotated)]);
        frames.failed(Time(2000), &frame(1).hash);
        assert_eq!(frames.next_retry(), Some(Time(2500)));

        let newcomer = PeerKey([3; 32]);
        frames.want(RoundId(1), frame(1), 0, vec![newcomer], &mut effects);
        effects.clear();
        frames.retry(Time(2500), &mut effects);
        let grown = [sources[0], sources[1], newcomer];
        assert_eq!(effects, [fetch(&frame(1), 0, &grown)]);

        for failure in 3..=5 {
            assert!(
                !frames.is_hopeless(&frame(1).hash),
                "before failure {failure}"
            );
            frames.failed(Time(10_000), &frame(1).hash);
            frames.retry(Time(20_000), &mut effects);
        }
        assert!(frames.is_hopeless(&frame(1).hash));

        assert!(frames.held(&frame(1).hash));
        assert!(!frames.is_hopeless(&frame(1).hash));
        assert_eq!(frames.next_retry(), None);
        assert!(!frames.held(&frame(2).hash));
    }
}
