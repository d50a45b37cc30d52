//! Is an emulated network what it was asked to be? Measured from outside, with datagrams through real sockets.
//!
//! # How
//!
//! Three sites of one host: a sender, the far end of the link under test, and a control behind a link without any delay or
//! rate, through the same router. A datagram carries its number and when it was sent; sender and receivers are threads of this
//! process, so one monotonic clock serves both ends.
//!
//! | quantity | measured | bar |
//! |---|---|---|
//! | delay | median of 200 probes, one every 2 ms, alternating with as many to the control | 1 ms or 5% |
//! | jitter | interquartile range of 600 probes (for a uniform draw: the jitter), so far apart that order never binds | 15% |
//! | rate | median of 15 slices of the last four fifths of a second and a half, sent half as fast again | 3% |
//! | loss | missing of 20,000 numbered packets | 99.9% Wilson interval |
//! | order | packets that arrive after one sent later, in all of these | none |
//!
//! The jitter bar: the range of 600 draws itself spreads by 1 / sqrt 600, 13.4% at 99.9% (order statistics of the uniform
//! distribution), and the machine adds some of its own.
//!
//! # On a busy machine
//!
//! An error of the emulator is there every time, a delay by the machine is not: so a case has [`ATTEMPTS`] and passes with the
//! first one within its bar. If none is, it is [`Outcome::Outside`] unless *every* attempt shows by itself that the machine, not
//! the emulator, was at fault ([`Outcome::Busy`]): the control, which has no delay, was late by more than half the bar; packets
//! were handed over more than a millisecond late; the device or a socket overran; or the sender did not keep up.

mod lane;

use std::time::Duration;

use serde::Serialize;

pub use self::lane::{Lane, LaneKind};
use self::lane::{PROBE_DATAGRAM_BYTES, Probes, STRAGGLER_WAIT, Stream};
use super::{EmulatorError, Link, Rate, RelayError};
use crate::netns::NetnsError;

/// How often a case is tried.
pub const ATTEMPTS: usize = 5;

const DELAY_PROBES: u64 = 200;
const DELAY_GAP: Duration = Duration::from_millis(2);
const JITTER_PROBES: u64 = 600;
const LOSS_PACKETS: u64 = 20_000;
/// 20,000 packets a second, far below what a router carries.
const LOSS_PACKETS_PER_MS: u64 = 20;
const RATE_DURATION: Duration = Duration::from_millis(1500);
/// Sent of the asked rate: the queue, a tenth of a second, is full after two and then does not run dry.
const RATE_OFFERED: f64 = 1.5;
/// Parts of which the median counts: a receiver that is not scheduled for some milliseconds spoils one or two.
const RATE_SLICES: usize = 15;
/// Longest pause of a sender that leaves half a full queue.
const RATE_PAUSE_MAX: Duration = Duration::from_millis(50);
/// IP and UDP headers, which links count.
const HEADER_BYTES: usize = 28;
/// Datagrams of rate cases: packets of 1500 bytes.
const RATE_DATAGRAM_BYTES: usize = 1500 - HEADER_BYTES;
/// Two-sided 99.9% of a normal distribution.
const Z_999: f64 = 3.290_5;
/// Of packets handed over more than a millisecond late: above, the machine is busy. A guess.
const TOO_LATE_SHARE: f64 = 0.02;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The emulator does not start.
    #[error(transparent)]
    Emulator(#[from] EmulatorError),
    /// The relay does not start.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// A namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A link that cannot be.
    #[error(transparent)]
    Topology(#[from] super::TopologyError),
    /// A socket fails.
    #[error("sockets of the check: {0}")]
    Io(#[from] std::io::Error),
}

/// What is asked of the link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Case {
    /// One way.
    Delay(Duration),
    /// Around a delay of four times as much.
    Jitter(Duration),
    /// In 10^6 bits per second.
    RateMbit(u64),
    /// A probability.
    Loss(f64),
}

/// Every case of the table.
pub const CASES: [Case; 11] = [
    Case::Delay(Duration::ZERO),
    Case::Delay(Duration::from_millis(5)),
    Case::Delay(Duration::from_millis(25)),
    Case::Delay(Duration::from_millis(100)),
    Case::Jitter(Duration::from_millis(2)),
    Case::RateMbit(10),
    Case::RateMbit(100),
    Case::RateMbit(200),
    Case::Loss(0.001),
    Case::Loss(0.01),
    Case::Loss(0.1),
];

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Within its bar.
    Within,
    /// Not within its bar, and the machine is not to blame.
    Outside,
    /// Not within its bar, and the machine was late in every attempt.
    Busy,
}

/// Asked and measured, of the attempt that decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Root or relay.
    pub lane: LaneKind,
    /// `delay_ms`, `jitter_ms`, `rate_mbit` or `loss`.
    pub quantity: &'static str,
    /// In the unit of the quantity.
    pub asked: f64,
    /// In the unit of the quantity.
    pub measured: f64,
    /// What would be within the bar. For loss: the interval around what was measured, to hold what was asked.
    pub bar: [f64; 2],
    /// How it ended.
    pub outcome: Outcome,
    /// How many attempts that took.
    pub attempts: usize,
    /// Packets that passed an earlier one.
    pub reordered: u64,
    /// Median to the control: what the machine itself adds. Delay and jitter only.
    pub control_ms: Option<f64>,
    /// Why the machine is to blame, if it is.
    pub busy: Option<String>,
}

impl Lane {
    /// Measures one case, as often as it takes, [`ATTEMPTS`] at most.
    ///
    /// # Errors
    /// [`CheckError`], not for a figure outside its bar.
    pub fn measure(&self, case: Case) -> Result<Row, CheckError> {
        let mut blameless: Option<Row> = None;
        let mut attempts = 1;
        loop {
            let mut row = match case {
                Case::Delay(delay) => self.delay(delay),
                Case::Jitter(jitter) => self.jitter(jitter),
                Case::RateMbit(mbit) => self.rate(mbit),
                Case::Loss(loss) => self.loss(loss),
            }?;
            row.attempts = attempts;
            if row.outcome == Outcome::Within {
                return Ok(row);
            }
            if row.outcome == Outcome::Outside {
                blameless = Some(row.clone());
            }
            if attempts == ATTEMPTS {
                return Ok(Row {
                    attempts,
                    ..blameless.unwrap_or(row)
                });
            }
            attempts += 1;
        }
    }

    fn delay(&self, delay: Duration) -> Result<Row, CheckError> {
        let asked = millis(delay);
        let slack = (asked * 0.05).max(1.0);
        let probes = self.probe(&Link::delayed(delay), DELAY_PROBES, DELAY_GAP)?;
        let measured = quantile(&probes.far_ms, 0.5);
        let bar = [asked - slack, asked + slack];
        let row = self.row("delay_ms", asked, measured, bar);
        Ok(probes.judge(row, slack))
    }

    fn jitter(&self, jitter: Duration) -> Result<Row, CheckError> {
        let asked = millis(jitter);
        let link = Link::delayed(jitter * 4).with_jitter(jitter);
        // A packet cannot catch up with the one before when it is sent more than the whole range later.
        let probes = self.probe(&link, JITTER_PROBES, jitter * 2 + Duration::from_millis(1))?;
        let measured = quantile(&probes.far_ms, 0.75) - quantile(&probes.far_ms, 0.25);
        let bar = [asked * 0.85, asked * 1.15];
        let row = self.row("jitter_ms", asked, measured, bar);
        Ok(probes.judge(row, asked * 0.15))
    }

    fn rate(&self, mbit: u64) -> Result<Row, CheckError> {
        let asked = mbit as f64;
        let bits_per_s = mbit * 1_000_000;
        // A tenth of a second: a sender that is not scheduled for less does not let the line run dry.
        let queue_bytes = (bits_per_s / 8 / 10).max(64 * 1024);
        self.set_link(&Link {
            rate: Some(Rate {
                bits_per_s,
                queue_bytes: Some(queue_bytes),
            }),
            ..Link::default()
        })?;
        let packets_per_s = asked * 1e6 / 8.0 / 1500.0 * RATE_OFFERED;
        let queue_s = queue_bytes as f64 * 8.0 / bits_per_s as f64;
        let wait = Duration::from_secs_f64(queue_s) + STRAGGLER_WAIT;
        let stream = self.stream(RATE_DURATION, packets_per_s, RATE_DATAGRAM_BYTES, wait)?;
        // Without the time in which the queue fills.
        let arrivals = &stream.heard.arrivals[stream.heard.arrivals.len() / 5..];
        let size = arrivals.len() / RATE_SLICES;
        let rates_mbit: Vec<f64> = (0..RATE_SLICES)
            .filter_map(|slice| {
                let first = arrivals.get(slice * size)?;
                let last = arrivals.get((slice + 1) * size)?;
                let bits = (size * 1500 * 8) as f64;
                Some(bits * 1e3 / (last.at_ns - first.at_ns) as f64)
            })
            .collect();
        let measured = quantile(&rates_mbit, 0.5);
        let row = self.row("rate_mbit", asked, measured, [asked * 0.97, asked * 1.03]);
        let starved = if stream.overflowed == 0 {
            Some("the sender did not fill the queue".to_owned())
        } else if stream.pause > RATE_PAUSE_MAX {
            Some(format!("the sender paused for {:?}", stream.pause))
        } else {
            None
        };
        Ok(stream.judge(row, starved))
    }

    fn loss(&self, loss: f64) -> Result<Row, CheckError> {
        self.set_link(&Link::default().with_loss(loss))?;
        let duration = Duration::from_millis(LOSS_PACKETS / LOSS_PACKETS_PER_MS);
        let packets_per_s = LOSS_PACKETS_PER_MS as f64 * 1e3;
        let stream = self.stream(
            duration,
            packets_per_s,
            PROBE_DATAGRAM_BYTES,
            STRAGGLER_WAIT,
        )?;
        let missing = stream.sent - stream.heard.arrivals.len() as u64;
        let measured = missing as f64 / stream.sent as f64;
        let [low, high] = wilson(missing, stream.sent);
        let mut row = self.row("loss", loss, measured, [low, high]);
        row.outcome = if (low..=high).contains(&loss) {
            Outcome::Within
        } else {
            Outcome::Outside
        };
        Ok(stream.judge(row, None))
    }

    fn row(&self, quantity: &'static str, asked: f64, measured: f64, bar: [f64; 2]) -> Row {
        Row {
            lane: self.kind(),
            quantity,
            asked,
            measured,
            bar,
            outcome: if (bar[0]..=bar[1]).contains(&measured) {
                Outcome::Within
            } else {
                Outcome::Outside
            },
            attempts: 1,
            reordered: 0,
            control_ms: None,
            busy: None,
        }
    }
}

impl Row {
    /// A figure outside its bar is the machine's fault if there is a reason; order has none.
    fn with_excuse(mut self, excuse: Option<String>) -> Self {
        if self.reordered > 0 {
            self.outcome = Outcome::Outside;
        } else if self.outcome == Outcome::Outside && excuse.is_some() {
            self.outcome = Outcome::Busy;
            self.busy = excuse;
        }
        self
    }
}

impl Probes {
    fn judge(&self, mut row: Row, slack_ms: f64) -> Row {
        row.control_ms = Some(self.control_ms);
        row.reordered = self.reordered;
        let excuse = if self.missing > 0 {
            Some(format!("{} probes did not arrive", self.missing))
        } else if self.control_ms > slack_ms / 2.0 {
            Some(format!(
                "the control took {:.3} ms, the bar is {slack_ms:.3} ms",
                self.control_ms
            ))
        } else {
            None
        };
        row.with_excuse(excuse)
    }
}

impl Stream {
    fn judge(&self, mut row: Row, starved: Option<String>) -> Row {
        row.reordered = self.heard.reordered;
        let heard = self.heard.arrivals.len() as u64;
        let excuse = if self.entered < self.sent {
            Some(format!(
                "{} packets never reached the router, {} of them dropped by the device",
                self.sent - self.entered,
                self.overrun
            ))
        } else if heard < self.delivered {
            Some(format!(
                "the receiver's socket dropped {}",
                self.delivered - heard
            ))
        } else if self.late as f64 > TOO_LATE_SHARE * self.delivered as f64 {
            Some(format!("{} packets were handed over late", self.late))
        } else {
            starved
        };
        row.with_excuse(excuse)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The value below which a share of all lies; NaN of none.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// The 99.9% interval of a probability of which `hits` of `count` were seen (Wilson 1927, equation for the score interval).
fn wilson(hits: u64, count: u64) -> [f64; 2] {
    let (count, share) = (count as f64, hits as f64 / count as f64);
    let z2 = Z_999 * Z_999;
    let centre = share + z2 / (2.0 * count);
    let spread = Z_999 * (share * (1.0 - share) / count + z2 / (4.0 * count * count)).sqrt();
    let scale = 1.0 + z2 / count;
    [(centre - spread) / scale, (centre + spread) / scale]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_intervals_are_those_of_the_formula() {
        // 10 of 100, z = 3.2905: centre (0.1 + 0.054137) / 1.108274, spread 3.2905 * sqrt(0.0009 + 0.00027069) / 1.108274.
        let [low, high] = wilson(10, 100);
        assert!((low - 0.037_492).abs() < 1e-5, "{low}");
        assert!((high - 0.240_665).abs() < 1e-5, "{high}");
        assert!(wilson(0, 20_000)[0].abs() < 1e-12);
    }
}
