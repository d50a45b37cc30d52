//! What holds for every input.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Any numbers at all, in any sizes.
fn hostile_inputs() -> impl Strategy<Value = EpochInput> {
    let parameters = (
        any::<[u64; 4]>(),
        any::<[u16; 3]>(),
        any::<bool>(),
        any::<Option<u16>>(),
    )
        .prop_map(|(long, short, yuma3, owner)| Parameters {
            tempo_blocks: long[0],
            activity_cutoff_blocks: long[1],
            stake_threshold: long[2],
            bonds_moving_average: long[3],
            max_allowed_validators: short[0],
            kappa: short[1],
            bonds_penalty: short[2],
            yuma3,
            owner,
        });
    let row = || vec((0..24u16, any::<u16>()), 0..40);
    let neuron = (any::<[u64; 3]>(), any::<bool>(), row(), row());
    let neuron = neuron.prop_map(|(numbers, permit, weights, bonds)| Neuron {
        stake: numbers[0],
        registered_at: numbers[1],
        last_update: numbers[2],
        validator_permit: permit,
        weights,
        bonds,
    });
    (any::<[u64; 2]>(), parameters, vec(neuron, 0..20)).prop_map(
        |(numbers, parameters, neurons)| EpochInput {
            block: numbers[0],
            emission: numbers[1],
            parameters,
            neurons,
        },
    )
}

/// Inputs as a chain has them: stakes that add up, blocks in the past, permits for everyone who has stake.
fn plausible_inputs() -> impl Strategy<Value = EpochInput> {
    let row = || vec((0..12u16, prop_oneof![Just(0), any::<u16>()]), 0..12);
    let neuron = (
        prop_oneof![Just(0), 1..1u64 << 55],
        prop_oneof![Just(0), BLOCK - 400..BLOCK],
        BLOCK - 6000..BLOCK,
        prop::bool::weighted(0.8),
        row(),
        row(),
    );
    let neuron = neuron.prop_map(
        |(stake, registered_at, last_update, validator_permit, weights, bonds)| Neuron {
            stake,
            registered_at,
            last_update,
            validator_permit,
            weights,
            bonds,
        },
    );
    let choices = (any::<bool>(), any::<u16>(), any::<u16>());
    (vec(neuron, 1..12), choices, any::<u64>()).prop_map(
        |(neurons, (yuma3, kappa, bonds_penalty), emission)| {
            let mut input = input(neurons);
            input.emission = emission;
            input.parameters.yuma3 = yuma3;
            input.parameters.kappa = kappa;
            input.parameters.bonds_penalty = bonds_penalty;
            input
        },
    )
}

/// Checks that `paid` is `emission` but for rounding.
///
/// Every share is rounded down by less than 2^-32 (the fallback to stake by 2^-64 more), and its rao by less than one. So
/// n shares that stand for one lose less than n emission (2^-32 + 2^-64) + n, and never pay more than there is.
fn check_conserved(paid: &[u64], emission: u64, shares: usize) -> Result<(), TestCaseError> {
    let paid = paid.iter().copied().map(u128::from).sum::<u128>();
    let emission = u128::from(emission);
    let shares = shares as u128;
    let lost = |bits: u32| ((shares * emission) >> bits) + 1;
    let lost_max = lost(32) + lost(64) + shares;
    prop_assert!(paid <= emission, "{paid} paid of {emission}");
    prop_assert!(emission - paid <= lost_max, "{paid} paid of {emission}");
    Ok(())
}

fn permuted(input: &EpochInput, place: &[u16]) -> EpochInput {
    let moved = |row: &[(u16, u16)]| {
        let uids = row
            .iter()
            .filter(|(uid, _)| usize::from(*uid) < place.len());
        uids.map(|(uid, value)| (place[usize::from(*uid)], *value))
            .collect::<Vec<_>>()
    };
    let mut neurons = vec![Neuron::default(); place.len()];
    for (neuron, to) in input.neurons.iter().zip(place) {
        neurons[usize::from(*to)] = Neuron {
            weights: moved(&neuron.weights),
            bonds: moved(&neuron.bonds),
            ..neuron.clone()
        };
    }
    EpochInput {
        neurons,
        ..input.clone()
    }
}

proptest! {
    #[test]
    fn any_input_has_an_output_of_its_size(input in hostile_inputs()) {
        let uids = input.neurons.len();
        let output = epoch(&input);
        let columns = [
            &output.stake_weight, &output.consensus, &output.incentive, &output.dividends, &output.rank,
            &output.trust, &output.validator_trust, &output.pruning_scores,
        ];
        prop_assert!(columns.iter().all(|column| column.len() == uids));
        let paid = [&output.emission, &output.server_emission, &output.validator_emission];
        prop_assert!(paid.iter().all(|column| column.len() == uids));
        prop_assert_eq!(output.active.len(), uids);
        prop_assert_eq!(output.validator_permit.len(), uids);
        prop_assert_eq!(output.bonds.len(), uids);
        let known = |uid: u16| usize::from(uid) < uids;
        prop_assert!(output.bonds.iter().flatten().all(|(uid, _)| known(*uid)));
    }

    #[test]
    fn emission_is_paid_but_for_rounding(input in plausible_inputs()) {
        let output = epoch(&input);
        let has_stake = input.neurons.iter().any(|neuron| neuron.stake > 0);
        let emission = if has_stake { input.emission } else { 0 };
        let uids = input.neurons.len();
        check_conserved(&output.emission, emission, uids)?;
        let apart = [output.server_emission, output.validator_emission].concat();
        check_conserved(&apart, emission, 2 * uids)?;
    }

    #[test]
    fn shares_never_add_up_to_more_than_the_whole(input in plausible_inputs()) {
        let output = epoch(&input);
        for shares in [output.stake_weight, output.incentive, output.dividends] {
            prop_assert!(shares.into_iter().map(u32::from).sum::<u32>() <= u32::from(u16::MAX));
        }
    }

    #[test]
    fn who_has_which_uid_makes_no_difference(
        (input, place) in plausible_inputs().prop_flat_map(|input| {
            let uids = (0..).take(input.neurons.len()).collect::<Vec<u16>>();
            (Just(input), Just(uids).prop_shuffle())
        }),
    ) {
        let moved = epoch(&permuted(&input, &place));
        let here = epoch(&input);
        for (from, to) in place.iter().map(|to| usize::from(*to)).enumerate() {
            prop_assert_eq!(here.active[from], moved.active[to]);
            prop_assert_eq!(here.validator_permit[from], moved.validator_permit[to]);
            prop_assert_eq!(here.stake_weight[from], moved.stake_weight[to]);
            prop_assert_eq!(here.consensus[from], moved.consensus[to]);
            prop_assert_eq!(here.incentive[from], moved.incentive[to]);
            prop_assert_eq!(here.dividends[from], moved.dividends[to]);
            prop_assert_eq!(here.trust[from], moved.trust[to]);
            prop_assert_eq!(here.validator_trust[from], moved.validator_trust[to]);
            prop_assert_eq!(here.emission[from], moved.emission[to]);
            let mut bonds = here.bonds[from].clone();
            bonds.iter_mut().for_each(|(uid, _)| *uid = place[usize::from(*uid)]);
            bonds.sort_unstable();
            prop_assert_eq!(&bonds, &moved.bonds[to]);
        }
    }
}
