//! The node through its socket: formats, pool, forks, disk, faults, bounds, and the binary.
//!
//! Chains are sealed by hand wherever time is not what is tested, so that nothing here waits for a clock.

mod binary;
mod blocks;
mod disk;
mod faults;
mod forks;
mod formats;
mod harness;
mod pool;
