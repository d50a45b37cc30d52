//! Sends attestations in the order of their epochs, each until it stands in a finalized block, and leaves the receipt
//! beside the checkpoint.
//!
//! Rule `in-order`: an attestation is sent only when those before it are on chain; each overwrites the one before, and
//! history is kept by receipts. Rule `never-twice`: one whose fate is open is looked for before it is sent again.

use anyhow::Context;
use gradmesh_chain::attestation::Attestation;
use gradmesh_chain::types::Receipt;
use gradmesh_chain::{ChainError, Client};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::score::{EpochId, EpochScores, ScoreTable};

use super::{AttestationReceipt, Pause, Shared};
use crate::status::AttestedStatus;
use crate::store::QueuedAttestation;

/// Of whoever audits nothing.
const NO_EVIDENCE: [u8; 32] = [0; 32];
/// The scores of epoch 0, in which nobody trained.
const NO_SCORES: [u8; 32] = [0; 32];

/// Queues epoch 0: the start of the run.
pub(super) fn queue_start(shared: &Shared, genesis_root: Hash) -> anyhow::Result<()> {
    queue(
        shared,
        &QueuedAttestation {
            epoch: 0,
            round: 0,
            state_root: genesis_root.0,
            scores: NO_SCORES,
            evidence_root: NO_EVIDENCE,
        },
    )
}

/// Queues the epoch that ends with `round`; its scores.
pub(super) fn queue_epoch(
    shared: &Shared,
    round: RoundId,
    state_root: Hash,
) -> anyhow::Result<ScoreTable> {
    let table = scores_until(shared, round)?;
    queue(
        shared,
        &QueuedAttestation {
            epoch: table.epoch.0,
            round: round.0,
            state_root: state_root.0,
            scores: table.hash().0,
            evidence_root: NO_EVIDENCE,
        },
    )?;
    Ok(table)
}

/// What the stored decisions prove of the epoch of round `last`, up to that round.
pub(super) fn scores_until(shared: &Shared, last: RoundId) -> anyhow::Result<ScoreTable> {
    let epoch = EpochId::of(last, &shared.manifest);
    let epoch = epoch.with_context(|| format!("round {last} belongs to no epoch of the run"))?;
    let first = epoch.first_round(&shared.manifest);
    let rounds = last.next().0.saturating_sub(first.0);
    let count = u32::try_from(rounds).unwrap_or(u32::MAX);
    let records = tokio::task::block_in_place(|| shared.store.decisions(first, count))?;
    let scores = EpochScores::replay(&shared.manifest, epoch, &records)
        .with_context(|| format!("scores of epoch {epoch}"))?;
    Ok(scores.table())
}

pub(super) fn queue(shared: &Shared, attestation: &QueuedAttestation) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| shared.store.queue_attestation(attestation))?;
    shared.queued.notify_one();
    Ok(())
}

/// Sends until the daemon ends.
pub(super) async fn run(shared: &Shared, client: &Client) {
    let mut pause = Pause::new();
    loop {
        let queued = match shared.store.queued_attestations() {
            Ok(queued) => queued,
            Err(error) => {
                tracing::error!(%error, "attestations cannot be read");
                return;
            }
        };
        shared
            .status
            .change_chain(|chain| chain.attestations_queued = queued.len());
        let Some(next) = queued.first() else {
            shared.queued.notified().await;
            continue;
        };
        match send(shared, client, next).await {
            Ok(receipt) => {
                pause.reset();
                shared.problem("attestation", None);
                sent(shared, client, next, &receipt);
            }
            Err(error) => {
                shared.failed("attestation", &error);
                pause.wait_after(&error).await;
            }
        }
    }
}

/// Sends one attestation and waits until it is final.
async fn send(
    shared: &Shared,
    client: &Client,
    queued: &QueuedAttestation,
) -> Result<Receipt, ChainError> {
    let attestation = Attestation {
        run: shared.run.0.0,
        epoch: queued.epoch,
        round: queued.round,
        state_root: queued.state_root,
        evidence_root: queued.evidence_root,
        scores: queued.scores,
    };
    let hotkey = &shared.access.hotkey;
    let fields = attestation.fields();
    loop {
        let sent = client.set_commitment(hotkey, shared.subnet.netuid, &fields);
        match sent.await {
            Err(ChainError::Uncertain(pending)) => {
                if let Some(receipt) = client.settle(&pending).await? {
                    return Ok(receipt);
                }
            }
            answer => return answer,
        }
    }
}

/// Notes where the attestation stands, on disk and in the status.
fn sent(shared: &Shared, client: &Client, queued: &QueuedAttestation, receipt: &Receipt) {
    let noted = AttestationReceipt {
        genesis: Hash(client.genesis()),
        netuid: shared.subnet.netuid,
        hotkey: shared.access.hotkey.account().to_string(),
        run: shared.run.0,
        epoch: queued.epoch,
        round: queued.round,
        state_root: Hash(queued.state_root),
        scores: Hash(queued.scores),
        block_number: receipt.block.number,
        block_hash: Hash(receipt.block.hash),
        extrinsic_index: receipt.extrinsic_index,
    };
    let checkpoint = shared.state_dir.checkpoint(queued.round);
    // The start of the run has no checkpoint, and old checkpoints may have been deleted.
    if checkpoint.is_dir()
        && let Err(error) = noted.write(&checkpoint)
    {
        tracing::warn!(%error, checkpoint = %checkpoint.display(), "the receipt of an attestation was not written");
    }
    if let Err(error) = shared.store.attestation_sent(queued.epoch) {
        tracing::error!(%error, "an attestation that was sent stays queued");
    }
    tracing::info!(
        epoch = queued.epoch,
        round = queued.round,
        block = receipt.block.number,
        extrinsic = receipt.extrinsic_index,
        "attested"
    );
    shared.status.change_chain(|chain| {
        chain.attested = Some(AttestedStatus {
            epoch: queued.epoch,
            round: queued.round,
            state_root: Hash(queued.state_root),
            block: receipt.block.number,
            extrinsic_index: receipt.extrinsic_index,
        });
    });
}
