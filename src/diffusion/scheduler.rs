//! What the sampler and a pipeline ask of a scheduler.
//!
//! A new scheduler is one file in `schedulers/` that implements the two traits, and its line in `ALL` of
//! `schedulers/mod.rs`.

use crate::config::{self, Config};
use crate::json::Json;
use crate::{Error, Result};
use std::fmt;
use tch::Tensor;

/// The output of a scheduler's step.
#[derive(Debug)]
pub struct StepOutput {
    /// The input of the next step, `(rows, dim)`.
    pub prev_sample: Tensor,
    /// The predicted `x_0`, `(rows, dim)`. diffusers gives it too; here only tests look at it.
    #[cfg_attr(not(test), allow(dead_code))]
    pub pred_original_sample: Tensor,
}

/// One run through a denoising schedule. A step is one evaluation of the model; several may lead from one timestep to
/// the next.
pub trait Scheduler {
    /// The timestep of each step, the noisiest first. They may be fractional, and repeat.
    fn timesteps(&self) -> &[f64];

    /// The standard deviation of the noise that denoising starts from.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// How many steps draw noise; these are the first ones.
    fn noisy_steps(&self) -> usize {
        0
    }

    /// What the model is given for the sample at a step, `(rows, dim)`.
    ///
    /// # Errors
    /// If there is no such step or memory runs out.
    fn scale_model_input(&self, _step: usize, sample: &Tensor) -> Result<Tensor> {
        Ok(sample.shallow_clone())
    }

    /// A sample, `(rows, dim)`, with as much of the noise, `(rows, dim)`, as there is before a step.
    ///
    /// # Errors
    /// If the scheduler's configuration says that it does not do this, shapes do not fit or memory runs out.
    fn add_noise(&self, _step: usize, _sample: &Tensor, _noise: &Tensor) -> Result<Tensor> {
        Err(Error::Internal("this scheduler adds no noise".into()))
    }

    /// Computes the next sample from the model's output at step `step`, an index into [`Scheduler::timesteps`]. Steps
    /// are taken in order: some schedulers keep what earlier ones gave.
    ///
    /// `model_output`, `sample` and `noise` are `(rows, dim)`; `noise` is given to the first
    /// [`Scheduler::noisy_steps`] steps.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    fn step(
        &mut self,
        step: usize,
        model_output: &Tensor,
        sample: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<StepOutput>;
}

/// A parsed and checked `scheduler_config.json`.
pub trait SchedulerConfig: fmt::Debug + Send + Sync {
    /// A scheduler of so many steps.
    ///
    /// # Errors
    /// [`Error::Option`] if the model cannot do so many.
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>>;

    /// Timesteps that the model was trained with.
    fn num_train_timesteps(&self) -> i64;

    /// The largest number of steps such that any smaller one is possible too. Some larger ones may be.
    fn max_steps(&self) -> usize;

    /// What the model predicts: `epsilon`, `sample` or `v_prediction`.
    fn prediction_type(&self) -> &str;

    /// Whether its schedulers [add noise](Scheduler::add_noise) to a sample, so that denoising may start from that.
    fn adds_noise(&self) -> bool {
        false
    }

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
    /// The options of [`SchedulerOptions`] that it has.
    pub options: &'static [&'static str],
    /// Parses and checks a `scheduler_config.json`; the second argument is what messages call the file. The options are
    /// among those that it has.
    pub parse: fn(&str, &str, &SchedulerOptions) -> Result<Box<dyn SchedulerConfig>>,
}

impl fmt::Debug for SchedulerClass {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.class_name)
    }
}

/// How to sample otherwise than a model's own configuration says.
#[derive(Debug, Clone, Default)]
pub struct SchedulerOptions {
    /// Another class than the model's own, with the model's configuration.
    pub class: Option<SchedulerClass>,
    /// DDIM's η, the share of DDPM's noise that a step adds: 0 to 1.
    pub eta: Option<f64>,
    /// DPM-Solver's order: 1 to 3.
    pub solver_order: Option<i64>,
    /// Whether DPM-Solver solves the stochastic differential equation, whose steps add noise.
    pub sde: bool,
}

impl SchedulerOptions {
    /// The names of the options that are given, beside the class.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        let given = [("eta", self.eta.is_some()), ("solver_order", self.solver_order.is_some()), ("sde", self.sde)];
        given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name)
    }
}

/// Every key that a scheduler of diffusers may have. As there, a class ignores those of the others: a configuration may
/// have been saved, or made, for one of them.
pub(super) const KEYS: &[&str] = &[
    "algorithm_type",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "noise_sampler_seed",
    "predict_x0",
    "rescale_betas_zero_snr",
    "rho",
    "sample_max_value",
    "set_alpha_to_one",
    "shift_terminal",
    "sigma_data",
    "sigma_max",
    "sigma_min",
    "sigma_schedule",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "thresholding",
    "time_shift_type",
    "timestep_spacing",
    "timestep_type",
    "trained_betas",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

/// The keys that count. Those that `_use_default_values` lists had their class's defaults when the configuration was
/// made, and have those of the class that it is read for.
pub(super) fn keys_that_count(mut whole: Json) -> Json {
    let defaults = match whole.get("_use_default_values") {
        Some(Json::List(names)) => names.clone(),
        _ => Vec::new(),
    };
    if let Json::Object(entries) = &mut whole {
        entries.retain(|(key, _)| !defaults.contains(&Json::Text(key.clone())));
    }
    whole
}

/// Parses the configuration of a class; `origin` is its name in messages.
///
/// # Errors
/// [`Error::Config`] if a value is wrong.
pub(super) fn parse<C: Config + SchedulerConfig + 'static>(
    text: &str,
    origin: &str,
) -> Result<Box<dyn SchedulerConfig>> {
    Ok(Box::new(config::parse::<C>(text, origin)?))
}

/// See [`SchedulerConfig::max_steps`]: as far as it is worth a look.
pub(super) fn max_steps(num_train_timesteps: i64, is_possible: impl Fn(usize) -> bool) -> usize {
    (1..=num_train_timesteps.clamp(0, 1000) as usize).take_while(|&steps| is_possible(steps)).last().unwrap_or(0)
}

/// Checks that a model's output and the sample have the same shape.
///
/// # Errors
/// [`Error::Internal`] if not.
pub(super) fn check_shapes(model_output: &Tensor, sample: &Tensor) -> Result<()> {
    if model_output.size() == sample.size() {
        return Ok(());
    }
    Err(Error::Internal("the model's output and the sample differ in shape".into()))
}

/// The noise of a step that needs it.
///
/// # Errors
/// [`Error::Internal`] if there is none.
pub(super) fn need_noise(step: usize, noise: Option<&Tensor>) -> Result<&Tensor> {
    noise.ok_or_else(|| Error::Internal(format!("step {step} needs noise")))
}

/// The error of a step that the schedule does not have.
pub(super) fn no_step(step: usize) -> Error {
    Error::Internal(format!("the scheduler has no step {step}"))
}
