//! `gradmesh` on machines whose libtorch is missing, broken or another version.
//!
//! Each test installs the executable with a `lib` beside it, which the dynamic loader searches before the libtorch that
//! it was built with, and puts a stand-in for libtorch there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// 2.11.0, as `TORCH_ABI_VERSION` writes it.
const FITS: &str =
    "unsigned long long aoti_torch_abi_version(void) { return 0x020b000000000000ULL; }";
const TOO_OLD: &str =
    "unsigned long long aoti_torch_abi_version(void) { return 0x020a010000000000ULL; }";
const WITHOUT_VERSION: &str = "int torch;";

/// A directory with the executable `gradmesh` and nothing else.
fn install() -> TempDir {
    // Beside the executable, because it is linked and not copied: a file that this process has open for writing while
    // another test forks cannot be executed.
    let built = Path::new(env!("CARGO_BIN_EXE_gradmesh"));
    let dir = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
    fs::hard_link(built, dir.path().join("gradmesh")).unwrap();
    dir
}

/// Compiles `source` to a shared library; the path, or `None` on a machine without a C compiler.
fn library(dir: &Path, name: &str, source: &str, more: &[&str]) -> Option<PathBuf> {
    fs::create_dir_all(dir).unwrap();
    let (code, made) = (dir.join("source.c"), dir.join(name));
    fs::write(&code, source).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,--no-as-needed", "-o"])
        .args([&made, &code])
        .args(more)
        .status();
    match compiled {
        Ok(status) => {
            assert!(status.success(), "cc failed on {name}");
            Some(made)
        }
        Err(error) => {
            eprintln!("skipped: cc: {error}");
            None
        }
    }
}

fn stand_in(installed: &TempDir, source: &str) -> Option<PathBuf> {
    library(
        &installed.path().join("lib"),
        "libtorch_cpu.so",
        source,
        &[],
    )
}

fn gradmesh(installed: &TempDir, words: &[&str]) -> Output {
    Command::new(installed.path().join("gradmesh"))
        .args(words)
        .env_clear()
        .env("HOME", installed.path())
        .output()
        .unwrap()
}

/// Exit code 1, nothing on stdout, one line on stderr with all of `parts`.
#[track_caller]
fn fails(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(text.starts_with("error: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn an_older_libtorch_is_refused_with_its_version() {
    let installed = install();
    if stand_in(&installed, TOO_OLD).is_some() {
        fails(
            &gradmesh(&installed, &["doctor"]),
            &["libtorch 2.10.1", "2.11", "LD_LIBRARY_PATH"],
        );
    }
}

#[test]
fn a_libtorch_from_ld_library_path_goes_before_the_one_of_the_build() {
    let installed = install();
    let elsewhere = installed.path().join("elsewhere");
    if library(&elsewhere, "libtorch_cpu.so", WITHOUT_VERSION, &[]).is_none() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_gradmesh"))
        .arg("doctor")
        .env_clear()
        .env("LD_LIBRARY_PATH", &elsewhere)
        .output()
        .unwrap();
    fails(
        &output,
        &[
            "does not tell its version",
            "older than 2.11",
            "make libtorch",
        ],
    );
}

#[test]
fn a_library_that_libtorch_misses_is_named() {
    let installed = install();
    let lib = installed.path().join("lib");
    let Some(part) = library(&lib, "libgradmesh_nowhere.so", "int part;", &[]) else {
        return;
    };
    let search = format!("-L{}", lib.display());
    let links = [search.as_str(), "-lgradmesh_nowhere"];
    library(&lib, "libtorch_cpu.so", FITS, &links).unwrap();
    fs::remove_file(part).unwrap();
    fails(
        &gradmesh(&installed, &["doctor"]),
        &[
            "cannot load libtorch",
            "libgradmesh_nowhere.so",
            "LD_LIBRARY_PATH",
        ],
    );
}

#[test]
fn gradmesh_alone_says_that_the_daemon_is_missing() {
    let installed = install();
    if stand_in(&installed, FITS).is_some() {
        fails(
            &gradmesh(&installed, &["doctor"]),
            &["gradmesh-daemon", "cargo build -p gradmesh"],
        );
    }
}

#[test]
fn the_daemon_beside_it_gets_the_arguments_and_gives_the_exit_code() {
    let installed = install();
    if stand_in(&installed, FITS).is_some() {
        let daemon = installed.path().join("gradmesh-daemon");
        symlink("/bin/echo", &daemon).unwrap();
        let output = gradmesh(&installed, &["launch", "a b", "--json"]);
        assert_eq!(output.stdout, b"launch a b --json\n", "{output:?}");
        assert_eq!(output.status.code(), Some(0));
        fs::remove_file(&daemon).unwrap();
        symlink("/bin/sh", &daemon).unwrap();
        let output = gradmesh(&installed, &["-c", "echo $0; exit 7", "kept"]);
        assert_eq!(output.stdout, b"kept\n", "{output:?}");
        assert_eq!(output.status.code(), Some(7));
    }
}
