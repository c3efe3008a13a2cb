//! Reads prompts: a text file, one a line.

use crate::bad_input;
use crate::error::OrBadInput;
use anyhow::Result;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Reads the prompts in the text file `path`, or on standard input if it is `-`.
///
/// A prompt is a line without its line break (`\n` or `\r\n`). Blank lines are no prompts, and a byte order mark is no
/// part of the first.
///
/// # Errors
/// [`crate::error::BadInput`] if the file cannot be read, is of an unknown kind, or has a line that is not UTF-8.
pub fn read(path: &Path) -> Result<Vec<String>> {
    if path.as_os_str() == "-" {
        return read_text(std::io::stdin().lock(), "standard input");
    }
    let name = path.display().to_string();
    if let Some(extension) = path.extension().filter(|extension| !extension.eq_ignore_ascii_case("txt")) {
        let extension = extension.display();
        return Err(bad_input!(
            "prompts file {name:?} ends in .{extension}; a text file (.txt) with one prompt a line is needed"
        ));
    }
    let file = std::fs::File::open(path).or_bad_input(|| format!("cannot read the prompts file {name:?}"))?;
    read_text(file, &name)
}

fn read_text(input: impl Read, name: &str) -> Result<Vec<String>> {
    let mut prompts = Vec::new();
    for (index, line) in BufReader::new(input).split(b'\n').enumerate() {
        let line =
            line.or_bad_input(|| format!("cannot read {name:?}; a text file with one prompt a line is needed"))?;
        let line = if index == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let prompt = std::str::from_utf8(line)
            .or_bad_input(|| format!("{name}:{}: the line is not UTF-8; convert the file first", index + 1))?;
        if !prompt.trim().is_empty() {
            prompts.push(prompt.to_string());
        }
    }
    if prompts.is_empty() {
        return Err(bad_input!("{name} holds no prompts; write one a line"));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<Vec<String>> {
        read_text(bytes, "captions.txt")
    }

    #[test]
    fn a_prompt_is_a_line_without_its_end() {
        let prompts = read_bytes(b"\xef\xbb\xbfa red apple\r\n\n  \n two  spaces \nno newline").unwrap();
        assert_eq!(prompts, ["a red apple", " two  spaces ", "no newline"]);
    }

    #[test]
    fn a_line_that_is_not_utf8_is_named() {
        let error = read_bytes(b"fine\nbad \xff\n").unwrap_err();
        assert!(error.to_string().starts_with("captions.txt:2: "), "{error}");
    }

    #[test]
    fn no_prompts_are_an_error() {
        assert!(read_bytes(b"\n \r\n").is_err());
    }
}
