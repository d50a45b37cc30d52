//! A link as arithmetic, to see what the control makes of it: one bottleneck behind a token bucket with a queue, a delay and
//! random loss, between hosts that look at their sockets once in a while. No socket, no clock: the same numbers every time.

use super::*;

const PACKET: u64 = 1452;
/// Ethernet, IPv4 and UDP.
const HEADERS: u64 = 42;
const MBIT: f64 = 1e6 / 8.0;

#[derive(Clone, Copy)]
struct Link {
    bytes_per_s: f64,
    round_trip_ms: f64,
    /// Bytes that wait at most, and that pass at once after a pause.
    queue: f64,
    bucket: f64,
    loss: f64,
    /// How often either host does its work.
    turn_ms: f64,
    /// In one of ten turns it is this much late, at most.
    late_ms: f64,
}

struct Packet {
    arrives: f64,
    sent: f64,
    lost: bool,
}

/// What one run came to, for one flow or all of them.
#[derive(Debug)]
struct Carried {
    /// Of the link's rate.
    share: f64,
    /// Of the packets.
    lost: f64,
    /// Mean wait of a packet at the bottleneck.
    queue_ms: f64,
}

/// One connection over the link.
struct Flow {
    pace: Pace,
    in_flight: VecDeque<Packet>,
    /// Of the pacer, in bytes: quinn's, with bursts of ten packets or two milliseconds.
    tokens: f64,
    smoothed: f64,
    delivered: u64,
    dropped: u64,
    sent: u64,
    waited: f64,
}

struct Model {
    link: Link,
    flows: Vec<Flow>,
    base: Instant,
    now: f64,
    /// Time since the last turn.
    step: f64,
    /// When the bottleneck has sent all it has.
    free_at: f64,
    random: u64,
}

impl Model {
    fn new(link: Link) -> Self {
        let mut model = Self {
            link,
            flows: Vec::new(),
            base: Instant::now(),
            now: 0.0,
            step: 0.0,
            free_at: 0.0,
            random: 0x9e37_79b9_7f4a_7c15,
        };
        model.add_flow();
        model
    }

    fn add_flow(&mut self) {
        self.flows.push(Flow {
            pace: Pace::new(self.base, self.at(self.now), PACKET as u16),
            in_flight: VecDeque::new(),
            tokens: 0.0,
            smoothed: self.link.round_trip_ms / 1e3,
            delivered: 0,
            dropped: 0,
            sent: 0,
            waited: 0.0,
        });
    }

    fn at(&self, seconds: f64) -> Instant {
        self.base + Duration::from_secs_f64(seconds)
    }

    fn chance(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One turn of the senders: they hear what has arrived, and send what they may.
    fn turn(&mut self) {
        let late = match self.chance() < 0.1 {
            true => self.link.late_ms * self.chance(),
            false => 0.0,
        };
        self.step = (self.link.turn_ms + late) / 1e3;
        self.now += self.step;
        // Nobody is always the first to find room in the queue.
        let first = (self.chance() * self.flows.len() as f64) as usize;
        for place in 0..self.flows.len() {
            let flow = (first + place) % self.flows.len();
            self.hear(flow);
            self.send_what_fits(flow);
        }
    }

    fn hear(&mut self, flow: usize) {
        let (base, now_s) = (self.base, self.now);
        let at = |seconds| base + Duration::from_secs_f64(seconds);
        let flow = &mut self.flows[flow];
        let (mut lost, mut any) = (0, false);
        while let Some(first) = flow.in_flight.pop_front_if(|first| first.arrives <= now_s) {
            if first.lost {
                lost += PACKET;
                continue;
            }
            any = true;
            flow.delivered += PACKET;
            flow.smoothed += (now_s - first.sent - flow.smoothed) / 8.0;
            flow.pace.acked(at(now_s), at(first.sent), PACKET, false);
        }
        if any {
            let in_flight = flow.in_flight.len() as u64 * PACKET;
            flow.pace.acks_ended(at(now_s), in_flight);
        }
        if lost > 0 {
            flow.dropped += lost;
            flow.pace.lost(at(now_s), lost, false);
        }
    }

    fn send_what_fits(&mut self, place: usize) {
        let step = self.step;
        let flow = &mut self.flows[place];
        let window = flow.pace.window();
        let rate = 1.25 * window as f64 / flow.smoothed;
        let burst = (rate * 1.6e-3).clamp(10.0 * PACKET as f64, 256.0 * PACKET as f64);
        flow.tokens = (flow.tokens + rate * step).min(burst);
        loop {
            let flow = &mut self.flows[place];
            let full = (flow.in_flight.len() as u64 + 1) * PACKET >= window;
            if full || flow.tokens < PACKET as f64 {
                return;
            }
            flow.tokens -= PACKET as f64;
            let (packet, waits) = self.admit();
            let flow = &mut self.flows[place];
            flow.sent += 1;
            flow.waited += waits;
            flow.in_flight.push_back(packet);
        }
    }

    /// A packet that comes to the bottleneck now, and how long it waits there.
    fn admit(&mut self) -> (Packet, f64) {
        let link = self.link;
        // A bucket that has filled lets through that much at once.
        self.free_at = self.free_at.max(self.now - link.bucket / link.bytes_per_s);
        let waits = (self.free_at - self.now).max(0.0);
        let full = waits * link.bytes_per_s > link.queue;
        let lost = full || self.chance() < link.loss;
        if !full {
            self.free_at += (PACKET + HEADERS) as f64 / link.bytes_per_s;
        }
        let arrives = self.free_at.max(self.now) + link.round_trip_ms / 1e3;
        let sent = self.now;
        (
            Packet {
                arrives,
                sent,
                lost,
            },
            if full { 0.0 } else { waits },
        )
    }

    /// All flows together.
    fn run(&mut self, seconds: f64) -> Carried {
        let each = self.run_each(seconds);
        let count = each.len() as f64;
        let sum = |of: fn(&Carried) -> f64| each.iter().map(of).sum::<f64>();
        Carried {
            share: sum(|flow| flow.share),
            lost: sum(|flow| flow.lost) / count,
            queue_ms: sum(|flow| flow.queue_ms) / count,
        }
    }

    fn run_each(&mut self, seconds: f64) -> Vec<Carried> {
        let end = self.now + seconds;
        for flow in &mut self.flows {
            (flow.delivered, flow.dropped, flow.sent, flow.waited) = (0, 0, 0, 0.0);
        }
        while self.now < end {
            self.turn();
        }
        let carried = self.flows.iter().map(|flow| {
            let packets = (flow.delivered / PACKET) as f64;
            let (sent, lost) = ((flow.sent as f64).max(1.0), flow.dropped / PACKET);
            Carried {
                share: packets * (PACKET + HEADERS) as f64 / seconds / self.link.bytes_per_s,
                lost: lost as f64 / sent,
                queue_ms: flow.waited / sent * 1e3,
            }
        });
        carried.collect()
    }
}

/// Virtual Ethernet behind a token bucket, between hosts on one busy machine.
fn veth() -> Link {
    let bytes_per_s = 100.0 * MBIT;
    Link {
        bytes_per_s,
        round_trip_ms: 0.2,
        queue: bytes_per_s * 0.05,
        bucket: 65_536.0,
        loss: 0.0,
        turn_ms: 3.0,
        late_ms: 0.0,
    }
}

/// An ocean.
fn long() -> Link {
    let bytes_per_s = 200.0 * MBIT;
    Link {
        bytes_per_s,
        round_trip_ms: 100.0,
        queue: bytes_per_s * 0.1,
        bucket: 0.0,
        loss: 0.001,
        turn_ms: 1.0,
        late_ms: 0.0,
    }
}

#[test]
fn short_link_behind_a_token_bucket_is_filled_though_hosts_are_slow() {
    let mut model = Model::new(veth());
    let first = model.run(1.0);
    assert!(first.share > 0.97, "{first:?}");
    let then = model.run(30.0);
    assert!(then.share > 0.98 && then.lost < 0.001, "{then:?}");
    assert!(then.queue_ms < 20.0, "{then:?}");
}

#[test]
fn random_loss_on_a_long_link_costs_what_is_lost_and_little_more() {
    let mut model = Model::new(long());
    let first = model.run(2.0);
    assert!(first.share > 0.6, "{first:?}");
    let then = model.run(30.0);
    assert!(then.share > 0.93 && then.lost < 0.003, "{then:?}");
    assert!(then.queue_ms < 40.0, "{then:?}");
}

#[test]
fn queue_that_is_too_short_for_the_margin_is_not_flooded() {
    let mut model = Model::new(Link {
        queue: 30.0 * PACKET as f64,
        loss: 0.0,
        ..long()
    });
    model.run(3.0);
    let then = model.run(30.0);
    assert!(then.share > 0.85 && then.lost < 0.03, "{then:?}");
}

#[test]
fn slow_link_is_not_buried() {
    let bytes_per_s = 2.0 * MBIT;
    let mut model = Model::new(Link {
        bytes_per_s,
        round_trip_ms: 60.0,
        queue: bytes_per_s * 0.2,
        loss: 0.01,
        ..long()
    });
    model.run(5.0);
    let then = model.run(60.0);
    assert!(then.share > 0.9 && then.lost < 0.03, "{then:?}");
}

#[test]
fn rate_that_changes_is_followed_both_ways() {
    let mut model = Model::new(long());
    model.run(5.0);
    model.link.bytes_per_s /= 4.0;
    model.run(2.0);
    let less = model.run(10.0);
    assert!(less.share > 0.9 && less.lost < 0.02, "{less:?}");
    model.link.bytes_per_s *= 4.0;
    model.run(3.0);
    let more = model.run(10.0);
    assert!(more.share > 0.9, "{more:?}");
}

#[test]
fn path_that_becomes_longer_is_filled_again_and_a_dead_one_starts_anew() {
    let mut model = Model::new(long());
    model.run(5.0);
    model.link.round_trip_ms = 200.0;
    model.run(30.0);
    let then = model.run(20.0);
    assert!(then.share > 0.9, "{then:?}");
    let now = model.at(model.now);
    model.flows[0].pace.lost(now, PACKET, true);
    assert_eq!(model.flows[0].pace.window(), WINDOW_FIRST);
}

#[test]
fn application_that_sends_little_neither_lowers_the_rate_nor_widens_the_window() {
    let mut model = Model::new(veth());
    model.run(5.0);
    let (rate, window) = (model.flows[0].pace.rate(), model.flows[0].pace.window());
    let mut now = model.now;
    for _ in 0..1000 {
        now += 0.005;
        let (now, sent) = (model.at(now), model.at(now - 0.0002));
        model.flows[0].pace.acked(now, sent, PACKET, true);
        model.flows[0].pace.acks_ended(now, PACKET);
    }
    assert_eq!(model.flows[0].pace.rate(), rate);
    assert!(model.flows[0].pace.window() <= window);
}

#[test]
fn connections_that_fill_a_link_are_mostly_seen_to_and_idle_ones_never() {
    for link in [veth(), long()] {
        let mut model = Model::new(link);
        model.add_flow();
        model.run(5.0);
        let (mut held, mut looks) = (0, 0);
        let mut before = model.flows[0].pace.published.delivered();
        for _ in 0..200 {
            model.run(0.1);
            let now = model.flows[0].pace.published.delivered();
            assert!(now.bytes > before.bytes && now.limited_bytes == 0);
            held += u32::from(now.pauses == before.pauses);
            looks += 1;
            before = now;
        }
        assert!(held * 2 > looks, "{held} of {looks}");

        let (now, sent) = (model.at(model.now), model.at(model.now - 0.0002));
        let flow = &mut model.flows[0];
        flow.pace.acked(now, sent, PACKET, true);
        flow.pace.acks_ended(now, 2 * PACKET);
        let after = flow.pace.published.delivered();
        assert_eq!(after.limited_bytes, PACKET);
        assert!(after.pauses > before.pauses);
        flow.pace.acked(now, sent, PACKET, false);
        flow.pace.acks_ended(now, 0);
        assert!(flow.pace.published.delivered().pauses > after.pauses);
    }
}

#[test]
fn connections_share_a_link_and_fill_it_together() {
    for link in [veth(), long()] {
        let mut model = Model::new(link);
        model.run(5.0);
        model.add_flow();
        model.run(20.0);
        let each = model.run_each(20.0);
        let total: f64 = each.iter().map(|flow| flow.share).sum();
        assert!(total > 0.93, "{each:?}");
        assert!(each.iter().all(|flow| flow.share > 0.2 * total), "{each:?}");
        assert!(each.iter().all(|flow| flow.lost < 0.005), "{each:?}");
    }
}

#[test]
fn hosts_that_are_late_at_times_fill_a_long_link_all_the_same() {
    let mut model = Model::new(Link {
        late_ms: 20.0,
        ..long()
    });
    model.run(3.0);
    let then = model.run(30.0);
    assert!(then.share > 0.85, "{then:?}");
}

/// A line of one of several peers, both ends of which it fetches from over two connections each.
fn shared() -> Link {
    let bytes_per_s = 100.0 * MBIT;
    Link {
        bytes_per_s,
        round_trip_ms: 50.0,
        queue: bytes_per_s * 0.02,
        loss: 0.0,
        late_ms: 10.0,
        ..long()
    }
}

#[test]
fn many_connections_share_a_line_whose_queue_does_not_hold_their_margins() {
    let mut model = Model::new(shared());
    for _ in 1..14 {
        model.add_flow();
    }
    let first = model.run(2.0);
    assert!(first.share > 0.9, "{first:?}");
    let each = model.run_each(10.0);
    let total: f64 = each.iter().map(|flow| flow.share).sum();
    assert!(total > 0.97, "{each:?}");
    let fair = total / 14.0;
    assert!(each.iter().all(|flow| flow.share > 0.6 * fair), "{each:?}");
    assert!(each.iter().all(|flow| flow.lost < 0.06), "{each:?}");

    // The line is for those that are left.
    model.flows.truncate(2);
    model.run(1.0);
    let then = model.run(2.0);
    assert!(then.share > 0.9, "{then:?}");
}
