//! Any bytes as a frame: refused, or the one encoding of bounded values.

#![no_main]

use std::sync::LazyLock;

use gradmesh_compression::{
    Codec, DenseFormat, Layout, TensorMode, TensorSpec, TopK, VALUE_ABS_MAX, ValueBits, decode,
    encode,
};
use libfuzzer_sys::fuzz_target;

static LAYOUT: LazyLock<Layout> = LazyLock::new(|| {
    let sparse = |elements| TensorSpec {
        elements,
        mode: TensorMode::Sparse,
    };
    let dense = TensorSpec {
        elements: 3,
        mode: TensorMode::Dense,
    };
    Layout::new(&[sparse(40), dense, sparse(64), sparse(4096)]).expect("a small model")
});

fn codec(selector: u8) -> Codec {
    let sparse = |k, value_bits| Codec::Sparse {
        k: TopK::new(k).expect("k in range"),
        value_bits,
    };
    match selector % 9 {
        0 => sparse(64, ValueBits::One),
        1 => sparse(64, ValueBits::Two),
        2 => sparse(1024, ValueBits::Two),
        3 => Codec::Dense(DenseFormat::F32),
        4 => Codec::Dense(DenseFormat::Bf16),
        5 => Codec::Dense(DenseFormat::Int8),
        6 => Codec::Dense(DenseFormat::Int4),
        7 => sparse(64, ValueBits::Four),
        _ => sparse(1024, ValueBits::Four),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&selector, bytes)) = data.split_first() else {
        return;
    };
    let codec = codec(selector);
    let Ok(frame) = decode(bytes, LAYOUT.tiles(), codec) else {
        return;
    };
    let mut values = vec![0.0; frame.elements()];
    frame.dequantise_into(&mut values);
    assert!(values.iter().all(|value| value.abs() <= VALUE_ABS_MAX));
    let mut again = Vec::new();
    encode(&values, LAYOUT.tiles(), codec, &mut again).expect("bounded values");
    assert_eq!(again, bytes);
});
