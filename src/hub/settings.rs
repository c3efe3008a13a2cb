//! What the environment says about the hub; each variable means what it means to Python's huggingface_hub.

use crate::bad_input;
use crate::error::OrBadInput;
use anyhow::Result;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Seconds without a byte after which a server counts as gone.
const DEFAULT_TIMEOUT: u64 = 30;

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
    /// [`crate::error::BadInput`] if there is no home folder to have a cache in.
    pub fn cache_dir(&self) -> Result<PathBuf> {
        let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].iter().find_map(|name| path_variable(name));
        match self.cache_dir.clone().or(named) {
            Some(folder) => Ok(folder),
            None => Ok(hub_home()?.join("hub")),
        }
    }

    /// Whether the network must not be touched.
    pub fn is_offline(&self) -> bool {
        self.offline || ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|name| is_true(name))
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
    /// [`crate::error::BadInput`] if a variable or the token's file makes no sense.
    pub fn from_environment() -> Result<Self> {
        let timeout = match variable("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => DEFAULT_TIMEOUT,
            Some(text) => text.parse().ok().filter(|&seconds| seconds > 0).ok_or_else(|| {
                bad_input!("HF_HUB_DOWNLOAD_TIMEOUT is {text:?}, it must be a number of seconds, 1 or more")
            })?,
        };
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

fn endpoint(text: &str) -> Result<Url> {
    let wrong = || bad_input!("HF_ENDPOINT is {text:?}, it must be an address such as {DEFAULT_ENDPOINT}");
    let url = Url::parse(&format!("{}/", text.trim_end_matches('/'))).map_err(|_| wrong())?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    // A password in there would end up in messages.
    let is_plain = is_plain && url.username().is_empty() && url.password().is_none();
    if url.has_host() && is_plain { Ok(url) } else { Err(wrong()) }
}

/// The token in the environment or, unless that is forbidden, in the file where a login left it.
fn token() -> Result<Option<Token>> {
    if let Some(text) = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].iter().find_map(|name| variable(name)) {
        return clean_token(&text, "HF_TOKEN");
    }
    if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return Ok(None);
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
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

/// A path in an environment variable, with the home folder for `~`.
fn path_variable(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(name).filter(|value| !value.is_empty())?);
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

fn is_true(name: &str) -> bool {
    variable(name).is_some_and(|text| ["1", "ON", "YES", "TRUE"].contains(&text.to_uppercase().as_str()))
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
