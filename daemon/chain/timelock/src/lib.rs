//! Timelock encryption to a round of a drand beacon, byte for byte as subtensor reads it.
//!
//! Whoever holds the beacon's signature of the round can decrypt, nobody before. Opens no socket, reads no clock, draws
//! no entropy and fetches no pulse: all of these come in as arguments.
//!
//! # The beacon
//! drand's scheme `bls-unchained-g1-rfc9380` ("quicknet"): BLS12-381, signatures in G1 (48 bytes compressed), public
//! keys in G2 (96 bytes compressed). The message of a round, here its *identity*, is `SHA-256(round as u64, big-endian)`,
//! hashed to G1 by RFC 9380 with the tag `BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_`.
//!
//! # The ciphertext
//! Boneh and Franklin's identity-based encryption, FullIdent (CRYPTO 2001, section 4.2), of a random AES key, and the
//! message under that key. With `Q` the hashed identity, `P` the generator of G2, `K` the public key and `S` the
//! signature; `key` and `sigma` 32 random bytes each:
//!
//! ```text
//! r = SHA-256(sigma ++ key) as a big-endian number, modulo the group order
//! U = r P        V = sigma xor SHA-256(e(Q, r K))        W = key xor SHA-256(sigma)
//! body = AES-256-GCM(key, nonce, message), no associated data, tag of 16 bytes behind
//! ```
//! The decryptor has `e(S, U) = e(Q, r K)`, gets `sigma`, `key` and `r` from it and refuses unless `U = r P`. What is
//! hashed of the pairing is its value's canonical little-endian form of 576 bytes.
//!
//! | bytes | content |
//! |---|---|
//! | 96 | U, compressed |
//! | 8 + 32 | length 32 (u64 little-endian, as all lengths), V |
//! | 8 + 32 | length 32, W |
//! | 8 + b | length b = n + 44, then body: |
//! | 8 + n + 16 | .. length n + 16, encrypted message of n bytes, tag |
//! | 8 + 12 | .. length 12, nonce |
//! | 8 + 8 | length 8, `AES_GCM_` |
//!
//! [`OVERHEAD_BYTES`] more than the message. Nothing may follow.

mod beacon;
mod ciphertext;

pub use beacon::{
    PUBLIC_KEY_BYTES, QUICKNET_GENESIS_UNIX_S, QUICKNET_PERIOD_S, QUICKNET_PUBLIC_KEY,
    SIGNATURE_BYTES, SecretKey, round_at, verify,
};
pub use ciphertext::{CIPHERTEXT_BYTES_MAX, ENTROPY_BYTES, OVERHEAD_BYTES, decrypt, encrypt};

/// Why something could not be encrypted or decrypted. None of these gets better by trying again with the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not the compressed form of a point of G2 of prime order.
    #[error("the beacon's public key of {0} bytes is not a point of G2 in 96 bytes")]
    PublicKey(usize),
    /// Not the compressed form of a point of G1 of prime order.
    #[error("the pulse's signature of {0} bytes is not a point of G1 in 48 bytes")]
    Signature(usize),
    /// More than a chain takes: [`CIPHERTEXT_BYTES_MAX`] less [`OVERHEAD_BYTES`].
    #[error("a message of {bytes} bytes is longer than the {max} that fit a commit")]
    MessageTooLong {
        /// Length of the message.
        bytes: usize,
        /// Longest allowed.
        max: usize,
    },
    /// Longer than [`CIPHERTEXT_BYTES_MAX`], or not of the layout above.
    #[error("a ciphertext of {bytes} bytes is malformed: {what}")]
    Malformed {
        /// Length of the ciphertext.
        bytes: usize,
        /// The first field that is wrong.
        what: &'static str,
    },
    /// The signature is of another round or another beacon, or the header was changed.
    #[error(
        "the signature does not open this ciphertext: another round, another beacon, or changed bytes"
    )]
    WrongSignature,
    /// The header opens, the body does not: it was changed.
    #[error("the body of the ciphertext was changed: its tag does not match")]
    BodyTampered,
}
