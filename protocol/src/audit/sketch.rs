//! What evidence keeps of two updates that are compared: random projections to 64 numbers, by which anybody can tell that an
//! error was not made up, without either update.
//!
//! Element j of the sketch of an update x is the sum over i of s(i, j) x(i), in order of i, in f64, rounded to f32 once. The
//! sign s(i, j) is bit j of word i of the draw from the sketch's seed, a set bit standing for minus. The seed follows from the
//! challenge: nobody knew it when the update was committed to, so that nobody can hide a difference from it.
//!
//! # Bound
//!
//! For a fixed x, q = |S x|^2 / (64 |x|^2) has mean 1. With Gaussian signs it would be a chi-square of 64 degrees over 64, for
//! which P(q <= a) <= (a e^(1 - a))^32 for a < 1, and P(q >= b) <= (b e^(1 - b))^32 for b > 1 (Chernoff). Random signs have no
//! heavier upper tail for any x (D. Achlioptas, "Database-friendly random projections", 2003, lemma 5.1); their lower tail is
//! the same for many comparable elements. The worst x that we know of, two equal elements, has P(q <= 0.18) = P(at most 5 of
//! 64 coins) = 4.5e-13, where the bound for Gaussian ones is 3.7e-13.
//!
//! The error by sketches over the true one is the root of a quotient of two such q. It is [`FACTOR`] = 4 or more only if one q
//! is 16 times the other, so at least 2.88 (4e-12) or the other at most 0.18 (5e-13). The two need not be independent for
//! that. The same holds below 1/4: an honest sketch is refused less than once in 10^11 times.
//!
//! Rounding moves each element by at most 2^-24 of itself, so that an error by sketches moves by less than 2 * 2^-24 (1 + error)
//! of the update: [`SLACK`] is 8 times that for small errors.

use super::draw::Draw;
use crate::hash::Hash;

/// Elements of a sketch.
pub const ELEMENTS: usize = 64;
/// How far an error by sketches may be from the true one, as a factor (module documentation, "Bound").
pub const FACTOR: f64 = 4.0;
/// What rounding may add to an error by sketches.
pub const SLACK: f64 = 1e-6;

const SIGNS_DOMAIN: &str = "gradmesh audit sketch v1";
const PPB: f64 = 1e9;

/// The sketch of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sketch {
    /// Its elements, as the bits of f32.
    pub bits: [u32; ELEMENTS],
}

impl Sketch {
    /// The sketch of `update`, in flat order. Cost: 64 additions and 8 bytes of BLAKE3 output for each element.
    pub fn of(seed: &Hash, update: impl IntoIterator<Item = f32>) -> Sketch {
        let mut signs = Draw::new(SIGNS_DOMAIN, seed, &[]);
        let mut sums = [0f64; ELEMENTS];
        for value in update {
            let mut word = signs.word();
            let value = f64::from(value);
            for sum in &mut sums {
                *sum += if word & 1 == 1 { -value } else { value };
                word >>= 1;
            }
        }
        Sketch {
            bits: sums.map(|sum| (sum as f32).to_bits()),
        }
    }

    fn elements(&self) -> impl Iterator<Item = f64> + '_ {
        self.bits
            .iter()
            .map(|bits| f64::from(f32::from_bits(*bits)))
    }

    fn is_finite(&self) -> bool {
        self.elements().all(f64::is_finite)
    }

    /// Whether this, of the update that was done again, and `claimed` have about the error that a validator reports.
    ///
    /// `error_ppb`: norm of the difference over that of the update that was done again, in parts per billion; `u64::MAX` also
    /// stands for an update with an element that is no number, or any difference from an update that is zero.
    pub fn supports(&self, claimed: &Sketch, error_ppb: u64) -> bool {
        if !self.is_finite() {
            return false;
        }
        if !claimed.is_finite() {
            return error_ppb == u64::MAX;
        }
        // Sums of 64 squares of f32, in order: no overflow in f64.
        let norm = |squares: f64| squares.sqrt();
        let update = norm(self.elements().map(|x| x * x).sum());
        let differences = self.elements().zip(claimed.elements());
        let difference = norm(differences.map(|(x, y)| (x - y) * (x - y)).sum());
        let error = error_ppb as f64 / PPB;
        let least = (error / FACTOR - SLACK) * update;
        let most = (error * FACTOR + SLACK) * update;
        difference >= least && (difference <= most || error_ppb == u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1000 numbers between -1 and 1.
    fn update(seed: u8) -> Vec<f32> {
        let mut draw = Draw::new("gradmesh test update v1", &Hash([seed; 32]), b"");
        let number = |_| (draw.below(2001).unwrap() as f32 - 1000.0) / 1000.0;
        (0..1000).map(number).collect()
    }

    fn norm(values: impl Iterator<Item = f32>) -> f64 {
        values
            .map(|x| f64::from(x) * f64::from(x))
            .sum::<f64>()
            .sqrt()
    }

    #[test]
    fn a_true_error_is_supported_and_one_of_another_size_is_not() {
        let done_again = update(1);
        for scale in [1e-5f32, 1e-3, 0.1, 1.0, 50.0] {
            for seed in 0..200u8 {
                let noise = update(seed.wrapping_add(2));
                let claimed: Vec<_> = done_again
                    .iter()
                    .zip(&noise)
                    .map(|(x, n)| x + scale * n)
                    .collect();
                let difference = norm(done_again.iter().zip(&claimed).map(|(x, y)| x - y));
                let error = difference / norm(done_again.iter().copied());
                let error_ppb = (error * 1e9) as u64;
                let seed = Hash([seed; 32]);
                let again = Sketch::of(&seed, done_again.iter().copied());
                let claim = Sketch::of(&seed, claimed.iter().copied());
                assert!(again.supports(&claim, error_ppb), "{scale} {seed}");
                // Ten times is beyond 4 with q up to 2.5 times off; 1e-5 is 10 times the slack.
                assert!(
                    !again.supports(&claim, error_ppb * 10 + 10_000),
                    "{scale} {seed}"
                );
                assert!(!again.supports(&claim, error_ppb / 20), "{scale} {seed}");
            }
        }
    }

    #[test]
    fn equal_updates_have_no_error_and_nothing_has_all_of_it() {
        let seed = Hash([1; 32]);
        let again = Sketch::of(&seed, update(1));
        let nothing = Sketch::of(&seed, []);
        assert!(again.supports(&again, 0) && again.supports(&again, 4_000));
        assert!(!again.supports(&again, 10_000));
        assert!(again.supports(&nothing, 1_000_000_000) && !again.supports(&nothing, 0));
        assert!(nothing.supports(&again, u64::MAX) && !nothing.supports(&again, 1_000_000_000));
        assert!(nothing.supports(&nothing, 0));
    }

    #[test]
    fn what_is_no_number_is_only_the_claims_fault() {
        let seed = Hash([1; 32]);
        let again = Sketch::of(&seed, update(1));
        for bad in [f32::NAN, f32::INFINITY] {
            let bad = Sketch::of(&seed, [bad]);
            assert!(again.supports(&bad, u64::MAX));
            assert!(!again.supports(&bad, 1_000_000_000));
            assert!(!bad.supports(&again, u64::MAX));
        }
    }

    #[test]
    fn the_mean_square_over_seeds_is_64_times_that_of_the_update() {
        const SEEDS: u16 = 200;
        let update = update(1);
        let square: f64 = update.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let quotient = |seed: u16| {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&seed.to_le_bytes());
            let sketch = Sketch::of(&Hash(bytes), update.iter().copied());
            sketch.elements().map(|x| x * x).sum::<f64>() / (64.0 * square)
        };
        let mean = (0..SEEDS).map(quotient).sum::<f64>() / f64::from(SEEDS);
        // The variance of one quotient is 2/64 (1 - sum of x^4 / (sum of x^2)^2), so below 1/32. The mean of 200 has a standard
        // deviation of less than 0.0125; five of them.
        assert!((mean - 1.0).abs() < 0.0625, "{mean}");
    }

    #[test]
    fn the_sketch_of_a_difference_is_the_difference_of_sketches() {
        // Whole numbers whose sums stay below 2^24: nothing is rounded.
        let whole = |seed| -> Vec<f32> {
            update(seed)
                .iter()
                .map(|x| x * 1000.0)
                .map(f32::round)
                .collect()
        };
        let (x, y) = (whole(1), whole(2));
        let seed = Hash([3; 32]);
        let difference = Sketch::of(&seed, x.iter().zip(&y).map(|(x, y)| x - y));
        let (x, y) = (Sketch::of(&seed, x), Sketch::of(&seed, y));
        let differences: Vec<f64> = x.elements().zip(y.elements()).map(|(x, y)| x - y).collect();
        assert_eq!(difference.elements().collect::<Vec<_>>(), differences);
    }

    #[test]
    fn another_seed_gives_another_sketch() {
        let of = |seed| Sketch::of(&Hash([seed; 32]), update(1));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn a_sketch_is_pinned() {
        let sketch = Sketch::of(&Hash([1; 32]), [1.0, 2.0, 4.0]);
        let first: Vec<_> = sketch.elements().take(8).collect();
        assert_eq!(first, [-1.0, -7.0, -3.0, -1.0, 1.0, 7.0, -1.0, -1.0]);
    }
}
