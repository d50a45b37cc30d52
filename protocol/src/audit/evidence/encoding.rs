//! The bytes of evidence: canonical CBOR.
//!
//! Everything is a map with numbers for keys, or an array. Hashes and keys are byte strings of 32, roots of a state are an array
//! of two. Fields that may be missing are left out, with their keys.
//!
//! ```text
//! evidence = { 0: 1 (version), 1: verdict, 2: decision, 3: beacon, 4: basis, 5: claim, ? 6: segment, 7: machine,
//!              ? 8: redone, ? 9: tile, 10: [* [kind, content]], 11: signature (64 bytes) }
//! verdict  = { 0: run, 1: round, 2: peer, 3: header, 4: validator, 5: challenge, 6: segment, 7: check, 8: outcome,
//!              9: error_ppb, 10: tolerance_ppb }
//! beacon   = { 0: block number, 1: block hash, ? 2: drand round, ? 3: drand randomness } / { 4: decision }
//! claim    = { 0: state root, 1: segments root, 2: inner before, 3: inner after, 4: feedback before, 5: feedback after,
//!              6: tokens, 7: machine }
//! machine  = { 0: build (text), 1: device (text) }
//! segment  = { 0: [theta, inner] before, 1: [theta, inner] after, 2: data, 3: tokens, 4: loss, 5: gradient norm,
//!              6: [* sibling] }
//! redone   = { 0: [theta, inner], 1: loss, 2: gradient norm, 3: sketch seed, 4: [64 claimed], 5: [64 redone] }
//! tile     = { 0: tile, 1: tiles, 2: before, 3: [* sibling], 4: after, 5: [* sibling], 6: [* chunk], 7: frame }
//! ```
//!
//! Check, outcome and kind are numbers from 1 (1 to 4, 1 to 3, 1 to 8), in the order of their types.

use crate::audit::cbor::{CborFault, Reader, Writer};
use crate::audit::challenge::{Beacon, Pulse};
use crate::audit::judgement::Machine;
use crate::audit::segment::{StateRoots, Work};
use crate::audit::sketch::{ELEMENTS, Sketch};
use crate::audit::verdict::{Check, Outcome, Verdict};
use crate::hash::Hash;
use crate::header::WorkCommitment;
use crate::key::{PeerKey, Signature};
use crate::manifest::{RoundId, RunId};

use super::{
    Claim, ClaimedSegment, EVIDENCE_BYTES_MAX, Evidence, NEEDS_MAX, Need, NeedKind, Redone,
    SignedEvidence, TILE_CHUNKS_MAX, WrongTile,
};

const VERSION: u64 = 1;
/// The longest build or device, as in a header.
const TEXT_BYTES_MAX: usize = 256;
/// The most siblings of a proof: trees of up to 2^48 leaves.
const PROOF_MAX: u64 = 48;

const CHECKS: [Check; 4] = [
    Check::Segment,
    Check::Compression,
    Check::Start,
    Check::Availability,
];
const OUTCOMES: [Outcome; 3] = [Outcome::Passed, Outcome::Grey, Outcome::Failed];

/// Why bytes are no evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Longer than [`EVIDENCE_BYTES_MAX`].
    #[error("{0} bytes of evidence; at most {EVIDENCE_BYTES_MAX}")]
    TooLong(usize),
    /// Of a version that this build does not read.
    #[error("evidence of version {0}; this build reads version {VERSION}")]
    Version(u64),
    /// Not the bytes that evidence has.
    #[error("not evidence: {0}")]
    Malformed(#[from] CborFault),
}

type Read<T> = Result<T, CborFault>;

/// Canonical bytes; without `signature`, those that are signed.
pub(super) fn encode(evidence: &Evidence, signature: Option<&Signature>) -> Vec<u8> {
    let options = [
        evidence.segment.is_some(),
        evidence.redone.is_some(),
        evidence.tile.is_some(),
        signature.is_some(),
    ];
    let mut w = Writer::default();
    w.map(8 + options.iter().filter(|there| **there).count());
    w.key(0);
    w.number(VERSION);
    w.key(1);
    write_verdict(&mut w, &evidence.verdict);
    w.key(2);
    w.bytes(&evidence.decision.0);
    w.key(3);
    write_beacon(&mut w, &evidence.beacon);
    w.key(4);
    w.bytes(&evidence.basis.0);
    w.key(5);
    write_claim(&mut w, &evidence.claim);
    if let Some(segment) = &evidence.segment {
        w.key(6);
        write_segment(&mut w, segment);
    }
    w.key(7);
    write_machine(&mut w, &evidence.machine);
    if let Some(redone) = &evidence.redone {
        w.key(8);
        write_redone(&mut w, redone);
    }
    if let Some(tile) = &evidence.tile {
        w.key(9);
        write_tile(&mut w, tile);
    }
    w.key(10);
    w.array(evidence.needs.len());
    for need in &evidence.needs {
        w.array(2);
        w.number(place_of(&NeedKind::ALL, &need.kind));
        w.bytes(&need.content.0);
    }
    if let Some(signature) = signature {
        w.key(11);
        w.bytes(&signature.0);
    }
    w.finish()
}

/// Reads what [`encode`] wrote with a signature, and nothing else.
pub(super) fn decode(bytes: &[u8]) -> Result<SignedEvidence, EvidenceError> {
    if bytes.len() > EVIDENCE_BYTES_MAX {
        return Err(EvidenceError::TooLong(bytes.len()));
    }
    let mut reader = Reader::new(bytes);
    let r = &mut reader;
    let entries = r.map_of_any()?;
    r.key(0)?;
    let version = r.number()?;
    if version != VERSION {
        return Err(EvidenceError::Version(version));
    }
    r.key(1)?;
    let verdict = read_verdict(r)?;
    r.key(2)?;
    let decision = hash(r)?;
    r.key(3)?;
    let beacon = read_beacon(r)?;
    r.key(4)?;
    let basis = hash(r)?;
    r.key(5)?;
    let claim = read_claim(r)?;
    let segment = optional(r, 6, read_segment)?;
    r.key(7)?;
    let machine = read_machine(r)?;
    let redone = optional(r, 8, read_redone)?;
    let tile = optional(r, 9, read_tile)?;
    r.key(10)?;
    let at = r.at();
    let needs = r.array(NEEDS_MAX as u64, |r| {
        fixed(r, 2)?;
        let kind = one_of(r, &NeedKind::ALL)?;
        Ok(Need {
            kind,
            content: hash(r)?,
        })
    })?;
    r.key(11)?;
    let signature = Signature(r.bytes()?);
    r.end()?;
    let options = [segment.is_some(), redone.is_some(), tile.is_some()];
    let found = 9 + options.iter().filter(|there| **there).count() as u64;
    if entries != found {
        return Err(CborFault::Unexpected(0).into());
    }
    if !needs.is_sorted_by_key(|need| need.kind) {
        return Err(CborFault::Unexpected(at).into());
    }
    let evidence = Evidence {
        verdict,
        decision,
        beacon,
        basis,
        claim,
        segment,
        machine,
        redone,
        tile,
        needs,
    };
    Ok(SignedEvidence {
        evidence,
        signature,
    })
}

fn place_of<T: PartialEq>(all: &[T], one: &T) -> u64 {
    let place = all.iter().position(|other| other == one);
    place.map_or(0, |place| place as u64 + 1)
}

fn one_of<T: Copy>(r: &mut Reader<'_>, all: &[T]) -> Read<T> {
    let at = r.at();
    let place = usize::try_from(r.number()?).ok();
    let place = place.and_then(|place| place.checked_sub(1));
    let one = place.and_then(|place| all.get(place));
    one.copied().ok_or(CborFault::Unexpected(at))
}

fn optional<'a, T>(
    r: &mut Reader<'a>,
    key: u8,
    read: impl FnOnce(&mut Reader<'a>) -> Read<T>,
) -> Read<Option<T>> {
    if r.has_key(key) {
        read(r).map(Some)
    } else {
        Ok(None)
    }
}

/// The head of an array of exactly `items`.
fn fixed(r: &mut Reader<'_>, items: u64) -> Read<()> {
    let at = r.at();
    if r.array_of_any()? == items {
        Ok(())
    } else {
        Err(CborFault::Unexpected(at))
    }
}

fn hash(r: &mut Reader<'_>) -> Read<Hash> {
    r.bytes().map(Hash)
}

fn peer(r: &mut Reader<'_>) -> Read<PeerKey> {
    r.bytes().map(PeerKey)
}

fn write_hashes(w: &mut Writer, hashes: &[Hash]) {
    w.array(hashes.len());
    hashes.iter().for_each(|hash| w.bytes(&hash.0));
}

fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    w.map(11);
    w.key(0);
    w.bytes(&verdict.run.0.0);
    w.key(1);
    w.number(verdict.round.0);
    w.key(2);
    w.bytes(&verdict.peer.0);
    w.key(3);
    w.bytes(&verdict.header.0);
    w.key(4);
    w.bytes(&verdict.validator.0);
    w.key(5);
    w.bytes(&verdict.challenge.0);
    w.key(6);
    w.number(verdict.segment.into());
    w.key(7);
    w.number(place_of(&CHECKS, &verdict.check));
    w.key(8);
    w.number(place_of(&OUTCOMES, &verdict.outcome));
    w.key(9);
    w.number(verdict.error_ppb);
    w.key(10);
    w.number(verdict.tolerance_ppb);
}

fn read_verdict(r: &mut Reader<'_>) -> Read<Verdict> {
    r.map(11)?;
    r.key(0)?;
    let run = RunId(hash(r)?);
    r.key(1)?;
    let round = RoundId(r.number()?);
    r.key(2)?;
    let author = peer(r)?;
    r.key(3)?;
    let header = hash(r)?;
    r.key(4)?;
    let validator = peer(r)?;
    r.key(5)?;
    let challenge = hash(r)?;
    r.key(6)?;
    let segment = r.small()?;
    r.key(7)?;
    let check = one_of(r, &CHECKS)?;
    r.key(8)?;
    let outcome = one_of(r, &OUTCOMES)?;
    r.key(9)?;
    let error_ppb = r.number()?;
    r.key(10)?;
    let tolerance_ppb = r.number()?;
    Ok(Verdict {
        run,
        round,
        peer: author,
        header,
        validator,
        challenge,
        segment,
        check,
        outcome,
        error_ppb,
        tolerance_ppb,
        evidence: Hash::ZERO,
    })
}

fn write_beacon(w: &mut Writer, beacon: &Beacon) {
    match beacon {
        Beacon::Block {
            number,
            hash,
            pulse,
        } => {
            w.map(if pulse.is_some() { 4 } else { 2 });
            w.key(0);
            w.number(*number);
            w.key(1);
            w.bytes(&hash.0);
            if let Some(pulse) = pulse {
                w.key(2);
                w.number(pulse.round);
                w.key(3);
                w.bytes(&pulse.randomness.0);
            }
        }
        Beacon::Decision(id) => {
            w.map(1);
            w.key(4);
            w.bytes(&id.0);
        }
    }
}

fn read_beacon(r: &mut Reader<'_>) -> Read<Beacon> {
    let at = r.at();
    let entries = r.map_of_any()?;
    if entries == 1 {
        r.key(4)?;
        return Ok(Beacon::Decision(hash(r)?));
    }
    if entries != 2 && entries != 4 {
        return Err(CborFault::Unexpected(at));
    }
    r.key(0)?;
    let number = r.number()?;
    r.key(1)?;
    let block = hash(r)?;
    let pulse = if entries == 4 {
        r.key(2)?;
        let round = r.number()?;
        r.key(3)?;
        let randomness = hash(r)?;
        Some(Pulse { round, randomness })
    } else {
        None
    };
    Ok(Beacon::Block {
        number,
        hash: block,
        pulse,
    })
}

fn write_claim(w: &mut Writer, claim: &Claim) {
    w.map(8);
    let hashes = [
        &claim.state_root,
        &claim.work.segments_root,
        &claim.work.inner_before,
        &claim.work.inner_after,
        &claim.feedback_before,
        &claim.feedback_after,
    ];
    for (key, hash) in (0..).zip(hashes) {
        w.key(key);
        w.bytes(&hash.0);
    }
    w.key(6);
    w.number(claim.tokens);
    w.key(7);
    write_machine(w, &claim.machine);
}

fn read_claim(r: &mut Reader<'_>) -> Read<Claim> {
    r.map(8)?;
    let mut hashes = [Hash::ZERO; 6];
    for (key, into) in (0..).zip(&mut hashes) {
        r.key(key)?;
        *into = hash(r)?;
    }
    let [
        state_root,
        segments_root,
        inner_before,
        inner_after,
        feedback_before,
        feedback_after,
    ] = hashes;
    r.key(6)?;
    let tokens = r.number()?;
    r.key(7)?;
    let machine = read_machine(r)?;
    Ok(Claim {
        state_root,
        work: WorkCommitment {
            segments_root,
            inner_before,
            inner_after,
        },
        feedback_before,
        feedback_after,
        tokens,
        machine,
    })
}

fn write_machine(w: &mut Writer, machine: &Machine) {
    w.map(2);
    w.key(0);
    w.text(&machine.build);
    w.key(1);
    w.text(&machine.device);
}

fn read_machine(r: &mut Reader<'_>) -> Read<Machine> {
    r.map(2)?;
    r.key(0)?;
    let build = r.text(TEXT_BYTES_MAX)?.into();
    r.key(1)?;
    let device = r.text(TEXT_BYTES_MAX)?.into();
    Ok(Machine { build, device })
}

fn write_roots(w: &mut Writer, roots: &StateRoots) {
    write_hashes(w, &[roots.theta, roots.inner]);
}

fn read_roots(r: &mut Reader<'_>) -> Read<StateRoots> {
    fixed(r, 2)?;
    Ok(StateRoots {
        theta: hash(r)?,
        inner: hash(r)?,
    })
}

fn write_segment(w: &mut Writer, segment: &ClaimedSegment) {
    w.map(7);
    w.key(0);
    write_roots(w, &segment.before);
    w.key(1);
    write_roots(w, &segment.after);
    w.key(2);
    w.bytes(&segment.work.data.0);
    w.key(3);
    w.number(segment.work.tokens);
    w.key(4);
    w.number(segment.work.loss_micronats);
    w.key(5);
    w.number(segment.work.gradient_norm_micro);
    w.key(6);
    write_hashes(w, &segment.proof);
}

fn read_segment(r: &mut Reader<'_>) -> Read<ClaimedSegment> {
    r.map(7)?;
    r.key(0)?;
    let before = read_roots(r)?;
    r.key(1)?;
    let after = read_roots(r)?;
    r.key(2)?;
    let data = hash(r)?;
    r.key(3)?;
    let tokens = r.number()?;
    r.key(4)?;
    let loss_micronats = r.number()?;
    r.key(5)?;
    let gradient_norm_micro = r.number()?;
    r.key(6)?;
    let proof = r.array(PROOF_MAX, hash)?;
    Ok(ClaimedSegment {
        before,
        after,
        work: Work {
            data,
            tokens,
            loss_micronats,
            gradient_norm_micro,
        },
        proof,
    })
}

fn write_redone(w: &mut Writer, redone: &Redone) {
    w.map(6);
    w.key(0);
    write_roots(w, &redone.after);
    w.key(1);
    w.number(redone.loss_micronats);
    w.key(2);
    w.number(redone.gradient_norm_micro);
    w.key(3);
    w.bytes(&redone.sketch_seed.0);
    for (key, sketch) in [(4, &redone.claimed), (5, &redone.redone)] {
        w.key(key);
        w.array(ELEMENTS);
        sketch.bits.iter().for_each(|bits| w.number((*bits).into()));
    }
}

fn read_redone(r: &mut Reader<'_>) -> Read<Redone> {
    r.map(6)?;
    r.key(0)?;
    let after = read_roots(r)?;
    r.key(1)?;
    let loss_micronats = r.number()?;
    r.key(2)?;
    let gradient_norm_micro = r.number()?;
    r.key(3)?;
    let sketch_seed = hash(r)?;
    r.key(4)?;
    let claimed = read_sketch(r)?;
    r.key(5)?;
    let redone = read_sketch(r)?;
    Ok(Redone {
        after,
        loss_micronats,
        gradient_norm_micro,
        sketch_seed,
        claimed,
        redone,
    })
}

fn read_sketch(r: &mut Reader<'_>) -> Read<Sketch> {
    fixed(r, ELEMENTS as u64)?;
    let mut bits = [0; ELEMENTS];
    for element in &mut bits {
        *element = r.small()?;
    }
    Ok(Sketch { bits })
}

fn write_tile(w: &mut Writer, tile: &WrongTile) {
    w.map(8);
    w.key(0);
    w.number(tile.tile);
    w.key(1);
    w.number(tile.tiles);
    w.key(2);
    w.bytes(&tile.before.0);
    w.key(3);
    write_hashes(w, &tile.before_proof);
    w.key(4);
    w.bytes(&tile.after.0);
    w.key(5);
    write_hashes(w, &tile.after_proof);
    w.key(6);
    write_hashes(w, &tile.theta);
    w.key(7);
    w.bytes(&tile.frame.0);
}

fn read_tile(r: &mut Reader<'_>) -> Read<WrongTile> {
    r.map(8)?;
    r.key(0)?;
    let tile = r.number()?;
    r.key(1)?;
    let tiles = r.number()?;
    r.key(2)?;
    let before = hash(r)?;
    r.key(3)?;
    let before_proof = r.array(PROOF_MAX, hash)?;
    r.key(4)?;
    let after = hash(r)?;
    r.key(5)?;
    let after_proof = r.array(PROOF_MAX, hash)?;
    r.key(6)?;
    let theta = r.array(TILE_CHUNKS_MAX as u64, hash)?;
    r.key(7)?;
    let frame = hash(r)?;
    Ok(WrongTile {
        tile,
        tiles,
        before,
        before_proof,
        after,
        after_proof,
        theta,
        frame,
    })
}
