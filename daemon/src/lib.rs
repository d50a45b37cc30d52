//! The gradmesh daemon as a library: everything that does IO for a peer.
//!
//! Holds no protocol rule: those live in `gradmesh-protocol`, and this crate carries their inputs and effects.

pub mod blob;
pub mod cli;
pub mod commands;
pub mod corpus;
pub mod daemon;
pub mod demo;
pub mod machine;
pub mod net;
pub mod run_file;
pub mod run_settings;
pub mod state_dir;
pub mod status;
pub mod store;
pub mod subnet;
pub mod terminal;
pub mod tolerances;
mod worker;
