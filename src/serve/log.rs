//! The log: a line a request, on standard error.

use super::options::{LogFormat, LogOptions};
use crate::text::printable;
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Writes the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Log {
    options: LogOptions,
}

/// A request that was answered.
#[derive(Debug, Serialize)]
pub(super) struct Answered<'a> {
    /// Seconds since 1970.
    time: f64,
    level: &'static str,
    message: &'static str,
    pub(super) id: &'a str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) status: u16,
    pub(super) milliseconds: f64,
    pub(super) rows: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompts: Option<&'a [String]>,
}

impl<'a> Answered<'a> {
    pub(super) fn new(id: &'a str, method: &'a str, path: &'a str, status: u16, time: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            time: now.as_millis() as f64 / 1e3,
            level: if status >= 500 { "error" } else { "info" },
            message: "request",
            id,
            method,
            path,
            status,
            milliseconds: time.as_micros() as f64 / 1e3,
            rows: 0,
            error: None,
            prompts: None,
        }
    }

    fn line(&self, format: LogFormat) -> String {
        if format == LogFormat::Json {
            return serde_json::to_string(self).unwrap_or_default();
        }
        let Self { id, method, path, status, milliseconds, rows, error, prompts, .. } = self;
        let mut line = format!("prior-embed: {method} {path} {status} {milliseconds:.1} ms, rows {rows}, id {id}");
        if let Some(error) = error {
            line += &format!(", {error}");
        }
        if let Some(prompts) = prompts {
            line += &format!(", prompts {prompts:?}");
        }
        printable(&line)
    }
}

impl Log {
    pub(super) fn new(options: LogOptions) -> Self {
        Self { options }
    }

    /// Whether prompts are logged.
    pub(super) fn has_prompts(self) -> bool {
        self.options.requests && self.options.prompts
    }

    /// Logs a request.
    pub(super) fn answered(self, answered: &Answered) {
        if self.options.requests {
            let line = answered.line(self.options.format) + "\n";
            // If standard error is closed or full, there is nobody left to tell.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line() {
        let prompts = ["a\nb\u{1b}[2J".to_string()];
        let mut answered = Answered::new("1-2", "POST", "/embed", 200, Duration::from_micros(1234));
        (answered.rows, answered.prompts) = (1, Some(&prompts[..]));
        let expected = r#"prior-embed: POST /embed 200 1.2 ms, rows 1, id 1-2, prompts ["a\nb\u{1b}[2J"]"#;
        assert_eq!(answered.line(LogFormat::Text), expected);
        let json: serde_json::Value = serde_json::from_str(&answered.line(LogFormat::Json)).unwrap();
        assert_eq!((&json["prompts"][0], &json["status"]), (&"a\nb\u{1b}[2J".into(), &200.into()));
        assert!(json.get("error").is_none() && json["time"].as_f64().unwrap() > 1.7e9);
    }
}
