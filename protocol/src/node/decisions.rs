//! Proven decisions: each one moves the history on, then waits until it can be applied to the state.
//!
//! Rule `in-order`: decisions are stored and applied in the order of their rounds, each one once. History may be ahead
//! of the state, never behind it.
//!
//! The decision of a round carries the state root after the round before; a peer whose own root is another one has
//! diverged and applies nothing more until it has fetched the decided state.

use std::sync::Arc;

use super::effect::{AppliedShard, Contribution};
use super::exchange::Work;
use super::frames::Standing;
use super::{Effect, LastExchange, Node, PENDING_MAX, Report, StateTask};
use crate::agreement::quorum;
use crate::decision::{Decision, JOIN_ROUNDS_MAX};
use crate::figures::RoundFigures;
use crate::hash::Hash;
use crate::header::Stage;
use crate::key::PeerKey;
use crate::manifest::RoundId;
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
            let members = self.roster.members().iter().map(|member| member.peer);
            self.last_exchange = Some(LastExchange {
                started: exchange.started,
                left_out: members.filter(|p| !decision.accepts_any_of(p)).collect(),
            });
            if exchange.work == Work::Training {
                self.effects.push_back(Effect::StopTraining(round));
            }
            if exchange.work != Work::None && !decision.accepts_any_of(&self.me) {
                self.report(Report::LeftOut(round));
            }
        }
        let before = self.roster.clone();
        self.note_decided(decision);
        self.report_roster(&before);
        self.own_header = None;
        self.journal.clear();
        self.proposals.clear();
        self.propose_now = false;
        self.awaiting_headers = None;
        self.asking_headers = None;
        self.agreement.advance(&self.roster);
        self.joins.retain(|peer, join| {
            let fresh = round.0 < join.round.0.saturating_add(JOIN_ROUNDS_MAX);
            fresh && !self.roster.contains(peer)
        });
        self.leaves.retain(|peer, _| self.roster.contains(peer));
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
        self.previous = decision.id();
        self.decided = Some(decision.round);
        self.roster = self.roster.after(decision, &self.config.manifest);
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
        let mut complete = true;
        for (place, header) in record.headers.iter().enumerate() {
            let mut sources = vec![header.header.peer];
            sources.retain(|author| *author != self.me);
            sources.extend(everyone.iter().filter(|p| **p != header.header.peer));
            let shards = &record.decision.shards;
            for (frame, shard) in header.header.update.frame_ids(Stage::Update).zip(shards) {
                if shard.accepted.contains(place) {
                    let standing =
                        self.frames
                            .want(round, frame, sources.clone(), &mut self.effects);
                    complete &= standing == Standing::Held;
                }
            }
        }
        if !complete {
            return false;
        }
        self.task = StateTask::Applying(round);
        let shards = contributions(&record);
        self.effects.push_back(Effect::Apply {
            shards,
            groups: Vec::new(),
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

/// What `record` adds up in each shard.
fn contributions(record: &DecisionRecord) -> Vec<AppliedShard> {
    let shards = (0..).zip(&record.decision.shards);
    let of_shard = |(shard, decided): (u32, &crate::decision::DecidedShard)| {
        let accepted = decided.accepted.positions();
        let headers = accepted.filter_map(|place| record.headers.get(place));
        let contributions = headers.filter_map(|signed| {
            let update = &signed.header.update;
            let frame = update.frames.get(shard as usize)?;
            Some(Contribution {
                tokens: update.tokens,
                frame: frame.id(shard, Stage::Update),
            })
        });
        AppliedShard {
            contributions: contributions.collect(),
            residuals: Vec::new(),
        }
    };
    shards.map(of_shard).collect()
}
