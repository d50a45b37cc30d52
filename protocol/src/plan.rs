//! Who sends which frames to whom, and who sums them.
//!
//! Everything here is a pure function of the roster, the manifest and the sizes of frames, so that it is the same on every
//! peer. With `n` peers in `s` sites, `m` of them in a site, and an update of `U` bytes at [`Stage::Update`], `L` at
//! [`Stage::Local`] and `R` at [`Stage::Reduced`], a peer receives, when capacities are equal:
//!
//! | plan | bytes | hops | bytes into a site |
//! |---|---|---|---|
//! | `gather` | `(n - 1) U` | 1 | `(n - m) U` |
//! | `reduce` | `2 (n - 1)/n U + (n - 2)/n R` | 2 | `m (2 (n - m)/n U) + R (n - m)(n - m - 1)/(n (n - 1))` |
//! | `hier` | `2 (m - 1)/m L + (s - 1) U + (m - 2)/m U` | 2 | `(s - 1) U` |
//!
//! With fragments these are the bytes of the fragment that the round exchanges ([`crate::fragment`]).
//!
//! `gather`: nothing less can give a peer the exact frames of all others, because they are `(n - 1) U` bytes that it does
//! not have. `reduce`: the first term twice, because each shard has two owners that check each other; an owner has the
//! reduced frame by itself. `hier`: the last term is the site's own sum, which owners have.
//!
//! Rule `enters-once`: a frame enters a site once. The member of the site whose turn it is by the frame's shard asks outside;
//! the others ask that one first, and it answers when it has the frame.
//!
//! Rule `owners-by-capacity`: the owners of a group's shards are chosen by weighted rendezvous hashing (Thaler and Ravishankar,
//! 1998; Schindelhauer and Schomaker, 2005) with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018, with the tightest
//! bound): a member's first ownerships stay below its share by capacity, rounded up, and so do its second ones as long as
//! there is another member left to take them. When the roster changes, most shards keep their owners.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::decision::{Bitmap, DecidedMember};
use crate::fragment::Fragments;
use crate::hash::Hash;
use crate::header::{FrameId, Header, PerStage, Stage};
use crate::key::PeerKey;
use crate::manifest::{Manifest, PlanKind, RoundId, RunId, SiteId};
use crate::roster::{Member, Roster};

/// The most reductions of one decision: shards times groups. A plan that would need more is not chosen, so that a
/// proposal fits a gossip message.
pub const REDUCTIONS_MAX: usize = 8192;
/// What a unit of capacity carries: 10 Mbit/s, in bytes per second.
const CAPACITY_BYTES_PER_S: u64 = 1_250_000;
/// What a link inside a site is taken to carry: 1 Gbit/s, a guess.
const LOCAL_BYTES_PER_S: u64 = 125_000_000;
/// What a hop costs beside its bytes: a WAN round trip and a message, a guess.
const HOP_US: u64 = 100_000;

const OWNER_DOMAIN: &str = "gradmesh owner v1";

/// The members whose frames of a shard are summed by one pair of owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub Hash);

impl GroupId {
    /// Everybody: the one group of the `reduce` plan.
    pub const ALL: GroupId = GroupId(Hash::ZERO);

    /// The members in `site`: a group of the `hier` plan.
    pub fn of_site(site: SiteId) -> GroupId {
        GroupId(site.0)
    }
}

/// A group and its members, in canonical order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The group.
    pub id: GroupId,
    /// Its members; never none.
    pub members: Vec<PeerKey>,
}

/// Who sums one shard of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// Sums as soon as the frames are there.
    pub first: PeerKey,
    /// Checks the first, and stands in for it; `None` in a group with a single eligible member.
    pub second: Option<PeerKey>,
}

impl Owners {
    /// Both, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = PeerKey> + use<> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    /// Whether `peer` is one of them.
    pub fn contains(&self, peer: &PeerKey) -> bool {
        self.iter().any(|owner| owner == *peer)
    }
}

/// What a round costs by a plan, with the figures of the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Bytes that a peer receives, on average.
    pub received_bytes_per_peer: u64,
    /// Bytes that enter the site that most enter.
    pub wan_bytes_per_site: u64,
    /// Hops from an author to the last receiver.
    pub hops: u32,
    /// How long the exchange takes.
    pub micros: u64,
}

/// How the frames of a round travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plan {
    /// Everyone gets everyone's frames. No owner state.
    Gather,
    /// Two owners of each shard sum everybody's frames of it; everyone gets what they made.
    Reduce,
    /// Two owners of each shard in each site sum the site's frames; everyone gets what they made.
    Hier,
}

impl Plan {
    /// The plan for `roster`: that of the manifest, or the one with the shortest predicted exchange; the earlier of equals.
    ///
    /// `bytes`: of the frames of all shards at each stage. Fragments are taken to be of one size, so that all rounds of a
    /// roster have the same plan: owners keep their residuals from one turn of a fragment to the next.
    pub fn choose(
        roster: &Roster,
        manifest: &Manifest,
        fragments: &Fragments,
        bytes: &PerStage,
    ) -> Plan {
        let shards = fragments.shards_max() as usize;
        let fits = |plan: &Plan| plan.groups(roster).len() * shards <= REDUCTIONS_MAX;
        let bytes = &bytes.divided_by(fragments.count().into());
        let wanted = match manifest.exchange.plan {
            PlanKind::Gather => Plan::Gather,
            PlanKind::Reduce => Plan::Reduce,
            PlanKind::Hier => Plan::Hier,
            PlanKind::Auto => {
                let several = Plan::Hier.groups(roster).len() < roster.len();
                [Plan::Gather, Plan::Reduce, Plan::Hier]
                    .into_iter()
                    .filter(|plan| fits(plan) && (*plan != Plan::Hier || several))
                    .min_by_key(|plan| plan.predicted(roster, bytes).micros)
                    .unwrap_or(Plan::Gather)
            }
        };
        if fits(&wanted) { wanted } else { Plan::Gather }
    }

    /// The stage at which members encode their updates.
    pub fn stage_of_updates(self) -> Stage {
        match self {
            Plan::Gather | Plan::Reduce => Stage::Update,
            Plan::Hier => Stage::Local,
        }
    }

    /// The stage of what is applied.
    pub fn stage_of_results(self) -> Stage {
        match self {
            Plan::Gather | Plan::Hier => Stage::Update,
            Plan::Reduce => Stage::Reduced,
        }
    }

    /// The groups of `roster`, by id.
    pub fn groups(self, roster: &Roster) -> Vec<Group> {
        let mut groups: BTreeMap<GroupId, Vec<PeerKey>> = BTreeMap::new();
        for member in roster.members() {
            let id = match self {
                Plan::Gather => continue,
                Plan::Reduce => GroupId::ALL,
                Plan::Hier => GroupId::of_site(member.link.site),
            };
            groups.entry(id).or_default().push(member.peer);
        }
        let groups = groups.into_iter();
        groups.map(|(id, members)| Group { id, members }).collect()
    }

    /// Hops from an author to the last receiver.
    pub fn hops(self) -> u32 {
        match self {
            Plan::Gather => 1,
            Plan::Reduce | Plan::Hier => 2,
        }
    }

    /// What a round of `roster` costs, with `bytes` of an update at each stage.
    pub fn predicted(self, roster: &Roster, bytes: &PerStage) -> Prediction {
        let count = roster.len().max(1) as u64;
        let sites = Sites::of(roster);
        let (update, local, reduced) = (bytes.update, bytes.local, bytes.reduced);
        let share = |bytes: u64, part: u64, whole: u64| {
            let scaled = u128::from(bytes) * u128::from(part) / u128::from(whole.max(1));
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        let mut most_wan = 0;
        let mut received = 0;
        let mut micros = 0;
        for site in sites.of_site.values() {
            let members = site.len() as u64;
            let others = sites.of_site.len() as u64 - 1;
            let outside = count - members;
            // Into the site, out of it, and what one member gets in all.
            let (wan_in, wan_out, per_member) = match self {
                Plan::Gather => (
                    update.saturating_mul(outside),
                    update.saturating_mul(members * others),
                    update.saturating_mul(count - 1),
                ),
                Plan::Reduce => {
                    let sent = share(update.saturating_mul(2), members * outside, count);
                    let own = share(
                        reduced,
                        outside * outside.saturating_sub(1),
                        count * (count - 1).max(1),
                    );
                    let down = share(reduced, count.saturating_sub(2), count);
                    let up = share(update.saturating_mul(2), count - 1, count);
                    let served = share(reduced, members, count).saturating_mul(others);
                    (
                        sent.saturating_add(own),
                        sent.saturating_add(served),
                        up.saturating_add(down),
                    )
                }
                Plan::Hier => {
                    let own = share(update, members.saturating_sub(2), members);
                    let up = share(local.saturating_mul(2), members - 1, members);
                    let down = update.saturating_mul(others);
                    (down, down, up.saturating_add(down).saturating_add(own))
                }
            };
            most_wan = most_wan.max(wan_in);
            received += u128::from(per_member) * u128::from(members);
            let units: u64 = site.iter().map(|m| u64::from(m.link.capacity.max(1))).sum();
            let rate = |bytes: u64, bytes_per_s: u64| {
                u128::from(bytes) * 1_000_000 / u128::from(bytes_per_s.max(1))
            };
            let wan = rate(wan_in.max(wan_out), units * CAPACITY_BYTES_PER_S);
            let inside = per_member.saturating_sub(wan_in / members);
            let lan = if members > 1 {
                rate(inside, LOCAL_BYTES_PER_S)
            } else {
                0
            };
            micros = micros.max(wan + lan);
        }
        let hops = u64::from(self.hops()) * HOP_US;
        Prediction {
            received_bytes_per_peer: u64::try_from(received / u128::from(count))
                .unwrap_or(u64::MAX),
            wan_bytes_per_site: most_wan,
            hops: self.hops(),
            micros: u64::try_from(micros)
                .unwrap_or(u64::MAX)
                .saturating_add(hops),
        }
    }
}

/// Whom one peer asks for frames. Rule `enters-once`; among equals each asker begins after its own place, so that they do not
/// all ask the same one.
#[derive(Clone, Debug)]
pub struct Sources {
    asker: PeerKey,
    /// The other members, from the one after the asker on.
    others: Vec<PeerKey>,
    /// The members of the asker's site, in canonical order; none if it is not a member.
    mates: Vec<PeerKey>,
}

impl Sources {
    /// The sources of `asker` in `roster`.
    pub fn new(roster: &Roster, asker: &PeerKey) -> Sources {
        let members = roster.members();
        let start = members.partition_point(|member| member.peer <= *asker);
        let others = members[start..].iter().chain(&members[..start]);
        let site = roster.member(asker).map(|member| member.link.site);
        let mates = members.iter().filter(|m| Some(m.link.site) == site);
        Sources {
            asker: *asker,
            others: others.map(|m| m.peer).filter(|p| p != asker).collect(),
            mates: mates.map(|m| m.peer).collect(),
        }
    }

    /// Whose turn in the site it is to ask outside for frames of `shard`, as a place among its members.
    pub fn turn(&self, shard: u32) -> usize {
        (shard as usize).checked_rem(self.mates.len()).unwrap_or(0)
    }

    /// Whom to ask for a frame of `shard` that `holders` have from the start and everybody wants, best first. Frames with the
    /// same holders and the same [`Sources::turn`] have the same sources.
    pub fn of(&self, holders: &[PeerKey], shard: u32) -> Vec<PeerKey> {
        let Some(entry) = self.mates.get(self.turn(shard)) else {
            return self.direct(holders);
        };
        let inside = |peer: &PeerKey| self.mates.contains(peer);
        if *entry == self.asker || holders.iter().any(inside) {
            return self.direct(holders);
        }
        self.ranked(holders, |peer| {
            let holder = holders.iter().position(|holder| holder == peer);
            match holder {
                _ if peer == entry => (0, 0),
                _ if inside(peer) => (1, 0),
                Some(place) => (2, place),
                None => (3, 0),
            }
        })
    }

    /// Whom to ask for what `holders` have and only few want, best first: holders in the own site, other holders, others.
    pub fn direct(&self, holders: &[PeerKey]) -> Vec<PeerKey> {
        let outside = |peer: &PeerKey| usize::from(!self.mates.contains(peer));
        self.ranked(holders, |peer| {
            match holders.iter().position(|holder| holder == peer) {
                Some(place) => (outside(peer), place),
                None => (2, outside(peer)),
            }
        })
    }

    fn ranked(
        &self,
        holders: &[PeerKey],
        rank: impl Fn(&PeerKey) -> (usize, usize),
    ) -> Vec<PeerKey> {
        let strangers = holders
            .iter()
            .filter(|holder| **holder != self.asker && !self.others.contains(holder));
        let mut sources: Vec<PeerKey> = self.others.iter().chain(strangers).copied().collect();
        sources.sort_by_key(rank);
        sources
    }
}

/// The members of each site, in canonical order.
struct Sites<'a> {
    of_site: BTreeMap<SiteId, Vec<&'a Member>>,
}

impl Sites<'_> {
    fn of(roster: &Roster) -> Sites<'_> {
        let mut of_site: BTreeMap<SiteId, Vec<&Member>> = BTreeMap::new();
        for member in roster.members() {
            of_site.entry(member.link.site).or_default().push(member);
        }
        Sites { of_site }
    }
}

/// The plan of one roster, and its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    plan: Plan,
    fragments: Fragments,
    groups: Vec<Group>,
    /// The place of each member's group, and its capacity; none in the `gather` plan.
    members: BTreeMap<PeerKey, (usize, u16)>,
}

impl Layout {
    /// The layout of `roster`, with the plan that [`Plan::choose`] gives.
    pub fn of(
        roster: &Roster,
        manifest: &Manifest,
        fragments: &Fragments,
        bytes: &PerStage,
    ) -> Layout {
        let plan = Plan::choose(roster, manifest, fragments, bytes);
        let groups = plan.groups(roster);
        let mut members = BTreeMap::new();
        for (place, group) in groups.iter().enumerate() {
            for peer in &group.members {
                let capacity = roster.member(peer).map_or(0, |m| m.link.capacity);
                members.insert(*peer, (place, capacity));
            }
        }
        Layout {
            plan,
            fragments: fragments.clone(),
            groups,
            members,
        }
    }

    /// The plan.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Shards of the run.
    pub fn shards(&self) -> u32 {
        self.fragments.shards()
    }

    /// The shards that `round` exchanges: those that its updates have frames of, and its decision speaks of.
    pub fn shards_of(&self, round: RoundId) -> Range<u32> {
        self.fragments.of(round)
    }

    /// The frames of an update of its round, in shard order.
    pub fn frames_of(&self, header: &Header) -> impl Iterator<Item = FrameId> {
        let stage = self.plan.stage_of_updates();
        let frames = self.shards_of(header.round).zip(&header.update.frames);
        frames.map(move |(shard, frame)| frame.id(shard, stage))
    }

    /// The frame of `shard` of an update of its round; `None` if the round does not exchange it.
    pub fn frame_of(&self, header: &Header, shard: u32) -> Option<FrameId> {
        let place = shard.checked_sub(self.shards_of(header.round).start)?;
        let frame = header.update.frames.get(place as usize)?;
        Some(frame.id(shard, self.plan.stage_of_updates()))
    }

    /// The groups, by id; none in the `gather` plan.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Place of the group of `peer` among the groups.
    pub fn place_of(&self, peer: &PeerKey) -> Option<usize> {
        self.members.get(peer).map(|(place, _)| *place)
    }

    /// The groups with an accepted member, by id.
    pub fn accepted_groups(&self, members: &[DecidedMember], accepted: &Bitmap) -> Vec<GroupId> {
        let accepted = accepted
            .positions()
            .filter_map(|place| self.place_of(&members.get(place)?.peer));
        let mut places: Vec<usize> = accepted.collect();
        places.sort_unstable();
        places.dedup();
        places.iter().map(|place| self.groups[*place].id).collect()
    }

    /// The owners of each group's shards, in the order of groups and shards. Rule `owners-by-capacity`, for the shards of each
    /// fragment by themselves.
    ///
    /// Cost: a hash for each member and shard.
    pub fn owners(&self, run: &RunId) -> Vec<Vec<Owners>> {
        let of_group = |group: &Group| {
            let fragments = self.fragments.iter();
            let owners = fragments.flat_map(|shards| self.owners_in(group, shards, run));
            owners.collect()
        };
        self.groups.iter().map(of_group).collect()
    }

    fn owners_in(&self, group: &Group, shards: Range<u32>, run: &RunId) -> Vec<Owners> {
        let capacity = |peer: &PeerKey| self.members.get(peer).map_or(0, |(_, c)| u64::from(*c));
        let nobody = group.members.iter().all(|peer| capacity(peer) == 0);
        let mut candidates: Vec<Candidate> = group
            .members
            .iter()
            .map(|peer| (*peer, if nobody { 1 } else { capacity(peer) }))
            .filter(|(_, capacity)| *capacity > 0)
            .map(|(peer, capacity)| Candidate {
                peer,
                capacity,
                quota: 0,
                loads: [0; 2],
            })
            .collect();
        let total: u64 = candidates.iter().map(|c| c.capacity).sum();
        for candidate in &mut candidates {
            candidate.quota = (shards.len() as u64 * candidate.capacity).div_ceil(total);
        }
        let mut choose = |shard: u32| {
            let mut ranked: Vec<(u128, usize)> = candidates
                .iter()
                .enumerate()
                .map(|(place, candidate)| (distance(run, group.id, shard, candidate), place))
                .collect();
            ranked.sort_unstable();
            let mut pick = |role: usize, taken: Option<usize>| {
                let free = ranked
                    .iter()
                    .map(|(_, place)| *place)
                    .filter(|p| Some(*p) != taken);
                let below = free
                    .clone()
                    .find(|p| candidates[*p].loads[role] < candidates[*p].quota);
                let place = below.or_else(|| {
                    // Whoever is the least over its share.
                    free.min_by_key(|p| {
                        let candidate = &candidates[*p];
                        (u128::from(candidate.loads[role]) << 64) / u128::from(candidate.capacity)
                    })
                })?;
                candidates[place].loads[role] += 1;
                Some(place)
            };
            let first = pick(0, None)?;
            let second = pick(1, Some(first));
            Some(Owners {
                first: candidates[first].peer,
                second: second.map(|place| candidates[place].peer),
            })
        };
        shards.map_while(&mut choose).collect()
    }
}

struct Candidate {
    peer: PeerKey,
    capacity: u64,
    quota: u64,
    loads: [u64; 2],
}

/// How far a shard is from a candidate: exponentially distributed with a mean of one over its capacity, so that the nearest
/// of all is each of them in proportion to capacity.
fn distance(run: &RunId, group: GroupId, shard: u32, candidate: &Candidate) -> u128 {
    let mut body = Vec::with_capacity(100);
    body.extend_from_slice(&run.0.0);
    body.extend_from_slice(&group.0.0);
    body.extend_from_slice(&shard.to_le_bytes());
    body.extend_from_slice(&candidate.peer.0);
    let hash = Hash::in_domain(OWNER_DOMAIN, &body);
    let mut low = [0; 8];
    low.copy_from_slice(&hash.0[..8]);
    let drawn = u64::from_le_bytes(low) | 1;
    (u128::from(minus_log2(drawn)) << 32) / u128::from(candidate.capacity)
}

/// `64 - log2(drawn)` in units of 2^-32, rounded up: integers, so that it is the same on every machine.
fn minus_log2(drawn: u64) -> u64 {
    let zeros = drawn.leading_zeros();
    // In [2^63, 2^64), read as [1, 2); each squaring gives one more binary digit of the logarithm.
    let mut mantissa = drawn << zeros;
    let mut digits = 0u64;
    for _ in 0..32 {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let carry = square >> 127;
        mantissa = (square >> (63 + carry)) as u64;
        digits = (digits << 1) | carry as u64;
    }
    ((u64::from(zeros) + 1) << 32) - digits
}

#[cfg(test)]
mod tests;
