//! Tokenizes for `scripts/compare_tokenizer.py`: a JSON string a line on standard input, `{"ids": […], "real": N}` a line
//! on standard output.
//!
//!     cargo run --release --example tokenize -- FOLDER

use anyhow::{Context, Result};
use prior_embed::Tokenizer;
use std::io::{BufWriter, Write, stdin, stdout};
use std::path::PathBuf;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).context("usage: tokenize FOLDER")?;
    let tokenizer = Tokenizer::open(&folder, 77)?;
    let mut output = BufWriter::new(stdout().lock());
    for line in stdin().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let encoding = tokenizer.encode(&text)?;
        writeln!(output, "{}", serde_json::json!({"ids": encoding.ids, "real": encoding.len}))?;
    }
    Ok(output.flush()?)
}
