//! The task that owns the swarm: commands in, libp2p events in, [`ControlEvent`]s out.

mod nat;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use libp2p::core::ConnectedPoint;
use libp2p::futures::StreamExt;
use libp2p::request_response::{self, OutboundFailure, OutboundRequestId};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, gossipsub, identify, kad, ping};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::addresses::{is_relayed, is_usable, listen_error};
use super::behaviour::{Behaviour, BehaviourEvent, KAD_PROTOCOL, build_swarm, gossip_id};
use super::codec::Reply;
use super::keep::{ADDRESSES_MAX, KeepList, KeepListFull, Redial};
use super::outbox::Outbox;
use super::paths::Paths;
use super::reach::{Reach, Reachability};
use super::{
    BANNED_MAX, Command, ControlConfig, ControlEvent, DIALS_MAX, DialError, GossipId,
    GossipMessage, KeepError, PublishError, Refusal, RequestFailure, RequestId, ResponseToken,
    SpawnError, Verdict,
};
use crate::net::traffic;

/// Lookups for kept peers in flight; a further one is left to the next failure.
const LOOKUPS_MAX: usize = 8;
/// How often requests whose outcome libp2p lost are looked for, and relays that are missing.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Time that closing all connections may take.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

pub(super) struct Task {
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    outbox: Outbox,
    keep: KeepList,
    dials: HashMap<ConnectionId, PendingDial>,
    requests: HashMap<OutboundRequestId, PendingRequest>,
    request_timeout: Duration,
    lookups: HashMap<kad::QueryId, PeerId>,
    /// BLAKE3 of the agent string of every connected peer; it holds a number that changes with every start.
    incarnations: HashMap<PeerId, [u8; 32]>,
    bans: VecDeque<PeerId>,
    gossip_bytes_max: usize,
    /// Both ends of every open connection.
    endpoints: HashMap<ConnectionId, ConnectedPoint>,
    paths: Paths,
    reach: Reach,
    told_reach: watch::Sender<Reachability>,
    kad_server: bool,
}

struct PendingDial {
    peer: PeerId,
    done: oneshot::Sender<Result<(), DialError>>,
}

struct PendingRequest {
    id: RequestId,
    peer: PeerId,
    deadline: Instant,
    permit: OwnedSemaphorePermit,
}

impl Task {
    pub(super) fn new(
        config: ControlConfig,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<ControlEvent>,
        told_reach: watch::Sender<Reachability>,
    ) -> Result<Self, SpawnError> {
        let mut swarm = build_swarm(&config)?;
        for addr in &config.listen {
            swarm
                .listen_on(addr.clone())
                .map_err(|error| listen_error(addr, &error))?;
        }
        for addr in &config.announce {
            swarm.add_external_address(addr.clone());
        }
        let mut task = Self {
            reach: Reach::new(*swarm.local_peer_id()),
            swarm,
            commands,
            outbox: Outbox::new(events),
            keep: KeepList::default(),
            dials: HashMap::new(),
            requests: HashMap::new(),
            request_timeout: config.limits.request_timeout,
            lookups: HashMap::new(),
            incarnations: HashMap::new(),
            bans: VecDeque::new(),
            gossip_bytes_max: config.limits.gossip_bytes_max,
            endpoints: HashMap::new(),
            paths: Paths::default(),
            told_reach,
            kad_server: config.kad_server,
        };
        for topic in config.topics {
            task.subscribe(topic);
        }
        Ok(task)
    }

    pub(super) async fn run(mut self) {
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let owner_gone = self.outbox.closed();
        tokio::pin!(owner_gone);
        let done = loop {
            let due = self.keep.next_due();
            let redial = sleep_until(due.unwrap_or_else(Instant::now));
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                command = self.commands.recv() => match command {
                    Some(command) => {
                        if let ControlFlow::Break(done) = self.on_command(command) {
                            break Some(done);
                        }
                    }
                    None => break None,
                },
                delivered = self.outbox.deliver(), if self.outbox.has_backlog() => {
                    if delivered.is_err() {
                        break None;
                    }
                }
                () = &mut owner_gone => break None,
                () = redial, if due.is_some() => self.redial(),
                _ = sweep.tick() => {
                    self.sweep_requests();
                    self.sweep_connections();
                }
            }
        };
        self.close().await;
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    /// Closes every connection and waits until that is done, or for [`SHUTDOWN_GRACE`].
    async fn close(mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let all_closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = timeout(SHUTDOWN_GRACE, all_closed).await;
    }

    fn on_command(&mut self, command: Command) -> ControlFlow<oneshot::Sender<()>> {
        match command {
            Command::Dial { peer, addrs, done } => self.dial(peer, addrs, done),
            Command::Keep { peer, addrs, done } => {
                // The caller may have stopped waiting; the peer is kept all the same.
                let _ = done.send(self.keep(peer, addrs));
            }
            Command::Unkeep(peer) => self.unkeep(&peer),
            Command::Subscribe(topic) => self.subscribe(topic),
            Command::Unsubscribe(topic) => {
                self.swarm
                    .behaviour_mut()
                    .gossip
                    .unsubscribe(&gossipsub::IdentTopic::new(topic));
            }
            Command::Subscribers { topic, done } => {
                let topic = gossipsub::IdentTopic::new(topic).hash();
                let subscribers: BTreeSet<PeerId> = self
                    .swarm
                    .behaviour()
                    .gossip
                    .all_peers()
                    .filter(|(_, topics)| topics.contains(&&topic))
                    .map(|(peer, _)| *peer)
                    .collect();
                let _ = done.send(subscribers.into_iter().collect());
            }
            Command::Connected(done) => {
                let connected: BTreeSet<PeerId> = self.swarm.connected_peers().copied().collect();
                let _ = done.send(connected.into_iter().collect());
            }
            Command::Publish { topic, bytes, done } => {
                let _ = done.send(self.publish(topic, &bytes));
            }
            Command::ReportGossip {
                id,
                propagation_source,
                verdict,
            } => self.report_gossip(id, propagation_source, verdict),
            Command::Request {
                id,
                peer,
                bytes,
                permit,
            } => self.request(id, peer, bytes, permit),
            Command::Respond { token, reply } => self.respond(token, reply),
            Command::Ban(peer) => self.ban(peer),
            Command::Shutdown(done) => return ControlFlow::Break(done),
        }
        ControlFlow::Continue(())
    }

    fn dial(
        &mut self,
        peer: PeerId,
        addrs: Vec<Multiaddr>,
        done: oneshot::Sender<Result<(), DialError>>,
    ) {
        if self.swarm.is_connected(&peer) {
            let _ = done.send(Ok(()));
            return;
        }
        // A caller that stopped waiting frees its place.
        self.dials.retain(|_, dial| !dial.done.is_closed());
        if self.dials.len() >= DIALS_MAX {
            let _ = done.send(Err(DialError::Busy));
            return;
        }
        let dial = dial_opts(peer, addrs, PeerCondition::Disconnected);
        let connection = dial.connection_id();
        match self.swarm.dial(dial) {
            Ok(()) => {
                self.dials.insert(connection, PendingDial { peer, done });
            }
            Err(error) => {
                let reason = error.to_string();
                let _ = done.send(Err(DialError::Failed { peer, reason }));
            }
        }
    }

    fn keep(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) -> Result<(), KeepError> {
        let connected = self.swarm.is_connected(&peer);
        self.keep
            .insert(peer, addrs, connected, Instant::now())
            .map_err(|KeepListFull| KeepError::Full)?;
        self.swarm.behaviour_mut().limits.bypass_peer_id(&peer);
        Ok(())
    }

    fn unkeep(&mut self, peer: &PeerId) {
        self.keep.remove(peer);
        self.swarm.behaviour_mut().limits.remove_peer_id(peer);
    }

    fn redial(&mut self) {
        let now = Instant::now();
        for Redial {
            peer,
            addrs,
            lookup,
        } in self.keep.take_due(now)
        {
            if self.swarm.is_connected(&peer) {
                self.keep.connected(&peer, now);
                continue;
            }
            metrics::counter!("gradmesh_control_redials_total").increment(1);
            let dial = dial_opts(peer, addrs, PeerCondition::DisconnectedAndNotDialing);
            if let Err(error) = self.swarm.dial(dial) {
                tracing::debug!(%peer, %error, "cannot dial a kept peer");
                self.keep.dial_failed(&peer, now);
            }
            if lookup && self.lookups.len() < LOOKUPS_MAX {
                let query = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
                self.lookups.insert(query, peer);
            }
        }
    }

    fn subscribe(&mut self, topic: String) {
        let topic = gossipsub::IdentTopic::new(topic);
        if let Err(error) = self.swarm.behaviour_mut().gossip.subscribe(&topic) {
            // Only a subscription filter refuses, and ours allows every topic of ours.
            tracing::warn!(%topic, %error, "cannot subscribe");
        }
    }

    fn publish(&mut self, topic: String, bytes: &Bytes) -> Result<GossipId, PublishError> {
        let topic = gossipsub::IdentTopic::new(topic);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        let published = gossip.publish(topic.hash(), bytes.to_vec());
        let id = published.map_err(|error| match error {
            gossipsub::PublishError::Duplicate => PublishError::Duplicate,
            gossipsub::PublishError::NoPeersSubscribedToTopic => PublishError::NoSubscribers,
            gossipsub::PublishError::AllQueuesFull(_) => PublishError::QueuesFull,
            gossipsub::PublishError::MessageTooLarge => PublishError::TooLarge {
                length: bytes.len(),
                limit: self.gossip_bytes_max,
            },
            gossipsub::PublishError::SigningError(error) => {
                PublishError::Signing(error.to_string())
            }
            gossipsub::PublishError::TransformFailed(error) => {
                PublishError::Signing(error.to_string())
            }
        })?;
        count_bytes("gossip", "out", bytes.len());
        Ok(gossip_id(&id).expect("own message ids are BLAKE3 hashes"))
    }

    fn report_gossip(&mut self, id: GossipId, propagation_source: PeerId, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => gossipsub::MessageAcceptance::Accept,
            Verdict::Reject => gossipsub::MessageAcceptance::Reject,
            Verdict::Ignore => gossipsub::MessageAcceptance::Ignore,
        };
        if verdict == Verdict::Reject {
            metrics::counter!("gradmesh_control_gossip_rejected_total").increment(1);
        }
        let in_time = self
            .swarm
            .behaviour_mut()
            .gossip
            .report_message_validation_result(
                &gossipsub::MessageId::new(&id.0),
                &propagation_source,
                acceptance,
            );
        if !in_time {
            metrics::counter!("gradmesh_control_gossip_late_verdicts_total").increment(1);
        }
    }

    fn request(&mut self, id: RequestId, peer: PeerId, bytes: Bytes, permit: OwnedSemaphorePermit) {
        metrics::counter!("gradmesh_control_requests_total", "direction" => "out").increment(1);
        count_bytes("rpc", "out", bytes.len());
        let outbound = self.swarm.behaviour_mut().rpc.send_request(&peer, bytes);
        // libp2p may dial first, which has its own timeout of the same order.
        let deadline = Instant::now() + 2 * self.request_timeout + SWEEP_INTERVAL;
        let pending = PendingRequest {
            id,
            peer,
            deadline,
            permit,
        };
        self.requests.insert(outbound, pending);
    }

    fn respond(&mut self, token: ResponseToken, reply: Reply) {
        if let Reply::Bytes(bytes) = &reply {
            count_bytes("rpc", "out", bytes.len());
        }
        // An error means that the request has timed out or its connection is gone: nobody waits for the answer.
        if self
            .swarm
            .behaviour_mut()
            .rpc
            .send_response(token.channel, reply)
            .is_err()
        {
            metrics::counter!("gradmesh_control_responses_unwanted_total").increment(1);
        }
    }

    fn finish_request(
        &mut self,
        outbound: OutboundRequestId,
        result: Result<Bytes, RequestFailure>,
    ) {
        let Some(pending) = self.requests.remove(&outbound) else {
            return;
        };
        match &result {
            Ok(bytes) => count_bytes("rpc", "in", bytes.len()),
            Err(failure) => {
                metrics::counter!("gradmesh_control_request_failures_total").increment(1);
                tracing::debug!(peer = %pending.peer, %failure, "request failed");
            }
        }
        let event = ControlEvent::Response {
            id: pending.id,
            peer: pending.peer,
            result,
        };
        self.outbox.push(event, Some(pending.permit));
    }

    /// libp2p reports an outcome for every request unless a connection is refused in the very moment in which the
    /// request is handed to it. Those are ended here, so that no request is ever left without an outcome.
    fn sweep_requests(&mut self) {
        let now = Instant::now();
        let overdue: Vec<OutboundRequestId> = self
            .requests
            .iter()
            .filter(|(_, pending)| pending.deadline <= now)
            .map(|(outbound, _)| *outbound)
            .collect();
        for outbound in overdue {
            self.finish_request(outbound, Err(RequestFailure::Timeout));
        }
    }

    fn ban(&mut self, peer: PeerId) {
        self.unkeep(&peer);
        let behaviour = self.swarm.behaviour_mut();
        behaviour.kad.remove_peer(&peer);
        behaviour.gossip.blacklist_peer(&peer);
        if !behaviour.banned.block_peer(peer) {
            return;
        }
        self.bans.push_back(peer);
        if self.bans.len() > BANNED_MAX
            && let Some(oldest) = self.bans.pop_front()
        {
            behaviour.banned.unblock_peer(oldest);
            behaviour.gossip.remove_blacklisted_peer(&oldest);
        }
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.on_identify(event),
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event),
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.on_gossip(event),
            SwarmEvent::Behaviour(BehaviourEvent::Rpc(event)) => self.on_rpc(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                peer,
                result: Ok(rtt),
                ..
            })) => {
                self.offer(ControlEvent::PeerRtt { peer, rtt }, "rtt");
            }
            SwarmEvent::Behaviour(event) => self.on_reach_event(event),
            // One through a relay is told once the relay has confirmed it.
            SwarmEvent::NewListenAddr { address, .. } if !is_relayed(&address) => {
                self.offer(ControlEvent::Listening(address), "listening");
            }
            SwarmEvent::ExpiredListenAddr { address, .. } if !is_relayed(&address) => {
                self.offer(ControlEvent::NotListening(address), "listening");
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_confirmed(address),
            SwarmEvent::ExternalAddrExpired { address } if is_relayed(&address) => {
                self.offer(ControlEvent::NotListening(address), "listening");
            }
            SwarmEvent::ConnectionEstablished {
                peer_id: peer,
                connection_id,
                endpoint,
                num_established,
                ..
            } => {
                if let Some(dial) = self.dials.remove(&connection_id) {
                    let _ = dial.done.send(Ok(()));
                }
                let now = Instant::now();
                let addr = endpoint.get_remote_address().clone();
                let relayed = endpoint.is_relayed();
                let is_first_direct = self.paths.opened(peer, connection_id, relayed, now);
                self.endpoints.insert(connection_id, endpoint);
                if num_established.get() == 1 {
                    self.keep.connected(&peer, now);
                    self.outbox
                        .push(ControlEvent::PeerConnected { peer, addr }, None);
                    self.gauge_peers();
                } else if is_first_direct {
                    tracing::debug!(%peer, %addr, "a direct connection takes the place of a relayed one");
                    self.offer(ControlEvent::PeerDirect { peer, addr }, "addresses");
                }
            }
            SwarmEvent::ConnectionClosed {
                peer_id: peer,
                connection_id,
                num_established,
                cause,
                ..
            } => {
                self.endpoints.remove(&connection_id);
                self.paths.closed(&peer, connection_id);
                if num_established == 0 {
                    tracing::debug!(%peer, ?cause, "peer disconnected");
                    self.reach.lost(&peer);
                    self.incarnations.remove(&peer);
                    self.keep.disconnected(&peer, Instant::now());
                    self.outbox
                        .push(ControlEvent::PeerDisconnected { peer }, None);
                    self.gauge_peers();
                }
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => {
                metrics::counter!("gradmesh_control_dial_failures_total").increment(1);
                if let Some(PendingDial { peer, done }) = self.dials.remove(&connection_id) {
                    let reason = error.to_string();
                    let _ = done.send(Err(DialError::Failed { peer, reason }));
                }
                if let Some(peer) = peer_id
                    && !self.swarm.is_connected(&peer)
                {
                    self.keep.dial_failed(&peer, Instant::now());
                }
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                metrics::counter!("gradmesh_control_incoming_refused_total").increment(1);
                tracing::debug!(%error, "incoming connection failed");
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                addresses,
                reason,
            } => {
                if self.reach.closed(listener_id, Instant::now()) {
                    tracing::debug!(?addresses, ?reason, "a reservation at a relay has ended");
                    self.tell_reach();
                } else {
                    tracing::warn!(?addresses, ?reason, "stopped listening");
                }
            }
            SwarmEvent::ListenerError { error, .. } => tracing::debug!(%error, "listener error"),
            // The rest tells of progress that the events above sum up; the enum is open for extension.
            _ => {}
        }
    }

    fn on_identify(&mut self, event: identify::Event) {
        let identify::Event::Received {
            peer_id: peer,
            connection_id,
            info,
        } = event
        else {
            return;
        };
        if !self.swarm.is_connected(&peer) {
            return;
        }
        let incarnation = *blake3::hash(info.agent_version.as_bytes()).as_bytes();
        let known = self.incarnations.entry(peer).or_insert(incarnation);
        if *known != incarnation {
            // The peer has restarted while its old connection was still counted as alive. Gossip greets a peer on
            // its first connection only, so on this one it would never learn of our subscriptions. Start afresh.
            tracing::debug!(%peer, "peer has restarted; closing its connections");
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        }
        self.on_observed(peer, connection_id, &info);
        let addrs: Vec<Multiaddr> = info
            .listen_addrs
            .into_iter()
            .filter(is_usable)
            .take(ADDRESSES_MAX)
            .collect();
        if info.protocols.contains(&KAD_PROTOCOL) {
            // Replaced, not added to: the routing table bounds its peers but not the addresses of each.
            let kad = &mut self.swarm.behaviour_mut().kad;
            kad.remove_peer(&peer);
            for addr in &addrs {
                kad.add_address(&peer, addr.clone());
            }
        }
        self.keep.learned(&peer, &addrs);
        self.offer(ControlEvent::PeerAddresses { peer, addrs }, "addresses");
    }

    fn on_kad(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed {
            id, result, step, ..
        } = event
        else {
            return;
        };
        let Some(peer) = self.lookups.get(&id).copied() else {
            return;
        };
        if step.last {
            self.lookups.remove(&id);
        }
        let kad::QueryResult::GetClosestPeers(result) = result else {
            return;
        };
        let found = match result {
            Ok(kad::GetClosestPeersOk { peers, .. })
            | Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
        };
        for info in found.into_iter().filter(|info| info.peer_id == peer) {
            let addrs: Vec<Multiaddr> = info.addrs.into_iter().filter(is_usable).collect();
            self.keep.learned(&peer, &addrs);
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            } => {
                count_bytes("gossip", "in", message.data.len());
                let (Some(author), Some(id)) = (message.source, gossip_id(&message_id)) else {
                    // Strict validation lets no message without an author through.
                    return;
                };
                if message.data.len() > self.gossip_bytes_max {
                    // What libp2p lets through is larger by the room for the envelope.
                    self.report_gossip(id, propagation_source, Verdict::Reject);
                    return;
                }
                let gossip = GossipMessage {
                    topic: message.topic.into_string(),
                    author,
                    propagation_source,
                    id,
                    bytes: message.data.into(),
                };
                if !self.offer(ControlEvent::Gossip(gossip), "gossip") {
                    self.report_gossip(id, propagation_source, Verdict::Ignore);
                }
            }
            gossipsub::Event::Subscribed { peer_id, topic } => {
                let event = ControlEvent::PeerSubscribed {
                    peer: peer_id,
                    topic: topic.into_string(),
                };
                self.offer(event, "subscription");
            }
            gossipsub::Event::SlowPeer { peer_id, .. } => {
                metrics::counter!("gradmesh_control_gossip_slow_peer_total").increment(1);
                tracing::debug!(peer = %peer_id, "peer is too slow for gossip; messages to it were dropped");
            }
            gossipsub::Event::Unsubscribed { .. }
            | gossipsub::Event::GossipsubNotSupported { .. } => {}
        }
    }

    fn on_rpc(&mut self, event: request_response::Event<Bytes, Reply>) {
        match event {
            request_response::Event::Message {
                peer,
                message:
                    request_response::Message::Request {
                        request, channel, ..
                    },
                ..
            } => {
                metrics::counter!("gradmesh_control_requests_total", "direction" => "in")
                    .increment(1);
                count_bytes("rpc", "in", request.len());
                let event = ControlEvent::Request {
                    peer,
                    token: ResponseToken { channel },
                    bytes: request,
                };
                if let Err(ControlEvent::Request { token, .. }) = self.outbox.offer(event) {
                    count_drop("request");
                    self.respond(token, Reply::Refused(Refusal::Busy));
                }
            }
            request_response::Event::Message {
                message:
                    request_response::Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => {
                let result = match response {
                    Reply::Bytes(bytes) => Ok(bytes),
                    Reply::Refused(refusal) => Err(refusal.into()),
                };
                self.finish_request(request_id, result);
            }
            request_response::Event::OutboundFailure {
                request_id, error, ..
            } => {
                let failure = match error {
                    OutboundFailure::DialFailure => RequestFailure::Unreachable,
                    OutboundFailure::Timeout => RequestFailure::Timeout,
                    OutboundFailure::ConnectionClosed => RequestFailure::Disconnected,
                    OutboundFailure::UnsupportedProtocols => RequestFailure::Unsupported,
                    OutboundFailure::Io(error) => RequestFailure::Stream(error.to_string()),
                };
                self.finish_request(request_id, Err(failure));
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                metrics::counter!("gradmesh_control_answer_failures_total").increment(1);
                tracing::debug!(%peer, %error, "incoming request failed");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    /// Delivers a lossy event or counts its loss; says whether it was delivered.
    fn offer(&mut self, event: ControlEvent, kind: &'static str) -> bool {
        let delivered = self.outbox.offer(event).is_ok();
        if !delivered {
            count_drop(kind);
        }
        delivered
    }

    fn gauge_peers(&self) {
        let peers = self.swarm.connected_peers().count();
        metrics::gauge!("gradmesh_control_peers").set(peers as f64);
    }
}

fn dial_opts(peer: PeerId, addrs: Vec<Multiaddr>, condition: PeerCondition) -> DialOpts {
    DialOpts::peer_id(peer)
        .addresses(addrs)
        .condition(condition)
        .extend_addresses_through_behaviour()
        .build()
}

fn count_bytes(protocol: &'static str, direction: &'static str, bytes: usize) {
    match direction {
        "in" => traffic::CONTROL.count_received(bytes as u64),
        _ => traffic::CONTROL.count_sent(bytes as u64),
    }
    metrics::counter!("gradmesh_control_bytes_total", "protocol" => protocol, "direction" => direction)
        .increment(bytes as u64);
}

fn count_drop(kind: &'static str) {
    metrics::counter!("gradmesh_control_events_dropped_total", "kind" => kind).increment(1);
}
