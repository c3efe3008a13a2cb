//! `interpolate`, `edit`, and runs that start from images: `--image` and `--strength`.

use crate::common::{
    Workplace, assert_done, assert_refused, kill_after_rows, model, off, picture, read_npy, read_npz, stderr,
};
use assert_cmd::Command;
use ndarray::{Array2, ArrayView1, array, s};
use ndarray_npy::write_npy;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The cases of the fixture, and an array of it.
fn fixture(cases: &str) -> (Vec<Value>, impl Fn(&str) -> Array2<f32>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mixing/expected.safetensors");
    let bytes = fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let all: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    let tensor = move |name: &str| {
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let numbers = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Array2::from_shape_vec((view.shape()[0], view.shape()[1]), numbers).unwrap()
    };
    (all[cases].as_array().unwrap().clone(), tensor)
}

fn npz(place: &Workplace, name: &str, array: &str) -> Array2<f32> {
    read_npz(fs::read(place.path(name)).unwrap(), array)
}

/// A command of the program with the small model and few steps.
fn command(place: &Workplace, name: &str, options: &[&str]) -> Command {
    let mut command = place.bare();
    command.arg(name).arg("--model").arg(model()).args(["--steps", "3"]).args(options);
    command
}

fn length(row: ArrayView1<f32>) -> f32 {
    row.dot(&row).sqrt()
}

fn cosine(one: ArrayView1<f32>, other: ArrayView1<f32>) -> f32 {
    one.dot(&other) / length(one) / length(other)
}

#[test]
fn interpolations_are_those_of_diffusers() {
    let place = Workplace::new();
    let (cases, tensor) = fixture("mix");
    write_npy(place.path("images.npy"), &tensor("images")).unwrap();
    for (index, case) in cases.iter().enumerate() {
        let items = case["items"].as_array().unwrap().iter();
        let items = items.map(|item| item.as_str().map_or_else(|| format!("@images.npy[{item}]"), str::to_string));
        let weights: Vec<String> = case["weights"].as_array().unwrap().iter().map(Value::to_string).collect();
        let mut command = place.bare();
        command.arg("interpolate").args(items).arg("--model").arg(model());
        command.args(["--weights", &weights.join(","), "--seed-layout", "call", "--out", "e.npz", "--overwrite"]);
        for (option, key) in [("--steps", "steps"), ("--guidance-scale", "guidance_scale"), ("--seed", "seed")] {
            command.args([option, &case[key].to_string()]);
        }
        for (option, key) in [("-n", "negative_prompt"), ("--decoder-negative-prompt", "decoder_negative_prompt")] {
            command.args(case[key].as_str().map(|text| [option, text]).into_iter().flatten());
        }
        assert_done(&mut command);
        for name in ["image_embeds", "negative_image_embeds"] {
            let error = off(&npz(&place, "e.npz", name), &tensor(&format!("mix.{index}.{name}")));
            assert!(error < 1e-4, "{index}: {name} off by {error:.1e} in {case}");
        }
    }
    assert!(cases.len() >= 7);
}

#[test]
fn a_mix_is_of_the_rows_that_its_prompts_have_in_a_run() {
    let place = Workplace::new();
    let prompts = ["-p", "a cat", "-p", "two dogs", "-p", "rain"];
    let negative = ["-n", "fog", "--decoder-negative-prompt", "ugly", "--seed", "5"];
    assert_done(place.command().args(prompts).args(negative).args(["--out", "rows.npz"]));
    let rows = npz(&place, "rows.npz", "image_embeds");
    let run = |options: &[&str]| assert_done(command(&place, "interpolate", options).args(negative).arg("--overwrite"));
    run(&["a cat", "two dogs", "rain", "--weights", "0.5,-1,2", "--out", "e.npz"]);
    let expected = &rows.row(0) * 0.5 - rows.row(1) + &rows.row(2) * 2.0;
    assert!(off(&npz(&place, "e.npz", "image_embeds"), &expected.insert_axis(ndarray::Axis(0))) < 1e-5);
    // What is in another's place does not change an item; the negative embedding follows them all.
    run(&["@rows.npz[2]", "two dogs", "@rows.npz[0]", "--weights", "0,1,0", "--out", "f.npz"]);
    let second = rows.slice(s![1..2, ..]).to_owned();
    assert!(off(&npz(&place, "f.npz", "image_embeds"), &second) < 1e-5);
    let [one, other] = ["e.npz", "f.npz"].map(|file| npz(&place, file, "negative_image_embeds"));
    assert!(off(&one, &other) < 1e-5);
    let alone = npz(&place, "rows.npz", "negative_image_embeds").slice(s![..1, ..]).to_owned();
    assert!(off(&one, &alone) < 1e-5, "the seed of row 0's is 5 + 3 there too");
    // Equal shares without weights, in every form.
    run(&["a cat", "two dogs", "--out", "e.jsonl", "--negative-out", "e.jsonl", "--normalize"]);
    let line: Value = serde_json::from_str(&fs::read_to_string(place.path("e.jsonl")).unwrap()).unwrap();
    assert_eq!(line["prompt"], "0.5 * a cat + 0.5 * two dogs");
    let numbers: Vec<f32> = serde_json::from_value(line["image_embeds"].clone()).unwrap();
    assert!((numbers.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
    run(&["a cat", "@rows.npz[1]", "--out", "e.parquet"]);
    run(&["a cat", "@rows.npz[1]", "--out", "e.safetensors", "--out-dtype", "f16"]);
    run(&["a cat", "@rows.npz[1]", "--out-dir", "d", "--negative-out", "d"]);
    assert_eq!(place.npy("d/negative_img_emb/negative_img_emb_0000.npy").nrows(), 1);
    let output = command(&place, "interpolate", &["a cat", "rain", "--out", "-"]).output().unwrap();
    assert_eq!(read_npy(&output.stdout).nrows(), 1);
}

#[test]
fn a_sequence_goes_along_arcs_and_ends_at_its_ends() {
    let place = Workplace::new();
    let ends: Array2<f32> =
        Array2::from_shape_fn((3, 16), |(row, column)| ((row * 16 + column) as f32 * 1.7).sin() * 3.0);
    write_npy(place.path("ends.npy"), &ends).unwrap();
    let run = |items: &[&str], frames: &str| {
        let files = ["--slerp", "--frames", frames, "--out", "e.npy", "--overwrite"];
        assert_done(command(&place, "interpolate", items).args(files));
        place.npy("e.npy")
    };
    let arc = run(&["@ends.npy[0]", "@ends.npy[1]"], "9");
    assert_eq!((arc.nrows(), arc.row(0), arc.row(8)), (9, ends.row(0), ends.row(1)));
    let (first, last) = (length(ends.row(0)), length(ends.row(1)));
    let step = cosine(ends.row(0), ends.row(1)).acos() / 8.0;
    for frame in 1..9 {
        let expected = first + (last - first) * frame as f32 / 8.0;
        assert!((length(arc.row(frame)) / expected - 1.0).abs() < 1e-5, "{frame}");
        assert!((cosine(arc.row(frame - 1), arc.row(frame)).acos() - step).abs() < 1e-3, "{frame}");
    }
    let through = run(&["@ends.npy[0]", "@ends.npy[1]", "@ends.npy[2]"], "7");
    assert_eq!((through.row(0), through.row(3), through.row(6)), (ends.row(0), ends.row(1), ends.row(2)));
    assert_eq!(run(&["@ends.npy[2]", "@ends.npy[0]"], "2").row(1), ends.row(0));
}

#[test]
fn an_edit_turns_the_built_in_models_pictures_towards_the_text() {
    let place = Workplace::new();
    for (from, to) in
        [("a red apple", "a green apple"), ("a dog", "a cat"), ("sun", "moon"), ("a red heart", "a blue heart")]
    {
        assert_done(place.bare().args([
            "-p",
            from,
            "-p",
            to,
            "--out",
            "rows.npy",
            "--text-out",
            "text.npy",
            "--overwrite",
        ]));
        let (rows, text) = (place.npy("rows.npy"), place.npy("text.npy"));
        let edit = |item: &str, options: &[&str]| {
            let fixed = ["edit", item, "--from", from, "--to", to, "--out", "e.npy", "--overwrite"];
            assert_done(place.bare().args(fixed).args(options));
            place.npy("e.npy")
        };
        let frames = edit("@rows.npy[0]", &["--theta", "0..0.3", "--frames", "4"]);
        assert_eq!((frames.nrows(), frames.row(0)), (4, rows.row(0)));
        let towards = &text.row(1) - &text.row(0);
        for frame in 1..4 {
            let (before, now) = (frames.row(frame - 1), frames.row(frame));
            assert!((length(now) / length(rows.row(0)) - 1.0).abs() < 1e-5, "{from} {frame}");
            assert!(cosine(now, towards.view()) > cosine(before, towards.view()), "{from} {frame}");
            let margin = |row: ArrayView1<f32>| cosine(row, text.row(1)) - cosine(row, text.row(0));
            assert!(margin(now) > margin(before), "{from} {frame}: no nearer to the text");
        }
        // Most of the source stays.
        assert!(cosine(frames.row(1), rows.row(0)) > 0.9, "{from}: {}", cosine(frames.row(1), rows.row(0)));
        // A prompt's own embedding is that of a run.
        assert!(off(&edit(from, &["--theta", "0"]), &rows.slice(s![..1, ..]).to_owned()) < 1e-5);
        assert_eq!(edit("@rows.npy[0]", &[]).nrows(), 6);
    }
}

#[test]
fn mixes_that_cannot_be_are_one_line() {
    let place = Workplace::new();
    let rows: Array2<f32> = Array2::from_shape_fn((4, 16), |(row, _)| [1.0, -2.0, 0.0, f32::NAN][row]);
    write_npy(place.path("rows.npy"), &rows).unwrap();
    write_npy(place.path("narrow.npy"), &array![[1.0_f32, 2.0]]).unwrap();
    write_npy(place.path("cube.npy"), &ndarray::Array3::<f32>::zeros((1, 2, 3))).unwrap();
    write_npy(place.path("empty.npy"), &Array2::<f32>::zeros((0, 16))).unwrap();
    fs::write(place.path("broken.npz"), "PK nonsense").unwrap();
    fs::write(place.path("cat.png"), "no picture").unwrap();
    for (options, words) in [
        (&["a", "b", "--weights", "1"][..], &["1 weights for 2 items"][..]),
        (&["a", "b", "--weights", "1,2,3"], &["3 weights for 2 items"]),
        (&["a", "b", "--weights", "1;2"], &["--weights", "finite numbers with commas"]),
        (&["a", "b", "--weights", "nan,1"], &["--weights", "finite"]),
        (&["a", "@rows.npy[4]"], &["rows.npy", "rows 0 to 3", "no row 4"]),
        (&["a", "@rows.npy[-1]"], &["\"-1\" is not the number of a row"]),
        (&["a", "@rows.npy[3]"], &["rows.npy", "NaN or infinity in row 3"]),
        (&["a", "@rows.npy"], &["has 4 rows; say which"]),
        (&["a", "@narrow.npy"], &["@narrow.npy has 2 numbers", "have 16"]),
        (&["a", "@cube.npy[0]"], &["cube.npy", "shape [1, 2, 3]"]),
        (&["a", "@empty.npy[0]"], &["empty.npy", "holds no rows"]),
        (&["a", "@broken.npz[0]"], &["broken.npz", "not a valid .npz"]),
        (&["a", "@none.npy[0]"], &["none.npy", "cannot read"]),
        (&["a", "@cat.png[0]"], &["cat.png", "has no rows"]),
        (&["a", "@"], &["a file goes after the @"]),
        (&["a", "--slerp", "--frames", "3"], &["--slerp", "there is one"]),
        (&["a", "b", "c", "--slerp", "--frames", "2"], &["--frames 2", "3 items"]),
        (&["a", "b", "--slerp"], &["--frames"]),
        (&["a", "b", "--frames", "3"], &["--slerp"]),
        (&["a", "b", "--slerp", "--frames", "3", "--weights", "1,2"], &["--weights", "--slerp"]),
        (&["@rows.npy[0]", "@rows.npy[1]", "--slerp", "--frames", "3"], &["opposite directions"]),
        (&["@rows.npy[0]", "@rows.npy[2]", "--slerp", "--frames", "3"], &["@rows.npy[2]", "all zeros"]),
        (&["a", "b", "--seed", "18446744073709551615"], &["leaves no seeds for 2 items"]),
        (&["a", "b", "--steps", "2000"], &["steps"]),
    ] {
        let mut command = command(&place, "interpolate", options);
        assert_refused(&place, command.args(["--out", "e.npy"]), 2, words);
    }
    assert_refused(&place, &mut command(&place, "interpolate", &["a", "b"]), 2, &["--out"]);
    assert_refused(&place, &mut command(&place, "interpolate", &["--out", "e.npy"]), 2, &["ITEM"]);
    let mut onto = command(&place, "interpolate", &["a", "@rows.npy[0]", "--out", "rows.npy", "--overwrite"]);
    assert_refused(&place, &mut onto, 2, &["rows.npy", "would be replaced"]);
    let edit = ["@rows.npy[0]", "--from", "a cat", "--to", "a dog", "--out", "e.npy"];
    for (options, words) in [
        (&["--theta", "0..1.5"][..], &["--theta", "between 0 and 1"][..]),
        (&["--theta", "a..b"], &["--theta", "between 0 and 1"]),
        (&["--frames", "0"], &["--frames"]),
        (&["--frames", "1"], &["--frames 1", "one end of the range"]),
        (&["--to", "a cat"], &["--from and --to have the same text embedding"]),
    ] {
        assert_refused(&place, command(&place, "edit", &edit).args(options), 2, words);
    }
    let zero = ["@rows.npy[2]", "--from", "a cat", "--to", "a dog", "--out", "e.npy"];
    assert_refused(&place, &mut command(&place, "edit", &zero), 2, &["@rows.npy[2]", "all zeros"]);
    assert_refused(&place, &mut command(&place, "edit", &["a", "--to", "b", "--out", "e.npy"]), 2, &["--from"]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut sequence = place.bare();
    sequence.args(["interpolate", "a", "b", "--out", "e.npy", "--model"]).arg(fixtures.join("shap_e/shap_e"));
    assert_refused(&place, &mut sequence, 2, &["Shap-E", "makes no embeddings"]);
}

#[test]
fn rows_that_start_from_images_are_those_of_diffusers() {
    let place = Workplace::new();
    let (cases, tensor) = fixture("start");
    write_npy(place.path("images.npy"), &tensor("images")).unwrap();
    fs::create_dir(place.path("data")).unwrap();
    write_npy(place.path("data/images.npy"), &tensor("images")).unwrap();
    for (index, case) in cases.iter().enumerate() {
        let prompts = case["prompts"].as_array().unwrap();
        let mut command = place.bare();
        command.arg("--model").arg(model()).args(["--out", "e.npz", "--overwrite"]);
        if case["images"] == 1 {
            command.args(prompts.iter().flat_map(|prompt| ["-p", prompt.as_str().unwrap()]));
            command.args(["--image", "@images.npy[0]"]);
        } else {
            // Paths begin in the folder of the prompts.
            let line = |(row, prompt): (usize, &Value)| format!("images.npy[{row}],\"{}\"\n", prompt.as_str().unwrap());
            let lines: String = prompts.iter().enumerate().map(line).collect();
            fs::write(place.path("data/p.csv"), format!("image,prompt\n{lines}")).unwrap();
            command.args(["-f", "data/p.csv"]);
        }
        for (option, key) in [
            ("--steps", "steps"),
            ("--guidance-scale", "guidance_scale"),
            ("--seed", "seed"),
            ("--strength", "strength"),
            ("--samples-per-prompt", "samples_per_prompt"),
        ] {
            command.args([option, &case[key].to_string()]);
        }
        command.args(case["negative_prompt"].as_str().map(|text| ["-n", text]).into_iter().flatten());
        if case["is_call"] == true {
            command.args(["--seed-layout", "call"]);
        }
        assert_done(&mut command);
        for name in ["image_embeds", "negative_image_embeds"] {
            let error = off(&npz(&place, "e.npz", name), &tensor(&format!("start.{index}.{name}")));
            assert!(error < 1e-4, "{index}: {name} off by {error:.1e} in {case}");
        }
    }
    assert!(cases.len() >= 9);
}

#[test]
fn a_column_of_images_counts_with_a_strength_alone() {
    let place = Workplace::new();
    let images: Array2<f32> = Array2::from_shape_fn((2, 16), |(row, column)| ((row * 16 + column) as f32).cos() * 2.0);
    write_npy(place.path("images.npy"), &images).unwrap();
    let lines = "{\"prompt\": \"a\", \"image\": \"images.npy[0]\"}\n{\"prompt\": \"b\"}\n\
                 {\"prompt\": \"c\", \"image\": \"@images.npy[1]\", \"steps\": 2}\n{\"prompt\": \"d\", \"image\": null}\n";
    fs::write(place.path("p.jsonl"), lines).unwrap();
    let run = |options: &[&str]| {
        assert_done(place.command().args(["-f", "p.jsonl", "--out", "e.npy", "--overwrite"]).args(options));
        place.npy("e.npy")
    };
    let plain = run(&[]);
    let mixed = run(&["--strength", "0.7"]);
    let same = |row: usize| off(&mixed.slice(s![row..=row, ..]).to_owned(), &plain.slice(s![row..=row, ..]).to_owned());
    assert!(same(1) < 1e-5 && same(3) < 1e-5, "a row without an image starts from noise");
    assert!(same(0) > 1e-3 && same(2) > 1e-3);
    for batch in ["1", "3"] {
        assert!(off(&run(&["--strength", "0.7", "--batch-size", batch]), &mixed) < 1e-5);
    }
    // Where --image is given, it is that of the others.
    let given = run(&["--strength", "0.7", "--image", "images.npy[1]"]);
    assert!(off(&given.slice(s![0..1, ..]).to_owned(), &mixed.slice(s![0..1, ..]).to_owned()) < 1e-5);
    assert!(off(&given.slice(s![1..2, ..]).to_owned(), &plain.slice(s![1..2, ..]).to_owned()) > 1e-3);
    // At less than one step, the image.
    let kept = run(&["--strength", "0"]);
    assert_eq!((kept.row(0), kept.row(2)), (images.row(0), images.row(1)));
    let mut command = place.command();
    let output =
        command.args(["-p", "a", "--image", "images.npy[0]", "--out", "e.npy", "--overwrite"]).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("less than one"), "{}", stderr(&output));
    assert_eq!(place.npy("e.npy").row(0), images.row(0));
    // Of the best of several draws, the same.
    let best = run(&["--strength", "0.7", "--best-of", "2", "--batch-size", "2"]);
    assert_eq!(best.nrows(), 4);
}

#[test]
fn images_that_cannot_be_used_are_one_line() {
    let place = Workplace::new();
    write_npy(place.path("images.npy"), &Array2::<f32>::ones((2, 16))).unwrap();
    write_npy(place.path("narrow.npy"), &Array2::<f32>::ones((2, 15))).unwrap();
    write_npy(place.path("nan.npy"), &Array2::<f32>::from_elem((2, 16), f32::NAN)).unwrap();
    for (options, words) in [
        (&["--image", "images.npy[2]"][..], &["images.npy", "no row 2"][..]),
        (&["--image", "images.npy"], &["has 2 rows; say which"]),
        (&["--image", "narrow.npy[0]"], &["15 numbers", "have 16"]),
        (&["--image", "nan.npy[1]"], &["NaN or infinity in row 1"]),
        (&["--image", "none.npy[0]"], &["cannot read", "none.npy"]),
        (&["--image", "none.png"], &["none.png"]),
        (&["--image", ""], &["--image"]),
        (&["--image", "images.npy[0]", "--strength", "1.1"], &["--strength", "between 0 and 1"]),
        (&["--image", "images.npy[0]", "--strength", "nan"], &["--strength", "between 0 and 1"]),
        (&["--image", "images.npy[0]", "--latents", "images.npy"], &["--image", "--latents"]),
        (&["--image", "images.npy[0]", "--scheduler", "ddim"], &["needs the scheduler unclip"]),
        (&["--strength", "0.5"], &["--strength", "give --image"]),
    ] {
        assert_refused(&place, place.command().args(["-p", "a", "--out", "e.npy"]).args(options), 2, words);
    }
    let line = |image: &str| format!("{{\"prompt\": \"b\"}}\n{{\"prompt\": \"a\", \"image\": {image}}}\n");
    for (image, words) in [
        ("\"images.npy[7]\"", "no row 7"),
        ("\"narrow.npy[0]\"", "15 numbers"),
        ("\"none.npy[0]\"", "cannot read"),
        ("\"none.png\"", "there is no file"),
        ("5", "must be text"),
        ("\"images.npy[x]\"", "is not the number of a row"),
    ] {
        fs::write(place.path("p.jsonl"), line(image)).unwrap();
        let mut command = place.command();
        command.args(["-f", "p.jsonl", "--strength", "0.7", "--out", "e.npy"]);
        assert_refused(&place, &mut command, 2, &["p.jsonl:2", "image", words]);
        // Without --strength, it is a column like any other.
        assert_done(place.command().args(["-f", "p.jsonl", "--out", "e.npy"]));
        fs::remove_file(place.path("e.npy")).unwrap();
    }
    assert_done(place.command().args([
        "-f",
        "p.jsonl",
        "--strength",
        "0.7",
        "--on-error",
        "skip",
        "--out",
        "skipped.npy",
    ]));
    assert!(place.npy("skipped.npy").row(1).iter().all(|value| *value == 0.0));
}

#[test]
fn a_run_from_images_is_resumed_with_the_same_images() {
    let place = Workplace::new();
    let images: Array2<f32> = Array2::from_shape_fn((300, 16), |(row, column)| ((row * 7 + column) as f32).sin());
    write_npy(place.path("images.npy"), &images).unwrap();
    let lines: String =
        (0..300).map(|row| format!("{{\"prompt\": \"cat {row}\", \"image\": \"images.npy[{row}]\"}}\n")).collect();
    fs::write(place.path("p.jsonl"), lines).unwrap();
    let options = ["-f", "p.jsonl", "--strength", "0.9", "--steps", "25", "--batch-size", "4"];
    assert_done(place.command().args(options).args(["--out", "whole.npy"]));
    kill_after_rows(&place, &[&options[..], &["--out", "e.npy"]].concat(), 8);
    let resume = |place: &Workplace| -> Command {
        let mut command = place.command();
        command.args(options).args(["--out", "e.npy", "--resume"]);
        command
    };
    write_npy(place.path("images.npy"), &(&images * 2.0)).unwrap();
    let output = resume(&place).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the images' hash"), "{}", stderr(&output));
    write_npy(place.path("images.npy"), &images).unwrap();
    assert_done(&mut resume(&place));
    assert!(fs::read(place.path("e.npy")).unwrap() == fs::read(place.path("whole.npy")).unwrap());
}

#[test]
fn a_picture_is_an_item_and_an_image_to_start_from() {
    let place = Workplace::new();
    let (_, tensor) = fixture("mix");
    fs::copy(picture("rgb.png"), place.path("cat.png")).unwrap();
    fs::write(place.path("broken.png"), "no picture").unwrap();
    let options = ["--weights", "0.4,0.6", "--seed", "9", "--seed-layout", "call", "--out", "mix.npy", "--steps", "5"];
    assert_done(command(&place, "interpolate", &["a red apple", "@cat.png"]).args(options));
    assert!(off(&place.npy("mix.npy"), &tensor("picture.mix")) < 1e-4);
    // For all prompts, and as the image of one.
    fs::write(place.path("p.csv"), "prompt,image\na red apple,cat.png\n").unwrap();
    for (name, options) in [
        ("given.npy", &["-p", "a red apple", "--image", "cat.png"][..]),
        ("column.npy", &["-f", "p.csv", "--shard", "1/1"]),
    ] {
        let settings = ["--strength", "0.5", "--seed", "10", "--steps", "10", "--out", name];
        assert_done(place.bare().arg("--model").arg(model()).args(options).args(settings));
        assert!(off(&place.npy(name), &tensor("picture.start")) < 1e-4, "{name}");
    }
    // The source of an edit is what encode-image makes of it.
    assert_done(place.bare().args(["encode-image", "cat.png", "--out", "cat.npy", "--model"]).arg(model()));
    let edit =
        ["@cat.png", "--from", "a cat", "--to", "a dog", "--out", "edit.npy", "--theta", "0..0.5", "--frames", "2"];
    assert_done(&mut command(&place, "edit", &edit));
    assert_eq!(place.npy("edit.npy").row(0), place.npy("cat.npy").row(0));
    for item in ["@broken.png", "@none.png"] {
        let mut command = command(&place, "interpolate", &["a", item, "--out", "e.npy"]);
        assert_refused(&place, &mut command, 2, &[&item[1..]]);
    }
    for image in ["broken.png", "none.png"] {
        let mut command = place.command();
        assert_refused(&place, command.args(["-p", "a", "--image", image, "--out", "e.npy"]), 2, &[image]);
    }
}
