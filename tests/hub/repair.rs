//! Damaged files in the cache, and servers that cause them.

use crate::common::{assert_done, assert_refused, stderr};
use crate::place::{Place, REPOSITORY, small_model};
use crate::server::{COMMIT, Fault, is_large};
use std::fs;

const PRIOR: &str = "prior/diffusion_pytorch_model.safetensors";
const ADVICE: &str = "; run `prior-embed download owner/kandinsky --force`";

/// Overwrites the blob of a file.
fn damage(place: &Place, path: &str, content: &[u8]) {
    fs::write(place.snapshot(path).canonicalize().unwrap(), content).unwrap();
}

fn content(place: &Place, path: &str) -> Vec<u8> {
    fs::read(place.snapshot(path)).unwrap()
}

#[test]
fn files_of_another_size_are_downloaded_again() {
    let place = Place::new();
    assert_done(&mut place.download(REPOSITORY));
    for path in [PRIOR, "model_index.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"] {
        if !place.snapshot(path).exists() {
            continue;
        }
        damage(&place, path, b"{\"cut");
        place.server.reset();
        assert_done(&mut place.download(REPOSITORY));
        assert!(content(&place, path) == small_model().files[path], "{path}");
        let pattern = if is_large(path) { "cdn GET" } else { "GET /owner/kandinsky/resolve" };
        assert_eq!(place.server.requests(pattern).len(), 1, "{path}: nothing else");
    }
}

#[test]
fn force_compares_hashes_and_errors_say_so() {
    let place = Place::new();
    let expected = place.embeds(&mut place.embed(REPOSITORY));
    let mut prior = small_model().files[PRIOR].clone();
    prior[9] = 0xff;
    for (path, broken) in [
        (PRIOR, prior),
        (PRIOR, Vec::new()),
        ("model_index.json", b"{".to_vec()),
        ("scheduler/scheduler_config.json", b"{\"a\": ".to_vec()),
        ("prior/config.json", b"<html>".to_vec()),
    ] {
        damage(&place, path, &broken);
        let output = place.embed(REPOSITORY).output().unwrap();
        let line = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(line.ends_with(&format!("{ADVICE}\n")) && line.lines().count() == 1, "{path}: {line}");
        place.server.reset();
        assert_done(place.download(REPOSITORY).arg("--force"));
        assert!(content(&place, path) == small_model().files[path], "{path}");
        let contents = ["cdn GET", "GET /owner/kandinsky/resolve"].map(|pattern| place.server.requests(pattern).len());
        assert_eq!(contents.iter().sum::<usize>(), if is_large(path) { 2 } else { 1 }, "{path}: {contents:?}");
        assert_eq!(place.embeds(&mut place.embed(REPOSITORY)), expected);
    }
    assert!(place.unfinished().is_empty());
    // Damage that keeps the length shows in the hash alone.
    let mut weights = small_model().files[PRIOR].clone();
    *weights.last_mut().unwrap() ^= 1;
    damage(&place, PRIOR, &weights);
    assert_done(&mut place.download(REPOSITORY));
    assert!(content(&place, PRIOR) == weights);
    assert_done(place.download(REPOSITORY).arg("--force"));
    assert!(content(&place, PRIOR) == small_model().files[PRIOR]);
    let mut command = place.download(REPOSITORY);
    assert_refused(&place.work, command.args(["--force", "--offline"]), 2, &["--force", "--offline"]);
}

#[test]
fn files_without_a_length_are_checked_too() {
    let config = format!("GET /owner/kandinsky/resolve/{COMMIT}/prior/config.json");
    let place = Place::new();
    place.server.fail("HEAD", usize::MAX, Fault::NoLength(0));
    place.server.fail(&config, 1, Fault::NoLength(20));
    assert_done(&mut place.download(REPOSITORY));
    assert!(content(&place, "prior/config.json") == small_model().files["prior/config.json"]);
    assert_eq!(place.server.requests(&config).len(), 2);
    // The same if the listing has no sizes either: the hash decides.
    let place = Place::new();
    let siblings: Vec<_> =
        small_model().files.keys().map(|path| serde_json::json!({"rfilename": path, "size": null})).collect();
    let listing = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
    place.server.fail("api/models", usize::MAX, Fault::Body(listing));
    place.server.fail("HEAD", usize::MAX, Fault::NoLength(0));
    place.server.fail(&config, 1, Fault::NoLength(20));
    assert_done(&mut place.download(REPOSITORY));
    assert!(content(&place, "prior/config.json") == small_model().files["prior/config.json"]);
    assert_eq!(place.server.requests(&config).len(), 2);
}
