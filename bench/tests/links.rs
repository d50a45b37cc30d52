//! Real daemons find out what their links carry.
//!
//! Needs root, namespaces and TUN devices, and the daemon built beside the bench; says so and passes where those are missing.

use std::path::Path;
use std::process::Command;

use gradmesh_bench::netns;
use serde_json::Value;

/// The third peer is behind 20 Mbit/s, the others are not.
const TOPOLOGY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/thin.toml");
/// A capacity stands for four rounds (rule `seldom-and-much`), two of which are no sample; two more until it is decided and shown.
const ROUNDS: &str = "7";

/// Whether the daemons can be run; says why not.
fn can_run(test: &str) -> bool {
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

#[test]
fn a_peer_behind_a_thin_link_comes_to_say_what_it_carries_and_the_others_say_more() {
    if !can_run("a_peer_behind_a_thin_link_comes_to_say_what_it_carries_and_the_others_say_more") {
        return;
    }
    // 3 MB to each of two others take the thin link 2.4 s.
    let output = Command::new(env!("CARGO_BIN_EXE_gradmesh-bench"))
        .args(["exchange", "--mb", "3", "--codec", "dense-f32"])
        .args(["--plan", "reduce", "--peers", "3", "--rounds", ROUNDS])
        .args(["--json", "-"])
        .arg(format!("--link=wan:{TOPOLOGY}"))
        .output()
        .expect("the bench can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    println!("{said}");
    let case = &report["results"][0];
    assert_eq!(case["missing"], Value::Null);
    assert_eq!(case["roots_equal"], true);
    let capacities = &case["capacity_mbit"];
    let capacity = |peer: usize| capacities[peer].as_u64();
    assert!(
        capacity(2).is_some_and(|mbit| (10..=40).contains(&mbit)),
        "{capacities}"
    );
    for fat in [0, 1] {
        assert!(capacity(fat).is_some_and(|mbit| mbit > 40), "{capacities}");
    }
}
