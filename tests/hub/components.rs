//! Components from other repositories.

use crate::common::{assert_done, assert_refused, model, stderr};
use crate::place::{Place, REPOSITORY, fixture, small_model};
use crate::server::{COMMIT, Fault, Repository};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const PRIOR: &str = "owner/prior";
const CLIP: &str = "owner/clip";

fn component(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/components").join(name)
}

/// With a repository of a prior alone and one of a whole CLIP, each with files beside it that no run needs.
fn place() -> Place {
    let place = Place::new();
    for (name, folder) in [(PRIOR, "prior"), (CLIP, "clip")] {
        let mut repository = Repository::of_folder(&component(folder));
        let others = ["README.md", "pytorch_model.bin", "preprocessor_config.json", "tf_model.h5"];
        repository.files.extend(others.map(|path| (path.to_string(), b"not needed".to_vec())));
        place.server.put(name, repository);
    }
    place
}

/// The requests for the content of a repository's files.
fn requests(place: &Place, repository: &str) -> Vec<String> {
    let lines = place.server.requests(&format!("GET /{repository}/resolve/")).into_iter().map(|request| request.line);
    lines.map(|line| line.rsplit_once(&format!("{COMMIT}/")).unwrap().1.to_string()).collect()
}

#[test]
fn components_come_from_their_repositories_and_nothing_is_downloaded_in_vain() {
    let place = place();
    let (prior, clip) = (component("prior"), component("clip"));
    let sources =
        |prior: &str, clip: &str| ["--prior", prior, "--text-encoder", clip, "--tokenizer", clip].map(String::from);
    let local = sources(prior.to_str().unwrap(), clip.to_str().unwrap());
    let expected = place.embeds(place.embed(model().to_str().unwrap()).args(&local));
    assert!(place.server.requests("").is_empty());
    let remote = sources(PRIOR, CLIP);
    assert_eq!(place.embeds(place.embed(REPOSITORY).args(&remote)), expected);
    for part in ["prior", "text_encoder", "tokenizer", "image_encoder"] {
        assert!(place.server.requests(&format!("/{REPOSITORY}/resolve/{COMMIT}/{part}")).is_empty(), "{part}");
    }
    for (repository, others) in [(PRIOR, ["README", "pytorch"]), (CLIP, ["preprocessor", "tf_model"])] {
        let requests = requests(&place, repository);
        assert!(requests.iter().any(|path| path == "config.json"), "{requests:?}");
        assert!(!requests.iter().any(|path| others.iter().any(|other| path.starts_with(other))), "{requests:?}");
    }
    place.server.reset();
    assert_eq!(place.embeds(place.embed(REPOSITORY).args(&remote)), expected);
    assert_eq!(place.embeds(place.embed(REPOSITORY).args(&remote).arg("--offline")), expected);
    // Beside a model in a folder, and the built-in one.
    assert_eq!(place.embeds(place.embed(model().to_str().unwrap()).args(&remote)), expected);
    assert!(place.server.requests("").is_empty(), "all of it was in the cache");
    assert_refused(
        &place.work,
        place.embed("emoji").args(["--prior", PRIOR]),
        2,
        &["emoji", "must be equal", "models--owner--"],
    );
}

#[test]
fn a_component_may_be_in_a_folder_of_a_repository_at_a_revision() {
    let place = place();
    let prior = component("prior");
    let expected = place.embeds(place.embed(REPOSITORY).arg("--prior").arg(&prior));
    let at = |folder: &str| {
        let files = Repository::of_folder(&prior).files.into_iter();
        files.map(|(path, content)| (format!("{folder}/{path}"), content)).collect()
    };
    let whole = |folder: &str, with_index: bool| {
        let mut repository = small_model();
        repository.files.retain(|path, _| !path.starts_with("prior/") && (with_index || path != "model_index.json"));
        repository.files.extend::<std::collections::BTreeMap<_, _>>(at(folder));
        repository
    };
    place.server.put("owner/model", whole("prior", true));
    place.server.put("owner/bare", whole("prior_prior", false));
    place.server.put("owner/odd", whole("models/best", false));
    for name in [
        "owner/model",
        "owner/model/prior",
        "owner/bare",
        &format!("owner/odd@{COMMIT}/models/best"),
        "owner/odd@refs/pr/1/models/best",
    ] {
        assert_eq!(place.embeds(place.embed(REPOSITORY).args(["--prior", name])), expected, "{name}");
        assert_eq!(place.embeds(place.embed(REPOSITORY).args(["--prior", name, "--offline"])), expected, "{name}");
    }
    for (name, words) in [
        ("owner/odd", ["owner/odd has no prior", "prior_prior/"]),
        ("owner/odd/unet", ["owner/odd has no prior", "unet/config.json"]),
        ("owner/none", ["owner/none", "no public repository"]),
    ] {
        assert_refused(&place.work, place.embed(REPOSITORY).args(["--prior", name, "--quiet"]), 2, &words);
    }
}

#[test]
fn another_kind_of_component_is_refused_before_its_weights_are_downloaded() {
    let place = place();
    let mut unet = Repository::of_folder(&component("prior"));
    unet.files.insert("config.json".into(), br#"{"_class_name": "UNet2DConditionModel"}"#.to_vec());
    place.server.put("owner/unet", unet);
    assert_done(&mut place.download(REPOSITORY));
    place.server.reset();
    for (option, name, words) in [
        ("--prior", "owner/unet", ["owner/unet: config.json", "UNet2DConditionModel"]),
        ("--prior", CLIP, ["owner/clip: config.json", "CLIPModel"]),
        ("--text-encoder", PRIOR, ["owner/prior: config.json", "PriorTransformer"]),
    ] {
        assert_refused(&place.work, place.embed(REPOSITORY).args([option, name, "--quiet"]), 2, &words);
    }
    assert!(place.server.requests("cdn").is_empty());
    // A repository that has no such component at all.
    let mut command = place.embed(REPOSITORY);
    assert_refused(&place.work, command.args(["--tokenizer", PRIOR, "--quiet"]), 2, &["owner/prior has no tokenizer"]);
}

#[test]
fn what_is_missing_offline_is_downloaded_by_the_command_in_the_message() {
    let place = place();
    for base in [REPOSITORY, "model"] {
        place.work.copy_model();
        let run = || {
            let mut command = place.embed(base);
            command.args(["--offline", "--prior", PRIOR, "--text-encoder", CLIP, "--dtype", "int8"]);
            command
        };
        let advice = format!("download {base} --dtype bf16 --prior {PRIOR} --text-encoder {CLIP}");
        assert_refused(&place.work, &mut run(), 2, &[&format!("run `prior-embed {advice}`")]);
        assert_done(place.command().args(advice.split(' ')));
        place.embeds(&mut run());
        fs::remove_dir_all(place.work.path("hf/hub")).unwrap();
        fs::remove_dir_all(place.work.path("model")).unwrap();
    }
    let mut command = place.download(REPOSITORY);
    assert_done(command.arg(format!("--image-encoder={CLIP}")));
    assert!(!place.snapshot("image_encoder").exists());
    let options = ["--image-encoder", CLIP, "--negative-out", "n.npy", "--offline"];
    assert_done(place.embed(REPOSITORY).args(options));
    // A file of a component that is damaged.
    let weights = place.work.path("hf/hub/models--owner--clip/snapshots").join(COMMIT).join("model.safetensors");
    fs::write(fs::canonicalize(weights).unwrap(), "x").unwrap();
    let advice = format!("download {REPOSITORY} --image-encoder={CLIP} --force");
    assert_refused(&place.work, place.embed(REPOSITORY).args(options), 2, &["model.safetensors", &advice]);
    assert_done(place.command().args(advice.split(' ')));
    assert_done(place.embed(REPOSITORY).args(options));
}

#[test]
fn presets_may_have_a_prior_from_another_repository() {
    let place = place();
    place.server.put("kakaobrain/karlo-v1-alpha", small_model());
    place.server.put("ECLIPSE-Community/ECLIPSE_Karlo_Prior", Repository::of_folder(&component("prior")));
    let list = || {
        let output = place.command().args(["models", "--json"]).output().unwrap();
        let models: Value = serde_json::from_slice(&output.stdout).unwrap();
        models.as_array().unwrap().iter().find(|model| model["name"] == "eclipse-karlo").cloned().unwrap()
    };
    assert_eq!((&list()["cached"], &list()["dimension"]), (&"no".into(), &768.into()));
    assert_eq!(list()["components"]["prior"], "ECLIPSE-Community/ECLIPSE_Karlo_Prior");
    let expected = place.embeds(place.embed(REPOSITORY).arg("--prior").arg(component("prior")));
    assert_done(place.command().args(["info", "eclipse-karlo"]));
    assert_eq!(list()["cached"], "partly");
    assert_eq!(place.embeds(&mut place.embed("eclipse-karlo")), expected);
    assert!(place.server.requests(&format!("/kakaobrain/karlo-v1-alpha/resolve/{COMMIT}/prior")).is_empty());
    assert_eq!(list()["cached"], "yes");
    assert_eq!(place.embeds(place.embed(REPOSITORY).args(["--prior", "eclipse-karlo"])), expected);
    // A component that is given comes before the preset's.
    let own = place.embeds(&mut place.embed(model().to_str().unwrap()));
    assert_eq!(place.embeds(place.embed("eclipse-karlo").args(["--prior", REPOSITORY])), own);
    let mut command = place.embed("eclipse-karlo");
    assert_refused(&place.work, command.args(["--revision", "v1"]), 2, &["two repositories", "--prior ECLIPSE"]);
}

#[test]
fn a_preset_of_a_one_step_prior_gives_what_its_folder_gives() {
    let place = place();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/one_step/karlo");
    let repository = Repository::of_folder(&folder);
    let (prior, base): (Vec<_>, Vec<_>) = repository
        .files
        .iter()
        .map(|(path, file)| (path.clone(), file.clone()))
        .partition(|(path, _)| path.starts_with("prior/"));
    let at_root = prior.into_iter().map(|(path, file)| (path["prior/".len()..].to_string(), file));
    let prior = Repository { files: at_root.collect(), ..repository.clone() };
    let mut base: std::collections::BTreeMap<_, _> = base.into_iter().collect();
    let mut index: Value = serde_json::from_slice(&base["model_index.json"]).unwrap();
    index["prior_scheduler"] = serde_json::json!(["diffusers", "UnCLIPScheduler"]);
    base.insert("model_index.json".into(), index.to_string().into_bytes());
    let scheduler = fs::read(model().join("scheduler/scheduler_config.json")).unwrap();
    base.insert("prior_scheduler/scheduler_config.json".into(), scheduler);
    let base = Repository { files: base, ..repository };
    place.server.put("kakaobrain/karlo-v1-alpha", base);
    place.server.put("ECLIPSE-Community/ECLIPSE_Karlo_Prior", prior);
    let embed = |model: &str| {
        let mut command = place.command();
        place.embeds(command.args(["-p", "a red apple", "--out", "e.npy", "--overwrite", "--model", model]))
    };
    let expected = embed(folder.to_str().unwrap());
    assert_eq!(embed("eclipse-karlo"), expected);
    let output = place.command().args(["info", "eclipse-karlo"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("one step; from ECLIPSE-Community/ECLIPSE_Karlo_Prior"), "{text}");
}

#[test]
fn info_tells_where_remote_components_come_from() {
    let place = place();
    let mut command = place.command();
    command.args(["info", REPOSITORY, "--json", "--prior", PRIOR, "--text-encoder", &format!("{CLIP}@{COMMIT}")]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(place.server.requests("cdn").is_empty());
    let components = &info["components"];
    assert_eq!((&components["prior"]["from"], &components["prior"]["commit"]), (&PRIOR.into(), &COMMIT.into()));
    assert_eq!(components["text_encoder"]["from"], format!("owner/clip@{COMMIT}"));
    assert_eq!((&components["tokenizer"]["from"], &components["tokenizer"]["commit"]), (&Value::Null, &COMMIT.into()));
    assert_eq!(info["parameters"]["is_estimate"], true);
    let count = |info: &Value| info["parameters"]["text_encoder"].as_u64().unwrap();
    assert_done(place.download(REPOSITORY).args(["--prior", PRIOR, "--text-encoder", &format!("{CLIP}@{COMMIT}")]));
    let here: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!(here["parameters"]["is_estimate"], false);
    assert_eq!(count(&info), count(&here), "a whole CLIP's text encoder is counted without its image encoder");
    assert!(here["files"].as_array().unwrap().iter().all(|file| file["cached"] == true));
}

#[test]
fn a_hub_that_fails_leaves_the_components_in_the_cache() {
    let place = place();
    place.server.put("owner/bare", Repository::of_folder(&fixture("bare_folder")));
    let run = || {
        let mut command = place.embed(REPOSITORY);
        command.args(["--prior", PRIOR]);
        command
    };
    let expected = place.embeds(&mut run());
    // More exact weights matter; without the hub, the cached ones do.
    let snapshot = place.work.path("hf/hub/models--owner--prior/snapshots").join(COMMIT);
    let weights = |variant: &str| snapshot.join(format!("diffusion_pytorch_model{variant}.safetensors"));
    fs::rename(weights(""), weights(".fp16")).unwrap();
    fs::remove_dir_all(place.work.path("hf/hub/models--owner--prior/.no_exist")).unwrap();
    place.server.reset();
    place.server.fail("api/models/owner/prior", 1, Fault::Answer(403, Vec::new()));
    let line = assert_done(&mut run());
    assert!(line.contains("owner/prior") && line.contains("using what is in the cache"), "{line}");
    assert_eq!(place.embeds(&mut run()), expected);
    assert!(weights("").exists());
}
