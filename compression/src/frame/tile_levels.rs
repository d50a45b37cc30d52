//! The levels part of a sparse frame.
//!
//! What this way of writing takes, on updates of the demo's model with k = 64: 5.2 bits for a level, of a grid of 32
//! steps to the octave, 5.1 for a peak and 5.0 for a low level. Levels of neighbouring tiles are alike, and those of a
//! tile always are.

use super::{DecodeError, Section, SparseTile};
use crate::bits::{BitReader, BitWriter};
use crate::codec::ValueBits;
use crate::grid::{STEP_MAX, Step};
use crate::ladder::{SPACING_UNIT, SPACINGS};
use crate::levels::LOW_STEPS_MAX;

/// Low bits of a number in its short form.
const REST_BITS: u32 = 4;
/// Zero bits that begin a long form.
const LONG_ZEROS: u32 = 4;
/// Largest number that has a short form.
const SHORT_MAX: u32 = (LONG_ZEROS << REST_BITS) - 1;
/// Bits of a long form after its zeros.
const STEP_BITS: u32 = 13;
const LONG_BITS: u32 = LONG_ZEROS + STEP_BITS;
const COUNT_BITS: u32 = 12;
const SPACING_BITS: u32 = SPACINGS.trailing_zeros();

// In place of a level in its long form.

/// The tile has no entries.
const EMPTY: u32 = 0;
/// The number of entries follows, and then the level.
const SHORT_TILE: u32 = (1 << STEP_BITS) - 1;

/// No tile of up to `entries_max` entries takes more bits.
pub(crate) fn bits_max(entries_max: u16, value_bits: ValueBits) -> u32 {
    if entries_max < 2 {
        return LONG_BITS;
    }
    let short_level_and_peak = LONG_BITS + COUNT_BITS + 2 * LONG_BITS;
    short_level_and_peak
        + match value_bits {
            ValueBits::One => place_bits(entries_max),
            ValueBits::Two => place_bits(entries_max) + LONG_BITS,
            ValueBits::Four => SPACING_BITS,
        }
}

/// Bits of a place among `count` entries, one or more.
const fn place_bits(count: u16) -> u32 {
    u16::BITS - (count - 1).leading_zeros()
}

/// The number that takes a level from that of the tile before.
fn number_of(level: Step, before: Step) -> u32 {
    match level.checked_sub(before) {
        Some(up) => 2 * u32::from(up),
        None => 2 * u32::from(before - level) - 1,
    }
}

/// Writes tile after tile.
pub(super) struct LevelWriter<'a> {
    bits: BitWriter<'a>,
    value_bits: ValueBits,
    /// Level of the last tile that has entries.
    before: Step,
}

impl<'a> LevelWriter<'a> {
    pub(super) const fn new(out: &'a mut Vec<u8>, value_bits: ValueBits) -> Self {
        Self {
            bits: BitWriter::new(out),
            value_bits,
            before: 0,
        }
    }

    /// `place`: of the peak among the entries; with 4 value bits it does not matter.
    pub(super) fn write(&mut self, tile: &SparseTile, place: usize) {
        let SparseTile {
            low,
            high,
            peak,
            count,
            spacing,
            short,
        } = *tile;
        if count == 0 {
            self.long(EMPTY);
            return;
        }
        if short {
            self.long(SHORT_TILE);
            self.bits.write(u32::from(count), COUNT_BITS);
        }
        let level = if count == 1 { peak } else { high };
        let number = number_of(level, self.before);
        self.before = level;
        self.number(number, level);
        if count == 1 {
            return;
        }
        let up = peak - high;
        match self.value_bits {
            ValueBits::One | ValueBits::Two => {
                // Below `count`.
                self.bits.write(place as u32, place_bits(count));
                self.number(u32::from(up), up);
            }
            ValueBits::Four => self.number(u32::from(up), up),
        }
        match self.value_bits {
            ValueBits::One => {}
            ValueBits::Two => {
                let down = if low == 0 { 0 } else { high - low };
                self.number(u32::from(down), down);
            }
            ValueBits::Four => {
                let number = Step::from(spacing) / SPACING_UNIT - 1;
                self.bits.write(u32::from(number), SPACING_BITS);
            }
        }
    }

    pub(super) fn finish(self) {
        self.bits.finish();
    }

    fn number(&mut self, number: u32, when_long: Step) {
        if number <= SHORT_MAX {
            let zeros = number >> REST_BITS;
            let rest = number & ((1 << REST_BITS) - 1);
            self.bits
                .write((rest << 1 | 1) << zeros, zeros + 1 + REST_BITS);
        } else {
            self.long(u32::from(when_long));
        }
    }

    fn long(&mut self, bits: u32) {
        self.bits.write(bits << LONG_ZEROS, LONG_BITS);
    }
}

/// A number as it was written.
#[derive(Clone, Copy)]
enum Written {
    Short(u32),
    /// The 13 bits.
    Long(u32),
}

/// Reads tile after tile.
pub(super) struct LevelReader<'a> {
    bits: BitReader<'a>,
    value_bits: ValueBits,
    /// Level of the last tile that has entries.
    before: Step,
    /// Tiles read so far, for errors.
    tile: usize,
}

impl<'a> LevelReader<'a> {
    pub(super) const fn new(bytes: &'a [u8], value_bits: ValueBits) -> Self {
        Self {
            bits: BitReader::new(bytes, 0),
            value_bits,
            before: 0,
            tile: 0,
        }
    }

    /// The sparse tile with the number `tile`, of up to `entries_max` entries, and the place of the peak among them, or zero
    /// with 4 value bits.
    pub(super) fn read(
        &mut self,
        tile: usize,
        entries_max: u16,
    ) -> Result<(SparseTile, u16), DecodeError> {
        self.tile = tile;
        let mut written = self.written()?;
        let (count, short) = match written {
            Written::Long(EMPTY) => return Ok((SparseTile::EMPTY, 0)),
            Written::Long(SHORT_TILE) => {
                // 12 bits.
                let found = self.bits(COUNT_BITS)? as u16;
                if found == 0 || found >= entries_max {
                    return Err(DecodeError::EntryCount {
                        tile,
                        found,
                        entries_max,
                    });
                }
                written = self.written()?;
                (found, true)
            }
            Written::Short(_) | Written::Long(_) => (entries_max, false),
        };
        let level = self.level(written)?;
        self.before = level;
        if count == 1 {
            let lone = SparseTile {
                peak: level,
                count,
                short,
                ..SparseTile::EMPTY
            };
            return Ok((lone, 0));
        }
        let place = match self.value_bits {
            ValueBits::One | ValueBits::Two => self.bits(place_bits(count))?,
            ValueBits::Four => 0,
        };
        if place >= u32::from(count) {
            return Err(DecodeError::Peak {
                tile,
                place,
                entries: count,
            });
        }
        let up = self.number()?;
        let peak = self.step(i32::from(level) + up, level, STEP_MAX)?;
        let (low, spacing) = match self.value_bits {
            ValueBits::One => (0, 0),
            ValueBits::Two => match self.number()? {
                0 => (0, 0),
                down => {
                    let min = level.saturating_sub(LOW_STEPS_MAX).max(1);
                    (self.step(i32::from(level) - down, min, level - 1)?, 0)
                }
            },
            // At most 32.
            ValueBits::Four => {
                let number = self.bits(SPACING_BITS)? as Step;
                (0, ((number + 1) * SPACING_UNIT) as u8)
            }
        };
        let content = SparseTile {
            low,
            high: level,
            peak,
            count,
            spacing,
            short,
        };
        // Below `count`.
        Ok((content, place as u16))
    }

    /// The bytes after the levels.
    pub(super) fn finish(self) -> Result<&'a [u8], DecodeError> {
        let section = Section::Levels;
        self.bits.finish().ok_or(DecodeError::Padding { section })
    }

    fn level(&self, written: Written) -> Result<Step, DecodeError> {
        match written {
            Written::Short(number) => {
                let half = (number / 2) as i32;
                let difference = if number % 2 == 0 { half } else { -half - 1 };
                self.step(i32::from(self.before) + difference, 1, STEP_MAX)
            }
            Written::Long(bits) => {
                let level = self.step(bits as i32, 1, STEP_MAX)?;
                self.check_long(number_of(level, self.before))?;
                Ok(level)
            }
        }
    }

    /// A number whose long form is itself.
    fn number(&mut self) -> Result<i32, DecodeError> {
        let number = match self.written()? {
            Written::Short(number) => number,
            Written::Long(number) => {
                self.check_long(number)?;
                number
            }
        };
        // 13 bits.
        Ok(number as i32)
    }

    fn check_long(&self, number: u32) -> Result<(), DecodeError> {
        if number <= SHORT_MAX {
            let tile = self.tile;
            return Err(DecodeError::LongForm { tile, number });
        }
        Ok(())
    }

    fn step(&self, found: i32, min: Step, max: Step) -> Result<Step, DecodeError> {
        match Step::try_from(found) {
            Ok(step) if (min..=max).contains(&step) => Ok(step),
            _ => Err(DecodeError::Level {
                tile: self.tile,
                found,
                min: min.into(),
                max: max.into(),
            }),
        }
    }

    fn written(&mut self) -> Result<Written, DecodeError> {
        let section = Section::Levels;
        let truncated = DecodeError::Truncated { section };
        let zeros = self.bits.read_zeros(LONG_ZEROS).ok_or(truncated)?;
        Ok(if zeros < LONG_ZEROS {
            Written::Short(zeros << REST_BITS | self.bits(REST_BITS)?)
        } else {
            Written::Long(self.bits(STEP_BITS)?)
        })
    }

    fn bits(&mut self, count: u32) -> Result<u32, DecodeError> {
        let section = Section::Levels;
        self.bits
            .read(count)
            .ok_or(DecodeError::Truncated { section })
    }
}
