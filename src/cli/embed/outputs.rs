//! The files that the options name.

use super::args::Args;
use super::inputs::Inputs;
use crate::bad_input;
use crate::cli::args::warn_no_effect;
use crate::cli::context::Context;
use crate::cli::output_args::existing_file;
use crate::cli::{reports, stdout};
use crate::job::{OnError, Report};
use crate::output::destination::Destination;
use crate::output::{Arrays, OutputFormat, WriteOptions, check, is_stream};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// What to write, checked before the work begins.
pub(super) struct Outputs {
    pub(super) write: WriteOptions,
    pub(super) stats: Option<Destination>,
    pub(super) provenance: Option<Destination>,
    /// Where to report rows that cannot be used, if not on standard error.
    pub(super) report: Option<Report>,
}

impl Outputs {
    /// Checks that all outputs can be written, and replace no input.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if one cannot.
    pub(super) fn open(args: &Args, inputs: &Inputs, context: &Context) -> Result<Self> {
        let write = write_options(args)?;
        let paths = || write.outputs.iter().map(|output| output.path.as_path()).chain(args.stats.as_deref());
        let paths = || paths().chain(args.provenance.as_deref());
        if paths().any(|path| path.as_os_str() == "-") {
            stdout::check()?;
        }
        check(&write)?;
        if args.overwrite && paths().all(is_stream) {
            warn_no_effect("--overwrite", "a stream replaces nothing");
        }
        let is_counted = !context.screen.is_quiet() || args.stats.is_some();
        let report = reports::on_rows(&write, args.on_error, is_counted)?;
        let stats = reports::stats(args.stats.as_deref(), &write, report.as_ref())?;
        let provenance = args.provenance.as_ref();
        let provenance = provenance.map(|path| Destination::open(path, args.overwrite || args.resume)).transpose()?;
        let others = write.outputs.iter().map(|output| output.path.as_path()).chain(args.stats.as_deref());
        let mut others = others.chain(report.as_ref().map(Report::path));
        if provenance.as_ref().is_some_and(|provenance| others.any(|path| provenance.is_at(path))) {
            return Err(bad_input!("--provenance is the same file as another output; give another name"));
        }
        let outputs = write.outputs.iter().map(|output| output.path.as_path());
        let replaced: Vec<&Path> = outputs
            .chain(args.stats.as_deref())
            .chain(args.provenance.as_deref())
            .chain(report.as_ref().map(Report::path))
            .collect();
        let never_written = report.as_ref().map(Report::path).filter(|_| args.on_error == OnError::Fail);
        for path in replaced.iter().filter(|path| Some(**path) != never_written) {
            let is_folder =
                write.outputs.iter().any(|output| output.path == *path && output.format == OutputFormat::Folder);
            inputs.check_output(path, is_folder.then_some("metadata/metadata_0000.parquet"))?;
        }
        let prompts = inputs.local().map(|file| ("prompts", file.path.as_path()));
        let inputs = [("conditions", &args.conditions), ("latents", &args.latents)];
        let inputs = inputs.into_iter().filter_map(|(what, path)| Some((what, path.as_deref()?))).chain(prompts);
        let inputs = inputs.chain(args.image.iter().filter_map(|item| Some(("image", item.path()?))));
        let inversions = args.model.textual_inversion.iter().map(|option| ("textual inversion", option.path.as_path()));
        let mut inputs = inputs.chain(inversions);
        // There may be many inputs, and mostly nothing is replaced.
        let replaced: Vec<PathBuf> = replaced.into_iter().filter_map(existing_file).collect();
        let is_replaced = |input: &Path| existing_file(input).is_some_and(|input| replaced.contains(&input));
        if let Some((what, input)) = inputs.find(|(_, input)| !replaced.is_empty() && is_replaced(input)) {
            let name = input.display().to_string();
            return Err(bad_input!("{name:?} holds the {what} and would be replaced; give the output another name"));
        }
        Ok(Self { write, stats, provenance, report })
    }
}

fn write_options(args: &Args) -> Result<WriteOptions> {
    let mut options = args
        .output
        .write_options(&[("--text-out", &args.text_out, Arrays::TEXT), ("--scores", &args.scores, Arrays::SCORES)])?;
    options.overwrite = args.overwrite;
    options.resume = args.resume;
    options.shard = args.shard;
    options.draws = Some(args.best_of);
    Ok(options)
}
