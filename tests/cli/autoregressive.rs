//! Models with an autoregressive prior on the real binary.

use crate::checkpoints::add_tensors;
use crate::common::{Workplace, assert_done, assert_refused, edit_json, fixtures, off, prompts, read_npz, stderr};
use ndarray::s;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::fs;

use std::process::Command;

const WEIGHTS: &str = "prior/diffusion_pytorch_model.safetensors";

#[test]
fn a_row_depends_on_its_prompt_its_seed_and_the_settings_alone() {
    for name in ["small", "odd"] {
        let (place, _) = Workplace::with_model(&format!("autoregressive/{name}"));
        let all = ["-p", "a red apple", "-p", "two cats", "-p", "", "--samples-per-prompt", "2", "--seed", "7"];
        for more in [&["--guidance-scale", "1"][..], &["--guidance-scale", "3", "--temperature", "0.7"]] {
            let all = [&all[..], more].concat();
            let together = place.embed(&all);
            assert_eq!(together.nrows(), 6);
            let row = |row: usize| together.slice(s![row..=row, ..]).to_owned();
            if more.len() == 2 {
                assert!(off(&row(0), &row(1)) > 1e-2, "seeds differ");
            }
            for batch in ["1", "4"] {
                assert!(off(&place.embed(&[&all[..], &["--batch-size", batch]].concat()), &together) < 1e-5);
            }
            let alone = place.embed(&[&["-p", "two cats", "--seed", "10"][..], more].concat());
            assert!(off(&alone, &row(3)) < 1e-5, "{name}");
        }
        if name == "odd" {
            continue;
        }
        let greedy = |seed| place.embed(&["-p", "a red apple", "--temperature", "0", "--seed", seed]);
        assert_eq!(greedy("1"), greedy("2"));
        let warm = |temperature| place.embed(&["-p", "a red apple", "--temperature", temperature]);
        assert!(off(&warm("5"), &warm("1")) > 1e-2);
        assert_eq!(warm("1"), place.embed(&["-p", "a red apple"]));
        let guided = |scale| place.embed(&["-p", "a red apple", "--guidance-scale", scale]);
        assert_eq!(guided("1"), guided("0.5"));
        assert!(off(&guided("9"), &guided("1")) > 1e-2);
    }
}

#[test]
fn negative_embeddings_are_of_the_negative_prompt_or_of_a_black_image() {
    let (place, _) = Workplace::with_model("autoregressive/small");
    let prompts = ["-m", "model", "-p", "a red apple", "-p", "two cats", "--out", "e.npz", "--overwrite"];
    assert_done(place.bare().args(prompts).args(["--negative-prompt", "blurry"]));
    let arrays = |name| read_npz(fs::read(place.path("e.npz")).unwrap(), name);
    let negative = arrays("negative_image_embeds.npy");
    // As many rows more, whose seeds follow.
    let own = ["-p", "blurry", "-p", "blurry", "--seed", "2", "--negative-prompt", "blurry"];
    assert!(off(&place.embed(&own), &negative) < 1e-5);
    let image = arrays("image_embeds.npy");
    assert!(off(&place.embed(&["-p", "a red apple", "-p", "two cats"]), &image) > 1e-2, "it leads away");
    assert_done(place.bare().args(prompts));
    let zero = arrays("negative_image_embeds.npy");
    assert_eq!(zero.row(0), zero.row(1));
}

#[test]
fn options_of_other_priors_are_refused_with_the_reason() {
    let (place, _) = Workplace::with_model("autoregressive/small");
    let title = "an autoregressive prior";
    for (option, value, name) in [
        ("--steps", "25", "--steps"),
        ("--scheduler", "unclip", "scheduler"),
        ("--scheduler", "ddim", "scheduler"),
        ("--eta", "0.5", "eta"),
    ] {
        let mut command = place.bare();
        command.args(["-m", "model", "-p", "x", "--out", "e.npy", option, value]);
        assert_refused(&place, &mut command, 2, &[name, "model", title]);
    }
    fs::write(place.path("noise.npy"), npy(&[0.0; 16])).unwrap();
    let mut command = place.bare();
    command.args(["-m", "model", "-p", "x", "--out", "e.npy", "--latents", "noise.npy"]);
    assert_refused(&place, &mut command, 2, &["--latents", "model", title]);
    place.embed(&["-p", "x", "--scheduler", "auto"]);
    for temperature in ["-1", "nan", "inf", "hot"] {
        let mut command = place.bare();
        command.args(["-m", "model", "-p", "x", "--out", "f.npy", "--temperature", temperature]);
        assert_refused(&place, &mut command, 2, &["--temperature", temperature, "0 or above"]);
    }
    for other in ["pipelines/kandinsky22", "one_step/kandinsky22", "shap_e/shap_e"] {
        let mut command = place.bare();
        command.args(["-p", "x", "--out", "f.npy", "--temperature", "1", "-m"]).arg(fixtures().join(other));
        assert_refused(&place, &mut command, 2, &["--temperature", other, "only an autoregressive prior"]);
    }
}

#[test]
fn rows_may_have_a_guidance_scale_of_their_own_and_no_steps() {
    let (place, _) = Workplace::with_model("autoregressive/small");
    let lines = [json!({"prompt": "a"}), json!({"prompt": "b", "guidance_scale": 7.5}), json!({"prompt": "c"})];
    fs::write(place.path("p.jsonl"), lines.map(|line| format!("{line}\n")).concat()).unwrap();
    let rows = place.embed(&["-f", "p.jsonl", "--guidance-scale", "1"]);
    let alone = place.embed(&["-p", "b", "--guidance-scale", "7.5", "--seed", "1"]);
    assert!(off(&alone, &rows.slice(s![1..2, ..]).to_owned()) < 1e-5);
    fs::write(place.path("p.jsonl"), "{\"prompt\": \"a\", \"steps\": 3}\n").unwrap();
    let mut command = place.bare();
    command.args(["-m", "model", "-f", "p.jsonl", "--out", "rows.npy"]);
    assert_refused(&place, &mut command, 2, &["p.jsonl:1", "steps", "an autoregressive prior"]);
}

#[test]
fn info_and_stats_say_what_it_is() {
    for (name, tokens, buckets) in [("small", 16, 32), ("odd", 7, 24)] {
        let (place, _) = Workplace::with_model(&format!("autoregressive/{name}"));
        let output = place.bare().args(["info", "-m", "model"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let expected = format!(" numbers, autoregressive: {tokens} tokens of {buckets} buckets\n");
        assert!(text.contains(&expected) && !text.contains("scheduler  "), "{text}");
        let output = place.bare().args(["info", "-m", "model", "--json"]).output().unwrap();
        let info: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(info["prior"]["tokens"], json!({"count": tokens, "buckets": buckets}));
        assert_eq!((&info["prior"]["is_one_step"], &info["scheduler"]), (&json!(false), &json!(null)));
        place.embed(&["-p", "x", "--temperature", "0.5", "--stats", "stats.json"]);
        let stats: Value = serde_json::from_str(&fs::read_to_string(place.path("stats.json")).unwrap()).unwrap();
        let settings = ["steps", "guidance_scale", "temperature", "scheduler"].map(|key| &stats["settings"][key]);
        assert_eq!(settings, [&json!(1), &json!(4.0), &json!(0.5), &json!(null)]);
    }
}

#[test]
fn it_may_take_the_place_of_another_models_prior() {
    let (place, _) = Workplace::with_model("autoregressive/small");
    let expected = place.embed(&["-p", "a red apple"]);
    // A model of these sizes, whose scheduler and prior are not looked at.
    let base = place.copy(&fixtures().join("autoregressive/small"), "base");
    fs::remove_dir_all(base.join("prior")).unwrap();
    fs::create_dir(base.join("scheduler")).unwrap();
    fs::write(base.join("scheduler/scheduler_config.json"), "{").unwrap();
    edit_json(&base.join("model_index.json"), "scheduler", json!(["diffusers", "UnCLIPScheduler"]));
    for prior in ["model", "model/prior"] {
        let options = ["-m", "base", "--prior", prior, "-p", "a red apple", "--out", "f.npy", "--overwrite"];
        assert_done(place.bare().args(options));
        assert_eq!(place.npy("f.npy"), expected);
    }
    let mut command = place.bare();
    command.args(["-p", "x", "--out", "g.npy", "--prior", "model"]);
    assert_refused(&place, &mut command, 2, &["num_embeddings", "model"]);
}

#[test]
fn damaged_configurations_and_weights_are_named() {
    let config = "prior/config.json";
    for (key, value, word) in [
        ("num_tokens", json!(17), "num_tokens"),
        ("num_tokens", json!(0), "between 1"),
        ("num_buckets", json!(-3), "num_buckets"),
        ("num_buckets", json!(1_i64 << 40), "num_buckets"),
        ("num_buckets", json!(33), "token_embedding"),
        ("num_dot_product_buckets", json!(9), "dot_product_embedding"),
        ("num_dot_product_buckets", json!("many"), "num_dot_product_buckets"),
        ("num_layers", json!(1 << 20), "num_layers"),
        ("num_layers", json!(1), "transformer_blocks.1"),
        ("num_layers", json!(3), "transformer_blocks.2"),
        ("attention_head_dim", json!(1 << 19), "attention_head_dim"),
        ("attention_head_dim", json!(5), "[20"),
        ("embedding_dim", json!(1 << 20), "pca.weight"),
        ("encoder_hid_dim", json!(8), "hidden_size"),
        ("embedding_proj_dim", json!(8), "projection_dim"),
        ("num_embeddings", json!(25), "model_max_length"),
        ("dot_product_quantile", json!(1.0), "dot_product_quantile"),
        ("dot_product_quantile", json!(-0.1), "dot_product_quantile"),
        ("dot_product_quantile", json!("half"), "dot_product_quantile"),
    ] {
        let (place, model) = Workplace::with_model("autoregressive/small");
        edit_json(&model.join(config), key, value);
        let mut command = place.bare();
        assert_refused(&place, command.args(["-m", "model", "-p", "x", "--out", "e.npy"]), 2, &["model", word]);
        if key == "num_tokens" {
            assert_refused(&place, place.bare().args(["convert", "model", "converted"]), 2, &["model", word]);
        }
    }
    let (place, model) = Workplace::with_model("autoregressive/small");
    let text = fs::read_to_string(model.join(config)).unwrap();
    for (changed, word) in [
        (text.replace("\"num_tokens\": 16,", ""), "num_tokens"),
        ("[]".into(), "not a JSON object"),
        (text[..text.len() / 2].into(), config),
    ] {
        fs::write(model.join(config), changed).unwrap();
        let mut command = place.bare();
        assert_refused(&place, command.args(["-m", "model", "-p", "x", "--out", "e.npy"]), 2, &["model", word]);
    }
    let (place, model) = Workplace::with_model("autoregressive/small");
    let weights = fs::read(model.join(WEIGHTS)).unwrap();
    fs::write(model.join(WEIGHTS), &weights[..weights.len() - 1]).unwrap();
    let mut command = place.bare();
    assert_refused(&place, command.args(["-m", "model", "-p", "x", "--out", "e.npy"]), 2, &[WEIGHTS]);
    // A layer after the last would compute something else; another tensor is ignored with a warning.
    fs::write(model.join(WEIGHTS), &weights).unwrap();
    add_tensors(&model.join(WEIGHTS), &["a.buffer"]);
    let mut command = place.bare();
    let warning = assert_done(command.args(["-m", "model", "-p", "x", "--out", "e.npy"]));
    assert!(warning.contains("a.buffer") && !warning.contains("dot_product_values"), "{warning}");
    edit_json(&model.join("model_index.json"), "prior", json!(["prior_embed", "OtherPrior"]));
    let mut command = place.bare();
    command.args(["-m", "model", "-p", "x", "--out", "f.npy"]);
    assert_refused(&place, &mut command, 2, &["model_index.json", "OtherPrior", "AutoregressivePrior"]);
}

/// Also where no number of the embedding shows it: a logit that is not a number decides nothing.
#[test]
fn weights_that_are_not_finite_give_no_embedding() {
    for tensor in ["proj_to_tokens.bias", "proj_to_dot_product.bias", "bucket_values", "pca.bias", "norm_out.weight"] {
        let (place, model) = Workplace::with_model("autoregressive/small");
        let path = model.join(WEIGHTS);
        let mut bytes = fs::read(&path).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        let range = header[tensor]["data_offsets"].as_array().unwrap();
        let [start, end] = [0, 1].map(|end| 8 + header_len + range[end].as_u64().unwrap() as usize);
        let infinity = if tensor == "proj_to_tokens.bias" { f32::INFINITY } else { f32::NAN };
        bytes[start..end].chunks_exact_mut(4).for_each(|number| number.copy_from_slice(&infinity.to_le_bytes()));
        fs::write(&path, bytes).unwrap();
        for temperature in ["0", "1"] {
            let mut command = place.bare();
            command.args(["-m", "model", "-p", "x", "--out", "e.npy", "--temperature", temperature]);
            assert_refused(&place, &mut command, 1, &[&format!("prior/{tensor}"), "NaN or infinity"]);
        }
    }
}

#[test]
fn loras_and_lower_precisions_work_and_converted_models_give_the_same() {
    let (place, _) = Workplace::with_model("autoregressive/small");
    let prompt = ["-p", "a red apple", "-p", "two cats"];
    let expected = place.embed(&prompt);
    let [lora, other] = ["diffusers", "peft"].map(|name| fixtures().join("checkpoints/lora").join(name));
    let changed = place.embed(&[&prompt[..], &["--lora", lora.to_str().unwrap()]].concat());
    assert!(off(&changed, &expected) > 1e-3);
    let mut command = place.bare();
    command.args(["-m", "model", "-p", "x", "--out", "f.npy", "--lora"]).arg(other);
    assert_refused(&place, &mut command, 2, &["proj_in.weight", "another model"]);
    for dtype in ["bf16", "int8"] {
        let near = place.embed(&[&prompt[..], &["--dtype", dtype]].concat());
        assert!(near.iter().all(|number| number.is_finite()), "{dtype}");
    }
    for options in [&["model", "converted"][..], &["model/prior", "again", "--config", "model"]] {
        assert_done(place.bare().arg("convert").args(options));
        let index = fs::read_to_string(place.path(options[1]).join("model_index.json")).unwrap();
        let index: Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["prior"], json!(["prior_embed", "AutoregressivePrior"]));
        assert_eq!(index["_class_name"], "AutoregressivePriorPipeline");
        assert_eq!(place.embed(&[&prompt[..], &["-m", options[1]]].concat()), expected);
    }
}

/// Two rows of conditions that differ only where the mask hides a token, and a third.
#[test]
fn conditions_stand_in_the_place_of_prompts() {
    let (place, _) = Workplace::with_model("autoregressive/small");
    let mask: Vec<u8> = (0..3 * 24).map(|at| u8::from(at % 24 < 5)).collect();
    let number = |row: usize, at: usize| ((7 * at + row) as f32).sin();
    let states = (0..3 * 24 * 16).map(|at| {
        let (row, token) = (at / (24 * 16), at / 16 % 24);
        number(if row == 1 && token < 5 { 0 } else { row }, at % (24 * 16))
    });
    let embeds = (0..3 * 16).map(|at| number(at / 32, at % 16));
    let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let (states, embeds) = (bytes(states.collect()), bytes(embeds.collect()));
    let tensors = [
        ("text_embeds", TensorView::new(Dtype::F32, vec![3, 16], &embeds).unwrap()),
        ("text_encoder_hidden_states", TensorView::new(Dtype::F32, vec![3, 24, 16], &states).unwrap()),
        ("text_mask", TensorView::new(Dtype::BOOL, vec![3, 24], &mask).unwrap()),
    ];
    serialize_to_file(tensors, None, &place.path("c.safetensors")).unwrap();
    let rows = place.embed(&["--conditions", "c.safetensors", "--temperature", "0"]);
    assert_eq!((rows.nrows(), rows.row(0)), (3, rows.row(1)));
    assert!(off(&rows.slice(s![2..3, ..]).to_owned(), &rows.slice(s![0..1, ..]).to_owned()) > 1e-2);
}

#[test]
fn one_generator_draws_for_all_rows_and_seeds_may_be_made_of_prompts() {
    let (place, _) = Workplace::with_model("autoregressive/small");
    let prompts = ["-p", "a red apple", "-p", "two cats", "-p", "rain"];
    let call = place.embed(&[&prompts[..], &["--seed-layout", "call"]].concat());
    let rows = place.embed(&prompts);
    assert!(off(&call, &rows) > 1e-2, "other numbers");
    let by_prompt = place.embed(&[&prompts[..], &["--seed-by", "prompt"]].concat());
    let alone = place.embed(&["-p", "two cats", "--seed-by", "prompt"]);
    assert!(off(&alone, &by_prompt.slice(s![1..2, ..]).to_owned()) < 1e-5);
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes_and_only_with_its_temperature() {
    let (place, _) = Workplace::with_model("autoregressive/odd");
    let lines: String = (0..3000).map(|number| prompts(number) + "\n").collect();
    fs::write(place.path("p.txt"), lines).unwrap();
    let expected = place.embed(&["-f", "p.txt", "--batch-size", "4", "--temperature", "0.9"]);
    let options = ["-f", "p.txt", "--batch-size", "4", "--out", "r.npy"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_prior-embed"));
    command.args(["-m", "model", "-q", "--temperature", "0.9"]).args(options).current_dir(place.folder.path());
    let mut child = command.spawn().unwrap();
    place.wait_for_rows("r.npy", 100, &mut child);
    assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut command = place.bare();
    command.args(["-m", "model", "--resume"]).args(options);
    assert_refused(&place, &mut command, 2, &["--temperature", "0.9"]);
    assert_done(command.args(["--temperature", "0.9"]));
    assert_eq!(place.npy("r.npy"), expected);
}

/// A `.npy` file of one row.
fn npy(row: &[f32]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': (1, {}), }}", row.len());
    let header = format!("{header:<117}\n");
    let values = row.iter().flat_map(|value| value.to_le_bytes());
    b"\x93NUMPY\x01\x00".iter().copied().chain([118, 0]).chain(header.bytes()).chain(values).collect()
}
