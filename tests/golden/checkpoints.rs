//! Every format of weights, and LoRAs, against what torch, PEFT and diffusers read from the same files.

use super::common::{Fixture, fixtures, relative_error};
use super::pipelines::{Case, OPTIONS};
use crate::files::Folder;
use crate::nn::text_encoder::TextEncoder;
use crate::pipeline::Pipeline;
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::precision::Precision;
use std::path::Path;
use tch::{Device, Tensor};

const PLACEMENT: Placement = Placement { device: Device::Cpu, precision: Precision::F32 };

fn folder() -> Folder {
    Folder::from(&fixtures().join("checkpoints"))
}

#[test]
fn every_format_of_torch_holds_the_same_tensors() {
    let expected = Checkpoint::open_file(&folder(), "expected.safetensors").unwrap();
    for file in ["zip.bin", "protocol_4.pt", "legacy.bin", "nested.ckpt"] {
        let checkpoint = Checkpoint::open_file(&folder(), file).unwrap();
        assert!(checkpoint.names().eq(expected.names()), "{file}");
        for name in expected.names() {
            let (tensor, wanted) = (checkpoint.read(name).unwrap().unwrap(), expected.read(name).unwrap().unwrap());
            assert_eq!(tensor, wanted, "{file}: {name}");
        }
        assert_eq!(checkpoint.parameters(), expected.parameters(), "{file}");
        assert!(checkpoint.non_finite_tensors().unwrap().is_empty(), "{file}");
    }
}

/// The files also hold values of torch's, numpy's and foreign classes, and tensors that are not plain ones.
#[test]
fn files_of_training_programs_hold_the_same_tensors() {
    let expected = Checkpoint::open_file(&folder(), "expected.safetensors").unwrap();
    for file in ["training.ckpt", "training_protocol_5.ckpt", "training_legacy.ckpt"] {
        let checkpoint = Checkpoint::open_file(&folder(), file).unwrap();
        let names: Vec<&str> = checkpoint.names().filter(|name| *name != "other_bits").collect();
        assert_eq!(names, expected.names().collect::<Vec<_>>(), "{file}");
        for name in names {
            let (tensor, wanted) = (checkpoint.read(name).unwrap().unwrap(), expected.read(name).unwrap().unwrap());
            assert_eq!(tensor, wanted, "{file}: {name}");
        }
        assert!(checkpoint.read("other_bits").unwrap().is_none(), "{file}");
        for (name, function) in [
            ("other_complex", "torch.ComplexFloatStorage"),
            ("other_sparse", "torch._utils._rebuild_sparse_tensor"),
            ("other_quantized", "torch._utils._rebuild_qtensor"),
        ] {
            let read = checkpoint.build("", PLACEMENT, |weights| weights.tensor(name, &[3]));
            let error = read.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(function), "{file}: {error}");
        }
    }
}

#[test]
fn the_weights_of_a_clip_are_counted_by_halves() {
    let folder = Folder::from(&fixtures().join("pipelines/whole_clip/text_encoder"));
    let clip = Checkpoint::open_folder(&folder).unwrap();
    // Embeddings, one layer, norm, projection; a buffer and a mask that count nowhere else.
    let text = 600 * 12 + 24 * 12 + 1584 + 24 + 144 + 24 + 24 * 24;
    assert_eq!(clip.parameters_beside(&TextEncoder::REST_OF_CLIP).all, text);
    assert!(clip.parameters() > text);
}

#[test]
fn matrices_of_16_bits_are_counted() {
    let folder = Folder::from(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji/text_encoder"));
    let clip = Checkpoint::open_folder(&folder).unwrap();
    let count = clip.parameters_beside(&[]);
    // Those of products: four of attention and two of the MLP in each of 4 layers, and the projection.
    let width = 192;
    assert_eq!(count.sixteen_bit, 4 * (4 * width * width + 2 * 4 * width * width) + width * width);
    assert_eq!(count.all, clip.parameters());
}

/// A prior's weights by name, in float32.
fn weights(checkpoint: &Checkpoint) -> Vec<(String, Tensor)> {
    checkpoint.names().map(|name| (name.to_string(), checkpoint.read(name).unwrap().unwrap())).collect()
}

#[test]
fn priors_under_their_authors_names_are_those_of_diffusers() {
    let prior = Folder::from(&fixtures().join("pipelines/pickle_weights/prior"));
    let expected = weights(&Checkpoint::open_folder(&prior).unwrap());
    for (name, file, tolerance) in [("karlo", "prior.ckpt", 0.0), ("kandinsky", "prior_fp16.ckpt", 1e-3)] {
        let folder = folder().join(name);
        let original = Checkpoint::open_file(&folder, file).unwrap();
        assert!(original.is_original_prior());
        let statistics = Checkpoint::open_file(&folder, "ViT-L-14_stats.th").unwrap();
        let converted = weights(&original.with_diffusers_names(Some(statistics), 4).unwrap());
        assert_eq!(converted.len(), expected.len(), "{name}");
        for ((name, tensor), (wanted_name, wanted)) in converted.iter().zip(&expected) {
            assert_eq!((name, tensor.size()), (wanted_name, wanted.size()));
            assert!(relative_error(tensor, wanted) <= tolerance, "{name}");
        }
        let original = Checkpoint::open_file(&folder, file).unwrap();
        let error = original.with_diffusers_names(None, 5).unwrap_err().to_string();
        assert!(error.contains("c_qkv") && error.contains(file), "{error}");
    }
}

fn check_loras(loras: &[(&str, f64)], expected: &Path) {
    let expected = Fixture::open(&expected.join("expected.safetensors"));
    let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
    let mut pipeline = Pipeline::open(&fixtures().join("pipelines/kandinsky22"), OPTIONS).unwrap();
    for (path, scale) in loras {
        pipeline.add_lora(&fixtures().join("checkpoints/lora").join(path), *scale).unwrap();
    }
    for (index, case) in cases.iter().enumerate() {
        case.check(&mut pipeline, &expected, index);
    }
    assert!(!cases.is_empty());
}

#[test]
fn loras_change_the_embeddings_as_in_peft_and_diffusers() {
    let loras = fixtures().join("checkpoints/lora");
    check_loras(&[("peft", 1.0)], &loras.join("peft"));
    check_loras(&[("peft/adapter_model.safetensors", 1.0)], &loras.join("peft"));
    for name in ["diffusers", "peft_rslora_bin", "pissa", "olora", "patterns"] {
        check_loras(&[(name, 1.0)], &loras.join(name));
    }
    for name in ["attention_processors", "diffusers_pissa"] {
        check_loras(&[(name, 0.5)], &loras.join(name));
    }
    check_loras(&[("pissa", 0.5), ("olora", 0.5)], &loras.join("pissa_and_olora"));
}

#[test]
fn loras_add_up() {
    let loras = fixtures().join("checkpoints/lora");
    check_loras(
        &[("peft", 0.25), ("attention_processors", 0.5), ("peft", 0.75), ("attention_processors", -0.5)],
        &loras.join("peft"),
    );
    check_loras(&[("attention_processors", 0.2), ("attention_processors", 0.3)], &loras.join("attention_processors"));
    check_loras(&[("pissa", 1.0), ("peft", 0.5), ("peft", -0.5)], &loras.join("pissa"));
}
