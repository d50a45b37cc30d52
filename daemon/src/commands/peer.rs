//! What `launch` and `join` share: run the daemon until a signal, tell its contact once it is known.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::join::Part;
use super::print_json;
use crate::daemon::address::Connection;
use crate::daemon::{self, DaemonOptions, Role};
use crate::machine::Machine;
use crate::state_dir::StateDir;
use crate::status::{Status, client};
use crate::subnet::Access;
use crate::terminal::say;

/// How often a starting daemon is asked whether its ticket is ready; people do not notice less.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Runs the daemon in `dir` until it ends or a signal stops it. A second signal ends the process at once.
pub(super) async fn run_daemon(
    dir: StateDir,
    role: Role,
    settings: Machine,
    chain: Option<Access>,
    exit_when_finished: bool,
    json: bool,
    part: Part,
) -> anyhow::Result<()> {
    let launches = matches!(role, Role::Launch { .. });
    let connection = Connection {
        link: settings.link(&super::keypair(&dir)?.public()),
        capacity_is_set: settings.capacity_mbit.is_some(),
        finds_site: settings.finds_site(),
    };
    let options = DaemonOptions {
        dir: dir.path().to_owned(),
        listen: settings.listen,
        bulk_listen: settings.bulk_listen,
        status_listen: settings.status_listen,
        threads: settings.threads,
        device: settings.device,
        connection,
        role,
        chain,
        exit_when_finished,
        validates: part.validates,
        guise: part.guise,
    };
    let (stop, stopped) = watch::channel(false);
    watch_signals(stop)?;
    let announced = tokio::spawn(announce(dir, launches, json));
    let result = daemon::run(options, stopped).await;
    announced.abort();
    result
}

/// SIGINT or SIGTERM: stop gracefully; the second one: at once.
fn watch_signals(stop: watch::Sender<bool>) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send_replace(true) {
                eprintln!("stopped at once");
                std::process::exit(1);
            }
            eprintln!("stopping; once more stops at once");
        }
    });
    Ok(())
}

#[derive(Serialize)]
struct Announcement {
    run: String,
    name: String,
    ticket: Option<String>,
    status: String,
    dir: PathBuf,
}

/// Prints how to reach the run and its status page, once this process's daemon knows.
async fn announce(dir: StateDir, launches: bool, json: bool) {
    let (url, status) = contact(&dir, launches).await;
    let announcement = Announcement {
        run: status.identity.run,
        name: status.identity.name,
        ticket: status.ticket,
        status: url,
        dir: dir.path().to_owned(),
    };
    if json {
        if let Err(error) = print_json(&announcement) {
            tracing::warn!(%error, "cannot announce the run");
        }
        return;
    }
    let mut text = format!(
        "run: {} ({})\nstate: {}\nstatus: {}\n",
        announcement.name,
        announcement.run,
        announcement.dir.display(),
        announcement.status
    );
    if let Some(ticket) = announcement.ticket {
        text.push_str(&format!(
            "ticket: {ticket}\nothers join with: gradmesh join TICKET\n"
        ));
    }
    say(&text);
}

async fn contact(dir: &StateDir, launches: bool) -> (String, Status) {
    loop {
        let address = dir.status_address().ok().flatten();
        // Until this daemon's server listens, the file may be that of an earlier one.
        if let Some(address) = address.filter(|address| address.pid == std::process::id())
            && let Ok(status) = client::status(&address.url).await
            && !status.identity.run.is_empty()
            && (!launches || status.ticket.is_some())
        {
            return (address.url, status);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
