//! Rows that bring their noise, and numbers as base64: how a program drives the filter.

use crate::common::{Workplace, assert_done, assert_refused, read_npy, read_npz, stderr};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ndarray::{Array2, s};
use ndarray_npy::write_npy;
use serde_json::{Value, json};
use std::fs;

/// The numbers of an answer's array.
fn numbers(line: &Value, array: &str) -> Vec<f32> {
    let bytes = BASE64_STANDARD.decode(line[array].as_str().unwrap()).unwrap();
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn base64(numbers: &[f32]) -> String {
    BASE64_STANDARD.encode(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
}

/// The answers of a filter.
fn filter(place: &Workplace, rows: &[Value], options: &[&str]) -> Vec<Value> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let mut command = place.command();
    command.args(["-f", "-", "--format-in", "jsonl", "-o", "-", "--format", "jsonl-base64"]).args(options);
    let output = command.write_stdin(lines).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rows_with_noise_of_their_own_have_the_numbers_of_a_call() {
    let place = Workplace::new();
    let prompts = ["a red apple", "two cats"];
    let run = |name: &str, options: &[&str]| {
        let mut command = place.command();
        assert_done(command.args(["-p", prompts[0], "-p", prompts[1], "-o", name]).args(options));
        let bytes = fs::read(place.path(name)).unwrap();
        ["image_embeds", "negative_image_embeds"].map(|array| (array, read_npz(bytes.clone(), array)))
    };
    let by_seed = run("seeds.npz", &["--seed", "5", "-n", "rain"]);
    let dim = by_seed[0].1.ncols();
    let latents = Array2::from_shape_fn((4, dim), |(row, column)| ((row * 31 + column * 17) as f32).sin());
    write_npy(place.path("latents.npy"), &latents).unwrap();
    let by_latents = run("latents.npz", &["--seed", "5", "-n", "rain", "--latents", "latents.npy"]);
    let noise = |row: usize| base64(latents.row(row).as_slice().unwrap());
    let row = |row: usize| json!({"prompt": prompts[row], "negative_prompt": "rain", "seed": 5 + row});
    let with = |mut object: Value, pairs: Value| {
        pairs.as_object().unwrap().iter().for_each(|(key, value)| object[key] = value.clone());
        object
    };
    let seeds = [0, 1].map(|index| with(row(index), json!({"negative_seed": 7 + index})));
    let given = [0, 1].map(|index| {
        let of_negative =
            json!({"negative_seed": 7 + index, "noise": noise(index), "negative_noise": noise(2 + index)});
        with(row(index), of_negative)
    });
    for (rows, expected) in [(seeds, &by_seed), (given, &by_latents)] {
        for (index, line) in filter(&place, &rows, &["--row-noise"]).iter().enumerate() {
            for (array, expected) in expected {
                assert_eq!(numbers(line, array), expected.row(index).to_vec(), "{array} of row {index}");
            }
        }
    }
    // Without the option they are keys like any other.
    let rows = [0, 1].map(|index| with(row(index), json!({"noise": "loud", "negative_seed": []})));
    for (index, line) in filter(&place, &rows, &[]).iter().enumerate() {
        assert_eq!(numbers(line, "image_embeds"), by_seed[0].1.row(index).to_vec());
    }
}

#[test]
fn noise_that_does_not_fit_is_refused() {
    let place = Workplace::new();
    for (pairs, what) in [
        (json!({"noise": "?"}), "p.jsonl:1: \"noise\" is not base64"),
        (json!({"noise": 5}), "\"noise\" must be text, not 5"),
        (json!({"negative_noise": "AAAA"}), "\"negative_noise\" has 3 bytes"),
        (json!({"noise": base64(&[f32::NAN])}), "\"noise\" holds NaN"),
        (json!({"negative_seed": -1}), "\"negative_seed\" must be a whole number"),
        (json!({"noise": base64(&[1.0; 5])}), "noise of 5 numbers, where this model takes "),
        (json!({"noise": base64(&[1.0]), "samples": 2}), "noise of its own, which is for one row, and 2 samples"),
    ] {
        let mut row = json!({"prompt": "a"});
        pairs.as_object().unwrap().iter().for_each(|(key, value)| row[key] = value.clone());
        fs::write(place.path("p.jsonl"), row.to_string()).unwrap();
        let mut command = place.command();
        assert_refused(&place, command.args(["-f", "p.jsonl", "-o", "e.npy", "--row-noise"]), 2, &[what]);
    }
}

#[test]
fn base64_lines_are_the_numbers_of_the_other_formats_and_merge_into_them() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a red apple\ntwo cats\nrain\n").unwrap();
    let run = |options: &[&str]| assert_done(place.command().args(["-f", "p.txt"]).args(options));
    run(&["-o", "whole.npy"]);
    for index in ["1", "2"] {
        let (shard, name) = (format!("{index}/2"), format!("part-{index}.jsonl-base64"));
        run(&["--shard", &shard, "--batch-size", "1", "-o", &name]);
    }
    let mut command = place.bare();
    assert_done(command.args(["merge", "part-1.jsonl-base64", "part-2.jsonl-base64", "-o", "merged.npz"]));
    let whole = read_npy(&fs::read(place.path("whole.npy")).unwrap());
    assert_eq!(read_npz(fs::read(place.path("merged.npz")).unwrap(), "image_embeds"), whole);
    let text = fs::read_to_string(place.path("part-1.jsonl-base64")).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(numbers(&first, "image_embeds"), whole.slice(s![0, ..]).to_vec());
}
