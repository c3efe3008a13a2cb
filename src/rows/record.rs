//! The vocabulary of prompt files: what every format makes of its rows.

use super::item::Item;
use super::picture_file::PictureFile;
use anyhow::Result;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A prompt with the settings of its row. `None` leaves a setting to the command line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptRecord {
    /// The user's name for the row.
    pub id: Option<String>,
    /// The prompt, which may be empty.
    pub prompt: Arc<str>,
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// The seed of the row's noise.
    pub seed: Option<u64>,
    /// The scale of classifier-free guidance, finite.
    pub guidance_scale: Option<f64>,
    /// Number of denoising steps, 1 or more.
    pub steps: Option<usize>,
    /// Number of embeddings of this prompt, 1 or more.
    pub samples: Option<usize>,
    /// The picture or the row of a file whose embedding denoising starts from.
    pub image: Option<Box<Item>>,
    /// Noise of the row's own, in place of what its seed gives.
    pub noise: Option<Box<GivenNoise>>,
    /// The row of a file of conditions that stands in the prompt's place.
    pub condition: Option<usize>,
    /// The picture that stands in the prompt's place.
    pub picture: Option<Arc<PictureFile>>,
}

/// Noise that a row brings. Each is what denoising starts from, `(dim)`, or that and what each step adds, `(1 + steps, dim)`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GivenNoise {
    /// Of the image embedding.
    pub image: Option<Vec<f32>>,
    /// Of the negative embedding.
    pub negative: Option<Vec<f32>>,
    /// The seed of the negative embedding's noise.
    pub negative_seed: Option<u64>,
}

impl GivenNoise {
    /// The memory that its numbers take.
    pub(crate) fn bytes(&self) -> usize {
        [&self.image, &self.negative].into_iter().flatten().map(|numbers| size_of_val(&**numbers)).sum()
    }
}

impl PromptRecord {
    /// A prompt without settings.
    pub fn new(prompt: &str) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }
}

/// The position of a row in its file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The line it starts on.
    Line(u64),
    /// Its number, in a format without lines.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(formatter, "line {number}"),
            Self::Row(number) => write!(formatter, "row {number}"),
        }
    }
}

/// A row that cannot be used. Displays as `PLACE: REASON`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Where it is.
    pub place: Place,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.reason)
    }
}

/// A row of a prompt file.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptRow {
    /// A prompt.
    Prompt {
        /// Where it is.
        place: Place,
        /// The prompt with its settings.
        record: PromptRecord,
    },
    /// A row that cannot be used; the rows after it can. The caller decides whether to go on.
    Bad(BadRow),
}

impl PromptRow {
    pub(super) fn new(place: Place, record: Result<PromptRecord, String>) -> Self {
        match record {
            Ok(record) => Self::Prompt { place, record },
            Err(reason) => Self::Bad(BadRow { place, reason }),
        }
    }
}

/// The rows of a file. An error is the last item.
pub(super) type PromptRows = Box<dyn Iterator<Item = Result<PromptRow>> + Send>;

/// A remark on a file that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether the file may be wrong; otherwise the remark says how it is read.
    pub is_warning: bool,
    /// The remark.
    pub text: String,
}

/// Collects notices until the caller takes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Notices(Arc<Mutex<Vec<Notice>>>);

impl Notices {
    pub(super) fn note(&self, text: String) {
        self.add(Notice { is_warning: false, text });
    }

    pub(super) fn warn(&self, text: String) {
        self.add(Notice { is_warning: true, text });
    }

    fn add(&self, notice: Notice) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
    }

    pub(super) fn take(&self) -> Vec<Notice> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
