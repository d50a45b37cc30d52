//! What a peer gets from others when it is behind: decisions, and a state when decisions are of no use.
//!
//! Rule `proof-before-history`: a fetched decision counts only if it is sound after the one before it and its
//! certificate holds for the roster that the decisions before it gave. What a peer claims without proof decides only
//! whom to ask.
//!
//! Rule `root-before-state`: a state is fetched only for a round whose root is decided.

use std::sync::Arc;

use super::{Asking, Effect, Holdings, Node, PENDING_MAX, Report, RequestId, StateTask};
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::time::Time;
use crate::wire::{DECISIONS_MAX, DecisionRecord, Decisions, Request};

impl Node {
    /// The last round that a connected peer says is decided, if it is beyond what is decided here.
    pub(super) fn behind(&self) -> Option<RoundId> {
        let connected = self.peers.values().filter(|peer| peer.connected);
        let best = connected.filter_map(|peer| peer.decided).max()?;
        (Some(best) > self.decided).then_some(best)
    }

    pub(super) fn ask_for_decisions(&mut self, now: Time) {
        if self.asking_decisions.is_some() || self.pending.len() >= PENDING_MAX / 2 && !self.gap {
            return;
        }
        // What others said that they hold ages: who waits for frames or for a state asks anew, once a heartbeat.
        let waits = self.task == StateTask::Idle && (self.diverged || !self.pending.is_empty());
        let refresh = std::mem::take(&mut self.may_refresh) && waits;
        let useful: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, p)| p.connected && (p.decided > self.decided || refresh))
            .map(|(peer, _)| *peer)
            .collect();
        let Some(peer) = self.take_turn(&useful) else {
            return;
        };
        let id = self.request(
            peer,
            Request::Decisions {
                from: self.roster.round(),
                count: DECISIONS_MAX as u32,
            },
        );
        self.asking_decisions = Some(Asking {
            id,
            peer,
            since: now,
        });
    }

    pub(super) fn on_decisions(&mut self, now: Time, id: RequestId, answer: Decisions) {
        let Some(asking) = self.asking_decisions.take_if(|asking| asking.id == id) else {
            return;
        };
        let before = self.decided;
        let mut claimed = answer.decided;
        for record in answer.records {
            if record.decision.round < self.roster.round() {
                continue;
            }
            if let Err(fault) = self.check_record(&record) {
                self.blame(asking.peer, fault);
                claimed = self.decided;
                break;
            }
            self.on_decided(now, Arc::new(record));
        }
        if before == self.decided {
            // It did not help: do not ask it again until it says something new.
            claimed = claimed.min(self.decided);
        }
        if let Some(state) = self.peers.get_mut(&asking.peer) {
            state.decided = claimed;
            state.holdings = Some(Holdings {
                snapshot: answer.snapshot,
                frames_from: answer.frames_from,
            });
        }
    }

    /// Whether a fetched record is the proven decision of the round at hand, with the headers that it names.
    fn check_record(&self, record: &DecisionRecord) -> Result<(), &'static str> {
        let decision = &record.decision;
        let shards = self.layout.shards_of(decision.round).len();
        let layout = &self.layout;
        let (run, manifest) = (&self.config.run, &self.config.manifest);
        if let Err(fault) = decision.check(run, manifest, &self.roster, &self.previous, layout) {
            tracing::warn!(round = %decision.round, %fault, "unsound decision record");
            return Err("sent a decision that is not sound");
        }
        let trust = self.config.manifest.trust.mode;
        if !record
            .certificate
            .proves(&self.config.run, &self.roster, &decision.id(), trust)
        {
            return Err("sent a decision without proof");
        }
        let named = decision.members.len() == record.headers.len()
            && decision.members.iter().zip(&record.headers).all(|(m, h)| {
                m.header == h.header.hash()
                    && m.peer == h.header.peer
                    && h.header.update.frames.len() == shards
            });
        if named {
            Ok(())
        } else {
            Err("sent a decision with other headers than it names")
        }
    }

    pub(super) fn on_request_failed(&mut self, id: RequestId) {
        let failed = self.asking_decisions.take_if(|asking| asking.id == id);
        if let Some(asking) = failed
            && let Some(state) = self.peers.get_mut(&asking.peer)
        {
            // Ask somebody else, and this one again when it has said something new.
            state.decided = state.decided.min(self.decided);
        }
        self.asking_headers.take_if(|asking| asking.id == id);
        self.asking_reductions.take_if(|asking| asking.id == id);
    }

    /// Whether the state cannot go on by applying what is pending.
    pub(super) fn needs_state(&self) -> bool {
        let Some(front) = self.pending.front() else {
            return self.diverged;
        };
        self.diverged || self.gap || self.frames_gone(front)
    }

    /// Whether the frames of a pending decision can be had no more: everybody says so, or everybody was asked in vain. The
    /// second is for peers that claim more than they hold.
    fn frames_gone(&self, record: &DecisionRecord) -> bool {
        let round = record.decision.round;
        let Some((shards, _)) = self.applied_by(record) else {
            return true;
        };
        let mut missing = shards
            .iter()
            .flat_map(|shard| &shard.contributions)
            .map(|contribution| contribution.frame)
            .filter(|frame| !self.frames.is_held(frame))
            .peekable();
        if missing.peek().is_none() {
            return false;
        }
        let connected = self.peers.values().filter(|peer| peer.connected);
        let mut told = connected.filter_map(|peer| peer.holdings).peekable();
        let all_say_so = told.peek().is_some() && told.all(|h| h.frames_from > round);
        all_say_so || missing.any(|frame| self.frames.is_hopeless(&frame))
    }

    pub(super) fn fetch_state(&mut self) -> bool {
        if self.task != StateTask::Idle || !self.needs_state() {
            return false;
        }
        let Some((round, root, sources)) = self.snapshot_on_offer() else {
            return false;
        };
        self.exchange = None;
        self.stop_training();
        self.task = StateTask::Fetching { round, root };
        self.effects.push_back(Effect::FetchState {
            round,
            root,
            sources,
        });
        true
    }

    /// The newest snapshot that a connected peer serves and whose root is decided, and who serves it.
    fn snapshot_on_offer(&self) -> Option<(RoundId, Hash, Vec<PeerKey>)> {
        let offers = self.peers.iter().filter_map(|(peer, state)| {
            let round = state.holdings.filter(|_| state.connected)?.snapshot;
            let root = self.decided_root(round)?;
            let useful = self.diverged || Some(round) > self.applied;
            useful.then_some((round, root, *peer))
        });
        let offers: Vec<_> = offers.collect();
        let (round, root, _) = *offers.iter().max_by_key(|(round, _, _)| *round)?;
        let sources = offers
            .iter()
            .filter(|(at, _, _)| *at == round)
            .map(|(_, _, peer)| *peer)
            .collect();
        Some((round, root, sources))
    }

    pub(super) fn on_state_fetched(&mut self, round: RoundId, records: Vec<Arc<DecisionRecord>>) {
        let StateTask::Fetching { round: asked, root } = self.task else {
            return;
        };
        if asked != round {
            return;
        }
        self.task = StateTask::Idle;
        self.applied = Some(round);
        self.state_root = root;
        self.diverged = false;
        self.gap = false;
        self.pending.clear();
        self.frames.release_before(round.next());
        for record in records {
            if Some(record.decision.round) <= self.decided && record.decision.round > round {
                self.keep_pending(record);
            }
        }
        self.report(Report::Applied {
            round,
            state_root: root,
        });
        self.note_finished(round);
    }

    pub(super) fn on_state_failed(&mut self, round: RoundId) {
        if let StateTask::Fetching { round: asked, .. } = self.task
            && asked == round
        {
            self.task = StateTask::Idle;
            for state in self.peers.values_mut() {
                state.holdings = None;
            }
        }
    }
}
