//! The roster: who is in a round, in canonical order, and how rosters follow from decisions.
//!
//! Rule `roster-follows`: the roster of round r + 1 is a pure function of the roster of round r and the decision of
//! round r. Leaves go first, then peers that were absent too often, then joins come in, up to the manifest's limit.
//! A peer is absent in a round whose decision accepts none of its shards. Nobody votes on an absence: every peer
//! counts it in the decisions.

use crate::decision::Decision;
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::{Manifest, RoundId};

const ROSTER_DOMAIN: &str = "gradmesh roster v1";

/// One member of a roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The peer.
    pub peer: PeerKey,
    /// The first round that it is a member of.
    pub since: RoundId,
    /// Decided rounds in a row without it.
    pub absent_rounds: u32,
}

/// The members of one round, sorted by key. Each has one vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    round: RoundId,
    members: Vec<Member>,
}

impl Roster {
    /// The roster of the founding round: the launcher alone.
    pub fn founding(manifest: &Manifest) -> Roster {
        Roster {
            round: RoundId::FOUNDING,
            members: vec![Member {
                peer: manifest.launcher,
                since: RoundId::FOUNDING,
                absent_rounds: 0,
            }],
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
            .map(|member| Member {
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
                });
            }
        }
        members.sort_by_key(|m| m.peer);
        Roster {
            round: next,
            members,
        }
    }

    /// A hash over round and members, for logs and comparisons.
    pub fn hash(&self) -> Hash {
        let mut body = Vec::with_capacity(8 + 44 * self.members.len());
        body.extend_from_slice(&self.round.0.to_le_bytes());
        for member in &self.members {
            body.extend_from_slice(&member.peer.0);
            body.extend_from_slice(&member.since.0.to_le_bytes());
            body.extend_from_slice(&member.absent_rounds.to_le_bytes());
        }
        Hash::in_domain(ROSTER_DOMAIN, &body)
    }
}
