//! Does one step, to know how large an update is, and sends Gaussian noise of the size of all of them.

use gradmesh_protocol::hash::Hash;

use super::{Call, Honest, Trick};
use crate::model::push_normal;
use crate::training::{TrainError, TrainReport, TrainTask};

pub(super) struct Noise {
    pub(super) seed: Hash,
}

impl Trick for Noise {
    fn train(
        &mut self,
        honest: &mut Honest<'_>,
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError> {
        let task = TrainTask {
            steps: 1,
            ..call.task
        };
        let measured = honest
            .trainer
            .train(call.theta, &task, call.batches, &mut |_| true)?;
        *honest.loss = measured.loss_last;
        let local = honest.trainer.take_local();
        let changes = call.theta.iter().zip(&local);
        let square: f64 = changes
            .map(|(theta, local)| (f64::from(*local) - f64::from(*theta)).powi(2))
            .sum();
        let report = honest.claim(call)?;
        let norm = libm::sqrt(square) * f64::from(report.steps);
        let std = norm / libm::sqrt(call.theta.len().max(1) as f64);
        let mut noise = Vec::with_capacity(call.theta.len());
        let stream = call.task.global_step;
        push_normal(&mut noise, self.seed.0, stream, call.theta.len(), std);
        let pairs = call.theta.iter().zip(noise);
        Ok((report, pairs.map(|(theta, noise)| theta + noise).collect()))
    }
}
