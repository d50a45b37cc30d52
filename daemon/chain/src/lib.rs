//! Bittensor's chain as a training daemon meets it.

pub mod account;
pub mod key;
