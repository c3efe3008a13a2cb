//! The UnCLIP scheduler against diffusers: recorded trajectories, and the values that diffusers' own test-suite
//! publishes (`tests/schedulers/test_scheduler_unclip.py`).

use super::common::{Fixture, files_in, fixtures};
use crate::config;
use crate::diffusion::noise::RowNoise;
use crate::diffusion::scheduler::Scheduler;
use crate::diffusion::schedulers::unclip::{UnclipConfig, UnclipScheduler, VarianceType};
use tch::{Kind, Tensor};

#[test]
fn trajectories_match() {
    for path in files_in("scheduler") {
        let fixture = Fixture::open(&path);
        let config: UnclipConfig = fixture.config();
        let steps: usize = fixture.metadata("steps").parse().unwrap();
        let mut scheduler = UnclipScheduler::new(&config).unwrap();
        if steps as i64 > config.num_train_timesteps {
            assert!(scheduler.set_timesteps(steps).is_err(), "{}: diffusers repeats timesteps there", fixture.name());
            continue;
        }
        scheduler.set_timesteps(steps).unwrap();
        check_trajectory(&fixture, &scheduler);
        check_add_noise(&fixture, &scheduler);
    }
}

fn check_trajectory(fixture: &Fixture, scheduler: &UnclipScheduler) {
    let timesteps = scheduler.timesteps();
    let expected = Vec::<f64>::try_from(fixture.tensor("outputs.timesteps").to_kind(Kind::Double)).unwrap();
    assert_eq!(timesteps, expected, "{}", fixture.name());
    let mut sample = fixture.tensor("inputs.sample").shallow_clone();
    let (mut samples, mut originals) = (Vec::new(), Vec::new());
    for (step, &timestep) in timesteps.iter().enumerate() {
        let prev_timestep = match fixture.metadata("prev_timestep") {
            "next" => timesteps.get(step + 1).map(|&next| next as i64),
            "none" => Some(-1),
            _ => None,
        };
        let model_output = fixture.tensor("inputs.model_output").get(step as i64);
        let noise = fixture.tensor("inputs.noise").get(step as i64);
        let output = scheduler.step(&model_output, timestep as i64, &sample, prev_timestep, Some(&noise)).unwrap();
        sample = output.prev_sample.shallow_clone();
        samples.push(output.prev_sample);
        originals.push(output.pred_original_sample);
    }
    let samples = Tensor::stack(&samples, 0);
    match fixture.get("outputs.kept_steps") {
        // Of a long trajectory the file holds some steps and the last.
        Some(kept) => {
            fixture.assert_close("outputs.kept_prev_samples", &samples.index_select(0, kept), 1e-5);
            fixture.assert_close("outputs.final_sample", &sample, 1e-5);
        }
        None => {
            fixture.assert_close("outputs.prev_samples", &samples, 1e-5);
            fixture.assert_close("outputs.pred_original_samples", &Tensor::stack(&originals, 0), 1e-5);
        }
    }
}

fn check_add_noise(fixture: &Fixture, scheduler: &UnclipScheduler) {
    let [samples, noise, timesteps] =
        ["samples", "noise", "timesteps"].map(|name| fixture.tensor(&format!("inputs.add_noise_{name}")));
    fixture.assert_close("outputs.add_noise", &scheduler.add_noise(samples, noise, timesteps).unwrap(), 1e-6);
}

#[test]
fn timesteps_match() {
    let fixture = Fixture::open(&fixtures().join("timesteps.safetensors"));
    for name in fixture.names() {
        let (train, steps) = name.split_once('.').unwrap();
        let config = UnclipConfig { num_train_timesteps: train.parse().unwrap(), ..UnclipConfig::default() };
        let mut scheduler = UnclipScheduler::new(&config).unwrap();
        let (steps, train): (usize, usize) = (steps.parse().unwrap(), train.parse().unwrap());
        assert_eq!(scheduler.set_timesteps(steps).is_ok(), steps <= train, "{name}");
        if steps <= train {
            let expected = Vec::<f64>::try_from(fixture.tensor(name).to_kind(Kind::Double)).unwrap();
            assert_eq!(scheduler.timesteps(), expected, "{name}");
        }
    }
}

#[test]
fn variances_are_the_published_ones() {
    let scheduler = UnclipScheduler::new(&UnclipConfig::default()).unwrap();
    let variance = |t| scheduler.variance(t, None, None).unwrap().double_value(&[0]);
    for (t, expected) in [(0, 1.0e-10), (487, 0.0549625), (999, 0.9994987)] {
        assert!((variance(t) - expected).abs() < 1e-5, "{t}: {}", variance(t));
    }
    let config = UnclipConfig { variance_type: VarianceType::LearnedRange, ..UnclipConfig::default() };
    let scheduler = UnclipScheduler::new(&config).unwrap();
    let predicted = Tensor::from_slice(&[0.5_f32]);
    let variance = |t| scheduler.variance(t, None, Some(&predicted)).unwrap().double_value(&[0]);
    for (t, expected) in [(1, -10.1712790), (487, -5.7998052), (999, -0.0010011)] {
        assert!((variance(t) - expected).abs() < 1e-5, "{t}: {}", variance(t));
    }
}

/// The sum of the absolute values after a loop with diffusers' stand-ins for a model and a sample.
fn full_loop(steps: Option<usize>) -> f64 {
    let mut scheduler = UnclipScheduler::new(&UnclipConfig::default()).unwrap();
    if let Some(steps) = steps {
        scheduler.set_timesteps(steps).unwrap();
    }
    let timesteps = scheduler.timesteps().to_vec();
    // Batch 4, 3 channels, 8 x 8 pixels, counted up with the batch as the fastest dimension.
    let count = Tensor::arange(768, (Kind::Float, tch::Device::Cpu)) / 768.0;
    let mut sample = count.reshape([3, 8, 8, 4]).permute([3, 0, 1, 2]).reshape([4, 192]);
    let draws = RowNoise::draw(0, 768, timesteps.len()).unwrap();
    let noise: Vec<Tensor> =
        std::iter::once(draws.latents).chain(draws.steps).map(|draw| draw.reshape([4, 192])).collect();
    for (step, &t) in timesteps.iter().enumerate() {
        let residual = &sample * t / (t + 1.0);
        let prev_timestep = steps.and_then(|_| timesteps.get(step + 1).map(|&next| next as i64));
        sample = scheduler.step(&residual, t as i64, &sample, prev_timestep, Some(&noise[step])).unwrap().prev_sample;
    }
    sample.abs().sum(Kind::Double).double_value(&[])
}

#[test]
fn full_loops_end_where_diffusers_publishes() {
    let all = full_loop(None);
    assert!((all - 252.2682495).abs() < 1e-2, "{all}");
    assert!((all / 768.0 - 0.3284743).abs() < 1e-3);
    let skipping = full_loop(Some(25));
    assert!((skipping - 258.2044983).abs() < 1e-2, "{skipping}");
    assert!((skipping / 768.0 - 0.3362038).abs() < 1e-3);
}

#[test]
fn wrong_values_are_refused_by_name() {
    let wrong = [
        (r#"{"variance_type": "fixed_large"}"#, "variance_type"),
        (r#"{"prediction_type": "v_prediction"}"#, "prediction_type"),
        (r#"{"beta_schedule": "linear"}"#, "beta_schedule"),
        (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
        (r#"{"variance_type": "other"}"#, "variance_type"),
        (r#"{"clip_sample_range": -1}"#, "clip_sample_range"),
        (r#"{"clip_sample_range": 3.5e38}"#, "clip_sample_range"),
        (r#"{"clip_sample_range": 1e-3, "clip_sample_range": NaN}"#, "clip_sample_range"),
        (r#"{"clip_sample": 3}"#, "clip_sample"),
    ];
    for (json, key) in wrong {
        let error = config::parse::<UnclipConfig>(json, "scheduler_config.json").unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn a_step_needs_a_timestep_before_and_noise() {
    let scheduler = UnclipScheduler::new(&UnclipConfig::default()).unwrap();
    let sample = Tensor::zeros([1, 4], (Kind::Float, tch::Device::Cpu));
    assert!(scheduler.step(&sample, 5, &sample, None, None).is_err(), "no noise");
    assert!(scheduler.step(&sample, 1000, &sample, None, Some(&sample)).is_err(), "past the end");
    assert!(scheduler.step(&sample, 5, &sample, Some(5), Some(&sample)).is_err(), "not before");
    assert!(scheduler.step(&sample, -1, &sample, None, Some(&sample)).is_err(), "negative");
}
