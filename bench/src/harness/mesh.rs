//! Daemons of one run, each at its place, started and watched as a person would.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::daemon::{Daemon, Status};
use super::network::{Place, received};
use super::process::Process;

/// How often daemons are asked where they are. When something happened they say themselves, so that looking more often would only
/// take time from them: a look costs a daemon and this process some 0.8 ms.
const LOOK: Duration = Duration::from_millis(250);
/// The longest that a mesh may take to come together: states of some hundred MB are made and hashed.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(180);

/// Running daemons of one run.
pub(crate) struct Mesh {
    daemons: Vec<Daemon>,
}

/// Counters of a mesh at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) cpu_s: f64,
    /// Of all peers' interfaces.
    pub(crate) received_bytes: f64,
}

impl Mesh {
    /// Starts a daemon at each place: the first launches `run_file`, the others join with its ticket and `joining`, more words of
    /// the command line. They write below `home`.
    pub(crate) async fn launch(
        run_file: &Path,
        gradmesh: &Path,
        places: &[Place],
        home: &Path,
        joining: &[&str],
    ) -> anyhow::Result<Mesh> {
        let run_file = run_file.to_str().context("a path that is no text")?;
        let [first, others @ ..] = places else {
            bail!("a mesh without peers");
        };
        let launcher = Daemon::start(gradmesh, 0, first, home, &["launch", run_file])?;
        let mut mesh = Mesh {
            daemons: vec![launcher],
        };
        let statuses = mesh
            .wait("a ticket", START_PATIENCE, |statuses| {
                statuses.iter().all(|status| status.ticket.is_some())
            })
            .await?;
        let ticket = statuses.into_iter().find_map(|status| status.ticket);
        let ticket = ticket.context("no ticket")?;
        for (number, place) in others.iter().enumerate() {
            let words = [&["join", &ticket], joining].concat();
            let joiner = Daemon::start(gradmesh, number + 1, place, home, &words)?;
            mesh.daemons.push(joiner);
        }
        Ok(mesh)
    }

    pub(crate) fn peers(&self) -> usize {
        self.daemons.len()
    }

    pub(crate) fn count(&self) -> Count {
        let daemons = || self.daemons.iter();
        Count {
            cpu_s: daemons().map(|daemon| daemon.process.cpu_s()).sum(),
            received_bytes: received(daemons().map(|d| (&d.place, d.process.id()))),
        }
    }

    /// Of the daemon with most.
    pub(crate) fn most_of(&self, bytes: fn(&Process) -> u64) -> u64 {
        let of_daemons = self.daemons.iter().map(|daemon| bytes(&daemon.process));
        of_daemons.max().unwrap_or(0)
    }

    /// Waits until all daemons answer and `done` holds of what they say.
    pub(crate) async fn wait(
        &mut self,
        what: &str,
        patience: Duration,
        mut done: impl FnMut(&[Status]) -> bool,
    ) -> anyhow::Result<Vec<Status>> {
        let began = Instant::now();
        let mut seen = Vec::new();
        loop {
            let statuses = self.look().await?;
            if statuses.len() == self.daemons.len() {
                if done(&statuses) {
                    return Ok(statuses);
                }
                seen = statuses;
            }
            if began.elapsed() > patience {
                let words: Vec<String> = seen.iter().map(Status::words).collect();
                bail!(
                    "waited {} s in vain for {what}; the peers: {}",
                    patience.as_secs(),
                    words.join("; ")
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The statuses of those that answer.
    pub(crate) async fn look(&mut self) -> anyhow::Result<Vec<Status>> {
        let mut statuses = Vec::with_capacity(self.daemons.len());
        for daemon in &mut self.daemons {
            daemon.process.check_alive()?;
            statuses.extend(daemon.status().await);
        }
        Ok(statuses)
    }
}
