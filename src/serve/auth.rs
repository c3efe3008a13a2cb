//! Who may ask.

use super::failure::{Failure, Kind};
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use std::hint::black_box;

/// Checks the keys of requests.
#[derive(Debug)]
pub(super) struct Auth {
    /// The hash of the key, if there is one.
    key: Option<[u8; 32]>,
}

impl Auth {
    /// Lets those through that have the key; all if there is none.
    pub(super) fn new(key: Option<&str>) -> Self {
        Self { key: key.map(|key| Sha256::digest(key).into()) }
    }

    /// # Errors
    /// [`Kind::Unauthorized`].
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let Some(key) = &self.key else { return Ok(()) };
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
            Auth::new(key).check(&headers).is_ok()
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
}
