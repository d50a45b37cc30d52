//! What bounds connections, streams and memory, and what happens at the bounds.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_concurrent_fetches_share_one_connection_and_all_succeed_within_tight_bounds() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let keypair = Keypair::generate_ed25519();
    let limits = BulkLimits {
        streams_per_connection_max: 4,
        connections_per_peer_max: 1,
        ..BulkLimits::default()
    };
    let server = bulk_with(
        keypair.clone(),
        limits,
        claims(hash, bytes.clone()),
        loopback(),
    )
    .unwrap();
    let source = PeerSource {
        peer: keypair.public().to_peer_id(),
        addr: server.local_addr(),
    };
    let limits = BulkLimits {
        fetches_max: 8,
        ..BulkLimits::default()
    };
    let client = bulk_with(
        Keypair::generate_ed25519(),
        limits,
        Arc::new(Claims::default()),
        loopback(),
    )
    .unwrap();
    let mut fetches = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let client = client.clone();
        fetches.spawn(async move {
            client
                .fetch(hash, Length::AtMost(MIB as u64), &[source], deadline())
                .await
        });
    }
    let mut in_flight_max = 0;
    while let Some(fetched) = fetches.join_next().await {
        in_flight_max = in_flight_max.max(8 - client.inner.fetches.places_free());
        assert_eq!(fetched.unwrap().unwrap().bytes, bytes);
        // One connection per peer is all the server admits, so a second one would have failed a fetch.
        assert_eq!(server.inner.incoming.available_permits(), 127);
    }
    assert!(in_flight_max <= 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_are_refused_and_those_below_it_served() {
    let bytes = pattern(10, 1);
    let hash = hash_of(&bytes);
    let keypair = Keypair::generate_ed25519();
    let limits = BulkLimits {
        connections_max: 3,
        ..BulkLimits::default()
    };
    let source = claims(hash, bytes.clone());
    let server = bulk_with(keypair.clone(), limits, source, loopback()).unwrap();
    let source = PeerSource {
        peer: keypair.public().to_peer_id(),
        addr: server.local_addr(),
    };
    // The third has to validate its address first; it is served all the same.
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = client();
        let fetched = client
            .fetch(hash, Length::AtMost(10), &[source], deadline())
            .await;
        assert_eq!(fetched.unwrap().bytes, bytes);
        clients.push(client);
    }
    let failed = client()
        .fetch(hash, Length::AtMost(10), &[source], deadline())
        .await
        .unwrap_err();
    assert!(
        matches!(&failed.report.blamed[..], [(_, Blame::Unreachable(_))]),
        "{:?}",
        failed.report
    );
    // A place is free again when a client leaves.
    clients.remove(0).shutdown().await;
    let give_up = deadline();
    while server.inner.incoming.available_permits() == 0 {
        assert!(Instant::now() < give_up, "the place is not given back");
        sleep(Duration::from_millis(20)).await;
    }
    let fetched = client()
        .fetch(hash, Length::AtMost(10), &[source], deadline())
        .await;
    assert_eq!(fetched.unwrap().bytes, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_server_says_so_and_is_asked_again() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let (server, source) = peer(claims(hash, bytes.clone()));
    let all = u32::try_from(BulkLimits::default().streams_served_max).unwrap();
    let taken = server.inner.serving.acquire_many(all).await.unwrap();
    let failed = client()
        .fetch(hash, Length::AtMost(MIB as u64), &[source], deadline())
        .await
        .unwrap_err();
    assert_eq!(failed.report.blamed, [(source.peer, Blame::Busy)]);

    let waiting = client();
    let sources = [source];
    let fetch = waiting.fetch(hash, Length::AtMost(MIB as u64), &sources, deadline());
    let free = async {
        sleep(Duration::from_millis(100)).await;
        drop(taken);
    };
    let (fetched, ()) = tokio::join!(fetch, free);
    assert_eq!(fetched.unwrap().bytes, bytes);
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
        kind: wire::Kind::Blob,
        elements: None,
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
