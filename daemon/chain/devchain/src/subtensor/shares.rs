//! Shares of a hotkey's stake, as unsigned fixed-point numbers with 64 fractional bits.
//!
//! Rule `shares`: a position is worth floor(total alpha * its shares / total shares). Shares are issued rounded down and
//! redeemed rounded up, so nobody's position shrinks when another one moves. Income added to the total lifts all of them.

use std::marker::PhantomData;

use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use scale_info::{Path, Type, TypeInfo, TypeParameter, build::Fields, meta_type};
use sp_runtime::Rounding;
use sp_runtime::helpers_128bit::multiply_by_rational_with_rounding;

/// A number of shares.
///
/// The metadata describes it as subtensor's does, down to the type-level 64 of its fractional bits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, MaxEncodedLen,
)]
pub struct Shares {
    bits: u128,
}

/// What all holders of one hotkey on one subnet hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// In rao of alpha.
    pub alpha: u64,
    pub shares: Shares,
}

impl Shares {
    /// As many shares as there are rao: the price of the first ones.
    fn at_par(alpha: u64) -> Self {
        Self {
            bits: u128::from(alpha) << 64,
        }
    }

    pub fn is_zero(self) -> bool {
        self.bits == 0
    }

    pub fn saturating_add(self, other: Self) -> Self {
        Self {
            bits: self.bits.saturating_add(other.bits),
        }
    }

    pub fn saturating_sub(self, other: Self) -> Self {
        Self {
            bits: self.bits.saturating_sub(other.bits),
        }
    }
}

impl Pool {
    /// What `shares` are worth, in rao of alpha.
    pub fn value(self, shares: Shares) -> u64 {
        let value = multiply_by_rational_with_rounding(
            self.alpha.into(),
            shares.bits,
            self.shares.bits,
            Rounding::Down,
        );
        u64::try_from(value.unwrap_or(0))
            .unwrap_or(u64::MAX)
            .min(self.alpha)
    }

    /// The shares that `alpha` rao buy.
    pub fn issued(self, alpha: u64) -> Shares {
        if self.alpha == 0 || self.shares.is_zero() {
            return Shares::at_par(alpha);
        }
        self.shares_of(alpha, Rounding::Down)
    }

    /// The shares that `alpha` rao cost, at most `held`; all of `held` if the rest would be worth nothing.
    pub fn redeemed(self, alpha: u64, held: Shares) -> Shares {
        let cost = self.shares_of(alpha, Rounding::Up);
        let rest = held.saturating_sub(cost);
        if self.value(rest) == 0 { held } else { cost }
    }

    fn shares_of(self, alpha: u64, rounding: Rounding) -> Shares {
        let bits = multiply_by_rational_with_rounding(
            self.shares.bits,
            alpha.into(),
            self.alpha.into(),
            rounding,
        );
        Shares {
            bits: bits.unwrap_or(u128::MAX),
        }
    }
}

impl TypeInfo for Shares {
    type Identity = Self;

    fn type_info() -> Type {
        Type::builder()
            .path(Path::new("FixedU128", "substrate_fixed"))
            .type_params([TypeParameter::new("Frac", Some(meta_type::<U64>()))])
            .composite(
                Fields::named().field(|field| field.ty::<u128>().name("bits").type_name("u128")),
            )
    }
}

/// A type-level bit string: all but the last bit, and the last bit.
#[derive(TypeInfo)]
struct UInt<Front, Last>(PhantomData<(Front, Last)>);

#[derive(TypeInfo)]
struct UTerm;

#[derive(TypeInfo)]
struct B0;

#[derive(TypeInfo)]
struct B1;

type U2 = UInt<UInt<UTerm, B1>, B0>;
type U16 = UInt<UInt<UInt<U2, B0>, B0>, B0>;
type U64 = UInt<UInt<U16, B0>, B0>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_shares_are_issued_at_par() {
        let shares = Pool {
            alpha: 0,
            shares: Shares::default(),
        }
        .issued(7);
        assert_eq!(shares, Shares { bits: 7 << 64 });
    }

    #[test]
    fn income_lifts_every_position_in_proportion() {
        let pool = Pool {
            alpha: 40,
            shares: Shares::at_par(20),
        };
        assert_eq!(pool.value(Shares::at_par(15)), 30);
        assert_eq!(pool.value(Shares::at_par(5)), 10);
    }

    #[test]
    fn redeeming_everything_leaves_no_shares_behind() {
        let pool = Pool {
            alpha: 10,
            shares: Shares {
                bits: (3 << 64) + 1,
            },
        };
        let held = Shares { bits: 1 << 64 };
        assert_eq!(pool.redeemed(pool.value(held), held), held);
    }

    #[test]
    fn metadata_names_the_type_as_subtensor_does() {
        let info = Shares::type_info();
        assert_eq!(info.path.ident(), Some("FixedU128"));
        assert_eq!(info.type_params.len(), 1);
    }
}
