//! When a packet arrives, or that it does not: the rules of a link (see the module above) in virtual time.
//!
//! Reads no clock and touches no packet: times go in as nanoseconds since any start, times come out.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::topology::{Link, Rate};

const NANOS_PER_S: u128 = 1_000_000_000;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It arrives at this time.
    Arrives {
        /// Nanoseconds, not before the packet entered.
        at_ns: u64,
    },
    /// Lost on the way.
    Lost,
    /// The queue was full.
    Overflows,
}

/// A serialising line with a finite queue: rules 1 and 2.
#[derive(Debug, Clone)]
pub struct Line {
    bits_per_s: u128,
    queue_bytes: u64,
    /// The line is free at `free_ns` and `free_fraction / bits_per_s` nanoseconds.
    free_ns: u64,
    free_fraction: u128,
}

impl Line {
    /// A free line with a queue of `queue_bytes`.
    ///
    /// # Panics
    /// If the rate is zero, which [`Topology::validate`](super::Topology::validate) refuses.
    #[must_use]
    pub fn new(bits_per_s: u64, queue_bytes: u64) -> Self {
        assert!(bits_per_s > 0, "a line without a rate");
        Self {
            bits_per_s: u128::from(bits_per_s),
            queue_bytes,
            free_ns: 0,
            free_fraction: 0,
        }
    }

    /// The line of a site's uplink or downlink; its queue is sized as if nothing lay behind it.
    #[must_use]
    pub(super) fn access(rate: Rate) -> Self {
        Self::new(rate.bits_per_s, rate.queue_bytes(std::time::Duration::ZERO))
    }

    /// When the last bit of a packet that enters now has been sent; `None` if the queue is full.
    pub fn offer(&mut self, now_ns: u64, bytes: usize) -> Option<u64> {
        if self.free_ns < now_ns {
            self.free_ns = now_ns;
            self.free_fraction = 0;
        }
        let backlog_bytes = self.backlog_bytes(now_ns);
        if backlog_bytes > 0 && backlog_bytes + bytes as u128 > u128::from(self.queue_bytes) {
            return None;
        }
        let bits = bytes as u128 * 8;
        let scaled = bits * NANOS_PER_S + self.free_fraction;
        let whole = u64::try_from(scaled / self.bits_per_s).unwrap_or(u64::MAX);
        self.free_ns = self.free_ns.saturating_add(whole);
        self.free_fraction = scaled % self.bits_per_s;
        // Up to the next whole nanosecond: never faster than the rate.
        Some(
            self.free_ns
                .saturating_add(u64::from(self.free_fraction > 0)),
        )
    }

    /// Bytes not yet sent at `now_ns`, rounded down.
    fn backlog_bytes(&self, now_ns: u64) -> u128 {
        let ahead_ns = u128::from(self.free_ns.saturating_sub(now_ns));
        (ahead_ns * self.bits_per_s + self.free_fraction) / (8 * NANOS_PER_S)
    }
}

/// One direction of a link: all four rules.
#[derive(Debug, Clone)]
pub struct Shaper {
    line: Option<Line>,
    delay_ns: u64,
    jitter_ns: u64,
    /// A packet is lost when a uniform draw of 64 bits lies below; `None` if every packet is.
    loss_below: Option<u64>,
    noise: ChaCha8Rng,
    last_ns: u64,
}

impl Shaper {
    /// A free link; equal seeds give equal losses and jitter for equal packets.
    #[must_use]
    pub fn new(link: &Link, seed: u64) -> Self {
        let mut shaper = Self {
            line: None,
            delay_ns: 0,
            jitter_ns: 0,
            loss_below: Some(0),
            noise: ChaCha8Rng::seed_from_u64(seed),
            last_ns: 0,
        };
        shaper.set_link(link);
        shaper
    }

    /// Changes the link. Packets on the way arrive as they would have; the queue of the line before is not taken over.
    /// Order is kept over the change.
    pub fn set_link(&mut self, link: &Link) {
        self.line = link
            .rate
            .zip(link.queue_bytes())
            .map(|(rate, queue_bytes)| Line::new(rate.bits_per_s, queue_bytes));
        self.delay_ns = u64::try_from(link.delay.as_nanos()).unwrap_or(u64::MAX);
        self.jitter_ns = u64::try_from(link.jitter.as_nanos()).unwrap_or(u64::MAX);
        // In units of 2^-64; a certainty would be 2^64, which is no u64.
        self.loss_below =
            (link.loss < 1.0).then_some((link.loss * 18_446_744_073_709_551_616.0) as u64);
    }

    /// Takes a packet that enters now. `now_ns` must not decrease by more than what order keeping hides: time that goes back
    /// counts as the time of the packet before.
    pub fn offer(&mut self, now_ns: u64, bytes: usize) -> Verdict {
        let sent_ns = match &mut self.line {
            None => now_ns,
            Some(line) => match line.offer(now_ns, bytes) {
                None => return Verdict::Overflows,
                Some(sent_ns) => sent_ns,
            },
        };
        let lost = match self.loss_below {
            None => true,
            Some(0) => false,
            Some(below) => self.noise.next_u64() < below,
        };
        if lost {
            return Verdict::Lost;
        }
        let arrival_ns = sent_ns
            .saturating_add(self.delay_ns - self.jitter_ns.min(self.delay_ns))
            .saturating_add(self.draw_jitter());
        self.last_ns = self.last_ns.max(arrival_ns);
        Verdict::Arrives {
            at_ns: self.last_ns,
        }
    }

    /// Uniform in `0..=2 * jitter`, by multiplication: the bias is below 2^-30 for jitter up to seconds.
    fn draw_jitter(&mut self) -> u64 {
        if self.jitter_ns == 0 {
            return 0;
        }
        let span = u128::from(self.jitter_ns) * 2 + 1;
        let scaled = (u128::from(self.noise.next_u64()) * span) >> 64;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn arrival(verdict: Verdict) -> u64 {
        match verdict {
            Verdict::Arrives { at_ns } => at_ns,
            Verdict::Lost | Verdict::Overflows => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn a_wire_changes_nothing() {
        let mut shaper = Shaper::new(&Link::default(), 0);
        for now in [0, 5, 5, 1_000_000] {
            assert_eq!(shaper.offer(now, 65_535), Verdict::Arrives { at_ns: now });
        }
    }

    #[test]
    fn a_delay_is_exact() {
        let mut shaper = Shaper::new(&Link::delayed(Duration::from_millis(25)), 0);
        assert_eq!(arrival(shaper.offer(7, 1500)), 25_000_007);
        assert_eq!(arrival(shaper.offer(8, 40)), 25_000_008);
    }

    #[test]
    fn a_rate_is_exact_over_a_million_packets_of_odd_size() {
        // 37 bytes at 7.777 Mbit/s take a fraction of a nanosecond each; the fractions must not be lost.
        let mut line = Line::new(7_777_000, u64::MAX);
        let mut last = 0;
        for _ in 0..1_000_000 {
            last = line.offer(0, 37).unwrap();
        }
        let exact = 37u128 * 8 * 1_000_000 * NANOS_PER_S;
        assert_eq!(u128::from(last), exact.div_ceil(7_777_000));
    }

    #[test]
    fn an_idle_line_saves_nothing_up() {
        let mut line = Line::new(8_000_000, 1 << 20);
        assert_eq!(line.offer(0, 1000), Some(1_000_000));
        assert_eq!(line.offer(50_000_000, 1000), Some(51_000_000));
        assert_eq!(line.offer(50_000_000, 1000), Some(52_000_000));
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_takes_again_what_it_has_sent() {
        // One byte takes a microsecond; three packets of 1000 bytes fit.
        let mut line = Line::new(8_000_000, 3000);
        for _ in 0..3 {
            assert!(line.offer(0, 1000).is_some());
        }
        assert_eq!(line.offer(0, 1000), None);
        assert_eq!(line.offer(999_000, 1000), None);
        assert_eq!(line.offer(1_000_000, 1000), Some(4_000_000));
        assert_eq!(line.offer(1_000_000, 1), None);
    }

    #[test]
    fn an_idle_line_takes_a_packet_larger_than_its_queue() {
        let mut line = Line::new(8_000_000, 100);
        assert_eq!(line.offer(0, 1000), Some(1_000_000));
        assert_eq!(line.offer(0, 1), None);
    }

    #[test]
    fn what_is_lost_has_cost_its_time_on_the_line() {
        let link = Link::severed().with_mbit(8);
        let mut shaper = Shaper::new(&link, 0);
        assert_eq!(shaper.offer(0, 1000), Verdict::Lost);
        shaper.loss_below = Some(0);
        assert_eq!(arrival(shaper.offer(0, 1000)), 2_000_000);
    }

    #[test]
    fn loss_lies_within_its_binomial_interval_and_follows_the_seed() {
        let link = Link::default().with_loss(0.01);
        let lost = |seed| {
            let mut shaper = Shaper::new(&link, seed);
            (0..1_000_000u64)
                .map(|now| shaper.offer(now, 100) == Verdict::Lost)
                .collect::<Vec<_>>()
        };
        let first = lost(1);
        let count = first.iter().filter(|lost| **lost).count();
        // Mean 10,000, standard deviation 99.5; 3.29 of them are the 99.9% interval.
        assert!((9_673..=10_327).contains(&count), "{count}");
        assert_eq!(first, lost(1));
        assert_ne!(first, lost(2));
    }

    #[test]
    fn a_severed_link_loses_everything_and_a_sound_one_nothing() {
        let mut severed = Shaper::new(&Link::severed(), 3);
        let mut sound = Shaper::new(&Link::default(), 3);
        for now in 0..10_000 {
            assert_eq!(severed.offer(now, 1), Verdict::Lost);
            assert!(matches!(sound.offer(now, 1), Verdict::Arrives { .. }));
        }
    }

    #[test]
    fn jitter_of_rare_packets_fills_its_range_evenly() {
        let link = Link::delayed(Duration::from_millis(20)).with_jitter(Duration::from_millis(5));
        let mut shaper = Shaper::new(&link, 9);
        let count = 100_000u64;
        let delays: Vec<u64> = (0..count)
            .map(|packet| {
                let now = packet * 1_000_000_000;
                arrival(shaper.offer(now, 100)) - now
            })
            .collect();
        assert!(
            delays
                .iter()
                .all(|delay| (15_000_000..=25_000_000).contains(delay))
        );
        // Uniform over 10 ms: standard deviation of the mean 10 ms / sqrt(12 * count), times 3.29.
        let mean = delays.iter().sum::<u64>() as f64 / count as f64;
        let bar = 3.29 * 10e6 / (12.0 * count as f64).sqrt();
        assert!((mean - 20e6).abs() < bar, "{mean}");
        let early = delays.iter().filter(|delay| **delay < 16_000_000).count();
        assert!((9_690..=10_310).contains(&early), "{early}");
    }

    #[test]
    fn a_change_of_link_does_not_reorder() {
        let mut shaper = Shaper::new(&Link::delayed(Duration::from_millis(100)), 0);
        let first = arrival(shaper.offer(0, 100));
        shaper.set_link(&Link::delayed(Duration::from_millis(1)));
        assert_eq!(arrival(shaper.offer(10, 100)), first);
        assert_eq!(arrival(shaper.offer(first, 100)), first + 1_000_000);
    }

    proptest! {
        /// The rules as stated, packet by packet, whatever link and traffic.
        #[test]
        fn packets_keep_order_rate_delay_and_queue(
            delay_us in 0u64..200_000,
            jitter_share in 0u64..=100,
            loss in 0.0f64..0.5,
            bits_per_s in 1_000u64..100_000_000_000,
            queue_bytes in 1u64..1_000_000,
            packets in prop::collection::vec((0u64..3_000_000, 1usize..9_000), 1..400),
            seed in any::<u64>(),
        ) {
            let link = Link {
                delay: Duration::from_micros(delay_us),
                jitter: Duration::from_micros(delay_us * jitter_share / 100),
                loss,
                rate: Some(Rate { bits_per_s, queue_bytes: Some(queue_bytes) }),
            };
            let earliest = u64::try_from((link.delay - link.jitter).as_nanos()).unwrap();
            let latest = u64::try_from((link.delay + link.jitter).as_nanos()).unwrap();
            let mut shaper = Shaper::new(&link, seed);
            let (mut now, mut last) = (0, 0);
            // The line by floating point, as an independent reference: seconds at which it is free.
            let mut free = 0.0f64;
            for (gap, bytes) in packets {
                now += gap;
                let start = free.max(now as f64 * 1e-9);
                let backlog = (start - now as f64 * 1e-9) * bits_per_s as f64 / 8.0;
                let verdict = shaper.offer(now, bytes);
                let room = queue_bytes as f64 - backlog - bytes as f64;
                if verdict == Verdict::Overflows {
                    prop_assert!(room < 2.0 && backlog > 0.0, "dropped with room {room}");
                    continue;
                }
                prop_assert!(room > -2.0 || backlog < 2.0, "taken with room {room}");
                free = start + bytes as f64 * 8.0 / bits_per_s as f64;
                if let Verdict::Arrives { at_ns } = verdict {
                    prop_assert!(at_ns >= last);
                    // Nanoseconds of f64 seconds: at most 400 packets of 72 s each, 2^53 ns are 104 days.
                    let sent = free * 1e9;
                    prop_assert!(at_ns as f64 >= sent + earliest as f64 - 100.0);
                    prop_assert!(at_ns as f64 <= (sent + latest as f64 + 100.0).max(last as f64));
                    last = at_ns;
                }
            }
        }
    }
}
