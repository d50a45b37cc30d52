use std::collections::BTreeSet;

use super::*;
use crate::decision::{Decision, Join};
use crate::key::Keypair;
use crate::manifest::{Link, RoundId, example};

const RUN: RunId = RunId(Hash::ZERO);
const BYTES: PerStage = PerStage {
    local: 64_000,
    update: 1_000,
    reduced: 4_000,
};

/// A roster of peers with these sites and capacities.
fn roster(links: &[(&str, u16)]) -> Roster {
    let key = |place: usize| Keypair::from_seed(&[place as u8 + 1; 32]);
    let link = |place: usize| {
        let (site, capacity) = links[place];
        let peer = key(place).public();
        let site = match site {
            "" => SiteId::alone(&peer),
            name => SiteId::named(name),
        };
        Link { site, capacity }
    };
    let round = RoundId::FOUNDING;
    let join = |place: usize| Join::sign(RUN, round, Hash::ZERO, link(place), &key(place));
    let decision = Decision {
        run: RUN,
        round,
        previous: Hash::ZERO,
        state_root: Hash::ZERO,
        members: Vec::new(),
        shards: Vec::new(),
        joins: (1..links.len()).map(join).collect(),
        leaves: Vec::new(),
        registry: None,
        powers: Vec::new(),
        capacities: Vec::new(),
    };
    let mut manifest = example(key(0).public());
    manifest.launcher_link = link(0);
    manifest.trust.peers_max = 64;
    Roster::founding(&manifest).after(&decision, &manifest)
}

fn alone(count: usize) -> Roster {
    roster(&vec![("", 10); count])
}

fn layout(roster: &Roster, plan: PlanKind, shards: u32) -> Layout {
    let mut manifest = example(roster.members()[0].peer);
    manifest.exchange.plan = plan;
    Layout::of(roster, &manifest, &Fragments::whole(shards), &BYTES)
}

/// Carries every frame out by hand, one byte for each byte: what each peer receives, and what enters each site.
struct Carried {
    received: BTreeMap<PeerKey, u64>,
    entered: BTreeMap<SiteId, u64>,
}

fn carry(roster: &Roster, layout: &Layout, bytes: &PerStage) -> Carried {
    let mut carried = Carried {
        received: BTreeMap::new(),
        entered: BTreeMap::new(),
    };
    let site = |peer: &PeerKey| roster.member(peer).unwrap().link.site;
    let all: Vec<PeerKey> = roster.members().iter().map(|m| m.peer).collect();
    let shards = layout.shards();
    let mut give = |askers: &[PeerKey], holders: &[PeerKey], shard: u32, bytes: u64, few: bool| {
        // Whoever asks outside does so first; then everybody in the site has a source that holds the frame.
        let mut held: BTreeSet<PeerKey> = holders.iter().copied().collect();
        let mut waiting: Vec<PeerKey> = askers
            .iter()
            .copied()
            .filter(|a| !held.contains(a))
            .collect();
        while !waiting.is_empty() {
            let served: Vec<(PeerKey, PeerKey)> = waiting
                .iter()
                .map(|asker| {
                    let sources = Sources::new(roster, asker);
                    let direct = || sources.direct(holders)[0];
                    let first = if few {
                        direct()
                    } else {
                        sources.of(holders, shard)[0]
                    };
                    (*asker, first)
                })
                .filter(|(_, source)| held.contains(source))
                .collect();
            assert!(!served.is_empty(), "everybody waits for somebody");
            for (asker, source) in served {
                held.insert(asker);
                waiting.retain(|peer| *peer != asker);
                *carried.received.entry(asker).or_default() += bytes;
                if site(&asker) != site(&source) {
                    *carried.entered.entry(site(&asker)).or_default() += bytes;
                }
            }
        }
    };
    let of_shard = |stage| bytes.of(stage) / u64::from(shards);
    let up = of_shard(layout.plan().stage_of_updates());
    let down = of_shard(layout.plan().stage_of_results());
    let owners = layout.owners(&RUN);
    for shard in 0..shards {
        if layout.plan() == Plan::Gather {
            all.iter()
                .for_each(|author| give(&all, &[*author], shard, up, false));
        }
        for (group, owners) in layout.groups().iter().zip(&owners) {
            let owners: Vec<PeerKey> = owners[shard as usize].iter().collect();
            for author in &group.members {
                give(&owners, &[*author], shard, up, true);
            }
            give(&all, &owners, shard, down, false);
        }
    }
    carried
}

#[test]
fn every_plan_moves_the_bytes_that_it_says() {
    const SHARDS: u32 = 240;
    let bytes = PerStage {
        local: 64 * 240_000,
        update: 240_000,
        reduced: 4 * 240_000,
    };
    let rosters = [
        alone(1),
        alone(2),
        alone(5),
        alone(8),
        roster(&[
            ("a", 10),
            ("a", 10),
            ("a", 10),
            ("b", 10),
            ("b", 10),
            ("b", 10),
        ]),
        roster(&[
            ("a", 10),
            ("a", 10),
            ("b", 10),
            ("b", 10),
            ("c", 10),
            ("c", 10),
        ]),
    ];
    for roster in &rosters {
        for kind in [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier] {
            let layout = layout(roster, kind, SHARDS);
            let said = layout.plan().predicted(roster, &bytes);
            let carried = carry(roster, &layout, &bytes);
            let found = carried.received.values().sum::<u64>() / roster.len() as u64;
            let entered = carried.entered.values().max().copied().unwrap_or(0);
            let what = format!("{kind:?} of {} peers", roster.len());
            let near = |found: u64, said: u64, part: u64| found.abs_diff(said) * part <= said;
            assert!(
                near(found, said.received_bytes_per_peer, 200),
                "{what}: {found} {said:?}"
            );
            // Who owns what is drawn: a tenth of a site's share.
            assert!(
                near(entered, said.wan_bytes_per_site, 10),
                "{what}: {entered} {said:?}"
            );
        }
    }
}

/// The least that can be received: whatever the plan, a peer has to get what it does not have.
#[test]
fn no_plan_promises_less_than_what_has_to_move() {
    for count in 2..=9 {
        let roster = alone(count);
        let others = count as u64 - 1;
        let gather = Plan::Gather.predicted(&roster, &BYTES);
        assert_eq!(gather.received_bytes_per_peer, others * BYTES.update);
        // A sum of dense updates of one stage: each peer's part of the input is needed elsewhere, and each gets the sum.
        let same = PerStage {
            local: 1000,
            update: 1000,
            reduced: 1000,
        };
        let reduce = Plan::Reduce.predicted(&roster, &same);
        let bound = 2 * others * 1000 / count as u64;
        assert!(
            reduce.received_bytes_per_peer >= bound.min(1000 * others),
            "{count}: {reduce:?}"
        );
        assert_eq!((gather.hops, reduce.hops), (1, 2));
    }
}

#[test]
fn sources_begin_with_a_holder_and_name_everybody_once() {
    let roster = alone(9);
    for asker in roster.members() {
        for author in roster.members().iter().filter(|m| m.peer != asker.peer) {
            let sources = Sources::new(&roster, &asker.peer).of(&[author.peer], 3);
            assert_eq!(sources[0], author.peer);
            let distinct: BTreeSet<_> = sources.iter().collect();
            assert_eq!((sources.len(), distinct.len()), (8, 8));
        }
    }
}

#[test]
fn shards_are_owned_in_proportion_to_capacity_by_two_members() {
    let cases: [&[u16]; 5] = [
        &[1, 1],
        &[10; 7],
        &[10, 20, 30, 40],
        &[0, 5, 5, 5, 0],
        &[0, 0, 0],
    ];
    for capacities in cases {
        for shards in [1u32, 7, 64, 500] {
            let links: Vec<_> = capacities.iter().map(|c| ("", *c)).collect();
            let roster = roster(&links);
            let layout = layout(&roster, PlanKind::Reduce, shards);
            let owners = &layout.owners(&RUN)[0];
            assert_eq!(owners.len(), shards as usize);
            assert!(
                owners
                    .iter()
                    .all(|o| o.second.is_some_and(|second| second != o.first))
            );
            let nobody = capacities.iter().all(|c| *c == 0);
            let unit = |peer: &PeerKey| {
                let capacity = roster.member(peer).unwrap().link.capacity;
                u64::from(if nobody { 1 } else { capacity })
            };
            let total: u64 = roster.members().iter().map(|m| unit(&m.peer)).sum();
            for member in roster.members() {
                let share = u64::from(shards) * unit(&member.peer) / total;
                let first = owners.iter().filter(|o| o.first == member.peer).count() as u64;
                let both = owners.iter().filter(|o| o.contains(&member.peer)).count() as u64;
                assert!(
                    first.abs_diff(share) <= capacities.len() as u64,
                    "{capacities:?} {shards}"
                );
                let off = both.abs_diff(2 * share);
                // Nobody is both owners of a shard: the last seconds go to whoever is left.
                assert!(
                    off <= 2 * capacities.len() as u64 + share / 20,
                    "{capacities:?} {shards}: off by {off}"
                );
                if unit(&member.peer) == 0 {
                    assert_eq!(both, 0);
                }
            }
        }
    }
}

#[test]
fn each_fragment_has_owners_by_capacity_so_that_no_round_has_one_of_them_do_all() {
    let roster = roster(&[("", 10), ("", 10), ("", 20), ("", 0)]);
    let mut manifest = example(roster.members()[0].peer);
    manifest.exchange.plan = PlanKind::Reduce;
    let fragments = Fragments::deal(&[1; 60], 3).unwrap();
    let layout = Layout::of(&roster, &manifest, &fragments, &BYTES);
    let owners = &layout.owners(&RUN)[0];
    assert_eq!(owners.len(), 60);
    for shards in fragments.iter() {
        for member in roster.members() {
            let of_fragment = &owners[shards.start as usize..shards.end as usize];
            let first = of_fragment
                .iter()
                .filter(|o| o.first == member.peer)
                .count();
            assert_eq!(first, usize::from(member.link.capacity) / 2);
        }
    }
}

#[test]
fn most_shards_keep_their_owners_when_a_member_goes() {
    const SHARDS: u32 = 400;
    let (before, after) = (alone(9), alone(8));
    let of = |roster: &Roster| layout(roster, PlanKind::Reduce, SHARDS).owners(&RUN)[0].clone();
    let gone = before
        .members()
        .iter()
        .find(|m| !after.contains(&m.peer))
        .unwrap()
        .peer;
    let (owned, then) = (of(&before), of(&after));
    let pairs = owned.iter().zip(&then);
    let moved = pairs
        .filter(|(b, a)| b.iter().any(|o| o != gone && !a.contains(&o)))
        .count();
    assert!(
        moved <= SHARDS as usize / 4,
        "{moved} of {SHARDS} shards moved without need"
    );
}

#[test]
fn the_planner_gathers_in_small_runs_reduces_in_large_ones_and_sums_in_sites() {
    let small = alone(3);
    let large = alone(40);
    let sites = roster(&[("a", 1), ("a", 1), ("a", 1), ("b", 1), ("b", 1), ("b", 1)]);
    let bytes = PerStage {
        local: 200_000_000,
        update: 12_000_000,
        reduced: 50_000_000,
    };
    let mut manifest = example(small.members()[0].peer);
    manifest.exchange.plan = PlanKind::Auto;
    let chosen = |roster: &Roster, shards: u32| {
        Plan::choose(roster, &manifest, &Fragments::whole(shards), &bytes)
    };
    assert_eq!(chosen(&small, 64), Plan::Gather);
    assert_eq!(chosen(&large, 64), Plan::Reduce);
    assert_eq!(chosen(&sites, 64), Plan::Hier);
    // More reductions than fit a decision.
    assert_eq!(chosen(&large, 9000), Plan::Gather);
}
