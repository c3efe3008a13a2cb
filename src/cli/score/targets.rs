//! What every row is compared with: the embeddings of prompts, or of pictures.

use super::table::Target;
use crate::bad_input;
use crate::cli::args::{RevisionArgs, text, warn_no_effect};
use crate::cli::context::Context;
use crate::cli::progress::FetchProgress;
use crate::error::Component;
use crate::hub::{Hub, Needs};
use crate::output::provenance::{self, files_of};
use crate::pipeline::Pipeline;
use crate::pipeline::builtin::EMOJI;
use crate::rows::Bank;
use crate::search::Direction;
use crate::weights::checkpoint::Placement;
use crate::weights::precision::Precision;
use anyhow::Result;
use clap::Args;
use ndarray::ArrayView1;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tch::Device;

/// Which encoders.
#[derive(Debug, Args)]
pub(super) struct EncoderArgs {
    /// Model whose encoders encode prompts and pictures: the one that EMBS are of [default: emoji]
    #[arg(help_heading = "Model", short, long, value_name = "NAME", value_parser = text())]
    model: Option<String>,

    /// Text encoder from elsewhere, which may be a whole CLIPModel; the tokenizer stays that of --model
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    text_encoder: Option<String>,

    /// Tokenizer from elsewhere
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    tokenizer: Option<String>,

    /// Image encoder from elsewhere, which may be a whole CLIPModel
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    image_encoder: Option<String>,

    #[command(flatten)]
    revision: RevisionArgs,
}

impl EncoderArgs {
    /// Warns of what is given, as all of it has no effect.
    pub(super) fn warn_unused(&self, why: &str) {
        let given = [("--model", &self.model), ("--revision", &self.revision.revision)].into_iter();
        let of_all = [Component::TextEncoder, Component::ImageEncoder].map(|encoder| self.of_encoder(encoder));
        let of_all = of_all.into_iter().flatten().map(|(_, option, name)| (option, name));
        warn_of(given.chain(of_all), why);
    }

    /// The options of one encoder, and what they are for.
    fn of_encoder(&self, encoder: Component) -> Vec<(Component, &'static str, &Option<String>)> {
        match encoder {
            Component::ImageEncoder => vec![(Component::ImageEncoder, "--image-encoder", &self.image_encoder)],
            _ => vec![
                (Component::TextEncoder, "--text-encoder", &self.text_encoder),
                (Component::Tokenizer, "--tokenizer", &self.tokenizer),
            ],
        }
    }
}

fn warn_of<'a>(options: impl Iterator<Item = (&'static str, &'a Option<String>)>, why: &str) {
    options.filter(|(_, value)| value.is_some()).for_each(|(option, _)| warn_no_effect(option, why));
}

/// What is encoded to compare with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Queries<'a> {
    Prompts(&'a [String]),
    Pictures(&'a [PathBuf]),
}

impl<'a> Queries<'a> {
    fn encoder(self) -> Component {
        match self {
            Self::Prompts(_) => Component::TextEncoder,
            Self::Pictures(_) => Component::ImageEncoder,
        }
    }

    fn targets(self) -> Vec<Target<'a>> {
        match self {
            Self::Prompts(prompts) => prompts.iter().map(|text| Target::Prompt(text)).collect(),
            Self::Pictures(paths) => paths.iter().map(|path| Target::Picture(path)).collect(),
        }
    }
}

/// What `embeds`, those in `path`, are compared with, and the directions of its embeddings.
///
/// # Errors
/// [`bad_input::BadInput`](crate::bad_input::BadInput) if `embeds` are of another width, and whatever goes wrong on the
/// way.
pub(super) fn encode<'a>(
    queries: Queries<'a>,
    embeds: &Bank,
    path: &Path,
    args: &EncoderArgs,
    context: &Context,
) -> Result<Vec<(Target<'a>, Direction)>> {
    let encoder = queries.encoder();
    let (other, why) = match queries {
        Queries::Prompts(_) => (Component::ImageEncoder, "prompts are encoded without it"),
        Queries::Pictures(_) => (Component::TextEncoder, "pictures are encoded without it"),
    };
    warn_of(args.of_encoder(other).into_iter().map(|(_, option, name)| (option, name)), why);
    let components = args.of_encoder(encoder).into_iter();
    let components: Vec<_> =
        components.filter_map(|(component, _, name)| Some((component, name.as_deref()?))).collect();
    let source = args.revision.model(args.model.as_deref().unwrap_or(EMOJI), &components, &context.hub)?;
    let needs = match queries {
        Queries::Prompts(_) => Needs { prior: false, ..Needs::ALL },
        Queries::Pictures(_) => Needs::PICTURES,
    };
    let model = Hub::new(context.hub.clone()).open(&source, needs, &mut FetchProgress::new(&context.screen))?;
    let encode = || -> Result<Vec<(Target, Direction)>> {
        let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
        let mut pipeline = Pipeline::open_with(&model.folder, &model.replacements(), placement, Default::default())?;
        let (dim, kind) = match queries {
            Queries::Prompts(_) => (pipeline.text_embedding_dim(), "text"),
            Queries::Pictures(_) => (pipeline.embedding_dim(), "image"),
        };
        if embeds.dim() != dim {
            let (name, found, folder) = (embeds.name(), embeds.dim(), pipeline.folder());
            return Err(bad_input!(
                "{name} has rows of {found} numbers, and the {kind} embeddings of {folder} have {dim}; name the \
                 --model that they are of"
            ));
        }
        warn_of_encoder(encoder, embeds, path, &pipeline)?;
        let encoded = match queries {
            Queries::Prompts(prompts) => {
                pipeline.text_embeds(&prompts.iter().map(String::as_str).collect::<Vec<_>>(), &mut ())?
            }
            Queries::Pictures(paths) => {
                pipeline.encode_pictures(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>())?
            }
        };
        let direction = |(target, embed): (Target<'a>, ArrayView1<f32>)| {
            let direction = Direction::of(embed.iter().map(|value| f64::from(*value)).collect());
            let direction = direction.ok_or_else(|| bad_input!("the embedding of {target} has NaN or infinity"))?;
            Ok((target, direction))
        };
        queries.targets().into_iter().zip(encoded.rows()).map(direction).collect()
    };
    encode().map_err(|error| model.advise(error))
}

/// Warns if the embeddings in `path` were made with another encoder, as far as their provenance tells.
fn warn_of_encoder(encoder: Component, embeds: &Bank, path: &Path, pipeline: &Pipeline) -> Result<()> {
    let Some(provenance) = provenance::find(path) else { return Ok(()) };
    let component = if encoder == Component::ImageEncoder { "image_encoder/" } else { "text_encoder/" };
    let is_weights = |path: &String| path.starts_with(component) && !path.ends_with("/config.json");
    let theirs: BTreeSet<String> =
        files_of(&provenance).into_iter().filter(|(path, _)| is_weights(path)).map(|(_, hash)| hash).collect();
    let (name, folder) = (embeds.name(), pipeline.folder());
    if !theirs.is_empty() && theirs != pipeline.weight_hashes(encoder)? {
        log::warn!(
            "{name} was made with another {encoder} than that of {folder}, says its provenance; its cosines may mean \
             nothing"
        );
    }
    Ok(())
}
