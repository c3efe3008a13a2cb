//! Texts in messages: shortened, and lists that name the first few.

use std::borrow::Cow;

/// The first `max` characters of a text, and an ellipsis if there are more.
pub fn shorten(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// A long message without its middle: it may quote a file of any length. What is wrong stands within its first `start`
/// bytes, and what to do within its last `end`.
pub fn without_middle(text: &str, start: usize, end: usize) -> Cow<'_, str> {
    if text.len() <= start + end {
        return Cow::Borrowed(text);
    }
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let from = (0..=start).rev().find(is_boundary).unwrap_or(0);
    let to = (text.len() - end..text.len()).find(is_boundary).unwrap_or(text.len());
    Cow::Owned(format!("{}…{}", &text[..from], &text[to..]))
}

/// A text with its control characters and direction marks escaped: names in files from elsewhere may hold what moves a
/// terminal's cursor.
pub fn printable(text: &str) -> String {
    let is_direction_mark =
        |char: char| matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut printable = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            char if char.is_control() || is_direction_mark(char) => printable.extend(char.escape_default()),
            char => printable.push(char),
        }
    }
    printable
}

/// The first few names, each shortened, and how many more there are.
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    const MAX_NAMES: usize = 8;
    const MAX_CHARS: usize = 200;
    let shown: Vec<String> = names.iter().take(MAX_NAMES).map(|name| shorten(name.as_ref(), MAX_CHARS)).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_only_if_it_is_too_long() {
        assert_eq!(["äöü", "äöüß", ""].map(|text| shorten(text, 3)), ["äöü", "äöü…", ""]);
    }

    #[test]
    fn the_middle_of_a_long_text_is_left_out() {
        assert_eq!(without_middle("abcdef", 4, 2), "abcdef");
        assert_eq!(without_middle("abcdefg", 4, 2), "abcd…fg");
        assert_eq!(without_middle("ééééé", 3, 3), "é…é");
    }

    #[test]
    fn long_lists_are_cut() {
        let all: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        assert_eq!(list(&all[..8]), "0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(list(&all), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
        assert_eq!(list(&["é".repeat(1_000_000)]), format!("{}…", "é".repeat(200)));
    }
}
