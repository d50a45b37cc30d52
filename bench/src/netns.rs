//! Network namespaces for processes of a measurement, and their end.
//!
//! Namespaces are made and entered by the system's `ip`, devices and addresses are set by `ip` and `tc`, and threads of this
//! process enter by `setns` through rustix: no unsafe code, and whatever fails can be repeated by hand. Touches nothing outside
//! its own namespaces: no address, route or rule of the machine.
//!
//! # Nothing is left behind
//!
//! A namespace is called `gm-PID-START-N-LABEL` after the process that owns it (START: its start time, since a PID comes
//! again). Dropping a [`Namespace`] kills the processes in it and removes it. When the owner dies in any way, SIGKILL
//! included, its warden (a shell that waits for the end of a pipe) does the same; if that was killed too, the next process
//! that makes a namespace does. So SIGINT and SIGTERM need no handler, and an owner's own handlers are not in the way.

mod owner;
mod veth;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use owner::sweep;
pub use veth::VethLink;

/// Where `ip` keeps named namespaces.
const DIRECTORY: &str = "/run/netns";

/// How long a killed process may take to go: it may have gigabytes to give back.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Rounds of killing: a process may start another one while it is killed.
const KILL_ROUNDS: usize = 20;

/// Why there are no namespaces on this machine.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Only root makes namespaces.
    #[error("not root")]
    NotRoot,
    /// A tool of iproute2 is not installed.
    #[error("{tool} is not installed (iproute2)")]
    NoTool {
        /// `ip` or `tc`.
        tool: &'static str,
    },
    /// The kernel has no TUN devices, or this container may not use them.
    #[error("/dev/net/tun cannot be opened: {0}")]
    NoTun(#[source] io::Error),
    /// Root of a container that may not make namespaces, or a kernel without what is needed.
    #[error("a trial failed: {0}")]
    Refused(#[from] NetnsError),
}

/// Why something about a namespace failed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// `ip` or `tc` said no.
    #[error("`{command}` failed: {stderr}")]
    Tool {
        /// The command and its input.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// The tool could not be run, or a thread or file not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl NetnsError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Whether this process can make namespaces with TUN devices, bridges and rates; tests print the reason when they skip.
///
/// # Errors
/// The first thing that is missing.
pub fn available() -> Result<(), Unavailable> {
    if !rustix::process::geteuid().is_root() {
        return Err(Unavailable::NotRoot);
    }
    for tool in ["ip", "tc"] {
        let found = Command::new(tool)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            return Err(Unavailable::NoTool { tool });
        }
    }
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(Unavailable::NoTun)?;
    let trial = Namespace::create("trial")?;
    trial.ip("link add dev trial0 type bridge\nlink del dev trial0\n")?;
    Ok(())
}

/// A network namespace with a loopback device that is up, and nothing else. Dropping it kills what runs in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace; `label` ends its name, for people who look at `ip netns`.
    ///
    /// # Errors
    /// [`NetnsError`], without root for one.
    pub fn create(label: &str) -> Result<Self, NetnsError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        owner::watch()?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{serial}-{label}", owner::prefix()?);
        run(Command::new("ip").args(["netns", "add", &name]), "")?;
        let namespace = Self { name };
        namespace.ip("link set dev lo up\n")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `program` in the namespace. The process keeps its id: `ip` replaces itself by the program, so that
    /// signals to the child reach it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `work` on a thread of this process in the namespace: sockets that it opens stay there, wherever they are used.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    ///
    /// # Panics
    /// If `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let namespace = std::fs::File::open(self.path())
            .map_err(NetnsError::io(format!("open namespace {}", self.name)))?;
        let entered = std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        entered.map_err(|source: rustix::io::Errno| NetnsError::Io {
            what: format!("enter namespace {}", self.name),
            source: source.into(),
        })
    }

    /// Gives `ip` lines to carry out in the namespace, without the word `ip`.
    ///
    /// # Errors
    /// [`NetnsError`]; lines before the faulty one are done.
    pub fn ip(&self, lines: &str) -> Result<(), NetnsError> {
        self.batch("ip", lines)
    }

    /// Gives `tc` lines to carry out in the namespace, without the word `tc`.
    ///
    /// # Errors
    /// [`NetnsError`]; lines before the faulty one are done.
    pub fn tc(&self, lines: &str) -> Result<(), NetnsError> {
        self.batch("tc", lines)
    }

    fn batch(&self, tool: &str, lines: &str) -> Result<(), NetnsError> {
        let mut command = Command::new(tool);
        command.args(["-n", &self.name, "-batch", "-"]);
        run(&mut command, lines).map(drop)
    }

    /// Kills the processes in the namespace and waits until they are gone.
    pub fn kill(&self) {
        kill_all(&self.path());
    }

    fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Kills what runs in a namespace and removes it. What goes wrong is left to the warden and to the next [`sweep`].
fn remove(name: &str) {
    kill_all(&Path::new(DIRECTORY).join(name));
    run(Command::new("ip").args(["netns", "del", name]), "").ok();
}

/// Runs a tool with `input` on its standard input.
fn run(command: &mut Command, input: &str) -> Result<Output, NetnsError> {
    let line = |command: &Command| {
        let mut words = vec![command.get_program().to_string_lossy()];
        words.extend(command.get_args().map(OsStr::to_string_lossy));
        let line = words.join(" ");
        if input.is_empty() {
            line
        } else {
            format!("{line} <<< {input:?}")
        }
    };
    let outcome = (|| {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A tool that ends early says why on its standard error.
            io::Write::write_all(&mut stdin, input.as_bytes()).ok();
        }
        child.wait_with_output()
    })();
    let output = outcome.map_err(NetnsError::io(format!("run `{}`", line(command))))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(NetnsError::Tool {
            command: line(command),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

/// Kills every process in the namespace at `path`, and those that they start meanwhile.
fn kill_all(path: &Path) {
    for _ in 0..KILL_ROUNDS {
        let killed: Vec<OwnedFd> = processes(path)
            .into_iter()
            .filter_map(|pid| kill(pid, path))
            .collect();
        if killed.is_empty() {
            return;
        }
        for process in &killed {
            let timeout = Timespec::try_from(KILL_TIMEOUT).ok();
            // The descriptor of a process is readable once the process has ended.
            poll(&mut [PollFd::new(process, PollFlags::IN)], timeout.as_ref()).ok();
        }
    }
}

/// The processes whose main thread is in the namespace at `path`, but for this one.
fn processes(path: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != rustix::process::getpid() && is_in(*pid, path))
        .collect()
}

/// Kills one process, unless its id has meanwhile gone to another one elsewhere.
fn kill(pid: Pid, path: &Path) -> Option<OwnedFd> {
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    if !is_in(pid, path) {
        return None;
    }
    pidfd_send_signal(&process, Signal::KILL).ok()?;
    Some(process)
}

fn is_in(pid: Pid, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let theirs = std::fs::metadata(format!("/proc/{}/ns/net", pid.as_raw_nonzero()));
    let Ok((theirs, ours)) = theirs.and_then(|theirs| Ok((theirs, std::fs::metadata(path)?)))
    else {
        return false;
    };
    (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())
}
