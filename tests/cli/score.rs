//! `prior-embed score`.

use crate::common::{Workplace, assert_refused, model, picture, read_npy, stderr};
use ndarray::{Array2, array};
use ndarray_npy::write_npy;
use serde_json::{Value, json};
use std::fs;

/// The lines of a command's standard output, split at tabs.
fn lines(place: &Workplace, arguments: &[&str]) -> Vec<Vec<String>> {
    let output = place.bare().arg("score").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_string).collect()).collect()
}

fn json_lines(place: &Workplace, arguments: &[&str]) -> Vec<Value> {
    let output = place.bare().arg("score").args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn cosine(one: ndarray::ArrayView1<f32>, other: ndarray::ArrayView1<f32>) -> f64 {
    let dot = |one: ndarray::ArrayView1<f32>, other: ndarray::ArrayView1<f32>| -> f64 {
        one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
    };
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

#[test]
fn prompts_are_compared_by_their_text_embeddings() {
    let place = Workplace::new();
    let options = ["-p", "a red apple", "-p", "two cats", "-o", "e.npy", "--text-out", "t.npy"];
    place.bare().args(options).args(["--steps", "2", "-q"]).assert().success();
    let [embeds, texts] = ["e.npy", "t.npy"].map(|name| read_npy(&fs::read(place.path(name)).unwrap()));
    let found = json_lines(&place, &["e.npy", "--prompt", "a red apple", "two cats"]);
    for (row, line) in found.iter().enumerate() {
        assert_eq!(line["row"], json!(row));
        for (text, prompt) in ["a red apple", "two cats"].into_iter().enumerate() {
            let score = &line["scores"][text];
            assert_eq!(score["prompt"], json!(prompt));
            let expected = cosine(embeds.row(row), texts.row(text));
            assert!((score["cosine"].as_f64().unwrap() - expected).abs() < 2e-6, "{score} {expected}");
        }
    }
    // The one that it was made of first, and no other.
    let nearest = lines(&place, &["e.npy", "-p", "a red apple", "-p", "two cats", "--top", "1"]);
    let first: Vec<&[String]> = nearest.iter().map(|line| &line[..2]).collect();
    assert_eq!(first, [["0", "a red apple"], ["1", "two cats"]]);
}

#[test]
fn pictures_are_compared_by_their_image_embeddings() {
    let place = Workplace::new();
    let names = ["rgb.png", "palette.gif", "exif_6.jpg"];
    for name in names {
        fs::copy(picture(name), place.path(name)).unwrap();
    }
    place.bare().arg("encode-image").args(names).args(["-o", "e.npy"]).assert().success();
    let embeds = read_npy(&fs::read(place.path("e.npy")).unwrap());
    let found = json_lines(&place, &["e.npy", "--image", "exif_6.jpg", "rgb.png"]);
    for (row, line) in found.iter().enumerate() {
        for (place, image) in [2, 0].into_iter().enumerate() {
            let score = &line["scores"][place];
            assert_eq!(score["image"], json!(names[image]));
            let expected = cosine(embeds.row(row), embeds.row(image));
            assert!((score["cosine"].as_f64().unwrap() - expected).abs() < 1e-5, "{score} {expected}");
        }
    }
    let nearest = lines(&place, &["e.npy", "--image", names[0], "--image", names[1], names[2], "--top", "1"]);
    assert_eq!(nearest, [0, 1, 2].map(|row| vec![row.to_string(), names[row].to_string(), "1.0000".to_string()]));
    let output = place.bare().args(["score", "e.npy", "--image", names[0], "--tokenizer", "x"]).output().unwrap();
    assert!(stderr(&output).contains("--tokenizer has no effect"), "{}", stderr(&output));
}

#[test]
fn pictures_that_cannot_be_compared_are_refused() {
    let place = Workplace::new();
    write_npy(place.path("e.npy"), &Array2::<f32>::ones((2, 16))).unwrap();
    let bytes = fs::read(picture("rgb.png")).unwrap();
    fs::write(place.path("rgb.png"), &bytes).unwrap();
    fs::write(place.path("cut.png"), &bytes[..700]).unwrap();
    fs::write(place.path("text.jpg"), "hello").unwrap();
    let small = model().display().to_string();
    let without = model().with_file_name("no_image_encoder").display().to_string();
    for (model, pictures, words) in [
        ("emoji", vec!["rgb.png"], vec!["rows of 16 numbers", "image embeddings of", "--model"]),
        (&small, vec!["rgb.png", "cut.png"], vec!["cut.png", "damaged"]),
        (&small, vec!["text.jpg"], vec!["text.jpg", "not a JPEG"]),
        (&small, vec!["gone.png"], vec!["gone.png", "No such file"]),
        (&small, vec!["."], vec![".", "directory"]),
        (&small, vec![], vec!["--image"]),
        (&small, vec!["rgb.png", "--in", "e.npy"], vec!["cannot be used with"]),
        (&small, vec!["rgb.png", "-p", "x"], vec!["cannot be used with"]),
    ] {
        let mut command = place.bare();
        command.args(["score", "e.npy", "-m", model, "--image"]).args(pictures);
        assert_refused(&place, &mut command, 2, &words);
    }
    write_npy(place.path("e.npy"), &Array2::<f32>::ones((2, 12))).unwrap();
    let mut command = place.bare();
    command.args(["score", "e.npy", "-m", &without, "--image", "rgb.png"]);
    assert_refused(&place, &mut command, 2, &["no image encoder", "--image-encoder"]);
    assert_refused(&place, command.args(["--image-encoder", &small]), 2, &["must be equal"]);
}

#[test]
fn the_nearest_rows_of_a_bank_are_named() {
    let place = Workplace::new();
    let prompts = "{\"id\": \"x\", \"prompt\": \"a red apple\"}\n{\"prompt\": \"two\\tcats\"}\n{\"id\": \"z\", \"prompt\": \"rain\"}\n";
    fs::write(place.path("p.jsonl"), prompts).unwrap();
    let embed = |out: &[&str]| {
        place.bare().args(["-f", "p.jsonl", "--steps", "2", "-q"]).args(out).assert().success();
    };
    embed(&["-o", "e.npy"]);
    embed(&["-o", "bank.parquet", "--out-dtype", "f16"]);
    embed(&["--out-dir", "folder", "--rows-per-file", "2"]);
    for bank in ["bank.parquet", "folder"] {
        let found = lines(&place, &["e.npy", "--in", bank, "--top", "1"]);
        let expected = [
            ["0", "0", "x", "a red apple", "1.0000"],
            ["1", "1", "", "two\\tcats", "1.0000"],
            ["2", "2", "z", "rain", "1.0000"],
        ];
        assert_eq!(found, expected, "{bank}");
    }
    let found = json_lines(&place, &["folder", "--in", "e.npy", "--top", "100"]);
    assert_eq!((&found[0]["id"], &found[0]["caption"]), (&json!("x"), &json!("a red apple")));
    assert_eq!(found.iter().map(|line| line["scores"].as_array().unwrap().len()).collect::<Vec<_>>(), [3, 3, 3]);
    assert_eq!(found[2]["scores"][0], json!({"row": 2, "cosine": 1.0}));
    // From a pipe; five by default.
    write_npy(place.path("six.npy"), &Array2::<f32>::ones((6, 192))).unwrap();
    let embeds = fs::read(place.path("e.npy")).unwrap();
    let output = place.bare().args(["score", "-", "--in", "six.npy"]).write_stdin(embeds).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<&str> = text.lines().map(|line| line.split('\t').nth(1).unwrap()).collect();
    assert_eq!(rows, ["0", "1", "2", "3", "4"].repeat(3), "ties are in order");
}

#[test]
fn rows_without_a_direction_are_told() {
    let place = Workplace::new();
    write_npy(place.path("q.npy"), &array![[1.0_f32, 0.0], [0.0, 0.0]]).unwrap();
    write_npy(place.path("bank.npy"), &array![[f32::NAN, 0.0], [0.0, 0.0], [-1.0, 1.0], [2.0, 0.0]]).unwrap();
    let output = place.bare().args(["score", "q.npy", "--in", "bank.npy"]).output().unwrap();
    let warning = stderr(&output);
    assert!(warning.contains("1 rows with NaN or infinity are left out, the first of them row 0"), "{warning}");
    let expected = "0\t3\t1.0000\n0\t1\t0.0000\n0\t2\t-0.7071\n1\t1\t0.0000\n1\t2\t0.0000\n1\t3\t0.0000\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_refused(
        &place,
        place.bare().args(["score", "bank.npy", "--in", "q.npy"]),
        2,
        &["row 0 of \"bank.npy\"", "NaN"],
    );
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let place = Workplace::new();
    write_npy(place.path("two.npy"), &array![[1.0_f32, 0.0]]).unwrap();
    write_npy(place.path("three.npy"), &array![[1.0_f32, 0.0, 0.0]]).unwrap();
    write_npy(place.path("none.npy"), &Array2::<f32>::zeros((0, 2))).unwrap();
    let bytes = fs::read(place.path("two.npy")).unwrap();
    fs::write(place.path("cut.npy"), &bytes[..bytes.len() - 1]).unwrap();
    for (arguments, words) in [
        (vec!["two.npy", "--in", "three.npy"], vec!["\"two.npy\" has rows of 2 numbers and \"three.npy\" of 3"]),
        (vec!["two.npy", "-p", "a cat"], vec!["rows of 2 numbers", "emoji have", "--model"]),
        (vec!["two.npy"], vec!["--prompt", "--image", "--in"]),
        (vec!["two.npy", "-p", "x", "--in", "two.npy"], vec!["cannot be used with"]),
        (vec!["two.npy", "--in", "two.npy", "--top", "0"], vec!["--top", "between 1 and"]),
        (vec!["two.npy", "--in", "two.npy", "--top", "-1"], vec!["--top", "between 1 and"]),
        (vec!["two.npy", "--in", "none.npy"], vec!["\"none.npy\" holds no embeddings"]),
        (vec!["two.npy", "--in", "cut.npy"], vec!["\"cut.npy\" is truncated", "7 bytes"]),
        (vec!["two.npy", "--in", "gone.npy"], vec!["cannot read \"gone.npy\"", "No such file"]),
        (vec!["-", "--in", "-"], vec!["both standard input"]),
    ] {
        assert_refused(&place, place.bare().arg("score").args(&arguments), 2, &words);
    }
    let output = place.bare().args(["score", "two.npy", "--in", "two.npy", "-m", "emoji"]).output().unwrap();
    assert!(stderr(&output).contains("--model has no effect"), "{}", stderr(&output));
}
