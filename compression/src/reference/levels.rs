//! The grid and the levels part of sparse frames.

use super::{Entry, Group, number, seven};
use crate::codec::ValueBits;

/// Rule "grid": what a step stands for.
pub(super) fn value_of(step: u16) -> f32 {
    if step == 0 {
        return 0.0;
    }
    let (octave, place) = ((i32::from(step) - 1) / 32, (step - 1) % 32);
    let mantissa = (f64::from(place) / 32.0).exp2() as f32;
    mantissa * 2.0_f32.powi(octave - 126)
}

/// Rule "grid": the step of a magnitude.
pub(super) fn step_of(magnitude: f32) -> u16 {
    if magnitude < f32::MIN_POSITIVE {
        return 0;
    }
    let (mut mantissa, mut exponent) = (magnitude, 0);
    while mantissa >= 2.0 {
        mantissa /= 2.0;
        exponent += 1;
    }
    while mantissa < 1.0 {
        mantissa *= 2.0;
        exponent -= 1;
    }
    let border = |j: &u16| (f64::from(2 * j + 1) / 64.0).exp2() as f32;
    let passed = (0..32).filter(|j| border(j) <= mantissa).count();
    ((exponent + 126) * 32 + passed as i32 + 1) as u16
}

/// What the levels part says of one tile.
pub(super) fn level_bits(
    entries: &[Entry],
    entries_max: usize,
    value_bits: ValueBits,
    before: &mut usize,
) -> Vec<bool> {
    let step_of_group = |group| {
        let entry = entries.iter().find(|entry| entry.group == group)?;
        Some(usize::from(entry.step))
    };
    let Some(peak) = step_of_group(Group::Peak) else {
        return long_bits(0);
    };
    let mut bits = Vec::new();
    if entries.len() < entries_max {
        bits.extend(long_bits(8191));
        bits.extend(binary(entries.len(), 12));
    }
    let level = match value_bits {
        ValueBits::One | ValueBits::Two => step_of_group(Group::High).unwrap_or(peak),
        ValueBits::Four => seven::high(entries).map_or(peak, usize::from),
    };
    let number = if level >= *before {
        2 * (level - *before)
    } else {
        2 * (*before - level) - 1
    };
    bits.extend(number_bits(number, level));
    *before = level;
    if entries.len() > 1 {
        if value_bits != ValueBits::Four {
            let place = entries.iter().position(|entry| entry.group == Group::Peak);
            bits.extend(binary(place.unwrap_or(0), place_bits(entries.len())));
        }
        bits.extend(number_bits(peak - level, peak - level));
        if value_bits == ValueBits::Four {
            bits.extend(binary(usize::from(seven::spacing(entries)) / 2 - 1, 4));
        }
        if value_bits == ValueBits::Two {
            let down = step_of_group(Group::Low).map_or(0, |low| level - low);
            bits.extend(number_bits(down, down));
        }
    }
    bits
}

fn number_bits(number: usize, when_long: usize) -> Vec<bool> {
    if number > 63 {
        return long_bits(when_long);
    }
    let mut bits = vec![false; number / 16];
    bits.push(true);
    bits.extend(binary(number % 16, 4));
    bits
}

fn long_bits(number: usize) -> Vec<bool> {
    let mut bits = vec![false; 4];
    bits.extend(binary(number, 13));
    bits
}

fn binary(number: usize, bits: usize) -> Vec<bool> {
    (0..bits).map(|bit| number >> bit & 1 == 1).collect()
}

fn place_bits(entries: usize) -> usize {
    (0..).find(|&bits| 1 << bits >= entries).unwrap_or(0)
}

pub(super) struct Levels {
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) peak: f32,
    pub(super) count: usize,
    pub(super) place: usize,
    /// The step of `high`, and how many there are from one level to the next.
    high_step: usize,
    spacing: usize,
}

impl Levels {
    /// With 4 value bits.
    pub(super) fn of_code(&self, code: usize) -> Option<f32> {
        let step = self.high_step.checked_sub(code * self.spacing)?;
        Some(value_of(step as u16))
    }
}

/// Reads what the levels part says of one tile.
pub(super) fn parse_levels(
    bits: &mut impl Iterator<Item = bool>,
    entries_max: usize,
    value_bits: ValueBits,
    before: &mut usize,
) -> Option<Levels> {
    let value_at = |step: usize| (step <= 4513).then(|| value_of(step as u16));
    let mut levels = Levels {
        low: 0.0,
        high: 0.0,
        peak: 0.0,
        count: 0,
        place: 0,
        high_step: 0,
        spacing: 0,
    };
    let mut written = parse_number(bits)?;
    if written == Number::Long(0) {
        return Some(levels);
    }
    levels.count = entries_max;
    if written == Number::Long(8191) {
        levels.count = number(bits, 12)?;
        written = parse_number(bits)?;
    }
    let level = match written {
        Number::Long(level) => level,
        Number::Short(number) if number % 2 == 0 => *before + number / 2,
        Number::Short(number) => before.checked_sub(number / 2 + 1)?,
    };
    *before = level;
    levels.high = value_at(level)?;
    levels.high_step = level;
    levels.peak = levels.high;
    if levels.count > 1 {
        if value_bits != ValueBits::Four {
            levels.place = number(bits, place_bits(levels.count) as u8)?;
        }
        levels.peak = value_at(level + parse_number(bits)?.get())?;
        if value_bits == ValueBits::Two {
            let down = parse_number(bits)?.get();
            if down != 0 {
                levels.low = value_at(level.checked_sub(down)?)?;
            }
        }
        if value_bits == ValueBits::Four {
            levels.spacing = 2 * (number(bits, 4)? + 1);
        }
    }
    Some(levels)
}

#[derive(Clone, Copy, PartialEq)]
enum Number {
    Short(usize),
    Long(usize),
}

impl Number {
    const fn get(self) -> usize {
        match self {
            Self::Short(number) | Self::Long(number) => number,
        }
    }
}

fn parse_number(bits: &mut impl Iterator<Item = bool>) -> Option<Number> {
    let mut zeros = 0;
    while zeros < 4 && !bits.next()? {
        zeros += 1;
    }
    Some(if zeros < 4 {
        Number::Short(16 * zeros + number(bits, 4)?)
    } else {
        Number::Long(number(bits, 13)?)
    })
}
