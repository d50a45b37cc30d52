//! What the stake agrees on: the stake-weighted median of each column of weights.

use fixed::types::I32F32;

use super::matrix::{Matrix, normalized, sum};

/// For each column the largest weight that at least `majority` of the stake gives or exceeds.
///
/// Scores in ascending order cover the segment from zero to the sum of the stake, each as wide as its stake; the median is
/// the score that covers the point `majority` below the end. A row without an entry scores zero. Where that point lies beyond
/// either end, the nearest score is meant; without stake all medians are zero.
pub(super) fn weighted_medians(
    stake: &[I32F32],
    weights: &Matrix,
    majority: I32F32,
) -> Vec<I32F32> {
    let stake = normalized(stake);
    let whole = sum(stake.iter().copied());
    let minority = whole.saturating_sub(majority);
    let mut columns = vec![Vec::new(); stake.len()];
    for (row, stake) in weights.rows().iter().zip(&stake) {
        if *stake > I32F32::ZERO {
            for (column, score) in row {
                columns[usize::from(*column)].push((*score, *stake));
            }
        }
    }
    let median = |scores| weighted_median(scores, whole, minority);
    columns.into_iter().map(median).collect()
}

/// `scores`: (score, stake) of those who scored, out of the `whole` of which the others scored zero.
fn weighted_median(mut scores: Vec<(I32F32, I32F32)>, whole: I32F32, minority: I32F32) -> I32F32 {
    let silent = whole.saturating_sub(sum(scores.iter().map(|(_, stake)| *stake)));
    if silent > I32F32::ZERO {
        scores.push((I32F32::ZERO, silent));
    }
    scores.sort_unstable();
    let mut median = I32F32::ZERO;
    let mut covered = I32F32::ZERO;
    for (score, stake) in scores {
        median = score;
        covered = covered.saturating_add(stake);
        if minority < covered {
            break;
        }
    }
    median
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(values: &[f64]) -> Vec<I32F32> {
        values.iter().copied().map(I32F32::from_num).collect()
    }

    fn medians(stake: &[f64], rows: &[&[f64]], majority: f64) -> Vec<I32F32> {
        let weights = Matrix::from_rows(rows.iter().map(|row| fixed(row)));
        weighted_medians(&fixed(stake), &weights, I32F32::from_num(majority))
    }

    #[test]
    fn the_median_of_a_column_is_what_the_majority_of_the_stake_gives_or_exceeds() {
        let stake = [0.0, 0.75, 0.25, 0.0];
        let rows: [&[f64]; 4] = [
            &[0.0, 0.1, 0.0],
            &[0.0, 0.2, 0.4],
            &[0.0, 0.3, 0.1],
            &[0.0, 0.4, 0.5],
        ];
        for (majority, expected) in [
            (0.24, [0.0, 0.3, 0.4]),
            (0.26, [0.0, 0.2, 0.4]),
            (0.76, [0.0, 0.2, 0.1]),
        ] {
            assert_eq!(medians(&stake, &rows, majority)[..3], fixed(&expected));
        }
    }

    #[test]
    fn beyond_either_end_the_nearest_score_is_the_median() {
        let rows: [&[f64]; 2] = [&[0.2, 0.0], &[0.6, 0.0]];
        assert_eq!(medians(&[0.5, 0.5], &rows, 1.5), fixed(&[0.2, 0.0]));
        assert_eq!(medians(&[0.5, 0.5], &rows, 0.0), fixed(&[0.6, 0.0]));
    }

    #[test]
    fn without_stake_nothing_is_agreed_on() {
        let rows: [&[f64]; 2] = [&[0.2, 0.0], &[0.6, 0.0]];
        assert_eq!(medians(&[0.0, 0.0], &rows, 0.5), fixed(&[0.0, 0.0]));
    }
}
