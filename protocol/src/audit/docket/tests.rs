//! Cases with a few validators, heard in every order that matters.

use proptest::prelude::*;

use super::Outcome::{Failed, Grey, Passed};
use super::*;
use crate::audit::verdict::Check;
use crate::manifest::RunId;

const PEER: PeerKey = PeerKey([200; 32]);
const ROUND: RoundId = RoundId(7);
const HEADER: Hash = Hash([4; 32]);
const CHALLENGE: Hash = Hash([5; 32]);

/// Validators in the order of the case of `PEER`.
fn drawn(count: u8) -> Vec<PeerKey> {
    let sorted: Vec<_> = (1..=count).map(|byte| PeerKey([byte; 32])).collect();
    order(&sorted, &CHALLENGE, &PEER)
}

fn docket(own: Option<PeerKey>, count: u8) -> Docket {
    let mut docket = Docket::new(own);
    docket.set_validators(drawn(count));
    docket.decided(RoundId(8));
    let effects = docket.challenged(ROUND, CHALLENGE, [(PEER, HEADER)]);
    assert_eq!(effects, []);
    docket
}

fn verdict(validator: PeerKey, outcome: Outcome) -> Verdict {
    let failed = outcome == Outcome::Failed;
    Verdict {
        run: RunId(Hash([9; 32])),
        round: ROUND,
        peer: PEER,
        header: HEADER,
        validator,
        challenge: CHALLENGE,
        segment: 3,
        check: Check::Segment,
        outcome,
        error_ppb: if failed { 520_000_000 } else { 0 },
        tolerance_ppb: 20_000_000,
        evidence: if failed { Hash([1; 32]) } else { Hash::ZERO },
    }
}

fn say(docket: &mut Docket, validator: PeerKey, outcome: Outcome) -> Vec<Effect> {
    docket.hear(&verdict(validator, outcome)).unwrap()
}

const OPENED: Effect = Effect::Opened {
    peer: PEER,
    round: ROUND,
};

fn closed(outcome: Outcome, outvoted: &[PeerKey]) -> Effect {
    let failed = outcome == Failed;
    let mut outvoted = outvoted.to_vec();
    outvoted.sort();
    Effect::Closed {
        peer: PEER,
        round: ROUND,
        outcome,
        finding: failed.then(|| Finding::of(&verdict(PEER, Failed))),
        outvoted,
    }
}

#[test]
fn two_of_three_fail_a_peer_and_the_third_is_outvoted() {
    let v = drawn(5);
    let mut docket = docket(None, 5);
    assert_eq!(say(&mut docket, v[4], Failed), [OPENED]);
    assert_eq!(docket.open().collect::<Vec<_>>(), [(ROUND, PEER)]);
    assert_eq!(docket.outcome(ROUND, &PEER), None);
    assert_eq!(say(&mut docket, v[0], Passed), []);
    assert_eq!(
        say(&mut docket, v[1], Failed),
        [],
        "now the accuser; 0 and 2 sit beside it"
    );
    assert_eq!(say(&mut docket, v[3], Passed), [], "has no seat");
    let end = say(&mut docket, v[2], Failed);
    assert_eq!(end, [closed(Failed, &[v[0], v[3]])]);
    assert_eq!(docket.outcome(ROUND, &PEER), Some(Failed));
    assert_eq!(docket.open().count(), 0);
    let record = Record {
        verdicts: 1,
        outvoted: 1,
        ..Record::default()
    };
    assert_eq!(docket.record_of(&v[0]), record);
    assert_eq!(docket.record_of(&v[1]).outvoted, 0);
}

#[test]
fn an_accuser_that_two_others_contradict_is_outvoted() {
    let v = drawn(5);
    let mut docket = docket(None, 5);
    say(&mut docket, v[3], Failed);
    say(&mut docket, v[1], Grey);
    assert_eq!(say(&mut docket, v[0], Passed), [closed(Grey, &[v[3]])]);
    assert_eq!(docket.record_of(&v[3]).outvoted, 1);
    // Closed is closed; who still says otherwise is counted too.
    assert_eq!(say(&mut docket, v[2], Failed), []);
    assert_eq!(docket.record_of(&v[2]).outvoted, 1);
    assert_eq!(docket.outcome(ROUND, &PEER), Some(Grey));
}

#[test]
fn who_is_drawn_is_asked_once_and_not_if_it_has_spoken() {
    let v = drawn(5);
    let asked = Effect::AuditAsPanelist {
        peer: PEER,
        round: ROUND,
        segment: 3,
    };
    let mut second = docket(Some(v[1]), 5);
    assert_eq!(say(&mut second, v[4], Failed), [OPENED, asked.clone()]);
    assert_eq!(say(&mut second, v[3], Failed), []);

    let mut spoken = docket(Some(v[1]), 5);
    say(&mut spoken, v[1], Passed);
    assert_eq!(say(&mut spoken, v[4], Failed), [OPENED]);

    let mut fourth = docket(Some(v[3]), 5);
    assert_eq!(say(&mut fourth, v[2], Failed), [OPENED]);
    // 0 and 1 were seated in round 8 and say nothing.
    assert_eq!(fourth.decided(RoundId(9)), []);
    assert_eq!(fourth.decided(RoundId(10)), [asked]);
    assert_eq!(fourth.decided(RoundId(11)), []);
    assert_eq!(fourth.record_of(&v[0]).silent, 1);
    assert_eq!(fourth.record_of(&v[3]).silent, 0);
}

#[test]
fn a_silent_panelist_is_replaced_for_good() {
    let v = drawn(5);
    let mut docket = docket(None, 5);
    say(&mut docket, v[4], Failed);
    assert_eq!(docket.decided(RoundId(10)), []);
    let silent = [0, 1, 2].map(|place: usize| docket.record_of(&v[place]).silent);
    assert_eq!(silent, [1, 1, 0]);
    assert_eq!(say(&mut docket, v[0], Failed), [], "too late");
    assert_eq!(say(&mut docket, v[2], Passed), []);
    let end = say(&mut docket, v[3], Passed);
    assert_eq!(end, [closed(Passed, &[v[0], v[4]])]);
}

#[test]
fn if_nobody_is_left_those_who_answered_decide_and_a_tie_acquits() {
    let v = drawn(4);
    let mut two = docket(None, 4);
    say(&mut two, v[0], Failed);
    assert_eq!(
        two.decided(RoundId(10)),
        [],
        "1 and 2 lose their seats to 3"
    );
    assert_eq!(say(&mut two, v[3], Failed), [closed(Failed, &[])]);

    let mut tie = docket(None, 4);
    say(&mut tie, v[0], Failed);
    tie.decided(RoundId(10));
    assert_eq!(say(&mut tie, v[3], Passed), [closed(Passed, &[v[0]])]);
}

#[test]
fn who_accuses_alone_fails_nobody_while_others_are_silent_and_is_not_flagged() {
    let v = drawn(4);
    let mut docket = docket(None, 4);
    say(&mut docket, v[0], Failed);
    assert_eq!(docket.decided(RoundId(10)), []);
    assert_eq!(
        docket.decided(RoundId(17)),
        [],
        "3 has no other to replace it"
    );
    assert_eq!(docket.decided(RoundId(18)), [closed(Passed, &[])]);
    // Another who says so is too late, and not outvoted either; whoever speaks after one that passes the peer is.
    say(&mut docket, v[1], Failed);
    assert_eq!(docket.record_of(&v[1]).outvoted, 0);
    say(&mut docket, v[2], Passed);
    say(&mut docket, v[3], Failed);
    let outvoted = [0, 1, 3].map(|place: usize| docket.record_of(&v[place]).outvoted);
    assert_eq!(outvoted, [0, 0, 1]);
}

#[test]
fn fewer_than_three_validators_must_agree() {
    let one = drawn(1);
    let mut alone = docket(None, 1);
    assert_eq!(
        say(&mut alone, one[0], Failed),
        [OPENED, closed(Failed, &[])]
    );

    let v = drawn(2);
    for accuser in [0, 1] {
        let (accuser, other) = (v[accuser], v[1 - accuser]);
        let mut agree = docket(None, 2);
        assert_eq!(say(&mut agree, accuser, Failed), [OPENED]);
        assert_eq!(say(&mut agree, other, Failed), [closed(Failed, &[])]);
        let mut differ = docket(None, 2);
        say(&mut differ, accuser, Failed);
        assert_eq!(
            say(&mut differ, other, Passed),
            [closed(Passed, &[accuser])]
        );
        let mut silent = docket(None, 2);
        say(&mut silent, accuser, Failed);
        assert_eq!(silent.decided(RoundId(15)), []);
        assert_eq!(silent.decided(RoundId(16)), [closed(Passed, &[])]);
    }
}

#[test]
fn a_pass_closes_a_round_until_somebody_fails_it() {
    let v = drawn(3);
    let mut docket = docket(None, 3);
    assert_eq!(docket.outcome(ROUND, &PEER), None);
    assert_eq!(say(&mut docket, v[0], Passed), [closed(Passed, &[])]);
    assert_eq!(say(&mut docket, v[1], Failed), [OPENED]);
    assert_eq!(docket.outcome(ROUND, &PEER), None);
    assert_eq!(say(&mut docket, v[2], Failed), [closed(Failed, &[v[0]])]);
}

#[test]
fn two_words_of_one_validator_count_as_none() {
    let v = drawn(3);
    let mut docket = docket(None, 3);
    say(&mut docket, v[0], Failed);
    let contradicted = Effect::Contradicted {
        validator: v[0],
        peer: PEER,
        round: ROUND,
    };
    let effects = say(&mut docket, v[0], Passed);
    assert_eq!(effects, [contradicted, closed(Passed, &[])]);
    assert_eq!(docket.record_of(&v[0]).contradictions, 1);
    assert_eq!(docket.outcome(ROUND, &PEER), None, "nobody has looked");
    let again = docket.hear(&verdict(v[0], Grey));
    assert_eq!(again, Err(Unheard::Repeated));
    // The others judge without it.
    assert_eq!(say(&mut docket, v[1], Failed), [OPENED]);
    assert_eq!(say(&mut docket, v[2], Failed), [closed(Failed, &[])]);
}

#[test]
fn what_does_not_belong_here_is_not_heard() {
    let v = drawn(3);
    let mut docket = docket(None, 3);
    let good = verdict(v[0], Failed);
    let before = docket.clone();
    let stranger = PeerKey([77; 32]);
    let refused = [
        (
            Verdict {
                validator: stranger,
                ..good.clone()
            },
            Unheard::NoValidator(stranger),
        ),
        (
            Verdict {
                round: RoundId(8),
                ..good.clone()
            },
            Unheard::TooEarly(RoundId(8)),
        ),
        (
            Verdict {
                round: RoundId(6),
                ..good.clone()
            },
            Unheard::OtherRound(RoundId(6)),
        ),
        (
            Verdict {
                peer: stranger,
                ..good.clone()
            },
            Unheard::OtherHeader(HEADER),
        ),
        (
            Verdict {
                header: Hash::ZERO,
                ..good.clone()
            },
            Unheard::OtherHeader(Hash::ZERO),
        ),
        (
            Verdict {
                challenge: Hash::ZERO,
                ..good.clone()
            },
            Unheard::OtherChallenge(Hash::ZERO),
        ),
    ];
    for (verdict, reason) in refused {
        assert_eq!(docket.hear(&verdict), Err(reason));
    }
    assert_eq!(docket, before);
    docket.hear(&good).unwrap();
    assert_eq!(docket.hear(&good), Err(Unheard::Repeated));
}

#[test]
fn memory_is_bounded_and_what_is_dropped_open_acquits() {
    let v = drawn(3);
    let mut docket = docket(None, 3);
    say(&mut docket, v[0], Failed);
    let rounds = ROUNDS_MAX as u64;
    for round in 8..7 + rounds {
        assert_eq!(docket.challenged(RoundId(round), CHALLENGE, []), []);
    }
    let effects = docket.challenged(RoundId(7 + rounds), CHALLENGE, []);
    assert_eq!(effects, [closed(Passed, &[])]);
    assert_eq!(docket.rounds.len(), ROUNDS_MAX);
    assert_eq!(
        docket.hear(&verdict(v[1], Failed)),
        Err(Unheard::OtherRound(ROUND))
    );

    let many = (0..300u16).map(|n| {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        PeerKey(key)
    });
    docket.set_validators(many);
    assert_eq!(docket.validators.len(), VALIDATORS_MAX);
    assert_eq!(docket.record_of(&v[0]), Record::default());
}

#[test]
fn every_validator_is_as_likely_as_any_other_to_sit() {
    let sorted: Vec<_> = (0..6).map(|byte| PeerKey([byte; 32])).collect();
    let mut first = [0u32; 6];
    for n in 0..12_000u32 {
        let drawn = order(&sorted, &Hash::of_content(&n.to_le_bytes()), &PEER);
        first[usize::from(drawn[1].0[0])] += 1;
    }
    // 2000 each; standard deviation sqrt(12000 * 5/36) = 41; five of them.
    assert!(
        first.iter().all(|count| count.abs_diff(2000) < 205),
        "{first:?}"
    );
}

proptest! {
    /// Without seats that are lost, the outcome follows from what is said, not from when: it is what two of the first three of
    /// the order say, or all of fewer.
    #[test]
    fn the_order_of_verdicts_does_not_matter(
        (words, shuffled) in prop::collection::vec(0..3usize, 1..8)
            .prop_flat_map(|words| {
                let said: Vec<_> = words.into_iter().enumerate().collect();
                (Just(said.clone()), Just(said).prop_shuffle())
            }),
    ) {
        let count = u8::try_from(words.len()).unwrap();
        let v = drawn(count);
        let outcome = |words: &[(usize, usize)]| {
            let mut docket = docket(None, count);
            for (validator, word) in words {
                say(&mut docket, v[*validator], [Passed, Grey, Failed][*word]);
            }
            (docket.outcome(ROUND, &PEER).unwrap(), docket)
        };
        let ((one, first), (two, second)) = (outcome(&words), outcome(&shuffled));
        prop_assert_eq!(one == Failed, two == Failed);
        let seats = &words[..words.len().min(SEATS)];
        let failed = seats.iter().filter(|(_, word)| *word == 2).count();
        prop_assert_eq!(one == Failed, 2 * failed > seats.len());
        for validator in &v {
            prop_assert_eq!(first.record_of(validator), second.record_of(validator));
        }
    }
}
