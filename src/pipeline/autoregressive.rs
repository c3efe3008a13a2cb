//! The rest of the story for an autoregressive prior: an image embedding token by token, each decided by a normal
//! number of the row's own.
//!
//! Source: section 2.2 of the unCLIP paper (arXiv 2204.06125); `AutoregressivePrior.sample` in
//! `scripts/emoji/autoregressive.py`.

use super::progress::{Progress, check_cancelled};
use super::request::{Row, Settings};
use crate::Result;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::noise::{BatchNoise, NoiseSource};
use crate::nn::prior::{AutoregressivePrior, TextCondition};
use tch::{Device, Kind, Tensor};

/// The image embeddings of rows, `(rows, embedding_dim)`, float32. A row with a logit that is not finite is NaN.
///
/// `prompt_of_row` has the prompt of each row, as an index into `text`, and `negative_of_row` the one that guidance, if
/// it is on, leads the row away from.
///
/// # Errors
/// If memory runs out, and [`crate::Error::Cancelled`].
pub(super) fn draw(
    prior: &AutoregressivePrior,
    settings: &Settings,
    text: &TextCondition,
    prompt_of_row: &[usize],
    negative_of_row: &[usize],
    rows: &[Row],
    progress: &mut dyn Progress,
) -> Result<Tensor> {
    let num_tokens = prior.config().num_tokens as usize;
    let guidance = Guidance::new(settings.guidance_scale);
    let mut chance = Chance::of(rows, num_tokens)?;
    let (prefix, dot_products) = prior.prefill(text)?;
    let prompts: Vec<i64> = prompt_of_row.iter().map(|&prompt| prompt as i64).collect();
    let dot_products = dot_products.f_index_select(0, &Tensor::f_from_slice(&prompts)?.f_to_device(prior.device())?)?;
    let mut last = chance.dot_products(&dot_products, prior.config().dot_product_quantile(), settings.temperature)?;

    let mut conditional = prior.start(&prefix, prompt_of_row)?;
    let mut unconditional = if guidance.is_on() { Some(prior.start(&prefix, negative_of_row)?) } else { None };
    let mut buckets = vec![0; rows.len() * num_tokens];
    for place in 0..num_tokens {
        let mut logits = prior.step(&mut conditional, &last)?.f_to_kind(Kind::Float)?;
        if let Some(unconditional) = &mut unconditional {
            // Without a caption there is no dot product with it.
            let known = if place == 0 { vec![prior.unknown_dot_product(); rows.len()] } else { last };
            logits = guidance.combine(&prior.step(unconditional, &known)?.f_to_kind(Kind::Float)?, &logits)?;
        }
        last = chance.buckets(&logits, place, settings.temperature)?;
        last.iter().zip(buckets[place..].iter_mut().step_by(num_tokens)).for_each(|(token, bucket)| *bucket = *token);
        progress.step(place + 1, num_tokens);
        check_cancelled(progress)?;
    }
    chance.mark(prior.decode(&buckets)?)
}

/// What decides the tokens of rows.
struct Chance {
    /// For each row, a number between 0 and 1 for the dot product, and one for each bucket.
    uniforms: Vec<Vec<f64>>,
    /// Whether all logits of each row so far were finite.
    is_finite: Vec<bool>,
}

impl Chance {
    /// Draws a normal number for each token of each row, as noise of this length, and takes its place in the normal
    /// distribution.
    fn of(rows: &[Row], num_tokens: usize) -> Result<Self> {
        let sources: Vec<NoiseSource> = rows.iter().map(|row| row.noise).collect();
        let normals = BatchNoise::draw(&sources, num_tokens as i64 + 1, 0, Device::Cpu)?.latents;
        let uniforms = rows_of(&normals.f_to_kind(Kind::Double)?.f_special_ndtr()?)?;
        Ok(Self { is_finite: vec![true; uniforms.len()], uniforms })
    }

    /// A dot product for each row, from the part of its distribution above a quantile. At temperature 0 it is the
    /// median of that part; any other changes nothing.
    fn dot_products(&mut self, logits: &Tensor, quantile: f64, temperature: f64) -> Result<Vec<i64>> {
        let share = |uniforms: &[f64]| if temperature > 0.0 { uniforms[0] } else { 0.5 };
        self.tokens(logits, &|uniforms| quantile + (1.0 - quantile) * share(uniforms), 1.0)
    }

    /// A bucket for each row.
    fn buckets(&mut self, logits: &Tensor, place: usize, temperature: f64) -> Result<Vec<i64>> {
        self.tokens(logits, &|uniforms| uniforms[place + 1], temperature)
    }

    /// The tokens that numbers decide, one a row of `logits` `(rows, tokens)`.
    fn tokens(&mut self, logits: &Tensor, uniform: &dyn Fn(&[f64]) -> f64, temperature: f64) -> Result<Vec<i64>> {
        let of_rows = rows_of(logits)?;
        let rows = of_rows.iter().zip(&self.uniforms).zip(&mut self.is_finite);
        let token = rows.map(|((logits, uniforms), is_finite)| {
            *is_finite &= logits.iter().all(|logit| logit.is_finite());
            if *is_finite { choose(logits, uniform(uniforms), temperature) as i64 } else { 0 }
        });
        Ok(token.collect())
    }

    /// Makes those rows of `embeds` `(rows, dim)` NaN whose tokens mean nothing.
    fn mark(&self, embeds: Tensor) -> Result<Tensor> {
        if self.is_finite.iter().all(|is_finite| *is_finite) {
            return Ok(embeds);
        }
        let marks: Vec<f32> = self.is_finite.iter().map(|is_finite| if *is_finite { 0.0 } else { f32::NAN }).collect();
        let marks = Tensor::f_from_slice(&marks)?.f_to_device(embeds.device())?;
        Ok(embeds.f_add(&marks.f_unsqueeze(1)?)?)
    }
}

/// The index of the logit that a number between 0 and 1 decides: the first one whose cumulative probability is above
/// it. At temperature 0 it is the largest logit.
fn choose(logits: &[f64], uniform: f64, temperature: f64) -> usize {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if temperature == 0.0 {
        return logits.iter().position(|logit| *logit == largest).unwrap_or(0);
    }
    let weights = logits.iter().map(|logit| ((logit - largest) / temperature).exp());
    let sums: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    let wanted = uniform * sums.last().copied().unwrap_or_default();
    sums.iter().position(|sum| *sum > wanted).unwrap_or(logits.len().saturating_sub(1))
}

/// The rows of a tensor, in float64.
fn rows_of(tensor: &Tensor) -> Result<Vec<Vec<f64>>> {
    let (count, width) = tensor.size2()?;
    let values = Vec::<f64>::try_from(tensor.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?.f_flatten(0, 1)?)?;
    Ok((0..count as usize).map(|row| values[row * width as usize..][..width as usize].to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_with_their_probabilities() {
        let logits = [0.0, 2.0, -1.0, 1.0];
        for temperature in [0.5, 1.0, 4.0] {
            let count = 10_000;
            let mut found = [0.0; 4];
            for place in 0..count {
                found[choose(&logits, (f64::from(place) + 0.5) / f64::from(count), temperature)] += 1.0;
            }
            let sum: f64 = logits.iter().map(|logit: &f64| (logit / temperature).exp()).sum();
            for (logit, found) in logits.iter().zip(found) {
                let expected = (logit / temperature).exp() / sum;
                assert!((found / f64::from(count) - expected).abs() < 2e-4, "{temperature}: {found} {expected}");
            }
        }
    }

    #[test]
    fn the_coldest_takes_the_largest_and_the_ends_are_inside() {
        let logits = [0.5, 3.0, 3.0, -2.0];
        for uniform in [0.0, 0.3, 1.0] {
            assert_eq!(choose(&logits, uniform, 0.0), 1);
        }
        assert_eq!(choose(&logits, 0.4, f64::MIN_POSITIVE), 1);
        assert_eq!(choose(&logits, 0.6, f64::MIN_POSITIVE), 2);
        assert_eq!((choose(&logits, 0.0, 1.0), choose(&logits, 1.0, 1.0)), (0, 3));
        assert_eq!(choose(&[-1e300, 1e300], 0.4, f64::MAX), 0);
        assert_eq!(choose(&[1.0], 0.7, 1.0), 0);
    }
}
