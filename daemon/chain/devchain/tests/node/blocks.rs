//! Time, states, pulses, subscriptions to heads, upgrades.

use codec::{Decode, Encode};
use gradmesh_devchain::{Options, Sealing};
use serde_json::json;

use crate::harness::{Signing, key, manual, remark, signed, start, unhex};

const LAST_STORED_ROUND: (&str, &str) = ("Drand", "LastStoredRound");

fn value_key((pallet, item): (&str, &str)) -> String {
    let hashed = [pallet, item]
        .map(|name| sp_io::hashing::twox_128(name.as_bytes()))
        .concat();
    format!("0x{}", hex::encode(hashed))
}

#[tokio::test]
async fn same_options_and_calls_give_the_same_chain() {
    let (first, _) = start(manual()).await;
    let (second, _) = start(manual()).await;
    assert_eq!(first.genesis(), second.genesis());
    assert_eq!(first.advance(20).unwrap(), second.advance(20).unwrap());
}

#[tokio::test]
async fn interval_chain_makes_blocks_by_itself_until_it_is_paused() {
    let options = Options {
        sealing: Sealing::Interval,
        block_ms: 250,
        ..Options::default()
    };
    let (chain, rpc) = start(options).await;
    let mut heads = rpc
        .subscribe(
            "chain_subscribeNewHeads",
            json!([]),
            "chain_unsubscribeNewHeads",
        )
        .await;
    let mut last = heads.next().await;
    for _ in 0..3 {
        let next = heads.next().await;
        let number = |header: &serde_json::Value| {
            u32::from_str_radix(
                header["number"].as_str().unwrap().trim_start_matches("0x"),
                16,
            )
            .unwrap()
        };
        assert_eq!(number(&next), number(&last) + 1);
        last = next;
    }
    chain.set_paused(true);
    rpc.call("dev_resume", json!([])).await;
    assert_eq!(rpc.status().await["paused"], json!(false));
    heads.next().await;
}

#[tokio::test]
async fn old_state_is_discarded_in_substrates_words() {
    let (chain, rpc) = start(Options {
        states_kept: 4,
        ..manual()
    })
    .await;
    chain.advance(10).unwrap();
    let old = rpc.call("chain_getBlockHash", json!([6])).await;
    let kept = rpc.call("chain_getBlockHash", json!([7])).await;
    assert!(
        rpc.call("state_getStorage", json!(["0x00", kept]))
            .await
            .is_null()
    );
    let refused = rpc.refused("state_getStorage", json!(["0x00", old])).await;
    assert_eq!(refused.code, 4003);
    assert_eq!(
        refused.message,
        format!(
            "Client error: UnknownBlock: State already discarded for {}",
            old.as_str().unwrap()
        )
    );
    let unknown = format!("0x{}", "7".repeat(64));
    let refused = rpc
        .refused("state_call", json!(["Core_version", "", unknown]))
        .await;
    assert!(
        refused
            .message
            .contains("Header was not found in the database"),
        "{}",
        refused.message
    );
    assert_eq!(
        rpc.header(json!([old])).await["number"],
        "0x6",
        "the block itself stays"
    );
}

#[tokio::test]
async fn each_due_round_of_the_beacon_is_on_chain() {
    let (chain, rpc) = start(Options {
        beacon_period_s: 2,
        ..manual()
    })
    .await;
    chain.advance(9).unwrap();
    let last = rpc
        .call("state_getStorage", json!([value_key(LAST_STORED_ROUND)]))
        .await;
    // Round 1 is due at block 0, another every two blocks of a second.
    assert_eq!(u64::decode(&mut &unhex(&last)[..]).unwrap(), 5);
    for round in 1..=5u64 {
        let hashed = [
            sp_io::hashing::blake2_128(&round.encode()).to_vec(),
            round.encode(),
        ]
        .concat();
        let key = format!("{}{}", value_key(("Drand", "Pulses")), hex::encode(hashed));
        let pulse = unhex(&rpc.call("state_getStorage", json!([key])).await);
        let (stored, randomness, signature) =
            <(u64, Vec<u8>, Vec<u8>)>::decode(&mut &pulse[..]).unwrap();
        assert_eq!(stored, round);
        assert_eq!(randomness, sp_io::hashing::sha2_256(&signature));
    }
}

#[tokio::test]
async fn storage_subscription_tells_changes_only() {
    let (_chain, rpc) = start(manual()).await;
    let round = value_key(LAST_STORED_ROUND);
    let unused = "0x1234";
    let mut changes = rpc
        .subscribe(
            "state_subscribeStorage",
            json!([[round, unused]]),
            "state_unsubscribeStorage",
        )
        .await;
    assert_eq!(
        changes.next().await["changes"],
        json!([[round, null], [unused, null]])
    );
    let block = rpc.seal().await;
    let change = changes.next().await;
    assert_eq!(change["block"], block);
    assert_eq!(
        change["changes"],
        json!([[round, format!("0x{}", hex::encode(1u64.encode()))]])
    );
}

#[tokio::test]
async fn upgrade_shows_in_version_metadata_and_signatures() {
    let (_chain, rpc) = start(Options {
        without_calls: vec!["register_limit".to_owned()],
        ..manual()
    })
    .await;
    let mut versions = rpc
        .subscribe(
            "state_subscribeRuntimeVersion",
            json!([]),
            "state_unsubscribeRuntimeVersion",
        )
        .await;
    assert_eq!(versions.next().await["specVersion"], 365);
    let has_call = async |version: u32| {
        let argument = hex::encode(version.encode());
        let answer = unhex(
            &rpc.call(
                "state_call",
                json!(["Metadata_metadata_at_version", argument]),
            )
            .await,
        );
        let count = |name: &[u8]| {
            answer
                .windows(name.len())
                .filter(|window| *window == name)
                .count()
        };
        assert!(count(b"burned_register") > 0);
        count(b"register_limit") > 0
    };
    for version in [14, 15, 16] {
        assert!(
            !has_call(version).await,
            "metadata {version} shows the call before the upgrade"
        );
    }
    let old = rpc.seal().await;
    assert_eq!(rpc.call("dev_upgrade", json!([])).await, json!(366));
    let block = rpc.seal().await;
    assert_eq!(versions.next().await["specVersion"], 366);
    for version in [14, 15, 16] {
        assert!(
            has_call(version).await,
            "metadata {version} lacks the call after the upgrade"
        );
    }
    let logs = rpc.header(json!([block])).await["digest"]["logs"].clone();
    assert_eq!(logs, json!(["0x08"]), "RuntimeEnvironmentUpdated");
    assert_eq!(
        rpc.call("state_getRuntimeVersion", json!([old])).await["specVersion"],
        365
    );
    let genesis = rpc.genesis().await;
    let for_old = signed(&key("Alice"), &remark("x"), Signing::new(genesis, 0));
    let refused = rpc
        .refused("author_submitExtrinsic", json!([for_old]))
        .await;
    assert_eq!(
        refused.data.as_deref(),
        Some("Transaction has a bad signature")
    );
    let for_new = signed(
        &key("Alice"),
        &remark("x"),
        Signing {
            spec_version: 366,
            ..Signing::new(genesis, 0)
        },
    );
    rpc.call("author_submitExtrinsic", json!([for_new])).await;
    rpc.seal().await;
    assert_eq!(rpc.nonce(&key("Alice")).await, 1);
}
