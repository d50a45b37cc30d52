//! A centralised cluster: synchronous data-parallel training, a dense f32 all-reduce of the gradient in every step.
//!
//! One process per place, each with one libtorch thread and a whole copy of model and optimizer. With fewer places than
//! peers each process does the work of several peers in every step; one place alone is the single machine, which
//! transfers nothing. Whoever trains, a step is the same: the mean gradient of all peers' batches at the same parameters,
//! clipped, then AdamW.
//!
//! [`Engine::Own`] is `member.rs` with a ring of its own and no overlap. [`Engine::Ddp`] is `bench/python/ddp_train.py`,
//! PyTorch's DistributedDataParallel over gloo, which sends a bucket of gradients while the backward pass works on the next.
//! Neither encrypts.

mod group;
pub(crate) mod member;
mod ring;
mod task;

use std::path::Path;

use anyhow::Context;

use self::group::Group;
use self::task::Task;
use super::training::Training;
use crate::harness::network::{Network, Place};

/// Steps before those that count. The second of DDP regroups its buckets.
const WARM_UP: u32 = 2;

/// Who trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Ours.
    Own,
    /// `torch.distributed`, DistributedDataParallel over gloo.
    Ddp,
}

impl Engine {
    const fn name(self) -> &'static str {
        match self {
            Engine::Own => "cluster member",
            Engine::Ddp => "DDP rank",
        }
    }
}

/// One step of all members.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    /// From 0.
    pub(crate) step: u32,
    /// When the last member had taken it, since all began the first.
    pub(crate) ended_s: f64,
    /// Forward, backward and optimizer, of the member that took longest. Of DDP, the backward pass ends with its last
    /// bucket: what gloo does before that is inside, which costs processor time, but no waiting.
    pub(crate) compute_s: f64,
    /// The rest of the step: transfer that nothing hides, and waiting for others.
    pub(crate) transfer_s: f64,
    /// Mean nats per token over all peers, at the shared parameters before the step, on text that they have not seen yet.
    pub(crate) loss: f64,
}

/// A finished training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trained {
    pub(crate) steps: Vec<Step>,
    /// Mean nats per token of the last parameters on held-out text, by our trainer whoever trained.
    pub(crate) held_out: f64,
    /// Received by a member in all steps, mean, as network interfaces count it; without root, loopback counts whatever
    /// else is on it.
    pub(crate) bytes_per_member: f64,
    /// What entered each of [`Network::sites`] from other sites in all steps.
    pub(crate) wan_bytes: Vec<u64>,
    /// User and system time of all members in all steps.
    pub(crate) cpu_s: f64,
    /// Of the member that held most.
    pub(crate) rss_bytes_max: u64,
}

/// Trains with a process at each of `places`, of which there are as many as peers, or a divisor of that.
///
/// `home`: an empty directory for what they write. `watch` sees every step when it has ended. Whatever was started is
/// killed when this ends or is dropped.
///
/// # Errors
/// What cannot be read or started, a member that fails, and parameters that differ between members in the end.
pub(crate) async fn train(
    engine: Engine,
    training: &Training,
    places: &[Place],
    network: &Network,
    home: &Path,
    watch: &mut dyn FnMut(&Step),
) -> anyhow::Result<Trained> {
    let material = training.material()?;
    let task = Task::new(training, &material, u32::try_from(places.len())?)?;
    task.write(&material, home)?;
    let mut group = Group::start(engine, places, home).await?;
    group.meet(engine).await?;
    let (wan_before, before) = (network.wan_bytes(), group.count());
    let steps = group.steps(task.steps, watch).await?;
    let after = group.count();
    let wan_bytes = network.wan_bytes_since(&wan_before);
    let rss_bytes_max = group.rss_bytes_max();
    group.finish().await?;
    drop(group);
    let trained = task::read_trained(home)?;
    let held_out = tokio::task::spawn_blocking(move || material.held_out(&trained)).await?;
    Ok(Trained {
        steps,
        held_out: held_out.context("the last parameters")?,
        bytes_per_member: (after.received_bytes - before.received_bytes) / places.len() as f64,
        wan_bytes,
        cpu_s: after.cpu_s - before.cpu_s,
        rss_bytes_max,
    })
}
