//! How long to wait before a request is repeated: as long as the server asks, or twice as long as before.

use super::failure::kind_of;
use super::pace::MIN_RATE;
use super::progress::DownloadProgress;
use crate::error::{Error, HubErrorKind, Result};
use std::cell::Cell;
use std::time::Duration;

/// Attempts in a row that may bring nothing new.
const ATTEMPTS: u32 = 7;

/// The pause before the second attempt. Each further one is twice as long, up to [`MAX_PAUSE`]: 23 s in all, as in Python.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause that no server asked for.
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// How long servers may make a run wait in all. The hub counts requests in windows of five minutes.
const MAX_ASKED: Duration = Duration::from_secs(600);

/// [`ATTEMPTS`] and [`MAX_ASKED`] where the run can do without the response.
const FEW_ATTEMPTS: u32 = 3;
const MAX_ASKED_BRIEF: Duration = Duration::from_secs(5);

/// The shortest pause that the user is told of.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// How long to go on trying.
#[derive(Debug)]
pub struct RetryPolicy {
    attempts: u32,
    /// How long servers may still make us wait.
    budget: Cell<Duration>,
}

impl RetryPolicy {
    /// For what a run cannot do without.
    pub fn persistent() -> Self {
        Self { attempts: ATTEMPTS, budget: Cell::new(MAX_ASKED) }
    }

    /// For what a run can do without.
    pub fn brief() -> Self {
        Self { attempts: FEW_ATTEMPTS, budget: Cell::new(MAX_ASKED_BRIEF) }
    }

    /// Repeats a request while it fails in a way that another attempt may mend soon. A server that cannot be reached at
    /// all is not tried again.
    ///
    /// # Errors
    /// The last one.
    pub fn run<T>(&self, progress: &mut dyn DownloadProgress, mut request: impl FnMut() -> Result<T>) -> Result<T> {
        let mut attempts = 0;
        loop {
            match request() {
                Err(error) if kind_of(&error).is_some_and(is_mended_soon) => {
                    attempts += 1;
                    if !self.wait(&error, attempts, progress) {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Waits before the next attempt, after so many that failed in a row. Returns whether there should be one.
    pub fn wait(&self, error: &Error, attempts: u32, progress: &mut dyn DownloadProgress) -> bool {
        let Some(pause) = self.pause(error, attempts) else { return false };
        let seconds = pause.as_secs_f64();
        log::info!("attempt {attempts} of {}: {error}; retrying in {seconds:.1} s", self.attempts);
        if pause >= LONG_PAUSE {
            progress.note(&format!("{error}; retrying in {seconds:.0} s"));
        }
        std::thread::sleep(pause);
        true
    }

    fn pause(&self, error: &Error, attempts: u32) -> Option<Duration> {
        if attempts >= self.attempts {
            return None;
        }
        match kind_of(error) {
            // The next request is another one.
            Some(HubErrorKind::RangeNotSatisfiable) => Some(Duration::ZERO),
            Some(HubErrorKind::Busy { retry_after: Some(asked) }) => {
                // Servers count in whole seconds.
                let pause = asked.saturating_add(Duration::from_secs(1));
                self.budget.set(self.budget.get().checked_sub(pause)?);
                Some(pause)
            }
            _ => Some(MAX_PAUSE.min(FIRST_PAUSE * 2u32.saturating_pow(attempts - 1))),
        }
    }
}

fn is_mended_soon(kind: HubErrorKind) -> bool {
    kind.is_temporary() && kind != HubErrorKind::Unreachable
}

/// Whether so many new bytes in an attempt of such a length are worth counting attempts anew.
pub fn is_progress(bytes: u64, elapsed: Duration) -> bool {
    bytes > 0 && bytes as f64 >= MIN_RATE * (elapsed + FIRST_PAUSE).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::failure::Resource;
    use crate::hub::name::HubName;

    fn busy(retry_after: Option<u64>) -> Error {
        let kind = HubErrorKind::Busy { retry_after: retry_after.map(Duration::from_secs) };
        Resource::of(&HubName::newest("a/b")).error(kind, "busy".into(), None).into()
    }

    #[test]
    fn retries_take_as_long_as_pythons_and_come_to_an_end() {
        let policy = RetryPolicy::persistent();
        let pauses: Vec<f64> =
            (1..).map_while(|attempts| policy.pause(&busy(None), attempts)).map(|pause| pause.as_secs_f64()).collect();
        assert_eq!(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]);
        // A whole window of the hub's, and one more; after that too little of the budget is left.
        for (asked, expected) in
            [(299, Some(300)), (3600, None), (289, Some(290)), (10, None), (9, Some(10)), (0, None)]
        {
            let pause = policy.pause(&busy(Some(asked)), 1).map(|pause| pause.as_secs());
            assert_eq!(pause, expected, "{asked}");
        }
        assert!(policy.pause(&busy(None), 1).is_some(), "only what servers ask for is counted");
        assert!(!policy.wait(&busy(Some(u64::MAX)), 1, &mut ()));
        let policy = RetryPolicy::brief();
        assert_eq!((1..).map_while(|attempts| policy.pause(&busy(None), attempts)).count(), 2);
        assert!(policy.pause(&busy(Some(60)), 1).is_none());
    }
}
