//! Configurations with odd values are accepted or refused by key.

use super::{check_share, fixtures};
use crate::config::{self, Config};
use crate::diffusion::scheduler::SchedulerOptions;
use crate::diffusion::schedulers;
use crate::diffusion::schedulers::ddpm::{DdpmConfig, DdpmScheduler};
use crate::diffusion::schedulers::unclip::{UnclipConfig, UnclipScheduler};
use crate::error::Error;
use crate::files::Folder;
use crate::json::Json;
use crate::nn::image_encoder::ImageEncoderConfig;
use crate::nn::prior::{AutoregressiveConfig, AutoregressivePrior, PriorConfig, PriorTransformer};
use crate::nn::text_encoder::TextEncoderConfig;
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::precision::Precision;
use proptest::prelude::*;
use tch::Device;

/// Values as they may be written into a file, with numbers that only Python writes.
fn odd_value() -> impl Strategy<Value = String> {
    let text = prop::sample::select(vec![
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1",
        "2",
        "3",
        "16",
        "1048576",
        "1048577",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "1e999",
        "1.5",
        "1e-45",
        "3.5e38",
        "NaN",
        "Infinity",
        "-Infinity",
        "\"\"",
        "\"silu\"",
        "\"gelu\"",
        "\"epsilon\"",
        "\"linear\"",
        "[]",
        "[1, 2]",
        "{}",
        "{\"a\": null}",
    ]);
    text.prop_map(String::from)
}

/// The text of a configuration: that of a fixture, with some of its keys, or new ones, set to odd values.
fn with_odd_values(fixture: &str) -> impl Strategy<Value = String> + use<> {
    let text = std::fs::read_to_string(fixtures().join(fixture)).unwrap();
    let entries: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let keys: Vec<String> = entries.keys().cloned().chain(["new_key".into()]).collect();
    let odd = prop::collection::vec((prop::sample::select(keys), odd_value()), 0..3);
    odd.prop_map(move |odd| {
        let entries = entries.iter().map(|(key, value)| format!("{key:?}: {value}"));
        // A repeated key counts.
        let odd = odd.iter().map(|(key, value)| format!("{key:?}: {value}"));
        format!("{{{}}}", entries.chain(odd).collect::<Vec<_>>().join(", "))
    })
}

/// Parses a configuration; an error must name the file.
fn parse<C: Config>(text: &str) -> Result<Option<C>, TestCaseError> {
    match config::parse(text, "config.json") {
        Ok(config) => Ok(Some(config)),
        Err(error) => {
            let is_typed = matches!(&error, Error::Config { path, .. } if path == "config.json");
            prop_assert!(is_typed, "{error:?}");
            Ok(None)
        }
    }
}

#[test]
fn priors_of_odd_sizes_are_checked_against_their_weights() {
    let folder = Folder::from(&fixtures().join("pipelines/kandinsky22/prior"));
    let checkpoint = Checkpoint::open_folder(&folder).unwrap();
    let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
    check_share(300, 0.2..=0.9, with_odd_values("pipelines/kandinsky22/prior/config.json"), |text| {
        let Some(config) = parse::<PriorConfig>(&text)? else { return Ok(false) };
        match checkpoint.check("", placement, |weights| PriorTransformer::load(weights, &config)) {
            Ok(()) => {}
            Err(error) => prop_assert!(matches!(error, Error::MissingTensors { .. }), "{error:?}"),
        }
        Ok(true)
    });
}

#[test]
fn autoregressive_priors_of_odd_sizes_are_checked_against_their_weights() {
    let folder = Folder::from(&fixtures().join("autoregressive/small/prior"));
    let checkpoint = Checkpoint::open_folder(&folder).unwrap();
    let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
    check_share(300, 0.1..=0.9, with_odd_values("autoregressive/small/prior/config.json"), |text| {
        let Some(config) = parse::<AutoregressiveConfig>(&text)? else { return Ok(false) };
        match checkpoint.check("", placement, |weights| AutoregressivePrior::load(weights, &config)) {
            Ok(()) => {}
            Err(error) => prop_assert!(matches!(error, Error::MissingTensors { .. }), "{error:?}"),
        }
        Ok(true)
    });
}

#[test]
fn encoders_with_odd_values_are_accepted_or_refused() {
    check_share(500, 0.2..=0.95, with_odd_values("pipelines/kandinsky22/text_encoder/config.json"), |text| {
        Ok(parse::<TextEncoderConfig>(&text)?.is_some())
    });
    check_share(500, 0.2..=0.95, with_odd_values("pipelines/kandinsky22/image_encoder/config.json"), |text| {
        Ok(parse::<ImageEncoderConfig>(&text)?.is_some())
    });
}

#[test]
fn schedulers_with_odd_values_are_accepted_or_refused() {
    let fixture = "pipelines/kandinsky22/scheduler/scheduler_config.json";
    check_share(300, 0.2..=0.9, with_odd_values(fixture), |text| {
        let config = parse::<UnclipConfig>(&text)?;
        if let Some(config) = &config {
            let _ = UnclipScheduler::new(config).and_then(|mut scheduler| scheduler.set_timesteps(3));
        }
        Ok(config.is_some())
    });
    check_share(
        300,
        0.1..=0.9,
        with_odd_values("pipelines/stable_unclip_layout/prior_scheduler/scheduler_config.json"),
        |text| {
            let config = parse::<DdpmConfig>(&text)?;
            if let Some(config) = &config {
                let _ = DdpmScheduler::new(config).and_then(|mut scheduler| scheduler.set_timesteps(3));
            }
            Ok(config.is_some())
        },
    );
}

/// Keys of all schedulers, so that each class meets odd values of its own.
#[test]
fn every_scheduler_with_odd_values_is_accepted_or_refused() {
    let keys = [
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
        "clip_sample",
        "clip_sample_range",
        "rescale_betas_zero_snr",
        "solver_order",
        "algorithm_type",
        "solver_type",
        "lambda_min_clipped",
        "final_sigmas_type",
        "sigma_min",
        "sigma_max",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_lu_lambdas",
        "interpolation_type",
        "timestep_type",
        "set_alpha_to_one",
        "_use_default_values",
    ];
    let names = ["\"trailing\"", "\"log_linear\"", "\"sigma_min\"", "\"scaled_linear\"", "\"heun\"", "0.9", "[0.1, 1]"];
    let value = prop_oneof![odd_value(), prop::sample::select(names.map(String::from).to_vec())];
    let entries = prop::collection::vec((prop::sample::select(keys.to_vec()), value), 0..4);
    let inputs = (entries, prop::sample::select(schedulers::ALL.to_vec()), prop::sample::select(vec![1, 2, 9, 1000]));
    check_share(600, 0.1..=0.9, inputs, |(entries, class, steps)| {
        let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key:?}: {value}")).collect();
        let text = format!("{{{}}}", entries.join(", "));
        let config = match schedulers::configure(&text, "config.json", class, &SchedulerOptions::default()) {
            Ok(config) => config,
            Err(error) => {
                prop_assert!(matches!(&error, Error::Config { path, .. } if path == "config.json"), "{error:?}");
                return Ok(false);
            }
        };
        match config.scheduler(steps) {
            Ok(scheduler) => {
                prop_assert!(
                    !scheduler.timesteps().is_empty() && scheduler.noisy_steps() <= scheduler.timesteps().len()
                );
                prop_assert!(scheduler.timesteps().iter().all(|timestep| timestep.is_finite()));
                Ok(true)
            }
            Err(error) => {
                prop_assert!(matches!(error, Error::Option { option: "steps", .. }), "{error:?}");
                prop_assert!(steps > config.max_steps(), "{text}");
                Ok(false)
            }
        }
    });
}

/// JSON as Python writes it.
fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(Json::Int),
        (i64::MAX as u64 + 1..).prop_map(Json::Uint),
        any::<f64>().prop_map(Json::Float),
        prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]).prop_map(Json::Float),
        ".{0,8}".prop_map(Json::Text),
        prop::sample::select(vec!["NaN", "\\\"", "Infinity, -Infinity", "1e999"])
            .prop_map(|text| Json::Text(text.into())),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::List),
            prop::collection::btree_map(".{0,4}", inner, 0..6)
                .prop_map(|entries| Json::Object(entries.into_iter().collect())),
        ]
    })
}

fn write(json: &Json) -> String {
    let quoted = |text: &String| serde_json::to_string(text).unwrap();
    match json {
        Json::Null => "null".into(),
        Json::Bool(value) => value.to_string(),
        Json::Int(value) => value.to_string(),
        Json::Uint(value) => value.to_string(),
        Json::Float(value) if value.is_nan() => "NaN".into(),
        Json::Float(value) if value.is_infinite() => if *value > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Json::Float(value) => format!("{value:e}"),
        Json::Text(text) => quoted(text),
        Json::List(items) => format!("[{}]", items.iter().map(write).collect::<Vec<_>>().join(", ")),
        Json::Object(entries) => {
            let entries = entries.iter().map(|(key, value)| format!("{}: {}", quoted(key), write(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(" ,"))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn json_of_python_is_read_as_it_was_written(json in json()) {
        // NaN is not equal to itself, so the texts are compared.
        prop_assert_eq!(write(&Json::parse(&write(&json)).unwrap()), write(&json));
    }

    #[test]
    fn json_with_a_changed_character_is_read_or_refused(
        json in json(),
        at in any::<prop::sample::Index>(),
        char in prop::sample::select(b"{}[],:\"\\-.0eN \n".to_vec()),
    ) {
        let mut text = write(&json).into_bytes();
        let at = at.index(text.len());
        text[at] = char;
        let _ = Json::parse(&String::from_utf8_lossy(&text));
    }
}
