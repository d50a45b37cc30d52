//! How blocks and versions look in JSON.

use codec::Encode;
use serde_json::{Value, json};

use crate::node::chain::Block;
use crate::node::executor::{Header, RuntimeVersion};

/// Bytes as clients read them.
pub(super) fn hex(bytes: impl AsRef<[u8]>) -> String {
    format!("0x{}", hex::encode(bytes))
}

/// The number is hex without padding, digest items are hex of their SCALE form.
pub(super) fn header(header: &Header) -> Value {
    let logs: Vec<String> = header
        .digest
        .logs
        .iter()
        .map(|item| hex(item.encode()))
        .collect();
    json!({
        "parentHash": hex(header.parent_hash),
        "number": format!("{:#x}", header.number),
        "stateRoot": hex(header.state_root),
        "extrinsicsRoot": hex(header.extrinsics_root),
        "digest": { "logs": logs },
    })
}

/// A block with the proofs of finality that it does not have.
pub(super) fn block(block: &Block) -> Value {
    let extrinsics: Vec<String> = block.extrinsics.iter().map(hex).collect();
    json!({
        "block": { "header": header(&block.header), "extrinsics": extrinsics },
        "justifications": null,
    })
}

pub(super) fn version(version: &RuntimeVersion) -> Value {
    let apis: Vec<Value> = version
        .apis
        .iter()
        .map(|(id, version)| json!([hex(id), version]))
        .collect();
    json!({
        "specName": version.spec_name,
        "implName": version.impl_name,
        "authoringVersion": version.authoring_version,
        "specVersion": version.spec_version,
        "implVersion": version.impl_version,
        "apis": apis,
        "transactionVersion": version.transaction_version,
        "systemVersion": version.system_version,
        "stateVersion": version.system_version,
    })
}
