//! What the sampler asks of a scheduler. Each scheduler is one file beside this one.

use super::schedulers::ddpm::{DdpmConfig, DdpmScheduler, PredictionType};
use super::schedulers::unclip::{UnclipConfig, UnclipScheduler};
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
    fn noisy_steps(&self) -> usize {
        self.timesteps().iter().filter(|&&t| t > 0).count()
    }

    /// Takes the model's output at step `step` (an index into [`Scheduler::timesteps`]) and gives the next sample.
    ///
    /// `model_output`, `sample` and `noise` are `(rows, dim)`; `noise` is given to the first
    /// [`Scheduler::noisy_steps`] steps.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    fn step(&self, step: usize, model_output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<StepOutput>;
}

/// The schedulers that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerClass {
    /// `UnCLIPScheduler`.
    Unclip,
    /// `DDPMScheduler`.
    Ddpm,
}

impl SchedulerClass {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Unclip, Self::Ddpm];

    /// The class in diffusers.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Unclip => "UnCLIPScheduler",
            Self::Ddpm => "DDPMScheduler",
        }
    }

    /// What the command line calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unclip => "unclip",
            Self::Ddpm => "ddpm",
        }
    }
}

/// The configuration of a scheduler of any class.
#[derive(Debug, Clone)]
pub enum SchedulerConfig {
    /// Of an `UnCLIPScheduler`.
    Unclip(UnclipConfig),
    /// Of a `DDPMScheduler`.
    Ddpm(DdpmConfig),
}

impl SchedulerConfig {
    /// The scheduler's class.
    pub fn class(&self) -> SchedulerClass {
        match self {
            Self::Unclip(_) => SchedulerClass::Unclip,
            Self::Ddpm(_) => SchedulerClass::Ddpm,
        }
    }

    /// The scheduler, set to so many steps.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if a value is wrong or so many steps are not possible.
    pub fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        match self {
            Self::Unclip(config) => {
                let mut scheduler = UnclipScheduler::new(config)?;
                scheduler.set_timesteps(steps)?;
                Ok(Box::new(scheduler))
            }
            Self::Ddpm(config) => {
                let mut scheduler = DdpmScheduler::new(config)?;
                scheduler.set_timesteps(steps)?;
                Ok(Box::new(scheduler))
            }
        }
    }

    /// Timesteps that the model was trained with.
    pub fn num_train_timesteps(&self) -> i64 {
        match self {
            Self::Unclip(config) => config.num_train_timesteps,
            Self::Ddpm(config) => config.num_train_timesteps,
        }
    }

    /// The most denoising steps such that any smaller number is possible too.
    pub fn most_steps(&self) -> usize {
        match self {
            Self::Unclip(config) => usize::try_from(config.num_train_timesteps).unwrap_or(0),
            Self::Ddpm(config) => config.most_steps(),
        }
    }

    /// What the model predicts, as configurations name it: `epsilon`, `sample` or `v_prediction`.
    pub fn prediction_type(&self) -> &str {
        match self {
            Self::Unclip(config) => &config.prediction_type,
            Self::Ddpm(config) => match config.prediction_type {
                PredictionType::Epsilon => "epsilon",
                PredictionType::Sample => "sample",
                PredictionType::VPrediction => "v_prediction",
            },
        }
    }

    /// Whether the model has to predict the variance too.
    pub fn needs_variance(&self) -> bool {
        matches!(self, Self::Unclip(config) if config.variance_type == "learned_range")
    }
}
