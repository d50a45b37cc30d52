//! What a node does now and why it waits, for people and tests.

use std::fmt;
use std::time::Duration;

use super::exchange::{Exchange, Work};
use super::{Node, StateTask};
use crate::agreement::quorum;
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::time::Time;

/// What the node is busy with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// The run has not begun: too few peers asked to join.
    Founding {
        /// Peers that asked, the launcher included; in a chain run those of them that are registered.
        present: u32,
        /// Peers with which the run begins.
        needed: u32,
    },
    /// The run has not begun, and this peer waits for the launcher.
    AwaitingLauncher,
    /// Decisions of other peers are fetched and checked.
    CatchingUp {
        /// The last decision that is here.
        decided: Option<RoundId>,
        /// The last that another peer says it has.
        target: RoundId,
    },
    /// A state is fetched by leaf.
    FetchingState(RoundId),
    /// No peer serves a state that could be fetched, or the frames to replay.
    AwaitingState,
    /// A decision is applied, or its frames are fetched first.
    Applying(RoundId),
    /// The worker trains.
    Training,
    /// This peer's update is out; others' are not all here.
    Exchanging,
    /// All that will be waited for is here; the roster votes.
    Deciding {
        /// The attempt.
        attempt: u32,
        /// Votes of the members that are connected, this peer included.
        connected: u64,
        /// Votes that a decision needs.
        quorum: u64,
    },
    /// Not in the roster (yet): the run is followed.
    Observing,
    /// Not in the roster, and not to come into it: the run is followed to validate it.
    Validating,
    /// A chain run, and no snapshot of the registry has come yet.
    AwaitingRegistry,
    /// Not in the roster, and not to come into it: the subnet does not register this peer.
    NotRegistered {
        /// Block of the newest snapshot of the registry.
        block: u64,
    },
    /// The last round is applied.
    Finished,
    /// This peer left the run.
    Left,
}

/// A snapshot of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The round at hand: the first that is not decided.
    pub round: RoundId,
    /// What the node does.
    pub activity: Activity,
    /// The round that is trained ahead meanwhile.
    pub ahead: Option<RoundId>,
    /// Whether it is a member of the round.
    pub member: bool,
    /// Members whose update is not complete here.
    pub waiting_for: Vec<PeerKey>,
    /// Members of which nothing is heard, by the rules of `silence`.
    pub silent: Vec<PeerKey>,
    /// How long the exchange will still wait for updates.
    pub deadline_in: Option<Duration>,
    /// The last round whose decision is applied, and the root after it.
    pub applied: Option<RoundId>,
    /// The state root.
    pub state_root: Hash,
    /// Sizes of what the node keeps; each has a bound (see the fields of [`super::Node`]).
    pub sizes: Sizes,
}

/// How much a node keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Decisions not yet applied.
    pub pending: usize,
    /// Frames wanted or held.
    pub frames: usize,
    /// Headers of the round at hand.
    pub headers: usize,
    /// What owners announced, and the lists that it came in.
    pub reductions: usize,
    /// Headers of the round after it.
    pub early_headers: usize,
    /// Proposals not yet judged.
    pub proposals: usize,
    /// Joins, leaves and capacities not yet decided.
    pub changes: usize,
    /// Snapshots of the registry.
    pub snapshots: usize,
    /// Peers known.
    pub peers: usize,
    /// Effects not yet taken.
    pub effects: usize,
}

impl Node {
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
            ahead: self
                .training
                .map(|training| training.round)
                .filter(|ahead| exchange.is_none_or(|e| e.round != *ahead)),
            member: self.roster.contains(&self.me),
            waiting_for,
            silent: self.silent(now).into_iter().collect(),
            deadline_in: exchange.map(|e| e.deadline - now),
            applied: self.applied,
            state_root: self.state_root,
            sizes: Sizes {
                pending: self.pending.len(),
                frames: self.frames.len(),
                headers: exchange.map_or(0, Exchange::len),
                reductions: exchange.map_or(0, |e| e.reducing.len()) + self.early_lists.len(),
                early_headers: self.early_headers.len(),
                proposals: self.proposals.len() + self.early_proposals.len(),
                changes: self.joins.len() + self.leaves.len() + self.capacities.len(),
                snapshots: self.snapshots.len(),
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
        if let Some(block) = self.not_registered_at()
            && !self.roster.contains(&self.me)
        {
            return Activity::NotRegistered { block };
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
        let founding = self.roster.round() == RoundId::FOUNDING;
        if (founding || !self.roster.contains(&self.me)) && self.lacks_registry() {
            return Activity::AwaitingRegistry;
        }
        if founding {
            if !self.roster.contains(&self.me) {
                return Activity::AwaitingLauncher;
            }
            return Activity::Founding {
                present: self.founders(),
                needed: self.config.manifest.trust.peers_min,
            };
        }
        if !self.roster.contains(&self.me) {
            if self.config.observes {
                return Activity::Validating;
            }
            return Activity::Observing;
        }
        if self.agreement.is_started() {
            let members = self.roster.members().iter();
            let connected = members.filter(|m| self.is_connected(&m.peer));
            return Activity::Deciding {
                attempt: self.agreement.attempt(),
                connected: connected.map(|m| u64::from(m.power)).sum(),
                quorum: quorum(self.config.manifest.trust.mode, self.roster.power()),
            };
        }
        match self.exchange.as_ref().map(|e| e.work) {
            Some(Work::Training) => Activity::Training,
            Some(Work::Committed | Work::None) | None => Activity::Exchanging,
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_activity(f)?;
        match self.ahead {
            Some(ahead) => write!(f, ", while round {ahead} is trained"),
            None => Ok(()),
        }
    }
}

impl View {
    fn write_activity(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let round = self.round;
        match &self.activity {
            Activity::Founding { present, needed } => {
                write!(f, "waiting for peers to join: {present} of {needed} here")
            }
            Activity::AwaitingLauncher => f.write_str("waiting for the launcher to begin the run"),
            Activity::CatchingUp { decided, target } => match decided {
                Some(decided) => write!(f, "catching up: round {decided} of {target}"),
                None => write!(f, "catching up with round {target}"),
            },
            Activity::FetchingState(round) => write!(f, "fetching the state after round {round}"),
            Activity::AwaitingState => {
                f.write_str("waiting for a peer that serves a state to continue from")
            }
            Activity::Applying(round) => write!(f, "applying round {round}"),
            Activity::Training => write!(f, "training round {round}"),
            Activity::Exchanging => {
                write!(f, "round {round}: waiting for the update of ")?;
                write_names(f, &self.waiting_for)?;
                match self.deadline_in {
                    Some(rest) => write!(f, ", for {:.1} s more", rest.as_secs_f64()),
                    None => Ok(()),
                }
            }
            Activity::Deciding {
                attempt,
                connected,
                quorum,
            } => {
                write!(f, "deciding round {round}")?;
                if *attempt > 0 {
                    write!(f, ", attempt {attempt}")?;
                }
                if connected < quorum {
                    write!(
                        f,
                        "; stuck until more peers return: {connected} of the {quorum} votes needed are connected"
                    )?;
                }
                Ok(())
            }
            Activity::Observing => write!(f, "following round {round}, not a member yet"),
            Activity::Validating => write!(f, "following round {round} to validate it"),
            Activity::AwaitingRegistry => {
                f.write_str("waiting for the chain to say who is registered on the subnet")
            }
            Activity::NotRegistered { block } => write!(
                f,
                "following round {round}; the subnet does not register this peer at block {block}: register its hotkey and \
                 serve an axon with this peer's key"
            ),
            Activity::Finished => f.write_str("the run is finished"),
            Activity::Left => f.write_str("left the run"),
        }
    }
}

fn write_names(f: &mut fmt::Formatter<'_>, peers: &[PeerKey]) -> fmt::Result {
    const NAMED_MAX: usize = 3;
    if peers.is_empty() {
        return f.write_str("nobody");
    }
    for (place, peer) in peers.iter().take(NAMED_MAX).enumerate() {
        let separator = if place == 0 { "" } else { ", " };
        write!(f, "{separator}{}", peer.short())?;
    }
    match peers.len().checked_sub(NAMED_MAX) {
        Some(more) if more > 0 => write!(f, " and {more} more"),
        _ => Ok(()),
    }
}
