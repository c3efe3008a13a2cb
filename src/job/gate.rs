//! Bounds how much is in memory at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Counts items, and the bytes of their text, from before they are made until they are dropped. Whoever wants to make
/// another waits here while there are too many.
#[derive(Debug)]
pub(super) struct Gate {
    max_items: usize,
    max_bytes: usize,
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    items: usize,
    bytes: usize,
    is_closed: bool,
}

impl Gate {
    pub(super) fn new(max_items: usize, max_bytes: usize) -> Self {
        Self { max_items, max_bytes, counts: Mutex::default(), changed: Condvar::new() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another item may be made, and counts it; false once the gate is closed. Its size is not known yet:
    /// one item of any size goes through whenever the others are within bounds.
    pub(super) fn enter(&self) -> bool {
        let is_full = |counts: &mut Counts| {
            let has_room = counts.items < self.max_items && counts.bytes <= self.max_bytes;
            !counts.is_closed && counts.items > 0 && !has_room
        };
        let mut counts = self.changed.wait_while(self.counts(), is_full).unwrap_or_else(PoisonError::into_inner);
        counts.items += usize::from(!counts.is_closed);
        !counts.is_closed
    }

    /// Counts the bytes of an item that has entered.
    pub(super) fn add(&self, bytes: usize) {
        self.counts().bytes += bytes;
    }

    /// An item of this size is dropped.
    pub(super) fn leave(&self, bytes: usize) {
        let mut counts = self.counts();
        (counts.items, counts.bytes) = (counts.items.saturating_sub(1), counts.bytes.saturating_sub(bytes));
        self.changed.notify_all();
    }

    /// Turns away everybody who waits or comes later.
    pub(super) fn close(&self) {
        self.counts().is_closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn items_wait_for_room_and_end_when_the_gate_closes() {
        let gate = Gate::new(3, 10);
        let (sender, entered) = channel();
        let next = || entered.recv_timeout(Duration::from_millis(100));
        thread::scope(|scope| {
            scope.spawn(|| {
                for bytes in [20, 6, 4, 0, 9] {
                    let is_open = gate.enter();
                    if is_open {
                        gate.add(bytes);
                    }
                    sender.send(is_open).unwrap();
                }
            });
            assert!(next().unwrap());
            assert_eq!(next(), Err(RecvTimeoutError::Timeout), "too many bytes");
            gate.leave(20);
            assert!(next().unwrap() && next().unwrap() && next().unwrap());
            assert_eq!(next(), Err(RecvTimeoutError::Timeout), "too many items");
            gate.close();
            assert!(!next().unwrap());
        });
    }
}
