//! What members say of their links after they joined, one's own and others', by the rules of [`crate::capacity`].

use super::{Node, StateTask};
use crate::capacity::{CapacityChange, may_change};
use crate::decision::JOIN_ROUNDS_MAX;
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::wire::Gossip;

impl Node {
    /// Another member's link carries something else. One entry for each member is kept: its newest.
    pub(super) fn on_capacity(&mut self, from: PeerKey, change: CapacityChange) {
        let round = self.decided.unwrap_or_default();
        let fresh = change.round.0 <= round.0.saturating_add(1)
            && round.0 <= change.round.0.saturating_add(JOIN_ROUNDS_MAX / 2);
        let newer = self
            .capacities
            .get(&from)
            .is_none_or(|known| known.round < change.round);
        let wanted = change.peer == from
            && change.run == self.config.run
            && fresh
            && newer
            && self.roster.contains(&from);
        if wanted && change.is_authentic() {
            self.capacities.insert(from, change);
        }
    }

    /// Says, once for each round that it stands at, that this peer's link carries something else than the roster has.
    pub(super) fn say_capacity(&mut self) {
        let applied = self.applied.unwrap_or_default();
        let said = self.capacities.get(&self.me);
        if said.is_some_and(|change| change.round == applied) || !self.capacity_is_due() {
            return;
        }
        let capacity = self.config.link.capacity;
        let change = CapacityChange::sign(self.config.run, applied, capacity, &self.config.keypair);
        self.capacities.insert(self.me, change);
        self.broadcast(Gossip::Capacity(change));
    }

    /// Says again what is not decided yet.
    pub(super) fn say_capacity_again(&mut self) {
        if let Some(change) = self.capacities.get(&self.me).copied()
            && self.capacity_is_due()
        {
            self.broadcast(Gossip::Capacity(change));
        }
    }

    /// Whether this peer stands in the round at hand, as a member with another capacity than its link has now.
    fn capacity_is_due(&self) -> bool {
        let round = self.roster.round();
        self.applied == round.previous()
            && self.task == StateTask::Idle
            && !self.finished
            && self.leaving.is_none()
            && self
                .roster
                .member(&self.me)
                .is_some_and(|me| may_change(me, self.config.link.capacity, round))
    }

    /// The changes that a decision of the round at hand may take in, sorted by key.
    pub(super) fn due_capacities(&self) -> impl Iterator<Item = &CapacityChange> {
        let changes = self.capacities.values();
        changes.filter(|change| change.suits(&self.roster))
    }

    /// Forgets changes that no later decision can take in.
    pub(super) fn drop_capacities(&mut self, decided: RoundId) {
        let roster = &self.roster;
        self.capacities.retain(|peer, change| {
            let member = roster.member(peer);
            decided.0 < change.round.0.saturating_add(JOIN_ROUNDS_MAX)
                && member.is_some_and(|member| member.capacity_since <= change.round)
        });
    }
}
