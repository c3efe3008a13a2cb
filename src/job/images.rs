//! The image embeddings that rows start from: rows of files, and pictures.

use crate::bad_input;
use crate::output::fingerprint::Fingerprint;
use crate::pipeline::Pipeline;
use crate::rows::{EmbeddingRows, Item, PromptRecord};
use anyhow::Result;
use ndarray::Array1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where rows start from, and how far they go.
#[derive(Debug, Clone)]
pub struct Images {
    /// How much of the schedule is run, 0 to 1.
    pub strength: f64,
    /// Where a row starts from whose prompt has no image of its own; from noise if not given.
    pub given: Option<Item>,
    /// Its embedding, once it is known.
    given_embed: Option<Array1<f32>>,
    /// The embedding dimension.
    dim: usize,
    /// The files of rows that were read, which stay in memory.
    files: Arc<Mutex<BTreeMap<PathBuf, Arc<EmbeddingRows>>>>,
}

impl Images {
    /// Nothing is read yet.
    pub fn new(strength: f64, given: Option<Item>) -> Self {
        Self { strength, given, given_embed: None, dim: 0, files: Arc::default() }
    }

    /// The same for a model, which makes the embedding of a given picture.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if what is given cannot be read, or does not fit the model.
    pub fn of_model(mut self, pipeline: &mut Pipeline) -> Result<Self> {
        self.dim = pipeline.embedding_dim();
        self.given_embed = match &self.given {
            Some(item @ Item::Row(path, row)) => Some(self.row(item, path, *row)?),
            Some(item) => {
                let picture: Vec<&Path> = item.picture().into_iter().collect();
                Some(pipeline.encode_pictures(&picture)?.row(0).to_owned())
            }
            None => None,
        };
        Ok(self)
    }

    /// Whether a prompt's rows start from an image.
    pub(super) fn has(&self, record: &PromptRecord) -> bool {
        record.image.is_some() || self.given.is_some()
    }

    /// Checks what a prompt's rows start from.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it cannot be read, or does not fit the model.
    pub(super) fn check(&self, record: &PromptRecord) -> Result<()> {
        match record.image.as_deref() {
            Some(item @ Item::Row(path, row)) => self.row(item, path, *row).map(|_| ()),
            Some(Item::Picture(path)) if !path.is_file() => {
                Err(bad_input!("there is no file {:?}", path.display().to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The embedding that each prompt's rows start from, `(dim)`.
    ///
    /// # Errors
    /// As [`Images::check`]; whatever goes wrong with a picture.
    pub(super) fn embeds(
        &self,
        records: &[Option<Arc<PromptRecord>>],
        pipeline: &mut Pipeline,
    ) -> Result<Vec<Option<Array1<f32>>>> {
        let items = records.iter().map(|record| record.as_ref().and_then(|record| record.image.as_deref()));
        let mut pictures: Vec<&Path> = items.clone().flatten().filter_map(Item::picture).collect();
        pictures.sort_unstable();
        pictures.dedup();
        let encoded = if pictures.is_empty() { None } else { Some(pipeline.encode_pictures(&pictures)?) };
        let embed = |item: &Item| match item {
            Item::Row(path, row) => self.row(item, path, *row).map(Some),
            item => {
                let place = item.picture().and_then(|path| pictures.binary_search(&path).ok());
                Ok(encoded.as_ref().zip(place).map(|(encoded, place)| encoded.row(place).to_owned()))
            }
        };
        let given = |record: &Option<Arc<PromptRecord>>| record.as_ref().and(self.given_embed.clone());
        let of_row = |(item, record): (Option<&Item>, _)| match item {
            Some(item) => embed(item),
            None => Ok(given(record)),
        };
        items.zip(records).map(of_row).collect()
    }

    fn row(&self, item: &Item, path: &Path, row: Option<usize>) -> Result<Array1<f32>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match files.get(path) {
            Some(file) => Arc::clone(file),
            None => Arc::clone(files.entry(path.into()).or_insert(Arc::new(EmbeddingRows::read(path)?))),
        };
        let embed = file.row(row)?;
        match embed.len() {
            found if found == self.dim => Ok(embed.to_owned()),
            found => Err(bad_input!("{item} has {found} numbers, and this model's embeddings have {}", self.dim)),
        }
    }

    /// Adds what decides the rows: the files that were read, a given picture, and the strength. Prompts' own pictures count
    /// by their names, which are in the hash of the prompts.
    ///
    /// # Errors
    /// If a picture cannot be read.
    pub(super) fn add_to(&self, fingerprint: &mut Fingerprint) -> Result<()> {
        fingerprint.push("--strength", self.strength);
        fingerprint.push("--image", self.given.as_ref().map_or_else(|| "not set".into(), ToString::to_string));
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hash = Sha256::new();
        files.values().for_each(|file| hash.update(&file.hash));
        if let Some(path) = self.given.as_ref().and_then(Item::picture) {
            hash.update(std::fs::read(path).map_err(|error| bad_input!("cannot read {path:?} ({error})"))?);
        }
        fingerprint.push("the images' hash", format!("{:.32x}", hash.finalize()));
        Ok(())
    }
}
