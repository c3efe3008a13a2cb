//! The hub's routes over HTTP: the files of a commit, their metadata, their contents.
//!
//! Redirects are followed here and not by ureq: the response that redirects to a large file has its size and hash, another
//! host must not see the user's token, and each host has a proxy of its own.

use super::etag::{FileMetadata, blob_name};
use super::failure::{self, Limits, Resource, host};
use super::name::{HubName, RepositoryKind, is_commit};
use super::plan::{is_safe_path, leads_elsewhere};
use super::proxy::Proxies;
use super::settings::{Connection, environment_error};
use super::tree::{self, Files};
use crate::error::{Cause, Error, Hint, HubErrorKind, Result};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};
use url::Url;

/// The largest size of configurations, vocabularies, indices and listings.
pub const MAX_SMALL_FILE: u64 = 64 << 20;

const MAX_REDIRECTS: usize = 10;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The total timeout of small responses, redirects included, as a multiple of the idle timeout.
const TOTAL_TIMEOUT: u32 = 4;

/// The files of a commit.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The commit that the revision is at.
    pub commit: String,
    /// Paths, with sizes where the hub has them.
    pub files: BTreeMap<String, Option<u64>>,
}

/// The response to a download.
pub struct Content {
    /// The offset of its first byte in the file.
    pub start: u64,
    /// The offset of its end, if the server says.
    pub end: Option<u64>,
    /// The strong ETag of the server that sends it, if it has one. It may differ from the hub's.
    pub etag: Option<String>,
    /// The bytes.
    pub reader: Box<dyn Read>,
}

/// A client of the hub.
pub struct Client {
    agent: Agent,
    connection: Connection,
    proxies: Proxies,
}

/// A response, and the address that it came from.
struct Answer {
    response: Response<Body>,
    url: Url,
    /// Whether it redirects to another host and has the metadata already.
    is_redirect: bool,
}

impl Answer {
    fn host(&self) -> String {
        host(&self.url)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    fn has(&self, name: &str) -> bool {
        self.response.headers().contains_key(name)
    }

    /// Whether the body is not the requested bytes. Some servers and proxies compress whatever the request says.
    fn is_encoded(&self) -> bool {
        self.header("content-encoding").is_some_and(|encoding| !encoding.trim().eq_ignore_ascii_case("identity"))
    }

    /// The decoded body. Encodings other than gzip stay, and fail the check of the content.
    fn into_reader(self) -> Box<dyn Read> {
        let encoding = self.header("content-encoding").unwrap_or_default().trim();
        let is_gzip = ["gzip", "x-gzip"].iter().any(|name| encoding.eq_ignore_ascii_case(name));
        let body = self.response.into_body().into_reader();
        if is_gzip { Box::new(MultiGzDecoder::new(body)) } else { Box::new(body) }
    }
}

impl Client {
    /// Prepares a client; nothing is sent yet.
    ///
    /// # Errors
    /// [`HubErrorKind::Environment`] if the certificates cannot be used.
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

    /// The time limits of its requests.
    pub fn limits(&self) -> Limits {
        let idle = self.connection.timeout;
        Limits { idle, total: idle.saturating_mul(TOTAL_TIMEOUT) }
    }

    /// The files of a revision.
    ///
    /// # Errors
    /// If there is no such repository or revision, or the hub cannot be reached or does not answer as it should.
    pub fn listing(&self, name: &HubName, revision: &str) -> Result<Listing> {
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
        let resource = Resource { revision, ..Resource::of(name) };
        let (model, host): (Model, _) = self.json(self.info_url(&resource, "blobs=true"), &resource)?;
        check_commit(&model.sha, &host, &resource)?;
        if let Some(Sibling { rfilename, .. }) = model.siblings.iter().find(|file| leads_elsewhere(&file.rfilename)) {
            let reason =
                format!("{resource} has a file {rfilename:?}, a path that leads elsewhere; it is not safe to use");
            return Err(resource.error(HubErrorKind::Unsafe, reason, None).into());
        }
        // The rest have names that not every system allows, and no run needs them.
        let files = model.siblings.into_iter().filter(|file| is_safe_path(&file.rfilename));
        let files = files.map(|file| (file.rfilename, file.size)).collect();
        Ok(Listing { commit: model.sha, files })
    }

    /// The commit that a revision is at.
    ///
    /// # Errors
    /// As for [`Client::listing`].
    pub fn commit(&self, resource: &Resource) -> Result<String> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
        }
        let (info, host): (Info, _) = self.json(self.info_url(resource, "expand=sha"), resource)?;
        check_commit(&info.sha, &host, resource)?;
        Ok(info.sha)
    }

    /// A page of all files of a commit, the first or the one at `page`, and the address of the next.
    ///
    /// # Errors
    /// As for [`Client::listing`].
    pub fn tree_page(&self, resource: &Resource, page: Option<&Url>) -> Result<(Files, Option<Url>)> {
        let url = page.cloned().unwrap_or_else(|| {
            let mut url = self.api_url(resource, "tree");
            url.set_query(Some("recursive=true&expand=false"));
            url
        });
        let (text, host, next) = self.small_text(url, resource)?;
        let files = tree::parse_page(&text).map_err(|error| self.no_listing(error, &host, resource))?;
        Ok((files, next))
    }

    /// The JSON at an address, and the host that it came from.
    fn json<T: DeserializeOwned>(&self, url: Url, resource: &Resource) -> Result<(T, String)> {
        let (text, host, _) = self.small_text(url, resource)?;
        let value = serde_json::from_slice(&text).map_err(|error| self.no_listing(error, &host, resource))?;
        Ok((value, host))
    }

    /// The text at an address, the host that it came from, and the address of the next page.
    fn small_text(&self, url: Url, resource: &Resource) -> Result<(Vec<u8>, String, Option<Url>)> {
        let limit = Some(self.limits().total);
        let answer = self.request(Method::GET, url, &[("accept-encoding", "gzip")], resource, limit)?;
        self.check_status(&answer, resource)?;
        let (host, next) = (answer.host(), next_page(&answer, resource)?);
        let mut text = Vec::new();
        let read = answer.into_reader().take(MAX_SMALL_FILE + 1).read_to_end(&mut text);
        read.map_err(|error| resource.transport_error(error.into(), &host, self.limits()))?;
        if text.len() as u64 > MAX_SMALL_FILE {
            return Err(resource.too_large(&host).into());
        }
        Ok((text, host, next))
    }

    /// What came from a host is no listing, or not all of it.
    fn no_listing(&self, error: serde_json::Error, host: &str, resource: &Resource) -> Error {
        if error.is_eof() {
            let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
            return resource.transport_error(cut.into(), host, self.limits());
        }
        resource.protocol_error(format!("{host} answers with what is no listing of {resource}")).because(error)
    }

    /// The metadata of a file of a commit.
    ///
    /// # Errors
    /// As for [`Client::listing`], or if the response is for another commit.
    pub fn metadata(&self, file: &Resource) -> Result<FileMetadata> {
        // A server that compresses would send the size of the compressed file.
        let headers = [("accept-encoding", "identity")];
        let answer = self.request(Method::HEAD, self.file_url(file), &headers, file, Some(self.limits().total))?;
        if !answer.is_redirect {
            self.check_status(&answer, file)?;
        }
        let wrong = |what: &str| file.protocol_error(format!("{} gives {what} for {file}", answer.host()));
        let commit = answer.header("x-repo-commit").ok_or_else(|| wrong("no commit"))?;
        if commit != file.revision {
            return Err(wrong(&format!("commit {commit:?}")).into());
        }
        let headers = answer.response.headers();
        let given = |name: &str| headers.get(name).map(|value| text(value.as_bytes())).filter(|text| !text.is_empty());
        let etag = given("x-linked-etag").or_else(|| given("etag")).and_then(|etag| blob_name(&etag));
        let etag = etag.ok_or_else(|| wrong("no usable etag"))?;
        let length = answer.header("content-length").filter(|_| !answer.is_redirect && !answer.is_encoded());
        let size = answer.header("x-linked-size").or(length).and_then(|text| text.parse().ok());
        Ok(FileMetadata { etag, size })
    }

    /// Downloads a file of a commit from byte `from` on. The server may start earlier all the same; with `if_range` it
    /// starts at 0 if its ETag has changed. A file that is not large has a total timeout.
    ///
    /// # Errors
    /// As for [`Client::listing`], and [`HubErrorKind::RangeNotSatisfiable`].
    pub fn content(&self, file: &Resource, from: u64, if_range: Option<&str>, is_large: bool) -> Result<Content> {
        let range = format!("bytes={from}-");
        let mut headers = vec![("accept-encoding", "identity")];
        if from > 0 {
            headers.push(("range", &range));
            headers.extend(if_range.map(|etag| ("if-range", etag)));
        }
        let limit = (!is_large).then_some(self.limits().total);
        let answer = self.request(Method::GET, self.file_url(file), &headers, file, limit)?;
        let unsatisfiable = |reason| Error::from(file.error(HubErrorKind::RangeNotSatisfiable, reason, None));
        let status = answer.response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(unsatisfiable(format!("{} has no byte {from} of {file}", answer.host())));
        }
        self.check_status(&answer, file)?;
        let is_encoded = answer.is_encoded();
        let start = match status {
            // A part of the compressed file is no part of the file.
            StatusCode::PARTIAL_CONTENT if is_encoded => None,
            StatusCode::PARTIAL_CONTENT => {
                answer.header("content-range").and_then(range_start).filter(|start| *start <= from)
            }
            _ => Some(0),
        };
        let start =
            start.ok_or_else(|| unsatisfiable(format!("{} answers with another part of {file}", answer.host())))?;
        // A weak one allows for different bytes.
        let etag = answer.header("etag").filter(|etag| etag.starts_with('"')).map(String::from);
        let len: Option<u64> = answer.header("content-length").and_then(|text| text.parse().ok());
        let end = len.filter(|_| !is_encoded).map(|len| start.saturating_add(len));
        Ok(Content { start, end, etag, reader: answer.into_reader() })
    }

    /// Reading the response of [`Client::content`] failed.
    pub fn read_error(&self, error: io::Error, file: &Resource) -> Error {
        file.transport_error(error.into(), &host(&self.connection.endpoint), self.limits())
    }

    /// The response of [`Client::content`] is too slow.
    pub fn too_slow(&self, file: &Resource) -> Error {
        let (host, path) = (host(&self.connection.endpoint), file.path.unwrap_or_default());
        let reason = format!("{host} sends less than 1 kB of {path} a second");
        file.error(HubErrorKind::Interrupted, reason, Some(Hint::Resume)).into()
    }

    /// Sends a request and follows redirects. `limit` is the total timeout, to the last byte of the body.
    fn request(
        &self,
        method: Method,
        mut url: Url,
        headers: &[(&str, &str)],
        resource: &Resource,
        limit: Option<Duration>,
    ) -> Result<Answer> {
        let start = Instant::now();
        for _ in 0..=MAX_REDIRECTS {
            let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
            let response = self.send(&method, &url, headers, resource, left)?;
            let answer = Answer { response, url, is_redirect: false };
            let Some(next) = redirection(&answer, resource)? else { return Ok(answer) };
            let is_elsewhere = next.origin() != answer.url.origin();
            let has_hash = answer.has("x-linked-etag") || is_elsewhere && answer.has("etag");
            if method == Method::HEAD && has_hash && answer.has("x-repo-commit") {
                return Ok(Answer { is_redirect: true, ..answer });
            }
            url = next;
        }
        Err(resource.protocol_error(format!("{} redirects {resource} in circles", host(&url))).into())
    }

    fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
        resource: &Resource,
        limit: Option<Duration>,
    ) -> Result<Response<Body>> {
        let failed = |error| resource.transport_error(error, &host(url), self.limits());
        let mut request = Request::builder().method(method.clone()).uri(url.as_str());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let is_hub = url.origin() == self.connection.endpoint.origin();
        if let Some(token) = self.connection.token.as_ref().filter(|_| is_hub) {
            request = request.header("authorization", token.authorization());
        }
        let request = request.body(()).map_err(|error| failed(error.into()))?;
        let proxy = self.proxies.of(url)?;
        let request = self.agent.configure_request(request).proxy(proxy).timeout_global(limit).build();
        self.agent.run(request).map_err(failed)
    }

    fn check_status(&self, answer: &Answer, resource: &Resource) -> Result<()> {
        let status = answer.response.status();
        if status.is_success() {
            return Ok(());
        }
        let (endpoint, has_token) = (&self.connection.endpoint, self.connection.token.is_some());
        let headers = answer.response.headers();
        Err(failure::of_status(status, headers, &answer.host(), endpoint, has_token, resource))
    }

    /// The address of a file. Every segment is escaped, and a `/` in a revision too.
    fn file_url(&self, resource: &Resource) -> Url {
        let path = resource.path.unwrap_or_default();
        let title = resource.title();
        self.url(title.split('/').chain(["resolve", resource.revision]).chain(path.split('/')))
    }

    /// The address of what the hub says of a repository at a revision.
    fn info_url(&self, resource: &Resource, query: &str) -> Url {
        let mut url = self.api_url(resource, "revision");
        url.set_query(Some(query));
        url
    }

    fn api_url(&self, resource: &Resource, route: &str) -> Url {
        let kind = match resource.kind {
            RepositoryKind::Model => "models",
            RepositoryKind::Dataset => "datasets",
        };
        self.url(["api", kind].into_iter().chain(resource.repository.split('/')).chain([route, resource.revision]))
    }

    fn url<'s>(&self, parts: impl Iterator<Item = &'s str>) -> Url {
        let mut url = self.connection.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }
}

/// Refuses what is no commit, or not the requested one.
fn check_commit(commit: &str, host: &str, resource: &Resource) -> Result<()> {
    if is_commit(commit) && (!is_commit(resource.revision) || commit == resource.revision) {
        return Ok(());
    }
    Err(resource.protocol_error(format!("{host} gives commit {commit:?} for {resource}")).into())
}

/// The address of the page after a response: RFC 8288, as the hub writes it.
fn next_page(answer: &Answer, resource: &Resource) -> Result<Option<Url>> {
    let links = answer.header("link").unwrap_or_default().split('<').filter_map(|link| link.split_once('>'));
    let is_next = |parameters: &str| {
        let mut parameters = parameters.split([';', ',']).map(str::trim);
        parameters.any(|parameter| parameter == "rel=\"next\"" || parameter == "rel=next")
    };
    let Some((target, _)) = { links }.find(|(_, parameters)| is_next(parameters)) else { return Ok(None) };
    let next = answer.url.join(target).ok();
    match next.filter(|next| is_as_safe(next, &answer.url)) {
        Some(next) => Ok(Some(next)),
        None => {
            let reason =
                format!("{} continues the listing of {resource} at an address that is not safe", answer.host());
            Err(resource.protocol_error(reason).into())
        }
    }
}

/// Whether an address may be requested because a response from another says so.
fn is_as_safe(next: &Url, from: &Url) -> bool {
    next.scheme() == "https" || next.scheme() == "http" && from.scheme() == "http"
}

/// The address that a response redirects to, if it does.
fn redirection(answer: &Answer, resource: &Resource) -> Result<Option<Url>> {
    if !matches!(answer.response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let next = answer.header("location").and_then(|location| answer.url.join(location).ok());
    match next {
        Some(next) if is_as_safe(&next, &answer.url) => Ok(Some(next)),
        _ => {
            let reason = format!("{} redirects {resource} to an address that is not safe", answer.host());
            Err(resource.protocol_error(reason).into())
        }
    }
}

/// Decodes a header as Python does: UTF-8, or else Latin-1.
fn text(value: &[u8]) -> Cow<'_, str> {
    str::from_utf8(value).map_or_else(|_| value.iter().copied().map(char::from).collect(), Cow::from)
}

/// The first byte of a `Content-Range`.
fn range_start(range: &str) -> Option<u64> {
    range.trim().strip_prefix("bytes")?.trim_start().split_once('-')?.0.trim().parse().ok()
}

/// The certificates in a PEM file.
fn certificates(path: &Path) -> Result<RootCerts> {
    let failed = |cause: Cause| {
        let variables = "which SSL_CERT_FILE or REQUESTS_CA_BUNDLE names";
        environment_error(format!("cannot use the certificates in {path:?}, {variables}"), None).because(cause)
    };
    let text = std::fs::read(path).map_err(|error| failed(error.into()))?;
    let certificates = ureq::tls::parse_pem(&text).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    let certificates: Vec<Certificate<'static>> =
        certificates.collect::<Result<_, _>>().map_err(|error| failed(error.into()))?;
    if certificates.is_empty() { Err(failed("there are none".into())) } else { Ok(RootCerts::from(certificates)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_escaped() {
        let endpoint = Url::parse("https://hub.example/mirror/").unwrap();
        let connection = Connection { endpoint, token: None, timeout: Duration::from_secs(1), certificates: None };
        let client = Client::new(connection).unwrap();
        let resource = |kind, revision, path| Resource { kind, repository: "a/b", revision, path };
        let listing = client.info_url(&resource(RepositoryKind::Model, "refs/pr/1", None), "blobs=true");
        let expected = "https://hub.example/mirror/api/models/a/b/revision/refs%2Fpr%2F1?blobs=true";
        assert_eq!(listing.as_str(), expected);
        let file = client.file_url(&resource(RepositoryKind::Model, "c0", Some("prior/a b?.json")));
        assert_eq!(file.as_str(), "https://hub.example/mirror/a/b/resolve/c0/prior/a%20b%3F.json");
        let rows = client.file_url(&resource(RepositoryKind::Dataset, "c0", Some("a.csv")));
        assert_eq!(rows.as_str(), "https://hub.example/mirror/datasets/a/b/resolve/c0/a.csv");
        let tree = client.api_url(&resource(RepositoryKind::Dataset, "c0", None), "tree");
        assert_eq!(tree.as_str(), "https://hub.example/mirror/api/datasets/a/b/tree/c0");
        assert!(ureq::http::Uri::try_from(file.as_str()).is_ok());
    }

    #[test]
    fn headers_are_read_as_in_python() {
        assert_eq!(text(b"a\xc3\xa9"), "a\u{e9}");
        assert_eq!(text(b"a\xe9"), "a\u{e9}");
    }

    #[test]
    fn a_part_says_where_it_begins() {
        assert_eq!(range_start("bytes 10-19/20"), Some(10));
        assert_eq!(range_start("bytes 0-/*"), Some(0));
        for text in ["bytes */20", "items 1-2/3", "bytes -1", ""] {
            assert_eq!(range_start(text), None, "{text:?}");
        }
    }
}
