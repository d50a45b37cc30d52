//! Audits: what a peer commits to of its work, who looks at which part of it, and what follows.
//!
//! A round's inner steps are cut into segments ([`segment`]); the header commits to what each began and ended with, before
//! anybody knows which of them will be done again. What was decided and what nobody could know before pick those
//! ([`challenge`]). A validator looks at where the round began ([`start`]), does a segment again, holds its update against the
//! one that was committed to ([`judgement`]) and says what it found ([`verdict`]).
//! [`bisection`] finds where a round went wrong. Validators that disagree have it settled among three of them ([`docket`]), and
//! [`standing`] says what the results mean for a peer's pay. What an audit found can be checked and replayed by anybody
//! ([`evidence`], with a [`sketch`] of each update).
//!
//! Decides and counts. Trains nothing, fetches nothing, and holds no parameter: what an audit measures comes in as integers.
//! Only the sketches of evidence are floats, which are compared, never agreed on.

pub mod bisection;
mod cbor;
pub mod challenge;
pub mod docket;
mod draw;
pub mod evidence;
pub mod judgement;
pub mod segment;
pub mod sketch;
pub mod standing;
pub mod start;
pub mod verdict;
