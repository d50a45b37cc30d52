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
    /// The block of the next epoch if nothing changes the schedule; with a tempo of 0 there is none by itself.
    pub fn next_epoch_block(netuid: u16) -> Option<u64> {
        let tempo = u64::from(Tempo::<T>::get(netuid));
        let regular = LastEpochBlock::<T>::get(netuid).saturating_add(tempo);
        let regular = (tempo != 0).then_some(regular);
        let pending = PendingEpochAt::<T>::get(netuid);
        let pending = (pending != 0).then_some(pending);
        regular.into_iter().chain(pending).min()
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
            if Self::next_epoch_block(netuid).is_some_and(|due| block >= due) {
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

#[cfg(test)]
mod tests {
    use frame_support::assert_ok;

    use super::super::mock::*;
    use super::*;

    /// Alpha of all hotkeys on [`NETUID`].
    fn alpha_on_hotkeys() -> u64 {
        let hotkeys = COLDKEYS.map(hotkey_of);
        hotkeys
            .map(|hotkey| TotalHotkeyAlpha::<Test>::get(hotkey, NETUID))
            .sum()
    }

    fn waiting() -> u64 {
        PendingServerEmission::<Test>::get(NETUID)
            + PendingValidatorEmission::<Test>::get(NETUID)
            + PendingOwnerCut::<Test>::get(NETUID)
    }

    /// Two validators, on uids 1 and 2, and two servers, on uids 3 and 4, with weights that are 1 to 3.
    fn with_market(test: impl FnOnce()) {
        with_subnet(|| {
            Tempo::<Test>::insert(NETUID, 10);
            let validators = [
                register_validator(2, 30 * TAO),
                register_validator(3, 10 * TAO),
            ];
            let servers = [register(4), register(5)];
            run_to_epoch(1);
            for (validator, coldkey) in validators.into_iter().zip([2, 3]) {
                let hotkey = signed(hotkey_of(coldkey));
                let weights = vec![1, 3];
                assert!(ValidatorPermit::<Test>::get(NETUID)[usize::from(validator)]);
                assert_ok!(SubtensorModule::set_weights(
                    hotkey,
                    NETUID,
                    servers.into(),
                    weights,
                    0
                ));
            }
            test();
        });
    }

    #[test]
    fn nothing_is_emitted_before_a_subnet_is_started() {
        on_new_chain(|| {
            SubtensorModule::register_network(signed(OWNER), OWNER_HOTKEY).unwrap();
            run_blocks(5);
            assert_eq!(waiting(), 0);
            SubtensorModule::start_call(signed(OWNER), NETUID).unwrap();
            assert_eq!(waiting(), 0);
            run_blocks(1);
            assert_eq!(waiting(), BLOCK_EMISSION);
        });
    }

    #[test]
    fn block_is_split_18_41_41() {
        with_subnet(|| {
            run_blocks(1);
            let owner = BLOCK_EMISSION * 11_796 / 65_535;
            let servers = (BLOCK_EMISSION - owner) / 2;
            assert_eq!(PendingOwnerCut::<Test>::get(NETUID), owner);
            assert_eq!(PendingServerEmission::<Test>::get(NETUID), servers);
            assert_eq!(
                PendingValidatorEmission::<Test>::get(NETUID),
                BLOCK_EMISSION - owner - servers
            );
        });
    }

    #[test]
    fn started_subnets_share_a_block_evenly() {
        with_subnet(|| {
            NetworkRateLimit::<Test>::put(0);
            StartCallDelay::<Test>::put(0);
            assert_ok!(SubtensorModule::register_network(signed(2), 102));
            assert_ok!(SubtensorModule::start_call(signed(2), 2));
            let before = (SubnetTAO::<Test>::get(NETUID), SubnetTAO::<Test>::get(2));
            run_blocks(1);
            assert_eq!(
                SubnetTAO::<Test>::get(NETUID) - before.0,
                BLOCK_EMISSION / 2
            );
            assert_eq!(SubnetTAO::<Test>::get(2) - before.1, BLOCK_EMISSION / 2);
        });
    }

    #[test]
    fn what_is_emitted_is_paid_or_waits() {
        with_market(|| {
            let started_at = FirstEmissionBlockNumber::<Test>::get(NETUID).unwrap();
            let staked = 40 * TAO;
            for _ in 0..35 {
                run_blocks(1);
                let blocks = System::block_number() - started_at + 1;
                let emitted = blocks * BLOCK_EMISSION;
                assert_eq!(alpha_on_hotkeys() + waiting(), staked + emitted);
                assert_eq!(SubnetAlphaOut::<Test>::get(NETUID), alpha_on_hotkeys());
                assert_eq!(
                    SubnetTAO::<Test>::get(NETUID),
                    SubnetLocked::<Test>::get(NETUID) + staked + emitted
                );
                assert_eq!(TotalIssuance::<Test>::get(), emitted);
            }
        });
    }

    #[test]
    fn epoch_leaves_no_more_than_its_rounding() {
        with_market(|| {
            run_to_epoch(3);
            // I32F32 shares lose at most 2^-32 each, of eight shares of ten blocks; u64 a rao each.
            let bound = 8 * (10 * BLOCK_EMISSION / (1 << 32) + 1) + 8;
            assert!(waiting() < bound, "{} of {bound}", waiting());
        });
    }

    #[test]
    fn servers_are_paid_by_weight_and_validators_by_stake() {
        with_market(|| {
            let paid = |uid| TotalHotkeyAlpha::<Test>::get(Keys::<Test>::get(NETUID, uid), NETUID);
            let before = [1, 2, 3, 4].map(paid);
            run_to_epoch(2);
            let after = [1, 2, 3, 4].map(paid);
            let earned = |uid: usize| after[uid - 1] - before[uid - 1];
            // An owner's cut of 11,796 parts is 3e-5 less than 18%.
            let pool = 10 * BLOCK_EMISSION * 41 / 100;
            let is_near = |paid: u64, share: u64| paid.abs_diff(share) < pool / 10_000;
            assert!(is_near(earned(1), pool * 3 / 4), "{}", earned(1));
            assert!(is_near(earned(2), pool / 4), "{}", earned(2));
            assert!(is_near(earned(3), pool / 4), "{}", earned(3));
            assert!(is_near(earned(4), pool * 3 / 4), "{}", earned(4));
            assert_eq!(Incentive::<Test>::get(NETUID), [0, 0, 0, 16_383, 49_151]);
            assert_eq!(Consensus::<Test>::get(NETUID), [0, 0, 0, 16_383, 49_151]);
            assert_eq!(Active::<Test>::get(NETUID), [true; 5]);
            assert_eq!(Bonds::<Test>::get(NETUID, 1).len(), 2);
        });
    }

    #[test]
    fn owner_is_paid_18_percent_at_the_epoch() {
        with_market(|| {
            let before = Pallet::<Test>::stake_of(&OWNER_HOTKEY, &OWNER, NETUID);
            run_to_epoch(2);
            let paid = Pallet::<Test>::stake_of(&OWNER_HOTKEY, &OWNER, NETUID) - before;
            assert_eq!(paid, 10 * (BLOCK_EMISSION * 11_796 / 65_535));
        });
    }

    #[test]
    fn delegate_takes_its_part_before_its_nominators() {
        with_market(|| {
            assert_ok!(SubtensorModule::add_stake(
                signed(6),
                hotkey_of(3),
                NETUID,
                10 * TAO
            ));
            let stakes = || [3, 6].map(|key| Pallet::<Test>::stake_of(&hotkey_of(3), &key, NETUID));
            let before = stakes();
            run_to_epoch(2);
            let after = stakes();
            let dividends = AlphaDividendsPerSubnet::<Test>::get(NETUID, hotkey_of(3));
            let own = after[0] - before[0];
            let nominator = after[1] - before[1];
            let total = own + nominator;
            assert!(total.abs_diff(dividends * 65_535 / (65_535 - 11_796)) < 10);
            assert!(nominator < dividends / 2, "the delegate has more stake");
            assert!(own > dividends / 2 + total * 17 / 100);
        });
    }

    #[test]
    fn epoch_comes_every_tempo_and_counts() {
        with_subnet(|| {
            assert_eq!(LastEpochBlock::<Test>::get(NETUID), 1);
            assert_eq!(Pallet::<Test>::next_epoch_block(NETUID), Some(11));
            run_blocks(6);
            assert_eq!(BlocksSinceLastStep::<Test>::get(NETUID), 9);
            run_blocks(1);
            assert_eq!(LastEpochBlock::<Test>::get(NETUID), 11);
            assert_eq!(LastMechansimStepBlock::<Test>::get(NETUID), 11);
            assert_eq!(BlocksSinceLastStep::<Test>::get(NETUID), 0);
            assert_eq!(SubnetEpochIndex::<Test>::get(NETUID), 1);
            Tempo::<Test>::insert(NETUID, 3);
            run_blocks(3);
            assert_eq!(SubnetEpochIndex::<Test>::get(NETUID), 2);
        });
    }

    #[test]
    fn tempo_of_zero_leaves_epochs_to_the_owner() {
        with_subnet(|| {
            Tempo::<Test>::insert(NETUID, 0);
            run_blocks(20);
            assert_eq!(SubnetEpochIndex::<Test>::get(NETUID), 0);
            assert_ok!(SubtensorModule::trigger_epoch(signed(OWNER), NETUID));
            run_blocks(20);
            assert_eq!(SubnetEpochIndex::<Test>::get(NETUID), 1);
        });
    }

    #[test]
    fn subnet_without_stake_pays_only_its_owner() {
        with_subnet(|| {
            register(2);
            run_to_epoch(1);
            assert_eq!(Emission::<Test>::get(NETUID), [0, 0]);
            assert!(PendingValidatorEmission::<Test>::get(NETUID) > 0);
        });
    }
}
