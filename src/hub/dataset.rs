//! Files of data sets: from `hf://datasets/owner/name[@revision]/path` to files in the cache.
//!
//! Rows change more often than models, so a branch is looked up once in every run, and then all paths are of its commit.
//! What the cache has of a commit is used without asking again, and if the hub cannot be reached, the commit that the
//! branch was at the last time.

use super::cache::RepositoryCache;
use super::client::{Client, Listing};
use super::failure::{Resource, kind_of};
use super::fetch::{Hub, leaves_cache};
use super::name::{HubName, RepositoryKind, is_commit};
use super::plan::{is_safe_path, leads_elsewhere};
use super::progress::DownloadProgress;
use super::remote::{Remote, RemoteFile};
use super::retry::RetryPolicy;
use super::settings::Connection;
use super::source::split_revision;
use super::tree::{Files, TreeFile};
use crate::error::{Error, Hint, HubErrorKind, Result};
use percent_encoding::percent_decode_str;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

/// What the paths begin with, and those of data sets.
const SCHEME: &str = "hf://";
const DATASETS: &str = "hf://datasets/";

/// How many pages a listing may have: of a thousand files each.
const MAX_PAGES: usize = 10_000;

/// Which of some files of a commit are wanted.
pub type Selection<'a> = &'a dyn Fn(&[&str]) -> Vec<String>;

/// Files of a data set: `hf://datasets/owner/name[@revision][/path]`, as huggingface_hub's `HfFileSystem` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetPath {
    name: HubName,
    path: String,
}

impl DatasetPath {
    /// Whether a text is meant to be a path on the hub.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Parses a path. A `/` in a revision is written `%2F`, except in `refs/pr/1` and `refs/convert/parquet`.
    ///
    /// # Errors
    /// [`Error::Option`] if it is none.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parts(text).ok_or_else(|| {
            let reason = format!("{text:?} is no path of a data set; write {DATASETS}owner/name[@revision]/path");
            Error::Option { option: "prompts", reason }
        })
    }

    fn parts(text: &str) -> Option<Self> {
        let (owner, rest) = text.strip_prefix(DATASETS)?.split_once('/')?;
        let (name, rest) = rest.split_at(rest.find(['@', '/']).unwrap_or(rest.len()));
        let (revision, path) = split_revision(rest)?;
        let revision = revision.map(|revision| percent_decode_str(revision).decode_utf8()).transpose().ok()?;
        let name = HubName::new(RepositoryKind::Dataset, &format!("{owner}/{name}"), revision.as_deref())?;
        let path = path.unwrap_or_default();
        let folder = path.strip_suffix('/').unwrap_or(path);
        (folder.is_empty() || !leads_elsewhere(folder)).then(|| Self { name, path: path.into() })
    }

    /// The path in the repository, which may be a pattern, and is empty for the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The repository, without the revision.
    pub fn repository(&self) -> String {
        format!("{DATASETS}{}", self.name.repository)
    }

    /// The same with another path.
    pub fn with_path(&self, path: &str) -> Self {
        Self { path: path.into(), ..self.clone() }
    }

    /// Whether it may be the path of a file, and is not likelier a pattern.
    fn may_be_file(&self) -> bool {
        !self.path.is_empty() && !self.path.ends_with('/') && !self.path.contains(['*', '?', '['])
    }
}

impl fmt::Display for DatasetPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, path } = self;
        write!(formatter, "{DATASETS}{}", name.repository)?;
        if !name.is_default() {
            let is_special = name.revision.starts_with("refs/pr/") || name.revision.starts_with("refs/convert/");
            let revision = if is_special { name.revision.clone() } else { name.revision.replace('/', "%2F") };
            write!(formatter, "@{revision}")?;
        }
        if path.is_empty() { Ok(()) } else { write!(formatter, "/{path}") }
    }
}

/// Files of a data set that are on this machine.
#[derive(Debug)]
pub struct DatasetFiles {
    /// The commit.
    pub commit: String,
    /// The path in the repository of each, and where it is.
    pub files: Vec<(String, PathBuf)>,
}

/// The data sets of a run, each at one commit.
#[derive(Debug)]
pub struct Datasets<'a> {
    hub: &'a Hub,
    commits: Vec<(HubName, String)>,
}

impl<'a> Datasets<'a> {
    /// Touches neither the cache nor the network.
    pub fn new(hub: &'a Hub) -> Self {
        Self { hub, commits: Vec::new() }
    }

    /// The files that `select` takes of those in a data set, downloaded if the cache lacks them.
    ///
    /// # Errors
    /// [`Error::Hub`] if there is no such data set, or it cannot be downloaded.
    pub fn open(
        &mut self,
        wanted: &DatasetPath,
        select: Selection,
        progress: &mut dyn DownloadProgress,
    ) -> Result<DatasetFiles> {
        let name = &wanted.name;
        let cache = RepositoryCache::new(&self.hub.options.cache_dir()?, name);
        let known = self.commits.iter().find(|(other, _)| other == name).map(|(_, commit)| commit.clone());
        let known = known.or_else(|| is_commit(&name.revision).then(|| name.revision.clone()));
        let last = known.clone().or_else(|| cache.commit());
        let cached = last.as_deref().and_then(|commit| cached_files(&cache, commit, wanted, select));
        let found = match cached {
            Some(cached) if known.is_some() || self.hub.is_offline => cached,
            None if self.hub.is_offline => return Err(self.not_in_cache(wanted)?),
            cached => {
                let retry = if cached.is_some() { RetryPolicy::brief() } else { RetryPolicy::persistent() };
                match (fetch(wanted, select, known, cache, &retry, progress), cached) {
                    (Err(error), Some(cached)) if kind_of(&error).is_some_and(leaves_cache_of_rows) => {
                        let hint = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
                        log::warn!("{error}{hint}; using what is in the cache (commit {})", cached.commit);
                        cached
                    }
                    (fetched, _) => fetched?,
                }
            }
        };
        if !self.commits.iter().any(|(other, _)| other == name) {
            self.commits.push((name.clone(), found.commit.clone()));
        }
        Ok(found)
    }

    fn not_in_cache(&self, wanted: &DatasetPath) -> Result<Error> {
        let (folder, repository) = (self.hub.options.cache_dir()?, &wanted.name.repository);
        let reason = format!(
            "{wanted} is not in the cache in {folder:?}, and --offline or HF_HUB_OFFLINE forbids to download it"
        );
        let hint = format!("run the command once without, or `hf download {repository} --repo-type dataset`");
        Ok(Resource::of(&wanted.name).error(HubErrorKind::Offline, reason, Some(Hint::Other(hint.into()))).into())
    }
}

/// Whether the cached files are as good as ever, although the hub does not give newer ones.
fn leaves_cache_of_rows(kind: HubErrorKind) -> bool {
    leaves_cache(kind) && kind != HubErrorKind::FileNotFound
}

/// What the cache has of a commit, if that is all that is wanted: known from the list of all its files, or because the
/// path is that of a file.
fn cached_files(
    cache: &RepositoryCache,
    commit: &str,
    wanted: &DatasetPath,
    select: Selection,
) -> Option<DatasetFiles> {
    let snapshot = cache.snapshot(commit);
    let of_commit = |files: Vec<String>| {
        let files = files.into_iter().map(|path| (path.clone(), snapshot.path().join(&path))).collect();
        DatasetFiles { commit: commit.into(), files }
    };
    let Some(listed) = cache.tree(commit) else {
        let files = select(&[&wanted.path]);
        return (wanted.may_be_file() && snapshot.has(&wanted.path) && !files.is_empty()).then(|| of_commit(files));
    };
    let files = select_of(&listed, select);
    let is_here = |path: &String| {
        let len = std::fs::metadata(snapshot.path().join(path)).map(|metadata| metadata.len());
        snapshot.has(path) && len.ok() == listed.get(path).map(TreeFile::len)
    };
    (!files.is_empty() && files.iter().all(is_here)).then(|| of_commit(files))
}

fn select_of(listed: &Files, select: Selection) -> Vec<String> {
    select(&listed.keys().map(String::as_str).collect::<Vec<_>>())
}

/// Downloads what the cache lacks, of a commit that is known or of the newest.
fn fetch(
    wanted: &DatasetPath,
    select: Selection,
    known: Option<String>,
    cache: RepositoryCache,
    retry: &RetryPolicy,
    progress: &mut dyn DownloadProgress,
) -> Result<DatasetFiles> {
    let name = &wanted.name;
    let client = Client::new(Connection::from_environment()?)?;
    let commit = match known {
        Some(commit) => commit,
        None => retry.run(progress, || client.commit(&Resource::of(name)))?,
    };
    let at_commit = Resource { revision: &commit, ..Resource::of(name) };
    // A request for a file's metadata takes less than a list of all files.
    let listed = cache.tree(&commit);
    let single = match &listed {
        None if wanted.may_be_file() => {
            let file = Resource { path: Some(&wanted.path), ..at_commit };
            match retry.run(progress, || client.metadata(&file)) {
                // It may be a folder.
                Err(error) if kind_of(&error) == Some(HubErrorKind::FileNotFound) => None,
                metadata => Some(metadata?),
            }
        }
        _ => None,
    };
    let files: Vec<(String, _)> = match single {
        Some(metadata) => select(&[&wanted.path]).into_iter().map(|path| (path, metadata.clone())).collect(),
        None => {
            let listed = match listed {
                Some(listed) => listed,
                None => list(&client, &at_commit, &cache, retry, progress)?,
            };
            let no_etag = |path: &str| at_commit.protocol_error(format!("the hub gives no usable etag for {path:?}"));
            let file = |path: String| match listed.get(&path).and_then(TreeFile::metadata) {
                Some(metadata) => Ok((path, metadata)),
                None => Err(Error::from(no_etag(&path))),
            };
            select_of(&listed, select).into_iter().map(file).collect::<Result<_>>()?
        }
    };
    check_paths(files.iter().map(|(path, _)| path), is_safe_path, &at_commit)?;
    let sizes = files.iter().map(|(path, metadata)| (path.clone(), metadata.size)).collect();
    let remote = Remote::of_commit(name, Listing { commit: commit.clone(), files: sizes }, client, cache);
    let folder = remote.folder().to_path_buf();
    let local = files.iter().map(|(path, _)| (path.clone(), folder.join(path))).collect();
    let lacking = files.iter().filter(|(path, _)| !remote.is_here(path));
    let lacking: Vec<RemoteFile> =
        lacking.map(|(path, metadata)| RemoteFile { path, metadata: metadata.clone() }).collect();
    if !files.is_empty() {
        remote.fetch_files(&lacking, progress)?;
    }
    Ok(DatasetFiles { commit, files: local })
}

/// Refuses files whose paths are not safe.
fn check_paths<'p>(
    mut paths: impl Iterator<Item = &'p String>,
    is_safe: impl Fn(&str) -> bool,
    at_commit: &Resource,
) -> Result<()> {
    let Some(path) = paths.find(|path| !is_safe(path)) else { return Ok(()) };
    let reason = format!("{at_commit} has a file {path:?}, a path that is not safe to use");
    Err(at_commit.error(HubErrorKind::Unsafe, reason, None).into())
}

/// Lists all files of a commit, also in the cache.
fn list(
    client: &Client,
    at_commit: &Resource,
    cache: &RepositoryCache,
    retry: &RetryPolicy,
    progress: &mut dyn DownloadProgress,
) -> Result<Files> {
    let (mut files, mut next, mut pages) = (Files::new(), None, BTreeSet::new());
    while pages.len() < MAX_PAGES {
        let (page, after) = retry.run(progress, || client.tree_page(at_commit, next.as_ref()))?;
        check_paths(page.keys(), |path| !leads_elsewhere(path), at_commit)?;
        files.extend(page);
        next = after;
        match &next {
            None => {
                cache.set_tree(at_commit.revision, &files);
                return Ok(files);
            }
            // They lead in a circle.
            Some(page) if !pages.insert(page.to_string()) => break,
            Some(_) => {}
        }
    }
    Err(at_commit.protocol_error(format!("the list of files of {at_commit} does not end")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_parsed_and_printed_as_python_does() {
        // What huggingface_hub 2.4's `parse_hf_uri` gives: id, revision, path.
        for (text, repository, revision, path) in [
            ("hf://datasets/a/b", "a/b", "main", ""),
            ("hf://datasets/a/b/", "a/b", "main", ""),
            ("hf://datasets/a/b/c.csv", "a/b", "main", "c.csv"),
            ("hf://datasets/a/b@v1/d/c.csv", "a/b", "v1", "d/c.csv"),
            ("hf://datasets/a/b@refs/pr/3/c.json", "a/b", "refs/pr/3", "c.json"),
            ("hf://datasets/a/b@refs/convert/parquet/d/*.parquet", "a/b", "refs/convert/parquet", "d/*.parquet"),
            ("hf://datasets/a/b@x%2Fy/c.csv", "a/b", "x/y", "c.csv"),
            ("hf://datasets/a/b/x@y.csv", "a/b", "main", "x@y.csv"),
            ("hf://datasets/a/b/d/", "a/b", "main", "d/"),
        ] {
            let parsed = DatasetPath::parse(text).unwrap();
            let DatasetPath { name, path: found } = &parsed;
            assert_eq!((&*name.repository, &*name.revision, &**found), (repository, revision, path), "{text}");
            assert_eq!(parsed.to_string(), text.strip_suffix("b/").map_or(text.into(), |start| format!("{start}b")));
        }
        for text in [
            "hf://",
            "hf://a/b/c.csv",
            "hf://models/a/b/c.csv",
            "hf://datasets/a",
            "hf://datasets/a/b@/c.csv",
            "hf://datasets/a/b/../c",
            "hf://datasets/a/b//c",
            "hf://datasets/a/b@../c",
            "hf://datasets/a--b/c/d",
            "hf://datasets/a/b@%2e%2e/c",
            "hf://datasets/a/b@%ff/c",
            "hf://datasets//b/c",
        ] {
            let error = DatasetPath::parse(text).unwrap_err().to_string();
            assert!(error.contains("hf://datasets/owner/name[@revision]/path"), "{error}");
        }
    }
}
