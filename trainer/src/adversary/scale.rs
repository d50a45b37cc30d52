//! Trains, and sends three times what it learnt.

use super::{Call, Honest, Trick, stretched};
use crate::training::{TrainError, TrainReport};

pub(super) struct Scale;

impl Trick for Scale {
    fn train(
        &mut self,
        honest: &mut Honest<'_>,
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError> {
        let (report, local) = honest.train(call.theta, call)?;
        Ok((report, stretched(call.theta, &local, 3.0)))
    }
}
