//! What the link of this machine carries, from what its connections were seen to deliver.
//!
//! Pure: whoever looks at the connections once in a while ([`gauge`](super::gauge)) says what came of each site since the last
//! look, and how long that was.
//!
//! It is the way up that counts. An owner of shards sends what it sums to every other member, and of the two ways of a home
//! connection the way up is the narrow one. What comes down is held up by the sender's link as often as by the own one, and
//! the receiver cannot tell; the congestion control of a sender knows whether the path is full.
//!
//! Not every full path is full at this end, and not every slow one is full:
//!
//! - **Held**: a site is held in a look if one of its connections was limited by the path throughout, never by the
//!   application. A look *counts* if more than half of the sites outside are held: one thin peer says nothing about the link
//!   of those who send to it.
//! - **Window**: looks that count, [`WINDOW`] of them together, whether or not side by side. Its rate is that of all sites
//!   together, held or not: connections share the link.
//! - **Room**: if hardly any of the last [`ROOM_BYTES`] or more that some site got were held up, the link has room for it while
//!   others hold theirs: a window says nothing then. So a fat link between thin ones is not taken for a thin one.
//! - **Floor**: what was delivered over any [`WINDOW`] of time says that the link carries that much. Nothing else does that was
//!   not held: the estimate never falls because there was nothing to send.
//! - **Estimate**: the highest rate of the last [`WINDOWS`] windows and of the floors since, once there were
//!   [`WINDOWS_MIN`]: an older one goes only when a newer one comes, so that time alone forgets nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Long against a round trip and what a token bucket lets through at once, short against what fills a thin link.
const WINDOW: Duration = Duration::from_millis(500);
/// Four seconds of a full link, so that one that comes to carry less is noticed within a few exchanges.
const WINDOWS: usize = 8;
const WINDOWS_MIN: usize = 3;
/// More than what a window of packets holds on a thin link.
const ROOM_BYTES: u64 = 128 * 1024;
/// So many bytes of a site are remembered.
const SHARE_BYTES: u64 = 8 * ROOM_BYTES;
/// A site that got so many times more than was held up is one that the link has room for.
const ROOM_FACTOR: u64 = 8;

/// What one site was seen to get between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen<S> {
    pub(super) site: S,
    /// Delivered.
    pub(super) bytes: u64,
    /// Of them, those that nothing but the application held up.
    pub(super) limited_bytes: u64,
    pub(super) held: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Capacity<S> {
    /// Of the looks that count since the last window.
    held: Span,
    /// Of the last bytes of each site.
    sites: BTreeMap<S, Share>,
    /// Of the last time, whatever it was used for.
    recent: Span,
    /// Highest since the last window, bytes a second.
    floor: f64,
    /// The newest last, bytes a second.
    windows: VecDeque<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    bytes: u64,
    length: Duration,
}

impl Span {
    /// Adds to it; its rate once it is a window long, and then it begins anew.
    fn add(&mut self, bytes: u64, length: Duration) -> Option<f64> {
        self.bytes = self.bytes.saturating_add(bytes);
        self.length = self.length.saturating_add(length);
        (self.length >= WINDOW).then(|| {
            let span = std::mem::take(self);
            span.bytes as f64 / span.length.as_secs_f64()
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    held_up: u64,
    limited: u64,
}

impl Share {
    /// Adds what was seen; what was before counts less and less.
    fn add<S>(&mut self, seen: &Seen<S>) {
        let limited = seen.limited_bytes.min(seen.bytes);
        self.limited = self.limited.saturating_add(limited);
        self.held_up = self.held_up.saturating_add(seen.bytes - limited);
        while self.limited.saturating_add(self.held_up) > SHARE_BYTES {
            self.limited /= 2;
            self.held_up /= 2;
        }
    }

    fn has_room(&self) -> bool {
        self.limited >= ROOM_BYTES && self.limited >= ROOM_FACTOR * self.held_up
    }
}

impl<S> Default for Capacity<S> {
    fn default() -> Self {
        Self {
            held: Span::default(),
            sites: BTreeMap::new(),
            recent: Span::default(),
            floor: 0.0,
            windows: VecDeque::with_capacity(WINDOWS),
        }
    }
}

impl<S: Ord + Copy> Capacity<S> {
    /// Takes in what was seen in the last `length` of time, one entry for each site outside that got anything. `outside`: how
    /// many sites there are.
    pub(super) fn look(&mut self, length: Duration, outside: usize, seen: &[Seen<S>]) {
        let bytes = seen
            .iter()
            .fold(0u64, |sum, site| sum.saturating_add(site.bytes));
        if let Some(rate) = self.recent.add(bytes, length) {
            self.floor = self.floor.max(rate);
        }
        for site in seen {
            self.sites.entry(site.site).or_default().add(site);
        }
        let held = seen.iter().filter(|site| site.held).count();
        if 2 * held > outside
            && let Some(rate) = self.held.add(bytes, length)
        {
            if !self.sites.values().any(Share::has_room) {
                if self.windows.len() == WINDOWS {
                    self.windows.pop_front();
                }
                self.windows.push_back(rate.max(self.floor));
                self.floor = 0.0;
            }
        }
    }

    /// Forgets what it knows of sites that are not there any more.
    pub(super) fn keep(&mut self, is_there: impl Fn(&S) -> bool) {
        self.sites.retain(|site, _| is_there(site));
    }

    /// What the link carries, in bytes a second; `None` while it was not full for long enough to tell.
    pub(super) fn bytes_per_s(&self) -> Option<f64> {
        let known = self.windows.len() >= WINDOWS_MIN;
        known.then(|| self.windows.iter().copied().fold(self.floor, f64::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: f64 = 1e6 / 8.0;
    const LOOK: Duration = Duration::from_millis(100);

    /// The link of one machine as arithmetic: transfers to some sites share it, none gets more than its own link carries.
    struct Model {
        capacity: Capacity<usize>,
        bytes_per_s: f64,
        /// What the links of the sites outside carry.
        outside: Vec<f64>,
        /// Bytes that wait for each of them.
        waiting: Vec<f64>,
        flowed: Vec<bool>,
    }

    impl Model {
        fn new(mbit: f64, outside: &[f64]) -> Model {
            Model {
                capacity: Capacity::default(),
                bytes_per_s: mbit * MBIT,
                outside: outside.iter().map(|mbit| mbit * MBIT).collect(),
                waiting: vec![0.0; outside.len()],
                flowed: vec![false; outside.len()],
            }
        }

        fn mbit(&self) -> Option<f64> {
            self.capacity.bytes_per_s().map(|rate| rate / MBIT)
        }

        /// Has these bytes for each site from now on, and all delivered; then nothing for a second.
        fn exchange(&mut self, bytes: &[f64]) {
            self.waiting = bytes.to_vec();
            while self.waiting.iter().any(|bytes| *bytes > 0.0) {
                self.pass();
            }
            for _ in 0..10 {
                self.pass();
            }
        }

        /// One look at what a tenth of a second brought, shared fairly.
        fn pass(&mut self) {
            let mut left = self.bytes_per_s * LOOK.as_secs_f64();
            let mut sites: Vec<usize> = (0..self.outside.len()).collect();
            let wanted = |model: &Model, site: usize| {
                model.waiting[site].min(model.outside[site] * LOOK.as_secs_f64())
            };
            sites.sort_by(|a, b| wanted(self, *a).total_cmp(&wanted(self, *b)));
            let mut seen = Vec::new();
            let count = sites.len();
            for (place, site) in sites.into_iter().enumerate() {
                let wanted = wanted(self, site);
                let gets = wanted.min(left / (count - place) as f64);
                left -= gets;
                self.waiting[site] -= gets;
                let more = self.waiting[site] > 0.0;
                if gets > 0.0 {
                    // What a last window of packets holds is sent with nothing behind it.
                    let limited = if more { 0.0 } else { gets.min(50_000.0) };
                    // Done in no time: nothing held it up.
                    let unhindered = !more && !self.flowed[site] && gets >= wanted;
                    seen.push(Seen {
                        site,
                        bytes: gets as u64,
                        limited_bytes: if unhindered { gets } else { limited } as u64,
                        held: more && self.flowed[site],
                    });
                }
                self.flowed[site] = gets > 0.0 && more;
            }
            self.capacity.look(LOOK, self.outside.len(), &seen);
        }
    }

    fn near(found: Option<f64>, mbit: f64) -> bool {
        found.is_some_and(|found| (0.85 * mbit..1.15 * mbit).contains(&found))
    }

    #[test]
    fn a_thin_link_that_several_connections_share_is_measured() {
        let mut model = Model::new(20.0, &[100.0, 1000.0, 100.0]);
        assert_eq!(model.mbit(), None);
        for _ in 0..4 {
            model.exchange(&[2e6; 3]);
        }
        assert!(near(model.mbit(), 20.0), "{:?}", model.mbit());
    }

    #[test]
    fn a_fat_link_is_measured_by_what_all_together_get() {
        let mut model = Model::new(500.0, &[1000.0; 3]);
        for _ in 0..4 {
            model.exchange(&[40e6; 3]);
        }
        assert!(near(model.mbit(), 500.0), "{:?}", model.mbit());
    }

    #[test]
    fn short_bursts_that_the_link_swallows_say_nothing_and_lower_nothing() {
        let mut model = Model::new(100.0, &[1000.0; 3]);
        for _ in 0..1000 {
            model.exchange(&[100e3; 3]);
        }
        assert_eq!(model.mbit(), None);
        for _ in 0..4 {
            model.exchange(&[20e6; 3]);
        }
        let before = model.mbit();
        assert!(near(before, 100.0), "{before:?}");
        for _ in 0..1000 {
            model.exchange(&[50e3; 3]);
        }
        assert_eq!(model.mbit(), before);
    }

    #[test]
    fn one_thin_site_says_nothing_about_those_who_send_to_it() {
        let mut model = Model::new(1000.0, &[20.0, 1000.0, 1000.0]);
        for _ in 0..20 {
            model.exchange(&[2e6; 3]);
        }
        assert_eq!(model.mbit(), None);
    }

    #[test]
    fn a_fat_link_between_thin_ones_has_room_and_is_not_rated_down() {
        let mut model = Model::new(1000.0, &[20.0, 20.0, 1000.0]);
        for megabytes in [2e6, 10e6] {
            for _ in 0..10 {
                model.exchange(&[megabytes; 3]);
            }
            assert_eq!(model.mbit(), None);
        }
        // Once it is thin itself, the site with room for more is held up with the others.
        model.bytes_per_s = 10.0 * MBIT;
        for _ in 0..4 {
            model.exchange(&[2e6; 3]);
        }
        assert!(near(model.mbit(), 10.0), "{:?}", model.mbit());
    }

    #[test]
    fn a_link_that_turns_thin_and_recovers_is_followed() {
        let mut model = Model::new(200.0, &[1000.0; 3]);
        for _ in 0..4 {
            model.exchange(&[20e6; 3]);
        }
        assert!(near(model.mbit(), 200.0), "{:?}", model.mbit());
        model.bytes_per_s = 10.0 * MBIT;
        for _ in 0..5 {
            model.exchange(&[2e6; 3]);
        }
        assert!(near(model.mbit(), 10.0), "{:?}", model.mbit());
        model.bytes_per_s = 200.0 * MBIT;
        // Without ever being full again, it shows that it carries more.
        model.exchange(&[20e6, 0.0, 0.0]);
        assert!(model.mbit() > Some(100.0), "{:?}", model.mbit());
    }

    #[test]
    fn two_sites_tell_what_their_path_carries() {
        let mut model = Model::new(1000.0, &[50.0]);
        for _ in 0..4 {
            model.exchange(&[10e6]);
        }
        assert!(near(model.mbit(), 50.0), "{:?}", model.mbit());
    }
}
