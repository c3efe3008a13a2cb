//! A server with the hub's routes: listings, files with their ETags and commits, redirects of large files to another host,
//! ranges, and injected faults.

use flate2::Compression;
use flate2::write::GzEncoder;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The default commit of a repository.
pub const COMMIT: &str = "1111111111111111111111111111111111111111";

/// A repository.
#[derive(Debug, Clone)]
pub struct Repository {
    pub files: BTreeMap<String, Vec<u8>>,
    pub commit: String,
    /// The only token that has access.
    pub token: Option<String>,
    /// Anyone may list it, only the token may download.
    pub is_gated: bool,
}

impl Repository {
    /// The files of a folder.
    pub fn of_folder(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files);
        Self { files, commit: COMMIT.into(), token: None, is_gated: false }
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in folder.read_dir().unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// A fault.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Another status, with these headers and no body.
    Answer(u16, Vec<(&'static str, String)>),
    /// A header is set to this value.
    Header(&'static str, String),
    /// The connection closes after this many bytes of the body.
    Cut(usize),
    /// The connection falls silent after this many bytes of the body.
    Stall(usize),
    /// The first byte of the body is flipped.
    Corrupt,
    /// Another body.
    Body(String),
    /// `Range` is ignored.
    IgnoreRange,
    /// No `Content-Length`; the connection closes after this many bytes of the body.
    NoLength(usize),
    /// The body is sent byte by byte, with this pause.
    Drip(Duration),
    /// The body is compressed, whatever the request accepts.
    Gzip,
    /// Large files are redirected to the hub itself.
    OwnStore,
}

/// A fault for requests whose method and path contain `pattern`.
struct Rule {
    pattern: String,
    times: usize,
    fault: Fault,
}

/// A logged request.
#[derive(Debug, Clone)]
pub struct Logged {
    /// `GET /path`, after `cdn ` if it went to the other host.
    pub line: String,
    pub headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    /// By `owner/name`, of data sets `datasets/owner/name`.
    repositories: BTreeMap<String, Repository>,
    /// Entries on a page of a tree; all if not given.
    page_size: Option<usize>,
    rules: Vec<Rule>,
    log: Vec<Logged>,
}

/// The server, which runs until the process ends.
pub struct Server {
    address: SocketAddr,
    cdn: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.into(), value.to_string()));
        self
    }

    fn refused(status: u16, code: &str) -> Self {
        Self::new(status).header("x-error-code", code)
    }
}

impl Server {
    /// Starts the hub and the host of large files.
    pub fn start() -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = hub.local_addr().unwrap();
        let cdn_address = cdn.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || serve(stream, &state, cdn_address, is_cdn));
                }
            });
        }
        Self { address, cdn: cdn_address, state }
    }

    /// The address of the host of large files.
    pub fn cdn(&self) -> String {
        self.cdn.to_string()
    }

    /// The value for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Splits trees into pages of so many entries.
    pub fn set_page_size(&self, entries: usize) {
        self.state.lock().unwrap().page_size = Some(entries);
    }

    /// Adds or replaces a repository.
    pub fn put(&self, name: &str, repository: Repository) {
        self.state.lock().unwrap().repositories.insert(name.into(), repository);
    }

    /// Injects a fault into the next `times` requests that contain `pattern`. A request gets the first fault that fits.
    pub fn fail(&self, pattern: &str, times: usize, fault: Fault) {
        self.state.lock().unwrap().rules.push(Rule { pattern: pattern.into(), times, fault });
    }

    /// Removes all faults and clears the log.
    pub fn reset(&self) {
        let mut state = self.state.lock().unwrap();
        state.rules.clear();
        state.log.clear();
    }

    /// The logged requests whose line contains `pattern`.
    pub fn requests(&self, pattern: &str) -> Vec<Logged> {
        let log = &self.state.lock().unwrap().log;
        log.iter().filter(|logged| logged.line.contains(pattern)).cloned().collect()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, cdn: SocketAddr, is_cdn: bool) {
    // A TLS handshake, which this server does not speak.
    let mut first = [0];
    if stream.peek(&mut first).is_ok() && first == [0x16] {
        let _ = stream.write_all(b"HTTP/1.1 400 x\r\n\r\n");
        return;
    }
    let Some((method, path, headers)) = read_request(&stream) else { return };
    let line = format!("{}{method} {path}", if is_cdn { "cdn " } else { "" });
    let (mut reply, fault) = {
        let mut state = state.lock().unwrap();
        state.log.push(Logged { line: line.clone(), headers: headers.clone() });
        let is_due = |rule: &&mut Rule| rule.times > 0 && line.contains(&rule.pattern);
        let due = state.rules.iter_mut().find(is_due).map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        });
        let understands_ranges = !matches!(due, Some(Fault::IgnoreRange));
        let headers = if understands_ranges { headers } else { BTreeMap::new() };
        (route(&state, &path, &headers, cdn, is_cdn), due)
    };
    let mut end = None;
    let mut has_length = true;
    let mut pause_after_byte = None;
    if let Some(fault) = fault {
        match fault {
            Fault::Answer(status, headers) => {
                reply = Reply::new(status);
                for (name, value) in headers {
                    reply = reply.header(name, value);
                }
            }
            Fault::Header(name, value) => reply = reply.header(name, value),
            Fault::Corrupt => reply.body.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            Fault::Body(body) => reply = Reply { body: body.into_bytes(), ..Reply::new(200) },
            Fault::Cut(len) => end = Some((len, Duration::ZERO)),
            Fault::Stall(len) => end = Some((len, Duration::from_secs(20))),
            Fault::NoLength(len) => (has_length, end) = (false, Some((len, Duration::ZERO))),
            Fault::Drip(pause) => pause_after_byte = Some(pause),
            Fault::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(&reply.body).unwrap();
                reply = Reply { body: encoder.finish().unwrap(), ..reply }.header("content-encoding", "gzip");
            }
            Fault::OwnStore if !is_cdn => {
                let location = reply.headers.iter_mut().find(|(name, _)| name == "location");
                if let Some((_, location)) = location {
                    *location = format!("/store/{}", location.rsplit('/').next().unwrap());
                }
            }
            Fault::OwnStore | Fault::IgnoreRange => {}
        }
    }
    let length = reply.body.len();
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if has_length && !reply.headers.iter().any(|(name, _)| name == "content-length") {
        reply = reply.header("content-length", length);
    }
    for (name, value) in &reply.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let sent = end.map_or(length, |(len, _)| len.min(length));
    let body = if method == "HEAD" { &[] } else { &reply.body[..sent] };
    // The client may hang up.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| match pause_after_byte {
        Some(pause) => body.iter().try_for_each(|byte| {
            std::thread::sleep(pause);
            stream.write_all(&[*byte])
        }),
        None => stream.write_all(body),
    });
    if let Some((_, pause)) = end {
        std::thread::sleep(pause);
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    // A close with unread bytes would take back what was sent.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = stream.read(&mut [0; 64]);
}

fn read_request(stream: &TcpStream) -> Option<(String, String, BTreeMap<String, String>)> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.replace("%2F", "/").replace("%20", " "));
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_string()))
    });
    Some((method, path, headers.collect()))
}

fn route(state: &State, path: &str, headers: &BTreeMap<String, String>, cdn: SocketAddr, is_cdn: bool) -> Reply {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let (path, is_cdn) = path.strip_prefix("/store").map_or((path, is_cdn), |path| (path, true));
    if is_cdn {
        let contents = state.repositories.values().flat_map(|repository| repository.files.values());
        let wanted = path.trim_start_matches('/');
        let content = contents.into_iter().find(|content| sha256(content) == wanted);
        return content.map_or_else(|| Reply::new(404), |content| ranged(content, "\"cdn-etag\"", headers));
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", kind @ ("models" | "datasets"), owner, name, rest @ ..] => {
            let prefix = if *kind == "models" { "" } else { "datasets/" };
            let Some(repository) = find(state, prefix, owner, name) else { return Reply::refused(401, "RepoNotFound") };
            if !repository.is_gated && !may(repository, headers) {
                return refuse(repository, headers);
            }
            let (is_tree, revision) = match rest {
                ["revision", revision @ ..] => (false, revision.join("/")),
                ["tree", revision @ ..] => (true, revision.join("/")),
                _ => (false, "main".into()),
            };
            if !knows(repository, &revision) {
                return Reply::refused(404, "RevisionNotFound");
            }
            if is_tree {
                return tree_page(repository, query, state.page_size, &format!("http://{}{path}", headers["host"]));
            }
            let body = info(repository, owner, name, query.contains("expand="));
            Reply { body: body.to_string().into_bytes(), ..Reply::new(200) }
        }
        ["datasets", owner, name, "resolve", revision, file @ ..] => {
            resolve(find(state, "datasets/", owner, name), revision, &file.join("/"), headers, cdn)
        }
        [owner, name, "resolve", revision, file @ ..] => {
            resolve(find(state, "", owner, name), revision, &file.join("/"), headers, cdn)
        }
        _ => Reply::new(404),
    }
}

/// The response for a file.
fn resolve(
    repository: Option<&Repository>,
    revision: &str,
    path: &str,
    headers: &BTreeMap<String, String>,
    cdn: SocketAddr,
) -> Reply {
    let Some(repository) = repository else { return Reply::refused(401, "RepoNotFound") };
    if !may(repository, headers) {
        return refuse(repository, headers);
    }
    if !knows(repository, revision) {
        return Reply::refused(404, "RevisionNotFound");
    }
    let Some(content) = repository.files.get(path) else { return Reply::refused(404, "EntryNotFound") };
    let commit = &repository.commit;
    if !is_large(path) {
        let etag = format!("\"{}\"", git_hash(content));
        return ranged(content, &etag, headers).header("etag", etag).header("x-repo-commit", commit);
    }
    let hash = sha256(content);
    let location = format!("http://{cdn}/{hash}");
    let reply = Reply::new(302).header("location", location).header("x-repo-commit", commit);
    reply.header("x-linked-etag", format!("\"{hash}\"")).header("x-linked-size", content.len())
}

/// The response of `/api/models/…/revision/…`, or what it has with `expand=sha`.
fn info(repository: &Repository, owner: &str, name: &str, is_short: bool) -> serde_json::Value {
    if is_short {
        return serde_json::json!({"id": format!("{owner}/{name}"), "sha": repository.commit});
    }
    let sibling = |(name, content): (&String, &Vec<u8>)| serde_json::json!({"rfilename": name, "size": content.len()});
    let siblings: Vec<_> = repository.files.iter().map(sibling).collect();
    serde_json::json!({"id": format!("{owner}/{name}"), "sha": repository.commit, "siblings": siblings})
}

/// The response of `/api/…/tree/…`, or a page of it.
fn tree_page(repository: &Repository, query: &str, size: Option<usize>, url: &str) -> Reply {
    let entries = tree(repository);
    let cursor = query.split('&').find_map(|pair| pair.strip_prefix("cursor=")).map_or(0, |text| text.parse().unwrap());
    let end = entries.len().min(cursor + size.unwrap_or(usize::MAX - cursor));
    let body = serde_json::Value::from(entries[cursor..end].to_vec()).to_string();
    let reply = Reply { body: body.into_bytes(), ..Reply::new(200) };
    if end == entries.len() {
        return reply;
    }
    reply.header("link", format!("<{url}?recursive=true&cursor={end}>; rel=\"next\""))
}

fn tree(repository: &Repository) -> Vec<serde_json::Value> {
    let entry = |(path, content): (&String, &Vec<u8>)| {
        let mut entry =
            serde_json::json!({"type": "file", "path": path, "size": content.len(), "oid": git_hash(content)});
        if is_large(path) {
            entry["lfs"] = serde_json::json!({"oid": sha256(content), "size": content.len(), "pointerSize": 134});
        }
        entry
    };
    let folders = repository.files.keys().filter_map(|path| Some(path.rsplit_once('/')?.0));
    let folders: std::collections::BTreeSet<&str> = folders.collect();
    let folder = |path: &str| serde_json::json!({"type": "directory", "path": path, "size": 0, "oid": "0"});
    folders.into_iter().map(folder).chain(repository.files.iter().map(entry)).collect()
}

fn find<'a>(state: &'a State, prefix: &str, owner: &str, name: &str) -> Option<&'a Repository> {
    state.repositories.get(&format!("{prefix}{owner}/{name}"))
}

fn knows(repository: &Repository, revision: &str) -> bool {
    revision == "main" || revision == "refs/pr/1" || revision == repository.commit
}

fn may(repository: &Repository, headers: &BTreeMap<String, String>) -> bool {
    let sent = headers.get("authorization").map(String::as_str);
    repository.token.as_ref().is_none_or(|token| sent == Some(&format!("Bearer {token}")))
}

fn refuse(repository: &Repository, headers: &BTreeMap<String, String>) -> Reply {
    match headers.contains_key("authorization") {
        _ if repository.is_gated => Reply::refused(403, "GatedRepo"),
        true => Reply::new(401),
        false => Reply::refused(401, "RepoNotFound"),
    }
}

/// A content, or the requested range of it.
fn ranged(content: &[u8], etag: &str, headers: &BTreeMap<String, String>) -> Reply {
    let start = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let is_same = headers.get("if-range").is_none_or(|wanted| wanted == etag);
    let reply = match start {
        Some(start) if is_same && start < content.len() => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            Reply { body: content[start..].to_vec(), ..Reply::new(206) }.header("content-range", range)
        }
        Some(_) if is_same => Reply::new(416).header("content-range", format!("bytes */{}", content.len())),
        _ => Reply { body: content.to_vec(), ..Reply::new(200) },
    };
    reply.header("etag", etag)
}

/// Whether the hub redirects such a file to the other host.
pub fn is_large(path: &str) -> bool {
    [".safetensors", ".bin", ".parquet"].iter().any(|extension| path.ends_with(extension))
}

/// The ETag of a large file.
pub fn sha256(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

/// The ETag of a small file: Git's hash of a blob.
pub fn git_hash(content: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    format!("{:x}", hash.finalize())
}
