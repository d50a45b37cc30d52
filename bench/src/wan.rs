//! Wide-area networks on one machine, for real and unmodified processes.
//!
//! Sites hold hosts; between every directed pair of sites lies a [`Link`] with delay, jitter, loss and a rate with a finite
//! queue. Two lanes apply the same links with the same code:
//!
//! - [`Emulator`] (root): every host is a network namespace whose only way out is a TUN device; a router in this process
//!   carries every IP packet. It needs no netem: kernels of virtual machines often come without.
//! - [`UdpRelay`] (anyone): sockets on loopback, one pair for every pair of hosts, carry datagrams.
//!
//! # Rules of a link
//!
//! A packet of `n` bytes (IP length; datagram plus 28 in the relay) that enters at `t` passes, in this order:
//!
//! 1. **queue**: the line's backlog, in bytes not yet sent; a packet that does not fit is dropped (drop-tail). An idle line
//!    takes any packet.
//! 2. **rate**: it leaves the line `n * 8 / rate` after whatever was ahead of it. Fractions of a nanosecond are carried
//!    over, so the rate is exact in the long run. No burst passes faster than the rate.
//! 3. **loss**: drawn per packet from a generator seeded by the topology and the pair, after the line: what is lost on the way
//!    has cost its time on the line.
//! 4. **delay and jitter**: delay plus a uniform draw of `-jitter..=jitter`. Order is kept: a packet never arrives before one
//!    that entered the same link earlier, so with many packets in flight jitter shows as delay near its upper end, and as
//!    bunches, not as reordering.
//!
//! A site may also have an uplink and a downlink of its own rate, which all its hosts share and every packet to or from
//! another site passes: `uplink -> link -> downlink`. Inside a site every host sends through a line of its own (`lan`).
//!
//! A site may lie behind a NAT box (`nat.rs`), in the emulator only: what leaves the site has the box's outer address, and
//! what comes in passes if something was sent there before. Holes are opened when a packet leaves the site and looked for
//! when one arrives, so that two sites can punch them as through real boxes.
//!
//! Apart from that nothing here parses more of a packet than its IP destination.

pub mod capacity;
pub mod check;
pub mod cli;
mod counters;
mod emulator;
mod fabric;
mod nat;
mod preset;
mod relay;
mod router;
mod shaper;
mod topology;
mod tun;

pub use counters::{Counters, HostCounters, Lateness, PairCounters, Tally};
pub use emulator::{Emulator, EmulatorError, Host};
pub use fabric::Fabric;
pub use nat::{TCP_IDLE, UDP_IDLE};
pub use preset::{Preset, uniform};
pub use relay::{RelayError, UdpRelay};
pub use shaper::{Line, Shaper, Verdict};
pub use topology::{HOSTS_MAX, Link, MTU, NatKind, Rate, SITES_MAX, Site, Topology, TopologyError};
pub use tun::DEVICE;
