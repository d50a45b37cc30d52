//! `gradmesh validate (TICKET | --netuid N)`

use crate::cli::{GlobalArgs, JoinArgs};
use crate::machine::MachineFile;

use super::join::{self, Part};

pub(super) async fn run(
    global: &GlobalArgs,
    settings: &MachineFile,
    args: JoinArgs,
) -> anyhow::Result<()> {
    join::run(global, settings, args, Part::validator()).await
}
