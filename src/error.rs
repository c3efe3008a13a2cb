//! The library's error.
//!
//! An [`Error`] says what is wrong and where, as typed fields and as a sentence; [`Error::hint`] says what to do about
//! it. Only `cli` turns them into lines on the terminal and exit codes.

mod hub;

pub use hub::{DownloadCommand, HubError, HubErrorKind};

use crate::text::{printable, without_middle};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// The result of a fallible function of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The underlying cause of an [`Error`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A component of a prior pipeline, as diffusers saves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Component {
    /// `prior/`
    Prior,
    /// `text_encoder/`
    TextEncoder,
    /// `image_encoder/`
    ImageEncoder,
    /// `tokenizer/`
    Tokenizer,
    /// `scheduler/`
    Scheduler,
}

/// What to do about an [`Error`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// The file is damaged or incomplete: download it again.
    FetchAgain,
    /// Compute in float32.
    UseFloat32,
    /// Give a learned token a name of your own.
    NameToken,
    /// Merge the adapter into the model with PEFT, and use the merged model.
    MergeWithPeft,
    /// Use smaller batches, or compute in fewer bits.
    UseLessMemory,
    /// Compute in fewer bits.
    UseFewerBits,
    /// Get the weights as safetensors, or save the state dictionary alone.
    SaveWeightsAlone,
    /// Set `HF_TOKEN` to a valid access token.
    Login {
        /// The page where tokens are made.
        url: String,
    },
    /// Accept the licence of a gated repository.
    AcceptLicense {
        /// The repository's page.
        url: String,
        /// Whether a token was sent; without one, `HF_TOKEN` must be set too.
        has_token: bool,
    },
    /// Check the name of the repository; a private one needs `HF_TOKEN`.
    CheckName,
    /// Check `HF_ENDPOINT`, and whether a proxy answers in the hub's place.
    CheckEndpoint,
    /// Check the network and `HTTPS_PROXY`.
    CheckNetwork,
    /// Try again, now or after as long as the server asks.
    TryAgain {
        /// What the server asked for.
        after: Option<Duration>,
    },
    /// Try again, or raise `HF_HUB_DOWNLOAD_TIMEOUT`.
    RaiseTimeout,
    /// Run the same command again: the download resumes.
    Resume,
    /// Keep downloads in a folder that can be written to: `--cache-dir`, or `HF_HOME`.
    ChooseCache,
    /// Download the model, or the broken file of it.
    Download(Box<DownloadCommand>),
    /// Anything else, as an imperative clause: `save it with a later version of torch`.
    Other(Cow<'static, str>),
}

/// What can go wrong in this library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hub failed, or the cache of its files.
    #[error(transparent)]
    Hub(Box<HubError>),
    /// An option has a value that this model or this machine does not support.
    #[error("{option}: {reason}")]
    Option {
        /// The name of the option: `steps`.
        option: &'static str,
        /// What is wrong with its value, as a sentence that need not name it.
        reason: String,
    },
    /// A model lacks a component.
    #[error("{path} has no {what}", what = component.name())]
    MissingComponent {
        /// The component.
        component: Component,
        /// The model's folder.
        path: String,
        /// What to do about it.
        hint: Option<Hint>,
    },
    /// A file of a model is missing, damaged or not supported.
    #[error("{path} {reason}")]
    File {
        /// The file or folder.
        path: String,
        /// A predicate: `is not a safetensors file`.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
        /// The error of the system or of a parser.
        source: Option<Cause>,
    },
    /// Reading or writing failed half-way, for reasons that lie with the machine and not with the input.
    #[error("{path} {reason}")]
    Io {
        /// The file.
        path: String,
        /// A predicate: `cannot be written`.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
        /// The error of the system.
        source: Option<Cause>,
    },
    /// A configuration has a value that is wrong or not supported.
    #[error("{}{reason}", prefix(path))]
    Config {
        /// The file; empty in the error of a check that does not know it.
        path: String,
        /// The key, if the error is about a single one.
        key: Option<String>,
        /// What is wrong, naming the key.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
        /// The error of a parser.
        source: Option<Cause>,
    },
    /// The tensors of a checkpoint are not those that its configuration asks for.
    #[error("{path} does not fit its configuration: {}", tensor_lists(missing, unexpected, wrong))]
    MissingTensors {
        /// The checkpoint's folder or file.
        path: String,
        /// The names of all tensors that are missing.
        missing: Vec<String>,
        /// The names of all tensors that the network does not have; some may be missing ones under other names.
        unexpected: Vec<String>,
        /// All tensors of the wrong shape or type, each with what is wrong: `proj_in.bias is [2] and should be [3]`.
        wrong: Vec<String>,
    },
    /// A single tensor of a checkpoint cannot be used.
    #[error("{path}: {reason}")]
    Tensor {
        /// The checkpoint's folder or file.
        path: String,
        /// The name of the tensor.
        tensor: String,
        /// What is wrong, naming the tensor.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
    },
    /// A LoRA is damaged, not supported, or for another model.
    #[error("{path}: {reason}")]
    Lora {
        /// Its file or folder.
        path: String,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
    },
    /// Components do not fit each other.
    #[error("{path}: {reason}")]
    Mismatch {
        /// The model's folder.
        path: String,
        /// What does not fit what.
        reason: String,
    },
    /// The model cannot encode a prompt.
    #[error("prompt {prompt:?} {reason}")]
    Prompt {
        /// The prompt.
        prompt: String,
        /// A predicate: `has token 49408, …`.
        reason: String,
    },
    /// A result is not finite (NaN or infinity).
    #[error("{reason}")]
    NotFinite {
        /// What is not finite, and which tensors of the model are not.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
    },
    /// The model does not fit into free memory.
    #[error("not enough memory: {:.1} GB are needed and {:.1} GB are free", *needed as f64 / 1e9, *free as f64 / 1e9)]
    OutOfMemory {
        /// In bytes.
        needed: u64,
        /// In bytes.
        free: u64,
        /// What to do about it.
        hint: Option<Hint>,
    },
    /// A [`crate::Progress`] asked to give up.
    #[error("cancelled")]
    Cancelled,
    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    /// A defect of this library.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Component {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prior => "prior",
            Self::TextEncoder => "text encoder",
            Self::ImageEncoder => "image encoder",
            Self::Tokenizer => "tokenizer",
            Self::Scheduler => "scheduler",
        }
    }

    /// The name of the option that takes it from elsewhere.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Prior => "prior",
            Self::TextEncoder => "text-encoder",
            Self::ImageEncoder => "image-encoder",
            Self::Tokenizer => "tokenizer",
            Self::Scheduler => "scheduler",
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let text = match self {
            Self::FetchAgain => "fetch it again",
            Self::UseFloat32 => "compute in float32",
            Self::MergeWithPeft => "merge the LoRA with PEFT",
            Self::UseLessMemory => "use smaller batches, or compute in fewer bits",
            Self::NameToken => "give the token a name of its own",
            Self::UseFewerBits => "compute in fewer bits",
            Self::SaveWeightsAlone => "get the weights as safetensors, or save the state dictionary alone",
            Self::CheckName => "check the name or, if it is private, set HF_TOKEN",
            Self::CheckEndpoint => "is HF_ENDPOINT right, and does no proxy answer in the hub's place?",
            Self::CheckNetwork => "check the network and HTTPS_PROXY, or use what is on this machine",
            Self::RaiseTimeout => "try again, or raise HF_HUB_DOWNLOAD_TIMEOUT",
            Self::Resume => "run the same command again to resume",
            Self::ChooseCache => "set HF_HOME to a folder of yours",
            Self::TryAgain { after: None } => "try again later",
            Self::TryAgain { after: Some(after) } => return write!(formatter, "try again in {} s", after.as_secs()),
            Self::Login { url } => {
                return write!(formatter, "set HF_TOKEN to a valid token (see {url}), or unset it");
            }
            Self::AcceptLicense { url, has_token } => {
                let login = match has_token {
                    true => "with the account of your token",
                    false => "and set HF_TOKEN to a token of yours",
                };
                return write!(formatter, "accept its licence at {url} {login}");
            }
            Self::Download(command) => return write!(formatter, "run `{command}`"),
            Self::Other(clause) => clause,
        };
        formatter.write_str(text)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Error {
    /// What to do about it, if there is anything.
    pub fn hint(&self) -> Option<&Hint> {
        match self {
            Self::MissingComponent { hint, .. }
            | Self::File { hint, .. }
            | Self::Io { hint, .. }
            | Self::Config { hint, .. }
            | Self::Tensor { hint, .. }
            | Self::Lora { hint, .. }
            | Self::NotFinite { hint, .. }
            | Self::OutOfMemory { hint, .. } => hint.as_ref(),
            Self::Hub(error) => error.hint.as_ref(),
            _ => None,
        }
    }

    /// What is wrong, without the name of the option where that is said already.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Option { reason, .. } => reason.clone(),
            error => error.to_string(),
        }
    }

    /// The file or folder that it is about, as messages show it.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::MissingComponent { path, .. }
            | Self::File { path, .. }
            | Self::Io { path, .. }
            | Self::Config { path, .. }
            | Self::MissingTensors { path, .. }
            | Self::Tensor { path, .. }
            | Self::Lora { path, .. }
            | Self::Mismatch { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Whether the input is at fault (an option, a model, a prompt), rather than the machine or this library.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Hub(error) => error.kind.is_bad_input(),
            Self::Io { .. }
            | Self::NotFinite { .. }
            | Self::OutOfMemory { .. }
            | Self::Cancelled
            | Self::Torch(_)
            | Self::Internal(_) => false,
            _ => true,
        }
    }

    /// Replaces [`Hint::FetchAgain`] on a damaged file below `folder`.
    #[cfg(feature = "hub")]
    pub(crate) fn replace_fetch_again(&mut self, folder: &str, replacement: Hint) {
        if let Self::File { path, hint, .. }
        | Self::Config { path, hint, .. }
        | Self::Tensor { path, hint, .. }
        | Self::Lora { path, hint, .. } = self
            && *hint == Some(Hint::FetchAgain)
            && path.starts_with(folder)
        {
            *hint = Some(replacement);
        }
    }

    /// An [`Error::File`] without a hint; `reason` is a predicate.
    pub(crate) fn file(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::File { path: path.into(), reason: quoting(&reason.into()), hint: None, source: None }
    }

    /// An [`Error::File`] on a file that cannot be read.
    pub(crate) fn unreadable(path: impl Into<String>, source: std::io::Error) -> Self {
        Self::File { path: path.into(), reason: "cannot be read".into(), hint: None, source: Some(source.into()) }
    }

    /// An [`Error::File`] on a damaged or truncated file that should be of this `format`.
    pub(crate) fn damaged(path: impl Into<String>, format: &str, why: impl fmt::Display) -> Self {
        Self::file(path, format!("is not a valid {format} file ({why})")).with_hint(Hint::FetchAgain)
    }

    /// An [`Error::Config`] on the value of `key`, whose file is not known; `predicate` follows the key.
    pub(crate) fn key(key: &str, predicate: impl fmt::Display) -> Self {
        let reason = quoting(&format!("{key} {predicate}"));
        Self::Config { path: String::new(), key: Some(key.into()), reason, hint: None, source: None }
    }

    /// An [`Error::Tensor`] without a hint; `reason` names the tensor.
    pub(crate) fn tensor(path: impl Into<String>, tensor: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor { path: path.into(), tensor: tensor.into(), reason: quoting(&reason.into()), hint: None }
    }

    /// An [`Error::Lora`] without a hint.
    pub(crate) fn lora(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Lora { path: path.into(), reason: quoting(&reason.into()), hint: None }
    }

    /// The same error with this hint, if its variant has one.
    pub(crate) fn with_hint(mut self, new: Hint) -> Self {
        match &mut self {
            Self::MissingComponent { hint, .. }
            | Self::File { hint, .. }
            | Self::Io { hint, .. }
            | Self::Config { hint, .. }
            | Self::Tensor { hint, .. }
            | Self::Lora { hint, .. }
            | Self::NotFinite { hint, .. }
            | Self::OutOfMemory { hint, .. } => *hint = Some(new),
            _ => {}
        }
        self
    }

    /// The same error with the file that a check did not know.
    pub(crate) fn with_path(mut self, known: &str) -> Self {
        if let Self::Config { path, .. } = &mut self
            && path.is_empty()
        {
            *path = known.into();
        }
        self
    }
}

/// A message that quotes a file's own words: in one line, though they may have many, and a megabyte.
pub(crate) fn quoting(message: &str) -> String {
    printable(&without_middle(message, 600, 200))
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

/// `tensors 1 missing (a); 2 wrong (b is …, c has …)`.
fn tensor_lists(missing: &[String], unexpected: &[String], wrong: &[String]) -> String {
    let lists = [("missing", missing), ("unexpected", unexpected), ("wrong", wrong)].into_iter();
    let lists = lists.filter(|(_, names)| !names.is_empty());
    let lists = lists.map(|(what, names)| format!("{} {what} ({})", names.len(), crate::text::list(names)));
    format!("tensors {}", lists.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_does_not_know_its_file_is_completed_once() {
        let error = Error::key("num_layers", "is 0");
        assert_eq!((error.to_string(), error.path()), ("num_layers is 0".into(), Some("")));
        let error = error.with_path("prior/config.json").with_path("other.json");
        assert_eq!(error.to_string(), "prior/config.json: num_layers is 0");
        assert_eq!(Error::file("a", "is empty").with_path("b").to_string(), "a is empty");
    }

    #[test]
    fn a_checkpoint_names_its_tensors_by_what_is_wrong() {
        let error = Error::MissingTensors {
            path: "prior".into(),
            missing: vec!["a".into(), "b".into()],
            unexpected: Vec::new(),
            wrong: vec!["c is [2] and should be [3]".into()],
        };
        let expected =
            "prior does not fit its configuration: tensors 2 missing (a, b); 1 wrong (c is [2] and should be [3])";
        assert_eq!(error.to_string(), expected);
        assert!(error.is_bad_input() && error.hint().is_none());
    }
}
