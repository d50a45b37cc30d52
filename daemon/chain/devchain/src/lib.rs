//! x

pub mod emission;
pub mod yuma;
