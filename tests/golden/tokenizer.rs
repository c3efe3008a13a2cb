//! Token ids against transformers' `CLIPTokenizer`, over a hard list of texts and the forms a tokenizer is saved in.

use super::common::fixtures;
use crate::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

#[derive(Deserialize)]
struct Variant {
    pad_id: i64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    /// Without padding.
    ids: Vec<i64>,
    /// Ones in the attention mask.
    real: usize,
    removed: Option<String>,
}

const MAX_LENGTH: usize = 77;

fn golden() -> BTreeMap<String, Variant> {
    let text = std::fs::read_to_string(fixtures().join("tokenizer_golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to.join(from.file_name().unwrap())).unwrap();
}

/// CLIP's vocabulary with the configuration of a variant.
fn folder_of(variant: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let clip = fixtures().join("clip_tokenizer");
    copy(&clip.join("vocab.json"), folder.path());
    copy(&clip.join("merges.txt"), folder.path());
    let configuration = if variant == "clip" { clip } else { fixtures().join("tokenizer_variants").join(variant) };
    // git does not keep the empty folder of a variant without configuration.
    for entry in configuration.read_dir().into_iter().flatten() {
        let path = entry.unwrap().path();
        if !folder.path().join(path.file_name().unwrap()).exists() {
            copy(&path, folder.path());
        }
    }
    folder
}

fn check(name: &str, tokenizer: &Tokenizer, variant: &Variant) {
    for case in &variant.cases {
        let encoding = tokenizer.encode(&case.text).unwrap();
        let mut expected = case.ids.clone();
        expected.resize(MAX_LENGTH, variant.pad_id);
        assert_eq!(encoding.ids, expected, "{name}: {:?}", case.text);
        assert_eq!(encoding.len, case.real, "{name}: {:?}", case.text);
        assert_eq!(encoding.removed, case.removed, "{name}: {:?}", case.text);
    }
}

#[test]
fn every_variant_gives_the_ids_of_transformers() {
    let golden = golden();
    assert!(golden.len() >= 5);
    for (name, variant) in &golden {
        let folder = folder_of(name);
        let tokenizer = Tokenizer::open(folder.path(), MAX_LENGTH).unwrap();
        assert!(variant.cases.len() >= 150, "{name}: only {} texts", variant.cases.len());
        check(name, &tokenizer, variant);
    }
}

/// The files of `clip` as one `tokenizer.json`; `merge` gives the form of a merge.
fn tokenizer_json(merge: impl Fn(&str) -> Value) -> TempDir {
    let clip = fixtures().join("clip_tokenizer");
    let vocab: Value = serde_json::from_str(&std::fs::read_to_string(clip.join("vocab.json")).unwrap()).unwrap();
    let merges = std::fs::read_to_string(clip.join("merges.txt")).unwrap();
    let merges: Vec<Value> = merges.lines().skip(1).filter(|line| !line.is_empty()).map(merge).collect();
    let token = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let file = json!({
        "version": "1.0",
        "added_tokens": [token(49406, "<|startoftext|>"), token(49407, "<|endoftext|>")],
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"model_max_length": 77}"#).unwrap();
    folder
}

#[test]
fn tokenizer_json_gives_the_same_ids() {
    let golden = golden();
    let pair = |line: &str| json!(line.split(' ').collect::<Vec<_>>());
    for folder in [tokenizer_json(pair), tokenizer_json(|line| json!(line))] {
        let tokenizer = Tokenizer::open(folder.path(), 5).unwrap();
        // Both start from CLIP's tokens with the matching rules of no configuration.
        check("tokenizer.json", &tokenizer, &golden["no_config"]);
    }
}

#[test]
fn broken_tokenizers_are_refused() {
    let write = |files: &[(&str, &str)]| {
        let folder = TempDir::new().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    };
    let vocab = ("vocab.json", r#"{"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b": 3, "ab": 4}"#);
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[], "holds no tokenizer"),
        (&[vocab], "merges.txt"),
        (&[vocab, ("merges.txt", "a b c\n")], "on line 1"),
        (&[vocab, ("merges.txt", "a z\n")], "valid CLIP tokenizer"),
        (&[("vocab.json", "[1, 2]"), ("merges.txt", "")], "vocab.json"),
        (&[("vocab.json", r#"{"a": -1}"#), ("merges.txt", "")], "vocab.json"),
        (
            &[vocab, ("merges.txt", "a b\n"), ("tokenizer_config.json", r#"{"model_max_length": 1}"#)],
            "model_max_length",
        ),
        (&[vocab, ("merges.txt", "a b\n"), ("tokenizer_config.json", r#"{"padding_side": "left"}"#)], "padding_side"),
        (&[vocab, ("merges.txt", "a b\n"), ("tokenizer_config.json", r#"{"pad_token": 7}"#)], "pad_token"),
        (
            &[vocab, ("merges.txt", "a b\n"), ("tokenizer_config.json", r#"{"added_tokens_decoder": 7}"#)],
            "added_tokens_decoder",
        ),
        (&[("tokenizer.json", r#"{"model": {"vocab": {}, "merges": ["a"]}}"#)], "model.merges"),
        (&[("tokenizer.json", "{")], "tokenizer.json"),
    ];
    for (files, message) in cases {
        let folder = write(files);
        let error = Tokenizer::open(folder.path(), MAX_LENGTH).unwrap_err();
        assert!(error.is_bad_input(), "{files:?}: {error:?}");
        assert!(error.to_string().contains(message), "{files:?}: {error}");
    }
}
