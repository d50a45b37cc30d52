//! The roster: who is in a round, in canonical order, and how rosters follow from decisions.
//!
//! Rule `roster-follows`: the roster of round r + 1 is a pure function of the roster of round r and the decision of
//! round r. Leaves go first, then peers that the registry of the decision no longer has, then peers that were absent too
//! often, then joins come in, up to the manifest's limit, and changed capacities take effect (rules of [`crate::capacity`]). A peer is absent in a round whose decision accepts none of its
//! shards. Nobody votes on an absence: every peer counts it in the decisions. Powers change with the roster: a decision is
//! voted on with the powers that the decisions before it gave.

use crate::decision::Decision;
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::{Link, Manifest, RoundId};
use crate::registry::RegistryMark;

const ROSTER_DOMAIN: &str = "gradmesh roster v3";

/// One member of a roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The peer.
    pub peer: PeerKey,
    /// The first round that it is a member of.
    pub since: RoundId,
    /// Decided rounds in a row without it.
    pub absent_rounds: u32,
    /// Its votes, at least one; one for everybody in a run without a chain.
    pub power: u32,
    /// How it is connected, by its join and what it said since.
    pub link: Link,
    /// The first round in which it has this capacity.
    pub capacity_since: RoundId,
}

/// The members of one round, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    round: RoundId,
    members: Vec<Member>,
    registry: Option<RegistryMark>,
}

impl Roster {
    /// The roster of the founding round: the launcher alone, registered or not. Its own decision puts it out if it is not.
    pub fn founding(manifest: &Manifest) -> Roster {
        Roster {
            round: RoundId::FOUNDING,
            members: vec![Member {
                peer: manifest.launcher,
                since: RoundId::FOUNDING,
                absent_rounds: 0,
                power: 1,
                link: manifest.launcher_link,
                capacity_since: RoundId::FOUNDING,
            }],
            registry: None,
        }
    }

    /// The round that this roster is for.
    pub fn round(&self) -> RoundId {
        self.round
    }

    /// The members, in canonical order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is left; such a run cannot go on.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether `peer` is a member.
    pub fn contains(&self, peer: &PeerKey) -> bool {
        self.position(peer).is_some()
    }

    /// The place of `peer` in canonical order.
    pub fn position(&self, peer: &PeerKey) -> Option<usize> {
        self.members.binary_search_by_key(peer, |m| m.peer).ok()
    }

    /// The member `peer`.
    pub fn member(&self, peer: &PeerKey) -> Option<&Member> {
        self.position(peer).map(|place| &self.members[place])
    }

    /// The voting power of all members together: below 2^38, so that shares of it are computed in u64.
    pub fn power(&self) -> u64 {
        self.members.iter().map(|m| u64::from(m.power)).sum()
    }

    /// The newest snapshot of the registry that a decision before this round named.
    pub fn registry(&self) -> Option<RegistryMark> {
        self.registry
    }

    /// The roster of the next round, by rule `roster-follows`.
    ///
    /// `decision`: of this roster's round, already checked against it.
    ///
    /// # Panics
    /// If `decision` is of another round.
    pub fn after(&self, decision: &Decision, manifest: &Manifest) -> Roster {
        assert_eq!(self.round, decision.round, "decision of another round");
        let next = self.round.next();
        let mut members: Vec<Member> = self
            .members
            .iter()
            .filter(|member| decision.leaves.iter().all(|l| l.peer != member.peer))
            .filter(|member| decision.power_of(&member.peer) != Some(0))
            .map(|member| Member {
                power: decision.power_of(&member.peer).unwrap_or(member.power),
                absent_rounds: if self.round == RoundId::FOUNDING
                    || decision.accepts_any_of(&member.peer)
                {
                    0
                } else {
                    member.absent_rounds + 1
                },
                ..*member
            })
            .collect();
        for change in &decision.capacities {
            if let Some(member) = members.iter_mut().find(|m| m.peer == change.peer) {
                member.link.capacity = change.capacity;
                member.capacity_since = next;
            }
        }
        // A round that nobody got through says something about the network, not about its members.
        if !decision.members.is_empty() {
            members.retain(|m| m.absent_rounds < manifest.trust.absent_rounds_max);
        }
        for join in &decision.joins {
            let full = members.len() >= manifest.trust.peers_max as usize;
            if !full && members.iter().all(|m| m.peer != join.peer) {
                members.push(Member {
                    peer: join.peer,
                    since: next,
                    absent_rounds: 0,
                    power: decision.power_of(&join.peer).unwrap_or(1),
                    link: join.link,
                    capacity_since: next,
                });
            }
        }
        members.sort_by_key(|m| m.peer);
        Roster {
            round: next,
            members,
            registry: decision.registry.or(self.registry),
        }
    }

    /// A hash over round, registry and members, for logs and comparisons.
    pub fn hash(&self) -> Hash {
        let mut body = Vec::with_capacity(48 + 90 * self.members.len());
        body.extend_from_slice(&self.round.0.to_le_bytes());
        match &self.registry {
            None => body.push(0),
            Some(mark) => {
                body.push(1);
                body.extend_from_slice(&mark.block.to_le_bytes());
                body.extend_from_slice(&mark.block_hash.0);
            }
        }
        for member in &self.members {
            body.extend_from_slice(&member.peer.0);
            body.extend_from_slice(&member.since.0.to_le_bytes());
            body.extend_from_slice(&member.absent_rounds.to_le_bytes());
            body.extend_from_slice(&member.power.to_le_bytes());
            body.extend_from_slice(&member.link.site.0.0);
            body.extend_from_slice(&member.link.capacity.to_le_bytes());
            body.extend_from_slice(&member.capacity_since.0.to_le_bytes());
        }
        Hash::in_domain(ROSTER_DOMAIN, &body)
    }
}
