//! What happens outside, told to the node: network, worker, fetching tasks, chain.

use gradmesh_chain::AccountId;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::node::Input;
use gradmesh_protocol::wire::{Contact, Gossip};
use libp2p::{Multiaddr, PeerId};
use std::sync::Arc;
use tokio::time::Instant;

use super::{Done, Driver, NONCE_BYTES};
use crate::daemon::address::{NOT_DIALLED, bulk_address, udp_address};
use crate::daemon::fetch::FrameError;
use crate::daemon::{peer_id, peer_key};
use crate::net::bulk::PeerSource;
use crate::net::control::{ControlEvent, GossipMessage, Verdict, is_relayed};
use crate::status::CheckpointStatus;
use crate::subnet;
use crate::worker::{Command, Event};

impl Driver {
    /// What the chain says.
    pub(super) async fn on_subnet(&mut self, event: subnet::Event) -> anyhow::Result<()> {
        match event {
            subnet::Event::Snapshot {
                registry,
                peers,
                validators,
            } => {
                if let Some(auditor) = &mut self.auditor {
                    auditor.finalized(registry.mark(), validators);
                }
                self.follow_auditor().await?;
                for peer in peers {
                    let unknown = !self.connected.contains_key(&peer.key);
                    if let Some(id) = peer_id(&peer.key).filter(|_| unknown)
                        && let Err(error) = self.control.keep(id, peer.addresses).await
                    {
                        tracing::debug!(peer = %peer.key.short(), %error, "not kept");
                    }
                }
                self.inputs.push_back(Input::Registry(registry));
            }
        }
        Ok(())
    }

    pub(super) async fn on_done(&mut self, done: Done) -> anyhow::Result<()> {
        match done {
            Done::Frame {
                frame,
                round,
                result: Ok(fetched),
            } => {
                self.hold_fetched(round, frame.hash, fetched.bytes.clone())?;
                self.inputs.push_back(Input::FrameHeld(frame));
            }
            Done::Frame {
                frame,
                result: Err(FrameError::Fetch(failed)),
                ..
            } => {
                tracing::debug!(hash = %frame.hash, error = %failed.error, "frame not fetched");
                self.inputs.push_back(Input::FrameFailed(frame));
            }
            Done::Frame {
                frame,
                result: Err(FrameError::Malformed(fault)),
                ..
            } => self.refuse_frame(frame, &fault),
            // The node waits for no answer.
            Done::Frame {
                result: Err(FrameError::Over),
                ..
            } => {}
            Done::Frame {
                result: Err(error @ FrameError::Task(_)),
                ..
            } => return Err(error.into()),
            Done::Written { applied, result } => {
                result??;
                self.on_written(applied)?;
            }
            Done::Reduced(Ok(reduced)) => {
                let (round, frame) = (reduced.task.round, reduced.frame.clone());
                self.keep_frame(round, reduced.frame_hash, frame)?;
                if let Some((hash, bytes)) = &reduced.residual {
                    self.residuals.keep_left(round, *hash, bytes)?;
                }
                self.inputs.push_back(reduced.input());
            }
            Done::Reduced(Err((task, error))) => {
                let (round, group, shard) = (task.round, task.group, task.shard);
                tracing::error!(%round, shard, %error, "a shard was not reduced");
                self.inputs.push_back(Input::ReductionFailed {
                    round,
                    group,
                    shard,
                });
            }
            Done::AuditInputs(result) => {
                if let Some(auditor) = &mut self.auditor {
                    auditor.fetched(result);
                }
                self.follow_auditor().await?;
            }
            Done::Residual { hash, bytes } => self.residuals.keep_fetched(hash, bytes.as_ref())?,
            Done::State {
                round,
                root,
                result: Ok(state),
            } => self.command(Command::Adopt {
                round,
                root,
                leaves: state.leaves,
                tiles: state.tiles,
            })?,
            Done::State {
                round,
                result: Err(error),
                ..
            } => {
                tracing::warn!(%round, %error, "state not fetched");
                self.inputs.push_back(Input::StateFailed(round));
            }
        }
        Ok(())
    }

    pub(super) async fn on_worker(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Progress {
                round,
                step,
                steps,
                loss,
            } => {
                self.progress = Some((round, step, steps, loss));
                if step == steps {
                    self.meter.trained(round);
                }
            }
            Event::Update {
                round,
                summary,
                frames,
                work,
            } => {
                if let Some(work) = work {
                    let (kept, gone) = *work;
                    gone.iter().for_each(|round| self.forget_work(*round));
                    self.serve_work(kept)?;
                }
                self.meter.commit(round);
                self.progress = None;
                for (frame, bytes) in summary.frames.iter().zip(frames) {
                    self.hold_frame(round, frame.hash, bytes)?;
                }
                let update = summary;
                self.inputs.push_back(Input::UpdateReady { round, update });
            }
            Event::TrainingFailed { round, reason } => {
                tracing::error!(%round, reason, "no update in this round");
                self.status
                    .set_problem(Some(format!("round {round} gave no update: {reason}")));
                self.inputs.push_back(Input::TrainingFailed(round));
            }
            Event::Applied {
                round,
                state_root,
                seconds,
                snapshot,
                checkpoint,
            } => {
                tracing::debug!(%round, seconds = seconds.as_secs_f64(), "applied");
                if let Some(auditor) = &mut self.auditor {
                    auditor.applied(round);
                }
                if let Some(snapshot) = snapshot {
                    self.serve_snapshot(snapshot)?;
                }
                self.write_behind(round);
                if let Some(written) = checkpoint {
                    let validates = match &mut self.auditor {
                        Some(auditor) => auditor.epoch_ended(written.round, written.root),
                        None => false,
                    };
                    if let Some(subnet) = self.subnet.as_ref().filter(|_| !validates) {
                        subnet.epoch_ended(written.round, written.root)?;
                    }
                    tracing::info!(round = %written.round, path = %written.path.display(), "checkpoint");
                    self.status.set_checkpoint(CheckpointStatus {
                        round: written.round.0,
                        root: written.root,
                        path: written.path,
                        loss_held_out: written.loss_held_out.map(f64::from),
                    });
                }
                self.inputs.push_back(Input::Applied { round, state_root });
                self.follow_auditor().await?;
            }
            Event::Adopted { round, snapshot } => {
                if let Some(auditor) = &mut self.auditor {
                    auditor.adopted(round);
                }
                self.snapshots.clear();
                self.serve_snapshot(snapshot)?;
                self.write_behind(round);
                let records = self.store.decisions(round.next(), u32::MAX)?;
                let records = records.into_iter().map(Arc::new).collect();
                self.inputs
                    .push_back(Input::StateFetched { round, records });
            }
            Event::Audited { result, .. } => {
                if let Some(auditor) = &mut self.auditor {
                    auditor.audited(*result);
                }
                self.follow_auditor().await?;
            }
            Event::Broken(error) => return Err(error.into()),
        }
        Ok(())
    }

    pub(super) async fn on_control(&mut self, event: ControlEvent) -> anyhow::Result<()> {
        match event {
            ControlEvent::Listening(address) => {
                tracing::info!(%address, "listening");
                if let (Some(subnet), Some(address)) = (&self.subnet, udp_address(&address)) {
                    subnet.listening(address);
                }
                if !self.listening.contains(&address) {
                    self.listening.push(address);
                }
                self.contact_due = Instant::now();
                self.show_contact();
            }
            ControlEvent::NotListening(address) => {
                self.listening.retain(|known| *known != address);
                self.contact_due = Instant::now();
                self.show_contact();
            }
            ControlEvent::PeerDirect { peer, addr } => {
                if let Some(key) = peer_key(&peer) {
                    self.connected.insert(key, addr);
                }
            }
            ControlEvent::PeerConnected { peer, addr } => {
                if let Some(key) = peer_key(&peer) {
                    self.connected.insert(key, addr);
                    self.inputs.push_back(Input::PeerUp(key));
                }
            }
            ControlEvent::PeerDisconnected { peer } => {
                if let Some(key) = peer_key(&peer) {
                    self.connected.remove(&key);
                    self.contacts.remove(&key);
                    self.round_trips.remove(&key);
                    self.inputs.push_back(Input::PeerDown(key));
                }
            }
            ControlEvent::PeerSubscribed { .. } => self.contact_due = Instant::now(),
            ControlEvent::PeerRtt { peer, rtt } => {
                if let Some(key) = peer_key(&peer).filter(|key| self.connected.contains_key(key)) {
                    let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                    let shortest = self.round_trips.entry(key).or_insert(micros);
                    *shortest = micros.min(*shortest);
                }
            }
            ControlEvent::PeerAddresses { .. } => {}
            ControlEvent::Gossip(message) => self.on_gossip(message).await?,
            ControlEvent::Request { peer, token, bytes } => {
                self.on_request(peer, token, &bytes).await?;
            }
            ControlEvent::Response { id, result, .. } => {
                self.inputs.extend(self.rpc.answered(id, result));
            }
        }
        Ok(())
    }

    pub(super) async fn on_gossip(&mut self, message: GossipMessage) -> anyhow::Result<()> {
        let author = peer_key(&message.author);
        let body = message.bytes.get(NONCE_BYTES..);
        let decoded = body.map(|body| Gossip::decode(&self.run, body));
        let verdict = match (author, decoded) {
            (Some(from), Some(Ok(Gossip::Contact(contact)))) => {
                self.on_contact(from, message.author, &contact).await;
                Verdict::Accept
            }
            (Some(from), Some(Ok(Gossip::Verdict(signed)))) => {
                let own = signed.verdict.validator == from;
                if let Some(auditor) = self.auditor.as_mut().filter(|_| own) {
                    auditor.on_verdict(&signed);
                }
                self.follow_auditor().await?;
                if own {
                    Verdict::Accept
                } else {
                    Verdict::Reject
                }
            }
            (Some(from), Some(Ok(gossip))) => {
                let message = Box::new(gossip);
                self.inputs.push_back(Input::Gossip { from, message });
                Verdict::Accept
            }
            (_, Some(Err(error))) => {
                tracing::debug!(author = %message.author, %error, "gossip refused");
                Verdict::Reject
            }
            (None, _) | (_, None) => Verdict::Reject,
        };
        let (id, source) = (message.id, message.propagation_source);
        self.control.report_gossip(id, source, verdict).await?;
        Ok(())
    }

    /// Where another peer listens: connect to it, and fetch from it from now on.
    pub(super) async fn on_contact(&mut self, from: PeerKey, peer: PeerId, contact: &Contact) {
        if from == self.me {
            return;
        }
        if let (Some(subnet), Some(hotkey)) = (&self.subnet, contact.hotkey) {
            subnet.claims().note(from, AccountId(hotkey));
        }
        if let Some(auditor) = &mut self.auditor {
            auditor.contact(from, contact.validates);
        }
        let addresses: Vec<Multiaddr> = contact
            .control
            .iter()
            .filter_map(|address| address.parse().ok())
            .collect();
        let is_outside = addresses.iter().any(is_relayed);
        if !self.connected.contains_key(&from)
            && let Err(error) = self.control.keep(peer, addresses).await
        {
            tracing::debug!(%peer, %error, "not kept");
        }
        // A peer that is not connected yet says it again once it is.
        let Some(connected_from) = self.connected.get(&from).cloned() else {
            return;
        };
        // One that is reached through relays cannot be dialled, but for those behind the same box.
        let site_of = |peer: &PeerKey| Some(self.node.roster().member(peer)?.link.site);
        let own = site_of(&self.me).unwrap_or(self.link_now().site);
        let is_mate = site_of(&from) == Some(own);
        let bulk = match is_outside && !is_mate {
            true => Some(NOT_DIALLED),
            false => bulk_address(contact, Some(connected_from)),
        };
        if let Some(addr) = bulk {
            self.contacts.insert(from, addr);
            self.hold(from, PeerSource { peer, addr });
        }
    }

    /// What is known of how others reach this peer has changed.
    pub(super) fn on_reachability(&mut self) {
        let reachability = self.reachability.borrow_and_update().clone();
        self.bulk.set_behind_nat(reachability.is_behind_nat());
        self.node.set_link(self.link_now());
        self.status
            .set_network(reachability.to_string(), reachability.is_behind_nat());
        self.contact_due = Instant::now();
    }

    /// A peer behind NAT connects to the other members' bulk planes, since they cannot connect to its own. They say where they
    /// listen every few seconds, so that a connection that is lost comes back.
    fn hold(&self, key: PeerKey, member: PeerSource) {
        if self.bulk.is_behind_nat()
            && member.addr != NOT_DIALLED
            && self.node.roster().contains(&key)
        {
            let bulk = self.bulk.clone();
            tokio::spawn(async move {
                if let Err(blame) = bulk.hold(member).await {
                    tracing::debug!(peer = %member.peer, %blame, "no bulk connection for it to use");
                }
            });
        }
    }
}
