//! `models`, `download` and `info`.

use crate::common::{assert_done, assert_refused, model, stderr};
use crate::place::{Place, REPOSITORY, small_model};
use crate::server::{COMMIT, is_large};
use serde_json::Value;
use std::process::{Command, Stdio};

/// The JSON that a command prints.
fn json(command: &mut assert_cmd::Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn models_are_listed_with_what_is_cached() {
    let place = Place::new();
    let list = || json(place.command().args(["models", "--json"]));
    let find = |list: &Value, name: &str| {
        let entries = list.as_array().unwrap().iter();
        entries.clone().find(|entry| entry["name"] == name).cloned()
    };
    let before = list();
    let emoji = find(&before, "emoji").unwrap();
    assert_eq!((&emoji["cached"], &emoji["licence"]), (&"built-in".into(), &"CC BY 4.0".into()));
    assert!(emoji["dimension"].as_u64().unwrap() > 0 && emoji["bytes"].as_u64().unwrap() > 1_000_000);
    for (name, dimension) in [("karlo", 768), ("kandinsky-2.1", 768), ("kandinsky-2.2", 1280), ("stable-unclip", 768)] {
        let entry = find(&before, name).unwrap();
        assert_eq!((&entry["dimension"], &entry["cached"]), (&dimension.into(), &"no".into()), "{name}");
    }
    assert!(find(&before, REPOSITORY).is_none());

    assert_done(&mut place.download(REPOSITORY));
    place.server.put("kakaobrain/karlo-v1-alpha", small_model());
    assert_done(place.command().args(["info", "-m", "karlo"]));
    let after = list();
    let weights: usize = small_model()
        .files
        .iter()
        .filter(|(path, _)| path.starts_with("prior/"))
        .map(|(_, content)| content.len())
        .sum();
    let entry = find(&after, REPOSITORY).unwrap();
    assert_eq!(entry["cached"], "yes");
    assert!(entry["bytes"].as_u64().unwrap() as usize > weights);
    assert_eq!(find(&after, "karlo").unwrap()["cached"], "partly", "configurations alone");
    assert_done(&mut place.download("karlo"));
    assert_eq!(find(&list(), "karlo").unwrap()["cached"], "yes");
    place.server.reset();
    let output = place.command().arg("models").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("kandinsky-2.2") && table.contains("1280") && table.contains("built in"), "{table}");
    assert!(place.server.requests("").is_empty(), "listing needs no network");
}

#[test]
fn download_prints_the_folder_of_the_model() {
    let place = Place::new();
    let output = place.download(REPOSITORY).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let folder = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(folder.trim_end(), place.snapshot("").to_str().unwrap().trim_end_matches('/'));
    let lines = stderr(&output);
    assert!(lines.contains("downloading owner/kandinsky") && lines.contains(COMMIT), "{lines}");
    assert!(!place.snapshot("image_encoder").exists());
    let quiet = place.download(REPOSITORY).args(["--quiet", "--image-encoder"]).output().unwrap();
    assert_eq!((stderr(&quiet), quiet.stdout), (String::new(), output.stdout));
    assert!(place.snapshot("image_encoder/model.safetensors").exists());
    assert_refused(&place.work, &mut place.download("emoji"), 2, &["nothing to download"]);
    assert_refused(&place.work, place.command().arg("download"), 2, &["NAME"]);
}

#[test]
fn info_downloads_no_weights() {
    let place = Place::new();
    let info = |model: &str| json(place.command().args(["info", "--json", "--model", model]));
    let remote = info(REPOSITORY);
    assert!(place.server.requests("cdn").is_empty());
    assert_eq!((&remote["commit"], &remote["revision"]), (&COMMIT.into(), &"main".into()));
    assert_eq!(remote["parameters"]["is_estimate"], true);
    let is_here = |info: &Value, path: &str| {
        let files = info["files"].as_array().unwrap();
        files.iter().find(|file| file["path"] == path).map(|file| file["cached"] == true)
    };
    assert_eq!(is_here(&remote, "prior/config.json"), Some(true));
    assert_eq!(is_here(&remote, "prior/diffusion_pytorch_model.safetensors"), Some(false));
    assert_eq!(is_here(&remote, "unet/diffusion_pytorch_model.safetensors"), None);

    assert_done(&mut place.download(REPOSITORY));
    let here = info(REPOSITORY);
    let folder = info(model().to_str().unwrap());
    for key in ["prior", "text_encoder", "parameters", "memory_bytes", "run_bytes", "scheduler", "tokenizer"] {
        assert_eq!(here[key], folder[key], "{key}");
    }
    assert_eq!(here["parameters"]["is_estimate"], false);
    let estimate = remote["parameters"]["prior"].as_f64().unwrap() / here["parameters"]["prior"].as_f64().unwrap();
    assert!((0.9..2.0).contains(&estimate), "headers are a large part of so small a model: {estimate}");
    assert_eq!(here["memory_bytes"]["bf16"].as_u64().unwrap() * 2, here["memory_bytes"]["f32"].as_u64().unwrap());
    assert!(here["files"].as_array().unwrap().iter().all(|file| file["cached"] == true));
}

#[test]
fn info_is_of_the_built_in_model_unless_another_is_named() {
    let place = Place::new();
    let output = place.command().arg("info").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["emoji", "prior", "UnCLIPScheduler", "parameters", "tokens", "model.safetensors"] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    assert_refused(&place.work, place.command().args(["info", "-m", "./none"]), 2, &["./none"]);
    assert!(place.server.requests("").is_empty());
}

#[test]
fn a_reader_that_stops_is_no_error() {
    let place = Place::new();
    assert_done(&mut place.download(REPOSITORY));
    for arguments in [&["models"][..], &["info"], &["download", REPOSITORY]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prior-embed"));
        command.args(arguments).env("HF_HOME", place.work.path("hf")).env("HF_ENDPOINT", place.server.endpoint());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
    }
}

#[test]
fn large_files_are_those_that_the_hub_redirects() {
    assert!(is_large("prior/x.safetensors") && !is_large("prior/config.json"));
}
