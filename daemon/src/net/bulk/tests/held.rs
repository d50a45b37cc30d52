//! Requests that wait at a peer that is fetching the blob itself.

use super::*;

const BYTES: usize = MIB;

/// A peer that holds nothing of its own, and where to find it.
fn empty() -> (Bulk, PeerSource) {
    empty_with(BulkLimits {
        // Outlasts the test: what ends is ended by what happens.
        unheard_max: Duration::from_secs(86_400),
        ..BulkLimits::default()
    })
}

fn empty_with(limits: BulkLimits) -> (Bulk, PeerSource) {
    server_with(limits, Arc::new(Claims::default()))
}

/// An origin that sends a blob once it may, or dies when the gate is closed.
fn gated(seed: u8) -> (Bytes, PeerSource, Arc<AtomicUsize>, Arc<Semaphore>) {
    let (sends, gate) = (pattern(BYTES, seed), Arc::new(Semaphore::new(0)));
    let behaviour = Rogue::Gated {
        sends: sends.clone(),
        gate: Arc::clone(&gate),
    };
    let (origin, requests) = rogue(behaviour);
    (sends, origin, requests, gate)
}

/// Fetches `bytes` at `from`, of which the first `near` are in the own site.
fn fetching(
    bulk: &Bulk,
    bytes: &Bytes,
    from: &[PeerSource],
    near: usize,
) -> tokio::task::JoinHandle<Fetched> {
    let (bulk, hash, from) = (bulk.clone(), hash_of(bytes), from.to_vec());
    let length = Length::Exactly(bytes.len() as u64);
    tokio::spawn(async move {
        let order = Order {
            near,
            deadline: Some(deadline()),
            ..Order::new(hash, length, &from)
        };
        bulk.fetch_order(&order).await.unwrap()
    })
}

async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

/// Until `count` requests are held at `bulk`.
async fn held(bulk: &Bulk, count: usize) {
    let inner = &bulk.inner;
    until(|| inner.limits.requests_held_max - inner.holding.available_permits() == count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blob_on_its_way_to_the_entry_enters_the_site_once() {
    let (bytes, origin, requests, gate) = gated(1);
    let ((entry, at_entry), (one, _), (other, _)) = (empty(), empty(), empty());
    // One mate asks before the entry has heard of the blob, one while it fetches.
    let first = fetching(&one, &bytes, &[at_entry, origin], 1);
    held(&entry, 1).await;
    let own = fetching(&entry, &bytes, &[origin], 0);
    until(|| requests.load(Ordering::SeqCst) == 1).await;
    let second = fetching(&other, &bytes, &[at_entry, origin], 1);
    held(&entry, 2).await;
    gate.add_permits(1);
    // Served as long as the entry's own result lives, though nothing has been put into its store.
    let own = own.await.unwrap();
    for mate in [first, second] {
        let mate = mate.await.unwrap();
        assert_eq!(mate.bytes, bytes);
        assert_eq!(mate.report.bytes_from, [(at_entry.peer, BYTES as u64)]);
        assert_eq!(mate.report.blamed, []);
    }
    assert_eq!(own.report.bytes_from, [(origin.peer, BYTES as u64)]);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    held(&entry, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mates_of_an_entry_that_fails_go_on_and_hold_nothing_against_it() {
    let (bytes, origin, requests, gate) = gated(2);
    let (_server, good) = peer(claims(hash_of(&bytes), bytes.clone()));
    let ((entry, at_entry), (mate, _)) = (empty(), empty());
    let length = Length::Exactly(BYTES as u64);
    let own = {
        let (entry, hash) = (entry.clone(), hash_of(&bytes));
        tokio::spawn(async move { entry.fetch(hash, length, &[origin], deadline()).await })
    };
    until(|| requests.load(Ordering::SeqCst) == 1).await;
    let mate = fetching(&mate, &bytes, &[at_entry, good], 1);
    held(&entry, 1).await;
    gate.close();
    assert!(own.await.unwrap().is_err());
    let report = mate.await.unwrap().report;
    assert_eq!(report.bytes_from, [(good.peer, BYTES as u64)]);
    assert_eq!(report.blamed, [(at_entry.peer, Blame::NotFound)]);
    assert!(!Blame::NotFound.is_proven());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_wait_for_each_other_in_a_circle_all_go_on() {
    let bytes = pattern(BYTES, 3);
    let (_server, good) = peer(claims(hash_of(&bytes), bytes.clone()));
    let peers = [empty(), empty(), empty()];
    let places = [peers[0].1, peers[1].1, peers[2].1];
    let fetches: Vec<_> = (0..3)
        .map(|place| {
            let near = places[(place + 1) % 3];
            fetching(&peers[place].0, &bytes, &[near, good], 1)
        })
        .collect();
    for fetch in fetches {
        assert_eq!(fetch.await.unwrap().bytes, bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_waits_itself_holds_nobody() {
    let (bytes, origin, ..) = gated(4);
    let (_server, good) = peer(claims(hash_of(&bytes), bytes.clone()));
    let ((entry, at_entry), (waiting, at_waiting), (asking, _)) = (empty(), empty(), empty());
    let _own = fetching(&entry, &bytes, &[origin], 0);
    let _waits = fetching(&waiting, &bytes, &[at_entry, origin], 1);
    held(&entry, 1).await;
    let asked = fetching(&asking, &bytes, &[at_waiting, good], 1);
    let report = asked.await.unwrap().report;
    assert_eq!(report.bytes_from, [(good.peer, BYTES as u64)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entry_that_holds_all_it_may_says_that_it_is_busy_and_the_asker_goes_on() {
    let (bytes, origin, requests, _gate) = gated(5);
    let (_server, good) = peer(claims(hash_of(&bytes), bytes.clone()));
    let (entry, at_entry) = empty_with(BulkLimits {
        requests_held_per_peer_max: 0,
        ..BulkLimits::default()
    });
    let _own = fetching(&entry, &bytes, &[origin], 0);
    until(|| requests.load(Ordering::SeqCst) == 1).await;
    let (mate, _) = empty();
    let report = fetching(&mate, &bytes, &[at_entry, good], 1);
    let report = report.await.unwrap().report;
    assert_eq!(report.bytes_from, [(good.peer, BYTES as u64)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entry_that_says_nothing_is_left() {
    let bytes = pattern(BYTES, 6);
    let (_server, good) = peer(claims(hash_of(&bytes), bytes.clone()));
    let (silent, _) = rogue(Rogue::Silent);
    let (mate, _) = empty();
    let fetched = fetching(&mate, &bytes, &[silent, good], 1).await.unwrap();
    assert_eq!(fetched.report.bytes_from, [(good.peer, BYTES as u64)]);
    assert!(mate.inner.links.is_frozen(&silent.peer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_blob_comes_from_near_holders_alone_while_one_is_good() {
    let bytes = pattern(LONG, 7);
    let (_near, near) = peer(claims(hash_of(&bytes), bytes.clone()));
    let (_far, far) = peer(claims(hash_of(&bytes), bytes.clone()));
    let (mate, _) = empty();
    let fetched = fetching(&mate, &bytes, &[near, far], 1).await.unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(fetched.report.bytes_from, [(near.peer, LONG as u64)]);
}
