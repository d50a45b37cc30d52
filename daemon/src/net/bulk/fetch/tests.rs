//! What a fetch decides at its looks, without waiting for them.

use std::net::UdpSocket;

use libp2p::identity::Keypair;

use super::super::{Bulk, BulkConfig, BulkLimits};
use super::*;
use crate::blob::BlobStore;

fn bulk() -> Bulk {
    let config = BulkConfig {
        keypair: Keypair::generate_ed25519(),
        listen: "127.0.0.1:0".parse().unwrap(),
        limits: BulkLimits::default(),
    };
    Bulk::spawn(config, Arc::new(BlobStore::new(0)), Arc::new(|_| true)).unwrap()
}

/// Somebody whose socket takes what comes and never answers.
fn mute() -> (UdpSocket, PeerSource) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (peer, addr) = (PeerId::random(), socket.local_addr().unwrap());
    (socket, PeerSource { peer, addr })
}

/// A fetch of one byte that has a lane to the first of `sources`.
fn board<'a>(inner: &'a Arc<Inner>, sources: &[PeerSource]) -> Board<'a> {
    let order = Order::new([1; 32], Length::Exactly(1), sources);
    let mut board = Board::new(inner, &order);
    board.start_over().unwrap();
    board.assign();
    board
}

fn looks_to_overtake(inner: &Inner) -> u128 {
    let limits = &inner.limits;
    limits.overtake_after.as_millis() / LOOK_EVERY.as_millis()
}

#[tokio::test]
async fn source_freezes_when_nothing_comes_from_it_in_any_lane_of_any_fetch() {
    let bulk = bulk();
    let ((_a, first), (_b, second)) = (mute(), mute());
    let mut board = board(&bulk.inner, &[first, second]);
    let looks = looks_to_overtake(&bulk.inner);
    let other_fetch = bulk.inner.pulses.of(first.peer);
    for _ in 0..3 * looks {
        other_fetch.beat(1);
        board.look();
    }
    for _ in 1..looks {
        board.look();
    }
    assert_eq!(board.report.blamed, []);
    assert!(!bulk.inner.links.is_frozen(&first.peer));
    board.look();
    assert_eq!(board.report.blamed, [(first.peer, Blame::Stalled)]);
    assert!(bulk.inner.links.is_frozen(&first.peer));
    assert!(board.running.values().all(|running| running.overtaken));
}

#[tokio::test]
async fn only_source_is_not_overtaken_however_long_it_is_silent() {
    let bulk = bulk();
    let (_socket, only) = mute();
    let mut board = board(&bulk.inner, &[only]);
    for _ in 0..3 * looks_to_overtake(&bulk.inner) {
        board.look();
    }
    assert_eq!(board.report.blamed, []);
    assert!(board.running.values().all(|running| !running.overtaken));
}

#[tokio::test]
async fn frozen_source_that_delivers_again_is_good_again() {
    let bulk = bulk();
    let (_socket, only) = mute();
    bulk.inner.links.freezes(only.peer);
    let mut board = board(&bulk.inner, &[only]);
    let standing = |board: &Board| board.holders.first().map(|holder| holder.standing);
    assert!(standing(&board) == Some(Standing::Frozen));
    bulk.inner.pulses.of(only.peer).beat(1);
    board.look();
    assert!(standing(&board) == Some(Standing::Good));
}

#[tokio::test]
async fn source_that_froze_in_another_fetch_is_asked_when_no_good_one_is_left() {
    let bulk = bulk();
    let ((_a, frozen), (_b, good)) = (mute(), mute());
    bulk.inner.links.freezes(frozen.peer);
    let mut board = board(&bulk.inner, &[frozen, good]);
    assert!(board.running.values().all(|running| running.holder == 1));
    board.holders[1].standing = Standing::Gone;
    assert_eq!(board.choose(), Some(0));
}
