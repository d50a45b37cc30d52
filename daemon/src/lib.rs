//! The gradmesh daemon as a library: everything that does IO for a peer.
//!
//! Holds no protocol rule: those live in `gradmesh-protocol`, and this crate carries their inputs and effects.

pub mod blob;
pub mod net;
