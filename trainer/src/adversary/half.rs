//! Does the calls that begin in the first half of a round, and claims the others.

use super::{Call, Honest, Trick};
use crate::training::{TrainError, TrainReport};

pub(super) struct Half {
    pub(super) steps_per_round: u32,
}

impl Trick for Half {
    fn train(
        &mut self,
        honest: &mut Honest<'_>,
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError> {
        if call.task.first_step < self.steps_per_round.div_ceil(2) {
            return honest.train(call.theta, call);
        }
        Ok((honest.claim(call)?, call.theta.to_vec()))
    }
}
