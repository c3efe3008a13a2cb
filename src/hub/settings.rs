//! What the environment says about the hub; each variable means what it means to Python's huggingface_hub.

use crate::bad_input;
use crate::bad_input::OrBadInput;
use anyhow::Result;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Seconds without a byte after which a server counts as gone.
const DEFAULT_TIMEOUT: u64 = 30;

/// The most of them: a week, which is for ever, and no clock ends before.
const LONGEST_TIMEOUT: u64 = 7 * 24 * 3600;

/// What the user says on the command line about the hub.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// Where downloads are kept, in place of what the environment says.
    pub cache_dir: Option<PathBuf>,
    /// Whether the network is out of bounds, whatever the environment says.
    pub offline: bool,
}

impl HubOptions {
    /// Where downloads are kept: here, or in `HF_HUB_CACHE`, `HF_HOME/hub`, or `huggingface/hub` in the user's cache.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is no home folder to have a cache in.
    pub fn cache_dir(&self) -> Result<PathBuf> {
        let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].iter().find_map(|name| path_variable(name));
        match self.cache_dir.clone().or(named) {
            Some(folder) => Ok(folder),
            None => Ok(hub_home()?.join("hub")),
        }
    }

    /// Whether the network must not be touched.
    pub fn is_offline(&self) -> bool {
        // The hub's own variable counts, if it says anything.
        let said = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().find_map(|name| variable(name));
        self.offline || said.is_some_and(|text| is_true(&text))
    }
}

/// How to reach the hub. Read only when it has to be reached.
#[derive(Debug)]
pub struct Connection {
    /// Where the hub is; its path ends in `/`.
    pub endpoint: Url,
    /// Who the user is.
    pub token: Option<Token>,
    /// How long a server may be silent.
    pub timeout: Duration,
    /// A file of certificates to trust in place of those inside the program.
    pub certificates: Option<PathBuf>,
}

impl Connection {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a variable or the token's file makes no sense.
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

/// A secret: printed, it does not show.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The header that proves who the user is.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// Seconds; none at all are the default, as in Python.
fn timeout(text: &str) -> Result<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad_input!("HF_HUB_DOWNLOAD_TIMEOUT is {text:?}, it must be a number of seconds"));
    }
    match text.parse() {
        Ok(0) => Ok(DEFAULT_TIMEOUT),
        Ok(seconds) => Ok(LONGEST_TIMEOUT.min(seconds)),
        // More digits than fit.
        Err(_) => Ok(LONGEST_TIMEOUT),
    }
}

fn endpoint(text: &str) -> Result<Url> {
    let wrong = || bad_input!("HF_ENDPOINT is {text:?}, it must be an address such as {DEFAULT_ENDPOINT}");
    let url = Url::parse(&format!("{}/", text.trim_end_matches('/'))).map_err(|_| wrong())?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    // A password in there would end up in messages.
    let is_plain = is_plain && url.username().is_empty() && url.password().is_none();
    if url.has_host() && is_plain { Ok(url) } else { Err(wrong()) }
}

/// The token in the environment or in the file where a login left it, unless it is forbidden to send one unasked.
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
            Err(error).or_bad_input(|| format!("cannot read the token in {path:?}; set HF_TOKEN, or log in again"))
        }
    }
}

fn clean_token(text: &str, origin: &str) -> Result<Option<Token>> {
    let text = text.trim();
    if text.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(bad_input!(
            "{origin} holds no token: it must be one word; make one at {DEFAULT_ENDPOINT}/settings/tokens"
        ));
    }
    Ok((!text.is_empty()).then(|| Token(text.into())))
}

/// `HF_HOME`, or where it is by default.
fn hub_home() -> Result<PathBuf> {
    if let Some(home) = path_variable("HF_HOME") {
        return Ok(home);
    }
    if let Some(cache) = path_variable("XDG_CACHE_HOME") {
        return Ok(cache.join("huggingface"));
    }
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let home = home.ok_or_else(|| bad_input!("there is no home folder to keep models in; give --cache-dir FOLDER"))?;
    Ok(home.join(".cache/huggingface"))
}

/// An environment variable; an empty one is none.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

/// A path in an environment variable, with the home folder for `~` and other variables for their names.
fn path_variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    let path = PathBuf::from(value.to_str().map_or_else(|| value.clone(), |text| expanded(text).into()));
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

/// A text with the values of the variables that it names as `$NAME` or `${NAME}`; of those that are not set, the names.
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

/// Whether a folder or the nearest one above it that is there has a device with a known amount of free bytes.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    // What a relative path begins in has no name.
    let named = |folder| if folder == Path::new("") { Path::new(".") } else { folder };
    let there = folder.ancestors().map(named).find(|folder| folder.is_dir())?;
    let stats = fs4::statvfs(there).ok()?;
    // Some network and FUSE file systems report no blocks at all, which does not mean that nothing fits.
    (stats.total_space() > 0).then(|| stats.available_space())
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
        assert_eq!(timeout(&u64::MAX.to_string()).unwrap(), LONGEST_TIMEOUT);
        assert_eq!(timeout(&"9".repeat(40)).unwrap(), LONGEST_TIMEOUT);
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
