//! What the measurements of gradmesh run in, and what tests and other programs may use of it: networks on this machine.
//!
//! Knows nothing of gradmesh itself: whatever runs in these networks is a process like any other.

pub mod netns;
pub mod origin;
pub mod wan;
