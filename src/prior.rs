//! The public face: a prior, its options, and what it gives.

use crate::error::{Component, Hint};
use crate::files::Folder;
use crate::pipeline::builtin::EMOJI_MODEL;
use crate::pipeline::component::component_at;
use crate::pipeline::layout::Replacements;
use crate::pipeline::{Demand, Pipeline, Progress, Row, Settings, Truncation};
use crate::weights::checkpoint::Placement;
use crate::weights::precision::Precision;
use crate::{Error, Result};
use ndarray::{Array1, Array2, Axis, concatenate};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a [`Prior`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
    /// Apple's GPU.
    Mps,
}

impl Device {
    /// libtorch's name of it.
    ///
    /// # Errors
    /// [`Error::Option`] if this machine or this build of libtorch has no such device.
    fn torch(self) -> Result<tch::Device> {
        let missing = |reason: String| Error::Option { option: "device", reason };
        match self {
            Self::Cpu => Ok(tch::Device::Cpu),
            Self::Cuda(index) => match usize::try_from(tch::Cuda::device_count()).unwrap_or(0) {
                count if index < count => Ok(tch::Device::Cuda(index)),
                count => Err(missing(format!("there is no CUDA device {index}; libtorch sees {count}"))),
            },
            Self::Mps if tch::utils::has_mps() => Ok(tch::Device::Mps),
            Self::Mps => Err(missing("libtorch sees no MPS device".into())),
        }
    }
}

/// Where a component comes from that takes the place of a model's own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ComponentSource {
    /// A folder that holds the component or a whole model, or a file of weights with its `config.json` beside it. A text
    /// or image encoder may be a whole `CLIPModel`.
    Path(PathBuf),
    /// The same by name: `owner/name[@revision][/subfolder]` on the Hugging Face hub, a model's short name, or a path.
    #[cfg(feature = "hub")]
    Name(String),
}

impl From<&Path> for ComponentSource {
    fn from(path: &Path) -> Self {
        Self::Path(path.into())
    }
}

impl From<PathBuf> for ComponentSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

#[cfg(feature = "hub")]
impl From<&str> for ComponentSource {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

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
    /// [`Error::Option`] if the device or the precision is not available.
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
        let needs = Needs { weights: true, sixteen_bit: self.precision != Precision::F32, image_encoder };
        for (&component, from) in &self.components {
            let name = match from {
                ComponentSource::Path(path) => ComponentName::Path(path.clone()),
                ComponentSource::Name(name) => ComponentName::parse(name, component)?,
            };
            source.components.insert(component, name);
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
                        None => crate::hub::ModelName::Builtin,
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
        let placement = Placement { device, precision: self.precision };
        let mut pipeline = Pipeline::open_with(folder, replacements, placement)?;
        pipeline.keep_text_encoder(self.keep_text_encoder);
        Ok(Prior { pipeline, keeps_text_encoder: self.keep_text_encoder, zero_embed: None })
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
    /// `stable-unclip`, `eclipse-karlo`, `eclipse-kandinsky-2.2`, `emoji` (the built-in one), `owner/name[@revision]` on the Hugging Face hub, or the path of a
    /// folder. Downloads what is not in the cache yet.
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

    /// The embedding dimension.
    pub fn embedding_dim(&self) -> usize {
        self.pipeline.embedding_dim()
    }

    /// The largest number of denoising steps such that the model can do any smaller one.
    pub fn max_steps(&self) -> usize {
        self.pipeline.max_steps()
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
        let images = options.rows(prompts)?;
        let settings = Settings { steps: options.steps, guidance_scale: options.guidance_scale };
        self.pipeline.check_steps(settings.steps)?;
        // As in diffusers: embeddings of the negative prompt, guided away from itself, from seeds of their own.
        let negatives: Vec<Row> = match options.negative_image_embeds && options.negative_prompts.is_given() {
            true => {
                let rows = images.iter().copied();
                let more = images.len() as u64;
                rows.map(|row| Row { prompt: row.negative_prompt, seed: row.seed.wrapping_add(more), ..row }).collect()
            }
            false => Vec::new(),
        };
        let zero_embed = match options.negative_image_embeds && !options.negative_prompts.is_given() {
            true => Some(self.zero_embed()?),
            false => None,
        };
        let batch_size = self.batch_size(images.len() + negatives.len(), options.batch_size)?;
        let batches = images.len().div_ceil(batch_size) + negatives.len().div_ceil(batch_size);
        let mut call = Call { progress, first_row: Some(0), done: 0, total: batches * settings.steps };
        let image_embeds = self.embed_rows(&images, &settings, batch_size, &mut call)?;
        call.first_row = None;
        let negative_image_embeds = match zero_embed {
            Some(embed) => embed.broadcast(image_embeds.dim()).map(|embeds| embeds.to_owned()),
            None if options.negative_image_embeds => {
                Some(self.embed_rows(&negatives, &settings, batch_size, &mut call)?)
            }
            None => None,
        };
        Ok(Embeddings { image_embeds, negative_image_embeds })
    }

    fn embed_rows(
        &mut self,
        rows: &[Row],
        settings: &Settings,
        batch_size: usize,
        call: &mut Call,
    ) -> Result<Array2<f32>> {
        let mut embeds = vec![Array2::zeros((0, self.embedding_dim()))];
        for batch in rows.chunks(batch_size) {
            embeds.push(self.pipeline.embed(batch, settings, call)?);
            call.done += settings.steps;
            call.first_row = call.first_row.map(|row| row + batch.len());
        }
        let views: Vec<_> = embeds.iter().map(|embeds| embeds.view()).collect();
        concatenate(Axis(0), &views).map_err(|error| Error::Internal(error.to_string()))
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

/// A call's batches as one run of steps and rows.
struct Call<'a> {
    progress: &'a mut dyn Progress,
    /// The output's row that the batch begins at; `None` in the batches of negative embeddings.
    first_row: Option<usize>,
    /// Steps of the batches before.
    done: usize,
    total: usize,
}

impl Progress for Call<'_> {
    fn loading(&mut self, component: Component) {
        self.progress.loading(component);
    }

    fn truncated(&mut self, truncation: &Truncation) {
        let rows = self.first_row.map(|first| truncation.rows.iter().map(|row| first + row).collect());
        self.progress.truncated(&Truncation { rows: rows.unwrap_or_default(), ..truncation.clone() });
    }

    fn step(&mut self, done: usize, _total: usize) {
        self.progress.step(self.done + done, self.total);
    }

    fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }
}

/// How to embed: a builder whose defaults are those of diffusers' Kandinsky 2.2 prior pipeline.
///
/// ```
/// use prior_embed::EmbedOptions;
///
/// let options = EmbedOptions::new().seed(7).steps(50).guidance_scale(2.5).negative_prompt("blurry");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedOptions {
    seeds: Seeds,
    steps: usize,
    guidance_scale: f64,
    samples: usize,
    negative_prompts: Negative,
    negative_image_embeds: bool,
    batch_size: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
enum Seeds {
    From(u64),
    Each(Vec<u64>),
}

#[derive(Debug, Clone, PartialEq)]
enum Negative {
    None,
    Same(String),
    Each(Vec<String>),
}

impl Negative {
    fn is_given(&self) -> bool {
        *self != Self::None
    }
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self {
            seeds: Seeds::From(0),
            steps: 25,
            guidance_scale: 4.0,
            samples: 1,
            negative_prompts: Negative::None,
            negative_image_embeds: false,
            batch_size: None,
        }
    }
}

impl EmbedOptions {
    /// Seed 0, 25 steps, guidance scale 4, one sample a prompt, no negative prompt.
    pub fn new() -> Self {
        Self::default()
    }

    /// Row r of the output draws its noise from a generator seeded with `seed + r`.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seeds = Seeds::From(seed);
        self
    }

    /// A seed for each prompt; its sample k has `seed + k`.
    pub fn seeds(mut self, seeds: impl Into<Vec<u64>>) -> Self {
        self.seeds = Seeds::Each(seeds.into());
        self
    }

    /// Number of denoising steps.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Classifier-free guidance; off at 1 and below.
    pub fn guidance_scale(mut self, scale: f64) -> Self {
        self.guidance_scale = scale;
        self
    }

    /// Rows of the output for each prompt.
    pub fn samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// The negative prompt of all prompts.
    pub fn negative_prompt(mut self, prompt: impl Into<String>) -> Self {
        self.negative_prompts = Negative::Same(prompt.into());
        self
    }

    /// A negative prompt for each prompt.
    pub fn negative_prompts(mut self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.negative_prompts = Negative::Each(prompts.into_iter().map(Into::into).collect());
        self
    }

    /// Whether to compute [`Embeddings::negative_image_embeds`] too, which decoders of Kandinsky 2.x take. Without a
    /// negative prompt they are the embedding of a black image, for which the model needs an image encoder.
    pub fn negative_image_embeds(mut self, wanted: bool) -> Self {
        self.negative_image_embeds = wanted;
        self
    }

    /// Rows computed together, in place of as many as are useful and fit into free memory.
    pub fn batch_size(mut self, rows: usize) -> Self {
        self.batch_size = Some(rows);
        self
    }

    /// The rows of the output.
    fn rows<'a, S: AsRef<str>>(&'a self, prompts: &'a [S]) -> Result<Vec<Row<'a>>> {
        let check = |option: &'static str, count: usize| match count == prompts.len() {
            true => Ok(()),
            false => {
                let reason = format!("{option} has {count} items for {} prompts", prompts.len());
                Err(Error::Option { option, reason })
            }
        };
        if let Seeds::Each(seeds) = &self.seeds {
            check("seeds", seeds.len())?;
        }
        if let Negative::Each(negative) = &self.negative_prompts {
            check("negative_prompts", negative.len())?;
        }
        let row = |index: usize, sample: usize| Row {
            prompt: prompts[index].as_ref(),
            negative_prompt: match &self.negative_prompts {
                Negative::None => "",
                Negative::Same(prompt) => prompt,
                Negative::Each(prompts) => &prompts[index],
            },
            seed: match &self.seeds {
                Seeds::From(seed) => seed.wrapping_add((index * self.samples + sample) as u64),
                Seeds::Each(seeds) => seeds[index].wrapping_add(sample as u64),
            },
        };
        Ok((0..prompts.len()).flat_map(|index| (0..self.samples).map(move |sample| row(index, sample))).collect())
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
}
