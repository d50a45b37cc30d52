//! Bittensor's chain as a training daemon meets it.

pub mod account;
pub mod key;
pub mod keyfile;
pub mod wallet;
