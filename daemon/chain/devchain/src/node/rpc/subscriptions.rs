//! Subscriptions: heads, versions, storage, and the way of an extrinsic.
//!
//! A reorg shows as the headers of the new fork, one after the other, the first not a child of the header before it. When
//! several blocks become final at once, only the newest is told, as Substrate's nodes do.

use std::future::Future;
use std::sync::Arc;

use jsonrpsee::server::{
    PendingSubscriptionSink, RegisterMethodError, RpcModule, SubscriptionMessage, SubscriptionSink,
};
use jsonrpsee::types::{ErrorObjectOwned, Params};
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::args::Args;
use super::error::internal;
use super::{author, blocks, format, storage};
use crate::node::Node;
use crate::node::executor::Hash;
use crate::node::ledger::Advance;
use crate::node::state::State;

/// Keys of one storage subscription.
const KEYS_MAX: usize = 1_000;

pub(super) fn register(module: &mut RpcModule<Node>) -> Result<(), RegisterMethodError> {
    for (subscribe, notify, unsubscribe) in [
        (
            "chain_subscribeNewHeads",
            "chain_newHead",
            "chain_unsubscribeNewHeads",
        ),
        (
            "chain_subscribeAllHeads",
            "chain_allHead",
            "chain_unsubscribeAllHeads",
        ),
    ] {
        module.register_subscription(subscribe, notify, unsubscribe, |_, pending, node, _| {
            new_heads(pending, node)
        })?;
    }
    module.register_subscription(
        "chain_subscribeFinalizedHeads",
        "chain_finalizedHead",
        "chain_unsubscribeFinalizedHeads",
        |_, pending, node, _| finalized_heads(pending, node),
    )?;
    module.register_subscription(
        "state_subscribeRuntimeVersion",
        "state_runtimeVersion",
        "state_unsubscribeRuntimeVersion",
        |_, pending, node, _| runtime_versions(pending, node),
    )?;
    module.register_subscription(
        "state_subscribeStorage",
        "state_storage",
        "state_unsubscribeStorage",
        |params, pending, node, _| changes(params, pending, node),
    )?;
    module.register_subscription(
        "author_submitAndWatchExtrinsic",
        "author_extrinsicUpdate",
        "author_unwatchExtrinsic",
        |params, pending, node, extensions| async move {
            let submitted = blocking(move || {
                let args = Args::parse(&params)?;
                author::submit_and_watch(&node, &args, &extensions)
            })
            .await;
            match submitted {
                Ok(mut statuses) => {
                    let Ok(sink) = pending.accept().await else {
                        return;
                    };
                    while let Some(status) = unless_closed(&sink, statuses.recv()).await.flatten() {
                        if send(&sink, &status.json()).await.is_err() {
                            return;
                        }
                    }
                    // The client ends the subscription, as with Substrate's nodes.
                    sink.closed().await;
                }
                Err(error) => pending.reject(error).await,
            }
        },
    )?;
    for (alias, name) in [
        ("chain_subscribeNewHead", "chain_subscribeNewHeads"),
        ("subscribe_newHead", "chain_subscribeNewHeads"),
        ("chain_unsubscribeNewHead", "chain_unsubscribeNewHeads"),
        ("unsubscribe_newHead", "chain_unsubscribeNewHeads"),
        (
            "chain_subscribeFinalisedHeads",
            "chain_subscribeFinalizedHeads",
        ),
        (
            "chain_unsubscribeFinalisedHeads",
            "chain_unsubscribeFinalizedHeads",
        ),
        (
            "chain_subscribeRuntimeVersion",
            "state_subscribeRuntimeVersion",
        ),
        (
            "chain_unsubscribeRuntimeVersion",
            "state_unsubscribeRuntimeVersion",
        ),
    ] {
        module.register_alias(alias, name)?;
    }
    Ok(())
}

/// The newest header, then each one that becomes the newest.
async fn new_heads(pending: PendingSubscriptionSink, node: Arc<Node>) {
    each_advance(pending, node, |node, advance| match advance {
        None => header(node, blocks::best(node).1).into_iter().collect(),
        Some(advance) => match node.faults.stale_blocks() {
            0 => advance
                .imported
                .iter()
                .map(|block| format::header(&block.header))
                .collect(),
            _ => header(node, blocks::best(node).1).into_iter().collect(),
        },
    })
    .await;
}

/// The newest final header, then each newer one that is told.
async fn finalized_heads(pending: PendingSubscriptionSink, node: Arc<Node>) {
    let mut told = Hash::zero();
    each_advance(pending, node, move |node, _| {
        let (_, hash) = blocks::finalized(node);
        if std::mem::replace(&mut told, hash) == hash {
            return Vec::new();
        }
        header(node, hash).into_iter().collect()
    })
    .await;
}

/// The version of the newest block, then each other one.
async fn runtime_versions(pending: PendingSubscriptionSink, node: Arc<Node>) {
    let mut told = None;
    each_advance(pending, node, move |node, _| {
        let hash = blocks::best(node).1;
        let Ok(state) = node.ledger().state(&hash) else {
            return Vec::new();
        };
        let version = node.executor.version(&state);
        if told.replace(version.spec_version) == Some(version.spec_version) {
            return Vec::new();
        }
        vec![format::version(&version)]
    })
    .await;
}

/// The values of some keys, then those that changed, block by block.
async fn changes(params: Params<'static>, pending: PendingSubscriptionSink, node: Arc<Node>) {
    let keys = Args::parse(&params).and_then(|args| args.byte_list(0, "keys", KEYS_MAX));
    let keys = match keys {
        Ok(keys) => keys,
        Err(error) => return pending.reject(error).await,
    };
    let mut told: Option<State> = None;
    each_advance(pending, node, move |node, _| {
        let hash = blocks::best(node).1;
        let Ok(state) = node.ledger().state(&hash) else {
            return Vec::new();
        };
        let changed: Vec<Vec<u8>> = match &told {
            None => keys.clone(),
            Some(told) => keys
                .iter()
                .filter(|key| told.get(key) != state.get(key))
                .cloned()
                .collect(),
        };
        let message = (!changed.is_empty()).then(|| storage::change_set(hash, &state, &changed));
        told = Some(state);
        message.into_iter().collect()
    })
    .await;
}

/// Accepts a subscription and sends what `messages` gives: once at first, then after each change of the chain.
async fn each_advance(
    pending: PendingSubscriptionSink,
    node: Arc<Node>,
    mut messages: impl FnMut(&Node, Option<&Advance>) -> Vec<Value> + Send + 'static,
) {
    let mut advances = node.advances();
    let Ok(sink) = pending.accept().await else {
        return;
    };
    let mut advance = None;
    loop {
        let asked = node.clone();
        let given = tokio::task::spawn_blocking(move || {
            let given = messages(&asked, advance.as_deref());
            (given, messages)
        });
        let Ok((given, again)) = given.await else {
            return;
        };
        messages = again;
        for message in given {
            if send(&sink, &message).await.is_err() {
                return;
            }
        }
        match unless_closed(&sink, next(&mut advances)).await.flatten() {
            Some(next) => advance = Some(next),
            None => return,
        }
    }
}

/// The next change of the chain; a subscription that was too slow misses some.
async fn next(advances: &mut broadcast::Receiver<Arc<Advance>>) -> Option<Arc<Advance>> {
    loop {
        match advances.recv().await {
            Ok(advance) => return Some(advance),
            Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "slow subscription"),
            Err(RecvError::Closed) => return None,
        }
    }
}

async fn unless_closed<T>(sink: &SubscriptionSink, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = sink.closed() => None,
    }
}

async fn send(sink: &SubscriptionSink, message: &Value) -> Result<(), ()> {
    let message = serde_json::value::to_raw_value(message).map_err(drop)?;
    sink.send(SubscriptionMessage::from(message))
        .await
        .map_err(drop)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ErrorObjectOwned> + Send + 'static,
) -> Result<T, ErrorObjectOwned> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(internal(error.to_string())))
}

fn header(node: &Node, hash: Hash) -> Option<Value> {
    let block = node.ledger().block(&hash).ok().flatten()?;
    Some(format::header(&block.header))
}
