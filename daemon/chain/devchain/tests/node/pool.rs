//! Extrinsics on their way into a block, and those that are refused.

use serde_json::json;
use sp_core::Pair;

use crate::harness::{RpcError, Signing, hash_of, key, manual, remark, remark_of, signed, start};

fn error(code: i32, message: &str, data: &str) -> RpcError {
    RpcError {
        code,
        message: message.to_owned(),
        data: Some(data.to_owned()),
    }
}

#[tokio::test]
async fn watched_extrinsic_is_ready_then_in_a_block_then_final() {
    let (_chain, rpc) = start(manual()).await;
    let extrinsic = remark_of(&rpc, "Alice", 0, "hello").await;
    let mut updates = rpc.watch(&extrinsic).await;
    assert_eq!(updates.next().await, json!("ready"));
    assert_eq!(
        rpc.call("author_pendingExtrinsics", json!([])).await,
        json!([extrinsic])
    );
    let block = rpc.seal().await;
    assert_eq!(updates.next().await, json!({ "inBlock": block }));
    assert_eq!(updates.next().await, json!({ "finalized": block }));
    let sealed = rpc.call("chain_getBlock", json!([block])).await;
    assert!(
        sealed["block"]["extrinsics"]
            .as_array()
            .unwrap()
            .contains(&json!(extrinsic))
    );
    assert_eq!(
        rpc.call("author_pendingExtrinsics", json!([])).await,
        json!([])
    );
}

#[tokio::test]
async fn refusals_are_worded_as_substrates_pool_does() {
    let (_chain, rpc) = start(manual()).await;
    let submit = |extrinsic: String| {
        let rpc = &rpc;
        async move {
            rpc.refused("author_submitExtrinsic", json!([extrinsic]))
                .await
        }
    };
    let first = remark_of(&rpc, "Alice", 0, "first").await;
    assert_eq!(
        rpc.call("author_submitExtrinsic", json!([first])).await,
        hash_of(&first)
    );
    assert_eq!(
        submit(first.clone()).await,
        error(
            1013,
            "Transaction Already Imported",
            hash_of(&first).as_str().unwrap()
        )
    );
    let rival = submit(remark_of(&rpc, "Alice", 0, "rival").await).await;
    assert_eq!(rival.code, 1014);
    assert!(
        rival.message.starts_with("Priority is too low: ("),
        "{}",
        rival.message
    );

    rpc.seal().await;
    let stale = submit(first).await;
    assert_eq!(
        stale,
        error(1010, "Invalid Transaction", "Transaction is outdated")
    );

    let genesis = rpc.genesis().await;
    let other_chain = signed(&key("Alice"), &remark("x"), Signing::new([7; 32], 1));
    assert_eq!(
        submit(other_chain).await,
        error(
            1010,
            "Invalid Transaction",
            "Transaction has a bad signature"
        )
    );
    let pauper = signed(&key("Nobody"), &remark("x"), Signing::new(genesis, 0));
    assert_eq!(
        submit(pauper).await,
        error(
            1010,
            "Invalid Transaction",
            "Inability to pay some fees (e.g. account balance too low)"
        )
    );
    assert_eq!(submit("0x1234".to_owned()).await.code, 1001);
    let watched = rpc.try_subscribe(
        "author_submitAndWatchExtrinsic",
        json!(["0x1234"]),
        "author_unwatchExtrinsic",
    );
    assert!(watched.await.is_err(), "a refused extrinsic is not watched");
}

#[tokio::test]
async fn nonces_ahead_wait_and_go_in_order() {
    let (_chain, rpc) = start(manual()).await;
    let mut second = rpc
        .watch(&remark_of(&rpc, "Alice", 1, "second").await)
        .await;
    assert_eq!(second.next().await, json!("future"));
    assert_eq!(
        rpc.nonce(&key("Alice")).await,
        0,
        "nonce 0 is still missing"
    );
    rpc.seal().await;
    let first = remark_of(&rpc, "Alice", 0, "first").await;
    rpc.call("author_submitExtrinsic", json!([first])).await;
    assert_eq!(second.next().await, json!("ready"));
    assert_eq!(rpc.nonce(&key("Alice")).await, 2);
    let block = rpc.seal().await;
    assert_eq!(second.next().await, json!({ "inBlock": block }));
    let sealed = rpc.call("chain_getBlock", json!([block])).await;
    let extrinsics = sealed["block"]["extrinsics"].as_array().unwrap();
    let place = |extrinsic: &str| extrinsics.iter().position(|other| other == extrinsic);
    assert!(
        place(&first).unwrap()
            < place(&remark_of(&rpc, "Alice", 1, "second").await).unwrap_or(usize::MAX)
    );
}

#[tokio::test]
async fn higher_tip_takes_the_place_of_the_same_nonce() {
    let (_chain, rpc) = start(manual()).await;
    let mut cheap = rpc.watch(&remark_of(&rpc, "Alice", 0, "cheap").await).await;
    assert_eq!(cheap.next().await, json!("ready"));
    let signing = Signing {
        tip: 1_000_000,
        ..Signing::new(rpc.genesis().await, 0)
    };
    let dear = signed(&key("Alice"), &remark("dear!"), signing);
    rpc.call("author_submitExtrinsic", json!([dear])).await;
    assert_eq!(cheap.next().await, json!({ "usurped": hash_of(&dear) }));
}

#[tokio::test]
async fn extrinsic_that_cannot_be_paid_any_more_is_invalid_and_harms_nobody() {
    let (chain, rpc) = start(manual()).await;
    // Ferdie can pay one of these two remarks after the block sets the balance.
    let mut lost = rpc
        .watch(&remark_of(&rpc, "Ferdie", 1, "later").await)
        .await;
    assert_eq!(lost.next().await, json!("future"));
    let mut kept = rpc.watch(&remark_of(&rpc, "Alice", 0, "kept").await).await;
    assert_eq!(kept.next().await, json!("ready"));
    chain.set_balance(key("Ferdie").public().0, 501);
    let block = rpc.seal().await;
    assert_eq!(lost.next().await, json!("invalid"));
    assert_eq!(kept.next().await, json!({ "inBlock": block }));
}

#[tokio::test]
async fn full_pool_refuses_newcomers() {
    let (_chain, rpc) = start(manual()).await;
    let genesis = rpc.genesis().await;
    for nonce in 0..1_024 {
        let extrinsic = signed(&key("Alice"), &remark("x"), Signing::new(genesis, nonce));
        rpc.call("author_submitExtrinsic", json!([extrinsic])).await;
    }
    let refused = rpc
        .refused(
            "author_submitExtrinsic",
            json!([remark_of(&rpc, "Bob", 0, "x").await]),
        )
        .await;
    assert_eq!(
        refused,
        error(
            1016,
            "Immediately Dropped",
            "The transaction couldn't enter the pool because of the limit"
        )
    );
    rpc.seal().await;
    let left = rpc.status().await["pool"].as_u64().unwrap();
    assert!(left < 1_024, "a block makes room: {left} left");
}
