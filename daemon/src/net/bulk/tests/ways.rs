//! Which of the connections between two peers a fetch uses.

use super::super::links::Lease;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_two_peers_comes_to_fetch_over_connections_that_it_made() {
    let (hers, his) = (pattern(MIB, 1), pattern(MIB, 2));
    let (she, at_hers) = server_with(quic_only(), claims(hash_of(&hers), hers.clone()));
    let (he, at_his) = server_with(quic_only(), claims(hash_of(&his), his.clone()));
    let length = Length::Exactly(MIB as u64);
    she.fetch(hash_of(&his), length, &[at_his], deadline())
        .await
        .unwrap();

    // The first time over hers.
    let first = lease(&he, at_hers, 0).await;
    assert!(first.connection.side().is_server() && first.reused);
    let (end, mut ours) = (deadline(), [false; 2]);
    while ours != [true; 2] {
        assert!(Instant::now() < end);
        he.fetch(hash_of(&hers), length, &[at_hers], deadline())
            .await
            .unwrap();
        for (line, ours) in ours.iter_mut().enumerate() {
            let lease = lease(&he, at_hers, line).await;
            *ours = lease.connection.side().is_client();
        }
    }
    assert!(lease(&she, at_his, 0).await.connection.side().is_client());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_killed_and_is_back_is_asked_though_every_connection_to_it_is_dead() {
    // His in two parts, so that both lines are asked.
    let (hers, his) = (pattern(MIB, 1), pattern(8 * MIB, 2));
    let length = |bytes: &Bytes| Length::Exactly(bytes.len() as u64);
    let (she, at_hers) = server_with(quic_only(), claims(hash_of(&hers), hers.clone()));
    let keypair = Keypair::generate_ed25519();
    let start = |listen| {
        let source = claims(hash_of(&his), his.clone());
        bulk_with(keypair.clone(), quic_only(), source, listen)
    };
    // With the runtime go all tasks, and nobody is told.
    let process = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let he = {
        let _here = process.enter();
        start(loopback()).unwrap()
    };
    let at_his = PeerSource {
        peer: keypair.public().to_peer_id(),
        addr: he.local_addr(),
    };
    let asks = async move {
        he.fetch(hash_of(&hers), length(&hers), &[at_hers], deadline())
            .await
    };
    process.spawn(asks).await.unwrap().unwrap();
    let (end, hash) = (deadline(), hash_of(&his));
    let asks = || {
        she.fetch(
            hash,
            length(&his),
            std::slice::from_ref(&at_his),
            deadline(),
        )
    };
    loop {
        let [first, second] = [lease(&she, at_his, 0).await, lease(&she, at_his, 1).await];
        // With the bytes of a part over each, both ends know that it is made.
        asks().await.unwrap();
        let [first, second] = [first, second].map(|lease| lease.connection);
        let ours = first.side().is_client() && second.side().is_client();
        if ours && first.stable_id() != second.stable_id() {
            break;
        }
        assert!(Instant::now() < end);
    }
    process.shutdown_background();
    let _he = once_free(at_his.addr, start).await;
    assert_eq!(asks().await.unwrap().report.blamed, []);
}

async fn lease(bulk: &Bulk, source: PeerSource, line: usize) -> Lease {
    let links = &bulk.inner.links;
    let lease = links.lease(&bulk.inner, source.peer, source.addr, line);
    lease.await.unwrap()
}
