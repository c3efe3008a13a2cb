//! Models with a `DDPMScheduler` on the real binary.

use crate::common::{Workplace, assert_done, assert_refused, read_npy, stderr};
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

fn edit(path: &Path, key: &str, value: Value) {
    let mut json: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    json[key] = value;
    fs::write(path, json.to_string()).unwrap();
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

#[test]
fn another_scheduler_than_the_model_ships_is_refused() {
    let (place, _) = with_stable_unclip();
    let mut command = place.bare();
    command.args(options("model")).args(["--scheduler", "unclip"]);
    assert_refused(&place, &mut command, 2, &["--scheduler unclip", "ddpm", "model"]);
    let mut command = place.command();
    command.args(["-p", "x", "--out", "e.npy", "--scheduler", "ddpm"]);
    assert_refused(&place, &mut command, 2, &["--scheduler ddpm", "unclip"]);
}

#[test]
fn without_an_index_the_configuration_names_the_class() {
    let (place, model) = with_stable_unclip();
    let expected = embed(&place, "model");
    fs::remove_file(model.join("model_index.json")).unwrap();
    assert_eq!(embed(&place, "model"), expected);
    edit(&model.join(CONFIG), "_class_name", json!("UnCLIPScheduler"));
    assert_ne!(embed(&place, "model"), expected);
    fs::remove_file(place.path("e.npy")).unwrap();
    edit(&model.join(CONFIG), "_class_name", json!("PNDMScheduler"));
    let words = [CONFIG, "PNDMScheduler", "UnCLIPScheduler or DDPMScheduler"];
    assert_refused(&place, place.bare().args(options("model")), 2, &words);
}

#[test]
fn the_index_goes_before_the_configuration() {
    let (place, model) = with_stable_unclip();
    let expected = embed(&place, "model");
    edit(&model.join(CONFIG), "_class_name", json!("UnCLIPScheduler"));
    assert_eq!(embed(&place, "model"), expected);
    fs::remove_file(place.path("e.npy")).unwrap();
    edit(&model.join("model_index.json"), "prior_scheduler", json!(["diffusers", "DDIMScheduler"]));
    let words = ["model_index.json", "DDIMScheduler", "UnCLIPScheduler or DDPMScheduler"];
    assert_refused(&place, place.bare().args(options("model")), 2, &words);
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
    edit(&model.join(CONFIG), "timestep_spacing", json!("trailing"));
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
        edit(&model.join(CONFIG), key, value);
        assert_refused(&place, place.bare().args(options("model")), 2, &["model", CONFIG, key]);
    }
    let (place, model) = with_stable_unclip();
    edit(&model.join(CONFIG), "steps_offset", json!(700));
    assert_refused(&place, place.bare().args(options("model")), 2, &["3 steps", "steps_offset of 700"]);
}
