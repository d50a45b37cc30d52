//! How the capacity of a member's link follows what the link carries.
//!
//! A member says what its link can carry when it joins. Links change, and what a peer measures while frames are exchanged is
//! a better guide than what it took for granted: so a member may say another capacity later, signed, and the next decision
//! takes it into the roster. Plan and owners are functions of the roster, so they change on every peer from the same round
//! on. A peer that cannot keep up with the shards that it owns loses some of them in this way. The site of a member stays.
//!
//! Rule `seldom-and-much`: a capacity is replaced only by one that is at least twice or at most half of it (0 by any other
//! one, and any other one by 0), and only when it has stood for [`CAPACITY_ROUNDS_MIN`] rounds. Whoever takes over a shard
//! fetches its owner residual, which is as long as many rounds' updates of it: estimates that waver must not move shards to
//! and fro.
//!
//! Rule `never-back`: a change names a round that its author had applied. It counts for a member whose present capacity was
//! in the roster of that round already, and for [`JOIN_ROUNDS_MAX`] rounds after it: one that was decided, or overtaken by
//! another one, is void for ever.

use crate::decision::JOIN_ROUNDS_MAX;
use crate::hash::Hash;
use crate::key::{Keypair, PeerKey, Signature};
use crate::manifest::{RoundId, RunId};
use crate::roster::{Member, Roster};

/// Rounds that a capacity stands for at least, from the first one in which it is in the roster. A guess: long enough that
/// others see how the plan before went, short against a run.
pub const CAPACITY_ROUNDS_MIN: u64 = 4;
/// The most changes of capacity in one decision; the others come with the next one.
pub const CAPACITIES_MAX: usize = 16;
/// By which factor another capacity differs at least.
const FACTOR_MIN: u32 = 2;

const CAPACITY_DOMAIN: &str = "gradmesh capacity v1";

/// What a member says of its link from now on, signed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CapacityChange {
    /// The run.
    pub run: RunId,
    /// The member.
    pub peer: PeerKey,
    /// The last round whose decision it has applied.
    pub round: RoundId,
    /// What its link can carry, as in [`Link`](crate::manifest::Link).
    pub capacity: u16,
    /// The member's signature.
    pub signature: Signature,
}

impl CapacityChange {
    /// A signed change of `member`, which has applied `round`.
    pub fn sign(run: RunId, round: RoundId, capacity: u16, member: &Keypair) -> CapacityChange {
        let mut change = CapacityChange {
            run,
            peer: member.public(),
            round,
            capacity,
            signature: Signature([0; 64]),
        };
        change.signature = member.sign(&change.hash());
        change
    }

    /// Whether the signature is the member's.
    pub fn is_authentic(&self) -> bool {
        self.peer.verify(&self.hash(), &self.signature)
    }

    /// Whether a decision at `roster` may take it in, by both rules; the signature is not looked at.
    pub fn suits(&self, roster: &Roster) -> bool {
        let now = roster.round();
        self.round <= now
            && now.0 <= self.round.0.saturating_add(JOIN_ROUNDS_MAX)
            && roster.member(&self.peer).is_some_and(|member| {
                member.capacity_since <= self.round && may_change(member, self.capacity, now)
            })
    }

    fn hash(&self) -> Hash {
        let mut body = Vec::with_capacity(74);
        body.extend_from_slice(&self.run.0.0);
        body.extend_from_slice(&self.peer.0);
        body.extend_from_slice(&self.round.0.to_le_bytes());
        body.extend_from_slice(&self.capacity.to_le_bytes());
        Hash::in_domain(CAPACITY_DOMAIN, &body)
    }
}

/// Whether a decision of `round` may give `member` this `capacity`. Rule `seldom-and-much`.
pub fn may_change(member: &Member, capacity: u16, round: RoundId) -> bool {
    let (less, more) = match member.link.capacity {
        before if before < capacity => (before, capacity),
        before => (capacity, before),
    };
    less != more
        && u32::from(more) >= FACTOR_MIN * u32::from(less)
        && round.0 >= member.capacity_since.0.saturating_add(CAPACITY_ROUNDS_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Decision, DecisionFault};
    use crate::fragment::Fragments;
    use crate::header::PerStage;
    use crate::manifest::{Link, Manifest, SiteId, example};
    use crate::plan::Layout;

    fn keypair(seed: u8) -> Keypair {
        Keypair::from_seed(&[seed; 32])
    }

    fn manifest() -> Manifest {
        let mut manifest = example(keypair(1).public());
        manifest.trust.absent_rounds_max = 1000;
        manifest
    }

    /// An empty decision at `roster` with these changes.
    fn decision(manifest: &Manifest, roster: &Roster, capacities: &[CapacityChange]) -> Decision {
        Decision {
            run: manifest.run(),
            round: roster.round(),
            previous: Hash::ZERO,
            state_root: Hash::ZERO,
            members: Vec::new(),
            shards: Vec::new(),
            joins: Vec::new(),
            leaves: Vec::new(),
            registry: None,
            powers: Vec::new(),
            capacities: capacities.to_vec(),
        }
    }

    /// The launcher's roster after so many empty decisions.
    fn roster(manifest: &Manifest, rounds: u64) -> Roster {
        (0..rounds).fold(Roster::founding(manifest), |roster, _| {
            roster.after(&decision(manifest, &roster, &[]), manifest)
        })
    }

    fn check(
        manifest: &Manifest,
        roster: &Roster,
        capacities: &[CapacityChange],
    ) -> Result<(), DecisionFault> {
        let layout = Layout::of(roster, manifest, &Fragments::whole(0), &PerStage::default());
        let decision = decision(manifest, roster, capacities);
        decision.check(&manifest.run(), manifest, roster, &Hash::ZERO, &layout)
    }

    #[test]
    fn a_capacity_changes_by_twice_or_half_once_it_has_stood_for_some_rounds() {
        let manifest = manifest();
        assert_eq!(manifest.launcher_link.capacity, 10);
        let change = |round: u64, capacity| {
            CapacityChange::sign(manifest.run(), RoundId(round), capacity, &keypair(1))
        };
        let at = |rounds: u64, capacity| {
            let roster = roster(&manifest, rounds);
            check(&manifest, &roster, &[change(rounds - 1, capacity)])
        };
        let fault = Err(DecisionFault::Capacity(keypair(1).public()));
        for capacity in [0, 1, 5, 20, u16::MAX] {
            assert_eq!(at(CAPACITY_ROUNDS_MIN - 1, capacity), fault, "too early");
            assert_eq!(at(CAPACITY_ROUNDS_MIN, capacity), Ok(()), "{capacity}");
        }
        for capacity in [6, 10, 19] {
            assert_eq!(at(CAPACITY_ROUNDS_MIN, capacity), fault, "{capacity}");
        }
    }

    #[test]
    fn the_roster_takes_a_change_in_and_no_old_one_comes_back() {
        let manifest = manifest();
        let sign =
            |round, capacity| CapacityChange::sign(manifest.run(), round, capacity, &keypair(1));
        let before = roster(&manifest, 8);
        let down = sign(RoundId(7), 2);
        let other = sign(RoundId(7), 100);
        assert_eq!(check(&manifest, &before, &[down]), Ok(()));
        let mut after = before.after(&decision(&manifest, &before, &[down]), &manifest);
        let member = *after.member(&keypair(1).public()).unwrap();
        assert_eq!(member.link.capacity, 2);
        assert_eq!(member.link.site, manifest.launcher_link.site);
        assert_eq!(member.capacity_since, RoundId(9));
        assert_ne!(
            after.hash(),
            before
                .after(&decision(&manifest, &before, &[]), &manifest)
                .hash()
        );
        for _ in 0..CAPACITY_ROUNDS_MIN {
            assert!(!sign(after.round(), 100).suits(&after), "stands");
            after = after.after(&decision(&manifest, &after, &[]), &manifest);
        }
        assert!(!other.suits(&after), "overtaken");
        assert!(sign(RoundId(9), 100).suits(&after));
        assert!(
            !sign(after.round().next(), 100).suits(&after),
            "from a round to come"
        );
        for _ in 0..JOIN_ROUNDS_MAX {
            after = after.after(&decision(&manifest, &after, &[]), &manifest);
        }
        assert!(!sign(RoundId(9), 100).suits(&after), "stale");
    }

    #[test]
    fn a_change_that_is_unsigned_repeated_of_a_stranger_or_of_another_run_is_a_fault() {
        let manifest = manifest();
        let roster = roster(&manifest, 8);
        let run = manifest.run();
        let good = CapacityChange::sign(run, RoundId(7), 1, &keypair(1));
        let stranger = CapacityChange::sign(run, RoundId(7), 1, &keypair(2));
        let elsewhere = CapacityChange::sign(RunId(Hash::ZERO), RoundId(7), 1, &keypair(1));
        let forged = CapacityChange {
            capacity: 2,
            ..good
        };
        let faults = |changes: &[CapacityChange]| check(&manifest, &roster, changes).is_err();
        assert!(!faults(&[good]));
        assert!(faults(&[good, good]));
        assert!(faults(&[stranger]));
        assert!(faults(&[elsewhere]));
        assert!(faults(&[forged]));
    }

    #[test]
    fn a_newcomer_keeps_what_it_said_when_it_joined_for_as_long() {
        let link = Link {
            site: SiteId::named("lab"),
            capacity: 4,
        };
        let member = Member {
            peer: keypair(3).public(),
            since: RoundId(20),
            absent_rounds: 0,
            power: 1,
            link,
            capacity_since: RoundId(20),
        };
        let at = |round| may_change(&member, 8, RoundId(round));
        assert!(!at(20 + CAPACITY_ROUNDS_MIN - 1));
        assert!(at(20 + CAPACITY_ROUNDS_MIN));
    }
}
