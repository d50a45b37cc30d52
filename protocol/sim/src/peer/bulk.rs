//! Content-addressed bytes: frames and leaves of states, from whoever has them, checked against their hash.

use std::collections::VecDeque;
use std::sync::Arc;

use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::FrameId;
use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::merkle::Tree;
use gradmesh_protocol::node::Input;
use gradmesh_protocol::wire::{Request, Response};

use super::{Outside, Packet, Peer, Ticket};
use crate::coverage::Situation;

/// Frame fetches that are on their way at once, at most: every frame of two headers of every peer.
const FETCHES_MAX: usize = 2 * 16 * 5;
/// Times that each leaf is asked for, for each source.
const LEAF_TRIES: usize = 3;

/// What an awaited blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobPurpose {
    /// The frame with this hash.
    Frame(FrameId),
    /// The leaf at this place of the state that is fetched.
    Leaf(usize),
}

/// A frame on its way.
#[derive(Debug)]
pub(super) struct FrameFetch {
    /// Those not asked yet.
    sources: VecDeque<usize>,
}

/// A state on its way.
#[derive(Debug)]
pub(super) struct StateFetch {
    round: RoundId,
    root: Hash,
    sources: Vec<usize>,
    step: StateStep,
}

#[derive(Debug)]
enum StateStep {
    /// Source number so many was asked for the hashes of the leaves.
    Hashes { asked: usize, ticket: Ticket },
    /// The leaves that came; `tries` of each.
    Leaves {
        hashes: Vec<Hash>,
        leaves: Vec<Option<Vec<u8>>>,
        tries: Vec<usize>,
    },
}

impl Peer {
    /// The blob with this hash, as it goes over a link: a frame, or a leaf of a kept state.
    pub(super) fn blob(&self, outside: &mut Outside, hash: &Hash) -> Option<Arc<[u8]>> {
        let mut blob = match self.store.frames.get(hash) {
            Some(frame) => frame.clone(),
            None => {
                let genesis = outside.shape.genesis();
                let states = self.store.snapshots.values().chain([genesis]);
                let mut leaves = states.flat_map(|state| outside.shape.leaves(state));
                leaves.find(|leaf| Hash::of_content(leaf) == *hash)?
            }
        };
        let options = outside.options.clone();
        outside.network.corrupt(&options, &mut blob);
        Some(blob.into())
    }

    /// The leaf hashes of the state after `round`, if it is kept.
    pub(super) fn snapshot_leaves(&self, outside: &Outside, round: RoundId) -> Option<Vec<Hash>> {
        let state = self.store.snapshots.get(&round)?;
        let leaves = outside.shape.leaves(state);
        Some(leaves.iter().map(|leaf| Hash::of_content(leaf)).collect())
    }

    pub(super) fn fetch_frame(
        &mut self,
        outside: &mut Outside,
        frame: FrameId,
        sources: &[PeerKey],
        inputs: &mut VecDeque<Input>,
    ) {
        if let Some(bytes) = self.store.frames.get(&frame.hash) {
            let fits = bytes.len() as u64 == frame.bytes;
            let sound = fits && outside.shape.decodes(frame.shard as usize, bytes);
            inputs.push_back(if sound {
                Input::FrameHeld(frame)
            } else {
                Input::FrameMalformed(frame)
            });
            return;
        }
        let sources = self.places(outside, sources).into();
        let Some(running) = &mut self.running else {
            return;
        };
        let fetch = FrameFetch { sources };
        // A frame that was wanted in one round can be wanted in the next, when its author lies: it comes once.
        if running.frame_fetches.contains_key(&frame) {
            return;
        }
        running.frame_fetches.insert(frame, fetch);
        if running.frame_fetches.len() > FETCHES_MAX {
            let what = format!("more than {FETCHES_MAX} frames are on their way");
            return outside.fail(self.place, "bounded", what);
        }
        if let Some(failed) = self.next_source(outside, frame) {
            inputs.push_back(failed);
        }
    }

    fn places(&self, outside: &mut Outside, sources: &[PeerKey]) -> Vec<usize> {
        let known = sources
            .iter()
            .filter_map(|source| outside.places.get(source).copied());
        let places: Vec<usize> = known.filter(|place| *place != self.place).collect();
        if places.len() != sources.len() {
            let what = format!("fetches from {sources:?}, among them itself or nobody");
            outside.fail(self.place, "orderly", what);
        }
        places
    }

    /// Asks the next source for a frame; the input that says so when there is none left.
    fn next_source(&mut self, outside: &mut Outside, frame: FrameId) -> Option<Input> {
        let running = self.running.as_mut()?;
        let fetch = running.frame_fetches.get_mut(&frame)?;
        let connected = |place: &usize| outside.network.is_connected(self.place, *place);
        while let Some(source) = fetch.sources.pop_front() {
            if connected(&source) {
                let ticket = self.ask(outside, source, |ticket| {
                    Packet::AskBlob(ticket, frame.hash)
                });
                let running = self.running.as_mut()?;
                running.blobs.insert(ticket, BlobPurpose::Frame(frame));
                return None;
            }
        }
        running.frame_fetches.remove(&frame);
        outside.coverage.meet(Situation::FrameFailed);
        Some(Input::FrameFailed(frame))
    }

    /// An awaited blob came, or did not.
    pub(super) fn blob_came(
        &mut self,
        outside: &mut Outside,
        ticket: Ticket,
        blob: Option<Arc<[u8]>>,
    ) {
        let Some(running) = &mut self.running else {
            return;
        };
        match running.blobs.remove(&ticket) {
            Some(BlobPurpose::Frame(frame)) => self.frame_came(outside, frame, blob),
            Some(BlobPurpose::Leaf(place)) => self.leaf_came(outside, place, blob),
            None => self.hashes_failed(outside, ticket),
        }
    }

    fn frame_came(&mut self, outside: &mut Outside, frame: FrameId, blob: Option<Arc<[u8]>>) {
        let at_hand = self.applied().map_or(RoundId::FOUNDING, RoundId::next);
        let running = self.running.as_ref();
        if !running.is_some_and(|r| r.frame_fetches.contains_key(&frame)) {
            return;
        }
        let input = match blob.filter(|blob| Hash::of_content(blob) == frame.hash) {
            Some(blob)
                if blob.len() as u64 == frame.bytes
                    && outside.shape.decodes(frame.shard as usize, &blob) =>
            {
                self.store.frames.insert(frame.hash, blob.to_vec());
                self.store.frame_rounds.insert(frame.hash, at_hand);
                Some(Input::FrameHeld(frame))
            }
            Some(_) => {
                outside.coverage.meet(Situation::FrameMalformed);
                Some(Input::FrameMalformed(frame))
            }
            None => self.next_source(outside, frame),
        };
        if let Some(input) = input {
            if let Some(running) = &mut self.running {
                running.frame_fetches.remove(&frame);
            }
            self.input(outside, input);
        }
    }

    pub(super) fn fetch_state(
        &mut self,
        outside: &mut Outside,
        round: RoundId,
        root: Hash,
        sources: &[PeerKey],
    ) {
        self.drop_jobs(outside);
        let sources = self.places(outside, sources);
        if sources.is_empty() {
            return outside.fail(self.place, "orderly", "fetches a state from nobody".into());
        }
        let first = sources[0];
        let ticket = self.ask_hashes(outside, round, first);
        if let Some(running) = &mut self.running {
            running.state_fetch = Some(StateFetch {
                round,
                root,
                sources,
                step: StateStep::Hashes { asked: 0, ticket },
            });
        }
    }

    fn ask_hashes(&mut self, outside: &mut Outside, round: RoundId, source: usize) -> Ticket {
        let bytes: Arc<[u8]> = Request::Snapshot(round).encode(&outside.run).into();
        self.ask(outside, source, |ticket| Packet::Ask(ticket, bytes))
    }

    /// The hashes of a state's leaves came, or a refusal.
    pub(super) fn snapshot_came(
        &mut self,
        outside: &mut Outside,
        answered: Ticket,
        response: Response,
    ) {
        let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) else {
            return;
        };
        let StateStep::Hashes { ticket, .. } = fetch.step else {
            return;
        };
        if ticket != answered {
            return;
        }
        let expected = outside.shape.leaves(outside.shape.genesis()).len();
        match response {
            Response::Snapshot { round, leaves }
                if round == fetch.round
                    && leaves.len() == expected
                    && Tree::from_leaves(leaves.clone()).root() == fetch.root =>
            {
                fetch.step = StateStep::Leaves {
                    leaves: vec![None; leaves.len()],
                    tries: vec![0; leaves.len()],
                    hashes: leaves,
                };
                for place in 0..expected {
                    self.ask_leaf(outside, place);
                }
            }
            _ => self.hashes_failed(outside, answered),
        }
    }

    fn hashes_failed(&mut self, outside: &mut Outside, failed: Ticket) {
        let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) else {
            return;
        };
        let StateStep::Hashes { asked, ticket } = fetch.step else {
            return;
        };
        if ticket != failed {
            return;
        }
        let (round, next) = (fetch.round, asked + 1);
        match fetch.sources.get(next).copied() {
            Some(source) => {
                let ticket = self.ask_hashes(outside, round, source);
                if let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) {
                    fetch.step = StateStep::Hashes {
                        asked: next,
                        ticket,
                    };
                }
            }
            None => self.state_failed(outside),
        }
    }

    /// Asks for a leaf: each from another source first, so that a state comes from many at once.
    fn ask_leaf(&mut self, outside: &mut Outside, place: usize) {
        let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) else {
            return;
        };
        let StateStep::Leaves { hashes, tries, .. } = &mut fetch.step else {
            return;
        };
        if tries[place] >= LEAF_TRIES * fetch.sources.len() {
            return self.state_failed(outside);
        }
        let source = fetch.sources[(place + tries[place]) % fetch.sources.len()];
        tries[place] += 1;
        let hash = hashes[place];
        let ticket = self.ask(outside, source, |ticket| Packet::AskBlob(ticket, hash));
        if let Some(running) = &mut self.running {
            running.blobs.insert(ticket, BlobPurpose::Leaf(place));
        }
    }

    fn state_failed(&mut self, outside: &mut Outside) {
        let Some(running) = &mut self.running else {
            return;
        };
        running
            .blobs
            .retain(|_, purpose| matches!(purpose, BlobPurpose::Frame(_)));
        if let Some(fetch) = running.state_fetch.take() {
            outside.coverage.meet(Situation::StateFailed);
            self.input(outside, Input::StateFailed(fetch.round));
        }
    }

    fn leaf_came(&mut self, outside: &mut Outside, place: usize, blob: Option<Arc<[u8]>>) {
        let Some(fetch) = self.running.as_mut().and_then(|r| r.state_fetch.as_mut()) else {
            return;
        };
        let StateStep::Leaves { hashes, leaves, .. } = &mut fetch.step else {
            return;
        };
        match blob.filter(|blob| Hash::of_content(blob) == hashes[place]) {
            Some(blob) => leaves[place] = Some(blob.to_vec()),
            None => return self.ask_leaf(outside, place),
        }
        let Some(leaves) = leaves.iter().cloned().collect::<Option<Vec<_>>>() else {
            return;
        };
        let (round, root) = (fetch.round, fetch.root);
        let Some(state) = outside.shape.state_from_leaves(&leaves) else {
            return self.state_failed(outside);
        };
        if let Some(running) = &mut self.running {
            running.state_fetch = None;
        }
        self.install_state(outside, round, root, state);
    }

    /// Makes a fetched state durable and tells the node.
    fn install_state(
        &mut self,
        outside: &mut Outside,
        round: RoundId,
        root: Hash,
        state: crate::learner::State,
    ) {
        if let Err((check, what)) = outside.checks.stands_at(round, &root) {
            return outside.fail(self.place, check, what);
        }
        outside.coverage.meet(Situation::StateFetched);
        let shape = outside.shape.clone();
        let store = &mut self.store;
        store.snapshots.clear();
        store.snapshots.insert(round, state.clone());
        store.state = Some((round, state));
        store.frames_from = round.next();
        // An update that the fetched state is past: what was not accepted of it is not lost.
        if let Some(pending) = store.private.pending_round().filter(|of| *of <= round) {
            let record = store.decoded.get(pending.0 as usize).cloned();
            let name = self.keypair.public();
            store.private.settle(&shape, &name, record.as_deref());
        }
        let later = store.decoded.iter().skip(round.0 as usize + 1);
        let records = later.cloned().collect();
        self.input(outside, Input::StateFetched { round, records });
    }
}
