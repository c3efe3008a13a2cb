//! Failures: one line that says what to do, the right exit code, and a cache without wrong files.

use crate::common::{assert_done, assert_refused, stderr};
use crate::place::{Place, REPOSITORY, small_model};
use crate::server::{COMMIT, Fault, Repository, git_hash, sha256};
use std::fs;

const ALWAYS: usize = usize::MAX;
const SECRET: &str = "hf_aVerySecretToken";

/// A repository that only the token may access.
fn private(is_gated: bool) -> Repository {
    Repository { token: Some(SECRET.into()), is_gated, ..small_model() }
}

#[test]
fn names_and_tokens_that_are_wrong() {
    let place = Place::new();
    place.server.put("owner/private", private(false));
    place.server.put("owner/gated", private(true));
    let refused = |model: &str, token: &str, words: &[&str]| {
        let mut command = place.embed(model);
        assert_refused(&place.work, command.env("HF_TOKEN", token), 2, words);
    };
    refused("owner/none", "", &["no public repository owner/none", "no such folder", "HF_TOKEN"]);
    refused("owner/private", "", &["owner/private", "HF_TOKEN"]);
    refused("owner/private", "hf_other", &["does not accept the token", "HF_TOKEN"]);
    refused("owner/gated", "", &["owner/gated is gated", "accept its licence at http", "HF_TOKEN"]);
    refused("owner/gated", "hf_other", &["owner/gated is gated", "account of your token"]);
    refused(&format!("{REPOSITORY}@v9"), "", &["owner/kandinsky has no revision \"v9\""]);
    refused("karlo@v9", "", &["kakaobrain/karlo-v1-alpha"]);
    refused("models/of/mine", "", &["neither a folder", "owner/name[@revision]"]);
    refused(&format!("{REPOSITORY}@../x"), "", &["cannot be a revision"]);
    refused(REPOSITORY, "two words", &["HF_TOKEN holds no token"]);
    let mut command = place.embed("emoji");
    assert_refused(&place.work, command.args(["--revision", "main"]), 2, &["--revision"]);
}

#[test]
fn the_token_goes_to_the_hub_alone_and_is_never_shown() {
    let place = Place::new();
    place.server.put("owner/private", private(false));
    let output = place.embed("owner/private").arg("-v").env("HF_TOKEN", SECRET).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains(SECRET));
    let authorized = |pattern: &str| {
        let requests = place.server.requests(pattern);
        let with = requests.iter().filter(|request| request.headers.contains_key("authorization")).count();
        (with, requests.len())
    };
    let (with, all) = authorized("/owner/private/");
    assert!(with == all && all > 0, "{with} of {all}");
    let (with, all) = authorized("cdn ");
    assert!(with == 0 && all > 0, "{with} of {all}");

    // A token from the file of a login, and a redirect to a mirror.
    let other = Place::new();
    fs::create_dir(place.work.path("login")).unwrap();
    fs::write(place.work.path("login/token"), format!("{SECRET}\n")).unwrap();
    let location = vec![("location", format!("{}/api/models/{REPOSITORY}/revision/main", other.server.endpoint()))];
    place.server.fail("api/models", 1, Fault::Answer(307, location));
    place.server.put(REPOSITORY, private(false));
    assert_done(place.download(REPOSITORY).env("HF_HOME", place.work.path("login")));
    assert_eq!(other.server.requests("api/models").len(), 1);
    assert!(!other.server.requests("api/models")[0].headers.contains_key("authorization"));
    assert_eq!(
        place.server.requests("api/models").last().unwrap().headers["authorization"],
        format!("Bearer {SECRET}")
    );
}

#[test]
fn the_hub_is_unreachable() {
    let place = Place::new();
    let refused = |name: &str, value: &str, code: i32, words: &[&str]| {
        assert_refused(&place.work, place.embed(REPOSITORY).env(name, value), code, words);
    };
    refused("HF_ENDPOINT", "http://127.0.0.1:1", 1, &["cannot reach 127.0.0.1:1", "check the network"]);
    refused("HF_ENDPOINT", "http://hub.invalid", 1, &["cannot reach hub.invalid"]);
    refused("HF_ENDPOINT", "hub", 2, &["HF_ENDPOINT"]);
    refused("HF_HUB_DOWNLOAD_TIMEOUT", "soon", 2, &["HF_HUB_DOWNLOAD_TIMEOUT"]);
    refused("HF_HUB_OFFLINE", "1", 2, &["not in the cache", "prior-embed download owner/kandinsky"]);
    refused("SSL_CERT_FILE", "none.pem", 2, &["none.pem", "SSL_CERT_FILE"]);
    let https = place.server.endpoint().replace("http:", "https:");
    refused("HF_ENDPOINT", &https, 1, &["no safe connection to 127.0.0.1", "SSL_CERT_FILE"]);
    assert_refused(&place.work, place.embed("karlo").arg("--offline"), 2, &["kakaobrain/karlo-v1-alpha", "--offline"]);
    place.server.reset();
    assert_refused(&place.work, place.embed(REPOSITORY).arg("--offline"), 2, &["not in the cache"]);
    assert!(place.server.requests("").is_empty());
}

#[test]
fn a_proxy_that_wants_a_login() {
    let place = Place::new();
    let proxy = Place::new();
    proxy.server.fail("", ALWAYS, Fault::Answer(407, Vec::new()));
    let mut command = place.embed(REPOSITORY);
    command.env("HF_ENDPOINT", "http://hub.invalid").env("http_proxy", proxy.server.endpoint());
    assert_refused(&place.work, &mut command, 1, &["proxy", "407", "HTTPS_PROXY"]);
    let mut command = place.embed(REPOSITORY);
    command.env("http_proxy", "nonsense://x:y:z");
    assert_refused(&place.work, &mut command, 2, &["http_proxy is not the address of a proxy"]);
}

#[test]
fn servers_that_fail() {
    let place = Place::new();
    let now = vec![("retry-after", "0".to_string())];
    let refused = |pattern: &str, fault: Fault, code: i32, words: &[&str]| {
        place.server.reset();
        place.server.fail(pattern, ALWAYS, fault);
        let mut command = place.download(REPOSITORY);
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").arg("--quiet");
        assert_refused(&place.work, &mut command, code, words);
        assert!(place.server.requests("").len() < 60, "endless requests");
    };
    refused("api/models", Fault::Answer(429, now.clone()), 1, &["too many requests"]);
    refused("api/models", Fault::Answer(429, vec![("retry-after", "900".into())]), 1, &["900 s"]);
    refused("api/models", Fault::Answer(502, now.clone()), 1, &["in trouble", "502"]);
    refused("api/models", Fault::Body("<html>log in</html>".into()), 1, &["no listing", "HF_ENDPOINT"]);
    let many = Fault::Header("x-many", "y".repeat(200_000));
    refused("api/models", many, 1, &["more than the hub ever says"]);
    // A length that is too large is not allocated.
    place.server.reset();
    place.server.fail("cdn GET", 2, Fault::Header("content-length", u64::MAX.to_string()));
    assert_done(place.download(REPOSITORY).args(["--cache-dir"]).arg(place.work.path("hf/huge")));
    let circle = format!("/api/models/{REPOSITORY}/revision/main");
    refused("api/models", Fault::Answer(307, vec![("location", circle)]), 1, &["in circles"]);
    refused("api/models", Fault::Answer(302, vec![("location", "file:///etc/passwd".into())]), 1, &["redirects"]);
    refused("HEAD", Fault::Answer(404, Vec::new()), 2, &["does not have", COMMIT]);
    refused("HEAD", Fault::Header("x-repo-commit", "5".repeat(40)), 1, &["gives commit", "5555"]);
    refused("HEAD", Fault::Answer(200, Vec::new()), 1, &["no commit", "HF_ENDPOINT"]);
    refused("cdn GET", Fault::Answer(500, now), 1, &["in trouble", "500"]);
    refused("cdn GET", Fault::Answer(416, Vec::new()), 1, &["has no byte"]);
    refused("cdn GET", Fault::Corrupt, 1, &["is not", "the content"]);
    let html = Fault::Body("<html>log in</html>".into());
    refused("cdn GET", html, 1, &["text_encoder/model.safetensors", "(19 bytes) is not the content"]);
    for entry in place.cache().join("blobs").read_dir().unwrap().flatten() {
        let (name, content) = (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        assert!(!content.is_empty(), "nothing goes on from {name}");
        assert!(name.ends_with("incomplete") || [sha256(&content), git_hash(&content)].contains(&name), "{name}");
    }
    // The cache has nothing wrong in it.
    place.server.reset();
    place.embeds(&mut place.embed(REPOSITORY));
}

#[test]
fn listings_and_files_that_are_not_safe() {
    let place = Place::new();
    for name in ["../../.bashrc", "/etc/cron.d/x", "prior/../../x", "a\\b"] {
        let mut repository = small_model();
        repository.files.insert(name.into(), b"x".to_vec());
        place.server.put("owner/hostile", repository);
        assert_refused(&place.work, &mut place.embed("owner/hostile"), 2, &["not safe"]);
    }
    place.server.fail("HEAD", ALWAYS, Fault::Header("content-length", (100 << 20).to_string()));
    assert_refused(&place.work, &mut place.download(REPOSITORY), 2, &["model_index.json", "bytes"]);
    place.server.reset();
    place.server.fail("HEAD", ALWAYS, Fault::Header("etag", "\"../../x\"".into()));
    assert_refused(&place.work, &mut place.download(REPOSITORY), 1, &["no usable etag"]);
    place.server.reset();
    place.server.fail("prior/diffusion", ALWAYS, Fault::Header("x-linked-size", "1000000000000000".into()));
    assert_refused(&place.work, &mut place.download(REPOSITORY), 1, &["disk", "GB more", "--cache-dir"]);
}

#[test]
fn repositories_without_a_prior() {
    let place = Place::new();
    let mut decoder = small_model();
    decoder.files.retain(|path, _| path.starts_with("unet") || path.starts_with("movq"));
    place.server.put("owner/decoder", decoder);
    assert_refused(&place.work, &mut place.embed("owner/decoder"), 2, &["has no prior", "kandinsky-2.2"]);
    let mut other = small_model();
    let index = String::from_utf8(other.files["model_index.json"].clone()).unwrap();
    other.files.insert("model_index.json".into(), index.replace("PriorTransformer", "OtherPrior").into_bytes());
    place.server.put("owner/other", other);
    assert_refused(&place.work, &mut place.embed("owner/other"), 2, &["prior is a OtherPrior"]);
    assert!(place.server.requests("cdn").is_empty(), "weights that cannot be used are not downloaded");
}

#[test]
fn a_cache_that_cannot_be_written_to() {
    let place = Place::new();
    fs::remove_dir(place.work.path("hf")).unwrap();
    fs::write(place.work.path("hf"), "a file").unwrap();
    assert_refused(&place.work, &mut place.embed(REPOSITORY), 1, &["cannot write to the cache", "--cache-dir"]);
}
