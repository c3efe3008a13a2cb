//! The proxy for an address, from the environment variables of `curl` and Python.

use super::settings::{environment_error, variable};
use crate::error::Result;
use std::net::IpAddr;
use ureq::Proxy;
use url::{Host, Url};

/// The environment's proxies, and the addresses that need none.
#[derive(Debug)]
pub struct Proxies {
    /// For `http`, `https`, and all: the variable and its value.
    named: [Option<(String, String)>; 3],
    exceptions: Exceptions,
}

impl Proxies {
    /// Reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in lower case first.
    pub fn from_environment() -> Self {
        let named = ["http_proxy", "https_proxy", "all_proxy"].map(in_either_case);
        let exceptions =
            in_either_case("no_proxy").map_or_else(Exceptions::default, |(_, text)| Exceptions::new(&text));
        Self { named, exceptions }
    }

    /// The proxy for an address: its scheme's or, if there is none, `ALL_PROXY`.
    ///
    /// # Errors
    /// [`crate::error::HubErrorKind::Environment`] if its value is no address.
    pub fn of(&self, url: &Url) -> Result<Option<Proxy>> {
        let [http, https, all] = &self.named;
        let own = if url.scheme() == "http" { http } else { https };
        match own.as_ref().or(all.as_ref()) {
            Some((name, value)) if !self.exceptions.contain(url) => {
                // The value may hold a password.
                let reason = || format!("{name} is not the address of a proxy, such as http://proxy.example:8080");
                Proxy::new(value).map(Some).map_err(|_| environment_error(reason(), None).into())
            }
            _ => Ok(None),
        }
    }
}

/// A variable in lower case or, if it is not set, in upper case. An empty one in lower case hides the other.
fn in_either_case(name: &str) -> Option<(String, String)> {
    let upper = name.to_uppercase();
    let name = if std::env::var_os(name).is_some() { name } else { &upper };
    Some((name.to_string(), variable(name)?))
}

/// The entries of `NO_PROXY`: domains, which include their subdomains, addresses and networks, each with an optional port.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exceptions(Vec<Exception>);

#[derive(Debug, PartialEq, Eq)]
struct Exception {
    scheme: Option<String>,
    target: Target,
    port: Option<u16>,
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    All,
    Name(String),
    Network(IpAddr, u32),
}

impl Exceptions {
    /// Parses a list with commas or spaces. Invalid entries are ignored, as elsewhere.
    pub fn new(list: &str) -> Self {
        let entries = list.split(|character: char| character == ',' || character.is_whitespace());
        Self(entries.filter_map(|entry| Exception::parse(&entry.to_lowercase())).collect())
    }

    /// Whether an address needs no proxy.
    pub fn contain(&self, url: &Url) -> bool {
        self.0.iter().any(|exception| exception.is_for(url))
    }
}

impl Exception {
    /// `*`, `name`, `.name`, `*.name`, `1.2.3.4`, `::1`, `10.0.0.0/8`, `fd00::/8`; with `:port` where an IPv6 address has
    /// brackets; with `scheme://` in front.
    fn parse(entry: &str) -> Option<Self> {
        let (scheme, entry) = entry.split_once("://").map_or((None, entry), |(scheme, rest)| (Some(scheme), rest));
        let scheme = scheme.filter(|scheme| *scheme != "all").map(String::from);
        let entry = entry.trim_end_matches('/');
        if let Some(target) = Target::address(entry) {
            return Some(Self { scheme, target, port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let target = Target::address(host).or_else(|| Target::name(host))?;
        Some(Self { scheme, target, port })
    }

    fn is_for(&self, url: &Url) -> bool {
        self.scheme.as_ref().is_none_or(|scheme| scheme == url.scheme())
            && self.port.is_none_or(|port| Some(port) == url.port_or_known_default())
            && url.host().is_some_and(|host| self.target.holds(&host))
    }
}

impl Target {
    fn address(text: &str) -> Option<Self> {
        let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = address.parse().ok()?;
        let all = bits(address).1;
        let len = len.map_or(Some(all), |len| len.parse().ok())?;
        (len <= all).then_some(Self::Network(address, len))
    }

    fn name(text: &str) -> Option<Self> {
        let name = text.trim_start_matches("*.").trim_matches('.');
        match name {
            "*" => Some(Self::All),
            _ => (!name.is_empty() && !name.contains(['/', ':', '['])).then(|| Self::Name(name.into())),
        }
    }

    fn holds(&self, host: &Host<&str>) -> bool {
        let address = match host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(IpAddr::from(*address)),
            Host::Ipv6(address) => Some(IpAddr::from(*address).to_canonical()),
        };
        match (self, host) {
            (Self::All, _) => true,
            (Self::Name(name), Host::Domain(domain)) => {
                let above = domain.trim_end_matches('.').strip_suffix(name.as_str());
                above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            (Self::Network(network, len), _) => address.is_some_and(|address| {
                let ((network, all), (address, address_bits)) = (bits(*network), bits(address));
                // They differ in no bit of the network's prefix.
                all == address_bits && (network ^ address).checked_shr(all - len).unwrap_or(0) == 0
            }),
            (Self::Name(_), _) => false,
        }
    }
}

/// An address as a number, and its width in bits.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_names_addresses_and_networks() {
        // (list, addresses without a proxy, addresses with one)
        let cases: [(&str, &[&str], &[&str]); 16] = [
            ("localhost", &["http://localhost", "https://LOCALHOST:8080"], &["http://localhost.example"]),
            ("hub.example", &["https://hub.example", "https://a.hub.example./x"], &["https://myhub.example"]),
            (".hub.example", &["https://hub.example", "https://a.hub.example"], &["https://myhub.example"]),
            ("*.Hub.Example.", &["https://hub.example", "https://a.hub.example"], &["https://example"]),
            ("hub.example:8080", &["http://a.hub.example:8080"], &["http://hub.example", "http://hub.example:18080"]),
            ("hub.example:443", &["https://hub.example", "http://hub.example:443"], &["http://hub.example"]),
            ("a.example, b.example\tc.example", &["http://a.example", "http://b.example", "http://c.example"], &[]),
            ("other.example,*", &["http://hub.example", "http://[::1]:8080", "http://10.0.0.1"], &[]),
            (
                "10.0.0.1",
                &["http://10.0.0.1:8080", "http://[::ffff:10.0.0.1]"],
                &["http://10.0.0.10", "http://a.10.0.0.1.b"],
            ),
            ("10.0.0.1:8080", &["http://10.0.0.1:8080"], &["http://10.0.0.1"]),
            (
                "10.1.2.3/8,192.168.64.0/18",
                &["http://10.9.9.9", "http://192.168.127.1"],
                &["http://11.0.0.0", "http://192.168.128.1"],
            ),
            ("0.0.0.0/0", &["http://255.1.2.3"], &["http://[::1]", "http://hub.example"]),
            (
                "::1, [fd00::1]:8080",
                &["http://[::1]:9", "http://[fd00::1]:8080"],
                &["http://[fd00::1]", "http://[::2]"],
            ),
            (
                "0:0:0:0:0:0:0:1,fd00::/8",
                &["http://[::1]", "http://[fdff::1]"],
                &["http://[fc00::1]", "http://0.0.0.1"],
            ),
            ("[2001:db8::]/32", &["https://[2001:db8:1::2]"], &["https://[2001:db9::]"]),
            (
                "https://hub.example,all://b.example",
                &["https://hub.example", "http://b.example"],
                &["http://hub.example"],
            ),
        ];
        for (list, without, with) in cases {
            let exceptions = Exceptions::new(list);
            let contain = |address: &&str| exceptions.contain(&Url::parse(address).unwrap());
            assert!(without.iter().all(contain), "{list}: {without:?}");
            assert!(!with.iter().any(contain), "{list}: {with:?}");
        }
    }

    #[test]
    fn invalid_exceptions_are_ignored() {
        for list in ["", " , ,", ".", "10.0.0.0/33", "::1/129", "10.0.0.0/x", "hub.example/8", "hub.example:x", "[::1"]
        {
            assert_eq!(Exceptions::new(list), Exceptions::default(), "{list:?}");
        }
    }
}
