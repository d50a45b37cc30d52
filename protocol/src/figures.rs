//! What a decided round amounts to, in figures: for people, metrics and scores.

use crate::wire::DecisionRecord;

/// Sums and means over the updates that count in a round. Integers only; means are rounded down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundFigures {
    /// Updates that count.
    pub members: u32,
    /// Tokens that they were trained on.
    pub tokens: u64,
    /// Token-weighted mean of their first losses, in millionths of a nat per token.
    pub loss_first_micronats: u64,
    /// The same of their last losses.
    pub loss_last_micronats: u64,
    /// Bytes of their frames.
    pub frame_bytes: u64,
}

impl RoundFigures {
    /// The figures of `record`.
    pub fn of(record: &DecisionRecord) -> RoundFigures {
        let (mut tokens, mut frame_bytes) = (0u64, 0u64);
        let (mut first, mut last) = (0u128, 0u128);
        for header in &record.headers {
            let update = &header.header.update;
            let weight = u128::from(update.tokens);
            tokens = tokens.saturating_add(update.tokens);
            // At most 64 headers: sums of products of two u64 may pass 2^128 only by lying headers; they saturate.
            first = first.saturating_add(u128::from(update.loss_first_micronats) * weight);
            last = last.saturating_add(u128::from(update.loss_last_micronats) * weight);
            for frame in &update.frames {
                frame_bytes = frame_bytes.saturating_add(frame.bytes);
            }
        }
        let mean = |sum: u128| {
            let mean = sum.checked_div(u128::from(tokens)).unwrap_or(0);
            u64::try_from(mean).unwrap_or(u64::MAX)
        };
        RoundFigures {
            members: record.headers.len() as u32,
            tokens,
            loss_first_micronats: mean(first),
            loss_last_micronats: mean(last),
            frame_bytes,
        }
    }
}
