//! One daemon under measurement: its process and its figures, read as any program would read them.

use std::env;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::network::Place;
use super::process::Process;

/// How long a status may take: it is answered from memory, by a machine that may be busy.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);
/// The longest status that is read; a full history is under half a MiB.
const STATUS_BYTES_MAX: u64 = 4 << 20;

/// The part of a daemon's status that is used here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Status {
    pub(crate) round: u64,
    pub(crate) phase: String,
    pub(crate) detail: Option<String>,
    pub(crate) problem: Option<String>,
    pub(crate) applied: Option<u64>,
    pub(crate) ticket: Option<String>,
    /// Whether nobody can connect to it directly.
    #[serde(default)]
    pub(crate) behind_nat: bool,
    /// The members of the round at hand.
    #[serde(default)]
    pub(crate) roster: Vec<Member>,
    pub(crate) history: Vec<Round>,
    /// Whether the last round is applied.
    #[serde(default)]
    pub(crate) finished: bool,
    /// The newest one.
    #[serde(default)]
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// A checkpoint on a daemon's disk.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Checkpoint {
    /// After which it was written.
    pub(crate) round: u64,
    pub(crate) path: PathBuf,
}

/// A member of the roster.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Member {
    /// Whether it is the daemon itself.
    pub(crate) own: bool,
    /// What the roster has its link carry.
    pub(crate) capacity_mbit: u32,
}

/// A decided round.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Round {
    pub(crate) round: u64,
    /// Mean of the members' losses at their first step, nats per token.
    #[serde(default)]
    pub(crate) loss_first: Option<f64>,
    /// Updates that count.
    pub(crate) members: u32,
    /// Of the frames that count, over all members.
    #[serde(default)]
    pub(crate) frame_bytes: u64,
    pub(crate) seconds: Option<Seconds>,
    /// State root after it.
    pub(crate) root: Option<String>,
}

/// Where the time of a round went.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(crate) struct Seconds {
    pub(crate) train: f64,
    pub(crate) encode: f64,
    pub(crate) exchange: f64,
    pub(crate) decide: f64,
    pub(crate) apply: f64,
    /// Of exchange, decide and apply, while the next round was trained.
    #[serde(default)]
    pub(crate) hidden: f64,
    /// When the own update was out, seconds since 1970.
    pub(crate) committed_at: f64,
}

impl Seconds {
    /// When training of the round began, seconds since 1970; without overlap also when the round began.
    pub(crate) fn started_at(&self) -> f64 {
        self.committed_at - self.encode - self.train
    }

    /// When the round was applied, seconds since 1970.
    pub(crate) fn applied_at(&self) -> f64 {
        self.committed_at + self.exchange + self.decide + self.apply
    }
}

impl Status {
    /// What it did in `round`.
    pub(crate) fn round(&self, round: u64) -> Option<&Round> {
        self.history.iter().find(|other| other.round == round)
    }

    /// What the roster has its link carry; `None` if it is no member.
    pub(crate) fn capacity_mbit(&self) -> Option<u32> {
        let own = self.roster.iter().find(|member| member.own);
        own.map(|member| member.capacity_mbit)
    }

    /// What it does and why, for an error.
    pub(crate) fn words(&self) -> String {
        let or_nothing = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            if text.is_empty() {
                String::new()
            } else {
                format!(", {text}")
            }
        };
        let (detail, problem) = (or_nothing(&self.detail), or_nothing(&self.problem));
        format!("round {}, {}{detail}{problem}", self.round, self.phase)
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    pub(crate) place: Place,
    dir: PathBuf,
}

impl Daemon {
    /// Starts `gradmesh WORDS` at `place`. `home`: a directory that becomes its home, with everything that it writes.
    pub(crate) fn start(
        gradmesh: &Path,
        number: usize,
        place: &Place,
        home: &Path,
        words: &[&str],
    ) -> anyhow::Result<Daemon> {
        let dir = home.join(format!("peer-{number}"));
        let mut command = place.command(gradmesh);
        let address = place.address;
        command
            .args(words)
            .arg("--dir")
            .arg(&dir)
            .args(["--listen", &format!("/ip4/{address}/udp/0/quic-v1")])
            .args(["--bulk-listen", &format!("{address}:0")])
            .args(["--status-listen", "127.0.0.1:0"])
            .args(["--device", "cpu", "--threads", "1"])
            .args(["--parent-pid", &std::process::id().to_string()])
            .args(place.site.iter().flat_map(|site| ["--site", site]))
            .args(place.capacity_mbit.map(|mbit| format!("--capacity={mbit}")))
            .env("HOME", home)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME");
        let log = home.join(format!("peer-{number}.log"));
        Ok(Daemon {
            process: Process::start(&format!("peer {number}"), command, log)?,
            place: place.clone(),
            dir,
        })
    }

    /// `None` while it does not answer.
    pub(crate) async fn status(&self) -> Option<Status> {
        let (place, file) = (self.place.clone(), self.dir.join("status.json"));
        let (answer, answered) = tokio::sync::oneshot::channel();
        // A thread of its own, because it cannot come back from the namespace that it enters.
        std::thread::spawn(move || {
            let _ = answer.send(read_status(&place, &file));
        });
        answered.await.ok()?.ok()
    }
}

fn read_status(place: &Place, file: &Path) -> anyhow::Result<Status> {
    #[derive(Deserialize)]
    struct Contact {
        url: String,
    }
    let contact: Contact = serde_json::from_slice(&fs::read(file)?)?;
    let authority = contact.url.strip_prefix("http://").context("no http URL")?;
    place.enter()?;
    let body = get(authority.parse()?, "/status")?;
    Ok(serde_json::from_slice(&body)?)
}

/// The body of what the HTTP server at `address` answers, whatever its status is: the caller parses it.
fn get(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, STATUS_PATIENCE)?;
    stream.set_read_timeout(Some(STATUS_PATIENCE))?;
    // HTTP/1.0: the body ends with the connection and is never cut in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(STATUS_BYTES_MAX).read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let head = head.ok_or(io::ErrorKind::InvalidData)?;
    Ok(answer.split_off(head + 4))
}

/// The executable `gradmesh` that was built with this one.
pub(crate) fn gradmesh_beside() -> anyhow::Result<PathBuf> {
    let path = env::current_exe()
        .and_then(|path| path.canonicalize())
        .context("where this executable lies")?
        .with_file_name("gradmesh");
    ensure!(
        path.exists(),
        "{} is not there: build it with `cargo build -p gradmesh`, or install it beside gradmesh-bench",
        path.display()
    );
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_whatever_else_it_says() {
        let text = r#"{"version": "0.1.0", "round": 3, "phase": "training", "detail": "step 1 of 2", "problem": null,
            "applied": 2, "ticket": null, "history": [{"round": 2, "members": 2, "roster": 2, "root": "ab",
            "seconds": {"train": 1.0, "encode": 0.5, "exchange": 0.25, "decide": 0.125, "apply": 0.125,
            "committed_at": 1000.0}}]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(status.words(), "round 3, training, step 1 of 2");
        assert_eq!(status.round(2).unwrap().seconds.unwrap().encode, 0.5);
        assert_eq!(status.round(3), None);
    }
}
