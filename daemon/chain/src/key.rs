//! Signing keys of accounts: sr25519 (Schnorr signatures on Ristretto), as Substrate makes and checks them.
//!
//! - A **seed** of 32 bytes becomes a secret key by the ed25519 way of expanding (SHA-512, clamped).
//! - A **phrase** (BIP39, English) becomes a seed by `PBKDF2-HMAC-SHA512(entropy, "mnemonic", 2048)[..32]`: over the
//!   entropy that the words stand for, not over the words, which is where Substrate leaves BIP39.
//! - Signatures are made in the context `"substrate"`.

use std::fmt;

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};
use parity_scale_codec::Encode;
use schnorrkel::derive::ChainCode;
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, PublicKey, SecretKey};
use sha2::Sha512;
use zeroize::Zeroizing;

use crate::account::AccountId;

/// The well-known development phrase of Substrate chains. Everyone knows its keys: worth nothing on a public chain.
pub const DEV_PHRASE: &str =
    "bottom drive obey lake curtain smoke basket hold race lonely fit walk";

const SIGNING_CONTEXT: &[u8] = b"substrate";
const PHRASE_SALT: &[u8] = b"mnemonic";
const PHRASE_ROUNDS: u32 = 2048;

/// Why something is no key. Never says what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 12, 15, 18, 21 or 24 words.
    #[error("a phrase has 12, 15, 18, 21 or 24 words, this one has {0}")]
    WordCount(usize),
    /// A word that the English list does not hold.
    #[error("word {0} of the phrase is not in the BIP39 English word list")]
    UnknownWord(usize),
    /// Words of the list, but a wrong one or a wrong order.
    #[error("the phrase has a wrong checksum: a word is wrong or out of order")]
    PhraseChecksum,
    /// The first 32 bytes are no scalar of the group.
    #[error("the 64 bytes are not an sr25519 private key")]
    PrivateKey,
}

/// A secret key that signs for an account. Wiped from memory when dropped; shown by its address only.
#[derive(Clone)]
pub struct Key {
    pair: Keypair,
}

impl Key {
    /// The key of a BIP39 phrase, any amount of white space between the words, letters of either case.
    pub fn from_phrase(phrase: &str) -> Result<Key, KeyError> {
        Ok(Key::from_seed(&*seed_of_phrase(phrase)?))
    }

    /// The key of a seed ("secretSeed", mini secret key).
    pub fn from_seed(seed: &[u8; 32]) -> Key {
        let mini = MiniSecretKey::from_bytes(seed).expect("any 32 bytes are a mini secret key");
        Key {
            pair: mini.expand_to_keypair(ExpansionMode::Ed25519),
        }
    }

    /// The key of 64 private bytes: scalar (canonical, little-endian), then the seed of nonces.
    pub fn from_private(private: &[u8; 64]) -> Result<Key, KeyError> {
        let secret = SecretKey::from_bytes(private).map_err(|_| KeyError::PrivateKey)?;
        Ok(Key {
            pair: secret.to_keypair(),
        })
    }

    /// `//NAME` of the development phrase: `Key::dev("Alice")` and so on.
    pub fn dev(name: &str) -> Key {
        let parent = Key::from_phrase(DEV_PHRASE).expect("the development phrase is sound");
        let (mini, _) = parent
            .pair
            .secret
            .hard_derive_mini_secret_key(Some(junction(name)), b"");
        Key {
            pair: mini.expand_to_keypair(ExpansionMode::Ed25519),
        }
    }

    /// The account that this key signs for.
    pub fn account(&self) -> AccountId {
        AccountId(self.pair.public.to_bytes())
    }

    /// Signs `message`. Draws entropy for the nonce: two signatures of one message differ, both hold.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair.sign_simple(SIGNING_CONTEXT, message).to_bytes()
    }

    /// Whether `signature` over `message` was made by the key of `account`.
    pub fn verify(account: &AccountId, message: &[u8], signature: &[u8; 64]) -> bool {
        let (Ok(public), Ok(signature)) = (
            PublicKey::from_bytes(&account.0),
            schnorrkel::Signature::from_bytes(signature),
        ) else {
            return false;
        };
        public
            .verify_simple(SIGNING_CONTEXT, message, &signature)
            .is_ok()
    }

    /// The 64 private bytes, as [`Key::from_private`] takes them.
    pub(crate) fn private(&self) -> Zeroizing<[u8; 64]> {
        Zeroizing::new(self.pair.secret.to_bytes())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.account())
    }
}

/// The seed of a phrase: 32 bytes.
pub(crate) fn seed_of_phrase(phrase: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let lower = Zeroizing::new(phrase.to_lowercase());
    let mnemonic =
        bip39::Mnemonic::parse_in(bip39::Language::English, lower.as_str()).map_err(|fault| {
            match fault {
                bip39::Error::BadWordCount(count) => KeyError::WordCount(count),
                bip39::Error::UnknownWord(index) => KeyError::UnknownWord(index + 1),
                bip39::Error::InvalidChecksum
                | bip39::Error::BadEntropyBitCount(_)
                | bip39::Error::AmbiguousLanguages(_) => KeyError::PhraseChecksum,
            }
        })?;
    let (entropy, bytes) = mnemonic.to_entropy_array();
    let entropy = Zeroizing::new(entropy);
    let mut seed = Zeroizing::new([0; 32]);
    // The first half of the 64 bytes that Substrate derives: a prefix of PBKDF2 output does not depend on what follows.
    pbkdf2::pbkdf2_hmac::<Sha512>(&entropy[..bytes], PHRASE_SALT, PHRASE_ROUNDS, seed.as_mut());
    Ok(seed)
}

/// The chain code of a hard junction `//NAME`: a number as u64, other text SCALE-encoded (compact length, then the
/// bytes); little-endian, padded with zeros to 32 bytes, hashed by BLAKE2b-256 where it is longer.
fn junction(name: &str) -> ChainCode {
    let encoded = match name.parse::<u64>() {
        Ok(number) => number.encode(),
        Err(_) => name.encode(),
    };
    let mut code = [0; 32];
    match code.get_mut(..encoded.len()) {
        Some(start) => start.copy_from_slice(&encoded),
        None => code.copy_from_slice(&Blake2b::<U32>::digest(&encoded)),
    }
    ChainCode(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn development_keys_have_their_well_known_addresses() {
        for (name, address) in [
            ("Alice", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"),
            ("Bob", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"),
            (
                "Charlie",
                "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y",
            ),
        ] {
            assert_eq!(Key::dev(name).account().to_string(), address, "{name}");
        }
    }

    /// The seed that `subkey inspect` shows for the development phrase.
    #[test]
    fn a_phrase_gives_the_seed_of_its_entropy() {
        let seed = seed_of_phrase(DEV_PHRASE).unwrap();
        assert_eq!(
            hex::encode(*seed),
            "fac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e"
        );
        assert_eq!(
            Key::from_seed(&seed).account(),
            Key::from_phrase(DEV_PHRASE).unwrap().account()
        );
        let loose = "  Bottom drive OBEY lake curtain smoke\n basket hold race lonely\tfit walk ";
        assert_eq!(*seed_of_phrase(loose).unwrap(), *seed);
    }

    #[test]
    fn a_bad_phrase_is_refused_without_showing_it() {
        let word = "bottom drive obey lake curtain smokes basket hold race lonely fit walk";
        assert_eq!(
            Key::from_phrase(word).unwrap_err(),
            KeyError::UnknownWord(6)
        );
        let order = "drive bottom obey lake curtain smoke basket hold race lonely fit walk";
        assert_eq!(
            Key::from_phrase(order).unwrap_err(),
            KeyError::PhraseChecksum
        );
        assert_eq!(
            Key::from_phrase("bottom drive").unwrap_err(),
            KeyError::WordCount(2)
        );
        assert_eq!(Key::from_phrase("").unwrap_err(), KeyError::WordCount(0));
    }

    #[test]
    fn private_bytes_give_the_key_back() {
        let key = Key::dev("Alice");
        assert_eq!(
            Key::from_private(&key.private()).unwrap().account(),
            key.account()
        );
        assert_eq!(
            Key::from_private(&[0xff; 64]).unwrap_err(),
            KeyError::PrivateKey
        );
    }

    #[test]
    fn a_signature_holds_for_its_account_and_message_only() {
        let (alice, bob) = (Key::dev("Alice"), Key::dev("Bob"));
        let signature = alice.sign(b"message");
        assert!(Key::verify(&alice.account(), b"message", &signature));
        assert!(!Key::verify(&alice.account(), b"massage", &signature));
        assert!(!Key::verify(&bob.account(), b"message", &signature));
        assert!(!Key::verify(&AccountId([0xff; 32]), b"message", &signature));
        assert!(!Key::verify(&alice.account(), b"message", &[0; 64]));
        for bit in 0..512 {
            let mut flipped = signature;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !Key::verify(&alice.account(), b"message", &flipped),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let key = Key::from_seed(&[7; 32]);
        let shown = format!("{key:?} {key:#?}");
        assert!(shown.contains(&key.account().to_string()));
        assert!(!shown.contains(&hex::encode(&key.private()[..4])));
        assert!(!shown.contains("07070707") && !shown.contains("[7, 7"));
    }
}
