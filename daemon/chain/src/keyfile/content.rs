//! What a keyfile says once it is open.
//!
//! JSON has any of these keys, and others that are passed over:
//!
//! | key | value |
//! |---|---|
//! | `secretPhrase` | BIP39 phrase |
//! | `secretSeed` | 64 hex digits, with or without `0x` |
//! | `privateKey` | 128 hex digits, with or without `0x` |
//! | `ss58Address`, in older files ` ss58Address` | the address |
//! | `accountId`, `publicKey` | 64 hex digits, with or without `0x` |
//! | `cryptoType` | 1 (sr25519, also if absent) or 0 (ed25519, refused) |
//!
//! The first of the three secrets that is there counts; the address, where stated, must be that of the secret.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Fault;
use crate::account::AccountId;
use crate::key::{Key, seed_of_phrase};

/// A BIP39 phrase: whoever knows it has the key. Wiped when dropped; shown on purpose only, by [`Phrase::words`].
pub struct Phrase(Zeroizing<String>);

/// A keyfile's content: a secret key, an address, or both (and then they belong together).
pub(super) struct Content {
    key: Option<Key>,
    stated: Option<AccountId>,
}

impl Phrase {
    /// A fresh phrase of 12 words: 128 bits from the operating system.
    pub(crate) fn generate() -> Result<Phrase, getrandom::Error> {
        let mut entropy = Zeroizing::new([0; 16]);
        getrandom::fill(entropy.as_mut())?;
        let mnemonic = bip39::Mnemonic::from_entropy_in(bip39::Language::English, entropy.as_ref())
            .expect("16 bytes are 12 words");
        let mut words = Zeroizing::new(String::with_capacity(128));
        for word in mnemonic.words() {
            if !words.is_empty() {
                words.push(' ');
            }
            words.push_str(word);
        }
        Ok(Phrase(words))
    }

    /// The words, one space between them. For the owner's eyes, once.
    pub fn words(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Phrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Phrase(..)")
    }
}

impl Content {
    /// Reads any plain form.
    pub(super) fn parse(bytes: &[u8]) -> Result<Content, Fault> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Fault::UnknownFormat)?
            .trim();
        if text.starts_with('{') {
            return Content::parse_json(text);
        }
        let words = text.split_whitespace().count();
        let key = if let Some(key) = bare_hex(text)? {
            key
        } else if words >= PHRASE_WORDS_MIN
            && text
                .chars()
                .all(|c| c.is_ascii_alphabetic() || c.is_ascii_whitespace())
        {
            Key::from_phrase(text)?
        } else {
            return Err(Fault::UnknownFormat);
        };
        Ok(Content {
            key: Some(key),
            stated: None,
        })
    }

    fn parse_json(text: &str) -> Result<Content, Fault> {
        // The parser's own message may quote what it read, so that only the place is passed on.
        let fields: Fields = serde_json::from_str(text).map_err(|fault| Fault::Damaged {
            what: format!(
                "its JSON is wrong at line {}, column {}",
                fault.line(),
                fault.column()
            ),
        })?;
        fields.require_sr25519()?;
        let key = match &fields {
            Fields {
                secret_phrase: Some(phrase),
                ..
            } => Some(Key::from_phrase(phrase)?),
            Fields {
                secret_seed: Some(seed),
                ..
            } => Some(Key::from_seed(&*hex_bytes("secretSeed", seed)?)),
            Fields {
                private_key: Some(private),
                ..
            } => Some(Key::from_private(&*hex_bytes("privateKey", private)?)?),
            Fields { .. } => None,
        };
        let address = fields
            .ss58_address
            .as_ref()
            .or(fields.older_ss58_address.as_ref());
        let stated = match address {
            Some(address) => Some(address.parse::<AccountId>()?),
            None => match fields.account_id.as_ref().or(fields.public_key.as_ref()) {
                Some(public) => Some(AccountId(*hex_bytes("accountId", public)?)),
                None => None,
            },
        };
        match (&key, stated) {
            (Some(key), Some(stated)) if key.account() != stated => Err(Fault::AddressMismatch {
                stated,
                derived: key.account(),
            }),
            (None, None) => Err(Fault::Damaged {
                what: "its JSON holds neither a secret nor an address".into(),
            }),
            (Some(_), _) | (None, Some(_)) => Ok(Content { key, stated }),
        }
    }

    /// The secret key.
    pub(super) fn key(self) -> Result<Key, Fault> {
        match (self.key, self.stated) {
            (Some(key), _) => Ok(key),
            (None, Some(stated)) => Err(Fault::PublicOnly(stated)),
            (None, None) => Err(Fault::UnknownFormat),
        }
    }

    /// The address, stated or the key's.
    pub(super) fn account(self) -> Result<AccountId, Fault> {
        self.stated
            .or_else(|| self.key.map(|key| key.account()))
            .ok_or(Fault::UnknownFormat)
    }
}

/// Fewer words than any phrase has are not taken for one.
const PHRASE_WORDS_MIN: usize = 12;

/// The keys of a JSON keyfile that are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    secret_phrase: Option<Zeroizing<String>>,
    secret_seed: Option<Zeroizing<String>>,
    private_key: Option<Zeroizing<String>>,
    ss58_address: Option<String>,
    #[serde(rename = " ss58Address")]
    older_ss58_address: Option<String>,
    account_id: Option<Zeroizing<String>>,
    public_key: Option<Zeroizing<String>>,
    crypto_type: Option<serde_json::Value>,
}

impl Fields {
    fn require_sr25519(&self) -> Result<(), Fault> {
        match &self.crypto_type {
            None | Some(serde_json::Value::Null) => Ok(()),
            Some(value) if value == 1 || value == "sr25519" => Ok(()),
            Some(value) if value == 0 || value == "ed25519" => Err(Fault::Ed25519),
            Some(_) => Err(Fault::Damaged {
                what: "its cryptoType is neither 1 (sr25519) nor 0 (ed25519)".into(),
            }),
        }
    }
}

/// The JSON of a secret key, made from its phrase.
pub(crate) fn secret_json(phrase: &Phrase) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let seed = seed_of_phrase(phrase.words())?;
    let key = Key::from_seed(&seed);
    let prefixed =
        |bytes: &[u8]| Zeroizing::new(format!("0x{}", *Zeroizing::new(hex::encode(bytes))));
    let (seed, private) = (prefixed(seed.as_ref()), prefixed(key.private().as_ref()));
    let public = prefixed(&key.account().0);
    Ok(json(&Written {
        account_id: &public,
        public_key: &public,
        private_key: Some(&private),
        secret_phrase: Some(phrase.words()),
        secret_seed: Some(&seed),
        ss58_address: key.account(),
        crypto_type: 1,
    }))
}

/// The JSON of the public half.
pub(crate) fn public_json(account: AccountId) -> Zeroizing<Vec<u8>> {
    let public = format!("0x{}", hex::encode(account.0));
    json(&Written {
        account_id: &public,
        public_key: &public,
        private_key: None,
        secret_phrase: None,
        secret_seed: None,
        ss58_address: account,
        crypto_type: 1,
    })
}

/// The keys of a JSON keyfile as they are written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    account_id: &'a str,
    public_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_phrase: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_seed: Option<&'a str>,
    ss58_address: AccountId,
    crypto_type: u8,
}

fn json(written: &Written<'_>) -> Zeroizing<Vec<u8>> {
    // Room for the longest: a vector that grows leaves copies behind which nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
    serde_json::to_writer(&mut *bytes, written).expect("strings and numbers are JSON");
    bytes
}

/// The key of a text of 64 or 128 hex digits; none if it is something else.
fn bare_hex(text: &str) -> Result<Option<Key>, Fault> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(None);
    }
    match digits.len() {
        64 => Ok(Some(Key::from_seed(&*hex_bytes("seed", digits)?))),
        128 => Ok(Some(Key::from_private(&*hex_bytes(
            "private key",
            digits,
        )?)?)),
        length => Err(Fault::Damaged {
            what: format!("{length} hex digits, a seed has 64, a private key 128"),
        }),
    }
}

fn hex_bytes<const N: usize>(what: &str, text: &str) -> Result<Zeroizing<[u8; N]>, Fault> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let mut bytes = Zeroizing::new([0; N]);
    hex::decode_to_slice(digits, bytes.as_mut()).map_err(|_| Fault::Damaged {
        what: format!("its {what} is not {} hex digits", 2 * N),
    })?;
    Ok(bytes)
}
