//! Which of the fetches that wait goes on next.
//!
//! Updates become known one whole peer at a time. In the order of asking, everybody would fetch from the peer that is heard
//! of first, over its one line, while the lines of the others idle. So places go to the source that has the fewest, and
//! none has more than fill the pipe to it: places are left for those that are yet to be heard of. Fetches from one source keep the
//! order of asking.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use tokio::sync::oneshot;

/// A bound on fetches. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Mutex<State>>);

/// How many fetches go on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) places: usize,
    pub(super) places_per_source: usize,
    /// Of all fetches from one source; one alone may have more.
    pub(super) bytes_per_source: u64,
}

#[derive(Debug)]
struct State {
    bounds: Bounds,
    /// `None` once nobody is let in any more.
    places_free: Option<usize>,
    /// Counts entrances, so that the fetch that has waited longest goes first among sources with equally many.
    asked: u64,
    /// Sources with a place or with somebody who waits. Fetches without a source have an entry of their own.
    sources: HashMap<Option<PeerId>, Source>,
}

#[derive(Debug, Default)]
struct Source {
    running: usize,
    bytes: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    asked: u64,
    bytes: u64,
    place: oneshot::Sender<Place>,
}

/// A place among the fetches, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Admission,
    source: Option<PeerId>,
    bytes: u64,
}

impl Admission {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Mutex::new(State {
            bounds,
            places_free: Some(bounds.places),
            asked: 0,
            sources: HashMap::new(),
        })))
    }

    /// Waits for a place for a fetch of `bytes` that asks `source` first; `None` once closed.
    pub(super) async fn enter(&self, source: Option<PeerId>, bytes: u64) -> Option<Place> {
        let (sender, place) = oneshot::channel();
        {
            let mut state = self.lock();
            state.places_free?;
            state.asked += 1;
            let waiting = Waiting {
                asked: state.asked,
                bytes,
                place: sender,
            };
            let queue = &mut state.sources.entry(source).or_default().waiting;
            queue.push_back(waiting);
        }
        self.let_in();
        place.await.ok()
    }

    /// Lets nobody in any more, and sends away those who wait.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.places_free = None;
        for source in state.sources.values_mut() {
            source.waiting.clear();
        }
    }

    /// Gives the free places away.
    fn let_in(&self) {
        loop {
            let Some((source, next)) = self.lock().take_next() else {
                return;
            };
            let place = Place {
                admission: self.clone(),
                source,
                bytes: next.bytes,
            };
            // Whoever no longer waits gives the place back by dropping it, outside of the lock.
            drop(next.place.send(place));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a free place for whoever is to have it.
    fn take_next(&mut self) -> Option<(Option<PeerId>, Waiting)> {
        let bounds = self.bounds;
        let free = self.places_free.as_mut().filter(|free| **free > 0)?;
        self.sources.retain(|_, source| {
            let gone = |waiting: &mut Waiting| waiting.place.is_closed();
            while source.waiting.pop_front_if(gone).is_some() {}
            source.running > 0 || !source.waiting.is_empty()
        });
        let waits = self.sources.iter_mut().filter_map(|(peer, source)| {
            let first = source.waiting.front()?;
            let bytes = source.bytes.saturating_add(first.bytes);
            let room =
                source.running < bounds.places_per_source && bytes <= bounds.bytes_per_source;
            let asked = first.asked;
            (room || source.running == 0).then_some((source.running, asked, *peer, source))
        });
        let (_, _, peer, source) = waits.min_by_key(|(running, asked, ..)| (*running, *asked))?;
        let next = source.waiting.pop_front()?;
        source.running += 1;
        source.bytes = source.bytes.saturating_add(next.bytes);
        *free -= 1;
        Some((peer, next))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        if let Some(free) = &mut state.places_free {
            *free += 1;
        }
        if let Some(source) = state.sources.get_mut(&self.source) {
            source.running -= 1;
            source.bytes = source.bytes.saturating_sub(self.bytes);
            if source.running == 0 && source.waiting.is_empty() {
                state.sources.remove(&self.source);
            }
        }
        drop(state);
        self.admission.let_in();
    }
}

#[cfg(test)]
impl Admission {
    pub(super) fn places_free(&self) -> usize {
        self.lock().places_free.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use libp2p::futures::FutureExt;

    use super::*;

    /// Whoever asks for a place and has none yet is polled once, so that it stands in its queue.
    macro_rules! ask {
        ($admission:expr, $source:expr) => {
            ask!($admission, $source, 1)
        };
        ($admission:expr, $source:expr, $bytes:expr) => {{
            let mut asking = Box::pin($admission.enter(Some($source), $bytes));
            let place = asking.as_mut().now_or_never().map(Option::unwrap);
            (asking, place)
        }};
    }

    fn places(places: usize) -> Admission {
        Admission::new(Bounds {
            places,
            places_per_source: places,
            bytes_per_source: 1000,
        })
    }

    #[tokio::test]
    async fn a_source_leaves_places_for_those_that_are_yet_to_be_heard_of() {
        let admission = Admission::new(Bounds {
            places: 9,
            places_per_source: 2,
            bytes_per_source: 1000,
        });
        let [many, large] = [PeerId::random(), PeerId::random()];
        let (_, first) = ask!(admission, many);
        let (_, second) = ask!(admission, many);
        let (mut third, none) = ask!(admission, many);
        assert!(none.is_none());
        drop(first);
        drop(third.as_mut().now_or_never().unwrap().unwrap());

        // One that is longer than all together may be is let in alone.
        let (_, whole) = ask!(admission, large, 5000);
        let (mut next, none) = ask!(admission, large, 600);
        assert!(none.is_none());
        drop(whole);
        let next = next.as_mut().now_or_never().unwrap().unwrap();
        let (mut last, none) = ask!(admission, large, 600);
        assert!(none.is_none());
        drop(next);
        let last = last.as_mut().now_or_never().unwrap().unwrap();
        let (_, beside) = ask!(admission, large, 400);
        drop((second, last, beside.unwrap()));
        assert_eq!(admission.places_free(), 9);
        assert!(admission.lock().sources.is_empty());
    }

    #[tokio::test]
    async fn the_source_with_the_fewest_places_is_next_and_each_keeps_its_order() {
        let admission = places(3);
        let [early, late] = [PeerId::random(), PeerId::random()];
        let (_, first) = ask!(admission, early);
        let (_, second) = ask!(admission, early);
        let (_, third) = ask!(admission, early);
        let (mut fourth, none) = ask!(admission, early);
        assert!(none.is_none());
        let (mut other, none) = ask!(admission, late);
        assert!(none.is_none());
        let (mut another, none) = ask!(admission, late);
        assert!(none.is_none());

        // Two of the early one's run: the late one is next, though it asked last.
        drop(first);
        let other = other.as_mut().now_or_never().unwrap().unwrap();
        assert!(fourth.as_mut().now_or_never().is_none());
        // One each: whoever asked first.
        drop(second);
        let fourth = fourth.as_mut().now_or_never().unwrap().unwrap();
        assert!(another.as_mut().now_or_never().is_none());
        drop((third, other));
        drop(another.await.unwrap());
        drop(fourth);
        assert_eq!(admission.places_free(), 3);
        assert!(admission.lock().sources.is_empty());
    }

    #[tokio::test]
    async fn a_place_for_somebody_who_left_goes_to_the_next() {
        let admission = places(1);
        let source = PeerId::random();
        let (_, first) = ask!(admission, source);
        let (gone, _) = ask!(admission, source);
        let (mut next, _) = ask!(admission, source);
        drop(gone);
        drop(first);
        let next = next.as_mut().now_or_never().unwrap().unwrap();
        // Handed over, and never looked at.
        let (unseen, _) = ask!(admission, source);
        drop(next);
        assert_eq!(admission.places_free(), 0);
        drop(unseen);
        assert_eq!(admission.places_free(), 1);
    }

    #[tokio::test]
    async fn nobody_enters_what_is_closed() {
        let admission = places(1);
        let source = PeerId::random();
        let (_, place) = ask!(admission, source);
        let (waits, _) = ask!(admission, source);
        admission.close();
        assert!(waits.await.is_none());
        assert!(admission.enter(None, 1).await.is_none());
        drop(place);
        assert!(admission.enter(None, 1).await.is_none());
    }
}
