//! A development chain with subtensor's interface: a native FRAME runtime behind Substrate JSON-RPC.
//!
//! Pallet names and indices, calls, storage layout, transaction extensions, error names and runtime APIs are those of
//! finney at spec 365 for the parts that gradmesh uses; the code behind them is our own. It is a model of the chain, not a
//! copy: no consensus, no network, no WebAssembly, and money that is worth nothing.

pub mod admin_utils;
pub mod aura;
pub mod commitments;
pub mod drand;
pub mod emission;
mod fixed_point;
pub mod genesis;
mod node;
pub mod runtime;
pub mod subtensor;
pub mod yuma;

pub use node::{
    BLOCK_MS_MAX, BLOCK_MS_MIN, BLOCKS_PER_CALL_MAX, BlockRef, ChainError, DevChain, DropAt,
    FAULT_MS_MAX, FINALITY_LAG_MAX, Options, Refusal, Sealing, StoreError,
};
