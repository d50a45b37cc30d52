//! Which endpoint to use next, and when: a pure state machine. Time comes in as the span since the client was made.
//!
//! - The first endpoint of the list that is not pausing is tried; a working one is kept until it fails.
//! - An endpoint that **failed** (no connection, lost, silent) pauses for `backoff_first`, doubling with each failure in
//!   a row up to `backoff_max`. A connection that lived longer than `backoff_max` ends the row.
//! - An endpoint that **refused** to serve (HTTP 403 or 429, close code 1008, JSON-RPC -32004 or -32005) pauses for
//!   `refusal_pause`, doubling up to an hour. Asking it sooner would only prolong the refusal.
//! - An endpoint of **another chain** is never asked again.

use std::time::Duration;

/// Longest pause after refusals.
const REFUSAL_PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Why an endpoint is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection, a lost one, or no answer in time.
    Down,
    /// It told us to stay away.
    Refused,
    /// It serves another chain.
    WrongChain,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Connect to this endpoint.
    Try(usize),
    /// All pause; the first is free at this time.
    WaitUntil(Duration),
    /// All serve another chain.
    Nothing,
}

/// Lengths of pauses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pauses {
    pub(crate) backoff_first: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) refusal: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    free_at: Duration,
    connected_at: Option<Duration>,
    failures: u32,
    refusals: u32,
    excluded: bool,
}

/// The endpoints' standings.
#[derive(Debug)]
pub(crate) struct Rotation {
    standings: Vec<Standing>,
    pauses: Pauses,
}

impl Rotation {
    pub(crate) fn new(endpoints: usize, pauses: Pauses) -> Rotation {
        Rotation {
            standings: vec![Standing::default(); endpoints],
            pauses,
        }
    }

    /// The endpoint to connect to at `now`.
    pub(crate) fn choose(&self, now: Duration) -> Choice {
        let open = || {
            self.standings
                .iter()
                .enumerate()
                .filter(|(_, standing)| !standing.excluded)
        };
        if let Some((endpoint, _)) = open().find(|(_, standing)| standing.free_at <= now) {
            return Choice::Try(endpoint);
        }
        match open().map(|(_, standing)| standing.free_at).min() {
            Some(free_at) => Choice::WaitUntil(free_at),
            None => Choice::Nothing,
        }
    }

    /// Notes that `endpoint` gave a connection.
    pub(crate) fn connected(&mut self, endpoint: usize, now: Duration) {
        self.standings[endpoint].connected_at = Some(now);
    }

    /// Notes that `endpoint` is left.
    pub(crate) fn failed(&mut self, endpoint: usize, failure: Failure, now: Duration) {
        let Pauses {
            backoff_first,
            backoff_max,
            refusal,
        } = self.pauses;
        let standing = &mut self.standings[endpoint];
        let lived = standing
            .connected_at
            .take()
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
        if lived > backoff_max {
            standing.failures = 0;
        }
        if lived > REFUSAL_PAUSE_MAX {
            standing.refusals = 0;
        }
        match failure {
            Failure::Down => {
                standing.free_at = now + doubled(backoff_first, standing.failures, backoff_max);
                standing.failures = standing.failures.saturating_add(1);
            }
            Failure::Refused => {
                standing.free_at = now + doubled(refusal, standing.refusals, REFUSAL_PAUSE_MAX);
                standing.refusals = standing.refusals.saturating_add(1);
            }
            Failure::WrongChain => standing.excluded = true,
        }
    }
}

/// `first * 2^times`, at most `max`.
fn doubled(first: Duration, times: u32, max: Duration) -> Duration {
    first
        .saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX))
        .min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Pauses = Pauses {
        backoff_first: s(1),
        backoff_max: s(30),
        refusal: s(60),
    };

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_free_endpoint_of_the_list_is_used() {
        let mut rotation = Rotation::new(3, PAUSES);
        assert_eq!(rotation.choose(s(0)), Choice::Try(0));
        rotation.failed(0, Failure::Down, s(0));
        assert_eq!(rotation.choose(s(0)), Choice::Try(1));
        rotation.failed(1, Failure::Refused, s(0));
        assert_eq!(rotation.choose(s(0)), Choice::Try(2));
        assert_eq!(rotation.choose(s(1)), Choice::Try(0));
    }

    #[test]
    fn failures_in_a_row_double_the_pause_up_to_its_cap() {
        let mut rotation = Rotation::new(1, PAUSES);
        let mut now = s(0);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            rotation.failed(0, Failure::Down, now);
            assert_eq!(rotation.choose(now), Choice::WaitUntil(now + s(pause)));
            now += s(pause);
            assert_eq!(rotation.choose(now), Choice::Try(0));
        }
    }

    #[test]
    fn a_connection_that_lived_ends_the_row_and_one_that_flaps_does_not() {
        let mut rotation = Rotation::new(1, PAUSES);
        for _ in 0..4 {
            rotation.failed(0, Failure::Down, s(0));
        }
        rotation.connected(0, s(100));
        rotation.failed(0, Failure::Down, s(101));
        assert_eq!(rotation.choose(s(101)), Choice::WaitUntil(s(101 + 16)));
        rotation.connected(0, s(200));
        rotation.failed(0, Failure::Down, s(231));
        assert_eq!(rotation.choose(s(231)), Choice::WaitUntil(s(232)));
    }

    #[test]
    fn a_refusing_endpoint_is_left_alone_longer_each_time_even_if_it_takes_connections() {
        let mut rotation = Rotation::new(1, PAUSES);
        let mut now = s(0);
        for pause in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            rotation.connected(0, now);
            rotation.failed(0, Failure::Refused, now + s(1));
            now += s(1 + pause);
            assert_eq!(rotation.choose(now - s(1)), Choice::WaitUntil(now));
        }
    }

    #[test]
    fn another_chain_is_never_asked_again() {
        let mut rotation = Rotation::new(2, PAUSES);
        rotation.failed(0, Failure::WrongChain, s(0));
        rotation.failed(1, Failure::Down, s(0));
        assert_eq!(rotation.choose(s(0)), Choice::WaitUntil(s(1)));
        rotation.failed(1, Failure::WrongChain, s(1));
        assert_eq!(rotation.choose(s(1_000_000)), Choice::Nothing);
    }
}
