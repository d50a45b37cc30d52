//! An owner's part in a round, and what everybody does with what owners announce. The rules stand in [`super::reduction`].

use std::collections::{BTreeMap, BTreeSet};

use super::effect::{Contribution, OwnedShard, ReduceTask};
use super::exchange::Exchange;
use super::frames::Standing;
use super::reduction::{Belief, CLAIMS_PER_OWNER, Claim, Part, Reducing};
use super::voting::Verdict;
use super::{Asking, Effect, Node, Report, RequestId};
use crate::decision::{Bitmap, DecidedMember, DecidedReduction, DecidedShard, Decision};
use crate::hash::Hash;
use crate::header::{FrameId, Header};
use crate::key::PeerKey;
use crate::manifest::{PEERS_MAX, RoundId};
use crate::plan::{GroupId, Plan, Sources};
use crate::reduction::{Reduction, Reductions, SignedReductions};
use crate::time::Time;
use crate::wire::{ANNOUNCEMENTS_MAX, Gossip, HEADERS_MAX, Request};

/// Lists kept that came before the exchange of their round was open: those of a full roster.
const EARLY_LISTS_MAX: usize = PEERS_MAX as usize;

impl Node {
    /// What owners announced for `round`, to answer [`Request::Reductions`].
    pub fn reductions(&self, round: RoundId) -> Vec<SignedReductions> {
        let exchange = self.exchange.as_ref().filter(|e| e.round == round);
        let lists = exchange.into_iter().flat_map(|e| e.reducing.lists());
        lists.take(ANNOUNCEMENTS_MAX).cloned().collect()
    }

    /// What there is to reduce in the round at hand.
    pub(super) fn new_reducing(&self) -> Reducing {
        let mut parts = BTreeMap::new();
        let shards = self.layout.shards_of(self.roster.round());
        for (group, owners) in self.layout.groups().iter().zip(&self.owners) {
            let owners = owners.iter().skip(shards.start as usize);
            for (shard, owners) in shards.clone().zip(owners) {
                let key = (group.id, shard);
                let residual = self.residuals.get(&key).copied().unwrap_or(Hash::ZERO);
                parts.insert(key, Part::new(group.id, shard, *owners, residual));
            }
        }
        let patience = self.patience(&self.reduction_arrivals);
        Reducing::new(parts, patience)
    }

    /// Tells the driver whose residuals this peer has to have at hand.
    pub(super) fn own_shards(&mut self) {
        let mut owned = Vec::new();
        for (group, owners) in self.layout.groups().iter().zip(&self.owners) {
            for (shard, owners) in (0..).zip(owners) {
                let residual = self.residuals.get(&(group.id, shard));
                if let Some(residual) = residual.filter(|_| owners.contains(&self.me)) {
                    owned.push(OwnedShard {
                        group: group.id,
                        shard,
                        residual: *residual,
                        sources: self.residual_sources(group.id, shard),
                    });
                }
            }
        }
        if !owned.is_empty() || self.owns_some {
            self.owns_some = !owned.is_empty();
            self.effects.push_back(Effect::Own(owned));
        }
    }

    /// Who may have the residual of a part: the owners of now and before, then everybody.
    fn residual_sources(&self, group: GroupId, shard: u32) -> Vec<PeerKey> {
        let place = self.layout.groups().iter().position(|g| g.id == group);
        let now = place.and_then(|place| self.owners.get(place)?.get(shard as usize));
        let before = self.owners_before.get(&group);
        let before = before.and_then(|owners| owners.get(shard as usize));
        let mut holders: Vec<PeerKey> = Vec::new();
        for owner in now
            .into_iter()
            .chain(before)
            .flat_map(|owners| owners.iter())
        {
            if owner != self.me && !holders.contains(&owner) {
                holders.push(owner);
            }
        }
        let others = Sources::new(&self.roster, &self.me).direct(&holders);
        let rest = others.into_iter().filter(|peer| !holders.contains(peer));
        holders.iter().copied().chain(rest).collect()
    }

    /// The frames of an update that this peer needs for the round at hand: all of them in the `gather` plan, otherwise those
    /// that it sums.
    pub(super) fn wanted_frames(&self, header: &Header) -> BTreeSet<FrameId> {
        let ids = self.layout.frames_of(header);
        match self.layout.plan() {
            Plan::Gather => ids.collect(),
            Plan::Reduce | Plan::Hier => {
                let place = self.layout.place_of(&header.peer);
                let owners = place.and_then(|place| self.owners.get(place));
                let owns = |frame: &FrameId| {
                    let owners = owners.and_then(|owners| owners.get(frame.shard as usize));
                    owners.is_some_and(|owners| owners.contains(&self.me))
                };
                ids.filter(owns).collect()
            }
        }
    }

    /// An owner's list, from itself or passed on.
    pub(super) fn on_reductions(&mut self, now: Time, list: SignedReductions) {
        let (owner, round) = (list.reductions.owner, list.reductions.round);
        let current = self.roster.round();
        if list.reductions.run != self.config.run || owner == self.me {
            return;
        }
        if (self.exchange.is_none() && round == current) || round == current.next() {
            let room = self.early_lists.len() < EARLY_LISTS_MAX;
            if room && self.roster.contains(&owner) && !self.early_lists.contains(&list) {
                self.early_lists.push(list);
            }
            return;
        }
        let exchange = self.exchange.as_ref().filter(|e| e.round == round);
        let news = exchange.is_some_and(|e| !e.reducing.keeps(&list));
        if !news || !self.roster.contains(&owner) {
            return;
        }
        if !list.is_authentic() {
            tracing::debug!(?owner, "list of reductions that its owner did not sign");
            return;
        }
        self.take_list(now, list);
    }

    /// Takes in an authentic list of the round at hand.
    fn take_list(&mut self, now: Time, list: SignedReductions) {
        let owner = list.reductions.owner;
        let stage = self.layout.plan().stage_of_results();
        let bytes_max = self.config.frame_bytes_max.of(stage);
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        let mut taken = Vec::new();
        let mut unowned = false;
        for entry in &list.reductions.reductions {
            let part = exchange.reducing.parts.get_mut(&(entry.group, entry.shard));
            let Some(part) = part.filter(|part| part.owners.contains(&owner)) else {
                unowned = true;
                continue;
            };
            let places = entry.accepted.positions();
            let headers: Vec<Hash> = places.map(|place| list.reductions.headers[place]).collect();
            if headers.is_empty() || entry.frame.bytes > bytes_max {
                unowned = true;
                continue;
            }
            let claim = Claim {
                headers,
                frame: entry.frame,
                residual_before: entry.residual_before,
                residual: entry.residual,
            };
            if part.insert(now, owner, claim) {
                taken.push((entry.shard, entry.frame.id(entry.shard, stage)));
            }
        }
        if !taken.is_empty() {
            exchange.reducing.keep(list);
        }
        if unowned {
            self.blame(owner, "announced a reduction that is not its to make");
        }
        if owner != self.me {
            let sources = Sources::new(&self.roster, &self.me);
            for (shard, frame) in taken {
                self.want_result(&sources, shard, frame, owner);
            }
            self.ask_for_headers(now);
        }
    }

    fn want_result(&mut self, sources: &Sources, shard: u32, frame: FrameId, owner: PeerKey) {
        let round = self.roster.round();
        let sources = sources.of(&[owner], shard);
        let standing = self.frames.want(round, frame, sources, &mut self.effects);
        if standing == Standing::Malformed {
            self.on_frame_malformed(&frame);
        }
    }

    /// Sums what is due, and announces what was summed. Rule `owners-follow`.
    pub(super) fn reduce(&mut self, now: Time) -> bool {
        let Some(exchange) = self.exchange.as_ref().filter(|e| !e.reducing.is_idle()) else {
            return false;
        };
        let silent = self.silent(now);
        let mut due: Vec<((GroupId, u32), Vec<Hash>)> = Vec::new();
        for (place, group) in self.layout.groups().iter().enumerate() {
            let Some(owners) = self.owners.get(place) else {
                continue;
            };
            for (shard, owners) in (0..).zip(owners) {
                let part = exchange.reducing.parts.get(&(group.id, shard));
                if let Some(part) = part.filter(|_| owners.contains(&self.me))
                    && let Some(headers) = self.inputs_due(now, &silent, exchange, part, place)
                {
                    due.push(((group.id, shard), headers));
                }
            }
        }
        let progress = !due.is_empty();
        for (key, headers) in due {
            self.start_reducing(key, headers);
        }
        self.note_settled(now);
        let exchange = self.exchange.as_ref();
        let ready = exchange.is_some_and(|e| {
            let mut parts = e.reducing.parts.values();
            !e.reducing.unannounced.is_empty() && parts.all(|part| part.summing.is_none())
        });
        if ready {
            self.announce(now);
        }
        self.set_due(now);
        progress
    }

    /// The headers whose frames this peer, an owner, has to sum now for `part`.
    fn inputs_due(
        &self,
        now: Time,
        silent: &BTreeSet<PeerKey>,
        exchange: &Exchange,
        part: &Part,
        group: usize,
    ) -> Option<Vec<Hash>> {
        if part.summing.is_some() || part.failed {
            return None;
        }
        let mine: Vec<&Claim> = part.claims_of(&self.me).collect();
        if mine.len() >= CLAIMS_PER_OWNER {
            return None;
        }
        let doubled = exchange.doubled();
        let complete = |header: &Hash| {
            let signed = exchange.header(header)?;
            let of_group = self.layout.place_of(&signed.header.peer) == Some(group);
            let frame = self.layout.frame_of(&signed.header, part.shard)?;
            let here = exchange.is_held(header, &frame);
            (of_group && here).then_some(signed.header.peer)
        };
        let followed = part.claims().find(|(owner, claim, _)| {
            let authors: Option<BTreeSet<PeerKey>> = claim.headers.iter().map(complete).collect();
            **owner != self.me
                && mine.iter().all(|mine| mine.headers != claim.headers)
                && authors.is_some_and(|authors| authors.len() == claim.headers.len())
        });
        if let Some((_, claim, _)) = followed {
            return Some(claim.headers.clone());
        }
        // Rule `two-headers-none-summed`.
        let named = part
            .claims()
            .filter(|(_, claim, _)| claim.names_any(&doubled));
        let mut freed = named.map(|(_, claim, _)| claim.without(&doubled));
        let freed = freed.find(|headers| {
            let known = headers.iter().all(|header| complete(header).is_some());
            known && !headers.is_empty() && mine.iter().all(|mine| mine.headers != *headers)
        });
        if freed.is_some() || !mine.is_empty() {
            return freed;
        }
        let members = &self.layout.groups()[group].members;
        let first = members.iter().filter_map(|peer| exchange.first_of(peer));
        let (out, first): (Vec<Hash>, Vec<Hash>) = first.partition(|h| doubled.contains(h));
        let here = first.into_iter().filter(|hash| complete(hash).is_some());
        let mut here: Vec<Hash> = here.collect();
        let half = exchange.reducing.patience / 2;
        let first = part.owners.first;
        let mute = silent.contains(&first) && part.claims_of(&first).next().is_none();
        let due = if first == self.me || mute {
            exchange.deadline
        } else {
            let heard = part.claims().map(|(.., since)| since).min();
            exchange.deadline.max(heard.unwrap_or(exchange.deadline)) + half
        };
        let all = here.len() + out.len() == members.len();
        here.sort_unstable();
        (!here.is_empty() && (all || due <= now)).then_some(here)
    }

    fn start_reducing(&mut self, key: (GroupId, u32), headers: Vec<Hash>) {
        let plan = self.layout.plan();
        let sources = self.residual_sources(key.0, key.1);
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        let mut inputs: Vec<(PeerKey, Contribution, Hash)> = Vec::new();
        for hash in &headers {
            if let Some(signed) = exchange.header(hash)
                && let Some(frame) = self.layout.frame_of(&signed.header, key.1)
            {
                let tokens = signed.header.update.tokens;
                let contribution = Contribution { tokens, frame };
                inputs.push((signed.header.peer, contribution, *hash));
            }
        }
        inputs.sort_unstable();
        let Some(part) = exchange.reducing.parts.get_mut(&key) else {
            return;
        };
        part.summing = Some(headers);
        self.effects.push_back(Effect::Reduce(Box::new(ReduceTask {
            round: exchange.round,
            group: key.0,
            shard: key.1,
            output: plan.stage_of_results(),
            headers: inputs.iter().map(|(.., hash)| *hash).collect(),
            inputs: inputs
                .iter()
                .map(|(_, contribution, _)| *contribution)
                .collect(),
            residual: part.residual,
            sources,
        })));
    }

    pub(super) fn on_reduction_ready(
        &mut self,
        now: Time,
        round: RoundId,
        key: (GroupId, u32),
        mut claim: Claim,
    ) {
        claim.headers.sort_unstable();
        let stage = self.layout.plan().stage_of_results();
        let Some(exchange) = self.exchange.as_mut().filter(|e| e.round == round) else {
            return;
        };
        let Some(part) = exchange.reducing.parts.get_mut(&key) else {
            return;
        };
        if part
            .summing
            .take_if(|headers| *headers == claim.headers)
            .is_none()
        {
            return;
        }
        self.frames.put(round, claim.frame.id(key.1, stage));
        if part.insert(now, self.me, claim) {
            exchange.reducing.unannounced.insert(key);
        }
    }

    pub(super) fn on_reduction_failed(&mut self, round: RoundId, key: (GroupId, u32)) {
        if let Some(exchange) = self.exchange.as_mut().filter(|e| e.round == round)
            && let Some(part) = exchange.reducing.parts.get_mut(&key)
        {
            part.summing = None;
            part.failed = true;
        }
    }

    /// Announces what is new.
    fn announce(&mut self, now: Time) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        let new = std::mem::take(&mut exchange.reducing.unannounced);
        self.publish_reductions(now, |key| new.contains(key));
    }

    /// Announces again all that this peer made: for whoever came late.
    pub(super) fn announce_again(&mut self, now: Time) {
        if let Some(exchange) = &mut self.exchange {
            exchange.reducing.unannounced.clear();
        }
        self.publish_reductions(now, |_| true);
    }

    /// Announces what this peer made of the parts that `wanted` names, in one list for each of its claims.
    fn publish_reductions(&mut self, now: Time, wanted: impl Fn(&(GroupId, u32)) -> bool) {
        for place in 0..CLAIMS_PER_OWNER {
            let Some(exchange) = &self.exchange else {
                return;
            };
            let parts = exchange.reducing.parts.iter();
            let made = parts
                .filter(|(key, _)| wanted(key))
                .filter_map(|(key, part)| Some((*key, part.claims_of(&self.me).nth(place)?)));
            let made: Vec<_> = made.collect();
            let headers: BTreeSet<Hash> = made
                .iter()
                .flat_map(|(_, claim)| claim.headers.iter().copied())
                .collect();
            if made.is_empty() || headers.len() > HEADERS_MAX {
                continue;
            }
            let headers: Vec<Hash> = headers.into_iter().collect();
            let entries = made.into_iter().map(|((group, shard), claim)| {
                let places = claim
                    .headers
                    .iter()
                    .filter_map(|h| headers.binary_search(h).ok());
                Reduction {
                    group,
                    shard,
                    accepted: Bitmap::of(headers.len(), places),
                    frame: claim.frame,
                    residual_before: claim.residual_before,
                    residual: claim.residual,
                }
            });
            let list = Reductions {
                run: self.config.run,
                round: exchange.round,
                owner: self.me,
                reductions: entries.collect(),
                headers,
            };
            let list = list.sign(&self.config.keypair);
            if let Some(exchange) = &mut self.exchange {
                exchange.reducing.keep(list.clone());
            }
            self.broadcast(Gossip::Reductions(Box::new(list)));
        }
        self.set_due(now);
    }

    /// Notes which parts are settled, and reports owners that contradict each other.
    fn note_settled(&mut self, now: Time) {
        let stage = self.layout.plan().stage_of_results();
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        let doubled = exchange.doubled();
        let mut reports = Vec::new();
        for part in exchange.reducing.parts.values_mut() {
            match part.belief(&doubled) {
                Belief::Confirmed(claim) if part.settled_after.is_none() => {
                    if self.frames.is_held(&claim.frame.id(part.shard, stage)) {
                        part.settled_after = Some(now - exchange.started);
                    }
                }
                Belief::Disputed if !part.reported => {
                    if let Some(second) = part.owners.second {
                        part.reported = true;
                        reports.push(Report::OwnersDisagree {
                            round: exchange.round,
                            group: part.group,
                            shard: part.shard,
                            owners: [part.owners.first, second],
                        });
                    }
                }
                Belief::Silence | Belief::Confirmed(_) | Belief::Alone(..) | Belief::Disputed => {}
            }
        }
        self.effects.extend(reports.into_iter().map(Effect::Report));
    }

    /// When something is due that no input brings about.
    fn set_due(&mut self, now: Time) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        let (deadline, patience) = (exchange.deadline, exchange.reducing.patience);
        let said = exchange
            .reducing
            .parts
            .values()
            .flat_map(|part| part.claims());
        let begins = said
            .map(|(.., since)| deadline.max(since))
            .chain([deadline]);
        let dues = begins.flat_map(|at| [at, at + patience / 2, at + patience]);
        let last = exchange.reducing.last_due(deadline);
        exchange.reducing.next_due = dues.chain([last]).filter(|due| *due > now).min();
    }

    /// Whether nothing more has to be waited for before the agreement.
    pub(super) fn is_reduced(&self, now: Time, exchange: &Exchange) -> bool {
        let reducing = &exchange.reducing;
        let stage = self.layout.plan().stage_of_results();
        let second = exchange.deadline + reducing.patience;
        let silent = self.silent(now);
        // What only silent owners have, or could have, does not come any more.
        let lost = |part: &Part, claim: Option<&Claim>| {
            let says_so = |owner: &PeerKey| part.claims_of(owner).any(|said| Some(said) == claim);
            let mut holders = part.owners.iter().filter(|o| claim.is_none() || says_so(o));
            exchange.deadline <= now && holders.all(|owner| silent.contains(&owner))
        };
        let doubled = exchange.doubled();
        let settled = |part: &Part| match part.belief(&doubled) {
            Belief::Confirmed(claim) => {
                let known = claim.headers.iter().all(|h| exchange.header(h).is_some());
                let held = self.frames.is_held(&claim.frame.id(part.shard, stage));
                let counts = known && !claim.names_any(&doubled) || second <= now;
                counts && held || lost(part, Some(claim))
            }
            Belief::Alone(claim, since) => {
                let held = self.frames.is_held(&claim.frame.id(part.shard, stage));
                let counts = exchange.counts_alone(now, &silent, part, claim, since);
                counts && (held || lost(part, Some(claim)))
            }
            Belief::Silence => second <= now || lost(part, None),
            Belief::Disputed => second <= now,
        };
        reducing.last_due(exchange.deadline) <= now || reducing.parts.values().all(settled)
    }

    /// What can be proposed: everything that counts and is at hand.
    pub(super) fn accepted_reductions(
        &self,
        now: Time,
        exchange: &Exchange,
    ) -> (Vec<DecidedMember>, Vec<DecidedShard>) {
        let stage = self.layout.plan().stage_of_results();
        let silent = self.silent(now);
        let doubled = exchange.doubled();
        let mut chosen: Vec<(&Part, &Claim)> = Vec::new();
        for part in exchange.reducing.parts.values() {
            let claim = match part.belief(&doubled) {
                Belief::Confirmed(claim) => claim,
                Belief::Alone(claim, since)
                    if exchange.counts_alone(now, &silent, part, claim, since) =>
                {
                    claim
                }
                Belief::Silence | Belief::Alone(..) | Belief::Disputed => continue,
            };
            let held = self.frames.is_held(&claim.frame.id(part.shard, stage));
            if held && self.authors(exchange, part.group, claim).is_some() {
                chosen.push((part, claim));
            }
        }
        // An author may have signed two headers: the one that went into more reductions counts, and only what has it.
        let mut uses: BTreeMap<Hash, usize> = BTreeMap::new();
        for (_, claim) in &chosen {
            for header in &claim.headers {
                *uses.entry(*header).or_default() += 1;
            }
        }
        let mut best: BTreeMap<PeerKey, (usize, Hash)> = BTreeMap::new();
        for (header, count) in uses {
            if let Some(signed) = exchange.header(&header) {
                let candidate = (count, header);
                let best = best.entry(signed.header.peer).or_insert(candidate);
                *best = (*best).max(candidate);
            }
        }
        let counts: BTreeSet<Hash> = best.values().map(|(_, header)| *header).collect();
        chosen.retain(|(_, claim)| claim.headers.iter().all(|h| counts.contains(h)));
        let used: BTreeSet<Hash> = chosen
            .iter()
            .flat_map(|(_, claim)| claim.headers.iter().copied())
            .collect();
        let members: Vec<DecidedMember> = best
            .into_iter()
            .filter(|(_, (_, header))| used.contains(header))
            .map(|(peer, (_, header))| DecidedMember { peer, header })
            .collect();
        let place = |header: &Hash| members.iter().position(|m| m.header == *header);
        let shards = self.layout.shards_of(exchange.round).map(|shard| {
            // Parts are in the order of groups.
            let of_shard = chosen.iter().filter(|(part, _)| part.shard == shard);
            let accepted = of_shard.clone().flat_map(|(_, claim)| &claim.headers);
            DecidedShard {
                accepted: Bitmap::of(members.len(), accepted.filter_map(place)),
                reduced: of_shard
                    .map(|(_, claim)| DecidedReduction {
                        frame: claim.frame,
                        residual: claim.residual,
                    })
                    .collect(),
            }
        });
        let shards = shards.collect();
        (members, shards)
    }

    /// The authors of a claim's headers, if all are known, different and of its group.
    fn authors(&self, exchange: &Exchange, group: GroupId, claim: &Claim) -> Option<Vec<PeerKey>> {
        let mut authors = BTreeSet::new();
        for header in &claim.headers {
            let author = exchange.header(header)?.header.peer;
            let place = self.layout.place_of(&author)?;
            if self.layout.groups()[place].id != group || !authors.insert(author) {
                return None;
            }
        }
        Some(authors.into_iter().collect())
    }

    /// Judges the reductions of a sound proposal. Rules `bytes-before-votes` and `two-say-so`.
    pub(super) fn judge_reductions(&mut self, now: Time, decision: &Decision) -> Verdict {
        let stage = self.layout.plan().stage_of_results();
        let vouched = self.agreement.is_vouched_for(&decision.id());
        let silent = self.silent(now);
        let Some(exchange) = &self.exchange else {
            return Verdict::NotYet;
        };
        let doubled = exchange.doubled();
        let mut verdict = Verdict::Acceptable;
        let (mut missing, mut lacks) = (Vec::new(), false);
        let shards = self.layout.shards_of(decision.round);
        for (shard, decided) in shards.zip(&decision.shards) {
            let groups = self
                .layout
                .accepted_groups(&decision.members, &decided.accepted);
            for (group, reduction) in groups.iter().zip(&decided.reduced) {
                let Some(part) = exchange.reducing.parts.get(&(*group, shard)) else {
                    return Verdict::Unacceptable("proposed a reduction of no group");
                };
                let accepted = decided.accepted.positions();
                let accepted = accepted.filter_map(|place| decision.members.get(place));
                let mut headers: Vec<Hash> = accepted
                    .filter(|m| {
                        let place = self.layout.place_of(&m.peer);
                        place.is_some_and(|place| self.layout.groups()[place].id == *group)
                    })
                    .map(|member| member.header)
                    .collect();
                headers.sort_unstable();
                let frame = reduction.frame.id(shard, stage);
                if !self.frames.is_held(&frame) {
                    missing.push((shard, frame, part.owners.first));
                    verdict = Verdict::NotYet;
                    continue;
                }
                let said = part.claims().map(|(_, claim, _)| claim).filter(|claim| {
                    claim.headers == headers
                        && claim.frame == reduction.frame
                        && claim.residual == reduction.residual
                });
                let standing = said.map(|claim| {
                    let alone = || part.alone_since(claim, &doubled);
                    let ripe = |since| exchange.counts_alone(now, &silent, part, claim, since);
                    if part.is_confirmed(claim) {
                        Verdict::Acceptable
                    } else {
                        match alone() {
                            Some(since) if ripe(since) => Verdict::Acceptable,
                            Some(_) => Verdict::NotYet,
                            None => Verdict::Doubtful,
                        }
                    }
                });
                let standing = standing.max();
                let unheard = standing.is_none();
                match standing {
                    Some(Verdict::Acceptable) => {}
                    _ if vouched => {}
                    Some(Verdict::Doubtful) if verdict != Verdict::NotYet => {
                        verdict = Verdict::Doubtful;
                    }
                    _ => verdict = Verdict::NotYet,
                }
                if unheard && !vouched {
                    lacks = true;
                }
            }
        }
        self.lacks_reductions |= lacks;
        let sources = Sources::new(&self.roster, &self.me);
        let bytes_max = self.config.frame_bytes_max.of(stage);
        for (shard, frame, owner) in missing {
            if frame.bytes > bytes_max {
                return Verdict::Unacceptable("proposed a reduced frame that is too long");
            }
            self.want_result(&sources, shard, frame, owner);
        }
        verdict
    }

    /// Asks a peer that has proposed what owners said, if this peer did not hear it.
    pub(super) fn ask_for_reductions(&mut self, now: Time) {
        if !std::mem::take(&mut self.lacks_reductions) || self.asking_reductions.is_some() {
            return;
        }
        let proposers = self.proposals.iter().map(|proposal| proposal.proposer);
        let silent = self.silent(now);
        let proposers: Vec<PeerKey> = proposers
            .filter(|p| *p != self.me && self.is_connected(p) && !silent.contains(p))
            .collect();
        if let Some(peer) = self.take_turn(&proposers) {
            let id = self.request(peer, Request::Reductions(self.roster.round()));
            self.asking_reductions = Some(Asking {
                id,
                peer,
                since: now,
            });
        }
    }

    pub(super) fn on_reductions_answer(
        &mut self,
        now: Time,
        id: RequestId,
        lists: Vec<SignedReductions>,
    ) {
        if self
            .asking_reductions
            .take_if(|asking| asking.id == id)
            .is_some()
        {
            for list in lists {
                self.on_reductions(now, list);
            }
        }
    }

    /// How long the decided reductions were under way after the updates, to adapt the second deadline.
    pub(super) fn reductions_took(
        &self,
        now: Time,
        exchange: &Exchange,
        decision: &Decision,
    ) -> Option<std::time::Duration> {
        let reducing = &exchange.reducing;
        let mut slowest = None;
        let shards = self.layout.shards_of(decision.round);
        for (shard, decided) in shards.zip(&decision.shards) {
            for group in self
                .layout
                .accepted_groups(&decision.members, &decided.accepted)
            {
                let part = reducing.parts.get(&(group, shard));
                let settled = part.and_then(|part| part.settled_after);
                slowest = slowest.max(Some(settled.unwrap_or(now - exchange.started)));
            }
        }
        let members = self.roster.members().iter();
        let heard = members.map(|member| exchange.heard_after(&member.peer));
        let heard = heard
            .collect::<Option<Vec<_>>>()
            .and_then(|all| all.into_iter().max());
        let deadline = exchange.deadline - exchange.started;
        let begun = heard.map_or(deadline, |heard| heard.min(deadline));
        slowest.map(|slowest| slowest.saturating_sub(begun))
    }
}
