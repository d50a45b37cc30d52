//! The executable that people start: makes sure that libtorch is there and fits, then becomes `gradmesh-daemon`.
//!
//! `gradmesh-daemon` links libtorch. Where libtorch is missing or another version, the dynamic loader ends it before
//! its `main`; so this executable uses nothing that links libtorch (not the library `gradmesh` either), loads it by
//! hand, and has a message and exit code 1 for what may go wrong. It then runs the executable `gradmesh-daemon` of its
//! own directory in its place: same process, arguments and environment, but for [`TUNABLES`].

use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;

const DAEMON: &str = "gradmesh-daemon";

/// Where glibc is told how to work, before `main`; other C libraries do not look there.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Allocated memory is to be of huge pages where the kernel gives them on request, as most do: updates and frames are
/// large, new in every round, and each small page of them is a fault when it is first touched. Measured on a virtual
/// machine of two cores, 100 MB of f32 between two peers on loopback, two runs of six rounds in turns: medians of 0.51 and
/// 0.44 s without, 0.37 and 0.34 s with.
const HUGE_PAGES: &str = "glibc.malloc.hugetlb";

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
    command.env(TUNABLES, with_huge_pages(env::var_os(TUNABLES)));
    let error = command.args(words).exec();
    Err(anyhow::Error::new(error).context(cannot_run(&daemon)))
}

/// `given` tunables and [`HUGE_PAGES`], unless they say something on those themselves.
fn with_huge_pages(given: Option<OsString>) -> OsString {
    let ours = format!("{HUGE_PAGES}=1");
    let Some(mut given) = given.filter(|given| !given.is_empty()) else {
        return ours.into();
    };
    if !given.to_string_lossy().contains(HUGE_PAGES) {
        given.push(":");
        given.push(OsStr::new(&ours));
    }
    given
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_asked_for_unless_the_operator_says_otherwise() {
        let with = |given: &str| with_huge_pages(Some(given.into()));
        assert_eq!(with_huge_pages(None), "glibc.malloc.hugetlb=1");
        assert_eq!(with(""), "glibc.malloc.hugetlb=1");
        assert_eq!(
            with("glibc.malloc.arena_max=2"),
            "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
        );
        assert_eq!(with("glibc.malloc.hugetlb=0"), "glibc.malloc.hugetlb=0");
    }
}
