//! The first pass over prompts that can be read twice: it counts the rows, checks every entry, and hashes them all.

use super::options::{OnError, RowOptions};
use super::prompts::{Entry, Prompts, no_prompts, refused};
use super::stop::Stop;
use crate::bad_input;
use crate::output::Interrupted;
use crate::rows::{GivenNoise, PictureFile, Place, PromptRecord, PromptRow};
use anyhow::Result;
use sha2::{Digest, Sha256};

/// What a first pass over the prompts finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FirstPass {
    /// Rows of all prompts.
    pub(super) rows: u64,
    /// A hash over all entries.
    pub(super) hash: String,
    /// Whether all rows can share batches: no prompt has settings of its own, or a negative embedding that others lack.
    pub(super) is_uniform: bool,
    /// Where each source ends.
    pub(super) ends: Vec<End>,
}

/// The end of a file, or of what is before all files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// Rows of all prompts up to there.
    pub(super) rows: u64,
    /// A hash over all entries up to there.
    pub(super) hash: String,
}

impl FirstPass {
    /// Reads all entries.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if there are none, a file is damaged, or a row cannot be used and that is an error;
    /// [`Interrupted`] if `stop` is raised.
    pub(super) fn over(
        prompts: &Prompts,
        entries: impl Iterator<Item = Result<Entry>>,
        options: &RowOptions,
        stop: &Stop,
    ) -> Result<Self> {
        let (mut hash, mut ends) = (Hash::default(), Vec::new());
        let (mut rows, mut is_uniform) = (0_u64, true);
        for entry in entries {
            if stop.signal().is_some() {
                return Err(Interrupted.into());
            }
            let Entry { source, row } = entry?;
            hash.end_sources(&mut ends, source.index, rows);
            hash.add(&row);
            let samples = match options.check(&source, row) {
                Ok(record) => {
                    is_uniform &= options.is_plain(&record);
                    options.samples_of(Some(&record))
                }
                Err(row) if options.on_error == OnError::Fail => return Err(refused(&source.name, &row)),
                Err(_) => options.samples_of(None),
            };
            let all = rows.checked_add(samples);
            rows = all.ok_or_else(|| bad_input!("{}: more rows than can be counted", source.name))?;
        }
        if rows == 0 {
            return Err(no_prompts(&prompts.name()));
        }
        hash.end_sources(&mut ends, prompts.sources(), rows);
        Ok(Self { rows, hash: hash.finish(), is_uniform, ends })
    }
}

/// A hash over entries. Every field is hashed with its type and length in front, so that different entries never give
/// the same bytes.
#[derive(Debug, Clone, Default)]
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
                // All fields by name: a new one does not compile until it is hashed.
                let PromptRecord {
                    id,
                    prompt,
                    negative_prompt,
                    seed,
                    guidance_scale,
                    steps,
                    samples,
                    image,
                    noise,
                    condition,
                    picture,
                } = record;
                self.text(b'p', Some(prompt));
                self.text(b'i', id.as_deref());
                self.text(b'n', negative_prompt.as_deref());
                self.option(b's', *seed);
                self.option(b'g', guidance_scale.map(f64::to_bits));
                self.option(b't', steps.map(|steps| steps as u64));
                self.option(b'k', samples.map(|samples| samples as u64));
                if let Some(image) = image {
                    self.text(b'm', Some(&image.to_string()));
                }
                if let Some(GivenNoise { image, negative, negative_seed }) = noise.as_deref() {
                    self.floats(b'd', image.as_deref());
                    self.floats(b'e', negative.as_deref());
                    self.option(b'v', *negative_seed);
                }
                if let Some(row) = condition {
                    self.number(b'c', *row as u64);
                }
                if let Some(PictureFile { name, start, len, modified, .. }) = picture.as_deref() {
                    // Of what is in it, only that it has not changed since the run began.
                    self.text(b'f', Some(name));
                    self.option(b'z', len.as_ref().ok().copied());
                    self.number(b'o', *start);
                    self.number(b'm', *modified);
                }
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

    fn floats(&mut self, kind: u8, numbers: Option<&[f32]>) {
        self.option(kind, numbers.map(|numbers| numbers.len() as u64));
        numbers.unwrap_or_default().iter().for_each(|number| self.0.update(number.to_le_bytes()));
    }

    /// Ends the sources before `next`, after so many rows.
    fn end_sources(&self, ends: &mut Vec<End>, next: usize, rows: u64) {
        if ends.len() < next {
            ends.resize(next, End { rows, hash: self.clone().finish() });
        }
    }

    /// Whether a source ends here, after so many rows.
    pub(super) fn is_at(&self, end: &End, rows: u64) -> bool {
        end.rows == rows && self.clone().finish() == end.hash
    }

    pub(super) fn finish(self) -> String {
        format!("{:.32x}", self.0.finalize())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::options::Seeding;
    use super::super::prompts::Prompts;
    use super::*;
    use crate::nn::prior::PriorKind;
    use crate::pipeline::Settings;
    use crate::rows::BadRow;
    use std::path::PathBuf;
    use tempfile::TempDir;

    pub fn options() -> RowOptions {
        RowOptions {
            negative_prompt: None,
            settings: Settings::default(),
            decoder_negative_prompt: None,
            conditions: None,
            latents: None,
            images: None,
            pictures: None,
            seed: 10,
            seeding: Seeding::Row,
            samples: 2,
            draws: 1,
            wants_negative: false,
            wants_text: false,
            wants_scores: false,
            on_error: OnError::Fail,
            max_steps: 1000,
            kind: PriorKind::Diffusion,
        }
    }

    /// The prompt "given" and those of a file, with the folder that holds it.
    pub fn prompts(name: &str, text: &str) -> (TempDir, Prompts) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, Prompts { given: vec!["given".into()], files: [path.into()].into(), ..Prompts::default() })
    }

    pub fn first_pass(prompts: &Prompts, options: &RowOptions) -> Result<FirstPass> {
        FirstPass::over(prompts, prompts.open().unwrap(), options, &Stop::default())
    }

    const LINES: &str = "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"samples\": 5}\n";

    #[test]
    fn rows_are_counted_with_the_samples_of_each_prompt() {
        let (_folder, prompts) = prompts("p.jsonl", LINES);
        assert_eq!(first_pass(&prompts, &options()).unwrap().rows, 2 + 2 + 5);
        assert!(!prompts.is_stream());
        let stdin = PathBuf::from("-").into();
        assert!(Prompts { files: [stdin].into(), ..Prompts::default() }.is_stream());
    }

    #[test]
    fn the_hash_is_of_what_the_prompts_say_and_not_of_how_they_are_written() {
        let hash = |name: &str, text: &str| {
            let (_folder, prompts) = prompts(name, text);
            first_pass(&prompts, &options()).unwrap().hash
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
        let (_folder, prompts) = prompts(
            "p.jsonl",
            "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"id\": \"x\", \"negative_prompt\": \"\", \"seed\": 1, \
             \"guidance_scale\": 2.5, \"steps\": 3, \"samples\": 4}\n\n{}\n",
        );
        let mut hash = Hash::default();
        prompts.open().unwrap().for_each(|entry| hash.add(&entry.unwrap().row));
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
        let noise = |set: fn(&mut GivenNoise)| {
            let mut noise = Box::<GivenNoise>::default();
            set(&mut noise);
            Some(noise)
        };
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
            PromptRecord { image: "@a.png".parse().ok().map(Box::new), ..record() },
            PromptRecord { image: "@a.npy[0]".parse().ok().map(Box::new), ..record() },
            PromptRecord { noise: noise(|noise| noise.image = Some(vec![1.0])), ..record() },
            PromptRecord { noise: noise(|noise| noise.image = Some(vec![2.0])), ..record() },
            PromptRecord { noise: noise(|noise| noise.negative = Some(vec![1.0])), ..record() },
            PromptRecord { noise: noise(|noise| noise.negative_seed = Some(1)), ..record() },
            PromptRecord { condition: Some(0), ..record() },
            PromptRecord { condition: Some(1), ..record() },
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
            let (_folder, prompts) = prompts("p.jsonl", &format!("{{\"prompt\": \"a\"}}\n{line}\n"));
            let error = first_pass(&prompts, &options()).unwrap_err().to_string();
            assert!(error.contains("p.jsonl:2: ") && error.contains(word), "{error}");
            let options = RowOptions { on_error: OnError::Skip, ..options() };
            assert_eq!(first_pass(&prompts, &options).unwrap().rows, 6, "{line}");
        }
    }

    #[test]
    fn prompts_with_settings_of_their_own_are_noticed() {
        let is_uniform = |line: &str, wants_negative| {
            let (_folder, prompts) = prompts("p.jsonl", &format!("{{\"prompt\": \"a\"}}\n{line}\n"));
            let options = RowOptions { wants_negative, ..options() };
            first_pass(&prompts, &options).unwrap().is_uniform
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
        let (_folder, mut prompts) = prompts("p.txt", "\n\n");
        prompts.given.clear();
        assert!(first_pass(&prompts, &options()).unwrap_err().to_string().contains("holds no prompts"));
    }
}
