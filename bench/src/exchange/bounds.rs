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
//! - **hier**: inside one site, which is what these networks are, as reduce.

use super::case::{Plan, System};

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

#[cfg(test)]
mod tests {
    use super::super::case::Rival;
    use super::*;

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
