//! Where the time of a round goes on this peer.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gradmesh_protocol::manifest::RoundId;

use crate::status::RoundSeconds;

/// The instants of the round at hand, each noted once.
#[derive(Debug, Default)]
pub(super) struct Meter {
    round: RoundId,
    started: Option<Instant>,
    trained: Option<Instant>,
    committed: Option<Instant>,
    committed_at: f64,
    deciding: Option<Instant>,
    decided: Option<Instant>,
}

impl Meter {
    /// Training of `round` begins.
    pub(super) fn start(&mut self, round: RoundId) {
        *self = Meter {
            round,
            started: Some(Instant::now()),
            ..Meter::default()
        };
    }

    /// The last local step is done.
    pub(super) fn trained(&mut self) {
        self.trained.get_or_insert_with(Instant::now);
    }

    /// The own update is out.
    pub(super) fn commit(&mut self) {
        if self.committed.is_none() {
            self.committed = Some(Instant::now());
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            self.committed_at = since.map_or(0.0, |since| since.as_secs_f64());
        }
    }

    /// The roster votes.
    pub(super) fn deciding(&mut self) {
        self.deciding.get_or_insert_with(Instant::now);
    }

    /// The round is decided.
    pub(super) fn decided(&mut self) {
        self.decided.get_or_insert_with(Instant::now);
    }

    /// The round is applied. `None` if this peer did not take part from its start.
    pub(super) fn applied(&mut self, round: RoundId) -> Option<RoundSeconds> {
        let started = self.started.filter(|_| self.round == round)?;
        let now = Instant::now();
        let decided = self.decided.unwrap_or(now);
        // Training that was cut off by the decision ends with it.
        let committed = self.committed.unwrap_or(decided).min(decided);
        let trained = self.trained.unwrap_or(committed).clamp(started, committed);
        let deciding = self.deciding.unwrap_or(decided).clamp(committed, decided);
        let seconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64();
        let measured = RoundSeconds {
            train: seconds(started, trained),
            encode: seconds(trained, committed),
            exchange: seconds(committed, deciding),
            decide: seconds(deciding, decided),
            apply: seconds(decided, now),
            committed_at: self.committed_at,
        };
        *self = Meter::default();
        Some(measured)
    }
}
