//! Real daemons find out what their links carry.
//!
//! Says why and passes where such daemons cannot be run.

mod daemons;

use daemons::{can_run, exchanged};

/// The third peer is behind 20 Mbit/s, the others are not.
const TOPOLOGY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/thin.toml");
/// A capacity stands for four rounds (rule `seldom-and-much`), two of which are no sample; two more until it is decided and shown.
const ROUNDS: usize = 7;

#[test]
fn a_peer_behind_a_thin_link_comes_to_say_what_it_carries_and_the_others_say_more() {
    if !can_run("a_peer_behind_a_thin_link_comes_to_say_what_it_carries_and_the_others_say_more") {
        return;
    }
    // 3 MB to each of two others take the thin link 2.4 s.
    let args = "--mb 3 --codec dense-f32 --plan reduce --peers 3";
    let args: Vec<&str> = args.split(' ').collect();
    let case = exchanged(TOPOLOGY, ROUNDS, &args);
    let capacities = &case["capacity_mbit"];
    let [first, second, thin] = [0, 1, 2].map(|peer| capacities[peer].as_u64());
    assert!(
        thin.is_some_and(|mbit| (10..=40).contains(&mbit)),
        "{capacities}"
    );
    assert!(first > thin && second > thin, "{capacities}");
}
