//! `gradmesh wallet new | show`, and the keys that other commands sign with.
use crate::cli::{WalletArgs, WalletCommand};
use crate::machine::MachineFile;
use gradmesh_chain::Key;
pub(super) async fn run(_settings: &MachineFile, _command: WalletCommand) -> anyhow::Result<()> {
    Ok(())
}
pub(super) fn hotkey(_args: &WalletArgs) -> anyhow::Result<Key> {
    anyhow::bail!("x")
}
pub(super) fn coldkey(_args: &WalletArgs) -> anyhow::Result<Key> {
    anyhow::bail!("x")
}
