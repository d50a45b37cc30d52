//! Scenarios on pure nodes: a few of them, an instant network and virtual time.

#[path = "cluster/malformed_peer.rs"]
mod malformed_peer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use arc_malachitebft_core_types::{Round, VoteType};
use gradmesh_protocol::agreement::{Message, Proposal, SignedProposal};
use gradmesh_protocol::capacity::{CAPACITY_ROUNDS_MIN, CapacityChange};
use gradmesh_protocol::decision::{Bitmap, DecidedShard, Decision, Join};
use gradmesh_protocol::fragment::Fragments;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{
    FrameRef, Header, PerStage, SignedHeader, UpdateSummary, WorkCommitment,
};
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{
    self, Chain, Link, Manifest, PlanKind, Powers, RoundId, RunId, SiteId, Subnet, Timing,
    TrustMode,
};
use gradmesh_protocol::node::{
    Activity, AppliedShard, Effect, Input, Node, NodeConfig, ReduceTask, Report, RequestId,
    Restored, Start,
};
use gradmesh_protocol::plan::Layout;
use gradmesh_protocol::registry::{QUIET_ATTEMPT, Registry, RegistryMark};
use gradmesh_protocol::time::Time;
use gradmesh_protocol::wire::{DecisionRecord, Decisions, Gossip, JournalEntry, Request};

const SHARDS: u32 = 2;
const TRAIN_MS: u64 = 300;
const FRAME_BYTES_MAX: PerStage = PerStage {
    local: 4000,
    update: 1000,
    reduced: 2000,
};
const UPDATE_BYTES: PerStage = PerStage {
    local: 4000 * SHARDS as u64,
    update: 1000 * SHARDS as u64,
    reduced: 2000 * SHARDS as u64,
};

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
    /// What is trained and not to be encoded yet: round, seed, and when it is ready.
    training: Option<(RoundId, Hash, u64)>,
    /// The seeds of the rounds that it trained.
    seeds: BTreeMap<RoundId, Hash>,
    /// The shards whose residuals it was last told to have at hand.
    owned: BTreeSet<u32>,
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
    /// Peers that stand still: they take nothing in, send nothing and answer nothing, and their connections stay up.
    frozen: BTreeSet<PeerKey>,
    /// Frames that nobody serves any longer.
    lost: BTreeSet<Hash>,
    /// Peers to and from which precommits are lost.
    mute: BTreeSet<PeerKey>,
    /// Links of peers that are not in a site of their own.
    links: BTreeMap<PeerKey, Link>,
    /// Owners that sum wrongly.
    falsifiers: BTreeSet<PeerKey>,
    /// The root after each round, as the first peer to apply it has it.
    roots: BTreeMap<RoundId, Hash>,
    /// Owners that take this many milliseconds more to sum.
    late: BTreeMap<PeerKey, u64>,
    /// Which owner made which frame.
    made: BTreeSet<(PeerKey, Hash)>,
    /// Frames that somebody made wrongly.
    wrong: BTreeSet<Hash>,
    /// Every snapshot of the registry that was taken.
    chain: Vec<Registry>,
    /// A peer that says other headers than its node does.
    forger: Option<Forger>,
    /// Frames that are none.
    malformed: BTreeSet<Hash>,
}

/// What one peer says instead of its headers.
struct Forger {
    peer: PeerKey,
    /// The headers that its node made, in the order of their rounds.
    made: Vec<SignedHeader>,
    tell: Tell,
}

/// Of all that the forger's node made, the header at hand last: what is said to another peer. `u8`: its number among the
/// live ones.
type Tell = fn(&Keypair, &[SignedHeader], u8) -> Vec<SignedHeader>;

fn genesis() -> Hash {
    Hash::of_content(b"genesis")
}

/// A state root that depends on all that was applied.
fn apply(root: Hash, shards: &[AppliedShard]) -> Hash {
    let mut body = root.0.to_vec();
    for shard in shards {
        for contribution in &shard.contributions {
            body.extend_from_slice(&contribution.frame.hash.0);
            body.extend_from_slice(&contribution.tokens.to_le_bytes());
        }
        for (group, residual) in &shard.residuals {
            body.extend_from_slice(&group.0.0);
            body.extend_from_slice(&residual.0);
        }
    }
    Hash::of_content(&body)
}

/// What an owner makes, right or wrong.
fn reduced(task: &ReduceTask, wrong: bool) -> Input {
    let mut body = task.residual.0.to_vec();
    body.push(wrong.into());
    for input in &task.inputs {
        body.extend_from_slice(&input.frame.hash.0);
        body.extend_from_slice(&input.tokens.to_le_bytes());
    }
    let hash = Hash::of_content(&body);
    Input::ReductionReady {
        round: task.round,
        group: task.group,
        shard: task.shard,
        headers: task.headers.clone(),
        frame: FrameRef { hash, bytes: 100 },
        residual_before: task.residual,
        residual: Hash::of_content(&hash.0),
    }
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
            frozen: BTreeSet::new(),
            lost: BTreeSet::new(),
            mute: BTreeSet::new(),
            links: BTreeMap::new(),
            falsifiers: BTreeSet::new(),
            roots: BTreeMap::new(),
            late: BTreeMap::new(),
            made: BTreeSet::new(),
            wrong: BTreeSet::new(),
            chain: Vec::new(),
            forger: None,
            malformed: BTreeSet::new(),
        };
        for keypair in keypairs {
            cluster.start(keypair, Disk::default());
        }
        cluster
    }

    fn start(&mut self, keypair: Keypair, disk: Disk) -> PeerKey {
        let key = keypair.public();
        let fragments = self.manifest.exchange.fragments;
        let config = NodeConfig {
            manifest: Arc::clone(&self.manifest),
            run: self.run,
            keypair: keypair.clone(),
            fragments: Fragments::deal(&[1; SHARDS as usize], fragments).unwrap(),
            link: self.links.get(&key).copied().unwrap_or(Link::alone(&key)),
            frame_bytes_max: FRAME_BYTES_MAX,
            observes: false,
            update_bytes: UPDATE_BYTES,
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
                training: None,
                seeds: BTreeMap::new(),
                owned: BTreeSet::new(),
                reports: Vec::new(),
            },
        );
        for other in self.live() {
            self.later(0, other, Input::PeerUp(key));
            self.later(0, key, Input::PeerUp(other));
        }
        let older = self.chain.len().saturating_sub(2);
        let newest_two: Vec<Registry> = self.chain.iter().skip(older).cloned().collect();
        for registry in newest_two {
            self.later(0, key, Input::Registry(registry));
        }
        self.perform(key);
        key
    }

    /// A run on a subnet that registers the peers of these seeds with these powers at block 10. All of them run.
    fn on_subnet(registered: &[(u8, u32)], change: impl FnOnce(&mut Manifest)) -> Cluster {
        let mut cluster = Cluster::new(registered.len() as u8, |m| {
            m.chain = Chain::Subnet(Subnet {
                genesis: Hash::of_content(b"chain"),
                netuid: 7,
                powers: Powers::Stake,
                snapshot_blocks: 10,
            });
            change(m);
        });
        cluster.snapshot(10, registered);
        cluster
    }

    /// Block `block` is final, and everybody sees whom it registers.
    fn snapshot(&mut self, block: u64, registered: &[(u8, u32)]) {
        let live = self.live();
        self.snapshot_for(&live, block, registered);
    }

    /// Block `block` is final, and `peers` see whom it registers.
    fn snapshot_for(&mut self, peers: &[PeerKey], block: u64, registered: &[(u8, u32)]) {
        let block_hash = Hash::of_content(&block.to_le_bytes());
        let mut entries: Vec<_> = registered
            .iter()
            .map(|(seed, power)| (self.key(*seed), *power))
            .collect();
        entries.sort();
        let registry = Registry::new(RegistryMark { block, block_hash }, entries).unwrap();
        for peer in peers {
            self.later(0, *peer, Input::Registry(registry.clone()));
        }
        self.chain.push(registry);
    }

    fn activity(&self, key: PeerKey) -> Activity {
        self.node(key).view(Time(self.now)).activity
    }

    fn is_member(&self, key: PeerKey) -> bool {
        let nodes = self.peers.values().filter_map(|peer| peer.node.as_ref());
        let newest = nodes.max_by_key(|node| node.decided());
        newest.is_some_and(|node| node.roster().contains(&key))
    }

    fn records(&self) -> &[Arc<DecisionRecord>] {
        let histories = self.peers.values().map(|p| &p.disk.records);
        histories.max_by_key(|r| r.len()).unwrap()
    }

    fn blames(&self) -> Vec<&Report> {
        let reports = self.peers.values().flat_map(|peer| &peer.reports);
        reports
            .filter(|r| matches!(r, Report::Misbehaviour { .. }))
            .collect()
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
        let frozen = self.frozen.clone();
        for (_, to, input) in due {
            if frozen.contains(&to) {
                continue;
            }
            if let Some(node) = self.peers.get_mut(&to).and_then(|p| p.node.as_mut()) {
                node.handle(now, input);
                self.perform(to);
            }
        }
        for key in self.live() {
            if frozen.contains(&key) {
                continue;
            }
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
            Effect::Train {
                round, seed, start, ..
            } => {
                let (now, peer) = (self.now, self.peer_mut(key));
                let (applied, _) = peer.disk.applied.unwrap();
                match start {
                    Start::State => assert_eq!(round, applied.next()),
                    Start::Ahead { frames } => {
                        let frames: Vec<Hash> = frames.iter().map(|frame| frame.hash).collect();
                        assert_eq!(round, applied.next().next());
                        let in_flight = frames.is_empty() || peer.disk.journal.iter().any(|(_, entry)| {
                            matches!(entry, JournalEntry::Header(own)
                                if own.header.round == applied.next()
                                    && own.header.update.frames.iter().map(|frame| frame.hash).eq(frames.iter().copied()))
                        });
                        assert!(in_flight, "not this peer's update of the round at hand");
                    }
                }
                let trained = peer.training.replace((round, seed, now + TRAIN_MS));
                assert_eq!(trained, None, "one round at a time");
                peer.seeds.insert(round, seed);
            }
            Effect::Encode { round, shards, .. } => {
                let (now, peer) = (self.now, self.peer_mut(key));
                let (trained, seed, ready) = peer.training.take().unwrap();
                let (applied, _) = peer.disk.applied.unwrap();
                assert_eq!((trained, round), (round, applied.next()));
                let update = Box::new(update(key, seed, shards));
                let delay = ready.saturating_sub(now);
                self.later(delay, key, Input::UpdateReady { round, update });
            }
            Effect::StopTraining(_) => self.peer_mut(key).training = None,
            Effect::Own(owned) => {
                self.peer_mut(key).owned = owned.iter().map(|owned| owned.shard).collect();
            }
            Effect::Reduce(task) => {
                let wrong = self.falsifiers.contains(&key);
                let input = reduced(&task, wrong);
                if let Input::ReductionReady { frame, .. } = &input {
                    self.made.insert((key, frame.hash));
                    self.frames.insert(frame.hash);
                    if wrong {
                        self.wrong.insert(frame.hash);
                    }
                }
                let late_ms = self.late.get(&key).copied().unwrap_or(0);
                self.later(10 + late_ms, key, input);
            }
            Effect::Fetch { frame, .. } => {
                let served = self.frames.contains(&frame.hash) && !self.lost.contains(&frame.hash);
                let held = served && !self.cut.contains(&key);
                let input = if held && self.malformed.contains(&frame.hash) {
                    Input::FrameMalformed(frame)
                } else if held {
                    Input::FrameHeld(frame)
                } else {
                    Input::FrameFailed(frame)
                };
                self.later(10, key, input);
            }
            Effect::Apply { record, shards, .. } => {
                let round = record.decision.round;
                let disk = &mut self.peer_mut(key).disk;
                let before = disk.applied.map_or(genesis(), |(_, root)| root);
                let state_root = apply(before, &shards);
                assert_eq!(*self.roots.entry(round).or_insert(state_root), state_root);
                for contribution in shards.iter().flat_map(|shard| &shard.contributions) {
                    let frame = contribution.frame.hash;
                    assert!(self.frames.contains(&frame), "nobody made it");
                    assert!(!self.wrong.contains(&frame), "a lie was decided");
                }
                let disk = &mut self.peer_mut(key).disk;
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
        let precommit = matches!(message, Gossip::Agreement(Message::Vote(vote))
            if vote.message.kind == VoteType::Precommit);
        if let Gossip::Header(header) = message {
            let frames = header.header.update.frames.iter();
            self.frames.extend(frames.map(|f| f.hash));
        }
        let bytes = message.encode(&self.run);
        let forged = self.forge(key, message);
        for (number, to) in (0..).zip(self.live()) {
            let cut = self.cut.contains(&to) || self.cut.contains(&key);
            let mute = self.mute.contains(&to) || self.mute.contains(&key);
            let cut = cut || precommit && mute;
            if let Some((author, made, tell)) = &forged {
                for header in tell(author, made, number) {
                    let message = Box::new(Gossip::Header(Box::new(header)));
                    if to != key && !cut {
                        self.later(5, to, Input::Gossip { from: key, message });
                    }
                }
            } else if to != key && !cut {
                let message = Box::new(Gossip::decode(&self.run, &bytes).unwrap());
                assert!(message.encode(&self.run) == bytes);
                self.later(5, to, Input::Gossip { from: key, message });
            }
        }
    }

    /// What is needed to forge `message`, if it is a header of the forger.
    fn forge(
        &mut self,
        from: PeerKey,
        message: &Gossip,
    ) -> Option<(Keypair, Vec<SignedHeader>, Tell)> {
        let forger = self.forger.as_mut().filter(|forger| forger.peer == from)?;
        let Gossip::Header(header) = message else {
            return None;
        };
        if forger.made.last() != Some(header) {
            forger.made.push((**header).clone());
        }
        let keypair = self.peers[&from].keypair.clone();
        Some((keypair, forger.made.clone(), forger.tell))
    }

    fn answer(&self, peer: PeerKey, id: RequestId, request: Request) -> Input {
        let Some(node) = self.peers[&peer]
            .node
            .as_ref()
            .filter(|_| !self.cut.contains(&peer) && !self.frozen.contains(&peer))
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
            Request::Headers(hashes) => {
                let mut headers: Vec<SignedHeader> = hashes
                    .iter()
                    .filter_map(|h| node.header(h).cloned())
                    .collect();
                if let Some(forger) = self.forger.as_ref().filter(|f| f.peer == peer) {
                    // It stands by what it told the first of the others.
                    let told = (forger.tell)(&self.peers[&peer].keypair, &forger.made, 0);
                    headers.retain(|h| h.header.peer != peer || told.contains(h));
                }
                Input::Headers { id, headers }
            }
            Request::Reductions(round) => Input::Reductions {
                id,
                reductions: node.reductions(round),
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
        for peer in self.peers.values() {
            for (mine, theirs) in peer.disk.records.iter().zip(longest) {
                assert_eq!(mine.decision, theirs.decision);
            }
            if let Some((round, root)) = peer.disk.applied {
                assert_eq!(root, self.roots[&round]);
            }
        }
    }

    fn roster_size(&self, key: PeerKey) -> usize {
        self.node(key).roster().len()
    }
}

fn update(key: PeerKey, seed: Hash, shards: Range<u32>) -> UpdateSummary {
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
        frames: shards.map(frame).collect(),
        feedback_before: Hash::ZERO,
        feedback_after: Hash::ZERO,
        work: WorkCommitment::default(),
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

/// It may have been stopped after the last state was durable and before it could say so.
#[test]
fn a_peer_that_is_started_with_the_last_state_says_that_the_run_is_finished() {
    let mut cluster = Cluster::new(4, |m| m.schedule.rounds = 2);
    cluster.run_until(|c| c.all_applied(2));
    let key = cluster.key(3);
    cluster.kill(key);
    cluster.restart(key);
    assert_eq!(cluster.peers[&key].reports, [Report::Finished(RoundId(2))]);
    assert_eq!(cluster.activity(key), Activity::Finished);
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

const FOUR: [(u8, u32); 4] = [(1, 1), (2, 1), (3, 1), (4, 1)];

#[test]
fn an_unregistered_joiner_is_left_out_and_told_until_it_is_registered() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.schedule.rounds = 40);
    cluster.run_until(|c| c.all_applied(2));
    let stranger = cluster.start(Keypair::from_seed(&[9; 32]), Disk::default());
    let witness = cluster.key(2);
    cluster.run_until(|c| c.node(witness).applied() >= Some(RoundId(10)));
    assert!(!cluster.is_member(stranger));
    assert_eq!(
        cluster.activity(stranger),
        Activity::NotRegistered { block: 10 }
    );
    let told = Report::NotRegistered { block: 10 };
    let reports = &cluster.peers[&stranger].reports;
    assert_eq!(reports.iter().filter(|r| **r == told).count(), 1);
    assert!(!cluster.node(witness).admits(&stranger), "nobody serves it");
    assert!(cluster.node(witness).admits(&cluster.key(3)));

    let five = [(1, 1), (2, 1), (3, 1), (4, 1), (9, 1)];
    cluster.snapshot(20, &five);
    cluster.run_for(3_000);
    assert!(!cluster.is_member(stranger), "rule `last-but-one`");
    assert!(cluster.node(witness).admits(&stranger));
    cluster.snapshot(30, &five);
    cluster.run_until(|c| c.is_member(stranger));
    cluster.run_until(|c| c.all_applied(40));
    cluster.check();
    assert_eq!(cluster.blames(), [] as [&Report; 0]);
}

#[test]
fn a_member_that_is_deregistered_is_out_after_the_next_snapshot() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.schedule.rounds = 30);
    cluster.run_until(|c| c.all_applied(2));
    let gone = cluster.key(3);
    let three = [(1, 1), (2, 1), (4, 1)];
    cluster.snapshot(20, &three);
    cluster.run_for(3_000);
    assert!(cluster.is_member(gone), "rule `last-but-one`");
    cluster.snapshot(30, &three);
    let before = cluster.records().len();
    cluster.run_until(|c| !c.is_member(gone));
    let removal = &cluster.records()[before..];
    assert!(removal.len() <= 2, "one round may be under way");
    let decision = &removal.last().unwrap().decision;
    assert_eq!(decision.powers, [(gone, 0)]);
    assert_eq!(decision.registry.unwrap().block, 20);

    cluster.run_until(|c| {
        let members = [1, 2, 4].map(|seed| c.node(c.key(seed)).applied());
        members.iter().all(|applied| *applied >= Some(RoundId(30)))
    });
    cluster.check();
    assert!(
        cluster.peers[&gone]
            .reports
            .contains(&Report::NotRegistered { block: 20 })
    );
    assert_eq!(cluster.blames(), [] as [&Report; 0]);
}

#[test]
fn a_peer_with_most_of_the_stake_cannot_decide_alone_but_can_stop_the_run() {
    let powers = [(1, 2000), (2, 6000), (3, 1000), (4, 1000)];
    let (whale, others) = (2, [1, 3, 4]);
    let mut cluster = Cluster::on_subnet(&powers, |m| m.schedule.rounds = 30);
    cluster.run_until(|c| c.all_applied(2));
    assert_eq!(cluster.node(cluster.key(whale)).roster().power(), 10_000);

    for seed in others {
        cluster.kill(cluster.key(seed));
    }
    cluster.run_for(60_000);
    let alone = cluster.key(whale);
    let stood = cluster.node(alone).decided().unwrap();
    assert!(stood <= RoundId(4), "stands still at {stood}");
    let view = cluster.node(alone).view(Time(cluster.now)).to_string();
    assert!(view.contains("6000 of the 6667 votes needed"), "{view}");
    for seed in others {
        cluster.restart(cluster.key(seed));
    }
    cluster.run_until(|c| c.all_applied(stood.0 + 3));

    cluster.kill(alone);
    cluster.run_for(60_000);
    let witness = cluster.key(1);
    let stood = cluster.node(witness).decided().unwrap();
    let view = cluster.node(witness).view(Time(cluster.now)).to_string();
    assert!(view.contains("4000 of the 6667 votes needed"), "{view}");
    cluster.run_for(30_000);
    assert_eq!(cluster.node(witness).decided(), Some(stood));
    cluster.restart(alone);
    cluster.run_until(|c| c.all_applied(stood.0 + 3));
    cluster.check();
}

#[test]
fn a_peer_that_decides_alone_hands_its_last_decision_over_before_it_is_gone() {
    let powers = [(1, 1000), (2, 7000), (3, 1000), (4, 1000)];
    let mut cluster = Cluster::on_subnet(&powers, |m| m.schedule.rounds = 30);
    cluster.run_until(|c| c.all_applied(2));
    let whale = cluster.key(2);
    cluster.later(0, whale, Input::Leave);
    cluster.cut.insert(whale);
    cluster.run_for(20_000);
    assert!(!cluster.node(whale).roster().contains(&whale), "let go");
    assert_ne!(cluster.activity(whale), Activity::Left, "nobody else knows");
    cluster.cut.remove(&whale);
    cluster.run_until(|c| c.activity(whale) == Activity::Left);
    cluster.kill(whale);
    let decided = cluster.records().len() as u64;
    cluster.run_until(|c| c.all_applied(decided + 3));
    cluster.check();
}

#[test]
fn voters_that_are_one_snapshot_behind_cost_no_attempt() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.schedule.rounds = 30);
    cluster.run_until(|c| c.all_applied(2));
    let five = [(1, 1), (2, 1), (3, 1), (4, 1), (9, 1)];
    let newcomer = cluster.start(Keypair::from_seed(&[9; 32]), Disk::default());
    cluster.snapshot(20, &five);
    let quick = [cluster.key(1), cluster.key(2), newcomer];
    cluster.snapshot_for(&quick, 30, &five);
    cluster.run_until(|c| c.is_member(newcomer));
    cluster.run_until(|c| c.all_applied(15));
    cluster.check();
    let later = |r: &&Arc<DecisionRecord>| r.certificate.attempt > 0;
    assert_eq!(cluster.records().iter().find(later), None);
}

#[test]
fn voters_without_the_chain_delay_changes_and_never_the_run() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.schedule.rounds = 60);
    cluster.run_until(|c| c.all_applied(2));
    let five = [(1, 1), (2, 1), (3, 1), (4, 1), (9, 1)];
    let newcomer = cluster.start(Keypair::from_seed(&[9; 32]), Disk::default());
    let connected = [cluster.key(1), cluster.key(2), newcomer];
    for block in [20, 30, 40] {
        cluster.snapshot_for(&connected, block, &five);
    }
    let before = cluster.records().len() as u64;
    cluster.run_until(|c| c.records().len() as u64 >= before + 6);
    assert!(!cluster.is_member(newcomer), "two of four cannot tell");
    assert_eq!(cluster.blames(), [] as [&Report; 0], "nobody is to blame");

    let blind = [cluster.key(3), cluster.key(4)];
    for block in [20, 30, 40] {
        cluster.snapshot_for(&blind, block, &five);
    }
    cluster.run_until(|c| c.is_member(newcomer));
    let decided = cluster.records().len() as u64;
    cluster.run_until(|c| c.all_applied(decided + 2));
    cluster.check();
}

#[test]
fn halves_that_know_none_of_each_others_snapshots_decide_in_quiet_attempts() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.schedule.rounds = 60);
    cluster.run_until(|c| c.all_applied(2));
    let five = [(1, 1), (2, 1), (3, 1), (4, 1), (9, 1)];
    let newcomer = cluster.start(Keypair::from_seed(&[9; 32]), Disk::default());
    cluster.run_until(|c| c.node(newcomer).applied() >= Some(RoundId(4)));
    // Both halves want the newcomer in: two by block 20, and two by blocks that are too new for the others.
    let (stale, fresh) = ([3, 4], [1, 2]);
    let stale = stale.map(|seed| cluster.key(seed));
    for block in [20, 30] {
        cluster.snapshot_for(&stale, block, &five);
    }
    let fresh = [cluster.key(fresh[0]), cluster.key(fresh[1]), newcomer];
    for block in 2..=12 {
        cluster.snapshot_for(&fresh, 10 * block, &five);
    }
    cluster.run_for(1_000);
    let before = cluster.records().len() as u64;
    cluster.run_until(|c| c.records().len() as u64 >= before + 6);
    assert!(!cluster.is_member(newcomer));
    let quiet = |r: &Arc<DecisionRecord>| r.certificate.attempt >= QUIET_ATTEMPT;
    assert!(cluster.records().iter().any(quiet));
    cluster.check();
}

#[test]
fn a_voter_without_the_snapshot_votes_with_a_quorum_that_has_it() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.schedule.rounds = 30);
    cluster.run_until(|c| c.all_applied(2));
    let (blind, mute) = (cluster.key(4), cluster.key(3));
    let seeing = [cluster.key(1), cluster.key(2), mute];
    let powers = [(1, 1), (2, 1), (3, 1)];
    // Three prevote; the mute one neither tells its precommit nor hears of others': the blind one has to precommit.
    cluster.mute.insert(mute);
    for block in [20, 30] {
        cluster.snapshot_for(&seeing, block, &powers);
    }
    cluster.run_until(|c| !c.is_member(blind));
    let removal = cluster.records().last().unwrap();
    assert_eq!(removal.decision.powers, [(blind, 0)]);
    let voters = removal.certificate.signatures.iter().map(|s| s.voter);
    let expected = BTreeSet::from([cluster.key(1), cluster.key(2), blind]);
    assert_eq!(voters.collect::<BTreeSet<_>>(), expected);
    cluster.check();
}

#[test]
fn a_launcher_that_is_not_registered_founds_a_run_without_itself() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.trust.peers_min = 3);
    cluster.chain.clear();
    cluster
        .events
        .retain(|(_, _, input)| !matches!(input, Input::Registry(_)));
    let launcher = cluster.key(1);
    cluster.run_for(5_000);
    assert_eq!(cluster.activity(launcher), Activity::AwaitingRegistry);
    assert_eq!(cluster.activity(cluster.key(2)), Activity::AwaitingRegistry);

    cluster.snapshot(10, &[(2, 1), (3, 1)]);
    cluster.run_for(5_000);
    let (present, needed) = (2, 3);
    assert_eq!(
        cluster.activity(launcher),
        Activity::Founding { present, needed }
    );

    cluster.snapshot(20, &[(2, 5), (3, 5), (4, 5)]);
    cluster.run_until(|c| {
        let members = [2, 3, 4].map(|seed| c.node(c.key(seed)).applied());
        members.iter().all(|applied| *applied >= Some(RoundId(12)))
    });
    cluster.check();
    let founding = &cluster.records()[0].decision;
    assert_eq!(founding.power_of(&launcher), Some(0));
    assert_eq!(cluster.roster_size(cluster.key(2)), 3);
    assert!(!cluster.node(cluster.key(2)).admits(&launcher));
}

#[test]
fn stakes_change_the_powers_of_members_with_the_first_decision_of_an_epoch_only() {
    let mut cluster = Cluster::on_subnet(&FOUR, |_| {});
    cluster.run_until(|c| c.all_applied(5));
    let staked = [(1, 4), (2, 3), (3, 2), (4, 1)];
    cluster.snapshot(20, &staked);
    cluster.snapshot(30, &staked);
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
    let changed: Vec<u64> = cluster
        .records()
        .iter()
        .filter(|r| !r.decision.powers.is_empty())
        .map(|r| r.decision.round.0)
        .collect();
    assert_eq!(changed, [0, 9], "epochs begin with rounds 1, 5 and 9");
    let roster = cluster.node(cluster.key(1)).roster();
    for (seed, power) in staked {
        assert_eq!(roster.member(&cluster.key(seed)).unwrap().power, power);
    }
}

#[test]
fn removals_wait_while_those_who_stay_could_not_decide() {
    let seven: Vec<(u8, u32)> = (1..=7).map(|seed| (seed, 1)).collect();
    let mut cluster = Cluster::on_subnet(&seven, |m| {
        m.schedule.rounds = 40;
        m.trust.absent_rounds_max = 3;
    });
    cluster.run_until(|c| c.all_applied(2));
    // Five of seven are a quorum. Without 1, 2 and 3 only two of the remaining four would be there.
    for seed in [6, 7] {
        cluster.kill(cluster.key(seed));
    }
    let four = [(4, 1), (5, 1), (6, 1), (7, 1)];
    cluster.snapshot(20, &four);
    cluster.snapshot(30, &four);
    let removed = [1, 2, 3].map(|seed| cluster.key(seed));
    cluster.run_until(|c| removed.iter().all(|peer| !c.is_member(*peer)));
    cluster.check();
    let decided = cluster.records().len() as u64;
    let absent = |r: &&Arc<DecisionRecord>| r.decision.members.len() == 5;
    let waited = cluster.records().iter().filter(absent).count();
    assert!((2..=4).contains(&waited), "{waited} rounds");
    let stay = [4, 5].map(|seed| cluster.key(seed));
    cluster.run_until(|c| {
        let goes_on = |peer: &PeerKey| c.node(*peer).applied() >= Some(RoundId(decided + 3));
        stay.iter().all(goes_on)
    });
    cluster.check();
}

#[test]
fn when_nobody_is_registered_any_more_the_members_stay_until_somebody_is() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.schedule.rounds = 60);
    cluster.run_until(|c| c.all_applied(2));
    let newcomer = cluster.start(Keypair::from_seed(&[9; 32]), Disk::default());
    cluster.snapshot(20, &[]);
    cluster.snapshot(30, &[]);
    let decided = cluster.records().len();
    cluster.run_until(|c| c.records().len() >= decided + 4);
    assert_eq!(cluster.roster_size(cluster.key(1)), 4);

    cluster.snapshot(40, &[(9, 1)]);
    cluster.snapshot(50, &[(9, 1)]);
    cluster.run_until(|c| c.is_member(newcomer) && c.roster_size(newcomer) == 1);
    let decided = cluster.records().len() as u64;
    cluster.run_until(|c| c.node(newcomer).applied() >= Some(RoundId(decided + 2)));
    cluster.check();
}

/// A proposal of the first attempt at the round at hand, made up by its proposer: an empty round with these changes.
fn forged(
    cluster: &Cluster,
    joins: Vec<Join>,
    block: u64,
    powers: &[(PeerKey, u32)],
) -> (PeerKey, Gossip) {
    let node = cluster.node(cluster.key(1));
    let members = node.roster().members();
    let round = node.roster().round();
    let place = round.0 as usize % members.len();
    let proposer = &cluster.peers[&members[place].peer].keypair;
    let mut powers = powers.to_vec();
    powers.sort();
    let block_hash = Hash::of_content(&block.to_le_bytes());
    let decision = Decision {
        run: cluster.run,
        round,
        previous: cluster.records().last().unwrap().decision.id(),
        state_root: node.state_root(),
        members: Vec::new(),
        shards: vec![
            DecidedShard {
                accepted: Bitmap::full(0),
                reduced: Vec::new(),
            };
            SHARDS as usize
        ],
        joins,
        leaves: Vec::new(),
        registry: Some(RegistryMark { block, block_hash }),
        powers,
        capacities: Vec::new(),
    };
    let proposal = Proposal {
        height: round,
        round: Round::new(0),
        value: decision,
        pol_round: Round::Nil,
        proposer: proposer.public(),
    };
    let signature = proposer.sign(&proposal.hash(&cluster.run));
    let signed = SignedProposal::new(proposal, signature);
    let message = Message::Proposal(Box::new(signed));
    (members[place].peer, Gossip::Agreement(message))
}

/// Whom the others blame for a forged proposal, and for what.
fn blamed_for(
    forge: impl Fn(&Cluster) -> (PeerKey, Gossip),
) -> (PeerKey, BTreeSet<(PeerKey, &'static str)>) {
    let mut cluster = Cluster::on_subnet(&FOUR, |_| {});
    cluster.snapshot(20, &FOUR);
    cluster.run_until(|c| c.all_applied(3));
    let (liar, message) = forge(&cluster);
    cluster.kill(liar);
    for to in cluster.live() {
        let message = Box::new(message.clone());
        cluster.later(
            0,
            to,
            Input::Gossip {
                from: liar,
                message,
            },
        );
    }
    cluster.run_until(|c| {
        c.live()
            .iter()
            .all(|k| c.node(*k).applied() >= Some(RoundId(6)))
    });
    cluster.check();
    let found = cluster
        .blames()
        .into_iter()
        .filter_map(|report| match report {
            Report::Misbehaviour { peer, what } => Some((*peer, *what)),
            _ => None,
        });
    (liar, found.collect())
}

#[test]
fn a_proposal_that_the_registry_does_not_back_gets_no_votes_and_its_proposer_is_blamed() {
    let stranger = Keypair::from_seed(&[9; 32]);
    let join = |c: &Cluster| {
        let round = c.node(c.key(1)).decided().unwrap();
        let root = c.node(c.key(1)).state_root();
        let link = Link::alone(&stranger.public());
        vec![Join::sign(c.run, round, root, link, &stranger)]
    };
    let member = |c: &Cluster, seed: u8| (c.key(seed), 0);
    let unsound = "proposed a decision that is not sound";

    let (liar, found) = blamed_for(|c| forged(c, join(c), 20, &[(stranger.public(), 1)]));
    let what = "proposed a join of a peer that is not registered";
    assert_eq!(found, BTreeSet::from([(liar, what)]));

    let (liar, found) = blamed_for(|c| forged(c, Vec::new(), 20, &[member(c, 2)]));
    let what = "proposed other powers than the registry gives";
    assert_eq!(found, BTreeSet::from([(liar, what)]));

    // A join without a power, a power for nobody, none at all, a block between two snapshots, and one from before.
    let (liar, found) = blamed_for(|c| forged(c, join(c), 20, &[member(c, 2)]));
    assert_eq!(found, BTreeSet::from([(liar, unsound)]));
    let (liar, found) = blamed_for(|c| forged(c, Vec::new(), 20, &[(stranger.public(), 1)]));
    assert_eq!(found, BTreeSet::from([(liar, unsound)]));
    let (liar, found) = blamed_for(|c| forged(c, Vec::new(), 20, &[]));
    assert_eq!(found, BTreeSet::from([(liar, unsound)]));
    let (liar, found) = blamed_for(|c| forged(c, Vec::new(), 25, &[member(c, 2)]));
    assert_eq!(found, BTreeSet::from([(liar, unsound)]));
    let (liar, found) = blamed_for(|c| forged(c, Vec::new(), 0, &[member(c, 2)]));
    assert_eq!(found, BTreeSet::from([(liar, unsound)]));
}

#[test]
fn a_snapshot_that_is_not_here_yet_is_waited_for_without_blame() {
    let (_, found) = blamed_for(|c| forged(c, Vec::new(), 90, &[(c.key(2), 0)]));
    assert_eq!(found, BTreeSet::new());
}

#[test]
fn a_run_without_a_chain_takes_in_no_snapshot_and_no_powers() {
    let mut cluster = Cluster::new(4, |_| {});
    cluster.snapshot(10, &[(2, 7)]);
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
    assert_eq!(
        cluster.node(cluster.key(1)).view(Time(0)).sizes.snapshots,
        0
    );
    for record in cluster.records() {
        assert_eq!(record.decision.registry, None);
        assert_eq!(record.decision.powers, []);
    }
    let roster = cluster.node(cluster.key(1)).roster();
    assert!(roster.members().iter().all(|member| member.power == 1));
}

/// A run by a plan; peers 1 to 3 are in one site, the others in another.
fn by_plan(plan: PlanKind, count: u8) -> Cluster {
    in_sites(count, |m| m.exchange.plan = plan)
}

fn in_sites(count: u8, change: impl FnOnce(&mut Manifest)) -> Cluster {
    let mut cluster = Cluster::new(1, |m| {
        change(m);
        m.trust.peers_min = count.into();
        m.launcher_link = link(1);
    });
    for seed in 2..=6 {
        let peer = cluster.key(seed);
        cluster.links.insert(peer, link(seed));
    }
    for seed in 2..=count {
        cluster.start(Keypair::from_seed(&[seed; 32]), Disk::default());
    }
    cluster
}

fn link(seed: u8) -> Link {
    Link {
        site: SiteId::named(if seed <= 3 { "one" } else { "two" }),
        capacity: 10,
    }
}

/// The members whose updates count in each shard of the last decided round.
fn accepted(cluster: &Cluster) -> Vec<usize> {
    let record = cluster.records().last().unwrap();
    let shards = record.decision.shards.iter();
    shards
        .map(|shard| shard.accepted.positions().count())
        .collect()
}

#[test]
fn by_reduce_and_hier_every_round_counts_everybody_in_every_shard() {
    for (plan, groups) in [(PlanKind::Reduce, 1), (PlanKind::Hier, 2)] {
        let mut cluster = by_plan(plan, 6);
        cluster.run_until(|c| c.all_applied(5));
        cluster.check();
        for record in &cluster.records()[1..5] {
            assert_eq!(record.certificate.attempt, 0);
            for shard in &record.decision.shards {
                assert_eq!(shard.accepted.positions().count(), 6, "{plan:?}");
                assert_eq!(shard.reduced.len(), groups, "{plan:?}");
            }
        }
        assert_eq!(cluster.blames(), Vec::<&Report>::new());
    }
}

#[test]
fn an_owner_that_dies_is_stood_in_for_and_the_others_go_on() {
    for plan in [PlanKind::Reduce, PlanKind::Hier] {
        for victim in 2..=6 {
            let mut cluster = by_plan(plan, 6);
            cluster.run_until(|c| c.all_applied(2));
            cluster.run_for(u64::from(victim) * 70);
            let victim = cluster.key(victim);
            cluster.kill(victim);
            let before = cluster.records().len() as u64;
            cluster.run_until(|c| c.all_applied(before + 3));
            cluster.check();
            let counts = accepted(&cluster);
            assert!(
                counts.iter().all(|count| *count >= 5),
                "{plan:?}: {counts:?}"
            );
        }
    }
}

#[test]
fn an_owner_that_is_restarted_in_the_middle_of_a_round_makes_the_same_again() {
    for plan in [PlanKind::Reduce, PlanKind::Hier] {
        for moment in [305, 320, 335, 350] {
            let mut cluster = by_plan(plan, 6);
            cluster.run_until(|c| c.all_applied(2));
            cluster.run_for(moment);
            let victim = cluster.key(2);
            cluster.kill(victim);
            cluster.run_for(20);
            cluster.restart(victim);
            cluster.run_until(|c| c.all_applied(6));
            cluster.check();
        }
    }
}

#[test]
fn what_one_of_two_owners_falsifies_is_left_out_and_never_decided() {
    for plan in [PlanKind::Reduce, PlanKind::Hier] {
        let mut cluster = by_plan(plan, 6);
        let liar = cluster.key(4);
        cluster.falsifiers.insert(liar);
        cluster.run_until(|c| c.all_applied(6));
        cluster.check();
        let reports = cluster.peers.values().flat_map(|peer| &peer.reports);
        let disputes = reports.filter_map(|report| match report {
            Report::OwnersDisagree { owners, .. } => Some(owners),
            _ => None,
        });
        for owners in disputes {
            assert!(owners.contains(&liar));
        }
    }
}

#[test]
fn a_peer_that_comes_late_replays_reduced_frames() {
    for plan in [PlanKind::Reduce, PlanKind::Hier] {
        let mut cluster = by_plan(plan, 5);
        cluster.run_until(|c| c.all_applied(3));
        let late = cluster.start(Keypair::from_seed(&[6; 32]), Disk::default());
        cluster.run_until(|c| c.all_applied(6) && c.is_member(late));
        cluster.check();
    }
}

/// Rule `train-ahead`: what each round is trained on is fixed two decisions before, by the founding one for the first two.
fn check_seeds(cluster: &Cluster) {
    let ids: Vec<Hash> = cluster.records().iter().map(|r| r.decision.id()).collect();
    for peer in cluster.peers.values() {
        for (round, seed) in &peer.seeds {
            let basis = ids[round.0.saturating_sub(2) as usize];
            let expected = Manifest::round_seed(&cluster.run, *round, &basis);
            assert_eq!(*seed, expected, "round {round}");
        }
    }
}

#[test]
fn with_overlap_the_next_round_is_trained_while_one_is_exchanged() {
    let mut cluster = Cluster::new(4, |m| m.exchange.overlap = 1);
    let witness = cluster.key(1);
    let view = move |c: &Cluster| c.node(witness).view(Time(c.now));
    for activity in ["waiting for the update", "deciding", "applying"] {
        cluster.run_until(|c| {
            let words = view(c).to_string();
            words.contains(activity) && words.contains(", while round ")
        });
    }
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
    check_seeds(&cluster);
    for key in cluster.live() {
        let peer = &cluster.peers[&key];
        assert_eq!(peer.seeds.len(), 12);
        assert_eq!(peer.training, None, "the last round is followed by none");
        assert_eq!(cluster.node(key).view(Time(cluster.now)).ahead, None);
    }
    for record in &cluster.records()[1..] {
        assert_eq!(record.decision.members.len(), 4, "nobody is left out");
        assert_eq!(record.certificate.attempt, 0);
    }
    assert_eq!(cluster.blames(), [] as [&Report; 0]);
}

#[test]
fn with_overlap_newcomers_train_on_the_same_data_as_the_others() {
    for plan in [PlanKind::Gather, PlanKind::Reduce] {
        let mut cluster = Cluster::new(4, |m| {
            m.exchange.overlap = 1;
            m.exchange.plan = plan;
            m.schedule.rounds = 20;
        });
        cluster.run_until(|c| c.all_applied(5));
        let newcomer = cluster.start(Keypair::from_seed(&[9; 32]), Disk::default());
        cluster.run_until(|c| c.all_applied(20));
        cluster.check();
        check_seeds(&cluster);
        assert!(cluster.peers[&newcomer].seeds.len() > 5, "{plan:?}");
        let last = cluster.records().last().unwrap();
        assert_eq!(last.decision.members.len(), 5, "{plan:?}");
    }
}

#[test]
fn with_overlap_a_peer_that_is_killed_or_cut_off_trains_ahead_again() {
    let mut cluster = Cluster::new(4, |m| {
        m.exchange.overlap = 1;
        m.schedule.rounds = 30;
    });
    cluster.run_until(|c| c.all_applied(2));
    let victim = cluster.key(2);
    for extra in [5, 10, 15, 20, 25, 30, 35, 40] {
        cluster.run_for(TRAIN_MS + extra);
        cluster.kill(victim);
        cluster.restart(victim);
    }
    let witness = cluster.key(1);
    let round = cluster.node(witness).applied().unwrap();
    cluster.cut.insert(victim);
    cluster.run_until(|c| c.node(witness).applied() >= Some(RoundId(round.0 + 4)));
    cluster.cut.remove(&victim);
    cluster.run_until(|c| c.all_applied(30));
    cluster.check();
    check_seeds(&cluster);
    let last = cluster.records().last().unwrap();
    assert_eq!(last.decision.members.len(), 4);
    assert_eq!(cluster.blames(), [] as [&Report; 0]);
}

#[test]
fn with_overlap_a_peer_that_leaves_stops_what_it_trains_ahead() {
    let mut cluster = Cluster::new(5, |m| m.exchange.overlap = 1);
    cluster.run_until(|c| c.all_applied(2));
    let leaver = cluster.key(4);
    cluster.run_until(|c| c.node(leaver).view(Time(c.now)).ahead.is_some());
    cluster.later(0, leaver, Input::Leave);
    cluster.run_until(|c| c.node(leaver).view(Time(c.now)).activity == Activity::Left);
    assert_eq!(cluster.peers[&leaver].training, None);
    cluster.kill(leaver);
    cluster.run_until(|c| c.all_applied(12));
    cluster.check();
}

/// From now on the peer of this seed says that its link carries this much.
fn relink(cluster: &mut Cluster, seed: u8, capacity: u16) {
    let key = cluster.key(seed);
    let node = cluster.peer_mut(key).node.as_mut().unwrap();
    node.set_link(Link {
        capacity,
        ..link(seed)
    });
}

/// What all peers have as the capacity of the peer of this seed, if they stand at the same round.
fn capacity(cluster: &Cluster, seed: u8) -> Option<u16> {
    let nodes = || cluster.live().into_iter().map(|key| cluster.node(key));
    let rounds: BTreeSet<RoundId> = nodes().map(|node| node.roster().round()).collect();
    let capacities: BTreeSet<u16> = nodes()
        .filter_map(|node| node.roster().member(&cluster.key(seed)))
        .map(|member| member.link.capacity)
        .collect();
    let one = rounds.len() == 1 && capacities.len() == 1;
    capacities.first().copied().filter(|_| one)
}

#[test]
fn a_link_that_turns_thin_is_decided_and_its_peer_owns_less() {
    for plan in [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier] {
        let mut cluster = by_plan(plan, 6);
        cluster.run_until(|c| c.all_applied(2));
        relink(&mut cluster, 2, 0);
        cluster.run_until(|c| capacity(c, 2) == Some(0));
        cluster.check();
        let changed = |record: &&Arc<DecisionRecord>| !record.decision.capacities.is_empty();
        let changes: Vec<_> = cluster.records().iter().filter(changed).collect();
        assert_eq!(changes.len(), 1, "{plan:?}: said once, decided once");
        // The first round of the peer is 1.
        assert!(changes[0].decision.round >= RoundId(1 + CAPACITY_ROUNDS_MIN));
        let at = changes[0].decision.round.0;
        cluster.run_until(|c| c.all_applied(at + 3));
        cluster.check();
        assert_eq!(accepted(&cluster), [6, 6], "{plan:?}: it stays a member");
        let node = cluster.node(cluster.key(1));
        let bytes = UPDATE_BYTES;
        let fragments = Fragments::whole(SHARDS);
        let layout = Layout::of(node.roster(), &cluster.manifest, &fragments, &bytes);
        let owners = layout.owners(&cluster.run);
        let mut owners = owners.iter().flatten();
        assert!(
            owners.all(|o| !o.contains(&cluster.key(2))),
            "{plan:?}: {owners:?}"
        );
        assert_eq!(cluster.blames(), [] as [&Report; 0]);
    }
}

#[test]
fn a_capacity_that_wavers_is_not_followed_and_one_that_comes_back_is_in_time() {
    let mut cluster = Cluster::new(4, |m| {
        m.exchange.plan = PlanKind::Reduce;
        m.schedule.rounds = 40;
    });
    cluster.run_until(|c| c.all_applied(2));
    relink(&mut cluster, 3, 19);
    cluster.run_until(|c| c.all_applied(9));
    assert_eq!(capacity(&cluster, 3), Some(10));
    relink(&mut cluster, 3, 20);
    cluster.run_until(|c| capacity(c, 3) == Some(20));
    relink(&mut cluster, 3, 0);
    cluster.run_until(|c| capacity(c, 3) == Some(0));
    relink(&mut cluster, 3, 20);
    cluster.run_until(|c| capacity(c, 3) == Some(20));
    cluster.check();
    let key = cluster.key(3);
    let changes: Vec<(u64, u16)> = cluster
        .records()
        .iter()
        .flat_map(|record| &record.decision.capacities)
        .inspect(|change| assert_eq!(change.peer, key))
        .map(|change| (change.round.0, change.capacity))
        .collect();
    let capacities: Vec<u16> = changes.iter().map(|(_, capacity)| *capacity).collect();
    assert_eq!(capacities, [20, 0, 20]);
    let apart = changes.windows(2).map(|pair| pair[1].0 - pair[0].0);
    assert!(apart.min() >= Some(CAPACITY_ROUNDS_MIN), "{changes:?}");
}

#[test]
fn a_member_of_a_run_on_a_chain_changes_its_capacity_without_a_snapshot() {
    let mut cluster = Cluster::on_subnet(&FOUR, |m| m.exchange.plan = PlanKind::Reduce);
    cluster.run_until(|c| c.all_applied(2));
    relink(&mut cluster, 2, 1);
    cluster.run_until(|c| capacity(c, 2) == Some(1));
    cluster.check();
    let changes = |record: &&Arc<DecisionRecord>| !record.decision.capacities.is_empty();
    let record = cluster.records().iter().find(changes).unwrap();
    assert_eq!(record.decision.registry, None);
}

#[test]
fn a_proposal_with_a_change_against_the_rules_gets_no_votes() {
    let mut cluster = by_plan(PlanKind::Gather, 4);
    cluster.run_until(|c| c.all_applied(2));
    let round = cluster.node(cluster.key(1)).roster().round();
    let (liar, message) = forged(&cluster, Vec::new(), 0, &[]);
    let Gossip::Agreement(Message::Proposal(signed)) = message else {
        panic!("a proposal");
    };
    // In the name of a member, too early.
    let author = Keypair::from_seed(&[3; 32]);
    let change = CapacityChange::sign(cluster.run, RoundId(round.0 - 1), 1, &author);
    let mut proposal = signed.message.clone();
    proposal.value.registry = None;
    proposal.value.capacities = vec![change];
    let signature = cluster.peers[&liar]
        .keypair
        .sign(&proposal.hash(&cluster.run));
    let signed = SignedProposal::new(proposal, signature);
    let message = Gossip::Agreement(Message::Proposal(Box::new(signed)));
    cluster.kill(liar);
    for to in cluster.live() {
        let message = Box::new(message.clone());
        cluster.later(
            0,
            to,
            Input::Gossip {
                from: liar,
                message,
            },
        );
    }
    cluster.run_until(|c| c.live().iter().all(|k| c.node(*k).decided() > Some(round)));
    cluster.check();
    let what = "proposed a decision that is not sound";
    let blames = cluster.blames();
    assert!(!blames.is_empty());
    let expected = Report::Misbehaviour { peer: liar, what };
    assert!(blames.iter().all(|blame| **blame == expected), "{blames:?}");
    let mut records = cluster.records().iter();
    assert!(records.all(|record| record.decision.capacities.is_empty()));
}

/// By `plan`, with two fragments of a shard each.
fn by_fragments(plan: PlanKind, overlap: u32) -> Cluster {
    in_sites(4, |m| {
        m.exchange.plan = plan;
        m.exchange.fragments = SHARDS;
        m.exchange.overlap = overlap;
    })
}

#[test]
fn with_fragments_a_round_exchanges_the_shard_whose_turn_it_is() {
    for plan in [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier] {
        for overlap in [0, 1] {
            let mut cluster = by_fragments(plan, overlap);
            cluster.run_until(|c| c.all_applied(12));
            cluster.check();
            for record in &cluster.records()[1..] {
                assert_eq!(record.certificate.attempt, 0, "{plan:?}");
                let counts = record.decision.shards.iter();
                let counts: Vec<_> = counts.map(|s| s.accepted.positions().count()).collect();
                assert_eq!(counts, [4], "{plan:?}");
                for signed in &record.headers {
                    let Header { peer, round, .. } = signed.header;
                    let seed = cluster.peers[&peer].seeds[&round];
                    let shard = (round.0 % u64::from(SHARDS)) as u32;
                    assert_eq!(signed.header.update, update(peer, seed, shard..shard + 1));
                }
            }
            assert_eq!(cluster.blames(), [] as [&Report; 0]);
        }
    }
}

#[test]
fn with_fragments_owners_keep_each_residual_until_its_next_turn() {
    let mut cluster = by_fragments(PlanKind::Reduce, 0);
    cluster.run_until(|c| c.all_applied(12));
    let records = cluster.records();
    for (before, record) in records[1..].iter().zip(&records[1 + SHARDS as usize..]) {
        let residual = before.decision.shards[0].reduced[0].residual;
        // What the owners of this test make of the inputs and that residual.
        let mut body = residual.0.to_vec();
        body.push(0);
        for signed in &record.headers {
            body.extend_from_slice(&signed.header.update.frames[0].hash.0);
            body.extend_from_slice(&signed.header.update.tokens.to_le_bytes());
        }
        let expected = Hash::of_content(&body);
        assert_eq!(record.decision.shards[0].reduced[0].frame.hash, expected);
    }
    let owned = cluster.peers.values().flat_map(|peer| &peer.owned);
    let owned: BTreeSet<u32> = owned.copied().collect();
    assert_eq!(owned, (0..SHARDS).collect());
}

#[test]
fn a_header_with_frames_of_all_fragments_is_refused() {
    let mut cluster = by_fragments(PlanKind::Gather, 0);
    cluster.run_until(|c| c.all_applied(2));
    let author = cluster.key(3);
    let node = cluster.node(cluster.key(1));
    let header = Header {
        run: cluster.run,
        round: node.roster().round(),
        peer: author,
        state_root: node.state_root(),
        update: update(author, Hash::ZERO, 0..SHARDS),
    };
    let signed = header.sign(&cluster.peers[&author].keypair);
    let witness = cluster.key(1);
    let message = Box::new(Gossip::Header(Box::new(signed)));
    let from = author;
    cluster.later(0, witness, Input::Gossip { from, message });
    cluster.run_for(1);
    let blames = cluster.blames();
    let Some(Report::Misbehaviour { peer, .. }) = blames.first() else {
        panic!("nobody is blamed");
    };
    assert_eq!(*peer, author);
}

/// The moment of a round at which a peer stops.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Its update is not committed.
    Training,
    /// Its header is on its way, and none of its frames is served.
    Committed,
    /// The others have its update, and it has announced and proposed nothing.
    Served,
    /// It has announced what it made as an owner, and what it alone made is not served.
    Announced,
}

/// How a peer stops.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Frozen,
    Killed,
}

/// Three peers that may only stop, with the timings that a run file has by default; for `hier` two in one site, one in another.
fn three(plan: PlanKind) -> Cluster {
    let site = |seed: u8| Link {
        site: SiteId::named(if seed <= 2 { "one" } else { "two" }),
        capacity: 10,
    };
    let mut cluster = Cluster::new(1, |m| {
        m.exchange.plan = plan;
        m.trust.mode = TrustMode::Crash;
        m.trust.peers_min = 3;
        m.trust.absent_rounds_max = 3;
        m.timing = Timing {
            deadline_floor_ms: 2_000,
            deadline_cap_ms: 3_600_000,
            propose_ms: 1_500,
            vote_ms: 1_000,
        };
        m.launcher_link = site(1);
    });
    for seed in 2..=3 {
        let peer = cluster.key(seed);
        cluster.links.insert(peer, site(seed));
        cluster.start(Keypair::from_seed(&[seed; 32]), Disk::default());
    }
    cluster
}

/// Runs until a peer of [`three`] is at this moment of a round; `None` if it owns nothing that it could announce.
fn run_to(
    cluster: &mut Cluster,
    victim: PeerKey,
    proposes: bool,
    moment: Moment,
) -> Option<RoundId> {
    // As many rounds as the deadlines are made of.
    cluster.run_until(|c| c.all_applied(9));
    let round = |c: &Cluster| c.node(victim).roster().round();
    cluster.run_until(|c| {
        let members = c.node(victim).roster().members();
        let proposer = members[round(c).0 as usize % members.len()].peer;
        c.activity(victim) == Activity::Training && (proposer == victim) == proposes
    });
    let stops_in = round(cluster);
    let others = cluster.live().into_iter().filter(|key| *key != victim);
    let others: Vec<PeerKey> = others.collect();
    let announced = |c: &Cluster| {
        let lists = c.node(victim).reductions(stops_in);
        lists.iter().any(|list| list.reductions.owner == victim)
    };
    cluster.run_until(|c| match moment {
        Moment::Training => c.events.iter().any(|(at, to, input)| {
            let ready = matches!(input, Input::UpdateReady { .. });
            *to == victim && ready && *at <= c.now + 5
        }),
        Moment::Committed => {
            c.peers[&victim].disk.journal.iter().any(|(round, entry)| {
                *round == stops_in && matches!(entry, JournalEntry::Header(_))
            })
        }
        Moment::Served => others.iter().all(|key| {
            let view = c.node(*key).view(Time(c.now));
            view.round == stops_in && !view.waiting_for.contains(&victim)
        }),
        Moment::Announced => announced(c) || round(c) > stops_in,
    });
    if let Moment::Announced = moment
        && !announced(cluster)
    {
        return None;
    }
    assert_eq!(round(cluster), stops_in);
    Some(stops_in)
}

/// Milliseconds from the moment at which one of [`three`] stops until the others have decided the round.
fn undecided_ms(
    plan: PlanKind,
    seed: u8,
    proposes: bool,
    moment: Moment,
    stop: Stop,
) -> Option<u64> {
    let mut cluster = three(plan);
    let victim = cluster.key(seed);
    let stopped_in = run_to(&mut cluster, victim, proposes, moment)?;
    match moment {
        Moment::Training => {}
        Moment::Committed => {
            let journal = cluster.peers[&victim].disk.journal.iter();
            let frames = journal.flat_map(|(_, entry)| match entry {
                JournalEntry::Header(own) => own.header.update.frames.clone(),
                JournalEntry::Agreement(_) => Vec::new(),
            });
            cluster.lost = frames.map(|frame| frame.hash).collect();
        }
        // What it sent in the same instant is not sent.
        Moment::Served => cluster.events.retain(|(_, _, input)| {
            !matches!(input, Input::Gossip { from, message }
                if *from == victim && matches!(**message, Gossip::Agreement(_)))
        }),
        Moment::Announced => {
            let made = |(by, frame): &(PeerKey, Hash)| (*by == victim).then_some(*frame);
            let by_others = cluster.made.iter().filter(|(by, _)| *by != victim);
            let by_others: BTreeSet<Hash> = by_others.map(|(_, frame)| *frame).collect();
            let alone = cluster.made.iter().filter_map(made);
            cluster.lost = alone.filter(|frame| !by_others.contains(frame)).collect();
        }
    }
    match stop {
        Stop::Frozen => {
            cluster.frozen.insert(victim);
        }
        Stop::Killed => cluster.kill(victim),
    }
    let stopped_at = cluster.now;
    let mut others = cluster.live();
    others.retain(|key| *key != victim);
    let all = |c: &Cluster, done: &dyn Fn(&Node) -> Option<RoundId>| {
        let mut nodes = others.iter().map(|key| c.node(*key));
        nodes.all(|node| done(node) >= Some(stopped_in))
    };
    cluster.run_until(|c| all(c, &|node| node.decided()));
    let took = cluster.now - stopped_at;
    cluster.run_until(|c| all(c, &|node| node.applied()));
    cluster.check();
    assert_eq!(cluster.blames(), [] as [&Report; 0]);
    Some(took)
}

#[test]
fn an_attempt_that_precommits_nothing_is_over_without_a_wait_for_stragglers() {
    // The wait for a proposal, and some four messages of 5 ms each.
    let bound_ms = 1_500 + 50;
    for seed in 1..=3 {
        let took = undecided_ms(PlanKind::Gather, seed, true, Moment::Served, Stop::Frozen);
        assert!(took <= Some(bound_ms), "{took:?}");
    }
}

#[test]
fn one_of_three_that_stops_costs_the_wait_for_its_update_and_nothing_in_addition() {
    // The floor of the deadline and silence are two seconds each, and both begin when the update is expected or later than
    // that. What is left is for some dozen messages, fetches and sums, of 5 or 10 ms each.
    let bound_ms = 2_000 + 100;
    let moments = [
        Moment::Training,
        Moment::Committed,
        Moment::Served,
        Moment::Announced,
    ];
    for plan in [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier] {
        for (moment, stop) in moments
            .into_iter()
            .flat_map(|moment| [(moment, Stop::Frozen), (moment, Stop::Killed)])
        {
            for proposes in [false, true] {
                let took: Vec<u64> = (1..=3)
                    .filter_map(|seed| undecided_ms(plan, seed, proposes, moment, stop))
                    .collect();

                let owns = plan != PlanKind::Gather || !matches!(moment, Moment::Announced);
                assert_eq!(!took.is_empty(), owns);
                let what =
                    format!("{plan:?}, {moment:?}, {stop:?}, proposes: {proposes}: {took:?}");
                assert!(took.iter().all(|took| *took <= bound_ms), "{what}");
            }
        }
    }
}

#[test]
fn an_owner_that_is_late_and_not_silent_is_waited_for_and_a_lie_about_its_shards_is_not_decided() {
    for plan in [PlanKind::Reduce, PlanKind::Hier] {
        let mut cluster = three(plan);
        cluster.run_until(|c| c.all_applied(9));
        let (late, liar) = (cluster.key(2), cluster.key(1));
        // Longer than silence, shorter than the deadline and a patience, two seconds each, after it.
        cluster.late.insert(late, 3_500);
        cluster.falsifiers.insert(liar);
        let before = cluster.records().len() as u64;
        cluster.run_until(|c| c.all_applied(before + 1));
        cluster.check();
        let reports = cluster.peers.values().flat_map(|peer| &peer.reports);
        let noticed = |report: &&Report| matches!(report, Report::OwnersDisagree { .. });
        assert!(reports.filter(noticed).count() > 0, "{plan:?}");
    }
}

#[test]
fn a_proposer_that_is_late_with_its_update_and_not_silent_has_its_turn() {
    for plan in [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier] {
        for seed in 1..=3 {
            let mut cluster = three(plan);
            let slow = cluster.key(seed);
            let round = run_to(&mut cluster, slow, true, Moment::Training).unwrap();
            // It trains for ten seconds more.
            for (at, to, input) in &mut cluster.events {
                if *to == slow && matches!(input, Input::UpdateReady { .. }) {
                    *at += 10_000;
                }
            }
            cluster.run_until(|c| c.records().len() as u64 > round.0);
            let record = &cluster.records()[round.0 as usize];
            assert_eq!(record.decision.members.len(), 2, "{plan:?}");
            assert_eq!(record.certificate.attempt, 0, "{plan:?}");
            cluster.check();
        }
    }
}

/// Whom the peer of this seed takes to be silent.
fn silent(cluster: &Cluster, seed: u8) -> Vec<PeerKey> {
    let node = cluster.node(cluster.key(seed));
    node.view(Time(cluster.now)).silent
}

#[test]
fn a_member_is_silent_after_two_heartbeats_and_until_it_is_heard() {
    let mut cluster = Cluster::new(4, |m| {
        m.schedule.rounds = 100;
        m.trust.absent_rounds_max = 10;
    });
    cluster.run_until(|c| c.all_applied(2));
    let victim = cluster.key(2);
    cluster.frozen.insert(victim);
    // It spoke a heartbeat before that at the latest.
    cluster.run_for(900);
    assert_eq!(silent(&cluster, 1), []);
    cluster.run_for(1_200);
    for seed in [1, 3, 4] {
        assert_eq!(silent(&cluster, seed), [victim]);
    }
    cluster.frozen.remove(&victim);
    assert_eq!(silent(&cluster, 2), [], "its own pause is not theirs");
    cluster.run_for(50);
    for seed in 1..=4 {
        assert_eq!(silent(&cluster, seed), []);
    }
}

#[test]
fn whoever_hears_no_quorum_takes_nobody_to_be_silent() {
    let mut cluster = Cluster::new(4, |m| m.schedule.rounds = 100);
    cluster.run_until(|c| c.all_applied(2));
    let (first, second) = (cluster.key(3), cluster.key(4));
    cluster.cut.extend([first, second]);
    let round = cluster.node(cluster.key(1)).roster().round();
    cluster.run_for(60_000);
    for seed in 1..=4 {
        assert_eq!(silent(&cluster, seed), []);
        let view = cluster.node(cluster.key(seed)).view(Time(cluster.now));
        assert!(view.round <= round.next());
        if let Activity::Deciding { attempt, .. } = view.activity {
            assert_eq!(attempt, 0, "no attempt is given up without a quorum");
        }
    }
    cluster.cut.clear();
    cluster.run_until(|c| c.all_applied(round.0 + 3));
    cluster.check();
}

#[test]
fn a_member_that_is_killed_in_the_first_round_is_gone_long_before_the_cap() {
    for plan in [PlanKind::Gather, PlanKind::Reduce, PlanKind::Hier] {
        let mut cluster = three(plan);
        let victim = cluster.key(2);
        cluster.run_until(|c| c.activity(victim) == Activity::Training);
        let round = cluster.node(victim).roster().round();
        assert_eq!(round, RoundId(1), "no arrival is known");
        cluster.kill(victim);
        let killed_at = cluster.now;
        cluster.run_until(|c| c.all_applied(1));
        cluster.check();
        let took = cluster.now - killed_at;
        assert!(took <= 2_000 + 100, "{plan:?}: {took}");
    }
}
