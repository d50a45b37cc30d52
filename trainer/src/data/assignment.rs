//! Which windows a peer trains on: a public function, so that anyone can name a peer's batch and audit it.
//!
//! The key is `BLAKE3-derive-key("gradmesh 2026 data assignment", seed)`. The keyed BLAKE3 of `hotkey || step (u32 LE)`
//! is read as an endless stream of u64 LE words. A word `w` below `2^64 - (2^64 mod n)` gives window `w mod n`, larger
//! words are skipped, so that every window is equally likely. A window may come twice in a batch.

/// Domain of the assignment key.
const DOMAIN: &str = "gradmesh 2026 data assignment";

/// Indices in `0..windows` of the `batch` windows that `hotkey` trains on in step `step` of the round of `seed`.
///
/// Empty when `windows` is zero. Cost: about one BLAKE3 block (64 bytes) per 8 windows.
pub fn assignment(
    seed: &[u8],
    hotkey: &[u8; 32],
    step: u32,
    batch: usize,
    windows: u64,
) -> Vec<u64> {
    if windows == 0 {
        return Vec::new();
    }
    let key = blake3::derive_key(DOMAIN, seed);
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(hotkey);
    hasher.update(&step.to_le_bytes());
    let mut stream = hasher.finalize_xof();
    // 2^64 mod n, without 128-bit numbers: (2^64 - n) mod n.
    let excess = windows.wrapping_neg() % windows;
    let accepted_max = u64::MAX - excess;
    std::iter::repeat_with(|| {
        let mut word = [0; 8];
        stream.fill(&mut word);
        u64::from_le_bytes(word)
    })
    .filter(|word| *word <= accepted_max)
    .map(|word| word % windows)
    .take(batch)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignment_is_pinned() {
        // Golden values: another answer would make honest peers fail audits of older builds.
        assert_eq!(
            assignment(b"round seed", &[1; 32], 0, 6, 1000),
            [690, 691, 469, 128, 653, 697]
        );
        assert_eq!(
            assignment(b"round seed", &[1; 32], 1, 3, u64::MAX),
            [
                7280532573789722352,
                5646126410935002942,
                2172380239900906903
            ]
        );
    }

    #[test]
    fn seed_hotkey_and_step_each_change_it() {
        let base = assignment(b"a", &[1; 32], 0, 8, 1 << 40);
        assert_ne!(assignment(b"b", &[1; 32], 0, 8, 1 << 40), base);
        assert_ne!(assignment(b"a", &[2; 32], 0, 8, 1 << 40), base);
        assert_ne!(assignment(b"a", &[1; 32], 1, 8, 1 << 40), base);
        assert_eq!(assignment(b"a", &[1; 32], 0, 4, 1 << 40), base[..4]);
    }

    #[test]
    fn no_windows_give_no_assignment_and_one_gives_itself() {
        assert!(assignment(b"a", &[1; 32], 0, 8, 0).is_empty());
        assert_eq!(assignment(b"a", &[1; 32], 0, 3, 1), [0, 0, 0]);
    }

    #[test]
    fn windows_are_equally_likely() {
        let mut counts = [0u32; 7];
        for step in 0..1000 {
            for index in assignment(b"a", &[1; 32], step, 70, 7) {
                counts[usize::try_from(index).expect("below 7")] += 1;
            }
        }
        // 70,000 draws: 10,000 per window, standard deviation sqrt(70000 * 6/49) = 93; five of them.
        assert!(
            counts.iter().all(|count| count.abs_diff(10_000) < 465),
            "{counts:?}"
        );
    }
}
