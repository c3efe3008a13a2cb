//! How long to wait before a request is tried again: as long as the server asks, or twice as long as before.

use super::download::Watcher;
use super::failure::Failure;
use std::cell::Cell;
use std::time::Duration;

/// Tries in a row that may bring nothing new.
const TRIES: u32 = 7;

/// The pause before the second try; each further one takes twice as long, up to [`LONGEST_PAUSE`]. Together they take 23 s,
/// as in Python.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause that nobody asked for.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Tries where there is another way.
const FEW_TRIES: u32 = 3;

/// How long servers may let us wait where there is another way.
const SHORT_WAIT: Duration = Duration::from_secs(5);

/// How long servers may let us wait in all. The hub counts requests in windows of five minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// A pause from which on the user is told.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// How long to go on trying.
#[derive(Debug)]
pub struct Patience {
    tries: u32,
    /// How long servers may still let us wait.
    left: Cell<Duration>,
}

impl Patience {
    /// For what there is no way without.
    pub fn long() -> Self {
        Self { tries: TRIES, left: Cell::new(LONGEST_WAIT) }
    }

    /// For what would be welcome.
    pub fn short() -> Self {
        Self { tries: FEW_TRIES, left: Cell::new(SHORT_WAIT) }
    }

    /// Whether it is for what there is no way without.
    pub fn is_long(&self) -> bool {
        self.tries == TRIES
    }

    /// Repeats a request while that may help.
    ///
    /// # Errors
    /// The last failure.
    pub fn retry<T>(
        &self,
        watcher: &mut dyn Watcher,
        mut request: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut tries = 0;
        loop {
            match request() {
                Err(failure) if failure.is_worth_retrying() => {
                    tries += 1;
                    if !self.wait(&failure, tries, watcher) {
                        return Err(failure);
                    }
                }
                result => return result,
            }
        }
    }

    /// Waits before the next try, after so many that failed in a row; or says that there should be none.
    pub fn wait(&self, failure: &Failure, tries: u32, watcher: &mut dyn Watcher) -> bool {
        let Some(pause) = self.pause(failure, tries) else { return false };
        let (what, seconds) = (failure.what(), pause.as_secs_f64());
        log::info!("try {tries} of {}: {what}; going on in {seconds:.1} s", self.tries);
        if pause >= LONG_PAUSE {
            watcher.note(&format!("{what}; going on in {seconds:.0} s"));
        }
        std::thread::sleep(pause);
        true
    }

    fn pause(&self, failure: &Failure, tries: u32) -> Option<Duration> {
        if tries >= self.tries {
            return None;
        }
        if failure.is_range_refused() {
            // The next request is another one.
            return Some(Duration::ZERO);
        }
        let Some(asked) = failure.asked_wait() else {
            return Some(LONGEST_PAUSE.min(FIRST_PAUSE * 2u32.saturating_pow(tries - 1)));
        };
        // Servers count in whole seconds.
        let pause = asked.saturating_add(Duration::from_secs(1));
        self.left.set(self.left.get().checked_sub(pause)?);
        Some(pause)
    }

    /// Whether so many new bytes after a try of such a length are worth a new series of tries.
    pub fn is_progress(bytes: u64, elapsed: Duration) -> bool {
        bytes > 0 && bytes as f64 >= super::pace::LEAST_RATE * (elapsed + FIRST_PAUSE).as_secs_f64()
    }
}

/// How long the server asks to wait that turned a request down.
///
/// `header` gives the value of a header. Source: the IETF's `draft-ietf-httpapi-ratelimit-headers`, for answers 429 alone, since
/// the hub sends these headers with every answer; and `Retry-After`, in seconds.
pub fn asked_wait<'a>(status: u16, header: impl Fn(&str) -> Option<&'a str>) -> Option<Duration> {
    let window = || header("ratelimit-policy").and_then(quota).map(|(_, window)| window);
    let limit = header("ratelimit").filter(|_| status == 429);
    let reset = limit.and_then(|limit| {
        let exhausted = split(limit, ',').filter(|item| parameter(item, "r") == Some(0));
        exhausted.filter_map(|item| parameter(item, "t").or_else(window)).max()
    });
    let retry_after = || header("retry-after")?.trim().parse().ok();
    reset.or_else(retry_after).map(Duration::from_secs)
}

/// How many requests `RateLimit-Policy` allows in how many seconds.
pub fn quota(policy: &str) -> Option<(u64, u64)> {
    split(policy, ',').find_map(|item| Some((parameter(item, "q")?, parameter(item, "w")?)))
}

/// A parameter's number: of `"api";r=0;t=55` `t` is 55.
fn parameter(item: &str, name: &str) -> Option<u64> {
    split(item, ';').find_map(|part| {
        let (key, value) = part.split_once('=')?;
        (key.trim() == name).then(|| value.trim().parse().ok())?
    })
}

/// The parts between separators that are outside quotes.
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

    fn asked(status: u16, headers: Headers) -> Option<u64> {
        let header = |name: &str| headers.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        asked_wait(status, header).map(|wait| wait.as_secs())
    }

    #[test]
    fn servers_say_how_long_to_wait() {
        const POLICY: (&str, &str) = ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300");
        let cases: [(u16, Headers, Option<u64>); 13] = [
            (429, &[("ratelimit", "\"api\";r=0;t=55"), POLICY], Some(55)),
            (429, &[("ratelimit", "\"api\" ; t = 7 ; r = 0")], Some(7)),
            (429, &[("ratelimit", "\"minute\";r=0;t=20, \"day\";r=0;t=500, \"hour\";r=3;t=900")], Some(500)),
            (429, &[("ratelimit", "\"a,b;r=0;t=9\";r=0;t=8")], Some(8)),
            // Not the reason, or none that says how long.
            (429, &[("ratelimit", "\"api\";r=12;t=55"), ("retry-after", "3")], Some(3)),
            (429, &[("ratelimit", "\"api\";r=12;t=55")], None),
            (429, &[("ratelimit", "\"api\";r=0"), POLICY], Some(300)),
            (429, &[("ratelimit", "\"api\";r=0"), ("retry-after", "4")], Some(4)),
            (429, &[("ratelimit", "\"api\";r=0;t=55"), ("retry-after", "4")], Some(55)),
            // Other answers carry these headers too.
            (503, &[("ratelimit", "\"api\";r=0;t=55"), ("retry-after", " 4 ")], Some(4)),
            (503, &[("ratelimit", "\"api\";r=0;t=55")], None),
            (503, &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")], None),
            (429, &[("ratelimit", "\"api\";r=0;t=99999999999999999999"), ("retry-after", "-1")], None),
        ];
        for (status, headers, expected) in cases {
            assert_eq!(asked(status, headers), expected, "{status} {headers:?}");
        }
        assert_eq!(quota(POLICY.1), Some((500, 300)));
        assert_eq!(quota("\"day\";q=7"), None);
    }

    #[test]
    fn patience_is_as_long_as_pythons_and_comes_to_an_end() {
        let patience = Patience::long();
        let failure = |wait: Option<u64>| Failure::passing("busy".into(), "later", wait.map(Duration::from_secs));
        let pauses: Vec<f64> =
            (1..).map_while(|tries| patience.pause(&failure(None), tries)).map(|pause| pause.as_secs_f64()).collect();
        assert_eq!(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]);
        // A whole window of the hub's, and one more; after that there is too little left.
        for (asked, expected) in
            [(299, Some(300)), (3600, None), (289, Some(290)), (10, None), (9, Some(10)), (0, None)]
        {
            let pause = patience.pause(&failure(Some(asked)), 1).map(|pause| pause.as_secs());
            assert_eq!(pause, expected, "{asked}");
        }
        assert!(patience.pause(&failure(None), 1).is_some(), "what nobody asks for is not counted");
        assert!(!patience.wait(&failure(Some(u64::MAX)), 1, &mut ()));
        let patience = Patience::short();
        assert_eq!((1..).map_while(|tries| patience.pause(&failure(None), tries)).count(), 2);
        assert!(patience.pause(&failure(Some(60)), 1).is_none());
    }
}
