//! The exchange of a round: training, committing, headers and the frames that they name.
//!
//! Rule `one-header`: this peer's header is journalled before it is published. A restart in the same round finds it in
//! the journal and publishes the same one again, so that there is never a second one.
//!
//! Rule `train-ahead`: with overlap a member that has committed its update of round r trains round r + 1 at once, while r is
//! exchanged, decided and applied. It starts from the state before r minus its own update of r, which is in flight; the data
//! are given by the decision of round r - 1. The update is encoded, and committed to, when the state after r is current:
//! with the error feedback as r left it, from a state root that all members have, at the stage that the plan of r + 1 says.
//! So nothing but the time of training changes for others. One who could not train ahead (it came in with r + 1, was
//! restarted, or its training failed) trains r + 1 from the state after r, on the same data, and commits later than they do.
//!
//! Rule `in-step`: one who trains round r after the others have would be left out of it, and out of later rounds too, for its
//! training of r + 1 would begin as late. So when more than half of the other members have committed and it cannot be in
//! time, it gives r up and trains r + 1 from the state at hand, in step with the others; what it has learnt of r stays in its
//! error feedback. It cannot be in time if a round's time from the start of its training on, and the time that frames took
//! on their way, both of the round before, lead past the deadline.
//!
//! Rule `header-judged-at-home`: a header is looked at only while the exchange of its round is open, that is, while
//! the state that it must have been trained from is this peer's own. One that comes earlier waits.
//!
//! Rule `strangers-fill-nothing`: an early header takes the place of an older one by the same author, and members have places of
//! their own. However many identities a peer makes up, they take none of those.
//!
//! Rule `first-header-counts`: of one author the header that came first counts, and a second one is looked at only if others
//! name it. Further ones are not kept. Whoever signs two is blamed, and neither its frames nor its headers hold others up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::exchange::{Exchange, Insertion, Work};
use super::frames::Standing;
use super::{Arrivals, Effect, Node, Start, StateTask, Training};
use crate::hash::Hash;
use crate::header::{FrameId, Header, SignedHeader, UpdateSummary, WorkCommitment};
use crate::key::PeerKey;
use crate::manifest::{Manifest, PEERS_MAX, RoundId};
use crate::plan::{Plan, Sources};
use crate::time::Time;
use crate::wire::{Gossip, JournalEntry};

/// Headers kept for later from peers that are not in the roster of the round at hand: as many as can come into it.
const EARLY_HEADERS_OF_OTHERS: usize = PEERS_MAX as usize;

impl Node {
    /// Opens the exchange of the round at hand once the state before it is current.
    pub(super) fn open_exchange(&mut self, now: Time) -> bool {
        let round = self.roster.round();
        let current = self.task == StateTask::Idle
            && self.pending.is_empty()
            && self.awaiting_headers.is_none()
            && !self.needs_state()
            && !self.roster.is_empty()
            && self.applied == round.previous();
        if self.exchange.is_some() || !current || round.0 > self.config.manifest.schedule.rounds {
            return false;
        }
        let patience = self.patience(&self.arrivals);
        if self.owners.len() != self.layout.groups().len() {
            self.owners = self.layout.owners(&self.config.run);
        }
        let reducing = self.new_reducing();
        self.exchange = Some(Exchange::new(round, now, patience, reducing));
        self.own_shards();
        if round != RoundId::FOUNDING {
            self.begin_work(now, round);
        }
        for header in std::mem::take(&mut self.early_headers).into_values() {
            self.on_header(now, header);
        }
        for proposal in std::mem::take(&mut self.early_proposals) {
            if proposal.message.height == round {
                self.keep_proposal(&proposal);
            } else if proposal.message.height > round {
                self.early_proposals.push(proposal);
            }
        }
        for list in std::mem::take(&mut self.early_lists) {
            self.on_reductions(now, list);
        }
        true
    }

    /// How long to wait for what came as `arrivals` in earlier rounds.
    pub(super) fn patience(&self, arrivals: &Arrivals) -> Duration {
        let timing = &self.config.manifest.timing;
        let floor = Duration::from_millis(timing.deadline_floor_ms.into());
        let cap = Duration::from_millis(timing.deadline_cap_ms.into());
        arrivals.deadline(floor, cap)
    }

    fn begin_work(&mut self, now: Time, round: RoundId) {
        if !self.roster.contains(&self.me) || self.leaving.is_some() {
            self.stop_training();
            return;
        }
        let restored = self.own_header.clone();
        let restored = restored.filter(|h| h.header.round == round);
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        if let Some(header) = restored {
            // Committed before a restart: the frames are asked for like anybody's, and the driver has them.
            exchange.work = Work::Committed;
            self.broadcast(Gossip::Header(Box::new(header.clone())));
            self.insert_header(now, header);
            self.train_ahead(now);
        } else {
            exchange.work = Work::Training;
            if self.training.is_none_or(|training| training.round != round) {
                self.train(now, round, Start::State);
            }
            self.effects.push_back(Effect::Encode {
                round,
                stage: self.layout.plan().stage_of_updates(),
                shards: self.layout.shards_of(round),
            });
        }
    }

    /// Whether the round after the one at hand is to be trained as soon as may be.
    fn may_train_ahead(&self) -> bool {
        let manifest = &self.config.manifest;
        manifest.exchange.overlap > 0
            && self.roster.round().0 < manifest.schedule.rounds
            && self.leaving.is_none()
    }

    /// Rule `train-ahead`: the own update of the round at hand is committed.
    fn train_ahead(&mut self, now: Time) {
        let may_train = self.may_train_ahead();
        if let Some(own) = self.own_header.as_ref().filter(|_| may_train) {
            let frames = self.layout.frames_of(&own.header).collect();
            let next = self.roster.round().next();
            self.train(now, next, Start::Ahead { frames });
        }
    }

    /// Rule `in-step`: another member has committed.
    fn fall_into_step(&mut self, now: Time) {
        let may_train = self.may_train_ahead();
        let Some(exchange) = self.exchange.as_mut().filter(|_| may_train) else {
            return;
        };
        let round = exchange.round;
        let last = self.last_exchange.as_ref();
        let last = last.filter(|l| l.round.next() == round && l.round != RoundId::FOUNDING);
        let (Some(last), Some(training), Work::Training) = (last, self.training, exchange.work)
        else {
            return;
        };
        let others = self.roster.members().iter().map(|member| member.peer);
        let others: Vec<PeerKey> = others.filter(|peer| *peer != self.me).collect();
        let committed = others.iter().filter(|p| exchange.first_of(p).is_some());
        let there = training.since + (exchange.started - last.started) + last.transfer;
        if 2 * committed.count() <= others.len() || there <= exchange.deadline {
            return;
        }
        exchange.work = Work::None;
        let frames = Vec::new();
        self.stop_training();
        self.train(now, round.next(), Start::Ahead { frames });
    }

    /// Has the round at hand trained, or the next one.
    fn train(&mut self, now: Time, round: RoundId, start: Start) {
        let late = self.config.manifest.exchange.overlap > 0 && round == self.roster.round();
        let basis = if late {
            &self.before_previous
        } else {
            &self.previous
        };
        self.training = Some(Training { round, since: now });
        self.effects.push_back(Effect::Train {
            round,
            seed: Manifest::round_seed(&self.config.run, round, basis),
            steps: self.config.manifest.schedule.steps_per_round,
            start,
        });
    }

    /// What is trained, or trained and not encoded, will not be committed to.
    pub(super) fn stop_training(&mut self) {
        if let Some(training) = self.training.take() {
            self.effects.push_back(Effect::StopTraining(training.round));
        }
    }

    pub(super) fn on_update_ready(&mut self, now: Time, round: RoundId, update: UpdateSummary) {
        self.training.take_if(|training| training.round == round);
        let (run, peer, state_root) = (self.config.run, self.me, self.state_root);
        let Some(exchange) = self.exchange_of(round) else {
            return;
        };
        if exchange.work != Work::Training {
            return;
        }
        exchange.work = Work::Committed;
        let header = Header {
            run,
            round,
            peer,
            state_root,
            update,
        };
        let signed = header.sign(&self.config.keypair);
        for frame in self.layout.frames_of(&signed.header) {
            self.frames.put(round, frame);
        }
        self.effects.push_back(Effect::Journal {
            round,
            entry: Box::new(JournalEntry::Header(Box::new(signed.clone()))),
        });
        self.own_header = Some(signed.clone());
        self.broadcast(Gossip::Header(Box::new(signed.clone())));
        self.insert_header(now, signed);
        self.train_ahead(now);
    }

    pub(super) fn on_header(&mut self, now: Time, header: SignedHeader) {
        let (round, author) = (header.header.round, header.header.peer);
        let current = self.roster.round();
        if self.keeps_header(&header) {
            return;
        }
        if header.header.run != self.config.run || !header.is_authentic() {
            self.blame(author, "sent a header that is not signed for this run");
            return;
        }
        if round > current {
            self.hint_decided(author, round.previous());
        }
        if Some(round) == current.previous() {
            if let Some(last) = &mut self.last_exchange
                && last.left_out.remove(&author)
            {
                self.arrivals.record_late(now - last.started);
            }
            return;
        }
        if round == current && self.exchange.is_some() {
            self.insert_header(now, header);
        } else if (round == current || round == current.next())
            && self.admits(&author)
            && self.has_room_for_early(&author)
        {
            self.early_headers.insert(author, header);
        }
    }

    /// Whether a header of `author` can be kept for later. Rule `strangers-fill-nothing`.
    fn has_room_for_early(&self, author: &PeerKey) -> bool {
        let strangers = self.early_headers.keys();
        let strangers = strangers.filter(|peer| !self.roster.contains(peer));
        self.roster.contains(author)
            || self.early_headers.contains_key(author)
            || strangers.count() < EARLY_HEADERS_OF_OTHERS
    }

    /// Whether exactly this header is kept. It comes again with each heartbeat of its author, and is verified once.
    fn keeps_header(&self, header: &SignedHeader) -> bool {
        let exchange = self.exchange.as_ref();
        let known = exchange.and_then(|e| e.header(&header.header.hash()));
        known == Some(header) || self.early_headers.get(&header.header.peer) == Some(header)
    }

    /// Takes in an authentic header of the round at hand, whose exchange is open.
    pub(super) fn insert_header(&mut self, now: Time, header: SignedHeader) {
        let author = header.header.peer;
        if let Some(fault) = self.header_fault(&header.header) {
            self.blame(author, fault);
            return;
        }
        let hash = header.header.hash();
        let named = self.is_named(&hash);
        let wanted = self.wanted_frames(&header.header);
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        match exchange.insert(now, header, wanted, named) {
            Insertion::First => {
                self.want_frames(now, &hash);
                self.fall_into_step(now);
            }
            Insertion::Known => {}
            Insertion::Contradiction | Insertion::Refused => {
                if named {
                    self.want_frames(now, &hash);
                }
                self.blame(author, "signed two headers in one round");
            }
        }
    }

    /// Whether a proposal that is not judged yet, an owner, or the decision names this header.
    fn is_named(&self, header: &Hash) -> bool {
        let mut parts = self.exchange.iter().flat_map(|e| e.reducing.parts.values());
        if parts.any(|part| part.claims().any(|(_, c, _)| c.headers.contains(header))) {
            return true;
        }
        let proposed = self.proposals.iter().map(|p| &p.value);
        let decided = self.awaiting_headers.iter().map(|(d, _)| &**d);
        proposed
            .chain(decided)
            .any(|decision| decision.members.iter().any(|m| m.header == *header))
    }

    /// What is wrong with a header of the round at hand, if anything. Cheap: no frame is looked at. What its author says of its
    /// losses is not looked at either: nothing depends on it.
    fn header_fault(&self, header: &Header) -> Option<&'static str> {
        let update = &header.update;
        let manifest = &self.config.manifest;
        let fits_audits = match manifest.audit {
            None => update.work == WorkCommitment::default(),
            Some(_) => update.work.segments_root != Hash::ZERO,
        };
        let shards = self.layout.shards_of(header.round).len();
        let frame_bytes_max = self
            .config
            .frame_bytes_max
            .of(self.layout.plan().stage_of_updates());
        if !self.roster.contains(&header.peer) {
            Some("sent a header without being in the roster")
        } else if header.state_root != self.state_root {
            Some("trained from another state")
        } else if update.frames.len() != shards {
            Some("sent a header with the wrong number of frames")
        } else if update.frames.iter().any(|f| f.bytes > frame_bytes_max) {
            Some("sent a header with a frame that is too long")
        } else if update.tokens > manifest.tokens_per_round_max() {
            Some("claims more tokens than a round has")
        } else if update.steps > manifest.schedule.steps_per_round {
            Some("claims more steps than a round has")
        } else if !fits_audits {
            Some("sent a header whose work does not suit the audits of the run")
        } else {
            None
        }
    }

    /// Wants the frames of a header of the round at hand that this peer needs.
    pub(super) fn want_frames(&mut self, now: Time, header: &Hash) {
        let Some(signed) = self.exchange.as_ref().and_then(|e| e.header(header)) else {
            return;
        };
        let author = signed.header.peer;
        let frames = self.wanted_frames(&signed.header);
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        let sources = Sources::new(&self.roster, &self.me);
        let plan = self.layout.plan();
        let mut by_turn: BTreeMap<usize, Vec<PeerKey>> = BTreeMap::new();
        for frame in frames {
            let round = exchange.round;
            let sources = by_turn
                .entry(sources.turn(frame.shard))
                .or_insert_with(|| match plan {
                    Plan::Gather => sources.of(&[author], frame.shard),
                    Plan::Reduce | Plan::Hier => sources.direct(&[author]),
                });
            let standing = self
                .frames
                .want(round, frame, sources.clone(), &mut self.effects);
            match standing {
                Standing::Held => exchange.frame_held(now, &frame),
                Standing::Missing => {}
                Standing::Malformed => {
                    exchange.frame_malformed(&frame);
                }
            }
        }
    }

    pub(super) fn on_frame_malformed(&mut self, frame: &FrameId) {
        let stage = self.layout.plan().stage_of_results();
        if self.frames.malformed(frame)
            && let Some(exchange) = &mut self.exchange
        {
            let owners = exchange.reducing.frame_malformed(frame, stage);
            for author in exchange.frame_malformed(frame) {
                self.blame(author, "committed to a frame that does not decode");
            }
            for owner in owners {
                self.blame(owner, "announced a frame that does not decode");
            }
        }
    }
}
