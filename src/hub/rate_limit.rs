//! The rate limit headers of a response.
//!
//! Sources: `Retry-After` of RFC 9110, in seconds alone; `RateLimit` and `RateLimit-Policy` of the IETF's
//! `draft-ietf-httpapi-ratelimit-headers`.

use std::time::Duration;
use ureq::http::HeaderMap;

/// How long the server asks to wait before the next request.
///
/// The hub sends `RateLimit` with every response; it is the reason for a 429 alone.
pub fn retry_after(status: u16, headers: &HeaderMap) -> Option<Duration> {
    let window = || header(headers, "ratelimit-policy").and_then(parse_quota).map(|(_, window)| window);
    let limit = header(headers, "ratelimit").filter(|_| status == 429);
    let reset = limit.and_then(|limit| {
        let exhausted = split(limit, ',').filter(|item| parameter(item, "r") == Some(0));
        exhausted.filter_map(|item| parameter(item, "t").or_else(window)).max()
    });
    let retry_after = || header(headers, "retry-after")?.trim().parse().ok();
    reset.or_else(retry_after).map(Duration::from_secs)
}

/// How many requests are allowed in how many seconds.
pub fn quota(headers: &HeaderMap) -> Option<(u64, u64)> {
    parse_quota(header(headers, "ratelimit-policy")?)
}

fn parse_quota(policy: &str) -> Option<(u64, u64)> {
    split(policy, ',').find_map(|item| Some((parameter(item, "q")?, parameter(item, "w")?)))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The value of an integer parameter: `t` of `"api";r=0;t=55` is 55.
fn parameter(item: &str, name: &str) -> Option<u64> {
    split(item, ';').find_map(|part| {
        let (key, value) = part.split_once('=')?;
        (key.trim() == name).then(|| value.trim().parse().ok())?
    })
}

/// Splits at separators outside quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |character| {
        is_quoted ^= character == '"';
        character == separator && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Headers = &'static [(&'static str, &'static str)];

    fn seconds(status: u16, headers: Headers) -> Option<u64> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        retry_after(status, &headers.collect()).map(|wait| wait.as_secs())
    }

    #[test]
    fn servers_say_how_long_to_wait() {
        const POLICY: (&str, &str) = ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300");
        let cases: [(u16, Headers, Option<u64>); 13] = [
            (429, &[("ratelimit", "\"api\";r=0;t=55"), POLICY], Some(55)),
            (429, &[("ratelimit", "\"api\" ; t = 7 ; r = 0")], Some(7)),
            (429, &[("ratelimit", "\"minute\";r=0;t=20, \"day\";r=0;t=500, \"hour\";r=3;t=900")], Some(500)),
            (429, &[("ratelimit", "\"a,b;r=0;t=9\";r=0;t=8")], Some(8)),
            // This limit is not exhausted, or has no reset time.
            (429, &[("ratelimit", "\"api\";r=12;t=55"), ("retry-after", "3")], Some(3)),
            (429, &[("ratelimit", "\"api\";r=12;t=55")], None),
            (429, &[("ratelimit", "\"api\";r=0"), POLICY], Some(300)),
            (429, &[("ratelimit", "\"api\";r=0"), ("retry-after", "4")], Some(4)),
            (429, &[("ratelimit", "\"api\";r=0;t=55"), ("retry-after", "4")], Some(55)),
            // Other responses carry these headers too.
            (503, &[("ratelimit", "\"api\";r=0;t=55"), ("retry-after", " 4 ")], Some(4)),
            (503, &[("ratelimit", "\"api\";r=0;t=55")], None),
            (503, &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")], None),
            (429, &[("ratelimit", "\"api\";r=0;t=99999999999999999999"), ("retry-after", "-1")], None),
        ];
        for (status, headers, expected) in cases {
            assert_eq!(seconds(status, headers), expected, "{status} {headers:?}");
        }
        assert_eq!(parse_quota(POLICY.1), Some((500, 300)));
        assert_eq!(parse_quota("\"day\";q=7"), None);
    }
}
