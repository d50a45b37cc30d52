//! An audit, as far as it computes: a segment of another peer's round done again, its compression checked, its loss measured.
//!
//! Everything that comes in was fetched from the audited peer and lies under the roots that its header commits to; here it is
//! compared with what follows from the shared state and the data. Knows no validators, verdicts or chain.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gradmesh_protocol::audit::challenge::{self, Pick};
use gradmesh_protocol::audit::judgement::judge;
use gradmesh_protocol::audit::segment::{SegmentList, StateRoots, data_hash, steps_of};
use gradmesh_protocol::audit::sketch::Sketch;
use gradmesh_protocol::audit::start::{self, Newest};
use gradmesh_protocol::audit::verdict::{Check, Outcome};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::{SignedHeader, Stage};
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{Audit, ModelDtype, RoundId};
use gradmesh_protocol::merkle;
use gradmesh_trainer::Trainer;
use gradmesh_trainer::audit::{
    RedoError, Redone, TileInputs, check_tile, decode_update, paired_loss, redo, relative_error_ppb,
};
use gradmesh_trainer::data::{Windows, assignment};
use gradmesh_trainer::model::Precision;
use gradmesh_trainer::optimizer::{f32_values, le_bytes};
use gradmesh_trainer::replica::Shape;
use gradmesh_trainer::work::{CHUNK_ELEMENTS, WorkState, theta_root, zero_inner_root};

use super::{Event, Machine, WorkerError, micronats};

/// Rounds whose start is kept: an audit comes two or three rounds late, and waits for its turn.
pub(crate) const STARTS_KEPT: usize = 6;

/// A tile of the error feedback around an update, f32 little endian.
#[derive(Clone, Debug)]
pub(crate) struct AuditedTile {
    pub(crate) index: usize,
    pub(crate) before: Bytes,
    pub(crate) after: Bytes,
}

/// What was fetched for an audit.
#[derive(Clone, Debug)]
pub(crate) struct AuditInputs {
    pub(crate) list: SegmentList,
    /// Chunks of the state before the segment.
    pub(crate) start: Vec<Bytes>,
    /// Chunks of the local parameters after it.
    pub(crate) end_theta: Vec<Bytes>,
    /// Chunks of the local parameters after the round, by index: those that the tiles lie in.
    pub(crate) local: BTreeMap<usize, Bytes>,
    pub(crate) tiles: Vec<AuditedTile>,
    /// Hashes of all tiles of the error feedback, before and after the update.
    pub(crate) feedback: Option<(Vec<Hash>, Vec<Hash>)>,
    /// All frames of the update, where tiles or losses are looked at.
    pub(crate) frames: Vec<Bytes>,
}

/// An audit to be done.
#[derive(Clone, Debug)]
pub(crate) struct AuditTask {
    pub(crate) header: Arc<SignedHeader>,
    /// Fixes the data of the round.
    pub(crate) seed: Hash,
    pub(crate) challenge: Hash,
    pub(crate) pick: Pick,
    /// At which the update's frames are encoded.
    pub(crate) stage: Stage,
    /// The peer's newest decided update before the round, and whether all of its shards were accepted.
    pub(crate) newest: Option<(Arc<SignedHeader>, bool)>,
    pub(crate) inputs: Box<AuditInputs>,
}

/// What an audit found.
#[derive(Clone, Debug)]
pub(crate) struct AuditFindings {
    pub(crate) check: Check,
    pub(crate) outcome: Outcome,
    /// What was wrong, in words; empty where nothing was.
    pub(crate) reason: String,
    /// Of the segment's update, relative to the update done again.
    pub(crate) error_ppb: u64,
    pub(crate) tolerance_ppb: u64,
    /// The tile whose compression is wrong, and the shared parameters in it, f32 little endian.
    pub(crate) tile: Option<(usize, Bytes)>,
    /// What the segment came to here.
    pub(crate) redone: Option<RedoneSegment>,
    pub(crate) losses: Option<Losses>,
    pub(crate) seconds: Duration,
}

/// Losses before and after an update, in millionths of a nat per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Losses {
    /// On sequences that the peer was assigned.
    pub(crate) assigned: (u64, u64),
    /// On sequences that are the same for all peers of the round.
    pub(crate) common: (u64, u64),
}

/// A segment done again.
#[derive(Clone, Debug)]
pub(crate) struct RedoneSegment {
    pub(crate) roots: StateRoots,
    pub(crate) loss_micronats: u64,
    pub(crate) gradient_norm_micro: u64,
    pub(crate) sketch_claimed: Sketch,
    pub(crate) sketch_redone: Sketch,
}

/// Why an audit could not be done here. Says nothing of the audited peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error("the state before round {0} is not here any more")]
    NoStart(RoundId),
    #[error("the segment could not be done again: {0}")]
    Train(#[from] RedoError),
    #[error("data: {0}")]
    Data(String),
}

/// What an audit is held against.
pub(crate) struct Ground<'a> {
    pub(crate) audit: &'a Audit,
    pub(crate) dtype: ModelDtype,
    pub(crate) shape: &'a Shape,
    pub(crate) windows: Windows<'a>,
    pub(crate) batch_sequences: usize,
    pub(crate) steps_per_round: u32,
    /// The device class of this machine.
    pub(crate) device: &'a str,
    /// The shared parameters of the round.
    pub(crate) theta: &'a [f32],
    /// Their root, and those of states that are zero.
    pub(crate) roots: PublicRoots,
}

/// Roots that everybody can compute. An audit needs them each time, and a hash of everything is a good part of a short segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PublicRoots {
    /// Of the shared parameters of the round.
    pub(crate) theta: Hash,
    /// Of an inner optimizer's state that is zero.
    pub(crate) inner_zero: Hash,
    /// Of error feedback that is zero.
    pub(crate) feedback_zero: Hash,
}

impl PublicRoots {
    /// Cost: a hash of 12 bytes for each parameter.
    pub(crate) fn of(shape: &Shape, theta: &[f32]) -> PublicRoots {
        let zeros = shape.layout().tiles().iter();
        let zeros = zeros.map(|tile| Hash::of_content(&vec![0; 4 * tile.len()]));
        PublicRoots {
            theta: theta_root(theta),
            inner_zero: zero_inner_root(theta.len()),
            feedback_zero: merkle::Tree::from_leaves(zeros.collect()).root(),
        }
    }
}

/// What a peer says of a segment.
pub(crate) struct SegmentClaim<'a> {
    pub(crate) round: RoundId,
    pub(crate) peer: PeerKey,
    /// Fixes the data of the round.
    pub(crate) seed: Hash,
    pub(crate) segment: u32,
    /// The state before it.
    pub(crate) start: &'a WorkState,
    /// The roots of the state after it.
    pub(crate) after: StateRoots,
    /// The parameters after it.
    pub(crate) claimed: &'a [f32],
}

/// The first thing that is wrong.
struct Fault {
    check: Check,
    reason: String,
    tile: Option<(usize, Bytes)>,
}

impl Machine {
    /// Notes the shared parameters as the start of `round`, if work is audited here.
    pub(super) fn keep_start(&mut self, round: RoundId) {
        if self.config.validates {
            let theta = self.durable.replica.theta();
            let roots = match self.starts.last_key_value() {
                Some((_, (_, known))) => PublicRoots {
                    theta: theta_root(theta),
                    ..*known
                },
                None => PublicRoots::of(self.durable.replica.shape(), theta),
            };
            self.starts.insert(round, (theta.into(), roots));
            while self.starts.len() > STARTS_KEPT {
                self.starts.pop_first();
            }
        }
    }

    pub(super) fn audit(&mut self, task: &AuditTask) -> Result<Option<Event>, WorkerError> {
        let result = Box::new(self.findings(task));
        Ok(Some(Event::Audited { result }))
    }

    fn findings(&mut self, task: &AuditTask) -> Result<AuditFindings, AuditError> {
        let round = task.header.header.round;
        let settings = &self.config.settings;
        let (Some((theta, roots)), Some(audit)) = (self.starts.get(&round), &settings.audit) else {
            return Err(AuditError::NoStart(round));
        };
        let windows = self.corpus.windows(settings.sequence_tokens);
        let ground = Ground {
            audit,
            dtype: dtype(settings.precision),
            shape: self.durable.replica.shape(),
            windows: windows.map_err(|error| AuditError::Data(error.to_string()))?,
            batch_sequences: settings.batch_sequences,
            steps_per_round: settings.steps_per_round,
            device: &self.device,
            theta,
            roots: *roots,
        };
        ground.findings(self.trainer.as_mut(), task)
    }
}

impl Ground<'_> {
    /// Does the audit. Any trainer of the run's model will do; its state is overwritten.
    pub(crate) fn findings(
        &self,
        trainer: &mut dyn Trainer,
        task: &AuditTask,
    ) -> Result<AuditFindings, AuditError> {
        let began = Instant::now();
        let header = &task.header.header;
        let tolerance_ppb =
            self.audit
                .tolerance_ppb(&header.update.device, self.device, self.dtype);
        let mut findings = AuditFindings {
            check: Check::Segment,
            outcome: Outcome::Failed,
            reason: String::new(),
            error_ppb: 0,
            tolerance_ppb: tolerance_ppb.into(),
            tile: None,
            redone: None,
            losses: None,
            seconds: Duration::ZERO,
        };
        let fault = self.start_fault(task).or_else(|| self.tile_fault(task));
        match fault {
            Some(fault) => {
                findings.check = fault.check;
                findings.reason = fault.reason;
                findings.tile = fault.tile;
            }
            None => self.redo_segment(trainer, task, &mut findings)?,
        }
        if task.pick.loss && findings.outcome != Outcome::Failed {
            findings.losses = self.losses(trainer, task)?;
        }
        findings.seconds = began.elapsed();
        Ok(findings)
    }

    pub(crate) fn steps(&self, segment: u32) -> Range<u32> {
        steps_of(segment, self.audit.segments, self.steps_per_round)
    }

    /// The sequences that `peer` was assigned in some steps of the round of `seed`.
    pub(crate) fn sequences(
        &self,
        seed: &Hash,
        peer: &PeerKey,
        steps: Range<u32>,
    ) -> impl Iterator<Item = u64> + use<> {
        let (seed, peer) = (seed.0, peer.0);
        let (batch, windows) = (self.batch_sequences, self.windows.training());
        steps.flat_map(move |step| assignment(&seed, &peer, step, batch, windows))
    }

    fn start_fault(&self, task: &AuditTask) -> Option<Fault> {
        let header = &task.header.header;
        let newest = task.newest.as_ref().map(|(signed, whole)| Newest {
            header: &signed.header,
            whole: *whole,
        });
        let segment = task.pick.segment;
        let expected = start::Expected {
            newest,
            theta: self.roots.theta,
            inner_zero: self.roots.inner_zero,
            feedback_zero: self.roots.feedback_zero,
            segment,
            data: data_hash(self.sequences(&task.seed, &header.peer, self.steps(segment))),
        };
        let fault = start::check(header, &task.inputs.list, self.audit, &expected).err()?;
        Some(Fault {
            check: fault.check(),
            reason: fault.to_string(),
            tile: None,
        })
    }

    fn tile_fault(&self, task: &AuditTask) -> Option<Fault> {
        task.inputs.tiles.iter().find_map(|tile| {
            let reason = self.check_tile(task, tile).err()?;
            Some(Fault {
                check: Check::Compression,
                reason: format!("tile {}: {reason}", tile.index),
                tile: Some((tile.index, self.start_of(tile.index))),
            })
        })
    }

    /// The shared parameters in a tile.
    fn start_of(&self, tile: usize) -> Bytes {
        let tile = self.shape.layout().tiles().get(tile);
        let values = tile.and_then(|tile| self.theta.get(tile.elements()));
        le_bytes(values.unwrap_or_default()).into_owned().into()
    }

    fn check_tile(&self, task: &AuditTask, audited: &AuditedTile) -> Result<(), String> {
        let tile = self.shape.layout().tiles().get(audited.index);
        let tile = tile.ok_or("there is no such tile")?;
        let elements = tile.elements();
        let start = self
            .theta
            .get(elements.clone())
            .ok_or("there is no such tile")?;
        let local =
            local_values(&task.inputs.local, elements).ok_or("its parameters are not all here")?;
        let inputs = TileInputs {
            tile: audited.index,
            feedback_before: &f32_values(&audited.before),
            start,
            local: &local,
            feedback_after: &f32_values(&audited.after),
        };
        check_tile(self.shape, task.stage, &inputs, &task.inputs.frames)
            .map_err(|fault| fault.to_string())
    }

    fn redo_segment(
        &self,
        trainer: &mut dyn Trainer,
        task: &AuditTask,
        findings: &mut AuditFindings,
    ) -> Result<(), AuditError> {
        let header = &task.header.header;
        let (inputs, segment) = (&task.inputs, task.pick.segment);
        let after = inputs.list.states().get(segment as usize + 1);
        let after = *after.ok_or(AuditError::Data(format!("no segment {segment}")))?;
        let start = match WorkState::from_chunks(self.theta.len(), &inputs.start) {
            Ok(start) => start,
            // It has the roots that were committed to, and is no state of this model.
            Err(error) => {
                findings.check = Check::Availability;
                findings.reason = format!("the state before the segment: {error}");
                return Ok(());
            }
        };
        let claimed = flat(&inputs.end_theta);
        let claim = SegmentClaim {
            round: header.round,
            peer: header.peer,
            seed: task.seed,
            segment,
            start: &start,
            after,
            claimed: &claimed,
        };
        let (error_ppb, redone) = self.segment_error(trainer, &claim)?;
        findings.error_ppb = error_ppb;
        findings.outcome = judge(error_ppb, findings.tolerance_ppb);
        if findings.outcome == Outcome::Failed {
            findings.reason = format!("relative error {:.3e}", error_ppb as f64 / 1e9);
        }
        // For evidence, which an audit that passes leaves none of.
        if findings.outcome == Outcome::Failed {
            let sketch = |end: &[f32]| {
                let pairs = start.theta.iter().zip(end);
                Sketch::of(&task.pick.sketch, pairs.map(|(start, end)| end - start))
            };
            findings.redone = Some(RedoneSegment {
                roots: roots(&redone.state)?,
                loss_micronats: redone.loss_micronats,
                gradient_norm_micro: redone.gradient_norm_micro,
                sketch_claimed: sketch(&claimed),
                sketch_redone: sketch(&redone.state.theta),
            });
        }
        Ok(())
    }

    /// Does a segment again; how far what is claimed of it is from what it came to here.
    pub(crate) fn segment_error(
        &self,
        trainer: &mut dyn Trainer,
        claim: &SegmentClaim<'_>,
    ) -> Result<(u64, Redone), AuditError> {
        let steps = self.steps(claim.segment);
        let of_earlier = claim.round.0.saturating_sub(1) * u64::from(self.steps_per_round);
        let global_step = of_earlier + u64::from(steps.start);
        let mut batches = |step: u32| {
            let indices = self.sequences(&claim.seed, &claim.peer, step..step + 1);
            let indices: Vec<u64> = indices.collect();
            let batch = self.windows.training_batch(&indices);
            batch.map_err(|error| error.to_string())
        };
        let redone = redo(trainer, claim.start, steps, global_step, &mut batches)?;
        let error_ppb = match theta_root(&redone.state.theta) == claim.after.theta {
            true => 0,
            false => relative_error_ppb(&claim.start.theta, claim.claimed, &redone.state.theta),
        };
        Ok((error_ppb, redone))
    }

    /// What the update does to the loss on assigned and on common data.
    fn losses(
        &self,
        trainer: &mut dyn Trainer,
        task: &AuditTask,
    ) -> Result<Option<Losses>, AuditError> {
        let Ok(update) = decode_update(self.shape, task.stage, &task.inputs.frames) else {
            return Ok(None);
        };
        let wanted = self.audit.loss_sequences;
        let peer = &task.header.header.peer;
        let assigned = self.sequences(&task.seed, peer, 0..self.steps_per_round);
        let assigned: Vec<u64> = assigned.collect();
        // Of the assigned sequences, those that lie at drawn places.
        let places = challenge::sequences(&task.pick.tiles, assigned.len() as u64, wanted);
        let assigned: Vec<u64> = places
            .iter()
            .filter_map(|place| assigned.get(*place as usize).copied())
            .collect();
        let common = challenge::common_seed(&task.challenge);
        let common = challenge::sequences(&common, self.windows.training(), wanted);
        let mut measure = |indices: &[u64]| {
            let batch = self.windows.training_batch(indices);
            let batch = batch.map_err(|error| AuditError::Data(error.to_string()))?;
            let losses = paired_loss(trainer, self.theta, &update, &[batch]);
            let (before, after) = losses.map_err(RedoError::from)?;
            Ok::<_, AuditError>((micronats(before), micronats(after)))
        };
        Ok(Some(Losses {
            assigned: measure(&assigned)?,
            common: measure(&common)?,
        }))
    }
}

/// The roots of a state that this machine has made.
fn roots(state: &WorkState) -> Result<StateRoots, AuditError> {
    let leaves = state.leaves();
    let leaves = leaves.map_err(|error| AuditError::Data(error.to_string()))?;
    Ok(leaves.roots())
}

/// The manifest's word for a number format.
pub(crate) fn dtype(precision: Precision) -> ModelDtype {
    match precision {
        Precision::F32 => ModelDtype::F32,
        Precision::Bf16 => ModelDtype::Bf16,
    }
}

/// Little-endian f32 of chunks, one after the other.
pub(crate) fn flat(chunks: &[Bytes]) -> Vec<f32> {
    chunks.iter().flat_map(|chunk| f32_values(chunk)).collect()
}

/// The values of `elements` from chunks of flat parameters; `None` if one of them is missing.
pub(crate) fn local_values(
    chunks: &BTreeMap<usize, Bytes>,
    elements: Range<usize>,
) -> Option<Vec<f32>> {
    let mut values = Vec::with_capacity(elements.len());
    for element in elements {
        let chunk = chunks.get(&(element / CHUNK_ELEMENTS))?;
        let at = 4 * (element % CHUNK_ELEMENTS);
        let bytes: [u8; 4] = chunk.get(at..at + 4)?.try_into().ok()?;
        values.push(f32::from_le_bytes(bytes));
    }
    Some(values)
}
