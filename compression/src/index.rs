//! Code of the ascending indices of a tile's entries. One code serves a whole frame.
//!
//! Rice code with parameter r: an index is sent as its gap, that is the index itself for the first
//! entry of a tile and `index - previous - 1` for the others; a gap g is `g >> r` zero bits, a one
//! bit, then the low r bits of g. Packed code: each index is 12 bits.
//!
//! Rule "index code": the packed code when no Rice code with r in 0..=11 is shorter for all indices
//! of the frame together, in bits before padding; else the shortest Rice code, of equal ones the
//! smallest r.

use crate::bits::{BitReader, BitWriter};

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

    /// Appends one tile's `index`, given the index before it in the same tile.
    #[inline]
    pub(crate) fn write(self, index: u32, previous: Option<u32>, writer: &mut BitWriter<'_>) {
        match self {
            Self::Rice(r) => {
                let r = u32::from(r);
                let gap = gap(index, previous);
                writer.write_zeros(gap >> r);
                writer.write(1 | (gap & ((1 << r) - 1)) << 1, r + 1);
            }
            Self::Packed => writer.write(index, PACKED_BITS),
        }
    }

    /// Reads one index; it may lie outside the tile, or (packed code) not be above `previous`.
    /// `None` past the end.
    #[inline]
    pub(crate) fn read(self, previous: Option<u32>, reader: &mut BitReader<'_>) -> Option<u32> {
        match self {
            Self::Rice(r) => {
                let r = u32::from(r);
                // Saturates on streams of more than 2^20 zero bits; every such index lies outside
                // the tile.
                let quotient = reader.read_unary()?.min(1 << 20);
                let gap = quotient << r | reader.read(r)?;
                Some(previous.map_or(gap, |previous| previous + 1 + gap))
            }
            Self::Packed => reader.read(PACKED_BITS),
        }
    }
}

#[inline]
fn gap(index: u32, previous: Option<u32>) -> u32 {
    previous.map_or(index, |previous| index - previous - 1)
}

/// Bits that each code takes for the indices counted so far.
#[derive(Default)]
pub(crate) struct IndexCost {
    entries: u64,
    /// Sum of `gap >> r` for each r.
    quotients: [u64; PACKED_BITS as usize],
}

impl IndexCost {
    #[inline]
    pub(crate) fn count(&mut self, index: u32, previous: Option<u32>) {
        let gap = gap(index, previous);
        self.entries += 1;
        for (r, quotients) in self.quotients.iter_mut().enumerate() {
            *quotients += u64::from(gap >> r);
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

    fn cheapest(indices: &[u32]) -> (IndexCode, u64) {
        let mut cost = IndexCost::default();
        let mut previous = None;
        for &index in indices {
            cost.count(index, previous);
            previous = Some(index);
        }
        cost.cheapest()
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
}
