//! Turns panics of the Parquet decoder into errors.

use parquet::errors::ParquetError;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `decode`, and turns a panic into an error: some damaged files trip an assertion of the decoder. The panic's own
/// message still goes to standard error, since only a hook for the whole process could suppress it. What `decode`
/// worked on must not be used after an error.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(ParquetError::General("the Parquet decoder panicked".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let result: Result<(), ParquetError> = guarded(|| panic!("damaged"));
        assert!(result.unwrap_err().to_string().contains("panicked"));
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
    }
}
