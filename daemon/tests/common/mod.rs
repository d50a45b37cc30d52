//! Real daemons on loopback in a run with audits, for scenarios that wait for conditions, never for times.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gradmesh::state_dir::StateDir;
use gradmesh::status::{AuditStatus, Status, client};
use tempfile::TempDir;

/// The longest that any condition may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(180);

/// A model of some thousand parameters.
const MODEL: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true
}"#;

/// Rounds of an epoch.
pub(crate) const EPOCH_ROUNDS: u64 = 3;

/// One scenario at a time: a handful of daemons is enough for a small machine.
static TURN: Mutex<()> = Mutex::new(());

/// A process that is killed when it is dropped.
pub(crate) struct Daemon {
    pub(crate) dir: StateDir,
    pub(crate) child: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub(crate) fn start(dir: &Path, what: &[&str], threads: &str) -> Daemon {
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

    pub(crate) fn status(&self) -> Option<Status> {
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
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
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

    /// Its key, 64 hex digits.
    pub(crate) fn peer(&self) -> String {
        let status = self.wait("identity", |status| !status.identity.peer.is_empty());
        status.identity.peer
    }

    /// Where a validator keeps its evidence.
    pub(crate) fn evidence(&self) -> PathBuf {
        self.dir.path().join("evidence")
    }
}

/// A run, and where its daemons have their directories.
pub(crate) struct Run {
    _turn: MutexGuard<'static, ()>,
    home: TempDir,
    ticket: String,
    pub(crate) launcher: Daemon,
}

impl Run {
    /// `steps`: of a round, which take far longer than what else there is to do in it if they are many. `audit`: lines of the run
    /// file's section.
    pub(crate) fn launch(steps: u32, audit: &str) -> Run {
        // A scenario that failed has ended.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("text");
        fs::create_dir(&data).unwrap();
        let text = include_str!("../../../LICENSE-APACHE");
        fs::write(data.join("licence.txt"), text).unwrap();
        fs::write(home.path().join("config.json"), MODEL).unwrap();
        let run = format!(
            r#"
            name = "audit test"
            model.config = "config.json"
            data.dir = "text"
            data.sequence_tokens = 32
            inner.batch_sequences = 8
            inner.learning_rate = 0.003
            inner.warmup_steps = 10
            codec.tiles_per_shard = 8
            schedule.steps_per_round = {steps}
            schedule.rounds = 1000
            schedule.rounds_per_epoch = {EPOCH_ROUNDS}
            trust.mode = "crash"
            trust.peers_min = 2
            timing.deadline_floor_ms = 1500
            timing.deadline_cap_ms = 8000
            [audit]
            {audit}
        "#
        );
        let file = home.path().join("run.toml");
        fs::write(&file, run).unwrap();
        let launch = ["launch", file.to_str().unwrap()];
        let launcher = Daemon::start(&home.path().join("launcher"), &launch, "1");
        let status = launcher.wait("ticket", |status| status.ticket.is_some());
        Run {
            _turn: turn,
            home,
            ticket: status.ticket.unwrap(),
            launcher,
        }
    }

    /// Starts another daemon; `what`: the command that takes the ticket.
    pub(crate) fn enter(&self, name: &str, what: &[&str], threads: &str) -> Daemon {
        let words: Vec<&str> = what.iter().copied().chain([self.ticket.as_str()]).collect();
        Daemon::start(&self.home.path().join(name), &words, threads)
    }
}

/// What a daemon knows of audits: nothing while it starts.
pub(crate) fn audit(status: &Status) -> AuditStatus {
    status.audit.clone().unwrap_or_default()
}

/// Another process of the command line.
pub(crate) fn gradmesh(words: &[&str]) -> Output {
    let daemon = env!("CARGO_BIN_EXE_gradmesh-daemon");
    Command::new(daemon).args(words).output().unwrap()
}

/// A replay of evidence in a process of its own.
pub(crate) fn replay(file: &Path) -> Output {
    gradmesh(&["evidence", "replay", file.to_str().unwrap(), "--json"])
}
