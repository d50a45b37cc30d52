//! The node's one decision maker: takes extrinsics in, makes blocks of them, moves finality, forks on request.
//!
//! Every change of the chain goes the same way: the new blocks are made from a snapshot, written to disk, and only then
//! taken over in memory and told to watchers and subscribers (rule `durable-first` of the store). Does no IO but that of
//! the store; whoever calls it holds a lock around it.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::beacon::Beacon;
use super::chain::{Block, Chain, StateError, Tip};
use super::clock::{Clock, wall_ms};
use super::executor::{
    AccountId, Content, Executor, Hash, Intervention, Refusal, extrinsic_hash, fork_of, is_signed,
};
use super::options::{ChainError, FINALITY_LAG_MAX, GenesisOptions, Options};
use super::pool::{Pending, Pool, PoolError};
use super::state::{State, Undo};
use super::store::{Step, Store, StoreError};
use super::watchers::{Status, Watchers};
use crate::genesis::{Genesis, beacon, fast_subnets};
use crate::subtensor::InitialParameters;

/// When a block is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Its time has come.
    Due,
    /// Ahead of time: the chain's clock jumps to the block's time.
    Ahead,
}

/// What a change of the chain was. What is final now is asked of the chain.
#[derive(Debug)]
pub(crate) struct Advance {
    /// Blocks that became the newest one, one after the other.
    pub(crate) imported: Vec<Arc<Block>>,
}

/// Why a submission is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SubmitError {
    Refused(Refusal),
    Pool(PoolError),
    /// As many extrinsics are watched as can be.
    TooManyWatchers,
}

/// Why there is no reorg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReorgError {
    #[error("a reorg of {depth} blocks is not possible: {possible} are not final")]
    Depth { depth: u32, possible: u32 },
}

/// The chain, its pool and its clock.
pub(crate) struct Ledger {
    executor: Arc<Executor>,
    chain: Chain,
    pool: Pool,
    watchers: Watchers,
    beacon: Beacon,
    clock: Clock,
    store: Option<Store>,
    finality_lag: u32,
    /// For the next block.
    interventions: Vec<Intervention>,
}

/// A block that was made but is not part of the chain yet.
struct Made {
    tip: Tip,
    undo: Undo,
    statuses: Vec<(Hash, Status)>,
}

impl Ledger {
    /// Begins a chain, or goes on with the one in the directory.
    pub(crate) fn open(options: &Options, executor: Arc<Executor>) -> Result<Ledger, ChainError> {
        let (store, stored) = match &options.dir {
            Some(dir) => Store::open(dir).map(|(store, stored)| (Some(store), stored))?,
            None => (None, None),
        };
        let genesis = match (&stored, &options.dir) {
            (Some(stored), Some(dir)) => {
                if let Some((option, stored, wanted)) = stored.first_difference(options) {
                    return Err(StoreError::OtherGenesis {
                        dir: dir.clone(),
                        option,
                        stored,
                        wanted,
                    }
                    .into());
                }
                stored.clone()
            }
            _ => options.genesis(wall_ms()),
        };
        let genesis_unix_s = genesis.unix_ms / 1_000;
        let chain = match (&store, stored) {
            (Some(store), Some(_)) => {
                let stored = store.load()?;
                Chain::new(
                    stored.hashes,
                    stored.tips,
                    stored.finalized,
                    options.states_kept,
                )
            }
            (store, _) => {
                let tip = first_tip(&executor, &genesis)?;
                if let Some(store) = store {
                    store.begin(&genesis, &tip)?;
                }
                Chain::new(vec![tip.block.hash], vec![tip], 0, options.states_kept)
            }
        };
        Ok(Ledger {
            executor,
            chain,
            pool: Pool::default(),
            watchers: Watchers::default(),
            beacon: Beacon::new(genesis_unix_s, u64::from(genesis.beacon_period_s)),
            clock: Clock::new(options.sealing, options.block_ms, genesis.unix_ms),
            store,
            finality_lag: options.finality_lag_blocks,
            interventions: Vec::new(),
        })
    }

    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn finality_lag(&self) -> u32 {
        self.finality_lag
    }

    /// A block, also one that is only on disk.
    pub(crate) fn block(&self, hash: &Hash) -> Result<Option<Arc<Block>>, StoreError> {
        match (
            self.chain.block(hash),
            self.chain.number_of(hash),
            &self.store,
        ) {
            (Some(block), _, _) => Ok(Some(block)),
            (None, Some(number), Some(store)) => Ok(store.block(number)?.map(Arc::new)),
            (None, _, _) => Ok(None),
        }
    }

    pub(crate) fn state(&self, hash: &Hash) -> Result<State, StateError> {
        self.chain.state(hash)
    }

    /// Nonce of the next extrinsic of `account`, those in the pool counted.
    pub(crate) fn next_nonce(&self, account: &AccountId) -> u32 {
        let nonce = self.executor.nonce(&self.chain.tip().state, account);
        nonce.saturating_add(self.pool.nonces_from(account, nonce))
    }

    /// Takes an extrinsic into the pool.
    pub(crate) fn submit(&mut self, bytes: &[u8]) -> Result<Hash, SubmitError> {
        let hash = self.admit(bytes)?;
        self.tell_ready();
        Ok(hash)
    }

    /// Takes an extrinsic into the pool and watches it.
    pub(crate) fn submit_and_watch(
        &mut self,
        bytes: &[u8],
    ) -> Result<mpsc::Receiver<Status>, SubmitError> {
        if !self.watchers.has_room() {
            return Err(SubmitError::TooManyWatchers);
        }
        let hash = self.admit(bytes)?;
        let statuses = self.watchers.watch(hash);
        if !self.tell_ready().contains(&hash) {
            self.watchers.tell(&hash, Status::Future);
        }
        Ok(statuses)
    }

    /// Makes a block.
    pub(crate) fn seal(&mut self, pace: Pace) -> Result<Advance, ChainError> {
        let tip = self.chain.tip();
        let made = self.make(&tip, pace, 0)?;
        self.take_over(tip.block.number(), vec![made])
    }

    /// Retracts the newest `depth` blocks and makes one more than that in their place. The signed extrinsics of the
    /// retracted blocks go back to the pool, or are `dropped`.
    pub(crate) fn reorg(
        &mut self,
        depth: u32,
        dropped: bool,
    ) -> Result<Result<Advance, ReorgError>, ChainError> {
        let best = self.chain.best_number();
        let possible = best - self.chain.finalized_number();
        if depth == 0 || depth > possible {
            return Ok(Err(ReorgError::Depth { depth, possible }));
        }
        let parent = best - depth;
        let Some(mut tip) = self.chain.tip_at(parent) else {
            return Ok(Err(ReorgError::Depth { depth, possible }));
        };
        let retracted: Vec<Arc<Block>> = (parent + 1..=best)
            .filter_map(|number| self.chain.block(&self.chain.hash_at(number)?))
            .collect();
        let fork = 1 + retracted
            .iter()
            .map(|block| fork_of(&block.header))
            .max()
            .unwrap_or(0);
        let mut statuses = self.revalidate(&tip);
        for block in &retracted {
            for bytes in block.extrinsics.iter().filter(|bytes| is_signed(bytes)) {
                let hash = extrinsic_hash(bytes);
                statuses.push((hash, Status::Retracted(block.hash)));
                if dropped {
                    statuses.push((hash, Status::Dropped));
                    continue;
                }
                match self.executor.validate(tip.block.hash, &tip.state, bytes) {
                    Ok(validity) => {
                        let pending = Pending {
                            hash,
                            bytes: bytes.as_slice().into(),
                            validity,
                        };
                        match self.pool.insert(pending) {
                            Ok(usurped) => statuses.extend(
                                usurped.into_iter().map(|old| (old, Status::Usurped(hash))),
                            ),
                            Err(_) => statuses.push((hash, Status::Dropped)),
                        }
                    }
                    Err(_) => statuses.push((hash, Status::Invalid)),
                }
            }
        }
        let mut blocks = Vec::new();
        for _ in 0..=depth {
            let mut made = self.make(&tip, Pace::Due, fork)?;
            tip = made.tip.clone();
            statuses.append(&mut made.statuses);
            made.statuses = std::mem::take(&mut statuses);
            blocks.push(made);
        }
        self.take_over(parent, blocks).map(Ok)
    }

    /// Sets how far the final block is behind, and moves it if that is less than before.
    pub(crate) fn set_finality_lag(&mut self, blocks: u32) -> Result<Advance, ChainError> {
        self.finality_lag = blocks.min(FINALITY_LAG_MAX);
        self.take_over(self.chain.best_number(), Vec::new())
    }

    /// Has something done at the end of the next block.
    pub(crate) fn intervene(&mut self, intervention: Intervention) {
        self.interventions.push(intervention);
    }

    fn admit(&mut self, bytes: &[u8]) -> Result<Hash, SubmitError> {
        let hash = extrinsic_hash(bytes);
        if self.pool.contains(&hash) {
            return Err(SubmitError::Pool(PoolError::AlreadyImported(hash)));
        }
        let tip = self.chain.tip();
        let validity = self
            .executor
            .validate(tip.block.hash, &tip.state, bytes)
            .map_err(SubmitError::Refused)?;
        let usurped = self
            .pool
            .insert(Pending {
                hash,
                bytes: bytes.into(),
                validity,
            })
            .map_err(SubmitError::Pool)?;
        for old in usurped {
            self.watchers.tell(&old, Status::Usurped(hash));
        }
        Ok(hash)
    }

    /// Makes the child of `tip` from the pool, and takes what went into it, or never can, out of the pool.
    fn make(&mut self, tip: &Tip, pace: Pace, fork: u32) -> Result<Made, ChainError> {
        let parent_ms = self.executor.timestamp_ms(&tip.state);
        let timestamp_ms = match pace {
            Pace::Due => self.clock.now(parent_ms, wall_ms()),
            Pace::Ahead => self.clock.advance(parent_ms, wall_ms()),
        };
        let last = self.executor.last_round(&tip.state);
        let content = Content {
            timestamp_ms,
            pulses: self
                .beacon
                .due(timestamp_ms, last, self.executor.awaited_rounds(&tip.state)),
            extrinsics: self
                .pool
                .ready()
                .into_iter()
                .map(|pending| (pending.hash, pending.bytes))
                .collect(),
            interventions: &self.interventions,
            fork,
        };
        let authored = self
            .executor
            .author(&tip.block.header, &tip.state, content)
            .map_err(|error| ChainError::Runtime {
                number: tip.block.number() + 1,
                what: error.to_string(),
            })?;
        self.interventions.clear();
        let hash = authored.header.hash();
        let mut statuses = Vec::new();
        for extrinsic in authored.included {
            self.pool.remove(&extrinsic);
            statuses.push((extrinsic, Status::InBlock(hash)));
        }
        for (extrinsic, refusal) in authored.refused {
            tracing::debug!(?extrinsic, %refusal, "extrinsic refused at inclusion");
            self.pool.remove(&extrinsic);
            statuses.push((extrinsic, Status::Invalid));
        }
        let block = Block {
            hash,
            header: authored.header,
            extrinsics: authored.extrinsics,
        };
        let tip = Tip {
            block: Arc::new(block),
            state: authored.state,
        };
        statuses.extend(self.revalidate(&tip));
        Ok(Made {
            tip,
            undo: authored.undo,
            statuses,
        })
    }

    /// Asks the runtime again about everything in the pool, on top of `tip`; gives what became of what it refuses now.
    fn revalidate(&mut self, tip: &Tip) -> Vec<(Hash, Status)> {
        let pending: Vec<(Hash, Arc<[u8]>)> = self
            .pool
            .iter()
            .map(|pending| (pending.hash, pending.bytes.clone()))
            .collect();
        let mut statuses = Vec::new();
        for (hash, bytes) in pending {
            match self.executor.validate(tip.block.hash, &tip.state, &bytes) {
                Ok(validity) => self.pool.revalidate(&hash, validity),
                Err(refusal) => {
                    tracing::debug!(extrinsic = ?hash, %refusal, "extrinsic no longer valid");
                    self.pool.remove(&hash);
                    statuses.push((hash, Status::Invalid));
                }
            }
        }
        statuses
    }

    /// Makes `blocks` the chain above block `parent`, on disk first, and moves finality.
    fn take_over(&mut self, parent: u32, blocks: Vec<Made>) -> Result<Advance, ChainError> {
        let best = blocks.last().map_or(parent, |made| made.tip.block.number());
        let finalized = best
            .saturating_sub(self.finality_lag)
            .max(self.chain.finalized_number());
        let states_from = self.chain.states_from(best, finalized);
        let (blocks, statuses): (Vec<_>, Vec<_>) = blocks
            .into_iter()
            .map(|made| ((made.tip, made.undo), made.statuses))
            .unzip();
        if let Some(store) = &self.store {
            store.apply(&Step {
                parent,
                blocks: &blocks,
                finalized,
                states_from,
            })?;
        }

        if parent < self.chain.best_number() {
            let retracted = self.chain.retract_above(parent);
            tracing::info!(depth = retracted.len(), parent, "reorg");
        }
        let imported: Vec<Arc<Block>> = blocks.iter().map(|(tip, _)| tip.block.clone()).collect();
        for (tip, _) in blocks {
            self.chain.push(tip);
        }
        for (extrinsic, status) in statuses.into_iter().flatten() {
            self.watchers.tell(&extrinsic, status);
        }
        self.tell_ready();
        for block in self.chain.finalize(finalized) {
            for bytes in &block.extrinsics {
                self.watchers
                    .tell(&extrinsic_hash(bytes), Status::Finalized(block.hash));
            }
        }
        Ok(Advance { imported })
    }

    fn tell_ready(&mut self) -> Vec<Hash> {
        let ready = self.pool.newly_ready();
        for hash in &ready {
            self.watchers.tell(hash, Status::Ready);
        }
        ready
    }
}

fn first_tip(executor: &Executor, options: &GenesisOptions) -> Result<Tip, ChainError> {
    let start_s = u32::try_from(options.unix_ms / 1_000).map_err(|_| {
        ChainError::Options(vec![format!(
            "--genesis-unix-ms {} is after the year 2106",
            options.unix_ms
        )])
    })?;
    let subnets = fast_subnets();
    let genesis = Genesis {
        block_time_ms: options.block_ms,
        beacon: beacon(
            "gradmesh-dev",
            Beacon::public_key(),
            start_s,
            options.beacon_period_s,
        ),
        subnets: InitialParameters {
            tempo: options.tempo_blocks.unwrap_or(subnets.tempo),
            ..subnets
        },
        ..Genesis::default()
    };
    let (header, state) = executor
        .genesis(&genesis)
        .map_err(|error| ChainError::Runtime {
            number: 0,
            what: error.to_string(),
        })?;
    let block = Arc::new(Block {
        hash: header.hash(),
        header,
        extrinsics: Vec::new(),
    });
    Ok(Tip { block, state })
}
