//! The fetching side: puts one blob together from sources that may die, stall or lie.
//!
//! Sources are tried in order. Bytes of a source that died are kept and the next one continues behind them; nothing
//! is handed over before BLAKE3 of the whole is the hash that was asked for. When it is not, and
//!
//! - one source sent everything: it lied, and is blamed ([`Blame::WrongBytes`]);
//! - several did: who lied is not known yet. The fetch starts over with the last of them alone, and once a blob has
//!   been verified, whose bytes differed from it is blamed.
//!
//! The same goes for sources that disagree on the length. Memory grows with the bytes that have arrived, never with
//! the length that was claimed, and never beyond the caller's cap.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use quinn::{ReadExactError, RecvStream};
use tokio::time::{Instant, sleep, timeout_at};

use super::links::Lease;
use super::wire::{RESPONSE_BYTES, Request, Response, Status};
use super::{Blame, FetchError, FetchFailed, FetchReport, Fetched, Inner, PeerSource};
use crate::blob::BlobHash;

/// A busy source is asked again after 50 ms, then after twice that, this many times.
const BUSY_RETRIES: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Packets taken from QUIC at once: one lock and one wake-up for all of them.
const READ_PACKETS: usize = 32;
/// Bytes hashed at once: enough for BLAKE3 to use all lanes of the CPU, few enough to be in its cache still.
const HASH_BYTES: usize = 128 * 1024;
/// First allocation; beyond it the buffer doubles as bytes arrive.
const BUFFER_BYTES_FIRST: usize = 1024 * 1024;

pub(super) async fn fetch(
    inner: &Arc<Inner>,
    hash: BlobHash,
    bytes_max: u64,
    sources: &[PeerSource],
    deadline: Instant,
) -> Result<Fetched, FetchFailed> {
    let mut report = FetchReport::default();
    let fetched = timeout_at(deadline, async {
        let _permit = inner
            .fetches
            .acquire()
            .await
            .map_err(|_| FetchError::Stopped)?;
        assemble(inner, hash, bytes_max, sources, &mut report).await
    })
    .await
    .unwrap_or(Err(FetchError::Deadline));
    match fetched {
        Ok(bytes) => {
            metrics::counter!("gradmesh_bulk_fetches_total", "outcome" => "ok").increment(1);
            Ok(Fetched { bytes, report })
        }
        Err(error) => {
            metrics::counter!("gradmesh_bulk_fetches_total", "outcome" => "failed").increment(1);
            Err(FetchFailed { error, report })
        }
    }
}

/// A source and how often it was busy.
struct Candidate<'a> {
    source: &'a PeerSource,
    busy: u32,
}

async fn assemble(
    inner: &Arc<Inner>,
    hash: BlobHash,
    bytes_max: u64,
    sources: &[PeerSource],
    report: &mut FetchReport,
) -> Result<Bytes, FetchError> {
    let mut candidates: VecDeque<Candidate<'_>> = sources
        .iter()
        .map(|source| Candidate { source, busy: 0 })
        .collect();
    let mut assembly = Assembly::default();
    let mut suspects: Vec<Suspect> = Vec::new();
    let mut all_not_found = !sources.is_empty();
    while let Some(candidate) = candidates.pop_front() {
        let peer = candidate.source.peer;
        if candidate.busy > 0 {
            sleep(BUSY_PAUSE * 2u32.pow(candidate.busy - 1)).await;
        }
        let ended = continue_from(
            inner,
            candidate.source,
            hash,
            bytes_max,
            &mut assembly,
            report,
        )
        .await;
        all_not_found &= matches!(ended, Err(Blame::NotFound));
        let conflict = match ended {
            Ok(Progress::Complete) if assembly.hash() == hash => {
                let bytes = Bytes::from(assembly.bytes);
                for suspect in suspects {
                    if !suspect.told_the_truth(&bytes) {
                        report.blame(suspect.peer, Blame::WrongBytes);
                    }
                }
                return Ok(bytes);
            }
            Ok(Progress::Complete) => true,
            Ok(Progress::LengthDiffers) => true,
            Err(Blame::Busy) if candidate.busy < BUSY_RETRIES => {
                let busy = candidate.busy + 1;
                candidates.push_back(Candidate { busy, ..candidate });
                false
            }
            Err(blame) => {
                report.blame(peer, blame);
                false
            }
        };
        if conflict {
            if assembly.is_of(&peer) {
                report.blame(peer, Blame::WrongBytes);
            } else {
                suspects.extend(assembly.suspects());
                candidates.push_front(Candidate {
                    source: candidate.source,
                    busy: 0,
                });
            }
            assembly = Assembly::default();
        }
    }
    if all_not_found {
        Err(FetchError::NotFound)
    } else {
        Err(FetchError::Exhausted)
    }
}

/// What one source added.
enum Progress {
    /// All bytes up to the claimed length are there.
    Complete,
    /// The source claims another length than those before it.
    LengthDiffers,
}

/// Asks `source` for what is missing. A connection of old that breaks before the first byte is replaced once: its
/// other end may have restarted.
async fn continue_from(
    inner: &Arc<Inner>,
    source: &PeerSource,
    hash: BlobHash,
    bytes_max: u64,
    assembly: &mut Assembly,
    report: &mut FetchReport,
) -> Result<Progress, Blame> {
    let before = assembly.bytes.len();
    let lease = inner.links.lease(inner, source.peer, source.addr).await?;
    let ended = transfer(
        inner,
        &lease,
        source.peer,
        hash,
        bytes_max,
        assembly,
        report,
    )
    .await;
    let stale = matches!(ended, Err(Blame::Died(_)))
        && lease.reused
        && lease.connection.close_reason().is_some()
        && assembly.bytes.len() == before;
    if !stale {
        return ended;
    }
    let lease = inner.links.lease(inner, source.peer, source.addr).await?;
    transfer(
        inner,
        &lease,
        source.peer,
        hash,
        bytes_max,
        assembly,
        report,
    )
    .await
}

async fn transfer(
    inner: &Inner,
    lease: &Lease,
    peer: PeerId,
    hash: BlobHash,
    bytes_max: u64,
    assembly: &mut Assembly,
    report: &mut FetchReport,
) -> Result<Progress, Blame> {
    let offset = assembly.bytes.len() as u64;
    let mut window = Window::open(inner.limits.stall_window);
    let opened = timeout_at(window.end, async {
        let (mut send, recv) = lease.connection.open_bi().await.map_err(died)?;
        let request = Request {
            hash,
            offset,
            length_max: bytes_max - offset,
        };
        send.write_all(&request.encode()).await.map_err(died)?;
        send.finish().map_err(died)?;
        let mut recv = recv;
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
    let response = Response::decode(&wire).map_err(|error| Blame::Protocol(error.to_string()))?;
    match response.status {
        Status::Ok => {}
        Status::NotFound => return Err(Blame::NotFound),
        Status::Busy => return Err(Blame::Busy),
        Status::OverCap => {
            return Err(Blame::OverCap {
                claimed: response.total,
            });
        }
        Status::PastEnd => {
            assembly
                .segments
                .push(Segment::empty(peer, offset, response.total));
            return Ok(Progress::LengthDiffers);
        }
        Status::BadRequest => return Err(Blame::Protocol("request refused".to_owned())),
    }
    if response.total > bytes_max {
        return Err(Blame::OverCap {
            claimed: response.total,
        });
    }
    assembly
        .segments
        .push(Segment::empty(peer, offset, response.total));
    if *assembly.total.get_or_insert(response.total) != response.total || response.total < offset {
        return Ok(Progress::LengthDiffers);
    }
    receive(
        &mut recv,
        &mut window,
        response.total,
        peer,
        assembly,
        report,
    )
    .await
}

async fn receive(
    recv: &mut RecvStream,
    window: &mut Window,
    total: u64,
    peer: PeerId,
    assembly: &mut Assembly,
    report: &mut FetchReport,
) -> Result<Progress, Blame> {
    let mut packets: [Bytes; READ_PACKETS] = Default::default();
    loop {
        // `total` is within the caller's cap; on a machine that cannot address that many bytes the cap is too high.
        let left = usize::try_from(total - assembly.bytes.len() as u64)
            .map_err(|_| Blame::OverCap { claimed: total })?;
        if left == 0 {
            return Ok(Progress::Complete);
        }
        let read = timeout_at(window.end, recv.read_chunks(&mut packets)).await;
        match read {
            Ok(Ok(Some(count))) => {
                for packet in packets.iter_mut().take(count) {
                    let packet = std::mem::take(packet);
                    let taken = assembly.append(&packet, total);
                    window.bytes += taken;
                    report.count(peer, taken);
                }
            }
            Ok(Ok(None)) => {
                return Err(Blame::Protocol(format!(
                    "ended {left} bytes before the claimed length of {total}"
                )));
            }
            Ok(Err(error)) => return Err(died(error)),
            Err(_) if window.bytes < MIN_WINDOW_BYTES => return Err(Blame::Stalled),
            Err(_) => *window = Window::open(window.length),
        }
        if Instant::now() >= window.end && window.bytes >= MIN_WINDOW_BYTES {
            *window = Window::open(window.length);
        }
    }
}

/// Fewer bytes than this in one stall window, with more to come, and the source counts as stalled: 1.6 kB/s with the
/// default window. Sixteen streams that share 1 Mbit/s get five times that each.
const MIN_WINDOW_BYTES: usize = 16 * 1024;

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

/// The bytes so far, who sent which of them, and the running hash of the first `hashed` ones.
#[derive(Default)]
struct Assembly {
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
    hashed: usize,
    total: Option<u64>,
    segments: Vec<Segment>,
}

/// What one source contributed: from `start` to the start of the next segment.
struct Segment {
    peer: PeerId,
    start: usize,
    claimed_total: u64,
}

impl Segment {
    fn empty(peer: PeerId, offset: u64, claimed_total: u64) -> Self {
        Self {
            peer,
            // The offset is the length of a buffer of ours.
            start: usize::try_from(offset).unwrap_or(usize::MAX),
            claimed_total,
        }
    }
}

impl Assembly {
    /// Adds `packet`, of which what exceeds `total` is ignored: the claimed length rules. Returns the bytes taken.
    fn append(&mut self, packet: &[u8], total: u64) -> usize {
        let left = usize::try_from(total - self.bytes.len() as u64).unwrap_or(usize::MAX);
        let packet = &packet[..packet.len().min(left)];
        if self.bytes.capacity() - self.bytes.len() < packet.len() {
            let more = self.bytes.len().max(BUFFER_BYTES_FIRST).min(left);
            self.bytes.reserve_exact(more.max(packet.len()));
        }
        self.bytes.extend_from_slice(packet);
        if self.bytes.len() - self.hashed >= HASH_BYTES {
            self.hash_rest();
        }
        packet.len()
    }

    fn hash_rest(&mut self) {
        self.hasher.update(&self.bytes[self.hashed..]);
        self.hashed = self.bytes.len();
    }

    fn hash(&mut self) -> BlobHash {
        self.hash_rest();
        *self.hasher.finalize().as_bytes()
    }

    /// Whether `peer` alone is answerable for every byte and for the length.
    fn is_of(&self, peer: &PeerId) -> bool {
        self.segments.iter().all(|segment| segment.peer == *peer)
    }

    fn suspects(&self) -> Vec<Suspect> {
        let ends = self
            .segments
            .iter()
            .skip(1)
            .map(|segment| segment.start)
            .chain([self.bytes.len()]);
        self.segments
            .iter()
            .zip(ends)
            .filter_map(|(segment, end)| {
                let sent = self.bytes.get(segment.start..end)?;
                Some(Suspect {
                    peer: segment.peer,
                    start: segment.start,
                    end,
                    hash: blake3::hash(sent),
                    claimed_total: segment.claimed_total,
                })
            })
            .collect()
    }
}

/// What a source contributed to an assembly that did not verify; judged once the true bytes are known.
struct Suspect {
    peer: PeerId,
    start: usize,
    end: usize,
    hash: blake3::Hash,
    claimed_total: u64,
}

impl Suspect {
    fn told_the_truth(&self, truth: &[u8]) -> bool {
        let bytes_true = self.start == self.end
            || truth
                .get(self.start..self.end)
                .is_some_and(|bytes| blake3::hash(bytes) == self.hash);
        bytes_true && self.claimed_total == truth.len() as u64
    }
}

impl FetchReport {
    fn count(&mut self, peer: PeerId, bytes: usize) {
        metrics::counter!("gradmesh_bulk_bytes_total", "direction" => "in").increment(bytes as u64);
        match self.bytes_from.iter_mut().find(|(known, _)| *known == peer) {
            Some((_, count)) => *count += bytes as u64,
            None => self.bytes_from.push((peer, bytes as u64)),
        }
    }

    fn blame(&mut self, peer: PeerId, blame: Blame) {
        metrics::counter!("gradmesh_bulk_source_failures_total", "blame" => blame.name())
            .increment(1);
        tracing::debug!(%peer, %blame, "bulk source failed");
        self.blamed.push((peer, blame));
    }
}

/// `error` is one of quinn's, on a connection or a stream: in all of them the source is gone.
fn died(error: impl std::error::Error) -> Blame {
    Blame::Died(error.to_string())
}
