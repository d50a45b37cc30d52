//! Neurons: who holds which uid, and all that hangs on it.

use std::marker::PhantomData;

use codec::FullCodec;
use frame_support::storage::{StorageDoubleMap, StorageMap};

use super::*;

/// All that readers want to know of one neuron. Shares are in parts of 65,535, amounts in rao.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neuron<AccountId> {
    pub uid: u16,
    pub hotkey: AccountId,
    pub coldkey: AccountId,
    pub registered_at: u64,
    pub last_update: u64,
    pub active: bool,
    pub validator_permit: bool,
    pub axon: AxonInfo,
    pub prometheus: PrometheusInfo,
    pub stake: StakeWeight,
    /// Per epoch, of alpha.
    pub emission: u64,
    pub rank: u16,
    pub trust: u16,
    pub consensus: u16,
    pub incentive: u16,
    pub dividends: u16,
    pub validator_trust: u16,
    pub pruning_score: u16,
}

/// What a hotkey's stake counts on a subnet, in rao.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StakeWeight {
    /// Alpha on this subnet.
    pub alpha: u64,
    /// Root stake, scaled by [`TaoWeight`].
    pub tao: u64,
}

impl StakeWeight {
    pub fn total(self) -> u64 {
        self.alpha.saturating_add(self.tao)
    }
}

impl<T: Config> Pallet<T> {
    /// The current block.
    pub fn block() -> u64 {
        sp_runtime::SaturatedConversion::saturated_into(frame_system::Pallet::<T>::block_number())
    }

    /// Every neuron of a subnet, in order of uid.
    pub fn neurons(netuid: u16) -> Vec<Neuron<T::AccountId>> {
        let columns = Columns::<T>::read(netuid);
        (0..SubnetworkN::<T>::get(netuid))
            .map(|uid| columns.neuron(uid))
            .collect()
    }

    /// One neuron of a subnet.
    pub fn neuron(netuid: u16, uid: u16) -> Option<Neuron<T::AccountId>> {
        let exists = uid < SubnetworkN::<T>::get(netuid);
        exists.then(|| Columns::<T>::read(netuid).neuron(uid))
    }

    /// What the stake on `hotkey` counts on a subnet.
    pub fn stake_weight(hotkey: &T::AccountId, netuid: u16) -> StakeWeight {
        let root = u128::from(TotalHotkeyAlpha::<T>::get(hotkey, ROOT));
        let weighed = root * u128::from(TaoWeight::<T>::get()) / u128::from(u64::MAX);
        StakeWeight {
            alpha: TotalHotkeyAlpha::<T>::get(hotkey, netuid),
            tao: u64::try_from(weighed).unwrap_or(u64::MAX),
        }
    }

    /// The uid of `hotkey` if it is a neuron of the subnet.
    pub(super) fn uid_of(netuid: u16, hotkey: &T::AccountId) -> Result<u16, Error<T>> {
        Uids::<T>::get(netuid, hotkey).ok_or(Error::<T>::HotKeyNotRegisteredInSubNet)
    }

    /// Gives `hotkey` a new uid. The caller has checked that there is room.
    pub(super) fn append_neuron(netuid: u16, hotkey: &T::AccountId) -> u16 {
        let uid = SubnetworkN::<T>::get(netuid);
        SubnetworkN::<T>::insert(netuid, uid.saturating_add(1));
        Self::seat(netuid, uid, hotkey);
        uid
    }

    /// Gives the uid of one neuron to `hotkey`. Nothing of the old neuron stays with the uid.
    pub(super) fn replace_neuron(netuid: u16, uid: u16, hotkey: &T::AccountId) {
        let old = Keys::<T>::get(netuid, uid);
        Uids::<T>::remove(netuid, &old);
        IsNetworkMember::<T>::remove(&old, netuid);
        Axons::<T>::remove(netuid, &old);
        NeuronCertificates::<T>::remove(netuid, &old);
        Prometheus::<T>::remove(netuid, &old);
        WeightCommits::<T>::remove(netuid, &old);
        AlphaDividendsPerSubnet::<T>::remove(netuid, &old);

        Weights::<T>::remove(netuid, uid);
        Bonds::<T>::remove(netuid, uid);
        for row in 0..SubnetworkN::<T>::get(netuid) {
            forget_column::<Weights<T>>(netuid, row, uid);
            forget_column::<Bonds<T>>(netuid, row, uid);
        }

        Self::seat(netuid, uid, hotkey);
    }

    /// Whether a neuron is too young to be pruned, or the owner's.
    pub fn is_immune(netuid: u16, uid: u16) -> bool {
        let age = Self::block().saturating_sub(BlockAtRegistration::<T>::get(netuid, uid));
        age < u64::from(ImmunityPeriod::<T>::get(netuid)) || Self::owner_uid(netuid) == Some(uid)
    }

    /// The uid of the subnet's owner, if it has one.
    pub fn owner_uid(netuid: u16) -> Option<u16> {
        SubnetOwnerHotkey::<T>::try_get(netuid)
            .ok()
            .and_then(|hotkey| Uids::<T>::get(netuid, hotkey))
    }

    /// Lets `hotkey` begin on `uid`, with everything at its start.
    fn seat(netuid: u16, uid: u16, hotkey: &T::AccountId) {
        set_entry::<_, Active<T>>(netuid, uid, true);
        set_entry::<_, LastUpdate<T>>(netuid, uid, Self::block());
        set_entry::<_, ValidatorPermit<T>>(netuid, uid, false);
        set_entry::<_, Emission<T>>(netuid, uid, 0);
        set_entry::<_, Rank<T>>(netuid, uid, 0);
        set_entry::<_, Trust<T>>(netuid, uid, 0);
        set_entry::<_, Consensus<T>>(netuid, uid, 0);
        set_entry::<_, Incentive<T>>(netuid, uid, 0);
        set_entry::<_, Dividends<T>>(netuid, uid, 0);
        set_entry::<_, ValidatorTrust<T>>(netuid, uid, 0);
        set_entry::<_, PruningScores<T>>(netuid, uid, 0);
        Keys::<T>::insert(netuid, uid, hotkey);
        Uids::<T>::insert(netuid, hotkey, uid);
        IsNetworkMember::<T>::insert(hotkey, netuid, true);
        BlockAtRegistration::<T>::insert(netuid, uid, Self::block());
    }
}

/// The vectors of a subnet, each read once.
struct Columns<T: Config> {
    netuid: u16,
    active: Vec<bool>,
    last_update: Vec<u64>,
    validator_permit: Vec<bool>,
    emission: Vec<u64>,
    rank: Vec<u16>,
    trust: Vec<u16>,
    consensus: Vec<u16>,
    incentive: Vec<u16>,
    dividends: Vec<u16>,
    validator_trust: Vec<u16>,
    pruning_scores: Vec<u16>,
    runtime: PhantomData<T>,
}

impl<T: Config> Columns<T> {
    fn read(netuid: u16) -> Self {
        Self {
            netuid,
            active: Active::<T>::get(netuid),
            last_update: LastUpdate::<T>::get(netuid),
            validator_permit: ValidatorPermit::<T>::get(netuid),
            emission: Emission::<T>::get(netuid),
            rank: Rank::<T>::get(netuid),
            trust: Trust::<T>::get(netuid),
            consensus: Consensus::<T>::get(netuid),
            incentive: Incentive::<T>::get(netuid),
            dividends: Dividends::<T>::get(netuid),
            validator_trust: ValidatorTrust::<T>::get(netuid),
            pruning_scores: PruningScores::<T>::get(netuid),
            runtime: PhantomData,
        }
    }

    fn neuron(&self, uid: u16) -> Neuron<T::AccountId> {
        let netuid = self.netuid;
        let hotkey = Keys::<T>::get(netuid, uid);
        Neuron {
            uid,
            coldkey: Owner::<T>::get(&hotkey),
            registered_at: BlockAtRegistration::<T>::get(netuid, uid),
            last_update: entry(&self.last_update, uid),
            active: entry(&self.active, uid),
            validator_permit: entry(&self.validator_permit, uid),
            axon: Axons::<T>::get(netuid, &hotkey).unwrap_or_default(),
            prometheus: Prometheus::<T>::get(netuid, &hotkey).unwrap_or_default(),
            stake: Pallet::<T>::stake_weight(&hotkey, netuid),
            emission: entry(&self.emission, uid),
            rank: entry(&self.rank, uid),
            trust: entry(&self.trust, uid),
            consensus: entry(&self.consensus, uid),
            incentive: entry(&self.incentive, uid),
            dividends: entry(&self.dividends, uid),
            validator_trust: entry(&self.validator_trust, uid),
            pruning_score: entry(&self.pruning_scores, uid),
            hotkey,
        }
    }
}

/// What a vector says of `uid`.
pub(super) fn entry<V: Copy + Default>(column: &[V], uid: u16) -> V {
    column.get(usize::from(uid)).copied().unwrap_or_default()
}

/// Writes what a stored vector says of `uid`; a vector that is too short grows.
pub(super) fn set_entry<V, Column>(netuid: u16, uid: u16, value: V)
where
    V: FullCodec + Clone + Default,
    Column: StorageMap<u16, Vec<V>, Query = Vec<V>>,
{
    Column::mutate(netuid, |column| {
        let uid = usize::from(uid);
        if column.len() <= uid {
            column.resize(uid + 1, V::default());
        }
        column[uid] = value;
    });
}

/// Takes `column` out of one row of a stored matrix.
fn forget_column<Rows>(netuid: u16, row: u16, column: u16)
where
    Rows: StorageDoubleMap<u16, u16, Vec<(u16, u16)>, Query = Vec<(u16, u16)>>,
{
    let entries = Rows::get(netuid, row);
    if entries.iter().any(|(uid, _)| *uid == column) {
        let kept = entries.into_iter().filter(|(uid, _)| *uid != column);
        Rows::insert(netuid, row, kept.collect::<Vec<_>>());
    }
}
