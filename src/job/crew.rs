//! The threads that read and compute, and what connects them.

use super::Watcher;
use super::budget::{self, Budget};
use super::feed::Feed;
use super::reader::{ReadSummary, Reader, Span};
use super::sizes::Sizes;
use super::worker::{Computed, Opener, Plan, Worker};
use crate::pipeline::Pipeline;
use anyhow::{Context, Result};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// Spans that may be read ahead of need.
const SPANS_AHEAD: usize = 1024;

/// Blocks for each worker that may be under way or wait for their turn to be written.
const BLOCKS_A_WORKER: usize = 3;

/// The threads at work, and the caller's ends of what connects them.
pub(super) struct Crew {
    pub(super) reader: JoinHandle<ReadSummary>,
    pub(super) results: Receiver<Computed>,
    /// One more block may be begun for each that is sent.
    pub(super) permits: Sender<()>,
}

impl Crew {
    /// Starts all threads. The first worker gets the pipeline, the others open their own if there is work for them.
    ///
    /// # Errors
    /// If the system has no more threads.
    pub(super) fn start(
        reader: impl FnOnce(SyncSender<Result<Span>>, Arc<Budget>) -> Reader,
        plan: Plan,
        sizes: Sizes,
        pipeline: Pipeline,
        open: Opener,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Self> {
        let (sender, spans) = sync_channel(SPANS_AHEAD);
        let budget = Budget::new(budget::MOST);
        let (permits, receiver) = channel();
        let under_way = sizes.workers * BLOCKS_A_WORKER;
        for _ in 0..under_way {
            permits.send(()).context("no worker is there")?;
        }
        let feed = Feed {
            spans,
            permits: receiver,
            blocks: sizes.blocks,
            budget: Arc::clone(&budget),
            is_live: sizes.is_live,
            may_be_only: sizes.may_be_only,
            held: None,
            handed: 0,
            ended: false,
        };
        let (feed, plan) = (Arc::new(Mutex::new(feed)), Arc::new(plan));
        let (results_sender, results) = sync_channel(under_way);
        let mut pipeline = Some(pipeline);
        for number in 0..sizes.workers {
            let worker = Worker {
                number,
                feed: Arc::clone(&feed),
                plan: Arc::clone(&plan),
                open: Arc::clone(&open),
                pipeline: pipeline.take(),
                watcher: Arc::clone(watcher),
                results: results_sender.clone(),
            };
            start(move || worker.run())?;
        }
        let reader = reader(sender, budget);
        Ok(Self { reader: start(move || reader.run())?, results, permits })
    }
}

fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    thread::Builder::new().spawn(work).context("cannot start a thread")
}
