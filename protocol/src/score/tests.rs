//! Scores from records made by hand.

use proptest::prelude::*;

use super::*;
use crate::agreement::CommitCertificate;
use crate::decision::{Bitmap, DecidedMember, DecidedShard, Decision};
use crate::header::{Header, UpdateSummary, WorkCommitment};
use crate::key::Keypair;
use crate::manifest;

/// A member of a round: which peer, the tokens that it claims, and bit s for shard s accepted.
pub(super) type Claim = (u8, u64, u8);

const SHARDS: usize = 4;

fn keypair(peer: u8) -> Keypair {
    Keypair::from_seed(&[peer; 32])
}

pub(super) fn key(peer: u8) -> PeerKey {
    keypair(peer).public()
}

/// Twelve rounds in epochs of four, 160 tokens at most in a round.
pub(super) fn example() -> Manifest {
    manifest::example(key(1))
}

fn header(manifest: &Manifest, round: RoundId, author: &Keypair, tokens: u64) -> Header {
    Header {
        run: manifest.run(),
        round,
        peer: author.public(),
        state_root: Hash::ZERO,
        update: UpdateSummary {
            frames: Vec::new(),
            feedback_before: Hash::ZERO,
            feedback_after: Hash::ZERO,
            work: WorkCommitment::default(),
            tokens,
            steps: 5,
            loss_first_micronats: 0,
            loss_last_micronats: 0,
            build: String::new(),
            device: String::new(),
        },
    }
}

fn record(manifest: &Manifest, round: u64, previous: Hash, claims: &[Claim]) -> DecisionRecord {
    let round = RoundId(round);
    let mut claims = claims.to_vec();
    claims.sort_by_key(|(peer, ..)| key(*peer));
    let headers = claims.iter().map(|(peer, tokens, _)| {
        let author = keypair(*peer);
        header(manifest, round, &author, *tokens).sign(&author)
    });
    let headers = headers.collect::<Vec<_>>();
    let accepted = |shard: usize| {
        let mut bytes = vec![0; claims.len().div_ceil(8)];
        for (place, (_, _, shards)) in claims.iter().enumerate() {
            bytes[place / 8] |= (shards >> shard & 1) << (place % 8);
        }
        Bitmap::from_bytes(claims.len(), &bytes).expect("a bit for each member")
    };
    let shards = (0..SHARDS).map(|shard| DecidedShard {
        accepted: accepted(shard),
        reduced: Vec::new(),
    });
    let members = headers.iter().map(|signed| DecidedMember {
        peer: signed.header.peer,
        header: signed.header.hash(),
    });
    let decision = Decision {
        run: manifest.run(),
        round,
        previous,
        state_root: Hash::ZERO,
        members: members.collect(),
        shards: shards.collect(),
        joins: Vec::new(),
        leaves: Vec::new(),
        registry: None,
        powers: Vec::new(),
        capacities: Vec::new(),
    };
    DecisionRecord {
        certificate: CommitCertificate {
            height: round,
            attempt: 0,
            value: decision.id(),
            signatures: Vec::new(),
        },
        decision,
        headers,
    }
}

/// Linked records from `first` on.
pub(super) fn records(manifest: &Manifest, first: u64, rounds: &[&[Claim]]) -> Vec<DecisionRecord> {
    let mut previous = Hash::ZERO;
    let linked = (first..).zip(rounds).map(|(round, claims)| {
        let record = record(manifest, round, previous, claims);
        previous = record.decision.id();
        record
    });
    linked.collect()
}

/// The rows of `peers`, in the order asked for.
fn rows(table: &ScoreTable, peers: &[u8]) -> Vec<PeerScore> {
    let row = |peer: &u8| table.scores.iter().find(|score| score.peer == key(*peer));
    peers.iter().filter_map(row).copied().collect()
}

pub(super) const ALL: u8 = 0b1111;

/// Four rounds: peer 2 loses a shard in each of two, peer 3 comes late and claims ten times too much.
const ROUNDS: [&[Claim]; 4] = [
    &[(1, 160, ALL), (2, 160, 0b0111)],
    &[(1, 160, ALL), (2, 150, 0b1110)],
    &[(1, 160, ALL), (2, 160, ALL), (3, 1600, ALL)],
    &[],
];

#[test]
fn tokens_count_in_proportion_to_accepted_shards_and_up_to_what_a_round_can_hold() {
    let manifest = example();
    let records = records(&manifest, 1, &ROUNDS);
    let scores = EpochScores::replay(&manifest, EpochId(1), &records).unwrap();
    assert!(scores.is_complete());

    let table = scores.table();
    assert_eq!(
        (table.rounds, table.decision),
        (4, records[3].decision.id())
    );
    let [one, two, three] = rows(&table, &[1, 2, 3])[..] else {
        panic!("three peers have scores: {table:?}");
    };
    assert_eq!((one.updates, one.shards, one.tokens), (3, 12, 480));
    // 160 * 3/4 = 120, floor(150 * 3/4) = 112, 160.
    assert_eq!((two.updates, two.shards, two.tokens), (3, 10, 392));
    assert_eq!((three.updates, three.shards, three.tokens), (1, 4, 160));
    // Of 1032 tokens.
    assert_eq!(one.share, 480 * SHARE_WHOLE / 1032);
    assert_eq!(three.share, 160 * SHARE_WHOLE / 1032);
    assert!(table.scores.is_sorted_by_key(|score| score.peer));
}

#[test]
fn who_has_no_accepted_shard_has_no_score() {
    let manifest = example();
    let records = records(&manifest, 1, &[&[(1, 160, 0), (2, 160, ALL)]]);
    let table = EpochScores::replay(&manifest, EpochId(1), &records)
        .unwrap()
        .table();
    assert_eq!(table.scores.len(), 1);
    assert_eq!(rows(&table, &[2])[0].share, SHARE_WHOLE);
}

#[test]
fn without_tokens_nobody_has_a_share() {
    let manifest = example();
    let records = records(&manifest, 1, &[&[(1, 0, ALL), (2, 0, ALL)]]);
    let table = EpochScores::replay(&manifest, EpochId(1), &records)
        .unwrap()
        .table();
    assert_eq!(
        rows(&table, &[1, 2]).iter().map(|s| s.share).sum::<u64>(),
        0
    );
}

#[test]
fn a_gap_a_repetition_another_history_and_another_run_are_refused() {
    let manifest = example();
    let records = records(&manifest, 5, &ROUNDS);
    let mut scores = EpochScores::new(&manifest, EpochId(2));
    assert_eq!(scores.next_round(), RoundId(5));
    let not_next = |expected, found| ScoreFault::NotNext {
        expected: RoundId(expected),
        found: RoundId(found),
    };
    assert_eq!(scores.count(&records[1]), Err(not_next(5, 6)));
    scores.count(&records[0]).unwrap();
    let before = scores.clone();
    assert_eq!(scores.count(&records[0]), Err(not_next(6, 5)));
    assert_eq!(scores.count(&records[2]), Err(not_next(6, 7)));

    let stray = record(&manifest, 6, Hash([9; 32]), ROUNDS[1]);
    let fault = ScoreFault::OtherHistory {
        round: RoundId(6),
        expected: records[0].decision.id(),
        found: Hash([9; 32]),
    };
    assert_eq!(scores.count(&stray), Err(fault));

    let mut other = records[1].clone();
    other.decision.run = RunId(Hash([9; 32]));
    let fault = ScoreFault::OtherRun {
        expected: manifest.run(),
        found: other.decision.run,
    };
    assert_eq!(scores.count(&other), Err(fault));
    assert_eq!(scores, before, "a refused record leaves no trace");

    for record in &records[1..] {
        scores.count(record).unwrap();
    }
    let beyond = record(&manifest, 9, records[3].decision.id(), &[]);
    let fault = ScoreFault::Ended {
        epoch: EpochId(2),
        found: RoundId(9),
    };
    assert_eq!(scores.count(&beyond), Err(fault));
}

#[test]
fn headers_that_the_decision_does_not_name_are_refused() {
    let manifest = example();
    let good = records(&manifest, 1, &ROUNDS).swap_remove(0);
    let fault = Err(ScoreFault::Headers { round: RoundId(1) });

    let mut missing = good.clone();
    missing.headers.pop();
    let mut raised = good.clone();
    raised.headers[0].header.update.tokens += 1;
    let mut swapped = good;
    swapped.headers.swap(0, 1);
    for record in [missing, raised, swapped] {
        assert_eq!(
            EpochScores::new(&manifest, EpochId(1)).count(&record),
            fault
        );
    }
}

#[test]
fn an_epoch_counted_in_one_go_equals_one_that_was_counted_again() {
    let manifest = example();
    let records = records(&manifest, 1, &ROUNDS);
    let mut live = EpochScores::new(&manifest, EpochId(1));
    for (counted, record) in records.iter().enumerate() {
        let stored = EpochScores::replay(&manifest, EpochId(1), &records[..counted]).unwrap();
        assert_eq!(live, stored);
        live.count(record).unwrap();
    }
}

#[test]
fn the_last_epoch_ends_with_the_run() {
    let mut manifest = example();
    manifest.schedule.rounds = 10;
    let epoch = |round| EpochId::of(RoundId(round), &manifest);
    assert_eq!(
        [0, 1, 4, 5, 10, 11].map(epoch),
        [
            None,
            Some(EpochId(1)),
            Some(EpochId(1)),
            Some(EpochId(2)),
            Some(EpochId(3)),
            None
        ]
    );
    for round in 1..=10 {
        let epoch = epoch(round).unwrap();
        let last = epoch.last_round(&manifest);
        assert!((epoch.first_round(&manifest)..=last).contains(&RoundId(round)));
        assert!(manifest.ends_epoch(last));
    }
    let none: [&DecisionRecord; 0] = [];
    assert!(
        EpochScores::replay(&manifest, EpochId(4), none)
            .unwrap()
            .is_complete()
    );
}

#[test]
fn the_hash_of_a_table_is_pinned() {
    let table = ScoreTable {
        run: RunId(Hash([1; 32])),
        epoch: EpochId(2),
        rounds: 4,
        decision: Hash([3; 32]),
        scores: vec![
            PeerScore {
                peer: PeerKey([4; 32]),
                updates: 3,
                shards: 12,
                tokens: 480,
                share: SHARE_WHOLE / 2,
            },
            PeerScore {
                peer: PeerKey([5; 32]),
                updates: 4,
                shards: 16,
                tokens: 480,
                share: SHARE_WHOLE / 2,
            },
        ],
    };
    assert_eq!(table.encode().len(), 80 + 2 * 64);
    let pinned = "2dd4f0f73d28dcbc18d101cf214743ba4c71c17524bbff145cc5d2364c0b3b9e";
    assert_eq!(table.hash().to_string(), pinned);
}

#[test]
fn the_largest_score_weighs_65535_and_everyone_has_a_weight() {
    let uids = BTreeMap::from([(key(1), 3), (key(2), 0), (key(3), 1)]);
    let scores = [(key(1), 6), (key(2), 1), (key(3), 3)];
    // 65535 / 6 = 10922.5, up from half; 65535 / 2 = 32767.5.
    let expected = [(0, 10923), (1, 32768), (2, 0), (3, 65535), (4, 0)];
    assert_eq!(weights(scores, &uids, 5), expected);
}

#[test]
fn without_scores_all_weights_are_zero() {
    assert_eq!(weights([], &BTreeMap::new(), 3), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(weights([(key(1), 9)], &BTreeMap::new(), 1), [(0, 0)]);
    assert_eq!(weights([], &BTreeMap::new(), 0), []);
}

#[test]
fn who_has_no_uid_sets_no_scale_and_those_on_one_uid_add_up() {
    let uids = BTreeMap::from([(key(1), 0), (key(2), 1), (key(3), 1), (key(4), 7)]);
    let scores = [1, 2, 3, 4, 5].map(|peer| (key(peer), if peer < 4 { 5 } else { 1000 }));
    assert_eq!(weights(scores, &uids, 2), [(0, 32768), (1, 65535)]);
}

proptest! {
    #[test]
    fn weights_keep_the_order_of_scores(scores in prop::collection::vec(any::<u64>(), 1..20)) {
        let peers = (0..).zip(&scores).map(|(peer, score)| (PeerKey([peer; 32]), *score));
        let uids = (0..20u8).map(|peer| (PeerKey([peer; 32]), u16::from(peer))).collect();
        let weights = weights(peers, &uids, 20);
        for (a, (_, weight)) in scores.iter().zip(&weights) {
            for (b, (_, other)) in scores.iter().zip(&weights) {
                prop_assert!(a != b || weight == other);
                prop_assert!(a < b || weight >= other);
            }
        }
        let largest = weights.iter().map(|(_, weight)| *weight).max();
        prop_assert_eq!(largest, Some(if scores.iter().all(|s| *s == 0) { 0 } else { u16::MAX }));
    }
}
