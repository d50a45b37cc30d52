//! `gradmesh checkpoint list | verify | export`

use std::path::Path;

use anyhow::{Context, bail};
use gradmesh_trainer::checkpoint::{self, Checkpoint, Provenance};
use gradmesh_trainer::model::Precision;
use serde::Serialize;
use serde_json::json;

use super::{existing_dir, print_json};
use crate::cli::{CheckpointCommand, GlobalArgs};
use crate::terminal::table;

pub(super) async fn run(global: &GlobalArgs, command: CheckpointCommand) -> anyhow::Result<()> {
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
        println!("no checkpoint yet in {}", dir.checkpoints().display());
        return Ok(());
    }
    let rows: Vec<_> = found
        .iter()
        .map(|(round, path)| vec![path.display().to_string(), round.to_string()])
        .collect();
    print!("{}", table(&["checkpoint", "round"], &rows));
    Ok(())
}

#[derive(Serialize)]
struct Verified<'a> {
    parameters: usize,
    provenance: &'a Option<Provenance>,
}

fn verify(path: &Path, json: bool) -> anyhow::Result<()> {
    let Checkpoint {
        theta, provenance, ..
    } = checkpoint::read(path)?;
    if json {
        return print_json(&Verified {
            parameters: theta.len(),
            provenance: &provenance,
        });
    }
    println!("{}: sound, {} parameters", path.display(), theta.len());
    match provenance {
        Some(provenance) => println!(
            "run {}\nround {}\nstate root {}",
            provenance.run, provenance.round, provenance.state_root
        ),
        None => println!("not written by gradmesh: it names no run and no state root"),
    }
    Ok(())
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
        let what = round.map_or("no checkpoint".to_owned(), |r| {
            format!("no checkpoint of round {r}")
        });
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
        println!(
            "checkpoint after round {round} copied to {}",
            target.display()
        );
        Ok(())
    }
}
