//! Which of the fetches that wait goes on next.
//!
//! Updates become known one whole peer at a time. In the order of asking, everybody would fetch from the peer that is heard
//! of first, over its one line, while the lines of the others idle. So places go to the source that has the fewest;
//! the fetches from one source keep the order of asking.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use tokio::sync::oneshot;

/// A bound on fetches. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
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
    waiting: VecDeque<(u64, oneshot::Sender<Place>)>,
}

/// A place among the fetches, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Admission,
    source: Option<PeerId>,
}

impl Admission {
    pub(super) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            places_free: Some(places),
            asked: 0,
            sources: HashMap::new(),
        })))
    }

    /// Waits for a place for a fetch that asks `source` first; `None` once closed.
    pub(super) async fn enter(&self, source: Option<PeerId>) -> Option<Place> {
        let (sender, place) = oneshot::channel();
        {
            let mut state = self.lock();
            state.places_free?;
            state.asked += 1;
            let turn = (state.asked, sender);
            state
                .sources
                .entry(source)
                .or_default()
                .waiting
                .push_back(turn);
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
            let (source, sender) = {
                let mut state = self.lock();
                let Some(chosen) = state.take_next() else {
                    return;
                };
                chosen
            };
            let admission = self.clone();
            // Whoever no longer waits gives the place back by dropping it, outside of the lock.
            drop(sender.send(Place { admission, source }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a free place for whoever is to have it.
    fn take_next(&mut self) -> Option<(Option<PeerId>, oneshot::Sender<Place>)> {
        let free = self.places_free.as_mut().filter(|free| **free > 0)?;
        self.sources.retain(|_, source| {
            let gone = |(_, sender): &mut (u64, oneshot::Sender<Place>)| sender.is_closed();
            while source.waiting.pop_front_if(gone).is_some() {}
            source.running > 0 || !source.waiting.is_empty()
        });
        let waits = self.sources.iter_mut().filter_map(|(peer, source)| {
            let asked = source.waiting.front()?.0;
            Some((source.running, asked, *peer, source))
        });
        let (_, _, peer, source) = waits.min_by_key(|(running, asked, ..)| (*running, *asked))?;
        let (_, sender) = source.waiting.pop_front()?;
        source.running += 1;
        *free -= 1;
        Some((peer, sender))
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
        ($admission:expr, $source:expr) => {{
            let mut asking = Box::pin($admission.enter(Some($source)));
            let place = asking.as_mut().now_or_never().map(Option::unwrap);
            (asking, place)
        }};
    }

    #[tokio::test]
    async fn the_source_with_the_fewest_places_is_next_and_each_keeps_its_order() {
        let admission = Admission::new(3);
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
        let admission = Admission::new(1);
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
        let admission = Admission::new(1);
        let source = PeerId::random();
        let (_, place) = ask!(admission, source);
        let (waits, _) = ask!(admission, source);
        admission.close();
        assert!(waits.await.is_none());
        assert!(admission.enter(None).await.is_none());
        drop(place);
        assert!(admission.enter(None).await.is_none());
    }
}
