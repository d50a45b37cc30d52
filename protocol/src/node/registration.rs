//! What this peer knows of the registry of a chain run, and what follows: whom it listens to, what it proposes, what it
//! votes for. The rules stand in [`crate::registry`].
//!
//! Rule `members-and-registered`: in a chain run a peer that is neither a member nor in any snapshot that is kept here has
//! no room: its joins and early headers are dropped without blame (it may have read a newer block), and the driver serves
//! it no frames and no states. What is small it may ask for, like anybody: the manifest, decisions, contacts.

use super::voting::Verdict;
use super::{Node, Report};
use crate::decision::Decision;
use crate::key::PeerKey;
use crate::manifest::{Chain, Manifest, RoundId};
use crate::registry::{QUIET_ATTEMPT, Registry};
use crate::roster::Roster;

/// What a proposer goes by when it changes the membership.
pub(super) enum Basis<'a> {
    /// A run without a chain.
    Anybody,
    /// A chain run in which nothing can be changed now.
    Nobody,
    /// A snapshot.
    Registered(&'a Registry),
}

impl Basis<'_> {
    /// Whether the proposer lets `peer` join.
    pub(super) fn admits(&self, peer: &PeerKey) -> bool {
        match self {
            Basis::Anybody => true,
            Basis::Nobody => false,
            Basis::Registered(registry) => registry.power_of(peer).is_some(),
        }
    }

    /// `decision` with what has to change by the snapshot.
    pub(super) fn complete(
        &self,
        mut decision: Decision,
        roster: &Roster,
        manifest: &Manifest,
    ) -> Decision {
        if let Basis::Registered(registry) = self {
            decision.powers = registry
                .changes(roster, &decision, manifest)
                .expect("only registered peers are let in");
            decision.registry = (!decision.powers.is_empty()).then(|| registry.mark());
        }
        decision
    }
}

impl Node {
    pub(super) fn on_registry(&mut self, registry: Registry) {
        let block = registry.mark().block;
        let registered = registry.power_of(&self.me).is_some();
        let chain = &self.config.manifest.chain;
        if let Err(refusal) = self.snapshots.insert(registry, chain) {
            tracing::warn!(%refusal, "snapshot of the registry not taken in");
            return;
        }
        if !registered && self.registered != Some(false) {
            self.report(Report::NotRegistered { block });
        }
        self.registered = Some(registered);
        let snapshots = &self.snapshots;
        self.joins.retain(|peer, _| snapshots.any_has(peer));
    }

    /// Whether `peer` may take part, by rule `members-and-registered`: for drivers, before they serve frames or states.
    pub fn admits(&self, peer: &PeerKey) -> bool {
        match self.config.manifest.chain {
            Chain::None => true,
            Chain::Subnet(_) => self.roster.contains(peer) || self.snapshots.any_has(peer),
        }
    }

    /// Whether this peer may be in a roster, as far as it knows.
    pub(super) fn may_be_member(&self) -> bool {
        match self.config.manifest.chain {
            Chain::None => true,
            Chain::Subnet(_) => self.registered == Some(true),
        }
    }

    /// The block of the newest snapshot, if that lacks this peer.
    pub(super) fn not_registered_at(&self) -> Option<u64> {
        let newest = self.snapshots.newest()?;
        newest
            .power_of(&self.me)
            .is_none()
            .then_some(newest.mark().block)
    }

    /// Whether this is a chain run and no snapshot has come yet.
    pub(super) fn lacks_registry(&self) -> bool {
        match self.config.manifest.chain {
            Chain::None => false,
            Chain::Subnet(_) => self.snapshots.newest().is_none(),
        }
    }

    /// With how many peers the launcher could found the run now: those that asked, and itself if it may be a member.
    pub(super) fn founders(&self) -> u32 {
        let basis = self.basis();
        let asked = self.joins.keys().chain([&self.me]);
        asked.filter(|peer| basis.admits(peer)).count() as u32
    }

    /// What this peer goes by if it proposes now. Rules `last-but-one` and `quiet-attempts`.
    pub(super) fn basis(&self) -> Basis<'_> {
        if let Chain::None = self.config.manifest.chain {
            return Basis::Anybody;
        }
        let founding = self.roster.round() == RoundId::FOUNDING;
        if self.agreement.attempt() >= QUIET_ATTEMPT && !founding {
            return Basis::Nobody;
        }
        match self.snapshots.to_propose(&self.roster) {
            Some(registry) => Basis::Registered(registry),
            None => Basis::Nobody,
        }
    }

    /// Judges what a sound `decision` changes by the registry. Rules `registered-only` and `quorum-vouches`.
    pub(super) fn judge_registry(&self, decision: &Decision) -> Verdict {
        let Some(mark) = decision.registry else {
            return Verdict::Acceptable;
        };
        let Some(registry) = self.snapshots.at(mark.block) else {
            return if self.agreement.is_vouched_for(&decision.id()) {
                Verdict::Acceptable
            } else {
                Verdict::NotYet
            };
        };
        if registry.mark() != mark {
            return Verdict::Unacceptable("named another block of the chain than is final");
        }
        match registry.changes(&self.roster, decision, &self.config.manifest) {
            Ok(powers) if powers == decision.powers => Verdict::Acceptable,
            Ok(_) => Verdict::Unacceptable("proposed other powers than the registry gives"),
            Err(_) => Verdict::Unacceptable("proposed a join of a peer that is not registered"),
        }
    }
}
