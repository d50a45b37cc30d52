//! What this peer says that its link can carry: what its operator declared, else what was measured, else what is known.
//!
//! Rule `twice-or-half`: a measurement counts only if it is at least twice or at most half of what was said last, so that what
//! a peer says does not waver with what it measures; those who decide it ask for as much (rule `seldom-and-much` of
//! [`gradmesh_protocol::capacity`]).
//!
//! Where nothing was declared or measured since the process began, a member says what the roster has of it already: it was
//! measured before, or taken for granted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::net::control::Reachability;

/// The unit of a link's capacity on the wire, in Mbit/s.
pub const UNIT_MBIT: u32 = 10;
/// Half a unit. A link that carries less owns nothing.
const THIN_MBIT: f64 = 5.0;
const FACTOR_MIN: f64 = 2.0;

/// Where a capacity comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody knows better.
    Assumed,
    /// The operator said so.
    Declared,
    /// It is what its connections carried while they were full.
    Measured,
    /// Others cannot connect to it.
    BehindNat,
    /// The roster has it, from before this process.
    Decided,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Assumed => "taken for granted until it was measured",
            Origin::Declared => "as its operator declared",
            Origin::Measured => "as measured while updates were exchanged",
            Origin::BehindNat => "since others cannot connect to it",
            Origin::Decided => "as decided before this daemon started",
        })
    }
}

/// A capacity in units, and where it comes from.
pub(super) type Said = (u16, Origin);

/// What is known of this machine's link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Capacity {
    /// In units: declared, or taken for granted.
    given: u16,
    declared: bool,
    /// By rule `twice-or-half`, in Mbit/s.
    measured: Option<f64>,
}

impl Capacity {
    /// `given`: in units, what the operator `declared`, or what a peer is taken to carry.
    pub(super) fn new(given: u16, declared: bool) -> Capacity {
        Capacity {
            given,
            declared,
            measured: None,
        }
    }

    /// What to say now. `decided`: what the roster has of this peer, if it is a member.
    pub(super) fn say(&self, reachability: &Reachability, decided: Option<u16>) -> Said {
        if self.declared {
            return (self.given, Origin::Declared);
        }
        if reachability.is_behind_nat() {
            return (0, Origin::BehindNat);
        }
        if let Some(mbit) = self.measured {
            return (units(mbit), Origin::Measured);
        }
        match decided {
            // It may have been behind NAT: until somebody can tell, it still is.
            Some(0) if *reachability == Reachability::Unknown => (0, Origin::Decided),
            None | Some(0) => (self.given, Origin::Assumed),
            Some(known) if known == self.given => (known, Origin::Assumed),
            Some(known) => (known, Origin::Decided),
        }
    }

    /// Takes in what the link was measured to carry; `said` is what [`Capacity::say`] says now.
    pub(super) fn measured(&mut self, bytes_per_s: f64, said: Said) {
        let mbit = bytes_per_s * 8.0 / 1e6;
        let last = self
            .measured
            .unwrap_or_else(|| f64::from(said.0) * f64::from(UNIT_MBIT));
        if mbit >= FACTOR_MIN * last || mbit * FACTOR_MIN <= last {
            self.measured = Some(mbit);
        }
    }
}

/// In units, at least one unless the link is thin.
fn units(mbit: f64) -> u16 {
    match mbit < THIN_MBIT {
        true => 0,
        // A float beyond the range becomes the largest.
        false => (mbit / f64::from(UNIT_MBIT)).round().max(1.0) as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: f64 = 1e6 / 8.0;

    fn behind_nat() -> Reachability {
        Reachability::BehindNat { relays: Vec::new() }
    }

    #[test]
    fn what_is_declared_is_said_whatever_is_measured() {
        let mut capacity = Capacity::new(3, true);
        for reachability in [Reachability::Public, Reachability::Unknown, behind_nat()] {
            assert_eq!(capacity.say(&reachability, Some(9)), (3, Origin::Declared));
        }
        capacity.measured(500.0 * MBIT, (3, Origin::Declared));
        let said = capacity.say(&Reachability::Public, None);
        assert_eq!(said, (3, Origin::Declared));
    }

    #[test]
    fn a_peer_behind_nat_owns_nothing_unless_its_operator_says_so_and_may_own_again_once_it_is_reached()
     {
        let mut capacity = Capacity::new(10, false);
        let say = |capacity: &Capacity, reachability| capacity.say(&reachability, Some(0)).0;
        assert_eq!(say(&capacity, behind_nat()), 0);
        assert_eq!(say(&capacity, Reachability::Unknown), 0);
        assert_eq!(say(&capacity, Reachability::Public), 10);
        capacity.measured(30.0 * MBIT, (0, Origin::BehindNat));
        assert_eq!(say(&capacity, behind_nat()), 0);
        assert_eq!(say(&capacity, Reachability::Public), 3);
    }

    #[test]
    fn a_measurement_counts_from_twice_or_half_of_what_was_said() {
        let mut capacity = Capacity::new(10, false);
        let mut measured = |mbit: f64| {
            let said = capacity.say(&Reachability::Public, Some(10));
            capacity.measured(mbit * MBIT, said);
            capacity.say(&Reachability::Public, Some(10))
        };
        assert_eq!(measured(51.0), (10, Origin::Assumed));
        assert_eq!(measured(199.0), (10, Origin::Assumed));
        assert_eq!(measured(22.0), (2, Origin::Measured));
        assert_eq!(measured(43.0), (2, Origin::Measured));
        assert_eq!(measured(12.0), (2, Origin::Measured));
        assert_eq!(measured(10.0), (1, Origin::Measured));
        assert_eq!(measured(5.2), (1, Origin::Measured));
        assert_eq!(measured(4.9), (0, Origin::Measured));
        assert_eq!(measured(9.7), (0, Origin::Measured), "not twice as much");
        assert_eq!(measured(9.9), (1, Origin::Measured));
        assert_eq!(measured(1e9), (u16::MAX, Origin::Measured));
    }

    #[test]
    fn a_member_that_starts_again_says_what_the_roster_has() {
        let capacity = Capacity::new(10, false);
        let say = |decided| capacity.say(&Reachability::Unknown, decided);
        assert_eq!(say(Some(2)), (2, Origin::Decided));
        assert_eq!(say(Some(10)), (10, Origin::Assumed));
        assert_eq!(say(None), (10, Origin::Assumed));
    }
}
