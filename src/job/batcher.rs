//! Cuts the rows of all prompts into blocks.

use super::first_pass::{End, FirstPass, Hash};
use super::options::{OnError, RowOptions};
use super::progress::JobProgress;
use super::prompts::{Entries, Entry, Prompts, refused};
use super::read_ahead::{Next, ReadAhead};
use super::report::{SharedReport, lock};
use crate::output::OutputRow;
use crate::output::shard::Shard;
use crate::rows::{BadRow, PromptRecord};
use anyhow::Result;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How rows are cut into blocks, and which blocks this run computes. Both depend on a row's number alone, so a run that
/// resumes, or computes a shard, has the same blocks as one that computes everything at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    /// Rows per block. A block begins at a multiple of this.
    pub(super) rows: u64,
    /// The share of the blocks to compute, if not all.
    pub(super) shard: Option<Shard>,
}

impl Blocks {
    /// The block of a row.
    fn of_row(self, row: u64) -> u64 {
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

/// Rows that are computed together.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// What the output says of each row.
    pub(super) rows: Vec<OutputRow>,
    /// The prompt of each row; `None` for one that cannot be used, whose embeddings are zeros.
    pub(super) prompts: Vec<Option<Arc<PromptRecord>>>,
    /// Whether the run has no other block.
    pub(super) is_only: bool,
    /// Bytes of text and noise.
    pub(super) bytes: usize,
}

/// How files differ at their ends in the second pass from what the first found, and what messages call the file. A run
/// that stops earlier cannot tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// There is more behind what was there.
    Grown(String),
    /// What was there is gone.
    Edited(String),
}

/// Where entries come from.
pub(super) enum Feed {
    /// Read when they are needed.
    Direct(Box<Entries>),
    /// Read ahead, and not waited for while others can be computed.
    Live(ReadAhead),
}

impl Feed {
    /// # Errors
    /// If the system has no more threads.
    pub(super) fn new(entries: Entries, is_live: bool, interrupt: &Arc<AtomicBool>) -> Result<Self> {
        Ok(match is_live {
            true => Self::Live(ReadAhead::start(entries, Arc::clone(interrupt))?),
            false => Self::Direct(Box::new(entries)),
        })
    }

    fn next(&mut self, may_wait: bool) -> Next {
        match self {
            Self::Direct(entries) => entries.next().map_or(Next::End, Next::Entry),
            Self::Live(entries) => entries.next(may_wait),
        }
    }

    /// Leaves out the rest of the current file, which nobody waits for.
    fn skip_file(&mut self) {
        if let Self::Direct(entries) = self {
            entries.skip_file();
        }
    }
}

/// A prompt whose rows are not all in a block yet.
struct Pending {
    record: Option<Arc<PromptRecord>>,
    /// Number of its first row.
    first: u64,
    /// The rows that are left.
    rows: Range<u64>,
}

/// Makes blocks of entries.
pub(super) struct Batcher {
    pub(super) prompts: Prompts,
    pub(super) feed: Feed,
    pub(super) options: RowOptions,
    pub(super) blocks: Blocks,
    /// What the first pass found, if there was one: no rows beyond that are read.
    pub(super) first_pass: Option<FirstPass>,
    /// Whether the first block may be the only one.
    pub(super) may_be_only: bool,
    /// Rows of this run that are still to be left out because an earlier run wrote them.
    pub(super) done: u64,
    pub(super) report: Option<SharedReport>,
    pub(super) progress: Arc<dyn JobProgress>,
    pub(super) position: Position,
}

/// How far a [`Batcher`] is.
#[derive(Default)]
pub(super) struct Position {
    hash: Hash,
    /// The source of the last entry.
    source: usize,
    pending: Option<Pending>,
    /// An error that comes after the block that was begun before it.
    error: Option<anyhow::Error>,
    /// Rows of all entries so far, whichever run computes them.
    pub(super) rows: u64,
    /// Blocks so far.
    pub(super) blocks: u64,
    has_ended: bool,
    /// Time spent reading, and waiting for whoever writes the prompts.
    pub(super) read: Duration,
    /// How the file differs from what the first pass found, once that is known.
    pub(super) change: Option<Change>,
}

impl Batcher {
    /// The next block, or the error that the rows end with. `None` if there are no more.
    pub(super) fn next_block(&mut self) -> Option<Result<Block>> {
        let mut block = Block::default();
        let mut current = None;
        loop {
            let Some(rows) = self.next_rows() else {
                if self.advance(block.rows.is_empty()) {
                    continue;
                }
                break;
            };
            // A prompt may have rows in several blocks.
            if *current.get_or_insert(self.blocks.of_row(rows.start)) != self.blocks.of_row(rows.start) {
                break;
            }
            let end = rows.end;
            self.append(rows, &mut block);
            if end % self.blocks.rows == 0 {
                break;
            }
        }
        if block.rows.is_empty() {
            return self.position.error.take().map(Err);
        }
        block.is_only = self.position.blocks == 0 && self.may_be_only && self.is_at_end();
        self.position.blocks += 1;
        Some(Ok(block))
    }

    /// Gives no more blocks.
    pub(super) fn end(&mut self) {
        self.position.has_ended = true;
        (self.position.pending, self.position.error) = (None, None);
    }

    /// Whether no rows follow. Not known, and so false, if that would have to be waited for.
    fn is_at_end(&mut self) -> bool {
        if matches!(self.feed, Feed::Live(_)) || self.position.error.is_some() {
            return false;
        }
        while self.next_rows().is_none() {
            if !self.advance(true) {
                return self.position.error.is_none();
            }
        }
        false
    }

    /// The next rows that this run computes, all of one block; `None` if the next entry is needed for that. They stay
    /// pending.
    fn next_rows(&mut self) -> Option<Range<u64>> {
        let pending = self.position.pending.as_mut()?;
        while pending.rows.start < pending.rows.end {
            let block = self.blocks.of_row(pending.rows.start);
            let end = pending.rows.end.min((block + 1).saturating_mul(self.blocks.rows));
            if self.blocks.has(block) {
                let done = self.done.min(end - pending.rows.start);
                self.done -= done;
                pending.rows.start += done;
                if pending.rows.start < end {
                    return Some(pending.rows.start..end);
                }
            } else {
                pending.rows.start = end;
            }
        }
        self.position.pending = None;
        None
    }

    /// Moves pending rows to a block.
    fn append(&mut self, rows: Range<u64>, block: &mut Block) {
        let Some(pending) = &mut self.position.pending else { return };
        pending.rows.start = rows.end;
        let record = pending.record.as_ref();
        let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let bytes = |record: &Arc<PromptRecord>| {
            let noise = record.noise.as_ref().map_or(0, |noise| noise.bytes());
            record.prompt.len() + len(&record.id) + len(&record.negative_prompt) + noise
        };
        block.bytes += record.map_or(0, bytes);
        for row in rows {
            block.rows.push(OutputRow {
                row,
                id: record.and_then(|record| record.id.clone()),
                prompt: record.map_or_else(|| "".into(), |record| Arc::clone(&record.prompt)),
                seed: self.options.seed_of(record.map(Arc::as_ref), row, row - pending.first),
            });
            block.prompts.push(record.cloned());
        }
    }

    /// Reads the next entry and makes its rows pending; false if there is none, none yet, or an error.
    fn advance(&mut self, may_wait: bool) -> bool {
        self.try_advance(may_wait).unwrap_or_else(|error| {
            self.position.error = Some(error);
            self.position.has_ended = true;
            false
        })
    }

    fn try_advance(&mut self, may_wait: bool) -> Result<bool> {
        if self.position.has_ended {
            return Ok(false);
        }
        let start = Instant::now();
        let next = self.feed.next(may_wait);
        self.position.read += start.elapsed();
        let first = self.position.rows;
        let is_whole = self.first_pass.as_ref().is_some_and(|first_pass| first_pass.rows == first);
        let Entry { source, row } = match next {
            Next::NotYet => return Ok(false),
            Next::End => return Ok(self.finish()),
            Next::Entry(Err(_)) if is_whole => {
                self.grow();
                return Ok(self.finish());
            }
            Next::Entry(entry) => entry?,
        };
        if !self.end_sources(source.index) {
            return Ok(false);
        }
        if self.end_of(source.index).is_some_and(|end| end.rows == first) {
            self.grow();
            self.feed.skip_file();
            return Ok(!is_whole || self.finish());
        }
        if self.first_pass.is_some() {
            self.position.hash.add(&row);
        }
        let passed = self.first_pass.is_some() && self.options.on_error == OnError::Fail;
        let record = match self.options.check(&source, row) {
            Ok(record) => Some(record),
            // The first pass would have refused it.
            Err(_) if passed => return Ok(self.edit(&source.name)),
            Err(row) => {
                self.skip(&source.name, &row)?;
                None
            }
        };
        let end = first.saturating_add(self.options.samples_of(record.as_ref()));
        if self.end_of(source.index).is_some_and(|counted| counted.rows < end) {
            return Ok(self.edit(&source.name));
        }
        self.position.rows = end;
        self.position.pending = Some(Pending { record: record.map(Arc::new), first, rows: first..end });
        Ok(true)
    }

    /// Where the first pass found that a source ends.
    fn end_of(&self, source: usize) -> Option<&End> {
        self.first_pass.as_ref()?.ends.get(source)
    }

    /// Goes on to a source. False if one before it is not what the first pass found.
    fn end_sources(&mut self, next: usize) -> bool {
        while self.position.source < next {
            let (source, rows) = (self.position.source, self.position.rows);
            if self.end_of(source).is_some_and(|end| !self.position.hash.is_at(end, rows)) {
                return self.edit(&self.prompts.source(source).name);
            }
            self.position.source += 1;
        }
        true
    }

    /// Notes that the current source has more rows than were counted.
    fn grow(&mut self) {
        let source = self.prompts.source(self.position.source);
        self.position.change.get_or_insert(Change::Grown(source.name.clone()));
    }

    /// Notes that a source has other rows than were counted, and ends.
    fn edit(&mut self, name: &str) -> bool {
        self.position.has_ended = true;
        self.position.change = Some(Change::Edited(name.into()));
        false
    }

    /// There are no more rows. Without a first pass nothing can have changed.
    fn finish(&mut self) -> bool {
        if self.end_sources(self.prompts.sources()) {
            self.position.has_ended = true;
            self.position.change.get_or_insert(Change::None);
        }
        false
    }

    /// Reports the next rows as ones that cannot be used.
    fn skip(&mut self, name: &str, bad: &BadRow) -> Result<()> {
        if self.options.on_error == OnError::Fail {
            return Err(refused(name, bad));
        }
        let (row, samples) = (self.position.rows, self.options.samples_of(None));
        let file = Some(name).filter(|_| self.prompts.files.len() > 1);
        match &self.report {
            Some(report) if self.blocks.has(self.blocks.of_row(row)) => lock(report).add(row, samples, file, bad),
            Some(_) => Ok(()),
            None => {
                self.progress.skipped(samples, &format!("{name}: {bad}; row {row} is zeros"));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::first_pass::tests::{first_pass, options, prompts};
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn batcher(prompts: &Prompts, blocks: Blocks, done: u64, on_error: OnError, is_live: bool) -> Batcher {
        let entries = prompts.open().unwrap();
        Batcher {
            prompts: prompts.clone(),
            feed: Feed::new(entries, is_live, &prompts.read.interrupt).unwrap(),
            options: RowOptions { on_error, ..options() },
            blocks,
            first_pass: None,
            may_be_only: true,
            done,
            report: None,
            progress: Arc::new(()),
            position: Position::default(),
        }
    }

    /// The rows of a block: number, prompt and seed.
    fn rows(block: &Block) -> Vec<(u64, String, u64)> {
        let prompts = block.prompts.iter().map(|prompt| prompt.as_ref().map_or("-", |record| &record.prompt));
        block.rows.iter().zip(prompts).map(|(row, prompt)| (row.row, prompt.to_string(), row.seed)).collect()
    }

    /// The rows of all blocks, and how many rows all prompts have.
    fn read(text: &str, blocks: Blocks, done: u64, on_error: OnError) -> (Vec<(u64, String, u64)>, u64) {
        let (_folder, prompts) = prompts("p.jsonl", text);
        let mut batcher = batcher(&prompts, blocks, done, on_error, false);
        let mut all = Vec::new();
        while let Some(block) = batcher.next_block() {
            let Ok(block) = block else {
                all.push((u64::MAX, "error".into(), 0));
                continue;
            };
            let numbers: Vec<u64> = block.rows.iter().map(|row| blocks.of_row(row.row)).collect();
            assert!(numbers.iter().all(|number| *number == numbers[0]), "a block within its borders");
            all.extend(rows(&block));
        }
        (all, batcher.position.rows)
    }

    const LINES: &str = "{\"prompt\": \"a\", \"samples\": 7, \"seed\": 50}\n{\n{\"prompt\": \"b\"}\n";

    fn all() -> Vec<(u64, String, u64)> {
        let names = [("given", 2), ("a", 7), ("-", 2), ("b", 2)].into_iter();
        let names = names.flat_map(|(prompt, samples)| vec![prompt.to_string(); samples]);
        let row = |(row, prompt): (u64, String)| {
            let seed = if prompt == "a" { 50 + row - 2 } else { 10 + row };
            (row, prompt, seed)
        };
        (0..).zip(names).map(row).collect()
    }

    #[test]
    fn every_row_comes_once_and_a_bad_one_keeps_its_place() {
        for rows in [1, 2, 3, 64] {
            assert_eq!(read(LINES, Blocks { rows, shard: None }, 0, OnError::Skip), (all(), 13));
        }
    }

    #[test]
    fn rows_of_an_earlier_run_are_left_out() {
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
    fn no_number_of_rows_or_shards_is_too_large() {
        let own = |rows, index, count, all| Blocks { rows, shard: Some(Shard { index, count }) }.own_rows(all);
        assert_eq!(own(64, u64::MAX, u64::MAX, 100), 0);
        assert_eq!([own(64, 1, u64::MAX, 100), own(64, 2, u64::MAX, 100)], [64, 36]);
        assert_eq!(own(64, 1, 2, u64::MAX) + own(64, 2, 2, u64::MAX), u64::MAX);
        assert_eq!(own(64, 1, 1, u64::MAX), u64::MAX);
    }

    #[test]
    fn an_error_comes_after_the_rows_before_it_and_is_the_end() {
        let (rows, _) = read(LINES, Blocks { rows: 4, shard: None }, 0, OnError::Fail);
        assert_eq!(rows[..9], all()[..9]);
        assert_eq!(rows[9..], [(u64::MAX, "error".to_string(), 0)]);
    }

    #[test]
    fn a_block_that_is_all_there_is_says_so() {
        for (lines, expected) in [(1, true), (3, true), (4, false)] {
            // With the one that is given, of two rows each.
            let (_folder, prompts) = prompts("p.txt", &"a\n".repeat(lines));
            let mut batcher = batcher(&prompts, Blocks { rows: 8, shard: None }, 0, OnError::Fail, false);
            let first = batcher.next_block().unwrap().unwrap();
            assert_eq!((first.rows.len(), first.is_only), (2 + 2 * lines.min(3), expected));
            assert_eq!(batcher.next_block().map(|block| block.unwrap().is_only), (!expected).then_some(false));
        }
    }

    #[test]
    fn live_rows_do_not_wait_for_others() {
        let (folder, mut prompts) = prompts("p.txt", "");
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // Open for reading too, so that opening it does not wait for the other end.
        let mut writer = File::options().read(true).write(true).open(&pipe).unwrap();
        (prompts.given, prompts.files) = (Vec::new(), [pipe.clone().into()].into());
        let mut batcher = batcher(&prompts, Blocks { rows: 8, shard: None }, 0, OnError::Fail, true);
        let mut number = 0;
        for lines in ["a\n", "b\n"] {
            writer.write_all(lines.as_bytes()).unwrap();
            let block = batcher.next_block().unwrap().unwrap();
            assert_eq!((block.rows.len(), block.rows[0].row, block.is_only), (2, number, false));
            number += 2;
        }
        // Its thread waits for more, which will not come.
        drop(batcher);
    }

    #[test]
    fn a_file_that_changed_after_the_first_pass_is_noticed() {
        let lines = "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n";
        let [none, grown, edited]: [fn(String) -> Change; 3] = [|_| Change::None, Change::Grown, Change::Edited];
        for (now, rows, change) in [
            (lines.to_string(), 6, none),
            (format!("{lines}{{\"prompt\": \"c\"}}\n"), 6, grown),
            (format!("{lines}nonsense\n"), 6, grown),
            (lines.replace('b', "c"), 6, edited),
            (lines.replace('a', "c"), 6, edited),
            (lines.replace("\"b\"", "\"b\", \"samples\": 3"), 4, edited),
            (lines.replace("{\"prompt\": \"b\"}", "nonsense"), 4, edited),
            (lines[..lines.len() / 2].to_string(), 4, edited),
        ] {
            let (_folder, prompts) = prompts("p.jsonl", lines);
            let (now, name) = (vec![now], prompts.files[0].name.clone());
            assert_eq!(read_changed(&prompts, &now, 6), (rows, Some(change(name))), "{now:?}");
        }
    }

    /// How many rows are read of files that were changed after the first pass, and how they differ then.
    fn read_changed(prompts: &Prompts, now: &[String], counted: u64) -> (u64, Option<Change>) {
        let found = first_pass(prompts, &options()).unwrap();
        assert_eq!(found.rows, counted);
        for (file, text) in prompts.files.iter().zip(now) {
            std::fs::write(&file.path, text).unwrap();
        }
        let mut batcher = batcher(prompts, Blocks { rows: 2, shard: None }, 0, OnError::Fail, false);
        batcher.first_pass = Some(found);
        let mut next = 0;
        while let Some(block) = batcher.next_block() {
            for row in block.unwrap().rows {
                assert_eq!(row.row, next);
                next += 1;
            }
        }
        assert!(next <= counted);
        (batcher.position.rows, batcher.position.change)
    }

    #[test]
    fn the_file_that_changed_is_named() {
        let [a, b] = ["a1\na2\n", "b1\nb2\n"].map(String::from);
        let empty = String::new;
        let change = |now: [String; 4]| {
            let folder = tempfile::TempDir::new().unwrap();
            let files = ["a.txt", "empty.txt", "b.txt", "last.txt"].map(|name| folder.path().join(name));
            for (path, text) in files.iter().zip([&a, &empty(), &b, &empty()]) {
                std::fs::write(path, text).unwrap();
            }
            let prompts = Prompts { files: files.map(Into::into).into(), ..Prompts::default() };
            let (rows, change) = read_changed(&prompts, &now, 8);
            let name = |path: String| path.rsplit('/').next().unwrap().to_string();
            let change = match change.unwrap() {
                Change::None => "none".into(),
                Change::Grown(path) => format!("{} grown", name(path)),
                Change::Edited(path) => format!("{} edited", name(path)),
            };
            (rows, change)
        };
        let both = |one: &str, other: &str| [one.to_string(), empty(), other.to_string(), empty()];
        for (now, rows, expected) in [
            (both(&a, &b), 8, "none"),
            // The rows of the next file keep their numbers.
            (both("a1\na2\na3\n", &b), 8, "a.txt grown"),
            (both(&a, "b1\nb2\nb3\n"), 8, "b.txt grown"),
            ([a.clone(), "new\n".into(), b.clone(), empty()], 8, "empty.txt grown"),
            ([a.clone(), empty(), b.clone(), "new\n".into()], 8, "last.txt grown"),
            (both("a1\n", &b), 2, "a.txt edited"),
            (both("a1\nx\n", &b), 4, "a.txt edited"),
            (both("", &b), 0, "a.txt edited"),
            (both(&a, "b1\n"), 6, "b.txt edited"),
            (both(&a, "x\nb2\n"), 8, "b.txt edited"),
            (both(&b, &a), 4, "a.txt edited"),
        ] {
            assert_eq!(change(now.clone()), (rows, expected.to_string()), "{now:?}");
        }
    }
}
