//! The dev chain's own drand beacon: which rounds the next block has to bring.
//!
//! Rule `catch-up`: a block brings at most [`PULSES_PER_BLOCK_MAX`] pulses, oldest first. After a gap (the node was down,
//! the clock jumped) only the newest [`CATCH_UP_ROUNDS`] due rounds are made up for, and every due round that a commit on
//! chain waits for; the others are skipped, and as rounds ascend on chain, for good.

use std::collections::BTreeSet;

use gradmesh_timelock::{SecretKey, round_at};

use super::executor::Pulse;

/// Pulses in one block. The chain checks each twice at 2 ms, and signing takes 1 ms: 80 ms. More than fall due in a 12 s
/// block of a beacon with a period of 1 s.
const PULSES_PER_BLOCK_MAX: usize = 16;
/// Rounds that are made up for after a gap.
const CATCH_UP_ROUNDS: u64 = 128;
/// The beacon's seed. Public: who reads this can open what is locked on a dev chain ahead of time.
const SEED: [u8; 32] = *b"gradmesh development beacon seed";

/// The beacon.
pub(crate) struct Beacon {
    key: SecretKey,
    genesis_unix_s: u64,
    period_s: u64,
}

impl Beacon {
    /// The beacon whose round 1 is due at `genesis_unix_s`.
    pub(crate) fn new(genesis_unix_s: u64, period_s: u64) -> Beacon {
        Beacon {
            key: SecretKey::from_seed(SEED),
            genesis_unix_s,
            period_s,
        }
    }

    /// The public key, as the chain has it in storage.
    pub(crate) fn public_key() -> [u8; 96] {
        SecretKey::from_seed(SEED).public_key()
    }

    /// The pulses that a block made at `unix_ms` brings when `last` is the newest on chain. Rule `catch-up`.
    pub(crate) fn due(&self, unix_ms: u64, last: u64, awaited: BTreeSet<u64>) -> Vec<Pulse> {
        let newest = round_at(unix_ms / 1_000, self.genesis_unix_s, self.period_s);
        rounds_due(newest, last, awaited)
            .into_iter()
            .map(|round| Pulse {
                round,
                signature: self.key.sign(round),
            })
            .collect()
    }
}

fn rounds_due(newest: u64, last: u64, awaited: BTreeSet<u64>) -> Vec<u64> {
    let from = last
        .saturating_add(1)
        .max(newest.saturating_sub(CATCH_UP_ROUNDS - 1))
        .max(1);
    let older = awaited
        .into_iter()
        .filter(|round| *round > last && *round < from.min(newest.saturating_add(1)));
    older
        .chain(from..=newest)
        .take(PULSES_PER_BLOCK_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_due_round_comes_once_and_none_early() {
        assert_eq!(rounds_due(0, 0, BTreeSet::new()), [0; 0]);
        assert_eq!(rounds_due(1, 0, BTreeSet::new()), [1]);
        assert_eq!(rounds_due(3, 1, BTreeSet::new()), [2, 3]);
        assert_eq!(rounds_due(3, 3, BTreeSet::from([4, 9])), [0; 0]);
    }

    #[test]
    fn after_a_gap_awaited_rounds_come_first_and_the_rest_is_bounded() {
        let mut last = 10;
        let mut brought = Vec::new();
        loop {
            let rounds = rounds_due(100_000, last, BTreeSet::from([5, 400, 90_000, 100_001]));
            let Some(newest) = rounds.last() else { break };
            assert!(rounds.len() <= PULSES_PER_BLOCK_MAX);
            last = *newest;
            brought.extend(rounds);
        }
        let expected: Vec<u64> = [400, 90_000]
            .into_iter()
            .chain(100_000 - CATCH_UP_ROUNDS + 1..=100_000)
            .collect();
        assert_eq!(brought, expected);
    }
}
