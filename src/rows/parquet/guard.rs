//! Keeps panics in.

use parquet::errors::ParquetError;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `decode`. Damaged files make the decoder panic in places (a negative offset, a missing dictionary); that is an
/// error like any other here, and nothing of it is printed. What `decode` worked on is of no use after an error.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    silence();
    IS_GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    IS_GUARDED.set(false);
    result.unwrap_or_else(|_| Err(ParquetError::General("the decoder gave up".into())))
}

/// Has panics printed as before, but for those that are caught here.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                print(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let result: Result<(), ParquetError> = guarded(|| panic!("damaged"));
        assert!(result.unwrap_err().to_string().contains("gave up"));
        assert!(!IS_GUARDED.get(), "later panics are printed");
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
    }
}
