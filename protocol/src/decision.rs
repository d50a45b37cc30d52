//! The decision of a round: which updates count, who joins and leaves, and the root that everyone stood on.
//!
//! Rule `decision-sound`: a decision of round r is well-formed for the roster of r when it links to the decision
//! before, its members are roster members in canonical order, its shards are as many as the run has and their
//! bitmaps cover exactly the members, each shard has one reduction for each group with an accepted member (none in the
//! `gather` plan), each member has at least one accepted shard, and joins and leaves are signed,
//! for this run, sorted by key and without repetition; so are its changes of capacity, which the rules of
//! [`crate::capacity`] allow. Its changes of power are of a form that rule `registered-only`
//! of [`crate::registry`] allows: none in a run without a chain; otherwise sorted by key, one for each join, and only
//! those of members that the rule has at this round. Whether the named bytes and the named snapshot of the registry are
//! at hand is another question, which each voter answers for itself before it votes.

use crate::capacity::{CAPACITIES_MAX, CapacityChange};
use crate::hash::Hash;
use crate::header::FrameRef;
use crate::key::{Keypair, PeerKey, Signature};
use crate::manifest::{Chain, Link, Manifest, RoundId, RunId};
use crate::plan::Layout;
use crate::registry::RegistryMark;
use crate::roster::Roster;
use crate::wire;

/// The most joins in one decision: keeps a decision small whatever the number of askers.
pub const JOINS_MAX: usize = 16;
/// A join is good for this many rounds after the one that it names.
pub const JOIN_ROUNDS_MAX: u64 = 8;

const DECISION_DOMAIN: &str = "gradmesh decision v2";
const JOIN_DOMAIN: &str = "gradmesh join v2";
const LEAVE_DOMAIN: &str = "gradmesh leave v1";

/// A header that a decision names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DecidedMember {
    /// The author.
    pub peer: PeerKey,
    /// Hash of its header.
    pub header: Hash,
}

/// What was decided for one shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DecidedShard {
    /// Which of the decision's members count in this shard.
    pub accepted: Bitmap,
    /// What owners made of them: one for each group with an accepted member, in group order. None in the `gather` plan.
    pub reduced: Vec<DecidedReduction>,
}

/// What an owner made of the accepted frames of one group in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DecidedReduction {
    /// The reduced frame.
    pub frame: FrameRef,
    /// Content hash of the owner residual after it: f32, little-endian, one for each element of the shard. [`Hash::ZERO`]
    /// if nothing is left.
    pub residual: Hash,
}

/// A set of positions below a fixed length.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bitmap {
    length: usize,
    bytes: Vec<u8>,
}

impl Bitmap {
    /// All of `length` positions.
    pub fn full(length: usize) -> Bitmap {
        Bitmap::of(length, 0..length)
    }

    /// These of `length` positions; those beyond the length are left out.
    pub fn of(length: usize, positions: impl IntoIterator<Item = usize>) -> Bitmap {
        let mut bytes = vec![0u8; length.div_ceil(8)];
        for position in positions.into_iter().filter(|place| *place < length) {
            bytes[position / 8] |= 1 << (position % 8);
        }
        Bitmap { length, bytes }
    }

    /// The positions in the set, ascending.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.length).filter(|position| self.contains(*position))
    }

    /// A bitmap of `length` positions, lowest bit first; `None` if the bytes have another length or bits beyond it.
    pub fn from_bytes(length: usize, bytes: &[u8]) -> Option<Bitmap> {
        let fits = bytes.len() == length.div_ceil(8);
        let used = length % 8;
        let spare = used != 0 && bytes.last().is_some_and(|last| last >> used != 0);
        (fits && !spare).then(|| Bitmap {
            length,
            bytes: bytes.to_vec(),
        })
    }

    /// The bytes, lowest bit first.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no positions at all.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether `position` is in the set; `false` beyond the length.
    pub fn contains(&self, position: usize) -> bool {
        position < self.length && self.bytes[position / 8] >> (position % 8) & 1 == 1
    }
}

/// A request to be in the roster, signed by the asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Join {
    /// The run.
    pub run: RunId,
    /// The asker.
    pub peer: PeerKey,
    /// The last round whose decision the asker has applied.
    pub round: RoundId,
    /// Its state root after that round.
    pub state_root: Hash,
    /// How it is connected.
    pub link: Link,
    /// The asker's signature.
    pub signature: Signature,
}

impl Join {
    /// A signed request of `asker`, which stands at `state_root` after `round`.
    pub fn sign(run: RunId, round: RoundId, state_root: Hash, link: Link, asker: &Keypair) -> Join {
        let mut join = Join {
            run,
            peer: asker.public(),
            round,
            state_root,
            link,
            signature: Signature([0; 64]),
        };
        join.signature = asker.sign(&join.hash());
        join
    }

    /// Whether the signature is the asker's.
    pub fn is_authentic(&self) -> bool {
        self.peer.verify(&self.hash(), &self.signature)
    }

    /// The hash that is signed: over everything but the signature.
    fn hash(&self) -> Hash {
        let mut body = Vec::with_capacity(138);
        body.extend_from_slice(&self.run.0.0);
        body.extend_from_slice(&self.peer.0);
        body.extend_from_slice(&self.round.0.to_le_bytes());
        body.extend_from_slice(&self.state_root.0);
        body.extend_from_slice(&self.link.site.0.0);
        body.extend_from_slice(&self.link.capacity.to_le_bytes());
        Hash::in_domain(JOIN_DOMAIN, &body)
    }
}

/// A member's request to be left out from the next round on, signed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leave {
    /// The run.
    pub run: RunId,
    /// The leaver.
    pub peer: PeerKey,
    /// The round in which it left; a leave of an earlier membership is void after a new join.
    pub round: RoundId,
    /// The leaver's signature.
    pub signature: Signature,
}

impl Leave {
    /// A signed leave of `leaver` in `round`.
    pub fn sign(run: RunId, round: RoundId, leaver: &Keypair) -> Leave {
        let hash = leave_hash(&run, &leaver.public(), round);
        Leave {
            run,
            peer: leaver.public(),
            round,
            signature: leaver.sign(&hash),
        }
    }

    /// Whether the signature is the leaver's.
    pub fn is_authentic(&self) -> bool {
        let hash = leave_hash(&self.run, &self.peer, self.round);
        self.peer.verify(&hash, &self.signature)
    }
}

fn leave_hash(run: &RunId, peer: &PeerKey, round: RoundId) -> Hash {
    let mut body = Vec::with_capacity(72);
    body.extend_from_slice(&run.0.0);
    body.extend_from_slice(&peer.0);
    body.extend_from_slice(&round.0.to_le_bytes());
    Hash::in_domain(LEAVE_DOMAIN, &body)
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: RoundId,
    /// Id of the decision of the round before; [`Hash::ZERO`] in the founding round.
    pub previous: Hash,
    /// The state root after the round before, which every voter compared with its own.
    pub state_root: Hash,
    /// The headers that count, in canonical order.
    pub members: Vec<DecidedMember>,
    /// One entry for each shard that the round exchanges; none in the founding round.
    pub shards: Vec<DecidedShard>,
    /// Who comes in with the next round, sorted by key.
    pub joins: Vec<Join>,
    /// Who leaves with the next round, sorted by key.
    pub leaves: Vec<Leave>,
    /// The snapshot of the registry that `powers` are from; `None` if there are none.
    pub registry: Option<RegistryMark>,
    /// Powers that change with the next round, sorted by key: of peers that join, of members whose power is another one,
    /// and 0 of members that are no longer registered.
    pub powers: Vec<(PeerKey, u32)>,
    /// Which members have another capacity from the next round on, sorted by key.
    pub capacities: Vec<CapacityChange>,
}

/// Why a decision is not sound for its round.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecisionFault {
    /// It is for another run, round or history.
    #[error("round {found} after {previous:?} does not continue round {expected}")]
    NotNext {
        /// The round that comes next.
        expected: RoundId,
        /// The round of the decision.
        found: RoundId,
        /// The link that it carries.
        previous: Hash,
    },
    /// A member is not in the roster, or out of order.
    #[error("member {0} is not in the roster or out of order")]
    Member(PeerKey),
    /// The number of shards is wrong for the round, a bitmap does not cover the members, or groups are reduced otherwise than the plan says.
    #[error(
        "{found} shards where the round has {expected}, a bitmap of the wrong length, or reductions against the plan"
    )]
    Shards {
        /// Shards of the round.
        expected: usize,
        /// Shards of the decision.
        found: usize,
    },
    /// A member counts in no shard.
    #[error("member {0} counts in no shard")]
    Idle(PeerKey),
    /// A join is unsigned, stale, repeated, too many, or of a member.
    #[error("join of {0} is not acceptable")]
    Join(PeerKey),
    /// A leave is unsigned, repeated or not of a member.
    #[error("leave of {0} is not acceptable")]
    Leave(PeerKey),
    /// A change of capacity is unsigned, repeated, too many, or against the rules of [`crate::capacity`].
    #[error("change of the capacity of {0} is not acceptable")]
    Capacity(PeerKey),
    /// A snapshot is named without a change by it, or the other way round, or it is one that may not be named.
    #[error("the snapshot {found:?} with {powers} powers may not follow {last:?}")]
    Registry {
        /// The snapshot that it names.
        found: Option<RegistryMark>,
        /// Number of its powers.
        powers: usize,
        /// The newest snapshot that a decision before it named.
        last: Option<RegistryMark>,
    },
    /// A power is repeated, out of order, of nobody who joins or stays, missing, or not to be changed in this round.
    #[error("power of {0} is not acceptable")]
    Power(PeerKey),
}

impl Decision {
    /// The hash by which votes and the next decision name this one.
    pub fn id(&self) -> Hash {
        Hash::in_domain(DECISION_DOMAIN, &wire::encode_decision(self))
    }

    /// Whether any shard of `peer`'s update counts.
    pub fn accepts_any_of(&self, peer: &PeerKey) -> bool {
        self.members
            .iter()
            .position(|member| member.peer == *peer)
            .is_some_and(|place| self.shards.iter().any(|s| s.accepted.contains(place)))
    }

    /// The power that `peer` has from the next round on, if it changes.
    pub fn power_of(&self, peer: &PeerKey) -> Option<u32> {
        let place = self.powers.binary_search_by_key(peer, |change| change.0);
        place.ok().map(|place| self.powers[place].1)
    }

    /// Checks rule `decision-sound`.
    ///
    /// `manifest`: of `run`. `roster`: of the decision's round. `previous`: id of the decision before. `layout`: of `roster`.
    ///
    /// # Errors
    /// The first fault found. Signatures of joins, leaves and capacities are checked last, being dearest.
    pub fn check(
        &self,
        run: &RunId,
        manifest: &Manifest,
        roster: &Roster,
        previous: &Hash,
        layout: &Layout,
    ) -> Result<(), DecisionFault> {
        if self.run != *run || self.round != roster.round() || self.previous != *previous {
            return Err(DecisionFault::NotNext {
                expected: roster.round(),
                found: self.round,
                previous: self.previous,
            });
        }
        let mut last = None;
        for member in &self.members {
            if !roster.contains(&member.peer) || last >= Some(member.peer) {
                return Err(DecisionFault::Member(member.peer));
            }
            last = Some(member.peer);
        }
        let founding = self.round == RoundId::FOUNDING;
        let shards = if founding {
            0
        } else {
            layout.shards_of(self.round).len()
        };
        let covered = |shard: &DecidedShard| {
            shard.accepted.len() == self.members.len()
                && layout.accepted_groups(&self.members, &shard.accepted).len()
                    == shard.reduced.len()
        };
        if self.shards.len() != shards || !self.shards.iter().all(covered) {
            return Err(DecisionFault::Shards {
                expected: shards,
                found: self.shards.len(),
            });
        }
        if let Some(idle) = self.members.iter().find(|m| !self.accepts_any_of(&m.peer)) {
            return Err(DecisionFault::Idle(idle.peer));
        }
        self.check_powers(manifest, roster)?;
        self.check_changes(roster)
    }

    fn check_powers(&self, manifest: &Manifest, roster: &Roster) -> Result<(), DecisionFault> {
        let fits = match (&manifest.chain, &self.registry) {
            (Chain::None, Some(_)) => false,
            (Chain::None | Chain::Subnet(_), None) => self.powers.is_empty(),
            (Chain::Subnet(subnet), Some(mark)) => {
                !self.powers.is_empty()
                    && mark.block.is_multiple_of(subnet.snapshot_blocks.into())
                    && mark.follows(roster.registry())
            }
        };
        if !fits {
            return Err(DecisionFault::Registry {
                found: self.registry,
                powers: self.powers.len(),
                last: roster.registry(),
            });
        }
        let epoch = manifest.begins_epoch(self.round);
        let mut last = None;
        for (peer, power) in &self.powers {
            let acceptable = last < Some(*peer)
                && match roster.member(peer) {
                    Some(member) => {
                        let due = *power == 0 || epoch && *power != member.power;
                        due && self.leaves.iter().all(|leave| leave.peer != *peer)
                    }
                    None => *power > 0 && self.joins.iter().any(|join| join.peer == *peer),
                };
            if !acceptable {
                return Err(DecisionFault::Power(*peer));
            }
            last = Some(*peer);
        }
        let chain = matches!(manifest.chain, Chain::Subnet(_));
        match self
            .joins
            .iter()
            .find(|join| chain && self.power_of(&join.peer).is_none())
        {
            Some(join) => Err(DecisionFault::Power(join.peer)),
            None => Ok(()),
        }
    }

    fn check_changes(&self, roster: &Roster) -> Result<(), DecisionFault> {
        let mut last = None;
        for (place, join) in self.joins.iter().enumerate() {
            let fresh = join.round <= self.round
                && self.round.0 <= join.round.0.saturating_add(JOIN_ROUNDS_MAX);
            let acceptable = place < JOINS_MAX
                && last < Some(join.peer)
                && join.run == self.run
                && fresh
                && !roster.contains(&join.peer)
                && join.is_authentic();
            if !acceptable {
                return Err(DecisionFault::Join(join.peer));
            }
            last = Some(join.peer);
        }
        let mut last = None;
        for leave in &self.leaves {
            let member = roster.position(&leave.peer).map(|p| roster.members()[p]);
            let acceptable = last < Some(leave.peer)
                && leave.run == self.run
                && leave.round <= self.round
                && member.is_some_and(|member| member.since <= leave.round)
                && leave.is_authentic();
            if !acceptable {
                return Err(DecisionFault::Leave(leave.peer));
            }
            last = Some(leave.peer);
        }
        let mut last = None;
        for (place, change) in self.capacities.iter().enumerate() {
            let acceptable = place < CAPACITIES_MAX
                && last < Some(change.peer)
                && change.run == self.run
                && change.suits(roster)
                && change.is_authentic();
            if !acceptable {
                return Err(DecisionFault::Capacity(change.peer));
            }
            last = Some(change.peer);
        }
        Ok(())
    }
}
