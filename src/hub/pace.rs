//! Whether a download makes progress: a server that sends a byte now and then is not silent, but never done.

use std::time::{Duration, Instant};

/// The fewest bytes a second; a model would take months at this rate.
pub const MIN_RATE: f64 = 1000.0;

/// Measures the rate of a download or of a file that grows, window by window.
#[derive(Debug)]
pub struct Pace {
    window: Duration,
    start: Instant,
    bytes: u64,
}

impl Pace {
    /// Starts the first window.
    pub fn new(window: Duration, now: Instant) -> Self {
        Self { window, start: now, bytes: 0 }
    }

    /// Counts more bytes. `false` if a window has ended with fewer than [`MIN_RATE`].
    pub fn keeps_up(&mut self, bytes: u64, now: Instant) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = now.duration_since(self.start);
        if elapsed < self.window {
            return true;
        }
        let is_enough = self.bytes as f64 >= MIN_RATE * elapsed.as_secs_f64();
        *self = Self::new(self.window, now);
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_told_from_a_slow_line() {
        let start = Instant::now();
        let end = |bytes_a_second: u64, window: u64| {
            let mut pace = Pace::new(Duration::from_secs(window), start);
            (1..=300).find(|second| !pace.keeps_up(bytes_a_second, start + Duration::from_secs(*second)))
        };
        assert_eq!(end(999, 30), Some(30));
        assert_eq!(end(1, 10), Some(10));
        assert_eq!(end(1000, 30), None);
        // A pause within a window is no drip, and bytes of an earlier window do not count.
        let mut pace = Pace::new(Duration::from_secs(30), start);
        assert!(pace.keeps_up(1 << 20, start + Duration::from_secs(1)));
        assert!(pace.keeps_up(1, start + Duration::from_secs(31)));
        assert!(!pace.keeps_up(1, start + Duration::from_secs(62)));
    }
}
