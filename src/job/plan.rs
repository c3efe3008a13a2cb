//! Batch size, workers and threads of a run, and the settings that decide its rows.

use super::batcher::Blocks;
use super::first_pass::FirstPass;
use super::options::{RowOptions, Seeding};
use crate::bad_input;
use crate::kernels::processor::Processor;
use crate::output::fingerprint::Fingerprint;
use crate::output::{WriteOptions, is_stream};
use crate::pipeline::{Demand, Pipeline};
use anyhow::Result;
use std::thread;
use tch::Device;

/// The name of the setting that a resumed run takes from the journal.
pub(super) const BATCH_SIZE: &str = "--batch-size";

/// How a job should be computed, as far as the user says.
#[derive(Debug, Clone, Copy, Default)]
pub struct ComputeOptions {
    /// Rows computed together.
    pub batch_size: Option<usize>,
    /// CPU threads.
    pub threads: Option<usize>,
    /// Bytes of memory to plan with; what is free if not given.
    pub free_memory: Option<u64>,
}

/// How a job is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) batch_size: usize,
    pub(super) blocks: Blocks,
    /// Whether all rows of all shards are one block.
    pub(super) is_single: bool,
    /// Whether an interrupted run keeps its rows: its prompts can be read again, and its outputs are files.
    pub(super) may_resume: bool,
    /// Whether somebody may wait for each row before the next prompt comes.
    pub(super) is_live: bool,
    /// Whether the first block may be the only one. Nothing else decides this, so that a shard, or a run that resumes,
    /// has the bits of the whole.
    pub(super) may_be_only: bool,
    pub(super) workers: usize,
    /// CPU threads of each worker; libtorch's choice if not given.
    pub(super) threads: Option<usize>,
    /// The most memory that this takes, in bytes; not known for a GPU.
    pub(super) memory: Option<u64>,
}

impl Plan {
    /// Plans a run over the rows that a first pass found, if there was one.
    ///
    /// # Errors
    /// If there is not enough memory, or there are not enough seeds.
    pub(super) fn new(
        pipeline: &Pipeline,
        rows: &RowOptions,
        first_pass: Option<&FirstPass>,
        write: &WriteOptions,
        compute: ComputeOptions,
    ) -> Result<Self> {
        let total = first_pass.map(|first_pass| first_pass.rows);
        let is_uniform = first_pass.is_none_or(|first_pass| first_pass.is_uniform);
        let has_negatives = rows.wants_negative && (rows.has_negatives() || !is_uniform);
        if rows.seeding == Seeding::Row {
            check_seeds(rows.seed, total.map(|total| total.saturating_mul(rows.draws)), has_negatives)?;
        }
        let samples_negative = rows.wants_negative && !rows.needs_zero_embed();
        // The draws of a row of the output and its negative are computed together.
        let draws = usize::try_from(rows.draws).unwrap_or(usize::MAX);
        let rows_each = draws.saturating_add(samples_negative.into());
        let embeddings =
            total.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(usize::MAX).saturating_mul(rows_each);
        let demand = Demand {
            rows: embeddings,
            is_uniform,
            zero_embed: rows.needs_zero_embed(),
            free_memory: compute.free_memory,
        };
        let is_call = rows.seeding == Seeding::Call;
        let wanted = compute.batch_size.or(is_call.then_some(embeddings));
        let batch_size = pipeline.plan_batch(demand, wanted).map_err(|error| match error {
            crate::Error::OutOfMemory { .. } if is_call => bad_input!(
                "--seed-layout call computes all {embeddings} embeddings in one batch: {error}; give fewer prompts"
            ),
            error => error.into(),
        })?;
        if is_call && batch_size < embeddings {
            return Err(bad_input!(
                "--seed-layout call computes all {embeddings} embeddings in one batch, since one generator draws for all \
                 rows at once; give --batch-size {embeddings} or leave it out"
            ));
        }
        let blocks = Blocks { rows: (batch_size / rows_each).max(1) as u64, shard: write.shard };
        let count = total.map_or(u64::MAX, |rows| rows.div_ceil(blocks.rows));
        let on_cpu = pipeline.placement().device == Device::Cpu;
        let (workers, threads) = if on_cpu && pipeline.is_small()? {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let useful = usize::try_from(count).unwrap_or(usize::MAX);
            let max = compute.threads.unwrap_or(cores).min(useful).max(1);
            let workers = pipeline.plan_workers(demand, batch_size, max)?;
            if workers < max {
                let level = if compute.threads.is_some() { log::Level::Warn } else { log::Level::Info };
                log::log!(
                    level,
                    "using {workers} of {max} threads: each runs a pipeline of its own, and free memory has room for \
                     no more"
                );
            }
            (workers, Some(1))
        } else {
            (1, compute.threads)
        };
        let has_stream = write.outputs.iter().any(|output| is_stream(&output.path));
        Ok(Self {
            batch_size,
            blocks,
            is_single: count == 1,
            may_resume: first_pass.is_some() && !has_stream,
            is_live: first_pass.is_none() && has_stream,
            may_be_only: count == 1 || first_pass.is_none(),
            workers,
            threads,
            memory: if on_cpu { Some(pipeline.needed_bytes(demand, batch_size, workers)?) } else { None },
        })
    }

    /// Adds what decides the rows: the model, the prompts, the settings.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the model cannot be read.
    pub(super) fn add_to(
        self,
        fingerprint: &mut Fingerprint,
        pipeline: &Pipeline,
        rows: &RowOptions,
        first_pass: &FirstPass,
    ) -> Result<()> {
        let options = pipeline.placement();
        fingerprint.push("the program's version", env!("CARGO_PKG_VERSION"));
        // A single batch leaves no rows that a run with other weights could resume; a shard leaves its record.
        let is_thorough = !self.is_single || self.blocks.shard.is_some();
        fingerprint.push("the model's hash", pipeline.identity(is_thorough, rows.needs_zero_embed())?);
        fingerprint.push("the number of rows", first_pass.rows);
        match rows.pictures {
            Some(_) => fingerprint.push("the hash of the pictures' paths, sizes and times", &first_pass.hash),
            None => Self::add_prompts_to(fingerprint, pipeline, rows, first_pass)?,
        }
        fingerprint.push("--device", format!("{:?}", options.device).to_lowercase());
        fingerprint.push("--dtype", options.precision.name());
        fingerprint.push(BATCH_SIZE, self.batch_size);
        if options.device == Device::Cpu {
            self.add_processor_to(fingerprint)?;
        }
        Ok(())
    }

    /// Adds the prompts, and the settings of sampling.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if an image cannot be read.
    fn add_prompts_to(
        fingerprint: &mut Fingerprint,
        pipeline: &Pipeline,
        rows: &RowOptions,
        first_pass: &FirstPass,
    ) -> Result<()> {
        let negative_prompt = rows.negative_prompt.as_ref();
        fingerprint.push("the prompts' hash", &first_pass.hash);
        fingerprint
            .push("--negative-prompt", negative_prompt.map_or_else(|| "not set".into(), |text| format!("{text:?}")));
        fingerprint.push("--steps", rows.settings.steps);
        fingerprint.push("--guidance-scale", rows.settings.guidance_scale);
        if pipeline.kind().has_temperature() {
            fingerprint.push("--temperature", rows.settings.temperature);
        }
        fingerprint.push("--scheduler", pipeline.scheduler_class().map_or("none", |class| class.name));
        let scheduler = pipeline.scheduler_options();
        fingerprint.push("--eta", scheduler.eta.unwrap_or_default());
        fingerprint
            .push("--solver-order", scheduler.solver_order.map_or_else(|| "not set".into(), |order| order.to_string()));
        fingerprint.push("--sde", scheduler.sde);
        fingerprint.push("--seed", rows.seed);
        fingerprint.push("--samples-per-prompt", rows.samples);
        rows.add_given_to(fingerprint);
        rows.images.as_ref().map_or(Ok(()), |images| images.add_to(fingerprint))
    }

    /// Threads that decode the pictures of a block. The workers of a small model have one each.
    pub(super) fn decoding_threads(self) -> usize {
        self.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
    }

    /// Adds what decides the last bits of a matrix product beside its factors.
    fn add_processor_to(self, fingerprint: &mut Fingerprint) -> Result<()> {
        let Processor { instructions, extensions, caches } = Processor::find()?;
        fingerprint.push("the processor's instruction set", instructions);
        fingerprint.push("the processor's extensions", extensions);
        fingerprint.push("the processor's caches", caches);
        fingerprint.push("the number of threads that share a batch (--threads)", self.threads_each());
        Ok(())
    }

    /// CPU threads that share a batch. The workers of a small model have one each, however many there are.
    pub(super) fn threads_each(self) -> usize {
        self.threads.unwrap_or_else(|| usize::try_from(tch::get_num_threads()).unwrap_or(1))
    }
}

impl RowOptions {
    /// Adds what is given beside the prompts. A run without it has no more settings than ever.
    fn add_given_to(&self, fingerprint: &mut Fingerprint) {
        match self.seeding {
            Seeding::Row => {}
            Seeding::Prompt => fingerprint.push("--seed-by", "prompt"),
            Seeding::Call => fingerprint.push("--seed-layout", "call"),
        }
        if self.draws > 1 {
            fingerprint.push("--best-of", self.draws);
        }
        if let Some(text) = &self.decoder_negative_prompt {
            fingerprint.push("--decoder-negative-prompt", format!("{text:?}"));
        }
        if let Some(given) = &self.conditions {
            fingerprint.push("the conditions' hash", &given.hash);
        }
        if let Some(given) = &self.latents {
            fingerprint.push("the latents' hash", &given.hash);
        }
    }
}

/// Refuses a seed that leaves too few above it. The seeds of negative rows follow those of the image rows.
fn check_seeds(seed: u64, rows: Option<u64>, has_negatives: bool) -> Result<()> {
    let rows_each = if has_negatives { 2 } else { 1 };
    let Some(rows) = rows.map(|rows| rows.saturating_mul(rows_each)) else { return Ok(()) };
    match seed.checked_add(rows.saturating_sub(1)) {
        Some(_) => Ok(()),
        None => Err(bad_input!("--seed {seed} leaves no seeds for {rows} rows below 2^64; give a smaller one")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::first_pass::tests::options;
    use super::*;
    use crate::output::shard::Shard;
    use crate::weights::checkpoint::Placement;
    use crate::weights::precision::Precision;
    use std::path::Path;

    fn pipeline() -> Pipeline {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/kandinsky22");
        Pipeline::open(&model, Placement { device: Device::Cpu, precision: Precision::F32 }).unwrap()
    }

    fn plan(total: Option<u64>, negative: bool, batch_size: Option<usize>, shard: Option<Shard>) -> Plan {
        let negative_prompt = negative.then(|| "rain".to_string());
        let rows = RowOptions { negative_prompt, wants_negative: negative, ..options() };
        let write = WriteOptions { shard, ..WriteOptions::new(Vec::new()) };
        let first_pass = total.map(|rows| FirstPass { rows, hash: String::new(), is_uniform: true, ends: Vec::new() });
        let compute = ComputeOptions { batch_size, threads: Some(3), ..ComputeOptions::default() };
        Plan::new(&pipeline(), &rows, first_pass.as_ref(), &write, compute).unwrap()
    }

    #[test]
    fn a_small_model_has_as_many_workers_as_there_is_work_for() {
        let workers = |total, batch_size| {
            let plan = plan(total, false, batch_size, None);
            (plan.workers, plan.threads, plan.is_single)
        };
        assert_eq!(workers(Some(1), None), (1, Some(1), true));
        assert_eq!(workers(Some(10), Some(5)), (2, Some(1), false));
        assert_eq!(workers(Some(100), Some(5)), (3, Some(1), false));
        assert_eq!(workers(None, None), (3, Some(1), false));
        // A share of one batch is computed as the batch would be.
        assert!(plan(Some(1), false, None, Some(Shard { index: 1, count: 2 })).is_single);
    }

    #[test]
    fn rows_and_their_negatives_share_a_batch() {
        let of = |total, negative, batch_size| {
            let plan = plan(total, negative, batch_size, None);
            (plan.batch_size, plan.blocks.rows)
        };
        assert_eq!(of(Some(1000), false, None), (64, 64));
        assert_eq!(of(Some(1000), true, None), (64, 32));
        assert_eq!(of(Some(3), true, None), (6, 3));
        assert_eq!(of(Some(3), true, Some(1)), (1, 1));
        assert_eq!(of(None, false, None), (64, 64));
    }

    #[test]
    fn the_threads_that_share_a_batch_are_a_setting() {
        let fingerprint = |threads| {
            let mut fingerprint = Fingerprint::default();
            let plan = Plan { threads, ..plan(Some(1), false, None, None) };
            plan.add_processor_to(&mut fingerprint).unwrap();
            fingerprint
        };
        let differences = fingerprint(Some(2)).differences(&fingerprint(Some(3)));
        assert_eq!(differences, ["the number of threads that share a batch (--threads) was 2, is 3"]);
        assert_eq!(fingerprint(None), fingerprint(None));
    }

    #[test]
    fn a_seed_needs_others_above_it() {
        let check = |seed, rows, has_negatives| check_seeds(seed, rows, has_negatives).is_ok();
        assert!(check(u64::MAX, Some(1), false) && !check(u64::MAX, Some(2), false));
        assert!(check(u64::MAX - 19, Some(10), true) && !check(u64::MAX - 18, Some(10), true));
        assert!(check(u64::MAX, None, true));
    }
}
