//! `prior-embed info`: describes a model.

use super::args::{RevisionArgs, text};
use super::context::Context;
use super::progress::{FetchProgress, size};
use super::stdout::print;
use crate::hub::{Hub, ModelName, Needs, Wish};
use crate::pipeline::builtin::EMOJI;
use crate::pipeline::describe::{Description, describe};
use crate::pipeline::layout::ModelFile;
use anyhow::Result;
use serde::Serialize;

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
    #[serde(flatten)]
    description: Description,
    files: Vec<File>,
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
    let name = args.revision.model(model, &context.hub)?;
    let hub = Hub::new(context.hub.clone());
    let needs = Needs { weights: true, text_encoder: true, sixteen_bit: false, image_encoder: Wish::No };
    let found = hub.describe(&name, needs, &mut FetchProgress::new(&context.screen))?;
    let description = describe(&found.folder, &found.files).map_err(|error| found.advise(error.into()))?;
    let (repository, revision) = match name {
        ModelName::Hub(name) => (Some(name.repository), Some(name.revision)),
        _ => (None, None),
    };
    let file = |ModelFile { path, bytes, is_here }| File { path, bytes, cached: is_here };
    let info = Info {
        model: model.into(),
        repository,
        revision,
        commit: found.commit,
        folder: found.folder.to_string(),
        description,
        files: found.files.into_iter().map(file).collect(),
    };
    print(&if args.json { serde_json::to_string_pretty(&info)? } else { lines(&info) })?;
    Ok(0)
}

fn lines(info: &Info) -> String {
    let Description { prior, text_encoder, parameters, memory_bytes, scheduler, tokenizer } = &info.description;
    let mut lines = vec![line("model", &info.model)];
    if let (Some(repository), Some(revision)) = (&info.repository, &info.revision) {
        let commit = info.commit.as_ref().map_or_else(String::new, |commit| format!(" (commit {commit})"));
        lines.push(line("repository", &format!("{repository} at {revision}{commit}")));
    }
    lines.push(line("folder", &info.folder));
    let [heads, width, layers] = [prior.num_attention_heads, prior.attention_head_dim, prior.num_layers];
    let prior_line =
        format!("{layers} layers of {heads} heads x {width}, embeddings of {} numbers", prior.embedding_dim);
    lines.push(line("prior", &prior_line));
    let text_line = format!("CLIP, {} layers of width {}", text_encoder.num_hidden_layers, text_encoder.hidden_size);
    lines.push(line("text encoder", &text_line));
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
    let scheduler_line = format!("{}, {} training timesteps", scheduler.class, scheduler.num_train_timesteps);
    lines.push(line("scheduler", &format!("{scheduler_line}, predicts the {}", scheduler.predicts())));
    lines.push(line(
        "tokenizer",
        &format!("CLIP BPE, {} tokens, {} a prompt", tokenizer.vocabulary, tokenizer.max_tokens),
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
