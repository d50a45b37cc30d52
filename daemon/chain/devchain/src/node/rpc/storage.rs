//! `state_*`: storage, runtime APIs, metadata and versions, at a block or at the newest one.

use codec::{Decode, Encode};
use jsonrpsee::server::Extensions;
use jsonrpsee::types::ErrorObjectOwned;
use serde_json::{Value, json};

use super::args::Args;
use super::error;
use super::format::{self, hex};
use super::{Answer, Method, blocks};
use crate::node::Node;
use crate::node::executor::Hash;
use crate::node::state::State;

/// Keys in one page, as in Substrate.
const PAGE_MAX: u64 = 1_000;
/// Keys in one query. Ours: a response of them stays below the server's limit.
const QUERY_KEYS_MAX: usize = 10_000;
/// Keys that `state_getKeys` gives, which has no pages.
const KEYS_MAX: usize = 10_000;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("payment_queryInfo", query_info),
    ("state_call", call),
    ("state_getKeys", get_keys),
    ("state_getKeysPaged", get_keys_paged),
    ("state_getMetadata", get_metadata),
    ("state_getRuntimeVersion", get_runtime_version),
    ("state_getStorage", get_storage),
    ("state_getStorageHash", get_storage_hash),
    ("state_getStorageSize", get_storage_size),
    ("state_queryStorageAt", query_storage_at),
];

pub(super) const ALIASES: &[(&str, &str)] = &[
    ("state_callAt", "state_call"),
    ("state_getKeysPagedAt", "state_getKeysPaged"),
    ("state_getStorageAt", "state_getStorage"),
    ("state_getStorageHashAt", "state_getStorageHash"),
    ("state_getStorageSizeAt", "state_getStorageSize"),
];

/// The state after the block that argument `place` names, or after the newest one.
pub(super) fn state_at(
    node: &Node,
    args: &Args,
    place: usize,
) -> Result<(Hash, State), ErrorObjectOwned> {
    let hash = args
        .hash(place, "hash")?
        .unwrap_or_else(|| blocks::best(node).1);
    let state = node.ledger().state(&hash).map_err(error::state)?;
    Ok((hash, state))
}

fn get_storage(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let key = args.bytes(0, "key")?;
    let (_, state) = state_at(node, args, 1)?;
    Ok(json!(state.get(&key).map(hex)))
}

fn get_storage_hash(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let key = args.bytes(0, "key")?;
    let (_, state) = state_at(node, args, 1)?;
    Ok(json!(
        state
            .get(&key)
            .map(|value| hex(sp_io::hashing::blake2_256(value)))
    ))
}

fn get_storage_size(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let key = args.bytes(0, "key")?;
    let (_, state) = state_at(node, args, 1)?;
    Ok(json!(state.get(&key).map(<[u8]>::len)))
}

fn query_storage_at(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let keys = args.byte_list(0, "keys", QUERY_KEYS_MAX)?;
    let (hash, state) = state_at(node, args, 1)?;
    Ok(json!([change_set(hash, &state, &keys)]))
}

/// Keys and their values, null for those without.
pub(super) fn change_set(block: Hash, state: &State, keys: &[Vec<u8>]) -> Value {
    let changes: Vec<Value> = keys
        .iter()
        .map(|key| json!([hex(key), state.get(key).map(hex)]))
        .collect();
    json!({ "block": block, "changes": changes })
}

fn get_keys(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let prefix = args.bytes(0, "prefix")?;
    let (_, state) = state_at(node, args, 1)?;
    Ok(state
        .keys_with(&prefix, None)
        .take(KEYS_MAX)
        .map(|key| json!(hex(key)))
        .collect())
}

fn get_keys_paged(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let prefix = match args.value(0, "prefix") {
        Value::Null => Vec::new(),
        _ => args.bytes(0, "prefix")?,
    };
    let count: u64 = args.get(1, "count")?;
    if count > PAGE_MAX {
        return Err(error::page_too_large(count, PAGE_MAX));
    }
    let start = match args.value(2, "startKey") {
        Value::Null => None,
        Value::String(key) if key.is_empty() => None,
        _ => Some(args.bytes(2, "startKey")?),
    };
    let (_, state) = state_at(node, args, 3)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    Ok(state
        .keys_with(&prefix, start.as_deref())
        .take(count)
        .map(|key| json!(hex(key)))
        .collect())
}

fn call(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let method = args.text(0, "name")?;
    let arguments = args.bytes(1, "bytes")?;
    let (_, state) = state_at(node, args, 2)?;
    let answer = node
        .executor
        .call(&state, method, &arguments)
        .map_err(|error| error::call(&error))?;
    Ok(json!(hex(answer)))
}

/// Metadata in version 14, the one that Substrate gives here.
fn get_metadata(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let (_, state) = state_at(node, args, 0)?;
    let answer = node
        .executor
        .call(&state, "Metadata_metadata", &[])
        .map_err(|error| error::call(&error))?;
    let metadata =
        Vec::<u8>::decode(&mut &answer[..]).map_err(|error| error::internal(error.to_string()))?;
    Ok(json!(hex(metadata)))
}

fn get_runtime_version(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let (_, state) = state_at(node, args, 0)?;
    Ok(format::version(&node.executor.version(&state)))
}

/// What an extrinsic would cost, in RAO.
fn query_info(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let extrinsic = args.bytes(0, "extrinsic")?;
    let (_, state) = state_at(node, args, 1)?;
    let length =
        u32::try_from(extrinsic.len()).map_err(|_| error::bad_params("extrinsic is too long"))?;
    let arguments = [extrinsic, length.encode()].concat();
    let answer = node
        .executor
        .call(&state, "TransactionPaymentApi_query_info", &arguments)
        .map_err(|error| error::call(&error))?;
    let info = pallet_transaction_payment::RuntimeDispatchInfo::<u64>::decode(&mut &answer[..])
        .map_err(|error| error::internal(error.to_string()))?;
    Ok(json!({
        "weight": { "ref_time": info.weight.ref_time(), "proof_size": info.weight.proof_size() },
        "class": format!("{:?}", info.class).to_lowercase(),
        "partialFee": info.partial_fee.to_string(),
    }))
}
