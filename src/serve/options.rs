//! How to serve.

use crate::diffusion::noise::seed_of;
use crate::pipeline::NEGATIVE_SEED_OFFSET;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A host's name or address, and a port; any free one if that is 0.
    Tcp(String, u16),
    /// A Unix domain socket.
    Unix(PathBuf),
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What is logged.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// The format.
    pub format: LogFormat,
    /// Whether requests are logged.
    pub requests: bool,
    /// Whether their prompts are.
    pub prompts: bool,
}

/// What a request may ask for at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Rows of a request: prompts times samples.
    pub rows: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Bytes of a prompt.
    pub prompt_bytes: usize,
    /// Open connections.
    pub connections: usize,
    /// For the head of a request, and again for its body.
    pub timeout: Duration,
}

/// What applies where a request does not say otherwise.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// Number of denoising steps.
    pub steps: Option<usize>,
    /// Scale of classifier-free guidance.
    pub guidance_scale: Option<f64>,
    /// The temperature of an autoregressive prior.
    pub temperature: Option<f64>,
    /// Where seeds come from.
    pub seeds: Seeds,
    /// Whether prompts that are too long are truncated, in the routes whose originals can refuse them.
    pub truncate: bool,
}

/// Where the seeds of a request come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seeds {
    /// Row r of the request has the seed plus r.
    From(u64),
    /// Sample k of a prompt has its seed plus k.
    Each(Vec<u64>),
    /// The same with a seed that is made of the prompt.
    ByPrompt,
}

impl Seeds {
    /// The seed of the negative embedding of a row with a seed, in a request of so many rows.
    pub(super) fn negative_seed(&self, seed: u64, rows: usize) -> u64 {
        let offset = if *self == Self::ByPrompt { NEGATIVE_SEED_OFFSET } else { rows as u64 };
        seed.wrapping_add(offset)
    }

    /// The seed of a sample of the prompt at `place`. `None` if there is none below 2^64.
    pub(super) fn seed(&self, prompt: &str, place: usize, sample: usize, samples: usize) -> Option<u64> {
        match self {
            Self::From(seed) => seed.checked_add((place * samples + sample) as u64),
            Self::Each(seeds) => seeds.get(place)?.checked_add(sample as u64),
            Self::ByPrompt => Some(seed_of(prompt).wrapping_add(sample as u64)),
        }
    }
}

/// How to serve a model.
#[derive(Debug, Clone)]
pub struct Options {
    /// What clients call the model.
    pub model: String,
    /// The key that clients must have.
    pub api_key: Option<String>,
    /// Rows of a batch; as many as are useful and fit into memory if not given.
    pub batch_size: Option<usize>,
    /// Tokens of a batch.
    pub batch_tokens: usize,
    /// How long a row may wait for others.
    pub wait: Duration,
    /// Rows in the queue.
    pub queue: usize,
    /// Bytes of the cache of embeddings.
    pub cache_bytes: usize,
    /// CPU threads, if the user says.
    pub threads: Option<usize>,
    /// How long requests may take to end once the server is told to.
    pub grace: Duration,
    /// What a request may ask for at most.
    pub limits: Limits,
    /// What applies where it does not say.
    pub defaults: Defaults,
    /// What is logged.
    pub log: LogOptions,
}

/// Whether a bound address can be reached from this machine alone.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_those_of_the_command_line() {
        let seed = |seeds: Seeds, place, sample| seeds.seed("a red apple", place, sample, 3);
        assert_eq!(seed(Seeds::From(5), 2, 1), Some(12));
        assert_eq!(seed(Seeds::From(u64::MAX), 0, 1), None);
        assert_eq!(seed(Seeds::Each(vec![7, 100]), 1, 2), Some(102));
        assert_eq!(seed(Seeds::Each(vec![7]), 1, 2), None);
        let first = seed_of("a red apple");
        assert_eq!(seed(Seeds::ByPrompt, 9, 2), Some(first.wrapping_add(2)));
    }
}
