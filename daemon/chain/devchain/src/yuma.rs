//! Computes one epoch of a subnet by Yuma consensus: what each neuron has earned, and who may validate next.
//!
//! A pure function of plain numbers: it knows no storage, no account and no clock, and it keeps nothing between calls. It
//! models subtensor's sparse epoch in its order of steps and in its fixed-point types, so that results agree bit for bit;
//! liquid alpha is not modelled.

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
/// Cost: O(entries of weights and bonds + neurons^2 log neurons). Accepts any numbers; never panics.
pub fn epoch(_input: &EpochInput) -> EpochOutput {
    EpochOutput::default()
}
