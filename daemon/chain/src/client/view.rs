//! The state of the chain after one block, read by name.

use std::collections::HashMap;
use std::sync::Arc;

use scale_decode::DecodeAsType;
use scale_value::Value;
use serde::Deserialize;
use serde_json::json;

use crate::account::AccountId;
use crate::error::ChainError;
use crate::link::Link;
use crate::runtime::{Runtime, unreadable};

/// Words with which nodes say that they do not have a block, or no longer its state. Their code, 4003, has other meanings.
const STATE_GONE_WORDS: [&str; 3] = ["UnknownBlock", "Unknown block", "discarded"];

/// One block's state and the runtime that describes it.
pub(super) struct View {
    pub(super) link: Link,
    pub(super) runtime: Arc<Runtime>,
    pub(super) block: [u8; 32],
}

/// Stored bytes of several items, decoded on demand.
pub(super) struct Batch<'a> {
    runtime: &'a Runtime,
    values: HashMap<(&'static str, &'static str), Vec<u8>>,
}

impl Batch<'_> {
    /// An item's value, or its default.
    pub(super) fn value<T: DecodeAsType>(
        &self,
        pallet: &'static str,
        item: &'static str,
    ) -> Result<T, ChainError> {
        let bytes = self.values.get(&(pallet, item)).map(Vec::as_slice);
        let value = self.runtime.storage_value(pallet, item, bytes)?;
        value.ok_or_else(|| unreadable(format!("{pallet}.{item}"), "absent"))
    }
}

#[derive(Deserialize)]
struct ChangeSet {
    changes: Vec<(String, Option<String>)>,
}

impl View {
    /// A stored value, or the item's default. One request.
    pub(super) async fn value<T: DecodeAsType>(
        &self,
        pallet: &str,
        item: &str,
        keys: Vec<Value>,
    ) -> Result<T, ChainError> {
        self.find(pallet, item, keys)
            .await?
            .ok_or_else(|| unreadable(format!("{pallet}.{item}"), "absent"))
    }

    /// A stored value, the item's default, or `None` if it has none. One request.
    pub(super) async fn find<T: DecodeAsType>(
        &self,
        pallet: &str,
        item: &str,
        keys: Vec<Value>,
    ) -> Result<Option<T>, ChainError> {
        let key = self.runtime.storage_key(pallet, item, keys)?;
        let bytes = storage_bytes(&self.link, &key, &self.block).await?;
        self.runtime.storage_value(pallet, item, bytes.as_deref())
    }

    /// A value of an item that not every runtime has.
    pub(super) async fn optional<T: DecodeAsType>(
        &self,
        pallet: &str,
        item: &str,
        keys: Vec<Value>,
    ) -> Result<Option<T>, ChainError> {
        if self.runtime.has_storage(pallet, item) {
            self.find(pallet, item, keys).await
        } else {
            Ok(None)
        }
    }

    /// The values of several items of one map key, in one request: see [`Batch`].
    pub(super) async fn batch(
        &self,
        items: &[(&'static str, &'static str)],
        key: Value,
    ) -> Result<Batch<'_>, ChainError> {
        let mut places = HashMap::new();
        for &(pallet, item) in items {
            let key = self.runtime.storage_key(pallet, item, vec![key.clone()])?;
            places.insert(key, (pallet, item));
        }
        let keys: Vec<String> = places.keys().map(|key| hexadecimal(key)).collect();
        let params = vec![json!(keys), json!(hexadecimal(&self.block))];
        let changes: Vec<ChangeSet> = self.request("state_queryStorageAt", params).await?;
        let mut values = HashMap::new();
        for (key, value) in changes.into_iter().flat_map(|set| set.changes) {
            let place = bytes(&key).and_then(|key| places.get(&key).copied());
            if let (Some(place), Some(value)) = (place, value) {
                let value = bytes(&value).ok_or_else(|| {
                    unreadable(format!("{}.{}", place.0, place.1), "not hexadecimal")
                })?;
                values.insert(place, value);
            }
        }
        Ok(Batch {
            runtime: &self.runtime,
            values,
        })
    }

    /// All entries of a map below a prefix of its keys: the last part of each key, and the value. In the order of the
    /// keys' bytes. Two requests per page, and one more.
    pub(super) async fn entries<T: DecodeAsType>(
        &self,
        pallet: &str,
        item: &str,
        prefix: Vec<Value>,
    ) -> Result<Vec<(Vec<u8>, T)>, ChainError> {
        let settings = self.link.settings();
        let what = || format!("map {pallet}.{item}");
        let prefix = hexadecimal(&self.runtime.storage_key(pallet, item, prefix)?);
        let block = hexadecimal(&self.block);
        let mut entries = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let params = vec![
                json!(prefix),
                json!(settings.page_keys),
                json!(after),
                json!(block),
            ];
            let keys: Vec<String> = self.request("state_getKeysPaged", params).await?;
            // Nodes may cap a page below what was asked: only an empty one ends the map.
            let Some(last) = keys.last().cloned() else {
                return Ok(entries);
            };
            // A page out of order, or a key of elsewhere, would keep us here for ever.
            if after.as_ref().is_some_and(|after| *after >= last)
                || keys.iter().any(|key| !key.starts_with(&prefix))
            {
                return Err(unreadable(what(), "keys out of order"));
            }
            let changes: Vec<ChangeSet> = self
                .request("state_queryStorageAt", vec![json!(keys), json!(block)])
                .await?;
            for (key, value) in changes.into_iter().flat_map(|set| set.changes) {
                let Some(value) = value else { continue };
                let key = bytes(&key)
                    .ok_or_else(|| unreadable(what(), "a key that is not hexadecimal"))?;
                let value = bytes(&value)
                    .ok_or_else(|| unreadable(what(), "a value that is not hexadecimal"))?;
                let part = self.runtime.last_key_part(pallet, item, &key)?;
                if let Some(value) = self.runtime.storage_value(pallet, item, Some(&value))? {
                    entries.push((part, value));
                }
            }
            if entries.len() > settings.entries_max {
                return Err(unreadable(
                    what(),
                    format!("more than {} entries", settings.entries_max),
                ));
            }
            after = Some(last);
        }
    }

    /// The answer of a runtime API. One request.
    pub(super) async fn api<T: DecodeAsType>(
        &self,
        api: &str,
        method: &str,
        arguments: Vec<Value>,
    ) -> Result<T, ChainError> {
        let arguments = hexadecimal(&self.runtime.api_arguments(api, method, arguments)?);
        let params = vec![
            json!(format!("{api}_{method}")),
            json!(arguments),
            json!(hexadecimal(&self.block)),
        ];
        let answer: String = self.request("state_call", params).await?;
        let answer = bytes(&answer)
            .ok_or_else(|| unreadable(format!("answer of {api}.{method}"), "not hexadecimal"))?;
        self.runtime.api_result(api, method, &answer)
    }

    async fn request<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        params: Vec<serde_json::Value>,
    ) -> Result<T, ChainError> {
        self.link
            .request(method, params)
            .await
            .map_err(|error| gone(error, &self.block))
    }
}

/// The bytes under a storage key after a block.
pub(super) async fn storage_bytes(
    link: &Link,
    key: &[u8],
    block: &[u8; 32],
) -> Result<Option<Vec<u8>>, ChainError> {
    let params = vec![json!(hexadecimal(key)), json!(hexadecimal(block))];
    let value: Option<String> = link
        .request("state_getStorage", params)
        .await
        .map_err(|error| gone(error, block))?;
    match value {
        Some(text) => bytes(&text)
            .map(Some)
            .ok_or_else(|| unreadable("stored value".to_owned(), "not hexadecimal")),
        None => Ok(None),
    }
}

/// Tells a node that lacks the state from a node that failed.
pub(super) fn gone(error: ChainError, block: &[u8; 32]) -> ChainError {
    match &error {
        ChainError::Node { message, .. }
            if STATE_GONE_WORDS.iter().any(|words| message.contains(words)) =>
        {
            ChainError::StateGone { block: *block }
        }
        _ => error,
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

/// Reads hexadecimal text, with or without "0x".
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    hex::decode(text.strip_prefix("0x").unwrap_or(text)).ok()
}

/// An account as an argument or a key.
pub(super) fn account(account: &AccountId) -> Value {
    Value::from_bytes(account.0)
}

/// A number as an argument or a key.
pub(super) fn number(number: impl Into<u128>) -> Value {
    Value::u128(number.into())
}
