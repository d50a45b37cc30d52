//! The chain's clock: finalized blocks and the time in them.

use super::Client;
use crate::error::ChainError;
use crate::types::BlockRef;

/// Finalized blocks in order, one by one, from [`Client::finalized_blocks`].
pub struct FinalizedBlocks {
    client: Client,
}

impl Client {
    /// The newest finalized block. Never older than what this client has seen before, whichever endpoint answers.
    ///
    /// Cost: 2 requests.
    pub async fn finalized(&self) -> Result<BlockRef, ChainError> {
        todo!()
    }

    /// Finalized blocks from the newest on. Starts with the newest one and leaves none out.
    pub fn finalized_blocks(&self) -> FinalizedBlocks {
        FinalizedBlocks {
            client: self.clone(),
        }
    }

    /// Hash of the block at a height of the best chain; `None` above its head. Final only up to the finalized height.
    ///
    /// Cost: 1 request.
    pub async fn block_hash(&self, number: u64) -> Result<Option<[u8; 32]>, ChainError> {
        let _ = number;
        todo!()
    }

    /// Time of a block, milliseconds since 1970, as its author set it (`Timestamp.Now`).
    pub async fn unix_ms(&self, at: &BlockRef) -> Result<u64, ChainError> {
        let _ = at;
        todo!()
    }

    /// Milliseconds between two blocks (`Aura.SlotDuration`): 12,000 on finney, 250 on a fast chain.
    pub async fn block_ms(&self) -> Result<u64, ChainError> {
        todo!()
    }
}

impl FinalizedBlocks {
    /// The next finalized block: waits for it, over lost connections and fail-over. Heights rise by one; none is left
    /// out and none comes twice.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`] after the settings' `away_timeout` without an endpoint; the next call goes on where
    /// this one stopped.
    pub async fn next(&mut self) -> Result<BlockRef, ChainError> {
        let _ = &self.client;
        todo!()
    }
}
