//! Schedulers on the real binary.

use crate::common::{Workplace, assert_done, assert_refused, edit_json, read_npy, stderr};
use ndarray::Array2;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: &str = "prior_scheduler/scheduler_config.json";

/// A workplace with a copy of the small Stable unCLIP.
fn with_stable_unclip() -> (Workplace, PathBuf) {
    let place = Workplace::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines");
    let model = place.copy(&fixtures.join("stable_unclip_layout"), "model");
    (place, model)
}

/// The options of a run of a model in the workplace.
const fn options(model: &str) -> [&str; 8] {
    ["-m", model, "-p", "a red apple", "--steps", "3", "--out", "e.npy"]
}

fn embed(place: &Workplace, model: &str) -> Array2<f32> {
    assert_done(place.bare().args(options(model)).arg("--overwrite"));
    read_npy(&fs::read(place.path("e.npy")).unwrap())
}

#[test]
fn the_scheduler_that_the_model_ships_is_named() {
    let (place, _) = with_stable_unclip();
    let output = place.bare().args(["info", "-m", "model"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("DDPMScheduler, 1000 training timesteps, predicts the embedding"), "{text}");
    assert_done(place.bare().args(options("model")).args(["--scheduler", "ddpm", "--stats", "stats.json"]));
    let stats: Value = serde_json::from_str(&fs::read_to_string(place.path("stats.json")).unwrap()).unwrap();
    assert_eq!(stats["settings"]["scheduler"], "ddpm");
}

/// Every scheduler gives a finite embedding of its own from the same noise, and the same one again.
#[test]
fn another_scheduler_than_the_model_ships_may_be_chosen() {
    let (place, _) = with_stable_unclip();
    let with = |scheduler: &[&str]| {
        assert_done(place.bare().args(options("model")).args(scheduler).arg("--overwrite"));
        read_npy(&fs::read(place.path("e.npy")).unwrap())
    };
    let own = with(&[]);
    assert_eq!(with(&["--scheduler", "ddpm"]), own);
    let others: [&[&str]; 8] = [
        &["--scheduler", "unclip"],
        &["--scheduler", "ddim"],
        &["--scheduler", "ddim", "--eta", "1"],
        &["--scheduler", "dpm-solver++"],
        &["--scheduler", "dpm-solver++", "--solver-order", "1"],
        &["--scheduler", "dpm-solver++", "--sde"],
        &["--scheduler", "euler"],
        &["--scheduler", "heun"],
    ];
    let mut seen = vec![own];
    for scheduler in others {
        let embeds = with(scheduler);
        assert!(embeds.iter().all(|value| value.is_finite()), "{scheduler:?}");
        assert!(!seen.contains(&embeds), "{scheduler:?}");
        assert_eq!(with(scheduler), embeds, "{scheduler:?}");
        seen.push(embeds);
    }
}

/// A run goes on with its own scheduler alone.
#[test]
fn a_run_is_not_resumed_with_another_scheduler() {
    let (place, _) = with_stable_unclip();
    let run = |scheduler: &[&str]| {
        let mut command = place.bare();
        command.args(options("model")).args(["--scheduler", "ddim", "--resume"]).args(scheduler);
        command
    };
    assert_done(&mut run(&[]));
    assert_done(&mut run(&["--eta", "0"]));
    let output = run(&["--eta", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--eta was 0, is 1"), "{}", stderr(&output));
}

/// Kandinsky's class has its schedule of betas as a default, and the others have another one.
#[test]
fn a_configuration_that_leaves_the_betas_to_its_class_is_warned_of() {
    let place = Workplace::new();
    let model = place.copy_model();
    let config = model.join("scheduler/scheduler_config.json");
    let warning = |place: &Workplace| {
        let output = place.bare().args(options("model")).args(["--scheduler", "ddim", "--overwrite"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output).contains("has no beta_schedule, so that ddim takes another one than unclip")
    };
    edit_json(&config, "beta_schedule", json!("squaredcos_cap_v2"));
    assert!(!warning(&place));
    edit_json(&config, "_use_default_values", json!(["beta_schedule"]));
    assert!(warning(&place));
}

#[test]
fn without_an_index_the_configuration_names_the_class() {
    let (place, model) = with_stable_unclip();
    let expected = embed(&place, "model");
    fs::remove_file(model.join("model_index.json")).unwrap();
    assert_eq!(embed(&place, "model"), expected);
    edit_json(&model.join(CONFIG), "_class_name", json!("UnCLIPScheduler"));
    assert_ne!(embed(&place, "model"), expected);
    fs::remove_file(place.path("e.npy")).unwrap();
    edit_json(&model.join(CONFIG), "_class_name", json!("PNDMScheduler"));
    let words = [CONFIG, "PNDMScheduler", "UnCLIPScheduler or DDPMScheduler or DDIMScheduler"];
    assert_refused(&place, place.bare().args(options("model")), 2, &words);
}

#[test]
fn the_index_goes_before_the_configuration() {
    let (place, model) = with_stable_unclip();
    let expected = embed(&place, "model");
    edit_json(&model.join(CONFIG), "_class_name", json!("UnCLIPScheduler"));
    assert_eq!(embed(&place, "model"), expected);
    fs::remove_file(place.path("e.npy")).unwrap();
    edit_json(&model.join("model_index.json"), "prior_scheduler", json!(["diffusers", "PNDMScheduler"]));
    let words = ["model_index.json", "PNDMScheduler", "UnCLIPScheduler or DDPMScheduler"];
    assert_refused(&place, place.bare().args(options("model")), 2, &words);
}

/// A model of any class runs, is described and is converted.
#[test]
fn a_model_may_ship_any_scheduler() {
    for class in ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"] {
        let (place, model) = with_stable_unclip();
        edit_json(&model.join("model_index.json"), "prior_scheduler", json!(["diffusers", class]));
        let embeds = embed(&place, "model");
        let output = place.bare().args(["info", "-m", "model"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("{class}, 1000 training timesteps")), "{text}");
        assert_done(place.bare().args(["convert", "model", "converted"]));
        assert_eq!(embed(&place, "converted"), embeds);
    }
}

#[test]
fn a_converted_model_keeps_its_scheduler() {
    let (place, _) = with_stable_unclip();
    assert_done(place.bare().args(["convert", "model", "converted"]));
    assert_eq!(embed(&place, "converted"), embed(&place, "model"));
    let index: Value =
        serde_json::from_str(&fs::read_to_string(place.path("converted/model_index.json")).unwrap()).unwrap();
    assert_eq!(index["scheduler"], json!(["diffusers", "DDPMScheduler"]));
}

/// Of these timesteps none is 0, so every step draws noise.
#[test]
fn a_run_may_draw_noise_at_every_step() {
    let (place, model) = with_stable_unclip();
    let leading = embed(&place, "model");
    edit_json(&model.join(CONFIG), "timestep_spacing", json!("trailing"));
    let trailing = embed(&place, "model");
    assert_ne!(trailing, leading);
    assert!(trailing.iter().all(|value| value.is_finite()));
}

#[test]
fn configurations_with_wrong_values_are_refused_by_key() {
    let cases = [
        ("variance_type", json!("learned_range")),
        ("variance_type", json!(3)),
        ("prediction_type", json!("flow")),
        ("beta_schedule", json!("exp")),
        ("thresholding", json!(true)),
        ("num_train_timesteps", json!("1000")),
        ("steps_offset", json!(-1)),
    ];
    for (key, value) in cases {
        let (place, model) = with_stable_unclip();
        edit_json(&model.join(CONFIG), key, value);
        assert_refused(&place, place.bare().args(options("model")), 2, &["model", CONFIG, key]);
    }
    let (place, model) = with_stable_unclip();
    edit_json(&model.join(CONFIG), "steps_offset", json!(700));
    assert_refused(&place, place.bare().args(options("model")), 2, &["3 steps", "steps_offset of 700"]);
}

#[test]
fn values_that_a_scheduler_cannot_take_are_refused_by_key() {
    let cases = [
        ("dpm-solver++", "solver_order", json!(0)),
        ("dpm-solver++", "solver_order", json!(4)),
        ("dpm-solver++", "solver_order", json!("2")),
        ("dpm-solver++", "solver_type", json!("bh3")),
        ("dpm-solver++", "algorithm_type", json!("dpmsolver")),
        ("dpm-solver++", "algorithm_type", json!("unipc")),
        ("dpm-solver++", "final_sigmas_type", json!(null)),
        ("dpm-solver++", "use_flow_sigmas", json!(true)),
        ("dpm-solver++", "use_beta_sigmas", json!(true)),
        ("dpm-solver++", "sigma_min", json!(-1)),
        ("dpm-solver++", "variance_type", json!("learned_range")),
        ("dpm-solver++", "lambda_min_clipped", json!("-inf")),
        ("dpm-solver++", "prediction_type", json!("flow_prediction")),
        ("euler", "interpolation_type", json!("cubic")),
        ("euler", "timestep_type", json!(1)),
        ("euler", "use_beta_sigmas", json!(true)),
        ("euler", "sigma_max", json!(1e300)),
        ("euler", "num_train_timesteps", json!(-1000)),
        ("euler-ancestral", "timestep_spacing", json!("even")),
        ("euler-ancestral", "prediction_type", json!("sample")),
        ("heun", "clip_sample_range", json!(-5)),
        ("heun", "beta_schedule", json!("laplace")),
        ("heun", "trained_betas", json!([0.5])),
        ("ddim", "beta_schedule", json!("exp")),
        ("ddim", "thresholding", json!(true)),
        ("ddim", "set_alpha_to_one", json!("no")),
        ("ddim", "steps_offset", json!(1000)),
    ];
    for (scheduler, key, value) in cases {
        let (place, model) = with_stable_unclip();
        edit_json(&model.join(CONFIG), key, value);
        if key == "clip_sample_range" {
            edit_json(&model.join(CONFIG), "clip_sample", json!(true));
        }
        let mut command = place.bare();
        command.args(options("model")).args(["--scheduler", scheduler]);
        assert_refused(&place, &mut command, 2, &["model", CONFIG, key]);
    }
}
