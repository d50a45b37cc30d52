//! `gradmesh join [TICKET | --netuid N]`

use anyhow::{Context, bail};
use gradmesh_protocol::manifest::{Chain, RunId};
use gradmesh_protocol::ticket::Ticket;

use super::{existing_dir, keypair, peer, subnet};
use crate::cli::{GlobalArgs, JoinArgs};
use crate::daemon::{Entry, Guise, Role};
use crate::machine::{Machine, MachineFile};
use crate::state_dir::StateDir;
use crate::store::Store;

/// Hex digits of the run in the name of its folder: enough to tell any two runs of one machine apart.
const FOLDER_DIGITS: usize = 16;

/// What a daemon that joins is to be there.
#[derive(Default)]
pub(super) struct Part {
    pub(super) validates: bool,
    pub(super) guise: Option<Guise>,
}

impl Part {
    /// One that audits the others, and is never a member.
    pub(super) fn validator() -> Part {
        Part {
            validates: true,
            guise: None,
        }
    }

    /// The same with another trainer than its own.
    pub(super) fn in_guise(self, guise: Guise) -> Part {
        Part {
            guise: Some(guise),
            ..self
        }
    }
}

pub(super) async fn run(
    global: &GlobalArgs,
    settings: &MachineFile,
    args: JoinArgs,
    part: Part,
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
    let machine = Machine::resolve(&args.peer, settings);
    let (dir, role, access) = match (&args.ticket, args.netuid) {
        (Some(ticket), _) => {
            let ticket: Ticket = ticket.parse()?;
            let dir = match &global.dir {
                Some(dir) => StateDir::new(dir),
                None => {
                    let run = ticket.run.to_string();
                    let digits = run.get(..FOLDER_DIGITS).unwrap_or(&run);
                    let name = format!(
                        "{}-{digits}",
                        if part.validates {
                            "validated"
                        } else {
                            "joined"
                        }
                    );
                    StateDir::new(StateDir::runs_root()?.join(name))
                }
            };
            keypair(&dir)?;
            check_run(
                &dir,
                ticket.run,
                &format!("the ticket is for run {}", ticket.run),
            )?;
            Store::open(&dir)?.set_launcher_addresses(&ticket.addresses)?;
            let entry = Entry::from(&ticket);
            // Whether the run lives on a subnet shows in its manifest; who names a chain means so.
            let named = args.peer.chain.chain.is_some();
            let access = named.then(|| subnet::access(&machine, None)).transpose()?;
            (dir, Role::Join { entry, data_dir }, access)
        }
        (None, Some(netuid)) => {
            let access = subnet::access(&machine, None)?;
            let client = subnet::connect(&access).await?;
            subnet::register(
                &client,
                &access,
                &machine,
                netuid,
                args.peer.chain.register_up_to,
            )
            .await?;
            let dir = match &global.dir {
                Some(dir) => StateDir::new(dir),
                None => {
                    let validates = if part.validates { "-validated" } else { "" };
                    let name = format!("subnet-{netuid}{validates}");
                    StateDir::new(StateDir::runs_root()?.join(name))
                }
            };
            let me = keypair(&dir)?.public();
            let entry = subnet::entry(&client, netuid, me).await?;
            check_run(
                &dir,
                entry.run,
                &format!("subnet {netuid} has run {}", entry.run),
            )?;
            (dir, Role::Join { entry, data_dir }, Some(access))
        }
        (None, None) => {
            let dir = existing_dir(global)?;
            let store = Store::open(&dir)?;
            let Some(manifest) = store.manifest()? else {
                bail!(
                    "state directory {} holds no run yet: join with the ticket that `gradmesh launch` printed",
                    dir.path().display()
                );
            };
            if let Some(data_dir) = data_dir {
                store.set_data_dir(&data_dir)?;
            }
            let on_chain = manifest.manifest.chain != Chain::None;
            let access = on_chain
                .then(|| subnet::access(&machine, None))
                .transpose()?;
            drop(store);
            (dir, Role::Resume, access)
        }
    };
    peer::run_daemon(
        dir,
        role,
        machine,
        access,
        args.peer.exit_when_finished,
        args.json,
        part,
    )
    .await
}

/// Refuses a state directory that belongs to another run than `run`; `wanted`: what is joined, in words.
fn check_run(dir: &StateDir, run: RunId, wanted: &str) -> anyhow::Result<()> {
    match Store::open(dir)?.manifest()? {
        Some(stored) if stored.manifest.run() != run => bail!(
            "state directory {} belongs to run {}, {wanted}: choose another --dir",
            dir.path().display(),
            stored.manifest.run(),
        ),
        Some(_) | None => Ok(()),
    }
}
