//! The files that the options name.

use super::args::Args;
use crate::bad_input;
use crate::cli::args::warn_no_effect;
use crate::cli::context::Context;
use crate::cli::stdout;
use crate::job::{IfExists, OnError, Report};
use crate::output::destination::Destination;
use crate::output::{ArrayName, Arrays, Output, OutputFormat, WriteOptions, check, is_stream};
use anyhow::Result;
use std::fs;
use std::path::Path;

/// What to write, checked before the work begins.
pub(super) struct Outputs {
    pub(super) write: WriteOptions,
    pub(super) stats: Option<Destination>,
    pub(super) provenance: Option<Destination>,
    /// Where to report rows that cannot be used, if not on standard error.
    pub(super) report: Option<Report>,
}

impl Outputs {
    /// Checks that all outputs can be written.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if one cannot.
    pub(super) fn open(args: &Args, context: &Context) -> Result<Self> {
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
        let report = report(args, &write.base_path(), context.screen.is_quiet())?;
        let stats = args.stats.as_ref().map(|path| Destination::open(path, args.overwrite)).transpose()?;
        let same = stats.as_ref().and_then(|stats| write.outputs.iter().find(|output| stats.is_at(&output.path)));
        if let Some(output) = same {
            let name = match output.arrays {
                Arrays::NEGATIVE => "--negative-out",
                Arrays::TEXT => "--text-out",
                _ => "--out",
            };
            return Err(bad_input!("{name} and --stats are the same file; give two names"));
        }
        if let (Some(stats), Some(report)) = (&stats, &report)
            && stats.is_at(report.path())
        {
            return Err(bad_input!("--stats and the report on skipped rows are the same file; give another name"));
        }
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
        let inputs = [("prompts", &args.prompts), ("conditions", &args.conditions), ("latents", &args.latents)];
        let inputs = inputs.into_iter().filter_map(|(what, path)| Some((what, path.as_deref()?)));
        let inversions = args.textual_inversion.iter().map(|option| ("textual inversion", option.path.as_path()));
        let mut inputs = inputs.chain(inversions);
        if let Some((what, input)) = inputs.find(|(_, input)| replaced.iter().any(|path| is_same_file(input, path))) {
            let name = input.display().to_string();
            return Err(bad_input!("{name:?} holds the {what} and would be replaced; give the output another name"));
        }
        Ok(Self { write, stats, provenance, report })
    }

    /// Whether to write negative embeddings if the model can make them: an option asks for them, or the format holds
    /// them.
    pub(super) fn wants_negative(&self) -> bool {
        let main = self.write.outputs.first();
        self.needs_negative() || main.is_some_and(|main| main.format.prefers_both())
    }

    /// Whether an option asks for negative embeddings.
    pub(super) fn needs_negative(&self) -> bool {
        self.write.outputs.iter().any(|output| output.arrays.has(ArrayName::Negative))
    }

    /// Adds the negative embeddings to the main output if they have no output of their own.
    pub(super) fn add_negative(&mut self) {
        if !self.needs_negative()
            && let [main, ..] = self.write.outputs.as_mut_slice()
        {
            main.arrays = main.arrays.union(Arrays::NEGATIVE);
        }
    }
}

/// Whether both are names of the same existing file.
fn is_same_file(path: &Path, other: &Path) -> bool {
    let [path, other] = [path, other].map(|path| fs::canonicalize(path).ok().filter(|path| path.is_file()));
    path.is_some() && path == other
}

/// The report on rows that cannot be used. With --overwrite, that of an earlier run is replaced together with its
/// output.
fn report(args: &Args, main: &Path, is_quiet: bool) -> Result<Option<Report>> {
    let skips = args.on_error == OnError::Skip;
    if is_stream(main) {
        if skips && is_quiet && args.stats.is_none() {
            return Err(bad_input!(
                "--on-error skip with --quiet and a stream as --out would hide which rows are skipped; leave out \
                 --quiet, or add --stats FILE, which counts them"
            ));
        }
        return Ok(None);
    }
    let if_exists = match (args.overwrite, args.resume) {
        (true, _) => IfExists::Replace,
        (false, true) => IfExists::Compare,
        (false, false) => IfExists::Fail,
    };
    (skips || args.overwrite).then(|| Report::beside(main, if_exists)).transpose()
}

fn write_options(args: &Args) -> Result<WriteOptions> {
    let (path, format) = args.target.target()?;
    let mut main = Output { path, format, arrays: Arrays::IMAGE };
    let mut others = Vec::new();
    let named =
        [("--negative-out", &args.negative_out, Arrays::NEGATIVE), ("--text-out", &args.text_out, Arrays::TEXT)];
    for (option, path, arrays) in named {
        match path {
            Some(path) if *path != main.path => {
                let format = args.target.format.map_or_else(|| OutputFormat::of_path(path), Ok)?;
                others.push(Output { path: path.clone(), format, arrays });
            }
            Some(_) if !format.holds_several() => {
                return Err(bad_input!(
                    "--out and {option} are the same file; give two names, or one .npz for all arrays"
                ));
            }
            Some(_) => main.arrays = main.arrays.union(arrays),
            None => {}
        }
    }
    let mut options = WriteOptions::new(std::iter::once(main).chain(others).collect());
    options.out_dtype = args.out_dtype;
    options.normalize = args.normalize;
    options.rows_per_file = args.target.rows_per_file();
    options.overwrite = args.overwrite;
    options.resume = args.resume;
    options.shard = args.shard;
    Ok(options)
}
