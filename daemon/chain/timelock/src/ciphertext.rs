//! Encrypting to a round and decrypting with its signature. The layout is in the crate's documentation.

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use ark_bls12_381::{Bls12_381, Fr, G2Affine};
use ark_ec::pairing::{Pairing, PairingOutput};
use ark_ec::{AffineRepr, CurveGroup};
use ark_ff::PrimeField;
use ark_serialize::CanonicalSerialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::Error;
use crate::beacon::{compressed, identity, public_key_point, signature_point};

/// Longest ciphertext that is made or read: what subtensor takes as one timelocked weight commit.
pub const CIPHERTEXT_BYTES_MAX: usize = 5_000;

/// How much longer a ciphertext is than its message.
pub const OVERHEAD_BYTES: usize = U_BYTES
    + LENGTH_BYTES + BLOCK_BYTES // V
    + LENGTH_BYTES + BLOCK_BYTES // W
    + LENGTH_BYTES + BODY_OVERHEAD_BYTES
    + LENGTH_BYTES + CIPHER_SUITE.len();

/// How much entropy one encryption takes.
pub const ENTROPY_BYTES: usize = 32;

const MESSAGE_BYTES_MAX: usize = CIPHERTEXT_BYTES_MAX - OVERHEAD_BYTES;
const U_BYTES: usize = 96;
const BLOCK_BYTES: usize = 32;
const LENGTH_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
const BODY_OVERHEAD_BYTES: usize = LENGTH_BYTES + TAG_BYTES + LENGTH_BYTES + NONCE_BYTES;
const CIPHER_SUITE: &[u8] = b"AES_GCM_";

type Block = [u8; BLOCK_BYTES];

/// Encrypts `message` so that the signature of `round` by the beacon of `public_key` opens it.
///
/// `entropy`: fresh from the operating system. The AES key, its nonce and sigma are hashes of it, of the round, the key
/// and the message, so that two messages never share an AES key even where a caller repeats its entropy by mistake.
/// The same arguments give the same bytes.
///
/// Cost: one pairing and three multiplications, about 3 ms.
///
/// # Errors
/// [`Error::PublicKey`], [`Error::MessageTooLong`].
pub fn encrypt(
    public_key: &[u8],
    round: u64,
    message: &[u8],
    entropy: [u8; ENTROPY_BYTES],
) -> Result<Vec<u8>, Error> {
    let entropy = Zeroizing::new(entropy);
    let beacon = public_key_point(public_key).ok_or(Error::PublicKey(public_key.len()))?;
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(Error::MessageTooLong {
            bytes: message.len(),
            max: MESSAGE_BYTES_MAX,
        });
    }
    let draw = |what: &[u8]| -> Zeroizing<Block> {
        let digest = Sha256::new()
            .chain_update(b"gradmesh timelock v1")
            .chain_update(what)
            .chain_update(*entropy)
            .chain_update(round.to_be_bytes())
            .chain_update(public_key)
            .chain_update(message);
        Zeroizing::new(digest.finalize().into())
    };
    let (key, sigma, nonce) = (draw(b"key  "), draw(b"sigma"), draw(b"nonce"));
    let nonce = &nonce[..NONCE_BYTES];

    let r = blinding(&sigma, &key);
    let mask = hash_of_pairing(&Bls12_381::pairing(identity(round), beacon * r));
    let body = Aes256Gcm::new((&*key).into())
        .encrypt(Nonce::from_slice(nonce), message)
        .expect("a message below 64 GiB fits AES-GCM");

    let mut out = Vec::with_capacity(OVERHEAD_BYTES + message.len());
    out.extend_from_slice(&compressed::<U_BYTES>(
        &(G2Affine::generator() * r).into_affine(),
    ));
    put_vector(&mut out, &xor(&sigma, &mask));
    put_vector(&mut out, &xor(&key, &Sha256::digest(*sigma).into()));
    put_length(
        &mut out,
        LENGTH_BYTES + body.len() + LENGTH_BYTES + nonce.len(),
    );
    put_vector(&mut out, &body);
    put_vector(&mut out, nonce);
    put_vector(&mut out, CIPHER_SUITE);
    Ok(out)
}

/// Decrypts `ciphertext` with the beacon's `signature` of the round it was encrypted to.
///
/// Whether the signature is the beacon's is not asked here ([`crate::verify`]): another one does not open anything.
/// Cost: one pairing, two checks of point order, one multiplication; about 3 ms.
///
/// # Errors
/// All of [`Error`] but those of encryption. Any change of any bit of the ciphertext is an error.
pub fn decrypt(ciphertext: &[u8], signature: &[u8]) -> Result<Vec<u8>, Error> {
    let signature = signature_point(signature).ok_or(Error::Signature(signature.len()))?;
    let parts = Parts::read(ciphertext).map_err(|what| Error::Malformed {
        bytes: ciphertext.len(),
        what,
    })?;

    let mask = hash_of_pairing(&Bls12_381::pairing(signature, parts.u));
    let sigma = Zeroizing::new(xor(parts.v, &mask));
    let key = Zeroizing::new(xor(parts.w, &Sha256::digest(*sigma).into()));
    if G2Affine::generator() * blinding(&sigma, &key) != parts.u {
        return Err(Error::WrongSignature);
    }
    Aes256Gcm::new((&*key).into())
        .decrypt(Nonce::from_slice(parts.nonce), parts.body)
        .map_err(|_| Error::BodyTampered)
}

/// The fields of a ciphertext, checked for form only.
struct Parts<'a> {
    u: G2Affine,
    v: &'a Block,
    w: &'a Block,
    /// Encrypted message and tag, at least [`TAG_BYTES`].
    body: &'a [u8],
    nonce: &'a [u8; NONCE_BYTES],
}

impl<'a> Parts<'a> {
    /// # Errors
    /// What is wrong, in words.
    fn read(ciphertext: &'a [u8]) -> Result<Parts<'a>, &'static str> {
        if ciphertext.len() > CIPHERTEXT_BYTES_MAX {
            return Err("longer than 5000 bytes");
        }
        let (u, rest) = ciphertext
            .split_at_checked(U_BYTES)
            .ok_or("shorter than its first point")?;
        let u = public_key_point(u).ok_or("U is not a point of G2")?;
        let (v, rest) = take_vector(rest).ok_or("V is cut off")?;
        let v = v.try_into().map_err(|_| "V is not 32 bytes")?;
        let (w, rest) = take_vector(rest).ok_or("W is cut off")?;
        let w = w.try_into().map_err(|_| "W is not 32 bytes")?;
        let (sealed, rest) = take_vector(rest).ok_or("the body is cut off")?;
        let (suite, rest) = take_vector(rest).ok_or("the cipher suite is cut off")?;
        if suite != CIPHER_SUITE {
            return Err("the cipher suite is not AES_GCM_");
        }
        if !rest.is_empty() {
            return Err("bytes follow the cipher suite");
        }
        let (body, sealed) = take_vector(sealed).ok_or("the encrypted message is cut off")?;
        if body.len() < TAG_BYTES {
            return Err("the encrypted message has no tag");
        }
        let (nonce, sealed) = take_vector(sealed).ok_or("the nonce is cut off")?;
        let nonce = nonce.try_into().map_err(|_| "the nonce is not 12 bytes")?;
        if !sealed.is_empty() {
            return Err("bytes follow the nonce");
        }
        Ok(Parts {
            u,
            v,
            w,
            body,
            nonce,
        })
    }
}

/// r of the crate's documentation (H3 of the paper).
fn blinding(sigma: &Block, key: &Block) -> Fr {
    Fr::from_be_bytes_mod_order(
        &Sha256::new()
            .chain_update(sigma)
            .chain_update(key)
            .finalize(),
    )
}

/// SHA-256 of a pairing's value in canonical form (H2 of the paper).
fn hash_of_pairing(value: &PairingOutput<Bls12_381>) -> Block {
    let mut bytes = Zeroizing::new(Vec::with_capacity(value.compressed_size()));
    value
        .serialize_compressed(&mut *bytes)
        .expect("a vector takes every byte");
    Sha256::digest(&*bytes).into()
}

fn xor(a: &Block, b: &Block) -> Block {
    std::array::from_fn(|i| a[i] ^ b[i])
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&(length as u64).to_le_bytes());
}

fn put_vector(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// The vector at the start of `bytes` and what follows it; none if fewer bytes are there than its length says.
fn take_vector(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}
