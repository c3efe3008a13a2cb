//! The denoising loop.

use super::guidance::Guidance;
use super::noise::BatchNoise;
use super::scheduler::Scheduler;
use crate::Result;
use crate::nn::prior::{Branch, Prefix, PriorTransformer, StaticCache, TimestepCache};
use tch::{Device, Kind, Tensor};

/// Timestep tokens that are run and cached at once. More do not run faster, and each takes memory in every block.
pub const MAX_TIMESTEP_TOKENS: usize = 512;

/// The number of steps whose timestep tokens are cached at once, for so many prompts.
pub fn chunk_len(prompts: usize) -> usize {
    (MAX_TIMESTEP_TOKENS / prompts.max(1)).max(1)
}

/// Where the keys and values of a batch's rows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheLayout {
    /// In packed sequences, which the CPU's kernel reads.
    Packed,
    /// In a [`StaticCache`].
    Static,
}

impl CacheLayout {
    /// The one that is faster on a device.
    pub fn of(device: Device) -> Self {
        if device == Device::Cpu { Self::Packed } else { Self::Static }
    }
}

/// The condition of a batch's rows, in one branch of the guidance.
#[derive(Debug, Clone, Copy)]
pub struct Condition<'a> {
    /// The prompts' caches.
    pub prefix: &'a Prefix,
    /// Each row's prompt, an index into the prefix.
    pub prompts: &'a [usize],
    /// The caches of the first timesteps of the run; those of later ones are computed when they are reached.
    pub timesteps: &'a TimestepCache,
}

/// Draws image embeddings from a prior.
#[derive(Debug, Clone, Copy)]
pub struct Sampler<'a> {
    /// The network.
    pub prior: &'a PriorTransformer,
    /// How far embeddings are pushed towards their prompts.
    pub guidance: Guidance,
    /// Where keys and values lie while it samples.
    pub layout: CacheLayout,
}

impl Sampler<'_> {
    /// Denoises a batch of rows to their image embeddings, `(rows, clip_embed_dim)`, float32.
    ///
    /// The loop is that of diffusers 0.42 `pipelines/stable_diffusion/pipeline_stable_unclip.py`, which works with every
    /// scheduler; UnCLIP's takes the next timestep too, as in `pipelines/kandinsky2_2/pipeline_kandinsky2_2_prior.py`.
    ///
    /// `unconditional` is the condition of the negative prompts, unused where guidance is off. `after_step` is called once
    /// a step.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out, and those of `after_step`, which end the loop.
    pub fn sample(
        self,
        scheduler: &mut dyn Scheduler,
        conditional: Condition,
        unconditional: Option<Condition>,
        noise: &BatchNoise,
        after_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        // The unconditional rows come first, as in diffusers.
        let conditions: Vec<Condition> =
            unconditional.filter(|_| self.guidance.is_on()).into_iter().chain([conditional]).collect();
        let mut windows: Vec<Window> = conditions.iter().map(|&condition| Window::new(condition)).collect();
        let mut latents = match scheduler.init_noise_sigma() {
            1.0 => noise.latents.shallow_clone(),
            sigma => noise.latents.f_mul_scalar(sigma)?,
        };
        let timesteps = scheduler.timesteps().get(noise.first_step..).unwrap_or_default().to_vec();
        let mut cache: Option<StaticCache> = None;
        for step in 0..timesteps.len() {
            let mut moved = false;
            for window in &mut windows {
                moved |= window.move_to(step, self.prior, &timesteps)?;
            }
            let branches: Vec<Branch> = windows.iter().map(|window| window.branch(step)).collect();
            match &mut cache {
                Some(cache) if moved => cache.move_to(&branches)?,
                None if self.layout == CacheLayout::Static => cache = Some(StaticCache::new(&branches)?),
                _ => {}
            }
            let scaled = scheduler.scale_model_input(noise.first_step + step, &latents)?;
            let input = Tensor::f_cat(&vec![&scaled; branches.len()], 0)?;
            let predicted = match &mut cache {
                Some(cache) => self.prior.step_static(cache, &input)?,
                None => self.prior.step(&branches, &input)?,
            };
            let predicted = guide(self.guidance, predicted.f_to_kind(Kind::Float)?)?;
            let noise_of_step = noise.steps.get(step);
            latents = scheduler.step(noise.first_step + step, &predicted, &latents, noise_of_step)?.prev_sample;
            after_step()?;
        }
        Ok(self.prior.post_process_latents(&latents)?.f_to_kind(Kind::Float)?)
    }
}

/// A condition, and the window of its timesteps that is cached.
struct Window<'a> {
    condition: Condition<'a>,
    /// Once the first timesteps are done: the first step of the window, and its cache.
    moved: Option<(usize, TimestepCache)>,
}

impl<'a> Window<'a> {
    fn new(condition: Condition<'a>) -> Self {
        Self { condition, moved: None }
    }

    fn cache(&self) -> (usize, &TimestepCache) {
        self.moved.as_ref().map_or((0, self.condition.timesteps), |(first, cache)| (*first, cache))
    }

    /// Moves on to the window that `step` is in; whether it is another one.
    fn move_to(&mut self, step: usize, prior: &PriorTransformer, timesteps: &[f64]) -> Result<bool> {
        let (first, cache) = self.cache();
        if step < first + cache.steps() {
            return Ok(false);
        }
        // Freed before the new one is allocated.
        self.moved = None;
        let end = timesteps.len().min(step + chunk_len(self.condition.prefix.len()));
        self.moved = Some((step, prior.prefill_timesteps(self.condition.prefix, &timesteps[step..end])?));
        Ok(true)
    }

    fn branch(&self, step: usize) -> Branch<'_> {
        let (first, timesteps) = self.cache();
        let Condition { prefix, prompts, .. } = self.condition;
        Branch { prefix, timesteps, step: step - first, prompts }
    }
}

/// Combines the two halves of a prediction if guidance is on.
fn guide(guidance: Guidance, predicted: Tensor) -> Result<Tensor> {
    if !guidance.is_on() {
        return Ok(predicted);
    }
    let rows = predicted.size()[0] / 2;
    guidance.combine(&predicted.f_narrow(0, 0, rows)?, &predicted.f_narrow(0, rows, rows)?)
}
