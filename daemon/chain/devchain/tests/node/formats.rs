//! What clients parse.

use codec::Decode;
use serde_json::json;

use crate::harness::{manual, start, unhex};

const TIMESTAMP_NOW: &str = "f0c365c3cf59d671eb72da0e7a4113c49f1f0515f462cdcf84e0f1d6045dfcbb";
const SYSTEM: &str = "0x26aa394eea5630e07c48ae0c9558cef7";

#[tokio::test]
async fn headers_and_blocks_have_substrates_fields() {
    let (chain, rpc) = start(manual()).await;
    chain.advance(17).unwrap();
    let header = rpc.header(json!([])).await;
    assert_eq!(header["number"], "0x11");
    let fields: Vec<&String> = header.as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        [
            "digest",
            "extrinsicsRoot",
            "number",
            "parentHash",
            "stateRoot"
        ]
    );
    assert!(header["digest"]["logs"].is_array());

    let parent = rpc
        .call("chain_getBlock", json!([header["parentHash"]]))
        .await;
    assert_eq!(parent["block"]["header"]["number"], "0x10");
    assert!(
        parent["block"]["extrinsics"][0]
            .as_str()
            .unwrap()
            .starts_with("0x")
    );
    assert_eq!(parent["justifications"], json!(null));

    let head = rpc.call("chain_getHead", json!([])).await;
    assert_eq!(rpc.call("chain_getBlockHash", json!([])).await, head);
    assert_eq!(rpc.call("chain_getBlockHash", json!([17])).await, head);
    assert_eq!(rpc.call("chain_getBlockHash", json!(["0x11"])).await, head);
    assert_eq!(
        rpc.call("chain_getBlockHash", json!([[17, 18]])).await,
        json!([head, null])
    );
    assert_eq!(rpc.call("chain_getFinalizedHead", json!([])).await, head);
    assert_eq!(
        rpc.header(json!([format!("0x{}", "9".repeat(64))])).await,
        json!(null)
    );
}

#[tokio::test]
async fn storage_is_read_with_and_without_0x_and_missing_values_are_null() {
    let (chain, rpc) = start(manual()).await;
    let best = chain.advance(1).unwrap();
    let hash = json!(format!("0x{}", hex::encode(best.hash)));
    let now = rpc.call("state_getStorage", json!([TIMESTAMP_NOW])).await;
    assert_eq!(
        u64::decode(&mut &unhex(&now)[..]).unwrap(),
        1_800_000_001_000
    );
    assert_eq!(
        rpc.call(
            "state_getStorageAt",
            json!([format!("0x{TIMESTAMP_NOW}"), hash])
        )
        .await,
        now
    );
    assert_eq!(
        rpc.call("state_getStorage", json!(["0x1234"])).await,
        json!(null)
    );
    assert_eq!(
        rpc.call("state_getStorageSize", json!([TIMESTAMP_NOW]))
            .await,
        json!(8)
    );
    assert_eq!(
        rpc.call(
            "state_queryStorageAt",
            json!([[TIMESTAMP_NOW, "0x1234"], hash])
        )
        .await,
        json!([{ "block": hash, "changes": [[format!("0x{TIMESTAMP_NOW}"), now], ["0x1234", null]] }])
    );
    assert_eq!(
        rpc.refused("state_getStorage", json!(["0xno"])).await.code,
        -32602
    );
}

#[tokio::test]
async fn pages_of_keys_join_to_all_keys_once() {
    let (chain, rpc) = start(manual()).await;
    chain.advance(5).unwrap();
    let all = rpc.call("state_getKeys", json!([SYSTEM])).await;
    let all = all.as_array().unwrap();
    assert!(all.len() > 10, "{} keys", all.len());
    let mut paged = Vec::new();
    loop {
        let start = paged.last().cloned();
        let page = rpc
            .call("state_getKeysPaged", json!([SYSTEM, 3, start, null]))
            .await;
        let page = page.as_array().unwrap().clone();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 3);
        paged.extend(page);
    }
    assert_eq!(&paged, all);
    let refused = rpc
        .refused("state_getKeysPaged", json!([SYSTEM, 1001, null]))
        .await;
    assert_eq!(
        (refused.code, &refused.message[..]),
        (4002, "count exceeds maximum value. value: 1001, max: 1000")
    );
}

#[tokio::test]
async fn runtime_calls_answer_in_scale_or_in_substrates_words() {
    let (_chain, rpc) = start(manual()).await;
    let versions = rpc
        .call("state_call", json!(["Metadata_metadata_versions", ""]))
        .await;
    let versions = Vec::<u32>::decode(&mut &unhex(&versions)[..]).unwrap();
    assert!(
        versions.contains(&14) && versions.contains(&15) && versions.contains(&16),
        "{versions:?}"
    );
    let metadata = rpc.call("state_getMetadata", json!([])).await;
    assert_eq!(&unhex(&metadata)[..5], b"meta\x0e");
    let refused = rpc
        .refused("state_call", json!(["Metadata_metadata_at_versions", "0x"]))
        .await;
    assert_eq!(refused.code, 4003);
    assert!(
        refused
            .message
            .contains("Exported method Metadata_metadata_at_versions is not found")
    );
    let panicked = rpc
        .refused(
            "state_call",
            json!(["AccountNonceApi_account_nonce", "0x01"]),
        )
        .await;
    assert_eq!(panicked.code, 4003);
    assert!(
        panicked.message.contains("Runtime panicked"),
        "{}",
        panicked.message
    );
    assert_eq!(
        rpc.status().await["best"]["number"],
        json!(0),
        "a panic ends its call only"
    );
}

#[tokio::test]
async fn version_and_properties_are_those_of_subtensor() {
    let (_chain, rpc) = start(manual()).await;
    let version = rpc.call("state_getRuntimeVersion", json!([null])).await;
    assert_eq!(version["specName"], "node-subtensor");
    assert_eq!(
        (&version["specVersion"], &version["transactionVersion"]),
        (&json!(365), &json!(1))
    );
    assert_eq!(version["apis"][0][0].as_str().unwrap().len(), 18);
    let properties = rpc.call("system_properties", json!([])).await;
    assert_eq!(properties["ss58Format"], 42);
    assert_eq!(
        (&properties["tokenDecimals"], &properties["tokenSymbol"]),
        (&json!(9), &json!("TAO"))
    );
    let methods = rpc.call("rpc_methods", json!([])).await;
    let names: Vec<&str> = methods["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    for name in [
        "rpc_methods",
        "state_call",
        "author_submitAndWatchExtrinsic",
        "dev_reorg",
        "account_nextIndex",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with("chainHead") || name.starts_with("archive"))
    );
}
