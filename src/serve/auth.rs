//! Who may ask.

use super::failure::{Failure, Kind};
use super::options::is_loopback;
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use std::hint::black_box;
use std::net::IpAddr;

/// Checks the keys of requests.
#[derive(Debug)]
pub(super) struct Auth {
    /// The hash of the key, if there is one.
    key: Option<[u8; 32]>,
    /// Whether only this machine's own addresses are listened on.
    is_local: bool,
}

impl Auth {
    /// Lets those through that have the key; all if there is none, but where the server is for this machine alone only
    /// those that mean this machine.
    pub(super) fn new(key: Option<&str>, is_local: bool) -> Self {
        Self { key: key.map(|key| Sha256::digest(key).into()), is_local }
    }

    /// # Errors
    /// [`Kind::Unauthorized`].
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let Some(key) = &self.key else { return if self.is_local { check_host(headers) } else { Ok(()) } };
        let value = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = value.and_then(|value| {
            let (scheme, token) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
        });
        let refused = |message: &str| Err(Failure::new(Kind::Unauthorized, message));
        match given {
            None => refused("no API key; send it in the header Authorization: Bearer KEY"),
            Some(given) if !is_equal(key, &Sha256::digest(given).into()) => refused("the API key is wrong"),
            Some(_) => Ok(()),
        }
    }
}

/// Another site's page can have its own name resolve to this machine (DNS rebinding), and would then pass for the page of
/// this server. Its requests still name it.
///
/// # Errors
/// [`Kind::Unauthorized`] if the request is for another host than this machine.
fn check_host(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(value) = headers.get(header::HOST) else { return Ok(()) };
    let value = value.to_str().unwrap_or_default();
    let name = match value.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => value.split(':').next().unwrap_or_default(),
    };
    let lower = name.to_ascii_lowercase();
    let is_here =
        lower == "localhost" || lower.ends_with(".localhost") || name.parse::<IpAddr>().is_ok_and(is_loopback);
    let message = "the request is for another host than localhost; with --api-key it may be for any";
    if is_here { Ok(()) } else { Err(Failure::new(Kind::Unauthorized, message)) }
}

/// Compares in a time that does not depend on where the first difference is. Of hashes, so neither on the length of what
/// is compared.
fn is_equal(left: &[u8; 32], right: &[u8; 32]) -> bool {
    let difference = left.iter().zip(right).fold(0, |difference, (left, right)| black_box(difference | (left ^ right)));
    black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_must_be_there_and_right() {
        let check = |key: Option<&str>, value: Option<&'static [u8]>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, axum::http::HeaderValue::from_bytes(value).unwrap());
            }
            Auth::new(key, false).check(&headers).is_ok()
        };
        assert!(check(None, None) && check(None, Some(b"Bearer x")));
        for value in [&b"Bearer secret"[..], b"bearer secret", b"Bearer  secret "] {
            assert!(check(Some("secret"), Some(value)), "{value:?}");
        }
        let wrong =
            [&b"Bearer secre"[..], b"Bearer secrets", b"Bearer ", b"Bearer", b"Basic secret", b"secret", b"\xff"];
        for value in wrong {
            assert!(!check(Some("secret"), Some(value)), "{value:?}");
        }
        assert!(!check(Some("secret"), None));
    }

    #[test]
    fn a_local_server_is_asked_by_its_own_names() {
        let check = |auth: &Auth, host: &'static str| {
            let headers = HeaderMap::from_iter([(header::HOST, axum::http::HeaderValue::from_static(host))]);
            auth.check(&headers).is_ok()
        };
        let local = Auth::new(None, true);
        for host in [
            "localhost",
            "LocalHost:8080",
            "app.localhost",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(check(&local, host), "{host}");
        }
        for host in
            ["example.org:8080", "localhost.example.org", "192.168.0.1", "[fe80::1]", "", "127.0.0.1.example.org"]
        {
            assert!(!check(&local, host), "{host}");
            assert!(check(&Auth::new(None, false), host));
        }
        assert!(local.check(&HeaderMap::new()).is_ok());
    }
}
