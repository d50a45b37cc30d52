//! What an audit needs, fetched from the peer that is audited and checked against what its header commits to.
//!
//! Whatever does not fit is as good as not served: the peer has committed to something that cannot be had.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use gradmesh_compression::planes::Width;
use gradmesh_protocol::audit::challenge;
use gradmesh_protocol::audit::segment::{SegmentList, StateRoots};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::SignedHeader;
use gradmesh_protocol::merkle;
use gradmesh_protocol::wire::{Request, Response};
use gradmesh_trainer::replica::Shape;
use gradmesh_trainer::work::{CHUNK_ELEMENTS, StateLeaves, chunk_lengths};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};

use super::Job;
use crate::daemon::fetch::Contacts;
use crate::daemon::rpc::Caller;
use crate::net::bulk::{Bulk, Length, Order, PeerSource};
use crate::worker::{AuditInputs, AuditedTile};

/// The longest that one chunk may take: 256 KiB over 100 kbit/s.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Chunks on their way at once.
const CHUNKS_AT_ONCE: usize = 16;

/// Hashes of all tiles of the error feedback, before and after an update.
type Leaves = (Vec<Hash>, Vec<Hash>);

/// Why the inputs of an audit could not be had. Its words go into the verdict's evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InputError {
    #[error("its address is not known")]
    NoAddress,
    #[error("{what}: {reason}")]
    NotServed { what: &'static str, reason: String },
    #[error("{0} is not what its header commits to")]
    NotCommitted(&'static str),
}

/// Where inputs come from.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) bulk: Bulk,
    pub(crate) caller: Caller,
    pub(crate) contacts: Contacts,
    pub(crate) shape: Arc<Shape>,
}

impl Source {
    /// Fetches what an audit needs.
    pub(crate) async fn inputs(&self, job: &Job) -> Result<AuditInputs, InputError> {
        let (header, pick) = (&*job.header, &job.pick);
        let layout = self.shape.layout();
        let count = layout.tiles().len() as u64;
        let wanted = match job.search {
            None => challenge::TILES,
            Some(_) => 0,
        };
        let tiles = challenge::tiles(&pick.tiles, count, wanted);
        let tiles: Vec<usize> = tiles.into_iter().map(|tile| tile as usize).collect();
        let (peer, round) = (header.header.peer, header.header.round);
        let update = &header.header.update;
        let from = self.contacts.sources(&[peer]);
        if from.is_empty() {
            return Err(InputError::NoAddress);
        }
        let list = match self.caller.ask(peer, Request::Segments(round)).await {
            Ok(Response::Segments(list)) => list,
            other => return Err(not_served("list of segments", other.err())),
        };
        if list.commitment() != update.work || list.segments() <= pick.segment {
            return Err(InputError::NotCommitted("list of segments"));
        }
        let start = self.leaves(header, &list, pick.segment).await?;
        let end = self.leaves(header, &list, pick.segment + 1).await?;
        let last = match pick.segment + 1 == list.segments() {
            true => end.clone(),
            false => self.leaves(header, &list, list.segments()).await?,
        };
        let lengths = chunk_lengths(layout.elements());
        let start_chunks = self
            .chunks(
                "state before the segment",
                &from,
                start.theta.iter().chain(&start.inner),
                &lengths,
            )
            .await?;
        let end_theta = self
            .chunks(
                "parameters after the segment",
                &from,
                end.theta.iter(),
                &lengths,
            )
            .await?;

        let chosen: Vec<_> = tiles
            .iter()
            .filter_map(|tile| Some((*tile, layout.tiles().get(*tile)?)))
            .collect();
        let chunks: BTreeSet<usize> = chosen
            .iter()
            .flat_map(|(_, tile)| chunks_of(&tile.elements()))
            .collect();
        let wanted = |chunk: &usize| Some((*last.theta.get(*chunk)?, *lengths.get(*chunk)?));
        let wanted: Vec<(Hash, u64)> = chunks.iter().filter_map(wanted).collect();
        let local = self
            .fetch(
                "parameters after the round",
                Some(Width::F32),
                &from,
                wanted,
            )
            .await?;
        let local: BTreeMap<usize, Bytes> = chunks.into_iter().zip(local).collect();
        let (tiles, feedback) = match chosen.is_empty() {
            true => (Vec::new(), None),
            false => self.tiles(header, &from, &chosen).await?,
        };
        let mut frames = Vec::new();
        if !tiles.is_empty() || pick.loss {
            let wanted = update.frames.iter().map(|frame| (frame.hash, frame.bytes));
            frames = self.fetch("frame", None, &from, wanted.collect()).await?;
        }
        Ok(AuditInputs {
            list,
            start: start_chunks,
            end_theta,
            local,
            tiles,
            feedback,
            frames,
        })
    }

    /// The chunks of the state at `place`, checked against `list`.
    async fn leaves(
        &self,
        header: &SignedHeader,
        list: &SegmentList,
        place: u32,
    ) -> Result<StateLeaves, InputError> {
        const WHAT: &str = "state of training";
        let (peer, round) = (header.header.peer, header.header.round);
        let committed: Option<&StateRoots> = list.states().get(place as usize);
        let request = Request::SegmentState { round, place };
        match self.caller.ask(peer, request).await {
            Ok(Response::SegmentState { theta, inner }) => {
                let leaves = StateLeaves { theta, inner };
                let counts = chunk_lengths(self.shape.layout().elements()).len();
                let fits = leaves.theta.len() + leaves.inner.len() == counts;
                match fits && Some(&leaves.roots()) == committed {
                    true => Ok(leaves),
                    false => Err(InputError::NotCommitted(WHAT)),
                }
            }
            other => Err(not_served(WHAT, other.err())),
        }
    }

    async fn tiles(
        &self,
        header: &SignedHeader,
        from: &[PeerSource],
        chosen: &[(usize, &gradmesh_compression::Tile)],
    ) -> Result<(Vec<AuditedTile>, Option<Leaves>), InputError> {
        const WHAT: &str = "error feedback";
        let (peer, round) = (header.header.peer, header.header.round);
        let update = &header.header.update;
        let (before, after) = match self.caller.ask(peer, Request::Feedback(round)).await {
            Ok(Response::Feedback { before, after }) => (before, after),
            other => return Err(not_served(WHAT, other.err())),
        };
        let root = |leaves: &[Hash]| merkle::Tree::from_leaves(leaves.to_vec()).root();
        let tiles = self.shape.layout().tiles().len();
        let fits = before.len() == tiles
            && after.len() == tiles
            && root(&before) == update.feedback_before
            && root(&after) == update.feedback_after;
        if !fits {
            return Err(InputError::NotCommitted(WHAT));
        }
        let wanted = |leaves: &[Hash]| -> Vec<(Hash, u64)> {
            let of = |(index, tile): &(usize, &gradmesh_compression::Tile)| {
                Some((*leaves.get(*index)?, 4 * tile.len() as u64))
            };
            chosen.iter().filter_map(of).collect()
        };
        let width = Some(Width::F32);
        let tiles_before = self.fetch(WHAT, width, from, wanted(&before)).await?;
        let tiles_after = self.fetch(WHAT, width, from, wanted(&after)).await?;
        let pairs = tiles_before.into_iter().zip(tiles_after);
        let audited = chosen
            .iter()
            .zip(pairs)
            .map(|((index, _), (before, after))| AuditedTile {
                index: *index,
                before,
                after,
            });
        Ok((audited.collect(), Some((before, after))))
    }

    /// The first chunks of a state, as many as `leaves` has.
    async fn chunks(
        &self,
        what: &'static str,
        from: &[PeerSource],
        leaves: impl Iterator<Item = &Hash>,
        lengths: &[u64],
    ) -> Result<Vec<Bytes>, InputError> {
        let wanted = leaves.copied().zip(lengths.iter().copied());
        self.fetch(what, Some(Width::F32), from, wanted.collect())
            .await
    }

    /// Fetches blobs by hash and length, in order. `elements`: the numbers that they consist of, where packing makes them
    /// shorter.
    async fn fetch(
        &self,
        what: &'static str,
        elements: Option<Width>,
        from: &[PeerSource],
        wanted: Vec<(Hash, u64)>,
    ) -> Result<Vec<Bytes>, InputError> {
        let mut fetched: Vec<Option<Bytes>> = vec![None; wanted.len()];
        let mut tasks = JoinSet::new();
        let mut rest = wanted.into_iter().enumerate();
        loop {
            while tasks.len() < CHUNKS_AT_ONCE
                && let Some((place, (hash, bytes))) = rest.next()
            {
                let (bulk, sources) = (self.bulk.clone(), from.to_vec());
                tasks.spawn(async move {
                    let deadline = Instant::now() + CHUNK_TIMEOUT;
                    let order = Order {
                        elements,
                        deadline: Some(deadline),
                        ..Order::new(hash.0, Length::Exactly(bytes), &sources)
                    };
                    (place, bulk.fetch_order(&order).await)
                });
            }
            match tasks.join_next().await {
                None => break,
                Some(Ok((place, Ok(piece)))) => {
                    if let Some(slot) = fetched.get_mut(place) {
                        *slot = Some(piece.bytes);
                    }
                }
                Some(Ok((_, Err(failed)))) => {
                    let reason = failed.error.to_string();
                    return Err(InputError::NotServed { what, reason });
                }
                Some(Err(error)) => {
                    let reason = error.to_string();
                    return Err(InputError::NotServed { what, reason });
                }
            }
        }
        Ok(fetched.into_iter().flatten().collect())
    }
}

/// The chunks that `elements` of flat parameters lie in; at least one.
pub(crate) fn chunks_of(elements: &Range<usize>) -> RangeInclusive<usize> {
    elements.start / CHUNK_ELEMENTS..=elements.end.saturating_sub(1) / CHUNK_ELEMENTS
}

fn not_served(what: &'static str, error: Option<crate::daemon::rpc::RpcError>) -> InputError {
    let reason = error.map_or("answered something else".to_owned(), |error| {
        error.to_string()
    });
    InputError::NotServed { what, reason }
}
