//! One validator: what it finds, what it hears, and what it pays for.

use std::collections::BTreeMap;

use gradmesh_protocol::audit::challenge::{self, Pick};
use gradmesh_protocol::audit::docket::{Docket, Effect};
use gradmesh_protocol::audit::judgement::judge;
use gradmesh_protocol::audit::standing::Ledger;
use gradmesh_protocol::audit::start::{self, Newest};
use gradmesh_protocol::audit::verdict::{Check, Outcome, Verdict};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::Stage;
use gradmesh_protocol::key::{Keypair, PeerKey};
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::score::audited::{AuditedScores, Gains};
use gradmesh_protocol::score::{EpochId, EpochScores};
use gradmesh_trainer::Trainer;
use gradmesh_trainer::audit::{
    TileInputs, check_tile, decode_update, paired_loss, redo, relative_error_ppb,
};

use super::machine::Machine;
use super::{Decided, Ground};

/// How a validator goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Looks, and says what it finds.
    Honest,
    /// Looks at nothing, and passes everybody.
    Lazy,
    /// Fails the miner of this place in every round, whatever it did, and is honest about all others.
    Liar(usize),
}

/// One validator of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidatorSetup {
    /// How it goes about it.
    pub habit: Habit,
    /// On what.
    pub machine: Machine,
}

impl ValidatorSetup {
    /// One on the reference machine.
    pub fn reference(habit: Habit) -> ValidatorSetup {
        let machine = Machine::Reference;
        ValidatorSetup { habit, machine }
    }
}

pub(super) struct Validator {
    pub(super) key: PeerKey,
    pub(super) setup: ValidatorSetup,
    pub(super) docket: Docket,
    pub(super) ledgers: BTreeMap<PeerKey, Ledger>,
    trainer: Box<dyn Trainer>,
    scores: EpochScores,
    gains: Gains,
}

/// What an audit comes to.
struct Found {
    check: Check,
    outcome: Outcome,
    error_ppb: u64,
}

impl Found {
    fn failed(check: Check) -> Found {
        Found {
            check,
            outcome: Outcome::Failed,
            error_ppb: 0,
        }
    }
}

impl Validator {
    pub(super) fn new(ground: &Ground, keypair: &Keypair, setup: ValidatorSetup) -> Validator {
        let key = keypair.public();
        Validator {
            key,
            setup,
            docket: Docket::new(Some(key)),
            ledgers: BTreeMap::new(),
            trainer: setup.machine.perturbed(Box::new(ground.shape.trainer())),
            scores: EpochScores::new(&ground.manifest, EpochId(1)),
            gains: Gains::default(),
        }
    }

    /// A round is decided.
    pub(super) fn decided(&mut self, ground: &Ground, decided: &Decided) {
        let counted = self.scores.count(&decided.record);
        counted.expect("rounds come in order, and the world makes sound records");
        let round = decided.record.decision.round;
        for signed in &decided.record.headers {
            let ledger = self.ledgers.entry(signed.header.peer);
            let ledger = ledger.or_insert_with(|| Ledger::new(&ground.audit));
            ledger.accepted(round);
        }
        let effects = self.docket.decided(round);
        self.follow(&effects);
    }

    /// What it looks at of the miner `peer` by the rules.
    pub(super) fn pick(&self, ground: &Ground, decided: &Decided, peer: &PeerKey) -> Option<Pick> {
        let round = decided.record.decision.round;
        let ledger = self.ledgers.get(peer);
        let always = ledger.is_none_or(|ledger| ledger.is_audited_always(round));
        challenge::pick(&decided.challenge, peer, &ground.audit, always)
    }

    /// Takes in what follows of a verdict for its ledgers.
    pub(super) fn follow(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Opened { peer, round } => {
                    if let Some(ledger) = self.ledgers.get_mut(peer) {
                        ledger.open(*round);
                    }
                }
                Effect::Closed {
                    peer,
                    round,
                    outcome,
                    finding,
                    ..
                } => {
                    if let Some(ledger) = self.ledgers.get_mut(peer) {
                        let failed = *outcome == Outcome::Failed;
                        ledger.close(*round, finding.filter(|_| failed));
                    }
                }
                Effect::AuditAsPanelist { .. } | Effect::Contradicted { .. } => {}
            }
        }
    }

    /// Audits the miner at `place` of the decision.
    pub(super) fn audit(
        &mut self,
        ground: &Ground,
        decided: &Decided,
        place: usize,
        pick: &Pick,
        accuses: bool,
    ) -> Verdict {
        let header = &decided.record.headers[place].header;
        let machine = self.setup.machine.describe();
        let tolerance = ground.audit.tolerance_ppb(
            &header.update.device,
            &machine.device,
            ground.manifest.model.dtype,
        );
        let tolerance_ppb = u64::from(tolerance);
        let found = match self.setup.habit {
            Habit::Lazy => Found {
                check: Check::Segment,
                outcome: Outcome::Passed,
                error_ppb: 0,
            },
            Habit::Liar(_) if accuses => Found {
                error_ppb: 1_000_000_000,
                ..Found::failed(Check::Segment)
            },
            Habit::Honest | Habit::Liar(_) => {
                let found = self.look(ground, decided, place, pick, tolerance_ppb);
                if pick.loss && found.outcome != Outcome::Failed {
                    self.measure(ground, decided, place);
                }
                found
            }
        };
        Verdict {
            run: ground.run,
            round: header.round,
            peer: header.peer,
            header: header.hash(),
            validator: self.key,
            challenge: decided.challenge,
            segment: pick.segment,
            check: found.check,
            outcome: found.outcome,
            error_ppb: found.error_ppb,
            tolerance_ppb,
            // Nobody reads evidence here; what failed has some, what passed none.
            evidence: match found.outcome {
                Outcome::Failed => Hash::of_content(&self.key.0),
                Outcome::Passed | Outcome::Grey => Hash::ZERO,
            },
        }
    }

    /// The checks in their order: what is served, where the round began, the compression, the segment.
    fn look(
        &mut self,
        ground: &Ground,
        decided: &Decided,
        place: usize,
        pick: &Pick,
        tolerance_ppb: u64,
    ) -> Found {
        let header = &decided.record.headers[place].header;
        let work = &decided.works[place];
        let segment = pick.segment as usize;
        let states = (work.states.get(segment), work.states.get(segment + 1));
        let (Some(before), Some(after)) = states else {
            return Found::failed(Check::Availability);
        };
        let committed = |place: usize| work.list.states().get(place);
        let is_committed = |state: &gradmesh_trainer::work::WorkState, place| {
            let roots = state.leaves().ok().map(|leaves| leaves.roots());
            roots.as_ref() == committed(place)
        };
        if !work.served || !is_committed(before, segment) || !is_committed(after, segment + 1) {
            return Found::failed(Check::Availability);
        }
        let newest = decided.newest.get(&header.peer);
        let steps = ground.steps(pick.segment);
        let expected = start::Expected {
            newest: newest.map(|header| Newest {
                header,
                whole: true,
            }),
            theta: decided.theta_root,
            inner_zero: ground.inner_zero,
            feedback_zero: ground.feedback_zero,
            segment: pick.segment,
            data: ground.data(&decided.seed, &header.peer, steps),
        };
        if start::check(header, &work.list, &ground.audit, &expected).is_err() {
            return Found::failed(Check::Start);
        }
        let shape = ground.replica_shape();
        let count = shape.layout().tiles().len() as u64;
        for tile in challenge::tiles(&pick.tiles, count, challenge::TILES) {
            let tile = tile as usize;
            let elements = shape.layout().tiles()[tile].elements();
            let Some(local) = work.states.last() else {
                return Found::failed(Check::Availability);
            };
            let inputs = TileInputs {
                tile,
                feedback_before: &work.feedback_before[elements.clone()],
                start: &decided.theta[elements.clone()],
                local: &local.theta[elements.clone()],
                feedback_after: &work.feedback_after[elements],
            };
            if check_tile(shape, Stage::Update, &inputs, &work.frames).is_err() {
                return Found::failed(Check::Compression);
            }
        }
        let error_ppb = self.error_of(ground, decided, place, pick.segment);
        Found {
            check: Check::Segment,
            outcome: judge(error_ppb, tolerance_ppb),
            error_ppb,
        }
    }

    /// Does a segment of a miner again; how far what it claims is from that, in parts per billion.
    ///
    /// # Panics
    /// If it cannot be done again: miners that do not get through their own training send nothing here.
    pub(super) fn error_of(
        &mut self,
        ground: &Ground,
        decided: &Decided,
        place: usize,
        segment: u32,
    ) -> u64 {
        let header = &decided.record.headers[place].header;
        let work = &decided.works[place];
        let steps = ground.steps(segment);
        let (before, after) = (segment as usize, segment as usize + 1);
        let before = &work.states[before];
        let global_step = ground.global_step(header.round, steps.start);
        let mut batches = |step: u32| Ok(ground.batch(&decided.seed, &header.peer, step));
        let redone = redo(
            self.trainer.as_mut(),
            before,
            steps,
            global_step,
            &mut batches,
        );
        match redone {
            Ok(redone) => {
                let claimed = &work.states[after].theta;
                relative_error_ppb(&before.theta, claimed, &redone.state.theta)
            }
            // What cannot be trained from is as far off as can be.
            Err(_) => u64::MAX,
        }
    }

    /// Measures what an update gains on the sequences that are the same for all.
    fn measure(&mut self, ground: &Ground, decided: &Decided, place: usize) {
        let header = &decided.record.headers[place].header;
        let frames = &decided.works[place].frames;
        let update = decode_update(ground.replica_shape(), Stage::Update, frames);
        let update = update.expect("frames that the codec has made");
        let common = challenge::common_seed(&decided.challenge);
        let batch = ground.common(&common);
        let losses = paired_loss(self.trainer.as_mut(), &decided.theta, &update, &[batch]);
        let micronats = |loss: f32| (f64::from(loss) * 1e6).round() as u64;
        // An update after which there is no loss has lost everything.
        let (before, after) = losses.map_or((0, u64::MAX), |(before, after)| {
            (micronats(before), micronats(after))
        });
        self.gains
            .measured(header.round, header.peer, before, after);
    }

    /// The scores of the run as far as it went.
    pub(super) fn settle(&self) -> AuditedScores {
        let counts = |peer: &PeerKey, round: RoundId| {
            let ledger = self.ledgers.get(peer);
            ledger.is_none_or(|ledger| ledger.counts(round))
        };
        AuditedScores::of(&self.scores, counts, &self.gains.qualities())
    }
}
