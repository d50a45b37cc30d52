//! What stands on chain. `at`: hash of a block; `None` is the newest finalized one.

use super::Client;
use crate::account::AccountId;
use crate::error::ChainError;
use crate::types::{Beacon, Commitment, Neuron, Pulse, Subnet};

impl Client {
    /// A subnet's state and hyperparameters; `None` if there is none of that number.
    pub async fn subnet(
        &self,
        netuid: u16,
        at: Option<[u8; 32]>,
    ) -> Result<Option<Subnet>, ChainError> {
        let _ = (netuid, at);
        todo!()
    }

    /// The members of a subnet by uid, all of one block. Empty for a subnet that does not exist.
    pub async fn neurons(
        &self,
        netuid: u16,
        at: Option<[u8; 32]>,
    ) -> Result<Vec<Neuron>, ChainError> {
        let _ = (netuid, at);
        todo!()
    }

    /// The uid of a hotkey; `None` if it is not, or no longer, registered.
    pub async fn uid(
        &self,
        netuid: u16,
        hotkey: &AccountId,
        at: Option<[u8; 32]>,
    ) -> Result<Option<u16>, ChainError> {
        let _ = (netuid, hotkey, at);
        todo!()
    }

    /// Numbers of all subnets, ascending, with the root network 0.
    pub async fn subnets(&self) -> Result<Vec<u16>, ChainError> {
        todo!()
    }

    /// Weights in force: for each uid that set any, its list of (uid, weight).
    pub async fn weights(
        &self,
        netuid: u16,
        at: Option<[u8; 32]>,
    ) -> Result<Vec<(u16, Vec<(u16, u16)>)>, ChainError> {
        let _ = (netuid, at);
        todo!()
    }

    /// All commitments of a subnet, in order of their hotkeys.
    pub async fn commitments(
        &self,
        netuid: u16,
        at: Option<[u8; 32]>,
    ) -> Result<Vec<(AccountId, Commitment)>, ChainError> {
        let _ = (netuid, at);
        todo!()
    }

    /// The commitment of one hotkey.
    pub async fn commitment(
        &self,
        netuid: u16,
        hotkey: &AccountId,
        at: Option<[u8; 32]>,
    ) -> Result<Option<Commitment>, ChainError> {
        let _ = (netuid, hotkey, at);
        todo!()
    }

    /// Free balance, in rao.
    pub async fn balance(&self, account: &AccountId) -> Result<u64, ChainError> {
        let _ = account;
        todo!()
    }

    /// Alpha that all coldkeys together hold on a hotkey in a subnet, in rao of alpha.
    pub async fn stake(&self, netuid: u16, hotkey: &AccountId) -> Result<u64, ChainError> {
        let _ = (netuid, hotkey);
        todo!()
    }

    /// Price of a registration now, in rao. Falls with every block and jumps with every registration.
    pub async fn registration_price(&self, netuid: u16) -> Result<u64, ChainError> {
        let _ = netuid;
        todo!()
    }

    /// Price of a new subnet now, in rao.
    pub async fn network_price(&self) -> Result<u64, ChainError> {
        todo!()
    }

    /// A pulse of the beacon, if the chain holds it.
    pub async fn pulse(&self, round: u64) -> Result<Option<Pulse>, ChainError> {
        let _ = round;
        todo!()
    }

    /// Newest round of the beacon that the chain holds; 0 before the first.
    pub async fn last_pulse(&self) -> Result<u64, ChainError> {
        todo!()
    }

    /// The beacon that the chain follows.
    pub async fn beacon(&self) -> Result<Beacon, ChainError> {
        todo!()
    }
}
