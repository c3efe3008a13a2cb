//! `prior-embed info`: describes a model.

use super::args::{ComponentArgs, RevisionArgs, text};
use super::context::Context;
use super::progress::{FetchProgress, size};
use super::stdout::print;
use crate::convert;
use crate::error::Component;
use crate::hub::{Hub, Model, ModelName, Needs, Wish};
use crate::pipeline::builtin::EMOJI;
use crate::pipeline::describe::{Description, TokenShape, describe};
use crate::pipeline::layout::{Layout, ModelFile};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Describe a model; downloads no weights
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A name from `prior-embed models`, owner/name[@revision] on the hub, or a folder [default: emoji]
    #[arg(value_name = "NAME", value_parser = text())]
    name: Option<String>,

    /// The same, as an option
    #[arg(short, long, value_name = "NAME", value_parser = text(), conflicts_with = "name")]
    model: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Say what runs take on this CPU
    #[arg(long)]
    memory: bool,

    #[command(flatten)]
    components: ComponentArgs,

    /// Image encoder from elsewhere, which may be a whole CLIPModel
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    image_encoder: Option<String>,

    #[command(flatten)]
    revision: RevisionArgs,
}

/// Everything that is printed.
#[derive(Debug, Serialize)]
struct Info {
    model: String,
    repository: Option<String>,
    revision: Option<String>,
    commit: Option<String>,
    folder: String,
    components: BTreeMap<&'static str, Origin>,
    #[serde(flatten)]
    description: Description,
    files: Vec<File>,
}

/// The components as JSON names them.
const COMPONENTS: [(&str, Component); 5] = [
    ("prior", Component::Prior),
    ("text_encoder", Component::TextEncoder),
    ("image_encoder", Component::ImageEncoder),
    ("tokenizer", Component::Tokenizer),
    ("scheduler", Component::Scheduler),
];

/// Where a component comes from.
#[derive(Debug, Serialize)]
struct Origin {
    /// The name that it was given by; null for the model's own.
    from: Option<String>,
    commit: Option<String>,
    folder: String,
}

impl Origin {
    fn of(component: Component, layout: &Layout, model: &Model) -> Option<Self> {
        let folder = layout.folder_of(component)?.to_string();
        let replaced = model.components.get(&component);
        let (from, commit) = replaced.map(|replaced| (replaced.name.clone(), replaced.commit.clone())).unzip();
        Some(Self { from, commit: commit.unwrap_or_else(|| model.commit.clone()), folder })
    }
}

#[derive(Debug, Serialize)]
struct File {
    path: String,
    bytes: Option<u64>,
    cached: bool,
}

/// Prints the description.
///
/// # Errors
/// If there is no such model, or it is damaged.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let model = args.name.as_deref().or(args.model.as_deref()).unwrap_or(EMOJI);
    if Path::new(model).is_file() {
        convert::check_prior(Path::new(model))?;
    }
    let components = args.components.given(args.image_encoder.as_deref());
    let source = args.revision.model(model, &components, &context.hub)?;
    let hub = Hub::new(context.hub.clone());
    let image_encoder = if args.image_encoder.is_some() { Wish::Needed } else { Wish::No };
    let needs = Needs { image_encoder, ..Needs::ALL };
    let found = hub.describe(&source, needs, &mut FetchProgress::new(&context.screen))?;
    let layout = Layout::find(&found.folder, &found.replacements()).map_err(|error| found.advise(error.into()))?;
    let description = describe(&layout, &found.files).map_err(|error| found.advise(error.into()))?;
    let (repository, revision) = match source.model {
        ModelName::Hub(name) => (Some(name.repository), Some(name.revision)),
        _ => (None, None),
    };
    let origins =
        COMPONENTS.into_iter().filter_map(|(key, component)| Some((key, Origin::of(component, &layout, &found)?)));
    let components = origins.collect();
    let file = |ModelFile { root, path, bytes, is_here }: ModelFile| {
        let path = if root.to_string() == found.folder.to_string() { path } else { root.path_of(&path) };
        File { path, bytes, cached: is_here }
    };
    let info = Info {
        model: model.into(),
        repository,
        revision,
        commit: found.commit.clone(),
        folder: found.folder.to_string(),
        components,
        description,
        files: found.files.into_iter().map(file).collect(),
    };
    print(&if args.json { serde_json::to_string_pretty(&info)? } else { lines(&info, args.memory) })?;
    Ok(0)
}

fn lines(info: &Info, with_memory: bool) -> String {
    let Description { prior, text_encoder, parameters, memory_bytes, run_bytes, scheduler, tokenizer } =
        &info.description;
    let mut lines = vec![line("model", &info.model)];
    if let (Some(repository), Some(revision)) = (&info.repository, &info.revision) {
        let commit = info.commit.as_ref().map_or_else(String::new, |commit| format!(" (commit {commit})"));
        lines.push(line("repository", &format!("{repository} at {revision}{commit}")));
    }
    lines.push(line("folder", &info.folder));
    // Where a component comes from, if it is not the model's own.
    let from = |key: &str| {
        let origin = info.components.get(key).and_then(|origin| Some((origin.from.as_ref()?, &origin.commit)));
        origin.map_or_else(String::new, |(from, commit)| {
            let commit = commit.as_ref().map_or_else(String::new, |commit| format!(" (commit {commit})"));
            format!("; from {from}{commit}")
        })
    };
    let [heads, width, layers] = [prior.num_attention_heads, prior.attention_head_dim, prior.num_layers];
    let how = match &prior.tokens {
        Some(TokenShape { count, buckets }) => format!(", autoregressive: {count} tokens of {buckets} buckets"),
        None if prior.is_one_step => ", one step".into(),
        None => String::new(),
    };
    let made = match prior.latents {
        Some(latents) => format!("{latents} latents of"),
        None => "embeddings of".into(),
    };
    let prior_line = format!(
        "{layers} layers of {heads} heads x {width}, {made} {} numbers{how}{}",
        prior.embedding_dim,
        from("prior")
    );
    lines.push(line("prior", &prior_line));
    let text_line = format!("CLIP, {} layers of width {}", text_encoder.num_hidden_layers, text_encoder.hidden_size);
    lines.push(line("text encoder", &(text_line + &from("text_encoder"))));
    if let Some(origin) = from("image_encoder").strip_prefix("; ") {
        lines.push(line("image encoder", origin));
    }
    if let Some(parameters) = parameters {
        let about = if parameters.is_estimate { "about " } else { "" };
        let [prior, text] =
            [parameters.prior, parameters.text_encoder].map(|count| format!("{:.1} M", count as f64 / 1e6));
        lines.push(line("parameters", &format!("{about}{prior} in the prior, {about}{text} in the text encoder")));
    }
    if let Some(memory) = memory_bytes {
        let memory = memory.iter().map(|(dtype, bytes)| format!("{dtype} {}", size(*bytes)));
        lines.push(line("weights take", &memory.collect::<Vec<_>>().join(", ")));
    }
    for (dtype, memory) in run_bytes.iter().flatten().filter(|_| with_memory) {
        let [one, short, long] = [memory.one_prompt, memory.short_prompts, memory.long_prompts].map(size);
        lines.push(line(
            "a run takes",
            &format!("{dtype} {one} for a prompt, {short} to {long} for short to long ones in batches"),
        ));
    }
    if let Some(scheduler) = scheduler {
        let scheduler_line = format!("{}, {} training timesteps", scheduler.class, scheduler.num_train_timesteps);
        lines.push(line("scheduler", &format!("{scheduler_line}, predicts the {}", scheduler.predicts())));
    }
    lines.push(line(
        "tokenizer",
        &format!("CLIP BPE, {} tokens, {} a prompt{}", tokenizer.vocabulary, tokenizer.max_tokens, from("tokenizer")),
    ));
    lines.push("files".into());
    for file in &info.files {
        let bytes = file.bytes.map_or_else(|| "?".into(), size);
        let here = if file.cached { "" } else { "  (not downloaded)" };
        lines.push(format!("  {bytes:>8}  {}{here}", file.path));
    }
    lines.join("\n")
}

fn line(name: &str, value: &str) -> String {
    format!("{name:13} {value}")
}
