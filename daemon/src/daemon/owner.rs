//! An owner's step, away from the threads that train and that listen.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::FrameRef;
use gradmesh_protocol::node::{Input, ReduceTask};
use gradmesh_trainer::replica::{Contribution, ReduceError, Reduction, Shape};
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use super::fetch;
use crate::net::bulk::{Bulk, PeerSource};
use crate::worker::Disk;

/// Reduces shards, as many at once as the machine has cores: each takes the memory of a few shards.
#[derive(Clone)]
pub(super) struct Owner {
    shape: Arc<Shape>,
    disk: Disk,
    bulk: Bulk,
    places: Arc<Semaphore>,
}

/// Why a shard could not be reduced.
#[derive(Debug, thiserror::Error)]
pub(super) enum OwnerError {
    #[error(transparent)]
    Reduce(#[from] ReduceError),
    #[error("the task ended: {0}")]
    Task(#[from] JoinError),
}

/// What came out of a task.
pub(super) struct Reduced {
    pub(super) task: Box<ReduceTask>,
    /// Hash of the frame, and of the residual that went in.
    pub(super) frame_hash: Hash,
    pub(super) residual_before: Hash,
    pub(super) frame: Bytes,
    /// With its hash; none if nothing was left.
    pub(super) residual: Option<(Hash, Bytes)>,
}

impl Reduced {
    /// What the node is told.
    pub(super) fn input(&self) -> Input {
        Input::ReductionReady {
            round: self.task.round,
            group: self.task.group,
            shard: self.task.shard,
            headers: self.task.headers.clone(),
            frame: FrameRef {
                hash: self.frame_hash,
                bytes: self.frame.len() as u64,
            },
            residual_before: self.residual_before,
            residual: self.residual.as_ref().map_or(Hash::ZERO, |(hash, _)| *hash),
        }
    }
}

impl Owner {
    pub(super) fn new(shape: Arc<Shape>, disk: Disk, bulk: Bulk) -> Owner {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Owner {
            shape,
            disk,
            bulk,
            places: Arc::new(Semaphore::new(cores)),
        }
    }

    /// Length of the residual of `shard`.
    pub(super) fn residual_bytes(&self, shard: u32) -> u64 {
        let elements = self.shape.shard_elements(shard as usize);
        elements.map_or(0, |elements| elements.len() as u64 * 4)
    }

    /// Does `task` on `inputs`, the bytes of its frames in their order. A residual that is not on disk is fetched from
    /// `sources`, or else given up.
    pub(super) async fn reduce(
        self,
        task: Box<ReduceTask>,
        inputs: Vec<Bytes>,
        sources: Vec<PeerSource>,
    ) -> Result<Reduced, (Box<ReduceTask>, OwnerError)> {
        let residual = self.residual(&task, sources).await;
        let _place = self.places.acquire().await;
        let (shape, given) = (Arc::clone(&self.shape), task.clone());
        let done = tokio::task::spawn_blocking(move || {
            let reduction = step(&shape, &given, &inputs, residual.as_deref())?;
            Ok(Reduced {
                frame_hash: Hash::of_content(&reduction.frame),
                residual_before: match residual {
                    Some(_) => given.residual,
                    None => Hash::ZERO,
                },
                residual: match reduction.residual_hash() {
                    Hash::ZERO => None,
                    hash => Some((hash, reduction.residual.into())),
                },
                frame: reduction.frame.into(),
                task: given,
            })
        });
        match done.await {
            Ok(result) => result.map_err(|error| (task, error)),
            Err(error) => Err((task, error.into())),
        }
    }

    async fn residual(&self, task: &ReduceTask, sources: Vec<PeerSource>) -> Option<Bytes> {
        if task.residual == Hash::ZERO {
            return None;
        }
        let (disk, hash) = (self.disk.clone(), task.residual);
        let read = tokio::task::spawn_blocking(move || disk.read_residual(&hash));
        if let Ok(Some(bytes)) = read.await {
            return Some(bytes);
        }
        let bytes = self.residual_bytes(task.shard);
        let fetched = fetch::residual(self.bulk.clone(), hash, bytes, sources).await;
        if fetched.is_none() {
            tracing::warn!(shard = task.shard, %hash, "the residual of a shard is lost; it starts anew");
        }
        fetched
    }
}

fn step(
    shape: &Shape,
    task: &ReduceTask,
    inputs: &[Bytes],
    residual: Option<&[u8]>,
) -> Result<Reduction, OwnerError> {
    let contributions: Vec<Contribution<'_>> = task
        .inputs
        .iter()
        .zip(inputs)
        .map(|(input, frame)| Contribution {
            tokens: input.tokens,
            frame,
        })
        .collect();
    let stage = task
        .inputs
        .first()
        .map_or(task.output, |input| input.frame.stage);
    let shard = task.shard as usize;
    Ok(shape.reduce(shard, stage, task.output, residual, &contributions)?)
}
