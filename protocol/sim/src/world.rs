//! A run: peers, links and faults on one queue, in two phases.
//!
//! Rule `two-phases`: until `faults_end` everything of the options goes wrong and only safety is checked. Then cuts heal,
//! crashed and stopped peers go on, nothing is lost and nobody lies any more, and the run must reach its last round
//! before `time_limit`, on all peers that are left. The one excuse is a roster without a quorum of living members (some
//! are gone for good): then the run must stand still, and each living member must say why.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::{Activity, Input};
use gradmesh_protocol::plan::Layout;

use crate::chain::DELAY_MAX_US;
use crate::checks::{Checks, Failure};
use crate::coverage::Coverage;
use crate::learner::Shape;
use crate::lines::Lines;
use crate::network::Network;
use crate::options::{Fault, Moment, Options};
use crate::panics;
use crate::peer::{Event, Life, Outside, Packet, Peer};
use crate::queue::{Instant, Queue};
use crate::random::{Purpose, Random};
use crate::trace::{Trace, Verbosity};

/// A handshake takes this long on top of three latencies.
const HANDSHAKE_US: (u64, u64) = (20_000, 1_500_000);
/// A connection without a peer at its other end is noticed after this long (idle timeout of the daemon: seconds).
const IDLE_TIMEOUT_US: (u64, u64) = (500_000, 5_000_000);
/// A fault that may not come yet is tried again after this long.
const HELD_BACK_US: u64 = 2_000_000;
/// Sizes of nodes are looked at once in so many events.
const SIZES_EVERY: u64 = 16;
/// Events of a run, at most: fifty times what the largest one that converges takes.
const EVENTS_MAX: u64 = 20_000_000;
/// A living peer must have been in a roster when so many rounds were decided since [`RETURN_US`] after its start and
/// after the faults: catching up, asking and being admitted take one each, and twice that if the first answer comes
/// late. It need not stay there: a peer that trains three times slower than the others is out again, by rule
/// `roster-follows`.
const READMITTED_ROUNDS: u64 = 6;
/// What a peer may lose before it begins to catch up, however short the rounds are: a handshake, and three requests of
/// 3 s that were lost, or sent to somebody who has just gone.
const RETURN_US: u64 = 10_500_000;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every living peer reached the last round with the same root.
    Converged,
    /// The roster has no quorum of living members, stands still and says so.
    SafelyStuck,
    /// A check failed.
    Failed(Failure),
}

/// A moment of a run, and what had been sent until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The time.
    pub at: Instant,
    /// Messages that were sent, to each receiver by itself.
    pub messages: u64,
    /// Proposals and votes among them.
    pub agreement_messages: u64,
    /// Bytes, overhead included.
    pub bytes: u64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// BLAKE3 over everything that happened.
    pub trace: Hash,
    /// Virtual time at the end.
    pub ended: Instant,
    /// Events.
    pub events: u64,
    /// Messages sent.
    pub messages: u64,
    /// Their bytes, overhead included.
    pub bytes: u64,
    /// What had been sent when each round was first decided, from the founding one on.
    pub marks: Vec<Mark>,
    /// Bytes of the frames, residuals and leaves that each peer received of each other one: sender, receiver.
    pub blobs: BTreeMap<(usize, usize), u64>,
    /// The last decided round.
    pub decided: Option<RoundId>,
    /// The layout of each round, from the founding one to the first undecided one.
    pub layouts: Vec<Layout>,
    /// Loss of the first and the last state on held-out data, in nats per token.
    pub losses: (f32, f32),
    /// What the run went through.
    pub coverage: Coverage,
    /// Last lines of the trace of the peers concerned by a failure, if asked for.
    pub context: Vec<String>,
}

impl Outcome {
    /// Whether all checks held.
    pub fn holds(&self) -> bool {
        !matches!(self.verdict, Verdict::Failed(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.context {
            writeln!(f, "  {line}")?;
        }
        match &self.verdict {
            Verdict::Converged => writeln!(f, "converged at {}", self.ended)?,
            Verdict::SafelyStuck => writeln!(f, "safely stuck without a quorum at {}", self.ended)?,
            Verdict::Failed(failure) => writeln!(f, "FAILED: {failure}")?,
        }
        let decided = self
            .decided
            .map_or("nothing".into(), |round| format!("round {round}"));
        writeln!(
            f,
            "{} events, {} messages, {} bytes; decided: {decided}; loss {:.3} -> {:.3}",
            self.events, self.messages, self.bytes, self.losses.0, self.losses.1
        )?;
        writeln!(f, "met: {}", self.coverage)?;
        write!(f, "trace {}", self.trace)
    }
}

/// Runs `options` to the end.
pub fn run(options: &Options, verbosity: Verbosity) -> Outcome {
    let mut world = World::new(options, verbosity);
    world.run();
    world.outcome()
}

struct World {
    peers: Vec<Peer>,
    outside: Outside,
    events: u64,
    /// To whom the last event happened.
    last_peer: usize,
    verdict: Option<Verdict>,
    /// When each round was decided.
    decided_at: Vec<Mark>,
    /// When each peer's last process began.
    started_at: Vec<Instant>,
}

impl Outside {
    /// Decided rounds.
    fn decided_rounds(&self) -> u64 {
        self.checks.decided().map_or(0, |round| round.0 + 1)
    }

    /// The process of `peer` is gone: its connections time out.
    pub fn connections_lost(&mut self, peer: usize) {
        for other in 0..self.options.peers.len() {
            if other != peer && self.network.is_connected(peer, other) {
                let delay_us = self.network.delay_us(IDLE_TIMEOUT_US);
                self.queue
                    .push(self.now + delay_us, Event::Disconnect(peer, other));
            }
        }
    }
}

impl World {
    fn new(options: &Options, verbosity: Verbosity) -> World {
        let options = Arc::new(options.clone());
        let manifest = Arc::new(options.manifest.clone());
        let shape = Arc::new(Shape::new(
            &manifest,
            options.sizes().model,
            options.planned_scale,
        ));
        let count = options.peers.len();
        let names: Vec<PeerKey> = (0..count).map(|p| options.keypair(p).public()).collect();
        let places: BTreeMap<PeerKey, usize> = names
            .iter()
            .enumerate()
            .map(|(place, name)| (*name, place))
            .collect();
        let mut queue = Queue::default();
        for (place, peer) in options.peers.iter().enumerate() {
            queue.push(peer.starts, Event::Start(place));
        }
        for (place, (at, _)) in options.faults.iter().enumerate() {
            queue.push(*at, Event::Fault(place));
        }
        queue.push(options.faults_end, Event::Calm);
        if let Some(chain) = &options.chain {
            for peer in 0..count {
                queue.push(chain.seen_at(peer, 1), Event::Snapshot(peer, 1));
            }
        }
        let peers = (0..count)
            .map(|place| Peer::new(place, &options, &shape))
            .collect();
        World {
            peers,
            outside: Outside {
                now: Instant::default(),
                queue,
                network: Network::new(&options),
                lines: options.large.map(|large| Lines::new(&options, &large)),
                stages: BTreeMap::new(),
                random: Random::new(options.seed, Purpose::Peers),
                trace: Trace::new(count, verbosity),
                checks: Checks::new(&options, names.clone(), &shape),
                coverage: Coverage::default(),
                blobs: BTreeMap::new(),
                seen: vec![None; count],
                failure: None,
                run: manifest.run(),
                manifest,
                shape,
                names,
                places,
                options,
                calm: false,
            },
            events: 0,
            last_peer: 0,
            verdict: None,
            decided_at: Vec::new(),
            started_at: vec![Instant::default(); count],
        }
    }

    fn run(&mut self) {
        while self.verdict.is_none() {
            if let Err(message) = panics::catch(|| self.step()) {
                self.verdict = Some(Verdict::Failed(Failure {
                    check: "no-panic",
                    at: self.outside.now,
                    peers: vec![self.last_peer],
                    what: message,
                }));
            }
        }
    }

    /// Takes one event, and looks whether the run is over.
    fn step(&mut self) {
        let (at, event) = self.outside.queue.pop().expect("nodes set timers for ever");
        assert!(at >= self.outside.now, "time goes on");
        self.outside.now = at;
        self.events += 1;
        self.happen(event);
        let network = &self.outside.network;
        let mark = Mark {
            at,
            messages: network.messages,
            agreement_messages: network.agreement_messages,
            bytes: network.bytes,
        };
        self.decided_at
            .resize(self.outside.decided_rounds() as usize, mark);
        if self.events.is_multiple_of(SIZES_EVERY) {
            self.check_sizes();
        }
        if let Some(failure) = self.outside.failure.take() {
            self.verdict = Some(Verdict::Failed(failure));
        } else if self.outside.calm && self.all_finished() {
            self.verdict = Some(self.judge_end());
        } else if at >= self.outside.options.time_limit || self.events >= EVENTS_MAX {
            self.verdict = Some(self.judge_timeout());
        }
    }

    fn happen(&mut self, event: Event) {
        let outside = &mut self.outside;
        let now = outside.now;
        match event {
            Event::Deliver { from, to, packet } => {
                let event = |packet| Event::Deliver { from, to, packet };
                if let Some(until) = self.peers[to].paused_until(now) {
                    return outside.queue.push(until, event(packet));
                }
                self.last_peer = to;
                let (kind, bytes): (&str, &[u8]) = match &packet {
                    Packet::Gossip(bytes) => ("gossip", bytes),
                    Packet::Ask(_, bytes) => ("a request", bytes),
                    Packet::Answer(_, bytes) => ("an answer", bytes),
                    Packet::AskBlob(_, hash, _) => ("a wish for a blob", &hash.0),
                    Packet::Blob(_, blob) => ("a blob", blob.as_deref().unwrap_or_default()),
                };
                let gossip = match (&packet, outside.trace.is_read()) {
                    (Packet::Gossip(bytes), true) => {
                        gradmesh_protocol::wire::Gossip::decode(&outside.run, bytes).ok()
                    }
                    _ => None,
                };
                outside
                    .trace
                    .record(now, to, format_args!("gets {kind} of {from}"), bytes);
                if let Some(gossip) = gossip {
                    outside.trace.note(now, to, format_args!("    {gossip:?}"));
                }
                self.peers[to].receive(outside, from, packet);
            }
            Event::Timer {
                peer,
                process,
                timer,
            } => {
                if let Some(until) = self.peers[peer].paused_until(now) {
                    let event = Event::Timer {
                        peer,
                        process,
                        timer,
                    };
                    return outside.queue.push(until, event);
                }
                self.last_peer = peer;
                outside
                    .trace
                    .record(now, peer, format_args!("{timer:?}"), &[]);
                self.peers[peer].timer(outside, process, timer);
            }
            Event::Arrive(parcel) => outside.arrive(parcel),
            Event::Passed(line) => outside.passed(line),
            Event::Connect(a, b) => self.connect(a, b),
            Event::Disconnect(a, b) => self.disconnect(a, b, false),
            Event::Start(peer) => self.start(peer),
            Event::Fault(place) => {
                let options = outside.options.clone();
                self.fault(place, &options.faults[place].1);
            }
            Event::Calm => self.calm(),
            Event::Snapshot(peer, number) => self.snapshot(peer, number),
        }
    }

    /// A peer sees a snapshot of the registry, unless its node of the chain is away.
    fn snapshot(&mut self, peer: usize, number: u64) {
        let outside = &mut self.outside;
        if let Some(until) = self.peers[peer].paused_until(outside.now) {
            return outside.queue.push(until, Event::Snapshot(peer, number));
        }
        let options = outside.options.clone();
        let Some(chain) = &options.chain else {
            return;
        };
        let next = chain.seen_at(peer, number + 1).max(outside.now);
        outside.queue.push(next, Event::Snapshot(peer, number + 1));
        if outside.calm || chain.reaches(peer, outside.now) {
            self.last_peer = peer;
            self.peers[peer].sees(outside, number);
        }
    }

    fn start(&mut self, peer: usize) {
        match self.peers[peer].life() {
            Life::Unborn | Life::Down => {}
            Life::Up | Life::Left | Life::Vanished => return,
        }
        // A new process knows nothing of the connections of the one before.
        for other in 0..self.peers.len() {
            if other != peer {
                self.disconnect(peer, other, true);
            }
        }
        self.last_peer = peer;
        self.started_at[peer] = self.outside.now;
        self.peers[peer].start(&mut self.outside);
        self.shake_hands();
    }

    /// Lets all pairs connect that can and are not connected.
    fn shake_hands(&mut self) {
        let up = |peer: &Peer| peer.running().is_some();
        for a in 0..self.peers.len() {
            for b in a + 1..self.peers.len() {
                let network = &mut self.outside.network;
                let both_up = up(&self.peers[a]) && up(&self.peers[b]);
                if both_up && !network.is_connected(a, b) && network.reaches(a, b) {
                    let delay_us = network.delay_us(HANDSHAKE_US);
                    let at = self.outside.now + delay_us;
                    self.outside.queue.push(at, Event::Connect(a, b));
                }
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let up = |peer: usize| self.peers[peer].running().is_some();
        let now = self.outside.now;
        if !up(a) || !up(b) || !self.outside.network.reaches(a, b) {
            return;
        }
        // A process that stands still answers no handshake; it connects when it goes on.
        for peer in [a, b] {
            if let Some(until) = self.peers[peer].paused_until(now) {
                return self.outside.queue.push(until + 1, Event::Connect(a, b));
            }
        }
        if self.outside.network.connect(a, b) {
            for (peer, other) in [(a, b), (b, a)] {
                self.last_peer = peer;
                let name = self.outside.names[other];
                self.outside
                    .trace
                    .record(now, peer, format_args!("connects to {other}"), &[]);
                self.peers[peer].input(&mut self.outside, Input::PeerUp(name));
            }
        }
    }

    /// Ends a connection, unless both peers are up and reach each other. `now`: in any case.
    fn disconnect(&mut self, a: usize, b: usize, anyway: bool) {
        let up = |peer: usize| self.peers[peer].running().is_some();
        let network = &mut self.outside.network;
        if !anyway && up(a) && up(b) && network.reaches(a, b) {
            return;
        }
        if network.disconnect(a, b) {
            for (peer, other) in [(a, b), (b, a)] {
                self.last_peer = peer;
                let (now, name) = (self.outside.now, self.outside.names[other]);
                self.outside
                    .trace
                    .record(now, peer, format_args!("loses {other}"), &[]);
                self.peers[peer].input(&mut self.outside, Input::PeerDown(name));
            }
        }
    }

    fn fault(&mut self, place: usize, fault: &Fault) {
        if self.outside.calm {
            return;
        }
        let outside = &mut self.outside;
        match fault {
            Fault::Crash { peer, moment } => {
                self.last_peer = *peer;
                if self.peers[*peer].life() != Life::Up {
                    return;
                }
                match moment {
                    Moment::AfterEffects(_) | Moment::AfterTraining => {
                        self.peers[*peer].crash_at(*moment);
                    }
                    Moment::Now => {
                        self.peers[*peer].stop(outside, Life::Down);
                        outside.connections_lost(*peer);
                    }
                }
            }
            Fault::Restart(peer) => self.restart(*peer),
            Fault::Pause(peer, until) => self.peers[*peer].pause(*until),
            Fault::Cut(cut) => {
                outside.network.cut(cut.clone());
                let count = self.peers.len();
                for (a, b) in (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))) {
                    if outside.network.is_connected(a, b) && !outside.network.reaches(a, b) {
                        let delay_us = outside.network.delay_us(IDLE_TIMEOUT_US);
                        outside
                            .queue
                            .push(outside.now + delay_us, Event::Disconnect(a, b));
                    }
                }
            }
            Fault::Heal(cut) => {
                outside.network.heal(cut);
                self.shake_hands();
            }
            Fault::Leave(peer) => {
                self.last_peer = *peer;
                match self.peers[*peer].life() {
                    Life::Up if outside.checks.decided().is_some() => {
                        outside
                            .trace
                            .record(outside.now, *peer, format_args!("is to leave"), &[]);
                        self.peers[*peer].input(outside, Input::Leave);
                    }
                    Life::Unborn | Life::Up | Life::Down => {
                        outside
                            .queue
                            .push(outside.now + HELD_BACK_US, Event::Fault(place));
                    }
                    Life::Left | Life::Vanished => {}
                }
            }
            Fault::Capacity(peer, capacity) => {
                let what = format_args!("its link can carry {capacity}");
                outside.trace.record(outside.now, *peer, what, &[]);
                self.peers[*peer].relink(*capacity);
            }
            Fault::Vanish(peer) => {
                self.last_peer = *peer;
                if outside.checks.decided().is_none() || !self.has_quorum_without(*peer) {
                    let outside = &mut self.outside;
                    return outside
                        .queue
                        .push(outside.now + HELD_BACK_US, Event::Fault(place));
                }
                if self.peers[*peer].life() != Life::Left {
                    let outside = &mut self.outside;
                    self.peers[*peer].stop(outside, Life::Vanished);
                    outside.connections_lost(*peer);
                }
            }
        }
    }

    fn restart(&mut self, peer: usize) {
        // A crash whose moment has not come comes now.
        if self.peers[peer].crash_is_due() {
            self.last_peer = peer;
            self.peers[peer].stop(&mut self.outside, Life::Down);
            self.outside.connections_lost(peer);
        }
        if self.peers[peer].life() == Life::Down {
            self.start(peer);
        }
    }

    /// Whether the roster at hand would keep a quorum of peers that come back if `peer` did not.
    fn has_quorum_without(&self, peer: usize) -> bool {
        let checks = &self.outside.checks;
        let roster = checks.roster();
        let living = roster.members().iter().filter(|member| {
            let place = self.outside.places[&member.peer];
            place != peer && self.is_living(place)
        });
        let votes: u64 = living.map(|member| u64::from(member.power)).sum();
        votes >= checks.quorum(roster)
    }

    /// Whether a peer is up or will be.
    fn is_living(&self, peer: usize) -> bool {
        match self.peers[peer].life() {
            Life::Unborn | Life::Up | Life::Down => true,
            Life::Left | Life::Vanished => false,
        }
    }

    /// Whether a peer is to reach the last round: it is up or will be, and registered in the end if there is a chain.
    fn is_expected(&self, peer: usize) -> bool {
        let chain = self.outside.options.chain.as_ref();
        self.is_living(peer) && chain.is_none_or(|chain| chain.ends_registered(peer))
    }

    /// Ends all faults.
    fn calm(&mut self) {
        let now = self.outside.now;
        for peer in 0..self.peers.len() {
            self.outside
                .trace
                .record(now, peer, format_args!("all faults end"), &[]);
            self.peers[peer].proceed();
        }
        self.outside.network.calm();
        self.outside.calm = true;
        for peer in 0..self.peers.len() {
            self.restart(peer);
            self.start(peer);
        }
        self.shake_hands();
    }

    fn check_sizes(&mut self) {
        let outside = &mut self.outside;
        let peer = (self.events / SIZES_EVERY) as usize % self.peers.len();
        let time = outside.options.peers[peer].clock.read(outside.now);
        if let Some(running) = self.peers[peer].running() {
            let view = running.node.view(time);
            if let Err((check, what)) = outside.checks.keeps(&view, outside.shape.shards()) {
                outside.fail(peer, check, what);
            }
        }
    }

    fn all_finished(&self) -> bool {
        let last = RoundId(self.outside.manifest.schedule.rounds);
        (0..self.peers.len())
            .filter(|peer| self.is_expected(*peer))
            .all(|peer| self.peers[peer].applied() == Some(last) && self.peers[peer].is_finished())
    }

    fn fail(&self, check: &'static str, peers: Vec<usize>, what: String) -> Verdict {
        Verdict::Failed(Failure {
            check,
            at: self.outside.now,
            peers,
            what,
        })
    }

    /// Everybody is at the last round: with the same state, and in the roster?
    fn judge_end(&self) -> Verdict {
        let outside = &self.outside;
        let genesis = outside.shape.genesis();
        let root = outside
            .checks
            .root()
            .unwrap_or_else(|| genesis.state_root());
        let living = || (0..self.peers.len()).filter(|peer| self.is_expected(*peer));
        let others: Vec<usize> = living()
            .filter(|peer| self.peers[*peer].root(&outside.shape) != root)
            .collect();
        if !others.is_empty() {
            return self.fail(
                "same-state",
                others,
                "end in another state than the decisions'".into(),
            );
        }
        let decided = outside.decided_rounds();
        let absent: Vec<usize> = living()
            .filter(|peer| {
                let chain = outside.options.chain.as_ref();
                let registered_us = chain.map_or(0, |chain| 3 * chain.interval_us + DELAY_MAX_US);
                let returned = outside.options.faults_end.max(self.started_at[*peer])
                    + RETURN_US
                    + registered_us;
                let since = self.decided_at.partition_point(|mark| mark.at < returned) as u64;
                let leaves = outside
                    .options
                    .faults
                    .iter()
                    .any(|(_, f)| *f == Fault::Leave(*peer));
                decided >= since + READMITTED_ROUNDS
                    && !leaves
                    && !outside
                        .checks
                        .was_member(&outside.names[*peer], RoundId(since))
            })
            .collect();
        if !absent.is_empty() {
            let what =
                format!("were in no roster for {READMITTED_ROUNDS} rounds after they came back");
            return self.fail("converges", absent, what);
        }
        Verdict::Converged
    }

    /// The time is over. Standing still is right only without a quorum, and then each living member must say so.
    fn judge_timeout(&self) -> Verdict {
        let outside = &self.outside;
        let unfinished: Vec<usize> = (0..self.peers.len())
            .filter(|peer| self.is_expected(*peer) && !self.peers[*peer].is_finished())
            .collect();
        let says = |peer: usize| {
            let running = self.peers[peer].running()?;
            let clock = outside.options.peers[peer].clock;
            Some(running.node.view(clock.read(outside.now)))
        };
        let views: Vec<String> = unfinished
            .iter()
            .map(|peer| match says(*peer) {
                Some(view) => format!("{peer}: {view} (applied {:?})", view.applied),
                None => format!("{peer}: {:?}", self.peers[*peer].life()),
            })
            .collect();
        let no_peer = outside.names.len();
        if outside.checks.decided().is_some() && !self.has_quorum_without(no_peer) {
            let silent = outside.checks.roster().members().iter().find_map(|member| {
                let place = outside.places[&member.peer];
                let view = says(place)?;
                let stuck = matches!(view.activity,
                    Activity::Deciding { connected, quorum, .. } if connected < quorum);
                (!stuck).then_some(place)
            });
            return match silent {
                None => Verdict::SafelyStuck,
                Some(peer) => self.fail(
                    "converges",
                    vec![peer],
                    format!("no quorum, not said: {}", views.join("; ")),
                ),
            };
        }
        self.fail(
            "converges",
            unfinished,
            format!("not finished: {}", views.join("; ")),
        )
    }

    fn outcome(self) -> Outcome {
        let outside = self.outside;
        let verdict = self.verdict.expect("a run ends with a verdict");
        let context = match &verdict {
            Verdict::Failed(failure) => {
                let tails = failure
                    .peers
                    .iter()
                    .flat_map(|peer| outside.trace.tail(*peer));
                tails.map(str::to_owned).collect()
            }
            Verdict::Converged | Verdict::SafelyStuck => Vec::new(),
        };
        let shape = &outside.shape;
        Outcome {
            trace: outside.trace.hash(),
            ended: outside.now,
            events: self.events,
            messages: outside.network.messages,
            bytes: outside.network.bytes,
            marks: self.decided_at,
            blobs: outside.blobs,
            decided: outside.checks.decided(),
            layouts: outside.checks.layouts().to_vec(),
            losses: (
                shape.loss(shape.genesis().theta()),
                shape.loss(outside.checks.theta()),
            ),
            coverage: outside.coverage,
            context,
            verdict,
        }
    }
}
