//! Real daemons behind emulated NAT boxes train with others.
//!
//! Says why and passes where such daemons cannot be run.

mod daemons;

use daemons::{can_run, exchanged};

/// Peers take a site each in turn: two that can be reached, a home of two peers behind a common box, a flat
/// behind a symmetric one.
const TOPOLOGY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nat.toml");
const ROUNDS: usize = 3;

/// Trains some rounds by `plan`, after which this many of the peers say that they are behind NAT.
fn assert_trained(plan: &str, peers: &str, behind_nat: u64) {
    let codec = ["--mb", "1", "--codec", "sparse-1bit"];
    let args = [&codec[..], &["--plan", plan, "--peers", peers]].concat();
    let case = exchanged(TOPOLOGY, ROUNDS, &args);
    assert_eq!(case["behind_nat"], behind_nat, "{plan}");
}

#[test]
fn a_peer_behind_nat_trains_with_peers_that_can_be_reached() {
    if can_run("a_peer_behind_nat_trains_with_peers_that_can_be_reached") {
        assert_trained("gather", "3", 1);
    }
}

#[test]
fn a_site_behind_nat_sums_inside_and_exchanges_outside() {
    if can_run("a_site_behind_nat_sums_inside_and_exchanges_outside") {
        // The peers of the home reach each other, and yet know that others do not reach them.
        assert_trained("hier", "5", 3);
    }
}

#[test]
fn two_peers_behind_nat_train_together_in_every_plan() {
    if can_run("two_peers_behind_nat_train_together_in_every_plan") {
        for plan in ["gather", "reduce", "hier"] {
            assert_trained(plan, "4", 2);
        }
    }
}
