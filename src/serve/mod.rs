//! `prior-embed serve`: the pipeline behind HTTP.
//!
//! ```text
//! listener ──► router ──► routes ──► ask: rows ──► cache ──┬────────────────────────────► answer
//!   sockets     id, key,    JSON       defaults,            └─► batcher ──► engine ──► ───┘
//!               log         in          limits                   the queue    pipelines
//! ```
//!
//! Handlers only translate: a request of whichever route becomes rows (`ask`), each with its prompt, negative prompt and
//! seed. What the cache does not have goes into the queue (`batcher`), from which the threads of `engine` take batches of
//! equal settings; requests take turns row by row, and a row that comes while a batch is computed joins the next. A row's
//! numbers are those of the command line, and `answer` writes them as JSON or as the command line's own formats.
//!
//! When a client leaves, its rows leave the queue. A row that fails, fails alone; `failure` says which status code that
//! is. `listener` bounds connections and the time of their requests. A signal drains: requests under way are answered,
//! new ones are refused, and [`run`] returns.

mod answer;
mod artist;
mod ask;
mod auth;
mod batcher;
mod body;
mod cache;
mod engine;
mod failure;
mod listener;
mod log;
mod metrics;
mod model;
mod options;
mod router;
mod routes;
mod row;
mod server;
mod zero_embed;

pub use listener::Listener;
pub use options::{Address, Defaults, Limits, LogFormat, LogOptions, Options, Seeds};

use crate::job::{Opener, Stop};
use anyhow::{Context, Result, bail};
use server::Server;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

/// How often the caller looks up from waiting.
const TICK: Duration = Duration::from_millis(20);

/// Threads that read requests and write answers; the others compute.
const IO_THREADS: usize = 2;

/// How serving ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// The signal that ended it.
    pub signal: i32,
    /// Whether every request was answered.
    pub is_clean: bool,
}

/// Starts the threads that compute, with a model that is on this machine.
pub type Start<'a> = dyn FnMut(&Opener) -> Result<()> + 'a;

/// Serves until a signal comes. `load` finds the model and calls its argument, while requests are told to wait.
///
/// # Errors
/// If the model cannot be loaded.
pub fn run(
    listener: Listener,
    options: Options,
    load: impl FnOnce(&mut Start) -> Result<()> + Send + 'static,
    stop: &Stop,
) -> Result<Ended> {
    allow_files();
    let server = Arc::new(Server::new(options, listener.is_local()));
    let runtime = Builder::new_multi_thread().worker_threads(IO_THREADS).thread_name("http").enable_all().build();
    let runtime = runtime.context("cannot start threads")?;
    let entered = runtime.enter();
    let serving = listener.serve(router::router(Arc::clone(&server)), &server)?;
    drop(entered);

    let (sender, loaded) = channel();
    let loading = Arc::clone(&server);
    let load = move || {
        let mut start = |open: &Opener| {
            let (model, queue) = engine::start(open, &loading.options, &loading.metrics)?;
            loading.set_ready(model, queue);
            Ok(())
        };
        // Fails if a signal came first.
        let _ = sender.send(load(&mut start));
    };
    thread::Builder::new().name("load".into()).spawn(load).context("cannot start a thread")?;
    let signal = loop {
        if let Some(signal) = stop.signal() {
            break signal;
        }
        match loaded.recv_timeout(TICK) {
            Ok(result) => result?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if server.model().is_ok() => thread::sleep(TICK),
            Err(RecvTimeoutError::Disconnected) => bail!("internal error: loading the model panicked"),
        }
    };

    let start = Instant::now();
    let grace = server.options.grace;
    server.drain();
    while server.is_working() && start.elapsed() < grace {
        thread::sleep(TICK);
    }
    let is_answered = !server.is_working();
    let rest = grace.saturating_sub(start.elapsed());
    let is_clean = runtime.block_on(serving.end(rest)) && is_answered;
    server.close();
    runtime.shutdown_background();
    Ok(Ended { signal, is_clean })
}

/// Allows as many open files as the system lets the process have: each connection is one.
fn allow_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it is refused, there may be fewer connections.
    let _ = setrlimit(Resource::Nofile, limit);
}
