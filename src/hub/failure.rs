//! What goes wrong between here and the hub, as one line each that says what to do, and whether it is worth another try.

use crate::bad_input;
use anyhow::{Error, anyhow};
use std::fmt;
use std::io;
use std::time::Duration;
use ureq::http::{HeaderMap, StatusCode};
use url::Url;

/// The advice for a server that does not behave like the hub.
pub const CHECK_ENDPOINT: &str = "is HF_ENDPOINT right, and does no proxy answer in the hub's place?";

/// The longest that a server may ask us to wait before the next try.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A failed request.
#[derive(Debug)]
pub struct Failure {
    error: Error,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Trying again will not help, but what is in the cache may: the hub does not give what it gave before.
    Lasting,
    /// The hub does not have the revision.
    NoRevision,
    /// It is not the hub's: the disk is full, or the model is not supported.
    Own,
    /// There is no way to the server.
    Unreachable,
    /// It may help, after as long as the server says.
    Passing(Option<Duration>),
    /// The server does not have the part of a file that was asked for.
    RangeRefused,
}

impl Failure {
    /// Trying again will not help.
    pub fn lasting(error: Error) -> Self {
        Self { error, kind: Kind::Lasting }
    }

    /// Something else than the hub is in the way.
    pub fn own(error: Error) -> Self {
        Self { error, kind: Kind::Own }
    }

    /// The server does not have the part of a file that was asked for.
    pub fn range_refused(error: Error) -> Self {
        Self { error, kind: Kind::RangeRefused }
    }

    /// Whether it may be better at another time.
    pub fn is_passing(&self) -> bool {
        !matches!(self.kind, Kind::Lasting | Kind::NoRevision | Kind::Own)
    }

    /// Whether what is in the cache is as good as ever.
    pub fn leaves_cache(&self) -> bool {
        !matches!(self.kind, Kind::NoRevision | Kind::Own)
    }

    /// Whether the hub does not have the revision.
    pub fn is_no_revision(&self) -> bool {
        self.kind == Kind::NoRevision
    }

    /// Whether a second try may help at once.
    pub fn is_worth_retrying(&self) -> bool {
        matches!(self.kind, Kind::Passing(_) | Kind::RangeRefused)
    }

    /// Whether the server does not have the part of a file that was asked for.
    pub fn is_range_refused(&self) -> bool {
        self.kind == Kind::RangeRefused
    }

    /// How long to wait before another try, if the server says.
    pub fn wait(&self) -> Option<Duration> {
        if let Kind::Passing(wait) = self.kind { wait } else { None }
    }

    /// The error to show.
    pub fn into_error(self) -> Error {
        self.error
    }

    /// The line to show.
    pub fn line(&self) -> String {
        self.error.to_string()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::own(error)
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// `owner/name`.
    pub repository: &'a str,
    /// The branch, tag or commit.
    pub revision: &'a str,
    /// A file in it.
    pub path: Option<&'a str>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path {
            Some(path) => write!(formatter, "{path} of {}", self.repository),
            None => write!(formatter, "{} at {}", self.repository, self.revision),
        }
    }
}

/// What an answer that is no success means.
pub fn of_status(
    status: StatusCode,
    headers: &HeaderMap,
    host: &str,
    endpoint: &Url,
    has_token: bool,
    place: &Place,
) -> Failure {
    let Place { repository, revision, path } = place;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = header("x-error-code").unwrap_or_default();
    match status.as_u16() {
        401 | 403 if code == "GatedRepo" => {
            let login =
                if has_token { "with the account of your token" } else { "and set HF_TOKEN to a token of yours" };
            Failure::lasting(bad_input!("{repository} is gated: accept its licence at {endpoint}{repository} {login}"))
        }
        401 if has_token && code != "RepoNotFound" => Failure::lasting(bad_input!(
            "{host} does not accept the token: set HF_TOKEN to a valid one (see {endpoint}settings/tokens), or unset it"
        )),
        401 => Failure::lasting(bad_input!(
            "{host} has no public repository {repository}, and no such folder is here; check the name or, if it is private, set HF_TOKEN"
        )),
        403 => Failure::lasting(bad_input!(
            "{host} forbids access to {place}: the token in HF_TOKEN, or your address, has no right to it"
        )),
        404 if code == "RevisionNotFound" => {
            let line = format!("{repository} has no revision {revision:?}; see {endpoint}{repository}/branches");
            Failure { error: bad_input!("{line}"), kind: Kind::NoRevision }
        }
        404 | 410 if path.is_some() && code != "RepoNotFound" => Failure::lasting(bad_input!(
            "{host} does not have {place} (commit {revision}); give another model or --revision"
        )),
        404 | 410 => Failure::lasting(bad_input!(
            "{host} has no repository {repository} with a revision {revision:?}, and no such folder is here; check the name"
        )),
        407 => Failure::lasting(proxy_wants_login()),
        408 | 429 | 500..=599 => of_busy_server(status, header("retry-after"), host, place),
        _ => Failure::lasting(anyhow!("{host} answers {status} for {place}; {CHECK_ENDPOINT}")),
    }
}

fn of_busy_server(status: StatusCode, retry_after: Option<&str>, host: &str, place: &Place) -> Failure {
    let wait = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let what = if status == StatusCode::TOO_MANY_REQUESTS {
        format!("{host} has had too many requests from here")
    } else {
        format!("{host} is in trouble ({status}, for {place})")
    };
    match wait {
        Some(wait) if wait > LONGEST_WAIT => {
            Failure::lasting(anyhow!("{what}; it asks to wait {} s: try again then", wait.as_secs()))
        }
        wait => Failure { error: anyhow!("{what}; try again later"), kind: Kind::Passing(wait) },
    }
}

fn proxy_wants_login() -> Error {
    anyhow!("the proxy wants a name and a password (407); put them into HTTPS_PROXY: http://name:password@host:port")
}

/// What it means that a request got no answer.
pub fn of_transport(error: ureq::Error, url: &Url, timeout: Duration) -> Failure {
    use ureq::Error as Transport;
    let host = super::client::host(url);
    let seconds = timeout.as_secs();
    let (kind, line) = match &error {
        Transport::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => (Kind::Unreachable, unreachable(&host)),
        Transport::Timeout(_) => (Kind::Passing(None), silent(&host, seconds)),
        Transport::Io(cause) if is_certificate_error(cause) => (Kind::Lasting, untrusted(&host)),
        Transport::Io(cause) if is_timeout(cause) => (Kind::Passing(None), silent(&host, seconds)),
        Transport::Io(cause) if is_cut(cause) => {
            (Kind::Passing(None), format!("the connection to {host} broke off; try again"))
        }
        Transport::HostNotFound | Transport::ConnectionFailed | Transport::Io(_) => {
            (Kind::Unreachable, unreachable(&host))
        }
        Transport::Rustls(_) | Transport::Tls(_) | Transport::Pem(_) => (Kind::Lasting, untrusted(&host)),
        Transport::ConnectProxyFailed(reason) if reason.contains("407") => {
            return Failure::lasting(Error::new(error).context(proxy_wants_login()));
        }
        Transport::ConnectProxyFailed(_) => {
            (Kind::Unreachable, format!("the proxy does not connect to {host}; check HTTPS_PROXY and NO_PROXY"))
        }
        Transport::BodyExceedsLimit(_) => {
            (Kind::Lasting, format!("{host} answers with more than the hub ever says; {CHECK_ENDPOINT}"))
        }
        Transport::BodyStalled | Transport::Protocol(_) => {
            (Kind::Passing(None), format!("the answer of {host} breaks off or is no HTTP; try again"))
        }
        _ => (Kind::Lasting, format!("{host} cannot be asked; {CHECK_ENDPOINT}")),
    };
    Failure { error: Error::new(error).context(line), kind }
}

/// What it means that an answer breaks off.
pub fn of_body(error: io::Error, endpoint: &Url, path: &str, timeout: Duration) -> Failure {
    let host = super::client::host(endpoint);
    let line = if is_timeout(&error) {
        silent(&host, timeout.as_secs())
    } else {
        format!("the download of {path} from {host} broke off; run the same command again to go on from there")
    };
    Failure { error: Error::new(error).context(line), kind: Kind::Passing(None) }
}

fn unreachable(host: &str) -> String {
    format!("cannot reach {host}; check the network (and HTTPS_PROXY), or use a model that is on this machine")
}

fn silent(host: &str, seconds: u64) -> String {
    format!("{host} sent nothing for {seconds} s; try again, or raise HF_HUB_DOWNLOAD_TIMEOUT")
}

fn untrusted(host: &str) -> String {
    format!(
        "no safe connection to {host}: it has no certificate that is trusted; behind a proxy that opens connections, set SSL_CERT_FILE to the proxy's"
    )
}

/// The HTTP library wraps what TLS says into errors of input and output.
fn is_certificate_error(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData && error.get_ref().is_some()
}

fn is_timeout(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(_)))
        || matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn of(status: u16, headers: &[(&str, &str)], has_token: bool, path: Option<&str>) -> Failure {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(ureq::http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let place = Place { repository: "a/b", revision: "main", path };
        let endpoint = Url::parse("https://hub.example/").unwrap();
        of_status(StatusCode::from_u16(status).unwrap(), &map, "hub.example", &endpoint, has_token, &place)
    }

    #[test]
    fn answers_say_what_to_do() {
        let gated = [("x-error-code", "GatedRepo")];
        let no_revision = [("x-error-code", "RevisionNotFound")];
        let cases: [(Failure, &str); 8] = [
            (of(401, &gated, false, None), "https://hub.example/a/b and set HF_TOKEN"),
            (of(403, &gated, true, None), "account of your token"),
            (of(401, &[], false, None), "no public repository a/b"),
            (of(401, &[], true, None), "does not accept the token"),
            (of(403, &[], true, Some("x")), "no right to it"),
            (of(404, &no_revision, false, None), "no revision \"main\""),
            (of(404, &[], false, None), "no repository a/b"),
            (of(404, &[], false, Some("x.json")), "does not have x.json of a/b"),
        ];
        for (failure, words) in cases {
            assert!(failure.line().contains(words), "{}", failure.line());
            assert!(!failure.is_passing());
            assert_eq!(failure.leaves_cache(), !failure.is_no_revision());
            assert_eq!(exit_code(&failure.into_error()), 2);
        }
    }

    #[test]
    fn busy_servers_are_asked_again_when_they_say() {
        let busy = of(429, &[("retry-after", "7")], false, None);
        assert_eq!(busy.wait(), Some(Duration::from_secs(7)));
        assert!(busy.is_worth_retrying() && busy.line().contains("too many requests"));
        assert!(of(503, &[], false, None).is_worth_retrying());
        let patient = of(429, &[("retry-after", "3600")], false, None);
        assert!(!patient.is_worth_retrying() && patient.line().contains("3600 s"));
        assert!(of(407, &[], false, None).line().contains("407"));
    }
}
