//! The serving side: accepts connections and answers requests from a [`BlobSource`](crate::blob::BlobSource).
//!
//! Nothing a peer does can make it hold more than: `connections_max` incoming connections (`connections_per_peer_max`
//! of one peer), `streams_per_connection_max` streams on each, `streams_served_max` of all of them with bytes in
//! flight (`streams_served_per_peer_max` for one peer), each of those for at most one chunk beyond the connection's
//! send window; requests that are held (`held.rs`) have none. Streams of a connection take turns, chunk by chunk in the order of asking; connections share the link
//! by congestion control. The near road (`near/serve.rs`) has connections of its own, and the same answers.
//!
//! The turns are taken here because quinn wakes streams that wait for room in a window last in, first out: the one that
//! has just filled it may be the next to write again, while others wait.

mod chunks;
mod packing;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::time::{Instant, sleep, timeout};

use super::held::{HELD_MAX, Standing};
use super::links::Way;
use super::pace::{self, Delivery};
use super::wire::{Kind, REQUEST_BYTES, Request, Response, Status};
use super::{CLOSE_DENIED, CLOSE_FULL, CLOSE_SLOW, Inner, tls};
use crate::blob::{Blob, BlobHash};
use crate::net::traffic;
use chunks::Chunks;
use packing::Packing;
pub(super) use packing::skip;

/// A client that opens a stream sends its request with it.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a peer must take one chunk over a connection: 9 kB/s at least.
pub(super) const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// So many chunk time-outs may pass until a stream that was handed to QUIC as a whole has arrived: the largest window
/// at 2 Mbit/s.
const FINISH_TIMEOUTS_MAX: usize = 10;
/// So often in `overtake_after` a peer hears that its request is held.
const HELD_BEATS: u32 = 4;
/// Stream reset code.
const RESET_IO: VarInt = VarInt::from_u32(1);

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(inner: Arc<Inner>) {
    while let Some(incoming) = inner.endpoint.accept().await {
        // Handshakes from forged addresses must not fill the places: once half are taken, an address has to show
        // that it receives what is sent to it, at the cost of a round trip.
        let crowded = inner.incoming.available_permits() < inner.limits.connections_max.div_ceil(2);
        if crowded && incoming.may_retry() {
            // The error only hands the connection back when it may not be retried.
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = Arc::clone(&inner.incoming).try_acquire_owned() else {
            metrics::counter!("gradmesh_bulk_connections_refused_total").increment(1);
            incoming.refuse();
            continue;
        };
        let inner = Arc::clone(&inner);
        tokio::spawn(async move {
            if let Err(error) = handshake(&inner, incoming).await {
                tracing::debug!(%error, "incoming bulk connection failed");
            }
            drop(permit);
        });
    }
}

async fn handshake(inner: &Arc<Inner>, incoming: Incoming) -> Result<(), quinn::ConnectionError> {
    let handshake = incoming.accept()?;
    let Ok(connection) = timeout(inner.limits.connect_timeout, handshake).await else {
        return Err(quinn::ConnectionError::TimedOut);
    };
    let connection = connection?;
    let Some(peer) = tls::remote_peer(&connection).filter(|peer| (inner.allow)(peer)) else {
        connection.close(CLOSE_DENIED, b"denied");
        return Ok(());
    };
    let Some(_place) = Place::take(&inner.places, peer, inner.limits.connections_per_peer_max)
    else {
        connection.close(CLOSE_FULL, b"too many connections");
        return Ok(());
    };
    // Requests of ours to this peer may use its connection: that reaches a peer behind NAT.
    inner.links.adopt(inner, peer, &connection);
    serve(inner, &connection, peer).await;
    inner.links.ended(peer, Way::Theirs, &connection);
    Ok(())
}

/// Answers the requests that come over `connection`, whichever side opened it, until it ends.
pub(super) async fn serve(inner: &Arc<Inner>, connection: &Connection, peer: PeerId) {
    let turns = Arc::new(Turns::default());
    let delivery = pace::delivery_of(connection);
    let _watched = delivery
        .clone()
        .map(|delivery| inner.gauge.watch(peer, delivery));
    while let Ok((send, recv)) = connection.accept_bi().await {
        if !(inner.allow)(&peer) {
            connection.close(CLOSE_DENIED, b"denied");
            return;
        }
        // Tasks are bounded by connections times streams per connection, which QUIC enforces.
        let (inner, turns, delivery) = (Arc::clone(inner), Arc::clone(&turns), delivery.clone());
        let connection = connection.clone();
        tokio::spawn(async move {
            let mut answer = Answer(Stream {
                connection,
                turns,
                delivery,
                send,
            });
            note(peer, &answer.run(&inner, peer, recv).await);
        });
    }
    let stats = connection.stats();
    tracing::debug!(
        %peer,
        addr = %connection.remote_address(),
        sent = stats.udp_tx.bytes,
        received = stats.udp_rx.bytes,
        lost = stats.path.lost_bytes,
        packets = stats.path.sent_packets,
        rtt_ms = stats.path.rtt.as_millis(),
        "a bulk connection has ended"
    );
}

/// Who may write: the streams of a connection in the order of asking.
type Turns = tokio::sync::Mutex<()>;

/// Where an answer goes.
pub(super) trait Outlet {
    /// Hands over `pieces`, which the peer takes within [`CHUNK_TIMEOUT`].
    async fn write(&mut self, pieces: &mut [Bytes]) -> io::Result<()>;

    /// Says that the answer ends here.
    async fn end(&mut self) -> io::Result<()>;

    /// The same, after bytes of a blob: waits until the peer has them, so that the permit of the answer covers what is
    /// buffered too.
    async fn finish(&mut self) -> io::Result<()>;

    /// Lets the peer know that what it waits for does not come.
    fn abort(&mut self);

    /// What the link carries, in bytes a second, if that is known.
    fn bytes_per_s(&self) -> Option<f64>;
}

/// The answer to one request.
pub(super) struct Answer<O>(pub(super) O);

impl<O: Outlet> Answer<O> {
    pub(super) async fn give(
        &mut self,
        inner: &Inner,
        peer: PeerId,
        request: &Request,
    ) -> Result<Status, io::Error> {
        let share = inner.limits.streams_served_per_peer_max;
        let (Ok(_permit), Some(_place)) = (
            inner.serving.try_acquire(),
            Place::take(&inner.asked_by, peer, share),
        ) else {
            return self.refuse(Status::Busy, 0).await;
        };
        let Some(blob) = open(inner, &request.hash) else {
            return self.refuse(Status::NotFound, 0).await;
        };
        let total = blob.length();
        let Some(left) = total.checked_sub(request.offset) else {
            return self.refuse(Status::PastEnd, total).await;
        };
        if total > request.total_max {
            return self.refuse(Status::OverCap, total).await;
        }
        let length = left.min(request.length);
        let status = Status::Ok;
        let head = Response { status, total };
        self.write(&mut [Bytes::copy_from_slice(&head.encode())])
            .await?;
        if let Err(error) = self.send_blob(blob, length, request).await {
            self.0.abort();
            return Err(error);
        }
        self.0.finish().await?;
        Ok(status)
    }

    /// `length` bytes of `blob` from where `request` says on, which lie within it.
    async fn send_blob(&mut self, blob: Blob, length: u64, request: &Request) -> io::Result<()> {
        let mut left = blob.length() - request.offset;
        let mut chunks = Chunks::open(blob, request.offset, length).await?;
        let mut packing = request.elements.map(Packing::new);
        while let Some(chunk) = chunks.next().await? {
            let of_chunk = chunk.len() as u64;
            match &mut packing {
                None => self.write(&mut [chunk]).await?,
                Some(packing) => {
                    let (head, body) = packing.dress(chunk, left, self.0.bytes_per_s()).await?;
                    self.write(&mut [head, body]).await?;
                }
            }
            left -= of_chunk;
        }
        Ok(())
    }

    pub(super) async fn refuse(&mut self, status: Status, total: u64) -> Result<Status, io::Error> {
        let head = Response { status, total };
        self.write(&mut [Bytes::copy_from_slice(&head.encode())])
            .await?;
        self.0.end().await?;
        Ok(status)
    }

    async fn write(&mut self, pieces: &mut [Bytes]) -> io::Result<()> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.0.write(pieces).await?;
        traffic::BULK.count_sent(length);
        metrics::counter!("gradmesh_bulk_bytes_total", "direction" => "out").increment(length);
        Ok(())
    }
}

/// A stream of QUIC.
struct Stream {
    connection: Connection,
    turns: Arc<Turns>,
    /// What the connection delivers, if that is known.
    delivery: Option<Delivery>,
    send: SendStream,
}

impl Answer<Stream> {
    async fn run(
        &mut self,
        inner: &Inner,
        peer: PeerId,
        mut recv: RecvStream,
    ) -> Result<Status, io::Error> {
        let mut wire = [0u8; REQUEST_BYTES];
        match timeout(REQUEST_TIMEOUT, recv.read_exact(&mut wire)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(io::Error::other(error)),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        let Ok(request) = Request::decode(&wire) else {
            return self.refuse(Status::BadRequest, 0).await;
        };
        match request.kind {
            Kind::Wait => self.hold(inner, peer, &request).await,
            Kind::Blob => self.give(inner, peer, &request).await,
        }
    }

    /// Says when a blob can be had that is on its way here (`held.rs`).
    async fn hold(
        &mut self,
        inner: &Inner,
        peer: PeerId,
        request: &Request,
    ) -> Result<Status, io::Error> {
        let limits = &inner.limits;
        let (Ok(_permit), Some(_place)) = (
            inner.holding.try_acquire(),
            Place::take(&inner.held_for, peer, limits.requests_held_per_peer_max),
        ) else {
            return self.refuse(Status::Busy, 0).await;
        };
        let hold = inner.flights.hold(request.hash);
        let (began, mut came) = (Instant::now(), false);
        loop {
            let changed = hold.changed();
            let age = began.elapsed();
            if let Some(blob) = open(inner, &request.hash) {
                return self.refuse(Status::Ok, blob.length()).await;
            }
            let standing = hold.standing();
            let patience = match standing {
                Standing::Coming | Standing::Landed(_) => HELD_MAX,
                Standing::Unheard if !came => limits.unheard_max,
                // The fetch has failed, or rule `waits-end`.
                Standing::Unheard | Standing::Awaited => Duration::ZERO,
            };
            came |= standing == Standing::Coming;
            if age >= patience {
                return self.refuse(Status::NotFound, 0).await;
            }
            let (status, total) = (Status::Held, 0);
            let held = Response { status, total };
            self.write(&mut [Bytes::copy_from_slice(&held.encode())])
                .await?;
            tokio::select! {
                () = changed => {}
                () = sleep(limits.overtake_after / HELD_BEATS) => {}
                _ = self.0.send.stopped() => return Ok(Status::Held),
            }
        }
    }
}

impl Outlet for Stream {
    /// Hands `pieces` to QUIC without copying them, when it is this stream's turn and there is room in the windows.
    async fn write(&mut self, pieces: &mut [Bytes]) -> io::Result<()> {
        let _turn = self.turns.lock().await;
        match timeout(CHUNK_TIMEOUT, self.send.write_all_chunks(pieces)).await {
            Ok(written) => written.map_err(io::Error::other),
            Err(_) => Err(self.peer_is_too_slow()),
        }
    }

    async fn end(&mut self) -> io::Result<()> {
        self.send.finish().map_err(io::Error::other)
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.end().await?;
        let sent = || self.connection.stats().frame_tx.stream;
        for _ in 0..FINISH_TIMEOUTS_MAX {
            let before = sent();
            match timeout(CHUNK_TIMEOUT, self.send.stopped()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(io::Error::other(error)),
                // Other streams, or what of this one is before its end, may still be on their way.
                Err(_) if sent() > before => {}
                Err(_) => break,
            }
        }
        Err(self.peer_is_too_slow())
    }

    fn abort(&mut self) {
        let _ = self.send.reset(RESET_IO);
    }

    fn bytes_per_s(&self) -> Option<f64> {
        self.delivery.as_ref().and_then(Delivery::bytes_per_s)
    }
}

impl Stream {
    /// A peer that takes nothing of one stream takes nothing of the others: windows of streams are no smaller than
    /// that of their connection.
    fn peer_is_too_slow(&self) -> io::Error {
        self.connection.close(CLOSE_SLOW, b"too slow");
        io::ErrorKind::TimedOut.into()
    }
}

/// Counts how an answer ended.
pub(super) fn note(peer: PeerId, ended: &io::Result<Status>) {
    let status = match ended {
        Ok(status) => status_name(*status),
        Err(error) => {
            tracing::debug!(%peer, %error, "bulk request failed");
            "failed"
        }
    };
    metrics::counter!("gradmesh_bulk_served_total", "status" => status).increment(1);
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::NotFound => "not_found",
        Status::Busy => "busy",
        Status::OverCap => "over_cap",
        Status::PastEnd => "past_end",
        Status::BadRequest => "bad_request",
        Status::Held => "given_up",
    }
}

/// What is in the store, or has just been fetched.
fn open(inner: &Inner, hash: &BlobHash) -> Option<Blob> {
    inner
        .source
        .open(hash)
        .or_else(|| match inner.flights.standing(hash) {
            Standing::Landed(bytes) => Some(Blob::Memory(bytes)),
            Standing::Coming | Standing::Awaited | Standing::Unheard => None,
        })
}

/// What peers hold, by peer: incoming connections, or streams being served; at most as many entries as of those.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<PeerId, usize>>);

/// One of the things that a peer holds, counted until it is dropped.
pub(super) struct Place<'a> {
    places: &'a Places,
    peer: PeerId,
}

impl<'a> Place<'a> {
    pub(super) fn take(places: &'a Places, peer: PeerId, per_peer_max: usize) -> Option<Self> {
        let mut counts = places.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_insert(0);
        if *count >= per_peer_max {
            return None;
        }
        *count += 1;
        Some(Self { places, peer })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}
