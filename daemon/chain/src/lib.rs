//! Bittensor's chain (subtensor) as a training daemon meets it: one client for the real chain and for the development
//! chain, and Bittensor's wallet files.
//!
//! Reads metadata at run time and finds calls, storage and errors by name, so that an upgrade of the chain's runtime
//! needs neither a new build nor a restart. Speaks plain types: nothing outside this crate knows SCALE.
//!
//! Never sends an extrinsic twice whose fate is open, never pays more than the caller allows, never writes a key to a log.

pub mod account;
pub mod attestation;
mod client;
pub mod error;
pub mod key;
pub mod keyfile;
mod link;
pub mod refusal;
mod runtime;
mod schedule;
pub mod settings;
pub mod types;
pub mod wallet;
pub mod weights;

pub use account::AccountId;
pub use client::{Client, FinalizedBlocks};
pub use error::{ChainError, Pending};
pub use key::Key;
pub use refusal::Advice;
pub use settings::Settings;
