//! What a training run took and gave, whoever did it.

use serde_json::{Value, json};

/// Loss on fresh text at the shared parameters, before anybody has trained on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Of all peers, before.
    pub(super) tokens: u64,
    /// Since training began.
    pub(super) seconds: f64,
    /// Nats per token, mean over the peers.
    pub(super) loss: f64,
}

/// Where the time of a round went: mean over the peers, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Phases {
    pub(super) train: f64,
    pub(super) encode: f64,
    /// From the own update to that of the slowest peer.
    pub(super) wait: f64,
    pub(super) transfer: f64,
    pub(super) decide: f64,
    /// Decode, sum, outer step, making it durable.
    pub(super) apply: f64,
    /// Of all but train, while the next round was trained.
    pub(super) hidden: f64,
}

impl Phases {
    /// Names, in the order of [`Phases::values`].
    pub(super) const NAMES: [&str; 7] = [
        "train", "encode", "wait", "transfer", "decide", "apply", "hidden",
    ];

    pub(super) fn values(&self) -> [f64; 7] {
        [
            self.train,
            self.encode,
            self.wait,
            self.transfer,
            self.decide,
            self.apply,
            self.hidden,
        ]
    }
}

/// One round, or as many steps of a cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Round {
    /// From the end of the one before.
    pub(super) seconds: f64,
    pub(super) phases: Phases,
}

/// A run that is over.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Outcome {
    pub(super) curve: Vec<Point>,
    pub(super) rounds: Vec<Round>,
    pub(super) total_s: f64,
    pub(super) tokens: u64,
    /// Nats per token of the last parameters on held-out text.
    pub(super) held_out: f64,
    /// Received by a peer over the whole run, headers included.
    pub(super) bytes_per_peer: f64,
    /// What entered each site from others.
    pub(super) wan_bytes: Vec<u64>,
    /// Of all processes together.
    pub(super) cpu_s: f64,
    /// Updates that no decision counts.
    pub(super) lost_updates: u32,
    /// Whether all peers had the same bits in the end, and after every round.
    pub(super) roots_equal: bool,
}

/// Points on both sides that a smoothed loss is the mean of.
const NEIGHBOURS: usize = 1;

impl Outcome {
    /// Mean over the rounds.
    pub(super) fn phases(&self) -> Phases {
        let count = self.rounds.len().max(1) as f64;
        let mean = |of: fn(&Phases) -> f64| {
            self.rounds
                .iter()
                .map(|round| of(&round.phases))
                .sum::<f64>()
                / count
        };
        Phases {
            train: mean(|p| p.train),
            encode: mean(|p| p.encode),
            wait: mean(|p| p.wait),
            transfer: mean(|p| p.transfer),
            decide: mean(|p| p.decide),
            apply: mean(|p| p.apply),
            hidden: mean(|p| p.hidden),
        }
    }

    /// Share of the whole time in which a peer computes.
    pub(super) fn utilisation(&self) -> f64 {
        let train: f64 = self.rounds.iter().map(|round| round.phases.train).sum();
        if self.total_s > 0.0 {
            train / self.total_s
        } else {
            0.0
        }
    }

    /// The curve, each loss the mean of the points around it: a single one is the loss of some thousand tokens, which differ in
    /// how hard they are.
    pub(super) fn smooth(&self) -> Vec<Point> {
        let smoothed = |(place, point): (usize, &Point)| {
            let from = place.saturating_sub(NEIGHBOURS);
            let to = (place + NEIGHBOURS + 1).min(self.curve.len());
            let around = &self.curve[from..to];
            let sum: f64 = around.iter().map(|point| point.loss).sum();
            Point {
                loss: sum / around.len() as f64,
                ..*point
            }
        };
        self.curve.iter().enumerate().map(smoothed).collect()
    }

    /// When the smoothed loss first was `target`, between two points on the line through them; `None` if it never was.
    pub(super) fn seconds_to(&self, target: f64) -> Option<f64> {
        let points = self.smooth();
        if points.first()?.loss <= target {
            return Some(points[0].seconds);
        }
        let pair = points.windows(2).find(|pair| pair[1].loss <= target)?;
        let (before, after) = (pair[0], pair[1]);
        let share = (before.loss - target) / (before.loss - after.loss);
        Some(before.seconds + share * (after.seconds - before.seconds))
    }

    /// The lowest smoothed loss.
    pub(super) fn lowest(&self) -> Option<f64> {
        let losses = self.smooth().into_iter().map(|point| point.loss);
        losses.min_by(f64::total_cmp)
    }

    pub(super) fn to_json(&self) -> Value {
        let phases = |phases: &Phases| {
            let pairs = Phases::NAMES.iter().zip(phases.values());
            Value::Object(
                pairs
                    .map(|(name, value)| ((*name).to_owned(), json!(value)))
                    .collect(),
            )
        };
        let rounds = self.rounds.iter();
        json!({
            "total_s": self.total_s,
            "tokens": self.tokens,
            "held_out_loss": self.held_out,
            "utilisation": self.utilisation(),
            "bytes_per_peer": self.bytes_per_peer,
            "wan_bytes_per_site": self.wan_bytes,
            "cpu_s": self.cpu_s,
            "lost_updates": self.lost_updates,
            "roots_equal": self.roots_equal,
            "phase_seconds": phases(&self.phases()),
            "rounds": rounds.map(|round| json!({
                "seconds": round.seconds,
                "phase_seconds": phases(&round.phases),
            })).collect::<Vec<_>>(),
            "curve": self.curve.iter().map(|point| json!({
                "tokens": point.tokens,
                "seconds": point.seconds,
                "loss": point.loss,
            })).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(losses: &[f64]) -> Outcome {
        let point = |(place, loss): (usize, &f64)| Point {
            tokens: 0,
            seconds: place as f64 * 10.0,
            loss: *loss,
        };
        Outcome {
            curve: losses.iter().enumerate().map(point).collect(),
            ..Outcome::default()
        }
    }

    #[test]
    fn the_time_to_a_loss_lies_between_two_points() {
        // Smoothed: 5.5, 5, 4, 3, 2.5.
        let run = outcome(&[6.0, 5.0, 4.0, 3.0, 2.0]);
        assert_eq!(run.seconds_to(4.0), Some(20.0));
        assert_eq!(run.seconds_to(3.5), Some(25.0));
        assert_eq!(run.seconds_to(9.0), Some(0.0));
        assert_eq!(run.seconds_to(2.0), None);
        assert_eq!(run.lowest(), Some(2.5));
        assert_eq!(outcome(&[]).seconds_to(1.0), None);
    }
}
