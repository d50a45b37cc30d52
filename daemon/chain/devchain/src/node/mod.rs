//! The node around the runtime: blocks, pool, clock, beacon, disk and Substrate JSON-RPC.
//!
//! | module | holds |
//! |---|---|
//! | [`executor`] | the runtime, called as a function of a state |
//! | [`state`], [`externalities`] | a block's storage, and how the runtime sees it |
//! | [`chain`], [`pool`], [`watchers`] | blocks; extrinsics that wait for one; who waits for them |
//! | [`clock`], [`beacon`] | when a block is made and which pulses it brings |
//! | [`ledger`] | all of these together: the only one that decides anything |
//! | [`store`] | the chain on disk |
//! | [`rpc`], [`server`] | JSON-RPC and its socket |
//! | [`faults`] | what a test can make go wrong |
//!
//! One author, no peers, no consensus: a block is the newest one as soon as it is made, and final when
//! `finality_lag_blocks` others follow it.

mod beacon;
mod chain;
mod clock;
mod devchain;
mod executor;
mod externalities;
mod faults;
mod ledger;
mod metadata;
mod options;
mod pool;
mod rpc;
mod server;
mod state;
mod store;
mod watchers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};

pub use clock::Sealing;
pub use devchain::{BlockRef, DevChain};
pub use faults::{DropAt, FAULT_MS_MAX, Refusal};
pub use options::{BLOCK_MS_MAX, BLOCK_MS_MIN, ChainError, FINALITY_LAG_MAX, Options};
pub use rpc::dev::BLOCKS_PER_CALL_MAX;
pub use store::StoreError;

use executor::Executor;
use faults::Faults;
use ledger::{Advance, Ledger, Pace, ReorgError};

/// Changes of the chain that a slow subscription may leave unread; it misses the ones before.
const ADVANCES_KEPT: usize = 256;

/// What the RPC methods, the block timer and the handle share.
pub(crate) struct Node {
    pub(crate) executor: Arc<Executor>,
    pub(crate) faults: Faults,
    ledger: Mutex<Ledger>,
    advances: broadcast::Sender<Arc<Advance>>,
    paused: AtomicBool,
    /// Why no more blocks can be made.
    failure: watch::Sender<Option<Arc<ChainError>>>,
}

impl Node {
    pub(crate) fn open(options: &Options) -> Result<Node, ChainError> {
        let executor = Arc::new(Executor::new(options.without_calls.clone()));
        let ledger = Ledger::open(options, executor.clone())?;
        Ok(Node {
            executor,
            faults: Faults::default(),
            ledger: Mutex::new(ledger),
            advances: broadcast::channel(ADVANCES_KEPT).0,
            paused: AtomicBool::new(false),
            failure: watch::channel(None).0,
        })
    }

    /// The ledger, for as long as the guard lives. Never wait for anything with it in hand.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes of the chain from now on.
    pub(crate) fn advances(&self) -> broadcast::Receiver<Arc<Advance>> {
        self.advances.subscribe()
    }

    /// Makes a block. Takes milliseconds, and as long as the disk does.
    pub(crate) fn seal(&self, pace: Pace) -> Result<Arc<Advance>, Arc<ChainError>> {
        self.change(|ledger| ledger.seal(pace))
    }

    pub(crate) fn reorg(
        &self,
        depth: u32,
        dropped: bool,
    ) -> Result<Result<Arc<Advance>, ReorgError>, Arc<ChainError>> {
        let mut refused = None;
        let advance = self.change(|ledger| {
            Ok(ledger.reorg(depth, dropped)?.unwrap_or_else(|error| {
                refused = Some(error);
                Advance {
                    imported: Vec::new(),
                }
            }))
        })?;
        Ok(refused.map_or(Ok(advance), Err))
    }

    pub(crate) fn set_finality_lag(&self, blocks: u32) -> Result<Arc<Advance>, Arc<ChainError>> {
        self.change(|ledger| ledger.set_finality_lag(blocks))
    }

    /// Stops making blocks by the clock, or goes on.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Turns to the reason when no more blocks can be made.
    pub(crate) fn failure(&self) -> watch::Receiver<Option<Arc<ChainError>>> {
        self.failure.subscribe()
    }

    /// Changes the chain and tells subscribers, in the order of the changes.
    fn change(
        &self,
        change: impl FnOnce(&mut Ledger) -> Result<Advance, ChainError>,
    ) -> Result<Arc<Advance>, Arc<ChainError>> {
        let mut ledger = self.ledger();
        if let Some(failure) = &*self.failure.borrow() {
            return Err(failure.clone());
        }
        match change(&mut ledger) {
            Ok(advance) => {
                let advance = Arc::new(advance);
                // Nobody may be listening.
                let _ = self.advances.send(advance.clone());
                Ok(advance)
            }
            Err(error) => {
                tracing::error!(%error, "no more blocks");
                let error = Arc::new(error);
                self.failure.send_replace(Some(error.clone()));
                Err(error)
            }
        }
    }
}
