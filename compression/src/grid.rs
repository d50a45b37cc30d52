//! The grid of levels and peaks: rule "grid" of [`crate::codec`].

/// A number of the grid, in `0..=STEP_MAX`; zero stands for no value.
pub(crate) type Step = u16;

/// Steps of an octave.
const OCTAVE: u32 = 32;

/// Step of [`crate::codec::VALUE_ABS_MAX`].
pub(crate) const STEP_MAX: Step = (126 + 15) * OCTAVE as u16 + 1;

/// Mantissa bits of 2^(i / 32), rounded to f32.
const MANTISSAS: [u32; OCTAVE as usize] = [
    0x00_0000, 0x02_cd87, 0x05_aac3, 0x08_980f, 0x0b_95c2, 0x0e_a43a, 0x11_c3d3, 0x14_f4f0,
    0x18_37f0, 0x1b_8d3a, 0x1e_f532, 0x22_7043, 0x25_fed7, 0x29_a15b, 0x2d_583f, 0x31_23f6,
    0x35_04f3, 0x38_fbaf, 0x3d_08a4, 0x41_2c4d, 0x45_672a, 0x49_b9be, 0x4e_248c, 0x52_a81e,
    0x57_44fd, 0x5b_fbb8, 0x60_ccdf, 0x65_b907, 0x6a_c0c7, 0x6f_e4ba, 0x75_257d, 0x7a_83b3,
];

/// Mantissa bits of 2^((2 i + 1) / 64), rounded to f32: from here on the next of [`MANTISSAS`] is nearer.
const BORDERS: [u32; OCTAVE as usize] = [
    0x01_64d2, 0x04_3a29, 0x07_1f62, 0x0a_14d5, 0x0d_1adf, 0x10_31dc, 0x13_5a2b, 0x16_942d,
    0x19_e046, 0x1d_3eda, 0x20_b051, 0x24_3516, 0x27_cd94, 0x2b_7a3a, 0x2f_3b79, 0x33_11c4,
    0x36_fd92, 0x3a_ff5b, 0x3f_179a, 0x43_46cd, 0x47_8d75, 0x4b_ec15, 0x50_6334, 0x54_f35b,
    0x59_9d16, 0x5e_60f5, 0x63_3f89, 0x68_396a, 0x6d_4f30, 0x72_8177, 0x77_d0df, 0x7d_3e0c,
];

const MANTISSA_BITS: u32 = f32::MANTISSA_DIGITS - 1;
const MANTISSA_MASK: u32 = (1 << MANTISSA_BITS) - 1;

/// What `step` stands for.
pub(crate) const fn value(step: Step) -> f32 {
    match (step as u32).checked_sub(1) {
        // The exponent of f32 is 1 at 2^-126.
        Some(above) => f32::from_bits(
            (above / OCTAVE + 1) << MANTISSA_BITS | MANTISSAS[(above % OCTAVE) as usize],
        ),
        None => 0.0,
    }
}

/// The step of a number in `0..=VALUE_ABS_MAX`.
pub(crate) fn nearest(magnitude: f32) -> Step {
    let Some(octave) = (magnitude.to_bits() >> MANTISSA_BITS).checked_sub(1) else {
        return 0;
    };
    let mantissa = magnitude.to_bits() & MANTISSA_MASK;
    // As signed integers: that comparison is one instruction on every processor.
    let passed = BORDERS.iter().fold(0, |passed, &border| {
        passed + u32::from(border as i32 <= mantissa as i32)
    });
    // At most STEP_MAX, because the octave of VALUE_ABS_MAX is 141 and its mantissa zero.
    (octave * OCTAVE + passed + 1) as Step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::VALUE_ABS_MAX;

    #[test]
    fn constants_are_the_rounded_powers_of_two() {
        let mantissa = |numerator: usize| {
            let power = (numerator as f64 / 64.0).exp2() as f32;
            power.to_bits() & MANTISSA_MASK
        };
        for place in 0..OCTAVE as usize {
            assert_eq!(MANTISSAS[place], mantissa(2 * place), "{place}");
            assert_eq!(BORDERS[place], mantissa(2 * place + 1), "{place}");
        }
    }

    #[test]
    fn ends_of_the_grid_are_powers_of_two() {
        assert_eq!(value(0), 0.0);
        assert_eq!(value(1), f32::MIN_POSITIVE);
        assert_eq!(value(STEP_MAX - 32), VALUE_ABS_MAX / 2.0);
        assert_eq!(value(STEP_MAX), VALUE_ABS_MAX);
        assert_eq!(nearest(VALUE_ABS_MAX), STEP_MAX);
        assert_eq!(nearest(0.0), 0);
        assert_eq!(nearest(f32::MIN_POSITIVE.next_down()), 0);
    }

    #[test]
    fn every_number_goes_to_the_step_that_is_nearest_by_ratio() {
        for step in 1..STEP_MAX {
            let (here, next) = (value(step), value(step + 1));
            assert_eq!(nearest(here), step);
            // Roundings aside, the border is the geometric mean.
            let border = (f64::from(here) * f64::from(next)).sqrt();
            assert_eq!(nearest((border * (1.0 - 1e-6)) as f32), step);
            assert_eq!(nearest((border * (1.0 + 1e-6)) as f32), step + 1);
        }
    }
}
