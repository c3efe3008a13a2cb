//! `encode-image`: pictures to embeddings.

use crate::common::{Workplace, assert_done, assert_refused, model, picture, read_npy, read_npz, stderr};
use assert_cmd::Command;
use ndarray::s;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};

/// `encode-image` with the small model, and no paths yet.
fn encode(place: &Workplace) -> Command {
    let mut command = place.bare();
    command.arg("encode-image").arg("--model").arg(model());
    command
}

/// Puts pictures of the fixtures into the workplace, under their names.
fn put(place: &Workplace, names: &[&str]) {
    for name in names {
        fs::copy(picture(name), place.path(name)).unwrap();
    }
}

fn lines(place: &Workplace, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(place.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(place: &Workplace, name: &str) -> Vec<String> {
    lines(place, name).iter().map(|line| line["id"].as_str().unwrap().to_string()).collect()
}

const NAMES: [&str; 4] = ["exif_6.jpg", "lossless.webp", "palette.gif", "rgb.png"];

#[test]
fn files_folders_patterns_lists_and_shards_are_the_same_pictures() {
    let place = Workplace::new();
    fs::create_dir_all(place.path("in/a/b")).unwrap();
    for (name, folder) in NAMES.into_iter().zip(["in/a", "in/a/b", "in", "in"]) {
        fs::copy(picture(name), place.path(folder).join(name)).unwrap();
    }
    fs::write(place.path("in/notes.txt"), "no picture").unwrap();
    fs::write(place.path("in/.hidden.png"), "no picture").unwrap();
    let paths = ["in/a/b/lossless.webp", "in/a/exif_6.jpg", "in/palette.gif", "in/rgb.png"];
    let mut tar = Process::new("tar");
    tar.args(["cf", "s.tar", "in/notes.txt"]).args(paths).current_dir(place.folder.path());
    assert!(tar.status().unwrap().success());
    fs::write(place.path("list"), paths.join("\n\n") + "\r\n").unwrap();
    fs::write(place.path("list0"), paths.join("\0")).unwrap();

    assert_done(encode(&place).args(paths).args(["--out", "files.npy"]));
    let expected = fs::read(place.path("files.npy")).unwrap();
    assert_eq!(place.npy("files.npy").nrows(), 4);
    let inputs: [&[&str]; 7] = [
        &["in"],
        &["in/a", "in/palette.gif", "in/rgb.png"],
        &["in/a/*/*.webp", "in/a/*.jpg", "in/*.[gp][in][fg]"],
        &["--files", "list"],
        &["--files", "list0", "--null"],
        &["s.tar"],
        &["in/a", "--files", "rest"],
    ];
    fs::write(place.path("rest"), "in/palette.gif\nin/rgb.png").unwrap();
    for input in inputs {
        assert_done(encode(&place).args(input).args(["--out", "e.npy", "--overwrite"]));
        assert!(fs::read(place.path("e.npy")).unwrap() == expected, "{input:?}");
    }
    for (list, option) in [("list", "-q"), ("list0", "-0")] {
        let list = fs::read(place.path(list)).unwrap();
        let output = encode(&place).args(["-", option, "--out", "-"]).write_stdin(list).output().unwrap();
        assert!(output.stdout == expected, "{}", stderr(&output));
    }

    assert_done(encode(&place).args(["in", "--out", "e.jsonl"]));
    assert_eq!(ids(&place, "e.jsonl"), paths);
    assert_done(encode(&place).args(["s.tar", "--out", "t.jsonl"]));
    assert_eq!(ids(&place, "t.jsonl"), paths.map(|path| path.rsplit_once('.').unwrap().0));
    assert!(lines(&place, "t.jsonl").iter().all(|line| line["seed"] == 0 && line["prompt"] == ""));
}

#[test]
fn threads_and_shards_change_nothing() {
    let place = Workplace::new();
    let run = |options: &[&str]| assert_done(encode(&place).arg(picture("")).args(options));
    run(&["--batch-size", "5", "--out", "whole.npy"]);
    let whole = fs::read(place.path("whole.npy")).unwrap();
    run(&["--batch-size", "5", "--threads", "1", "--out", "one.npy"]);
    assert!(fs::read(place.path("one.npy")).unwrap() == whole);
    for (shard, part) in [("1/2", "a.npy"), ("2/2", "b.npy")] {
        run(&["--batch-size", "5", "--shard", shard, "--out", part]);
    }
    assert_done(place.bare().args(["merge", "b.npy", "a.npy", "--out", "all.npy"]));
    assert!(fs::read(place.path("all.npy")).unwrap() == whole);
    run(&["--normalize", "--out", "n.npz"]);
    let normalized = read_npz(fs::read(place.path("n.npz")).unwrap(), "image_embeds");
    assert!(normalized.rows().into_iter().all(|row| (row.dot(&row) - 1.0).abs() < 1e-2));
}

#[test]
fn a_picture_that_cannot_be_used_ends_the_run_or_is_zeros() {
    let place = Workplace::new();
    put(&place, &["rgb.png", "exif_3.jpg"]);
    let whole = |name: &str| fs::read(picture(name)).unwrap();
    fs::write(place.path("cut.png"), &whole("rgb.png")[..700]).unwrap();
    fs::write(place.path("cut.jpg"), &whole("rgb.jpg")[..3000]).unwrap();
    fs::write(place.path("text.jpg"), "hello").unwrap();
    fs::write(place.path("empty.gif"), "").unwrap();
    fs::create_dir(place.path("folder.png")).unwrap();
    let bad = ["cut.png", "cut.jpg", "text.jpg", "empty.gif"];
    for (name, word) in bad.into_iter().zip(["damaged", "truncated", "not a JPEG", "empty"]) {
        let mut command = encode(&place);
        assert_refused(&place, command.args(["rgb.png", name, "--out", "e.npy"]), 2, &[name, word, "--on-error skip"]);
    }
    let list = format!("rgb.png\n{}\nmissing.png\nfolder.png\nexif_3.jpg\n", bad.join("\n"));
    fs::write(place.path("list"), list).unwrap();
    assert_refused(
        &place,
        encode(&place).args(["--files", "list", "--out", "e.npy"]),
        2,
        &["missing.png", "No such file", "row 6"],
    );
    let skip = ["--files", "list", "--on-error", "skip", "--out", "e.npy"];
    let message = assert_done(encode(&place).args(skip));
    assert!(message.contains("6 rows could not be used"), "{message}");
    let embeds = place.npy("e.npy");
    assert_done(encode(&place).args(["rgb.png", "exif_3.jpg", "--out", "good.npy"]));
    let good = place.npy("good.npy");
    assert_eq!(embeds.nrows(), 8);
    assert_eq!(embeds.slice(s![1..7, ..]).iter().filter(|value| **value != 0.0).count(), 0);
    for (row, expected) in [(0, 0), (7, 1)] {
        let difference = &embeds.row(row) - &good.row(expected);
        assert!(difference.iter().all(|value| value.abs() < 1e-5));
    }
    let report = lines(&place, "e.npy.errors.jsonl");
    let rows: Vec<u64> = report.iter().map(|line| line["row"].as_u64().unwrap()).collect();
    assert_eq!(rows, [1, 2, 3, 4, 5, 6]);
    for (line, name) in report.iter().zip(bad.into_iter().chain(["missing.png", "folder.png"])) {
        assert!(line["reason"].as_str().unwrap().starts_with(name), "{line}");
    }

    // A pipe has no report; the rows come all the same.
    let list = fs::read(place.path("list")).unwrap();
    let output = encode(&place).args(["-", "--on-error", "skip", "--out", "-"]).write_stdin(list).output().unwrap();
    assert_eq!(read_npy(&output.stdout).nrows(), 8);
    assert!(stderr(&output).contains("cut.png"), "{}", stderr(&output));
}

/// What a run that is killed has reported is in the report of the one that goes on.
#[test]
fn a_resumed_run_keeps_the_report() {
    let place = Workplace::new();
    put(&place, &["rgb.png"]);
    fs::write(place.path("bad.png"), "bad").unwrap();
    let list: String = (0..4000).map(|row| if row % 1000 == 7 { "bad.png\n" } else { "rgb.png\n" }).collect();
    fs::write(place.path("list"), list).unwrap();
    let options = ["--files", "list", "--on-error", "skip", "--batch-size", "2", "--threads", "1"];
    assert_done(encode(&place).args(options).args(["--out", "whole.npy"]));
    let mut child = Process::new(env!("CARGO_BIN_EXE_prior-embed"))
        .args(["encode-image", "--model"])
        .arg(model())
        .args(options)
        .args(["--out", "e.npy"])
        .current_dir(place.folder.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    place.wait_for_rows("e.npy", 20, &mut child);
    assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_done(encode(&place).args(options).args(["--resume", "--out", "e.npy"]));
    for suffix in ["", ".errors.jsonl"] {
        let [resumed, whole] =
            ["e.npy", "whole.npy"].map(|name| fs::read(place.path(&format!("{name}{suffix}"))).unwrap());
        assert!(resumed == whole, "{suffix}");
    }
}

#[test]
fn what_holds_no_pictures_is_refused() {
    let place = Workplace::new();
    put(&place, &["rgb.png"]);
    fs::create_dir(place.path("empty")).unwrap();
    fs::write(place.path("notes.txt"), "x").unwrap();
    fs::write(place.path("blank"), "\n\n").unwrap();
    let tar = |name: &str, members: &[&str]| {
        let mut tar = Process::new("tar");
        assert!(tar.arg("cf").arg(name).args(members).current_dir(place.folder.path()).status().unwrap().success());
        fs::read(place.path(name)).unwrap()
    };
    tar("none.tar", &["notes.txt"]);
    let whole = tar("whole.tar", &["rgb.png", "notes.txt"]);
    fs::write(place.path("cut.tar"), &whole[..700]).unwrap();
    let mut lying = whole.clone();
    lying[124..135].copy_from_slice(b"77777777777");
    fs::write(place.path("lying.tar"), &lying).unwrap();
    fs::write(place.path("text.tar"), "x".repeat(2000)).unwrap();
    let cases: [(&[&str], &[&str]); 10] = [
        (&["empty"], &["empty", "holds no pictures"]),
        (&["missing.png"], &["missing.png", "No such file"]),
        (&["*.jpg"], &["*.jpg", "matches no files"]),
        (&["[.png"], &["[.png"]),
        (&["--files", "blank"], &["blank", "no paths"]),
        (&["--files", "missing"], &["missing", "No such file"]),
        (&["none.tar"], &["none.tar", "holds no pictures"]),
        (&["cut.tar"], &["cut.tar", "truncated"]),
        (&["lying.tar"], &["lying.tar", "truncated"]),
        (&["text.tar"], &["text.tar", "tar archive"]),
    ];
    for (input, words) in cases {
        assert_refused(&place, encode(&place).args(input).args(["--out", "e.npy"]), 2, words);
    }
    let mut command = encode(&place);
    assert_refused(&place, command.args(["-", "--out", "e.npy"]).write_stdin(""), 2, &["standard input", "no paths"]);
    let mut command = encode(&place);
    command.args(["-", "--resume", "--out", "e.npy"]).write_stdin("rgb.png");
    assert_refused(&place, &mut command, 2, &["--resume", "paths", "the list of pictures"]);
    assert_refused(&place, encode(&place).args(["--out", "e.npy"]), 2, &["FILE"]);
}

#[test]
fn names_in_a_shard_are_names_and_no_paths() {
    let place = Workplace::new();
    put(&place, &["rgb.png"]);
    let mut archive = tar::Builder::new(fs::File::create(place.path("s.tar")).unwrap());
    let bytes = fs::read(place.path("rgb.png")).unwrap();
    let names = ["../../outside.png", "/etc/absolute.png", "x\u{1b}[2J.png", &format!("{}x.png", "long/".repeat(60))];
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        if name.len() < 100 {
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            archive.append(&header, &bytes[..]).unwrap();
        } else {
            archive.append_data(&mut header, name, &bytes[..]).unwrap();
        }
    }
    archive.finish().unwrap();
    assert_done(encode(&place).args(["s.tar", "--out", "e.jsonl"]));
    assert_eq!(ids(&place, "e.jsonl"), names.map(|name| name.strip_suffix(".png").unwrap()));
}

#[test]
fn a_model_must_have_what_encodes_pictures() {
    let place = Workplace::new();
    put(&place, &["rgb.png"]);
    let model = place.copy_model();
    let refused = |words: &[&str]| {
        let mut command = place.bare();
        command.args(["encode-image", "rgb.png", "--model", "model", "--out", "e.npy"]);
        assert_refused(&place, &mut command, 2, words);
    };
    // Neither the prior's nor the text encoder's weights are needed.
    fs::remove_file(model.join("prior/diffusion_pytorch_model.safetensors")).unwrap();
    fs::remove_file(model.join("text_encoder/model.safetensors")).unwrap();
    let arguments = ["encode-image", "rgb.png", "--model", "model", "--out", "good.npy"];
    assert_done(place.bare().args(arguments));
    let config = model.join("image_processor/preprocessor_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"height\": 14", "\"height\": 16")).unwrap();
    refused(&["crop_size", "16 x 14", "14 x 14"]);
    fs::write(&config, text.replace("\"do_center_crop\": true", "\"do_center_crop\": false")).unwrap();
    refused(&["rgb.png", "14 x 18", "14 x 14"]);
    fs::write(&config, "{").unwrap();
    refused(&["preprocessor_config.json"]);
    fs::remove_dir_all(model.join("image_processor")).unwrap();
    refused(&["no image processor", "image_processor/", "feature_extractor/"]);
    fs::create_dir(model.join("feature_extractor")).unwrap();
    fs::write(model.join("feature_extractor/preprocessor_config.json"), text).unwrap();
    let arguments = ["encode-image", "rgb.png", "--model", "model", "--out", "old.npy"];
    assert_done(place.bare().args(arguments));
    assert_eq!(place.npy("old.npy"), place.npy("good.npy"));
    fs::remove_dir_all(model.join("image_encoder")).unwrap();
    refused(&["no image encoder", "--image-encoder"]);
}

/// Built from the repository, the program has the built-in model's image encoder.
#[test]
fn the_built_in_model_encodes_pictures() {
    let place = Workplace::new();
    put(&place, &["rgb.png", "rgba.png"]);
    let run = |model: &[&str], out: &str| {
        assert_done(place.bare().args(["encode-image", "rgb.png", "rgba.png", "--out", out]).args(model));
        place.npy(out)
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji");
    assert_eq!(run(&[], "a.npy"), run(&["--model", folder.to_str().unwrap()], "b.npy"));
}

#[test]
fn stats_tell_of_pictures() {
    let place = Workplace::new();
    put(&place, &["rgb.png", "exif_6.jpg"]);
    fs::write(place.path("bad.png"), "bad").unwrap();
    let stats = |name: &str| -> Value { serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap() };
    let bytes = |name: &str| fs::metadata(place.path(name)).unwrap().len();
    let pictures = ["rgb.png", "exif_6.jpg", "bad.png"];
    let options = ["--on-error", "skip", "--threads", "1", "--batch-size", "2", "--dtype", "int8"];
    assert_done(encode(&place).args(pictures).args(options).args(["--out", "e.npy", "--stats", "s.json"]));
    let found = stats("s.json");
    assert_eq!((&found["rows"], &found["resumed_rows"], &found["skipped_rows"]), (&3.into(), &0.into(), &1.into()));
    assert_eq!(found["input_bytes"], pictures.map(bytes).iter().sum::<u64>());
    assert_eq!(found["input_pixels"], 31 * 23 + 20 * 13);
    let seconds = |name: &str| found["seconds"][name].as_f64().unwrap();
    let parts = ["load", "list", "decode", "encode", "write"].map(seconds);
    assert!(parts.iter().all(|part| *part > 0.0), "{found}");
    // One thread does it all.
    assert!(parts.iter().sum::<f64>() <= seconds("total"), "{found}");
    let rate = found["pictures_per_second"].as_f64().unwrap();
    assert!((rate * seconds("total") - 3.0).abs() < 1e-6, "{found}");
    assert!(found["peak_rss_bytes"].as_u64().unwrap() > 10_000_000 && found["planned_bytes"].is_u64());
    let settings = ["image_size", "embedding_dim", "threads", "decoding_threads", "workers", "batch_size"];
    assert_eq!(settings.map(|key| found["settings"][key].as_u64().unwrap()), [14, 16, 1, 1, 1, 2]);
    assert_eq!((&found["settings"]["device"], &found["settings"]["dtype"]), (&"cpu".into(), &"f32".into()));

    // A run that finds everything done decodes nothing.
    let options = [&pictures[..], &options[..], &["--shard", "1/1", "--out", "f.npy"]].concat();
    assert_done(encode(&place).args(&options));
    assert_done(encode(&place).args(&options).args(["--resume", "--stats", "t.json"]));
    let found = stats("t.json");
    assert_eq!((&found["rows"], &found["resumed_rows"], &found["input_bytes"]), (&3.into(), &3.into(), &0.into()));

    // A quiet stream may skip rows if something counts them.
    let mut quiet = encode(&place);
    quiet.args(pictures).args(["-q", "--on-error", "skip", "--out", "-"]);
    assert_refused(&place, &mut quiet, 2, &["--quiet", "--stats"]);
    assert_eq!(read_npy(&quiet.args(["--stats", "u.json"]).output().unwrap().stdout).nrows(), 3);
    assert_eq!(stats("u.json")["skipped_rows"], 1);
}

#[test]
fn stats_are_a_file_of_their_own() {
    let place = Workplace::new();
    put(&place, &["rgb.png"]);
    fs::write(place.path("list"), "rgb.png\n").unwrap();
    fs::write(place.path("s.json"), "precious").unwrap();
    let cases: [(&[&str], &[&str]); 5] = [
        (&["rgb.png", "--out", "e.npy", "--stats", "./e.npy"], &["--out and --stats", "same file"]),
        (&["rgb.png", "--out", "e.npy", "--stats", "s.json"], &["s.json", "--overwrite"]),
        (&["rgb.png", "--out", "e.npy", "--stats", "none/s.json"], &["none/s.json", "no folder"]),
        (&["--files", "list", "--overwrite", "--out", "e.npy", "--stats", "list"], &["\"list\"", "would be replaced"]),
        (&["rgb.png", "--overwrite", "--picture", "rgb.png"], &["rgb.png", "would be replaced"]),
    ];
    for (options, words) in cases {
        assert_refused(&place, encode(&place).args(options), 2, words);
    }
    assert_eq!(fs::read(place.path("s.json")).unwrap(), b"precious");
}
