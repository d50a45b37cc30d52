//! What runs went through: a simulator that never meets a situation says nothing about it.

use std::collections::BTreeMap;
use std::fmt;

/// A situation worth meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Situation {
    /// A process died between two effects of one input.
    CrashBetweenEffects,
    /// A process found journal entries of the round at hand when it started.
    JournalReplayed,
    /// An update was found durable after a crash, before its header was.
    UpdateFound,
    /// A training was ended because its round was decided.
    TrainingStopped,
    /// A decision was applied in the middle of a training ahead.
    AppliedWhileTraining,
    /// An update was encoded that was trained ahead.
    TrainedAhead,
    /// An update of one of several fragments was encoded.
    FragmentEncoded,
    /// A peer that would have been late in a round trained the next one instead.
    FellIntoStep,
    /// A training ahead was ended: its round was decided, the peer is out, or its state was replaced.
    StoppedAhead,
    /// A training failed.
    TrainingFailed,
    /// An update did not make its round.
    UpdateLeftOut,
    /// A round was decided in a later attempt.
    LaterAttempt,
    /// A round was decided without any update.
    EmptyRound,
    /// A peer came into a roster after the founding.
    Joined,
    /// A peer was taken out of a roster, or left it.
    Removed,
    /// A peer left by its own wish.
    Left,
    /// A state was fetched by leaf.
    StateFetched,
    /// A state could not be fetched.
    StateFailed,
    /// A frame could not be fetched from any source.
    FrameFailed,
    /// A frame did not decode.
    FrameMalformed,
    /// A liar told a lie in the agreement.
    LieTold,
    /// A liar signed two headers for two halves of the peers.
    HeaderSplit,
    /// A liar signed many headers in a round.
    HeadersFlooded,
    /// A liar published a header a round late.
    HeaderHeldBack,
    /// A liar committed to an old update.
    UpdateReplayed,
    /// A liar was asked for a frame and kept it.
    FrameWithheld,
    /// A peer was accused of breaking a rule.
    LieNoticed,
    /// A peer was told that the chain does not register it.
    NotRegistered,
    /// A member was put out because the chain no longer registers it.
    Deregistered,
    /// A peer that was put out came in again.
    Reregistered,
    /// The power of a member changed with its stake.
    PowerChanged,
    /// Changes were due, and put off because too few of those who stay were there.
    ChangesPutOff,
    /// The launcher founded a run without itself.
    LauncherNotRegistered,
    /// A peer stored a decision by a snapshot that it had not seen.
    SnapshotUnseen,
    /// A liar proposed what the registry does not back.
    RegistryLieTold,
    /// An owner that lacked a residual fetched it.
    ResidualHandedOver,
    /// An owner could not get a residual from anybody.
    ResidualLost,
    /// A peer asked another what owners announced.
    ReductionsAsked,
    /// Owners of a shard contradicted each other.
    OwnersDisagreed,
    /// An owner announced a wrong sum.
    SumFalsified,
    /// A reduction was decided that started without the decided residual.
    ReducedAnew,
    /// A shard was decided by the `reduce` plan.
    Reduced,
    /// A shard was decided by the `hier` plan.
    ReducedInSites,
    /// A member's link was decided to carry less.
    LinkTurnedThin,
    /// A member's link was decided to carry more.
    LinkTurnedFat,
    /// A round went by another plan than the one before.
    PlanChanged,
}

impl Situation {
    /// All of them.
    pub const ALL: [Situation; 46] = [
        Situation::CrashBetweenEffects,
        Situation::JournalReplayed,
        Situation::UpdateFound,
        Situation::TrainingStopped,
        Situation::AppliedWhileTraining,
        Situation::TrainedAhead,
        Situation::FragmentEncoded,
        Situation::FellIntoStep,
        Situation::StoppedAhead,
        Situation::TrainingFailed,
        Situation::UpdateLeftOut,
        Situation::LaterAttempt,
        Situation::EmptyRound,
        Situation::Joined,
        Situation::Removed,
        Situation::Left,
        Situation::StateFetched,
        Situation::StateFailed,
        Situation::FrameFailed,
        Situation::FrameMalformed,
        Situation::LieTold,
        Situation::HeaderSplit,
        Situation::HeadersFlooded,
        Situation::HeaderHeldBack,
        Situation::UpdateReplayed,
        Situation::FrameWithheld,
        Situation::LieNoticed,
        Situation::NotRegistered,
        Situation::Deregistered,
        Situation::Reregistered,
        Situation::PowerChanged,
        Situation::ChangesPutOff,
        Situation::LauncherNotRegistered,
        Situation::SnapshotUnseen,
        Situation::RegistryLieTold,
        Situation::ResidualHandedOver,
        Situation::ResidualLost,
        Situation::ReductionsAsked,
        Situation::OwnersDisagreed,
        Situation::SumFalsified,
        Situation::ReducedAnew,
        Situation::Reduced,
        Situation::ReducedInSites,
        Situation::LinkTurnedThin,
        Situation::LinkTurnedFat,
        Situation::PlanChanged,
    ];
}

/// How often each situation was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    met: BTreeMap<Situation, u64>,
}

impl Coverage {
    /// Counts `situation`.
    pub fn meet(&mut self, situation: Situation) {
        *self.met.entry(situation).or_default() += 1;
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Coverage) {
        for (situation, count) in &other.met {
            *self.met.entry(*situation).or_default() += count;
        }
    }

    /// The situations that were never met.
    pub fn missed(&self) -> Vec<Situation> {
        let mut all = Situation::ALL.to_vec();
        all.retain(|situation| !self.met.contains_key(situation));
        all
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, situation) in Situation::ALL.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            let count = self.met.get(situation).copied().unwrap_or(0);
            write!(f, "{separator}{situation:?} {count}")?;
        }
        Ok(())
    }
}
