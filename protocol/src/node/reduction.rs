//! What owners made of a round's updates, as far as it is known here, and what this peer has to sum itself.
//!
//! Rule `two-say-so`: what an owner announces counts when the shard's other owner announces the same, or when the other one
//! said nothing although it had time to speak, or is silent (rule `silent-not-waited-for` of [`super::silence`]). Owners that
//! contradict each other are both not believed: the shard is left out, and its mass stays with the senders. So a lie is decided
//! only if the other owner is dead, cut off or a liar, too.
//!
//! Rule `owners-follow`: the first owner sums when all members of the group have delivered, or at the deadline what is there. The
//! second does so when all have delivered, or half a patience later, if the first has said nothing that it could check; or at
//! the deadline, if the first has said nothing at all and is silent. Either one also sums the set that the other announced, once
//! it has the frames: two honest owners come to the same in the end.
//!
//! Rule `two-headers-none-summed`: an author that signs a header for each owner would have the shards summed of different
//! headers, of which a decision names one. So an owner that knows of two sums what was announced once more without that author,
//! and what is free of such authors goes before what is not; it is waited for until the owners' time is over.
//!
//! Rule `residual-goes-on`: an announcement that continues the decided residual goes before one that starts anew, because
//! its owner has lost the residual. An owner that starts anew neither confirms nor contradicts one that continues.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::hash::Hash;
use crate::header::{FrameId, FrameRef, Stage};
use crate::key::PeerKey;
use crate::plan::{GroupId, Owners};
use crate::reduction::SignedReductions;
use crate::time::Time;

/// Announcements kept of one owner for one group and shard: of its own set, of the one that the other owner chose, and of both
/// without those that signed two headers. An owner that was restarted may need the first two again; further ones are not
/// listened to.
pub(super) const CLAIMS_PER_OWNER: usize = 4;
/// Lists kept of one owner, to be passed on. An honest owner's heartbeat makes one of all of them.
const LISTS_PER_OWNER: usize = 64;

/// What an owner says that it made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The headers that went in, by hash.
    pub(super) headers: Vec<Hash>,
    /// What came out.
    pub(super) frame: FrameRef,
    /// The residual that was added.
    pub(super) residual_before: Hash,
    /// The residual that was left.
    pub(super) residual: Hash,
}

impl Claim {
    /// Whether any of `headers` went in.
    pub(super) fn names_any(&self, headers: &BTreeSet<Hash>) -> bool {
        self.headers.iter().any(|header| headers.contains(header))
    }

    /// What went in but for `headers`.
    pub(super) fn without(&self, headers: &BTreeSet<Hash>) -> Vec<Hash> {
        let left = self
            .headers
            .iter()
            .filter(|header| !headers.contains(header));
        left.copied().collect()
    }
}

/// One group's shard.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) group: GroupId,
    pub(super) shard: u32,
    pub(super) owners: Owners,
    /// The residual after the decision before.
    pub(super) residual: Hash,
    claims: Vec<(PeerKey, Claim, Time)>,
    /// The headers that this peer sums at the moment.
    pub(super) summing: Option<Vec<Hash>>,
    /// Summing failed here.
    pub(super) failed: bool,
    /// Contradicting owners were reported.
    pub(super) reported: bool,
    /// When a confirmed frame was at hand, counted from the start of the round.
    pub(super) settled_after: Option<Duration>,
}

/// What to believe of one group's shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief<'a> {
    /// No owner said anything.
    Silence,
    /// Both owners say so, or the only one.
    Confirmed(&'a Claim),
    /// One owner says so since then, the other nothing that counts.
    Alone(&'a Claim, Time),
    /// Each owner says something else.
    Disputed,
}

impl Part {
    pub(super) fn new(group: GroupId, shard: u32, owners: Owners, residual: Hash) -> Part {
        Part {
            group,
            shard,
            owners,
            residual,
            claims: Vec::new(),
            summing: None,
            failed: false,
            reported: false,
            settled_after: None,
        }
    }

    /// Takes in what `owner` says; `false` if it is known or one too many.
    pub(super) fn insert(&mut self, now: Time, owner: PeerKey, claim: Claim) -> bool {
        let known = self.claims_of(&owner).any(|known| *known == claim);
        if known || self.claims_of(&owner).count() >= CLAIMS_PER_OWNER {
            return false;
        }
        self.claims.push((owner, claim, now));
        true
    }

    /// What `owner` said, in order.
    pub(super) fn claims_of(&self, owner: &PeerKey) -> impl Iterator<Item = &Claim> {
        let of_owner = self.claims.iter().filter(move |(by, ..)| by == owner);
        of_owner.map(|(_, claim, _)| claim)
    }

    /// Everything that was said, by whom and since when.
    pub(super) fn claims(&self) -> impl Iterator<Item = (&PeerKey, &Claim, Time)> {
        self.claims.iter().map(|(by, claim, at)| (by, claim, *at))
    }

    /// Forgets what names a frame that is none. Returns who said it.
    fn reject(&mut self, frame: &FrameId, stage: Stage) -> Vec<PeerKey> {
        let names = |claim: &Claim| claim.frame.id(self.shard, stage) == *frame;
        let (bad, good) = std::mem::take(&mut self.claims)
            .into_iter()
            .partition(|(_, claim, _)| names(claim));
        self.claims = good;
        let bad: Vec<(PeerKey, Claim, Time)> = bad;
        bad.into_iter().map(|(by, ..)| by).collect()
    }

    /// Whether all owners say exactly this. Rule `two-say-so`.
    pub(super) fn is_confirmed(&self, claim: &Claim) -> bool {
        self.owners
            .iter()
            .all(|owner| self.claims_of(&owner).any(|said| said == claim))
    }

    /// What to believe; `doubled`: the headers of authors that signed two. Rules `two-say-so`, `residual-goes-on` and
    /// `two-headers-none-summed`.
    pub(super) fn belief(&self, doubled: &BTreeSet<Hash>) -> Belief<'_> {
        let mut first: Vec<&Claim> = self.claims_of(&self.owners.first).collect();
        first.sort_by_key(|claim| claim.names_any(doubled));
        if let Some(claim) = first.into_iter().find(|claim| self.is_confirmed(claim)) {
            return Belief::Confirmed(claim);
        }
        let free = self.claims().any(|(_, claim, _)| !claim.names_any(doubled));
        for goes_on in [true, false] {
            let of_kind = |claim: &Claim| {
                (claim.residual_before == self.residual) == goes_on
                    && !(free && claim.names_any(doubled))
            };
            let mut said = self.claims.iter().filter(|(_, claim, _)| of_kind(claim));
            let Some((by, claim, since)) = said.next() else {
                continue;
            };
            return if said.any(|(other, ..)| other != by) {
                Belief::Disputed
            } else {
                Belief::Alone(claim, *since)
            };
        }
        Belief::Silence
    }

    /// Whether `claim` is what one owner says and the other one says nothing that counts: since when.
    pub(super) fn alone_since(&self, claim: &Claim, doubled: &BTreeSet<Hash>) -> Option<Time> {
        match self.belief(doubled) {
            Belief::Alone(..) => {
                let goes_on = claim.residual_before == self.residual;
                let others = self
                    .claims
                    .iter()
                    .any(|(_, other, _)| !goes_on && other.residual_before == self.residual);
                let said = self.claims.iter().find(|(_, said, _)| said == claim);
                said.filter(|_| !others).map(|(_, _, since)| *since)
            }
            Belief::Silence | Belief::Confirmed(_) | Belief::Disputed => None,
        }
    }
}

/// All of a round. Empty in the `gather` plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Reducing {
    pub(super) parts: BTreeMap<(GroupId, u32), Part>,
    /// How long an owner has to answer another, and a voter waits for a second owner.
    pub(super) patience: Duration,
    /// What this peer made and has not announced.
    pub(super) unannounced: BTreeSet<(GroupId, u32)>,
    lists: BTreeMap<PeerKey, Vec<SignedReductions>>,
    /// When something is due next.
    pub(super) next_due: Option<Time>,
}

impl Reducing {
    pub(super) fn new(parts: BTreeMap<(GroupId, u32), Part>, patience: Duration) -> Reducing {
        Reducing {
            parts,
            patience,
            ..Reducing::default()
        }
    }

    /// Whether nothing is reduced in this round.
    pub(super) fn is_idle(&self) -> bool {
        self.parts.is_empty()
    }

    /// The moment at which nothing is waited for any longer.
    pub(super) fn last_due(&self, deadline: Time) -> Time {
        deadline + self.patience.saturating_mul(2)
    }

    /// When what one owner says since then counts without the other.
    pub(super) fn matures(&self, deadline: Time, since: Time) -> Time {
        deadline.max(since) + self.patience
    }

    /// Keeps a list, to be passed on; those that it holds all of are forgotten.
    pub(super) fn keep(&mut self, list: SignedReductions) {
        let kept = self.lists.entry(list.reductions.owner).or_default();
        let entries = |list: &SignedReductions| {
            let list = &list.reductions;
            let headers = |entry: &crate::reduction::Reduction| {
                let places = entry.accepted.positions();
                places.map(|place| list.headers[place]).collect::<Vec<_>>()
            };
            let entries = list.reductions.iter();
            let entries = entries.map(|e| ((e.group, e.shard), (headers(e), e.frame, e.residual)));
            entries.collect::<BTreeMap<_, _>>()
        };
        let new = entries(&list);
        kept.retain(|old| {
            entries(old)
                .iter()
                .any(|(key, value)| new.get(key) != Some(value))
        });
        if kept.len() < LISTS_PER_OWNER {
            kept.push(list);
        }
    }

    /// Whether exactly this list is kept.
    pub(super) fn keeps(&self, list: &SignedReductions) -> bool {
        let kept = self.lists.get(&list.reductions.owner);
        kept.is_some_and(|kept| kept.contains(list))
    }

    /// Every list that is kept.
    pub(super) fn lists(&self) -> impl Iterator<Item = &SignedReductions> {
        self.lists.values().flatten()
    }

    /// A frame is no frame: what names it is forgotten. Returns who announced it.
    pub(super) fn frame_malformed(&mut self, frame: &FrameId, stage: Stage) -> Vec<PeerKey> {
        let parts = self.parts.values_mut();
        let parts = parts.filter(|part| part.shard == frame.shard);
        parts.flat_map(|part| part.reject(frame, stage)).collect()
    }

    /// Number of announcements and lists kept.
    pub(super) fn len(&self) -> usize {
        let claims = self.parts.values().map(|part| part.claims.len());
        claims.sum::<usize>() + self.lists.values().map(Vec::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: PeerKey = PeerKey([1; 32]);
    const SECOND: PeerKey = PeerKey([2; 32]);
    const BEFORE: Hash = Hash([7; 32]);

    fn part() -> Part {
        let owners = Owners {
            first: FIRST,
            second: Some(SECOND),
        };
        Part::new(GroupId::ALL, 0, owners, BEFORE)
    }

    fn claim(byte: u8, residual_before: Hash) -> Claim {
        Claim {
            headers: vec![Hash([byte; 32])],
            frame: FrameRef {
                hash: Hash([byte; 32]),
                bytes: 1,
            },
            residual_before,
            residual: Hash([byte; 32]),
        }
    }

    #[test]
    fn two_owners_confirm_one_is_alone_and_two_others_dispute() {
        let mut part = part();
        assert_eq!(part.belief(&BTreeSet::new()), Belief::Silence);
        let said = claim(1, BEFORE);
        assert!(part.insert(Time(5), FIRST, said.clone()));
        assert!(!part.insert(Time(6), FIRST, said.clone()), "known");
        assert_eq!(part.belief(&BTreeSet::new()), Belief::Alone(&said, Time(5)));
        assert_eq!(part.alone_since(&said, &BTreeSet::new()), Some(Time(5)));
        let other = claim(2, BEFORE);
        assert!(part.insert(Time(7), SECOND, other.clone()));
        assert_eq!(part.belief(&BTreeSet::new()), Belief::Disputed);
        assert_eq!(part.alone_since(&said, &BTreeSet::new()), None);
        assert!(
            part.insert(Time(8), SECOND, said.clone()),
            "follows the first"
        );
        assert_eq!(part.belief(&BTreeSet::new()), Belief::Confirmed(&said));
        assert!(part.insert(Time(9), SECOND, claim(3, BEFORE)));
        assert!(part.insert(Time(9), SECOND, claim(4, BEFORE)));
        assert!(
            !part.insert(Time(9), SECOND, claim(5, BEFORE)),
            "one too many"
        );
    }

    #[test]
    fn what_is_free_of_authors_of_two_headers_goes_first() {
        let mut part = part();
        let (doubled, free) = (claim(1, BEFORE), claim(2, BEFORE));
        for owner in [FIRST, SECOND] {
            part.insert(Time(1), owner, doubled.clone());
        }
        let known = BTreeSet::from([Hash([1; 32])]);
        assert_eq!(
            part.belief(&known),
            Belief::Confirmed(&doubled),
            "all that there is"
        );
        part.insert(Time(2), FIRST, free.clone());
        part.insert(Time(3), SECOND, free.clone());
        assert_eq!(part.belief(&known), Belief::Confirmed(&free));
        assert_eq!(part.belief(&BTreeSet::new()), Belief::Confirmed(&doubled));
    }

    #[test]
    fn an_owner_that_lost_the_residual_neither_confirms_nor_contradicts() {
        let mut part = part();
        let anew = claim(1, Hash::ZERO);
        let goes_on = claim(2, BEFORE);
        assert!(part.insert(Time(1), FIRST, anew.clone()));
        assert_eq!(part.alone_since(&anew, &BTreeSet::new()), Some(Time(1)));
        assert!(part.insert(Time(2), SECOND, goes_on.clone()));
        assert_eq!(
            part.belief(&BTreeSet::new()),
            Belief::Alone(&goes_on, Time(2))
        );
        assert_eq!(part.alone_since(&anew, &BTreeSet::new()), None);
        assert_eq!(part.alone_since(&goes_on, &BTreeSet::new()), Some(Time(2)));
    }

    #[test]
    fn the_only_owner_confirms_itself() {
        let mut part = part();
        part.owners.second = None;
        let said = claim(1, BEFORE);
        part.insert(Time(1), FIRST, said.clone());
        assert_eq!(part.belief(&BTreeSet::new()), Belief::Confirmed(&said));
    }
}
