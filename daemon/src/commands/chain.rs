//! `gradmesh chain dev | info`

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::cli::ChainCommand;
use crate::machine::MachineFile;

/// The executable of the development chain, beside this one.
const DEVCHAIN: &str = "gradmesh-devchain";

pub(super) async fn run(settings: &MachineFile, command: ChainCommand) -> anyhow::Result<()> {
    match command {
        ChainCommand::Dev { flags } => match become_devchain(&flags)? {},
    }
}

/// Where the development chain lies.
pub(crate) fn devchain() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().and_then(|path| path.canonicalize());
    Ok(own
        .context("where this executable lies")?
        .with_file_name(DEVCHAIN))
}

fn become_devchain(flags: &[String]) -> anyhow::Result<Infallible> {
    let devchain = devchain()?;
    let error = Command::new(&devchain).args(flags).exec();
    Err(anyhow::Error::new(error).context(missing(&devchain)))
}

/// What to say when it is not there.
pub(crate) fn missing(devchain: &std::path::Path) -> String {
    format!(
        "cannot run {}, which belongs beside gradmesh: build it with `cargo build -p gradmesh-devchain`",
        devchain.display()
    )
}
