//! Tells the other protocols the addresses from which peers see us come.
//!
//! libp2p's identify does so too, but with the port of our own socket in place of the one that was seen, on the assumption
//! that a NAT box keeps ports. Many do not; a hole is punched only at the port that was seen.
//!
//! Opens no stream and no connection.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::dummy::ConnectionHandler;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

/// Addresses remembered: those of a peer whose NAT box changes its mind a few times. Further ones are not told.
const ADDRESSES_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Behaviour {
    known: Vec<Multiaddr>,
    untold: VecDeque<Multiaddr>,
}

impl Behaviour {
    /// A peer saw us come from `addr`, over a connection that leaves from the port that we listen on.
    pub(super) fn seen_at(&mut self, addr: Multiaddr) {
        if self.known.len() < ADDRESSES_MAX && !self.known.contains(&addr) {
            self.known.push(addr.clone());
            self.untold.push_back(addr);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = ConnectionHandler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Whoever calls `seen_at` polls the swarm afterwards.
        match self.untold.pop_front() {
            Some(addr) => Poll::Ready(ToSwarm::NewExternalAddrCandidate(addr)),
            None => Poll::Pending,
        }
    }
}
