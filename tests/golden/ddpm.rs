//! The DDPM scheduler against diffusers: recorded trajectories, and the values that diffusers' own test-suite publishes
//! (`tests/schedulers/test_scheduler_ddpm.py`).

use super::common::{Fixture, files_in, fixtures};
use crate::config;
use crate::diffusion::noise::RowNoise;
use crate::diffusion::prediction::PredictionType;
use crate::diffusion::scheduler::{Scheduler, SchedulerConfig};
use crate::diffusion::schedulers::ddpm::{DdpmConfig, DdpmScheduler};
use crate::diffusion::spacing::TimestepSpacing;
use tch::{Kind, Tensor};

/// Whatever the processor: only an equal schedule is equally right where rescaling to zero SNR enlarges an error.
#[test]
fn schedules_match_to_the_last_bit() {
    for path in files_in("ddpm") {
        let fixture = Fixture::open(&path);
        let scheduler = DdpmScheduler::new(&fixture.config()).unwrap();
        let expected = Vec::<f32>::try_from(fixture.tensor("outputs.alphas_cumprod")).unwrap();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(scheduler.alphas_cumprod()), bits(&expected), "{}", fixture.name());
    }
}

#[test]
fn trajectories_match() {
    for path in files_in("ddpm") {
        let fixture = Fixture::open(&path);
        let mut scheduler = DdpmScheduler::new(&fixture.config()).unwrap();
        scheduler.set_timesteps(fixture.metadata("steps").parse().unwrap()).unwrap();
        let expected = Vec::<f64>::try_from(fixture.tensor("outputs.timesteps").to_kind(Kind::Double)).unwrap();
        assert_eq!(scheduler.timesteps(), expected, "{}", fixture.name());
        let mut sample = fixture.tensor("inputs.sample").shallow_clone();
        let (mut samples, mut originals) = (Vec::new(), Vec::new());
        for step in 0..expected.len() {
            let [model_output, noise] =
                ["model_output", "noise"].map(|name| fixture.tensor(&format!("inputs.{name}")).get(step as i64));
            let noise = (step < scheduler.noisy_steps()).then_some(&noise);
            let output = scheduler.step(step, &model_output, &sample, noise).unwrap();
            sample = output.prev_sample.shallow_clone();
            samples.push(output.prev_sample);
            originals.push(output.pred_original_sample);
        }
        fixture.assert_close("outputs.prev_samples", &Tensor::stack(&samples, 0), 1e-6);
        fixture.assert_close("outputs.pred_original_samples", &Tensor::stack(&originals, 0), 1e-6);
    }
}

#[test]
fn timesteps_match() {
    let fixture = Fixture::open(&fixtures().join("ddpm_timesteps.safetensors"));
    for name in fixture.names() {
        let parts: Vec<&str> = name.split('.').collect();
        let [spacing, offset, train, steps] = parts[..] else { panic!("{name}") };
        let json =
            format!(r#"{{"timestep_spacing": "{spacing}", "steps_offset": {offset}, "num_train_timesteps": {train}}}"#);
        let mut scheduler = DdpmScheduler::new(&config::parse(&json, name).unwrap()).unwrap();
        scheduler.set_timesteps(steps.parse().unwrap()).unwrap();
        let expected = Vec::<f64>::try_from(fixture.tensor(name).to_kind(Kind::Double)).unwrap();
        assert_eq!(scheduler.timesteps(), expected, "{name}");
    }
}

#[test]
fn steps_and_timesteps_are_as_many() {
    let spacings = [TimestepSpacing::Linspace, TimestepSpacing::Leading, TimestepSpacing::Trailing];
    for timestep_spacing in spacings {
        let config = DdpmConfig { timestep_spacing, ..DdpmConfig::default() };
        assert_eq!(config.max_steps(), 1000);
        let mut scheduler = DdpmScheduler::new(&config).unwrap();
        // Of trailing ones, diffusers gives a timestep too many for 61 steps and 61 other numbers.
        for steps in [1, 2, 25, 61, 103, 333, 999, 1000] {
            scheduler.set_timesteps(steps).unwrap();
            let timesteps = scheduler.timesteps();
            assert_eq!(timesteps.len(), steps);
            assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]), "{timestep_spacing:?}, {steps} steps");
            assert!(timesteps[0] < 1000.0 && timesteps[steps - 1] >= 0.0, "{timestep_spacing:?}, {steps} steps");
            // Where the last timestep is not 0, it draws noise too.
            assert_eq!(scheduler.noisy_steps(), steps - usize::from(timesteps[steps - 1] == 0.0));
        }
        assert!(scheduler.set_timesteps(0).is_err());
        assert!(scheduler.set_timesteps(1001).is_err());
    }
}

#[test]
fn an_offset_does_not_lead_beyond_the_training() {
    let with_offset = |steps_offset| DdpmConfig { steps_offset, ..DdpmConfig::default() };
    let mut scheduler = DdpmScheduler::new(&with_offset(1)).unwrap();
    scheduler.set_timesteps(999).unwrap();
    let error = scheduler.set_timesteps(1000).unwrap_err().to_string();
    assert!(error.contains("steps_offset of 1"), "{error}");
    assert_eq!(with_offset(1).max_steps(), 999);
    // 200 steps of 5 timesteps start at 995 + 5.
    assert_eq!(with_offset(5).max_steps(), 199);
}

/// Without a limit of steps, a scheduler's are all training timesteps, so that step s is timestep 999 - s.
#[test]
fn variances_are_the_published_ones() {
    let scheduler = DdpmScheduler::new(&DdpmConfig::default()).unwrap();
    for (t, expected) in [(0, 0.0), (487, 0.00979), (999, 0.02)] {
        let variance = scheduler.noise_scale(999 - t).unwrap().powi(2);
        assert!((variance - expected).abs() < 1e-5, "{t}: {variance}");
    }
    let scale = |variance_type: &str| {
        let config = format!(r#"{{"variance_type": "{variance_type}"}}"#);
        DdpmScheduler::new(&config::parse(&config, "").unwrap()).unwrap().noise_scale(500).unwrap()
    };
    assert!((scale("fixed_small") / scale("fixed_small_log") - 1.0).abs() < 1e-6);
    assert!(scale("fixed_small") < scale("fixed_large"));
}

/// The sum of the absolute values after a loop with diffusers' stand-ins for a model and a sample.
fn full_loop(prediction_type: PredictionType) -> f64 {
    let mut scheduler = DdpmScheduler::new(&DdpmConfig { prediction_type, ..DdpmConfig::default() }).unwrap();
    // Batch 4, 3 channels, 8 x 8 pixels, counted up with the batch as the fastest dimension.
    let count = Tensor::arange(768, (Kind::Float, tch::Device::Cpu)) / 768.0;
    let mut sample = count.reshape([3, 8, 8, 4]).permute([3, 0, 1, 2]).reshape([4, 192]);
    let draws = RowNoise::draw(0, 768, scheduler.noisy_steps()).unwrap();
    let noise: Vec<Tensor> =
        std::iter::once(draws.latents).chain(draws.steps).map(|draw| draw.reshape([4, 192])).collect();
    for (step, t) in scheduler.timesteps().to_vec().into_iter().enumerate() {
        let residual = &sample * t / (t + 1.0);
        sample = scheduler.step(step, &residual, &sample, noise.get(step)).unwrap().prev_sample;
    }
    sample.abs().sum(Kind::Double).double_value(&[])
}

#[test]
fn full_loops_end_where_diffusers_publishes() {
    for (prediction_type, sum, mean) in
        [(PredictionType::Epsilon, 258.9606, 0.3372), (PredictionType::VPrediction, 202.0296, 0.2631)]
    {
        let actual = full_loop(prediction_type);
        assert!((actual - sum).abs() < 1e-2, "{actual}");
        assert!((actual / 768.0 - mean).abs() < 1e-3);
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    let wrong = [
        (r#"{"variance_type": "learned_range"}"#, "variance_type"),
        (r#"{"variance_type": "learned"}"#, "predicts a variance"),
        (r#"{"variance_type": "fixed_large_log"}"#, "gives no numbers"),
        (r#"{"prediction_type": "flow"}"#, "prediction_type"),
        (r#"{"beta_schedule": "exp"}"#, "beta_schedule"),
        (r#"{"timestep_spacing": "even"}"#, "timestep_spacing"),
        (r#"{"thresholding": true}"#, "thresholding"),
        (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
        (r#"{"clip_sample_range": -1}"#, "clip_sample_range"),
        (r#"{"clip_sample_range": 3.5e38}"#, "clip_sample_range"),
        (r#"{"clip_sample_range": -Infinity}"#, "clip_sample_range"),
        (r#"{"clip_sample_range": NaN}"#, "clip_sample_range"),
        (r#"{"beta_start": 0}"#, "beta_start"),
        (r#"{"beta_start": 1e-50}"#, "beta_start"),
        (r#"{"beta_end": Infinity}"#, "beta_end"),
        (r#"{"beta_end": 2}"#, "beta_end"),
        (r#"{"trained_betas": [0.1]}"#, "trained_betas"),
        (r#"{"num_train_timesteps": 1, "trained_betas": [-0.1]}"#, "trained_betas"),
        (r#"{"steps_offset": -1}"#, "steps_offset"),
        (r#"{"steps_offset": 1000}"#, "steps_offset"),
    ];
    for (json, word) in wrong {
        let error = config::parse::<DdpmConfig>(json, "scheduler_config.json").unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn numbers_that_are_not_used_may_be_any() {
    for json in [
        r#"{"clip_sample": false, "clip_sample_range": 1e39}"#,
        r#"{"beta_schedule": "squaredcos_cap_v2", "beta_end": Infinity}"#,
        r#"{"num_train_timesteps": 1, "trained_betas": [0.5], "beta_start": NaN}"#,
        r#"{"sample_max_value": 1e400, "dynamic_thresholding_ratio": -1}"#,
    ] {
        DdpmScheduler::new(&config::parse(json, "scheduler_config.json").unwrap()).unwrap();
    }
}

#[test]
fn a_step_needs_a_timestep_noise_and_shapes_that_fit() {
    let mut scheduler = DdpmScheduler::new(&DdpmConfig::default()).unwrap();
    let sample = Tensor::zeros([1, 4], (Kind::Float, tch::Device::Cpu));
    assert!(scheduler.step(5, &sample, &sample, None).is_err(), "no noise");
    assert!(scheduler.step(999, &sample, &sample, None).is_ok(), "the last needs none");
    assert!(scheduler.step(1000, &sample, &sample, Some(&sample)).is_err(), "past the end");
    let wide = Tensor::zeros([1, 8], (Kind::Float, tch::Device::Cpu));
    assert!(scheduler.step(5, &wide, &sample, Some(&sample)).is_err(), "too wide");
}
