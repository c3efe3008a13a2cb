//! The model inside the program.

use crate::common::{Workplace, assert_done, assert_refused, largest, lowest_cosine, read_npy, read_npz};
use assert_cmd::Command;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

const ZERO_IMAGE_EMBED: &str = "zero_image_embed.safetensors";

/// The folder that the built-in model was made from.
fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji")
}

/// The tensor in the built-in model's file of the embedding of a black image.
fn zero_image_embed() -> Vec<f32> {
    let bytes = fs::read(emoji().join(ZERO_IMAGE_EMBED)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = tensors.tensor("image_embeds").unwrap().data().chunks_exact(4);
    values.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Puts a file of the embedding of a black image into the small model's copy.
fn write_zero_image_embed(model: &Path, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = TensorView::new(Dtype::F32, vec![1, values.len()], &bytes).unwrap();
    serialize_to_file([("image_embeds", tensor)], None, &model.join(ZERO_IMAGE_EMBED)).unwrap();
}

#[test]
fn the_program_alone_is_enough() {
    let place = Workplace::new();
    let program = place.path("program");
    // Copied by another process: a file that this one has written may still be open for a child of another test.
    let copied = Process::new("cp").arg(env!("CARGO_BIN_EXE_prior-embed")).arg(&program).status();
    assert!(copied.unwrap().success());
    let empty = Workplace::new();
    let mut command = Command::new(program);
    command.current_dir(empty.folder.path()).env_clear().args(["-p", "a red apple", "--out", "e.npy"]);
    assert_done(&mut command);
    assert_eq!(empty.names(), ["e.npy"]);
    let embeds = read_npy(&fs::read(empty.path("e.npy")).unwrap());
    assert_eq!(embeds.nrows(), 1);
    assert!(embeds.iter().all(|value| value.is_finite()));
}

#[test]
fn it_gives_what_its_folder_gives() {
    let place = Workplace::new();
    let options = ["-p", "a red apple", "-p", "two cats", "--seed", "3"];
    assert_done(place.bare().args(options).args(["--out", "builtin.npz"]));
    assert_done(place.bare().args(options).args(["--out", "named.npz", "--model", "emoji"]));
    assert_done(place.bare().args(options).args(["--out", "folder.npz", "--model"]).arg(emoji()));
    let [builtin, named, folder] =
        ["builtin.npz", "named.npz", "folder.npz"].map(|name| fs::read(place.path(name)).unwrap());
    assert_eq!(builtin, named);
    assert_eq!(read_npz(builtin.clone(), "image_embeds"), read_npz(folder.clone(), "image_embeds"));
    let negative = read_npz(builtin, "negative_image_embeds");
    assert_eq!(negative.nrows(), 2);
    for row in negative.rows() {
        assert_eq!(row.to_vec(), zero_image_embed());
    }
    // The folder has the image encoder.
    let encoded = read_npz(folder, "negative_image_embeds");
    let error = largest(&(&negative - &encoded)) / largest(&encoded);
    assert!(error < 1e-3, "off by {error:.1e}");
}

#[test]
fn one_line_says_which_model_it_is() {
    let place = Workplace::new();
    let run = |options: &[&str]| {
        let mut command = place.bare();
        assert_done(command.args(["-p", "x", "--steps", "2", "--out", "e.npy", "--overwrite"]).args(options))
    };
    let line = run(&[]);
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("built-in model emoji") && line.contains("--model"), "{line}");
    assert_eq!(run(&["--quiet"]), "");
    assert_eq!(run(&["--model", "emoji"]), "");
    assert_eq!(run(&["--model", emoji().to_str().unwrap()]), "");
    let output = place.bare().args(["-p", "x", "--steps", "2", "--out", "-"]).output().unwrap();
    assert_eq!(output.stdout, fs::read(place.path("e.npy")).unwrap(), "the line is not on standard output");
    // What is refused is the only line.
    assert_refused(&place, place.bare().args(["-p", "x", "--steps", "1001", "--out", "f.npy"]), 2, &["1001 steps"]);
}

#[test]
fn a_folder_of_its_name_has_to_be_told_apart() {
    let place = Workplace::new();
    fs::create_dir(place.path("emoji")).unwrap();
    for name in ["emoji", "./emoji"] {
        let mut command = place.bare();
        command.args(["-p", "x", "--steps", "2", "--out", "e.npy", "--model", name]);
        match name {
            "emoji" => drop(assert_done(&mut command)),
            _ => assert_refused(&place, command.arg("--overwrite"), 2, &["./emoji has no prior"]),
        }
    }
}

#[test]
fn names_of_no_model_are_refused_with_those_that_are() {
    let place = Workplace::new();
    for name in ["Emoji", "emojis", "emoji/prior/x", "./karlo", ""] {
        let mut command = place.bare();
        command.args(["-p", "x", "--out", "e.npy", "--model", name]);
        assert_refused(&place, &mut command, 2, &[&format!("{name:?}"), "built-in emoji", "folder"]);
    }
}

#[test]
fn it_computes_in_every_type() {
    let place = Workplace::new();
    let run = |dtype: &str| {
        let mut command = place.bare();
        command.args(["-p", "a red apple", "-p", "two cats", "--out", "e.npy", "--overwrite", "--dtype", dtype]);
        assert_done(&mut command);
        read_npy(&fs::read(place.path("e.npy")).unwrap())
    };
    let exact = run("f32");
    for dtype in ["bf16", "int8"] {
        let cosine = lowest_cosine(&run(dtype), &exact);
        assert!(cosine > 0.95, "{dtype}: cosine {cosine}");
    }
}

/// The two kinds of prior of the unCLIP paper, on one CLIP.
#[cfg(builtin_autoregressive)]
#[test]
fn its_text_has_an_autoregressive_prior_too() {
    let place = Workplace::new();
    let run = |options: &[&str]| {
        let mut command = place.bare();
        assert_done(command.args(["-p", "a red apple", "--out", "e.npz", "--overwrite"]).args(options));
        let bytes = fs::read(place.path("e.npz")).unwrap();
        (read_npz(bytes.clone(), "image_embeds"), read_npz(bytes, "negative_image_embeds"))
    };
    let (drawn, negative) = run(&["-m", "emoji-ar"]);
    let (denoised, same_negative) = run(&["-m", "emoji"]);
    assert_eq!(negative, same_negative);
    let cosine = lowest_cosine(&drawn, &denoised);
    assert!(cosine > 0.5, "cosine {cosine}");
    assert_ne!(run(&["-m", "emoji-ar", "--seed", "1"]).0, drawn);
    let mut command = place.bare();
    command.args(["-p", "x", "-m", "emoji-ar", "--steps", "5", "--out", "f.npy"]);
    assert_refused(&place, &mut command, 2, &["--steps"]);
}

#[test]
fn statistics_name_it_and_its_one_thread() {
    let place = Workplace::new();
    assert_done(place.bare().args(["-p", "x", "--steps", "2", "--out", "e.npy", "--stats", "s.json"]));
    let stats: Value = serde_json::from_str(&fs::read_to_string(place.path("s.json")).unwrap()).unwrap();
    assert_eq!(stats["settings"]["model"], "emoji");
    assert_eq!(stats["settings"]["threads"], 1);
}

#[test]
fn a_folder_may_hold_the_embedding_of_a_black_image_in_place_of_an_image_encoder() {
    let place = Workplace::new();
    let model = place.copy_model();
    let run = |out: &str| {
        let mut command = place.bare();
        command.args(["-m", "model", "-p", "x", "--steps", "2", "--out", "e.npy", "--overwrite"]);
        assert_done(command.args(["--negative-out", out]));
        read_npy(&fs::read(place.path(out)).unwrap())
    };
    let encoded = run("encoded.npy");
    let values: Vec<f32> = (0..encoded.ncols()).map(|place| place as f32).collect();
    write_zero_image_embed(&model, &values);
    assert_eq!(run("both.npy"), encoded, "the image encoder comes first");
    fs::remove_dir_all(model.join("image_encoder")).unwrap();
    assert_eq!(run("file.npy").row(0).to_vec(), values);

    let refused = |code: i32, words: &[&str]| {
        let mut command = place.bare();
        command.args(["-m", "model", "-p", "x", "--steps", "2", "--out", "f.npz"]);
        assert_refused(&place, &mut command, code, words);
    };
    let mut not_finite = values.clone();
    not_finite[1] = f32::NAN;
    write_zero_image_embed(&model, &not_finite);
    refused(1, &["black image", ZERO_IMAGE_EMBED, "NaN"]);
    write_zero_image_embed(&model, &values[1..]);
    refused(2, &[ZERO_IMAGE_EMBED, "image_embeds"]);
    fs::write(model.join(ZERO_IMAGE_EMBED), "none").unwrap();
    refused(2, &[ZERO_IMAGE_EMBED, "safetensors"]);
}
