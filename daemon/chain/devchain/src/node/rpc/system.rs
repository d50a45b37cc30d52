//! `system_*`: what kind of node this is.

use jsonrpsee::server::Extensions;
use serde_json::json;

use super::args::Args;
use super::{Answer, Method};
use crate::node::Node;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("system_accountNextIndex", account_next_index),
    ("system_chain", |_, _, _| Ok(json!("Bittensor"))),
    ("system_chainType", |_, _, _| Ok(json!("Development"))),
    ("system_health", |_, _, _| {
        Ok(json!({ "peers": 0, "isSyncing": false, "shouldHavePeers": false }))
    }),
    ("system_name", |_, _, _| Ok(json!("gradmesh-devchain"))),
    ("system_nodeRoles", |_, _, _| Ok(json!(["Authority"]))),
    ("system_peers", |_, _, _| Ok(json!([]))),
    ("system_properties", |_, _, _| {
        Ok(
            json!({ "isEthereum": false, "ss58Format": 42, "tokenDecimals": 9, "tokenSymbol": "TAO" }),
        )
    }),
    ("system_syncState", sync_state),
    ("system_version", |_, _, _| {
        Ok(json!(env!("CARGO_PKG_VERSION")))
    }),
];

pub(super) const ALIASES: &[(&str, &str)] = &[("account_nextIndex", "system_accountNextIndex")];

/// Nonce of the account's next extrinsic, those in the pool counted.
fn account_next_index(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let account = args.account(0, "account")?;
    Ok(json!(node.ledger().next_nonce(&account)))
}

fn sync_state(node: &Node, _: &Args, _: &Extensions) -> Answer {
    let best = node.ledger().chain().best_number();
    Ok(json!({ "startingBlock": 0, "currentBlock": best, "highestBlock": best }))
}
