//! Virtual time and the one event queue.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Add;

/// Virtual time since the start of the run, in microseconds. No peer sees it: each has its own [`Clock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// An instant from seconds.
    pub const fn from_secs(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000)
    }
}

impl Add<u64> for Instant {
    type Output = Instant;

    /// `self` and `micros` microseconds.
    fn add(self, micros: u64) -> Instant {
        Instant(self.0 + micros)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// A peer's own clock: begins anywhere and runs a little too fast or too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// What it shows at virtual time zero.
    pub origin_ms: u64,
    /// By how much it runs too fast, parts per million; negative for too slow.
    pub drift_ppm: i64,
}

impl Clock {
    /// What the clock shows at `instant`.
    pub fn read(&self, instant: Instant) -> gradmesh_protocol::time::Time {
        let micros = u128::from(instant.0) * self.rate() / 1_000_000;
        gradmesh_protocol::time::Time(self.origin_ms + (micros / 1000) as u64)
    }

    /// The first instant at which the clock shows `time` or later.
    pub fn when(&self, time: gradmesh_protocol::time::Time) -> Instant {
        let micros = u128::from(time.0.saturating_sub(self.origin_ms)) * 1000;
        let instant = (micros * 1_000_000).div_ceil(self.rate());
        Instant(u64::try_from(instant).unwrap_or(u64::MAX))
    }

    fn rate(&self) -> u128 {
        (1_000_000 + self.drift_ppm) as u128
    }
}

/// Events in order of time; those of one instant in the order in which they were put in.
#[derive(Clone, Debug)]
pub struct Queue<E> {
    events: BTreeMap<(Instant, u64), E>,
    sequence: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Queue {
            events: BTreeMap::new(),
            sequence: 0,
        }
    }
}

impl<E> Queue<E> {
    /// Puts in `event`, to happen at `at`.
    pub fn push(&mut self, at: Instant, event: E) {
        self.events.insert((at, self.sequence), event);
        self.sequence += 1;
    }

    /// Takes out the next event.
    pub fn pop(&mut self) -> Option<(Instant, E)> {
        let ((at, _), event) = self.events.pop_first()?;
        Some((at, event))
    }

    /// Number of events to come.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing is to come.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradmesh_protocol::time::Time;

    #[test]
    fn events_of_one_instant_keep_their_order() {
        let mut queue = Queue::default();
        for (at, event) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b')] {
            queue.push(Instant(at), event);
        }
        let order: String = std::iter::from_fn(|| queue.pop()).map(|(_, e)| e).collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn a_clock_shows_a_time_at_the_first_instant_that_it_says() {
        for drift_ppm in [-500, 0, 37, 500] {
            let clock = Clock {
                origin_ms: 12_345,
                drift_ppm,
            };
            for time in (12_345..13_345).map(Time) {
                let instant = clock.when(time);
                assert_eq!(clock.read(instant), time);
                assert!(instant.0 == 0 || clock.read(Instant(instant.0 - 1)) < time);
            }
        }
    }
}
