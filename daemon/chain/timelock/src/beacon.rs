//! A drand beacon: its rounds, its keys and its signatures.

use ark_bls12_381::{Bls12_381, Fr, G1Affine, G1Projective, G2Affine, g1};
use ark_ec::hashing::HashToCurve;
use ark_ec::hashing::curve_maps::wb::WBMap;
use ark_ec::hashing::map_to_curve_hasher::MapToCurveBasedHasher;
use ark_ec::pairing::Pairing;
use ark_ec::{AffineRepr, CurveGroup};
use ark_ff::field_hashers::DefaultFieldHasher;
use ark_ff::{PrimeField, Zero};
use ark_serialize::CanonicalSerialize;
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroize;

/// Length of a public key: a point of G2, compressed.
pub const PUBLIC_KEY_BYTES: usize = 96;

/// Length of a signature: a point of G1, compressed.
pub const SIGNATURE_BYTES: usize = 48;

/// Public key of drand's quicknet, chain hash 52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971.
pub const QUICKNET_PUBLIC_KEY: [u8; PUBLIC_KEY_BYTES] = [
    0x83, 0xcf, 0x0f, 0x28, 0x96, 0xad, 0xee, 0x7e, 0xb8, 0xb5, 0xf0, 0x1f, 0xca, 0xd3, 0x91, 0x22,
    0x12, 0xc4, 0x37, 0xe0, 0x07, 0x3e, 0x91, 0x1f, 0xb9, 0x00, 0x22, 0xd3, 0xe7, 0x60, 0x18, 0x3c,
    0x8c, 0x4b, 0x45, 0x0b, 0x6a, 0x0a, 0x6c, 0x3a, 0xc6, 0xa5, 0x77, 0x6a, 0x2d, 0x10, 0x64, 0x51,
    0x0d, 0x1f, 0xec, 0x75, 0x8c, 0x92, 0x1c, 0xc2, 0x2b, 0x0e, 0x17, 0xe6, 0x3a, 0xaf, 0x4b, 0xcb,
    0x5e, 0xd6, 0x63, 0x04, 0xde, 0x9c, 0xf8, 0x09, 0xbd, 0x27, 0x4c, 0xa7, 0x3b, 0xab, 0x4a, 0xf5,
    0xa6, 0xe9, 0xc7, 0x6a, 0x4b, 0xc0, 0x9e, 0x76, 0xea, 0xe8, 0x99, 0x1e, 0xf5, 0xec, 0xe4, 0x5a,
];

/// When quicknet's round 1 was due, seconds since 1970.
pub const QUICKNET_GENESIS_UNIX_S: u64 = 1_692_803_367;

/// Seconds between quicknet's rounds.
pub const QUICKNET_PERIOD_S: u64 = 3;

/// Tag of RFC 9380 that quicknet hashes with. "NUL" is the BLS draft's name for signatures without proof of possession.
const HASH_TO_G1_TAG: &[u8] = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_";

type HashToG1 =
    MapToCurveBasedHasher<G1Projective, DefaultFieldHasher<Sha256, 128>, WBMap<g1::Config>>;

/// The newest round that is due at `unix_s`: round 1 at `genesis_unix_s`, one more each `period_s`; 0 before that.
///
/// A period of 0 is read as 1, so that a beacon's configuration cannot stop the caller.
pub fn round_at(unix_s: u64, genesis_unix_s: u64, period_s: u64) -> u64 {
    match unix_s.checked_sub(genesis_unix_s) {
        Some(since) => (since / period_s.max(1)).saturating_add(1),
        None => 0,
    }
}

/// Whether `signature` is the beacon's of `round`. False for anything that is no key or no signature.
///
/// Cost: two pairings, about 2 ms.
pub fn verify(public_key: &[u8], round: u64, signature: &[u8]) -> bool {
    let (Some(public_key), Some(signature)) =
        (public_key_point(public_key), signature_point(signature))
    else {
        return false;
    };
    // e(S, P) = e(Q, K), as one product: e(S, -P) e(Q, K) = 1.
    let minus_generator = -G2Affine::generator();
    Bls12_381::multi_pairing([signature, identity(round)], [minus_generator, public_key]).is_zero()
}

/// The secret key of a beacon of one's own: what signs the rounds of a development chain. Wiped when dropped.
pub struct SecretKey {
    scalar: Fr,
}

impl SecretKey {
    /// The key of a seed: SHA-512 of it, big-endian, modulo the group order.
    pub fn from_seed(seed: [u8; 32]) -> SecretKey {
        SecretKey {
            scalar: Fr::from_be_bytes_mod_order(&Sha512::digest(seed)),
        }
    }

    /// The public key, compressed.
    pub fn public_key(&self) -> [u8; PUBLIC_KEY_BYTES] {
        compressed(&(G2Affine::generator() * self.scalar).into_affine())
    }

    /// The signature of `round`, compressed. Deterministic.
    pub fn sign(&self, round: u64) -> [u8; SIGNATURE_BYTES] {
        compressed(&(identity(round) * self.scalar).into_affine())
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.scalar.zeroize();
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// The point of G1 that a round is known by: what the beacon signs, what one encrypts to.
pub(crate) fn identity(round: u64) -> G1Affine {
    let message = Sha256::digest(round.to_be_bytes());
    HashToG1::new(HASH_TO_G1_TAG)
        .and_then(|hasher| hasher.hash(&message))
        .expect("the map from field to curve is total, its parameters are constants")
}

/// A public key from its bytes: of prime order, not the point at infinity (anyone could decrypt for that).
pub(crate) fn public_key_point(bytes: &[u8]) -> Option<G2Affine> {
    point::<G2Affine>(bytes, PUBLIC_KEY_BYTES)
}

/// A signature from its bytes: of prime order, not the point at infinity.
pub(crate) fn signature_point(bytes: &[u8]) -> Option<G1Affine> {
    point::<G1Affine>(bytes, SIGNATURE_BYTES)
}

fn point<P: AffineRepr>(bytes: &[u8], length: usize) -> Option<P> {
    if bytes.len() != length {
        return None;
    }
    // Checks that the encoding is canonical, the point on the curve and of prime order.
    P::deserialize_compressed(bytes)
        .ok()
        .filter(|point| !point.is_zero())
}

/// The compressed form of a point; `N` is 48 for G1, 96 for G2.
pub(crate) fn compressed<const N: usize>(point: &impl CanonicalSerialize) -> [u8; N] {
    let mut bytes = [0; N];
    point
        .serialize_compressed(&mut bytes[..])
        .expect("N is the compressed length of this group");
    bytes
}
