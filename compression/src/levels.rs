//! Levels of one sparse tile: rules "one level" and "two levels" of [`crate::codec`].

use std::cmp::Reverse;

use half::f16;

/// Levels of a tile and the border between their groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Levels {
    /// Below `high`; zero when all entries are high, or the low ones round to zero.
    pub(crate) low: f16,
    /// Zero when all entries round to zero.
    pub(crate) high: f16,
    /// Smallest magnitude of the high group.
    pub(crate) high_from: f32,
}

impl Levels {
    /// Of a tile without entries.
    pub(crate) const NONE: Self = Self {
        low: f16::ZERO,
        high: f16::ZERO,
        high_from: 0.0,
    };

    /// One level. `magnitudes`: of the chosen elements, at least one, in index order, positive, at
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
        let mut best = Self {
            high: mean(total, count),
            ..Self::NONE
        };
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
                best = Self {
                    low: mean(low_sum, low_count),
                    high: mean(high_sum, high_count),
                    high_from: smallest_high,
                };
            }
        }
        if best.low >= best.high {
            Self {
                high: best.high,
                ..Self::NONE
            }
        } else {
            best
        }
    }
}

fn sum(magnitudes: &[f32]) -> f64 {
    magnitudes
        .iter()
        .fold(0.0, |sum, &magnitude| sum + f64::from(magnitude))
}

/// To f32 first, because `f16::from_f64` takes that detour on some processors and not on others.
fn mean(sum: f64, count: usize) -> f16 {
    f16::from_f32_const((sum / count as f64) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_is_the_rounded_mean() {
        assert_eq!(Levels::one(&[1.0, 2.0, 4.5]).high, f16::from_f32(2.5));
        assert_eq!(Levels::one(&[32768.0; 64]).high.to_f32(), 32768.0);
        // Half the smallest f16, 2^-25, rounds to even, which is zero.
        assert_eq!(Levels::one(&[2.0_f32.powi(-25)]).high, f16::ZERO);
        assert_eq!(Levels::one(&[f32::from_bits(1)]).high, f16::ZERO);
    }

    #[test]
    fn split_minimises_the_squared_error() {
        let mut magnitudes = [1.0, 1.25, 8.0, 0.75, 9.0];
        let levels = Levels::two(&mut magnitudes);
        assert_eq!(
            (levels.low.to_f32(), levels.high.to_f32(), levels.high_from),
            (1.0, 8.5, 8.0)
        );
        assert_eq!(magnitudes, [9.0, 8.0, 1.25, 1.0, 0.75]);
    }

    #[test]
    fn of_equally_good_splits_the_smaller_high_group_wins() {
        // 3^2 + (2 + 1)^2 / 2 = (3 + 2)^2 / 2 + 1^2.
        let levels = Levels::two(&mut [1.0, 2.0, 3.0]);
        assert_eq!((levels.low.to_f32(), levels.high.to_f32()), (1.5, 3.0));
    }

    #[test]
    fn equal_magnitudes_are_not_split() {
        let levels = Levels::two(&mut [0.3; 7]);
        assert_eq!((levels.low, levels.high), (f16::ZERO, f16::from_f32(0.3)));
    }

    #[test]
    fn levels_that_round_to_the_same_number_become_one() {
        let near = f32::from_bits(1.0_f32.to_bits() + 1);
        assert_eq!(
            Levels::two(&mut [1.0, near]),
            Levels {
                high: f16::ONE,
                ..Levels::NONE
            }
        );
    }
}
