//! One transfer: one part of a blob from one source, over one stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gradmesh_compression::planes::Width;
use quinn::{ReadExactError, RecvStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::links::Lease;
use super::super::pulse::{AtWork, Pulse};
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
        (self.part, ended)
    }

    async fn transfer(&mut self) -> Result<Ended, Blame> {
        let (peer, addr) = (self.source.peer, self.source.addr);
        let before = self.part.filled();
        for again in [true, false] {
            let inner = &self.inner;
            let lease = inner.links.lease(inner, peer, addr, self.line).await?;
            let pulse = Arc::clone(&self.pulse);
            let window = inner.limits.stall_window;
            let ended = tokio::select! {
                biased;
                ended = self.transfer_over(&lease) => ended,
                () = pulse.stalls(window) => Err(Blame::Stalled),
            };
            // A connection of old that breaks before the first byte is replaced once: its other end may have
            // restarted.
            let stale = matches!(ended, Err(Blame::Died(_)))
                && lease.reused
                && lease.connection.close_reason().is_some()
                && self.part.filled() == before;
            if !(stale && again) {
                return ended;
            }
        }
        Err(Blame::Died("connection was replaced twice".to_owned()))
    }

    async fn transfer_over(&mut self, lease: &Lease) -> Result<Ended, Blame> {
        let (length, part) = (self.length, &mut self.part);
        let request = Request {
            kind: Kind::Blob,
            elements: self.elements,
            hash: self.hash,
            offset: part.offset(),
            length: part.missing().map_or(u64::MAX, |missing| missing as u64),
            total_max: length.bytes_max(),
        };
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
        self.pulse.beat(0);
        let response =
            Response::decode(&wire).map_err(|error| Blame::Protocol(error.to_string()))?;
        let claimed = response.total;
        match response.status {
            Status::NotFound => return Err(Blame::NotFound),
            Status::Busy => return Err(Blame::Busy),
            Status::OverCap => return Err(Blame::OverCap { claimed }),
            Status::BadRequest => return Err(Blame::Protocol("request refused".to_owned())),
            Status::Held => return Err(Blame::Protocol("holds what it was to send".to_owned())),
            Status::Ok | Status::PastEnd => {}
        }
        match length {
            _ if claimed > length.bytes_max() => return Err(Blame::OverCap { claimed }),
            Length::Exactly(length) if claimed != length => {
                return Err(Blame::OtherLength { claimed });
            }
            Length::Exactly(_) | Length::AtMost(_) => {}
        }
        if !part.continued_by(self.source.peer, claimed) {
            return Ok(Ended::LengthDiffers);
        }
        if response.status == Status::PastEnd {
            return Err(Blame::Protocol(format!(
                "byte {} is past the end of {claimed} bytes",
                request.offset
            )));
        }
        let left = claimed.saturating_sub(request.offset);
        let incoming = Incoming::new(self.elements, left.min(request.length), left);
        self.receive(&mut recv, incoming).await
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
            self.pulse.beat(came);
            let before = self.watch.bytes.fetch_add(taken as u64, Ordering::Relaxed);
            if before == 0 {
                self.inner.links.moves(&self.source.peer);
            }
            traffic::BULK.count_received(came as u64);
            metrics::counter!("gradmesh_bulk_bytes_total", "direction" => "in")
                .increment(came as u64);
        }
        Ok(Ended::Complete)
    }
}

/// `error` is one of quinn's, on a connection or a stream: in all of them the source is gone.
fn died(error: impl std::error::Error) -> Blame {
    Blame::Died(error.to_string())
}
