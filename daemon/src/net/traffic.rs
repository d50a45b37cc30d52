//! Payload bytes through this process's sockets, by plane and direction.
//!
//! Process-wide like the recorder of the `metrics` crate, which gets the same figures: a process runs one daemon.

use std::sync::atomic::{AtomicU64, Ordering};

/// One plane's bytes since the process started.
#[derive(Debug)]
pub struct Plane {
    received: AtomicU64,
    sent: AtomicU64,
}

/// The control plane: gossip, requests and answers, each counted once where it is handed to or taken from libp2p.
pub static CONTROL: Plane = Plane::new();
/// The bulk plane.
pub static BULK: Plane = Plane::new();

impl Plane {
    const fn new() -> Plane {
        Plane {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }

    pub(super) fn count_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes received.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}
