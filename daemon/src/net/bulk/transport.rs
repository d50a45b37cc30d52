//! QUIC settings of the bulk plane: windows, packet sizes, congestion control, time-outs, socket buffers.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::SockRef;

use super::pace::PaceConfig;
use super::{BulkLimits, TlsError};

/// Largest UDP payload that MTU discovery tries. Loopback and jumbo-frame links carry it; where the path carries less,
/// a dozen lost probes find that out, and they do not count as congestion. The minimum stays at QUIC's 1200: a path
/// below a raised minimum hangs.
///
/// quinn hands the kernel up to ten packets at once (GSO), and that must fit in the 65507 bytes of a datagram: larger
/// packets are sent one by one. Measured on loopback, two busy cores, user CPU of both ends for 768 MiB in three runs:
/// 3.0-3.9 s at 1452 bytes, 2.1-2.4 s at 4096, 1.9-2.1 s at 6500, 3.2-3.9 s at 8952.
/// Asking for fewer acknowledgements (one for five or ten packets) brought nothing beyond noise, on loopback and between eight
/// peers on lines of 100 Mbit/s: a busy receiver answers many packets at once anyway.
pub(super) const UDP_PAYLOAD_BYTES_MAX: u16 = 6500;
/// Windows below this are not worth their round trips on any link.
const WINDOW_BYTES_MIN: u64 = 1024 * 1024;
/// Windows above this would let one connection pin too much memory: 4 Gbit/s over 128 ms.
const WINDOW_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What a peer may send over a connection before a fetch of ours uses it: requests, and nothing else worth keeping.
const WINDOW_BYTES_UNUSED: u32 = 64 * 1024;
/// NAT boxes forget a silent flow after 30 s or more, and so does the idle time-out: of two packets one may be lost before.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What is asked of the kernel for either direction of the socket: 2 ms at 16 Gbit/s, or 32 ms at 1 Gbit/s. The kernel
/// grants what `net.core.rmem_max` and `net.core.wmem_max` allow.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// How fast a sender grows and shrinks what it has in flight.
///
/// Measured on two busy cores, in the order paced, BBR, Cubic:
///
/// - 50 MB f32 both ways at once over virtual Ethernet behind token buckets of 100 Mbit/s, not packed
///   (`gradmesh-bench exchange --link veth:100mbit`), seconds from the update to the last frame, best of four rounds: 4.41,
///   5.16, 4.46. Packets alone take 4.22, acknowledgements 0.1.
/// - 200 Mbit/s, 100 ms round trip, 0.1% loss both ways, a queue of one round trip (examples/bulk_throughput),
///   300 MiB, two runs each in turn, MB/s: 21.6 and 22.1, 22.3 and 22.4. Cubic carries a tenth of it.
/// - Loopback, 300 MiB, four runs each in turn, MB/s: 829-992, 675-724, 746-892.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// Takes loss for congestion (RFC 9438).
    Cubic,
    /// Estimates the rate and the round-trip time of the bottleneck; random loss hardly slows it.
    Bbr,
    /// Takes loss for congestion and recovers by one packet a round trip (RFC 9002).
    NewReno,
    /// By the rate that the link delivers at, allowing for busy hosts (`pace.rs`).
    Paced,
}

/// The fattest pipe that one connection should fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipeTarget {
    pub bits_per_s: u64,
    pub round_trip: Duration,
}

impl PipeTarget {
    /// Bytes that one connection may have in flight: rate times round trip, between 1 MiB and 64 MiB. It is the
    /// receive window of a stream, that of a connection which fetches, and the send window.
    #[must_use]
    pub fn window_bytes(&self) -> u32 {
        let bits = u128::from(self.bits_per_s) * self.round_trip.as_millis() / 1000;
        let bytes = u64::try_from(bits / 8).unwrap_or(u64::MAX);
        u32::try_from(bytes.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX))
            .expect("the largest window fits 32 bits")
    }
}

pub(super) fn transport_config(limits: &BulkLimits) -> Result<TransportConfig, TlsError> {
    let window = limits.pipe.window_bytes();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_PAYLOAD_BYTES_MAX);
    let idle = IdleTimeout::try_from(limits.idle_timeout).map_err(TlsError::new)?;
    let congestion: Arc<dyn ControllerFactory + Send + Sync> = match limits.congestion {
        Congestion::Cubic => Arc::new(CubicConfig::default()),
        Congestion::Bbr => Arc::new(BbrConfig::default()),
        Congestion::NewReno => Arc::new(NewRenoConfig::default()),
        Congestion::Paced => Arc::new(PaceConfig::new(Instant::now())),
    };
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.streams_per_connection_max))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(window))
        .receive_window(VarInt::from_u32(WINDOW_BYTES_UNUSED))
        .send_window(u64::from(window))
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(congestion)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE));
    Ok(transport)
}

/// What the kernel granted, in bytes as it counts them: twice what was asked for on Linux, for its own bookkeeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketBuffers {
    pub receive_bytes: usize,
    pub send_bytes: usize,
}

/// Enlarges the buffers of `socket` as far as the kernel allows; a refusal leaves them as they are.
pub(super) fn enlarge_buffers(socket: &UdpSocket) -> std::io::Result<SocketBuffers> {
    let socket = SockRef::from(socket);
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(SocketBuffers {
        receive_bytes: socket.recv_buffer_size()?,
        send_bytes: socket.send_buffer_size()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_rate_times_round_trip_within_its_bounds() {
        let window = |bits_per_s, ms| {
            let round_trip = Duration::from_millis(ms);
            PipeTarget {
                bits_per_s,
                round_trip,
            }
            .window_bytes()
        };
        assert_eq!(window(1_000_000_000, 300), 37_500_000);
        assert_eq!(window(200_000_000, 100), 2_500_000);
        assert_eq!(window(1_000_000, 10), 1024 * 1024);
        assert_eq!(window(u64::MAX, u64::MAX), 64 * 1024 * 1024);
    }

    #[test]
    fn an_unused_connection_is_heard_of_twice_before_it_would_end() {
        assert!(2 * KEEP_ALIVE < BulkLimits::default().idle_timeout);
    }

    #[test]
    fn socket_buffers_are_no_smaller_than_before() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = SockRef::from(&socket).recv_buffer_size().unwrap();
        let granted = enlarge_buffers(&socket).unwrap();
        assert!(granted.receive_bytes >= before, "{granted:?}");
    }
}
