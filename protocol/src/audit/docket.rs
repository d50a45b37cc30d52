//! Disputes: nobody is failed by a single validator while there are others.
//!
//! Rule `one-accuser`: a verdict that fails a peer opens a case about (peer, round). Its seats are the accuser's and two more,
//! drawn from the challenge of the round: the validators have an order for each case, and the first in it that are not the
//! accuser sit. Of several accusers the first in the order is the accuser, so that who heard of whom first does not matter.
//!
//! Rule `two-of-three`: two votes of the three seats that agree decide the case.
//!
//! Rule `few-validators`: where there are fewer than three validators, the peer has failed only if all of them say so.
//!
//! Rule `not-alone`: one validator fails nobody by itself while there are others, silent or not. Who is asked late may not be able
//! to audit any more, and a liar chooses when it speaks. Silence shields a peer no more than a vote for it would.
//!
//! Rule `panel-rounds`: who has not answered [`PANEL_ROUNDS`] rounds after it was seated loses its seat for good to the next in
//! the order. Where nobody is left to take it, it keeps the seat for [`LAST_ROUNDS`].
//!
//! Rule `doubt-acquits`: if nobody is left to sit, the votes of those who sit decide; a tie acquits. So does the end of the time
//! for which a docket keeps a round ([`ROUNDS_MAX`]). Nobody is outvoted by silence: only where somebody said the outcome.
//!
//! Rule `last-word`: a verdict that passes closes a round on which nobody has failed the peer. A verdict that fails it opens the
//! case all the same, or the quickest validator would decide alone. What a panel has closed stays closed.
//!
//! Rule `one-word`: a validator has one verdict for each (peer, round). One that signed two different ones is flagged, and
//! neither counts.
//!
//! A docket trusts its caller that verdicts are authentic and that rounds and validators are those of the run. Time is the
//! newest decided round. Dockets that hear the same verdicts before a seat's time is over close a case alike.

use std::collections::{BTreeMap, BTreeSet};

use super::draw::Draw;
use super::standing::Finding;
use super::verdict::{Outcome, Verdict};
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::RoundId;

/// Rounds that a validator has for an audit that it was drawn for. A guess: an audit takes a part of a round.
pub const PANEL_ROUNDS: u64 = 2;
/// Rounds that it has where nobody else is left. A guess: as many as it can still audit, and two more to say so.
pub const LAST_ROUNDS: u64 = 8;
/// Seats of a case, the accuser's among them.
pub const SEATS: usize = 3;
/// Rounds whose audits are kept: what is older than the newest that many is closed by rule `doubt-acquits`.
pub const ROUNDS_MAX: usize = 64;
/// The most validators: what a subnet of Bittensor allows. Of more, the first by key judge.
pub const VALIDATORS_MAX: usize = 128;

const ORDER_DOMAIN: &str = "gradmesh audit panel v1";

/// All cases of a run, as one validator or observer sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Docket {
    own: Option<PeerKey>,
    /// Sorted by key.
    validators: Vec<PeerKey>,
    records: BTreeMap<PeerKey, Record>,
    rounds: BTreeMap<RoundId, Round>,
    now: RoundId,
}

/// How a validator has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Verdicts that were heard.
    pub verdicts: u64,
    /// Closed cases in which it said the opposite of the outcome, and somebody else said the outcome.
    pub outvoted: u64,
    /// Rounds of peers for which it signed two different verdicts.
    pub contradictions: u64,
    /// Seats that it lost by rule `panel-rounds`.
    pub silent: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Round {
    challenge: Hash,
    peers: BTreeMap<PeerKey, Case>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    /// The header that the decision names.
    header: Hash,
    words: BTreeMap<PeerKey, Word>,
    state: State,
}

/// What a validator said of a peer's round.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// The peer passed.
    Acquits { verdict: Hash, grey: bool },
    /// The peer failed.
    Accuses {
        verdict: Hash,
        finding: Box<Finding>,
    },
    /// Two things (rule `one-word`).
    Contradicted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has said anything that counts.
    Quiet,
    /// Somebody passed the peer, and nobody failed it.
    Passed,
    /// Somebody failed it.
    Open(Panel),
    /// A panel has decided.
    Closed(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Panel {
    /// All validators as they were when the case was opened, in the order of the case.
    order: Vec<PeerKey>,
    /// When each was first seated.
    seated: BTreeMap<PeerKey, RoundId>,
    /// Who lost its seat by rule `panel-rounds`.
    silent: BTreeSet<PeerKey>,
}

/// Why a verdict was not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// Its author is no validator.
    #[error("{0} is no validator")]
    NoValidator(PeerKey),
    /// The round is newer than all that are known. It is to be heard again after [`Docket::challenged`].
    #[error("round {0} is not challenged yet")]
    TooEarly(RoundId),
    /// The round is not kept.
    #[error("round {0} is not on the docket")]
    OtherRound(RoundId),
    /// The decision of the round has no update of the peer, or another header.
    #[error("the decision of the round does not name header {0}")]
    OtherHeader(Hash),
    /// It was drawn from another challenge.
    #[error("the round was not challenged by {0}")]
    OtherChallenge(Hash),
    /// It has been heard.
    #[error("heard before")]
    Repeated,
}

/// What follows from an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A case is open: the round does not count until it is closed.
    Opened {
        /// Whose work it is about.
        peer: PeerKey,
        /// Of which round.
        round: RoundId,
    },
    /// This validator has a seat and is to audit by itself, and to say what it finds.
    AuditAsPanelist {
        /// The peer.
        peer: PeerKey,
        /// The round.
        round: RoundId,
        /// The segment.
        segment: u32,
    },
    /// The audits of a peer's round have come to an end. Where the peer was passed without a case, one may follow.
    Closed {
        /// The peer.
        peer: PeerKey,
        /// The round.
        round: RoundId,
        /// How it came out.
        outcome: Outcome,
        /// What failed it, if it did: the accuser's verdict.
        finding: Option<Finding>,
        /// Validators that said the opposite, sorted.
        outvoted: Vec<PeerKey>,
    },
    /// A validator signed two different verdicts.
    Contradicted {
        /// Who.
        validator: PeerKey,
        /// On whose work.
        peer: PeerKey,
        /// Of which round.
        round: RoundId,
    },
}

impl Docket {
    /// A docket without rounds.
    ///
    /// `own`: the key of whoever keeps it, if it is a validator.
    pub fn new(own: Option<PeerKey>) -> Docket {
        Docket {
            own,
            validators: Vec::new(),
            records: BTreeMap::new(),
            rounds: BTreeMap::new(),
            now: RoundId::FOUNDING,
        }
    }

    /// Who judges from now on; open cases keep the validators that they were opened with. Records of others are forgotten.
    pub fn set_validators(&mut self, validators: impl IntoIterator<Item = PeerKey>) {
        let sorted: BTreeSet<_> = validators.into_iter().collect();
        self.validators = sorted.into_iter().take(VALIDATORS_MAX).collect();
        self.records
            .retain(|peer, _| self.validators.binary_search(peer).is_ok());
    }

    /// Round `round` is decided and challenged: verdicts on it are heard from now on.
    ///
    /// `updates`: the peers with an accepted update and the hashes of their headers. Does nothing for a round that is kept
    /// already, or that is older than all that are kept.
    pub fn challenged(
        &mut self,
        round: RoundId,
        challenge: Hash,
        updates: impl IntoIterator<Item = (PeerKey, Hash)>,
    ) -> Vec<Effect> {
        let case = |(peer, header)| (peer, Case::new(header));
        self.rounds.entry(round).or_insert_with(|| Round {
            challenge,
            peers: updates.into_iter().map(case).collect(),
        });
        let mut effects = Vec::new();
        while self.rounds.len() > ROUNDS_MAX {
            let Some((round, dropped)) = self.rounds.pop_first() else {
                break;
            };
            let open = dropped.peers.into_iter().filter(|(_, case)| case.is_open());
            effects.extend(open.map(|(peer, case)| Effect::Closed {
                peer,
                round,
                outcome: case.acquittal(),
                finding: None,
                outvoted: Vec::new(),
            }));
        }
        effects
    }

    /// The newest decided round is `now`: seats whose time is over go to others.
    pub fn decided(&mut self, now: RoundId) -> Vec<Effect> {
        self.now = self.now.max(now);
        let open: Vec<_> = self.open().collect();
        let proceed = |(round, peer)| self.proceed(round, peer);
        open.into_iter().flat_map(proceed).collect()
    }

    /// Hears a verdict, whose signature its caller has verified.
    ///
    /// # Errors
    /// [`Unheard`]; nothing has changed.
    pub fn hear(&mut self, verdict: &Verdict) -> Result<Vec<Effect>, Unheard> {
        let (validator, peer, round) = (verdict.validator, verdict.peer, verdict.round);
        if self.validators.binary_search(&validator).is_err() {
            return Err(Unheard::NoValidator(validator));
        }
        if self
            .rounds
            .last_key_value()
            .is_none_or(|(last, _)| *last < round)
        {
            return Err(Unheard::TooEarly(round));
        }
        let entry = self.rounds.get_mut(&round);
        let entry = entry.ok_or(Unheard::OtherRound(round))?;
        let case = entry.peers.get_mut(&peer);
        let case = case
            .filter(|case| case.header == verdict.header)
            .ok_or(Unheard::OtherHeader(verdict.header))?;
        if entry.challenge != verdict.challenge {
            return Err(Unheard::OtherChallenge(verdict.challenge));
        }
        let word = Word::of(verdict);
        let mut effects = Vec::new();
        match case.words.get(&validator) {
            None => {
                let outvoted = matches!(
                    case.state,
                    State::Closed(outcome) if word.opposes(outcome) && case.is_said(outcome)
                );
                case.words.insert(validator, word);
                let record = self.records.entry(validator).or_default();
                record.verdicts = record.verdicts.saturating_add(1);
                record.outvoted = record.outvoted.saturating_add(outvoted.into());
            }
            Some(said) if *said == word || *said == Word::Contradicted => {
                return Err(Unheard::Repeated);
            }
            Some(_) => {
                case.words.insert(validator, Word::Contradicted);
                let record = self.records.entry(validator).or_default();
                record.contradictions = record.contradictions.saturating_add(1);
                effects.push(Effect::Contradicted {
                    validator,
                    peer,
                    round,
                });
            }
        }
        effects.extend(self.proceed(round, peer));
        Ok(effects)
    }

    /// How a validator has done since it became one.
    pub fn record_of(&self, validator: &PeerKey) -> Record {
        self.records.get(validator).copied().unwrap_or_default()
    }

    /// How the audits of a peer's round came out; `None` while its case is open, and where nobody looked.
    pub fn outcome(&self, round: RoundId, peer: &PeerKey) -> Option<Outcome> {
        let case = self.rounds.get(&round)?.peers.get(peer)?;
        match &case.state {
            State::Quiet | State::Open(_) => None,
            State::Passed => Some(case.acquittal()),
            State::Closed(outcome) => Some(*outcome),
        }
    }

    /// Open cases, by round and peer.
    pub fn open(&self) -> impl Iterator<Item = (RoundId, PeerKey)> + '_ {
        self.rounds.iter().flat_map(|(round, entry)| {
            let open = entry.peers.iter().filter(|(_, case)| case.is_open());
            open.map(|(peer, _)| (*round, *peer))
        })
    }

    /// Goes as far with a case as what is known allows.
    fn proceed(&mut self, round: RoundId, peer: PeerKey) -> Vec<Effect> {
        let entry = self.rounds.get_mut(&round);
        let Some((challenge, case)) = entry.and_then(|entry| {
            let case = entry.peers.get_mut(&peer)?;
            Some((entry.challenge, case))
        }) else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        let mut closed = |outcome, finding, outvoted| {
            effects.push(Effect::Closed {
                peer,
                round,
                outcome,
                finding,
                outvoted,
            });
        };
        let mut panel = match &mut case.state {
            State::Closed(_) => return effects,
            State::Open(panel) => {
                let panel = panel.clone();
                if case.accuser(&panel).is_none() {
                    // Whoever failed the peer has said two things, or said it too late.
                    case.state = case.without_accuser();
                    closed(case.acquittal(), None, Vec::new());
                    return effects;
                }
                panel
            }
            State::Quiet | State::Passed => {
                let panel = Panel::new(&self.validators, &challenge, &peer);
                if case.accuser(&panel).is_none() {
                    let passed = case.without_accuser();
                    if case.state == State::Quiet && passed == State::Passed {
                        closed(case.acquittal(), None, Vec::new());
                    }
                    case.state = passed;
                    return effects;
                }
                effects.push(Effect::Opened { peer, round });
                panel
            }
        };
        let seats = loop {
            let seats = case.seats(&panel);
            let spare = |validator: &PeerKey| {
                !seats.contains(validator) && !panel.silent.contains(validator)
            };
            let rounds = match panel.order.iter().any(spare) {
                true => PANEL_ROUNDS,
                false => LAST_ROUNDS,
            };
            let late = |seat: &&PeerKey| {
                let since = *panel.seated.get(*seat).unwrap_or(&self.now);
                !case.words.contains_key(*seat) && self.now.0 - since.0.min(self.now.0) >= rounds
            };
            let late: Vec<_> = seats.iter().filter(late).copied().collect();
            if late.is_empty() {
                break seats;
            }
            for seat in late {
                panel.silent.insert(seat);
                if self.validators.binary_search(&seat).is_ok() {
                    let record = self.records.entry(seat).or_default();
                    record.silent = record.silent.saturating_add(1);
                }
            }
        };
        let accusation = case
            .accuser(&panel)
            .and_then(|accuser| case.finding(&accuser));
        for seat in &seats {
            let first = !panel.seated.contains_key(seat);
            if first {
                panel.seated.insert(*seat, self.now);
            }
            if first && Some(*seat) == self.own && !case.words.contains_key(seat) {
                effects.push(Effect::AuditAsPanelist {
                    peer,
                    round,
                    segment: accusation.map_or(0, |finding| finding.segment),
                });
            }
        }
        let Some(outcome) = case.vote(&seats, &panel) else {
            case.state = State::Open(panel);
            return effects;
        };
        case.state = State::Closed(outcome);
        let said = case.is_said(outcome);
        let opposed = |word: &Word| said && word.opposes(outcome);
        let outvoted = case.words.iter().filter(|(_, word)| opposed(word));
        let outvoted: Vec<_> = outvoted.map(|(validator, _)| *validator).collect();
        for validator in &outvoted {
            if let Some(record) = self.records.get_mut(validator) {
                record.outvoted = record.outvoted.saturating_add(1);
            }
        }
        effects.push(Effect::Closed {
            peer,
            round,
            outcome,
            finding: accusation.filter(|_| outcome == Outcome::Failed),
            outvoted,
        });
        effects
    }
}

impl Word {
    fn of(verdict: &Verdict) -> Word {
        let hash = verdict.hash();
        match verdict.outcome {
            Outcome::Passed | Outcome::Grey => Word::Acquits {
                verdict: hash,
                grey: verdict.outcome == Outcome::Grey,
            },
            Outcome::Failed => Word::Accuses {
                verdict: hash,
                finding: Box::new(Finding::of(verdict)),
            },
        }
    }

    /// Whether it is the opposite of `outcome`.
    fn opposes(&self, outcome: Outcome) -> bool {
        match self {
            Word::Acquits { .. } => outcome == Outcome::Failed,
            Word::Accuses { .. } => outcome != Outcome::Failed,
            Word::Contradicted => false,
        }
    }
}

impl Panel {
    fn new(validators: &[PeerKey], challenge: &Hash, peer: &PeerKey) -> Panel {
        Panel {
            order: order(validators, challenge, peer),
            seated: BTreeMap::new(),
            silent: BTreeSet::new(),
        }
    }
}

impl Case {
    fn new(header: Hash) -> Case {
        Case {
            header,
            words: BTreeMap::new(),
            state: State::Quiet,
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    fn finding(&self, validator: &PeerKey) -> Option<Finding> {
        match self.words.get(validator)? {
            Word::Accuses { finding, .. } => Some(**finding),
            Word::Acquits { .. } | Word::Contradicted => None,
        }
    }

    /// Rule `one-accuser`. Who has lost its seat accuses nobody.
    fn accuser(&self, panel: &Panel) -> Option<PeerKey> {
        let sits = |seat: &&PeerKey| !panel.silent.contains(*seat);
        let mut order = panel.order.iter().filter(sits);
        order.find(|seat| self.finding(seat).is_some()).copied()
    }

    /// The accuser, and the first others that have neither lost their seat nor contradicted themselves.
    fn seats(&self, panel: &Panel) -> Vec<PeerKey> {
        let accuser = self.accuser(panel);
        let sits = |seat: &PeerKey| {
            Some(*seat) != accuser
                && !panel.silent.contains(seat)
                && self.words.get(seat) != Some(&Word::Contradicted)
        };
        let others = panel.order.iter().copied().filter(sits);
        accuser.into_iter().chain(others).take(SEATS).collect()
    }

    /// Rules `two-of-three`, `few-validators`, `not-alone` and `doubt-acquits`; `None` while votes are missing that matter.
    fn vote(&self, seats: &[PeerKey], panel: &Panel) -> Option<Outcome> {
        let words = || seats.iter().filter_map(|seat| self.words.get(seat));
        let failed = words().filter(|word| word.opposes(Outcome::Passed)).count();
        let voted = words().count();
        let full = seats.len() == SEATS;
        if full && failed >= 2 {
            Some(Outcome::Failed)
        } else if full && voted - failed >= 2 {
            Some(self.acquittal())
        } else if voted < seats.len() {
            None
        } else if 2 * failed > voted && (failed > 1 || panel.order.len() == 1) {
            Some(Outcome::Failed)
        } else {
            Some(self.acquittal())
        }
    }

    /// Grey if anybody who did not fail the peer found it grey.
    fn acquittal(&self) -> Outcome {
        let grey = |word: &Word| matches!(word, Word::Acquits { grey: true, .. });
        if self.words.values().any(grey) {
            Outcome::Grey
        } else {
            Outcome::Passed
        }
    }

    /// Whether anybody says that it came out as `outcome`.
    fn is_said(&self, outcome: Outcome) -> bool {
        let says = |word: &Word| *word != Word::Contradicted && !word.opposes(outcome);
        self.words.values().any(says)
    }

    /// Where a case stands of which nobody has failed the peer.
    fn without_accuser(&self) -> State {
        let acquits = |word: &Word| matches!(word, Word::Acquits { .. });
        if self.words.values().any(acquits) {
            State::Passed
        } else {
            State::Quiet
        }
    }
}

/// The validators as they are drawn for the case of `peer` in the round of `challenge`: every order is equally likely.
fn order(validators: &[PeerKey], challenge: &Hash, peer: &PeerKey) -> Vec<PeerKey> {
    let mut draw = Draw::new(ORDER_DOMAIN, challenge, &peer.0);
    let mut left = validators.to_vec();
    let mut order = Vec::with_capacity(left.len());
    while let Some(place) = draw.below(left.len() as u64) {
        order.push(left.remove(usize::try_from(place).unwrap_or(0)));
    }
    order
}

#[cfg(test)]
mod tests;
