//! When a block is made, by the chain's own clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// How blocks come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// One every `block_ms`, stamped by the wall clock.
    Interval,
    /// Only on request, stamped genesis time plus `block_ms` for each block: the same calls give the same chain.
    Manual,
}

/// The chain's clock. Never goes back from one block to the next.
#[derive(Debug)]
pub(crate) struct Clock {
    sealing: Sealing,
    block_ms: u64,
    /// Time of block 0, which has no stamp of its own.
    genesis_ms: u64,
    /// What the chain is ahead of the wall clock, because blocks were asked for in advance.
    ahead_ms: u64,
}

impl Clock {
    pub(crate) fn new(sealing: Sealing, block_ms: u64, genesis_ms: u64) -> Clock {
        Clock {
            sealing,
            block_ms,
            genesis_ms,
            ahead_ms: 0,
        }
    }

    /// Stamp of a block that is made because time has passed since its parent's.
    pub(crate) fn now(&mut self, parent_ms: u64, wall_ms: u64) -> u64 {
        let parent_ms = parent_ms.max(self.genesis_ms);
        match self.sealing {
            Sealing::Interval => {
                // A parent from the future: the chain was ahead of the clock before the node was started again.
                self.ahead_ms = self.ahead_ms.max(parent_ms.saturating_sub(wall_ms));
                wall_ms
                    .saturating_add(self.ahead_ms)
                    .max(parent_ms.saturating_add(1))
            }
            Sealing::Manual => parent_ms.saturating_add(self.block_ms),
        }
    }

    /// Stamp of a block that is made at once, as if its time had come.
    pub(crate) fn advance(&mut self, parent_ms: u64, wall_ms: u64) -> u64 {
        let stamp = parent_ms.max(self.genesis_ms).saturating_add(self.block_ms);
        self.ahead_ms = self.ahead_ms.max(stamp.saturating_sub(wall_ms));
        stamp
    }
}

/// Milliseconds since 1970 by the wall clock.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_blocks_are_block_time_apart_whatever_the_wall_says() {
        let mut clock = Clock::new(Sealing::Manual, 12_000, 1_000);
        assert_eq!(clock.now(0, 77), 13_000);
        assert_eq!(clock.advance(13_000, 99_000_000), 25_000);
    }

    #[test]
    fn time_goes_on_from_where_advance_left_it() {
        let mut clock = Clock::new(Sealing::Interval, 1_000, 5_000);
        assert_eq!(clock.now(0, 6_003), 6_003);
        assert_eq!(clock.advance(6_003, 6_010), 7_003);
        assert_eq!(clock.advance(7_003, 6_010), 8_003);
        assert_eq!(
            clock.now(8_003, 7_010),
            9_003,
            "a second later on both clocks"
        );
        assert_eq!(
            clock.now(9_003, 6_000),
            9_004,
            "a wall clock set back does not set the chain back"
        );
    }
}
