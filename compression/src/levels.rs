//! Levels of one sparse tile: rules "one level" and "two levels" of [`crate::codec`].

use std::cmp::Reverse;

use crate::grid::{self, Step};

/// Most steps from the high level of a tile down to the low one: 16 octaves, so that sums of both are exact.
pub(crate) const LOW_STEPS_MAX: Step = 16 * 32;

/// Levels of the entries of a tile other than its peak, and the border between their groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Levels {
    /// Below `high`, by [`LOW_STEPS_MAX`] or less; zero when all entries are high, or the low ones are left out.
    pub(crate) low: Step,
    /// Zero when all entries are left out.
    pub(crate) high: Step,
    /// Smallest magnitude of the high group.
    pub(crate) high_from: f32,
}

impl Levels {
    /// Of no entries.
    pub(crate) const NONE: Self = Self {
        low: 0,
        high: 0,
        high_from: 0.0,
    };

    /// One level. `magnitudes`: of the chosen elements other than the peak, at least one, in index order, positive, at
    /// most `VALUE_ABS_MAX`.
    pub(crate) fn one(magnitudes: &[f32]) -> Self {
        Self {
            high: mean(sum(magnitudes), magnitudes.len()),
            ..Self::NONE
        }
    }

    /// Two levels. `magnitudes` as for [`Levels::one`], in any order; leaves them in descending
    /// order.
    pub(crate) fn two(magnitudes: &mut [f32]) -> Self {
        // Of positive numbers the bits have the order of the values.
        magnitudes.sort_unstable_by_key(|magnitude| Reverse(magnitude.to_bits()));
        let count = magnitudes.len();
        let total = sum(magnitudes);
        let mut best_fit = total * total / count as f64;
        // Number and sum of the high group.
        let mut best = (count, total);
        let mut high_sum = 0.0;
        for high_count in 1..count {
            let (smallest_high, largest_low) = (magnitudes[high_count - 1], magnitudes[high_count]);
            high_sum += f64::from(smallest_high);
            if smallest_high == largest_low {
                continue;
            }
            let low_sum = total - high_sum;
            let low_count = count - high_count;
            let fit =
                high_sum * high_sum / high_count as f64 + low_sum * low_sum / low_count as f64;
            if fit > best_fit {
                best_fit = fit;
                best = (high_count, high_sum);
            }
        }
        let (high_count, high_sum) = best;
        let high = mean(high_sum, high_count);
        let all_high = Self { high, ..Self::NONE };
        if high_count == count {
            return all_high;
        }
        let low = mean(total - high_sum, count - high_count);
        if low >= high {
            return all_high;
        }
        Self {
            low: if high - low > LOW_STEPS_MAX { 0 } else { low },
            high,
            high_from: magnitudes[high_count - 1],
        }
    }
}

fn sum(magnitudes: &[f32]) -> f64 {
    magnitudes
        .iter()
        .fold(0.0, |sum, &magnitude| sum + f64::from(magnitude))
}

fn mean(sum: f64, count: usize) -> Step {
    grid::nearest((sum / count as f64) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels as values.
    fn values(levels: Levels) -> (f32, f32) {
        (grid::value(levels.low), grid::value(levels.high))
    }

    #[test]
    fn level_is_the_mean_on_the_grid() {
        assert_eq!(values(Levels::one(&[1.0, 2.0, 3.0])), (0.0, 2.0));
        assert_eq!(values(Levels::one(&[32768.0; 64])), (0.0, 32768.0));
        // 2.5 is 2^(42.3 / 32).
        assert_eq!(Levels::one(&[1.0, 2.0, 4.5]).high, grid::nearest(1.0) + 42);
        assert_eq!(Levels::one(&[f32::MIN_POSITIVE / 2.0]).high, 0);
    }

    #[test]
    fn split_minimises_the_squared_error() {
        let mut magnitudes = [1.0, 1.25, 8.0, 0.75, 8.0];
        let levels = Levels::two(&mut magnitudes);
        assert_eq!((values(levels), levels.high_from), ((1.0, 8.0), 8.0));
        assert_eq!(magnitudes, [8.0, 8.0, 1.25, 1.0, 0.75]);
    }

    #[test]
    fn of_equally_good_splits_the_smaller_high_group_wins() {
        // 3^2 + (2 + 1)^2 / 2 = (3 + 2)^2 / 2 + 1^2.
        let levels = Levels::two(&mut [1.0, 2.0, 3.0]);
        assert_eq!(levels.high_from, 3.0);
        assert_eq!(levels.low, grid::nearest(1.5));
    }

    #[test]
    fn equal_magnitudes_are_not_split() {
        let levels = Levels::two(&mut [0.3; 7]);
        assert_eq!((levels.low, levels.high), (0, grid::nearest(0.3)));
    }

    #[test]
    fn levels_that_round_to_the_same_step_become_one() {
        let near = f32::from_bits(1.0_f32.to_bits() + 1);
        let levels = Levels::two(&mut [1.0, near]);
        assert_eq!(values(levels), (0.0, 1.0));
        assert_eq!(levels.high_from, 0.0);
    }

    #[test]
    fn low_group_beyond_sixteen_octaves_is_left_out() {
        let two = |low: f32| values(Levels::two(&mut [low, 1.0]));
        assert_eq!(two(2.0_f32.powi(-16)), (2.0_f32.powi(-16), 1.0));
        assert_eq!(two(2.0_f32.powi(-16) * 0.98), (0.0, 1.0));
    }
}
