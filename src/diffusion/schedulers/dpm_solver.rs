//! DPM-Solver (arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095), multistep: a step of second or third order
//! continues the line or the parabola through the predictions of the steps before it.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_dpmsolver_multistep.py`.

mod config;
mod update;

pub use config::{AlgorithmType, DpmSolverConfig};

use crate::config::Config;
use crate::diffusion::betas::BetaSchedule;
use crate::diffusion::levels::not_a_number;
use crate::diffusion::numpy::{arange_down, linspace};
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{
    Scheduler, SchedulerClass, SchedulerConfig, StepOutput, check_shapes, max_steps, need_noise, no_step,
};
use crate::diffusion::sigmas::{FinalSigmas, SigmaTable, check_schedule, check_steps};
use crate::diffusion::spacing::TimestepSpacing;
use crate::{Error, Result, config as configuration};
use std::collections::VecDeque;
use tch::Tensor;
use update::{Level, Update};

/// diffusers' `DPMSolverMultistepScheduler`.
pub const CLASS: SchedulerClass = SchedulerClass {
    class_name: "DPMSolverMultistepScheduler",
    name: "dpm-solver++",
    options: &["solver_order", "sde"],
    parse: |text, origin, options| {
        if let Some(order) = options.solver_order.filter(|order| !(1..=3).contains(order)) {
            let reason = format!("it is {order}, and must be 1, 2 or 3");
            return Err(Error::Option { option: "solver_order", reason });
        }
        let mut config: DpmSolverConfig = configuration::parse(text, origin)?;
        config.solver_order = options.solver_order.unwrap_or(config.solver_order);
        config.algorithm_type = if options.sde { config.algorithm_type.with_noise() } else { config.algorithm_type };
        config.validate().map_err(|error| error.with_path(origin))?;
        Ok(Box::new(config))
    },
};

impl SchedulerConfig for DpmSolverConfig {
    fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(DpmSolverScheduler::new(self, steps)?))
    }

    fn num_train_timesteps(&self) -> i64 {
        self.num_train_timesteps
    }

    fn max_steps(&self) -> usize {
        let alphas_cumprod = self.betas().positive_alphas_cumprod();
        let table = SigmaTable::new(&alphas_cumprod);
        let is_possible = |steps| DpmSolverScheduler::of_table(self, &alphas_cumprod, &table, steps).is_ok();
        max_steps(self.num_train_timesteps, is_possible)
    }

    fn prediction_type(&self) -> &str {
        self.prediction_type.name()
    }
}

/// diffusers' `DPMSolverMultistepScheduler`.
#[derive(Debug)]
pub struct DpmSolverScheduler {
    prediction_type: PredictionType,
    algorithm_type: AlgorithmType,
    timesteps: Vec<f64>,
    levels: Vec<Level>,
    updates: Vec<Update>,
    /// What the model predicted at the latest steps, the last one first: `x_0` for DPM-Solver++, the noise for DPM-Solver.
    predictions: VecDeque<Tensor>,
}

impl DpmSolverScheduler {
    /// # Errors
    /// [`Error::Option`] if so many steps are not possible.
    pub fn new(config: &DpmSolverConfig, steps: usize) -> Result<Self> {
        check_steps(steps)?;
        let alphas_cumprod = config.betas().positive_alphas_cumprod();
        Self::of_table(config, &alphas_cumprod, &SigmaTable::new(&alphas_cumprod), steps)
    }

    fn of_table(config: &DpmSolverConfig, alphas_cumprod: &[f32], table: &SigmaTable, steps: usize) -> Result<Self> {
        let (timesteps, sigmas) = schedule(config, alphas_cumprod, table, steps);
        check_schedule(steps, &timesteps, &sigmas)?;
        let levels: Vec<Level> = sigmas.into_iter().map(Level::new).collect();
        let count = timesteps.len();
        let update = |step: usize| Update::new(config, &levels[..step + 2], order(config, step, count));
        let updates: Vec<Update> = (0..count).map(update).collect();
        match updates.iter().position(|update| !update.is_finite()) {
            Some(step) => Err(not_a_number(steps, timesteps[step])),
            None => Ok(Self {
                prediction_type: config.prediction_type,
                algorithm_type: config.algorithm_type,
                timesteps,
                levels,
                updates,
                predictions: VecDeque::new(),
            }),
        }
    }

    /// The predicted `x_0` or the predicted noise, whichever the algorithm goes by.
    fn convert(&self, level: Level, model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let Level { alpha, sigma, .. } = level;
        let scaled = |tensor: &Tensor, factor: f32| tensor.f_mul_scalar(f64::from(factor));
        Ok(match (self.algorithm_type.predicts_original(), self.prediction_type) {
            (true, PredictionType::Epsilon) => {
                sample.f_sub(&scaled(model_output, sigma)?)?.f_div_scalar(f64::from(alpha))?
            }
            (true, PredictionType::VPrediction) => scaled(sample, alpha)?.f_sub(&scaled(model_output, sigma)?)?,
            (false, PredictionType::Sample) => {
                sample.f_sub(&scaled(model_output, alpha)?)?.f_div_scalar(f64::from(sigma))?
            }
            (false, PredictionType::VPrediction) => scaled(model_output, alpha)?.f_add(&scaled(sample, sigma)?)?,
            (true, PredictionType::Sample) | (false, PredictionType::Epsilon) => model_output.shallow_clone(),
        })
    }
}

impl Scheduler for DpmSolverScheduler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noisy_steps(&self) -> usize {
        // The last draws noise too, even where it adds nothing of it.
        if self.algorithm_type.adds_noise() { self.timesteps.len() } else { 0 }
    }

    fn step(
        &mut self,
        step: usize,
        model_output: &Tensor,
        sample: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<StepOutput> {
        check_shapes(model_output, sample)?;
        let (Some(&level), Some(update)) = (self.levels.get(step), self.updates.get(step)) else {
            return Err(no_step(step));
        };
        let prediction = self.convert(level, model_output, sample)?;
        self.predictions.push_front(prediction.shallow_clone());
        self.predictions.truncate(Update::MAX_ORDER);
        let noise = if self.algorithm_type.adds_noise() { Some(need_noise(step, noise)?) } else { None };
        let prev_sample = update.apply(sample, self.predictions.make_contiguous(), noise)?;
        Ok(StepOutput { prev_sample, pred_original_sample: prediction })
    }
}

/// The order of a step: the first ones have too few before them, and the last ones may be told to have a lower one.
fn order(config: &DpmSolverConfig, step: usize, count: usize) -> usize {
    let is_short = config.lower_order_final && count < 15;
    let is_first_order_last = config.euler_at_final || is_short || config.final_sigmas_type == FinalSigmas::Zero;
    let limit = match count - step {
        1 if is_first_order_last => 1,
        2 if is_short => 2,
        _ => Update::MAX_ORDER,
    };
    (config.solver_order as usize).min(step + 1).min(limit)
}

/// The timestep of each step, whole, and its σ, with the one at which the last step ends.
fn schedule(
    config: &DpmSolverConfig,
    alphas_cumprod: &[f32],
    table: &SigmaTable,
    steps: usize,
) -> (Vec<f64>, Vec<f32>) {
    let keys = config.respacing();
    let (timesteps, mut sigmas) = match keys.respacing() {
        Some(respacing) => {
            let range = (f64::from(table.last()), f64::from(table.first()));
            let sigmas = keys.sigmas(respacing, range, table, steps);
            let rounds = respacing.rounds_timesteps() && config.beta_schedule != BetaSchedule::SquaredcosCapV2;
            let timestep_of = |&sigma: &f64| match table.timestep_of(sigma) {
                timestep if rounds => timestep.round_ties_even(),
                timestep => timestep.trunc(),
            };
            (sigmas.iter().map(timestep_of).collect(), sigmas)
        }
        None => {
            let timesteps = spread(config, steps, last_timestep(config, alphas_cumprod));
            let sigmas = timesteps.iter().map(|&timestep| table.at(timestep)).collect();
            (timesteps, sigmas)
        }
    };
    sigmas.push(match config.final_sigmas_type {
        FinalSigmas::Zero => 0.0,
        FinalSigmas::SigmaMin => f64::from(table.first()),
    });
    (timesteps, sigmas.into_iter().map(|sigma| sigma as f32).collect())
}

/// How many of the training timesteps have at least the signal-to-noise ratio that `lambda_min_clipped` asks for.
fn last_timestep(config: &DpmSolverConfig, alphas_cumprod: &[f32]) -> i64 {
    let lambda = |alpha: &f32| Level::log(alpha.sqrt()) - Level::log((1.0 - alpha).sqrt());
    let is_enough = |alpha: &f32| f64::from(lambda(alpha)) >= config.lambda_min_clipped;
    alphas_cumprod.partition_point(is_enough) as i64
}

/// The timesteps of a run, one of `last` on: steps that lead to timestep 0, which is no step of its own.
fn spread(config: &DpmSolverConfig, steps: usize, last: i64) -> Vec<f64> {
    let (all, train) = (steps + 1, config.num_train_timesteps as f64);
    let timesteps: Vec<f64> = match config.timestep_spacing {
        TimestepSpacing::Linspace => {
            linspace(0.0, last as f64 - 1.0, all).into_iter().map(f64::round_ties_even).collect()
        }
        TimestepSpacing::Leading => {
            let distance = last / all as i64;
            (0..all as i64).map(|index| (index * distance + config.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => {
            let timesteps = arange_down(last as f64, train / steps as f64);
            return timesteps.into_iter().map(|timestep| timestep.round_ties_even() - 1.0).collect();
        }
    };
    timesteps.into_iter().skip(1).rev().collect()
}
