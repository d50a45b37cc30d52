//! One simulated peer: the node, and a driver that does what the daemon does around it.
//!
//! What is in [`Store`] survives a crash; what is in [`Running`] does not. The driver performs effects strictly in order,
//! each to its end; a crash may come between any two of them.

mod bulk;
mod liar;
mod owner;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use gradmesh_protocol::agreement::Message;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{FrameId, SignedHeader, Stage};
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{Link, Manifest, RoundId, RunId};
use gradmesh_protocol::node::{Effect, Input, Node, NodeConfig, Report, RequestId, Restored};
use gradmesh_protocol::time::Time;
use gradmesh_protocol::wire::{DecisionRecord, Decisions, Gossip, JournalEntry, Request, Response};

use crate::chain::Seen;
use crate::checks::{Checks, Failure};
use crate::coverage::{Coverage, Situation};
use crate::learner::{Frames, Private, Shape, Task};
use crate::lines::{LineId, Lines, Parcel};
use crate::network::{Class, Network};
use crate::options::{Moment, Options};
use crate::queue::{Instant, Queue};
use crate::random::Random;
use crate::trace::Trace;

pub use bulk::BlobPurpose;
use bulk::{FrameFetch, StateFetch};
use gradmesh_trainer::replica::Replica;
use liar::{HeaderLie, Liar};
use owner::{Residuals, Summing};
use worker::{Application, Worker};

/// A request to a peer without a connection fails after this.
const REFUSED_US: u64 = 1_000;
/// Inputs that one input of the world may lead to inside one peer: frames at hand that are asked for, and little else.
const CASCADE_MAX: usize = 10_000;

/// Ties an answer to the peer's question.
pub type Ticket = u64;

/// What goes over a link.
#[derive(Clone, Debug)]
pub enum Packet {
    /// Gossip, encoded.
    Gossip(Arc<[u8]>),
    /// A request, encoded.
    Ask(Ticket, Arc<[u8]>),
    /// A response, encoded.
    Answer(Ticket, Arc<[u8]>),
    /// Asks for a blob by its hash.
    AskBlob(Ticket, Hash, Wish),
    /// A blob; `None` if it is not there.
    Blob(Ticket, Option<Arc<[u8]>>),
}

/// When a blob is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The answer comes at once.
    Now,
    /// The answer may wait for a frame that is on its way.
    WhenItIsThere,
}

/// Something that will happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet arrives.
    Deliver {
        /// The sender.
        from: usize,
        /// The receiver.
        to: usize,
        /// The packet.
        packet: Packet,
    },
    /// A message arrives at the line into a site.
    Arrive(Parcel),
    /// A line has served a message.
    Passed(LineId),
    /// A timer of a peer; void if the process is another one by then.
    Timer {
        /// The peer.
        peer: usize,
        /// Which process of it.
        process: u32,
        /// Which timer.
        timer: Timer,
    },
    /// A handshake between two peers ends.
    Connect(usize, usize),
    /// A connection times out, unless its peers reach each other again.
    Disconnect(usize, usize),
    /// The fault at this place of the options.
    Fault(usize),
    /// A peer sees this snapshot of the registry.
    Snapshot(usize, u64),
    /// The peer is started for the first time.
    Start(usize),
    /// All faults end.
    Calm,
}

/// A timer inside a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The node wants to be woken; void if it has asked for another time since.
    Wake(u64),
    /// The worker's job is done.
    Worker(u64),
    /// A shard is summed.
    Summed(u64),
    /// A question is not answered in time.
    Unanswered(Ticket),
    /// A frame is waited for here, of which this peer had not heard.
    Unheard(Hash),
}

/// What all peers share: time, links and checks.
pub struct Outside {
    /// The time.
    pub now: Instant,
    /// What will happen.
    pub queue: Queue<Event>,
    /// The links.
    pub network: Network,
    /// The lines that sites share, in a large run.
    pub lines: Option<Lines>,
    /// In a large run, the stage of every frame that was asked for.
    pub stages: BTreeMap<Hash, Stage>,
    /// Chance inside peers.
    pub random: Random,
    /// What happened.
    pub trace: Trace,
    /// What must hold.
    pub checks: Checks,
    /// What the run went through.
    pub coverage: Coverage,
    /// Bytes of blobs that arrived, by sender and receiver.
    pub blobs: BTreeMap<(usize, usize), u64>,
    /// What each process that is up has seen of the chain.
    pub seen: Vec<Option<Seen>>,
    /// The first check that did not.
    pub failure: Option<Failure>,
    /// The options.
    pub options: Arc<Options>,
    /// The manifest.
    pub manifest: Arc<Manifest>,
    /// The run.
    pub run: RunId,
    /// The shape of the model.
    pub shape: Arc<Shape>,
    /// The name of each peer.
    pub names: Vec<PeerKey>,
    /// The place of each peer.
    pub places: BTreeMap<PeerKey, usize>,
    /// Whether the faults are over.
    pub calm: bool,
}

impl Outside {
    /// Notes that `check` does not hold for `peer`. The first one counts.
    pub fn fail(&mut self, peer: usize, check: &'static str, what: String) {
        let at = self.now;
        self.failure.get_or_insert(Failure {
            check,
            at,
            peers: vec![peer],
            what,
        });
    }

    fn send(&mut self, from: usize, to: usize, packet: Packet) {
        let (bytes, class) = match &packet {
            Packet::Gossip(bytes) => (bytes.len(), Class::Gossip),
            Packet::Ask(_, bytes) | Packet::Answer(_, bytes) => (bytes.len(), Class::Direct),
            Packet::AskBlob(..) | Packet::Blob(_, None) => (48, Class::Direct),
            Packet::Blob(_, Some(bytes)) => (self.counted(bytes), Class::Direct),
        };
        if let Some(lines) = &mut self.lines
            && lines.lies_between(from, to)
        {
            let id = lines.up_from(from);
            let bytes = self.network.count(bytes as u64);
            let parcel = Parcel {
                from,
                to,
                bytes,
                packet,
            };
            return self.enter(id, parcel);
        }
        let arrivals = self
            .network
            .send(&self.options, self.now, (from, to), bytes, class);
        if let Packet::Blob(_, Some(blob)) = &packet {
            *self.blobs.entry((from, to)).or_default() += (blob.len() * arrivals.len()) as u64;
        }
        for at in arrivals {
            let packet = packet.clone();
            self.queue.push(at, Event::Deliver { from, to, packet });
        }
    }
}

impl Outside {
    /// For how many bytes a blob counts.
    fn counted(&self, blob: &[u8]) -> usize {
        let stage = self.options.large.and_then(|large| {
            let stage = self.stages.get(&Hash::of_content(blob))?;
            Some(large.frame_scale_milli.of(*stage))
        });
        match stage {
            Some(scale_milli) => (blob.len() as u64 * scale_milli / 1000) as usize,
            None => blob.len(),
        }
    }

    fn enter(&mut self, line: LineId, parcel: Parcel) {
        let us = self
            .lines
            .as_mut()
            .and_then(|lines| lines.enter(line, parcel));
        if let Some(us) = us {
            self.queue.push(self.now + us, Event::Passed(line));
        }
    }

    /// A message is at the line into its receiver's site.
    pub fn arrive(&mut self, parcel: Parcel) {
        if let Some(lines) = &self.lines {
            self.enter(lines.down_to(parcel.to), parcel);
        }
    }

    /// A line has served a message, which goes on.
    pub fn passed(&mut self, line: LineId) {
        let Some(lines) = &mut self.lines else {
            return;
        };
        let one_way_us = lines.one_way_us;
        let (parcel, next_us) = lines.passed(line);
        if let Some(us) = next_us {
            self.queue.push(self.now + us, Event::Passed(line));
        }
        let Some(parcel) = parcel else {
            return;
        };
        let (at, event) = match line {
            LineId::Up(_) => (self.now + one_way_us, Event::Arrive(parcel)),
            LineId::Down(_) => {
                let Parcel {
                    from, to, packet, ..
                } = parcel;
                if let Packet::Blob(_, Some(blob)) = &packet {
                    *self.blobs.entry((from, to)).or_default() += blob.len() as u64;
                }
                (self.now, Event::Deliver { from, to, packet })
            }
        };
        self.queue.push(at, event);
    }
}

/// What survives a crash.
#[derive(Debug)]
pub struct Store {
    /// Decisions from round 0, encoded.
    records: Vec<Vec<u8>>,
    /// The same, decoded.
    decoded: Vec<Arc<DecisionRecord>>,
    journal: Vec<(RoundId, Vec<u8>)>,
    /// The state, and the round that it is after; `None` before the founding round is applied.
    state: Option<(RoundId, Replica)>,
    /// Epoch states that are kept for others.
    snapshots: BTreeMap<RoundId, Replica>,
    private: Private,
    residuals: Residuals,
    /// Frames, and the round that was at hand when they came.
    frames: Frames,
    frame_rounds: BTreeMap<Hash, RoundId>,
    /// The first round whose frames are all here.
    frames_from: RoundId,
    /// Tickets are never used twice, not even by another process.
    next_ticket: Ticket,
}

/// The state in `stored`, or the one before the first round.
fn state_in<'a>(stored: &'a Option<(RoundId, Replica)>, shape: &'a Shape) -> &'a Replica {
    stored.as_ref().map_or(shape.genesis(), |(_, state)| state)
}

/// A process.
pub struct Running {
    /// The node.
    pub node: Node,
    worker: Worker,
    summing: Summing,
    /// Who waits for a frame that is on its way here: the frame, the asker and its ticket.
    parked: Vec<(Hash, usize, Ticket)>,
    requests: BTreeMap<Ticket, RequestId>,
    blobs: BTreeMap<Ticket, BlobPurpose>,
    frame_fetches: BTreeMap<FrameId, FrameFetch>,
    state_fetch: Option<StateFetch>,
    wake: Option<(Instant, u64)>,
    wakes: u64,
    /// Wakes in a row at one instant, to notice a node that is never satisfied.
    wakes_here: (Instant, u32),
    /// A crash that is due.
    crash: Option<Moment>,
}

/// Where a peer stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Not started yet.
    Unborn,
    /// Up, or stopped for a while.
    Up,
    /// Crashed; will be started again.
    Down,
    /// Left the run by its own wish; the process has ended.
    Left,
    /// Gone for good.
    Vanished,
}

/// See the module documentation.
pub struct Peer {
    place: usize,
    keypair: Keypair,
    store: Store,
    /// Which process this is: counts starts.
    process: u32,
    running: Option<Running>,
    life: Life,
    /// Stopped (SIGSTOP) until then.
    paused_until: Option<Instant>,
    liar: Option<Liar>,
    /// Whether a report of this process said that the run is finished.
    finished: bool,
    /// How it is connected now.
    link: Link,
}

impl Peer {
    /// A peer that was never started.
    pub fn new(place: usize, options: &Options, shape: &Shape) -> Peer {
        Peer {
            place,
            keypair: options.keypair(place),
            store: Store {
                records: Vec::new(),
                decoded: Vec::new(),
                journal: Vec::new(),
                state: None,
                snapshots: BTreeMap::new(),
                private: Private::new(shape),
                residuals: Residuals::default(),
                frames: Frames::new(),
                frame_rounds: BTreeMap::new(),
                frames_from: RoundId::FOUNDING,
                next_ticket: 0,
            },
            process: 0,
            running: None,
            life: Life::Unborn,
            paused_until: None,
            liar: options.peers[place].lie.map(Liar::new),
            finished: false,
            link: options.peers[place].link,
        }
    }

    /// The process, if it is up.
    pub fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// Where it stands in its life.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Until when it stands still, if it does at `now`.
    pub fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// Makes it stand still.
    pub fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Lets it go on.
    pub fn proceed(&mut self) {
        self.paused_until = None;
    }

    /// Whether it is to crash at some moment.
    pub fn crash_is_due(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.crash.is_some())
    }

    /// Whether it reported that the run is finished.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The last applied round.
    pub fn applied(&self) -> Option<RoundId> {
        self.store.state.as_ref().map(|(round, _)| *round)
    }

    /// The state root that the worker computes from the durable state.
    pub fn root(&self, shape: &Shape) -> Hash {
        self.state(shape).state_root()
    }

    fn state<'a>(&'a self, shape: &'a Shape) -> &'a Replica {
        state_in(&self.store.state, shape)
    }

    fn clock(&self, outside: &Outside) -> Time {
        outside.options.peers[self.place].clock.read(outside.now)
    }

    /// Starts a process on what the store holds.
    pub fn start(&mut self, outside: &mut Outside) {
        self.finished = false;
        let root = self.root(&outside.shape);
        let first_undecided = RoundId(self.store.records.len() as u64);
        let records = self.store.records.iter().map(|bytes| {
            Arc::new(DecisionRecord::decode(bytes).expect("what was stored can be read"))
        });
        let journal = self.store.journal.iter().map(|(_, bytes)| {
            JournalEntry::decode(bytes).expect("what was journalled can be read")
        });
        let restored = Restored {
            records: records.collect(),
            applied: self.applied().map(|round| (round, root)),
            journal: journal
                .filter(|(round, _)| *round == first_undecided)
                .map(|(_, entry)| entry)
                .collect(),
        };
        outside.trace.record(
            outside.now,
            self.place,
            format_args!(
                "starts with {} decisions, applied {:?}, {} journal entries",
                restored.records.len(),
                restored.applied,
                restored.journal.len()
            ),
            &[],
        );
        if !restored.journal.is_empty() {
            outside.coverage.meet(Situation::JournalReplayed);
        }
        let config = NodeConfig {
            manifest: outside.manifest.clone(),
            run: outside.run,
            keypair: self.keypair.clone(),
            fragments: outside.shape.fragments().clone(),
            link: self.link,
            frame_bytes_max: outside.shape.frame_bytes_max(),
            observes: false,
            update_bytes: outside.shape.update_bytes(),
            genesis_root: outside.shape.genesis().state_root(),
        };
        self.process += 1;
        self.life = Life::Up;
        let node = Node::new(self.clock(outside), config, restored);
        self.running = Some(Running {
            node,
            worker: Worker::default(),
            summing: Summing::default(),
            parked: Vec::new(),
            requests: BTreeMap::new(),
            blobs: BTreeMap::new(),
            frame_fetches: BTreeMap::new(),
            state_fetch: None,
            wake: None,
            wakes: 0,
            wakes_here: (outside.now, 0),
            crash: None,
        });
        outside.seen[self.place] = Some(Seen::default());
        self.perform_all(outside);
        let options = outside.options.clone();
        let found = options
            .chain
            .as_ref()
            .map(|chain| chain.found(self.place, outside.now));
        for number in found.into_iter().flatten() {
            self.sees(outside, number);
        }
    }

    /// Ends the process: everything in memory is gone.
    pub fn stop(&mut self, outside: &mut Outside, life: Life) {
        outside.trace.record(
            outside.now,
            self.place,
            format_args!("stops: {life:?}"),
            &[],
        );
        self.running = None;
        outside.seen[self.place] = None;
        self.life = life;
        self.paused_until = None;
    }

    /// Lets the process crash at `moment`.
    pub fn crash_at(&mut self, moment: Moment) {
        if let Some(running) = &mut self.running {
            running.crash = Some(moment);
        }
    }

    /// Its link can carry so much from now on.
    pub fn relink(&mut self, capacity: u16) {
        self.link.capacity = capacity;
        if let Some(running) = &mut self.running {
            running.node.set_link(self.link);
        }
    }

    /// Gives the node an input.
    pub fn input(&mut self, outside: &mut Outside, input: Input) {
        let now = self.clock(outside);
        let Some(running) = &mut self.running else {
            return;
        };
        running.node.handle(now, input);
        self.perform_all(outside);
    }

    /// A timer of the process fires.
    pub fn timer(&mut self, outside: &mut Outside, process: u32, timer: Timer) {
        let Some(running) = self.running.as_mut().filter(|_| process == self.process) else {
            return;
        };
        match timer {
            Timer::Wake(wake) => {
                if running.wake.is_some_and(|(_, newest)| newest == wake) {
                    running.wake = None;
                    let here = &mut running.wakes_here;
                    *here = if here.0 == outside.now {
                        (here.0, here.1 + 1)
                    } else {
                        (outside.now, 0)
                    };
                    if here.1 > 100 {
                        let what = format!(
                            "wakes again and again for {:?}",
                            running.node.poll_timeout()
                        );
                        outside.fail(self.place, "orderly", what);
                        return;
                    }
                    let now = outside.options.peers[self.place].clock.read(outside.now);
                    running.node.handle_timeout(now);
                    self.perform_all(outside);
                }
            }
            Timer::Worker(job) => self.job_done(outside, job),
            Timer::Summed(job) => self.summed(outside, job),
            Timer::Unanswered(ticket) => self.unanswered(outside, ticket),
            Timer::Unheard(hash) => self.unheard(outside, &hash),
        }
    }

    /// A packet arrives from `from`.
    pub fn receive(&mut self, outside: &mut Outside, from: usize, packet: Packet) {
        if self.running.is_none() {
            return;
        }
        match packet {
            Packet::Gossip(bytes) => match Gossip::decode(&outside.run, &bytes) {
                Ok(message) => {
                    let from = outside.names[from];
                    let message = Box::new(message);
                    self.input(outside, Input::Gossip { from, message });
                }
                Err(error) => outside.fail(from, "orderly", format!("sends bad gossip: {error}")),
            },
            Packet::Ask(ticket, bytes) => match Request::decode(&outside.run, &bytes) {
                Ok(request) => {
                    let response = self.answer(outside, from, &request).encode();
                    outside.send(self.place, from, Packet::Answer(ticket, response.into()));
                }
                Err(error) => {
                    outside.fail(from, "orderly", format!("sends a bad request: {error}"))
                }
            },
            Packet::Answer(ticket, bytes) => match Response::decode(&bytes) {
                Ok(response) => self.answered(outside, ticket, response),
                Err(error) => {
                    outside.fail(from, "orderly", format!("sends a bad response: {error}"))
                }
            },
            Packet::AskBlob(ticket, hash, wish) => {
                let liar = self.liar.as_ref();
                let withheld = liar.is_some_and(|liar| liar.withholds(from) && !outside.calm);
                if withheld && self.store.frames.contains_key(&hash) {
                    outside.coverage.meet(Situation::FrameWithheld);
                    return outside.send(self.place, from, Packet::Blob(ticket, None));
                }
                let admits = self.admits(outside, from);
                let here = self.store.frames.contains_key(&hash);
                if admits && !here && wish == Wish::WhenItIsThere {
                    return self.hold(outside, from, ticket, hash);
                }
                let blob = admits.then(|| self.blob(outside, &hash)).flatten();
                outside.send(self.place, from, Packet::Blob(ticket, blob));
            }
            Packet::Blob(ticket, blob) => self.blob_came(outside, ticket, blob),
        }
    }

    /// Whether the peer at `place` is served frames and states.
    fn admits(&self, outside: &Outside, place: usize) -> bool {
        let name = &outside.names[place];
        self.running.as_ref().is_some_and(|r| r.node.admits(name))
    }

    /// Sees snapshot `number` of the registry.
    pub fn sees(&mut self, outside: &mut Outside, number: u64) {
        let Some(chain) = outside
            .options
            .chain
            .as_ref()
            .filter(|_| self.running.is_some())
        else {
            return;
        };
        let registry = chain.registry(number, &outside.names);
        if let Some(seen) = &mut outside.seen[self.place] {
            seen.note(number);
        }
        if let Some(liar) = &mut self.liar {
            liar.seen = Some(registry.mark());
        }
        let (now, what) = (outside.now, format_args!("sees snapshot {number}"));
        outside.trace.record(now, self.place, what, &[]);
        self.input(outside, Input::Registry(registry));
    }

    /// Answers the request of the peer at `from` from the store.
    fn answer(&self, outside: &Outside, from: usize, request: &Request) -> Response {
        let Some(running) = &self.running else {
            return Response::Refused("not running".into());
        };
        match request {
            Request::Decisions { from: first, count } => {
                let wanted = self.store.decoded.iter().skip(first.0 as usize);
                let mut records: Vec<DecisionRecord> = wanted
                    .take(*count as usize)
                    .map(|record| (**record).clone())
                    .collect();
                if self
                    .liar
                    .as_ref()
                    .is_some_and(|liar| liar.forges_history() && !outside.calm)
                {
                    liar::forge(&mut records);
                }
                Response::Decisions(Decisions {
                    records,
                    decided: running.node.decided(),
                    snapshot: running
                        .node
                        .snapshot_to_offer(self.store.snapshots.keys().copied()),
                    frames_from: self.store.frames_from,
                })
            }
            Request::Headers(hashes) => {
                let headers = hashes.iter().filter_map(|hash| running.node.header(hash));
                Response::Headers(headers.cloned().collect())
            }
            Request::Reductions(round) => Response::Reductions(running.node.reductions(*round)),
            Request::Snapshot(_) if !self.admits(outside, from) => {
                Response::Refused("not registered".into())
            }
            Request::Snapshot(round) => match self.snapshot_leaves(outside, *round) {
                Some(leaves) => Response::Snapshot {
                    round: *round,
                    leaves,
                },
                None => Response::Refused(format!("no state after round {round} is kept")),
            },
            Request::Manifest
            | Request::Contact
            | Request::Data
            | Request::Segments(_)
            | Request::SegmentState { .. }
            | Request::Feedback(_) => Response::Refused("not simulated".into()),
        }
    }

    fn answered(&mut self, outside: &mut Outside, ticket: Ticket, response: Response) {
        let Some(running) = &mut self.running else {
            return;
        };
        if let Some(id) = running.requests.remove(&ticket) {
            let input = match response {
                Response::Decisions(decisions) => Input::Decisions {
                    id,
                    decisions: Box::new(decisions),
                },
                Response::Headers(headers) => Input::Headers { id, headers },
                Response::Reductions(reductions) => {
                    outside.coverage.meet(Situation::ReductionsAsked);
                    Input::Reductions { id, reductions }
                }
                Response::Manifest(_)
                | Response::Contact(_)
                | Response::Snapshot { .. }
                | Response::Data(_)
                | Response::Segments(_)
                | Response::SegmentState { .. }
                | Response::Feedback { .. }
                | Response::Refused(_) => Input::RequestFailed(id),
            };
            self.input(outside, input);
        } else {
            self.snapshot_came(outside, ticket, response);
        }
    }

    fn unanswered(&mut self, outside: &mut Outside, ticket: Ticket) {
        let Some(running) = &mut self.running else {
            return;
        };
        if let Some(id) = running.requests.remove(&ticket) {
            self.input(outside, Input::RequestFailed(id));
        } else {
            self.blob_came(outside, ticket, None);
        }
    }

    /// Sends a question and sets its timer.
    fn ask(
        &mut self,
        outside: &mut Outside,
        to: usize,
        packet: impl FnOnce(Ticket) -> Packet,
    ) -> Ticket {
        self.store.next_ticket += 1;
        let ticket = self.store.next_ticket;
        let wait_us = if outside.network.is_connected(self.place, to) {
            outside.send(self.place, to, packet(ticket));
            outside.options.sizes().answer_timeout_us
        } else {
            REFUSED_US
        };
        self.set_timer(outside, outside.now + wait_us, Timer::Unanswered(ticket));
        ticket
    }

    fn set_timer(&self, outside: &mut Outside, at: Instant, timer: Timer) {
        let event = Event::Timer {
            peer: self.place,
            process: self.process,
            timer,
        };
        outside.queue.push(at, event);
    }

    /// Performs effects until none is left, feeding back what is known at once, and sets the node's timer.
    fn perform_all(&mut self, outside: &mut Outside) {
        let mut inputs = VecDeque::new();
        for _ in 0..CASCADE_MAX {
            let Some(running) = &mut self.running else {
                return;
            };
            if outside.failure.is_some() {
                return;
            }
            let Some(effect) = running.node.poll_effect() else {
                let Some(input) = inputs.pop_front() else {
                    return self.set_wake(outside);
                };
                let now = outside.options.peers[self.place].clock.read(outside.now);
                running.node.handle(now, input);
                continue;
            };
            if let Some(Moment::AfterEffects(left)) = &mut running.crash {
                if *left == 0 {
                    outside.coverage.meet(Situation::CrashBetweenEffects);
                    self.stop(outside, Life::Down);
                    outside.connections_lost(self.place);
                    return;
                }
                *left -= 1;
            }
            outside.trace.record(
                outside.now,
                self.place,
                format_args!("does {effect:?}"),
                &[],
            );
            self.perform(outside, effect, &mut inputs);
        }
        outside.fail(
            self.place,
            "bounded",
            format!("{CASCADE_MAX} effects and inputs in one go"),
        );
    }

    fn set_wake(&mut self, outside: &mut Outside) {
        let Some(running) = &mut self.running else {
            return;
        };
        let clock = outside.options.peers[self.place].clock;
        let due = running
            .node
            .poll_timeout()
            .map(|(time, _)| clock.when(time).max(outside.now));
        if due == running.wake.map(|(at, _)| at) {
            return;
        }
        running.wakes += 1;
        let wake = running.wakes;
        running.wake = due.map(|at| (at, wake));
        if let Some(at) = due {
            self.set_timer(outside, at, Timer::Wake(wake));
        }
    }

    fn perform(&mut self, outside: &mut Outside, effect: Effect, inputs: &mut VecDeque<Input>) {
        match effect {
            Effect::Journal { round, entry } => {
                self.store.journal.push((round, entry.encode(round)));
            }
            Effect::StoreDecision(record) => self.store_decision(outside, &record),
            Effect::Broadcast(gossip) => self.broadcast(outside, &gossip),
            Effect::Request { peer, id, request } => {
                let bytes: Arc<[u8]> = request.encode(&outside.run).into();
                let Some(to) = outside
                    .places
                    .get(&peer)
                    .copied()
                    .filter(|to| *to != self.place)
                else {
                    let what = format!("asks {peer:?}, which is itself or nobody");
                    return outside.fail(self.place, "orderly", what);
                };
                let ticket = self.ask(outside, to, |ticket| Packet::Ask(ticket, bytes));
                if let Some(running) = &mut self.running {
                    running.requests.insert(ticket, id);
                }
            }
            Effect::Train {
                round,
                seed,
                steps,
                start,
            } => {
                let task = Task { round, seed, steps };
                self.train(outside, task, start);
            }
            Effect::Encode {
                round,
                stage,
                shards,
            } => self.encode(outside, round, (stage, shards)),
            Effect::Reduce(task) => self.reduce(outside, *task),
            Effect::Own(owned) => self.own(outside, owned),
            Effect::StopTraining(round) => self.stop_training(outside, round),
            Effect::Fetch { frame, sources, .. } => {
                self.fetch_frame(outside, frame, &sources, inputs);
            }
            Effect::Apply {
                record,
                shards,
                groups,
                ends_epoch,
            } => {
                let application = Application {
                    record,
                    shards,
                    groups,
                    ends_epoch,
                };
                self.apply(outside, application);
            }
            Effect::FetchState {
                round,
                root,
                sources,
            } => self.fetch_state(outside, round, root, &sources),
            Effect::Report(report) => self.report(outside, report),
        }
    }

    fn store_decision(&mut self, outside: &mut Outside, record: &Arc<DecisionRecord>) {
        let (manifest, shape) = (outside.manifest.clone(), outside.shape.clone());
        let stored = self.store.records.len();
        let situations = &mut outside.coverage;
        let checked = outside
            .checks
            .stored(&manifest, &shape, stored, record, situations);
        if let Err((check, what)) = checked {
            return outside.fail(self.place, check, what);
        }
        let options = outside.options.clone();
        if let Some(chain) = &options.chain {
            let newest = outside.seen[self.place].and_then(|seen| seen.newest);
            let newest = newest.map(|number| chain.mark(number).block);
            if record.decision.registry.map(|mark| mark.block) > newest {
                outside.coverage.meet(Situation::SnapshotUnseen);
            }
            let (calm, seen) = (outside.calm, &outside.seen);
            let situations = &mut outside.coverage;
            let checked = outside
                .checks
                .registered_only(&manifest, chain, record, calm, seen, situations);
            if let Err((check, what)) = checked {
                return outside.fail(self.place, check, what);
            }
        }
        self.store.records.push(record.encode());
        self.store.decoded.push(record.clone());
        let round = record.decision.round;
        self.store.journal.retain(|(of, _)| *of > round);
    }

    fn broadcast(&mut self, outside: &mut Outside, gossip: &Gossip) {
        let lies = self.liar.is_some() && !outside.calm;
        if self.liar.is_none() {
            let checked = outside.checks.published(self.place, outside.now, gossip);
            if let Err((check, what)) = checked {
                return outside.fail(self.place, check, what);
            }
        }
        if let (Some(liar), Gossip::Header(header), true) = (&mut self.liar, gossip, lies)
            && let Some((situation, lie)) = liar.tell_header(header, &self.keypair)
        {
            outside.coverage.meet(situation);
            return self.send_headers(outside, header, &lie);
        }
        let truth: Arc<[u8]> = gossip.encode(&outside.run).into();
        let agrees = matches!(gossip, Gossip::Agreement(_));
        let lie = match (&mut self.liar, gossip) {
            (Some(liar), Gossip::Agreement(message)) if lies => liar
                .tell(message, &self.keypair, &outside.run)
                .map(|lie: Message| Gossip::Agreement(lie).encode(&outside.run).into()),
            _ => None,
        };
        if lie.is_some() {
            outside.coverage.meet(Situation::LieTold);
            if self
                .liar
                .as_ref()
                .is_some_and(Liar::lies_about_the_registry)
            {
                outside.coverage.meet(Situation::RegistryLieTold);
            }
        }
        for to in 0..outside.options.peers.len() {
            if to == self.place || !outside.network.is_connected(self.place, to) {
                continue;
            }
            let deceived = self.liar.as_ref().filter(|liar| liar.deceives(to));
            let bytes = deceived.and(lie.as_ref()).unwrap_or(&truth).clone();
            outside.network.agreement_messages += u64::from(agrees);
            outside.send(self.place, to, Packet::Gossip(bytes));
        }
    }

    fn send_headers(&self, outside: &mut Outside, truth: &SignedHeader, lie: &HeaderLie) {
        for to in 0..outside.options.peers.len() {
            if to == self.place || !outside.network.is_connected(self.place, to) {
                continue;
            }
            for header in lie.to(to).unwrap_or(std::slice::from_ref(truth)) {
                let bytes = Gossip::Header(Box::new(header.clone())).encode(&outside.run);
                outside.send(self.place, to, Packet::Gossip(bytes.into()));
            }
        }
    }

    fn report(&mut self, outside: &mut Outside, report: Report) {
        match report {
            Report::Left(_) => {
                outside.coverage.meet(Situation::Left);
                self.stop(outside, Life::Left);
                outside.connections_lost(self.place);
            }
            Report::Finished(round) => {
                let last = RoundId(outside.manifest.schedule.rounds);
                if round != last {
                    outside.fail(
                        self.place,
                        "orderly",
                        format!("finished after round {round} of {last}"),
                    );
                }
                self.finished = true;
            }
            Report::Misbehaviour { peer, what } => {
                outside.coverage.meet(Situation::LieNoticed);
                let accused = outside
                    .places
                    .get(&peer)
                    .map(|place| &outside.options.peers[*place]);
                if accused.is_none_or(|peer| peer.lie.is_none()) {
                    outside.fail(
                        self.place,
                        "orderly",
                        format!("accuses {peer:?}, which is honest: {what}"),
                    );
                }
            }
            Report::Diverged { round, .. } => {
                outside.fail(
                    self.place,
                    "same-state",
                    format!("says that it diverged after round {round}"),
                );
            }
            Report::Decided {
                round,
                attempt,
                figures,
                ..
            } => {
                if attempt > 0 {
                    outside.coverage.meet(Situation::LaterAttempt);
                }
                if figures.members == 0 && round != RoundId::FOUNDING {
                    outside.coverage.meet(Situation::EmptyRound);
                }
            }
            Report::Roster {
                round,
                joined,
                left,
                ..
            } => {
                if !joined.is_empty() && round > RoundId(1) {
                    outside.coverage.meet(Situation::Joined);
                }
                if !left.is_empty() {
                    outside.coverage.meet(Situation::Removed);
                }
            }
            Report::OwnersDisagree { .. } => outside.coverage.meet(Situation::OwnersDisagreed),
            Report::LeftOut(_) => outside.coverage.meet(Situation::UpdateLeftOut),
            Report::NotRegistered { .. } => outside.coverage.meet(Situation::NotRegistered),
            Report::Applied { .. } => {}
        }
    }
}
