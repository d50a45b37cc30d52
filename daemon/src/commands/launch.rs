//! `gradmesh launch RUN.toml`

use anyhow::{Context, bail};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::{Chain, SignedManifest};

use super::join::Part;
use super::{keypair, peer, subnet};
use crate::cli::{GlobalArgs, LaunchArgs};
use crate::daemon::Role;
use crate::machine::{Machine, MachineFile};
use crate::run_file::{self, DataFacts, LoadedRunFile};
use crate::state_dir::StateDir;
use crate::store::Store;

pub(super) async fn run(
    global: &GlobalArgs,
    settings: &MachineFile,
    args: LaunchArgs,
) -> anyhow::Result<()> {
    let loaded = LoadedRunFile::load(&args.run_file)?;
    let data_dir = loaded.data_dir.clone();
    tracing::info!(data = %data_dir.display(), "reading the data");
    let facts = tokio::task::spawn_blocking(move || DataFacts::scan(&data_dir))
        .await
        .context("reading the data was broken off")?
        .context("data.dir of the run file")?;
    let dir = match &global.dir {
        Some(dir) => StateDir::new(dir),
        None => StateDir::new(StateDir::runs_root()?.join(folder(&loaded.file.name))),
    };
    let machine = Machine::resolve(&args.peer, settings);
    let (manifest, access) = match &loaded.file.chain {
        run_file::Chain::None => (
            manifest(&dir, &loaded, &facts, &machine, Chain::None)?,
            None,
        ),
        run_file::Chain::Subnet(section) => {
            let access = subnet::access(&machine, Some(&section.network))?;
            let chain = match stored(&dir)?.map(|stored| stored.manifest.chain) {
                // Where a run was launched it stays; the file's other settings must be the same.
                Some(Chain::Subnet(known)) => {
                    section.on(known.genesis, section.netuid.unwrap_or(known.netuid))
                }
                Some(Chain::None) | None => {
                    let client = subnet::connect(&access).await?;
                    let limit = args.peer.chain.register_up_to;
                    let netuid =
                        subnet::subnet_of_launch(&client, &access, &machine, section, limit)
                            .await?;
                    section.on(subnet::genesis(&client), netuid)
                }
            };
            (
                manifest(&dir, &loaded, &facts, &machine, chain)?,
                Some(access),
            )
        }
    };
    let data_dir = std::path::absolute(&loaded.data_dir).context("data.dir of the run file")?;
    let role = Role::Launch {
        manifest: Box::new(manifest),
        data_dir,
    };
    peer::run_daemon(
        dir,
        role,
        machine,
        access,
        args.peer.exit_when_finished,
        args.json,
        Part::default(),
    )
    .await
}

/// The manifest that is launched: the stored one if this run was launched before, else a new one.
fn manifest(
    dir: &StateDir,
    loaded: &LoadedRunFile,
    facts: &DataFacts,
    machine: &Machine,
    chain: Chain,
) -> anyhow::Result<SignedManifest> {
    let keypair = keypair(dir)?;
    if let Some(stored) = stored(dir)? {
        let known = &stored.manifest;
        let same = loaded.manifest(
            known.launcher,
            known.launcher_link,
            known.seed,
            facts,
            chain,
        );
        if same != *known {
            bail!(
                "state directory {} holds run {} ({}), which was launched with another run file or other data: give the \
                 new run another --dir or name, or restore what the old one was launched with",
                dir.path().display(),
                stored.manifest.name,
                stored.manifest.run(),
            );
        }
        tracing::info!(run = %stored.manifest.run(), "going on with the run of this state directory");
        return Ok(stored);
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| anyhow::anyhow!("the operating system gives no randomness: {error}"))?;
    let launcher = keypair.public();
    let manifest = loaded.manifest(launcher, machine.link(&launcher), Hash(seed), facts, chain);
    // The run file was checked; what remains are the limits on data, which were not known then.
    let faults = manifest.validate();
    if !faults.is_empty() {
        let list: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
        bail!("the run file and its data make no sound run:{list}");
    }
    Ok(manifest.sign(&keypair))
}

/// The manifest that was launched in `dir` before.
fn stored(dir: &StateDir) -> anyhow::Result<Option<SignedManifest>> {
    dir.create()?;
    // Opened and closed again: the daemon opens it for itself.
    Ok(Store::open(dir)?.manifest()?)
}

/// A folder name from a run's name: what file systems take, nothing that leads elsewhere.
fn folder(name: &str) -> String {
    let safe: String = name
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect();
    format!("launched-{safe}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::PeerArgs;

    #[test]
    fn a_run_name_never_leads_out_of_its_folder() {
        assert_eq!(folder("../../etc/passwd"), "launched-______etc_passwd");
        assert_eq!(folder("my run 1"), "launched-my_run_1");
    }

    #[test]
    fn the_same_run_file_goes_on_with_its_run_and_another_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let run_file = temp.path().join("run.toml");
        let text =
            "name = \"r\"\nmodel.config = \"demo-1m\"\ndata.dir = \".\"\nschedule.rounds = 5\n";
        std::fs::write(&run_file, text).unwrap();
        let dir = StateDir::new(temp.path().join("state"));
        let facts = DataFacts {
            root: Hash::of_content(b"data"),
            bytes: 10,
            files: 1,
        };
        let loaded = LoadedRunFile::load(&run_file).unwrap();
        let machine = Machine::resolve(&PeerArgs::default(), &MachineFile::default());
        let manifest =
            |loaded: &LoadedRunFile| manifest(&dir, loaded, &facts, &machine, Chain::None);
        let first = manifest(&loaded).unwrap();
        Store::open(&dir).unwrap().set_manifest(&first).unwrap();
        assert_eq!(manifest(&loaded).unwrap(), first);

        std::fs::write(&run_file, text.replace("= 5", "= 6")).unwrap();
        let changed = LoadedRunFile::load(&run_file).unwrap();
        let error = manifest(&changed).unwrap_err();
        assert!(error.to_string().contains("another --dir"), "{error}");
    }
}
