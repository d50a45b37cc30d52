//! Real endpoints on loopback sockets. Every wait is for a condition and fails after [`PATIENCE`].

mod blame;
mod held;
mod limits;
mod nat;
mod near;
mod packed;
mod parallel;
mod ways;

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::sleep;

use super::wire::{REQUEST_BYTES, Request, Response, Status};
use super::*;
use crate::blob::{Blob, BlobStore};

/// Far above what anything here takes on an idle machine (below a second), for machines that are not idle.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
/// Eight parts of the shortest kind.
const LONG: usize = 32 * MIB;

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

fn bulk_with(
    keypair: Keypair,
    limits: BulkLimits,
    source: Arc<dyn BlobSource>,
    listen: SocketAddr,
) -> Result<Bulk, BulkError> {
    let config = BulkConfig {
        keypair,
        listen,
        limits,
    };
    Bulk::spawn(config, source, Arc::new(|_| true))
}

/// A peer that serves `source`, and where to find it.
fn peer(source: Arc<dyn BlobSource>) -> (Bulk, PeerSource) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let bulk = bulk_with(keypair, BulkLimits::default(), source, loopback()).unwrap();
    let addr = bulk.local_addr();
    (bulk, PeerSource { peer: id, addr })
}

fn client() -> Bulk {
    peer(Arc::new(BlobStore::new(0))).0
}

/// Limits of peers that use QUIC alone.
fn quic_only() -> BulkLimits {
    BulkLimits {
        near_road: false,
        ..BulkLimits::default()
    }
}

/// What `start` gives for `addr` once the one that listened there before is gone.
async fn once_free(
    addr: SocketAddr,
    start: impl Fn(SocketAddr) -> Result<Bulk, BulkError>,
) -> Bulk {
    let give_up = deadline();
    loop {
        match start(addr) {
            Ok(bulk) => return bulk,
            Err(BulkError::AddressInUse { .. }) if Instant::now() < give_up => {
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

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

/// Bytes that no two positions of a blob share by accident.
fn pattern(length: usize, seed: u8) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32])
        .finalize_xof()
        .fill(&mut bytes);
    bytes.into()
}

fn hash_of(bytes: &[u8]) -> BlobHash {
    *blake3::hash(bytes).as_bytes()
}

/// Serves whatever it was told to under a hash, true or not.
#[derive(Default)]
struct Claims(HashMap<BlobHash, Bytes>);

impl BlobSource for Claims {
    fn open(&self, hash: &BlobHash) -> Option<Blob> {
        self.0.get(hash).cloned().map(Blob::Memory)
    }
}

fn claims(hash: BlobHash, bytes: Bytes) -> Arc<Claims> {
    Arc::new(Claims(HashMap::from([(hash, bytes)])))
}

/// What a peer that does not run our code answers to every request.
#[derive(Clone)]
enum Rogue {
    /// Claims `total` bytes, sends these from the requested offset on, then kills the connection.
    Dies { total: u64, sends: Bytes },
    /// Claims `total` bytes and ends the stream properly after these.
    EndsEarly { total: u64, sends: Bytes },
    /// Claims `total` bytes, whatever the cap, and sends zeroes without end.
    Floods { total: u64 },
    /// Takes the request, and once it may, sends these, all that it claims.
    Gated { sends: Bytes, gate: Arc<Semaphore> },
    /// Takes the request and says nothing.
    Silent,
    /// Claims `total` bytes, sends these from the requested offset on, then nothing, without closing anything.
    Freezes { total: u64, sends: Bytes },
}

/// A server with a valid identity that behaves as told, and how many requests it has had.
fn rogue(behaviour: Rogue) -> (PeerSource, Arc<AtomicUsize>) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let transport = Arc::new(transport::transport_config(&BulkLimits::default()).unwrap());
    let server = tls::server_config(&keypair, transport).unwrap();
    let endpoint = Endpoint::server(server, loopback()).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let (behaviour, counted) = (behaviour.clone(), Arc::clone(&counted));
            tokio::spawn(async move {
                let connection = incoming.await.unwrap();
                while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                    let mut wire = [0; REQUEST_BYTES];
                    recv.read_exact(&mut wire).await.unwrap();
                    let request = Request::decode(&wire).unwrap();
                    counted.fetch_add(1, Ordering::SeqCst);
                    let head = |total| {
                        Response {
                            status: Status::Ok,
                            total,
                        }
                        .encode()
                    };
                    let offset = usize::try_from(request.offset).unwrap();
                    let from = |sends: &Bytes| sends.slice(offset.min(sends.len())..);
                    // The client may hang up at any time; that is what some tests are about.
                    match &behaviour {
                        Rogue::Dies { total, sends } => {
                            let _ = send.write_all(&head(*total)).await;
                            let _ = send.write_chunk(from(sends)).await;
                            // Reset only once the client has read what was sent: a lost connection discards the rest.
                            let _ = send.finish();
                            let _ = send.stopped().await;
                            connection.close(VarInt::from_u32(9), b"died");
                        }
                        Rogue::EndsEarly { total, sends } => {
                            let _ = send.write_all(&head(*total)).await;
                            let _ = send.write_chunk(from(sends)).await;
                            let _ = send.finish();
                        }
                        Rogue::Floods { total } => {
                            let _ = send.write_all(&head(*total)).await;
                            while send.write_all(&[0; 4096]).await.is_ok() {}
                        }
                        Rogue::Freezes { total, sends } => {
                            let _ = send.write_all(&head(*total)).await;
                            let _ = send.write_chunk(from(sends)).await;
                            let _ = connection.closed().await;
                        }
                        Rogue::Gated { sends, gate } => {
                            if gate.acquire().await.is_err() {
                                connection.close(VarInt::from_u32(9), b"died");
                                continue;
                            }
                            let _ = send.write_all(&head(sends.len() as u64)).await;
                            let _ = send.write_chunk(from(sends)).await;
                            let _ = send.finish();
                        }
                        Rogue::Silent => {
                            let _ = connection.closed().await;
                        }
                    }
                }
            });
        }
    });
    (PeerSource { peer: id, addr }, requests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_of_every_size_arrive_verified_from_memory_and_from_a_file() {
    let store = Arc::new(BlobStore::new(64 * MIB as u64));
    let (_server, source) = peer(store.clone());
    let client = client();
    let dir = tempfile::tempdir().unwrap();
    for (index, length) in [0, 1, MIB, 32 * MIB].into_iter().enumerate() {
        let bytes = pattern(length, index as u8);
        let hash = store.insert(1, bytes.clone()).unwrap();
        let fetched = client
            .fetch(hash, Length::AtMost(length as u64), &[source], deadline())
            .await
            .unwrap();
        assert_eq!(fetched.bytes, bytes);
        let expected: Vec<_> = (length > 0)
            .then_some((source.peer, length as u64))
            .into_iter()
            .collect();
        assert_eq!(fetched.report.bytes_from, expected);
        assert_eq!(fetched.report.blamed, []);

        let (path, stored) = (dir.path().join(index.to_string()), pattern(length, 100));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(&stored).unwrap();
        file.write_all(b"after").unwrap();
        let hash = hash_of(&stored);
        store.register_file(hash, path, 6, length as u64).unwrap();
        let fetched = client
            .fetch(hash, Length::AtMost(length as u64), &[source], deadline())
            .await
            .unwrap();
        assert_eq!(fetched.bytes, stored);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_hash_is_not_found_at_once() {
    let (_a, first) = peer(Arc::new(BlobStore::new(0)));
    let (_b, second) = peer(Arc::new(BlobStore::new(0)));
    // A deadline that outlasts the test run: the answer comes from the sources, not from the clock.
    let never = Instant::now() + Duration::from_secs(86_400);
    let failed = client()
        .fetch([1; 32], Length::AtMost(10), &[first, second], never)
        .await
        .unwrap_err();
    assert_eq!(failed.error, FetchError::NotFound);
    assert_eq!(
        failed.report.blamed,
        [
            (first.peer, Blame::NotFound),
            (second.peer, Blame::NotFound)
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_of_another_peer_is_refused() {
    let bytes = pattern(10, 1);
    let (_server, source) = peer(claims(hash_of(&bytes), bytes.clone()));
    let stranger = PeerSource {
        peer: PeerId::random(),
        addr: source.addr,
    };
    let client = client();
    let failed = client
        .fetch(hash_of(&bytes), Length::AtMost(10), &[stranger], deadline())
        .await
        .unwrap_err();
    assert_eq!(failed.error, FetchError::Exhausted);
    assert_eq!(failed.report.blamed, [(stranger.peer, Blame::OtherPeer)]);
    let fetched = client
        .fetch(
            hash_of(&bytes),
            Length::AtMost(10),
            &[stranger, source],
            deadline(),
        )
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_knows_its_client_and_serves_only_whom_it_admits() {
    let bytes = pattern(10, 1);
    let admitted = Keypair::generate_ed25519();
    let admitted_id = admitted.public().to_peer_id();
    let server_key = Keypair::generate_ed25519();
    let server = Bulk::spawn(
        BulkConfig {
            keypair: server_key.clone(),
            listen: loopback(),
            limits: BulkLimits::default(),
        },
        claims(hash_of(&bytes), bytes.clone()),
        Arc::new(move |peer| *peer == admitted_id),
    )
    .unwrap();
    let source = PeerSource {
        peer: server_key.public().to_peer_id(),
        addr: server.local_addr(),
    };
    let friend = bulk_with(
        admitted,
        BulkLimits::default(),
        Arc::new(Claims::default()),
        loopback(),
    )
    .unwrap();
    assert_eq!(
        friend
            .fetch(hash_of(&bytes), Length::AtMost(10), &[source], deadline())
            .await
            .unwrap()
            .bytes,
        bytes
    );
    let failed = client()
        .fetch(hash_of(&bytes), Length::AtMost(10), &[source], deadline())
        .await
        .unwrap_err();
    assert!(
        matches!(&failed.report.blamed[..], [(_, Blame::Died(_))]),
        "{:?}",
        failed.report
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_source_continues_where_the_first_died() {
    let bytes = pattern(4 * MIB, 1);
    let hash = hash_of(&bytes);
    let (dying, _) = rogue(Rogue::Dies {
        total: bytes.len() as u64,
        sends: bytes.slice(..MIB),
    });
    let (_server, good) = peer(claims(hash, bytes.clone()));
    let fetched = client()
        .fetch(
            hash,
            Length::AtMost(bytes.len() as u64),
            &[dying, good],
            deadline(),
        )
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
        fetched.report.blamed
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_source_is_left_after_the_stall_window_or_at_the_deadline() {
    let limits = BulkLimits {
        stall_window: Duration::from_millis(300),
        ..BulkLimits::default()
    };
    let source = Arc::new(Claims::default());
    let impatient = bulk_with(Keypair::generate_ed25519(), limits, source, loopback()).unwrap();
    let (silent, requests) = rogue(Rogue::Silent);
    let length = Length::AtMost(MIB as u64);
    let failed = impatient
        .fetch([1; 32], length, &[silent], deadline())
        .await
        .unwrap_err();
    assert_eq!(failed.error, FetchError::Exhausted);
    assert_eq!(failed.report.blamed, [(silent.peer, Blame::Stalled)]);
    assert!(requests.load(Ordering::SeqCst) <= 1);

    let soon = Instant::now() + Duration::from_millis(200);
    let failed = client()
        .fetch([1; 32], length, &[silent], soon)
        .await
        .unwrap_err();
    assert_eq!(failed.error, FetchError::Deadline);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_cannot_be_dialled_serves_over_the_connection_it_made() {
    let (ours, theirs) = (pattern(MIB, 1), pattern(MIB, 2));
    let (public, public_source) = peer(claims(hash_of(&ours), ours.clone()));
    let (hidden, mut hidden_source) = peer(claims(hash_of(&theirs), theirs.clone()));
    hidden
        .fetch(
            hash_of(&ours),
            Length::AtMost(MIB as u64),
            &[public_source],
            deadline(),
        )
        .await
        .unwrap();
    // Nobody listens on the discard port here: only the connection that stands can serve.
    hidden_source.addr = "127.0.0.1:9".parse().unwrap();
    let fetched = public
        .fetch(
            hash_of(&theirs),
            Length::AtMost(MIB as u64),
            &[hidden_source],
            deadline(),
        )
        .await
        .unwrap();
    assert_eq!(fetched.bytes, theirs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_survives_a_restart_of_its_source_on_the_same_address() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let keypair = Keypair::generate_ed25519();
    let start = |listen| {
        bulk_with(
            keypair.clone(),
            BulkLimits::default(),
            claims(hash, bytes.clone()),
            listen,
        )
    };
    let server = start(loopback()).unwrap();
    let source = PeerSource {
        peer: keypair.public().to_peer_id(),
        addr: server.local_addr(),
    };
    let client = client();
    client
        .fetch(hash, Length::AtMost(MIB as u64), &[source], deadline())
        .await
        .unwrap();
    server.shutdown().await;
    drop(server);
    let _server = once_free(source.addr, start).await;
    let fetched = client
        .fetch(hash, Length::AtMost(MIB as u64), &[source], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(fetched.report.blamed, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_in_use_is_a_typed_error_that_names_the_port() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let error = bulk_with(
        Keypair::generate_ed25519(),
        BulkLimits::default(),
        Arc::new(Claims::default()),
        addr,
    )
    .unwrap_err();
    assert!(matches!(error, BulkError::AddressInUse { addr: named } if named == addr));
    assert!(
        error.to_string().contains(&addr.port().to_string()),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_after_shutdown_and_without_sources_fails_at_once() {
    let client = client();
    let failed = client
        .fetch([1; 32], Length::AtMost(1), &[], deadline())
        .await
        .unwrap_err();
    assert_eq!(failed.error, FetchError::Exhausted);
    client.shutdown().await;
    let failed = client
        .fetch([1; 32], Length::AtMost(1), &[], deadline())
        .await
        .unwrap_err();
    assert_eq!(failed.error, FetchError::Stopped);
}
