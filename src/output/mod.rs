//! Embeddings out, batch by batch, in memory that does not grow with the rows.
//!
//! To a file: rows are gathered in a hidden folder beside it, `.NAME.prior-embed`, in which a [journal] says what is
//! safe. Where the format allows it they go into the final file there ([`sink::Layout`]); others are made of columns at
//! the end. [`EmbeddingWriter::finish`] moves the output into place; the [files](numbered) of a folder move once they
//! are full. What is there at any moment is enough to resume from, and the output's bytes depend on its rows alone: not
//! on the batches that they came in, nor on how often the run was stopped.
//!
//! To standard output or a pipe: rows go out as they come where the format allows it ([`stream`]).

mod arrays;
mod batch;
mod check;
mod claim;
mod column;
pub(crate) mod destination;
mod dtype;
mod file;
pub(crate) mod fingerprint;
mod formats;
mod journal;
#[cfg(feature = "serve")]
mod memory;
pub(crate) mod merge;
mod numbered;
mod options;
mod paths;
mod pipe;
pub(crate) mod provenance;
mod publish;
mod record;
pub(crate) mod shard;
mod sink;
mod store;
mod stream;
mod target;
mod working;
mod writer;

pub use arrays::{ArrayName, Arrays};
pub use batch::{Batch, Flow, Interrupted, OutputRow};
pub use check::check;
pub use dtype::OutputDtype;
pub use formats::OutputFormat;
#[cfg(feature = "serve")]
pub(crate) use memory::{numbers, to_bytes};
pub use options::{Output, WriteOptions, is_stream};
pub(crate) use paths::MAX_NAME;
pub use writer::EmbeddingWriter;

#[cfg(test)]
pub(crate) mod tests;
