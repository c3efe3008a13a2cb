//! How much memory a piece of work takes at its height.

use std::fs;

/// Since when, and what was there before.
pub struct Meter(Option<u64>);

impl Meter {
    pub fn new() -> Self {
        // The high-water mark falls back to what is there now.
        let is_reset = fs::write("/proc/self/clear_refs", "5").is_ok();
        Self(if is_reset { field("self", "VmRSS:") } else { None })
    }

    /// Bytes beyond what was there, at most; `None` where the system does not tell.
    pub fn most(&self) -> Option<u64> {
        Some(field("self", "VmHWM:")?.saturating_sub(self.0?))
    }
}

/// The peak memory of another process in bytes so far, while it runs.
pub fn peak(process: u32) -> Option<u64> {
    field(&process.to_string(), "VmHWM:")
}

fn field(process: &str, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}
