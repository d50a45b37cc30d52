//! x

pub mod emission;
pub mod subtensor;
pub mod yuma;
