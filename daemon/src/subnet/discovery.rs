//! Which run a subnet holds, who takes part in it, and which checkpoint is attested: from the chain alone.
//!
//! Rule `owner-names-the-run`: a subnet's run is the one that its owner's hotkey attests. While the owner attests none,
//! it is the run that most stake attests.
//!
//! Rule `majority-attests`: a state is attested once hotkeys with more than half of the stake behind all attestations of
//! that run and epoch name the same root for the same round. Each hotkey counts with its stake and one rao, so that runs
//! without stake count heads. Attesters that contradict the majority are counted and shown, never hidden.

use std::collections::BTreeMap;

use gradmesh_chain::AccountId;
use gradmesh_chain::attestation::Attestation;
use gradmesh_chain::types::{Commitment, Neuron};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{RoundId, RunId};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use serde::Serialize;

use crate::daemon::EntryPeer;

/// What stands on chain about the run of a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRun {
    /// The run.
    pub run: RunId,
    /// Registered peers that say where they listen, those first that attest the run.
    pub peers: Vec<EntryPeer>,
    /// The newest attested state.
    pub attested: Option<AttestedState>,
}

/// A state of a run that is attested by rule `majority-attests`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AttestedState {
    /// The epoch that ended with it.
    pub epoch: u64,
    /// Rounds applied in it.
    pub round: u64,
    /// Its root.
    pub state_root: Hash,
    /// Hash of the epoch's score table.
    pub scores: Hash,
    /// Hotkeys that attest exactly this.
    pub attesters: usize,
    /// Hotkeys that attest something else for the same epoch.
    pub dissenters: usize,
}

/// An attestation, who made it, and what stands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The attester.
    pub hotkey: AccountId,
    /// Its stake and one rao.
    pub weight: u128,
    /// What it attests.
    pub attestation: Attestation,
}

/// The attestations among `commitments` whose hotkeys are registered.
pub fn attestations(neurons: &[Neuron], commitments: &[(AccountId, Commitment)]) -> Vec<Attested> {
    let found = commitments.iter().filter_map(|(hotkey, commitment)| {
        let neuron = neurons.iter().find(|neuron| neuron.hotkey == *hotkey)?;
        let attestation = Attestation::decode(&commitment.fields).ok()?;
        Some(Attested {
            hotkey: *hotkey,
            weight: u128::from(neuron.stake_rao) + 1,
            attestation,
        })
    });
    found.collect()
}

/// The run of a subnet, by rule `owner-names-the-run`; `None` if nobody attests any.
pub fn find_run(
    owner_hotkey: AccountId,
    neurons: &[Neuron],
    attested: &[Attested],
) -> Option<FoundRun> {
    let owner = attested.iter().find(|a| a.hotkey == owner_hotkey);
    let run = match owner {
        Some(owner) => owner.attestation.run,
        None => heaviest(attested.iter().map(|a| (a.attestation.run, a.weight)))?.0,
    };
    let attests = |neuron: &Neuron| {
        let mut of_run = attested.iter().filter(|a| a.attestation.run == run);
        of_run.any(|a| a.hotkey == neuron.hotkey)
    };
    let mut listening: Vec<(&Neuron, EntryPeer)> = neurons
        .iter()
        .filter_map(|neuron| Some((neuron, entry_peer(neuron)?)))
        .collect();
    listening.sort_by_key(|(neuron, _)| {
        (
            !attests(neuron),
            std::cmp::Reverse(neuron.stake_rao),
            neuron.uid,
        )
    });
    Some(FoundRun {
        run: RunId(Hash(run)),
        peers: listening.into_iter().map(|(_, peer)| peer).collect(),
        attested: newest_attested(&run, attested),
    })
}

/// The newest state of `run` that is attested by rule `majority-attests`. Epoch 0, the start of a run, is no state that
/// anybody trained.
pub fn newest_attested(run: &[u8; 32], attested: &[Attested]) -> Option<AttestedState> {
    let mut epochs: BTreeMap<u64, Vec<&Attested>> = BTreeMap::new();
    for a in attested {
        if a.attestation.run == *run && a.attestation.epoch > 0 {
            epochs.entry(a.attestation.epoch).or_default().push(a);
        }
    }
    let newest_first = epochs.values().rev();
    newest_first.into_iter().find_map(|of_epoch| {
        let total: u128 = of_epoch.iter().map(|a| a.weight).sum();
        let (attestation, weight) =
            heaviest(of_epoch.iter().map(|a| (key(&a.attestation), a.weight)))?;
        let same = of_epoch
            .iter()
            .filter(|a| key(&a.attestation) == attestation)
            .count();
        let (epoch, round, state_root, scores) = attestation;
        (weight * 2 > total).then(|| AttestedState {
            epoch,
            round,
            state_root: Hash(state_root),
            scores: Hash(scores),
            attesters: same,
            dissenters: of_epoch.len() - same,
        })
    })
}

fn key(attestation: &Attestation) -> (u64, u64, [u8; 32], [u8; 32]) {
    let Attestation {
        epoch,
        round,
        state_root,
        scores,
        ..
    } = *attestation;
    (epoch, round, state_root, scores)
}

/// The value with the greatest weight; of several, the greatest value, so that every reader finds the same.
fn heaviest<T: Ord>(votes: impl Iterator<Item = (T, u128)>) -> Option<(T, u128)> {
    let mut weights = BTreeMap::new();
    for (value, weight) in votes {
        *weights.entry(value).or_insert(0) += weight;
    }
    weights.into_iter().max_by_key(|(_, weight)| *weight)
}

/// A neuron as a peer to connect to; `None` if it published no key or no address.
pub fn entry_peer(neuron: &Neuron) -> Option<EntryPeer> {
    let axon = neuron.axon?;
    let mut address = Multiaddr::from(axon.ip);
    address.push(Protocol::Udp(axon.port));
    address.push(Protocol::QuicV1);
    Some(EntryPeer {
        key: PeerKey(neuron.peer_key?),
        addresses: vec![address],
    })
}

impl AttestedState {
    /// The round after which the state is.
    pub fn round(&self) -> RoundId {
        RoundId(self.round)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use gradmesh_chain::types::Axon;

    use super::*;

    /// A neuron that is reachable and nothing else.
    pub(in crate::subnet) fn neuron(uid: u16, stake_rao: u64) -> Neuron {
        let name = u8::try_from(uid).unwrap();
        Neuron {
            uid,
            hotkey: AccountId([name; 32]),
            coldkey: AccountId([100; 32]),
            axon: Some(Axon {
                ip: [10, 0, 0, name].into(),
                port: 4700,
                protocol: 4,
                version: 1,
                block: 1,
            }),
            peer_key: Some([name; 32]),
            active: true,
            validator_permit: false,
            stake_rao,
            alpha_stake_rao: stake_rao,
            tao_stake_rao: 0,
            emission_rao: 0,
            incentive: 0,
            consensus: 0,
            dividends: 0,
            validator_trust: 0,
            last_update: 0,
            registered_at: 0,
        }
    }

    fn attest(neuron: &Neuron, run: u8, epoch: u64, root: u8) -> (AccountId, Commitment) {
        let attestation = Attestation {
            run: [run; 32],
            epoch,
            round: epoch * 10,
            state_root: [root; 32],
            evidence_root: [0; 32],
            scores: [0; 32],
        };
        let commitment = Commitment {
            block: 5,
            fields: attestation.fields().to_vec(),
        };
        (neuron.hotkey, commitment)
    }

    #[test]
    fn the_owner_names_the_run_whatever_stake_says() {
        let neurons = [neuron(0, 0), neuron(1, 1000), neuron(2, 0)];
        let commitments = [attest(&neurons[0], 7, 0, 0), attest(&neurons[1], 8, 3, 1)];
        let attested = attestations(&neurons, &commitments);
        let found = find_run(neurons[0].hotkey, &neurons, &attested).unwrap();
        assert_eq!(found.run, RunId(Hash([7; 32])));
        assert_eq!(found.attested, None);
        let first = &found.peers[0];
        assert_eq!(first.key, PeerKey([0; 32]));
        assert_eq!(
            first.addresses[0].to_string(),
            "/ip4/10.0.0.0/udp/4700/quic-v1"
        );

        let found = find_run(neurons[2].hotkey, &neurons, &attested).unwrap();
        assert_eq!(found.run, RunId(Hash([8; 32])));
        assert_eq!(find_run(neurons[0].hotkey, &neurons, &[]), None);
    }

    #[test]
    fn an_attester_without_registration_counts_for_nothing() {
        let neurons = [neuron(0, 0)];
        let commitments = [attest(&neuron(9, 10_000), 7, 1, 1)];
        assert_eq!(attestations(&neurons, &commitments), []);
    }

    #[test]
    fn a_state_is_attested_by_more_than_half_of_the_stake_of_its_epoch() {
        let neurons = [neuron(0, 0), neuron(1, 10), neuron(2, 10), neuron(3, 30)];
        let newest = |commitments: &[(AccountId, Commitment)]| {
            newest_attested(&[7; 32], &attestations(&neurons, commitments))
        };
        let agreed = [
            attest(&neurons[0], 7, 2, 5),
            attest(&neurons[1], 7, 2, 5),
            attest(&neurons[2], 7, 2, 6),
            attest(&neurons[3], 7, 2, 5),
        ];
        let state = newest(&agreed).unwrap();
        assert_eq!(
            (state.epoch, state.round, state.state_root),
            (2, 20, Hash([5; 32]))
        );
        assert_eq!((state.attesters, state.dissenters), (3, 1));

        // Half is not more than half: the epoch before counts.
        let split = [
            attest(&neurons[1], 7, 3, 5),
            attest(&neurons[2], 7, 3, 6),
            attest(&neurons[3], 7, 2, 9),
        ];
        assert_eq!(newest(&split).unwrap().epoch, 2);
        assert_eq!(newest(&split[..2]), None);
    }
}
