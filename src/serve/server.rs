//! The state that all requests share, and a request's way from rows to embeddings.

use super::artist::Artist;
use super::ask::{Ask, Asked};
use super::auth::Auth;
use super::batcher::Ticket;
use super::cache::Cache;
use super::engine::Queue;
use super::failure::{Failure, Kind};
use super::log::Log;
use super::metrics::{Gauges, Metrics};
use super::model::Model;
use super::options::Options;
use super::row::{Embedding, Row, RowKey};
use anyhow::Context as _;
use axum::http::request::Parts;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

/// The server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) options: Options,
    pub(super) auth: Auth,
    pub(super) metrics: Arc<Metrics>,
    pub(super) log: Log,
    /// Open connections.
    pub(super) connections: Arc<AtomicUsize>,
    /// Once it is loaded.
    engine: OnceLock<(Model, Arc<Queue>)>,
    /// Once a picture was asked for.
    artist: OnceLock<Artist>,
    is_draining: AtomicBool,
    /// Requests for embeddings that are not answered yet.
    working: AtomicUsize,
    cache: Mutex<Cache>,
    /// Differs from run to run.
    run: u32,
    requests: AtomicU64,
}

impl Server {
    /// `is_local`: whether it is for this machine alone.
    pub(super) fn new(options: Options, is_local: bool) -> Self {
        Self {
            auth: Auth::new(options.api_key.as_deref(), is_local),
            metrics: Arc::new(Metrics::new()),
            log: Log::new(options.log),
            connections: Arc::default(),
            engine: OnceLock::new(),
            artist: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            working: AtomicUsize::new(0),
            cache: Mutex::new(Cache::new(options.cache_bytes)),
            run: RandomState::new().hash_one(std::process::id()) as u32,
            requests: AtomicU64::new(0),
            options,
        }
    }

    /// Takes requests for embeddings from now on.
    pub(super) fn set_ready(&self, model: Model, queue: Arc<Queue>) {
        // Set once.
        let _ = self.engine.set((model, queue));
    }

    /// Refuses new requests for embeddings from now on.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether it refuses new requests because it is about to end.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Whether requests for embeddings are under way.
    pub(super) fn is_working(&self) -> bool {
        self.working.load(Ordering::Relaxed) > 0
    }

    /// Ends the threads that compute, once their batches are done.
    pub(super) fn close(&self) {
        if let Some((_, queue)) = self.engine.get() {
            queue.close();
        }
    }

    /// The model.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if it is not loaded yet, or the server is about to end.
    pub(super) fn model(&self) -> Result<&Model, Failure> {
        self.engine().map(|(model, _)| model)
    }

    /// What draws pictures, loaded at the first call.
    ///
    /// # Errors
    /// If this build has no decoder.
    pub(super) fn artist(&self) -> anyhow::Result<&Artist> {
        if self.artist.get().is_none() {
            // Of two that load it at once, one is dropped.
            let _ = self.artist.set(Artist::load()?);
        }
        self.artist.get().context("internal error: no decoder")
    }

    fn engine(&self) -> Result<&(Model, Arc<Queue>), Failure> {
        let unavailable = |message: &str| Failure::new(Kind::Unavailable, message);
        match self.engine.get() {
            _ if self.is_draining() => Err(unavailable("the server is shutting down; try another")),
            None => Err(unavailable("the model is being loaded; try again in a moment")),
            Some(engine) => Ok(engine),
        }
    }

    /// The counters, and what is measured now.
    pub(super) fn metrics_text(&self) -> String {
        self.metrics.text(Gauges {
            is_ready: self.model().is_ok(),
            queue_rows: self.engine.get().map_or(0, |(_, queue)| queue.rows()),
            connections: self.connections.load(Ordering::Relaxed),
            cache_bytes: self.cache().bytes(),
        })
    }

    /// An id for a request that has none.
    pub(super) fn new_id(&self) -> String {
        format!("{:08x}-{}", self.run, self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Queues the rows of a request. What the log is to know of it goes into the extensions of the request's head.
    ///
    /// # Errors
    /// What is wrong with it, or that there is no room for it.
    pub(super) fn embed(self: &Arc<Self>, ask: &Ask, head: &Parts) -> Result<Pending, Failure> {
        let working = Working::new(self);
        if let Some(noted) = head.extensions.get::<Note>() {
            let rows = ask.prompts.len().saturating_mul(ask.samples);
            // Set once.
            let _ = noted.set(Noted { rows, prompts: self.log.has_prompts().then(|| ask.prompts.clone()) });
        }
        let (model, queue) = self.engine()?;
        let Asked { rows, settings, tokens, truncated } = ask.rows(model, &self.options)?;
        let mut known: Vec<Option<Result<Embedding, Failure>>> = vec![None; rows.len()];
        let mut keys = Vec::new();
        if self.cache().is_on() {
            keys = rows.iter().map(|row| row.key(&settings)).collect();
            let mut cache = self.cache();
            known = keys.iter().map(|key| cache.get(key).map(Ok)).collect();
        }
        let missing: Vec<(usize, Row)> = rows
            .iter()
            .enumerate()
            .filter(|(place, _)| known[*place].is_none())
            .map(|(place, row)| (place, row.clone()))
            .collect();
        let misses = missing.len();
        let full = |_| Failure::new(Kind::Overloaded, "the queue is full; try again later");
        let ticket = queue.submit(missing, settings).map_err(full)?;
        let (hits, misses) = if keys.is_empty() { (0, 0) } else { (rows.len() - misses, misses) };
        self.metrics.asked(tokens, hits, misses);
        Ok(Pending { rows, tokens, truncated, known, keys, next: 0, ticket, working })
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the log is to know of a request for embeddings.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) rows: usize,
    /// If they are to be logged.
    pub(super) prompts: Option<Vec<String>>,
}

/// Where a handler leaves it.
pub(super) type Note = Arc<OnceLock<Noted>>;

/// A request for embeddings that is under way.
#[derive(Debug)]
struct Working {
    server: Arc<Server>,
}

impl Working {
    fn new(server: &Arc<Server>) -> Self {
        server.working.fetch_add(1, Ordering::Relaxed);
        Self { server: Arc::clone(server) }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.server.working.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The rows of a request, of which some may be computed already. Those that are not leave the queue when it is dropped.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) rows: Vec<Row>,
    /// Tokens of all prompts.
    pub(super) tokens: usize,
    /// The places of prompts that were truncated.
    pub(super) truncated: Vec<usize>,
    /// What became of each row.
    known: Vec<Option<Result<Embedding, Failure>>>,
    /// Empty without a cache.
    keys: Vec<RowKey>,
    /// The first row that was not given out.
    next: usize,
    ticket: Ticket<Failure>,
    working: Working,
}

impl Pending {
    /// The next row in order and its place; `None` after the last.
    pub(super) fn poll_next(&mut self, context: &mut Context) -> Poll<Option<(usize, Result<Embedding, Failure>)>> {
        let place = self.next;
        loop {
            match self.known.get_mut(place).map(Option::take) {
                None => return Poll::Ready(None),
                Some(Some(result)) => {
                    self.next += 1;
                    return Poll::Ready(Some((place, result)));
                }
                Some(None) => {}
            }
            let Poll::Ready(reply) = self.ticket.poll(context) else { return Poll::Pending };
            let lost = || (place, Err(Failure::internal("a row was not computed")));
            let (place, result) = reply.unwrap_or_else(lost);
            if let (Ok(embedding), Some(key)) = (&result, self.keys.get(place)) {
                self.working.server.cache().put(*key, Embedding::clone(embedding));
            }
            self.known[place] = Some(result);
        }
    }

    /// All rows.
    ///
    /// # Errors
    /// What became of the first row that failed.
    pub(super) async fn all(&mut self) -> Result<Vec<Embedding>, Failure> {
        let mut all = Vec::with_capacity(self.rows.len());
        while let Some((_, result)) = poll_fn(|context| self.poll_next(context)).await {
            all.push(result?);
        }
        Ok(all)
    }
}
