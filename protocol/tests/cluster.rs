//! Scenarios on pure nodes: a few of them, an instant network and virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameRef, UpdateSummary};
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{self, Manifest, RoundId, RunId, TrustMode};
use gradmesh_protocol::node::{
    Activity, Effect, Input, Node, NodeConfig, Report, RequestId, Restored,
};
use gradmesh_protocol::time::Time;
use gradmesh_protocol::wire::{DecisionRecord, Decisions, Gossip, JournalEntry, Request};

const SHARDS: u32 = 2;
const TRAIN_MS: u64 = 300;

/// What survives a crash.
#[derive(Default)]
struct Disk {
    records: Vec<Arc<DecisionRecord>>,
    journal: Vec<(RoundId, JournalEntry)>,
    applied: Option<(RoundId, Hash)>,
}

struct Peer {
    keypair: Keypair,
    disk: Disk,
    node: Option<Node>,
    reports: Vec<Report>,
}

struct Cluster {
    manifest: Arc<Manifest>,
    run: RunId,
    now: u64,
    peers: BTreeMap<PeerKey, Peer>,
    events: VecDeque<(u64, PeerKey, Input)>,
    frames: BTreeSet<Hash>,
    cut: BTreeSet<PeerKey>,
}

fn genesis() -> Hash {
    Hash::of_content(b"genesis")
}

/// A state root that depends on all that was applied.
fn apply(root: Hash, record: &DecisionRecord) -> Hash {
    let mut body = root.0.to_vec();
    for header in &record.headers {
        for frame in &header.header.update.frames {
            body.extend_from_slice(&frame.hash.0);
        }
    }
    Hash::of_content(&body)
}

impl Cluster {
    fn new(count: u8, change: impl FnOnce(&mut Manifest)) -> Cluster {
        let keypairs: Vec<_> = (1..=count).map(|i| Keypair::from_seed(&[i; 32])).collect();
        let mut manifest = manifest::example(keypairs[0].public());
        manifest.trust.peers_min = count.into();
        change(&mut manifest);
        assert_eq!(manifest.validate(), []);
        let mut cluster = Cluster {
            run: manifest.run(),
            manifest: Arc::new(manifest),
            now: 0,
            peers: BTreeMap::new(),
            events: VecDeque::new(),
            frames: BTreeSet::new(),
            cut: BTreeSet::new(),
        };
        for keypair in keypairs {
            cluster.start(keypair, Disk::default());
        }
        cluster
    }

    fn start(&mut self, keypair: Keypair, disk: Disk) -> PeerKey {
        let key = keypair.public();
        let config = NodeConfig {
            manifest: Arc::clone(&self.manifest),
            run: self.run,
            keypair: keypair.clone(),
            shards: SHARDS,
            frame_bytes_max: 1000,
            genesis_root: genesis(),
        };
        let undecided = disk.records.len() as u64;
        let entries = disk.journal.iter().filter(|(r, _)| r.0 == undecided);
        let restored = Restored {
            records: disk.records.clone(),
            applied: disk.applied,
            journal: entries.map(|(_, entry)| entry.clone()).collect(),
        };
        let node = Node::new(Time(self.now), config, restored);
        self.peers.insert(
            key,
            Peer {
                keypair,
                disk,
                node: Some(node),
                reports: Vec::new(),
            },
        );
        for other in self.live() {
            self.later(0, other, Input::PeerUp(key));
            self.later(0, key, Input::PeerUp(other));
        }
        self.perform(key);
        key
    }

    fn kill(&mut self, key: PeerKey) {
        self.peer_mut(key).node = None;
        self.events.retain(|(_, to, _)| *to != key);
        for other in self.live() {
            self.later(0, other, Input::PeerDown(key));
        }
    }

    fn restart(&mut self, key: PeerKey) {
        let peer = self.peers.remove(&key).unwrap();
        self.start(peer.keypair, peer.disk);
    }

    fn live(&self) -> Vec<PeerKey> {
        let live = self.peers.iter().filter(|(_, peer)| peer.node.is_some());
        live.map(|(key, _)| *key).collect()
    }

    fn key(&self, seed: u8) -> PeerKey {
        Keypair::from_seed(&[seed; 32]).public()
    }

    fn peer_mut(&mut self, key: PeerKey) -> &mut Peer {
        self.peers.get_mut(&key).unwrap()
    }

    fn node(&self, key: PeerKey) -> &Node {
        self.peers[&key].node.as_ref().unwrap()
    }

    fn later(&mut self, delay_ms: u64, to: PeerKey, input: Input) {
        self.events.push_back((self.now + delay_ms, to, input));
    }

    /// Runs until `done` holds; panics after two minutes of virtual time.
    fn run_until(&mut self, done: impl Fn(&Cluster) -> bool) {
        let limit = self.now + 120_000;
        while !done(self) {
            assert!(self.now < limit, "no end in sight:\n{}", self.describe());
            self.step();
        }
    }

    fn run_for(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        let now = Time(self.now);
        let (due, rest): (VecDeque<_>, _) = std::mem::take(&mut self.events)
            .into_iter()
            .partition(|(at, _, _)| *at <= self.now);
        self.events = rest;
        for (_, to, input) in due {
            if let Some(node) = self.peers.get_mut(&to).and_then(|p| p.node.as_mut()) {
                node.handle(now, input);
                self.perform(to);
            }
        }
        for key in self.live() {
            let node = self.peer_mut(key).node.as_mut().unwrap();
            if node.poll_timeout().is_some_and(|(due, _)| due <= now) {
                node.handle_timeout(now);
                self.perform(key);
            }
        }
        self.now += 5;
    }

    fn perform(&mut self, key: PeerKey) {
        while let Some(effect) = self
            .peers
            .get_mut(&key)
            .and_then(|peer| peer.node.as_mut()?.poll_effect())
        {
            self.perform_one(key, effect);
        }
    }

    fn perform_one(&mut self, key: PeerKey, effect: Effect) {
        match effect {
            Effect::Journal { round, entry } => {
                // Through its bytes, as a restart would read it.
                let stored = JournalEntry::decode(&entry.encode(round)).unwrap();
                assert_eq!(stored, (round, *entry));
                self.peer_mut(key).disk.journal.push(stored);
            }
            Effect::StoreDecision(record) => {
                let stored = DecisionRecord::decode(&record.encode()).unwrap();
                assert_eq!(stored, *record);
                let disk = &mut self.peer_mut(key).disk;
                disk.journal.retain(|(r, _)| *r > record.decision.round);
                disk.records.push(record);
            }
            Effect::Broadcast(message) => self.broadcast(key, &message),
            Effect::Request { peer, id, request } => {
                let answer = self.answer(peer, id, request);
                self.later(5, key, answer);
            }
            Effect::Train { round, seed, .. } => {
                let update = Box::new(update(key, seed));
                self.later(TRAIN_MS, key, Input::UpdateReady { round, update });
            }
            Effect::StopTraining(_) => {}
            Effect::Fetch { frame, .. } => {
                let held = self.frames.contains(&frame.hash) && !self.cut.contains(&key);
                let input = if held {
                    Input::FrameHeld(frame)
                } else {
                    Input::FrameFailed(frame)
                };
                self.later(10, key, input);
            }
            Effect::Apply { record, .. } => {
                let round = record.decision.round;
                let disk = &mut self.peer_mut(key).disk;
                let before = disk.applied.map_or(genesis(), |(_, root)| root);
                let state_root = apply(before, &record);
                disk.applied = Some((round, state_root));
                self.later(5, key, Input::Applied { round, state_root });
            }
            Effect::FetchState { round, root, .. } => {
                let disk = &mut self.peer_mut(key).disk;
                disk.applied = Some((round, root));
                let after = disk.records.iter().filter(|r| r.decision.round > round);
                let records = after.cloned().collect();
                self.later(20, key, Input::StateFetched { round, records });
            }
            Effect::Report(report) => self.peer_mut(key).reports.push(report),
        }
    }

    fn broadcast(&mut self, key: PeerKey, message: &Gossip) {
        if let Gossip::Header(header) = message {
            let frames = header.header.update.frames.iter();
            self.frames.extend(frames.map(|f| f.hash));
        }
        let bytes = message.encode(&self.run);
        for to in self.live() {
            let cut = self.cut.contains(&to) || self.cut.contains(&key);
            if to != key && !cut {
                let message = Box::new(Gossip::decode(&self.run, &bytes).unwrap());
                assert!(message.encode(&self.run) == bytes);
                self.later(5, to, Input::Gossip { from: key, message });
            }
        }
    }

    fn answer(&self, peer: PeerKey, id: RequestId, request: Request) -> Input {
        let Some(node) = self.peers[&peer]
            .node
            .as_ref()
            .filter(|_| !self.cut.contains(&peer))
        else {
            return Input::RequestFailed(id);
        };
        let records = &self.peers[&peer].disk.records;
        match request {
            Request::Decisions { from, count } => {
                let wanted = records.iter().skip(from.0 as usize).take(count as usize);
                let decisions = Box::new(Decisions {
                    records: wanted.map(|record| (**record).clone()).collect(),
                    decided: node.decided(),
                    snapshot: RoundId(0),
                    frames_from: RoundId(1),
                });
                Input::Decisions { id, decisions }
            }
            Request::Headers(hashes) => Input::Headers {
                id,
                headers: hashes
                    .iter()
                    .filter_map(|h| node.header(h).cloned())
                    .collect(),
            },
            other => panic!("nodes do not ask for {other:?}"),
        }
    }

    fn describe(&self) -> String {
        let lines = self.peers.iter().map(|(key, peer)| match &peer.node {
            Some(node) => {
                let view = node.view(Time(self.now));
                format!("{key:?}: {view} {view:?}\n")
            }
            None => format!("{key:?}: down\n"),
        });
        lines.collect()
    }

    fn all_applied(&self, round: u64) -> bool {
        self.live()
            .iter()
            .all(|key| self.node(*key).applied() >= Some(RoundId(round)))
    }

    /// All histories agree, and so do the states behind them.
    fn check(&self) {
        let histories = self.peers.values().map(|p| &p.disk.records);
        let longest = histories.max_by_key(|r| r.len()).unwrap();
        let mut roots = vec![genesis()];
        for record in longest {
            roots.push(apply(*roots.last().unwrap(), record));
        }
        for peer in self.peers.values() {
            for (mine, theirs) in peer.disk.records.iter().zip(longest) {
                assert_eq!(mine.decision, theirs.decision);
            }
            if let Some((round, root)) = peer.disk.applied {
                assert_eq!(root, roots[round.0 as usize + 1]);
            }
        }
    }

    fn roster_size(&self, key: PeerKey) -> usize {
        self.node(key).roster().len()
    }
}

fn update(key: PeerKey, seed: Hash) -> UpdateSummary {
    let frame = |shard: u32| {
        let mut body = seed.0.to_vec();
        body.extend_from_slice(&key.0);
        body.push(shard as u8);
        FrameRef {
            hash: Hash::of_content(&body),
            bytes: 100,
        }
    };
    UpdateSummary {
        frames: (0..SHARDS).map(frame).collect(),
        feedback_before: Hash::ZERO,
        feedback_after: Hash::ZERO,
        segments_root: Hash::ZERO,
        tokens: 10,
        steps: 5,
        loss_first_micronats: 5_000_000,
        loss_last_micronats: 4_000_000,
        build: "test".into(),
        device: "none".into(),
    }
}

#[test]
fn four_peers_found_a_run_and_finish_it_together() {
    let mut cluster = Cluster::new(4, |_| {});
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
    for key in cluster.live() {
        let peer = &cluster.peers[&key];
        assert!(peer.reports.contains(&Report::Finished(RoundId(12))));
        let view = cluster.node(key).view(Time(cluster.now));
        assert_eq!(view.activity, Activity::Finished);
        for record in &peer.disk.records[1..] {
            assert_eq!(record.decision.members.len(), 4, "nobody is left out");
            assert_eq!(record.certificate.attempt, 0);
        }
        let blamed = |r: &&Report| matches!(r, Report::Misbehaviour { .. });
        assert_eq!(peer.reports.iter().find(blamed), None);
    }
}

#[test]
fn a_run_does_not_begin_before_enough_peers_ask() {
    let mut cluster = Cluster::new(3, |m| m.trust.peers_min = 4);
    cluster.run_for(20_000);
    let launcher = cluster.node(cluster.manifest.launcher);
    assert_eq!(launcher.decided(), None);
    let activity = launcher.view(Time(0)).activity;
    let (present, needed) = (3, 4);
    assert_eq!(activity, Activity::Founding { present, needed });

    cluster.start(Keypair::from_seed(&[4; 32]), Disk::default());
    cluster.run_until(|c| c.all_applied(2));
    cluster.check();
}

#[test]
fn a_killed_peer_is_left_out_removed_and_comes_back() {
    let mut cluster = Cluster::new(4, |_| {});
    cluster.run_until(|c| c.all_applied(3));
    let victim = cluster.key(3);
    cluster.kill(victim);
    let witness = cluster.live()[0];
    let stalled_from = cluster.now;
    let before = cluster.node(witness).applied().unwrap().0;
    cluster.run_until(|c| c.all_applied(before + 1));
    assert!(
        cluster.now - stalled_from < 3_000,
        "the deadline adapts: well below the cap of 5 s"
    );
    cluster.run_until(|c| c.roster_size(witness) == 3);
    cluster.check();

    let back_from = cluster.node(witness).decided().unwrap().0;
    cluster.restart(victim);
    cluster.run_until(|c| c.node(witness).roster().contains(&victim));
    let back = cluster.node(witness).decided().unwrap().0;
    assert!(
        back <= back_from + 2,
        "asked in {back_from}, back in {back}"
    );
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
}

#[test]
fn three_peers_with_crash_trust_survive_the_loss_of_one() {
    let mut cluster = Cluster::new(3, |m| m.trust.mode = TrustMode::Crash);
    cluster.run_until(|c| c.all_applied(2));
    let victim = cluster.key(2);
    cluster.kill(victim);
    cluster.run_until(|c| c.all_applied(6));
    cluster.restart(victim);
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
}

#[test]
fn below_quorum_a_run_is_stuck_says_so_and_goes_on_by_itself() {
    let mut cluster = Cluster::new(4, |_| {});
    cluster.run_until(|c| c.all_applied(2));
    let (first, second) = (cluster.key(2), cluster.key(4));
    cluster.kill(first);
    cluster.kill(second);
    cluster.run_for(60_000);
    let witness = cluster.live()[0];
    let decided = cluster.node(witness).decided();
    assert!(decided < Some(RoundId(5)));
    let view = cluster.node(witness).view(Time(cluster.now)).to_string();
    assert!(
        view.contains("stuck until more peers return: 2 of the 3"),
        "{view}"
    );

    cluster.restart(first);
    cluster.run_until(|c| c.all_applied(decided.unwrap().0 + 2));
    cluster.restart(second);
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
}

#[test]
fn a_newcomer_replays_the_run_and_is_admitted() {
    let mut cluster = Cluster::new(4, |m| m.schedule.rounds = 20);
    cluster.run_until(|c| c.all_applied(5));
    let newcomer = cluster.start(Keypair::from_seed(&[9; 32]), Disk::default());
    let witness = cluster.key(1);
    cluster.run_until(|c| c.node(witness).roster().contains(&newcomer));
    cluster.run_until(|c| c.all_applied(20));
    cluster.check();
    let last = cluster.peers[&witness].disk.records.last().unwrap();
    assert_eq!(last.decision.members.len(), 5);
}

#[test]
fn all_peers_may_restart_in_the_middle_of_a_round() {
    let mut cluster = Cluster::new(4, |_| {});
    cluster.run_until(|c| c.all_applied(2));
    for extra in [5, 10, 15, 20, 25, 30, 35, 40] {
        cluster.run_for(TRAIN_MS + extra);
        let live = cluster.live();
        for key in &live {
            cluster.kill(*key);
        }
        for key in live {
            cluster.restart(key);
        }
    }
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
}

#[test]
fn a_peer_that_leaves_is_out_with_the_next_decision() {
    let mut cluster = Cluster::new(5, |_| {});
    cluster.run_until(|c| c.all_applied(2));
    let leaver = cluster.key(4);
    cluster.later(0, leaver, Input::Leave);
    cluster.run_until(|c| c.node(leaver).view(Time(c.now)).activity == Activity::Left);
    let witness = cluster.key(1);
    cluster.run_until(|c| c.roster_size(witness) == 4);
    cluster.kill(leaver);
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
}

#[test]
fn a_peer_that_is_cut_off_catches_up_by_decisions() {
    let mut cluster = Cluster::new(4, |m| m.schedule.rounds = 16);
    cluster.run_until(|c| c.all_applied(2));
    let victim = cluster.key(2);
    cluster.cut.insert(victim);
    let witness = cluster.key(1);
    cluster.run_until(|c| c.node(witness).applied() >= Some(RoundId(7)));
    cluster.cut.remove(&victim);
    cluster.run_until(|c| c.all_applied(16));
    cluster.check();
}

#[test]
fn when_all_leave_at_once_nobody_is_left_and_nothing_breaks() {
    let mut cluster = Cluster::new(4, |_| {});
    cluster.run_until(|c| c.all_applied(2));
    for key in cluster.live() {
        cluster.later(0, key, Input::Leave);
    }
    cluster.run_until(|c| {
        let left = |key| c.node(key).view(Time(c.now)).activity == Activity::Left;
        c.live().into_iter().all(left)
    });
    cluster.run_for(5_000);
    assert_eq!(cluster.roster_size(cluster.key(1)), 0);
    cluster.check();
}
