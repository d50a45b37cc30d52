//! Where the time of a round goes on this peer.

use std::time::Instant;

use gradmesh_protocol::manifest::RoundId;

use crate::status::RoundSeconds;

/// The instants of the round at hand, each noted once.
#[derive(Debug, Default)]
pub(super) struct Meter {
    round: RoundId,
    started: Option<Instant>,
    committed: Option<Instant>,
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

    /// The own update is out.
    pub(super) fn commit(&mut self) {
        self.committed.get_or_insert_with(Instant::now);
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
        let deciding = self.deciding.unwrap_or(decided).clamp(committed, decided);
        let seconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64();
        let measured = RoundSeconds {
            train: seconds(started, committed),
            exchange: seconds(committed, deciding),
            decide: seconds(deciding, decided),
            apply: seconds(decided, now),
        };
        *self = Meter::default();
        Some(measured)
    }
}
