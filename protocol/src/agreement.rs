//! Agreement: one decision for each round, by Malachite's BFT engine.
//!
//! The engine is a coroutine that asks for effects and is resumed at once; this module answers what is pure (signing,
//! verifying) and turns the rest into [`Output`]s and timers. It opens no socket, keeps no log and knows nothing of
//! frames: whether a proposed decision may be voted for is the node's answer, given through [`Agreement::judge`].
//!
//! Rule `journal-first`: an [`Output::Journal`] comes before the publication of the vote or proposal that it records,
//! and must be durable before any later output leaves the machine. After a restart [`Agreement::start`] is given the
//! journal of the round, so that no vote is ever contradicted.
//!
//! Rule `nothing-is-final`: an attempt in which a quorum precommitted nothing is over at once, without the wait for
//! stragglers: any two quorums share a voter that votes once, so no straggler can make it decide. Ending a wait early
//! changes no vote, and whoever has not heard of those votes yet comes after as soon as it has.

#![expect(
    clippy::result_large_err,
    reason = "the engine's error types are what they are"
)]

mod certificate;
mod context;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use arc_malachitebft_core_consensus as engine;
use arc_malachitebft_core_types as bft;
use bft::{NilOrVal, Round, Timeout, TimeoutKind, Validity, ValueOrigin, ValuePayload};
use engine::{Effect, Input, LocallyProposedValue, Params, Resumable, SignedConsensusMsg};

pub use certificate::{CertificateError, CommitCertificate, CommitSignature, quorum, thresholds};
pub use context::{Context, Proposal, Vote};

use crate::decision::Decision;
use crate::hash::Hash;
use crate::key::{Keypair, PeerKey};
use crate::manifest::{Manifest, RoundId, RunId, Timing};
use crate::roster::Roster;
use crate::time::Time;
use certificate::check_votes;
use context::Voters;

/// A vote with its signature.
pub type SignedVote = bft::SignedVote<Context>;
/// A proposal with its signature.
pub type SignedProposal = bft::SignedProposal<Context>;
/// Prevotes of a quorum for one value.
pub type PolkaCertificate = bft::PolkaCertificate<Context>;
/// Votes that justify entering an attempt.
pub type RoundCertificate = bft::RoundCertificate<Context>;
/// A value with the node's verdict on it.
pub type ProposedValue = engine::ProposedValue<Context>;

/// Later rounds for which the engine keeps early messages. A peer further behind asks for decisions instead.
const EARLY_ROUNDS_MAX: usize = 4;
/// Early messages kept for each of them: a proposal and some attempts' votes of a full roster.
const EARLY_MESSAGES_MAX: usize = 512;
/// Timeouts grow with the attempt, up to this.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// What the engine wants done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make durable before any later output leaves the machine (rule `journal-first`).
    Journal(Record),
    /// Send to all peers of the run.
    Publish(Message),
    /// This peer is to propose: call [`Agreement::propose`].
    Propose,
    /// The round is decided.
    Decided(Box<Decision>, CommitCertificate),
}

/// A message of the agreement.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// A vote.
    Vote(SignedVote),
    /// A proposal, with the whole decision in it.
    Proposal(Box<SignedProposal>),
    /// Prevotes of a quorum.
    Polka(PolkaCertificate),
    /// Votes that justify a later attempt.
    RoundCertificate(RoundCertificate),
}

impl Message {
    /// The round that the message is about.
    pub fn height(&self) -> RoundId {
        match self {
            Message::Vote(vote) => vote.message.height,
            Message::Proposal(proposal) => proposal.message.height,
            Message::Polka(certificate) => certificate.height,
            Message::RoundCertificate(certificate) => certificate.height,
        }
    }
}

/// What must survive a crash: an input of the engine that its next vote may depend on.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A vote, one's own or another's.
    Vote(SignedVote),
    /// A proposal.
    Proposal(Box<SignedProposal>),
    /// Prevotes of a quorum.
    Polka(PolkaCertificate),
    /// A timeout that elapsed.
    Timeout(TimeoutRecord),
    /// The verdict on a value.
    Proposed(Box<ProposedValue>),
}

/// A timeout that elapsed: its step and attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutRecord {
    /// The step.
    pub step: Step,
    /// The attempt.
    pub attempt: u32,
}

/// A step of an attempt that has a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Waiting for a proposal and the bytes that it names.
    Propose,
    /// Waiting for stragglers' prevotes.
    Prevote,
    /// Waiting for stragglers' precommits.
    Precommit,
    /// Sending votes again.
    Rebroadcast,
}

impl Step {
    fn of(kind: TimeoutKind) -> Option<Step> {
        match kind {
            TimeoutKind::Propose => Some(Step::Propose),
            TimeoutKind::Prevote => Some(Step::Prevote),
            TimeoutKind::Precommit => Some(Step::Precommit),
            TimeoutKind::Rebroadcast => Some(Step::Rebroadcast),
            TimeoutKind::FinalizeHeight(_) => None,
        }
    }

    fn kind(self) -> TimeoutKind {
        match self {
            Step::Propose => TimeoutKind::Propose,
            Step::Prevote => TimeoutKind::Prevote,
            Step::Precommit => TimeoutKind::Precommit,
            Step::Rebroadcast => TimeoutKind::Rebroadcast,
        }
    }

    /// How long the step waits in `attempt`. Waits grow by half with each attempt, so that some attempt outlasts any
    /// delay (partial synchrony).
    fn duration(self, attempt: u32, timing: &Timing) -> Duration {
        let base_ms = match self {
            Step::Propose => timing.propose_ms,
            Step::Prevote | Step::Precommit => timing.vote_ms,
            Step::Rebroadcast => timing.vote_ms.saturating_mul(2),
        };
        let growth_ms = match self {
            Step::Rebroadcast => 0,
            Step::Propose | Step::Prevote | Step::Precommit => {
                u64::from(base_ms / 2 + 1).saturating_mul(attempt.into())
            }
        };
        Duration::from_millis(u64::from(base_ms).saturating_add(growth_ms)).min(TIMEOUT_MAX)
    }
}

/// The agreement of one run, at one round at a time.
pub struct Agreement {
    engine: engine::State<Context>,
    surface: Surface,
    started: bool,
}

/// Everything that the engine's effects touch.
struct Surface {
    run: RunId,
    keypair: Keypair,
    timing: Timing,
    now: Time,
    timers: BTreeMap<(Step, u32), Time>,
    outputs: VecDeque<Output>,
    /// Set while an input is processed that decides the round.
    decided: Option<CommitCertificate>,
}

impl Agreement {
    /// An agreement that stands before `roster`'s round and has not begun it.
    pub fn new(manifest: &Manifest, run: RunId, keypair: Keypair, roster: &Roster) -> Agreement {
        let params = Params {
            address: keypair.public(),
            threshold_params: thresholds(manifest.trust.mode),
            value_payload: ValuePayload::ProposalAndParts,
            enabled: true,
        };
        Agreement {
            engine: engine::State::new(
                Context { run },
                roster.round(),
                Voters::from(roster),
                params,
                EARLY_ROUNDS_MAX,
                EARLY_MESSAGES_MAX,
            ),
            surface: Surface {
                run,
                keypair,
                timing: manifest.timing.clone(),
                now: Time::default(),
                timers: BTreeMap::new(),
                outputs: VecDeque::new(),
                decided: None,
            },
            started: false,
        }
    }

    /// The round at hand.
    pub fn height(&self) -> RoundId {
        self.engine.height()
    }

    /// Whether [`Agreement::start`] was called for the round at hand.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// The attempt at hand; 0 before the start.
    pub fn attempt(&self) -> u32 {
        self.engine.round().as_u32().unwrap_or(0)
    }

    /// Moves to `roster`'s round without beginning it. Messages for it that came early are kept.
    pub fn advance(&mut self, roster: &Roster) {
        assert!(roster.round() > self.height(), "rounds only go up");
        self.started = false;
        self.surface.timers.clear();
        self.engine
            .driver
            .move_to_height(roster.round(), Voters::from(roster));
    }

    /// Begins the round of `roster`.
    ///
    /// `journal`: what was recorded of this round before a restart; empty otherwise.
    pub fn start(&mut self, now: Time, roster: &Roster, journal: Vec<Record>) {
        assert!(!self.started, "a round is begun once");
        self.started = true;
        self.surface.now = now;
        let replay: Vec<_> = journal.into_iter().filter_map(Record::into_input).collect();
        let restart = !replay.is_empty();
        if restart {
            self.engine.index_wal_entries(&replay);
        }
        self.process(Input::StartHeight(
            roster.round(),
            Voters::from(roster),
            restart,
            None,
            bft::VoteExtensionPolicy::Disabled,
        ));
        for input in replay {
            self.process(input);
        }
        self.engine.reset_entries_index();
    }

    /// Takes in a message. Before the start, and for the next few rounds, it is kept; older ones are dropped.
    pub fn receive(&mut self, now: Time, message: Message) {
        self.surface.now = now;
        let early = !self.started && message.height() == self.height();
        let input = match message {
            Message::Vote(vote) => Input::Vote(vote),
            Message::Proposal(proposal) => Input::Proposal(*proposal),
            Message::Polka(certificate) => Input::PolkaCertificate(certificate),
            Message::RoundCertificate(certificate) => Input::RoundCertificate(certificate),
        };
        if early && !matches!(input, Input::Vote(_) | Input::Proposal(_)) {
            return;
        }
        self.process(input);
    }

    /// Whether `proposal` is signed by the proposer of its attempt at the round of `roster`.
    pub fn is_authentic(&self, roster: &Roster, proposal: &SignedProposal) -> bool {
        use bft::Context as _;
        let message = &proposal.message;
        if roster.is_empty() {
            return false;
        }
        let expected = self
            .engine
            .ctx
            .select_proposer(&Voters::from(roster), message.height, message.round)
            .key();
        message.height == roster.round()
            && message.proposer == expected
            && expected.verify(&message.hash(&self.surface.run), &proposal.signature)
    }

    /// Whether a quorum is known to have prevoted for the decision `value` in some attempt of the round at hand.
    pub fn is_vouched_for(&self, value: &Hash) -> bool {
        let certificates = self.engine.driver.polka_certificates();
        certificates.iter().any(|polka| polka.value_id == *value)
    }

    /// Proposes `decision` in the attempt at hand, after an [`Output::Propose`].
    pub fn propose(&mut self, now: Time, decision: Decision) {
        self.surface.now = now;
        self.process(Input::Propose(LocallyProposedValue {
            height: self.engine.height(),
            round: self.engine.round(),
            value: decision,
        }));
    }

    /// Gives the verdict on a proposed decision: sound and at hand, or not acceptable.
    pub fn judge(&mut self, now: Time, proposal: &Proposal, acceptable: bool) {
        self.surface.now = now;
        self.process(Input::ProposedValue(
            ProposedValue {
                height: proposal.height,
                round: proposal.round,
                valid_round: proposal.pol_round,
                proposer: proposal.proposer,
                value: proposal.value.clone(),
                validity: Validity::from_bool(acceptable),
            },
            ValueOrigin::Consensus,
        ));
    }

    /// Lets timers that are due elapse.
    pub fn handle_timeout(&mut self, now: Time) {
        self.surface.now = now;
        while let Some((&(step, attempt), _)) =
            self.surface.timers.iter().find(|(_, due)| **due <= now)
        {
            self.surface.timers.remove(&(step, attempt));
            let timeout = Timeout::new(Round::new(attempt), step.kind());
            self.process(Input::TimeoutElapsed(timeout));
        }
    }

    /// Whose proposal is waited for, if another peer's is.
    pub fn awaited_proposer(&self) -> Option<PeerKey> {
        let driver = &self.engine.driver;
        let waits = self
            .surface
            .timers
            .contains_key(&(Step::Propose, self.attempt()));
        let proposer = driver.proposer_address().filter(|_| waits);
        let others = proposer.filter(|_| self.started && driver.step_is_propose());
        others.copied().filter(|p| p != driver.address())
    }

    /// Waits no longer for the proposal of the attempt at hand.
    pub fn pass_proposer(&mut self, now: Time) {
        self.end_wait(now, Step::Propose);
    }

    /// Ends the attempt at hand if a quorum precommitted nothing in it. Rule `nothing-is-final`.
    pub fn pass_attempt(&mut self, now: Time) -> bool {
        let votes = self.engine.driver.votes();
        let nil = votes.per_round(self.engine.round()).is_some_and(|cast| {
            let nil = NilOrVal::Nil;
            let power = cast.votes().get_weight(bft::VoteType::Precommit, &nil);
            let quorum = self.engine.params.threshold_params.quorum;
            quorum.is_met(power, votes.total_weight())
        });
        self.started && nil && self.end_wait(now, Step::Precommit)
    }

    /// Lets the timer of a step of the attempt at hand elapse; `false` if there is none.
    fn end_wait(&mut self, now: Time, step: Step) -> bool {
        let attempt = self.attempt();
        if self.surface.timers.remove(&(step, attempt)).is_none() {
            return false;
        }
        self.surface.now = now;
        let timeout = Timeout::new(Round::new(attempt), step.kind());
        self.process(Input::TimeoutElapsed(timeout));
        true
    }

    /// When the next timer is due.
    pub fn poll_timeout(&self) -> Option<(Time, Step)> {
        let next = self.surface.timers.iter().min_by_key(|(_, due)| **due)?;
        Some((*next.1, next.0.0))
    }

    /// The next output.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.surface.outputs.pop_front()
    }

    fn process(&mut self, input: Input<Context>) {
        let surface = &mut self.surface;
        let result: Result<(), engine::Error<Context>> = engine::process!(
            input: input,
            state: &mut self.engine,
            metrics: &(),
            with: effect => Ok::<_, engine::Error<Context>>(surface.perform(effect))
        );
        if let Err(error) = result {
            // The engine refuses an input that does not fit its state; its state is unchanged then.
            tracing::warn!(%error, "agreement refused an input");
        }
        if let Some(certificate) = self.surface.decided.take() {
            let (_, decision) = self
                .engine
                .decided_value()
                .expect("a round that was decided in this call has its value");
            assert_eq!(
                decision.id(),
                certificate.value,
                "certificate of another value"
            );
            let output = Output::Decided(Box::new(decision), certificate);
            self.surface.outputs.push_back(output);
        }
    }
}

impl Surface {
    fn perform(&mut self, effect: Effect<Context>) -> engine::Resume<Context> {
        match effect {
            Effect::CancelAllTimeouts(r) => {
                self.timers.clear();
                r.resume_with(())
            }
            Effect::CancelTimeout(timeout, r) => {
                if let Some(key) = timer_key(timeout) {
                    self.timers.remove(&key);
                }
                r.resume_with(())
            }
            Effect::ScheduleTimeout(timeout, r) => {
                if let Some((step, attempt)) = timer_key(timeout) {
                    let due = self.now + step.duration(attempt, &self.timing);
                    self.timers.insert((step, attempt), due);
                }
                r.resume_with(())
            }
            Effect::StartRound(height, attempt, proposer, role, r) => {
                tracing::debug!(%height, %attempt, proposer = %proposer.short(), ?role, "attempt");
                r.resume_with(())
            }
            Effect::PublishConsensusMsg(message, r) => {
                self.outputs.push_back(Output::Publish(match message {
                    SignedConsensusMsg::Vote(vote) => Message::Vote(vote),
                    SignedConsensusMsg::Proposal(proposal) => Message::Proposal(Box::new(proposal)),
                }));
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(message, r) => {
                self.outputs.push_back(Output::Publish(match message {
                    engine::LivenessMsg::Vote(vote) => Message::Vote(vote),
                    engine::LivenessMsg::PolkaCertificate(polka) => Message::Polka(polka),
                    engine::LivenessMsg::SkipRoundCertificate(certificate) => {
                        Message::RoundCertificate(certificate)
                    }
                }));
                r.resume_with(())
            }
            Effect::RepublishVote(vote, r) => {
                self.outputs.push_back(Output::Publish(Message::Vote(vote)));
                r.resume_with(())
            }
            Effect::RepublishRoundCertificate(certificate, r) => {
                let message = Message::RoundCertificate(certificate);
                self.outputs.push_back(Output::Publish(message));
                r.resume_with(())
            }
            Effect::GetValue(_, _, _, r) => {
                self.outputs.push_back(Output::Propose);
                r.resume_with(())
            }
            // A proposal carries its whole value, so there are no parts to send again.
            Effect::RestreamProposal(_, _, _, _, _, r) => r.resume_with(()),
            Effect::Decide(certificate, _, r) => {
                self.decided = Some(commit_certificate(certificate));
                r.resume_with(())
            }
            Effect::SignVote(vote, r) => {
                let signature = self.keypair.sign(&vote.hash(&self.run));
                r.resume_with(SignedVote::new(vote, signature))
            }
            Effect::SignProposal(proposal, r) => {
                let signature = self.keypair.sign(&proposal.hash(&self.run));
                r.resume_with(SignedProposal::new(proposal, signature))
            }
            Effect::VerifySignature(message, key, r) => {
                let hash = match &message.message {
                    engine::ConsensusMsg::Vote(vote) => vote.hash(&self.run),
                    engine::ConsensusMsg::Proposal(proposal) => proposal.hash(&self.run),
                };
                r.resume_with(key.verify(&hash, &message.signature))
            }
            Effect::VerifyCommitCertificate(certificate, voters, thresholds, r) => {
                r.resume_with(self.verify_commit(certificate, &voters, thresholds))
            }
            Effect::VerifyExtendedCommitCertificate(certificate, voters, thresholds, _, r) => {
                let certificate = certificate.trim_vote_extensions();
                r.resume_with(self.verify_commit(certificate, &voters, thresholds))
            }
            Effect::VerifyPolkaCertificate(certificate, voters, thresholds, r) => {
                r.resume_with(self.verify_polka(certificate, &voters, thresholds))
            }
            Effect::VerifyRoundCertificate(certificate, voters, thresholds, r) => {
                r.resume_with(self.verify_round(certificate, &voters, thresholds))
            }
            Effect::WalAppend(_, input, r) => {
                if let Some(record) = Record::from_input(input) {
                    self.outputs.push_back(Output::Journal(record));
                }
                r.resume_with(())
            }
            Effect::Finalize(_, _, evidence, r) => {
                if !evidence.is_empty() {
                    tracing::warn!(?evidence, "a voter contradicted itself");
                }
                r.resume_with(())
            }
            // Decisions are caught up outside the engine, and votes carry no extensions.
            Effect::CertVerifiedSyncValue(_, _, r) => r.resume_with(()),
            Effect::CertRejectedSyncValue(_, _, _, r) => r.resume_with(()),
            Effect::ExtendVote(_, _, _, _, r) => r.resume_with(None),
            Effect::VerifyVoteExtension(_, _, _, _, _, _, r) => {
                r.resume_with(Err(engine::VoteExtensionError::InvalidVoteExtension))
            }
        }
    }

    fn verify_commit(
        &self,
        certificate: bft::CommitCertificate<Context>,
        voters: &Voters,
        thresholds: bft::ThresholdParams,
    ) -> Result<(), CertificateError> {
        let votes = certificate.commit_signatures.iter().map(|s| {
            let vote = Vote {
                kind: bft::VoteType::Precommit,
                height: certificate.height,
                round: certificate.round,
                value: NilOrVal::Val(certificate.value_id),
                voter: s.address,
            };
            (vote, s.signature)
        });
        check_votes(&self.run, voters, votes, thresholds.quorum, |vote, s| {
            CertificateError::InvalidCommitSignature(bft::CommitSignature::new(vote.voter, s))
        })
    }

    fn verify_polka(
        &self,
        certificate: PolkaCertificate,
        voters: &Voters,
        thresholds: bft::ThresholdParams,
    ) -> Result<(), CertificateError> {
        let context = Context { run: self.run };
        let votes = certificate
            .votes(&context)
            .map(|v| (v.message, v.signature));
        check_votes(&self.run, voters, votes, thresholds.quorum, |vote, s| {
            CertificateError::InvalidPolkaSignature(bft::PolkaSignature::new(vote.voter, s))
        })
    }

    fn verify_round(
        &self,
        certificate: RoundCertificate,
        voters: &Voters,
        thresholds: bft::ThresholdParams,
    ) -> Result<(), CertificateError> {
        let threshold = match certificate.cert_type {
            bft::RoundCertificateType::Skip => thresholds.honest,
            bft::RoundCertificateType::Precommit => {
                if let Some(vote) = certificate
                    .round_signatures
                    .iter()
                    .find(|s| s.vote_type == bft::VoteType::Prevote)
                {
                    return Err(CertificateError::InvalidVoteType(vote.address));
                }
                thresholds.quorum
            }
        };
        let context = Context { run: self.run };
        let votes = certificate
            .votes(&context)
            .map(|v| (v.message, v.signature));
        check_votes(&self.run, voters, votes, threshold, |vote, s| {
            CertificateError::InvalidRoundSignature(bft::RoundSignature::new(
                vote.kind, vote.value, vote.voter, s,
            ))
        })
    }
}

fn commit_certificate(certificate: bft::CommitCertificate<Context>) -> CommitCertificate {
    CommitCertificate {
        height: certificate.height,
        attempt: certificate.round.as_u32().unwrap_or(0),
        value: certificate.value_id,
        signatures: certificate
            .commit_signatures
            .into_iter()
            .map(|s| CommitSignature {
                voter: s.address,
                signature: s.signature,
            })
            .collect(),
    }
}

fn timer_key(timeout: Timeout) -> Option<(Step, u32)> {
    Some((Step::of(timeout.kind)?, timeout.round.as_u32()?))
}

impl Record {
    /// What the engine's log keeps of `input`; `None` for what it rebuilds by itself.
    fn from_input(input: Input<Context>) -> Option<Record> {
        match input {
            Input::Vote(vote) => Some(Record::Vote(vote)),
            Input::Proposal(proposal) => Some(Record::Proposal(Box::new(proposal))),
            Input::PolkaCertificate(certificate) => Some(Record::Polka(certificate)),
            Input::TimeoutElapsed(timeout) => {
                let (step, attempt) = timer_key(timeout)?;
                Some(Record::Timeout(TimeoutRecord { step, attempt }))
            }
            Input::ProposedValue(proposed, _) => Some(Record::Proposed(Box::new(proposed))),
            Input::StartHeight(..)
            | Input::RoundCertificate(_)
            | Input::Propose(_)
            | Input::SyncValueResponse(_) => None,
        }
    }

    fn into_input(self) -> Option<Input<Context>> {
        Some(match self {
            Record::Vote(vote) => Input::Vote(vote),
            Record::Proposal(proposal) => Input::Proposal(*proposal),
            Record::Polka(certificate) => Input::PolkaCertificate(certificate),
            Record::Timeout(record) => {
                Input::TimeoutElapsed(Timeout::new(Round::new(record.attempt), record.step.kind()))
            }
            Record::Proposed(proposed) => Input::ProposedValue(*proposed, ValueOrigin::Consensus),
        })
    }
}
