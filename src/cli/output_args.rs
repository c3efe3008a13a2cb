//! Where embeddings go, and in which form: the options of every command that writes some.

use super::args::TargetArgs;
use super::values::output_dtype;
use crate::bad_input;
use crate::output::{Arrays, Output, OutputDtype, OutputFormat, WriteOptions};
use anyhow::Result;
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};

/// Whether both are names of the same existing file.
pub(super) fn is_same_file(path: &Path, other: &Path) -> bool {
    let [path, other] = [path, other].map(|path| fs::canonicalize(path).ok().filter(|path| path.is_file()));
    path.is_some() && path == other
}

/// The main output, and which numbers it holds.
#[derive(Debug, Args)]
pub(super) struct MainOutputArgs {
    #[command(flatten)]
    target: TargetArgs,

    /// Number type of the output: f32, or f16 at half the size
    #[arg(help_heading = "Output", long, value_name = "NAME", default_value = "f32", hide_possible_values = true,
          value_parser = output_dtype())]
    pub(super) out_dtype: OutputDtype,

    /// Scale every embedding to length 1
    #[arg(help_heading = "Output", long)]
    pub(super) normalize: bool,
}

impl MainOutputArgs {
    /// What to write.
    ///
    /// # Errors
    /// As [`TargetArgs::target`].
    pub(super) fn write_options(&self) -> Result<WriteOptions> {
        let (path, format) = self.target.target()?;
        let mut options = WriteOptions::new(vec![Output { path, format, arrays: Arrays::IMAGE }]);
        options.out_dtype = self.out_dtype;
        options.normalize = self.normalize;
        options.rows_per_file = self.target.rows_per_file();
        Ok(options)
    }
}

/// Where embeddings go, and in which form.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    #[command(flatten)]
    pub(super) main: MainOutputArgs,

    /// Output file of the negative embeddings that decoders take; .npz and .safetensors hold them anyway
    ///
    /// .jsonl, .parquet and --out-dir hold both if this has the name of the output. Without a negative prompt, the
    /// negative embedding is that of a black image, which needs the model's image encoder or a file
    /// zero_image_embed.safetensors in the model.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(super) negative_out: Option<PathBuf>,
}

impl OutputArgs {
    /// What to write: the main output, and others of arrays that have options of their own.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if one has no format, or two are one file that cannot hold both.
    pub(super) fn write_options(&self, others: &[(&str, &Option<PathBuf>, Arrays)]) -> Result<WriteOptions> {
        let mut options = self.main.write_options()?;
        let outputs = &mut options.outputs;
        let negative = ("--negative-out", &self.negative_out, Arrays::NEGATIVE);
        for (option, path, arrays) in std::iter::once(&negative).chain(others) {
            match path {
                Some(path) if *path != outputs[0].path => {
                    let format = self.main.target.format.map_or_else(|| OutputFormat::of_path(path), Ok)?;
                    outputs.push(Output { path: path.clone(), format, arrays: *arrays });
                }
                Some(_) if *arrays == Arrays::SCORES => {
                    return Err(bad_input!(
                        "--out and {option} are the same file; give the scores a file of their own"
                    ));
                }
                Some(_) if !outputs[0].format.holds_several() => {
                    return Err(bad_input!(
                        "--out and {option} are the same file; give two names, or one .npz for all arrays"
                    ));
                }
                Some(_) => outputs[0].arrays = outputs[0].arrays.union(*arrays),
                None => {}
            }
        }
        Ok(options)
    }
}
