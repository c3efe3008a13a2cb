//! What the sampler and a pipeline ask of a scheduler.
//!
//! A new scheduler is one file in `schedulers/` that implements the two traits, and its line in `ALL` of
//! `schedulers/mod.rs`.

use crate::Result;
use std::fmt;
use tch::Tensor;

/// The output of a scheduler's step.
#[derive(Debug)]
pub struct StepOutput {
    /// `x_{t-1}`, the input of the next step, `(rows, dim)`.
    pub prev_sample: Tensor,
    /// The predicted `x_0`, `(rows, dim)`. diffusers gives it too; here only tests look at it.
    #[cfg_attr(not(test), allow(dead_code))]
    pub pred_original_sample: Tensor,
}

/// A denoising schedule of a fixed number of steps.
pub trait Scheduler {
    /// The timesteps in the order in which they run, the noisiest first.
    fn timesteps(&self) -> &[i64];

    /// How many steps draw noise; these are the first ones.
    fn noisy_steps(&self) -> usize {
        self.timesteps().iter().filter(|&&t| t > 0).count()
    }

    /// Computes the next sample from the model's output at step `step`, an index into [`Scheduler::timesteps`].
    ///
    /// `model_output`, `sample` and `noise` are `(rows, dim)`; `noise` is given to the first
    /// [`Scheduler::noisy_steps`] steps.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    fn step(&self, step: usize, model_output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<StepOutput>;
}

/// A parsed and checked `scheduler_config.json`.
pub trait SchedulerConfig: fmt::Debug + Send + Sync {
    /// A scheduler of so many steps.
    ///
    /// # Errors
    /// [`crate::Error::Option`] if the model cannot do so many.
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>>;

    /// Timesteps that the model was trained with.
    fn num_train_timesteps(&self) -> i64;

    /// The largest number of steps such that any smaller one is possible too. Some larger ones may be.
    fn max_steps(&self) -> usize {
        usize::try_from(self.num_train_timesteps()).unwrap_or(0)
    }

    /// What the model predicts: `epsilon`, `sample` or `v_prediction`.
    fn prediction_type(&self) -> &str;

    /// Whether the model has to predict the variance too.
    fn needs_variance(&self) -> bool {
        false
    }
}

/// A class of schedulers.
#[derive(Clone, Copy)]
pub struct SchedulerClass {
    /// Its name in diffusers, `UnCLIPScheduler`.
    pub class_name: &'static str,
    /// Its name on the command line, `unclip`.
    pub name: &'static str,
    /// Parses and checks a `scheduler_config.json`; the second argument is what messages call the file.
    pub parse: fn(&str, &str) -> Result<Box<dyn SchedulerConfig>>,
}

impl fmt::Debug for SchedulerClass {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.class_name)
    }
}
