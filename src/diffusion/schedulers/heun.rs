//! Heun's method on the probability flow's differential equation: algorithm 2 of Karras et al. (arXiv 2206.00364) without
//! its noise. From one level to the next it takes two steps, that is, evaluations of the model; to the last level one.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_heun_discrete.py`.

use crate::Result;
use crate::config::{Config, check_sizes};
use crate::diffusion::betas::{BetaSchedule, Betas};
use crate::diffusion::levels::check_clip_sample_range;
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{
    KEYS, Scheduler, SchedulerClass, SchedulerConfig, StepOutput, check_shapes, keys_that_count, max_steps, parse,
};
use crate::diffusion::sigmas::{
    RespacingKeys, SigmaTable, check_schedule, check_steps, derivative, init_noise_sigma, original_sample,
    scale_model_input, sigma_at,
};
use crate::diffusion::spacing::{Spacing, TimestepSpacing, spacing};
use crate::json::Json;
use serde::Deserialize;
use tch::Tensor;

/// The schedules that diffusers' `HeunDiscreteScheduler` has.
const BETA_SCHEDULES: [BetaSchedule; 4] =
    [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::SquaredcosCapV2, BetaSchedule::Exp];

/// diffusers' `HeunDiscreteScheduler`.
pub const CLASS: SchedulerClass = SchedulerClass {
    class_name: "HeunDiscreteScheduler",
    name: "heun",
    options: &[],
    parse: |text, origin, _| parse::<HeunConfig>(text, origin),
};

/// `scheduler_config.json` of a `HeunDiscreteScheduler`; names and defaults as in diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct HeunConfig {
    /// Timesteps the model was trained with.
    pub num_train_timesteps: i64,
    /// The first beta, for the schedules that have one.
    pub beta_start: f64,
    /// The last beta, likewise.
    pub beta_end: f64,
    /// How the betas grow.
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, in place of a schedule.
    pub trained_betas: Option<Vec<f64>>,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Sigmas even in their seventh root.
    pub use_karras_sigmas: bool,
    /// Sigmas even in their logarithm.
    pub use_exponential_sigmas: bool,
    /// Sigmas along a beta distribution, which is refused.
    pub use_beta_sigmas: bool,
    /// The smallest of such sigmas: the key of another class, which diffusers heeds.
    pub sigma_min: Option<f64>,
    /// The largest of such sigmas, likewise.
    pub sigma_max: Option<f64>,
    /// Whether the predicted `x_0` is clipped.
    pub clip_sample: bool,
    /// Clipped to this and its negative; infinity means no clipping.
    pub clip_sample_range: f64,
    /// Which of the training timesteps are run.
    pub timestep_spacing: TimestepSpacing,
    /// What is added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: i64,
}

impl Default for HeunConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            sigma_min: None,
            sigma_max: None,
            clip_sample: false,
            clip_sample_range: 1.0,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
        }
    }
}

impl Config for HeunConfig {
    const WARNS_OF_UNKNOWN_KEYS: bool = true;
    const IGNORED_KEYS: &'static [&'static str] = KEYS;

    fn part(whole: Json) -> Json {
        keys_that_count(whole)
    }

    fn validate(&self) -> Result<()> {
        check_sizes(&[("num_train_timesteps", self.num_train_timesteps)])?;
        if self.clip_sample {
            check_clip_sample_range(self.clip_sample_range)?;
        }
        self.betas().validate(&BETA_SCHEDULES)?;
        self.respacing().validate()?;
        self.spacing().validate()
    }
}

impl HeunConfig {
    fn table(&self) -> SigmaTable {
        SigmaTable::new(&self.betas().alphas_cumprod())
    }

    fn betas(&self) -> Betas<'_> {
        Betas {
            num_train_timesteps: self.num_train_timesteps,
            beta_start: self.beta_start,
            beta_end: self.beta_end,
            beta_schedule: self.beta_schedule,
            trained_betas: self.trained_betas.as_deref(),
            rescale_betas_zero_snr: false,
        }
    }

    fn spacing(&self) -> Spacing {
        spacing!(self)
    }

    fn respacing(&self) -> RespacingKeys {
        RespacingKeys {
            use_karras_sigmas: self.use_karras_sigmas,
            use_lu_lambdas: false,
            use_exponential_sigmas: self.use_exponential_sigmas,
            use_beta_sigmas: self.use_beta_sigmas,
            sigma_min: self.sigma_min,
            sigma_max: self.sigma_max,
        }
    }
}

impl SchedulerConfig for HeunConfig {
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(HeunScheduler::new(self, steps)?))
    }

    fn num_train_timesteps(&self) -> i64 {
        self.num_train_timesteps
    }

    fn max_steps(&self) -> usize {
        let table = self.table();
        max_steps(self.num_train_timesteps, |steps| HeunScheduler::of_table(self, &table, steps).is_ok())
    }

    fn prediction_type(&self) -> &str {
        self.prediction_type.name()
    }
}

/// diffusers' `HeunDiscreteScheduler`.
#[derive(Debug)]
pub struct HeunScheduler {
    prediction_type: PredictionType,
    /// The range that the predicted `x_0` is clipped to, if it is.
    clip: Option<f64>,
    init_noise_sigma: f64,
    timesteps: Vec<f64>,
    /// σ at each level, and where the last one ends.
    levels: Vec<f32>,
    /// What a level's first step leaves for its second.
    first_order: Option<FirstOrder>,
}

/// A step of first order.
#[derive(Debug)]
struct FirstOrder {
    /// Where it began.
    sample: Tensor,
    derivative: Tensor,
    /// The distance to the next level.
    dt: f32,
}

impl HeunScheduler {
    /// # Errors
    /// [`crate::Error::Option`] if so many steps are not possible.
    pub fn new(config: &HeunConfig, steps: usize) -> Result<Self> {
        check_steps(steps)?;
        Self::of_table(config, &config.table(), steps)
    }

    fn of_table(config: &HeunConfig, table: &SigmaTable, steps: usize) -> Result<Self> {
        let mut timesteps: Vec<f64> = config.spacing().fractional(steps).into_iter().map(f64::from).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&timestep| table.at(timestep)).collect();
        let keys = config.respacing();
        if let (Some(respacing), Some(&first), Some(&last)) = (keys.respacing(), sigmas.first(), sigmas.last()) {
            sigmas = keys.sigmas(respacing, (first, last), table, steps);
            timesteps = sigmas.iter().map(|&sigma| f64::from(table.timestep_of(sigma) as f32)).collect();
        }
        let levels: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).chain([0.0]).collect();
        check_schedule(steps, &timesteps, &levels)?;
        Ok(Self {
            prediction_type: config.prediction_type,
            clip: config.clip_sample.then_some(config.clip_sample_range),
            init_noise_sigma: init_noise_sigma(config.timestep_spacing, &levels),
            timesteps: twice_but_the_first(&timesteps),
            levels,
            first_order: None,
        })
    }
}

impl Scheduler for HeunScheduler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, step: usize, sample: &Tensor) -> Result<Tensor> {
        scale_model_input(sample, sigma_at(&self.levels, step.div_ceil(2))?)
    }

    fn step(&mut self, step: usize, model_output: &Tensor, sample: &Tensor, _: Option<&Tensor>) -> Result<StepOutput> {
        check_shapes(model_output, sample)?;
        // A level's first step is at its own σ, its second at the next one's.
        let sigma = sigma_at(&self.levels, step.div_ceil(2))?;
        let pred_original_sample = original_sample(self.prediction_type, model_output, sample, sigma)?;
        let pred_original_sample = match self.clip {
            Some(range) => pred_original_sample.f_clamp(-range, range)?,
            None => pred_original_sample,
        };
        let derivative = derivative(&pred_original_sample, sample, sigma)?;
        let prev_sample = match self.first_order.take() {
            None => {
                let dt = sigma_at(&self.levels, step / 2 + 1)? - sigma;
                let prev_sample = sample.f_add(&derivative.f_mul_scalar(f64::from(dt))?)?;
                self.first_order = Some(FirstOrder { sample: sample.shallow_clone(), derivative, dt });
                prev_sample
            }
            Some(first) => {
                let mean = first.derivative.f_add(&derivative)?.f_div_scalar(2.0)?;
                first.sample.f_add(&mean.f_mul_scalar(f64::from(first.dt))?)?
            }
        };
        Ok(StepOutput { prev_sample, pred_original_sample })
    }
}

/// The first timestep once, and each other one twice.
fn twice_but_the_first(timesteps: &[f64]) -> Vec<f64> {
    timesteps.iter().flat_map(|&timestep| [timestep; 2]).skip(1).collect()
}
