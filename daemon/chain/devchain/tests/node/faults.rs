//! Faults on request, and bounds that are always there.

use std::time::{Duration, Instant};

use gradmesh_devchain::{DropAt, Options, Refusal};
use serde_json::json;

use crate::harness::{Rpc, error_of, key, manual, remark_of, soon, start};

#[tokio::test]
async fn dropped_after_the_pool_the_extrinsic_is_in_though_the_client_does_not_know() {
    let (chain, rpc) = start(manual()).await;
    let other = Rpc::connect(&chain.url()).await.unwrap();
    let extrinsic = remark_of(&rpc, "Alice", 0, "x").await;
    chain.drop_next_submission(Some(DropAt::AfterPool));
    assert!(
        rpc.try_call("author_submitExtrinsic", json!([extrinsic]))
            .await
            .is_err()
    );
    soon(rpc.0.on_disconnect()).await;
    assert_eq!(
        other.call("author_pendingExtrinsics", json!([])).await,
        json!([extrinsic])
    );
    other.seal().await;
    assert_eq!(other.nonce(&key("Alice")).await, 1);
}

#[tokio::test]
async fn dropped_before_the_pool_the_extrinsic_is_lost() {
    let (chain, rpc) = start(manual()).await;
    let other = Rpc::connect(&chain.url()).await.unwrap();
    let extrinsic = remark_of(&rpc, "Alice", 0, "x").await;
    other
        .call("dev_drop_next_submission", json!(["before_pool"]))
        .await;
    let watched = rpc.try_subscribe(
        "author_submitAndWatchExtrinsic",
        json!([extrinsic]),
        "author_unwatchExtrinsic",
    );
    assert!(watched.await.is_err());
    soon(rpc.0.on_disconnect()).await;
    assert_eq!(
        other.call("author_pendingExtrinsics", json!([])).await,
        json!([])
    );
    other
        .call("author_submitExtrinsic", json!([extrinsic]))
        .await;
    assert!(other.0.is_connected(), "the fault is used up");
}

#[tokio::test]
async fn all_connections_are_cut_but_new_ones_are_served() {
    let (chain, rpc) = start(manual()).await;
    let other = Rpc::connect(&chain.url()).await.unwrap();
    let mut heads = other
        .subscribe(
            "chain_subscribeNewHeads",
            json!([]),
            "chain_unsubscribeNewHeads",
        )
        .await;
    heads.next().await;
    assert_eq!(rpc.call("dev_drop_connections", json!([])).await, json!(1));
    assert!(heads.has_ended().await);
    soon(rpc.0.on_disconnect()).await;
    let again = Rpc::connect(&chain.url()).await.unwrap();
    again.seal().await;
}

#[tokio::test]
async fn stale_endpoint_lags_in_heads_and_reads() {
    let (chain, rpc) = start(manual()).await;
    chain.advance(10).unwrap();
    rpc.call("dev_set_stale", json!([4])).await;
    assert_eq!(rpc.header(json!([])).await["number"], "0x6");
    assert_eq!(
        rpc.call("chain_getBlockHash", json!([7])).await,
        json!(null)
    );
    let head = rpc.call("chain_getFinalizedHead", json!([])).await;
    assert_eq!(rpc.header(json!([head])).await["number"], "0x6");
    let mut heads = rpc
        .subscribe(
            "chain_subscribeNewHeads",
            json!([]),
            "chain_unsubscribeNewHeads",
        )
        .await;
    assert_eq!(heads.next().await["number"], "0x6");
    rpc.seal().await;
    assert_eq!(heads.next().await["number"], "0x7");
    rpc.call("dev_set_stale", json!([0])).await;
    assert_eq!(rpc.header(json!([])).await["number"], "0xb");
}

#[tokio::test]
async fn replies_are_delayed_except_to_dev_calls() {
    let (_chain, rpc) = start(manual()).await;
    rpc.call("dev_set_delay", json!([300])).await;
    let start = Instant::now();
    rpc.call("system_chain", json!([])).await;
    assert!(start.elapsed() >= Duration::from_millis(300));
    rpc.call("dev_set_delay", json!([0])).await;
    let start = Instant::now();
    rpc.call("system_chain", json!([])).await;
    assert!(start.elapsed() < Duration::from_millis(300));
}

#[tokio::test]
async fn refused_handshakes_are_answered_as_asked_and_end() {
    let (chain, rpc) = start(manual()).await;
    for (how, status) in [
        (Refusal::TooManyRequests, "429"),
        (Refusal::Forbidden, "403"),
        (Refusal::Close, ""),
    ] {
        chain.refuse_connections(how, 600_000);
        let refused = Rpc::connect(&chain.url())
            .await
            .err()
            .expect("refused")
            .to_string();
        assert!(refused.contains(status), "{refused}");
    }
    assert!(rpc.0.is_connected(), "who is connected stays so");
    rpc.call("dev_refuse_connections", json!([0])).await;
    assert!(Rpc::connect(&chain.url()).await.is_ok());
}

#[tokio::test]
async fn connections_subscriptions_and_requests_are_bounded() {
    let (chain, rpc) = start(Options {
        connections_max: 2,
        subscriptions_max: 3,
        ..manual()
    })
    .await;
    let second = Rpc::connect(&chain.url()).await.unwrap();
    let refused = Rpc::connect(&chain.url())
        .await
        .err()
        .expect("refused")
        .to_string();
    assert!(refused.contains("429"), "{refused}");
    drop(second);

    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(
            rpc.subscribe(
                "chain_subscribeNewHeads",
                json!([]),
                "chain_unsubscribeNewHeads",
            )
            .await,
        );
    }
    let refused = rpc
        .try_subscribe(
            "chain_subscribeNewHeads",
            json!([]),
            "chain_unsubscribeNewHeads",
        )
        .await;
    assert_eq!(error_of(refused.err().expect("refused")).code, -32006);

    let refused = rpc.refused("dev_advance", json!([10_001])).await;
    assert_eq!(refused.code, -32602);
    let long = rpc
        .try_call("state_getStorage", json!(["00".repeat(3 << 20)]))
        .await;
    assert!(long.is_err());
    assert_eq!(chain.best().number, 0, "the node lives on");
}
