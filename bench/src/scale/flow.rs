//! A round as flows: what crosses each line, by the same plan functions that the nodes go by, over its rate.
//!
//! Nothing goes wrong, all peers are ready at once, and flows share lines evenly. Then the exchange takes
//!
//! ```text
//! max over lines of (bytes of all that crosses it) / rate  +  hops  +  proposal  +  votes  +  fixed work
//! ```
//!
//! Until the decision each peer also repeats its header to everybody once a second (the heartbeat of the node). Up to the number
//! of peers that a manifest allows, the rate is less by what that takes; beyond, it is assumed not to happen.
//!
//! The first term is what the busiest line of all has to carry: headers, frames on the way up, owners' lists, results. That
//! the steps of a plan follow one another seamlessly on it is an assumption, and so is that no line waits for another: the time is
//! a lower bound, and `nodes` are there to say how far above it they are. What is counted:
//!
//! - **headers**, owners' **lists**, the **proposal** and **votes**: everyone gets each once, from whoever made it, and a site gets
//!   it once for each of its peers. So do the nodes of the simulator, and so does the daemon's gossip, which publishes to all
//!   it is connected to; beyond [`CONNECTIONS`] receivers others pass on, three each.
//! - **frames**: rule `enters-once` of [`gradmesh_protocol::plan`] for updates under `gather` and for results; updates go
//!   straight to each owner under `reduce` and `hier`. Each is asked for. Under `reduce` the second owner of a shard asks for the
//!   result too: over a line that is full, it hears what the first one made before it has all inputs itself, as nodes show.
//! - **hops**: one-way latencies one after the other: a header, a question and a frame; the list, a question and a result
//!   where there are owners; a proposal and two rounds of votes. Under `hier` the first question and frame stay inside a site.
//! - **fixed work**: summing and applying, as the simulator has it.

use std::collections::BTreeMap;

use gradmesh_protocol::manifest::PEERS_MAX;
use gradmesh_protocol::plan::{Group, Owners, Plan};
use gradmesh_sim::lengths;
use gradmesh_sim::options::Large;

use super::case::Case;
use super::figures::{Figures, Source};

/// Every message costs so much beyond its own bytes, and a question for a frame has so many: as in the simulator.
const MESSAGE_BYTES: f64 = 80.0;
const QUESTION_BYTES: f64 = 48.0;
/// Receivers that a daemon publishes to directly: its connections (`daemon/src/net/control/mod.rs`).
const CONNECTIONS: usize = 256;
/// To how many a receiver passes gossip on (`daemon/src/net/control/behaviour.rs`).
const PASSED_ON: f64 = 3.0;

/// Bytes and messages on all lines.
struct Lines {
    /// Members of each site.
    members: Vec<f64>,
    peers: f64,
    up: Vec<f64>,
    down: Vec<f64>,
    /// Inside each site, over all its hosts.
    inside: Vec<f64>,
    messages: f64,
}

impl Lines {
    fn new(members: Vec<f64>) -> Lines {
        let none = vec![0.0; members.len()];
        Lines {
            peers: members.iter().sum(),
            up: none.clone(),
            down: none.clone(),
            inside: none,
            messages: 0.0,
            members,
        }
    }

    /// `count` messages of `bytes` bytes from `site`, each to every other peer.
    fn tell_all(&mut self, site: usize, count: f64, bytes: f64) {
        let bytes = bytes + MESSAGE_BYTES;
        let (own, peers) = (self.members[site], self.peers);
        self.inside[site] += count * bytes * (own - 1.0);
        self.up[site] += count * bytes * (peers - own);
        for (other, members) in self.members.iter().enumerate() {
            if other != site {
                self.down[other] += count * bytes * members;
            }
        }
        self.messages += count * (peers - 1.0);
    }

    /// `count` frames of `bytes` bytes, each asked for by one peer of `to` and sent by one of `from`.
    fn fetch(&mut self, from: usize, to: usize, count: f64, bytes: f64) {
        let (frame, question) = (bytes + MESSAGE_BYTES, QUESTION_BYTES + MESSAGE_BYTES);
        if from == to {
            self.inside[from] += count * (frame + question);
        } else {
            self.up[from] += count * frame;
            self.down[to] += count * frame;
            self.up[to] += count * question;
            self.down[from] += count * question;
        }
        self.messages += 2.0 * count;
    }

    /// `count` frames of `bytes` bytes that one peer in each of `holders` has, to everybody. Rule `enters-once`.
    fn spread(&mut self, holders: &[usize], count: f64, bytes: f64) {
        for to in 0..self.members.len() {
            let held = holders.iter().filter(|site| **site == to).count() as f64;
            if held == 0.0 {
                // Holders say that they have it at the same time: each is asked as often as any other.
                let share = count / holders.len() as f64;
                for from in holders {
                    self.fetch(*from, to, share, bytes);
                }
            }
            self.fetch(to, to, count * (self.members[to] - held.max(1.0)), bytes);
        }
    }

    /// Seconds until the busiest line has carried everything.
    fn busiest_s(&self, wan: f64, lan: f64) -> f64 {
        let wan_bytes = self
            .up
            .iter()
            .chain(&self.down)
            .copied()
            .fold(0.0, f64::max);
        let lan_bytes = self
            .inside
            .iter()
            .zip(&self.members)
            .map(|(bytes, members)| bytes / members);
        (wan_bytes / wan).max(lan_bytes.fold(0.0, f64::max) / lan)
    }

    fn bytes(&self) -> f64 {
        self.down.iter().chain(&self.inside).sum()
    }
}

/// What a round of `case` costs.
pub(super) fn predict(case: &Case) -> Figures {
    let options = case.options();
    let roster = case.roster(&options);
    let (layout, run) = case.layout(&options, &roster);
    let places: BTreeMap<_, _> = (0..case.peers)
        .map(|place| (options.keypair(place).public(), place))
        .collect();
    let site_of = |place: usize| place % case.sites;
    let mut members = vec![0.0; case.sites];
    for place in 0..case.peers {
        members[site_of(place)] += 1.0;
    }
    let plan = layout.plan();
    let shards = f64::from(case.shards);
    let frame = case.frames.usual;
    let mut lines = Lines::new(members.clone());

    let of_updates = frame.of(plan.stage_of_updates());
    let header = lengths::header(case.shards, of_updates) as f64;
    for (site, members) in members.iter().enumerate() {
        lines.tell_all(site, *members, header);
    }
    match plan {
        Plan::Gather => {
            for (site, members) in members.iter().enumerate() {
                lines.spread(&[site], members * shards, of_updates as f64);
            }
        }
        Plan::Reduce | Plan::Hier => {
            let all = layout.owners(&run);
            for (group, owners) in layout.groups().iter().zip(&all) {
                let home = (plan == Plan::Hier).then(|| site_of(places[&group.members[0]]));
                let of_shard = |owners: &Owners| owners.iter().map(|o| places[&o]).collect();
                let owners: Vec<Vec<usize>> = owners.iter().map(of_shard).collect();
                reduced_by_owners(&mut lines, case, plan, (group, home), &owners);
            }
        }
    }
    let result = frame.of(plan.stage_of_results());
    let proposal = lengths::proposal(case.peers, case.shards, layout.groups().len(), result) as f64;
    let vote = lengths::vote() as f64;
    let voters = case.peers.min(PEERS_MAX as usize) as f64;
    let (wan, lan) = (
        case.payload_bytes_per_s() as f64,
        case.lan_bytes_per_s() as f64,
    );
    let one_way_s = case.setting.one_way_us as f64 / 1e6;
    let repeats = if case.peers <= PEERS_MAX as usize {
        1.0
    } else {
        0.0
    };
    let busiest = members.iter().copied().fold(1.0, f64::max);
    let n = case.peers as f64;
    // Of a site, each second; never the whole line.
    let repeated = repeats * busiest * (n - busiest) * (header + MESSAGE_BYTES);
    let transfer_s = lines.busiest_s((wan - repeated).max(wan / 100.0), lan);

    let told = |bytes: f64, times: f64| publish_s(case, bytes + MESSAGE_BYTES, times, one_way_s);
    let votes_s = 2.0 * told(vote, (voters / case.sites as f64).clamp(1.0, busiest));
    let decide_s = told(proposal, 1.0) + votes_s;
    // Headers, lists and the decision come with their own latency; see the module documentation.
    let hops = match plan {
        Plan::Gather => 3.0,
        Plan::Reduce => 6.0,
        Plan::Hier => 4.0,
    };
    let hops_s = if case.sites > 1 {
        hops * one_way_s
    } else {
        0.0
    };
    let work = Large::default();
    let summing_us = match plan {
        Plan::Gather => 0,
        Plan::Reduce | Plan::Hier => work.reduce_us,
    };
    let work_s = (work.apply_us + summing_us) as f64 / 1e6;

    let mut decision = Lines::new(members);
    decision.tell_all(0, 1.0, proposal);
    decision.tell_all(0, 2.0 * voters, vote);
    let exchange_s = transfer_s + hops_s + decide_s + work_s;
    // Headers again, and that the peer lives.
    let again = repeats * exchange_s.floor() * (n - 1.0);
    let bytes = lines.bytes() + decision.bytes() + again * n * (header + MESSAGE_BYTES);
    Figures {
        source: Source::Flow,
        plan,
        exchange_s,
        bytes_per_peer: Case::on_the_line(bytes / n),
        messages_per_peer: (lines.messages + decision.messages) / n + 2.0 * again,
        decision_messages_per_peer: decision.messages / n,
    }
}

/// What the owners of a group's shards receive, say and hand out.
///
/// `home`: the group's site under `hier`. `owners`: the places of each shard's owners.
fn reduced_by_owners(
    lines: &mut Lines,
    case: &Case,
    plan: Plan,
    (group, home): (&Group, Option<usize>),
    owners: &[Vec<usize>],
) {
    let update = case.frames.usual.of(plan.stage_of_updates()) as f64;
    let result = case.frames.usual.of(plan.stage_of_results());
    let mut owned: BTreeMap<usize, u32> = BTreeMap::new();
    for owners in owners {
        let sites: Vec<usize> = owners.iter().map(|owner| owner % case.sites).collect();
        for (owner, to) in owners.iter().zip(&sites) {
            *owned.entry(*owner).or_default() += 1;
            for from in (0..case.sites).filter(|from| home.is_none_or(|home| home == *from)) {
                // An owner has its own update.
                let senders = lines.members[from] - f64::from(u8::from(from == *to));
                lines.fetch(from, *to, senders, update);
            }
        }
        let makers = match plan {
            Plan::Reduce => &sites[..1],
            Plan::Gather | Plan::Hier => &sites[..],
        };
        lines.spread(makers, 1.0, result as f64);
    }
    for (owner, entries) in owned {
        let list = lengths::reductions(group.members.len(), entries, result) as f64;
        lines.tell_all(owner % case.sites, 1.0, list);
    }
}

/// How long it takes until everybody has `times` messages of `bytes` bytes that one site publishes.
fn publish_s(case: &Case, bytes: f64, times: f64, one_way_s: f64) -> f64 {
    let outside = case.peers - case.peers.div_ceil(case.sites);
    if outside == 0 {
        let lan = case.lan_bytes_per_s() as f64;
        return times * bytes * (case.peers - 1) as f64 / lan;
    }
    let wan = case.payload_bytes_per_s() as f64;
    let direct = outside.min(CONNECTIONS) as f64;
    let mut seconds = times * bytes * direct / wan + one_way_s;
    let mut reached = direct;
    while reached < outside as f64 {
        seconds += times * bytes * PASSED_ON / wan + one_way_s;
        reached *= PASSED_ON;
    }
    seconds
}

#[cfg(test)]
mod tests {
    use super::super::case::tests_setting;
    use super::*;
    use gradmesh_protocol::manifest::PlanKind;

    fn predicted(peers: usize, sites: usize, plan: PlanKind) -> Figures {
        predict(&tests_setting().case(peers, sites, plan).unwrap())
    }

    #[test]
    fn gathering_takes_as_many_updates_as_there_are_others() {
        let case = tests_setting().case(8, 8, PlanKind::Gather).unwrap();
        let figures = predict(&case);
        let updates = figures.bytes_per_peer / Case::on_the_line(case.update_bytes().update as f64);
        // Seven, and less than a percent of headers and questions.
        assert!((7.0..7.07).contains(&updates), "{updates}");
        let seconds = 7.0 * case.update_bytes().update as f64 / case.payload_bytes_per_s() as f64;
        // Six latencies of 25 ms and 20 ms to apply.
        let rest = figures.exchange_s - seconds;
        assert!((0.17..0.3).contains(&rest), "{rest}");
        assert_eq!(figures.decision_messages_per_peer, 17.0 * 7.0 / 8.0);
    }

    #[test]
    fn reducing_takes_what_the_plan_says_and_a_result_for_each_second_owner() {
        for peers in [16, 64] {
            let case = tests_setting()
                .case(peers, peers, PlanKind::Reduce)
                .unwrap();
            let n = peers as f64;
            let bytes = case.update_bytes();
            let plan =
                2.0 * (n - 1.0) / n * bytes.update as f64 + (n - 1.0) / n * bytes.reduced as f64;
            let ratio = predict(&case).bytes_per_peer / Case::on_the_line(plan);
            // Beside them headers, once and then once a second.
            assert!((1.0..1.05).contains(&ratio), "{peers} peers: {ratio}");
        }
    }

    #[test]
    fn a_site_takes_in_by_hier_what_a_single_peer_would_by_gather() {
        let (alone, sites) = (
            predicted(4, 4, PlanKind::Gather),
            predicted(32, 4, PlanKind::Hier),
        );
        // Inside a site dense frames go over lines of 1 Gbit/s: 2 (m - 1) / m of 2 GB over all hosts, 16 s each.
        assert_eq!(sites.plan, Plan::Hier);
        let inside = 2.0 * 7.0 / 8.0 * 2e9 / 125e6;
        assert!(
            sites.exchange_s < inside * 1.1 + alone.exchange_s,
            "{sites:?}"
        );
    }
}
