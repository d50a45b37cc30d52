//! The agreement on a round: what is proposed, what is voted for, and the headers that are missing to tell.
//!
//! Rule `bytes-before-votes`: a proposal is judged acceptable only if it is sound, names this peer's own state root,
//! and every byte that it names is here, and the snapshot of the registry. Until then there is no verdict, and so no
//! vote.
//!
//! Rule `members-speak`: messages of the agreement count only from peers that are in the roster, as far as it is known.
//!
//! Rule `nobody-fills-up`: a proposer has room for as many proposals as it may rightly need, and no more, so that one
//! that signs proposals for every attempt of the future leaves room for those of others.
//!
//! A decision of the agreement becomes a record once all headers that it names are here.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Asking, Effect, Node, RequestId};
use crate::agreement::{Message, Output, Proposal, SignedProposal};
use crate::capacity::CAPACITIES_MAX;
use crate::decision::{Decision, JOINS_MAX};
use crate::header::SignedHeader;
use crate::key::PeerKey;
use crate::manifest::{PEERS_MAX, RoundId};
use crate::plan::Plan;
use crate::time::Time;
use crate::wire::{DecisionRecord, Gossip, HEADERS_MAX, JournalEntry, Request};

/// Attempts after the one at hand whose proposals are kept; the engine drops messages of later ones too.
const ATTEMPTS_AHEAD_MAX: i64 = 10;
/// Proposals kept of one attempt: its proposer may sign two, not fill the room of others.
const PROPOSALS_PER_ATTEMPT: usize = 2;
/// Proposals kept that cannot be judged yet: more than the attempt at hand and those ahead can have. When full, the
/// earliest attempt goes.
const PROPOSALS_MAX: usize = 24;
/// Proposals kept for later rounds from one peer.
const EARLY_PROPOSALS_PER_PEER: usize = 2;
/// Proposals kept for later rounds: those of a full roster.
const EARLY_PROPOSALS_MAX: usize = EARLY_PROPOSALS_PER_PEER * PEERS_MAX as usize;
/// How far ahead of the round at hand the engine keeps messages.
const EARLY_ROUNDS: u64 = 4;

impl Node {
    pub(super) fn on_agreement(&mut self, now: Time, from: PeerKey, message: Message) {
        let (height, current) = (message.height(), self.roster.round());
        if height > current {
            // Whoever speaks of a later round has decided the one before it.
            self.hint_decided(from, height.previous());
        }
        if height < current || height.0 > current.0.saturating_add(EARLY_ROUNDS) {
            return;
        }
        // Rule `members-speak`. The roster of a later round is not known yet: who asked to join may be in it.
        let asked_to_join = height > current && self.joins.contains_key(&from);
        if !self.roster.contains(&from) && !asked_to_join {
            return;
        }
        if let Message::Proposal(proposal) = &message {
            if height > current {
                self.keep_early_proposal(from, proposal);
            } else {
                self.keep_proposal(proposal);
                self.ask_for_headers(now);
            }
        }
        self.agreement.receive(now, message);
    }

    /// Keeps a proposal of a later round, whose proposer cannot be told yet. Rule `nobody-fills-up`.
    fn keep_early_proposal(&mut self, from: PeerKey, proposal: &SignedProposal) {
        let kept = self.early_proposals.iter();
        let of_peer = kept.filter(|p| p.message.proposer == from).count();
        if proposal.message.proposer == from
            && of_peer < EARLY_PROPOSALS_PER_PEER
            && self.early_proposals.len() < EARLY_PROPOSALS_MAX
        {
            self.early_proposals.push(proposal.clone());
        }
    }

    /// Keeps a proposal for judgement if it is signed by the proposer of its attempt. Rule `nobody-fills-up`.
    pub(super) fn keep_proposal(&mut self, proposal: &SignedProposal) {
        let attempt = proposal.message.round;
        let ahead = attempt.as_i64() > i64::from(self.agreement.attempt()) + ATTEMPTS_AHEAD_MAX;
        let of_attempt = self.proposals.iter().filter(|p| p.round == attempt).count();
        if ahead
            || of_attempt >= PROPOSALS_PER_ATTEMPT
            || self.proposals.contains(&proposal.message)
            || !self.agreement.is_authentic(&self.roster, proposal)
        {
            return;
        }
        self.proposals.push(proposal.message.clone());
        if self.proposals.len() > PROPOSALS_MAX {
            let attempts = self.proposals.iter().map(|p| p.round).enumerate();
            if let Some((earliest, _)) = attempts.min_by_key(|(_, attempt)| *attempt) {
                self.proposals.swap_remove(earliest);
            }
        }
    }

    /// Begins to vote once everything is here that will be waited for.
    pub(super) fn start_agreement(&mut self, now: Time) -> bool {
        let Some(exchange) = &self.exchange else {
            return false;
        };
        if self.agreement.is_started() {
            return false;
        }
        let ready = if exchange.round == RoundId::FOUNDING {
            let needed = self.config.manifest.trust.peers_min;
            self.me != self.config.manifest.launcher || self.founders() >= needed
        } else {
            match self.layout.plan() {
                Plan::Gather => {
                    let mut members = self.roster.members().iter();
                    exchange.deadline <= now || members.all(|m| exchange.has_update_of(&m.peer))
                }
                Plan::Reduce | Plan::Hier => self.is_reduced(now, exchange),
            }
        };
        if !ready && self.journal.is_empty() {
            return false;
        }
        let journal = std::mem::take(&mut self.journal);
        self.agreement.start(now, &self.roster, journal);
        true
    }

    pub(super) fn drain_agreement(&mut self, now: Time) -> bool {
        let mut progress = self.agreement.pass_attempt(now);
        while let Some(output) = self.agreement.poll_output() {
            progress = true;
            match output {
                Output::Journal(record) => self.effects.push_back(Effect::Journal {
                    round: self.roster.round(),
                    entry: Box::new(JournalEntry::Agreement(Box::new(record))),
                }),
                Output::Publish(message) => self.broadcast(Gossip::Agreement(message)),
                Output::Propose => self.propose_now = true,
                Output::Decided(decision, certificate) => {
                    self.awaiting_headers = Some((decision, certificate));
                    self.ask_for_headers(now);
                }
            }
        }
        if std::mem::take(&mut self.propose_now) {
            let decision = self.make_decision(now);
            self.agreement.propose(now, decision);
            progress = true;
        }
        progress
    }

    /// The decision that this peer proposes: everything that is complete here, and every change that is due.
    fn make_decision(&self, now: Time) -> Decision {
        let round = self.roster.round();
        let (members, shards) = match &self.exchange {
            Some(exchange) if round != RoundId::FOUNDING => match self.layout.plan() {
                Plan::Gather => exchange.accepted(self.layout.shards_of(round)),
                Plan::Reduce | Plan::Hier => self.accepted_reductions(now, exchange),
            },
            Some(_) | None => (Vec::new(), Vec::new()),
        };
        let room =
            (self.config.manifest.trust.peers_max as usize).saturating_sub(self.roster.len());
        let basis = self.basis();
        let decision = Decision {
            run: self.config.run,
            round,
            previous: self.previous,
            state_root: self.state_root,
            members,
            shards,
            joins: self
                .joins
                .values()
                .filter(|join| !self.roster.contains(&join.peer) && join.round <= round)
                .filter(|join| basis.admits(&join.peer))
                .take(JOINS_MAX.min(room))
                .copied()
                .collect(),
            leaves: self
                .leaves
                .values()
                .filter(|leave| {
                    let member = self.roster.position(&leave.peer);
                    let since = member.map(|place| self.roster.members()[place].since);
                    leave.round <= round && since.is_some_and(|since| since <= leave.round)
                })
                .copied()
                .collect(),
            registry: None,
            powers: Vec::new(),
            capacities: self
                .due_capacities()
                .take(CAPACITIES_MAX)
                .copied()
                .collect(),
        };
        basis.complete(decision, &self.roster, &self.config.manifest)
    }

    /// Judges proposals whose bytes are here. Rule `bytes-before-votes`.
    pub(super) fn judge_proposals(&mut self, now: Time) -> bool {
        if !self.agreement.is_started() || self.exchange.is_none() {
            return false;
        }
        let mut judged = false;
        for proposal in std::mem::take(&mut self.proposals) {
            match self.judge(now, &proposal) {
                Verdict::Acceptable => self.agreement.judge(now, &proposal, true),
                Verdict::Unacceptable(fault) => {
                    self.blame(proposal.proposer, fault);
                    self.agreement.judge(now, &proposal, false);
                }
                Verdict::Doubtful => self.agreement.judge(now, &proposal, false),
                Verdict::NotYet => {
                    self.proposals.push(proposal);
                    continue;
                }
            }
            judged = true;
        }
        self.ask_for_reductions(now);
        judged
    }

    fn judge(&mut self, now: Time, proposal: &Proposal) -> Verdict {
        let decision = &proposal.value;
        let layout = &self.layout;
        let (run, manifest) = (&self.config.run, &self.config.manifest);
        if let Err(fault) = decision.check(run, manifest, &self.roster, &self.previous, layout) {
            tracing::warn!(round = %decision.round, %fault, "unsound proposal");
            return Verdict::Unacceptable("proposed a decision that is not sound");
        }
        if decision.state_root != self.state_root {
            return Verdict::Unacceptable("proposed another state root than this peer's");
        }
        let mut verdict = self.judge_registry(decision);
        if let Verdict::Unacceptable(_) = verdict {
            return verdict;
        }
        if self.layout.plan() != Plan::Gather {
            let reductions = self.judge_reductions(now, decision);
            return match verdict {
                Verdict::Acceptable => reductions,
                Verdict::NotYet | Verdict::Doubtful | Verdict::Unacceptable(_) => verdict,
            };
        }
        for member in &decision.members {
            let Some(exchange) = &self.exchange else {
                return Verdict::NotYet;
            };
            if let Some(header) = exchange.header(&member.header)
                && header.header.peer != member.peer
            {
                return Verdict::Unacceptable("named a header as another peer's");
            }
            match exchange.is_complete(&member.header) {
                Some(true) => {}
                Some(false) => {
                    self.want_frames(now, &member.header);
                    verdict = Verdict::NotYet;
                }
                None => return Verdict::Unacceptable("named an update that does not decode"),
            }
        }
        verdict
    }

    /// Asks for headers that a proposal or a decision names and that are not here.
    pub(super) fn ask_for_headers(&mut self, now: Time) {
        if self.asking_headers.is_some() || self.exchange.is_none() {
            return;
        }
        let proposed = self.proposals.iter().map(|p| (&p.value, Some(p.proposer)));
        let decided = self.awaiting_headers.iter().map(|(d, _)| (&**d, None));
        let mut wanted = BTreeSet::new();
        let mut holders = Vec::new();
        for (decision, proposer) in decided.chain(proposed) {
            for member in &decision.members {
                if self.header(&member.header).is_none() {
                    wanted.insert(member.header);
                    holders.push(member.peer);
                    holders.extend(proposer);
                }
            }
        }
        let parts = self.exchange.iter().flat_map(|e| e.reducing.parts.values());
        for (owner, claim, _) in parts.flat_map(|part| part.claims()) {
            for header in claim.headers.iter().filter(|h| self.header(h).is_none()) {
                wanted.insert(*header);
                holders.push(*owner);
            }
        }
        let silent = self.silent(now);
        holders
            .retain(|peer| *peer != self.me && self.is_connected(peer) && !silent.contains(peer));
        let Some(peer) = self.take_turn(&holders) else {
            return;
        };
        let hashes = wanted.into_iter().take(HEADERS_MAX).collect();
        let id = self.request(peer, Request::Headers(hashes));
        self.asking_headers = Some(Asking {
            id,
            peer,
            since: now,
        });
    }

    pub(super) fn on_headers(&mut self, now: Time, id: RequestId, headers: Vec<SignedHeader>) {
        if self.asking_headers.take_if(|a| a.id == id).is_none() {
            return;
        }
        // Without an exchange this peer may still stand at an older state, by which no header can be judged.
        for header in headers {
            let current = header.header.round == self.roster.round() && self.exchange.is_some();
            if current && header.header.run == self.config.run && header.is_authentic() {
                self.insert_header(now, header);
            }
        }
    }

    /// Turns a decision of the agreement into a record once all headers that it names are here.
    pub(super) fn complete_decision(&mut self, now: Time) -> bool {
        let Some((decision, _)) = &self.awaiting_headers else {
            return false;
        };
        let headers: Option<Vec<SignedHeader>> = decision
            .members
            .iter()
            .map(|member| self.header(&member.header).cloned())
            .collect();
        let Some(headers) = headers else {
            return false;
        };
        let Some((decision, certificate)) = self.awaiting_headers.take() else {
            return false;
        };
        let record = DecisionRecord {
            decision: *decision,
            certificate,
            headers,
        };
        self.on_decided(now, Arc::new(record));
        true
    }
}

/// The answer to a proposal, from the worst to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Its proposer broke a rule.
    Unacceptable(&'static str),
    /// It names what this peer does not believe, and its proposer may.
    Doubtful,
    NotYet,
    Acceptable,
}
