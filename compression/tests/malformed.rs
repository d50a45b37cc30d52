//! Bytes that are no frame: refused with the right reason, never a panic, never a second encoding
//! of the same values.

mod common;

use common::{DENSE_BF16, DENSE_F32, DENSE_INT4, DENSE_INT8, Rng, small_shard, sparse, tiles};
use gradmesh_compression::{
    Codec, DecodeError, IndexCode, Section, TensorMode, Tile, VALUE_ABS_MAX, ValueBits, decode,
    encode, reference,
};

const CODECS: [fn() -> Codec; 9] = [
    || sparse(64, ValueBits::One),
    || sparse(700, ValueBits::One),
    || sparse(700, ValueBits::Two),
    || sparse(64, ValueBits::Four),
    || sparse(700, ValueBits::Four),
    || DENSE_F32,
    || DENSE_BF16,
    || DENSE_INT8,
    || DENSE_INT4,
];

fn small_frame(codec: Codec) -> (Vec<Tile>, Vec<u8>) {
    let (tiles, values) = small_shard();
    let mut bytes = Vec::new();
    encode(&values, &tiles, codec, &mut bytes).unwrap();
    (tiles, bytes)
}

/// What holds for any bytes: the fast decoder accepts what the reference accepts, with the same
/// finite, bounded values. So an accepted frame is the one that its values encode to.
fn check(bytes: &[u8], tiles: &[Tile], codec: Codec) -> bool {
    let expected = reference::decode(bytes, tiles, codec);
    match decode(bytes, tiles, codec) {
        Ok(frame) => {
            let mut values = vec![0.0; frame.elements()];
            frame.dequantise_into(&mut values);
            assert!(values.iter().all(|value| value.abs() <= VALUE_ABS_MAX));
            assert_eq!(Some(values), expected);
            true
        }
        Err(error) => {
            assert_eq!(expected, None, "{error}");
            false
        }
    }
}

#[test]
fn every_single_bit_flip_is_refused_or_is_the_frame_of_other_values() {
    for codec in CODECS {
        let (tiles, bytes) = small_frame(codec());
        let mut accepted = 0;
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            accepted += usize::from(check(&flipped, &tiles, codec()));
        }
        // A flipped sign is another valid frame.
        assert!(accepted > 0);
    }
}

#[test]
fn every_truncated_frame_is_refused() {
    for codec in CODECS {
        let (tiles, bytes) = small_frame(codec());
        for len in 0..bytes.len() {
            assert!(!check(&bytes[..len], &tiles, codec()));
            assert!(matches!(
                decode(&bytes[..len], &tiles, codec()),
                Err(DecodeError::Truncated { .. })
            ));
        }
    }
}

#[test]
fn bytes_after_the_frame_are_refused() {
    for codec in CODECS {
        for extra in [0, 1, 0xff] {
            let (tiles, mut bytes) = small_frame(codec());
            bytes.push(extra);
            assert_eq!(
                decode(&bytes, &tiles, codec()),
                Err(DecodeError::Trailing { bytes: 1 })
            );
            bytes.extend([0; 100_000]);
            assert_eq!(
                decode(&bytes, &tiles, codec()),
                Err(DecodeError::Trailing { bytes: 100_001 })
            );
        }
    }
}

#[test]
fn frame_of_another_codec_is_refused() {
    for (own, other) in CODECS
        .iter()
        .flat_map(|a| CODECS.iter().map(move |b| (a(), b())))
    {
        let (tiles, bytes) = small_frame(own);
        let result = decode(&bytes, &tiles, other);
        if own == other {
            assert!(result.is_ok());
        } else {
            let error = result.unwrap_err();
            assert!(
                matches!(error, DecodeError::CodecMismatch { expected, .. } if expected == other)
            );
        }
    }
}

#[test]
fn frame_of_another_number_of_tiles_is_refused() {
    let (tiles, bytes) = small_frame(sparse(64, ValueBits::One));
    assert_eq!(
        decode(&bytes, &tiles[..3], sparse(64, ValueBits::One)),
        Err(DecodeError::TileCountMismatch {
            found: 4,
            expected: 3
        })
    );
    let mut claiming = bytes;
    claiming[10..14].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        decode(&claiming, &tiles, sparse(64, ValueBits::One)),
        Err(DecodeError::TileCountMismatch {
            found: u32::MAX,
            expected: 4
        })
    );
}

/// A frame of one sparse tile of 64 elements, k = 256: four entries.
struct Parts {
    index_code: u8,
    levels: Bits,
    entry_values: u8,
    indices: Vec<u8>,
}

/// Numbers and the bits that each takes.
type Bits = Vec<(u32, u32)>;

const TWO: ValueBits = ValueBits::Two;

/// Step of 2.
const LEVEL: u32 = 4065;

fn short(number: u32) -> Bits {
    vec![(0, number / 16), (1, 1), (number % 16, 4)]
}

fn long(number: u32) -> Bits {
    vec![(0, 4), (number, 13)]
}

/// Two levels and the peak of four entries.
fn levels(level: Bits, place: u32, up: Bits, down: Bits) -> Bits {
    [level, vec![(place, 2)], up, down].concat()
}

fn packed(numbers: &[(u32, u32)]) -> Vec<u8> {
    let bits = |&(number, bits): &(u32, u32)| (0..bits).map(move |bit| (number >> bit & 1) as u8);
    let bits: Vec<u8> = numbers.iter().flat_map(bits).collect();
    let byte = |bits: &[u8]| bits.iter().rev().fold(0_u8, |byte, bit| byte << 1 | bit);
    bits.chunks(8).map(byte).collect()
}

impl Parts {
    /// Levels 1 and 2, entry 1 the peak of 4; indices 1, 3, 8, 9 in Rice code r = 0: gaps 1, 1, 4, 0.
    fn valid() -> Self {
        Self {
            index_code: 0,
            levels: levels(long(LEVEL), 1, short(32), short(32)),
            entry_values: 0b10_00_11_00,
            indices: vec![0b0000_1010, 0b0000_0011],
        }
    }

    fn decode(&self) -> Result<(), DecodeError> {
        let tiles = tiles(&[(64, TensorMode::Sparse)]);
        let codec = sparse(256, TWO);
        let mut bytes = b"GMFR\x02\x01\x02".to_vec();
        bytes.push(self.index_code);
        bytes.extend([0, 1, 1, 0, 0, 0]);
        bytes.extend(packed(&self.levels));
        bytes.push(self.entry_values);
        bytes.extend(&self.indices);
        check(&bytes, &tiles, codec);
        decode(&bytes, &tiles, codec).map(|_| ())
    }
}

/// What comes of the hand-made frame with other levels.
fn decode_levels(levels: Bits) -> Result<(), DecodeError> {
    let parts = Parts {
        levels,
        ..Parts::valid()
    };
    parts.decode()
}

#[test]
fn hand_made_frame_is_accepted() {
    assert_eq!(Parts::valid().decode(), Ok(()));
}

#[test]
fn foreign_magic_version_and_index_code_are_refused() {
    let (tiles, bytes) = small_frame(DENSE_F32);
    let with = |offset: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[offset] = value;
        decode(&bytes, &tiles, DENSE_F32).unwrap_err()
    };
    assert_eq!(with(3, b'S'), DecodeError::Magic { found: *b"GMFS" });
    assert_eq!(with(4, 1), DecodeError::Version { found: 1 });
    assert_eq!(with(7, 1), DecodeError::IndexCode { found: 1 });

    let parts = Parts {
        index_code: 13,
        ..Parts::valid()
    };
    assert_eq!(parts.decode(), Err(DecodeError::IndexCode { found: 13 }));
}

#[test]
fn levels_and_peaks_outside_the_grid_are_refused() {
    let (up, down) = (|| short(32), || short(32));
    let marked = [long(8191), vec![(2, 12)]].concat();
    for (levels, found, min, max) in [
        (levels(long(4514), 1, up(), down()), 4514, 1, 4513),
        (levels(long(8190), 1, up(), down()), 8190, 1, 4513),
        (levels(short(0), 1, up(), down()), 0, 1, 4513), // what the first tile starts from
        (levels(short(3), 1, up(), down()), -2, 1, 4513),
        (levels(long(4513), 1, short(1), down()), 4514, 4513, 4513), // peak above 2^15
        (
            levels(long(LEVEL), 1, long(8191), down()),
            12256,
            4065,
            4513,
        ),
        (levels(short(20), 1, up(), short(10)), 0, 1, 9), // low level below the grid
        (levels(long(LEVEL), 1, up(), long(513)), 3552, 3553, 4064), // more than 16 octaves
        ([marked.clone(), long(0)].concat(), 0, 1, 4513), // a short tile without level
        ([marked, long(8191)].concat(), 8191, 1, 4513),
    ] {
        assert_eq!(
            decode_levels(levels),
            Err(DecodeError::Level {
                tile: 0,
                found,
                min,
                max
            })
        );
    }
    let lowest = levels(long(LEVEL), 1, short(32), long(512));
    assert_eq!(decode_levels(lowest), Ok(()));
}

#[test]
fn long_form_of_a_small_number_is_refused() {
    for (levels, number) in [
        (levels(long(31), 1, short(32), short(1)), 62),
        (levels(long(LEVEL), 1, long(63), short(32)), 63),
        (levels(long(LEVEL), 1, short(32), long(32)), 32),
        (levels(long(LEVEL), 1, short(32), long(0)), 0),
    ] {
        assert_eq!(
            decode_levels(levels),
            Err(DecodeError::LongForm { tile: 0, number })
        );
    }
    let smallest = levels(long(32), 1, long(64), short(1));
    assert_eq!(decode_levels(smallest), Ok(()));
}

#[test]
fn entry_count_that_is_not_of_a_short_tile_is_refused() {
    for found in [0, 4, 5, 64, 4095] {
        let count = vec![(u32::from(found), 12)];
        assert_eq!(
            decode_levels([long(8191), count, long(LEVEL)].concat()),
            Err(DecodeError::EntryCount {
                tile: 0,
                found,
                entries_max: 4
            })
        );
    }
}

#[test]
fn entry_that_cannot_be_the_peak_is_refused() {
    let refused = |place, entries| {
        Err(DecodeError::Peak {
            tile: 0,
            place,
            entries,
        })
    };
    let at = |place, up| decode_levels(levels(long(LEVEL), place, short(up), short(32)));
    assert_eq!(at(3, 32), Ok(()));
    assert_eq!(at(0, 32), refused(0, 4)); // in the low group
    // As large as the high level: then it is the first that is high.
    assert_eq!(at(1, 0), Ok(()));
    assert_eq!(at(3, 0), refused(3, 4));
    // A fourth of three.
    let three = [long(8191), vec![(3, 12)]].concat();
    let three = [three, levels(long(LEVEL), 3, short(32), short(32))].concat();
    assert_eq!(decode_levels(three), refused(3, 3));
}

#[test]
fn level_that_no_entry_uses_is_refused() {
    for (down, entry_values) in [
        (32, 0b10_10_11_10), // all high, but there is a low level
        (32, 0b00_00_11_00), // none high besides the peak
        (0, 0b10_00_11_10),  // one low, but there is no low level
    ] {
        let mut parts = Parts::valid();
        parts.levels = levels(long(LEVEL), 1, short(32), short(down));
        parts.entry_values = entry_values;
        assert_eq!(parts.decode(), Err(DecodeError::UnusedLevel { tile: 0 }));
    }
}

/// A frame of one sparse tile of 64 elements with 4 value bits, k = 256, given what adds the peak, the half of the spacing
/// less 1, and a code of four entries; the code 8 and more has a negative sign.
fn decode_codes(level: Bits, up: u32, half: u32, codes: [u32; 4]) -> Result<(), DecodeError> {
    let tiles = tiles(&[(64, TensorMode::Sparse)]);
    let codec = sparse(256, ValueBits::Four);
    let mut bytes = b"GMFR\x02\x01\x04\0\0\x01\x01\0\0\0".to_vec();
    bytes.extend(packed(&[level, short(up), vec![(half, 4)]].concat()));
    let nibbles = codes.map(|code| (code % 8 * 2 + code / 8, 4));
    bytes.extend(packed(&nibbles));
    // Indices 1, 3, 8, 9.
    bytes.extend([0b0000_1010, 0b0000_0011]);
    check(&bytes, &tiles, codec);
    decode(&bytes, &tiles, codec).map(|_| ())
}

#[test]
fn codes_that_suit_the_levels_are_accepted() {
    assert_eq!(decode_codes(long(LEVEL), 32, 7, [5, 7, 8, 9]), Ok(()));
    assert_eq!(decode_codes(long(LEVEL), 32, 0, [0, 15, 8, 0]), Ok(()));
    assert_eq!(decode_codes(long(LEVEL), 0, 15, [7, 0, 5, 6]), Ok(()));
    // Down to the first step of the grid.
    assert_eq!(decode_codes(long(193), 0, 15, [1, 7, 0, 6]), Ok(()));
}

#[test]
fn tile_without_exactly_one_peak_is_refused() {
    for (codes, found) in [([0, 1, 2, 3], 0), ([0, 7, 1, 15], 2), ([7, 7, 7, 7], 4)] {
        assert_eq!(
            decode_codes(long(LEVEL), 32, 7, codes),
            Err(DecodeError::PeakCount { tile: 0, found })
        );
    }
    // Of the entries with the magnitude of the peak it is the first.
    let (tile, entries) = (0, 4);
    for (codes, place) in [([0, 7, 1, 5], 1), ([5, 8, 1, 15], 3)] {
        assert_eq!(
            decode_codes(long(LEVEL), 0, 7, codes),
            Err(DecodeError::Peak {
                tile,
                place,
                entries
            })
        );
        assert_eq!(decode_codes(long(LEVEL), 1, 7, codes), Ok(()));
    }
    // A lone entry is the peak.
    let tiles = tiles(&[(8, TensorMode::Sparse)]);
    let codec = sparse(1, ValueBits::Four);
    let frame = |code: u8| {
        let levels = packed(&long(LEVEL));
        let header = b"GMFR\x02\x01\x04\0\x01\0\x01\0\0\0";
        let bytes = [&header[..], &levels, &[code << 1, 1]].concat();
        check(&bytes, &tiles, codec);
        decode(&bytes, &tiles, codec).map(|_| ())
    };
    assert_eq!(frame(7), Ok(()));
    assert_eq!(frame(0), Err(DecodeError::PeakCount { tile: 0, found: 0 }));
}

#[test]
fn high_level_that_no_entry_has_is_refused() {
    assert_eq!(
        decode_codes(long(LEVEL), 32, 7, [1, 7, 1, 2]),
        Err(DecodeError::UnusedLevel { tile: 0 })
    );
}

#[test]
fn level_below_the_grid_is_refused() {
    for (level, codes, found) in [(192, [1, 7, 0, 6], 0), (40, [3, 7, 2, 0], -56)] {
        assert_eq!(
            decode_codes(long(level), 0, 15, [7, codes[0], codes[2], codes[3]]),
            Err(DecodeError::Level {
                tile: 0,
                found,
                min: 1,
                max: level as i32
            })
        );
    }
}

#[test]
fn larger_spacing_than_needed_is_refused() {
    for (half, codes, canonical) in [
        (7, [0, 7, 0, 0], 2),   // no level but the high one
        (7, [0, 7, 2, 0], 8),   // 32 steps below: four times 8
        (9, [0, 7, 2, 2], 8),   // 40: five times 8
        (14, [0, 7, 2, 4], 20), // 60 and 120
        (15, [3, 7, 0, 0], 16),
    ] {
        assert_eq!(
            decode_codes(long(LEVEL), 32, half, codes),
            Err(DecodeError::Spacing {
                tile: 0,
                found: 2 * half as u16 + 2,
                canonical
            })
        );
    }
}

#[test]
fn index_outside_the_tile_is_refused() {
    // Gap 1, then more zero bits than the tile has elements.
    let mut parts = Parts::valid();
    parts.indices = [vec![0b10], vec![0; 8], vec![0b1111]].concat();
    assert!(matches!(
        parts.decode(),
        Err(DecodeError::IndexOutOfTile {
            tile: 0,
            len: 64,
            ..
        })
    ));
    // Packed, index 64.
    let mut parts = Parts::valid();
    parts.index_code = 12;
    parts.indices = vec![0x40, 0, 0, 0, 0, 0];
    assert_eq!(
        parts.decode(),
        Err(DecodeError::IndexOutOfTile {
            tile: 0,
            index: 64,
            len: 64
        })
    );
    // A run of zero bits that would overflow any counter of indices.
    let mut parts = Parts::valid();
    parts.index_code = 11;
    parts.indices = [vec![0; 1 << 20], vec![0xff; 10]].concat();
    assert!(matches!(
        parts.decode(),
        Err(DecodeError::IndexOutOfTile { .. })
    ));
}

#[test]
fn packed_indices_out_of_order_are_refused() {
    // 12 bits each: 1, 3, 3, 9 and 1, 3, 2, 9.
    for (indices, index) in [
        ([0x01, 0x30, 0x00, 0x03, 0x90, 0x00], 3),
        ([0x01, 0x30, 0x00, 0x02, 0x90, 0x00], 2),
    ] {
        let parts = Parts {
            index_code: 12,
            indices: indices.to_vec(),
            ..Parts::valid()
        };
        assert_eq!(
            parts.decode(),
            Err(DecodeError::IndexOrder { tile: 0, index })
        );
    }
}

#[test]
fn longer_index_code_than_needed_is_refused() {
    // Indices 1, 3, 8, 9 again, packed and with r = 1 (gaps 1, 1, 4, 0: 11 11 0010 10, ten bits
    // like r = 0).
    for (index_code, found, indices) in [
        (
            12,
            IndexCode::Packed,
            vec![0x01, 0x30, 0x00, 0x08, 0x90, 0x00],
        ),
        (1, IndexCode::Rice(1), vec![0b0100_1111, 0b01]),
    ] {
        let parts = Parts {
            index_code,
            indices,
            ..Parts::valid()
        };
        assert_eq!(
            parts.decode(),
            Err(DecodeError::IndexCodeNotCanonical {
                found,
                canonical: IndexCode::Rice(0)
            })
        );
    }
}

#[test]
fn padding_must_be_zero() {
    let mut parts = Parts::valid();
    parts.indices[1] |= 0x80;
    let section = Section::Indices;
    assert_eq!(parts.decode(), Err(DecodeError::Padding { section }));

    let tiles = tiles(&[(8, TensorMode::Sparse)]);
    let codec = sparse(1024, ValueBits::One);
    let mut bytes = Vec::new();
    encode(&[1.0; 8], &tiles, codec, &mut bytes).unwrap();
    // Header, 17 + 1 + 5 bits of levels, one byte for two signs.
    for (at, bit, section) in [(16, 0x80, Section::Levels), (17, 4, Section::EntryValues)] {
        let mut bytes = bytes.clone();
        bytes[at] |= bit;
        assert_eq!(
            decode(&bytes, &tiles, codec),
            Err(DecodeError::Padding { section })
        );
    }
}

#[test]
fn dense_values_out_of_range_are_refused() {
    let tiles = tiles(&[(2, TensorMode::Dense)]);
    for value in [
        f32::NAN,
        f32::INFINITY,
        f32::MIN,
        -0.0,
        f32::from_bits(VALUE_ABS_MAX.to_bits() + 0x1_0000),
    ] {
        let (high, all) = (value.to_bits() >> 16, value.to_bits());
        let mut bytes = b"GMFR\x02\x03\0\0\0\0\x01\0\0\0\x80\x3f".to_vec();
        bytes.extend(&high.to_le_bytes()[..2]);
        assert!(!check(&bytes, &tiles, DENSE_BF16));
        let error = decode(&bytes, &tiles, DENSE_BF16).unwrap_err();
        assert!(
            matches!(error, DecodeError::DenseValue { element: 1, .. }),
            "{error}"
        );

        let mut bytes = b"GMFR\x02\x02\0\0\0\0\x01\0\0\0\0\0\x80\x3f".to_vec();
        bytes.extend(all.to_le_bytes());
        assert!(!check(&bytes, &tiles, DENSE_F32));
        let error = decode(&bytes, &tiles, DENSE_F32).unwrap_err();
        assert!(
            matches!(error, DecodeError::DenseValue { element: 1, .. }),
            "{error}"
        );
    }
}

#[test]
fn blocks_that_no_values_encode_to_are_refused() {
    // One tile of three elements: a block of a scale and three bytes (int8) or two (int4).
    let tiles = tiles(&[(3, TensorMode::Dense)]);
    let decode_block = |codec: Codec, number: u8, block: &[u8]| {
        let mut bytes = [b"GMFR\x02", &[number, 0, 0, 0, 0, 1, 0, 0, 0][..]].concat();
        bytes.extend(block);
        check(&bytes, &tiles, codec);
        decode(&bytes, &tiles, codec).map(|_| ())
    };
    let refused = |scale| Err(DecodeError::DenseBlock { element: 0, scale });
    for (scale, integers, expected) in [
        (0x3f80, [127, 0, 0x81], Ok(())),          // 127, 0, -127
        (0x0000, [0, 0, 0], Ok(())),               // a block of zeros
        (0x0080, [127, 0, 0], Ok(())),             // the smallest scale
        (0x4381, [127, 0, 0], Ok(())),             // the largest, 258
        (0x4382, [127, 0, 0], refused(0x4382)),    // 260: above 2^15
        (0x007f, [127, 0, 0], refused(0x007f)),    // subnormal
        (0x8000, [0, 0, 0], refused(0x8000)),      // negative zero
        (0xbf80, [127, 0, 0], refused(0xbf80)),    // negative
        (0x7f80, [127, 0, 0], refused(0x7f80)),    // infinity
        (0x7fc0, [127, 0, 0], refused(0x7fc0)),    // NaN
        (0x3f80, [126, 0, 0x82], refused(0x3f80)), // a scale that no largest element asks for
        (0x3f80, [127, 0x80, 0], refused(0x3f80)), // -128
        (0x3f80, [0, 0, 0], refused(0x3f80)),      // zeros with a scale
        (0x0000, [0, 1, 0], refused(0x0000)),      // a number without a scale
    ] {
        let block = [&u16::to_le_bytes(scale)[..], &integers].concat();
        assert_eq!(
            decode_block(DENSE_INT8, 4, &block),
            expected,
            "{block:02x?}"
        );
    }
    for (scale, pairs, expected) in [
        (0x3f80, [0x17, 0x09], Ok(())), // 7, -7; 1 and no fourth
        (0x0000, [0, 0], Ok(())),
        (0x4592, [0x07, 0], Ok(())),             // the largest, 4672
        (0x4593, [0x07, 0], refused(0x4593)),    // 4704: above 2^15
        (0x3f80, [0x16, 0x0a], refused(0x3f80)), // no 7
        (0x3f80, [0x87, 0], refused(0x3f80)),    // -8
        (0x3f80, [0x17, 0x19], refused(0x3f80)), // a fourth element
        (0x0000, [0x10, 0], refused(0x0000)),
    ] {
        let block = [&u16::to_le_bytes(scale)[..], &pairs].concat();
        assert_eq!(
            decode_block(DENSE_INT4, 5, &block),
            expected,
            "{block:02x?}"
        );
    }
}

/// The corpus of `fuzz/fuzz_targets/decode.rs` in small: valid frames, changed in one to eight
/// places.
#[test]
fn mutated_frames_never_panic_and_never_encode_twice() {
    const MUTATIONS: usize = 500_000;
    let mut rng = Rng(0x6d65_7368);
    let seeds: Vec<_> = CODECS
        .iter()
        .map(|codec| (codec(), small_frame(codec())))
        .collect();
    let mut accepted = 0;
    for mutation in 0..MUTATIONS {
        let (codec, (tiles, frame)) = &seeds[mutation % seeds.len()];
        let mut bytes = frame.clone();
        // The header is seldom changed: past it lies what can go wrong.
        let first = if mutation % 64 == 0 { 0 } else { 14 };
        for _ in 0..1 + rng.below(8) {
            if bytes.len() <= first {
                break;
            }
            let at = first + rng.below(bytes.len() - first);
            match rng.below(6) {
                0..3 => bytes[at] ^= 1 << rng.below(8),
                3 => bytes[at] = [0, 0xff, 0x7f, 0x80][rng.below(4)],
                4 => drop(bytes.remove(at)),
                _ => bytes.insert(at, rng.next() as u8),
            }
        }
        // The reference costs a hundred times as much: ask it where the decoder says yes, and now
        // and then.
        if mutation % 64 == 0 || decode(&bytes, tiles, *codec).is_ok() {
            accepted += usize::from(check(&bytes, tiles, *codec));
        }
    }
    assert!(
        accepted > MUTATIONS / 1000,
        "{accepted} frames accepted: the test reaches too little"
    );
}
