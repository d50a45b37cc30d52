//! The virtual environment with the systems that gradmesh is compared with, made once per user.
//!
//! It lies in the user's cache directory, in a folder named after the versions in it, and is made by `python3` and pip.
//! Each library is installed in a step of its own, so that one that cannot be had does not take the other with it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use tokio::process::Command;

const TORCH: &str = "2.11.0";
const HIVEMIND: &str = "1.1.12";
/// Lines of pip's messages that are shown when it fails.
const LINES_SHOWN: usize = 8;

/// A library that measurements compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library {
    Torch,
    /// With torch.
    Hivemind,
}

/// Whether [`python_with`] would install nothing.
pub(crate) fn is_installed(library: Library) -> bool {
    let last = match library {
        Library::Torch => "torch",
        Library::Hivemind => "hivemind",
    };
    cache_dir().is_ok_and(|cache| done(&root(&cache), last).exists())
}

/// The environment's directory.
fn root(cache: &Path) -> PathBuf {
    cache.join(format!("bench-venv-torch-{TORCH}-hivemind-{HIVEMIND}"))
}

/// There once the step `name` has run to its end.
fn done(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.done"))
}

/// The interpreter with which `library` can be imported, after installing what is missing.
///
/// # Errors
/// What could not be had, and why.
pub(crate) async fn python_with(library: Library) -> anyhow::Result<PathBuf> {
    let cache = cache_dir()?;
    fs::create_dir_all(&cache).with_context(|| format!("{}", cache.display()))?;
    let root = root(&cache);
    // Held until the process ends, however it ends.
    let lock = root.with_extension("lock");
    let lock = fs::File::create(&lock).with_context(|| format!("{}", lock.display()))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await?;
    let _lock = lock.context("waiting for another process that installs")?;
    let python = root.join("bin/python");
    step(&root, "python", "making it", &python3(&root)).await?;
    let torch = pip(&python, &[&format!("torch=={TORCH}"), "numpy"]);
    let size = "installing torch, with the CUDA libraries without which it does not load: 3 GB";
    step(&root, "torch", size, &torch).await?;
    if library == Library::Hivemind {
        let hivemind = pip(
            &python,
            &[&format!("hivemind=={HIVEMIND}"), &format!("torch=={TORCH}")],
        );
        step(&root, "hivemind", "installing hivemind", &hivemind).await?;
    }
    Ok(python)
}

fn python3(root: &Path) -> Vec<String> {
    let root = root.to_string_lossy().into_owned();
    ["python3", "-m", "venv", "--clear", &root]
        .map(str::to_owned)
        .to_vec()
}

fn pip(python: &Path, what: &[&str]) -> Vec<String> {
    let python = python.to_string_lossy().into_owned();
    let words = [
        &python,
        "-m",
        "pip",
        "install",
        "--no-input",
        "--progress-bar",
        "off",
        "--disable-pip-version-check",
    ];
    words
        .iter()
        .chain(what)
        .map(|&word| word.to_owned())
        .collect()
}

/// Runs `words` unless they ran to their end before.
async fn step(root: &Path, name: &str, what: &str, words: &[String]) -> anyhow::Result<()> {
    let done = done(root, name);
    if done.exists() {
        return Ok(());
    }
    eprintln!("virtual environment {}: {what}", root.display());
    let [program, rest @ ..] = words else {
        bail!("no command for {name}");
    };
    let output = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("running {program}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.trim().lines().collect();
    let end = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n  ");
    ensure!(
        output.status.success(),
        "`{}` failed:\n  {end}",
        words.join(" ")
    );
    fs::write(&done, "").with_context(|| format!("{}", done.display()))
}

/// As the Makefile's: `gradmesh` in the user's cache directory.
fn cache_dir() -> anyhow::Result<PathBuf> {
    // The XDG specification says that a relative path is to be ignored.
    let configured = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let home = || env::home_dir().map(|home| home.join(".cache"));
    let base = configured
        .or_else(home)
        .context("this user has no home directory: set XDG_CACHE_HOME")?;
    Ok(base.join("gradmesh"))
}
