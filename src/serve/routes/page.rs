//! `GET /`: the page for people.

use crate::serve::answer::response;
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// The page, with its style and its script.
const PAGE: &str = include_str!("../page.html");

/// What the page may do: run its own script and style, ask this server, and show what it got. Nothing else is loaded from
/// anywhere, even if a prompt were to become markup.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let [style, script] = ["style", "script"].map(|element| hash_of(element).unwrap_or_default());
    format!(
        "default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// The hash of what an element of the page holds, as a content security policy names it.
fn hash_of(element: &str) -> Option<String> {
    let (_, rest) = PAGE.split_once(&format!("<{element}>"))?;
    let (content, _) = rest.split_once(&format!("</{element}>"))?;
    Some(format!("sha256-{}", STANDARD.encode(Sha256::digest(content))))
}

/// Answers `GET /`. It asks for no key: the routes that the page uses do.
pub(in crate::serve) async fn page() -> Response<Body> {
    let mut response = response("text/html; charset=utf-8", PAGE);
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_the_style_and_the_script() {
        assert_eq!(POLICY.matches("'sha256-").count(), 2, "{}", *POLICY);
        assert_eq!((PAGE.matches("<style").count(), PAGE.matches("<script").count()), (1, 1));
    }

    #[test]
    fn the_page_loads_nothing() {
        for reference in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!PAGE.contains(reference), "{reference}");
        }
    }
}
