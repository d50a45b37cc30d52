//! Weights on their way to the chain: in the clear, committed by hash, or locked to a round of the beacon.
//!
//! The mechanism is the subnet's own, number 0. Runtimes of 2025 and later have each call twice, with and without the
//! mechanism's number; the one without is used as long as the runtime has it.

use scale_value::Value;
use tracing::info;

use super::Client;
use super::reads::SUBTENSOR;
use super::view::{View, number};
use crate::error::ChainError;
use crate::key::Key;
use crate::runtime::Call;
use crate::schedule::{Epochs, reveal_round};
use crate::types::{BlockRef, Receipt, Subnet, WeightsCommit, WeightsReceipt};
use crate::weights::{COMMIT_REVEAL_VERSION, commit_hash, conform, payload};

/// Numbers of a legacy commit's salt: 128 bits.
const SALT_NUMBERS: usize = 8;

impl Client {
    /// Sets weights in the form that the subnet asks for now: in the clear, or timelocked.
    ///
    /// `weights`: (uid, weight) by the uids of a recent block, in any scale; uids that are missing get zero. Free; once
    /// per `weights_rate_limit` blocks (100), and never sooner than that after registration.
    ///
    /// # Errors
    /// [`ChainError::NoSubnet`]; [`ChainError::Weights`] before anything is sent.
    pub async fn publish_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        weights: &[(u16, u16)],
    ) -> Result<WeightsReceipt, ChainError> {
        let (best, view, subnet) = self.best_subnet(netuid).await?;
        if subnet.commit_reveal {
            let (reveal_round, receipt) = self
                .commit_locked(hotkey, &best, &view, &subnet, weights)
                .await?;
            Ok(WeightsReceipt::Timelocked {
                receipt,
                reveal_round,
            })
        } else {
            self.set_clear(hotkey, &view, &subnet, weights)
                .await
                .map(WeightsReceipt::Set)
        }
    }

    /// Sets weights in the clear: refused (`CommitRevealEnabled`) where commit-reveal is on.
    pub async fn set_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        weights: &[(u16, u16)],
    ) -> Result<Receipt, ChainError> {
        let (_, view, subnet) = self.best_subnet(netuid).await?;
        self.set_clear(hotkey, &view, &subnet, weights).await
    }

    /// Commits to weights locked to a round of the beacon; the chain opens them by itself once it holds that round, in the
    /// epoch of the reveal. Returns the round too.
    ///
    /// The round comes from the chain's own time, epochs and beacon; this machine's clock plays no part.
    ///
    /// # Errors
    /// [`ChainError::Schedule`] if the beacon's or the clock's values make no sense; [`ChainError::Timelock`] if its key
    /// is none, or the subnet has more uids than fit into a commit (about 1180).
    pub async fn commit_timelocked_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        weights: &[(u16, u16)],
    ) -> Result<(u64, Receipt), ChainError> {
        let (best, view, subnet) = self.best_subnet(netuid).await?;
        self.commit_locked(hotkey, &best, &view, &subnet, weights)
            .await
    }

    /// Commits to weights by their hash. [`Client::reveal_weights`] must follow in the epoch of the reveal, by us: keep the
    /// returned commit until then.
    pub async fn commit_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        weights: &[(u16, u16)],
    ) -> Result<(WeightsCommit, Receipt), ChainError> {
        let (_, view, subnet) = self.best_subnet(netuid).await?;
        let salt = entropy::<{ 2 * SALT_NUMBERS }>()?;
        let commit = WeightsCommit {
            weights: conformed(&subnet, weights)?,
            salt: salt
                .chunks_exact(2)
                .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                .collect(),
            version_key: subnet.weights_version,
        };
        let hash = commit_hash(
            &hotkey.account(),
            netuid,
            &commit.weights,
            &commit.salt,
            commit.version_key,
        );
        let arguments = vec![
            ("netuid", number(netuid)),
            ("commit_hash", Value::from_bytes(hash)),
        ];
        let receipt = self
            .submit(hotkey, view.weights_call(Weights::Commit, arguments))
            .await?;
        Ok((commit, receipt))
    }

    /// Reveals what [`Client::commit_weights`] committed to; the chain takes it in exactly one epoch.
    pub async fn reveal_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        commit: &WeightsCommit,
    ) -> Result<Receipt, ChainError> {
        let view = self.best_view().await?.1;
        let (uids, values) = lists(&commit.weights);
        let arguments = vec![
            ("netuid", number(netuid)),
            ("uids", uids),
            ("values", values),
            (
                "salt",
                Value::unnamed_composite(commit.salt.iter().map(|salt| number(*salt))),
            ),
            ("version_key", number(commit.version_key)),
        ];
        self.submit(hotkey, view.weights_call(Weights::Reveal, arguments))
            .await
    }

    async fn best_subnet(&self, netuid: u16) -> Result<(BlockRef, View, Subnet), ChainError> {
        let (best, view) = self.best_view().await?;
        let subnet = view
            .subnet(netuid)
            .await?
            .ok_or(ChainError::NoSubnet(netuid))?;
        Ok((best, view, subnet))
    }

    async fn set_clear(
        &self,
        hotkey: &Key,
        view: &View,
        subnet: &Subnet,
        weights: &[(u16, u16)],
    ) -> Result<Receipt, ChainError> {
        let (uids, values) = lists(&conformed(subnet, weights)?);
        let arguments = vec![
            ("netuid", number(subnet.netuid)),
            ("dests", uids),
            ("weights", values),
            ("version_key", number(subnet.weights_version)),
        ];
        self.submit(hotkey, view.weights_call(Weights::Set, arguments))
            .await
    }

    async fn commit_locked(
        &self,
        hotkey: &Key,
        best: &BlockRef,
        view: &View,
        subnet: &Subnet,
        weights: &[(u16, u16)],
    ) -> Result<(u64, Receipt), ChainError> {
        let beacon = view.beacon().await?;
        let now_ms: u64 = view.value("Timestamp", "Now", Vec::new()).await?;
        let block_ms: u64 = view.runtime.constant("Aura", "SlotDuration")?;
        let reveal_block = view
            .epochs(subnet)
            .await?
            .reveal_block(best.number, subnet.reveal_period_epochs);
        let round = reveal_round(
            reveal_block,
            best.number,
            now_ms,
            block_ms,
            beacon.genesis_unix_s,
            beacon.period_s,
        )
        .ok_or_else(|| {
            ChainError::Schedule(format!(
                "block {} at {now_ms} ms, beacon from {} s every {} s",
                best.number, beacon.genesis_unix_s, beacon.period_s
            ))
        })?;
        let content = payload(
            &hotkey.account(),
            &conformed(subnet, weights)?,
            subnet.weights_version,
        );
        let commit = gradmesh_timelock::encrypt(&beacon.public_key, round, &content, entropy()?)
            .map_err(|error| ChainError::Timelock(error.to_string()))?;
        info!(
            netuid = subnet.netuid,
            reveal_block, round, "weights are locked"
        );
        let arguments = vec![
            ("netuid", number(subnet.netuid)),
            ("commit", Value::from_bytes(commit)),
            ("reveal_round", number(round)),
            ("commit_reveal_version", number(COMMIT_REVEAL_VERSION)),
        ];
        let receipt = self
            .submit(
                hotkey,
                view.weights_call(Weights::CommitTimelocked, arguments),
            )
            .await?;
        Ok((round, receipt))
    }
}

/// The four weight calls.
#[derive(Clone, Copy)]
enum Weights {
    Set,
    Commit,
    Reveal,
    CommitTimelocked,
}

impl View {
    fn weights_call(&self, which: Weights, mut arguments: Vec<(&str, Value)>) -> Call {
        let (plain, mechanism) = match which {
            Weights::Set => ("set_weights", "set_mechanism_weights"),
            Weights::Commit => ("commit_weights", "commit_mechanism_weights"),
            Weights::Reveal => ("reveal_weights", "reveal_mechanism_weights"),
            Weights::CommitTimelocked => (
                "commit_timelocked_weights",
                "commit_timelocked_mechanism_weights",
            ),
        };
        if !self.runtime.has_call(SUBTENSOR, plain) && self.runtime.has_call(SUBTENSOR, mechanism) {
            arguments.push(("mecid", number(0_u8)));
            return Call::new(SUBTENSOR, mechanism, arguments);
        }
        Call::new(SUBTENSOR, plain, arguments)
    }

    /// How this runtime keeps the subnet's epochs.
    async fn epochs(&self, subnet: &Subnet) -> Result<Epochs, ChainError> {
        let Subnet { netuid, tempo, .. } = *subnet;
        let Some(last) = subnet.last_epoch_block else {
            return Ok(Epochs::Formula { netuid, tempo });
        };
        let pending: Option<u64> = self
            .optional(SUBTENSOR, "PendingEpochAt", vec![number(netuid)])
            .await?;
        // Zero is the item's default: nothing is pending.
        Ok(Epochs::State {
            last,
            tempo,
            pending_at: pending.filter(|block| *block > 0),
        })
    }
}

fn conformed(subnet: &Subnet, weights: &[(u16, u16)]) -> Result<Vec<(u16, u16)>, ChainError> {
    conform(weights, subnet.neurons).map_err(|source| ChainError::Weights {
        netuid: subnet.netuid,
        source,
    })
}

/// Uids and weights as two lists.
fn lists(weights: &[(u16, u16)]) -> (Value, Value) {
    let uids = Value::unnamed_composite(weights.iter().map(|(uid, _)| number(*uid)));
    let values = Value::unnamed_composite(weights.iter().map(|(_, weight)| number(*weight)));
    (uids, values)
}

fn entropy<const N: usize>() -> Result<[u8; N], ChainError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        ChainError::Timelock(format!("the operating system gives no entropy: {error}"))
    })?;
    Ok(bytes)
}
