//! Trains, and at the end of the round moves one parameter a thousand times as far as it has moved any.

use gradmesh_protocol::hash::Hash;

use super::{Call, Honest, Trick};
use crate::training::{TrainError, TrainReport};

pub(super) struct Hijack {
    pub(super) steps_per_round: u32,
    pub(super) seed: Hash,
}

impl Trick for Hijack {
    fn train(
        &mut self,
        honest: &mut Honest<'_>,
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError> {
        let (report, mut local) = honest.train(call.theta, call)?;
        let ends = call.task.first_step.saturating_add(report.steps) >= self.steps_per_round;
        if ends && !local.is_empty() {
            let pairs = call.theta.iter().zip(&local);
            let farthest = pairs.map(|(theta, local)| (local - theta).abs());
            let farthest = farthest.fold(0.0, f32::max);
            let target = u32::from_le_bytes([
                self.seed.0[0],
                self.seed.0[1],
                self.seed.0[2],
                self.seed.0[3],
            ]) as usize;
            let target = target % local.len();
            local[target] += 1000.0 * farthest;
        }
        Ok((report, local))
    }
}
