//! Reads a live stream in a thread of its own, so that the rows that are there can be computed while others are awaited.

use super::gate::Gate;
use super::prompts::Entries;
use crate::rows::{Entry, PromptRecord};
use anyhow::{Context, Result, anyhow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Entries that are read ahead of need.
const MAX_ENTRIES: usize = 1024;

/// Bytes of their text.
const MAX_BYTES: usize = 16 << 20;

/// How long an entry that may be on its way is waited for.
const GRACE: Duration = Duration::from_millis(1);

/// What comes next.
pub(super) enum Next {
    Entry(Result<Entry>),
    /// Nothing yet.
    NotYet,
    /// There are no more.
    End,
}

/// The entries of a stream, read by a thread that ends with this.
pub(super) struct ReadAhead {
    entries: Receiver<Result<Entry>>,
    gate: Arc<Gate>,
    /// Ends a read that waits for data: [`crate::rows::ReadOptions::interrupt`].
    interrupt: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    /// # Errors
    /// If the system has no more threads.
    pub(super) fn start(entries: Entries, interrupt: Arc<AtomicBool>) -> Result<Self> {
        let gate = Arc::new(Gate::new(MAX_ENTRIES, MAX_BYTES));
        let (sender, receiver) = channel();
        let reader = Arc::clone(&gate);
        let work = move || {
            let mut entries = entries;
            while reader.enter() {
                let Some(entry) = entries.next() else { break };
                reader.add(text_bytes(&entry));
                if sender.send(entry).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("embed-reader".into()).spawn(work).context("cannot start a thread")?;
        Ok(Self { entries: receiver, gate, interrupt, thread: Some(thread) })
    }

    /// The next entry. If `may_wait` is not set, one that does not come at once is not waited for.
    pub(super) fn next(&mut self, may_wait: bool) -> Next {
        let received = match may_wait {
            true => self.entries.recv().map_err(RecvTimeoutError::from),
            false => self.entries.recv_timeout(GRACE),
        };
        match received {
            Ok(entry) => {
                self.gate.leave(text_bytes(&entry));
                Next::Entry(entry)
            }
            Err(RecvTimeoutError::Timeout) => Next::NotYet,
            Err(RecvTimeoutError::Disconnected) => match self.thread.take().map(JoinHandle::join) {
                Some(Err(_)) => Next::Entry(Err(anyhow!("internal error: the reader of the prompts panicked"))),
                _ => Next::End,
            },
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.interrupt.store(true, Ordering::Relaxed);
        self.gate.close();
        // What it panicked of, if it did, has been reported, or is of no interest any more.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn text_bytes(entry: &Result<Entry>) -> usize {
    match entry {
        Ok(Entry::Prompt { record, .. }) => record_bytes(record),
        Ok(Entry::Bad(row)) => row.reason.len(),
        Err(_) => 0,
    }
}

/// Bytes of a record's text.
pub(super) fn record_bytes(record: &PromptRecord) -> usize {
    let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    record.prompt.len() + len(&record.id) + len(&record.negative_prompt)
}
