//! Real daemons behind emulated NAT boxes train with others.
//!
//! Needs root, namespaces and TUN devices, and the daemon built beside the bench; says so and passes where those are missing.

use std::path::Path;
use std::process::Command;

use gradmesh_bench::netns;
use serde_json::Value;

/// Peers take a site each in turn: two that can be reached, a home of two peers behind a common box, a flat
/// behind a symmetric one.
const TOPOLOGY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nat.toml");
const ROUNDS: usize = 3;

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

/// Trains some rounds by `plan`; the case as the bench reports it.
fn trained(plan: &str, peers: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_gradmesh-bench"))
        .args(["exchange", "--mb", "1", "--codec", "sparse-1bit"])
        .args(["--plan", plan, "--peers", peers, "--json", "-"])
        .args(["--rounds", &ROUNDS.to_string()])
        .arg(format!("--link=wan:{TOPOLOGY}"))
        .output()
        .expect("the bench can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    println!("{said}");
    report["results"][0].clone()
}

/// `behind_nat`: how many of the peers say that they are behind NAT.
fn assert_trained(case: &Value, behind_nat: u64) {
    assert_eq!(case["missing"], Value::Null);
    assert_eq!(case["seconds"].as_array().map(Vec::len), Some(ROUNDS));
    assert_eq!(case["roots_equal"], true);
    assert_eq!(case["behind_nat"], behind_nat);
}

#[test]
fn a_peer_behind_nat_trains_with_peers_that_can_be_reached() {
    if can_run("a_peer_behind_nat_trains_with_peers_that_can_be_reached") {
        assert_trained(&trained("gather", "3"), 1);
    }
}

#[test]
fn a_site_behind_nat_sums_inside_and_exchanges_outside() {
    if can_run("a_site_behind_nat_sums_inside_and_exchanges_outside") {
        // The peers of the home reach each other, and yet know that others do not reach them.
        assert_trained(&trained("hier", "5"), 3);
    }
}

#[test]
fn two_peers_behind_nat_train_together_in_every_plan() {
    if can_run("two_peers_behind_nat_train_together_in_every_plan") {
        for plan in ["gather", "reduce", "hier"] {
            assert_trained(&trained(plan, "4"), 2);
        }
    }
}
