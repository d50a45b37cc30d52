//! One module per command. Each prints its result on stdout, for people or as JSON; logs go to stderr.

mod calibrate;
pub(crate) mod chain;
mod cheat;
mod checkpoint;
mod doctor;
mod evidence;
mod join;
mod launch;
mod leave;
mod peer;
mod slander;
mod status;
pub(crate) mod subnet;
mod validate;
mod wallet;

use std::path::Path;

use anyhow::{Context, bail};
use gradmesh_protocol::key::Keypair;

use crate::cli::{Cli, Command, GlobalArgs};
use crate::machine::MachineFile;
use crate::net::identity::NodeKey;
use crate::state_dir::{StateDir, StatusAddress};
use crate::status::client;
use crate::terminal;

/// Does what the command line says.
///
/// # Errors
/// What happened, to what, and what to do; for the terminal.
pub async fn run(cli: Cli, settings: &MachineFile) -> anyhow::Result<()> {
    let Cli { global, command } = cli;
    match command {
        Command::Demo(args) => crate::demo::run(&args).await,
        Command::Launch(args) => launch::run(&global, settings, args).await,
        Command::Join(args) => join::run(&global, settings, args, join::Part::default()).await,
        Command::Validate(args) => validate::run(&global, settings, args).await,
        Command::Cheat { kind, join } => cheat::run(&global, settings, kind, join).await,
        Command::Slander(args) => slander::run(&global, settings, args).await,
        Command::Evidence(command) => evidence::run(&global, command).await,
        Command::Status(args) => status::run(&global, args.json).await,
        Command::Leave(args) => leave::run(&global, args.json).await,
        Command::Checkpoint(command) => checkpoint::run(&global, settings, command).await,
        Command::Chain(command) => chain::run(settings, command).await,
        Command::Wallet(command) => wallet::run(settings, command).await,
        Command::Doctor(args) => doctor::run(&global, settings, &args).await,
    }
}

/// Prints `value` as one line of JSON.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string(value).context("the result is no JSON")?;
    terminal::say(&json);
    Ok(())
}

/// The key of the peer in `dir`, made if it is not there, as the protocol signs with it.
fn keypair(dir: &StateDir) -> anyhow::Result<Keypair> {
    dir.create()?;
    let key = NodeKey::load_or_create(&dir.node_key())?;
    Ok(Keypair::from_seed(&key.signing_key().to_bytes()))
}

/// The state directory that a command without a run means: `--dir`, or the only one there is.
fn existing_dir(global: &GlobalArgs) -> anyhow::Result<StateDir> {
    if let Some(dir) = &global.dir {
        if !dir.is_dir() {
            bail!(
                "state directory {} does not exist: check --dir",
                dir.display()
            );
        }
        return Ok(StateDir::new(dir));
    }
    let root = StateDir::runs_root()?;
    let mut found = directories_of(&root);
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => bail!(
            "there is no run below {}: start one with `gradmesh launch` or `gradmesh join`, or name its state directory \
             with --dir",
            root.display()
        ),
        _ => {
            let list: String = found
                .iter()
                .map(|dir| format!("\n  --dir {}", dir.path().display()))
                .collect();
            bail!("there are several runs; say which with --dir:{list}")
        }
    }
}

fn directories_of(root: &Path) -> Vec<StateDir> {
    let mut found: Vec<_> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found.into_iter().map(StateDir::new).collect()
}

/// The daemon that runs in the state directory that `global` means.
async fn running(global: &GlobalArgs) -> anyhow::Result<(StateDir, StatusAddress)> {
    if global.dir.is_some() {
        let dir = existing_dir(global)?;
        let address = dir.status_address()?.with_context(|| {
            format!(
                "no daemon ever ran in {}: check --dir",
                dir.path().display()
            )
        })?;
        return Ok((dir, address));
    }
    // Of several runs, the one that is running is meant.
    let mut alive = Vec::new();
    for dir in directories_of(&StateDir::runs_root()?) {
        if let Ok(Some(address)) = dir.status_address()
            && client::status(&address.url).await.is_ok()
        {
            alive.push((dir, address));
        }
    }
    if alive.len() == 1 {
        return Ok(alive.remove(0));
    }
    let dir = existing_dir(global)?;
    let address = dir.status_address()?.with_context(|| {
        format!(
            "no daemon ever ran in {}: start one first",
            dir.path().display()
        )
    })?;
    Ok((dir, address))
}
