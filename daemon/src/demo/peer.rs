//! One peer of the demo: a child process, its log and its status.

use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use gradmesh_trainer::adversary::Kind;
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::process::{Child, Command};

use crate::state_dir::StateDir;
use crate::status::{Status, client};

/// Name of the validator's directory, log and wallet.
pub(super) const VALIDATOR: &str = "validator";

/// Lines of a failing peer's log that are shown.
const LINES_SHOWN: usize = 15;
/// How long a peer may take to end by itself once told; then it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A running peer; its process is killed when this is dropped.
pub(super) struct Peer {
    number: u32,
    dir: StateDir,
    log: PathBuf,
    child: Child,
}

impl Peer {
    /// Starts the launcher, peer 0.
    ///
    /// `flags`: how it stands on the chain; none without one. The same below.
    pub(super) fn launch(
        out: &Path,
        run_file: &Path,
        threads: usize,
        flags: &[String],
    ) -> anyhow::Result<Peer> {
        Peer::start(out, 0, threads, |command| {
            command.arg("launch").arg(run_file).args(flags);
        })
    }

    /// Starts peer `number`, which joins by `way`, a ticket or a subnet, and nothing else: it fetches manifest and data.
    pub(super) fn join(
        out: &Path,
        number: u32,
        way: &[String],
        threads: usize,
        flags: &[String],
    ) -> anyhow::Result<Peer> {
        Peer::start(out, number, threads, |command| {
            command.arg("join").args(way).args(flags);
        })
    }

    /// Starts peer `number`, which joins by `way` and cheats.
    pub(super) fn cheat(
        out: &Path,
        number: u32,
        kind: Kind,
        way: &[String],
        threads: usize,
        flags: &[String],
    ) -> anyhow::Result<Peer> {
        Peer::start(out, number, threads, |command| {
            command
                .arg("cheat")
                .arg(kind.to_string())
                .args(way)
                .args(flags);
        })
    }

    /// Starts the validator, whose number is the one after those of the peers.
    pub(super) fn validate(
        out: &Path,
        number: u32,
        way: &[String],
        threads: usize,
        flags: &[String],
    ) -> anyhow::Result<Peer> {
        Peer::start_in(out, number, VALIDATOR, threads, |command| {
            command.arg("validate").args(way).args(flags);
        })
    }

    /// Starts a joiner again in its state directory, after it died.
    pub(super) fn resume(
        out: &Path,
        number: u32,
        threads: usize,
        flags: &[String],
    ) -> anyhow::Result<Peer> {
        Peer::start(out, number, threads, |command| {
            command.arg("join").args(flags);
        })
    }

    /// Called on the main thread: the parent-death signal that the child asks for comes when the thread that started it
    /// ends, and the main thread ends last.
    fn start(
        out: &Path,
        number: u32,
        threads: usize,
        what: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Peer> {
        Peer::start_in(out, number, &format!("peer-{number}"), threads, what)
    }

    fn start_in(
        out: &Path,
        number: u32,
        name: &str,
        threads: usize,
        what: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Peer> {
        let dir = StateDir::new(out.join(name));
        let log = out.join(format!("{name}.log"));
        let sink = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("{}", log.display()))?;
        let errors = sink
            .try_clone()
            .with_context(|| format!("{}", log.display()))?;
        let executable = std::env::current_exe().context("where this executable lies")?;
        let mut command = Command::new(executable);
        command
            .arg("--parent-pid")
            .arg(getpid().as_raw_nonzero().to_string())
            .arg("--dir")
            .arg(dir.path());
        what(&mut command);
        command
            .args(["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"])
            .args(["--bulk-listen", "127.0.0.1:0"])
            .args(["--status-listen", "127.0.0.1:0"])
            .args(["--device", "cpu"])
            .arg("--threads")
            .arg(threads.to_string())
            .stdin(Stdio::null())
            .stdout(sink)
            .stderr(errors)
            // A Ctrl-C at the terminal is for the demo alone, which then ends its peers.
            .process_group(0)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Peer {
            number,
            dir,
            log,
            child,
        })
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The signal that ended the process, if one did.
    pub(super) fn killed_by(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten()?.signal()
    }

    /// An error with the end of its log if the process has ended.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!(
                "peer {} ended ({status}); the end of {}:\n{}",
                self.number,
                self.log.display(),
                self.last_lines()
            ),
            Err(error) => Err(error).with_context(|| format!("peer {}", self.number)),
        }
    }

    /// What it says of itself; `None` while its server does not answer.
    pub(super) async fn status(&self) -> Option<Status> {
        let address = self.dir.status_address().ok()??;
        client::status(&address.url).await.ok()
    }

    /// The end of its log.
    pub(super) fn last_lines(&self) -> String {
        last_lines(&self.log)
    }

    /// Asks it to stop, and kills it if it does not.
    pub(super) async fn stop(&mut self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && kill_process(pid, Signal::TERM).is_ok()
            && tokio::time::timeout(STOP_PATIENCE, self.child.wait())
                .await
                .is_ok()
        {
            return;
        }
        if let Err(error) = self.child.kill().await {
            tracing::warn!(peer = self.number, %error, "cannot end a peer of the demo");
        }
    }
}

/// The last lines of a log of the demo.
pub(super) fn last_lines(log: &Path) -> String {
    // Logs of a demo are short; one that cannot be read has no lines.
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES_SHOWN);
    lines[from..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
