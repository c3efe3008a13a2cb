//! The hub's routes over HTTP: what a repository holds, what a file is, and what it contains.
//!
//! Redirects are followed here and not by the HTTP library, because they are part of what the hub says: the answer that
//! redirects to a large file has its size and hash, and another host must not see the user's token.

use super::cache::blob_name;
use super::failure::{self, Failure, Place};
use super::name::is_commit;
use super::plan::{is_safe_path, leads_elsewhere};
use super::proxy::Proxies;
use super::settings::Connection;
use crate::bad_input;
use crate::bad_input::OrBadInput;
use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};
use url::Url;

/// The most bytes of what is no weights: configurations, vocabularies, indices, and listings.
pub const SMALL_FILE: u64 = 64 << 20;

/// The most redirects on the way to an answer.
const MOST_REDIRECTS: usize = 10;

/// Seconds in which a connection has to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long all of an answer that is not large may take, redirects included, as a multiple of how long a server may be silent.
const WHOLE_ANSWER: u32 = 4;

/// A commit and the files in it.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The commit that the revision is.
    pub commit: String,
    /// Paths, with sizes as far as the hub says.
    pub files: BTreeMap<String, Option<u64>>,
}

/// What the hub says of a file.
#[derive(Debug, Clone)]
pub struct FileMetadata {
    /// The name of its content: SHA-256 for large files, Git's hash for small ones.
    pub etag: String,
    /// Its size in bytes.
    pub size: Option<u64>,
}

/// The beginning of an answer to a download.
pub struct Content {
    /// Where in the file it begins.
    pub start: u64,
    /// Where it ends, if the server says.
    pub end: Option<u64>,
    /// What the server that sends it calls this content, if that can be relied on.
    pub etag: Option<String>,
    /// The bytes from there on.
    pub reader: Box<dyn Read>,
}

/// A connection to the hub.
pub struct Client {
    agent: Agent,
    connection: Connection,
    proxies: Proxies,
}

/// An answer, and where it came from in the end.
struct Answer {
    response: Response<Body>,
    url: Url,
    /// Whether it is the hub's last word before a redirect to another host.
    ends_at_redirect: bool,
}

impl Client {
    /// Gets ready; nothing is sent yet.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the environment names certificates that cannot be used.
    pub fn new(connection: Connection) -> Result<Self> {
        let roots = connection.certificates.as_deref().map_or(Ok(RootCerts::WebPki), certificates)?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("prior-embed/", env!("CARGO_PKG_VERSION")))
            .accept("*/*")
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_resolve(Some(connection.timeout))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(connection.timeout))
            .timeout_per_read(Some(connection.timeout))
            .build()
            .new_agent();
        Ok(Self { agent, connection, proxies: Proxies::from_environment() })
    }

    /// How long a server may be silent.
    pub fn timeout(&self) -> Duration {
        self.connection.timeout
    }

    /// How long all of an answer that is not large may take.
    fn limit(&self) -> Duration {
        self.connection.timeout.saturating_mul(WHOLE_ANSWER)
    }

    /// The commit that a revision is, and its files.
    ///
    /// # Errors
    /// A [`Failure`] if there is no such repository or revision, or the hub cannot be reached or makes no sense.
    pub fn listing(&self, repository: &str, revision: &str) -> Result<Listing, Failure> {
        #[derive(Deserialize)]
        struct Model {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
        }
        let place = Place { repository, revision, path: None };
        let mut url = self.url(&["api", "models"], repository, &["revision", revision]);
        url.set_query(Some("blobs=true"));
        let answer = self.request(Method::GET, url, &[("accept-encoding", "gzip")], &place, Some(self.limit()))?;
        let (parts, body) = answer.response.into_parts();
        self.check(parts.status, &parts.headers, &answer.url, &place)?;
        let host = host(&answer.url);
        let mut text = Vec::new();
        let reader = decoded(&parts.headers, body.into_reader()).take(SMALL_FILE + 1);
        { reader }
            .read_to_end(&mut text)
            .map_err(|error| failure::of_transport(error.into(), &answer.url, self.connection.timeout, self.limit()))?;
        if text.len() as u64 > SMALL_FILE {
            return Err(Failure::lasting(anyhow::Error::msg(failure::too_much(&host))));
        }
        let model: Model = serde_json::from_slice(&text).map_err(|error| {
            if error.is_eof() {
                return failure::broken(&host);
            }
            let line = format!("{host} answers with what is no listing of {place}; {}", failure::CHECK_ENDPOINT);
            Failure::lasting(anyhow::Error::new(error).context(line))
        })?;
        if !is_commit(&model.sha) || is_commit(revision) && model.sha != revision {
            return Err(Failure::lasting(anyhow::anyhow!(
                "{host} gives commit {:?} for {place}; {}",
                model.sha,
                failure::CHECK_ENDPOINT
            )));
        }
        if let Some(file) = model.siblings.iter().find(|file| leads_elsewhere(&file.rfilename)) {
            let name = &file.rfilename;
            return Err(Failure::lasting(bad_input!(
                "{place} has a file {name:?}, a path that leads elsewhere; it is not safe to use"
            )));
        }
        // What is left is called what not every system knows, and is nothing that a run needs.
        let files = model.siblings.into_iter().filter(|file| is_safe_path(&file.rfilename));
        let files = files.map(|file| (file.rfilename, file.size)).collect();
        Ok(Listing { commit: model.sha, files })
    }

    /// What the hub says of a file in a commit.
    ///
    /// # Errors
    /// A [`Failure`], as for [`Client::listing`], or if the answer is for another commit.
    pub fn metadata(&self, repository: &str, commit: &str, path: &str) -> Result<FileMetadata, Failure> {
        let place = Place { repository, revision: commit, path: Some(path) };
        let url = self.file_url(repository, commit, path);
        // Without this a server may compress, and give the size of that.
        let headers = [("accept-encoding", "identity")];
        let answer = self.request(Method::HEAD, url, &headers, &place, Some(self.limit()))?;
        if !answer.ends_at_redirect {
            self.check(answer.response.status(), answer.response.headers(), &answer.url, &place)?;
        }
        let headers = answer.response.headers();
        let no_hub = |what: &str| {
            let host = host(&answer.url);
            Failure::lasting(anyhow::anyhow!("{host} gives {what} for {place}; {}", failure::CHECK_ENDPOINT))
        };
        let found = header(headers, "x-repo-commit").ok_or_else(|| no_hub("no commit"))?;
        if found != commit {
            return Err(no_hub(&format!("commit {found:?}")));
        }
        let given = |name: &str| headers.get(name).map(|value| text(value.as_bytes())).filter(|text| !text.is_empty());
        let etag = given("x-linked-etag").or_else(|| given("etag")).and_then(|etag| blob_name(&etag));
        let etag = etag.ok_or_else(|| no_hub("no usable etag"))?;
        let has_length = !answer.ends_at_redirect && !is_encoded(headers);
        let length = header(headers, "content-length").filter(|_| has_length);
        let size = header(headers, "x-linked-size").or(length).and_then(|text| text.parse().ok());
        Ok(FileMetadata { etag, size })
    }

    /// Begins to download a file of a commit from byte `from` on. A server may begin earlier all the same.
    ///
    /// With `unless_changed` the server is to begin at the start if its etag for the content is another by now. What is not
    /// large has to come within some time.
    ///
    /// # Errors
    /// A [`Failure`], as for [`Client::listing`]; [`Failure::is_range_refused`] if the file has no such byte.
    pub fn content(
        &self,
        repository: &str,
        commit: &str,
        path: &str,
        from: u64,
        unless_changed: Option<&str>,
        is_large: bool,
    ) -> Result<Content, Failure> {
        let place = Place { repository, revision: commit, path: Some(path) };
        let range = format!("bytes={from}-");
        let mut headers = vec![("accept-encoding", "identity")];
        if from > 0 {
            headers.push(("range", &range));
            headers.extend(unless_changed.map(|etag| ("if-range", etag)));
        }
        let limit = (!is_large).then(|| self.limit());
        let answer = self.request(Method::GET, self.file_url(repository, commit, path), &headers, &place, limit)?;
        let (parts, body) = answer.response.into_parts();
        if parts.status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(Failure::range_refused(anyhow::anyhow!("{} has no byte {from} of {place}", host(&answer.url))));
        }
        self.check(parts.status, &parts.headers, &answer.url, &place)?;
        let is_encoded = is_encoded(&parts.headers);
        let start = match parts.status {
            // A part of what is encoded is no part of the file.
            StatusCode::PARTIAL_CONTENT if is_encoded => None,
            StatusCode::PARTIAL_CONTENT => content_start(&parts.headers).filter(|start| *start <= from),
            _ => Some(0),
        };
        let start = start.ok_or_else(|| {
            Failure::range_refused(anyhow::anyhow!("{} answers with another part of {place}", host(&answer.url)))
        })?;
        // A weak one says that the bytes may differ.
        let etag = header(&parts.headers, "etag").filter(|etag| etag.starts_with('"')).map(String::from);
        let len: Option<u64> = header(&parts.headers, "content-length").and_then(|text| text.parse().ok());
        let end = len.filter(|_| !is_encoded).map(|len| start.saturating_add(len));
        Ok(Content { start, end, etag, reader: decoded(&parts.headers, body.into_reader()) })
    }

    /// The line for a download that breaks off while it is read.
    pub fn broken_off(&self, error: std::io::Error, path: &str) -> Failure {
        failure::of_body(error, &self.connection.endpoint, path, self.connection.timeout, self.limit())
    }

    /// The line for a download that hardly moves.
    pub fn drips(&self, path: &str) -> Failure {
        failure::of_drip(&self.connection.endpoint, path)
    }

    /// Sends a request and follows redirects. For HEAD, an answer with the file's hash ends the way. `limit` is how long all
    /// of it may take, to the last byte that is read of the answer.
    fn request(
        &self,
        method: Method,
        mut url: Url,
        headers: &[(&str, &str)],
        place: &Place,
        limit: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let start = Instant::now();
        for _ in 0..=MOST_REDIRECTS {
            let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
            let response = self.send(&method, &url, headers, left)?;
            let next = redirection(&response, &url)?;
            let Some(next) = next else { return Ok(Answer { response, url, ends_at_redirect: false }) };
            let leaves = next.origin() != url.origin();
            let has = |name: &str| response.headers().contains_key(name);
            let says_hash = has("x-linked-etag") || leaves && has("etag");
            if method == Method::HEAD && says_hash && has("x-repo-commit") {
                return Ok(Answer { response, url, ends_at_redirect: true });
            }
            url = next;
        }
        let host = host(&url);
        Err(Failure::lasting(anyhow::anyhow!("{host} redirects {place} in circles; {}", failure::CHECK_ENDPOINT)))
    }

    fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
        limit: Option<Duration>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(method.clone()).uri(url.as_str());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // Nobody but the hub is to see it, wherever the hub sends us.
        if let Some(token) =
            self.connection.token.as_ref().filter(|_| url.origin() == self.connection.endpoint.origin())
        {
            request = request.header("authorization", token.authorization());
        }
        let request = request.body(()).map_err(|error| Failure::lasting(error.into()))?;
        let proxy = self.proxies.of(url).map_err(Failure::lasting)?;
        let request = self.agent.configure_request(request).proxy(proxy).timeout_global(limit).build();
        let response = self.agent.run(request);
        response.map_err(|error| failure::of_transport(error, url, self.connection.timeout, self.limit()))
    }

    fn check(&self, status: StatusCode, headers: &HeaderMap, url: &Url, place: &Place) -> Result<(), Failure> {
        if status.is_success() {
            return Ok(());
        }
        let has_token = self.connection.token.is_some();
        Err(failure::of_status(status, headers, &host(url), &self.connection.endpoint, has_token, place))
    }

    fn file_url(&self, repository: &str, commit: &str, path: &str) -> Url {
        let rest: Vec<&str> = ["resolve", commit].into_iter().chain(path.split('/')).collect();
        self.url(&[], repository, &rest)
    }

    /// An address below the endpoint; every part is escaped, a `/` in a revision too.
    fn url(&self, before: &[&str], repository: &str, after: &[&str]) -> Url {
        let mut url = self.connection.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(before).extend(repository.split('/')).extend(after);
        }
        url
    }
}

/// Where a response redirects to, if it does.
fn redirection(response: &Response<Body>, url: &Url) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = header(response.headers(), "location").and_then(|location| url.join(location).ok());
    let is_as_safe = |next: &Url| next.scheme() == "https" || next.scheme() == "http" && url.scheme() == "http";
    match location {
        Some(next) if is_as_safe(&next) => Ok(Some(next)),
        _ => {
            let host = host(url);
            let line = format!("{host} redirects to where this program does not go; {}", failure::CHECK_ENDPOINT);
            Err(Failure::lasting(anyhow::Error::msg(line)))
        }
    }
}

/// The host and port of an address. The rest of an address may hold a signature that is a secret.
pub fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A header's value as Python reads it: UTF-8, or else Latin-1.
fn text(value: &[u8]) -> Cow<'_, str> {
    str::from_utf8(value).map_or_else(|_| value.iter().copied().map(char::from).collect(), Cow::from)
}

/// Whether an answer is not the bytes of what was asked for. Some servers and proxies compress whatever a client says.
fn is_encoded(headers: &HeaderMap) -> bool {
    header(headers, "content-encoding").is_some_and(|encoding| !encoding.trim().eq_ignore_ascii_case("identity"))
}

/// What an answer holds. Encodings other than gzip stay as they are, and do not pass the checks of what they hold.
fn decoded(headers: &HeaderMap, body: impl Read + 'static) -> Box<dyn Read> {
    let encoding = header(headers, "content-encoding").unwrap_or_default().trim();
    let is_gzip = ["gzip", "x-gzip"].iter().any(|name| encoding.eq_ignore_ascii_case(name));
    if is_gzip { Box::new(MultiGzDecoder::new(body)) } else { Box::new(body) }
}

/// The first byte that a partial answer has.
fn content_start(headers: &HeaderMap) -> Option<u64> {
    let range = header(headers, "content-range")?.trim().strip_prefix("bytes")?.trim_start();
    range.split_once('-')?.0.trim().parse().ok()
}

/// The certificates in a PEM file.
fn certificates(path: &Path) -> Result<RootCerts> {
    let line = || format!("cannot use the certificates in {path:?}, which SSL_CERT_FILE or REQUESTS_CA_BUNDLE names");
    let text = std::fs::read(path).or_bad_input(line)?;
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.context("broken PEM").or_bad_input(line)? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err(bad_input!("{}: there are none", line())) } else { Ok(RootCerts::from(found)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Client {
        let endpoint = Url::parse(endpoint).unwrap();
        let connection = Connection { endpoint, token: None, timeout: Duration::from_secs(1), certificates: None };
        Client::new(connection).unwrap()
    }

    #[test]
    fn addresses_are_escaped() {
        let client = client("https://hub.example/mirror/");
        let listing = client.url(&["api", "models"], "a/b", &["revision", "refs/pr/1"]);
        assert_eq!(listing.as_str(), "https://hub.example/mirror/api/models/a/b/revision/refs%2Fpr%2F1");
        let file = client.file_url("a/b", "c0", "prior/a b?.json");
        assert_eq!(file.as_str(), "https://hub.example/mirror/a/b/resolve/c0/prior/a%20b%3F.json");
        assert!(ureq::http::Uri::try_from(file.as_str()).is_ok());
    }

    #[test]
    fn headers_are_read_as_in_python() {
        assert_eq!(text(b"a\xc3\xa9"), "a\u{e9}");
        assert_eq!(text(b"a\xe9"), "a\u{e9}");
    }

    #[test]
    fn a_part_says_where_it_begins() {
        let start = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", text.parse().unwrap());
            content_start(&headers)
        };
        assert_eq!(start("bytes 10-19/20"), Some(10));
        assert_eq!(start("bytes 0-/*"), Some(0));
        for text in ["bytes */20", "items 1-2/3", "bytes -1", ""] {
            assert_eq!(start(text), None, "{text:?}");
        }
    }
}
