//! What the node wants done, done: disk, network and worker.

use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameId, Stage};
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::{AppliedShard, Contribution, Effect, Input, OwnedShard, ReduceTask};
use gradmesh_protocol::plan::GroupId;
use gradmesh_protocol::wire::{DecisionRecord, Gossip};

use super::display::traffic_now;
use super::{Done, Driver};
use crate::daemon::audit::{Action, Auditor, Source};
use crate::daemon::behind::{self, Unwritten};
use crate::daemon::fetch::{self, FrameFault};
use crate::net::control::PublishError;
use crate::worker::{Command, DecidedFrames};

impl Driver {
    pub(super) async fn perform(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Journal { round, entry } => {
                tokio::task::block_in_place(|| self.store.append_journal(round, &entry))?;
            }
            Effect::StoreDecision(record) => {
                self.check_attested(&record)?;
                tokio::task::block_in_place(|| self.store.store_decision(&record))?;
                // A validator trains nothing.
                if self.auditor.as_ref().is_some_and(Auditor::validates) {
                    self.before_rounds.get_or_insert_with(traffic_now);
                }
                self.on_decided(&record);
                let stage = self.node.stage_of_updates(record.decision.round);
                if let (Some(auditor), Some(stage)) = (&mut self.auditor, stage) {
                    auditor.decided(&record, stage);
                }
                self.follow_auditor().await?;
            }
            Effect::Broadcast(message) => self.publish(&message).await,
            Effect::Request { peer, id, request } => {
                let input = self
                    .rpc
                    .ask_for_node(&self.control, &self.run, peer, id, &request)
                    .await;
                self.inputs.extend(input);
            }
            Effect::Train {
                round,
                seed,
                steps,
                start,
            } => {
                self.before_rounds.get_or_insert_with(traffic_now);
                self.meter.start(round);
                self.command(Command::Train {
                    round,
                    seed,
                    steps,
                    start,
                })?;
            }
            Effect::Encode {
                round,
                stage,
                shards,
            } => {
                self.meter.encode(round);
                self.command(Command::Encode {
                    round,
                    stage,
                    shards: shards.start as usize..shards.end as usize,
                })?;
            }
            Effect::StopTraining(round) => {
                self.meter.stop(round);
                self.command(Command::StopTraining(round))?;
            }
            Effect::Fetch {
                round,
                frame,
                sources,
            } => self.fetch(round, frame, &sources),
            Effect::Reduce(task) => self.reduce(task)?,
            Effect::Own(owned) => self.own(owned)?,
            Effect::Apply {
                record,
                shards,
                groups,
                ends_epoch,
            } => self.apply(record, &shards, groups, ends_epoch)?,
            Effect::FetchState {
                round,
                root,
                sources,
            } => self.fetch_state(round, root, sources)?,
            Effect::Report(report) => self.on_report(report),
        }
        Ok(())
    }

    /// Does what the auditor wants done.
    pub(super) async fn follow_auditor(&mut self) -> anyhow::Result<()> {
        while let Some(action) = self.auditor.as_mut().and_then(Auditor::poll) {
            match action {
                Action::Fetch(job) => {
                    let source = Source {
                        bulk: self.bulk.clone(),
                        caller: self.caller.clone(),
                        contacts: self.contacts.clone(),
                        shape: Arc::clone(&self.standing.shape),
                    };
                    self.tasks
                        .spawn(async move { Done::AuditInputs(source.inputs(&job).await) });
                }
                Action::Compute(task) => self.command(Command::Audit(task))?,
                Action::Publish(verdict) => self.publish(&Gossip::Verdict(verdict)).await,
                Action::Settle(settled) => {
                    if let Some(subnet) = &self.subnet {
                        subnet.epoch_audited(*settled)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Refuses a history that does not pass through the state that the chain attests.
    pub(super) fn check_attested(&self, record: &DecisionRecord) -> anyhow::Result<()> {
        let Some((round, root)) = self.prepared.attested else {
            return Ok(());
        };
        let decision = &record.decision;
        if decision.round == round.next() && decision.state_root != root {
            bail!(
                "the peers' history has state root {} after round {round}, the subnet attests {root}: these are not the \
                 peers of the attested run",
                decision.state_root
            );
        }
        Ok(())
    }

    pub(super) fn command(&self, command: Command) -> anyhow::Result<()> {
        if self.worker.command(command) {
            Ok(())
        } else {
            bail!("the worker is gone or does not keep up; the log says why");
        }
    }

    pub(super) async fn publish(&mut self, message: &Gossip) {
        self.nonce = self.nonce.wrapping_add(1);
        let mut bytes = self.nonce.to_le_bytes().to_vec();
        bytes.extend_from_slice(&message.encode(&self.run));
        match self.control.publish(&self.topic, bytes.into()).await {
            // Whoever subscribes later gets it with the next heartbeat.
            Ok(_) | Err(PublishError::NoSubscribers) => {}
            Err(error) => tracing::debug!(%error, "gossip not sent"),
        }
    }

    pub(super) fn fetch(&mut self, of: RoundId, frame: FrameId, sources: &[PeerKey]) {
        let decided = self.node.roster().round();
        if let Some(bytes) = self.held_frame(decided, &frame.hash) {
            match fetch::check(&self.standing.shape, &frame, &bytes) {
                Ok(()) => self.inputs.push_back(Input::FrameHeld(frame)),
                Err(fault) => self.refuse_frame(frame, &fault),
            }
            return;
        }
        let roster = self.node.roster();
        let sources = self.contacts.by_site(sources, &self.me, roster);
        if sources.all.is_empty() {
            self.inputs.push_back(Input::FrameFailed(frame));
            return;
        }
        let (bulk, shape) = (self.bulk.clone(), Arc::clone(&self.standing.shape));
        let round = self.node.applied().map_or(RoundId(0), RoundId::next);
        let wanted_from = self.wanted_from.subscribe();
        self.tasks.spawn(async move {
            let fetched = fetch::checked_frame(bulk, shape, frame, sources);
            let result = fetch::while_wanted(of, wanted_from, fetched).await;
            Done::Frame {
                frame,
                round,
                result,
            }
        });
    }

    /// The bytes that `frame` names, and that have its hash, are no frame.
    pub(super) fn refuse_frame(&mut self, frame: FrameId, fault: &FrameFault) {
        tracing::warn!(hash = %frame.hash, shard = frame.shard, %fault, "a frame is malformed");
        self.inputs.push_back(Input::FrameMalformed(frame));
    }

    /// A frame from memory, or from disk where frames of `round` and the rounds before lie.
    pub(super) fn held_frame(&self, round: RoundId, hash: &Hash) -> Option<Bytes> {
        let in_memory = self.blobs.get(&hash.0).or_else(|| self.behind.get(hash));
        if in_memory.is_some() {
            return in_memory;
        }
        let applied = self.node.applied().unwrap_or_default();
        let mut rounds = (applied.0..=round.0).rev().map(RoundId);
        rounds.find_map(|round| self.standing.disk.read_frame(round, hash))
    }

    pub(super) fn keep_frame(
        &mut self,
        round: RoundId,
        hash: Hash,
        bytes: Bytes,
    ) -> anyhow::Result<()> {
        let disk = &self.standing.disk;
        tokio::task::block_in_place(|| disk.write_frame(round, &hash, &bytes))?;
        self.hold_frame(round, hash, bytes)
    }

    /// Serves a frame that is on disk, from memory while its round is at hand.
    pub(super) fn hold_frame(
        &mut self,
        round: RoundId,
        hash: Hash,
        bytes: Bytes,
    ) -> anyhow::Result<()> {
        self.serve_frame(round, hash)?;
        if let Err(full) = self.blobs.insert_verified(round.0, hash.0, bytes) {
            // It is on disk, which is slower but enough.
            tracing::debug!(%full, "frame kept on disk only");
        }
        Ok(())
    }

    /// Serves a frame that was fetched (rule `frames-behind`).
    pub(super) fn hold_fetched(
        &mut self,
        round: RoundId,
        hash: Hash,
        bytes: Bytes,
    ) -> anyhow::Result<()> {
        match self.blobs.insert_verified(round.0, hash.0, bytes.clone()) {
            Ok(()) => {
                self.behind.push(Unwritten { round, hash, bytes });
                Ok(())
            }
            Err(_) => self.keep_frame(round, hash, bytes),
        }
    }

    /// Begins to write what was fetched up to the round `applied`, unless something is being written: then that goes on
    /// with it.
    pub(super) fn write_behind(&mut self, applied: RoundId) {
        let Some(frames) = self.behind.due(applied, self.frames_from) else {
            return;
        };
        if frames.is_empty() {
            self.blobs.release_before(applied.next().0);
            return;
        }
        let disk = self.standing.disk.clone();
        self.tasks.spawn(async move {
            let written = tokio::task::spawn_blocking(move || behind::write(&disk, frames));
            Done::Written {
                applied,
                result: written.await.map_err(anyhow::Error::from),
            }
        });
    }

    /// What was fetched up to the round `applied` is on disk: whoever still wants it gets it from there.
    pub(super) fn on_written(&mut self, applied: RoundId) -> anyhow::Result<()> {
        for Unwritten { round, hash, .. } in self.behind.written() {
            if round >= self.frames_from {
                self.serve_frame(round, hash)?;
            }
        }
        self.blobs.release_before(applied.next().0);
        // What was applied meanwhile.
        if let Some(applied) = self.node.applied() {
            self.write_behind(applied);
        }
        Ok(())
    }

    pub(super) fn apply(
        &mut self,
        record: Arc<DecisionRecord>,
        shards: &[AppliedShard],
        groups: Vec<GroupId>,
        ends_epoch: bool,
    ) -> anyhow::Result<()> {
        let round = record.decision.round;
        let mut decided = Vec::with_capacity(shards.len());
        for shard in shards {
            let mut contributions = Vec::with_capacity(shard.contributions.len());
            for Contribution { tokens, frame } in &shard.contributions {
                contributions.push((*tokens, self.needed_frame(round, frame)?));
            }
            let first = shard.contributions.first();
            decided.push(DecidedFrames {
                stage: first.map_or(Stage::Update, |contribution| contribution.frame.stage),
                contributions,
                residuals: shard.residuals.clone(),
            });
        }
        self.command(Command::Apply {
            record,
            shards: decided,
            groups,
            ends_epoch,
        })
    }

    /// A frame of `round` that the node knows to be held.
    fn needed_frame(&self, round: RoundId, frame: &FrameId) -> anyhow::Result<Bytes> {
        let held = self.held_frame(round, &frame.hash);
        held.with_context(|| format!("frame {} of round {round} was held and is gone", frame.hash))
    }

    fn reduce(&mut self, task: Box<ReduceTask>) -> anyhow::Result<()> {
        let inputs = task.inputs.iter();
        let inputs: anyhow::Result<Vec<Bytes>> = inputs
            .map(|input| self.needed_frame(task.round, &input.frame))
            .collect();
        let (inputs, sources) = (inputs?, self.contacts.sources(&task.sources));
        let owner = self.owner.clone();
        self.tasks
            .spawn(async move { Done::Reduced(owner.reduce(task, inputs, sources).await) });
        Ok(())
    }

    fn own(&mut self, owned: Vec<OwnedShard>) -> anyhow::Result<()> {
        let round = self.node.roster().round();
        for missing in self.residuals.own(round, owned)? {
            let (hash, sources) = (missing.residual, self.contacts.sources(&missing.sources));
            let (bulk, bytes) = (self.bulk.clone(), self.owner.residual_bytes(missing.shard));
            self.tasks.spawn(async move {
                let bytes = fetch::residual(bulk, hash, bytes, sources).await;
                Done::Residual { hash, bytes }
            });
        }
        Ok(())
    }

    pub(super) fn fetch_state(
        &mut self,
        round: RoundId,
        root: Hash,
        sources: Vec<PeerKey>,
    ) -> anyhow::Result<()> {
        tracing::info!(%round, root = %root.short(), sources = sources.len(), "fetching the state");
        if round == RoundId::FOUNDING {
            return self.command(Command::AdoptGenesis);
        }
        let (bulk, caller, contacts) = (
            self.bulk.clone(),
            self.caller.clone(),
            self.contacts.clone(),
        );
        let counts = self.standing.leaf_counts();
        self.tasks.spawn(async move {
            let result = fetch::state(bulk, caller, contacts, round, root, counts, sources).await;
            Done::State {
                round,
                root,
                result,
            }
        });
        Ok(())
    }
}
