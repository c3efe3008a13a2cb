//! What is given beside prompts (conditions, learned tokens, noise, one generator for all rows, a decoder's negative
//! prompt) against diffusers, through the library's own face.

use super::common::{Fixture, fixtures, relative_error};
use crate::diffusion::noise::{BatchNoise, CallRow, NoiseSource};
use crate::rows::read_conditions;
use crate::{Conditions, EmbedOptions, Embeddings, Prior};
use ndarray::{Array2, Array3, s};
use serde::Deserialize;
use std::path::PathBuf;
use tch::{Device, Tensor};

#[derive(Debug, Deserialize)]
struct Case {
    prompts: Vec<String>,
    negative_prompt: Option<String>,
    decoder_negative_prompt: Option<String>,
    steps: usize,
    guidance_scale: f64,
    seed: u64,
    samples_per_prompt: usize,
    is_call: bool,
    /// 1: the file's conditions without the negative ones; 2: with them.
    conditions: usize,
    /// The number of rows of latents.
    latents: usize,
    inversions: Vec<(String, Option<String>)>,
}

fn folder() -> PathBuf {
    fixtures().join("given")
}

fn prior() -> Prior {
    Prior::open(fixtures().join("pipelines/kandinsky22")).unwrap()
}

fn to_array(tensor: &Tensor) -> Array2<f32> {
    let (rows, dim) = tensor.size2().unwrap();
    let values = Vec::<f32>::try_from(tensor.reshape(-1)).unwrap();
    Array2::from_shape_vec((rows as usize, dim as usize), values).unwrap()
}

fn to_tensor(array: &Array2<f32>) -> Tensor {
    let array = array.as_standard_layout();
    Tensor::from_slice(array.as_slice().unwrap()).reshape([array.nrows() as i64, -1])
}

/// The conditions in the fixture, with or without the negative ones.
fn conditions(has_negative: bool) -> Conditions {
    let (conditions, ..) = read_conditions(&folder().join("conditions.safetensors")).unwrap();
    if has_negative { conditions } else { conditions.without_negative() }
}

impl Case {
    fn embed(&self, latents: &Array2<f32>) -> Embeddings {
        let mut prior = prior();
        for (file, token) in &self.inversions {
            prior.add_textual_inversion(folder().join(file), token.as_deref()).unwrap();
        }
        let mut options = EmbedOptions::new()
            .steps(self.steps)
            .guidance_scale(self.guidance_scale)
            .samples(self.samples_per_prompt)
            .negative_image_embeds(true)
            .text_embeds(true);
        options = if self.is_call { options.one_generator(self.seed) } else { options.seed(self.seed) };
        if let Some(prompt) = &self.negative_prompt {
            options = options.negative_prompt(prompt);
        }
        if let Some(prompt) = &self.decoder_negative_prompt {
            options = options.decoder_negative_prompt(prompt);
        }
        if self.latents > 0 {
            options = options.latents(latents.slice(s![..self.latents, ..]).to_owned());
        }
        match self.conditions {
            0 => prior.embed(&self.prompts, &options).unwrap(),
            kind => prior.embed_conditions(conditions(kind == 2), &options, &mut ()).unwrap(),
        }
    }
}

#[test]
fn what_is_given_has_the_embeddings_of_diffusers() {
    let expected = Fixture::open(&folder().join("expected.safetensors"));
    let latents = to_array(expected.tensor("latents"));
    let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
    for (index, case) in cases.iter().enumerate() {
        let Embeddings { image_embeds, negative_image_embeds, text_embeds, .. } = case.embed(&latents);
        let arrays = [
            ("image_embeds", Some(image_embeds)),
            ("negative_image_embeds", negative_image_embeds),
            ("text_embeds", text_embeds),
        ];
        for (name, found) in arrays {
            let expected = expected.tensor(&format!("{index}.{name}"));
            let error = relative_error(&to_tensor(&found.unwrap()), expected);
            assert!(error < 1e-4, "{index}: {name} off by {error:.1e} in {case:?}");
        }
    }
    assert!(cases.len() >= 18, "only {} cases", cases.len());
}

#[test]
fn a_calls_noise_is_drawn_for_all_rows_at_once() {
    let fixture = Fixture::open(&folder().join("expected.safetensors"));
    let mut checked = 0;
    for name in fixture.names().filter(|name| name.starts_with("call.")) {
        let expected = fixture.tensor(name);
        let (_, rows, dim) = expected.size3().unwrap();
        let seed = name.split('.').nth(1).unwrap().parse().unwrap();
        let source = |row: i64, calls_before| {
            let call = Some(CallRow { row: row as usize, rows: rows as usize, calls_before });
            NoiseSource { seed, given: None, call }
        };
        // In another order, and not all of them: which rows share a batch does not matter.
        let order: Vec<i64> = (0..rows).rev().step_by(2).collect();
        let sources: Vec<NoiseSource> = order.iter().map(|row| source(*row, 0)).collect();
        let noise = BatchNoise::draw(&sources, dim, 2, Device::Cpu).unwrap();
        let order = Tensor::from_slice(&order);
        for (draw, found) in [&noise.latents, &noise.steps[0], &noise.steps[1]].into_iter().enumerate() {
            assert_eq!(found, &expected.select(0, draw as i64).index_select(0, &order), "{name} draw {draw}");
        }
        // A second call goes on where the first one has ended.
        let second = BatchNoise::draw(&[source(rows - 1, 2)], dim, 0, Device::Cpu).unwrap();
        assert_eq!(second.latents, expected.select(0, 2).narrow(0, rows - 1, 1), "{name}");
        checked += 1;
    }
    assert!(checked >= 6, "only {checked} calls");
}

#[test]
fn hidden_tokens_do_not_matter() {
    let given = conditions(false);
    let options = EmbedOptions::new().steps(3).guidance_scale(1.0);
    let mut prior = prior();
    let expected = prior.embed_conditions(given.clone(), &options, &mut ()).unwrap();
    let (embeds, mut states, mask) = given.into_arrays();
    for ((row, token), counts) in mask.indexed_iter() {
        if !counts {
            states.slice_mut(s![row, token, ..]).fill(1e3);
        }
    }
    let changed = Conditions::new(embeds, states, mask).unwrap();
    let found = prior.embed_conditions(changed, &options, &mut ()).unwrap();
    assert_eq!(found.image_embeds, expected.image_embeds);
}

#[test]
fn conditions_that_do_not_fit_are_refused() {
    let make = |rows: [usize; 3], tokens: [usize; 2]| {
        let states = Array3::zeros((rows[1], tokens[0], 16));
        Conditions::new(Array2::zeros((rows[0], 16)), states, Array2::from_elem((rows[2], tokens[1]), true))
    };
    let error = |result: crate::Result<Conditions>| result.unwrap_err().to_string();
    assert!(error(make([2, 3, 2], [77, 77])).contains("text_embeds has 2 rows and text_encoder_hidden_states 3"));
    assert!(error(make([2, 2, 1], [77, 77])).contains("text_mask 1"));
    assert!(error(make([2, 2, 2], [77, 76])).contains("77 tokens a row and text_mask 76"));
    let good = || make([2, 2, 2], [77, 77]).unwrap();
    assert!(error(good().with_negative(make([3, 3, 3], [77, 77]).unwrap())).contains("3 rows, and must have 2"));
    assert!(good().with_negative(make([1, 1, 1], [77, 77]).unwrap()).is_ok());
    assert!(error(good().with_negative(make([1, 1, 1], [20, 20]).unwrap())).contains("other sizes"));
    let few_tokens = make([2, 2, 2], [20, 20]).unwrap();
    let error = prior().embed_conditions(few_tokens, &EmbedOptions::new(), &mut ()).unwrap_err().to_string();
    assert!(error.contains("20 tokens a row, and this model takes 77"), "{error}");
}
