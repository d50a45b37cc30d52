//! One inner step in two halves, the gradient and what AdamW makes of it, so that machines that train in lockstep can
//! average their gradients in between. [`Trainer::train`](crate::Trainer::train) does both at once, with the same bits.

use tch::{Tensor, no_grad_guard};

use super::{TorchTrainer, backend, host_values};
use crate::training::{Batch, TrainError, check_length};

impl TorchTrainer {
    /// Goes on from `theta`; the inner state stays as it is.
    ///
    /// # Errors
    /// [`TrainError::Length`], before anything changes.
    pub fn set_parameters(&mut self, theta: &[f32]) -> Result<(), TrainError> {
        check_length("theta", theta.len(), self.local.len())?;
        let start = self.upload(theta)?;
        let _guard = no_grad_guard();
        self.flat.f_copy_(&start).map_err(backend)?;
        Ok(())
    }

    /// The parameters as the last step left them, flat. [`Trainer::local`](crate::Trainer::local) stays that of the last
    /// call of `train`.
    ///
    /// # Errors
    /// [`TrainError::Backend`].
    pub fn current_parameters(&self) -> Result<Vec<f32>, TrainError> {
        host_values(&self.flat)
    }

    /// Mean nats per token of the current parameters on `batch`, and the gradient of that mean, flat. Changes nothing.
    ///
    /// # Errors
    /// [`TrainError`], also when the loss is not finite.
    pub fn gradient(&mut self, batch: &Batch) -> Result<(f32, Vec<f32>), TrainError> {
        self.admit(batch)?;
        let (loss, gradient) = self.backward(batch).map_err(backend)?;
        let loss = loss.f_double_value(&[]).map_err(backend)? as f32;
        if !loss.is_finite() {
            return Err(TrainError::LossNotFinite(loss));
        }
        Ok((loss, host_values(&gradient)?))
    }

    /// One step of AdamW from `gradient`, flat, as inner step `global_step` of the run; its L2 norm before clipping.
    ///
    /// # Errors
    /// [`TrainError::Length`] and [`TrainError::GradientNotFinite`], before anything changes.
    pub fn step(&mut self, gradient: &[f32], global_step: u64) -> Result<f32, TrainError> {
        check_length("gradient", gradient.len(), self.local.len())?;
        let gradient = self.upload(gradient)?;
        let norm = gradient
            .f_norm()
            .and_then(|norm| norm.f_double_value(&[]))
            .map_err(backend)? as f32;
        if !norm.is_finite() {
            return Err(TrainError::GradientNotFinite(norm));
        }
        let learning_rate = self.settings.optimizer.learning_rate_at(global_step);
        self.descend(gradient, norm, learning_rate)
            .map_err(backend)?;
        Ok(norm)
    }

    /// Mean loss and its gradient at `self.flat`, both on the device.
    pub(super) fn backward(&self, batch: &Batch) -> Result<(Tensor, Tensor), tch::TchError> {
        let predictions = batch.predictions() as f64;
        let mut sum: Option<(Tensor, Tensor)> = None;
        for (inputs, targets) in self.pieces(batch)? {
            let loss = self
                .model
                .loss_sum(&self.flat, &inputs, &targets)?
                .f_div_scalar(predictions)?;
            let mut gradient = Tensor::f_run_backward(&[&loss], &[&self.flat], false, false)?;
            let gradient = gradient.swap_remove(0);
            let loss = loss.f_detach()?;
            let _guard = no_grad_guard();
            sum = Some(match sum.take() {
                None => (loss, gradient),
                Some((mut losses, mut gradients)) => {
                    (losses.f_add_(&loss)?, gradients.f_add_(&gradient)?)
                }
            });
        }
        Ok(sum.expect("a batch has at least one row"))
    }

    /// One AdamW step ([`crate::optimizer`]) from `gradient`, whose norm before clipping is `norm`.
    pub(super) fn descend(
        &mut self,
        mut gradient: Tensor,
        norm: f32,
        learning_rate: f64,
    ) -> Result<(), tch::TchError> {
        let optimizer = &self.settings.optimizer;
        let steps = self.steps + 1;
        let (correction1, correction2) = optimizer.bias_corrections(steps);
        let clip = optimizer.clip_norm / (f64::from(norm) + 1e-6);
        let _guard = no_grad_guard();
        if clip < 1.0 {
            gradient = gradient.f_mul_scalar_(clip)?;
        }
        let _ = self.first.f_lerp_(&gradient, 1.0 - optimizer.beta1)?;
        let square = gradient.f_square_()?;
        let _ = self.second.f_lerp_(&square, 1.0 - optimizer.beta2)?;
        let mut denominator = self.second.f_sqrt()?;
        let _ = denominator.f_mul_scalar_(1.0 / correction2.sqrt())?;
        let _ = denominator.f_add_scalar_(optimizer.epsilon)?;
        let mut delta = self.first.f_div(&denominator)?;
        let _ = delta.f_mul_scalar_(learning_rate / correction1)?;
        let keep = 1.0 - learning_rate * optimizer.weight_decay;
        if keep != 1.0 {
            for (start, length) in &self.decayed {
                let _ = self
                    .flat
                    .f_narrow(0, *start, *length)?
                    .f_mul_scalar_(keep)?;
            }
        }
        let _ = self.flat.f_sub_(&delta)?;
        self.steps = steps;
        Ok(())
    }
}
