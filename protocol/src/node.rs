//! The node: one peer's part in a run, as a state machine.
//!
//! [`Node::handle`] takes what happened, [`Node::poll_effect`] gives what is to be done, [`Node::poll_timeout`] says
//! when and why to come back. The node opens no socket, reads no clock and holds no frame: it knows hashes, and what
//! the driver holds of them.
//!
//! The life of a round r, once the state after round r - 1 is current here:
//! 1. the exchange opens: a member trains, commits (header signed, journalled, published), and wants every other
//!    member's frames;
//! 2. when every member's update is here, or the deadline has passed, the agreement on r begins;
//! 3. the proposer names what it holds; a voter votes for it only if it is sound and every byte that it names is here
//!    (rule `bytes-before-votes`), and never for a state root that is not its own;
//! 4. the decision is stored, then applied once all its frames are here; the state after r is current.
//!
//! A node that is behind fetches decisions, checks each one's certificate against the roster that the decisions
//! before it gave, and applies them in order; if their frames are gone it fetches a state by leaf. A node whose root is
//! not the decided one does the same, in place.

mod deadline;
mod effect;
mod exchange;
mod frames;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use deadline::Arrivals;
pub use effect::{Effect, Input, Report, RequestId, TimeoutReason};
pub use view::{Activity, Sizes, View};

use crate::agreement::{
    Agreement, CommitCertificate, Message, Output, Proposal, Record, SignedProposal, quorum,
};
use crate::decision::{Decision, JOIN_ROUNDS_MAX, JOINS_MAX, Join, Leave};
use crate::figures::RoundFigures;
use crate::hash::Hash;
use crate::header::{Header, SignedHeader, UpdateSummary};
use crate::key::{Keypair, PeerKey};
use crate::manifest::{Manifest, PEERS_MAX, RoundId, RunId};
use crate::plan::Plan;
use crate::roster::Roster;
use crate::time::Time;
use crate::wire::{DECISIONS_MAX, DecisionRecord, Decisions, Gossip, JournalEntry, Request};
use exchange::{Exchange, Insertion, Work};
use frames::{Frames, Standing};

/// Period of status messages, of repeated headers and joins, and of another try at what failed. A guess: small against
/// a round, large against a round trip.
const HEARTBEAT: Duration = Duration::from_millis(1000);
/// A request without an answer for this long counts as failed, whatever the driver does.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Decisions kept that are not yet applied. When there are more, the oldest go and a state is fetched instead.
const PENDING_MAX: usize = 1024;
/// Proposals kept that cannot be judged yet: every attempt within the engine's look-ahead, twice.
const PROPOSALS_MAX: usize = 24;
/// Headers kept for the next round: a full roster that is one round ahead, twice.
const EARLY_HEADERS_MAX: usize = 2 * PEERS_MAX as usize;
/// Joins and leaves kept, each. When full, newcomers are dropped; they ask again.
const CHANGES_MAX: usize = PEERS_MAX as usize;
/// Peers known. When full, further ones are not asked for anything.
const PEERS_KNOWN_MAX: usize = 256;
/// Decided state roots kept, to know which snapshots can be verified.
const ROOTS_MAX: usize = 4096;
/// How far ahead of the round at hand the engine keeps messages.
const EARLY_ROUNDS: u64 = 4;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The manifest.
    pub manifest: Arc<Manifest>,
    /// The run that it names.
    pub run: RunId,
    /// This peer's key.
    pub keypair: Keypair,
    /// Shards of an update.
    pub shards: u32,
    /// The longest frame that the codec can produce for a shard.
    pub frame_bytes_max: u64,
    /// The state root before any round.
    pub genesis_root: Hash,
}

/// What a node finds again after a restart. Empty at the first start.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Every stored decision from round 0, in order.
    pub records: Vec<Arc<DecisionRecord>>,
    /// The newest durable state: after which round, and its root.
    pub applied: Option<(RoundId, Hash)>,
    /// The journal of the first undecided round, in order.
    pub journal: Vec<JournalEntry>,
}

/// What is happening to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StateTask {
    Idle,
    Applying(RoundId),
    Fetching { round: RoundId, root: Hash },
}

/// What another peer said it holds.
#[derive(Clone, Copy, Debug, Default)]
struct PeerState {
    connected: bool,
    decided: Option<RoundId>,
    /// Set by its last answer to a decisions request.
    holdings: Option<Holdings>,
}

#[derive(Clone, Copy, Debug)]
struct Holdings {
    snapshot: RoundId,
    frames_from: RoundId,
}

/// A request that is not answered yet.
#[derive(Clone, Copy, Debug)]
struct Asking {
    id: RequestId,
    peer: PeerKey,
    since: Time,
}

/// See the module documentation.
pub struct Node {
    config: NodeConfig,
    me: PeerKey,
    plan: Plan,
    effects: VecDeque<Effect>,
    next_request: u64,

    // History: what is decided.
    roster: Roster,
    previous: Hash,
    decided: Option<RoundId>,
    roots: BTreeMap<RoundId, Hash>,

    // State: what is applied.
    applied: Option<RoundId>,
    state_root: Hash,
    task: StateTask,
    pending: VecDeque<Arc<DecisionRecord>>,
    /// The decided root that this peer's own differs from.
    diverged: bool,
    /// Pending decisions were dropped: only a fetched state helps.
    gap: bool,

    // The round at hand.
    agreement: Agreement,
    exchange: Option<Exchange>,
    frames: Frames,
    proposals: Vec<Proposal>,
    early_proposals: Vec<SignedProposal>,
    early_headers: BTreeMap<PeerKey, SignedHeader>,
    /// Decided, but a header that the decision names is not here.
    awaiting_headers: Option<(Box<Decision>, CommitCertificate)>,
    propose_now: bool,
    own_header: Option<SignedHeader>,
    journal: Vec<Record>,
    arrivals: Arrivals,
    last_start: Option<Time>,

    // Others.
    peers: BTreeMap<PeerKey, PeerState>,
    joins: BTreeMap<PeerKey, Join>,
    leaves: BTreeMap<PeerKey, Leave>,
    asking_decisions: Option<Asking>,
    asking_headers: Option<Asking>,
    ask_turn: usize,
    /// The state from which this peer last asked to join: it asks anew after each round, and once a heartbeat.
    join_asked_at: Option<RoundId>,
    /// Set once a heartbeat: peers that have decided nothing new may be asked what they hold.
    may_refresh: bool,
    heartbeat_at: Time,
    leaving: Option<Leave>,
    left: bool,
    finished: bool,
}

impl Node {
    /// A node at its first start or after a restart.
    ///
    /// # Panics
    /// If `restored` is not a gapless history that begins with round 0: the store checks that when it opens.
    pub fn new(now: Time, config: NodeConfig, restored: Restored) -> Node {
        let me = config.keypair.public();
        let founding = Roster::founding(&config.manifest);
        let agreement = Agreement::new(
            &config.manifest,
            config.run,
            config.keypair.clone(),
            &founding,
        );
        let (applied, state_root) = match restored.applied {
            Some((round, root)) => (Some(round), root),
            None => (None, config.genesis_root),
        };
        let mut node = Node {
            me,
            plan: Plan::Gather,
            effects: VecDeque::new(),
            next_request: 0,
            roster: founding,
            previous: Hash::ZERO,
            decided: None,
            roots: BTreeMap::new(),
            applied,
            state_root,
            task: StateTask::Idle,
            pending: VecDeque::new(),
            diverged: false,
            gap: false,
            agreement,
            exchange: None,
            frames: Frames::default(),
            proposals: Vec::new(),
            early_proposals: Vec::new(),
            early_headers: BTreeMap::new(),
            awaiting_headers: None,
            propose_now: false,
            own_header: None,
            journal: Vec::new(),
            arrivals: Arrivals::default(),
            last_start: None,
            peers: BTreeMap::new(),
            joins: BTreeMap::new(),
            leaves: BTreeMap::new(),
            asking_decisions: None,
            asking_headers: None,
            ask_turn: 0,
            join_asked_at: None,
            may_refresh: false,
            heartbeat_at: now,
            leaving: None,
            left: false,
            finished: false,
            config,
        };
        node.restore(restored.records, restored.journal);
        node.advance(now);
        node
    }

    fn restore(&mut self, records: Vec<Arc<DecisionRecord>>, journal: Vec<JournalEntry>) {
        for record in records {
            let decision = &record.decision;
            assert_eq!(decision.round, self.roster.round(), "history with a gap");
            self.note_decided(decision);
            if Some(decision.round) > self.applied {
                self.keep_pending(record);
            }
        }
        if self.roster.round() > self.agreement.height() {
            self.agreement.advance(&self.roster);
        }
        for entry in journal {
            match entry {
                JournalEntry::Header(header) if header.header.round == self.roster.round() => {
                    self.own_header = Some(*header);
                }
                JournalEntry::Header(_) => {}
                JournalEntry::Agreement(record) => self.journal.push(*record),
            }
        }
        if let Some(root) = self.applied.and_then(|round| self.roots.get(&round)) {
            self.diverged = *root != self.state_root;
        }
    }

    // ---- What the driver calls -----------------------------------------------------------------------------------

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Gossip { from, message } => self.on_gossip(now, from, *message),
            Input::PeerUp(peer) => {
                if let Some(state) = self.peer_mut(peer) {
                    state.connected = true;
                }
                self.heartbeat_at = now;
            }
            Input::PeerDown(peer) => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.connected = false;
                }
            }
            Input::Decisions { id, decisions } => self.on_decisions(now, id, *decisions),
            Input::Headers { id, headers } => self.on_headers(now, id, headers),
            Input::RequestFailed(id) => self.on_request_failed(id),
            Input::UpdateReady { round, update } => self.on_update_ready(now, round, *update),
            Input::TrainingFailed(round) => {
                if let Some(exchange) = self.exchange_of(round) {
                    exchange.work = Work::None;
                }
            }
            Input::FrameHeld(hash) => {
                if self.frames.held(&hash)
                    && let Some(exchange) = &mut self.exchange
                {
                    exchange.frame_held(now, &hash);
                }
            }
            Input::FrameFailed(hash) => self.frames.failed(now, &hash),
            Input::FrameMalformed(hash) => self.on_frame_malformed(&hash),
            Input::Applied { round, state_root } => self.on_applied(round, state_root),
            Input::StateFetched { round, records } => self.on_state_fetched(round, records),
            Input::StateFailed(round) => self.on_state_failed(round),
            Input::Leave => self.on_leave(),
        }
        self.advance(now);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        self.agreement.handle_timeout(now);
        self.frames.retry(now, &mut self.effects);
        if self.heartbeat_at <= now {
            self.heartbeat_at = now + HEARTBEAT;
            self.beat(now);
        }
        self.advance(now);
    }

    /// When to call [`Node::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Time, TimeoutReason)> {
        let heartbeat = Some((self.heartbeat_at, TimeoutReason::Heartbeat));
        let deadline = self
            .exchange
            .as_ref()
            .filter(|e| !self.agreement.is_started() && e.round != RoundId::FOUNDING)
            .map(|e| (e.deadline, TimeoutReason::ExchangeDeadline));
        let agreement = self
            .agreement
            .poll_timeout()
            .map(|(due, step)| (due, TimeoutReason::Agreement(step)));
        let retry = self
            .frames
            .next_retry()
            .map(|due| (due, TimeoutReason::FetchRetry));
        [heartbeat, deadline, agreement, retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next thing to do. Drain after each call, and do them in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// A header of the round at hand, to answer [`Request::Headers`].
    pub fn header(&self, hash: &Hash) -> Option<&SignedHeader> {
        let of_round = self.exchange.as_ref().and_then(|e| e.header(hash));
        of_round.or_else(|| {
            let own = self.own_header.as_ref();
            own.filter(|header| header.header.hash() == *hash)
        })
    }

    /// The last round known to be decided.
    pub fn decided(&self) -> Option<RoundId> {
        self.decided
    }

    /// The last round whose decision is applied.
    pub fn applied(&self) -> Option<RoundId> {
        self.applied
    }

    /// The state root after the last applied round.
    pub fn state_root(&self) -> Hash {
        self.state_root
    }

    /// The roster of the first undecided round.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The decided state root after `round`, where it is known: the decision of the next round carries it.
    pub fn decided_root(&self, round: RoundId) -> Option<Hash> {
        self.roots.get(&round).copied()
    }

    /// Whether another peer is connected.
    pub fn is_connected(&self, peer: &PeerKey) -> bool {
        *peer == self.me || self.peers.get(peer).is_some_and(|p| p.connected)
    }

    /// What the node does and why it waits.
    pub fn view(&self, now: Time) -> View {
        let exchange = self.exchange.as_ref();
        let members = self.roster.members();
        let waiting_for = match exchange {
            Some(exchange) => members
                .iter()
                .map(|member| member.peer)
                .filter(|peer| !exchange.has_update_of(peer))
                .collect(),
            None => Vec::new(),
        };
        View {
            round: self.roster.round(),
            activity: self.activity(),
            member: self.roster.contains(&self.me),
            waiting_for,
            deadline_in: exchange.map(|e| e.deadline - now),
            applied: self.applied,
            state_root: self.state_root,
            sizes: Sizes {
                pending: self.pending.len(),
                frames: self.frames.len(),
                headers: exchange.map_or(0, Exchange::len),
                early_headers: self.early_headers.len(),
                proposals: self.proposals.len() + self.early_proposals.len(),
                changes: self.joins.len() + self.leaves.len(),
                peers: self.peers.len(),
                effects: self.effects.len(),
            },
        }
    }

    fn activity(&self) -> Activity {
        if self.left {
            return Activity::Left;
        }
        match self.task {
            StateTask::Applying(round) => return Activity::Applying(round),
            StateTask::Fetching { round, .. } => return Activity::FetchingState(round),
            StateTask::Idle => {}
        }
        if self.finished {
            return Activity::Finished;
        }
        if let Some(target) = self.behind() {
            return Activity::CatchingUp {
                decided: self.decided,
                target,
            };
        }
        if self.needs_state() {
            return Activity::AwaitingState;
        }
        if let Some(record) = self.pending.front() {
            return Activity::Applying(record.decision.round);
        }
        if self.roster.round() == RoundId::FOUNDING {
            if !self.roster.contains(&self.me) {
                return Activity::AwaitingLauncher;
            }
            return Activity::Founding {
                present: self.joins.len() as u32 + 1,
                needed: self.config.manifest.trust.peers_min,
            };
        }
        if !self.roster.contains(&self.me) {
            return Activity::Observing;
        }
        if self.agreement.is_started() {
            let members = self.roster.members().iter();
            let connected = members.filter(|m| self.is_connected(&m.peer)).count();
            return Activity::Deciding {
                attempt: self.agreement.attempt(),
                connected: connected as u32,
                quorum: quorum(self.config.manifest.trust.mode, self.roster.len()) as u32,
            };
        }
        match self.exchange.as_ref().map(|e| e.work) {
            Some(Work::Training) => Activity::Training,
            Some(Work::Committed | Work::None) | None => Activity::Exchanging,
        }
    }

    // ---- What others send ----------------------------------------------------------------------------------------

    fn on_gossip(&mut self, now: Time, from: PeerKey, message: Gossip) {
        if from == self.me {
            return;
        }
        match message {
            Gossip::Header(header) => {
                if header.header.peer == from {
                    self.on_header(now, *header);
                } else {
                    self.blame(from, "published a header of another peer");
                }
            }
            Gossip::Agreement(message) => self.on_agreement(now, from, message),
            Gossip::Status(decided) => {
                if let Some(state) = self.peer_mut(from) {
                    state.decided = decided;
                }
            }
            Gossip::Join(join) => self.on_join(from, join),
            Gossip::Leave(leave) => {
                let known = self.roster.contains(&leave.peer) && leave.run == self.config.run;
                if known && self.leaves.len() < CHANGES_MAX && leave.is_authentic() {
                    self.leaves.insert(leave.peer, leave);
                }
            }
            Gossip::Contact(_) => {}
        }
    }

    fn on_agreement(&mut self, now: Time, from: PeerKey, message: Message) {
        let (height, current) = (message.height(), self.roster.round());
        if height > current {
            // Whoever speaks of a later round has decided the one before it.
            self.hint_decided(from, height.previous());
        }
        if height < current || height.0 > current.0.saturating_add(EARLY_ROUNDS) {
            return;
        }
        if let Message::Proposal(proposal) = &message {
            if height > current {
                if self.early_proposals.len() < PROPOSALS_MAX {
                    self.early_proposals.push((**proposal).clone());
                }
            } else {
                self.keep_proposal(proposal);
                self.ask_for_headers(now);
            }
        }
        self.agreement.receive(now, message);
    }

    /// Keeps a proposal for judgement if it is signed by the proposer of its attempt.
    fn keep_proposal(&mut self, proposal: &SignedProposal) {
        let known = self.proposals.contains(&proposal.message);
        let room = self.proposals.len() < PROPOSALS_MAX;
        if !known && room && self.agreement.is_authentic(&self.roster, proposal) {
            self.proposals.push(proposal.message.clone());
        }
    }

    fn on_header(&mut self, now: Time, header: SignedHeader) {
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
            if let Some(start) = self.last_start {
                self.arrivals.record_late(now - start);
            }
            return;
        }
        if round == current && self.exchange.is_some() {
            self.insert_header(now, header);
        } else if (round == current || round == current.next())
            && (self.early_headers.len() < EARLY_HEADERS_MAX
                || self.early_headers.contains_key(&author))
        {
            self.early_headers.insert(author, header);
        }
    }

    /// Whether exactly this header is kept. It comes again with each heartbeat of its author, and is verified once.
    fn keeps_header(&self, header: &SignedHeader) -> bool {
        let exchange = self.exchange.as_ref();
        let known = exchange.and_then(|e| e.header(&header.header.hash()));
        known == Some(header) || self.early_headers.get(&header.header.peer) == Some(header)
    }

    /// Takes in an authentic header of the round at hand, whose exchange is open.
    fn insert_header(&mut self, now: Time, header: SignedHeader) {
        let author = header.header.peer;
        if let Some(fault) = self.header_fault(&header.header) {
            self.blame(author, fault);
            return;
        }
        let hash = header.header.hash();
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        match exchange.insert(now, header) {
            Insertion::First => self.want_frames(now, &hash),
            Insertion::Known => {}
            Insertion::Contradiction | Insertion::Refused => {
                self.blame(author, "signed two headers in one round");
            }
        }
    }

    /// What is wrong with a header of the round at hand, if anything. Cheap: no frame is looked at.
    fn header_fault(&self, header: &Header) -> Option<&'static str> {
        let update = &header.update;
        let shards = self.config.shards as usize;
        let frame_bytes_max = self.config.frame_bytes_max;
        if !self.roster.contains(&header.peer) {
            Some("sent a header without being in the roster")
        } else if header.state_root != self.state_root {
            Some("trained from another state")
        } else if update.frames.len() != shards {
            Some("sent a header with the wrong number of frames")
        } else if update.frames.iter().any(|f| f.bytes > frame_bytes_max) {
            Some("sent a header with a frame that is too long")
        } else if update.tokens > self.config.manifest.tokens_per_round_max() {
            Some("claims more tokens than a round has")
        } else {
            None
        }
    }

    /// Wants every frame of a header of the round at hand.
    fn want_frames(&mut self, now: Time, header: &Hash) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        let Some(signed) = exchange.header(header) else {
            return;
        };
        let (author, frames) = (signed.header.peer, signed.header.update.frames.clone());
        let sources = self.plan.sources(&self.roster, &self.me, &author);
        for (shard, frame) in frames.into_iter().enumerate() {
            let standing = self.frames.want(
                exchange.round,
                frame,
                shard as u32,
                sources.clone(),
                &mut self.effects,
            );
            match standing {
                Standing::Held => exchange.frame_held(now, &frame.hash),
                Standing::Missing => {}
                Standing::Malformed => {
                    exchange.frame_malformed(&frame.hash);
                }
            }
        }
    }

    fn on_frame_malformed(&mut self, hash: &Hash) {
        if self.frames.malformed(hash)
            && let Some(exchange) = &mut self.exchange
        {
            for author in exchange.frame_malformed(hash) {
                self.blame(author, "committed to a frame that does not decode");
            }
        }
    }

    fn on_join(&mut self, from: PeerKey, join: Join) {
        let round = self.decided.unwrap_or_default();
        let fresh = join.round.0 <= round.0.saturating_add(1)
            && round.0 <= join.round.0.saturating_add(JOIN_ROUNDS_MAX / 2);
        let decided_root = match join.round {
            at if Some(at) == self.applied => Some(self.state_root),
            at if at == RoundId::FOUNDING => Some(self.config.genesis_root),
            at => self.decided_root(at),
        };
        let wanted = join.peer == from
            && join.run == self.config.run
            && fresh
            && !self.roster.contains(&from);
        if !wanted {
            return;
        }
        if decided_root.is_some_and(|root| root != join.state_root) {
            self.blame(from, "asks to join from another state");
            return;
        }
        let room = self.joins.len() < CHANGES_MAX || self.joins.contains_key(&from);
        let newer = self.joins.get(&from).is_none_or(|j| j.round < join.round);
        if room && newer && join.is_authentic() {
            self.joins.insert(from, join);
        }
    }

    fn on_update_ready(&mut self, now: Time, round: RoundId, update: UpdateSummary) {
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
        for (shard, frame) in signed.header.update.frames.iter().enumerate() {
            self.frames.put(round, *frame, shard as u32);
        }
        self.effects.push_back(Effect::Journal {
            round,
            entry: Box::new(JournalEntry::Header(Box::new(signed.clone()))),
        });
        self.own_header = Some(signed.clone());
        self.broadcast(Gossip::Header(Box::new(signed.clone())));
        self.insert_header(now, signed);
    }

    fn on_leave(&mut self) {
        if self.leaving.is_none() {
            let round = self.roster.round();
            let leave = Leave::sign(self.config.run, round, &self.config.keypair);
            self.leaving = Some(leave);
            if self.roster.contains(&self.me) {
                self.leaves.insert(self.me, leave);
                self.broadcast(Gossip::Leave(leave));
            } else {
                self.left = true;
                self.report(Report::Left(round));
            }
        }
    }

    // ---- Progress ------------------------------------------------------------------------------------------------

    /// Does everything that can be done now.
    fn advance(&mut self, now: Time) {
        while self.complete_decision(now)
            || self.apply_next()
            || self.fetch_state()
            || self.open_exchange(now)
            || self.start_agreement(now)
            || self.judge_proposals(now)
            || self.drain_agreement(now)
        {}
        self.ask_for_decisions(now);
        if self.applied != self.join_asked_at && self.may_join() {
            self.ask_to_join();
        }
    }

    /// Applies the oldest pending decision once its frames are here.
    fn apply_next(&mut self) -> bool {
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
            for (shard, frame) in header.header.update.frames.iter().enumerate() {
                let counts = record
                    .decision
                    .shards
                    .get(shard)
                    .is_some_and(|s| s.accepted.contains(place));
                if counts {
                    let standing = self.frames.want(
                        round,
                        *frame,
                        shard as u32,
                        sources.clone(),
                        &mut self.effects,
                    );
                    complete &= standing == Standing::Held;
                }
            }
        }
        if !complete {
            return false;
        }
        self.task = StateTask::Applying(round);
        self.effects.push_back(Effect::Apply {
            ends_epoch: self.config.manifest.ends_epoch(round),
            record,
        });
        true
    }

    fn on_applied(&mut self, round: RoundId, state_root: Hash) {
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

    fn note_finished(&mut self, round: RoundId) {
        if round.0 == self.config.manifest.schedule.rounds && !self.finished {
            self.finished = true;
            self.report(Report::Finished(round));
        }
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

    /// Opens the exchange of the round at hand once the state before it is current.
    fn open_exchange(&mut self, now: Time) -> bool {
        let round = self.roster.round();
        let current = self.task == StateTask::Idle
            && self.pending.is_empty()
            && self.awaiting_headers.is_none()
            && !self.needs_state()
            && self.applied == round.previous();
        if self.exchange.is_some() || !current || round.0 > self.config.manifest.schedule.rounds {
            return false;
        }
        let timing = &self.config.manifest.timing;
        let floor = Duration::from_millis(timing.deadline_floor_ms.into());
        let cap = Duration::from_millis(timing.deadline_cap_ms.into());
        let patience = self.arrivals.deadline(floor, cap);
        self.exchange = Some(Exchange::new(round, now, patience));
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
        true
    }

    fn begin_work(&mut self, now: Time, round: RoundId) {
        if !self.roster.contains(&self.me) || self.leaving.is_some() {
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
        } else {
            exchange.work = Work::Training;
            self.effects.push_back(Effect::Train {
                round,
                seed: Manifest::round_seed(&self.config.run, round, &self.previous),
                steps: self.config.manifest.schedule.steps_per_round,
            });
        }
    }

    /// Begins to vote once everything is here that will be waited for.
    fn start_agreement(&mut self, now: Time) -> bool {
        let Some(exchange) = &self.exchange else {
            return false;
        };
        if self.agreement.is_started() {
            return false;
        }
        let ready = if exchange.round == RoundId::FOUNDING {
            let needed = self.config.manifest.trust.peers_min as usize;
            self.me != self.config.manifest.launcher || self.joins.len() + 1 >= needed
        } else {
            let members = self.roster.members();
            exchange.deadline <= now || members.iter().all(|m| exchange.has_update_of(&m.peer))
        };
        if !ready && self.journal.is_empty() {
            return false;
        }
        let journal = std::mem::take(&mut self.journal);
        self.agreement.start(now, &self.roster, journal);
        true
    }

    fn drain_agreement(&mut self, now: Time) -> bool {
        let mut progress = false;
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
            let decision = self.make_decision();
            self.agreement.propose(now, decision);
            progress = true;
        }
        progress
    }

    /// The decision that this peer proposes: everything that is complete here, and every change that is due.
    fn make_decision(&self) -> Decision {
        let round = self.roster.round();
        let (members, shards) = match &self.exchange {
            Some(exchange) if round != RoundId::FOUNDING => exchange.accepted(self.config.shards),
            Some(_) | None => (Vec::new(), Vec::new()),
        };
        let room =
            (self.config.manifest.trust.peers_max as usize).saturating_sub(self.roster.len());
        Decision {
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
        }
    }

    /// Judges proposals whose bytes are here. Rule `bytes-before-votes`.
    fn judge_proposals(&mut self, now: Time) -> bool {
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
                Verdict::NotYet => {
                    self.proposals.push(proposal);
                    continue;
                }
            }
            judged = true;
        }
        judged
    }

    fn judge(&mut self, now: Time, proposal: &Proposal) -> Verdict {
        let decision = &proposal.value;
        let shards = self.config.shards as usize;
        if let Err(fault) = decision.check(&self.config.run, &self.roster, &self.previous, shards) {
            tracing::warn!(round = %decision.round, %fault, "unsound proposal");
            return Verdict::Unacceptable("proposed a decision that is not sound");
        }
        if decision.state_root != self.state_root {
            return Verdict::Unacceptable("proposed another state root than this peer's");
        }
        let mut verdict = Verdict::Acceptable;
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

    // ---- Decisions -----------------------------------------------------------------------------------------------

    /// Turns a decision of the agreement into a record once all headers that it names are here.
    fn complete_decision(&mut self, now: Time) -> bool {
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

    /// A decision that is proven: by the agreement here, or by its certificate.
    fn on_decided(&mut self, now: Time, record: Arc<DecisionRecord>) {
        let decision = &record.decision;
        let round = decision.round;
        self.effects
            .push_back(Effect::StoreDecision(Arc::clone(&record)));
        self.report_decided(&record);
        if let Some(exchange) = self.exchange.take() {
            if let Some(slowest) = exchange.slowest_arrival(now, &decision.members) {
                self.arrivals.record(slowest);
            }
            self.last_start = Some(exchange.started);
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
        if self.leaving.is_some() && !self.roster.contains(&self.me) && !self.left {
            self.left = true;
            self.report(Report::Left(round));
        }
        self.keep_pending(record);
    }

    /// Moves the history on by one decision.
    fn note_decided(&mut self, decision: &Decision) {
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

    fn keep_pending(&mut self, record: Arc<DecisionRecord>) {
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

    // ---- Catching up ---------------------------------------------------------------------------------------------

    /// The last round that a connected peer says is decided, if it is beyond what is decided here.
    fn behind(&self) -> Option<RoundId> {
        let connected = self.peers.values().filter(|peer| peer.connected);
        let best = connected.filter_map(|peer| peer.decided).max()?;
        (Some(best) > self.decided).then_some(best)
    }

    fn ask_for_decisions(&mut self, now: Time) {
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

    fn on_decisions(&mut self, now: Time, id: RequestId, answer: Decisions) {
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
        let shards = self.config.shards as usize;
        if let Err(fault) = decision.check(&self.config.run, &self.roster, &self.previous, shards) {
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

    /// Whether the state cannot go on by applying what is pending.
    fn needs_state(&self) -> bool {
        let Some(front) = self.pending.front() else {
            return self.diverged;
        };
        let round = front.decision.round;
        let mut told = self.peers.values().filter(|p| p.connected);
        let known: Vec<RoundId> = told
            .by_ref()
            .filter_map(|p| p.holdings.map(|h| h.frames_from))
            .collect();
        let frames_gone = round != RoundId::FOUNDING
            && !known.is_empty()
            && known.iter().all(|from| *from > round)
            && !self.frames_at_hand(front);
        self.diverged || self.gap || frames_gone
    }

    /// Whether every frame of `record` that was asked for is held.
    fn frames_at_hand(&self, record: &DecisionRecord) -> bool {
        let hashes: BTreeSet<Hash> = record
            .headers
            .iter()
            .flat_map(|header| header.header.update.frames.iter().map(|f| f.hash))
            .collect();
        hashes.iter().all(|hash| self.frames.is_held(hash))
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

    fn fetch_state(&mut self) -> bool {
        if self.task != StateTask::Idle || !self.needs_state() {
            return false;
        }
        let Some((round, root, sources)) = self.snapshot_on_offer() else {
            return false;
        };
        self.exchange = None;
        self.task = StateTask::Fetching { round, root };
        self.effects.push_back(Effect::FetchState {
            round,
            root,
            sources,
        });
        true
    }

    fn on_state_fetched(&mut self, round: RoundId, records: Vec<Arc<DecisionRecord>>) {
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

    fn on_state_failed(&mut self, round: RoundId) {
        if let StateTask::Fetching { round: asked, .. } = self.task
            && asked == round
        {
            self.task = StateTask::Idle;
            for state in self.peers.values_mut() {
                state.holdings = None;
            }
        }
    }

    fn on_request_failed(&mut self, id: RequestId) {
        let failed = self.asking_decisions.take_if(|asking| asking.id == id);
        if let Some(asking) = failed
            && let Some(state) = self.peers.get_mut(&asking.peer)
        {
            // Ask somebody else, and this one again when it has said something new.
            state.decided = state.decided.min(self.decided);
        }
        self.asking_headers.take_if(|asking| asking.id == id);
    }

    fn on_headers(&mut self, now: Time, id: RequestId, headers: Vec<SignedHeader>) {
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

    // ---- Periodic ------------------------------------------------------------------------------------------------

    fn beat(&mut self, now: Time) {
        self.broadcast(Gossip::Status(self.decided));
        let committed = self
            .exchange
            .as_ref()
            .is_some_and(|e| e.work == Work::Committed);
        if let Some(header) = self.own_header.clone().filter(|_| committed) {
            self.broadcast(Gossip::Header(Box::new(header)));
        }
        if let Some(leave) = self.leaving
            && self.roster.contains(&self.me)
        {
            self.broadcast(Gossip::Leave(leave));
        }
        if self.may_join() {
            self.ask_to_join();
        }
        let overdue = |asking: &mut Asking| asking.since + REQUEST_TIMEOUT <= now;
        if let Some(asking) = self.asking_decisions
            && asking.since + REQUEST_TIMEOUT <= now
        {
            self.on_request_failed(asking.id);
        }
        self.asking_headers.take_if(overdue);
        self.ask_for_headers(now);
        self.may_refresh = true;
    }

    fn ask_to_join(&mut self) {
        self.join_asked_at = self.applied;
        let round = self.applied.unwrap_or_default();
        let keypair = &self.config.keypair;
        let join = Join::sign(self.config.run, round, self.state_root, keypair);
        self.broadcast(Gossip::Join(join));
    }

    /// Whether this peer stands where it could take part from the next round on, and does not.
    fn may_join(&self) -> bool {
        self.task == StateTask::Idle
            && self.pending.is_empty()
            && !self.needs_state()
            && self.behind().is_none()
            && self.applied == self.roster.round().previous()
            && !self.roster.contains(&self.me)
            && self.leaving.is_none()
            && !self.finished
    }

    /// Asks for headers that a proposal or a decision names and that are not here.
    fn ask_for_headers(&mut self, now: Time) {
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
        holders.retain(|peer| *peer != self.me && self.is_connected(peer));
        let Some(peer) = self.take_turn(&holders) else {
            return;
        };
        let hashes = wanted.into_iter().take(crate::wire::HEADERS_MAX).collect();
        let id = self.request(peer, Request::Headers(hashes));
        self.asking_headers = Some(Asking {
            id,
            peer,
            since: now,
        });
    }

    // ---- Small things --------------------------------------------------------------------------------------------

    fn exchange_of(&mut self, round: RoundId) -> Option<&mut Exchange> {
        self.exchange.as_mut().filter(|e| e.round == round)
    }

    fn peer_mut(&mut self, peer: PeerKey) -> Option<&mut PeerState> {
        if self.peers.len() >= PEERS_KNOWN_MAX && !self.peers.contains_key(&peer) {
            // Room for a newcomer is made from those that are gone.
            let gone = self.peers.iter().find(|(_, state)| !state.connected);
            let gone = gone.map(|(peer, _)| *peer)?;
            self.peers.remove(&gone);
        }
        Some(self.peers.entry(peer).or_default())
    }

    fn hint_decided(&mut self, peer: PeerKey, decided: Option<RoundId>) {
        if let Some(state) = self.peer_mut(peer) {
            state.decided = state.decided.max(decided);
        }
    }

    /// One of `peers`, another one each time.
    fn take_turn(&mut self, peers: &[PeerKey]) -> Option<PeerKey> {
        self.ask_turn = self.ask_turn.wrapping_add(1);
        let place = self.ask_turn.checked_rem(peers.len())?;
        peers.get(place).copied()
    }

    fn request(&mut self, peer: PeerKey, request: Request) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.effects
            .push_back(Effect::Request { peer, id, request });
        id
    }

    fn broadcast(&mut self, message: Gossip) {
        self.effects.push_back(Effect::Broadcast(Box::new(message)));
    }

    fn report(&mut self, report: Report) {
        self.effects.push_back(Effect::Report(report));
    }

    fn blame(&mut self, peer: PeerKey, what: &'static str) {
        self.report(Report::Misbehaviour { peer, what });
    }
}

/// The answer to a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Acceptable,
    Unacceptable(&'static str),
    NotYet,
}
