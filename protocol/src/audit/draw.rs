//! Draws from a seed: what is random to whoever does not know the seed yet, and the same for everybody who does.
//!
//! The words of a draw are the endless output of BLAKE3, keyed by the seed under the domain of the draw, read as u64,
//! little-endian. A bounded draw skips words of the last, incomplete span, so that every value is equally likely.

use crate::hash::Hash;

/// Words that follow from a seed, a domain and a body.
pub(super) struct Draw {
    words: blake3::OutputReader,
}

impl Draw {
    /// `domain`: a constant of the source text, one for each purpose: two draws from one seed know nothing of each other.
    pub(super) fn new(domain: &'static str, seed: &Hash, body: &[u8]) -> Draw {
        let key = blake3::derive_key(domain, &seed.0);
        let words = blake3::Hasher::new_keyed(&key).update(body).finalize_xof();
        Draw { words }
    }

    /// The next word.
    pub(super) fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        self.words.fill(&mut word);
        u64::from_le_bytes(word)
    }

    /// A number below `bound`, each as likely as any other; `None` where there is none. Takes two words at most on average.
    pub(super) fn below(&mut self, bound: u64) -> Option<u64> {
        // 2^64 mod bound, in 64 bits: (2^64 - bound) mod bound.
        let excess = bound.wrapping_neg().checked_rem(bound)?;
        loop {
            let word = self.word();
            if word <= u64::MAX - excess {
                return Some(word % bound);
            }
        }
    }

    /// Whether something of a chance in parts per million happens.
    pub(super) fn happens(&mut self, chance_ppm: u32) -> bool {
        self.below(1_000_000)
            .is_some_and(|drawn| drawn < u64::from(chance_ppm))
    }

    /// 32 bytes, as the seed of another draw.
    pub(super) fn seed(&mut self) -> Hash {
        let mut seed = Hash::ZERO;
        self.words.fill(&mut seed.0);
        seed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_below_a_bound_are_equally_likely() {
        let mut draw = Draw::new("gradmesh test draw v1", &Hash([1; 32]), b"");
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[usize::try_from(draw.below(7).unwrap()).unwrap()] += 1;
        }
        // Standard deviation sqrt(70000 * 6/49) = 93; five of them.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 465));
    }

    #[test]
    fn a_bound_just_above_half_of_all_words_skips_nearly_half_of_them() {
        let bound = (1 << 63) + 1;
        let mut draw = Draw::new("gradmesh test draw v1", &Hash([1; 32]), b"");
        assert!((0..1000).all(|_| draw.below(bound).unwrap() < bound));
        assert_eq!(draw.below(1), Some(0));
        assert_eq!(draw.below(0), None);
    }

    #[test]
    fn certain_and_impossible_things_are_no_matter_of_luck() {
        let mut draw = Draw::new("gradmesh test draw v1", &Hash([1; 32]), b"");
        assert!((0..1000).all(|_| draw.happens(1_000_000) && !draw.happens(0)));
    }

    #[test]
    fn domain_seed_and_body_each_change_the_words() {
        let word = |domain, seed, body: &[u8]| Draw::new(domain, &Hash([seed; 32]), body).word();
        let words = [
            word("gradmesh test draw v1", 1, b"a"),
            word("gradmesh test draw v2", 1, b"a"),
            word("gradmesh test draw v1", 2, b"a"),
            word("gradmesh test draw v1", 1, b"b"),
        ];
        assert!((0..4).all(|i| (0..i).all(|j| words[i] != words[j])));
    }
}
