//! The registry: what a finalized block of the chain says about who may take part, and with how many votes.
//!
//! In a chain run ([`crate::manifest::Chain::Subnet`]) only peers that the subnet registers may be members. Every peer reads the registry
//! from its own node of the chain, at the finalized blocks whose number is a multiple of the manifest's
//! `snapshot_blocks`. A decision that changes the membership names the snapshot that it goes by, so that everybody who has
//! the decisions, and no chain, computes the same rosters.
//!
//! Rule `registered-only`: a decision names a snapshot exactly if it changes anything by it, never an older one than a
//! decision before did, and then its `powers` are what [`Registry::changes`] gives for that snapshot: the power of each
//! peer that joins, power 0 for each member that the snapshot lacks, and in the first decision of an epoch the new power
//! of each member whose power is another one. A decision without a snapshot has no joins in a chain run. A voter that
//! has the named snapshot checks all of this. One that has it not yet gives no verdict until it comes, and blames nobody.
//!
//! Rule `last-but-one`: a proposer goes by its newest snapshot but one, so that voters whose view of the chain is up to
//! `snapshot_blocks` behind its own can tell. A removal or a join is late by one snapshot for it. By the newest it would
//! save that time and lose an attempt of the agreement whenever a quorum is not as fast as the proposer; a wait in
//! seconds would have to be guessed for chains whose blocks take a quarter of a second and for those that take twelve.
//! A proposer that has only one goes by that, and the launcher, which decides the founding round alone, by its newest.
//!
//! Rule `quiet-attempts`: from attempt [`QUIET_ATTEMPT`] on a proposer changes nothing by the registry, so that rounds
//! are decided even where a third of the voters has lost the chain for hours.
//!
//! Rule `quorum-vouches`: a voter that does not have the named snapshot takes a proposal for which a quorum has prevoted:
//! one of them at least is honest and had it. Otherwise a decision that some voters are locked on could name a snapshot
//! that nobody who restarted since can get any more.
//!
//! Rule `enough-stay`: members are removed, and powers of members changed, only if the peers that are known to be there
//! hold a quorum of the next roster: those with an update in this very decision and those that join with it (in the
//! founding round everybody counts as there). Otherwise all of that is put off to a later round; joins are not. The
//! removed still vote on their own removal. Members that are gone leave by absence within `absent_rounds_max` rounds, so
//! that removals wait no longer than until a round counts the updates of a quorum of those who stay. If nobody would stay
//! the members remain until a registered peer has joined.
//!
//! Rule `stake-votes`: with [`Powers::Stake`] the power of a peer is its share of the stake of all registered peers in
//! ten thousandths, rounded down, and at least 1. Roster members are a part of the registered peers, so a share of the
//! votes may be larger than the share of the stake. There is no cap: in a run with `trust = "byzantine"` a peer with more
//! than a third of the roster's power can stop the run by itself, and one with more than two thirds decides it alone.
//! Where that is not wanted, powers are to be equal.

use std::collections::BTreeMap;

use crate::agreement::quorum;
use crate::decision::Decision;
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::{Manifest, Powers, RoundId};
use crate::roster::{Member, Roster};

/// The first attempt of a round in which nothing is changed by the registry: the proposers of three attempts have failed.
pub const QUIET_ATTEMPT: u32 = 3;
/// The most peers in a registry: sixteen times the 256 neurons of today's subnets.
pub const ENTRIES_MAX: usize = 4096;
/// The parts into which rule `stake-votes` divides the stake.
pub const STAKE_PARTS: u64 = 10_000;

/// The peers that a finalized block registers, with their powers, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    mark: RegistryMark,
    entries: Vec<(PeerKey, u32)>,
}

/// Names a snapshot of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegistryMark {
    /// Number of the finalized block.
    pub block: u64,
    /// Its hash.
    pub block_hash: Hash,
}

impl RegistryMark {
    /// Whether a decision may name this snapshot when `last` is the newest that one before it named.
    pub fn follows(&self, last: Option<RegistryMark>) -> bool {
        last.is_none_or(|last| self.block > last.block || *self == last)
    }
}

/// Why entries are no registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryFault {
    /// More than [`ENTRIES_MAX`].
    #[error("{0} peers in a registry; at most {ENTRIES_MAX}")]
    TooMany(usize),
    /// A peer comes twice, or after a larger key.
    #[error("peer {0} is repeated or out of order")]
    Order(PeerKey),
    /// A registered peer has at least one vote.
    #[error("peer {0} is registered with power 0")]
    NoPower(PeerKey),
}

impl Registry {
    /// What block `mark` registers.
    ///
    /// `entries`: peers with their powers, sorted by key.
    ///
    /// # Errors
    /// [`RegistryFault`]: whoever read the chain made a mistake.
    pub fn new(
        mark: RegistryMark,
        entries: Vec<(PeerKey, u32)>,
    ) -> Result<Registry, RegistryFault> {
        if entries.len() > ENTRIES_MAX {
            return Err(RegistryFault::TooMany(entries.len()));
        }
        let mut last = None;
        for (peer, power) in &entries {
            if last >= Some(peer) {
                return Err(RegistryFault::Order(*peer));
            }
            if *power == 0 {
                return Err(RegistryFault::NoPower(*peer));
            }
            last = Some(peer);
        }
        Ok(Registry { mark, entries })
    }

    /// Which block it is of.
    pub fn mark(&self) -> RegistryMark {
        self.mark
    }

    /// The registered peers with their powers, sorted by key.
    pub fn entries(&self) -> &[(PeerKey, u32)] {
        &self.entries
    }

    /// The power of `peer`; `None` if it is not registered.
    pub fn power_of(&self, peer: &PeerKey) -> Option<u32> {
        let place = self.entries.binary_search_by_key(peer, |entry| entry.0);
        place.ok().map(|place| self.entries[place].1)
    }

    /// What `decision` has to change by this snapshot: its `powers`, by rules `registered-only` and `enough-stay`.
    ///
    /// `roster`: of the decision's round. The decision's own `registry` and `powers` are not looked at.
    ///
    /// # Errors
    /// A peer that joins and is not registered.
    pub fn changes(
        &self,
        roster: &Roster,
        decision: &Decision,
        manifest: &Manifest,
    ) -> Result<Vec<(PeerKey, u32)>, PeerKey> {
        let mut joins = Vec::with_capacity(decision.joins.len());
        for join in &decision.joins {
            joins.push((join.peer, self.power_of(&join.peer).ok_or(join.peer)?));
        }
        let epoch = manifest.begins_epoch(decision.round);
        let stays = |member: &&Member| decision.leaves.iter().all(|l| l.peer != member.peer);
        let members = roster.members().iter().filter(stays).filter_map(|member| {
            let power = self.power_of(&member.peer).unwrap_or(0);
            let due = power == 0 || epoch && power != member.power;
            due.then_some((member.peer, power))
        });
        let mut changes: Vec<_> = members.chain(joins.iter().copied()).collect();
        changes.sort_unstable();
        let full = Decision {
            registry: Some(self.mark),
            powers: changes,
            ..decision.clone()
        };
        if enough_stay(roster, &full, manifest) {
            Ok(full.powers)
        } else {
            joins.sort_unstable();
            Ok(joins)
        }
    }
}

/// Whether those who are known to be there hold a quorum of the roster after `decision`.
fn enough_stay(roster: &Roster, decision: &Decision, manifest: &Manifest) -> bool {
    let next = roster.after(decision, manifest);
    let here = |member: &&Member| {
        roster.round() == RoundId::FOUNDING
            || member.since == next.round()
            || decision.accepts_any_of(&member.peer)
    };
    let members = next.members().iter().filter(here);
    let power: u64 = members.map(|member| u64::from(member.power)).sum();
    power >= quorum(manifest.trust.mode, next.power())
}

/// The powers of registered peers from their stakes, sorted by key.
///
/// `stakes`: in rao (billionths of a token), one entry for each registration. Registrations that name the same peer lend
/// it their stakes together, so that nobody can lower another peer's power by naming it.
pub fn powers(
    rule: Powers,
    stakes: impl IntoIterator<Item = (PeerKey, u64)>,
) -> Vec<(PeerKey, u32)> {
    let mut peers = BTreeMap::<PeerKey, u128>::new();
    for (peer, stake) in stakes {
        *peers.entry(peer).or_default() += u128::from(stake);
    }
    let total: u128 = peers.values().sum();
    let power = |stake: u128| match rule {
        Powers::Equal => 1,
        Powers::Stake => {
            let parts = (stake * u128::from(STAKE_PARTS)).checked_div(total);
            // A share of the parts is at most all of them.
            parts.unwrap_or(0).max(1) as u32
        }
    };
    peers
        .into_iter()
        .map(|(peer, stake)| (peer, power(stake)))
        .collect()
}
