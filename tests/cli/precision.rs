//! Number types and processors.

use crate::common::{Workplace, assert_done, assert_refused, largest, lowest_cosine, read_npy, stderr};
use ndarray::Array2;
use serde_json::Value;
use std::fs;

const PROMPTS: [&str; 4] = ["-p", "a red apple", "-p", "two cats"];

/// The embeddings of a run with options and environment variables, and what it printed.
fn embed(options: &[&str], environment: &[(&str, &str)]) -> (Array2<f32>, String) {
    let place = Workplace::new();
    let mut command = place.command();
    command.args(PROMPTS).args(["--out", "e.npy"]).args(options).envs(environment.iter().copied());
    let printed = assert_done(&mut command);
    (read_npy(&fs::read(place.path("e.npy")).unwrap()), printed)
}

#[test]
fn processors_without_wide_vectors_give_the_same_numbers() {
    let (expected, _) = embed(&[], &[]);
    for cap in ["SSE41", "AVX2", "AVX512_CORE"] {
        for aten in ["default", "avx2"] {
            let (actual, _) = embed(&[], &[("ONEDNN_MAX_CPU_ISA", cap), ("ATEN_CPU_CAPABILITY", aten)]);
            let error = largest(&(&actual - &expected)) / largest(&expected);
            assert!(error < 1e-4, "{cap}, {aten}: off by {error:.1e}");
        }
    }
}

#[test]
fn int8_is_right_on_any_processor() {
    let (exact, _) = embed(&[], &[]);
    for cap in ["ALL", "AVX512_CORE", "AVX2", "SSE41"] {
        let (near, _) = embed(&["--dtype", "int8"], &[("ONEDNN_MAX_CPU_ISA", cap)]);
        let cosine = lowest_cosine(&near, &exact);
        assert!(cosine > 0.99, "{cap}: cosine {cosine}");
    }
}

#[test]
fn a_type_that_is_slow_here_gives_way_to_float32_with_a_warning() {
    let (exact, _) = embed(&[], &[]);
    let (halves, warning) = embed(&["--dtype", "f16"], &[]);
    assert!(warning.contains("--dtype f16") && warning.lines().count() == 1, "{warning}");
    assert_eq!(halves, exact);
}

/// Whether this processor has bfloat16 or not, without AVX-512 oneDNN has none.
#[test]
fn without_bfloat16_products_the_weights_alone_are_rounded() {
    let (exact, _) = embed(&[], &[]);
    let (rounded, warning) = embed(&["--dtype", "bf16"], &[("ONEDNN_MAX_CPU_ISA", "AVX2")]);
    // Where there are no panels either, float32 stands in, with a warning.
    assert_eq!(warning.contains("--dtype bf16"), rounded == exact, "{warning}");
    assert!(lowest_cosine(&rounded, &exact) > 0.9999);
}

#[test]
fn statistics_tell_time_memory_and_settings() {
    let place = Workplace::new();
    let mut command = place.command();
    command.args(PROMPTS).args(["--out", "e.npy", "--stats", "s.json", "--seed", "7", "--threads", "1"]);
    command.args(["--dtype", "int8", "--batch-size", "1", "-n", "blurry"]);
    assert_done(&mut command);
    let stats: Value = serde_json::from_str(&fs::read_to_string(place.path("s.json")).unwrap()).unwrap();
    assert_eq!(stats["rows"], 2);
    let seconds = |name: &str| stats["seconds"][name].as_f64().unwrap();
    let parts: f64 = ["load", "text", "prior", "write"].map(seconds).iter().sum();
    assert!(parts > 0.0 && parts <= seconds("total"), "{stats}");
    assert!(stats["peak_rss_bytes"].as_u64().unwrap() > 10_000_000);
    for (key, value) in [("seed", 7), ("threads", 1), ("batch_size", 1), ("steps", 3)] {
        assert_eq!(stats["settings"][key], value, "{key}");
    }
    assert_eq!(stats["settings"]["dtype"], "int8");
    assert_eq!(stats["settings"]["negative_prompt"], "blurry");
    assert_refused(&place, place.command().args(["-p", "x", "--out", "f.npy", "--stats", "s.json"]), 2, &["s.json"]);
}

/// A file with a hole in it stands in for a model that no machine has the memory for.
#[test]
fn a_model_that_does_not_fit_into_memory_is_noticed_before_it_is_read() {
    let place = Workplace::new();
    let weights = place.copy_model().join("prior/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let data_len = (bytes.len() - 8 - header_len) as u64;
    let huge = 1_u64 << 42;
    header["huge"] =
        serde_json::json!({"dtype": "F32", "shape": [huge / 4], "data_offsets": [data_len, data_len + huge]});
    let header = header.to_string();
    let mut start = (header.len() as u64).to_le_bytes().to_vec();
    start.extend(header.as_bytes());
    start.extend(&bytes[8 + header_len..]);
    fs::write(&weights, &start).unwrap();
    fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(start.len() as u64 + huge).unwrap();
    let mut command = place.bare();
    command.args(["-m", "model", "-p", "x", "--out", "e.npy"]);
    assert_refused(&place, &mut command, 1, &["memory", "4398", "free", "--dtype"]);
}

#[test]
fn a_batch_larger_than_memory_is_refused() {
    let place = Workplace::new();
    let mut command = place.command();
    command.args(["-p", "x", "--samples-per-prompt", "2000000000", "--batch-size", "2000000000", "--out", "e.npy"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--batch-size"), "{}", stderr(&output));
}

/// Each worker has a pipeline of its own. What all take together is within what was planned, and so is what the others add
/// to the first.
#[test]
fn several_workers_take_no_more_memory_than_was_planned() {
    let place = Workplace::new();
    let line = |number: usize| format!("{number} {}\n", "red apples and green pears ".repeat(8));
    fs::write(place.path("p.txt"), (0..1024).map(line).collect::<String>()).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let [one, several] = [1, cores.min(8)].map(|threads| {
        let mut command = place.bare();
        command.args(["-q", "-f", "p.txt", "--out", "e.npy", "--overwrite", "--stats", "s.json", "--steps", "3"]);
        assert_done(command.args(["--batch-size", "64", "--threads", &threads.to_string()]));
        let stats: Value = serde_json::from_str(&fs::read_to_string(place.path("s.json")).unwrap()).unwrap();
        let [workers, batch_size] = ["workers", "batch_size"].map(|key| stats["settings"][key].as_u64().unwrap());
        assert!((1..=threads as u64).contains(&workers) && batch_size == 64, "{stats}");
        ["planned_bytes", "peak_rss_bytes"].map(|key| stats[key].as_u64().unwrap())
    });
    for [planned, peak] in [one, several] {
        assert!(peak <= planned, "{peak} of {planned} bytes");
    }
    let [planned, peak] = [0, 1].map(|place| several[place].saturating_sub(one[place]));
    assert!(peak <= planned, "the others add {peak} of {planned} bytes");
}

/// What `info --memory` says of the built-in model, most of which is libtorch's own, beside what a run took.
#[test]
fn info_says_what_a_run_takes() {
    let place = Workplace::new();
    let output = place.bare().args(["info", "--memory"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("a run takes")).count(), 3, "{text}");
    let output = place.bare().args(["info", "--json"]).output().unwrap();
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    let said = info["run_bytes"]["f32"]["one_prompt"].as_u64().unwrap();
    let mut command = place.bare();
    command.args(["-q", "-p", "a cat", "--out", "e.npy", "--stats", "s.json", "--threads", "1", "--dtype", "f32"]);
    assert_done(&mut command);
    let stats: Value = serde_json::from_str(&fs::read_to_string(place.path("s.json")).unwrap()).unwrap();
    let took = stats["peak_rss_bytes"].as_u64().unwrap();
    assert!((said / 2..2 * said).contains(&took), "{took} bytes, and not about {said}");
}
