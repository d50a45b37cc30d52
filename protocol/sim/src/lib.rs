//! protocol/sim
