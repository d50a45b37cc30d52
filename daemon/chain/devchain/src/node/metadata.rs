//! Metadata with calls left out: what a runtime looks like before the release that adds them.

use codec::{Decode, Encode};
use frame_metadata::{RuntimeMetadata, RuntimeMetadataPrefixed};
use scale_info::{PortableRegistry, TypeDef};

/// The pallet whose calls can be left out.
const PALLET: &str = "SubtensorModule";

/// The answer of `Metadata_metadata` (a byte vector that holds metadata) without `calls`. `None` if it does not decode.
pub(crate) fn answer_without(answer: &[u8], calls: &[String]) -> Option<Vec<u8>> {
    let metadata = Vec::<u8>::decode(&mut &answer[..]).ok()?;
    Some(without(&metadata, calls)?.encode())
}

/// The same for `Metadata_metadata_at_version`, which answers an option of it.
pub(crate) fn optional_answer_without(answer: &[u8], calls: &[String]) -> Option<Vec<u8>> {
    match Option::<Vec<u8>>::decode(&mut &answer[..]).ok()? {
        Some(metadata) => Some(Some(without(&metadata, calls)?).encode()),
        None => Some(answer.to_vec()),
    }
}

fn without(metadata: &[u8], calls: &[String]) -> Option<Vec<u8>> {
    let mut metadata = RuntimeMetadataPrefixed::decode(&mut &metadata[..]).ok()?;
    match &mut metadata.1 {
        RuntimeMetadata::V14(metadata) => {
            let pallet = metadata
                .pallets
                .iter()
                .find(|pallet| pallet.name == PALLET)?;
            remove_variants(&mut metadata.types, pallet.calls.as_ref()?.ty.id, calls);
        }
        RuntimeMetadata::V15(metadata) => {
            let pallet = metadata
                .pallets
                .iter()
                .find(|pallet| pallet.name == PALLET)?;
            remove_variants(&mut metadata.types, pallet.calls.as_ref()?.ty.id, calls);
        }
        RuntimeMetadata::V16(metadata) => {
            let pallet = metadata
                .pallets
                .iter()
                .find(|pallet| pallet.name == PALLET)?;
            remove_variants(&mut metadata.types, pallet.calls.as_ref()?.ty.id, calls);
        }
        _ => return None,
    }
    Some(metadata.encode())
}

fn remove_variants(types: &mut PortableRegistry, id: u32, names: &[String]) {
    let calls = types.types.iter_mut().find(|ty| ty.id == id);
    if let Some(calls) = calls
        && let TypeDef::Variant(variants) = &mut calls.ty.type_def
    {
        variants
            .variants
            .retain(|variant| !names.contains(&variant.name));
    }
}
