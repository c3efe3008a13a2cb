//! Shap-E's prior on the real binary.

use crate::common::{Workplace, assert_done, assert_refused, stderr};
use ndarray::{Array3, s};
use ndarray_npy::ReadNpyExt;
use serde_json::{Value, json};
use std::fs;

fn with_model() -> Workplace {
    Workplace::with_model("shap_e/shap_e").0
}

const RUN: [&str; 6] = ["-m", "model", "--steps", "3", "-p", "a red apple"];

/// The latents of a run.
fn latents(place: &Workplace, options: &[&str]) -> Array3<f32> {
    assert_done(place.bare().args(RUN).args(["--out", "e.npy", "--overwrite"]).args(options));
    Array3::read_npy(fs::read(place.path("e.npy")).unwrap().as_slice()).unwrap()
}

#[test]
fn rows_are_arrays_of_latents() {
    let place = with_model();
    let together = latents(&place, &["-p", "two cats", "--samples-per-prompt", "2", "--seed", "7"]);
    assert_eq!(together.dim(), (4, 6, 5));
    let batch = latents(&place, &["-p", "two cats", "--samples-per-prompt", "2", "--seed", "7", "--batch-size", "4"]);
    assert!((&batch - &together).iter().all(|difference| difference.abs() < 1e-5));
    let alone = latents(&place, &["--seed", "8"]);
    let difference = &alone - &together.slice(s![1..2, .., ..]);
    assert!(difference.iter().all(|difference| difference.abs() < 1e-5));
    let unguided = latents(&place, &["--guidance-scale", "1", "--seed", "8"]);
    assert!((&unguided - &alone).iter().any(|difference| difference.abs() > 1e-3));
    for dtype in ["bf16", "int8"] {
        let near = latents(&place, &["--seed", "8", "--guidance-scale", "1", "--dtype", dtype]);
        let dot = |left: &Array3<f32>, right: &Array3<f32>| (left * right).sum();
        let cosine = dot(&near, &unguided) / (dot(&near, &near) * dot(&unguided, &unguided)).sqrt();
        assert!(cosine > 0.99, "{dtype}: cosine {cosine}");
    }
    let half = ["--seed", "8", "--out-dtype", "f16", "--out", "-"];
    let output = place.bare().args(RUN).args(half).output().unwrap();
    assert!(output.status.success() && output.stdout.len() == 128 + 2 * 30, "{}", stderr(&output));
}

#[test]
fn a_finished_run_is_recognized() {
    let place = with_model();
    fs::write(place.path("p.txt"), "a\nb\nc\n").unwrap();
    let options = ["-m", "model", "--steps", "2", "-f", "p.txt", "--out", "e.npy", "--resume"];
    assert_done(place.bare().args(options));
    let note = assert_done(place.bare().args(options));
    assert!(note.contains("nothing to do"), "{note}");
}

#[test]
fn what_it_does_not_take_is_refused() {
    let place = with_model();
    for options in
        [&["--negative-prompt", "blurry"][..], &["--negative-out", "n.npy"], &["--normalize"], &["--shard", "1/2"]]
    {
        let mut command = place.bare();
        command.args(RUN).args(["--out", "e.npy"]).args(options);
        assert_refused(&place, &mut command, 2, &[options[0], "model", "Shap-E"]);
    }
    for out in [&["--out", "e.npz"][..], &["--out", "e.jsonl"], &["--out", "e.parquet"], &["--out-dir", "e"]] {
        assert_refused(&place, place.bare().args(RUN).args(out), 2, &[out[1], "3D", ".npy"]);
    }
    fs::write(place.path("p.jsonl"), "{\"prompt\": \"a\", \"negative_prompt\": \"b\"}\n").unwrap();
    let mut command = place.bare();
    command.args(["-m", "model", "-f", "p.jsonl", "--out", "e.npy"]);
    assert_refused(&place, &mut command, 2, &["p.jsonl:1", "negative_prompt", "Shap-E"]);
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    for (key, value) in
        [("additional_embeddings", json!(2)), ("embedding_proj_dim", json!(5)), ("clip_embed_dim", json!(5))]
    {
        let place = with_model();
        let path = place.path("model/prior/config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
        assert_refused(&place, place.bare().args(RUN).args(["--out", "e.npy"]), 2, &["model", key]);
    }
}

#[test]
fn info_and_convert_know_it() {
    let place = with_model();
    let output = place.bare().args(["info", "model"]).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(text.contains("6 latents of 5 numbers"), "{text}{}", stderr(&output));
    let expected = latents(&place, &[]);
    assert_done(place.bare().args(["convert", "model", "converted"]));
    assert_eq!(latents(&place, &["-m", "converted"]), expected);
}
