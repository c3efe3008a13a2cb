//! The public face: a prior, its options, and what it gives.

mod component_source;
mod device;
mod embed_options;
mod item;
mod mixing;

pub use component_source::ComponentSource;
pub use device::Device;
pub use embed_options::EmbedOptions;
pub use item::Item;

use crate::diffusion::scheduler::SchedulerOptions;
use crate::diffusion::schedulers;
use crate::error::{Component, Hint};
use crate::files::Folder;
use crate::nn::prior::PriorKind;
#[cfg(feature = "draw")]
use crate::pipeline::BuiltinDecoder;
use crate::pipeline::builtin::EMOJI_MODEL;
use crate::pipeline::component::component_at;
use crate::pipeline::layout::Replacements;
use crate::pipeline::{Conditions, Demand, Draws, Embeds, Pipeline, Progress, Prompt, Row, Settings, Truncation};
use crate::weights::checkpoint::Placement;
use crate::weights::checkpoint::textual_inversion::TextualInversion;
use crate::weights::precision::Precision;
use crate::{Error, Result};
use embed_options::{Rows, Seeds};
#[cfg(feature = "draw")]
use ndarray::Array4;
use ndarray::{Array1, Array2, Axis, concatenate};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How to load a [`Prior`]: a builder in the manner of [`std::fs::OpenOptions`].
///
/// ```
/// use prior_embed::{LoadOptions, Precision};
///
/// let prior = LoadOptions::new().precision(Precision::Int8).builtin()?;
/// # Ok::<(), prior_embed::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LoadOptions {
    device: Device,
    precision: Precision,
    keep_text_encoder: bool,
    scheduler: String,
    scheduler_options: SchedulerOptions,
    components: BTreeMap<Component, ComponentSource>,
    #[cfg(feature = "hub")]
    download_image_encoder: bool,
    #[cfg(feature = "hub")]
    hub: crate::hub::HubOptions,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            precision: Precision::F32,
            keep_text_encoder: true,
            scheduler: "auto".into(),
            scheduler_options: SchedulerOptions::default(),
            components: BTreeMap::new(),
            #[cfg(feature = "hub")]
            download_image_encoder: false,
            #[cfg(feature = "hub")]
            hub: crate::hub::HubOptions::default(),
        }
    }
}

impl LoadOptions {
    /// The CPU, float32.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the networks compute.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// What the prior computes in, whatever its weights are stored in. The CLIP encoders compute in it too, but are
    /// never quantized.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Whether the text encoder stays in memory once a batch is encoded (the default). If not, it never shares the
    /// memory with the prior, and every batch loads it again.
    pub fn keep_text_encoder(mut self, keep: bool) -> Self {
        self.keep_text_encoder = keep;
        self
    }

    /// The scheduler: `auto` (the model's own, the default), `unclip`, `ddpm`, `ddim`, `dpm-solver++`, `euler`,
    /// `euler-ancestral` or `heun`, made as diffusers makes it `from_config` of the model's own.
    pub fn scheduler(mut self, name: impl Into<String>) -> Self {
        self.scheduler = name.into();
        self
    }

    /// η of `ddim`, the share of DDPM's noise that each step adds: 0 (the default) to 1.
    pub fn eta(mut self, eta: f64) -> Self {
        self.scheduler_options.eta = Some(eta);
        self
    }

    /// The order of `dpm-solver++`: 1, 2 (the default, unless the model has its own) or 3.
    pub fn solver_order(mut self, order: i64) -> Self {
        self.scheduler_options.solver_order = Some(order);
        self
    }

    /// Whether `dpm-solver++` solves the stochastic differential equation, whose steps add noise.
    pub fn sde(mut self, sde: bool) -> Self {
        self.scheduler_options.sde = sde;
        self
    }

    /// The prior from elsewhere, as in diffusers' `from_pretrained(…, prior=…)`; the scheduler stays the model's.
    pub fn prior(self, source: impl Into<ComponentSource>) -> Self {
        self.component(Component::Prior, source.into())
    }

    /// The text encoder from elsewhere; the tokenizer stays the model's.
    pub fn text_encoder(self, source: impl Into<ComponentSource>) -> Self {
        self.component(Component::TextEncoder, source.into())
    }

    /// The image encoder from elsewhere.
    pub fn image_encoder(self, source: impl Into<ComponentSource>) -> Self {
        self.component(Component::ImageEncoder, source.into())
    }

    /// The tokenizer from elsewhere.
    pub fn tokenizer(self, source: impl Into<ComponentSource>) -> Self {
        self.component(Component::Tokenizer, source.into())
    }

    fn component(mut self, component: Component, source: ComponentSource) -> Self {
        self.components.insert(component, source);
        self
    }

    /// Whether [`LoadOptions::from_pretrained`] downloads the model's own image encoder too, for negative embeddings
    /// without a negative prompt. Off by default: it may be the largest file.
    #[cfg(feature = "hub")]
    pub fn download_image_encoder(mut self, needed: bool) -> Self {
        self.download_image_encoder = needed;
        self
    }

    /// Where downloads are kept, in place of the cache of Python's huggingface_hub.
    #[cfg(feature = "hub")]
    pub fn cache_dir(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
        self.hub.cache_dir = Some(folder.into());
        self
    }

    /// Whether the network must not be used. `HF_HUB_OFFLINE` forbids it too.
    #[cfg(feature = "hub")]
    pub fn offline(mut self, offline: bool) -> Self {
        self.hub.offline = offline;
        self
    }

    /// Opens the built-in model, a small one trained on pictures of emoji.
    ///
    /// # Errors
    /// [`Error::Option`] if the device or the precision is not available, or the scheduler has no use for an option.
    pub fn builtin(&self) -> Result<Prior> {
        self.open_local(Folder::builtin(&EMOJI_MODEL))
    }

    /// Opens the model in a folder as diffusers saves it. Components from the hub are downloaded.
    ///
    /// # Errors
    /// As [`LoadOptions::builtin`], or if a component is missing, damaged, not supported, or does not fit the others.
    pub fn open(&self, folder: impl AsRef<Path>) -> Result<Prior> {
        self.open_local(Folder::from(folder.as_ref()))
    }

    /// Opens a model by name, as [`Prior::from_pretrained`], and reports the progress of the download.
    ///
    /// # Errors
    /// As [`LoadOptions::open`], or if there is no such model or it cannot be downloaded.
    #[cfg(feature = "hub")]
    pub fn from_pretrained(&self, name: &str, progress: &mut dyn Progress) -> Result<Prior> {
        self.open_model(crate::hub::ModelSource::parse(name, None, &[])?, progress)
    }

    #[cfg(feature = "hub")]
    fn open_model(&self, mut source: crate::hub::ModelSource, progress: &mut dyn Progress) -> Result<Prior> {
        use crate::hub::{ComponentName, Hub, Needs, Wish};
        let is_given = self.components.contains_key(&Component::ImageEncoder);
        let image_encoder = if self.download_image_encoder || is_given { Wish::Needed } else { Wish::No };
        let sixteen_bit = self.precision != Precision::F32;
        let needs = Needs { sixteen_bit, image_encoder, image_processor: image_encoder == Wish::Needed, ..Needs::ALL };
        for (&component, from) in &self.components {
            let name = match from {
                ComponentSource::Path(path) => ComponentName::Path(path.clone()),
                ComponentSource::Name(name) => ComponentName::parse(name, component)?,
            };
            source.replace(component, name);
        }
        let model = Hub::new(self.hub.clone()).open(&source, needs, &mut Forward { progress, total: 0 })?;
        self.open_folder(&model.folder, &model.replacements())
    }

    fn open_local(&self, folder: Folder) -> Result<Prior> {
        let mut replacements = Replacements::new();
        for (&component, source) in &self.components {
            match source {
                ComponentSource::Path(path) => replacements.insert(component, component_at(path, component)?),
                #[cfg(feature = "hub")]
                ComponentSource::Name(_) => {
                    let model = match folder.as_path() {
                        Some(path) => crate::hub::ModelName::Folder(path.into()),
                        None => crate::hub::ModelName::Builtin(&EMOJI_MODEL),
                    };
                    return self.open_model(model.into(), &mut ());
                }
            };
        }
        self.open_folder(&folder, &replacements)
    }

    fn open_folder(&self, folder: &Folder, replacements: &Replacements) -> Result<Prior> {
        let device = self.device.torch()?;
        if self.precision == Precision::Int8 && !self.precision.is_fast_on(device) {
            let reason = "int8 needs a CPU with oneDNN (x86-64)".into();
            return Err(Error::Option { option: "precision", reason });
        }
        let scheduler =
            SchedulerOptions { class: schedulers::named(&self.scheduler)?, ..self.scheduler_options.clone() };
        let placement = Placement { device, precision: self.precision.on(device) };
        let mut pipeline = Pipeline::open_with(folder, replacements, placement, scheduler)?;
        pipeline.keep_text_encoder(self.keep_text_encoder);
        Ok(Prior {
            pipeline,
            keeps_text_encoder: self.keep_text_encoder,
            zero_embed: None,
            #[cfg(feature = "draw")]
            decoder: None,
        })
    }
}

/// Passes the events of downloads on.
#[cfg(feature = "hub")]
struct Forward<'a> {
    progress: &'a mut dyn Progress,
    total: u64,
}

#[cfg(feature = "hub")]
impl crate::hub::DownloadProgress for Forward<'_> {
    fn begin(&mut self, _model: &str, _files: usize, bytes: u64) {
        self.total = bytes;
    }

    fn position(&mut self, _path: &str, bytes: u64) {
        self.progress.downloaded(bytes, self.total);
    }
}

/// A text-to-image-embedding model: tokenizer, CLIP text encoder, and diffusion prior.
///
/// Opening it reads configurations alone; the networks are loaded when they are first needed. It can be sent to another
/// thread, and several run side by side without an effect on each other's embeddings.
///
/// It computes with the threads that libtorch has: one a core, unless `OMP_NUM_THREADS` or `tch::set_num_threads` says
/// otherwise.
#[derive(Debug)]
pub struct Prior {
    pipeline: Pipeline,
    keeps_text_encoder: bool,
    /// The embedding of a black image, once it is computed.
    zero_embed: Option<Array1<f32>>,
    /// Once it is loaded.
    #[cfg(feature = "draw")]
    decoder: Option<BuiltinDecoder>,
}

impl Prior {
    /// Opens the built-in model, a small one trained on pictures of emoji, with the default [`LoadOptions`].
    ///
    /// # Errors
    /// If libtorch does not work.
    pub fn builtin() -> Result<Self> {
        LoadOptions::new().builtin()
    }

    /// Opens the model in a folder as diffusers saves it, with the default [`LoadOptions`].
    ///
    /// # Errors
    /// If a component is missing, damaged, not supported, or does not fit the others.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        LoadOptions::new().open(folder)
    }

    /// Opens a model by name with the default [`LoadOptions`]: `karlo`, `kandinsky-2.1`, `kandinsky-2.2`,
    /// `stable-unclip`, `eclipse-karlo`, `eclipse-kandinsky-2.2`, `emoji` (the built-in one), `owner/name[@revision]`
    /// on the Hugging Face hub, or the path of a folder. Downloads what is not in the cache yet.
    ///
    /// # Errors
    /// As [`Prior::open`], or if there is no such model or it cannot be downloaded.
    #[cfg(feature = "hub")]
    pub fn from_pretrained(name: &str) -> Result<Self> {
        LoadOptions::new().from_pretrained(name, &mut ())
    }

    /// Adds a LoRA (arXiv 2106.09685) for the prior, a file or a folder as PEFT and diffusers write them, with `scale`
    /// times its strength.
    ///
    /// # Errors
    /// [`Error::Lora`] if it is not supported or for another model, or another error if it cannot be read.
    pub fn add_lora(&mut self, path: impl AsRef<Path>, scale: f64) -> Result<()> {
        self.pipeline.add_lora(path.as_ref(), scale)
    }

    /// Adds a learned token (arXiv 2208.01618) to the tokenizer and the text encoder, as `load_textual_inversion` of
    /// diffusers does: a file of diffusers or A1111, or a folder with `learned_embeds.safetensors` or
    /// `learned_embeds.bin`. `token` replaces the file's own name of the token. One of several vectors is
    /// written as `token` in prompts, and stands for all of them.
    ///
    /// # Errors
    /// If the file cannot be read or is another kind of file, its embeddings do not fit the text encoder, or the
    /// tokenizer has such a token.
    pub fn add_textual_inversion(&mut self, path: impl AsRef<Path>, token: Option<&str>) -> Result<()> {
        self.pipeline.add_textual_inversion(&TextualInversion::open(path.as_ref(), token)?)
    }

    /// The embedding dimension: how many numbers a row has.
    pub fn embedding_dim(&self) -> usize {
        self.pipeline.embedding_dim()
    }

    /// The shape `(tokens, dim)` of a row that is no embedding but a sequence of latents, as Shap-E's prior makes them:
    /// [`Embeddings::image_embeds`] holds each in one row.
    pub fn row_shape(&self) -> Option<[usize; 2]> {
        self.pipeline.row_shape()
    }

    /// The largest number of denoising steps such that the model can do any smaller one.
    pub fn max_steps(&self) -> usize {
        self.pipeline.max_steps()
    }

    /// The CLIP image embeddings of pictures, `(paths, embedding_dim)`, by the model's own image encoder: JPEG, PNG, WebP,
    /// the first frame of a GIF, BMP and TIFF, decoded and prepared as transformers does (`load_image` and
    /// `CLIPImageProcessor`). Of no paths, an empty array.
    ///
    /// # Errors
    /// If the model has no image encoder or no image processor, or one of them is damaged or not supported, and
    /// [`Error::File`] if a picture cannot be read or decoded.
    #[cfg(feature = "images")]
    pub fn encode_images<P: AsRef<Path>>(&mut self, paths: &[P]) -> Result<Array2<f32>> {
        let paths: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
        self.pipeline.encode_files(&paths)
    }

    /// Pictures of the built-in model's image embeddings, `(rows, embedding_dim)`, by its own decoder: `(rows, height,
    /// width, 3)`, the levels of red, green and blue.
    ///
    /// ```
    /// use prior_embed::{EmbedOptions, Prior};
    ///
    /// let mut prior = Prior::builtin()?;
    /// let out = prior.embed(&["a red apple"], &EmbedOptions::new())?;
    /// let pictures = prior.draw(&out.image_embeds)?;
    /// assert_eq!((pictures.dim().0, pictures.dim().3), (1, 3));
    /// # Ok::<(), prior_embed::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Option`] if the embeddings are of another model, whose dimension differs, or their numbers are too large;
    /// [`Error::File`] if this build has no decoder, which the package on crates.io leaves out.
    #[cfg(feature = "draw")]
    pub fn draw(&mut self, embeds: &Array2<f32>) -> Result<Array4<u8>> {
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            decoder => decoder.insert(BuiltinDecoder::open()?),
        };
        let batches = embeds.axis_chunks_iter(Axis(0), BuiltinDecoder::BATCH).zip((0..).step_by(BuiltinDecoder::BATCH));
        let pictures = batches.map(|(batch, first)| decoder.draw(first, batch)).collect::<Result<Vec<_>>>()?;
        if pictures.is_empty() {
            return decoder.draw(0, embeds.view());
        }
        let views: Vec<_> = pictures.iter().map(|pictures| pictures.view()).collect();
        concatenate(Axis(0), &views).map_err(|error| Error::Internal(error.to_string()))
    }

    /// The image embeddings of prompts, `samples` rows for each in their order.
    ///
    /// A row depends on its prompt, its seed and the options, not on the rows beside it. Of no prompts, empty arrays.
    ///
    /// # Errors
    /// [`Error::Option`] if an option does not fit the model or the prompts, [`Error::Prompt`] if the model cannot encode
    /// a prompt, [`Error::OutOfMemory`], [`Error::NotFinite`], or an error of the files if weights are damaged.
    pub fn embed<S: AsRef<str>>(&mut self, prompts: &[S], options: &EmbedOptions) -> Result<Embeddings> {
        self.embed_with(prompts, options, &mut ())
    }

    /// The same, and reports progress.
    ///
    /// # Errors
    /// As [`Prior::embed`], and [`Error::Cancelled`] if `progress` says so.
    pub fn embed_with<S: AsRef<str>>(
        &mut self,
        prompts: &[S],
        options: &EmbedOptions,
        progress: &mut dyn Progress,
    ) -> Result<Embeddings> {
        let prompts: Vec<Prompt<&str>> = prompts.iter().map(|prompt| Prompt::Text(prompt.as_ref())).collect();
        self.embed_prompts(&prompts, None, options, progress)
    }

    /// The image embeddings of conditions that were made elsewhere, in place of prompts. Without conditions in place of
    /// the negative prompts, these are texts. The text encoder is loaded if there are texts to encode.
    ///
    /// # Errors
    /// As [`Prior::embed_with`]; [`Error::Option`] if the conditions do not fit the model or the options.
    pub fn embed_conditions(
        &mut self,
        conditions: impl Into<Arc<Conditions>>,
        options: &EmbedOptions,
        progress: &mut dyn Progress,
    ) -> Result<Embeddings> {
        let conditions = conditions.into();
        self.pipeline.set_conditions(Arc::clone(&conditions))?;
        let prompts: Vec<Prompt<&str>> = (0..conditions.rows()).map(Prompt::Condition).collect();
        self.embed_prompts(&prompts, Some(&conditions), options, progress)
    }

    fn embed_prompts(
        &mut self,
        prompts: &[Prompt<&str>],
        conditions: Option<&Conditions>,
        options: &EmbedOptions,
        progress: &mut dyn Progress,
    ) -> Result<Embeddings> {
        let Rows { images, negatives } = options.rows(prompts, conditions)?;
        let is_call = matches!(options.seeds, Seeds::Call(_));
        let settings = self.pipeline.settings(options.steps, options.guidance_scale, options.temperature)?;
        let settings = Settings { strength: options.image.as_ref().map(|(_, strength)| *strength), ..settings };
        let steps = self.pipeline.passes(&settings)?;
        self.check_kind(options)?;
        self.check_image(options)?;
        self.check_best_of(options)?;
        let latents = options.latents.as_ref().map_or(self.embedding_dim(), Array2::ncols);
        if latents != self.embedding_dim() {
            let reason = format!("they have rows of {latents} numbers, and this model's have {}", self.embedding_dim());
            return Err(Error::Option { option: "latents", reason });
        }
        let zero_embed = match options.negative_image_embeds && negatives.is_none() {
            true => Some(self.zero_embed()?),
            false => None,
        };
        let negatives = negatives.filter(|_| options.negative_image_embeds).unwrap_or_default();
        let rows = images.len() + negatives.len();
        // One call is one batch.
        let wanted = options.batch_size.or(is_call.then_some(rows));
        let batch_size = self.batch_size(rows, wanted)?;
        if is_call && batch_size < rows {
            let reason = format!("it is {batch_size}, and one_generator draws for all {rows} rows at once");
            return Err(Error::Option { option: "batch_size", reason });
        }
        let batches = images.len().div_ceil(batch_size) + negatives.len().div_ceil(batch_size);
        let draws = options.best_of;
        let mut call = Call { progress, first_row: Some(0), draws, done: 0, steps, total: batches * steps };
        let embeds = self.embed_rows(&images, &settings, batch_size, &mut call)?;
        let (Embeds { image: image_embeds, text }, scores) = best(embeds, options.best_of);
        call.first_row = None;
        let negative_image_embeds = match zero_embed {
            Some(embed) => embed.broadcast(image_embeds.dim()).map(|embeds| embeds.to_owned()),
            None if options.negative_image_embeds => {
                Some(self.embed_rows(&negatives, &settings, batch_size, &mut call)?.image)
            }
            None => None,
        };
        let text_embeds = options.text_embeds.then_some(text);
        Ok(Embeddings { image_embeds, negative_image_embeds, text_embeds, scores })
    }

    /// Refuses images to start from where the model takes none, or others.
    fn check_image(&self, options: &EmbedOptions) -> Result<()> {
        let Some((images, strength)) = &options.image else { return Ok(()) };
        self.pipeline.check_takes_images()?;
        let (found, dim) = (images.ncols(), self.embedding_dim());
        let reason = match (0.0..=1.0).contains(strength) {
            _ if found != dim => format!("it has {found} numbers a row, and this model's embeddings have {dim}"),
            _ if options.latents.is_some() => "it and latents exclude each other".into(),
            false => format!("its strength is {strength}, and must be between 0 and 1"),
            true => return Ok(()),
        };
        Err(Error::Option { option: "image", reason })
    }

    /// Refuses to choose between draws where nothing can be compared.
    fn check_best_of(&self, options: &EmbedOptions) -> Result<()> {
        let refused = |reason| Err(Error::Option { option: "best_of", reason });
        match [self.pipeline.text_embedding_dim(), self.embedding_dim()] {
            _ if options.best_of == 1 => Ok(()),
            _ if self.pipeline.kind() == PriorKind::Sequence => {
                let title = self.pipeline.kind().title();
                refused(format!("{} has {title}, which makes no embeddings", self.pipeline.folder()))
            }
            [text, image] if text != image => refused(format!(
                "it compares text and image embeddings, and this model's have {text} and {image} numbers"
            )),
            _ => Ok(()),
        }
    }

    /// Refuses what the kind of prior does not take.
    fn check_kind(&self, options: &EmbedOptions) -> Result<()> {
        let kind = self.pipeline.kind();
        let (is_sequence, is_autoregressive) = (kind == PriorKind::Sequence, kind == PriorKind::Autoregressive);
        let refused = [
            ("negative_prompts", options.negative_prompts.is_given() && is_sequence),
            ("negative_image_embeds", options.negative_image_embeds && is_sequence),
            ("latents", options.latents.is_some() && is_autoregressive),
        ];
        match refused.into_iter().find(|(_, is_refused)| *is_refused) {
            Some((option, _)) => {
                let title = kind.title();
                let reason = format!("{} has {title}, which takes none; leave it out", self.pipeline.folder());
                Err(Error::Option { option, reason })
            }
            None => Ok(()),
        }
    }

    fn embed_rows(&mut self, rows: &[Row], settings: &Settings, batch_size: usize, call: &mut Call) -> Result<Embeds> {
        let mut embeds = vec![self.pipeline.embed(&[], settings, call)?];
        for batch in rows.chunks(batch_size) {
            embeds.push(self.pipeline.embed(batch, settings, call)?);
            call.done += call.steps;
            call.first_row = call.first_row.map(|row| row + batch.len());
        }
        let join = |pick: fn(&Embeds) -> &Array2<f32>| {
            let views: Vec<_> = embeds.iter().map(|embeds| pick(embeds).view()).collect();
            concatenate(Axis(0), &views).map_err(|error| Error::Internal(error.to_string()))
        };
        Ok(Embeds { image: join(|embeds| &embeds.image)?, text: join(|embeds| &embeds.text)? })
    }

    fn zero_embed(&mut self) -> Result<Array1<f32>> {
        if let Some(embed) = &self.zero_embed {
            return Ok(embed.clone());
        }
        let embed = self.pipeline.zero_embed()?.ok_or_else(|| Error::MissingComponent {
            component: Component::ImageEncoder,
            path: self.pipeline.folder().to_string(),
            hint: Some(Hint::Other("give a negative prompt, or leave out negative_image_embeds".into())),
        })?;
        Ok(self.zero_embed.insert(embed).clone())
    }

    fn batch_size(&self, rows: usize, wanted: Option<usize>) -> Result<usize> {
        // A plan for a single batch of uniform rows counts on the text encoder being freed. The embedding of a black image
        // is here by now.
        let is_uniform = !self.keeps_text_encoder;
        let demand = Demand { rows, is_uniform, zero_embed: false, free_memory: None };
        self.pipeline.plan_batch(demand, wanted.map(|size| size.max(1)))
    }
}

/// The best of each row's draws, and the scores of all, `(rows, draws)`, if there are several.
fn best(embeds: Embeds, draws: usize) -> (Embeds, Option<Array2<f32>>) {
    if draws == 1 {
        return (embeds, None);
    }
    let mut all = Draws::new(embeds.image.nrows() / draws, draws);
    for (place, (image, text)) in embeds.image.rows().into_iter().zip(embeds.text.rows()).enumerate() {
        all.add(place / draws, place % draws, image, text);
    }
    let kept: Vec<usize> = all.best().iter().enumerate().map(|(row, draw)| row * draws + draw).collect();
    let [image, text] = [&embeds.image, &embeds.text].map(|array| array.select(Axis(0), &kept));
    (Embeds { image, text }, Some(all.into_scores()))
}

/// A call's batches as one run of steps and rows.
struct Call<'a> {
    progress: &'a mut dyn Progress,
    /// The draw that the batch begins at; `None` in the batches of negative embeddings.
    first_row: Option<usize>,
    /// Draws of each row of the output.
    draws: usize,
    /// Steps of a batch.
    steps: usize,
    /// Steps of the batches before.
    done: usize,
    total: usize,
}

impl Progress for Call<'_> {
    fn loading(&mut self, component: Component) {
        self.progress.loading(component);
    }

    fn truncated(&mut self, truncation: &Truncation) {
        let draws = truncation.rows.iter().filter_map(|draw| Some(self.first_row? + draw));
        let mut rows: Vec<usize> = draws.map(|draw| draw / self.draws).collect();
        rows.dedup();
        self.progress.truncated(&Truncation { rows, ..truncation.clone() });
    }

    fn step(&mut self, done: usize, _total: usize) {
        self.progress.step(self.done + done, self.total);
    }

    fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }
}

/// What [`Prior::embed`] gives.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Embeddings {
    /// CLIP image embeddings, `(prompts · samples, embedding_dim)`.
    pub image_embeds: Array2<f32>,
    /// Their negative counterparts of the same shape, if [`EmbedOptions::negative_image_embeds`] asks for them.
    pub negative_image_embeds: Option<Array2<f32>>,
    /// CLIP text embeddings, `(prompts · samples, text_embedding_dim)`, before anything that the prior does, if
    /// [`EmbedOptions::text_embeds`] asks for them.
    pub text_embeds: Option<Array2<f32>>,
    /// The dot products of each row's draws with its text embedding, `(prompts · samples, draws)`, if
    /// [`EmbedOptions::best_of`] asks for several. The kept draw is the first of the largest.
    pub scores: Option<Array2<f32>>,
}
