//! The proxy that the environment names, as `curl` and Python read it.

use super::settings::variable;
use crate::bad_input;
use anyhow::Result;
use ureq::Proxy;
use url::Url;

/// The proxy on the way to `endpoint`: the one for its scheme or, if there is none, the one for all.
///
/// # Errors
/// [`crate::error::BadInput`] if what is named there is no proxy.
pub fn from_environment(endpoint: &Url) -> Result<Option<Proxy>> {
    let scheme = format!("{}_proxy", endpoint.scheme());
    let names = [scheme.as_str(), "all_proxy"].into_iter().flat_map(|name| [name.to_string(), name.to_uppercase()]);
    let named = names.filter_map(|name| Some((variable(&name)?, name))).next();
    let Some((value, name)) = named else { return Ok(None) };
    // The value may hold a password.
    let wrong = |_| bad_input!("{name} is not the address of a proxy, such as http://proxy.example:8080");
    let proxy = Proxy::new(&value).map_err(wrong)?;
    match ["no_proxy", "NO_PROXY"].into_iter().find_map(variable) {
        Some(exceptions) => with_exceptions(&proxy, &exceptions).map(Some).map_err(wrong),
        None => Ok(Some(proxy)),
    }
}

/// The same proxy, past which the hosts of a list with commas are reached.
fn with_exceptions(proxy: &Proxy, hosts: &str) -> Result<Proxy, ureq::Error> {
    let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    builder = builder.resolve_target(proxy.resolve_target());
    if let Some(name) = proxy.username() {
        builder = builder.username(name);
    }
    if let Some(password) = proxy.password() {
        builder = builder.password(password);
    }
    // To ureq a name stands for itself alone, and `.name` for what is below it; elsewhere either one stands for both.
    for host in hosts.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        let name = host.trim_start_matches("*.").trim_start_matches('.');
        builder = builder.no_proxy(name).no_proxy(&format!(".{name}"));
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_leave_the_rest_as_it_is() {
        let proxy = Proxy::new("http://me:secret%40@proxy.example:8080").unwrap();
        let proxy = with_exceptions(&proxy, "localhost, .inside.example, corp.example").unwrap();
        assert_eq!((proxy.host(), proxy.port()), ("proxy.example", 8080));
        assert_eq!((proxy.username(), proxy.password()), (Some("me"), Some("secret@")));
        let is_past = |address: &str| proxy.is_no_proxy(&address.parse().unwrap());
        for host in ["localhost", "inside.example", "hub.inside.example", "corp.example", "hub.corp.example"] {
            assert!(is_past(&format!("https://{host}/")), "{host}");
        }
        assert!(!is_past("https://hub.example/"));
    }
}
