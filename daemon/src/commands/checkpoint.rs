//! `gradmesh checkpoint list | verify | export`

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context, bail};
use gradmesh_chain::Client;
use gradmesh_chain::types::BlockRef;
use gradmesh_compression::{Codec, DenseFormat};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::merkle::Tree;
use gradmesh_trainer::checkpoint::{self, Checkpoint, Provenance};
use gradmesh_trainer::model::Precision;
use gradmesh_trainer::replica::{Outer, Replica, ReplicaConfig};
use serde::Serialize;
use serde_json::json;

use super::subnet::told;
use super::{existing_dir, print_json, subnet};
use crate::cli::{CheckpointCommand, GlobalArgs};
use crate::machine::MachineFile;
use crate::subnet::{AttestationReceipt, discovery};
use crate::terminal::{say, table};

pub(super) async fn run(
    global: &GlobalArgs,
    settings: &MachineFile,
    command: CheckpointCommand,
) -> anyhow::Result<()> {
    match command {
        CheckpointCommand::List(json) => list(global, json.json),
        CheckpointCommand::Verify {
            checkpoint,
            chain,
            netuid,
            json,
        } => {
            let mut verified = verify(&checkpoint)?;
            if settings.chain(chain.as_ref()).is_some() {
                let client = subnet::client(settings, chain.as_ref()).await?;
                verified.attested = Some(on_chain(&client, &checkpoint, &verified, netuid).await?);
            } else if netuid.is_some() {
                bail!(
                    "--netuid {}: name the chain with --chain",
                    netuid.unwrap_or_default()
                );
            }
            if json.json {
                return print_json(&verified);
            }
            say(&verified.text(&checkpoint));
            Ok(())
        }
        CheckpointCommand::Export {
            target,
            round,
            json,
        } => export(global, &target, round, json.json),
    }
}

fn list(global: &GlobalArgs, json: bool) -> anyhow::Result<()> {
    let dir = existing_dir(global)?;
    let found = dir.list_checkpoints()?;
    if json {
        let entries: Vec<_> = found
            .iter()
            .map(|(round, path)| json!({ "round": round, "path": path }))
            .collect();
        return print_json(&entries);
    }
    if found.is_empty() {
        say(&format!(
            "no checkpoint yet in {}",
            dir.checkpoints().display()
        ));
        return Ok(());
    }
    let rows: Vec<_> = found
        .iter()
        .map(|(round, path)| vec![path.display().to_string(), round.to_string()])
        .collect();
    say(&table(&["checkpoint", "round"], &rows));
    Ok(())
}

#[derive(Debug, Serialize)]
struct Verified {
    parameters: usize,
    /// Root over the weights as they were read; equal to that of the provenance, if there is one.
    state_root: Hash,
    provenance: Option<Provenance>,
    /// Where the chain says the same; absent if none was asked.
    attested: Option<AttestedOnChain>,
}

/// What a finalized block says about a checkpoint.
#[derive(Debug, Serialize)]
struct AttestedOnChain {
    genesis: Hash,
    netuid: u16,
    /// The finalized block at which the chain was read.
    block: u64,
    block_hash: Hash,
    epoch: u64,
    /// Hotkeys that attest exactly this state.
    attesters: usize,
    /// Hotkeys that attest another state for the same epoch.
    dissenters: usize,
}

impl Verified {
    fn text(&self, path: &Path) -> String {
        let mut text = format!(
            "{}: sound, {} parameters\nroot {}\n",
            path.display(),
            self.parameters,
            self.state_root
        );
        match &self.provenance {
            Some(provenance) => text.push_str(&format!(
                "which is the state root after round {} of run {}\n",
                provenance.round, provenance.run
            )),
            None => {
                text.push_str("not written by gradmesh: it names no run to compare with\n");
            }
        }
        if let Some(attested) = &self.attested {
            text.push_str(&format!(
                "attested on subnet {} as the end of epoch {} by {} hotkeys, contradicted by {}, at finalized block {} ({})\n",
                attested.netuid,
                attested.epoch,
                attested.attesters,
                attested.dissenters,
                attested.block,
                attested.block_hash
            ));
        }
        text
    }
}

/// Reads a checkpoint whole and compares its weights with the root that it names.
fn verify(path: &Path) -> anyhow::Result<Verified> {
    let read = checkpoint::read(path)?;
    let state_root = weights_root(&read)?;
    if let Some(provenance) = &read.provenance
        && Hash::from_hex(&provenance.state_root) != Some(state_root)
    {
        bail!(
            "{}: the weights have root {state_root}, its gradmesh.json names {}: in a run with outer.rule = \"plain\" the \
             weights were changed, get the checkpoint again; with \"nesterov\" the root covers the momentum too, which a \
             checkpoint does not hold, and cannot be checked",
            path.display(),
            provenance.state_root
        );
    }
    Ok(Verified {
        parameters: read.theta.len(),
        state_root,
        provenance: read.provenance,
        attested: None,
    })
}

/// Looks for the checkpoint among the attestations of a subnet: at the newest finalized block, and if the attesters have
/// gone on since, at the block that the checkpoint's receipt names.
///
/// Rule `finalized-only`: a receipt's block counts only if the chain itself has that hash at that height, below the
/// newest finalized block.
async fn on_chain(
    client: &Client,
    path: &Path,
    verified: &Verified,
    netuid: Option<u16>,
) -> anyhow::Result<AttestedOnChain> {
    let Some(provenance) = &verified.provenance else {
        bail!(
            "{}: no gradmesh.json, so it names no run and round to look for on chain",
            path.display()
        );
    };
    let run = Hash::from_hex(&provenance.run);
    let run = run.with_context(|| format!("gradmesh.json: {:?} is no run", provenance.run))?;
    let receipt = AttestationReceipt::read(path)?;
    let genesis = subnet::genesis(client);
    if let Some(receipt) = receipt
        .as_ref()
        .filter(|receipt| receipt.genesis != genesis)
    {
        bail!(
            "the checkpoint is attested on the chain with genesis {}, {} serves {genesis}: name an endpoint of that chain \
             with --chain",
            receipt.genesis,
            client.endpoint()
        );
    }
    let Some(netuid) = netuid.or(receipt.as_ref().map(|receipt| receipt.netuid)) else {
        bail!(
            "say with --netuid on which subnet to look: the checkpoint has no attestation.json that does"
        );
    };
    let newest = told(client.finalized().await)?;
    if let Some(attested) = at_block(client, path, verified, netuid, run, newest).await? {
        return Ok(attested);
    }
    if let Some(block) = receipt.as_ref().map(AttestationReceipt::block) {
        let canonical = told(client.block_hash(block.number).await)?;
        if block.number > newest.number || canonical != Some(block.hash) {
            bail!(
                "attestation.json names block {} ({}), which is not a finalized block of this chain",
                block.number,
                Hash(block.hash)
            );
        }
        if let Some(attested) = at_block(client, path, verified, netuid, run, block).await? {
            return Ok(attested);
        }
    }
    bail!(
        "subnet {netuid} attests no state after round {} of run {run} at finalized block {}: attestations overwrite each \
         other, and an older one is found by the attestation.json that its attester leaves in the checkpoint",
        provenance.round,
        newest.number
    )
}

/// What the subnet attests at `block` about the checkpoint's round; `None` if nothing.
///
/// # Errors
/// When it attests another state.
async fn at_block(
    client: &Client,
    path: &Path,
    verified: &Verified,
    netuid: u16,
    run: Hash,
    block: BlockRef,
) -> anyhow::Result<Option<AttestedOnChain>> {
    let at = Some(block.hash);
    let neurons = told(client.neurons(netuid, at).await)?;
    let commitments = told(client.commitments(netuid, at).await)?;
    let round = verified
        .provenance
        .as_ref()
        .map(|provenance| provenance.round);
    let of_round: Vec<_> = discovery::attestations(&neurons, &commitments)
        .into_iter()
        .filter(|a| a.attestation.run == run.0 && Some(a.attestation.round) == round)
        .collect();
    let Some(state) = discovery::newest_attested(&run.0, &of_round) else {
        return Ok(None);
    };
    if state.state_root != verified.state_root {
        bail!(
            "{}: its root is {}, but subnet {netuid} attests {} after round {} (finalized block {}, {} hotkeys): this \
                 is not the checkpoint of the run",
            path.display(),
            verified.state_root,
            state.state_root,
            state.round,
            block.number,
            state.attesters
        );
    }
    Ok(Some(AttestedOnChain {
        genesis: subnet::genesis(client),
        netuid,
        block: block.number,
        block_hash: Hash(block.hash),
        epoch: state.epoch,
        attesters: state.attesters,
        dissenters: state.dissenters,
    }))
}

/// The state root of a run with the plain outer rule that stands at these weights. What owners keep is taken from the
/// provenance: it is under the same root.
fn weights_root(read: &Checkpoint) -> anyhow::Result<Hash> {
    // The root is over the tiles of theta, whose cut depends on the shapes alone: any codec gives the same.
    let codec = Codec::Dense(DenseFormat::F32);
    let config = ReplicaConfig {
        codec,
        reduced: codec,
        local: codec,
        owner_beta: 0.0,
        outer: Outer::Plain { rate: 1.0 },
        feedback_beta: 0.0,
        sparse_elements_min: 0,
        tiles_per_shard: NonZeroUsize::MIN,
    };
    let replica = Replica::new(&read.config.parameters(), config, read.theta.clone())?;
    let mut leaves = replica.leaves();
    let residuals = read.provenance.iter().flat_map(|p| &p.residual_leaves);
    for leaf in residuals {
        leaves.push(Hash::from_hex(leaf).context("gradmesh.json: residual_leaves are no hashes")?);
    }
    Ok(Tree::from_leaves(leaves).root())
}

fn export(
    global: &GlobalArgs,
    target: &Path,
    round: Option<u64>,
    json: bool,
) -> anyhow::Result<()> {
    let dir = existing_dir(global)?;
    let found = dir.list_checkpoints()?;
    let chosen = match round {
        None => found.last(),
        Some(round) => found.iter().find(|(of, _)| *of == round),
    };
    let Some((round, source)) = chosen else {
        let what = round.map_or_else(
            || "no checkpoint".to_owned(),
            |round| format!("no checkpoint of round {round}"),
        );
        bail!(
            "there is {what} in {}: `gradmesh checkpoint list` shows those that are",
            dir.checkpoints().display()
        );
    };
    let read = checkpoint::read(source)?;
    checkpoint::write(
        target,
        &read.config,
        &read.theta,
        Precision::F32,
        read.provenance.as_ref(),
    )
    .with_context(|| format!("exporting {}", source.display()))?;
    if let Some(receipt) = AttestationReceipt::read(source)? {
        let written = receipt.write(target);
        written.with_context(|| format!("exporting {}", source.display()))?;
    }
    if json {
        print_json(&json!({ "round": round, "path": target }))
    } else {
        say(&format!(
            "checkpoint after round {round} copied to {}",
            target.display()
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use gradmesh_trainer::Architecture;

    use super::*;
    use crate::run_file::MODEL_PRESETS;
    use crate::state_dir::StateDir;

    /// A state directory with one checkpoint after round 3, whose provenance names `root` or the right one.
    fn with_checkpoint(root: Option<Hash>) -> (tempfile::TempDir, GlobalArgs) {
        let temp = tempfile::tempdir().unwrap();
        let config = Architecture::from_json(MODEL_PRESETS[0].1.as_bytes()).unwrap();
        let mut read = Checkpoint {
            theta: config.init([1; 32]).unwrap(),
            config,
            provenance: None,
        };
        let root = root.unwrap_or_else(|| weights_root(&read).unwrap());
        read.provenance = Some(Provenance {
            run: Hash::of_content(b"run").to_string(),
            round: 3,
            state_root: root.to_string(),
            residual_leaves: Vec::new(),
        });
        let path = StateDir::new(temp.path()).checkpoint(3);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let provenance = read.provenance.as_ref();
        checkpoint::write(&path, &read.config, &read.theta, Precision::F32, provenance).unwrap();
        let global = GlobalArgs {
            dir: Some(temp.path().to_owned()),
            ..GlobalArgs::default()
        };
        (temp, global)
    }

    #[test]
    fn an_exported_checkpoint_verifies_like_the_one_it_came_from() {
        let (temp, global) = with_checkpoint(None);
        let source = StateDir::new(temp.path()).checkpoint(3);
        let verified = verify(&source).unwrap();
        let target = temp.path().join("exported");
        export(&global, &target, None, true).unwrap();
        let exported = verify(&target).unwrap();
        assert_eq!(exported.state_root, verified.state_root);
        assert!(exported.text(&target).contains("after round 3 of run"));
        assert_eq!(
            checkpoint::read(&source).unwrap(),
            checkpoint::read(&target).unwrap()
        );
        let error = export(&global, &temp.path().join("other"), Some(4), true).unwrap_err();
        assert!(
            error.to_string().contains("no checkpoint of round 4"),
            "{error}"
        );
    }

    #[test]
    fn weights_that_are_not_those_of_the_named_root_are_refused() {
        let (temp, _) = with_checkpoint(Some(Hash::of_content(b"other weights")));
        let error = verify(&StateDir::new(temp.path()).checkpoint(3)).unwrap_err();
        assert!(
            error.to_string().contains("the weights were changed"),
            "{error}"
        );
    }
}
