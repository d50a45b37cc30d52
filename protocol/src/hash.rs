//! BLAKE3 hashes and their domains.
//!
//! Content (frames, tiles, files) is hashed plainly, so that its hash is its address everywhere. Everything that is
//! signed, voted on or linked is hashed under a domain, so that bytes of one kind never pass for another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A BLAKE3 hash. Ordered bytewise; shown as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Stands for "nothing to commit to"; no content hashes to it in practice.
    pub const ZERO: Hash = Hash([0; 32]);

    /// The address of `content`: its plain BLAKE3 hash.
    pub fn of_content(content: &[u8]) -> Hash {
        Hash(*blake3::hash(content).as_bytes())
    }

    /// The hash of `body` under `domain`, by BLAKE3's key derivation mode.
    ///
    /// `domain`: a constant of this source text, of the form `"gradmesh <what> v<version>"`.
    pub fn in_domain(domain: &'static str, body: &[u8]) -> Hash {
        Hash(blake3::derive_key(domain, body))
    }

    /// The first eight hex digits, for logs.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }

    /// A hash from exactly 32 bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Hash> {
        bytes.try_into().ok().map(Hash)
    }

    /// A hash from exactly 64 hex digits; `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Hash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Hash(bytes))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Hash::from_hex(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not 64 hex digits")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_separate_equal_bytes() {
        let body = b"same bytes";
        let header = Hash::in_domain("gradmesh header v1", body);
        assert_ne!(header, Hash::in_domain("gradmesh decision v1", body));
        assert_ne!(header, Hash::of_content(body));
    }

    #[test]
    fn hex_round_trips_and_refuses_other_lengths() {
        let hash = Hash::of_content(b"x");
        assert_eq!(Hash::from_hex(&hash.to_string()), Some(hash));
        assert_eq!(Hash::from_hex(&hash.to_string()[1..]), None);
        assert_eq!(Hash::from_slice(&hash.0[..31]), None);
    }
}
