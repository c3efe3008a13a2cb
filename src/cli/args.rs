//! Options that several commands share, and parsers of values. Only `cli` knows clap.

use crate::error::Component;
use crate::hub::{HubOptions, ModelSource};
use crate::output::OutputFormat;
use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args};
use std::ffi::OsString;
use std::path::PathBuf;

/// Options of every command, before or after its name.
#[derive(Debug, Args)]
pub(super) struct GlobalArgs {
    /// Keep downloaded models in this folder [default: the cache of Python's huggingface_hub]
    #[arg(long, value_name = "FOLDER", global = true)]
    pub(super) cache_dir: Option<PathBuf>,

    /// Never use the network; the model must be on this machine
    #[arg(long, global = true)]
    pub(super) offline: bool,

    /// Print nothing but errors on standard error
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,

    /// Print more on standard error, and the causes of errors
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
}

impl GlobalArgs {
    /// How to use the hub.
    pub(super) fn hub(&self) -> HubOptions {
        HubOptions { cache_dir: self.cache_dir.clone(), offline: self.offline }
    }
}

/// Which version of a model.
#[derive(Debug, Args)]
pub(super) struct RevisionArgs {
    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "NAME", value_parser = text())]
    pub(super) revision: Option<String>,
}

impl RevisionArgs {
    /// The model of this name, with these components in the place of its own.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if one cannot be the name of a model or a component.
    pub(super) fn model(
        &self,
        name: &str,
        components: &[(Component, &str)],
        hub: &HubOptions,
    ) -> anyhow::Result<ModelSource> {
        let model = ModelSource::parse(name, self.revision.as_deref(), components)?;
        if hub.cache_dir.is_some() && !model.is_on_hub() {
            warn_no_effect("--cache-dir", &format!("model {name:?} is not on the hub"));
        }
        Ok(model)
    }
}

/// Components from elsewhere. `--image-encoder` is an option of each command, since that of `download` is a flag too.
#[derive(Debug, Args)]
pub(super) struct ComponentArgs {
    /// Prior from elsewhere: a folder, a file, or owner/name[@revision][/subfolder] on the hub
    ///
    /// The scheduler stays that of --model. A folder or repository may hold the component alone or a whole model. See
    /// `prior-embed help models`.
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    prior: Option<String>,

    /// Text encoder from elsewhere, which may be a whole CLIPModel; the tokenizer stays that of --model
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    text_encoder: Option<String>,

    /// Tokenizer from elsewhere
    #[arg(help_heading = "Model", long, value_name = "M", value_parser = text())]
    tokenizer: Option<String>,
}

impl ComponentArgs {
    /// Those that are given, with the value of `--image-encoder`.
    pub(super) fn given<'a>(&'a self, image_encoder: Option<&'a str>) -> Vec<(Component, &'a str)> {
        let components = [
            (Component::Prior, self.prior.as_deref()),
            (Component::TextEncoder, self.text_encoder.as_deref()),
            (Component::ImageEncoder, image_encoder),
            (Component::Tokenizer, self.tokenizer.as_deref()),
        ];
        components.into_iter().filter_map(|(component, name)| Some((component, name?))).collect()
    }
}

/// The outputs that may stand in place of `--out`.
pub(super) const INSTEAD_OF_OUT: &str = "instead_of_out";

/// Where embeddings go.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new(INSTEAD_OF_OUT).multiple(true))]
pub(super) struct TargetArgs {
    /// Output file: .npy, .npz, .safetensors, .jsonl, .parquet or .ipadpt; `-` for standard output
    #[arg(help_heading = "Output", short, long, value_name = "FILE", required_unless_present = INSTEAD_OF_OUT)]
    pub(super) out: Option<PathBuf>,

    /// Output folder of numbered files, instead of --out, as clip-retrieval and embedding-reader use it
    #[arg(help_heading = "Output", long, value_name = "DIR", conflicts_with_all = ["out", "format"],
          group = INSTEAD_OF_OUT)]
    pub(super) out_dir: Option<PathBuf>,

    /// Rows per file of --out-dir [default: 1000000]
    #[arg(help_heading = "Output", long, value_name = "N", allow_negative_numbers = true, value_parser = at_least_one_row)]
    pub(super) rows_per_file: Option<u64>,

    /// Output format if not by extension: npy, npz, safetensors, jsonl, jsonl-base64, parquet or ipadpt
    #[arg(help_heading = "Output", long, value_name = "NAME", value_parser = output_format)]
    pub(super) format: Option<OutputFormat>,
}

impl TargetArgs {
    /// Whether there is any.
    pub(super) fn is_given(&self) -> bool {
        self.out.is_some() || self.out_dir.is_some()
    }

    /// The output's path and format.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there is no path, or neither its extension nor --format gives the format.
    pub(super) fn target(&self) -> anyhow::Result<(PathBuf, OutputFormat)> {
        if self.rows_per_file.is_some() && self.out_dir.is_none() {
            warn_no_effect("--rows-per-file", "it is for the files of --out-dir");
        }
        match (&self.out, &self.out_dir) {
            (_, Some(folder)) => Ok((folder.clone(), OutputFormat::Folder)),
            (Some(file), None) if file.is_dir() => Err(crate::bad_input!(
                "{:?} is a folder; give a file name, or --out-dir for a folder of numbered files",
                file.display().to_string()
            )),
            (Some(file), None) => Ok((file.clone(), self.format.map_or_else(|| OutputFormat::of_path(file), Ok)?)),
            (None, None) => Err(crate::bad_input!("no output; give --out FILE or --out-dir DIR")),
        }
    }

    /// Rows per file of a folder.
    pub(super) fn rows_per_file(&self) -> u64 {
        self.rows_per_file.unwrap_or(1_000_000)
    }
}

/// Warns of an option that changes nothing, and why.
pub(super) fn warn_no_effect(option: &str, why: &str) {
    log::warn!("{option} has no effect: {why}");
}

/// Parses text. What is not UTF-8 is refused with the option's name.
pub(super) fn text() -> impl TypedValueParser<Value = String> {
    let not_text = |_: OsString| "it is not UTF-8; set the encoding of the terminal or the script to UTF-8";
    OsStringValueParser::new().try_map(move |value| value.into_string().map_err(not_text))
}

/// Parses one of a few names.
pub(super) fn one_of<T: Clone + Send + Sync + 'static, const N: usize>(
    names: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    let parser = PossibleValuesParser::new(names.clone().map(|(name, _)| name));
    // The parser accepts no other name.
    parser.map(move |given| names.iter().find(|(name, _)| *name == given).unwrap_or(&names[0]).1.clone())
}

/// Parses a number of at least one.
pub(super) fn at_least_one(what: &'static str) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse::<usize>() {
        Ok(number) if number >= 1 && number <= i32::MAX as usize => Ok(number),
        _ => Err(format!("it must be {what} between 1 and {}", i32::MAX)),
    }
}

fn at_least_one_row(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|rows| *rows >= 1).ok_or_else(|| "it must be a number of rows, 1 or more".into())
}

fn output_format(text: &str) -> Result<OutputFormat, String> {
    OutputFormat::from_name(text)
        .ok_or_else(|| "it must be npy, npz, safetensors, jsonl, jsonl-base64, parquet or ipadpt".into())
}
