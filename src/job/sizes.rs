//! The numbers that a run goes by, and what decides its rows.

use super::reader::Blocks;
use super::source::{Rules, Survey};
use crate::bad_input;
use crate::kernels::processor::Processor;
use crate::output::fingerprint::Fingerprint;
use crate::output::{WriteOptions, is_stream};
use crate::pipeline::{Demand, Pipeline};
use anyhow::Result;
use std::thread;
use tch::Device;

/// The name of the setting that a run which goes on takes from the one before.
pub(super) const BATCH_SIZE: &str = "--batch-size";

/// What the user says of how a job is computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Rows computed together.
    pub batch_size: Option<usize>,
    /// CPU threads.
    pub threads: Option<usize>,
}

/// The numbers that a run goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch_size: usize,
    pub(super) blocks: Blocks,
    /// Whether the whole is one block, whoever computes it.
    pub(super) is_single: bool,
    /// Whether rows may be left for a run that goes on: of prompts that can be read again, and in files.
    pub(super) may_resume: bool,
    /// Whether a row may be long in coming while somebody sees those before it one by one.
    pub(super) is_live: bool,
    /// Whether the first block may be the only one. A share, or a run that goes on, has the bits of the whole: this depends
    /// on nothing else.
    pub(super) may_be_only: bool,
    pub(super) workers: usize,
    /// CPU threads of each worker; libtorch's choice if not given.
    pub(super) threads: Option<usize>,
}

impl Sizes {
    /// Plans a run over the rows that a survey found, if there was one.
    ///
    /// # Errors
    /// If there is not enough memory, or there are not enough seeds.
    pub(super) fn plan(
        pipeline: &Pipeline,
        rules: &Rules,
        survey: Option<&Survey>,
        write: &WriteOptions,
        wanted: Wanted,
    ) -> Result<Self> {
        let total = survey.map(|survey| survey.rows);
        let is_uniform = survey.is_none_or(|survey| survey.is_uniform);
        let has_negatives = rules.wants_negative && (rules.negative_prompt.is_some() || !is_uniform);
        check_seeds(rules.seed, total, has_negatives)?;
        let samples_negative = rules.wants_negative && !rules.needs_zero_embed();
        // A row of the output and its negative are computed together.
        let rows_each = if samples_negative { 2 } else { 1 };
        let rows = total.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(usize::MAX).saturating_mul(rows_each);
        let demand = Demand { rows, is_uniform, zero_embed: rules.needs_zero_embed() };
        let batch_size = pipeline.plan_batch(demand, wanted.batch_size)?;
        let blocks = Blocks { rows: (batch_size / rows_each).max(1) as u64, shard: write.shard };
        let count = total.map_or(u64::MAX, |rows| rows.div_ceil(blocks.rows));
        let (workers, threads) = if pipeline.placement().device == Device::Cpu && pipeline.is_small()? {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let useful = usize::try_from(count).unwrap_or(usize::MAX);
            let most = wanted.threads.unwrap_or(cores).min(useful).max(1);
            let workers = pipeline.plan_workers(demand, batch_size, most)?;
            if workers < most {
                let level = if wanted.threads.is_some() { log::Level::Warn } else { log::Level::Info };
                log::log!(
                    level,
                    "memory is free for {workers} of {most} threads, each with a pipeline; using {workers}"
                );
            }
            (workers, Some(1))
        } else {
            (1, wanted.threads)
        };
        let has_stream = write.outputs.iter().any(|output| is_stream(&output.path));
        Ok(Self {
            batch_size,
            blocks,
            is_single: count == 1,
            may_resume: survey.is_some() && !has_stream,
            is_live: survey.is_none() && has_stream,
            may_be_only: count == 1 || survey.is_none(),
            workers,
            threads,
        })
    }

    /// Adds what decides the rows: the model, the prompts, the settings.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the model cannot be read.
    pub(super) fn add_to(
        self,
        fingerprint: &mut Fingerprint,
        pipeline: &Pipeline,
        rules: &Rules,
        survey: &Survey,
    ) -> Result<()> {
        let options = pipeline.placement();
        let negative_prompt = rules.negative_prompt.as_ref();
        fingerprint.push("the program's version", env!("CARGO_PKG_VERSION"));
        // A single batch leaves nothing that other weights could go on with; a shard leaves its record.
        let is_thorough = !self.is_single || self.blocks.shard.is_some();
        fingerprint.push("the model's hash", pipeline.identity(is_thorough, rules.needs_zero_embed())?);
        fingerprint.push("the number of rows", survey.rows);
        fingerprint.push("the prompts' hash", &survey.hash);
        fingerprint
            .push("--negative-prompt", negative_prompt.map_or_else(|| "not set".into(), |text| format!("{text:?}")));
        fingerprint.push("--steps", rules.settings.steps);
        fingerprint.push("--guidance-scale", rules.settings.guidance_scale);
        fingerprint.push("--seed", rules.seed);
        fingerprint.push("--samples-per-prompt", rules.samples);
        fingerprint.push("--device", format!("{:?}", options.device).to_lowercase());
        fingerprint.push("--dtype", options.precision.name());
        fingerprint.push(BATCH_SIZE, self.batch_size);
        if options.device == Device::Cpu {
            self.add_processor_to(fingerprint)?;
        }
        Ok(())
    }

    /// Adds what the last bits of a product depend on beside its factors.
    fn add_processor_to(self, fingerprint: &mut Fingerprint) -> Result<()> {
        let Processor { instructions, extensions, caches } = Processor::find()?;
        fingerprint.push("the processor's instruction set", instructions);
        fingerprint.push("the processor's extensions", extensions);
        fingerprint.push("the processor's caches", caches);
        // Those of a small model have one each, however many there are.
        let threads = self.threads.unwrap_or_else(|| usize::try_from(tch::get_num_threads()).unwrap_or(1));
        fingerprint.push("the number of threads that share a batch (--threads)", threads);
        Ok(())
    }
}

/// Refuses a seed with too few above it. Negative rows count on from the image rows.
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
    use super::super::source::tests::rules;
    use super::*;
    use crate::nn::precision::Precision;
    use crate::output::shard::Shard;
    use crate::weights::checkpoint::Placement;
    use std::path::Path;

    fn pipeline() -> Pipeline {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/kandinsky22");
        Pipeline::open(&model, Placement { device: Device::Cpu, precision: Precision::F32 }).unwrap()
    }

    fn plan(total: Option<u64>, negative: bool, batch_size: Option<usize>, shard: Option<Shard>) -> Sizes {
        let negative_prompt = negative.then(|| "rain".to_string());
        let rules = Rules { negative_prompt, wants_negative: negative, ..rules() };
        let write = WriteOptions { shard, ..WriteOptions::new(Vec::new()) };
        let survey = total.map(|rows| Survey { rows, hash: String::new(), is_uniform: true });
        Sizes::plan(&pipeline(), &rules, survey.as_ref(), &write, Wanted { batch_size, threads: Some(3) }).unwrap()
    }

    #[test]
    fn a_small_model_has_as_many_workers_as_there_is_work_for() {
        let workers = |total, batch_size| {
            let sizes = plan(total, false, batch_size, None);
            (sizes.workers, sizes.threads, sizes.is_single)
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
        let sizes = |total, negative, batch_size| {
            let sizes = plan(total, negative, batch_size, None);
            (sizes.batch_size, sizes.blocks.rows)
        };
        assert_eq!(sizes(Some(1000), false, None), (64, 64));
        assert_eq!(sizes(Some(1000), true, None), (64, 32));
        assert_eq!(sizes(Some(3), true, None), (6, 3));
        assert_eq!(sizes(Some(3), true, Some(1)), (1, 1));
        assert_eq!(sizes(None, false, None), (64, 64));
    }

    #[test]
    fn the_threads_that_share_a_batch_are_a_setting() {
        let fingerprint = |threads| {
            let mut fingerprint = Fingerprint::default();
            let sizes = Sizes { threads, ..plan(Some(1), false, None, None) };
            sizes.add_processor_to(&mut fingerprint).unwrap();
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
