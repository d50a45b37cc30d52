//! Long blobs and several holders.

use super::*;

fn bytes_of(report: &FetchReport, source: &PeerSource) -> u64 {
    let from = report.bytes_from.iter();
    from.filter(|(peer, _)| *peer == source.peer)
        .map(|(_, bytes)| bytes)
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_blob_comes_from_all_holders_at_once_and_no_byte_twice() {
    let bytes = pattern(LONG, 1);
    let hash = hash_of(&bytes);
    let (_a, first) = peer(claims(hash, bytes.clone()));
    let (_b, second) = peer(claims(hash, bytes.clone()));
    let length = Length::Exactly(LONG as u64);
    let fetched = client_with(quic_only())
        .fetch(hash, length, &[first, second], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    let (from_first, from_second) = (
        bytes_of(&fetched.report, &first),
        bytes_of(&fetched.report, &second),
    );
    assert!(from_first > 0 && from_second > 0, "{:?}", fetched.report);
    assert_eq!(from_first + from_second, LONG as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_source_is_overtaken_at_the_byte_where_it_stopped() {
    let bytes = pattern(2 * MIB, 1);
    let hash = hash_of(&bytes);
    let (frozen, requests) = rogue(Rogue::Freezes {
        total: bytes.len() as u64,
        sends: bytes.slice(..MIB),
    });
    let (_server, good) = peer(claims(hash, bytes.clone()));
    // The stall window outlasts the test: only overtaking can end the first lane.
    let client = client_with(BulkLimits {
        stall_window: Duration::from_secs(86_400),
        ..BulkLimits::default()
    });
    let length = Length::Exactly(bytes.len() as u64);
    let fetched = client
        .fetch(hash, length, &[frozen, good], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(
        fetched.report.bytes_from,
        [(frozen.peer, MIB as u64), (good.peer, MIB as u64)]
    );
    assert_eq!(fetched.report.blamed, [(frozen.peer, Blame::Stalled)]);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_that_does_not_answer_the_handshake_is_overtaken() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let mute_socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mute = PeerSource {
        peer: PeerId::random(),
        addr: mute_socket.local_addr().unwrap(),
    };
    let (_server, good) = peer(claims(hash, bytes.clone()));
    let client = client_with(BulkLimits {
        overtake_after: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(86_400),
        ..BulkLimits::default()
    });
    let length = Length::Exactly(MIB as u64);
    let fetched = client
        .fetch(hash, length, &[mute, good], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.report.bytes_from, [(good.peer, MIB as u64)]);
    assert_eq!(fetched.report.blamed, [(mute.peer, Blame::Stalled)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_that_freezes_in_one_of_many_parts_is_overtaken_in_those_it_has() {
    let bytes = pattern(LONG, 1);
    let hash = hash_of(&bytes);
    // Enough of the middle for four parts, and nothing of the last ones.
    let (frozen, _) = rogue(Rogue::Freezes {
        total: LONG as u64,
        sends: bytes.slice(..17 * MIB),
    });
    let (_server, good) = peer(claims(hash, bytes.clone()));
    let client = client_with(BulkLimits {
        overtake_after: Duration::from_millis(300),
        ..quic_only()
    });
    let length = Length::Exactly(LONG as u64);
    let fetched = client
        .fetch(hash, length, &[frozen, good], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    let (dead, alive) = (
        bytes_of(&fetched.report, &frozen),
        bytes_of(&fetched.report, &good),
    );
    assert_eq!(dead + alive, LONG as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_blob_of_a_peer_that_cannot_be_dialled_comes_over_the_connection_it_made() {
    let (ours, theirs) = (pattern(10, 1), pattern(LONG, 2));
    let (public, public_source) = peer(claims(hash_of(&ours), ours.clone()));
    let (hidden, mut hidden_source) = peer(claims(hash_of(&theirs), theirs.clone()));
    let length = Length::Exactly(10);
    hidden
        .fetch(hash_of(&ours), length, &[public_source], deadline())
        .await
        .unwrap();
    // Nobody listens on the discard port here: only the connection that stands can serve.
    hidden_source.addr = "127.0.0.1:9".parse().unwrap();
    let length = Length::Exactly(LONG as u64);
    let fetched = public
        .fetch(hash_of(&theirs), length, &[hidden_source], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, theirs);
    assert_eq!(fetched.report.blamed, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_grow_on_loopback_to_the_bound_of_mtu_discovery() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let (server, source) = peer(claims(hash, bytes.clone()));
    let client_key = Keypair::generate_ed25519();
    let client_id = client_key.public().to_peer_id();
    let nothing = Arc::new(Claims::default());
    let client = bulk_with(client_key, quic_only(), nothing, loopback()).unwrap();
    let give_up = deadline();
    // The search ends within twenty bytes of the bound.
    let enough = transport::UDP_PAYLOAD_BYTES_MAX - 20;
    loop {
        let length = Length::Exactly(MIB as u64);
        client
            .fetch(hash, length, &[source], deadline())
            .await
            .unwrap();
        let lease = server
            .inner
            .links
            .lease(&server.inner, client_id, client.local_addr(), 0)
            .await
            .unwrap();
        if lease.connection.stats().path.current_mtu >= enough {
            break;
        }
        assert!(Instant::now() < give_up, "packets stay small");
    }
}
