//! A subnet of miners and validators, run epoch by epoch through the chain's Yuma.
//!
//! Rule `lag`: weights that are committed in epoch t are revealed in epoch t + p and count in the run that ends it, where p
//! is the reveal period. They are public from the first block of epoch t + p on, so that a copy of them is committed in
//! that epoch at the earliest and counts in the run that ends epoch t + 2p: p runs after the original.
//!
//! Rule `work`: a miner's true share of an epoch is its power over the sum of the powers of all miners that count. Stakes
//! stay as they are: dividends are not staked again.

use gradmesh_devchain::yuma::{self, EpochInput, EpochOutput, Neuron, Parameters};

/// Blocks from one run to the next.
const TEMPO_BLOCKS: u64 = 360;
/// Blocks into an epoch at which validators commit: later than the reveals, and further from the last than the rate limit.
const COMMIT_BLOCK: u64 = 200;
/// Block at which epoch 0 begins.
const START_BLOCK: u64 = 10_000;
/// What a run divides, in rao. Large, so that what it rounds is small.
const EMISSION: u64 = 1 << 50;
/// Runs that are not counted: bonds start at zero, and reach all but 0.9^60 = 0.2 % of where they go.
const RUN_IN: usize = 60;

/// How a validator comes to its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// Measures every miner in every epoch.
    Audits,
    /// Sends the mean, by stake, of the weights of auditors that were revealed last.
    Copies,
    /// Takes what each miner claims to have done, and how the revealed weights departed from the claims of their epoch.
    Counts,
    /// Sends equal weights for all miners, always.
    Equal,
}

/// A subnet. Shares of stake need not add up to anything.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Who validates, with how much stake.
    pub(crate) validators: Vec<(Conduct, u64)>,
    /// Miners at the start.
    pub(crate) miners: usize,
    /// The most by which a miner's power changes from one epoch to the next, as a share of it.
    pub(crate) drift: f64,
    /// The most by which what is measured of a miner in an epoch is off, the same for all auditors: they look at the same
    /// picks.
    pub(crate) common_noise: f64,
    /// The same for each auditor by itself.
    pub(crate) own_noise: f64,
    /// Whether a miner is caught cheating after 50 counted epochs, and one joins after 75, 100 and 125.
    pub(crate) events: bool,
    /// Epochs between commit and reveal.
    pub(crate) reveal_period: usize,
    /// Runs that are counted.
    pub(crate) epochs: usize,
    /// Bonds by Yuma3.
    pub(crate) yuma3: bool,
}

impl Setting {
    /// Four auditors, one validator that copies and one that sends equal weights, all with the same stake, for 16 miners.
    pub(crate) fn new() -> Setting {
        let mut validators = vec![(Conduct::Audits, 100); 4];
        validators.extend([(Conduct::Copies, 100), (Conduct::Equal, 100)]);
        Setting {
            validators,
            miners: 16,
            drift: 0.0,
            common_noise: 0.0,
            own_noise: 0.0,
            events: false,
            reveal_period: 1,
            epochs: 200,
            yuma3: false,
        }
    }
}

/// One counted run.
pub(crate) struct Run {
    /// Dividends of each validator over its share of the stake, as a share of all dividends: 1 is what stake alone earns.
    pub(crate) rates: Vec<f64>,
    /// Validator trust of each, of 65,535.
    pub(crate) trust: Vec<u16>,
    /// Weights in force of each validator, as shares of the miners.
    pub(crate) shares: Vec<Vec<f64>>,
    /// How far true shares are from those of one reveal period before: half the sum of the differences.
    pub(crate) moved: f64,
}

/// All counted runs of a subnet.
pub(crate) struct Outcome {
    validators: Vec<(Conduct, u64)>,
    pub(crate) runs: Vec<Run>,
}

impl Outcome {
    /// Mean dividends of those who behave so, per stake; 1 is what stake alone earns.
    pub(crate) fn rate(&self, conduct: Conduct) -> f64 {
        self.mean_of(conduct, |run, place| run.rates[place])
    }

    /// Mean validator trust of those who behave so.
    pub(crate) fn trust(&self, conduct: Conduct) -> f64 {
        self.mean_of(conduct, |run, place| {
            f64::from(run.trust[place]) / f64::from(u16::MAX)
        })
    }

    /// Validators with equal figures in every run have equal means, to the last bit.
    fn mean_of(&self, conduct: Conduct, figure: impl Fn(&Run, usize) -> f64) -> f64 {
        let places = 0..self.validators.len();
        let such = places.filter(|place| self.validators[*place].0 == conduct);
        mean(such.map(|place| mean(self.runs.iter().map(|run| figure(run, place)))))
    }

    /// What of an auditor's dividends one who behaves so does without: negative where it earns more.
    pub(crate) fn loss(&self, conduct: Conduct) -> f64 {
        1.0 - self.rate(conduct) / self.rate(Conduct::Audits)
    }

    /// Mean of [`Run::moved`].
    pub(crate) fn moved(&self) -> f64 {
        mean(self.runs.iter().map(|run| run.moved))
    }
}

pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// Half the sum of the differences of two lists of shares; a list that is shorter goes on with zeros.
pub(crate) fn distance(a: &[f64], b: &[f64]) -> f64 {
    let at = |list: &[f64], place: usize| list.get(place).copied().unwrap_or(0.0);
    let places = 0..a.len().max(b.len());
    places
        .map(|place| (at(a, place) - at(b, place)).abs())
        .sum::<f64>()
        / 2.0
}

/// Values over their sum.
pub(crate) fn shares(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.into_iter().collect();
    let sum: f64 = values.iter().sum();
    values.iter().map(|value| value / sum).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Even in -1..1.
    fn symmetric(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

struct Miner {
    power: f64,
    joined_at: u64,
    caught: bool,
}

/// What was known in one epoch.
struct Epoch {
    /// What each miner claims.
    claims: Vec<f64>,
    /// True shares.
    shares: Vec<f64>,
    /// Weights of each validator for the miners.
    sent: Vec<Vec<u16>>,
}

/// Runs `setting`; the same seed gives the same figures.
pub(crate) fn run(setting: &Setting, seed: u64) -> Outcome {
    let mut random = Random(seed);
    let mut miners: Vec<Miner> = (0..setting.miners)
        .map(|_| Miner {
            // One to eight times the smallest, evenly in the logarithm.
            power: 8_f64.powf((random.symmetric() + 1.0) / 2.0),
            joined_at: 0,
            caught: false,
        })
        .collect();
    let mut history: Vec<Epoch> = Vec::new();
    let mut bonds: Vec<Vec<(u16, u16)>> = Vec::new();
    let mut runs = Vec::new();
    for epoch in 0..RUN_IN + setting.epochs {
        let begin = START_BLOCK + TEMPO_BLOCKS * epoch as u64;
        if setting.events {
            happen(&mut miners, epoch, begin);
        }
        for miner in &mut miners {
            miner.power *= 1.0 + setting.drift * random.symmetric();
        }
        let known = know(setting, &miners, &history, &mut random);
        history.push(known);
        let Some(counts) = epoch.checked_sub(setting.reveal_period) else {
            continue;
        };
        let input = input(setting, &miners, &history[counts], bonds, begin);
        let output = yuma::epoch(&input);
        if epoch >= RUN_IN {
            let earlier = counts.saturating_sub(setting.reveal_period);
            let moved = distance(&history[counts].shares, &history[earlier].shares);
            runs.push(counted(setting, &history[counts], &output, moved));
        }
        bonds = output.bonds;
    }
    Outcome {
        validators: setting.validators.clone(),
        runs,
    }
}

/// A miner is caught in epoch 50 and gets nothing from then on; others join in epochs 75, 100 and 125.
fn happen(miners: &mut Vec<Miner>, epoch: usize, block: u64) {
    let Some(counted) = epoch.checked_sub(RUN_IN) else {
        return;
    };
    match counted {
        50 => miners[0].caught = true,
        75 | 100 | 125 => miners.push(Miner {
            power: 3.0,
            joined_at: block + 1,
            caught: false,
        }),
        _ => {}
    }
}

/// Measures and decides on weights.
fn know(setting: &Setting, miners: &[Miner], history: &[Epoch], random: &mut Random) -> Epoch {
    let honest = |miner: &Miner| if miner.caught { 0.0 } else { miner.power };
    let mut off = |noise: f64| -> Vec<f64> {
        miners
            .iter()
            .map(|_| 1.0 + noise * random.symmetric())
            .collect()
    };
    let common = off(setting.common_noise);
    let claims: Vec<f64> = miners.iter().map(|miner| miner.power).collect();
    // In the epoch in which this is decided, the weights of so many epochs ago have just been revealed.
    let revealed = history.len().checked_sub(setting.reveal_period);
    let revealed = revealed.map(|epoch| &history[epoch]);
    let mut measured = || -> Vec<f64> {
        let own = off(setting.own_noise);
        let noises = common.iter().zip(own);
        let noisy = miners.iter().zip(noises);
        noisy
            .map(|(miner, (common, own))| honest(miner) * common * own)
            .collect()
    };
    let sent = setting.validators.iter().map(|(conduct, _)| {
        let scores = match (conduct, revealed) {
            (Conduct::Equal, _) => vec![1.0; miners.len()],
            // Nothing is public yet: whoever copies or counts later has to look for itself.
            (Conduct::Audits, _) | (_, None) => measured(),
            (Conduct::Copies, Some(revealed)) => copied(setting, revealed, miners.len()),
            (Conduct::Counts, Some(revealed)) => {
                let factors = departures(setting, revealed, miners.len());
                let counted = claims.iter().zip(factors);
                counted.map(|(claim, factor)| claim * factor).collect()
            }
        };
        upscaled(&scores)
    });
    let sent = sent.collect();
    Epoch {
        claims,
        shares: shares(miners.iter().map(honest)),
        sent,
    }
}

/// For each miner, revealed weight over claim of that epoch, both as shares; 1 for a miner that came later.
fn departures(setting: &Setting, revealed: &Epoch, miners: usize) -> Vec<f64> {
    let claimed = shares(revealed.claims.iter().copied());
    let weights = copied(setting, revealed, miners);
    let mut factors = vec![1.0; miners];
    for (factor, (weight, claim)) in factors.iter_mut().zip(weights.iter().zip(claimed)) {
        *factor = weight / claim;
    }
    factors
}

/// The mean by stake of what the auditors sent, as shares; zero for a miner that came later.
fn copied(setting: &Setting, of: &Epoch, miners: usize) -> Vec<f64> {
    let mut sum = vec![0.0; miners];
    for ((conduct, stake), sent) in setting.validators.iter().zip(&of.sent) {
        if *conduct == Conduct::Audits {
            for (sum, share) in sum
                .iter_mut()
                .zip(shares(sent.iter().copied().map(f64::from)))
            {
                *sum += share * *stake as f64;
            }
        }
    }
    shares(sum)
}

/// Scores as weights: the largest is 65,535, to the nearest.
fn upscaled(scores: &[f64]) -> Vec<u16> {
    let largest = scores.iter().copied().fold(0.0, f64::max);
    scores
        .iter()
        .map(|score| (score / largest * 65_535.0).round() as u16)
        .collect()
}

fn input(
    setting: &Setting,
    miners: &[Miner],
    in_force: &Epoch,
    bonds: Vec<Vec<(u16, u16)>>,
    begin: u64,
) -> EpochInput {
    let first_miner = setting.validators.len();
    let mut neurons: Vec<Neuron> = Vec::new();
    for ((_, stake), sent) in setting.validators.iter().zip(&in_force.sent) {
        // All uids are named: the validators' own with zero.
        let none = vec![0; first_miner];
        neurons.push(Neuron {
            stake: stake * 1_000_000_000,
            last_update: begin + COMMIT_BLOCK,
            validator_permit: true,
            weights: (0..).zip([none.as_slice(), sent].concat()).collect(),
            ..Neuron::default()
        });
    }
    neurons.extend(miners.iter().map(|miner| Neuron {
        registered_at: miner.joined_at,
        ..Neuron::default()
    }));
    for (neuron, row) in neurons.iter_mut().zip(bonds) {
        neuron.bonds = row;
    }
    EpochInput {
        block: begin + TEMPO_BLOCKS,
        emission: EMISSION,
        parameters: Parameters {
            tempo_blocks: TEMPO_BLOCKS,
            yuma3: setting.yuma3,
            ..Parameters::default()
        },
        neurons,
    }
}

fn counted(setting: &Setting, in_force: &Epoch, output: &EpochOutput, moved: f64) -> Run {
    let whole: u64 = setting.validators.iter().map(|(_, stake)| stake).sum();
    let paid: u64 = output.validator_emission.iter().sum();
    let rates = setting.validators.iter().zip(&output.validator_emission);
    let rates = rates.map(|((_, stake), earned)| {
        (*earned as f64 / paid as f64) / (*stake as f64 / whole as f64)
    });
    Run {
        rates: rates.collect(),
        trust: output.validator_trust[..setting.validators.len()].to_vec(),
        shares: in_force
            .sent
            .iter()
            .map(|sent| shares(sent.iter().copied().map(f64::from)))
            .collect(),
        moved,
    }
}
