//! What the commands share that mix embeddings: their options, the embeddings of items, and how the mix is written.

use super::args::warn_no_effect;
use super::context::Context;
use super::output_args::{OutputArgs, check_picture, is_same_file};
use super::prior_args::{DeviceArgs, ModelArgs, PriorSource, SamplingArgs, SchedulerArgs, wants_negative};
use super::progress::FetchProgress;
use super::stdout;
use crate::bad_input;
use crate::hub::{Hub, Needs, Wish};
use crate::job::Seeding;
use crate::nn::prior::PriorKind;
use crate::output::{Batch, EmbeddingWriter, Flow, OutputRow, WriteOptions, check};
use crate::pipeline::{Mix, Pipeline, Settings};
use crate::rows::Item;
use crate::weights::precision::Precision;
use anyhow::Result;
use clap::Args;
use ndarray::{Array1, Array2};
use std::path::Path;

/// Why a negative prompt changes nothing.
const NO_NEGATIVE: &str = "no output holds negative embeddings; --negative-out writes them";

/// The options of a mix.
#[derive(Debug, Args)]
pub(super) struct MixArgs {
    #[command(flatten)]
    pub(super) output: OutputArgs,

    /// Replace an existing output
    #[arg(help_heading = "Output", long)]
    pub(super) overwrite: bool,

    #[command(flatten)]
    pub(super) model: ModelArgs,

    #[command(flatten)]
    pub(super) sampling: SamplingArgs,

    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,

    #[command(flatten)]
    pub(super) device: DeviceArgs,
}

/// Items, a model, and outputs, with everything checked that can be.
pub(super) struct Mixing<'a> {
    items: &'a [Item],
    /// The embedding of each item that has one already.
    known: Vec<Option<Array1<f32>>>,
    pub(super) pipeline: Pipeline,
    sampling: &'a SamplingArgs,
    settings: Settings,
    write: WriteOptions,
    wants_negative: bool,
}

/// What a mix is made of.
pub(super) struct Embeds {
    /// The embedding of each item, `(dim)`.
    pub(super) items: Vec<Array1<f32>>,
    /// The negative embedding, `(dim)`, if it is wanted.
    pub(super) negative: Option<Array1<f32>>,
}

/// A row of the mix.
pub(super) struct MixedRow {
    /// `(dim)`.
    pub(super) embedding: Array1<f32>,
    /// What it is of.
    pub(super) caption: String,
}

impl<'a> Mixing<'a> {
    /// Reads the rows among the items, and opens the model. `encodes_texts` says whether texts are encoded beside them.
    ///
    /// # Errors
    /// [`bad_input::BadInput`](crate::bad_input::BadInput) for what the user can fix, and whatever goes wrong on the way.
    pub(super) fn open(items: &'a [Item], encodes_texts: bool, args: &'a MixArgs, context: &Context) -> Result<Self> {
        let MixArgs { sampling, .. } = args;
        if sampling.seed.checked_add(items.len() as u64).is_none() {
            let (seed, count) = (sampling.seed, items.len());
            return Err(bad_input!("--seed {seed} leaves no seeds for {count} items below 2^64; give a smaller one"));
        }
        let mut write = args.output.write_options(&[])?;
        (write.overwrite, write.keep) = (args.overwrite, false);
        if write.outputs.iter().any(|output| output.path.as_os_str() == "-") {
            stdout::check()?;
        }
        check(&write)?;
        let same = |path: &&Path| write.outputs.iter().any(|output| is_same_file(path, &output.path));
        if let Some(path) = items.iter().filter_map(Item::path).find(same) {
            return Err(bad_input!("{path:?} is one of the items and would be replaced; give the output another name"));
        }
        let known = items.iter().map(Item::embedding).collect::<Result<Vec<_>>>()?;
        let prior = PriorSource::new(&args.model, &args.scheduler, &args.device, &context.hub)?;
        check_picture(&write, &prior.model)?;
        let has_negative_text = sampling.negative_prompt.is_some() || decoder_negative_prompt(sampling).is_some();
        let is_prompt = |item: &Item| matches!(item, Item::Prompt(_));
        let text_encoder = encodes_texts || items.iter().any(is_prompt) || write.wants_negative() && has_negative_text;
        let image_processor = items.iter().any(|item| matches!(item, Item::Picture(_)));
        let image_encoder = match write.wants_negative() {
            _ if image_processor => Wish::Needed,
            true if has_negative_text => Wish::No,
            true if write.needs_negative() => Wish::Needed,
            true => Wish::Welcome,
            false => Wish::No,
        };
        let sixteen_bit = prior.load.precision != Precision::F32;
        let needs = Needs { text_encoder, sixteen_bit, image_encoder, image_processor, ..Needs::ALL };
        let hub = Hub::new(context.hub.clone());
        let model = hub.open(&prior.model, needs, &mut FetchProgress::new(&context.screen))?;
        let opened = || -> Result<Self> {
            let mut pipeline = prior.open(&model)?;
            if !text_encoder {
                pipeline.leave_out_text_encoder();
            }
            let (folder, kind) = (pipeline.folder(), pipeline.kind());
            if kind == PriorKind::Sequence {
                let title = kind.title();
                return Err(bad_input!("{folder} has {title}, which makes no embeddings; name another --model"));
            }
            let dim = pipeline.embedding_dim();
            let other = items.iter().zip(&known).filter_map(|(item, embed)| Some((item, embed.as_ref()?.len())));
            if let Some((item, found)) = other.into_iter().find(|(_, found)| *found != dim) {
                return Err(bad_input!("{item} has {found} numbers, and this model's embeddings have {dim}"));
            }
            let settings = pipeline.settings(sampling.steps, sampling.guidance_scale, sampling.temperature)?;
            let wants_negative = wants_negative(&write, has_negative_text, &pipeline)?;
            if wants_negative {
                write.add_negative();
            }
            if sampling.decoder_negative_prompt.is_some() && !wants_negative {
                warn_no_effect("--decoder-negative-prompt", NO_NEGATIVE);
            }
            if sampling.negative_prompt.is_some() && !wants_negative && !items.iter().any(is_prompt) {
                warn_no_effect("--negative-prompt", NO_NEGATIVE);
            }
            let threads = if pipeline.is_small()? { Some(1) } else { args.device.threads() };
            if let Some(threads) = threads {
                tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
            }
            Ok(Self { items, known, pipeline, sampling, settings, write, wants_negative })
        };
        opened().map_err(|error| model.advise(error))
    }

    /// The embeddings that a mix is made of.
    ///
    /// # Errors
    /// Whatever goes wrong on the way.
    pub(super) fn embeds(&mut self) -> Result<Embeds> {
        let pictures: Vec<&Path> = self.items.iter().filter_map(Item::picture).collect();
        let of_pictures = self.pipeline.encode_pictures(&pictures)?;
        let prompts: Vec<(usize, &str)> =
            self.items.iter().enumerate().filter_map(|(place, item)| Some((place, item.prompt()?))).collect();
        let mix = Mix {
            prompts: &prompts,
            items: self.items.len(),
            negative_prompt: self.sampling.negative_prompt.as_deref(),
            decoder_negative_prompt: decoder_negative_prompt(self.sampling),
            seed: self.sampling.seed,
            is_call: self.sampling.seed_layout == Seeding::Call,
            batch_size: None,
        };
        let (of_prompts, negative) = self.pipeline.embed_mix(&mix, &self.settings, self.wants_negative, &mut ())?;
        let (mut of_prompts, mut of_pictures) = (of_prompts.rows().into_iter(), of_pictures.rows().into_iter());
        let embeds = self.items.iter().zip(self.known.drain(..)).map(|(item, known)| {
            let made = if item.prompt().is_some() { &mut of_prompts } else { &mut of_pictures };
            known.or_else(|| made.next().map(|embed| embed.to_owned())).unwrap_or_default()
        });
        Ok(Embeds { items: embeds.collect(), negative })
    }

    /// Writes rows, each with the same negative embedding.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn write(mut self, mixed: Vec<MixedRow>, negative: Option<Array1<f32>>) -> Result<()> {
        let shape = (mixed.len(), self.pipeline.embedding_dim());
        let mut image = Array2::zeros(shape);
        let mut rows = Vec::with_capacity(mixed.len());
        for ((row, MixedRow { embedding, caption }), mut place) in mixed.into_iter().enumerate().zip(image.rows_mut()) {
            place.assign(&embedding);
            rows.push(OutputRow { row: row as u64, id: None, prompt: caption.into(), seed: self.sampling.seed });
        }
        let negative = negative.as_ref().and_then(|negative| negative.broadcast(shape));
        (self.write.dim, self.write.total_rows) = (Some(shape.1), Some(rows.len() as u64));
        let mut writer = EmbeddingWriter::open(self.write)?;
        let batch = Batch { rows: &rows, image: Some(image.view()), negative, text: None, scores: None };
        match writer.write(&batch)? {
            Flow::Continue => writer.finish(),
            Flow::ReaderGone => writer.discard(),
        }
    }
}

/// The decoder's negative prompt. An empty one is none, in diffusers too.
fn decoder_negative_prompt(sampling: &SamplingArgs) -> Option<&str> {
    sampling.decoder_negative_prompt.as_deref().filter(|text| !text.is_empty())
}
