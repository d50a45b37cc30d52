//! Inputs that the test files share.

#![allow(dead_code, reason = "each test file uses its own part")]

use gradmesh_compression::{
    Codec, DenseFormat, Layout, TensorMode, TensorSpec, Tile, TopK, ValueBits,
};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// In `(0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Box and Muller.
    pub(crate) fn normal(&mut self) -> f32 {
        ((-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }

    pub(crate) fn laplace(&mut self) -> f32 {
        let u = self.unit() - 0.5;
        (-u.signum() * (1.0 - 2.0 * u.abs()).ln()) as f32
    }
}

pub(crate) fn tiles(tensors: &[(usize, TensorMode)]) -> Vec<Tile> {
    let spec = |&(elements, mode): &(usize, TensorMode)| TensorSpec { elements, mode };
    let specs: Vec<_> = tensors.iter().map(spec).collect();
    Layout::new(&specs).unwrap().tiles().to_vec()
}

pub(crate) fn sparse(k: u16, value_bits: ValueBits) -> Codec {
    Codec::Sparse {
        k: TopK::new(k).unwrap(),
        value_bits,
    }
}

pub(crate) const DENSE_F32: Codec = Codec::Dense(DenseFormat::F32);
pub(crate) const DENSE_BF16: Codec = Codec::Dense(DenseFormat::Bf16);
pub(crate) const DENSE_INT8: Codec = Codec::Dense(DenseFormat::Int8);
pub(crate) const DENSE_INT4: Codec = Codec::Dense(DenseFormat::Int4);

/// A small shard with a short tile, a dense tile and a sparse one, and values for it that use all
/// parts of a frame: a short tile with entries, ties, negative zero.
pub(crate) fn small_shard() -> (Vec<Tile>, Vec<f32>) {
    let tiles = tiles(&[
        (40, TensorMode::Sparse),
        (3, TensorMode::Dense),
        (64, TensorMode::Sparse),
        (20, TensorMode::Sparse),
    ]);
    let mut values = vec![0.0; 127];
    values[..3].copy_from_slice(&[1.0, -2.0, 0.5]);
    values[17] = -2.0;
    values[39] = 7.25;
    values[40..43].copy_from_slice(&[0.1, -0.0, -3.0]);
    for (index, value) in values[43..107].iter_mut().enumerate() {
        *value = (index * 37 % 64) as f32 / 32.0 - 1.0;
    }
    values[110] = 1e-3;
    (tiles, values)
}
