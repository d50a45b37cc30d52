//! States of training between two segments: what a peer commits to of its work, keeps for audits and serves by chunk.
//!
//! A state is the local parameters and the inner optimizer's state. It is cut into chunks, and its two roots are Merkle roots
//! ([`gradmesh_protocol::merkle`]) over the plain BLAKE3 hashes of them:
//!
//! - theta: little-endian f32 of [`CHUNK_ELEMENTS`] consecutive elements each, the last of the rest;
//! - inner: first the steps since the state was zero (u64, little-endian, 8 bytes), then the first moment in chunks like those
//!   of theta, then the second.
//!
//! All chunks one after the other, those of theta first, are the state as one run of bytes ([`WorkState::to_bytes`]).

use std::io::{self, Write};
use std::ops::Range;

use gradmesh_protocol::audit::segment::{SegmentList, StateRoots, Work, steps_of};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::merkle;

use crate::optimizer::{InnerState, f32_values, le_bytes};
use crate::training::{StateError, StepReport};

/// Elements of a chunk: 256 KiB, so that the list of chunks of 10^9 parameters has 1.5 MB, and an audit that needs single tiles
/// fetches little more than them.
pub const CHUNK_ELEMENTS: usize = 65_536;

/// Bytes of the number of steps.
const STEPS_BYTES: usize = 8;

/// See the module documentation.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkState {
    /// Local parameters, flat.
    pub theta: Vec<f32>,
    /// What [`crate::Trainer::inner_state`] gave.
    pub inner: Vec<u8>,
}

/// The hashes of a state's chunks, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateLeaves {
    pub theta: Vec<Hash>,
    pub inner: Vec<Hash>,
}

impl StateLeaves {
    pub fn roots(&self) -> StateRoots {
        StateRoots {
            theta: root(self.theta.clone()),
            inner: root(self.inner.clone()),
        }
    }

    /// The leaves of a state of `elements` parameters as [`WorkState::to_bytes`] wrote it; `None` for bytes of another length.
    pub fn of_bytes(elements: usize, bytes: &[u8]) -> Option<Self> {
        let theta = chunks_of(elements);
        let mut rest = bytes;
        let mut leaves = Vec::new();
        for length in chunk_lengths(elements) {
            let (chunk, behind) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            leaves.push(Hash::of_content(chunk));
            rest = behind;
        }
        let inner = leaves.split_off(theta);
        rest.is_empty().then_some(Self {
            theta: leaves,
            inner,
        })
    }
}

/// Chunks of a flat vector of `elements`.
fn chunks_of(elements: usize) -> usize {
    elements.div_ceil(CHUNK_ELEMENTS)
}

/// Bytes of each chunk of a state of `elements` parameters, in order: those of theta, then those of the inner state.
pub fn chunk_lengths(elements: usize) -> Vec<u64> {
    let flat = || {
        let full = elements / CHUNK_ELEMENTS;
        let rest = elements % CHUNK_ELEMENTS;
        let full = std::iter::repeat_n(4 * CHUNK_ELEMENTS as u64, full);
        full.chain((rest > 0).then_some(4 * rest as u64))
    };
    flat()
        .chain([STEPS_BYTES as u64])
        .chain(flat())
        .chain(flat())
        .collect()
}

fn root(leaves: Vec<Hash>) -> Hash {
    merkle::Tree::from_leaves(leaves).root()
}

fn leaves_of(values: &[f32]) -> impl Iterator<Item = Hash> {
    let chunks = values.chunks(CHUNK_ELEMENTS);
    chunks.map(|chunk| Hash::of_content(&le_bytes(chunk)))
}

fn inner_leaves(state: &InnerState) -> Vec<Hash> {
    let steps = Hash::of_content(&state.steps.to_le_bytes());
    let moments = leaves_of(&state.first).chain(leaves_of(&state.second));
    [steps].into_iter().chain(moments).collect()
}

/// The root of local parameters. Cost: a hash of them.
pub fn theta_root(theta: &[f32]) -> Hash {
    root(leaves_of(theta).collect())
}

/// The inner state of a trainer of `elements` parameters that has done nothing.
pub fn zero_inner(elements: usize) -> Vec<u8> {
    InnerState::zero(elements).to_bytes()
}

/// The root of [`zero_inner`].
pub fn zero_inner_root(elements: usize) -> Hash {
    let zeros = leaves_of(&vec![0.0; elements]).collect::<Vec<_>>();
    let steps = Hash::of_content(&0u64.to_le_bytes());
    root([vec![steps], zeros.clone(), zeros].concat())
}

impl WorkState {
    /// The hashes of the chunks. Cost: a hash of 12 bytes for each parameter.
    ///
    /// # Errors
    /// [`StateError`] when the inner state is not one of this many parameters.
    pub fn leaves(&self) -> Result<StateLeaves, StateError> {
        let inner = InnerState::from_bytes(&self.inner, self.theta.len())?;
        Ok(StateLeaves {
            theta: leaves_of(&self.theta).collect(),
            inner: inner_leaves(&inner),
        })
    }

    /// Writes all chunks to `out`, one after the other: 12 bytes for each parameter, and 8. Gives back their hashes.
    ///
    /// # Errors
    /// As [`Self::leaves`]; in the other layer, what `out` said.
    pub fn write(&self, out: &mut impl Write) -> Result<io::Result<StateLeaves>, StateError> {
        let inner = InnerState::from_bytes(&self.inner, self.theta.len())?;
        let mut leaves = Vec::new();
        let steps = inner.steps.to_le_bytes();
        let mut put = |chunk: &[u8]| {
            leaves.push(Hash::of_content(chunk));
            out.write_all(chunk)
        };
        let flat = |values: &[f32], put: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
            let mut chunks = values.chunks(CHUNK_ELEMENTS);
            chunks.try_for_each(|chunk| put(&le_bytes(chunk)))
        };
        let written = flat(&self.theta, &mut put)
            .and_then(|()| put(&steps))
            .and_then(|()| flat(&inner.first, &mut put))
            .and_then(|()| flat(&inner.second, &mut put));
        let inner = leaves.split_off(chunks_of(self.theta.len()).min(leaves.len()));
        Ok(written.map(|()| StateLeaves {
            theta: leaves,
            inner,
        }))
    }

    /// What [`Self::write`] writes.
    ///
    /// # Errors
    /// As [`Self::leaves`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, StateError> {
        let mut bytes = Vec::with_capacity(12 * self.theta.len() + STEPS_BYTES);
        let written = self.write(&mut bytes)?;
        written.expect("memory takes what is written to it");
        Ok(bytes)
    }

    /// A state of `elements` parameters from its chunks, in the order of [`chunk_lengths`].
    ///
    /// # Errors
    /// [`StateError`] for chunks of other lengths, and for values that no training leaves behind.
    pub fn from_chunks(elements: usize, chunks: &[impl AsRef<[u8]>]) -> Result<Self, StateError> {
        let lengths = chunk_lengths(elements);
        let fits = chunks.len() == lengths.len()
            && chunks
                .iter()
                .zip(&lengths)
                .all(|(chunk, length)| chunk.as_ref().len() as u64 == *length);
        if !fits {
            let reason = format!(
                "{} chunks that are not those of {elements} parameters",
                chunks.len()
            );
            return Err(StateError::Format(reason));
        }
        let flat = |range: Range<usize>| -> Vec<f32> {
            let chunks = chunks.get(range).unwrap_or_default().iter();
            chunks
                .flat_map(|chunk| f32_values(chunk.as_ref()))
                .collect()
        };
        let count = chunks_of(elements);
        let theta = flat(0..count);
        if let Some(index) = theta.iter().position(|value| !value.is_finite()) {
            return Err(StateError::Value {
                name: "theta",
                index,
            });
        }
        let steps = chunks
            .get(count)
            .and_then(|chunk| chunk.as_ref().try_into().ok());
        let steps = steps.ok_or_else(|| StateError::Format("no number of steps".to_owned()))?;
        let moments = count + 1;
        let inner = InnerState {
            steps: u64::from_le_bytes(steps),
            first: flat(moments..moments + count),
            second: flat(moments + count..moments + 2 * count),
        };
        let inner = inner.to_bytes();
        InnerState::from_bytes(&inner, elements)?;
        Ok(Self { theta, inner })
    }
}

/// Notes a round's work segment by segment.
#[derive(Debug, Clone)]
pub struct Recorder {
    segments: u32,
    steps: u32,
    states: Vec<StateRoots>,
    work: Vec<Work>,
    open: Sums,
}

/// Of the steps of the segment at hand.
#[derive(Debug, Clone, Default)]
struct Sums {
    steps: u32,
    tokens: u64,
    loss: f64,
    gradient_norm: f64,
}

impl Recorder {
    /// Of `segments` segments in `steps` inner steps.
    pub fn new(segments: u32, steps: u32) -> Self {
        Self {
            segments,
            steps,
            states: Vec::new(),
            work: Vec::new(),
            open: Sums::default(),
        }
    }

    /// The state before the first step.
    pub fn begin(&mut self, state: StateRoots) {
        self.states = vec![state];
        self.work.clear();
        self.open = Sums::default();
    }

    /// A step of `tokens` predictions is done.
    pub fn step(&mut self, report: &StepReport, tokens: u64) {
        self.open.steps += 1;
        self.open.tokens += tokens;
        self.open.loss += f64::from(report.loss);
        self.open.gradient_norm += f64::from(report.gradient_norm);
    }

    /// A segment has ended with `state`; it was trained on `data` ([`gradmesh_protocol::audit::segment::data_hash`]).
    pub fn end_segment(&mut self, state: StateRoots, data: Hash) {
        let open = std::mem::take(&mut self.open);
        self.work.push(Work {
            data,
            tokens: open.tokens,
            loss_micronats: mean_micro(open.loss, open.steps),
            gradient_norm_micro: mean_micro(open.gradient_norm, open.steps),
        });
        self.states.push(state);
    }

    /// The list; `None` unless every segment was noted.
    pub fn finish(self) -> Option<SegmentList> {
        let whole = self.work.len() == self.segments as usize;
        whole
            .then(|| SegmentList::new(self.states, self.work))
            .flatten()
    }

    /// The steps of the segment in which the step `step` lies; none behind the last one.
    pub fn segment_of(&self, step: u32) -> Range<u32> {
        let parts = (0..self.segments).map(|segment| steps_of(segment, self.segments, self.steps));
        parts
            .into_iter()
            .find(|part| part.contains(&step))
            .unwrap_or(self.steps..self.steps)
    }
}

/// Mean of a sum over `steps` steps in millionths, to the nearest; 0 for what is not finite or negative.
pub(crate) fn mean_micro(sum: f64, steps: u32) -> u64 {
    let mean = sum / f64::from(steps.max(1)) * 1e6;
    // The cast saturates, and gives 0 for NaN.
    if mean.is_finite() {
        mean.round() as u64
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(elements: usize) -> WorkState {
        let values =
            |seed: f32| -> Vec<f32> { (0..elements).map(|i| seed + i as f32 * 0.5).collect() };
        let inner = InnerState {
            steps: 7,
            first: values(1.0),
            second: values(2.0),
        };
        WorkState {
            theta: values(-3.0),
            inner: inner.to_bytes(),
        }
    }

    fn chunks(elements: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut rest = bytes;
        let take = |length: u64| {
            let (chunk, behind) = rest.split_at(length as usize);
            rest = behind;
            chunk.to_vec()
        };
        chunk_lengths(elements).into_iter().map(take).collect()
    }

    #[test]
    fn a_state_comes_back_from_its_chunks_and_its_bytes_have_its_leaves() {
        for elements in [1, 5, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 3] {
            let state = state(elements);
            let bytes = state.to_bytes().unwrap();
            let chunks = chunks(elements, &bytes);
            assert_eq!(WorkState::from_chunks(elements, &chunks).unwrap(), state);
            let leaves = state.leaves().unwrap();
            assert_eq!(
                StateLeaves::of_bytes(elements, &bytes),
                Some(leaves.clone())
            );
            let hashes: Vec<Hash> = chunks.iter().map(|chunk| Hash::of_content(chunk)).collect();
            assert_eq!(
                [leaves.theta.clone(), leaves.inner.clone()].concat(),
                hashes
            );
            assert_eq!(leaves.roots().theta, theta_root(&state.theta));
        }
    }

    #[test]
    fn the_zero_inner_state_has_its_root() {
        let zero = WorkState {
            theta: vec![1.0; 9],
            inner: zero_inner(9),
        };
        assert_eq!(zero.leaves().unwrap().roots().inner, zero_inner_root(9));
    }

    #[test]
    fn chunks_of_another_length_or_with_values_out_of_range_are_refused() {
        let good = chunks(5, &state(5).to_bytes().unwrap());
        let refused = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
            let mut chunks = good.clone();
            change(&mut chunks);
            assert!(WorkState::from_chunks(5, &chunks).is_err());
        };
        refused(&|chunks| drop(chunks.pop()));
        refused(&|chunks| chunks.push(vec![0; 20]));
        refused(&|chunks| {
            chunks[0].pop();
        });
        refused(&|chunks| chunks[0][..4].copy_from_slice(&f32::NAN.to_le_bytes()));
        refused(&|chunks| chunks[3][..4].copy_from_slice(&(-1f32).to_le_bytes()));
        assert_eq!(StateLeaves::of_bytes(5, &[0; 67]), None);
        assert_eq!(StateLeaves::of_bytes(5, &[0; 69]), None);
    }

    #[test]
    fn every_value_of_a_state_is_under_its_roots() {
        let base = state(5).leaves().unwrap().roots();
        let mut other = state(5);
        other.theta[4] += 1.0;
        let roots = other.leaves().unwrap().roots();
        assert!(roots.theta != base.theta && roots.inner == base.inner);
        for change in 0..3 {
            let mut inner = InnerState::from_bytes(&state(5).inner, 5).unwrap();
            match change {
                0 => inner.steps += 1,
                1 => inner.first[2] += 1.0,
                _ => inner.second[2] += 1.0,
            }
            let other = WorkState {
                inner: inner.to_bytes(),
                ..state(5)
            };
            let roots = other.leaves().unwrap().roots();
            assert!(roots.theta == base.theta && roots.inner != base.inner);
        }
    }

    #[test]
    fn a_recorder_gives_the_means_of_each_segment_once_all_are_there() {
        let roots = |byte: u8| StateRoots {
            theta: Hash([byte; 32]),
            inner: Hash([byte; 32]),
        };
        let report = |loss: f32| StepReport {
            step: 0,
            loss,
            gradient_norm: 2.0 * loss,
            learning_rate: 0.0,
            tokens: 0,
        };
        let mut recorder = Recorder::new(2, 5);
        assert_eq!(recorder.segment_of(1), 0..2);
        assert_eq!(recorder.segment_of(2), 2..5);
        assert_eq!(recorder.segment_of(5), 5..5);
        recorder.begin(roots(0));
        recorder.step(&report(1.0), 10);
        recorder.step(&report(2.0), 10);
        recorder.end_segment(roots(1), Hash([8; 32]));
        assert_eq!(recorder.clone().finish(), None);
        recorder.step(&report(f32::NAN), 10);
        recorder.end_segment(roots(2), Hash([9; 32]));
        let list = recorder.finish().unwrap();
        let work = list.work();
        assert_eq!((work[0].tokens, work[0].loss_micronats), (20, 1_500_000));
        assert_eq!(work[0].gradient_norm_micro, 3_000_000);
        assert_eq!((work[1].tokens, work[1].loss_micronats), (10, 0));
        assert_eq!(list.states(), [roots(0), roots(1), roots(2)]);
    }
}
