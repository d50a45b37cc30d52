//! The queue of events to the owner, which never makes the swarm wait and never grows without bound.
//!
//! - **Lossy** events ([`Outbox::offer`]: gossip, incoming requests, addresses, subscriptions, round-trip times) are
//!   handed back when the channel is full; the caller answers the peer (ignore, busy) and counts the drop.
//! - **Kept** events ([`Outbox::push`]: connections, responses) wait in a backlog. It is bounded because a connect and
//!   a disconnect of one peer that both still wait cancel out, so a peer has at most two entries, peers are bounded by
//!   the connection limits, and a response holds the permit of its request until it is delivered.
//!
//! Order is kept: a lossy event is only accepted while the backlog is empty.

use std::collections::VecDeque;

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::ControlEvent;

pub(super) struct Outbox {
    channel: mpsc::Sender<ControlEvent>,
    backlog: VecDeque<(ControlEvent, Option<OwnedSemaphorePermit>)>,
}

/// The owner dropped its receiver.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OwnerGone;

impl Outbox {
    pub(super) fn new(channel: mpsc::Sender<ControlEvent>) -> Self {
        Self {
            channel,
            backlog: VecDeque::new(),
        }
    }

    /// Delivers `event` now or hands it back.
    #[expect(
        clippy::result_large_err,
        reason = "the event handed back is no error value that travels up a call chain"
    )]
    pub(super) fn offer(&mut self, event: ControlEvent) -> Result<(), ControlEvent> {
        if !self.backlog.is_empty() {
            return Err(event);
        }
        self.channel
            .try_send(event)
            .map_err(mpsc::error::TrySendError::into_inner)
    }

    /// Delivers `event` as soon as there is room; `permit` is held until then.
    pub(super) fn push(&mut self, event: ControlEvent, permit: Option<OwnedSemaphorePermit>) {
        if let ControlEvent::PeerDisconnected { peer } = &event {
            let connect = self.backlog.iter().rposition(|(waiting, _)| {
                matches!(waiting, ControlEvent::PeerConnected { peer: waiting, .. } if waiting == peer)
            });
            if let Some(index) = connect {
                self.backlog.remove(index);
                return;
            }
        }
        match self.offer(event) {
            Ok(()) => {}
            Err(event) => self.backlog.push_back((event, permit)),
        }
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Waits for room in the channel and delivers the first event of the backlog. Cancel safe.
    pub(super) async fn deliver(&mut self) -> Result<(), OwnerGone> {
        let room = self.channel.reserve().await.map_err(|_| OwnerGone)?;
        if let Some((event, _permit)) = self.backlog.pop_front() {
            room.send(event);
        }
        Ok(())
    }

    /// Resolves when the owner dropped its receiver.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let channel = self.channel.clone();
        async move { channel.closed().await }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{Multiaddr, PeerId};

    use super::*;

    fn connected(peer: PeerId) -> ControlEvent {
        ControlEvent::PeerConnected {
            peer,
            addr: Multiaddr::empty(),
        }
    }

    #[tokio::test]
    async fn lossy_event_is_handed_back_when_the_owner_lags() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        let peer = PeerId::random();
        outbox.push(connected(peer), None);
        assert!(
            outbox
                .offer(ControlEvent::PeerDisconnected { peer })
                .is_err()
        );
        receiver.recv().await.unwrap();
        assert!(
            outbox
                .offer(ControlEvent::PeerDisconnected { peer })
                .is_ok()
        );
    }

    #[tokio::test]
    async fn flapping_peer_never_occupies_more_than_two_places() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        let peer = PeerId::random();
        outbox.push(connected(peer), None);
        for _ in 0..1000 {
            outbox.push(ControlEvent::PeerDisconnected { peer }, None);
            outbox.push(connected(peer), None);
        }
        assert!(outbox.backlog.len() <= 2, "{}", outbox.backlog.len());
        let mut up = false;
        for _ in 0..3 {
            match receiver.recv().await.unwrap() {
                ControlEvent::PeerConnected { .. } => up = true,
                ControlEvent::PeerDisconnected { .. } => up = false,
                other => panic!("unexpected {other:?}"),
            }
            if outbox.has_backlog() {
                outbox.deliver().await.unwrap();
            }
        }
        assert!(up, "the owner ends with the state that the network is in");
    }

    #[tokio::test]
    async fn delivery_tells_when_the_owner_is_gone() {
        let (sender, receiver) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        drop(receiver);
        assert_eq!(outbox.deliver().await, Err(OwnerGone));
    }
}
