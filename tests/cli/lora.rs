//! `--lora` on the real binary.

use crate::checkpoints::{archive, embed, pickle_model};
use crate::common::{Workplace, assert_done, assert_refused, fixtures, largest, model, read_npy};
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
    for (lora, scale) in [
        ("peft", "1"),
        ("peft_rslora_bin", "1"),
        ("pissa", "1"),
        ("olora", "1"),
        ("patterns", "1"),
        ("diffusers", "1"),
        ("diffusers_pissa", "0.5"),
        ("attention_processors", "0.5"),
    ] {
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
fn folders_as_training_leaves_them_are_read() {
    let place = Workplace::new();
    let loras = fixtures().join("checkpoints/lora");
    let (safetensors, torch) =
        (loras.join("attention_processors/pytorch_lora_weights.safetensors"), loras.join("peft_rslora_bin"));
    let expected = embed(&place, &model(), &["--lora", safetensors.to_str().unwrap()]);
    // accelerate's `save_state`.
    for (folder, file) in [("accelerate", "model.safetensors"), ("own-name", "cat.safetensors")] {
        fs::create_dir(place.path(folder)).unwrap();
        fs::copy(&safetensors, place.path(folder).join(file)).unwrap();
        for other in ["optimizer.bin", "scheduler.bin", "random_states_0.pkl"] {
            fs::write(place.path(folder).join(other), "x").unwrap();
        }
        assert_eq!(embed(&place, &model(), &["--lora", folder]), expected, "{folder}");
    }
    fs::create_dir(place.path("torch")).unwrap();
    fs::copy(torch.join("adapter_model.bin"), place.path("torch/pytorch_model.bin")).unwrap();
    fs::copy(torch.join("adapter_config.json"), place.path("torch/adapter_config.json")).unwrap();
    let expected = embed(&place, &model(), &["--lora", torch.to_str().unwrap()]);
    assert_eq!(embed(&place, &model(), &["--lora", "torch"]), expected);
    fs::copy(&safetensors, place.path("own-name/dog.safetensors")).unwrap();
    let mut command = place.command();
    command.args(["-p", "x", "--out", "e.npy", "--lora", "own-name"]);
    assert_refused(&place, &mut command, 2, &["cat.safetensors, dog.safetensors"]);
}

#[test]
fn a_header_counts_whatever_the_names_are() {
    let place = Workplace::new();
    let lora = fixtures().join("checkpoints/lora/diffusers_pissa");
    let bytes = fs::read(lora.join("pytorch_lora_weights.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..start]).unwrap();
    let header = header.replace(".lora_A.weight", ".lora.down.weight").replace(".lora_B.weight", ".lora.up.weight");
    let renamed = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[start..]].concat();
    fs::write(place.path("renamed.safetensors"), renamed).unwrap();
    let expected = embed(&place, &model(), &["--lora", lora.to_str().unwrap()]);
    assert_eq!(embed(&place, &model(), &["--lora", "renamed.safetensors"]), expected);
}

/// `{name: tensor}` of many tensors `(1, 4096)` and `(4096, 1)`, all of the one storage `0`.
fn shared_tensors(layers: usize) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for layer in 0..layers {
        let shapes: [(&str, &[u8], &[u8]); 2] =
            [("A", b"K\x01M\x00\x10\x86", b"M\x00\x10K\x01\x86"), ("B", b"M\x00\x10K\x01\x86", b"K\x01K\x01\x86")];
        for (part, sizes, strides) in shapes {
            let name = format!("transformer_blocks.{layer}.attn1.to_q.lora_{part}.weight");
            pickle.push(b'X');
            pickle.extend((name.len() as u32).to_le_bytes());
            pickle.extend(name.as_bytes());
            pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n");
            pickle.extend(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuM\x00\x10tQK\x00");
            pickle.extend([sizes, strides].concat());
            pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        }
    }
    pickle.extend(b"u.");
    archive(&[("a/data.pkl", &pickle, None), ("a/data/0", &[0; 4 * 4096], None)])
}

#[test]
fn a_small_lora_takes_little_memory() {
    let place = Workplace::new();
    let refuse = |layers: usize, word: &str| {
        fs::write(place.path("lora.bin"), shared_tensors(layers)).unwrap();
        let mut command = place.command();
        assert_refused(
            &place,
            command.args(["-p", "x", "--out", "e.npy", "--lora", "lora.bin"]),
            2,
            &["lora.bin", word],
        );
    };
    refuse(300, "share their numbers");
    refuse(1, "for another model");
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
    refuse(model().join("prior/diffusion_pytorch_model.safetensors").to_str().unwrap(), &["A, B and alpha of a LoRA"]);
    fs::write(place.path("evil.bin"), b"cos\nsystem\n(X\x01\x00\x00\x00xtR.").unwrap();
    refuse("evil.bin", &["evil.bin", "os.system"]);
    place.copy(&lora, "dora");
    let config = place.path("dora/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap().replace("\"use_dora\": false", "\"use_dora\": true");
    fs::write(&config, text).unwrap();
    refuse("dora", &["adapter_config.json", "use_dora"]);
    for (key, value, word) in [
        ("init_lora_weights", "\"corda\"", "corda"),
        ("init_lora_weights", "\"loftq\"", "loftq"),
        ("init_lora_weights", "\"lora_ga\"", "lora_ga"),
        ("bias", "\"all\"", "bias"),
        ("lora_bias", "true", "lora_bias"),
        ("modules_to_save", "[\"proj_in\"]", "modules_to_save"),
        ("target_modules", "[\"to_x\"]", "none of the modules"),
        ("r", "4", "rank 3"),
        ("rank_pattern", "{\".*\": 2}", "rank 3"),
        ("alpha_pattern", "{\"(?i)to_q\": 2}", "(?i)to_q"),
        ("lora_alpha", "Infinity", "adapter_config.json"),
    ] {
        let mut config: Value = serde_json::from_slice(&fs::read(lora.join("adapter_config.json")).unwrap()).unwrap();
        config[key] = "HERE".into();
        fs::write(place.path("dora/adapter_config.json"), config.to_string().replace("\"HERE\"", value)).unwrap();
        refuse("dora", &["adapter_config.json", word]);
    }
    // For a prior of another width, of which this one has a layer less.
    let mut command = place.bare();
    command.arg("-m").arg(pickle_model()).args(["-p", "x", "--out", "e.npy", "--steps", "2", "--lora"]).arg(&lora);
    assert_refused(&place, &mut command, 2, &["lora", "another model"]);
}
