//! Who is audited, and on what: drawn when nobody can change any more what was committed to.
//!
//! Rule `after-commit`: a round's challenge follows from the round's decision and from a [`Beacon`] that nobody knew when
//! the headers were signed.
//!
//! Rule `challenge-block`: in a chain run the beacon is the hash of the first snapshot block (one whose number is a
//! multiple of the manifest's `snapshot_blocks`) that is at least [`BLOCKS_AFTER`] above the newest block that was final
//! where the validator stood when it stored the decision of the round. Everybody reads those blocks for the registry
//! anyway. Two validators whose views lie on two sides of such a block draw different challenges for that round; a verdict
//! and its evidence say which.
//!
//! Rule `challenge-decision`: in a run without a chain the beacon is the id of the decision of the round after. The last
//! round of a run has none after it and is challenged by its own.
//!
//! Rule `same-for-all`: a challenge and what it picks depend on no validator, so that validators look at the same work and
//! their scores differ by the noise of their machines alone.
//!
//! Rule `panels-do-not-measure`: an audit for a panel alone measures no loss. Losses of a peer that the challenge has spared would be
//! known to the panelists only, and an accusation would move the quality of the accused and of whoever it is compared with.

use std::collections::BTreeSet;

use super::draw::Draw;
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::{self, Manifest, RoundId, RunId};

/// How far above the newest final block a challenge block lies at least: the one after next was not begun when the
/// decision was there.
pub const BLOCKS_AFTER: u64 = 2;
/// Tiles of an update whose compression an audit looks at.
pub const TILES: u64 = 32;

const CHALLENGE_DOMAIN: &str = "gradmesh audit v1";
const PICK_DOMAIN: &str = "gradmesh audit pick v1";
const COVERAGE_DOMAIN: &str = "gradmesh audit coverage v1";
const SEGMENT_DOMAIN: &str = "gradmesh audit segment v1";
const LOSS_DOMAIN: &str = "gradmesh audit loss v1";
const SEEDS_DOMAIN: &str = "gradmesh audit seeds v1";
const TILES_DOMAIN: &str = "gradmesh audit tiles v1";
const COMMON_DOMAIN: &str = "gradmesh audit common v1";
const SEQUENCES_DOMAIN: &str = "gradmesh audit sequences v1";

/// Public randomness that was not there yet when a round's headers were signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Beacon {
    /// A final block of the run's chain (rule `challenge-block`).
    Block {
        /// Its number.
        number: u64,
        /// Its hash.
        hash: Hash,
        /// A drand pulse that goes in too. Never needed: a beacon that is late must not hold up an audit.
        pulse: Option<Pulse>,
    },
    /// Id of a decision (rule `challenge-decision`).
    Decision(Hash),
}

/// A pulse of drand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pulse {
    /// Its round of drand.
    pub round: u64,
    /// Its randomness: the SHA-256 of its signature.
    pub randomness: Hash,
}

/// The number of the block of rule `challenge-block`; `None` where block numbers end before it.
///
/// `finalized`: number of the newest final block when the decision was stored. `snapshot_blocks`: of the manifest, not 0.
pub fn challenge_block(finalized: u64, snapshot_blocks: u32) -> Option<u64> {
    let least = finalized.checked_add(BLOCKS_AFTER)?;
    least.checked_next_multiple_of(snapshot_blocks.into())
}

/// The round whose decision is the beacon of `round` by rule `challenge-decision`.
pub fn challenge_round(round: RoundId, manifest: &Manifest) -> RoundId {
    RoundId(round.next().0.min(manifest.schedule.rounds)).max(round)
}

/// The challenge of a round.
///
/// `decision`: id of the decision of `round`.
pub fn challenge(run: &RunId, round: RoundId, decision: &Hash, beacon: &Beacon) -> Hash {
    let mut body = Vec::with_capacity(160);
    body.extend_from_slice(&run.0.0);
    body.extend_from_slice(&round.0.to_le_bytes());
    body.extend_from_slice(&decision.0);
    match beacon {
        Beacon::Block {
            number,
            hash,
            pulse,
        } => {
            body.push(1);
            body.extend_from_slice(&number.to_le_bytes());
            body.extend_from_slice(&hash.0);
            if let Some(pulse) = pulse {
                body.extend_from_slice(&pulse.round.to_le_bytes());
                body.extend_from_slice(&pulse.randomness.0);
            }
        }
        Beacon::Decision(id) => {
            body.push(2);
            body.extend_from_slice(&id.0);
        }
    }
    Hash::in_domain(CHALLENGE_DOMAIN, &body)
}

/// What of a peer's round is audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The segment that is done again.
    pub segment: u32,
    /// Whether the loss before and after the update is measured.
    pub loss: bool,
    /// Seed of the [`tiles`] whose compression is looked at.
    pub tiles: Hash,
    /// Seed of the projection by which updates of the segment are compared in evidence.
    pub sketch: Hash,
}

/// What `challenge` picks of the round of `peer`; `None` if it leaves the peer alone.
///
/// `always`: whether the peer's rounds are all audited now ([`super::standing`]). It decides whether there is a pick, and
/// changes nothing of one. The segment is any of the manifest's with equal chance.
pub fn pick(
    challenge: &Hash,
    peer: &PeerKey,
    audit: &manifest::Audit,
    always: bool,
) -> Option<Pick> {
    let mut body = [0; 64];
    body[..32].copy_from_slice(&challenge.0);
    body[32..].copy_from_slice(&peer.0);
    let seed = Hash::in_domain(PICK_DOMAIN, &body);
    let draw = |domain| Draw::new(domain, &seed, &[]);
    let covered = draw(COVERAGE_DOMAIN).happens(audit.coverage_ppm);
    if !always && !covered {
        return None;
    }
    let segment = draw(SEGMENT_DOMAIN).below(audit.segments.into())?;
    let mut seeds = draw(SEEDS_DOMAIN);
    Some(Pick {
        segment: u32::try_from(segment).ok()?,
        loss: draw(LOSS_DOMAIN).happens(audit.loss_ppm),
        tiles: seeds.seed(),
        sketch: seeds.seed(),
    })
}

/// What a panelist looks at of the round of `peer` that it does not audit otherwise: what [`pick`] says, but no loss (rule
/// `panels-do-not-measure`).
pub fn panel_pick(challenge: &Hash, peer: &PeerKey, audit: &manifest::Audit) -> Option<Pick> {
    let pick = pick(challenge, peer, audit, true)?;
    Some(Pick {
        loss: false,
        ..pick
    })
}

/// `wanted` different tiles of `count`, ascending; all of them if there are no more. Every set is equally likely.
///
/// Cost: one draw and one look-up for each.
pub fn tiles(seed: &Hash, count: u64, wanted: u64) -> Vec<u64> {
    let mut draw = Draw::new(TILES_DOMAIN, seed, &[]);
    let mut chosen = BTreeSet::new();
    // R. Floyd's sampling (J. Bentley and R. Floyd, "A sample of brilliance", CACM 30:9, 1987).
    for last in count.saturating_sub(wanted)..count {
        let tile = draw.below(last + 1).unwrap_or(last);
        if !chosen.insert(tile) {
            chosen.insert(last);
        }
    }
    chosen.into_iter().collect()
}

/// Seed of the [`sequences`] on which the losses of all peers of a round are measured.
pub fn common_seed(challenge: &Hash) -> Hash {
    Hash::in_domain(COMMON_DOMAIN, &challenge.0)
}

/// `wanted` windows of `windows`, in the order in which losses are measured; none if there are no windows. One may come
/// twice.
pub fn sequences(seed: &Hash, windows: u64, wanted: u32) -> Vec<u64> {
    let mut draw = Draw::new(SEQUENCES_DOMAIN, seed, &[]);
    (0..wanted).filter_map(|_| draw.below(windows)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{Audit, InnerState};

    const RUN: RunId = RunId(Hash([9; 32]));

    fn audit(coverage_ppm: u32) -> Audit {
        Audit {
            segments: 5,
            coverage_ppm,
            probation_rounds: 20,
            suspension_rounds: 8,
            loss_sequences: 64,
            loss_ppm: 100_000,
            inner: InnerState::Carried,
            tolerances: Vec::new(),
        }
    }

    fn block(number: u64, hash: u8, pulse: Option<u8>) -> Beacon {
        Beacon::Block {
            number,
            hash: Hash([hash; 32]),
            pulse: pulse.map(|byte| Pulse {
                round: 7,
                randomness: Hash([byte; 32]),
            }),
        }
    }

    #[test]
    fn a_panelist_looks_at_the_same_segment_and_measures_nothing() {
        let measured = manifest::Audit {
            loss_ppm: 1_000_000,
            ..audit(0)
        };
        let (challenge, peer) = (Hash([3; 32]), PeerKey([4; 32]));
        assert_eq!(pick(&challenge, &peer, &measured, false), None);
        let always = pick(&challenge, &peer, &measured, true).unwrap();
        assert!(always.loss);
        let panel = panel_pick(&challenge, &peer, &measured);
        let expected = Pick {
            loss: false,
            ..always
        };
        assert_eq!(panel, Some(expected));
    }

    #[test]
    fn everything_that_names_a_round_changes_its_challenge() {
        let of = |run: u8, round, decision: u8, beacon: Beacon| {
            let run = RunId(Hash([run; 32]));
            challenge(&run, RoundId(round), &Hash([decision; 32]), &beacon)
        };
        let challenges = [
            of(1, 4, 2, block(100, 3, None)),
            of(9, 4, 2, block(100, 3, None)),
            of(1, 5, 2, block(100, 3, None)),
            of(1, 4, 9, block(100, 3, None)),
            of(1, 4, 2, block(101, 3, None)),
            of(1, 4, 2, block(100, 9, None)),
            of(1, 4, 2, block(100, 3, Some(1))),
            of(1, 4, 2, block(100, 3, Some(2))),
            of(1, 4, 2, Beacon::Decision(Hash([3; 32]))),
            of(1, 4, 2, Beacon::Decision(Hash([4; 32]))),
        ];
        let distinct: BTreeSet<_> = challenges.iter().collect();
        assert_eq!(distinct.len(), challenges.len());
    }

    #[test]
    fn a_challenge_and_its_pick_are_pinned() {
        let challenge = challenge(&RUN, RoundId(4), &Hash([1; 32]), &block(100, 3, None));
        let pick = pick(&challenge, &PeerKey([5; 32]), &audit(1), true).unwrap();
        let tiles = tiles(&pick.tiles, 1000, 4);
        let sequences = sequences(&common_seed(&challenge), 1000, 4);
        let found = format!(
            "{challenge} {} {} {:?} {tiles:?} {sequences:?}",
            pick.segment, pick.loss, pick.sketch
        );
        let pinned = "89e0df1dc2e8e6cb9f64435e0af1502e65c5ab2170ff431634deba6d3357d808 3 false 0fd0144d \
                      [353, 850, 868, 918] [377, 880, 139, 234]";
        assert_eq!(found, pinned);
    }

    #[test]
    fn challenge_block_is_a_snapshot_two_above_the_newest_final_block() {
        for (finalized, every, expected) in [
            (0, 1, Some(2)),
            (0, 10, Some(10)),
            (8, 10, Some(10)),
            (9, 10, Some(20)),
            (10, 10, Some(20)),
            (100, 7200, Some(7200)),
            (u64::MAX - 1, 10, None),
            (u64::MAX - 6, 10, None),
            (5, 0, None),
        ] {
            assert_eq!(challenge_block(finalized, every), expected, "{finalized}");
        }
    }

    #[test]
    fn the_round_after_challenges_a_round_and_the_last_one_itself() {
        let manifest = manifest::example(PeerKey([1; 32]));
        let of = |round| challenge_round(RoundId(round), &manifest).0;
        assert_eq!([1, 11, 12].map(of), [2, 12, 12]);
    }

    #[test]
    fn coverage_is_the_share_of_picked_peers_and_segments_are_equally_likely() {
        let (mut picked, mut loss, mut segments) = (0u32, 0u32, [0u32; 5]);
        for round in 0..10_000u64 {
            let challenge = challenge(&RUN, RoundId(round), &Hash([1; 32]), &block(100, 3, None));
            if let Some(pick) = pick(&challenge, &PeerKey([5; 32]), &audit(200_000), false) {
                picked += 1;
                loss += u32::from(pick.loss);
                segments[pick.segment as usize] += 1;
            }
        }
        // Five standard deviations: sqrt(10000 * 0.2 * 0.8) = 40; of a tenth of 2000, sqrt(2000 * 0.1 * 0.9) = 13.4, and
        // the spread of the 2000 itself adds 20; of a fifth, 17.9 and 40.
        assert!(picked.abs_diff(2000) < 200, "{picked}");
        assert!(loss.abs_diff(200) < 87, "{loss}");
        assert!(
            segments.iter().all(|n| n.abs_diff(400) < 130),
            "{segments:?}"
        );
    }

    #[test]
    fn whether_a_peer_is_always_audited_changes_nothing_of_its_pick() {
        for byte in 0..200 {
            let (challenge, peer) = (Hash([byte; 32]), PeerKey([5; 32]));
            let always = pick(&challenge, &peer, &audit(500_000), true);
            assert!(always.is_some());
            let drawn = pick(&challenge, &peer, &audit(500_000), false);
            assert!(drawn.is_none() || drawn == always);
        }
    }

    #[test]
    fn peers_have_picks_of_their_own() {
        let pick = |peer: u8| pick(&Hash([1; 32]), &PeerKey([peer; 32]), &audit(1), true).unwrap();
        assert_ne!(pick(1).tiles, pick(2).tiles);
        assert_ne!(pick(1).sketch, pick(2).sketch);
        assert_ne!(pick(1).sketch, pick(1).tiles);
    }

    #[test]
    fn every_tile_is_as_likely_as_any_other() {
        let mut counts = [0u32; 8];
        for seed in 0..16_000u32 {
            for tile in tiles(&Hash::of_content(&seed.to_le_bytes()), 8, 3) {
                counts[tile as usize] += 1;
            }
        }
        // 6000 each; standard deviation sqrt(16000 * 3/8 * 5/8) = 61; five of them.
        assert!(
            counts.iter().all(|count| count.abs_diff(6000) < 306),
            "{counts:?}"
        );
    }

    #[test]
    fn sequences_lie_among_the_windows_and_may_repeat() {
        let seed = common_seed(&Hash([1; 32]));
        assert_eq!(sequences(&seed, 0, 64), []);
        assert_eq!(sequences(&seed, 1, 3), [0, 0, 0]);
        let many = sequences(&seed, 1000, 64);
        assert!(many.len() == 64 && many.iter().all(|window| *window < 1000));
        assert_eq!(sequences(&seed, 1000, 8), many[..8]);
    }

    proptest! {
        #[test]
        fn tiles_are_sorted_distinct_and_as_many_as_there_are(
            seed in any::<[u8; 32]>(),
            count in 0..200u64,
            wanted in 0..64u64,
        ) {
            let tiles = tiles(&Hash(seed), count, wanted);
            prop_assert_eq!(tiles.len() as u64, count.min(wanted));
            prop_assert!(tiles.is_sorted_by(|a, b| a < b));
            prop_assert!(tiles.iter().all(|tile| *tile < count));
        }

        #[test]
        fn a_challenge_block_is_the_first_that_fits(finalized in 0..1u64 << 50, every in 1..7200u32) {
            let block = challenge_block(finalized, every).unwrap();
            prop_assert!(block.is_multiple_of(every.into()));
            prop_assert!(block >= finalized + 2);
            prop_assert!(block < finalized + 2 + u64::from(every));
        }
    }
}
