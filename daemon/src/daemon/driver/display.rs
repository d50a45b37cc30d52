//! What people see of a run: log lines and the status page.

use gradmesh_protocol::figures::RoundFigures;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::{Activity, Report};
use gradmesh_protocol::ticket::{ADDRESSES_MAX, Ticket};
use gradmesh_protocol::wire::DecisionRecord;
use libp2p::multiaddr::Protocol;
use tokio::time::Instant;

use super::{Driver, End};
use crate::daemon::capacity::UNIT_MBIT;
use crate::daemon::peer_id;
use crate::net::control::is_relayed;
use crate::net::traffic;
use crate::status::{CapacityStatus, PeerStatus, Phase, RoundStatus, StatusHandle, Traffic, nats};

impl Driver {
    pub(super) fn on_decided(&mut self, record: &DecisionRecord) {
        self.meter.decided(record.decision.round);
        for header in &record.headers {
            let header = &header.header;
            let entry = (header.round, header.update.loss_last_micronats);
            self.accepted.insert(header.peer, entry);
        }
        self.accepted
            .retain(|peer, _| self.node.roster().contains(peer));
    }

    pub(super) fn on_report(&mut self, report: Report) {
        match report {
            Report::Decided {
                round,
                attempt,
                roster,
                figures,
            } => {
                show_round(&self.status, round, roster, &figures);
                let loss = nats(figures.loss_last_micronats);
                let (members, bytes) = (figures.members, figures.frame_bytes);
                tracing::info!(%round, attempt, members, roster, bytes, loss, "decided");
            }
            Report::Applied { round, state_root } => {
                let measured = self.meter.applied(round);
                self.status.set_applied(round.0, state_root, measured);
                tracing::info!(%round, root = %state_root.short(), "applied");
            }
            Report::Roster {
                round,
                joined,
                left,
                members,
            } => {
                tracing::info!(%round, ?joined, ?left, members, "roster");
                let members = self.node.roster().members();
                let members = members.iter().filter_map(|member| peer_id(&member.peer));
                self.gate.set_members(members.collect());
            }
            Report::Diverged {
                round,
                decided,
                own,
            } => {
                tracing::error!(%round, %decided, %own, "state differs from the decided one; fetching it anew");
            }
            Report::LeftOut(round) => {
                tracing::warn!(%round, "own update left out; it stays in the error feedback");
            }
            Report::Misbehaviour { peer, what } => {
                tracing::warn!(peer = %peer.short(), what, "rule broken");
            }
            Report::OwnersDisagree {
                round,
                group: _,
                shard,
                owners,
            } => {
                let owners = owners.map(|owner| owner.short());
                tracing::error!(%round, shard, ?owners, "the owners of a shard disagree; it is left out");
            }
            Report::Finished(round) => {
                tracing::info!(%round, "the run is finished");
                self.finished_at = Some(Instant::now());
            }
            Report::Left(round) => {
                tracing::info!(%round, "left the run");
                self.end = Some(End::Left);
            }
            Report::NotRegistered { block } => {
                tracing::info!(block, peer = %self.me, "the subnet does not register this peer yet, or no more");
            }
        }
    }

    pub(super) fn show(&mut self) {
        let view = self.node.view(self.now());
        let mut waits = view.to_string();
        let ahead = self
            .progress
            .filter(|(round, ..)| Some(*round) == view.ahead);
        if let Some((_, step, steps, _)) = ahead {
            waits.push_str(&format!(", step {step} of {steps}"));
        }
        let (phase, waits) = match view.activity {
            Activity::Founding { .. } | Activity::AwaitingLauncher | Activity::AwaitingRegistry => {
                (Phase::Gathering, Some(waits))
            }
            Activity::CatchingUp { .. } | Activity::FetchingState(_) | Activity::AwaitingState => {
                (Phase::CatchingUp, Some(waits))
            }
            Activity::Applying(_) => (Phase::Applying, view.ahead.map(|_| waits)),
            Activity::Training => {
                let progress = self.progress.map(|(_, step, steps, loss)| {
                    format!("step {step} of {steps}, loss {loss:.3}")
                });
                (Phase::Training, progress)
            }
            Activity::Exchanging => (Phase::Exchanging, Some(waits)),
            Activity::Deciding { .. } => (Phase::Deciding, Some(waits)),
            Activity::Observing | Activity::NotRegistered { .. } => (Phase::Joining, Some(waits)),
            Activity::Validating => (Phase::Validating, Some(waits)),
            Activity::Finished => (Phase::Finished, None),
            Activity::Left => (Phase::Left, None),
        };
        self.status.set_phase(view.round.0, phase, waits);
        let roster = self.node.roster().members().iter().map(|member| {
            let accepted = self.accepted.get(&member.peer);
            PeerStatus {
                peer: member.peer.short(),
                own: member.peer == self.me,
                connected: self.node.is_connected(&member.peer),
                accepted_round: accepted.map(|(round, _)| round.0),
                loss: accepted.map(|(_, loss)| nats(*loss)),
                capacity_mbit: u32::from(member.link.capacity) * UNIT_MBIT,
            }
        });
        self.status.set_roster(roster.collect());
        let (capacity, origin) = self.capacity_now();
        self.status.set_capacity(CapacityStatus {
            mbit: u32::from(capacity) * UNIT_MBIT,
            origin,
            measured_mbit: self
                .bulk
                .measured_bytes_per_s()
                .map(|rate| rate * 8.0 / 1e6),
        });
        let traffic = traffic_now();
        let before_rounds = self.before_rounds.unwrap_or(traffic);
        self.status.set_traffic(traffic, before_rounds);
    }

    /// Addresses, and the ticket if this peer launched the run.
    pub(super) fn show_contact(&self) {
        let peer = self.control.peer_id();
        let addresses: Vec<String> = self
            .listening
            .iter()
            .map(|address| match is_relayed(address) {
                true => address.to_string(),
                false => address.clone().with(Protocol::P2p(peer)).to_string(),
            })
            .collect();
        let ticket = self.prepared.launches.then(|| {
            let mut listed = addresses.clone();
            listed.truncate(ADDRESSES_MAX);
            Ticket::sign(self.run, listed, &self.keypair).to_string()
        });
        self.status.set_contact(addresses, ticket);
    }
}

/// Shows a decided round; the founding one trained nothing and does not appear.
pub(super) fn show_round(
    status: &StatusHandle,
    round: RoundId,
    roster: u32,
    figures: &RoundFigures,
) {
    if round == RoundId::FOUNDING {
        return;
    }
    status.set_decided(RoundStatus {
        round: round.0,
        loss_first: Some(nats(figures.loss_first_micronats)),
        loss_last: Some(nats(figures.loss_last_micronats)),
        members: figures.members,
        roster,
        frame_bytes: figures.frame_bytes,
        tokens: figures.tokens,
        seconds: None,
        root: None,
    });
}

pub(super) fn traffic_now() -> Traffic {
    Traffic {
        control_in: traffic::CONTROL.received(),
        control_out: traffic::CONTROL.sent(),
        bulk_in: traffic::BULK.received(),
        bulk_out: traffic::BULK.sent(),
    }
}
