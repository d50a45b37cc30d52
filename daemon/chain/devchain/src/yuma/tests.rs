//! The epoch against numbers that subtensor's own tests state.

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
