//! Proven decisions: each one moves the history on, then waits until it can be applied to the state.
//!
//! Rule `in-order`: decisions are stored and applied in the order of their rounds, each one once. History may be ahead
//! of the state, never behind it.
//!
//! The decision of a round carries the state root after the round before; a peer whose own root is another one has
//! diverged and applies nothing more until it has fetched the decided state.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::effect::AppliedShard;
use super::exchange::Work;
use super::frames::Standing;
use super::{Effect, LastExchange, Node, PENDING_MAX, Report, StateTask};
use crate::agreement::quorum;
use crate::decision::{Decision, JOIN_ROUNDS_MAX};
use crate::figures::RoundFigures;
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::plan::{GroupId, Layout, Plan};
use crate::roster::Roster;
use crate::time::Time;
use crate::wire::DecisionRecord;

/// Decided state roots kept, to know which snapshots can be verified.
const ROOTS_MAX: usize = 4096;

impl Node {
    /// A decision that is proven: by the agreement here, or by its certificate.
    pub(super) fn on_decided(&mut self, now: Time, record: Arc<DecisionRecord>) {
        let decision = &record.decision;
        let round = decision.round;
        self.effects
            .push_back(Effect::StoreDecision(Arc::clone(&record)));
        self.report_decided(&record);
        if let Some(exchange) = self.exchange.take() {
            if let Some(slowest) = exchange.slowest_arrival(now, &decision.members) {
                self.arrivals.record(slowest);
            }
            if let Some(took) = self.reductions_took(now, &exchange, decision) {
                self.reduction_arrivals.record(took);
            }
            let members = self.roster.members().iter().map(|member| member.peer);
            self.last_exchange = Some(LastExchange {
                round,
                started: exchange.started,
                transfer: exchange.longest_transfer(),
                left_out: members.filter(|p| !decision.accepts_any_of(p)).collect(),
            });
            if exchange.work != Work::None && !decision.accepts_any_of(&self.me) {
                self.report(Report::LeftOut(round));
            }
        }
        let before = self.roster.clone();
        self.note_decided(decision);
        let over = self
            .training
            .is_some_and(|training| training.round <= round);
        if over || !self.roster.contains(&self.me) {
            self.stop_training();
        }
        self.report_roster(&before);
        self.own_header = None;
        self.journal.clear();
        self.proposals.clear();
        self.propose_now = false;
        self.awaiting_headers = None;
        self.asking_headers = None;
        self.asking_reductions = None;
        self.agreement.advance(&self.roster);
        self.joins.retain(|peer, join| {
            let fresh = round.0 < join.round.0.saturating_add(JOIN_ROUNDS_MAX);
            fresh && !self.roster.contains(peer)
        });
        self.leaves.retain(|peer, _| self.roster.contains(peer));
        self.drop_capacities(round);
        if self.applied == round.previous() && self.task == StateTask::Idle {
            self.compare_roots(round.previous().unwrap_or_default(), decision.state_root);
        }
        let own_power = before.member(&self.me).map_or(0, |me| u64::from(me.power));
        let alone = own_power >= quorum(self.config.manifest.trust.mode, before.power());
        self.to_hand_over = alone.then_some(round);
        self.report_left();
        self.keep_pending(record);
    }

    /// Moves the history on by one decision.
    pub(super) fn note_decided(&mut self, decision: &Decision) {
        if let Some(before) = decision.round.previous() {
            self.roots.insert(before, decision.state_root);
            if self.roots.len() > ROOTS_MAX {
                self.roots.pop_first();
            }
        }
        let id = decision.id();
        let first = decision.round == RoundId::FOUNDING;
        self.before_previous = if first { id } else { self.previous };
        self.previous = id;
        self.decided = Some(decision.round);
        let shards = self.layout.shards_of(decision.round);
        for (shard, decided) in shards.zip(&decision.shards) {
            let groups = self
                .layout
                .accepted_groups(&decision.members, &decided.accepted);
            for (group, reduction) in groups.into_iter().zip(&decided.reduced) {
                if reduction.residual == Hash::ZERO {
                    self.residuals.remove(&(group, shard));
                } else {
                    self.residuals.insert((group, shard), reduction.residual);
                }
            }
        }
        self.roster = self.roster.after(decision, &self.config.manifest);
        self.note_layout();
    }

    /// The layout of the roster at hand, after the roster changed.
    pub(super) fn note_layout(&mut self) {
        let config = &self.config;
        let layout = Layout::of(
            &self.roster,
            &config.manifest,
            &config.fragments,
            &config.update_bytes,
        );
        if layout != *self.layout {
            let before = self.layout.groups().iter().map(|group| group.id);
            let owners = std::mem::take(&mut self.owners);
            self.owners_before = before.zip(owners).collect();
            let groups = layout.groups();
            self.residuals
                .retain(|(group, _), _| groups.iter().any(|g| g.id == *group));
            self.layout = Arc::new(layout);
        }
        self.layouts
            .insert(self.roster.round(), Arc::clone(&self.layout));
        if self.layouts.len() > ROOTS_MAX {
            self.layouts.pop_first();
        }
    }

    /// What a decided record does to each shard, and the groups that live on after it; `None` for a round long ago.
    pub(super) fn applied_by(
        &self,
        record: &DecisionRecord,
    ) -> Option<(Vec<AppliedShard>, Vec<GroupId>)> {
        let round = record.decision.round;
        let shards = AppliedShard::of(self.layouts.get(&round)?, record);
        let next = self.layouts.get(&round.next())?;
        Some((shards, next.groups().iter().map(|group| group.id).collect()))
    }

    pub(super) fn keep_pending(&mut self, record: Arc<DecisionRecord>) {
        if self.pending.len() == PENDING_MAX {
            self.pending.pop_front();
            self.gap = true;
        }
        self.pending.push_back(record);
    }

    fn report_decided(&mut self, record: &DecisionRecord) {
        self.report(Report::Decided {
            round: record.decision.round,
            attempt: record.certificate.attempt,
            roster: self.roster.len() as u32,
            figures: RoundFigures::of(record),
        });
    }

    fn report_roster(&mut self, before: &Roster) {
        let difference = |a: &Roster, b: &Roster| -> Vec<PeerKey> {
            let peers = a.members().iter().map(|member| member.peer);
            peers.filter(|peer| !b.contains(peer)).collect()
        };
        let joined = difference(&self.roster, before);
        let left = difference(before, &self.roster);
        if !joined.is_empty() || !left.is_empty() {
            self.report(Report::Roster {
                round: self.roster.round(),
                joined,
                left,
                members: self.roster.len() as u32,
            });
        }
    }

    /// Applies the oldest pending decision once its frames are here.
    pub(super) fn apply_next(&mut self) -> bool {
        if self.task != StateTask::Idle || self.diverged || self.gap {
            return false;
        }
        let Some(record) = self.pending.front().cloned() else {
            return false;
        };
        let round = record.decision.round;
        if round.previous() != self.applied {
            self.gap = true;
            return true;
        }
        let everyone: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, state)| state.connected)
            .map(|(peer, _)| *peer)
            .collect();
        let Some((shards, groups)) = self.applied_by(&record) else {
            self.gap = true;
            return true;
        };
        let authors: BTreeMap<Hash, PeerKey> = match self.layouts.get(&round).map(|l| l.plan()) {
            Some(Plan::Gather) => {
                let headers = record.headers.iter();
                let frames = headers.flat_map(|signed| {
                    let frames = signed.header.update.frames.iter();
                    frames.map(|frame| (frame.hash, signed.header.peer))
                });
                frames.collect()
            }
            Some(Plan::Reduce | Plan::Hier) | None => BTreeMap::new(),
        };
        let mut complete = true;
        for contribution in shards.iter().flat_map(|shard| &shard.contributions) {
            let author = authors.get(&contribution.frame.hash);
            let author = author.filter(|author| **author != self.me);
            let mut sources: Vec<PeerKey> = author.copied().into_iter().collect();
            sources.extend(everyone.iter().filter(|peer| Some(*peer) != author));
            let frame = contribution.frame;
            let standing = self.frames.want(round, frame, sources, &mut self.effects);
            complete &= standing == Standing::Held;
        }
        if !complete {
            return false;
        }
        self.task = StateTask::Applying(round);
        self.effects.push_back(Effect::Apply {
            shards,
            groups,
            ends_epoch: self.config.manifest.ends_epoch(round),
            record,
        });
        true
    }

    pub(super) fn on_applied(&mut self, round: RoundId, state_root: Hash) {
        if self.task != StateTask::Applying(round) {
            return;
        }
        self.task = StateTask::Idle;
        self.pending.pop_front();
        self.applied = Some(round);
        self.state_root = state_root;
        self.frames.release_before(round.next());
        self.report(Report::Applied { round, state_root });
        if let Some(decided) = self.decided_root(round) {
            self.compare_roots(round, decided);
        }
        self.note_finished(round);
    }

    /// Notes that this peer's state is not the decided one, if so.
    fn compare_roots(&mut self, round: RoundId, decided: Hash) {
        if decided != self.state_root && !self.diverged {
            self.diverged = true;
            self.exchange = None;
            self.stop_training();
            self.report(Report::Diverged {
                round,
                decided,
                own: self.state_root,
            });
        }
    }

    pub(super) fn note_finished(&mut self, round: RoundId) {
        if round.0 == self.config.manifest.schedule.rounds && !self.finished {
            self.finished = true;
            self.report(Report::Finished(round));
        }
    }
}
