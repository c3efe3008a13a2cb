//! Why a pickle is refused.

/// Why a pickle is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PickleError {
    /// It names a Python function that only an attack needs.
    #[error("it asks to run `{0}`")]
    Forbidden(String),
    /// It is damaged, or not a pickle of `torch.save`.
    #[error("{0}")]
    Corrupt(String),
}

impl PickleError {
    pub(super) fn corrupt(why: impl Into<String>) -> Self {
        Self::Corrupt(why.into())
    }
}
