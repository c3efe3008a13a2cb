//! The hub's settings: options, and the environment variables of Python's huggingface_hub.

use crate::error::{Error, Hint, HubError, HubErrorKind, Result};
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How long a server may send nothing, in seconds.
const DEFAULT_TIMEOUT: u64 = 30;

/// The longest timeout: a week, which no clock overflows.
const MAX_TIMEOUT: u64 = 7 * 24 * 3600;

/// The options of the hub.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// The cache, in place of the environment's.
    pub cache_dir: Option<PathBuf>,
    /// Whether the network must not be used, whatever the environment says.
    pub offline: bool,
}

impl HubOptions {
    /// The cache: the option's, `HF_HUB_CACHE`, `HF_HOME/hub`, or `huggingface/hub` in the user's cache.
    ///
    /// # Errors
    /// [`HubErrorKind::Environment`] if there is no home folder.
    pub fn cache_dir(&self) -> Result<PathBuf> {
        let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].iter().find_map(|name| path_variable(name));
        match self.cache_dir.clone().or(named) {
            Some(folder) => Ok(folder),
            None => Ok(hub_home()?.join("hub")),
        }
    }

    /// Whether the network must not be used.
    pub fn is_offline(&self) -> bool {
        // A value of the hub's own variable, even `0`, hides the other.
        let said = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().find_map(|name| variable(name));
        self.offline || said.is_some_and(|text| is_true(&text))
    }
}

/// How to reach the hub.
#[derive(Debug)]
pub struct Connection {
    /// The hub's address; its path ends in `/`.
    pub endpoint: Url,
    /// The user's access token.
    pub token: Option<Token>,
    /// How long a server may send nothing.
    pub timeout: Duration,
    /// A PEM file of root certificates, in place of the built-in ones.
    pub certificates: Option<PathBuf>,
}

impl Connection {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`HubErrorKind::Environment`] if a variable or the token's file has an unusable value.
    pub fn from_environment() -> Result<Self> {
        let timeout = variable("HF_HUB_DOWNLOAD_TIMEOUT").map_or(Ok(DEFAULT_TIMEOUT), |text| timeout(&text))?;
        Ok(Self {
            endpoint: endpoint(&variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()))?,
            token: token()?,
            timeout: Duration::from_secs(timeout),
            certificates: ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"].iter().find_map(|name| path_variable(name)),
        })
    }
}

/// An access token. `Debug` does not show it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The value of the `Authorization` header.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// An unusable value of a variable or of the token's file.
pub(super) fn environment_error(reason: String, hint: Option<Hint>) -> HubError {
    let (repository, file, status, source) = (None, None, None, None);
    HubError { kind: HubErrorKind::Environment, repository, file, status, reason, hint, source }
}

/// Parses seconds; 0 is the default, as in Python.
fn timeout(text: &str) -> Result<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        let reason = format!("HF_HUB_DOWNLOAD_TIMEOUT is {text:?}, it must be a number of seconds");
        return Err(environment_error(reason, None).into());
    }
    match text.parse() {
        Ok(0) => Ok(DEFAULT_TIMEOUT),
        Ok(seconds) => Ok(MAX_TIMEOUT.min(seconds)),
        // Too many digits for a `u64`.
        Err(_) => Ok(MAX_TIMEOUT),
    }
}

fn endpoint(text: &str) -> Result<Url> {
    let wrong = || -> Error {
        let reason = format!("HF_ENDPOINT is {text:?}, it must be an address such as {DEFAULT_ENDPOINT}");
        environment_error(reason, None).into()
    };
    let url = Url::parse(&format!("{}/", text.trim_end_matches('/'))).map_err(|_| wrong())?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    // A password in there would end up in messages.
    let is_plain = is_plain && url.username().is_empty() && url.password().is_none();
    if url.has_host() && is_plain { Ok(url) } else { Err(wrong()) }
}

/// The token in the environment or in the file of `hf auth login`, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN` forbids it.
fn token() -> Result<Option<Token>> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|text| is_true(&text)) {
        return Ok(None);
    }
    if let Some(text) = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].iter().find_map(|name| variable(name)) {
        return clean_token(&text, "HF_TOKEN");
    }
    let path = match path_variable("HF_TOKEN_PATH") {
        Some(path) => path,
        // Without a home there is no file either.
        None => match hub_home() {
            Ok(home) => home.join("token"),
            Err(_) => return Ok(None),
        },
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => clean_token(&text, &format!("{path:?}")),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => {
            let hint = Hint::Other("set HF_TOKEN, or log in again".into());
            let error_here = environment_error(format!("cannot read the token in {path:?}"), Some(hint));
            Err(HubError { source: Some(error.into()), ..error_here }.into())
        }
    }
}

fn clean_token(text: &str, origin: &str) -> Result<Option<Token>> {
    let text = text.trim();
    if text.bytes().any(|byte| !byte.is_ascii_graphic()) {
        let hint = Hint::Other(format!("make one at {DEFAULT_ENDPOINT}/settings/tokens").into());
        return Err(environment_error(format!("{origin} holds no token: it must be one word"), Some(hint)).into());
    }
    Ok((!text.is_empty()).then(|| Token(text.into())))
}

/// `HF_HOME`, or its default.
fn hub_home() -> Result<PathBuf> {
    if let Some(home) = path_variable("HF_HOME") {
        return Ok(home);
    }
    if let Some(cache) = path_variable("XDG_CACHE_HOME") {
        return Ok(cache.join("huggingface"));
    }
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let home = home.ok_or_else(|| {
        environment_error("there is no home folder to keep models in".into(), Some(Hint::ChooseCache))
    })?;
    Ok(home.join(".cache/huggingface"))
}

/// The value of an environment variable, unless it is empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

/// A path in an environment variable, with `~` and variables expanded.
fn path_variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    let path = PathBuf::from(value.to_str().map_or_else(|| value.clone(), |text| expanded(text).into()));
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

/// Expands `$NAME` and `${NAME}`. Variables that are not set stay as they are.
fn expanded(text: &str) -> String {
    let mut parts = text.split('$');
    let mut expanded = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let (name, rest) = match part.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(split) => split,
            None => part.split_at(part.find(|char| !is_name(char)).unwrap_or(part.len())),
        };
        match std::env::var(name) {
            Ok(value) if !name.is_empty() => expanded += &(value + rest),
            _ => expanded += &format!("${part}"),
        }
    }
    expanded
}

fn is_true(text: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&text.to_uppercase().as_str())
}

/// The free bytes of the disk that a folder is on or would be on, if the file system says.
#[cfg(unix)]
pub fn free_bytes(folder: &Path) -> Option<u64> {
    // The last ancestor of a relative path is empty.
    let named = |folder| if folder == Path::new("") { Path::new(".") } else { folder };
    let there = folder.ancestors().map(named).find(|folder| folder.is_dir())?;
    let stats = rustix::fs::statvfs(there).ok()?;
    // Some network and FUSE file systems report no blocks at all.
    (stats.f_blocks > 0).then(|| stats.f_bavail.saturating_mul(stats.f_frsize))
}

#[cfg(not(unix))]
pub fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses() {
        assert_eq!(endpoint("https://hub.example//").unwrap().as_str(), "https://hub.example/");
        assert_eq!(endpoint("http://127.0.0.1:8080/mirror").unwrap().as_str(), "http://127.0.0.1:8080/mirror/");
        for text in ["hub.example", "ftp://hub.example", "https://me:secret@hub.example", "https://", "http://h/?a=b"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn timeouts_are_seconds_that_a_clock_can_hold() {
        assert_eq!((timeout("0").unwrap(), timeout("7").unwrap()), (DEFAULT_TIMEOUT, 7));
        assert_eq!(timeout(&u64::MAX.to_string()).unwrap(), MAX_TIMEOUT);
        assert_eq!(timeout(&"9".repeat(40)).unwrap(), MAX_TIMEOUT);
        for text in ["soon", "-1", "1.5", "+3"] {
            assert!(timeout(text).unwrap_err().to_string().contains("HF_HUB_DOWNLOAD_TIMEOUT"), "{text}");
        }
    }

    #[test]
    fn paths_may_name_variables() {
        let path = std::env::var("PATH").unwrap();
        assert_eq!(expanded("/a/$PATH/${PATH}b"), format!("/a/{path}/{path}b"));
        for text in ["$NO_SUCH_VARIABLE/x", "${NO_SUCH_VARIABLE}", "a$", "$$", "${", "/plain"] {
            assert_eq!(expanded(text), text);
        }
    }

    #[test]
    fn a_token_never_shows() {
        let token = clean_token(" hf_secret\n", "HF_TOKEN").unwrap().unwrap();
        assert_eq!(token.authorization(), "Bearer hf_secret");
        assert!(!format!("{token:?}").contains("secret"));
        let error = clean_token("two words", "HF_TOKEN").unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("words"), "{error}");
        assert!(clean_token(" ", "HF_TOKEN").unwrap().is_none());
    }

    #[test]
    fn free_space_is_that_of_the_nearest_folder() {
        let folder = tempfile::TempDir::new().unwrap();
        assert!(free_bytes(&folder.path().join("not/yet/there")).is_some_and(|bytes| bytes > 0));
        assert!(free_bytes(Path::new("not/yet/there")).is_some());
    }
}
