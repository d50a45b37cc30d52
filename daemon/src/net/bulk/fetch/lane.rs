//! One transfer: one part of a blob from one source, over one stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use quinn::{ReadExactError, RecvStream};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::super::links::Lease;
use super::super::wire::{RESPONSE_BYTES, Request, Response, Status};
use super::super::{Blame, Inner, Length, PeerSource};
use super::assembly::Part;
use crate::blob::BlobHash;
use crate::net::traffic;

/// Packets taken from QUIC at once: one lock and one wake-up for all of them.
const READ_PACKETS: usize = 32;
/// Fewer bytes than this in one stall window, with more to come, and the source counts as stalled: 1.6 kB/s with the
/// default window. Sixteen streams that share 1 Mbit/s get five times that each.
const MIN_WINDOW_BYTES: usize = 16 * 1024;

/// What a lane is to do.
pub(super) struct Errand {
    pub(super) inner: Arc<Inner>,
    pub(super) source: PeerSource,
    pub(super) hash: BlobHash,
    pub(super) length: Length,
    pub(super) part: Part,
    /// Which of the connections to the peer to use.
    pub(super) line: usize,
    pub(super) watch: Arc<Watch>,
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
    /// Milliseconds from `began` to the last sign of life.
    moved_ms: AtomicU64,
    /// Whether it waits until other streams to the source have ended.
    queued: AtomicBool,
    give_up: Notify,
}

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            bytes: AtomicU64::new(0),
            moved_ms: AtomicU64::new(0),
            queued: AtomicBool::new(false),
            give_up: Notify::new(),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether it waits until other streams to the source have ended.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed)
    }

    /// Time without a sign of life.
    pub(super) fn idle(&self) -> Duration {
        let moved = Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(moved)
    }

    /// Bytes a second so far.
    pub(super) fn rate(&self) -> f64 {
        self.bytes() as f64 / self.began.elapsed().as_secs_f64().max(1e-3)
    }

    pub(super) fn give_up(&self) {
        self.give_up.notify_one();
    }

    fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(ms, Ordering::Relaxed);
    }

    fn queues(&self, queued: bool) {
        self.queued.store(queued, Ordering::Relaxed);
        self.moved(0);
    }
}

impl Errand {
    /// Fills the part as far as the source lets it.
    pub(super) async fn run(self) -> (Part, Ended) {
        let Errand {
            inner,
            source,
            hash,
            length,
            mut part,
            line,
            watch,
        } = self;
        let transfer = async {
            let before = part.filled();
            for again in [true, false] {
                let lease = inner
                    .links
                    .lease(&inner, source.peer, source.addr, line)
                    .await?;
                let ended =
                    transfer(&inner, &lease, source.peer, hash, length, &mut part, &watch).await;
                // A connection of old that breaks before the first byte is replaced once: its other end may have
                // restarted.
                let stale = matches!(ended, Err(Blame::Died(_)))
                    && lease.reused
                    && lease.connection.close_reason().is_some()
                    && part.filled() == before;
                if !(stale && again) {
                    return ended;
                }
            }
            Err(Blame::Died("connection was replaced twice".to_owned()))
        };
        let ended = tokio::select! {
            biased;
            () = watch.give_up.notified() => Ended::Overtaken,
            ended = transfer => ended.unwrap_or_else(Ended::Failed),
        };
        (part, ended)
    }
}

async fn transfer(
    inner: &Inner,
    lease: &Lease,
    peer: PeerId,
    hash: BlobHash,
    length: Length,
    part: &mut Part,
    watch: &Watch,
) -> Result<Ended, Blame> {
    let mut window = Window::open(inner.limits.stall_window);
    let request = Request {
        hash,
        offset: part.offset(),
        length: part.missing().map_or(u64::MAX, |missing| missing as u64),
        total_max: length.bytes_max(),
    };
    let opened = timeout_at(window.end, async {
        watch.queues(true);
        let (mut send, mut recv) = lease.connection.open_bi().await.map_err(died)?;
        watch.queues(false);
        send.write_all(&request.encode()).await.map_err(died)?;
        send.finish().map_err(died)?;
        let mut wire = [0u8; RESPONSE_BYTES];
        recv.read_exact(&mut wire)
            .await
            .map_err(|error| match error {
                ReadExactError::FinishedEarly(_) => Blame::Protocol("no response".to_owned()),
                ReadExactError::ReadError(error) => died(error),
            })?;
        Ok((wire, recv))
    })
    .await;
    let (wire, mut recv) = opened.map_err(|_| Blame::Stalled)??;
    watch.moved(0);
    let response = Response::decode(&wire).map_err(|error| Blame::Protocol(error.to_string()))?;
    let claimed = response.total;
    match response.status {
        Status::NotFound => return Err(Blame::NotFound),
        Status::Busy => return Err(Blame::Busy),
        Status::OverCap => return Err(Blame::OverCap { claimed }),
        Status::BadRequest => return Err(Blame::Protocol("request refused".to_owned())),
        Status::Ok | Status::PastEnd => {}
    }
    match length {
        _ if claimed > length.bytes_max() => return Err(Blame::OverCap { claimed }),
        Length::Exactly(length) if claimed != length => {
            return Err(Blame::OtherLength { claimed });
        }
        Length::Exactly(_) | Length::AtMost(_) => {}
    }
    if !part.continued_by(peer, claimed) {
        return Ok(Ended::LengthDiffers);
    }
    if response.status == Status::PastEnd {
        return Err(Blame::Protocol(format!(
            "byte {} is past the end of {claimed} bytes",
            request.offset
        )));
    }
    receive(&mut recv, &mut window, peer, inner, part, watch).await
}

async fn receive(
    recv: &mut RecvStream,
    window: &mut Window,
    peer: PeerId,
    inner: &Inner,
    part: &mut Part,
    watch: &Watch,
) -> Result<Ended, Blame> {
    let mut packets: [Bytes; READ_PACKETS] = Default::default();
    while let Some(left @ 1..) = part.missing() {
        match timeout_at(window.end, recv.read_chunks(&mut packets)).await {
            Ok(Ok(Some(count))) => {
                let mut taken = 0;
                for packet in packets.iter_mut().take(count) {
                    taken += part.append(&std::mem::take(packet));
                }
                if watch.bytes() == 0 {
                    inner.links.moves(&peer);
                }
                window.bytes += taken;
                watch.moved(taken);
                traffic::BULK.count_received(taken as u64);
                metrics::counter!("gradmesh_bulk_bytes_total", "direction" => "in")
                    .increment(taken as u64);
            }
            Ok(Ok(None)) => {
                return Err(Blame::Protocol(format!(
                    "ended {left} bytes before the end that it had named"
                )));
            }
            Ok(Err(error)) => return Err(died(error)),
            Err(_) if window.bytes < MIN_WINDOW_BYTES => return Err(Blame::Stalled),
            Err(_) => *window = Window::open(window.length),
        }
        if window.bytes >= MIN_WINDOW_BYTES && Instant::now() >= window.end {
            *window = Window::open(window.length);
        }
    }
    Ok(Ended::Complete)
}

/// A stretch of time in which a source must make progress.
struct Window {
    length: Duration,
    end: Instant,
    bytes: usize,
}

impl Window {
    fn open(length: Duration) -> Self {
        Self {
            length,
            end: Instant::now() + length,
            bytes: 0,
        }
    }
}

/// `error` is one of quinn's, on a connection or a stream: in all of them the source is gone.
fn died(error: impl std::error::Error) -> Blame {
    Blame::Died(error.to_string())
}
