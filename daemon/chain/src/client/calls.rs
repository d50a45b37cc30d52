//! What the daemon does on chain. Each call is signed by the key it is given, waits for finality, and returns a receipt.

use std::net::IpAddr;

use super::Client;
use crate::account::AccountId;
use crate::error::{ChainError, Pending};
use crate::key::Key;
use crate::types::{
    Field, Hyperparameter, Receipt, Registration, Wait, WeightsCommit, WeightsReceipt,
};

impl Client {
    /// This client with another patience: its calls return as soon as `wait` says. Shares everything else.
    pub fn waiting(&self, wait: Wait) -> Client {
        let _ = wait;
        todo!()
    }

    /// Creates a subnet, owned by `coldkey`, with `hotkey` as its first neuron. Costs [`Client::network_price`].
    pub async fn register_network(
        &self,
        coldkey: &Key,
        hotkey: &AccountId,
    ) -> Result<(u16, Receipt), ChainError> {
        let _ = (coldkey, hotkey);
        todo!()
    }

    /// Starts a subnet: opens staking and emission. Signed by the owner.
    pub async fn start_call(&self, owner: &Key, netuid: u16) -> Result<Receipt, ChainError> {
        let _ = (owner, netuid);
        todo!()
    }

    /// Registers `hotkey`, paid by `coldkey`, never for more than `price_max_rao`. Free if it is registered already.
    ///
    /// # Errors
    /// [`ChainError::PriceAboveLimit`] with both figures.
    pub async fn register(
        &self,
        coldkey: &Key,
        netuid: u16,
        hotkey: &AccountId,
        price_max_rao: u64,
    ) -> Result<Registration, ChainError> {
        let _ = (coldkey, netuid, hotkey, price_max_rao);
        todo!()
    }

    /// Publishes where `hotkey` listens, and its libp2p key. `None`: the chain says exactly that already.
    pub async fn serve_axon(
        &self,
        hotkey: &Key,
        netuid: u16,
        ip: IpAddr,
        port: u16,
        protocol: u8,
        peer_key: Option<[u8; 32]>,
    ) -> Result<Option<Receipt>, ChainError> {
        let _ = (hotkey, netuid, ip, port, protocol, peer_key);
        todo!()
    }

    /// Overwrites the hotkey's commitment in a subnet. Free; an epoch takes 3100 bytes, at least 100 a call.
    pub async fn set_commitment(
        &self,
        hotkey: &Key,
        netuid: u16,
        fields: &[Field],
    ) -> Result<Receipt, ChainError> {
        let _ = (hotkey, netuid, fields);
        todo!()
    }

    /// Sets weights in the form that the subnet asks for now: in the clear, or timelocked.
    ///
    /// `weights`: (uid, weight) by the uids of a recent block, in any scale; missing uids get zero.
    pub async fn publish_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        weights: &[(u16, u16)],
    ) -> Result<WeightsReceipt, ChainError> {
        let _ = (hotkey, netuid, weights);
        todo!()
    }

    /// Sets weights in the clear: refused where commit-reveal is on.
    pub async fn set_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        weights: &[(u16, u16)],
    ) -> Result<Receipt, ChainError> {
        let _ = (hotkey, netuid, weights);
        todo!()
    }

    /// Commits to weights by hash; [`Client::reveal_weights`] must follow in the epoch of the reveal.
    pub async fn commit_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        weights: &[(u16, u16)],
    ) -> Result<(WeightsCommit, Receipt), ChainError> {
        let _ = (hotkey, netuid, weights);
        todo!()
    }

    /// Reveals what [`Client::commit_weights`] committed.
    pub async fn reveal_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        commit: &WeightsCommit,
    ) -> Result<Receipt, ChainError> {
        let _ = (hotkey, netuid, commit);
        todo!()
    }

    /// Commits to weights locked to a round of the beacon; the chain opens them by itself. Returns that round too.
    pub async fn commit_timelocked_weights(
        &self,
        hotkey: &Key,
        netuid: u16,
        weights: &[(u16, u16)],
    ) -> Result<(u64, Receipt), ChainError> {
        let _ = (hotkey, netuid, weights);
        todo!()
    }

    /// Stakes TAO on a hotkey, at most at a price.
    pub async fn add_stake(
        &self,
        coldkey: &Key,
        netuid: u16,
        hotkey: &AccountId,
        amount_rao: u64,
        price_max_rao: Option<u64>,
    ) -> Result<Receipt, ChainError> {
        let _ = (coldkey, netuid, hotkey, amount_rao, price_max_rao);
        todo!()
    }

    /// Sends TAO; keeps the sender's account alive.
    pub async fn transfer(
        &self,
        from: &Key,
        to: &AccountId,
        amount_rao: u64,
    ) -> Result<Receipt, ChainError> {
        let _ = (from, to, amount_rao);
        todo!()
    }

    /// Changes a hyperparameter, signed by the subnet's owner.
    pub async fn set_hyperparameter(
        &self,
        owner: &Key,
        netuid: u16,
        value: Hyperparameter,
    ) -> Result<Receipt, ChainError> {
        let _ = (owner, netuid, value);
        todo!()
    }

    /// Changes a hyperparameter as root, signed by the chain's sudo key.
    pub async fn sudo_set_hyperparameter(
        &self,
        root: &Key,
        netuid: u16,
        value: Hyperparameter,
    ) -> Result<Receipt, ChainError> {
        let _ = (root, netuid, value);
        todo!()
    }

    /// Looks for an extrinsic whose fate was open ([`ChainError::Uncertain`]): its receipt, or `None` when it is certain
    /// that it never will be included. Waits until that is certain.
    pub async fn settle(&self, pending: &Pending) -> Result<Option<Receipt>, ChainError> {
        let _ = pending;
        todo!()
    }
}
