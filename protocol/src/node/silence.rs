//! Members of which nothing is heard: they are not waited for.
//!
//! A peer that runs says something at least once a heartbeat. One that is frozen, killed or cut off says nothing, whatever its
//! connections look like.
//!
//! Rule `silent-not-waited-for`: a member is silent when nothing that it signed has come for two heartbeats. From the deadline
//! of the updates on, what the other owner of a shard announces counts at once (rule `two-say-so`), the second owner sums at
//! once, and a shard that only silent owners could have is left out. A silent proposer that has proposed nothing is passed by:
//! its attempt ends without the wait for a proposal. Questions are put to others. So a member that stops costs a round the wait
//! for its update, and nothing in addition. What a member says after a silence counts like anything else that it says.
//!
//! Rule `gone-not-waited-for`: a silent member to which there is no connection is gone. Once the updates of all others are here,
//! the deadline is over. An update of one that is only silent is waited for until the deadline, for a link that is full of
//! frames can hold up what its peer says.
//!
//! Rule `who-hears-most`: a peer that does not hear a quorum, itself included, takes nobody to be silent: it is itself that is
//! cut off, or everybody is. And time in which the node was not called, for its machine slept or was overloaded, is no silence.

use std::collections::BTreeSet;
use std::time::Duration;

use super::heartbeat::HEARTBEAT;
use super::{Asking, Node};
use crate::agreement::quorum;
use crate::key::PeerKey;
use crate::manifest::RoundId;
use crate::time::Time;

/// Nothing heard for this long is silence: one heartbeat did not come, and the next is due. A guess: as long as the floor of the
/// deadline that a run file has by default, so that a member that stops with its update just published is silent when the
/// deadline is over.
const SILENCE: Duration = HEARTBEAT.saturating_mul(2);
/// The node is called once a heartbeat at least; a pause that is this long is its own. A guess: shorter than silence, and longer
/// than what a timer on a busy machine is late by.
const PAUSE: Duration = SILENCE.saturating_sub(Duration::from_millis(500));

impl Node {
    /// Notes that the node is called.
    pub(super) fn wake(&mut self, now: Time) {
        if now - self.awake_at > PAUSE {
            self.listening_since = now;
        }
        self.awake_at = now;
    }

    /// Notes that `peer` said something, or has connected.
    pub(super) fn note_heard(&mut self, now: Time, peer: PeerKey) {
        if let Some(state) = self.peer_mut(peer) {
            state.heard = now;
        }
    }

    /// From when on the member is silent if nothing more comes.
    fn silent_from(&self, peer: &PeerKey) -> Time {
        let heard = self.peers.get(peer).map_or(Time::default(), |p| p.heard);
        heard.max(self.listening_since) + SILENCE
    }

    /// The other members of the round.
    fn others(&self) -> impl Iterator<Item = (PeerKey, u64)> + '_ {
        let members = self.roster.members().iter();
        let others = members.filter(|member| member.peer != self.me);
        others.map(|member| (member.peer, u64::from(member.power)))
    }

    /// The members that are silent. Rules `silent-not-waited-for` and `who-hears-most`.
    pub(super) fn silent(&self, now: Time) -> BTreeSet<PeerKey> {
        let silent = self
            .others()
            .filter(|(peer, _)| self.silent_from(peer) <= now);
        let (silent, powers): (BTreeSet<PeerKey>, Vec<u64>) = silent.unzip();
        let heard = self.roster.power() - powers.iter().sum::<u64>();
        if heard < quorum(self.config.manifest.trust.mode, self.roster.power()) {
            return BTreeSet::new();
        }
        silent
    }

    /// Notes when the next member will be silent that is not yet, as long as a round is at hand.
    pub(super) fn note_silence_due(&mut self, now: Time) {
        let waits = self.exchange.is_some() && self.roster.round() != RoundId::FOUNDING;
        let dues = self.others().map(|(peer, _)| self.silent_from(&peer));
        self.silence_due = dues.filter(|due| waits && *due > now).min();
    }

    /// Ends the wait for updates if all that is missing is that of members that are gone. Rule `gone-not-waited-for`.
    pub(super) fn pass_gone(&mut self, now: Time) -> bool {
        let waits = self.exchange.as_ref().filter(|e| e.deadline > now);
        let Some(exchange) = waits.filter(|e| e.round != RoundId::FOUNDING) else {
            return false;
        };
        let mut gone = self.silent(now);
        gone.retain(|peer| !self.is_connected(peer));
        let mut members = self.roster.members().iter().map(|member| member.peer);
        let over = !gone.is_empty()
            && members.all(|peer| gone.contains(&peer) || exchange.has_update_of(&peer));
        if let Some(exchange) = self.exchange.as_mut().filter(|_| over) {
            exchange.deadline = now;
        }
        over
    }

    /// Ends the attempt at hand if its proposer is silent and has proposed nothing. Rule `silent-not-waited-for`.
    pub(super) fn pass_silent_proposer(&mut self, now: Time) -> bool {
        let Some(proposer) = self.agreement.awaited_proposer() else {
            return false;
        };
        let attempt = self.agreement.attempt();
        let mut proposals = self.proposals.iter();
        let proposed = proposals.any(|p| p.round.as_u32() == Some(attempt));
        if proposed || !self.silent(now).contains(&proposer) {
            return false;
        }
        tracing::debug!(proposer = %proposer.short(), attempt, "passed by: nothing is heard of it");
        self.agreement.pass_proposer(now);
        true
    }

    /// Forgets questions that were put to members that are silent: others are asked.
    pub(super) fn ask_others_than_silent(&mut self, now: Time) {
        let silent = self.silent(now);
        if let Some(asking) = self.asking_decisions
            && silent.contains(&asking.peer)
        {
            self.on_request_failed(asking.id);
        }
        let asked_in_vain = |asking: &mut Asking| silent.contains(&asking.peer);
        self.asking_headers.take_if(asked_in_vain);
        self.asking_reductions.take_if(asked_in_vain);
    }
}
