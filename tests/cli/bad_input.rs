//! Bad input: one clear line, exit code 2 or 1, nothing half-written.

use crate::common::{Workplace, assert_done, assert_refused, edit_json};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[test]
fn wrong_usage_is_one_line() {
    let place = Workplace::new();
    fs::create_dir(place.path("empty")).unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--out", "e.npy"], "no prompt"),
        (&["-p", "x"], "--out"),
        (&["-p", "x", "--out", "e.txt"], "e.txt"),
        (&["-p", "x", "--out", "e"], ".npy"),
        (&["-p", "x", "--out", "e.npy", "--steps", "0"], "--steps"),
        (&["-p", "x", "--out", "e.npy", "--steps", "-5"], "--steps"),
        (&["-p", "x", "--out", "e.npy", "--steps", "many"], "--steps"),
        (&["-p", "x", "--out", "e.npy", "--steps", "99999999999999999999"], "--steps"),
        (&["-p", "x", "--out", "e.npy", "--steps", "1001"], "1001 steps"),
        (&["-p", "x", "--out", "e.npy", "--seed", "-1"], "--seed"),
        (&["-p", "x", "--out", "e.npy", "--seed", "18446744073709551616"], "--seed"),
        (&["-p", "x", "-p", "y", "--out", "e.npy", "--seed", "18446744073709551615"], "--seed 18446744073709551615"),
        (&["-p", "x", "-n", "y", "--out", "e.npz", "--seed", "18446744073709551615"], "--seed 18446744073709551615"),
        (&["-p", "x", "--out", "e.npy", "--guidance-scale", "nan"], "--guidance-scale"),
        (&["-p", "x", "--out", "e.npy", "--guidance-scale", "inf"], "--guidance-scale"),
        (&["-p", "x", "--out", "e.npy", "--samples-per-prompt", "0"], "--samples-per-prompt"),
        (&["-p", "x", "--out", "e.npy", "--batch-size", "0"], "--batch-size"),
        (&["-p", "x", "--out", "e.npy", "--threads", "0"], "--threads"),
        (&["-p", "x", "--out", "e.npy", "--device", "tpu"], "--device"),
        (&["-p", "x", "--out", "e.npy", "--device", "cuda:99"], "cuda:99"),
        (&["-p", "x", "--out", "e.npy", "--device", "cuda:18446744073709551615"], "cuda:18446744073709551615"),
        (&["-p", "x", "--out", "e.npy", "--stats", "./e.npy", "--overwrite"], "--stats"),
        (&["-p", "x", "--out", "-", "--stats", "-"], "--stats"),
        (&["-p", "x", "--out", "e.npy", "--stats", "none/s.json"], "none/s.json"),
        (&["-f", "empty", "--out", "e.npy"], "\"empty\" holds no prompt files (.txt, .jsonl"),
        (&["-p", "x", "--out", "e.npy", "--dtype", "f64"], "--dtype"),
        (&["-p", "x", "--out", "e.npy", "--scheduler", "pndm"], "--scheduler"),
        (&["-p", "x", "--out", "e.npy", "--format", "csv"], "--format"),
        (&["-p", "x", "--out", "e.npy", "--negative-out", "e.npy"], "--negative-out"),
        (&["-p", "x", "--out", "e.npy", "--no-such-option"], "--no-such-option"),
        (&["-p", "x", "--out", "e.npy", "-q", "-v"], "--verbose"),
        (&["--prompts", "missing.txt", "--out", "e.npy"], "missing.txt"),
        (&["--prompts", "captions.pdf", "--out", "e.npy"], ".pdf"),
    ];
    for (options, word) in cases {
        assert_refused(&place, place.command().args(*options), 2, &[word]);
    }
}

#[test]
fn prompts_that_are_not_utf8_are_refused() {
    let place = Workplace::new();
    let broken = OsStr::from_bytes(b"caf\xe9");
    assert_refused(&place, place.command().arg("-p").arg(broken).args(["--out", "e.npy"]), 2, &["UTF-8"]);
    fs::write(place.path("latin1.txt"), b"fine\ncaf\xe9\n").unwrap();
    let mut command = place.command();
    assert_refused(&place, command.args(["-f", "latin1.txt", "--out", "e.npy"]), 2, &["latin1.txt:2", "UTF-8"]);
    fs::write(place.path("empty.txt"), "\n\n").unwrap();
    assert_refused(&place, place.command().args(["-f", "empty.txt", "--out", "e.npy"]), 2, &["empty.txt"]);
}

#[test]
fn a_prompt_of_a_megabyte_is_cut_off_with_a_warning() {
    let place = Workplace::new();
    fs::write(place.path("long.txt"), "all work and no play ".repeat(50_000)).unwrap();
    let warning = assert_done(place.command().args(["-f", "long.txt", "--out", "e.npy"]));
    assert_eq!(warning.lines().count(), 1, "{warning}");
    assert!(warning.contains("truncated") && warning.len() < 2000, "{warning}");
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_the_work() {
    let place = Workplace::new();
    fs::write(place.path("file"), "x").unwrap();
    fs::create_dir(place.path("folder.npy")).unwrap();
    let cases = [("no/such/folder/e.npy", 2), ("file/e.npy", 2), ("folder.npy", 2), ("/proc/e.npy", 2)];
    for (out, code) in cases {
        // The model does not exist either: that the output is named shows that it is looked at first.
        assert_refused(&place, place.bare().args(["-m", "none", "-p", "x", "--out", out]), code, &[out]);
        let mut command = place.bare();
        command.args(["-m", "none", "-p", "x", "--out", "e.npy", "--negative-out", out]);
        assert_refused(&place, &mut command, code, &[out]);
    }
}

#[test]
fn prompts_are_not_replaced_by_what_is_made_of_them() {
    let place = Workplace::new();
    let text = "{\"prompt\": \"a red apple\"}\n";
    fs::write(place.path("a.jsonl"), text).unwrap();
    std::os::unix::fs::symlink("a.jsonl", place.path("link.jsonl")).unwrap();
    fs::write(place.path("e.npy.errors.jsonl"), text).unwrap();
    for (prompts, options) in [
        ("a.jsonl", &["--out", "a.jsonl"][..]),
        ("a.jsonl", &["--out", "./link.jsonl"]),
        ("a.jsonl", &["--out", "e.npy", "--stats", "a.jsonl"]),
        ("e.npy.errors.jsonl", &["--out", "e.npy", "--on-error", "skip"]),
    ] {
        let mut command = place.command();
        command.args(["-f", prompts, "--overwrite"]).args(options);
        assert_refused(&place, &mut command, 2, &[&format!("{prompts:?} holds the prompts")]);
        assert_eq!(fs::read_to_string(place.path(prompts)).unwrap(), text);
    }
}

#[test]
fn an_existing_output_stays_without_overwrite() {
    let place = Workplace::new();
    fs::write(place.path("e.npy"), "precious").unwrap();
    assert_refused(&place, place.command().args(["-p", "x", "--out", "e.npy"]), 2, &["e.npy", "--overwrite"]);
    assert_eq!(fs::read_to_string(place.path("e.npy")).unwrap(), "precious");
    assert_done(place.command().args(["-p", "x", "--out", "e.npy", "--overwrite"]));
    assert!(fs::read(place.path("e.npy")).unwrap().starts_with(b"\x93NUMPY"));
}

#[test]
fn a_full_disk_fails_and_leaves_nothing() {
    let place = Workplace::new();
    assert_refused(
        &place,
        place.command().args(["-p", "x", "--out", "/dev/full", "--format", "npy"]),
        1,
        &["/dev/full"],
    );
    // A limit on file sizes stands in for a full disk: the write fails in the same place.
    let script = format!(
        "trap '' XFSZ; ulimit -f 0; exec {:?} -m {:?} --steps 2 -p x --out e.npy",
        env!("CARGO_BIN_EXE_prior-embed"),
        crate::common::model()
    );
    let mut command = assert_cmd::Command::new("bash");
    command.current_dir(place.folder.path()).args(["-c", &script]);
    assert_refused(&place, &mut command, 1, &["e.npy"]);
}

/// Runs the binary on the workplace's broken copy of the model.
fn assert_model_refused(place: &Workplace, code: i32, words: &[&str]) {
    let mut command = place.bare();
    command.args(["-m", "model", "-p", "a red apple", "--steps", "3", "--out", "e.npy"]);
    assert_refused(place, &mut command, code, words);
}

#[test]
fn models_that_are_not_there_are_refused() {
    let place = Workplace::new();
    assert_refused(&place, place.bare().args(["-m", "none", "-p", "x", "--out", "e.npy"]), 2, &["none"]);
    fs::write(place.path("file"), "x").unwrap();
    assert_refused(&place, place.bare().args(["-m", "file", "-p", "x", "--out", "e.npy"]), 2, &["file"]);
    fs::create_dir(place.path("empty")).unwrap();
    assert_refused(&place, place.bare().args(["-m", "empty", "-p", "x", "--out", "e.npy"]), 2, &["empty", "prior"]);
    for part in ["prior", "text_encoder", "tokenizer", "scheduler"] {
        let place = Workplace::new();
        fs::remove_dir_all(place.copy_model().join(part)).unwrap();
        assert_model_refused(&place, 2, &["model", part]);
    }
}

#[test]
fn files_that_are_missing_from_a_component_are_named() {
    let files = [
        "prior/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "prior/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ];
    for file in files {
        let place = Workplace::new();
        fs::remove_file(place.copy_model().join(file)).unwrap();
        assert_model_refused(&place, 2, &["model", file.rsplit('/').next().unwrap()]);
    }
}

#[test]
fn more_threads_than_cores_are_too_many() {
    let place = Workplace::new();
    let warning = assert_done(place.command().args(["-p", "x", "--threads", "100000", "--out", "e.npy"]));
    assert!(warning.contains("--threads 100000"), "{warning}");
}

#[test]
fn configurations_with_wrong_values_are_refused_by_key() {
    let prior = "prior/config.json";
    let text = "text_encoder/config.json";
    let scheduler = "scheduler/scheduler_config.json";
    let cases = [
        (prior, "num_layers", json!("two")),
        (prior, "num_layers", json!(0)),
        (prior, "num_layers", json!(1_000_000_000_000_i64)),
        (prior, "num_attention_heads", json!(-1)),
        (prior, "num_attention_heads", json!(i64::MAX)),
        (prior, "embedding_dim", json!(1.5)),
        (prior, "embedding_dim", json!(null)),
        (prior, "added_emb_type", json!("query")),
        (prior, "added_emb_type", json!(null)),
        (prior, "norm_in_type", json!("batch")),
        (prior, "time_embed_act_fn", json!("tanh")),
        (prior, "num_embeddings", json!(5)),
        (prior, "num_embeddings", json!(76)),
        (prior, "additional_embeddings", json!(5)),
        (prior, "clip_embed_dim", json!(7)),
        (text, "hidden_act", json!("tanh")),
        (text, "hidden_size", json!([1])),
        (text, "num_attention_heads", json!(7)),
        (text, "projection_dim", json!(3)),
        (text, "max_position_embeddings", json!(3)),
        (text, "layer_norm_eps", json!(-1)),
        (text, "layer_norm_eps", json!(1e39)),
        (scheduler, "variance_type", json!("fixed_large")),
        (scheduler, "variance_type", json!("learned_range")),
        (scheduler, "prediction_type", json!("v_prediction")),
        (scheduler, "num_train_timesteps", json!("1000")),
        (scheduler, "beta_schedule", json!("linear")),
        (scheduler, "clip_sample", json!("yes")),
        (scheduler, "clip_sample_range", json!(1e39)),
        ("model_index.json", "scheduler", json!(["diffusers", "PNDMScheduler"])),
        ("model_index.json", "prior", json!([null, null])),
    ];
    for (file, key, value) in cases {
        let place = Workplace::new();
        edit_json(&place.copy_model().join(file), key, value);
        // Where sizes stop fitting each other, the message names the sizes and not the one key.
        let fits_badly = ["num_embeddings", "clip_embed_dim", "projection_dim", "max_position_embeddings"];
        let words: &[&str] = if fits_badly.contains(&key) { &["model"] } else { &["model", key] };
        assert_model_refused(&place, 2, words);
    }
    for file in [prior, text, scheduler, "model_index.json", "tokenizer/tokenizer_config.json"] {
        for content in [&b"{"[..], b"[]", b"\xff\xfe", b""] {
            let place = Workplace::new();
            fs::write(place.copy_model().join(file), content).unwrap();
            assert_model_refused(&place, 2, &["model", file.rsplit('/').next().unwrap()]);
        }
    }
}

#[test]
fn added_tokens_that_would_take_much_memory_are_refused() {
    let place = Workplace::new();
    let config = place.copy_model().join("tokenizer/tokenizer_config.json");
    let token = |len: usize| json!({"1000": {"content": "x".repeat(len)}});
    edit_json(&config, "added_tokens_decoder", token(50_000_000));
    // The file itself is in memory some times; its automaton would take gigabytes.
    let script = format!(
        "ulimit -v 6000000; exec {:?} -m model -p x --steps 2 --out e.npy --threads 1",
        env!("CARGO_BIN_EXE_prior-embed")
    );
    let mut command = assert_cmd::Command::new("bash");
    command.current_dir(place.folder.path()).args(["-c", &script]);
    assert_refused(&place, &mut command, 2, &["model/tokenizer", "added tokens", "1048576"]);
}

#[test]
fn unknown_keys_are_reported_and_ignored() {
    let place = Workplace::new();
    edit_json(&place.copy_model().join("prior/config.json"), "num_leyers", json!(3));
    let warning = assert_done(place.bare().args(["-m", "model", "-p", "x", "--steps", "2", "--out", "e.npy"]));
    assert!(warning.contains("num_leyers"), "{warning}");
}

const WEIGHTS: &str = "prior/diffusion_pytorch_model.safetensors";

/// Replaces the header of a safetensors file by `edit`ed JSON, and keeps the data.
fn edit_header(path: &Path, edit: impl Fn(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    edit(&mut header);
    let text = header.to_string();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    file.extend(&bytes[8 + header_len..]);
    fs::write(path, file).unwrap();
}

#[test]
fn broken_safetensors_are_refused() {
    let huge_header = |bytes: &[u8]| [&u64::MAX.to_le_bytes(), &bytes[8..]].concat();
    let long_header = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes(), &bytes[8..]].concat();
    type Break = (&'static str, Box<dyn Fn(&[u8]) -> Vec<u8>>);
    let breaks: [Break; 6] = [
        ("truncated data", Box::new(|bytes| bytes[..bytes.len() - 5].to_vec())),
        ("truncated header", Box::new(|bytes| bytes[..100].to_vec())),
        ("empty", Box::new(|_| Vec::new())),
        ("no safetensors", Box::new(|_| b"PK\x03\x04 this is a zip archive or so".to_vec())),
        ("header length past any size", Box::new(huge_header)),
        ("header longer than the file", Box::new(long_header)),
    ];
    for (_, break_file) in &breaks {
        let place = Workplace::new();
        let path = place.copy_model().join(WEIGHTS);
        fs::write(&path, break_file(&fs::read(&path).unwrap())).unwrap();
        assert_model_refused(&place, 2, &[WEIGHTS, "safetensors"]);
    }
    let overlap = |header: &mut Value| header["clip_std"]["data_offsets"] = header["clip_mean"]["data_offsets"].clone();
    let outside = |header: &mut Value| header["clip_std"]["data_offsets"] = json!([1_u64 << 40, (1_u64 << 40) + 4]);
    let backwards = |header: &mut Value| header["clip_std"]["data_offsets"] = json!([9, 3]);
    let wrong_size = |header: &mut Value| header["clip_std"]["shape"] = json!([1, 1_000_000]);
    let overflow = |header: &mut Value| header["clip_std"]["shape"] = json!([u64::MAX, u64::MAX]);
    let edits: [&dyn Fn(&mut Value); 5] = [&overlap, &outside, &backwards, &wrong_size, &overflow];
    for edit in edits {
        let place = Workplace::new();
        edit_header(&place.copy_model().join(WEIGHTS), edit);
        assert_model_refused(&place, 2, &[WEIGHTS, "safetensors"]);
    }
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let place = Workplace::new();
    edit_header(&place.copy_model().join(WEIGHTS), |header| {
        let tensors = header.as_object_mut().unwrap();
        let mean = tensors.remove("clip_mean").unwrap();
        tensors.insert("clip_moan".into(), mean);
        let bias = tensors.remove("proj_in.bias").unwrap();
        tensors.insert("proj_in.bios".into(), bias);
        let shape = &mut tensors["clip_std"]["shape"];
        *shape = json!([shape[1], shape[0]]);
        tensors["norm_out.bias"]["dtype"] = json!("I32");
    });
    let names = ["clip_mean", "clip_moan", "proj_in.bias", "proj_in.bios", "clip_std", "norm_out.bias", "I32"];
    assert_model_refused(&place, 2, &names);
}

/// Puts a NaN into the first place of a tensor.
fn poison(path: &Path, tensor: &str) {
    let mut bytes = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let at = 8 + header_len + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn weights_that_are_not_finite_are_found() {
    let place = Workplace::new();
    poison(&place.copy_model().join(WEIGHTS), "norm_out.weight");
    assert_model_refused(&place, 1, &["model", "NaN", "prior/norm_out.weight"]);

    let place = Workplace::new();
    let tensor = "vision_model.post_layernorm.weight";
    poison(&place.copy_model().join("image_encoder/model.safetensors"), tensor);
    let mut command = place.bare();
    command.args(["-m", "model", "-p", "x", "--steps", "2", "--out", "e.npz"]);
    assert_refused(&place, &mut command, 1, &["model", "black image", tensor]);
}

#[test]
fn shards_that_do_not_fit_their_index_are_refused() {
    let index = "prior/diffusion_pytorch_model.safetensors.index.json";
    let shard = |name: &str| json!({"weight_map": {"clip_mean": name}}).to_string();
    let cases = [
        ("{}".to_string(), "index"),
        (shard("missing.safetensors"), "missing.safetensors"),
        (shard("../../secret.safetensors"), "plain file name"),
        (shard("/etc/passwd"), "plain file name"),
        (shard(".."), "plain file name"),
        (json!({"weight_map": {"no_such": "all.safetensors"}}).to_string(), "no_such"),
    ];
    for (text, word) in cases {
        let place = Workplace::new();
        let model = place.copy_model();
        fs::rename(model.join(WEIGHTS), model.join("prior/all.safetensors")).unwrap();
        fs::write(model.join(index), text).unwrap();
        assert_model_refused(&place, 2, &["model", word]);
    }
}

#[test]
fn negative_embeddings_without_an_image_encoder_need_a_negative_prompt() {
    let place = Workplace::new();
    let model = place.copy_model();
    fs::remove_dir_all(model.join("image_encoder")).unwrap();
    let options = ["-m", "model", "-p", "x", "--steps", "2", "--out", "e.npy", "--negative-out", "n.npy"];
    assert_refused(&place, place.bare().args(options), 2, &["image encoder", "--negative-prompt"]);
    assert_done(place.bare().args(options).args(["-n", "blurry"]));
    assert_eq!(place.names(), ["e.npy", "model", "n.npy"]);
}
