//! Real daemons on loopback: two members and a validator, of whom one member cheats in some tests. Each scenario waits for
//! conditions, never for times.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gradmesh::state_dir::StateDir;
use gradmesh::status::{AuditStatus, Status, client};
use tempfile::TempDir;

/// The longest that any condition may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A model of some thousand parameters.
const MODEL: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true
}"#;

/// One scenario at a time: three daemons are enough for a small machine.
static TURN: Mutex<()> = Mutex::new(());

struct Daemon {
    dir: StateDir,
    child: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    fn start(dir: &Path, what: &[&str], threads: &str) -> Daemon {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.with_extension("log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gradmesh-daemon"))
            .arg("--dir")
            .arg(dir)
            .args(what)
            .args(["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"])
            .args([
                "--bulk-listen",
                "127.0.0.1:0",
                "--status-listen",
                "127.0.0.1:0",
            ])
            .args(["--device", "cpu", "--threads", threads])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon {
            dir: StateDir::new(dir),
            child,
        }
    }

    fn status(&self) -> Option<Status> {
        let address = self.dir.status_address().ok().flatten()?;
        if address.pid != self.child.id() {
            return None;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(client::status(&address.url)).ok()
    }

    /// Waits until the status is as wanted; gives back that.
    fn wait(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let began = Instant::now();
        loop {
            if let Some(status) = self.status().filter(&wanted) {
                return status;
            }
            let log = fs::read_to_string(self.dir.path().with_extension("log"));
            assert!(
                began.elapsed() < PATIENCE,
                "no {what} within {PATIENCE:?}; {:?}\n{}",
                self.status(),
                log.unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A launcher, a second member and a validator.
struct Run {
    _turn: MutexGuard<'static, ()>,
    home: TempDir,
    launcher: Daemon,
    member: Daemon,
    validator: Daemon,
}

impl Run {
    /// `member`: the command by which the second one joins. The validator computes with other threads than the members.
    fn start(member: &[&str]) -> Run {
        // A scenario that failed has ended.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("text");
        fs::create_dir(&data).unwrap();
        fs::write(
            data.join("licence.txt"),
            include_str!("../../LICENSE-APACHE"),
        )
        .unwrap();
        fs::write(home.path().join("config.json"), MODEL).unwrap();
        let run = r#"
            name = "audit test"
            model.config = "config.json"
            data.dir = "text"
            data.sequence_tokens = 32
            inner.batch_sequences = 8
            inner.learning_rate = 0.003
            inner.warmup_steps = 10
            codec.tiles_per_shard = 8
            schedule.steps_per_round = 12
            schedule.rounds = 1000
            schedule.rounds_per_epoch = 3
            trust.mode = "crash"
            trust.peers_min = 2
            timing.deadline_floor_ms = 1500
            timing.deadline_cap_ms = 8000
            [audit]
            segments = 3
            coverage = 1.0
            loss = 1.0
            loss_sequences = 8
        "#;
        let file = home.path().join("run.toml");
        fs::write(&file, run).unwrap();
        let at = |name: &str| home.path().join(name);
        let launcher = Daemon::start(&at("launcher"), &["launch", file.to_str().unwrap()], "1");
        let ticket = launcher
            .wait("ticket", |status| status.ticket.is_some())
            .ticket
            .unwrap();
        let joins: Vec<&str> = member.iter().copied().chain([ticket.as_str()]).collect();
        let member = Daemon::start(&at("member"), &joins, "1");
        let validator = Daemon::start(&at("validator"), &["validate", &ticket], "2");
        Run {
            _turn: turn,
            home,
            launcher,
            member,
            validator,
        }
    }

    fn gradmesh(&self, words: &[&str]) -> Output {
        let daemon = env!("CARGO_BIN_EXE_gradmesh-daemon");
        Command::new(daemon).args(words).output().unwrap()
    }

    fn evidence(&self) -> PathBuf {
        self.home.path().join("validator/evidence")
    }
}

/// What a daemon knows of audits: nothing while it starts.
fn audit(status: &Status) -> AuditStatus {
    status.audit.clone().unwrap_or_default()
}

#[test]
fn honest_peers_pass_every_audit_and_epochs_are_settled() {
    let run = Run::start(&["join"]);
    let status = run.validator.wait("second settled epoch", |status| {
        audit(status).settled_epoch >= 2
    });
    let found = audit(&status);
    assert!(found.validates && found.passed >= 8, "{found:?}");
    // Audits that it had no time for say nothing of anybody.
    assert_eq!((found.failed, found.grey), (0, 0), "{found:?}");
    assert!(
        status.roster.iter().all(|peer| !peer.own),
        "a validator is no member"
    );
    for member in [&run.launcher, &run.member] {
        let told = member.status().unwrap();
        assert!(audit(&told).findings.is_empty() && !audit(&told).validates);
    }
}

#[test]
fn a_member_that_does_half_is_found_told_suspended_and_its_evidence_stands() {
    let run = Run::start(&["cheat", "half"]);
    let cheat = run
        .member
        .wait("its identity", |status| !status.identity.peer.is_empty());
    let cheat = cheat.identity.peer;
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
    let file = run.evidence().join(format!("{}.cbor", finding.evidence));
    let replay =
        |file: &Path| run.gradmesh(&["evidence", "replay", file.to_str().unwrap(), "--json"]);
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
    let first = fs::read_dir(run.evidence().join("content")).unwrap().next();
    let content = first.unwrap().unwrap().path();
    fs::write(&content, b"something else").unwrap();
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
    let member = run
        .member
        .wait("its identity", |status| !status.identity.peer.is_empty());
    let member = member.identity.peer;
    assert_eq!(finding.peer, member);
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
