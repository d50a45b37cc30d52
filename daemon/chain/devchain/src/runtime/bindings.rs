//! What one pallet asks of another.

use crate::{
    commitments, drand,
    subtensor::{self, Bonds, SubnetEpochIndex, SubnetworkN, Uids},
};

use super::{AccountId, Runtime};

/// The scheme of drand's quicknet: BLS signatures in G1, identity-based encryption to a round.
pub struct QuicknetScheme;

impl drand::VerifyPulse for QuicknetScheme {
    fn verify(public_key: &[u8], round: u64, signature: &[u8]) -> bool {
        gradmesh_timelock::verify(public_key, round, signature)
    }
}

impl subtensor::Timelock for QuicknetScheme {
    fn decrypt(ciphertext: &[u8], signature: &[u8]) -> Option<Vec<u8>> {
        gradmesh_timelock::decrypt(ciphertext, signature).ok()
    }
}

/// The pulses of the `Drand` pallet.
pub struct StoredPulses;

impl subtensor::Beacon for StoredPulses {
    fn signature(round: u64) -> Option<Vec<u8>> {
        drand::Pulses::<Runtime>::get(round).map(|pulse| pulse.signature.into_inner())
    }
}

/// The neurons of the `SubtensorModule` pallet.
pub struct Neurons;

impl commitments::Subnets<AccountId> for Neurons {
    fn may_commit(netuid: u16, hotkey: &AccountId) -> bool {
        Uids::<Runtime>::contains_key(netuid, hotkey)
    }

    fn epoch(netuid: u16) -> u64 {
        SubnetEpochIndex::<Runtime>::get(netuid)
    }

    fn reset_bonds(netuid: u16, hotkey: &AccountId) {
        let Some(uid) = Uids::<Runtime>::get(netuid, hotkey) else {
            return;
        };
        for validator in 0..SubnetworkN::<Runtime>::get(netuid) {
            Bonds::<Runtime>::mutate(netuid, validator, |row| {
                row.retain(|(server, _)| *server != uid)
            });
        }
    }
}
