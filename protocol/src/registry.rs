//! The registry: what a finalized block of the chain says about who may take part, and with how many votes.
//!
//! In a chain run ([`crate::manifest::Chain::Subnet`]) only peers that the subnet registers may be members. Every peer reads the registry
//! from its own node of the chain, at the finalized blocks whose number is a multiple of the manifest's
//! `snapshot_blocks`. A decision that changes the membership names the snapshot that it goes by, so that everybody who has
//! the decisions, and no chain, computes the same rosters.
//!
//! Rule `registered-only`: a decision names a snapshot exactly if it changes anything by it, never an older one than a
//! decision before did, and then its `powers` are what [`Registry::changes`] gives for that snapshot: the power of each
//! peer that joins, power 0 for each member that the snapshot lacks, and in the first decision of an epoch the new power
//! of each member whose power is another one. A decision without a snapshot has no joins in a chain run. A voter that
//! has the named snapshot checks all of this. One that has it not yet gives no verdict until it comes, and blames nobody.
//!
//! Rule `last-but-one`: a proposer goes by its newest snapshot but one, so that voters whose view of the chain is up to
//! `snapshot_blocks` behind its own can tell. A removal or a join is late by one snapshot for it. By the newest it would
//! save that time and lose an attempt of the agreement whenever a quorum is not as fast as the proposer; a wait in
//! seconds would have to be guessed for chains whose blocks take a quarter of a second and for those that take twelve.
//! A proposer that has only one goes by that, and the launcher, which decides the founding round alone, by its newest.
//!
//! Rule `quiet-attempts`: from attempt [`QUIET_ATTEMPT`] on a proposer changes nothing by the registry, so that rounds
//! are decided even where a third of the voters has lost the chain for hours.
//!
//! Rule `quorum-vouches`: a voter that does not have the named snapshot takes a proposal for which a quorum has prevoted:
//! one of them at least is honest and had it. Otherwise a decision that some voters are locked on could name a snapshot
//! that nobody who restarted since can get any more.
//!
//! Rule `enough-stay`: members are removed, and powers of members changed, only if the peers that are known to be there
//! hold a quorum of the next roster: those with an update in this very decision and those that join with it (in the
//! founding round everybody counts as there). Otherwise all of that is put off to a later round; joins are not. The
//! removed still vote on their own removal. Members that are gone leave by absence within `absent_rounds_max` rounds, so
//! that removals wait no longer than until a round counts the updates of a quorum of those who stay. If nobody would stay
//! the members remain until a registered peer has joined.
//!
//! Rule `stake-votes`: with [`Powers::Stake`] the power of a peer is its share of the stake of all registered peers in
//! ten thousandths, rounded down, and at least 1. Roster members are a part of the registered peers, so a share of the
//! votes may be larger than the share of the stake. There is no cap: in a run with `trust = "byzantine"` a peer with more
//! than a third of the roster's power can stop the run by itself, and one with more than two thirds decides it alone.
//! Where that is not wanted, powers are to be equal.

use std::collections::BTreeMap;

use crate::agreement::quorum;
use crate::decision::Decision;
use crate::hash::Hash;
use crate::key::PeerKey;
use crate::manifest::{Manifest, Powers, RoundId};
use crate::roster::{Member, Roster};

/// The first attempt of a round in which nothing is changed by the registry: the proposers of three attempts have failed.
pub const QUIET_ATTEMPT: u32 = 3;
/// The most peers in a registry: sixteen times the 256 neurons of today's subnets.
pub const ENTRIES_MAX: usize = 4096;
/// The parts into which rule `stake-votes` divides the stake.
pub const STAKE_PARTS: u64 = 10_000;

/// The peers that a finalized block registers, with their powers, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    mark: RegistryMark,
    entries: Vec<(PeerKey, u32)>,
}

/// Names a snapshot of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegistryMark {
    /// Number of the finalized block.
    pub block: u64,
    /// Its hash.
    pub block_hash: Hash,
}

impl RegistryMark {
    /// Whether a decision may name this snapshot when `last` is the newest that one before it named.
    pub fn follows(&self, last: Option<RegistryMark>) -> bool {
        last.is_none_or(|last| self.block > last.block || *self == last)
    }
}

/// Why entries are no registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryFault {
    /// More than [`ENTRIES_MAX`].
    #[error("{0} peers in a registry; at most {ENTRIES_MAX}")]
    TooMany(usize),
    /// A peer comes twice, or after a larger key.
    #[error("peer {0} is repeated or out of order")]
    Order(PeerKey),
    /// A registered peer has at least one vote.
    #[error("peer {0} is registered with power 0")]
    NoPower(PeerKey),
}

impl Registry {
    /// What block `mark` registers.
    ///
    /// `entries`: peers with their powers, sorted by key.
    ///
    /// # Errors
    /// [`RegistryFault`]: whoever read the chain made a mistake.
    pub fn new(
        mark: RegistryMark,
        entries: Vec<(PeerKey, u32)>,
    ) -> Result<Registry, RegistryFault> {
        if entries.len() > ENTRIES_MAX {
            return Err(RegistryFault::TooMany(entries.len()));
        }
        let mut last = None;
        for (peer, power) in &entries {
            if last >= Some(peer) {
                return Err(RegistryFault::Order(*peer));
            }
            if *power == 0 {
                return Err(RegistryFault::NoPower(*peer));
            }
            last = Some(peer);
        }
        Ok(Registry { mark, entries })
    }

    /// Which block it is of.
    pub fn mark(&self) -> RegistryMark {
        self.mark
    }

    /// The registered peers with their powers, sorted by key.
    pub fn entries(&self) -> &[(PeerKey, u32)] {
        &self.entries
    }

    /// The power of `peer`; `None` if it is not registered.
    pub fn power_of(&self, peer: &PeerKey) -> Option<u32> {
        let place = self.entries.binary_search_by_key(peer, |entry| entry.0);
        place.ok().map(|place| self.entries[place].1)
    }

    /// What `decision` has to change by this snapshot: its `powers`, by rules `registered-only` and `enough-stay`.
    ///
    /// `roster`: of the decision's round. The decision's own `registry` and `powers` are not looked at.
    ///
    /// # Errors
    /// A peer that joins and is not registered.
    pub fn changes(
        &self,
        roster: &Roster,
        decision: &Decision,
        manifest: &Manifest,
    ) -> Result<Vec<(PeerKey, u32)>, PeerKey> {
        let mut joins = Vec::with_capacity(decision.joins.len());
        for join in &decision.joins {
            joins.push((join.peer, self.power_of(&join.peer).ok_or(join.peer)?));
        }
        let epoch = manifest.begins_epoch(decision.round);
        let stays = |member: &&Member| decision.leaves.iter().all(|l| l.peer != member.peer);
        let members = roster.members().iter().filter(stays).filter_map(|member| {
            let power = self.power_of(&member.peer).unwrap_or(0);
            let due = power == 0 || epoch && power != member.power;
            due.then_some((member.peer, power))
        });
        let mut changes: Vec<_> = members.chain(joins.iter().copied()).collect();
        changes.sort_unstable();
        let full = Decision {
            registry: Some(self.mark),
            powers: changes,
            ..decision.clone()
        };
        if enough_stay(roster, &full, manifest) {
            Ok(full.powers)
        } else {
            joins.sort_unstable();
            Ok(joins)
        }
    }
}

/// Whether those who are known to be there hold a quorum of the roster after `decision`.
fn enough_stay(roster: &Roster, decision: &Decision, manifest: &Manifest) -> bool {
    let next = roster.after(decision, manifest);
    let here = |member: &&Member| {
        roster.round() == RoundId::FOUNDING
            || member.since == next.round()
            || decision.accepts_any_of(&member.peer)
    };
    let members = next.members().iter().filter(here);
    let power: u64 = members.map(|member| u64::from(member.power)).sum();
    power >= quorum(manifest.trust.mode, next.power())
}

/// The powers of registered peers from their stakes, sorted by key.
///
/// `stakes`: in rao (billionths of a token), one entry for each registration. Registrations that name the same peer lend
/// it their stakes together, so that nobody can lower another peer's power by naming it.
pub fn powers(
    rule: Powers,
    stakes: impl IntoIterator<Item = (PeerKey, u64)>,
) -> Vec<(PeerKey, u32)> {
    let mut peers = BTreeMap::<PeerKey, u128>::new();
    for (peer, stake) in stakes {
        *peers.entry(peer).or_default() += u128::from(stake);
    }
    let total: u128 = peers.values().sum();
    let power = |stake: u128| match rule {
        Powers::Equal => 1,
        Powers::Stake => {
            let parts = (stake * u128::from(STAKE_PARTS)).checked_div(total);
            // A share of the parts is at most all of them.
            parts.unwrap_or(0).max(1) as u32
        }
    };
    peers
        .into_iter()
        .map(|(peer, stake)| (peer, power(stake)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Bitmap, DecidedMember, DecidedShard, DecisionFault, Join, Leave};
    use crate::fragment::Fragments;
    use crate::header::PerStage;
    use crate::key::Keypair;
    use crate::manifest::{Link, RunId, TrustMode, example};
    use crate::plan::Layout;

    fn layout(roster: &Roster, manifest: &Manifest) -> Layout {
        Layout::of(roster, manifest, &Fragments::whole(1), &PerStage::default())
    }

    fn keypair(seed: u8) -> Keypair {
        Keypair::from_seed(&[seed; 32])
    }

    fn key(seed: u8) -> PeerKey {
        keypair(seed).public()
    }

    fn sorted(powers: &[(u8, u32)]) -> Vec<(PeerKey, u32)> {
        let mut powers: Vec<_> = powers.iter().map(|(s, p)| (key(*s), *p)).collect();
        powers.sort_unstable();
        powers
    }

    fn registry(block: u64, entries: &[(u8, u32)]) -> Registry {
        let block_hash = Hash::of_content(&block.to_le_bytes());
        Registry::new(RegistryMark { block, block_hash }, sorted(entries)).unwrap()
    }

    fn manifest() -> Manifest {
        let mut manifest = example(key(1));
        manifest.chain = crate::manifest::Chain::Subnet(crate::manifest::Subnet {
            genesis: Hash::ZERO,
            netuid: 1,
            powers: Powers::Stake,
            snapshot_blocks: 10,
        });
        manifest
    }

    /// A decision at `roster` that accepts the updates of `present`, with joins and leaves of these peers.
    fn decision(roster: &Roster, present: &[u8], joins: &[u8], leaves: &[u8]) -> Decision {
        let run = RunId(Hash::ZERO);
        let round = roster.round();
        let mut members: Vec<_> = present
            .iter()
            .map(|seed| DecidedMember {
                peer: key(*seed),
                header: Hash::ZERO,
            })
            .collect();
        members.sort_unstable();
        let accepted = Bitmap::full(members.len());
        let shard = DecidedShard {
            accepted,
            reduced: Vec::new(),
        };
        let mut joins: Vec<_> = joins
            .iter()
            .map(|seed| {
                let link = Link::alone(&key(*seed));
                Join::sign(run, round, Hash::ZERO, link, &keypair(*seed))
            })
            .collect();
        joins.sort_unstable_by_key(|join| join.peer);
        let leaves = leaves
            .iter()
            .map(|seed| Leave::sign(run, round, &keypair(*seed)));
        Decision {
            run,
            round,
            previous: Hash::ZERO,
            state_root: Hash::ZERO,
            members,
            shards: if round == RoundId::FOUNDING {
                vec![]
            } else {
                vec![shard]
            },
            joins,
            leaves: leaves.collect(),
            registry: None,
            powers: Vec::new(),
            capacities: Vec::new(),
        }
    }

    /// `decision` with the changes by `registry`; checked, and with them the roster after it.
    fn decided(
        registry: &Registry,
        roster: &Roster,
        mut decision: Decision,
        manifest: &Manifest,
    ) -> (Decision, Roster) {
        decision.powers = registry.changes(roster, &decision, manifest).unwrap();
        decision.registry = (!decision.powers.is_empty()).then(|| registry.mark());
        let (run, previous) = (decision.run, decision.previous);
        let layout = layout(roster, manifest);
        assert_eq!(
            decision.check(&run, manifest, roster, &previous, &layout),
            Ok(())
        );
        let next = roster.after(&decision, manifest);
        (decision, next)
    }

    /// The roster of round 2: peers 1 to `count` with one vote each, founded by block 10.
    fn founded(count: u8, manifest: &Manifest) -> Roster {
        let all: Vec<u8> = (1..=count).collect();
        let entries: Vec<_> = all.iter().map(|seed| (*seed, 1)).collect();
        let registry = registry(10, &entries);
        let founding = Roster::founding(manifest);
        let joins = decision(&founding, &[], &all[1..], &[]);
        let (_, roster) = decided(&registry, &founding, joins, manifest);
        roster.after(&decision(&roster, &all, &[], &[]), manifest)
    }

    #[test]
    fn a_registry_is_sorted_without_repetition_and_gives_everybody_a_vote() {
        let mark = registry(10, &[]).mark();
        let entries = sorted(&[(1, 1), (2, 5)]);
        let mut reversed = entries.clone();
        reversed.reverse();
        let fault = Registry::new(mark, reversed.clone());
        assert_eq!(fault, Err(RegistryFault::Order(reversed[1].0)));
        let twice = vec![entries[0], entries[0]];
        assert_eq!(
            Registry::new(mark, twice),
            Err(RegistryFault::Order(entries[0].0))
        );
        let fault = Registry::new(mark, vec![(key(1), 0)]);
        assert_eq!(fault, Err(RegistryFault::NoPower(key(1))));
        let many = vec![entries[0]; ENTRIES_MAX + 1];
        let fault = Registry::new(mark, many);
        assert_eq!(fault, Err(RegistryFault::TooMany(ENTRIES_MAX + 1)));
        let registry = Registry::new(mark, entries).unwrap();
        assert_eq!(registry.power_of(&key(2)), Some(5));
        assert_eq!(registry.power_of(&key(3)), None);
    }

    #[test]
    fn powers_are_ten_thousandths_of_the_stake_rounded_down_and_at_least_one() {
        let stake = |stakes: &[(u8, u64)]| {
            let stakes = stakes.iter().map(|(seed, stake)| (key(*seed), *stake));
            powers(Powers::Stake, stakes)
        };
        assert_eq!(stake(&[(1, 2), (2, 1)]), sorted(&[(1, 6666), (2, 3333)]));
        assert_eq!(
            stake(&[(1, u64::MAX), (2, 1)]),
            sorted(&[(1, 9999), (2, 1)])
        );
        assert_eq!(stake(&[(1, 0), (2, 0)]), sorted(&[(1, 1), (2, 1)]));
        assert_eq!(stake(&[(1, 7)]), sorted(&[(1, 10_000)]));
        assert_eq!(stake(&[]), []);
        let lent = [(1, u64::MAX), (2, u64::MAX), (1, u64::MAX), (1, u64::MAX)];
        assert_eq!(stake(&lent), sorted(&[(1, 7500), (2, 2500)]));
        let equal = powers(Powers::Equal, [(key(1), 9), (key(2), 0), (key(1), 3)]);
        assert_eq!(equal, sorted(&[(1, 1), (2, 1)]));
    }

    #[test]
    fn joins_and_removals_are_due_at_once_and_stakes_with_an_epoch() {
        let manifest = manifest();
        let roster = founded(4, &manifest);
        assert_eq!((roster.round(), roster.power()), (RoundId(2), 4));
        let registry = registry(20, &[(1, 3), (2, 1), (4, 1), (9, 5)]);
        let round = decision(&roster, &[1, 2, 3, 4], &[9], &[]);
        let (decision_2, next) = decided(&registry, &roster, round, &manifest);
        assert_eq!(decision_2.powers, sorted(&[(3, 0), (9, 5)]));
        assert_eq!(next.registry(), Some(registry.mark()));
        assert_eq!((next.len(), next.power()), (4, 8));

        let mut roster = next;
        for round in 3..=5 {
            let present = decision(&roster, &[1, 2, 4, 9], &[], &[]);
            let (decision, next) = decided(&registry, &roster, present, &manifest);
            let due = if round == 5 {
                sorted(&[(1, 3)])
            } else {
                vec![]
            };
            assert_eq!(decision.powers, due, "round {round}");
            roster = next;
        }
        assert_eq!(roster.power(), 10);
        let stranger = decision(&roster, &[1], &[8], &[]);
        let refused = registry.changes(&roster, &stranger, &manifest);
        assert_eq!(refused, Err(key(8)));
    }

    #[test]
    fn a_leaver_is_not_removed_again() {
        let manifest = manifest();
        let roster = founded(4, &manifest);
        let registry = registry(20, &[(1, 1), (2, 1), (3, 1)]);
        let leaving = decision(&roster, &[1, 2, 3], &[], &[4]);
        let (decision, next) = decided(&registry, &roster, leaving, &manifest);
        assert_eq!((decision.registry, decision.powers), (None, vec![]));
        assert_eq!(next.len(), 3);
    }

    #[test]
    fn removals_are_put_off_while_those_who_are_there_would_be_no_quorum() {
        for trust in [TrustMode::Byzantine, TrustMode::Crash] {
            let mut manifest = manifest();
            manifest.trust.mode = trust;
            let roster = founded(7, &manifest);
            let registry = registry(20, &[(4, 1), (5, 1), (6, 1), (7, 1), (9, 1)]);
            let put_off = decision(&roster, &[1, 2, 3, 4, 5], &[], &[]);
            let (decision_2, _) = decided(&registry, &roster, put_off, &manifest);
            assert_eq!(decision_2.powers, [], "two of four are no quorum");
            // A peer that joins is there, and comes in either way.
            let joined = decision(&roster, &[1, 2, 3, 4, 5], &[9], &[]);
            let (decision_2, _) = decided(&registry, &roster, joined, &manifest);
            let expected = match trust {
                TrustMode::Byzantine => sorted(&[(9, 1)]),
                TrustMode::Crash => sorted(&[(1, 0), (2, 0), (3, 0), (9, 1)]),
            };
            assert_eq!(decision_2.powers, expected, "three of five");
            let enough = decision(&roster, &[4, 5, 6], &[], &[]);
            let (decision_2, next) = decided(&registry, &roster, enough, &manifest);
            assert_eq!(decision_2.powers, sorted(&[(1, 0), (2, 0), (3, 0)]));
            assert_eq!(next.len(), 4);
        }
    }

    #[test]
    fn nobody_is_removed_when_nobody_would_be_left() {
        let manifest = manifest();
        let roster = founded(4, &manifest);
        let nobody = registry(20, &[]);
        let all = decision(&roster, &[1, 2, 3, 4], &[], &[]);
        let (decision, next) = decided(&nobody, &roster, all, &manifest);
        assert_eq!((decision.powers, next.len()), (vec![], 4));
    }

    #[test]
    fn decisions_that_name_snapshots_wrongly_are_unsound() {
        let manifest = manifest();
        let roster = founded(4, &manifest);
        let check = |change: &dyn Fn(&mut Decision), manifest: &Manifest| {
            let mut changed = decision(&roster, &[1, 2, 3, 4], &[9], &[]);
            changed.registry = Some(registry(20, &[]).mark());
            changed.powers = sorted(&[(3, 0), (9, 5)]);
            change(&mut changed);
            let (run, previous) = (changed.run, changed.previous);
            let layout = layout(&roster, manifest);
            changed.check(&run, manifest, &roster, &previous, &layout)
        };
        let names_wrongly = |found| matches!(found, Err(DecisionFault::Registry { .. }));
        assert_eq!(check(&|_| {}, &manifest), Ok(()));
        assert!(names_wrongly(check(&|_| {}, &example(key(1)))));
        assert!(names_wrongly(check(&|d| d.registry = None, &manifest)));
        assert!(names_wrongly(check(&|d| d.powers.clear(), &manifest)));
        let at = |block: u64| {
            let mark = registry(block, &[]).mark();
            check(&|d| d.registry = Some(mark), &manifest)
        };
        assert!(names_wrongly(at(25)), "between two snapshots");
        assert!(names_wrongly(at(0)), "older than the founding one");
        assert_eq!(at(10), Ok(()), "the same again");
        let other = RegistryMark {
            block: 10,
            block_hash: Hash::ZERO,
        };
        assert!(names_wrongly(check(
            &|d| d.registry = Some(other),
            &manifest
        )));

        let power = |powers: &[(u8, u32)]| {
            let powers = sorted(powers);
            check(&|d| d.powers = powers.clone(), &manifest)
        };
        let fault = |seed| Err(DecisionFault::Power(key(seed)));
        assert_eq!(power(&[(3, 0)]), fault(9), "a join without a power");
        assert_eq!(power(&[(3, 0), (9, 0)]), fault(9), "a join without a vote");
        assert_eq!(power(&[(9, 5), (8, 1)]), fault(8), "of nobody");
        assert_eq!(
            power(&[(9, 5), (3, 2)]),
            fault(3),
            "in the middle of an epoch"
        );
        let swapped = |d: &mut Decision| d.powers.reverse();
        assert!(matches!(
            check(&swapped, &manifest),
            Err(DecisionFault::Power(_))
        ));
        let leaves = |d: &mut Decision| d.leaves = decision(&roster, &[], &[], &[3]).leaves;
        assert_eq!(check(&leaves, &manifest), fault(3), "of a leaver");
        let quiet = |d: &mut Decision| {
            d.registry = None;
            d.powers.clear();
        };
        assert_eq!(
            check(&quiet, &manifest),
            fault(9),
            "a join without a snapshot"
        );
    }

    #[test]
    fn the_hash_of_a_roster_covers_powers_and_registry() {
        let manifest = manifest();
        let roster = founded(4, &manifest);
        let after = |block: u64, power: u32| {
            let registry = registry(block, &[(1, 1), (2, 1), (3, 1), (4, 1), (9, power)]);
            let joined = decision(&roster, &[1, 2, 3, 4], &[9], &[]);
            let (_, next) = decided(&registry, &roster, joined, &manifest);
            next.hash()
        };
        assert_eq!(after(20, 5), after(20, 5));
        assert_ne!(after(20, 5), after(20, 6));
        assert_ne!(after(20, 5), after(30, 5));
    }
}
