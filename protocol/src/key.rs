//! Keys and signatures of peers (ed25519).
//!
//! A signature is over a [`struct@Hash`] that was made in a domain, so that a signature under one kind of message is never
//! valid under another.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::hash::Hash;

/// The public key of a peer: its name in rosters, headers and decisions. Ordered bytewise (canonical order).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub [u8; 32]);

impl PeerKey {
    /// A key from exactly 32 bytes; whether it is a point of the curve shows when a signature is verified.
    pub fn from_slice(bytes: &[u8]) -> Option<PeerKey> {
        bytes.try_into().ok().map(PeerKey)
    }

    /// The first eight hex digits, for logs and tables.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }

    /// Whether `signature` is this key's over `hash`. Small-order keys and malleable signatures are refused.
    pub fn verify(&self, hash: &Hash, signature: &Signature) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else {
            return false;
        };
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&hash.0, &signature).is_ok()
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// A detached ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature(pub [u8; 64]);

impl Signature {
    /// A signature from exactly 64 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Signature> {
        bytes.try_into().ok().map(Signature)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

/// A peer's secret key. Zeroized when dropped; never shown.
#[derive(Clone)]
pub struct Keypair {
    signing: SigningKey,
}

impl Keypair {
    /// The key pair of a 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Keypair {
        Keypair {
            signing: SigningKey::from_bytes(seed),
        }
    }

    /// The public half.
    pub fn public(&self) -> PeerKey {
        PeerKey(self.signing.verifying_key().to_bytes())
    }

    /// Signs `hash`. Deterministic: the same key and hash give the same signature.
    pub fn sign(&self, hash: &Hash) -> Signature {
        Signature(self.signing.sign(&hash.0).to_bytes())
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({:?})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_and_hash_only() {
        let (alice, bob) = (Keypair::from_seed(&[1; 32]), Keypair::from_seed(&[2; 32]));
        let hash = Hash::in_domain("gradmesh header v1", b"body");
        let signature = alice.sign(&hash);
        assert!(alice.public().verify(&hash, &signature));
        assert!(!bob.public().verify(&hash, &signature));
        assert!(!alice.public().verify(&Hash::ZERO, &signature));
        assert!(!PeerKey([0; 32]).verify(&hash, &signature));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let keypair = Keypair::from_seed(&[7; 32]);
        assert!(!format!("{keypair:?}").contains("0707"));
    }
}
