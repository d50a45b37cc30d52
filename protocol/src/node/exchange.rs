//! One round's exchange: the headers that came in, and which of them are complete.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use super::reduction::{Claim, Part, Reducing};
use crate::decision::{Bitmap, DecidedMember, DecidedShard};
use crate::hash::Hash;
use crate::header::{FrameId, SignedHeader};
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::time::Time;

/// Headers kept of one author in one round: the one that came first, and one that a proposal may name instead.
const HEADERS_PER_AUTHOR: usize = 2;

/// One header and what is still missing of it.
#[derive(Clone, Debug)]
pub(super) struct Commitment {
    /// The header.
    pub(super) header: SignedHeader,
    /// What is wanted of it and not here.
    missing: BTreeSet<FrameId>,
    /// What of it is no frame.
    malformed: BTreeSet<FrameId>,
    /// When it came, counted from the round's start.
    heard_after: Duration,
    /// When its last wanted frame came, counted from the round's start.
    complete_after: Option<Duration>,
}

/// What this peer does in the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Not in the roster, leaving, or training failed.
    None,
    /// The worker is at it, or encodes.
    Training,
    /// The update is published.
    Committed,
}

/// The round at hand, from the moment the state before it is current.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) round: RoundId,
    pub(super) started: Time,
    pub(super) deadline: Time,
    pub(super) work: Work,
    commitments: BTreeMap<Hash, Commitment>,
    /// The header that counts for each author: the first that came.
    first: BTreeMap<PeerKey, Hash>,
    /// Authors that signed two.
    twice: BTreeSet<PeerKey>,
    /// What owners make of the updates.
    pub(super) reducing: Reducing,
}

/// What became of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Insertion {
    /// It is the author's first: its frames are wanted.
    First,
    /// It is known.
    Known,
    /// The author signed another one before. Its frames are wanted only if a proposal names it.
    Contradiction,
    /// The author signed too many.
    Refused,
}

impl Exchange {
    pub(super) fn new(
        round: RoundId,
        started: Time,
        patience: Duration,
        reducing: Reducing,
    ) -> Exchange {
        Exchange {
            round,
            started,
            deadline: started + patience,
            work: Work::None,
            commitments: BTreeMap::new(),
            first: BTreeMap::new(),
            twice: BTreeSet::new(),
            reducing,
        }
    }

    /// Takes in an authentic header of this round by a member.
    ///
    /// `wanted`: the frames of it that this peer needs. `named`: a proposal or the decision names it. Then it is taken in whatever else its author signed: an author that
    /// sends other headers to every peer could otherwise keep them all from ever voting for the same ones. Proposals are
    /// bounded, and so are the headers that they name.
    pub(super) fn insert(
        &mut self,
        now: Time,
        header: SignedHeader,
        wanted: BTreeSet<FrameId>,
        named: bool,
    ) -> Insertion {
        let (hash, author) = (header.header.hash(), header.header.peer);
        if self.commitments.contains_key(&hash) {
            return Insertion::Known;
        }
        if self.first.contains_key(&author) {
            self.twice.insert(author);
        }
        let of_author = self.commitments.values().map(|c| c.header.header.peer);
        if !named && of_author.filter(|a| *a == author).count() >= HEADERS_PER_AUTHOR {
            return Insertion::Refused;
        }
        let heard_after = now - self.started;
        let complete_after = wanted.is_empty().then_some(heard_after);
        self.commitments.insert(
            hash,
            Commitment {
                header,
                missing: wanted,
                malformed: BTreeSet::new(),
                heard_after,
                complete_after,
            },
        );
        match self.first.entry(author) {
            std::collections::btree_map::Entry::Vacant(vacant) => {
                vacant.insert(hash);
                Insertion::First
            }
            std::collections::btree_map::Entry::Occupied(_) => Insertion::Contradiction,
        }
    }

    /// A frame is at hand.
    pub(super) fn frame_held(&mut self, now: Time, frame: &FrameId) {
        for commitment in self.commitments.values_mut() {
            if commitment.missing.remove(frame) && commitment.missing.is_empty() {
                commitment.complete_after = Some(now - self.started);
            }
        }
    }

    /// A frame is no frame: the headers that name it never become complete. Returns their authors.
    pub(super) fn frame_malformed(&mut self, frame: &FrameId) -> Vec<PeerKey> {
        let mut authors = Vec::new();
        for commitment in self.commitments.values_mut() {
            if commitment.missing.contains(frame) && commitment.malformed.insert(*frame) {
                authors.push(commitment.header.header.peer);
            }
        }
        authors
    }

    /// The header with this hash.
    pub(super) fn header(&self, hash: &Hash) -> Option<&SignedHeader> {
        self.commitments.get(hash).map(|c| &c.header)
    }

    /// Whether the header is here with all its frames; `None` if it never will be.
    pub(super) fn is_complete(&self, hash: &Hash) -> Option<bool> {
        match self.commitments.get(hash) {
            Some(commitment) if !commitment.malformed.is_empty() => None,
            Some(commitment) => Some(commitment.missing.is_empty()),
            None => Some(false),
        }
    }

    /// Whether a wanted frame of a header is here.
    pub(super) fn is_held(&self, hash: &Hash, frame: &FrameId) -> bool {
        let commitment = self.commitments.get(hash);
        commitment.is_some_and(|commitment| !commitment.missing.contains(frame))
    }

    /// The headers of authors that signed two, as far as they are here. Rule `two-headers-none-summed`.
    pub(super) fn doubled(&self) -> BTreeSet<Hash> {
        if self.twice.is_empty() {
            return BTreeSet::new();
        }
        let commitments = self.commitments.iter();
        let doubled = commitments.filter(|(_, c)| self.twice.contains(&c.header.header.peer));
        doubled.map(|(hash, _)| *hash).collect()
    }

    /// The header of `author` that counts.
    pub(super) fn first_of(&self, author: &PeerKey) -> Option<Hash> {
        self.first.get(author).copied()
    }

    /// When the header of `author` that counts came, counted from the round's start.
    pub(super) fn heard_after(&self, author: &PeerKey) -> Option<Duration> {
        let commitment = self.commitments.get(self.first.get(author)?)?;
        Some(commitment.heard_after)
    }

    /// Whether `author`'s update is here with all its frames.
    pub(super) fn has_update_of(&self, author: &PeerKey) -> bool {
        let hash = self.first.get(author);
        hash.is_some_and(|hash| self.is_complete(hash) == Some(true))
    }

    /// What can be proposed: every complete update, in canonical order, each in all `shards` of the round.
    pub(super) fn accepted(&self, shards: Range<u32>) -> (Vec<DecidedMember>, Vec<DecidedShard>) {
        let members: Vec<DecidedMember> = self
            .first
            .iter()
            .filter(|(_, hash)| self.is_complete(hash) == Some(true))
            .map(|(peer, hash)| DecidedMember {
                peer: *peer,
                header: *hash,
            })
            .collect();
        let shard = DecidedShard {
            reduced: Vec::new(),
            accepted: Bitmap::full(members.len()),
        };
        let shards = vec![shard; shards.len()];
        (members, shards)
    }

    /// When the slowest of `members` was complete; the time until `now` for those that are not.
    pub(super) fn slowest_arrival(&self, now: Time, members: &[DecidedMember]) -> Option<Duration> {
        let until_now = now - self.started;
        let arrivals = members.iter().map(|member| {
            let commitment = self.commitments.get(&member.header);
            commitment
                .and_then(|c| c.complete_after)
                .unwrap_or(until_now)
        });
        arrivals.max()
    }

    /// The longest that wanted frames took to come after their header.
    pub(super) fn longest_transfer(&self) -> Duration {
        let transfers = self.commitments.values().filter_map(|commitment| {
            let complete_after = commitment.complete_after?;
            Some(complete_after.saturating_sub(commitment.heard_after))
        });
        transfers.max().unwrap_or_default()
    }

    /// Whether what one owner of `part` says since then counts without the other. Rules `two-say-so` and
    /// `silent-not-waited-for`.
    pub(super) fn counts_alone(
        &self,
        now: Time,
        silent: &BTreeSet<PeerKey>,
        part: &Part,
        claim: &Claim,
        since: Time,
    ) -> bool {
        let says_so = |owner: &PeerKey| part.claims_of(owner).any(|said| said == claim);
        let mut others = part.owners.iter().filter(|owner| !says_so(owner));
        let alone = self.deadline <= now && others.all(|owner| silent.contains(&owner));
        alone || self.reducing.matures(self.deadline, since) <= now
    }

    /// Number of headers kept.
    pub(super) fn len(&self) -> usize {
        self.commitments.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::{Header, UpdateSummary, WorkCommitment};
    use crate::key::Keypair;
    use crate::manifest::RunId;

    fn header(loss: u64) -> SignedHeader {
        let author = Keypair::from_seed(&[1; 32]);
        let update = UpdateSummary {
            frames: Vec::new(),
            feedback_before: Hash::ZERO,
            feedback_after: Hash::ZERO,
            work: WorkCommitment::default(),
            tokens: 1,
            steps: 1,
            loss_first_micronats: loss,
            loss_last_micronats: loss,
            build: String::new(),
            device: String::new(),
        };
        let header = Header {
            run: RunId(Hash::ZERO),
            round: RoundId(1),
            peer: author.public(),
            state_root: Hash::ZERO,
            update,
        };
        header.sign(&author)
    }

    #[test]
    fn an_author_of_many_headers_cannot_keep_out_the_one_that_is_named() {
        let now = Time(0);
        let mut exchange = Exchange::new(RoundId(1), now, Duration::ZERO, Reducing::default());
        let insert = |exchange: &mut Exchange, loss, named| {
            exchange.insert(now, header(loss), BTreeSet::new(), named)
        };
        assert_eq!(insert(&mut exchange, 1, false), Insertion::First);
        assert_eq!(insert(&mut exchange, 2, false), Insertion::Contradiction);
        assert_eq!(insert(&mut exchange, 3, false), Insertion::Refused);
        assert_eq!(insert(&mut exchange, 3, true), Insertion::Contradiction);
        assert_eq!(exchange.is_complete(&header(3).header.hash()), Some(true));
        assert_eq!(insert(&mut exchange, 4, false), Insertion::Refused);
    }
}
