//! Weights that stay hidden until others can no longer copy them.
//!
//! Rule `window`: a commit of epoch e is revealed in epoch e + [`RevealPeriodEpochs`], not before and not after. A hash commit
//! is revealed by its hotkey. A timelocked one is opened by the chain, in the first block of that epoch in which the pulse of
//! its round is there.

use std::collections::VecDeque;

use codec::{DecodeAll, Encode};
use frame_support::ensure;
use sp_core::H256;
use sp_runtime::DispatchResult;
use sp_runtime::traits::{BlakeTwo256, Hash};

use super::neurons::set_entry;
use super::*;

/// Commits that a hotkey may have open.
const COMMITS_MAX: usize = 10;

/// Longest reveal period, in epochs.
const REVEAL_PERIOD_MAX: u64 = 100;

impl<T: Config> Pallet<T> {
    /// The hash to which `commit_weights` binds a hotkey.
    pub fn commit_hash(
        hotkey: &T::AccountId,
        netuid: u16,
        uids: &[u16],
        values: &[u16],
        salt: &[u16],
        version_key: u64,
    ) -> H256 {
        BlakeTwo256::hash_of(&(hotkey, netuid, uids, values, salt, version_key))
    }

    /// Sets the reveal period of a subnet, in epochs.
    pub fn set_reveal_period(netuid: u16, epochs: u64) -> DispatchResult {
        ensure!(epochs >= 1, Error::<T>::RevealPeriodTooSmall);
        ensure!(
            epochs <= REVEAL_PERIOD_MAX,
            Error::<T>::RevealPeriodTooLarge
        );
        RevealPeriodEpochs::<T>::insert(netuid, epochs);
        Ok(())
    }

    pub(super) fn do_commit_weights(
        hotkey: T::AccountId,
        netuid: u16,
        mecid: u8,
        commit_hash: H256,
    ) -> DispatchResult {
        let uid = Self::ensure_may_commit(&hotkey, netuid, mecid)?;
        let mut commits = WeightCommits::<T>::get(netuid, &hotkey).unwrap_or_default();
        Self::drop_expired(netuid, &mut commits);
        ensure!(
            commits.len() < COMMITS_MAX,
            Error::<T>::TooManyUnrevealedCommits
        );

        let epoch = SubnetEpochIndex::<T>::get(netuid);
        let (first, last) = Self::reveal_blocks(netuid);
        commits.push_back((commit_hash, epoch, first, last));
        WeightCommits::<T>::insert(netuid, &hotkey, commits);
        set_entry::<_, LastUpdate<T>>(netuid, uid, Self::block());
        Self::deposit_event(Event::WeightsCommitted(hotkey, netuid, commit_hash));
        Ok(())
    }

    pub(super) fn do_reveal_weights(
        hotkey: T::AccountId,
        netuid: u16,
        mecid: u8,
        uids: Vec<u16>,
        values: Vec<u16>,
        salt: Vec<u16>,
        version_key: u64,
    ) -> DispatchResult {
        Self::ensure_commits_taken(netuid, mecid)?;
        let commits = WeightCommits::<T>::get(netuid, &hotkey);
        let mut commits = commits.ok_or(Error::<T>::NoWeightsCommitFound)?;
        let expired = Self::drop_expired(netuid, &mut commits);
        let revealed = Self::commit_hash(&hotkey, netuid, &uids, &values, &salt, version_key);
        let is_revealed = |commit: &HashCommit| commit.0 == revealed;
        let Some(position) = commits.iter().position(is_revealed) else {
            let too_late = commits.is_empty() || expired.iter().any(is_revealed);
            let fault = if too_late {
                Error::<T>::ExpiredWeightCommit
            } else {
                Error::<T>::InvalidRevealCommitHashNotMatch
            };
            return Err(fault.into());
        };
        let due = commits[position]
            .1
            .saturating_add(RevealPeriodEpochs::<T>::get(netuid));
        ensure!(
            SubnetEpochIndex::<T>::get(netuid) == due,
            Error::<T>::RevealTooEarly
        );

        // What was committed before the revealed weights would be older than they are.
        commits.drain(..=position);
        if commits.is_empty() {
            WeightCommits::<T>::remove(netuid, &hotkey);
        } else {
            WeightCommits::<T>::insert(netuid, &hotkey, commits);
        }
        Self::accept_weights(&hotkey, netuid, mecid, uids, values, version_key)?;
        Self::deposit_event(Event::WeightsRevealed(hotkey, netuid, revealed));
        Ok(())
    }

    pub(super) fn do_commit_timelocked(
        hotkey: T::AccountId,
        netuid: u16,
        mecid: u8,
        commit: TimelockCommit,
        reveal_round: u64,
        version: u16,
    ) -> DispatchResult {
        Self::ensure_commits_taken(netuid, mecid)?;
        ensure!(
            version == CommitRevealWeightsVersion::<T>::get(),
            Error::<T>::IncorrectCommitRevealVersion
        );
        let uid = Self::ensure_may_commit(&hotkey, netuid, mecid)?;
        let epoch = SubnetEpochIndex::<T>::get(netuid);
        let mut commits = TimelockedWeightCommits::<T>::get(netuid, epoch);
        let open = commits.iter().filter(|(who, ..)| *who == hotkey).count();
        ensure!(open < COMMITS_MAX, Error::<T>::TooManyUnrevealedCommits);

        let hash = BlakeTwo256::hash(&commit);
        let block = Self::block();
        commits.push_back((hotkey.clone(), block, commit, reveal_round));
        TimelockedWeightCommits::<T>::insert(netuid, epoch, commits);
        set_entry::<_, LastUpdate<T>>(netuid, uid, block);
        Self::deposit_event(Event::TimelockedWeightsCommitted(
            hotkey,
            netuid,
            hash,
            reveal_round,
        ));
        Ok(())
    }

    /// Opens the timelocked commits of a subnet that are due, and drops those whose epoch has passed (rule `window`).
    pub(super) fn reveal_timelocked(netuid: u16) {
        let period = RevealPeriodEpochs::<T>::get(netuid);
        let Some(due) = SubnetEpochIndex::<T>::get(netuid).checked_sub(period) else {
            return;
        };
        let mut epochs = TimelockedWeightCommits::<T>::iter_key_prefix(netuid).collect::<Vec<_>>();
        epochs.sort_unstable();
        for epoch in epochs.into_iter().filter(|epoch| *epoch < due) {
            for (hotkey, ..) in TimelockedWeightCommits::<T>::take(netuid, epoch) {
                Self::deposit_event(Event::TimelockedWeightsDropped(netuid, hotkey));
            }
        }
        let mut waiting = VecDeque::new();
        for commit in TimelockedWeightCommits::<T>::take(netuid, due) {
            let (hotkey, _, ciphertext, round) = &commit;
            let Some(signature) = T::Beacon::signature(*round) else {
                waiting.push_back(commit);
                continue;
            };
            let set = Self::set_timelocked(hotkey, netuid, ciphertext, &signature);
            let hotkey = hotkey.clone();
            Self::deposit_event(match set {
                Some(()) => Event::TimelockedWeightsRevealed(netuid, hotkey),
                None => Event::TimelockedWeightsDropped(netuid, hotkey),
            });
        }
        if !waiting.is_empty() {
            TimelockedWeightCommits::<T>::insert(netuid, due, waiting);
        }
    }

    /// Sets the weights in a commit if it opens, is its hotkey's own and holds acceptable weights.
    fn set_timelocked(
        hotkey: &T::AccountId,
        netuid: u16,
        ciphertext: &[u8],
        signature: &[u8],
    ) -> Option<()> {
        let plain = T::Timelock::decrypt(ciphertext, signature)?;
        let payload = WeightsTlockPayload::decode_all(&mut plain.as_slice()).ok()?;
        if payload.hotkey != hotkey.encode() {
            return None;
        }
        let WeightsTlockPayload {
            uids,
            values,
            version_key,
            ..
        } = payload;
        Self::accept_weights(hotkey, netuid, 0, uids, values, version_key).ok()
    }

    /// The subnet takes commits.
    fn ensure_commits_taken(netuid: u16, mecid: u8) -> DispatchResult {
        Self::ensure_mechanism(netuid, mecid)?;
        ensure!(
            CommitRevealWeightsEnabled::<T>::get(netuid),
            Error::<T>::CommitRevealDisabled
        );
        Ok(())
    }

    /// The subnet takes commits, and one of `hotkey` now; its uid.
    fn ensure_may_commit(
        hotkey: &T::AccountId,
        netuid: u16,
        mecid: u8,
    ) -> Result<u16, sp_runtime::DispatchError> {
        Self::ensure_commits_taken(netuid, mecid)?;
        let uid = Self::uid_of(netuid, hotkey)?;
        ensure!(
            Self::may_update(netuid, uid),
            Error::<T>::CommittingWeightsTooFast
        );
        Ok(uid)
    }

    /// Takes the commits out of which the time has run, oldest first.
    fn drop_expired(netuid: u16, commits: &mut VecDeque<HashCommit>) -> Vec<HashCommit> {
        let epoch = SubnetEpochIndex::<T>::get(netuid);
        let period = RevealPeriodEpochs::<T>::get(netuid);
        let is_expired = |commit: &HashCommit| commit.1.saturating_add(period) < epoch;
        let kept = commits
            .iter()
            .position(|commit| !is_expired(commit))
            .unwrap_or(commits.len());
        commits.drain(..kept).collect()
    }

    /// First and last block in which a commit of now can be revealed if the tempo stays as it is.
    fn reveal_blocks(netuid: u16) -> (u64, u64) {
        let tempo = u64::from(Tempo::<T>::get(netuid));
        let period = RevealPeriodEpochs::<T>::get(netuid);
        let ahead = tempo.saturating_mul(period);
        let first = LastEpochBlock::<T>::get(netuid).saturating_add(ahead);
        (first, first.saturating_add(tempo).saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use frame_support::{assert_noop, assert_ok};

    use super::super::mock::*;
    use super::*;

    type Fault = Error<Test>;

    const SALT: [u16; 2] = [11, 12];

    /// Runs `test` on a subnet with commit and reveal, where the hotkey of coldkey 2 may validate and the rate limit
    /// is gone. Epochs take ten blocks.
    fn with_validator(test: impl FnOnce(u64, u16)) {
        with_subnet(|| {
            let uid = register_validator(2, TAO);
            CommitRevealWeightsEnabled::<Test>::insert(NETUID, true);
            WeightsSetRateLimit::<Test>::insert(NETUID, 0);
            System::reset_events();
            test(hotkey_of(2), uid);
        });
    }

    fn hash(hotkey: u64, values: &[u16]) -> H256 {
        Pallet::<Test>::commit_hash(&hotkey, NETUID, &[0, 1], values, &SALT, 0)
    }

    fn commit(hotkey: u64, values: &[u16]) -> DispatchResult {
        SubtensorModule::commit_weights(signed(hotkey), NETUID, hash(hotkey, values))
    }

    fn reveal(hotkey: u64, values: &[u16]) -> DispatchResult {
        let (uids, values, salt) = (vec![0, 1], values.to_vec(), SALT.to_vec());
        SubtensorModule::reveal_weights(signed(hotkey), NETUID, uids, values, salt, 0)
    }

    fn commit_timelocked(hotkey: u64, commit: TimelockCommit, round: u64) -> DispatchResult {
        SubtensorModule::commit_timelocked_weights(signed(hotkey), NETUID, commit, round, 4)
    }

    #[test]
    fn commit_hash_covers_account_netuid_uids_values_salt_and_version() {
        let bytes = (
            7_u64,
            1_u16,
            vec![0_u16, 1],
            vec![5_u16, 6],
            SALT.to_vec(),
            9_u64,
        )
            .encode();
        let expected = H256(sp_io::hashing::blake2_256(&bytes));
        let hash = Pallet::<Test>::commit_hash(&7, 1, &[0, 1], &[5, 6], &SALT, 9);
        assert_eq!(hash, expected);
    }

    #[test]
    fn committing_names_the_first_fault() {
        with_subnet(|| {
            register(2);
            let commit = |hotkey, netuid, mecid| {
                let hash = H256::repeat_byte(1);
                SubtensorModule::commit_mechanism_weights(signed(hotkey), netuid, mecid, hash)
            };
            assert_noop!(commit(999, 5, 0), Fault::MechanismDoesNotExist);
            assert_noop!(commit(999, NETUID, 1), Fault::MechanismDoesNotExist);
            assert_noop!(commit(999, NETUID, 0), Fault::CommitRevealDisabled);
            CommitRevealWeightsEnabled::<Test>::insert(NETUID, true);
            assert_noop!(commit(999, NETUID, 0), Fault::HotKeyNotRegisteredInSubNet);
            assert_noop!(commit(102, NETUID, 0), Fault::CommittingWeightsTooFast);
            run_blocks(5);
            assert_ok!(commit(102, NETUID, 0));
            assert_noop!(commit(102, NETUID, 0), Fault::CommittingWeightsTooFast);
            WeightsSetRateLimit::<Test>::insert(NETUID, 0);
            for _ in 0..9 {
                assert_ok!(commit(102, NETUID, 0));
            }
            assert_noop!(commit(102, NETUID, 0), Fault::TooManyUnrevealedCommits);
        });
    }

    #[test]
    fn committing_to_a_round_names_the_first_fault() {
        with_subnet(|| {
            register(2);
            let commit = |hotkey, mecid, version| {
                let (hotkey, bytes) = (signed(hotkey), TimelockCommit::default());
                SubtensorModule::commit_timelocked_mechanism_weights(
                    hotkey, NETUID, mecid, bytes, 9, version,
                )
            };
            assert_noop!(commit(999, 1, 3), Fault::MechanismDoesNotExist);
            assert_noop!(commit(999, 0, 3), Fault::CommitRevealDisabled);
            CommitRevealWeightsEnabled::<Test>::insert(NETUID, true);
            assert_noop!(commit(999, 0, 3), Fault::IncorrectCommitRevealVersion);
            assert_noop!(commit(999, 0, 4), Fault::HotKeyNotRegisteredInSubNet);
            assert_noop!(commit(102, 0, 4), Fault::CommittingWeightsTooFast);
            WeightsSetRateLimit::<Test>::insert(NETUID, 0);
            for _ in 0..10 {
                assert_ok!(commit(102, 0, 4));
            }
            assert_noop!(commit(102, 0, 4), Fault::TooManyUnrevealedCommits);
            let hash = BlakeTwo256::hash(&[]);
            let committed = Event::TimelockedWeightsCommitted(102, NETUID, hash, 9);
            assert_eq!(events().last(), Some(&committed));
        });
    }

    #[test]
    fn commit_counts_as_an_update_and_its_reveal_does_not() {
        with_validator(|hotkey, uid| {
            run_blocks(1);
            assert_ok!(commit(hotkey, &[1, 2]));
            assert_eq!(LastUpdate::<Test>::get(NETUID)[usize::from(uid)], 5);
            run_to_epoch(1);
            assert_ok!(reveal(hotkey, &[1, 2]));
            assert_eq!(LastUpdate::<Test>::get(NETUID)[usize::from(uid)], 5);
        });
    }

    #[test]
    fn commit_is_revealed_in_its_epoch_only() {
        with_validator(|hotkey, uid| {
            RevealPeriodEpochs::<Test>::insert(NETUID, 2);
            assert_ok!(commit(hotkey, &[1, 2]));
            assert_noop!(reveal(hotkey, &[1, 2]), Fault::RevealTooEarly);
            run_to_epoch(1);
            assert_noop!(reveal(hotkey, &[1, 2]), Fault::RevealTooEarly);
            run_to_epoch(2);
            assert_ok!(reveal(hotkey, &[1, 2]));
            assert_eq!(
                Weights::<Test>::get(NETUID, uid),
                [(0, 32_768), (1, 65_535)]
            );
            let revealed = Event::WeightsRevealed(hotkey, NETUID, hash(hotkey, &[1, 2]));
            assert_eq!(events().last(), Some(&revealed));
            assert_noop!(reveal(hotkey, &[1, 2]), Fault::NoWeightsCommitFound);
        });
    }

    #[test]
    fn commit_expires_with_its_epoch() {
        with_validator(|hotkey, _| {
            assert_ok!(commit(hotkey, &[1, 2]));
            run_to_epoch(2);
            assert_noop!(reveal(hotkey, &[1, 2]), Fault::ExpiredWeightCommit);
            assert_ok!(commit(hotkey, &[3, 4]));
            assert_eq!(WeightCommits::<Test>::get(NETUID, hotkey).unwrap().len(), 1);
        });
    }

    #[test]
    fn reveal_of_something_else_is_refused() {
        with_validator(|hotkey, _| {
            assert_noop!(reveal(hotkey, &[1, 2]), Fault::NoWeightsCommitFound);
            assert_ok!(commit(hotkey, &[1, 2]));
            run_to_epoch(1);
            assert_noop!(
                reveal(hotkey, &[2, 1]),
                Fault::InvalidRevealCommitHashNotMatch
            );
        });
    }

    #[test]
    fn reveal_closes_the_commits_before_it_and_leaves_those_after() {
        with_validator(|hotkey, _| {
            for values in [[1, 2], [3, 4], [5, 6]] {
                assert_ok!(commit(hotkey, &values));
            }
            run_to_epoch(1);
            assert_ok!(reveal(hotkey, &[3, 4]));
            assert_noop!(
                reveal(hotkey, &[1, 2]),
                Fault::InvalidRevealCommitHashNotMatch
            );
            assert_ok!(reveal(hotkey, &[5, 6]));
        });
    }

    #[test]
    fn reveal_of_refused_weights_keeps_the_commit() {
        with_validator(|hotkey, _| {
            assert_ok!(commit(hotkey, &[1, 2]));
            run_to_epoch(1);
            WeightsVersionKey::<Test>::insert(NETUID, 1);
            assert_noop!(reveal(hotkey, &[1, 2]), Fault::IncorrectWeightVersionKey);
        });
    }

    #[test]
    fn timelocked_commit_opens_in_its_epoch_when_the_pulse_is_there() {
        with_validator(|hotkey, uid| {
            assert_ok!(commit_timelocked(
                hotkey,
                timelocked(hotkey, &[0, 1], &[1, 2], 50),
                50
            ));
            pulse(50);
            run_blocks(5);
            assert!(
                Weights::<Test>::get(NETUID, uid).is_empty(),
                "the epoch has not come"
            );
            run_to_epoch(1);
            System::reset_events();
            run_blocks(1);
            assert_eq!(
                Weights::<Test>::get(NETUID, uid),
                [(0, 32_768), (1, 65_535)]
            );
            let revealed = Event::TimelockedWeightsRevealed(NETUID, hotkey);
            assert_eq!(events(), [Event::WeightsSet(NETUID, uid), revealed]);
            assert!(TimelockedWeightCommits::<Test>::get(NETUID, 0).is_empty());
        });
    }

    #[test]
    fn timelocked_commit_waits_for_its_pulse_and_is_dropped_with_its_epoch() {
        with_validator(|hotkey, uid| {
            for round in [50, 60] {
                let commit = timelocked(hotkey, &[0, 1], &[1, 2], round);
                assert_ok!(commit_timelocked(hotkey, commit, round));
            }
            run_to_epoch(1);
            run_blocks(5);
            assert_eq!(TimelockedWeightCommits::<Test>::get(NETUID, 0).len(), 2);
            pulse(50);
            run_blocks(1);
            assert_eq!(Weights::<Test>::get(NETUID, uid).len(), 2);
            assert_eq!(TimelockedWeightCommits::<Test>::get(NETUID, 0).len(), 1);
            run_to_epoch(2);
            pulse(60);
            System::reset_events();
            run_blocks(1);
            assert_eq!(events(), [Event::TimelockedWeightsDropped(NETUID, hotkey)]);
            assert!(TimelockedWeightCommits::<Test>::get(NETUID, 0).is_empty());
        });
    }

    #[test]
    fn last_block_before_an_epoch_still_opens_commits() {
        with_validator(|hotkey, uid| {
            assert_ok!(commit_timelocked(
                hotkey,
                timelocked(hotkey, &[0], &[1], 50),
                50
            ));
            run_to_epoch(1);
            run_blocks(9);
            pulse(50);
            run_blocks(1);
            assert_eq!(SubnetEpochIndex::<Test>::get(NETUID), 2);
            assert_eq!(Weights::<Test>::get(NETUID, uid), [(0, 65_535)]);
        });
    }

    #[test]
    fn commit_that_does_not_open_or_is_not_its_hotkeys_is_dropped() {
        with_validator(|hotkey, uid| {
            let garbage = TimelockCommit::try_from(vec![1; 80]).unwrap();
            let mut trailing = timelocked(hotkey, &[0], &[1], 50);
            trailing.try_push(0).unwrap();
            let copied = timelocked(OWNER_HOTKEY, &[0], &[1], 50);
            let refused = timelocked(hotkey, &[7], &[1], 50);
            for commit in [garbage, trailing, copied, refused] {
                assert_ok!(commit_timelocked(hotkey, commit, 50));
            }
            pulse(50);
            run_to_epoch(1);
            System::reset_events();
            run_blocks(1);
            assert_eq!(
                events(),
                vec![Event::TimelockedWeightsDropped(NETUID, hotkey); 4]
            );
            assert!(Weights::<Test>::get(NETUID, uid).is_empty());
        });
    }

    #[test]
    fn copy_of_revealed_weights_counts_a_reveal_period_after_the_original() {
        for period in [1, 2, 4] {
            with_validator(|original, original_uid| {
                let copy_uid = register_validator(3, TAO);
                RevealPeriodEpochs::<Test>::insert(NETUID, period);
                let mut counted = Vec::new();
                for epoch in 0..12 {
                    // The pulse comes with the first block of the epoch, which opens what is due.
                    pulse(epoch);
                    run_blocks(1);
                    let revealed = Weights::<Test>::get(NETUID, original_uid);
                    let round = epoch + period;
                    let own = timelocked(original, &[0, 1], &[1, 10 + epoch as u16], round);
                    assert_ok!(commit_timelocked(original, own, round));
                    let (uids, values): (Vec<_>, Vec<_>) = revealed.into_iter().unzip();
                    if !uids.is_empty() {
                        let copy = timelocked(hotkey_of(3), &uids, &values, round);
                        assert_ok!(commit_timelocked(hotkey_of(3), copy, round));
                    }
                    run_to_epoch(epoch + 1);
                    counted.push(
                        [original_uid, copy_uid].map(|uid| Weights::<Test>::get(NETUID, uid)),
                    );
                }
                let lag = usize::try_from(period).unwrap();
                for epoch in 2 * lag..counted.len() {
                    let [original, copy] = &counted[epoch];
                    assert_eq!(copy, &counted[epoch - lag][0]);
                    assert_ne!(copy, original);
                }
            });
        }
    }

    #[test]
    fn reveal_period_is_one_to_a_hundred_epochs() {
        with_subnet(|| {
            let set = |epochs| Pallet::<Test>::set_reveal_period(NETUID, epochs);
            assert_noop!(set(0), Fault::RevealPeriodTooSmall);
            assert_noop!(set(101), Fault::RevealPeriodTooLarge);
            assert_ok!(set(100));
        });
    }
}
