//! A deterministic simulator of many gradmesh nodes.
//!
//! One seed is one run: it expands into printed [`options`], and everything that happens follows from them. The nodes
//! are the real ones, their messages go through the real wire format, and what they agree on is really learnt, with the
//! reference model and the real codec. Opens no socket, reads no clock, draws no entropy but the seed's, and looks into
//! no node except through what a driver may call.
//!
//! - [`options`]: what a seed stands for.
//! - [`queue`]: virtual time, clocks, the one event queue.
//! - [`network`]: links and what they do to messages; [`lines`]: those that a site shares.
//! - [`lengths`]: of the messages of a round, for who counts bytes without a run.
//! - [`chain`]: the model chain of a run that has one.
//! - [`peer`]: one node with the driver around it.
//! - [`world`]: the loop, the faults and the end (rule `two-phases`).
//! - [`checks`], [`oracle`]: what must hold.
//! - [`trace`], [`coverage`]: what happened.
//! - [`audits`]: a world of its own, of miners that cheat and validators that audit, without a network.

pub mod audits;
pub mod chain;
pub mod checks;
pub mod coverage;
pub mod learner;
pub mod lengths;
pub mod lines;
pub mod network;
pub mod options;
pub mod oracle;
mod panics;
pub mod peer;
pub mod queue;
pub mod random;
pub mod trace;
pub mod world;

pub use options::Options;
pub use trace::Verbosity;
pub use world::{Outcome, Verdict, run};
