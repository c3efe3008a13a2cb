//! Which of the training timesteps a run takes (table 2 of arXiv 2305.08891).

use super::levels::impossible_steps;
use super::numpy::{arange_down, linspace};
use crate::{Error, Result};
use serde::Deserialize;

/// How the timesteps of a run lie among those of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// From the last to the first.
    Linspace,
    /// From the first on, at whole distances.
    Leading,
    /// From the last on, downwards.
    Trailing,
}

/// A scheduler's keys on its timesteps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spacing {
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) num_train_timesteps: i64,
    /// What is added to the timesteps of [`TimestepSpacing::Leading`].
    pub(super) steps_offset: i64,
}

/// The [`Spacing`] of a configuration, as [`betas`](super::betas::betas).
macro_rules! spacing {
    ($config:expr) => {
        $crate::diffusion::spacing::Spacing {
            timestep_spacing: $config.timestep_spacing,
            num_train_timesteps: $config.num_train_timesteps,
            steps_offset: $config.steps_offset,
        }
    };
}
pub(super) use spacing;

impl Spacing {
    /// # Errors
    /// [`Error::Config`] if the offset leads out of the training.
    pub(super) fn validate(self) -> Result<()> {
        let (offset, train) = (self.steps_offset, self.num_train_timesteps);
        if (0..train).contains(&offset) {
            return Ok(());
        }
        Err(Error::key("steps_offset", format!("is {offset}, it must be between 0 and {}", train - 1)))
    }

    /// See [`SchedulerConfig::max_steps`](super::scheduler::SchedulerConfig::max_steps), of [`Spacing::whole`].
    pub(super) fn max_steps(self) -> usize {
        let train = usize::try_from(self.num_train_timesteps).unwrap_or(0);
        (1..=train).take_while(|&steps| self.first_timestep(steps) < self.num_train_timesteps).last().unwrap_or(0)
    }

    /// The timesteps of DDPM and DDIM, the noisiest first: whole, and as many as steps.
    ///
    /// Of [`TimestepSpacing::Trailing`], a rounding error makes diffusers run one more timestep, -1, for 62 of the 1000
    /// step counts.
    ///
    /// # Errors
    /// [`Error::Option`] if there are no steps, more than training timesteps, or `steps_offset` leads beyond those.
    pub(super) fn whole(self, steps: usize) -> Result<Vec<f64>> {
        let train = self.num_train_timesteps as usize;
        if !(1..=train).contains(&steps) {
            return Err(impossible_steps(steps, train));
        }
        let first = self.first_timestep(steps);
        if first >= train as i64 {
            let (offset, last) = (self.steps_offset, train - 1);
            let reason = format!(
                "{steps} steps are not possible: with the scheduler's steps_offset of {offset} they start at timestep \
                 {first}, and the last is {last}; take fewer"
            );
            return Err(Error::Option { option: "steps", reason });
        }
        let timesteps = self.spread(steps, train as f64).into_iter().map(f64::round_ties_even);
        Ok(timesteps.take(steps).collect())
    }

    /// The timesteps of Euler's and Heun's methods, the noisiest first: rounded to float32, but not to whole numbers.
    pub(super) fn fractional(self, steps: usize) -> Vec<f32> {
        self.spread(steps, self.num_train_timesteps as f64).into_iter().map(|timestep| timestep as f32).collect()
    }

    /// The timesteps of a run, where the training's first `train` are there to choose from.
    fn spread(self, steps: usize, train: f64) -> Vec<f64> {
        let mut timesteps = match self.timestep_spacing {
            TimestepSpacing::Linspace => linspace(0.0, train - 1.0, steps),
            TimestepSpacing::Leading => {
                let distance = self.num_train_timesteps / steps.max(1) as i64;
                (0..steps as i64).map(|index| (index * distance + self.steps_offset) as f64).collect()
            }
            TimestepSpacing::Trailing => {
                let timesteps = arange_down(train, train / steps as f64);
                return timesteps.into_iter().map(|timestep| timestep.round_ties_even() - 1.0).collect();
            }
        };
        timesteps.reverse();
        timesteps
    }

    /// The noisiest timestep of a run, which `steps_offset` may put beyond the last training timestep.
    fn first_timestep(self, steps: usize) -> i64 {
        let train = self.num_train_timesteps;
        match self.timestep_spacing {
            TimestepSpacing::Linspace if steps == 1 => 0,
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => train - 1,
            TimestepSpacing::Leading => (steps as i64 - 1) * (train / steps as i64) + self.steps_offset,
        }
    }
}
