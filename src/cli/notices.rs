//! Warnings that may come once a row: the first few are shown, and at the end how many rows there were.

/// How many are shown.
const MOST: usize = 10;

/// Warnings of one kind.
#[derive(Debug)]
pub(super) struct Notices {
    /// Whether all are shown.
    shows_all: bool,
    /// The last of those that were shown.
    shown: Vec<String>,
    /// Rows that they are about.
    rows: u64,
    has_hidden: bool,
}

impl Notices {
    pub(super) fn new(shows_all: bool) -> Self {
        Self { shows_all, shown: Vec::new(), rows: 0, has_hidden: false }
    }

    /// Rows that the warnings were about.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes a warning about so many rows, and says whether it is to be shown: not a second time, and not too many.
    pub(super) fn add(&mut self, rows: u64, text: &str) -> bool {
        self.rows += rows;
        if self.shown.iter().any(|shown| shown == text) {
            return false;
        }
        if self.shown.len() == MOST {
            if !self.shows_all {
                self.has_hidden = true;
                return false;
            }
            self.shown.remove(0);
        }
        self.shown.push(text.to_string());
        true
    }

    /// The number of rows, if not all was shown that was to be said of them. Told once.
    pub(super) fn take_rest(&mut self) -> Option<u64> {
        std::mem::take(&mut self.has_hidden).then_some(self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_are_shown_and_all_are_counted() {
        let texts: Vec<String> = (0..15).map(|number| number.to_string()).collect();
        let mut notices = Notices::new(false);
        let shown = texts.iter().flat_map(|text| [text, text]).filter(|text| notices.add(1, text)).count();
        assert_eq!((shown, notices.rows()), (10, 30));
        assert_eq!((notices.take_rest(), notices.take_rest()), (Some(30), None));
        let mut notices = Notices::new(true);
        assert_eq!(texts.iter().filter(|text| notices.add(2, text)).count(), 15);
        assert_eq!((notices.rows(), notices.take_rest()), (30, None));
    }
}
