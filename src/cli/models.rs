//! `prior-embed models`: the models that have a name, and those in the cache.

use super::context::Context;
use super::progress::size;
use super::stdout::print;
use crate::files::{BuiltinModel, Folder};
use crate::hub::presets::{EMOJI_LICENCE, PRESETS};
use crate::hub::{Found, Hub, HubName, ModelName, ModelSource, Needs};
use crate::nn::prior::NetworkConfig;
use crate::pipeline::CONFIG;
use crate::pipeline::builtin;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// List the models that have a name, and those in the cache
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A model in the list.
#[derive(Debug, Serialize)]
struct ListedModel {
    name: String,
    repository: Option<String>,
    /// The components from other repositories.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<&'static str, &'static str>,
    /// Size of the files of a run; an estimate for a model that is not in the cache.
    bytes: u64,
    dimension: Option<u32>,
    licence: Option<&'static str>,
    cached: Cached,
}

/// How much of a model is on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Cached {
    BuiltIn,
    Yes,
    Partly,
    No,
}

impl Cached {
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
/// If there is no place for a cache, or printing fails.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let hub = Hub::new(context.hub.clone());
    let mut models: Vec<ListedModel> = builtin::MODELS.iter().copied().map(builtin_entry).collect();
    for preset in &PRESETS {
        let cached = look_up(&hub, &ModelSource::of_preset(preset)?);
        let state = cached.as_ref().map_or(Cached::No, |(_, state)| *state);
        let here = cached.filter(|_| state == Cached::Yes).map(|(model, _)| bytes_of(&model));
        let components = preset.components.iter().map(|(component, repository)| (component.option(), *repository));
        models.push(ListedModel {
            name: preset.name.into(),
            repository: Some(preset.repository.into()),
            components: components.collect(),
            bytes: here.unwrap_or(preset.bytes),
            dimension: Some(preset.dimension),
            licence: preset.licence,
            cached: state,
        });
    }
    models.extend(others(&hub)?);
    print(&if args.json { serde_json::to_string_pretty(&models)? } else { table(&models) })?;
    Ok(0)
}

fn builtin_entry(model: &'static BuiltinModel) -> ListedModel {
    let bytes = model.files.iter().map(|file| file.bytes.len() as u64).sum();
    let dimension = dimension_of(&Folder::builtin(model).join("prior"));
    let licence = Some(EMOJI_LICENCE);
    let (name, components) = (model.name.into(), BTreeMap::new());
    ListedModel { name, repository: None, components, bytes, dimension, licence, cached: Cached::BuiltIn }
}

/// The priors in the cache that have no name of their own.
fn others(hub: &Hub) -> Result<Vec<ListedModel>> {
    let is_preset = |repository: &String| PRESETS.iter().any(|preset| preset.repository == repository);
    let names = hub.cached_repositories()?.into_iter().filter(|repository| !is_preset(repository));
    let entry = |name: String| {
        let source = ModelName::Hub(HubName::newest(&name)).into();
        let (model, state) = look_up(hub, &source).filter(|(_, state)| *state == Cached::Yes)?;
        let prior =
            ["prior_prior", "prior"].into_iter().map(|name| model.folder.join(name)).find(|prior| prior.is_dir())?;
        let (bytes, dimension) = (bytes_of(&model), dimension_of(&prior));
        let (repository, components) = (Some(name.clone()), BTreeMap::new());
        Some(ListedModel { repository, components, name, bytes, dimension, licence: None, cached: state })
    };
    Ok(names.filter_map(entry).collect())
}

/// What the cache holds of a model; `None` also for a damaged one, which is no reason not to list the others.
fn look_up(hub: &Hub, source: &ModelSource) -> Option<(Found, Cached)> {
    let needs = Needs { sixteen_bit: true, ..Needs::ALL };
    let (model, is_usable) = hub.cached_model(source, needs).ok().flatten()?;
    Some((model, if is_usable { Cached::Yes } else { Cached::Partly }))
}

fn bytes_of(model: &Found) -> u64 {
    model.files.iter().filter_map(|file| file.bytes).fold(0, u64::saturating_add)
}

fn dimension_of(prior: &Folder) -> Option<u32> {
    let config = NetworkConfig::read(prior, CONFIG).ok()?;
    u32::try_from(config.embedding_dim()).ok()
}

fn table(models: &[ListedModel]) -> String {
    let header = ["name", "repository", "size", "dimension", "licence", "cached"].map(String::from);
    let row = |entry: &ListedModel| {
        let repositories: Vec<&str> =
            entry.repository.as_deref().into_iter().chain(entry.components.values().copied()).collect();
        let repository = if repositories.is_empty() { "-".into() } else { repositories.join(" + ") };
        let dimension = entry.dimension.map_or_else(|| "?".into(), |dimension| dimension.to_string());
        let licence = entry.licence.unwrap_or("see its page").to_string();
        [entry.name.clone(), repository, size(entry.bytes), dimension, licence, entry.cached.words().to_string()]
    };
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(models.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
