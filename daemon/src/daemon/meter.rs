//! Where the time of a round goes on this peer.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gradmesh_protocol::manifest::RoundId;

use crate::status::RoundSeconds;

/// The instants of the round at hand and, while the next one is trained ahead, of that.
#[derive(Debug, Default)]
pub(super) struct Meter {
    at_hand: Instants,
    ahead: Option<Instants>,
}

/// The instants of a round, each noted once.
#[derive(Debug, Default)]
struct Instants {
    round: RoundId,
    started: Option<Instant>,
    trained: Option<Instant>,
    encoding: Option<Instant>,
    committed: Option<Instant>,
    committed_at: f64,
    deciding: Option<Instant>,
    decided: Option<Instant>,
}

impl Meter {
    /// Training of `round` begins.
    pub(super) fn start(&mut self, round: RoundId) {
        let instants = Instants {
            round,
            started: Some(Instant::now()),
            ..Instants::default()
        };
        if self.at_hand.committed.is_some() && round == self.at_hand.round.next() {
            self.ahead = Some(instants);
        } else {
            self.at_hand = instants;
            self.ahead = None;
        }
    }

    /// Training of `round` ends without an update.
    pub(super) fn stop(&mut self, round: RoundId) {
        self.ahead.take_if(|ahead| ahead.round == round);
    }

    /// The last local step of `round` is done.
    pub(super) fn trained(&mut self, round: RoundId) {
        if let Some(instants) = self.of(round) {
            instants.trained.get_or_insert_with(Instant::now);
        }
    }

    /// The update of `round` may be encoded.
    pub(super) fn encode(&mut self, round: RoundId) {
        if let Some(instants) = self.of(round) {
            instants.encoding.get_or_insert_with(Instant::now);
        }
    }

    /// The own update of `round` is out.
    pub(super) fn commit(&mut self, round: RoundId) {
        if let Some(instants) = self.of(round)
            && instants.committed.is_none()
        {
            instants.committed = Some(Instant::now());
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            instants.committed_at = since.map_or(0.0, |since| since.as_secs_f64());
        }
    }

    /// The roster votes on `round`.
    pub(super) fn deciding(&mut self, round: RoundId) {
        if let Some(instants) = self.of(round) {
            instants.deciding.get_or_insert_with(Instant::now);
        }
    }

    /// `round` is decided.
    pub(super) fn decided(&mut self, round: RoundId) {
        if let Some(instants) = self.of(round) {
            instants.decided.get_or_insert_with(Instant::now);
        }
    }

    fn of(&mut self, round: RoundId) -> Option<&mut Instants> {
        let both = std::iter::once(&mut self.at_hand).chain(&mut self.ahead);
        both.into_iter().find(|instants| instants.round == round)
    }

    /// The round is applied. `None` if this peer did not take part from its start.
    pub(super) fn applied(&mut self, round: RoundId) -> Option<RoundSeconds> {
        let of_round = &self.at_hand;
        let started = of_round.started.filter(|_| of_round.round == round)?;
        let now = Instant::now();
        let decided = of_round.decided.unwrap_or(now);
        // Training that was cut off by the decision ends with it.
        let committed = of_round.committed.unwrap_or(decided).min(decided);
        let trained = of_round.trained.unwrap_or(committed);
        let trained = trained.clamp(started, committed);
        let encoding = of_round.encoding.unwrap_or(trained);
        let encoding = encoding.clamp(trained, committed);
        let deciding = of_round.deciding.unwrap_or(decided);
        let deciding = deciding.clamp(committed, decided);
        let seconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64();
        let ahead = self.ahead.as_ref();
        let hidden = ahead.and_then(|ahead| {
            let from = ahead.started?.max(committed);
            // What is trained already waits for this round.
            Some(seconds(from, ahead.trained.unwrap_or(now).max(from)))
        });
        let measured = RoundSeconds {
            train: seconds(started, trained),
            encode: seconds(encoding, committed),
            exchange: seconds(committed, deciding),
            decide: seconds(deciding, decided),
            apply: seconds(decided, now),
            hidden: hidden.unwrap_or(0.0),
            committed_at: of_round.committed_at,
        };
        self.at_hand = self.ahead.take().unwrap_or_default();
        Some(measured)
    }
}
