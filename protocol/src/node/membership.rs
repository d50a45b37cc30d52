//! Coming in and going: joins and leaves, one's own and others'.
//!
//! Both are signed by whom they are about and take effect by a decision, never by themselves.

use super::{CHANGES_MAX, Node, Report, StateTask};
use crate::decision::{JOIN_ROUNDS_MAX, Join, Leave};
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::wire::Gossip;

impl Node {
    pub(super) fn on_join(&mut self, from: PeerKey, join: Join) {
        let round = self.decided.unwrap_or_default();
        let fresh = join.round.0 <= round.0.saturating_add(1)
            && round.0 <= join.round.0.saturating_add(JOIN_ROUNDS_MAX / 2);
        let decided_root = match join.round {
            at if Some(at) == self.applied => Some(self.state_root),
            at if at == RoundId::FOUNDING => Some(self.config.genesis_root),
            at => self.decided_root(at),
        };
        let wanted = join.peer == from
            && join.run == self.config.run
            && fresh
            && !self.roster.contains(&from)
            && self.admits(&from);
        if !wanted {
            return;
        }
        if decided_root.is_some_and(|root| root != join.state_root) {
            self.blame(from, "asks to join from another state");
            return;
        }
        let room = self.joins.len() < CHANGES_MAX || self.joins.contains_key(&from);
        let newer = self.joins.get(&from).is_none_or(|j| j.round < join.round);
        if room && newer && join.is_authentic() {
            self.joins.insert(from, join);
        }
    }

    /// A member leaves. Anybody may pass its word on, so one of an earlier membership is not listened to.
    pub(super) fn on_leave_of(&mut self, leave: Leave) {
        let member = self.roster.position(&leave.peer);
        let since = member.map(|place| self.roster.members()[place].since);
        let wanted = leave.run == self.config.run
            && since.is_some_and(|since| since <= leave.round)
            && !self.leaves.contains_key(&leave.peer);
        if wanted && self.leaves.len() < CHANGES_MAX && leave.is_authentic() {
            self.leaves.insert(leave.peer, leave);
        }
    }

    pub(super) fn leave(&mut self) {
        if self.leaving.is_none() {
            let round = self.roster.round();
            let leave = Leave::sign(self.config.run, round, &self.config.keypair);
            self.leaving = Some(leave);
            if self.roster.contains(&self.me) {
                self.leaves.insert(self.me, leave);
                self.broadcast(Gossip::Leave(leave));
            } else {
                self.left = true;
                self.report(Report::Left(round));
            }
        }
    }

    /// Says that this peer is out once it is. Rule `last-one-out`: one whose vote alone was the quorum stays until
    /// another peer has the decision that lets it go; nobody else could have put that together.
    pub(super) fn report_left(&mut self) {
        let handed_over = self.to_hand_over.is_none_or(|round| {
            let mut peers = self.peers.values();
            self.roster.is_empty() || peers.any(|peer| peer.decided >= Some(round))
        });
        let out = self.leaving.is_some() && !self.roster.contains(&self.me);
        if out && handed_over && !self.left {
            self.left = true;
            self.report(Report::Left(self.decided.unwrap_or_default()));
        }
    }

    /// Whether this peer stands where it could take part from the next round on, and does not.
    pub(super) fn may_join(&self) -> bool {
        !self.config.observes
            && self.task == StateTask::Idle
            && self.pending.is_empty()
            && !self.needs_state()
            && self.behind().is_none()
            && self.applied == self.roster.round().previous()
            && !self.roster.contains(&self.me)
            && self.leaving.is_none()
            && !self.finished
            && self.may_be_member()
    }

    pub(super) fn ask_to_join(&mut self) {
        self.join_asked_at = self.applied;
        let round = self.applied.unwrap_or_default();
        let keypair = &self.config.keypair;
        let join = Join::sign(
            self.config.run,
            round,
            self.state_root,
            self.config.link,
            keypair,
        );
        self.broadcast(Gossip::Join(join));
    }
}
