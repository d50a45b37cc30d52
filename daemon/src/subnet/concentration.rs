//! In how few hands a subnet is: its stake, the say over its weights, and what its miners are paid.
//!
//! Rule `say`: a validator has a say over weights while it has a permit, its last update is within the activity cutoff, and
//! the weights of it that are in force name somebody whom it may weigh: anyone but itself, which is for the owner's hotkey
//! alone. The chain gives every such validator as much say as it has stake, whatever it says, so that a share of the say is
//! a share of their stake. Last updates are read at the block of reading, where the chain reads them at its next epoch.

use gradmesh_chain::AccountId;
use gradmesh_chain::types::Neuron;
use gradmesh_protocol::concentration::Concentration;

use crate::status::SubnetConcentration;

/// What besides neurons the figures depend on.
pub struct Rules {
    /// Number of the block at which all was read.
    pub block: u64,
    /// Blocks after its last update in which a validator counts as active.
    pub activity_cutoff_blocks: u16,
    /// The hotkey that may weigh itself.
    pub owner_hotkey: AccountId,
}

/// The figures of a subnet.
///
/// `weights`: those in force, by uid, as [`gradmesh_chain::Client::weights`] has them.
pub fn concentration(
    neurons: &[Neuron],
    weights: &[(u16, Vec<(u16, u16)>)],
    rules: &Rules,
) -> SubnetConcentration {
    let validators = || neurons.iter().filter(|neuron| neuron.validator_permit);
    let stake_of_all = validators().next().is_none();
    let stakes: Vec<u64> = neurons
        .iter()
        .filter(|neuron| stake_of_all || neuron.validator_permit)
        .map(|neuron| neuron.stake_rao)
        .collect();
    let says: Vec<u64> = validators()
        .filter(|neuron| has_say(neuron, weights, rules))
        .map(|neuron| neuron.stake_rao)
        .collect();
    let incentives: Vec<u64> = neurons
        .iter()
        .map(|neuron| neuron.incentive.into())
        .filter(|incentive| *incentive > 0)
        .collect();
    SubnetConcentration {
        stake_of_all,
        stake: Concentration::of(&stakes).into(),
        weight: Concentration::of(&says).into(),
        incentive: Concentration::of(&incentives).into(),
    }
}

/// Rule `say`, for a neuron with a permit.
fn has_say(neuron: &Neuron, weights: &[(u16, Vec<(u16, u16)>)], rules: &Rules) -> bool {
    let active_until = neuron
        .last_update
        .saturating_add(rules.activity_cutoff_blocks.into());
    let owns = neuron.hotkey == rules.owner_hotkey;
    let row = weights.iter().find(|(uid, _)| *uid == neuron.uid);
    active_until >= rules.block
        && row.is_some_and(|(_, row)| {
            let mut entries = row.iter();
            entries.any(|(uid, weight)| *weight > 0 && (*uid != neuron.uid || owns))
        })
}

#[cfg(test)]
mod tests {
    use super::super::discovery::tests::neuron;
    use super::*;

    const BLOCK: u64 = 10_000;

    fn rules(owner: u8) -> Rules {
        Rules {
            block: BLOCK,
            activity_cutoff_blocks: 5000,
            owner_hotkey: AccountId([owner; 32]),
        }
    }

    /// A neuron with a permit that set weights just now.
    fn validator(uid: u16, stake_rao: u64) -> Neuron {
        Neuron {
            validator_permit: true,
            last_update: BLOCK - 10,
            ..neuron(uid, stake_rao)
        }
    }

    fn miner(uid: u16, stake_rao: u64, incentive: u16) -> Neuron {
        Neuron {
            incentive,
            ..neuron(uid, stake_rao)
        }
    }

    #[test]
    fn stake_is_that_of_validators_and_incentive_that_of_who_is_paid() {
        let neurons = [
            validator(0, 60),
            validator(1, 40),
            miner(2, 900, 45_000),
            miner(3, 0, 20_535),
            miner(4, 0, 0),
        ];
        let of = concentration(&neurons, &[], &rules(9));
        assert!(!of.stake_of_all);
        let stake = (of.stake.holders, of.stake.top_1_ppm, of.stake.nakamoto);
        assert_eq!(stake, (2, 600_000, 1));
        let incentive = (of.incentive.holders, of.incentive.top_1_ppm);
        // 45,000 of 65,535, rounded down.
        assert_eq!(incentive, (2, 686_655));
    }

    #[test]
    fn without_a_permit_anywhere_stake_is_that_of_everybody() {
        let neurons = [miner(0, 30, 0), miner(1, 10, 0)];
        let of = concentration(&neurons, &[], &rules(9));
        assert!(of.stake_of_all);
        assert_eq!((of.stake.holders, of.stake.top_1_ppm), (2, 750_000));
        assert_eq!(of.weight.holders, 0);
    }

    #[test]
    fn say_is_with_those_whose_weights_count() {
        let long_ago = Neuron {
            last_update: BLOCK - 5001,
            ..validator(2, 1000)
        };
        let just_in_time = Neuron {
            last_update: BLOCK - 5000,
            ..validator(1, 10)
        };
        let neurons = [
            validator(0, 30),
            just_in_time,
            long_ago,
            validator(3, 1000),
            validator(4, 1000),
            validator(5, 1000),
            miner(6, 1000, 9),
        ];
        let others = |uid| (uid, vec![(uid, 0), (6, 7)]);
        let weights = [
            others(0),
            others(1),
            others(2),
            // 3 has set none, 4 weighs only itself, 5 gives everyone zero, and 6 may not set any.
            (4, vec![(4, 65_535), (6, 0)]),
            (5, vec![(0, 0)]),
            others(6),
        ];
        let of = concentration(&neurons, &weights, &rules(9));
        assert_eq!((of.weight.holders, of.weight.top_1_ppm), (2, 750_000));

        // The owner may weigh itself: 1,000 of 1,040.
        let of = concentration(&neurons, &weights, &rules(4));
        assert_eq!((of.weight.holders, of.weight.top_1_ppm), (3, 961_538));
    }
}
