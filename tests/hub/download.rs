//! What is downloaded, kept, and not downloaded again.

use crate::common::{assert_done, assert_refused, model, picture, stderr};
use crate::place::{Place, REPOSITORY, fixture, small_model};
use crate::server::{COMMIT, Fault, Repository, is_large};
use half::f16;
use ndarray::Array2;
use ndarray_npy::write_npy;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::fs;
use std::process::Stdio;

const PRIOR: &str = "prior/diffusion_pytorch_model.safetensors";

#[test]
fn a_model_by_name_gives_what_its_folder_gives_and_then_needs_no_network() {
    let place = Place::new();
    let expected = place.embeds(&mut place.embed(model().to_str().unwrap()));
    assert!(place.server.requests("").is_empty(), "a folder needs no hub");
    assert_eq!(place.embeds(&mut place.embed(REPOSITORY)), expected);
    for not_needed in ["unet", "movq", "README", "image_encoder"] {
        assert!(place.server.requests(&format!("/resolve/{COMMIT}/{not_needed}")).is_empty(), "{not_needed}");
    }
    place.server.reset();
    assert_eq!(place.embeds(&mut place.embed(REPOSITORY)), expected);
    assert_eq!(place.embeds(place.embed(REPOSITORY).arg("--offline")), expected);
    assert_eq!(place.embeds(place.embed(REPOSITORY).env("HF_HUB_OFFLINE", "1")), expected);
    assert!(place.server.requests("").is_empty(), "all of it was in the cache");
    assert_eq!(fs::read_to_string(place.cache().join("refs/main")).unwrap(), COMMIT);
    assert!(place.snapshot(PRIOR).is_symlink());
    assert!(place.unfinished().is_empty());
}

#[test]
fn the_image_encoder_comes_when_it_is_needed() {
    let place = Place::new();
    place.embeds(&mut place.embed(REPOSITORY));
    assert_done(place.embed(REPOSITORY).args(["-n", "blurry", "--negative-out", "n.npy"]));
    assert!(!place.snapshot("image_encoder").exists());
    assert_done(place.embed(REPOSITORY).args(["--negative-out", "n.npy"]));
    assert!(place.snapshot("image_encoder/model.safetensors").exists());
    // That a model has none is requested once.
    place.server.put("owner/without", Repository::of_folder(&fixture("no_image_encoder")));
    let mut command = place.embed("owner/without");
    command.args(["--negative-out", "n2.npy"]);
    assert_refused(&place.work, command.arg("--quiet"), 2, &["no image encoder"]);
    place.server.reset();
    assert_refused(&place.work, &mut command, 2, &["no image encoder"]);
    assert!(place.server.requests("").is_empty());
}

/// What encodes pictures comes with whatever command takes them, and no more than that.
#[test]
fn pictures_bring_the_image_encoder_and_the_image_processor() {
    let picture = picture("rgb.png");
    let picture = picture.to_str().unwrap();
    let item = format!("@{picture}");
    for (arguments, needs_prior) in [
        (&["interpolate", &item, "--out", "e.npy"][..], true),
        (&["-p", "a cat", "--image", picture, "--strength", "0.5", "--steps", "3", "--out", "e.npy"], true),
        (&["encode-image", picture, "--out", "e.npy"], false),
        (&["score", "rows.npy", "--image", picture], false),
    ] {
        let place = Place::new();
        write_npy(place.work.path("rows.npy"), &Array2::<f32>::ones((1, 16))).unwrap();
        assert_done(place.command().args(arguments).args(["--model", REPOSITORY]));
        assert!(place.snapshot("image_encoder/model.safetensors").exists(), "{arguments:?}");
        assert_eq!(place.snapshot(PRIOR).exists(), needs_prior, "{arguments:?}");
        let is_text = arguments.contains(&"-p");
        assert_eq!(place.snapshot("text_encoder/model.safetensors").exists(), is_text, "{arguments:?}");
    }
}

#[test]
fn the_text_encoder_comes_when_there_are_texts() {
    let place = Place::new();
    let conditions = fixture("../given/conditions.safetensors");
    let embed = |options: &[&str]| {
        let mut command = place.command();
        command.args(["--model", REPOSITORY, "--steps", "2", "--overwrite", "--out", "e.npy", "--conditions"]);
        assert_done(command.arg(&conditions).args(options))
    };
    embed(&[]);
    assert!(place.snapshot("text_encoder/config.json").exists());
    assert!(!place.snapshot("text_encoder/model.safetensors").exists());
    embed(&["--offline"]);
    place.embeds(&mut place.embed(REPOSITORY));
    assert!(place.snapshot("text_encoder/model.safetensors").exists());
}

#[test]
fn every_layout_is_understood() {
    let place = Place::new();
    for name in ["unclip_layout", "stable_unclip_layout", "bare_folder", "kandinsky22_sharded_bf16", "fp16_variant"] {
        let folder = fixture(name);
        let repository = format!("owner/{name}");
        place.server.put(&repository, Repository::of_folder(&folder));
        let expected = place.embeds(&mut place.embed(folder.to_str().unwrap()));
        assert_eq!(place.embeds(&mut place.embed(&repository)), expected, "{name}");
        place.server.reset();
        assert_eq!(place.embeds(&mut place.embed(&repository)), expected, "{name}");
        assert!(place.server.requests("").is_empty(), "{name} is asked for again");
    }
}

/// Whether a file has weights that every run reads.
fn is_wanted(path: &str) -> bool {
    is_large(path) && ["prior/", "text_encoder/"].iter().any(|part| path.starts_with(part))
}

/// The same weights in float16.
fn in_sixteen_bits(weights: &[u8]) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(weights).unwrap();
    let halves: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .filter(|(_, tensor)| tensor.dtype() == Dtype::F32)
        .map(|(name, tensor)| {
            let numbers = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            let bytes = numbers.flat_map(|number| f16::from_f32(number).to_le_bytes()).collect();
            (name.to_string(), tensor.shape().to_vec(), bytes)
        })
        .collect();
    let views =
        halves.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
    serialize(views, None).unwrap()
}

#[test]
fn sixteen_bits_are_taken_where_they_are_enough() {
    let place = Place::new();
    let mut repository = small_model();
    for (path, content) in small_model().files.iter().filter(|(path, _)| is_wanted(path)) {
        repository.files.insert(path.replace(".safetensors", ".fp16.safetensors"), in_sixteen_bits(content));
    }
    place.server.put(REPOSITORY, repository);
    let weights =
        |pattern: &str| place.server.requests(&format!("GET /{REPOSITORY}/resolve/{COMMIT}/prior/{pattern}")).len();
    assert_done(place.download(REPOSITORY).args(["--dtype", "int8"]));
    assert_eq!((weights("diffusion_pytorch_model.fp16"), weights("diffusion_pytorch_model.safetensors")), (1, 0));
    place.server.reset();
    place.embeds(place.embed(REPOSITORY).args(["--dtype", "int8"]));
    assert!(place.server.requests("").is_empty());
    // A run in float32 downloads the exact weights.
    place.embeds(&mut place.embed(REPOSITORY));
    assert_eq!((weights("diffusion_pytorch_model.fp16"), weights("diffusion_pytorch_model.safetensors")), (0, 1));
}

#[test]
fn a_branch_moves_when_it_is_downloaded_again() {
    let place = Place::new();
    assert_done(&mut place.download(REPOSITORY));
    let mut newer = small_model();
    newer.commit = "2".repeat(40);
    newer.files.insert("scheduler/scheduler_config.json".into(), b"{\"prediction_type\": \"sample\"}".to_vec());
    place.server.put(REPOSITORY, newer);
    place.server.reset();
    place.embeds(&mut place.embed(REPOSITORY));
    assert!(place.server.requests("").is_empty(), "what is in the cache does");
    assert_done(&mut place.download(REPOSITORY));
    assert_eq!(fs::read_to_string(place.cache().join("refs/main")).unwrap(), "2".repeat(40));
    assert_eq!(place.server.requests("GET /owner/kandinsky/resolve").len(), 1, "the rest was there already");
    assert!(place.snapshot(PRIOR).exists(), "the older commit stays");
    place.server.reset();
    place.embeds(place.embed(REPOSITORY).args(["--revision", COMMIT]));
    assert!(place.server.requests("").is_empty());
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let place = Place::new();
    for revision in ["refs/pr/1", COMMIT] {
        place.embeds(&mut place.embed(&format!("{REPOSITORY}@{revision}")));
        place.embeds(place.embed(REPOSITORY).args(["--revision", revision, "--offline"]));
    }
    assert!(place.cache().join("refs/refs/pr/1").is_file());
    assert!(!place.cache().join("refs/main").exists());
    place.server.fail("api/models", 1, Fault::Body(format!("{{\"sha\": \"{}\", \"siblings\": []}}", "3".repeat(40))));
    let other = "4".repeat(40);
    let mut command = place.download(&format!("{REPOSITORY}@{other}"));
    assert_refused(&place.work, &mut command, 1, &["gives commit", "HF_ENDPOINT"]);
}

#[test]
fn broken_downloads_resume() {
    let place = Place::new();
    place.server.fail("cdn GET", 1, Fault::Cut(1000));
    assert_done(&mut place.download(REPOSITORY));
    let ranges: Vec<_> = place
        .server
        .requests("cdn GET")
        .into_iter()
        .filter_map(|request| request.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, ["bytes=1000-"]);

    // The same in another process: the first attempt is cut off, the second one is refused for good.
    let place = Place::new();
    place.server.fail("cdn GET", 1, Fault::Cut(2000));
    place.server.fail("cdn GET", 1, Fault::Answer(403, Vec::new()));
    let mut command = place.download(REPOSITORY);
    assert_refused(&place.work, command.arg("--quiet"), 2, &["text_encoder/model.safetensors"]);
    assert_eq!(place.unfinished().len(), 1);
    place.server.reset();
    assert_done(&mut place.download(REPOSITORY));
    assert_eq!(place.server.requests("cdn GET")[0].headers["range"], "bytes=2000-");
    assert!(place.unfinished().is_empty());
    place.embeds(&mut place.embed(REPOSITORY));
}

#[test]
fn servers_without_ranges_start_anew() {
    for fault in [Fault::IgnoreRange, Fault::Answer(416, Vec::new())] {
        let place = Place::new();
        let blobs = place.cache().join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        let prior = &small_model().files[PRIOR];
        let etag = crate::server::sha256(prior);
        fs::write(blobs.join(format!("{etag}.01234567.incomplete")), &prior[..500]).unwrap();
        place.server.fail(&format!("cdn GET /{etag}"), 1, fault);
        assert_done(&mut place.download(REPOSITORY));
        let requests = place.server.requests(&format!("cdn GET /{etag}"));
        assert_eq!(requests[0].headers["range"], "bytes=500-");
        assert_eq!(&fs::read(place.snapshot(PRIOR)).unwrap(), prior);
        assert!(place.unfinished().is_empty());
    }
}

#[test]
fn hubs_may_keep_large_files_themselves() {
    let place = Place::new();
    place.server.fail("/resolve/", usize::MAX, Fault::OwnStore);
    assert_done(&mut place.download(REPOSITORY));
    assert!(place.server.requests("cdn").is_empty() && !place.server.requests("GET /store/").is_empty());
    assert_eq!(fs::read(place.snapshot(PRIOR)).unwrap(), small_model().files[PRIOR]);
}

#[test]
fn the_rest_of_another_content_is_not_trusted() {
    let place = Place::new();
    let blobs = place.cache().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let prior = &small_model().files[PRIOR];
    let etag = crate::server::sha256(prior);
    fs::write(blobs.join(format!("{etag}.incomplete")), vec![7; 500]).unwrap();
    assert_done(&mut place.download(REPOSITORY));
    assert_eq!(&fs::read(place.snapshot(PRIOR)).unwrap(), prior);
}

#[test]
fn two_processes_share_the_work() {
    let place = Place::new();
    // Slow enough for both to want the same file.
    place.server.fail("cdn GET", 1, Fault::Stall(1000));
    let start = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_prior-embed"));
        command.args(["download", REPOSITORY]).env("HF_HOME", place.work.path("hf"));
        command.env("HF_ENDPOINT", place.server.endpoint()).env("HF_HUB_DOWNLOAD_TIMEOUT", "2");
        command.env_remove("HF_HUB_OFFLINE").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let runs = [start(), start()];
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let weights = small_model().files.keys().filter(|path| is_wanted(path)).count();
    assert_eq!(place.server.requests("cdn GET").len(), weights + 1, "each file once, and once more for the stall");
    assert!(place.unfinished().is_empty());
    place.embeds(&mut place.embed(REPOSITORY));
}

#[test]
fn busy_and_stalling_servers_are_waited_for() {
    let place = Place::new();
    let soon = vec![("retry-after", "0".to_string())];
    place.server.fail("api/models", 2, Fault::Answer(429, soon.clone()));
    place.server.fail("HEAD", 3, Fault::Answer(503, soon.clone()));
    place.server.fail("cdn GET", 2, Fault::Answer(500, soon));
    place.server.fail("GET /owner/kandinsky/resolve", 1, Fault::Stall(10));
    place.embeds(place.embed(REPOSITORY).env("HF_HUB_DOWNLOAD_TIMEOUT", "1"));
}

#[test]
fn an_unreachable_hub_leaves_the_cache() {
    let place = Place::new();
    let expected = place.embeds(&mut place.embed(REPOSITORY));
    // As in a cache of Python's, which does not note absent files: that matters little.
    fs::remove_dir_all(place.cache().join(".no_exist")).unwrap();
    place.server.reset();
    place.embeds(&mut place.embed(REPOSITORY));
    assert!(place.server.requests("").is_empty(), "all that matters is here");
    // More exact weights matter; without the hub, the cached ones do.
    let exact = place.snapshot(PRIOR);
    fs::rename(&exact, place.snapshot("prior/diffusion_pytorch_model.fp16.safetensors")).unwrap();
    let line = assert_done(place.embed(REPOSITORY).env("HF_ENDPOINT", "http://127.0.0.1:1"));
    assert!(line.contains("cannot reach 127.0.0.1:1") && line.contains("in the cache"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_eq!(place.embeds(place.embed(REPOSITORY).arg("--offline")), expected);
    // The same if the hub refuses, or cannot be asked at all.
    let api = "api/models";
    for (fault, words) in [
        (Fault::Answer(401, Vec::new()), "no public repository"),
        (Fault::Answer(403, Vec::new()), "forbids access"),
        (Fault::Answer(404, vec![("x-error-code", "RepoNotFound".into())]), "no repository"),
        (Fault::Answer(404, vec![("x-error-code", "RevisionNotFound".into())]), "no revision"),
        (Fault::Body("<html>log in</html>".into()), "no listing"),
    ] {
        place.server.reset();
        place.server.fail(api, 1, fault.clone());
        let line = assert_done(&mut place.embed(REPOSITORY));
        assert!(line.contains(words) && line.contains("using what is in the cache"), "{line}");
        place.server.fail(api, 1, fault);
        assert_eq!(place.download(REPOSITORY).output().unwrap().status.code().map(|code| code > 0), Some(true));
    }
    for (name, value) in [("HF_TOKEN", "two words"), ("http_proxy", "nonsense://x:y:z"), ("SSL_CERT_FILE", "none.pem")]
    {
        let line = assert_done(place.embed(REPOSITORY).env(name, value));
        assert!(line.contains(name) && line.contains("using what is in the cache"), "{line}");
    }
    place.server.reset();
    assert_eq!(place.embeds(&mut place.embed(REPOSITORY)), expected);
    assert_eq!(place.server.requests("GET /owner/kandinsky/resolve").len(), 0, "the content is here");
    assert!(exact.exists());
}

#[test]
fn a_plain_run_never_moves_a_branch() {
    let place = Place::new();
    assert_done(place.command().args(["info", "-m", REPOSITORY]));
    let mut newer = small_model();
    newer.commit = "2".repeat(40);
    place.server.put(REPOSITORY, newer);
    // The newer commit is used only if the hub has dropped the older one and the cache has too little of it.
    let mut older = place.embed(REPOSITORY);
    place.server.fail("api/models", 1, Fault::Answer(500, vec![("retry-after", "900".into())]));
    assert_refused(&place.work, older.arg("--quiet"), 1, &["900 s"]);
    assert_eq!(fs::read_to_string(place.cache().join("refs/main")).unwrap(), COMMIT);
    place.embeds(&mut place.embed(REPOSITORY));
    assert_eq!(fs::read_to_string(place.cache().join("refs/main")).unwrap(), "2".repeat(40));

    let place = Place::new();
    assert_done(place.command().args(["info", "-m", REPOSITORY]));
    place.server.reset();
    place.embeds(&mut place.embed(REPOSITORY));
    let listings = place.server.requests("api/models");
    assert_eq!(listings.len(), 1);
    assert!(listings[0].line.contains(COMMIT), "{:?}", listings[0].line);
}

#[test]
fn a_welcome_image_encoder_is_not_required_offline() {
    let place = Place::new();
    assert_done(&mut place.download(REPOSITORY));
    let run = |options: &[&str]| {
        let mut command = place.command();
        command.args(["-p", "x", "--steps", "2", "--overwrite", "--offline", "--model", REPOSITORY]).args(options);
        command
    };
    let line = assert_done(&mut run(&["--out", "e.npz"]));
    let advice = "run `prior-embed download owner/kandinsky --image-encoder`";
    assert!(line.contains("image encoder") && line.contains(advice) && line.lines().count() == 1, "{line}");
    let mut command = run(&["--out", "e.npy", "--negative-out", "n.npy"]);
    assert_refused(&place.work, &mut command, 2, &["image_encoder/config.json", advice]);
    assert_done(place.download(REPOSITORY).arg("--image-encoder"));
    assert_eq!(assert_done(&mut run(&["--out", "e.npz"])), "");
    // The advice has the same revision, cache and type.
    let folder = place.work.path("other");
    let mut command = place.embed(&format!("{REPOSITORY}@v1"));
    command.args(["--offline", "--dtype", "int8", "--cache-dir"]).arg(&folder);
    let advice = format!("run `prior-embed download {REPOSITORY}@v1 --dtype bf16 --cache-dir {folder:?}`");
    assert_refused(&place.work, &mut command, 2, &[&advice]);
}

#[test]
fn variables_mean_what_they_mean_in_python() {
    let place = Place::new();
    place.server.fail("HEAD", 1, Fault::Answer(503, vec![("retry-after", "0".into())]));
    let huge = u64::MAX.to_string();
    assert_done(place.download(REPOSITORY).env("HF_HUB_DOWNLOAD_TIMEOUT", huge));
    assert_done(place.download(REPOSITORY).env("HF_HUB_DOWNLOAD_TIMEOUT", "0"));
    place.server.reset();
    assert_done(place.download(REPOSITORY).env("HF_HUB_OFFLINE", "0").env("TRANSFORMERS_OFFLINE", "1"));
    assert!(!place.server.requests("").is_empty());
    place.server.reset();
    assert_done(place.download(REPOSITORY).env("TRANSFORMERS_OFFLINE", "1"));
    assert!(place.server.requests("").is_empty());
    let secret = place.download(REPOSITORY).env("HF_TOKEN", "hf_x").env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1").ok();
    assert!(secret.is_ok());
    assert!(place.server.requests("").iter().all(|request| !request.headers.contains_key("authorization")));
    let mut command = place.download(REPOSITORY);
    command.env("HF_HUB_CACHE", "$SOMEWHERE/${SOMEWHERE}x").env("SOMEWHERE", "cache").current_dir(place.work.path(""));
    assert_done(&mut command);
    assert!(place.work.path("cache/cachex/models--owner--kandinsky/refs/main").is_file());
    // Another scheme's proxy is not used, and our scheme's comes before `ALL_PROXY`.
    assert_done(place.download(REPOSITORY).env("https_proxy", "http://127.0.0.1:1").env("no_proxy", "other.example"));
    let mut command = place.download(REPOSITORY);
    assert_done(command.env("ALL_PROXY", "http://127.0.0.1:1").env("NO_PROXY", "other.example, 127.0.0.1"));
    let proxy = place.server.endpoint();
    place.server.fail("", usize::MAX, Fault::Answer(407, Vec::new()));
    for (name, other) in [("http_proxy", "ALL_PROXY"), ("HTTP_PROXY", "https_proxy"), ("ALL_PROXY", "https_proxy")] {
        let mut command = place.download(REPOSITORY);
        command.env("HF_ENDPOINT", "http://hub.invalid").env(name, &proxy).env(other, "http://127.0.0.1:1");
        assert_refused(&place.work, command.arg("--quiet"), 1, &["proxy", "407"]);
    }
}

#[test]
fn proxies_are_chosen_for_each_address() {
    let place = Place::new();
    let hub = place.server.endpoint().replace("http://", "");
    assert_done(&mut place.download(REPOSITORY));
    let cdn = place.server.cdn();
    let port = hub.rsplit(':').next().unwrap();
    // A proxy that does not answer.
    let download = |no_proxy: &str| {
        let mut command = place.download(REPOSITORY);
        command
            .args(["--quiet", "--cache-dir"])
            .arg(place.work.path("hf/other"))
            .env("http_proxy", "http://127.0.0.1:1");
        command.env("no_proxy", no_proxy);
        command
    };
    for no_proxy in ["", "other.example", "10.0.0.0/8", "127.0.0.1:1", "128.0.0.0/1", "https://127.0.0.1"] {
        assert_refused(&place.work, &mut download(no_proxy), 1, &["cannot reach"]);
    }
    // The hub needs no proxy, the host of large files does.
    assert_refused(&place.work, &mut download(&hub), 1, &["cannot reach", &cdn]);
    for no_proxy in ["127.0.0.1", "127.0.0.0/8", "*", "10.0.0.0/8 127.0.0.1/32", &format!("{hub},{cdn}")] {
        let _ = fs::remove_dir_all(place.work.path("hf/other"));
        assert_done(&mut download(no_proxy));
    }
    // An empty variable in lower case hides the other, as in Python.
    let _ = fs::remove_dir_all(place.work.path("hf/other"));
    let mut command = download("");
    assert_done(command.env("http_proxy", "").env("HTTP_PROXY", "http://127.0.0.1:1"));
    let mut command = download("");
    command.env("no_proxy", "").env("NO_PROXY", format!("127.0.0.1:{port}"));
    assert_refused(&place.work, &mut command, 1, &["cannot reach"]);
}

#[test]
fn the_cache_is_where_the_environment_and_the_option_say() {
    let place = Place::new();
    assert_done(place.download(REPOSITORY).env("HF_HUB_CACHE", place.work.path("elsewhere")));
    assert!(place.work.path("elsewhere/models--owner--kandinsky/refs/main").is_file());
    let option = place.work.path("option");
    let mut command = place.download(REPOSITORY);
    assert_done(command.env("HF_HUB_CACHE", place.work.path("unused")).arg("--cache-dir").arg(&option));
    assert!(option.join("models--owner--kandinsky/refs/main").is_file());
    assert!(!place.work.path("unused").exists() && !place.cache().exists());
    assert_done(place.embed(REPOSITORY).arg("--offline").arg("--cache-dir").arg(&option));
}
