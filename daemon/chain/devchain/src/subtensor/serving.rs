//! Where neurons can be reached.

use std::net::{Ipv4Addr, Ipv6Addr};

use frame_support::ensure;
use frame_support::traits::Get;
use sp_runtime::DispatchResult;

use super::*;

impl<T: Config> Pallet<T> {
    pub(super) fn do_serve_axon(
        hotkey: &T::AccountId,
        netuid: u16,
        axon: AxonInfo,
        certificate: Option<NeuronCertificate>,
    ) -> DispatchResult {
        ensure!(
            Uids::<T>::contains_key(netuid, hotkey),
            Error::<T>::HotKeyNotRegisteredInNetwork
        );
        ensure!(matches!(axon.ip_type, 4 | 6), Error::<T>::InvalidIpType);
        let loopback_too = T::LoopbackAxons::get();
        ensure!(
            is_reachable(axon.ip_type, axon.ip, loopback_too),
            Error::<T>::InvalidIpAddress
        );
        ensure!(axon.port != 0, Error::<T>::InvalidPort);
        let served_at = Axons::<T>::get(netuid, hotkey).map_or(0, |before| before.block);
        let waited = axon.block.saturating_sub(served_at) >= ServingRateLimit::<T>::get(netuid);
        ensure!(
            served_at == 0 || waited,
            Error::<T>::ServingRateLimitExceeded
        );

        if let Some(certificate) = certificate {
            NeuronCertificates::<T>::insert(netuid, hotkey, certificate);
        }
        Axons::<T>::insert(netuid, hotkey, axon);
        Self::deposit_event(Event::AxonServed(netuid, hotkey.clone()));
        Ok(())
    }
}

/// Whether an address may be announced. The unspecified address may, as on the public chain.
fn is_reachable(ip_type: u8, ip: u128, loopback_too: bool) -> bool {
    match ip_type {
        4 => u32::try_from(ip)
            .map(Ipv4Addr::from_bits)
            .is_ok_and(|address| {
                !address.is_broadcast() && (loopback_too || address != Ipv4Addr::LOCALHOST)
            }),
        6 => ip != u128::MAX && (loopback_too || Ipv6Addr::from_bits(ip) != Ipv6Addr::LOCALHOST),
        _ => false,
    }
}
