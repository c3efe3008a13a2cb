//! What goes wrong between here and the hub, as one line each that says what to do, and whether it is worth another try.

use super::patience;
use crate::bad_input;
use anyhow::{Error, anyhow};
use std::fmt;
use std::io;
use std::time::Duration;
use ureq::http::{HeaderMap, StatusCode};
use url::Url;

/// The advice for a server that does not behave like the hub.
pub const CHECK_ENDPOINT: &str = "is HF_ENDPOINT right, and does no proxy answer in the hub's place?";

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
    /// Nothing can be written to the cache; what is in it can be read.
    Unwritable,
    /// The hub does not have the revision.
    NoRevision,
    /// It is not the hub's: the disk is full, or the model is not supported.
    Own,
    /// There is no way to the server.
    Unreachable,
    /// It may help, after as long as the server says. `what` is the line without the advice.
    Passing { what: String, wait: Option<Duration> },
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

    /// Nothing can be written to the cache.
    pub fn unwritable(error: Error) -> Self {
        Self { error, kind: Kind::Unwritable }
    }

    /// Trying again may help, after as long as the server asks to wait.
    pub fn passing(what: String, advice: &str, wait: Option<Duration>) -> Self {
        Self { error: anyhow!("{what}; {advice}"), kind: Kind::Passing { what, wait } }
    }

    /// The server does not have the part of a file that was asked for.
    pub fn range_refused(error: Error) -> Self {
        Self { error, kind: Kind::RangeRefused }
    }

    /// Whether it may be better at another time.
    pub fn is_passing(&self) -> bool {
        !matches!(self.kind, Kind::Lasting | Kind::NoRevision | Kind::Own | Kind::Unwritable)
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
        matches!(self.kind, Kind::Passing { .. } | Kind::RangeRefused)
    }

    /// Whether the server does not have the part of a file that was asked for.
    pub fn is_range_refused(&self) -> bool {
        self.kind == Kind::RangeRefused
    }

    /// How long to wait before another try, if the server says.
    pub fn asked_wait(&self) -> Option<Duration> {
        if let Kind::Passing { wait, .. } = self.kind { wait } else { None }
    }

    /// The line to show while another try is still to come.
    pub fn what(&self) -> String {
        if let Kind::Passing { what, .. } = &self.kind { what.clone() } else { self.line() }
    }

    /// The same failure with what led to it.
    fn because(self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        let line = self.line();
        Self { error: Error::new(cause).context(line), ..self }
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
        408 | 429 | 500..=599 => of_busy_server(status, header, host, place),
        _ => Failure::lasting(anyhow!("{host} answers {status} for {place}; {CHECK_ENDPOINT}")),
    }
}

fn of_busy_server<'a>(
    status: StatusCode,
    header: impl Fn(&str) -> Option<&'a str> + Copy,
    host: &str,
    place: &Place,
) -> Failure {
    let what = if status == StatusCode::TOO_MANY_REQUESTS {
        let quota = header("ratelimit-policy").and_then(patience::quota);
        let quota =
            quota.map_or_else(String::new, |(requests, seconds)| format!(" ({requests} in {seconds} s are allowed)"));
        format!("{host} has had too many requests from here{quota}")
    } else {
        format!("{host} is in trouble ({status}, for {place})")
    };
    let wait = patience::asked_wait(status.as_u16(), header);
    let advice = wait.map_or_else(|| "try again later".into(), |wait| format!("try again in {} s", wait.as_secs()));
    Failure::passing(what, &advice, wait)
}

fn proxy_wants_login() -> Error {
    anyhow!("the proxy wants a name and a password (407); put them into HTTPS_PROXY: http://name:password@host:port")
}

/// What it means that a request got no answer, or not the whole of it. `limit` is how long all of it may take.
pub fn of_transport(error: ureq::Error, url: &Url, timeout: Duration, limit: Duration) -> Failure {
    use ureq::Error as Transport;
    let host = super::client::host(url);
    let failure = |kind, line: String| Failure { error: Error::msg(line), kind };
    let failure = match &error {
        Transport::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            failure(Kind::Unreachable, unreachable(&host))
        }
        Transport::Timeout(ureq::Timeout::Global) => too_slow(&host, limit),
        Transport::Timeout(_) => silent(&host, timeout),
        Transport::Io(cause) if is_certificate_error(cause) => failure(Kind::Lasting, untrusted(&host)),
        Transport::Io(cause) if is_timeout(cause) => silent(&host, timeout),
        Transport::Io(cause) if is_cut(cause) => {
            Failure::passing(format!("the connection to {host} broke off"), "try again", None)
        }
        Transport::HostNotFound | Transport::ConnectionFailed | Transport::Io(_) => {
            failure(Kind::Unreachable, unreachable(&host))
        }
        Transport::Rustls(_) | Transport::Tls(_) | Transport::Pem(_) => failure(Kind::Lasting, untrusted(&host)),
        Transport::ConnectProxyFailed(reason) if reason.contains("407") => Failure::lasting(proxy_wants_login()),
        Transport::ConnectProxyFailed(_) => {
            let line = format!("the proxy does not connect to {host}; check HTTPS_PROXY and NO_PROXY");
            failure(Kind::Unreachable, line)
        }
        Transport::BodyExceedsLimit(_) | Transport::LargeResponseHeader(..) => failure(Kind::Lasting, too_much(&host)),
        Transport::BodyStalled | Transport::Protocol(_) => broken(&host),
        _ => failure(Kind::Lasting, format!("{host} cannot be asked; {CHECK_ENDPOINT}")),
    };
    failure.because(error)
}

/// What it means that an answer breaks off while a file is read from it.
pub fn of_body(error: io::Error, endpoint: &Url, path: &str, timeout: Duration, limit: Duration) -> Failure {
    let host = super::client::host(endpoint);
    let failure = match inner_timeout(&error) {
        Some(ureq::Timeout::Global) => too_slow(&host, limit),
        Some(_) => silent(&host, timeout),
        None if is_timeout(&error) => silent(&host, timeout),
        None => {
            let what = format!("the download of {path} from {host} broke off");
            Failure::passing(what, "run the same command again to go on from there", None)
        }
    };
    failure.because(error)
}

/// What it means that an answer comes in drops.
pub fn of_drip(endpoint: &Url, path: &str) -> Failure {
    let what = format!("{} sends less than 1 kB of {path} a second", super::client::host(endpoint));
    Failure::passing(what, "run the same command again to go on from there", None)
}

/// The line for an answer that is larger than anything the hub says.
pub fn too_much(host: &str) -> String {
    format!("{host} answers with more than the hub ever says; {CHECK_ENDPOINT}")
}

/// What it means that an answer ends before it is whole.
pub fn broken(host: &str) -> Failure {
    Failure::passing(format!("the answer of {host} breaks off or is no HTTP"), "try again", None)
}

/// What took as long as this will again.
fn too_slow(host: &str, limit: Duration) -> Failure {
    let seconds = limit.as_secs();
    Failure::lasting(anyhow!(
        "{host} did not answer in full within {seconds} s; try again, or raise HF_HUB_DOWNLOAD_TIMEOUT"
    ))
}

fn unreachable(host: &str) -> String {
    format!("cannot reach {host}; check the network (and HTTPS_PROXY), or use a model that is on this machine")
}

fn silent(host: &str, timeout: Duration) -> Failure {
    let what = format!("{host} sent nothing for {} s", timeout.as_secs());
    Failure::passing(what, "try again, or raise HF_HUB_DOWNLOAD_TIMEOUT", None)
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
    inner_timeout(error).is_some() || matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn inner_timeout(error: &io::Error) -> Option<ureq::Timeout> {
    match error.get_ref()?.downcast_ref()? {
        ureq::Error::Timeout(timeout) => Some(*timeout),
        _ => None,
    }
}

fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::errors::exit_code;

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
        assert_eq!(busy.asked_wait(), Some(Duration::from_secs(7)));
        assert!(busy.is_worth_retrying() && busy.line().contains("too many requests"));
        assert!(busy.line().ends_with("try again in 7 s") && !busy.what().contains("again"), "{}", busy.line());
        let limit = [("ratelimit", "\"api\";r=0;t=55"), ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300")];
        let limited = of(429, &limit, false, None);
        assert_eq!(limited.asked_wait(), Some(Duration::from_secs(55)));
        assert!(limited.what().ends_with("(500 in 300 s are allowed)"), "{}", limited.what());
        assert!(of(503, &[], false, None).is_worth_retrying());
        assert!(of(407, &[], false, None).line().contains("407"));
    }
}
