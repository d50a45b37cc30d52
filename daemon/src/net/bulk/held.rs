//! Requests that wait for what is on its way here, so that a frame enters a site once.
//!
//! Of the members of a site one, the *entry*, fetches a frame from outside, and the others fetch it from that one
//! (rule `enters-once` of the protocol's plan). They ask at about the time at which it asks. So they first send it a request of
//! kind "wait", which it *holds*: says "held" now and then, and answers once it has the whole blob or cannot have it.
//!
//! **Rule `waits-end`: no peer holds a request for a blob while it waits for that blob itself.** It holds while a fetch of
//! its own is under way, and a fetch under way asks with kind "blob" alone, which every peer answers at once. So a chain
//! of waiting peers has one link, nobody waits in a circle, whatever the peers think who the entry is, and every wait ends
//! with the fetch that it waits for, or after [`HELD_MAX`].
//!
//! A request that comes before the entry has heard of the frame is held for `unheard_max`, in case that a fetch begins.
//!
//! **Whole blobs only.** Bytes are passed on when the hash of the whole has been checked, not as they come: before that
//! nobody can tell wrong ones, and whoever passed them on would be blamed for them. What waiting for the last byte costs
//! is one frame's time on the link inside the site, which is the fast one.
//!
//! | what grows | bound | when full |
//! |---|---|---|
//! | requests held | `requests_held_max`, `requests_held_per_peer_max` | answered "busy": the asker asks others |
//! | their time | that of the fetch under way, and [`HELD_MAX`] | answered "not found" |
//! | requests waiting at one peer | half of `streams_per_connection_max` | the others wait their turn here |

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::pulse::{LOOK_EVERY, Quiet};
use super::wire::{Kind, RESPONSE_BYTES, Request, Response, Status};
use super::{Inner, Order, PeerSource};
use crate::blob::BlobHash;

/// The longest that a request is held, and that an asker lets itself be held. A guess: frames of a site come side by side,
/// and 80 MB of them take 160 s over a line of 4 Mbit/s.
pub(super) const HELD_MAX: Duration = Duration::from_secs(300);

/// What is on its way here, by hash; an entry lives as long as a fetch, a wait or a held request of its blob.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<BlobHash, Flight>>);

#[derive(Debug, Default)]
struct Flight {
    fetches: usize,
    waits: usize,
    held: usize,
    /// Verified, and perhaps not yet where [`BlobSource`](crate::blob::BlobSource) finds it.
    landed: Option<Bytes>,
    changed: Arc<Notify>,
}

/// How a blob stands that is not in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Landed(Bytes),
    /// A fetch is under way.
    Coming,
    /// Only waited for, at another peer.
    Awaited,
    Unheard,
}

/// One of the things that an entry is counted for, until it is dropped.
#[derive(Debug)]
struct Share {
    flights: Arc<Flights>,
    hash: BlobHash,
    of: fn(&mut Flight) -> &mut usize,
}

/// A fetch under way. Once it has landed, its bytes are served as long as this lives.
#[derive(Debug)]
pub(super) struct Landing(Share);

/// A request of ours that waits at another peer.
#[derive(Debug)]
pub(super) struct Wait(#[expect(dead_code, reason = "counts until it is dropped")] Share);

/// A request of another peer.
#[derive(Debug)]
pub(super) struct Hold {
    share: Share,
    changed: Arc<Notify>,
}

impl Flights {
    pub(super) fn fetch(self: &Arc<Self>, hash: BlobHash) -> Landing {
        Landing(self.share(hash, |flight| &mut flight.fetches))
    }

    pub(super) fn wait(self: &Arc<Self>, hash: BlobHash) -> Wait {
        Wait(self.share(hash, |flight| &mut flight.waits))
    }

    pub(super) fn hold(self: &Arc<Self>, hash: BlobHash) -> Hold {
        let share = self.share(hash, |flight| &mut flight.held);
        let changed = self.lock().entry(hash).or_default().changed.clone();
        Hold { share, changed }
    }

    pub(super) fn standing(&self, hash: &BlobHash) -> Standing {
        match self.lock().get(hash) {
            Some(flight) => match &flight.landed {
                Some(bytes) => Standing::Landed(bytes.clone()),
                None if flight.fetches > 0 => Standing::Coming,
                None if flight.waits > 0 => Standing::Awaited,
                None => Standing::Unheard,
            },
            None => Standing::Unheard,
        }
    }

    fn share(self: &Arc<Self>, hash: BlobHash, of: fn(&mut Flight) -> &mut usize) -> Share {
        let mut flights = self.lock();
        let flight = flights.entry(hash).or_default();
        *of(flight) += 1;
        flight.changed.notify_waiters();
        drop(flights);
        let flights = Arc::clone(self);
        Share { flights, hash, of }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlobHash, Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        let Some(flight) = flights.get_mut(&self.hash) else {
            return;
        };
        *(self.of)(flight) -= 1;
        if flight.fetches == 0 {
            flight.landed = None;
        }
        flight.changed.notify_waiters();
        if flight.fetches + flight.waits + flight.held == 0 {
            flights.remove(&self.hash);
        }
    }
}

impl Landing {
    /// Serves the verified `bytes` from now on.
    pub(super) fn landed(&self, bytes: Bytes) {
        let mut flights = self.0.flights.lock();
        let flight = flights.entry(self.0.hash).or_default();
        flight.landed = Some(bytes);
        flight.changed.notify_waiters();
    }
}

impl Hold {
    pub(super) fn standing(&self) -> Standing {
        self.share.flights.standing(&self.share.hash)
    }

    /// Something happens to the blob after this was called; not necessarily something that matters.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

/// Places for requests of ours at a peer, by peer; only as long as some are there.
#[derive(Debug, Default)]
pub(super) struct Queues(Mutex<HashMap<PeerId, Weak<Semaphore>>>);

impl Queues {
    pub(super) fn at(&self, peer: PeerId, places: usize) -> Arc<Semaphore> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(&peer).and_then(Weak::upgrade) {
            return queue;
        }
        queues.retain(|_, queue| queue.strong_count() > 0);
        let queue = Arc::new(Semaphore::new(places));
        queues.insert(peer, Arc::downgrade(&queue));
        queue
    }
}

/// Waits until the first near source of `order` has the blob, or says that it will not, or nothing comes from it any more.
/// What became of it the fetch that follows finds out, and blames: to wait in vain is nobody's fault.
pub(super) async fn wait(inner: &Arc<Inner>, order: &Order<'_>) {
    let Some(first) = order.sources.first().filter(|_| order.near > 0) else {
        return;
    };
    let began = Instant::now();
    let answer = wait_at(inner, order, first).await;
    tracing::debug!(
        peer = %first.peer,
        blob = %hex::encode(order.hash),
        waited_ms = began.elapsed().as_millis(),
        ?answer,
        "a wait for a blob has ended"
    );
}

/// What `entry` answers in the end; `None` if it does not, or cannot be asked.
async fn wait_at(inner: &Arc<Inner>, order: &Order<'_>, entry: &PeerSource) -> Option<Status> {
    let _wait = inner.flights.wait(order.hash);
    let places = inner.limits.streams_per_connection_max.div_ceil(2) as usize;
    let queue = inner.queues.at(entry.peer, places);
    let _place = queue.acquire().await.ok()?;
    let lease = inner.links.lease(inner, entry.peer, entry.addr, 0).await;
    let lease = lease.ok()?;
    let request = Request {
        kind: Kind::Wait,
        hash: order.hash,
        offset: 0,
        length: 0,
        total_max: order.length.bytes_max(),
        elements: None,
    };
    let (mut send, mut recv) = lease.connection.open_bi().await.ok()?;
    send.write_all(&request.encode()).await.ok()?;
    send.finish().ok()?;
    // An answer may have to wait its turn behind all that the entry sends here; only when that stops it is frozen.
    let pulse = inner.pulses.of(entry.peer);
    let answer = async {
        loop {
            let mut wire = [0; RESPONSE_BYTES];
            recv.read_exact(&mut wire).await.ok()?;
            pulse.beat(0);
            match Response::decode(&wire).ok()?.status {
                Status::Held => {}
                status => return Some(status),
            }
        }
    };
    let freezes = async {
        let mut quiet = Quiet::new(Arc::clone(&pulse));
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while quiet.look() < inner.limits.overtake_after {
            looks.tick().await;
        }
        inner.links.freezes(entry.peer);
    };
    tokio::select! {
        answer = answer => answer,
        () = freezes => None,
        () = sleep(HELD_MAX) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: BlobHash = [7; 32];

    #[test]
    fn blob_is_coming_while_a_fetch_is_under_way_and_here_until_its_result_is_dropped() {
        let flights = Arc::new(Flights::default());
        let hold = flights.hold(HASH);
        assert_eq!(hold.standing(), Standing::Unheard);
        let wait = flights.wait(HASH);
        assert_eq!(hold.standing(), Standing::Awaited);
        let (first, second) = (flights.fetch(HASH), flights.fetch(HASH));
        assert_eq!(hold.standing(), Standing::Coming);
        drop(second);
        first.landed(Bytes::from_static(b"blob"));
        assert_eq!(
            hold.standing(),
            Standing::Landed(Bytes::from_static(b"blob"))
        );
        drop((first, wait));
        assert_eq!(hold.standing(), Standing::Unheard);
        drop(hold);
        assert!(flights.lock().is_empty());
    }
}
