//! The prior against diffusers, over every option of its configuration, whole and with its cache.

use super::common::{Fixture, files_in};
use crate::diffusion::noise::RowNoise;
use crate::nn::prior::{Branch, PriorConfig, PriorTransformer, StaticCache, TextCondition};
use tch::{Device, Kind, Tensor};

#[test]
fn priors_match() {
    let paths = files_in("prior");
    assert!(paths.len() >= 10, "only {} configurations", paths.len());
    for path in paths {
        let fixture = Fixture::open(&path);
        let config: PriorConfig = fixture.config();
        let prior = fixture.build(|weights| PriorTransformer::load(weights, &config));
        let output = prior
            .forward(
                fixture.tensor("inputs.hidden_states"),
                Some(fixture.tensor("inputs.timestep")),
                fixture.tensor("inputs.proj_embedding"),
                fixture.get("inputs.encoder_hidden_states"),
                fixture.get("inputs.attention_mask"),
            )
            .unwrap_or_else(|error| panic!("{}: {error:#}", fixture.name()));
        let predicted = output.predicted_image_embedding;
        fixture.assert_close("outputs.predicted_image_embedding", &predicted, 1e-5);
        let processed = prior.post_process_latents(&predicted).unwrap();
        fixture.assert_close("outputs.post_process_latents", &processed, 1e-5);
    }
}

/// How many text states each row of a mask `(rows, num_embeddings)` shows; `None` if they are not the first ones.
fn lens_of(mask: &Tensor) -> Option<Vec<i64>> {
    let rows = Vec::<Vec<i64>>::try_from(mask.to_kind(Kind::Int64)).unwrap();
    let is_prefix = |row: &Vec<i64>| row.windows(2).all(|pair| pair[0] >= pair[1]);
    rows.iter().all(is_prefix).then(|| rows.iter().map(|row| row.iter().sum()).collect())
}

/// Each row's text states without padding, one row after the other.
fn without_padding(states: &Tensor, lens: &[i64]) -> Tensor {
    let parts: Vec<Tensor> = lens.iter().zip(0..).map(|(&len, row)| states.get(row).narrow(0, 0, len)).collect();
    Tensor::cat(&parts, 0)
}

#[test]
fn steps_on_the_cache_match() {
    let mut checked = 0;
    for path in files_in("prior") {
        let fixture = Fixture::open(&path);
        let config: PriorConfig = fixture.config();
        let prior = fixture.build(|weights| PriorTransformer::load(weights, &config));
        let inputs = ["hidden_states", "proj_embedding", "encoder_hidden_states", "attention_mask"];
        let inputs = inputs.map(|name| fixture.get(&format!("inputs.{name}")));
        let [Some(hidden_states), Some(embeds), Some(states), Some(mask)] = inputs else { continue };
        let is_one_token = |tensor: &Tensor| tensor.dim() == 2;
        let (Some(lens), true) = (lens_of(mask), is_one_token(hidden_states) && is_one_token(embeds)) else { continue };
        if prior.check_cacheable().is_err() {
            continue;
        }
        let timesteps = Vec::<f64>::try_from(fixture.tensor("inputs.timestep").to_kind(Kind::Double)).unwrap();
        let embeds = embeds.shallow_clone();
        let text =
            TextCondition { states: without_padding(states, &lens), lens: lens.clone(), positions: None, embeds };
        let (prefix, cache) = prior.prefill(&text, &vec![timesteps.as_slice(); lens.len()]).unwrap();
        // The rows are at different timesteps: each is a branch of its own.
        let rows: Vec<usize> = (0..lens.len()).collect();
        let branch = |row: usize| Branch {
            prefix: &prefix,
            timesteps: &cache,
            step: row.min(timesteps.len() - 1),
            prompts: std::slice::from_ref(&rows[row]),
        };
        let branches: Vec<Branch> = rows.iter().map(|&row| branch(row)).collect();
        let predicted = prior.step(&branches, hidden_states).unwrap();
        fixture.assert_close("outputs.predicted_image_embedding", &predicted, 1e-5);
        let mut cache = StaticCache::new(&branches).unwrap();
        let predicted = prior.step_static(&mut cache, hidden_states).unwrap();
        fixture.assert_close("outputs.predicted_image_embedding", &predicted, 1e-5);
        checked += 1;
    }
    assert!(checked >= 8, "only {checked} configurations");
}

/// A property at random: any lengths, timesteps, order and repetition of prompts give what `forward` gives.
#[test]
fn steps_on_the_cache_match_forward_for_any_rows() {
    let fixture =
        Fixture::open(&files_in("prior").into_iter().find(|path| path.ends_with("kandinsky.safetensors")).unwrap());
    let config: PriorConfig = fixture.config();
    let prior = fixture.build(|weights| PriorTransformer::load(weights, &config));
    // Drawn as noise is: from the one generator there is, which the tests beside this one use as well.
    let random = |size: &[i64]| RowNoise::draw(0, size.iter().product(), 0).unwrap().latents.reshape(size);
    let lens = [1, 9, 2, 5, 9];
    let (states, embeds) =
        (random(&[5, config.num_embeddings, config.embedding_dim]), random(&[5, config.embedding_dim]));
    let timesteps = [999.0, 500.25, 42.0, 0.0];
    let text = TextCondition {
        states: without_padding(&states, &lens),
        lens: lens.to_vec(),
        positions: None,
        embeds: embeds.shallow_clone(),
    };
    // The timesteps of all prompts come with the prefix or after it, or some of some prompts with it.
    let (prefix, with_prefix) = prior.prefill(&text, &[timesteps.as_slice(); 5]).unwrap();
    let after_prefix = prior.prefill_timesteps(&prefix, &timesteps).unwrap();
    let (tail, tail_cache) = (prefix.tail(3).unwrap(), with_prefix.tail(3).unwrap());
    let prompts = [3, 0, 0, 4, 1, 2, 3];
    let hidden_states = random(&[7, config.embedding_dim]);
    let mut cache: Option<StaticCache> = None;
    let index = Tensor::from_slice(&prompts.map(|prompt| prompt as i64));
    let places = Tensor::arange(config.num_embeddings, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let mask = places.less_tensor(&Tensor::from_slice(&lens).unsqueeze(1)).index_select(0, &index);
    for (step, timestep) in timesteps.into_iter().enumerate() {
        let branches = [
            Branch { prefix: &prefix, timesteps: &with_prefix, step, prompts: &prompts[..3] },
            // Prompt 4, as the second of the last two.
            Branch { prefix: &tail, timesteps: &tail_cache, step, prompts: &[1] },
            Branch { prefix: &prefix, timesteps: &after_prefix, step, prompts: &prompts[4..] },
        ];
        let fast = prior.step(&branches, &hidden_states).unwrap();
        match &mut cache {
            // The others follow one after the other.
            Some(cache) if step == 2 => cache.move_to(&branches).unwrap(),
            Some(_) => {}
            None => cache = Some(StaticCache::new(&branches).unwrap()),
        }
        let on_device = prior.step_static(cache.as_mut().unwrap(), &hidden_states).unwrap();
        let (embeds, states) = (embeds.index_select(0, &index), states.index_select(0, &index));
        let timestep = Tensor::from_slice(&[timestep]);
        let whole = prior.forward(&hidden_states, Some(&timestep), &embeds, Some(&states), Some(&mask)).unwrap();
        for (name, predicted) in [("packed", fast), ("static", on_device)] {
            let error = super::common::relative_error(&predicted, &whole.predicted_image_embedding);
            assert!(error < 1e-5, "{name}, timestep {timestep:?}: off by {error:.1e}");
        }
    }
}
