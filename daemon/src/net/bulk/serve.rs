//! The serving side: accepts connections and answers requests from a [`BlobSource`](crate::blob::BlobSource).
//!
//! Nothing a peer does can make it hold more than: `connections_max` incoming connections (`connections_per_peer_max`
//! of one peer), `streams_per_connection_max` streams on each, `streams_served_max` of all of them with bytes in
//! flight (`streams_served_per_peer_max` for one peer), each of those for at most one chunk beyond the connection's
//! send window. Streams of a connection share its rate evenly, connections share the link by congestion control.

use std::collections::HashMap;
use std::io::{self, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use libp2p::PeerId;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::timeout;

use super::wire::{REQUEST_BYTES, Request, Response, Status};
use super::{CLOSE_DENIED, CLOSE_FULL, Inner, tls};
use crate::blob::{Blob, FileRange};
use crate::net::traffic;

/// A client that opens a stream sends its request with it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Unit of reading files and of measuring progress.
const CHUNK_BYTES: usize = 256 * 1024;
/// Time in which a peer must take one chunk: 9 kB/s at least.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Stream reset codes.
const RESET_IO: VarInt = VarInt::from_u32(1);
const RESET_SLOW: VarInt = VarInt::from_u32(2);

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
    inner.links.ended(peer, 0, &connection);
    Ok(())
}

/// Answers the requests that come over `connection`, whichever side opened it, until it ends.
pub(super) async fn serve(inner: &Arc<Inner>, connection: &Connection, peer: PeerId) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        if !(inner.allow)(&peer) {
            connection.close(CLOSE_DENIED, b"denied");
            return;
        }
        // Tasks are bounded by connections times streams per connection, which QUIC enforces.
        let inner = Arc::clone(inner);
        tokio::spawn(async move {
            let status = answer(&inner, peer, send, recv).await;
            let status = match &status {
                Ok(status) => status_name(*status),
                Err(error) => {
                    tracing::debug!(%peer, %error, "bulk request failed");
                    "failed"
                }
            };
            metrics::counter!("gradmesh_bulk_served_total", "status" => status).increment(1);
        });
    }
}

async fn answer(
    inner: &Inner,
    peer: PeerId,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<Status, io::Error> {
    let mut wire = [0u8; REQUEST_BYTES];
    match timeout(REQUEST_TIMEOUT, recv.read_exact(&mut wire)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(io::Error::other(error)),
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    let share = inner.limits.streams_served_per_peer_max;
    let (Ok(_permit), Some(_place)) = (
        inner.serving.try_acquire(),
        Place::take(&inner.asked_by, peer, share),
    ) else {
        return refuse(&mut send, Status::Busy, 0).await;
    };
    let Ok(request) = Request::decode(&wire) else {
        return refuse(&mut send, Status::BadRequest, 0).await;
    };
    let Some(blob) = inner.source.open(&request.hash) else {
        return refuse(&mut send, Status::NotFound, 0).await;
    };
    let total = blob.length();
    let Some(left) = total.checked_sub(request.offset) else {
        return refuse(&mut send, Status::PastEnd, total).await;
    };
    if total > request.total_max {
        return refuse(&mut send, Status::OverCap, total).await;
    }
    let length = left.min(request.length);
    let head = Response {
        status: Status::Ok,
        total,
    };
    write(&mut send, Bytes::copy_from_slice(&head.encode())).await?;
    match blob {
        Blob::Memory(bytes) => {
            // Offset and length lie within bytes in memory, so they fit.
            let offset = usize::try_from(request.offset).map_err(io::Error::other)?;
            let length = usize::try_from(length).map_err(io::Error::other)?;
            let mut rest = bytes.slice(offset..offset + length);
            while !rest.is_empty() {
                let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
                write(&mut send, chunk).await?;
            }
        }
        Blob::File(range) => {
            if let Err(error) = send_file(&mut send, &range, request.offset, length).await {
                let _ = send.reset(RESET_IO);
                return Err(error);
            }
        }
    }
    finish(send).await?;
    Ok(Status::Ok)
}

async fn refuse(send: &mut SendStream, status: Status, total: u64) -> Result<Status, io::Error> {
    let head = Response { status, total };
    write(send, Bytes::copy_from_slice(&head.encode())).await?;
    send.finish().map_err(io::Error::other)?;
    Ok(status)
}

/// `length` bytes of `range` from `offset` on, which lie within it.
async fn send_file(
    send: &mut SendStream,
    range: &FileRange,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    let mut file = File::open(&range.path).await?;
    let start = range.offset.checked_add(offset).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "file range exceeds 2^64 bytes")
    })?;
    file.seek(SeekFrom::Start(start)).await?;
    let mut file = file.take(length);
    let mut left = length;
    while left > 0 {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = file.read_buf(&mut chunk).await?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{} is {left} bytes shorter than registered",
                    range.path.display()
                ),
            ));
        }
        left -= read as u64;
        write(send, chunk.freeze()).await?;
    }
    Ok(())
}

/// Hands `chunk` to QUIC without copying it; waits for room in the windows, for a bounded time.
async fn write(send: &mut SendStream, chunk: Bytes) -> io::Result<()> {
    let length = chunk.len() as u64;
    match timeout(CHUNK_TIMEOUT, send.write_chunk(chunk)).await {
        Ok(written) => written.map_err(io::Error::other)?,
        Err(_) => {
            let _ = send.reset(RESET_SLOW);
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    traffic::BULK.count_sent(length);
    metrics::counter!("gradmesh_bulk_bytes_total", "direction" => "out").increment(length);
    Ok(())
}

/// Waits until the peer has everything, so that the permit of the stream covers its buffered bytes too.
async fn finish(mut send: SendStream) -> io::Result<()> {
    send.finish().map_err(io::Error::other)?;
    match timeout(CHUNK_TIMEOUT, send.stopped()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => {
            let _ = send.reset(RESET_SLOW);
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::NotFound => "not_found",
        Status::Busy => "busy",
        Status::OverCap => "over_cap",
        Status::PastEnd => "past_end",
        Status::BadRequest => "bad_request",
    }
}

/// What peers hold, by peer: incoming connections, or streams being served; at most as many entries as of those.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<PeerId, usize>>);

/// One of the things that a peer holds, counted until it is dropped.
struct Place<'a> {
    places: &'a Places,
    peer: PeerId,
}

impl<'a> Place<'a> {
    fn take(places: &'a Places, peer: PeerId, per_peer_max: usize) -> Option<Self> {
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
