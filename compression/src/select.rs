//! Top-k of one tile without sorting it.
//!
//! The tile is laid out in rows of `columns` elements. At least k elements are as large as the k-th
//! largest column maximum, so that only elements from there on can be among the k largest. With 2k
//! columns and independent elements that leaves about 1.4 k candidates, from which the k-th largest
//! is selected exactly.

use crate::layout::TILE_ELEMENTS;

/// Elements that are passed over at once when none of them is a candidate. Measured: 8 is slower, 32 no faster.
const GROUP_ELEMENTS: usize = 16;

const MAGNITUDE_MASK: u32 = 0x7fff_ffff;

/// Bits of a magnitude: for finite values their order is that of the magnitudes.
#[inline]
pub(crate) const fn magnitude_bits(value: f32) -> u32 {
    value.to_bits() & MAGNITUDE_MASK
}

/// Buffers for [`Selector::top_k`], reused from tile to tile.
pub(crate) struct Selector {
    maxima: Vec<f32>,
    /// Magnitude and index in one number, in index order: larger is chosen first.
    candidates: Vec<u64>,
    ranked: Vec<u64>,
}

impl Selector {
    pub(crate) fn new() -> Self {
        Self {
            maxima: Vec::new(),
            candidates: vec![0; TILE_ELEMENTS],
            ranked: Vec::new(),
        }
    }

    /// Appends to `chosen`, ascending, the indices of the `k` largest magnitudes that are not zero
    /// (rule "selection" of [`crate::codec`]). `values`: one tile, finite; `1 <= k <=
    /// values.len()`.
    pub(crate) fn top_k(&mut self, values: &[f32], k: usize, chosen: &mut Vec<u16>) {
        assert!(
            values.len() <= TILE_ELEMENTS && (1..=values.len()).contains(&k),
            "k {k} of {}",
            values.len()
        );
        // Zeros are no candidates, whatever the bound says.
        let bound = self.lower_bound(values, k).max(1) as i32;

        let mut count = 0;
        let is_candidate = |value: f32| magnitude_bits(value) as i32 >= bound;
        for (number, group) in values.chunks(GROUP_ELEMENTS).enumerate() {
            // Most groups have no candidate; to see that takes a few vector instructions.
            if !group
                .iter()
                .fold(false, |any, &value| any | is_candidate(value))
            {
                continue;
            }
            let first = (number * GROUP_ELEMENTS) as u64;
            for (index, &value) in (first..).zip(group) {
                self.candidates[count] = rank(magnitude_bits(value), index);
                count += usize::from(is_candidate(value));
            }
        }
        let candidates = &self.candidates[..count];

        let least = if count <= k {
            0
        } else {
            self.ranked.clear();
            self.ranked.extend_from_slice(candidates);
            *self.ranked.select_nth_unstable(count - k).1
        };
        chosen.extend(
            candidates
                .iter()
                .filter(|&&candidate| candidate >= least)
                .map(|&candidate| index_of(candidate)),
        );
    }

    /// Magnitude bits that at least `k` elements reach.
    fn lower_bound(&mut self, values: &[f32], k: usize) -> u32 {
        let columns = (2 * k).next_power_of_two().max(32);
        if columns * 2 > values.len() {
            return 0;
        }
        self.maxima.clear();
        self.maxima.resize(columns, 0.0);
        for row in values.chunks(columns) {
            for (maximum, value) in self.maxima.iter_mut().zip(row) {
                let magnitude = value.abs();
                // Not `f32::max`: this form is one instruction per vector, and the values are
                // finite.
                *maximum = if magnitude > *maximum {
                    magnitude
                } else {
                    *maximum
                };
            }
        }
        let (_, kth, _) = self
            .maxima
            .select_nth_unstable_by_key(columns - k, |maximum| maximum.to_bits());
        kth.to_bits()
    }
}

const INDEX_BITS: u32 = TILE_ELEMENTS.trailing_zeros();
const INDEX_MASK: u64 = TILE_ELEMENTS as u64 - 1;

/// Orders by magnitude, equal ones by descending index.
#[inline]
fn rank(magnitude: u32, index: u64) -> u64 {
    u64::from(magnitude) << INDEX_BITS | (INDEX_MASK - index)
}

#[inline]
const fn index_of(rank: u64) -> u16 {
    (INDEX_MASK - (rank & INDEX_MASK)) as u16
}
