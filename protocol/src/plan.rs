//! Who gets which frames from whom.
//!
//! A plan is a pure function of the roster. `gather`: every peer gets every other peer's frames. With `n` peers and
//! `c` bytes of frames each, a peer receives `(n - 1) c` bytes in one hop; nothing less can give a peer the exact
//! frames of all others, because they are `(n - 1) c` bytes that it does not have. What it sends depends on who asks:
//! the author serves until another peer holds the frame, and sources are rotated so that askers spread.

use crate::key::PeerKey;
use crate::roster::Roster;

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

    /// Whether `peer` needs the frames of `author` to take part in the round.
    pub fn needs(self, peer: &PeerKey, author: &PeerKey) -> bool {
        match self {
            Plan::Gather => peer != author,
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
