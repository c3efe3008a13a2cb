//! The threads that compute: each has a pipeline of its own and takes batches from the queue.

use super::batcher::{Batch, BatchLimits, Batcher, Task};
use super::failure::Failure;
use super::metrics::Metrics;
use super::model::{Info, Model};
use super::options::Options;
use crate::job::Opener;
use crate::nn::prior::PriorKind;
use crate::pipeline::{BuiltinDecoder, Demand, Pipeline, Progress, Prompt, Row, Settings, Truncation};
use crate::{Error, bad_input};
use anyhow::{Context, Result, anyhow};
use ndarray::Array2;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;
use tch::Device;

/// The queue of the server.
pub(super) type Queue = Batcher<Failure>;

/// Loads the model and starts the threads. The queue is open once all networks are loaded.
///
/// # Errors
/// If the model is damaged or not supported, does not take a default, or memory is short.
pub(super) fn start(open: &Opener, options: &Options, metrics: &Arc<Metrics>) -> Result<(Model, Arc<Queue>)> {
    let pipeline = open()?;
    let defaults = &options.defaults;
    let settings = pipeline.settings(defaults.steps, defaults.guidance_scale, defaults.temperature)?;
    if settings.steps > options.limits.steps {
        let (steps, max) = (settings.steps, options.limits.steps);
        return Err(bad_input!("--steps {steps} is more than --max-steps {max}"));
    }
    if defaults.negative_prompt.is_some() && pipeline.kind() == PriorKind::Sequence {
        let (folder, title) = (pipeline.folder(), pipeline.kind().title());
        return Err(bad_input!("--negative-prompt: {folder} has {title}, which takes none; leave it out"));
    }
    let rows = options.batch_size.unwrap_or(usize::MAX);
    let demand = Demand { rows, is_uniform: false, zero_embed: false, free_memory: None };
    let batch_size = pipeline.plan_batch(demand, options.batch_size)?;
    let (workers, threads) = if pipeline.placement().device == Device::Cpu && pipeline.is_small()? {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (pipeline.plan_workers(demand, batch_size, options.threads.unwrap_or(cores))?, Some(1))
    } else {
        (1, options.threads)
    };
    let (tokens, wait, queue) = (options.batch_tokens, options.wait, options.queue);
    let limits = BatchLimits { rows: batch_size, tokens, wait, queue };
    let queue = Arc::new(Queue::new(limits));
    let (sender, loaded) = channel();
    for _ in 0..workers {
        let (open, queue, metrics, sender) =
            (Arc::clone(open), Arc::clone(&queue), Arc::clone(metrics), sender.clone());
        let work = move || {
            if let Some(threads) = threads {
                // libtorch keeps this number for each thread that calls it.
                tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
            }
            let mut engine = Engine { open, pipeline: None };
            let result = engine.pipeline().map(|_| ());
            let is_loaded = result.is_ok();
            // Fails if another thread has failed before.
            let _ = sender.send(result);
            // A panic beyond those that are caught below must not leave the queue without a thread.
            while is_loaded && catch_unwind(AssertUnwindSafe(|| work(&queue, &mut engine, &metrics))).is_err() {
                engine.reset();
            }
        };
        thread::Builder::new().name("engine".into()).spawn(work).context("cannot start a thread")?;
    }
    drop(sender);
    for _ in 0..workers {
        loaded.recv().map_err(|_| anyhow!("internal error: an engine panicked while it loaded the model"))??;
    }
    let info = Info {
        model_id: options.model.clone(),
        embedding_dim: pipeline.embedding_dim(),
        row_shape: pipeline.row_shape(),
        max_input_length: pipeline.max_tokens(),
        max_steps: pipeline.max_steps().min(options.limits.steps),
        takes_steps: pipeline.kind().has_steps(),
        takes_guidance: pipeline.kind().has_guidance(),
        has_decoder: pipeline.folder().as_path().is_none() && BuiltinDecoder::sizes().is_ok(),
        steps: settings.steps,
        guidance_scale: settings.guidance_scale,
        model_dtype: pipeline.placement().precision.name(),
        device: format!("{:?}", pipeline.placement().device).to_lowercase(),
        max_batch_size: batch_size,
        max_batch_tokens: options.batch_tokens,
        max_client_batch_size: options.limits.rows,
        auto_truncate: defaults.truncate,
        workers,
        version: env!("CARGO_PKG_VERSION"),
    };
    Ok((Model::new(pipeline, open, info), queue))
}

/// What computes a batch.
trait Embed {
    /// The embeddings of rows of equal settings, `(rows, dim)`.
    fn embed(&mut self, tasks: &[Task<Failure>], settings: &Settings) -> crate::Result<Array2<f32>>;

    /// Forgets its state, which a panic may have left in disorder.
    fn reset(&mut self);
}

/// A pipeline that can be opened anew.
struct Engine {
    open: Opener,
    pipeline: Option<Pipeline>,
}

impl Engine {
    fn pipeline(&mut self) -> Result<&mut Pipeline> {
        Ok(match &mut self.pipeline {
            Some(pipeline) => pipeline,
            none => {
                let mut pipeline = (self.open)()?;
                pipeline.load(&mut ())?;
                none.insert(pipeline)
            }
        })
    }
}

impl Embed for Engine {
    fn embed(&mut self, tasks: &[Task<Failure>], settings: &Settings) -> crate::Result<Array2<f32>> {
        let pipeline = self.pipeline().map_err(|error| match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::Internal(error.to_string()),
        })?;
        let rows: Vec<Row> = tasks
            .iter()
            .map(|Task { row, .. }| Row {
                prompt: Prompt::Text(&row.prompt),
                negative_prompt: Prompt::Text(&row.negative_prompt),
                noise: row.seed.into(),
                image: None,
            })
            .collect();
        Ok(pipeline.embed(&rows, settings, &mut WhileWanted(tasks))?.image)
    }

    fn reset(&mut self) {
        self.pipeline = None;
    }
}

/// Cancels a batch whose clients have all left.
struct WhileWanted<'a>(&'a [Task<Failure>]);

impl Progress for WhileWanted<'_> {
    // The handlers have told the client.
    fn truncated(&mut self, _: &Truncation) {}

    fn is_cancelled(&self) -> bool {
        self.0.iter().all(Task::is_gone)
    }
}

/// Computes batches until the queue is closed and empty.
fn work(queue: &Queue, engine: &mut dyn Embed, metrics: &Metrics) {
    while let Some(Batch { settings, mut tasks }) = queue.next_batch() {
        tasks.retain(|task| !task.is_gone());
        if tasks.is_empty() {
            continue;
        }
        metrics.batch(tasks.iter().map(|task| task.since.elapsed()));
        let start = Instant::now();
        compute(&tasks, &settings, engine, metrics);
        metrics.computed(start.elapsed());
    }
}

/// Computes rows and answers each. Where a batch fails, halves of it are tried, so that only the row fails that is to
/// blame.
fn compute(tasks: &[Task<Failure>], settings: &Settings, engine: &mut dyn Embed, metrics: &Metrics) {
    let embedded = catch_unwind(AssertUnwindSafe(|| engine.embed(tasks, settings)));
    let error = match embedded {
        Ok(Ok(embeds)) if embeds.nrows() == tasks.len() => {
            // Before the replies, so that a client which has one finds it counted.
            metrics.rows(tasks.len(), 0);
            for (task, embedding) in tasks.iter().zip(embeds.rows()) {
                task.reply(Ok(embedding.iter().copied().collect()));
            }
            return;
        }
        Ok(Ok(_)) => Error::Internal("a batch of another number of rows".into()),
        Ok(Err(Error::Cancelled)) => return,
        Ok(Err(error)) => error,
        Err(_) => {
            engine.reset();
            Error::Internal("the engine panicked".into())
        }
    };
    match tasks {
        [task] => {
            metrics.rows(0, 1);
            task.reply(Err(Failure::from(&error)));
        }
        tasks => {
            let (first, second) = tasks.split_at(tasks.len() / 2);
            compute(first, settings, engine, metrics);
            compute(second, settings, engine, metrics);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batcher::Reply;
    use super::super::failure::Kind;
    use super::super::row;
    use super::*;
    use std::collections::BTreeMap;
    use std::task::Poll;
    use std::time::Duration;

    /// Fails or panics if it sees certain seeds.
    #[derive(Default)]
    struct Faulty {
        batches: Vec<usize>,
        resets: usize,
    }

    impl Embed for Faulty {
        fn embed(&mut self, tasks: &[Task<Failure>], _: &Settings) -> crate::Result<Array2<f32>> {
            self.batches.push(tasks.len());
            let has = |seed| tasks.iter().any(|task| task.row.seed == seed);
            assert!(!has(5), "five");
            if has(11) {
                return Err(Error::NotFinite { reason: "NaN".into(), hint: None });
            }
            Ok(Array2::from_shape_fn((tasks.len(), 2), |(row, _)| tasks[row].row.seed as f32))
        }

        fn reset(&mut self) {
            self.resets += 1;
        }
    }

    fn replies(rows: u64, engine: &mut Faulty) -> BTreeMap<usize, Result<f32, Kind>> {
        let limits = BatchLimits { rows: 64, tokens: 10_000, wait: Duration::ZERO, queue: 100 };
        let queue = Arc::new(Queue::new(limits));
        let row = |seed| row::Row { prompt: "".into(), negative_prompt: "".into(), seed, tokens: 2 };
        let mut ticket = queue.submit((0..rows).map(|seed| (seed as usize, row(seed))), Settings::default()).unwrap();
        queue.close();
        work(&queue, engine, &Metrics::new());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut replies = BTreeMap::new();
        while let Poll::Ready(Some((place, result))) = ticket.poll(&mut context) {
            let result: Reply<Failure> = (place, result);
            let value = result.1.map(|embedding| embedding[1]).map_err(|failure| failure.kind);
            assert!(replies.insert(place, value).is_none(), "two replies for {place}");
        }
        replies
    }

    #[test]
    fn a_row_that_fails_or_panics_fails_alone() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let mut engine = Faulty::default();
        let replies = replies(16, &mut engine);
        std::panic::set_hook(hook);
        assert_eq!(replies.len(), 16);
        for (place, reply) in replies {
            let expected = if place == 5 || place == 11 { Err(Kind::Engine) } else { Ok(place as f32) };
            assert_eq!(reply, expected, "{place}");
        }
        assert_eq!(engine.batches, [16, 8, 4, 4, 2, 1, 1, 2, 8, 4, 2, 2, 1, 1, 4]);
        assert!(engine.resets > 0);
    }

    #[test]
    fn a_batch_that_works_is_one_batch() {
        let mut engine = Faulty::default();
        assert_eq!(replies(5, &mut engine).values().filter(|reply| reply.is_ok()).count(), 5);
        assert_eq!((engine.batches, engine.resets), (vec![5], 0));
    }
}
