//! Trains from the shared parameters of the round before, and moves the result to where this round began.

use super::{Call, Honest, Trick};
use crate::training::{TrainError, TrainReport};

#[derive(Default)]
pub(super) struct Stale {
    /// What this round, or the one before it, began with.
    start: Vec<f32>,
    /// What this round's start has more than that of the round before.
    ahead: Vec<f32>,
}

impl Trick for Stale {
    fn train(
        &mut self,
        honest: &mut Honest<'_>,
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError> {
        // A round that is first seen in its middle has nothing to be behind of.
        if call.task.first_step == 0 || self.start.len() != call.theta.len() {
            let before = std::mem::replace(&mut self.start, call.theta.to_vec());
            let before = if before.len() == call.theta.len() {
                &before
            } else {
                call.theta
            };
            let pairs = call.theta.iter().zip(before);
            self.ahead = pairs.map(|(theta, before)| theta - before).collect();
        }
        let pairs = call.theta.iter().zip(&self.ahead);
        let behind: Vec<f32> = pairs.map(|(theta, ahead)| theta - ahead).collect();
        let (report, local) = honest.train(&behind, call)?;
        let pairs = local.iter().zip(&self.ahead);
        Ok((report, pairs.map(|(local, ahead)| local + ahead).collect()))
    }
}
