//! Texts in messages: shortened, and lists that name the first few.

/// The first `max` characters of a text, and an ellipsis if there are more.
pub fn shorten(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
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
    fn long_lists_are_cut() {
        let all: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        assert_eq!(list(&all[..8]), "0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(list(&all), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
        assert_eq!(list(&["é".repeat(1_000_000)]), format!("{}…", "é".repeat(200)));
    }
}
