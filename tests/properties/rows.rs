//! A row has the same numbers, to the last bit, in a batch of any size and beside any other rows: random models of any
//! width, in every type that the processor is fast in.

use crate::diffusion::guidance::Guidance;
use crate::diffusion::noise::{BatchNoise, NoiseSource, RowNoise};
use crate::diffusion::sampler::{CacheLayout, Condition, Sampler};
use crate::diffusion::scheduler::{SchedulerConfig, SchedulerOptions};
use crate::diffusion::schedulers;
use crate::files::Folder;
use crate::kernels::recording;
use crate::nn::prior::{AutoregressiveConfig, AutoregressivePrior, PriorConfig, PriorTransformer, TextCondition};
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::precision::Precision;
use proptest::prelude::*;
use serde_json::json;
use std::cell::Cell;
use tch::{Device, Tensor};

/// The types that are fast here.
fn placements() -> impl Iterator<Item = Placement> {
    let precisions = [Precision::F32, Precision::Bf16, Precision::Int8].into_iter();
    let fast = precisions.filter(|precision| precision.is_fast_on(Device::Cpu));
    fast.map(|precision| Placement { device: Device::Cpu, precision })
}

thread_local! {
    /// How many tensors a case has drawn. Each case begins at 0, so that a failing one can be run again.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Normals of a seed of their own. `Tensor::randn` would draw from libtorch's default generator, in between the draws
/// that the noise of a row takes from it in another test.
fn random(size: &[i64]) -> Tensor {
    let seed = SEED.replace(SEED.get() + 1);
    RowNoise::draw(seed, size.iter().product(), 0).unwrap().latents.reshape(size)
}

/// The tensors of a random checkpoint.
#[derive(Default)]
struct Parameters(Vec<(String, Tensor)>);

impl Parameters {
    fn add(&mut self, name: &str, size: &[i64], scale: f64) {
        self.0.push((name.to_string(), random(size) * scale));
    }

    fn linear(&mut self, name: &str, inputs: i64, outputs: i64) {
        self.add(&format!("{name}.weight"), &[outputs, inputs], 1.5 / (inputs as f64).sqrt());
        self.add(&format!("{name}.bias"), &[outputs], 0.2);
    }

    fn norm(&mut self, name: &str, size: i64) {
        self.add(&format!("{name}.weight"), &[size], 1.0);
        self.add(&format!("{name}.bias"), &[size], 0.2);
    }

    /// The blocks of a prior.
    fn blocks(&mut self, layers: i64, inner: i64) {
        for block in 0..layers {
            let name = |part: &str| format!("transformer_blocks.{block}.{part}");
            self.norm(&name("norm1"), inner);
            for part in ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"] {
                self.linear(&name(part), inner, inner);
            }
            self.norm(&name("norm3"), inner);
            self.linear(&name("ff.net.0.proj"), inner, 4 * inner);
            self.linear(&name("ff.net.2"), 4 * inner, inner);
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        let folder = tempfile::TempDir::new().unwrap();
        Tensor::write_safetensors(&self.0, folder.path().join("model.safetensors")).unwrap();
        Checkpoint::open_folder(&Folder::from(folder.path())).unwrap()
    }
}

fn prior(config: &PriorConfig) -> Checkpoint {
    let (dim, inner) = (config.embedding_dim, config.inner_dim());
    let mut parameters = Parameters::default();
    if !config.is_one_step() {
        parameters.linear("time_embedding.linear_1", inner, config.time_embed_dim.unwrap_or(inner));
        parameters.linear("time_embedding.linear_2", config.time_embed_dim.unwrap_or(inner), inner);
    }
    for name in ["proj_in", "embedding_proj", "encoder_hidden_states_proj"] {
        parameters.linear(name, dim, inner);
    }
    parameters.add("positional_embedding", &[1, config.positions(), inner], 0.4);
    parameters.add("prd_embedding", &[1, 1, inner], 0.4);
    parameters.blocks(config.num_layers, inner);
    parameters.norm("norm_out", inner);
    parameters.linear("proj_to_clip_embeddings", inner, dim);
    parameters.add("clip_mean", &[1, dim], 1.0);
    parameters.add("clip_std", &[1, dim], 1.0);
    parameters.checkpoint()
}

fn autoregressive(config: &AutoregressiveConfig) -> Checkpoint {
    let (dim, inner) = (config.embedding_dim, config.inner_dim());
    let mut parameters = Parameters::default();
    for name in ["embedding_proj", "encoder_hidden_states_proj"] {
        parameters.linear(name, dim, inner);
    }
    parameters.add("dot_product_embedding", &[config.num_dot_product_buckets + 1, inner], 0.4);
    parameters.add("token_embedding", &[config.num_buckets, inner], 0.4);
    parameters.add("positional_embedding", &[1, config.positions(), inner], 0.4);
    parameters.blocks(config.num_layers, inner);
    parameters.norm("norm_out", inner);
    parameters.linear("proj_to_dot_product", inner, config.num_dot_product_buckets);
    parameters.linear("proj_to_tokens", inner, config.num_buckets);
    parameters.add("bucket_values", &[config.num_buckets], 1.0);
    parameters.linear("pca", config.num_tokens, dim);
    parameters.checkpoint()
}

fn text_encoder(config: &TextEncoderConfig) -> Checkpoint {
    let width = config.hidden_size;
    let mut parameters = Parameters::default();
    let embeddings = "text_model.embeddings";
    parameters.add(&format!("{embeddings}.token_embedding.weight"), &[config.vocab_size, width], 0.4);
    parameters.add(&format!("{embeddings}.position_embedding.weight"), &[config.max_position_embeddings, width], 0.4);
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("text_model.encoder.layers.{layer}.{part}");
        parameters.norm(&name("layer_norm1"), width);
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            parameters.linear(&name(&format!("self_attn.{part}")), width, width);
        }
        parameters.norm(&name("layer_norm2"), width);
        parameters.linear(&name("mlp.fc1"), width, config.intermediate_size);
        parameters.linear(&name("mlp.fc2"), config.intermediate_size, width);
    }
    parameters.norm("text_model.final_layer_norm", width);
    parameters.add("text_projection.weight", &[config.projection_dim, width], 0.3);
    parameters.checkpoint()
}

/// Rows of a batch: the states of each one's text, its embedding and its seed.
struct Rows {
    states: Vec<Tensor>,
    embeds: Tensor,
    seeds: Vec<u64>,
}

impl Rows {
    fn random(lens: &[i64], dim: i64) -> Self {
        Self {
            states: lens.iter().map(|&len| random(&[len, dim])).collect(),
            embeds: random(&[lens.len() as i64, dim]),
            seeds: (u64::MAX - 2..=u64::MAX).chain(0..).take(lens.len()).collect(),
        }
    }

    /// The same, but for some roundings of the embeddings.
    fn nudged(&self) -> Self {
        Self {
            states: self.states.iter().map(Tensor::shallow_clone).collect(),
            embeds: &self.embeds * (random(&self.embeds.size()) * 1e-6 + 1.0),
            seeds: self.seeds.clone(),
        }
    }

    fn condition(&self, start: usize, len: usize) -> TextCondition {
        let states = &self.states[start..start + len];
        TextCondition {
            states: Tensor::cat(states, 0),
            lens: states.iter().map(|states| states.size()[0]).collect(),
            positions: None,
            embeds: self.embeds.narrow(0, start as i64, len as i64),
        }
    }
}

/// The embeddings of `len` rows from `start` on, led away from the first text of `unconditional`.
fn embed(
    sampler: Sampler,
    scheduler: &dyn SchedulerConfig,
    rows: &Rows,
    unconditional: &Rows,
    (start, len): (usize, usize),
) -> Tensor {
    let mut scheduler = scheduler.scheduler(5).unwrap();
    let timesteps = scheduler.timesteps().to_vec();
    let prefill = |text: TextCondition| {
        let timesteps = vec![&timesteps[..2]; text.lens.len()];
        sampler.prior.prefill(&text, &timesteps).unwrap()
    };
    let (prefix, timesteps) = prefill(rows.condition(start, len));
    let (no_prefix, no_timesteps) = prefill(unconditional.condition(0, 1));
    let dim = sampler.prior.config().embedding_dim;
    let sources: Vec<NoiseSource> = rows.seeds[start..start + len].iter().map(|&seed| seed.into()).collect();
    let noise = BatchNoise::draw(&sources, dim, scheduler.noisy_steps(), Device::Cpu).unwrap();
    let prompts: Vec<usize> = (0..len).collect();
    let conditional = Condition { prefix: &prefix, prompts: &prompts, timesteps: &timesteps };
    let led_away = Condition { prefix: &no_prefix, prompts: &vec![0; len], timesteps: &no_timesteps };
    sampler.sample(&mut *scheduler, conditional, Some(led_away), &noise, &mut || Ok(())).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 8, ..ProptestConfig::default() })]

    #[test]
    fn an_embedding_does_not_depend_on_its_batch(
        heads in 1..6_i64,
        head_dim in 1..14_i64,
        layers in 1..4_i64,
        embedding_dim in 1..40_i64,
        time_embed_act_fn in prop::sample::select(vec!["silu", "mish", "gelu", "relu"]),
        guidance in prop::sample::select(vec![1.0, 4.0, 10.0]),
        lens in prop::collection::vec(1..9_i64, 9..70),
        threads in 1..4,
        class in prop::sample::select(schedulers::ALL.to_vec()),
    ) {
        let config = PriorConfig {
            num_attention_heads: heads,
            attention_head_dim: head_dim,
            num_layers: layers,
            embedding_dim,
            num_embeddings: 8,
            time_embed_act_fn: Some(time_embed_act_fn.into()),
            time_embed_dim: Some(embedding_dim + 3),
            ..PriorConfig::default()
        };
        tch::set_num_threads(threads);
        SEED.set(0);
        let prediction_type = if class.name == "euler-ancestral" { "v_prediction" } else { "sample" };
        let scheduler = json!({"prediction_type": prediction_type, "clip_sample_range": 10});
        let scheduler = schedulers::configure(&scheduler.to_string(), "", class, &SchedulerOptions::default()).unwrap();
        let checkpoint = prior(&config);
        let is_strong = guidance > 4.0;
        let (rows, unconditional) = (Rows::random(&lens, embedding_dim), Rows::random(&[2], embedding_dim));
        for placement in placements() {
            let prior = checkpoint.build("", placement, |weights| PriorTransformer::load(weights, &config)).unwrap();
            let guidance = Guidance::new(guidance);
            let sampler = |layout| Sampler { prior: &prior, guidance, layout };
            let run = |range| embed(sampler(CacheLayout::Packed), &*scheduler, &rows, &unconditional, range);
            let together = run((0, lens.len()));
            prop_assert!(together.isfinite().all().int64_value(&[]) == 1);
            for (start, len) in [(0, 1), (lens.len() - 1, 1), (1, 2), (2, 7), (lens.len() / 2, lens.len() / 3)] {
                let some = run((start, len));
                let same = some == together.narrow(0, start as i64, len as i64);
                prop_assert!(same, "{placement:?}: rows {start} and {len} more of {}", lens.len());
            }
            if placement.precision == Precision::F32 {
                let whole = (0, lens.len());
                let scale = together.abs().max().double_value(&[]);
                let error = |other: Tensor| (other - &together).abs().max().double_value(&[]) / scale;
                let of_layout = error(embed(sampler(CacheLayout::Static), &*scheduler, &rows, &unconditional, whole));
                // Strong guidance multiplies rounding errors in every step; tests/golden/prior.rs has single ones.
                let nudged = rows.nudged();
                let of_rounding = error(embed(sampler(CacheLayout::Packed), &*scheduler, &nudged, &unconditional, whole));
                let bound = if is_strong { of_rounding.max(1e-4) } else { 1e-4 };
                prop_assert!(of_layout < bound, "a static cache: off by {of_layout:.1e}, of {bound:.1e}");
            }
        }
    }

    /// A prompt's tokens are shared by its samples, which changes nothing either.
    #[test]
    fn an_embedding_of_a_one_step_prior_does_not_depend_on_its_batch(
        heads in 1..6_i64,
        head_dim in 1..14_i64,
        layers in 1..4_i64,
        embedding_dim in 1..40_i64,
        lens in prop::collection::vec(1..9_i64, 9..40),
        samples in 1..4_usize,
        threads in 1..4,
    ) {
        let config = PriorConfig {
            num_attention_heads: heads,
            attention_head_dim: head_dim,
            num_layers: layers,
            embedding_dim,
            num_embeddings: 8,
            additional_embeddings: 3,
            ..PriorConfig::default()
        };
        tch::set_num_threads(threads);
        SEED.set(0);
        let checkpoint = prior(&config);
        let rows = Rows::random(&lens, embedding_dim);
        let prompts: Vec<usize> = (0..lens.len()).flat_map(|prompt| vec![prompt; samples]).collect();
        let noise = random(&[prompts.len() as i64, embedding_dim]);
        for placement in placements() {
            let prior = checkpoint.build("", placement, |weights| PriorTransformer::load(weights, &config)).unwrap();
            let together = prior.predict(&rows.condition(0, lens.len()), &prompts, &noise).unwrap();
            prop_assert!(together.isfinite().all().int64_value(&[]) == 1);
            for row in [0, 1, prompts.len() / 2, prompts.len() - 1] {
                let own = noise.narrow(0, row as i64, 1);
                let alone = prior.predict(&rows.condition(prompts[row], 1), &[0], &own).unwrap();
                prop_assert!(alone == together.narrow(0, row as i64, 1), "{placement:?}: row {row} of {}", prompts.len());
            }
        }
    }

    /// To the last bit too, or a row would now and then have another token beside others.
    #[test]
    fn the_logits_of_an_autoregressive_prior_do_not_depend_on_their_batch(
        heads in 1..6_i64,
        head_dim in 1..14_i64,
        layers in 1..4_i64,
        embedding_dim in 3..40_i64,
        buckets in 1..30_i64,
        lens in prop::collection::vec(1..9_i64, 9..40),
        samples in 1..4_usize,
        threads in 1..4,
    ) {
        let config = AutoregressiveConfig {
            num_attention_heads: heads,
            attention_head_dim: head_dim,
            num_layers: layers,
            embedding_dim,
            embedding_proj_dim: None,
            encoder_hid_dim: None,
            num_embeddings: 8,
            num_tokens: 3,
            num_buckets: buckets,
            num_dot_product_buckets: 4,
            dot_product_quantile: None,
        };
        tch::set_num_threads(threads);
        SEED.set(0);
        let checkpoint = autoregressive(&config);
        let rows = Rows::random(&lens, embedding_dim);
        let prompts: Vec<usize> = (0..lens.len()).flat_map(|prompt| vec![prompt; samples]).collect();
        let token = |row: usize, place: usize| (7 * row + 3 * place) as i64 % if place == 0 { 5 } else { buckets };
        for placement in placements() {
            let prior = checkpoint.build("", placement, |weights| AutoregressivePrior::load(weights, &config)).unwrap();
            // The logits of all places, and the embeddings, of some rows.
            let run = |text: &TextCondition, prompts: &[usize], of: &[usize]| {
                let (prefix, dot_products) = prior.prefill(text).unwrap();
                let mut rows = prior.start(&prefix, prompts).unwrap();
                let index: Vec<i64> = prompts.iter().map(|&prompt| prompt as i64).collect();
                let mut found = vec![dot_products.index_select(0, &Tensor::from_slice(&index))];
                for place in 0..3 {
                    let tokens: Vec<i64> = of.iter().map(|&row| token(row, place)).collect();
                    found.push(prior.step(&mut rows, &tokens).unwrap());
                }
                let tokens: Vec<i64> = of.iter().flat_map(|&row| (1..4).map(move |place| token(row, place))).collect();
                found.push(prior.decode(&tokens).unwrap());
                found
            };
            let together = run(&rows.condition(0, lens.len()), &prompts, &(0..prompts.len()).collect::<Vec<_>>());
            for row in [0, 1, prompts.len() / 2, prompts.len() - 1] {
                let alone = run(&rows.condition(prompts[row], 1), &[0], &[row]);
                for (alone, together) in alone.iter().zip(&together) {
                    prop_assert!(together.isfinite().all().int64_value(&[]) == 1);
                    let same = *alone == together.narrow(0, row as i64, 1);
                    prop_assert!(same, "{placement:?}: row {row} of {}", prompts.len());
                }
            }
        }
    }

    #[test]
    fn a_text_does_not_depend_on_those_beside_it(
        heads in 1..6_i64,
        head_dim in 1..14_i64,
        layers in 1..4_i64,
        intermediate_size in 1..90_i64,
        projection_dim in 1..40_i64,
        hidden_act in prop::sample::select(vec!["gelu", "quick_gelu"]),
        texts in prop::collection::vec(prop::collection::vec(0..50_i64, 1..12), 9..40),
        threads in 1..4,
    ) {
        let config = TextEncoderConfig {
            vocab_size: 50,
            hidden_size: heads * head_dim,
            intermediate_size,
            projection_dim,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            max_position_embeddings: 12,
            hidden_act: hidden_act.into(),
            ..TextEncoderConfig::default()
        };
        tch::set_num_threads(threads);
        SEED.set(0);
        let checkpoint = text_encoder(&config);
        let texts: Vec<&[i64]> = texts.iter().map(Vec::as_slice).collect();
        for placement in placements() {
            let encoder = checkpoint.build("", placement, |weights| TextEncoder::load(weights, &config)).unwrap();
            let together = encoder.forward(&texts).unwrap();
            let mut first_token = 0;
            for (place, text) in texts.iter().enumerate() {
                let alone = encoder.forward(&[text]).unwrap();
                let tokens = text.len() as i64;
                let states = together.last_hidden_state.narrow(0, first_token, tokens);
                prop_assert!(alone.last_hidden_state == states, "{placement:?}: states of text {place}");
                let embeds = together.text_embeds.narrow(0, place as i64, 1);
                prop_assert!(alone.text_embeds == embeds, "{placement:?}: embedding of text {place}");
                first_token += tokens;
            }
        }
    }
}

/// On a device, a step neither copies the prompts' keys and values nor waits for a number.
#[test]
fn a_step_on_a_static_cache_only_queues_what_is_new() {
    let config = PriorConfig {
        num_attention_heads: 2,
        attention_head_dim: 8,
        num_layers: 3,
        embedding_dim: 12,
        num_embeddings: 200,
        ..PriorConfig::default()
    };
    let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
    let prior = prior(&config).build("", placement, |weights| PriorTransformer::load(weights, &config)).unwrap();
    let lens = [190, 200, 160];
    let rows = Rows::random(&lens, 12);
    let sampler = Sampler { prior: &prior, guidance: Guidance::new(4.0), layout: CacheLayout::Static };
    for class in schedulers::ALL {
        let scheduler = schedulers::configure("{}", "", class, &SchedulerOptions::default()).unwrap();
        let mut scheduler = scheduler.scheduler(8).unwrap();
        let timesteps = scheduler.timesteps().to_vec();
        let (prefix, timesteps) = prior.prefill(&rows.condition(0, 3), &[&*timesteps; 3]).unwrap();
        let sources: Vec<NoiseSource> = rows.seeds.iter().map(|&seed| seed.into()).collect();
        let noise = BatchNoise::draw(&sources, 12, scheduler.noisy_steps(), Device::Cpu).unwrap();
        let condition = Condition { prefix: &prefix, prompts: &[0, 1, 2], timesteps: &timesteps };
        let (mut steps, mut operations) = (0, Vec::new());
        let mut after_step = || {
            // The first step makes the cache; the second is like those after it.
            steps += 1;
            match steps {
                1 => recording::record(),
                2 => recording::recorded().map(|recorded| operations = recorded),
                _ => Ok(()),
            }
        };
        let embeds = sampler.sample(&mut *scheduler, condition, Some(condition), &noise, &mut after_step).unwrap();
        assert_eq!(embeds.size(), [3, 12]);
        let of_name = |name: &str| operations.iter().filter(|operation| operation.name == name).count();
        assert!(of_name("aten::scaled_dot_product_attention") == 3, "{class:?}: {operations:?}");
        // What the host has to wait for.
        for name in ["item", "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"] {
            assert_eq!(of_name(&format!("aten::{name}")), 0, "{class:?}: {name}");
        }
        // Six rows: three prompts, with guidance. The keys and values of one of the prompts alone are more than this.
        let most = 6 * 2 * 4 * config.inner_dim();
        assert!(most < 160 * 2 * config.inner_dim());
        const COPIES: [&str; 9] =
            ["copy_", "clone", "contiguous", "cat", "stack", "index_select", "gather", "_to_copy", "zeros"];
        let copies =
            |operation: &&recording::Operation| COPIES.iter().any(|name| operation.name == format!("aten::{name}"));
        for operation in operations.iter().filter(copies) {
            assert!(operation.numel <= most, "{class:?}: {operation:?}");
        }
    }
}
