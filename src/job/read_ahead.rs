//! Reads a live stream in a thread of its own, so that rows that are there can be computed while others are awaited.

use super::prompts::{Entries, Entry};
use anyhow::{Context, Result, anyhow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Entries that are read ahead of need: about a block.
const MAX_ENTRIES: usize = 64;

/// How long to wait for an entry that may be on its way.
const GRACE: Duration = Duration::from_millis(1);

/// What comes next.
pub(super) enum Next {
    Entry(Result<Entry>),
    /// Nothing yet.
    NotYet,
    /// There are no more.
    End,
}

/// The entries of a stream. The thread that reads them ends with this.
pub(super) struct ReadAhead {
    /// Until it is dropped.
    entries: Option<Receiver<Result<Entry>>>,
    thread: Option<JoinHandle<()>>,
    /// Ends a read that waits for data: [`crate::rows::ReadOptions::interrupt`].
    interrupt: Arc<AtomicBool>,
}

impl ReadAhead {
    /// # Errors
    /// If the system has no more threads.
    pub(super) fn start(entries: Entries, interrupt: Arc<AtomicBool>) -> Result<Self> {
        let (sender, receiver) = sync_channel(MAX_ENTRIES);
        let work = move || {
            for entry in entries {
                if sender.send(entry).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("embed-reader".into()).spawn(work).context("cannot start a thread")?;
        Ok(Self { entries: Some(receiver), thread: Some(thread), interrupt })
    }

    /// The next entry. Unless `may_wait` is set, one that does not come at once is not waited for.
    pub(super) fn next(&mut self, may_wait: bool) -> Next {
        let Some(entries) = &self.entries else { return Next::End };
        let received = match may_wait {
            true => entries.recv().map_err(RecvTimeoutError::from),
            false => entries.recv_timeout(GRACE),
        };
        match received {
            Ok(entry) => Next::Entry(entry),
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
        // Ends a thread that waits for room.
        self.entries = None;
        // A panic was reported by `next`, or came after the last entry that was wanted.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
