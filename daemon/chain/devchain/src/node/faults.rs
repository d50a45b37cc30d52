//! What a test can make go wrong, on request: over RPC ([`super::rpc::dev`]) or on the handle.
//!
//! All faults are off at first. Each is a setting that holds until it is taken back or used up; none of them touches a
//! `dev_*` call, so that what was set over RPC can be taken back over RPC, except refused connections, which end by
//! themselves.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Longest time that replies are delayed or connections refused.
pub const FAULT_MS_MAX: u64 = 600_000;

/// When the connection of a submission is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropAt {
    /// The extrinsic is lost: it never gets into the pool.
    BeforePool,
    /// The extrinsic is in the pool, the client does not hear of it.
    AfterPool,
}

/// How a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The handshake is answered 429 Too Many Requests.
    TooManyRequests,
    /// The handshake is answered 403 Forbidden.
    Forbidden,
    /// The connection is closed without an answer.
    Close,
}

/// The faults that are on.
#[derive(Debug, Default)]
struct Settings {
    drop_submission: Option<DropAt>,
    stale_blocks: u32,
    delay: Duration,
    refused: Option<(Refusal, Instant)>,
}

/// The faults of a node, and the connections that they hit.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    settings: Mutex<Settings>,
    connections: Mutex<HashMap<u64, watch::Sender<Option<Instant>>>>,
}

impl Faults {
    /// Drops the connection of the next submission.
    pub(crate) fn drop_next_submission(&self, at: Option<DropAt>) {
        self.settings().drop_submission = at;
    }

    /// The fault of a submission that has just come in. Used up by being asked for.
    pub(crate) fn take_drop(&self) -> Option<DropAt> {
        self.settings().drop_submission.take()
    }

    /// Serves reads and heads as they were `blocks` blocks ago.
    pub(crate) fn set_stale(&self, blocks: u32) {
        self.settings().stale_blocks = blocks;
    }

    pub(crate) fn stale_blocks(&self) -> u32 {
        self.settings().stale_blocks
    }

    /// Delays each reply by `ms`, at most [`FAULT_MS_MAX`].
    pub(crate) fn set_delay(&self, ms: u64) {
        self.settings().delay = Duration::from_millis(ms.min(FAULT_MS_MAX));
    }

    pub(crate) fn delay(&self) -> Duration {
        self.settings().delay
    }

    /// Refuses new connections for `ms` from now on, at most [`FAULT_MS_MAX`]; 0 takes it back.
    pub(crate) fn refuse_connections(&self, refusal: Refusal, ms: u64) {
        self.settings().refused = Some((
            refusal,
            Instant::now() + Duration::from_millis(ms.min(FAULT_MS_MAX)),
        ));
    }

    /// How a connection that comes now is refused, if it is.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.settings()
            .refused
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(refusal, _)| refusal)
    }

    /// Notes a new connection. It has to end at the time that the receiver tells.
    pub(crate) fn connected(&self, id: u64) -> watch::Receiver<Option<Instant>> {
        let (cut, cut_seen) = watch::channel(None);
        self.connections().insert(id, cut);
        cut_seen
    }

    /// Notes that a connection is gone.
    pub(crate) fn disconnected(&self, id: u64) {
        self.connections().remove(&id);
    }

    /// Connections that are open now.
    pub(crate) fn connections_open(&self) -> usize {
        self.connections().len()
    }

    /// Cuts a connection after `wait`: neither side's bytes get through any more.
    pub(crate) fn cut_after(&self, id: u64, wait: Duration) {
        if let Some(connection) = self.connections().get(&id) {
            connection.send_replace(Some(Instant::now() + wait));
        }
    }

    /// Cuts all connections but `spared`, and tells how many.
    pub(crate) fn cut_all(&self, spared: Option<u64>) -> usize {
        let now = Instant::now();
        let connections = self.connections();
        let mut cut = 0;
        for (_, connection) in connections.iter().filter(|(id, _)| Some(**id) != spared) {
            connection.send_replace(Some(now));
            cut += 1;
        }
        cut
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<Option<Instant>>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
