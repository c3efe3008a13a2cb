//! The page, and the pictures on it. `scripts/check_page.py` uses it in a browser.

use crate::client::Server;
use crate::common::{Workplace, assert_done, model};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::fs;

#[test]
fn the_page_asks_for_no_key_and_loads_nothing() {
    let server = Server::start(&["--api-key", "secret"]);
    let reply = server.get("/");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(reply.text().starts_with("<!doctype html>"));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert_eq!(server.post("/draw", &json!({ "image_embeds": [] })).status, 401);
}

#[test]
fn pictures_are_those_of_the_command_line() {
    let place = Workplace::new();
    let server = Server::start(&[]);
    assert_eq!(server.get("/info").ok()["has_decoder"], true);
    let prompts = ["a red apple", "a rocket"];
    let embeds = server.post("/prior", &json!({ "prompts": prompts })).ok()["image_embeds"].clone();
    let drawn = server.post("/draw", &json!({ "image_embeds": embeds })).ok();
    let out = place.path("pictures/");
    let npy = place.path("embs.npy");
    for words in [
        vec!["--prompt", prompts[0], "--prompt", prompts[1], "--out", npy.to_str().unwrap(), "-q"],
        vec!["draw", npy.to_str().unwrap(), "-o", out.to_str().unwrap(), "--scale", "1"],
    ] {
        assert_done(place.bare().args(words));
    }
    let mut files: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2);
    for ((picture, file), name) in drawn["pictures"].as_array().unwrap().iter().zip(&files).zip(["red apple", "rocket"])
    {
        let [found, expected] = [STANDARD.decode(picture["png"].as_str().unwrap()).unwrap(), fs::read(file).unwrap()]
            .map(|png| pixels(&png));
        assert_eq!(found.len(), expected.len());
        // Rows that are computed beside others differ in their last bits.
        assert!(found.iter().zip(&expected).all(|(one, other)| one.abs_diff(*other) <= 1), "{name}");
        assert_eq!(picture["nearest"]["name"], name);
        assert!(picture["nearest"]["cosine"].as_f64().unwrap() > 0.5);
    }
}

fn pixels(png: &[u8]) -> Vec<u8> {
    image::load_from_memory(png).unwrap().into_rgb8().into_raw()
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let server = Server::start(&["--max-rows", "3"]);
    let row = vec![0.5; 192];
    for (rows, word) in [
        (json!([row[1..]]), "image_embeds[0] has 191 numbers"),
        (json!([row, vec![1e39; 192]]), "out of range"),
        (json!([row, vec![3e38; 192]]), "row 1 is no embedding"),
        (json!([row, row, row, row]), "at most 3"),
        (json!("x"), "image_embeds"),
    ] {
        let reply = server.post("/draw", &json!({ "image_embeds": rows }));
        assert_eq!(reply.status, 400, "{}", reply.text());
        assert!(reply.json()["error"]["message"].as_str().unwrap().contains(word), "{}", reply.text());
    }
    assert_eq!(server.post("/draw", &json!({ "image_embeds": [] })).ok(), json!({ "pictures": [] }));

    let server = Server::start(&["--model", model().to_str().unwrap()]);
    assert_eq!(server.get("/info").ok()["has_decoder"], false);
    let reply = server.post("/draw", &json!({ "image_embeds": [] }));
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("only the built-in model"), "{}", reply.text());
}
