//! Where embeddings and pictures of them go, and in which form: the options of every command that writes some.

use super::args::{INSTEAD_OF_OUT, TargetArgs, warn_no_effect};
use super::values::output_dtype;
use crate::bad_input;
use crate::hub::{ModelName, ModelSource};
use crate::output::{Arrays, Output, OutputDtype, OutputFormat, WriteOptions, is_stream};
use crate::pipeline::BuiltinDecoder;
use anyhow::Result;
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};

/// Whether both are names of the same existing file.
pub(super) fn is_same_file(path: &Path, other: &Path) -> bool {
    let [path, other] = [path, other].map(existing_file);
    path.is_some() && path == other
}

/// The one name of an existing file.
pub(super) fn existing_file(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).ok().filter(|path| path.is_file())
}

/// A picture of the embeddings.
#[derive(Debug, Args)]
struct PictureArgs {
    /// Output PNG of what the built-in model's decoder draws of the embeddings; of several rows a contact sheet
    ///
    /// It may stand in place of --out, and is for embeddings of the built-in model alone. `prior-embed draw` makes
    /// pictures of embeddings that are in files, also one of each row.
    #[arg(help_heading = "Output", long, value_name = "FILE", group = INSTEAD_OF_OUT)]
    picture: Option<PathBuf>,
}

impl PictureArgs {
    /// The output that it asks for.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it is no name of a PNG file, or this build has no decoder.
    fn output(&self) -> Result<Option<Output>> {
        let Some(path) = self.picture.clone() else { return Ok(None) };
        BuiltinDecoder::sizes()?;
        if path.is_dir() {
            return Err(bad_input!(
                "--picture: {path:?} is a folder; give a file name. prior-embed draw makes a folder of pictures"
            ));
        }
        if !is_stream(&path) && !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
            return Err(bad_input!("--picture: {path:?} does not end in .png, and pictures are PNG; rename it"));
        }
        Ok(Some(Output { path, format: OutputFormat::Picture, arrays: Arrays::IMAGE }))
    }
}

/// The main output, and a picture if there is one; it is the main output if there is no other.
///
/// # Errors
/// Those of [`TargetArgs::target`] and [`PictureArgs::output`]; [`crate::bad_input::BadInput`] if both are one file.
fn outputs_with(target: &TargetArgs, picture: &PictureArgs) -> Result<Vec<Output>> {
    let picture = picture.output()?;
    let main = match target.is_given() || picture.is_none() {
        true => Some(target.target()?).map(|(path, format)| Output { path, format, arrays: Arrays::IMAGE }),
        false => None,
    };
    if let (Some(main), Some(picture)) = (&main, &picture)
        && main.path == picture.path
    {
        return Err(bad_input!("{:?} is named twice as an output; give the picture another name", main.path));
    }
    Ok(main.into_iter().chain(picture).collect())
}

/// Refuses a picture of a model's embeddings before the model is downloaded.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if one is wanted, and the model is on the hub.
pub(super) fn check_picture(write: &WriteOptions, model: &ModelSource) -> Result<()> {
    let is_picture = |output: &Output| output.format == OutputFormat::Picture;
    match write.outputs.iter().any(is_picture) && matches!(model.model, ModelName::Hub(_)) {
        true => Err(bad_input!(
            "--picture: the built-in decoder draws embeddings of the built-in model, and not those of {:?}; \
             scripts/decode.py --decoder draws them with diffusers",
            model.name
        )),
        false => Ok(()),
    }
}

/// The main output, a picture of it, and which numbers it holds.
#[derive(Debug, Args)]
pub(super) struct MainOutputArgs {
    #[command(flatten)]
    target: TargetArgs,

    #[command(flatten)]
    picture: PictureArgs,

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
    /// As [`outputs_with`].
    pub(super) fn write_options(&self) -> Result<WriteOptions> {
        let mut options = WriteOptions::new(outputs_with(&self.target, &self.picture)?);
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

    /// Leave out the negative embeddings that .npz, .safetensors and jsonl-base64 hold otherwise
    #[arg(help_heading = "Output", long, conflicts_with = "negative_out")]
    no_negative: bool,
}

impl OutputArgs {
    /// What to write: the main output, and others of arrays that have options of their own.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if one has no format, or two are one file that cannot hold both.
    pub(super) fn write_options(&self, others: &[(&str, &Option<PathBuf>, Arrays)]) -> Result<WriteOptions> {
        let mut options = self.main.write_options()?;
        options.no_negative = self.no_negative;
        let outputs = &mut options.outputs;
        let format = outputs[0].format;
        if self.no_negative && !format.prefers_both() {
            warn_no_effect(
                "--no-negative",
                "the output holds negative embeddings only where --negative-out asks for them",
            );
        }
        if format == OutputFormat::Picture && self.main.target.format.is_some() && self.negative_out.is_none() {
            warn_no_effect("--format", "a picture is a PNG, and it is for files of embeddings");
        }
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
                Some(_) if !format.holds_several() => {
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
