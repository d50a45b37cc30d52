//! Skips calls at random, each with the same chance.

use gradmesh_protocol::hash::Hash;

use super::{Call, Honest, Trick};
use crate::training::{TrainError, TrainReport};

pub(super) struct Partial {
    pub(super) skipped_ppm: u32,
    pub(super) seed: Hash,
}

impl Trick for Partial {
    fn train(
        &mut self,
        honest: &mut Honest<'_>,
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError> {
        let mut body = self.seed.0.to_vec();
        body.extend_from_slice(&call.task.global_step.to_le_bytes());
        let drawn = Hash::of_content(&body).0;
        let drawn = u64::from_le_bytes([
            drawn[0], drawn[1], drawn[2], drawn[3], drawn[4], drawn[5], drawn[6], drawn[7],
        ]);
        // Of 2^64 numbers the remainder favours some by less than 10^-13.
        if drawn % 1_000_000 < self.skipped_ppm.into() {
            return Ok((honest.claim(call)?, call.theta.to_vec()));
        }
        honest.train(call.theta, call)
    }
}
