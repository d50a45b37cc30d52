//! Audits: what a peer commits to of its work, who looks at which part of it, and what follows.
//!
//! A round's inner steps are cut into segments ([`segment`]); the header commits to what each began and ended with, before
//! anybody knows which of them will be done again. A validator does some again and says what it found ([`verdict`]).
//!
//! Decides and counts. Trains nothing, fetches nothing, and never looks at a parameter: what an audit measures comes in as
//! integers.

pub mod segment;
pub mod verdict;
