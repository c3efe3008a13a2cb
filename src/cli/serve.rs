//! `prior-embed serve`: the model behind HTTP.

use super::args::{at_least_one, one_of, text};
use super::context::Context;
use super::prior_args::{DeviceArgs, ModelArgs, PriorSource, SchedulerArgs};
use super::progress::FetchProgress;
use super::stdout;
use super::values::{finite, seed, seed_by, temperature};
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::hub::{Hub, ModelName, Needs, Wish};
use crate::job::{Opener, Seeding, Stop, signal_exit_code};
use crate::pipeline::builtin::EMOJI;
use crate::serve::{self, Address, Defaults, Limits, Listener, LogFormat, LogOptions, Options, Seeds};
use crate::weights::precision::Precision;
use anyhow::Result;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The environment's API key.
const API_KEY: &str = "PRIOR_EMBED_API_KEY";

/// Serve embeddings over HTTP, as OpenAI and text-embeddings-inference do
///
/// Rows of all requests are computed together, and have the numbers of the command line. See `prior-embed help serving`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or address to listen on; 0.0.0.0 for all of this machine
    #[arg(help_heading = "Server", long, value_name = "HOST", default_value = "127.0.0.1", value_parser = text())]
    host: String,

    /// Port to listen on; 0 for any free one, which is printed
    #[arg(help_heading = "Server", long, value_name = "PORT", default_value_t = 8080)]
    port: u16,

    /// Listen on a Unix domain socket instead
    #[arg(help_heading = "Server", long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    uds: Option<PathBuf>,

    /// Key that clients must send, as `Authorization: Bearer KEY` [default: $PRIOR_EMBED_API_KEY, or none]
    ///
    /// Other users of this machine may see options: the environment or --api-key-file hides it.
    #[arg(help_heading = "Server", long, value_name = "KEY", value_parser = text())]
    api_key: Option<String>,

    /// File with that key
    #[arg(help_heading = "Server", long, value_name = "FILE", conflicts_with = "api_key")]
    api_key_file: Option<PathBuf>,

    /// Seconds that requests may take to end after SIGTERM or Ctrl-C; a second signal ends at once
    #[arg(help_heading = "Server", long, value_name = "S", default_value_t = 30)]
    grace: u64,

    /// Log format: text or json
    #[arg(help_heading = "Server", long, value_name = "NAME", default_value = "text", hide_possible_values = true,
          value_parser = one_of([("text", LogFormat::Text), ("json", LogFormat::Json)]))]
    log_format: LogFormat,

    /// Log the prompts of requests too
    #[arg(help_heading = "Server", long)]
    log_prompts: bool,

    /// Rows computed together [default: up to 64, as far as memory allows]
    #[arg(help_heading = "Batches", long, value_name = "N", value_parser = at_least_one("a number of rows"))]
    max_batch_size: Option<usize>,

    /// Tokens of prompts computed together
    #[arg(help_heading = "Batches", long, value_name = "N", default_value_t = 16384,
          value_parser = at_least_one("a number of tokens"))]
    max_batch_tokens: usize,

    /// Milliseconds that a row may wait for others, if the last batch had several
    #[arg(help_heading = "Batches", long, value_name = "MS", default_value_t = 2)]
    max_wait_ms: u64,

    /// Rows that may wait; beyond, requests are refused with 429. One of more than a batch counts as a batch
    #[arg(help_heading = "Batches", long, value_name = "N", default_value_t = 1024,
          value_parser = at_least_one("a number of rows"))]
    max_queue: usize,

    /// Cache of embeddings in megabytes; 0 for none
    #[arg(help_heading = "Batches", long, value_name = "MB", default_value_t = 64)]
    cache_mb: u32,

    /// Rows of a request: prompts times samples
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 2048,
          value_parser = at_least_one("a number of rows"))]
    max_rows: usize,

    /// Denoising steps that a request may ask for
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 250,
          value_parser = at_least_one("a number of steps"))]
    max_steps: usize,

    /// Bytes of a prompt
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 16384,
          value_parser = at_least_one("a number of bytes"))]
    max_prompt_bytes: usize,

    /// Bytes of a request's body
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 2_097_152,
          value_parser = at_least_one("a number of bytes"))]
    max_body_bytes: usize,

    /// Open connections; others wait
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 4096,
          value_parser = at_least_one("a number of connections"))]
    max_connections: usize,

    /// Seconds that a client may take to send the head of a request, or its body, or to take the answer
    ///
    /// A connection without a request is closed after it too.
    #[arg(help_heading = "Limits", long, value_name = "S", default_value_t = 30.0, value_parser = seconds)]
    timeout: f64,

    /// Negative prompt of requests that have none: what guidance steers away from
    #[arg(help_heading = "Defaults of requests", short, long, value_name = "TEXT", value_parser = text())]
    negative_prompt: Option<String>,

    /// Denoising steps; a one-step or autoregressive prior takes none [default: 25]
    #[arg(help_heading = "Defaults of requests", long, value_name = "N", allow_negative_numbers = true,
          value_parser = at_least_one("a number of steps"))]
    steps: Option<usize>,

    /// Scale of classifier-free guidance; 1 and below turn it off, a one-step prior takes none [default: 4]
    #[arg(help_heading = "Defaults of requests", long, value_name = "G", allow_negative_numbers = true,
          value_parser = finite)]
    guidance_scale: Option<f64>,

    /// Temperature of an autoregressive prior: above 1 more varied, at 0 the likeliest tokens [default: 1]
    #[arg(help_heading = "Defaults of requests", long, value_name = "T", allow_negative_numbers = true,
          value_parser = temperature)]
    temperature: Option<f64>,

    /// Seed: row r of a request draws its noise with seed S + r
    #[arg(help_heading = "Defaults of requests", long, value_name = "S", default_value_t = 0,
          allow_negative_numbers = true, value_parser = seed)]
    seed: u64,

    /// `prompt` makes each prompt's seed of its text, so that its embedding does not depend on its place in a request
    #[arg(help_heading = "Defaults of requests", long, value_name = "WHAT", hide_possible_values = true,
          value_parser = seed_by(), conflicts_with = "seed")]
    seed_by: Option<Seeding>,

    /// Truncate prompts that are too long also in /v1/embeddings and /embed, which otherwise refuse them
    #[arg(help_heading = "Defaults of requests", long)]
    truncate: bool,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    scheduler: SchedulerArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Serves, and returns the exit code: 0 if every request was answered, or that of the signal.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    if args.log_format == LogFormat::Json {
        context.screen.write_json();
    }
    let prior = PriorSource::new(&args.model, &args.scheduler, &args.device, &context.hub)?;
    let options = options(args, &prior, context)?;
    let address = match &args.uds {
        Some(path) => Address::Unix(path.clone()),
        None => Address::Tcp(args.host.clone(), args.port),
    };
    let listener = Listener::bind(&address)?;
    if listener.is_open && options.api_key.is_none() {
        log::warn!("whoever reaches {} may use the server; --api-key or ${API_KEY} asks for a key", listener.address);
    }
    let stop = Stop::listen()?;
    if !crate::kernels::process::stdout_was_closed() {
        stdout::print(&format!("listening on {}", listener.address))?;
    }
    let (screen, hub) = (context.screen.clone(), Hub::new(context.hub.clone()));
    let has_image_encoder = args.model.image_encoder.is_some();
    let load = move |start: &mut serve::Start| {
        // It is large, and only makes negative embeddings without a negative prompt.
        let image_encoder = if has_image_encoder { Wish::Needed } else { Wish::No };
        let needs = Needs { sixteen_bit: prior.load.precision != Precision::F32, image_encoder, ..Needs::ALL };
        let model = hub.open(&prior.model, needs, &mut FetchProgress::new(&screen))?;
        let (source, opened) = (prior.clone(), model.clone());
        let open: Opener = Arc::new(move || source.open(&opened));
        start(&open).map_err(|error| model.advise(error))?;
        screen.note(&format!("ready, with the model {}", prior.model.name));
        Ok(())
    };
    let grace = args.grace;
    let ended = serve::run(listener, options, load, &stop)?;
    if ended.is_clean {
        return Ok(0);
    }
    context.screen.error(&format!("stopped after {grace} s with requests unanswered; --grace gives them longer"));
    Ok(signal_exit_code(ended.signal))
}

fn options(args: &Args, prior: &PriorSource, context: &Context) -> Result<Options> {
    let seeds = if args.seed_by.is_some() { Seeds::ByPrompt } else { Seeds::From(args.seed) };
    Ok(Options {
        model: model_name(prior),
        api_key: api_key(args)?,
        batch_size: args.max_batch_size,
        batch_tokens: args.max_batch_tokens,
        wait: Duration::from_millis(args.max_wait_ms),
        queue: args.max_queue,
        cache_bytes: (args.cache_mb as usize) << 20,
        threads: args.device.threads(),
        grace: Duration::from_secs(args.grace),
        limits: Limits {
            body_bytes: args.max_body_bytes,
            rows: args.max_rows,
            steps: args.max_steps,
            prompt_bytes: args.max_prompt_bytes,
            connections: args.max_connections,
            timeout: Duration::from_secs_f64(args.timeout),
        },
        defaults: Defaults {
            negative_prompt: args.negative_prompt.clone(),
            steps: args.steps,
            guidance_scale: args.guidance_scale,
            temperature: args.temperature,
            seeds,
            truncate: args.truncate,
        },
        log: LogOptions { format: args.log_format, requests: !context.screen.is_quiet(), prompts: args.log_prompts },
    })
}

/// What clients call the model: its name, of a folder the last part.
fn model_name(prior: &PriorSource) -> String {
    match &prior.model.model {
        ModelName::Folder(path) => {
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            whole.file_name().map_or_else(|| EMOJI.into(), |name| name.to_string_lossy().into_owned())
        }
        _ => prior.model.name.clone(),
    }
}

fn api_key(args: &Args) -> Result<Option<String>> {
    let (key, source) = match (&args.api_key, &args.api_key_file) {
        (Some(key), _) => (key.clone(), "--api-key".to_string()),
        (None, Some(path)) => {
            let source = format!("--api-key-file {path:?}");
            (std::fs::read_to_string(path).or_bad_input(|| format!("cannot read {source}"))?, source)
        }
        (None, None) => match std::env::var_os(API_KEY) {
            Some(key) => (key.to_string_lossy().into_owned(), API_KEY.to_string()),
            None => return Ok(None),
        },
    };
    let key = key.trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad_input!("{source} holds no key; it must be ASCII without spaces"));
    }
    Ok(Some(key.into()))
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.001..=86400.0).contains(seconds));
    seconds.ok_or_else(|| "it must be a number of seconds, up to 86400".into())
}
