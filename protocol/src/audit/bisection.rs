//! Which segment of a round is the first that went wrong, found by doing few of them again.
//!
//! Each segment is done again from the state that its peer committed to, so that each passes or fails by itself, and any
//! pattern of failures is possible. The search keeps an invariant: segment `fails` fails, and the segment before `from` passes,
//! or `from` is 0. A segment between them is done again; if it fails it becomes `fails`, if it passes `from` moves behind it.
//! So the invariant holds again and fewer segments are left, whatever the pattern. It ends when `from` is `fails`: a segment
//! that fails while the one before it passes, or segment 0.
//!
//! Where the failures are all segments from one on, there is only one such segment, and it is the first that failed.
//! With another pattern (a peer that cheats now and then) it is the beginning of some stretch of failures.
//!
//! Of n segments below the failed one, the one in the middle leaves n / 2 or fewer, rounded down. So there are at most
//! floor(log2 n) + 1 audits for n of at least 1, and none for 0.

/// A search in progress. Plain data: whoever does the audits asks, and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bisection {
    /// The segment before this one passes, or this is 0.
    from: u32,
    /// This segment fails.
    fails: u32,
}

impl Bisection {
    /// A search below `failed`, which is known to fail.
    pub fn below(failed: u32) -> Bisection {
        Bisection {
            from: 0,
            fails: failed,
        }
    }

    /// The segment to be done again next; `None` when the search has ended.
    pub fn next(&self) -> Option<u32> {
        let left = self.fails.checked_sub(self.from)?;
        (left > 0).then(|| self.from + left / 2)
    }

    /// Goes on with what came of segment [`Bisection::next`]. Grey passes. Does nothing after the end.
    pub fn answer(&mut self, passes: bool) {
        if let Some(middle) = self.next() {
            if passes {
                self.from = middle.saturating_add(1);
            } else {
                self.fails = middle;
            }
        }
    }

    /// What was found: a segment that fails while the one before it passes, or segment 0; `None` before the end.
    pub fn found(&self) -> Option<u32> {
        (self.from == self.fails).then_some(self.fails)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::segment::SEGMENTS_MAX;

    /// Searches below `failed` in a round whose segment i fails if bit i of `failures` is set: what it finds, and how many
    /// segments it does again.
    fn search(failed: u32, failures: u64) -> (u32, u32) {
        let mut bisection = Bisection::below(failed);
        let mut audits = 0;
        while let Some(segment) = bisection.next() {
            assert!(segment < failed, "nothing is done twice");
            assert_eq!(bisection.found(), None);
            bisection.answer(failures >> segment & 1 == 0);
            audits += 1;
        }
        (bisection.found().unwrap(), audits)
    }

    fn audits_max(failed: u32) -> u32 {
        failed.checked_ilog2().map_or(0, |log| log + 1)
    }

    #[test]
    fn of_failures_up_to_the_end_it_finds_the_first() {
        for failed in 0..SEGMENTS_MAX {
            for first in 0..=failed {
                let (found, audits) = search(failed, u64::MAX << first);
                assert_eq!(found, first);
                assert!(audits <= audits_max(failed));
            }
        }
    }

    #[test]
    fn of_any_failures_it_finds_one_that_follows_a_segment_that_passes() {
        for failed in 0..12 {
            for pattern in 0..1u64 << failed {
                let failures = pattern | 1 << failed;
                let (found, audits) = search(failed, failures);
                assert_eq!(failures >> found & 1, 1);
                assert!(found == 0 || failures >> (found - 1) & 1 == 0);
                assert!(audits <= audits_max(failed));
            }
        }
    }

    #[test]
    fn the_first_segment_needs_no_search_and_an_answer_after_the_end_is_nothing() {
        let mut bisection = Bisection::below(0);
        assert_eq!((bisection.next(), bisection.found()), (None, Some(0)));
        bisection.answer(true);
        assert_eq!(bisection.found(), Some(0));
    }
}
