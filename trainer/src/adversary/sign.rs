//! Trains, and turns what it learnt round.

use super::{Call, Honest, Trick, stretched};
use crate::training::{TrainError, TrainReport};

pub(super) struct Sign;

impl Trick for Sign {
    fn train(
        &mut self,
        honest: &mut Honest<'_>,
        call: &mut Call<'_>,
    ) -> Result<(TrainReport, Vec<f32>), TrainError> {
        let (report, local) = honest.train(call.theta, call)?;
        Ok((report, stretched(call.theta, &local, -1.0)))
    }
}
