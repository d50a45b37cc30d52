//! Fetching by hash: frames, states and data files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use gradmesh_compression::planes::Width;
use gradmesh_compression::{Codec, DecodeError, DenseFormat, TILE_ELEMENTS};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::FrameId;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::merkle;
use gradmesh_protocol::roster::Roster;
use gradmesh_protocol::wire::{Request, Response};
use gradmesh_trainer::data::DataManifest;
use gradmesh_trainer::replica::Shape;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::rpc::Caller;
use super::{peer_id, rpc};
use crate::net::bulk::{Blame, Bulk, FetchFailed, FetchReport, Fetched, Length, Order, PeerSource};

/// A residual that takes longer is done without. A guess.
const RESIDUAL_TIMEOUT: Duration = Duration::from_secs(120);
/// Leaves or files on their way at once, over all sources.
const PIECES_AT_ONCE: usize = 16;
/// The longest leaf: a tile of theta and one of momentum, f32.
const LEAF_BYTES_MAX: u64 = 2 * 4 * TILE_ELEMENTS as u64;

/// Peers whose bulk plane is known: as many as the control plane has connections.
const CONTACTS_MAX: usize = crate::net::control::CONNECTIONS_MAX as usize;

/// Where peers' bulk planes listen. Bounded by [`CONTACTS_MAX`].
#[derive(Clone, Debug, Default)]
pub(super) struct Contacts {
    addresses: Arc<RwLock<BTreeMap<PeerKey, SocketAddr>>>,
}

impl Contacts {
    /// Notes where `peer` listens. When full, newcomers are not noted: they say it again every few seconds, and places
    /// become free when peers disconnect.
    pub(super) fn insert(&self, peer: PeerKey, address: SocketAddr) {
        let mut addresses = self.addresses.write().unwrap_or_else(|e| e.into_inner());
        if addresses.len() < CONTACTS_MAX || addresses.contains_key(&peer) {
            addresses.insert(peer, address);
        }
    }

    pub(super) fn remove(&self, peer: &PeerKey) {
        let mut addresses = self.addresses.write().unwrap_or_else(|e| e.into_inner());
        addresses.remove(peer);
    }

    /// The sources among `peers` that can be reached, in their order.
    pub(super) fn sources(&self, peers: &[PeerKey]) -> Vec<PeerSource> {
        let addresses = self.addresses.read().unwrap_or_else(|e| e.into_inner());
        let sources = peers.iter().filter_map(|key| {
            let addr = *addresses.get(key)?;
            let peer = peer_id(key)?;
            Some(PeerSource { peer, addr })
        });
        sources.collect()
    }
}

/// Why a frame is not at hand.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Fetch(#[from] FetchFailed),
    #[error(transparent)]
    Malformed(#[from] FrameFault),
    /// Nobody wants it any more.
    #[error("its round is over")]
    Over,
    #[error("the task ended: {0}")]
    Task(#[from] JoinError),
}

/// Why bytes with the right hash are not the frame that a header names: its author is at fault.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameFault {
    #[error("it has {found} bytes, its header says {named}")]
    Length { found: u64, named: u64 },
    #[error("it does not decode: {0}")]
    Content(#[from] DecodeError),
}

/// Fetches a frame and checks it, away from the thread that listens: frames that arrive together are checked together.
pub(super) async fn checked_frame(
    bulk: Bulk,
    shape: Arc<Shape>,
    id: FrameId,
    sources: Sources,
) -> Result<Fetched, FrameError> {
    let elements = width(shape.config().codec(id.stage));
    let fetched = frame(bulk, id, elements, sources).await?;
    let bytes = fetched.bytes.clone();
    let checked = tokio::task::spawn_blocking(move || check(&shape, &id, &bytes));
    checked.await??;
    Ok(fetched)
}

/// What `fetched` gives, unless the round `of` of the frame is over before: frames of rounds before `wanted_from` are wanted no
/// more.
pub(super) async fn while_wanted<T>(
    of: RoundId,
    mut wanted_from: watch::Receiver<RoundId>,
    fetched: impl Future<Output = Result<T, FrameError>>,
) -> Result<T, FrameError> {
    tokio::select! {
        result = fetched => result,
        Ok(_) = wanted_from.wait_for(|first| of < *first) => Err(FrameError::Over),
    }
}

/// Whether `bytes`, whose hash is right, are the frame `id`.
pub(super) fn check(shape: &Shape, id: &FrameId, bytes: &[u8]) -> Result<(), FrameFault> {
    let found = bytes.len() as u64;
    if found != id.bytes {
        let named = id.bytes;
        return Err(FrameFault::Length { found, named });
    }
    Ok(shape.check_frame(id.stage, id.shard as usize, bytes)?)
}

/// Who may have a blob, best first, and how many of them, from the first on, are in the own site.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    pub(super) all: Vec<PeerSource>,
    pub(super) near: usize,
}

impl Contacts {
    /// The sources among `peers` that can be reached; up to the first that is not in the site of `asker` they are near.
    pub(super) fn by_site(&self, peers: &[PeerKey], asker: &PeerKey, roster: &Roster) -> Sources {
        let site_of = |peer| roster.member(peer).map(|member| member.link.site);
        let own = site_of(asker);
        let outside = |peer| own.is_none() || site_of(peer) != own;
        let near = peers.iter().position(outside).unwrap_or(peers.len());
        let (near, far) = peers.split_at(near);
        let mut all = self.sources(near);
        let near = all.len();
        all.extend(self.sources(far));
        Sources { all, near }
    }
}

/// The numbers that frames of `codec` end in, if they are of a kind that packing makes shorter.
fn width(codec: Codec) -> Option<Width> {
    match codec {
        Codec::Dense(DenseFormat::F32) => Some(Width::F32),
        Codec::Dense(DenseFormat::Bf16) => Some(Width::Bf16),
        Codec::Dense(DenseFormat::Int8 | DenseFormat::Int4) | Codec::Sparse { .. } => None,
    }
}

/// Fetches the bytes of a frame from `sources`, as many as its header says. Others are served them as long as the result
/// lives.
///
/// Fewer when that is the header's fault. A source that says so proves nothing; its bytes do, once their hash is right.
/// Therefore sources that claim a shorter blob are asked for it when nobody has one of the right length. More bytes
/// than the header says are never asked for.
async fn frame(
    bulk: Bulk,
    frame: FrameId,
    elements: Option<Width>,
    sources: Sources,
) -> Result<Fetched, FetchFailed> {
    let order = Order {
        near: sources.near,
        elements,
        ..Order::new(frame.hash.0, Length::Exactly(frame.bytes), &sources.all)
    };
    let fetched = match bulk.fetch_order(&order).await {
        Ok(fetched) => fetched,
        Err(failed) => {
            let claimants = claimants_of_fewer_bytes(frame.bytes, &failed.report, &sources.all);
            if claimants.is_empty() {
                return Err(failed);
            }
            let length = Length::AtMost(frame.bytes);
            bulk.fetch_order(&Order::new(frame.hash.0, length, &claimants))
                .await?
        }
    };
    for (peer, blame) in &fetched.report.blamed {
        tracing::debug!(%peer, ?blame, hash = %frame.hash, "a source of a frame failed");
    }
    Ok(fetched)
}

fn claimants_of_fewer_bytes(
    bytes: u64,
    report: &FetchReport,
    sources: &[PeerSource],
) -> Vec<PeerSource> {
    let claims_fewer = |source: &&PeerSource| {
        report.blamed.iter().any(|(peer, blame)| {
            matches!(blame, Blame::OtherLength { claimed } if *claimed < bytes)
                && *peer == source.peer
        })
    };
    sources.iter().filter(claims_fewer).copied().collect()
}

/// Fetches the residual `hash` of `bytes` bytes; `None` if no source has it.
pub(super) async fn residual(
    bulk: Bulk,
    hash: Hash,
    bytes: u64,
    sources: Vec<PeerSource>,
) -> Option<Bytes> {
    let order = Order {
        elements: Some(Width::F32),
        deadline: Some(Instant::now() + RESIDUAL_TIMEOUT),
        ..Order::new(hash.0, Length::Exactly(bytes), &sources)
    };
    Some(bulk.fetch_order(&order).await.ok()?.bytes)
}

/// Why a state could not be fetched from anybody.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("no source serves the leaves under the decided root")]
    NoLeaves,
    #[error("leaf {index}: {reason}")]
    Leaf { index: usize, reason: String },
}

/// A state whose leaves were verified under its root.
#[derive(Debug)]
pub(super) struct FetchedState {
    pub(super) leaves: Vec<Hash>,
    pub(super) tiles: Vec<Bytes>,
}

/// Fetches the state after `round`: first the list of its leaves, checked against `root`, then every leaf from all
/// sources at once, each checked by its hash. A source may die on the way.
pub(super) async fn state(
    bulk: Bulk,
    caller: Caller,
    contacts: Contacts,
    round: RoundId,
    root: Hash,
    counts: [usize; 2],
    peers: Vec<PeerKey>,
) -> Result<FetchedState, StateError> {
    let leaves = leaves(&caller, round, root, counts, &peers).await?;
    let mut fetched: Vec<Option<Bytes>> = vec![None; leaves.len()];
    let mut tasks = JoinSet::new();
    let mut next = 0;
    loop {
        while tasks.len() < PIECES_AT_ONCE
            && let Some(leaf) = leaves.get(next).copied()
        {
            // Each leaf begins with another source, so that all of them serve.
            let mut order = peers.clone();
            order.rotate_left(next % peers.len().max(1));
            let (bulk, sources) = (bulk.clone(), contacts.sources(&order));
            let index = next;
            tasks.spawn(async move {
                let length = Length::AtMost(LEAF_BYTES_MAX);
                let order = Order {
                    elements: Some(Width::F32),
                    ..Order::new(leaf.0, length, &sources)
                };
                (index, bulk.fetch_order(&order).await)
            });
            next += 1;
        }
        match tasks.join_next().await {
            None => break,
            Some(Ok((index, Ok(piece)))) => fetched[index] = Some(piece.bytes),
            Some(Ok((index, Err(failed)))) => {
                let reason = failed.error.to_string();
                return Err(StateError::Leaf { index, reason });
            }
            Some(Err(error)) => {
                let (index, reason) = (next, error.to_string());
                return Err(StateError::Leaf { index, reason });
            }
        }
    }
    let tiles = fetched.into_iter().flatten().collect();
    Ok(FetchedState { leaves, tiles })
}

async fn leaves(
    caller: &Caller,
    round: RoundId,
    root: Hash,
    counts: [usize; 2],
    peers: &[PeerKey],
) -> Result<Vec<Hash>, StateError> {
    for peer in peers {
        match caller.ask(*peer, Request::Snapshot(round)).await {
            Ok(Response::Snapshot { round: of, leaves }) if of == round => {
                let fits = counts.contains(&leaves.len());
                if fits && merkle::Tree::from_leaves(leaves.clone()).root() == root {
                    return Ok(leaves);
                }
                tracing::warn!(peer = %peer.short(), %round, "leaves of another state were sent");
            }
            Ok(_) => tracing::warn!(peer = %peer.short(), "answered something else than leaves"),
            Err(error) => tracing::debug!(peer = %peer.short(), %error, "no leaves"),
        }
    }
    Err(StateError::NoLeaves)
}

/// Why data could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum DataFetchError {
    #[error(
        "nobody serves the list of the data files ({0}); try again, or give the data with --data DIR"
    )]
    Manifest(rpc::RpcError),
    #[error(
        "the asked peer serves other data than the run names; try again, or give the data with --data DIR"
    )]
    OtherData,
    #[error("data file {path}: {reason}; try again, or give the data with --data DIR")]
    File { path: String, reason: String },
    #[error("{}: {source}; check permissions and free space", .path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Fetches the files of `manifest` that are not in `dir` yet, each checked by its hash.
pub(super) async fn data(
    bulk: &Bulk,
    manifest: &DataManifest,
    dir: &Path,
    source: PeerSource,
) -> Result<(), DataFetchError> {
    let mut tasks = JoinSet::new();
    let mut files = manifest.files().iter();
    let (total, mut done) = (manifest.files().len(), 0usize);
    loop {
        while tasks.len() < PIECES_AT_ONCE
            && let Some(file) = files.next()
        {
            let (bulk, file) = (bulk.clone(), file.clone());
            let path = dir.join(&file.path);
            tasks.spawn(async move { data_file(&bulk, &file, path, source).await });
        }
        let Some(joined) = tasks.join_next().await else {
            return Ok(());
        };
        joined.map_err(|error| DataFetchError::File {
            path: "?".into(),
            reason: error.to_string(),
        })??;
        done += 1;
        if done.is_multiple_of(64) || done == total {
            tracing::info!(files = done, of = total, "fetching data");
        }
    }
}

async fn data_file(
    bulk: &Bulk,
    file: &gradmesh_trainer::data::DataFile,
    path: PathBuf,
    source: PeerSource,
) -> Result<(), DataFetchError> {
    let io = |source| DataFetchError::Io {
        path: path.clone(),
        source,
    };
    if let Ok(bytes) = tokio::fs::read(&path).await
        && Hash::of_content(&bytes).0 == file.blake3
    {
        return Ok(());
    }
    let sources = [source];
    let order = Order::new(file.blake3, Length::Exactly(file.bytes), &sources);
    let fetched = bulk
        .fetch_order(&order)
        .await
        .map_err(|failed| DataFetchError::File {
            path: file.path.clone(),
            reason: failed.error.to_string(),
        })?;
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(io)?;
    }
    let partial = path.with_extension("partial");
    tokio::fs::write(&partial, &fetched.bytes)
        .await
        .map_err(io)?;
    tokio::fs::rename(&partial, &path).await.map_err(io)
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use gradmesh_protocol::header::Stage;

    use super::*;
    use crate::blob::{Blob, BlobHash, BlobSource};
    use crate::net::bulk::{BulkConfig, BulkLimits, FetchError};

    /// Serves the same bytes under every hash.
    struct Always(Bytes);

    impl BlobSource for Always {
        fn open(&self, _hash: &BlobHash) -> Option<Blob> {
            Some(Blob::Memory(self.0.clone()))
        }
    }

    fn start(serves: &Bytes) -> (Bulk, PeerSource) {
        let keypair = Keypair::generate_ed25519();
        let peer = keypair.public().to_peer_id();
        let config = BulkConfig {
            keypair,
            listen: "127.0.0.1:0".parse().unwrap(),
            limits: BulkLimits::default(),
        };
        let source = Arc::new(Always(serves.clone()));
        let bulk = Bulk::spawn(config, source, Arc::new(|_| true)).unwrap();
        let addr = bulk.local_addr();
        (bulk, PeerSource { peer, addr })
    }

    #[tokio::test]
    async fn a_fetch_lasts_until_its_round_is_over() {
        let (applied, wanted_from) = watch::channel(RoundId(7));
        let never = std::future::pending::<Result<(), FrameError>>();
        let fetch = while_wanted(RoundId(7), wanted_from.clone(), never);
        let mut fetch = Box::pin(fetch);
        tokio::select! {
            biased;
            ended = &mut fetch => panic!("{ended:?}"),
            () = std::future::ready(()) => {}
        }
        applied.send(RoundId(8)).unwrap();
        assert!(matches!(fetch.await, Err(FrameError::Over)));
        drop(applied);
        let done = while_wanted(RoundId(8), wanted_from, async { Ok(3) });
        assert_eq!(done.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn frame_shorter_than_its_header_says_is_proven_by_its_bytes_and_not_by_a_claim() {
        let bytes = Bytes::from_static(b"nine byte");
        let (_honest, holder) = start(&bytes);
        let (_liar, liar) = start(&Bytes::from_static(b"lies"));
        let (client, _) = start(&Bytes::new());
        let named = |bytes_named| FrameId {
            hash: Hash::of_content(&bytes),
            bytes: bytes_named,
            shard: 0,
            stage: Stage::Update,
        };
        let from = |all: &[PeerSource]| Sources {
            all: all.to_vec(),
            near: 0,
        };
        let sources = from(&[liar, holder]);
        let right = frame(client.clone(), named(9), None, sources.clone()).await;
        assert_eq!(right.unwrap().bytes, bytes);
        let shorter = frame(client.clone(), named(10), None, sources.clone()).await;
        assert_eq!(shorter.unwrap().bytes, bytes);
        let failed = frame(client.clone(), named(10), None, from(&[liar])).await;
        let failed = failed.unwrap_err();
        assert_eq!(failed.error, FetchError::Exhausted);
        assert_eq!(failed.report.blamed, [(liar.peer, Blame::WrongBytes)]);
        // More than the header says is nobody's fault that could be proven without taking it.
        let failed = frame(client, named(8), None, from(&[holder]))
            .await
            .unwrap_err();
        let claimed = 9;
        assert_eq!(
            failed.report.blamed,
            [(holder.peer, Blame::OverCap { claimed })]
        );
    }
}
