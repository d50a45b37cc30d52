//! Substrate JSON-RPC: the methods that subxt, the Bittensor SDK and async-substrate-interface use, and `dev_*`.
//!
//! Names, formats and error codes are Substrate's. `rpc_methods` lists all; there is no `chainHead_*` and no
//! `archive_*`, so that clients use the methods below. A method runs on a thread where it may block.

mod args;
mod author;
mod blocks;
pub(crate) mod dev;
mod error;
mod format;
mod storage;
mod subscriptions;
mod system;

use std::sync::Arc;

use jsonrpsee::server::{Extensions, RegisterMethodError, RpcModule};
use jsonrpsee::types::ErrorObjectOwned;
use serde_json::{Value, json};

use super::Node;
use args::Args;

/// What a method gives back.
type Answer = Result<Value, ErrorObjectOwned>;
/// A method: what the node is, what it was asked, over which connection.
type Method = fn(&Node, &Args, &Extensions) -> Answer;

/// Number of a connection, among the extensions of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection(pub(crate) u64);

/// All methods.
///
/// # Panics
/// If two have the same name.
pub(crate) fn module(node: Arc<Node>) -> RpcModule<Node> {
    register(node).expect("method names differ")
}

fn register(node: Arc<Node>) -> Result<RpcModule<Node>, RegisterMethodError> {
    let mut module = RpcModule::from_arc(node);
    let tables = [
        system::METHODS,
        blocks::METHODS,
        storage::METHODS,
        author::METHODS,
        dev::METHODS,
    ];
    for (name, method) in tables.into_iter().flatten() {
        module.register_blocking_method(name, move |params, node, extensions| {
            method(&node, &Args::parse(&params)?, &extensions)
        })?;
    }
    for (alias, name) in system::ALIASES
        .iter()
        .chain(blocks::ALIASES)
        .chain(storage::ALIASES)
    {
        module.register_alias(alias, name)?;
    }
    subscriptions::register(&mut module)?;
    let mut names: Vec<&str> = module.method_names().chain(["rpc_methods"]).collect();
    names.sort_unstable();
    let names = json!({ "methods": names });
    module.register_method("rpc_methods", move |_, _, _| names.clone())?;
    Ok(module)
}
