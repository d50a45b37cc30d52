//! `gradmesh demo`: one run with several peers on this machine, as real processes over real sockets.
//!
//! Each peer is this same executable with its own state directory, key and ports; the first launches, the others join by
//! its ticket. Figures come from the peers' status servers and nowhere else. Every process ends with the demo, whichever
//! way that ends.

mod chain;
mod peer;
mod progress;
mod summary;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use gradmesh_trainer::adversary::Kind;

use crate::cli::DemoArgs;
use crate::corpus;
use crate::machine::cores;
use crate::run_file::{self, LoadedRunFile, RunFile};
use crate::status::{ChainStatus, Status};
use crate::terminal::say;
use chain::DemoChain;
use peer::Peer;
use progress::Progress;
use summary::{Cheat, Summary};

/// The run of the demo: the one place for its figures.
const RUN_FILE: &str = include_str!("../assets/demo.toml");

/// How often the peers are asked: faster than the shortest round, far slower than what it costs.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How long a killed peer stays away: two rounds or more, so that its absence shows.
const RESUME_AFTER: Duration = Duration::from_secs(15);
/// Blocks between two looks at who is registered: every second.
const SNAPSHOT_BLOCKS: u32 = 4;
/// How long nothing may change before the demo gives up: several times the longest deadline of its run file.
const STALL_MAX: Duration = Duration::from_secs(300);

/// Runs the demo.
///
/// # Errors
/// What happened and what to do, also when state roots differ; a failing peer's last lines are in it.
pub async fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let out = out_dir(args.out.as_deref())?;
    let told = tokio::select! {
        told = train(args, &out) => told,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    let summary = told.with_context(|| {
        format!(
            "the demo was broken off; logs and state are in {}",
            out.display()
        )
    })?;
    let json = serde_json::to_string_pretty(&summary).context("the summary is no JSON")?;
    match args.json.as_deref() {
        Some(file) if file == Path::new("-") => say(&json),
        Some(file) => {
            fs::write(file, json + "\n")
                .with_context(|| format!("--json {}: cannot be written", file.display()))?;
            say(&summary.text(&out));
        }
        None => say(&summary.text(&out)),
    }
    ensure!(
        summary.roots_equal,
        "state roots differ between peers, which must never be; please keep {} and report it",
        out.display()
    );
    Ok(())
}

/// Everything from the empty directory to the summary. The peers end when this future does.
async fn train(args: &DemoArgs, out: &Path) -> anyhow::Result<Summary> {
    let quiet = args.json.as_deref() == Some(Path::new("-"));
    let started = Instant::now();
    let mut progress = Progress::new(args.peers, quiet);
    progress.say(&format!(
        "demo: {} peers and a validator, everything goes to {}",
        args.peers,
        out.display()
    ));
    let data = data_dir(args.data.as_deref(), out, &progress).await?;
    let run_file = write_run_file(args, out, &data)?;
    let cheat = (args.cheat != Kind::None && args.peers > 1).then(|| args.peers - 1);
    let chain = match args.no_chain {
        true => None,
        false => Some(DemoChain::start(out, args.peers, &progress).await?),
    };
    let paying = |number| {
        chain
            .as_ref()
            .map_or(Vec::new(), |chain| chain.paying_flags(number))
    };

    // The cores are shared; a peer with more threads than its share only makes the others wait.
    let threads = (cores() / args.peers as usize).max(1);
    let mut peers = vec![Peer::launch(out, &run_file, threads, &paying(0))?];
    let ticket = wait_for_launch(&mut peers[0], chain.is_some()).await?;
    let way = match &chain {
        Some(chain) => vec!["--netuid".to_owned(), chain.netuid().to_string()],
        None => vec![ticket],
    };
    for number in 1..args.peers {
        let flags = paying(number);
        peers.push(match cheat {
            Some(cheat) if cheat == number => {
                progress.say(&format!("peer {number} cheats: {}", args.cheat));
                Peer::cheat(out, number, args.cheat, &way, threads, &flags)?
            }
            _ => Peer::join(out, number, &way, threads, &flags)?,
        });
    }
    let validator = args.peers;
    peers.push(Peer::validate(
        out,
        validator,
        &way,
        threads,
        &paying(validator),
    )?);
    if let Some(chain) = &chain {
        chain.stake(&progress).await?;
    }
    let statuses = watch(&mut peers, &mut progress, |number| {
        let flags = chain
            .as_ref()
            .map_or(Vec::new(), |chain| chain.flags(number));
        match (number, cheat) {
            (number, _) if number == validator => Peer::validate(out, number, &[], threads, &flags),
            (number, Some(cheat)) if number == cheat => {
                Peer::cheat(out, number, args.cheat, &[], threads, &flags)
            }
            (number, _) => Peer::resume(out, number, threads, &flags),
        }
    })
    .await?;
    let emission = match &chain {
        Some(chain) => chain.emission(cheat, &progress).await?,
        None => BTreeMap::new(),
    };
    progress.finish();
    let wall = started.elapsed();
    for peer in &mut peers {
        peer.stop().await;
    }
    let cheat = cheat.map(|number| Cheat {
        number,
        kind: args.cheat,
        hotkey: chain.as_ref().and_then(|chain| chain.hotkey(number)),
    });
    Summary::of(&statuses, wall, emission, cheat, out)
        .context("the peers finished without telling all that was asked")
}

/// A new or empty directory: `chosen`, or one in the user's data directory.
fn out_dir(chosen: Option<&Path>) -> anyhow::Result<PathBuf> {
    let dir = match chosen {
        Some(dir) => dir.to_owned(),
        None => {
            let base = directories::ProjectDirs::from("", "", "gradmesh")
                .map_or_else(std::env::temp_dir, |dirs| dirs.data_dir().join("demos"));
            let since_1970 = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            base.join(format!("{}-{}", since_1970.as_secs(), std::process::id()))
        }
    };
    let failed = || {
        format!(
            "demo directory {}: cannot be made; choose another with --out",
            dir.display()
        )
    };
    fs::create_dir_all(&dir).with_context(failed)?;
    let mut entries = fs::read_dir(&dir).with_context(failed)?;
    if entries.next().is_some() {
        bail!(
            "demo directory {} is not empty: choose a new one with --out",
            dir.display()
        );
    }
    std::path::absolute(&dir).with_context(failed)
}

/// The directory of training text: the operator's, or a corpus made of the cargo registry.
async fn data_dir(
    chosen: Option<&Path>,
    out: &Path,
    progress: &Progress,
) -> anyhow::Result<PathBuf> {
    if let Some(data) = chosen {
        return std::path::absolute(data).with_context(|| format!("--data {}", data.display()));
    }
    let data = out.join("data");
    let target = data.clone();
    let build = move || corpus::build(&corpus::registry(), &target, corpus::BUDGET_BYTES);
    let facts = tokio::task::spawn_blocking(build)
        .await
        .context("making the corpus was broken off")??;
    progress.say(&format!(
        "data: {} of source text from {} crates of the local cargo registry",
        crate::terminal::bytes(facts.bytes),
        facts.crates
    ));
    Ok(data)
}

/// Writes the run file of this demo, which is one that `gradmesh launch` takes, and checks it.
fn write_run_file(args: &DemoArgs, out: &Path, data: &Path) -> anyhow::Result<PathBuf> {
    let mut run: RunFile = toml::from_str(RUN_FILE).context("the demo's run file")?;
    run.data.dir = data.to_owned();
    run.trust.peers_min = args.peers;
    if !args.no_chain {
        run.chain = run_file::Chain::Subnet(run_file::Subnet {
            snapshot_blocks: SNAPSHOT_BLOCKS,
            ..run_file::Subnet::default()
        });
    }
    run.trust.peers_max = run.trust.peers_max.max(args.peers);
    if let Some(rounds) = args.rounds {
        run.schedule.rounds = rounds;
        // Two epochs at least, if there are two rounds.
        let half = u32::try_from(rounds / 2).unwrap_or(u32::MAX).max(1);
        run.schedule.rounds_per_epoch = run.schedule.rounds_per_epoch.min(half);
    }
    let path = out.join("run.toml");
    let text = toml::to_string(&run).context("the demo's run file")?;
    fs::write(&path, text).with_context(|| format!("{}: cannot be written", path.display()))?;
    LoadedRunFile::load(&path)?;
    Ok(path)
}

/// The launcher's ticket, once it has one and, with a chain, once others find the run there.
async fn wait_for_launch(launcher: &mut Peer, on_chain: bool) -> anyhow::Result<String> {
    let started = Instant::now();
    loop {
        launcher.check_alive()?;
        let status = launcher.status().await;
        let found = |status: &Status| {
            let chain = status.chain.as_ref();
            let axon = |chain: &ChainStatus| chain.own().is_some_and(|own| own.peer.is_some());
            chain.is_some_and(|chain| chain.attested.is_some() && axon(chain))
        };
        let ready = status.filter(|status| !on_chain || found(status));
        if let Some(ticket) = ready.and_then(|status| status.ticket) {
            return Ok(ticket);
        }
        if started.elapsed() > STALL_MAX {
            bail!(
                "the launcher launched nothing within {} s:\n{}",
                STALL_MAX.as_secs(),
                launcher.last_lines()
            );
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Shows what the peers do until all are finished; their last statuses, in the order of the peers.
///
/// A joiner that somebody kills is started again by `resume` after a while, so that both can be seen: that the others go
/// on, and that it comes back. The launcher has new ports after a restart, which the others do not know: its end is that
/// of the demo.
async fn watch(
    peers: &mut [Peer],
    progress: &mut Progress,
    resume: impl Fn(u32) -> anyhow::Result<Peer>,
) -> anyhow::Result<Vec<Status>> {
    let mut killed: Vec<Option<Instant>> = vec![None; peers.len()];
    let mut newest: Vec<Option<Status>> = vec![None; peers.len()];
    let mut changed = Instant::now();
    let mut seen = None;
    loop {
        for ((peer, newest), killed) in peers.iter_mut().zip(&mut newest).zip(&mut killed) {
            if peer.number() > 0
                && let Some(signal) = peer.killed_by()
            {
                let since = *killed.get_or_insert_with(|| {
                    progress.say(&format!(
                        "peer {} was killed (signal {signal}): the others go on, it starts again in {} s",
                        peer.number(),
                        RESUME_AFTER.as_secs()
                    ));
                    Instant::now()
                });
                *newest = None;
                if since.elapsed() >= RESUME_AFTER {
                    *peer = resume(peer.number())?;
                    *killed = None;
                    progress.say(&format!("peer {} starts again", peer.number()));
                }
                continue;
            }
            peer.check_alive()?;
            if let Some(status) = peer.status().await {
                *newest = Some(status);
            }
        }
        progress.show(&newest);
        let done: Option<Vec<Status>> = newest
            .iter()
            .map(|status| status.clone().filter(is_done))
            .collect();
        if let Some(done) = done {
            return Ok(done);
        }
        let state: Vec<_> = newest
            .iter()
            .map(|status| status.as_ref().map(|s| (s.round, s.phase, s.applied)))
            .collect();
        if seen.as_ref() != Some(&state) {
            seen = Some(state);
            changed = Instant::now();
        } else if changed.elapsed() > STALL_MAX {
            bail!(
                "nothing moved for {} s:\n{}",
                STALL_MAX.as_secs(),
                progress::words(&newest).join("\n")
            );
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Whether a peer has applied the last round, written its checkpoint, and attested it if the run has a chain; a validator also
/// whether it has audited everything.
fn is_done(status: &Status) -> bool {
    let attested = status.chain.is_none() || chain::is_attested(status);
    let validates = status.audit.as_ref().is_some_and(|audit| audit.validates);
    let settled = !validates
        || status
            .audit
            .as_ref()
            .is_some_and(|audit| audit.open_rounds == 0);
    attested
        && settled
        && status.finished
        && status
            .checkpoint
            .as_ref()
            .is_some_and(|checkpoint| checkpoint.round >= status.identity.rounds)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(words: &str) -> DemoArgs {
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        match cli.command {
            Command::Demo(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_run_file_follows_the_flags_and_is_one_that_launch_takes() {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("text");
        fs::create_dir(&data).unwrap();
        for (words, peers, rounds) in [
            ("gradmesh demo", 4, None),
            ("gradmesh demo --peers 2 --rounds 3", 2, Some(3)),
            ("gradmesh demo --peers 16 --rounds 50", 16, Some(50)),
        ] {
            let path = write_run_file(&args(words), temp.path(), &data).unwrap();
            let loaded = LoadedRunFile::load(&path).unwrap();
            assert_eq!(loaded.file.trust.peers_min, peers, "{words}");
            assert_eq!(loaded.data_dir, data);
            if let Some(rounds) = rounds {
                assert_eq!(loaded.file.schedule.rounds, rounds, "{words}");
            }
        }
    }

    #[test]
    fn the_model_of_the_demo_has_about_a_million_parameters() {
        let temp = tempfile::tempdir().unwrap();
        let path = write_run_file(&args("gradmesh demo"), temp.path(), temp.path()).unwrap();
        let loaded = LoadedRunFile::load(&path).unwrap();
        let parameters: usize = loaded.model.parameters().iter().map(|p| p.elements()).sum();
        assert_eq!(parameters, 955_776);
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let new = temp.path().join("new");
        assert_eq!(out_dir(Some(&new)).unwrap(), new);
        let error = out_dir(Some(temp.path())).unwrap_err();
        assert!(error.to_string().contains("--out"), "{error}");
    }
}
