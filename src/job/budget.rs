//! How much of the prompts' text may be in memory at a time.

use crate::rows::PromptRecord;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of text that may be read and not written yet.
pub(super) const MOST: usize = 64 << 20;

/// Counts the text that was read and not written yet. Whoever reads waits while it is too much, unless a block that is
/// being gathered needs more: its borders do not depend on how long its prompts are.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    /// Whether a block waits for its next span, and how many spans went to blocks and have arrived.
    is_awaited: bool,
    sent: u64,
    received: u64,
}

impl State {
    /// Whether one more has to come, however much there is.
    fn needs_more(&self) -> bool {
        self.is_awaited && self.sent <= self.received
    }
}

impl Budget {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default(), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record in, when there is room for it.
    pub(super) fn hold(self: &Arc<Self>, record: PromptRecord) -> Arc<Held> {
        let text_len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let bytes = record.prompt.len() + text_len(&record.id) + text_len(&record.negative_prompt);
        let is_full = |state: &mut State| state.bytes > 0 && state.bytes + bytes > self.most && !state.needs_more();
        let state = self.changed.wait_while(self.state(), is_full);
        state.unwrap_or_else(PoisonError::into_inner).bytes += bytes;
        Arc::new(Held { record, bytes, budget: Arc::clone(self) })
    }

    /// A span is on its way to a block.
    pub(super) fn sent(&self) {
        self.state().sent += 1;
    }

    /// It has arrived.
    pub(super) fn received(&self) {
        self.state().received += 1;
    }

    /// A block waits for its next span, or does not any more.
    pub(super) fn set_awaited(&self, is_awaited: bool) {
        self.state().is_awaited = is_awaited;
        self.changed.notify_all();
    }
}

/// A record that counts as long as it is there.
#[derive(Debug)]
pub(super) struct Held {
    record: PromptRecord,
    bytes: usize,
    budget: Arc<Budget>,
}

impl Deref for Held {
    type Target = PromptRecord;

    fn deref(&self) -> &PromptRecord {
        &self.record
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.state().bytes -= self.bytes;
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn reading_waits_for_room_or_for_need() {
        let budget = Budget::new(10);
        let (sender, held) = channel();
        let reader = Arc::clone(&budget);
        let reading = thread::spawn(move || {
            for length in [20, 6, 4, 1, 9] {
                let record = PromptRecord { prompt: "x".repeat(length).into(), ..PromptRecord::default() };
                sender.send(reader.hold(record)).unwrap();
                if length == 1 {
                    reader.sent();
                }
            }
        });
        let next = || held.recv_timeout(Duration::from_millis(100));
        let too_long = next().unwrap();
        assert_eq!(next().unwrap_err(), RecvTimeoutError::Timeout);
        drop(too_long);
        let (six, _four) = (next().unwrap(), next().unwrap());
        assert_eq!(next().unwrap_err(), RecvTimeoutError::Timeout);
        budget.set_awaited(true);
        let _one = next().unwrap();
        assert_eq!(next().unwrap_err(), RecvTimeoutError::Timeout, "one more is enough");
        budget.received();
        budget.set_awaited(true);
        let _nine = next().unwrap();
        assert_eq!(budget.state().bytes, 20);
        drop(six);
        assert_eq!(budget.state().bytes, 14);
        reading.join().unwrap();
    }
}
