//! Code of the ascending indices of a tile's entries. One code serves a whole frame.
//!
//! Rice code with parameter r: an index is sent as its gap, that is the index itself for the first
//! entry of a tile and `index - previous - 1` for the others; a gap g is `g >> r` zero bits, a one
//! bit, then the low r bits of g. Packed code: each index is 12 bits.
//!
//! Rule "index code": the packed code when no Rice code with r in 0..=11 is shorter for all indices
//! of the frame together, in bits before padding; else the shortest Rice code, of equal ones the
//! smallest r.
//!
//! How the rule is checked without trying every r: with n gaps, let S(r) be the sum of `g >> r` and
//! B(r) = S(r) + n (r + 1) the bits of code r. B(r) - B(r + 1) is the sum of the halves of `g >> r`
//! rounded up, less n, and cannot grow with r: B is convex. So r is the smallest of the shortest if
//! B(r - 1) > B(r) <= B(r + 1). Further S(r - 1) = 2 S(r) + (gaps with bit r - 1), and S(r + 1) =
//! (S(r) - (gaps with bit r)) / 2, so that two counts decide; S(r) is known from the length of the
//! stream.

use crate::bits::{BitReader, BitWriter, WORD_BITS, word};
use crate::layout::TILE_ELEMENTS;

/// Bits of an index inside a tile.
pub(crate) const PACKED_BITS: u32 = 12;

/// How a frame codes indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IndexCode {
    /// Gaps in Rice code with this r, in `0..=11`.
    Rice(u8),
    /// 12 bits per index.
    Packed,
}

impl IndexCode {
    /// The byte that names it in a frame's header: r, or 12 for packed.
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            Self::Rice(r) => r,
            Self::Packed => PACKED_BITS as u8,
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0..12 => Some(Self::Rice(byte)),
            12 => Some(Self::Packed),
            _ => None,
        }
    }

    /// Appends the indices of one tile, ascending and below 4096.
    pub(crate) fn write(self, indices: impl Iterator<Item = u16>, writer: &mut BitWriter<'_>) {
        match self {
            Self::Rice(r) => {
                let r = u32::from(r);
                let mut next_free = 0;
                for index in indices {
                    let index = u32::from(index);
                    let gap = index - next_free;
                    next_free = index + 1;
                    let (quotient, rest) = (gap >> r, 1 | (gap & ((1 << r) - 1)) << 1);
                    if quotient + r < 32 {
                        writer.write(rest << quotient, quotient + r + 1);
                    } else {
                        writer.write_zeros(quotient);
                        writer.write(rest, r + 1);
                    }
                }
            }
            Self::Packed => indices.for_each(|index| writer.write(u32::from(index), PACKED_BITS)),
        }
    }
}

/// Why bits are not the indices of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexFault {
    Truncated,
    OutOfTile { index: u32 },
    Order { index: u32 },
}

/// Reads the indices of tile after tile.
pub(crate) struct IndexReader<'a> {
    code: IndexCode,
    bytes: &'a [u8],
    /// In bits.
    position: usize,
    /// Of the tile at hand: its gaps (Rice) or its indices (packed).
    numbers: Vec<u16>,
    entries: u64,
    /// Gaps read so far that have bit r, and bit r - 1 (Rice with r > 0).
    with_bit: [u64; 2],
}

impl<'a> IndexReader<'a> {
    pub(crate) fn new(code: IndexCode, bytes: &'a [u8]) -> Self {
        Self {
            code,
            bytes,
            position: 0,
            numbers: vec![0; TILE_ELEMENTS],
            entries: 0,
            with_bit: [0; 2],
        }
    }

    /// Reads as many indices as there are `entries`, of a tile of `len` elements, into their low 12 bits, which are zero.
    ///
    /// # Errors
    /// [`IndexFault`]: the first one; `entries` are as they were.
    #[inline]
    pub(crate) fn read(&mut self, entries: &mut [u16], len: usize) -> Result<(), IndexFault> {
        self.entries += entries.len() as u64;
        let start = self.position;
        let is_valid = match self.code {
            IndexCode::Rice(r) => self.read_rice(r, entries, len),
            IndexCode::Packed => self.read_packed(entries, len),
        };
        match is_valid {
            Some(()) => Ok(()),
            None => Err(self.fault(start, entries.len(), len)),
        }
    }

    /// Each r has code of its own, whose shifts and masks are constants.
    #[inline]
    fn read_rice(&mut self, r: u8, entries: &mut [u16], len: usize) -> Option<()> {
        match r {
            0 => self.read_rice_of::<0>(entries, len),
            1 => self.read_rice_of::<1>(entries, len),
            2 => self.read_rice_of::<2>(entries, len),
            3 => self.read_rice_of::<3>(entries, len),
            4 => self.read_rice_of::<4>(entries, len),
            5 => self.read_rice_of::<5>(entries, len),
            6 => self.read_rice_of::<6>(entries, len),
            7 => self.read_rice_of::<7>(entries, len),
            8 => self.read_rice_of::<8>(entries, len),
            9 => self.read_rice_of::<9>(entries, len),
            10 => self.read_rice_of::<10>(entries, len),
            _ => self.read_rice_of::<11>(entries, len),
        }
    }

    fn read_rice_of<const R: u32>(&mut self, entries: &mut [u16], len: usize) -> Option<()> {
        let gaps = &mut self.numbers[..entries.len()];
        let mut end = 0;
        let (quads, rest) = gaps.as_chunks_mut::<4>();
        for quad in quads {
            end += rice_gaps::<R, 4>(self.bytes, &mut self.position, quad)?;
        }
        for gap in rest.as_chunks_mut::<1>().0 {
            end += rice_gaps::<R, 1>(self.bytes, &mut self.position, gap)?;
        }
        // Gaps are not negative: the last index, `end - 1`, is the largest.
        if end as usize > len {
            return None;
        }
        let with_bit = gaps.iter().fold([0_u16; 2], |[at_r, below], gap| {
            [
                at_r.wrapping_add(gap >> R & 1),
                below.wrapping_add(gap >> R.saturating_sub(1) & 1),
            ]
        });
        for (sum, count) in self.with_bit.iter_mut().zip(with_bit) {
            *sum += u64::from(count);
        }
        let mut next_free = 0_u16;
        for (entry, gap) in entries.iter_mut().zip(gaps) {
            *entry |= next_free.wrapping_add(*gap);
            next_free = next_free.wrapping_add(gap.wrapping_add(1));
        }
        Some(())
    }

    #[inline]
    fn read_packed(&mut self, entries: &mut [u16], len: usize) -> Option<()> {
        let indices = &mut self.numbers[..entries.len()];
        let mut reader = BitReader::new(self.bytes, self.position);
        let (quads, rest) = indices.as_chunks_mut::<4>();
        for quad in quads {
            let position = reader.position();
            if let Some(word) = word(self.bytes, position) {
                for (index, place) in quad.iter_mut().zip(0..) {
                    *index = (word >> (PACKED_BITS * place)) as u16 & 0xfff;
                }
                reader = BitReader::new(self.bytes, position + 4 * PACKED_BITS as usize);
            } else {
                for index in quad {
                    // 12 bits.
                    *index = reader.read(PACKED_BITS)? as u16;
                }
            }
        }
        for index in rest {
            *index = reader.read(PACKED_BITS)? as u16;
        }
        self.position = reader.position();
        let ascend = indices
            .iter()
            .zip(indices.iter().skip(1))
            .fold(true, |all, (index, next)| all & (index < next));
        if !ascend || indices.last().is_some_and(|&last| usize::from(last) >= len) {
            return None;
        }
        for (entry, index) in entries.iter_mut().zip(indices) {
            *entry |= *index;
        }
        Some(())
    }

    /// What is wrong with the `count` indices from bit `start` on, found one by one.
    #[cold]
    fn fault(&self, start: usize, count: usize, len: usize) -> IndexFault {
        let mut reader = BitReader::new(self.bytes, start);
        let mut next_free = 0;
        for _ in 0..count {
            let index = match self.code {
                IndexCode::Rice(r) => {
                    rice_gap(u32::from(r), &mut reader).map(|gap| next_free + gap)
                }
                IndexCode::Packed => reader.read(PACKED_BITS),
            };
            let Some(index) = index else {
                return IndexFault::Truncated;
            };
            if index as usize >= len {
                return IndexFault::OutOfTile { index };
            }
            if index < next_free {
                return IndexFault::Order { index };
            }
            next_free = index + 1;
        }
        IndexFault::Truncated
    }

    /// Whether the code is the one of the rule "index code" for the indices read, none of which was at fault; `None` when
    /// that takes an [`IndexCost`] to say.
    pub(crate) fn is_canonical(&self) -> Option<bool> {
        let IndexCode::Rice(r) = self.code else {
            return None;
        };
        let n = self.entries;
        // Every entry took r + 1 bits besides its quotient.
        let bits = self.position as u64;
        let quotients = bits - n * u64::from(r + 1);
        let [at_r, below] = self.with_bit;
        let beats_smaller = r == 0 || quotients + below > n;
        let beats_larger = r == 11 || quotients + at_r <= 2 * n;
        let beats_packed = bits < n * u64::from(PACKED_BITS);
        Some(beats_smaller && beats_larger && beats_packed)
    }

    /// The bytes after the indices, or `None` when their padding is not zero.
    pub(crate) fn finish(self) -> Option<&'a [u8]> {
        BitReader::new(self.bytes, self.position).finish()
    }
}

/// Reads `N` gaps from bit `position` on and moves it behind them; the sum of what each adds to the index, gap + 1. `None`
/// past the end. A gap that does not fit in `u16` is cut off; then the sum is no index of a tile.
///
/// `N * (R + 1)` is at most 48, so that a word usually has them all.
#[inline]
fn rice_gaps<const R: u32, const N: usize>(
    bytes: &[u8],
    position: &mut usize,
    gaps: &mut [u16; N],
) -> Option<u32> {
    if let Some(mut word) = word(bytes, *position) {
        let mask = (1_u32 << R) - 1;
        let (mut used, mut sum) = (0_u32, 0_u32);
        for gap in gaps.iter_mut() {
            // 64 when no bit is left: then `used` exceeds the bits of a word, and what is computed here is not used.
            let quotient = word.trailing_zeros();
            let rest = (word >> 1).wrapping_shr(quotient) as u32 & mask;
            let whole = quotient << R | rest;
            word = (word >> (R + 1)).wrapping_shr(quotient);
            used = used.wrapping_add(quotient + R + 1);
            sum = sum.wrapping_add(whole + 1);
            *gap = whole as u16;
        }
        if used <= WORD_BITS {
            *position += used as usize;
            return Some(sum);
        }
    }
    let mut reader = BitReader::new(bytes, *position);
    let mut sum = 0_u32;
    for gap in gaps.iter_mut() {
        let whole = rice_gap(R, &mut reader)?;
        // Beyond any tile the sum does not matter, as long as it stays there.
        sum = sum.saturating_add(whole + 1).min(1 << 20);
        *gap = whole as u16;
    }
    *position = reader.position();
    Some(sum)
}

/// One gap, at most 2^20: no tile has larger ones. `None` past the end.
fn rice_gap(r: u32, reader: &mut BitReader<'_>) -> Option<u32> {
    let quotient = reader.read_unary()?.min(1 << 20 >> r);
    Some((quotient << r | reader.read(r)?).min(1 << 20))
}

/// Bits that each code takes for the indices counted so far.
#[derive(Default)]
pub(crate) struct IndexCost {
    entries: u64,
    /// Sum of `gap >> r` for each r.
    quotients: [u64; PACKED_BITS as usize],
}

impl IndexCost {
    /// Counts one tile, given its gaps. `gaps`: those of strictly ascending indices below 4096.
    pub(crate) fn count(&mut self, gaps: &[u16]) {
        self.entries += gaps.len() as u64;
        for (r, quotients) in self.quotients.iter_mut().enumerate() {
            // Gaps of a tile sum to less than 4096.
            let sum = gaps
                .iter()
                .fold(0_u16, |sum, gap| sum.wrapping_add(gap >> r));
            *quotients += u64::from(sum);
        }
    }

    /// Counts, for each code, no fewer bits than any `entries_max` or fewer indices of a tile of
    /// `len` elements take, given that `entries_max <= len`.
    ///
    /// The gaps of n indices sum to at most `len - n`, and the sum of `gap >> r` to at most
    /// `(len - n) >> r`; with r + 1 bits more for each index that grows with n.
    pub(crate) fn count_worst(&mut self, len: usize, entries_max: u16) {
        self.entries += u64::from(entries_max);
        let gaps = len as u64 - u64::from(entries_max);
        for (r, quotients) in self.quotients.iter_mut().enumerate() {
            *quotients += gaps >> r;
        }
    }

    /// The code by the rule "index code", and its bits.
    pub(crate) fn cheapest(&self) -> (IndexCode, u64) {
        let mut best = (IndexCode::Packed, self.entries * u64::from(PACKED_BITS));
        for (r, quotients) in (0_u8..).zip(self.quotients) {
            let bits = quotients + self.entries * u64::from(r + 1);
            if bits < best.1 {
                best = (IndexCode::Rice(r), bits);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cheapest(indices: &[u16]) -> (IndexCode, u64) {
        let mut cost = IndexCost::default();
        cost.count(&gaps(indices));
        cost.cheapest()
    }

    fn gaps(indices: &[u16]) -> Vec<u16> {
        let mut next_free = 0;
        let gap = |index: &u16| index - std::mem::replace(&mut next_free, index + 1);
        indices.iter().map(gap).collect()
    }

    #[test]
    fn consecutive_indices_take_one_bit_each() {
        assert_eq!(cheapest(&[0, 1, 2, 3, 4]), (IndexCode::Rice(0), 5));
    }

    #[test]
    fn packed_code_wins_when_no_rice_code_is_shorter() {
        assert_eq!(cheapest(&[]), (IndexCode::Packed, 0));
        // One index x costs min over r of (x >> r) + r + 1; with r = 11 that is 13 bits for x >=
        // 2048.
        assert_eq!(cheapest(&[4095]), (IndexCode::Packed, 12));
        // 12 bits with r = 10 (1 + 11) and packed alike; with r = 11 too.
        assert_eq!(cheapest(&[2047]), (IndexCode::Packed, 12));
        // 511: r = 8 takes 1 + 9 bits, r = 9 takes 0 + 10, r = 7 takes 3 + 8.
        assert_eq!(cheapest(&[511]), (IndexCode::Rice(8), 10));
    }

    /// Sets of indices of all densities and clusterings, from a SplitMix64 with `seed`.
    fn sets(seed: u64) -> impl Iterator<Item = Vec<u16>> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        (0..600).map(move |set| {
            let stride = 1 << (set % 13);
            let mut indices = Vec::new();
            let mut index = next() % stride;
            while index < 4096 {
                indices.push(index as u16);
                index += 1 + next() % stride + if next() % 16 == 0 { next() % 700 } else { 0 };
            }
            indices
        })
    }

    #[test]
    fn indices_are_read_back_in_every_code_and_the_cheapest_alone_is_canonical() {
        for indices in sets(7) {
            let (canonical, bits) = cheapest(&indices);
            for code in (0..=12).filter_map(IndexCode::from_byte) {
                let mut bytes = Vec::new();
                let mut writer = BitWriter::new(&mut bytes);
                code.write(indices.iter().copied(), &mut writer);
                writer.finish();
                // With bytes behind, so that the last words are read at once as well.
                for padding in [0, 8] {
                    let mut padded = bytes.clone();
                    padded.resize(bytes.len() + padding, 0);
                    let mut reader = IndexReader::new(code, &padded);
                    let mut entries = vec![0; indices.len()];
                    assert_eq!(reader.read(&mut entries, 4096), Ok(()));
                    assert_eq!(entries, indices);
                    assert_eq!(reader.is_canonical().unwrap_or(true), {
                        code == canonical || code == IndexCode::Packed
                    });
                    if code == canonical {
                        assert_eq!(reader.position as u64, bits);
                    }
                    assert_eq!(reader.finish(), Some(&vec![0; padding][..]));
                }
            }
        }
    }

    #[test]
    fn the_first_fault_is_named() {
        let read = |code, bytes: &[u8], count, len| {
            IndexReader::new(code, bytes).read(&mut vec![0; count], len)
        };
        // Rice r = 0: gaps 1, 1, 4, 0 are the indices 1, 3, 8, 9.
        let bytes = [0b0000_1010, 0b0000_0011, 0, 0, 0, 0, 0, 0, 0, 0];
        for bytes in [&bytes[..2], &bytes[..]] {
            assert_eq!(read(IndexCode::Rice(0), bytes, 4, 10), Ok(()));
            assert_eq!(
                read(IndexCode::Rice(0), bytes, 4, 8),
                Err(IndexFault::OutOfTile { index: 8 })
            );
            assert_eq!(
                read(IndexCode::Rice(0), bytes, 5, 64),
                Err(IndexFault::Truncated)
            );
        }
        assert_eq!(
            read(IndexCode::Packed, &[0x02, 0x10, 0x00], 2, 64),
            Err(IndexFault::Order { index: 1 })
        );
        // More zero bits than any counter of indices can hold.
        let long = [vec![0; 1 << 20], vec![0xff; 10]].concat();
        for r in [0, 5, 11] {
            assert!(matches!(
                read(IndexCode::Rice(r), &long, 5, 4096),
                Err(IndexFault::OutOfTile { .. })
            ));
        }
    }
}
