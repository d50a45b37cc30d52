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

#[cfg(test)]
mod tests {
    use frame_support::{assert_noop, assert_ok};

    use super::super::mock::*;
    use super::*;

    type Fault = Error<Test>;

    const PUBLIC: u128 = 0x0102_0304;
    const LOOPBACK: u128 = 0x7F00_0001;

    fn serve(hotkey: u64, ip_type: u8, ip: u128, port: u16) -> DispatchResult {
        SubtensorModule::serve_axon(signed(hotkey), NETUID, 7, ip, port, ip_type, 4, 0, 0)
    }

    #[test]
    fn serving_names_the_first_fault() {
        with_subnet(|| {
            assert_ok!(serve(OWNER_HOTKEY, 4, PUBLIC, 80));
            assert_noop!(
                serve(999, 5, LOOPBACK, 0),
                Fault::HotKeyNotRegisteredInNetwork
            );
            assert_noop!(serve(OWNER_HOTKEY, 5, LOOPBACK, 0), Fault::InvalidIpType);
            assert_noop!(serve(OWNER_HOTKEY, 4, LOOPBACK, 0), Fault::InvalidIpAddress);
            assert_noop!(serve(OWNER_HOTKEY, 4, PUBLIC, 0), Fault::InvalidPort);
            assert_noop!(
                serve(OWNER_HOTKEY, 4, PUBLIC, 80),
                Fault::ServingRateLimitExceeded
            );
            run_blocks(3);
            assert_noop!(
                serve(OWNER_HOTKEY, 4, PUBLIC, 80),
                Fault::ServingRateLimitExceeded
            );
            run_blocks(1);
            assert_ok!(serve(OWNER_HOTKEY, 4, PUBLIC, 81));
            let axon = Axons::<Test>::get(NETUID, OWNER_HOTKEY).unwrap();
            assert_eq!((axon.block, axon.version, axon.port), (8, 7, 81));
        });
    }

    #[test]
    fn loopback_is_announced_only_where_the_chain_allows_it() {
        with_subnet(|| {
            assert_noop!(serve(OWNER_HOTKEY, 6, 1, 80), Fault::InvalidIpAddress);
            set_loopback_axons(true);
            assert_ok!(serve(OWNER_HOTKEY, 4, LOOPBACK, 80));
            run_blocks(4);
            assert_ok!(serve(OWNER_HOTKEY, 6, 1, 80));
        });
    }

    #[test]
    fn broadcast_and_oversized_addresses_are_refused_and_unspecified_ones_are_not() {
        for (ip_type, ip) in [(4, u32::MAX.into()), (4, 1 << 32), (6, u128::MAX)] {
            assert!(!is_reachable(ip_type, ip, true), "{ip_type} {ip}");
        }
        assert!(is_reachable(4, 0, false));
        assert!(is_reachable(6, 0, false));
    }

    #[test]
    fn certificate_is_one_byte_of_algorithm_and_a_key() {
        with_subnet(|| {
            let serve = |certificate: &[u8]| {
                let (hotkey, bytes) = (signed(OWNER_HOTKEY), certificate.to_vec());
                SubtensorModule::serve_axon_tls(hotkey, NETUID, 7, PUBLIC, 80, 4, 4, 0, 0, bytes)
            };
            let stored = || NeuronCertificates::<Test>::get(NETUID, OWNER_HOTKEY);
            assert_ok!(serve(&[2; 66]));
            assert_eq!(stored(), None, "a key of 65 bytes is too long");
            run_blocks(4);
            assert_ok!(serve(&[9, 1, 2]));
            let certificate = stored().unwrap();
            assert_eq!(
                (certificate.algorithm, certificate.public_key.as_slice()),
                (9, &[1, 2][..])
            );
        });
    }
}
