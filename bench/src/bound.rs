//! How few bits would do, from arithmetic alone.

/// log2 of the number of ways to choose `k` of `n`: no code for sets of k indices takes fewer bits on average when all
/// sets are equally likely, which they are for independent values of one distribution.
///
/// log2 of the product of (n - k + i) / i for i in 1..=k; O(k). Below n = 2^31 a term is less than 2^5 and a partial sum
/// less than k * 2^5; each is rounded by at most 2^-53 of that, so that the result is off by k^2 * 2^-47 at most.
///
/// # Panics
/// Unless `k <= n`.
pub(crate) fn log2_choose(n: usize, k: usize) -> f64 {
    assert!(k <= n, "{k} of {n}");
    (1..=k)
        .map(|i| ((n - k + i) as f64 / i as f64).log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_cases_are_those_of_pascals_triangle() {
        for (n, k, ways) in [
            (4, 0, 1.0_f64),
            (4, 4, 1.0),
            (4, 2, 6.0),
            (10, 3, 120.0),
            (52, 5, 2_598_960.0),
        ] {
            let error = (log2_choose(n, k) - ways.log2()).abs();
            // Five terms at most: 25 * 2^-47.
            assert!(error < 1e-12, "{n} choose {k}: off by {error}");
        }
    }

    #[test]
    fn choosing_and_leaving_out_are_the_same() {
        let difference = log2_choose(4096, 64) - log2_choose(4096, 4032);
        // 4032^2 * 2^-47.
        assert!(difference.abs() < 1e-6, "{difference}");
    }

    #[test]
    fn a_tile_lies_between_the_known_bounds_on_binomials() {
        for k in [32, 64, 128] {
            let bits = log2_choose(4096, k);
            // (n / k)^k <= C(n, k) <= (e n / k)^k.
            let low = k as f64 * (4096.0 / k as f64).log2();
            let high = low + k as f64 * std::f64::consts::LOG2_E;
            assert!((low..high).contains(&bits), "{bits} for {k}");
        }
    }
}
