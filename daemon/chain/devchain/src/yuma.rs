//! Computes one epoch of a subnet by Yuma consensus: what each neuron has earned, and who may validate next.
//!
//! A pure function of plain numbers: it knows no storage, no account and no clock, and it keeps nothing between calls. It
//! models subtensor's sparse epoch in its order of steps and in its fixed-point types, so that results agree bit for bit. Two
//! things are left out: liquid alpha, and that weights on a uid which changed hands after a commit that is still hidden do not
//! count.
//!
//! Rule `rounding`: shares are I32F32 and rounded down at every multiplication and division; stake is divided as I64F64 first;
//! rao are I96F32, rounded down to whole ones. What is stored as u16 is rounded down, but pruning scores to the nearest.

mod bonds;
mod consensus;
mod matrix;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use fixed::types::{I32F32, I64F64, I96F32};

use bonds::{Bonds, Holdings};
use consensus::weighted_medians;
use matrix::{Matrix, normalized, ratio, sum};

/// As many as a u16 can name.
const UIDS_MAX: usize = 1 << 16;

/// One, in the parts in which the chain stores shares.
const WHOLE: I32F32 = I32F32::lit("65535");

/// What one epoch is computed from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochInput {
    /// The current block.
    pub block: u64,
    /// What incentive and dividends share, in rao; half of it goes to each when both exist.
    pub emission: u64,
    pub parameters: Parameters,
    /// One entry per uid, in order of uid. Uids are u16: entries beyond the first 65,536 take no part.
    pub neurons: Vec<Neuron>,
}

/// One uid as the chain stores it before the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neuron {
    /// Stake weight of the hotkey on this subnet, in rao.
    pub stake: u64,
    /// The block at which the hotkey took this uid.
    pub registered_at: u64,
    /// The block at which weights were last set.
    pub last_update: u64,
    /// Whether the neuron may set weights in this epoch.
    pub validator_permit: bool,
    /// (uid, weight), any scale. Uids that do not exist are ignored; of two entries of one uid the first counts.
    pub weights: Vec<(u16, u16)>,
    /// (uid, bond) as [`EpochOutput::bonds`] gave them; read by the same rules as the weights.
    pub bonds: Vec<(u16, u16)>,
}

/// Hyperparameters of the subnet. The defaults are those of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Blocks between epochs: bonds on uids registered within the last `tempo_blocks` are dropped.
    pub tempo_blocks: u64,
    /// A neuron whose last update is older than this takes no part.
    pub activity_cutoff_blocks: u64,
    /// How many permits the epoch gives.
    pub max_allowed_validators: u16,
    /// Stake below this counts as none, in rao.
    pub stake_threshold: u64,
    /// Share of the stake that has to agree on a weight, in parts of 65,535.
    pub kappa: u16,
    /// Weight of the old bonds in the moving average, in parts of 1,000,000; more counts as all.
    pub bonds_moving_average: u64,
    /// How far weights above consensus are cut before they count as bonds, in parts of 65,535.
    pub bonds_penalty: u16,
    /// Bonds by Yuma3 (an average of weights, stake counted at pay time) instead of the classic ones.
    pub yuma3: bool,
    /// The subnet owner's uid: its weight on itself counts.
    pub owner: Option<u16>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            tempo_blocks: 360,
            activity_cutoff_blocks: 5000,
            max_allowed_validators: 128,
            stake_threshold: 0,
            kappa: 32_767,
            bonds_moving_average: 900_000,
            bonds_penalty: u16::MAX,
            yuma3: false,
            owner: None,
        }
    }
}

/// What the chain stores after the epoch. Every vector has one entry per uid; u16 values are parts of 65,535, rounded down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochOutput {
    /// Whether the last update is within the cutoff.
    pub active: Vec<bool>,
    /// Share of the subnet's stake.
    pub stake_weight: Vec<u16>,
    /// The weight on which enough stake agrees.
    pub consensus: Vec<u16>,
    /// Share of the clipped, stake-weighted weights.
    pub incentive: Vec<u16>,
    pub dividends: Vec<u16>,
    /// Equal to the incentive.
    pub rank: Vec<u16>,
    /// Rank after clipping over rank before it.
    pub trust: Vec<u16>,
    /// How much of a validator's weights survived clipping.
    pub validator_trust: Vec<u16>,
    /// By incentive and dividends together, in rao. Not the sum of the two below to the last rao: each is rounded down alone.
    pub emission: Vec<u64>,
    /// By incentive, in rao.
    pub server_emission: Vec<u64>,
    /// By dividends, in rao; by stake when there are neither incentive nor dividends.
    pub validator_emission: Vec<u64>,
    /// Share of the emission, as the chain ranks neurons for pruning.
    pub pruning_scores: Vec<u16>,
    /// Who may validate in the next epoch.
    pub validator_permit: Vec<bool>,
    /// Rows in order of uid. Empty for a neuron without a permit for the next epoch.
    pub bonds: Vec<Vec<(u16, u16)>>,
}

/// Computes one epoch.
///
/// Cost: O(e log e) for e neurons and entries together. Accepts any numbers; never panics.
pub fn epoch(input: &EpochInput) -> EpochOutput {
    let parameters = &input.parameters;
    let uids = input.neurons.len().min(UIDS_MAX);
    let neurons = &input.neurons[..uids];

    let cutoff = parameters.activity_cutoff_blocks;
    let active = neurons
        .iter()
        .map(|neuron| neuron.last_update.saturating_add(cutoff) >= input.block)
        .collect::<Vec<_>>();
    let stake = normalized_stake(neurons, parameters.stake_threshold);
    let next_permits = largest(&stake, usize::from(parameters.max_allowed_validators));
    let votes = neurons
        .iter()
        .zip(&active)
        .zip(&stake)
        .map(|((neuron, active), stake)| {
            let counts = *active && neuron.validator_permit;
            if counts { *stake } else { I32F32::ZERO }
        });
    let active_stake = normalized(&votes.collect::<Vec<_>>());

    let weights = counting_weights(neurons, parameters.owner);
    let kappa = ratio(I32F32::from_num(parameters.kappa), WHOLE);
    let consensus = weighted_medians(&active_stake, &weights, kappa);
    let clipped = weights.map(|_, column, weight| weight.min(consensus[column]));
    let validator_trust = clipped.row_sums();

    let rank_before = weights.weighted_column_sums(&active_stake);
    let rank = clipped.weighted_column_sums(&active_stake);
    let trust = rank
        .iter()
        .zip(rank_before)
        .map(|(after, before)| ratio(*after, before));
    let trust = trust.collect::<Vec<_>>();
    let incentive = normalized(&rank);

    let Bonds { stored, dividends } = bonds::update(&Holdings {
        bonds: standing_bonds(input, neurons),
        weights: penalized(&weights, &clipped, parameters.bonds_penalty),
        active_stake: &active_stake,
        incentive: &incentive,
        parameters,
    });

    let pay = Shares::new(&incentive, &dividends, &active_stake, &stake);
    EpochOutput {
        active,
        stake_weight: proportions(&stake),
        consensus: proportions(&consensus),
        incentive: proportions(&incentive),
        dividends: proportions(&dividends),
        rank: proportions(&incentive),
        trust: proportions(&trust),
        validator_trust: proportions(&validator_trust),
        emission: rao(&pay.combined, input.emission),
        server_emission: rao(&pay.servers, input.emission),
        validator_emission: rao(&pay.validators, input.emission),
        pruning_scores: upscaled(&pay.combined),
        bonds: stored_bonds(&stored, &next_permits),
        validator_permit: next_permits,
    }
}

/// Each neuron's part of the stake, at the precision of stake and then at that of everything else.
fn normalized_stake(neurons: &[Neuron], threshold: u64) -> Vec<I32F32> {
    let counted = neurons.iter().map(|neuron| {
        let counts = neuron.stake >= threshold;
        I64F64::saturating_from_num(if counts { neuron.stake } else { 0 })
    });
    let counted = counted.collect::<Vec<_>>();
    let whole = counted
        .iter()
        .copied()
        .fold(I64F64::ZERO, I64F64::saturating_add);
    if whole == I64F64::ZERO {
        return vec![I32F32::ZERO; neurons.len()];
    }
    let part = |stake: I64F64| I32F32::saturating_from_num(stake.saturating_div(whole));
    counted.into_iter().map(part).collect()
}

/// Which are more than zero and among the `count` largest; of equal ones the higher uids come first.
fn largest(stake: &[I32F32], count: usize) -> Vec<bool> {
    let mut descending = (0..stake.len()).collect::<Vec<_>>();
    descending.sort_unstable_by_key(|uid| Reverse((stake[*uid], *uid)));
    let mut chosen = vec![false; stake.len()];
    for uid in descending.into_iter().take(count) {
        chosen[uid] = stake[uid] > I32F32::ZERO;
    }
    chosen
}

/// The weights that count: of neurons with a permit, not on oneself unless one owns the subnet, not older than the
/// registration of their target. Rows sum to one.
fn counting_weights(neurons: &[Neuron], owner: Option<u16>) -> Matrix {
    let rows = neurons.iter().map(|neuron| neuron.weights.as_slice());
    let mut weights = Matrix::read(rows, neurons.len());
    let owner = owner.map(usize::from);
    weights.retain(|from, to| {
        neurons[from].validator_permit
            && (from != to || owner == Some(from))
            && neurons[from].last_update > neurons[to].registered_at
    });
    weights.rows_normalized()
}

/// The bonds that stand: not on a uid whose registration falls within the last tempo.
fn standing_bonds(input: &EpochInput, neurons: &[Neuron]) -> Matrix {
    let rows = neurons.iter().map(|neuron| neuron.bonds.as_slice());
    let mut bonds = Matrix::read(rows, neurons.len());
    let since = input.block.saturating_sub(input.parameters.tempo_blocks);
    bonds.retain(|_, to| neurons[to].registered_at < since);
    bonds
}

/// The weights that turn into bonds: between the weights as set (no penalty) and as clipped (all of it).
fn penalized(weights: &Matrix, clipped: &Matrix, penalty: u16) -> Matrix {
    match penalty {
        0 => weights.clone(),
        u16::MAX => clipped.clone(),
        _ => {
            let penalty = ratio(I32F32::from_num(penalty), WHOLE);
            weights.merge(clipped, |set, clipped| {
                set.saturating_add(penalty.saturating_mul(clipped.saturating_sub(set)))
            })
        }
    }
}

/// Each neuron's part of the emission.
struct Shares {
    servers: Vec<I32F32>,
    validators: Vec<I32F32>,
    combined: Vec<I32F32>,
}

impl Shares {
    /// By incentive and dividends; where there are neither, by active stake, and where there is none, by stake.
    fn new(
        incentive: &[I32F32],
        dividends: &[I32F32],
        active_stake: &[I32F32],
        stake: &[I32F32],
    ) -> Self {
        let both = incentive.iter().zip(dividends);
        let combined = both.map(|(i, d)| i.saturating_add(*d)).collect::<Vec<_>>();
        let whole = sum(combined.iter().copied());
        if whole > I32F32::ZERO {
            let part = |share: &I32F32| ratio(*share, whole);
            return Self {
                servers: incentive.iter().map(part).collect(),
                validators: dividends.iter().map(part).collect(),
                combined: combined.iter().map(part).collect(),
            };
        }
        let is_idle = active_stake.iter().all(|stake| *stake == I32F32::ZERO);
        let paid = if is_idle { stake } else { active_stake };
        Self {
            servers: vec![I32F32::ZERO; stake.len()],
            validators: paid.to_vec(),
            combined: paid.to_vec(),
        }
    }
}

/// Rows of bonds as stored: only of those who may validate next.
fn stored_bonds(bonds: &Matrix, permits: &[bool]) -> Vec<Vec<(u16, u16)>> {
    let rows = bonds.rows().iter().zip(permits).map(|(row, permit)| {
        let kept = if *permit { row.as_slice() } else { &[] };
        let stored = |&(uid, bond)| (uid, proportion(bond));
        kept.iter().map(stored).collect()
    });
    rows.collect()
}

/// floor(share * 65,535).
fn proportion(share: I32F32) -> u16 {
    share.saturating_mul(WHOLE).saturating_to_num()
}

fn proportions(shares: &[I32F32]) -> Vec<u16> {
    shares.iter().map(|share| proportion(*share)).collect()
}

/// Shares scaled so that the largest is 65,535, rounded to the nearest.
fn upscaled(shares: &[I32F32]) -> Vec<u16> {
    let largest = shares.iter().copied().max().unwrap_or_default();
    let scaled = |share: &I32F32| ratio(share.saturating_mul(WHOLE), largest);
    let rounded = |share| scaled(share).saturating_round().saturating_to_num();
    shares.iter().map(rounded).collect()
}

/// floor(share * emission).
fn rao(shares: &[I32F32], emission: u64) -> Vec<u64> {
    let emission = I96F32::from_num(emission);
    let paid = |share: &I32F32| I96F32::from_num(*share).saturating_mul(emission);
    shares
        .iter()
        .map(|share| paid(share).saturating_to_num())
        .collect()
}
