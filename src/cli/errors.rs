//! Errors as the terminal shows them: one line, `<what and where>; <what to do>`, and an exit code.

use crate::bad_input::BadInput;
use crate::error::{Error, Hint};
use crate::text::{printable, without_middle};

/// The exit code for an error: 2 for wrong usage or bad input, 1 for a failure while running.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(error) if error.is_bad_input() => 2,
        _ if error.is::<BadInput>() => 2,
        _ => 1,
    }
}

/// The error as one line: the outermost message, the system's reason if that caused it, and what to do about it. With
/// `causes`, all messages from the outside in.
///
/// Line breaks inside a message (libtorch's are long) become `; `, and control characters are escaped.
pub fn one_line(error: &anyhow::Error, causes: bool) -> String {
    let messages: Vec<String> = error.chain().map(one_message).collect();
    let advice = error.downcast_ref::<Error>().and_then(advice).map(|advice| printable(&advice));
    let mut line = match causes {
        true => messages.join(": "),
        false => messages.into_iter().next().unwrap_or_default(),
    };
    if let Some(reason) = error.chain().find_map(system_message).filter(|reason| !line.contains(reason)) {
        line += &format!(" ({reason})");
    }
    match advice {
        Some(advice) => line + "; " + &advice,
        None => line,
    }
}

/// What to do about an error, as an imperative clause with the command line's own options.
fn advice(error: &Error) -> Option<String> {
    Some(match error.hint()? {
        Hint::UseFloat32 => "try --dtype f32".into(),
        Hint::UseLessMemory => "try a smaller --batch-size, or --dtype bf16 or int8".into(),
        Hint::NameToken => "give the token a name of yours after the file: FILE:TOKEN".into(),
        Hint::UseFewerBits => "try --dtype bf16 or int8".into(),
        Hint::ChooseCache => "give --cache-dir, or set HF_HOME, to a folder of yours".into(),
        hint => hint.to_string(),
    })
}

/// An option of the library as the command line has it. A model may be given without one.
fn flag(option: &str) -> String {
    if option == "model" { option.into() } else { format!("--{}", option.replace('_', "-")) }
}

/// The system's words for an error of its own: `No such file or directory`.
fn system_message(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let error = error.downcast_ref::<std::io::Error>()?;
    let text = error.raw_os_error().map(|_| error.to_string())?;
    Some(text.split(" (os error").next().unwrap_or_default().to_string())
}

fn one_message(error: &(dyn std::error::Error + 'static)) -> String {
    let text = match error.downcast_ref::<Error>() {
        Some(Error::Option { option, reason }) => format!("{}: {reason}", flag(option)),
        _ => error.to_string(),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    printable(&without_middle(&lines.join("; "), 1500, 300))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bad_input;
    use crate::bad_input::OrBadInput;

    #[test]
    fn bad_input_exits_with_2_and_anything_else_with_1() {
        assert_eq!(exit_code(&bad_input!("no prompt")), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("disk on fire")), 1);
        let caused: anyhow::Result<()> = Err(std::io::Error::other("cause")).or_bad_input(|| "line".into());
        assert_eq!(exit_code(&caused.unwrap_err()), 2);
        let typed = || Error::file("a", "is empty");
        assert_eq!(exit_code(&typed().into()), 2);
        assert_eq!(exit_code(&anyhow::Error::new(typed()).context("cannot load")), 2);
        assert_eq!(exit_code(&Error::Internal("x".into()).into()), 1);
    }

    #[test]
    fn an_error_is_one_line_with_its_causes_on_demand() {
        let error: anyhow::Result<()> = Err(std::io::Error::other("first\n  second\n")).or_bad_input(|| "line".into());
        let error = error.unwrap_err();
        assert_eq!(one_line(&error, false), "line");
        assert_eq!(one_line(&error, true), "line: first; second");
    }

    #[test]
    fn options_have_the_names_of_the_command_line() {
        let line = |option| one_line(&Error::Option { option, reason: "it is wrong".into() }.into(), false);
        assert_eq!(line("solver_order"), "--solver-order: it is wrong");
        assert_eq!(line("model"), "model: it is wrong");
        assert_eq!(Error::Option { option: "eta", reason: "it is wrong".into() }.to_string(), "eta: it is wrong");
    }

    #[test]
    fn the_hint_is_the_end_of_the_line() {
        let missing = std::fs::File::open("/no/such/file").unwrap_err();
        let error = Error::unreadable("a", missing).with_hint(Hint::FetchAgain).into();
        assert_eq!(one_line(&error, false), "a cannot be read (No such file or directory); fetch it again");
        let expected = "a cannot be read: No such file or directory (os error 2); fetch it again";
        assert_eq!(one_line(&error, true), expected);
        let outer = error.context("cannot load");
        assert_eq!(one_line(&outer, false), "cannot load (No such file or directory); fetch it again");
    }

    #[test]
    fn the_system_is_quoted_once() {
        let missing = || std::fs::File::open("/no/such/file");
        let error = missing().or_bad_input(|| "cannot read \"a\"".into()).unwrap_err();
        assert_eq!(one_line(&error, false), "cannot read \"a\" (No such file or directory)");
        let quoted = |cause: &str| format!("cannot read \"a\": {cause}; check it");
        let cause = missing().unwrap_err().to_string();
        let error = missing().or_bad_input(|| quoted(&cause)).unwrap_err();
        assert_eq!(one_line(&error, false), quoted(&cause));
    }

    #[test]
    fn names_cannot_draw_on_the_screen() {
        let error = bad_input!("tensor a\u{1b}[2J\u{7}\u{202e}b\tc\r\nd of \"é\" is missing");
        assert_eq!(one_line(&error, false), r#"tensor a\u{1b}[2J\u{7}\u{202e}b\tc; d of "é" is missing"#);
    }

    #[test]
    fn long_messages_keep_their_start_and_their_end() {
        let line = one_line(&bad_input!("key {:?} is wrong; mend it", "é".repeat(1 << 20)), false);
        assert!(line.starts_with("key \"éé") && line.ends_with("éé\" is wrong; mend it"), "{line}");
        assert!(line.len() < 2000, "{}", line.len());
    }
}
