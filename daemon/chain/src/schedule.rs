//! When a subnet's epochs run, and which round of the beacon opens weights that are committed now. Pure.
//!
//! A commit made in epoch `e` is revealed in epoch `e + period`, in the first block of that epoch, or of the rest of
//! it, that finds the beacon's round on chain. Too early a round shows the weights to copiers before their time; too late
//! a round comes after the epoch, and the weights are lost. We aim [`MARGIN_BLOCKS`] past the first block of the reveal's
//! epoch, and reckon with the earliest block that can hold the commit: a commit that comes later is opened at once in its
//! own epoch and loses some secrecy, never its weights.

/// Blocks into the reveal's epoch at which the round is due: room for blocks that come faster than their slot, as
/// Bittensor's own software leaves it.
const MARGIN_BLOCKS: u64 = 3;

/// How a runtime keeps its epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Epochs {
    /// By formula (before 2026): block `b` begins an epoch when `(b + netuid + 1) % (tempo + 1) == 0`.
    Formula { netuid: u16, tempo: u16 },
    /// In state: due at `pending_at` if set, or `tempo` blocks after `last`, whichever is first.
    State {
        last: u64,
        tempo: u16,
        pending_at: Option<u64>,
    },
}

impl Epochs {
    /// First block after `block` that begins an epoch.
    fn next(&self, block: u64) -> u64 {
        match *self {
            Epochs::Formula { netuid, tempo } => {
                let length = u64::from(tempo) + 1;
                let offset = u64::from(netuid) + 1;
                (block.saturating_add(offset) / length + 1)
                    .saturating_mul(length)
                    .saturating_sub(offset)
            }
            Epochs::State {
                last,
                tempo,
                pending_at,
            } => {
                let regular = last.saturating_add(u64::from(tempo));
                pending_at
                    .map_or(regular, |pending| pending.min(regular))
                    .max(block.saturating_add(1))
            }
        }
    }

    /// Blocks from one regular epoch to the next, at least one.
    fn length(&self) -> u64 {
        match *self {
            Epochs::Formula { tempo, .. } => u64::from(tempo) + 1,
            Epochs::State { tempo, .. } => u64::from(tempo).max(1),
        }
    }

    /// Block at which a commit sent at `block` should be opened.
    pub(crate) fn reveal_block(&self, block: u64, period_epochs: u64) -> u64 {
        // The commit stands in the block after `block` at the earliest; an epoch that begins there has begun before it.
        let end_of_commit = self.next(block.saturating_add(1));
        let first = end_of_commit.saturating_add(
            period_epochs
                .saturating_sub(1)
                .saturating_mul(self.length()),
        );
        // A short epoch must not be over before the round comes.
        first.saturating_add(MARGIN_BLOCKS.min(self.length() / 4))
    }
}

/// The round of the beacon that is out when the chain reaches `reveal_block`: one before the newest at that time, which
/// leaves the chain a period to store it. But never one that is out when the commit reaches a block, which is taken to
/// be the next but one: what is locked to it would be open from the start, and the chain refuses that.
///
/// `now_ms`: time of block `now_block`; `block_ms`: distance of blocks. `None` if the beacon starts after that time, or
/// has no period.
pub(crate) fn reveal_round(
    reveal_block: u64,
    now_block: u64,
    now_ms: u64,
    block_ms: u64,
    beacon_genesis_unix_s: u64,
    beacon_period_s: u64,
) -> Option<u64> {
    let wait_ms = reveal_block
        .saturating_sub(now_block)
        .saturating_mul(block_ms);
    let genesis_ms = beacon_genesis_unix_s.checked_mul(1000)?;
    let period_ms = beacon_period_s.checked_mul(1000)?;
    let periods_until = |ms: u64| ms.checked_sub(genesis_ms)?.checked_div(period_ms);
    let at_reveal = periods_until(now_ms.checked_add(wait_ms)?)?;
    let included_ms = now_ms.checked_add(block_ms.checked_mul(2)?)?;
    // Round 1 is out at the beacon's genesis, so that after n periods n + 1 rounds are.
    let still_to_come = periods_until(included_ms)?.checked_add(2)?;
    Some(at_reveal.max(still_to_come))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runtime's own rule, block by block.
    fn begins(netuid: u16, tempo: u16, block: u64) -> bool {
        (block + u64::from(netuid) + 1).is_multiple_of(u64::from(tempo) + 1)
    }

    #[test]
    fn the_formula_names_the_blocks_that_the_runtime_rule_names() {
        for (netuid, tempo) in [(1, 10), (3, 360), (7, 1), (0, 0), (500, 99)] {
            let epochs = Epochs::Formula { netuid, tempo };
            for block in 1000..1800 {
                let expected = (block + 1..)
                    .find(|&later| begins(netuid, tempo, later))
                    .unwrap();
                assert_eq!(
                    epochs.next(block),
                    expected,
                    "netuid {netuid} tempo {tempo} block {block}"
                );
            }
        }
    }

    #[test]
    fn epochs_in_state_are_due_after_the_tempo_or_when_the_owner_asked() {
        let epochs = Epochs::State {
            last: 100,
            tempo: 20,
            pending_at: None,
        };
        assert_eq!(epochs.next(105), 120);
        assert_eq!(epochs.next(119), 120);
        assert_eq!(epochs.next(125), 126, "overdue: the next block runs it");
        assert_eq!(
            Epochs::State {
                last: 100,
                tempo: 20,
                pending_at: Some(110)
            }
            .next(105),
            110
        );
        assert_eq!(
            Epochs::State {
                last: 100,
                tempo: 20,
                pending_at: Some(130)
            }
            .next(105),
            120
        );
    }

    #[test]
    fn a_commit_is_opened_in_the_epoch_of_its_reveal_from_every_block() {
        for (netuid, tempo, period) in [(1_u16, 10_u16, 1_u64), (3, 360, 1), (2, 20, 3), (4, 4, 2)]
        {
            let length = u64::from(tempo) + 1;
            let index = |block: u64| (block + u64::from(netuid) + 1) / length;
            let epochs = Epochs::Formula { netuid, tempo };
            for block in 5000..5000 + 2 * length {
                let reveal = epochs.reveal_block(block, period);
                assert_eq!(
                    index(reveal),
                    index(block + 1) + period,
                    "tempo {tempo} block {block}"
                );
                assert!(
                    index(reveal) == index(reveal - MARGIN_BLOCKS.min(length / 4)),
                    "past the epoch's first block"
                );
            }
        }
    }

    #[test]
    fn the_round_is_the_one_before_the_newest_at_the_reveal() {
        // Quicknet: round r is out at genesis + (r - 1) * 3 s. 100 blocks of 12 s from a time 6 s after genesis.
        let genesis = 1_692_803_367;
        let now_ms = (genesis + 6) * 1000;
        let round = reveal_round(1100, 1000, now_ms, 12_000, genesis, 3).unwrap();
        assert_eq!(round, (6 + 1200) / 3);
        assert_eq!(
            genesis + (round - 1) * 3 + 3,
            genesis + 6 + 1200,
            "one period before the reveal"
        );
    }

    #[test]
    fn what_is_locked_is_not_open_when_the_commit_reaches_a_block() {
        // Round 1 came out at 10 s, with the beacon; the commit stands in a block at 10.5 s.
        assert_eq!(reveal_round(10, 5, 10_000, 250, 10, 3), Some(2));
        // Epochs shorter than the beacon's period: round 34 came out at 109 s, the reveal would be at 111 s.
        assert_eq!(reveal_round(12, 8, 110_000, 250, 10, 3), Some(35));
        // 12 s blocks: four rounds come out until the next block.
        assert_eq!(reveal_round(10, 9, 10_000, 12_000, 10, 3), Some(10));
    }

    #[test]
    fn senseless_beacons_give_no_round() {
        assert_eq!(
            reveal_round(10, 5, 1000, 250, 3, 3),
            None,
            "before the beacon's time"
        );
        assert_eq!(reveal_round(10, 5, 10_000, 250, 2, 0), None, "no period");
        assert_eq!(reveal_round(10, 5, u64::MAX, 250, 2, 3), None);
        assert_eq!(reveal_round(10, 5, 10_000, 250, u64::MAX, 3), None);
    }
}
