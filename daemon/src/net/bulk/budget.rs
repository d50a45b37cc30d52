//! Memory as permits of a semaphore, which hands them out in the order of asking.

use tokio::sync::Semaphore;

/// What one permit stands for.
pub(super) const UNIT_BYTES: u64 = 4096;

/// Permits that `bytes` take: one at least.
pub(super) fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES).max(1)).unwrap_or(u32::MAX)
}

pub(super) fn semaphore(bytes: u64) -> Semaphore {
    let permits = usize::try_from(units(bytes)).unwrap_or(usize::MAX);
    Semaphore::new(permits.min(Semaphore::MAX_PERMITS))
}
