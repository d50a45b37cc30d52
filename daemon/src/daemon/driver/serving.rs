//! What this peer serves to others: data, frames, states, decisions.

use std::path::Path;

use anyhow::Context;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::ticket::ADDRESSES_MAX;
use gradmesh_protocol::wire::{
    Contact, DECISIONS_MAX, Decisions, RESPONSE_BYTES_MAX, Request, Response,
};
use gradmesh_trainer::work;
use libp2p::PeerId;

use super::Driver;
use crate::daemon::audit::Auditor;
use crate::net::control::ResponseToken;
use crate::worker::{KeptWork, Snapshot};

/// Bytes of decisions in one answer: half of the longest response, and at least one record of the longest kind.
const RECORDS_BYTES_MAX: usize = RESPONSE_BYTES_MAX / 2;
/// Snapshots served at once: the newest one, and the one that somebody may still be fetching.
const SNAPSHOTS_SERVED: usize = 2;

impl Driver {
    /// Registers data files, the newest state and the frames on disk with the bulk plane.
    pub(super) fn serve_what_is_here(&mut self) -> anyhow::Result<()> {
        for file in self.prepared.data.files() {
            let path = self.prepared.data_dir.join(&file.path);
            self.blobs
                .register_file(file.blake3, path, 0, file.bytes)
                .context("the data has more files than can be served")?;
        }
        for (round, hash) in self.standing.disk.list_frames() {
            self.serve_frame(round, hash)?;
        }
        if let Some(snapshot) = self.standing.snapshot.take() {
            self.serve_snapshot(snapshot)?;
        }
        for work in std::mem::take(&mut self.standing.work) {
            self.serve_work(work)?;
        }
        Ok(())
    }

    /// Registers what is kept of a round's work with the bulk plane.
    pub(super) fn serve_work(&mut self, work: KeptWork) -> anyhow::Result<()> {
        let shape = &self.standing.shape;
        let state = work::chunk_lengths(shape.layout().elements());
        for kept in &work.states {
            let leaves = kept.leaves.theta.iter().chain(&kept.leaves.inner);
            self.serve_file(&kept.path, leaves.zip(state.iter().copied()))?;
        }
        let tiles = shape.layout().tiles().iter();
        let tiles: Vec<u64> = tiles.map(|tile| 4 * tile.len() as u64).collect();
        let feedback = &work.feedback;
        for (path, leaves) in [
            (&feedback.before, &feedback.leaves_before),
            (&feedback.after, &feedback.leaves_after),
        ] {
            self.serve_file(path, leaves.iter().zip(tiles.iter().copied()))?;
        }
        self.serve_kept_frames(&work)?;
        self.work.insert(work.round, work);
        Ok(())
    }

    fn serve_kept_frames(&self, work: &KeptWork) -> anyhow::Result<()> {
        for (hash, length, path) in &work.frames {
            self.blobs.register_file(hash.0, path.clone(), 0, *length)?;
        }
        Ok(())
    }

    /// Registers the parts of a file, which lie in it one after the other.
    fn serve_file<'a>(
        &self,
        path: &Path,
        parts: impl Iterator<Item = (&'a Hash, u64)>,
    ) -> anyhow::Result<()> {
        let mut offset = 0;
        for (hash, length) in parts {
            self.blobs
                .register_file(hash.0, path.to_owned(), offset, length)?;
            offset += length;
        }
        Ok(())
    }

    /// The work of `round` is no longer on disk.
    pub(super) fn forget_work(&mut self, round: RoundId) {
        let Some(work) = self.work.remove(&round) else {
            return;
        };
        for kept in &work.states {
            self.blobs.forget_file(&kept.path);
        }
        for (_, _, path) in &work.frames {
            self.blobs.forget_file(path);
        }
        self.blobs.forget_file(&work.feedback.before);
        self.blobs.forget_file(&work.feedback.after);
    }

    /// Registers a frame that is on disk with the bulk plane; the worker may have deleted its round meanwhile.
    pub(super) fn serve_frame(&mut self, round: RoundId, hash: Hash) -> anyhow::Result<()> {
        let Some(place) = self.standing.disk.frame_place(round, &hash) else {
            return Ok(());
        };
        self.blobs
            .register_file(hash.0, place.path, place.offset, place.length)?;
        self.frames_on_disk.entry(round).or_default().push(hash);
        Ok(())
    }

    pub(super) fn serve_snapshot(&mut self, snapshot: Snapshot) -> anyhow::Result<()> {
        let mut offset = 0;
        for (hash, length) in &snapshot.leaves {
            self.blobs
                .register_file(hash.0, snapshot.path.clone(), offset, *length)?;
            offset += length;
        }
        self.frames_from = snapshot.frames_from;
        let kept = self.frames_on_disk.split_off(&self.frames_from);
        for hash in std::mem::replace(&mut self.frames_on_disk, kept)
            .values()
            .flatten()
        {
            self.blobs.forget_range(&hash.0);
        }
        // Own frames of rounds whose work is kept lie elsewhere too.
        for work in self.work.values() {
            self.serve_kept_frames(work)?;
        }
        self.snapshots.push_back(snapshot);
        while self.snapshots.len() > SNAPSHOTS_SERVED {
            if let Some(old) = self.snapshots.pop_front() {
                self.blobs.forget_file(&old.path);
            }
        }
        Ok(())
    }

    pub(super) async fn on_request(
        &mut self,
        peer: PeerId,
        token: ResponseToken,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        let response = match Request::decode(&self.run, bytes) {
            Ok(request) if small(&request) || self.gate.admits(&peer) => self.answer(request)?,
            Ok(_) => Response::Refused(
                "the subnet of this run does not register your peer key: register your hotkey and publish it".into(),
            ),
            Err(error) => {
                tracing::debug!(%peer, %error, "request refused");
                Response::Refused(error.to_string().chars().take(200).collect())
            }
        };
        if let Err(error) = self.control.respond(token, response.encode().into()).await {
            tracing::debug!(%peer, %error, "no answer sent");
        }
        Ok(())
    }

    pub(super) fn answer(&self, request: Request) -> anyhow::Result<Response> {
        Ok(match request {
            Request::Manifest => Response::Manifest(Box::new(self.prepared.manifest.clone())),
            Request::Contact => Response::Contact(self.contact()),
            Request::Data => Response::Data(self.prepared.data.to_bytes()),
            Request::Headers(hashes) => {
                let headers = hashes.iter().filter_map(|hash| self.node.header(hash));
                Response::Headers(headers.cloned().collect())
            }
            Request::Reductions(round) => Response::Reductions(self.node.reductions(round)),
            Request::Snapshot(round) => {
                let snapshot = self.snapshots.iter().find(|s| s.round == round);
                match snapshot {
                    Some(snapshot) => Response::Snapshot {
                        round,
                        leaves: snapshot.leaves.iter().map(|(hash, _)| *hash).collect(),
                    },
                    None => Response::Refused(format!("the state after round {round} is not here")),
                }
            }
            Request::Segments(round) => match self.work.get(&round) {
                Some(work) => Response::Segments(work.list.clone()),
                None => no_work(round),
            },
            Request::SegmentState { round, place } => {
                let work = self.work.get(&round);
                match work.and_then(|work| work.states.get(place as usize)) {
                    Some(kept) => Response::SegmentState {
                        theta: kept.leaves.theta.clone(),
                        inner: kept.leaves.inner.clone(),
                    },
                    None => no_work(round),
                }
            }
            Request::Feedback(round) => match self.work.get(&round) {
                Some(work) => Response::Feedback {
                    before: work.feedback.leaves_before.clone(),
                    after: work.feedback.leaves_after.clone(),
                },
                None => no_work(round),
            },
            Request::Decisions { from, count } => {
                let count = count.min(DECISIONS_MAX as u32);
                let mut records =
                    tokio::task::block_in_place(|| self.store.decisions(from, count))?;
                let mut bytes = 0;
                records.retain(|record| {
                    bytes += record.encode().len();
                    bytes <= RECORDS_BYTES_MAX
                });
                let kept = self.snapshots.iter().map(|snapshot| snapshot.round);
                Response::Decisions(Decisions {
                    records,
                    decided: self.node.decided(),
                    snapshot: self.node.snapshot_to_offer(kept),
                    frames_from: self.frames_from,
                })
            }
        })
    }

    pub(super) fn contact(&self) -> Contact {
        let control = self.listening.iter().map(ToString::to_string);
        Contact {
            control: control.take(ADDRESSES_MAX).collect(),
            bulk: self.bulk.local_addr(),
            hotkey: self.subnet.as_ref().map(|subnet| subnet.hotkey().0),
            validates: self.auditor.as_ref().is_some_and(Auditor::validates),
        }
    }
}

fn no_work(round: RoundId) -> Response {
    Response::Refused(format!("no work of round {round} is kept here"))
}

/// Whether anybody may ask for it, registered or not (rule `members-and-registered`).
pub(super) fn small(request: &Request) -> bool {
    match request {
        Request::Manifest | Request::Contact | Request::Decisions { .. } => true,
        Request::Data
        | Request::Headers(_)
        | Request::Reductions(_)
        | Request::Snapshot(_)
        | Request::Segments(_)
        | Request::SegmentState { .. }
        | Request::Feedback(_) => false,
    }
}
