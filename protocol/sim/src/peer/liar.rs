//! A peer that breaks the protocol on purpose: what it sends instead of what its node says.

use arc_malachitebft_core_types::NilOrVal;
use gradmesh_protocol::agreement::{Message, SignedProposal, SignedVote};
use gradmesh_protocol::decision::{Bitmap, Decision, Join};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameRef, SignedHeader};
use gradmesh_protocol::key::Keypair;
use gradmesh_protocol::manifest::{Link, RunId};
use gradmesh_protocol::registry::RegistryMark;
use gradmesh_protocol::wire::DecisionRecord;

use crate::coverage::Situation;
use crate::options::Lie;

/// What a liar says instead of its header.
#[derive(Debug)]
pub(super) enum HeaderLie {
    /// This to peers with even numbers, the truth to the others.
    Half(Box<SignedHeader>),
    /// These to everybody.
    All(Vec<SignedHeader>),
}

impl HeaderLie {
    /// What `peer` is told instead of the truth; `None` for that.
    pub(super) fn to(&self, peer: usize) -> Option<&[SignedHeader]> {
        match self {
            HeaderLie::Half(header) => {
                let told = peer.is_multiple_of(2);
                told.then_some(std::slice::from_ref(&**header))
            }
            HeaderLie::All(headers) => Some(headers),
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Liar {
    lie: Lie,
    /// The value that the last forged proposal was for: forged votes vote for it.
    forged: Option<Hash>,
    /// The snapshot that its forged proposals name: the newest that it has seen.
    pub(super) seen: Option<RegistryMark>,
    /// The header that its node published last, and the one of a round before.
    headers: [Option<SignedHeader>; 2],
    /// The frames of the first update that has as many as the one at hand.
    old: Vec<FrameRef>,
}

/// Headers that a liar signs instead of one.
const FLOOD: u64 = 12;

impl Liar {
    pub(super) fn new(lie: Lie) -> Liar {
        Liar {
            lie,
            forged: None,
            seen: None,
            headers: [None, None],
            old: Vec::new(),
        }
    }

    /// What it says instead of `header`, and what lie that is; `None` for the truth.
    pub(super) fn tell_header(
        &mut self,
        header: &SignedHeader,
        me: &Keypair,
    ) -> Option<(Situation, HeaderLie)> {
        let round = header.header.round;
        if self.headers[0]
            .as_ref()
            .is_none_or(|last| last.header.round < round)
        {
            self.headers[1] = self.headers[0].replace(header.clone());
        }
        let another = |loss: u64| {
            let mut header = header.header.clone();
            header.update.loss_last_micronats ^= loss;
            header.sign(me)
        };
        match self.lie {
            Lie::SplitHeader => Some((
                Situation::HeaderSplit,
                HeaderLie::Half(Box::new(another(1))),
            )),
            Lie::HeaderFlood => {
                let flood = (0..FLOOD).map(another).collect();
                Some((Situation::HeadersFlooded, HeaderLie::All(flood)))
            }
            Lie::LateHeader => {
                let before = self.headers[1].clone();
                Some((
                    Situation::HeaderHeldBack,
                    HeaderLie::All(before.into_iter().collect()),
                ))
            }
            Lie::Replay => {
                let frames = &header.header.update.frames;
                if self.old.len() != frames.len() {
                    self.old.clone_from(frames);
                    return None;
                }
                let mut header = header.header.clone();
                header.update.frames.clone_from(&self.old);
                Some((
                    Situation::UpdateReplayed,
                    HeaderLie::All(vec![header.sign(me)]),
                ))
            }
            Lie::Equivocate
            | Lie::WrongRoot
            | Lie::MalformedFrame
            | Lie::ForgedHistory
            | Lie::UnregisteredJoin
            | Lie::WrongPowers
            | Lie::WrongSum
            | Lie::Withhold => None,
        }
    }

    /// Whether it keeps its frames from `peer`.
    pub(super) fn withholds(&self, peer: usize) -> bool {
        self.lie == Lie::Withhold && peer.is_multiple_of(2)
    }

    /// Whether it commits to bytes that are no frame.
    pub(super) fn spoils_frames(&self) -> bool {
        self.lie == Lie::MalformedFrame
    }

    /// Whether it leaves most of its inputs out of what it sums.
    pub(super) fn sums_wrongly(&self) -> bool {
        self.lie == Lie::WrongSum
    }

    /// Whether it answers with decisions that were never made.
    pub(super) fn forges_history(&self) -> bool {
        self.lie == Lie::ForgedHistory
    }

    /// Whether it lies about what the chain registers.
    pub(super) fn lies_about_the_registry(&self) -> bool {
        matches!(self.lie, Lie::UnregisteredJoin | Lie::WrongPowers)
    }

    /// Whether `peer` is told the lie; the others are told what the node says.
    pub(super) fn deceives(&self, peer: usize) -> bool {
        match self.lie {
            Lie::Equivocate => peer.is_multiple_of(2),
            Lie::WrongRoot | Lie::UnregisteredJoin | Lie::WrongPowers => true,
            Lie::MalformedFrame
            | Lie::ForgedHistory
            | Lie::WrongSum
            | Lie::SplitHeader
            | Lie::HeaderFlood
            | Lie::LateHeader
            | Lie::Replay
            | Lie::Withhold => false,
        }
    }

    /// What it says instead of `message`; `None` for the truth.
    pub(super) fn tell(&mut self, message: &Message, me: &Keypair, run: &RunId) -> Option<Message> {
        match (self.lie, message) {
            (
                Lie::MalformedFrame
                | Lie::ForgedHistory
                | Lie::WrongSum
                | Lie::SplitHeader
                | Lie::HeaderFlood
                | Lie::LateHeader
                | Lie::Replay
                | Lie::Withhold,
                _,
            )
            | (Lie::WrongRoot | Lie::UnregisteredJoin | Lie::WrongPowers, Message::Vote(_))
            | (_, Message::Polka(_) | Message::RoundCertificate(_)) => None,
            (
                Lie::Equivocate | Lie::WrongRoot | Lie::UnregisteredJoin | Lie::WrongPowers,
                Message::Proposal(signed),
            ) => {
                let mut proposal = signed.message.clone();
                let decision = &mut proposal.value;
                match self.lie {
                    Lie::Equivocate => drop_last_member(decision),
                    Lie::UnregisteredJoin => {
                        decision.registry = Some(self.seen?);
                        let stranger = Keypair::from_seed(&[0xAB; 32]);
                        let root = decision.state_root;
                        decision.joins = vec![Join::sign(
                            *run,
                            decision.round,
                            root,
                            Link::alone(&stranger.public()),
                            &stranger,
                        )];
                        decision.powers = vec![(stranger.public(), 1)];
                    }
                    Lie::WrongPowers => {
                        decision.registry = Some(self.seen?);
                        let mut members = decision.members.iter().map(|member| member.peer);
                        let victim = members.rfind(|peer| *peer != me.public())?;
                        let due = decision.power_of(&victim);
                        decision.leaves.clear();
                        decision.joins.clear();
                        decision.powers = vec![(victim, due.map_or(0, |power| power + 1))];
                    }
                    Lie::WrongRoot
                    | Lie::MalformedFrame
                    | Lie::ForgedHistory
                    | Lie::WrongSum
                    | Lie::SplitHeader
                    | Lie::HeaderFlood
                    | Lie::LateHeader
                    | Lie::Replay
                    | Lie::Withhold => {
                        decision.state_root = Hash::of_content(b"another state");
                    }
                }
                self.forged = Some(proposal.value.id());
                let signature = me.sign(&proposal.hash(run));
                Some(Message::Proposal(Box::new(SignedProposal::new(
                    proposal, signature,
                ))))
            }
            (Lie::Equivocate, Message::Vote(signed)) => {
                let mut vote = signed.message.clone();
                vote.value = match (&vote.value, self.forged) {
                    (NilOrVal::Val(_), Some(forged)) => NilOrVal::Val(forged),
                    (NilOrVal::Val(_), None) => NilOrVal::Nil,
                    (NilOrVal::Nil, Some(forged)) => NilOrVal::Val(forged),
                    (NilOrVal::Nil, None) => return None,
                };
                let signature = me.sign(&vote.hash(run));
                Some(Message::Vote(SignedVote::new(vote, signature)))
            }
        }
    }
}

/// Turns the last of `records` into one that was never decided, with a certificate to match but for the signatures.
pub(super) fn forge(records: &mut [DecisionRecord]) {
    if let Some(record) = records.last_mut() {
        if record.decision.members.is_empty() {
            record.decision.joins.pop();
        } else {
            drop_last_member(&mut record.decision);
            record.headers.pop();
        }
        record.certificate.value = record.decision.id();
    }
}

/// Another decision, sound but for its reductions: without the last member.
fn drop_last_member(decision: &mut Decision) {
    decision.members.pop();
    let members = decision.members.len();
    for shard in &mut decision.shards {
        shard.accepted = Bitmap::of(members, shard.accepted.positions());
        if members == 0 {
            shard.reduced.clear();
        }
    }
}
