//! Servers that make a client wait, and responses that never end.

use crate::common::{assert_done, assert_refused, send_signal, stderr, wait};
use crate::place::{Place, REPOSITORY, small_model};
use crate::server::{Fault, sha256};
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const ALWAYS: usize = usize::MAX;
const PRIOR: &str = "prior/diffusion_pytorch_model.safetensors";

/// The hub's response to too many requests.
fn rate_limited(seconds: u64) -> Fault {
    let policy = "\"fixed window\";\"api\";q=500;w=300";
    let limit = format!("\"api\";r=0;t={seconds}");
    Fault::Answer(429, vec![("ratelimit", limit), ("ratelimit-policy", policy.into()), ("retry-after", "0".into())])
}

#[test]
fn rate_limits_are_waited_for_and_reported() {
    let place = Place::new();
    for pattern in ["api/models", "HEAD", "GET /owner/kandinsky/resolve", "cdn GET"] {
        place.server.fail(pattern, 1, rate_limited(1));
    }
    let start = Instant::now();
    let lines = assert_done(&mut place.download(REPOSITORY));
    assert!(start.elapsed() >= Duration::from_secs(8), "four times 1 s, each with 1 s more");
    let told = lines.lines().filter(|line| {
        line.ends_with("has had too many requests from here (500 in 300 s are allowed); retrying in 2 s")
    });
    assert_eq!(told.count(), 4, "{lines}");
    place.embeds(&mut place.embed(REPOSITORY));
    // The limit in the headers is not the reason of the response.
    let place = Place::new();
    let other = Fault::Answer(503, vec![("ratelimit", "\"api\";r=0;t=3000".into()), ("retry-after", "0".into())]);
    place.server.fail("api/models", 1, other);
    let other = Fault::Answer(429, vec![("ratelimit", "\"api\";r=5;t=3000".into()), ("retry-after", "0".into())]);
    place.server.fail("api/models", 1, other);
    assert_done(&mut place.download(REPOSITORY));
}

#[test]
fn limits_that_last_longer_end_the_run_at_once() {
    let place = Place::new();
    place.server.fail("api/models", 1, rate_limited(3000));
    let start = Instant::now();
    assert_refused(&place.work, &mut place.download(REPOSITORY), 1, &["too many requests", "try again in 3000 s"]);
    assert!(start.elapsed() < Duration::from_secs(10));
    // Meanwhile the cache does: a run does not wait for what it can do without.
    place.embeds(&mut place.embed(REPOSITORY));
    fs::rename(place.snapshot(PRIOR), place.snapshot(&PRIOR.replace("model.", "model.fp16."))).unwrap();
    place.server.fail("api/models", 1, rate_limited(3000));
    let line = assert_done(&mut place.embed(REPOSITORY));
    assert!(line.contains("try again in 3000 s; using what is in the cache"), "{line}");
    place.server.fail("api/models", ALWAYS, rate_limited(100));
    let start = Instant::now();
    let line = assert_done(&mut place.embed(REPOSITORY));
    assert!(line.contains("try again in 100 s; using what is in the cache"), "{line}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn ctrl_c_ends_a_wait_at_once() {
    let place = Place::new();
    place.server.fail("HEAD", ALWAYS, rate_limited(200));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_prior-embed"));
    command.args(["-p", "a red apple", "--out", "e.npy", "--model", REPOSITORY]).current_dir(place.work.path(""));
    command.env("HF_HOME", place.work.path("hf")).env("HF_ENDPOINT", place.server.endpoint());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut screen = child.stderr.take().unwrap();
    while !said.contains("retrying in 201 s") {
        let mut byte = [0];
        assert_eq!(screen.read(&mut byte).unwrap(), 1, "{said}");
        said.push(char::from(byte[0]));
    }
    let start = Instant::now();
    send_signal(&child, "INT");
    let status = wait(child).status;
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(status.signal() == Some(2) || status.code() == Some(130), "{status}");
    assert_eq!(place.work.names(), ["hf"]);
}

#[test]
fn broken_connections_are_retried_as_long_as_in_python() {
    let place = Place::new();
    place.server.fail("api/models", ALWAYS, Fault::Cut(10));
    let start = Instant::now();
    let mut command = place.download(REPOSITORY);
    assert_refused(&place.work, command.arg("--quiet"), 1, &["127.0.0.1"]);
    assert!((20..60).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(place.server.requests("api/models").len(), 7);
}

#[test]
fn dripping_responses_time_out() {
    let drip = || Fault::Drip(Duration::from_millis(50));
    for pattern in ["api/models", "GET /owner/kandinsky/resolve"] {
        let place = Place::new();
        place.server.fail(pattern, ALWAYS, drip());
        let start = Instant::now();
        let mut command = place.download(REPOSITORY);
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1");
        assert_refused(&place.work, &mut command, 1, &["did not answer in full within 4 s", "HF_HUB_DOWNLOAD_TIMEOUT"]);
        assert!(start.elapsed() < Duration::from_secs(20), "{pattern}: {:?}", start.elapsed());
        assert_eq!(place.server.requests(pattern).len(), 1, "another attempt would take as long");
    }
}

#[test]
fn dripping_downloads_are_resumed_and_time_out() {
    let place = Place::new();
    place.server.fail("cdn GET", 1, Fault::Drip(Duration::from_millis(50)));
    assert_done(place.download(REPOSITORY).env("HF_HUB_DOWNLOAD_TIMEOUT", "1"));
    let ranges: Vec<_> =
        place.server.requests("cdn GET").iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges.len(), 1, "it resumes: {ranges:?}");

    let place = Place::new();
    place.server.fail("cdn GET", ALWAYS, Fault::Drip(Duration::from_millis(50)));
    let mut command = place.download(REPOSITORY);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").arg("--quiet");
    assert_refused(&place.work, &mut command, 1, &["less than 1 kB of text_encoder/model.safetensors a second"]);
    assert_eq!(place.server.requests("cdn GET").len(), 7);
    // The received part stays.
    assert_eq!(place.unfinished().len(), 1);
}

#[test]
fn a_lock_without_progress_is_given_up() {
    let place = Place::new();
    let locks = place.work.path("hf/hub/.locks/models--owner--kandinsky");
    fs::create_dir_all(&locks).unwrap();
    let etag = |path: &str| sha256(&small_model().files[path]);
    let held = fs::File::create(locks.join(format!("{}.lock", etag(PRIOR)))).unwrap();
    held.lock().unwrap();
    // A pipe in place of a lock is ignored.
    let pipe = locks.join(format!("{}.lock", etag("text_encoder/model.safetensors")));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let start = Instant::now();
    let output = place.download(REPOSITORY).env("HF_HUB_DOWNLOAD_TIMEOUT", "1").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("waiting for it") && stderr(&output).contains("makes no progress"));
    assert!((10..60).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    place.embeds(&mut place.embed(REPOSITORY));
}
