//! A connection to the chain, and everything that a training daemon reads and does there.

mod calls;
mod clock;
mod reads;

use std::sync::Arc;

use crate::error::ChainError;
use crate::settings::Settings;
use crate::types::Capabilities;

pub use clock::FinalizedBlocks;

/// A client of one chain. Clones share the connection, the caches and the nonces.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
}

impl Client {
    /// Connects to the first endpoint that works, reads genesis and metadata.
    ///
    /// Cost: one connection, about six requests, among them the metadata (0.5 MB).
    ///
    /// # Errors
    /// [`ChainError::Settings`], [`ChainError::Unreachable`], [`ChainError::WrongChain`].
    pub async fn connect(settings: Settings) -> Result<Client, ChainError> {
        settings.validate()?;
        Ok(Client {
            inner: Arc::new(Inner { settings }),
        })
    }

    /// Hash of block 0: names the chain. No request.
    pub fn genesis(&self) -> [u8; 32] {
        todo!()
    }

    /// The endpoint in use, or the last one that was. No request.
    pub fn endpoint(&self) -> String {
        self.inner.settings.endpoints[0].clone()
    }

    /// What the newest runtime that was met can do. No request; renewed by every operation that meets a new runtime.
    pub fn capabilities(&self) -> Capabilities {
        todo!()
    }
}
