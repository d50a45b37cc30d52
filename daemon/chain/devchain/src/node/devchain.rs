//! The handle of a running dev chain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jsonrpsee::server::ServerHandle;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::clock::Sealing;
use super::executor::{AccountId, Intervention};
use super::faults::{DropAt, Refusal};
use super::ledger::Pace;
use super::options::{ChainError, FINALITY_LAG_MAX, Options};
use super::{Node, server};

/// A dev chain that runs in this process, on the tokio runtime that it was started on. It ends when this is dropped.
///
/// Whatever can be asked for here can be asked for over RPC, too (`dev_*`); clients under test see only the socket.
pub struct DevChain {
    node: Arc<Node>,
    address: SocketAddr,
    server: ServerHandle,
    timer: Option<JoinHandle<()>>,
}

/// A block by number and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRef {
    /// Its height.
    pub number: u32,
    /// Its hash.
    pub hash: [u8; 32],
}

impl DevChain {
    /// Starts a chain, or goes on with the one in [`Options::dir`].
    ///
    /// # Errors
    /// [`ChainError`]: options, address, directory.
    pub async fn start(options: Options) -> Result<DevChain, ChainError> {
        options.validate()?;
        let (listener, address) = server::listen(options.listen).await?;
        let opened = options.clone();
        let node = tokio::task::spawn_blocking(move || Node::open(&opened)).await;
        let node =
            Arc::new(node.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?);
        let server = server::serve(listener, node.clone(), &options);
        let timer = match options.sealing {
            Sealing::Interval => Some(tokio::spawn(make_blocks(
                node.clone(),
                Duration::from_millis(options.block_ms),
            ))),
            Sealing::Manual => None,
        };
        Ok(DevChain {
            node,
            address,
            server,
            timer,
        })
    }

    /// Where clients connect: `ws://ADDRESS`, and `http://ADDRESS` for single calls.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Hash of block 0.
    pub fn genesis(&self) -> [u8; 32] {
        self.node.ledger().chain().hash_at(0).unwrap_or_default().0
    }

    /// The newest block.
    pub fn best(&self) -> BlockRef {
        let ledger = self.node.ledger();
        let number = ledger.chain().best_number();
        BlockRef {
            number,
            hash: ledger.chain().hash_at(number).unwrap_or_default().0,
        }
    }

    /// The newest final block.
    pub fn finalized(&self) -> BlockRef {
        let ledger = self.node.ledger();
        let number = ledger.chain().finalized_number();
        BlockRef {
            number,
            hash: ledger.chain().hash_at(number).unwrap_or_default().0,
        }
    }

    /// Makes `blocks` blocks at once; the chain's clock jumps with them. Blocks the thread for milliseconds per block.
    ///
    /// # Errors
    /// [`ChainError`], for good: the chain does not go on after one.
    pub fn advance(&self, blocks: u32) -> Result<BlockRef, Arc<ChainError>> {
        for _ in 0..blocks {
            self.node.seal(Pace::Ahead)?;
        }
        Ok(self.best())
    }

    /// Retracts the newest `depth` blocks and makes one more than that in their place. The signed extrinsics of the
    /// retracted blocks go back to the pool, or are `dropped`. False if some of them are final: nothing happens then.
    ///
    /// # Errors
    /// As [`DevChain::advance`].
    pub fn reorg(&self, depth: u32, dropped: bool) -> Result<bool, Arc<ChainError>> {
        Ok(self.node.reorg(depth, dropped)?.is_ok())
    }

    /// Sets how far the final block is behind the newest, at most [`FINALITY_LAG_MAX`].
    ///
    /// # Errors
    /// As [`DevChain::advance`].
    pub fn set_finality_lag(&self, blocks: u32) -> Result<(), Arc<ChainError>> {
        self.node
            .set_finality_lag(blocks.min(FINALITY_LAG_MAX))
            .map(drop)
    }

    /// Stops making blocks by the clock, or goes on.
    pub fn set_paused(&self, paused: bool) {
        self.node.set_paused(paused);
    }

    /// Gives an account a free balance from the next block on.
    pub fn set_balance(&self, account: [u8; 32], rao: u64) {
        self.node.ledger().intervene(Intervention::SetBalance {
            account: AccountId::new(account),
            rao,
        });
    }

    /// Gives the runtime another spec version after the next block. Calls that metadata hid appear.
    pub fn upgrade(&self, spec_version: u32) {
        self.node
            .ledger()
            .intervene(Intervention::Upgrade { spec_version });
    }

    /// Cuts all connections.
    pub fn drop_connections(&self) {
        self.node.faults.cut_all(None);
    }

    /// Cuts the connection that submits next; `None` takes it back.
    pub fn drop_next_submission(&self, at: Option<DropAt>) {
        self.node.faults.drop_next_submission(at);
    }

    /// Shows the chain as it was `blocks` blocks ago.
    pub fn set_stale(&self, blocks: u32) {
        self.node.faults.set_stale(blocks);
    }

    /// Delays every reply.
    pub fn set_delay(&self, ms: u64) {
        self.node.faults.set_delay(ms);
    }

    /// Refuses new connections for `ms`.
    pub fn refuse_connections(&self, how: Refusal, ms: u64) {
        self.node.faults.refuse_connections(how, ms);
    }

    /// Returns when the chain cannot go on, with the reason.
    pub async fn failed(&self) -> Arc<ChainError> {
        let mut failure = self.node.failure();
        match failure
            .wait_for(Option::is_some)
            .await
            .map(|failure| failure.clone())
        {
            Ok(Some(failure)) => failure,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends the chain: no more blocks, all connections closed, the directory free for the next one.
    pub async fn shutdown(mut self) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
            // Aborted, or done: either way it makes no more blocks.
            let _ = timer.await;
        }
        let node = self.node.clone();
        let server = self.server.clone();
        drop(self);
        server.stopped().await;
        // Tasks of connections and of calls under way end on their own now; each holds the node, and with it the lock on
        // the directory.
        let mut node = node;
        while let Err(held) = Arc::try_unwrap(node) {
            node = held;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for DevChain {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
        // Stopped already: nothing left to do.
        let _ = self.server.stop();
        self.node.faults.cut_all(None);
    }
}

async fn make_blocks(node: Arc<Node>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once: block 1 is `interval` after block 0.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if node.is_paused() {
            continue;
        }
        let author = node.clone();
        match tokio::task::spawn_blocking(move || author.seal(Pace::Due)).await {
            Ok(Ok(_)) => (),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
