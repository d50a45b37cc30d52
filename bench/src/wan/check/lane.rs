//! The network of a check, and traffic through it: what was sent, and what was heard of it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use serde::Serialize;

use super::super::{Counters, Emulator, Link, PairCounters, Topology, UdpRelay};
use super::{CheckError, quantile};

/// Which kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneKind {
    /// Namespaces and TUN devices.
    Root,
    /// Sockets on loopback.
    Relay,
}

/// Hosts, and sites, of the network.
const SENDER: usize = 0;
const FAR: usize = 1;
const CONTROL: usize = 2;

/// Of every probe.
pub(super) const PROBE_DATAGRAM_BYTES: usize = 100;

/// How long receivers wait for stragglers after the last packet was sent, beyond the delay.
pub(super) const STRAGGLER_WAIT: Duration = Duration::from_millis(300);

/// Asked for the receivers' sockets, so that a receiver that is not scheduled misses nothing.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// A network to measure.
pub struct Lane {
    network: Network,
    sender: UdpSocket,
    far: Target,
    control: Target,
    /// Of the measurement: a straggler of the one before does not count.
    run: AtomicU64,
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
            run: AtomicU64::new(0),
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

    /// Probes the link and the control in turn.
    pub(super) fn probe(
        &self,
        link: &Link,
        count: u64,
        gap: Duration,
    ) -> Result<Probes, CheckError> {
        self.set_link(link)?;
        self.run.fetch_add(1, Ordering::Relaxed);
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
            control_ms: quantile(&control.delays_ms(), 0.5),
        })
    }

    /// Sends at an even pace and counts what arrives; a sender that falls behind catches up.
    pub(super) fn stream(
        &self,
        duration: Duration,
        packets_per_s: f64,
        datagram_bytes: usize,
        wait: Duration,
    ) -> Result<Stream, CheckError> {
        self.run.fetch_add(1, Ordering::Relaxed);
        let before = self.counters();
        let count = (duration.as_secs_f64() * packets_per_s) as u64;
        let done = AtomicBool::new(false);
        let (sent, heard) = std::thread::scope(|scope| {
            let far = scope.spawn(|| self.receive(&self.far, count, wait, &done));
            let sent = (|| {
                let start = Instant::now();
                let mut number = 0;
                let (mut awake, mut pause) = (start, Duration::ZERO);
                while number < count {
                    pause = pause.max(awake.elapsed());
                    awake = Instant::now();
                    let due = (start.elapsed().as_secs_f64() * packets_per_s) as u64 + 1;
                    while number < due.min(count) {
                        self.send(&self.far, number, datagram_bytes)?;
                        number += 1;
                    }
                    std::thread::sleep(Duration::from_micros(500));
                }
                Ok::<_, std::io::Error>(pause)
            })();
            done.store(true, Ordering::Release);
            (sent, join(far))
        });
        let pause = sent?;
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
            pause,
        })
    }

    fn send(&self, target: &Target, number: u64, datagram_bytes: usize) -> std::io::Result<()> {
        let mut datagram = [0; 1500];
        datagram[..8].copy_from_slice(&number.to_le_bytes());
        datagram[8..16].copy_from_slice(&self.run.load(Ordering::Relaxed).to_le_bytes());
        datagram[16..24].copy_from_slice(&self.now_ns().to_le_bytes());
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
        let run = self.run.load(Ordering::Relaxed);
        let mut heard = Heard::default();
        let mut datagram = [0; 2048];
        let mut give_up: Option<Instant> = None;
        while (heard.arrivals.len() as u64) < count {
            match target.receiver.recv(&mut datagram) {
                Ok(bytes) => {
                    let at_ns = self.now_ns();
                    let word = |at: usize| {
                        let mut word = [0; 8];
                        word.copy_from_slice(&datagram[at..at + 8]);
                        u64::from_le_bytes(word)
                    };
                    if bytes >= 24 && word(8) == run {
                        heard.note(Arrival {
                            number: word(0),
                            sent_ns: word(16),
                            at_ns,
                        });
                    }
                }
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

    pub(super) fn set_link(&self, link: &Link) -> Result<(), CheckError> {
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

/// A packet as its receiver saw it; times since the lane began.
pub(super) struct Arrival {
    pub(super) number: u64,
    pub(super) sent_ns: u64,
    pub(super) at_ns: u64,
}

/// Packets in the order in which they arrived.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) arrivals: Vec<Arrival>,
    pub(super) reordered: u64,
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

/// What came of probes.
pub(super) struct Probes {
    pub(super) far_ms: Vec<f64>,
    /// Median.
    pub(super) control_ms: f64,
    /// To the far end and to the control.
    pub(super) missing: u64,
    pub(super) reordered: u64,
}

/// What is needed of [`Counters`] before and after a stream.
struct Stage {
    pair: PairCounters,
    late: u64,
    overrun: u64,
}

/// What came of a stream, in packets.
pub(super) struct Stream {
    pub(super) heard: Heard,
    /// By the sender.
    pub(super) sent: u64,
    /// Into the router, and out of it.
    pub(super) entered: u64,
    pub(super) delivered: u64,
    /// Dropped by the link's queue.
    pub(super) overflowed: u64,
    /// Handed over more than a millisecond late.
    pub(super) late: u64,
    /// Dropped by the sender's device.
    pub(super) overrun: u64,
    /// The longest that the sender did not send.
    pub(super) pause: Duration,
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
