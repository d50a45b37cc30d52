//! Addresses that this plane can use: QUIC, and relays that are reached by it.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use libp2p::Multiaddr;
use libp2p::core::transport::TransportError;
use libp2p::multiaddr::Protocol;

use super::SpawnError;

/// Whether our transports can dial `addr`: QUIC, or a relay that is reached by QUIC.
pub(super) fn is_usable(addr: &Multiaddr) -> bool {
    is_quic_address(addr) || is_circuit(addr)
}

/// Whether `addr` leads through a relay.
#[must_use]
pub fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether `addr` is that of a peer behind a relay, in the form that everybody can use.
fn is_circuit(addr: &Multiaddr) -> bool {
    let mut relay = Multiaddr::empty();
    let mut parts = addr.iter();
    for part in parts.by_ref() {
        if part == Protocol::P2pCircuit {
            break;
        }
        relay.push(part);
    }
    let names_the_relay = matches!(relay.iter().last(), Some(Protocol::P2p(_)));
    let names_the_peer = matches!(parts.next(), Some(Protocol::P2p(_)));
    names_the_relay && names_the_peer && parts.next().is_none() && is_quic_address(&relay)
}

/// `addr` without the peer id at its end.
pub(super) fn without_peer(mut addr: Multiaddr) -> Multiaddr {
    if let Some(Protocol::P2p(_)) = addr.iter().last() {
        addr.pop();
    }
    addr
}

/// Whether QUIC can dial `addr` directly.
pub(super) fn is_quic_address(addr: &Multiaddr) -> bool {
    socket_addr(addr).is_some_and(|socket| socket.port() != 0 && !socket.ip().is_unspecified())
}

/// What kept `addr` from being listened on. libp2p hides the error of `bind` in types that cannot be named, so the
/// port is tried once more to get at it.
pub(super) fn listen_error(addr: &Multiaddr, error: &TransportError<io::Error>) -> SpawnError {
    let addr = addr.clone();
    let Some(socket) = socket_addr(&addr) else {
        let reason = "not of the form /ip4|ip6/ADDRESS/udp/PORT/quic-v1".to_owned();
        return SpawnError::Listen { addr, reason };
    };
    match UdpSocket::bind(socket) {
        Err(bind) if bind.kind() == io::ErrorKind::AddrInUse => SpawnError::AddressInUse {
            addr,
            port: socket.port(),
        },
        Err(bind) => SpawnError::Listen {
            addr,
            reason: bind.to_string(),
        },
        Ok(_) => SpawnError::Listen {
            addr,
            reason: format!("{error:?}"),
        },
    }
}

/// The UDP address in front of `/quic-v1`, if `addr` has the form that our transport can use.
pub(super) fn socket_addr(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Some(Protocol::Udp(port)) = parts.next() else {
        return None;
    };
    let well_formed = matches!(parts.next(), Some(Protocol::QuicV1))
        && matches!(parts.next(), None | Some(Protocol::P2p(_)))
        && parts.next().is_none();
    well_formed.then_some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    #[test]
    fn an_address_is_direct_or_leads_through_one_relay_that_it_names() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let usable = |text: String| is_usable(&text.parse().unwrap());
        let quic = "/ip4/192.0.2.1/udp/4700/quic-v1";
        assert!(usable(quic.to_owned()));
        assert!(usable(format!("{quic}/p2p/{peer}")));
        assert!(usable(format!("{quic}/p2p/{relay}/p2p-circuit/p2p/{peer}")));
        for unusable in [
            "/ip4/192.0.2.1/udp/0/quic-v1".to_owned(),
            "/ip4/0.0.0.0/udp/4700/quic-v1".to_owned(),
            "/ip4/192.0.2.1/tcp/4700".to_owned(),
            format!("{quic}/p2p-circuit/p2p/{peer}"),
            format!("{quic}/p2p/{relay}/p2p-circuit"),
            format!("/p2p/{relay}/p2p-circuit/p2p/{peer}"),
            format!("{quic}/p2p/{relay}/p2p-circuit/p2p/{peer}/p2p-circuit/p2p/{peer}"),
        ] {
            assert!(!usable(unusable.clone()), "{unusable}");
        }
    }
}
