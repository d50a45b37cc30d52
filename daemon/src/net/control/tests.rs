//! Real swarms on loopback sockets. Every wait is for a condition and fails after [`PATIENCE`].

use tokio::time::{Instant, sleep, timeout};

use super::*;

/// Far above what anything here takes on an idle machine (about a second), for machines that are not idle.
const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "round";

struct Node {
    handle: ControlHandle,
    events: mpsc::Receiver<ControlEvent>,
    addr: Multiaddr,
}

fn config(keypair: Keypair, listen: &str) -> ControlConfig {
    ControlConfig {
        keypair,
        listen: vec![listen.parse().unwrap()],
        announce: vec![],
        topics: vec![TOPIC.to_owned()],
        kad_server: true,
        limits: ControlLimits::default(),
    }
}

async fn start(config: ControlConfig) -> Node {
    let (handle, mut events) = Control::spawn(config).unwrap();
    let addr = wait(&mut events, |event| match event {
        ControlEvent::Listening(addr) => Some(addr),
        _ => None,
    })
    .await;
    Node {
        handle,
        events,
        addr,
    }
}

async fn node() -> Node {
    start(config(
        Keypair::generate_ed25519(),
        "/ip4/127.0.0.1/udp/0/quic-v1",
    ))
    .await
}

/// The first event that `pick` takes; others are dropped.
async fn wait<T>(
    events: &mut mpsc::Receiver<ControlEvent>,
    mut pick: impl FnMut(ControlEvent) -> Option<T>,
) -> T {
    let found = async {
        loop {
            let event = events.recv().await.expect("the plane runs");
            if let Some(found) = pick(event) {
                return found;
            }
        }
    };
    timeout(PATIENCE, found).await.expect("event in time")
}

/// Polls `check` until it holds.
async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "{what}: not in time");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn subscribed(publisher: &Node, count: usize) {
    until("all peers are subscribed", || async {
        publisher.handle.subscribers(TOPIC).await.unwrap().len() == count
    })
    .await;
}

async fn gossip(node: &mut Node) -> GossipMessage {
    wait(&mut node.events, |event| match event {
        ControlEvent::Gossip(message) => Some(message),
        _ => None,
    })
    .await
}

async fn response(node: &mut Node, wanted: RequestId) -> Result<Bytes, RequestFailure> {
    wait(&mut node.events, |event| match event {
        ControlEvent::Response { id, result, .. } if id == wanted => Some(result),
        _ => None,
    })
    .await
}

/// Takes requests of `node` and answers each with what `answer` makes of it.
fn serve(node: Node, answer: impl Fn(Bytes) -> Option<Bytes> + Send + 'static) {
    let Node {
        handle, mut events, ..
    } = node;
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let ControlEvent::Request { token, bytes, .. } = event
                && let Some(bytes) = answer(bytes)
            {
                // An answer above the limit is an error here and a refusal there; both are tested there.
                let _ = handle.respond(token, bytes).await;
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_peers_gossip_and_the_author_is_authenticated() {
    let (a, mut b) = (node().await, node().await);
    assert_eq!(
        a.handle.publish(TOPIC, Bytes::from_static(b"early")).await,
        Err(PublishError::NoSubscribers)
    );
    a.handle
        .dial(b.handle.peer_id(), vec![b.addr.clone()])
        .await
        .unwrap();
    subscribed(&a, 1).await;
    // What was refused for want of subscribers may be published again.
    let id = a
        .handle
        .publish(TOPIC, Bytes::from_static(b"early"))
        .await
        .unwrap();
    let message = gossip(&mut b).await;
    assert_eq!(
        message,
        GossipMessage {
            topic: TOPIC.to_owned(),
            author: a.handle.peer_id(),
            propagation_source: a.handle.peer_id(),
            id,
            bytes: Bytes::from_static(b"early"),
        }
    );
    assert_eq!(
        a.handle.publish(TOPIC, Bytes::from_static(b"early")).await,
        Err(PublishError::Duplicate)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_peers_in_a_line_forward_what_is_accepted_and_nothing_else() {
    let mut line = Vec::new();
    for _ in 0..4 {
        // Without discovery the line stays a line.
        let mut config = config(Keypair::generate_ed25519(), "/ip4/127.0.0.1/udp/0/quic-v1");
        config.kad_server = false;
        line.push(start(config).await);
    }
    for index in 0..3 {
        let next = &line[index + 1];
        let (peer, addr) = (next.handle.peer_id(), next.addr.clone());
        line[index].handle.dial(peer, vec![addr]).await.unwrap();
    }
    for (node, neighbours) in line.iter().zip([1, 2, 2, 1]) {
        subscribed(node, neighbours).await;
    }
    let first = line.remove(0);
    let mut last = line.pop().unwrap();
    for mut node in line {
        tokio::spawn(async move {
            loop {
                let message = gossip(&mut node).await;
                let verdict = match &message.bytes[..] {
                    [b'-', ..] => Verdict::Reject,
                    [b'?', ..] => Verdict::Ignore,
                    _ => Verdict::Accept,
                };
                node.handle
                    .report_gossip(message.id, message.propagation_source, verdict)
                    .await
                    .unwrap();
            }
        });
    }
    // Forwarding goes along the mesh, which takes a heartbeat or two to form, so the author speaks until it is heard.
    let mut heard = Vec::new();
    let mut attempt = 0u32;
    let deadline = Instant::now() + PATIENCE;
    while heard.len() < 3 {
        assert!(Instant::now() < deadline, "heard {} messages", heard.len());
        for verdict in ["-", "?", "+"] {
            let bytes = Bytes::from(format!("{verdict}{attempt}"));
            first.handle.publish(TOPIC, bytes).await.unwrap();
        }
        attempt += 1;
        sleep(Duration::from_millis(100)).await;
        while let Ok(event) = last.events.try_recv() {
            if let ControlEvent::Gossip(message) = event {
                heard.push(message);
            }
        }
    }
    for message in heard {
        assert_eq!(message.author, first.handle.peer_id());
        assert_ne!(message.propagation_source, first.handle.peer_id());
        assert!(message.bytes.starts_with(b"+"), "{:?}", message.bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_mesh_of_four_gets_every_message_of_everybody() {
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(node().await);
    }
    for low in 0..4 {
        for high in low + 1..4 {
            let (peer, addr) = (nodes[high].handle.peer_id(), nodes[high].addr.clone());
            nodes[low].handle.dial(peer, vec![addr]).await.unwrap();
        }
    }
    for node in &nodes {
        subscribed(node, 3).await;
    }
    for (index, node) in nodes.iter().enumerate() {
        let bytes = Bytes::from(vec![index as u8; 1000]);
        node.handle.publish(TOPIC, bytes).await.unwrap();
    }
    for node in &mut nodes {
        let mut authors = std::collections::BTreeSet::new();
        while authors.len() < 3 {
            let message = gossip(node).await;
            assert!(authors.insert(message.author), "a message came twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_above_the_limit_is_refused_to_its_author_and_one_at_the_limit_arrives() {
    let (a, mut b) = (node().await, node().await);
    a.handle
        .dial(b.handle.peer_id(), vec![b.addr.clone()])
        .await
        .unwrap();
    subscribed(&a, 1).await;
    let limit = GOSSIP_BYTES_MAX;
    assert_eq!(
        a.handle
            .publish(TOPIC, Bytes::from(vec![0; limit + 1]))
            .await,
        Err(PublishError::TooLarge {
            length: limit + 1,
            limit
        })
    );
    a.handle
        .publish(TOPIC, Bytes::from(vec![1; limit]))
        .await
        .unwrap();
    assert_eq!(gossip(&mut b).await.bytes.len(), limit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_is_answered_and_the_largest_messages_pass() {
    let (mut a, b) = (node().await, node().await);
    let peer = b.handle.peer_id();
    a.handle.dial(peer, vec![b.addr.clone()]).await.unwrap();
    serve(b, |request| {
        let mut answer = vec![0; RESPONSE_BYTES_MAX];
        answer[..4].copy_from_slice(&request[..4]);
        Some(answer.into())
    });
    for tag in [*b"abcd", *b"efgh"] {
        let mut request = vec![0; REQUEST_BYTES_MAX];
        request[..4].copy_from_slice(&tag);
        let id = a.handle.request(peer, request.into()).await.unwrap();
        let answer = response(&mut a, id).await.unwrap();
        assert_eq!((answer.len(), &answer[..4]), (RESPONSE_BYTES_MAX, &tag[..]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_messages_are_refused_and_the_connection_lives_on() {
    // Side `a` has no limits to speak of and so plays the peer that breaks those of `b`.
    let mut generous = config(Keypair::generate_ed25519(), "/ip4/127.0.0.1/udp/0/quic-v1");
    generous.limits.request_bytes_max = 1 << 24;
    let (mut a, b) = (start(generous).await, node().await);
    let peer = b.handle.peer_id();
    a.handle.dial(peer, vec![b.addr.clone()]).await.unwrap();
    let b_handle = b.handle.clone();
    serve(b, |request| match &request[..] {
        b"huge" => Some(vec![0; RESPONSE_BYTES_MAX + 1].into()),
        b"silence" => None,
        _ => Some(request),
    });

    let too_large = Bytes::from(vec![0; REQUEST_BYTES_MAX + 1]);
    assert_eq!(
        b_handle.request(peer, too_large.clone()).await,
        Err(RequestError::TooLarge {
            length: REQUEST_BYTES_MAX + 1,
            limit: REQUEST_BYTES_MAX
        })
    );
    let id = a.handle.request(peer, too_large).await.unwrap();
    let failure = response(&mut a, id).await.unwrap_err();
    assert!(
        matches!(
            failure,
            RequestFailure::Stream(_) | RequestFailure::Refused(Refusal::NoAnswer)
        ),
        "{failure}"
    );
    let id = a
        .handle
        .request(peer, Bytes::from(vec![0; 8 << 20]))
        .await
        .unwrap();
    response(&mut a, id).await.unwrap_err();

    let id = a
        .handle
        .request(peer, Bytes::from_static(b"huge"))
        .await
        .unwrap();
    assert_eq!(
        response(&mut a, id).await,
        Err(RequestFailure::Refused(Refusal::ResponseTooLarge))
    );
    let id = a
        .handle
        .request(peer, Bytes::from_static(b"silence"))
        .await
        .unwrap();
    assert_eq!(
        response(&mut a, id).await,
        Err(RequestFailure::Refused(Refusal::NoAnswer))
    );

    let id = a
        .handle
        .request(peer, Bytes::from_static(b"small"))
        .await
        .unwrap();
    assert_eq!(
        response(&mut a, id).await.unwrap(),
        Bytes::from_static(b"small")
    );
    while let Ok(event) = a.events.try_recv() {
        assert!(
            !matches!(event, ControlEvent::PeerDisconnected { .. }),
            "the connection was closed"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_to_an_unknown_peer_fails_as_unreachable() {
    let mut a = node().await;
    let id = a
        .handle
        .request(PeerId::random(), Bytes::new())
        .await
        .unwrap();
    assert_eq!(response(&mut a, id).await, Err(RequestFailure::Unreachable));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_to_a_peer_whose_owner_lags_is_answered_busy() {
    let mut hasty = config(Keypair::generate_ed25519(), "/ip4/127.0.0.1/udp/0/quic-v1");
    hasty.limits.request_timeout = Duration::from_secs(1);
    let (mut a, b) = (start(hasty).await, node().await);
    let peer = b.handle.peer_id();
    a.handle.dial(peer, vec![b.addr.clone()]).await.unwrap();
    subscribed(&a, 1).await;
    // The owner of `b` reads nothing: gossip fills its event queue, and what is beyond that is dropped.
    for number in 0..2 * EVENTS_MAX {
        let bytes = Bytes::from(number.to_le_bytes().to_vec());
        match a.handle.publish(TOPIC, bytes).await {
            Ok(_) | Err(PublishError::QueuesFull) => {}
            Err(error) => panic!("{error}"),
        }
        // Gives the link time, so that the queue to the peer is not what drops the messages.
        if number % 64 == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let id = a.handle.request(peer, Bytes::new()).await.unwrap();
        let failure = response(&mut a, id).await.unwrap_err();
        if failure == RequestFailure::Refused(Refusal::Busy) {
            break;
        }
        assert!(Instant::now() < deadline, "{failure}");
    }
    assert_eq!(b.events.len(), EVENTS_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_peer_that_restarts_on_its_address_is_found_again_and_hears_gossip_both_ways() {
    let mut a = node().await;
    let keypair = Keypair::generate_ed25519();
    let b = start(config(keypair.clone(), "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    let (peer, addr) = (b.handle.peer_id(), b.addr.clone());
    a.handle.keep(peer, vec![addr.clone()]).await.unwrap();
    subscribed(&a, 1).await;

    b.handle.shutdown().await;
    drop(b);
    wait(&mut a.events, |event| match event {
        ControlEvent::PeerDisconnected { peer: lost } if lost == peer => Some(()),
        _ => None,
    })
    .await;

    let mut b = restart(keypair, &addr).await;
    wait(&mut a.events, |event| match event {
        ControlEvent::PeerConnected { peer: back, .. } if back == peer => Some(()),
        _ => None,
    })
    .await;
    subscribed(&a, 1).await;
    subscribed(&b, 1).await;
    a.handle
        .publish(TOPIC, Bytes::from_static(b"to b"))
        .await
        .unwrap();
    assert_eq!(gossip(&mut b).await.bytes, Bytes::from_static(b"to b"));
    b.handle
        .publish(TOPIC, Bytes::from_static(b"to a"))
        .await
        .unwrap();
    assert_eq!(gossip(&mut a).await.bytes, Bytes::from_static(b"to a"));
}

/// Starts a plane on an address that another has just left, as soon as the system has freed it.
async fn restart(keypair: Keypair, addr: &Multiaddr) -> Node {
    let deadline = Instant::now() + PATIENCE;
    let (handle, events) = loop {
        match Control::spawn(config(keypair.clone(), &addr.to_string())) {
            Ok(started) => break started,
            Err(SpawnError::AddressInUse { .. }) if Instant::now() < deadline => {
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    Node {
        handle,
        events,
        addr: addr.clone(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_restarts_before_its_old_connection_is_missed_hears_gossip_both_ways() {
    let keypair = Keypair::generate_ed25519();
    let (mut a, first) = (
        node().await,
        start(config(keypair.clone(), "/ip4/127.0.0.1/udp/0/quic-v1")).await,
    );
    let (a_peer, a_addr, peer) = (a.handle.peer_id(), a.addr.clone(), first.handle.peer_id());
    first
        .handle
        .keep(a_peer, vec![a_addr.clone()])
        .await
        .unwrap();
    subscribed(&a, 1).await;
    // The same key on another port while the first still runs: to `a` it is a second connection of the same peer,
    // just as when a machine loses power and comes back before its old connection times out.
    let mut second = start(config(keypair, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    second.handle.keep(a_peer, vec![a_addr]).await.unwrap();
    wait(&mut a.events, |event| match event {
        ControlEvent::PeerDisconnected { peer: lost } if lost == peer => Some(()),
        _ => None,
    })
    .await;
    first.handle.unkeep(a_peer).await.unwrap();
    first.handle.shutdown().await;
    drop(first);
    subscribed(&second, 1).await;
    subscribed(&a, 1).await;
    second
        .handle
        .publish(TOPIC, Bytes::from_static(b"back"))
        .await
        .unwrap();
    assert_eq!(gossip(&mut a).await.bytes, Bytes::from_static(b"back"));
    a.handle
        .publish(TOPIC, Bytes::from_static(b"welcome"))
        .await
        .unwrap();
    assert_eq!(
        gossip(&mut second).await.bytes,
        Bytes::from_static(b"welcome")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_in_use_is_a_typed_error_that_names_the_port() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listen = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
    let error = Control::spawn(config(Keypair::generate_ed25519(), &listen)).unwrap_err();
    assert!(
        matches!(error, SpawnError::AddressInUse { port: named, .. } if named == port),
        "{error:?}"
    );
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dial_of_a_dead_address_and_of_a_wrong_peer_fails_with_a_reason() {
    let (a, b) = (node().await, node().await);
    let stranger = PeerId::random();
    let error = a
        .handle
        .dial(stranger, vec![b.addr.clone()])
        .await
        .unwrap_err();
    assert!(matches!(error, DialError::Failed { peer, .. } if peer == stranger));
    assert_eq!(a.handle.connected().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn banned_peer_is_disconnected_and_cannot_come_back() {
    let (a, mut b) = (node().await, node().await);
    b.handle
        .dial(a.handle.peer_id(), vec![a.addr.clone()])
        .await
        .unwrap();
    until("connected", || async {
        !a.handle.connected().await.unwrap().is_empty()
    })
    .await;
    a.handle.ban(b.handle.peer_id()).await.unwrap();
    wait(&mut b.events, |event| match event {
        ControlEvent::PeerDisconnected { .. } => Some(()),
        _ => None,
    })
    .await;
    // The handshake may seem to succeed for the banned side; the connection is closed right after it.
    let _ = b
        .handle
        .dial(a.handle.peer_id(), vec![a.addr.clone()])
        .await;
    until("refused", || async {
        b.handle.connected().await.unwrap().is_empty()
    })
    .await;
    assert_eq!(a.handle.connected().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_plane_says_so() {
    let a = node().await;
    a.handle.shutdown().await;
    assert_eq!(a.handle.connected().await, Err(Stopped));
    assert_eq!(
        a.handle.publish(TOPIC, Bytes::new()).await,
        Err(PublishError::Stopped(Stopped))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_learns_from_whom_it_dials_that_others_reach_it() {
    let (asked, asking) = (node().await, node().await);
    let addrs = vec![asked.addr.clone()];
    asking
        .handle
        .dial(asked.handle.peer_id(), addrs)
        .await
        .unwrap();
    let mut reachability = asking.handle.reachability();
    let known = reachability.wait_for(|known| *known == Reachability::Public);
    timeout(PATIENCE, known).await.expect("in time").unwrap();
    // Nobody was dialled by the other one, so nobody could be asked.
    assert_eq!(*asked.handle.reachability().borrow(), Reachability::Unknown);
}
