//! Every scheduler but UnCLIP's and DDPM's against diffusers: recorded trajectories, what diffusers refuses, and whole
//! pipelines.

use super::common::{Fixture, files_in, fixtures, relative_error};
use super::pipelines::{Case, OPTIONS};
use crate::diffusion::scheduler::{Scheduler, SchedulerOptions};
use crate::diffusion::schedulers;
use crate::pipeline::Pipeline;
use crate::pipeline::layout::Replacements;
use crate::{Error, Result};
use serde::Deserialize;
use tch::Kind;

/// A configuration and a run.
#[derive(Deserialize)]
struct Run {
    config: String,
    steps: usize,
    eta: f64,
}

impl Run {
    fn scheduler(&self, name: &str) -> Result<Box<dyn Scheduler>> {
        let class = schedulers::named(name)?.unwrap();
        let eta = (self.eta > 0.0).then_some(self.eta);
        let options = SchedulerOptions { eta, ..SchedulerOptions::default() };
        schedulers::configure(&self.config, "scheduler_config.json", class, &options)?.scheduler(self.steps)
    }
}

/// The fixtures of the schedulers.
fn of_schedulers() -> impl Iterator<Item = Fixture> {
    let files = files_in("samplers").into_iter().map(|path| Fixture::open(&path));
    files.filter(|fixture| fixture.name() != "pipelines")
}

fn runs(fixture: &Fixture, key: &str) -> Vec<Run> {
    serde_json::from_str(fixture.metadata(key)).unwrap()
}

#[test]
fn trajectories_match() {
    let mut checked = 0;
    for fixture in of_schedulers() {
        for (index, run) in runs(&fixture, "cases").iter().enumerate() {
            let place = format!("{} case {index}, {}", fixture.name(), run.config);
            let mut scheduler = run.scheduler(&fixture.name()).unwrap_or_else(|error| panic!("{place}: {error}"));
            let expected = |name: &str| fixture.tensor(&format!("{index}.{name}"));
            let timesteps = Vec::<f64>::try_from(expected("timesteps").to_kind(Kind::Double)).unwrap();
            // A rounding error of a logarithm, at most: those that are rounded to whole numbers are the same ones.
            let is_near = |(found, expected): (&f64, &f64)| (found - expected).abs() <= 1e-6 * (1.0 + expected.abs());
            let are_near = scheduler.timesteps().iter().zip(&timesteps).all(is_near);
            assert!(are_near && scheduler.timesteps().len() == timesteps.len(), "{place}: {:?}", scheduler.timesteps());
            let mut sample = fixture.tensor("inputs.sample") * scheduler.init_noise_sigma();
            for step in 0..timesteps.len() {
                let [model_output, noise] =
                    ["model_output", "noise"].map(|name| fixture.tensor(&format!("inputs.{name}")).get(step as i64));
                let scaled = scheduler.scale_model_input(step, &sample).unwrap();
                let error = relative_error(&scaled, &expected("model_inputs").get(step as i64));
                assert!(error < 1e-5, "{place}: the model's input at step {step} is off by {error:.1e}");
                let noise = (step < scheduler.noisy_steps()).then_some(&noise);
                sample = scheduler.step(step, &model_output, &sample, noise).unwrap().prev_sample;
                let error = relative_error(&sample, &expected("prev_samples").get(step as i64));
                assert!(error < 1e-5, "{place}: the sample after step {step} is off by {error:.1e}");
            }
            checked += 1;
        }
    }
    assert!(checked > 130, "only {checked} runs");
}

#[test]
fn what_diffusers_cannot_do_is_refused() {
    for fixture in of_schedulers() {
        let refused = runs(&fixture, "refused");
        assert!(refused.len() > 4);
        for run in refused {
            match run.scheduler(&fixture.name()) {
                Err(error @ (Error::Config { .. } | Error::Option { .. })) => {
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
                Err(error) => panic!("{}: {error}", run.config),
                Ok(_) => panic!("{} {}, {} steps", fixture.name(), run.config, run.steps),
            }
        }
    }
}

/// A pipeline's scheduler, and a run of it.
#[derive(Deserialize)]
struct WithScheduler {
    scheduler: String,
    solver_order: Option<i64>,
    algorithm_type: Option<String>,
    eta: f64,
    settings: Case,
}

/// A model with another scheduler than its own.
#[test]
fn pipelines_match() {
    let expected = Fixture::open(&fixtures().join("samplers/pipelines.safetensors"));
    let cases: Vec<WithScheduler> = serde_json::from_str(expected.metadata("cases")).unwrap();
    for (index, case) in cases.iter().enumerate() {
        let options = SchedulerOptions {
            class: schedulers::named(&case.scheduler).unwrap(),
            eta: (case.eta > 0.0).then_some(case.eta),
            solver_order: case.solver_order,
            sde: case.algorithm_type.is_some(),
        };
        let folder = fixtures().join("pipelines/stable_unclip_layout");
        let mut pipeline =
            Pipeline::open_with(&folder.as_path().into(), &Replacements::new(), OPTIONS, options).unwrap();
        case.settings.check(&mut pipeline, &expected, index);
    }
    assert!(cases.len() >= 14);
}
