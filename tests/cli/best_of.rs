//! `--best-of` and `--scores`: which draw is kept, and that everything else holds for it as for one draw.

use crate::common::{Workplace, assert_done, assert_refused, kill_after_rows, off, read_npy, read_npz, stderr};
use assert_cmd::Command;
use ndarray::{Array2, s};
use serde_json::Value;
use std::fs;
use std::path::Path;

const PROMPTS: [&str; 6] = ["-p", "a red apple", "-p", "two cats", "-p", "Sea at night"];

/// The first of the largest numbers of each row.
fn best(scores: &Array2<f32>) -> Vec<usize> {
    let first_largest = |row: ndarray::ArrayView1<f32>| {
        (1..row.len()).fold(0, |best, draw| if row[draw] > row[best] { draw } else { best })
    };
    scores.rows().into_iter().map(first_largest).collect()
}

#[test]
fn the_best_of_as_many_samples_is_kept() {
    let place = Workplace::new();
    let run = |options: &[&str]| assert_done(place.command().args(PROMPTS).args(["--seed", "7"]).args(options));
    run(&["--samples-per-prompt", "6", "--out", "all.npy", "--text-out", "text.npy"]);
    run(&["--samples-per-prompt", "2", "--best-of", "3", "--out", "e.npy", "--scores", "s.npy", "--batch-size", "64"]);
    let (all, text, kept, scores) =
        (place.npy("all.npy"), place.npy("text.npy"), place.npy("e.npy"), place.npy("s.npy"));
    assert_eq!((kept.nrows(), scores.dim()), (6, (6, 3)));
    let products: Vec<f32> = all.rows().into_iter().zip(text.rows()).map(|(image, text)| image.dot(&text)).collect();
    let products = Array2::from_shape_vec((6, 3), products).unwrap();
    assert!(off(&scores, &products) < 1e-4);
    let best = best(&scores);
    let expected: Vec<usize> = best.iter().enumerate().map(|(row, draw)| row * 3 + draw).collect();
    assert!(off(&kept, &all.select(ndarray::Axis(0), &expected)) < 1e-4);
    assert!(best.iter().any(|draw| *draw > 0) && best.contains(&0), "{best:?} shows little");
    // The seeds say which draw it was, and give it alone.
    run(&["--samples-per-prompt", "2", "--best-of", "3", "--out", "e.jsonl"]);
    let lines = fs::read_to_string(place.path("e.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (row, line) in lines.iter().enumerate() {
        assert_eq!(line["seed"], 7 + expected[row]);
        let (prompt, seed) = (line["prompt"].as_str().unwrap(), line["seed"].to_string());
        assert_done(place.command().args(["-p", prompt, "--seed", &seed, "--out", "one.npy", "--overwrite"]));
        assert!(off(&place.npy("one.npy"), &kept.slice(s![row..=row, ..]).to_owned()) < 1e-4);
    }
}

#[test]
fn rows_depend_neither_on_batches_nor_on_shards_nor_on_neighbours() {
    let place = Workplace::new();
    fs::write(
        place.path("p.jsonl"),
        "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"seed\": 90, \"samples\": 3}\n{\"prompt\": \"c\", \"steps\": 2}\n",
    )
    .unwrap();
    let command = |options: &[&str]| -> Command {
        let mut command = place.command();
        command.args(["-f", "p.jsonl", "--best-of", "4", "-n", "rain"]).args(options);
        command
    };
    assert_done(command(&["--out", "whole.npz", "--scores", "whole.npy"]).args(["--batch-size", "10"]));
    let whole = |name| read_npz(fs::read(place.path("whole.npz")).unwrap(), name);
    for batch in ["1", "3", "64"] {
        let files = ["--out", "e.npz", "--scores", "s.npy", "--overwrite", "--batch-size", batch];
        assert_done(&mut command(&files));
        assert!(off(&place.npy("s.npy"), &place.npy("whole.npy")) < 1e-5, "{batch}");
        for name in ["image_embeds", "negative_image_embeds"] {
            let found = read_npz(fs::read(place.path("e.npz")).unwrap(), name);
            assert!(off(&found, &whole(name)) < 1e-5, "{batch} {name}");
        }
    }
    for shard in ["1/2", "2/2"] {
        let index = &shard[..1];
        let files = [format!("{index}.npz"), format!("{index}.parquet")];
        let files = ["--out", &files[0], "--scores", &files[1]];
        assert_done(command(&files).args(["--shard", shard, "--batch-size", "10"]));
    }
    assert_done(place.bare().args(["merge", "1.npz", "2.npz", "--out", "merged.npz"]));
    assert_eq!(fs::read(place.path("merged.npz")).unwrap(), fs::read(place.path("whole.npz")).unwrap());
    assert_done(place.bare().args(["merge", "1.parquet", "2.parquet", "--out", "merged.npy"]));
    assert_eq!(fs::read(place.path("merged.npy")).unwrap(), fs::read(place.path("whole.npy")).unwrap());
    assert_refused(
        &place,
        place.bare().args(["merge", "1.parquet", "2.parquet", "--out-dir", "d"]),
        2,
        &["scores take a file of their own"],
    );
}

#[test]
fn a_run_with_scores_is_resumed() {
    let place = Workplace::new();
    let lines: String = (0..400).map(|row| format!("cat number {row}\n")).collect();
    fs::write(place.path("p.txt"), lines).unwrap();
    let options = ["-f", "p.txt", "--best-of", "3", "--batch-size", "6", "--normalize"];
    assert_done(place.command().args(options).args(["--out", "whole.npy", "--scores", "whole.jsonl"]));
    let files = ["--out", "e.npy", "--scores", "s.jsonl"];
    kill_after_rows(&place, &[&options[..], &files].concat(), 20);
    let resume = ["--out", "e.npy", "--scores", "s.jsonl", "--resume"];
    assert_done(place.command().args(options).args(resume));
    for (found, expected) in [("e.npy", "whole.npy"), ("s.jsonl", "whole.jsonl")] {
        assert!(fs::read(place.path(found)).unwrap() == fs::read(place.path(expected)).unwrap(), "{found}");
    }
    let message = assert_done(place.command().args(options).args(resume));
    assert!(message.contains("nothing to do"), "{message}");
    let mut other = place.command();
    let other = other.args(["-f", "p.txt", "--best-of", "2", "--batch-size", "6", "--normalize"]).args(resume);
    let output = other.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--best-of was 3, is 2"), "{}", stderr(&output));
}

#[test]
fn scores_have_every_form_of_a_file() {
    let place = Workplace::new();
    let run = |options: &[&str]| {
        let fixed = ["--best-of", "2", "--normalize", "--out", "e.npy", "--overwrite"];
        assert_done(place.command().args(PROMPTS).args(fixed).args(options))
    };
    run(&["--scores", "s.npy"]);
    let expected = place.npy("s.npy");
    assert_eq!(expected.dim(), (3, 2));
    run(&["--scores", "s.npz"]);
    assert_eq!(read_npz(fs::read(place.path("s.npz")).unwrap(), "scores"), expected);
    run(&["--scores", "s.jsonl"]);
    let lines = fs::read_to_string(place.path("s.jsonl")).unwrap();
    for (row, line) in lines.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::from_value::<Vec<f32>>(line["scores"].clone()).unwrap(), expected.row(row).to_vec());
    }
    run(&["--scores", "s.safetensors"]);
    let bytes = fs::read(place.path("s.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("scores").unwrap().shape(), [3, 2]);
    run(&["--scores", "s.parquet"]);
    // One draw has a score too.
    let fixed = ["--out", "e.npy", "--scores", "s.npy", "--overwrite"];
    assert_done(place.command().args(PROMPTS).args(fixed));
    assert_eq!(place.npy("s.npy").dim(), (3, 1));
    // Beside a stream, and as one.
    let output = place.command().args(PROMPTS).args(["--best-of", "2", "--out", "-", "--scores", "t.npy"]).output();
    assert_eq!(read_npy(&output.unwrap().stdout).nrows(), 3);
    assert_eq!(place.npy("t.npy").dim(), (3, 2));
    let output = place.command().args(PROMPTS).args(["--best-of", "2", "--out", "f.npy", "--scores", "-"]).output();
    assert_eq!(read_npy(&output.unwrap().stdout), place.npy("t.npy"));
}

#[test]
fn one_call_and_given_latents_are_of_all_draws() {
    let place = Workplace::new();
    let run = |options: &[&str]| assert_done(place.command().args(PROMPTS).args(options));
    run(&["--seed-layout", "call", "--samples-per-prompt", "2", "--out", "all.npy"]);
    run(&["--seed-layout", "call", "--best-of", "2", "--out", "e.npy", "--scores", "s.npy"]);
    let kept: Vec<usize> = best(&place.npy("s.npy")).iter().enumerate().map(|(row, draw)| row * 2 + draw).collect();
    let expected = place.npy("all.npy").select(ndarray::Axis(0), &kept);
    assert!(off(&place.npy("e.npy"), &expected) < 1e-5);
    let latents = Array2::from_shape_fn((6, expected.ncols()), |(row, column)| ((row * 31 + column) as f32).sin());
    ndarray_npy::write_npy(place.path("l.npy"), &latents).unwrap();
    run(&["--latents", "l.npy", "--samples-per-prompt", "2", "--out", "all.npy", "--overwrite"]);
    run(&["--latents", "l.npy", "--best-of", "2", "--out", "e.npy", "--scores", "s.npy", "--overwrite"]);
    let kept: Vec<usize> = best(&place.npy("s.npy")).iter().enumerate().map(|(row, draw)| row * 2 + draw).collect();
    let expected = place.npy("all.npy").select(ndarray::Axis(0), &kept);
    assert!(off(&place.npy("e.npy"), &expected) < 1e-5);
}

#[test]
fn where_draws_cannot_be_compared_they_are_refused() {
    let place = Workplace::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for option in [&["--best-of", "2"][..], &["--scores", "s.npy"]] {
        let mut command = place.bare();
        command.arg("--model").arg(fixtures.join("shap_e/shap_e")).args(["-p", "a", "--out", "e.npy"]).args(option);
        assert_refused(&place, &mut command, 2, &[option[0], "Shap-E"]);
    }
    for (options, words) in [
        (&["--best-of", "0"][..], &["--best-of", "between 1 and"][..]),
        (&["--best-of", "x"], &["--best-of"]),
        (&["--best-of", "2", "--scores", "e.npy"], &["--out and --scores are the same file"]),
        (&["--best-of", "2", "--seed", "18446744073709551611"], &["leaves no seeds for 6 rows"]),
        (&["--best-of", "2", "--scores", "n/s.npy"], &["n/s.npy", "no folder"]),
        (&["--best-of", "2", "--scores", "s.txt"], &["s.txt", "does not end in"]),
    ] {
        let mut command = place.command();
        assert_refused(&place, command.args(PROMPTS).args(["--out", "e.npy"]).args(options), 2, words);
    }
    // A one-step prior has noise to choose from.
    let mut command = place.bare();
    command.arg("--model").arg(fixtures.join("one_step/karlo")).args(["-p", "a", "--best-of", "4", "--out", "o.npy"]);
    assert_done(command.args(["--scores", "s.npy"]));
    let scores = place.npy("s.npy");
    assert!((1..4).all(|draw| scores[[0, draw]] != scores[[0, 0]]), "{scores}");
}

#[test]
fn the_mean_score_rises_with_the_built_in_model() {
    let place = Workplace::new();
    let mean = |draws: &str| {
        let options = ["--steps", "5", "--best-of", draws, "--out", "e.npy", "--scores", "s.npy", "--overwrite"];
        assert_done(place.bare().args(PROMPTS).args(["-p", "a dog", "-p", "a house"]).args(options));
        let scores = place.npy("s.npy");
        let best: Vec<f32> = scores.rows().into_iter().map(|row| row.fold(f32::MIN, |a, b| a.max(*b))).collect();
        best.iter().sum::<f32>() / best.len() as f32
    };
    let (one, four) = (mean("1"), mean("4"));
    assert!(four > one, "{four} of four draws, {one} of one");
}
