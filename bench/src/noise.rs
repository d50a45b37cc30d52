//! Seeded values that stand for updates: the same seed gives the same values on every machine with the same `ln` and
//! `cos`.

use std::f64::consts::TAU;

/// What the values of an update are drawn from, independently; mean 0, scale 1. No result of the codec depends on the
/// scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distribution {
    /// Standard deviation 1.
    Normal,
    /// Density exp(-|x|) / 2: the heavier tail that updates of trained models have.
    Laplace,
}

impl Distribution {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Laplace => "laplace",
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
#[derive(Debug, Clone)]
pub(crate) struct Noise {
    state: u64,
}

impl Noise {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Overwrites `values` with new ones.
    pub(crate) fn fill(&mut self, distribution: Distribution, values: &mut [f32]) {
        for value in values {
            *value = match distribution {
                Distribution::Normal => self.normal(),
                Distribution::Laplace => self.laplace(),
            } as f32;
        }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// In (0, 1], a multiple of 2^-53, so that its logarithm is finite.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Box and Muller, the cosine half.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }

    fn laplace(&mut self) -> f64 {
        let magnitude = -self.uniform().ln();
        if self.next() >> 63 == 0 {
            magnitude
        } else {
            -magnitude
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The first outputs for the seed 1234567, as published with other implementations of it.
        let mut noise = Noise::new(1_234_567);
        assert_eq!(noise.next(), 6_457_827_717_110_365_317);
        assert_eq!(noise.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        const COUNT: usize = 1 << 20;
        // Second and fourth moment.
        for (distribution, second, fourth) in [
            (Distribution::Normal, 1.0, 3.0),
            (Distribution::Laplace, 2.0, 24.0),
        ] {
            let mut values = vec![0.0; COUNT];
            Noise::new(1).fill(distribution, &mut values);
            let moment = |power: i32| {
                let sum: f64 = values
                    .iter()
                    .map(|&value| f64::from(value).powi(power))
                    .sum();
                sum / COUNT as f64
            };
            // Five standard errors: of the mean sqrt(second / COUNT), of the square sqrt((fourth - second^2) / COUNT).
            let mean_error = 5.0 * (second / COUNT as f64).sqrt();
            let square_error = 5.0 * ((fourth - second * second) / COUNT as f64).sqrt();
            assert!(moment(1).abs() < mean_error, "{distribution:?}");
            assert!(
                (moment(2) - second).abs() < square_error,
                "{distribution:?}"
            );
        }
    }
}
