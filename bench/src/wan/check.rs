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
//! | jitter | standard deviation times sqrt 3 of 250 probes, spaced so that order keeping does not bind | 15% |
//! | rate | bytes after the first packet over the time between first and last, sender 15% above the rate | 3% |
//! | loss | missing of 20,000 numbered packets | 99.9% Wilson interval |
//! | order | packets that arrive after one sent later, in all of these | none |
//!
//! The jitter bar: with 250 draws the estimate itself spreads by 2.8% (one sigma), and the machine adds some of its own.
//!
//! # On a busy machine
//!
//! An error of the emulator is there every time, a delay by the machine is not: so a case has [`ATTEMPTS`] and passes with the
//! first one within its bar. If none is, it is [`Outcome::Outside`] unless *every* attempt shows by itself that the machine, not
//! the emulator, was at fault ([`Outcome::Busy`]): the control, which has no delay, was late by more than half the bar; packets
//! were handed over more than a millisecond late; the device or a socket overran; or the sender did not keep up.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Counters, Emulator, EmulatorError, Link, Rate, RelayError, Topology, UdpRelay};
use crate::netns::NetnsError;

/// How often a case is tried.
pub const ATTEMPTS: usize = 5;

/// Hosts, and sites, of the network.
const SENDER: usize = 0;
const FAR: usize = 1;
const CONTROL: usize = 2;

const DELAY_PROBES: u64 = 200;
const DELAY_GAP: Duration = Duration::from_millis(2);
const JITTER_PROBES: u64 = 250;
const LOSS_PACKETS: u64 = 20_000;
/// 20,000 packets a second, far below what a router carries.
const LOSS_PACKETS_PER_MS: u64 = 20;
const RATE_DURATION: Duration = Duration::from_millis(1500);
/// Sent of the asked rate: enough above it that the queue never runs dry.
const RATE_OFFERED: f64 = 1.15;
/// IP and UDP headers, which links count.
const HEADER_BYTES: usize = 28;
/// Datagrams of rate cases: packets of 1500 bytes.
const RATE_DATAGRAM_BYTES: usize = 1500 - HEADER_BYTES;
const PROBE_DATAGRAM_BYTES: usize = 100;
/// How long receivers wait for stragglers after the last packet was sent, beyond the delay.
const STRAGGLER_WAIT: Duration = Duration::from_millis(300);
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
/// Two-sided 99.9% of a normal distribution.
const Z_999: f64 = 3.290_5;
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

/// Which kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneKind {
    /// Namespaces and TUN devices.
    Root,
    /// Sockets on loopback.
    Relay,
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
    Case::Jitter(Duration::from_millis(5)),
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

/// A network to measure.
pub struct Lane {
    network: Network,
    sender: UdpSocket,
    far: Target,
    control: Target,
    start: Instant,
}

enum Network {
    Root(Emulator),
    Relay(UdpRelay),
}

/// Where the sender sends, and where that arrives.
struct Target {
    address: SocketAddr,
    receiver: UdpSocket,
}

impl Lane {
    /// A network of namespaces.
    ///
    /// # Errors
    /// [`CheckError`]; see [`crate::netns::available`].
    pub fn root() -> Result<Self, CheckError> {
        let emulator = Emulator::start(&topology())?;
        let bind = |host: usize| -> Result<UdpSocket, CheckError> {
            let host = &emulator.hosts()[host];
            Ok(host
                .namespace
                .inside(|| UdpSocket::bind((host.address, 0)))??)
        };
        let target = |host: usize| -> Result<Target, CheckError> {
            let receiver = bind(host)?;
            Ok(Target {
                address: receiver.local_addr()?,
                receiver,
            })
        };
        let (sender, far, control) = (bind(SENDER)?, target(FAR)?, target(CONTROL)?);
        Self::new(Network::Root(emulator), sender, far, control)
    }

    /// A network of sockets.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn relay() -> Result<Self, CheckError> {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let (sender, far, control) = (bind()?, bind()?, bind()?);
        let endpoints = [
            sender.local_addr()?,
            far.local_addr()?,
            control.local_addr()?,
        ];
        let relay = UdpRelay::start(&topology(), &endpoints)?;
        let target = |host, receiver| Target {
            address: relay.address(SENDER, host),
            receiver,
        };
        let (far, control) = (target(FAR, far), target(CONTROL, control));
        Self::new(Network::Relay(relay), sender, far, control)
    }

    fn new(
        network: Network,
        sender: UdpSocket,
        far: Target,
        control: Target,
    ) -> Result<Self, CheckError> {
        use rustix::net::sockopt;
        for target in [&far, &control] {
            let socket = &target.receiver;
            // Root may have more than the system's limit, others what it allows.
            sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER_BYTES)
                .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER_BYTES))
                .map_err(std::io::Error::from)?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        }
        Ok(Self {
            network,
            sender,
            far,
            control,
            start: Instant::now(),
        })
    }

    /// Which kind of network this is.
    #[must_use]
    pub fn kind(&self) -> LaneKind {
        match self.network {
            Network::Root(_) => LaneKind::Root,
            Network::Relay(_) => LaneKind::Relay,
        }
    }

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
        let measured = median(&probes.far_ms);
        let bar = [asked - slack, asked + slack];
        let row = self.row("delay_ms", asked, measured, bar);
        Ok(probes.judge(row, slack))
    }

    fn jitter(&self, jitter: Duration) -> Result<Row, CheckError> {
        let asked = millis(jitter);
        let link = Link::delayed(jitter * 4).with_jitter(jitter);
        // A packet cannot catch up with the one before when it is sent more than the whole range later.
        let probes = self.probe(&link, JITTER_PROBES, jitter * 2 + Duration::from_millis(1))?;
        let count = probes.far_ms.len().max(1) as f64;
        let mean = probes.far_ms.iter().sum::<f64>() / count;
        let variance = probes
            .far_ms
            .iter()
            .map(|delay| (delay - mean).powi(2))
            .sum::<f64>()
            / count;
        let measured = (3.0 * variance).sqrt();
        let bar = [asked * 0.85, asked * 1.15];
        let row = self.row("jitter_ms", asked, measured, bar);
        Ok(probes.judge(row, asked * 0.15))
    }

    /// Probes the link and the control in turn.
    fn probe(&self, link: &Link, count: u64, gap: Duration) -> Result<Probes, CheckError> {
        self.set_link(link)?;
        let done = AtomicBool::new(false);
        let wait = link.delay + link.jitter + STRAGGLER_WAIT;
        let (sent, far, control) = std::thread::scope(|scope| {
            let far = scope.spawn(|| self.receive(&self.far, count, wait, &done));
            let control = scope.spawn(|| self.receive(&self.control, count, wait, &done));
            let sent = (|| {
                let start = Instant::now();
                for number in 0..count {
                    let due = gap * u32::try_from(number).unwrap_or(u32::MAX);
                    sleep_until(start + due);
                    self.send(&self.far, number, PROBE_DATAGRAM_BYTES)?;
                    sleep_until(start + due + gap / 2);
                    self.send(&self.control, number, PROBE_DATAGRAM_BYTES)?;
                }
                Ok::<(), std::io::Error>(())
            })();
            done.store(true, Ordering::Release);
            (sent, join(far), join(control))
        });
        sent?;
        let (far, control) = (far?, control?);
        Ok(Probes {
            missing: count * 2 - far.arrivals.len() as u64 - control.arrivals.len() as u64,
            reordered: far.reordered + control.reordered,
            far_ms: far.delays_ms(),
            control_ms: median(&control.delays_ms()),
        })
    }

    fn rate(&self, mbit: u64) -> Result<Row, CheckError> {
        let asked = mbit as f64;
        let bits_per_s = mbit * 1_000_000;
        // Long enough that a sender that is not scheduled for 100 ms does not let the line run dry.
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
        let arrivals = &stream.heard.arrivals;
        let span_ns = match (arrivals.first(), arrivals.last()) {
            (Some(first), Some(last)) => last.at_ns - first.at_ns,
            (Some(_) | None, _) => 0,
        };
        let bits = arrivals.len().saturating_sub(1) as f64 * 1500.0 * 8.0;
        let measured = bits / (span_ns.max(1) as f64 / 1e9) / 1e6;
        let row = self.row("rate_mbit", asked, measured, [asked * 0.97, asked * 1.03]);
        let starved =
            (stream.overflowed == 0).then(|| "the sender did not fill the queue".to_owned());
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

    /// Sends at an even pace and counts what arrives; a sender that falls behind catches up.
    fn stream(
        &self,
        duration: Duration,
        packets_per_s: f64,
        datagram_bytes: usize,
        wait: Duration,
    ) -> Result<Stream, CheckError> {
        let before = self.counters();
        let count = (duration.as_secs_f64() * packets_per_s) as u64;
        let done = AtomicBool::new(false);
        let (sent, heard) = std::thread::scope(|scope| {
            let far = scope.spawn(|| self.receive(&self.far, count, wait, &done));
            let sent = (|| {
                let start = Instant::now();
                let mut number = 0;
                while number < count {
                    let due = (start.elapsed().as_secs_f64() * packets_per_s) as u64 + 1;
                    while number < due.min(count) {
                        self.send(&self.far, number, datagram_bytes)?;
                        number += 1;
                    }
                    std::thread::sleep(Duration::from_micros(500));
                }
                Ok::<(), std::io::Error>(())
            })();
            done.store(true, Ordering::Release);
            (sent, join(far))
        });
        sent?;
        let after = self.counters();
        let [before, after] = [before, after].map(|counters| Stage {
            pair: counters.pairs[SENDER][FAR],
            late: counters.lateness.above_1ms,
            overrun: counters.hosts[SENDER].overrun_packets,
        });
        Ok(Stream {
            heard: heard?,
            sent: count,
            entered: after.pair.sent.packets - before.pair.sent.packets,
            delivered: after.pair.delivered.packets - before.pair.delivered.packets,
            overflowed: after.pair.overflowed.packets - before.pair.overflowed.packets,
            late: after.late - before.late,
            overrun: after.overrun - before.overrun,
        })
    }

    fn send(&self, target: &Target, number: u64, datagram_bytes: usize) -> std::io::Result<()> {
        let mut datagram = [0; 1500];
        datagram[..8].copy_from_slice(&number.to_le_bytes());
        datagram[8..16].copy_from_slice(&self.now_ns().to_le_bytes());
        self.sender
            .send_to(&datagram[..datagram_bytes], target.address)?;
        Ok(())
    }

    /// Receives `count` packets, or what has come when `wait` has passed since all were sent.
    fn receive(
        &self,
        target: &Target,
        count: u64,
        wait: Duration,
        done: &AtomicBool,
    ) -> std::io::Result<Heard> {
        let mut heard = Heard::default();
        let mut datagram = [0; 2048];
        let mut give_up: Option<Instant> = None;
        while (heard.arrivals.len() as u64) < count {
            match target.receiver.recv(&mut datagram) {
                Ok(bytes) if bytes >= 16 => {
                    let at_ns = self.now_ns();
                    let word = |at: usize| {
                        let mut word = [0; 8];
                        word.copy_from_slice(&datagram[at..at + 8]);
                        u64::from_le_bytes(word)
                    };
                    heard.note(Arrival {
                        number: word(0),
                        sent_ns: word(8),
                        at_ns,
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if give_up.is_none() && done.load(Ordering::Acquire) {
                give_up = Some(Instant::now() + wait);
            }
            if give_up.is_some_and(|time| Instant::now() > time) {
                break;
            }
        }
        Ok(heard)
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

    fn set_link(&self, link: &Link) -> Result<(), CheckError> {
        match &self.network {
            Network::Root(emulator) => emulator.set_link(SENDER, FAR, link)?,
            Network::Relay(relay) => relay.set_link(SENDER, FAR, link)?,
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        match &self.network {
            Network::Root(emulator) => emulator.counters(),
            Network::Relay(relay) => relay.counters(),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
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

struct Arrival {
    number: u64,
    sent_ns: u64,
    at_ns: u64,
}

#[derive(Default)]
struct Heard {
    arrivals: Vec<Arrival>,
    reordered: u64,
}

impl Heard {
    fn note(&mut self, arrival: Arrival) {
        if self
            .arrivals
            .last()
            .is_some_and(|last| last.number >= arrival.number)
        {
            self.reordered += 1;
        }
        self.arrivals.push(arrival);
    }

    fn delays_ms(&self) -> Vec<f64> {
        self.arrivals
            .iter()
            .map(|arrival| (arrival.at_ns - arrival.sent_ns) as f64 / 1e6)
            .collect()
    }
}

struct Probes {
    far_ms: Vec<f64>,
    control_ms: f64,
    missing: u64,
    reordered: u64,
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

/// What is needed of [`Counters`] before and after a stream.
struct Stage {
    pair: super::PairCounters,
    late: u64,
    overrun: u64,
}

struct Stream {
    heard: Heard,
    sent: u64,
    entered: u64,
    delivered: u64,
    overflowed: u64,
    late: u64,
    overrun: u64,
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

fn topology() -> Topology {
    Topology::mesh(3, Link::default())
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn sleep_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The middle one; NaN of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
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
