//! Draws from a seeded ChaCha stream: the only source of chance in a simulation.

use std::ops::RangeInclusive;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// A stream of draws. Streams of one seed with different purposes are independent.
#[derive(Clone, Debug)]
pub struct Random {
    stream: ChaCha8Rng,
}

/// What a stream is for: a draw more for one purpose does not shift the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The options of a run.
    Options = 1,
    /// Everything that links do.
    Network = 2,
    /// Everything that happens inside peers: failures of training, moments of a crash.
    Peers = 3,
    /// The chain of a run that has one.
    Chain = 4,
    /// The plan of the exchange and the links that it goes by.
    Plan = 5,
    /// Links that come to carry more or less.
    Links = 6,
    /// Lies about updates.
    Lies = 7,
}

impl Random {
    /// The stream of `seed` for `purpose`.
    pub fn new(seed: u64, purpose: Purpose) -> Random {
        let mut stream = ChaCha8Rng::seed_from_u64(seed);
        stream.set_stream(purpose as u64);
        Random { stream }
    }

    /// A number in `range`. The bias of the remainder is below 2^-32 for the small ranges used here.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let width = range.end() - range.start() + 1;
        range.start() + self.stream.next_u64() % width
    }

    /// `true` with a probability of `ppm` in a million.
    pub fn chance(&mut self, ppm: u32) -> bool {
        self.within(0..=999_999) < u64::from(ppm)
    }

    /// One of `items`, which are not empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.within(0..=items.len() as u64 - 1) as usize]
    }
}
