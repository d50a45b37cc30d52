//! `gradmesh join [TICKET]`

use anyhow::{Context, bail};
use gradmesh_protocol::ticket::Ticket;

use super::{existing_dir, keypair, peer};
use crate::cli::{GlobalArgs, JoinArgs};
use crate::daemon::{Entry, Role};
use crate::machine::MachineFile;
use crate::state_dir::StateDir;
use crate::store::Store;

/// Hex digits of the run in the name of its folder: enough to tell any two runs of one machine apart.
const FOLDER_DIGITS: usize = 16;

pub(super) async fn run(
    global: &GlobalArgs,
    settings: &MachineFile,
    args: JoinArgs,
) -> anyhow::Result<()> {
    let data_dir = match &args.data {
        None => None,
        Some(data) => {
            std::fs::read_dir(data).with_context(|| {
                format!(
                    "--data {}: cannot be read as a directory; check the path",
                    data.display()
                )
            })?;
            Some(std::path::absolute(data).context("--data")?)
        }
    };
    let (dir, role) = match &args.ticket {
        Some(ticket) => {
            let ticket: Ticket = ticket.parse()?;
            let dir = match &global.dir {
                Some(dir) => StateDir::new(dir),
                None => {
                    let run = ticket.run.to_string();
                    let digits = run.get(..FOLDER_DIGITS).unwrap_or(&run);
                    StateDir::new(StateDir::runs_root()?.join(format!("joined-{digits}")))
                }
            };
            keypair(&dir)?;
            let store = Store::open(&dir)?;
            if let Some(stored) = store.manifest()?
                && stored.manifest.run() != ticket.run
            {
                bail!(
                    "state directory {} belongs to run {}, the ticket is for run {}: choose another --dir",
                    dir.path().display(),
                    stored.manifest.run(),
                    ticket.run
                );
            }
            store.set_launcher_addresses(&ticket.addresses)?;
            let entry = Entry::from(&ticket);
            (dir, Role::Join { entry, data_dir })
        }
        None => {
            let dir = existing_dir(global)?;
            let store = Store::open(&dir)?;
            if store.manifest()?.is_none() {
                bail!(
                    "state directory {} holds no run yet: join with the ticket that `gradmesh launch` printed",
                    dir.path().display()
                );
            }
            if let Some(data_dir) = data_dir {
                store.set_data_dir(&data_dir)?;
            }
            drop(store);
            (dir, Role::Resume)
        }
    };
    peer::run_daemon(dir, role, &args.peer, settings, args.json).await
}
