//! What failed responses and connections mean, as typed errors.

use super::name::{HubName, RepositoryKind};
use super::rate_limit;
use crate::error::{Cause, Error, Hint, HubError, HubErrorKind};
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;
use ureq::http::{HeaderMap, StatusCode};
use ureq::{Error as HttpError, Timeout};
use url::Url;

/// A revision of a repository, or a file in it.
#[derive(Debug, Clone, Copy)]
pub struct Resource<'a> {
    /// What kind of repository it is.
    pub kind: RepositoryKind,
    /// `owner/name`
    pub repository: &'a str,
    /// A branch, tag or commit.
    pub revision: &'a str,
    /// The file.
    pub path: Option<&'a str>,
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path {
            Some(path) => write!(formatter, "{path} of {}", self.title()),
            None => write!(formatter, "{} at {}", self.title(), self.revision),
        }
    }
}

impl<'a> Resource<'a> {
    /// A repository at its revision.
    pub fn of(name: &'a HubName) -> Self {
        Self { kind: name.kind, repository: &name.repository, revision: &name.revision, path: None }
    }

    /// The repository's name in messages, and its page's address below the hub's.
    pub fn title(&self) -> String {
        format!("{}{}", self.kind.prefix(), self.repository)
    }

    /// An error about this resource.
    pub fn error(&self, kind: HubErrorKind, reason: String, hint: Option<Hint>) -> HubError {
        HubError {
            kind,
            repository: Some(self.title()),
            file: self.path.map(String::from),
            status: None,
            reason,
            hint,
            source: None,
        }
    }

    /// The server does not behave like the hub.
    pub fn protocol_error(&self, reason: String) -> HubError {
        self.error(HubErrorKind::Protocol, reason, Some(Hint::CheckEndpoint))
    }

    /// A request for it got no response, or not all of it.
    pub fn transport_error(&self, error: HttpError, host: &str, limits: Limits) -> Error {
        use HubErrorKind::{Interrupted, Protocol, TimedOut, Unreachable};
        let unreachable = || (Unreachable, format!("cannot reach {host}"), Hint::CheckNetwork);
        let seconds = |limit: Duration| limit.as_secs();
        let silent =
            || (Interrupted, format!("{host} sent nothing for {} s", seconds(limits.idle)), Hint::RaiseTimeout);
        let broken = |what: &str| (Interrupted, format!("{what} {host} broke off ({self})"), Hint::Resume);
        let untrusted = || {
            let hint = "behind a proxy that opens connections, set SSL_CERT_FILE to the proxy's certificate";
            (Protocol, format!("no safe connection to {host}: its certificate is not trusted"), other(hint))
        };
        let (kind, reason, hint) = match &error {
            HttpError::Timeout(Timeout::Connect | Timeout::Resolve) => unreachable(),
            HttpError::Timeout(Timeout::Global) => {
                let limit = seconds(limits.total);
                (TimedOut, format!("{host} did not answer in full within {limit} s"), Hint::RaiseTimeout)
            }
            HttpError::Timeout(_) => silent(),
            HttpError::Io(cause) if is_timeout(cause) => silent(),
            HttpError::Io(cause) if is_broken_off(cause) => broken("the connection to"),
            // ureq wraps rustls' errors.
            HttpError::Io(cause) if cause.kind() == io::ErrorKind::InvalidData && cause.get_ref().is_some() => {
                untrusted()
            }
            HttpError::Rustls(_) | HttpError::Tls(_) | HttpError::Pem(_) => untrusted(),
            HttpError::HostNotFound | HttpError::ConnectionFailed | HttpError::Io(_) => unreachable(),
            HttpError::ConnectProxyFailed(answer) => {
                let hint = other("check HTTPS_PROXY (for a login http://name:password@host:port) and NO_PROXY");
                (Unreachable, format!("the proxy does not connect to {host} ({answer})"), hint)
            }
            HttpError::BodyExceedsLimit(_) | HttpError::LargeResponseHeader(..) => {
                return self.too_large(host).because(error);
            }
            HttpError::BodyStalled | HttpError::Protocol(_) => broken("the response of"),
            _ => (Protocol, format!("cannot request {self} from {host}"), Hint::CheckEndpoint),
        };
        self.error(kind, reason, Some(hint)).because(error)
    }

    /// The response is larger than any of the hub's.
    pub fn too_large(&self, host: &str) -> HubError {
        self.protocol_error(format!("{host} answers with more than the hub ever says"))
    }
}

/// The time limits of a request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a server may send nothing.
    pub idle: Duration,
    /// How long a response that is no large file may take.
    pub total: Duration,
}

impl HubError {
    /// The same error with its cause.
    pub fn because(self, cause: impl Into<Cause>) -> Error {
        Self { source: Some(cause.into()), ..self }.into()
    }
}

/// What an error of the hub is about, if it is one.
pub fn kind_of(error: &Error) -> Option<HubErrorKind> {
    if let Error::Hub(error) = error { Some(error.kind) } else { None }
}

/// The host and port of an address. Its path may hold a secret signature.
pub fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"))
}

/// What a response that is no success means.
pub fn of_status(
    status: StatusCode,
    headers: &HeaderMap,
    host: &str,
    endpoint: &Url,
    has_token: bool,
    resource: &Resource,
) -> Error {
    use HubErrorKind::{AccessDenied, Busy, FileNotFound, RepositoryNotFound, RevisionNotFound};
    let (repository, Resource { revision, path, .. }) = (resource.title(), resource);
    let code = headers.get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
    // The name of a model may be that of a folder.
    let here = match resource.kind {
        RepositoryKind::Model => ", and no such folder is here",
        RepositoryKind::Dataset => "",
    };
    let (kind, reason, hint) = match status.as_u16() {
        401 | 403 if code == "GatedRepo" => {
            let url = format!("{endpoint}{repository}");
            (AccessDenied, format!("{repository} is gated"), Hint::AcceptLicense { url, has_token })
        }
        401 if has_token && code != "RepoNotFound" => {
            let url = format!("{endpoint}settings/tokens");
            (AccessDenied, format!("{host} does not accept the token in HF_TOKEN"), Hint::Login { url })
        }
        401 => (RepositoryNotFound, format!("{host} has no public repository {repository}{here}"), Hint::CheckName),
        403 => {
            let hint = other("check the rights of the token in HF_TOKEN, and whether your address is blocked");
            (AccessDenied, format!("{host} forbids access to {resource}"), hint)
        }
        404 if code == "RevisionNotFound" => {
            let hint = Hint::Other(format!("see {endpoint}{repository}/branches").into());
            (RevisionNotFound, format!("{repository} has no revision {revision:?}"), hint)
        }
        404 | 410 if path.is_some() && code != "RepoNotFound" => {
            let reason = format!("{host} does not have {resource} (commit {revision})");
            let hint = match resource.kind {
                RepositoryKind::Model => other("give another model or --revision"),
                RepositoryKind::Dataset => Hint::Other(format!("see {endpoint}{repository}/tree/{revision}").into()),
            };
            (FileNotFound, reason, hint)
        }
        404 | 410 => {
            let reason = format!("{host} has no repository {repository} with a revision {revision:?}{here}");
            (RepositoryNotFound, reason, Hint::CheckName)
        }
        407 => return proxy_login(resource).into(),
        429 => {
            let quota = rate_limit::quota(headers);
            let quota = quota
                .map_or_else(String::new, |(requests, seconds)| format!(" ({requests} in {seconds} s are allowed)"));
            let after = rate_limit::retry_after(429, headers);
            let reason = format!("{host} has had too many requests from here{quota}");
            (Busy { retry_after: after }, reason, Hint::TryAgain { after })
        }
        code @ (408 | 500..=599) => {
            let after = rate_limit::retry_after(code, headers);
            let reason = format!("{host} is in trouble ({status}, for {resource})");
            (Busy { retry_after: after }, reason, Hint::TryAgain { after })
        }
        _ => return resource.protocol_error(format!("{host} answers {status} for {resource}")).into(),
    };
    HubError { status: Some(status.as_u16()), ..resource.error(kind, reason, Some(hint)) }.into()
}

fn proxy_login(resource: &Resource) -> HubError {
    let hint = other("put them into HTTPS_PROXY: http://name:password@host:port");
    let reason = "the proxy wants a name and a password (407)".into();
    HubError { status: Some(407), ..resource.error(HubErrorKind::Protocol, reason, Some(hint)) }
}

fn other(text: &'static str) -> Hint {
    Hint::Other(Cow::Borrowed(text))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn is_broken_off(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, headers: &[(&str, &str)], has_token: bool, path: Option<&str>) -> Error {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let resource = Resource { kind: RepositoryKind::Model, repository: "a/b", revision: "main", path };
        let endpoint = Url::parse("https://hub.example/").unwrap();
        of_status(StatusCode::from_u16(status).unwrap(), &headers, "hub.example", &endpoint, has_token, &resource)
    }

    fn line(error: &Error) -> String {
        format!("{error}; {}", error.hint().unwrap())
    }

    #[test]
    fn responses_say_what_to_do() {
        use HubErrorKind::{AccessDenied, FileNotFound, RepositoryNotFound, RevisionNotFound};
        let gated = [("x-error-code", "GatedRepo")];
        let no_revision = [("x-error-code", "RevisionNotFound")];
        let cases: [(Error, HubErrorKind, &str); 8] = [
            (of(401, &gated, false, None), AccessDenied, "https://hub.example/a/b and set HF_TOKEN"),
            (of(403, &gated, true, None), AccessDenied, "account of your token"),
            (of(401, &[], false, None), RepositoryNotFound, "no public repository a/b"),
            (of(401, &[], true, None), AccessDenied, "does not accept the token"),
            (of(403, &[], true, Some("x")), AccessDenied, "forbids access to x of a/b"),
            (of(404, &no_revision, false, None), RevisionNotFound, "no revision \"main\""),
            (of(404, &[], false, None), RepositoryNotFound, "no repository a/b"),
            (of(404, &[], false, Some("x.json")), FileNotFound, "does not have x.json of a/b"),
        ];
        for (error, kind, words) in cases {
            assert!(line(&error).contains(words), "{}", line(&error));
            assert!(kind_of(&error) == Some(kind) && !kind.is_temporary(), "{error}");
            assert!(error.is_bad_input(), "{error}");
        }
    }

    #[test]
    fn busy_servers_say_when_to_try_again() {
        let busy = of(429, &[("retry-after", "7")], false, None);
        assert_eq!(kind_of(&busy), Some(HubErrorKind::Busy { retry_after: Some(Duration::from_secs(7)) }));
        assert!(busy.to_string().ends_with("too many requests from here"), "{busy}");
        assert!(line(&busy).ends_with("try again in 7 s"), "{busy}");
        let limit = [("ratelimit", "\"api\";r=0;t=55"), ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300")];
        let limited = of(429, &limit, false, None);
        assert_eq!(kind_of(&limited), Some(HubErrorKind::Busy { retry_after: Some(Duration::from_secs(55)) }));
        assert!(limited.to_string().ends_with("(500 in 300 s are allowed)"), "{limited}");
        assert_eq!(kind_of(&of(503, &[], false, None)), Some(HubErrorKind::Busy { retry_after: None }));
        assert!(of(407, &[], false, None).to_string().contains("407"));
    }
}
