//! The epoch against numbers that subtensor's own tests state, and against its rules one by one.

mod properties;

use super::*;

const BLOCK: u64 = 10_000;
const EMISSION: u64 = 1_000_000_000;

/// Neurons with these stakes and permits for those who have some, registered long ago and updated just now.
fn neurons(stakes: &[u64]) -> Vec<Neuron> {
    let neuron = |stake: &u64| Neuron {
        stake: *stake,
        last_update: BLOCK - 1,
        validator_permit: *stake > 0,
        ..Neuron::default()
    };
    stakes.iter().map(neuron).collect()
}

fn input(neurons: Vec<Neuron>) -> EpochInput {
    EpochInput {
        block: BLOCK,
        emission: EMISSION,
        parameters: Parameters::default(),
        neurons,
    }
}

/// The output of `input`, whose bonds and permits `input` then stands at.
fn advance(input: &mut EpochInput) -> EpochOutput {
    let output = epoch(input);
    let kept = output.bonds.iter().zip(&output.validator_permit);
    for (neuron, (bonds, permit)) in input.neurons.iter_mut().zip(kept) {
        neuron.bonds = bonds.clone();
        neuron.validator_permit = *permit;
    }
    output
}

/// What each of `rows` holds of `uid`.
fn column(rows: &[Vec<(u16, u16)>], uid: u16) -> Vec<u16> {
    let held = |row: &Vec<(u16, u16)>| row.iter().find(|(of, _)| *of == uid).map_or(0, |e| e.1);
    rows.iter().map(held).collect()
}

/// Four validators, four servers; the validators agree.
fn four_and_four() -> EpochInput {
    let mut input = input(neurons(&[1, 2, 3, 4, 0, 0, 0, 0]));
    for validator in &mut input.neurons[..4] {
        validator.weights = vec![(4, 16_383), (5, 32_767), (6, 49_149), (7, 65_535)];
    }
    input
}

#[test]
fn bonds_of_those_who_agree_go_by_stake() {
    let output = advance(&mut four_and_four());

    assert_eq!(output.incentive, [0, 0, 0, 0, 6553, 13107, 19660, 26214]);
    assert_eq!(output.dividends, [6553, 13106, 19660, 26214, 0, 0, 0, 0]);
    let emission = [
        49_999_998,
        99_999_999,
        150_000_000,
        200_000_001,
        49_998_779,
        100_000_610,
        149_996_337,
        200_004_272,
    ];
    assert_eq!(output.emission, emission);
    assert_eq!(
        output.server_emission,
        [[0; 4], [49_998_779, 100_000_610, 149_996_337, 200_004_272]].concat()
    );
    assert_eq!(
        output.validator_emission,
        [[49_999_998, 99_999_999, 150_000_000, 200_000_001], [0; 4]].concat()
    );
    assert_eq!(
        column(&output.bonds, 4),
        [16383, 32767, 49151, 65535, 0, 0, 0, 0]
    );
}

#[test]
fn bonds_of_those_who_stop_agreeing_fade() {
    let mut input = four_and_four();
    let servers = [49_998_779, 100_000_610, 149_996_337, 200_004_272];
    advance(&mut input);

    input.neurons[0].weights = vec![(0, 65_535)];
    let second = advance(&mut input);
    assert_eq!(second.dividends, [5897, 13252, 19879, 26505, 0, 0, 0, 0]);
    let validators = [44_998_351, 101_110_561, 151_667_215, 202_223_870];
    assert_eq!(second.emission, [validators, servers].concat());
    assert_eq!(column(&second.bonds, 4)[..4], [14582, 32767, 49151, 65535]);

    input.neurons[1].weights = vec![(1, 65_535)];
    let third = advance(&mut input);
    assert_eq!(third.dividends, [5307, 11927, 20699, 27599, 0, 0, 0, 0]);
    assert_eq!(column(&third.bonds, 4)[..4], [12603, 28321, 49151, 65535]);

    input.neurons[2].weights = vec![(2, 65_535)];
    let fourth = advance(&mut input);
    assert_eq!(fourth.consensus, [0; 8]);
    assert_eq!(fourth.incentive, [0; 8]);
    assert_eq!(fourth.dividends, [0; 8]);
    assert_eq!(fourth.server_emission, [0; 8]);
    let by_stake = [
        99_999_999,
        199_999_999,
        299_999_999,
        399_999_999,
        0,
        0,
        0,
        0,
    ];
    assert_eq!(fourth.emission, by_stake);
    assert_eq!(fourth.validator_emission, by_stake);
}

#[test]
fn stake_of_the_inactive_buys_no_bonds() {
    let mut input = input(neurons(&[1; 4]));
    for validator in &mut input.neurons[..2] {
        validator.weights = vec![(2, 65_535), (3, 65_535)];
    }
    let first = advance(&mut input);
    assert_eq!(first.dividends, [32767, 32767, 0, 0]);
    assert_eq!(first.emission, [250_000_000; 4]);

    input.block += input.parameters.activity_cutoff_blocks;
    input.neurons[0].last_update = input.block - 1;
    let second = advance(&mut input);
    assert_eq!(second.active, [true, false, false, false]);
    assert_eq!(second.dividends, [36044, 29490, 0, 0]);
    assert_eq!(
        second.emission,
        [274_999_999, 224_999_999, 250_000_000, 250_000_000]
    );

    input.neurons[1].last_update = input.block - 1;
    let third = advance(&mut input);
    assert_eq!(third.dividends, [35716, 29818, 0, 0]);
    assert_eq!(third.emission[..2], [272_501_132, 227_498_866]);
}

#[test]
fn permits_go_to_the_largest_stakes_and_of_equal_ones_to_higher_uids() {
    let mut input = input(neurons(&[5, 0, 5, 9, 5, 1]));
    input.parameters.max_allowed_validators = 3;
    let permits = epoch(&input).validator_permit;
    assert_eq!(permits, [false, false, true, true, true, false]);

    input.parameters.max_allowed_validators = 100;
    let permits = epoch(&input).validator_permit;
    assert_eq!(permits, [true, false, true, true, true, true]);
}

#[test]
fn who_loses_its_permit_loses_its_bonds() {
    let mut input = four_and_four();
    input.parameters.max_allowed_validators = 3;
    let output = advance(&mut input);
    assert_eq!(output.dividends[0], 6553);
    assert_eq!(column(&output.bonds, 4)[..4], [0, 32767, 49151, 65535]);
}

#[test]
fn stake_below_the_threshold_counts_as_none() {
    let mut input = input(neurons(&[1, 1, 2]));
    input.parameters.stake_threshold = 2;
    let output = epoch(&input);
    assert_eq!(output.stake_weight, [0, 0, 65535]);
    assert_eq!(output.validator_permit, [false, false, true]);
}

#[test]
fn without_a_permit_weights_do_not_count() {
    let mut input = four_and_four();
    for validator in &mut input.neurons[..4] {
        validator.validator_permit = false;
    }
    let output = epoch(&input);
    assert_eq!(output.incentive, [0; 8]);
    assert_eq!(output.validator_trust, [0; 8]);
    // Nobody has active stake, so stake itself is paid.
    assert_eq!(output.emission[..2], [99_999_999, 199_999_999]);
}

#[test]
fn only_the_owner_may_weigh_itself() {
    let mut input = input(neurons(&[1, 0]));
    input.neurons[0].weights = vec![(0, 65_535)];
    assert_eq!(epoch(&input).incentive, [0, 0]);

    input.parameters.owner = Some(0);
    assert_eq!(epoch(&input).incentive, [65535, 0]);
}

#[test]
fn weights_and_bonds_do_not_outlive_the_owner_of_a_uid() {
    let mut input = four_and_four();
    advance(&mut input);
    input.neurons[4].registered_at = BLOCK - 1;
    let output = epoch(&input);
    assert_eq!(output.incentive[4], 0);
    assert_eq!(column(&output.bonds, 4), [0; 8]);

    // Weights set since then count; bonds held from before the last tempo ended do not.
    input.neurons[4].registered_at = BLOCK - input.parameters.tempo_blocks;
    for validator in &mut input.neurons[..4] {
        validator.bonds = vec![(4, 65_535)];
    }
    let output = epoch(&input);
    assert_eq!(output.incentive[4], 6553);
    assert_eq!(column(&output.bonds, 4)[..4], [16383, 32767, 49151, 65535]);
}

#[test]
fn weights_above_consensus_are_cut_and_lower_the_trust_of_who_set_them() {
    let mut input = input(neurons(&[4, 6, 0, 0]));
    input.neurons[0].weights = vec![(2, 65_535)];
    input.neurons[1].weights = vec![(3, 65_535)];
    let output = epoch(&input);
    assert_eq!(output.consensus, [0, 0, 0, 65535]);
    assert_eq!(output.trust[2..], [0, 65535]);
    assert_eq!(output.incentive, [0, 0, 0, 65535]);
    assert_eq!(output.validator_trust, [0, 65535, 0, 0]);
    assert_eq!(column(&output.bonds, 2), [0; 4]);

    // Without a penalty the weight that nobody shares still buys its bond.
    input.parameters.bonds_penalty = 0;
    assert_eq!(column(&epoch(&input).bonds, 2), [65535, 0, 0, 0]);
    input.parameters.bonds_penalty = 1;
    assert_eq!(column(&epoch(&input).bonds, 2), [65535, 0, 0, 0]);
}

#[test]
fn yuma3_bonds_are_averages_of_weights_and_pay_by_the_stake_of_today() {
    let mut input = input(neurons(&[1, 1, 0, 0]));
    input.parameters.yuma3 = true;
    for validator in &mut input.neurons[..2] {
        validator.weights = vec![(2, 65_535), (3, 65_535)];
    }
    // 0.1 * 0.5 = 0.05, and 0.05 * 65535 = 3276.75.
    let first = advance(&mut input);
    assert_eq!(column(&first.bonds, 2), [3276, 3276, 0, 0]);
    assert_eq!(first.dividends, [32767, 32767, 0, 0]);

    // 0.9 * 3276 + 3276.75 = 6225.15.
    input.neurons[0].stake = 3;
    let second = advance(&mut input);
    assert_eq!(column(&second.bonds, 2), [6225, 6225, 0, 0]);
    assert_eq!(second.dividends, [49151, 16383, 0, 0]);
}

#[test]
fn of_two_weights_on_one_uid_the_first_counts_and_unknown_uids_are_ignored() {
    let mut input = input(neurons(&[1, 0, 0]));
    input.neurons[0].weights = vec![(2, 3), (9, 60_000), (1, 1), (2, 40_000)];
    assert_eq!(epoch(&input).incentive, [0, 16383, 49151]);
}

#[test]
fn pruning_scores_are_scaled_to_their_largest() {
    let output = epoch(&four_and_four());
    // To the nearest of 65,535 e / 200,004,272 for the emissions e above.
    let scores = [16383, 32767, 49150, 65534, 16383, 32767, 49149, 65535];
    assert_eq!(output.pruning_scores, scores);
}

#[test]
fn a_subnet_of_nobody_pays_nobody() {
    assert_eq!(epoch(&input(Vec::new())), EpochOutput::default());
}
