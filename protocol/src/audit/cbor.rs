//! The part of CBOR that evidence is written in, by the core deterministic encoding of RFC 8949, section 4.2.1: lengths are
//! definite, every number has its shortest form, and the keys of a map ascend.
//!
//! Items are unsigned integers, byte strings, text, arrays, and maps whose keys are small unsigned integers. A reader takes
//! nothing else, and nothing that a writer would have written otherwise, so that bytes that can be read are the only ones for
//! what they say. It borrows from its input and never allocates by a length that the input claims.

const UNSIGNED: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;

/// Why bytes are no such CBOR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CborFault {
    /// They end within an item.
    #[error("cut off at byte {0}")]
    CutOff(usize),
    /// A number is longer than it has to be, of indefinite length, or reserved.
    #[error("the number at byte {0} is not in its shortest form")]
    NotShortest(usize),
    /// Another kind of item, a key that does not belong there, or a number out of range.
    #[error("the item at byte {0} is not what belongs there")]
    Unexpected(usize),
    /// Text that is not UTF-8.
    #[error("the text at byte {0} is not UTF-8")]
    NotText(usize),
    /// Something follows the end.
    #[error("bytes after the end, at byte {0}")]
    Trailing(usize),
}

type Read<T> = Result<T, CborFault>;

/// Writes items one after the other; the caller writes as many as it announced, keys ascending.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn head(&mut self, kind: u8, number: u64) {
        let kind = kind << 5;
        let be = number.to_be_bytes();
        match number {
            0..24 => self.bytes.push(kind | be[7]),
            24..0x100 => self.bytes.extend([kind | 24, be[7]]),
            0x100..0x1_0000 => {
                self.bytes.push(kind | 25);
                self.bytes.extend_from_slice(&be[6..]);
            }
            0x1_0000..0x1_0000_0000 => {
                self.bytes.push(kind | 26);
                self.bytes.extend_from_slice(&be[4..]);
            }
            _ => {
                self.bytes.push(kind | 27);
                self.bytes.extend_from_slice(&be);
            }
        }
    }

    pub(super) fn map(&mut self, entries: usize) {
        self.head(MAP, entries as u64);
    }

    pub(super) fn array(&mut self, items: usize) {
        self.head(ARRAY, items as u64);
    }

    pub(super) fn key(&mut self, key: u8) {
        self.head(UNSIGNED, key.into());
    }

    pub(super) fn number(&mut self, number: u64) {
        self.head(UNSIGNED, number);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.head(BYTES, bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.head(TEXT, text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads items one after the other.
pub(super) struct Reader<'a> {
    whole: usize,
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader {
            whole: bytes.len(),
            left: bytes,
        }
    }

    /// The place of what comes next.
    pub(super) fn at(&self) -> usize {
        self.whole - self.left.len()
    }

    fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        let (taken, left) = self
            .left
            .split_at_checked(count)
            .ok_or(CborFault::CutOff(self.whole))?;
        self.left = left;
        Ok(taken)
    }

    /// The number of the next head, which is to be of `kind`.
    fn head(&mut self, kind: u8) -> Read<u64> {
        let at = self.at();
        let first = match self.left.first() {
            None => return Err(CborFault::CutOff(at)),
            Some(first) if first >> 5 != kind => return Err(CborFault::Unexpected(at)),
            Some(first) => first & 31,
        };
        self.take(1)?;
        let (more, least) = match first {
            0..24 => return Ok(first.into()),
            24 => (1, 24),
            25 => (2, 0x100),
            26 => (4, 0x1_0000),
            27 => (8, 0x1_0000_0000),
            _ => return Err(CborFault::NotShortest(at)),
        };
        let number = self
            .take(more)?
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
        if number >= least {
            Ok(number)
        } else {
            Err(CborFault::NotShortest(at))
        }
    }

    /// A map of exactly `entries`.
    pub(super) fn map(&mut self, entries: u64) -> Read<()> {
        let at = self.at();
        match self.head(MAP)? {
            found if found == entries => Ok(()),
            _ => Err(CborFault::Unexpected(at)),
        }
    }

    /// How many entries the next map has.
    pub(super) fn map_of_any(&mut self) -> Read<u64> {
        self.head(MAP)
    }

    /// How many items the next array has. They are to be read one by one.
    pub(super) fn array_of_any(&mut self) -> Read<u64> {
        self.head(ARRAY)
    }

    /// The key of a map that comes next. Asking for keys in ascending order is what refuses others, and repeated ones.
    pub(super) fn key(&mut self, key: u8) -> Read<()> {
        let at = self.at();
        match self.head(UNSIGNED)? {
            found if found == u64::from(key) => Ok(()),
            _ => Err(CborFault::Unexpected(at)),
        }
    }

    /// Whether the key that comes next is this one; it is read if so.
    pub(super) fn has_key(&mut self, key: u8) -> bool {
        // A key below 24 is one byte, and no other.
        let has = self.left.first() == Some(&key) && key < 24;
        has && self.take(1).is_ok()
    }

    pub(super) fn number(&mut self) -> Read<u64> {
        self.head(UNSIGNED)
    }

    /// A number of 32 bits.
    pub(super) fn small(&mut self) -> Read<u32> {
        let at = self.at();
        u32::try_from(self.number()?).map_err(|_| CborFault::Unexpected(at))
    }

    /// A byte string of exactly `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> Read<[u8; N]> {
        let at = self.at();
        if self.head(BYTES)? != N as u64 {
            return Err(CborFault::Unexpected(at));
        }
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| CborFault::Unexpected(at))
    }

    /// Text of at most `most` bytes.
    pub(super) fn text(&mut self, most: usize) -> Read<&'a str> {
        let at = self.at();
        let length = self.head(TEXT)?;
        let length = usize::try_from(length).map_err(|_| CborFault::Unexpected(at))?;
        if length > most {
            return Err(CborFault::Unexpected(at));
        }
        std::str::from_utf8(self.take(length)?).map_err(|_| CborFault::NotText(at))
    }

    /// An array of at most `most` items, each read by `item`.
    pub(super) fn array<T>(
        &mut self,
        most: u64,
        mut item: impl FnMut(&mut Self) -> Read<T>,
    ) -> Read<Vec<T>> {
        let at = self.at();
        let count = self.array_of_any()?;
        if count > most {
            return Err(CborFault::Unexpected(at));
        }
        // Grows with what is there: the first item that is missing ends it.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// That nothing is left.
    pub(super) fn end(&self) -> Read<()> {
        if self.left.is_empty() {
            Ok(())
        } else {
            Err(CborFault::Trailing(self.at()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(bytes: &[u8]) -> Read<u64> {
        Reader::new(bytes).number()
    }

    #[test]
    fn the_examples_of_the_standard() {
        // RFC 8949, appendix A.
        for (value, hex) in [
            (0, "00"),
            (10, "0a"),
            (23, "17"),
            (24, "1818"),
            (100, "1864"),
            (1000, "1903e8"),
            (1_000_000, "1a000f4240"),
            (1_000_000_000_000, "1b000000e8d4a51000"),
            (u64::MAX, "1bffffffffffffffff"),
        ] {
            let mut writer = Writer::default();
            writer.number(value);
            let bytes = writer.finish();
            assert_eq!(hex::encode(&bytes), hex);
            assert_eq!(number(&bytes), Ok(value));
        }
        let mut writer = Writer::default();
        writer.map(2);
        writer.key(1);
        writer.bytes(&[1, 2, 3, 4]);
        writer.key(3);
        writer.array(2);
        writer.text("IETF");
        writer.number(25);
        assert_eq!(
            hex::encode(writer.finish()),
            "a2014401020304038264494554461819"
        );
    }

    #[test]
    fn longer_forms_are_refused() {
        for bytes in [
            &[0x18, 23][..],
            &[0x19, 0, 24],
            &[0x19, 0, 255],
            &[0x1a, 0, 0, 255, 255],
            &[0x1b, 0, 0, 0, 0, 255, 255, 255, 255],
            &[0x1c],
            &[0x1f],
        ] {
            assert_eq!(number(bytes), Err(CborFault::NotShortest(0)), "{bytes:?}");
        }
        assert_eq!(
            Reader::new(&[0x5f, 0xff]).bytes::<0>(),
            Err(CborFault::NotShortest(0))
        );
    }

    #[test]
    fn what_is_cut_off_of_another_kind_or_too_long_is_refused() {
        assert_eq!(number(&[]), Err(CborFault::CutOff(0)));
        assert_eq!(number(&[0x19, 1]), Err(CborFault::CutOff(2)));
        assert_eq!(
            number(&[0x20]),
            Err(CborFault::Unexpected(0)),
            "a negative number"
        );
        assert_eq!(Reader::new(&[0xa1]).map(2), Err(CborFault::Unexpected(0)));
        assert_eq!(
            Reader::new(&[0x41, 0]).bytes::<2>(),
            Err(CborFault::Unexpected(0))
        );
        assert_eq!(
            Reader::new(&[0x42, 0]).bytes::<2>(),
            Err(CborFault::CutOff(2))
        );
        assert_eq!(
            Reader::new(&[0x62, 0xc3, 0x28]).text(9),
            Err(CborFault::NotText(0))
        );
        assert_eq!(
            Reader::new(&[0x62, b'a', b'b']).text(1),
            Err(CborFault::Unexpected(0))
        );
        let mut huge = Reader::new(&[0x9b, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(
            huge.array(64, Reader::number),
            Err(CborFault::Unexpected(0))
        );
        let mut short = Reader::new(&[0x83, 1, 2]);
        assert_eq!(short.array(64, Reader::number), Err(CborFault::CutOff(3)));
        let mut more = Reader::new(&[1, 2]);
        assert_eq!(more.number(), Ok(1));
        assert_eq!(more.end(), Err(CborFault::Trailing(1)));
    }

    #[test]
    fn a_key_is_the_one_that_is_asked_for() {
        let mut reader = Reader::new(&[1, 2]);
        assert_eq!(reader.key(0), Err(CborFault::Unexpected(0)));
        let mut reader = Reader::new(&[1, 2]);
        assert!(!reader.has_key(2) && reader.has_key(1) && reader.has_key(2) && !reader.has_key(2));
    }

    proptest! {
        #[test]
        fn a_number_has_one_form(bytes in prop::collection::vec(any::<u8>(), 0..10), first in 0x17..0x1cu8) {
            let bytes = [&[first][..], &bytes].concat();
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.number() {
                let mut writer = Writer::default();
                writer.number(value);
                prop_assert_eq!(writer.finish(), &bytes[..reader.at()]);
            }
        }
    }
}
