//! Text: a prompt a line.

use super::format::PromptFormat;
use super::input::Text;
use super::lines::{self, BYTE_ORDER_MARK};
use super::record::{PromptRecord, PromptRows};
use anyhow::Result;

pub(super) static TXT: PromptFormat = PromptFormat {
    name: "txt",
    extensions: &["txt"],
    has_columns: false,
    has_header: false,
    open: |input, _, notices| rows(input.text(notices)?),
};

fn rows(text: Text) -> Result<PromptRows> {
    let (name, notices) = (text.name.clone(), text.notices.clone());
    let mut has_warned = false;
    lines::rows(text, move |line, place| {
        if memchr::memchr2(b'\r', b'\n', line.as_bytes()).is_some() {
            return Err(
                "the line holds a carriage return without a line feed, or the other way round; have all lines end \
                        alike, or use .jsonl"
                    .into(),
            );
        }
        if line.contains(BYTE_ORDER_MARK) && !std::mem::replace(&mut has_warned, true) {
            notices.warn(format!(
                "{name}: {place}: there is a byte order mark (U+FEFF) within the line; if files were joined there, a \
                 line break is missing"
            ));
        }
        Ok(PromptRecord::new(line))
    })
}
