//! Torch files and `convert` on the real binary.

use crate::common::{Workplace, assert_done, assert_refused, fixtures, largest, model, read_npy, stderr};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

const WEIGHTS: &str = "model/prior/diffusion_pytorch_model.bin";

/// The small model whose weights are pickles.
pub fn pickle_model() -> PathBuf {
    fixtures().join("pipelines/pickle_weights")
}

/// A workplace with a copy of it, and the path of its prior's weights.
fn with_pickles() -> (Workplace, PathBuf) {
    let place = Workplace::new();
    place.copy(&pickle_model(), "model");
    let weights = place.path(WEIGHTS);
    (place, weights)
}

/// The embedding of one prompt by a model in the workplace.
pub fn embed(place: &Workplace, model: &Path, options: &[&str]) -> ndarray::Array2<f32> {
    let mut command = place.bare();
    command.arg("-m").arg(model).args(["-p", "a red apple", "--steps", "3", "--out", "e.npy", "--overwrite", "-q"]);
    assert_done(command.args(options));
    let embed = read_npy(&fs::read(place.path("e.npy")).unwrap());
    fs::remove_file(place.path("e.npy")).unwrap();
    embed
}

fn assert_weights_refused(place: &Workplace, words: &[&str]) {
    let mut command = place.bare();
    assert_refused(place, command.args(["-m", "model", "-p", "x", "--steps", "2", "--out", "e.npy"]), 2, words);
}

#[test]
fn a_hostile_pickle_is_refused_by_name_and_not_run() {
    let pickles: [(&[u8], &str); 6] = [
        (b"cos\nsystem\n(X\x0b\x00\x00\x00touch hackedtR.", "`os.system`"),
        (b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch hacked\x85R.", "`posix.system`"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "`builtins.eval`"),
        (b"\x80\x02c__builtin__\ngetattr\n.", "`__builtin__.getattr`"),
        (b"\x80\x04\x8c\x05torch\x8c\x04load\x93.", "`torch.load`"),
        (b"(X\x01\x00\x00\x00aios\nsystem\n.", "`os.system`"),
    ];
    for (pickle, name) in pickles {
        for file in [pickle.to_vec(), archive(&[("archive/data.pkl", pickle, None)])] {
            let (place, weights) = with_pickles();
            fs::write(&weights, file).unwrap();
            assert_weights_refused(&place, &[WEIGHTS, name, "safetensors"]);
        }
    }
}

/// A zip archive of uncompressed members: name, contents, and perhaps a wrong size for the directory.
pub fn archive(entries: &[(&str, &[u8], Option<u32>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data, said) in entries {
        let start = file.len() as u32;
        let size = said.unwrap_or(data.len() as u32);
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend([0; 4]);
        common.extend(size.to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0; 2]);
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\x00\x00\x00\x00");
    file.extend((entries.len() as u16).to_le_bytes().repeat(2));
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0; 2]);
    file
}

/// `{"proj_in.bias": tensor}`, whose storage `0` has `numbers` floats.
fn one_tensor(numbers: u8) -> Vec<u8> {
    let mut pickle = b"\x80\x02}X\x0c\x00\x00\x00proj_in.biasctorch._utils\n_rebuild_tensor_v2\n((\
        X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK"
        .to_vec();
    pickle.extend([numbers]);
    pickle.extend(b"tQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs.");
    pickle
}

#[test]
fn broken_torch_files_are_refused() {
    let numbers = [0_u8; 16];
    let sound = one_tensor(4);
    let sound = archive(&[("a/data.pkl", &sound, None), ("a/data/0", &numbers, None)]);
    let compressed = {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        zip.start_file("a/data.pkl", options).unwrap();
        zip.write_all(&one_tensor(4)).unwrap();
        zip.start_file("a/data/0", options).unwrap();
        zip.write_all(&vec![0; 1 << 20]).unwrap();
        zip.finish().unwrap().into_inner()
    };
    let overlapping = {
        // The second member has the first one's offset.
        let mut file = archive(&[
            ("a/data/0", &numbers, None),
            ("a/data/1", &numbers, None),
            ("a/data.pkl", &one_tensor(4), None),
        ]);
        let second = file.windows(4).enumerate().filter(|(_, bytes)| bytes == b"PK\x01\x02").nth(1).unwrap().0;
        file[second + 42..second + 46].copy_from_slice(&0_u32.to_le_bytes());
        file
    };
    let cases: [(Vec<u8>, &str); 12] = [
        (sound.clone(), "proj_in.bias is [2]"),
        (Vec::new(), "empty"),
        (b"PK\x03\x04".to_vec(), "torch file"),
        (archive(&[("a/data.pkl", &one_tensor(4), None)]), "no storage"),
        (archive(&[("a/data.pkl", &one_tensor(5), None), ("a/data/0", &numbers, None)]), "truncated"),
        (archive(&[("a/data.pkl", &one_tensor(1), None), ("a/data/0", &numbers, None)]), "outside its storage"),
        (archive(&[("a/data/0", &numbers, Some(1 << 30)), ("a/data.pkl", &one_tensor(4), None)]), "past its end"),
        (archive(&[("a/data.pkl", &one_tensor(4), None), ("b/data.pkl", &one_tensor(4), None)]), "several"),
        (archive(&[("a/b/data.pkl", &one_tensor(4), None)]), "no data.pkl"),
        (archive(&[("a/data.pkl", b"\x80\x02}.", None)]), "no tensors"),
        (overlapping, "overlap"),
        (compressed, "compressed"),
    ];
    for (file, word) in cases {
        let (place, weights) = with_pickles();
        fs::write(&weights, file).unwrap();
        assert_weights_refused(&place, &["model/prior", word]);
    }
    // Numbers in big-endian byte order.
    let big =
        archive(&[("a/data.pkl", &one_tensor(4), None), ("a/data/0", &numbers, None), ("a/byteorder", b"big", None)]);
    let (place, weights) = with_pickles();
    fs::write(&weights, big).unwrap();
    assert_weights_refused(&place, &[WEIGHTS, "big-endian"]);
}

#[test]
fn a_small_torch_file_takes_little_memory() {
    // One tensor under one long name, again and again.
    let key = vec![b'k'; 1 << 20];
    let mut pickle = b"\x80\x02}X".to_vec();
    pickle.extend((key.len() as u32).to_le_bytes());
    pickle.extend(&key);
    pickle.extend(b"q\x000");
    let tensor = one_tensor(4);
    let start = tensor.windows(6).position(|bytes| bytes == b"ctorch").unwrap();
    pickle.extend(&tensor[start..tensor.len() - 2]);
    pickle.extend(b"q\x010(");
    pickle.extend(b"h\x00h\x01".repeat(100_000));
    pickle.extend(b"u.");
    let (place, weights) = with_pickles();
    fs::write(&weights, archive(&[("a/data.pkl", &pickle, None), ("a/data/0", &[0; 16], None)])).unwrap();
    let script = format!(
        "ulimit -v 8388608; exec {:?} -m model -p x --steps 2 --out e.npy --threads 1",
        env!("CARGO_BIN_EXE_prior-embed")
    );
    let mut command = assert_cmd::Command::new("bash");
    command.current_dir(place.folder.path()).args(["-c", &script]);
    assert_refused(&place, &mut command, 2, &["model/prior", "does not fit", "kkkk…"]);
}

#[test]
fn names_in_files_cannot_draw_on_the_screen() {
    let mut pickle = one_tensor(4);
    let at = pickle.windows(4).position(|bytes| bytes == b"proj").unwrap();
    pickle[at..at + 4].copy_from_slice(b"\x1b[2J");
    let (place, weights) = with_pickles();
    fs::write(&weights, archive(&[("a/data.pkl", &pickle, None), ("a/data/0", &[0; 16], None)])).unwrap();
    assert_weights_refused(&place, &["1 unexpected (\\u{1b}[2J_in.bias)", " more)"]);
}

#[test]
fn converted_models_give_the_same_embeddings() {
    let place = Workplace::new();
    for source in [pickle_model(), model()] {
        let expected = embed(&place, &source, &[]);
        for (dtype, tolerance) in [(None, 1e-6), (Some("f32"), 1e-6), (Some("f16"), 1e-2), (Some("bf16"), 0.1)] {
            let mut command = place.bare();
            command.arg("convert").arg(&source).args(["out", "--overwrite"]);
            assert_done(command.args(dtype.map(|dtype| ["--dtype", dtype]).iter().flatten()));
            assert_eq!(place.names(), ["out"]);
            let difference = largest(&(embed(&place, &place.path("out"), &[]) - &expected));
            assert!(difference <= tolerance * largest(&expected), "{dtype:?}: {difference}");
            assert_eq!(dtype == Some("f16"), difference > 0.0 && tolerance == 1e-2, "{dtype:?} changed nothing");
        }
    }
    let mut command = place.bare();
    assert_done(command.args(["convert", "emoji", "small", "--dtype", "f16"]));
    assert!(place.path("small/zero_image_embed.safetensors").is_file());
    assert!(embed(&place, &place.path("small"), &[]).ncols() > 0);
}

/// Flips the sign of every 16-bit number in a safetensors file, and of half of the 32-bit ones.
fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[start..].iter_mut().skip(1).step_by(2).for_each(|byte| *byte ^= 0x80);
    fs::write(path, bytes).unwrap();
}

#[test]
fn stale_weights_are_ignored_as_by_the_libraries() {
    for (name, variant) in [("kandinsky22_sharded_bf16", ""), ("fp16_variant", ".fp16")] {
        let place = Workplace::new();
        let model = place.copy(&fixtures().join("pipelines").join(name), "model");
        let expected = embed(&place, &model, &[]);
        assert_done(place.bare().args(["convert", "model", "whole"]));
        let whole = |part: &str, stem: &str| {
            let target = model.join(part).join(format!("{stem}{variant}.safetensors"));
            fs::copy(place.path("whole").join(part).join(format!("{stem}.safetensors")), &target).unwrap();
            target
        };
        let shards = |part: &str| {
            let entries = model.join(part).read_dir().unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.to_str().unwrap().contains("-of-0")).collect::<Vec<_>>()
        };
        let assert_same = |what: &str| {
            let difference = largest(&(embed(&place, &model, &[]) - &expected));
            assert!(difference <= 1e-6 * largest(&expected), "{name}, {what}: {difference}");
        };
        // Saved in shards over a whole file: diffusers reads the shards, transformers the whole file.
        let stale = whole("prior", "diffusion_pytorch_model");
        spoil(&stale);
        assert_same("an older whole prior");
        whole("text_encoder", "model");
        shards("text_encoder").iter().for_each(|shard| spoil(shard));
        assert_same("an older text encoder in shards");
        // Saved whole over shards: diffusers removes the shards and leaves their index.
        whole("prior", "diffusion_pytorch_model");
        shards("prior").iter().for_each(|shard| fs::remove_file(shard).unwrap());
        assert_same("an older prior in shards");
        let mut command = place.bare();
        command.args(["-m", "model", "-p", "x", "--steps", "2", "--out", "e.npy"]);
        assert!(assert_done(&mut command).contains("00001-of-0"), "no warning about the index");
        fs::remove_file(place.path("e.npy")).unwrap();
        fs::remove_file(stale).unwrap();
        assert_weights_refused(&place, &["model/prior", "which is not there"]);
    }
}

#[test]
fn a_prior_is_converted_by_its_own_configuration() {
    let place = Workplace::new();
    let source = place.copy_model();
    let expected = embed(&place, &source, &[]);
    // Another model of the same sizes, which computes differently.
    let other = place.copy(&model(), "other").join("prior/config.json");
    let text = fs::read_to_string(&other).unwrap();
    let text = text.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 2");
    let text = text.replace("\"attention_head_dim\": 4", "\"attention_head_dim\": 8");
    fs::write(&other, text.replace("\"silu\"", "\"relu\"")).unwrap();
    assert!(largest(&(embed(&place, &place.path("other"), &[]) - &expected)) > 0.01);
    for prior in ["model/prior/diffusion_pytorch_model.safetensors", "model/prior"] {
        assert_done(place.bare().args(["convert", prior, "out", "--config", "other", "--overwrite"]));
        assert_eq!(embed(&place, &place.path("out"), &[]), expected, "{prior}");
        let written: Value = serde_json::from_slice(&fs::read(place.path("out/prior/config.json")).unwrap()).unwrap();
        assert_eq!((&written["num_attention_heads"], &written["time_embed_act_fn"]), (&4.into(), &"silu".into()));
    }
    // What lies beside a prior may be of another model.
    place.copy(&fixtures().join("checkpoints/karlo"), "karlo");
    fs::copy(model().join("text_encoder/config.json"), place.path("karlo/config.json")).unwrap();
    let mut command = place.bare();
    command.args(["convert", "karlo/prior.ckpt", "out", "--overwrite", "--config"]).arg(pickle_model());
    assert!(assert_done(&mut command).contains("karlo/config.json"));
    let expected = embed(&place, &pickle_model(), &[]);
    assert!(largest(&(embed(&place, &place.path("out"), &[]) - &expected)) <= 1e-6 * largest(&expected));
    // One that does not fit the rest is refused.
    let mut command = place.bare();
    command.args(["convert", "model/prior", "new", "--config"]).arg(pickle_model());
    assert_refused(&place, &mut command, 2, &["must be equal"]);
    assert_refused(&place, place.bare().args(["convert", "model/prior", "new"]), 2, &["--config"]);
}

#[test]
fn what_killed_conversions_leave_is_removed() {
    let place = Workplace::new();
    let leave = |name: &str, inside: &str| {
        fs::create_dir_all(place.path(name).join(inside)).unwrap();
        fs::write(place.path(name).join(inside).join("config.json"), "{}").unwrap();
    };
    leave(".outAb12Cd.part", "prior");
    leave(".outAb12Ce.old", "text_encoder");
    // Of another conversion that is still running, of another target, and of the user's own.
    leave(".outAb12Cf.part", "prior");
    leave(".other1aB2c.part", "prior");
    leave(".outAb12Cg.part", "diary");
    leave(".outAb12.part", "prior");
    let running = fs::File::open(place.path(".outAb12Cf.part")).unwrap();
    running.try_lock().unwrap();
    let mut command = place.bare();
    assert_done(command.arg("convert").arg(pickle_model()).arg("out"));
    let kept = [".other1aB2c.part", ".outAb12.part", ".outAb12Cf.part", ".outAb12Cg.part"];
    assert_eq!(place.names(), [&kept[..], &["out"]].concat());
    drop(running);
    // A kill came when a model had made room and the new one had not taken it.
    fs::rename(place.path("out"), place.path(".outAb12Ch.old")).unwrap();
    let mut command = place.bare();
    let output = command.arg("convert").arg(pickle_model()).arg("out").output().unwrap();
    assert!(output.status.code() == Some(2) && stderr(&output).contains("--overwrite"), "{output:?}");
    assert_eq!(place.names(), [".other1aB2c.part", ".outAb12.part", ".outAb12Cg.part", "out"]);
    assert!(embed(&place, &place.path("out"), &[]).ncols() > 0);
}

#[test]
fn priors_as_published_become_models() {
    let place = Workplace::new();
    let expected = embed(&place, &pickle_model(), &[]);
    for (source, tolerance) in [("karlo/prior.ckpt", 1e-6), ("kandinsky/prior_fp16.ckpt", 1e-2)] {
        let mut command = place.bare();
        command.arg("convert").arg(fixtures().join("checkpoints").join(source)).arg("out").arg("--overwrite");
        assert_done(command.arg("--config").arg(pickle_model()));
        let difference = largest(&(embed(&place, &place.path("out"), &[]) - &expected));
        assert!(difference <= tolerance * largest(&expected), "{source}: {difference}");
    }
    let index: Value = serde_json::from_slice(&fs::read(place.path("out/model_index.json")).unwrap()).unwrap();
    assert_eq!(index["prior"][1], "PriorTransformer");
    assert_eq!(index["image_encoder"], serde_json::json!([null, null]));
}

#[test]
fn conversions_that_cannot_be_are_refused_and_leave_nothing() {
    let place = Workplace::new();
    place.copy(&pickle_model(), "model");
    let karlo = fixtures().join("checkpoints/karlo/prior.ckpt");
    fs::copy(&karlo, place.path("prior.ckpt")).unwrap();
    fs::create_dir(place.path("precious")).unwrap();
    fs::write(place.path("precious/diary.txt"), "x").unwrap();
    place.copy(&pickle_model(), "other");
    fs::create_dir(place.path("other/unet")).unwrap();
    let cases: [(&[&str], &str); 13] = [
        (&["none", "out"], "none"),
        (&["model", "model"], "--overwrite"),
        (&["model", "model", "--overwrite"], "holds what is converted"),
        (&["model", "./model/../model/", "--overwrite"], "holds what is converted"),
        (&["model", "other", "--overwrite"], "unet"),
        (&["model", "precious", "--overwrite"], "no model"),
        (&["model", "prior.ckpt", "--overwrite"], "no folder"),
        (&["model", "no/such/out"], "no/such"),
        (&["model", "/"], "/"),
        (&["model", "out", "--dtype", "int8"], "--dtype"),
        (&["prior.ckpt", "out"], "--config"),
        (&["prior.ckpt", "out", "--config", "model"], "ViT-L-14_stats.th"),
        (&["model", "out", "--config", "model"], "--config"),
    ];
    for (options, word) in cases {
        assert_refused(&place, place.bare().arg("convert").args(options), 2, &[word]);
    }
    // Heads and layers of another model.
    let mut command = place.bare();
    command.arg("convert").arg(&karlo).args(["out", "--config"]).arg(model());
    assert_refused(&place, &mut command, 2, &["prior.ckpt", "does not fit"]);
    assert!(place.path("precious/diary.txt").is_file() && place.path("other/unet").is_dir());
    assert!(place.path("model/prior/diffusion_pytorch_model.bin").is_file());
}

#[test]
fn a_conversion_on_a_full_disk_leaves_nothing() {
    let place = Workplace::new();
    let script = format!(
        "trap '' XFSZ; ulimit -f 8; exec {:?} convert {:?} out",
        env!("CARGO_BIN_EXE_prior-embed"),
        pickle_model()
    );
    let mut command = assert_cmd::Command::new("bash");
    command.current_dir(place.folder.path()).args(["-c", &script]);
    assert_refused(&place, &mut command, 1, &["disk full"]);
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    use std::os::unix::process::ExitStatusExt;
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        for milliseconds in [0, 5, 10, 20, 40, 80, 160, 320] {
            let place = Workplace::new();
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_prior-embed"));
            command.current_dir(place.folder.path()).arg("convert").arg(model()).args(["out", "--dtype", "f16", "-q"]);
            let mut child = command.spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(milliseconds));
            std::process::Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
            let status = child.wait().unwrap();
            let expected: &[&str] = if status.success() { &["out"] } else { &[] };
            assert_eq!(place.names(), expected, "after {milliseconds} ms");
            // Before it listens, the signal itself ends it.
            let is_stopped = status.code() == Some(128 + number) || status.signal() == Some(number);
            assert!(status.success() || is_stopped, "{signal} after {milliseconds} ms: {status}");
        }
    }
}

#[test]
fn numbers_too_large_for_float16_are_named() {
    let place = Workplace::new();
    let path = place.copy_model().join("prior/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let at = 8 + header_len + header["norm_out.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&1e5_f32.to_le_bytes());
    fs::write(path, bytes).unwrap();
    let mut command = place.bare();
    command.args(["convert", "model", "out", "--dtype", "f16"]);
    assert_refused(&place, &mut command, 2, &["norm_out.weight", "bf16"]);
    assert_done(place.bare().args(["convert", "model", "out", "--dtype", "bf16"]));
}

#[test]
fn commands_and_options_do_not_mix() {
    let place = Workplace::new();
    assert_refused(
        &place,
        place.bare().args(["-p", "x", "--out", "e.npy", "convert", "emoji", "out"]),
        2,
        &["convert"],
    );
    assert_refused(&place, place.bare().args(["convert", "emoji"]), 2, &["DST"]);
    let output = place.bare().args(["convert", "--help"]).output().unwrap();
    assert!(output.status.success() && stderr(&output).is_empty());
}

/// Adds tensors of one number to a safetensors file.
pub fn add_tensors(path: &Path, names: &[&str]) {
    let file = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = file[8..].split_at(header_len);
    let (mut header, mut data): (Value, Vec<u8>) = (serde_json::from_slice(header).unwrap(), data.to_vec());
    for name in names {
        header[*name] = serde_json::json!({"dtype": "F32", "shape": [], "data_offsets": [data.len(), data.len() + 4]});
        data.extend([0; 4]);
    }
    let header = header.to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
}

#[test]
fn unneeded_tensors_are_ignored_with_a_warning() {
    let place = Workplace::new();
    let weights = place.copy_model().join("prior/diffusion_pytorch_model.safetensors");
    let expected = embed(&place, Path::new("model"), &[]);
    let sound = fs::read(&weights).unwrap();
    add_tensors(&weights, &["causal_attention_mask", "a.buffer"]);
    assert_eq!(embed(&place, Path::new("model"), &[]), expected);
    // Once, though each thread loads the model.
    fs::write(place.path("p.txt"), "a\nb\nc\nd\n".repeat(40)).unwrap();
    let options =
        ["-m", "model", "-f", "p.txt", "--steps", "2", "--threads", "2", "--batch-size", "4", "--out", "e.npy"];
    let told = assert_done(place.bare().args(options));
    let is_told = told.matches("not needed").count() == 1 && told.contains("a.buffer, causal_attention_mask");
    assert!(is_told && told.contains("model/prior"), "{told}");
    // Tensors that would change the result are not ignored.
    for name in ["proj_in.scale", "transformer_blocks.2.norm1.bias", "transformer_blocks.0.attn1.to_q.lora_A.weight"] {
        fs::write(&weights, &sound).unwrap();
        add_tensors(&weights, &[name]);
        let mut command = place.bare();
        command.args(["-m", "model", "-p", "x", "--steps", "2", "--out", "f.npy"]);
        assert_refused(&place, &mut command, 2, &["model/prior", "1 unexpected", name]);
    }
}

#[test]
fn a_whole_clip_serves_as_encoder_without_a_warning_about_its_other_half() {
    let place = Workplace::new();
    place.copy(&fixtures().join("pipelines/whole_clip"), "model");
    let told = assert_done(place.bare().args(["-m", "model", "-p", "x", "--steps", "2", "--out", "e.npz"]));
    assert!(!told.contains("vision_model") && !told.contains("logit_scale") && !told.contains("projection"), "{told}");
}
