//! What a round costs, whoever says so.

use gradmesh_protocol::plan::Plan;

use super::case::Setting;

/// Where figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The nodes themselves, in the simulator.
    Nodes,
    /// Bytes over rates, by what the plan functions say (`flow.rs`).
    Flow,
}

impl Source {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Source::Nodes => "nodes",
            Source::Flow => "flow",
        }
    }
}

/// A round, in which nothing goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    pub(super) source: Source,
    /// What the frames went by.
    pub(super) plan: Plan,
    /// From the end of training until the next one can begin, without overlap.
    pub(super) exchange_s: f64,
    /// Received by a peer, of all messages, as an interface counts them; mean of the peers.
    pub(super) bytes_per_peer: f64,
    /// Received by a peer.
    pub(super) messages_per_peer: f64,
    /// Proposals and votes among them.
    pub(super) decision_messages_per_peer: f64,
}

impl Figures {
    /// With overlap a round takes the longer of training and exchange (`protocol/sim/tests/overlap.rs`: to 5 %), else both.
    pub(super) fn round_s(&self, setting: &Setting) -> f64 {
        if setting.overlap {
            self.exchange_s.max(setting.compute_s)
        } else {
            self.exchange_s + setting.compute_s
        }
    }

    /// The part of a round in which a peer does not train.
    pub(super) fn waiting(&self, setting: &Setting) -> f64 {
        1.0 - setting.compute_s / self.round_s(setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::case::tests_setting;

    #[test]
    fn overlap_hides_an_exchange_that_is_shorter_than_training() {
        let figures = |exchange_s| Figures {
            source: Source::Flow,
            plan: Plan::Gather,
            exchange_s,
            bytes_per_peer: 0.0,
            messages_per_peer: 0.0,
            decision_messages_per_peer: 0.0,
        };
        let in_turn = tests_setting();
        assert_eq!(figures(30.0).round_s(&in_turn), 150.0);
        assert!((figures(30.0).waiting(&in_turn) - 0.2).abs() < 1e-12);
        let ahead = Setting {
            overlap: true,
            ..in_turn
        };
        assert_eq!(figures(30.0).waiting(&ahead), 0.0);
        assert_eq!(figures(240.0).waiting(&ahead), 0.5);
    }
}
