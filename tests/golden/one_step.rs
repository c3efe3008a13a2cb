//! One-step priors against what the same arithmetic gives with diffusers' blocks.

use super::common::{Fixture, fixtures, relative_error};
use super::pipelines::{Case, OPTIONS};
use crate::config;
use crate::diffusion::noise::RowNoise;
use crate::files::Folder;
use crate::nn::prior::{PriorConfig, PriorTransformer, TextCondition};
use crate::pipeline::Pipeline;
use crate::weights::checkpoint::Checkpoint;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

fn folder(name: &str) -> PathBuf {
    fixtures().join("one_step").join(name)
}

#[test]
fn pipelines_give_the_embeddings_of_eclipse() {
    let mut checked = 0;
    for name in ["kandinsky22", "karlo"] {
        let expected = Fixture::open(&folder(name).join("expected.safetensors"));
        let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
        let mut pipeline = Pipeline::open(&folder(name), OPTIONS).unwrap();
        assert!(pipeline.is_one_step() && pipeline.scheduler_class().is_none());
        for (index, case) in cases.iter().enumerate() {
            case.check(&mut pipeline, &expected, index);
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} cases");
}

/// Any lengths, order and repetition of prompts give what the whole sequence gives.
#[test]
fn packed_prompts_give_what_the_whole_sequence_gives() {
    for name in ["kandinsky22", "karlo"] {
        let prior = Folder::from(folder(name).join("prior").as_path());
        let config: PriorConfig = config::read(&prior, "config.json").unwrap();
        let checkpoint = Checkpoint::open_folder(&prior).unwrap();
        let prior = checkpoint.build("", OPTIONS, |weights| PriorTransformer::load(weights, &config)).unwrap();
        let random =
            |seed: u64, size: &[i64]| RowNoise::draw(seed, size.iter().product(), 0).unwrap().latents.reshape(size);
        let (dim, lens) = (config.embedding_dim, [1, config.num_embeddings, 2, 5]);
        let (states, embeds) = (random(0, &[4, config.num_embeddings, dim]), random(1, &[4, dim]));
        let packed: Vec<Tensor> = lens.iter().zip(0..).map(|(&len, row)| states.get(row).narrow(0, 0, len)).collect();
        let text = TextCondition {
            states: Tensor::cat(&packed, 0),
            lens: lens.to_vec(),
            positions: None,
            embeds: embeds.shallow_clone(),
        };
        let prompts = [3, 0, 0, 1, 2, 3];
        let noise = random(2, &[prompts.len() as i64, dim]);
        let packed = prior.predict(&text, &prompts, &noise).unwrap();

        let index = Tensor::from_slice(&prompts.map(|prompt| prompt as i64));
        let places = Tensor::arange(config.num_embeddings, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let mask = places.less_tensor(&Tensor::from_slice(&lens).unsqueeze(1)).index_select(0, &index);
        let (embeds, states) = (embeds.index_select(0, &index), states.index_select(0, &index));
        let whole = prior.forward(&noise, None, &embeds, Some(&states), Some(&mask)).unwrap();
        let error = relative_error(&packed, &whole.predicted_image_embedding);
        assert!(error < 1e-5, "{name}: off by {error:.1e}");
    }
}
