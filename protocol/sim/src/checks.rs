//! What must hold in every run, whatever goes wrong. The checks see what peers do, never how the node decides it.
//!
//! - `one-decision`: no two peers store different decisions of a round, and each stores all rounds in order.
//! - `certified`: each stored decision carries signed precommits of a quorum of its round's roster. Counted here with the
//!   definition of a quorum, not with the node's function for it.
//! - `decision-sound`: a decision continues the one before, names only headers of its roster that their authors signed
//!   for this round and this state, and claims the state root that the oracle computes.
//! - `sums-right`: each decided reduction is what the oracle makes of the decided inputs, going on from the decided residual
//!   or, if its owners lost that, from none; unless an owner sums wrongly and something kept the other one from speaking.
//! - `capacities-follow`: a decision changes the capacity of a member only by twice or half, and only of one that had the same
//!   for some rounds; counted here from the rosters.
//! - `same-state`: after each round every peer has the root that the oracle computes.
//! - `registered-only`: in a chain run the powers of each decision are those that the model chain has at the block that it
//!   names, counted here by definition; no peer joins without; and once the faults are over and everybody has seen the same
//!   registry, a decision of an early attempt changes all that is due, so that nobody stays a member longer than needed.
//! - `one-vote`: no honest peer, restarted or not, signs two votes of one kind in one attempt, two proposals in one
//!   attempt, or two headers in one round.
//! - `orderly`: the node asks its driver only for what makes sense: training from the state before the round, applying
//!   the round after the last, each answer to a known request.
//! - `bounded`: what a node keeps and sends stays below stated bounds.
//! - `no-panic`: nothing panics (the world catches it).
//! - `converges`: after the faults everyone reaches the last round (the world decides when).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use arc_malachitebft_core_types::{NilOrVal, Round, VoteType};
use gradmesh_protocol::agreement::{CommitCertificate, CommitSignature, Message, Vote};
use gradmesh_protocol::capacity::CAPACITY_ROUNDS_MIN;
use gradmesh_protocol::decision::Decision;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::SignedHeader;
use gradmesh_protocol::key::{PeerKey, Signature};
use gradmesh_protocol::manifest::{Manifest, RoundId, RunId, TrustMode};
use gradmesh_protocol::node::View;
use gradmesh_protocol::plan::{Layout, Plan};
use gradmesh_protocol::registry::QUIET_ATTEMPT;
use gradmesh_protocol::roster::{Member, Roster};
use gradmesh_protocol::wire::{DecisionRecord, Gossip};

use crate::chain::{ChainOptions, Seen};
use crate::coverage::{Coverage, Situation};
use crate::learner::Shape;
use crate::options::{Lie, Options};
use crate::oracle::{Oracle, Replayed};
use crate::queue::Instant;

/// A check that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which, as in the module documentation.
    pub check: &'static str,
    /// When it was noticed.
    pub at: Instant,
    /// The peers concerned.
    pub peers: Vec<usize>,
    /// What was found.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {}, peers {:?}: {}",
            self.check, self.at, self.peers, self.what
        )
    }
}

/// The result of a check: the name of the one that failed, and what was found.
pub type Checked = Result<(), (&'static str, String)>;

/// Gossip that a peer may send for each decided round: two votes, a proposal, a header, a join
/// and a capacity, each again for a dozen attempts, and what an owner makes shard by shard.
const GOSSIP_PER_ROUND_MAX: u64 = 128;
/// Gossip that a peer may send for each second that passes: heartbeats, and votes sent again while it waits.
const GOSSIP_PER_SECOND_MAX: u64 = 16;

/// See the module documentation.
#[derive(Debug)]
pub struct Checks {
    run: RunId,
    trust: TrustMode,
    names: Vec<PeerKey>,
    oracle: Oracle,
    /// The decisions, from round 0, as the first peer stored them.
    decisions: Vec<Decided>,
    /// The roster of each round up to the first undecided one, and its layout.
    rosters: Vec<Roster>,
    layouts: Vec<Layout>,
    /// Peers that sum wrongly, and whether anything in this run can keep the other owner of a shard from speaking.
    falsifiers: BTreeSet<PeerKey>,
    troubled: bool,
    /// Certificate signatures that were verified: many peers store the same ones.
    verified: BTreeMap<(Hash, PeerKey), Signature>,
    votes: BTreeMap<(PeerKey, RoundId, i64, VoteKind), Hash>,
    headers: BTreeMap<(PeerKey, RoundId), Hash>,
    gossip: Vec<u64>,
    /// Peers that were put out because they were not registered.
    put_out: BTreeSet<PeerKey>,
    /// What members went by when the last decision was first stored, once the faults are over.
    window: Option<Window>,
    /// Decisions that rule `registered-only` was checked of.
    judged: usize,
}

/// What the members that are up go by.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// The oldest snapshot that any of them goes by.
    from: u64,
    /// The newest that all of them have.
    newest: u64,
}

#[derive(Debug)]
struct Decided {
    id: Hash,
    root_after: Hash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum VoteKind {
    Prevote,
    Precommit,
    Proposal,
}

/// What a decision has to change by the registry.
struct Due {
    powers: Vec<(PeerKey, u32)>,
    /// More than that would have been, had enough members been there.
    put_off: bool,
}

fn layout(roster: &Roster, manifest: &Manifest, shape: &Shape) -> Layout {
    Layout::of(roster, manifest, shape.fragments(), &shape.update_bytes())
}

fn ensure(holds: bool, check: &'static str, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err((check, what())) }
}

impl Checks {
    /// Checks of a run of the peers `names`.
    pub fn new(options: &Options, names: Vec<PeerKey>, shape: &Shape) -> Checks {
        let manifest = &options.manifest;
        let founding = Roster::founding(manifest);
        let falsifiers = names.iter().zip(&options.peers);
        let falsifiers = falsifiers.filter(|(_, peer)| peer.lie == Some(Lie::WrongSum));
        Checks {
            falsifiers: falsifiers.map(|(name, _)| *name).collect(),
            troubled: !options.faults.is_empty()
                || options.links.loss_ppm > 0
                || options.links.reorder_ppm > 0,
            layouts: vec![layout(&founding, manifest, shape)],
            run: manifest.run(),
            trust: manifest.trust.mode,
            gossip: vec![0; names.len()],
            names,
            oracle: Oracle::new(shape),
            decisions: Vec::new(),
            rosters: vec![founding],
            verified: BTreeMap::new(),
            votes: BTreeMap::new(),
            headers: BTreeMap::new(),
            put_out: BTreeSet::new(),
            window: None,
            judged: 0,
        }
    }

    /// Notes the frames of an update when it is made.
    pub fn update_made(&mut self, frames: &[Vec<u8>]) {
        self.oracle.note(frames);
    }

    /// The layout of each round up to the first undecided one.
    pub fn layouts(&self) -> &[Layout] {
        &self.layouts
    }

    /// The last decided round.
    pub fn decided(&self) -> Option<RoundId> {
        let count = self.decisions.len() as u64;
        count.checked_sub(1).map(RoundId)
    }

    /// The roster of the first undecided round.
    pub fn roster(&self) -> &Roster {
        self.rosters
            .last()
            .expect("the founding roster is always there")
    }

    /// Whether `peer` was in the roster of any round from `since` on.
    pub fn was_member(&self, peer: &PeerKey, since: RoundId) -> bool {
        let mut rosters = self.rosters.iter().skip(since.0 as usize);
        rosters.any(|roster| roster.contains(peer))
    }

    /// Notes what an owner made, right or wrong.
    pub fn reduced(&mut self, frame: &[u8], residual: &[u8]) {
        self.oracle.note(&[frame.to_vec()]);
        self.oracle.note_residual(residual);
    }

    /// The parameters after the last decision.
    pub fn theta(&self) -> &[f32] {
        self.oracle.theta()
    }

    /// The root after the last decision, if there is any.
    pub fn root(&self) -> Option<Hash> {
        self.decisions.last().map(|decided| decided.root_after)
    }

    /// The votes that a decision of `roster` needs, by definition: more than 2/3 or more than 1/2 of all.
    pub fn quorum(&self, roster: &Roster) -> u64 {
        let all: u64 = roster.members().iter().map(|m| u64::from(m.power)).sum();
        match self.trust {
            TrustMode::Byzantine => all * 2 / 3 + 1,
            TrustMode::Crash => all / 2 + 1,
        }
    }

    /// `peer`, which had `stored` decisions, stores another. Checks `one-decision`, `certified` and `decision-sound`.
    pub fn stored(
        &mut self,
        manifest: &Manifest,
        shape: &Shape,
        stored: usize,
        record: &DecisionRecord,
        coverage: &mut Coverage,
    ) -> Checked {
        let round = record.decision.round;
        ensure(round.0 == stored as u64, "one-decision", || {
            format!("stores round {round} after {stored} decisions")
        })?;
        let id = record.decision.id();
        ensure(stored <= self.decisions.len(), "one-decision", || {
            format!("stores round {round}, but nobody stored the one before")
        })?;
        self.check_certificate(stored, &id, &record.certificate)?;
        if let Some(known) = self.decisions.get(stored) {
            return ensure(known.id == id, "one-decision", || {
                format!(
                    "round {round} is decided as {id:?} here and as {:?} elsewhere",
                    known.id
                )
            });
        }
        self.check_decision(manifest, shape, &record.decision, &record.headers)?;
        let roster = self.rosters[stored].after(&record.decision, manifest);
        let next = layout(&roster, manifest, shape);
        let replayed = self
            .oracle
            .replay(shape, record, &self.layouts[stored], &next)
            .map_err(|what| ("decision-sound", what))?;
        self.check_reductions(stored, &replayed)?;
        for _ in 0..replayed.anew {
            coverage.meet(Situation::ReducedAnew);
        }
        if record.decision.shards.iter().any(|s| !s.reduced.is_empty()) {
            coverage.meet(match self.layouts[stored].plan() {
                Plan::Gather | Plan::Reduce => Situation::Reduced,
                Plan::Hier => Situation::ReducedInSites,
            });
        }
        self.check_capacities(&record.decision, &roster, coverage)?;
        if next.plan() != self.layouts[stored].plan() {
            coverage.meet(Situation::PlanChanged);
        }
        self.rosters.push(roster);
        self.layouts.push(next);
        let root_after = replayed.root;
        self.decisions.push(Decided { id, root_after });
        Ok(())
    }

    /// Checks `capacities-follow`. `next`: the roster after `decision`, which is the last one.
    fn check_capacities(
        &self,
        decision: &Decision,
        next: &Roster,
        coverage: &mut Coverage,
    ) -> Checked {
        const CHECK: &str = "capacities-follow";
        for Member { peer, link, .. } in next.members() {
            let after = link.capacity;
            let rosters = self.rosters.iter().rev();
            let mut before: Vec<u16> = rosters
                .map_while(|roster| roster.member(peer))
                .map(|known| known.link.capacity)
                .take(CAPACITY_ROUNDS_MIN as usize)
                .collect();
            let Some(last) = before.first().copied().filter(|last| *last != after) else {
                continue;
            };
            let said = decision.capacities.iter().any(|change| {
                change.peer == *peer && change.capacity == after && change.is_authentic()
            });
            ensure(said, CHECK, || {
                format!("{peer:?} comes to {after} and did not say so")
            })?;
            let stood = before.len() as u64;
            before.dedup();
            let long = stood == CAPACITY_ROUNDS_MIN && before == [last];
            ensure(long, CHECK, || {
                format!("{peer:?} comes to {after} soon after {before:?}")
            })?;
            let much = u32::from(after.max(last)) >= 2 * u32::from(after.min(last));
            ensure(much, CHECK, || {
                format!("{peer:?} comes from {last} to {after}")
            })?;
            coverage.meet(match after < last {
                true => Situation::LinkTurnedThin,
                false => Situation::LinkTurnedFat,
            });
        }
        Ok(())
    }

    /// Checks `sums-right`.
    fn check_reductions(&self, place: usize, replayed: &Replayed) -> Checked {
        let layout = &self.layouts[place];
        let owners = layout.owners(&self.run);
        for (group, shard) in &replayed.wrong {
            let group_place = layout.groups().iter().position(|g| g.id == *group);
            let owners = group_place.and_then(|place| owners[place].get(*shard as usize));
            let falsified = owners.is_some_and(|owners| {
                let mut honest = owners.iter().filter(|o| !self.falsifiers.contains(o));
                owners.iter().any(|owner| self.falsifiers.contains(&owner))
                    && (self.troubled || honest.next().is_none())
            });
            ensure(falsified, "sums-right", || {
                format!("shard {shard} of {group:?} is not what its owners {owners:?} had to make")
            })?;
        }
        Ok(())
    }

    /// A peer has stored `record`. The first time that it is stored, checks `registered-only`.
    ///
    /// `seen`: what each peer has seen of the chain, if it is up.
    pub fn registered_only(
        &mut self,
        manifest: &Manifest,
        chain: &ChainOptions,
        record: &DecisionRecord,
        calm: bool,
        seen: &[Option<Seen>],
        coverage: &mut Coverage,
    ) -> Checked {
        const CHECK: &str = "registered-only";
        let decision = &record.decision;
        let place = decision.round.0 as usize;
        if place < self.judged {
            return Ok(());
        }
        self.judged += 1;
        let roster = &self.rosters[place];
        let number = |block: u64| block / u64::from(chain.subnet.snapshot_blocks);
        if let Some(mark) = decision.registry {
            let number = number(mark.block);
            ensure(chain.mark(number) == mark, CHECK, || {
                format!("names the block {mark:?}, which is another one")
            })?;
            let due = self.due(manifest, chain, number, decision)?;
            if due.put_off {
                coverage.meet(Situation::ChangesPutOff);
            }
            ensure(decision.powers == due.powers, CHECK, || {
                format!(
                    "powers {:?}; snapshot {number} gives {:?}",
                    decision.powers, due.powers
                )
            })?;
        }
        if let Some(before) = self.window.take()
            && record.certificate.attempt < QUIET_ATTEMPT
            && roster
                .registry()
                .is_none_or(|mark| number(mark.block) <= before.newest)
        {
            // Whatever the proposer went by was one of these.
            let newest = seen.iter().flatten().filter_map(|seen| seen.newest).max();
            let newest = newest.unwrap_or(before.newest);
            let registry = |number| chain.powers(number, &self.names);
            let one = (before.from..newest).all(|n| registry(n) == registry(n + 1));
            if one {
                let due = self.due(manifest, chain, newest, decision)?;
                if due.put_off {
                    coverage.meet(Situation::ChangesPutOff);
                }
                ensure(decision.powers == due.powers, CHECK, || {
                    format!("powers {:?}; {:?} are due", decision.powers, due.powers)
                })?;
            }
        }
        for (peer, power) in &decision.powers {
            let member = roster.contains(peer);
            if *power == 0 {
                coverage.meet(if decision.round == RoundId::FOUNDING {
                    Situation::LauncherNotRegistered
                } else {
                    Situation::Deregistered
                });
                self.put_out.insert(*peer);
            } else if member {
                coverage.meet(Situation::PowerChanged);
            } else if self.put_out.remove(peer) {
                coverage.meet(Situation::Reregistered);
            }
        }
        let members = self.rosters[place + 1].members().iter();
        let places = members.filter_map(|m| self.names.iter().position(|name| *name == m.peer));
        let up: Vec<Seen> = places.filter_map(|place| seen[place]).collect();
        let from = up.iter().map(|seen| seen.before).min().flatten();
        let newest = up.iter().map(|seen| seen.newest).min().flatten();
        let window = from
            .zip(newest)
            .map(|(from, newest)| Window { from, newest });
        self.window = window.filter(|_| calm);
        Ok(())
    }

    /// What `decision`, the last one, had to change by snapshot `number`.
    fn due(
        &self,
        manifest: &Manifest,
        chain: &ChainOptions,
        number: u64,
        decision: &Decision,
    ) -> Result<Due, (&'static str, String)> {
        let roster = &self.rosters[decision.round.0 as usize];
        let powers = chain.powers(number, &self.names);
        let round = decision.round.0;
        let epoch =
            round == 0 || (round - 1).is_multiple_of(manifest.schedule.rounds_per_epoch.into());
        let mut joins = Vec::new();
        for join in &decision.joins {
            let power = powers.get(&join.peer);
            ensure(power.is_some(), "registered-only", || {
                format!(
                    "{:?} joins and is not registered in snapshot {number}",
                    join.peer
                )
            })?;
            joins.extend(power.map(|power| (join.peer, *power)));
        }
        let mut full = joins.clone();
        for member in roster.members() {
            let power = powers.get(&member.peer).copied().unwrap_or(0);
            let leaves = decision
                .leaves
                .iter()
                .any(|leave| leave.peer == member.peer);
            let differs = power == 0 || epoch && power != member.power;
            if differs && !leaves {
                full.push((member.peer, power));
            }
        }
        full.sort();
        let next = roster.after(
            &Decision {
                registry: Some(chain.mark(number)),
                powers: full.clone(),
                ..decision.clone()
            },
            manifest,
        );
        let here = next.members().iter().filter(|member| {
            let joined = decision.joins.iter().any(|join| join.peer == member.peer);
            joined || round == 0 || decision.accepts_any_of(&member.peer)
        });
        let votes: u64 = here.map(|member| u64::from(member.power)).sum();
        let put_off = votes < self.quorum(&next);
        Ok(Due {
            put_off: put_off && full != joins,
            powers: if put_off { joins } else { full },
        })
    }

    fn check_certificate(
        &mut self,
        place: usize,
        id: &Hash,
        certificate: &CommitCertificate,
    ) -> Checked {
        let roster = &self.rosters[place];
        let fits = certificate.value == *id && certificate.height == roster.round();
        ensure(fits, "certified", || {
            format!("the certificate is of {:?}", certificate.value)
        })?;
        let mut voters = Vec::new();
        let mut votes = 0;
        for CommitSignature { voter, signature } in &certificate.signatures {
            let vote = Vote {
                kind: VoteType::Precommit,
                height: certificate.height,
                round: Round::new(certificate.attempt),
                value: NilOrVal::Val(*id),
                voter: *voter,
            };
            let hash = vote.hash(&self.run);
            if self.verified.get(&(hash, *voter)) != Some(signature) {
                ensure(voter.verify(&hash, signature), "certified", || {
                    format!("the signature of {voter:?} is not its own")
                })?;
                self.verified.insert((hash, *voter), *signature);
            }
            let member = roster.members().iter().find(|m| m.peer == *voter);
            let power = member.filter(|_| !voters.contains(voter)).map(|m| m.power);
            ensure(power.is_some(), "certified", || {
                let round = roster.round();
                format!("{voter:?} has no vote in round {round}, or not twice")
            })?;
            voters.push(*voter);
            votes += u64::from(power.unwrap_or(0));
        }
        let needed = self.quorum(roster);
        ensure(votes >= needed, "certified", || {
            let round = roster.round();
            format!("{votes} votes decide round {round}; {needed} are needed")
        })
    }

    fn check_decision(
        &self,
        manifest: &Manifest,
        shape: &Shape,
        decision: &Decision,
        headers: &[SignedHeader],
    ) -> Checked {
        let place = self.decisions.len();
        let (previous, root) = match self.decisions.last() {
            Some(decided) => (decided.id, decided.root_after),
            None => (Hash::ZERO, shape.genesis().state_root()),
        };
        let roster = &self.rosters[place];
        decision
            .check(&self.run, manifest, roster, &previous, &self.layouts[place])
            .map_err(|fault| ("decision-sound", fault.to_string()))?;
        ensure(decision.state_root == root, "decision-sound", || {
            format!("claims the root {:?}; it is {root:?}", decision.state_root)
        })?;
        ensure(
            decision.members.len() == headers.len(),
            "decision-sound",
            || {
                format!(
                    "{} headers for {} members",
                    headers.len(),
                    decision.members.len()
                )
            },
        )?;
        for (member, signed) in decision.members.iter().zip(headers) {
            let header = &signed.header;
            let fits = header.hash() == member.header
                && header.peer == member.peer
                && header.run == self.run
                && header.round == decision.round
                && header.state_root == root
                && header.update.frames.len() == shape.fragments().of(decision.round).len();
            ensure(fits && signed.is_authentic(), "decision-sound", || {
                format!(
                    "the header of {:?} does not belong to this round",
                    member.peer
                )
            })?;
        }
        Ok(())
    }

    /// A peer stands at `root` after `round`, having applied or fetched it. Checks `same-state`.
    pub fn stands_at(&self, round: RoundId, root: &Hash) -> Checked {
        let decided = self.decisions.get(round.0 as usize);
        ensure(
            decided.is_some_and(|d| d.root_after == *root),
            "same-state",
            || {
                format!(
                    "has the root {root:?} after round {round}; the decisions lead to {:?}",
                    decided.map(|d| d.root_after)
                )
            },
        )
    }

    /// An honest peer publishes `gossip`. Checks `one-vote` and `bounded`.
    pub fn published(&mut self, peer: usize, now: Instant, gossip: &Gossip) -> Checked {
        let name = self.names[peer];
        let first = |known: &mut Hash, hash: Hash| *known == hash;
        match gossip {
            Gossip::Agreement(Message::Vote(vote)) => {
                let vote = &vote.message;
                let kind = match vote.kind {
                    VoteType::Prevote => VoteKind::Prevote,
                    VoteType::Precommit => VoteKind::Precommit,
                };
                let key = (vote.voter, vote.height, vote.round.as_i64(), kind);
                let hash = vote.hash(&self.run);
                let known = self.votes.entry(key).or_insert(hash);
                ensure(first(known, hash), "one-vote", || {
                    format!(
                        "a second {kind:?} of {:?} in round {}, attempt {}",
                        vote.voter, vote.height, vote.round
                    )
                })?;
            }
            Gossip::Agreement(Message::Proposal(proposal)) => {
                let proposal = &proposal.message;
                let key = (
                    proposal.proposer,
                    proposal.height,
                    proposal.round.as_i64(),
                    VoteKind::Proposal,
                );
                let hash = proposal.hash(&self.run);
                let known = self.votes.entry(key).or_insert(hash);
                ensure(first(known, hash), "one-vote", || {
                    format!(
                        "a second proposal in round {}, attempt {}",
                        proposal.height, proposal.round
                    )
                })?;
            }
            Gossip::Header(header) => {
                let hash = header.header.hash();
                let known = self
                    .headers
                    .entry((name, header.header.round))
                    .or_insert(hash);
                ensure(first(known, hash), "one-vote", || {
                    format!("a second header in round {}", header.header.round)
                })?;
            }
            Gossip::Agreement(Message::Polka(_) | Message::RoundCertificate(_))
            | Gossip::Status(_)
            | Gossip::Contact(_)
            | Gossip::Reductions(_)
            | Gossip::Join(_)
            | Gossip::Leave(_)
            | Gossip::Capacity(_)
            | Gossip::Verdict(_) => {}
        }
        self.gossip[peer] += 1;
        let bound = GOSSIP_PER_ROUND_MAX * (1 + self.decisions.len() as u64)
            + GOSSIP_PER_SECOND_MAX * (1 + now.0 / 1_000_000);
        ensure(self.gossip[peer] <= bound, "bounded", || {
            format!(
                "sends its gossip number {}; {bound} is the bound",
                self.gossip[peer]
            )
        })
    }

    /// Checks `bounded` for what a node keeps.
    pub fn keeps(&self, view: &View, shards: usize) -> Checked {
        let (sizes, peers) = (&view.sizes, self.names.len());
        // Two headers of each author: the one that counts, and one that a proposal may name instead.
        let headers = 2 * peers;
        // No run of the simulator is longer than this.
        let pending = 16;
        let bounds = [
            ("pending", sizes.pending, pending),
            // Of the round at hand, and of each decision that is not applied.
            (
                "frames",
                sizes.frames,
                (headers + 8 * peers) * shards * (1 + pending),
            ),
            ("headers", sizes.headers, headers),
            // Four of each owner for each group's shard, and the lists that they came in.
            ("reductions", sizes.reductions, (8 * shards + 65) * peers),
            ("early headers", sizes.early_headers, headers),
            // Those of the round at hand and early ones, 24 each.
            ("proposals", sizes.proposals, 48),
            // One join, leave or capacity of each peer.
            ("changes", sizes.changes, 3 * peers),
            ("snapshots", sizes.snapshots, 8),
            ("peers", sizes.peers, peers),
            ("effects", sizes.effects, 0),
        ];
        for (what, size, bound) in bounds {
            ensure(size <= bound, "bounded", || {
                format!("keeps {size} {what}; {bound} is the bound")
            })?;
        }
        Ok(())
    }
}
