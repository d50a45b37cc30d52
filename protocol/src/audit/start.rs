//! Whether a round began where it had to, and trained on what it was given: rule `carried-or-zero` and what else can be
//! checked from public data, before anything is done again.
//!
//! Rule `public-theta`: a round begins from the shared parameters, bit for bit.
//!
//! Rule `feedback-carries`: when the round before decided every shard of the peer's update, the error feedback before the
//! next one is what it was after that, or zero, as of a peer that lost it: that takes from nobody but the peer. After a
//! round with a part left out, or without a decided update, the feedback has what nobody else knows, and is not checked
//! here.

use crate::hash::Hash;
use crate::header::Header;
use crate::manifest::{Audit, InnerState, RoundId};

use super::segment::SegmentList;
use super::verdict::Check;

/// The newest update of the peer that was decided before the round.
#[derive(Clone, Copy, Debug)]
pub struct Newest<'a> {
    /// Its header.
    pub header: &'a Header,
    /// Whether the decision of its round accepted all of its shards.
    pub whole: bool,
}

/// What the start of a round is held against; computed by whoever audits.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The newest decided update of the peer before the round, if it has any.
    pub newest: Option<Newest<'a>>,
    /// Root of the shared parameters of the round.
    pub theta: Hash,
    /// Root of an inner optimizer's state that is zero.
    pub inner_zero: Hash,
    /// Root of error feedback that is zero.
    pub feedback_zero: Hash,
    /// The segment that is audited.
    pub segment: u32,
    /// [`super::segment::data_hash`] of the sequences that the peer was assigned in it.
    pub data: Hash,
}

/// What is wrong with the start of a round. Its peer is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartFault {
    /// The list is not the one that the header commits to.
    #[error("the list of segments is not what the header commits to")]
    Commitment,
    /// Another number of segments than the run has.
    #[error("{found} segments where the run has {expected}")]
    Segments {
        /// What the manifest says.
        expected: u32,
        /// What the list has.
        found: u32,
    },
    /// Segments and header disagree on the tokens.
    #[error("the segments have {segments} tokens, the header {header}")]
    Tokens {
        /// Sum over the segments; at most `u64::MAX`.
        segments: u64,
        /// What the header says.
        header: u64,
    },
    /// Rule `public-theta`.
    #[error("training began from parameters {found}, not from {expected}")]
    Theta {
        /// Root of the shared parameters.
        expected: Hash,
        /// Root of what the list begins with.
        found: Hash,
    },
    /// Rule `carried-or-zero` of [`super::segment`].
    #[error("the inner optimizer began from {found}, neither zero nor {}", carried_text(.carried))]
    Inner {
        /// What the newest decided update ended with, where that may be carried on.
        carried: Option<Hash>,
        /// Root of what the header begins with.
        found: Hash,
    },
    /// Rule `feedback-carries`.
    #[error(
        "the error feedback began from {found}, neither zero nor {expected} as round {round} left it"
    )]
    Feedback {
        /// The round before.
        round: RoundId,
        /// What it left.
        expected: Hash,
        /// Root of what the header begins with.
        found: Hash,
    },
    /// There is no such segment.
    #[error("no segment {0}")]
    NoSegment(u32),
    /// The segment trained on other sequences than it was assigned.
    #[error("segment {segment} trained on sequences {found}, not on {expected}")]
    Data {
        /// The segment.
        segment: u32,
        /// Hash of the assigned sequences.
        expected: Hash,
        /// Hash of those that the list has.
        found: Hash,
    },
}

impl StartFault {
    /// The check that a verdict on it names. A list that cannot be what the header commits to in this run proves nothing of the
    /// round: what the header commits to cannot be had.
    pub fn check(&self) -> Check {
        match self {
            StartFault::Commitment | StartFault::Segments { .. } => Check::Availability,
            StartFault::Tokens { .. }
            | StartFault::Theta { .. }
            | StartFault::Inner { .. }
            | StartFault::Feedback { .. }
            | StartFault::NoSegment(_)
            | StartFault::Data { .. } => Check::Start,
        }
    }
}

fn carried_text(carried: &Option<Hash>) -> String {
    match carried {
        Some(hash) => format!("{hash} as carried on"),
        None => "carried on, which it may not be".into(),
    }
}

/// Checks the rules of this module.
///
/// `header`: authentic, and named by the decision of its round. `list`: what its author sent.
///
/// # Errors
/// The first fault, in the order of [`StartFault`].
pub fn check(
    header: &Header,
    list: &SegmentList,
    audit: &Audit,
    expected: &Expected<'_>,
) -> Result<(), StartFault> {
    let update = &header.update;
    if list.commitment() != update.work {
        return Err(StartFault::Commitment);
    }
    if list.segments() != audit.segments {
        return Err(StartFault::Segments {
            expected: audit.segments,
            found: list.segments(),
        });
    }
    let tokens: u128 = list.work().iter().map(|work| u128::from(work.tokens)).sum();
    if tokens != u128::from(update.tokens) {
        return Err(StartFault::Tokens {
            segments: u64::try_from(tokens).unwrap_or(u64::MAX),
            header: update.tokens,
        });
    }
    let theta = list.states().first().map(|state| state.theta);
    if theta != Some(expected.theta) {
        return Err(StartFault::Theta {
            expected: expected.theta,
            found: theta.unwrap_or(Hash::ZERO),
        });
    }
    let carried = match audit.inner {
        InnerState::Reset => None,
        InnerState::Carried => expected.newest.map(|n| n.header.update.work.inner_after),
    };
    let inner = update.work.inner_before;
    if inner != expected.inner_zero && Some(inner) != carried {
        return Err(StartFault::Inner {
            carried,
            found: inner,
        });
    }
    if let Some(newest) = expected.newest
        && newest.whole
        && newest.header.round.next() == header.round
    {
        let left = newest.header.update.feedback_after;
        let found = update.feedback_before;
        if found != left && found != expected.feedback_zero {
            return Err(StartFault::Feedback {
                round: newest.header.round,
                expected: left,
                found,
            });
        }
    }
    let segment = expected.segment;
    let work = usize::try_from(segment)
        .ok()
        .and_then(|place| list.work().get(place))
        .ok_or(StartFault::NoSegment(segment))?;
    if work.data != expected.data {
        return Err(StartFault::Data {
            segment,
            expected: expected.data,
            found: work.data,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::segment::{StateRoots, Work, data_hash};
    use crate::header::UpdateSummary;
    use crate::key::PeerKey;
    use crate::manifest::RunId;

    const ZERO_INNER: Hash = Hash([50; 32]);
    const ZERO_FEEDBACK: Hash = Hash([60; 32]);
    const THETA: Hash = Hash([1; 32]);

    fn audit(inner: InnerState) -> Audit {
        Audit {
            segments: 2,
            coverage_ppm: 1,
            probation_rounds: 0,
            suspension_rounds: 8,
            loss_sequences: 64,
            loss_ppm: 0,
            inner,
            tolerances: Vec::new(),
        }
    }

    fn list(inner_before: Hash) -> SegmentList {
        let state = |theta: u8, inner| StateRoots {
            theta: Hash([theta; 32]),
            inner,
        };
        let work = |data: u64| Work {
            data: data_hash([data]),
            tokens: 20,
            loss_micronats: 1,
            gradient_norm_micro: 1,
        };
        let states = vec![
            state(1, inner_before),
            state(2, Hash([51; 32])),
            state(3, Hash([52; 32])),
        ];
        SegmentList::new(states, vec![work(0), work(1)]).unwrap()
    }

    fn header(round: u64, list: &SegmentList, feedback: (u8, u8)) -> Header {
        Header {
            run: RunId(Hash([9; 32])),
            round: RoundId(round),
            peer: PeerKey([5; 32]),
            state_root: Hash::ZERO,
            update: UpdateSummary {
                frames: Vec::new(),
                feedback_before: Hash([feedback.0; 32]),
                feedback_after: Hash([feedback.1; 32]),
                work: list.commitment(),
                tokens: 40,
                steps: 5,
                loss_first_micronats: 0,
                loss_last_micronats: 0,
                build: "build".into(),
                device: "cpu".into(),
            },
        }
    }

    fn expected(newest: Option<Newest<'_>>) -> Expected<'_> {
        Expected {
            newest,
            theta: THETA,
            inner_zero: ZERO_INNER,
            feedback_zero: ZERO_FEEDBACK,
            segment: 1,
            data: data_hash([1]),
        }
    }

    #[test]
    fn a_first_round_begins_from_zero() {
        let list = list(ZERO_INNER);
        let header = header(4, &list, (7, 8));
        for inner in [InnerState::Carried, InnerState::Reset] {
            assert_eq!(
                check(&header, &list, &audit(inner), &expected(None)),
                Ok(())
            );
        }
    }

    #[test]
    fn the_inner_state_is_carried_on_or_zero_and_nothing_else() {
        let earlier = list(ZERO_INNER);
        let newest = header(2, &earlier, (7, 8));
        let newest = Some(Newest {
            header: &newest,
            whole: true,
        });
        let of = |inner: Hash, rule| {
            let list = list(inner);
            check(
                &header(4, &list, (30, 31)),
                &list,
                &audit(rule),
                &expected(newest),
            )
        };
        let carried = earlier.commitment().inner_after;
        assert_eq!(of(ZERO_INNER, InnerState::Carried), Ok(()));
        assert_eq!(of(carried, InnerState::Carried), Ok(()));
        assert_eq!(
            of(Hash([77; 32]), InnerState::Carried),
            Err(StartFault::Inner {
                carried: Some(carried),
                found: Hash([77; 32])
            })
        );
        assert_eq!(of(ZERO_INNER, InnerState::Reset), Ok(()));
        let fault = StartFault::Inner {
            carried: None,
            found: carried,
        };
        assert_eq!(of(carried, InnerState::Reset), Err(fault));
    }

    #[test]
    fn feedback_carries_over_from_a_round_that_was_decided_whole() {
        let list = list(ZERO_INNER);
        let of = |round, whole, feedback_before| {
            let newest = header(round, &list, (7, 8));
            let newest = Some(Newest {
                header: &newest,
                whole,
            });
            let header = header(4, &list, (feedback_before, 9));
            check(
                &header,
                &list,
                &audit(InnerState::Carried),
                &expected(newest),
            )
        };
        let fault = Err(StartFault::Feedback {
            round: RoundId(3),
            expected: Hash([8; 32]),
            found: Hash([30; 32]),
        });
        assert_eq!(of(3, true, 8), Ok(()));
        assert_eq!(of(3, true, 60), Ok(()), "a peer that lost its feedback");
        assert_eq!(of(3, true, 30), fault);
        assert_eq!(of(3, false, 30), Ok(()), "what was left out came back");
        assert_eq!(of(2, true, 30), Ok(()), "a round between kept its work");
    }

    #[test]
    fn each_other_fault_is_named() {
        let good = list(ZERO_INNER);
        let header = header(4, &good, (7, 8));
        let rules = audit(InnerState::Carried);
        let base = expected(None);
        let of = |expected: Expected<'_>| check(&header, &good, &rules, &expected);

        let other = list(Hash([77; 32]));
        assert_eq!(
            check(&header, &other, &rules, &base),
            Err(StartFault::Commitment)
        );
        let three = Audit {
            segments: 3,
            ..rules.clone()
        };
        assert_eq!(
            check(&header, &good, &three, &base),
            Err(StartFault::Segments {
                expected: 3,
                found: 2
            })
        );
        let mut boast = header.clone();
        boast.update.tokens = 41;
        assert_eq!(
            check(&boast, &good, &rules, &base),
            Err(StartFault::Tokens {
                segments: 40,
                header: 41
            })
        );
        assert_eq!(
            of(Expected {
                theta: Hash([2; 32]),
                ..base
            }),
            Err(StartFault::Theta {
                expected: Hash([2; 32]),
                found: THETA
            })
        );
        assert_eq!(
            of(Expected {
                data: data_hash([0]),
                ..base
            }),
            Err(StartFault::Data {
                segment: 1,
                expected: data_hash([0]),
                found: data_hash([1])
            })
        );
        assert_eq!(
            of(Expected { segment: 2, ..base }),
            Err(StartFault::NoSegment(2))
        );
    }

    #[test]
    fn a_list_that_the_header_does_not_commit_to_counts_as_withheld() {
        assert_eq!(StartFault::Commitment.check(), Check::Availability);
        let other = StartFault::Segments {
            expected: 3,
            found: 2,
        };
        assert_eq!(other.check(), Check::Availability);
        let stale = StartFault::Theta {
            expected: THETA,
            found: Hash::ZERO,
        };
        assert_eq!(stale.check(), Check::Start);
    }

    #[test]
    fn tokens_that_overflow_are_a_fault_and_no_panic() {
        let state = StateRoots {
            theta: THETA,
            inner: ZERO_INNER,
        };
        let work = Work {
            data: data_hash([1]),
            tokens: u64::MAX,
            loss_micronats: 0,
            gradient_norm_micro: 0,
        };
        let list = SegmentList::new(vec![state; 3], vec![work; 2]).unwrap();
        let header = header(4, &list, (7, 8));
        let fault = StartFault::Tokens {
            segments: u64::MAX,
            header: 40,
        };
        let rules = audit(InnerState::Carried);
        assert_eq!(check(&header, &list, &rules, &expected(None)), Err(fault));
    }
}
