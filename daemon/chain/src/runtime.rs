//! One version of the chain's runtime, as its metadata describes it: names to bytes and back. Opens no socket.

use std::fmt::Display;

use scale_decode::DecodeAsType;
use scale_value::{Composite, Primitive, Value, ValueDef};
use subxt::config::DefaultExtrinsicParamsBuilder;
use subxt::config::substrate::{
    AccountId32, H256, MultiSignature, SpecVersionForRange, SubstrateConfig,
};
use subxt::events::Phase;
use subxt::ext::frame_decode::storage::decode_storage_key;
use subxt::{Metadata, OfflineClient, OfflineClientAtBlock, dynamic};

use crate::error::ChainError;
use crate::key::Key;
use crate::types::{BlockRef, Capabilities};

/// Codec of one runtime version.
pub(crate) struct Runtime {
    pub(crate) spec_version: u32,
    offline: OfflineClientAtBlock<SubstrateConfig>,
}

/// A call by name, with named arguments.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pallet: &'static str,
    name: &'static str,
    arguments: Composite<()>,
}

/// What became of an extrinsic in its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// By name.
    Failed(String),
}

impl Call {
    pub(crate) fn new(
        pallet: &'static str,
        name: &'static str,
        arguments: Vec<(&str, Value)>,
    ) -> Call {
        let named = arguments
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Call {
            pallet,
            name,
            arguments: Composite::named(named),
        }
    }

    /// The same call by root: `Sudo.sudo`.
    pub(crate) fn by_root(self) -> Call {
        let call = Value::variant(self.name, self.arguments);
        Call::new(
            "Sudo",
            "sudo",
            vec![("call", Value::unnamed_variant(self.pallet, [call]))],
        )
    }

    /// `Pallet.call`.
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.pallet, self.name)
    }
}

impl Runtime {
    /// `metadata`: as the node gives it for this version, V14 to V16.
    pub(crate) fn new(
        genesis: [u8; 32],
        spec_version: u32,
        transaction_version: u32,
        metadata: &[u8],
    ) -> Result<Runtime, ChainError> {
        let what = || format!("metadata of runtime version {spec_version}");
        let metadata =
            Metadata::decode_from(metadata).map_err(|error| unreadable(what(), error))?;
        let config = SubstrateConfig::builder()
            .set_genesis_hash(H256(genesis))
            .set_spec_version_for_block_ranges([SpecVersionForRange {
                block_range: 0..u64::MAX,
                spec_version,
                transaction_version,
            }])
            .set_metadata_for_spec_versions([(spec_version, metadata.arc())])
            .build();
        // The block number plays no part: the one version stands for all of them.
        let offline = OfflineClient::new_with_config(config)
            .at_block(0_u32)
            .map_err(|error| unreadable(what(), error))?;
        Ok(Runtime {
            spec_version,
            offline,
        })
    }

    fn metadata(&self) -> &Metadata {
        self.offline.metadata_ref()
    }

    pub(crate) fn has_call(&self, pallet: &str, call: &str) -> bool {
        self.metadata()
            .pallet_by_name(pallet)
            .is_some_and(|pallet| pallet.call_variant_by_name(call).is_some())
    }

    pub(crate) fn has_storage(&self, pallet: &str, item: &str) -> bool {
        let storage = self
            .metadata()
            .pallet_by_name(pallet)
            .and_then(|pallet| pallet.storage());
        storage.is_some_and(|storage| storage.entry_by_name(item).is_some())
    }

    pub(crate) fn has_api(&self, api: &str, method: &str) -> bool {
        self.metadata()
            .runtime_api_trait_by_name(api)
            .is_some_and(|api| api.method_by_name(method).is_some())
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        const SUBTENSOR: &str = "SubtensorModule";
        Capabilities {
            spec_version: self.spec_version,
            register_limit: self.has_call(SUBTENSOR, "register_limit"),
            mechanism_calls: self.has_call(SUBTENSOR, "set_mechanism_weights"),
            timelocked_commits: self.has_call(SUBTENSOR, "commit_timelocked_weights"),
            epoch_state: self.has_storage(SUBTENSOR, "LastEpochBlock"),
            certificates: self.has_call(SUBTENSOR, "serve_axon_tls"),
            metagraph: self.has_api("SubnetInfoRuntimeApi", "get_metagraph"),
            commitments: self.has_call("Commitments", "set_commitment"),
            beacon: self.has_storage("Drand", "BeaconConfig"),
        }
    }

    fn unsupported(&self, what: String) -> ChainError {
        ChainError::Unsupported {
            what,
            spec_version: self.spec_version,
        }
    }

    /// Key of one value (all keys of the map given) or prefix of many (the first ones given).
    pub(crate) fn storage_key(
        &self,
        pallet: &str,
        item: &str,
        keys: Vec<Value>,
    ) -> Result<Vec<u8>, ChainError> {
        if !self.has_storage(pallet, item) {
            return Err(self.unsupported(format!("storage {pallet}.{item}")));
        }
        let what = || format!("key of {pallet}.{item}");
        let storage = self.offline.storage();
        let entry = storage
            .entry(dynamic::storage::<Vec<Value>, Value>(pallet, item))
            .map_err(|error| unwritable(what(), error))?;
        let map_keys = self
            .metadata()
            .pallet_by_name(pallet)
            .and_then(|pallet| pallet.storage())
            .and_then(|storage| storage.entry_by_name(item))
            .map_or(0, |entry| entry.keys().len());
        let key = if keys.len() == map_keys {
            entry.fetch_key(keys)
        } else {
            entry.iter_key(keys)
        };
        key.map_err(|error| unwritable(what(), error))
    }

    /// The last part of a map's key, which every map read here keeps in the clear.
    pub(crate) fn last_key_part(
        &self,
        pallet: &str,
        item: &str,
        key: &[u8],
    ) -> Result<Vec<u8>, ChainError> {
        let what = || format!("key in {pallet}.{item}");
        let metadata = self.metadata();
        let parts = decode_storage_key(pallet, item, &mut &*key, metadata, metadata.types())
            .map_err(|error| unreadable(what(), error))?;
        parts
            .parts()
            .last()
            .and_then(|part| part.value())
            .and_then(|value| key.get(value.range()))
            .map(<[u8]>::to_vec)
            .ok_or_else(|| unreadable(what(), "hashed away"))
    }

    /// Decodes a stored value; an absent one is the item's default, or `None` where it has none.
    pub(crate) fn storage_value<T: DecodeAsType>(
        &self,
        pallet: &str,
        item: &str,
        bytes: Option<&[u8]>,
    ) -> Result<Option<T>, ChainError> {
        let entry = self
            .metadata()
            .pallet_by_name(pallet)
            .and_then(|pallet| pallet.storage())
            .and_then(|storage| storage.entry_by_name(item))
            .ok_or_else(|| self.unsupported(format!("storage {pallet}.{item}")))?;
        let Some(bytes) = bytes.or_else(|| entry.default_value()) else {
            return Ok(None);
        };
        self.decode(entry.value_ty(), bytes, || format!("{pallet}.{item}"))
            .map(Some)
    }

    /// A constant of a pallet.
    pub(crate) fn constant<T: DecodeAsType>(
        &self,
        pallet: &str,
        name: &str,
    ) -> Result<T, ChainError> {
        let constant = self
            .metadata()
            .pallet_by_name(pallet)
            .and_then(|pallet| pallet.constant_by_name(name))
            .ok_or_else(|| self.unsupported(format!("constant {pallet}.{name}")))?;
        self.decode(constant.ty(), constant.value(), || {
            format!("{pallet}.{name}")
        })
    }

    /// Arguments of a runtime API's method.
    pub(crate) fn api_arguments(
        &self,
        api: &str,
        method: &str,
        values: Vec<Value>,
    ) -> Result<Vec<u8>, ChainError> {
        if !self.has_api(api, method) {
            return Err(self.unsupported(format!("runtime API {api}.{method}")));
        }
        let payload = dynamic::runtime_api_call::<Vec<Value>, Value>(api, method, values);
        self.offline
            .runtime_apis()
            .encode_args(payload)
            .map_err(|error| unwritable(format!("arguments of {api}.{method}"), error))
    }

    /// Result of a runtime API's method.
    pub(crate) fn api_result<T: DecodeAsType>(
        &self,
        api: &str,
        method: &str,
        bytes: &[u8],
    ) -> Result<T, ChainError> {
        let output = self
            .metadata()
            .runtime_api_trait_by_name(api)
            .and_then(|api| api.method_by_name(method))
            .map(|method| method.output_ty())
            .ok_or_else(|| self.unsupported(format!("runtime API {api}.{method}")))?;
        self.decode(output, bytes, || format!("{api}.{method}"))
    }

    fn decode<T: DecodeAsType>(
        &self,
        type_id: u32,
        mut bytes: &[u8],
        what: impl Fn() -> String,
    ) -> Result<T, ChainError> {
        let value = T::decode_as_type(&mut bytes, type_id, self.metadata().types())
            .map_err(|error| unreadable(what(), error))?;
        if bytes.is_empty() {
            Ok(value)
        } else {
            Err(unreadable(
                what(),
                format!("{} bytes too many", bytes.len()),
            ))
        }
    }

    /// A signed version 4 extrinsic, mortal: good for `era_blocks` blocks from `checkpoint` on.
    pub(crate) fn sign(
        &self,
        call: &Call,
        key: &Key,
        nonce: u64,
        checkpoint: &BlockRef,
        era_blocks: u64,
    ) -> Result<Vec<u8>, ChainError> {
        if !self.has_call(call.pallet, call.name) {
            return Err(self.unsupported(format!("call {}", call.path())));
        }
        let payload = dynamic::transaction(call.pallet, call.name, call.arguments.clone());
        let extensions = DefaultExtrinsicParamsBuilder::<SubstrateConfig>::new()
            .nonce(nonce)
            .mortal_from_unchecked(era_blocks, checkpoint.number, H256(checkpoint.hash))
            .build();
        let mut signable = self
            .offline
            .transactions()
            .create_v4_signable_offline(&payload, extensions)
            .map_err(|error| unwritable(call.path(), error))?;
        let message = signable
            .signer_payload()
            .map_err(|error| unwritable(call.path(), error))?;
        let signature = MultiSignature::Sr25519(key.sign(&message));
        let account = AccountId32(key.account().0);
        let signed = signable
            .sign_with_account_and_signature(&account, &signature)
            .map_err(|error| unwritable(call.path(), error))?;
        Ok(signed.encoded().to_vec())
    }

    /// What the events of a block say about its extrinsic at `index`. The runtime must be the one that executed the
    /// block. A root call that failed inside counts as failed.
    pub(crate) fn outcome(&self, events: Vec<u8>, index: u32) -> Result<Outcome, ChainError> {
        let events = self.offline.events().from_bytes(events);
        let mut seen = false;
        for event in events.iter() {
            let event = event.map_err(|error| unreadable("events".to_owned(), error))?;
            if event.phase() != Phase::ApplyExtrinsic(index) {
                continue;
            }
            let field = match (event.pallet_name(), event.event_name()) {
                ("System", "ExtrinsicSuccess") => {
                    seen = true;
                    continue;
                }
                ("System", "ExtrinsicFailed") => "dispatch_error",
                ("Sudo", "Sudid") => "sudo_result",
                _ => continue,
            };
            let fields: Composite<()> = event
                .decode_fields_unchecked_as()
                .map_err(|error| unreadable("events".to_owned(), error))?;
            let value = named(&fields, field)
                .ok_or_else(|| unreadable(format!("event field {field}"), "absent"))?;
            if let Some(name) = self.failure_name(value) {
                return Ok(Outcome::Failed(name));
            }
        }
        if seen {
            Ok(Outcome::Done)
        } else {
            Err(unreadable(format!("events of extrinsic {index}"), "absent"))
        }
    }

    /// Name of the error in a `DispatchError`, or in a `Result<(), DispatchError>`; `None` for `Ok`.
    fn failure_name(&self, value: &Value) -> Option<String> {
        let ValueDef::Variant(variant) = &value.value else {
            return Some("a failure of unknown form".to_owned());
        };
        let inner = variant.values.values().next();
        match (variant.name.as_str(), inner) {
            ("Ok", _) => None,
            ("Err", Some(error)) => self.failure_name(error),
            ("Module", Some(module)) => Some(self.module_error_name(module)),
            // Errors of the balances' and arithmetic kind carry their name one level down.
            ("Token" | "Arithmetic" | "Transactional" | "Trie", Some(kind)) => match &kind.value {
                ValueDef::Variant(kind) => Some(kind.name.clone()),
                ValueDef::Composite(_) | ValueDef::BitSequence(_) | ValueDef::Primitive(_) => {
                    Some(variant.name.clone())
                }
            },
            (name, _) => Some(name.to_owned()),
        }
    }

    /// Name of a pallet's error, from (pallet index, error index); the indices themselves if this runtime names none.
    fn module_error_name(&self, module: &Value) -> String {
        let (Some(pallet), Some(error)) = (byte(module, "index"), byte(module, "error")) else {
            return "a pallet's error of unknown form".to_owned();
        };
        self.metadata()
            .pallet_by_error_index(pallet)
            .and_then(|pallet| pallet.error_variant_by_index(error))
            .map_or_else(
                || format!("error {error} of pallet {pallet}"),
                |variant| variant.name.clone(),
            )
    }
}

fn named<'a>(fields: &'a Composite<()>, name: &str) -> Option<&'a Value> {
    match fields {
        Composite::Named(fields) => fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value),
        Composite::Unnamed(_) => None,
    }
}

/// The number, or first of the numbers, in a named field: an error is a byte followed by bytes that are zero here.
fn byte(value: &Value, field: &str) -> Option<u8> {
    let ValueDef::Composite(fields) = &value.value else {
        return None;
    };
    first_number(named(fields, field)?)
}

fn first_number(value: &Value) -> Option<u8> {
    match &value.value {
        ValueDef::Primitive(Primitive::U128(number)) => u8::try_from(*number).ok(),
        ValueDef::Composite(inner) => first_number(inner.values().next()?),
        ValueDef::Primitive(_) | ValueDef::Variant(_) | ValueDef::BitSequence(_) => None,
    }
}

pub(crate) fn unreadable(what: String, reason: impl Display) -> ChainError {
    ChainError::Decode {
        what,
        reason: reason.to_string(),
    }
}

fn unwritable(what: String, reason: impl Display) -> ChainError {
    ChainError::Encode {
        what,
        reason: reason.to_string(),
    }
}
