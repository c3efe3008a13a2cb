//! Where a job's prompts come from, what is asked of them, and what a first pass over them tells.

use super::stop::Stop;
use crate::bad_input;
use crate::output::Interrupted;
use crate::pipeline::Settings;
use crate::rows::{BadRow, Notice, Place, PromptReader, PromptRecord, PromptRow, ReadOptions};
use anyhow::Result;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// What becomes of a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// It ends the run.
    Fail,
    /// It is reported, and its embeddings are zeros: all other rows keep their places and seeds.
    Skip,
}

/// Prompts given one by one, and those in a file after them.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The ones given.
    pub prompts: Vec<String>,
    /// The file, `-` for standard input.
    pub file: Option<PathBuf>,
    /// How to read the file.
    pub read: ReadOptions,
}

impl Source {
    /// The entries, from the first on. A file's header is checked here.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the file cannot be opened or is not what it is said to be.
    pub fn open(&self) -> Result<Entries> {
        let reader = self.file.as_ref().map(|file| PromptReader::open(file, &self.read)).transpose()?;
        let name = reader.as_ref().map_or_else(|| "--prompt".to_string(), |reader| reader.name().to_string());
        Ok(Entries { name, given: self.prompts.clone().into_iter(), reader, number: 0 })
    }

    /// Whether the prompts can be read only once, and may have to be waited for.
    pub fn is_stream(&self) -> bool {
        self.file.as_deref().is_some_and(|file| file == Path::new("-") || !file.is_file())
    }
}

/// The entries of a source, in order.
pub struct Entries {
    name: String,
    given: std::vec::IntoIter<String>,
    reader: Option<PromptReader>,
    number: u64,
}

impl Entries {
    /// What messages call the source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What there is to say of the file so far, and was not given before.
    pub(super) fn take_notices(&self) -> Vec<Notice> {
        self.reader.as_ref().map_or_else(Vec::new, PromptReader::take_notices)
    }
}

impl Iterator for Entries {
    type Item = Result<PromptRow>;

    fn next(&mut self) -> Option<Result<PromptRow>> {
        let Some(prompt) = self.given.next() else { return self.reader.as_mut()?.next() };
        self.number += 1;
        let record = PromptRecord { prompt: prompt.into(), ..PromptRecord::default() };
        Some(Ok(PromptRow::Prompt { place: Place::Row(self.number), record }))
    }
}

/// What a row has unless its prompt says otherwise, and what it may have.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What the embeddings are to lead away from.
    pub negative_prompt: Option<String>,
    /// Steps and guidance.
    pub settings: Settings,
    /// Row r of the whole has the seed `seed + r`.
    pub seed: u64,
    /// Rows of a prompt.
    pub samples: u64,
    /// Whether the negative embeddings are wanted.
    pub wants_negative: bool,
    /// What becomes of a row that cannot be used.
    pub on_error: OnError,
    /// The most steps that the model can do.
    pub most_steps: usize,
}

impl Rules {
    /// Whether the embedding of a black image is needed: the negative one of rows without a negative prompt.
    pub(super) fn needs_zero_embed(&self) -> bool {
        self.wants_negative && self.negative_prompt.is_none()
    }

    /// The record of an entry, or why it cannot be used.
    pub fn judge(&self, entry: PromptRow) -> Result<PromptRecord, BadRow> {
        let (place, record) = match entry {
            PromptRow::Prompt { place, record } => (place, record),
            PromptRow::Bad(row) => return Err(row),
        };
        let bad = |reason: String| Err(BadRow { place, reason });
        if let Some(steps) = record.steps.filter(|steps| *steps > self.most_steps) {
            return bad(format!("\"steps\" is {steps}, and this model takes 1 to {}", self.most_steps));
        }
        let samples = self.samples_of(Some(&record));
        if let Some(seed) = record.seed.filter(|seed| seed.checked_add(samples - 1).is_none()) {
            return bad(format!("\"seed\" is {seed}, which leaves no seeds for {samples} rows below 2^64"));
        }
        Ok(record)
    }

    /// Whether a prompt's rows can be computed together with those of one that says nothing, as far as settings go.
    fn is_plain(&self, record: &PromptRecord) -> bool {
        let has_steps = record.steps.is_none_or(|steps| steps == self.settings.steps);
        let has_scale = record.guidance_scale.is_none_or(|scale| scale == self.settings.guidance_scale);
        let adds_negative = self.wants_negative && self.negative_prompt.is_none() && record.negative_prompt.is_some();
        has_steps && has_scale && !adds_negative
    }

    /// How many rows a prompt has; one that cannot be used has as many as one that says nothing.
    pub fn samples_of(&self, record: Option<&PromptRecord>) -> u64 {
        record.and_then(|record| record.samples).map_or(self.samples, |samples| samples as u64).max(1)
    }
}

/// What there is to do, as far as it is known before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Rows of all prompts.
    pub rows: u64,
    /// A hash over all entries.
    pub hash: String,
    /// Whether no prompt has settings of its own, or a negative embedding where others have none.
    pub is_uniform: bool,
}

impl Survey {
    /// Reads all entries.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if there are none, one cannot be used and that is an error, or the file is broken;
    /// [`Interrupted`] if `stop` asks to stop.
    pub fn of(entries: &mut Entries, rules: &Rules, stop: &Stop) -> Result<Self> {
        let name = entries.name().to_string();
        let mut hash = Hash::default();
        let (mut rows, mut is_uniform) = (0_u64, true);
        for entry in entries {
            if stop.signal().is_some() {
                return Err(Interrupted.into());
            }
            let entry = entry?;
            hash.add(&entry);
            let samples = match rules.judge(entry) {
                Ok(record) => {
                    is_uniform &= rules.is_plain(&record);
                    rules.samples_of(Some(&record))
                }
                Err(row) if rules.on_error == OnError::Fail => return Err(refused(&name, &row)),
                Err(_) => rules.samples_of(None),
            };
            rows = rows.checked_add(samples).ok_or_else(|| bad_input!("{name}: more rows than can be counted"))?;
        }
        if rows == 0 {
            return Err(no_prompts(&name));
        }
        Ok(Self { rows, hash: hash.finish(), is_uniform })
    }
}

/// The error for a row that cannot be used.
pub(super) fn refused(name: &str, row: &BadRow) -> anyhow::Error {
    match row {
        BadRow { place: Place::Line(number), reason } => bad_input!("{name}:{number}: {reason}"),
        row => bad_input!("{name}: {row}"),
    }
}

/// The error for a source without prompts.
pub(super) fn no_prompts(name: &str) -> anyhow::Error {
    bad_input!("{name} holds no prompts; write one a line")
}

/// The error for a file that is another one than it was when its rows were counted.
pub(super) fn edited(name: &str) -> anyhow::Error {
    bad_input!(
        "{name} was edited while it was read, and rows of both texts do not belong together: none are kept; run again"
    )
}

/// A hash over entries: of what is in each, with its type and length before it, so that no two lists of entries have the
/// same bytes.
#[derive(Debug, Default)]
pub(super) struct Hash(Sha256);

impl Hash {
    pub(super) fn add(&mut self, entry: &PromptRow) {
        let place = match entry {
            PromptRow::Prompt { place, .. } => place,
            PromptRow::Bad(row) => &row.place,
        };
        match *place {
            Place::Line(number) => self.number(b'l', number),
            Place::Row(number) => self.number(b'r', number),
        }
        match entry {
            PromptRow::Prompt { record, .. } => {
                // By name, so that a new field is not forgotten.
                let PromptRecord { id, prompt, negative_prompt, seed, guidance_scale, steps, samples } = record;
                self.text(b'p', Some(prompt));
                self.text(b'i', id.as_deref());
                self.text(b'n', negative_prompt.as_deref());
                self.option(b's', *seed);
                self.option(b'g', guidance_scale.map(f64::to_bits));
                self.option(b't', steps.map(|steps| steps as u64));
                self.option(b'k', samples.map(|samples| samples as u64));
            }
            PromptRow::Bad(row) => self.text(b'b', Some(&row.reason)),
        }
    }

    fn number(&mut self, kind: u8, number: u64) {
        self.0.update([kind]);
        self.0.update(number.to_le_bytes());
    }

    fn option(&mut self, kind: u8, number: Option<u64>) {
        match number {
            Some(number) => self.number(kind, number),
            None => self.0.update([kind.to_ascii_uppercase()]),
        }
    }

    fn text(&mut self, kind: u8, text: Option<&str>) {
        self.option(kind, text.map(|text| text.len() as u64));
        self.0.update(text.unwrap_or_default());
    }

    pub(super) fn finish(self) -> String {
        format!("{:.32x}", self.0.finalize())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tempfile::TempDir;

    pub fn rules() -> Rules {
        Rules {
            negative_prompt: None,
            settings: Settings { steps: 25, guidance_scale: 4.0 },
            seed: 10,
            samples: 2,
            wants_negative: false,
            on_error: OnError::Fail,
            most_steps: 1000,
        }
    }

    /// A source of a file, and the folder that it is in.
    pub fn source(name: &str, text: &str) -> (TempDir, Source) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let source = Source { prompts: vec!["given".into()], file: Some(path), read: ReadOptions::default() };
        (folder, source)
    }

    const LINES: &str = "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"samples\": 5}\n";

    #[test]
    fn rows_are_counted_with_the_samples_of_each_prompt() {
        let (_folder, source) = source("p.jsonl", LINES);
        let survey = Survey::of(&mut source.open().unwrap(), &rules(), &Stop::default()).unwrap();
        assert_eq!(survey.rows, 2 + 2 + 5);
        assert!(!source.is_stream());
        assert!(Source { file: Some("-".into()), ..Source::default() }.is_stream());
    }

    #[test]
    fn the_hash_is_of_what_the_prompts_say_and_not_of_how_they_are_written() {
        let hash = |name: &str, text: &str| {
            let (_folder, source) = source(name, text);
            Survey::of(&mut source.open().unwrap(), &rules(), &Stop::default()).unwrap().hash
        };
        let of_lines = hash("p.jsonl", LINES);
        assert_eq!(of_lines, hash("q.jsonl", &LINES.replace(": ", ":").replace('\n', "\r\n")));
        for other in
            [LINES.replace("\"b\"", "\"c\""), LINES.replace('5', "6"), format!("{LINES}{{\"prompt\": \"\"}}\n")]
        {
            assert_ne!(of_lines, hash("p.jsonl", &other));
        }
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        let (_folder, source) = source(
            "p.jsonl",
            "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"id\": \"x\", \"negative_prompt\": \"\", \"seed\": 1, \
             \"guidance_scale\": 2.5, \"steps\": 3, \"samples\": 4}\n\n{}\n",
        );
        let mut hash = Hash::default();
        source.open().unwrap().for_each(|entry| hash.add(&entry.unwrap()));
        let number = |kind: &str, number: u64| [kind.as_bytes(), &number.to_le_bytes()].concat();
        let text = |kind: &str, text: &str| [number(kind, text.len() as u64), text.into()].concat();
        let bytes = [
            [number("r", 1), text("p", "given"), b"INSGTK".to_vec()].concat(),
            [number("l", 1), text("p", "a"), b"INSGTK".to_vec()].concat(),
            [number("l", 2), text("p", "b"), text("i", "x"), text("n", ""), number("s", 1)].concat(),
            [number("g", 2.5_f64.to_bits()), number("t", 3), number("k", 4)].concat(),
            [number("l", 4), text("b", "there is no \"prompt\"; name the key with --prompt-column")].concat(),
        ];
        assert_eq!(hash.finish(), format!("{:.32x}", Sha256::digest(bytes.concat())));
    }

    #[test]
    fn entries_that_differ_anywhere_have_other_hashes() {
        let record = || PromptRecord { prompt: "a".into(), ..PromptRecord::default() };
        let some = |text: &str| Some(text.to_string());
        let records = [
            record(),
            PromptRecord { prompt: "aI".into(), ..record() },
            PromptRecord { id: some(""), ..record() },
            PromptRecord { id: some("x"), ..record() },
            PromptRecord { negative_prompt: some("x"), ..record() },
            PromptRecord { seed: Some(1), ..record() },
            PromptRecord { guidance_scale: Some(0.0), ..record() },
            PromptRecord { guidance_scale: Some(-0.0), ..record() },
            PromptRecord { steps: Some(1), ..record() },
            PromptRecord { samples: Some(1), ..record() },
        ];
        let place = Place::Line(1);
        let mut entries: Vec<PromptRow> =
            records.into_iter().map(|record| PromptRow::Prompt { place, record }).collect();
        entries.push(PromptRow::Prompt { place: Place::Row(1), record: record() });
        entries.push(PromptRow::Prompt { place: Place::Line(2), record: record() });
        entries.extend(["a", "b"].map(|reason| PromptRow::Bad(BadRow { place, reason: reason.into() })));
        let hashes: std::collections::HashSet<String> = entries
            .iter()
            .map(|entry| {
                let mut hash = Hash::default();
                hash.add(entry);
                hash.finish()
            })
            .collect();
        assert_eq!(hashes.len(), entries.len());
    }

    #[test]
    fn what_the_model_cannot_do_is_a_bad_row() {
        for (line, word) in [
            ("{\"prompt\": \"a\", \"steps\": 1001}", "1001"),
            ("{\"prompt\": \"a\", \"seed\": 18446744073709551615}", "18446744073709551615"),
            ("{", ""),
        ] {
            let (_folder, source) = source("p.jsonl", &format!("{{\"prompt\": \"a\"}}\n{line}\n"));
            let error = Survey::of(&mut source.open().unwrap(), &rules(), &Stop::default()).unwrap_err().to_string();
            assert!(error.contains("p.jsonl:2: ") && error.contains(word), "{error}");
            let rules = Rules { on_error: OnError::Skip, ..rules() };
            assert_eq!(Survey::of(&mut source.open().unwrap(), &rules, &Stop::default()).unwrap().rows, 6, "{line}");
        }
    }

    #[test]
    fn prompts_with_settings_of_their_own_are_noticed() {
        let is_uniform = |line: &str, wants_negative| {
            let (_folder, source) = source("p.jsonl", &format!("{{\"prompt\": \"a\"}}\n{line}\n"));
            let rules = Rules { wants_negative, ..rules() };
            Survey::of(&mut source.open().unwrap(), &rules, &Stop::default()).unwrap().is_uniform
        };
        for (rest, with_negatives, without) in [
            ("\"seed\": 5, \"steps\": 25, \"guidance_scale\": 4", true, true),
            ("\"steps\": 24", false, false),
            ("\"guidance_scale\": 3", false, false),
            ("\"negative_prompt\": \"rain\"", false, true),
        ] {
            let line = format!("{{\"prompt\": \"b\", {rest}}}");
            assert_eq!([is_uniform(&line, true), is_uniform(&line, false)], [with_negatives, without], "{rest}");
        }
    }

    #[test]
    fn no_prompts_are_an_error() {
        let (_folder, mut source) = source("p.txt", "\n\n");
        source.prompts.clear();
        assert!(
            Survey::of(&mut source.open().unwrap(), &rules(), &Stop::default())
                .unwrap_err()
                .to_string()
                .contains("holds no prompts")
        );
    }
}
