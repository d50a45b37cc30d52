//! Finality and forks.

use gradmesh_devchain::Options;
use serde_json::json;

use crate::harness::{key, manual, remark_of, start};

#[tokio::test]
async fn final_head_follows_at_the_lag_and_catches_up_when_it_shrinks() {
    let (chain, rpc) = start(Options {
        finality_lag_blocks: 3,
        ..manual()
    })
    .await;
    let mut heads = rpc
        .subscribe(
            "chain_subscribeFinalizedHeads",
            json!([]),
            "chain_unsubscribeFinalizedHeads",
        )
        .await;
    assert_eq!(heads.next().await["number"], "0x0");
    let mut updates = rpc.watch(&remark_of(&rpc, "Alice", 0, "x").await).await;
    assert_eq!(updates.next().await, json!("ready"));
    let block = rpc.seal().await;
    assert_eq!(updates.next().await, json!({ "inBlock": block }));
    chain.advance(2).unwrap();
    assert_eq!(chain.finalized().number, 0);
    chain.advance(1).unwrap();
    assert_eq!(updates.next().await, json!({ "finalized": block }));
    assert_eq!(heads.next().await["number"], "0x1");
    rpc.call("dev_set_finality_lag", json!([0])).await;
    assert_eq!(
        heads.next().await["number"],
        "0x4",
        "of several at once the newest is told"
    );
    rpc.call("dev_set_finality_lag", json!([2])).await;
    rpc.seal().await;
    assert_eq!(chain.finalized().number, 4, "finality never goes back");
    assert_eq!(
        rpc.refused("dev_set_finality_lag", json!([4_097]))
            .await
            .code,
        -32602
    );
}

#[tokio::test]
async fn reorg_retracts_and_includes_again() {
    let (chain, rpc) = start(Options {
        finality_lag_blocks: 10,
        ..manual()
    })
    .await;
    chain.advance(1).unwrap();
    let parent = chain.best();
    let extrinsic = remark_of(&rpc, "Alice", 0, "x").await;
    let mut updates = rpc.watch(&extrinsic).await;
    assert_eq!(updates.next().await, json!("ready"));
    let old = rpc.seal().await;
    assert_eq!(updates.next().await, json!({ "inBlock": old }));
    chain.advance(1).unwrap();
    let mut heads = rpc
        .subscribe(
            "chain_subscribeNewHeads",
            json!([]),
            "chain_unsubscribeNewHeads",
        )
        .await;
    assert_eq!(heads.next().await["number"], "0x3");

    let newest = rpc.call("dev_reorg", json!([2])).await;
    assert_eq!(chain.best().number, 4, "the longer fork wins");
    let numbers = [heads.next().await, heads.next().await, heads.next().await];
    assert_eq!(
        numbers.clone().map(|head| head["number"].clone()),
        ["0x2", "0x3", "0x4"]
    );
    assert_eq!(
        numbers[0]["parentHash"],
        json!(format!("0x{}", hex::encode(parent.hash)))
    );
    assert_eq!(rpc.call("chain_getHead", json!([])).await, newest);

    let replacement = rpc.call("chain_getBlockHash", json!([2])).await;
    assert_ne!(replacement, old);
    assert_eq!(updates.next().await, json!({ "retracted": old }));
    assert_eq!(updates.next().await, json!({ "inBlock": replacement }));
    assert_eq!(
        rpc.header(json!([old])).await["number"],
        "0x2",
        "the old block can still be read"
    );
    let refused = rpc.refused("dev_reorg", json!([9])).await;
    assert_eq!(
        refused.message,
        "a reorg of 9 blocks is not possible: 4 are not final"
    );

    rpc.call("dev_set_finality_lag", json!([0])).await;
    assert_eq!(updates.next().await, json!({ "finalized": replacement }));
    assert_eq!(
        rpc.header(json!([old])).await,
        json!(null),
        "finality forgets the fork"
    );
}

#[tokio::test]
async fn reorg_can_lose_what_was_included() {
    let (_chain, rpc) = start(Options {
        finality_lag_blocks: 10,
        ..manual()
    })
    .await;
    let extrinsic = remark_of(&rpc, "Alice", 0, "x").await;
    let mut updates = rpc.watch(&extrinsic).await;
    assert_eq!(updates.next().await, json!("ready"));
    let old = rpc.seal().await;
    assert_eq!(updates.next().await, json!({ "inBlock": old }));
    assert_eq!(rpc.nonce(&key("Alice")).await, 1);
    rpc.call("dev_reorg", json!([1, true])).await;
    assert_eq!(updates.next().await, json!({ "retracted": old }));
    assert_eq!(updates.next().await, json!("dropped"));
    assert_eq!(rpc.nonce(&key("Alice")).await, 0);
    rpc.call("author_submitExtrinsic", json!([extrinsic])).await;
    rpc.seal().await;
    assert_eq!(rpc.nonce(&key("Alice")).await, 1);
}

#[tokio::test]
async fn second_reorg_of_the_same_height_makes_yet_another_block() {
    let (_chain, rpc) = start(Options {
        finality_lag_blocks: 10,
        ..manual()
    })
    .await;
    rpc.seal().await;
    let mut seen = vec![rpc.call("chain_getBlockHash", json!([1])).await];
    for _ in 0..3 {
        let depth = rpc.status().await["best"]["number"].clone();
        rpc.call("dev_reorg", json!([depth])).await;
        let hash = rpc.call("chain_getBlockHash", json!([1])).await;
        assert!(!seen.contains(&hash));
        seen.push(hash);
    }
}
