//! What the sampler asks of a scheduler. Each scheduler is one file beside this one.

use anyhow::Result;
use tch::Tensor;

/// What a step of a scheduler gives.
#[derive(Debug)]
pub struct StepOutput {
    /// The sample at the previous timestep, the input of the next step.
    pub prev_sample: Tensor,
    /// The predicted noiseless sample `x_0` at this step.
    pub pred_original_sample: Tensor,
}

/// A denoising schedule of a fixed number of steps.
pub trait Scheduler {
    /// The timesteps in the order in which they run, the noisiest first.
    fn timesteps(&self) -> &[i64];

    /// How many steps draw noise: the first so many of them.
    fn noisy_steps(&self) -> usize;

    /// Takes the model's output at step `step` (an index into [`Scheduler::timesteps`]) and gives the next sample.
    ///
    /// `model_output`, `sample` and `noise` are `(rows, dim)`; `noise` is given to the first
    /// [`Scheduler::noisy_steps`] steps.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    fn step(&self, step: usize, model_output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<StepOutput>;
}
