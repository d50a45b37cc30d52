//! How sure a quantile of some samples is.
//!
//! Rule `order-statistics`: of n independent samples, the number of those below the q quantile is binomial with n and q. So
//! the quantile lies from the l-th to the u-th smallest sample with a chance of at least P(l <= B < u). Each tail is left
//! out as long as its chance is at most half of what the confidence allows; where even the largest sample is too small, there
//! is no upper end. Of a discrete distribution the chance is larger, never smaller.

/// The ranks, from 1, of the samples between which the `q` quantile of `n` samples lies with `confidence`; `None` where
/// the interval has no end.
///
/// # Panics
/// Unless both are between 0 and 1.
pub(super) fn ranks(n: usize, q: f64, confidence: f64) -> (Option<usize>, Option<usize>) {
    assert!(q > 0.0 && q < 1.0 && confidence > 0.0 && confidence < 1.0);
    let tail = (1.0 - confidence) / 2.0;
    // ln of n! / (k! (n - k)!) q^k (1 - q)^(n - k), from one k to the next.
    let mut ln = n as f64 * (1.0 - q).ln();
    let mut below = 0.0;
    let (mut low, mut high) = (None, None);
    for k in 0..=n {
        // `below` is P(B < k): the quantile is below the k-th sample with this chance.
        if k > 0 && below <= tail {
            low = Some(k);
        }
        if k > 0 && high.is_none() && 1.0 - below <= tail {
            high = Some(k);
        }
        below += ln.exp();
        ln += ((n - k) as f64 / (k + 1) as f64).ln() + (q / (1.0 - q)).ln();
    }
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_ten_lies_between_the_second_and_the_ninth() {
        // Tables of the sign test: P(2 <= B < 9) = 0.979 for ten coins, P(3 <= B < 8) = 0.891.
        assert_eq!(ranks(10, 0.5, 0.95), (Some(2), Some(9)));
        assert_eq!(ranks(10, 0.5, 0.8), (Some(3), Some(8)));
    }

    #[test]
    fn a_high_quantile_of_few_samples_has_no_upper_end() {
        // 0.95^72 is 0.0249, 0.95^71 is 0.0262.
        assert_eq!(ranks(71, 0.95, 0.95).1, None);
        assert_eq!(ranks(72, 0.95, 0.95).1, Some(72));
        assert_eq!(ranks(1, 0.95, 0.95), (None, None));
    }

    #[test]
    fn the_interval_holds_the_quantile_as_often_as_it_says() {
        // The rank of the quantile among uniform samples is all that counts: draw them with a linear congruential generator.
        let (low, high) = ranks(200, 0.95, 0.95);
        let (low, high) = (low.unwrap(), high.unwrap());
        let mut state = 1u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let tries = 2_000;
        let held = (0..tries).filter(|_| {
            let below = (0..200).filter(|_| draw() < 0.95).count();
            (low..high).contains(&below)
        });
        // At least 95 %, less four standard deviations of the count: 1900 - 4 * 9.7.
        let held = held.count();
        assert!(held >= 1_861, "{held} of {tries} between {low} and {high}");
    }
}
