//! Mutated models, LoRAs, tables of prompts and parts of runs: whatever a file holds, it is used or refused in one
//! line, without a panic, in a few seconds and in memory that goes with its size.
//!
//! Each case follows from a seed alone. The test runs a few; `scripts/fuzz` runs any number, and says which seeds fail.
//! `PRIOR_EMBED_FUZZ=17` runs one of them, and tells what it does.

// In a test, a panic is how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bytes;
mod cases;
mod draws;
mod json;
mod memory;
mod parts;
mod program;
mod prompts;
mod safetensors;
mod torch;

use cases::{Case, Outcome};
use std::ops::Range;
use std::time::{Duration, Instant};

/// What the test runs without being told.
const SEEDS: Range<u64> = 0..60;

/// No file here is large: nothing takes longer than this but for a mistake.
const LONGEST: Duration = Duration::from_secs(60);

/// What the program takes beside what goes with a file's size: caches of libtorch, a schedule of a million timesteps.
const BASE_BYTES: u64 = 192 << 20;

/// How many times a file's size may be in memory.
const TIMES: u64 = 10;

/// The seeds that `PRIOR_EMBED_FUZZ` names, as `17` or `0..1000`.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("PRIOR_EMBED_FUZZ") else { return SEEDS };
    let number = |text: &str| text.parse::<u64>().expect("PRIOR_EMBED_FUZZ is a seed, or two with .. between them");
    match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&text)..number(&text) + 1,
    }
}

/// What is wrong with how a case went.
fn complaint(case: &Case, outcome: &Outcome, duration: Duration, bytes: Option<u64>) -> Option<String> {
    let most = BASE_BYTES + TIMES * case.bytes;
    match (outcome, bytes) {
        (Outcome::Panicked(message), _) => Some(format!("panicked: {message}")),
        (Outcome::Refused { line, .. }, _) if line.lines().count() != 1 || line.len() > 4000 => {
            Some(format!("is not told in a line: {line:?}"))
        }
        (Outcome::Refused { code, line }, _)
            if *code != 2 && !line.contains("not finite") && !line.contains("not enough memory") =>
        {
            Some(format!("is bad input, and no failure: {line}"))
        }
        _ if duration > LONGEST => Some(format!("took {duration:.0?}")),
        (_, Some(bytes)) if bytes > most => Some(format!("took {} MB of memory", bytes >> 20)),
        _ => None,
    }
}

#[test]
fn mutated_models_are_used_or_refused_in_one_line() {
    let seeds = seeds();
    let tells = std::env::var_os("PRIOR_EMBED_FUZZ_LOG");
    let (mut failed, mut refused) = (Vec::new(), 0);
    for seed in seeds.clone() {
        let case = Case::new(seed);
        if let Some(log) = &tells {
            // Where the process itself ends, this is what is left.
            std::fs::write(log, format!("{seed}: {}\n", case.what)).unwrap();
        }
        let (start, meter) = (Instant::now(), memory::Meter::new());
        let outcome = case.run();
        let complaint = complaint(&case, &outcome, start.elapsed(), meter.most());
        if seeds.end - seeds.start == 1 {
            eprintln!("seed {seed}: {}\n{outcome:?}", case.what);
        }
        refused += u64::from(matches!(outcome, Outcome::Refused { .. }));
        failed.extend(complaint.map(|complaint| format!("seed {seed}: {}: {complaint}", case.what)));
    }
    let count = seeds.end - seeds.start;
    eprintln!("{count} cases, {refused} refused, {} failed", failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(
        count < 30 || (count / 5..count).contains(&refused),
        "{refused} of {count} refused: do the mutations matter?"
    );
}
