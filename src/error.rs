//! What can go wrong in the library.
//!
//! An [`Error`] says what is wrong and where, as typed fields and as a sentence without advice; [`Error::hint`] says what to
//! do about it. Only `cli` makes lines and exit codes of them.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an [`Error`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A part of a prior pipeline, as diffusers saves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// Merge the adapter into the model with PEFT, and use the merged model.
    MergeWithPeft,
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
    /// Anything else, as an imperative clause: `save it as safetensors`.
    Other(Cow<'static, str>),
}

/// `prior-embed download`, with the options that a run needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadCommand {
    /// `owner/name` or `owner/name@revision`.
    pub model: String,
    /// `--image-encoder`
    pub image_encoder: bool,
    /// `--dtype bf16`: weights in 16 bits are enough.
    pub sixteen_bit: bool,
    /// `--cache-dir`
    pub cache_dir: Option<PathBuf>,
    /// `--force`: compare the hashes of what is in the cache.
    pub force: bool,
}

/// An error of the hub, or of the cache of its files.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct HubError {
    /// What went wrong.
    pub kind: HubErrorKind,
    /// `owner/name`
    pub repository: Option<String>,
    /// A path in the repository.
    pub file: Option<String>,
    /// The HTTP status.
    pub status: Option<u16>,
    /// A sentence without advice.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<Hint>,
    /// What the HTTP library or the system said.
    pub source: Option<Cause>,
}

/// What went wrong between this library, the hub and the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubErrorKind {
    /// No such repository, or a private one that the token, if any, does not show.
    RepositoryNotFound,
    /// No such branch, tag or commit.
    RevisionNotFound,
    /// The commit has no such file.
    FileNotFound,
    /// The token is invalid, has no access, or the licence is not accepted.
    AccessDenied,
    /// Not in the cache, and the network must not be used.
    Offline,
    /// A path that leaves the repository, or a size that makes no sense.
    Unsafe,
    /// The repository has no prior.
    Incomplete,
    /// An environment variable or the token's file has an unusable value.
    Environment,
    /// No connection to the server or the proxy.
    Unreachable,
    /// HTTP 408, 429 or 5xx.
    Busy {
        /// What the server asked for.
        retry_after: Option<Duration>,
    },
    /// The server fell silent, or the connection broke.
    Interrupted,
    /// The server does not have the requested part of a file.
    RangeNotSatisfiable,
    /// The answer took longer than it may in all.
    TimedOut,
    /// The answer is not the hub's, or what was received has another hash.
    Protocol,
    /// The cache cannot be written to.
    CacheNotWritable,
    /// The disk is full.
    DiskFull,
}

impl HubErrorKind {
    /// Whether the same request may succeed at another time.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Unreachable | Self::Busy { .. } | Self::Interrupted | Self::RangeNotSatisfiable)
    }

    fn is_bad_input(self) -> bool {
        use HubErrorKind::{
            AccessDenied, Environment, FileNotFound, Incomplete, Offline, RepositoryNotFound, RevisionNotFound, Unsafe,
        };
        let is_not_found = matches!(self, RepositoryNotFound | RevisionNotFound | FileNotFound);
        is_not_found || matches!(self, AccessDenied | Offline | Unsafe | Incomplete | Environment)
    }
}

/// An error of this library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hub, or the cache of its files.
    #[error(transparent)]
    Hub(Box<HubError>),
    /// An option has a value that this model or this machine cannot do.
    #[error("{reason}")]
    Option {
        /// The option's name in the options: `steps`.
        option: &'static str,
        /// What is wrong with its value.
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
    /// A file is missing, damaged or of a kind that is not supported.
    #[error("{path} {reason}")]
    File {
        /// The file or folder.
        path: String,
        /// A predicate: `is not a safetensors file`.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
        /// What the system or a parser said.
        source: Option<Cause>,
    },
    /// A configuration has a value that is wrong or not supported.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: String,
        /// The key, if it is about one.
        key: Option<String>,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
        /// What a parser said.
        source: Option<Cause>,
    },
    /// A checkpoint lacks a tensor that the configuration asks for.
    #[error("{path} does not fit its configuration: {reason}")]
    MissingTensor {
        /// The checkpoint.
        path: String,
        /// The first tensor that is missing.
        tensor: String,
        /// All that are missing.
        reason: String,
    },
    /// A tensor of a checkpoint has the wrong shape or type, or holds what cannot be used.
    #[error("{path}: {reason}")]
    Tensor {
        /// The checkpoint.
        path: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
    },
    /// A LoRA is damaged, not supported, or for another model.
    #[error("{path}: {reason}")]
    Lora {
        /// Its file.
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
    /// A prompt that the model cannot encode.
    #[error("prompt {prompt:?} {reason}")]
    Prompt {
        /// The prompt.
        prompt: String,
        /// A predicate: `has token 49408, …`.
        reason: String,
    },
    /// An embedding is not finite.
    #[error("{reason}")]
    NotFinite {
        /// What is not finite, and which tensors of the model are not.
        reason: String,
        /// What to do about it.
        hint: Option<Hint>,
    },
    /// The model does not fit into the memory that is free.
    #[error("not enough memory: {:.1} GB are needed and {:.1} GB are free", *needed as f64 / 1e9, *free as f64 / 1e9)]
    OutOfMemory {
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    /// A defect of this library.
    #[error("internal error: {0}")]
    Internal(String),
    /// Until every part of the library has its own.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Component {
    /// What messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prior => "prior",
            Self::TextEncoder => "text encoder",
            Self::ImageEncoder => "image encoder",
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

impl fmt::Display for Hint {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let text = match self {
            Self::FetchAgain => FETCH_AGAIN,
            Self::UseFloat32 => "compute in float32",
            Self::MergeWithPeft => "merge the adapter into the model with PEFT, and use the merged model",
            Self::CheckName => "check the name or, if it is private, set HF_TOKEN",
            Self::CheckEndpoint => "is HF_ENDPOINT right, and does no proxy answer in the hub's place?",
            Self::CheckNetwork => "check the network and HTTPS_PROXY, or use a model that is on this machine",
            Self::RaiseTimeout => "try again, or raise HF_HUB_DOWNLOAD_TIMEOUT",
            Self::Resume => "run the same command again to resume",
            Self::ChooseCache => "give --cache-dir, or set HF_HOME, to a folder of yours",
            Self::TryAgain { after: None } => "try again later",
            Self::TryAgain { after: Some(after) } => return write!(formatter, "try again in {} s", after.as_secs()),
            Self::Login { url } => {
                return write!(formatter, "set HF_TOKEN to a valid token (see {url}), or unset it");
            }
            Self::AcceptLicense { url, has_token } => {
                let login =
                    if *has_token { "with the account of your token" } else { "and set HF_TOKEN to a token of yours" };
                return write!(formatter, "accept its licence at {url} {login}");
            }
            Self::Download(command) => return write!(formatter, "run `{command}`"),
            Self::Other(text) => text,
        };
        formatter.write_str(text)
    }
}

impl fmt::Display for DownloadCommand {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "prior-embed download {}", self.model)?;
        for (is_set, option) in [(self.image_encoder, "--image-encoder"), (self.sixteen_bit, "--dtype bf16")] {
            if is_set {
                write!(formatter, " {option}")?;
            }
        }
        if let Some(folder) = &self.cache_dir {
            write!(formatter, " --cache-dir {folder:?}")?;
        }
        if self.force { formatter.write_str(" --force") } else { Ok(()) }
    }
}

impl Error {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<&Hint> {
        match self {
            Self::MissingComponent { hint, .. }
            | Self::File { hint, .. }
            | Self::Config { hint, .. }
            | Self::Tensor { hint, .. }
            | Self::Lora { hint, .. }
            | Self::NotFinite { hint, .. } => hint.as_ref(),
            Self::Hub(error) => error.hint.as_ref(),
            _ => None,
        }
    }

    /// Replaces [`Hint::FetchAgain`] where the broken file is below `folder`.
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

    /// Whether the input is at fault (an option, a model, a prompt) and not the machine or the program.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::NotFinite { .. } | Self::OutOfMemory { .. } | Self::Torch(_) | Self::Internal(_) => false,
            Self::Hub(error) => error.kind.is_bad_input(),
            Self::Other(error) => exit_code(error) == 2,
            _ => true,
        }
    }
}

impl From<HubError> for Error {
    fn from(error: HubError) -> Self {
        Self::Hub(Box::new(error))
    }
}

/// A mistake in what the user gave: a wrong option, a missing or broken file, a model that does not fit.
///
/// Its message is the one line that the user reads.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Makes an [`anyhow::Error`] that is marked as [`BadInput`].
#[macro_export]
macro_rules! bad_input {
    ($($part:tt)*) => { ::anyhow::Error::new($crate::error::BadInput(format!($($part)*))) };
}

/// Marks the error of a result as [`BadInput`] and gives it the line that the user reads.
pub trait OrBadInput<T> {
    /// Keeps the value, or puts `line` on top of the error, which becomes its cause.
    ///
    /// # Errors
    /// The error it was called on, marked as [`BadInput`].
    fn or_bad_input(self, line: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrBadInput<T> for Result<T, E> {
    fn or_bad_input(self, line: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|cause| cause.into().context(BadInput(line())))
    }
}

/// How the line of a file that is broken ends.
pub const FETCH_AGAIN: &str = "fetch it again";

/// The same error with another advice in place of [`FETCH_AGAIN`], if it is of a broken file at `place`.
pub fn with_advice(error: anyhow::Error, place: &str, advice: &str) -> anyhow::Error {
    let line = error.to_string();
    match line.strip_suffix(FETCH_AGAIN).filter(|line| line.contains(place)) {
        Some(start) if exit_code(&error) == 2 => error.context(BadInput(format!("{start}{advice}"))),
        _ => error,
    }
}

/// The end of a line on JSON that cannot be read: where the text itself is broken, and not what it says, the advice.
pub fn json_advice(error: &serde_json::Error) -> String {
    if error.is_syntax() || error.is_eof() { format!("; {FETCH_AGAIN}") } else { String::new() }
}

/// The process' exit code for an error: 2 for wrong usage or bad input, 1 for a failure while running.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let is_bad_input = error.is::<BadInput>() || error.downcast_ref::<Error>().is_some_and(Error::is_bad_input);
    if is_bad_input { 2 } else { 1 }
}

/// The error as one line: the outermost message with what the system says, if it is by that; or, with `causes`, all
/// messages from the outside in.
///
/// Line breaks inside a message (libtorch's are long) become `; `, and what is no text does not reach the terminal.
pub fn one_line(error: &anyhow::Error, causes: bool) -> String {
    let messages: Vec<String> = error.chain().map(one_message).collect();
    let hint = error.downcast_ref::<Error>().and_then(Error::hint);
    let hint = hint.map_or_else(String::new, |hint| format!("; {}", printable(&hint.to_string())));
    if causes {
        return messages.join(": ") + &hint;
    }
    let line = messages.into_iter().next().unwrap_or_default();
    match error.chain().find_map(system_message).filter(|reason| !line.contains(reason)) {
        Some(reason) => format!("{line} ({reason}){hint}"),
        None => line + &hint,
    }
}

/// What the system says of an error that it gave: `No such file or directory`.
fn system_message(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let error = error.downcast_ref::<std::io::Error>()?;
    let text = error.raw_os_error().map(|_| error.to_string())?;
    Some(text.split(" (os error").next().unwrap_or_default().to_string())
}

fn one_message(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    printable(&shorten_inside(&lines.join("; ")))
}

/// A message without its middle if it is longer than anybody reads: it may quote what somebody put into a file. What is
/// wrong stands at its start, and what to do at its end.
fn shorten_inside(text: &str) -> Cow<'_, str> {
    const START: usize = 1500;
    const END: usize = 300;
    if text.len() <= START + END {
        return Cow::Borrowed(text);
    }
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let start = (0..=START).rev().find(is_boundary).unwrap_or(0);
    let end = (text.len() - END..text.len()).find(is_boundary).unwrap_or(text.len());
    Cow::Owned(format!("{}…{}", &text[..start], &text[end..]))
}

/// A text with its control characters escaped: names in files of others may hold what moves a terminal's cursor, or worse.
pub fn printable(text: &str) -> String {
    let turns_text =
        |char: char| matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut printable = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            char if char.is_control() || turns_text(char) => printable.extend(char.escape_default()),
            char => printable.push(char),
        }
    }
    printable
}

/// The first `longest` characters of a text, and a sign that there are more.
pub fn shorten(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// The first of some names, none of them long, and how many more there are.
pub fn some_of<S: AsRef<str>>(names: &[S]) -> String {
    const MOST: usize = 8;
    const LONGEST: usize = 200;
    let shown: Vec<String> = names.iter().take(MOST).map(|name| shorten(name.as_ref(), LONGEST)).collect();
    let more = names.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_exits_with_2_and_anything_else_with_1() {
        assert_eq!(exit_code(&bad_input!("no prompt")), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("disk on fire")), 1);
        let caused: anyhow::Result<()> = Err(std::io::Error::other("cause")).or_bad_input(|| "line".into());
        assert_eq!(exit_code(&caused.unwrap_err()), 2);
    }

    #[test]
    fn an_error_is_one_line_with_its_causes_on_demand() {
        let error: anyhow::Result<()> = Err(std::io::Error::other("first\n  second\n")).or_bad_input(|| "line".into());
        let error = error.unwrap_err();
        assert_eq!(one_line(&error, false), "line");
        assert_eq!(one_line(&error, true), "line: first; second");
    }

    #[test]
    fn what_the_system_says_is_said_once() {
        let missing = || std::fs::File::open("/no/such/file");
        let error = missing().or_bad_input(|| "cannot read \"a\"".into()).unwrap_err();
        assert_eq!(one_line(&error, false), "cannot read \"a\" (No such file or directory)");
        let said = |cause: &str| format!("cannot read \"a\": {cause}; check it");
        let cause = missing().unwrap_err().to_string();
        let error = missing().or_bad_input(|| said(&cause)).unwrap_err();
        assert_eq!(one_line(&error, false), said(&cause));
    }

    #[test]
    fn broken_files_in_a_known_place_have_an_advice_of_their_own() {
        let advise = |line: &str| with_advice(bad_input!("{line}"), "/cache/x", "repair it");
        let advised = advise("/cache/x/a.json is cut off; fetch it again");
        assert_eq!(
            (one_line(&advised, false), exit_code(&advised)),
            ("/cache/x/a.json is cut off; repair it".into(), 2)
        );
        for line in ["/home/a.json is cut off; fetch it again", "/cache/x/a.json is not supported"] {
            assert_eq!(one_line(&advise(line), false), line);
        }
    }

    #[test]
    fn names_cannot_draw_on_the_screen() {
        let error = bad_input!("tensor a\u{1b}[2J\u{7}\u{202e}b\tc\r\nd of \"é\" is missing");
        assert_eq!(one_line(&error, false), r#"tensor a\u{1b}[2J\u{7}\u{202e}b\tc; d of "é" is missing"#);
    }

    #[test]
    fn a_text_is_cut_between_characters_and_only_if_it_is_too_long() {
        assert_eq!(["äöü", "äöüß", ""].map(|text| shorten(text, 3)), ["äöü", "äöü…", ""]);
    }

    #[test]
    fn long_messages_keep_their_start_and_their_end() {
        let line = one_line(&bad_input!("key {:?} is wrong; mend it", "é".repeat(1 << 20)), false);
        assert!(line.starts_with("key \"éé") && line.ends_with("éé\" is wrong; mend it"), "{line}");
        assert!(line.len() < 2000, "{}", line.len());
    }

    #[test]
    fn long_lists_are_cut() {
        let all: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        assert_eq!(some_of(&all[..8]), "0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(some_of(&all), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
        assert_eq!(some_of(&["é".repeat(1_000_000)]), format!("{}…", "é".repeat(200)));
    }
}
