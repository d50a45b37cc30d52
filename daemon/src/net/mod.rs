//! The two network planes of a peer and the key that names it on both.
//!
//! - [`identity`]: the ed25519 node key, its file and its [`PeerId`](libp2p::PeerId).
//! - [`control`]: small messages over libp2p (gossip, requests, discovery). Never carries bulk bytes.
//! - [`bulk`]: content-addressed bytes over quinn, on a UDP port of its own.
//!
//! Knows nothing of rounds, votes or models: it moves bytes between authenticated peers.

pub mod bulk;
pub mod control;
pub mod identity;
