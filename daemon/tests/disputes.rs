//! Real daemons on loopback: two members and three validators, of whom one lies or one member cheats. Each scenario waits for
//! conditions, never for times.

mod common;

use std::path::PathBuf;

use common::{Daemon, EPOCH_ROUNDS, Run, audit, gradmesh, replay};
use gradmesh::status::{FindingState, FindingStatus, ScoreStatus, Status};

/// Validators keep up with rounds of so many, however busy the machine is: members do far more.
const STEPS: u32 = 60;
const SEGMENTS: &str = "segments = 6\nloss = 0.0";

/// The settled scores of the epoch of `round`.
fn scores(status: &Status, round: u64) -> Option<Vec<ScoreStatus>> {
    let epoch = round.div_ceil(EPOCH_ROUNDS);
    let mut settled = audit(status).settled.into_iter();
    let of_epoch = settled.find(|settled| settled.epoch == epoch);
    of_epoch.map(|settled| settled.scores)
}

/// A round in which `liar` was overruled and whose epoch is settled.
fn overruled(status: &Status, liar: &str) -> Option<u64> {
    let findings = audit(status).findings.into_iter();
    let mut of_liar = findings.filter(|finding| {
        finding.validator == liar[..8] && finding.state == FindingState::Overruled
    });
    let settled = of_liar.find(|finding| scores(status, finding.round).is_some());
    settled.map(|finding| finding.round)
}

/// That a liar has failed members, and nobody believes it: gives back a round about which it lied.
fn assert_outvoted(honest: &Daemon, liar: &str, members: &[String]) -> u64 {
    let status = honest.wait("settled epoch with a lie", |status| {
        let flagged = audit(status).flagged;
        overruled(status, liar).is_some() && flagged.contains_key(&liar[..8])
    });
    let found = audit(&status);
    assert_eq!(found.flagged.len(), 1, "{found:?}");
    assert_eq!((found.failed, found.grey), (0, 0), "{found:?}");
    assert!(found.suspended.is_empty(), "{found:?}");
    assert!(!found.findings.iter().any(stands), "{found:?}");
    let round = overruled(&status, liar).unwrap();
    let paid = scores(&status, round).unwrap();
    let tokens: u64 = paid.iter().map(|score| score.tokens).sum();
    assert_eq!(paid.len(), members.len(), "{paid:?}");
    for score in &paid {
        assert!(members.contains(&score.peer), "{paid:?}");
        assert_eq!(score.tokens_paid, score.tokens, "{paid:?}");
        assert_eq!(score.quality_ppm, 1_000_000, "{paid:?}");
        // Twice rounded down.
        let share = score.tokens * 1_000_000 / tokens;
        assert!(share.abs_diff(score.share_ppm) <= 1, "{paid:?}");
    }
    round
}

fn stands(finding: &FindingStatus) -> bool {
    finding.state == FindingState::Stands
}

/// Whether there is a round on which three validators have spoken, and what all three say stands.
fn has_agreement(status: &Status) -> bool {
    let findings = audit(status).findings;
    let of = |round: u64| findings.iter().filter(move |f| f.round == round);
    let mut rounds = findings.iter().map(|finding| finding.round);
    rounds.any(|round| of(round).count() == 3 && of(round).all(stands))
}

/// Whether evidence that `validator` wrote stands, by a replay in a process of its own.
fn replayed(validator: &Daemon) -> bool {
    let own = &validator.peer()[..8];
    let status = validator.wait("evidence", |status| {
        audit(status).findings.iter().any(|f| f.validator == own)
    });
    let findings = audit(&status).findings;
    let of_own = findings.iter().find(|f| f.validator == own).unwrap();
    let replayed = replay(&cbor(validator, of_own));
    assert!(replayed.status.success(), "{replayed:?}");
    let replayed: serde_json::Value = serde_json::from_slice(&replayed.stdout).unwrap();
    replayed["stands"].as_bool().unwrap()
}

fn cbor(validator: &Daemon, finding: &FindingStatus) -> PathBuf {
    let name = format!("{}.cbor", finding.evidence);
    validator.evidence().join(name)
}

#[test]
fn a_validator_that_lies_is_outvoted_and_flagged_and_the_members_are_paid() {
    let run = Run::launch(STEPS, &format!("{SEGMENTS}\ncoverage = 1.0"));
    let member = run.enter("member", &["join"], "1");
    let honest = ["first", "second"].map(|name| run.enter(name, &["validate"], "1"));
    for validator in &honest {
        validator.wait("audit", |status| audit(status).passed >= 1);
    }
    for daemon in honest.iter().chain([&run.launcher, &member]) {
        daemon.wait("validators", |status| audit(status).validators == 2);
    }
    let liar = run.enter("liar", &["slander"], "1");
    let peer = liar.peer();
    let members = [run.launcher.peer(), member.peer()];
    let rounds = honest
        .each_ref()
        .map(|validator| assert_outvoted(validator, &peer, &members));

    // Both pay the same, whoever heard the lie first.
    for round in rounds {
        let [first, second] = honest.each_ref().map(|validator| {
            let status = validator.wait("settled epoch", |status| {
                scores(status, round).is_some() || audit(status).settled_epoch > round
            });
            scores(&status, round)
        });
        assert_eq!(first, second);
    }
    // Who was lied about knows what became of it; so does whoever asks.
    let told = member.wait("word that it is cleared", |status| {
        let findings = audit(status).findings;
        findings.iter().any(|f| f.state == FindingState::Overruled)
    });
    let told = audit(&told);
    assert!(told.findings.iter().all(|f| f.peer == members[1]));
    assert!(told.suspended.is_empty() && told.flagged.contains_key(&peer[..8]));
    let text = gradmesh(&["--dir", honest[0].dir.path().to_str().unwrap(), "status"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("(overruled: it does not count)"), "{text}");
    assert!(
        text.contains(&format!("validator {}", &peer[..8])),
        "{text}"
    );

    // Its evidence does not contradict itself. It does not stand either.
    assert!(!replayed(&liar));
}

#[test]
fn a_panel_does_again_what_only_a_liar_has_looked_at() {
    // While the liar is the only validator, its word decides, and it audits whom it has suspended in every round afterwards. Those
    // who come later know nothing of that, and audit half of the rounds once members are no newcomers any more.
    let run = Run::launch(
        STEPS,
        &format!("{SEGMENTS}\ncoverage = 0.5\nprobation_rounds = 20\nsuspension_rounds = 3"),
    );
    let member = run.enter("member", &["join"], "1");
    let liar = run.enter("liar", &["slander"], "1");
    liar.wait("end of probation", |status| {
        status.history.back().is_some_and(|round| round.round > 20) && audit(status).failed >= 1
    });
    let honest = ["first", "second"].map(|name| run.enter(name, &["validate"], "1"));
    let (peer, members) = (liar.peer(), [run.launcher.peer(), member.peer()]);
    for validator in &honest {
        validator.wait("panel", |status| {
            let found = audit(status);
            found.panels >= 1 && found.validators == 3 && found.passed >= found.panels
        });
        assert_outvoted(validator, &peer, &members);
    }
}

#[test]
fn three_validators_agree_on_a_cheat_and_the_evidence_of_all_stands() {
    let run = Run::launch(STEPS, &format!("{SEGMENTS}\ncoverage = 1.0"));
    let cheat = run.enter("cheat", &["cheat", "half"], "1");
    let names = ["first", "second", "third"];
    let validators = names.map(|name| run.enter(name, &["validate"], "1"));
    let cheat_peer = cheat.peer();
    for validator in &validators {
        let found = audit(&validator.wait("verdict of all", has_agreement));
        assert!(found.suspended.contains_key(&cheat_peer[..8]), "{found:?}");
        assert!(found.flagged.is_empty(), "{found:?}");
        let of_cheat = |f: &FindingStatus| f.peer == cheat_peer;
        assert!(found.findings.iter().all(of_cheat), "{found:?}");
        assert!(replayed(validator));
    }
    let told = cheat.wait("finding", |status| {
        audit(status).findings.iter().any(stands)
    });
    assert!(audit(&told).suspended.contains_key(&cheat_peer[..8]));

    // Of the six segments it does the first three. Any of the three validators may be the one that searches.
    let found = validators[0].wait("search", |status| {
        let findings = audit(status).findings;
        findings.iter().any(|f| f.first_failing.is_some())
    });
    let findings = audit(&found).findings.into_iter();
    for first in findings.filter_map(|finding| finding.first_failing) {
        assert_eq!(first, 3);
    }
}
