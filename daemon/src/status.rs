//! What the daemon does now and why it waits, for people and for programs.
//!
//! [`Status`] is plain data: the driver fills it through a [`StatusHandle`], the status server shows it
//! ([`server`]), `gradmesh status` and `gradmesh demo` read it back ([`client`]).
//!
//! Holds numbers and words only, no key and no token.

mod audit;
pub mod client;
mod metrics;
pub mod server;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use gradmesh_chain::types::Neuron;
use gradmesh_protocol::concentration::Concentration;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::daemon::capacity::Origin;
pub use audit::{AuditStatus, FindingState, FindingStatus, ScoreStatus, SettledStatus};

/// Rounds kept in the history; older ones are forgotten here, never in the store. About 400 bytes each as JSON.
pub const HISTORY_ROUNDS_MAX: usize = 1024;

/// Bits of an element of a small tensor in a sparse run (bf16).
const SMALL_TENSOR_BITS: f64 = 16.0;

/// Bits of an f32, what a dense exchange would send for each parameter.
pub const DENSE_BITS: f64 = 32.0;

/// What a daemon does in its current round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reads data and state, opens its ports.
    #[default]
    Starting,
    /// Has no manifest yet, or waits for enough peers.
    Gathering,
    /// Fetches and replays what the others decided.
    CatchingUp,
    /// Caught up, not in the roster yet.
    Joining,
    /// Follows the run and audits its work.
    Validating,
    /// Local steps.
    Training,
    /// Waits for the others' updates.
    Exchanging,
    /// Votes.
    Deciding,
    /// Changes the shared parameters as decided.
    Applying,
    /// The last round is applied; serves what others may still need.
    Finished,
    /// Has left the run.
    Left,
}

impl Phase {
    /// Whether the daemon can do nothing but wait for others.
    pub fn waits(self) -> bool {
        match self {
            Phase::Gathering
            | Phase::CatchingUp
            | Phase::Joining
            | Phase::Exchanging
            | Phase::Deciding => true,
            Phase::Starting
            | Phase::Validating
            | Phase::Training
            | Phase::Applying
            | Phase::Finished
            | Phase::Left => false,
        }
    }

    /// The phase in words, as the end of "the daemon is ...".
    pub fn words(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Gathering => "gathering peers",
            Phase::CatchingUp => "catching up",
            Phase::Joining => "asking to join",
            Phase::Validating => "validating",
            Phase::Training => "training",
            Phase::Exchanging => "exchanging updates",
            Phase::Deciding => "deciding",
            Phase::Applying => "applying",
            Phase::Finished => "finished",
            Phase::Left => "out of the run",
        }
    }
}

/// One member of the roster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The first eight hex digits of its key.
    pub peer: String,
    /// Whether it is this daemon.
    pub own: bool,
    /// Whether a connection to it is up; true for this daemon.
    pub connected: bool,
    /// The newest round whose decision accepts something of it.
    pub accepted_round: Option<u64>,
    /// Its last loss in that round, nats per token.
    pub loss: Option<f64>,
    /// What the roster has its link carry, in Mbit/s: its share of the shards to own goes by that.
    #[serde(default)]
    pub capacity_mbit: u32,
}

/// What this daemon says that its link can carry.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CapacityStatus {
    /// In Mbit/s, as it is said: a multiple of ten. 0 owns nothing.
    pub mbit: u32,
    /// Where it comes from.
    pub origin: Origin,
    /// What the link carried when it was full, in Mbit/s; absent while it never was for long enough to tell.
    pub measured_mbit: Option<f64>,
}

/// Where the time of a round went on this daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundSeconds {
    /// Local steps.
    pub train: f64,
    /// From the last step to the own update: encoding it, making it durable. Waiting for the round before, with overlap, is
    /// counted there.
    pub encode: f64,
    /// From the own update to the end of waiting for the others'.
    pub exchange: f64,
    /// Agreement.
    pub decide: f64,
    /// Aggregate, outer step, making it durable.
    pub apply: f64,
    /// What of exchange, agreement and applying the next round was trained in (`exchange.overlap`).
    #[serde(default)]
    pub hidden: f64,
    /// When the own update was out, in seconds since 1970 by this machine's clock: the figures of peers on one machine can
    /// be laid over each other.
    pub committed_at: f64,
}

impl RoundSeconds {
    /// All but training and encoding, as far as the next round was not trained meanwhile.
    pub fn sync(&self) -> f64 {
        (self.exchange + self.decide + self.apply - self.hidden).max(0.0)
    }

    /// All of it.
    pub fn total(&self) -> f64 {
        self.train + self.encode + self.sync()
    }
}

/// A decided round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundStatus {
    /// Its number.
    pub round: u64,
    /// Token-weighted mean of the members' first losses, nats per token.
    pub loss_first: Option<f64>,
    /// The same of their last losses.
    pub loss_last: Option<f64>,
    /// Updates that count.
    pub members: u32,
    /// Roster size.
    pub roster: u32,
    /// Bytes of the frames that count, over all members.
    pub frame_bytes: u64,
    /// Tokens that they were trained on.
    pub tokens: u64,
    /// Where the time went here; absent when the round was replayed.
    pub seconds: Option<RoundSeconds>,
    /// State root after the round, once applied here.
    pub root: Option<Hash>,
}

/// Bytes through this daemon's sockets, both planes, since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Control plane, received.
    pub control_in: u64,
    /// Control plane, sent.
    pub control_out: u64,
    /// Bulk plane, received.
    pub bulk_in: u64,
    /// Bulk plane, sent.
    pub bulk_out: u64,
}

impl Traffic {
    /// What was added since it was `earlier`.
    pub fn since(&self, earlier: &Traffic) -> Traffic {
        Traffic {
            control_in: self.control_in.saturating_sub(earlier.control_in),
            control_out: self.control_out.saturating_sub(earlier.control_out),
            bulk_in: self.bulk_in.saturating_sub(earlier.bulk_in),
            bulk_out: self.bulk_out.saturating_sub(earlier.bulk_out),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        [
            self.control_in,
            self.control_out,
            self.bulk_in,
            self.bulk_out,
        ]
        .iter()
        .fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// A checkpoint on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Rounds applied in it.
    pub round: u64,
    /// Its state root.
    pub root: Hash,
    /// Its directory.
    pub path: PathBuf,
    /// Mean loss of its parameters on held-out text, nats per token.
    pub loss_held_out: Option<f64>,
}

/// Where a run on a subnet stands on the chain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChainStatus {
    /// The endpoint in use; empty before the first connection.
    pub endpoint: String,
    /// The subnet.
    pub netuid: u16,
    /// This daemon's hotkey, ss58.
    pub hotkey: String,
    /// Its uid at the newest snapshot; absent while it is not registered.
    pub uid: Option<u16>,
    /// The newest finalized block.
    pub block: Option<u64>,
    /// The neurons at the newest snapshot, by uid.
    pub neurons: Vec<NeuronStatus>,
    /// In how few hands the subnet is; absent before the first snapshot.
    pub concentration: Option<SubnetConcentration>,
    /// The newest attestation of this daemon that is final.
    pub attested: Option<AttestedStatus>,
    /// Attestations that wait for the chain.
    pub attestations_queued: usize,
    /// The newest weights that it published.
    pub weights: Option<WeightsStatus>,
    /// What is wrong and not over, by task, with what to do.
    pub problems: BTreeMap<String, String>,
}

impl ChainStatus {
    /// This daemon's own neuron.
    pub fn own(&self) -> Option<&NeuronStatus> {
        self.neurons
            .iter()
            .find(|neuron| Some(neuron.uid) == self.uid)
    }
}

/// A neuron of the subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeuronStatus {
    /// Its uid at the snapshot.
    pub uid: u16,
    /// Its hotkey, ss58.
    pub hotkey: String,
    /// The first eight hex digits of the peer key that it published.
    pub peer: Option<String>,
    /// Its stake on the subnet.
    pub stake_rao: u64,
    /// What the last epoch of the chain paid it.
    pub emission_rao: u64,
    /// Its share of what miners are paid, of 65535.
    pub incentive: u16,
    /// Its share of what validators are paid, of 65535.
    pub dividends: u16,
    /// Whether it may set weights.
    pub validator_permit: bool,
}

impl From<&Neuron> for NeuronStatus {
    fn from(neuron: &Neuron) -> NeuronStatus {
        NeuronStatus {
            uid: neuron.uid,
            hotkey: neuron.hotkey.to_string(),
            peer: neuron.peer_key.map(|key| PeerKey(key).short()),
            stake_rao: neuron.stake_rao,
            emission_rao: neuron.emission_rao,
            incentive: neuron.incentive,
            dividends: neuron.dividends,
            validator_permit: neuron.validator_permit,
        }
    }
}

/// In how few hands a subnet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetConcentration {
    /// Whether nobody has a permit, so that `stake` is that of all neurons.
    pub stake_of_all: bool,
    /// Stake of the validators: the neurons with a permit.
    pub stake: ConcentrationStatus,
    /// The say over weights: stake of the validators whose weights count now.
    pub weight: ConcentrationStatus,
    /// What miners are paid: the incentive of those who have any.
    pub incentive: ConcentrationStatus,
}

impl SubnetConcentration {
    /// The figures with their names.
    pub fn named(&self) -> [(&'static str, ConcentrationStatus); 3] {
        [
            ("stake", self.stake),
            ("weight", self.weight),
            ("incentive", self.incentive),
        ]
    }
}

/// How something is spread over those who hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConcentrationStatus {
    /// How many hold any of it.
    pub holders: usize,
    /// Share of the largest holder, parts per million.
    pub top_1_ppm: u32,
    /// Share of the five largest.
    pub top_5_ppm: u32,
    /// Share of the ten largest.
    pub top_10_ppm: u32,
    /// How many of the largest together hold more than half.
    pub nakamoto: usize,
    /// Gini coefficient, parts per million.
    pub gini_ppm: u32,
}

impl From<Concentration> for ConcentrationStatus {
    fn from(of: Concentration) -> ConcentrationStatus {
        ConcentrationStatus {
            holders: of.holders,
            top_1_ppm: of.top_1_ppm,
            top_5_ppm: of.top_5_ppm,
            top_10_ppm: of.top_10_ppm,
            nakamoto: of.nakamoto,
            gini_ppm: of.gini_ppm,
        }
    }
}

/// An attestation in a finalized block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestedStatus {
    /// The epoch; 0 is the start of the run.
    pub epoch: u64,
    /// Its last round.
    pub round: u64,
    /// The state root after it.
    pub state_root: Hash,
    /// The block.
    pub block: u64,
    /// The place of the extrinsic in it.
    pub extrinsic_index: u32,
}

/// Published weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsStatus {
    /// The epoch whose scores they are.
    pub epoch: u64,
    /// The finalized block of the call.
    pub block: u64,
    /// The round of the beacon that reveals them; absent if they were set in the clear.
    pub reveal_round: Option<u64>,
    /// Weight of each uid, of 65535.
    pub weights: Vec<(u16, u16)>,
}

/// What does not change while a daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The run's hash; empty while a joining daemon has no manifest.
    pub run: String,
    /// The run's name.
    pub name: String,
    /// This daemon's key, 64 hex digits.
    pub peer: String,
    /// Training rounds of the run.
    pub rounds: u64,
    /// Parameters of the model.
    pub parameters: u64,
    /// Those among them that travel dense in a sparse run: small tensors.
    pub parameters_dense: u64,
    /// Fragments that they are exchanged in, one a round.
    pub fragments: u32,
    /// Where it trains, for example `cpu`.
    pub device: String,
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Who and which run.
    #[serde(flatten)]
    pub identity: Identity,
    /// The round that it is in.
    pub round: u64,
    /// What it does there.
    pub phase: Phase,
    /// Why it waits, or how far it is, in words; absent when there is nothing to say.
    pub detail: Option<String>,
    /// What went wrong and is not over, in words.
    pub problem: Option<String>,
    /// The roster of the current round.
    pub roster: Vec<PeerStatus>,
    /// The last round known to be decided.
    pub decided: Option<u64>,
    /// The last round applied here.
    pub applied: Option<u64>,
    /// The state root after it.
    pub state_root: Option<Hash>,
    /// The last [`HISTORY_ROUNDS_MAX`] decided training rounds, oldest first.
    pub history: VecDeque<RoundStatus>,
    /// Bytes in and out.
    pub traffic: Traffic,
    /// The same since this daemon's first round began: without manifest, data and state.
    pub traffic_of_rounds: Traffic,
    /// Bits that one peer's update takes per parameter that it is of, mean over the history; f32 takes 32.
    pub bits_per_param: Option<f64>,
    /// The same for the tensors in sparse mode alone, all framing counted as theirs; absent in a dense run.
    pub bits_per_param_sparse: Option<f64>,
    /// Share of the time of the rounds in the history that was not training.
    pub sync_share: Option<f64>,
    /// The ticket that lets others join.
    pub ticket: Option<String>,
    /// Where this daemon listens.
    pub addresses: Vec<String>,
    /// Whether others can reach it, and how, in words.
    #[serde(default)]
    pub network: String,
    /// Whether nobody can connect to it directly.
    #[serde(default)]
    pub behind_nat: bool,
    /// What it says that its link can carry; absent before it takes part.
    #[serde(default)]
    pub capacity: Option<CapacityStatus>,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointStatus>,
    /// Whether the last round of the run is applied.
    pub finished: bool,
    /// Where the run stands on the chain; absent in a run without one.
    pub chain: Option<ChainStatus>,
    /// What is known of audits; absent in a run without them.
    #[serde(default)]
    pub audit: Option<AuditStatus>,
}

impl Status {
    /// The record of `round`, made if it is not there; `None` for a round older than the history holds.
    fn round_mut(&mut self, round: u64) -> Option<&mut RoundStatus> {
        let place = match self.history.binary_search_by_key(&round, |r| r.round) {
            Ok(place) => place,
            Err(0) if self.history.len() >= HISTORY_ROUNDS_MAX => return None,
            Err(place) => {
                let empty = RoundStatus {
                    round,
                    ..RoundStatus::default()
                };
                self.history.insert(place, empty);
                if self.history.len() > HISTORY_ROUNDS_MAX {
                    self.history.pop_front();
                    place - 1
                } else {
                    place
                }
            }
        };
        self.history.get_mut(place)
    }

    fn derive(&mut self) {
        let (mut bits, mut updates) = (0.0, 0.0);
        let (mut sync, mut total) = (0.0, 0.0);
        for round in &self.history {
            bits += round.frame_bytes as f64 * 8.0;
            updates += f64::from(round.members);
            if let Some(seconds) = &round.seconds {
                sync += seconds.sync();
                total += seconds.total();
            }
        }
        // Of a history that is not a multiple of the fragments this is right as far as they are of one size.
        let updates = updates / f64::from(self.identity.fragments.max(1));
        let sent = updates * self.identity.parameters as f64;
        self.bits_per_param = (sent > 0.0).then(|| bits / sent);
        let dense = updates * self.identity.parameters_dense as f64;
        let sparse = sent - dense;
        self.bits_per_param_sparse =
            (sparse > 0.0 && dense > 0.0).then(|| (bits - dense * SMALL_TENSOR_BITS) / sparse);
        self.sync_share = (total > 0.0).then(|| sync / total);
    }
}

/// The driver's side: sets what it knows when it knows it. Clones share one status.
#[derive(Clone, Debug)]
pub struct StatusHandle {
    status: watch::Sender<Status>,
}

impl Default for StatusHandle {
    fn default() -> Self {
        StatusHandle::new()
    }
}

impl StatusHandle {
    /// A status that says "starting".
    pub fn new() -> StatusHandle {
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Status::default()
        };
        StatusHandle {
            status: watch::Sender::new(status),
        }
    }

    /// The status now.
    pub fn snapshot(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Hears of every change.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Who this is and which run; known once there is a manifest.
    pub fn set_identity(&self, identity: Identity) {
        self.set(|status| status.identity = identity);
    }

    /// What the daemon does in which round; `detail`: why it waits, or how far it is, in words.
    pub fn set_phase(&self, round: u64, phase: Phase, detail: Option<String>) {
        self.set(|status| {
            status.round = round;
            status.phase = phase;
            status.detail = detail;
            status.finished |= phase == Phase::Finished;
        });
    }

    /// Changes what is known of audits, in a run with them.
    pub fn change_audit(&self, change: impl FnOnce(&mut AuditStatus)) {
        self.set(|status| change(status.audit.get_or_insert_default()));
    }

    /// What is wrong, until it is over (`None`).
    pub fn set_problem(&self, problem: Option<String>) {
        self.set(|status| status.problem = problem);
    }

    /// The roster of the current round, in canonical order.
    pub fn set_roster(&self, roster: Vec<PeerStatus>) {
        self.set(|status| status.roster = roster);
    }

    /// A training round was decided: its figures. Seconds and root that are already known stay unless given.
    pub fn set_decided(&self, decided: RoundStatus) {
        self.set(|status| {
            status.decided = status.decided.max(Some(decided.round));
            if let Some(round) = status.round_mut(decided.round) {
                let known = std::mem::replace(round, decided);
                round.seconds = round.seconds.or(known.seconds);
                round.root = round.root.or(known.root);
            }
            status.derive();
        });
    }

    /// A round was applied; round 0, the founding one, does not appear in the history.
    pub fn set_applied(&self, round: u64, root: Hash, seconds: Option<RoundSeconds>) {
        self.set(|status| {
            status.applied = Some(round);
            status.decided = status.decided.max(Some(round));
            status.state_root = Some(root);
            if round > 0
                && let Some(record) = status.round_mut(round)
            {
                record.root = Some(root);
                record.seconds = seconds.or(record.seconds);
            }
            status.derive();
        });
    }

    /// Bytes so far, and how many of them came before the first round.
    pub fn set_traffic(&self, traffic: Traffic, before_rounds: Traffic) {
        self.set(|status| {
            status.traffic = traffic;
            status.traffic_of_rounds = traffic.since(&before_rounds);
        });
    }

    /// Where it listens, and the ticket if it is the launcher.
    pub fn set_contact(&self, addresses: Vec<String>, ticket: Option<String>) {
        self.set(|status| {
            status.addresses = addresses;
            status.ticket = ticket;
        });
    }

    /// Whether others can reach it, in words, and whether that is not directly.
    pub fn set_network(&self, words: String, behind_nat: bool) {
        self.set(|status| {
            status.network = words;
            status.behind_nat = behind_nat;
        });
    }

    /// What it says that its link can carry.
    pub fn set_capacity(&self, capacity: CapacityStatus) {
        self.set(|status| status.capacity = Some(capacity));
    }

    /// A checkpoint was written.
    pub fn set_checkpoint(&self, checkpoint: CheckpointStatus) {
        self.set(|status| status.checkpoint = Some(checkpoint));
    }

    /// The run lives on a subnet.
    pub fn set_chain(&self, chain: ChainStatus) {
        self.set(|status| status.chain = Some(chain));
    }

    /// Something about the chain is new; nothing happens in a run without one.
    pub fn change_chain(&self, change: impl FnOnce(&mut ChainStatus)) {
        self.set(|status| {
            if let Some(chain) = &mut status.chain {
                change(chain);
            }
        });
    }

    fn set(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_if_modified(|status| {
            change(status);
            true
        });
    }
}

/// Micronats as nats, for [`RoundStatus`]; what a decision carries are integers.
pub fn nats(micronats: u64) -> f64 {
    micronats as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(round: u64, members: u32, frame_bytes: u64) -> RoundStatus {
        RoundStatus {
            round,
            members,
            roster: 4,
            frame_bytes,
            ..RoundStatus::default()
        }
    }

    #[test]
    fn bits_and_sync_share_are_means_over_the_history() {
        let handle = StatusHandle::new();
        handle.set_identity(Identity {
            parameters: 1000,
            ..Identity::default()
        });
        assert_eq!(handle.snapshot().bits_per_param, None);
        handle.set_decided(decided(1, 4, 200));
        handle.set_decided(decided(2, 1, 50));
        let seconds = RoundSeconds {
            train: 8.0,
            encode: 1.0,
            exchange: 0.5,
            decide: 0.25,
            apply: 1.25,
            hidden: 1.0,
            committed_at: 0.0,
        };
        handle.set_applied(1, Hash::ZERO, Some(seconds));
        let status = handle.snapshot();
        // 250 bytes are 2000 bits, for five updates of 1000 parameters.
        assert_eq!(status.bits_per_param, Some(0.4));
        assert_eq!(status.sync_share, Some(0.1));
        handle.set_identity(Identity {
            fragments: 2,
            ..status.identity
        });
        handle.set_decided(decided(3, 5, 250));
        // 500 bytes are 4000 bits, for ten updates of half of them.
        assert_eq!(handle.snapshot().bits_per_param, Some(0.8));
    }

    #[test]
    fn root_and_seconds_stay_when_the_decision_is_told_after_them() {
        let handle = StatusHandle::new();
        let root = Hash::of_content(b"root");
        handle.set_applied(0, Hash::ZERO, None);
        handle.set_applied(1, root, Some(RoundSeconds::default()));
        handle.set_decided(decided(1, 2, 7));
        let status = handle.snapshot();
        assert_eq!(status.history.len(), 1);
        assert_eq!(status.history[0].root, Some(root));
        assert_eq!(status.history[0].frame_bytes, 7);
        assert!(status.history[0].seconds.is_some());
        assert_eq!(status.applied, Some(1));
    }

    #[test]
    fn the_history_keeps_the_newest_rounds_in_order() {
        let handle = StatusHandle::new();
        let rounds = HISTORY_ROUNDS_MAX as u64 + 5;
        for round in (1..=rounds).rev().chain([1]) {
            handle.set_decided(decided(round, 1, 1));
        }
        let history = handle.snapshot().history;
        assert_eq!(history.len(), HISTORY_ROUNDS_MAX);
        assert_eq!(history[0].round, 6);
        assert_eq!(history.back().map(|r| r.round), Some(rounds));
        handle.set_decided(decided(rounds + 1, 1, 1));
        let history = handle.snapshot().history;
        assert_eq!(history[0].round, 7);
        assert!(history.iter().is_sorted_by_key(|r| r.round));
    }

    #[test]
    fn a_status_survives_json() {
        let handle = StatusHandle::new();
        handle.set_phase(3, Phase::Exchanging, Some("2 of 4 updates".into()));
        handle.set_decided(decided(2, 4, 100));
        handle.set_checkpoint(CheckpointStatus {
            round: 2,
            root: Hash::of_content(b"root"),
            path: "/tmp/c".into(),
            loss_held_out: Some(2.5),
        });
        let status = handle.snapshot();
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
        assert!(json.contains("\"phase\":\"exchanging\""), "{json}");
    }
}
