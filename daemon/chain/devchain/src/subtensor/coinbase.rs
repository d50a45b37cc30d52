//! What happens at the start of every block: prices fall, commits open, emission is collected, epochs run.
//!
//! Rule `emission`: a block emits [`Config::BlockEmission`] rao, divided evenly among the subnets that have been started;
//! what does not divide is not emitted. A subnet's part goes into its pool as TAO and waits as alpha: 18% for its owner, half
//! of the rest for incentive, half for dividends. An epoch pays all that waits. What its rounding leaves waits on.
//!
//! The owner is paid on the owner's hotkey, a server on its own hotkey for its coldkey. A validator's hotkey takes 18% of
//! its dividends for its coldkey; the rest is for all who have staked on it.

use frame_support::traits::Get;

use super::neurons::entry;
use super::*;
use crate::{emission, yuma};

impl<T: Config> Pallet<T> {
    /// Whether an epoch of the subnet is due in `block`.
    pub fn is_epoch_due(netuid: u16, block: u64) -> bool {
        let pending = PendingEpochAt::<T>::get(netuid);
        let age = block.saturating_sub(LastEpochBlock::<T>::get(netuid));
        (pending != 0 && block >= pending) || age >= u64::from(Tempo::<T>::get(netuid))
    }

    /// The block of the next epoch if nothing changes the schedule.
    pub fn next_epoch_block(netuid: u16) -> u64 {
        let tempo = u64::from(Tempo::<T>::get(netuid));
        let regular = LastEpochBlock::<T>::get(netuid).saturating_add(tempo);
        match PendingEpochAt::<T>::get(netuid) {
            0 => regular,
            pending => pending.min(regular),
        }
    }

    /// Does what is due at the start of a block.
    pub(super) fn step() {
        let block = Self::block();
        let subnets = 1..TotalNetworks::<T>::get();
        let started = subnets
            .clone()
            .filter(|netuid| Self::is_started(*netuid, block));
        Self::emit(&started.collect::<Vec<_>>());
        for netuid in subnets {
            Self::decay_burn(netuid);
            Self::reveal_timelocked(netuid);
            if Self::is_epoch_due(netuid, block) {
                Self::run_epoch(netuid, block);
            } else {
                BlocksSinceLastStep::<T>::mutate(netuid, |since| *since = since.saturating_add(1));
            }
        }
    }

    fn is_started(netuid: u16, block: u64) -> bool {
        FirstEmissionBlockNumber::<T>::get(netuid).is_some_and(|first| block >= first)
    }

    /// Divides a block's emission among `subnets`.
    fn emit(subnets: &[u16]) {
        let receivers = u64::try_from(subnets.len()).unwrap_or(u64::MAX);
        let Some(part) = T::BlockEmission::get().checked_div(receivers) else {
            return;
        };
        let split = emission::split(part, SubnetOwnerCut::<T>::get());
        for netuid in subnets {
            TotalIssuance::<T>::mutate(add(part));
            Self::fill_pool(*netuid, part);
            PendingOwnerCut::<T>::mutate(netuid, add(split.owner));
            PendingServerEmission::<T>::mutate(netuid, add(split.servers));
            PendingValidatorEmission::<T>::mutate(netuid, add(split.validators));
        }
    }

    /// Computes an epoch, stores what it says of each neuron and pays what waits.
    fn run_epoch(netuid: u16, block: u64) {
        let waiting = PendingServerEmission::<T>::take(netuid)
            .saturating_add(PendingValidatorEmission::<T>::take(netuid));
        let epoch = yuma::epoch(&Self::epoch_input(netuid, block, waiting));

        let paid = Self::pay(netuid, &epoch);
        let left = emission::split(waiting.saturating_sub(paid), 0);
        PendingServerEmission::<T>::insert(netuid, left.servers);
        PendingValidatorEmission::<T>::insert(netuid, left.validators);
        let (owner, owner_cut) = (
            SubnetOwner::<T>::get(netuid),
            PendingOwnerCut::<T>::take(netuid),
        );
        Self::credit(
            &SubnetOwnerHotkey::<T>::get(netuid),
            &owner,
            netuid,
            owner_cut,
        );

        Self::store_epoch(netuid, epoch);
        BlocksSinceLastStep::<T>::insert(netuid, 0);
        LastMechansimStepBlock::<T>::insert(netuid, block);
        LastEpochBlock::<T>::insert(netuid, block);
        PendingEpochAt::<T>::insert(netuid, 0);
        SubnetEpochIndex::<T>::mutate(netuid, add(1));
    }

    fn epoch_input(netuid: u16, block: u64, emission: u64) -> yuma::EpochInput {
        let last_update = LastUpdate::<T>::get(netuid);
        let validator_permit = ValidatorPermit::<T>::get(netuid);
        let neurons = (0..SubnetworkN::<T>::get(netuid)).map(|uid| yuma::Neuron {
            stake: Self::stake_weight(&Keys::<T>::get(netuid, uid), netuid).total(),
            registered_at: BlockAtRegistration::<T>::get(netuid, uid),
            last_update: entry(&last_update, uid),
            validator_permit: entry(&validator_permit, uid),
            weights: Weights::<T>::get(netuid, uid),
            bonds: Bonds::<T>::get(netuid, uid),
        });
        yuma::EpochInput {
            block,
            emission,
            parameters: yuma::Parameters {
                tempo_blocks: Tempo::<T>::get(netuid).into(),
                activity_cutoff_blocks: ActivityCutoff::<T>::get(netuid).into(),
                max_allowed_validators: MaxAllowedValidators::<T>::get(netuid),
                stake_threshold: StakeThreshold::<T>::get(),
                kappa: Kappa::<T>::get(netuid),
                bonds_moving_average: BondsMovingAverage::<T>::get(netuid),
                bonds_penalty: BondsPenalty::<T>::get(netuid),
                yuma3: Yuma3On::<T>::get(netuid),
                owner: Self::owner_uid(netuid),
            },
            neurons: neurons.collect(),
        }
    }

    /// Pays every neuron; returns how much in all.
    fn pay(netuid: u16, epoch: &yuma::EpochOutput) -> u64 {
        // No more hotkeys can have dividends than there are uids.
        let _ = AlphaDividendsPerSubnet::<T>::clear_prefix(netuid, u32::MAX, None);
        let earned = epoch.server_emission.iter().zip(&epoch.validator_emission);
        let mut paid = 0_u64;
        for (uid, (incentive, dividends)) in (0..=u16::MAX).zip(earned) {
            let hotkey = Keys::<T>::get(netuid, uid);
            let dividends = emission::delegate_take(*dividends, Delegates::<T>::get(&hotkey));
            let own = incentive.saturating_add(dividends.delegate);
            if dividends.nominators > 0 {
                Self::credit_holders(&hotkey, netuid, dividends.nominators);
                AlphaDividendsPerSubnet::<T>::insert(netuid, &hotkey, dividends.nominators);
            }
            if own > 0 {
                Self::credit(&hotkey, &Owner::<T>::get(&hotkey), netuid, own);
            }
            paid = paid
                .saturating_add(own)
                .saturating_add(dividends.nominators);
        }
        paid
    }

    fn store_epoch(netuid: u16, epoch: yuma::EpochOutput) {
        Active::<T>::insert(netuid, epoch.active);
        Rank::<T>::insert(netuid, epoch.rank);
        Trust::<T>::insert(netuid, epoch.trust);
        Consensus::<T>::insert(netuid, epoch.consensus);
        Incentive::<T>::insert(netuid, epoch.incentive);
        Dividends::<T>::insert(netuid, epoch.dividends);
        Emission::<T>::insert(netuid, epoch.emission);
        ValidatorTrust::<T>::insert(netuid, epoch.validator_trust);
        ValidatorPermit::<T>::insert(netuid, epoch.validator_permit);
        PruningScores::<T>::insert(netuid, epoch.pruning_scores);
        for (uid, row) in (0..=u16::MAX).zip(epoch.bonds) {
            if row.is_empty() {
                Bonds::<T>::remove(netuid, uid);
            } else {
                Bonds::<T>::insert(netuid, uid, row);
            }
        }
    }
}

/// Adds `amount` to a stored number.
fn add(amount: u64) -> impl FnOnce(&mut u64) {
    move |stored| *stored = stored.saturating_add(amount)
}
