//! Errors of the Hugging Face hub and of the cache of its files.

use super::parts::{Cause, Hint};
use std::time::Duration;

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

    pub(super) fn is_bad_input(self) -> bool {
        use HubErrorKind::{
            AccessDenied, Environment, FileNotFound, Incomplete, Offline, RepositoryNotFound, RevisionNotFound, Unsafe,
        };
        let is_not_found = matches!(self, RepositoryNotFound | RevisionNotFound | FileNotFound);
        is_not_found || matches!(self, AccessDenied | Offline | Unsafe | Incomplete | Environment)
    }
}
