//! `chain_*`: hashes, headers and blocks. The stale fault shows the chain as it was some blocks ago.

use std::sync::Arc;

use jsonrpsee::server::Extensions;
use serde_json::{Value, json};

use super::args::Args;
use super::error::{bad_params, internal};
use super::format;
use super::{Answer, Method};
use crate::node::Node;
use crate::node::chain::Block;
use crate::node::executor::Hash;

/// Block numbers that one call may ask for.
const NUMBERS_MAX: usize = 1_000;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("chain_getBlock", get_block),
    ("chain_getBlockHash", get_block_hash),
    ("chain_getFinalizedHead", |node, _, _| {
        Ok(json!(finalized(node).1))
    }),
    ("chain_getHeader", get_header),
];

pub(super) const ALIASES: &[(&str, &str)] = &[
    ("chain_getFinalisedHead", "chain_getFinalizedHead"),
    ("chain_getHead", "chain_getBlockHash"),
    ("chain_getRuntimeVersion", "state_getRuntimeVersion"),
];

/// Number and hash of the newest block that clients get to see.
pub(super) fn best(node: &Node) -> (u32, Hash) {
    let ledger = node.ledger();
    let number = ledger
        .chain()
        .best_number()
        .saturating_sub(node.faults.stale_blocks());
    (number, ledger.chain().hash_at(number).unwrap_or_default())
}

/// Number and hash of the newest final block that clients get to see.
pub(super) fn finalized(node: &Node) -> (u32, Hash) {
    let ledger = node.ledger();
    let visible = ledger
        .chain()
        .best_number()
        .saturating_sub(node.faults.stale_blocks());
    let number = ledger.chain().finalized_number().min(visible);
    (number, ledger.chain().hash_at(number).unwrap_or_default())
}

/// The block asked for, or the newest one.
fn block(
    node: &Node,
    args: &Args,
) -> Result<Option<Arc<Block>>, jsonrpsee::types::ErrorObjectOwned> {
    let hash = args.hash(0, "hash")?.unwrap_or_else(|| best(node).1);
    node.ledger()
        .block(&hash)
        .map_err(|error| internal(error.to_string()))
}

fn get_block(node: &Node, args: &Args, _: &Extensions) -> Answer {
    Ok(block(node, args)?.map_or(Value::Null, |block| format::block(&block)))
}

fn get_header(node: &Node, args: &Args, _: &Extensions) -> Answer {
    Ok(block(node, args)?.map_or(Value::Null, |block| format::header(&block.header)))
}

/// The hash of a block number, of each of a list of them, or of the newest block.
fn get_block_hash(node: &Node, args: &Args, _: &Extensions) -> Answer {
    match args.value(0, "hash") {
        Value::Null => Ok(json!(best(node).1)),
        Value::Array(numbers) if numbers.len() > NUMBERS_MAX => Err(bad_params(format!(
            "{} block numbers, at most {NUMBERS_MAX} are taken",
            numbers.len()
        ))),
        Value::Array(numbers) => numbers.iter().map(|number| hash_of(node, number)).collect(),
        number => hash_of(node, number),
    }
}

/// Numbers come as numbers or as hex; one that no block has yet gives null.
fn hash_of(node: &Node, number: &Value) -> Answer {
    let wanted = match number {
        Value::Number(number) => number.as_u64(),
        Value::String(digits) => {
            u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let wanted = wanted.ok_or_else(|| bad_params(format!("{number} is not a block number")))?;
    let hash = u32::try_from(wanted)
        .ok()
        .filter(|wanted| *wanted <= best(node).0)
        .and_then(|wanted| node.ledger().chain().hash_at(wanted));
    Ok(json!(hash))
}
