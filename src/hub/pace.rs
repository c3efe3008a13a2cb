//! Whether a download moves at all: a server that sends a byte now and then is not silent, and would never end; nor would a
//! process that hangs.

use std::time::{Duration, Instant};

/// Bytes a second that are the least; a model would take months at this.
pub const LEAST_RATE: f64 = 1000.0;

/// Counts what comes within a stretch of time.
#[derive(Debug)]
pub struct Pace {
    stretch: Duration,
    start: Instant,
    bytes: u64,
}

impl Pace {
    /// Begins now; a verdict comes after each stretch.
    pub fn new(stretch: Duration, now: Instant) -> Self {
        Self { stretch, start: now, bytes: 0 }
    }

    /// Takes note of more bytes, and says whether they come fast enough.
    pub fn keeps_up(&mut self, bytes: usize, now: Instant) -> bool {
        self.bytes += bytes as u64;
        let elapsed = now.duration_since(self.start);
        if elapsed < self.stretch {
            return true;
        }
        let is_enough = self.bytes as f64 >= LEAST_RATE * elapsed.as_secs_f64();
        *self = Self::new(self.stretch, now);
        is_enough
    }
}

/// Watches something that another process writes.
#[derive(Debug)]
pub struct Growth {
    patience: Duration,
    len: u64,
    since: Instant,
}

impl Growth {
    /// Begins now; standstill of such a length is the end.
    pub fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, len: 0, since: now }
    }

    /// Takes note of the length, and says whether it may still grow.
    pub fn goes_on(&mut self, len: u64, now: Instant) -> bool {
        if len != self.len {
            (self.len, self.since) = (len, now);
        }
        now.duration_since(self.since) < self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_told_from_a_slow_line() {
        let begin = Instant::now();
        let end = |bytes_a_second: usize, stretch: u64| {
            let mut pace = Pace::new(Duration::from_secs(stretch), begin);
            (1..=300).find(|second| !pace.keeps_up(bytes_a_second, begin + Duration::from_secs(*second)))
        };
        assert_eq!(end(999, 30), Some(30));
        assert_eq!(end(1, 10), Some(10));
        assert_eq!(end(1000, 30), None);
        // A pause within a stretch is no drip, and what came fast long ago does not count.
        let mut pace = Pace::new(Duration::from_secs(30), begin);
        assert!(pace.keeps_up(1 << 20, begin + Duration::from_secs(1)));
        assert!(pace.keeps_up(1, begin + Duration::from_secs(31)));
        assert!(!pace.keeps_up(1, begin + Duration::from_secs(62)));
    }

    #[test]
    fn what_grows_goes_on() {
        let begin = Instant::now();
        let mut growth = Growth::new(Duration::from_secs(10), begin);
        let lens = [(9, 0, true), (18, 1, true), (27, 2, true), (36, 2, true), (37, 2, false)];
        for (second, len, goes_on) in lens {
            assert_eq!(growth.goes_on(len, begin + Duration::from_secs(second)), goes_on, "{second}");
        }
    }
}
