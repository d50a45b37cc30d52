//! How fast an exchange could be, from bytes and rates alone: no header, no latency, no computing.
//!
//! With N peers, S bytes of a whole update, C bytes of an encoded one, every peer sending and receiving at one rate at
//! once:
//!
//! - **all-reduce** (gloo, hivemind): a peer sends and receives 2 (N - 1) / N S at least, in whatever way the sum is
//!   made (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009, section 2).
//! - **gather**: a peer receives the other peers' updates, (N - 1) C.
//! - **reduce**: a peer has to send its update out, and to receive the reduced one. For a dense codec that is an
//!   all-reduce of C. A sparse reduced frame is larger than an update, by how much depends on k', so the bound counts it
//!   as C too: 2 (N - 1) / N C.
//! - **hier**: as reduce, which is what it is inside a site.
//!
//! With s sites, of which one has m of the peers, what has to enter it from the others, each byte once:
//!
//! - **gather**: the updates made elsewhere, (N - m) C.
//! - **reduce**: what is sent to the owners among its members, m/N (N - m) C, and the reduced frames of the other owners,
//!   (N - m)/N C.
//! - **hier**: the sums of the other sites, (s - 1) C: as if each site were one peer and gathered.
//! - **all-reduce**: one sum of all that is elsewhere, S.

use super::case::System;
use crate::harness::{Plan, Site};

/// What has to cross the link of one peer in one direction.
pub(super) fn bytes_per_peer(system: System, plan: Plan, peers: u32, update_bytes: f64) -> f64 {
    let n = f64::from(peers);
    let all_reduce = 2.0 * (n - 1.0) / n * update_bytes;
    let gather = (n - 1.0) * update_bytes;
    match (system, plan) {
        (System::Rival(_), _) | (System::Gradmesh, Plan::Reduce | Plan::Hier) => all_reduce,
        (System::Gradmesh, Plan::Gather) => gather,
        // The planner may choose what is least.
        (System::Gradmesh, Plan::Auto) => gather.min(all_reduce),
    }
}

/// What has to enter `site` of `sites` from the others. `update_bytes` is S for a system that knows no codec.
pub(super) fn wan_bytes(
    system: System,
    plan: Plan,
    sites: &[Site],
    site: &Site,
    update_bytes: f64,
) -> f64 {
    let peers: u32 = sites.iter().map(|site| site.peers).sum();
    let (n, m) = (f64::from(peers), f64::from(site.peers));
    let others = sites.len().saturating_sub(1) as f64;
    let gather = (n - m) * update_bytes;
    let reduce = (n - m) * (m + 1.0) / n * update_bytes;
    let hier = others * update_bytes;
    match (system, plan) {
        (System::Rival(_), _) => others.min(1.0) * update_bytes,
        (System::Gradmesh, Plan::Gather) => gather,
        (System::Gradmesh, Plan::Reduce) => reduce,
        (System::Gradmesh, Plan::Hier) => hier,
        (System::Gradmesh, Plan::Auto) => gather.min(reduce).min(hier),
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::Rival;
    use super::*;

    #[test]
    fn hier_takes_into_a_site_what_a_single_peer_would_take() {
        let sites = |peers| {
            ["a", "b"].map(|name| Site {
                name: name.to_owned(),
                peers,
            })
        };
        let bytes = |plan, peers| {
            let sites = sites(peers);
            wan_bytes(System::Gradmesh, plan, &sites, &sites[0], 1.0)
        };
        for plan in [Plan::Gather, Plan::Reduce, Plan::Hier] {
            assert_eq!(bytes(plan, 1), 1.0);
        }
        assert_eq!(bytes(Plan::Gather, 3), 3.0);
        assert_eq!(bytes(Plan::Reduce, 3), 2.0);
        assert_eq!(bytes(Plan::Hier, 3), 1.0);
        assert_eq!(bytes(Plan::Auto, 3), 1.0);
    }

    #[test]
    fn two_peers_exchange_one_update_each_way_in_every_plan() {
        for plan in [Plan::Auto, Plan::Gather, Plan::Reduce, Plan::Hier] {
            assert_eq!(bytes_per_peer(System::Gradmesh, plan, 2, 50e6), 50e6);
        }
        assert_eq!(
            bytes_per_peer(System::Rival(Rival::Gloo), Plan::Auto, 2, 50e6),
            50e6
        );
    }

    #[test]
    fn gathering_grows_with_peers_and_reducing_stays_below_two_updates() {
        let bytes = |plan, peers| bytes_per_peer(System::Gradmesh, plan, peers, 1.0);
        assert_eq!(bytes(Plan::Gather, 32), 31.0);
        assert!(bytes(Plan::Reduce, 32) < 2.0 && bytes(Plan::Reduce, 32) > bytes(Plan::Reduce, 4));
        assert_eq!(bytes(Plan::Auto, 32), bytes(Plan::Reduce, 32));
    }
}
