//! What measurements with real processes share: networks to run them in, daemons and other children, what they cost.

pub(crate) mod choice;
pub(crate) mod daemon;
pub(crate) mod environment;
pub(crate) mod link;
pub(crate) mod mesh;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod synthetic;

pub(crate) use choice::{CodecName, Plan};
pub(crate) use link::{Link, Site};
