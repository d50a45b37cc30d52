//! The private part of a peer as bytes for its own disk: error feedback and the trainer's inner state.
//!
//! Drift is saved as error feedback: whoever restores goes on from theta, and sends what the drift had learnt with the next
//! frames.
//!
//! Layout, integers little-endian: `gradmesh-private-2\n`, u64 elements, u8 1 and that many f32 of error feedback or, when
//! it is zero, only u8 0; u64 length of the inner state, the inner state, then BLAKE3 over all before (against torn
//! writes, not against a forger).

use gradmesh_compression::{ErrorFeedback, FeedbackError};

use super::Replica;
use super::drift::Drift;
use crate::optimizer::{f32_values, le_bytes};

const MAGIC: &[u8] = b"gradmesh-private-2\n";
const HASH_BYTES: usize = 32;

/// Why saved private state was refused; the replica is as before. The peer can go on without: it loses at most what
/// its frames had left out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PrivateError {
    #[error("private state is damaged ({0}): remove it to start with zero error feedback")]
    Damaged(&'static str),
    #[error("private state is of a model with {got} elements, this one has {expected}")]
    Elements { got: u64, expected: usize },
    #[error(transparent)]
    Feedback(#[from] FeedbackError),
}

impl Replica {
    /// The error feedback, with the drift in it, and `inner`, the trainer's inner state.
    pub fn save_private(&self, inner: &[u8]) -> Vec<u8> {
        let residual = self.unsent();
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(self.feedback.elements() as u64).to_le_bytes());
        bytes.push(u8::from(residual.is_some()));
        bytes.extend_from_slice(&le_bytes(residual.as_deref().unwrap_or_default()));
        bytes.extend_from_slice(&(inner.len() as u64).to_le_bytes());
        bytes.extend_from_slice(inner);
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        bytes
    }

    /// Restores [`Self::save_private`] and gives back the inner state, which the trainer checks by itself.
    ///
    /// # Errors
    /// [`PrivateError`].
    pub fn restore_private<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], PrivateError> {
        let short = PrivateError::Damaged("it ends too early");
        let (body, hash) = bytes
            .len()
            .checked_sub(HASH_BYTES)
            .and_then(|body| bytes.split_at_checked(body))
            .ok_or(short.clone())?;
        let rest = body
            .strip_prefix(MAGIC)
            .ok_or(PrivateError::Damaged("unknown first line"))?;
        if blake3::hash(body).as_bytes() != hash {
            return Err(PrivateError::Damaged("its hash does not fit"));
        }
        let (count, rest) = rest.split_first_chunk().ok_or(short.clone())?;
        let count = u64::from_le_bytes(*count);
        let expected = self.theta.len();
        if count != expected as u64 {
            return Err(PrivateError::Elements {
                got: count,
                expected,
            });
        }
        let (flag, rest) = rest.split_first().ok_or(short.clone())?;
        let residual_bytes = match flag {
            0 => 0,
            1 => expected * 4,
            _ => return Err(PrivateError::Damaged("unknown kind of error feedback")),
        };
        let (residual, rest) = rest.split_at_checked(residual_bytes).ok_or(short.clone())?;
        let (length, inner) = rest.split_first_chunk().ok_or(short)?;
        if u64::from_le_bytes(*length) != inner.len() as u64 {
            return Err(PrivateError::Damaged("inner state has another length"));
        }
        let beta = self.shape.config.feedback_beta;
        self.feedback = match flag {
            0 => ErrorFeedback::new(expected, beta)?,
            _ => ErrorFeedback::restore(f32_values(residual), beta)?,
        };
        self.drift = Drift::default();
        self.rehash_feedback(0..self.shape.layout.tiles().len());
        Ok(inner)
    }
}
