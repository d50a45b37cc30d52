//! Holds the runtime's own metadata against finney's.
//!
//! `data/finney-365.txt` is what finney has; `data/used.txt` is what gradmesh's client uses or may use of it. Each line of
//! the second must stand in the first, and this runtime must say of it, in metadata V14, V15 and V16, exactly what finney
//! says. The metadata is printed in the form of the data file, so that a difference reads as two lines.

use std::collections::BTreeMap;

use codec::{Decode, Encode};
use frame_metadata::{RuntimeMetadata, RuntimeMetadataPrefixed, v14, v15, v16};
use gradmesh_devchain::runtime::apis::api;
use scale_info::{Field, PortableRegistry, TypeDef, TypeDefPrimitive, form::PortableForm};
use sp_core::OpaqueMetadata;
use sp_state_machine::BasicExternalities;

const FINNEY: &str = include_str!("data/finney-365.txt");
const USED: &str = include_str!("data/used.txt");

/// Levels of type parameters that are written out.
const TYPE_DEPTH_MAX: u32 = 3;
/// Bytes of a default value that are written out.
const DEFAULT_BYTES_MAX: usize = 24;

/// Facts by kind and name (`CALL SubtensorModule.set_weights`), each with the rest of its line.
type Facts = BTreeMap<String, String>;

fn add(facts: &mut Facts, kind: &str, name: &str, rest: String) {
    let key = format!("{kind} {name}");
    if let Some(before) = facts.insert(key.clone(), rest.clone()) {
        assert_eq!(before, rest, "{key} is there twice, with different content");
    }
}

/// Lines of a data file without comments and blank lines.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn finney() -> Facts {
    let mut facts = Facts::new();
    for line in lines(FINNEY) {
        let (kind, rest) = line.split_once(' ').expect("a line has a kind and a name");
        let (name, rest) = rest
            .split_once(' ')
            .expect("a line has content after its name");
        add(&mut facts, kind, name, rest.to_owned());
    }
    facts
}

/// A type's name as the data file writes it.
fn type_name(types: &PortableRegistry, id: u32, depth: u32) -> String {
    if depth >= TYPE_DEPTH_MAX {
        return "_".to_owned();
    }
    let ty = types.resolve(id).expect("metadata holds its types");
    let name = |id: u32| type_name(types, id, depth);
    match &ty.type_def {
        TypeDef::Primitive(primitive) => match primitive {
            TypeDefPrimitive::Bool => "bool",
            TypeDefPrimitive::Char => "char",
            TypeDefPrimitive::Str => "str",
            TypeDefPrimitive::U8 => "u8",
            TypeDefPrimitive::U16 => "u16",
            TypeDefPrimitive::U32 => "u32",
            TypeDefPrimitive::U64 => "u64",
            TypeDefPrimitive::U128 => "u128",
            TypeDefPrimitive::U256 => "u256",
            TypeDefPrimitive::I8 => "i8",
            TypeDefPrimitive::I16 => "i16",
            TypeDefPrimitive::I32 => "i32",
            TypeDefPrimitive::I64 => "i64",
            TypeDefPrimitive::I128 => "i128",
            TypeDefPrimitive::I256 => "i256",
        }
        .to_owned(),
        TypeDef::Compact(compact) => format!("Compact<{}>", name(compact.type_param.id)),
        TypeDef::Sequence(sequence) => format!("Vec<{}>", name(sequence.type_param.id)),
        TypeDef::Array(array) => format!("[{};{}]", name(array.type_param.id), array.len),
        TypeDef::Tuple(tuple) => format!(
            "({})",
            joined(tuple.fields.iter().map(|field| name(field.id)), ",")
        ),
        TypeDef::BitSequence(_) => "BitSequence".to_owned(),
        TypeDef::Composite(_) | TypeDef::Variant(_) => {
            let last = ty
                .path
                .segments
                .last()
                .expect("a composite type has a path")
                .clone();
            let params: Vec<String> = ty
                .type_params
                .iter()
                .filter_map(|param| param.ty.map(|ty| type_name(types, ty.id, depth + 1)))
                .collect();
            // The extrinsic's parameters are the subject of the EXTENSION facts.
            if params.is_empty() || last == "UncheckedExtrinsic" {
                last
            } else {
                format!("{last}<{}>", params.join(","))
            }
        }
    }
}

fn joined(parts: impl Iterator<Item = String>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}

/// Fields by name, as arguments of a call or fields of a struct.
fn named(types: &PortableRegistry, fields: &[Field<PortableForm>]) -> String {
    let field = |field: &Field<PortableForm>| {
        format!(
            "{}: {}",
            field.name.as_deref().unwrap_or(""),
            type_name(types, field.ty.id, 0)
        )
    };
    joined(fields.iter().map(field), ", ")
}

fn hex_of(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

fn storage_text(
    types: &PortableRegistry,
    entry: &v14::StorageEntryMetadata<PortableForm>,
) -> String {
    storage_line(types, &entry.ty, &entry.modifier, &entry.default)
}

fn storage_line(
    types: &PortableRegistry,
    ty: &v14::StorageEntryType<PortableForm>,
    modifier: &v14::StorageEntryModifier,
    default: &[u8],
) -> String {
    let default = hex_of(&default[..default.len().min(DEFAULT_BYTES_MAX)]);
    match ty {
        v14::StorageEntryType::Plain(value) => {
            format!(
                "-> {} {modifier:?} default={default}",
                type_name(types, value.id, 0)
            )
        }
        v14::StorageEntryType::Map {
            hashers,
            key,
            value,
        } => {
            let hashers = joined(hashers.iter().map(|hasher| format!("{hasher:?}")), ", ");
            let (key, value) = (type_name(types, key.id, 0), type_name(types, value.id, 0));
            format!("map [{hashers}] key={key} -> {value} {modifier:?} default={default}")
        }
    }
}

/// Calls and errors of a pallet: the variants of an enum.
fn add_variants(facts: &mut Facts, types: &PortableRegistry, kind: &str, pallet: &str, id: u32) {
    let TypeDef::Variant(variants) = &types
        .resolve(id)
        .expect("metadata holds its types")
        .type_def
    else {
        panic!("the {kind} type of {pallet} is no enum");
    };
    for variant in &variants.variants {
        let rest = match kind {
            "CALL" => format!("[{}] ({})", variant.index, named(types, &variant.fields)),
            "ERROR" => format!("= {}", variant.index),
            other => panic!("{other} has no variants"),
        };
        add(facts, kind, &format!("{pallet}.{}", variant.name), rest);
    }
}

/// Structs and enums by the last part of their path.
fn add_types(facts: &mut Facts, types: &PortableRegistry, wanted: &Facts) {
    for ty in &types.types {
        let Some(name) = ty.ty.path.segments.last() else {
            continue;
        };
        let key = format!("TYPE {name}");
        if !wanted.contains_key(&key) {
            continue;
        }
        let rest = match &ty.ty.type_def {
            TypeDef::Composite(composite) => {
                format!("struct {{ {} }}", named(types, &composite.fields))
            }
            TypeDef::Variant(variants) => {
                let variant = |variant: &scale_info::Variant<PortableForm>| {
                    let fields = joined(
                        variant
                            .fields
                            .iter()
                            .map(|field| type_name(types, field.ty.id, 0)),
                        ",",
                    );
                    format!("{}={}({fields})", variant.name, variant.index)
                };
                format!(
                    "enum {{ {} }}",
                    joined(variants.variants.iter().map(variant), " | ")
                )
            }
            other => panic!("{name} is neither struct nor enum but {other:?}"),
        };
        add(facts, "TYPE", name, rest);
    }
}

/// Facts of the pallets, which all versions of metadata name alike.
macro_rules! pallet_facts {
    ($metadata:expr, $storage_text:expr) => {{
        let (mut facts, types) = (Facts::new(), &$metadata.types);
        for pallet in &$metadata.pallets {
            add(&mut facts, "PALLET", &pallet.name, pallet.index.to_string());
            if let Some(calls) = &pallet.calls {
                add_variants(&mut facts, types, "CALL", &pallet.name, calls.ty.id);
            }
            if let Some(error) = &pallet.error {
                add_variants(&mut facts, types, "ERROR", &pallet.name, error.ty.id);
            }
            for entry in pallet.storage.iter().flat_map(|storage| &storage.entries) {
                add(
                    &mut facts,
                    "STORAGE",
                    &format!("{}.{}", pallet.name, entry.name),
                    $storage_text(types, entry),
                );
            }
            for constant in &pallet.constants {
                let rest = format!(
                    "{} = {}",
                    type_name(types, constant.ty.id, 0),
                    hex_of(&constant.value)
                );
                add(
                    &mut facts,
                    "CONST",
                    &format!("{}.{}", pallet.name, constant.name),
                    rest,
                );
            }
        }
        add_types(&mut facts, types, &finney());
        facts
    }};
}

/// Facts of the runtime APIs.
macro_rules! api_facts {
    ($facts:expr, $metadata:expr) => {
        for api in &$metadata.apis {
            for method in &api.methods {
                let types = &$metadata.types;
                let input =
                    |input: String, ty: u32| format!("{input}: {}", type_name(types, ty, 0));
                let inputs = joined(
                    method
                        .inputs
                        .iter()
                        .map(|param| input(param.name.clone(), param.ty.id)),
                    ", ",
                );
                let rest = format!("({inputs}) -> {}", type_name(types, method.output.id, 0));
                add(
                    $facts,
                    "API",
                    &format!("{}_{}", api.name, method.name),
                    rest,
                );
            }
        }
    };
}

fn add_extension(
    facts: &mut Facts,
    types: &PortableRegistry,
    place: usize,
    identifier: &str,
    ty: u32,
    implicit: u32,
) {
    let (ty, implicit) = (type_name(types, ty, 0), type_name(types, implicit, 0));
    add(
        facts,
        "EXTENSION",
        &place.to_string(),
        format!("{identifier} {ty} ({implicit})"),
    );
}

fn facts_v14(metadata: &v14::RuntimeMetadataV14) -> Facts {
    let mut facts = pallet_facts!(metadata, storage_text);
    for (place, extension) in metadata.extrinsic.signed_extensions.iter().enumerate() {
        let (ty, implicit) = (extension.ty.id, extension.additional_signed.id);
        add_extension(
            &mut facts,
            &metadata.types,
            place,
            &extension.identifier,
            ty,
            implicit,
        );
    }
    facts
}

fn facts_v15(metadata: &v15::RuntimeMetadataV15) -> Facts {
    let mut facts = pallet_facts!(metadata, storage_text);
    for (place, extension) in metadata.extrinsic.signed_extensions.iter().enumerate() {
        let (ty, implicit) = (extension.ty.id, extension.additional_signed.id);
        add_extension(
            &mut facts,
            &metadata.types,
            place,
            &extension.identifier,
            ty,
            implicit,
        );
    }
    api_facts!(&mut facts, metadata);
    facts
}

fn facts_v16(metadata: &v16::RuntimeMetadataV16) -> Facts {
    let storage_text = |types: &PortableRegistry,
                        entry: &v16::StorageEntryMetadata<PortableForm>| {
        storage_line(types, &entry.ty, &entry.modifier, &entry.default)
    };
    let mut facts = pallet_facts!(metadata, storage_text);
    for (place, extension) in metadata.extrinsic.transaction_extensions.iter().enumerate() {
        let (ty, implicit) = (extension.ty.id, extension.implicit.id);
        add_extension(
            &mut facts,
            &metadata.types,
            place,
            &extension.identifier,
            ty,
            implicit,
        );
    }
    api_facts!(&mut facts, metadata);
    facts
}

/// The runtime's metadata of a version, asked for as a client does.
fn metadata(version: u32) -> RuntimeMetadata {
    let answer = BasicExternalities::default()
        .execute_with(|| api::dispatch("Metadata_metadata_at_version", &version.encode()))
        .expect("the runtime has this API");
    let opaque = Option::<OpaqueMetadata>::decode(&mut &answer[..]).expect("the answer decodes");
    let bytes: Vec<u8> = opaque
        .unwrap_or_else(|| panic!("the runtime has metadata V{version}"))
        .to_vec();
    RuntimeMetadataPrefixed::decode(&mut &bytes[..])
        .expect("metadata decodes")
        .1
}

fn ours(version: u32) -> Facts {
    match metadata(version) {
        RuntimeMetadata::V14(metadata) => facts_v14(&metadata),
        RuntimeMetadata::V15(metadata) => facts_v15(&metadata),
        RuntimeMetadata::V16(metadata) => facts_v16(&metadata),
        other => panic!("asked for V{version}, got V{}", other.version()),
    }
}

/// Differences between what finney and `ours` say of the used items whose kind is none of `without`.
fn differences(ours: &Facts, without: &[&str]) -> Vec<String> {
    let finney = finney();
    lines(USED)
        .filter(|key| !without.iter().any(|kind| key.starts_with(kind)))
        .filter(|key| ours.get(*key) != finney.get(*key))
        .map(|key| {
            let of = |facts: &Facts| {
                facts
                    .get(key)
                    .cloned()
                    .unwrap_or_else(|| "nothing".to_owned())
            };
            format!("{key}\n  finney: {}\n  here:   {}", of(&finney), of(ours))
        })
        .collect()
}

fn assert_none(differences: &[String]) {
    assert!(
        differences.is_empty(),
        "{} differences\n{}",
        differences.len(),
        differences.join("\n")
    );
}

#[test]
fn every_used_item_is_among_the_facts_once() {
    let finney = finney();
    let mut seen = std::collections::BTreeSet::new();
    for key in lines(USED) {
        assert!(
            finney.contains_key(key),
            "{key} is used, but the data file does not have it"
        );
        assert!(seen.insert(key), "{key} is listed twice");
    }
    for kind in [
        "PALLET",
        "EXTENSION",
        "CALL",
        "STORAGE",
        "CONST",
        "ERROR",
        "API",
        "TYPE",
    ] {
        assert!(
            seen.iter().any(|key| key.starts_with(kind)),
            "no {kind} is used"
        );
    }
}

#[test]
fn used_items_are_finneys_in_metadata_v16() {
    assert_none(&differences(&ours(16), &[]));
}

#[test]
fn used_items_are_finneys_in_metadata_v15() {
    assert_none(&differences(&ours(15), &[]));
}

#[test]
fn used_items_are_finneys_in_metadata_v14() {
    // V14 has no runtime APIs, and so not the types that only they name.
    let types_of_apis = [
        "API",
        "TYPE NeuronInfoLite",
        "TYPE SubnetHyperparams",
        "TYPE Metagraph",
    ];
    assert_none(&differences(&ours(14), &types_of_apis));
}

#[test]
fn extensions_are_finneys_and_no_more() {
    let of = |facts: &Facts| -> Facts {
        facts
            .iter()
            .filter(|(key, _)| key.starts_with("EXTENSION"))
            .map(|(key, rest)| (key.clone(), rest.clone()))
            .collect()
    };
    assert_eq!(of(&ours(16)), of(&finney()));
}

#[test]
fn extrinsics_are_of_versions_4_and_5_with_all_extensions() {
    let RuntimeMetadata::V16(metadata) = metadata(16) else {
        panic!("not V16")
    };
    assert_eq!(metadata.extrinsic.versions, [4, 5]);
    let count =
        u32::try_from(metadata.extrinsic.transaction_extensions.len()).expect("few extensions");
    let all: Vec<codec::Compact<u32>> = (0..count).map(codec::Compact).collect();
    assert_eq!(
        metadata.extrinsic.transaction_extensions_by_version.get(&0),
        Some(&all)
    );
}

#[test]
fn every_pallet_here_has_finneys_index() {
    let finney = finney();
    for (key, index) in ours(16).iter().filter(|(key, _)| key.starts_with("PALLET")) {
        assert_eq!(finney.get(key), Some(index), "{key}");
    }
}

mod bytes {
    //! Bytes that other programs make or expect, from finney.

    use codec::Encode;
    use frame_support::{BoundedVec, StorageHasher, Twox128};
    use gradmesh_devchain::{
        commitments::{self, CommitmentInfo, Data},
        genesis::Genesis,
        runtime::{
            AccountId, Runtime, RuntimeCall, TxExtension, UncheckedExtrinsic,
            extensions::CheckNonce,
        },
        subtensor,
    };
    use sp_core::H256;
    use sp_runtime::{
        MultiSignature,
        generic::{Era, SignedPayload},
    };
    use sp_state_machine::BasicExternalities;

    /// What extrinsics carry, with an era, a nonce and a tip that show in the bytes.
    fn extension(era: Era) -> TxExtension {
        (
            frame_system::CheckNonZeroSender::new(),
            frame_system::CheckSpecVersion::new(),
            frame_system::CheckTxVersion::new(),
            frame_system::CheckGenesis::new(),
            frame_system::CheckMortality::from(era),
            CheckNonce(5),
            frame_system::CheckWeight::new(),
            pallet_transaction_payment::ChargeTransactionPayment::<Runtime>::from(7),
            Default::default(),
            Default::default(),
            Default::default(),
            frame_metadata_hash_extension::CheckMetadataHash::new(false),
        )
    }

    /// A short call, and its bytes.
    fn remark() -> (RuntimeCall, Vec<u8>) {
        (
            RuntimeCall::System(frame_system::Call::remark { remark: vec![9] }),
            vec![0, 0, 4, 9],
        )
    }

    #[test]
    fn signed_payload() {
        BasicExternalities::new(Genesis::default().storage()).execute_with(|| {
            let (genesis, era_block) = (H256::repeat_byte(1), H256::repeat_byte(2));
            frame_system::BlockHash::<Runtime>::insert(0, genesis);
            frame_system::BlockHash::<Runtime>::insert(64, era_block);
            frame_system::Pallet::<Runtime>::set_block_number(65);
            let versions = [365u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
            for (era, era_bytes, hash) in [
                (Era::Immortal, vec![0], genesis),
                (Era::mortal(64, 64), Era::mortal(64, 64).encode(), era_block),
            ] {
                let (call, call_bytes) = remark();
                let payload = SignedPayload::new(call, extension(era))
                    .expect("all that is implicit is there");
                let bytes = payload.encode();
                let tail = [
                    versions.as_slice(),
                    genesis.as_bytes(),
                    hash.as_bytes(),
                    &[0],
                ]
                .concat();
                // Era, nonce 5, tip 7, no metadata hash.
                let explicit = [era_bytes, vec![5 << 2, 7 << 2, 0]].concat();
                assert_eq!(
                    hex::encode(bytes),
                    hex::encode([call_bytes, explicit, tail].concat())
                );
            }
        });
    }

    #[test]
    fn signed_extrinsic_of_version_4() {
        let (call, call_bytes) = remark();
        let signature = MultiSignature::Sr25519([3u8; 64].into());
        let signer = AccountId::new([4; 32]);
        let extrinsic = UncheckedExtrinsic::new_signed(
            call,
            signer.into(),
            signature,
            extension(Era::Immortal),
        );
        let body = [
            [0x84, 0].as_slice(),
            &[4; 32],
            &[1],
            &[3; 64],
            &[0, 5 << 2, 7 << 2, 0],
            &call_bytes,
        ]
        .concat();
        let length = codec::Compact(u32::try_from(body.len()).expect("short")).encode();
        assert_eq!(
            hex::encode(extrinsic.encode()),
            hex::encode([length, body].concat())
        );
    }

    #[test]
    fn call_of_set_weights() {
        let call = RuntimeCall::SubtensorModule(subtensor::Call::set_weights {
            netuid: 3,
            dests: vec![0, 1, 2],
            weights: vec![65_535, 100, 7],
            version_key: 0,
        });
        assert_eq!(
            hex::encode(call.encode()),
            "070003000c0000010002000cffff640007000000000000000000"
        );
    }

    #[test]
    fn call_of_set_commitment() {
        let hello = Data::Raw(BoundedVec::truncate_from(b"hello".to_vec()));
        let info = CommitmentInfo {
            fields: vec![hello].try_into().expect("one field"),
        };
        let call = RuntimeCall::Commitments(commitments::Call::set_commitment {
            netuid: 3,
            info: Box::new(info),
        });
        assert_eq!(hex::encode(call.encode()), "12000300040668656c6c6f");
    }

    #[test]
    fn storage_prefixes() {
        let of = |pallet: &str, item: &str| {
            hex::encode(
                [
                    Twox128::hash(pallet.as_bytes()),
                    Twox128::hash(item.as_bytes()),
                ]
                .concat(),
            )
        };
        assert_eq!(
            hex::encode(Twox128::hash(b"SubtensorModule")),
            "658faa385070e074c85bf6b568cf0555"
        );
        let now = pallet_timestamp::Now::<Runtime>::hashed_key();
        assert_eq!(
            hex::encode(now),
            "f0c365c3cf59d671eb72da0e7a4113c49f1f0515f462cdcf84e0f1d6045dfcbb"
        );
        assert_eq!(
            of("System", "Events"),
            "26aa394eea5630e07c48ae0c9558cef780d41e5e16056765bc8461851072c9d7"
        );
        let burn = subtensor::Burn::<Runtime>::hashed_key_for(3);
        assert_eq!(
            hex::encode(burn),
            format!("{}0300", of("SubtensorModule", "Burn"))
        );
    }
}
