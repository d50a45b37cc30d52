//! Turns the scores of the newest epoch into weights, if this hotkey may set any.
//!
//! Every registered uid gets a weight, zeros included. A peer's score goes to the hotkey that named the peer's key on
//! chain; if several did, to the one that the peer itself names (rule `peer-chooses`), and to nobody while it names none
//! of them: otherwise a stranger could publish another's key and be paid for its work.

use std::collections::BTreeMap;
use std::time::Duration;

use gradmesh_chain::types::{BlockRef, Neuron, Subnet, WeightsReceipt};
use gradmesh_chain::{AccountId, ChainError, Client};
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::score::{self, EpochId};

use super::{Claims, EpochShares, Pause, Shared};
use crate::status::WeightsStatus;

/// How often a hotkey without a permit looks again: permits change with the subnet's epochs, which take an hour.
const PERMIT_PERIOD: Duration = Duration::from_secs(30);

/// What stands between a hotkey and its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It may set them now.
    Now,
    /// It may after so many blocks.
    AfterBlocks(u64),
    /// It has no validator permit: it is a miner.
    NoPermit,
}

/// Publishes weights until the daemon ends. New scores take the place of older ones that are not out yet.
pub(super) async fn run(shared: &Shared, client: &Client) {
    let mut scores = shared.scores.subscribe();
    let mut pause = Pause::new();
    let mut published = EpochId(0);
    loop {
        let newest = scores.borrow_and_update().clone();
        let Some(newest) = newest.filter(|newest| newest.epoch > published) else {
            if scores.changed().await.is_err() {
                return;
            }
            continue;
        };
        match publish(shared, client, &newest).await {
            Ok(None) => {
                published = newest.epoch;
                pause.reset();
                shared.problem("weights", None);
            }
            // New scores may come while we wait.
            Ok(Some(wait)) => drop(tokio::time::timeout(wait, scores.changed()).await),
            Err(error) => {
                shared.failed("weights", &error);
                pause.wait_after(&error).await;
            }
        }
    }
}

/// Publishes weights for `scores`, or says how long to wait before it may be possible.
async fn publish(
    shared: &Shared,
    client: &Client,
    scores: &EpochShares,
) -> Result<Option<Duration>, ChainError> {
    let netuid = shared.subnet.netuid;
    let block = client.finalized().await?;
    let Some(subnet) = client.subnet(netuid, Some(block.hash)).await? else {
        return Err(ChainError::NoSubnet(netuid));
    };
    let neurons = client.neurons(netuid, Some(block.hash)).await?;
    let hotkey = shared.access.hotkey.account();
    let own = neurons.iter().find(|neuron| neuron.hotkey == hotkey);
    let own = own.ok_or(ChainError::NotRegistered { netuid, hotkey })?;
    match standing(own, &subnet, &block) {
        Standing::NoPermit => return Ok(Some(PERMIT_PERIOD)),
        Standing::AfterBlocks(blocks) => {
            let wait_ms = client.block_ms().await?.saturating_mul(blocks);
            return Ok(Some(Duration::from_millis(wait_ms)));
        }
        Standing::Now => {}
    }
    let epoch = scores.epoch;
    let uids = uids(&neurons, &shared.claims);
    let shares = scores.shares.iter().copied();
    let weights = score::weights(shares, &uids, subnet.neurons);
    if weights.iter().all(|(_, weight)| *weight == 0) {
        tracing::warn!(%epoch, "nobody who scored is registered: no weights");
        return Ok(None);
    }
    let mut sent = client
        .publish_weights(&shared.access.hotkey, netuid, &weights)
        .await;
    if let Err(ChainError::Uncertain(pending)) = sent {
        let Some(receipt) = client.settle(&pending).await? else {
            return Ok(Some(Duration::ZERO));
        };
        sent = Ok(WeightsReceipt::Set(receipt));
    }
    let sent = sent?;
    let (receipt, reveal_round) = match sent {
        WeightsReceipt::Set(receipt) => (receipt, None),
        WeightsReceipt::Timelocked {
            receipt,
            reveal_round,
        } => (receipt, Some(reveal_round)),
    };
    tracing::info!(%epoch, block = receipt.block.number, ?reveal_round, "weights published");
    shared.status.change_chain(|chain| {
        chain.weights = Some(WeightsStatus {
            epoch: epoch.0,
            block: receipt.block.number,
            reveal_round,
            weights,
        });
    });
    Ok(None)
}

/// Whether `own` may set weights at `block`, by the rules that the chain checks.
fn standing(own: &Neuron, subnet: &Subnet, block: &BlockRef) -> Standing {
    if !own.validator_permit && own.hotkey != subnet.owner_hotkey {
        return Standing::NoPermit;
    }
    let since = block.number.saturating_sub(own.last_update);
    match subnet.weights_rate_limit.saturating_sub(since) {
        0 => Standing::Now,
        _ if own.last_update == 0 => Standing::Now,
        blocks => Standing::AfterBlocks(blocks),
    }
}

/// The uid that is paid for each peer, by rule `peer-chooses`.
fn uids(neurons: &[Neuron], claims: &Claims) -> BTreeMap<PeerKey, u16> {
    let mut named: BTreeMap<PeerKey, Vec<(AccountId, u16)>> = BTreeMap::new();
    for neuron in neurons {
        if let Some(key) = neuron.peer_key {
            let entry = named.entry(PeerKey(key)).or_default();
            entry.push((neuron.hotkey, neuron.uid));
        }
    }
    let chosen = named.into_iter().filter_map(|(peer, hotkeys)| {
        let uid = match hotkeys.as_slice() {
            [(_, uid)] => Some(*uid),
            several => {
                let claimed = claims.of(&peer)?;
                several
                    .iter()
                    .find(|(hotkey, _)| *hotkey == claimed)
                    .map(|(_, uid)| *uid)
            }
        };
        Some((peer, uid?))
    });
    chosen.collect()
}
