//! Time as the node sees it: milliseconds since an origin that its driver chose.
//!
//! The node compares and subtracts instants of its own clock only; no instant travels between peers.

use std::ops::{Add, Sub};
use std::time::Duration;

/// An instant of the local monotonic clock, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, duration: Duration) -> Time {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(millis))
    }
}

impl Sub for Time {
    type Output = Duration;

    /// Zero if `earlier` is later than `self`.
    fn sub(self, earlier: Time) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
