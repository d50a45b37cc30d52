//! Arguments of a method: by position or by name, hex with and without `0x`.

use jsonrpsee::types::{ErrorObjectOwned, Params};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sp_core::crypto::Ss58Codec;

use super::error::bad_params;
use crate::node::executor::{AccountId, Hash};

/// Arguments as they came. A missing one counts as null.
pub(super) enum Args {
    ByPlace(Vec<Value>),
    ByName(serde_json::Map<String, Value>),
}

impl Args {
    pub(super) fn parse(params: &Params<'_>) -> Result<Args, ErrorObjectOwned> {
        match params.parse::<Option<Value>>()? {
            None | Some(Value::Null) => Ok(Args::ByPlace(Vec::new())),
            Some(Value::Array(values)) => Ok(Args::ByPlace(values)),
            Some(Value::Object(values)) => Ok(Args::ByName(values)),
            Some(_) => Err(bad_params("params are neither a list nor an object")),
        }
    }

    /// The argument at `place`, called `name`.
    pub(super) fn value(&self, place: usize, name: &str) -> &Value {
        match self {
            Args::ByPlace(values) => values.get(place),
            Args::ByName(values) => values.get(name),
        }
        .unwrap_or(&Value::Null)
    }

    pub(super) fn get<T: DeserializeOwned>(
        &self,
        place: usize,
        name: &str,
    ) -> Result<T, ErrorObjectOwned> {
        let value = self.value(place, name);
        T::deserialize(value).map_err(|error| bad_params(format!("{name}: {error}")))
    }

    pub(super) fn text(&self, place: usize, name: &str) -> Result<&str, ErrorObjectOwned> {
        self.value(place, name)
            .as_str()
            .ok_or_else(|| bad_params(format!("{name} is not a string")))
    }

    pub(super) fn bytes(&self, place: usize, name: &str) -> Result<Vec<u8>, ErrorObjectOwned> {
        bytes(self.text(place, name)?).ok_or_else(|| bad_params(format!("{name} is not hex")))
    }

    /// A list of byte strings of at most `max` entries.
    pub(super) fn byte_list(
        &self,
        place: usize,
        name: &str,
        max: usize,
    ) -> Result<Vec<Vec<u8>>, ErrorObjectOwned> {
        let values = self
            .value(place, name)
            .as_array()
            .ok_or_else(|| bad_params(format!("{name} is not a list")))?;
        if values.len() > max {
            return Err(bad_params(format!(
                "{name} has {} entries, at most {max} are taken",
                values.len()
            )));
        }
        let entry = |value: &Value| value.as_str().and_then(bytes);
        values
            .iter()
            .map(|value| {
                entry(value)
                    .ok_or_else(|| bad_params(format!("{name} holds something that is not hex")))
            })
            .collect()
    }

    pub(super) fn hash(&self, place: usize, name: &str) -> Result<Option<Hash>, ErrorObjectOwned> {
        let value = self.value(place, name);
        if value.is_null() {
            return Ok(None);
        }
        let hash = value
            .as_str()
            .and_then(bytes)
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        hash.map(|hash| Some(Hash::from(hash)))
            .ok_or_else(|| bad_params(format!("{name} is not a block hash")))
    }

    /// An account: ss58, or 32 bytes in hex.
    pub(super) fn account(&self, place: usize, name: &str) -> Result<AccountId, ErrorObjectOwned> {
        let text = self.text(place, name)?;
        let from_hex = || <[u8; 32]>::try_from(bytes(text)?).ok().map(AccountId::new);
        AccountId::from_ss58check(text)
            .ok()
            .or_else(from_hex)
            .ok_or_else(|| {
                bad_params(format!(
                    "{name} is neither an ss58 address nor 32 bytes in hex"
                ))
            })
    }
}

/// Bytes of hex digits, with or without `0x`.
fn bytes(text: &str) -> Option<Vec<u8>> {
    hex::decode(text.strip_prefix("0x").unwrap_or(text)).ok()
}
