//! Blobs over the near road.

use std::net::TcpListener as StdListener;

use gradmesh_compression::planes::Width;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::near::{self as roads, Stream};
use super::wire::{Kind, RESPONSE_BYTES};
use super::*;

/// As [`server_with`], with a near road: the TCP port of the number that UDP got may be somebody else's.
async fn near_server_with(limits: BulkLimits, source: Arc<dyn BlobSource>) -> (Bulk, PeerSource) {
    let caller = client();
    for _ in 0..100 {
        let (server, at) = server_with(limits, Arc::clone(&source));
        if dial(&caller, at).await.is_ok() {
            return (server, at);
        }
    }
    panic!("no TCP port is free");
}

async fn near_server(source: Arc<dyn BlobSource>) -> (Bulk, PeerSource) {
    near_server_with(BulkLimits::default(), source).await
}

async fn dial(client: &Bulk, to: PeerSource) -> io::Result<Stream> {
    roads::dial(&client.inner, to.peer, to.addr).await
}

/// An address whose TCP and UDP ports are free, of which the former is taken now.
fn tcp_port(mut take_udp: impl FnMut(SocketAddr) -> bool) -> StdListener {
    for _ in 0..100 {
        let tcp = StdListener::bind(loopback()).unwrap();
        if take_udp(tcp.local_addr().unwrap()) {
            return tcp;
        }
    }
    panic!("no UDP port is free");
}

/// Serves `source` over QUIC, at the number of a TCP port that is not its own.
fn beside_a_tcp_port(
    keypair: &Keypair,
    limits: BulkLimits,
    source: &Arc<Claims>,
) -> (Bulk, StdListener) {
    let mut server = None;
    let tcp = tcp_port(|addr| {
        server = bulk_with(keypair.clone(), limits, source.clone(), addr).ok();
        server.is_some()
    });
    (server.unwrap(), tcp)
}

#[derive(Clone, Copy)]
enum Then {
    Closes,
    SaysNothing,
}

/// Answers requests over the near road at `tcp` as the peer of `keypair`: claims `total` bytes, sends `sends` from the
/// requested offset on, and then does what it does. Returns how many requests it has had.
fn near_rogue(
    tcp: StdListener,
    keypair: &Keypair,
    total: usize,
    sends: Bytes,
    then: Then,
) -> Arc<AtomicUsize> {
    let acceptor = tls::near_server(keypair).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(tcp).unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
            let sends = sends.clone();
            tokio::spawn(async move {
                // Whoever expects another peer hangs up.
                let Ok(mut stream) = acceptor.accept(tcp).await else {
                    return;
                };
                let mut wire = [0; REQUEST_BYTES];
                if stream.read_exact(&mut wire).await.is_err() {
                    return;
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let offset = Request::decode(&wire).unwrap().offset;
                let head = Response {
                    status: Status::Ok,
                    total: total as u64,
                };
                let from = usize::try_from(offset).unwrap().min(sends.len());
                let _ = stream.write_all(&head.encode()).await;
                let _ = stream.write_all(&sends[from..]).await;
                let _ = stream.flush().await;
                match then {
                    Then::Closes => {}
                    Then::SaysNothing => std::future::pending().await,
                }
            });
        }
    });
    requests
}

fn request(hash: BlobHash) -> Request {
    Request {
        kind: Kind::Blob,
        elements: None,
        hash,
        offset: 0,
        length: u64::MAX,
        total_max: u64::MAX,
    }
}

/// What `stream` says to `wire`; `None` when it is closed.
async fn ask(stream: &mut Stream, wire: &[u8]) -> Option<Status> {
    stream.write_all(wire).await.ok()?;
    stream.flush().await.ok()?;
    let mut response = [0; RESPONSE_BYTES];
    stream.read_exact(&mut response).await.ok()?;
    Some(Response::decode(&response).unwrap().status)
}

async fn is_closed(stream: &mut Stream) -> bool {
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
    matches!(read, Ok(0) | Err(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_blobs_of_a_peer_nearby_come_over_tcp_and_short_ones_do_not() {
    let (long, short) = (pattern(LONG, 1), pattern(MIB - 1, 2));
    let (in_memory, on_disk) = (hash_of(&long), hash_of(&long[1..]));
    let store = Arc::new(BlobStore::new(64 * MIB as u64));
    store.insert(1, long.clone()).unwrap();
    store.insert(1, short.clone()).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&long).unwrap();
    let path = file.path().to_path_buf();
    let rest = LONG as u64 - 1;
    store.register_file(on_disk, path, 1, rest).unwrap();
    let (_server, source) = near_server(store).await;
    let client = client();
    let mut near_bytes = 0;
    for (hash, bytes) in [(in_memory, long.clone()), (on_disk, long.slice(1..))] {
        let length = bytes.len() as u64;
        let fetched = client
            .fetch(hash, Length::Exactly(length), &[source], deadline())
            .await
            .unwrap();
        assert_eq!(fetched.bytes, bytes);
        assert_eq!(fetched.report.bytes_from, [(source.peer, length)]);
        assert_eq!(fetched.report.blamed, []);
        near_bytes += length;
        assert_eq!(client.near_bytes(), near_bytes);
    }
    let kept = client.inner.near.idle(&source.peer);
    assert!((1..=4).contains(&kept), "{kept}");
    let length = Length::Exactly(short.len() as u64);
    let fetched = client
        .fetch(hash_of(&short), length, &[source], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, short);
    assert_eq!(client.near_bytes(), near_bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_fetches_at_once_share_the_lanes_that_a_peer_may_have() {
    let bytes = pattern(4 * MIB, 1);
    let hash = hash_of(&bytes);
    let (_server, source) = near_server(claims(hash, bytes.clone())).await;
    let client = client();
    let mut fetches = tokio::task::JoinSet::new();
    let length = Length::Exactly(bytes.len() as u64);
    for _ in 0..32 {
        let client = client.clone();
        fetches.spawn(async move { client.fetch(hash, length, &[source], deadline()).await });
    }
    while let Some(fetched) = fetches.join_next().await {
        let fetched = fetched.unwrap().unwrap();
        assert_eq!(fetched.bytes, bytes);
        assert_eq!(fetched.report.blamed, []);
    }
    // None was refused a connection, which would have blocked the road.
    assert_eq!(client.near_bytes(), 32 * bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_tcp_port_is_taken_the_blob_comes_over_quic() {
    let bytes = pattern(LONG, 1);
    let (keypair, source) = (
        Keypair::generate_ed25519(),
        claims(hash_of(&bytes), bytes.clone()),
    );
    let (server, _tcp) = beside_a_tcp_port(&keypair, BulkLimits::default(), &source);
    let source = PeerSource {
        peer: keypair.public().to_peer_id(),
        addr: server.local_addr(),
    };
    let client = client();
    // The owner of the port accepts connections, as the kernel does for it, and says nothing.
    let length = Length::Exactly(LONG as u64);
    let fetched = client
        .fetch(hash_of(&bytes), length, &[source], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(fetched.report.blamed, []);
    assert_eq!(client.near_bytes(), 0);
    assert!(client.inner.near.is_blocked(&source.peer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_peer_at_the_tcp_port_is_refused_and_quic_serves() {
    let bytes = pattern(LONG, 1);
    let keypair = Keypair::generate_ed25519();
    let source = claims(hash_of(&bytes), bytes.clone());
    let (server, tcp) = beside_a_tcp_port(&keypair, quic_only(), &source);
    let source = PeerSource {
        peer: keypair.public().to_peer_id(),
        addr: server.local_addr(),
    };
    let impostor = Keypair::generate_ed25519();
    let requests = near_rogue(tcp, &impostor, LONG, bytes.clone(), Then::Closes);
    let client = client();
    let length = Length::Exactly(LONG as u64);
    let fetched = client
        .fetch(hash_of(&bytes), length, &[source], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(fetched.report.blamed, []);
    assert_eq!(client.near_bytes(), 0);
    assert_eq!(requests.load(Ordering::SeqCst), 0);
    assert!(client.inner.near.is_blocked(&source.peer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_peer_gets_nothing_over_tcp_also_when_it_was_admitted_before() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let keypair = Keypair::generate_ed25519();
    let admitted = Arc::new(AtomicBool::new(true));
    let (server, friend) = loop {
        let config = BulkConfig {
            keypair: keypair.clone(),
            listen: loopback(),
            limits: BulkLimits::default(),
        };
        let admits = Arc::clone(&admitted);
        let allow: Allow = Arc::new(move |_| admits.load(Ordering::SeqCst));
        let server = Bulk::spawn(config, claims(hash, bytes.clone()), allow).unwrap();
        let source = PeerSource {
            peer: keypair.public().to_peer_id(),
            addr: server.local_addr(),
        };
        if let Ok(friend) = dial(&client(), source).await {
            break (server, friend);
        }
    };
    let mut friend = friend;
    let source = PeerSource {
        peer: keypair.public().to_peer_id(),
        addr: server.local_addr(),
    };
    let unknown = request([1; 32]).encode();
    assert_eq!(ask(&mut friend, &unknown).await, Some(Status::NotFound));
    admitted.store(false, Ordering::SeqCst);
    let wire = request(hash).encode();
    assert_eq!(ask(&mut friend, &wire).await, None);
    let client = client();
    if let Ok(mut stream) = dial(&client, source).await {
        assert_eq!(ask(&mut stream, &wire).await, None);
    }
    let length = Length::Exactly(MIB as u64);
    let failed = client.fetch(hash, length, &[source], deadline()).await;
    assert_eq!(failed.unwrap_err().report.bytes_from, []);
    assert_eq!(client.near_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_peer_beyond_its_share_are_refused_until_it_closes_one() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let (_server, source) = near_server(claims(hash, bytes.clone())).await;
    let greedy = client();
    let unknown = request([1; 32]).encode();
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = dial(&greedy, source).await.unwrap();
        assert_eq!(ask(&mut stream, &unknown).await, Some(Status::NotFound));
        streams.push(stream);
    }
    if let Ok(mut ninth) = dial(&greedy, source).await {
        assert_eq!(ask(&mut ninth, &unknown).await, None);
    }
    let other = client();
    let length = Length::Exactly(MIB as u64);
    let fetched = other.fetch(hash, length, &[source], deadline()).await;
    assert_eq!(fetched.unwrap().bytes, bytes);
    assert_eq!(other.near_bytes(), MIB as u64);
    streams.pop();
    let give_up = deadline();
    loop {
        let stream = dial(&greedy, source).await;
        if let Ok(mut stream) = stream
            && ask(&mut stream, &unknown).await == Some(Status::NotFound)
        {
            break;
        }
        assert!(Instant::now() < give_up, "the place is not given back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incoming_connections_beyond_the_limit_are_refused_and_quic_serves() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let limits = BulkLimits {
        connections_max: 1,
        ..BulkLimits::default()
    };
    let (server, source) = near_server_with(limits, claims(hash, bytes.clone())).await;
    let give_up = deadline();
    // The place of the caller that found the server listening may still have to be given back.
    let _only = loop {
        if let Ok(mut stream) = dial(&client(), source).await
            && ask(&mut stream, &request([1; 32]).encode()).await == Some(Status::NotFound)
        {
            break stream;
        }
        assert!(Instant::now() < give_up, "the place is not given back");
    };
    let client = client();
    let length = Length::Exactly(MIB as u64);
    let fetched = client.fetch(hash, length, &[source], deadline()).await;
    assert_eq!(fetched.unwrap().bytes, bytes);
    assert_eq!(client.near_bytes(), 0);
    drop(server);
}

/// A source that can be reached over TCP alone: nobody reads its UDP socket.
fn near_only(keypair: &Keypair) -> (StdListener, Option<UdpSocket>, PeerSource) {
    let mut mute = None;
    let tcp = tcp_port(|addr| {
        mute = UdpSocket::bind(addr).ok();
        mute.is_some()
    });
    let source = PeerSource {
        peer: keypair.public().to_peer_id(),
        addr: tcp.local_addr().unwrap(),
    };
    (tcp, mute, source)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_goes_silent_is_overtaken_by_another_source() {
    let bytes = pattern(4 * MIB, 1);
    let hash = hash_of(&bytes);
    let keypair = Keypair::generate_ed25519();
    let (tcp, _mute, silent) = near_only(&keypair);
    let sends = bytes.slice(..MIB);
    let requests = near_rogue(tcp, &keypair, bytes.len(), sends, Then::SaysNothing);
    let (_server, good) = near_server(claims(hash, bytes.clone())).await;
    // The stall window outlasts the test: only overtaking can end the first lane.
    let client = client_with(BulkLimits {
        stall_window: Duration::from_secs(86_400),
        connect_timeout: Duration::from_secs(86_400),
        ..BulkLimits::default()
    });
    let length = Length::Exactly(bytes.len() as u64);
    let fetched = client
        .fetch(hash, length, &[silent, good], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(
        fetched.report.bytes_from,
        [(silent.peer, MIB as u64), (good.peer, 3 * MIB as u64)]
    );
    assert_eq!(fetched.report.blamed, [(silent.peer, Blame::Stalled)]);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    assert!(client.inner.near.is_blocked(&silent.peer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn road_that_is_cut_or_goes_silent_is_left_for_quic_at_the_same_byte() {
    let bytes = pattern(4 * MIB, 1);
    let hash = hash_of(&bytes);
    for then in [Then::Closes, Then::SaysNothing] {
        let keypair = Keypair::generate_ed25519();
        let source = claims(hash, bytes.clone());
        let (server, tcp) = beside_a_tcp_port(&keypair, quic_only(), &source);
        let source = PeerSource {
            peer: keypair.public().to_peer_id(),
            addr: server.local_addr(),
        };
        let requests = near_rogue(tcp, &keypair, bytes.len(), bytes.slice(..MIB), then);
        let client = client();
        let length = Length::Exactly(bytes.len() as u64);
        // The second fetch does not try it again.
        for _ in 0..2 {
            let fetched = client.fetch(hash, length, &[source], deadline()).await;
            let fetched = fetched.unwrap();
            assert_eq!(fetched.bytes, bytes);
            let all = bytes.len() as u64;
            assert_eq!(fetched.report.bytes_from, [(source.peer, all)]);
            assert_eq!(fetched.report.blamed, []);
            assert_eq!(client.near_bytes(), MIB as u64);
            assert_eq!(requests.load(Ordering::SeqCst), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_that_dies_is_left_for_another_one_at_the_same_byte() {
    let bytes = pattern(4 * MIB, 1);
    let hash = hash_of(&bytes);
    let keypair = Keypair::generate_ed25519();
    let (tcp, _mute, dying) = near_only(&keypair);
    near_rogue(tcp, &keypair, bytes.len(), bytes.slice(..MIB), Then::Closes);
    let (_server, good) = near_server(claims(hash, bytes.clone())).await;
    let client = client();
    let length = Length::Exactly(bytes.len() as u64);
    let fetched = client
        .fetch(hash, length, &[dying, good], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(
        fetched.report.bytes_from,
        [(dying.peer, MIB as u64), (good.peer, 3 * MIB as u64)]
    );
    assert!(
        matches!(&fetched.report.blamed[..], [(peer, _)] if *peer == dying.peer),
        "{:?}",
        fetched.report
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_a_request_for_plain_bytes_is_refused_and_others_are_served() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let (_server, source) = near_server(claims(hash, bytes.clone())).await;
    let client = client();
    let wait = Request {
        kind: Kind::Wait,
        ..request(hash)
    };
    let packed = Request {
        elements: Some(Width::F32),
        ..request(hash)
    };
    for wire in [[0xff; REQUEST_BYTES], wait.encode(), packed.encode()] {
        let mut stream = dial(&client, source).await.unwrap();
        assert_eq!(ask(&mut stream, &wire).await, Some(Status::BadRequest));
        assert!(is_closed(&mut stream).await);
    }
    let length = Length::Exactly(MIB as u64);
    let fetched = client.fetch(hash, length, &[source], deadline()).await;
    assert_eq!(fetched.unwrap().bytes, bytes);
    assert_eq!(client.near_bytes(), MIB as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_over_tcp_are_blamed_and_the_next_source_serves() {
    let bytes = pattern(4 * MIB, 1);
    let hash = hash_of(&bytes);
    let (_a, liar) = near_server(claims(hash, pattern(4 * MIB, 2))).await;
    let (_b, good) = near_server(claims(hash, bytes.clone())).await;
    let client = client();
    let length = Length::Exactly(bytes.len() as u64);
    let fetched = client
        .fetch(hash, length, &[liar, good], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(fetched.report.blamed, [(liar.peer, Blame::WrongBytes)]);
    assert_eq!(client.near_bytes(), 8 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_use_end_on_either_side() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let brief = BulkLimits {
        idle_timeout: Duration::from_millis(200),
        ..BulkLimits::default()
    };
    let source = claims(hash, bytes.clone());
    let (_server, at) = near_server_with(brief, source.clone()).await;
    let mut stream = dial(&client(), at).await.unwrap();
    assert!(is_closed(&mut stream).await);

    let (_server, at) = near_server(source).await;
    let client = client_with(brief);
    let length = Length::Exactly(MIB as u64);
    let fetched = client.fetch(hash, length, &[at], deadline()).await;
    assert_eq!(fetched.unwrap().bytes, bytes);
    assert_eq!(client.near_bytes(), MIB as u64);
    let give_up = deadline();
    while client.inner.near.idle(&at.peer) > 0 {
        assert!(Instant::now() < give_up, "the connection is kept");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_closes_near_roads_and_a_kept_one_is_replaced_after_a_restart() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let keypair = Keypair::generate_ed25519();
    let start = |listen| {
        let source = claims(hash, bytes.clone());
        bulk_with(keypair.clone(), BulkLimits::default(), source, listen)
    };
    let client = client();
    let (server, source, mut idle) = loop {
        let server = start(loopback()).unwrap();
        let source = PeerSource {
            peer: keypair.public().to_peer_id(),
            addr: server.local_addr(),
        };
        if let Ok(idle) = dial(&client, source).await {
            break (server, source, idle);
        }
    };
    let length = Length::Exactly(MIB as u64);
    let fetched = client.fetch(hash, length, &[source], deadline()).await;
    assert_eq!(fetched.unwrap().bytes, bytes);
    assert_eq!(client.inner.near.idle(&source.peer), 1);
    server.shutdown().await;
    assert!(is_closed(&mut idle).await);
    drop(server);
    let server = once_free(source.addr, start).await;
    let fetched = client.fetch(hash, length, &[source], deadline()).await;
    let fetched = fetched.unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(fetched.report.blamed, []);
    assert_eq!(client.near_bytes(), 2 * MIB as u64);
    drop(server);
    client.shutdown().await;
    assert_eq!(client.inner.near.idle(&source.peer), 0);
}
