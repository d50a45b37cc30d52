//! Evidence that holds, and everything that can be changed about it.

use super::encoding::{decode, encode};
use super::example::{TILES, evidence, feedback, header, manifest, validator};
use super::*;
use crate::audit::cbor::CborFault;
use crate::manifest::RoundId;

const CHECKS: [Check; 4] = [
    Check::Segment,
    Check::Compression,
    Check::Start,
    Check::Availability,
];

fn signed(check: Check) -> SignedEvidence {
    evidence(check).sign(&validator())
}

#[test]
fn evidence_of_each_kind_reads_back_and_holds() {
    for check in CHECKS {
        let signed = signed(check);
        let bytes = signed.encode();
        assert_eq!(SignedEvidence::decode(&bytes), Ok(signed.clone()));
        assert_eq!(signed.address(), Hash::of_content(&bytes));
        assert_eq!(signed.check(&manifest()), Ok(()));
        assert!(signed.evidence.is_about(&header().header));
        assert_eq!(signed.verdict().evidence, signed.address());
    }
}

#[test]
fn the_bytes_of_evidence_are_pinned() {
    let addresses = CHECKS.map(|check| signed(check).address().short());
    assert_eq!(addresses, ["82cc34ec", "be2c3ed4", "06df68e0", "95e1db78"]);
}

#[test]
fn the_signature_covers_everything_and_is_the_validators() {
    let good = signed(Check::Segment);
    let mut changed = good.clone();
    changed.evidence.needs[0].content = Hash::ZERO;
    assert_eq!(changed.check(&manifest()), Err(EvidenceFault::Signature));
    let other = Keypair::from_seed(&[4; 32]);
    let stolen = good.evidence.clone().sign(&other);
    assert_eq!(stolen.check(&manifest()), Err(EvidenceFault::Signature));
}

/// The fault of evidence that is changed by `change`.
fn fault(check: Check, change: impl FnOnce(&mut Evidence)) -> Result<(), EvidenceFault> {
    let mut evidence = evidence(check);
    change(&mut evidence);
    evidence.check(&manifest())
}

#[test]
fn challenge_and_pick_follow_from_public_data() {
    let segment = Check::Segment;
    let of_another = fault(segment, |e| e.decision = Hash::ZERO);
    assert!(matches!(of_another, Err(EvidenceFault::Challenge { .. })));
    let of_another = fault(segment, |e| e.beacon = Beacon::Decision(Hash::ZERO));
    assert!(matches!(of_another, Err(EvidenceFault::Challenge { .. })));
    let of_another = fault(segment, |e| e.verdict.round = RoundId(5));
    assert!(matches!(of_another, Err(EvidenceFault::Challenge { .. })));
    let picked = evidence(segment).verdict.segment;
    let other = (picked + 1) % 5;
    assert_eq!(
        fault(segment, |e| e.verdict.segment = other),
        Err(EvidenceFault::Segment {
            expected: picked,
            found: other
        })
    );
    let run = fault(segment, |e| e.verdict.run.0 = Hash::ZERO);
    assert_eq!(run, Err(EvidenceFault::OtherRun));
    let circular = fault(segment, |e| e.verdict.evidence = Hash([1; 32]));
    assert_eq!(circular, Err(EvidenceFault::Circular(Hash([1; 32]))));
    let mut unaudited = manifest();
    unaudited.audit = None;
    let none = evidence(segment).check(&unaudited);
    assert_eq!(none, Err(EvidenceFault::OtherRun));
}

#[test]
fn a_segment_belongs_to_the_headers_root() {
    let with = |change: fn(&mut ClaimedSegment)| {
        fault(Check::Segment, |e| change(e.segment.as_mut().unwrap()))
    };
    let leaf = Err(EvidenceFault::Leaf);
    assert_eq!(with(|s| s.before.theta = Hash::ZERO), leaf);
    assert_eq!(with(|s| s.after.inner = Hash::ZERO), leaf);
    assert_eq!(with(|s| s.work.tokens += 1), leaf);
    assert_eq!(with(|s| s.proof.push(Hash::ZERO)), leaf);
    assert_eq!(with(|s| s.proof.clear()), leaf);
    let root = fault(Check::Segment, |e| e.claim.work.segments_root = Hash::ZERO);
    assert_eq!(root, leaf);
    assert_eq!(
        fault(Check::Start, |e| e.claim.tokens = 31),
        Err(EvidenceFault::Tokens {
            segment: 32,
            update: 31
        })
    );
}

#[test]
fn each_check_has_its_parts_and_no_others() {
    let part = |name| Err(EvidenceFault::Part(name));
    let segment = fault(Check::Segment, |e| e.segment = None);
    assert_eq!(segment, part("the segment"));
    let redone = fault(Check::Segment, |e| e.redone = None);
    assert_eq!(redone, part("the segment done again"));
    let redone = fault(Check::Start, |e| e.redone = evidence(Check::Segment).redone);
    assert_eq!(redone, part("the segment done again"));
    assert_eq!(
        fault(Check::Compression, |e| e.tile = None),
        part("the tile")
    );
    // What is not to be had may be one thing among others.
    let segment = evidence(Check::Start).segment;
    assert_eq!(fault(Check::Availability, |e| e.segment = segment), Ok(()));
}

#[test]
fn the_outcome_follows_from_error_and_tolerance() {
    let segment = Check::Segment;
    assert_eq!(
        fault(segment, |e| e.verdict.tolerance_ppb = 9_999),
        Err(EvidenceFault::Tolerance {
            expected: 10_000,
            found: 9_999
        })
    );
    for outcome in [Outcome::Passed, Outcome::Grey] {
        let wrong = fault(segment, |e| e.verdict.outcome = outcome);
        assert_eq!(wrong, Err(EvidenceFault::Outcome(outcome)));
        let wrong = fault(Check::Start, |e| e.verdict.outcome = outcome);
        assert_eq!(wrong, Err(EvidenceFault::Outcome(outcome)));
    }
    let small = fault(segment, |e| e.verdict.error_ppb = 7_000);
    assert_eq!(small, Err(EvidenceFault::Outcome(Outcome::Failed)));
    let error = fault(Check::Start, |e| e.verdict.error_ppb = 1);
    assert_eq!(error, Err(EvidenceFault::Outcome(Outcome::Failed)));
    let equal = fault(segment, |e| {
        e.redone.as_mut().unwrap().after.theta = e.segment.as_ref().unwrap().after.theta;
    });
    assert_eq!(equal, Err(EvidenceFault::EqualStates(500_000_000)));
}

#[test]
fn sketches_are_of_the_challenge_and_support_the_error() {
    let with =
        |change: fn(&mut Redone)| fault(Check::Segment, |e| change(e.redone.as_mut().unwrap()));
    let unsupported = Err(EvidenceFault::Sketches(500_000_000));
    assert_eq!(with(|r| r.sketch_seed = Hash::ZERO), unsupported);
    assert_eq!(with(|r| r.claimed = r.redone), unsupported);
    assert_eq!(with(|r| r.redone.bits[0] = f32::NAN.to_bits()), unsupported);
    let more = fault(Check::Segment, |e| e.verdict.error_ppb = 3_000_000_000);
    assert_eq!(more, Err(EvidenceFault::Sketches(3_000_000_000)));
}

#[test]
fn a_tile_is_one_of_those_picked_with_the_feedback_of_the_header() {
    let number = evidence(Check::Compression).tile.unwrap().tile;
    let with = |change: fn(&mut WrongTile)| {
        fault(Check::Compression, |e| change(e.tile.as_mut().unwrap()))
    };
    let wrong = Err(EvidenceFault::Tile(number));
    assert_eq!(with(|t| t.before = Hash::ZERO), wrong);
    assert_eq!(with(|t| t.after_proof.clear()), wrong);
    assert_eq!(with(|t| t.tiles += 1), wrong);
    let before = fault(Check::Compression, |e| e.claim.feedback_before = Hash::ZERO);
    assert_eq!(before, wrong);
    // A tile of the model that was not picked, with its true feedback.
    let good = evidence(Check::Compression);
    let pick = pick(&good);
    let picked = challenge::tiles(&pick.tiles, TILES, challenge::TILES);
    let other = (0..TILES).find(|tile| !picked.contains(tile)).unwrap();
    let index = usize::try_from(other).unwrap();
    let unpicked = fault(Check::Compression, |e| {
        let (before, after) = (feedback(false), feedback(true));
        let tile = e.tile.as_mut().unwrap();
        tile.tile = other;
        tile.before = before.leaves()[index];
        tile.before_proof = before.proof(index).unwrap();
        tile.after = after.leaves()[index];
        tile.after_proof = after.proof(index).unwrap();
    });
    assert_eq!(unpicked, Err(EvidenceFault::Tile(other)));
}

fn pick(evidence: &Evidence) -> challenge::Pick {
    let manifest = manifest();
    let verdict = &evidence.verdict;
    let audit = manifest.audit.as_ref().unwrap();
    challenge::pick(&verdict.challenge, &verdict.peer, audit, true).unwrap()
}

#[test]
fn evidence_is_about_its_header_alone() {
    let about = |change: fn(&mut Evidence)| {
        let mut evidence = evidence(Check::Segment);
        change(&mut evidence);
        evidence.is_about(&header().header)
    };
    assert!(about(|_| ()));
    assert!(!about(|e| e.claim.tokens += 1));
    assert!(!about(|e| e.claim.machine.device.clear()));
    assert!(!about(|e| e.verdict.header = Hash::ZERO));
    assert!(!about(|e| e.verdict.round = RoundId(5)));
}

#[test]
fn other_bytes_for_the_same_thing_are_refused() {
    let good = signed(Check::Segment).encode();
    let unexpected = |at| Err(EvidenceError::Malformed(CborFault::Unexpected(at)));
    let longer = [&good[..], &[0]].concat();
    let trailing = CborFault::Trailing(good.len());
    assert_eq!(decode(&longer), Err(EvidenceError::Malformed(trailing)));
    // The version in two bytes.
    let wide = [&good[..2], &[0x18, 1], &good[3..]].concat();
    let wide = decode(&wide);
    assert_eq!(
        wide,
        Err(EvidenceError::Malformed(CborFault::NotShortest(2)))
    );
    let mut newer = good.clone();
    newer[2] = 2;
    assert_eq!(decode(&newer), Err(EvidenceError::Version(2)));
    // One more entry than there are.
    let mut counted = good.clone();
    counted[0] += 1;
    assert_eq!(decode(&counted), unexpected(0));
    // A first key that is not there.
    let mut keyed = good.clone();
    keyed[1] = 1;
    assert_eq!(decode(&keyed), unexpected(1));
    assert_eq!(
        decode(&vec![0; EVIDENCE_BYTES_MAX + 1]),
        Err(EvidenceError::TooLong(EVIDENCE_BYTES_MAX + 1))
    );
    let unsigned = encode(&evidence(Check::Segment), None);
    assert!(decode(&unsigned).is_err());
    for length in 0..good.len() {
        assert!(decode(&good[..length]).is_err());
    }
}

#[test]
fn full_lists_fit_and_longer_ones_do_not() {
    let mut full = evidence(Check::Compression);
    full.claim.machine.build = "b".repeat(256);
    full.machine.device = "d".repeat(256);
    let tile = full.tile.as_mut().unwrap();
    tile.theta = vec![Hash([1; 32]); TILE_CHUNKS_MAX];
    tile.before_proof = vec![Hash([1; 32]); 48];
    tile.after_proof = vec![Hash([1; 32]); 48];
    full.redone = evidence(Check::Segment).redone;
    let need = Need {
        kind: NeedKind::Frame,
        content: Hash([1; 32]),
    };
    full.needs = vec![need; NEEDS_MAX];
    let bytes = full.clone().sign(&validator()).encode().len();
    assert!(bytes < EVIDENCE_BYTES_MAX, "{bytes}");

    let signature = Signature([0; 64]);
    let refused = |evidence: &Evidence| decode(&encode(evidence, Some(&signature))).is_err();
    let mut more = full.clone();
    more.needs.push(need);
    assert!(refused(&more));
    let mut longer = full.clone();
    longer.machine.device.push('d');
    assert!(refused(&longer));
    let mut unsorted = full;
    unsorted.needs[1].kind = NeedKind::Data;
    assert!(refused(&unsorted));
}

#[test]
fn a_view_names_what_is_there() {
    let signed = signed(Check::Compression);
    let view = view::View::from(&signed);
    assert_eq!(view.address, signed.address());
    assert_eq!(
        (view.verdict.check, view.verdict.outcome),
        ("compression", "failed")
    );
    assert_eq!(
        (view.beacon.block, view.beacon.decision),
        (Some(7200), None)
    );
    assert_eq!(view.round_seed, signed.evidence.round_seed());
    assert_eq!(view.needs[1].kind, "theta_before");
    assert!(view.redone.is_none() && view.tile.is_some());
}

#[test]
fn an_epochs_root_binds_scores_checkpoint_and_all_evidence() {
    let (scores, state) = (Hash([1; 32]), Hash([2; 32]));
    let evidence = [5, 4, 3].map(|byte| Hash([byte; 32]));
    let root = epoch_root(scores, state, evidence);
    let sorted = [4, 3, 5, 4].map(|byte| Hash([byte; 32]));
    assert_eq!(root, epoch_root(scores, state, sorted));
    let others = [
        epoch_root(state, scores, evidence),
        epoch_root(scores, Hash::ZERO, evidence),
        epoch_root(Hash::ZERO, state, evidence),
        epoch_root(scores, state, evidence[..2].iter().copied()),
        epoch_root(scores, state, []),
    ];
    assert!(others.iter().all(|other| *other != root));
    let tree = epoch_tree(scores, state, evidence);
    let proof = tree.proof(3).unwrap();
    assert!(merkle::verify(&root, 5, 3, &Hash([4; 32]), &proof));
    assert_eq!(root.short(), "0f331b8b");
}
