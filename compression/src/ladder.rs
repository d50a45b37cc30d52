//! The seven levels of one sparse tile: rule "seven levels" of [`crate::codec`].

use crate::grid::{self, Step};

/// Levels of a tile besides its peak; they have the codes below this one.
const LEVELS: u16 = 7;

/// What the peak has in place of the code of a level.
pub(crate) const PEAK_CODE: u16 = LEVELS;

/// Spacings are the multiples of this, from one to [`SPACINGS`] times. Measured: with all numbers of steps the error is the
/// same, with every fourth alone it is up to a fifth larger.
pub(crate) const SPACING_UNIT: Step = 2;
pub(crate) const SPACINGS: usize = 16;

/// Most steps that the high level is below the largest magnitude. Measured: with 48 the error is the same where a spacing
/// suits the values.
const BELOW_LARGEST_MAX: usize = 16;

/// Most steps from the last level down to an entry that stands for it: an octave, where the level and zero are equally near.
const TAIL: usize = 32;

/// For each spacing, most steps from a level down to an entry that stands for it and not for the next: how many t from 1 on
/// have 2 * 2^(-t/32) >= 1 + 2^(-spacing/32).
const REACH: [usize; SPACINGS] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12, 13];

/// Most steps that the high level is above the largest magnitude.
const ABOVE_LARGEST_MAX: usize = REACH[SPACINGS - 1];

/// Steps from the largest magnitude down that a last level can be.
const DEPTH: usize = BELOW_LARGEST_MAX + (LEVELS as usize - 1) * SPACINGS * SPACING_UNIT as usize;

/// Magnitudes by how many steps they are below the largest one, from [`ABOVE_LARGEST_MAX`] above it on, where it is 2^24: as
/// the grid has them, their fraction left away. So the search is in integers.
const MAGNITUDES: [i64; ABOVE_LARGEST_MAX + 1 + DEPTH + TAIL] = {
    const LARGEST: Step = (126 + 24) * 32 + 1;
    let mut magnitudes = [0; ABOVE_LARGEST_MAX + 1 + DEPTH + TAIL];
    let mut place = 0;
    while place < magnitudes.len() {
        magnitudes[place] = grid::value(LARGEST + ABOVE_LARGEST_MAX as Step - place as Step) as i64;
        place += 1;
    }
    magnitudes
};

/// Levels at equal ratios: code j is at the step `high - j * spacing`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ladder {
    /// Zero when there are no levels.
    pub(crate) high: Step,
    pub(crate) spacing: Step,
}

impl Ladder {
    /// Of no entries.
    pub(crate) const NONE: Self = Self {
        high: 0,
        spacing: 0,
    };

    /// The ladder of the least squared error. `steps`: of the chosen elements other than the peak, fewer than 4096, in any
    /// order, none above `peak`. Whether its spacing is the one to be written depends on the codes that are used:
    /// [`Ladder::spacing_of`].
    ///
    /// Cost: some 5 us, whatever the number of entries, and O(entries).
    pub(crate) fn of(steps: &[Step], peak: Step) -> Self {
        let Some(largest) = steps.iter().copied().max().filter(|&largest| largest != 0) else {
            return Self::NONE;
        };
        // Of the entries that are fewer than so many steps below the largest, their number and the sum of their magnitudes;
        // those further below are left out whatever the ladder.
        let mut before = [(0_i64, 0_i64); 1 + DEPTH + TAIL + 1];
        for step in steps {
            if let Some((count, _)) = before.get_mut(usize::from(largest - step) + 1) {
                *count += 1;
            }
        }
        for place in 1..before.len() {
            let (count, sum) = before[place - 1];
            let (own, _) = before[place];
            let magnitude = MAGNITUDES[ABOVE_LARGEST_MAX + place - 1];
            before[place] = (count + own, sum + own * magnitude);
        }

        let mut best = Self::NONE;
        // By how much the squared error is less than the sum of squares: below 2^61, for 2^12 entries of at most 2^24.
        let mut best_gain = i64::MIN;
        for (number, reach) in REACH.into_iter().enumerate() {
            let spacing = (number + 1) * usize::from(SPACING_UNIT);
            let above_max = reach.min(usize::from(peak - largest));
            let below_max = BELOW_LARGEST_MAX.min(usize::from(largest) - 1);
            // From the highest of the high levels on.
            for below in 0..=above_max + below_max {
                // The high level is `down` steps below the highest one that any ladder has.
                let down = ABOVE_LARGEST_MAX - above_max + below;
                let mut gain = 0;
                let mut passed = (0, 0);
                for code in 0..usize::from(LEVELS) {
                    let level = MAGNITUDES[down + code * spacing];
                    let reach = if code + 1 == usize::from(LEVELS) {
                        TAIL
                    } else {
                        reach
                    };
                    let end = (down + code * spacing + reach + 1) - ABOVE_LARGEST_MAX;
                    let (count, sum) = before[end];
                    gain += level * (2 * (sum - passed.1) - (count - passed.0) * level);
                    passed = (count, sum);
                }
                if gain > best_gain {
                    best_gain = gain;
                    best = Self {
                        // At most `peak`, at least 1.
                        high: (usize::from(largest) + above_max - below) as Step,
                        spacing: spacing as Step,
                    };
                }
            }
        }
        best
    }

    /// The code of an entry at `step`, or `None` where it is left out.
    pub(crate) fn code(&self, step: Step) -> Option<u16> {
        if self.high == 0 {
            return None;
        }
        let down = self.high.saturating_sub(step);
        let number = usize::from(self.spacing / SPACING_UNIT) - 1;
        // At most 13.
        let beyond = down.saturating_sub(REACH[number] as Step);
        let code = beyond.div_ceil(self.spacing).min(LEVELS - 1);
        let is_near = down <= code * self.spacing + TAIL as Step;
        (is_near && self.level(code) != 0).then_some(code)
    }

    /// The step of the level with this code, or zero where the grid has none.
    pub(crate) fn level(&self, code: u16) -> Step {
        self.high.saturating_sub(code * self.spacing)
    }

    /// The smallest spacing that has all levels of this ladder whose codes are `used`, a bit for each.
    pub(crate) fn spacing_of(&self, used: u8) -> Step {
        let codes = (0..LEVELS).filter(|code| used >> code & 1 != 0);
        let has_all = |spacing: &Step| {
            codes.clone().all(|code| {
                let down = code * self.spacing;
                down.is_multiple_of(*spacing) && down / spacing < LEVELS
            })
        };
        (1..=SPACINGS as Step)
            .map(|number| number * SPACING_UNIT)
            .find(has_all)
            .unwrap_or(self.spacing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Step = 4033;

    #[test]
    fn reach_is_up_to_the_middle_between_two_levels() {
        for (number, reach) in REACH.into_iter().enumerate() {
            let middle = (1.0 + (-(number as f64 + 1.0) / 16.0).exp2()) / 2.0;
            let is_above = |t: usize| (-(t as f64) / 32.0).exp2() >= middle;
            assert!(is_above(reach) && !is_above(reach + 1), "{number}");
        }
    }

    #[test]
    fn magnitudes_differ_from_step_to_step() {
        assert!(MAGNITUDES.windows(2).all(|pair| pair[0] > pair[1]));
        assert_eq!(MAGNITUDES[ABOVE_LARGEST_MAX], 1 << 24);
        assert_eq!(MAGNITUDES[ABOVE_LARGEST_MAX + 64], 1 << 22);
    }

    #[test]
    fn values_on_a_ladder_are_kept_as_they_are() {
        for spacing in (2..=32).step_by(2) {
            let steps: Vec<_> = (0..7).map(|code| ONE - code * spacing).collect();
            let high = ONE;
            assert_eq!(Ladder::of(&steps, ONE), Ladder { high, spacing });
            // As it is when the largest possible ladder begins above the smallest step.
            let steps: Vec<_> = (0..2).map(|code| 33 - code * spacing).collect();
            let ladder = Ladder::of(&steps, ONE);
            assert_eq!(ladder.high, 33);
            assert!(
                steps.iter().all(|&step| {
                    ladder.code(step).map(|code| ladder.level(code)) == Some(step)
                })
            );
        }
        assert_eq!(Ladder::of(&[], ONE), Ladder::NONE);
        assert_eq!(Ladder::of(&[0, 0], ONE), Ladder::NONE);
    }

    #[test]
    fn largest_magnitude_takes_the_high_level_whatever_the_others_are() {
        let mut state = 1_u32;
        let mut below = |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) % bound) as Step
        };
        for case in 0..2000 {
            let largest = 1 + below(if case % 2 == 0 { 40 } else { 4000 });
            let peak = largest + below(20);
            let span = 1 + below(300);
            let mut steps = vec![largest];
            steps.extend((0..below(60)).map(|_| largest.saturating_sub(below(span.into()))));
            let ladder = Ladder::of(&steps, peak);
            assert!((1..=peak).contains(&ladder.high));
            assert_eq!(ladder.code(largest), Some(0));
        }
    }

    #[test]
    fn entries_take_the_nearest_level_or_none() {
        let (high, spacing) = (ONE, 16);
        let ladder = Ladder { high, spacing };
        for (down, code) in [
            (0, Some(0)),
            (7, Some(0)),
            (8, Some(1)),
            (23, Some(1)),
            (24, Some(2)),
            (87, Some(5)),
            (88, Some(6)),
            (128, Some(6)),
            (129, None),
            (4033, None),
        ] {
            assert_eq!(ladder.code(ONE - down), code, "{down}");
        }
        assert_eq!(ladder.code(ONE + 16), Some(0));
        // No level below the grid.
        let ladder = Ladder { high: 20, spacing };
        assert_eq!((ladder.level(1), ladder.level(2)), (4, 0));
        assert_eq!((ladder.code(4), ladder.code(1)), (Some(1), Some(1)));
        let ladder = Ladder { high: 16, spacing };
        assert_eq!((ladder.code(9), ladder.code(8)), (Some(0), None));
    }

    #[test]
    fn spacing_is_the_smallest_that_has_the_used_levels() {
        let of = |spacing, used| Ladder { high: ONE, spacing }.spacing_of(used);
        assert_eq!(of(16, 0b000_0001), 2);
        assert_eq!(of(16, 0b111_1111), 16);
        assert_eq!(of(16, 0b000_1001), 8);
        assert_eq!(of(16, 0b000_0101), 8);
        assert_eq!(of(16, 0b001_0101), 16);
        assert_eq!(of(30, 0b001_0101), 20);
        assert_eq!(of(2, 0b100_0001), 2);
    }
}
