//! What is given beside prompts: conditions, learned tokens, noise, one generator for all rows, seeds by prompt, a
//! decoder's negative prompt, text embeddings.

use crate::common::{Workplace, assert_done, assert_refused, model, off, read_npy, read_npz, stderr};
use assert_cmd::Command;
use ndarray::{Array2, array, s};
use ndarray_npy::{NpzWriter, write_npy};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/given").join(name)
}

fn tensor(file: &SafeTensors, name: &str) -> Array2<f32> {
    let view = file.tensor(name).unwrap();
    let numbers = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Array2::from_shape_vec((view.shape()[0], view.shape()[1]), numbers).unwrap()
}

/// A case of the fixture as options.
fn options(place: &Workplace, case: &Value, latents: &Array2<f32>) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    let mut add = |parts: &[&str]| options.extend(parts.iter().map(|part| part.to_string()));
    for (option, key) in [
        ("--steps", "steps"),
        ("--guidance-scale", "guidance_scale"),
        ("--seed", "seed"),
        ("--samples-per-prompt", "samples_per_prompt"),
    ] {
        add(&[option, &case[key].to_string()]);
    }
    for prompt in case["prompts"].as_array().unwrap() {
        add(&["-p", prompt.as_str().unwrap()]);
    }
    for (option, key) in
        [("--negative-prompt", "negative_prompt"), ("--decoder-negative-prompt", "decoder_negative_prompt")]
    {
        if let Some(text) = case[key].as_str() {
            add(&[option, text]);
        }
    }
    if case["is_call"] == json!(true) {
        add(&["--seed-layout", "call"]);
    }
    match case["conditions"].as_u64().unwrap() {
        0 => {}
        1 => add(&["--conditions", fixture("conditions.npz").to_str().unwrap()]),
        _ => add(&["--conditions", fixture("conditions.safetensors").to_str().unwrap()]),
    }
    for inversion in case["inversions"].as_array().unwrap() {
        let file = fixture(inversion[0].as_str().unwrap()).display().to_string();
        let token = inversion[1].as_str().map(|token| format!(":{token}"));
        add(&["--textual-inversion", &(file + &token.unwrap_or_default())]);
    }
    let rows = case["latents"].as_u64().unwrap() as usize;
    if rows > 0 {
        write_npy(place.path("latents.npy"), &latents.slice(s![..rows, ..])).unwrap();
        add(&["--latents", "latents.npy"]);
    }
    options
}

#[test]
fn what_is_given_has_the_embeddings_of_diffusers() {
    let place = Workplace::new();
    let bytes = fs::read(fixture("expected.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let latents = tensor(&expected, "latents");
    for (index, case) in cases.iter().enumerate() {
        let mut command = place.bare();
        command.arg("--model").arg(model()).args(options(&place, case, &latents));
        assert_done(command.args(["--out", "e.npz", "--text-out", "e.npz", "--overwrite"]));
        for name in ["image_embeds", "negative_image_embeds", "text_embeds"] {
            let found = read_npz(fs::read(place.path("e.npz")).unwrap(), name);
            let error = off(&found, &tensor(&expected, &format!("{index}.{name}")));
            assert!(error < 1e-4, "{index}: {name} off by {error:.1e} in {case}");
        }
    }
    assert!(cases.len() >= 18);
}

#[test]
fn text_embeddings_go_where_they_are_wanted() {
    let place = Workplace::new();
    let run =
        |options: &[&str]| assert_done(place.command().args(["-p", "a red apple", "-p", "two cats"]).args(options));
    run(&["--out", "e.npy", "--text-out", "t.npy", "--negative-out", "n.npy"]);
    let [image, text, negative] =
        ["e.npy", "t.npy", "n.npy"].map(|name| read_npy(&fs::read(place.path(name)).unwrap()));
    run(&["--out", "e.npz", "--text-out", "e.npz"]);
    let in_archive = |name| read_npz(fs::read(place.path("e.npz")).unwrap(), name);
    assert_eq!(in_archive("image_embeds"), image);
    assert_eq!(in_archive("text_embeds"), text);
    assert_eq!(in_archive("negative_image_embeds"), negative);
    run(&["--out", "e.jsonl", "--text-out", "e.jsonl"]);
    let lines = fs::read_to_string(place.path("e.jsonl")).unwrap();
    let line: Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    let numbers: Vec<f32> = serde_json::from_value(line["text_embeds"].clone()).unwrap();
    assert_eq!(numbers, text.row(1).to_vec());
    assert!(line.get("negative_image_embeds").is_none());
    run(&["--out-dir", "d", "--text-out", "d"]);
    assert_eq!(read_npy(&fs::read(place.path("d/text_emb/text_emb_0000.npy")).unwrap()), text);
    // Another step or seed changes nothing.
    run(&["--out", "f.npy", "--text-out", "u.npy", "--steps", "1", "--seed", "9"]);
    assert_eq!(fs::read(place.path("t.npy")).unwrap(), fs::read(place.path("u.npy")).unwrap());
    // Shards of all arrays become the whole.
    for shard in ["1/2", "2/2"] {
        let out = format!("{}.npz", &shard[..1]);
        run(&["--out", &out, "--text-out", &out, "--shard", shard, "--batch-size", "2"]);
    }
    assert_done(place.bare().args(["merge", "1.npz", "2.npz", "--out", "merged.npz"]));
    let merged = read_npz(fs::read(place.path("merged.npz")).unwrap(), "text_embeds");
    assert_eq!(merged, text);
}

/// The ids and seeds of a run's rows.
fn seeds(place: &Workplace, options: &[&str]) -> Vec<u64> {
    assert_done(place.command().args(options).args(["--out", "s.jsonl", "--overwrite"]));
    let lines = fs::read_to_string(place.path("s.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seed"].as_u64().unwrap()).collect()
}

fn seed_of(prompt: &str) -> u64 {
    u64::from_le_bytes(Sha256::digest(prompt)[..8].try_into().unwrap())
}

#[test]
fn a_prompts_seed_is_made_of_its_text() {
    let place = Workplace::new();
    let lines = "{\"prompt\": \"a red apple\"}\n{\"prompt\": \"two cats\", \"seed\": 5}\n{\"prompt\": \"ä\"}\n";
    fs::write(place.path("p.jsonl"), lines).unwrap();
    let found = seeds(&place, &["-f", "p.jsonl", "--seed-by", "prompt", "--samples-per-prompt", "2"]);
    let expected = [seed_of("a red apple"), seed_of("a red apple") + 1, 5, 6, seed_of("ä"), seed_of("ä") + 1];
    assert_eq!(found, expected);
    // Whatever comes before, the embeddings of a prompt are the same; the negative ones too.
    let embed = |prompts: &[&str], out: &str| -> [Array2<f32>; 2] {
        let prompts = prompts.iter().flat_map(|prompt| ["-p", prompt]);
        let options = ["-n", "rain", "--seed-by", "prompt", "--out", out];
        assert_done(place.command().args(prompts).args(options));
        let bytes = fs::read(place.path(out)).unwrap();
        ["image_embeds", "negative_image_embeds"].map(|name| read_npz(bytes.clone(), name))
    };
    let (alone, last) = (embed(&["ä"], "a.npz"), embed(&["x", "y", "ä"], "b.npz"));
    for (alone, last) in alone.iter().zip(&last) {
        assert!(off(alone, &last.slice(s![2.., ..]).to_owned()) < 1e-5);
    }
    assert_refused(
        &place,
        place.command().args(["-p", "x", "--seed-by", "prompt", "--seed", "3", "--out", "e.npy"]),
        2,
        &["--seed-by", "--seed"],
    );
}

#[test]
fn rows_that_are_given_are_sharded_and_resumed_as_ever() {
    let place = Workplace::new();
    let conditions = fixture("conditions.safetensors").display().to_string();
    let run = |options: &[&str]| {
        let rows = ["--conditions", conditions.as_str(), "--samples-per-prompt", "3", "--batch-size", "2"];
        assert_done(place.command().args(rows).args(options))
    };
    run(&["--out", "whole.npz"]);
    for shard in ["1/2", "2/2"] {
        run(&["--out", &format!("{}.npz", &shard[..1]), "--shard", shard]);
    }
    assert_done(place.bare().args(["merge", "1.npz", "2.npz", "--out", "merged.npz"]));
    assert_eq!(fs::read(place.path("merged.npz")).unwrap(), fs::read(place.path("whole.npz")).unwrap());
    run(&["--out", "again.npz", "--resume"]);
    let message = run(&["--out", "again.npz", "--resume"]);
    assert!(message.contains("nothing to do"), "{message}");
    // Other conditions are another run.
    let mut command = place.command();
    let other = fixture("conditions.npz").display().to_string();
    let rows = ["--conditions", other.as_str(), "--samples-per-prompt", "3", "--batch-size", "2"];
    let output = command.args(rows).args(["--out", "again.npz", "--resume"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("again.npz"), "{}", stderr(&output));
}

#[test]
fn without_texts_the_text_encoder_is_not_read() {
    let place = Workplace::new();
    let folder = place.copy_model();
    for file in folder.join("text_encoder").read_dir().unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            fs::remove_file(file).unwrap();
        }
    }
    let command = |options: &[&str]| {
        let mut command = place.bare();
        command.args(["--model", "model", "--steps", "2", "--out", "e.npz", "--overwrite"]).args(options);
        command
    };
    let [both, alone] = ["conditions.safetensors", "conditions.npz"].map(|name| fixture(name).display().to_string());
    assert_done(&mut command(&["--conditions", &both]));
    assert_done(&mut command(&["--conditions", &alone, "--guidance-scale", "1"]));
    assert_done(&mut command(&["--conditions", &both, "--resume"]));
    let before = fs::read(place.path("e.npz")).unwrap();
    for options in [&["--conditions", &alone][..], &["--conditions", &both, "--decoder-negative-prompt", "x"]] {
        let output = command(options).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("text_encoder"), "{}", stderr(&output));
    }
    assert_eq!(fs::read(place.path("e.npz")).unwrap(), before);
}

/// The arrays of conditions of two rows that fit the model, in float32.
fn arrays() -> BTreeMap<&'static str, (Vec<usize>, Vec<f32>)> {
    let make = |shape: &[usize], value: f32| (shape.to_vec(), vec![value; shape.iter().product()]);
    BTreeMap::from([
        ("text_embeds", make(&[2, 16], 0.1)),
        ("text_encoder_hidden_states", make(&[2, 77, 16], 0.2)),
        ("text_mask", make(&[2, 77], 1.0)),
    ])
}

fn save(place: &Workplace, name: &str, arrays: &BTreeMap<&'static str, (Vec<usize>, Vec<f32>)>) {
    let bytes: Vec<(&str, &Vec<usize>, Vec<u8>)> = arrays
        .iter()
        .map(|(name, (shape, values))| (*name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views =
        bytes.iter().map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    fs::write(place.path(name), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn conditions_that_cannot_be_used_are_one_line() {
    let place = Workplace::new();
    let command = |file: &str| -> Command {
        let mut command = place.command();
        command.args(["--conditions", file, "--out", "e.npy"]);
        command
    };
    save(&place, "good.safetensors", &arrays());
    assert_done(command("good.safetensors").arg("--overwrite"));
    fs::remove_file(place.path("e.npy")).unwrap();
    type Change = fn(&mut BTreeMap<&'static str, (Vec<usize>, Vec<f32>)>);
    let changes: [(Change, &str); 11] = [
        (|arrays| drop(arrays.remove("text_mask")), "holds no text_mask"),
        (|arrays| drop(arrays.remove("text_embeds")), "holds no text_embeds"),
        (|arrays| arrays.get_mut("text_embeds").unwrap().0 = vec![1, 32], "text_embeds has 1 rows"),
        (|arrays| arrays.get_mut("text_embeds").unwrap().0 = vec![2, 1, 16], "shape [2, 1, 16]"),
        (|arrays| arrays.get_mut("text_embeds").unwrap().1[17] = f32::NAN, "NaN or infinity in row 1"),
        (|arrays| arrays.get_mut("text_encoder_hidden_states").unwrap().1[3] = f32::INFINITY, "in row 0"),
        (|arrays| arrays.get_mut("text_mask").unwrap().1[80] = 0.5, "neither 0 nor 1 in row 1"),
        (|arrays| arrays.get_mut("text_encoder_hidden_states").unwrap().0 = vec![2, 154, 8], "154 tokens"),
        (
            |arrays| {
                arrays.insert("text_embeds", (vec![2, 8], vec![0.0; 16]));
            },
            "text_embeds has 8 numbers a row, and this model takes 16",
        ),
        (
            |arrays| {
                arrays.insert("negative_text_embeds", (vec![2, 16], vec![0.0; 32]));
            },
            "holds no negative_text_encoder_hidden_states",
        ),
        (
            |arrays| arrays.values_mut().for_each(|(shape, values)| (shape[0], *values) = (0, Vec::new())),
            "holds no rows",
        ),
    ];
    for (change, words) in changes {
        let mut changed = arrays();
        change(&mut changed);
        save(&place, "bad.safetensors", &changed);
        assert_refused(&place, &mut command("bad.safetensors"), 2, &["bad.safetensors", words]);
    }
    fs::write(place.path("text.txt"), "a cat").unwrap();
    fs::write(place.path("broken.npz"), "PK nonsense").unwrap();
    fs::write(place.path("broken.safetensors"), "nonsense").unwrap();
    write_npy(place.path("one.npy"), &array![[1.0_f32]]).unwrap();
    fs::write(place.path("p.txt"), "a cat\n").unwrap();
    for (file, words) in [
        ("none.npz", "cannot read"),
        ("text.txt", ".npz"),
        ("broken.npz", "not a valid .npz"),
        ("broken.safetensors", "not a valid safetensors"),
        ("one.npy", "holds one array"),
        (".", "cannot read"),
    ] {
        assert_refused(&place, &mut command(file), 2, &[file, words]);
    }
    for (options, words) in [
        (&["-p", "x"][..], "--prompt"),
        (&["-f", "p.txt"], "--prompts"),
        (&["--seed-by", "prompt"], "--seed-by"),
        (&["--out", "good.safetensors", "--overwrite"], "would be replaced"),
    ] {
        let mut command = place.command();
        command.args(["--conditions", "good.safetensors"]).args(options);
        if !options.contains(&"--out") {
            command.args(["--out", "e.npy"]);
        }
        assert_refused(&place, &mut command, 2, &[words]);
    }
    let both = fixture("conditions.safetensors").display().to_string();
    assert_refused(&place, command(&both).args(["-n", "rain"]), 2, &["--negative-prompt", "negative conditions"]);
}

#[test]
fn learned_tokens_that_cannot_be_used_are_one_line() {
    let place = Workplace::new();
    for name in ["cat.bin", "bare.pt", "a1111.pt", "style.safetensors", "conditions.safetensors"] {
        fs::copy(fixture(name), place.path(name)).unwrap();
    }
    let mut narrow = BTreeMap::from([("<a>", (vec![3], vec![0.1; 3]))]);
    save(&place, "narrow.safetensors", &narrow);
    narrow.insert("<a>", (vec![16], vec![f32::NAN; 16]));
    save(&place, "nan.safetensors", &narrow);
    narrow.insert("<a>", (vec![1, 1, 16], vec![0.0; 16]));
    save(&place, "cube.safetensors", &narrow);
    narrow.insert("<a>", (vec![0, 16], Vec::new()));
    save(&place, "empty.safetensors", &narrow);
    fs::write(place.path("attack.bin"), b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.").unwrap();
    fs::write(place.path("nothing.bin"), b"").unwrap();
    let refused: &[(&[&str], &str)] = &[
        (&["none.bin"], "none.bin"),
        (&["narrow.safetensors"], "3 numbers, and this model's text encoder takes 16"),
        (&["nan.safetensors"], "NaN"),
        (&["cube.safetensors"], "shape [1, 1, 16]"),
        (&["empty.safetensors"], "shape [0, 16]"),
        (&["bare.pt"], "FILE:TOKEN"),
        (&["bare.pt:"], "--textual-inversion"),
        (&["conditions.safetensors"], "is no textual inversion"),
        (&["attack.bin"], "os.system"),
        (&["nothing.bin"], "nothing.bin"),
        (&["cat.bin:a"], "\"a\" already"),
        (&["cat.bin", "cat.bin"], "\"<cat-toy>\" already"),
        (&["style.safetensors:<s>", "cat.bin:<s>_1"], "\"<s>_1\" already"),
        (&["cat.bin:<s>_1", "style.safetensors:<s>"], "\"<s>_1\" already"),
        (&["."], "learned_embeds.safetensors"),
    ];
    for (files, words) in refused {
        let mut command = place.command();
        command.args(files.iter().flat_map(|file| ["--textual-inversion", file]));
        assert_refused(&place, command.args(["-p", "x", "--out", "e.npy"]), 2, &[words]);
    }
    // A folder as diffusers saves it, and a name of the user's own.
    fs::create_dir(place.path("folder")).unwrap();
    fs::copy(place.path("cat.bin"), place.path("folder/learned_embeds.bin")).unwrap();
    let embed = |options: &[&str], out: &str| {
        assert_done(place.command().args(options).args(["--out", out]));
        read_npy(&fs::read(place.path(out)).unwrap())
    };
    let own = embed(&["--textual-inversion", "cat.bin:<my:cat>", "-p", "a <my:cat>"], "a.npy");
    let folder = embed(&["--textual-inversion", "folder", "-p", "a <cat-toy>"], "b.npy");
    assert_eq!(own, folder);
    assert_ne!(own, embed(&["-p", "a <cat-toy>"], "c.npy"));
    // Capital letters are told once, however many pipelines there are.
    let mut command = place.command();
    command.args(["--textual-inversion", "style.safetensors", "--batch-size", "1", "--threads", "2"]);
    let message = assert_done(command.args(["-p", "<Style>", "-p", "x", "-p", "y", "--out", "d.npy"]));
    assert_eq!(message.matches("the first of its 3 vectors").count(), 1, "{message}");
}

#[test]
fn noise_that_cannot_be_used_is_one_line() {
    let place = Workplace::new();
    let write =
        |name: &str, rows: usize, dim: usize| write_npy(place.path(name), &Array2::<f32>::zeros((rows, dim))).unwrap();
    write("two.npy", 2, 16);
    write("three.npy", 3, 16);
    write("four.npy", 4, 16);
    write("narrow.npy", 2, 5);
    let mut nan = Array2::<f32>::zeros((2, 16));
    nan[[1, 3]] = f32::NAN;
    write_npy(place.path("nan.npy"), &nan).unwrap();
    write_npy(place.path("flat.npy"), &array![0.0_f32, 1.0]).unwrap();
    let mut several = NpzWriter::new(fs::File::create(place.path("several.npz")).unwrap());
    several.add_array("a", &array![[0.0_f32]]).unwrap();
    several.add_array("b", &array![[0.0_f32]]).unwrap();
    several.finish().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--latents", "three.npy"], "has 3 rows for 2 embeddings"),
        (&["--latents", "four.npy"], "has 4 rows for 2 embeddings"),
        (&["--latents", "three.npy", "-n", "rain"], "it takes 2, or 4"),
        (&["--latents", "two.npy", "-n", "rain", "--seed-layout", "call"], "takes 4"),
        (&["--latents", "narrow.npy"], "5 numbers, and this model's have 16"),
        (&["--latents", "nan.npy"], "in row 1"),
        (&["--latents", "flat.npy"], "shape [2]"),
        (&["--latents", "several.npz"], "holds 2 arrays"),
        (&["--latents", "none.npy"], "none.npy"),
        (&["--latents", "two.npy", "--out", "two.npy", "--overwrite"], "would be replaced"),
        (&["--latents", "two.npy", "-f", "-"], "cannot; write them to a file"),
        (&["--seed-layout", "call", "-f", "-"], "cannot; write them to a file"),
        (&["--seed-layout", "call", "--shard", "1/2"], "--shard"),
        (&["--seed-layout", "call", "--resume"], "--resume"),
        (&["--seed-layout", "call", "--seed-by", "prompt"], "--seed-by"),
        (&["--seed-layout", "call", "--batch-size", "1"], "all 2 embeddings in one batch"),
        (&["--seed-layout", "rows"], "--seed-layout"),
        (&["--seed-by", "row"], "--seed-by"),
        (&["--text-out", "t.txt"], "t.txt"),
        (&["--text-out", "e.npy"], "--out and --text-out are the same file"),
        (&["--text-out", "t.npy", "--negative-out", "t.npy"], "t.npy"),
    ];
    for (options, words) in cases {
        let mut command = place.command();
        command.args(["-p", "x", "-p", "y"]).args(*options);
        if !options.contains(&"--out") {
            command.args(["--out", "e.npy"]);
        }
        assert_refused(&place, command.write_stdin("z\n"), 2, &[words]);
    }
    fs::write(place.path("p.jsonl"), "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"seed\": 3}\n").unwrap();
    let mut command = place.command();
    command.args(["-f", "p.jsonl", "--seed-layout", "call", "--out", "e.npy"]);
    assert_refused(&place, &mut command, 2, &["p.jsonl:2", "\"seed\"", "--seed-layout call"]);
}

#[test]
fn a_decoders_negative_prompt_needs_an_output_for_it() {
    let place = Workplace::new();
    let message = assert_done(place.command().args(["-p", "x", "--decoder-negative-prompt", "y", "--out", "e.npy"]));
    assert!(message.contains("--decoder-negative-prompt has no effect"), "{message}");
    // The empty one is none.
    let run = |options: &[&str], out: &str| {
        assert_done(place.command().args(["-p", "x", "--out", out]).args(options));
        fs::read(place.path(out)).unwrap()
    };
    assert_eq!(run(&["--decoder-negative-prompt", ""], "a.npz"), run(&[], "b.npz"));
}
