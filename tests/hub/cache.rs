//! The cache as other programs may have left it, and odd responses.

use crate::common::{assert_done, assert_refused};
use crate::place::{Place, REPOSITORY, small_model};
use crate::server::{COMMIT, Fault, is_large, sha256};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const ALWAYS: usize = usize::MAX;
const PRIOR: &str = "prior/diffusion_pytorch_model.safetensors";

/// Makes a folder read-only until it is dropped.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    fn new(folder: &'a Path) -> Self {
        change_mode("a-w", folder);
        Self(folder)
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        change_mode("u+w", self.0);
    }
}

fn change_mode(mode: &str, folder: &Path) {
    assert!(Command::new("chmod").args(["-R", mode]).arg(folder).status().unwrap().success());
}

#[test]
fn a_cache_that_can_only_be_read_is_used() {
    let place = Place::new();
    let expected = place.embeds(&mut place.embed(REPOSITORY));
    let hf = place.work.path("hf");
    fs::write(place.cache().join("refs/main"), "3".repeat(40)).unwrap();
    let read_only = ReadOnly::new(&hf);
    let run = |options: &[&str], endpoint: &str| {
        let mut command = place.command_without_rights();
        command.args(options).env("HF_ENDPOINT", endpoint);
        command
    };
    let up = place.server.endpoint();
    let down = "http://127.0.0.1:1";
    let embed = |out: &'static str| {
        let options = ["-p", "a red apple", "--steps", "3", "--overwrite", "--revision", COMMIT, "--model", REPOSITORY];
        [&options[..], &["--out", out]].concat()
    };
    // The cache has all that the run needs.
    place.server.reset();
    for endpoint in [&up, down] {
        assert_eq!(assert_done(&mut run(&embed("e.npy"), endpoint)), "", "{endpoint}");
        assert_eq!(crate::common::read_npy(&fs::read(place.work.path("e.npy")).unwrap()), expected);
    }
    assert!(place.server.requests("").is_empty());
    // It lacks the image encoder, which is welcome.
    for (endpoint, words) in [(up.as_str(), "cannot write to the cache"), (down, "cannot reach")] {
        let lines = assert_done(&mut run(&embed("e.npz"), endpoint));
        assert!(lines.contains(words) && lines.contains("using what is in the cache"), "{lines}");
        assert!(lines.contains("no negative embeddings"), "{lines}");
    }
    // It lacks the image encoder, which is needed.
    let needed = [&embed("e.npy")[..], &["--negative-out", "n.npy"]].concat();
    let mut command = run(&needed, &up);
    let output = command.arg("--quiet").output().unwrap();
    let line = crate::common::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.contains("cannot write to the cache") && line.contains("--cache-dir"), "{line}");
    // A download finds every file with the right hash, but cannot move the branch.
    for options in [&["download", REPOSITORY][..], &["download", REPOSITORY, "--force"]] {
        place.server.reset();
        let output = run(options, &up).output().unwrap();
        let lines = crate::common::stderr(&output);
        assert_eq!(output.status.code() == Some(0), options.len() == 2, "{lines}");
        assert!(lines.contains("cannot write to the cache"), "{lines}");
        assert!(place.server.requests("cdn").is_empty());
    }
    drop(read_only);
    fs::write(place.cache().join("refs/main"), COMMIT).unwrap();
    let _read_only = ReadOnly::new(&hf);
    for options in [&["download", REPOSITORY][..], &["download", REPOSITORY, "--force"], &["info", "-m", REPOSITORY]] {
        let lines = assert_done(&mut run(options, &up));
        assert!(!lines.contains("warning"), "{lines}");
    }
    assert!(place.unfinished().is_empty());
}

#[test]
fn blobs_are_called_what_python_calls_them() {
    // As huggingface_hub 2.4 names them; `N` is a number for each file.
    for (etag, name) in [
        ("\"CJ+@N==\"", "CJ+@N=="),
        ("W/\"N\"", "N"),
        ("WN", "N"),
        ("\"WN\"", "WN"),
        ("\".N a:b~$&;!#%2F*?<>|\"", ".N a:b~$&;!#%2F*?<>|"),
        ("\"\u{e9}N\"", "\u{e9}N"),
    ] {
        let place = Place::new();
        let files = small_model().files;
        let numbers = || files.keys().zip(10..);
        for (path, number) in numbers() {
            let header = if is_large(path) { "x-linked-etag" } else { "etag" };
            let value = etag.replace('N', &number.to_string());
            place.server.fail(
                &format!("HEAD /{REPOSITORY}/resolve/{COMMIT}/{path}"),
                ALWAYS,
                Fault::Header(header, value),
            );
        }
        assert_done(&mut place.download(REPOSITORY));
        for (path, number) in numbers().filter(|(path, _)| place.snapshot(path).exists()) {
            let blob = place.cache().join("blobs").join(name.replace('N', &number.to_string()));
            assert_eq!(place.snapshot(path).canonicalize().unwrap(), blob.canonicalize().unwrap(), "{etag}");
            assert!(fs::read(blob).unwrap() == files[path], "{etag}: {path}");
        }
        place.server.reset();
        place.embeds(&mut place.embed(REPOSITORY));
        assert!(place.server.requests("").is_empty(), "{etag}");
    }
    // Without a hash a download cannot be resumed, and the received part is removed.
    let place = Place::new();
    place.server.fail(
        &format!("HEAD /{REPOSITORY}/resolve/{COMMIT}/{PRIOR}"),
        ALWAYS,
        Fault::Header("x-linked-etag", "\"a+b\"".into()),
    );
    place.server.fail(&format!("cdn GET /{}", sha256(&small_model().files[PRIOR])), 1, Fault::Cut(1000));
    place.server.fail(&format!("cdn GET /{}", sha256(&small_model().files[PRIOR])), 1, Fault::Answer(403, Vec::new()));
    let mut command = place.download(REPOSITORY);
    assert_refused(&place.work, command.arg("--quiet"), 2, &[PRIOR]);
    assert!(place.unfinished().is_empty());
    for etag in ["\"../N\"", "\"a/N\"", "\"..\"", "\"/tmp/N\"", "\"\""] {
        let place = Place::new();
        place.server.fail("HEAD", ALWAYS, Fault::Header("etag", etag.into()));
        assert_refused(&place.work, &mut place.download(REPOSITORY), 1, &["no usable etag", "model_index.json"]);
    }
}

#[test]
fn answers_may_be_compressed() {
    let place = Place::new();
    place.server.fail("api/models", 1, Fault::Gzip);
    assert_done(&mut place.download(REPOSITORY));
    assert_eq!(place.server.requests("api/models")[0].headers["accept-encoding"], "gzip");
    // So may files, by servers that ignore the request; then HEAD has another length.
    let place = Place::new();
    place.server.fail("", ALWAYS, Fault::Gzip);
    assert_done(&mut place.download(REPOSITORY));
    for path in ["prior/config.json", PRIOR] {
        assert!(fs::read(place.snapshot(path)).unwrap() == small_model().files[path], "{path}");
    }
    // A part of a compressed file cannot be used.
    let place = Place::new();
    place.server.fail("cdn GET", 1, Fault::Cut(1000));
    place.server.fail("cdn GET", 1, Fault::Gzip);
    assert_done(&mut place.download(REPOSITORY));
    assert_eq!(place.server.requests("cdn GET")[1].headers["range"], "bytes=1000-");
    place.embeds(&mut place.embed(REPOSITORY));
    // A bomb does no harm.
    let place = Place::new();
    place.server.fail("api/models", ALWAYS, Fault::Body(" ".repeat(65 << 20)));
    assert_refused(&place.work, &mut place.download(REPOSITORY), 1, &["more than the hub ever says"]);
}

#[test]
fn names_that_other_systems_forbid_are_skipped() {
    let place = Place::new();
    let mut repository = small_model();
    repository.files.insert("logs/2023-01-01_12:30:11/events".into(), b"x".to_vec());
    repository.files.insert("notes\n.txt".into(), b"x".to_vec());
    place.server.put(REPOSITORY, repository);
    assert_done(&mut place.download(REPOSITORY));
}

#[test]
fn links_in_the_cache_lead_no_download_elsewhere() {
    let place = Place::new();
    let precious = place.work.path("precious");
    fs::create_dir_all(precious.join("prior")).unwrap();
    for name in ["weights", "prior/config.json"] {
        fs::write(precious.join(name), "mine").unwrap();
    }
    // A link in place of an unfinished download.
    let blobs = place.cache().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let etag = sha256(&small_model().files[PRIOR]);
    symlink(precious.join("weights"), blobs.join(format!("{etag}.01234567.incomplete"))).unwrap();
    assert_done(&mut place.download(REPOSITORY));
    assert!(fs::read(place.snapshot(PRIOR)).unwrap() == small_model().files[PRIOR]);
    // In place of a blob, which replaces the link.
    fs::remove_file(blobs.join(&etag)).unwrap();
    symlink(precious.join("weights"), blobs.join(&etag)).unwrap();
    assert_done(&mut place.download(REPOSITORY));
    assert!(!blobs.join(&etag).is_symlink());
    // In place of a folder of a snapshot.
    fs::remove_dir_all(place.snapshot("prior")).unwrap();
    symlink(precious.join("prior"), place.snapshot("prior")).unwrap();
    let mut command = place.download(REPOSITORY);
    assert_refused(&place.work, command.arg("--quiet"), 1, &["prior", "is a link to elsewhere"]);
    for name in ["weights", "prior/config.json"] {
        assert_eq!(fs::read_to_string(precious.join(name)).unwrap(), "mine", "{name}");
    }
    assert_eq!(precious.join("prior").read_dir().unwrap().count(), 1);
    // A pipe in place of a reference is ignored.
    fs::remove_file(place.snapshot("prior")).unwrap();
    fs::remove_file(place.cache().join("refs/main")).unwrap();
    assert!(Command::new("mkfifo").arg(place.cache().join("refs/main")).status().unwrap().success());
    place.embeds(&mut place.embed(REPOSITORY));
    assert_eq!(fs::metadata(place.cache().join("refs/main")).unwrap().permissions().mode() & 0o170_000, 0o100_000);
}
