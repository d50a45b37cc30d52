//! Datagrams between processes on loopback, over the same links (anyone, without root).
//!
//! For every host `a` and every other host `b` the relay has a socket that is `b` as `a` sees it: `a` sends to it what is for
//! `b`, and receives from it what `b` sent. So processes need nothing but another address for each other.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};

use super::counters::Counters;
use super::fabric::Fabric;
use super::router::{Flight, Received, Router, Wire};
use super::topology::{Link, Topology, TopologyError};

/// Most hosts of a relay: sockets grow with the square, and 1024 descriptors are a usual limit.
const HOSTS_MAX: usize = 24;

/// What links count on top of a datagram: its IPv4 and UDP headers.
const HEADER_BYTES: usize = 28;

/// Largest datagram over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Asked for every socket, so that a burst waits for the relay; the system may give less.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The topology is at fault.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Not one endpoint per host.
    #[error("{endpoints} endpoints for {hosts} hosts")]
    Endpoints {
        /// Given.
        endpoints: usize,
        /// Of the topology.
        hosts: usize,
    },
    /// More hosts than there are sockets for.
    #[error("{hosts} hosts, a relay carries at most {HOSTS_MAX}")]
    TooMany {
        /// Of the topology.
        hosts: usize,
    },
    /// A site behind a NAT box: hosts on loopback have no addresses of their own.
    #[error("site {site:?} has a NAT box, which takes network namespaces")]
    Nat {
        /// The first such site.
        site: String,
    },
    /// An endpoint that is not on IPv4 loopback.
    #[error("{endpoint} is not an address of 127.0.0.0/8")]
    NotLoopback {
        /// The endpoint.
        endpoint: SocketAddr,
    },
    /// Sockets or threads run out.
    #[error("start the relay: {0}")]
    Io(#[from] io::Error),
}

/// A running relay; dropping it stops it.
pub struct UdpRelay {
    /// Keeps the threads that use the wire.
    _router: Router,
    wire: Arc<RelayWire>,
    fabric: Arc<Fabric>,
}

impl UdpRelay {
    /// Relays between `endpoints`, one per host of the topology in its order: the address from which the host sends and at
    /// which it receives. The topology's MTU does not matter.
    ///
    /// # Errors
    /// [`RelayError`].
    pub fn start(topology: &Topology, endpoints: &[SocketAddr]) -> Result<Self, RelayError> {
        topology.validate()?;
        let hosts = topology.host_sites().len();
        if endpoints.len() != hosts {
            return Err(RelayError::Endpoints {
                endpoints: endpoints.len(),
                hosts,
            });
        }
        if hosts > HOSTS_MAX {
            return Err(RelayError::TooMany { hosts });
        }
        if let Some(endpoint) = endpoints
            .iter()
            .find(|endpoint| !(endpoint.is_ipv4() && endpoint.ip().is_loopback()))
        {
            return Err(RelayError::NotLoopback {
                endpoint: *endpoint,
            });
        }
        if let Some(site) = topology.sites.iter().find(|site| site.nat.is_some()) {
            let site = site.name.clone();
            return Err(RelayError::Nat { site });
        }
        let wire = Arc::new(RelayWire::new(endpoints)?);
        let fabric = Arc::new(Fabric::new(topology));
        Ok(Self {
            _router: Router::start(Arc::clone(&wire), Arc::clone(&fabric))?,
            wire,
            fabric,
        })
    }

    /// Where host `viewer` reaches host `seen`, and what it sees as the source of what that host sends.
    ///
    /// # Panics
    /// If the hosts are the same, or not there.
    #[must_use]
    pub fn address(&self, viewer: usize, seen: usize) -> SocketAddr {
        self.wire.seat(viewer, seen).address
    }

    /// Changes the link from one site to another, by their numbers, while datagrams pass.
    ///
    /// # Errors
    /// If the link is not valid.
    ///
    /// # Panics
    /// If there is no such pair of sites.
    pub fn set_link(&self, from: usize, to: usize, link: &Link) -> Result<(), TopologyError> {
        link.validate()?;
        self.fabric.set_link(from, to, link);
        Ok(())
    }

    /// What has passed so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.fabric.counters()
    }
}

/// One host as another one sees it.
pub(super) struct Seat {
    viewer: usize,
    seen: usize,
    pub(super) address: SocketAddr,
    socket: UdpSocket,
}

/// All seats, by viewer, then by whom it sees.
pub(super) struct RelayWire {
    seats: Vec<Seat>,
    endpoints: Vec<SocketAddr>,
}

impl RelayWire {
    pub(super) fn new(endpoints: &[SocketAddr]) -> io::Result<Self> {
        let hosts = endpoints.len();
        let mut seats = Vec::with_capacity(hosts * hosts.saturating_sub(1));
        for viewer in 0..hosts {
            for seen in (0..hosts).filter(|seen| *seen != viewer) {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                socket.set_nonblocking(true)?;
                // Root may have more than the system's limit, others what it allows.
                set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)
                    .or_else(|_| set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES))
                    .map_err(io::Error::from)?;
                seats.push(Seat {
                    viewer,
                    seen,
                    address: socket.local_addr()?,
                    socket,
                });
            }
        }
        Ok(Self {
            seats,
            endpoints: endpoints.to_vec(),
        })
    }

    pub(super) fn seat(&self, viewer: usize, seen: usize) -> &Seat {
        assert_ne!(viewer, seen, "host {viewer} as it sees itself");
        let others = self.endpoints.len() - 1;
        &self.seats[viewer * others + seen - usize::from(seen > viewer)]
    }
}

impl Wire for RelayWire {
    type Scratch = Box<[u8]>;

    // One, so that an error is told of the datagram that it concerns.
    const TOGETHER_MAX: usize = 1;

    fn scratch(&self) -> Self::Scratch {
        vec![0; DATAGRAM_BYTES_MAX].into()
    }

    fn ports(&self) -> Vec<BorrowedFd<'_>> {
        self.seats.iter().map(|seat| seat.socket.as_fd()).collect()
    }

    fn receive(
        &self,
        port: usize,
        scratch: &mut Self::Scratch,
        take: &mut dyn FnMut(Received<'_>),
    ) -> io::Result<()> {
        let seat = &self.seats[port];
        let (bytes, source) = seat.socket.recv_from(scratch)?;
        take(if source == self.endpoints[seat.viewer] {
            Received::Packet {
                from: seat.viewer,
                to: seat.seen,
                packet: &scratch[..bytes],
            }
        } else {
            Received::Unroutable {
                from: seat.viewer,
                bytes,
            }
        });
        Ok(())
    }

    fn deliver(&self, to: usize, packets: &[Flight], _: &mut Self::Scratch) -> io::Result<()> {
        for flight in packets {
            let socket = &self.seat(to, flight.from()).socket;
            socket.send_to(flight.packet(), self.endpoints[to])?;
        }
        Ok(())
    }

    fn header_bytes(&self) -> usize {
        HEADER_BYTES
    }
}
