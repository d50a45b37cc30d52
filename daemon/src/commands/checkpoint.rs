//! `gradmesh checkpoint list | verify | export`

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context, bail};
use gradmesh_compression::{Codec, DenseFormat};
use gradmesh_protocol::hash::Hash;
use gradmesh_trainer::checkpoint::{self, Checkpoint, Provenance};
use gradmesh_trainer::model::Precision;
use gradmesh_trainer::replica::{Outer, Replica, ReplicaConfig};
use serde::Serialize;
use serde_json::json;

use super::{existing_dir, print_json};
use crate::cli::{CheckpointCommand, GlobalArgs};
use crate::terminal::{say, table};

pub(super) fn run(global: &GlobalArgs, command: CheckpointCommand) -> anyhow::Result<()> {
    match command {
        CheckpointCommand::List(json) => list(global, json.json),
        CheckpointCommand::Verify { checkpoint, json } => verify(&checkpoint, json.json),
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

#[derive(Serialize)]
struct Verified {
    parameters: usize,
    /// Root over the weights as they were read; equal to that of the provenance, if there is one.
    state_root: Hash,
    provenance: Option<Provenance>,
}

fn verify(path: &Path, json: bool) -> anyhow::Result<()> {
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
    let verified = Verified {
        parameters: read.theta.len(),
        state_root,
        provenance: read.provenance,
    };
    if json {
        return print_json(&verified);
    }
    let mut text = format!(
        "{}: sound, {} parameters\nroot {state_root}\n",
        path.display(),
        verified.parameters
    );
    match verified.provenance {
        Some(provenance) => text.push_str(&format!(
            "which is the state root after round {} of run {}",
            provenance.round, provenance.run
        )),
        None => text.push_str("not written by gradmesh: it names no run to compare with"),
    }
    say(&text);
    Ok(())
}

/// The state root of a run with the plain outer rule that stands at these weights.
fn weights_root(read: &Checkpoint) -> anyhow::Result<Hash> {
    // The root is over the tiles of theta, whose cut depends on the shapes alone: any codec gives the same.
    let config = ReplicaConfig {
        codec: Codec::Dense(DenseFormat::F32),
        outer: Outer::Plain { rate: 1.0 },
        feedback_beta: 0.0,
        sparse_elements_min: 0,
        tiles_per_shard: NonZeroUsize::MIN,
    };
    let replica = Replica::new(&read.config.parameters(), config, read.theta.clone())?;
    Ok(replica.state_root())
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
    use gradmesh_trainer::model::{self, ModelConfig};

    use super::*;
    use crate::run_file::MODEL_PRESETS;
    use crate::state_dir::StateDir;

    /// A state directory with one checkpoint after round 3, whose provenance names `root` or the right one.
    fn with_checkpoint(root: Option<Hash>) -> (tempfile::TempDir, GlobalArgs) {
        let temp = tempfile::tempdir().unwrap();
        let config = ModelConfig::from_hf_json(MODEL_PRESETS[0].1.as_bytes()).unwrap();
        let mut read = Checkpoint {
            theta: model::init(&config, [1; 32]).unwrap(),
            config,
            provenance: None,
        };
        let root = root.unwrap_or_else(|| weights_root(&read).unwrap());
        read.provenance = Some(Provenance {
            run: Hash::of_content(b"run").to_string(),
            round: 3,
            state_root: root.to_string(),
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
        verify(&source, true).unwrap();
        let target = temp.path().join("exported");
        export(&global, &target, None, true).unwrap();
        verify(&target, false).unwrap();
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
        let error = verify(&StateDir::new(temp.path()).checkpoint(3), true).unwrap_err();
        assert!(
            error.to_string().contains("the weights were changed"),
            "{error}"
        );
    }
}
