//! Real daemons on loopback: two members and a validator, of whom one member cheats in some tests. Each scenario waits for
//! conditions, never for times.

mod common;

use std::fs;

use common::{Daemon, audit, replay};

/// A launcher, a second member and a validator.
struct Run {
    member: Daemon,
    validator: Daemon,
    run: common::Run,
}

impl Run {
    /// `member`: the command by which the second one joins. The validator computes with other threads than the members.
    fn start(member: &[&str]) -> Run {
        let run = common::Run::launch(
            12,
            "segments = 3\ncoverage = 1.0\nloss = 1.0\nloss_sequences = 8",
        );
        Run {
            member: run.enter("member", member, "1"),
            validator: run.enter("validator", &["validate"], "2"),
            run,
        }
    }
}

#[test]
fn honest_peers_pass_every_audit_and_epochs_are_settled() {
    let run = Run::start(&["join"]);
    // It may join when some rounds have passed, and does not audit those.
    let what = "two settled epochs and eight audits";
    let status = run.validator.wait(what, |status| {
        audit(status).settled_epoch >= 2 && audit(status).passed >= 8
    });
    let found = audit(&status);
    assert!(found.validates, "{found:?}");
    // Audits that it had no time for say nothing of anybody.
    assert_eq!((found.failed, found.grey), (0, 0), "{found:?}");
    assert!(
        status.roster.iter().all(|peer| !peer.own),
        "a validator is no member"
    );
    for member in [&run.run.launcher, &run.member] {
        let told = member.status().unwrap();
        assert!(audit(&told).findings.is_empty() && !audit(&told).validates);
    }
}

#[test]
fn a_member_that_does_half_is_found_told_suspended_and_its_evidence_stands() {
    let run = Run::start(&["cheat", "half"]);
    let cheat = run.member.peer();
    let status = run
        .validator
        .wait("a finding", |status| !audit(status).findings.is_empty());
    let finding = audit(&status).findings[0].clone();
    assert_eq!(finding.peer, cheat);
    assert!(
        finding.words.contains("relative error 1 over"),
        "{finding:?}"
    );
    let status = run
        .validator
        .wait("a settled epoch", |status| audit(status).settled_epoch >= 1);
    assert!(audit(&status).suspended.contains_key(&cheat[..8]));
    assert!(
        audit(&status).findings.iter().all(|f| f.peer == cheat),
        "{status:?}"
    );
    // The cheat is told why it is not paid.
    let told = run.member.wait("what was found", |status| {
        !audit(status).findings.is_empty()
    });
    assert_eq!(audit(&told).findings[0].words, finding.words);

    // In a process of its own, while the validator goes on.
    let evidence = run.validator.evidence();
    let file = evidence.join(format!("{}.cbor", finding.evidence));
    let replayed = replay(&file);
    assert!(replayed.status.success(), "{replayed:?}");
    let replayed: serde_json::Value = serde_json::from_slice(&replayed.stdout).unwrap();
    assert_eq!(replayed["stands"], true);
    assert_eq!(replayed["error_ppb"], 1_000_000_000);
    // Whoever changes a byte of it is told so.
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let changed = file.with_file_name("changed.cbor");
    fs::write(&changed, bytes).unwrap();
    assert!(!replay(&changed).status.success());
    // Later findings keep contents there, too: all are changed.
    for content in fs::read_dir(evidence.join("content")).unwrap() {
        fs::write(content.unwrap().path(), b"something else").unwrap();
    }
    let refused = replay(&file);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && error.contains("missing or changed"),
        "{error}"
    );
}

#[test]
fn a_member_that_withholds_its_states_has_failed_after_two_tries() {
    let run = Run::start(&["cheat", "withhold"]);
    let status = run
        .validator
        .wait("a finding", |status| !audit(status).findings.is_empty());
    let finding = audit(&status).findings[0].clone();
    assert!(finding.words.contains("cannot be had"), "{finding:?}");
    assert_eq!(finding.peer, run.member.peer());
}

#[test]
fn work_that_was_done_before_a_crash_can_still_be_audited() {
    let mut run = Run::start(&["join"]);
    run.validator
        .wait("an audit", |status| audit(status).passed >= 2);
    run.member.child.kill().unwrap();
    run.member.child.wait().unwrap();
    let dir = run.member.dir.path().to_owned();
    run.member = Daemon::start(&dir, &["join"], "1");
    let before = run.validator.status().unwrap();
    let (passed, epoch) = (audit(&before).passed, audit(&before).settled_epoch);
    let status = run.validator.wait("audits after it", |status| {
        let audit = audit(status);
        audit.passed >= passed + 8 && audit.settled_epoch > epoch
    });
    // What it had to begin with after the crash is what the rules allow: nothing was provably wrong. A round that was cut off by
    // it may not be had, which is not held against work that was done.
    let found = audit(&status);
    let wrong = |words: &str| !words.contains("cannot be had");
    assert!(found.findings.iter().all(|f| !wrong(&f.words)), "{found:?}");
}
