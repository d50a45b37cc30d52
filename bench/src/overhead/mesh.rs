//! gradmesh as users run it: daemons that train real text and exchange over the network at hand.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use gradmesh_trainer::checkpoint;

use super::outcome::{Outcome, Phases, Point, Round};
use super::training::Training;
use crate::harness::daemon::{Seconds, Status};
use crate::harness::mesh::{Mesh, START_PATIENCE};
use crate::harness::network::Network;
use crate::harness::{CodecName, Plan};

/// The longest that a round may take on a busy machine.
const ROUND_PATIENCE: Duration = Duration::from_secs(600);
/// How long a round waits for updates at least: the peers share this machine's cores, and what is measured are whole rounds.
const DEADLINE_MS: u32 = 60_000;
/// The demo's model makes four shards of 240 tiles.
const TILES_PER_SHARD: u32 = 64;

/// How daemons exchange.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Setting {
    pub(super) codec: CodecName,
    pub(super) plan: Plan,
    pub(super) overlap: bool,
}

/// Trains with a daemon at each place of `network`. `rounds` share the steps of `training` evenly. `home`: an empty directory.
pub(super) async fn train(
    setting: Setting,
    training: &Training,
    rounds: u32,
    gradmesh: &Path,
    network: &Network,
    home: &Path,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let run_file = home.join("run.toml");
    fs::write(&run_file, run_file_text(setting, training, rounds)?)?;
    let data = training.data.to_str().context("a path that is no text")?;
    let joining = ["--data", data];
    let mut mesh = Mesh::launch(&run_file, gradmesh, &network.places, home, &joining).await?;
    mesh.wait("the first round", START_PATIENCE, |statuses| {
        statuses.iter().all(|status| status.round >= 1)
    })
    .await?;
    let before = mesh.count();
    let wan_before = network.wan_bytes();
    let mut told = 0;
    let mut statuses = Vec::new();
    while !statuses.iter().all(|status: &Status| status.finished) || statuses.is_empty() {
        let ahead = |statuses: &[Status]| {
            let done = statuses.iter().map(|status| status.history.len()).min();
            statuses.iter().all(|status| status.finished) || done > Some(told)
        };
        statuses = mesh.wait("the next round", ROUND_PATIENCE, ahead).await?;
        told = statuses.iter().map(|s| s.history.len()).min().unwrap_or(0);
        if let Some(last) = statuses[0].history.last() {
            let loss = last.loss_first.unwrap_or(f64::NAN);
            say(&format!("round {told}/{rounds}, loss {loss:.3}"));
        }
    }
    let after = mesh.count();
    let peers = f64::from(training.peers);
    let measured = rounds_of(&statuses, training, rounds)?;
    let checkpoint = statuses[0].checkpoint.as_ref();
    let checkpoint = checkpoint.context("the launcher has written no checkpoint")?;
    let theta = checkpoint::read(&checkpoint.path)?.theta;
    Ok(Outcome {
        held_out: training.material()?.held_out(&theta)?,
        bytes_per_peer: (after.received_bytes - before.received_bytes) / peers,
        wan_bytes: network.wan_bytes_since(&wan_before),
        cpu_s: after.cpu_s - before.cpu_s,
        ..measured
    })
}

fn run_file_text(setting: Setting, training: &Training, rounds: u32) -> anyhow::Result<String> {
    let Training {
        model,
        data,
        peers,
        steps,
        batch_sequences,
        sequence_tokens,
        optimizer,
        seed,
    } = training;
    ensure!(
        steps.is_multiple_of(rounds),
        "{steps} steps cannot be divided among {rounds} rounds"
    );
    let outer = match setting.codec {
        CodecName::Dense(_) => "rule = \"nesterov\"\n",
        CodecName::Sparse { .. } => "rule = \"plain\"\n",
    };
    let steps_per_round = steps / rounds;
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .context("a path that is no text")
    };
    // Strings of TOML and of JSON are written alike.
    let quoted = |path: &Path| anyhow::Ok(serde_json::to_string(&text(path)?)?);
    Ok(format!(
        "name = \"overhead\"\nseed = \"{}\"\n\
         [model]\nconfig = {}\n\
         [data]\ndir = {}\nsequence_tokens = {sequence_tokens}\n\
         [inner]\nbatch_sequences = {batch_sequences}\nlearning_rate = {}\nwarmup_steps = {}\n\
         [outer]\n{outer}\
         [codec]\ntiles_per_shard = {TILES_PER_SHARD}\n{}\
         [exchange]\n{}overlap = {}\n\
         [schedule]\nsteps_per_round = {steps_per_round}\nrounds = {rounds}\nrounds_per_epoch = {rounds}\n\
         [trust]\npeers_min = {peers}\n\
         [timing]\ndeadline_floor_ms = {DEADLINE_MS}\n",
        format!("{seed:02x}").repeat(32),
        quoted(model)?,
        quoted(data)?,
        optimizer.learning_rate,
        optimizer.warmup_steps,
        setting.codec.to_toml(),
        setting.plan.to_toml(),
        u8::from(setting.overlap),
    ))
}

/// What the daemons say of their rounds.
fn rounds_of(statuses: &[Status], training: &Training, rounds: u32) -> anyhow::Result<Outcome> {
    let first = statuses.first().context("no daemon")?;
    let mut curve = Vec::new();
    let mut measured = Vec::new();
    let mut lost_updates = 0;
    let mut began = f64::MAX;
    let mut ended = f64::MIN;
    let mut last_applied: Option<f64> = None;
    let tokens_per_round = training.tokens_per_step() * u64::from(training.steps / rounds);
    for (place, of_first) in first.history.iter().enumerate() {
        lost_updates += training.peers.saturating_sub(of_first.members);
        let seconds: Vec<Seconds> = statuses
            .iter()
            .filter_map(|status| status.round(of_first.round)?.seconds)
            .collect();
        ensure!(
            seconds.len() == statuses.len(),
            "round {}: only {} of {} daemons say where its time went",
            of_first.round,
            seconds.len(),
            statuses.len()
        );
        if place == 0 {
            began = seconds
                .iter()
                .map(Seconds::started_at)
                .fold(began, f64::min);
        }
        let applied = seconds
            .iter()
            .map(Seconds::applied_at)
            .fold(f64::MIN, f64::max);
        let from = last_applied.unwrap_or(began);
        measured.push(Round {
            seconds: applied - from,
            phases: phases(&seconds),
        });
        if let Some(loss) = of_first.loss_first {
            curve.push(Point {
                tokens: place as u64 * tokens_per_round,
                seconds: from - began,
                loss,
            });
        }
        last_applied = Some(applied);
        ended = applied;
    }
    ensure!(!measured.is_empty(), "no round was decided");
    Ok(Outcome {
        curve,
        rounds: measured,
        total_s: ended - began,
        tokens: first.history.len() as u64 * tokens_per_round,
        lost_updates,
        roots_equal: first.history.iter().all(|of_first| {
            let root = |status: &Status| status.round(of_first.round)?.root.clone();
            of_first.root.is_some() && statuses.iter().all(|s| root(s) == of_first.root)
        }),
        ..Outcome::default()
    })
}

/// The mean over the peers. Who commits before the slowest waits for it; the rest of its exchange is transfer.
fn phases(seconds: &[Seconds]) -> Phases {
    let committed = seconds
        .iter()
        .map(|s| s.committed_at)
        .fold(f64::MIN, f64::max);
    let mean =
        |of: &dyn Fn(&Seconds) -> f64| seconds.iter().map(of).sum::<f64>() / seconds.len() as f64;
    let wait = |s: &Seconds| (committed - s.committed_at).min(s.exchange);
    Phases {
        train: mean(&|s| s.train),
        encode: mean(&|s| s.encode),
        wait: mean(&wait),
        transfer: mean(&|s| s.exchange - wait(s)),
        decide: mean(&|s| s.decide),
        apply: mean(&|s| s.apply),
        hidden: mean(&|s| s.hidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(committed_at: f64, train: f64, exchange: f64) -> Seconds {
        Seconds {
            train,
            encode: 0.5,
            exchange,
            decide: 0.25,
            apply: 0.25,
            hidden: 0.0,
            committed_at,
        }
    }

    #[test]
    fn waiting_for_the_slowest_is_told_apart_from_transfer() {
        let phases = phases(&[seconds(10.0, 4.0, 3.0), seconds(12.0, 6.0, 1.0)]);
        assert_eq!((phases.train, phases.encode), (5.0, 0.5));
        assert_eq!((phases.wait, phases.transfer), (1.0, 1.0));
    }
}
