//! Bounds how much is in memory at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Counts items, and the bytes of their text, from before they are made until they are dropped. Whoever wants to make
/// another waits here while there are too many.
#[derive(Debug)]
pub(super) struct Gate {
    max_items: usize,
    max_bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    items: usize,
    bytes: usize,
    is_closed: bool,
}

impl Gate {
    pub(super) fn new(max_items: usize, max_bytes: usize) -> Self {
        Self { max_items, max_bytes, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another item may be made, and counts it; false once the gate is closed. Its size is not known yet:
    /// one item of any size goes through whenever the others are within bounds.
    pub(super) fn enter(&self) -> bool {
        let is_full = |state: &mut State| {
            let has_room = state.items < self.max_items && state.bytes <= self.max_bytes;
            !state.is_closed && state.items > 0 && !has_room
        };
        let mut state = self.changed.wait_while(self.state(), is_full).unwrap_or_else(PoisonError::into_inner);
        state.items += usize::from(!state.is_closed);
        !state.is_closed
    }

    /// Counts the bytes of an item that has entered.
    pub(super) fn add(&self, bytes: usize) {
        self.state().bytes += bytes;
    }

    /// An item of this size is dropped.
    pub(super) fn leave(&self, bytes: usize) {
        let mut state = self.state();
        (state.items, state.bytes) = (state.items.saturating_sub(1), state.bytes.saturating_sub(bytes));
        self.changed.notify_all();
    }

    /// Turns away everybody who waits or comes later.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
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
