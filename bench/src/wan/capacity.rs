//! How much the router carries on this machine: one TCP stream between two hosts over a link without limits.
//!
//! Sender, receiver and router share the machine's cores, so the throughput is what programs see, not what the router could;
//! packets per second of the router's own processor time say that.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::check::CheckError;
use super::{Emulator, Link, Topology};

const DURATION: Duration = Duration::from_secs(3);

/// Throughput at one MTU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Capacity {
    /// Of both hosts, in bytes.
    pub mtu: u32,
    /// Payload of the stream, 10^6 bits per second.
    pub mbit: f64,
    /// Packets handed over, both directions.
    pub packets_per_s: f64,
    /// Packets handed over per second of processor time of the router's threads.
    pub packets_per_cpu_s: f64,
    /// Dropped by the hosts' devices, because the router did not read in time.
    pub overrun_packets: u64,
}

/// Measures for three seconds.
///
/// # Errors
/// [`CheckError`]; see [`crate::netns::available`].
pub fn measure(mtu: u32) -> Result<Capacity, CheckError> {
    let emulator = Emulator::start(&Topology {
        mtu,
        ..Topology::mesh(2, Link::default())
    })?;
    let [sender, receiver] = emulator.hosts() else {
        unreachable!("a mesh of two has two hosts");
    };
    let listener = receiver
        .namespace
        .inside(|| TcpListener::bind((receiver.address, 0)))??;
    let address = listener.local_addr()?;
    let mut outgoing = sender.namespace.inside(|| TcpStream::connect(address))??;
    let (mut incoming, _) = listener.accept()?;
    let done = AtomicBool::new(false);
    let cpu_before = router_cpu();
    let start = Instant::now();
    let bytes = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let chunk = vec![0; 256 * 1024];
            while !done.load(Ordering::Acquire) {
                outgoing.write_all(&chunk)?;
            }
            outgoing.shutdown(std::net::Shutdown::Write)
        });
        let mut chunk = vec![0; 256 * 1024];
        let mut bytes = 0;
        let heard = loop {
            match incoming.read(&mut chunk) {
                Ok(0) => break Ok(bytes),
                Ok(more) => bytes += more,
                Err(error) => break Err(error),
            }
            if start.elapsed() > DURATION {
                done.store(true, Ordering::Release);
            }
        };
        let written = writer.join().unwrap_or(Ok(()));
        heard.and_then(|bytes| written.map(|()| bytes))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_s = (router_cpu() - cpu_before).as_secs_f64();
    let counters = emulator.counters();
    let packets = counters.lateness.packets as f64;
    Ok(Capacity {
        mtu,
        mbit: bytes as f64 * 8.0 / seconds / 1e6,
        packets_per_s: packets / seconds,
        packets_per_cpu_s: packets / cpu_s.max(1e-9),
        overrun_packets: counters.hosts.iter().map(|host| host.overrun_packets).sum(),
    })
}

/// Processor time of this process's router threads: the first number of `/proc/PID/task/TID/schedstat` (nanoseconds).
fn router_cpu() -> Duration {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return Duration::ZERO;
    };
    let nanos = tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            if !name.starts_with("wan-") {
                return None;
            }
            let schedstat = std::fs::read_to_string(path.join("schedstat")).ok()?;
            schedstat
                .split_ascii_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum();
    Duration::from_nanos(nanos)
}
