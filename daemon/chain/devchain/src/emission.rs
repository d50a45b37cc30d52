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
