//! Who gets which frames from whom.
//!
//! A plan is a pure function of the roster. `gather`: every peer gets every other peer's frames. With `n` peers and
//! `c` bytes of frames each, a peer receives `(n - 1) c` bytes in one hop; nothing less can give a peer the exact
//! frames of all others, because they are `(n - 1) c` bytes that it does not have. What it sends depends on who asks:
//! the author serves until another peer holds the frame, and sources are rotated so that askers spread.

use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::SiteId;
use crate::roster::Roster;

/// The most reductions of one decision: shards times groups. A plan that would need more is not chosen, so that a
/// proposal fits a gossip message.
pub const REDUCTIONS_MAX: usize = 8192;

/// The members whose frames of a shard are summed by one pair of owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub Hash);

impl GroupId {
    /// Everybody: the one group of the `reduce` plan.
    pub const ALL: GroupId = GroupId(Hash::ZERO);

    /// The members in `site`: a group of the `hier` plan.
    pub fn of_site(site: SiteId) -> GroupId {
        GroupId(site.0)
    }
}

/// How the frames of a round travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Everyone gets everyone's frames. No owner state.
    Gather,
}

impl Plan {
    /// Bytes that one of `peers` receives when each peer's update is `update_bytes` long.
    pub fn received_bytes_per_peer(self, peers: u64, update_bytes: u64) -> u64 {
        match self {
            Plan::Gather => peers.saturating_sub(1).saturating_mul(update_bytes),
        }
    }

    /// Hops from an author to the last receiver.
    pub fn hops(self) -> u32 {
        match self {
            Plan::Gather => 1,
        }
    }

    /// Whom `asker` asks for a frame of `author`, best first: the author, then the others of `roster`, each asker
    /// beginning after its own place so that they do not all ask the same one.
    pub fn sources(self, roster: &Roster, asker: &PeerKey, author: &PeerKey) -> Vec<PeerKey> {
        match self {
            Plan::Gather => {
                let members = roster.members();
                let start = members.partition_point(|member| member.peer <= *asker);
                let others = members[start..].iter().chain(&members[..start]);
                std::iter::once(*author)
                    .chain(others.map(|m| m.peer).filter(|p| p != author))
                    .filter(|peer| peer != asker)
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::decision::{Decision, Join};
    use crate::key::Keypair;
    use crate::manifest::{Link, RoundId, RunId, example};

    fn roster(peers: u8) -> Roster {
        let keys: Vec<_> = (1..=peers).map(|i| Keypair::from_seed(&[i; 32])).collect();
        let run = RunId(Hash::ZERO);
        let joins = keys[1..].iter();
        let decision = Decision {
            run,
            round: RoundId::FOUNDING,
            previous: Hash::ZERO,
            state_root: Hash::ZERO,
            members: Vec::new(),
            shards: Vec::new(),
            joins: joins
                .map(|key| {
                    let link = Link::alone(&key.public());
                    Join::sign(run, RoundId::FOUNDING, Hash::ZERO, link, key)
                })
                .collect(),
            leaves: Vec::new(),
            registry: None,
            powers: Vec::new(),
        };
        let manifest = example(keys[0].public());
        Roster::founding(&manifest).after(&decision, &manifest)
    }

    /// Carries every frame out by hand: who holds what after each hop, and how much each peer received.
    #[test]
    fn gather_gives_everyone_everything_in_the_hops_and_bytes_that_it_says() {
        const UPDATE_BYTES: u64 = 1000;
        for peers in 1..=9u8 {
            let roster = roster(peers);
            assert_eq!(roster.len(), usize::from(peers));
            let all: BTreeSet<PeerKey> = roster.members().iter().map(|m| m.peer).collect();
            for asker in &all {
                let (mut held, mut received) = (BTreeSet::from([*asker]), 0);
                for author in all.iter().filter(|author| *author != asker) {
                    let sources = Plan::Gather.sources(&roster, asker, author);
                    // One hop: the best source is the author, which holds its own frames from the start.
                    assert_eq!(sources.first(), Some(author));
                    let distinct: BTreeSet<PeerKey> = sources.iter().copied().collect();
                    let others = all.iter().filter(|peer| *peer != asker).copied();
                    assert_eq!(distinct, others.collect(), "everybody else may hold it");
                    assert_eq!(sources.len(), distinct.len());
                    held.insert(*author);
                    received += UPDATE_BYTES;
                }
                assert_eq!(held, all);
                let said = Plan::Gather.received_bytes_per_peer(peers.into(), UPDATE_BYTES);
                assert_eq!(said, received);
            }
        }
        assert_eq!(Plan::Gather.hops(), 1);
    }
}
