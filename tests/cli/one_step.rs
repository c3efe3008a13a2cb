//! Models with a one-step prior on the real binary.

use crate::checkpoints::add_tensors;
use crate::common::{
    Workplace, assert_done, assert_refused, edit_json, fixtures, lowest_cosine, off, prompts, read_npz, stderr,
};
use ndarray::s;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

const WEIGHTS: &str = "prior/diffusion_pytorch_model.safetensors";

#[test]
fn a_row_depends_on_its_prompt_and_its_seed_alone() {
    for name in ["kandinsky22", "karlo"] {
        let (place, _) = Workplace::with_model(&format!("one_step/{name}"));
        let all = ["-p", "a red apple", "-p", "two cats", "-p", "", "--samples-per-prompt", "2", "--seed", "7"];
        let together = place.embed(&all);
        assert_eq!(together.nrows(), 6);
        assert!(off(&together.slice(s![0..1, ..]).to_owned(), &together.slice(s![1..2, ..]).to_owned()) > 1e-3);
        let one_by_one = place.embed(&[&all[..], &["--batch-size", "1"]].concat());
        assert!(off(&one_by_one, &together) < 1e-5, "{name}");
        let alone = place.embed(&["-p", "two cats", "--seed", "10"]);
        assert!(off(&alone, &together.slice(s![3..4, ..]).to_owned()) < 1e-5, "{name}");
    }
}

#[test]
fn negative_embeddings_are_of_the_negative_prompt_or_of_a_black_image() {
    let (place, _) = Workplace::with_model("one_step/kandinsky22");
    let prompts = ["-m", "model", "-p", "a red apple", "-p", "two cats", "--out", "e.npz", "--overwrite"];
    assert_done(place.bare().args(prompts).args(["--negative-prompt", "blurry"]));
    let arrays = |name| read_npz(fs::read(place.path("e.npz")).unwrap(), name);
    let (image, negative) = (arrays("image_embeds.npy"), arrays("negative_image_embeds.npy"));
    // As many rows more, whose seeds follow.
    assert!(off(&place.embed(&["-p", "blurry", "-p", "blurry", "--seed", "2"]), &negative) < 1e-5);
    // Nothing leads the image embeddings away from it.
    assert!(off(&place.embed(&["-p", "a red apple", "-p", "two cats"]), &image) < 1e-5);
    assert_done(place.bare().args(prompts));
    let zero = arrays("negative_image_embeds.npy");
    assert_eq!(zero.row(0), zero.row(1));
    let options = ["-m", "model", "-p", "x", "--out", "f.npy", "--negative-prompt", "blurry"];
    let warning = assert_done(place.bare().args(options));
    assert!(warning.contains("--negative-prompt has no effect") && warning.contains("one-step"), "{warning}");
}

#[test]
fn options_of_the_denoising_are_refused_with_the_reason() {
    let (place, _) = Workplace::with_model("one_step/kandinsky22");
    for (option, value, name) in [
        ("--steps", "1", "--steps"),
        ("--steps", "25", "--steps"),
        ("--guidance-scale", "4", "--guidance-scale"),
        ("--scheduler", "unclip", "scheduler"),
        ("--scheduler", "ddim", "scheduler"),
        ("--eta", "0.5", "eta"),
    ] {
        let mut command = place.bare();
        command.args(["-m", "model", "-p", "x", "--out", "e.npy", option, value]);
        assert_refused(&place, &mut command, 2, &[name, "model", "one-step"]);
    }
    place.embed(&["-p", "x", "--scheduler", "auto"]);
}

#[test]
fn a_row_with_settings_of_the_denoising_cannot_be_used() {
    let (place, _) = Workplace::with_model("one_step/kandinsky22");
    for (key, value) in [("steps", json!(25)), ("guidance_scale", json!(4.0))] {
        let lines = [json!({"prompt": "a"}), json!({"prompt": "b", key: value}), json!({"prompt": "c", "seed": 5})];
        fs::write(place.path("p.jsonl"), lines.map(|line| format!("{line}\n")).concat()).unwrap();
        let mut command = place.bare();
        command.args(["-m", "model", "-f", "p.jsonl", "--out", "rows.npy"]);
        assert_refused(&place, &mut command, 2, &["p.jsonl:2", key, "one-step"]);
        let warning = assert_done(command.args(["--on-error", "skip"]));
        assert!(warning.contains("1 row"), "{warning}");
        let rows = place.npy("rows.npy");
        let zeros: Vec<bool> = rows.rows().into_iter().map(|row| row.iter().all(|number| *number == 0.0)).collect();
        assert_eq!(zeros, [false, true, false]);
        fs::remove_file(place.path("rows.npy")).unwrap();
        fs::remove_file(place.path("rows.npy.errors.jsonl")).unwrap();
    }
}

#[test]
fn info_and_stats_say_that_there_is_one_step() {
    for name in ["kandinsky22", "karlo"] {
        let (place, _) = Workplace::with_model(&format!("one_step/{name}"));
        let output = place.bare().args(["info", "-m", "model"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(" numbers, one step\n") && !text.contains("scheduler  "), "{text}");
        let output = place.bare().args(["info", "-m", "model", "--json"]).output().unwrap();
        let info: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&info["prior"]["is_one_step"], &info["scheduler"]), (&json!(true), &json!(null)));
        place.embed(&["-p", "x", "--stats", "stats.json"]);
        let stats: Value = serde_json::from_str(&fs::read_to_string(place.path("stats.json")).unwrap()).unwrap();
        let settings = ["steps", "guidance_scale", "scheduler"].map(|key| &stats["settings"][key]);
        assert_eq!(settings, [&json!(1), &json!(1.0), &json!(null)]);
    }
}

#[test]
fn only_a_one_step_prior_does_without_a_scheduler() {
    let (place, model) = Workplace::with_model("one_step/kandinsky22");
    let expected = place.embed(&["-p", "a red apple"]);
    fs::write(model.join("scheduler/scheduler_config.json"), "{").unwrap();
    assert_eq!(place.embed(&["-p", "a red apple"]), expected);
    fs::remove_dir_all(model.join("scheduler")).unwrap();
    assert_eq!(place.embed(&["-p", "a red apple"]), expected);
    fs::remove_file(model.join("model_index.json")).unwrap();
    assert_eq!(place.embed(&["-p", "a red apple"]), expected);
    let place = Workplace::new();
    fs::remove_dir_all(place.copy_model().join("scheduler")).unwrap();
    let mut command = place.bare();
    command.args(["-m", "model", "-p", "x", "--out", "e.npy"]);
    assert_refused(&place, &mut command, 2, &["model has no scheduler", "scheduler/"]);
}

#[test]
fn what_contradicts_itself_is_named() {
    let refused = |change: &dyn Fn(&Path), words: &[&str]| {
        let (place, model) = Workplace::with_model("one_step/kandinsky22");
        change(&model);
        let run = ["-m", "model", "-p", "x", "--out", "e.npy"];
        for options in [&run[..], &["convert", "model", "converted"], &["info", "model"]] {
            assert_refused(&place, place.bare().args(options), 2, words);
        }
    };
    let config = |model: &Path, key, value| edit_json(&model.join("prior/config.json"), key, value);
    let keys = ["config.json", "additional_embeddings", "time_embed_act_fn", "one-step"];
    refused(&|model| config(model, "time_embed_act_fn", json!("silu")), &keys);
    let tensor = "time_embedding.linear_1.weight";
    refused(&|model| config(model, "additional_embeddings", json!(4)), &[tensor, "additional_embeddings", "one-step"]);
    refused(&|model| add_tensors(&model.join(WEIGHTS), &[tensor]), &[tensor, "additional_embeddings", "one-step"]);
    let control = "embedding_control.weight";
    refused(&|model| add_tensors(&model.join(WEIGHTS), &[control]), &[control, "λ-ECLIPSE", "not supported"]);
}

#[test]
fn loras_and_lower_precisions_work_and_converted_models_give_the_same() {
    let (place, _) = Workplace::with_model("one_step/kandinsky22");
    let prompt = ["-p", "a red apple", "-p", "two cats"];
    let expected = place.embed(&prompt);
    let lora = fixtures().join("checkpoints/lora/peft");
    let changed = place.embed(&[&prompt[..], &["--lora", lora.to_str().unwrap()]].concat());
    assert!(off(&changed, &expected) > 1e-3);
    for dtype in ["bf16", "int8"] {
        let near = place.embed(&[&prompt[..], &["--dtype", dtype]].concat());
        assert!(lowest_cosine(&near, &expected) > 0.99, "{dtype}");
    }
    for options in [&["model", "converted"][..], &["model/prior", "again", "--config", "model"]] {
        assert_done(place.bare().arg("convert").args(options));
        assert_eq!(place.embed(&[&prompt[..], &["-m", options[1]]].concat()), expected);
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let (place, _) = Workplace::with_model("one_step/karlo");
    let lines: String = (0..5000).map(|number| prompts(number) + "\n").collect();
    fs::write(place.path("p.txt"), lines).unwrap();
    let expected = place.embed(&["-f", "p.txt", "--batch-size", "4"]);
    let options = ["-f", "p.txt", "--batch-size", "4", "--out", "r.npy"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_prior-embed"));
    command.args(["-m", "model", "-q"]).args(options).current_dir(place.folder.path());
    let mut child = command.spawn().unwrap();
    place.wait_for_rows("r.npy", 100, &mut child);
    assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_done(place.bare().args(["-m", "model", "--resume"]).args(options));
    assert_eq!(place.npy("r.npy"), expected);
}
