//! `--provenance`.

use crate::common::{Workplace, assert_done, assert_refused, model, picture, stderr};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// Three prompts in a file.
fn workplace() -> Workplace {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a red apple\ntwo cats\nrain\n").unwrap();
    place
}

fn embed(place: &Workplace, options: &[&str]) {
    assert_done(place.command().args(["-f", "p.txt"]).args(options));
}

fn json_of(place: &Workplace, name: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap()
}

/// The provenance in the metadata of a safetensors file.
fn of_safetensors(place: &Workplace, name: &str) -> Value {
    let bytes = fs::read(place.path(name)).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&metadata.metadata().as_ref().unwrap()["prior_embed_provenance"]).unwrap()
}

#[test]
fn it_has_the_hashes_of_model_and_prompts_and_the_settings() {
    let place = workplace();
    embed(&place, &["-o", "e.npy", "--provenance", "e.json", "--seed", "7", "--normalize"]);
    let found = json_of(&place, "e.json");
    let sha256 = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
    assert_eq!(found["prompts"]["sha256"], json!(sha256(&fs::read(place.path("p.txt")).unwrap())));
    assert_eq!(found["prompts"]["rows"], json!(3));
    let files = found["model"]["files"].as_object().unwrap();
    for (path, hash) in files {
        assert_eq!(*hash, json!(sha256(&fs::read(model().join(path)).unwrap())), "{path}");
    }
    for path in ["prior/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.json"] {
        assert!(files.contains_key(path), "{path} is not in {files:?}");
    }
    let sums: String = files.iter().map(|(path, hash)| format!("{}  {path}\n", hash.as_str().unwrap())).collect();
    assert_eq!(found["model"]["sha256"], json!(sha256(sums.as_bytes())));
    assert_eq!(found["prior_embed"], json!(env!("CARGO_PKG_VERSION")));
    assert!(found["libtorch"].as_str().unwrap().starts_with("2."), "{}", found["libtorch"]);
    let settings = &found["settings"];
    for (key, value) in [("seed", json!(7)), ("steps", json!(3)), ("normalize", json!(true)), ("dtype", json!("f32"))] {
        assert_eq!(settings[key], value, "{key}");
    }
    assert!(settings["threads"].is_null() && found["shard"].is_null(), "{settings}");
}

#[test]
fn the_same_run_gives_the_same_bytes_and_the_file_is_the_metadata() {
    let place = workplace();
    for name in ["a", "b"] {
        let (out, provenance) = (format!("{name}.safetensors"), format!("{name}.json"));
        embed(&place, &["-o", &out, "--provenance", &provenance]);
    }
    for extension in ["safetensors", "json"] {
        let [one, other] = ["a", "b"].map(|name| fs::read(place.path(&format!("{name}.{extension}"))).unwrap());
        assert!(one == other, "{extension}");
    }
    assert_eq!(of_safetensors(&place, "a.safetensors"), json_of(&place, "a.json"));
    // The built-in model's files are in the program.
    let builtin = ["-p", "x", "--steps", "2", "-q", "-o", "x.safetensors", "--provenance", "x.json"];
    place.bare().args(builtin).assert().success();
    let found = json_of(&place, "x.json");
    assert_eq!(found["model"]["name"], json!("emoji"));
    assert_eq!(found["model"]["files"]["prior/config.json"].as_str().unwrap().len(), 64);
    assert_eq!(found, of_safetensors(&place, "x.safetensors"));
    assert_eq!(found["prompts"]["sha256"], json!(format!("{:x}", Sha256::digest("x\n"))));
}

#[test]
fn shards_have_theirs_and_merge_joins_them() {
    for extension in ["safetensors", "npy", "parquet"] {
        let place = workplace();
        let name = |part: &str| format!("{part}.{extension}");
        let options = ["--batch-size", "1", "--provenance"];
        embed(&place, &[&options[..], &["whole.json", "-o", &name("whole")]].concat());
        for shard in ["1", "2"] {
            let (of, json) = (format!("{shard}/2"), format!("{shard}.json"));
            embed(&place, &[&options[..], &[&json, "-o", &name(shard), "--shard", &of]].concat());
            assert_eq!(json_of(&place, &json)["shard"], json!(of));
        }
        let parts = ["merge", &name("1"), &name("2"), "-o", &name("all"), "--provenance", "all.json"];
        assert_done(place.bare().args(parts));
        for pair in [["all.json", "whole.json"].map(str::to_string), [name("all"), name("whole")]] {
            let [one, other] = pair.each_ref().map(|name| fs::read(place.path(name)).unwrap());
            // A Parquet file has no provenance of its own.
            assert!(one == other, "{pair:?}");
        }
    }
    let place = workplace();
    for shard in ["1", "2"] {
        embed(&place, &["-o", &format!("{shard}.npy"), "--shard", &format!("{shard}/2")]);
    }
    let merge = ["merge", "1.npy", "2.npy", "-o", "all.npy", "--provenance", "all.json"];
    assert_refused(&place, place.bare().args(merge), 2, &["--provenance: the parts have none"]);
}

#[test]
fn a_resumed_run_writes_it_once_and_replaces_no_other() {
    let place = workplace();
    let options = ["-f", "p.txt", "-o", "e.safetensors", "--resume", "--provenance", "e.json"];
    let run = || {
        let mut command = place.command();
        command.args(options);
        command
    };
    assert_done(&mut run());
    let [embeds, provenance] = ["e.safetensors", "e.json"].map(|name| fs::read(place.path(name)).unwrap());
    fs::remove_file(place.path("e.json")).unwrap();
    for _ in 0..2 {
        let output = run().output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(fs::read(place.path("e.json")).unwrap() == provenance);
    }
    fs::write(place.path("e.json"), "mine").unwrap();
    assert_refused(&place, &mut run(), 2, &["\"e.json\" is there already, and not as this run writes it"]);
    assert_eq!(fs::read(place.path("e.json")).unwrap(), b"mine");
    assert!(fs::read(place.path("e.safetensors")).unwrap() == embeds);
    assert_done(run().arg("--overwrite"));
    assert!(fs::read(place.path("e.json")).unwrap() == provenance);
}

#[test]
fn a_file_in_the_way_or_prompts_from_a_pipe_are_refused() {
    let place = workplace();
    fs::write(place.path("there.json"), "mine").unwrap();
    let refused = |options: &[&str], words: &[&str]| {
        assert_refused(&place, place.command().args(["-o", "e.npy"]).args(options), 2, words);
    };
    refused(&["-f", "p.txt", "--provenance", "there.json"], &["\"there.json\" is there already"]);
    refused(&["-f", "p.txt", "--provenance", "e.npy"], &["--provenance is the same file as another output"]);
    refused(&["-f", "p.txt", "--provenance", "none/e.json"], &["there is no folder \"none\""]);
    refused(&["-f", "p.txt", "--provenance", "p.txt", "--overwrite"], &["p.txt", "would be replaced"]);
    let mut piped = place.spawn(&["-f", "-", "-o", "e.npy", "--provenance", "e.json"], Stdio::piped(), Stdio::piped());
    drop(piped.stdin.take());
    let output = piped.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--provenance needs prompts that can be hashed first"), "{}", stderr(&output));
}

fn change_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn score_warns_of_embeddings_of_other_models() {
    let place = workplace();
    embed(&place, &["-o", "e.safetensors", "--provenance", "e.json"]);
    let other = place.copy_model();
    change_last_byte(&other.join("text_encoder/model.safetensors"));
    let options = ["--steps", "3", "-f", "p.txt", "-o", "bank.npy", "--provenance", "bank.npy.provenance.json"];
    assert_done(place.bare().arg("--model").arg(&other).args(options));
    let warning = |options: &[&str]| {
        let output = place.bare().args(["score", "e.safetensors"]).args(options).output().unwrap();
        assert!(output.status.success() && output.stdout.contains(&b'\t'), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(warning(&["--in", "bank.npy"]).contains("are of different models, say their provenances"));
    assert_eq!(warning(&["--in", "e.safetensors"]), "");
    let [own, other] = [model(), other].map(|model| model.display().to_string());
    assert!(warning(&["-p", "x", "-m", &other]).contains("was made with another text encoder"));
    assert_eq!(warning(&["-p", "x", "-m", &own]), "");
    // The negative embedding is that of a black image, so that the image encoder is known too.
    let picture = picture("rgb.png").display().to_string();
    assert_eq!(warning(&["--image", &picture, "-m", &other]), "");
    change_last_byte(&Path::new(&other).join("image_encoder/model.safetensors"));
    assert!(warning(&["--image", &picture, "-m", &other]).contains("was made with another image encoder"));
}
