//! Follows finalized blocks: the registry for the node, the peers to connect to, and what people want to know.

use std::collections::BTreeSet;

use gradmesh_chain::types::{BlockRef, Neuron};
use gradmesh_chain::{ChainError, Client};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::registry::{self, Registry, RegistryMark};

use super::concentration::{Rules, concentration};
use super::discovery::entry_peer;
use super::{Event, Pause, Shared};
use crate::daemon::peer_id;
use crate::status::{ChainStatus, NeuronStatus};

/// The most snapshots that are caught up with after a pause: older ones are of no use to a proposal that is still open.
const SNAPSHOTS_BEHIND_MAX: u64 = 2;

/// Follows until the daemon ends.
pub(super) async fn run(shared: &Shared, client: &Client) {
    let mut pause = Pause::new();
    let mut blocks = client.finalized_blocks();
    let mut last = None;
    loop {
        let read = async {
            let block = blocks.next().await?;
            shared.status.change_chain(|chain| {
                chain.block = Some(block.number);
                chain.endpoint = client.endpoint();
            });
            for number in due(last, block.number, shared.subnet.snapshot_blocks.into()) {
                snapshot(shared, client, number, block).await?;
                last = Some(number);
            }
            Ok::<_, ChainError>(())
        };
        match read.await {
            Ok(()) => {
                shared.problem("follow", None);
                pause.reset();
            }
            Err(error) => {
                shared.failed("follow", &error);
                pause.wait_after(&error).await;
            }
        }
        if shared.events.is_closed() {
            return;
        }
    }
}

/// The numbers of the blocks whose registry is to be read now, oldest first.
fn due(last: Option<u64>, newest: u64, every: u64) -> Vec<u64> {
    let newest = newest - newest % every;
    let oldest = newest.saturating_sub((SNAPSHOTS_BEHIND_MAX - 1) * every);
    let first = last.map_or(newest, |last| (last + every).max(oldest));
    (first..=newest)
        .step_by(usize::try_from(every).unwrap_or(usize::MAX))
        .collect()
}

/// Reads the registry at finalized block `number`; `newest`: the newest finalized block.
async fn snapshot(
    shared: &Shared,
    client: &Client,
    number: u64,
    newest: BlockRef,
) -> Result<(), ChainError> {
    let hash = match number == newest.number {
        true => Some(newest.hash),
        false => client.block_hash(number).await?,
    };
    let Some(hash) = hash else {
        tracing::debug!(number, "the endpoint does not know a finalized block");
        return Ok(());
    };
    let netuid = shared.subnet.netuid;
    let neurons = client.neurons(netuid, Some(hash)).await?;
    show(shared, &neurons);
    let stakes = neurons
        .iter()
        .filter_map(|neuron| Some((PeerKey(neuron.peer_key?), neuron.stake_rao)));
    let entries = registry::powers(shared.subnet.powers, stakes);
    let registered: BTreeSet<_> = entries
        .iter()
        .filter_map(|(peer, _)| peer_id(peer))
        .collect();
    let mark = RegistryMark {
        block: number,
        block_hash: Hash(hash),
    };
    match Registry::new(mark, entries) {
        Ok(registry) => {
            shared.gate.set_registered(registered);
            let peers = neurons.iter().filter_map(entry_peer);
            let peers = peers.filter(|peer| peer.key != shared.me).collect();
            let permitted = neurons.iter().filter(|neuron| neuron.validator_permit);
            let validators = permitted.filter_map(|neuron| neuron.peer_key).map(PeerKey);
            // A driver that is gone needs nothing any more.
            let _ = shared
                .events
                .send(Event::Snapshot {
                    registry,
                    peers,
                    validators: validators.collect(),
                })
                .await;
        }
        Err(fault) => tracing::warn!(%fault, number, "the registry of this block is not usable"),
    }
    // The run needs none of these figures: without them the last ones stay.
    let block = BlockRef { number, hash };
    if let Err(error) = show_concentration(shared, client, block, &neurons).await {
        tracing::debug!(%error, number, "the concentration of this block is not known");
    }
    Ok(())
}

/// Shows where this daemon's hotkey and the others stand.
fn show(shared: &Shared, neurons: &[Neuron]) {
    let hotkey = shared.access.hotkey.account();
    let own = neurons.iter().find(|neuron| neuron.hotkey == hotkey);
    shared.problem(
        "registration",
        own.is_none().then(|| {
            format!(
                "hotkey {hotkey} is not registered on subnet {}: register it again, for example by starting with \
                 --register-up-to TAO",
                shared.subnet.netuid
            )
        }),
    );
    shared.status.change_chain(|chain: &mut ChainStatus| {
        chain.uid = own.map(|neuron| neuron.uid);
        chain.neurons = neurons.iter().map(NeuronStatus::from).collect();
    });
}

/// Shows in how few hands the subnet is at a finalized block.
async fn show_concentration(
    shared: &Shared,
    client: &Client,
    block: BlockRef,
    neurons: &[Neuron],
) -> Result<(), ChainError> {
    let netuid = shared.subnet.netuid;
    let Some(subnet) = client.subnet(netuid, Some(block.hash)).await? else {
        return Ok(());
    };
    let weights = client.weights(netuid, Some(block.hash)).await?;
    let rules = Rules {
        block: block.number,
        activity_cutoff_blocks: subnet.activity_cutoff,
        owner_hotkey: subnet.owner_hotkey,
    };
    let figures = concentration(neurons, &weights, &rules);
    shared
        .status
        .change_chain(|chain| chain.concentration = Some(figures));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_snapshot_is_read_once_and_a_gap_only_to_its_end() {
        assert_eq!(due(None, 25, 10), [20]);
        assert_eq!(due(Some(20), 25, 10), [0; 0]);
        assert_eq!(due(Some(20), 30, 10), [30]);
        assert_eq!(due(Some(20), 41, 10), [30, 40]);
        assert_eq!(due(Some(20), 1005, 10), [990, 1000]);
        assert_eq!(due(None, 3, 10), [0]);
    }
}
