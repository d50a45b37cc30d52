//! Addresses as peers say them, and what a peer says of its own connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use gradmesh_protocol::manifest::Link;
use gradmesh_protocol::wire::Contact;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::net::control::is_relayed;

/// IP address and UDP port of a listening address; none of one that leads through a relay.
pub(super) fn udp_address(address: &Multiaddr) -> Option<SocketAddr> {
    if is_relayed(address) {
        return None;
    }
    let (mut ip, mut port) = (None, None);
    for part in address {
        match part {
            Protocol::Ip4(v4) => ip = Some(IpAddr::from(v4)),
            Protocol::Ip6(v6) => ip = Some(IpAddr::from(v6)),
            Protocol::Udp(udp) => port = Some(udp),
            _ => {}
        }
    }
    Some(SocketAddr::new(ip?, port?))
}

/// How this machine is connected, as far as its operator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// What it says of itself until it knows better (`capacity.rs`).
    pub link: Link,
    /// Whether the operator said what it carries. Then it may own shards behind NAT too, over connections that it makes.
    pub capacity_is_set: bool,
    /// Whether it joins the site of a near member.
    pub finds_site: bool,
}

/// Where the bulk plane of a peer behind NAT listens, for those outside: it connects to them, they do not connect to it.
pub(super) const NOT_DIALLED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Where a peer's bulk plane listens: as it says, with the address that it is connected from in place of an unspecified
/// one. `None` if it is connected through a relay and does not say an address of its own.
pub(super) fn bulk_address(
    contact: &Contact,
    connected_from: Option<Multiaddr>,
) -> Option<SocketAddr> {
    let said = contact.bulk;
    if !said.ip().is_unspecified() {
        return Some(said);
    }
    let direct = connected_from.filter(|address| !is_relayed(address))?;
    Some(SocketAddr::new(udp_address(&direct)?.ip(), said.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIRCUIT: &str = "/ip4/192.0.2.1/udp/4700/quic-v1/p2p/12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq/p2p-circuit";

    fn bulk(said: &str, from: &str) -> Option<SocketAddr> {
        let contact = Contact {
            control: Vec::new(),
            bulk: said.parse().unwrap(),
            hotkey: None,
            validates: false,
        };
        bulk_address(&contact, Some(from.parse().unwrap()))
    }

    #[test]
    fn an_unspecified_address_is_the_one_that_the_peer_comes_from_and_never_its_relay() {
        let from = "/ip4/192.0.2.7/udp/4700/quic-v1";
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(bulk("0.0.0.0:4701", from), at("192.0.2.7:4701"));
        assert_eq!(bulk("198.51.100.3:4701", from), at("198.51.100.3:4701"));
        assert_eq!(bulk("0.0.0.0:4701", CIRCUIT), None);
        assert_eq!(udp_address(&CIRCUIT.parse().unwrap()), None);
    }
}
