//! The executable that people start: makes sure that libtorch is there and fits, then becomes `gradmesh-daemon`.
//!
//! `gradmesh-daemon` links libtorch. Where libtorch is missing or another version, the dynamic loader ends it before
//! its `main`; so this executable uses nothing that links libtorch (not the library `gradmesh` either), loads it by
//! hand, and has a message and exit code 1 for what may go wrong. It then runs the executable `gradmesh-daemon` of its
//! own directory in its place: same process, arguments and environment.

use std::convert::Infallible;
use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;

const DAEMON: &str = "gradmesh-daemon";

fn main() -> ExitCode {
    let Err(error) = become_daemon();
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn become_daemon() -> anyhow::Result<Infallible> {
    gradmesh_libtorch::load()?;
    let daemon = beside(env::current_exe()).context("where this executable lies")?;
    let mut words = env::args_os();
    let mut command = Command::new(&daemon);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let error = command.args(words).exec();
    Err(anyhow::Error::new(error).context(cannot_run(&daemon)))
}

/// `gradmesh-daemon` in the directory of `executable`, through whatever links lead there.
fn beside(executable: io::Result<PathBuf>) -> io::Result<PathBuf> {
    Ok(executable?.canonicalize()?.with_file_name(DAEMON))
}

fn cannot_run(daemon: &Path) -> String {
    format!(
        "cannot run {}, which belongs beside gradmesh: install both executables, or build both with `cargo build -p \
         gradmesh`",
        daemon.display()
    )
}
