//! The adaptive deadline of an exchange.
//!
//! Rule `deadline-adapts`: a round waits for updates until the median of the last eight rounds' slowest arrivals plus
//! slack: four times their median absolute deviation, a quarter of the median, or the manifest's floor, whichever is
//! most; never longer than the manifest's cap. The quarter stands in for the deviation while there are few arrivals.
//! With none yet a round waits for the cap. Arrivals are counted from the local start of the round,
//! so that training time is in them: with overlap, what is left of it when the round before is applied. An update
//! that comes after its round was decided still counts as that round's arrival: a peer that is a little too slow moves the
//! deadline, and is in time later. Who is gone is not waited for that long (rule `gone-not-waited-for` of [`super::silence`]).

use std::collections::VecDeque;
use std::time::Duration;

/// Arrivals that the deadline is made of (DESIGN, section 3).
const ARRIVALS: usize = 8;
/// Median absolute deviations above the median (DESIGN, section 3).
const DEVIATIONS: u32 = 4;

/// The last rounds' slowest arrivals.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    slowest: VecDeque<Duration>,
}

impl Arrivals {
    /// Records that the slowest update of a round that counted was complete `after` the round's start.
    pub fn record(&mut self, after: Duration) {
        if self.slowest.len() == ARRIVALS {
            self.slowest.pop_front();
        }
        self.slowest.push_back(after);
    }

    /// Records an update that came after its round, the last recorded one, was decided.
    pub fn record_late(&mut self, after: Duration) {
        if let Some(last) = self.slowest.back_mut() {
            *last = (*last).max(after);
        }
    }

    /// How long the next round waits, by rule `deadline-adapts`.
    pub fn deadline(&self, floor: Duration, cap: Duration) -> Duration {
        let Some(median) = median(self.slowest.iter().copied().collect()) else {
            return cap;
        };
        let deviations = self.slowest.iter().map(|a| a.abs_diff(median)).collect();
        let spread = median_of(deviations).saturating_mul(DEVIATIONS);
        let slack = spread.max(median / 4).max(floor);
        median.saturating_add(slack).min(cap)
    }
}

fn median(mut values: Vec<Duration>) -> Option<Duration> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn median_of(values: Vec<Duration>) -> Duration {
    median(values).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(30);

    fn after(seconds: &[u64]) -> Duration {
        let mut arrivals = Arrivals::default();
        for second in seconds {
            arrivals.record(Duration::from_secs(*second));
        }
        arrivals.deadline(FLOOR, CAP)
    }

    #[test]
    fn without_arrivals_a_round_waits_for_the_cap() {
        assert_eq!(after(&[]), CAP);
    }

    #[test]
    fn steady_arrivals_leave_a_quarter_or_the_floor_as_slack() {
        assert_eq!(after(&[4; 8]), Duration::from_secs(5));
        assert_eq!(after(&[1; 8]), Duration::from_millis(1500));
    }

    #[test]
    fn unsteady_arrivals_widen_the_deadline() {
        // Median 6, deviations 2 2 1 1 0 1 1 2 -> median 1.
        assert_eq!(after(&[4, 4, 5, 5, 6, 7, 7, 8]), Duration::from_secs(10));
    }

    #[test]
    fn one_straggler_does_not_move_the_deadline() {
        assert_eq!(after(&[4, 4, 4, 4, 29, 4, 4, 4]), after(&[4; 8]));
    }

    #[test]
    fn only_the_last_eight_count_and_the_cap_holds() {
        assert_eq!(after(&[1, 1, 1, 29, 29, 29, 29, 29, 29, 29, 29]), CAP);
        assert_eq!(after(&[20, 1, 1, 1, 1, 1, 1, 1, 1]), after(&[1; 8]));
    }

    #[test]
    fn late_updates_stretch_the_last_round() {
        let mut arrivals = Arrivals::default();
        arrivals.record_late(Duration::from_secs(3));
        assert_eq!(arrivals.deadline(FLOOR, CAP), CAP);
        arrivals.record(Duration::from_secs(2));
        arrivals.record_late(Duration::from_secs(3));
        arrivals.record_late(Duration::from_secs(1));
        assert_eq!(arrivals.deadline(FLOOR, CAP), Duration::from_millis(3750));
    }
}
