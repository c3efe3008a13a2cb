//! Warnings that every row may cause: the first few are printed, and at the end the number of rows.

/// How many are printed.
const MAX_LINES: usize = 10;

/// Warnings of one kind.
#[derive(Debug)]
pub(super) struct RowWarnings {
    /// Whether all are printed.
    shows_all: bool,
    /// The last of those that were printed.
    shown: Vec<String>,
    /// Rows that they are of.
    rows: u64,
    has_hidden: bool,
}

impl RowWarnings {
    pub(super) fn new(shows_all: bool) -> Self {
        Self { shows_all, shown: Vec::new(), rows: 0, has_hidden: false }
    }

    /// Rows that the warnings were of.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Counts a warning of `rows` rows, and returns whether to print it: neither twice, nor more than a few.
    pub(super) fn add(&mut self, rows: u64, text: &str) -> bool {
        self.rows += rows;
        if self.shown.iter().any(|shown| shown == text) {
            return false;
        }
        if self.shown.len() == MAX_LINES {
            if !self.shows_all {
                self.has_hidden = true;
                return false;
            }
            self.shown.remove(0);
        }
        self.shown.push(text.to_string());
        true
    }

    /// The number of rows, if some of their warnings were not printed; once.
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
        let mut warnings = RowWarnings::new(false);
        let shown = texts.iter().flat_map(|text| [text, text]).filter(|text| warnings.add(1, text)).count();
        assert_eq!((shown, warnings.rows()), (10, 30));
        assert_eq!((warnings.take_rest(), warnings.take_rest()), (Some(30), None));
        let mut warnings = RowWarnings::new(true);
        assert_eq!(texts.iter().filter(|text| warnings.add(2, text)).count(), 15);
        assert_eq!((warnings.rows(), warnings.take_rest()), (30, None));
    }
}
