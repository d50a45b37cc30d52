//! Turns slices of `f32` into bounded frames and back, keeps what a frame left out, and sums
//! decoded frames with the same bits on every machine.
//!
//! Opens no file or socket, reads no clock, draws no entropy, spawns no thread, and knows nothing
//! of peers or rounds: who sends which shard to whom is decided elsewhere.
//!
//! The way of an update through this crate:
//!
//! 1. [`layout::Layout`] cuts the model's tensors into tiles of 4096 elements, and the tiles into
//!    shards;
//! 2. [`feedback::ErrorFeedback`] adds the update to what earlier frames left out, and takes one
//!    frame per shard;
//! 3. [`codec::encode`] and [`codec::decode`] are the way to bytes and back; [`frame`] specifies
//!    every byte;
//! 4. [`aggregate`] clips, weighs and adds the frames of the accepted members.
//!
//! # Determinism
//!
//! Everything here is a function of its arguments down to the last bit. Sums are `f32` or `f64` in
//! the order that their doc states; rustc neither reorders floating-point operations nor contracts
//! them to fused multiply-adds. Rounding to `bf16` and to the grid of levels is done in software, because hardware
//! and software paths may round differently. The one assumption on the machine is the IEEE 754
//! default environment: round to nearest even, subnormals kept. A thread on which some
//! library switched on flush-to-zero must not run this code.

pub mod aggregate;
mod bits;
pub mod codec;
pub mod dense;
pub mod feedback;
pub mod frame;
mod grid;
mod index;
mod ladder;
pub mod layout;
mod levels;
pub mod planes;
pub mod reference;
mod select;

pub use aggregate::{AggregateError, Contribution, FrameNorm, Weight, sum_by_tile, weights};
pub use codec::{
    Codec, DenseFormat, EncodeStats, TopK, TopKOutOfRange, VALUE_ABS_MAX, ValueBits, check, decode,
    decode_shared, encode, frame_bytes_max,
};
pub use feedback::{ErrorFeedback, FeedbackError, FeedbackPart};
pub use frame::{DecodeError, EncodeError, Frame, Section, Selection};
pub use index::IndexCode;
pub use layout::{Layout, LayoutError, TILE_ELEMENTS, TensorMode, TensorSpec, Tile};
