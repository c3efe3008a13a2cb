//! The embedding of a black image: the negative one of rows without a negative prompt.

use super::failure::Failure;
use super::row::Embedding;
use crate::Error;
use crate::job::Opener;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Makes it at the first call, with a pipeline of its own, since that may take an image encoder of gigabytes.
pub(super) struct ZeroEmbed {
    open: Opener,
    made: Mutex<Option<Embedding>>,
}

impl fmt::Debug for ZeroEmbed {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.debug_struct("ZeroEmbed").field("made", &self.made).finish_non_exhaustive()
    }
}

impl ZeroEmbed {
    pub(super) fn new(open: Opener) -> Self {
        Self { open, made: Mutex::default() }
    }

    /// The embedding, `(dim)`. It may take seconds: not for a thread that others wait for.
    ///
    /// # Errors
    /// [`Kind::Engine`](super::failure::Kind::Engine) if the image encoder is damaged, or there is no memory for it.
    pub(super) fn get(&self) -> Result<Embedding, Failure> {
        // Whoever asks meanwhile waits here.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(embedding) = &*made {
            return Ok(Embedding::clone(embedding));
        }
        let mut pipeline = (self.open)().map_err(|error| match error.downcast_ref::<Error>() {
            Some(error) => Failure::from(error),
            None => Failure::internal(error),
        })?;
        let embedding = pipeline.check_memory_of_zero_embed().and_then(|()| pipeline.zero_embed());
        let embedding = embedding.map_err(|error| Failure::from(&error))?;
        let embedding = embedding.ok_or_else(|| Failure::internal("there is no embedding of a black image"))?;
        Ok(Embedding::clone(made.insert(embedding.iter().copied().collect())))
    }
}
