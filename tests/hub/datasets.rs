//! Prompts from data sets on the hub: `hf://datasets/owner/name[@revision]/path`.

use crate::common::{assert_done, assert_refused, model, stderr};
use crate::place::Place;
use crate::server::{COMMIT, Fault, Repository};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use assert_cmd::Command;
use parquet::arrow::ArrowWriter;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

const ALWAYS: usize = usize::MAX;
const SECRET: &str = "hf_aVerySecretToken";

/// The repository of most tests, as the server knows it, and the path of its root.
const NAME: &str = "datasets/owner/captions";
const ROOT: &str = "hf://datasets/owner/captions";

fn parquet(prompts: &[&str]) -> Vec<u8> {
    let column: ArrayRef = Arc::new(StringArray::from(prompts.to_vec()));
    let batch = RecordBatch::try_from_iter([("caption", column)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// Five files of rows, and others.
fn captions() -> Repository {
    let files = [
        ("README.md", b"a card".to_vec()),
        ("data/a.csv", b"caption\na1\na2\n".to_vec()),
        ("data/b.jsonl", b"{\"prompt\": \"b1\"}\n{\"prompt\": \"b2\"}\n".to_vec()),
        ("data/_b.txt", b"no row\n".to_vec()),
        ("data/train-00000-of-00002.parquet", parquet(&["p1"])),
        ("data/train-00001-of-00002.parquet", parquet(&["p2"])),
        ("data/x/c.txt", b"c1\n".to_vec()),
        ("images/1.png", b"no rows".to_vec()),
        ("odd [1].txt", b"odd\n".to_vec()),
    ];
    let files = files.into_iter().map(|(path, content)| (path.to_string(), content)).collect();
    Repository { files, commit: COMMIT.into(), token: None, is_gated: false }
}

/// With [`NAME`] on the server.
fn place() -> Place {
    let place = Place::new();
    place.server.put(NAME, captions());
    place
}

/// A run over prompts.
fn embed(place: &Place, prompts: &[&str]) -> Command {
    let mut command = place.command();
    command.arg("-m").arg(model()).args(["--steps", "2", "-f"]).args(prompts);
    command
}

/// Its prompts, and what it says.
fn rows(place: &Place, prompts: &[&str]) -> (String, String) {
    let output = embed(place, prompts).args(["-o", "-", "--format", "jsonl"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<Value> = output
        .stdout
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let prompts: Vec<&str> = lines.iter().map(|line| line["prompt"].as_str().unwrap()).collect();
    (prompts.join(" "), stderr(&output))
}

fn cache(place: &Place, path: &str) -> PathBuf {
    place.work.path("hf/hub/datasets--owner--captions").join(path)
}

fn refused(place: &Place, path: &str, code: i32, words: &[&str]) {
    let mut command = embed(place, &[path]);
    assert_refused(&place.work, command.args(["-o", "e.npy", "--quiet"]), code, words);
}

#[test]
fn files_folders_and_patterns_of_a_data_set_are_rows() {
    let place = place();
    fs::write(place.work.path("own.txt"), "own\n").unwrap();
    let file = format!("{ROOT}/data/a.csv");
    let (found, said) = rows(&place, &[&file]);
    assert_eq!(found, "a1 a2");
    assert!(said.contains("downloading datasets/owner/captions: 1 file, 14 B"), "{said}");
    assert_eq!(place.server.requests("/tree/").len(), 0, "a file is found without a list of all");
    let link = fs::read_link(cache(&place, &format!("snapshots/{COMMIT}/data/a.csv"))).unwrap();
    assert!(link.starts_with("../../../blobs"), "{link:?}");
    assert_eq!(fs::read_to_string(cache(&place, "refs/main")).unwrap(), COMMIT);
    for (path, expected) in [
        ("/data", "a1 a2 b1 b2 p1 p2 c1"),
        ("/data/", "a1 a2 b1 b2 p1 p2 c1"),
        ("", "a1 a2 b1 b2 p1 p2 c1 odd"),
        ("/data/train-*.parquet", "p1 p2"),
        ("/**/*.[ct][sx]*", "no row a1 a2 c1 odd"),
        ("@main/data/x", "c1"),
        ("@refs/pr/1/data/b.jsonl", "b1 b2"),
        ("/odd [1].txt", "odd"),
    ] {
        assert_eq!(rows(&place, &[&format!("{ROOT}{path}")]).0, expected, "{path}");
    }
    assert!(cache(&place, &format!("trees/{COMMIT}.json")).is_file());
    let mixed = [&format!("{ROOT}/data/x/c.txt"), "own.txt", &file, &file];
    assert_eq!(rows(&place, &mixed.map(|path: &str| path)).0, "c1 own a1 a2 a1 a2");
    // By now all is here, and a commit is asked for by nobody.
    place.server.reset();
    assert_eq!(rows(&place, &[&format!("{ROOT}/data"), &file]).1, "");
    let requests: Vec<String> = place.server.requests("").into_iter().map(|request| request.line).collect();
    assert_eq!(requests, ["GET /api/datasets/owner/captions/revision/main?expand=sha"], "once a run");
    place.server.reset();
    let at_commit = format!("{ROOT}@{COMMIT}");
    assert_eq!(rows(&place, &[&format!("{at_commit}/data/*.csv"), &format!("{at_commit}/data/x/c.txt")]).0, "a1 a2 c1");
    assert!(place.server.requests("").is_empty());
}

#[test]
fn lists_come_page_by_page() {
    let place = place();
    place.server.set_page_size(2);
    place.server.fail("cursor=4", 1, Fault::Answer(503, vec![("retry-after", "0".into())]));
    place.server.fail("cursor=6", 1, Fault::Cut(20));
    assert_eq!(rows(&place, &[&format!("{ROOT}/data")]).0, "a1 a2 b1 b2 p1 p2 c1");
    assert_eq!(place.server.requests("/tree/").len(), 6 + 2, "eleven entries, and two pages twice");
    // What leads in a circle or elsewhere ends.
    let fail = |link: &str, code: i32, words: &[&str]| {
        let _ = fs::remove_dir_all(cache(&place, ""));
        place.server.reset();
        place.server.fail("/tree/", ALWAYS, Fault::Header("link", link.into()));
        refused(&place, &format!("{ROOT}/data"), code, words);
    };
    fail("<file:///etc/passwd>; rel=\"next\"", 1, &["not safe"]);
    fail("</api/datasets/owner/captions/tree/x?cursor=0>; rel=\"next\"", 2, &["no revision"]);
    let circle = format!("</api/{NAME}/tree/{COMMIT}?cursor=0>; rel=\"next\"");
    fail(&circle, 1, &["the list of files of datasets/owner/captions", "does not end"]);
    assert_eq!(place.server.requests("/tree/").len(), 2);
    place.server.reset();
    place.server.fail("/tree/", ALWAYS, Fault::Body("{\"error\": \"busy\"}".into()));
    refused(&place, &format!("{ROOT}/data"), 1, &["no listing of datasets/owner/captions", "HF_ENDPOINT"]);
}

#[test]
fn messages_name_the_file_on_the_hub() {
    let place = place();
    let mut bad = captions();
    bad.files.insert("data/b.jsonl".into(), b"{\"prompt\": \"b1\"}\n{\"prompt\": 5}\n".to_vec());
    place.server.put(NAME, bad);
    refused(&place, &format!("{ROOT}@main/data"), 2, &[&format!("{ROOT}/data/b.jsonl:2: ")]);
    let mut command = embed(&place, &[&format!("{ROOT}/data"), "--prompt-column", "x", "-o", "e.npy", "-q"]);
    assert_refused(&place.work, &mut command, 2, &[&format!("{ROOT}/data/a.csv has no column \"x\"")]);
}

#[test]
fn what_is_not_there_is_one_clear_line() {
    let place = place();
    let paths = [
        ("hf://datasets/owner/none/a.csv", 2, &["no public repository datasets/owner/none", "HF_TOKEN"][..]),
        ("hf://datasets/owner/captions@v9/data", 2, &["datasets/owner/captions has no revision \"v9\"", "/branches"]),
        (
            "hf://datasets/owner/captions/none.csv",
            2,
            &["\"hf://datasets/owner/captions/none.csv\" holds no prompt files"],
        ),
        ("hf://datasets/owner/captions/images", 2, &["captions/images\" holds no prompt files (.txt, .jsonl"]),
        ("hf://datasets/owner/captions/*.xml", 2, &["captions/*.xml\" holds no prompt files"]),
        ("hf://datasets/owner/captions/README.md", 2, &["README.md\" ends in .md", "--format-in"]),
        ("hf://datasets/owner/captions/[", 2, &["\"[\" is not a valid pattern"]),
        ("hf://owner/captions/a.csv", 2, &["--prompts: \"hf://owner/captions/a.csv\"", "hf://datasets/owner/name"]),
    ];
    for (path, code, words) in paths {
        refused(&place, path, code, words);
    }
    let mut hostile = captions();
    hostile.files.insert("data/../../x.csv".into(), b"caption\nx\n".to_vec());
    place.server.put(NAME, Repository { commit: "3".repeat(40), ..hostile });
    refused(&place, &format!("{ROOT}/data"), 2, &["not safe to use"]);
    assert!(!cache(&place, "snapshots/x.csv").exists());
    assert_eq!(rows(&place, &[&format!("{ROOT}/data/a.csv")]).0, "a1 a2", "others can be used");
}

#[test]
fn tokens_and_gates_are_as_for_models() {
    let place = place();
    let private = |is_gated| Repository { token: Some(SECRET.into()), is_gated, ..captions() };
    place.server.put("datasets/owner/private", private(false));
    place.server.put("datasets/owner/gated", private(true));
    for (path, token, words) in [
        ("hf://datasets/owner/private/data", "", &["owner/private", "HF_TOKEN"][..]),
        ("hf://datasets/owner/private/data", "hf_other", &["does not accept the token"]),
        (
            "hf://datasets/owner/gated/data/a.csv",
            "",
            &["datasets/owner/gated is gated", "/datasets/owner/gated and set HF_TOKEN"],
        ),
        ("hf://datasets/owner/gated/data", "hf_other", &["is gated", "account of your token"]),
    ] {
        let mut command = embed(&place, &[path]);
        assert_refused(&place.work, command.args(["-o", "e.npy"]).env("HF_TOKEN", token), 2, words);
    }
    for name in ["private", "gated"] {
        let mut command = embed(&place, &[&format!("hf://datasets/owner/{name}/data")]);
        assert_done(command.args(["-o", "e.npy", "--overwrite"]).env("HF_TOKEN", SECRET));
    }
    assert!(!place.server.requests("cdn ").is_empty());
    assert!(place.server.requests("cdn ").iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn offline_the_cache_has_all_that_is_wanted_or_none() {
    let place = place();
    let offline = |path: &str| {
        let mut command = embed(&place, &[path]);
        command.args(["--offline", "-o", "e.npy", "--overwrite"]);
        command
    };
    let data = format!("{ROOT}/data");
    let file = format!("{ROOT}/data/a.csv");
    assert_refused(&place.work, &mut offline(&data), 2, &[&data, "not in the cache", "hf download owner/captions"]);
    rows(&place, &[&file]);
    // Others that the folder has may be missing.
    assert_done(&mut offline(&file));
    assert_refused(&place.work, &mut offline(&data), 2, &[&data, "not in the cache"]);
    rows(&place, &[&format!("{ROOT}/data/*.parquet")]);
    assert_refused(&place.work, &mut offline(&data), 2, &[&data, "not in the cache"]);
    rows(&place, &[&data]);
    place.server.reset();
    assert_done(&mut offline(&data));
    assert!(place.server.requests("").is_empty());
    // Where the hub cannot be reached, a warning says so.
    let unreachable = |path: &str| {
        let mut command = embed(&place, &[path]);
        command.args(["-o", "e.npy", "--overwrite"]).env("HF_ENDPOINT", "http://127.0.0.1:1");
        command
    };
    let warning = assert_done(&mut unreachable(&data));
    assert!(warning.contains("cannot reach 127.0.0.1:1") && warning.contains(COMMIT), "{warning}");
    assert_refused(&place.work, &mut unreachable(&format!("{ROOT}/odd*")), 1, &["cannot reach 127.0.0.1:1"]);
    // A file that was damaged is downloaded again, and is nothing to compute with until then.
    let blob = fs::canonicalize(cache(&place, &format!("snapshots/{COMMIT}/data/a.csv"))).unwrap();
    fs::write(&blob, "caption\n").unwrap();
    assert_refused(&place.work, &mut offline(&data), 2, &["not in the cache"]);
    assert_eq!(rows(&place, &[&data]).0, "a1 a2 b1 b2 p1 p2 c1");
}

#[test]
fn a_run_is_of_one_commit_which_is_part_of_its_identity() {
    let place = place();
    let path = format!("{ROOT}/data/a.csv");
    let resumed = |path: &str, out: &str, more: &[&str]| {
        let mut command = embed(&place, &[path, "own.txt"]);
        command.args(["--resume", "--batch-size", "1", "-o", out]).args(more);
        command
    };
    fs::write(place.work.path("own.txt"), "own\n").unwrap();
    assert_done(&mut resumed(&path, "e.npy", &["--provenance", "e.json"]));
    let provenance: Value = serde_json::from_slice(&fs::read(place.work.path("e.json")).unwrap()).unwrap();
    assert_eq!(provenance["prompts"]["datasets"], serde_json::json!({ROOT: COMMIT}));
    assert_done(&mut resumed(&path, "e.npy", &["--provenance", "e.json"]));
    for shard in ["1/2", "2/2"] {
        assert_done(&mut resumed(&path, &format!("{}.npy", &shard[..1]), &["--shard", shard]));
    }
    // The branch moves, and not even the rows change.
    let next = "2".repeat(40);
    place.server.put(NAME, Repository { commit: next.clone(), ..captions() });
    let words = [format!("the commit of {ROOT} was {COMMIT}, is {next}")];
    assert_refused(&place.work, &mut resumed(&path, "e.npy", &[]), 2, &[&words[0]]);
    assert_done(resumed(&path, "2.npy", &["--shard", "2/2"]).arg("--overwrite"));
    let mut merge = place.command();
    assert_refused(
        &place.work,
        merge.args(["merge", "1.npy", "2.npy", "-o", "all.npy"]),
        2,
        &[&format!("the commit of {ROOT}")],
    );
    // The old commit is still there by its name.
    assert_done(&mut resumed(&format!("{ROOT}@{COMMIT}/data/a.csv"), "e.npy", &[]));
    let mut moved = captions();
    moved.files.insert("data/a.csv".into(), b"caption\nnew\n".to_vec());
    place.server.put(NAME, Repository { commit: "4".repeat(40), ..moved });
    assert_eq!(rows(&place, &[&path]).0, "new");
    assert_eq!(rows(&place, &[&format!("{ROOT}@{next}/data/a.csv")]).0, "a1 a2");
}

#[test]
fn downloads_go_where_those_of_models_go() {
    let place = place();
    let mut command = embed(&place, &[&format!("{ROOT}/data/*.parquet")]);
    let said = assert_done(command.args(["--cache-dir", "elsewhere", "-o", "e.npy"]));
    assert!(!said.contains("no effect") && said.contains("2 files"), "{said}");
    let snapshot = format!("elsewhere/datasets--owner--captions/snapshots/{COMMIT}/data");
    assert_eq!(place.work.path(&snapshot).read_dir().unwrap().count(), 2);
}
