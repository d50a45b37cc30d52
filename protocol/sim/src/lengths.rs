//! How long the messages of a round are: such messages are made and encoded, with hashes that stand for any.

use arc_malachitebft_core_types::{NilOrVal, Round, VoteType};
use gradmesh_protocol::agreement::{Message, Proposal, SignedProposal, SignedVote, Vote};
use gradmesh_protocol::decision::{
    Bitmap, DecidedMember, DecidedReduction, DecidedShard, Decision,
};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameRef, Header, SignedHeader, UpdateSummary, WorkCommitment};
use gradmesh_protocol::key::{PeerKey, Signature};
use gradmesh_protocol::manifest::{RoundId, RunId};
use gradmesh_protocol::plan::GroupId;
use gradmesh_protocol::reduction::{Reduction, Reductions, SignedReductions};
use gradmesh_protocol::wire::Gossip;

const ANY: Hash = Hash([0x5a; 32]);
const RUN: RunId = RunId(ANY);
const PEER: PeerKey = PeerKey([0x5a; 32]);
const SIGNATURE: Signature = Signature([0x5a; 64]);
/// A round some way into a run: figures are coded by their size.
const ROUND: RoundId = RoundId(1000);

fn frame(bytes: u64) -> FrameRef {
    FrameRef { hash: ANY, bytes }
}

fn length(gossip: &Gossip) -> u64 {
    gossip.encode(&RUN).len() as u64
}

/// Of a header with `shards` frames of `frame_bytes` bytes.
pub fn header(shards: u32, frame_bytes: u64) -> u64 {
    let update = UpdateSummary {
        frames: vec![frame(frame_bytes); shards as usize],
        feedback_before: ANY,
        feedback_after: ANY,
        work: WorkCommitment::default(),
        tokens: 1 << 20,
        steps: 30,
        loss_first_micronats: 3_000_000,
        loss_last_micronats: 3_000_000,
        build: env!("CARGO_PKG_VERSION").into(),
        device: "cpu".into(),
    };
    let header = Header {
        run: RUN,
        round: ROUND,
        peer: PEER,
        state_root: ANY,
        update,
    };
    length(&Gossip::Header(Box::new(SignedHeader {
        header,
        signature: SIGNATURE,
    })))
}

/// Of an owner's list of `entries` reductions of the updates of `members` members.
pub fn reductions(members: usize, entries: u32, frame_bytes: u64) -> u64 {
    let entry = |shard| Reduction {
        group: GroupId(ANY),
        shard,
        accepted: Bitmap::full(members),
        frame: frame(frame_bytes),
        residual_before: ANY,
        residual: ANY,
    };
    let reductions = Reductions {
        run: RUN,
        round: ROUND,
        owner: PEER,
        headers: vec![ANY; members],
        reductions: (0..entries).map(entry).collect(),
    };
    length(&Gossip::Reductions(Box::new(SignedReductions {
        reductions,
        signature: SIGNATURE,
    })))
}

/// Of a proposal that accepts all shards of `members` members, with a reduction for each of `groups` groups in each shard.
pub fn proposal(members: usize, shards: u32, groups: usize, frame_bytes: u64) -> u64 {
    let member = DecidedMember {
        peer: PEER,
        header: ANY,
    };
    let reduction = DecidedReduction {
        frame: frame(frame_bytes),
        residual: ANY,
    };
    let shard = DecidedShard {
        accepted: Bitmap::full(members),
        reduced: vec![reduction; groups],
    };
    let value = Decision {
        run: RUN,
        round: ROUND,
        previous: ANY,
        state_root: ANY,
        members: vec![member; members],
        shards: vec![shard; shards as usize],
        joins: Vec::new(),
        leaves: Vec::new(),
        registry: None,
        powers: Vec::new(),
        capacities: Vec::new(),
    };
    let proposal = Proposal {
        height: ROUND,
        round: Round::new(0),
        value,
        pol_round: Round::Nil,
        proposer: PEER,
    };
    let signed = SignedProposal::new(proposal, SIGNATURE);
    length(&Gossip::Agreement(Message::Proposal(Box::new(signed))))
}

/// Of a vote for a decision.
pub fn vote() -> u64 {
    let vote = Vote {
        kind: VoteType::Prevote,
        height: ROUND,
        round: Round::new(0),
        value: NilOrVal::Val(ANY),
        voter: PEER,
    };
    let signed = SignedVote::new(vote, SIGNATURE);
    length(&Gossip::Agreement(Message::Vote(signed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_hashes_is_as_long_as_these_and_some_framing() {
        // A hash, a length and two tags for each frame.
        let frames = header(1001, 300_000) - header(1, 300_000);
        assert!((38_000..45_000).contains(&frames), "{frames}");
        let entries = reductions(64, 101, 300_000) - reductions(64, 1, 300_000);
        // Group, frame and two residuals of 32 bytes each, and a bitmap of 8.
        assert!((13_600..16_500).contains(&entries), "{entries}");
        let shards = proposal(64, 1000, 1, 300_000) - proposal(64, 0, 1, 300_000);
        assert!((72_000..95_000).contains(&shards), "{shards}");
        assert!((100..300).contains(&vote()), "{}", vote());
    }
}
