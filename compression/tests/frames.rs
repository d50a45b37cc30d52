//! Frames against the reference, their size, and what they do with special values.

mod common;

use common::{DENSE_BF16, DENSE_F32, DENSE_INT4, DENSE_INT8, Rng, small_shard, sparse, tiles};
use gradmesh_compression::dense::BLOCK_ELEMENTS;
use gradmesh_compression::{
    Codec, DenseFormat, EncodeError, Frame, IndexCode, Selection, TILE_ELEMENTS, TensorMode, Tile,
    VALUE_ABS_MAX, ValueBits, decode, decode_shared, encode, frame_bytes_max, reference,
};
use proptest::prelude::*;

fn encoded(values: &[f32], tiles: &[Tile], codec: Codec) -> Vec<u8> {
    let mut out = Vec::new();
    encode(values, tiles, codec, &mut out).unwrap();
    out
}

fn dequantised(frame: &Frame) -> Vec<f32> {
    // Not zeros, to see that every element is written.
    let mut out = vec![f32::NAN; frame.elements()];
    frame.dequantise_into(&mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn codecs() -> impl Strategy<Value = Codec> {
    prop_oneof![
        1 => Just(DENSE_F32),
        1 => Just(DENSE_BF16),
        2 => Just(DENSE_INT8),
        2 => Just(DENSE_INT4),
        6 => (1..=4096_u16, value_bits()).prop_map(|(k, value_bits)| sparse(k, value_bits)),
        9 => (1..=200_u16, value_bits()).prop_map(|(k, value_bits)| sparse(k, value_bits)),
    ]
}

fn value_bits() -> impl Strategy<Value = ValueBits> {
    prop::sample::select(vec![ValueBits::One, ValueBits::Two, ValueBits::Four])
}

fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -1.0_f32..1.0,
        2 => Just(0.0),
        1 => Just(-0.0),
        2 => (-3_i8..=3).prop_map(f32::from),
        1 => (-60_i32..15).prop_map(|exponent| 2.0_f32.powi(exponent)),
        1 => (0..160_u8).prop_map(|step| (-f32::from(step) / 32.0).exp2()),
        1 => (0..0x0100_0000_u32).prop_map(f32::from_bits),
        1 => -VALUE_ABS_MAX..=VALUE_ABS_MAX,
    ]
}

/// Tiles of all lengths with values that are mostly alike, mostly zero, or mixed.
fn shards() -> impl Strategy<Value = (Vec<Tile>, Vec<f32>)> {
    let tensor = (
        prop_oneof![3 => 1..300_usize, 1 => 4000..4200_usize, 1 => Just(TILE_ELEMENTS)],
        prop_oneof![3 => Just(TensorMode::Sparse), 1 => Just(TensorMode::Dense)],
    );
    prop::collection::vec(tensor, 0..4).prop_flat_map(|tensors| {
        let tiles = tiles(&tensors);
        let elements = tensors.iter().map(|tensor| tensor.0).sum::<usize>();
        let values = prop_oneof![
            3 => prop::collection::vec(value(), elements),
            1 => prop::collection::vec((0..20_u8).prop_map(|x| f32::from(x.saturating_sub(18))), elements),
            1 => any::<u64>().prop_map(move |seed| {
                let mut rng = Rng(seed);
                (0..elements).map(|_| rng.normal() * 1e-3).collect()
            }),
            // Few magnitudes, on and near ladders.
            1 => (any::<u64>(), -126..15_i32, 1..40_usize).prop_map(move |(seed, exponent, spacing)| {
                let mut rng = Rng(seed);
                let mut value = || {
                    let below = rng.below(8) * spacing + rng.below(20) / 19;
                    let magnitude = (f64::from(exponent) - below as f64 / 32.0).exp2() as f32;
                    [magnitude, -magnitude, 0.0][rng.below(3)]
                };
                (0..elements).map(|_| value()).collect()
            }),
        ];
        (Just(tiles), values)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoder_writes_the_bytes_of_the_reference((tiles, values) in shards(), codec in codecs()) {
        let frame = encoded(&values, &tiles, codec);
        prop_assert_eq!(&frame, &reference::encode(&values, &tiles, codec).unwrap());
        prop_assert!(frame.len() <= frame_bytes_max(&tiles, codec));
    }

    #[test]
    fn frame_decodes_to_what_was_quantised((tiles, values) in shards(), codec in codecs()) {
        let quantised = Frame::quantise(&values, &tiles, codec).unwrap();
        let bytes = encoded(&values, &tiles, codec);
        let frame = decode(&bytes, &tiles, codec).unwrap();
        prop_assert_eq!(&frame, &quantised);
        let decoded = dequantised(&frame);
        prop_assert_eq!(bits(&decoded), bits(&reference::decode(&bytes, &tiles, codec).unwrap()));
        // One frame per content.
        prop_assert_eq!(encoded(&decoded, &tiles, codec), bytes);
    }

    #[test]
    fn frame_that_shares_its_bytes_is_the_same((tiles, values) in shards(), codec in codecs()) {
        let bytes = encoded(&values, &tiles, codec);
        let shared = decode_shared(&bytes.clone().into(), &tiles, codec).unwrap();
        prop_assert_eq!(&shared, &decode(&bytes, &tiles, codec).unwrap());
        let mut written = Vec::new();
        shared.write(&mut written);
        prop_assert_eq!(written, bytes);
    }

    #[test]
    fn dense_values_stay_within_the_stated_error(seed: u64, exponents in (-130_i32..15, -130_i32..15), elements in 1..300_usize) {
        // Blocks whose values span many magnitudes, ties and subnormal numbers among them.
        let mut rng = Rng(seed);
        let span = exponents.0.min(exponents.1)..=exponents.0.max(exponents.1);
        let values: Vec<f32> = (0..elements)
            .map(|_| {
                let exponent = span.start() + rng.below((span.end() - span.start() + 1) as usize) as i32;
                let magnitude = 2.0_f64.powi(exponent) * (1.0 + rng.unit());
                // Some have few bits, so that quotients are often half way between two integers.
                let magnitude = if rng.below(2) == 0 { magnitude as f32 } else { f32::from_bits((magnitude as f32).to_bits() & 0xfff0_0000) };
                if rng.below(2) == 0 { magnitude } else { -magnitude }
            })
            .collect();
        let tiles = tiles(&[(elements, TensorMode::Dense)]);
        for format in [DenseFormat::F32, DenseFormat::Bf16, DenseFormat::Int8, DenseFormat::Int4] {
            let block = if format == DenseFormat::Bf16 { 1 } else { BLOCK_ELEMENTS };
            let decoded = dequantised(&Frame::quantise(&values, &tiles, Codec::Dense(format)).unwrap());
            for (values, decoded) in values.chunks(block).zip(decoded.chunks(block)) {
                let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                for (value, decoded) in values.iter().zip(decoded) {
                    let error = (f64::from(*value) - f64::from(*decoded)).abs();
                    prop_assert!(error <= format.error_max(largest), "{:?}: {} became {}", format, value, decoded);
                }
            }
        }
    }

    #[test]
    fn seven_levels_stay_within_the_stated_error(seed: u64, exponent in -100_i32..15, span in 0..189_usize, elements in 2..300_usize) {
        let mut rng = Rng(seed);
        // Some crowd at the lower end, as the values of top-k do.
        let power = [1.0, 3.0][rng.below(2)];
        let mut value = || {
            let below = span as f64 * (1.0 - rng.unit().powf(power));
            let magnitude = (f64::from(exponent) - below / 32.0).exp2() as f32;
            if rng.below(2) == 0 { magnitude } else { -magnitude }
        };
        let values: Vec<f32> = (0..elements).map(|_| value()).collect();
        let tiles = tiles(&[(elements, TensorMode::Sparse)]);
        let decoded = dequantised(&Frame::quantise(&values, &tiles, sparse(4096, ValueBits::Four)).unwrap());

        // Both ends may be rounded away from each other.
        let spacing = 2 * (span + 1).div_ceil(12);
        let (grid, ratio) = ((1.0 / 64.0_f64).exp2() - 1.0, (-(spacing as f64) / 32.0).exp2());
        let bound = grid + (1.0 + grid) * (1.0 - ratio) / (1.0 + ratio);
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let error = norm(&mut values.iter().zip(&decoded).map(|(value, decoded)| f64::from(value - decoded)));
        // Levels and steps are rounded to f32.
        prop_assert!(error <= (bound + 1e-6) * norm(&mut values.iter().map(|&value| f64::from(value))));
    }

    #[test]
    fn entries_have_the_sign_of_their_values((tiles, values) in shards(), k in 1..=4096_u16, value_bits in value_bits()) {
        let decoded = dequantised(&Frame::quantise(&values, &tiles, sparse(k, value_bits)).unwrap());
        for (value, decoded) in values.iter().zip(&decoded) {
            prop_assert!(*decoded == 0.0 || value.signum() == decoded.signum());
        }
    }
}

fn random_tiles(distribution: fn(&mut Rng) -> f32, seed: u64) -> (Vec<Tile>, Vec<f32>) {
    let elements = 64 * TILE_ELEMENTS;
    let mut rng = Rng(seed);
    let values = (0..elements)
        .map(|_| distribution(&mut rng) * 1e-3)
        .collect();
    (tiles(&[(elements, TensorMode::Sparse)]), values)
}

#[test]
fn bits_per_entry_stay_within_the_bars() {
    // DESIGN.md, section 5. The expectation of Rice code at r = 5 is 7.526 bits; 4096 gaps spread
    // by less than 0.01.
    for (name, distribution) in [
        ("normal", Rng::normal as fn(&mut Rng) -> f32),
        ("laplace", Rng::laplace),
    ] {
        for (value_bits, bar) in [
            (ValueBits::One, 8.9),
            (ValueBits::Two, 10.1),
            (ValueBits::Four, 11.9),
        ] {
            let (tiles, values) = random_tiles(distribution, 1);
            let mut out = Vec::new();
            let stats = encode(&values, &tiles, sparse(64, value_bits), &mut out).unwrap();
            assert_eq!(stats.entries, 64 * 64);
            assert_eq!(stats.frame_bytes, out.len());
            assert_eq!(stats.index_code, IndexCode::Rice(5));
            let frame_bits = out.len() as f64 * 8.0 / stats.entries as f64;
            let index_bits = stats.index_bits as f64 / stats.entries as f64;
            println!("{name} {value_bits:?}: {frame_bits:.3} bits, index {index_bits:.3}");
            assert!(frame_bits <= bar, "{name} {value_bits:?}: {frame_bits}");
            assert!(index_bits <= 7.55, "{name}: {index_bits}");
        }
    }
}

#[test]
fn two_levels_lose_less_than_one() {
    let (tiles, values) = random_tiles(Rng::laplace, 2);
    let loss = |value_bits| {
        let decoded =
            dequantised(&Frame::quantise(&values, &tiles, sparse(64, value_bits)).unwrap());
        let kept = || decoded.iter().zip(&values).filter(|pair| *pair.0 != 0.0);
        kept().map(|(d, v)| f64::from(d - v).powi(2)).sum::<f64>()
            / kept().map(|(_, v)| f64::from(*v).powi(2)).sum::<f64>()
    };
    // The tail of a Laplace distribution is exponential: one level leaves its variance, the best
    // two leave 0.352 of it (Lloyd and Max: border t = 1.594 with t = (low + high) / 2, levels
    // 0.594 and 2.594 above the tail's start).
    assert!(loss(ValueBits::Two) < 0.5 * loss(ValueBits::One));
}

/// Sums over `peers` of what each sends of its own noisy view of the same heavy-tailed vector: the 64 largest of each tile,
/// as sign and level.
fn sums_of_frames(peers: usize, seed: u64) -> (Vec<Tile>, Vec<f32>) {
    let (tiles, common) = random_tiles(Rng::laplace, seed);
    let codec = sparse(64, ValueBits::One);
    let mut rng = Rng(!seed);
    let mut sum = vec![0.0; common.len()];
    for _ in 0..peers {
        let noisy = common.iter().map(|value| value + 1e-3 * rng.laplace());
        let values: Vec<f32> = noisy.collect();
        let weight = (0.5 + rng.unit() as f32) / peers as f32;
        let sent = dequantised(&Frame::quantise(&values, &tiles, codec).unwrap());
        for (sum, sent) in sum.iter_mut().zip(sent) {
            *sum += weight * sent;
        }
    }
    (tiles, sum)
}

#[test]
fn seven_levels_lose_an_eighth_of_what_two_do_on_sums() {
    for peers in [8, 32] {
        let (tiles, sums) = sums_of_frames(peers, 3);
        for k in [256, 512] {
            let loss = |value_bits| {
                let mut out = Vec::new();
                let stats = encode(&sums, &tiles, sparse(k, value_bits), &mut out).unwrap();
                let frame = decode(&out, &tiles, sparse(k, value_bits)).unwrap();
                let kept = || {
                    dequantised(&frame)
                        .into_iter()
                        .zip(&sums)
                        .filter(|pair| pair.0 != 0.0)
                };
                let loss = kept().map(|(d, v)| f64::from(d - v).powi(2)).sum::<f64>()
                    / kept().map(|(_, v)| f64::from(*v).powi(2)).sum::<f64>();
                let bits = 8.0 * out.len() as f64 / stats.entries as f64;
                println!("{peers} peers, k {k}, {value_bits:?}: {loss:.4}, {bits:.2} bits");
                loss
            };
            assert!(8.0 * loss(ValueBits::Four) < loss(ValueBits::Two));
        }
    }
}

#[test]
fn outlier_keeps_its_value_and_leaves_the_level_to_the_others() {
    let tiles = tiles(&[(64, TensorMode::Sparse)]);
    let mut values: Vec<f32> = (0..64_i8).map(|index| f32::from(index % 3 + 1)).collect();
    values[63] = -1000.0;
    let decoded =
        dequantised(&Frame::quantise(&values, &tiles, sparse(4096, ValueBits::One)).unwrap());
    // 21 times each of 1, 2 and 3.
    assert_eq!(decoded[..63], [2.0; 63]);
    // Half a step, and the rounding of a border and of a value to f32.
    let ratio = f64::from(decoded[63]) / -1000.0;
    assert!(ratio.log2().abs() <= 1.0 / 64.0 + 1e-6, "{}", decoded[63]);
}

#[test]
fn tiles_of_all_scales_share_a_frame() {
    let exponents = [15, -126, -10, -70];
    let tiles = tiles(&[(64, TensorMode::Sparse); 4]);
    let values = exponents.map(|exponent| [2.0_f32.powi(exponent); 64]);
    let values = values.as_flattened();
    for value_bits in [ValueBits::One, ValueBits::Two] {
        let codec = sparse(4096, value_bits);
        let frame = decode(&encoded(values, &tiles, codec), &tiles, codec).unwrap();
        assert_eq!(dequantised(&frame), values);
    }
}

#[test]
fn full_tile_has_exactly_k_entries() {
    let (tiles, values) = random_tiles(Rng::normal, 3);
    for k in [1, 31, 32, 64, 128, 255, 1024, 1025, 4095, 4096] {
        let frame = Frame::quantise(&values, &tiles, sparse(k, ValueBits::One)).unwrap();
        assert_eq!(frame.entries(), 64 * usize::from(k));
    }
}

#[test]
fn shorter_tile_has_its_share_of_k_rounded_up() {
    for (elements, k, expected) in [
        (1, 1, 1),
        (1, 4096, 1),
        (64, 64, 1),
        (65, 64, 2),
        (4095, 64, 64),
        (2048, 64, 32),
        (10, 4096, 10),
        (4096 + 2048, 64, 96),
    ] {
        let tiles = tiles(&[(elements, TensorMode::Sparse)]);
        let frame = Frame::quantise(&vec![1.0; elements], &tiles, sparse(k, ValueBits::Two));
        assert_eq!(
            frame.unwrap().entries(),
            expected,
            "{elements} elements, k {k}"
        );
    }
}

#[test]
fn ties_go_to_the_lower_index() {
    let tiles = tiles(&[(TILE_ELEMENTS, TensorMode::Sparse)]);
    let mut values: Vec<f32> = (0..TILE_ELEMENTS)
        .map(|index| if index % 2 == 0 { 0.5 } else { -0.5 })
        .collect();
    values[4000] = -2.0;
    let decoded =
        dequantised(&Frame::quantise(&values, &tiles, sparse(64, ValueBits::Two)).unwrap());
    let entries: Vec<_> = (0..TILE_ELEMENTS)
        .filter(|&index| decoded[index] != 0.0)
        .collect();
    let expected: Vec<_> = (0..63).chain([4000]).collect();
    assert_eq!(entries, expected);
    assert_eq!((decoded[0], decoded[1], decoded[4000]), (0.5, -0.5, -2.0));
}

#[test]
fn zeros_are_never_entries() {
    let tiles = tiles(&[(2 * TILE_ELEMENTS, TensorMode::Sparse)]);
    let mut values = vec![0.0; 2 * TILE_ELEMENTS];
    values[TILE_ELEMENTS + 5] = -2.0;
    values[TILE_ELEMENTS + 9] = -0.0;
    for value_bits in [ValueBits::One, ValueBits::Two, ValueBits::Four] {
        let codec = sparse(64, value_bits);
        let frame = decode(&encoded(&values, &tiles, codec), &tiles, codec).unwrap();
        assert_eq!(frame.entries(), 1);
        let decoded = dequantised(&frame);
        assert_eq!(decoded[TILE_ELEMENTS + 5], -2.0);
        assert_eq!(decoded.iter().filter(|value| **value != 0.0).count(), 1);
    }
}

#[test]
fn values_below_the_smallest_level_are_left_out() {
    let tiles = tiles(&[(64, TensorMode::Sparse)]);
    let codec = sparse(4096, ValueBits::Two);
    let mut values = vec![f32::from_bits(1); 64];
    assert_eq!(
        Frame::quantise(&values, &tiles, codec).unwrap().entries(),
        0
    );
    // The low group rounds to zero and goes, the high one stays.
    values[3] = 1.0;
    let frame = decode(&encoded(&values, &tiles, codec), &tiles, codec).unwrap();
    assert_eq!(frame.entries(), 1);
    assert_eq!(dequantised(&frame)[3], 1.0);
}

#[test]
fn largest_value_survives_every_codec() {
    let tiles = tiles(&[(8, TensorMode::Sparse), (8, TensorMode::Dense)]);
    let values = vec![-VALUE_ABS_MAX; 16];
    for codec in [
        sparse(4096, ValueBits::One),
        sparse(4096, ValueBits::Two),
        sparse(4096, ValueBits::Four),
        DENSE_F32,
        DENSE_BF16,
    ] {
        let frame = decode(&encoded(&values, &tiles, codec), &tiles, codec).unwrap();
        assert_eq!(dequantised(&frame), values);
    }
    // Q times the scale, which is 2^15 / Q rounded to 8 bits: 127 * 258 and 7 * 4672.
    for (codec, largest) in [(DENSE_INT8, 32766.0), (DENSE_INT4, 32704.0)] {
        let frame = decode(&encoded(&values, &tiles, codec), &tiles, codec).unwrap();
        assert_eq!(dequantised(&frame), [-largest; 16]);
    }
}

#[test]
fn selections_by_the_rule_make_the_frame_of_the_values() {
    let (tiles, values) = small_shard();
    let codec = sparse(700, ValueBits::Two);
    let frame = Frame::quantise(&values, &tiles, codec).unwrap();
    // By sorting: k' = ceil(700 n / 4096) of each sparse tile.
    let chosen = |range: std::ops::Range<usize>, k: usize| {
        let tile = &values[range];
        let mut order: Vec<u16> = (0..tile.len() as u16)
            .filter(|&index| tile[usize::from(index)] != 0.0)
            .collect();
        order.sort_by(|&a, &b| {
            let magnitude = |index: u16| tile[usize::from(index)].abs();
            magnitude(b).total_cmp(&magnitude(a))
        });
        order.truncate(k);
        order.sort_unstable();
        let values: Vec<f32> = order
            .iter()
            .map(|&index| tile[usize::from(index)])
            .collect();
        (order, values)
    };
    let parts = [chosen(0..40, 7), chosen(43..107, 11), chosen(107..127, 4)];
    let sparse_part = |part: usize| Selection::Sparse {
        indices: &parts[part].0,
        values: &parts[part].1,
    };
    let selections = [
        sparse_part(0),
        Selection::Dense(&values[40..43]),
        sparse_part(1),
        sparse_part(2),
    ];
    let made = Frame::from_selections(selections.into_iter(), &tiles, codec).unwrap();
    assert_eq!(made, frame);

    let with = |tile: usize, selection| {
        let mut selections = selections;
        selections[tile] = selection;
        Frame::from_selections(selections.into_iter(), &tiles, codec).unwrap_err()
    };
    let of = |indices, values| Selection::Sparse { indices, values };
    for bad in [
        of(&[3, 3], &[1.0, 1.0]),                 // twice
        of(&[3, 2], &[1.0, 1.0]),                 // descending
        of(&[40], &[1.0]),                        // outside
        of(&[3], &[1.0, 1.0]),                    // a value too many
        of(&[3], &[0.0]),                         // zero
        of(&[0, 1, 2, 3, 4, 5, 6, 7], &[1.0; 8]), // more than k'
        Selection::Dense(&[1.0; 40]),
    ] {
        assert_eq!(with(0, bad), EncodeError::Selection { tile: 0 }, "{bad:?}");
    }
    for bad in [Selection::Dense(&[1.0; 2]), of(&[0], &[1.0])] {
        assert_eq!(with(1, bad), EncodeError::Selection { tile: 1 });
    }
    assert!(matches!(
        with(2, of(&[4, 9], &[1.0, f32::NAN])),
        EncodeError::ValueOutOfRange { element: 52, .. }
    ));
    assert_eq!(
        Frame::from_selections(selections[1..].iter().copied(), &tiles, codec),
        Err(EncodeError::SelectionCount {
            found: 3,
            expected: 4
        })
    );
}

#[test]
fn values_out_of_range_are_refused_and_leave_no_bytes() {
    let (tiles, values) = small_shard();
    let too_large = f32::from_bits(VALUE_ABS_MAX.to_bits() + 1);
    for codec in [
        sparse(64, ValueBits::One),
        DENSE_F32,
        DENSE_BF16,
        DENSE_INT8,
        DENSE_INT4,
    ] {
        for bad in [
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            too_large,
            -too_large,
        ] {
            for element in [0, 41, 126] {
                let mut values = values.clone();
                values[element] = bad;
                let mut out = vec![7];
                let error = encode(&values, &tiles, codec, &mut out).unwrap_err();
                assert!(
                    matches!(error, EncodeError::ValueOutOfRange { element: e, .. } if e == element),
                    "{error}"
                );
                assert_eq!(out, [7]);
            }
        }
        let mut out = Vec::new();
        assert_eq!(
            encode(&values[1..], &tiles, codec, &mut out),
            Err(EncodeError::LengthMismatch {
                values: 126,
                expected: 127
            })
        );
    }
}

#[test]
fn dense_f32_keeps_every_bit_but_the_sign_of_zero() {
    let (tiles, values) = small_shard();
    let frame = decode(&encoded(&values, &tiles, DENSE_F32), &tiles, DENSE_F32).unwrap();
    let expected: Vec<f32> = values.iter().map(|value| value + 0.0).collect();
    assert_eq!(bits(&dequantised(&frame)), bits(&expected));
}

#[test]
fn stated_maximum_is_close_to_what_frames_take() {
    let (tiles, values) = random_tiles(Rng::normal, 4);
    for value_bits in [ValueBits::One, ValueBits::Two, ValueBits::Four] {
        let codec = sparse(64, value_bits);
        let usual = encoded(&values, &tiles, codec).len();
        let max = frame_bytes_max(&tiles, codec);
        assert!(usual <= max && max * 20 <= usual * 23, "{usual} of {max}");
    }
    for codec in [DENSE_F32, DENSE_INT8, DENSE_INT4] {
        let all = encoded(&values, &tiles, codec).len();
        assert_eq!(frame_bytes_max(&tiles, codec), all);
    }
    // Gaps of 0 and 126 in turns, which no r suits: 480 of at most 510 bits.
    let mut values = vec![0.0; TILE_ELEMENTS];
    for pair in 0..32 {
        values[pair * 128] = 1.0;
        values[pair * 128 + 127] = 1.0;
    }
    let codec = sparse(64, ValueBits::One);
    let frame = encoded(&values, &tiles[..1], codec);
    // Header, levels, signs, indices. Levels: 17 bits and 6 for the place, and 5 for what the peak adds; at most 17 for
    // each of both, and 29 for the count of a short tile.
    assert_eq!(frame.len(), 14 + 4 + 8 + 60);
    assert_eq!(frame_bytes_max(&tiles[..1], codec), 14 + 9 + 8 + 64);
}
