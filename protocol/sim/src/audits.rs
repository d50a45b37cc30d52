//! Miners, some of which cheat, and validators, some of which do not look: what audits find and what they are worth.
//!
//! A world goes round by round. Every miner trains with the reference model, behind an adversary of
//! [`gradmesh_trainer::adversary`], and records, compresses and signs as the honest program does. All updates are decided
//! whole. A round's challenge follows from the decision of the round after (rule `challenge-decision`); every validator audits
//! what it picks by the rules of [`gradmesh_protocol::audit`], everybody hears every verdict in the same order, and whoever is
//! drawn for a panel audits at once. One epoch is as long as the run.
//!
//! There is no network, no time and no loss of messages here, and no evidence is written: those have their own tests. What a
//! seed does is the same each time.

pub mod machine;
pub mod measure;
mod miner;
mod validator;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use gradmesh_protocol::agreement::CommitCertificate;
use gradmesh_protocol::audit::bisection::Bisection;
use gradmesh_protocol::audit::challenge::{self, Beacon};
use gradmesh_protocol::audit::docket::{Effect, Record};
use gradmesh_protocol::audit::judgement::{judge, tolerance_of_spread};
use gradmesh_protocol::audit::segment::{data_hash, steps_of};
use gradmesh_protocol::audit::verdict::{Outcome, Verdict};
use gradmesh_protocol::decision::{Bitmap, DecidedMember, DecidedShard, Decision};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{Header, SignedHeader, Stage};
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{
    self, Chain, CodecKind, InnerState, Manifest, ModelDtype, OuterRule, RoundId, RunId, Tolerance,
};
use gradmesh_protocol::score::audited::AuditedScores;
use gradmesh_protocol::wire::DecisionRecord;
use gradmesh_trainer::Batch;
use gradmesh_trainer::adversary::Kind;
use gradmesh_trainer::audit::decode_update;
use gradmesh_trainer::data::assignment;
use gradmesh_trainer::replica::{self, Contribution, RoundShard};
use gradmesh_trainer::work::{theta_root, zero_inner_root};

use crate::learner;
use crate::options::{Chosen, Options};

pub use self::machine::Machine;
pub use self::miner::{Conduct, MinerSetup};
use self::miner::{Miner, Work};
use self::validator::Validator;
pub use self::validator::{Habit, ValidatorSetup};

/// Windows of the data: more than a run looks at.
const WINDOWS: u64 = 1 << 20;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Everything that is drawn follows from it.
    pub seed: u64,
    /// How work is audited.
    pub audit: manifest::Audit,
    /// The number format by which updates are judged.
    pub dtype: ModelDtype,
    /// Inner steps of a round.
    pub steps_per_round: u32,
    /// Rounds of the run, which are one epoch.
    pub rounds: u32,
    /// The miners.
    pub miners: Vec<MinerSetup>,
    /// The validators. They speak in this order.
    pub validators: Vec<ValidatorSetup>,
}

impl Setup {
    /// Thirty segments of one step each, every one of them on the reference machine, one honest validator; losses are not
    /// measured, and newcomers are treated as everybody.
    ///
    /// `coverage_ppm`: the chance that a peer is audited in a round. It is suspended for four times as many rounds as that
    /// takes on average.
    pub fn of_one_step_segments(
        seed: u64,
        coverage_ppm: u32,
        rounds: u32,
        miners: &[Conduct],
    ) -> Setup {
        Setup {
            seed,
            audit: manifest::Audit {
                segments: 30,
                coverage_ppm,
                probation_rounds: 0,
                suspension_rounds: 4_000_000 / coverage_ppm,
                loss_sequences: 64,
                loss_ppm: 0,
                inner: InnerState::Carried,
                tolerances: Vec::new(),
            },
            dtype: ModelDtype::F32,
            steps_per_round: 30,
            rounds,
            miners: miners.iter().copied().map(MinerSetup::reference).collect(),
            validators: vec![ValidatorSetup::reference(Habit::Honest)],
        }
    }
}

/// What is the same for all.
pub(crate) struct Ground {
    shape: learner::Shape,
    manifest: Manifest,
    audit: manifest::Audit,
    run: RunId,
    inner_zero: Hash,
    feedback_zero: Hash,
}

impl Ground {
    fn new(setup: &Setup) -> Ground {
        let mut manifest = Options::with(setup.seed, Chosen::default()).manifest;
        manifest.chain = Chain::None;
        manifest.model.dtype = setup.dtype;
        manifest.codec.kind = CodecKind::Sparse;
        manifest.codec.k = 1024;
        manifest.codec.value_bits = 4;
        manifest.codec.tiles_per_shard = 2;
        manifest.outer.rule = OuterRule::Plain;
        manifest.outer.rate_ppm = 1_000_000;
        manifest.outer.momentum_ppm = 0;
        manifest.schedule.steps_per_round = setup.steps_per_round;
        manifest.schedule.rounds = setup.rounds.into();
        manifest.schedule.rounds_per_epoch = setup.rounds;
        manifest.exchange = manifest::Exchange::default();
        manifest.audit = Some(setup.audit.clone());
        let shape = learner::Shape::new(&manifest, learner::MODEL, 1);
        let genesis = shape.genesis();
        Ground {
            run: manifest.run(),
            audit: setup.audit.clone(),
            inner_zero: zero_inner_root(genesis.theta().len()),
            feedback_zero: genesis.feedback_root(),
            shape,
            manifest,
        }
    }

    fn replica_shape(&self) -> &replica::Shape {
        self.shape.genesis().shape()
    }

    fn steps(&self, segment: u32) -> Range<u32> {
        let steps = self.manifest.schedule.steps_per_round;
        steps_of(segment, self.audit.segments, steps)
    }

    fn global_step(&self, round: RoundId, step: u32) -> u64 {
        let steps = u64::from(self.manifest.schedule.steps_per_round);
        round.0.saturating_sub(1) * steps + u64::from(step)
    }

    fn assigned(&self, seed: &Hash, peer: &PeerKey, step: u32) -> Vec<u64> {
        assignment(
            &seed.0,
            &peer.0,
            step,
            self.shape.batch_sequences(),
            WINDOWS,
        )
    }

    fn batch(&self, seed: &Hash, peer: &PeerKey, step: u32) -> Batch {
        self.shape.windows(&self.assigned(seed, peer, step))
    }

    fn data(&self, seed: &Hash, peer: &PeerKey, steps: Range<u32>) -> Hash {
        data_hash(steps.flat_map(|step| self.assigned(seed, peer, step)))
    }

    fn common(&self, seed: &Hash) -> Batch {
        let indices = challenge::sequences(seed, WINDOWS, self.audit.loss_sequences);
        self.shape.windows(&indices)
    }
}

/// A decided round, and what its audits need.
pub(crate) struct Decided {
    record: DecisionRecord,
    seed: Hash,
    /// [`Hash::ZERO`] until it is drawn.
    challenge: Hash,
    /// The shared parameters of the round.
    theta: Vec<f32>,
    theta_root: Hash,
    /// One for each header.
    works: Vec<Work>,
    /// Each miner's newest decided update before it.
    newest: BTreeMap<PeerKey, Header>,
}

impl Decided {
    /// The place of a miner among the members.
    fn place_of(&self, peer: &PeerKey) -> Option<usize> {
        let mut members = self.record.decision.members.iter();
        members.position(|member| member.peer == *peer)
    }
}

/// See the module documentation.
pub struct World {
    ground: Ground,
    miners: Vec<Miner>,
    validators: Vec<Validator>,
    previous: Hash,
    round: RoundId,
    newest: BTreeMap<PeerKey, Header>,
    /// The newest round, which waits for its challenge.
    waiting: Option<Decided>,
    verdicts: Vec<Verdict>,
}

fn keypair(seed: u64, role: &str, place: usize) -> Keypair {
    let name = format!("audits {seed} {role} {place}");
    Keypair::from_seed(&Hash::of_content(name.as_bytes()).0)
}

impl World {
    /// A world before its first round.
    pub fn new(setup: &Setup) -> World {
        let ground = Ground::new(setup);
        let miners = setup.miners.iter().enumerate();
        let miners = miners.map(|(place, miner)| {
            let trick = Hash::of_content(format!("trick {} {place}", setup.seed).as_bytes());
            Miner::new(&ground, keypair(setup.seed, "miner", place), *miner, trick)
        });
        let miners = miners.collect();
        let validators = setup.validators.iter().enumerate();
        let validators = validators.map(|(place, validator)| {
            Validator::new(
                &ground,
                &keypair(setup.seed, "validator", place),
                *validator,
            )
        });
        let mut validators: Vec<Validator> = validators.collect();
        let keys: Vec<PeerKey> = validators.iter().map(|validator| validator.key).collect();
        for validator in &mut validators {
            validator.docket.set_validators(keys.iter().copied());
        }
        World {
            ground,
            miners,
            validators,
            previous: Hash::ZERO,
            round: RoundId::FOUNDING,
            newest: BTreeMap::new(),
            waiting: None,
            verdicts: Vec::new(),
        }
    }

    /// The key of a miner.
    pub fn miner(&self, place: usize) -> PeerKey {
        self.miners[place].key
    }

    /// The key of a validator.
    pub fn validator(&self, place: usize) -> PeerKey {
        self.validators[place].key
    }

    /// Inner steps that a miner has really done.
    pub fn steps_done(&self, place: usize) -> u64 {
        self.miners[place].steps_done()
    }

    /// The newest decided round.
    pub fn newest_round(&self) -> RoundId {
        self.round
    }

    /// Every verdict so far, in the order in which they were heard.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// What validator `validator` knows of how the audits of a miner's round came out.
    pub fn outcome(&self, validator: usize, round: RoundId, miner: usize) -> Option<Outcome> {
        let docket = &self.validators[validator].docket;
        docket.outcome(round, &self.miner(miner))
    }

    /// What validator `judge` knows of how validator `of` has done.
    pub fn record(&self, judge: usize, of: usize) -> Record {
        self.validators[judge]
            .docket
            .record_of(&self.validators[of].key)
    }

    /// Cases that are open at validator `validator`.
    pub fn open_cases(&self, validator: usize) -> usize {
        self.validators[validator].docket.open().count()
    }

    /// What validator `validator` pays, in parts of [`gradmesh_protocol::score::SHARE_WHOLE`].
    pub fn scores(&self, validator: usize) -> AuditedScores {
        self.validators[validator].settle()
    }

    /// Trains and decides the next round, then challenges the one before it.
    pub fn next_round(&mut self) {
        let decided = self.decide();
        let beacon = decided.record.decision.id();
        if let Some(waiting) = self.waiting.replace(decided) {
            self.audit(waiting, beacon);
        }
    }

    /// The newest round stays unaudited.
    pub fn spare(&mut self) {
        self.waiting = None;
    }

    /// Ends the run: its last round is challenged by its own decision.
    pub fn finish(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            let beacon = waiting.record.decision.id();
            self.audit(waiting, beacon);
        }
    }

    fn decide(&mut self) -> Decided {
        let round = self.round.next();
        let seed = Manifest::round_seed(&self.ground.run, round, &self.previous);
        let first = &self.miners[0].replica;
        let (theta, state_root) = (first.theta().to_vec(), first.state_root());
        let mut done = Vec::new();
        for (place, miner) in self.miners.iter_mut().enumerate() {
            if let Some((header, work)) = miner.work(&self.ground, round, &seed) {
                done.push((place, header, work));
            }
        }
        self.publish(&done);
        done.sort_by_key(|(_, header, _)| header.header.peer);
        self.apply(&done);
        let members = done.iter().map(|(_, signed, _)| DecidedMember {
            peer: signed.header.peer,
            header: signed.header.hash(),
        });
        let shards = (0..self.ground.shape.shards()).map(|_| DecidedShard {
            accepted: Bitmap::full(done.len()),
            reduced: Vec::new(),
        });
        let decision = Decision {
            run: self.ground.run,
            round,
            previous: self.previous,
            state_root,
            members: members.collect(),
            shards: shards.collect(),
            joins: Vec::new(),
            leaves: Vec::new(),
            registry: None,
            powers: Vec::new(),
            capacities: Vec::new(),
        };
        let newest = self.newest.clone();
        let mut headers = Vec::with_capacity(done.len());
        let mut works = Vec::with_capacity(done.len());
        for (_, signed, work) in done {
            self.newest
                .insert(signed.header.peer, signed.header.clone());
            headers.push(signed);
            works.push(work);
        }
        self.previous = decision.id();
        self.round = round;
        let decided = Decided {
            seed,
            challenge: Hash::ZERO,
            theta_root: theta_root(&theta),
            theta,
            works,
            newest,
            record: DecisionRecord {
                certificate: CommitCertificate {
                    height: round,
                    attempt: 0,
                    value: decision.id(),
                    signatures: Vec::new(),
                },
                decision,
                headers,
            },
        };
        for validator in &mut self.validators {
            validator.decided(&self.ground, &decided);
        }
        decided
    }

    /// Every miner sees the update of the next one.
    fn publish(&self, done: &[(usize, SignedHeader, Work)]) {
        let shape = self.ground.replica_shape();
        for (place, miner) in self.miners.iter().enumerate() {
            if miner.setup.conduct != Conduct::Kind(Kind::Copy) {
                continue;
            }
            let other = done.iter().find(|(of, ..)| *of != place);
            let update = other
                .and_then(|(_, _, work)| decode_update(shape, Stage::Update, &work.frames).ok());
            miner.see(update);
        }
    }

    fn apply(&mut self, done: &[(usize, SignedHeader, Work)]) {
        let shards = 0..self.ground.shape.shards();
        let shards = shards.map(|shard| RoundShard {
            stage: Stage::Update,
            contributions: done
                .iter()
                .map(|(_, signed, work)| Contribution {
                    tokens: signed.header.update.tokens,
                    frame: &work.frames[shard],
                })
                .collect(),
            residuals: Vec::new(),
        });
        let shards: Vec<RoundShard<'_>> = shards.collect();
        for (place, miner) in self.miners.iter_mut().enumerate() {
            let own = done.iter().find(|(of, ..)| *of == place);
            miner.apply(&shards, own.map(|(_, _, work)| work));
        }
    }

    /// Challenges a round, and audits it to the end.
    fn audit(&mut self, mut decided: Decided, beacon: Hash) {
        let decision = &decided.record.decision;
        let round = decision.round;
        let beacon = Beacon::Decision(beacon);
        decided.challenge = challenge::challenge(&self.ground.run, round, &decision.id(), &beacon);
        let updates: Vec<(PeerKey, Hash)> = decision
            .members
            .iter()
            .map(|member| (member.peer, member.header))
            .collect();
        let mut spoken = BTreeSet::new();
        let mut said = VecDeque::new();
        for (number, validator) in self.validators.iter_mut().enumerate() {
            let challenge = decided.challenge;
            let effects = validator
                .docket
                .challenged(round, challenge, updates.iter().copied());
            validator.follow(&effects);
            for (place, (peer, _)) in updates.iter().enumerate() {
                let lies = matches!(validator.setup.habit, Habit::Liar(victim) if self.miners[victim].key == *peer);
                let pick = validator.pick(&self.ground, &decided, peer);
                // A liar does not wait for a challenge that picks its victim.
                let pick = pick.or_else(|| {
                    challenge::panel_pick(&decided.challenge, peer, &self.ground.audit)
                        .filter(|_| lies)
                });
                if let Some(pick) = pick {
                    spoken.insert((number, place));
                    said.push_back(validator.audit(&self.ground, &decided, place, &pick, lies));
                }
            }
        }
        while let Some(verdict) = said.pop_front() {
            for (number, validator) in self.validators.iter_mut().enumerate() {
                let effects = validator.docket.hear(&verdict);
                let effects = effects.expect("validators of a world speak once, and on its rounds");
                validator.follow(&effects);
                for effect in effects {
                    let Effect::AuditAsPanelist { peer, .. } = effect else {
                        continue;
                    };
                    let place = decided.place_of(&peer);
                    let pick = challenge::panel_pick(&decided.challenge, &peer, &self.ground.audit);
                    if let (Some(place), Some(pick)) = (place, pick)
                        && spoken.insert((number, place))
                    {
                        let verdict = validator.audit(&self.ground, &decided, place, &pick, false);
                        said.push_back(verdict);
                    }
                }
            }
            self.verdicts.push(verdict);
        }
    }

    /// The error of a segment of a miner's newest round as validator `validator` finds it, in parts per billion; `None` if the
    /// miner has no update in it.
    ///
    /// `segment`: one that the run has, here and below.
    pub fn segment_error(&mut self, validator: usize, miner: usize, segment: u32) -> Option<u64> {
        let decided = self.waiting.as_ref()?;
        let place = decided.place_of(&self.miners[miner].key)?;
        let validator = &mut self.validators[validator];
        Some(validator.error_of(&self.ground, decided, place, segment))
    }

    /// Whether an audit of a segment of a miner's newest round by validator `validator` would fail it.
    pub fn segment_fails(&mut self, validator: usize, miner: usize, segment: u32) -> bool {
        let theirs = self.miners[miner].setup.machine.describe().device;
        let own = self.validators[validator].setup.machine.describe().device;
        let dtype = self.ground.manifest.model.dtype;
        let tolerance = self.ground.audit.tolerance_ppb(&theirs, &own, dtype);
        let serves = self.miners[miner].serves();
        let error = self.segment_error(validator, miner, segment);
        error.is_some_and(|error| !serves || judge(error, tolerance.into()) == Outcome::Failed)
    }

    /// Where a miner's newest round began to go wrong, found by doing segments below `failed` again, and how many were.
    pub fn bisect(&mut self, validator: usize, miner: usize, failed: u32) -> (Option<u32>, u32) {
        let mut search = Bisection::below(failed);
        let mut audits = 0;
        while let Some(segment) = search.next() {
            audits += 1;
            search.answer(!self.segment_fails(validator, miner, segment));
        }
        (search.found(), audits)
    }
}

/// The tolerances of all pairs of `machines`, as a calibration finds them on a first round of honest work.
pub fn calibrated(setup: &Setup, machines: &[Machine]) -> Vec<Tolerance> {
    let mut tolerances = Vec::new();
    for miner in machines {
        let honest = Conduct::Kind(Kind::None);
        let mut world = World::new(&Setup {
            miners: vec![MinerSetup {
                conduct: honest,
                machine: *miner,
            }],
            validators: machines
                .iter()
                .map(|machine| ValidatorSetup {
                    habit: Habit::Honest,
                    machine: *machine,
                })
                .collect(),
            ..setup.clone()
        });
        world.next_round();
        for (place, validator) in machines.iter().enumerate() {
            let (first, second) = (miner.describe().device, validator.describe().device);
            if first > second {
                continue;
            }
            let segments = 0..setup.audit.segments;
            let errors = segments.filter_map(|segment| world.segment_error(place, 0, segment));
            let largest = errors.max().unwrap_or(0);
            tolerances.push(Tolerance {
                first,
                second,
                error_ppb: tolerance_of_spread(largest, setup.dtype),
            });
        }
    }
    tolerances.sort();
    tolerances
}
