//! Whether copying another validator's weights pays, measured in the chain's own Yuma.
//!
//! Rule `clip`: while auditors of one mind hold the majority of the stake, consensus is their weight in every column. A copy
//! that is late is cut to it where a share has fallen and stays below it where a share has risen, so that its bonds per
//! stake are at most theirs in every column, and its trust is 1 less what has moved.
//!
//! `cargo test -p gradmesh-devchain --test weight_copying -- --nocapture` prints the figures of `docs/validation.md`.

mod market;

use std::cmp::Ordering;

use market::{Conduct, Outcome, Setting, distance, mean, run};

const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;

/// Yuma counts shares in parts of this many.
const WHOLE: f64 = 65_535.0;

/// What a validator pays for its audits, as part of all dividends.
///
/// An audit costs 1 / `segments` of one miner's compute in each round that is covered (`coverage`), for every miner.
/// `burden`: what a miner's compute costs, as part of its emission: 1 where miners just break even. Miners together are
/// paid as much as validators together.
fn audit_cost(coverage: f64, segments: f64, burden: f64) -> f64 {
    burden * coverage / segments
}

/// Share of the stake below which copying pays more than auditing; more than 1 if it does for everyone.
fn break_even(outcomes: &[Outcome], cost: f64) -> f64 {
    let gained = over(outcomes, |o| {
        o.rate(Conduct::Audits) - o.rate(Conduct::Copies)
    });
    if gained > 0.0 {
        cost / gained
    } else {
        f64::INFINITY
    }
}

fn outcomes(setting: &Setting) -> Vec<Outcome> {
    SEEDS.map(|seed| run(setting, seed)).collect()
}

fn over(outcomes: &[Outcome], figure: impl Fn(&Outcome) -> f64) -> f64 {
    mean(outcomes.iter().map(figure))
}

/// Settings in which auditors agree exactly, and whether anything moves in every epoch.
fn of_one_mind() -> Vec<(Setting, bool)> {
    let still = Setting::new();
    vec![
        (still.clone(), false),
        (
            Setting {
                events: true,
                ..still.clone()
            },
            false,
        ),
        (
            Setting {
                drift: 0.01,
                ..still.clone()
            },
            true,
        ),
        (
            Setting {
                drift: 0.1,
                events: true,
                ..still.clone()
            },
            true,
        ),
        (
            Setting {
                drift: 0.03,
                reveal_period: 4,
                ..still.clone()
            },
            true,
        ),
        (
            Setting {
                drift: 0.1,
                yuma3: true,
                ..still.clone()
            },
            true,
        ),
        (
            Setting {
                common_noise: 0.02,
                ..still
            },
            true,
        ),
    ]
}

#[test]
fn copy_never_earns_more_than_auditors_of_one_mind_and_less_in_every_epoch_if_shares_move() {
    for (setting, moves) in of_one_mind() {
        for run in outcomes(&setting).iter().flat_map(|outcome| &outcome.runs) {
            // Rule `clip`. Stakes are equal, so that every step of the arithmetic, which rounds down, keeps the order.
            let (audits, copies) = (run.rates[0], run.rates[4]);
            assert!(copies <= audits, "{copies} for {audits} in {setting:?}");
            assert!(!moves || copies < audits, "{copies} in {setting:?}");
            assert_eq!(run.rates[..4], [audits; 4]);
        }
    }
}

#[test]
fn trust_is_what_weights_share_with_those_of_auditors_of_one_mind() {
    for (setting, _) in of_one_mind() {
        for run in outcomes(&setting).iter().flat_map(|outcome| &outcome.runs) {
            for (trust, shares) in run.trust.iter().zip(&run.shares) {
                // The sum of min(a, b) is 1 less half the sum of |a - b|. Yuma rounds each of at most 19 shares down to
                // 2^-32, and the sum to a whole part of 65,535.
                let expected = WHOLE * (1.0 - distance(shares, &run.shares[0]));
                let low = expected - f64::from(*trust);
                assert!((-1e-6..1.001).contains(&low), "{trust} for {expected}");
            }
        }
    }
}

#[test]
fn where_nothing_moves_a_copy_earns_the_same_and_saves_the_audits() {
    for outcome in outcomes(&Setting::new()) {
        for run in &outcome.runs {
            assert_eq!(run.rates[..5], [run.rates[4]; 5]);
        }
        // At the lowest rate of audits and cheap compute, and still.
        let share = 1.0 / 6.0;
        let audits = share * outcome.rate(Conduct::Audits) - audit_cost(0.2, 30.0, 0.1);
        assert!(audits < share * outcome.rate(Conduct::Copies));
    }
}

#[test]
fn auditors_on_shared_picks_are_trusted_more_than_a_copy_wherever_shares_moved_more_than_their_noise()
 {
    let own_noise = 0.005;
    let setting = Setting {
        drift: 0.1,
        own_noise,
        ..Setting::new()
    };
    // What an auditor says is the true share times at least 1/e and at most e. So is consensus, which auditors with the
    // majority set. An auditor's trust, the sum of the smaller ones of its weights and consensus, is at least 1/e; that of a
    // copy is at most e times what the shares of now and then have in common. Weights are rounded to parts of 65,535 of the
    // largest: half a part for each of 16, in the weights and in what they are divided by, and one part for the trust itself.
    let e = (1.0 + own_noise) / (1.0 - own_noise);
    let rounding = (16.0 + 1.0) / WHOLE;
    let (mut beyond, mut all) = (0, 0);
    for run in outcomes(&setting).iter().flat_map(|outcome| &outcome.runs) {
        all += 1;
        if e * (1.0 - run.moved) + rounding < 1.0 / e - rounding {
            beyond += 1;
            assert!(run.trust[..4].iter().all(|trust| *trust > run.trust[4]));
        }
    }
    assert!(beyond > all / 2, "{beyond} of {all}");
}

#[test]
fn longer_reveal_periods_cost_a_copy_more() {
    let of = |reveal_period| Setting {
        reveal_period,
        drift: 0.03,
        own_noise: 0.005,
        ..Setting::new()
    };
    let [one, two, four] = [1, 2, 4].map(|period| outcomes(&of(period)));
    for ((one, two), four) in one.iter().zip(&two).zip(&four) {
        assert!(one.loss(Conduct::Copies) < two.loss(Conduct::Copies));
        assert!(two.loss(Conduct::Copies) < four.loss(Conduct::Copies));
    }
}

#[test]
fn who_is_late_on_newcomers_lacks_their_bonds_for_a_while() {
    let events = Setting {
        events: true,
        ..Setting::new()
    };
    for outcome in outcomes(&events) {
        // Shares move in four epochs. A copy lacks its part of the one that is caught for one epoch. But bonds on a newcomer
        // are first all with those who weighed it first, and go over by a tenth an epoch: 1 + 0.9 + 0.81 + .. = 10 epochs'
        // worth. A newcomer is 3 strong and the one that is caught at most 8, so that the loss is about (8 + 3 * 30) /
        // (8 + 3 * 3) = 5.8 times what moved at least; shares are of sums that differ by less than a tenth.
        assert!(outcome.loss(Conduct::Copies) > 5.0 * outcome.moved());
    }
}

#[test]
fn equal_weights_earn_less_than_a_copy() {
    for (setting, _) in of_one_mind() {
        for outcome in outcomes(&setting) {
            assert!(outcome.rate(Conduct::Equal) < outcome.rate(Conduct::Copies));
        }
    }
}

/// Two auditors and those who copy them, who hold `percent` of the stake.
fn copied_by(percent: u64) -> Setting {
    let audits = (Conduct::Audits, (100 - percent) * 5);
    Setting {
        validators: vec![audits, audits, (Conduct::Copies, percent * 10)],
        drift: 0.1,
        own_noise: 0.005,
        ..Setting::new()
    }
}

/// Four auditors, and one that copies beside one that counts claims.
fn counted() -> Setting {
    let mut validators = vec![(Conduct::Audits, 100); 4];
    validators.extend([(Conduct::Copies, 100), (Conduct::Counts, 100)]);
    Setting {
        validators,
        drift: 0.1,
        own_noise: 0.005,
        ..Setting::new()
    }
}

#[test]
fn who_counts_public_claims_is_late_only_on_what_audits_measure() {
    let claims_are_all = counted();
    let quality_too = Setting {
        common_noise: 0.02,
        ..counted()
    };
    let [claims, quality] = [claims_are_all, quality_too].map(|setting| outcomes(&setting));
    let loss = |outcome: &Outcome| 100.0 * outcome.loss(Conduct::Counts);
    println!("who counts claims loses {:.2} %", over(&claims, loss));
    println!("with quality {:.2} %", over(&quality, loss));
    for (claims, quality) in claims.iter().zip(&quality) {
        assert!(claims.loss(Conduct::Copies) > 0.0 && claims.loss(Conduct::Counts) < 0.0);
        assert!(quality.loss(Conduct::Copies) > quality.loss(Conduct::Counts));
        assert!(quality.loss(Conduct::Counts) > 0.0);
    }
}

#[test]
fn cost_of_audits_decides_for_small_validators() {
    let moving = Setting {
        drift: 0.1,
        own_noise: 0.005,
        ..Setting::new()
    };
    let share = 1.0 / 6.0;
    for outcome in outcomes(&moving) {
        let net = |cost: f64| share * outcome.rate(Conduct::Audits) - cost;
        let copies = share * outcome.rate(Conduct::Copies);
        assert!(net(audit_cost(0.2, 30.0, 0.5)) > copies);
        assert!(net(audit_cost(1.0, 30.0, 0.5)) < copies);
    }
}

/// A row of the table: what it is called, and whether a copy loses (greater), earns the same or gains (less).
struct Row {
    label: String,
    setting: Setting,
    loses: Ordering,
}

fn rows() -> Vec<Row> {
    use Ordering::{Equal, Greater, Less};
    let still = Setting::new();
    let shared = Setting {
        own_noise: 0.005,
        ..still.clone()
    };
    let mut rows = Vec::new();
    for (drift, common_noise, own_noise, loses) in [
        (0.0, 0.0, 0.0, Equal),
        (0.01, 0.0, 0.0, Greater),
        (0.1, 0.0, 0.0, Greater),
        (0.0, 0.0, 0.005, Less),
        (0.01, 0.0, 0.005, Greater),
        (0.03, 0.0, 0.005, Greater),
        (0.1, 0.0, 0.005, Greater),
        (0.3, 0.0, 0.005, Greater),
        (0.0, 0.02, 0.005, Greater),
        (0.03, 0.02, 0.005, Greater),
        (0.0, 0.0, 0.05, Less),
        (0.03, 0.0, 0.05, Less),
        (0.1, 0.0, 0.05, Greater),
    ] {
        rows.push(Row {
            label: format!(
                "work {:.0} %, shared noise {:.0} %, own {:.1} %",
                100.0 * drift,
                100.0 * common_noise,
                100.0 * own_noise
            ),
            setting: Setting {
                drift,
                common_noise,
                own_noise,
                ..still.clone()
            },
            loses,
        });
    }
    let moving = Setting {
        drift: 0.1,
        ..shared.clone()
    };
    let slow = Setting {
        drift: 0.03,
        ..shared.clone()
    };
    for (label, setting, loses) in [
        (
            "still, but one is caught and three join",
            Setting {
                events: true,
                ..still
            },
            Greater,
        ),
        (
            "work 10 %, one is caught and three join",
            Setting {
                events: true,
                ..moving.clone()
            },
            Greater,
        ),
        (
            "work 3 %, reveal period 2",
            Setting {
                reveal_period: 2,
                ..slow.clone()
            },
            Greater,
        ),
        (
            "work 3 %, reveal period 4",
            Setting {
                reveal_period: 4,
                ..slow
            },
            Greater,
        ),
        (
            "work 10 %, bonds of Yuma3",
            Setting {
                yuma3: true,
                ..moving
            },
            Greater,
        ),
        (
            "work 10 %, copies hold 49 % of the stake",
            copied_by(49),
            Greater,
        ),
        (
            "work 10 %, copies hold 52 % of the stake",
            copied_by(52),
            Less,
        ),
    ] {
        rows.push(Row {
            label: label.to_owned(),
            setting,
            loses,
        });
    }
    rows
}

#[test]
fn copy_loses_where_shares_move_by_more_than_auditors_differ_and_auditors_hold_the_majority() {
    println!(
        "| setting | moved | trust of auditors | of the copy | copy loses | break-even | equal weights lose |"
    );
    println!("|---|---|---|---|---|---|---|");
    for Row {
        label,
        setting,
        loses,
    } in rows()
    {
        let outcomes = outcomes(&setting);
        let loss = |outcome: &Outcome| outcome.loss(Conduct::Copies);
        println!(
            "| {label} | {:.2} % | {:.4} | {:.4} | {:.2} % | {:.1} % | {:.1} % |",
            100.0 * over(&outcomes, Outcome::moved),
            over(&outcomes, |outcome| outcome.trust(Conduct::Audits)),
            over(&outcomes, |outcome| outcome.trust(Conduct::Copies)),
            100.0 * over(&outcomes, loss),
            100.0 * break_even(&outcomes, audit_cost(0.2, 30.0, 0.5)),
            100.0 * over(&outcomes, |outcome| outcome.loss(Conduct::Equal)),
        );
        for outcome in &outcomes {
            assert_eq!(loss(outcome).partial_cmp(&0.0), Some(loses), "{label}");
        }
    }
}
