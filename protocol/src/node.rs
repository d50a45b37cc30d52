//! The node: one peer's part in a run, as a state machine.
//!
//! [`Node::handle`] takes what happened, [`Node::poll_effect`] gives what is to be done, [`Node::poll_timeout`] says
//! when and why to come back. The node opens no socket, reads no clock and holds no frame: it knows hashes, and what
//! the driver holds of them.
//!
//! The life of a round r, once the state after round r - 1 is current here:
//! 1. the exchange opens: a member trains, or has trained ahead, encodes, commits (header signed, journalled, published), and
//!    wants what the plan gives it: every other member's frames (`gather`), or those of the shards that it owns (`reduce`,
//!    `hier`); with overlap it trains round r + 1 from here on, while the rest goes on;
//! 2. owners sum what they have, announce what they made, and check each other; everybody wants what they made;
//! 3. when every member's update, or every shard's sum, is here, or the deadline has passed, the agreement on r begins;
//! 4. the proposer names what it holds; a voter votes for it only if it is sound and every byte that it names is here
//!    (rule `bytes-before-votes`), no owner contradicts it, and never for a state root that is not its own;
//! 5. the decision is stored, then applied once all its frames are here; the state after r is current.
//!
//! A node that is behind fetches decisions, checks each one's certificate against the roster that the decisions
//! before it gave, and applies them in order; if their frames are gone it fetches a state by leaf. A node whose root is
//! not the decided one does the same, in place.
//!
//! This file holds what the driver calls and the node's fields; the steps stand in the submodules, each with its rules:
//! `round` (1), `reduction` and `owner` (2), `voting` (3 and 4), `decisions` (5), `catch_up` (the paragraph above),
//! `membership`, `capacity`, `registration` and `heartbeat`. Who is not waited for in 1 to 4: `silence`.

mod capacity;
mod catch_up;
mod deadline;
mod decisions;
mod effect;
mod exchange;
mod frames;
mod heartbeat;
mod membership;
mod owner;
mod reduction;
mod registration;
mod round;
mod silence;
mod snapshots;
mod view;
mod voting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use deadline::Arrivals;
pub use effect::{
    AppliedShard, Contribution, Effect, Input, OwnedShard, ReduceTask, Report, RequestId, Start,
    TimeoutReason,
};
pub use view::{Activity, Sizes, View};

use crate::agreement::{Agreement, CommitCertificate, Proposal, Record, SignedProposal};
use crate::capacity::CapacityChange;
use crate::decision::{Decision, Join, Leave};
use crate::fragment::Fragments;
use crate::hash::Hash;
use crate::header::{PerStage, SignedHeader, Stage};
use crate::key::{Keypair, PeerKey};
use crate::manifest::{Link, Manifest, PEERS_MAX, RoundId, RunId};
use crate::plan::{GroupId, Layout, Owners};
use crate::reduction::SignedReductions;
use crate::roster::Roster;
use crate::time::Time;
use crate::wire::{DecisionRecord, Gossip, JournalEntry, Request};
use exchange::{Exchange, Work};
use frames::Frames;
use heartbeat::HEARTBEAT;
use reduction::Claim;
use snapshots::Snapshots;

/// Decisions kept that are not yet applied. When there are more, the oldest go and a state is fetched instead.
const PENDING_MAX: usize = 1024;
/// Joins and leaves kept, each. When full, newcomers are dropped; they ask again.
const CHANGES_MAX: usize = PEERS_MAX as usize;
/// Peers known. When full, further ones are not asked for anything.
const PEERS_KNOWN_MAX: usize = 256;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The manifest.
    pub manifest: Arc<Manifest>,
    /// The run that it names.
    pub run: RunId,
    /// This peer's key.
    pub keypair: Keypair,
    /// The shards of the run, dealt into the manifest's fragments.
    pub fragments: Fragments,
    /// Whether this peer only follows the run, as a validator does: it never asks to be a member.
    pub observes: bool,
    /// How this peer is connected: what its joins say, until [`Node::set_link`].
    pub link: Link,
    /// The longest frame that the codec of each stage can produce for a shard.
    pub frame_bytes_max: PerStage,
    /// Bytes of an update at each stage, as the planner expects them: a function of the manifest, the same on every peer.
    pub update_bytes: PerStage,
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
    /// When something came from it last.
    heard: Time,
    decided: Option<RoundId>,
    /// Set by its last answer to a decisions request.
    holdings: Option<Holdings>,
}

#[derive(Clone, Copy, Debug)]
struct Holdings {
    snapshot: RoundId,
    frames_from: RoundId,
}

/// What the worker is at, and since when.
#[derive(Clone, Copy, Debug)]
struct Training {
    round: RoundId,
    since: Time,
}

/// The exchange before the one at hand: an update that it left out and that comes later moves the deadline.
#[derive(Clone, Debug)]
struct LastExchange {
    round: RoundId,
    started: Time,
    /// The longest that frames took after their header.
    transfer: Duration,
    left_out: BTreeSet<PeerKey>,
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
    effects: VecDeque<Effect>,
    next_request: u64,

    // History: what is decided.
    roster: Roster,
    previous: Hash,
    /// The decision before `previous`; the founding one if there is none.
    before_previous: Hash,
    decided: Option<RoundId>,
    roots: BTreeMap<RoundId, Hash>,
    /// The layout of the round at hand, and of as many before as there are roots.
    layout: Arc<Layout>,
    layouts: BTreeMap<RoundId, Arc<Layout>>,
    /// The owner residuals after the last decision, where there are any.
    residuals: BTreeMap<(GroupId, u32), Hash>,
    /// The owners of the layout at hand once its exchange was open, and of the layout before.
    owners: Vec<Vec<Owners>>,
    owners_before: BTreeMap<GroupId, Vec<Owners>>,
    /// The last [`Effect::Own`] named something.
    owns_some: bool,

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
    /// What the worker trains or has trained, until it is encoded: the round at hand, or the next one by rule `train-ahead`.
    training: Option<Training>,
    frames: Frames,
    proposals: Vec<Proposal>,
    early_proposals: Vec<SignedProposal>,
    early_headers: BTreeMap<PeerKey, SignedHeader>,
    early_lists: Vec<SignedReductions>,
    /// Decided, but a header that the decision names is not here.
    awaiting_headers: Option<(Box<Decision>, CommitCertificate)>,
    propose_now: bool,
    own_header: Option<SignedHeader>,
    journal: Vec<Record>,
    arrivals: Arrivals,
    /// How long reductions took after the updates.
    reduction_arrivals: Arrivals,
    /// A proposal names a reduction that nobody announced here.
    lacks_reductions: bool,
    last_exchange: Option<LastExchange>,

    // Others.
    peers: BTreeMap<PeerKey, PeerState>,
    joins: BTreeMap<PeerKey, Join>,
    leaves: BTreeMap<PeerKey, Leave>,
    /// The newest of each member that is not decided yet.
    capacities: BTreeMap<PeerKey, CapacityChange>,
    asking_decisions: Option<Asking>,
    asking_headers: Option<Asking>,
    asking_reductions: Option<Asking>,
    ask_turn: usize,
    /// The state from which this peer last asked to join: it asks anew after each round, and once a heartbeat.
    join_asked_at: Option<RoundId>,
    /// Set once a heartbeat: peers that have decided nothing new may be asked what they hold.
    may_refresh: bool,
    heartbeat_at: Time,
    /// When the node was called last.
    awake_at: Time,
    /// Since when it has been called without a pause.
    listening_since: Time,
    /// When the next member is silent if nothing comes from it.
    silence_due: Option<Time>,
    leaving: Option<Leave>,
    /// The last decided round, if this peer's vote alone was the quorum.
    to_hand_over: Option<RoundId>,
    left: bool,
    finished: bool,

    // The chain.
    snapshots: Snapshots,
    /// Whether the newest snapshot has this peer, to tell when that changes.
    registered: Option<bool>,
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
        let layout = Arc::new(Layout::of(
            &founding,
            &config.manifest,
            &config.fragments,
            &config.update_bytes,
        ));
        let (applied, state_root) = match restored.applied {
            Some((round, root)) => (Some(round), root),
            None => (None, config.genesis_root),
        };
        let mut node = Node {
            me,
            effects: VecDeque::new(),
            next_request: 0,
            roster: founding,
            previous: Hash::ZERO,
            before_previous: Hash::ZERO,
            decided: None,
            roots: BTreeMap::new(),
            layouts: BTreeMap::from([(RoundId::FOUNDING, Arc::clone(&layout))]),
            layout,
            residuals: BTreeMap::new(),
            owners: Vec::new(),
            owners_before: BTreeMap::new(),
            owns_some: false,
            applied,
            state_root,
            task: StateTask::Idle,
            pending: VecDeque::new(),
            diverged: false,
            gap: false,
            agreement,
            exchange: None,
            training: None,
            frames: Frames::default(),
            proposals: Vec::new(),
            early_proposals: Vec::new(),
            early_headers: BTreeMap::new(),
            early_lists: Vec::new(),
            awaiting_headers: None,
            propose_now: false,
            own_header: None,
            journal: Vec::new(),
            arrivals: Arrivals::default(),
            reduction_arrivals: Arrivals::default(),
            lacks_reductions: false,
            last_exchange: None,
            peers: BTreeMap::new(),
            joins: BTreeMap::new(),
            leaves: BTreeMap::new(),
            capacities: BTreeMap::new(),
            asking_decisions: None,
            asking_headers: None,
            asking_reductions: None,
            ask_turn: 0,
            join_asked_at: None,
            may_refresh: false,
            heartbeat_at: now,
            awake_at: now,
            listening_since: now,
            silence_due: None,
            leaving: None,
            to_hand_over: None,
            left: false,
            finished: false,
            snapshots: Snapshots::default(),
            registered: None,
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
        if let Some(round) = self.applied {
            self.note_finished(round);
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.wake(now);
        match input {
            Input::Gossip { from, message } => self.on_gossip(now, from, *message),
            Input::PeerUp(peer) => {
                self.note_heard(now, peer);
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
            Input::Reductions { id, reductions } => self.on_reductions_answer(now, id, reductions),
            Input::ReductionReady {
                round,
                group,
                shard,
                headers,
                frame,
                residual_before,
                residual,
            } => {
                let claim = Claim {
                    headers,
                    frame,
                    residual_before,
                    residual,
                };
                self.on_reduction_ready(now, round, (group, shard), claim);
            }
            Input::ReductionFailed {
                round,
                group,
                shard,
            } => self.on_reduction_failed(round, (group, shard)),
            Input::RequestFailed(id) => self.on_request_failed(id),
            Input::UpdateReady { round, update } => self.on_update_ready(now, round, *update),
            Input::TrainingFailed(round) => {
                self.training.take_if(|training| training.round == round);
                if let Some(exchange) = self.exchange_of(round) {
                    exchange.work = Work::None;
                }
            }
            Input::FrameHeld(frame) => {
                if self.frames.held(&frame)
                    && let Some(exchange) = &mut self.exchange
                {
                    exchange.frame_held(now, &frame);
                }
            }
            Input::FrameFailed(frame) => self.frames.failed(now, &frame),
            Input::FrameMalformed(frame) => self.on_frame_malformed(&frame),
            Input::Applied { round, state_root } => self.on_applied(round, state_root),
            Input::StateFetched { round, records } => self.on_state_fetched(round, records),
            Input::StateFailed(round) => self.on_state_failed(round),
            Input::Registry(registry) => self.on_registry(registry),
            Input::Leave => self.leave(),
        }
        self.advance(now);
    }

    /// How this peer is connected from now on: it says so when it asks to join. A member keeps its site, and has its
    /// capacity changed by the rules of [`crate::capacity`], from the next call of [`Node::handle`] on.
    pub fn set_link(&mut self, link: Link) {
        self.config.link = link;
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        self.wake(now);
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
            .filter(|e| e.reducing.is_idle())
            .map(|e| (e.deadline, TimeoutReason::ExchangeDeadline));
        let reductions = self
            .exchange
            .as_ref()
            .filter(|e| !e.reducing.is_idle() && e.round != RoundId::FOUNDING)
            .and_then(|e| e.reducing.next_due)
            .map(|due| (due, TimeoutReason::ReductionDeadline));
        let agreement = self
            .agreement
            .poll_timeout()
            .map(|(due, step)| (due, TimeoutReason::Agreement(step)));
        let retry = self
            .frames
            .next_retry()
            .map(|due| (due, TimeoutReason::FetchRetry));
        let silence = self.silence_due.map(|due| (due, TimeoutReason::Silence));
        [heartbeat, deadline, reductions, silence, agreement, retry]
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

    /// Which of the states that a driver keeps it offers to others: the newest whose root is decided, for no other can be
    /// verified (that of the last round never can). The founding round's, which needs no serving, if there is none.
    pub fn snapshot_to_offer(&self, kept: impl Iterator<Item = RoundId>) -> RoundId {
        let verifiable = kept.filter(|round| self.decided_root(*round).is_some());
        verifiable.max().unwrap_or(RoundId::FOUNDING)
    }

    /// At which the updates of `round` are encoded; `None` for a round that is long over or still to come.
    pub fn stage_of_updates(&self, round: RoundId) -> Option<Stage> {
        let layout = self.layouts.get(&round)?;
        Some(layout.plan().stage_of_updates())
    }

    /// Whether another peer is connected.
    pub fn is_connected(&self, peer: &PeerKey) -> bool {
        *peer == self.me || self.peers.get(peer).is_some_and(|p| p.connected)
    }

    fn on_gossip(&mut self, now: Time, from: PeerKey, message: Gossip) {
        if from == self.me {
            return;
        }
        self.note_heard(now, from);
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
            Gossip::Leave(leave) => self.on_leave_of(leave),
            Gossip::Capacity(change) => self.on_capacity(from, change),
            Gossip::Reductions(list) => {
                if list.reductions.owner == from {
                    self.on_reductions(now, *list);
                } else {
                    self.blame(from, "published reductions of another peer");
                }
            }
            Gossip::Contact(_) | Gossip::Verdict(_) => {}
        }
    }

    /// Does everything that can be done now.
    fn advance(&mut self, now: Time) {
        while self.complete_decision(now)
            || self.apply_next()
            || self.fetch_state()
            || self.open_exchange(now)
            || self.pass_gone(now)
            || self.reduce(now)
            || self.start_agreement(now)
            || self.judge_proposals(now)
            || self.drain_agreement(now)
            || self.pass_silent_proposer(now)
        {}
        self.note_silence_due(now);
        self.ask_for_decisions(now);
        self.report_left();
        if self.applied != self.join_asked_at && self.may_join() {
            self.ask_to_join();
        }
        self.say_capacity();
    }

    fn exchange_of(&mut self, round: RoundId) -> Option<&mut Exchange> {
        self.exchange.as_mut().filter(|e| e.round == round)
    }

    fn peer_mut(&mut self, peer: PeerKey) -> Option<&mut PeerState> {
        if self.peers.len() >= PEERS_KNOWN_MAX && !self.peers.contains_key(&peer) {
            // Room for a newcomer is made from those that are gone, and not from members: strangers make nobody silent.
            let mut peers = self.peers.iter();
            let gone = peers.find(|(peer, s)| !s.connected && !self.roster.contains(peer));
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
