//! Fixed-point numbers as the chain's metadata describes them: an integer of `bits`, and how many of them are fractional
//! as a type-level binary number.

use std::marker::PhantomData;

use codec::{Decode, Encode};
use scale_info::{Path, Type, TypeInfo, TypeParameter, build::Fields, meta_type};

/// A type-level binary number: its upper bits, then its lowest.
#[derive(TypeInfo)]
struct UInt<Upper, Lowest>(PhantomData<(Upper, Lowest)>);

/// The type-level zero.
#[derive(TypeInfo)]
struct UTerm;

/// The type-level bit 0.
#[derive(TypeInfo)]
struct B0;

/// The type-level bit 1.
#[derive(TypeInfo)]
struct B1;

/// 32 = 0b100000.
type U32 = UInt<UInt<UInt<UInt<UInt<UInt<UTerm, B1>, B0>, B0>, B0>, B0>, B0>;

/// Type of a fixed-point number `name` that holds `Bits`, 32 of them fractional.
fn type_with_32_fractional_bits<Bits: TypeInfo + 'static>(name: &'static str) -> Type {
    Type::builder()
        .path(Path::new(name, "substrate_fixed"))
        .type_params([TypeParameter::new("Frac", Some(meta_type::<U32>()))])
        .composite(Fields::named().field(|field| field.ty::<Bits>().name("bits")))
}

/// A signed number of 32 integer and 32 fractional bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct I32F32 {
    bits: i64,
}

impl I32F32 {
    /// The whole number `value`.
    pub const fn whole(value: i32) -> Self {
        Self {
            bits: (value as i64) << 32,
        }
    }
}

impl TypeInfo for I32F32 {
    type Identity = Self;

    fn type_info() -> Type {
        type_with_32_fractional_bits::<i64>("FixedI64")
    }
}

/// A signed number of 96 integer and 32 fractional bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct I96F32 {
    bits: i128,
}

impl I96F32 {
    /// `numerator / denominator`, rounded down; zero for a denominator of zero.
    pub fn ratio(numerator: u64, denominator: u64) -> Self {
        Self {
            bits: (i128::from(numerator) << 32)
                .checked_div(denominator.into())
                .unwrap_or(0),
        }
    }
}

impl TypeInfo for I96F32 {
    type Identity = Self;

    fn type_info() -> Type {
        type_with_32_fractional_bits::<i128>("FixedI128")
    }
}
