//! Long blobs, several holders, and what bounds them.

use super::*;

/// Eight parts of the shortest kind.
const LONG: usize = 32 * MIB;

fn client_with(limits: BulkLimits) -> Bulk {
    let source = Arc::new(Claims::default());
    bulk_with(Keypair::generate_ed25519(), limits, source, loopback()).unwrap()
}

fn server_with(limits: BulkLimits, source: Arc<dyn BlobSource>) -> (Bulk, PeerSource) {
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    let server = bulk_with(keypair, limits, source, loopback()).unwrap();
    let addr = server.local_addr();
    (server, PeerSource { peer, addr })
}

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
    let fetched = client()
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
async fn frozen_source_is_overtaken_at_the_byte_where_it_stopped_and_asked_last_next_time() {
    let bytes = pattern(2 * MIB, 1);
    let hash = hash_of(&bytes);
    let (frozen, requests) = rogue(Rogue::Freezes {
        total: bytes.len() as u64,
        sends: bytes.slice(..MIB),
    });
    let (_server, good) = peer(claims(hash, bytes.clone()));
    // The stall window outlasts the test: only overtaking can end the first lane.
    let client = client_with(BulkLimits {
        overtake_after: Duration::from_millis(300),
        stall_window: Duration::from_secs(86_400),
        ..BulkLimits::default()
    });
    let length = Length::Exactly(bytes.len() as u64);
    for _ in 0..2 {
        let fetched = client
            .fetch(hash, length, &[frozen, good], deadline())
            .await
            .unwrap();
        assert_eq!(fetched.bytes, bytes);
        if requests.load(Ordering::SeqCst) == 1 && bytes_of(&fetched.report, &frozen) > 0 {
            assert_eq!(
                fetched.report.bytes_from,
                [(frozen.peer, MIB as u64), (good.peer, MIB as u64)]
            );
            assert_eq!(fetched.report.blamed, [(frozen.peer, Blame::Stalled)]);
        }
    }
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
        ..BulkLimits::default()
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
async fn liar_among_several_holders_is_blamed_alone_and_the_blob_is_right() {
    let bytes = pattern(LONG, 1);
    let hash = hash_of(&bytes);
    let (_a, first) = peer(claims(hash, bytes.clone()));
    let (_b, liar) = peer(claims(hash, pattern(LONG, 2)));
    let (_c, last) = peer(claims(hash, bytes.clone()));
    let length = Length::Exactly(LONG as u64);
    let fetched = client()
        .fetch(hash, length, &[first, liar, last], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(fetched.report.blamed, [(liar.peer, Blame::WrongBytes)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_with_another_length_is_left_before_a_byte_of_it_is_taken() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let (_a, short) = peer(claims(hash, bytes.slice(1..)));
    let (_b, good) = peer(claims(hash, bytes.clone()));
    let length = Length::Exactly(MIB as u64);
    let fetched = client()
        .fetch(hash, length, &[short, good], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.report.bytes_from, [(good.peer, MIB as u64)]);
    let claimed = MIB as u64 - 1;
    assert_eq!(
        fetched.report.blamed,
        [(short.peer, Blame::OtherLength { claimed })]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_beyond_the_memory_budget_asks_nobody_until_there_is_room() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let (server, source) = peer(claims(hash, bytes.clone()));
    let client = client_with(BulkLimits {
        fetch_bytes_max: 2 * MIB as u64,
        ..BulkLimits::default()
    });
    let budget = &client.inner.fetch_memory;
    let taken = budget
        .acquire_many(budget::units(MIB as u64 + 1))
        .await
        .unwrap();
    let length = Length::Exactly(MIB as u64);
    let soon = Instant::now() + Duration::from_millis(200);
    let failed = client
        .fetch(hash, length, &[source], soon)
        .await
        .unwrap_err();
    assert_eq!(failed.error, FetchError::Deadline);
    assert_eq!(server.inner.incoming.available_permits(), 128);
    drop(taken);
    let all = budget.available_permits();
    let mut fetches = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let client = client.clone();
        fetches.spawn(async move { client.fetch(hash, length, &[source], deadline()).await });
    }
    while let Some(fetched) = fetches.join_next().await {
        assert_eq!(fetched.unwrap().unwrap().bytes, bytes);
    }
    // A blob above the whole budget is fetched alone.
    let long = pattern(5 * MIB, 2);
    let (_other, source) = peer(claims(hash_of(&long), long.clone()));
    let length = Length::Exactly(long.len() as u64);
    let fetched = client
        .fetch(hash_of(&long), length, &[source], deadline())
        .await;
    assert_eq!(fetched.unwrap().bytes, long);
    assert_eq!(budget.available_permits(), all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_takes_its_share_of_streams_is_told_busy_while_others_are_served() {
    let bytes = pattern(4 * MIB, 1);
    let hash = hash_of(&bytes);
    let limits = BulkLimits {
        streams_served_per_peer_max: 1,
        ..BulkLimits::default()
    };
    let (_server, source) = server_with(limits, claims(hash, bytes.clone()));
    let length = Length::Exactly(bytes.len() as u64);
    // The smallest window: the server cannot finish a stream that is not read. It is on the second connection, since a
    // full window holds back all streams of a connection.
    let greedy = client_with(BulkLimits {
        pipe: PipeTarget {
            bits_per_s: 1,
            round_trip: Duration::ZERO,
        },
        ..BulkLimits::default()
    });
    let lease = greedy
        .inner
        .links
        .lease(&greedy.inner, source.peer, source.addr, 1)
        .await
        .unwrap();
    let (mut send, mut recv) = lease.connection.open_bi().await.unwrap();
    let request = Request {
        hash,
        offset: 0,
        length: u64::MAX,
        total_max: u64::MAX,
    };
    send.write_all(&request.encode()).await.unwrap();
    recv.read_exact(&mut [0; wire::RESPONSE_BYTES])
        .await
        .unwrap();
    let failed = greedy.fetch(hash, length, &[source], deadline()).await;
    assert_eq!(
        failed.unwrap_err().report.blamed,
        [(source.peer, Blame::Busy)]
    );
    let fetched = client().fetch(hash, length, &[source], deadline()).await;
    assert_eq!(fetched.unwrap().bytes, bytes);
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
    let client = bulk_with(client_key, BulkLimits::default(), nothing, loopback()).unwrap();
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
