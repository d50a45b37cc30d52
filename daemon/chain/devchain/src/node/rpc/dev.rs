//! `dev_*`: what a real chain does not offer. Faults for tests, and blocks on request.
//!
//! Arguments by position in the order below, or by name. None of these calls is touched by a fault.
//!
//! | method | arguments | effect | result |
//! |---|---|---|---|
//! | `dev_status` | | | newest and final block, pool, faults |
//! | `dev_seal` | | makes a block now, at the chain's time | its hash |
//! | `dev_advance` | `blocks` | makes so many blocks at once; the chain's clock jumps with them | hash of the last |
//! | `dev_pause`, `dev_resume` | | stops, resumes the making of blocks by the clock | null |
//! | `dev_reorg` | `depth`, `drop` = false | retracts so many blocks and makes one more in their place; their signed extrinsics go back to the pool, or are dropped; a balance or an upgrade set in one of them is lost | hash of the newest |
//! | `dev_set_finality_lag` | `blocks` | how far the final block is behind the newest | null |
//! | `dev_set_balance` | `account`, `rao` | free balance from the next block on | null |
//! | `dev_upgrade` | `spec_version` = one more | the runtime's spec version after the next block; calls that metadata hid appear | the version |
//! | `dev_drop_connections` | | cuts all connections; the caller's after its reply | how many others |
//! | `dev_drop_next_submission` | `at`: `before_pool`, `after_pool` or null | cuts the connection that submits next, before or after the extrinsic gets into the pool | null |
//! | `dev_set_stale` | `blocks` | reads, heads and subscriptions show the chain as it was so many blocks ago; 0 ends it | null |
//! | `dev_set_delay` | `ms` | every reply comes so much later; 0 ends it | null |
//! | `dev_refuse_connections` | `ms`, `how` = `too_many_requests`, or `forbidden`, `close` | new connections are refused for so long | null |

use std::sync::Arc;
use std::time::Duration;

use jsonrpsee::server::Extensions;
use jsonrpsee::types::ErrorObjectOwned;
use serde_json::{Value, json};

use super::args::Args;
use super::error::{bad_params, dev as impossible};
use super::{Answer, Connection, Method};
use crate::node::Node;
use crate::node::executor::{Hash, Intervention};
use crate::node::faults::Refusal;
use crate::node::ledger::{Advance, Pace};
use crate::node::options::{ChainError, FINALITY_LAG_MAX};

/// Blocks that one call makes at most.
pub const BLOCKS_PER_CALL_MAX: u32 = 10_000;
/// How long the connection of `dev_drop_connections` lives on, so that its reply gets out.
const REPLY_GRACE: Duration = Duration::from_millis(50);

pub(super) const METHODS: &[(&str, Method)] = &[
    ("dev_advance", advance),
    ("dev_drop_connections", drop_connections),
    ("dev_drop_next_submission", drop_next_submission),
    ("dev_pause", |node, _, _| pause(node, true)),
    ("dev_refuse_connections", refuse_connections),
    ("dev_reorg", reorg),
    ("dev_resume", |node, _, _| pause(node, false)),
    ("dev_seal", seal),
    ("dev_set_balance", set_balance),
    ("dev_set_delay", set_delay),
    ("dev_set_finality_lag", set_finality_lag),
    ("dev_set_stale", set_stale),
    ("dev_status", status),
    ("dev_upgrade", upgrade),
];

fn halted(error: Arc<ChainError>) -> ErrorObjectOwned {
    impossible(error.to_string())
}

fn newest(advance: &Advance) -> Option<Hash> {
    advance.imported.last().map(|block| block.hash)
}

fn status(node: &Node, _: &Args, _: &Extensions) -> Answer {
    let ledger = node.ledger();
    let chain = ledger.chain();
    let tip = chain.tip();
    Ok(json!({
        "best": { "number": chain.best_number(), "hash": tip.block.hash },
        "finalized": { "number": chain.finalized_number(), "hash": chain.hash_at(chain.finalized_number()) },
        "finality_lag": ledger.finality_lag(),
        "pool": ledger.pool().iter().count(),
        "unix_ms": node.executor.timestamp_ms(&tip.state),
        "last_round": node.executor.last_round(&tip.state),
        "spec_version": node.executor.version(&tip.state).spec_version,
        "paused": node.is_paused(),
        "stale": node.faults.stale_blocks(),
        "delay_ms": u64::try_from(node.faults.delay().as_millis()).unwrap_or(u64::MAX),
    }))
}

fn seal(node: &Node, _: &Args, _: &Extensions) -> Answer {
    let advance = node.seal(Pace::Due).map_err(halted)?;
    Ok(json!(newest(&advance)))
}

fn advance(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let blocks: u32 = args.get(0, "blocks")?;
    if blocks > BLOCKS_PER_CALL_MAX {
        return Err(bad_params(format!(
            "blocks is {blocks}, at most {BLOCKS_PER_CALL_MAX} are made"
        )));
    }
    let mut last = None;
    for _ in 0..blocks {
        last = newest(&*node.seal(Pace::Ahead).map_err(halted)?);
    }
    Ok(json!(last))
}

fn pause(node: &Node, paused: bool) -> Answer {
    node.set_paused(paused);
    Ok(Value::Null)
}

fn reorg(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let depth: u32 = args.get(0, "depth")?;
    let dropped: Option<bool> = args.get(1, "drop")?;
    let advance = node
        .reorg(depth, dropped.unwrap_or(false))
        .map_err(halted)?;
    let advance = advance.map_err(|error| impossible(error.to_string()))?;
    Ok(json!(newest(&advance)))
}

fn set_finality_lag(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let blocks: u32 = args.get(0, "blocks")?;
    if blocks > FINALITY_LAG_MAX {
        return Err(bad_params(format!(
            "blocks is {blocks}, at most {FINALITY_LAG_MAX} are kept from being final"
        )));
    }
    node.set_finality_lag(blocks).map_err(halted)?;
    Ok(Value::Null)
}

fn set_balance(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let (account, rao) = (args.account(0, "account")?, args.get(1, "rao")?);
    node.ledger()
        .intervene(Intervention::SetBalance { account, rao });
    Ok(Value::Null)
}

fn upgrade(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let wanted: Option<u32> = args.get(0, "spec_version")?;
    let mut ledger = node.ledger();
    let current = node
        .executor
        .version(&ledger.chain().tip().state)
        .spec_version;
    let spec_version = wanted.unwrap_or(current.saturating_add(1));
    if spec_version <= current {
        return Err(bad_params(format!(
            "spec_version is {spec_version}, the runtime has {current} already"
        )));
    }
    ledger.intervene(Intervention::Upgrade { spec_version });
    Ok(json!(spec_version))
}

fn drop_connections(node: &Node, _: &Args, extensions: &Extensions) -> Answer {
    let caller = extensions
        .get::<Connection>()
        .map(|connection| connection.0);
    let others = node.faults.cut_all(caller);
    if let Some(caller) = caller {
        node.faults.cut_after(caller, REPLY_GRACE);
    }
    Ok(json!(others))
}

fn drop_next_submission(node: &Node, args: &Args, _: &Extensions) -> Answer {
    node.faults.drop_next_submission(args.get(0, "at")?);
    Ok(Value::Null)
}

fn set_stale(node: &Node, args: &Args, _: &Extensions) -> Answer {
    node.faults.set_stale(args.get(0, "blocks")?);
    Ok(Value::Null)
}

fn set_delay(node: &Node, args: &Args, _: &Extensions) -> Answer {
    node.faults.set_delay(args.get(0, "ms")?);
    Ok(Value::Null)
}

fn refuse_connections(node: &Node, args: &Args, _: &Extensions) -> Answer {
    let how: Option<Refusal> = args.get(1, "how")?;
    node.faults
        .refuse_connections(how.unwrap_or(Refusal::TooManyRequests), args.get(0, "ms")?);
    Ok(Value::Null)
}
