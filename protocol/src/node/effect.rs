//! What goes into a node and what comes out of it: plain data that can be compared and printed.
//!
//! What a driver owes the node beyond what stands at each effect, where training runs ahead of the exchange:
//! [`Effect::Apply`] of a round is not kept waiting for the training of the next one, which goes on after it from where it was.
//! Where owners reduce:
//! 1. [`Effect::Encode`] says at which [`Stage`] the update is encoded; frames are checked, decoded and given back at their
//!    stage, and what is left out of a decision goes back into the error feedback shard by shard.
//! 2. A peer that is asked for a frame which it is told to fetch, and did not ask the asker for, answers when it has the frame,
//!    within the usual time limit: so each frame enters a site once (rule `enters-once` of [`crate::plan`]).
//! 3. [`Effect::Reduce`] is done beside training, not after it. In order: have the residual of the task (from the store, or from
//!    its sources one after the other; if none has it, go on without); reduce; make frame and residual durable and ready to be
//!    served by their hashes; answer. A residual of zeros alone is none, with the hash [`Hash::ZERO`].
//! 4. [`Effect::Own`] replaces the list of residuals to be kept. Those that reductions of the round at hand left are kept
//!    until the round after it is at hand. Both survive a restart as well as they can: what is lost is fetched, or lost.
//! 5. [`Effect::Apply`] carries all that changes the state; its record is for logs. Contributions of one shard are of one stage.
//! 6. [`Request::Reductions`] is answered with [`super::Node::reductions`].
//! 7. Frames that owners made are kept and served as long as those of members: whoever is behind replays them.

use std::ops::Range;
use std::sync::Arc;

use crate::decision::DecidedShard;
use crate::figures::RoundFigures;
use crate::hash::Hash;
use crate::header::{FrameId, FrameRef, SignedHeader, Stage, UpdateSummary};
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::plan::{GroupId, Layout, Plan};
use crate::reduction::SignedReductions;
use crate::registry::Registry;
use crate::wire::{DecisionRecord, Decisions, Gossip, JournalEntry, Request};

/// Ties a response to the request that asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A gossip message, decoded. `from` is its authenticated author, which need not be who passed it on.
    Gossip {
        /// The author.
        from: PeerKey,
        /// The message.
        message: Box<Gossip>,
    },
    /// A connection to `peer` is up.
    PeerUp(PeerKey),
    /// No connection to `peer` is left.
    PeerDown(PeerKey),
    /// Answer to an [`Effect::Request`] for decisions.
    Decisions {
        /// The request.
        id: RequestId,
        /// The answer.
        decisions: Box<Decisions>,
    },
    /// Answer to an [`Effect::Request`] for headers.
    Headers {
        /// The request.
        id: RequestId,
        /// The answer.
        headers: Vec<SignedHeader>,
    },
    /// Answer to an [`Effect::Request`] for reductions.
    Reductions {
        /// The request.
        id: RequestId,
        /// The answer.
        reductions: Vec<SignedReductions>,
    },
    /// A request failed or timed out.
    RequestFailed(RequestId),
    /// [`Effect::Encode`] is done: this peer's update of `round` is durable and ready to be served.
    UpdateReady {
        /// The round it was trained in.
        round: RoundId,
        /// What goes into its header.
        update: Box<UpdateSummary>,
    },
    /// Training of `round` ended without an update, for a reason that the driver reported.
    TrainingFailed(RoundId),
    /// A wanted frame is at hand: hash and length are right, and it decodes as a frame of its shard.
    FrameHeld(FrameId),
    /// A wanted frame could not be fetched from any source; it will be asked for again.
    FrameFailed(FrameId),
    /// The bytes with the right hash are of another length or do not decode for the shard. Whoever named them so is at
    /// fault.
    FrameMalformed(FrameId),
    /// [`Effect::Reduce`] is done: the frame is ready to be served, and the residual after it is kept.
    ReductionReady {
        /// The round.
        round: RoundId,
        /// The group.
        group: GroupId,
        /// The shard.
        shard: u32,
        /// The headers that went in, as the task named them.
        headers: Vec<Hash>,
        /// What came out.
        frame: FrameRef,
        /// Content hash of the residual that was added: as the task named it, or [`Hash::ZERO`] if it could not be had.
        residual_before: Hash,
        /// Content hash of the residual that is left.
        residual: Hash,
    },
    /// [`Effect::Reduce`] failed, for a reason that the driver reported. The other owner has to do.
    ReductionFailed {
        /// The round.
        round: RoundId,
        /// The group.
        group: GroupId,
        /// The shard.
        shard: u32,
    },
    /// [`Effect::Apply`] is done and durable.
    Applied {
        /// The round that was applied.
        round: RoundId,
        /// The state root after it.
        state_root: Hash,
    },
    /// [`Effect::FetchState`] is done and durable; its root was verified.
    StateFetched {
        /// The state is that after this round.
        round: RoundId,
        /// All stored decisions after `round`, in order.
        records: Vec<Arc<DecisionRecord>>,
    },
    /// [`Effect::FetchState`] failed with all its sources.
    StateFailed(RoundId),
    /// A snapshot of the registry of a chain run, read from this peer's own node of the chain at a finalized block whose
    /// number is a multiple of the manifest's `snapshot_blocks`. Newer ones only, in order; some may be left out. At the
    /// start the newest two, so that a peer that was restarted can tell what others go by (rule `last-but-one`).
    Registry(Registry),
    /// The operator wants this peer to leave the run.
    Leave,
}

/// Something to be done, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make `entry` durable before any later effect leaves the machine.
    Journal {
        /// The round that the entry belongs to. The driver drops it once the round's decision is stored.
        round: RoundId,
        /// The entry.
        entry: Box<JournalEntry>,
    },
    /// Make a decision durable, before any later effect. The journal of its round may be dropped with it.
    StoreDecision(Arc<DecisionRecord>),
    /// Send to every peer of the run.
    Broadcast(Box<Gossip>),
    /// Ask one peer; answer with [`Input::Decisions`], [`Input::Headers`], [`Input::Reductions`] or
    /// [`Input::RequestFailed`].
    Request {
        /// Whom.
        peer: PeerKey,
        /// For the answer.
        id: RequestId,
        /// What.
        request: Request,
    },
    /// Train the round, and keep the result for [`Effect::Encode`]. One round is trained at a time. No answer, or
    /// [`Input::TrainingFailed`].
    Train {
        /// The round: the one after the state, or with overlap the next.
        round: RoundId,
        /// Fixes which data this peer trains on.
        seed: Hash,
        /// Inner steps to do.
        steps: u32,
        /// What training begins from.
        start: Start,
    },
    /// Encode the update of the round that is being trained, as soon as that is done: the state before the round is current
    /// and stays until then, and the error feedback has got back what the round before left out. Answer with
    /// [`Input::UpdateReady`], or [`Input::TrainingFailed`] if nothing did yet.
    Encode {
        /// The round.
        round: RoundId,
        /// At which its frames are encoded.
        stage: Stage,
        /// The shards of which there are frames, of those of the run. What was learnt in others stays with this peer until a round
        /// exchanges them: its training begins there from where it was (rule `one-at-a-time` of [`crate::fragment`]).
        shards: Range<u32>,
    },
    /// The update of this round, trained or half trained, will not be committed to: stop, and keep what was learnt in the
    /// error feedback. No answer.
    StopTraining(RoundId),
    /// Get a frame; answer with [`Input::FrameHeld`] (at once if it is at hand), [`Input::FrameFailed`] or
    /// [`Input::FrameMalformed`]. No answer is waited for once its round is applied.
    Fetch {
        /// Of which it is.
        round: RoundId,
        /// Which; more bytes than it says are refused.
        frame: FrameId,
        /// Who has it, best source first.
        sources: Vec<PeerKey>,
    },
    /// Do an owner's step; all its inputs are held. Answer with [`Input::ReductionReady`] or [`Input::ReductionFailed`].
    Reduce(Box<ReduceTask>),
    /// Have these residuals at hand from now on, and serve them by hash: fetch what is missing, below frames in priority. They
    /// replace those that were named before; of others, only what a reduction of the round at hand left is still needed. No
    /// answer: a residual that cannot be had is said to be lost when the shard is reduced.
    Own(Vec<OwnedShard>),
    /// Apply a decision to the state; all its frames are held. Answer with [`Input::Applied`].
    Apply {
        /// The decision and its headers.
        record: Arc<DecisionRecord>,
        /// What to apply, for each shard of the run in order.
        shards: Vec<AppliedShard>,
        /// The groups that live on, in order. Residuals of others leave the state.
        groups: Vec<GroupId>,
        /// Whether the state after it is an epoch's last, to be kept as a checkpoint.
        ends_epoch: bool,
    },
    /// Replace the state by that after `round`, fetched by leaf; answer with [`Input::StateFetched`] or
    /// [`Input::StateFailed`].
    FetchState {
        /// After which round.
        round: RoundId,
        /// Its root, as decided.
        root: Hash,
        /// Who serves it.
        sources: Vec<PeerKey>,
    },
    /// Something a person or a metric wants to know.
    Report(Report),
}

/// What training begins from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The state at hand.
    State,
    /// The state at hand, to which decisions will be applied meanwhile, minus this peer's own update of the round before, which
    /// is in flight.
    Ahead {
        /// Its frames, in the order of the shards; empty if nothing is in flight.
        frames: Vec<FrameId>,
    },
}

/// One summand of an aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contribution {
    /// Its weight.
    pub tokens: u64,
    /// The frame.
    pub frame: FrameId,
}

/// What a decision does to one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedShard {
    /// What is aggregated, in canonical order, all at one stage; none if the shard is left out.
    pub contributions: Vec<Contribution>,
    /// Content hashes of the owner residuals after this decision, for each group that was reduced, in group order.
    pub residuals: Vec<(GroupId, Hash)>,
}

impl AppliedShard {
    /// What `record` does to each shard of the run, in order.
    ///
    /// `layout`: of its round.
    pub fn of(layout: &Layout, record: &DecisionRecord) -> Vec<AppliedShard> {
        let decision = &record.decision;
        let stage = layout.plan().stage_of_results();
        let shards = layout.shards_of(decision.round);
        let of_shard = |(shard, decided): (u32, &DecidedShard)| {
            let accepted = || {
                let places = decided.accepted.positions();
                places.filter_map(|place| record.headers.get(place))
            };
            if layout.plan() == Plan::Gather {
                let contributions = accepted().filter_map(|signed| {
                    Some(Contribution {
                        tokens: signed.header.update.tokens,
                        frame: layout.frame_of(&signed.header, shard)?,
                    })
                });
                return AppliedShard {
                    contributions: contributions.collect(),
                    residuals: Vec::new(),
                };
            }
            let mut applied = AppliedShard::default();
            let groups = layout.accepted_groups(&decision.members, &decided.accepted);
            for (group, reduction) in groups.into_iter().zip(&decided.reduced) {
                let place = layout.groups().iter().position(|g| g.id == group);
                let of_group = accepted().filter(|s| layout.place_of(&s.header.peer) == place);
                let tokens = of_group.map(|signed| signed.header.update.tokens);
                applied.contributions.push(Contribution {
                    tokens: tokens.fold(0, u64::saturating_add),
                    frame: reduction.frame.id(shard, stage),
                });
                applied.residuals.push((group, reduction.residual));
            }
            applied
        };
        let mut applied = vec![AppliedShard::default(); layout.shards() as usize];
        let exchanged = applied.iter_mut().skip(shards.start as usize);
        for (applied, decided) in exchanged.zip(shards.zip(&decision.shards).map(of_shard)) {
            *applied = decided;
        }
        applied
    }
}

/// An owner's step for one group and shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReduceTask {
    /// The round.
    pub round: RoundId,
    /// The group.
    pub group: GroupId,
    /// The shard.
    pub shard: u32,
    /// The stage at which the sum is encoded.
    pub output: Stage,
    /// What is summed, in canonical order.
    pub inputs: Vec<Contribution>,
    /// The headers of the inputs, in the same order; for the answer.
    pub headers: Vec<Hash>,
    /// Content hash of the residual to add; [`Hash::ZERO`]: there is none. One that is not at hand is fetched from `sources`;
    /// if none of them has it, the shard is reduced without, and the answer says so.
    pub residual: Hash,
    /// Who may have the residual, best first.
    pub sources: Vec<PeerKey>,
}

/// A residual that this peer has to have at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedShard {
    /// The group.
    pub group: GroupId,
    /// The shard.
    pub shard: u32,
    /// Content hash of the residual.
    pub residual: Hash,
    /// Who may have it, best first.
    pub sources: Vec<PeerKey>,
}

/// A fact about the run, for logs, metrics and the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A round was decided.
    Decided {
        /// The round.
        round: RoundId,
        /// Attempt of the agreement in which it was; 0 unless something went wrong.
        attempt: u32,
        /// Roster size of the round.
        roster: u32,
        /// What it amounts to.
        figures: RoundFigures,
    },
    /// A decision was applied and the state root agrees with what was decided, as far as that is known.
    Applied {
        /// The round.
        round: RoundId,
        /// The root after it.
        state_root: Hash,
    },
    /// The roster changed.
    Roster {
        /// The first round of the new roster.
        round: RoundId,
        /// Who came in.
        joined: Vec<PeerKey>,
        /// Who is out.
        left: Vec<PeerKey>,
        /// Its size.
        members: u32,
    },
    /// This peer's state differs from what the roster decided; it fetches the state anew.
    Diverged {
        /// The round after which it differed.
        round: RoundId,
        /// The decided root.
        decided: Hash,
        /// Its own.
        own: Hash,
    },
    /// This peer's update did not make the round; its mass stays in the error feedback.
    LeftOut(RoundId),
    /// A peer broke a rule, and which.
    Misbehaviour {
        /// The peer.
        peer: PeerKey,
        /// What it did.
        what: &'static str,
    },
    /// The owners of a shard made different things of the same group, or of different updates: the shard is left out here.
    OwnersDisagree {
        /// The round.
        round: RoundId,
        /// The group.
        group: GroupId,
        /// The shard.
        shard: u32,
        /// The owners.
        owners: [PeerKey; 2],
    },
    /// The run's last round is applied. A node that is started with such a state says so at once.
    Finished(RoundId),
    /// This peer is out of the roster by its own wish.
    Left(RoundId),
    /// The newest snapshot of the registry lacks this peer: it cannot be a member before its hotkey is registered on the
    /// subnet and serves an axon with this peer's key. Reported again only after it was registered in between.
    NotRegistered {
        /// Block of the snapshot.
        block: u64,
    },
}

/// Why the driver is to wake the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeoutReason {
    /// The round waits for updates no longer.
    ExchangeDeadline,
    /// The round waits for reductions no longer, or for one of them.
    ReductionDeadline,
    /// A member is silent from then on.
    Silence,
    /// A step of the agreement.
    Agreement(crate::agreement::Step),
    /// Frames that could not be fetched are asked for again.
    FetchRetry,
    /// Periodic: status, own header, joins, overdue requests.
    Heartbeat,
}
