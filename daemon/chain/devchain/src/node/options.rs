//! What a dev chain is started with.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::clock::Sealing;
use super::store::StoreError;

/// Shortest time between two blocks that is taken, in milliseconds: that of subtensor's fast runtime.
pub const BLOCK_MS_MIN: u64 = 250;
/// Longest: that of finney.
pub const BLOCK_MS_MAX: u64 = 12_000;
/// Longest finality lag, in blocks: the states of all blocks that are not final are kept.
pub const FINALITY_LAG_MAX: u32 = 4_096;

/// How to start a dev chain.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the RPC server listens; port 0 takes a free one. Default 127.0.0.1:0.
    pub listen: SocketAddr,
    /// How blocks come about. Default [`Sealing::Interval`].
    pub sealing: Sealing,
    /// Time between two blocks, in milliseconds, [`BLOCK_MS_MIN`]..=[`BLOCK_MS_MAX`]. Default 1,000: a demo's epochs
    /// take seconds, and four peers on one machine keep up.
    pub block_ms: u64,
    /// How many blocks the final one is behind the newest, at most [`FINALITY_LAG_MAX`]. Default 0.
    pub finality_lag_blocks: u32,
    /// Directory to keep the chain in; `None`: in memory only, the default.
    pub dir: Option<PathBuf>,
    /// Tempo of new subnets: blocks per epoch. `None`: the runtime's own.
    pub tempo_blocks: Option<u16>,
    /// Seconds between two rounds of the chain's beacon. Default 3, as drand's.
    pub beacon_period_s: u32,
    /// Time of block 0, milliseconds since 1970. `None`: now. With [`Sealing::Manual`] a given time makes the chain
    /// deterministic, hashes included.
    pub genesis_unix_ms: Option<u64>,
    /// Blocks whose states are kept, besides those that are not final. Default 256, as a pruning node of Substrate.
    pub states_kept: u32,
    /// Calls of `SubtensorModule` that metadata leaves out until the first upgrade. Only metadata hides them: the runtime
    /// still takes them.
    pub without_calls: Vec<String>,
    /// Connections served at once; one more is answered HTTP 429. Default 256.
    pub connections_max: u32,
    /// Subscriptions of one connection. Default 1,024, as Substrate's nodes.
    pub subscriptions_max: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            sealing: Sealing::Interval,
            block_ms: 1_000,
            finality_lag_blocks: 0,
            dir: None,
            tempo_blocks: None,
            beacon_period_s: 3,
            genesis_unix_ms: None,
            states_kept: 256,
            without_calls: Vec::new(),
            connections_max: 256,
            subscriptions_max: 1_024,
        }
    }
}

/// Why a dev chain did not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Options that make no chain; each fault in one line.
    #[error("{}", .0.join("; "))]
    Options(Vec<String>),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A bug of the runtime.
    #[error("block {number} cannot be made: {what}")]
    Runtime {
        /// Number of the block.
        number: u32,
        /// What the runtime says.
        what: String,
    },
}

impl Options {
    /// Every fault at once.
    ///
    /// # Errors
    /// [`ChainError::Options`].
    pub fn validate(&self) -> Result<(), ChainError> {
        let mut faults = Vec::new();
        if !(BLOCK_MS_MIN..=BLOCK_MS_MAX).contains(&self.block_ms) {
            faults.push(format!(
                "--block-ms {} is not in {BLOCK_MS_MIN}..={BLOCK_MS_MAX}",
                self.block_ms
            ));
        }
        if self.finality_lag_blocks > FINALITY_LAG_MAX {
            faults.push(format!(
                "--finality-lag {} is more than {FINALITY_LAG_MAX}",
                self.finality_lag_blocks
            ));
        }
        if self.tempo_blocks == Some(0) {
            faults.push("--tempo 0 leaves no block for an epoch".to_owned());
        }
        if self.beacon_period_s == 0 {
            faults.push("--beacon-period-s 0 is no period".to_owned());
        }
        if self.states_kept == 0 {
            faults.push("--states-kept 0 leaves no state to read".to_owned());
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ChainError::Options(faults))
        }
    }

    /// The part that block 0 depends on, for a chain that begins at `unix_ms`.
    pub(crate) fn genesis(&self, unix_ms: u64) -> GenesisOptions {
        GenesisOptions {
            block_ms: self.block_ms,
            tempo_blocks: self.tempo_blocks,
            beacon_period_s: self.beacon_period_s,
            unix_ms: self.genesis_unix_ms.unwrap_or(unix_ms),
        }
    }
}

/// The options that block 0 depends on: they stay what they are for the life of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GenesisOptions {
    pub(crate) block_ms: u64,
    pub(crate) tempo_blocks: Option<u16>,
    pub(crate) beacon_period_s: u32,
    pub(crate) unix_ms: u64,
}

impl GenesisOptions {
    /// The first option in which `options` asks for another chain: its name on the command line, the value here and the
    /// one asked for.
    pub(crate) fn first_difference(
        &self,
        options: &Options,
    ) -> Option<(&'static str, String, String)> {
        let tempo =
            |tempo: Option<u16>| tempo.map_or("default".to_owned(), |tempo| tempo.to_string());
        let asked = options.genesis(self.unix_ms);
        [
            (
                "--block-ms",
                self.block_ms.to_string(),
                asked.block_ms.to_string(),
            ),
            (
                "--tempo",
                tempo(self.tempo_blocks),
                tempo(asked.tempo_blocks),
            ),
            (
                "--beacon-period-s",
                self.beacon_period_s.to_string(),
                asked.beacon_period_s.to_string(),
            ),
            (
                "--genesis-unix-ms",
                self.unix_ms.to_string(),
                asked.unix_ms.to_string(),
            ),
        ]
        .into_iter()
        .find(|(_, stored, wanted)| stored != wanted)
    }
}
