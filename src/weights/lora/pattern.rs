//! Regular expressions of Python's `re`, for the patterns in PEFT's configurations.
//!
//! Only syntax that means the same in Python and in the engine used here is accepted; the rest is refused rather than guessed.

use crate::error::{Error, Result};
use fancy_regex::Regex;

/// The letters that may follow a backslash.
const CLASSES: &str = "dDwWsSbB";

/// The group types that may follow `(?`.
const GROUPS: [&str; 6] = [":", "=", "!", "<=", "<!", "P<"];

/// A pattern for names of modules.
#[derive(Debug)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// A pattern that matches the end of a name, from its start or a dot on, as in PEFT's `get_pattern_key`.
    ///
    /// # Errors
    /// [`Error::Config`] that names the pattern if it is invalid, or Python and this engine differ on it.
    pub(super) fn of_end(text: &str) -> Result<Self> {
        Self::new(text, &format!(r"(.*\.)?({text})$"))
    }

    /// A pattern that matches whole names, as `re.fullmatch` does.
    ///
    /// # Errors
    /// As [`Pattern::of_end`].
    pub(super) fn of_whole(text: &str) -> Result<Self> {
        Self::new(text, &format!("(?:{text})$"))
    }

    fn new(text: &str, whole: &str) -> Result<Self> {
        let refused = |why: &str| refuse(format!("the regular expression {text:?} is not supported: {why}"));
        check(text).map_err(|why| refused(&why))?;
        let regex = Regex::new(&format!(r"\A(?:{whole})")).map_err(|error| refused(&error.to_string()))?;
        Ok(Self { text: text.into(), regex })
    }

    /// Whether it matches the name of a module.
    ///
    /// # Errors
    /// [`Error::Config`] if that takes too many steps of backtracking.
    pub(super) fn matches(&self, module: &str) -> Result<bool> {
        self.regex.is_match(module).map_err(|error| {
            refuse(format!("the regular expression {:?} cannot be matched against {module}: {error}", self.text))
        })
    }
}

fn refuse(reason: String) -> Error {
    Error::Config { path: String::new(), key: None, reason, hint: None, source: None }
}

/// Checks that a pattern means the same in this engine and in Python.
fn check(text: &str) -> Result<(), String> {
    let mut rest = text;
    let mut is_after_quantifier = false;
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        let was_after_quantifier = std::mem::take(&mut is_after_quantifier);
        match char {
            '\\' => rest = escape(rest)?,
            '[' => rest = class(rest)?,
            '(' => {
                if let Some(kind) = rest.strip_prefix('?')
                    && !GROUPS.iter().any(|group| kind.starts_with(group))
                {
                    return Err(format!(
                        "(?{} is not a group that Python and this engine share",
                        kind.chars().next().unwrap_or(')')
                    ));
                }
            }
            '*' | '+' if was_after_quantifier => return Err("two quantifiers follow each other".into()),
            '*' | '+' => is_after_quantifier = true,
            '?' => is_after_quantifier = !was_after_quantifier,
            '{' => {
                let (count, after) = rest.split_once('}').ok_or("a { is not closed")?;
                let (min, max) = count.split_once(',').unwrap_or((count, ""));
                let is_number = |part: &str| part.chars().all(|char| char.is_ascii_digit());
                if was_after_quantifier || min.is_empty() || !is_number(min) || !is_number(max) {
                    return Err(format!("{{{count}}} is not a count"));
                }
                (rest, is_after_quantifier) = (after, true);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Consumes what follows a backslash.
fn escape(rest: &str) -> Result<&str, String> {
    let char = rest.chars().next().ok_or("it ends in a backslash")?;
    // \< and \> are word boundaries in this engine.
    if char.is_ascii_punctuation() && !"<>".contains(char) || CLASSES.contains(char) {
        Ok(&rest[char.len_utf8()..])
    } else {
        Err(format!("\\{char} may mean something else in Python"))
    }
}

/// Consumes what follows a `[`, up to and with the `]`.
fn class(rest: &str) -> Result<&str, String> {
    let mut rest = rest.strip_prefix('^').unwrap_or(rest);
    if rest.starts_with(']') {
        return Err("a class begins with ]".into());
    }
    loop {
        let char = rest.chars().next().ok_or("a [ is not closed")?;
        let after = &rest[char.len_utf8()..];
        rest = match char {
            ']' => return Ok(after),
            '\\' if after.starts_with(['b', 'B']) => return Err("\\b in a class is a backspace in Python".into()),
            '\\' => escape(after)?,
            // Python has no nested sets.
            '[' => return Err("a [ is within a class".into()),
            '&' | '-' | '~' | '|' if after.starts_with(char) => {
                return Err(format!("{char}{char} is within a class"));
            }
            _ => after,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_python() {
        // Each as `re.match(rf"(.*\.)?({pattern})$", name)` says.
        for (pattern, name, expected) in [
            ("to_q", "transformer_blocks.0.attn1.to_q", true),
            ("o_q", "transformer_blocks.0.attn1.to_q", false),
            ("attn1.to_q", "transformer_blocks.0.attn1.to_q", true),
            ("attn1.to_q", "transformer_blocks.0.attn1xto_q", true),
            (r"attn1\.to_q", "transformer_blocks.0.attn1xto_q", false),
            (r"transformer_blocks\.[0-3]\..*to_q", "transformer_blocks.2.attn1.to_q", true),
            (r"transformer_blocks\.[0-3]\..*to_q", "transformer_blocks.12.attn1.to_q", false),
            ("^transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_q", true),
            ("^attn1.to_q", "transformer_blocks.0.attn1.to_q", false),
            ("to_(q|v)", "a.to_v", true),
            ("to_q|to_v", "a.to_v", true),
            ("(?!.*0).*to_q", "transformer_blocks.1.attn1.to_q", true),
            (r"(?<!1\.)to_q", "attn1.to_q", false),
            (r"[^.]+\.\d{1,2}\.attn1\.to_[qkv]", "transformer_blocks.19.attn1.to_k", true),
            (r"[^.]+\.\d{1,2}\.attn1\.to_[qkv]", "transformer_blocks.190.attn1.to_k", false),
            ("(?P<block>a)+?", "aaa", true),
            ("a)|(b", "b", true),
            ("", "a.", true),
        ] {
            let found = Pattern::of_end(pattern).unwrap().matches(name).unwrap();
            assert_eq!(found, expected, "{pattern} on {name}");
        }
        assert!(Pattern::of_whole(".*(to_q|to_v)").unwrap().matches("a.to_q").unwrap());
        assert!(!Pattern::of_whole("to_q|to_v").unwrap().matches("a.to_q").unwrap());
        assert!(!Pattern::of_whole("to|to_q").unwrap().matches("to_qq").unwrap());
        assert!(Pattern::of_whole("to|to_q").unwrap().matches("to_q").unwrap());
    }

    #[test]
    fn syntax_that_python_reads_differently_is_refused() {
        for pattern in [
            "(",
            "a{",
            "a{,3}",
            "a{x}",
            r"\Z",
            r"\z",
            r"\1",
            r"\<a",
            "[[a]]",
            "[a&&b]",
            "[a--b]",
            "[]a]",
            "[a",
            "a++",
            "a**",
            "(?i)a",
            "(?P=x)",
            "(?>a)",
            "(?#a)",
            "(?",
            "[\\b]",
            "\\",
            r"\p{L}",
            "(((a{1000}){1000}){1000})",
        ] {
            let error = Pattern::of_end(pattern).unwrap_err().to_string();
            assert!(error.contains(&format!("{pattern:?}")), "{error}");
        }
        // Endless backtracking is an error.
        let endless = Pattern::of_end("((?=a)a|(?=.)a)*c").unwrap();
        assert!(endless.matches(&"a".repeat(200)).is_err());
    }
}
