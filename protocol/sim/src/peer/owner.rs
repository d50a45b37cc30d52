//! A simulated peer as an owner: it sums what its node asks for, and keeps residuals.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::FrameRef;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::{Input, OwnedShard, ReduceTask};
use gradmesh_trainer::replica::{Contribution, Reduction};

use super::bulk::BlobPurpose;
use super::{Outside, Packet, Peer, Timer, Wish, state_in};
use crate::coverage::Situation;

/// What survives a crash of an owner's work.
#[derive(Debug, Default)]
pub(super) struct Residuals {
    /// By content hash.
    kept: BTreeMap<Hash, Vec<u8>>,
    /// Those that the node wants at hand.
    owned: BTreeSet<Hash>,
    /// Those that reductions left, and in which round.
    made: BTreeMap<Hash, RoundId>,
}

impl Residuals {
    /// The residual with this hash.
    pub(super) fn get(&self, hash: &Hash) -> Option<&Vec<u8>> {
        self.kept.get(hash)
    }

    fn prune(&mut self, at_hand: RoundId) {
        self.made.retain(|_, round| *round >= at_hand);
        let (owned, made) = (&self.owned, &self.made);
        self.kept
            .retain(|hash, _| owned.contains(hash) || made.contains_key(hash));
    }
}

/// What an owner is at.
#[derive(Debug, Default)]
pub(super) struct Summing {
    jobs: BTreeMap<u64, ReduceTask>,
    numbers: u64,
    /// Tasks that wait for a residual.
    waiting: Vec<ReduceTask>,
    /// Residuals on their way: those not asked yet.
    fetches: BTreeMap<Hash, VecDeque<usize>>,
}

impl Peer {
    pub(super) fn own(&mut self, outside: &mut Outside, owned: Vec<OwnedShard>) {
        let at_hand = self.applied().map_or(RoundId::FOUNDING, RoundId::next);
        let residuals = &mut self.store.residuals;
        residuals.owned = owned.iter().map(|shard| shard.residual).collect();
        residuals.prune(at_hand);
        for shard in owned {
            if self.store.residuals.get(&shard.residual).is_none() {
                outside.coverage.meet(Situation::ResidualHandedOver);
                self.fetch_residual(outside, shard.residual, &shard.sources);
            }
        }
    }

    pub(super) fn reduce(&mut self, outside: &mut Outside, task: ReduceTask) {
        let at_hand =
            task.residual == Hash::ZERO || self.store.residuals.get(&task.residual).is_some();
        if at_hand {
            return self.begin_summing(outside, task);
        }
        let (residual, sources) = (task.residual, task.sources.clone());
        if let Some(running) = &mut self.running {
            running.summing.waiting.push(task);
        }
        self.fetch_residual(outside, residual, &sources);
    }

    fn begin_summing(&mut self, outside: &mut Outside, task: ReduceTask) {
        let Some(running) = &mut self.running else {
            return;
        };
        running.summing.numbers += 1;
        let number = running.summing.numbers;
        running.summing.jobs.insert(number, task);
        self.set_timer(
            outside,
            outside.now + outside.options.sizes().reduce_us,
            Timer::Summed(number),
        );
    }

    fn fetch_residual(
        &mut self,
        outside: &mut Outside,
        residual: Hash,
        sources: &[gradmesh_protocol::key::PeerKey],
    ) {
        let sources = self.places(outside, sources).into();
        let Some(running) = &mut self.running else {
            return;
        };
        if running.summing.fetches.contains_key(&residual) {
            return;
        }
        running.summing.fetches.insert(residual, sources);
        self.next_residual_source(outside, residual);
    }

    fn next_residual_source(&mut self, outside: &mut Outside, residual: Hash) {
        loop {
            let Some(running) = &mut self.running else {
                return;
            };
            let Some(sources) = running.summing.fetches.get_mut(&residual) else {
                return;
            };
            let Some(source) = sources.pop_front() else {
                break;
            };
            if outside.network.is_connected(self.place, source) {
                let ask = |ticket| Packet::AskBlob(ticket, residual, Wish::Now);
                let ticket = self.ask(outside, source, ask);
                if let Some(running) = &mut self.running {
                    running
                        .blobs
                        .insert(ticket, BlobPurpose::Residual(residual));
                }
                return;
            }
        }
        outside.coverage.meet(Situation::ResidualLost);
        self.residual_settled(outside, residual);
    }

    pub(super) fn residual_came(
        &mut self,
        outside: &mut Outside,
        residual: Hash,
        blob: Option<&[u8]>,
    ) {
        match blob.filter(|blob| Hash::of_content(blob) == residual) {
            Some(blob) => {
                let residuals = &mut self.store.residuals;
                residuals.kept.insert(residual, blob.to_vec());
                self.residual_settled(outside, residual);
            }
            None => self.next_residual_source(outside, residual),
        }
    }

    /// A residual is here or cannot be had: what waited for it begins.
    fn residual_settled(&mut self, outside: &mut Outside, residual: Hash) {
        let Some(running) = &mut self.running else {
            return;
        };
        running.summing.fetches.remove(&residual);
        let (due, waiting) = std::mem::take(&mut running.summing.waiting)
            .into_iter()
            .partition(|task| task.residual == residual);
        running.summing.waiting = waiting;
        let due: Vec<ReduceTask> = due;
        for task in due {
            self.begin_summing(outside, task);
        }
    }

    pub(super) fn summed(&mut self, outside: &mut Outside, number: u64) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(task) = running.summing.jobs.remove(&number) else {
            return;
        };
        let lies = self.liar.as_ref().is_some_and(|liar| liar.sums_wrongly()) && !outside.calm;
        let residual = self.store.residuals.get(&task.residual);
        let found = residual.is_some();
        let (round, group, shard) = (task.round, task.group, task.shard);
        let reduced = self.sum(outside, &task, residual.map(Vec::as_slice), lies);
        let input = match reduced {
            Ok(reduction) => {
                outside
                    .checks
                    .reduced(&reduction.frame, &reduction.residual);
                let residual = reduction.residual_hash();
                let hash = Hash::of_content(&reduction.frame);
                let frame = FrameRef {
                    hash,
                    bytes: reduction.frame.len() as u64,
                };
                if residual != Hash::ZERO {
                    self.store.residuals.made.insert(residual, round);
                    let kept = &mut self.store.residuals.kept;
                    kept.insert(residual, reduction.residual);
                }
                self.store.frame_rounds.insert(hash, round);
                self.store.frames.insert(hash, reduction.frame);
                self.unpark(outside, &hash);
                if lies {
                    outside.coverage.meet(Situation::SumFalsified);
                }
                let residual_before = if found { task.residual } else { Hash::ZERO };
                Input::ReductionReady {
                    round,
                    group,
                    shard,
                    headers: task.headers,
                    frame,
                    residual_before,
                    residual,
                }
            }
            // One that committed to bytes that are no frame cannot sum them either.
            Err(_) if self.liar.is_some() => Input::ReductionFailed {
                round,
                group,
                shard,
            },
            Err(what) => {
                return outside.fail(self.place, "orderly", format!("cannot sum: {what}"));
            }
        };
        self.input(outside, input);
    }

    /// An owner's step; a liar leaves all inputs out but one.
    fn sum(
        &self,
        outside: &Outside,
        task: &ReduceTask,
        residual: Option<&[u8]>,
        lies: bool,
    ) -> Result<Reduction, String> {
        let mut inputs = Vec::with_capacity(task.inputs.len());
        let stage = task.inputs.first().map(|input| input.frame.stage);
        for input in &task.inputs {
            let frame = self.store.frames.get(&input.frame.hash);
            inputs.push(Contribution {
                tokens: input.tokens,
                frame: frame.ok_or_else(|| format!("{:?} is not held", input.frame))?,
            });
        }
        if lies {
            inputs.truncate(1);
        }
        let stage = stage.ok_or("a sum of nothing")?;
        let replica = state_in(&self.store.state, &outside.shape);
        replica
            .shape()
            .reduce(task.shard as usize, stage, task.output, residual, &inputs)
            .map_err(|error| error.to_string())
    }
}
