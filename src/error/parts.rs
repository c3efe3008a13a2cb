//! What errors are made of: the component that they are about, the cause, and the hint.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The underlying cause of an [`Error`](super::Error).
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

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What to do about an [`Error`](super::Error).
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

/// `prior-embed download`, with the options that a run needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadCommand {
    /// `owner/name` or `owner/name@revision`.
    pub model: String,
    /// The components from elsewhere, each with its name.
    pub components: Vec<(Component, String)>,
    /// `--image-encoder`
    pub image_encoder: bool,
    /// `--dtype bf16`: weights in 16 bits are enough.
    pub sixteen_bit: bool,
    /// `--cache-dir`
    pub cache_dir: Option<PathBuf>,
    /// `--force`: compare the hashes of what is in the cache.
    pub force: bool,
}

impl fmt::Display for DownloadCommand {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        // A path of this machine may have spaces in it.
        let quoted = |name: &str| if name.contains(char::is_whitespace) { format!("{name:?}") } else { name.into() };
        write!(formatter, "prior-embed download {}", quoted(&self.model))?;
        for (is_set, option) in [(self.image_encoder, "--image-encoder"), (self.sixteen_bit, "--dtype bf16")] {
            if is_set {
                write!(formatter, " {option}")?;
            }
        }
        for (component, name) in &self.components {
            // A flag of its own means the model's own image encoder.
            let separator = if *component == Component::ImageEncoder { "=" } else { " " };
            write!(formatter, " --{}{separator}{}", component.option(), quoted(name))?;
        }
        if let Some(folder) = &self.cache_dir {
            write!(formatter, " --cache-dir {folder:?}")?;
        }
        if self.force { formatter.write_str(" --force") } else { Ok(()) }
    }
}
