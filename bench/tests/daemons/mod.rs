//! `gradmesh-bench exchange` with real daemons on an emulated network.
//!
//! Needs root, namespaces and TUN devices, and the daemon built beside the bench.

use std::path::Path;
use std::process::Command;

use gradmesh_bench::netns;
use serde_json::Value;

/// Whether the daemons can be run; says why `test` is skipped if not.
pub(crate) fn can_run(test: &str) -> bool {
    let bench = Path::new(env!("CARGO_BIN_EXE_gradmesh-bench"));
    let reason = match netns::available() {
        Err(reason) => reason.to_string(),
        Ok(()) if !bench.with_file_name("gradmesh").exists() => {
            "gradmesh is not built: `cargo build -p gradmesh`".to_owned()
        }
        Ok(()) => return true,
    };
    eprintln!("{test} is skipped: {reason}");
    false
}

/// What `exchange` reports of `rounds` rounds on the network of the file `topology`, of which it reports one case. All rounds
/// were done, with equal roots.
pub(crate) fn exchanged(topology: &str, rounds: usize, args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_gradmesh-bench"))
        .args(["exchange", "--json", "-", "--rounds", &rounds.to_string()])
        .arg(format!("--link=wan:{topology}"))
        .args(args)
        .output()
        .expect("the bench can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    println!("{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let case = &report["results"][0];
    assert_eq!(case["missing"], Value::Null);
    assert_eq!(case["seconds"].as_array().map(Vec::len), Some(rounds));
    assert_eq!(case["roots_equal"], true);
    case.clone()
}
