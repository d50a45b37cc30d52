//! `gradmesh slander (TICKET | --netuid N)`: a validator that lies, to see what the others make of it.
//!
//! The daemon is the honest one, with a trainer that turns round what it learns. So every segment that it does again comes to
//! something else than what its peer says, and it fails everybody, with evidence that does not contradict itself: only who does
//! the segment again sees that it is wrong.

use gradmesh_protocol::hash::Hash;
use gradmesh_trainer::adversary::{Kind, wrap};

use super::join::{self, Part};
use crate::cli::{GlobalArgs, JoinArgs};
use crate::daemon::GuiseParts;
use crate::machine::MachineFile;

pub(super) async fn run(
    global: &GlobalArgs,
    settings: &MachineFile,
    args: JoinArgs,
) -> anyhow::Result<()> {
    let guise = Box::new(|trainer, parts: GuiseParts| {
        // Whatever turns an update round needs neither a seed nor the updates of others.
        let others = Box::new(|| None);
        wrap(
            Kind::Sign,
            trainer,
            parts.steps_per_round,
            Hash::ZERO,
            others,
        )
    });
    join::run(global, settings, args, Part::validator().in_guise(guise)).await
}
