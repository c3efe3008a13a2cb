//! The autoregressive prior against its definition, `scripts/emoji/autoregressive.py`.

use super::common::{Fixture, fixtures, relative_error};
use super::pipelines::OPTIONS;
use crate::files::Folder;
use crate::nn::prior::{AutoregressiveConfig, AutoregressivePrior, PriorKind, TextCondition};
use crate::pipeline::{Pipeline, Row, Settings};
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::precision::Precision;
use serde::Deserialize;
use std::iter::{repeat_n, zip};
use tch::{Kind, Tensor};

fn ids(tensor: &Tensor) -> Vec<i64> {
    Vec::<i64>::try_from(tensor.to_kind(Kind::Int64).flatten(0, -1)).unwrap()
}

/// Packed prompts, a token a row and step, give what the whole padded sequence gives. Rows share prompts, in any order.
#[test]
fn the_logits_of_given_tokens_are_those_of_the_whole_sequence() {
    let fixture = Fixture::open(&fixtures().join("autoregressive/module/prior.safetensors"));
    let config: AutoregressiveConfig = fixture.config();
    let prior = fixture.build(|weights| AutoregressivePrior::load(weights, &config));
    check_logits(&fixture, &prior, 1e-5);
    let tokens = ids(fixture.tensor("tokens"));
    fixture.assert_close("image_embeds", &prior.decode(&tokens).unwrap(), 1e-6);

    let checkpoint = Checkpoint::open_file(&Folder::from(fixture.path.parent().unwrap()), "prior.safetensors").unwrap();
    let fast = |precision: &Precision| precision.is_fast_on(OPTIONS.device);
    for precision in [Precision::Bf16, Precision::Int8].into_iter().filter(fast) {
        let placement = Placement { precision, ..OPTIONS };
        let prior = checkpoint.build("weights.", placement, |weights| AutoregressivePrior::load(weights, &config));
        check_logits(&fixture, &prior.unwrap(), 0.1);
    }
}

fn check_logits(fixture: &Fixture, prior: &AutoregressivePrior, tolerance: f64) {
    let lens = ids(&fixture.tensor("mask").sum_dim_intlist([1].as_slice(), false, Kind::Float));
    let states: Vec<Tensor> =
        zip(&lens, 0..).map(|(&len, row)| fixture.tensor("states").get(row).narrow(0, 0, len)).collect();
    let embeds = fixture.tensor("text_embeds").shallow_clone();
    let text = TextCondition { states: Tensor::cat(&states, 0), lens, positions: None, embeds };
    let (prefix, dot_product_logits) = prior.prefill(&text).unwrap();
    fixture.assert_close("dot_product_logits", &dot_product_logits, tolerance);

    let prompts = [3_usize, 0, 1, 2, 0];
    let index = Tensor::from_slice(&prompts.map(|prompt| prompt as i64));
    let of_rows = |name: &str| fixture.tensor(name).index_select(0, &index);
    let (tokens, expected) = (of_rows("tokens"), of_rows("logits"));
    let mut rows = prior.start(&prefix, &prompts).unwrap();
    let mut last = of_rows("dot_products");
    for place in 0..prior.config().num_tokens {
        let logits = prior.step(&mut rows, &ids(&last)).unwrap();
        let error = relative_error(&logits, &expected.select(1, place));
        assert!(error < tolerance, "token {place}: off by {error:.1e}");
        last = tokens.select(1, place);
    }
    assert!(prior.step(&mut rows, &ids(&last)).is_err(), "a token too many");
}

#[derive(Deserialize)]
struct Case {
    prompts: Vec<String>,
    negative_prompt: Option<String>,
    guidance_scale: f64,
    temperature: f64,
    seed: u64,
    samples_per_prompt: usize,
}

fn embed(pipeline: &mut Pipeline, rows: &[Row], settings: &Settings) -> Tensor {
    let embeds = pipeline.embed(rows, settings, &mut ()).unwrap().image;
    Tensor::from_slice(embeds.as_slice().unwrap()).reshape([rows.len() as i64, -1])
}

impl Case {
    /// Compares its embeddings with those of the reference. Another token would be off by far more.
    fn check(&self, pipeline: &mut Pipeline, expected: &Fixture, index: usize) {
        let settings =
            Settings { steps: 1, guidance_scale: self.guidance_scale, temperature: self.temperature, strength: None };
        let negative = self.negative_prompt.as_deref().unwrap_or_default();
        let prompts = self.prompts.iter().flat_map(|prompt| repeat_n(prompt, self.samples_per_prompt));
        let rows: Vec<Row> = zip(prompts, self.seed..).map(|(prompt, seed)| Row::new(prompt, negative, seed)).collect();
        let embeds = embed(pipeline, &rows, &settings);
        let path = expected.path.display();
        let error = relative_error(&embeds, expected.tensor(&format!("{index}.image_embeds")));
        assert!(error < 1e-5, "{path} case {index}: off by {error:.1e}");
        if let Some(negatives) = expected.get(&format!("{index}.negative_image_embeds")) {
            let seeds = (self.seed + rows.len() as u64..).take(rows.len());
            let rows: Vec<Row> = seeds.map(|seed| Row::new(negative, negative, seed)).collect();
            let error = relative_error(&embed(pipeline, &rows, &settings), negatives);
            assert!(error < 1e-5, "{path} case {index}: negative off by {error:.1e}");
        }
    }
}

#[test]
fn pipelines_draw_the_tokens_of_the_reference() {
    for name in ["small", "odd"] {
        let folder = fixtures().join("autoregressive").join(name);
        let expected = Fixture::open(&folder.join("expected.safetensors"));
        let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
        let mut pipeline = Pipeline::open(&folder, OPTIONS).unwrap();
        assert!(pipeline.kind() == PriorKind::Autoregressive && pipeline.scheduler_class().is_none());
        assert!(cases.len() >= 7);
        for keeps_text_encoder in [true, false] {
            pipeline.keep_text_encoder(keeps_text_encoder);
            for (index, case) in cases.iter().enumerate() {
                case.check(&mut pipeline, &expected, index);
            }
        }
    }
}

#[cfg(builtin_autoregressive)]
#[test]
fn the_builtin_prior_draws_the_tokens_of_the_reference() {
    use crate::pipeline::builtin::EMOJI_AR_MODEL;
    let expected = Fixture::open(&fixtures().join("builtin/autoregressive.safetensors"));
    let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
    let mut pipeline = Pipeline::open(Folder::builtin(&EMOJI_AR_MODEL), OPTIONS).unwrap();
    assert!(cases.len() >= 3);
    for (index, case) in cases.iter().enumerate() {
        case.check(&mut pipeline, &expected, index);
    }
}

/// One of several rows alone, and in another order.
#[test]
fn a_row_depends_on_its_prompt_and_seed_alone() {
    let mut pipeline = Pipeline::open(&fixtures().join("autoregressive/small"), OPTIONS).unwrap();
    for (guidance_scale, temperature) in [(1.0, 1.0), (4.0, 1.0), (3.0, 0.0)] {
        let settings = Settings { steps: 1, guidance_scale, temperature, strength: None };
        let rows = [("a red apple", 1), ("", 2), ("two cats and a dog", 3), ("a red apple", 4)];
        let rows = rows.map(|(prompt, seed)| Row::new(prompt, "blurry", seed));
        let together = embed(&mut pipeline, &rows, &settings);
        for (place, row) in rows.iter().enumerate() {
            assert_eq!(embed(&mut pipeline, &[*row], &settings).get(0), together.get(place as i64));
        }
        let reversed: Vec<Row> = rows.iter().rev().copied().collect();
        assert_eq!(embed(&mut pipeline, &reversed, &settings), together.flip([0]));
        // The seed decides, except at temperature 0.
        assert_eq!(together.get(0) == together.get(3), temperature == 0.0);
    }
}
