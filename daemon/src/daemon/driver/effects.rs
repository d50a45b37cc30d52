//! What the node wants done, done: disk, network and worker.

use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::FrameId;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::{Effect, Input};
use gradmesh_protocol::wire::{DecisionRecord, Gossip};

use super::display::traffic_now;
use super::{Done, Driver};
use crate::daemon::fetch;
use crate::net::control::PublishError;
use crate::worker::Command;

impl Driver {
    pub(super) async fn perform(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Journal { round, entry } => {
                tokio::task::block_in_place(|| self.store.append_journal(round, &entry))?;
            }
            Effect::StoreDecision(record) => {
                self.check_attested(&record)?;
                tokio::task::block_in_place(|| self.store.store_decision(&record))?;
                self.on_decided(&record);
            }
            Effect::Broadcast(message) => self.publish(&message).await,
            Effect::Request { peer, id, request } => {
                let input = self
                    .rpc
                    .ask_for_node(&self.control, &self.run, peer, id, &request)
                    .await;
                self.inputs.extend(input);
            }
            Effect::Train { round, seed, steps } => {
                self.before_rounds.get_or_insert_with(traffic_now);
                self.meter.start(round);
                self.command(Command::Train { round, seed, steps })?;
            }
            Effect::StopTraining(round) => self.worker.stop_training(round),
            Effect::Fetch { frame, sources } => self.fetch(frame, &sources),
            Effect::Apply { record, ends_epoch } => self.apply(record, ends_epoch)?,
            Effect::FetchState {
                round,
                root,
                sources,
            } => self.fetch_state(round, root, sources)?,
            Effect::Report(report) => self.on_report(report),
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

    pub(super) fn fetch(&mut self, frame: FrameId, sources: &[PeerKey]) {
        let round = self.node.roster().round();
        if let Some(bytes) = self.held_frame(round, &frame.hash) {
            let input = self.checked(frame, &bytes);
            self.inputs.push_back(input);
            return;
        }
        let sources = self.contacts.sources(sources);
        if sources.is_empty() {
            self.inputs.push_back(Input::FrameFailed(frame));
            return;
        }
        let bulk = self.bulk.clone();
        self.tasks.spawn(async move {
            let result = fetch::frame(bulk, frame, sources).await;
            Done::Frame { frame, result }
        });
    }

    /// What the node is told of bytes whose hash is right.
    pub(super) fn checked(&self, frame: FrameId, bytes: &Bytes) -> Input {
        if bytes.len() as u64 != frame.bytes {
            tracing::warn!(hash = %frame.hash, "a frame is of another length than its header says");
            return Input::FrameMalformed(frame);
        }
        match self.standing.check.check(frame.shard, bytes) {
            Ok(()) => Input::FrameHeld(frame),
            Err(error) => {
                tracing::warn!(hash = %frame.hash, shard = frame.shard, %error, "a frame does not decode");
                Input::FrameMalformed(frame)
            }
        }
    }

    /// A frame from memory, or from disk where frames of `round` and the rounds before lie.
    pub(super) fn held_frame(&self, round: RoundId, hash: &Hash) -> Option<Bytes> {
        if let Some(bytes) = self.blobs.get(&hash.0) {
            return Some(bytes);
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
        self.serve_frame(round, hash, bytes.len() as u64)?;
        if let Err(full) = self.blobs.insert_verified(round.0, hash.0, bytes) {
            // It is on disk, which is slower but enough.
            tracing::debug!(%full, "frame kept on disk only");
        }
        Ok(())
    }

    pub(super) fn apply(
        &mut self,
        record: Arc<DecisionRecord>,
        ends_epoch: bool,
    ) -> anyhow::Result<()> {
        let round = record.decision.round;
        self.worker.stop_training(round);
        let mut frames = Vec::with_capacity(record.headers.len());
        for (place, header) in record.headers.iter().enumerate() {
            let mut of_member = Vec::with_capacity(header.header.update.frames.len());
            for (shard, frame) in header.header.update.frames.iter().enumerate() {
                let shard = record.decision.shards.get(shard);
                let counts = shard.is_some_and(|shard| shard.accepted.contains(place));
                let bytes = match counts {
                    true => Some(self.held_frame(round, &frame.hash).with_context(|| {
                        format!("frame {} of round {round} was held and is gone", frame.hash)
                    })?),
                    false => None,
                };
                of_member.push(bytes);
            }
            frames.push(of_member);
        }
        self.command(Command::Apply {
            record,
            frames,
            ends_epoch,
        })
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
        let tiles = self.standing.check.tiles();
        self.tasks.spawn(async move {
            let result = fetch::state(bulk, caller, contacts, round, root, tiles, sources).await;
            Done::State {
                round,
                root,
                result,
            }
        });
        Ok(())
    }
}
