//! A model that does not fit on this machine: what its rounds would cost, from what was measured here.
//!
//! ```text
//! compute_s   = 6 * parameters * round_tokens / flops             forward and backward, Kaplan et al. 2020, section 2.1
//! bytes       = (peers - 1) * parameters * bits / 8               gather: everyone gets everyone's update
//! exchange_s  = fixed_s + stretch * bytes * 8 / rate
//! codec_s     = parameters * (encode_s + apply_s) / codec_cores   shards are independent
//! round_s     = compute_s + exchange_s + codec_s                  without overlap
//!             = max(compute_s, exchange_s) + codec_s              with it
//! utilisation = compute_s / round_s
//! cluster     = compute_s / (compute_s + steps * 2 (peers - 1) / peers * 4 * parameters * 8 / rate)
//!                                                                  a dense f32 ring all-reduce in each of the steps
//! ```
//!
//! `bits`, `encode_s` and `apply_s` are measured, and so are `fixed_s` and `stretch`: a line through the seconds that exchanges
//! took at several rates. `flops` is what a peer sustains, all its GPUs together.

use serde_json::{Value, json};

use super::cost::Cost;

/// What is measured on this machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Basis {
    pub(super) cost: Cost,
    pub(super) exchange: Exchange,
}

/// Seconds of an exchange: `fixed_s + stretch * bound`, where bound is bytes over rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Exchange {
    /// Round trips, agreement.
    pub(super) fixed_s: f64,
    /// 1 where an exchange fills its line.
    pub(super) stretch: f64,
    /// Rates at which it was measured; 0: it was not, and is taken for the bound.
    pub(super) rates: usize,
}

impl Exchange {
    /// The line through `points`, each bound and measured seconds, by least squares; through zero if there is one point. What comes
    /// out below zero, or below the bound, is noise, and set to it.
    pub(super) fn fit(points: &[(f64, f64)]) -> Exchange {
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        let (fixed_s, stretch) = match points.len() {
            0 => (0.0, 1.0),
            _ if spread > 0.0 => {
                let both: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
                let stretch = (both / spread).max(1.0);
                ((y - stretch * x).max(0.0), stretch)
            }
            _ => (0.0, (y / x).max(1.0)),
        };
        Exchange {
            fixed_s,
            stretch,
            rates: points.len(),
        }
    }

    pub(super) fn seconds(&self, bound_s: f64) -> f64 {
        self.fixed_s + self.stretch * bound_s
    }
}

/// What the user says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setup {
    pub(super) peers: u32,
    pub(super) mbit: u64,
    /// Floating-point operations per second that a peer sustains.
    pub(super) flops: f64,
    /// Of a peer, in a round.
    pub(super) round_tokens: f64,
    /// Of a peer, in a round.
    pub(super) steps: u32,
    pub(super) codec_cores: u32,
}

/// A model's round.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Projected {
    pub(super) name: String,
    pub(super) parameters: f64,
    pub(super) compute_s: f64,
    pub(super) bytes: f64,
    pub(super) exchange_s: f64,
    pub(super) codec_s: f64,
    pub(super) utilisation: f64,
    pub(super) utilisation_overlap: f64,
    pub(super) utilisation_cluster: f64,
}

impl Projected {
    pub(super) fn new(name: &str, parameters: f64, setup: &Setup, basis: &Basis) -> Projected {
        let rate = setup.mbit as f64 * 1e6;
        let peers = f64::from(setup.peers);
        let compute_s = 6.0 * parameters * setup.round_tokens / setup.flops;
        let bytes = (peers - 1.0) * basis.cost.bytes(parameters);
        let exchange_s = basis.exchange.seconds(bytes * 8.0 / rate);
        let codec_s =
            parameters * (basis.cost.encode_s + basis.cost.apply_s) / f64::from(setup.codec_cores);
        let all_reduce_s = 2.0 * (peers - 1.0) / peers * 4.0 * parameters * 8.0 / rate;
        Projected {
            name: name.to_owned(),
            parameters,
            compute_s,
            bytes,
            exchange_s,
            codec_s,
            utilisation: compute_s / (compute_s + exchange_s + codec_s),
            utilisation_overlap: compute_s / (compute_s.max(exchange_s) + codec_s),
            utilisation_cluster: compute_s / (compute_s + f64::from(setup.steps) * all_reduce_s),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "model": self.name,
            "parameters": self.parameters,
            "compute_s": self.compute_s,
            "bytes_per_peer": self.bytes,
            "exchange_s": self.exchange_s,
            "codec_s": self.codec_s,
            "utilisation": self.utilisation,
            "utilisation_overlap": self.utilisation_overlap,
            "utilisation_cluster": self.utilisation_cluster,
        })
    }
}

/// The formulas with their inputs, for the reader of a projected figure.
pub(super) fn formulas(setup: &Setup, basis: &Basis) -> Vec<String> {
    let Setup {
        peers,
        mbit,
        flops,
        round_tokens,
        steps,
        codec_cores,
    } = setup;
    let Cost {
        codec,
        bits,
        encode_s,
        apply_s,
        ..
    } = &basis.cost;
    let Exchange {
        fixed_s,
        stretch,
        rates,
    } = basis.exchange;
    vec![
        format!("compute = 6 x parameters x {round_tokens:.3e} tokens / {flops:.3e} FLOP/s"),
        format!("bytes = ({peers} - 1) x parameters x {bits:.4} bits / 8 ({codec}, measured)"),
        format!(
            "exchange = {fixed_s:.3} s + {stretch:.3} x bytes x 8 / {mbit} Mbit/s, a line through exchanges measured at {rates} rates"
        ),
        format!(
            "codec = parameters x ({encode_s:.3e} + {apply_s:.3e}) s / {codec_cores} cores: encoding, and applying {peers} updates, \
             measured on one core"
        ),
        "round = compute + exchange + codec; with overlap max(compute, exchange) + codec"
            .to_owned(),
        format!(
            "cluster = compute + {steps} steps x 2 x ({peers} - 1) / {peers} x 4 bytes x parameters x 8 / {mbit} Mbit/s"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::CodecName;

    #[test]
    fn a_projection_follows_its_formulas() {
        let setup = Setup {
            peers: 5,
            mbit: 100,
            flops: 6e14,
            round_tokens: 1e7,
            steps: 10,
            codec_cores: 2,
        };
        let basis = Basis {
            cost: Cost {
                codec: CodecName::DENSE_INT8,
                peers: 5,
                bits: 0.1,
                encode_s: 1e-9,
                apply_s: 3e-9,
            },
            exchange: Exchange::fit(&[(1.0, 4.0), (2.0, 6.0)]),
        };
        let projected = Projected::new("1B", 1e9, &setup, &basis);
        assert_eq!(projected.compute_s, 100.0);
        assert_eq!(projected.bytes, 50e6);
        // 2 s, and twice the 4 s that the bytes take.
        assert_eq!(projected.exchange_s, 10.0);
        assert_eq!(projected.codec_s, 2.0);
        assert_eq!(projected.utilisation, 100.0 / 112.0);
        assert_eq!(projected.utilisation_overlap, 100.0 / 102.0);
        // 6.4 GB in each step: 512 s.
        assert_eq!(projected.utilisation_cluster, 100.0 / 5220.0);
        assert_eq!(formulas(&setup, &basis).len(), 6);
    }

    #[test]
    fn an_exchange_is_never_faster_than_its_bound() {
        let exchange = |points: &[(f64, f64)]| Exchange::fit(points).seconds(10.0);
        assert_eq!(exchange(&[]), 10.0);
        assert_eq!(exchange(&[(2.0, 3.0)]), 15.0);
        assert_eq!(exchange(&[(2.0, 1.0)]), 10.0);
        assert_eq!(exchange(&[(2.0, 4.0), (4.0, 4.0)]), 11.0);
    }
}
