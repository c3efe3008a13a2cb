//! Components from elsewhere on the real binary.

use crate::common::{Workplace, assert_done, assert_refused, fixtures, largest, model, read_npy, read_npz, stderr};
use ndarray::Array2;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

/// A component of the fixture: `prior`, or the whole CLIP `clip` with its tokenizer.
fn fixture(name: &str) -> String {
    fixtures().join("components").join(name).to_str().unwrap().to_string()
}

fn option(component: &str) -> String {
    format!("--{}", component.replace('_', "-"))
}

/// A run of the small model.
fn embed(place: &Workplace, options: &[&str]) -> Array2<f32> {
    assert_done(place.command().args(["-p", "a red apple", "--out", "e.npy", "--overwrite"]).args(options));
    read_npy(&fs::read(place.path("e.npy")).unwrap())
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// A file of expected values.
struct Expected {
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl Expected {
    fn open(path: &str) -> Self {
        let bytes = fs::read(fixtures().join(path)).unwrap();
        let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
        Self { bytes, metadata }
    }

    fn cases(&self) -> Vec<Value> {
        serde_json::from_str(&self.metadata["cases"]).unwrap()
    }

    /// Runs a case with these options beside the base, and compares its arrays; returns how many there are.
    fn check(&self, place: &Workplace, options: &[String], case: &Value, prefix: &str) -> usize {
        let mut command = place.bare();
        command.arg("-m").arg(fixtures().join("pipelines").join(&self.metadata["base"])).args(options);
        for prompt in case["prompts"].as_array().unwrap() {
            command.arg(format!("--prompt={}", prompt.as_str().unwrap()));
        }
        if let Some(negative) = case["negative_prompt"].as_str() {
            command.args(["-n", negative]);
        }
        for key in ["steps", "guidance_scale", "seed", "samples_per_prompt"] {
            command.args([option(key), case[key].to_string()]);
        }
        assert_done(command.args(["--out", "e.npz", "--overwrite"]));
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let names = ["image_embeds", "negative_image_embeds"].into_iter();
        let expected = names.filter_map(|name| Some((name, tensors.tensor(&format!("{prefix}.{name}")).ok()?)));
        let compared = expected.map(|(name, expected)| {
            let numbers = expected.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            let shape = (expected.shape()[0], expected.shape()[1]);
            let expected = Array2::from_shape_vec(shape, numbers.collect()).unwrap();
            let actual = read_npz(fs::read(place.path("e.npz")).unwrap(), name);
            let error = largest(&(&actual - &expected)) / largest(&expected);
            assert!(error < 1e-4, "{options:?} case {prefix}: {name} off by {error:.1e}");
        });
        compared.count()
    }
}

#[test]
fn replaced_components_give_the_embeddings_of_diffusers() {
    let place = Workplace::new();
    let expected = Expected::open("components/expected.safetensors");
    let runs: Vec<BTreeMap<String, String>> = serde_json::from_str(&expected.metadata["runs"]).unwrap();
    let mut compared = 0;
    for (run, components) in runs.iter().enumerate() {
        let options: Vec<String> =
            components.iter().flat_map(|(component, name)| [option(component), fixture(name)]).collect();
        for (index, case) in expected.cases().iter().enumerate() {
            compared += expected.check(&place, &options, case, &format!("{run}.{index}"));
        }
    }
    assert!(compared >= 20);
}

/// As diffusers' documentation puts it together: Karlo's prior, a whole CLIP, and a `DDPMScheduler` that is configured as
/// the prior's own scheduler.
#[test]
fn stable_unclip_is_put_together_from_its_parts() {
    let place = Workplace::new();
    let expected = Expected::open("components/stable_unclip/expected.safetensors");
    let clip = fixture("stable_unclip/clip");
    let options = ["--text-encoder", &clip, "--tokenizer", &clip, "--scheduler", "ddpm"].map(String::from);
    let cases = expected.cases();
    let compared =
        cases.iter().enumerate().map(|(index, case)| expected.check(&place, &options, case, &index.to_string()));
    assert!(compared.sum::<usize>() >= 2);
}

#[test]
fn a_component_may_lie_in_many_places() {
    let place = Workplace::new();
    let plain = embed(&place, &[]);
    let prior = embed(&place, &["--prior", &fixture("prior")]);
    assert!(largest(&(&prior - &plain)) > 0.01, "another prior");
    // Alone in a folder, as a file, in a whole model with an index or with prefixed names.
    let folder = place.copy(&model(), "other");
    fs::remove_dir_all(folder.join("prior")).unwrap();
    place.copy(Path::new(&fixture("prior")), "other/prior");
    let file = format!("{}/diffusion_pytorch_model.safetensors", fixture("prior"));
    let same = |source: &str| assert_eq!(embed(&place, &["--prior", source]), prior, "{source}");
    for source in [file.as_str(), "other", "other/prior", "./other/prior/diffusion_pytorch_model.safetensors"] {
        same(source);
    }
    fs::rename(folder.join("prior"), folder.join("prior_prior")).unwrap();
    fs::remove_file(folder.join("model_index.json")).unwrap();
    same("other");
    // What is the model's own changes nothing, wherever it is.
    let own = model().to_str().unwrap().to_string();
    let sources = ["--prior", &own, "--text-encoder", &own, "--image-encoder", &own, "--tokenizer", &own];
    let line = assert_done(place.command().args(["-p", "a red apple", "--out", "e.npy", "--overwrite"]).args(sources));
    assert!(line.contains("--image-encoder has no effect"), "{line}");
    assert_eq!(read_npy(&fs::read(place.path("e.npy")).unwrap()), plain);
    let weights = model().join("text_encoder/model.safetensors");
    assert_eq!(embed(&place, &["--text-encoder", weights.to_str().unwrap()]), plain);
    // The built-in model with itself.
    let mut command = place.bare();
    assert_done(command.args([
        "-p",
        "x",
        "--steps",
        "2",
        "--out",
        "a.npy",
        "--prior",
        "emoji",
        "--tokenizer",
        "emoji",
    ]));
    assert_done(place.bare().args(["-p", "x", "--steps", "2", "--out", "b.npy"]));
    assert_eq!(fs::read(place.path("a.npy")).unwrap(), fs::read(place.path("b.npy")).unwrap());
}

#[test]
fn what_comes_from_where_is_shown() {
    let place = Workplace::new();
    let (prior, clip) = (fixture("prior"), fixture("clip"));
    let mut command = place.bare();
    command.arg("info").arg(model()).args(["--prior", &prior, "--text-encoder", &clip, "--image-encoder", &clip]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        &format!("1 layers of 3 heads x 8, embeddings of 16 numbers; from {prior}"),
        &format!("CLIP, 1 layers of width 16; from {clip}"),
        &format!("from {clip}\n"),
        &format!("{prior}/config.json"),
    ] {
        assert!(text.contains(line.as_str()), "{line:?} is not in: {text}");
    }
    let output = command.arg("--json").output().unwrap();
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&info["components"]["prior"]["from"], &info["prior"]["num_layers"]), (&json!(prior), &json!(1)));
    assert_eq!(info["components"]["tokenizer"]["from"], Value::Null);
    assert_eq!(info["components"]["scheduler"]["folder"], json!(model().join("scheduler")));
    assert_eq!(info["parameters"]["is_estimate"], false);
    let stats = ["--prior", &prior, "--stats", "stats.json"];
    embed(&place, &stats);
    let stats: Value = serde_json::from_str(&fs::read_to_string(place.path("stats.json")).unwrap()).unwrap();
    assert_eq!(stats["settings"]["components"], json!({"prior": prior}));
}

#[test]
fn a_run_is_not_resumed_with_another_component() {
    let place = Workplace::new();
    let run = |options: &[&str]| {
        let mut command = place.command();
        command.args(["-p", "a", "-p", "b", "--batch-size", "1", "--out", "e.npy", "--resume"]).args(options);
        command
    };
    assert_done(&mut run(&["--prior", &fixture("prior")]));
    // The same prior in another place is the same.
    place.copy(Path::new(&fixture("prior")), "copy");
    assert!(assert_done(&mut run(&["--prior", "copy"])).contains("nothing to do"));
    for options in [&[][..], &["--prior", &fixture("prior"), "--text-encoder", &fixture("clip")]] {
        assert_refused(&place, &mut run(options), 2, &["the model's hash"]);
    }
}

#[test]
fn a_model_with_replaced_components_is_converted() {
    let place = Workplace::new();
    let clip = fixture("clip");
    let sources = ["--prior", &fixture("prior"), "--text-encoder", &clip, "--tokenizer", &clip];
    let expected = embed(&place, &sources);
    assert_done(place.bare().arg("convert").arg(model()).arg("out").args(sources));
    assert_done(place.bare().args(["-m", "out", "--steps", "3", "-p", "a red apple", "--out", "c.npy"]));
    assert_eq!(read_npy(&fs::read(place.path("c.npy")).unwrap()), expected);
    let mut names: Vec<_> =
        fs::read_dir(place.path("out/tokenizer")).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json"], "no other component's files");
    let mut command = place.bare();
    command.args(["convert", &fixture("prior"), "out2", "--prior", &fixture("prior"), "--config"]).arg(model());
    assert_refused(&place, &mut command, 2, &["--prior", "leave one out"]);
}

/// The options of a run that is refused.
fn refuse(place: &Workplace, options: &[&str], words: &[&str]) {
    let mut command = place.command();
    command.args(["-p", "x", "--out", "refused.npz"]).args(options);
    assert_refused(place, &mut command, 2, words);
}

#[test]
fn components_that_do_not_fit_are_named() {
    let place = Workplace::new();
    let other = fixtures().join("pipelines/no_image_encoder");
    let other = other.to_str().unwrap();
    let own = model();
    let own = own.to_str().unwrap();
    refuse(
        &place,
        &["--text-encoder", other],
        &["hidden_size (12)", "text states (16)", other, &format!("{own}/prior")],
    );
    refuse(&place, &["--tokenizer", other], &["model_max_length (20)", "num_embeddings (77)", other, "prior"]);
    refuse(
        &place,
        &["--prior", other],
        &["model_max_length (77)", "num_embeddings (20)", "the prior is that of", other],
    );
    let karlo = fixtures().join("pipelines/unclip_layout");
    let karlo = karlo.to_str().unwrap();
    refuse(
        &place,
        &["--prior", karlo],
        &["hidden_size (16)", "text states (12)", karlo, &format!("{own}/text_encoder")],
    );
    let clip = place.copy(Path::new(&fixture("clip")), "clip");
    edit(&clip.join("config.json"), |config| config["projection_dim"] = json!(8));
    refuse(&place, &["--image-encoder", "clip"], &["projection_dim (8)", "embedding_dim (16)", "clip", "/prior"]);
}

#[test]
fn components_of_another_kind_are_named() {
    let place = Workplace::new();
    let own = |part: &str| model().join(part).to_str().unwrap().to_string();
    let write = |name: &str, config: Value| {
        fs::create_dir_all(place.path(name)).unwrap();
        fs::write(place.path(name).join("config.json"), config.to_string()).unwrap();
    };
    write("unet", json!({"_class_name": "UNet2DConditionModel"}));
    write("t5", json!({"architectures": ["T5EncoderModel"], "model_type": "t5"}));
    write("bare-t5", json!({"model_type": "t5"}));
    write("no-projection", json!({"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}));
    fs::create_dir(place.path("empty")).unwrap();
    fs::write(place.path("t5/tokenizer_config.json"), json!({"tokenizer_class": "T5Tokenizer"}).to_string()).unwrap();
    fs::write(place.path("broken.safetensors"), "nothing").unwrap();
    fs::copy(format!("{}/diffusion_pytorch_model.safetensors", fixture("prior")), place.path("alone.safetensors"))
        .unwrap();
    for (options, words) in [
        (["--prior", "unet"], ["unet/config.json", "UNet2DConditionModel, not of a PriorTransformer"]),
        (["--text-encoder", "t5"], ["t5/config.json", "T5EncoderModel"]),
        (["--text-encoder", "bare-t5"], ["bare-t5/config.json", "type t5"]),
        (["--text-encoder", "no-projection"], ["no-projection", "CLIPTextModel"]),
        (["--tokenizer", "t5"], ["t5/tokenizer_config.json", "T5Tokenizer"]),
        (["--prior", &own("scheduler")], ["scheduler", "holds no prior"]),
        (["--prior", &own("text_encoder")], ["text_encoder/config.json", "not of a PriorTransformer"]),
        (["--text-encoder", &own("image_encoder")], ["image_encoder/config.json", "CLIPVisionModelWithProjection"]),
        (["--image-encoder", &own("text_encoder")], ["text_encoder/config.json", "CLIPTextModelWithProjection"]),
        (["--prior", "empty"], ["empty", "holds no prior"]),
        (["--tokenizer", "empty"], ["empty", "holds no tokenizer"]),
        (["--prior", "broken.safetensors"], ["broken.safetensors", "not a valid safetensors"]),
        (["--prior", "alone.safetensors"], ["no config.json beside it", "prior's"]),
        (["--tokenizer", "alone.safetensors"], ["is a file", "folder"]),
        (["--prior", "./nothing"], ["--prior: \"./nothing\"", "owner/name"]),
        (["--image-encoder", "x y/z"], ["--image-encoder", "neither"]),
    ] {
        refuse(&place, &options, &words);
    }
    // A model without a prior has the scheduler of its decoder.
    let decoder = place.copy(&model(), "decoder");
    fs::remove_dir_all(decoder.join("prior")).unwrap();
    edit(&decoder.join("model_index.json"), |index| {
        index.as_object_mut().unwrap().remove("prior");
        index["unet"] = json!(["diffusers", "UNet2DConditionModel"]);
    });
    let mut command = place.bare();
    command.args(["-m", "decoder", "-p", "x", "--out", "e.npy", "--prior", &fixture("prior")]);
    assert_refused(&place, &mut command, 2, &["decoder", "not a prior's"]);
}

/// A safetensors file of tensors `(2)`.
fn weights(names: &[&str], bytes: [u8; 8]) -> Vec<u8> {
    let tensor = TensorView::new(Dtype::F32, vec![2], &bytes).unwrap();
    serialize(names.iter().map(|name| (*name, &tensor)), None).unwrap()
}

#[test]
fn weights_that_are_not_finite_are_named_with_their_place() {
    let place = Workplace::new();
    let prior = place.copy(Path::new(&fixture("prior")), "nan").join("diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&prior).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&prior, bytes).unwrap();
    let mut command = place.command();
    command.args(["-p", "x", "--out", "e.npy", "--prior", "nan"]);
    assert_refused(&place, &mut command, 1, &["not finite", "nan has NaN or infinity in "]);
}

#[test]
fn well_known_checkpoints_of_another_kind_are_recognized() {
    let place = Workplace::new();
    let laion = ["net.causal_transformer.layers.0.0.to_q.weight", "net.null_text_embeds", "noise_scheduler.betas"];
    fs::write(place.path("laion.safetensors"), weights(&laion, [0; 8])).unwrap();
    let unet = ["down_blocks.0.resnets.0.conv1.weight", "time_embedding.linear_1.weight"];
    fs::write(place.path("unet.safetensors"), weights(&unet, [0; 8])).unwrap();
    let own = model();
    for (file, words) in [
        ("laion.safetensors", ["DALLE2-pytorch", "another architecture", "it would need"]),
        ("unet.safetensors", ["a UNet of diffusers", "decoder", "not a prior"]),
    ] {
        let config = own.to_str().unwrap();
        for arguments in [
            &["convert", file, "out"][..],
            &["convert", file, "out", "--config", config],
            &["info", file],
            &["info", config, "--prior", file],
            &["-m", config, "-p", "x", "--out", "e.npy", "--prior", file],
        ] {
            assert_refused(&place, place.bare().args(arguments), 2, &words);
        }
    }
    // As the trainer saves it.
    for name in ["latest.pth", "ema.pth"] {
        let file = fixtures().join("components/dalle2").join(name);
        assert_refused(&place, place.bare().arg("convert").arg(&file).arg("out"), 2, &[name, "LAION"]);
        assert_refused(&place, place.bare().arg("info").arg(&file), 2, &[name, "LAION"]);
    }
    // In a folder as well, beside whatever configuration.
    let prior = place.copy(Path::new(&fixture("prior")), "prior");
    fs::rename(place.path("laion.safetensors"), prior.join("diffusion_pytorch_model.safetensors")).unwrap();
    let mut command = place.command();
    command.args(["-p", "x", "--out", "e.npy", "--prior", "prior"]);
    assert_refused(&place, &mut command, 2, &["prior", "DALLE2-pytorch"]);
    // The authors' own layout is known too.
    let karlo = fixtures().join("checkpoints/karlo/prior.ckpt");
    let mut command = place.command();
    command.args(["-p", "x", "--out", "e.npy", "--prior"]).arg(karlo);
    assert_refused(&place, &mut command, 2, &["its authors' tensor names", "prior-embed convert"]);
}
