//! `prior-embed models`: which models have a name, and which are on this machine.

use super::args::ModelsArgs;
use super::print;
use super::progress::size;
use crate::config;
use crate::hub::presets::{EMOJI_LICENCE, PRESETS};
use crate::hub::{Hub, HubName, Model, Needs, Wish};
use crate::nn::prior::PriorConfig;
use crate::pipeline::builtin::{EMOJI, EMOJI_MODEL};
use anyhow::Result;
use serde::Serialize;

/// A model in the list.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    repository: Option<String>,
    /// Of the files of a run; about, for a model that is not here.
    bytes: u64,
    dimension: Option<u32>,
    licence: Option<&'static str>,
    cached: State,
}

/// How much of a model is on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    BuiltIn,
    Yes,
    Partly,
    No,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            Self::BuiltIn => "built in",
            Self::Yes => "yes",
            Self::Partly => "partly",
            Self::No => "no",
        }
    }
}

/// Prints the list.
///
/// # Errors
/// If there is no folder that could be the cache, or printing fails.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let hub = Hub::new(args.hub.options());
    let mut entries = vec![builtin_entry()];
    entries.extend(PRESETS.iter().map(|preset| {
        let cached = look_up(&hub, preset.repository);
        let state = cached.as_ref().map_or(State::No, |(_, state)| *state);
        let here = cached.filter(|_| state == State::Yes).map(|(model, _)| bytes_of(&model));
        Entry {
            name: preset.name.into(),
            repository: Some(preset.repository.into()),
            bytes: here.unwrap_or(preset.bytes),
            dimension: Some(preset.dimension),
            licence: Some(preset.licence),
            cached: state,
        }
    }));
    entries.extend(others(&hub)?);
    if args.json { print(&serde_json::to_string_pretty(&entries)?) } else { print(&table(&entries)) }
}

fn builtin_entry() -> Entry {
    let bytes = EMOJI_MODEL.files.iter().map(|file| file.bytes.len() as u64).sum();
    let dimension = dimension_of(&crate::files::Folder::builtin(&EMOJI_MODEL).join("prior"));
    let licence = Some(EMOJI_LICENCE);
    Entry { name: EMOJI.into(), repository: None, bytes, dimension, licence, cached: State::BuiltIn }
}

/// The priors in the cache that have no short name.
fn others(hub: &Hub) -> Result<Vec<Entry>> {
    let is_preset = |repository: &String| PRESETS.iter().any(|preset| preset.repository == repository);
    let names = hub.cached_repositories()?.into_iter().filter(|repository| !is_preset(repository));
    let entry = |name: String| {
        let (model, state) = look_up(hub, &name).filter(|(_, state)| *state == State::Yes)?;
        let prior =
            ["prior_prior", "prior"].into_iter().map(|name| model.folder.join(name)).find(|prior| prior.is_dir())?;
        let (bytes, dimension) = (bytes_of(&model), dimension_of(&prior));
        Some(Entry { repository: Some(name.clone()), name, bytes, dimension, licence: None, cached: state })
    };
    Ok(names.filter_map(entry).collect())
}

/// What the cache has of a model. A list is no place to complain of one that is broken.
fn look_up(hub: &Hub, repository: &str) -> Option<(Model, State)> {
    let needs = Needs { weights: true, sixteen_bit: true, image_encoder: Wish::No };
    let (model, is_usable) = hub.cached_model(&HubName::newest(repository), needs).ok().flatten()?;
    Some((model, if is_usable { State::Yes } else { State::Partly }))
}

fn bytes_of(model: &Model) -> u64 {
    model.files.iter().filter_map(|file| file.bytes).fold(0, u64::saturating_add)
}

fn dimension_of(prior: &crate::files::Folder) -> Option<u32> {
    let config: PriorConfig = config::read(prior, "config.json").ok()?;
    u32::try_from(config.embedding_dim).ok()
}

fn table(entries: &[Entry]) -> String {
    let header = ["name", "repository", "size", "dimension", "licence", "cached"].map(String::from);
    let row = |entry: &Entry| {
        let repository = entry.repository.clone().unwrap_or_else(|| "-".into());
        let dimension = entry.dimension.map_or_else(|| "?".into(), |dimension| dimension.to_string());
        let licence = entry.licence.unwrap_or("see its page").to_string();
        [entry.name.clone(), repository, size(entry.bytes), dimension, licence, entry.cached.words().to_string()]
    };
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(entries.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
