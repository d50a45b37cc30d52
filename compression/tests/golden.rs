//! Frames written down byte by byte. A change that breaks one of them changes the wire format, and
//! needs a new version number in the header.

mod common;

use common::{DENSE_BF16, DENSE_F32, DENSE_INT4, DENSE_INT8, small_shard, sparse, tiles};
use gradmesh_compression::{Codec, TensorMode, Tile, ValueBits, decode, encode};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn assert_frame(values: &[f32], tiles: &[Tile], codec: Codec, parts: &[&str], decoded: &[f32]) {
    let mut bytes = Vec::new();
    encode(values, tiles, codec, &mut bytes).unwrap();
    assert_eq!(hex(&bytes), parts.concat());
    let frame = decode(&bytes, tiles, codec).unwrap();
    let mut out = vec![0.0; values.len()];
    frame.dequantise_into(&mut out);
    assert_eq!(out, decoded);
}

// The frames but for the mixed ones are derived by hand from the specification, not printed by the encoder.

#[test]
fn one_level_frame() {
    assert_frame(
        &[0.0, 2.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.5],
        &tiles(&[(8, TensorMode::Sparse)]),
        // ceil(1024 * 8 / 4096) = 2 entries.
        sparse(1024, ValueBits::One),
        &[
            "474d4652", // magic
            "02",       // version
            "01",       // sparse
            "01",       // value bits
            "00",       // Rice r = 0: 2 + 3 bits; r = 1 takes 2 + 3 as well, packed 24
            "0004",     // k
            "01000000", // tiles
            // Level 1, step 4033 = 0xfc1, in its long form; place 0 in one bit; the peak is 32 steps above.
            // 0000 1000001111110 0 0010000
            "10fc1000", "02", // plus, minus
            "12", // gaps 1 and 2: 01 001, first bit lowest
        ],
        &[0.0, 2.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0],
    );
}

#[test]
fn two_level_frame_with_an_empty_and_a_short_tile() {
    let mut values = [0.0; 24];
    values[..8].copy_from_slice(&[0.0, -4.0, 1.0, 0.0, 0.25, 0.0, 1.0, 2.0]);
    values[23] = -1.0;
    let mut decoded = values;
    decoded[4] = 0.0;
    assert_frame(
        &values,
        &tiles(&[(8, TensorMode::Sparse); 3]),
        // ceil(2048 * 8 / 4096) = 4 entries.
        sparse(2048, ValueBits::Two),
        &[
            "474d4652", // magic
            "02",       // version
            "01",       // sparse
            "02",       // value bits
            "01",       /* gaps 1, 0, 3, 0; 7: Rice r = 1 takes 2 + 2 + 3 + 2 + 5 bits, r = 0 and r
                         * = 2 16, packed 60 */
            "0008",     // k
            "03000000", // tiles
            // First tile: level 2, step 4065 = 0xfe1, in its long form; place 0 in two bits; the peak is 32 steps
            // above, the low level 32 below. 0000 1000011111110 00 0010000 0010000
            // Second tile: empty. 0000 0000000000000
            // Third tile: short, one entry, 32 steps below the level of the first: number 63.
            // 0000 1111111111111 100000000000 00011111
            "10fe20100000c0ff0f007c",
            "8303", // minus high, plus low, plus low, plus high; minus high: 11 00 00 01 11
            "e730", // 1 1, 1 0, 01 1, 1 0, 0001 1
        ],
        &decoded,
    );
}

#[test]
fn seven_level_frame_with_a_short_tile() {
    let mut values = [0.0; 16];
    values[..8].copy_from_slice(&[0.0, -2.0, 1.0, 0.0, 0.5, -0.25, 1.0, 0.0]);
    values[8..].copy_from_slice(&[0.5, 0.0, 0.0, 0.0, 0.001, 0.0, -0.5, 0.25]);
    let mut decoded = values;
    decoded[12] = 0.0;
    assert_frame(
        &values,
        &tiles(&[(8, TensorMode::Sparse); 2]),
        // ceil(2560 * 8 / 4096) = 5 entries.
        sparse(2560, ValueBits::Four),
        &[
            "474d4652", // magic
            "02",       // version
            "01",       // sparse
            "04",       // value bits
            "00", // gaps 1, 0, 1, 0, 0; 0, 5, 0: Rice r = 0 takes 7 + 8 bits, r = 1 18, packed 96
            "000a", // k
            "02000000", // tiles
            // First tile: level 1, step 4033 = 0xfc1, in its long form; the peak is 32 steps above. The others are 0, 32
            // and 64 steps below the level: codes 0, 2 and 4 of the spacing 16, as number 7.
            // 0000 1000001111110 0010000 1110
            // Second tile: short, three entries; level 32 steps below: number 63; the peak adds nothing, and is the
            // first there; the other is 32 steps below: code 4 of the spacing 8, as number 3.
            // 0000 1111111111111 110000000000 00011111 10000 1100
            "10fc0807ff7f00f0c300",
            // Minus peak, plus 0, plus 2, minus 4, plus 0; plus peak, minus 0, plus 4, the sign lowest.
            "0f94e081",
            "f660", // 01 1 01 1 1, 1 000001 1
        ],
        &decoded,
    );
}

#[test]
fn dense_f32_frame() {
    assert_frame(
        &[1.0, -0.0, -32768.0],
        &tiles(&[(2, TensorMode::Sparse), (1, TensorMode::Dense)]),
        DENSE_F32,
        &[
            "474d4652", "02", "02", "00", "00", "0000", "02000000", "0000803f", "00000000",
            "000000c7",
        ],
        &[1.0, 0.0, -32768.0],
    );
}

#[test]
fn dense_bf16_frame() {
    // 1 + 2^-8 lies half way between two bf16 numbers and goes to the even one, 1; 1 + 3 * 2^-8 to
    // 1 + 2^-6.
    assert_frame(
        &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.5],
        &tiles(&[(3, TensorMode::Sparse)]),
        DENSE_BF16,
        &[
            "474d4652", "02", "03", "00", "00", "0000", "01000000", "803f", "823f", "00bf",
        ],
        &[1.0, 1.015625, -0.5],
    );
}

#[test]
fn dense_int8_frame() {
    // Scale 127 / 127 = 1: 63.5 lies half way between two integers and goes to the even one. The second tile is zero.
    assert_frame(
        &[127.0, -63.5, 0.25, -0.0],
        &tiles(&[(3, TensorMode::Sparse), (1, TensorMode::Dense)]),
        DENSE_INT8,
        &[
            "474d4652", "02", "04", "00", "00", "0000", "02000000", "803f", "7f", "c0", "00",
            "0000", "00",
        ],
        &[127.0, -64.0, 0.0, 0.0],
    );
}

#[test]
fn dense_int4_frame() {
    // Scale 3.5 / 7 = 0.5: integers 7, -2 (from -2.5, to even), 1, -7 and 6; halves of three and two.
    assert_frame(
        &[3.5, -1.25, 0.5, -3.5, 3.0],
        &tiles(&[(5, TensorMode::Sparse)]),
        DENSE_INT4,
        &[
            "474d4652", "02", "05", "00", "00", "0000", "01000000", "003f", "97", "6e", "01",
        ],
        &[3.5, -1.0, 0.5, -3.5, 3.0],
    );
}

#[test]
fn mixed_frames() {
    let (tiles, values) = small_shard();
    for (codec, expected) in [
        (
            sparse(64, ValueBits::One),
            "474d465202010103400004000000c00121f881a003cd3d000040c002f071",
        ),
        (
            sparse(700, ValueBits::Two),
            concat!(
                "474d465202010202bc0204000000f0ff0b00c21f71d9f0fba024f8ff0100820ecd3d000040c0cc1e",
                "4e1e024950b0a8a8ca44550e"
            ),
        ),
        (
            sparse(700, ValueBits::Four),
            concat!(
                "474d465202010402bc0204000000f0ff0b00c21fee01f01b00ff3f0040d001cd3d000040c01418fe",
                "65309812470e4950b0a8a8ca44550e"
            ),
        ),
    ] {
        let mut bytes = Vec::new();
        encode(&values, &tiles, codec, &mut bytes).unwrap();
        assert_eq!(hex(&bytes), expected);
    }
}
