//! Addresses as peers say them.

use std::net::{IpAddr, SocketAddr};

use gradmesh_protocol::wire::Contact;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// IP address and UDP port of a listening address.
pub(super) fn udp_address(address: &Multiaddr) -> Option<SocketAddr> {
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

/// Where a peer's bulk plane listens: as it says, with the address that it is connected from in place of an unspecified
/// one.
pub(super) fn bulk_address(
    contact: &Contact,
    connected_from: Option<Multiaddr>,
) -> Option<SocketAddr> {
    let said = contact.bulk;
    if !said.ip().is_unspecified() {
        return Some(said);
    }
    let ip = connected_from?.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::from(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::from(ip)),
        _ => None,
    })?;
    Some(SocketAddr::new(ip, said.port()))
}
