//! The slow and obvious codec, the oracle of the property tests: it sorts everything, tries every
//! index code, keeps streams as lists of bits, and decodes by parsing loosely, encoding again and
//! comparing. It follows the rules of [`crate::codec`] and the specification of [`crate::frame`],
//! and shares no code with them beyond the types.

mod levels;
mod seven;

use half::bf16;

use self::levels::{level_bits, parse_levels, step_of};
use crate::codec::{Codec, DenseFormat, VALUE_ABS_MAX, ValueBits};
use crate::dense::BLOCK_ELEMENTS;
use crate::layout::{TILE_ELEMENTS, TensorMode, Tile};

/// The frame of `values`, or `None` where [`crate::codec::encode`] fails.
#[must_use]
pub fn encode(values: &[f32], tiles: &[Tile], codec: Codec) -> Option<Vec<u8>> {
    if values.len() != tiles.iter().map(Tile::len).sum::<usize>() {
        return None;
    }
    if values
        .iter()
        .any(|value| value.is_nan() || value.abs() > VALUE_ABS_MAX)
    {
        return None;
    }

    let mut levels = Vec::new();
    let mut level_before = 0;
    let mut dense_values = Vec::new();
    let mut entry_values = Vec::new();
    let mut indices_by_tile = Vec::new();
    let mut start = 0;
    for tile in tiles {
        let values = &values[start..start + tile.len()];
        start += tile.len();
        match (codec, tile.mode()) {
            (Codec::Dense(DenseFormat::F32), _) => {
                for &value in values {
                    let value = if value == 0.0 { 0.0 } else { value };
                    dense_values.extend(value.to_le_bytes());
                }
            }
            (Codec::Dense(DenseFormat::Bf16), _) | (Codec::Sparse { .. }, TensorMode::Dense) => {
                for &value in values {
                    let rounded = bf16::from_f32(value);
                    let rounded = if rounded == bf16::ZERO {
                        bf16::ZERO
                    } else {
                        rounded
                    };
                    dense_values.extend(rounded.to_le_bytes());
                }
            }
            (Codec::Dense(DenseFormat::Int8), _) => {
                for block in values.chunks(BLOCK_ELEMENTS) {
                    let (scale, integers) = block_integers(block, 127);
                    dense_values.extend(scale.to_le_bytes());
                    dense_values.extend(integers.iter().map(|&integer| integer as u8));
                }
            }
            (Codec::Dense(DenseFormat::Int4), _) => {
                for block in values.chunks(BLOCK_ELEMENTS) {
                    let (scale, integers) = block_integers(block, 7);
                    dense_values.extend(scale.to_le_bytes());
                    let half = integers.len().div_ceil(2);
                    for place in 0..half {
                        let second = integers.get(half + place).copied().unwrap_or(0);
                        dense_values.push(
                            (integers[place].rem_euclid(16) + 16 * second.rem_euclid(16)) as u8,
                        );
                    }
                }
            }
            (Codec::Sparse { k, value_bits }, TensorMode::Sparse) => {
                let entries_max = entries_max(k.get(), tile.len());
                let entries = quantise(values, entries_max, value_bits);
                levels.extend(level_bits(
                    &entries,
                    entries_max,
                    value_bits,
                    &mut level_before,
                ));
                for entry in &entries {
                    entry_values.push(entry.negative);
                    match value_bits {
                        ValueBits::One => {}
                        ValueBits::Two => entry_values.push(entry.group != Group::Low),
                        ValueBits::Four => {
                            let code = seven::code(entry, &entries);
                            entry_values.extend((0..3).map(|bit| code >> bit & 1 == 1));
                        }
                    }
                }
                indices_by_tile.push(entries.iter().map(|entry| entry.index).collect::<Vec<_>>());
            }
        }
    }

    // Packed first, then by r: the first of the shortest is the code.
    let codes = [12].into_iter().chain(0..12);
    let (index_code, indices) = codes
        .map(|code| {
            (
                code,
                indices_by_tile
                    .iter()
                    .flat_map(|indices| index_bits(indices, code))
                    .collect::<Vec<_>>(),
            )
        })
        .reduce(|best, next| {
            if next.1.len() < best.1.len() {
                next
            } else {
                best
            }
        })?;

    let mut frame = Vec::from(*b"GMFR\x02");
    match codec {
        Codec::Sparse { k, value_bits } => {
            frame.extend([1, bits_of(value_bits) as u8, index_code]);
            frame.extend(k.get().to_le_bytes());
        }
        Codec::Dense(DenseFormat::F32) => frame.extend([2, 0, 0, 0, 0]),
        Codec::Dense(DenseFormat::Bf16) => frame.extend([3, 0, 0, 0, 0]),
        Codec::Dense(DenseFormat::Int8) => frame.extend([4, 0, 0, 0, 0]),
        Codec::Dense(DenseFormat::Int4) => frame.extend([5, 0, 0, 0, 0]),
    }
    frame.extend((tiles.len() as u32).to_le_bytes());
    frame.extend(pack(&levels));
    frame.extend(dense_values);
    frame.extend(pack(&entry_values));
    frame.extend(pack(&indices));
    Some(frame)
}

/// All elements of the frame that fills `bytes`, or `None` where [`crate::codec::decode`] fails.
#[must_use]
pub fn decode(bytes: &[u8], tiles: &[Tile], codec: Codec) -> Option<Vec<f32>> {
    let values = parse(bytes, tiles, codec)?;
    let is_canonical = encode(&values, tiles, codec)? == bytes;
    is_canonical.then_some(values)
}

/// Rule "block": the scale and the integers.
fn block_integers(block: &[f32], integer_max: i32) -> (bf16, Vec<i32>) {
    let largest = block.iter().map(|value| value.abs()).fold(0.0, f32::max);
    let scale = bf16::from_f32(largest / integer_max as f32);
    if scale.to_f32() < f32::MIN_POSITIVE {
        return (bf16::ZERO, vec![0; block.len()]);
    }
    let integer = |value: &f32| (value / scale.to_f32()).round_ties_even() as i32;
    (scale, block.iter().map(integer).collect())
}

#[derive(Clone, Copy, PartialEq)]
enum Group {
    Low,
    /// With 4 value bits all entries besides the peak.
    High,
    Peak,
}

struct Entry {
    index: usize,
    negative: bool,
    step: u16,
    group: Group,
}

const fn bits_of(value_bits: ValueBits) -> usize {
    match value_bits {
        ValueBits::One => 1,
        ValueBits::Two => 2,
        ValueBits::Four => 4,
    }
}

fn entries_max(k: u16, len: usize) -> usize {
    (usize::from(k) * len).div_ceil(TILE_ELEMENTS)
}

/// Rules "selection", "peak", "one level", "two levels", "seven levels" and "left out".
fn quantise(values: &[f32], entries_max: usize, value_bits: ValueBits) -> Vec<Entry> {
    let mut order: Vec<usize> = (0..values.len())
        .filter(|&index| values[index] != 0.0)
        .collect();
    // A stable sort: of equal magnitudes the lower index comes first.
    order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
    order.truncate(entries_max);
    if order.is_empty() {
        return Vec::new();
    }
    let peak = order.remove(0);

    let magnitude = |&index: &usize| f64::from(values[index].abs());
    let sum = |indices: &[usize]| {
        indices
            .iter()
            .map(magnitude)
            .fold(0.0, |sum, next| sum + next)
    };
    let count = order.len();
    let split = match value_bits {
        ValueBits::One => {
            order.sort_unstable();
            count
        }
        ValueBits::Two => {
            let total = sum(&order);
            let mut best = (count, total * total / count as f64);
            for split in 1..count {
                let (high, low) = (sum(&order[..split]), total - sum(&order[..split]));
                let fit = high * high / split as f64 + low * low / (count - split) as f64;
                if magnitude(&order[split - 1]) > magnitude(&order[split]) && fit > best.1 {
                    best = (split, fit);
                }
            }
            best.0
        }
        ValueBits::Four => return seven::entries(values, peak, &order),
    };
    let high_sum = sum(&order[..split]);
    let high = mean(high_sum, split);
    let low = mean(sum(&order) - high_sum, count - split);
    let entry = |index: usize, step, group| Entry {
        index,
        negative: values[index] < 0.0,
        step,
        group,
    };
    let mut entries = vec![entry(peak, step_of(values[peak].abs()), Group::Peak)];
    for (place, &index) in order.iter().enumerate() {
        entries.push(if place < split || low >= high {
            entry(index, high, Group::High)
        } else {
            entry(index, low, Group::Low)
        });
    }
    entries.retain(|entry| entry.step != 0);
    entries.retain(|entry| entry.group != Group::Low || entry.step + 512 >= high);
    entries.sort_by_key(|entry| entry.index);
    if entries
        .iter()
        .any(|entry| entry.group == Group::Peak && entry.step == high)
    {
        let mut is_first = true;
        for entry in &mut entries {
            if entry.group != Group::Low {
                entry.group = if is_first { Group::Peak } else { Group::High };
                is_first = false;
            }
        }
    }
    entries
}

fn mean(sum: f64, count: usize) -> u16 {
    if count == 0 {
        0
    } else {
        step_of((sum / count as f64) as f32)
    }
}

fn index_bits(indices: &[usize], code: u8) -> Vec<bool> {
    let mut bits = Vec::new();
    let mut next_free = 0;
    for &index in indices {
        if code == 12 {
            bits.extend((0..12).map(|bit| index >> bit & 1 == 1));
        } else {
            let gap = index - next_free;
            bits.extend(vec![false; gap >> code]);
            bits.push(true);
            bits.extend((0..code).map(|bit| gap >> bit & 1 == 1));
        }
        next_free = index + 1;
    }
    bits
}

fn pack(bits: &[bool]) -> Vec<u8> {
    bits.chunks(8)
        .map(|chunk| {
            chunk
                .iter()
                .rev()
                .fold(0, |byte, &bit| byte << 1 | u8::from(bit))
        })
        .collect()
}

/// Reads the values that any reader would find in `bytes`, checking only what it needs to go on.
fn parse(bytes: &[u8], tiles: &[Tile], codec: Codec) -> Option<Vec<f32>> {
    let index_code = *bytes.get(7)?;
    let mut bytes = bytes.get(14..)?;

    let mut tile_levels = Vec::new();
    let mut level_before = 0;
    let mut level_bits = unpack(bytes);
    for tile in tiles {
        let (Codec::Sparse { k, value_bits }, TensorMode::Sparse) = (codec, tile.mode()) else {
            continue;
        };
        let entries_max = entries_max(k.get(), tile.len());
        tile_levels.push(parse_levels(
            &mut level_bits,
            entries_max,
            value_bits,
            &mut level_before,
        )?);
    }
    let level_bytes = (8 * bytes.len() - level_bits.count()).div_ceil(8);
    let mut take = |count: usize| {
        let (taken, rest) = bytes.split_at_checked(count)?;
        bytes = rest;
        Some(taken)
    };
    take(level_bytes)?;

    let mut values = Vec::new();
    for tile in tiles {
        match (codec, tile.mode()) {
            (Codec::Dense(DenseFormat::F32), _) => {
                for _ in 0..tile.len() {
                    values.push(f32::from_le_bytes(take(4)?.try_into().ok()?));
                }
            }
            (Codec::Dense(DenseFormat::Bf16), _) | (Codec::Sparse { .. }, TensorMode::Dense) => {
                for _ in 0..tile.len() {
                    values.push(bf16::from_bits(u16_of(take(2)?)?).to_f32());
                }
            }
            (Codec::Dense(format @ (DenseFormat::Int8 | DenseFormat::Int4)), _) => {
                let mut left = tile.len();
                while left > 0 {
                    let elements = left.min(BLOCK_ELEMENTS);
                    left -= elements;
                    let scale = bf16::from_bits(u16_of(take(2)?)?).to_f32();
                    let integers: Vec<i32> = if format == DenseFormat::Int8 {
                        take(elements)?
                            .iter()
                            .map(|&byte| i32::from(byte as i8))
                            .collect()
                    } else {
                        let pairs = take(elements.div_ceil(2))?;
                        let halves = pairs
                            .iter()
                            .map(|pair| pair % 16)
                            .chain(pairs.iter().map(|pair| pair / 16));
                        let signed = |half| i32::from(half) - if half < 8 { 0 } else { 16 };
                        halves.take(elements).map(signed).collect()
                    };
                    values.extend(integers.iter().map(|&integer| integer as f32 * scale));
                }
            }
            (Codec::Sparse { .. }, TensorMode::Sparse) => {
                values.resize(values.len() + tile.len(), 0.0);
            }
        }
    }
    let Codec::Sparse { value_bits, .. } = codec else {
        return Some(values);
    };

    let entries: usize = tile_levels.iter().map(|tile| tile.count).sum();
    let bits_per_entry = bits_of(value_bits);
    let mut value_bits = unpack(take((entries * bits_per_entry).div_ceil(8))?);
    let mut index_bits = unpack(bytes);
    let mut tile_levels = tile_levels.into_iter();
    let mut start = 0;
    for tile in tiles {
        if tile.mode() == TensorMode::Sparse {
            let levels = tile_levels.next()?;
            let mut next_free = 0;
            for entry in 0..levels.count {
                let negative = value_bits.next()?;
                let code = number(&mut value_bits, bits_per_entry as u8 - 1)?;
                let index = if index_code == 12 {
                    number(&mut index_bits, 12)?
                } else {
                    let quotient = index_bits.by_ref().position(|bit| bit)?;
                    next_free
                        + (quotient << index_code.min(12))
                        + number(&mut index_bits, index_code.min(12))?
                };
                next_free = index + 1;
                if index >= tile.len() {
                    return None;
                }
                let level = match (bits_per_entry, code) {
                    (4, 7) => levels.peak,
                    (4, code) => levels.of_code(code)?,
                    _ if entry == levels.place => levels.peak,
                    (2, 0) => levels.low,
                    _ => levels.high,
                };
                values[start + index] = if negative { -level } else { level };
            }
        }
        start += tile.len();
    }
    Some(values)
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn unpack(bytes: &[u8]) -> impl Iterator<Item = bool> + '_ {
    bytes
        .iter()
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1))
}

fn number(bits: &mut impl Iterator<Item = bool>, count: u8) -> Option<usize> {
    (0..count).try_fold(0, |number, bit| {
        Some(number | usize::from(bits.next()?) << bit)
    })
}
