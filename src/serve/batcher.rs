//! Gathers the rows of all requests into batches.
//!
//! Rows of equal settings form a batch. Each request in turn gives one row until the batch is full, and what is left of
//! the others comes first in the next: so no request waits for the end of another, however many rows that has.

use super::row::{Embedding, Row};
use crate::pipeline::Settings;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How large batches and the queue may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    /// Rows of a batch.
    pub(super) rows: usize,
    /// Tokens of a batch; a row with more has a batch of its own.
    pub(super) tokens: usize,
    /// How long a row may wait for others, if the workers have nothing else to do.
    pub(super) wait: Duration,
    /// Rows in the queue. A request of more than a batch counts as a batch.
    pub(super) queue: usize,
}

/// The queue of rows.
#[derive(Debug)]
pub(super) struct Batcher<E> {
    limits: BatchLimits,
    state: Mutex<State<E>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<E> {
    requests: VecDeque<Request<E>>,
    next_id: u64,
    /// Workers that wait for a batch.
    idle: usize,
    /// Rows of the last batch.
    last_rows: usize,
    is_closed: bool,
}

/// Rows of a request that wait.
#[derive(Debug)]
struct Request<E> {
    id: u64,
    settings: Settings,
    /// Each with its place among all rows of the request.
    rows: VecDeque<(usize, Row)>,
    replies: UnboundedSender<Reply<E>>,
    is_gone: Arc<AtomicBool>,
    since: Instant,
}

/// What became of the row at a place of its request.
pub(super) type Reply<E> = (usize, Result<Embedding, E>);

/// A row in a batch.
#[derive(Debug)]
pub(super) struct Task<E> {
    pub(super) row: Row,
    /// When its request came.
    pub(super) since: Instant,
    place: usize,
    replies: UnboundedSender<Reply<E>>,
    is_gone: Arc<AtomicBool>,
}

/// Rows to compute together.
#[derive(Debug)]
pub(super) struct Batch<E> {
    pub(super) settings: Settings,
    pub(super) tasks: Vec<Task<E>>,
}

impl<E> Task<E> {
    /// Whether nobody waits for it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// Answers it.
    pub(super) fn reply(&self, result: Result<Embedding, E>) {
        // Fails if nobody waits for it any more.
        let _ = self.replies.send((self.place, result));
    }
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl<E> Batcher<E> {
    pub(super) fn new(limits: BatchLimits) -> Self {
        let state = State { requests: VecDeque::new(), next_id: 0, idle: 0, last_rows: 1, is_closed: false };
        Self { limits, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Queues the rows of a request, each with its place.
    ///
    /// # Errors
    /// [`Full`] if there is no room for them, or the queue is closed.
    pub(super) fn submit(
        self: &Arc<Self>,
        rows: impl IntoIterator<Item = (usize, Row)>,
        settings: Settings,
    ) -> Result<Ticket<E>, Full> {
        let rows: VecDeque<_> = rows.into_iter().collect();
        let is_gone = Arc::new(AtomicBool::new(false));
        let (replies, receiver) = unbounded_channel();
        let mut state = self.lock();
        let waiting: usize = state.requests.iter().map(|request| self.weight(request.rows.len())).sum();
        if state.is_closed || waiting + self.weight(rows.len()) > self.limits.queue {
            return Err(Full);
        }
        let id = state.next_id;
        state.next_id += 1;
        let (ticket_is_gone, since) = (Arc::clone(&is_gone), Instant::now());
        if !rows.is_empty() {
            state.requests.push_back(Request { id, settings, rows, replies, is_gone, since });
            self.changed.notify_all();
        }
        Ok(Ticket { id, batcher: Arc::clone(self), replies: receiver, is_gone: ticket_is_gone })
    }

    /// The next batch, once there is one; `None` if the queue is closed and empty.
    ///
    /// If the last batch had several rows, more are likely to come at once: a smaller one then waits for them, for as
    /// long as [`BatchLimits::wait`]. So a client that is alone never waits.
    pub(super) fn next_batch(&self) -> Option<Batch<E>> {
        let mut state = self.lock();
        state.idle += 1;
        let rows = loop {
            let rows = state.rows();
            let Some(oldest) = state.requests.iter().map(|request| request.since).min() else {
                if state.is_closed {
                    state.idle -= 1;
                    return None;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let rest = self.limits.wait.saturating_sub(oldest.elapsed());
            if rows >= state.last_rows.min(self.limits.rows) || rest.is_zero() || state.is_closed {
                break rows;
            }
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        };
        let share = rows.div_ceil(state.idle).min(self.limits.rows);
        let batch = state.take(share, self.limits.tokens);
        state.idle -= 1;
        state.last_rows = batch.as_ref().map_or(1, |batch| batch.tasks.len());
        batch
    }

    /// Rows that wait.
    pub(super) fn rows(&self) -> usize {
        self.lock().rows()
    }

    /// Takes no more requests; what waits is still computed.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The rows that a request counts as.
    fn weight(&self, rows: usize) -> usize {
        rows.min(self.limits.rows).min(self.limits.queue)
    }

    fn forget(&self, id: u64) {
        self.lock().requests.retain(|request| request.id != id);
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> State<E> {
    fn rows(&self) -> usize {
        self.requests.iter().map(|request| request.rows.len()).sum()
    }

    /// Takes up to so many rows of the first request's settings, and of so many tokens in all.
    fn take(&mut self, max_rows: usize, max_tokens: usize) -> Option<Batch<E>> {
        let settings = self.requests.front()?.settings;
        let (mut tasks, mut tokens, mut passed_over) = (Vec::new(), 0, VecDeque::new());
        while tasks.len() < max_rows
            && let Some(mut request) = self.requests.pop_front()
        {
            if request.settings != settings {
                passed_over.push_back(request);
                continue;
            }
            let Some((place, row)) = request.rows.pop_front() else { continue };
            tokens += row.tokens;
            if tokens > max_tokens && !tasks.is_empty() {
                request.rows.push_front((place, row));
                self.requests.push_front(request);
                break;
            }
            let (replies, is_gone) = (request.replies.clone(), Arc::clone(&request.is_gone));
            tasks.push(Task { row, since: request.since, place, replies, is_gone });
            if !request.rows.is_empty() {
                self.requests.push_back(request);
            }
        }
        passed_over.append(&mut self.requests);
        self.requests = passed_over;
        Some(Batch { settings, tasks })
    }
}

/// A request in the queue. Its rows leave the queue when it is dropped.
#[derive(Debug)]
pub(super) struct Ticket<E> {
    id: u64,
    batcher: Arc<Batcher<E>>,
    replies: UnboundedReceiver<Reply<E>>,
    is_gone: Arc<AtomicBool>,
}

impl<E> Ticket<E> {
    /// The next reply, in the order in which rows are computed; `None` if no more will come.
    pub(super) fn poll(&mut self, context: &mut Context) -> Poll<Option<Reply<E>>> {
        self.replies.poll_recv(context)
    }
}

impl<E> Drop for Ticket<E> {
    fn drop(&mut self) {
        self.is_gone.store(true, Ordering::Relaxed);
        self.batcher.forget(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const LIMITS: BatchLimits = BatchLimits { rows: 8, tokens: 1000, wait: Duration::ZERO, queue: 100 };

    fn batcher(limits: BatchLimits) -> Arc<Batcher<()>> {
        Arc::new(Batcher::new(limits))
    }

    /// Rows whose prompts say whose they are, each of ten tokens.
    fn rows(name: &str, count: usize) -> Vec<(usize, Row)> {
        let row = |place| Row {
            prompt: format!("{name}{place}").into(),
            negative_prompt: "".into(),
            seed: place as u64,
            tokens: 10,
        };
        (0..count).map(|place| (place, row(place))).collect()
    }

    fn settings() -> Settings {
        Settings::new(25, 4.0)
    }

    fn prompts(batch: Option<Batch<()>>) -> String {
        let tasks = batch.map(|batch| batch.tasks).unwrap_or_default();
        tasks.iter().map(|task| &*task.row.prompt).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn requests_take_turns() {
        let batcher = batcher(LIMITS);
        let _large = batcher.submit(rows("a", 20), settings()).unwrap();
        assert_eq!(prompts(batcher.next_batch()), "a0 a1 a2 a3 a4 a5 a6 a7");
        let _small = batcher.submit(rows("b", 1), settings()).unwrap();
        let _middle = batcher.submit(rows("c", 3), settings()).unwrap();
        assert_eq!(prompts(batcher.next_batch()), "a8 b0 c0 a9 c1 a10 c2 a11");
        assert_eq!(prompts(batcher.next_batch()), "a12 a13 a14 a15 a16 a17 a18 a19");
        assert_eq!(batcher.rows(), 0);
    }

    #[test]
    fn more_requests_than_a_batch_take_turns_too() {
        let batcher = batcher(BatchLimits { rows: 2, ..LIMITS });
        let _tickets = ["a", "b", "c"].map(|name| batcher.submit(rows(name, 2), settings()).unwrap());
        let batches: Vec<String> = (0..3).map(|_| prompts(batcher.next_batch())).collect();
        assert_eq!(batches, ["a0 b0", "c0 a1", "b1 c1"]);
    }

    #[test]
    fn other_settings_come_next() {
        let batcher = batcher(LIMITS);
        let other = Settings::new(5, 4.0);
        let _one = batcher.submit(rows("a", 12), settings()).unwrap();
        let _two = batcher.submit(rows("b", 2), other).unwrap();
        let _three = batcher.submit(rows("c", 1), settings()).unwrap();
        let _four = batcher.submit(rows("d", 1), other).unwrap();
        let batches: Vec<String> = (0..3).map(|_| prompts(batcher.next_batch())).collect();
        assert_eq!(batches, ["a0 c0 a1 a2 a3 a4 a5 a6", "b0 d0 b1", "a7 a8 a9 a10 a11"]);
    }

    #[test]
    fn no_request_starves_however_many_come() {
        let batcher = batcher(LIMITS);
        let mut tickets = vec![batcher.submit(rows("large", 60), settings()).unwrap()];
        let mut seen = 0;
        // Each batch could be filled with new requests, one of them with other settings.
        for round in 0..20 {
            for name in 0..4 {
                tickets.push(batcher.submit(rows(&format!("{round}-{name}-"), 1), settings()).unwrap());
            }
            tickets.push(batcher.submit(rows("other", 1), Settings::new(round + 1, 1.0)).unwrap());
            for _ in 0..2 {
                seen += prompts(batcher.next_batch()).matches("large").count();
            }
        }
        assert_eq!(seen, 60);
    }

    #[test]
    fn tokens_bound_a_batch_but_not_a_row() {
        let batcher = batcher(BatchLimits { tokens: 25, ..LIMITS });
        let _tickets = ["a", "b"].map(|name| batcher.submit(rows(name, 2), settings()).unwrap());
        assert_eq!(prompts(batcher.next_batch()), "a0 b0");
        assert_eq!(prompts(batcher.next_batch()), "a1 b1");
        let long = Row { tokens: 77, ..rows("long", 1)[0].1.clone() };
        let _long = batcher.submit([(0, long)], settings()).unwrap();
        assert_eq!(prompts(batcher.next_batch()), "long0");
    }

    #[test]
    fn a_full_queue_refuses_and_a_large_request_counts_as_a_batch() {
        let batcher = batcher(BatchLimits { queue: 10, ..LIMITS });
        let large = batcher.submit(rows("a", 1000), settings()).unwrap();
        let _small = batcher.submit(rows("b", 2), settings()).unwrap();
        assert_eq!(batcher.submit(rows("c", 1), settings()).unwrap_err(), Full);
        drop(large);
        assert_eq!(batcher.rows(), 2);
        let ticket = batcher.submit(rows("c", 1), settings()).unwrap();
        assert_eq!(prompts(batcher.next_batch()), "b0 c0 b1");
        drop(ticket);
        // If the queue is shorter than a batch, it takes one of these at a time.
        let short = self::batcher(BatchLimits { queue: 3, ..LIMITS });
        let _large = short.submit(rows("a", 1000), settings()).unwrap();
        assert_eq!(short.submit(rows("b", 1), settings()).unwrap_err(), Full);
        batcher.close();
        assert_eq!(batcher.submit(rows("d", 1), settings()).unwrap_err(), Full);
        assert!(batcher.next_batch().is_none());
    }

    #[test]
    fn who_leaves_takes_the_rows_along() {
        let batcher = batcher(LIMITS);
        let one = batcher.submit(rows("a", 9), settings()).unwrap();
        let _two = batcher.submit(rows("b", 2), settings()).unwrap();
        let batch = batcher.next_batch().unwrap();
        drop(one);
        let gone: Vec<bool> = batch.tasks.iter().map(Task::is_gone).collect();
        assert_eq!(gone, [true, false, true, false, true, true, true, true]);
        batch.tasks.iter().for_each(|task| task.reply(Err(())));
        assert_eq!(batcher.rows(), 0);
    }

    #[test]
    fn replies_come_with_their_places() {
        let batcher = batcher(LIMITS);
        let mut ticket = batcher.submit(rows("a", 2), settings()).unwrap();
        for task in batcher.next_batch().unwrap().tasks.iter().rev() {
            task.reply(Ok(vec![task.row.seed as f32].into()));
        }
        let mut context = Context::from_waker(std::task::Waker::noop());
        for place in [1, 0] {
            let reply = (place, Ok(vec![place as f32].into()));
            assert_eq!(ticket.poll(&mut context), Poll::Ready(Some(reply)));
        }
        assert_eq!(ticket.poll(&mut context), Poll::Ready(None));
    }

    #[test]
    fn idle_workers_share_what_waits() {
        let batcher = batcher(LIMITS);
        let worker = || {
            let batcher = Arc::clone(&batcher);
            thread::spawn(move || batcher.next_batch().map(|batch| batch.tasks.len()))
        };
        let workers = [worker(), worker()];
        while batcher.lock().idle < 2 {
            thread::yield_now();
        }
        let _ticket = batcher.submit(rows("a", 6), settings()).unwrap();
        let rows: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        assert_eq!(rows, [Some(3), Some(3)]);
    }

    #[test]
    fn a_batch_waits_for_as_many_rows_as_the_last_one_had() {
        let batcher = batcher(BatchLimits { wait: Duration::from_secs(3600), ..LIMITS });
        // A client that is alone does not wait.
        let _alone = batcher.submit(rows("a", 1), settings()).unwrap();
        assert_eq!(prompts(batcher.next_batch()), "a0");
        let _two = ["b", "c"].map(|name| batcher.submit(rows(name, 1), settings()).unwrap());
        assert_eq!(prompts(batcher.next_batch()), "b0 c0");
        let _first = batcher.submit(rows("d", 1), settings()).unwrap();
        let worker = thread::spawn({
            let batcher = Arc::clone(&batcher);
            move || prompts(batcher.next_batch())
        });
        while batcher.lock().idle < 1 {
            thread::yield_now();
        }
        let _second = batcher.submit(rows("e", 1), settings()).unwrap();
        assert_eq!(worker.join().unwrap(), "d0 e0");
    }
}
