//! What a validator does beside following the run: it audits, disputes, and settles epochs.
//!
//! | when | what |
//! |---|---|
//! | a round is decided | it waits for its challenge |
//! | the challenge is there | who is audited, and on what, follows from it; audits queue up |
//! | it is an audit's turn | inputs are fetched from the audited peer, twice if need be; the worker computes |
//! | an audit is done | a verdict is signed and published; one that failed leaves evidence on disk |
//! | verdicts come, own and others' | the docket closes cases; ledgers say what counts |
//! | a case is closed by what this validator found | it searches for the first segment that fails (`search.rs`) |
//! | all audits of an epoch are closed | its scores are attested, and become weights |
//!
//! Rule `two-tries`: what is not served at the first try is asked for once more, some seconds later; then the audit has failed.
//!
//! Rule `too-late`: an audit that has not begun when the worker has forgotten where the round began, or never knew it, is not done:
//! this validator does not keep up, or came later, which says nothing of the peer.
//!
//! Rule `one-at-a-time`: one audit is fetched or computed at a time; the rest of the time belongs to the rounds.
//!
//! The rules of who judges whom stand in `gradmesh_protocol::audit`; this file carries them out. A peer that is no validator
//! follows them too, without a voice: it knows what was found of its own work, and what became of that.

pub mod files;
mod inputs;
mod record;
mod search;
mod settle;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gradmesh_protocol::audit::challenge::{self, Beacon, Pick};
use gradmesh_protocol::audit::docket::{Docket, Effect};
use gradmesh_protocol::audit::standing::{Finding, Ledger};
use gradmesh_protocol::audit::verdict::{Check, Outcome, SignedVerdict, Verdict};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{SignedHeader, Stage};
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::{self, Chain, Manifest, RoundId, RunId, SignedManifest};
use gradmesh_protocol::registry::RegistryMark;
use gradmesh_protocol::wire::{DecisionRecord, Gossip};
use gradmesh_trainer::data::DataManifest;
use gradmesh_trainer::replica::Shape;
use tokio::time::Instant;

use crate::state_dir::StateDir;
use crate::status::{FindingState, FindingStatus, SettledStatus, StatusHandle};
use crate::store::Store;
use crate::store::record::AuditEntry;
use crate::subnet::AuditedEpoch;
use crate::worker::{AuditError, AuditFindings, AuditInputs, AuditTask, STARTS_KEPT};
use files::EvidenceDir;
pub(crate) use inputs::chunks_of;
pub(super) use inputs::{InputError, Source};
use search::Search;
use settle::Epochs;

/// How long after the first try the inputs of an audit are asked for again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Rounds that wait for their challenge or for audits. When there are more, the oldest go unaudited: the peers no longer keep
/// what they would need.
const ROUNDS_MAX: usize = 64;
/// Registry blocks remembered: as many as rounds may wait for.
const BLOCKS_MAX: usize = 64;
/// Validators known. When full, newcomers are not heard until one has been silent for long.
const VALIDATORS_MAX: usize = 64;
/// How long after it was heard of last a validator is counted on: many times what lies between two of its contacts.
const VALIDATOR_PATIENCE: Duration = Duration::from_secs(300);
/// After the last round, the docket's time goes on by a round this often: cases that are still open come to an end.
const TURN: Duration = Duration::from_secs(5);

/// What the driver is to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Fetch the inputs of an audit, and come back with [`Auditor::fetched`].
    Fetch(Box<Job>),
    /// Have the worker audit, and come back with [`Auditor::audited`].
    Compute(Box<AuditTask>),
    /// Send to everybody.
    Publish(Box<SignedVerdict>),
    /// Attest an epoch and pay by it.
    Settle(Box<AuditedEpoch>),
}

/// An audit that is to be done.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) header: Arc<SignedHeader>,
    pub(super) pick: Pick,
    round: RoundId,
    seed: Hash,
    decision: Hash,
    /// The decision before it, from which its data follow.
    basis: Hash,
    beacon: Beacon,
    challenge: Hash,
    stage: Stage,
    newest: Option<(Arc<SignedHeader>, bool)>,
    tries: u32,
    not_before: Option<Instant>,
    /// The search that it is a step of; `None` for an audit that a verdict follows from.
    search: Option<Search>,
}

/// A decided round.
struct Round {
    record: Arc<DecisionRecord>,
    stage: Stage,
    /// The block whose hash challenges it, in a chain run.
    block: Option<u64>,
    /// For each header, the peer's newest decided update before it.
    newest: Vec<Option<(Arc<SignedHeader>, bool)>>,
    challenge: Option<(Hash, Beacon)>,
    /// Audits that are still to be done.
    left: BTreeSet<PeerKey>,
    /// What this validator failed.
    failed: BTreeMap<PeerKey, Finding>,
}

impl Round {
    /// The audit of the update at `place` of the decision; `None` before the challenge.
    fn job(&self, run: &RunId, place: usize, pick: Pick) -> Option<Box<Job>> {
        let decision = &self.record.decision;
        let (challenge, beacon) = self.challenge?;
        Some(Box::new(Job {
            header: Arc::new(self.record.headers.get(place)?.clone()),
            pick,
            round: decision.round,
            seed: Manifest::round_seed(run, decision.round, &decision.previous),
            decision: decision.id(),
            basis: decision.previous,
            beacon,
            challenge,
            stage: self.stage,
            newest: self.newest.get(place)?.clone(),
            tries: 0,
            not_before: None,
            search: None,
        }))
    }

    /// The audit of the update of `peer`, whether or not the challenge picks it; `None` before the challenge.
    fn panel_job(&self, run: &RunId, peer: &PeerKey, audit: &manifest::Audit) -> Option<Box<Job>> {
        let (challenge, _) = self.challenge?;
        let pick = challenge::panel_pick(&challenge, peer, audit)?;
        let mut headers = self.record.headers.iter();
        let place = headers.position(|signed| signed.header.peer == *peer)?;
        self.job(run, place, pick)
    }

    /// Whether it waits for its challenge or for audits.
    fn is_busy(&self) -> bool {
        self.challenge.is_none() || !self.left.is_empty()
    }
}

/// What is under way.
enum Running {
    Fetching(Box<Job>),
    Computing(Box<Job>, Box<AuditInputs>),
}

/// What an [`Auditor`] is made of.
pub(super) struct AuditorParts {
    pub(super) manifest: Arc<Manifest>,
    pub(super) signed_manifest: SignedManifest,
    /// Where the data lies.
    pub(super) data_dir: PathBuf,
    pub(super) keypair: Keypair,
    pub(super) validates: bool,
    pub(super) device: String,
    pub(super) shape: Arc<Shape>,
    pub(super) data: DataManifest,
    pub(super) store: Arc<Store>,
    pub(super) state_dir: StateDir,
    pub(super) status: StatusHandle,
}

/// See the module documentation.
pub(super) struct Auditor {
    manifest: Arc<Manifest>,
    audit: manifest::Audit,
    run: RunId,
    keypair: Keypair,
    me: PeerKey,
    validates: bool,
    device: String,
    shape: Arc<Shape>,
    data: DataManifest,
    store: Arc<Store>,
    evidence: EvidenceDir,
    status: StatusHandle,
    rounds: BTreeMap<RoundId, Round>,
    /// Each peer's newest decided update, and whether all of it was accepted.
    newest: BTreeMap<PeerKey, (Arc<SignedHeader>, bool)>,
    ledgers: BTreeMap<PeerKey, Ledger>,
    docket: Docket,
    docket_time: RoundId,
    /// Peers that say that they validate, this one among them, and when they said so last.
    validating: BTreeMap<PeerKey, Instant>,
    /// In a chain run, peers whose hotkey may set weights.
    permitted: BTreeSet<PeerKey>,
    /// When the docket's time goes on after the last round.
    next_turn: Option<Instant>,
    /// Verdicts on rounds that are not challenged here yet.
    early: Vec<SignedVerdict>,
    epochs: Epochs,
    queue: VecDeque<Box<Job>>,
    /// Steps of searches, for when nothing else is to be done.
    searches: VecDeque<Box<Job>>,
    /// The first round of which the worker knows where it began, and the newest that it has applied.
    applied: Option<(RoundId, RoundId)>,
    running: Option<Running>,
    blocks: BTreeMap<u64, Hash>,
    actions: VecDeque<Action>,
}

impl Auditor {
    /// `None` in a run without audits. A validator goes on from what the store has: decisions, and what it learnt.
    ///
    /// # Errors
    /// What the store said.
    pub(super) fn new(parts: AuditorParts) -> anyhow::Result<Option<Auditor>> {
        let Some(audit) = parts.manifest.audit.clone() else {
            return Ok(None);
        };
        let me = parts.keypair.public();
        let validates = parts.validates;
        let mut auditor = Auditor {
            audit,
            run: parts.manifest.run(),
            epochs: Epochs::new(&parts.manifest),
            manifest: parts.manifest,
            keypair: parts.keypair,
            me,
            validates,
            device: parts.device,
            shape: parts.shape,
            data: parts.data,
            evidence: EvidenceDir::of(parts.state_dir.path()),
            store: parts.store,
            status: parts.status,
            rounds: BTreeMap::new(),
            newest: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            docket: Docket::new(validates.then_some(me)),
            docket_time: RoundId::FOUNDING,
            validating: BTreeMap::new(),
            permitted: BTreeSet::new(),
            next_turn: None,
            early: Vec::new(),
            queue: VecDeque::new(),
            searches: VecDeque::new(),
            applied: None,
            running: None,
            blocks: BTreeMap::new(),
            actions: VecDeque::new(),
        };
        auditor
            .status
            .change_audit(|status| status.validates = validates);
        if validates {
            auditor
                .evidence
                .write_run(&parts.signed_manifest, &parts.data_dir)?;
            auditor.restore()?;
        }
        Ok(Some(auditor))
    }

    /// Whether this peer is a validator.
    pub(super) fn validates(&self) -> bool {
        self.validates
    }

    /// What the driver is to do next.
    pub(super) fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A round was decided. `stage`: of its updates.
    pub(super) fn decided(&mut self, record: &Arc<DecisionRecord>, stage: Stage) {
        if record.decision.round == RoundId::FOUNDING {
            return;
        }
        let round = record.decision.round;
        let newest = self.note_decided(record);
        let finalized = self.blocks.last_key_value().map(|(number, _)| *number);
        let block = match &self.manifest.chain {
            Chain::None => None,
            Chain::Subnet(subnet) => {
                let finalized = finalized.unwrap_or_default();
                // Between two snapshots later blocks have become final that this validator has not looked at.
                let newest = finalized.saturating_add(u64::from(subnet.snapshot_blocks) - 1);
                challenge::challenge_block(newest, subnet.snapshot_blocks)
            }
        };
        self.rounds.insert(
            round,
            Round {
                record: Arc::clone(record),
                stage,
                block,
                newest,
                challenge: None,
                left: BTreeSet::new(),
                failed: BTreeMap::new(),
            },
        );
        while self.rounds.len() > ROUNDS_MAX {
            let oldest = self.rounds.pop_first();
            let busy = oldest.filter(|(_, round)| self.validates && round.is_busy());
            if let Some((old, _)) = busy {
                tracing::warn!(round = %old, "a round is not audited: too many wait");
                self.queue.retain(|job| job.round != old);
            }
        }
        self.docket_time = self.docket_time.max(round);
        let effects = self.docket.decided(round);
        self.follow(effects);
        self.challenge_due();
        self.next_job();
    }

    /// Counts a decision; for each header, what was the peer's newest before it.
    fn note_decided(&mut self, record: &DecisionRecord) -> Vec<Option<(Arc<SignedHeader>, bool)>> {
        if self.validates {
            self.epochs.decided(record);
        }
        let mut before = Vec::with_capacity(record.headers.len());
        for (place, signed) in record.headers.iter().enumerate() {
            let peer = signed.header.peer;
            let shards = &record.decision.shards;
            let accepted = shards
                .iter()
                .filter(|shard| shard.accepted.contains(place))
                .count();
            if accepted > 0 {
                let ledger = self.ledgers.entry(peer);
                let ledger = ledger.or_insert_with(|| Ledger::new(&self.audit));
                ledger.accepted(record.decision.round);
            }
            let newest = (Arc::new(signed.clone()), accepted == shards.len());
            before.push(self.newest.insert(peer, newest));
        }
        before
    }

    /// A block of the registry is final.
    pub(super) fn finalized(&mut self, mark: RegistryMark, validators: BTreeSet<PeerKey>) {
        self.blocks.insert(mark.block, mark.block_hash);
        while self.blocks.len() > BLOCKS_MAX {
            self.blocks.pop_first();
        }
        self.permitted = validators;
        self.seat();
        self.challenge_due();
        self.next_job();
    }

    /// A peer says where it listens, and whether it validates.
    pub(super) fn contact(&mut self, peer: PeerKey, validates: bool) {
        let known = self.validating.contains_key(&peer);
        if !validates {
            self.validating.remove(&peer);
        } else if known || self.validating.len() < VALIDATORS_MAX {
            self.validating.insert(peer, Instant::now());
        }
        if validates != known {
            self.seat();
        }
    }

    /// Who judges: in a chain run those of the validators whose hotkey may set weights, in another one all of them. Who has the
    /// permit and does not validate would only hold cases up.
    fn seat(&mut self) {
        let now = Instant::now();
        self.validating
            .retain(|_, heard| now.duration_since(*heard) < VALIDATOR_PATIENCE);
        if self.validates {
            self.validating.insert(self.me, now);
        }
        let may_judge = |peer: &&PeerKey| match self.manifest.chain {
            Chain::None => true,
            Chain::Subnet(_) => self.permitted.contains(*peer),
        };
        let judges: Vec<PeerKey> = self.validating.keys().filter(may_judge).copied().collect();
        self.status
            .change_audit(|status| status.validators = judges.len());
        self.docket.set_validators(judges);
    }

    /// Challenges the rounds whose beacon is here.
    fn challenge_due(&mut self) {
        let open = self
            .rounds
            .iter()
            .filter(|(_, round)| round.challenge.is_none());
        let due: Vec<(RoundId, Beacon)> = open
            .filter_map(|(number, round)| Some((*number, self.beacon(*number, round)?)))
            .collect();
        for (number, beacon) in due {
            self.challenged(number, beacon);
        }
        self.show();
    }

    fn beacon(&self, number: RoundId, round: &Round) -> Option<Beacon> {
        match &self.manifest.chain {
            Chain::Subnet(_) => {
                let number = round.block?;
                // The validator may have been away when that block was final: then the next one that it knows has to do.
                let (number, hash) = self.blocks.range(number..).next()?;
                Some(Beacon::Block {
                    number: *number,
                    hash: *hash,
                    pulse: None,
                })
            }
            Chain::None => {
                let after = challenge::challenge_round(number, &self.manifest);
                let record = &self.rounds.get(&after)?.record;
                Some(Beacon::Decision(record.decision.id()))
            }
        }
    }

    fn challenged(&mut self, number: RoundId, beacon: Beacon) {
        let Some(round) = self.rounds.get_mut(&number) else {
            return;
        };
        let decision = round.record.decision.id();
        let challenge = challenge::challenge(&self.run, number, &decision, &beacon);
        round.challenge = Some((challenge, beacon));
        let updates: Vec<(PeerKey, Hash)> = round
            .record
            .decision
            .members
            .iter()
            .map(|member| (member.peer, member.header))
            .collect();
        if self.validates {
            for (place, signed) in round.record.headers.iter().enumerate() {
                let peer = signed.header.peer;
                let ledger = self.ledgers.get(&peer);
                let always = ledger.is_none_or(|ledger| ledger.is_audited_always(number));
                let pick = challenge::pick(&challenge, &peer, &self.audit, always);
                let job = pick.and_then(|pick| round.job(&self.run, place, pick));
                if let Some(job) = job {
                    round.left.insert(peer);
                    self.queue.push_back(job);
                }
            }
        }
        let effects = self.docket.challenged(number, challenge, updates);
        self.follow(effects);
        for signed in std::mem::take(&mut self.early) {
            self.hear(signed);
        }
    }

    /// Something that a validator says.
    pub(super) fn on_verdict(&mut self, signed: &SignedVerdict) {
        if signed.verdict.run == self.run && signed.is_authentic() {
            self.hear(signed.clone());
            self.next_job();
        }
    }

    /// Takes in an authentic verdict of the run; whether the docket heard it, once for each.
    fn hear(&mut self, signed: SignedVerdict) -> bool {
        use gradmesh_protocol::audit::docket::Unheard;
        let verdict = &signed.verdict;
        let heard = self.docket.hear(verdict);
        let is_heard = heard.is_ok();
        if self.validates && is_heard {
            self.remember(&signed);
        }
        match heard {
            Ok(effects) => {
                self.note(verdict);
                self.follow(effects);
            }
            // This peer is behind.
            Err(Unheard::TooEarly(_)) if self.early.len() < ROUNDS_MAX * VALIDATORS_MAX => {
                self.early.push(signed);
            }
            // A member that was away when its work was judged is told all the same.
            Err(Unheard::OtherRound(_)) if !self.validates => self.note(verdict),
            Err(Unheard::TooEarly(_) | Unheard::OtherRound(_) | Unheard::Repeated) => {}
            Err(unheard) => {
                tracing::debug!(validator = %verdict.validator.short(), %unheard, "a verdict is not heard");
            }
        }
        is_heard
    }

    fn remember(&self, signed: &SignedVerdict) {
        let gossip = Gossip::Verdict(Box::new(signed.clone())).encode(&self.run);
        self.append(&AuditEntry::Verdict(gossip));
    }

    fn append(&self, entry: &AuditEntry) {
        if let Err(error) = tokio::task::block_in_place(|| self.store.append_audit(entry)) {
            tracing::error!(%error, "what an audit found will be forgotten with this process");
        }
    }

    /// Does what the docket says.
    fn follow(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Opened { peer, round } => {
                    if let Some(ledger) = self.ledgers.get_mut(&peer) {
                        ledger.open(round);
                    }
                }
                Effect::AuditAsPanelist { peer, round, .. } => self.sit(peer, round),
                Effect::Closed {
                    peer,
                    round,
                    outcome,
                    finding,
                    outvoted,
                } => {
                    let finding = finding.filter(|_| outcome == Outcome::Failed);
                    let disputed = self.ledgers.get(&peer).is_some_and(|l| l.is_open(round));
                    self.close(peer, round, finding);
                    self.show();
                    if self.validates && (disputed || finding.is_some()) {
                        // What is shown waits for no disk.
                        let (round, peer) = (round.0, peer.0);
                        self.append(&match finding {
                            Some(_) => AuditEntry::Failed { round, peer },
                            None => AuditEntry::Overruled { round, peer },
                        });
                    }
                    if let Some(finding) = finding {
                        self.search_below(peer, &finding);
                    }
                    for validator in outvoted {
                        tracing::warn!(validator = %validator.short(), %round, "outvoted");
                    }
                }
                Effect::Contradicted {
                    validator, round, ..
                } => {
                    tracing::warn!(validator = %validator.short(), %round, "signed two different verdicts");
                }
            }
        }
        self.show();
    }

    /// This validator is to audit `peer`, which the challenge may have spared.
    fn sit(&mut self, peer: PeerKey, number: RoundId) {
        let queued = self
            .queue
            .iter()
            .any(|job| (job.round, job.header.header.peer) == (number, peer));
        if queued || self.is_running(number, &peer) {
            return;
        }
        let Some(round) = self.rounds.get_mut(&number) else {
            return;
        };
        if let Some(job) = round.panel_job(&self.run, &peer, &self.audit) {
            round.left.insert(peer);
            self.queue.push_front(job);
            self.status.change_audit(|status| status.panels += 1);
        }
    }

    fn is_running(&self, round: RoundId, peer: &PeerKey) -> bool {
        let job = match &self.running {
            Some(Running::Fetching(job) | Running::Computing(job, _)) => job,
            None => return false,
        };
        (job.round, &job.header.header.peer) == (round, peer)
    }

    fn close(&mut self, peer: PeerKey, round: RoundId, finding: Option<Finding>) {
        let ledger = self.ledgers.entry(peer);
        let ledger = ledger.or_insert_with(|| Ledger::new(&self.audit));
        ledger.close(round, finding);
        if let Some(finding) = finding {
            tracing::warn!(peer = %peer.short(), %finding, "failed");
        }
        let until = round.0.saturating_add(self.audit.suspension_rounds.into()) - 1;
        let (state, until) = match finding {
            Some(_) => (FindingState::Stands, Some(until)),
            None => (FindingState::Overruled, None),
        };
        let until = until.filter(|_| self.concerns(&peer));
        self.status.change_audit(|status| {
            for known in status.findings_of(&peer.to_string(), round.0) {
                known.state = state;
            }
            if let Some(until) = until {
                let last = status.suspended.entry(peer.short()).or_default();
                *last = until.max(*last);
            }
        });
    }

    /// Whether what is found of `peer` is shown here.
    fn concerns(&self, peer: &PeerKey) -> bool {
        self.validates || *peer == self.me
    }

    /// Shows a failed audit.
    fn note(&self, verdict: &Verdict) {
        if verdict.outcome != Outcome::Failed || !self.concerns(&verdict.peer) {
            return;
        }
        let state = match self.docket.outcome(verdict.round, &verdict.peer) {
            None => FindingState::Disputed,
            Some(Outcome::Failed) => FindingState::Stands,
            Some(Outcome::Passed | Outcome::Grey) => FindingState::Overruled,
        };
        let finding = FindingStatus {
            peer: verdict.peer.to_string(),
            round: verdict.round.0,
            validator: verdict.validator.short(),
            evidence: verdict.evidence,
            words: Finding::of(verdict).to_string(),
            state,
            first_failing: None,
        };
        self.status.change_audit(|status| status.note(finding));
    }

    /// Time has passed.
    pub(super) fn tick(&mut self) {
        self.seat();
        let over = self.docket_time.0 >= self.manifest.schedule.rounds;
        if over && self.docket.open().next().is_some() {
            let due = *self.next_turn.get_or_insert_with(|| Instant::now() + TURN);
            if due <= Instant::now() {
                self.next_turn = None;
                self.docket_time = self.docket_time.next();
                let effects = self.docket.decided(self.docket_time);
                self.follow(effects);
            }
        }
        self.next_job();
        self.settle_due();
    }

    /// The worker has applied `round`, and so knows where it began.
    pub(super) fn applied(&mut self, round: RoundId) {
        let (first, _) = self.applied.unwrap_or((round, round));
        self.applied = Some((first, round));
        self.next_job();
    }

    /// The worker has taken over the state after `round`: where it and earlier ones began it does not know.
    pub(super) fn adopted(&mut self, round: RoundId) {
        self.applied = Some((round.next(), round));
        self.next_job();
        self.settle_due();
    }

    /// Begins the next audit if none is under way.
    fn next_job(&mut self) {
        while self.running.is_none() {
            let Some(job) = self.take_job() else {
                return;
            };
            let kept = job.round.0.saturating_add(STARTS_KEPT as u64) > self.docket_time.0;
            let known = self.applied.is_some_and(|(first, _)| first <= job.round);
            if (kept && known) || job.tries > 0 {
                self.running = Some(Running::Fetching(job.clone()));
                self.actions.push_back(Action::Fetch(job));
                return;
            }
            let peer = job.header.header.peer;
            if job.search.is_some() {
                tracing::debug!(round = %job.round, peer = %peer.short(), "no time for a search");
                continue;
            }
            tracing::warn!(round = %job.round, peer = %peer.short(), "no time for an audit");
            self.status.change_audit(|status| status.undone += 1);
            if let Some(round) = self.rounds.get_mut(&job.round) {
                round.left.remove(&peer);
            }
        }
    }

    /// The next audit that can begin, else the next step of a search.
    fn take_job(&mut self) -> Option<Box<Job>> {
        let now = Instant::now();
        let (_, applied) = self.applied?;
        let mut queue = self.queue.iter();
        let ready = queue
            .position(|job| job.round <= applied && job.not_before.is_none_or(|then| then <= now));
        match ready {
            Some(place) => self.queue.remove(place),
            None => self.searches.pop_front(),
        }
    }

    /// The inputs of the audit under way are here, or cannot be had.
    pub(super) fn fetched(&mut self, result: Result<AuditInputs, InputError>) {
        let Some(Running::Fetching(mut job)) = self.running.take() else {
            return;
        };
        match result {
            Ok(inputs) => {
                let inputs = Box::new(inputs);
                let task = AuditTask {
                    header: Arc::clone(&job.header),
                    seed: job.seed,
                    challenge: job.challenge,
                    pick: job.pick,
                    stage: job.stage,
                    newest: job.newest.clone(),
                    inputs: inputs.clone(),
                };
                self.running = Some(Running::Computing(job, inputs));
                self.actions.push_back(Action::Compute(Box::new(task)));
            }
            Err(error) if job.search.is_some() => {
                tracing::debug!(round = %job.round, %error, "a search is given up");
                self.next_job();
            }
            // Rule `two-tries`.
            Err(error) if job.tries == 0 => {
                tracing::debug!(round = %job.round, %error, "the inputs of an audit are asked for again");
                job.tries = 1;
                job.not_before = Some(Instant::now() + RETRY_AFTER);
                self.queue.push_front(job);
                self.next_job();
            }
            Err(error) => {
                let theirs = &job.header.header.update.device;
                let dtype = self.manifest.model.dtype;
                let tolerance = self.audit.tolerance_ppb(theirs, &self.device, dtype);
                let findings = AuditFindings::unavailable(error.to_string(), tolerance.into());
                self.conclude(*job, None, findings);
            }
        }
    }

    /// The worker is done with the audit under way.
    pub(super) fn audited(&mut self, result: Result<AuditFindings, AuditError>) {
        let Some(Running::Computing(job, inputs)) = self.running.take() else {
            return;
        };
        match result {
            Ok(findings) if job.search.is_some() => {
                self.step_done(job, &findings);
                self.next_job();
            }
            Ok(findings) => self.conclude(*job, Some(*inputs), findings),
            Err(error) if job.search.is_some() => {
                tracing::debug!(round = %job.round, %error, "a search is given up");
                self.next_job();
            }
            Err(error) => {
                tracing::warn!(round = %job.round, peer = %job.header.header.peer.short(), %error, "an audit could not be done");
                self.status.change_audit(|status| status.undone += 1);
                self.finish(&job);
            }
        }
    }

    /// Says what an audit found.
    fn conclude(&mut self, job: Job, inputs: Option<AuditInputs>, findings: AuditFindings) {
        let peer = job.header.header.peer;
        let seconds = findings.seconds.as_secs_f64();
        self.status.change_audit(|status| {
            status.seconds += seconds;
            match findings.outcome {
                Outcome::Passed => status.passed += 1,
                Outcome::Grey => status.grey += 1,
                Outcome::Failed => status.failed += 1,
            }
        });
        tracing::info!(
            round = %job.round,
            peer = %peer.short(),
            segment = job.pick.segment,
            outcome = ?findings.outcome,
            error_ppb = findings.error_ppb,
            seconds,
            reason = findings.reason,
            "audit"
        );
        if let Some(losses) = findings.losses {
            let (before, after) = losses.common;
            self.epochs.measured(job.round, peer, before, after);
            self.append(&AuditEntry::Losses {
                round: job.round.0,
                peer: peer.0,
                assigned: losses.assigned,
                common: losses.common,
            });
        }
        let mut verdict = Verdict {
            run: self.run,
            round: job.round,
            peer,
            header: job.header.header.hash(),
            validator: self.me,
            challenge: job.challenge,
            segment: job.pick.segment,
            check: findings.check,
            outcome: findings.outcome,
            error_ppb: findings.error_ppb,
            tolerance_ppb: findings.tolerance_ppb,
            evidence: Hash::ZERO,
        };
        if findings.outcome == Outcome::Failed {
            match record::write(self, &job, inputs.as_ref(), &findings, &mut verdict) {
                Ok(path) => tracing::info!(path = %path.display(), "evidence"),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "no evidence was written")
                }
            }
        }
        if verdict.outcome == Outcome::Failed {
            self.epochs.evidence(job.round, verdict.evidence);
            if let Some(round) = self.rounds.get_mut(&job.round) {
                round.failed.insert(peer, Finding::of(&verdict));
            }
        }
        let signed = verdict.sign(&self.keypair);
        self.seat();
        if !self.hear(signed.clone()) {
            self.remember(&signed);
        }
        self.actions.push_back(Action::Publish(Box::new(signed)));
        self.finish(&job);
    }

    /// The audit `job` is over.
    fn finish(&mut self, job: &Job) {
        if let Some(round) = self.rounds.get_mut(&job.round) {
            round.left.remove(&job.header.header.peer);
        }
        self.next_job();
        self.settle_due();
    }

    /// The state after the last round of an epoch is `root`. Whether this validator attests it once it is audited.
    pub(super) fn epoch_ended(&mut self, last: RoundId, root: Hash) -> bool {
        if self.validates {
            self.epochs.ended(last, root);
            self.settle_due();
        }
        self.validates
    }

    /// Settles the epochs whose audits have all come to an end.
    fn settle_due(&mut self) {
        while let Some((first, last)) = self.epochs.next_ended() {
            let busy = |number: &RoundId, round: &Round| {
                (first..=last).contains(number) && round.is_busy()
            };
            let waits = self
                .rounds
                .iter()
                .any(|(number, round)| busy(number, round));
            let mut open = self.docket.open();
            if waits || open.any(|(round, _)| (first..=last).contains(&round)) {
                break;
            }
            drop(open);
            let Some((settled, scores)) = self.epochs.settle(&self.ledgers) else {
                break;
            };
            self.status
                .change_audit(|status| status.settle(SettledStatus::of(&scores)));
            self.actions.push_back(Action::Settle(Box::new(settled)));
        }
        self.show();
    }

    fn show(&self) {
        let busy = self.rounds.values().filter(|round| round.is_busy());
        let open = busy.filter(|_| self.validates).count();
        let flagged = self.validating.keys().filter_map(|validator| {
            let record = self.docket.record_of(validator);
            let times = record.outvoted.saturating_add(record.contradictions);
            (times > 0).then(|| (validator.short(), times))
        });
        let flagged: BTreeMap<String, u64> = flagged.collect();
        self.status.change_audit(|status| {
            status.open_rounds = open;
            status.flagged = flagged;
        });
    }

    /// What was decided and learnt before a restart. Rounds whose audits were not done then are not done any more.
    fn restore(&mut self) -> anyhow::Result<()> {
        for record in self.store.all_decisions()? {
            if record.decision.round != RoundId::FOUNDING {
                self.note_decided(&record);
            }
        }
        let mut findings: BTreeMap<(u64, [u8; 32]), Finding> = BTreeMap::new();
        for entry in self.store.audits()? {
            match entry {
                AuditEntry::Losses {
                    round,
                    peer,
                    common: (before, after),
                    ..
                } => self
                    .epochs
                    .measured(RoundId(round), PeerKey(peer), before, after),
                AuditEntry::Verdict(bytes) => {
                    let Ok(Gossip::Verdict(signed)) = Gossip::decode(&self.run, &bytes) else {
                        continue;
                    };
                    let verdict = &signed.verdict;
                    if verdict.outcome == Outcome::Failed {
                        if verdict.validator == self.me {
                            self.epochs.evidence(verdict.round, verdict.evidence);
                        }
                        self.note(verdict);
                        let place = (verdict.round.0, verdict.peer.0);
                        findings.insert(place, Finding::of(verdict));
                    }
                }
                AuditEntry::Failed { round, peer } => {
                    let finding = findings.get(&(round, peer)).copied();
                    self.close(PeerKey(peer), RoundId(round), finding);
                }
                AuditEntry::Overruled { round, peer } => {
                    self.close(PeerKey(peer), RoundId(round), None);
                }
                AuditEntry::FirstFailing {
                    round,
                    peer,
                    segment,
                } => self.show_first_failing(RoundId(round), &PeerKey(peer), segment),
            }
        }
        Ok(())
    }
}

impl AuditFindings {
    /// Of an audit whose inputs could not be had.
    fn unavailable(reason: String, tolerance_ppb: u64) -> AuditFindings {
        AuditFindings {
            check: Check::Availability,
            outcome: Outcome::Failed,
            reason,
            error_ppb: 0,
            tolerance_ppb,
            tile: None,
            redone: None,
            losses: None,
            seconds: Duration::ZERO,
        }
    }
}
