//! Whole pipelines against diffusers, in every layout that a prior comes in.

use super::common::{Fixture, fixtures, relative_error};
use crate::files::Folder;
use crate::pipeline::builtin::EMOJI_MODEL;
use crate::pipeline::{Pipeline, Row, Settings};
use crate::weights::checkpoint::Placement;
use crate::weights::precision::Precision;
use serde::Deserialize;
use std::path::Path;
use tch::{Device, Tensor};

#[derive(Deserialize)]
pub struct Case {
    prompts: Vec<String>,
    negative_prompt: Option<String>,
    steps: usize,
    guidance_scale: f64,
    seed: u64,
    samples_per_prompt: usize,
}

pub const OPTIONS: Placement = Placement { device: Device::Cpu, precision: Precision::F32 };

fn open(name: &str, options: Placement) -> Pipeline {
    Pipeline::open(&fixtures().join("pipelines").join(name), options).unwrap()
}

fn embed(pipeline: &mut Pipeline, rows: &[Row], settings: &Settings) -> Tensor {
    let embeds = pipeline.embed(rows, settings, &mut ()).unwrap().image;
    Tensor::from_slice(embeds.as_slice().unwrap()).reshape([rows.len() as i64, -1])
}

impl Case {
    pub fn image_rows(&self) -> Vec<Row<'_>> {
        let negative_prompt = self.negative_prompt.as_deref().unwrap_or_default();
        let prompts = self.prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, self.samples_per_prompt));
        prompts.zip(self.seed..).map(|(prompt, seed)| Row::new(prompt, negative_prompt, seed)).collect()
    }

    pub fn settings(&self) -> Settings {
        Settings { steps: self.steps, guidance_scale: self.guidance_scale, ..Settings::default() }
    }

    pub fn check(&self, pipeline: &mut Pipeline, expected: &Fixture, index: usize) {
        self.check_as(pipeline, expected, &index.to_string());
    }

    /// Compares with the tensors whose names begin with `index`.
    pub fn check_as(&self, pipeline: &mut Pipeline, expected: &Fixture, index: &str) {
        let rows = self.image_rows();
        let place = || format!("{} case {index}", expected.path.display());
        if let Some(image_embeds) = expected.get(&format!("{index}.image_embeds")) {
            let error = relative_error(&embed(pipeline, &rows, &self.settings()), image_embeds);
            assert!(error < 1e-4, "{}: image_embeds off by {error:.1e}", place());
        }
        if let Some(negative) = expected.get(&format!("{index}.negative_image_embeds")) {
            let actual = match &self.negative_prompt {
                Some(prompt) => {
                    let seeds = self.seed + rows.len() as u64..;
                    let row = |seed| Row::new(prompt, prompt, seed);
                    let rows: Vec<Row> = seeds.take(rows.len()).map(row).collect();
                    embed(pipeline, &rows, &self.settings())
                }
                None => {
                    let zero = pipeline.zero_embed().unwrap().expect("the model has an image encoder");
                    Tensor::from_slice(zero.as_slice().unwrap()).expand([rows.len() as i64, -1], false)
                }
            };
            let error = relative_error(&actual, negative);
            assert!(error < 1e-4, "{}: negative_image_embeds off by {error:.1e}", place());
        }
    }
}

#[test]
fn every_layout_gives_the_embeddings_of_diffusers() {
    let mut checked = 0;
    for entry in fixtures().join("pipelines").read_dir().unwrap() {
        let folder = entry.unwrap().path();
        let expected = Fixture::open(&folder.join("expected.safetensors"));
        let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
        let mut pipeline = Pipeline::open(&folder, OPTIONS).unwrap();
        for (index, case) in cases.iter().enumerate() {
            case.check(&mut pipeline, &expected, index);
            checked += 1;
        }
    }
    assert!(checked >= 20, "only {checked} cases");
}

/// The model inside the program, and its folder, whose image encoder the program does without.
#[test]
fn the_builtin_model_gives_the_embeddings_of_diffusers() {
    let expected = Fixture::open(&fixtures().join("builtin/expected.safetensors"));
    let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji");
    for model in [Folder::builtin(&EMOJI_MODEL), Folder::from(&folder)] {
        let mut pipeline = Pipeline::open(model, OPTIONS).unwrap();
        for (index, case) in cases.iter().enumerate() {
            case.check(&mut pipeline, &expected, index);
        }
    }
    assert!(cases.len() >= 4);
}

fn kandinsky22() -> Pipeline {
    open("kandinsky22", OPTIONS)
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_its_place() {
    let mut pipeline = kandinsky22();
    let settings = Settings { steps: 7, ..Settings::default() };
    let prompts =
        ["a red apple", "", "two cats", "a very long caption of a house by the sea", "a red apple", "x", "dog!"];
    let rows: Vec<Row> = prompts
        .iter()
        .zip(40..)
        .map(|(prompt, seed)| Row::new(prompt, if seed % 2 == 0 { "" } else { "blurry" }, seed))
        .collect();
    let alone: Vec<Tensor> = rows.iter().map(|row| embed(&mut pipeline, &[*row], &settings)).collect();
    let alone = Tensor::cat(&alone, 0);
    for batch_size in [3, 7] {
        let parts: Vec<Tensor> = rows.chunks(batch_size).map(|rows| embed(&mut pipeline, rows, &settings)).collect();
        let error = relative_error(&Tensor::cat(&parts, 0), &alone);
        assert!(error < 1e-5, "batches of {batch_size}: off by {error:.1e}");
    }
    let backwards: Vec<Row> = rows.iter().rev().copied().collect();
    let error = relative_error(&embed(&mut pipeline, &backwards, &settings).flip([0]), &alone);
    assert!(error < 1e-5, "backwards: off by {error:.1e}");
}

#[test]
fn in_lower_precisions_a_row_does_not_depend_on_its_batch_at_all() {
    let settings = Settings { steps: 4, ..Settings::default() };
    let rows: Vec<Row> = ["a red apple", "two cats", "", "a house by the sea", "x"]
        .into_iter()
        .zip(7..)
        .map(|(prompt, seed)| Row::new(prompt, "", seed))
        .collect();
    let precisions = [Precision::Bf16, Precision::Int8];
    for precision in precisions.into_iter().filter(|precision| precision.is_fast_on(Device::Cpu)) {
        let options = Placement { device: Device::Cpu, precision };
        let together = embed(&mut open("kandinsky22", options), &rows, &settings);
        for (row, place) in rows.iter().zip(0..) {
            // A model loaded anew has no cache of the negative prompt yet.
            let alone = embed(&mut open("kandinsky22", options), &[*row], &settings);
            assert_eq!(alone, together.narrow(0, place, 1), "{precision:?}, row {place}");
        }
    }
}

#[test]
fn lower_precisions_come_near() {
    let settings = Settings { steps: 10, ..Settings::default() };
    let rows = [Row::new("a red apple", "", 3)];
    let exact = embed(&mut kandinsky22(), &rows, &settings);
    for precision in [Precision::Bf16, Precision::F16, Precision::Int8] {
        let options = Placement { device: Device::Cpu, precision };
        let near = embed(&mut open("kandinsky22", options), &rows, &settings);
        let cosine = Tensor::cosine_similarity(&near, &exact, 1, 1e-8).double_value(&[0]);
        assert!(cosine > 0.99, "{precision:?}: cosine {cosine}");
    }
}
