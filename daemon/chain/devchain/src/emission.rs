//! Splits what a subnet has earned, in whole rao, with nothing lost to rounding.

/// The owner's part, in parts of 65,535: 18%.
pub const OWNER_CUT_DEFAULT: u16 = 11_796;

/// A validator's part of what its nominators' stake earns, in parts of 65,535: 18%.
pub const DELEGATE_TAKE_DEFAULT: u16 = 11_796;

/// A subnet's pending emission, divided. The three sum to what was pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    pub owner: u64,
    /// By incentive.
    pub servers: u64,
    /// By dividends.
    pub validators: u64,
}

/// What a validator has earned, divided. The two sum to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earnings {
    pub delegate: u64,
    pub nominators: u64,
}

/// Divides `pending` rao: the owner's cut rounded down, half of the rest rounded down to the servers, what remains to the
/// validators.
pub fn split(pending: u64, owner_cut: u16) -> Split {
    let owner = part(pending, owner_cut);
    let rest = pending - owner;
    let servers = rest / 2;
    Split {
        owner,
        servers,
        validators: rest - servers,
    }
}

/// Divides `earned` rao of a validator: its take rounded down, what remains to its nominators.
pub fn delegate_take(earned: u64, take: u16) -> Earnings {
    let delegate = part(earned, take);
    Earnings {
        delegate,
        nominators: earned - delegate,
    }
}

/// floor(amount * parts / 65,535), at most `amount`.
fn part(amount: u64, parts: u16) -> u64 {
    let part = u128::from(amount) * u128::from(parts) / u128::from(u16::MAX);
    u64::try_from(part).unwrap_or(amount)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn owner_servers_and_validators_get_18_41_and_41_percent() {
        let split = split(1_000_000_000, OWNER_CUT_DEFAULT);
        // 11,796 / 65,535 is what the chain has for 18%: 0.179995...
        let expected = Split {
            owner: 179_995_422,
            servers: 410_002_289,
            validators: 410_002_289,
        };
        assert_eq!(split, expected);
    }

    #[test]
    fn the_odd_rao_goes_to_the_validators() {
        let expected = Split {
            owner: 0,
            servers: 1,
            validators: 2,
        };
        assert_eq!(split(3, OWNER_CUT_DEFAULT), expected);
    }

    #[test]
    fn a_whole_take_leaves_nothing() {
        let earned = delegate_take(u64::MAX, u16::MAX);
        assert_eq!((earned.delegate, earned.nominators), (u64::MAX, 0));
        let earned = delegate_take(u64::MAX, 0);
        assert_eq!((earned.delegate, earned.nominators), (0, u64::MAX));
    }

    proptest! {
        #[test]
        fn nothing_is_lost(amount: u64, parts: u16) {
            let split = split(amount, parts);
            prop_assert_eq!(u128::from(split.owner) + u128::from(split.servers) + u128::from(split.validators), u128::from(amount));
            prop_assert!(split.validators - split.servers <= 1);
            let earned = delegate_take(amount, parts);
            prop_assert_eq!(u128::from(earned.delegate) + u128::from(earned.nominators), u128::from(amount));
        }
    }
}
