//! The chain's clock: finalized blocks and the time in them.

use serde::Deserialize;
use serde_json::json;
use tracing::debug;

use super::view::{gone, hexadecimal};
use super::{Client, lock};
use crate::error::ChainError;
use crate::link::{Link, Stream, hash};
use crate::runtime::unreadable;
use crate::types::BlockRef;

/// Finalized blocks in order, from [`Client::finalized_blocks`].
pub struct FinalizedBlocks {
    client: Client,
    /// Height to return next; `None` until the first head is known.
    next: Option<u64>,
    /// Greatest finalized height that the present connection told.
    head: Option<u64>,
    heads: Option<Stream<Header>>,
}

/// A block's header, as far as it is needed.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    #[serde(deserialize_with = "quantity")]
    pub(super) number: u64,
    pub(super) parent_hash: String,
}

impl Client {
    /// The newest finalized block. Never older than what this client has seen before, whichever endpoint answers.
    ///
    /// Cost: 2 requests.
    pub async fn finalized(&self) -> Result<BlockRef, ChainError> {
        let head = finalized_head(&self.inner.link).await?;
        Ok(self.saw_finalized(head))
    }

    /// Finalized blocks from now on: begins with the newest one, leaves none out, survives lost connections.
    /// No request until the first [`FinalizedBlocks::next`].
    pub fn finalized_blocks(&self) -> FinalizedBlocks {
        FinalizedBlocks {
            client: self.clone(),
            next: None,
            head: None,
            heads: None,
        }
    }

    /// As [`Client::finalized_blocks`], but begins with height `first`, which may be past or to come.
    pub fn finalized_blocks_from(&self, first: u64) -> FinalizedBlocks {
        FinalizedBlocks {
            next: Some(first),
            ..self.finalized_blocks()
        }
    }

    /// Hash of the block at a height of the best chain; `None` above its head. Only up to the finalized height will it
    /// stay that one.
    ///
    /// Cost: 1 request.
    pub async fn block_hash(&self, number: u64) -> Result<Option<[u8; 32]>, ChainError> {
        let answer: Option<String> = self
            .inner
            .link
            .request("chain_getBlockHash", vec![json!(number)])
            .await?;
        match answer {
            Some(text) => hash(&text)
                .map(Some)
                .ok_or_else(|| unreadable(format!("hash of block {number}"), text)),
            None => Ok(None),
        }
    }

    /// Time of a block, milliseconds since 1970, as its author set it (`Timestamp.Now`).
    ///
    /// Cost: 2 requests.
    pub async fn unix_ms(&self, at: &BlockRef) -> Result<u64, ChainError> {
        self.view(Some(at.hash))
            .await?
            .value("Timestamp", "Now", Vec::new())
            .await
    }

    /// Milliseconds between two blocks (`Aura.SlotDuration`): 12,000 on finney, 250 on a fast chain.
    ///
    /// Cost: 3 requests.
    pub async fn block_ms(&self) -> Result<u64, ChainError> {
        self.view(None)
            .await?
            .runtime
            .constant("Aura", "SlotDuration")
    }

    /// Keeps the newest finalized block, and returns it.
    fn saw_finalized(&self, block: BlockRef) -> BlockRef {
        let mut newest = lock(&self.inner.finalized);
        if block.number > newest.number {
            *newest = block;
        }
        *newest
    }
}

impl FinalizedBlocks {
    /// The next finalized block: waits for it, over lost connections, silent endpoints and fail-over. Heights rise by
    /// one: none is left out, none comes twice. May be dropped and called again at any time.
    ///
    /// Cost: 1 request per block, and a subscription per connection.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`] after `away_timeout` without an endpoint; the next call goes on where this one
    /// stopped.
    pub async fn next(&mut self) -> Result<BlockRef, ChainError> {
        loop {
            if let (Some(next), Some(head)) = (self.next, self.head)
                && next <= head
            {
                if let Some(hash) = self.client.block_hash(next).await? {
                    let block = BlockRef { number: next, hash };
                    self.client.saw_finalized(block);
                    self.next = Some(next + 1);
                    return Ok(block);
                }
                // Another endpoint answers by now, and is behind: its own heads will say how far it is.
                debug!(next, head, "finalized block not at this endpoint yet");
                self.forget_heads();
            }
            self.wait_for_head().await?;
        }
    }

    async fn wait_for_head(&mut self) -> Result<(), ChainError> {
        let link = &self.client.inner.link;
        let heads = match &mut self.heads {
            Some(heads) => heads,
            None => {
                let stream = link
                    .subscribe(
                        "chain_subscribeFinalizedHeads",
                        "chain_unsubscribeFinalizedHeads",
                    )
                    .await?;
                self.heads.insert(stream)
            }
        };
        match tokio::time::timeout(link.settings().head_timeout, heads.next()).await {
            Ok(Some(header)) => {
                let newest = lock(&self.client.inner.finalized).number;
                self.next.get_or_insert(header.number.max(newest));
                self.head = Some(
                    self.head
                        .map_or(header.number, |head| head.max(header.number)),
                );
            }
            Ok(None) => {
                // A node that ends every subscription at once must not make us spin.
                tokio::time::sleep(link.settings().backoff_first).await;
                self.forget_heads();
            }
            Err(_elapsed) => {
                link.leave_silent(heads, "no finalized block for too long")
                    .await;
                self.forget_heads();
            }
        }
        Ok(())
    }

    fn forget_heads(&mut self) {
        self.heads = None;
        self.head = None;
    }
}

/// The newest finalized block that the endpoint in use knows. 2 requests.
pub(super) async fn finalized_head(link: &Link) -> Result<BlockRef, ChainError> {
    let head: String = link.request("chain_getFinalizedHead", Vec::new()).await?;
    let head = hash(&head).ok_or_else(|| unreadable("finalized block's hash".to_owned(), &head))?;
    Ok(BlockRef {
        number: header(link, &head).await?.number,
        hash: head,
    })
}

/// Header of a block. 1 request.
pub(super) async fn header(link: &Link, block: &[u8; 32]) -> Result<Header, ChainError> {
    let header: Option<Header> = link
        .request("chain_getHeader", vec![json!(hexadecimal(block))])
        .await
        .map_err(|error| gone(error, block))?;
    header.ok_or(ChainError::StateGone { block: *block })
}

/// A number written as "0x" and hexadecimal digits.
fn quantity<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| serde::de::Error::custom(format!("{text:?} is no block number")))
}
