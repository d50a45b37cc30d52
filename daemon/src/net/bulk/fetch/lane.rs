//! One transfer: one part of a blob from one source, over one stream or one near road.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gradmesh_compression::planes::Width;
use quinn::{ReadExactError, RecvStream};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::super::links::Lease;
use super::super::near::{self, Road};
use super::super::pulse::{AtWork, LOOK_EVERY, Pulse};
use super::super::wire::{Kind, RESPONSE_BYTES, Request, Response, Status};
use super::super::{Blame, Inner, Length, PeerSource};
use super::assembly::Part;
use super::unpacking::Incoming;
use crate::blob::BlobHash;
use crate::net::traffic;

/// Packets taken from QUIC at once: one lock and one wake-up for all of them.
const READ_PACKETS: usize = 32;

/// What a lane is to do.
pub(super) struct Errand {
    pub(super) inner: Arc<Inner>,
    pub(super) source: PeerSource,
    pub(super) hash: BlobHash,
    pub(super) length: Length,
    pub(super) elements: Option<Width>,
    pub(super) part: Part,
    /// Whether the source is in the own site.
    pub(super) near: bool,
    /// Whether the transfer is at work over a near road.
    pub(super) over_near: bool,
    /// Which of the connections to the peer to use.
    pub(super) line: usize,
    pub(super) watch: Arc<Watch>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) _at_work: AtWork,
}

/// How a lane ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The part is complete.
    Complete,
    /// The source claims another length than those before it.
    LengthDiffers,
    /// It was told to give up, so that another source continues.
    Overtaken,
    Failed(Blame),
}

/// What the fetch sees of a lane, and how it ends it.
pub(super) struct Watch {
    began: Instant,
    bytes: AtomicU64,
    give_up: Notify,
}

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            bytes: AtomicU64::new(0),
            give_up: Notify::new(),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Bytes a second so far.
    pub(super) fn rate(&self) -> f64 {
        self.bytes() as f64 / self.age().as_secs_f64().max(1e-3)
    }

    pub(super) fn give_up(&self) {
        self.give_up.notify_one();
    }

    /// Returns once nothing has come for `lasting`, counted in looks as by [`Quiet`](super::super::pulse::Quiet), but of
    /// this lane alone.
    async fn silence(&self, lasting: Duration) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut bytes, mut lasted) = (self.bytes(), Duration::ZERO);
        while lasted < lasting {
            looks.tick().await;
            let before = std::mem::replace(&mut bytes, self.bytes());
            lasted = match bytes == before {
                true => lasted + LOOK_EVERY,
                false => Duration::ZERO,
            };
        }
    }
}

impl Errand {
    /// Fills the part as far as the source lets it.
    pub(super) async fn run(mut self) -> (Part, Ended) {
        let watch = Arc::clone(&self.watch);
        let ended = tokio::select! {
            biased;
            () = watch.give_up.notified() => Ended::Overtaken,
            ended = self.transfer() => ended.unwrap_or_else(Ended::Failed),
        };
        if matches!(ended, Ended::Overtaken) && self.over_near {
            self.inner.near.blocks(self.source.peer);
        }
        (self.part, ended)
    }

    async fn transfer(&mut self) -> Result<Ended, Blame> {
        match self.transfer_near().await {
            Some(ended) => ended,
            None => self.transfer_quic().await,
        }
    }

    /// Over the near road; `None` where there is none, or it failed: then the part goes on over QUIC, from where it is now.
    async fn transfer_near(&mut self) -> Option<Result<Ended, Blame>> {
        let (peer, addr) = (self.source.peer, self.source.addr);
        let before = self.part.filled();
        let inner = Arc::clone(&self.inner);
        let long = self.part.missing()? >= near::BYTES_MIN;
        if !(inner.limits.near_road && long && (self.near || near::is_here(addr))) {
            return None;
        }
        for anew in [false, true] {
            let mut road = inner.near.road(&inner, peer, addr, anew).await?;
            let (pulse, watch) = (Arc::clone(&self.pulse), Arc::clone(&self.watch));
            self.over_near = true;
            let ended = tokio::select! {
                biased;
                ended = self.transfer_over_near(&mut road) => ended,
                () = pulse.stalls(inner.limits.stall_window) => Err(Blame::Stalled),
                () = watch.silence(inner.limits.overtake_after) => Err(died("nothing comes")),
                () = inner.near.ended() => Err(died("this peer stops")),
            };
            self.over_near = false;
            match &ended {
                // The answer has come to its end.
                Ok(Ended::Complete) | Err(Blame::NotFound | Blame::Busy) => {
                    inner.near.keep(&inner, road);
                }
                // As over QUIC: the other end may have restarted.
                Err(Blame::Died(_)) if road.reused && self.part.filled() == before => continue,
                Err(Blame::Died(reason)) => {
                    tracing::debug!(%peer, reason, "a near road has failed");
                    inner.near.blocks(peer);
                    return None;
                }
                Err(Blame::Stalled) => inner.near.blocks(peer),
                Ok(_) | Err(_) => {}
            }
            return Some(ended);
        }
        None
    }

    async fn transfer_over_near(&mut self, road: &mut Road) -> Result<Ended, Blame> {
        let request = self.request(None);
        let stream = &mut road.stream;
        stream.write_all(&request.encode()).await.map_err(died)?;
        stream.flush().await.map_err(died)?;
        let mut wire = [0u8; RESPONSE_BYTES];
        stream.read_exact(&mut wire).await.map_err(died)?;
        if self.answered(&request, &wire)?.is_none() {
            return Ok(Ended::LengthDiffers);
        }
        while self.part.missing() != Some(0) {
            // One record of TLS at most, which is decrypted and copied into place.
            let bytes = stream.fill_buf().await.map_err(died)?;
            if bytes.is_empty() {
                return Err(died("closed"));
            }
            let came = self.part.append(bytes);
            stream.consume(came);
            self.count(came, came);
            self.inner.near.count_received(came as u64);
            // Much may be there already, and hashing it takes time that others want.
            consume_budget().await;
        }
        Ok(Ended::Complete)
    }

    async fn transfer_quic(&mut self) -> Result<Ended, Blame> {
        let (peer, addr) = (self.source.peer, self.source.addr);
        let before = self.part.filled();
        let lease = {
            let inner = &self.inner;
            inner.links.lease(inner, peer, addr, self.line).await?
        };
        let ended = self.transfer_watched(&lease).await;
        // A connection of old that breaks before the first byte is replaced once: its other end may have restarted.
        let stale = matches!(ended, Err(Blame::Died(_)))
            && lease.reused
            && lease.connection.close_reason().is_some()
            && self.part.filled() == before;
        if !stale {
            return ended;
        }
        let anew = {
            let (inner, dead) = (&self.inner, &lease.connection);
            let anew = inner.links.renew(inner, peer, addr, self.line, dead);
            anew.await?
        };
        drop(lease);
        self.transfer_watched(&anew).await
    }

    async fn transfer_watched(&mut self, lease: &Lease) -> Result<Ended, Blame> {
        let (pulse, window) = (Arc::clone(&self.pulse), self.inner.limits.stall_window);
        tokio::select! {
            biased;
            ended = self.transfer_over(lease) => ended,
            () = pulse.stalls(window) => Err(Blame::Stalled),
        }
    }

    async fn transfer_over(&mut self, lease: &Lease) -> Result<Ended, Blame> {
        let request = self.request(self.elements);
        // Waits while the peer serves as many other streams of this connection as it admits.
        let (mut send, mut recv) = lease.connection.open_bi().await.map_err(died)?;
        send.write_all(&request.encode()).await.map_err(died)?;
        send.finish().map_err(died)?;
        let mut wire = [0u8; RESPONSE_BYTES];
        recv.read_exact(&mut wire)
            .await
            .map_err(|error| match error {
                ReadExactError::FinishedEarly(_) => Blame::Protocol("no response".to_owned()),
                ReadExactError::ReadError(error) => died(error),
            })?;
        let Some(claimed) = self.answered(&request, &wire)? else {
            return Ok(Ended::LengthDiffers);
        };
        let left = claimed.saturating_sub(request.offset);
        let incoming = Incoming::new(self.elements, left.min(request.length), left);
        self.receive(&mut recv, incoming).await
    }

    /// What is missing of the part.
    fn request(&self, elements: Option<Width>) -> Request {
        let part = &self.part;
        Request {
            kind: Kind::Blob,
            elements,
            hash: self.hash,
            offset: part.offset(),
            length: part.missing().map_or(u64::MAX, |missing| missing as u64),
            total_max: self.length.bytes_max(),
        }
    }

    /// Takes the response to `request`, after which come the bytes. Returns the length of the blob; `None` when it is not
    /// that which sources before have named.
    fn answered(
        &mut self,
        request: &Request,
        wire: &[u8; RESPONSE_BYTES],
    ) -> Result<Option<u64>, Blame> {
        self.pulse.beat(0);
        let response =
            Response::decode(wire).map_err(|error| Blame::Protocol(error.to_string()))?;
        let claimed = response.total;
        match response.status {
            Status::NotFound => return Err(Blame::NotFound),
            Status::Busy => return Err(Blame::Busy),
            Status::OverCap => return Err(Blame::OverCap { claimed }),
            Status::BadRequest => return Err(Blame::Protocol("request refused".to_owned())),
            Status::Held => return Err(Blame::Protocol("holds what it was to send".to_owned())),
            Status::Ok | Status::PastEnd => {}
        }
        match self.length {
            length if claimed > length.bytes_max() => return Err(Blame::OverCap { claimed }),
            Length::Exactly(length) if claimed != length => {
                return Err(Blame::OtherLength { claimed });
            }
            Length::Exactly(_) | Length::AtMost(_) => {}
        }
        if !self.part.continued_by(self.source.peer, claimed) {
            return Ok(None);
        }
        if response.status == Status::PastEnd {
            return Err(Blame::Protocol(format!(
                "byte {} is past the end of {claimed} bytes",
                request.offset
            )));
        }
        Ok(Some(claimed))
    }

    async fn receive(
        &mut self,
        recv: &mut RecvStream,
        mut incoming: Incoming,
    ) -> Result<Ended, Blame> {
        let mut packets: [Bytes; READ_PACKETS] = Default::default();
        while let Some(left @ 1..) = self.part.missing() {
            let Some(count) = recv.read_chunks(&mut packets).await.map_err(died)? else {
                return Err(Blame::Protocol(format!(
                    "ended {left} bytes before the end that it had named"
                )));
            };
            let (mut taken, mut came) = (0, 0);
            for packet in packets.iter_mut().take(count) {
                came += packet.len();
                taken += incoming.take(std::mem::take(packet), &mut self.part)?;
            }
            self.count(taken, came);
        }
        Ok(Ended::Complete)
    }

    /// Counts what came, and how many bytes of the blob that was.
    fn count(&self, taken: usize, came: usize) {
        self.pulse.beat(came);
        let before = self.watch.bytes.fetch_add(taken as u64, Ordering::Relaxed);
        if before == 0 {
            self.inner.links.moves(&self.source.peer);
        }
        traffic::BULK.count_received(came as u64);
        metrics::counter!("gradmesh_bulk_bytes_total", "direction" => "in").increment(came as u64);
    }
}

/// `error` says that the source is gone: one of quinn's, on a connection or a stream, or one of a near road.
fn died(error: impl ToString) -> Blame {
    Blame::Died(error.to_string())
}
