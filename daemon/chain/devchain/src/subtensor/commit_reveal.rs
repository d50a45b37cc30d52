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
