//! The part of the task that has to do with peers behind NAT: whether we are one, our relays, direct connections in place of
//! relayed ones. What is decided is decided in `reach.rs` and `paths.rs`.

use std::net::IpAddr;

use libp2p::core::ConnectedPoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, autonat, identify, kad, relay};
use tokio::time::Instant;

use super::Task;
use crate::net::control::ControlEvent;
use crate::net::control::addresses::{is_quic_address, is_relayed, socket_addr, without_peer};
use crate::net::control::behaviour::BehaviourEvent;
use crate::net::control::reach::Origin;

/// Addresses at which others say that they reached us, at most; further ones are not told to anybody.
const EXTERNAL_ADDRESSES_MAX: usize = 8;

impl Task {
    pub(super) fn on_reach_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Prober(event) => self.on_probe(&event),
            BehaviourEvent::Relayed(event) => tracing::debug!(?event, "relay"),
            BehaviourEvent::Relay(event) => tracing::debug!(?event, "relaying"),
            BehaviourEvent::Punch(event) => {
                let outcome = match &event.result {
                    Ok(_) => "direct",
                    Err(_) => "failed",
                };
                metrics::counter!("gradmesh_control_punches_total", "outcome" => outcome)
                    .increment(1);
                tracing::debug!(peer = %event.remote_peer_id, result = ?event.result, "hole punching");
            }
            BehaviourEvent::Probed(_)
            | BehaviourEvent::Observed(_)
            | BehaviourEvent::Identify(_)
            | BehaviourEvent::Kad(_)
            | BehaviourEvent::Gossip(_)
            | BehaviourEvent::Rpc(_)
            | BehaviourEvent::Ping(_)
            | BehaviourEvent::Limits(_)
            | BehaviourEvent::Banned(_) => {}
        }
    }

    /// Somebody was asked to connect to us.
    fn on_probe(&mut self, event: &autonat::v2::client::Event) {
        let (addr, server, reached) = (&event.tested_addr, event.server, event.result.is_ok());
        tracing::debug!(%addr, %server, reached, "asked a peer to connect to us");
        // A relayed connection shows others an address that leads through the relay, or none at all.
        let Some(socket) = socket_addr(addr) else {
            return;
        };
        // Nothing lies between a machine and itself: a failure only says that it is busy.
        if socket.ip().is_loopback() && !reached {
            return;
        }
        let origin = self.origin(socket.ip());
        for listener in self.reach.probed(origin, reached) {
            self.swarm.remove_listener(listener);
        }
        self.apply_reach();
    }

    /// Whose `ip` is, at which somebody sees us.
    fn origin(&self, ip: IpAddr) -> Origin {
        let is_ours = |addr: &Multiaddr| socket_addr(addr).is_some_and(|ours| ours.ip() == ip);
        match ip.is_loopback() || self.swarm.listeners().any(is_ours) {
            true => Origin::Machine,
            false => Origin::Box,
        }
    }

    /// Does what follows from what `reach` has learned.
    fn apply_reach(&mut self) {
        let behind_nat = self.reach.reachability().is_behind_nat();
        let mode = match !behind_nat && self.kad_server {
            true => kad::Mode::Server,
            false => kad::Mode::Client,
        };
        let status = match behind_nat {
            true => relay::Status::Disable,
            false => relay::Status::Enable,
        };
        let behaviour = self.swarm.behaviour_mut();
        behaviour.kad.set_mode(Some(mode));
        behaviour.relay.set_status(Some(status));
        if behind_nat {
            let direct = self.swarm.external_addresses().filter(|a| !is_relayed(a));
            let direct: Vec<Multiaddr> = direct.cloned().collect();
            for addr in direct {
                self.swarm.remove_external_address(&addr);
            }
        }
        self.tell_reach();
        self.ask_relays();
    }

    /// What a peer says of the connection to it: where it sees us, and whether it relays.
    pub(super) fn on_observed(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        info: &identify::Info,
    ) {
        let endpoint = self.endpoints.get(&connection);
        let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_relayed()).cloned() else {
            return;
        };
        let seen = without_peer(info.observed_addr.clone());
        if let Some(socket) = socket_addr(&seen) {
            self.reach.seen(self.origin(socket.ip()));
            self.tell_reach();
        }
        match endpoint {
            ConnectedPoint::Dialer {
                address,
                port_use: PortUse::Reuse,
                ..
            } => {
                let addr = without_peer(address);
                if is_quic_address(&seen) {
                    self.swarm.behaviour_mut().observed.seen_at(seen);
                }
                if info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
                    self.reach.found(peer, addr);
                    self.ask_relays();
                } else {
                    self.reach.lost(&peer);
                }
            }
            ConnectedPoint::Listener { .. } => {
                let behind_nat = self.reach.reachability().is_behind_nat();
                let known = self.swarm.external_addresses().count();
                if is_quic_address(&seen) && !behind_nat && known < EXTERNAL_ADDRESSES_MAX {
                    self.swarm.add_external_address(seen);
                }
            }
            ConnectedPoint::Dialer { .. } => {}
        }
    }

    /// An address by which others reach us.
    pub(super) fn on_confirmed(&mut self, addr: Multiaddr) {
        if !is_relayed(&addr) {
            return;
        }
        let mut peers = addr.iter().filter_map(|part| match part {
            Protocol::P2p(peer) => Some(peer),
            _ => None,
        });
        if let Some(relay) = peers.next() {
            tracing::info!(%relay, "behind NAT: reached through a relay");
            self.reach.granted(&relay);
            self.tell_reach();
        }
        self.offer(ControlEvent::Listening(addr), "listening");
    }

    /// Asks for the reservations that are missing.
    fn ask_relays(&mut self) {
        let now = Instant::now();
        for (relay, addr) in self.reach.wanted(now) {
            let through = addr.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
            match self.swarm.listen_on(through) {
                Ok(listener) => self.reach.asked(relay, listener),
                Err(error) => {
                    tracing::debug!(%relay, %error, "cannot ask a relay");
                    self.reach.failed(&relay, now);
                }
            }
        }
    }

    /// Asks for relays that are missing, and closes relayed connections that are not needed any more.
    pub(super) fn sweep_connections(&mut self) {
        self.ask_relays();
        for connection in self.paths.superseded(Instant::now()) {
            self.swarm.close_connection(connection);
        }
    }

    pub(super) fn tell_reach(&self) {
        let reachability = self.reach.reachability();
        self.told_reach.send_if_modified(|told| {
            let changed = *told != reachability;
            *told = reachability;
            changed
        });
    }
}
