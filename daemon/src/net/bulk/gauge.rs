//! Looks at what the connections deliver, ten times a second, so that what the link carries can be told (`capacity.rs`).
//!
//! Keeps an entry for each open connection whose congestion control is [`pace`](super::pace); connections are bounded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use gradmesh_protocol::manifest::SiteId;
use libp2p::PeerId;
use tokio::time::{MissedTickBehavior, interval};

use super::Inner;
use super::capacity::{Capacity, Seen};
use super::pace::{Delivered, Delivery};

const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Gauge {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    outside: HashMap<PeerId, SiteId>,
    flows: HashMap<u64, Flow>,
    flows_ever: u64,
    looked: Option<Instant>,
    capacity: Capacity<SiteId>,
}

/// One connection.
#[derive(Debug)]
struct Flow {
    peer: PeerId,
    delivery: Delivery,
    /// At the last look.
    before: Delivered,
    /// Whether it delivered anything between the last two looks.
    flowed: bool,
}

/// Keeps a connection looked at.
pub(super) struct Watched<'a> {
    gauge: &'a Gauge,
    id: u64,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.gauge.lock().flows.remove(&self.id);
    }
}

impl Gauge {
    /// Looks at a connection to `peer` as long as what it returns is kept.
    pub(super) fn watch(&self, peer: PeerId, delivery: Delivery) -> Watched<'_> {
        let mut state = self.lock();
        let id = state.flows_ever;
        state.flows_ever += 1;
        let flow = Flow {
            peer,
            before: delivery.delivered(),
            delivery,
            flowed: false,
        };
        state.flows.insert(id, flow);
        Watched { gauge: self, id }
    }

    /// Which peers are on the other side of this machine's link, and in which site each of them is.
    pub(super) fn set_outside(&self, outside: HashMap<PeerId, SiteId>) {
        let mut state = self.lock();
        let state = &mut *state;
        let sites: BTreeSet<&SiteId> = outside.values().collect();
        state.capacity.keep(|site| sites.contains(site));
        drop(sites);
        state.outside = outside;
    }

    pub(super) fn bytes_per_s(&self) -> Option<f64> {
        self.lock().capacity.bytes_per_s()
    }

    fn look(&self, now: Instant) {
        let mut state = self.lock();
        let state = &mut *state;
        let before = state.looked.replace(now);
        let mut seen: BTreeMap<SiteId, Seen<SiteId>> = BTreeMap::new();
        for flow in state.flows.values_mut() {
            let delivered = flow.delivery.delivered();
            let before = std::mem::replace(&mut flow.before, delivered);
            let bytes = delivered.bytes - before.bytes;
            // In the first look it may have begun anywhere.
            let held = bytes > 0 && flow.flowed && delivered.pauses == before.pauses;
            flow.flowed = bytes > 0;
            let Some(site) = state.outside.get(&flow.peer).filter(|_| bytes > 0) else {
                continue;
            };
            let of_site = seen.entry(*site).or_insert(Seen {
                site: *site,
                bytes: 0,
                limited_bytes: 0,
                held: false,
            });
            of_site.bytes += bytes;
            of_site.limited_bytes += delivered.limited_bytes - before.limited_bytes;
            of_site.held |= held;
        }
        if let Some(before) = before {
            let sites: BTreeSet<&SiteId> = state.outside.values().collect();
            let seen: Vec<Seen<SiteId>> = seen.into_values().collect();
            let length = now.saturating_duration_since(before);
            state.capacity.look(length, sites.len(), &seen);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks until the bulk plane is gone.
pub(super) async fn keep_looking(inner: Weak<Inner>) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner): Option<Arc<Inner>> = inner.upgrade() else {
            return;
        };
        inner.gauge.look(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at connections that had these bytes acknowledged, a tenth of a second each time.
    fn look(gauge: &Gauge, from: Instant, looks: u32, flows: &[(&Delivery, u64, bool)]) {
        for place in 1..=looks {
            for (delivery, bytes, app_limited) in flows {
                delivery.acked(*bytes, *app_limited);
            }
            gauge.look(from + place * LOOK_EVERY);
        }
    }

    fn near(found: Option<f64>, bytes_per_s: f64) -> bool {
        found.is_some_and(|found| (found / bytes_per_s - 1.0).abs() < 0.01)
    }

    #[test]
    fn connections_to_sites_outside_count_together_and_those_near_do_not() {
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let site = |name: &str| SiteId::named(name);
        let gauge = Gauge::default();
        gauge.set_outside(HashMap::from([
            (peers[0], site("one")),
            (peers[1], site("one")),
            (peers[2], site("two")),
        ]));
        let flows: Vec<Delivery> = (0..4).map(|_| Delivery::default()).collect();
        let watched = peers.iter().zip(&flows);
        let watched: Vec<_> = watched
            .map(|(peer, flow)| gauge.watch(*peer, flow.clone()))
            .collect();
        let from = Instant::now();
        gauge.look(from);
        // One of two sites is not most of them.
        let [a, b, c, near_by] = [0, 1, 2, 3].map(|place| &flows[place]);
        look(
            &gauge,
            from,
            40,
            &[(a, 1000, false), (near_by, 9000, false)],
        );
        assert_eq!(gauge.bytes_per_s(), None);
        // All of them limited by what there is to send.
        let from = from + 40 * LOOK_EVERY;
        look(&gauge, from, 40, &[(a, 1000, true), (c, 1000, true)]);
        assert_eq!(gauge.bytes_per_s(), None);
        // Side by side, with one connection of three that has pauses.
        let from = from + 40 * LOOK_EVERY;
        let busy = [
            (a, 10_000, false),
            (b, 5_000, true),
            (c, 10_000, false),
            (near_by, 90_000, false),
        ];
        look(&gauge, from, 60, &busy);
        assert!(near(gauge.bytes_per_s(), 250_000.0), "{gauge:?}");
        drop(watched);
        assert_eq!(gauge.lock().flows.len(), 0);
    }
}
