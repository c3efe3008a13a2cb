//! What hands blocks of rows to the workers.

use super::budget::Budget;
use super::reader::{Blocks, Span};
use anyhow::Result;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How long a block that is not full waits for a row that may be on its way.
const GRACE: Duration = Duration::from_millis(1);

/// Rows as they arrive, gathered into blocks.
pub(super) struct Feed {
    pub(super) spans: Receiver<Result<Span>>,
    /// One for each block that may be under way at a time: so that a slow one does not let the others pile up.
    pub(super) permits: Receiver<()>,
    pub(super) blocks: Blocks,
    pub(super) budget: Arc<Budget>,
    /// Whether a row may be long in coming, and those before it must not wait.
    pub(super) is_live: bool,
    /// Whether the first block may be the only one that the run has.
    pub(super) may_be_only: bool,
    /// What arrived with a block that it is not part of.
    pub(super) held: Option<Result<Span>>,
    /// Number of blocks handed out.
    pub(super) handed: u64,
    pub(super) ended: bool,
}

/// Rows that are computed together.
pub(super) struct Block {
    pub(super) spans: Vec<Span>,
    /// Whether it is all that the run has.
    pub(super) is_only: bool,
}

impl Feed {
    /// The next block and its number, counted from 0, or the error that the rows end with. `None` if nothing is left, or
    /// nobody wants more.
    pub(super) fn next(&mut self) -> Option<(u64, Result<Block>)> {
        if self.ended || self.permits.recv().is_err() {
            return None;
        }
        let first = match self.held.take() {
            None => self.spans.recv().inspect(|_| self.budget.received()).ok(),
            held => held,
        };
        let Some(first) = first else {
            self.ended = true;
            return None;
        };
        let number = self.handed;
        self.handed += 1;
        match first {
            Ok(span) => {
                let spans = self.gather(span);
                let is_only = number == 0 && self.may_be_only && self.is_at_end();
                Some((number, Ok(Block { spans, is_only })))
            }
            Err(error) => {
                self.ended = true;
                Some((number, Err(error)))
            }
        }
    }

    /// Whether no row follows; not known, and so false, where that would have to be waited for.
    fn is_at_end(&mut self) -> bool {
        if self.held.is_none() && !self.is_live {
            self.held = self.needed().ok();
            return self.held.is_none();
        }
        false
    }

    /// The next of the spans that a block needs to be whole, however much text is in memory already.
    fn needed(&self) -> Result<Result<Span>, RecvTimeoutError> {
        let mut span = self.spans.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        if span.is_err() {
            self.budget.set_awaited(true);
            span = if self.is_live { self.spans.recv_timeout(GRACE) } else { self.spans.recv().map_err(Into::into) };
            self.budget.set_awaited(false);
        }
        span.inspect(|_| self.budget.received())
    }

    /// The rest of the block that begins with a span, as far as it is there or can be waited for.
    fn gather(&mut self, first: Span) -> Vec<Span> {
        let block = self.blocks.of_row(first.rows.start);
        let mut end = first.rows.end;
        let mut spans = vec![first];
        while self.blocks.of_row(end) == block {
            match self.needed() {
                Ok(Ok(span)) if self.blocks.of_row(span.rows.start) == block => {
                    end = span.rows.end;
                    spans.push(span);
                }
                Ok(other) => {
                    self.held = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::PromptRecord;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};

    fn span(rows: std::ops::Range<u64>) -> Result<Span> {
        Ok(Span { record: None, rows, first_sample: 0 })
    }

    fn feed(is_live: bool) -> (Feed, SyncSender<Result<Span>>, Sender<()>) {
        let (sender, spans) = sync_channel(100);
        let (permit, permits) = channel();
        let blocks = Blocks { rows: 4, shard: None };
        let may_be_only = true;
        let budget = Budget::new(1 << 20);
        let (held, handed, ended) = (None, 0, false);
        (Feed { spans, permits, blocks, budget, is_live, may_be_only, held, handed, ended }, sender, permit)
    }

    fn rows(block: Option<(u64, Result<Block>)>) -> Option<(u64, Vec<u64>)> {
        let (number, block) = block?;
        Some((number, block.ok()?.spans.into_iter().flat_map(|span| span.rows).collect()))
    }

    #[test]
    fn blocks_end_at_their_borders_and_with_the_rows() {
        let (mut feed, spans, permits) = feed(false);
        for part in [span(2..3), span(3..4), span(4..8), span(12..13), span(13..14)] {
            spans.send(part).unwrap();
        }
        drop(spans);
        (0..4).for_each(|_| permits.send(()).unwrap());
        for (number, expected) in [vec![2, 3], vec![4, 5, 6, 7], vec![12, 13]].into_iter().enumerate() {
            assert_eq!(rows(feed.next()), Some((number as u64, expected)));
        }
        assert!(feed.next().is_none());
    }

    #[test]
    fn an_error_comes_after_the_rows_before_it_and_is_the_end() {
        let (mut feed, spans, permits) = feed(false);
        (0..5).for_each(|_| permits.send(()).unwrap());
        spans.send(span(0..2)).unwrap();
        spans.send(Err(anyhow::anyhow!("broken"))).unwrap();
        assert_eq!(rows(feed.next()), Some((0, vec![0, 1])));
        assert!(feed.next().unwrap().1.is_err());
        assert!(feed.next().is_none());
    }

    #[test]
    fn a_block_that_is_all_there_is_says_so() {
        for (total, expected) in [(2, true), (4, true), (5, false)] {
            let (mut feed, spans, permits) = feed(false);
            (0..total).for_each(|row| spans.send(span(row..row + 1)).unwrap());
            (0..2).for_each(|_| permits.send(()).unwrap());
            drop(spans);
            assert_eq!(feed.next().unwrap().1.unwrap().is_only, expected);
            assert!(feed.next().is_none_or(|(_, block)| !block.unwrap().is_only));
        }
    }

    #[test]
    fn live_rows_do_not_wait_for_others() {
        let (mut feed, spans, permits) = feed(true);
        (0..5).for_each(|_| permits.send(()).unwrap());
        spans.send(span(0..1)).unwrap();
        assert_eq!(rows(feed.next()), Some((0, vec![0])));
        spans.send(span(1..2)).unwrap();
        spans.send(span(2..4)).unwrap();
        assert_eq!(rows(feed.next()), Some((1, vec![1, 2, 3])), "the sender is still there");
    }

    #[test]
    fn a_block_is_gathered_however_long_its_prompts_are_and_the_next_one_waits() {
        let (mut feed, spans, permits) = feed(false);
        (0..5).for_each(|_| permits.send(()).unwrap());
        feed.budget = Budget::new(10);
        let budget = Arc::clone(&feed.budget);
        let read = Arc::new(AtomicU64::new(0));
        let reader = {
            let read = Arc::clone(&read);
            std::thread::spawn(move || {
                for row in 0..8 {
                    let record = PromptRecord { prompt: "long prompt".into(), ..PromptRecord::default() };
                    let span = Span { record: Some(budget.hold(record)), rows: row..row + 1, first_sample: 0 };
                    read.store(row + 1, Ordering::SeqCst);
                    spans.send(Ok(span)).unwrap();
                    budget.sent();
                }
            })
        };
        let (_, first) = feed.next().unwrap();
        assert_eq!(first.as_ref().unwrap().spans.len(), 4);
        std::thread::sleep(Duration::from_millis(50));
        // A row or two may be read while the last is on its way that the block has to see.
        assert!(read.load(Ordering::SeqCst) < 8, "the first block is still in memory");
        drop(first);
        assert_eq!(rows(feed.next()), Some((1, vec![4, 5, 6, 7])));
        reader.join().unwrap();
    }

    #[test]
    fn without_a_permit_nothing_is_handed_out() {
        let (mut feed, spans, permits) = feed(false);
        spans.send(span(0..4)).unwrap();
        drop(permits);
        assert!(feed.next().is_none());
    }
}
