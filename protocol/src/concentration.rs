//! How much of a subnet is in how few hands: figures over a list of stakes or weights.
//!
//! Integers only, rounded down, in parts per million (ppm); the order of the list does not matter.

const PPM: u128 = 1_000_000;

/// Figures over a list of holdings. All are zero where nobody holds anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concentration {
    /// How many hold anything.
    pub holders: usize,
    /// What the largest holder has of everything.
    pub top_1_ppm: u32,
    /// What the five largest have together.
    pub top_5_ppm: u32,
    /// What the ten largest have together.
    pub top_10_ppm: u32,
    /// Nakamoto coefficient: how many of the largest it takes to have more than half.
    pub nakamoto: usize,
    /// Gini coefficient over the whole list, those who hold nothing included: 0 where all hold the same, near 1,000,000
    /// where one of many holds everything.
    pub gini_ppm: u32,
}

impl Concentration {
    /// The figures of `holdings`, one entry for each holder. Cost: O(n log n).
    pub fn of(holdings: &[u64]) -> Concentration {
        let mut descending = holdings.to_vec();
        descending.sort_unstable_by(|a, b| b.cmp(a));
        let whole = sum(&descending);
        if whole == 0 {
            return Concentration::default();
        }
        let top = |count: usize| ppm(sum(&descending[..count.min(descending.len())]), whole);
        Concentration {
            holders: descending.iter().filter(|held| **held > 0).count(),
            top_1_ppm: top(1),
            top_5_ppm: top(5),
            top_10_ppm: top(10),
            nakamoto: nakamoto(&descending, whole),
            gini_ppm: gini(&descending, whole),
        }
    }
}

fn nakamoto(descending: &[u64], whole: u128) -> usize {
    let held = descending.iter().scan(0, |held, holding| {
        *held += u128::from(*holding);
        Some(*held)
    });
    1 + held.take_while(|held| *held <= whole / 2).count()
}

/// G = sum of (n + 1 - 2 i) x_i / (n * sum of x) for x_1 >= ... >= x_n: the mean difference between two holders over twice the
/// mean holding (C. Gini, 1912), with the differences taken in order.
fn gini(descending: &[u64], whole: u128) -> u32 {
    let count = descending.len() as u128;
    let ranked = (1..).zip(descending).map(|(rank, x)| rank * u128::from(*x));
    let difference = (count + 1) * whole - 2 * ranked.sum::<u128>();
    ppm(difference, count * whole)
}

fn sum(holdings: &[u64]) -> u128 {
    holdings.iter().copied().map(u128::from).sum()
}

/// floor(10^6 part / whole) for a part of the whole; both lose their low bits first where the product would not fit.
fn ppm(part: u128, whole: u128) -> u32 {
    let excess = PPM
        .ilog2()
        .saturating_add(1)
        .saturating_sub(part.leading_zeros());
    let ppm = (part >> excess) * PPM / (whole >> excess);
    u32::try_from(ppm).expect("a part is at most a million millionths")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_holdings_are_not_concentrated() {
        let expected = Concentration {
            holders: 20,
            top_1_ppm: 50_000,
            top_5_ppm: 250_000,
            top_10_ppm: 500_000,
            nakamoto: 11,
            gini_ppm: 0,
        };
        assert_eq!(Concentration::of(&[7; 20]), expected);
    }

    #[test]
    fn one_holder_of_everything_is_all_there_is() {
        let expected = Concentration {
            holders: 1,
            top_1_ppm: 1_000_000,
            top_5_ppm: 1_000_000,
            top_10_ppm: 1_000_000,
            nakamoto: 1,
            gini_ppm: 750_000,
        };
        assert_eq!(Concentration::of(&[0, u64::MAX, 0, 0]), expected);
    }

    #[test]
    fn figures_of_a_list_worked_out_by_hand() {
        // Sorted 60, 20, 10, 5, 3, 2 of 100. Gini: (5*60 + 3*20 + 1*10 - 1*5 - 3*3 - 5*2) / (6 * 100) = 346 / 600.
        let expected = Concentration {
            holders: 6,
            top_1_ppm: 600_000,
            top_5_ppm: 980_000,
            top_10_ppm: 1_000_000,
            nakamoto: 1,
            gini_ppm: 576_666,
        };
        assert_eq!(Concentration::of(&[3, 20, 60, 2, 10, 5]), expected);
    }

    #[test]
    fn half_is_not_more_than_half() {
        assert_eq!(Concentration::of(&[5, 5]).nakamoto, 2);
        assert_eq!(Concentration::of(&[5, 4]).nakamoto, 1);
        assert_eq!(Concentration::of(&[2, 1, 1]).nakamoto, 2);
        assert_eq!(Concentration::of(&[1, 1, 1]).nakamoto, 2);
    }

    #[test]
    fn nobody_and_nothing_have_no_concentration() {
        assert_eq!(Concentration::of(&[]), Concentration::default());
        assert_eq!(Concentration::of(&[0; 3]), Concentration::default());
    }

    proptest! {
        #[test]
        fn gini_is_the_mean_difference_over_twice_the_mean(
            holdings in prop::collection::vec(0..1u64 << 40, 1..40),
        ) {
            let each = || holdings.iter().copied();
            let differences = each().flat_map(|a| each().map(move |b| u128::from(a.abs_diff(b))));
            let whole = sum(&holdings);
            let twice = 2 * holdings.len() as u128 * whole;
            let reference = (differences.sum::<u128>() * PPM).checked_div(twice).unwrap_or(0);
            prop_assert_eq!(u128::from(Concentration::of(&holdings).gini_ppm), reference);
        }

        #[test]
        fn order_does_not_matter_and_shares_grow(
            (holdings, shuffled) in prop::collection::vec(any::<u64>(), 0..40)
                .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        ) {
            let figures = Concentration::of(&holdings);
            prop_assert_eq!(figures, Concentration::of(&shuffled));
            prop_assert!(figures.top_1_ppm <= figures.top_5_ppm && figures.top_5_ppm <= figures.top_10_ppm);
            prop_assert!(figures.top_10_ppm <= 1_000_000 && figures.gini_ppm <= 1_000_000);
            prop_assert!(figures.nakamoto <= figures.holders && figures.holders <= holdings.len());
        }
    }
}
