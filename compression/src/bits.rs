//! Bit streams: the first bit is the least significant bit of the first byte; a stream ends at a
//! byte border, padded with zero bits.

/// Appends bits to a byte vector. [`BitWriter::finish`] pads to a byte border.
pub(crate) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    pending: u64,
    pending_bits: u32,
}

impl<'a> BitWriter<'a> {
    pub(crate) const fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            pending: 0,
            pending_bits: 0,
        }
    }

    /// Appends the low `bits` bits of `value`, least significant first. `bits <= 32`; higher bits
    /// of `value` are zero.
    #[inline]
    pub(crate) fn write(&mut self, value: u32, bits: u32) {
        debug_assert!(bits <= 32 && u64::from(value) < 1 << bits);
        // At most 31 bits are pending here, so that 32 more fit.
        self.pending |= u64::from(value) << self.pending_bits;
        self.pending_bits += bits;
        if self.pending_bits >= 32 {
            self.out
                .extend_from_slice(&(self.pending as u32).to_le_bytes());
            self.pending >>= 32;
            self.pending_bits -= 32;
        }
    }

    /// Appends `count` zero bits.
    #[inline]
    pub(crate) fn write_zeros(&mut self, mut count: u32) {
        while count > 32 {
            self.write(0, 32);
            count -= 32;
        }
        self.write(0, count);
    }

    pub(crate) fn finish(self) {
        let bytes = self.pending_bits.div_ceil(8) as usize;
        self.out
            .extend_from_slice(&self.pending.to_le_bytes()[..bytes]);
    }
}

/// Bits of a [`word`] that are always of the stream.
pub(crate) const WORD_BITS: u32 = 57;

/// The bits of `bytes` from bit `position` on, [`WORD_BITS`] of them and zeros or more of the stream above; `None` near
/// the end.
#[inline]
pub(crate) fn word(bytes: &[u8], position: usize) -> Option<u64> {
    let word = bytes.get(position / 8..)?.first_chunk()?;
    Some(u64::from_le_bytes(*word) >> (position % 8))
}

/// Reads bits one field at a time, anywhere in a stream; `None` past the end. [`word`] is the fast way where enough bytes
/// follow.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> BitReader<'a> {
    /// Starts at bit `position`.
    pub(crate) const fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    /// Bits read so far, those before the start included.
    pub(crate) const fn position(&self) -> usize {
        self.position
    }

    /// The next bits, at least 57 of them; zeros past the end.
    #[inline]
    fn peek(&self) -> u64 {
        word(self.bytes, self.position).unwrap_or_else(|| {
            let rest = self.bytes.get(self.position / 8..).unwrap_or(&[]);
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            u64::from_le_bytes(word) >> (self.position % 8)
        })
    }

    #[inline]
    fn advance(&mut self, bits: usize) -> Option<()> {
        self.position += bits;
        (self.position <= self.bytes.len() * 8).then_some(())
    }

    /// The next `bits` bits, least significant first. `bits <= 32`.
    #[inline]
    pub(crate) fn read(&mut self, bits: u32) -> Option<u32> {
        debug_assert!(bits <= 32);
        let value = self.peek() & ((1 << bits) - 1);
        self.advance(bits as usize)?;
        Some(value as u32)
    }

    /// Reads zero bits: `zeros_max` of them, or fewer and the one bit behind them; how many there are. `zeros_max < 57`.
    #[inline]
    pub(crate) fn read_zeros(&mut self, zeros_max: u32) -> Option<u32> {
        debug_assert!(zeros_max < WORD_BITS);
        let zeros = self.peek().trailing_zeros().min(zeros_max);
        self.advance((zeros + u32::from(zeros < zeros_max)) as usize)?;
        Some(zeros)
    }

    /// Counts zero bits up to the next one bit, which is consumed. Gives up, at an unspecified
    /// position, when the stream ends first; the count is at most the bits of the stream.
    #[inline]
    pub(crate) fn read_unary(&mut self) -> Option<u32> {
        let mut zeros = 0;
        loop {
            let word = self.peek();
            if word != 0 {
                let run = word.trailing_zeros();
                self.advance(run as usize + 1)?;
                return Some(zeros + run);
            }
            self.advance(56)?;
            zeros += 56;
        }
    }

    /// The bytes after the last byte that holds a bit already read, or `None` when the unread bits
    /// of that byte are not all zero.
    pub(crate) fn finish(self) -> Option<&'a [u8]> {
        let used = self.position % 8;
        if used != 0
            && self
                .bytes
                .get(self.position / 8)
                .is_some_and(|byte| byte >> used != 0)
        {
            return None;
        }
        self.bytes.get(self.position.div_ceil(8)..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bit_is_the_lowest_of_the_first_byte() {
        let mut out = vec![0xee];
        let mut writer = BitWriter::new(&mut out);
        writer.write(1, 1);
        writer.write_zeros(2);
        writer.write(0b11, 2);
        writer.write(0xdead_beef, 32);
        writer.finish();
        assert_eq!(
            out,
            [
                0xee,
                0b1111_1001,
                0b1101_1101,
                0b1011_0111,
                0b1101_0101,
                0b0001_1011
            ]
        );
    }

    #[test]
    fn written_bits_are_read_back() {
        for zeros in [0, 1, 31, 32, 33, 55, 56, 57, 64, 4095] {
            let mut out = Vec::new();
            let mut writer = BitWriter::new(&mut out);
            writer.write(5, 3);
            writer.write_zeros(zeros);
            writer.write(1, 1);
            writer.write(0x7ff, 11);
            writer.finish();
            let mut reader = BitReader::new(&out, 0);
            assert_eq!(reader.read(3), Some(5));
            assert_eq!(reader.read_unary(), Some(zeros));
            assert_eq!(reader.read(11), Some(0x7ff));
            assert_eq!(reader.finish(), Some(&[][..]));
        }
    }

    #[test]
    fn zeros_are_read_up_to_the_most() {
        let mut reader = BitReader::new(&[0b1001_0000, 0b1], 0);
        assert_eq!(reader.read_zeros(3), Some(3));
        assert_eq!(reader.read_zeros(3), Some(1));
        assert_eq!(reader.read_zeros(2), Some(2));
        assert_eq!(reader.read_zeros(4), Some(0));
        assert_eq!(reader.read_zeros(4), Some(0));
        assert_eq!(reader.read_zeros(8), None);
        assert_eq!(BitReader::new(&[], 0).read_zeros(0), Some(0));
    }

    #[test]
    fn end_of_stream_is_noticed() {
        assert_eq!(BitReader::new(&[0; 100], 0).read_unary(), None);
        assert_eq!(BitReader::new(&[], 0).read_unary(), None);
        assert_eq!(BitReader::new(&[0xff], 0).read(9), None);
        assert_eq!(BitReader::new(&[], 0).read(0), Some(0));
    }

    #[test]
    fn padding_must_be_zero() {
        let mut reader = BitReader::new(&[0b0001_0101, 7], 0);
        assert_eq!(reader.read(5), Some(0b1_0101));
        assert_eq!(reader.finish(), Some(&[7][..]));
        let mut reader = BitReader::new(&[0b0011_0101], 0);
        assert_eq!(reader.read(5), Some(0b1_0101));
        assert_eq!(reader.finish(), None);
    }
}
