//! `--lora` on the real binary.

use crate::checkpoints::{embed, fixtures, pickle_model};
use crate::common::{Workplace, assert_done, assert_refused, largest, model, read_npy};
use ndarray::Array2;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;

/// An array of float32 in a safetensors file, and the cases that its file was made with.
fn expected(lora: &str) -> (Array2<f32>, Vec<Value>) {
    let bytes = fs::read(fixtures().join("checkpoints/lora").join(lora).join("expected.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("0.image_embeds").unwrap();
    let numbers = tensor.data().chunks_exact(4).map(|number| f32::from_le_bytes(number.try_into().unwrap()));
    let shape = (tensor.shape()[0], tensor.shape()[1]);
    (Array2::from_shape_vec(shape, numbers.collect()).unwrap(), cases)
}

#[test]
fn a_lora_gives_the_embeddings_of_peft_and_diffusers() {
    let place = Workplace::new();
    for (lora, scale) in [("peft", "1"), ("peft_rslora_bin", "1"), ("diffusers", "1"), ("attention_processors", "0.5")]
    {
        let (expected, cases) = expected(lora);
        let case = &cases[0];
        let mut command = place.bare();
        command.arg("-m").arg(model()).args(["--out", "e.npy", "--overwrite", "--lora"]);
        command.arg(format!("{}:{scale}", fixtures().join("checkpoints/lora").join(lora).display()));
        for (option, key) in [("--steps", "steps"), ("--seed", "seed"), ("--guidance-scale", "guidance_scale")] {
            command.arg(option).arg(case[key].to_string());
        }
        for prompt in case["prompts"].as_array().unwrap() {
            command.arg("-p").arg(prompt.as_str().unwrap());
        }
        assert_done(&mut command);
        let difference = largest(&(read_npy(&fs::read(place.path("e.npy")).unwrap()) - &expected));
        assert!(difference <= 1e-4 * largest(&expected), "{lora}: {difference}");
    }
}

#[test]
fn a_lora_changes_the_embedding_by_its_scale() {
    let place = Workplace::new();
    let lora = fixtures().join("checkpoints/lora/peft");
    let option = |scale: &str| format!("{}{scale}", lora.display());
    let plain = embed(&place, &model(), &[]);
    let changed = embed(&place, &model(), &["--lora", &option("")]);
    assert!(largest(&(&changed - &plain)) > 0.01);
    assert_eq!(embed(&place, &model(), &["--lora", &option(":1.0")]), changed);
    let nothing = embed(&place, &model(), &["--lora", &option(":0")]);
    assert!(largest(&(&nothing - &plain)) < 1e-5);
    let both = embed(&place, &model(), &["--lora", &option(":2"), "--lora", &option(":-2")]);
    assert!(largest(&(&both - &plain)) < 1e-4);
}

#[test]
fn loras_that_do_not_fit_are_refused() {
    let place = Workplace::new();
    let lora = fixtures().join("checkpoints/lora/peft");
    let refuse = |option: &str, words: &[&str]| {
        let mut command = place.command();
        assert_refused(&place, command.args(["-p", "x", "--out", "e.npy", "--lora", option]), 2, words);
    };
    refuse("none.safetensors", &["none.safetensors"]);
    refuse("none.safetensors:nan", &["--lora"]);
    fs::create_dir(place.path("empty")).unwrap();
    refuse("empty", &["empty", "adapter_model.safetensors"]);
    refuse(model().join("prior/diffusion_pytorch_model.safetensors").to_str().unwrap(), &["no part of a LoRA"]);
    fs::write(place.path("evil.bin"), b"cos\nsystem\n(X\x01\x00\x00\x00xtR.").unwrap();
    refuse("evil.bin", &["evil.bin", "os.system"]);
    place.copy(&lora, "dora");
    let config = place.path("dora/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap().replace("\"use_dora\": false", "\"use_dora\": true");
    fs::write(&config, text).unwrap();
    refuse("dora", &["adapter_config.json", "use_dora"]);
    // For a prior of another width, of which this one has a layer less.
    let mut command = place.bare();
    command.arg("-m").arg(pickle_model()).args(["-p", "x", "--out", "e.npy", "--steps", "2", "--lora"]).arg(&lora);
    assert_refused(&place, &mut command, 2, &["lora", "another model"]);
}
