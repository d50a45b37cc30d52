//! Clients that watch an extrinsic on its way from the pool into a final block.
//!
//! A watcher that does not read [`STATUSES_MAX`] statuses is dropped, so that it holds up nobody; [`WATCHERS_MAX`] at
//! once, a submission beyond that is refused.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::executor::Hash;

/// Watchers at once.
const WATCHERS_MAX: usize = 4_096;
/// Statuses that a watcher may leave unread: more than an extrinsic that meets several reorgs has.
const STATUSES_MAX: usize = 64;

/// Where an extrinsic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It waits for an earlier nonce.
    Future,
    /// It can go into the next block.
    Ready,
    /// It is in this block.
    InBlock(Hash),
    /// This block is off the best chain.
    Retracted(Hash),
    /// Its block is final. The last status.
    Finalized(Hash),
    /// This extrinsic took its place. The last status.
    Usurped(Hash),
    /// The pool gave it up. The last status.
    Dropped,
    /// It can get into no block any more. The last status.
    Invalid,
}

impl Status {
    fn is_last(self) -> bool {
        match self {
            Status::Finalized(_) | Status::Usurped(_) | Status::Dropped | Status::Invalid => true,
            Status::Future | Status::Ready | Status::InBlock(_) | Status::Retracted(_) => false,
        }
    }

    /// As clients get it.
    pub(crate) fn json(self) -> Value {
        match self {
            Status::Future => json!("future"),
            Status::Ready => json!("ready"),
            Status::InBlock(block) => json!({ "inBlock": block }),
            Status::Retracted(block) => json!({ "retracted": block }),
            Status::Finalized(block) => json!({ "finalized": block }),
            Status::Usurped(by) => json!({ "usurped": by }),
            Status::Dropped => json!("dropped"),
            Status::Invalid => json!("invalid"),
        }
    }
}

/// The watchers, by hash of the extrinsic.
#[derive(Default)]
pub(crate) struct Watchers {
    watchers: HashMap<Hash, Vec<mpsc::Sender<Status>>>,
}

impl Watchers {
    /// Whether one more fits, after those that went away are forgotten.
    pub(crate) fn has_room(&mut self) -> bool {
        if self.count() < WATCHERS_MAX {
            return true;
        }
        self.watchers.retain(|_, watchers| {
            watchers.retain(|watcher| !watcher.is_closed());
            !watchers.is_empty()
        });
        self.count() < WATCHERS_MAX
    }

    /// Watches an extrinsic from now on.
    pub(crate) fn watch(&mut self, extrinsic: Hash) -> mpsc::Receiver<Status> {
        let (watcher, statuses) = mpsc::channel(STATUSES_MAX);
        self.watchers.entry(extrinsic).or_default().push(watcher);
        statuses
    }

    /// Tells the watchers of an extrinsic.
    pub(crate) fn tell(&mut self, extrinsic: &Hash, status: Status) {
        let Some(watchers) = self.watchers.get_mut(extrinsic) else {
            return;
        };
        watchers.retain(|watcher| watcher.try_send(status).is_ok());
        if status.is_last() || watchers.is_empty() {
            self.watchers.remove(extrinsic);
        }
    }

    fn count(&self) -> usize {
        self.watchers.values().map(Vec::len).sum()
    }
}
