//! Bonds: what validators hold of those whom they recognised early, and what that pays.
//!
//! A bond is a moving average, so that a validator that copies weights follows the one that found them. The classic rule
//! averages shares of the stake behind a server; Yuma3 averages the weights themselves and counts stake only when it pays.

use fixed::types::{I32F32, I64F64};

use super::Parameters;
use super::matrix::{Matrix, normalized};

/// bonds_moving_average counts in parts of this many.
const AVERAGE_PARTS: u64 = 1_000_000;

/// What bonds are computed from.
pub(super) struct Holdings<'a> {
    /// As stored, less those on uids with a new owner.
    pub(super) bonds: Matrix,
    /// The weights that turn into bonds.
    pub(super) weights: Matrix,
    pub(super) active_stake: &'a [I32F32],
    pub(super) incentive: &'a [I32F32],
    pub(super) parameters: &'a Parameters,
}

/// What comes of them.
pub(super) struct Bonds {
    /// In proportions, as they are stored.
    pub(super) stored: Matrix,
    /// Sum to one, or are all zero.
    pub(super) dividends: Vec<I32F32>,
}

pub(super) fn update(holdings: &Holdings<'_>) -> Bonds {
    if holdings.parameters.yuma3 {
        yuma3(holdings)
    } else {
        classic(holdings)
    }
}

/// Bonds on a server are shares of it: columns sum to one, and are stored with their largest at one.
fn classic(holdings: &Holdings<'_>) -> Bonds {
    let old = holdings.bonds.columns_normalized();
    let bought = holdings
        .weights
        .map(|row, _, weight| weight.saturating_mul(holdings.active_stake[row]))
        .columns_normalized();
    let bonds = average(&bought, &old, holdings.parameters).columns_normalized();
    let earned = bonds.weighted_row_sums(holdings.incentive);
    Bonds {
        stored: bonds.columns_upscaled(),
        dividends: normalized(&earned),
    }
}

/// Bonds on a server are averages of weights, and are stored as such.
fn yuma3(holdings: &Holdings<'_>) -> Bonds {
    let whole = I32F32::from_num(u16::MAX);
    let old = holdings.bonds.map(|_, _, bond| bond.saturating_div(whole));
    let bonds = average(&holdings.weights, &old, holdings.parameters);
    let shares = bonds.columns_normalized();
    let earned = shares.weighted_row_sums(holdings.incentive);
    let earned = earned.iter().zip(holdings.active_stake);
    let by_stake = earned.map(|(earned, stake)| earned.saturating_mul(*stake));
    Bonds {
        dividends: normalized(&by_stake.collect::<Vec<_>>()),
        stored: bonds,
    }
}

/// The exponential moving average of `new` on `old`.
fn average(new: &Matrix, old: &Matrix, parameters: &Parameters) -> Matrix {
    let old_part = parameters.bonds_moving_average.min(AVERAGE_PARTS);
    let old_part = I64F64::from_num(old_part) / I64F64::from_num(AVERAGE_PARTS);
    let new_part = I32F32::ONE - I32F32::from_num(old_part);
    let old_part = I32F32::ONE - new_part;
    new.merge(old, |new, old| {
        new_part
            .saturating_mul(new)
            .saturating_add(old_part.saturating_mul(old))
    })
}
