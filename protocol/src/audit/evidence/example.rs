//! Sound evidence of each kind, for tests of this and other crates.

use super::*;
use crate::audit::segment::{SegmentList, data_hash};
use crate::header::{SignedHeader, UpdateSummary};
use crate::key::PeerKey;
use crate::manifest::{self, Audit, InnerState, RoundId};

/// Tiles of the example's model.
pub const TILES: u64 = 100;

/// The run of the examples.
pub fn manifest() -> Manifest {
    let mut manifest = manifest::example(PeerKey([1; 32]));
    manifest.audit = Some(Audit {
        segments: 5,
        coverage_ppm: 200_000,
        probation_rounds: 20,
        suspension_rounds: 8,
        loss_sequences: 64,
        loss_ppm: 100_000,
        inner: InnerState::Carried,
        tolerances: Vec::new(),
    });
    manifest
}

/// Who audits.
pub fn validator() -> Keypair {
    Keypair::from_seed(&[3; 32])
}

fn list() -> SegmentList {
    let state = |place: u8| StateRoots {
        theta: Hash([place; 32]),
        inner: Hash([place + 100; 32]),
    };
    let work = |place: u64| Work {
        data: data_hash([place, 7]),
        tokens: 32,
        loss_micronats: 5_000_000 - place,
        gradient_norm_micro: 900_000,
    };
    let list = SegmentList::new((0..6).map(state).collect(), (0..5).map(work).collect());
    list.expect("five segments")
}

/// The error feedback before or after the update, by tile.
pub fn feedback(after: bool) -> merkle::Tree {
    let tile = |tile: u64| Hash::of_content(&[&tile.to_le_bytes()[..], &[after.into()]].concat());
    merkle::Tree::from_leaves((0..TILES).map(tile).collect())
}

/// The header that is audited.
pub fn header() -> SignedHeader {
    let author = Keypair::from_seed(&[2; 32]);
    let header = Header {
        run: manifest().run(),
        round: RoundId(4),
        peer: author.public(),
        state_root: Hash([8; 32]),
        update: UpdateSummary {
            frames: Vec::new(),
            feedback_before: feedback(false).root(),
            feedback_after: feedback(true).root(),
            work: list().commitment(),
            tokens: 160,
            steps: 5,
            loss_first_micronats: 5_000_000,
            loss_last_micronats: 4_000_000,
            build: "0.1.0".into(),
            device: "cpu".into(),
        },
    };
    header.sign(&author)
}

/// Evidence that fails the header by `check`.
pub fn evidence(check: Check) -> Evidence {
    let (manifest, header) = (manifest(), header().header);
    let audit = manifest.audit.as_ref().expect("the run has audits");
    let beacon = Beacon::Block {
        number: 7200,
        hash: Hash([21; 32]),
        pulse: Some(challenge::Pulse {
            round: 1_000_000,
            randomness: Hash([22; 32]),
        }),
    };
    let decision = Hash([20; 32]);
    let challenge = challenge::challenge(&header.run, header.round, &decision, &beacon);
    let pick = challenge::pick(&challenge, &header.peer, audit, true).expect("always");
    let list = list();
    let place = pick.segment as usize;
    let (states, tree) = (list.states(), list.tree());
    let update = [0.5, -0.25, 1.0, 0.125];
    let redone = Redone {
        after: StateRoots {
            theta: Hash([70; 32]),
            inner: Hash([71; 32]),
        },
        loss_micronats: 4_900_000,
        gradient_norm_micro: 910_000,
        sketch_seed: pick.sketch,
        // Half of the work: an error of 0.5.
        claimed: Sketch::of(&pick.sketch, update.map(|x| x / 2.0)),
        redone: Sketch::of(&pick.sketch, update),
    };
    let number = challenge::tiles(&pick.tiles, TILES, challenge::TILES)[5];
    let (before, after, index) = (feedback(false), feedback(true), number as usize);
    let tile = WrongTile {
        tile: number,
        tiles: TILES,
        before: before.leaves()[index],
        before_proof: before.proof(index).expect("a tile"),
        after: after.leaves()[index],
        after_proof: after.proof(index).expect("a tile"),
        theta: vec![Hash([80; 32])],
        frame: Hash([81; 32]),
    };
    let segment = ClaimedSegment {
        before: states[place],
        after: states[place + 1],
        work: list.work()[place],
        proof: tree.proof(place).expect("a segment"),
    };
    let is = |other| check == other;
    Evidence {
        verdict: Verdict {
            run: header.run,
            round: header.round,
            peer: header.peer,
            header: header.hash(),
            validator: validator().public(),
            challenge,
            segment: pick.segment,
            check,
            outcome: Outcome::Failed,
            error_ppb: if is(Check::Segment) { 500_000_000 } else { 0 },
            tolerance_ppb: judgement::FLOOR_F32_PPB.into(),
            evidence: Hash::ZERO,
        },
        decision,
        beacon,
        basis: Hash([23; 32]),
        claim: Claim::of(&header),
        segment: (!is(Check::Availability)).then_some(segment),
        machine: Machine {
            build: "0.1.1".into(),
            device: "NVIDIA H100".into(),
        },
        redone: is(Check::Segment).then_some(redone),
        tile: is(Check::Compression).then_some(tile),
        needs: vec![
            Need {
                kind: NeedKind::Data,
                content: Hash([90; 32]),
            },
            Need {
                kind: NeedKind::ThetaBefore,
                content: Hash([92; 32]),
            },
            Need {
                kind: NeedKind::ThetaBefore,
                content: Hash([91; 32]),
            },
        ],
    }
}
