//! The thread that reads: prompts become the rows that this run computes.

use super::Watcher;
use super::budget::{Budget, Held};
use super::report::Report;
use super::source::{Entries, Hash, OnError, Rules, Survey, refused};
use crate::output::shard::Shard;
use crate::rows::{PromptRecord, PromptRow};
use anyhow::Result;
use std::ops::Range;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Consecutive rows of one prompt within one block.
#[derive(Debug, Clone)]
pub(super) struct Span {
    /// What their prompt says; `None` for one that cannot be used, whose rows are zeros.
    pub(super) record: Option<Arc<Held>>,
    /// Their numbers in the whole.
    pub(super) rows: Range<u64>,
    /// Which of the prompt's samples the first one is.
    pub(super) first_sample: u64,
}

/// How rows are cut into blocks, and whose they are. Both depend on a row's number alone, so that a run that goes on, or
/// computes a share, has the same blocks as one that does all at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    /// Rows of a block. It begins at a multiple of this.
    pub(super) rows: u64,
    /// The share of the blocks to compute, if not all.
    pub(super) shard: Option<Shard>,
}

impl Blocks {
    /// The block that a row is in.
    pub(super) fn of_row(self, row: u64) -> u64 {
        row / self.rows
    }

    /// How many of `rows` in all are to be computed.
    pub(super) fn own_rows(self, rows: u64) -> u64 {
        let Some(Shard { index, count }) = self.shard else { return rows };
        let blocks = rows.div_ceil(self.rows);
        if index > blocks {
            return 0;
        }
        let others = (blocks - index) / count;
        // The last block may be short.
        let last = blocks - 1;
        let of_last = if self.has(last) { rows - last * self.rows } else { self.rows };
        others * self.rows + of_last
    }

    /// Whether a block is to be computed.
    fn has(self, block: u64) -> bool {
        self.shard.is_none_or(|shard| block % shard.count == shard.index - 1)
    }
}

/// What was read in all.
#[derive(Debug)]
pub(super) struct ReadSummary {
    /// Rows of all prompts, whoever computes them.
    pub(super) rows: u64,
    /// Time spent reading, and waiting for whoever writes the prompts.
    pub(super) read: Duration,
    /// Whether the prompts are still those of the first pass, if there was one.
    pub(super) change: Change,
}

/// What became of a file between the first pass over it and the end of the second. A run that stops earlier cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// There is more behind what there was.
    Grown,
    /// What there was is not there any more.
    Edited,
}

/// Reads entries and sends what is to be computed.
pub(super) struct Reader {
    pub(super) entries: Entries,
    pub(super) rules: Rules,
    pub(super) blocks: Blocks,
    /// Rows of this run that are there already.
    pub(super) done: u64,
    pub(super) report: Option<Arc<Mutex<Report>>>,
    /// What a first pass told: no more than that is read.
    pub(super) survey: Option<Survey>,
    pub(super) budget: Arc<Budget>,
    pub(super) watcher: Arc<dyn Watcher>,
    pub(super) spans: SyncSender<Result<Span>>,
}

impl Reader {
    /// Reads until the end, an error, or nobody takes the rows any more. An error is the last thing sent.
    pub(super) fn run(mut self) -> ReadSummary {
        let mut summary = ReadSummary { rows: 0, read: Duration::ZERO, change: Change::None };
        let mut hash = Hash::default();
        let expected = self.survey.take();
        loop {
            let start = Instant::now();
            let entry = self.entries.next();
            summary.read += start.elapsed();
            if expected.is_none() {
                self.entries.take_notices().iter().for_each(|notice| self.watcher.notice(notice));
            }
            if expected.as_ref().is_some_and(|survey| survey.rows == summary.rows) {
                summary.change = if entry.is_some() { Change::Grown } else { Change::None };
                break;
            }
            let Some(entry) = entry else { break };
            if let (Some(_), Ok(entry)) = (&expected, &entry) {
                hash.add(entry);
            }
            let first = summary.rows;
            // The first pass would have refused it.
            let was_sound = expected.is_some() && entry.is_ok() && self.rules.on_error == OnError::Fail;
            let (record, samples) = match entry.and_then(|entry| self.record(entry, first)) {
                Ok(record) => record,
                Err(_) if was_sound => break,
                Err(error) => {
                    let _ = self.spans.send(Err(error));
                    return summary;
                }
            };
            let end = first.saturating_add(samples);
            if expected.as_ref().is_some_and(|survey| survey.rows < end) {
                break;
            }
            summary.rows = end;
            if !self.send(record, first..end) {
                return summary;
            }
        }
        if expected.is_some_and(|survey| survey.rows != summary.rows || survey.hash != hash.finish()) {
            summary.change = Change::Edited;
        }
        summary
    }

    /// What an entry whose first row is `row` says, and how many rows it has.
    fn record(&self, entry: PromptRow, row: u64) -> Result<(Option<PromptRecord>, u64)> {
        match self.rules.judge(entry) {
            Ok(record) => {
                let samples = self.rules.samples_of(Some(&record));
                Ok((Some(record), samples))
            }
            Err(bad) if self.rules.on_error == OnError::Fail => Err(refused(self.entries.name(), &bad)),
            Err(bad) => {
                let samples = self.rules.samples_of(None);
                let is_ours = self.blocks.has(self.blocks.of_row(row));
                match &self.report {
                    Some(report) if is_ours => {
                        report.lock().unwrap_or_else(PoisonError::into_inner).add(row, samples, &bad)?;
                    }
                    Some(_) => {}
                    None => {
                        self.watcher.skipped(samples, &format!("{}: {bad}; row {row} is zeros", self.entries.name()));
                    }
                }
                Ok((None, samples))
            }
        }
    }

    /// Sends a prompt's rows, cut at the blocks' borders; whether there is someone to take them.
    fn send(&mut self, record: Option<PromptRecord>, rows: Range<u64>) -> bool {
        let record = record.map(|record| self.budget.hold(record));
        let mut start = rows.start;
        while start < rows.end {
            let block = self.blocks.of_row(start);
            let end = rows.end.min((block + 1).saturating_mul(self.blocks.rows));
            if self.blocks.has(block) {
                let skipped = self.done.min(end - start);
                self.done -= skipped;
                let rows_left = start + skipped..end;
                let first_sample = rows_left.start - rows.start;
                if !rows_left.is_empty() {
                    let span = Span { record: record.clone(), rows: rows_left, first_sample };
                    if self.spans.send(Ok(span)).is_err() {
                        return false;
                    }
                    self.budget.sent();
                }
            }
            start = end;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::tests::{rules, source};
    use super::super::stop::Stop;
    use super::*;
    use std::sync::mpsc::sync_channel;

    /// The rows that a reader sends, each with its prompt and sample, and how many there are in all.
    fn read(text: &str, blocks: Blocks, done: u64, on_error: OnError) -> (Vec<(u64, String, u64)>, u64) {
        let (_folder, source) = source("p.jsonl", text);
        let (sender, spans) = sync_channel(1000);
        let rules = Rules { on_error, ..rules() };
        let entries = source.open().unwrap();
        let (watcher, budget) = (Arc::new(()), Budget::new(1 << 20));
        let summary =
            Reader { entries, rules, blocks, done, report: None, survey: None, budget, watcher, spans: sender }.run();
        let mut rows = Vec::new();
        for span in spans {
            let Ok(span) = span else {
                rows.push((u64::MAX, "error".into(), 0));
                continue;
            };
            assert_eq!(blocks.of_row(span.rows.start), blocks.of_row(span.rows.end - 1), "a span is in one block");
            let prompt = span.record.map_or_else(|| "-".to_string(), |record| record.prompt.to_string());
            rows.extend(span.rows.zip(span.first_sample..).map(|(row, sample)| (row, prompt.clone(), sample)));
        }
        (rows, summary.rows)
    }

    const LINES: &str = "{\"prompt\": \"a\", \"samples\": 7}\n{\n{\"prompt\": \"b\"}\n";

    fn all() -> Vec<(u64, String, u64)> {
        let prompts = [("given", 2), ("a", 7), ("-", 2), ("b", 2)];
        let rows = prompts.iter().flat_map(|(prompt, samples)| (0..*samples).map(move |sample| (*prompt, sample)));
        rows.zip(0..).map(|((prompt, sample), row)| (row, prompt.to_string(), sample)).collect()
    }

    #[test]
    fn every_row_comes_once_and_a_bad_one_keeps_its_place() {
        for rows in [1, 2, 3, 64] {
            assert_eq!(read(LINES, Blocks { rows, shard: None }, 0, OnError::Skip), (all(), 13));
        }
    }

    #[test]
    fn rows_that_are_done_are_left_out() {
        let blocks = Blocks { rows: 3, shard: None };
        for done in 0..=13 {
            assert_eq!(read(LINES, blocks, done, OnError::Skip).0, all()[done as usize..]);
        }
    }

    #[test]
    fn shards_have_whole_blocks_and_together_all_rows() {
        for count in 1..6 {
            let mut rows = Vec::new();
            for index in 1..=count {
                let blocks = Blocks { rows: 3, shard: Some(Shard { index, count }) };
                let (own, total) = read(LINES, blocks, 0, OnError::Skip);
                assert_eq!((total, blocks.own_rows(13)), (13, own.len() as u64));
                let resumed = read(LINES, blocks, 3, OnError::Skip).0;
                assert_eq!(resumed, own[own.len().min(3)..]);
                rows.extend(own);
            }
            rows.sort();
            assert_eq!(rows, all());
        }
    }

    #[test]
    fn no_number_of_rows_or_shards_is_too_large_to_share() {
        let own = |rows, index, count, all| Blocks { rows, shard: Some(Shard { index, count }) }.own_rows(all);
        assert_eq!(own(64, u64::MAX, u64::MAX, 100), 0);
        assert_eq!([own(64, 1, u64::MAX, 100), own(64, 2, u64::MAX, 100)], [64, 36]);
        assert_eq!(own(64, 1, 2, u64::MAX) + own(64, 2, 2, u64::MAX), u64::MAX);
        assert_eq!(own(64, 1, 1, u64::MAX), u64::MAX);
    }

    #[test]
    fn a_bad_row_that_is_an_error_comes_after_those_before_it() {
        let (rows, _) = read(LINES, Blocks { rows: 4, shard: None }, 0, OnError::Fail);
        assert_eq!(rows[..9], all()[..9]);
        assert_eq!(rows[9..], [(u64::MAX, "error".to_string(), 0)]);
    }

    #[test]
    fn a_file_that_changed_after_the_first_pass_is_noticed() {
        let lines = "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n";
        for (now, rows, change) in [
            (lines.to_string(), 6, Change::None),
            (format!("{lines}{{\"prompt\": \"c\"}}\n"), 6, Change::Grown),
            (format!("{lines}nonsense\n"), 6, Change::Grown),
            (lines.replace('b', "c"), 6, Change::Edited),
            (lines.replace('a', "c"), 6, Change::Edited),
            (lines.replace("\"b\"", "\"b\", \"samples\": 3"), 4, Change::Edited),
            (lines.replace("{\"prompt\": \"b\"}", "nonsense"), 4, Change::Edited),
            (lines[..lines.len() / 2].to_string(), 4, Change::Edited),
        ] {
            let (_folder, mut source) = source("p.jsonl", lines);
            let survey = Survey::of(&mut source.open().unwrap(), &rules(), &Stop::default()).unwrap();
            std::fs::write(source.file.as_mut().unwrap(), &now).unwrap();
            let (sender, spans) = sync_channel(1000);
            let reader = Reader {
                entries: source.open().unwrap(),
                rules: rules(),
                blocks: Blocks { rows: 2, shard: None },
                done: 0,
                report: None,
                survey: Some(survey),
                budget: Budget::new(1 << 20),
                watcher: Arc::new(()),
                spans: sender,
            };
            let summary = reader.run();
            assert_eq!((summary.rows, summary.change), (rows, change), "{now}");
            assert!(spans.into_iter().all(|span| span.unwrap().rows.end <= 6));
        }
    }
}
