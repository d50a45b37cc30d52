//! Child processes that never outlive this one, and what they cost.
//!
//! Each child leads a process group of its own: a Ctrl-C at the terminal does not reach it, and killing the group ends
//! also what it started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Lines of a failing child's log that are shown.
const LINES_SHOWN: usize = 12;
/// How long the kernel may take to end a killed process: it may have to give back gigabytes.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A child and its group; both are killed when this is dropped.
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    group: Pid,
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `command`; what it writes to standard error goes to the file `log`.
    pub(crate) fn start(name: &str, mut command: Command, log: PathBuf) -> anyhow::Result<Process> {
        let file = fs::File::create(&log).with_context(|| format!("{}", log.display()))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .process_group(0)
            .kill_on_drop(true);
        let program = command.as_std().get_program().to_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {} for {name}", program.display()))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let stdin = child.stdin.take();
        let (Some(group), Some(stdout)) = (group, child.stdout.take()) else {
            bail!("{name} ended at its start");
        };
        Ok(Process {
            name: name.to_owned(),
            log,
            child,
            group,
            stdin,
            stdout: BufReader::new(stdout).lines(),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.group.as_raw_nonzero().get().cast_unsigned()
    }

    /// An error with the end of its log if it has ended.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.failure(&format!("ended ({status})"))),
        }
    }

    /// Writes a line to its standard input.
    pub(crate) async fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let text = format!("{line}\n");
        let written = match &mut self.stdin {
            Some(stdin) => stdin.write_all(text.as_bytes()).await,
            None => return Err(self.failure("takes no input")),
        };
        written.map_err(|error| self.failure(&format!("does not take {line:?}: {error}")))
    }

    /// The next line of its standard output.
    pub(crate) async fn line(&mut self, patience: Duration) -> anyhow::Result<String> {
        match tokio::time::timeout(patience, self.stdout.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => Err(self.failure("ended")),
            Ok(Err(error)) => Err(self.failure(&format!("cannot be read: {error}"))),
            Err(_) => {
                Err(self.failure(&format!("has not answered within {} s", patience.as_secs())))
            }
        }
    }

    /// The next line of its standard output, which is JSON.
    pub(crate) async fn answer<T: DeserializeOwned>(
        &mut self,
        patience: Duration,
    ) -> anyhow::Result<T> {
        let line = self.line(patience).await?;
        serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.name))
    }

    /// Processor seconds of its group so far.
    pub(crate) fn cpu_s(&self) -> f64 {
        self.members().map(|process| cpu_s(&process)).sum()
    }

    /// The most memory that the processes of its group held, each at its own peak. What they share counts for each.
    pub(crate) fn rss_bytes_max(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that the processes of its group hold now. What they share counts for each.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        let of_process = |process: PathBuf| field_kib(&process.join("status"), field);
        self.members().filter_map(of_process).sum::<u64>() * 1024
    }

    /// The directories in /proc of the processes of its group.
    fn members(&self) -> impl Iterator<Item = PathBuf> {
        let group = self.group.as_raw_nonzero().get().to_string();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(move |process| {
            let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
            fields_after_name(&stat).nth(2) == Some(&group)
        })
    }

    /// `what` is wrong with it, and the end of its log.
    pub(crate) fn failure(&self, what: &str) -> anyhow::Error {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        let end: String = end.iter().map(|line| format!("\n  {line}")).collect();
        anyhow::anyhow!("{} {what}; the end of what it said:{end}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when the whole group has ended.
        let _ = kill_process_group(self.group, Signal::KILL);
        let began = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if began.elapsed() > END_PATIENCE {
                eprintln!(
                    "{} (process {}) does not end although it was killed",
                    self.name,
                    self.id()
                );
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// User and system time of one process; 0 if it has ended.
fn cpu_s(process: &Path) -> f64 {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    // proc_pid_stat(5): utime and stime are fields 14 and 15.
    let ticks = fields_after_name(&stat).skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// The fields of /proc/PID/stat from the third on: the second is a name, which may hold anything.
fn fields_after_name(stat: &str) -> impl Iterator<Item = &str> {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
}

fn field_kib(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start("shell", command, dir.join("log")).unwrap()
    }

    #[tokio::test]
    async fn lines_go_in_and_come_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("read word; echo got $word", dir.path());
        process.tell("this").await.unwrap();
        assert_eq!(process.line(END_PATIENCE).await.unwrap(), "got this");
    }

    #[tokio::test]
    async fn a_process_that_ends_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("echo no luck >&2; exit 3", dir.path());
        let error = process.line(END_PATIENCE).await.unwrap_err();
        assert!(error.to_string().contains("no luck"), "{error}");
    }

    #[tokio::test]
    async fn grandchildren_die_with_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("sleep 1000 & echo $!; wait", dir.path());
        let grandchild = process.line(END_PATIENCE).await.unwrap();
        assert_eq!(process.members().count(), 2);
        drop(process);
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{grandchild}/stat")).ok()?;
            let state = fields_after_name(&stat).next().map(str::to_owned);
            // A zombie is dead; who reaps it is not our business.
            state.filter(|state| state != "Z" && state != "X")
        };
        let began = Instant::now();
        while let Some(state) = state() {
            assert!(
                began.elapsed() < END_PATIENCE,
                "{grandchild} is alive ({state})"
            );
            thread::yield_now();
        }
    }

    #[tokio::test]
    async fn the_cost_of_a_group_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; read word";
        let mut process = shell(script, dir.path());
        process.line(END_PATIENCE).await.unwrap();
        // A hundred thousand turns of a shell's loop take more than two ticks of 10 ms.
        assert!(process.cpu_s() > 0.0);
        assert!(process.rss_bytes() > 0);
        assert!(process.rss_bytes_max() >= process.rss_bytes());
    }

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        let mut fields = fields_after_name("7 (a) b (c)) S 1 42 42");
        assert_eq!(fields.next(), Some("S"));
        assert_eq!(fields.nth(1), Some("42"));
    }
}
