//! `author_*`: extrinsics into the pool. Watching one is a subscription.

use std::time::Duration;

use jsonrpsee::server::Extensions;
use jsonrpsee::types::ErrorObjectOwned;
use serde_json::json;
use tokio::sync::mpsc;

use super::args::Args;
use super::error::{self, internal};
use super::format::hex;
use super::{Answer, Connection, Method};
use crate::node::Node;
use crate::node::faults::DropAt;
use crate::node::watchers::Status;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("author_pendingExtrinsics", pending_extrinsics),
    ("author_submitExtrinsic", submit_extrinsic),
];

fn pending_extrinsics(node: &Node, _: &Args, _: &Extensions) -> Answer {
    Ok(node
        .ledger()
        .pool()
        .iter()
        .map(|pending| json!(hex(&pending.bytes)))
        .collect())
}

fn submit_extrinsic(node: &Node, args: &Args, extensions: &Extensions) -> Answer {
    let bytes = args.bytes(0, "bytes")?;
    let hash = hitting_faults(node, extensions, || {
        node.ledger().submit(&bytes).map_err(error::submit)
    })?;
    Ok(json!(hash))
}

/// Submits an extrinsic that is watched.
pub(super) fn submit_and_watch(
    node: &Node,
    args: &Args,
    extensions: &Extensions,
) -> Result<mpsc::Receiver<Status>, ErrorObjectOwned> {
    let bytes = args.bytes(0, "bytes")?;
    hitting_faults(node, extensions, || {
        node.ledger()
            .submit_and_watch(&bytes)
            .map_err(error::submit)
    })
}

/// Submits, unless the connection is to be dropped instead, or after it.
fn hitting_faults<T>(
    node: &Node,
    extensions: &Extensions,
    submit: impl FnOnce() -> Result<T, ErrorObjectOwned>,
) -> Result<T, ErrorObjectOwned> {
    let fault = node.faults.take_drop();
    let cut = || {
        if let Some(Connection(id)) = extensions.get() {
            node.faults.cut_after(*id, Duration::ZERO);
        }
    };
    match fault {
        Some(DropAt::BeforePool) => {
            cut();
            Err(internal("connection dropped"))
        }
        Some(DropAt::AfterPool) => {
            let submitted = submit();
            cut();
            submitted
        }
        None => submit(),
    }
}
