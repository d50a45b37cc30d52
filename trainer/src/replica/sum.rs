//! The aggregate of one shard (rule "aggregate"), in two steps: first all contributions are checked and weighed, which
//! may fail, then they are added up, which cannot.

use std::ops::Range;

use gradmesh_compression::{
    AggregateError, Codec, Contribution as Checked, DecodeError, FrameNorm, Tile, Weight,
    sum_by_tile, weights,
};

/// One accepted frame of a shard; contributions come in canonical order.
#[derive(Debug, Clone, Copy)]
pub struct Contribution<'a> {
    /// Weight in the mean.
    pub tokens: u64,
    pub frame: &'a [u8],
}

/// Why contributions cannot be summed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ContributionError {
    #[error("frame of contribution {contribution}: {source}")]
    Frame {
        contribution: usize,
        source: DecodeError,
    },
    #[error(transparent)]
    Aggregate(#[from] AggregateError),
}

/// Contributions to one shard that are checked and weighed.
#[derive(Debug)]
pub(super) struct Weighed<'a>(Vec<(Checked<'a>, Weight)>);

impl Weighed<'_> {
    /// Hands out the aggregate, tile by tile: each with its place among the shard's elements.
    pub(super) fn by_tile(&self, take: impl FnMut(Range<usize>, &[f32])) {
        sum_by_tile(&self.0, take);
    }
}

/// Checks and weighs `contributions` to the shard `tiles`; `None` when there are none, or none with tokens.
pub(super) fn weigh<'a>(
    tiles: &'a [Tile],
    codec: Codec,
    contributions: &[Contribution<'a>],
) -> Result<Option<Weighed<'a>>, ContributionError> {
    let mut checked = Vec::with_capacity(contributions.len());
    for (contribution, Contribution { frame, .. }) in contributions.iter().enumerate() {
        let frame =
            Checked::read(frame, tiles, codec).map_err(|source| ContributionError::Frame {
                contribution,
                source,
            })?;
        checked.push(frame);
    }
    let tokens: Vec<u64> = contributions.iter().map(|c| c.tokens).collect();
    let norms: Vec<FrameNorm> = checked.iter().map(Checked::norm).collect();
    match weights(&tokens, &norms) {
        Ok(weights) => Ok(Some(Weighed(checked.into_iter().zip(weights).collect()))),
        Err(AggregateError::NoTokens) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
