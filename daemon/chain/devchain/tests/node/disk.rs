//! The chain in a directory.

use gradmesh_devchain::{ChainError, DevChain, Options, StoreError};
use serde_json::json;

use crate::harness::{Rpc, key, manual, remark_of, start};

fn in_dir(dir: &tempfile::TempDir) -> Options {
    Options {
        dir: Some(dir.path().join("chain")),
        ..manual()
    }
}

async fn refused(options: Options) -> String {
    match DevChain::start(options).await {
        Ok(_) => panic!("the chain starts"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn restart_goes_on_from_the_newest_block() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        finality_lag_blocks: 2,
        states_kept: 3,
        ..in_dir(&dir)
    };
    let (chain, rpc) = start(options.clone()).await;
    rpc.call(
        "author_submitExtrinsic",
        json!([remark_of(&rpc, "Alice", 0, "x").await]),
    )
    .await;
    chain.advance(8).unwrap();
    rpc.call("dev_reorg", json!([2])).await;
    let (genesis, best, finalized) = (chain.genesis(), chain.best(), chain.finalized());
    let old_block = rpc.call("chain_getBlockHash", json!([1])).await;
    let state_root = rpc.header(json!([])).await["stateRoot"].clone();
    drop(rpc);
    chain.shutdown().await;

    let (chain, rpc) = start(options).await;
    assert_eq!(
        (chain.genesis(), chain.best(), chain.finalized()),
        (genesis, best, finalized)
    );
    assert_eq!(rpc.header(json!([])).await["stateRoot"], state_root);
    assert_eq!(rpc.nonce(&key("Alice")).await, 1);
    let at_final = json!(format!("0x{}", hex::encode(finalized.hash)));
    let version = rpc.call("state_getRuntimeVersion", json!([at_final])).await;
    assert_eq!(
        version["specVersion"], 365,
        "the final block keeps its state"
    );
    let block = rpc.call("chain_getBlock", json!([old_block])).await;
    assert_eq!(
        block["block"]["extrinsics"].as_array().unwrap().len(),
        3,
        "old blocks are read from disk"
    );
    assert_eq!(chain.advance(1).unwrap().number, best.number + 1);
    assert_eq!(
        rpc.call("chain_getBlockHash", json!([best.number])).await,
        json!(format!("0x{}", hex::encode(best.hash)))
    );
}

#[tokio::test]
async fn directory_of_another_chain_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let chain = DevChain::start(in_dir(&dir)).await.unwrap();
    let message = refused(in_dir(&dir)).await;
    assert!(message.contains("in use by another dev chain"), "{message}");
    chain.shutdown().await;

    let message = refused(Options {
        block_ms: 2_000,
        ..in_dir(&dir)
    })
    .await;
    assert!(
        message.contains("made with --block-ms 1000, not 2000"),
        "{message}"
    );
    assert!(message.contains("choose another with --dir"), "{message}");
    let message = refused(Options {
        tempo_blocks: Some(7),
        ..in_dir(&dir)
    })
    .await;
    assert!(
        message.contains("made with --tempo default, not 7"),
        "{message}"
    );
    // What does not make the chain another one may change.
    let chain = DevChain::start(Options {
        finality_lag_blocks: 5,
        ..in_dir(&dir)
    })
    .await
    .unwrap();
    chain.shutdown().await;
}

#[tokio::test]
async fn damaged_or_foreign_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("chain")).unwrap();
    std::fs::write(
        dir.path().join("chain/chain.redb"),
        b"not a database, but something else of some length",
    )
    .unwrap();
    let error = DevChain::start(in_dir(&dir)).await.err().unwrap();
    assert!(
        matches!(error, ChainError::Store(StoreError::Damaged { .. })),
        "{error}"
    );

    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let message = refused(Options {
        dir: Some(file),
        ..manual()
    })
    .await;
    assert!(message.contains("choose another with --dir"), "{message}");
}

#[tokio::test]
async fn other_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    DevChain::start(in_dir(&dir))
        .await
        .unwrap()
        .shutdown()
        .await;
    {
        let database = redb::Database::open(dir.path().join("chain/chain.redb")).unwrap();
        let write = database.begin_write().unwrap();
        let values: redb::TableDefinition<&str, &[u8]> = redb::TableDefinition::new("values");
        write
            .open_table(values)
            .unwrap()
            .insert("format", &99u32.to_le_bytes()[..])
            .unwrap();
        write.commit().unwrap();
    }
    let message = refused(in_dir(&dir)).await;
    assert!(
        message.contains("holds a chain in format 99, this program reads format 1"),
        "{message}"
    );
}

#[tokio::test]
async fn shutdown_frees_directory_and_port() {
    let dir = tempfile::tempdir().unwrap();
    let chain = DevChain::start(in_dir(&dir)).await.unwrap();
    let (url, address) = (chain.url(), chain.address());
    let rpc = Rpc::connect(&url).await.unwrap();
    let mut heads = rpc
        .subscribe(
            "chain_subscribeNewHeads",
            json!([]),
            "chain_unsubscribeNewHeads",
        )
        .await;
    heads.next().await;
    chain.shutdown().await;
    assert!(heads.has_ended().await);
    let chain = DevChain::start(Options {
        listen: address,
        ..in_dir(&dir)
    })
    .await
    .unwrap();
    assert_eq!(chain.url(), url);
}
