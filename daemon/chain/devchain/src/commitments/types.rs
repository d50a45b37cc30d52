//! Types of a commitment. [`Data`]'s codec is written by hand: the length of a raw field is part of its tag.

use codec::{Decode, DecodeWithMemTracking, Encode, Error, Input, MaxEncodedLen, Output};
use frame_support::{BoundedVec, pallet_prelude::Get, traits::ConstU32};
use scale_info::{
    Path, Type, TypeInfo,
    build::{Fields, Variants},
};

/// One field of a commitment.
///
/// | tag | field |
/// |---|---|
/// | 0 | nothing |
/// | 1..=129 | raw bytes, as many as the tag less one |
/// | 130..=133 | a hash: BLAKE2b-256, SHA-256, Keccak-256, SHA3-256 |
/// | 134 | ciphertext for a round of the beacon: length, bytes, round |
/// | 135 | a wish to have one's bonds reset |
/// | 136 | raw bytes with their length before them |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    None,
    /// Raw bytes.
    Raw(BoundedVec<u8, ConstU32<128>>),
    /// A BLAKE2b-256 hash.
    BlakeTwo256([u8; 32]),
    /// A SHA-256 hash.
    Sha256([u8; 32]),
    /// A Keccak-256 hash.
    Keccak256([u8; 32]),
    /// A SHA3-256 hash.
    ShaThree256([u8; 32]),
    /// Bytes encrypted to a round of the beacon.
    TimelockEncrypted {
        /// The ciphertext.
        encrypted: BoundedVec<u8, ConstU32<1024>>,
        /// Round whose pulse opens it.
        reveal_round: u64,
    },
    /// Asks that the bonds of the hotkey's neuron be reset.
    ResetBondsFlag,
    /// More raw bytes.
    BigRaw(BoundedVec<u8, ConstU32<512>>),
}

/// Tag of an empty raw field; a raw field of n bytes has this plus n.
const TAG_RAW: u8 = 1;
/// Bytes of the longest raw field.
const RAW_BYTES_MAX: u8 = 128;
const TAG_BLAKE_TWO: u8 = 130;
const TAG_SHA: u8 = 131;
const TAG_KECCAK: u8 = 132;
const TAG_SHA_THREE: u8 = 133;
const TAG_TIMELOCK: u8 = 134;
const TAG_RESET_BONDS: u8 = 135;
const TAG_BIG_RAW: u8 = 136;

impl Data {
    /// Bytes that count against the space of an epoch: content without tag, length and round.
    pub(super) fn charged_bytes(&self) -> u64 {
        let bytes = match self {
            Data::None | Data::ResetBondsFlag => 0,
            Data::Raw(bytes) => bytes.len(),
            Data::BlakeTwo256(hash)
            | Data::Sha256(hash)
            | Data::Keccak256(hash)
            | Data::ShaThree256(hash) => hash.len(),
            Data::TimelockEncrypted { encrypted, .. } => encrypted.len(),
            Data::BigRaw(bytes) => bytes.len(),
        };
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Round that opens an encrypted field.
    pub(super) fn reveal_round(&self) -> Option<u64> {
        match self {
            Data::TimelockEncrypted { reveal_round, .. } => Some(*reveal_round),
            Data::None
            | Data::Raw(_)
            | Data::BlakeTwo256(_)
            | Data::Sha256(_)
            | Data::Keccak256(_)
            | Data::ShaThree256(_)
            | Data::ResetBondsFlag
            | Data::BigRaw(_) => None,
        }
    }
}

impl Encode for Data {
    fn encode_to<W: Output + ?Sized>(&self, out: &mut W) {
        match self {
            Data::None => out.push_byte(0),
            Data::Raw(bytes) => {
                let length = u8::try_from(bytes.len()).expect("a raw field has at most 128 bytes");
                out.push_byte(TAG_RAW + length);
                out.write(bytes);
            }
            Data::BlakeTwo256(hash) => (TAG_BLAKE_TWO, hash).encode_to(out),
            Data::Sha256(hash) => (TAG_SHA, hash).encode_to(out),
            Data::Keccak256(hash) => (TAG_KECCAK, hash).encode_to(out),
            Data::ShaThree256(hash) => (TAG_SHA_THREE, hash).encode_to(out),
            Data::TimelockEncrypted {
                encrypted,
                reveal_round,
            } => {
                (TAG_TIMELOCK, encrypted, reveal_round).encode_to(out);
            }
            Data::ResetBondsFlag => out.push_byte(TAG_RESET_BONDS),
            Data::BigRaw(bytes) => (TAG_BIG_RAW, bytes).encode_to(out),
        }
    }
}

impl codec::EncodeLike for Data {}

impl Decode for Data {
    fn decode<I: Input>(input: &mut I) -> Result<Self, Error> {
        Ok(match input.read_byte()? {
            0 => Data::None,
            tag if tag <= TAG_RAW + RAW_BYTES_MAX => {
                let mut bytes = vec![0; usize::from(tag - TAG_RAW)];
                input.read(&mut bytes)?;
                Data::Raw(BoundedVec::truncate_from(bytes))
            }
            TAG_BLAKE_TWO => Data::BlakeTwo256(Decode::decode(input)?),
            TAG_SHA => Data::Sha256(Decode::decode(input)?),
            TAG_KECCAK => Data::Keccak256(Decode::decode(input)?),
            TAG_SHA_THREE => Data::ShaThree256(Decode::decode(input)?),
            TAG_TIMELOCK => Data::TimelockEncrypted {
                encrypted: Decode::decode(input)?,
                reveal_round: Decode::decode(input)?,
            },
            TAG_RESET_BONDS => Data::ResetBondsFlag,
            TAG_BIG_RAW => Data::BigRaw(Decode::decode(input)?),
            _ => return Err("unknown kind of commitment field".into()),
        })
    }
}

impl DecodeWithMemTracking for Data {}

/// Adds the variants `Raw0` to `Raw128`, each with its own array type.
macro_rules! raw_variants {
    ($variants:expr; $($bytes:literal)*) => {
        $variants$(.variant(concat!("Raw", $bytes), |variant| {
            variant.index(TAG_RAW + $bytes).fields(Fields::unnamed().field(|field| field.ty::<[u8; $bytes]>()))
        }))*
    };
}

impl TypeInfo for Data {
    type Identity = Self;

    fn type_info() -> Type {
        let hash = || Fields::unnamed().field(|field| field.ty::<[u8; 32]>());
        let variants = Variants::new().variant("None", |variant| variant.index(0));
        let variants = raw_variants!(variants;
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21
            22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43
            44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65
            66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87
            88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103 104 105 106 107 108 109
            110 111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127 128
        )
        .variant("BlakeTwo256", |variant| {
            variant.index(TAG_BLAKE_TWO).fields(hash())
        })
        .variant("Sha256", |variant| variant.index(TAG_SHA).fields(hash()))
        .variant("Keccak256", |variant| {
            variant.index(TAG_KECCAK).fields(hash())
        })
        .variant("ShaThree256", |variant| {
            variant.index(TAG_SHA_THREE).fields(hash())
        })
        .variant("TimelockEncrypted", |variant| {
            variant.index(TAG_TIMELOCK).fields(
                Fields::named()
                    .field(|field| {
                        field
                            .name("encrypted")
                            .ty::<BoundedVec<u8, ConstU32<1024>>>()
                    })
                    .field(|field| field.name("reveal_round").ty::<u64>()),
            )
        })
        .variant("ResetBondsFlag", |variant| variant.index(TAG_RESET_BONDS))
        .variant("BigRaw", |variant| {
            variant.index(TAG_BIG_RAW).fields(
                Fields::unnamed().field(|field| field.ty::<BoundedVec<u8, ConstU32<512>>>()),
            )
        });
        Type::builder()
            .path(Path::new("Data", module_path!()))
            .variant(variants)
    }
}

/// What a call of `set_commitment` carries.
#[derive(
    Encode,
    Decode,
    DecodeWithMemTracking,
    TypeInfo,
    frame_support::CloneNoBound,
    frame_support::DebugNoBound,
    frame_support::PartialEqNoBound,
    frame_support::EqNoBound,
)]
#[scale_info(skip_type_params(MaxFields))]
pub struct CommitmentInfo<MaxFields: Get<u32>> {
    /// The fields, in the order of the sender.
    pub fields: BoundedVec<Data, MaxFields>,
}

/// A commitment in storage.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, TypeInfo)]
#[scale_info(skip_type_params(MaxFields))]
pub struct Registration<Balance, MaxFields: Get<u32>, BlockNumber> {
    /// Deposit held for it: zero.
    pub deposit: Balance,
    /// Block in which it was set.
    pub block: BlockNumber,
    /// What it says.
    pub info: CommitmentInfo<MaxFields>,
}

/// Bytes that a hotkey has used of an epoch's space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, MaxEncodedLen, TypeInfo)]
pub struct UsageTracker {
    /// The epoch.
    pub last_epoch: u64,
    /// Bytes charged in it.
    pub used_space: u64,
}

#[cfg(test)]
mod tests {
    use scale_info::{PortableRegistry, Registry, TypeDef, meta_type};

    use super::*;

    /// One field of each kind, and a raw one of each length.
    fn one_of_each() -> Vec<Data> {
        let raw = |bytes: u8| Data::Raw(BoundedVec::truncate_from(vec![bytes; usize::from(bytes)]));
        let mut fields: Vec<Data> = (0..=RAW_BYTES_MAX).map(raw).collect();
        fields.extend([
            Data::None,
            Data::BlakeTwo256([1; 32]),
            Data::Sha256([2; 32]),
            Data::Keccak256([3; 32]),
            Data::ShaThree256([4; 32]),
            Data::TimelockEncrypted {
                encrypted: BoundedVec::truncate_from(vec![5; 70]),
                reveal_round: 6,
            },
            Data::ResetBondsFlag,
            Data::BigRaw(BoundedVec::truncate_from(vec![7; 500])),
        ]);
        fields
    }

    #[test]
    fn fields_survive_the_wire() {
        for field in one_of_each() {
            assert_eq!(Data::decode(&mut &field.encode()[..]), Ok(field));
        }
    }

    #[test]
    fn bytes_are_finneys() {
        assert_eq!(Data::None.encode(), [0]);
        assert_eq!(
            Data::Raw(BoundedVec::truncate_from(b"hello".to_vec())).encode(),
            b"\x06hello"
        );
        assert_eq!(
            Data::Sha256([9; 32]).encode(),
            [[131].as_slice(), &[9; 32]].concat()
        );
        let locked = Data::TimelockEncrypted {
            encrypted: BoundedVec::truncate_from(vec![1, 2]),
            reveal_round: 3,
        };
        assert_eq!(locked.encode(), [134, 8, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Data::ResetBondsFlag.encode(), [135]);
        assert_eq!(
            Data::BigRaw(BoundedVec::truncate_from(vec![1])).encode(),
            [136, 4, 1]
        );
    }

    #[test]
    fn truncated_unknown_and_oversized_fields_are_refused() {
        assert!(Data::decode(&mut &[6, 1, 2][..]).is_err());
        assert!(Data::decode(&mut &[137][..]).is_err());
        assert!(Data::decode(&mut &[][..]).is_err());
        let too_long = [vec![136], vec![0u8; 513].encode()].concat();
        assert!(Data::decode(&mut &too_long[..]).is_err());
    }

    #[test]
    fn type_describes_the_bytes_of_every_kind() {
        let mut registry = Registry::new();
        let id = registry.register_type(&meta_type::<Data>()).id;
        let registry = PortableRegistry::from(registry);
        let TypeDef::Variant(variants) = &registry.resolve(id).expect("it was registered").type_def
        else {
            panic!("no enum");
        };
        assert_eq!(variants.variants.len(), 137);
        for field in one_of_each() {
            let bytes = field.encode();
            let name = match &field {
                Data::None => "None".to_owned(),
                Data::Raw(bytes) => format!("Raw{}", bytes.len()),
                Data::BlakeTwo256(_) => "BlakeTwo256".to_owned(),
                Data::Sha256(_) => "Sha256".to_owned(),
                Data::Keccak256(_) => "Keccak256".to_owned(),
                Data::ShaThree256(_) => "ShaThree256".to_owned(),
                Data::TimelockEncrypted { .. } => "TimelockEncrypted".to_owned(),
                Data::ResetBondsFlag => "ResetBondsFlag".to_owned(),
                Data::BigRaw(_) => "BigRaw".to_owned(),
            };
            let variant = variants
                .variants
                .iter()
                .find(|variant| variant.name == name)
                .expect("it is described");
            assert_eq!(variant.index, bytes[0], "{name}");
            if let Some(array) = variant
                .fields
                .first()
                .and_then(|field| registry.resolve(field.ty.id))
                && let TypeDef::Array(array) = &array.type_def
            {
                assert_eq!(usize::try_from(array.len), Ok(bytes.len() - 1), "{name}");
            }
        }
    }
}
