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

async fn lease(bulk: &Bulk, source: PeerSource, line: usize) -> Lease {
    let links = &bulk.inner.links;
    let lease = links.lease(&bulk.inner, source.peer, source.addr, line);
    lease.await.unwrap()
}
