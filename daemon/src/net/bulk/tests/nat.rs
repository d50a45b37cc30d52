//! Peers that nobody can connect to.

use super::*;

/// Where a peer behind NAT is told to be.
const NOWHERE: &str = "0.0.0.0:0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_nobody_can_connect_to_is_asked_over_the_connection_that_it_holds() {
    let (ours, theirs) = (pattern(MIB, 1), pattern(10, 2));
    let (inside, at_home) = peer(claims(hash_of(&ours), ours.clone()));
    let (outside, source) = peer(claims(hash_of(&theirs), theirs.clone()));
    let at_home = PeerSource {
        addr: NOWHERE.parse().unwrap(),
        ..at_home
    };
    let length = Length::Exactly(MIB as u64);
    let (ours_hash, theirs_hash) = (hash_of(&ours), hash_of(&theirs));
    let asked = outside
        .fetch(ours_hash, length, &[at_home], deadline())
        .await;
    assert_eq!(asked.unwrap_err().error, FetchError::Exhausted);

    inside.set_behind_nat(true);
    inside.hold(source).await.unwrap();
    // Once one request is answered, the other end has taken note of the connection.
    let fetched = inside
        .fetch(theirs_hash, Length::AtMost(10), &[source], deadline())
        .await;
    assert_eq!(fetched.unwrap().bytes, theirs);
    let asked = outside
        .fetch(ours_hash, length, &[at_home], deadline())
        .await;
    assert_eq!(asked.unwrap().bytes, ours);
}
