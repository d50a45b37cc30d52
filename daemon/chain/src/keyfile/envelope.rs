//! Encrypted keyfiles.
//!
//! **`$NACL`**: `"$NACL" ++ nonce[24] ++ tag[16] ++ ciphertext`, XSalsa20-Poly1305 (NaCl's secretbox) under the 32 bytes of
//! Argon2i version 1.3, 8 passes over 512 MiB, one lane, a fixed salt. The salt is the same for everyone, so that the cost
//! of a guess is all that stands between a stolen file and its password.
//!
//! **`$ANSIBLE_VAULT`**: `"$ANSIBLE_VAULT;1.1;AES256\n"` (or `1.2` and a label), then hex text in lines of
//! `hex(salt) \n hex(hmac) \n hex(ciphertext)`. PBKDF2-HMAC-SHA256 with 10,000 rounds gives an AES-256 key, an HMAC key and
//! the first counter block; AES-256-CTR, PKCS#7 padding, HMAC-SHA256 of the ciphertext.
//!
//! **`gAAAAA`**: a Fernet token: url-safe base64 of
//! `0x80 ++ time[8] ++ iv[16] ++ ciphertext ++ hmac[32]`. PBKDF2-HMAC-SHA256 with 10,000,000 rounds and a fixed salt gives
//! an HMAC key and an AES-128 key of 16 bytes each; AES-128-CBC, PKCS#7 padding, HMAC-SHA256 of all before it.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut, KeyIvInit, StreamCipher};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use crypto_secretbox::aead::Aead;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::{Fault, Password};

const NACL: &[u8] = b"$NACL";
const NACL_NONCE_BYTES: usize = 24;
const NACL_MEMORY_KIB: u32 = 524_288;
const NACL_PASSES: u32 = 8;
const NACL_SALT: [u8; 16] = *b"\x13\x71\x83\xdf\xf1\x5a\x09\xbc\x9c\x90\xb5\x51\x87\x39\xe9\xb1";

const ANSIBLE: &[u8] = b"$ANSIBLE_VAULT";
const ANSIBLE_ROUNDS: u32 = 10_000;

const FERNET: &[u8] = b"gAAAAA";
const FERNET_ROUNDS: u32 = 10_000_000;
const FERNET_SALT: &[u8] = b"Iguesscyborgslikemyselfhaveatendencytobeparanoidaboutourorigins";
const FERNET_HEAD_BYTES: usize = 1 + 8 + 16;

type Plain = Zeroizing<Vec<u8>>;

/// Whether these bytes are encrypted, by their first bytes.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii_start();
    [NACL, ANSIBLE, FERNET]
        .iter()
        .any(|start| bytes.starts_with(start))
}

/// Opens any of the three forms.
pub(super) fn open(bytes: &[u8], password: &Password) -> Result<Plain, Fault> {
    let bytes = bytes.trim_ascii_start();
    if let Some(sealed) = bytes.strip_prefix(NACL) {
        open_nacl(sealed, password)
    } else if bytes.starts_with(ANSIBLE) {
        open_ansible(bytes, password)
    } else if bytes.starts_with(FERNET) {
        open_fernet(bytes, password)
    } else {
        Err(Fault::UnknownFormat)
    }
}

/// Seals `plain` as `$NACL`.
pub(super) fn seal(plain: &[u8], password: &Password) -> Result<Vec<u8>, Fault> {
    let mut nonce = [0; NACL_NONCE_BYTES];
    getrandom::fill(&mut nonce)?;
    let key = nacl_key(password)?;
    let sealed = XSalsa20Poly1305::new((&*key).into())
        .encrypt((&nonce).into(), plain)
        .expect("a keyfile is shorter than 256 GiB");
    Ok([NACL, &nonce, &sealed].concat())
}

fn open_nacl(sealed: &[u8], password: &Password) -> Result<Plain, Fault> {
    let (nonce, sealed) = sealed
        .split_first_chunk::<NACL_NONCE_BYTES>()
        .ok_or_else(|| Fault::Damaged {
            what: "it ends within the nonce".into(),
        })?;
    let key = nacl_key(password)?;
    let plain = XSalsa20Poly1305::new((&*key).into()).decrypt(nonce.into(), sealed);
    plain.map(Zeroizing::new).map_err(|_| Fault::WrongPassword)
}

/// Cost: 512 MiB and 2 to 6 seconds.
fn nacl_key(password: &Password) -> Result<Zeroizing<[u8; 32]>, Fault> {
    let params = Params::new(NACL_MEMORY_KIB, NACL_PASSES, 1, Some(32))
        .expect("the parameters are constants in range");
    let blocks = params.block_count();
    let mut memory: Vec<Block> = Vec::new();
    memory
        .try_reserve_exact(blocks)
        .map_err(|_| Fault::Memory {
            mib: NACL_MEMORY_KIB / 1024,
        })?;
    memory.resize(blocks, Block::default());
    let mut key = Zeroizing::new([0; 32]);
    let derived = Argon2::new(Algorithm::Argon2i, Version::V0x13, params)
        .hash_password_into_with_memory(password.bytes(), &NACL_SALT, key.as_mut(), &mut memory);
    memory.iter_mut().for_each(Zeroize::zeroize);
    // Salt, output and memory have lengths that Argon2 takes; what is left to refuse is a password of 4 GiB.
    derived.map_err(|_| Fault::WrongPassword)?;
    Ok(key)
}

fn open_ansible(bytes: &[u8], password: &Password) -> Result<Plain, Fault> {
    let damaged = |what: &str| Fault::Damaged { what: what.into() };
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("its vault is not text"))?;
    let (header, lines) = text
        .split_once('\n')
        .ok_or_else(|| damaged("its vault has no body"))?;
    let mut header = header.trim_end().split(';').skip(1);
    if !matches!(header.next(), Some("1.1" | "1.2")) || header.next() != Some("AES256") {
        return Err(damaged(
            "its vault is not of version 1.1 or 1.2 with AES256",
        ));
    }
    let digits: String = lines.split_whitespace().collect();
    let body = hex::decode(digits).map_err(|_| damaged("its vault is not hex text"))?;
    let mut fields = body.split(|byte| *byte == b'\n').map(hex::decode);
    let (Some(Ok(salt)), Some(Ok(tag)), Some(Ok(mut sealed)), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(damaged("its vault is not salt, tag and ciphertext in hex"));
    };

    let mut keys = Zeroizing::new([0; 80]);
    pbkdf2::pbkdf2_hmac::<Sha256>(password.bytes(), &salt, ANSIBLE_ROUNDS, keys.as_mut());
    let (cipher_key, rest) = keys.split_at(32);
    let (mac_key, counter) = rest.split_at(32);
    verify_mac(mac_key, &sealed, &tag)?;
    ctr::Ctr128BE::<aes::Aes256>::new(cipher_key.into(), counter.into())
        .apply_keystream(&mut sealed);
    let mut plain = Zeroizing::new(sealed);
    let padding = usize::from(*plain.last().ok_or_else(|| damaged("its vault is empty"))?);
    let length = plain
        .len()
        .checked_sub(padding)
        .filter(|_| (1..=16).contains(&padding));
    let length = length.ok_or_else(|| damaged("the padding in its vault is wrong"))?;
    plain.truncate(length);
    Ok(plain)
}

fn open_fernet(bytes: &[u8], password: &Password) -> Result<Plain, Fault> {
    let damaged = |what: &str| Fault::Damaged { what: what.into() };
    let token = bytes.trim_ascii();
    let token = URL_SAFE
        .decode(token)
        .or_else(|_| URL_SAFE_NO_PAD.decode(token))
        .map_err(|_| damaged("its Fernet token is not base64"))?;
    let (signed, tag) = token
        .split_last_chunk::<32>()
        .ok_or_else(|| damaged("its Fernet token is cut off"))?;
    let (head, sealed) = signed
        .split_first_chunk::<FERNET_HEAD_BYTES>()
        .ok_or_else(|| damaged("its Fernet token is cut off"))?;

    let mut keys = Zeroizing::new([0; 32]);
    pbkdf2::pbkdf2_hmac::<Sha256>(password.bytes(), FERNET_SALT, FERNET_ROUNDS, keys.as_mut());
    let (mac_key, cipher_key) = keys.split_at(16);
    verify_mac(mac_key, signed, tag)?;
    let iv = &head[1 + 8..];
    cbc::Decryptor::<aes::Aes128>::new(cipher_key.into(), iv.into())
        .decrypt_padded_vec_mut::<Pkcs7>(sealed)
        .map(Zeroizing::new)
        .map_err(|_| damaged("the padding in its Fernet token is wrong"))
}

/// In constant time.
fn verify_mac(key: &[u8], bytes: &[u8], tag: &[u8]) -> Result<(), Fault> {
    let mut mac =
        <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac.verify_slice(tag).map_err(|_| Fault::WrongPassword)
}
