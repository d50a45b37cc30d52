//! The rules of gradmesh: who is in a round, what was committed, what was decided, what happens next.
//!
//! A pure state machine: inputs and the time go in, effects come out. It opens no socket, reads no clock, draws no
//! entropy, spawns nothing and holds no tensor; the daemon and the simulator drive the same code.

pub mod agreement;
pub mod audit;
pub mod capacity;
pub mod concentration;
pub mod decision;
pub mod figures;
pub mod fragment;
pub mod hash;
pub mod header;
pub mod key;
pub mod manifest;
pub mod merkle;
pub mod node;
pub mod plan;
pub mod reduction;
pub mod registry;
pub mod roster;
pub mod score;
pub mod site;
pub mod ticket;
pub mod time;
pub mod wire;
