//! Addresses of accounts.
//!
//! An account is a 32-byte public key; its text form is SS58 with network prefix 42 (subtensor's, and the generic one of
//! Substrate): base58 of `[42] ++ key ++ checksum`, where the checksum is the first two bytes of
//! `BLAKE2b-512("SS58PRE" ++ [42] ++ key)`.

use std::fmt;
use std::str::FromStr;

use blake2::{Blake2b512, Digest};
use serde::{Deserialize, Serialize};

/// Network prefix of every address here.
pub const SS58_PREFIX: u8 = 42;

const CHECKSUM_CONTEXT: &[u8] = b"SS58PRE";
const CHECKSUM_BYTES: usize = 2;

/// An account on chain, named by its sr25519 public key. Ordered bytewise; shown, parsed and serialized as SS58.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct AccountId(pub [u8; 32]);

/// What is wrong with the text of an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A character outside the base58 alphabet, or nothing at all.
    #[error("address {0:?} is not base58 text")]
    NotBase58(String),
    /// An address of another shape, such as a truncated one.
    #[error("address {address:?} decodes to {bytes} bytes, an account of network 42 has 35")]
    Length {
        /// The text as given.
        address: String,
        /// Its decoded length.
        bytes: usize,
    },
    /// A sound address of another network.
    #[error("address {address:?} belongs to network {network}, subtensor's is 42")]
    Network {
        /// The text as given.
        address: String,
        /// The one-byte prefix that it carries.
        network: u8,
    },
    /// One or more characters are mistyped.
    #[error("address {0:?} has a wrong checksum: a character is mistyped")]
    Checksum(String),
}

impl AccountId {
    /// The checksum bytes of an address of this account.
    fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let digest = Blake2b512::new()
            .chain_update(CHECKSUM_CONTEXT)
            .chain_update(payload)
            .finalize();
        [digest[0], digest[1]]
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(1 + 32 + CHECKSUM_BYTES);
        bytes.push(SS58_PREFIX);
        bytes.extend_from_slice(&self.0);
        bytes.extend_from_slice(&AccountId::checksum(&bytes));
        f.pad(&bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AccountId {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<AccountId, AddressError> {
        // Longer than any account address; keeps the quadratic base58 decoder off long input.
        const TEXT_BYTES_MAX: usize = 64;
        let address = || text.chars().take(TEXT_BYTES_MAX).collect::<String>();
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return Err(AddressError::NotBase58(address()));
        }
        let bytes = bs58::decode(text)
            .into_vec()
            .map_err(|_| AddressError::NotBase58(address()))?;
        let Ok(bytes) = <[u8; 1 + 32 + CHECKSUM_BYTES]>::try_from(bytes.as_slice()) else {
            return Err(AddressError::Length {
                address: address(),
                bytes: bytes.len(),
            });
        };
        let (payload, checksum) = bytes.split_at(1 + 32);
        if AccountId::checksum(payload) != checksum {
            return Err(AddressError::Checksum(address()));
        }
        let (network, key) = (payload[0], &payload[1..]);
        if network != SS58_PREFIX {
            return Err(AddressError::Network {
                address: address(),
                network,
            });
        }
        let mut account = [0; 32];
        account.copy_from_slice(key);
        Ok(AccountId(account))
    }
}

impl From<AccountId> for String {
    fn from(account: AccountId) -> String {
        account.to_string()
    }
}

impl TryFrom<String> for AccountId {
    type Error = AddressError;

    fn try_from(text: String) -> Result<AccountId, AddressError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
    const ALICE_KEY: &str = "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";

    #[test]
    fn an_address_and_its_bytes_are_two_forms_of_one_account() {
        let account: AccountId = ALICE.parse().unwrap();
        assert_eq!(hex::encode(account.0), ALICE_KEY);
        assert_eq!(account.to_string(), ALICE);
        assert_eq!(format!("{account:?}"), ALICE);
        assert_eq!(
            serde_json::to_string(&account).unwrap(),
            format!("{ALICE:?}")
        );
        assert_eq!(
            serde_json::from_str::<AccountId>(&format!("{ALICE:?}")).unwrap(),
            account
        );
    }

    #[test]
    fn each_fault_of_an_address_is_named() {
        let swapped = ALICE.replacen("Gr", "rG", 1);
        assert_eq!(
            swapped.parse::<AccountId>(),
            Err(AddressError::Checksum(swapped.clone()))
        );
        for text in [
            "",
            "0OIl",
            &"5".repeat(65),
            "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQé",
        ] {
            assert!(
                matches!(text.parse::<AccountId>(), Err(AddressError::NotBase58(_))),
                "{text}"
            );
        }
        let short = &ALICE[..40];
        assert!(matches!(
            short.parse::<AccountId>(),
            Err(AddressError::Length { bytes: 29 | 30, .. })
        ));
        // //Alice on Polkadot (prefix 0).
        let polkadot = "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5";
        assert!(matches!(
            polkadot.parse::<AccountId>(),
            Err(AddressError::Network { network: 0, .. })
        ));
    }

    #[test]
    fn no_single_changed_character_gives_another_account() {
        let account: AccountId = ALICE.parse().unwrap();
        for place in 0..ALICE.len() {
            for letter in ['1', '9', 'A', 'Z', 'a', 'z'] {
                let mut text: Vec<char> = ALICE.chars().collect();
                text[place] = letter;
                let text: String = text.into_iter().collect();
                if text != ALICE {
                    assert_ne!(text.parse::<AccountId>(), Ok(account));
                }
            }
        }
    }
}
